/* SPDX-License-Identifier: Apache-2.0 */
/* Snapshots of agents that run or are paused here: snapshot create, suspend, fork, restore,
 * teleport. */
#include <string.h>

#include "base/fmt.h"
#include "node/inside.h"
#include "snapshot/pool.h"

#define FORK_WORKERS 4

/* ---- what the store has already */

kelpie_outcome parent_find(const struct kelpie_op *op, struct node_agent *agent,
                           struct parent_hold *hold, struct klp_snapshot_parent *out,
                           struct kelpie_error **err)
{
    struct klp_node *node = agent->node;
    *hold = (struct parent_hold){.has_last = false};
    *out = (struct klp_snapshot_parent){.manifest = NULL};
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

struct shot { /* what a snapshot of an agent came to */
    struct klp_manifest manifest;
    struct klp_digest digest;
    uint64_t pause_ns;
};

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
    KLP_IGNORE(klp_vm_release(&cleanup, agent->life->vm, KLP_HOLD_SNAPSHOT, NULL));
    if (agent->record.state != KLP_AGENT_PAUSED)
        KLP_IGNORE(klp_workload_thaw(&cleanup, agent->life->vm, NULL));
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
    uint64_t since_ns = klp_boot_ns(op->env);
    klp_op_phase(op, "pause");
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

static kelpie_outcome shot_take(const struct kelpie_op *op, struct node_agent *agent,
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
    kelpie_outcome outcome = suspend_capture(op, agent, &shot, err);
    if (kelpie_is_ok(outcome)) {
        struct klp_agent_record next = agent->record;
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
    if (!kelpie_is_unknown(
            outcome)) { /* unknown: it stands still until recovery asks the registry */
        shot_thaw(op, agent);
        klp_vm_gate_open(agent->life->vm, agent->record.epoch);
    }
    return outcome;
}

/* ---- fork and restore: new agents from a snapshot */

struct birth { /* several agents from one snapshot */
    struct klp_node *node;
    const struct klp_manifest *manifest; /* of the snapshot */
    const struct klp_parts *parts;
    struct klp_digest digest;
    const char *parent;
    char names[NODE_FORKS_MAX][KLP_NAME_SIZE];
    bool born[NODE_FORKS_MAX];
    struct kelpie_error *first_error;
};

static void birth_record(struct birth *birth, const char *name, struct klp_agent_record *out)
{
    const struct klp_agent_identity *identity = &birth->manifest->agent;
    struct klp_env *env = birth->node->host.env;
    *out = (struct klp_agent_record){.epoch = 1,
                                     .state = KLP_AGENT_STARTING,
                                     .manifest = birth->digest,
                                     .lease_ttl_ms = birth->node->host.lease_ttl_ms,
                                     .arch = birth->parts->manifest.machine.arch,
                                     .vcpus = identity->vcpus,
                                     .memory_bytes = identity->memory_bytes,
                                     .created_wall_ns = klp_wall_ns(env)};
    klp_random_id(env, out->id);
    klp_text_copy(out->name, sizeof(out->name), name);
    klp_text_copy(out->owner, sizeof(out->owner), birth->node->name);
    klp_text_copy(out->image, sizeof(out->image), identity->image);
    klp_text_copy(out->backend, sizeof(out->backend), birth->parts->manifest.machine.backend);
    klp_text_copy(out->parent, sizeof(out->parent), birth->parent);
}

static kelpie_outcome birth_raise(const struct kelpie_op *op, struct birth *birth,
                                  struct node_agent *agent, struct kelpie_error **err)
{
    struct klp_checkpoint checkpoint = {&birth->node->host, birth->manifest};
    bool is_checkpoint = birth->manifest->kind == KLP_KIND_CHECKPOINT;
    struct klp_bringup bringup = {.parts = birth->parts,
                                  .which = KLP_UNIQUE_FORK,
                                  .hostname = agent->name,
                                  .samples = birth->node->samples,
                                  .failure_state = KLP_AGENT_STOPPED,
                                  .prepare = is_checkpoint ? klp_checkpoint_prepare : NULL,
                                  .thawed = is_checkpoint ? klp_checkpoint_thawed : NULL,
                                  .arg = &checkpoint};
    struct kelpie_vm *vm = NULL;
    struct klp_agent_record record = agent->record;
    kelpie_outcome outcome = klp_bringup_run(op, &birth->node->host, &bringup, &vm, &record, err);
    record_adopt(agent, &record);
    if (kelpie_is_ok(outcome))
        life_begin(agent, vm);
    return outcome;
}

static kelpie_outcome birth_one(const struct kelpie_op *op, void *arg, unsigned worker, size_t item,
                                struct kelpie_error **err)
{
    struct birth *birth = arg;
    struct klp_agent_record record;
    (void)worker;
    birth_record(birth, birth->names[item], &record);
    KLP_TRY(klp_registry_create(op, birth->node->host.registry, &record, err));
    struct node_agent *agent = agent_add(birth->node, &record);
    AUTO_AGENT struct node_agent *held = agent;
    KLP_TRY(slot_take(op, agent, err));
    kelpie_outcome outcome =
        agent_take_manifest(agent, birth->manifest, err) ? KLP_OK : (kelpie_outcome){KELPIE_FAIL};
    klp_text_copy(agent->identity.parent, sizeof(agent->identity.parent), birth->parent);
    if (birth->manifest->kind == KLP_KIND_CHECKPOINT)
        agent->template_ = birth->parts->digest;
    if (kelpie_is_ok(outcome))
        outcome = birth_raise(op, birth, agent, err);
    if (kelpie_is_ok(outcome) && !agent_save(held, NULL))
        klp_log(op->env, KLP_LOG_WARN, "agent.save", "agent=%s", agent->name);
    if (kelpie_is_ok(outcome)) {
        birth->born[item] = true;
        return outcome;
    }
    struct kelpie_op cleanup = klp_op_cleanup(op, NODE_CLEANUP_MS);
    if (kelpie_is_ok(
            klp_registry_delete(&cleanup, birth->node->host.registry, &agent->record, NULL)))
        agent_forget(agent);
    return outcome;
}

/* One failure does not stop the others. */
static kelpie_outcome birth_item(const struct kelpie_op *op, void *arg, unsigned worker,
                                 size_t item, struct kelpie_error **err)
{
    struct birth *birth = arg;
    struct kelpie_error *error = NULL;
    (void)err;
    if (!kelpie_is_ok(birth_one(op, birth, worker, item, &error))) {
        KLP_LOCKED (birth->node->mutex) {
            klp_error_move(&birth->first_error, &error);
        }
    }
    return KLP_OK;
}

/* NAME-1, NAME-2, ... as far as they are free; `wanted` itself when a single one was asked for by
 * name. */
static kelpie_outcome names_draw(const struct kelpie_op *op, struct klp_node *node,
                                 const char *stem, bool exact, size_t count, struct birth *birth,
                                 struct kelpie_error **err)
{
    unsigned number = 1;
    for (size_t i = 0; i < count; number++) {
        char name[KLP_NAME_SIZE];
        struct klp_agent_record record;
        struct kelpie_error *error = NULL;
        if (exact)
            klp_format(name, sizeof(name), "%s", stem);
        else
            klp_format(name, sizeof(name), "%.*s-%u", KLP_NAME_MAX - 6, stem, number);
        kelpie_outcome found = klp_registry_find(op, node->host.registry, name, &record, &error);
        bool is_free = kelpie_error_code(error) == KELPIE_E_NOT_FOUND;
        if (kelpie_is_ok(found))
            klp_agent_record_finish(&record);
        if (exact && kelpie_is_ok(found))
            return klp_fail(err, KELPIE_E_EXISTS, "an agent is named '%s' already", name);
        if (!kelpie_is_ok(found) && !is_free) {
            klp_error_move(err, &error);
            return found;
        }
        klp_error_clear(&error);
        if (is_free)
            klp_text_copy(birth->names[i++], KLP_NAME_SIZE, name);
    }
    return KLP_OK;
}

static kelpie_outcome births_run(const struct kelpie_op *op, struct operation *operation,
                                 struct birth *birth, size_t count, struct kelpie_error **err)
{
    klp_op_phase(op, "fork");
    KLP_TRY(klp_pool_run(op, FORK_WORKERS, count, birth_item, birth, err));
    const char *results[NODE_FORKS_MAX + 1] = {NULL};
    size_t born = 0;
    for (size_t i = 0; i < count; i++)
        if (birth->born[i])
            results[born++] = birth->names[i];
    KLP_LOCKED (operation->node->mutex) {
        operation->info.results = klp_texts_copy(results);
    }
    if (born == count)
        return KLP_OK;
    if (born == 0 || count == 1) {
        klp_error_move(err, &birth->first_error);
        return (kelpie_outcome){KELPIE_FAIL};
    }
    kelpie_outcome partial =
        klp_fail(err, KELPIE_E_PARTIAL, "%zu of %zu agents could not be made", count - born, count);
    klp_error_reason_add(err, "%s", kelpie_error_message(birth->first_error));
    klp_error_clear(&birth->first_error);
    return partial;
}

static kelpie_outcome births_from(const struct kelpie_op *op, struct operation *operation,
                                  const struct klp_digest *digest, const char *parent,
                                  const char *stem, bool exact, size_t count,
                                  struct kelpie_error **err)
{
    struct klp_node *node = operation->node;
    struct klp_manifest manifest;
    struct klp_parts parts = {.overlay_count = 0};
    struct birth *birth = KLP_NEW(struct birth);
    *birth = (struct birth){.node = node, .parts = &parts, .digest = *digest, .parent = parent};
    kelpie_outcome outcome = klp_snapshot_load(op, &node->host.snapshots, digest, &manifest, err);
    if (!kelpie_is_ok(outcome)) {
        klp_mem_free(birth);
        return outcome;
    }
    birth->manifest = &manifest;
    outcome = klp_gate_check(op, &node->host, manifest.kind, &manifest.machine, &manifest.agent,
                             NULL, err);
    struct klp_digest raised = *digest;
    if (kelpie_is_ok(outcome) && manifest.kind == KLP_KIND_CHECKPOINT)
        outcome = template_get(op, &node->host, &manifest.agent, &raised, err);
    if (kelpie_is_ok(outcome))
        outcome = names_draw(op, node, stem, exact, count, birth, err);
    klp_op_phase(op, "load");
    if (kelpie_is_ok(outcome))
        outcome = klp_parts_load(op, &node->host, &raised, NULL, &parts, err);
    if (kelpie_is_ok(outcome))
        outcome = births_run(op, operation, birth, count, err);
    klp_parts_finish(&parts);
    klp_manifest_finish(&manifest);
    klp_mem_free(birth);
    return outcome;
}

kelpie_outcome fork_run(const struct kelpie_op *op, struct operation *operation,
                        struct kelpie_error **err)
{
    struct klp_node *node = operation->node;
    const struct klp_action_request *request = &operation->request;
    size_t count = request->count != 0 ? request->count : 1;
    struct klp_digest digest;
    if (count > NODE_FORKS_MAX)
        return klp_fail(err, KELPIE_E_LIMIT, "at most %d forks at once", NODE_FORKS_MAX);
    const char *stem = request->name[0] != 0 ? request->name : operation->subject;
    bool exact = request->name[0] != 0 && count == 1;

    AUTO_AGENT struct node_agent *agent = NULL;
    struct kelpie_error *error = NULL;
    kelpie_outcome taken = agent_take(op, node, operation->subject, &agent, &error);
    if (kelpie_is_ok(taken) && agent->life == NULL &&
        !klp_digest_is_zero(&agent->record.manifest)) {
        digest = agent->record.manifest; /* suspended, parked, crashed: from its last snapshot */
    } else if (kelpie_is_ok(taken)) {
        struct shot shot;
        KLP_TRY(shot_take(op, agent, KLP_KIND_TELEPORT, "", &shot, err));
        digest = shot.digest;
        klp_manifest_finish(&shot.manifest);
    } else if (kelpie_error_code(error) == KELPIE_E_NOT_FOUND) {
        klp_error_clear(&error);
        KLP_TRY(klp_snapshot_find(op, &node->host.snapshots, operation->subject, &digest, err));
        return births_from(op, operation, &digest, operation->subject, stem, exact, count, err);
    } else {
        klp_error_move(err, &error);
        return taken;
    }
    slot_give(agent); /* the forks need nothing of it any more */
    agent_put(KLP_TAKE(&agent));
    return births_from(op, operation, &digest, operation->subject, stem, exact, count, err);
}

/* ---- restore A --claim: the agent of a dead node, by an operator's word */

static kelpie_outcome owner_is_dead(const struct kelpie_op *op, struct klp_node *node,
                                    const struct klp_agent_record *record,
                                    struct kelpie_error **err)
{
    struct klp_node_record before, after;
    uint64_t ttl_ms = record->lease_ttl_ms;
    klp_op_phase(op, "lease");
    if (!kelpie_is_ok(klp_registry_node_get(op, node->host.registry, record->owner, &before, NULL)))
        return KLP_OK;
    struct klp_agent_record later;
    uint64_t until = klp_boot_ns(op->env) + (ttl_ms + ttl_ms / 3) * KLP_MS;
    KLP_TRY(klp_sleep_until(op, until,
                            err)); /* timed on our own clock: wall clocks are never compared */
    KLP_TRY(klp_registry_get(op, node->host.registry, record->id, &later, err));
    bool same = later.beat == record->beat && later.revision == record->revision;
    klp_agent_record_finish(&later);
    if (kelpie_is_ok(klp_registry_node_get(op, node->host.registry, record->owner, &after, NULL)))
        same = same && after.beat == before.beat;
    if (same)
        return KLP_OK;
    return klp_fail(err, KELPIE_E_STATE, "node '%s' that owns '%s' is alive", record->owner,
                    record->name);
}

static kelpie_outcome claim_run(const struct kelpie_op *op, struct operation *operation,
                                struct kelpie_error **err)
{
    struct klp_node *node = operation->node;
    struct klp_agent_record record, next;
    KLP_TRY(klp_registry_find(op, node->host.registry, operation->subject, &record, err));
    kelpie_outcome outcome = KLP_OK;
    if (strcmp(record.owner, node->name) == 0)
        outcome = klp_fail(err, KELPIE_E_STATE, "'%s' is on this node already", record.name);
    else if (klp_digest_is_zero(&record.manifest))
        outcome =
            klp_fail(err, KELPIE_E_STATE, "'%s' has no snapshot to be restored from", record.name);
    if (kelpie_is_ok(outcome))
        outcome = owner_is_dead(op, node, &record, err);
    if (kelpie_is_ok(outcome)) {
        next = record;
        klp_text_copy(next.owner, sizeof(next.owner), node->name);
        next.epoch++;
        next.state = KLP_AGENT_PARKED;
        next.move_id[0] = next.destination[0] = 0;
        klp_format(next.reason, sizeof(next.reason), "claimed from node '%s'", record.owner);
        klp_op_phase(op, "claim");
        outcome = klp_record_change(op, node->host.registry, &record, &next, err);
    }
    klp_agent_record_finish(&record);
    KLP_TRY(outcome);
    AUTO_AGENT struct node_agent *agent = NULL;
    KLP_TRY(agent_take(op, node, operation->subject, &agent, err));
    return start_from(op, agent, KLP_UNIQUE_REWIND, err);
}

kelpie_outcome restore_run(const struct kelpie_op *op, struct operation *operation,
                           struct kelpie_error **err)
{
    struct klp_node *node = operation->node;
    const struct klp_action_request *request = &operation->request;
    struct klp_digest digest;
    struct klp_manifest manifest;
    if (request->claim)
        return claim_run(op, operation, err);
    KLP_TRY(klp_snapshot_find(op, &node->host.snapshots, operation->subject, &digest, err));
    KLP_TRY(klp_snapshot_load(op, &node->host.snapshots, &digest, &manifest, err));
    char name[KLP_NAME_SIZE];
    klp_text_copy(name, sizeof(name), request->name[0] != 0 ? request->name : manifest.agent.name);
    klp_manifest_finish(&manifest);
    return births_from(op, operation, &digest, operation->subject, name, true, 1, err);
}

/* ---- teleport */

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
    kelpie_outcome outcome = departure_run(op, operation, agent, &destination, &result, err);
    if (kelpie_is_unknown(outcome))
        chore_post(node, CHORE_SETTLE, agent->id, NULL, "");
    if (!result.gone)
        return outcome;
    klp_point(op->env, "teleport.before-release");
    life_end(op, agent, false);
    KLP_IGNORE(node->host.ops->note_remove(op, &node->host, agent->id, NULL));
    event_post(node, "teleport.done", agent->name, "now on node '%s'", destination.name);
    agent_forget(agent);
    return KLP_OK;
}
