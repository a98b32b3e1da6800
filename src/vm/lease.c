/* SPDX-License-Identifier: Apache-2.0 */
/* Lease and gate: until when the guest may run, and whether what it says may reach the outside. The
 * keeper enforces the first even when this process is dead; this file checks it at every answer,
 * because a host that slept runs a guest for moments before any timer (DESIGN 3, Processes). */
#include <string.h>

#include "base/fmt.h"
#include "vm/inside.h"

/* ---- lease. Whoever calls klp_vm_lease owns it from then on. A VM that nobody leased when it
 * starts leases itself for ever, at epoch 0: a library without a registry has nobody to be fenced
 * for. */

static kelpie_outcome lease_order(const struct kelpie_op *op, struct kelpie_vm *vm, uint64_t epoch,
                                  uint64_t fence_at_ns, struct kelpie_error **err)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf fields = KLP_BUF_INIT(64);
    klp_field_append_u64(&fields, KLP_KTAG_EPOCH, epoch);
    klp_field_append_u64(&fields, KLP_KTAG_FENCE_AT_NS, fence_at_ns);
    return vm_ask(op, vm, KLP_KEEPER_LEASE, &fields, NULL, 0, NULL, err);
}

static void lease_note(struct kelpie_vm *vm, uint64_t epoch, uint64_t fence_at_ns)
{
    uint64_t now = klp_boot_ns(vm->env);
    KLP_LOCKED (vm->mutex) {
        vm->leased = true;
        vm->epoch = epoch;
        vm->fence_at_ns = fence_at_ns;
        if (fence_at_ns > now)
            vm->holds &= ~(uint32_t)KLP_HOLD_FENCE; /* its event comes later */
        klp_cond_wake(vm->changed);
    }
    vm_gate_wake(vm);
}

kelpie_outcome klp_vm_lease(const struct kelpie_op *op, struct kelpie_vm *vm, uint64_t epoch,
                            uint64_t fence_at_ns, struct kelpie_error **err)
{
    kelpie_outcome outcome = KLP_OK;
    bool has_keeper = false;
    KLP_LOCKED (vm->mutex) {
        has_keeper = vm->client != NULL;
        if (vm->leased && epoch < vm->epoch)
            outcome = klp_fail(err, KELPIE_E_DENIED,
                               "cannot lease VM %s at epoch %llu: it has known %llu", vm->id,
                               (unsigned long long)epoch, (unsigned long long)vm->epoch);
    }
    KLP_TRY(outcome);
    if (has_keeper)
        KLP_TRY(lease_order(op, vm, epoch, fence_at_ns, err));
    lease_note(vm, epoch, fence_at_ns);
    return KLP_OK;
}

kelpie_outcome vm_lease_send(const struct kelpie_op *op, struct kelpie_vm *vm, bool own,
                             struct kelpie_error **err)
{
    bool leased = false;
    uint64_t epoch = 0, fence_at_ns = UINT64_MAX;
    KLP_LOCKED (vm->mutex) {
        leased = vm->leased;
        if (leased) {
            epoch = vm->epoch;
            fence_at_ns = vm->fence_at_ns;
        }
    }
    if (leased != own) /* what was given goes to a new keeper; our own is given once */
        KLP_TRY(lease_order(op, vm, epoch, fence_at_ns, err));
    if (!leased && own)
        lease_note(vm, epoch, fence_at_ns);
    return KLP_OK;
}

/* ---- gate */

void vm_gate_wake(struct kelpie_vm *vm)
{
    struct klp_guest *guest = NULL;
    KLP_LOCKED (vm->mutex) {
        guest = vm->guest != NULL ? klp_guest_share(vm->guest) : NULL;
    }
    if (guest == NULL)
        return;
    klp_guest_wake(guest);
    klp_guest_release(guest);
}

void klp_vm_gate_close(struct kelpie_vm *vm)
{
    KLP_LOCKED (vm->mutex) {
        vm->gate_open = false;
    }
}

void klp_vm_gate_open(struct kelpie_vm *vm, uint64_t epoch)
{
    KLP_LOCKED (vm->mutex) {
        vm->gate_open = true;
        vm->gate_epoch = epoch;
    }
    vm_gate_wake(vm);
}

bool vm_may_pass(void *arg)
{
    struct kelpie_vm *vm = arg;
    uint64_t now = klp_boot_ns(vm->env);
    bool may = false;
    KLP_LOCKED (vm->mutex) {
        may = vm->gate_open && vm->leased && vm->gate_epoch == vm->epoch && now < vm->fence_at_ns;
    }
    return may;
}

bool klp_vm_gate_is_open(struct kelpie_vm *vm)
{
    return vm_may_pass(vm);
}

/* ---- what a later daemon is to know */

kelpie_outcome klp_vm_meta_set(const struct kelpie_op *op, struct kelpie_vm *vm,
                               struct klp_bytes meta, struct kelpie_error **err)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf fields =
        KLP_BUF_INIT(VM_META_MAX + KLP_KIB);
    bool has_keeper = false;
    if (meta.size > VM_META_MAX)
        return klp_fail(err, KELPIE_E_LIMIT, "cannot keep %zu bytes with VM %s: at most %u",
                        meta.size, vm->id, VM_META_MAX);
    klp_field_append(&fields, KLP_KTAG_META, meta.data, meta.size);
    KLP_LOCKED (vm->mutex) {
        has_keeper = vm->client != NULL;
    }
    if (has_keeper)
        KLP_TRY(vm_ask(op, vm, KLP_KEEPER_META, &fields, NULL, 0, NULL, err));
    bool kept = true;
    KLP_LOCKED (vm->mutex) {
        klp_buf_clear(&vm->meta);
        klp_buf_append(&vm->meta, meta.data, meta.size);
        kept = klp_buf_check(&vm->meta, "a VM's note", err);
    }
    KLP_REQUIRE(kept);
    return KLP_OK;
}

kelpie_outcome klp_vm_meta_get(const struct kelpie_op *op, struct kelpie_vm *vm,
                               struct klp_buf *out, struct kelpie_error **err)
{
    KLP_TRY(klp_op_check(op, "reading a VM's note", err));
    KLP_LOCKED (vm->mutex) {
        klp_buf_append(out, vm->meta.data, vm->meta.size);
    }
    KLP_REQUIRE(klp_buf_check(out, "a VM's note", err));
    return KLP_OK;
}

/* ---- news */

kelpie_outcome klp_vm_refresh(const struct kelpie_op *op, struct kelpie_vm *vm,
                              struct kelpie_error **err)
{
    bool has_keeper = false;
    KLP_LOCKED (vm->mutex) {
        has_keeper = vm->client != NULL && !vm->lost;
    }
    if (has_keeper)
        KLP_TRY(vm_settle(op, vm, err));
    KLP_LOCKED (vm->mutex) {
        vm->changes_seen = vm->changes;
    }
    return KLP_OK;
}

kelpie_outcome klp_vm_watch(const struct kelpie_op *op, struct kelpie_vm *vm,
                            struct kelpie_error **err)
{
    kelpie_outcome outcome = KLP_OK;
    klp_mutex_lock(vm->mutex);
    while (kelpie_is_ok(outcome) && vm->changes == vm->changes_seen)
        outcome = klp_cond_wait(op, vm->changed, vm->mutex, err);
    if (kelpie_is_ok(outcome))
        vm->changes_seen = vm->changes;
    klp_mutex_unlock(vm->mutex);
    return klp_wrap(err, outcome, "nothing happened to VM %s", vm->id);
}
