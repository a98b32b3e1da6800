/* SPDX-License-Identifier: Apache-2.0 */
/* The hand-off note, and what a source does once only the registry can tell who owns the agent. */
#include <string.h>

#include "base/fmt.h"
#include "teleport/teleport.h"

#define ASK_AGAIN_MS 50 /* at first; doubles up to a second */

void klp_handoff_encode(const struct klp_handoff *note, struct klp_buf *out)
{
    KLP_AUTO(json) struct klp_json *json = klp_json_object();
    klp_json_set_u64(json, "version", 1);
    klp_json_set_text(json, "agent", note->agent);
    klp_json_set_text(json, "move_id", note->move_id);
    klp_json_set_text(json, "destination", note->destination);
    klp_json_set_u64(json, "epoch", note->epoch);
    klp_json_print(json, out);
}

bool klp_handoff_decode(struct klp_bytes text, struct klp_handoff *out, struct kelpie_error **err)
{
    KLP_AUTO(json) struct klp_json *json = NULL;
    const char *agent = "", *move_id = "", *destination = "";
    uint64_t version = 0, epoch = 0;
    bool fine = klp_json_parse(text.data, text.size, 2, &json, err) &&
                klp_json_get_u64(json, "version", KLP_JSON_REQUIRED, &version, err) &&
                klp_json_get_text(json, "agent", KLP_JSON_REQUIRED, &agent, err) &&
                klp_json_get_text(json, "move_id", KLP_JSON_REQUIRED, &move_id, err) &&
                klp_json_get_text(json, "destination", KLP_JSON_REQUIRED, &destination, err) &&
                klp_json_get_u64(json, "epoch", KLP_JSON_REQUIRED, &epoch, err);
    if (!fine)
        return klp_wrap_refusal(err, "hand-off note");
    if (version != 1 || !klp_id_is_valid(agent) || !klp_id_is_valid(move_id) ||
        !klp_name_is_valid(destination))
        return klp_refuse(err, KELPIE_E_CORRUPT, "hand-off note: a field is wrong");
    *out = (struct klp_handoff){.epoch = epoch};
    klp_text_copy(out->agent, sizeof(out->agent), agent);
    klp_text_copy(out->move_id, sizeof(out->move_id), move_id);
    klp_text_copy(out->destination, sizeof(out->destination), destination);
    return true;
}

/* The agent is ours at record->epoch, RUNNING, since a CAS of `sent_ns`: let it go on. */
static kelpie_outcome go_on(const struct kelpie_op *op, struct klp_host *host, struct kelpie_vm *vm,
                            const struct klp_agent_record *record, uint64_t sent_ns,
                            struct kelpie_error **err)
{
    KLP_TRY(klp_lease_since(op, host, vm, record, sent_ns, err));
    KLP_TRY(klp_vm_release(op, vm, KLP_HOLD_HANDOFF | KLP_HOLD_SNAPSHOT, err));
    KLP_TRY(klp_workload_thaw(op, vm, err));
    klp_vm_gate_open(vm, record->epoch);
    return host->ops->note_remove(op, host, record->id, err);
}

/* What the registry says of a VM that waits. */
enum verdict { VERDICT_OURS, VERDICT_GONE, VERDICT_TAKE, VERDICT_WAIT };

static enum verdict verdict_of(struct klp_host *host, const struct klp_handoff *note,
                               const struct klp_agent_record *record,
                               struct klp_settle_watch *watching)
{
    bool ours = strcmp(record->owner, host->node) == 0;
    if (ours && record->state == KLP_AGENT_RUNNING)
        return record->epoch > note->epoch ? VERDICT_OURS : VERDICT_TAKE;
    if (ours && record->state == KLP_AGENT_MOVING)
        return VERDICT_TAKE; /* abort */
    if (record->state == KLP_AGENT_PARKED && record->epoch == note->epoch + 2)
        return VERDICT_TAKE; /* claimed and given up by the destination: nothing ran there */
    if (record->state != KLP_AGENT_STARTING || strcmp(record->move_id, note->move_id) != 0)
        return VERDICT_GONE; /* it has run since, whatever it does now */
    /* Claimed, not running: the destination thaws only once its CAS to RUNNING is known, so taking
     * it back can never make two. Only a destination whose beat stands still for the lease and a
     * third is dead, though. */
    uint64_t now = klp_boot_ns(host->env);
    if (watching->since_ns == 0 || watching->beat != record->beat ||
        watching->revision != record->revision)
        *watching = (struct klp_settle_watch){record->beat, record->revision, now};
    uint64_t patience = record->lease_ttl_ms * KLP_MS / 3 * 4;
    return now - watching->since_ns > patience ? VERDICT_TAKE : VERDICT_WAIT;
}

static kelpie_outcome take_back(const struct kelpie_op *op, struct klp_host *host,
                                struct klp_agent_record *record, struct kelpie_error **err)
{
    struct klp_agent_record next = *record;
    klp_text_copy(next.owner, sizeof(next.owner), host->node);
    next.epoch++;
    next.state = KLP_AGENT_RUNNING;
    next.move_id[0] = next.destination[0] = next.reason[0] = 0;
    klp_point(op->env, "teleport.before-abort");
    KLP_TRY(klp_record_change(op, host->registry, record, &next, err));
    klp_point(op->env, "teleport.aborted");
    return KLP_OK;
}

static kelpie_outcome look(const struct kelpie_op *op, struct klp_host *host, struct kelpie_vm *vm,
                           const struct klp_handoff *note, struct klp_agent_record *record,
                           struct klp_settle_watch *watching, bool *out_settled, bool *out_gone,
                           struct kelpie_error **err)
{
    struct klp_agent_record current;
    struct kelpie_error *error = NULL;
    uint64_t sent_ns = 0; /* it became ours who knows when */
    kelpie_outcome outcome = klp_registry_get(op, host->registry, note->agent, &current, &error);
    if (!kelpie_is_ok(outcome)) {
        *out_gone = *out_settled =
            kelpie_error_code(error) == KELPIE_E_NOT_FOUND; /* it was removed */
        klp_error_clear(&error);
        return KLP_OK;
    }
    klp_agent_record_finish(record);
    *record = current;
    switch (verdict_of(host, note, record, watching)) {
    case VERDICT_GONE:
        *out_gone = *out_settled = true;
        return KLP_OK;
    case VERDICT_WAIT:
        return KLP_OK;
    case VERDICT_TAKE:
        sent_ns = klp_boot_ns(op->env);
        if (!kelpie_is_ok(take_back(op, host, record, &error))) {
            klp_error_clear(&error); /* lost, or unknown: look again */
            return KLP_OK;
        }
        break;
    case VERDICT_OURS:
        break;
    }
    *out_settled = true;
    return go_on(op, host, vm, record, sent_ns, err);
}

kelpie_outcome klp_teleport_settle_on(const struct kelpie_op *op, struct klp_host *host,
                                      struct kelpie_vm *vm, const struct klp_handoff *note,
                                      struct klp_settle_watch *watch,
                                      struct klp_agent_record *record, bool *out_gone,
                                      struct kelpie_error **err)
{
    uint64_t pause_ms = ASK_AGAIN_MS;
    bool settled = false;
    *out_gone = false;
    for (;;) {
        KLP_TRY(look(op, host, vm, note, record, watch, &settled, out_gone, err));
        if (settled)
            return KLP_OK;
        struct kelpie_op nap = klp_op_within(op, pause_ms);
        if (!kelpie_is_ok(
                klp_registry_watch(&nap, host->registry, note->agent, record->revision, NULL)))
            KLP_TRY(klp_op_check(op, "asking the registry who owns the agent", err));
        pause_ms = pause_ms < 1000 ? pause_ms * 2 : 1000;
    }
}

kelpie_outcome klp_teleport_settle(const struct kelpie_op *op, struct klp_host *host,
                                   struct kelpie_vm *vm, const struct klp_handoff *note,
                                   struct klp_agent_record *record, bool *out_gone,
                                   struct kelpie_error **err)
{
    struct klp_settle_watch watch = {0};
    return klp_teleport_settle_on(op, host, vm, note, &watch, record, out_gone, err);
}
