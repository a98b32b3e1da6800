/* SPDX-License-Identifier: Apache-2.0 */
/* Spawning a hypervisor, and restoring a captured guest into one. A restore that fails leaves the
 * VM as it was, and nothing behind. */
#include <string.h>

#include "base/fmt.h"
#include "vm/inside.h"

#define BOOT_FILES_MAX 4
#define HANDLES_MAX (1 + BOOT_FILES_MAX + KLP_LAYERS_MAX)

struct handles {
    struct klp_env *env;
    struct klp_handle all[HANDLES_MAX];
    size_t count, owned_from; /* those before are borrowed */
};

static void handles_close(struct handles *handles)
{
    for (size_t i = handles->owned_from; i < handles->count; i++)
        klp_handle_close(handles->env, handles->all[i]);
}

/* ---- spawn */

/* An incoming guest always has a base: one of zeros when it was cloned from nothing. */
static bool base_for(struct kelpie_vm *vm, const struct klp_machine *machine,
                     struct klp_layer *base, struct klp_layer **out, struct kelpie_error **err)
{
    KLP_AUTO(layer) struct klp_layer *zeros = NULL;
    if (base != NULL) {
        *out = klp_layer_share(base);
        return true;
    }
    KLP_CHECK(klp_layer_create(vm->env, machine->memory_bytes, machine->page_log2, &zeros, err));
    KLP_CHECK(klp_layer_seal(zeros, err));
    *out = KLP_TAKE(&zeros);
    return true;
}

static kelpie_outcome spawn_order(const struct kelpie_op *op, struct kelpie_vm *vm,
                                  enum klp_spawn_mode mode, const struct klp_machine *machine,
                                  const struct handles *handles, struct kelpie_error **err)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf fields =
        KLP_BUF_INIT(KLP_KEEPER_FRAME_MAX);
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf bytes =
        KLP_BUF_INIT(KLP_KEEPER_FRAME_MAX);
    struct klp_keeper_answer answer;
    uint64_t pid = 0;
    klp_machine_encode(machine, &bytes);
    klp_field_append(&fields, KLP_KTAG_MACHINE, bytes.data, bytes.size);
    klp_field_append_u64(&fields, KLP_KTAG_MODE, mode);
    klp_field_append_text(&fields, KLP_KTAG_SOCKET_DIR, klp_dir_path(vm->dir));
    KLP_TRY(vm_ask(op, vm, KLP_KEEPER_SPAWN, &fields, handles->all, handles->count, &answer, err));
    bool fine = klp_field_u64(answer.fields, KLP_KTAG_PID, 0, &pid, err);
    klp_keeper_answer_finish(&answer);
    KLP_REQUIRE(fine);
    KLP_LOCKED (vm->mutex) {
        if (!vm->dead)
            vm->pid = pid <= INT32_MAX ? (int64_t)pid : 0;
    }
    return KLP_OK;
}

kelpie_outcome vm_spawn(const struct kelpie_op *op, struct kelpie_vm *vm, enum klp_spawn_mode mode,
                        const struct klp_machine *machine, struct klp_layer *base,
                        struct kelpie_error **err)
{
    KLP_AUTO(layer) struct klp_layer *below = NULL;
    __attribute__((cleanup(handles_close))) struct handles handles = {.env = vm->env};
    size_t file_count = 0;
    if (mode == KLP_SPAWN_INCOMING) {
        KLP_REQUIRE(base_for(vm, machine, base, &below, err));
        handles.all[0] = klp_layer_handle(below);
        handles.count = handles.owned_from = 1;
    }
    KLP_TRY(vm->factory->ops->boot_files(op, vm->factory, &vm->config, &handles.all[handles.count],
                                         &file_count, err));
    KLP_ASSERT(file_count <= BOOT_FILES_MAX);
    handles.count += file_count;
    struct klp_layer *former = NULL;
    KLP_LOCKED (vm->mutex) {
        vm->used = true;
        vm->dead = false;
        vm->holds &= KLP_HOLD_FENCE;
        vm->machine = *machine;
        former = vm->base;
        vm->base = base != NULL ? klp_layer_share(base) : NULL;
    }
    klp_layer_close(former);
    return spawn_order(op, vm, mode, machine, &handles, err);
}

/* ---- prepare */

static bool layer_check(const struct klp_machine *machine, const struct klp_layer *layer,
                        const char *what, struct kelpie_error **err)
{
    if (klp_layer_size(layer) != machine->memory_bytes ||
        klp_layer_page_log2(layer) != machine->page_log2)
        return klp_refuse(err, KELPIE_E_INVALID,
                          "%s has %llu bytes in pages of 2^%u, its machine %llu in pages of 2^%u",
                          what, (unsigned long long)klp_layer_size(layer),
                          klp_layer_page_log2(layer), (unsigned long long)machine->memory_bytes,
                          machine->page_log2);
    return klp_layer_is_sealed(layer) ||
           klp_refuse(err, KELPIE_E_INVALID, "%s can still be written to", what);
}

static kelpie_outcome prepare_check(const struct kelpie_vm *vm, const struct klp_machine *machine,
                                    const struct klp_layer *base, struct kelpie_error **err)
{
    if ((vm->factory->ops->caps & KELPIE_VM_CAP_SNAPSHOT) == 0)
        return klp_fail(err, KELPIE_E_UNSUPPORTED, "backend %s restores no snapshots",
                        vm->factory->ops->name);
    KLP_REQUIRE(klp_machine_check(machine, err));
    KLP_REQUIRE(klp_vm_factory_accepts(vm->factory, machine, err));
    KLP_REQUIRE(base == NULL || layer_check(machine, base, "its base", err));
    return KLP_OK;
}

static kelpie_outcome prepare(const struct kelpie_op *op, struct kelpie_vm *vm,
                              const struct klp_machine *machine, struct klp_layer *base,
                              struct kelpie_error **err)
{
    KLP_TRY(vm_keeper_fresh(op, vm, err));
    KLP_TRY(vm_spawn(op, vm, KLP_SPAWN_INCOMING, machine, base, err));
    KLP_LOCKED (vm->mutex) {
        vm->prepared = !vm->dead;
    }
    return KLP_OK;
}

/* Prepared for just this? */
static bool is_prepared(struct kelpie_vm *vm, const struct klp_machine *machine,
                        const struct klp_layer *base)
{
    bool prepared = false;
    KLP_LOCKED (vm->mutex) {
        prepared = vm->prepared && !vm->lost && vm->base == base &&
                   klp_machine_equal(&vm->machine, machine);
    }
    return prepared;
}

/* Whatever waits there is for another image, or broken. */
static kelpie_outcome restore_undo(const struct kelpie_op *op, struct kelpie_vm *vm)
{
    struct kelpie_op cleanup = klp_op_cleanup(op, VM_CLEANUP_MS);
    bool gone = kelpie_is_ok(vm_keeper_exit(&cleanup, vm, NULL));
    return (kelpie_outcome){gone ? KELPIE_FAIL : KELPIE_UNKNOWN};
}

kelpie_outcome klp_vm_prepare(const struct kelpie_op *op, struct kelpie_vm *vm,
                              const struct klp_machine *machine, struct klp_layer *base,
                              struct kelpie_error **err)
{
    enum kelpie_vm_state former;
    KLP_TRY(vm_begin(vm, VM_RESTORE, &former, err));
    kelpie_outcome outcome = prepare_check(vm, machine, base, err);
    if (kelpie_is_ok(outcome) && !is_prepared(vm, machine, base)) {
        outcome = prepare(op, vm, machine, base, err);
        if (!kelpie_is_ok(outcome))
            outcome = restore_undo(op, vm);
    }
    vm_end(vm);
    return klp_wrap(err, outcome, "cannot prepare VM %s", vm->id);
}

/* ---- restore */

static kelpie_outcome image_check(const struct kelpie_vm *vm, const struct klp_vm_image *image,
                                  struct kelpie_error **err)
{
    KLP_TRY(prepare_check(vm, image->machine, image->base, err));
    if (image->overlay_count > KLP_LAYERS_MAX)
        return klp_fail(err, KELPIE_E_LIMIT, "%zu layers, at most %d fit", image->overlay_count,
                        KLP_LAYERS_MAX);
    for (size_t i = 0; i < image->overlay_count; i++)
        KLP_REQUIRE(layer_check(image->machine, image->overlays[i], "a layer", err));
    if (image->device_state.size > KLP_DEVICE_STATE_MAX)
        return klp_fail(err, KELPIE_E_LIMIT, "a device state of %zu bytes, at most %u are allowed",
                        image->device_state.size, KLP_DEVICE_STATE_MAX);
    return KLP_OK;
}

static bool device_state_make(struct klp_env *env, struct klp_bytes bytes, struct klp_handle *out,
                              struct kelpie_error **err)
{
    struct klp_handle handle;
    KLP_CHECK(klp_memory_create(env, "kelpie-device-state", bytes.size, &handle, err));
    if ((bytes.size == 0 || klp_memory_write(env, handle, 0, bytes.data, bytes.size, err)) &&
        klp_memory_seal(env, handle, err)) {
        *out = handle;
        return true;
    }
    klp_handle_close(env, handle);
    return false;
}

static kelpie_outcome load(const struct kelpie_op *op, struct kelpie_vm *vm,
                           const struct klp_vm_image *image, struct kelpie_error **err)
{
    struct klp_handle all[1 + KLP_LAYERS_MAX];
    KLP_REQUIRE(device_state_make(vm->env, image->device_state, &all[0], err));
    for (size_t i = 0; i < image->overlay_count; i++)
        all[1 + i] = klp_layer_handle(image->overlays[i]);
    kelpie_outcome outcome =
        vm_ask(op, vm, KLP_KEEPER_LOAD, NULL, all, 1 + image->overlay_count, NULL, err);
    klp_handle_close(vm->env, all[0]);
    return outcome;
}

static kelpie_outcome restore(const struct kelpie_op *op, struct kelpie_vm *vm,
                              const struct klp_vm_image *image, struct kelpie_error **err)
{
    if (!is_prepared(vm, image->machine, image->base))
        KLP_TRY(prepare(op, vm, image->machine, image->base, err));
    KLP_TRY(vm_lease_send(op, vm, true, err));
    klp_vm_guest_drop(vm);
    KLP_TRY(load(op, vm, image, err));
    KLP_LOCKED (vm->mutex) {
        vm->prepared = false;
        vm->holds |= KLP_HOLD_RESTORE;
    }
    return vm_born(vm, err);
}

kelpie_outcome klp_vm_restore(const struct kelpie_op *op, struct kelpie_vm *vm,
                              const struct klp_vm_image *image, struct kelpie_error **err)
{
    enum kelpie_vm_state former;
    KLP_TRY(vm_begin(vm, VM_RESTORE, &former, err));
    KLP_LOCKED (vm->mutex) {
        vm->end_ordered = false;
    }
    kelpie_outcome outcome = image_check(vm, image, err);
    if (kelpie_is_ok(outcome)) {
        outcome = restore(op, vm, image, err);
        if (kelpie_is_ok(outcome)) {
            KLP_LOCKED (vm->mutex) {
                if (vm->live) {
                    vm->state = KELPIE_VM_PAUSED;
                    vm->reason[0] = 0;
                }
                klp_cond_wake(vm->changed);
            }
        } else {
            outcome = restore_undo(op, vm);
        }
    }
    vm_end(vm);
    return klp_wrap(err, outcome, "cannot restore into VM %s", vm->id);
}
