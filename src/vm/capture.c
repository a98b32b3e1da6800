/* SPDX-License-Identifier: Apache-2.0 */
/* Capture: the complete state of a guest that stands still. Whatever fails, the VM is back in its
 * former state. */
#include <string.h>

#include "base/fmt.h"
#include "vm/inside.h"

#define AHEAD_MS 7000 /* the keeper ends it after 5,000 */

void klp_capture_finish(struct klp_capture *capture)
{
    klp_layer_close(capture->dirty);
    klp_buf_finish(&capture->device_state);
    *capture = (struct klp_capture){0};
}

/* The keeper is not trusted with sizes: a broken hypervisor made what it hands over. */
static kelpie_outcome device_state_read(struct klp_env *env, struct klp_handle handle,
                                        struct klp_buf *out, struct kelpie_error **err)
{
    uint64_t size = 0;
    KLP_REQUIRE(klp_memory_size(env, handle, &size, err));
    if (size > KLP_DEVICE_STATE_MAX)
        return klp_fail(err, KELPIE_E_LIMIT, "a device state of %llu bytes, at most %u are allowed",
                        (unsigned long long)size, KLP_DEVICE_STATE_MAX);
    KLP_REQUIRE(klp_memory_check(env, handle, size, err));
    void *room = klp_buf_reserve(out, (size_t)size);
    if (room == NULL)
        return klp_fail(err, KELPIE_E_NO_MEMORY, "no memory for %llu bytes of device state",
                        (unsigned long long)size);
    KLP_REQUIRE(size == 0 || klp_memory_read(env, handle, 0, room, (size_t)size, err));
    klp_buf_grow(out, (size_t)size);
    return KLP_OK;
}

static kelpie_outcome parts_take(struct kelpie_vm *vm, struct klp_keeper_answer *answer,
                                 struct klp_capture *out, struct kelpie_error **err)
{
    if (answer->handle_count != 2)
        return klp_fail(err, KELPIE_E_PROTOCOL, "a capture of %zu parts", answer->handle_count);
    KLP_TRY(device_state_read(vm->env, answer->handles[0], &out->device_state, err));
    KLP_REQUIRE(klp_layer_adopt(vm->env, klp_keeper_answer_take(answer, 1),
                                vm->machine.memory_bytes, vm->machine.page_log2, &out->dirty, err));
    return KLP_OK;
}

static kelpie_outcome capture(const struct kelpie_op *op, struct kelpie_vm *vm, uint32_t reason,
                              struct klp_capture *out, struct kelpie_error **err)
{
    struct klp_keeper_answer answer;
    KLP_TRY(klp_vm_hold(op, vm, reason, err));
    klp_point(vm->env, "vm.held");
    KLP_TRY(vm_ask(op, vm, KLP_KEEPER_CAPTURE, NULL, NULL, 0, &answer, err));
    kelpie_outcome outcome = parts_take(vm, &answer, out, err);
    klp_keeper_answer_finish(&answer);
    return outcome;
}

/* FAIL: it is as it was, or dead. UNKNOWN: it may still stand still. */
static kelpie_outcome capture_undo(const struct kelpie_op *op, struct kelpie_vm *vm,
                                   uint32_t reason, bool was_held, struct kelpie_error **err)
{
    struct kelpie_op cleanup = klp_op_cleanup(op, VM_CLEANUP_MS);
    struct kelpie_error *why = NULL;
    kelpie_outcome outcome = {KELPIE_FAIL};
    if (was_held || kelpie_is_ok(klp_vm_release(&cleanup, vm, reason, &why)))
        return vm_explain(op, vm, outcome, err);
    vm_news_wait(vm); /* that it is dead may not have been told yet */
    if (vm_is_live(vm)) {
        klp_error_reason_add(err, "and it could not be let go on: %s", kelpie_error_message(why));
        outcome = (kelpie_outcome){KELPIE_UNKNOWN};
    } else {
        outcome = vm_ended(op, vm, err);
    }
    klp_error_clear(&why);
    return outcome;
}

void klp_vm_capture_ahead(const struct kelpie_op *op, struct kelpie_vm *vm)
{
    struct kelpie_op brief = klp_op_within(op, AHEAD_MS);
    if ((vm->factory->ops->caps & KELPIE_VM_CAP_SNAPSHOT) == 0 || klp_vm_holds(vm) != 0)
        return; /* one that stands still already has no pause to be shortened */
    KLP_IGNORE(vm_ask(&brief, vm, KLP_KEEPER_AHEAD, NULL, NULL, 0, NULL, NULL));
}

kelpie_outcome klp_vm_capture(const struct kelpie_op *op, struct kelpie_vm *vm, uint32_t reason,
                              struct klp_capture *out, struct kelpie_error **err)
{
    enum kelpie_vm_state former;
    struct kelpie_error *why = NULL;
    struct klp_capture taken = {.machine = vm->machine,
                                .device_state = KLP_BUF_INIT(KLP_DEVICE_STATE_MAX)};
    KLP_ASSERT(reason == KLP_HOLD_SNAPSHOT || reason == KLP_HOLD_HANDOFF);
    if ((vm->factory->ops->caps & KELPIE_VM_CAP_SNAPSHOT) == 0)
        return klp_fail(err, KELPIE_E_UNSUPPORTED, "backend %s takes no snapshots",
                        vm->factory->ops->name);
    KLP_TRY(vm_begin(vm, VM_SNAPSHOT, &former, err));
    bool was_held = (klp_vm_holds(vm) & reason) != 0;
    uint64_t since_ns = klp_boot_ns(vm->env);
    kelpie_outcome outcome = capture(op, vm, reason, &taken, &why);
    if (kelpie_is_ok(outcome)) {
        taken.base = klp_vm_base(vm);
        taken.pause_ns = klp_boot_ns(vm->env) - since_ns;
        *out = taken;
    } else {
        klp_capture_finish(&taken);
        outcome = capture_undo(op, vm, reason, was_held, &why);
    }
    vm_end(vm);
    klp_error_move(err, &why);
    return klp_wrap(err, outcome, "cannot take a snapshot of VM %s", vm->id);
}
