/* SPDX-License-Identifier: Apache-2.0 */
/* fork and restore: new agents from a snapshot, and an operator's claim on a dead node's. */
#include <string.h>

#include "base/fmt.h"
#include "node/inside.h"
#include "snapshot/pool.h"

#define FORK_WORKERS 4

struct birth { /* several agents from one snapshot */
    struct klp_node *node;
    const struct klp_manifest *manifest; /* of the snapshot */
    const struct klp_parts *parts;
    struct klp_digest digest;
    const char *parent;
    char names[NODE_FORKS_MAX][KLP_NAME_SIZE];
    size_t count;
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

/* Those that are up stand still until all are: else they would take the processors from those that
 * are still being restored. A checkpoint's main process is started anew, behind a thaw. */
static bool births_wait(const struct birth *birth)
{
    return birth->count > 1 && birth->manifest->kind != KLP_KIND_CHECKPOINT;
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
                                  .arg = &checkpoint,
                                  .leave_frozen = births_wait(birth)};
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
    if (kelpie_is_ok(record_delete(&cleanup, agent, NULL)))
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

static kelpie_outcome birth_thaw(const struct kelpie_op *op, struct birth *birth, const char *name,
                                 struct kelpie_error **err)
{
    struct node_agent *agent;
    struct life *life;
    KLP_TRY(agent_get(op, birth->node, name, &agent, err));
    kelpie_outcome outcome = life_borrow(agent, &life, err);
    if (kelpie_is_ok(outcome)) {
        outcome = klp_workload_thaw(op, life->vm, err);
        if (!kelpie_is_ok(outcome)) /* one that stands still for ever is worse than one that died */
            KLP_IGNORE(klp_vm_kill(op, life->vm, NULL));
        life_return(life);
    }
    agent_put(agent);
    return outcome;
}

static kelpie_outcome birth_thaw_item(const struct kelpie_op *op, void *arg, unsigned worker,
                                      size_t item, struct kelpie_error **err)
{
    struct birth *birth = arg;
    struct kelpie_error *error = NULL;
    (void)worker;
    (void)err;
    if (!birth->born[item] || kelpie_is_ok(birth_thaw(op, birth, birth->names[item], &error)))
        return KLP_OK;
    birth->born[item] = false;
    KLP_LOCKED (birth->node->mutex) {
        klp_error_move(&birth->first_error, &error);
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
    if (births_wait(birth)) {
        klp_op_phase(op, "thaw");
        KLP_TRY(klp_pool_run(op, FORK_WORKERS, count, birth_thaw_item, birth, err));
    }
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
    *birth = (struct birth){
        .node = node, .parts = &parts, .digest = *digest, .parent = parent, .count = count};
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

/* A registry that does not answer says nothing of a node: only one that it does not know is gone.
 */
static kelpie_outcome owner_get(const struct kelpie_op *op, const struct klp_node *node,
                                const char *name, struct klp_node_record *out, bool *out_known,
                                struct kelpie_error **err)
{
    struct kelpie_error *error = NULL;
    kelpie_outcome outcome = klp_registry_node_get(op, node->host.registry, name, out, &error);
    *out_known = kelpie_is_ok(outcome);
    if (kelpie_error_code(error) == KELPIE_E_NOT_FOUND) {
        klp_error_clear(&error);
        return KLP_OK;
    }
    klp_error_move(err, &error);
    return outcome;
}

static kelpie_outcome owner_is_dead(const struct kelpie_op *op, struct klp_node *node,
                                    const struct klp_agent_record *record,
                                    struct kelpie_error **err)
{
    struct klp_node_record before, after;
    uint64_t ttl_ms = record->lease_ttl_ms;
    klp_op_phase(op, "lease");
    bool known, still_known;
    KLP_TRY(owner_get(op, node, record->owner, &before, &known, err));
    if (!known)
        return KLP_OK;
    struct klp_agent_record later;
    uint64_t until = klp_boot_ns(op->env) + (ttl_ms + ttl_ms / 3) * KLP_MS;
    KLP_TRY(klp_sleep_until(op, until,
                            err)); /* timed on our own clock: wall clocks are never compared */
    KLP_TRY(klp_registry_get(op, node->host.registry, record->id, &later, err));
    bool same = later.beat == record->beat && later.revision == record->revision;
    klp_agent_record_finish(&later);
    KLP_TRY(owner_get(op, node, record->owner, &after, &still_known, err));
    same = same && (!still_known || after.beat == before.beat);
    if (same)
        return KLP_OK;
    return klp_fail(err, KELPIE_E_STATE, "node '%s' that owns '%s' is alive", record->owner,
                    record->name);
}

/* A renewal that came just before the claim lets the owner's guest run on for as long as its lease;
 * after the claim there can be none. */
static kelpie_outcome claim_settle(const struct kelpie_op *op, struct klp_node *node,
                                   const char *id, uint64_t beat, uint64_t lease_ttl_ms,
                                   struct kelpie_error **err)
{
    struct klp_agent_record record;
    if (kelpie_is_ok(klp_registry_get(op, node->host.registry, id, &record, NULL))) {
        bool is_quiet = record.beat == beat;
        klp_agent_record_finish(&record);
        if (is_quiet)
            return KLP_OK;
    }
    return klp_sleep_until(op, klp_boot_ns(op->env) + lease_ttl_ms * KLP_MS, err);
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
        next.state = KLP_AGENT_CRASHED; /* it may have run on since its snapshot */
        next.move_id[0] = next.destination[0] = 0;
        klp_format(next.reason, sizeof(next.reason), "claimed from node '%s'", record.owner);
        klp_op_phase(op, "claim");
        uint64_t beat = record.beat, ttl_ms = record.lease_ttl_ms;
        outcome = klp_record_change(op, node->host.registry, &record, &next, err);
        if (kelpie_is_ok(outcome))
            outcome = claim_settle(op, node, record.id, beat, ttl_ms, err);
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
