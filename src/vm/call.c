/* SPDX-License-Identifier: Apache-2.0 */
/* Calls on a VM's guest: its session, opened by need; exec and files for callers outside, who are
 * subject to state and gate. */
#include <string.h>

#include "base/fmt.h"
#include "vm/inside.h"

/* ---- the session */

/* Its borrowers may still hold it: it is freed when VM_RETIRED_MAX others have ended after it.
 * Held. */
static struct klp_guest *retire_locked(struct kelpie_vm *vm, struct klp_guest *guest)
{
    struct klp_guest *oldest = vm->retired[vm->retired_next];
    vm->retired[vm->retired_next] = guest;
    vm->retired_next = (vm->retired_next + 1) % VM_RETIRED_MAX;
    return oldest;
}

/* `only`: nothing happens unless that is the session; NULL = whichever it is. Until its tasks are
 * gone nobody opens the next one: both would read from one stream. */
static void session_end(struct kelpie_vm *vm, const struct klp_guest *only)
{
    struct klp_guest *guest = NULL, *oldest = NULL;
    bool greeting = true;
    KLP_LOCKED (vm->mutex) {
        if (vm->guest != NULL && (only == NULL || only == vm->guest)) {
            guest = klp_guest_share(vm->guest);
            oldest = retire_locked(vm, KLP_TAKE(&vm->guest));
            greeting = vm->greeting;
            vm->greeting = true;
        }
    }
    if (oldest != NULL)
        klp_guest_release(oldest);
    if (guest == NULL)
        return;
    klp_guest_stop(guest);
    klp_guest_release(guest);
    if (greeting)
        return; /* of whoever opens it */
    KLP_LOCKED (vm->mutex) {
        vm->greeting = false;
        klp_cond_wake(vm->changed);
    }
}

void klp_vm_guest_drop(struct kelpie_vm *vm)
{
    session_end(vm, NULL);
}

static kelpie_outcome stream_open(const struct kelpie_op *op, struct kelpie_vm *vm,
                                  struct klp_stream **out, struct kelpie_error **err)
{
    struct klp_keeper_answer answer;
    KLP_TRY(vm_ask(op, vm, KLP_KEEPER_GUEST, NULL, NULL, 0, &answer, err));
    struct klp_handle handle = klp_keeper_answer_take(&answer, 0);
    klp_keeper_answer_finish(&answer);
    if (klp_handle_is_none(handle))
        return klp_fail(err, KELPIE_E_PROTOCOL, "the keeper hands over no stream");
    KLP_REQUIRE(klp_stream_open(vm->env, handle, out, err));
    return KLP_OK;
}

/* Known to the VM before it is greeted, so that a death ends the waiting. */
static kelpie_outcome session_greet(const struct kelpie_op *op, struct kelpie_vm *vm,
                                    struct klp_guest *guest, struct kelpie_error **err)
{
    bool live = false;
    KLP_LOCKED (vm->mutex) {
        live = vm->live;
        if (live)
            vm->guest = klp_guest_share(guest);
    }
    if (!live)
        return klp_fail(err, KELPIE_E_CRASHED, "its VM is gone");
    klp_guest_gate(guest, vm_may_pass, vm);
    return klp_guest_greet(op, guest, err);
}

static kelpie_outcome session_open(const struct kelpie_op *op, struct kelpie_vm *vm,
                                   struct klp_guest **out, struct kelpie_error **err)
{
    struct klp_stream *stream;
    struct klp_guest *guest;
    KLP_TRY(stream_open(op, vm, &stream, err));
    KLP_REQUIRE(klp_guest_create(vm->env, stream, &guest, err));
    kelpie_outcome outcome = session_greet(op, vm, guest, err);
    if (kelpie_is_ok(outcome)) {
        *out = guest;
        return outcome;
    }
    session_end(vm, guest);
    klp_guest_stop(guest);
    klp_guest_release(guest);
    return outcome;
}

/* *out NULL and OK: the caller is to open one. */
static kelpie_outcome session_find(const struct kelpie_op *op, struct kelpie_vm *vm,
                                   enum vm_verb verb, struct klp_guest **out,
                                   struct kelpie_error **err)
{
    *out = NULL;
    klp_mutex_lock(vm->mutex);
    kelpie_outcome outcome = vm_may(vm, verb, err);
    while (kelpie_is_ok(outcome) && vm->greeting) {
        outcome = klp_cond_wait(op, vm->changed, vm->mutex, err);
        if (kelpie_is_ok(outcome))
            outcome = vm_may(vm, verb, err);
    }
    if (kelpie_is_ok(outcome) && vm->guest != NULL)
        *out = klp_guest_share(vm->guest);
    else if (kelpie_is_ok(outcome))
        vm->greeting = true;
    klp_mutex_unlock(vm->mutex);
    return outcome;
}

kelpie_outcome vm_session(const struct kelpie_op *op, struct kelpie_vm *vm, enum vm_verb verb,
                          struct klp_guest **out, struct kelpie_error **err)
{
    struct klp_guest *guest;
    for (;;) {
        KLP_TRY(session_find(op, vm, verb, &guest, err));
        if (guest == NULL)
            break;
        if (klp_guest_is_alive(guest)) {
            *out = guest;
            return KLP_OK;
        }
        session_end(vm, guest);
        klp_guest_release(guest);
    }
    kelpie_outcome outcome = session_open(op, vm, out, err);
    KLP_LOCKED (vm->mutex) {
        vm->greeting = false;
        klp_cond_wake(vm->changed);
    }
    return outcome;
}

kelpie_outcome klp_vm_guest(const struct kelpie_op *op, struct kelpie_vm *vm,
                            struct klp_guest **out, struct kelpie_error **err)
{
    struct kelpie_error *why = NULL;
    struct klp_guest *guest;
    kelpie_outcome outcome = vm_session(op, vm, VM_TALK, &guest, &why);
    if (kelpie_is_ok(outcome)) {
        klp_guest_release(guest); /* the VM has it, or keeps it for a while */
        *out = guest;
        return outcome;
    }
    outcome = vm_explain(op, vm, outcome, &why);
    klp_error_move(err, &why);
    return klp_wrap(err, outcome, "cannot reach the guest of VM %s", vm->id);
}

/* ---- calls from outside */

static kelpie_outcome gate_check(struct kelpie_vm *vm, enum vm_verb verb, struct kelpie_error **err)
{
    kelpie_outcome outcome = KLP_OK;
    KLP_LOCKED (vm->mutex) {
        outcome = vm_may(vm, verb, err);
    }
    if (kelpie_is_ok(outcome) && !vm_may_pass(vm))
        return klp_fail(err, KELPIE_E_STATE, "the gate of VM %s is closed", vm->id);
    return outcome;
}

static kelpie_outcome call_begin(const struct kelpie_op *op, struct kelpie_vm *vm,
                                 enum vm_verb verb, struct klp_guest **out,
                                 struct kelpie_error **err)
{
    KLP_TRY(gate_check(vm, verb, err));
    return vm_session(op, vm, verb, out, err);
}

static kelpie_outcome call_end(const struct kelpie_op *op, struct kelpie_vm *vm,
                               kelpie_outcome outcome, struct kelpie_error *why,
                               struct kelpie_error **err)
{
    outcome = vm_explain(op, vm, outcome, &why);
    klp_error_move(err, &why);
    return outcome;
}

kelpie_outcome kelpie_vm_exec(const struct kelpie_op *op, struct kelpie_vm *vm,
                              const struct kelpie_exec *exec, struct kelpie_exec_status *out,
                              struct kelpie_error **err)
{
    struct kelpie_error *why = NULL;
    struct klp_guest *guest;
    kelpie_outcome outcome = call_begin(op, vm, VM_EXEC, &guest, &why);
    if (kelpie_is_ok(outcome)) {
        outcome = klp_guest_exec(op, guest, exec, out, &why);
        klp_guest_release(guest);
    }
    return call_end(op, vm, outcome, why, err);
}

kelpie_outcome kelpie_vm_put(const struct kelpie_op *op, struct kelpie_vm *vm, const char *path,
                             size_t (*input)(void *arg, void *out, size_t capacity), void *arg,
                             struct kelpie_error **err)
{
    struct kelpie_error *why = NULL;
    struct klp_guest *guest;
    kelpie_outcome outcome = call_begin(op, vm, VM_FILES, &guest, &why);
    if (kelpie_is_ok(outcome)) {
        outcome = klp_guest_put(op, guest, path, input, arg, &why);
        if (kelpie_is_ok(outcome))
            outcome = klp_guest_pass(op, guest, &why);
        klp_guest_release(guest);
    }
    return call_end(op, vm, outcome, why, err);
}

kelpie_outcome kelpie_vm_get(const struct kelpie_op *op, struct kelpie_vm *vm, const char *path,
                             bool (*output)(void *arg, const void *data, size_t size), void *arg,
                             struct kelpie_error **err)
{
    struct kelpie_error *why = NULL;
    struct klp_guest *guest;
    kelpie_outcome outcome = call_begin(op, vm, VM_FILES, &guest, &why);
    if (kelpie_is_ok(outcome)) {
        outcome = klp_guest_get(op, guest, KLP_GUEST_GET, path, output, arg, &why);
        klp_guest_release(guest);
    }
    return call_end(op, vm, outcome, why, err);
}

struct kelpie_exec_control *kelpie_exec_control_create(struct kelpie_vm *vm)
{
    struct kelpie_exec_control *control = KLP_NEW(struct kelpie_exec_control);
    *control = (struct kelpie_exec_control){
        .env = vm->env, .mutex = klp_mutex_create(vm->env), .changed = klp_cond_create(vm->env)};
    return control;
}

void kelpie_exec_control_destroy(struct kelpie_exec_control *control)
{
    if (control == NULL)
        return;
    KLP_ASSERT(control->guest == NULL && control->users == 0);
    klp_cond_destroy(control->changed);
    klp_mutex_destroy(control->mutex);
    klp_mem_free(control);
}
