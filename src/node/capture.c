/* SPDX-License-Identifier: Apache-2.0 */
/* Snapshots of agents that run or are paused here: snapshot create, suspend, fork, restore,
 * teleport. */
#include <string.h>

#include "base/fmt.h"
#include "node/inside.h"

/* ---- what the store has already */

kelpie_outcome parent_find(const struct kelpie_op *op, struct node_agent *agent,
                           struct parent_hold *hold, struct klp_snapshot_parent *out,
                           struct kelpie_error **err)
{
    struct klp_node *node = agent->node;
    *hold = (struct parent_hold){.has_last = false};
    *out = (struct klp_snapshot_parent){.manifest = NULL};
    if (klp_digest_is_zero(&agent->template_) && klp_vm_base(agent->life->vm) != NULL)
        return klp_fail(err, KELPIE_E_STATE, "the template of '%s' is not known", agent->name);
    if (klp_digest_is_zero(&agent->template_))
        return KLP_OK;
    KLP_TRY(klp_snapshot_load(op, &node->host.snapshots, &agent->template_, &hold->template_, err));
    hold->has_template = true;
    *out = (struct klp_snapshot_parent){.manifest = &hold->template_,
                                        .digest = agent->template_,
                                        .base = klp_vm_base(agent->life->vm)};
    /* The last snapshot, if it is of this very lineage: pages it stored need not be stored again.
     */
    const struct klp_digest *last = &agent->record.manifest;
    if (klp_digest_is_zero(last) ||
        !kelpie_is_ok(klp_snapshot_load(op, &node->host.snapshots, last, &hold->last, NULL)))
        return KLP_OK;
    hold->has_last = true;
    if (hold->last.region_count == 1 &&
        klp_digest_equal(&hold->last.template_, &agent->template_)) {
        out->manifest = &hold->last;
        out->digest = *last;
        out->base_manifest = &hold->template_;
    }
    return KLP_OK;
}

void parent_drop(struct parent_hold *hold)
{
    if (hold->has_template)
        klp_manifest_finish(&hold->template_);
    if (hold->has_last)
        klp_manifest_finish(&hold->last);
}

/* ---- one capture, with the agent back in its former state whatever happens */

static void request_fill(struct node_agent *agent, enum klp_snapshot_kind kind, const char *label,
                         struct klp_snapshot_request *out)
{
    *out = (struct klp_snapshot_request){.kind = kind,
                                         .label = label,
                                         .identity = &agent->identity,
                                         .env = (const char *const *)agent->env,
                                         .seq = ++agent->seq,
                                         .epoch = agent->record.epoch,
                                         .template_ = agent->template_};
    memcpy(out->generation, agent->record.generation, sizeof(out->generation));
}

/* Frozen inside unless it is paused (then it is frozen already). */
static kelpie_outcome shot_freeze(const struct kelpie_op *op, struct node_agent *agent,
                                  struct kelpie_error **err)
{
    if (agent->record.state == KLP_AGENT_PAUSED)
        return KLP_OK;
    return klp_workload_freeze(op, agent->life->vm, err);
}

static void shot_thaw(const struct kelpie_op *op, struct node_agent *agent)
{
    struct kelpie_op cleanup = klp_op_cleanup(op, NODE_CLEANUP_MS);
    kelpie_outcome outcome = klp_vm_release(&cleanup, agent->life->vm, KLP_HOLD_SNAPSHOT, NULL);
    if (kelpie_is_ok(outcome) && agent->record.state != KLP_AGENT_PAUSED)
        outcome = klp_workload_thaw(&cleanup, agent->life->vm, NULL);
    if (!kelpie_is_ok(outcome))
        chore_post(agent->node, CHORE_WAKE, agent->id, agent->life, "");
}

static kelpie_outcome shot_write(const struct kelpie_op *op, struct node_agent *agent,
                                 const struct klp_capture *capture,
                                 struct klp_snapshot_request *request, struct shot *out,
                                 struct kelpie_error **err)
{
    struct klp_host *host = &agent->node->host;
    struct parent_hold hold;
    kelpie_outcome outcome = parent_find(op, agent, &hold, &request->parent, err);
    if (kelpie_is_ok(outcome))
        outcome = klp_snapshot_write(op, &host->snapshots, capture, request, &out->manifest, err);
    request->parent = (struct klp_snapshot_parent){.manifest = NULL}; /* it pointed into the hold */
    parent_drop(&hold);
    KLP_TRY(outcome);
    outcome = klp_snapshot_publish(op, &host->snapshots, &out->manifest, &out->digest, err);
    if (!kelpie_is_ok(outcome))
        klp_manifest_finish(&out->manifest);
    return outcome;
}

/* Memory: the pause ends before the first byte is written. */
static kelpie_outcome shot_memory(const struct kelpie_op *op, struct node_agent *agent,
                                  struct klp_snapshot_request *request, struct shot *out,
                                  struct kelpie_error **err)
{
    struct klp_capture capture;
    klp_op_phase(op, "ahead");
    klp_vm_capture_ahead(op, agent->life->vm);
    klp_op_phase(op, "pause");
    uint64_t since_ns = klp_boot_ns(op->env);
    kelpie_outcome outcome = shot_freeze(op, agent, err);
    if (kelpie_is_ok(outcome))
        outcome = klp_vm_capture(op, agent->life->vm, KLP_HOLD_SNAPSHOT, &capture, err);
    shot_thaw(op, agent);
    out->pause_ns = klp_boot_ns(op->env) - since_ns;
    KLP_TRY(outcome);
    klp_op_phase(op, "write");
    outcome = shot_write(op, agent, &capture, request, out, err);
    klp_capture_finish(&capture);
    return outcome;
}

static kelpie_outcome shot_checkpoint(const struct kelpie_op *op, struct node_agent *agent,
                                      struct klp_snapshot_request *request, struct shot *out,
                                      struct kelpie_error **err)
{
    struct klp_host *host = &agent->node->host;
    if (agent->record.state != KLP_AGENT_RUNNING)
        return klp_fail(err, KELPIE_E_STATE, "a checkpoint asks the agent, and '%s' is %s",
                        agent->name, klp_agent_state_name(agent->record.state));
    uint64_t since_ns = klp_boot_ns(op->env);
    kelpie_outcome outcome = shot_freeze(op, agent, err);
    if (kelpie_is_ok(outcome))
        outcome = klp_checkpoint_write(op, host, request, agent->life->vm, &out->manifest, err);
    shot_thaw(op, agent);
    out->pause_ns = klp_boot_ns(op->env) - since_ns;
    if (kelpie_is_ok(outcome))
        outcome = klp_snapshot_publish(op, &host->snapshots, &out->manifest, &out->digest, err);
    if (!kelpie_is_ok(outcome))
        klp_manifest_finish(&out->manifest);
    return outcome;
}

kelpie_outcome shot_take(const struct kelpie_op *op, struct node_agent *agent,
                         enum klp_snapshot_kind kind, const char *label, struct shot *out,
                         struct kelpie_error **err)
{
    struct klp_snapshot_request request;
    *out = (struct shot){.pause_ns = 0};
    if (agent->life == NULL ||
        (agent->record.state != KLP_AGENT_RUNNING && agent->record.state != KLP_AGENT_PAUSED))
        return klp_fail(err, KELPIE_E_STATE, "cannot snapshot '%s': it is %s", agent->name,
                        klp_agent_state_name(agent->record.state));
    request_fill(agent, kind, label, &request);
    if (kind == KLP_KIND_CHECKPOINT)
        return shot_checkpoint(op, agent, &request, out, err);
    return shot_memory(op, agent, &request, out, err);
}

/* ---- snapshots */

static void snapshot_info(const struct klp_manifest *manifest, const struct klp_digest *digest,
                          struct klp_snapshot_info *out)
{
    *out = (struct klp_snapshot_info){.kind = manifest->kind,
                                      .arch = manifest->machine.arch,
                                      .memory_bytes = manifest->agent.memory_bytes,
                                      .stored_bytes = manifest->stored_bytes,
                                      .created_wall_ns = manifest->created_wall_ns};
    klp_text_copy(out->id, sizeof(out->id), manifest->id);
    klp_text_copy(out->name, sizeof(out->name), manifest->label);
    klp_text_copy(out->agent, sizeof(out->agent), manifest->agent.name);
    klp_text_copy(out->backend, sizeof(out->backend), manifest->machine.backend);
    if (!klp_digest_is_zero(&manifest->parent))
        klp_digest_text(&manifest->parent, out->parent);
    klp_digest_text(digest, out->manifest);
}

kelpie_outcome klp_node_snapshot_create(const struct kelpie_op *op, struct klp_node *node,
                                        const char *name, const struct klp_action_request *request,
                                        struct klp_snapshot_info *out, struct kelpie_error **err)
{
    AUTO_AGENT struct node_agent *agent = NULL;
    struct shot shot;
    struct klp_digest taken;
    if (request->name[0] != 0) {
        KLP_REQUIRE(klp_name_check("snapshot", request->name, err));
        if (kelpie_is_ok(klp_snapshot_find(op, &node->host.snapshots, request->name, &taken, NULL)))
            return klp_fail(err, KELPIE_E_EXISTS, "a snapshot is named '%s' already",
                            request->name);
    }
    KLP_TRY(agent_take(op, node, name, &agent, err));
    enum klp_snapshot_kind kind =
        request->kind != KLP_KIND_NONE ? request->kind : KLP_KIND_TELEPORT;
    KLP_TRY(shot_take(op, agent, kind, request->name, &shot, err));
    kelpie_outcome outcome =
        klp_snapshot_name(op, &node->host.snapshots, &shot.manifest, &shot.digest, err);
    if (kelpie_is_ok(outcome)) {
        struct klp_agent_record next = agent->record;
        next.manifest = shot.digest;
        outcome = record_set(op, agent, &next, err);
    }
    if (kelpie_is_ok(outcome) && !agent_save(agent, err))
        outcome = (kelpie_outcome){KELPIE_FAIL};
    if (kelpie_is_ok(outcome)) {
        snapshot_info(&shot.manifest, &shot.digest, out);
        out->pause_ms_x1000 = shot.pause_ns / 1000;
        event_post(node, "snapshot.created", agent->name, "%s", shot.manifest.id);
    }
    klp_manifest_finish(&shot.manifest);
    return outcome;
}

kelpie_outcome klp_node_snapshot_get(const struct kelpie_op *op, struct klp_node *node,
                                     const char *id_or_label, struct klp_snapshot_info *out,
                                     struct kelpie_error **err)
{
    struct klp_digest digest;
    struct klp_manifest manifest;
    KLP_TRY(klp_snapshot_find(op, &node->host.snapshots, id_or_label, &digest, err));
    KLP_TRY(klp_snapshot_load(op, &node->host.snapshots, &digest, &manifest, err));
    snapshot_info(&manifest, &digest, out);
    klp_manifest_finish(&manifest);
    return KLP_OK;
}

struct snapshot_listing {
    bool (*each)(void *, const struct klp_snapshot_info *);
    void *arg;
};

static bool snapshot_each(void *arg, const struct klp_digest *digest,
                          const struct klp_manifest *manifest)
{
    struct snapshot_listing *listing = arg;
    struct klp_snapshot_info info;
    snapshot_info(manifest, digest, &info);
    return listing->each(listing->arg, &info);
}

kelpie_outcome klp_node_snapshot_list(const struct kelpie_op *op, struct klp_node *node,
                                      bool (*each)(void *, const struct klp_snapshot_info *),
                                      void *arg, struct kelpie_error **err)
{
    struct snapshot_listing listing = {each, arg};
    return klp_snapshot_list(op, &node->host.snapshots, snapshot_each, &listing, err);
}

struct user_search { /* is a manifest what some agent is brought up from? */
    const struct klp_digest *digest;
    char agent[KLP_NAME_SIZE];
};

static bool user_each(void *arg, const struct klp_agent_record *record)
{
    struct user_search *search = arg;
    if (!klp_digest_equal(&record->manifest, search->digest))
        return true;
    klp_text_copy(search->agent, sizeof(search->agent), record->name);
    return false;
}

kelpie_outcome klp_node_snapshot_remove(const struct kelpie_op *op, struct klp_node *node,
                                        const char *id_or_label, bool force,
                                        struct kelpie_error **err)
{
    struct klp_digest digest;
    struct klp_manifest manifest;
    KLP_TRY(klp_snapshot_find(op, &node->host.snapshots, id_or_label, &digest, err));
    struct user_search search = {&digest, ""};
    KLP_TRY(klp_registry_list(op, node->host.registry, user_each, &search, err));
    if (search.agent[0] != 0 && !force) {
        kelpie_outcome refused = klp_fail(err, KELPIE_E_CONFLICT,
                                          "snapshot '%s' is what agent '%s' would be restored from",
                                          id_or_label, search.agent);
        klp_error_remedy_set(err, "kelpie snapshot rm -f %s", id_or_label);
        return refused;
    }
    KLP_TRY(klp_snapshot_load(op, &node->host.snapshots, &digest, &manifest, err));
    kelpie_outcome outcome = klp_snapshot_remove(op, &node->host.snapshots, &manifest, err);
    klp_manifest_finish(&manifest);
    return outcome;
}

/* ---- suspend */

static kelpie_outcome suspend_capture(const struct kelpie_op *op, struct node_agent *agent,
                                      struct shot *shot, struct kelpie_error **err)
{
    struct klp_snapshot_request request;
    struct klp_capture capture;
    klp_op_phase(op, "ahead");
    klp_vm_capture_ahead(op, agent->life->vm);
    klp_op_phase(op, "quiesce");
    klp_vm_gate_close(agent->life->vm);
    KLP_TRY(shot_freeze(op, agent, err));
    KLP_TRY(klp_vm_capture(op, agent->life->vm, KLP_HOLD_SNAPSHOT, &capture, err));
    klp_op_phase(op, "write");
    request_fill(agent, KLP_KIND_SUSPEND, "", &request);
    kelpie_outcome outcome = shot_write(op, agent, &capture, &request, shot, err);
    klp_capture_finish(&capture);
    return outcome;
}

kelpie_outcome suspend_run(const struct kelpie_op *op, struct operation *operation,
                           struct kelpie_error **err)
{
    AUTO_AGENT struct node_agent *agent = NULL;
    struct shot shot = {.pause_ns = 0};
    KLP_TRY(agent_take(op, operation->node, operation->subject, &agent, err));
    if (agent->life == NULL ||
        (agent->record.state != KLP_AGENT_RUNNING && agent->record.state != KLP_AGENT_PAUSED))
        return klp_fail(err, KELPIE_E_STATE, "cannot suspend '%s': it is %s", agent->name,
                        klp_agent_state_name(agent->record.state));
    bool was_asked = false;
    kelpie_outcome outcome = suspend_capture(op, agent, &shot, err);
    if (kelpie_is_ok(outcome)) {
        struct klp_agent_record next = agent->record;
        was_asked = true;
        next.state = KLP_AGENT_SUSPENDED;
        next.manifest = shot.digest;
        next.reason[0] = 0;
        klp_op_phase(op, "commit");
        klp_point(op->env, "suspend.before-commit");
        outcome = record_set(op, agent, &next, err);
        klp_manifest_finish(&shot.manifest);
    }
    if (kelpie_is_ok(outcome)) {
        klp_point(op->env, "suspend.committed");
        life_end(op, agent, false);
        KLP_IGNORE(agent_save(agent, NULL));
        return outcome;
    }
    if (was_asked && kelpie_is_unknown(outcome)) { /* it stands still until the registry tells */
        chore_post(agent->node, CHORE_ASK, agent->id, agent->life, "");
    } else {
        shot_thaw(op, agent);
        klp_vm_gate_open(agent->life->vm, agent->record.epoch);
    }
    return outcome;
}
