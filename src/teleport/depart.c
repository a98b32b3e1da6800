/* SPDX-License-Identifier: Apache-2.0 */
/* The source of a move: steps 0 to 4, and 7 or A. */
#include <string.h>

#include "base/fmt.h"
#include "teleport/peer.h"

#define PEER_PREPARE_MS 60000
#define CLEANUP_MS 10000

struct move { /* one move under way */
    struct klp_host *host;
    const struct klp_departure *departure;
    char id[KLP_ID_SIZE];
    bool doubtful;     /* nobody knows whether the registry has the intent */
    bool noted, quiet; /* hand-off note written; workload frozen and gate closed */
    uint64_t quiet_since_ns;
    struct klp_capture before; /* of the pre-copy; dirty NULL = there was none */
    struct klp_manifest before_manifest;
    struct klp_digest before_digest;
    bool has_before;
};

static enum klp_snapshot_kind kind_of(const struct klp_departure *departure)
{
    return departure->checkpoint ? KLP_KIND_CHECKPOINT : KLP_KIND_TELEPORT;
}

static void request_fill(const struct klp_host *host, const struct klp_departure *departure,
                         const char *move_id, struct klp_peer_request *out)
{
    const struct klp_agent_identity *identity = departure->identity;
    *out = (struct klp_peer_request){.epoch = departure->record->epoch,
                                     .kind = kind_of(departure),
                                     .image = identity->image_digest,
                                     .machine = *klp_vm_machine(departure->vm)};
    klp_text_copy(out->agent, sizeof(out->agent), identity->id);
    klp_text_copy(out->name, sizeof(out->name), identity->name);
    klp_text_copy(out->source, sizeof(out->source), host->node);
    klp_text_copy(out->move_id, sizeof(out->move_id), move_id);
    klp_text_copy(out->image_name, sizeof(out->image_name), identity->image);
    klp_text_copy(out->image_version, sizeof(out->image_version), identity->image_version);
}

/* It changes nothing: without an answer nothing has happened. */
static kelpie_outcome preflight_ask(const struct kelpie_op *op,
                                    const struct klp_departure *departure,
                                    const struct klp_peer_request *request,
                                    struct klp_peer_answer *out, struct kelpie_error **err)
{
    struct kelpie_error *error = NULL;
    const struct klp_node_record *destination = departure->destination;
    kelpie_outcome outcome =
        klp_peer_ask(op, destination->endpoint, "preflight", request, out, &error);
    if (kelpie_is_unknown(outcome))
        outcome = klp_fail(err, KELPIE_E_UNREACHABLE, "node '%s' does not answer: %s",
                           destination->name, kelpie_error_message(error));
    else
        klp_error_move(err, &error);
    klp_error_clear(&error);
    return outcome;
}

kelpie_outcome klp_teleport_check(const struct kelpie_op *op, struct klp_host *host,
                                  const struct klp_departure *departure, struct kelpie_error **err)
{
    struct klp_peer_request request;
    struct klp_peer_answer answer;
    const char *destination = departure->destination->name;
    char move_id[KLP_ID_SIZE];
    if (strcmp(destination, host->node) == 0)
        return klp_fail(err, KELPIE_E_STATE, "'%s' is on node '%s' already",
                        departure->identity->name, destination);
    klp_random_id(op->env, move_id);
    request_fill(host, departure, move_id, &request);
    klp_op_phase(op, "preflight");
    KLP_TRY(preflight_ask(op, departure, &request, &answer, err));
    if (answer.reason_count == 0)
        return KLP_OK;
    kelpie_outcome refused = klp_fail(err, KELPIE_E_INCOMPATIBLE,
                                      "cannot teleport '%s' to '%s': incompatible (%u reason%s)",
                                      departure->identity->name, destination, answer.reason_count,
                                      answer.reason_count == 1 ? "" : "s");
    for (uint32_t i = 0; i < answer.reason_count; i++)
        klp_error_reason_add(err, "%s", answer.reasons[i]);
    if (!departure->checkpoint)
        klp_error_remedy_set(err, "kelpie teleport %s %s --checkpoint", departure->identity->name,
                             destination);
    return refused;
}

/* 1: the registry knows that a move is under way. */
static kelpie_outcome intent(const struct kelpie_op *op, struct move *move,
                             struct kelpie_error **err)
{
    struct klp_agent_record *record = move->departure->record, next = *record;
    klp_op_phase(op, "intent");
    klp_point(op->env, "teleport.before-intent");
    next.state = KLP_AGENT_MOVING;
    klp_text_copy(next.move_id, sizeof(next.move_id), move->id);
    klp_text_copy(next.destination, sizeof(next.destination), move->departure->destination->name);
    kelpie_outcome outcome = klp_record_change(op, move->host->registry, record, &next, err);
    move->doubtful = kelpie_is_unknown(outcome);
    KLP_TRY(outcome);
    klp_point(op->env, "teleport.intent");
    return KLP_OK;
}

static void snapshot_request(const struct move *move, struct klp_snapshot_request *out)
{
    const struct klp_departure *departure = move->departure;
    *out = (struct klp_snapshot_request){.kind = KLP_KIND_TELEPORT,
                                         .identity = departure->identity,
                                         .env = departure->env,
                                         .seq = departure->seq,
                                         .epoch = departure->record->epoch,
                                         .template_ = departure->template_,
                                         .parent = departure->parent};
    memcpy(out->generation, departure->record->generation, sizeof(out->generation));
    if (move->has_before) {
        out->parent.manifest = &move->before_manifest;
        out->parent.digest = move->before_digest;
        out->parent.base_manifest = departure->parent.base_manifest != NULL
                                        ? departure->parent.base_manifest
                                        : departure->parent.manifest;
        out->parent.overlay = move->before.dirty;
    }
}

/* 2: while the agent runs, everything it has now goes into the store, and the destination makes a
 * place for it. */
static kelpie_outcome precopy(const struct kelpie_op *op, struct move *move,
                              struct kelpie_error **err)
{
    const struct klp_departure *departure = move->departure;
    struct klp_snapshot_request request;
    struct klp_peer_request message;
    struct klp_peer_answer answer;
    klp_op_phase(op, "precopy");
    klp_vm_capture_ahead(op, departure->vm);
    KLP_TRY(klp_vm_capture(op, departure->vm, KLP_HOLD_SNAPSHOT, &move->before, err));
    KLP_TRY(klp_vm_release(op, departure->vm, KLP_HOLD_SNAPSHOT, err));
    snapshot_request(move, &request);
    KLP_TRY(klp_snapshot_write(op, &move->host->snapshots, &move->before, &request,
                               &move->before_manifest, err));
    move->has_before = true;
    KLP_TRY(klp_snapshot_publish(op, &move->host->snapshots, &move->before_manifest,
                                 &move->before_digest, err));
    klp_op_phase(op, "prepare");
    request_fill(move->host, departure, move->id, &message);
    message.manifest = move->before_digest;
    /* Only a hint: a destination that was not prepared is slower. */
    struct kelpie_op within = klp_op_within(op, PEER_PREPARE_MS);
    struct kelpie_error *error = NULL;
    if (!kelpie_is_ok(klp_peer_ask(&within, departure->destination->endpoint, "prepare", &message,
                                   &answer, &error)))
        klp_log(op->env, KLP_LOG_WARN, "teleport.prepare", "agent=%s error=%s",
                departure->identity->name, kelpie_error_message(error));
    klp_error_clear(&error);
    return klp_op_check(op, "preparing the destination", err);
}

/* 3: nothing of the agent passes to the outside any more, and a crash of ours cannot forget that.
 */
static kelpie_outcome quiesce(const struct kelpie_op *op, struct move *move,
                              struct kelpie_error **err)
{
    const struct klp_departure *departure = move->departure;
    struct klp_handoff note = {.epoch = departure->record->epoch};
    if (!departure->checkpoint)
        klp_vm_capture_ahead(op, departure->vm);
    klp_op_phase(op, "quiesce");
    klp_text_copy(note.agent, sizeof(note.agent), departure->identity->id);
    klp_text_copy(note.move_id, sizeof(note.move_id), move->id);
    klp_text_copy(note.destination, sizeof(note.destination), departure->destination->name);
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf text = KLP_BUF_INIT(KLP_KIB);
    klp_handoff_encode(&note, &text);
    move->noted = true;
    KLP_TRY(move->host->ops->note_put(op, move->host, note.agent, klp_buf_view(&text), err));
    klp_point(op->env, "teleport.noted");
    move->quiet = true;
    move->quiet_since_ns = klp_boot_ns(op->env);
    klp_vm_gate_close(departure->vm);
    KLP_TRY(klp_workload_freeze(op, departure->vm, err));
    klp_point(op->env, "teleport.quiet");
    return KLP_OK;
}

/* 4 with memory: what changed since the pre-copy, and the device state. */
static kelpie_outcome final_memory(const struct kelpie_op *op, struct move *move,
                                   struct klp_manifest *out, struct kelpie_error **err)
{
    struct klp_snapshot_request request;
    struct klp_capture capture;
    KLP_TRY(klp_vm_capture(op, move->departure->vm, KLP_HOLD_HANDOFF, &capture, err));
    klp_point(op->env, "teleport.captured");
    snapshot_request(move, &request);
    request.seq++;
    kelpie_outcome outcome =
        klp_snapshot_write(op, &move->host->snapshots, &capture, &request, out, err);
    klp_capture_finish(&capture);
    return outcome;
}

static kelpie_outcome final_write(const struct kelpie_op *op, struct move *move,
                                  struct klp_digest *out, struct kelpie_error **err)
{
    struct klp_manifest manifest = {.kind = KLP_KIND_NONE};
    struct klp_snapshot_request request;
    klp_op_phase(op, "final");
    snapshot_request(move, &request);
    kelpie_outcome outcome =
        move->departure->checkpoint
            ? klp_checkpoint_write(op, move->host, &request, move->departure->vm, &manifest, err)
            : final_memory(op, move, &manifest, err);
    if (kelpie_is_ok(outcome))
        outcome = klp_snapshot_publish(op, &move->host->snapshots, &manifest, out, err);
    klp_manifest_finish(&manifest);
    if (kelpie_is_ok(outcome))
        klp_point(op->env, "teleport.final");
    return outcome;
}

/* The bound the user gave for the pause, checked where undoing is still cheap. */
static kelpie_outcome pause_check(const struct kelpie_op *op, const struct move *move,
                                  struct kelpie_error **err)
{
    uint64_t paused_ms = (klp_boot_ns(op->env) - move->quiet_since_ns) / KLP_MS;
    uint64_t max_ms = move->departure->max_pause_ms;
    if (max_ms == 0 || paused_ms <= max_ms)
        return KLP_OK;
    return klp_fail(
        err, KELPIE_E_LIMIT, "'%s' stood still for %llu ms already, more than --max-pause %llums",
        move->departure->identity->name, (unsigned long long)paused_ms, (unsigned long long)max_ms);
}

static kelpie_outcome intent_try_undo(const struct kelpie_op *op, struct klp_host *host,
                                      struct klp_agent_record *record, struct kelpie_error **err)
{
    struct klp_agent_record next = *record;
    next.state = KLP_AGENT_RUNNING;
    next.epoch++;
    next.move_id[0] = next.destination[0] = 0;
    return klp_record_change(op, host->registry, record, &next, err);
}

/* What is stored now, if the agent is ours still. */
static kelpie_outcome intent_read(const struct kelpie_op *op, const struct klp_host *host,
                                  struct klp_agent_record *record, struct kelpie_error **err)
{
    struct klp_agent_record current;
    KLP_TRY(klp_registry_get(op, host->registry, record->id, &current, err));
    klp_json_free(current.extra);
    current.extra = record->extra;
    if (strcmp(current.owner, host->node) != 0)
        return klp_fail(err, KELPIE_E_CONFLICT, "agent '%s' belongs to node '%s'", current.name,
                        current.owner);
    *record = current;
    return KLP_OK;
}

kelpie_outcome klp_teleport_intent_undo(const struct kelpie_op *op, struct klp_host *host,
                                        struct kelpie_vm *vm, struct klp_agent_record *record,
                                        struct kelpie_error **err)
{
    struct kelpie_error *error = NULL;
    uint64_t sent_ns = klp_boot_ns(op->env);
    kelpie_outcome outcome = intent_try_undo(op, host, record, &error);
    if (klp_error_code(&error) == KELPIE_E_CONFLICT) {
        klp_error_clear(&error); /* the intent came late, or an undoing that nobody answered did */
        KLP_TRY(intent_read(op, host, record, err));
        outcome =
            record->state == KLP_AGENT_MOVING ? intent_try_undo(op, host, record, &error) : KLP_OK;
    }
    klp_error_move(err, &error);
    KLP_TRY(outcome);
    KLP_TRY(klp_lease_since(op, host, vm, record, sent_ns, err));
    klp_vm_gate_open(vm, record->epoch);
    return KLP_OK;
}

/* A before the hand-off note was written: only the intent is to be taken back. */
static kelpie_outcome intent_undo(const struct kelpie_op *op, struct move *move,
                                  struct kelpie_error **err)
{
    struct klp_agent_record *record = move->departure->record;
    if (record->state != KLP_AGENT_MOVING && !move->doubtful)
        return KLP_OK;
    return klp_teleport_intent_undo(op, move->host, move->departure->vm, record, err);
}

/* The move failed with *err: who owns the agent now? */
static kelpie_outcome move_undo(const struct kelpie_op *op, struct move *move, bool *out_gone,
                                struct kelpie_error **err)
{
    struct kelpie_op cleanup = klp_op_cleanup(op, CLEANUP_MS);
    const struct klp_departure *departure = move->departure;
    klp_op_phase(op, "abort");
    *out_gone = false;
    kelpie_outcome outcome;
    KLP_AUTO(kelpie_error) struct kelpie_error *why = NULL;
    if (!move->noted) {
        outcome = intent_undo(&cleanup, move, &why);
    } else {
        struct klp_handoff note = {.epoch = departure->record->epoch};
        klp_text_copy(note.agent, sizeof(note.agent), departure->identity->id);
        klp_text_copy(note.move_id, sizeof(note.move_id), move->id);
        klp_text_copy(note.destination, sizeof(note.destination), departure->destination->name);
        outcome = klp_teleport_settle(&cleanup, move->host, departure->vm, &note, departure->record,
                                      out_gone, &why);
    }
    if (kelpie_is_ok(outcome))
        return outcome;
    klp_error_reason_add(err, "taking it back failed as well: %s", kelpie_error_message(why));
    klp_error_reason_add(err, "node '%s' goes on settling who owns '%s'%s", move->host->node,
                         departure->identity->name, move->quiet ? ", which stands still" : "");
    return (kelpie_outcome){KELPIE_UNKNOWN};
}

static kelpie_outcome hand_over(const struct kelpie_op *op, struct move *move,
                                struct klp_departure_result *out, struct kelpie_error **err)
{
    struct klp_peer_request message;
    struct klp_peer_answer answer;
    klp_op_phase(op, "accept");
    request_fill(move->host, move->departure, move->id, &message);
    message.manifest = out->manifest;
    klp_point(op->env, "teleport.before-accept");
    KLP_TRY(
        klp_peer_ask(op, move->departure->destination->endpoint, "accept", &message, &answer, err));
    out->blackout_ns = klp_boot_ns(op->env) - move->quiet_since_ns;
    klp_point(op->env, "teleport.accepted");
    return KLP_OK;
}

static kelpie_outcome move_try(const struct kelpie_op *op, struct move *move,
                               struct klp_departure_result *out, struct kelpie_error **err)
{
    KLP_TRY(intent(op, move, err));
    if (!move->departure->checkpoint)
        KLP_TRY(precopy(op, move, err));
    KLP_TRY(quiesce(op, move, err));
    KLP_TRY(final_write(op, move, &out->manifest, err));
    KLP_TRY(pause_check(op, move, err));
    return hand_over(op, move, out, err);
}

static void move_finish(struct move *move)
{
    klp_capture_finish(&move->before);
    if (move->has_before)
        klp_manifest_finish(&move->before_manifest);
}

/* 7: an answer of the destination is a hint; the registry decides. Nothing is left to cancel. */
static kelpie_outcome release(const struct kelpie_op *asked, struct move *move,
                              struct klp_departure_result *out, struct kelpie_error **err)
{
    struct klp_handoff note = {.epoch = move->departure->record->epoch};
    struct kelpie_op cleanup = klp_op_cleanup(asked, CLEANUP_MS), *op = &cleanup;
    klp_op_phase(op, "release");
    klp_text_copy(note.agent, sizeof(note.agent), move->departure->identity->id);
    klp_text_copy(note.move_id, sizeof(note.move_id), move->id);
    klp_text_copy(note.destination, sizeof(note.destination), move->departure->destination->name);
    kelpie_outcome settled = klp_teleport_settle(op, move->host, move->departure->vm, &note,
                                                 move->departure->record, &out->gone, err);
    klp_op_phase_end(op);
    if (!kelpie_is_ok(settled))
        return klp_wrap(err, (kelpie_outcome){KELPIE_UNKNOWN},
                        "node '%s' said it runs '%s', and the registry does not answer",
                        move->departure->destination->name, move->departure->identity->name);
    if (out->gone)
        return KLP_OK;
    return klp_fail(err, KELPIE_E_CONFLICT,
                    "node '%s' said it runs '%s', but the registry does not know",
                    move->departure->destination->name, move->departure->identity->name);
}

/* A courtesy: the destination finds out by the registry, too. */
static void cancel_tell(const struct kelpie_op *op, const struct move *move)
{
    struct klp_peer_request message;
    struct klp_peer_answer answer;
    struct kelpie_op brief = klp_op_cleanup(op, 2000);
    request_fill(move->host, move->departure, move->id, &message);
    KLP_IGNORE(klp_peer_ask(&brief, move->departure->destination->endpoint, "cancel", &message,
                            &answer, NULL));
}

kelpie_outcome klp_teleport_send(const struct kelpie_op *op, struct klp_host *host,
                                 const struct klp_departure *departure,
                                 struct klp_departure_result *out, struct kelpie_error **err)
{
    __attribute__((cleanup(move_finish))) struct move move = {.host = host, .departure = departure};
    *out = (struct klp_departure_result){.gone = false};
    if (op->move_id[0] != 0)
        klp_text_copy(move.id, sizeof(move.id), op->move_id);
    else
        klp_random_id(op->env, move.id);
    KLP_TRY(klp_teleport_check(op, host, departure, err));

    struct kelpie_error *error = NULL;
    kelpie_outcome outcome = move_try(op, &move, out, &error);
    if (kelpie_is_ok(outcome))
        return release(op, &move, out, err);
    bool gone;
    kelpie_outcome undone = move_undo(op, &move, &gone, &error);
    klp_op_phase_end(op);
    if (gone) { /* it had happened after all */
        klp_error_clear(&error);
        out->gone = true;
        out->blackout_ns = klp_boot_ns(op->env) - move.quiet_since_ns;
        return KLP_OK;
    }
    cancel_tell(op, &move);
    if (kelpie_is_ok(undone) && kelpie_is_unknown(outcome)) { /* known by now: it stays */
        outcome = klp_fail(err, KELPIE_E_UNREACHABLE, "'%s' stays on node '%s': %s",
                           departure->identity->name, host->node, kelpie_error_message(error));
        klp_error_clear(&error);
        return outcome;
    }
    klp_error_move(err, &error);
    return kelpie_is_ok(undone) ? outcome : undone;
}
