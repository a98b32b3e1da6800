/* SPDX-License-Identifier: Apache-2.0 */
/* Moves of agents as a node sees them: leaving it, and arriving when a peer asks. */
#include <string.h>

#include "base/fmt.h"
#include "node/inside.h"

static kelpie_outcome departure_run(const struct kelpie_op *op, struct operation *operation,
                                    struct node_agent *agent,
                                    const struct klp_node_record *destination,
                                    struct klp_departure_result *out, struct kelpie_error **err)
{
    struct klp_node *node = operation->node;
    struct parent_hold hold;
    struct klp_agent_record record = agent->record;
    struct klp_departure departure = {.vm = agent->life->vm,
                                      .record = &record,
                                      .identity = &agent->identity,
                                      .env = (const char *const *)agent->env,
                                      .destination = destination,
                                      .template_ = agent->template_,
                                      .seq = agent->seq + 1,
                                      .checkpoint = operation->request.checkpoint,
                                      .max_pause_ms = operation->request.max_pause_ms};
    kelpie_outcome outcome = parent_find(op, agent, &hold, &departure.parent, err);
    if (kelpie_is_ok(outcome))
        outcome = operation->request.check
                      ? klp_teleport_check(op, &node->host, &departure, err)
                      : klp_teleport_send(op, &node->host, &departure, out, err);
    parent_drop(&hold);
    agent->seq += 2;
    if (!out->gone)
        record_adopt(agent, &record);
    KLP_LOCKED (node->mutex) {
        operation->info.blackout_us = out->blackout_ns / 1000;
        operation->info.epoch = record.epoch;
    }
    return outcome;
}

kelpie_outcome teleport_run(const struct kelpie_op *op, struct operation *operation,
                            struct kelpie_error **err)
{
    struct klp_node *node = operation->node;
    AUTO_AGENT struct node_agent *agent = NULL;
    struct klp_node_record destination;
    struct klp_departure_result result = {.gone = false};
    KLP_TRY(agent_take(op, node, operation->subject, &agent, err));
    KLP_TRY(klp_registry_node_get(op, node->host.registry, operation->request.destination,
                                  &destination, err));
    if (agent->life == NULL || agent->record.state != KLP_AGENT_RUNNING)
        return klp_fail(err, KELPIE_E_STATE, "cannot teleport '%s': it is %s", agent->name,
                        klp_agent_state_name(agent->record.state));
    if (agent->intent_open)
        return klp_fail(err, KELPIE_E_BUSY, "a former move of '%s' is still being settled",
                        agent->name);
    kelpie_outcome outcome = departure_run(op, operation, agent, &destination, &result, err);
    agent->intent_open = kelpie_is_unknown(outcome);
    if (agent->intent_open)
        chore_post(node, CHORE_SETTLE, agent->id, NULL, "");
    if (!result.gone && !kelpie_is_ok(outcome)) /* its pre-copy may have left it held */
        chore_post(node, CHORE_WAKE, agent->id, agent->life, "");
    if (!result.gone)
        return outcome;
    klp_point(op->env, "teleport.before-release");
    life_end(op, agent, false);
    KLP_IGNORE(node->host.ops->note_remove(op, &node->host, agent->id, NULL));
    event_post(node, "teleport.done", agent->name, "now on node '%s'", destination.name);
    agent_forget(agent);
    return KLP_OK;
}

/* ---- the destination's side */

static kelpie_outcome peer_preflight(const struct kelpie_op *op, struct klp_node *node,
                                     const struct klp_peer_request *request,
                                     struct klp_peer_answer *out)
{
    struct klp_agent_identity identity = {.image_digest = request->image};
    struct kelpie_error *error = NULL;
    klp_text_copy(identity.name, sizeof(identity.name), request->name);
    klp_text_copy(identity.image, sizeof(identity.image), request->image_name);
    klp_text_copy(identity.image_version, sizeof(identity.image_version), request->image_version);
    if (!kelpie_is_ok(klp_gate_check(op, &node->host, request->kind, &request->machine, &identity,
                                     NULL, &error)))
        for (size_t i = 0;
             i < kelpie_error_reason_count(error) && out->reason_count < KLP_COUNT(out->reasons);
             i++)
            klp_format(out->reasons[out->reason_count++], sizeof(out->reasons[0]), "%s",
                       kelpie_error_reason(error, i));
    klp_error_clear(&error);
    return KLP_OK;
}

struct klp_arrival *arrival_take(struct klp_node *node, const char *move_id)
{
    struct klp_arrival *arrival = NULL;
    KLP_LOCKED (node->mutex) {
        for (size_t i = 0; i < NODE_ARRIVALS_MAX && arrival == NULL; i++)
            if (node->arrivals[i].arrival != NULL &&
                strcmp(node->arrivals[i].move_id, move_id) == 0)
                arrival = KLP_TAKE(&node->arrivals[i].arrival);
    }
    return arrival;
}

static kelpie_outcome peer_prepare(const struct kelpie_op *op, struct klp_node *node,
                                   const struct klp_peer_request *request,
                                   struct kelpie_error **err)
{
    struct klp_arrival *arrival;
    struct klp_arrival *displaced = arrival_take(node, request->move_id);
    klp_arrival_drop(op, displaced); /* the message came twice */
    KLP_TRY(klp_arrival_prepare(op, &node->host, request, &arrival, err));
    bool kept = false;
    KLP_LOCKED (node->mutex) {
        for (size_t i = 0; i < NODE_ARRIVALS_MAX && !kept; i++) {
            struct arrival_slot *slot = &node->arrivals[i];
            kept = slot->arrival == NULL;
            if (kept) {
                slot->arrival = arrival;
                klp_text_copy(slot->move_id, sizeof(slot->move_id), request->move_id);
                klp_text_copy(slot->agent_id, sizeof(slot->agent_id), request->agent);
            }
        }
    }
    if (kept)
        return KLP_OK;
    klp_arrival_drop(op, arrival);
    return klp_fail(err, KELPIE_E_LIMIT, "node '%s' expects %d arrivals already", node->name,
                    NODE_ARRIVALS_MAX);
}

/* A message that comes twice, after the first was acted upon: the answer is what is true now. */
static bool accepted_before(struct klp_node *node, const struct klp_peer_request *request,
                            struct klp_peer_answer *out)
{
    bool before = false;
    struct node_agent *agent = agent_find_id(node, request->agent);
    if (agent == NULL)
        return false;
    struct klp_agent_record record;
    record_copy(agent, &record);
    before = record.epoch > request->epoch && agent->life != NULL;
    if (before) {
        out->epoch = record.epoch;
        klp_text_copy(out->state, sizeof(out->state), klp_agent_state_name(record.state));
    }
    agent_put(agent);
    return before;
}

/* With its slot, and no VM but the one that has arrived. There may be an agent of that id here:
 * loaded by somebody who asked for it since the claim, or about to leave by a move of ours that the
 * registry knows as done. The VM runs already, so this waits for as long as it takes. */
static struct node_agent *agent_arrived(const struct kelpie_op *op, struct klp_node *node,
                                        const struct klp_agent_record *record)
{
    struct kelpie_op forever = {.env = op->env, .deadline_ns = KLP_NO_DEADLINE};
    for (;;) {
        struct node_agent *agent = agent_add(node, record);
        if (kelpie_is_ok(slot_take(&forever, agent, NULL))) {
            life_end(&forever, agent, false);
            record_adopt(agent, record);
            return agent;
        }
        agent_put(agent); /* forgotten meanwhile */
    }
}

/* The mutex is held. NULL = nobody takes it in; an id of "" looks for a free place. */
static char *accepting_find(struct klp_node *node, const char *agent_id)
{
    for (size_t i = 0; i < NODE_ARRIVALS_MAX; i++)
        if (strcmp(node->accepting[i], agent_id) == 0)
            return node->accepting[i];
    return NULL;
}

static kelpie_outcome accepted_locked(const struct kelpie_op *op, struct klp_node *node,
                                      const char *agent_id, struct kelpie_error **err)
{
    kelpie_outcome outcome = KLP_OK;
    while (accepting_find(node, agent_id) != NULL && kelpie_is_ok(outcome))
        outcome = klp_cond_wait(op, node->changed, node->mutex, err);
    return outcome;
}

kelpie_outcome accept_wait(const struct kelpie_op *op, struct klp_node *node, const char *agent_id,
                           struct kelpie_error **err)
{
    kelpie_outcome outcome = KLP_OK;
    KLP_LOCKED (node->mutex) {
        outcome = accepted_locked(op, node, agent_id, err);
    }
    return outcome;
}

/* One message at a time takes an agent in: two that say the same could not tell whose claim the
 * registry has. */
static kelpie_outcome accept_begin(const struct kelpie_op *op, struct klp_node *node,
                                   const char *agent_id, char **out_slot, struct kelpie_error **err)
{
    kelpie_outcome outcome = KLP_OK;
    KLP_LOCKED (node->mutex) {
        outcome = accepted_locked(op, node, agent_id, err);
        *out_slot = kelpie_is_ok(outcome) ? accepting_find(node, "") : NULL;
        if (*out_slot != NULL)
            klp_text_copy(*out_slot, KLP_ID_SIZE, agent_id);
    }
    if (kelpie_is_ok(outcome) && *out_slot == NULL)
        outcome = klp_fail(err, KELPIE_E_LIMIT, "node '%s' takes in %d agents already", node->name,
                           NODE_ARRIVALS_MAX);
    return outcome;
}

static void accept_end(struct klp_node *node, char *slot)
{
    KLP_LOCKED (node->mutex) {
        slot[0] = 0;
        klp_cond_wake(node->changed);
    }
}

/* It was claimed, has no VM, and the registry could not be told: that is told later. */
static void arrival_owe(const struct kelpie_op *op, struct klp_node *node,
                        struct klp_agent_record *record)
{
    struct kelpie_op cleanup = klp_op_cleanup(op, NODE_CLEANUP_MS);
    struct node_agent *agent = agent_add(node, record);
    bool ran = record->state == KLP_AGENT_RUNNING;
    KLP_IGNORE(agent_know(&cleanup, agent, NULL));
    record_later(agent, ran ? KLP_AGENT_CRASHED : KLP_AGENT_PARKED, "it could not be brought up");
    agent_put(agent);
    klp_agent_record_finish(record);
}

static kelpie_outcome accept_alone(const struct kelpie_op *op, struct klp_node *node,
                                   const struct klp_peer_request *request,
                                   struct klp_peer_answer *out, struct kelpie_error **err)
{
    struct kelpie_vm *vm;
    struct klp_agent_record record;
    struct klp_manifest manifest;
    if (accepted_before(node, request, out))
        return KLP_OK;
    struct klp_arrival *arrival = arrival_take(node, request->move_id);
    kelpie_outcome outcome = klp_arrival_accept(op, &node->host, arrival, request, node->samples,
                                                &vm, &record, &manifest, err);
    if (!kelpie_is_ok(outcome)) {
        if (record.owner[0] != 0)
            arrival_owe(op, node, &record);
        return outcome;
    }
    out->epoch = record.epoch;
    klp_text_copy(out->state, sizeof(out->state), klp_agent_state_name(record.state));

    AUTO_AGENT struct node_agent *agent = agent_arrived(op, node, &record);
    struct kelpie_error *error = NULL;
    if (!agent_take_manifest(agent, &manifest, &error))
        klp_log(op->env, KLP_LOG_ERROR, "teleport.arrived", "agent=%s error=%s", record.name,
                kelpie_error_message(error));
    klp_error_clear(&error);
    if (manifest.kind == KLP_KIND_CHECKPOINT &&
        !(kelpie_is_ok(agent_template_find(op, agent, &error)) && agent_save(agent, &error)))
        klp_log(op->env, KLP_LOG_ERROR, "teleport.arrived", "agent=%s error=%s", record.name,
                kelpie_error_message(error));
    klp_error_clear(&error);
    klp_manifest_finish(&manifest);
    KLP_IGNORE(klp_dir_remove(node->notes_dir, agent->id, NULL)); /* of the move it left by */
    life_begin(agent, vm);
    event_post(node, "teleport.arrived", agent->name, "from node '%s' at epoch %llu",
               request->source, (unsigned long long)record.epoch);
    return KLP_OK;
}

static kelpie_outcome peer_accept(const struct kelpie_op *op, struct klp_node *node,
                                  const struct klp_peer_request *request,
                                  struct klp_peer_answer *out, struct kelpie_error **err)
{
    char *slot;
    if (!klp_id_is_valid(request->agent))
        return klp_fail(err, KELPIE_E_INVALID, "cannot take an agent in: bad id");
    KLP_TRY(accept_begin(op, node, request->agent, &slot, err));
    kelpie_outcome outcome = accept_alone(op, node, request, out, err);
    accept_end(node, slot);
    return outcome;
}

kelpie_outcome klp_node_peer(const struct kelpie_op *op, struct klp_node *node, const char *verb,
                             const struct klp_peer_request *request, struct klp_peer_answer *out,
                             struct kelpie_error **err)
{
    *out = (struct klp_peer_answer){.reason_count = 0};
    if (strcmp(verb, "preflight") == 0)
        return peer_preflight(op, node, request, out);
    if (strcmp(verb, "prepare") == 0)
        return peer_prepare(op, node, request, err);
    if (strcmp(verb, "accept") == 0)
        return peer_accept(op, node, request, out, err);
    if (strcmp(verb, "cancel") == 0) {
        klp_arrival_drop(op, arrival_take(node, request->move_id));
        return KLP_OK;
    }
    return klp_fail(err, KELPIE_E_NOT_FOUND, "no peer request '%.*s'", 40, verb);
}
