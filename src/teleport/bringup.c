/* SPDX-License-Identifier: Apache-2.0 */
/* Bringing a snapshot up as an agent this node owns: step 6 of a teleport, and start, resume, fork
 * and restore. */
#include <string.h>

#include "base/fmt.h"
#include "teleport/teleport.h"

#define CLEANUP_MS 10000
#define THAW_TRIES 3

void klp_parts_finish(struct klp_parts *parts)
{
    for (size_t i = 0; i < parts->overlay_count; i++)
        klp_layer_close(parts->overlays[i]);
    klp_layer_close(parts->base);
    klp_buf_finish(&parts->device_state);
    klp_manifest_finish(&parts->manifest);
    *parts = (struct klp_parts){.overlay_count = 0};
}

static kelpie_outcome overlay_add(const struct kelpie_op *op, struct klp_host *host,
                                  struct klp_parts *parts, const struct klp_manifest *base,
                                  struct kelpie_error **err)
{
    if (parts->overlay_count == KLP_LAYERS_MAX)
        return klp_fail(err, KELPIE_E_LIMIT, "more than %d layers", KLP_LAYERS_MAX);
    KLP_TRY(klp_snapshot_materialise_diff(op, &host->snapshots, &parts->manifest, base,
                                          &parts->overlays[parts->overlay_count], err));
    parts->overlay_count++;
    return KLP_OK;
}

/* Over a pre-copy: its layers, and one more with what changed since. */
static kelpie_outcome layers_over(const struct kelpie_op *op, struct klp_host *host,
                                  const struct klp_parts *below, struct klp_parts *parts,
                                  struct kelpie_error **err)
{
    parts->base = below->base != NULL ? klp_layer_share(below->base) : NULL;
    for (size_t i = 0; i < below->overlay_count; i++)
        parts->overlays[parts->overlay_count++] = klp_layer_share(below->overlays[i]);
    return overlay_add(op, host, parts, &below->manifest, err);
}

static kelpie_outcome layers_load(const struct kelpie_op *op, struct klp_host *host,
                                  struct klp_parts *parts, struct kelpie_error **err)
{
    const struct klp_manifest *manifest = &parts->manifest;
    bool is_template = manifest->kind == KLP_KIND_TEMPLATE;
    if (!is_template && klp_digest_is_zero(&manifest->template_))
        return klp_snapshot_materialise(op, &host->snapshots, manifest, &parts->base, err);
    const struct klp_digest *digest = is_template ? &parts->digest : &manifest->template_;
    KLP_TRY(host->ops->base_get(op, host, digest, &parts->base, err));
    if (is_template)
        return KLP_OK;
    struct klp_manifest base;
    KLP_TRY(klp_snapshot_load(op, &host->snapshots, digest, &base, err));
    kelpie_outcome outcome = overlay_add(op, host, parts, &base, err);
    klp_manifest_finish(&base);
    return outcome;
}

static kelpie_outcome parts_fill(const struct kelpie_op *op, struct klp_host *host,
                                 const struct klp_parts *below, struct klp_parts *parts,
                                 struct kelpie_error **err)
{
    KLP_TRY(klp_snapshot_load(op, &host->snapshots, &parts->digest, &parts->manifest, err));
    if (parts->manifest.region_count == 0)
        return KLP_OK; /* a checkpoint: nothing to lay */
    if (below != NULL && klp_digest_equal(&below->manifest.template_, &parts->manifest.template_))
        KLP_TRY(layers_over(op, host, below, parts, err));
    else
        KLP_TRY(layers_load(op, host, parts, err));
    return klp_snapshot_device_state(op, &host->snapshots, &parts->manifest, &parts->device_state,
                                     err);
}

kelpie_outcome klp_parts_load(const struct kelpie_op *op, struct klp_host *host,
                              const struct klp_digest *digest, const struct klp_parts *below,
                              struct klp_parts *out, struct kelpie_error **err)
{
    struct klp_parts parts = {.digest = *digest,
                              .device_state = KLP_BUF_INIT(KLP_DEVICE_STATE_MAX)};
    kelpie_outcome outcome = parts_fill(op, host, below, &parts, err);
    if (kelpie_is_ok(outcome))
        *out = parts;
    else
        klp_parts_finish(&parts);
    return outcome;
}

/* Restored and unique, the workload still frozen. */
static kelpie_outcome guest_raise(const struct kelpie_op *op, const struct klp_bringup *bringup,
                                  struct kelpie_vm *vm, struct klp_agent_record *next,
                                  struct kelpie_error **err)
{
    const struct klp_parts *parts = bringup->parts;
    struct klp_vm_image image = {.machine = &parts->manifest.machine,
                                 .base = parts->base,
                                 .overlay_count = parts->overlay_count,
                                 .device_state = klp_buf_view(&parts->device_state)};
    memcpy(image.overlays, parts->overlays, sizeof(image.overlays));
    klp_op_phase(op, "restore");
    KLP_TRY(klp_vm_restore(op, vm, &image, err));
    klp_point(op->env, "bringup.restored");
    KLP_TRY(klp_vm_release(op, vm, KLP_HOLD_RESTORE, err));
    klp_op_phase(op, "unique");
    KLP_TRY(klp_unique_run(op, bringup->samples, vm, bringup->which, bringup->hostname, next, err));
    klp_point(op->env, "bringup.unique");
    if (bringup->prepare != NULL)
        KLP_TRY(bringup->prepare(op, bringup->arg, vm, err));
    return KLP_OK;
}

static kelpie_outcome undo_record(const struct kelpie_op *op, struct klp_host *host,
                                  enum klp_agent_state state, struct klp_agent_record *record,
                                  const struct kelpie_error *why, struct kelpie_error **err)
{
    struct klp_agent_record next = *record;
    next.state = state;
    if (next.state == KLP_AGENT_PARKED)
        next.epoch++;
    next.move_id[0] = 0;
    klp_format(next.reason, sizeof(next.reason), "%s", kelpie_error_message(why));
    return klp_record_change(op, host->registry, record, &next, err);
}

/* The VM is gone, and the record says so. Whatever fails here is left to recovery. */
static void bringup_undo(const struct kelpie_op *op, struct klp_host *host,
                         const struct klp_bringup *bringup, struct kelpie_vm **vm,
                         struct klp_agent_record *record, bool running,
                         const struct kelpie_error *why)
{
    struct kelpie_op cleanup = klp_op_cleanup(op, CLEANUP_MS);
    struct kelpie_error *error = NULL;
    uint64_t epoch = record->epoch, revision = record->revision;
    kelpie_vm_destroy(&cleanup, KLP_TAKE(vm));
    if (!running && record->state != KLP_AGENT_STARTING)
        return; /* somebody else has changed it: it is not ours to undo */
    /* Once it is RUNNING its workload may have been thawed: what comes next is no continuation. */
    enum klp_agent_state state = running ? KLP_AGENT_CRASHED : bringup->failure_state;
    kelpie_outcome outcome = undo_record(&cleanup, host, state, record, why, &error);
    if (klp_error_code(&error) == KELPIE_E_CONFLICT && record->epoch == epoch &&
        record->revision != revision) { /* by our own word that it runs, which was late */
        klp_error_clear(&error);
        outcome = undo_record(&cleanup, host, state, record, why, &error);
    }
    if (!kelpie_is_ok(outcome))
        klp_log(op->env, KLP_LOG_WARN, "bringup.undo", "agent=%s error=%s", record->name,
                kelpie_error_message(error));
    klp_error_clear(&error);
}

static kelpie_outcome lease_give(const struct kelpie_op *op, const struct klp_host *host,
                                 struct kelpie_vm *vm, uint64_t epoch, uint64_t since_ns,
                                 struct kelpie_error **err)
{
    return klp_vm_lease(op, vm, epoch, since_ns + host->lease_ttl_ms * KLP_MS / 3 * 2, err);
}

/* Nobody else renews the lease before a bring-up has ended. One that was held up (a stopped daemon,
 * a host that slept) finds its VM fenced: the registry is asked again before it goes on. */
static kelpie_outcome thaw_try(const struct kelpie_op *op, const struct klp_host *host,
                               struct kelpie_vm *vm, const struct klp_agent_record *record,
                               struct kelpie_error **err)
{
    if (!klp_vm_gate_is_open(vm)) {
        uint64_t since_ns = klp_boot_ns(op->env);
        KLP_TRY(
            klp_registry_renew(op, host->registry, record->id, record->owner, record->epoch, err));
        KLP_TRY(lease_give(op, host, vm, record->epoch, since_ns, err));
    }
    struct kelpie_op within = klp_op_within(op, host->lease_ttl_ms / 3);
    return klp_workload_thaw(&within, vm, err);
}

static kelpie_outcome thaw(const struct kelpie_op *op, const struct klp_host *host,
                           struct kelpie_vm *vm, const struct klp_agent_record *record,
                           struct kelpie_error **err)
{
    for (int i = 1;; i++) {
        struct kelpie_error *error = NULL;
        kelpie_outcome outcome = thaw_try(op, host, vm, record, &error);
        if (kelpie_is_ok(outcome) || i == THAW_TRIES ||
            !kelpie_is_ok(klp_op_check(op, "thawing", NULL))) {
            klp_error_move(err, &error);
            return outcome;
        }
        klp_error_clear(&error);
    }
}

static kelpie_outcome bringup_try(const struct kelpie_op *op, struct klp_host *host,
                                  const struct klp_bringup *bringup, struct kelpie_vm **vm,
                                  struct klp_agent_record *record, bool *out_running,
                                  struct kelpie_error **err)
{
    if (*vm == NULL)
        KLP_TRY(host->ops->vm_make(op, host, record->id, &bringup->parts->manifest.machine,
                                   bringup->parts->base, record->epoch, vm, err));
    KLP_TRY(lease_give(op, host, *vm, record->epoch, klp_boot_ns(op->env), err));
    struct klp_agent_record next = *record;
    KLP_TRY(guest_raise(op, bringup, *vm, &next, err));

    klp_op_phase(op, "commit");
    next.state = KLP_AGENT_RUNNING;
    next.arch = bringup->parts->manifest.machine.arch; /* a checkpoint comes up on any */
    klp_text_copy(next.backend, sizeof(next.backend), bringup->parts->manifest.machine.backend);
    next.move_id[0] = next.destination[0] = next.reason[0] = 0;
    klp_point(op->env, "bringup.before-running");
    KLP_TRY(klp_record_change(op, host->registry, record, &next, err));
    *out_running = true;
    klp_point(op->env, "bringup.running");
    klp_vm_gate_open(*vm, record->epoch);
    if (bringup->leave_frozen)
        return KLP_OK;
    KLP_TRY(thaw(op, host, *vm, record, err));
    if (bringup->thawed != NULL)
        KLP_TRY(bringup->thawed(op, bringup->arg, *vm, err));
    return KLP_OK;
}

kelpie_outcome klp_bringup_run(const struct kelpie_op *op, struct klp_host *host,
                               const struct klp_bringup *bringup, struct kelpie_vm **vm,
                               struct klp_agent_record *record, struct kelpie_error **err)
{
    struct kelpie_error *error = NULL;
    bool running = false;
    kelpie_outcome outcome = bringup_try(op, host, bringup, vm, record, &running, &error);
    klp_op_phase_end(op);
    if (kelpie_is_ok(outcome))
        return outcome;
    bringup_undo(op, host, bringup, vm, record, running, error);
    klp_error_move(err, &error);
    return outcome;
}
