/* SPDX-License-Identifier: Apache-2.0 */
/* The destination of a move: a place prepared, then steps 5 and 6. */
#include <string.h>

#include "base/fmt.h"
#include "teleport/teleport.h"

struct klp_arrival {
    char move_id[KLP_ID_SIZE];
    struct kelpie_vm *vm;   /* hypervisor up on the base, nothing loaded; NULL = not prepared */
    struct klp_parts parts; /* of the pre-copy */
    uint64_t epoch;         /* the one the VM would run at */
};

kelpie_outcome klp_arrival_prepare(const struct kelpie_op *op, struct klp_host *host,
                                   const struct klp_peer_request *request, struct klp_arrival **out,
                                   struct kelpie_error **err)
{
    struct klp_arrival *arrival = KLP_NEW(struct klp_arrival);
    klp_text_copy(arrival->move_id, sizeof(arrival->move_id), request->move_id);
    arrival->epoch = request->epoch + 1;
    kelpie_outcome outcome =
        klp_parts_load(op, host, &request->manifest, NULL, &arrival->parts, err);
    if (!kelpie_is_ok(outcome)) {
        klp_mem_free(arrival);
        return outcome;
    }
    const struct klp_manifest *manifest = &arrival->parts.manifest;
    if (strcmp(manifest->agent.id, request->agent) != 0)
        outcome = klp_fail(err, KELPIE_E_INVALID, "the snapshot is of another agent than %s",
                           request->agent);
    if (kelpie_is_ok(outcome))
        outcome = host->ops->vm_make(op, host, manifest->agent.id, &manifest->machine,
                                     arrival->parts.base, arrival->epoch, &arrival->vm, err);
    if (kelpie_is_ok(outcome))
        outcome = klp_vm_prepare(op, arrival->vm, &manifest->machine, arrival->parts.base, err);
    if (!kelpie_is_ok(outcome)) {
        klp_arrival_drop(op, arrival);
        return outcome;
    }
    *out = arrival;
    return KLP_OK;
}

void klp_arrival_drop(const struct kelpie_op *op, struct klp_arrival *arrival)
{
    if (arrival == NULL)
        return;
    struct kelpie_op cleanup = klp_op_cleanup(op, 10000);
    kelpie_vm_destroy(&cleanup, arrival->vm);
    klp_parts_finish(&arrival->parts);
    klp_mem_free(arrival);
}

/* Does the registry want us to have it? */
static kelpie_outcome record_check(const struct klp_host *host,
                                   const struct klp_peer_request *request,
                                   const struct klp_agent_record *record, struct kelpie_error **err)
{
    if (record->state == KLP_AGENT_MOVING && record->epoch == request->epoch &&
        strcmp(record->move_id, request->move_id) == 0 &&
        strcmp(record->destination, host->node) == 0 && strcmp(record->owner, request->source) == 0)
        return KLP_OK;
    return klp_fail(err, KELPIE_E_CONFLICT,
                    "move %s of '%s' is over: it is %s on '%s' at epoch %llu", request->move_id,
                    record->name, klp_agent_state_name(record->state), record->owner,
                    (unsigned long long)record->epoch);
}

static kelpie_outcome manifest_check(const struct klp_peer_request *request,
                                     const struct klp_manifest *manifest, struct kelpie_error **err)
{
    if (strcmp(manifest->agent.id, request->agent) == 0 && manifest->epoch == request->epoch &&
        manifest->kind == request->kind)
        return KLP_OK;
    return klp_fail(err, KELPIE_E_INVALID, "manifest and message of move %s do not belong together",
                    request->move_id);
}

/* 5: the only commit point. */
static kelpie_outcome claim(const struct kelpie_op *op, struct klp_host *host,
                            const struct klp_peer_request *request, struct klp_agent_record *record,
                            struct kelpie_error **err)
{
    struct klp_agent_record next = *record;
    klp_op_phase(op, "claim");
    klp_text_copy(next.owner, sizeof(next.owner), host->node);
    next.epoch = request->epoch + 1;
    next.state = KLP_AGENT_STARTING;
    next.manifest = request->manifest;
    next.lease_ttl_ms = host->lease_ttl_ms;
    klp_point(op->env, "teleport.before-claim");
    KLP_TRY(klp_record_change(op, host->registry, record, &next, err));
    klp_point(op->env, "teleport.claimed");
    return KLP_OK;
}

/* What is restored: the snapshot itself, or for a checkpoint this host's template of the same
 * image. */
static kelpie_outcome parts_get(const struct kelpie_op *op, struct klp_host *host,
                                const struct klp_peer_request *request,
                                const struct klp_arrival *arrival, struct klp_manifest *manifest,
                                struct klp_parts *out, struct kelpie_error **err)
{
    klp_op_phase(op, "load");
    if (request->kind != KLP_KIND_CHECKPOINT)
        return klp_parts_load(op, host, &request->manifest,
                              arrival != NULL ? &arrival->parts : NULL, out, err);
    struct klp_digest template_;
    KLP_TRY(host->ops->template_get(op, host, &manifest->agent, &template_, err));
    return klp_parts_load(op, host, &template_, NULL, out, err);
}

static kelpie_outcome arrive(const struct kelpie_op *op, struct klp_host *host,
                             struct klp_arrival *arrival, const struct klp_peer_request *request,
                             struct klp_samples *samples, struct kelpie_vm **vm,
                             struct klp_agent_record *record, struct klp_manifest *manifest,
                             struct klp_parts *parts, struct kelpie_error **err)
{
    KLP_TRY(record_check(host, request, record, err));
    KLP_TRY(klp_snapshot_load(op, &host->snapshots, &request->manifest, manifest, err));
    KLP_TRY(manifest_check(request, manifest, err));
    KLP_TRY(
        klp_gate_check(op, host, request->kind, &manifest->machine, &manifest->agent, NULL, err));
    KLP_TRY(klp_snapshot_check(op, &host->snapshots, manifest, err));
    KLP_TRY(parts_get(op, host, request, arrival, manifest, parts, err));
    KLP_TRY(claim(op, host, request, record, err));

    struct klp_checkpoint checkpoint = {host, manifest};
    bool is_checkpoint = request->kind == KLP_KIND_CHECKPOINT;
    struct klp_bringup bringup = {.parts = parts,
                                  .which = is_checkpoint ? KLP_UNIQUE_FORK : KLP_UNIQUE_MOVE,
                                  .hostname = manifest->agent.name,
                                  .samples = samples,
                                  .failure_state = KLP_AGENT_PARKED,
                                  .prepare = is_checkpoint ? klp_checkpoint_prepare : NULL,
                                  .thawed = is_checkpoint ? klp_checkpoint_thawed : NULL,
                                  .arg = &checkpoint};
    if (arrival != NULL && !is_checkpoint)
        *vm = KLP_TAKE(&arrival->vm);
    return klp_bringup_run(op, host, &bringup, vm, record, err);
}

kelpie_outcome klp_arrival_accept(const struct kelpie_op *op, struct klp_host *host,
                                  struct klp_arrival *arrival,
                                  const struct klp_peer_request *request,
                                  struct klp_samples *samples, struct kelpie_vm **vm,
                                  struct klp_agent_record *record, struct klp_manifest *manifest,
                                  struct kelpie_error **err)
{
    struct klp_parts parts = {.overlay_count = 0};
    *vm = NULL;
    *manifest = (struct klp_manifest){.kind = KLP_KIND_NONE};
    kelpie_outcome outcome = klp_registry_get(op, host->registry, request->agent, record, err);
    if (kelpie_is_ok(outcome)) {
        outcome = arrive(op, host, arrival, request, samples, vm, record, manifest, &parts, err);
        /* Ours and in want of a VM: it could not be recorded that it has none. */
        bool owed = strcmp(record->owner, host->node) == 0 && record->epoch == request->epoch + 1 &&
                    (record->state == KLP_AGENT_STARTING || record->state == KLP_AGENT_RUNNING);
        if (!kelpie_is_ok(outcome) && !owed)
            klp_agent_record_finish(record);
    } else {
        *record = (struct klp_agent_record){.epoch = 0};
    }
    if (!kelpie_is_ok(outcome))
        klp_manifest_finish(manifest);
    klp_parts_finish(&parts);
    klp_arrival_drop(op, arrival);
    return outcome;
}
