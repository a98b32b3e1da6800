/* SPDX-License-Identifier: Apache-2.0 */
/* start, stop, kill, pause, resume, hold, release: what makes a guest run or stand still. */
#include <string.h>

#include "base/fmt.h"
#include "vm/inside.h"

#define KILL_MS 10000
#define RUN_HOLDS (KLP_HOLD_USER | KLP_HOLD_RESTORE) /* what PAUSED means */

/* ---- holds */

static void holds_note(struct kelpie_vm *vm, uint32_t added, uint32_t removed)
{
    KLP_LOCKED (vm->mutex) {
        if (vm->live)
            vm->holds = (vm->holds | added) & ~removed;
        if (vm->state == KELPIE_VM_RUNNING || vm->state == KELPIE_VM_PAUSED)
            vm->state = (vm->holds & RUN_HOLDS) != 0 ? KELPIE_VM_PAUSED : KELPIE_VM_RUNNING;
        klp_cond_wake(vm->changed);
    }
}

/* An order ran into the op's end: says so, after it was made sure that it had no effect. */
static kelpie_outcome ended_by_op(const struct kelpie_op *op, const struct kelpie_vm *vm,
                                  const char *verb, struct kelpie_error **err)
{
    KLP_TRY(klp_op_check(op, verb, err));
    return klp_fail(err, KELPIE_E_IO, "cannot finish %s VM %s: its keeper broke off", verb, vm->id);
}

/* UNKNOWN is undone and reported as what ended the wait; it stays UNKNOWN if it cannot be undone.
 */
static kelpie_outcome hold(const struct kelpie_op *op, struct kelpie_vm *vm, uint32_t reasons,
                           struct kelpie_error **err)
{
    struct kelpie_error *why = NULL;
    uint32_t before = klp_vm_holds(vm);
    kelpie_outcome outcome = vm_ask_number(op, vm, KLP_KEEPER_HOLD, KLP_KTAG_HOLDS, reasons, &why);
    if (kelpie_is_ok(outcome))
        holds_note(vm, reasons, 0);
    if (!kelpie_is_unknown(outcome)) {
        klp_error_move(err, &why);
        return outcome;
    }
    struct kelpie_op cleanup = klp_op_cleanup(op, VM_CLEANUP_MS);
    uint32_t added = reasons & ~before;
    kelpie_outcome undone =
        vm_ask_number(&cleanup, vm, KLP_KEEPER_RELEASE, KLP_KTAG_HOLDS, added, NULL);
    if (kelpie_is_ok(undone) || !vm_is_live(vm)) {
        klp_error_clear(&why);
        return ended_by_op(op, vm, "holding", err);
    }
    klp_error_move(err, &why);
    return outcome;
}

static kelpie_outcome release(const struct kelpie_op *op, struct kelpie_vm *vm, uint32_t reasons,
                              struct kelpie_error **err)
{
    struct kelpie_error *why = NULL;
    kelpie_outcome outcome =
        vm_ask_number(op, vm, KLP_KEEPER_RELEASE, KLP_KTAG_HOLDS, reasons, &why);
    if (kelpie_is_ok(outcome))
        holds_note(vm, 0, reasons);
    if (!kelpie_is_unknown(outcome)) {
        klp_error_move(err, &why);
        return outcome;
    }
    struct kelpie_op cleanup = klp_op_cleanup(op, VM_CLEANUP_MS);
    if (!kelpie_is_ok(vm_settle(&cleanup, vm, NULL)) && vm_is_live(vm)) {
        klp_error_move(err, &why);
        return outcome;
    }
    klp_error_clear(&why);
    return vm_is_live(vm) && (klp_vm_holds(vm) & reasons) == 0
               ? KLP_OK
               : ended_by_op(op, vm, "releasing", err);
}

static kelpie_outcome may_hold(struct kelpie_vm *vm, struct kelpie_error **err)
{
    kelpie_outcome outcome = KLP_OK;
    KLP_LOCKED (vm->mutex) {
        outcome = vm_may(vm, VM_HOLD, err);
    }
    return outcome;
}

/* A set of reasons, so several tasks may hold and release at once: no slot is taken. */
kelpie_outcome klp_vm_hold(const struct kelpie_op *op, struct kelpie_vm *vm, uint32_t reasons,
                           struct kelpie_error **err)
{
    KLP_ASSERT((reasons & KLP_HOLD_FENCE) == 0); /* the lease's */
    KLP_TRY(may_hold(vm, err));
    return hold(op, vm, reasons, err);
}

kelpie_outcome klp_vm_release(const struct kelpie_op *op, struct kelpie_vm *vm, uint32_t reasons,
                              struct kelpie_error **err)
{
    KLP_ASSERT((reasons & KLP_HOLD_FENCE) == 0);
    KLP_TRY(may_hold(vm, err));
    return release(op, vm, reasons, err);
}

kelpie_outcome kelpie_vm_pause(const struct kelpie_op *op, struct kelpie_vm *vm,
                               struct kelpie_error **err)
{
    enum kelpie_vm_state former;
    KLP_TRY(vm_begin(vm, VM_PAUSE, &former, err));
    kelpie_outcome outcome = hold(op, vm, KLP_HOLD_USER, err);
    vm_end(vm);
    return klp_wrap(err, outcome, "cannot pause VM %s", vm->id);
}

kelpie_outcome kelpie_vm_resume(const struct kelpie_op *op, struct kelpie_vm *vm,
                                struct kelpie_error **err)
{
    enum kelpie_vm_state former;
    KLP_TRY(vm_begin(vm, VM_RESUME, &former, err));
    kelpie_outcome outcome = release(op, vm, RUN_HOLDS, err);
    vm_end(vm);
    return klp_wrap(err, outcome, "cannot resume VM %s", vm->id);
}

/* ---- start */

static uint64_t boot_timeout_ms(const struct kelpie_vm *vm)
{
    uint64_t timeout_ms = vm->factory->boot_timeout_ms;
    return timeout_ms != 0 ? timeout_ms : VM_BOOT_TIMEOUT_MS;
}

static kelpie_outcome guest_set_up(const struct kelpie_op *op, struct kelpie_vm *vm,
                                   struct klp_guest *guest, struct kelpie_error **err)
{
    const struct kelpie_vm_config *config = &vm->config;
    if (config->hostname == NULL && config->env == NULL && config->workdir == NULL)
        return KLP_OK;
    return klp_guest_setup(op, guest, config->hostname, config->env, config->workdir, err);
}

static kelpie_outcome guest_await(const struct kelpie_op *op, struct kelpie_vm *vm,
                                  struct kelpie_error **err)
{
    struct kelpie_op within = klp_op_within(op, boot_timeout_ms(vm));
    struct klp_guest *guest;
    KLP_TRY(vm_session(&within, vm, VM_TALK, &guest, err));
    kelpie_outcome outcome = guest_set_up(&within, vm, guest, err);
    klp_guest_release(guest);
    return outcome;
}

static kelpie_outcome start_run(const struct kelpie_op *op, struct kelpie_vm *vm, bool *out_own,
                                struct kelpie_error **err)
{
    struct klp_machine machine;
    KLP_REQUIRE(klp_vm_config_check(vm->factory, "it", &vm->config, &machine, err));
    KLP_TRY(vm_keeper_fresh(op, vm, err));
    KLP_LOCKED (vm->mutex) {
        *out_own = !vm->leased;
    }
    KLP_TRY(vm_lease_send(op, vm, true, err));
    KLP_TRY(vm_spawn(op, vm, KLP_SPAWN_COLD, &machine, NULL, err));
    KLP_TRY(vm_born(vm, err));
    KLP_TRY(guest_await(op, vm, err));
    return KLP_OK;
}

/* What it waited for, and why that may have been in vain. */
static void timeout_explain(const struct kelpie_op *op, struct kelpie_vm *vm,
                            struct kelpie_error **err)
{
    bool out_of_boot_time = klp_op_left_ms(op) > 0;
    klp_error_clear(err);
    if (out_of_boot_time)
        KLP_IGNORE(klp_refuse(err, KELPIE_E_TIMEOUT, "its guest did not answer within %llu ms",
                              (unsigned long long)boot_timeout_ms(vm)));
    else
        KLP_IGNORE(klp_refuse(err, KELPIE_E_TIMEOUT,
                              "time ran out while waiting for its guest to answer"));
    if ((klp_vm_holds(vm) & KLP_HOLD_FENCE) != 0)
        klp_error_reason_add(err, "it stands still: its lease has run out");
    if ((klp_vm_holds(vm) & ~(uint32_t)KLP_HOLD_FENCE) != 0)
        klp_error_reason_add(err, "it stands still: somebody holds it");
    vm_console_explain(op, vm, err);
}

/* What a start that failed makes of a guest that still lives. */
static enum kelpie_vm_state failed_state(enum kelpie_code code)
{
    bool its_own_fault =
        code == KELPIE_E_TIMEOUT || code == KELPIE_E_PROTOCOL || code == KELPIE_E_UNREACHABLE;
    return its_own_fault ? KELPIE_VM_CRASHED : KELPIE_VM_STOPPED;
}

/* Nothing runs afterwards. A guest that died by itself or never answered is Crashed; one that was
 * told to end is Stopped; one that never was is what the VM was before. FAIL, or UNKNOWN when the
 * keeper does not let go of it. */
static kelpie_outcome start_undo(const struct kelpie_op *op, struct kelpie_vm *vm,
                                 enum kelpie_vm_state former, struct kelpie_error **err)
{
    struct kelpie_op cleanup = klp_op_cleanup(op, KILL_MS);
    kelpie_outcome undone = KLP_OK;
    bool never_lived = false;
    if (vm_is_live(vm)) {
        enum kelpie_code code = klp_error_code(err);
        if (code == KELPIE_E_TIMEOUT)
            timeout_explain(op, vm, err);
        vm_end_order(vm, failed_state(code), kelpie_error_message(*err));
        undone = vm_kill(&cleanup, vm, NULL);
    }
    KLP_LOCKED (vm->mutex) {
        never_lived = vm->state == KELPIE_VM_STARTING && !vm->live;
        if (never_lived)
            vm->state = vm->end_ordered ? vm->end_state : former;
    }
    if (never_lived)
        undone = vm_keeper_exit(&cleanup, vm, NULL);
    bool gone = kelpie_is_ok(undone) || !vm_is_live(vm);
    return (kelpie_outcome){gone ? KELPIE_FAIL : KELPIE_UNKNOWN};
}

kelpie_outcome kelpie_vm_start(const struct kelpie_op *op, struct kelpie_vm *vm,
                               struct kelpie_error **err)
{
    enum kelpie_vm_state former;
    struct kelpie_error *why = NULL;
    bool own = false;
    KLP_TRY(vm_begin(vm, VM_START, &former, err));
    KLP_LOCKED (vm->mutex) {
        vm->state = KELPIE_VM_STARTING;
        vm->end_ordered = false;
        vm->reason[0] = 0;
        klp_cond_wake(vm->changed);
    }
    kelpie_outcome outcome = start_run(op, vm, &own, &why);
    outcome = vm_explain(op, vm, outcome, &why);
    if (kelpie_is_ok(outcome)) {
        KLP_LOCKED (vm->mutex) {
            if (vm->state == KELPIE_VM_STARTING)
                vm->state = KELPIE_VM_RUNNING;
        }
        holds_note(vm, 0, 0);
        if (own)
            klp_vm_gate_open(vm, 0);
    } else {
        outcome = start_undo(op, vm, former, &why);
    }
    vm_end(vm);
    klp_error_move(err, &why);
    return klp_wrap(err, outcome, "cannot start VM %s", vm->id);
}

/* ---- stop, kill */

static void guest_ask_to_stop(const struct kelpie_op *op, struct kelpie_vm *vm, uint64_t grace_ms)
{
    struct kelpie_op within = klp_op_within(op, grace_ms);
    struct klp_guest *guest;
    if (!kelpie_is_ok(vm_session(&within, vm, VM_TALK, &guest, NULL)))
        return;
    kelpie_outcome outcome = klp_guest_order(&within, guest, KLP_GUEST_SHUTDOWN, NULL);
    klp_guest_release(guest);
    if (!kelpie_is_ok(outcome) && klp_op_left_ms(&within) == 0)
        return;
    klp_mutex_lock(vm->mutex);
    while (vm->live && kelpie_is_ok(klp_cond_wait(&within, vm->changed, vm->mutex, NULL))) {
    }
    klp_mutex_unlock(vm->mutex);
}

/* Killed even when the op has ended: a stop that leaves it running would be no stop. */
static kelpie_outcome kill_surely(const struct kelpie_op *op, struct kelpie_vm *vm,
                                  struct kelpie_error **err)
{
    struct kelpie_op cleanup = klp_op_cleanup(op, KILL_MS);
    kelpie_outcome outcome = vm_kill(&cleanup, vm, err);
    if (kelpie_is_ok(outcome) || vm_is_live(vm))
        return outcome;
    klp_error_clear(err); /* its keeper died of it, or before */
    return KLP_OK;
}

kelpie_outcome kelpie_vm_stop(const struct kelpie_op *op, struct kelpie_vm *vm, uint64_t grace_ms,
                              struct kelpie_error **err)
{
    enum kelpie_vm_state former;
    KLP_TRY(vm_begin(vm, VM_STOP, &former, err));
    vm_end_order(vm, KELPIE_VM_STOPPED, "stopped");
    if (former == KELPIE_VM_RUNNING && grace_ms > 0)
        guest_ask_to_stop(op, vm, grace_ms);
    kelpie_outcome outcome = kill_surely(op, vm, err);
    klp_vm_guest_drop(vm);
    vm_end(vm);
    return klp_wrap(err, outcome, "cannot stop VM %s", vm->id);
}

/* From every state, without the slot: it ends a start or a capture that hangs. */
kelpie_outcome klp_vm_kill(const struct kelpie_op *op, struct kelpie_vm *vm,
                           struct kelpie_error **err)
{
    bool alive = false;
    KLP_LOCKED (vm->mutex) {
        alive = vm->live || vm->state == KELPIE_VM_STARTING;
    }
    if (!alive)
        return KLP_OK;
    vm_end_order(vm, KELPIE_VM_STOPPED, "killed");
    return klp_wrap(err, kill_surely(op, vm, err), "cannot kill VM %s", vm->id);
}
