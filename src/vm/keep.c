/* SPDX-License-Identifier: Apache-2.0 */
/* A VM and its keeper: launch, orders, the task that hears of changes, and the end. A VM's death is
 * learned here and nowhere else, whoever brings the news first. */
#include <string.h>

#include "base/fmt.h"
#include "vm/inside.h"
#include "vm/keeper/keeper.h"

#define CONSOLE_MS 2000 /* to fetch a dead VM's last words */
#define NEWS_MS 2000    /* a broken session waits this long for the news of its VM's death */

static struct kelpie_op forever(struct klp_env *env)
{
    return (struct kelpie_op){.env = env, .deadline_ns = KLP_NO_DEADLINE};
}

/* ---- the end of a guest */

static void ended_locked(struct kelpie_vm *vm, bool clean, const char *reason)
{
    const char *fallback = clean ? "the guest powered itself off" : "it died";
    vm->live = false;
    vm->state = clean ? KELPIE_VM_STOPPED : KELPIE_VM_CRASHED;
    klp_format(vm->reason, sizeof(vm->reason), "%s", reason[0] != 0 ? reason : fallback);
    if (vm->end_ordered) {
        vm->state = vm->end_state;
        klp_format(vm->reason, sizeof(vm->reason), "%s", vm->end_reason);
    }
    vm->holds = 0;
    vm->pid = 0;
    vm->changes++;
}

static kelpie_outcome ended_error(struct kelpie_vm *vm, struct kelpie_error **err)
{
    kelpie_outcome outcome = KLP_OK;
    KLP_LOCKED (vm->mutex) {
        bool crashed = vm->state == KELPIE_VM_CRASHED;
        outcome = klp_fail(err, crashed ? KELPIE_E_CRASHED : KELPIE_E_STATE, "VM %s %s: %s", vm->id,
                           crashed ? "crashed" : "has stopped", vm->reason);
    }
    return outcome;
}

/* Idempotent. The guest session is told without the VM's lock (lock order). */
static void died(struct kelpie_vm *vm, bool clean, const char *reason)
{
    struct klp_guest *guest = NULL;
    KLP_AUTO(kelpie_error) struct kelpie_error *why = NULL;
    KLP_LOCKED (vm->mutex) {
        vm->dead = true;
        vm->prepared = false;
        vm->dead_clean = clean;
        klp_format(vm->dead_reason, sizeof(vm->dead_reason), "%s", reason);
        if (vm->live) {
            ended_locked(vm, clean, reason);
            guest = vm->guest != NULL ? klp_guest_share(vm->guest) : NULL;
        }
        klp_cond_wake(vm->changed);
    }
    if (guest == NULL)
        return;
    KLP_IGNORE(ended_error(vm, &why));
    klp_guest_end(guest, kelpie_error_code(why), kelpie_error_message(why));
    klp_guest_release(guest);
}

static void keeper_lost(struct kelpie_vm *vm, const char *reason)
{
    bool expected = false;
    KLP_LOCKED (vm->mutex) {
        expected = vm->exiting;
        vm->lost = vm->lost || !expected;
    }
    if (!expected)
        died(vm, false, reason);
}

void vm_end_order(struct kelpie_vm *vm, enum kelpie_vm_state state, const char *reason)
{
    KLP_LOCKED (vm->mutex) {
        vm->end_ordered = true;
        vm->end_state = state;
        klp_format(vm->end_reason, sizeof(vm->end_reason), "%s", reason);
    }
}

kelpie_outcome vm_born(struct kelpie_vm *vm, struct kelpie_error **err)
{
    kelpie_outcome outcome = KLP_OK;
    KLP_LOCKED (vm->mutex) {
        if (vm->end_ordered)
            outcome = klp_fail(err, KELPIE_E_STATE, "VM %s was ended meanwhile: %s", vm->id,
                               vm->end_reason);
        else if (vm->dead)
            outcome = (kelpie_outcome){KELPIE_FAIL};
        else
            vm->live = true;
        if (!vm->end_ordered && vm->dead) /* the news came before the answer to the order */
            ended_locked(vm, vm->dead_clean, vm->dead_reason);
    }
    return kelpie_is_ok(outcome) || klp_error_code(err) != KELPIE_E_NONE ? outcome
                                                                         : ended_error(vm, err);
}

void vm_news_wait(struct kelpie_vm *vm)
{
    struct kelpie_op op = klp_op_plain(vm->env, NEWS_MS);
    klp_mutex_lock(vm->mutex);
    while (vm->live && kelpie_is_ok(klp_cond_wait(&op, vm->changed, vm->mutex, NULL))) {
    }
    klp_mutex_unlock(vm->mutex);
}

kelpie_outcome vm_ended(const struct kelpie_op *op, struct kelpie_vm *vm, struct kelpie_error **err)
{
    struct kelpie_op cleanup = klp_op_cleanup(op, CONSOLE_MS);
    klp_error_clear(err);
    kelpie_outcome outcome = ended_error(vm, err);
    vm_console_explain(&cleanup, vm, err);
    return outcome;
}

kelpie_outcome vm_explain(const struct kelpie_op *op, struct kelpie_vm *vm, kelpie_outcome outcome,
                          struct kelpie_error **err)
{
    enum kelpie_code code = klp_error_code(err);
    bool broken =
        code == KELPIE_E_UNREACHABLE || code == KELPIE_E_PROTOCOL || code == KELPIE_E_CRASHED;
    if (kelpie_is_ok(outcome) || !broken)
        return outcome;
    vm_news_wait(vm);
    enum kelpie_vm_state state = kelpie_vm_state(vm);
    bool ended = state == KELPIE_VM_CRASHED || state == KELPIE_VM_STOPPED;
    return ended ? vm_ended(op, vm, err) : outcome;
}

/* ---- orders */

kelpie_outcome vm_ask(const struct kelpie_op *op, struct kelpie_vm *vm, uint16_t type,
                      const struct klp_buf *fields, const struct klp_handle *handles,
                      size_t handle_count, struct klp_keeper_answer *out, struct kelpie_error **err)
{
    struct klp_keeper_client *client = NULL;
    struct kelpie_error *why = NULL;
    bool lost = false;
    KLP_LOCKED (vm->mutex) {
        lost = vm->lost &&
               type != KLP_KEEPER_EXIT; /* one that broke the protocol can still be ended */
        client = lost ? NULL : vm->client;
        vm->orders += client != NULL;
    }
    if (lost)
        return klp_fail(err, KELPIE_E_CRASHED, "VM %s crashed: its keeper is gone", vm->id);
    if (client == NULL)
        return klp_fail(err, KELPIE_E_STATE, "VM %s has no keeper", vm->id);
    kelpie_outcome outcome =
        klp_keeper_ask(op, client, type, fields, handles, handle_count, out, &why);
    KLP_LOCKED (vm->mutex) {
        vm->orders--;
        klp_cond_wake(vm->changed);
    }
    if (klp_error_code(&why) == KELPIE_E_UNREACHABLE && type != KLP_KEEPER_EXIT) {
        keeper_lost(vm, "its keeper is gone");
        klp_error_clear(&why);
        return klp_fail(err, KELPIE_E_CRASHED, "VM %s crashed: its keeper is gone", vm->id);
    }
    klp_error_move(err, &why);
    return outcome;
}

kelpie_outcome vm_ask_number(const struct kelpie_op *op, struct kelpie_vm *vm, uint16_t type,
                             uint16_t tag, uint64_t value, struct kelpie_error **err)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf fields = KLP_BUF_INIT(64);
    klp_field_append_u64(&fields, tag, value);
    return vm_ask(op, vm, type, &fields, NULL, 0, NULL, err);
}

/* ---- what the keeper tells */

static void console_keep(struct kelpie_vm *vm, struct klp_bytes console)
{
    size_t size = console.size < VM_CONSOLE_MAX ? console.size : VM_CONSOLE_MAX - 1;
    if (size == 0)
        return;
    char *text = klp_mem_alloc(size + 1);
    for (size_t i = 0; i < size; i++) {
        char c = (char)console.data[console.size - size + i];
        text[i] = c != 0 ? c : ' ';
    }
    KLP_LOCKED (vm->mutex) {
        char *before = vm->console;
        vm->console = text;
        text = before;
    }
    klp_mem_free(text);
}

/* Before the death is told, so that whoever hears of it can be given the last lines. */
static void console_fetch(struct kelpie_vm *vm, struct klp_bytes told)
{
    struct kelpie_op op = klp_op_plain(vm->env, CONSOLE_MS);
    struct klp_keeper_answer answer;
    if (told.size > 0) {
        console_keep(vm, told);
    } else if (kelpie_is_ok(vm_ask(&op, vm, KLP_KEEPER_CONSOLE, NULL, NULL, 0, &answer, NULL))) {
        struct klp_bytes console = {0};
        KLP_IGNORE(klp_field_find(answer.fields, KLP_KTAG_CONSOLE, &console));
        console_keep(vm, console);
        klp_keeper_answer_finish(&answer);
    }
}

static void fence_take(struct kelpie_vm *vm, uint32_t holds)
{
    if (((vm->holds ^ holds) & KLP_HOLD_FENCE) == 0)
        return;
    vm->holds ^= KLP_HOLD_FENCE;
    vm->changes++;
    klp_cond_wake(vm->changed);
}

/* Of the holds an event counts for the fence alone: all others are ours to set, and the event may
 * be older than the answer to our last order. */
static void event_take(struct kelpie_vm *vm, const struct klp_keeper_status *status)
{
    if (status->state == KLP_KEEPER_DEAD) {
        console_fetch(vm, status->console);
        died(vm, status->clean, status->reason);
        return;
    }
    KLP_LOCKED (vm->mutex) {
        fence_take(vm, status->holds);
    }
}

static void watch_run(void *arg)
{
    struct kelpie_vm *vm = arg;
    struct kelpie_op op = forever(vm->env);
    uint8_t *message = klp_mem_alloc_raw(KLP_KEEPER_FRAME_MAX);
    for (bool open = true; open;) {
        KLP_AUTO(kelpie_error) struct kelpie_error *why = NULL;
        struct klp_keeper_status status;
        open = kelpie_is_ok(klp_keeper_event(&op, vm->watch, message, &status, &why));
        if (open)
            event_take(vm, &status);
        else if (kelpie_error_code(why) == KELPIE_E_UNREACHABLE)
            keeper_lost(vm, "its keeper is gone");
        else
            keeper_lost(vm, kelpie_error_message(why));
    }
    klp_mem_free(message);
}

kelpie_outcome vm_settle(const struct kelpie_op *op, struct kelpie_vm *vm,
                         struct kelpie_error **err)
{
    struct klp_keeper_answer answer;
    struct klp_keeper_status status;
    KLP_TRY(vm_ask(op, vm, KLP_KEEPER_STATUS, NULL, NULL, 0, &answer, err));
    bool fine = klp_keeper_status_parse(answer.fields, &status, err);
    if (fine && status.state == KLP_KEEPER_DEAD) {
        console_fetch(vm, status.console);
        died(vm, status.clean, status.reason);
    } else if (fine) {
        KLP_LOCKED (vm->mutex) {
            fence_take(vm, status.holds);
            vm->holds = status.holds;
            vm->pid = status.pid;
            bool paused = (status.holds & (KLP_HOLD_USER | KLP_HOLD_RESTORE)) != 0;
            if (vm->state == KELPIE_VM_RUNNING || vm->state == KELPIE_VM_PAUSED)
                vm->state = paused ? KELPIE_VM_PAUSED : KELPIE_VM_RUNNING;
            klp_cond_wake(vm->changed);
        }
    }
    klp_keeper_answer_finish(&answer);
    return fine ? KLP_OK : (kelpie_outcome){KELPIE_FAIL};
}

/* ---- launch and end */

kelpie_outcome vm_keeper_connect(const struct kelpie_op *op, struct kelpie_vm *vm,
                                 struct kelpie_error **err)
{
    struct klp_chan *watch;
    KLP_TRY(klp_keeper_watch(op, vm->client, &watch, err));
    vm->watch = watch;
    KLP_REQUIRE(klp_task_spawn(vm->env, "vm-keeper", watch_run, vm, &vm->watcher, err));
    return KLP_OK;
}

static void watch_end(struct kelpie_vm *vm)
{
    KLP_LOCKED (vm->mutex) {
        vm->exiting = true;
    }
    if (vm->watch == NULL)
        return;
    klp_chan_shutdown(vm->watch);
    if (vm->watcher != NULL)
        klp_task_join(KLP_TAKE(&vm->watcher));
    klp_chan_close(KLP_TAKE(&vm->watch));
}

void vm_keeper_leave(struct kelpie_vm *vm)
{
    struct kelpie_op op = forever(vm->env);
    struct klp_keeper_client *client;
    struct klp_dir *dir;
    watch_end(vm);
    klp_mutex_lock(vm->mutex);
    client = KLP_TAKE(&vm->client);
    while (vm->orders > 0)
        KLP_IGNORE(klp_cond_wait(&op, vm->changed, vm->mutex, NULL));
    dir = KLP_TAKE(&vm->dir);
    vm->exiting = vm->lost = vm->used = vm->prepared = vm->dead = false;
    vm->pid = 0;
    klp_mutex_unlock(vm->mutex);
    klp_keeper_client_destroy(client);
    if (dir != NULL)
        klp_dir_close(dir);
}

/* Whether it answered or was gone already: there is none any more. */
static kelpie_outcome exit_order(const struct kelpie_op *op, struct kelpie_vm *vm,
                                 struct kelpie_error **err)
{
    struct kelpie_error *why = NULL;
    kelpie_outcome outcome = vm_ask(op, vm, KLP_KEEPER_EXIT, NULL, NULL, 0, NULL, &why);
    if (kelpie_is_unknown(outcome)) { /* it may have ended before its answer was out */
        klp_error_clear(&why);
        outcome = vm_ask(op, vm, KLP_KEEPER_EXIT, NULL, NULL, 0, NULL, &why);
    }
    enum kelpie_code code = klp_error_code(&why);
    if (code == KELPIE_E_UNREACHABLE || code == KELPIE_E_STATE) {
        klp_error_clear(&why);
        return KLP_OK;
    }
    klp_error_move(err, &why);
    return outcome;
}

/* The folder goes with its keeper: the next one gets a new folder, so that nothing the old one
 * still does to its own can meet it. */
kelpie_outcome vm_keeper_exit(const struct kelpie_op *op, struct kelpie_vm *vm,
                              struct kelpie_error **err)
{
    bool there = false;
    KLP_LOCKED (vm->mutex) {
        there = vm->client != NULL;
        vm->exiting = there;
    }
    if (!there)
        return KLP_OK;
    kelpie_outcome outcome = exit_order(op, vm, err);
    if (!kelpie_is_ok(outcome)) {
        KLP_LOCKED (vm->mutex) {
            vm->exiting = false;
        }
        return outcome;
    }
    died(vm, true, "");
    vm_keeper_leave(vm);
    KLP_REQUIRE(klp_dir_remove_tree(vm->factory->vms_dir, vm->id, err));
    return KLP_OK;
}

static kelpie_outcome keeper_is_new(const struct kelpie_op *op, struct kelpie_vm *vm,
                                    struct kelpie_error **err)
{
    struct klp_keeper_answer answer;
    struct klp_keeper_status status;
    KLP_TRY(vm_ask(op, vm, KLP_KEEPER_STATUS, NULL, NULL, 0, &answer, err));
    bool fine = klp_keeper_status_parse(answer.fields, &status, err);
    klp_keeper_answer_finish(&answer);
    KLP_REQUIRE(fine);
    if (strcmp(status.vm, vm->id) != 0)
        return klp_fail(err, KELPIE_E_PROTOCOL, "the keeper of VM %s keeps '%s'", vm->id,
                        status.vm);
    if (status.state != KLP_KEEPER_EMPTY)
        return klp_fail(err, KELPIE_E_EXISTS, "VM %s exists already", vm->id);
    KLP_LOCKED (vm->mutex) {
        vm->holds = status.holds;
    }
    return KLP_OK;
}

static kelpie_outcome meta_send(const struct kelpie_op *op, struct kelpie_vm *vm,
                                struct kelpie_error **err)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf fields = KLP_BUF_INIT(2 * VM_META_MAX);
    KLP_LOCKED (vm->mutex) {
        if (vm->meta.size > 0)
            klp_field_append(&fields, KLP_KTAG_META, vm->meta.data, vm->meta.size);
    }
    return fields.size > 0 ? vm_ask(op, vm, KLP_KEEPER_META, &fields, NULL, 0, NULL, err) : KLP_OK;
}

static kelpie_outcome keeper_instruct(const struct kelpie_op *op, struct kelpie_vm *vm,
                                      struct kelpie_error **err)
{
    KLP_TRY(vm_keeper_connect(op, vm, err));
    KLP_TRY(keeper_is_new(op, vm, err));
    KLP_TRY(vm_lease_send(op, vm, false, err));
    return meta_send(op, vm, err);
}

/* Another VM object's keeper may live in that folder. */
static kelpie_outcome folder_is_free(const struct kelpie_op *op, struct kelpie_vm *vm,
                                     struct klp_dir *dir, struct kelpie_error **err)
{
    KLP_AUTO(chan) struct klp_chan *chan = NULL;
    KLP_AUTO(kelpie_error) struct kelpie_error *why = NULL;
    if (kelpie_is_ok(klp_chan_connect(op, dir, KLP_KEEPER_SOCKET, &chan, &why)))
        return klp_fail(err, KELPIE_E_EXISTS, "VM %s exists already", vm->id);
    if (kelpie_error_code(why) == KELPIE_E_UNREACHABLE)
        return KLP_OK;
    klp_error_move(err, &why);
    return (kelpie_outcome){KELPIE_FAIL};
}

static kelpie_outcome keeper_launch(const struct kelpie_op *op, struct kelpie_vm *vm,
                                    struct kelpie_error **err)
{
    KLP_AUTO(dir) struct klp_dir *dir = NULL;
    KLP_REQUIRE(klp_dir_open_at(vm->factory->vms_dir, vm->id, true, &dir, err));
    KLP_TRY(folder_is_free(op, vm, dir, err));
    KLP_LOCKED (vm->mutex) {
        vm->dir = KLP_TAKE(&dir);
        vm->client = klp_keeper_client_create(vm->env, vm->dir, vm->id);
    }
    struct kelpie_error *why = NULL;
    kelpie_outcome outcome = vm->factory->ops->launch(op, vm->factory, vm->dir, vm->id, &why);
    outcome = klp_wrap(&why, outcome, "cannot launch a keeper for VM %s", vm->id);
    if (kelpie_is_ok(outcome))
        outcome = keeper_instruct(op, vm, &why);
    if (!kelpie_is_ok(outcome)) { /* a launch that was given up may have succeeded meanwhile */
        struct kelpie_op cleanup = klp_op_cleanup(op, VM_CLEANUP_MS);
        if (klp_error_code(&why) != KELPIE_E_EXISTS) /* that one is not ours to end */
            KLP_IGNORE(vm_keeper_exit(&cleanup, vm, NULL));
        vm_keeper_leave(vm);
    }
    klp_error_move(err, &why);
    return outcome;
}

kelpie_outcome vm_keeper_fresh(const struct kelpie_op *op, struct kelpie_vm *vm,
                               struct kelpie_error **err)
{
    bool there = false, fresh = false;
    KLP_LOCKED (vm->mutex) {
        there = vm->client != NULL;
        fresh = there && !vm->used && !vm->lost;
    }
    if (fresh)
        return KLP_OK;
    if (there)
        KLP_TRY(vm_keeper_exit(op, vm, err));
    return keeper_launch(op, vm, err);
}

kelpie_outcome vm_kill(const struct kelpie_op *op, struct kelpie_vm *vm, struct kelpie_error **err)
{
    if (!vm_is_live(vm))
        return KLP_OK;
    KLP_TRY(vm_ask(op, vm, KLP_KEEPER_KILL, NULL, NULL, 0, NULL, err));
    died(vm, false, "");
    return KLP_OK;
}
