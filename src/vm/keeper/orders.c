/* SPDX-License-Identifier: Apache-2.0 */
/* What each order does. A hypervisor's calls are made without the mutex, one at a time. */
#include <string.h>

#include "base/fmt.h"
#include "vm/keeper/serve.h"

static kelpie_outcome wrong_state(const struct keeper *keeper, const char *verb,
                                  struct kelpie_error **err)
{
    static const char *const names[] = {"empty", "spawned", "live", "dead"};
    if (keeper->state == KLP_KEEPER_DEAD)
        return klp_fail(err, KELPIE_E_CRASHED, "cannot %s: the virtual machine died: %s", verb,
                        keeper->end.reason);
    return klp_fail(err, KELPIE_E_STATE, "cannot %s: the keeper is %s", verb, names[keeper->state]);
}

static kelpie_outcome state_need(struct keeper *keeper, enum klp_keeper_state state,
                                 const char *verb, struct kelpie_error **err)
{
    enum klp_keeper_state now = KLP_KEEPER_EMPTY;
    KLP_LOCKED (keeper->mutex) {
        now = keeper->state;
    }
    return now == state ? KLP_OK : wrong_state(keeper, verb, err);
}

static bool holds_stop(uint32_t holds)
{
    return (holds & ~(uint32_t)KLP_HOLD_FENCE) != 0;
}

/* Makes the hypervisor stand still or run, as the holds say. The busy mark is held. */
static kelpie_outcome holds_apply(const struct kelpie_op *op, struct keeper *keeper,
                                  struct kelpie_error **err)
{
    bool wanted = false, stopped = false;
    KLP_LOCKED (keeper->mutex) {
        wanted = holds_stop(keeper->holds);
        stopped = keeper->stopped;
        keeper->behind = false;
    }
    if (wanted == stopped)
        return KLP_OK;
    struct klp_hypervisor *hypervisor = keeper->hypervisor;
    KLP_TRY(wanted ? hypervisor->ops->stop(op, hypervisor, err)
                   : hypervisor->ops->cont(op, hypervisor, err));
    KLP_LOCKED (keeper->mutex) {
        keeper->stopped = wanted;
    }
    klp_point(op->env, wanted ? "keeper.held" : "keeper.released");
    return KLP_OK;
}

static kelpie_outcome spawn_begin(struct keeper *keeper, struct kelpie_error **err)
{
    bool ending = false;
    KLP_TRY(state_need(keeper, KLP_KEEPER_EMPTY, "spawn", err));
    KLP_LOCKED (keeper->mutex) {
        ending = keeper->ending;
        keeper->spawning = !ending;
    }
    return ending ? klp_fail(err, KELPIE_E_STATE, "cannot spawn: the keeper is about to end")
                  : KLP_OK;
}

/* Somebody must learn of its end: without a task for that it is not left alive. */
static kelpie_outcome spawn_watch(struct keeper *keeper, struct kelpie_error **err)
{
    if (klp_task_spawn(keeper->env, "hv-wait", keeper_wait_run, keeper, &keeper->wait_task, err))
        return KLP_OK;
    keeper->wait_task = NULL;
    keeper->hypervisor->ops->kill(keeper->hypervisor);
    keeper_wait_run(keeper);
    return (kelpie_outcome){KELPIE_FAIL};
}

static void spawn_note(struct keeper *keeper, enum klp_spawn_mode mode, struct klp_handle base,
                       struct klp_bytes machine)
{
    KLP_LOCKED (keeper->mutex) {
        keeper->base = base;
        keeper->state = mode == KLP_SPAWN_COLD ? KLP_KEEPER_LIVE : KLP_KEEPER_SPAWNED;
        keeper->stopped = mode == KLP_SPAWN_INCOMING;
        keeper->spawned = true;
        keeper->spawning = false;
        klp_buf_clear(&keeper->machine);
        klp_buf_append(&keeper->machine, machine.data, machine.size);
        if (mode == KLP_SPAWN_COLD && (keeper->holds & KLP_HOLD_FENCE) != 0)
            keeper->hypervisor->ops->freeze(keeper->hypervisor);
        klp_cond_wake(keeper->changed);
    }
}

static kelpie_outcome order_spawn(const struct kelpie_op *op, struct keeper *keeper,
                                  const struct klp_keeper_frame *frame,
                                  const struct klp_handle *handles, size_t handle_count,
                                  struct keeper_answer *answer, struct kelpie_error **err)
{
    struct klp_machine machine;
    struct klp_bytes bytes;
    uint64_t mode;
    bool has_base = handle_count % 2 == 1; /* kernel and initramfs come as a pair, or not at all */
    if (!klp_field_find(frame->fields, KLP_KTAG_MACHINE, &bytes))
        return klp_fail(err, KELPIE_E_PROTOCOL, "SPAWN without a machine");
    KLP_REQUIRE(klp_machine_decode(bytes, &machine, err));
    KLP_REQUIRE(klp_field_u64(frame->fields, KLP_KTAG_MODE, 0, &mode, err));
    if (mode != KLP_SPAWN_COLD && mode != KLP_SPAWN_INCOMING)
        return klp_fail(err, KELPIE_E_PROTOCOL, "SPAWN in mode %llu", (unsigned long long)mode);
    struct klp_handle base = KLP_NO_HANDLE;
    if (has_base) {
        KLP_REQUIRE(klp_memory_check(op->env, handles[0], machine.memory_bytes, err));
        KLP_REQUIRE(klp_handle_copy(op->env, handles[0], &base, err));
    }
    kelpie_outcome begun = spawn_begin(keeper, err);
    if (!kelpie_is_ok(begun)) {
        klp_handle_close(op->env, base);
        return begun;
    }
    size_t skip = has_base ? 1 : 0;
    kelpie_outcome outcome =
        keeper->hypervisor->ops->spawn(op, keeper->hypervisor, (enum klp_spawn_mode)mode, &machine,
                                       base, handles + skip, handle_count - skip, err);
    if (!kelpie_is_ok(outcome)) {
        klp_handle_close(op->env, base);
        KLP_LOCKED (keeper->mutex) {
            keeper->spawning = false;
            klp_cond_wake(keeper->changed);
        }
        return outcome;
    }
    spawn_note(keeper, (enum klp_spawn_mode)mode, base, bytes);
    KLP_TRY(spawn_watch(keeper, err));
    klp_field_append_u64(&answer->fields, KLP_KTAG_PID,
                         (uint64_t)keeper->hypervisor->ops->pid(keeper->hypervisor));
    klp_point(op->env, "keeper.spawned");
    return KLP_OK;
}

static kelpie_outcome order_load(const struct kelpie_op *op, struct keeper *keeper,
                                 const struct klp_handle *handles, size_t handle_count,
                                 struct kelpie_error **err)
{
    if (handle_count < 1)
        return klp_fail(err, KELPIE_E_PROTOCOL, "LOAD without a device state");
    KLP_TRY(state_need(keeper, KLP_KEEPER_SPAWNED, "load", err));
    klp_point(op->env, "keeper.before-load");
    KLP_TRY(keeper->hypervisor->ops->load(op, keeper->hypervisor, handles[0], handles + 1,
                                          handle_count - 1, err));
    KLP_LOCKED (keeper->mutex) {
        if (keeper->state == KLP_KEEPER_SPAWNED)
            keeper->state = KLP_KEEPER_LIVE;
        keeper->holds |= KLP_HOLD_RESTORE;
        keeper->stopped = true;
        if ((keeper->holds & KLP_HOLD_FENCE) != 0 && keeper->state == KLP_KEEPER_LIVE)
            keeper->hypervisor->ops->freeze(keeper->hypervisor);
    }
    klp_point(op->env, "keeper.after-load");
    return KLP_OK;
}

static kelpie_outcome fence_refuses(const char *verb, struct kelpie_error **err)
{
    return klp_fail(err, KELPIE_E_STATE,
                    "cannot %s: the guest's lease is over, and has to be renewed first", verb);
}

/* Under a fence the hypervisor's process takes no orders. One that stands still already can be held
 * and let go in the books alone; one that does not would run on for moments when the fence ends. */
static kelpie_outcome order_holds(const struct kelpie_op *op, struct keeper *keeper,
                                  const struct klp_keeper_frame *frame, bool add,
                                  struct keeper_answer *answer, struct kelpie_error **err)
{
    uint64_t reasons;
    uint32_t before = 0, after = 0;
    bool fenced = false, refused = false;
    KLP_REQUIRE(klp_field_u64(frame->fields, KLP_KTAG_HOLDS, 0, &reasons, err));
    reasons &= KLP_HOLD_USER | KLP_HOLD_SNAPSHOT | KLP_HOLD_HANDOFF |
               KLP_HOLD_RESTORE; /* FENCE is the clock's alone */
    KLP_TRY(state_need(keeper, KLP_KEEPER_LIVE, add ? "hold" : "release", err));
    KLP_LOCKED (keeper->mutex) {
        before = keeper->holds;
        after = add ? before | (uint32_t)reasons : before & ~(uint32_t)reasons;
        fenced = (before & KLP_HOLD_FENCE) != 0;
        refused = fenced && holds_stop(after) && !keeper->stopped;
        if (!refused)
            keeper->holds = after;
        if (fenced)
            keeper->behind = holds_stop(keeper->holds) != keeper->stopped;
    }
    if (refused)
        return fence_refuses("hold", err);
    kelpie_outcome outcome = fenced ? KLP_OK : holds_apply(op, keeper, err);
    KLP_LOCKED (keeper->mutex) {
        if (!kelpie_is_ok(
                outcome)) /* what was asked for did not happen: only these reasons go back */
            keeper->holds = (keeper->holds & ~(uint32_t)reasons) | (before & (uint32_t)reasons);
        after = keeper->holds;
    }
    klp_field_append_u64(&answer->fields, KLP_KTAG_HOLDS, after);
    return outcome;
}

/* What was let go under the fence runs from now on. Not a renewal's business otherwise: a LEASE
 * never waits behind another order. */
static kelpie_outcome holds_catch_up(const struct kelpie_op *op, struct keeper *keeper,
                                     struct kelpie_error **err)
{
    KLP_TRY(keeper_busy_take(op, keeper, err));
    kelpie_outcome outcome = holds_apply(op, keeper, err);
    if (!kelpie_is_ok(outcome)) {
        KLP_LOCKED (keeper->mutex) {
            keeper->behind = true; /* the next LEASE tries again */
        }
    }
    keeper_busy_give(keeper);
    return klp_wrap(err, outcome, "leased, but it could not be let go on");
}

static kelpie_outcome order_lease(const struct kelpie_op *op, struct keeper *keeper,
                                  const struct klp_keeper_frame *frame, struct kelpie_error **err)
{
    uint64_t epoch, fence_at, known = 0;
    bool lower = false, changed = false, behind = false;
    KLP_REQUIRE(klp_field_u64(frame->fields, KLP_KTAG_EPOCH, 0, &epoch, err));
    KLP_REQUIRE(klp_field_u64(frame->fields, KLP_KTAG_FENCE_AT_NS, 0, &fence_at, err));
    KLP_LOCKED (keeper->mutex) {
        known = keeper->epoch;
        lower = keeper->lease_given && epoch < known;
        if (!lower) {
            keeper->lease_given = true;
            keeper->epoch = epoch;
            keeper->fence_at_ns = fence_at;
            changed = keeper_fence_apply(keeper);
            behind = keeper->behind && (keeper->holds & KLP_HOLD_FENCE) == 0;
            klp_cond_wake(keeper->changed); /* the lease task looks at the new time */
        }
    }
    if (lower)
        return klp_fail(err, KELPIE_E_DENIED, "lease of epoch %llu is older than epoch %llu",
                        (unsigned long long)epoch, (unsigned long long)known);
    klp_point(op->env, "keeper.lease");
    if (changed)
        keeper_notify(keeper);
    return behind ? holds_catch_up(op, keeper, err) : KLP_OK;
}

/* A guest that dies or is fenced meanwhile is not captured soon. */
static kelpie_outcome order_ahead(const struct kelpie_op *op, struct keeper *keeper,
                                  struct kelpie_error **err)
{
    struct klp_hypervisor *hypervisor = keeper->hypervisor;
    struct kelpie_op brief = klp_op_within(op, KEEPER_AHEAD_MS);
    uint64_t kept_ms = keeper->options->ahead_ms;
    KLP_TRY(state_need(keeper, KLP_KEEPER_LIVE, "prepare a capture", err));
    if (hypervisor->ops->ahead == NULL)
        return KLP_OK;
    KLP_TRY(hypervisor->ops->ahead(&brief, hypervisor, err));
    KLP_LOCKED (keeper->mutex) {
        keeper->ahead_until_ns =
            klp_boot_ns(op->env) + (kept_ms != 0 ? kept_ms : KEEPER_AHEAD_KEPT_MS) * KLP_MS;
        if (keeper->state != KLP_KEEPER_LIVE || (keeper->holds & KLP_HOLD_FENCE) != 0)
            keeper_ahead_end(keeper);
        klp_cond_wake(keeper->changed);
    }
    klp_point(op->env, "keeper.ahead");
    return KLP_OK;
}

static kelpie_outcome order_capture(const struct kelpie_op *op, struct keeper *keeper,
                                    struct keeper_answer *answer, struct kelpie_error **err)
{
    bool still = false, fenced = false;
    KLP_TRY(state_need(keeper, KLP_KEEPER_LIVE, "capture", err));
    KLP_LOCKED (keeper->mutex) {
        still = keeper->stopped && holds_stop(keeper->holds);
        fenced = (keeper->holds & KLP_HOLD_FENCE) != 0;
    }
    if (fenced)
        return fence_refuses("capture", err);
    if (!still)
        return klp_fail(err, KELPIE_E_STATE, "cannot capture: the guest is not held");
    klp_point(op->env, "keeper.before-capture");
    KLP_TRY(keeper->hypervisor->ops->capture(op, keeper->hypervisor, &answer->handles[0],
                                             &answer->handles[1], err));
    answer->handle_count = 2;
    KLP_LOCKED (keeper->mutex) {
        keeper->ahead_until_ns = 0; /* used; one that failed may have left it, and its time comes */
    }
    klp_point(op->env, "keeper.after-capture");
    return KLP_OK;
}

static kelpie_outcome order_handle(struct keeper *keeper, uint16_t type, const struct kelpie_op *op,
                                   struct keeper_answer *answer, struct kelpie_error **err)
{
    if (type == KLP_KEEPER_GUEST) {
        KLP_TRY(state_need(keeper, KLP_KEEPER_LIVE, "reach the guest", err));
        KLP_TRY(keeper->hypervisor->ops->guest(op, keeper->hypervisor, &answer->handles[0], err));
    } else {
        struct klp_handle base = KLP_NO_HANDLE;
        KLP_LOCKED (keeper->mutex) {
            base = keeper->base;
        }
        if (klp_handle_is_none(base))
            return klp_fail(err, KELPIE_E_NOT_FOUND, "the virtual machine has no base layer");
        KLP_REQUIRE(klp_handle_copy(op->env, base, &answer->handles[0], err));
    }
    answer->handle_count = 1;
    return KLP_OK;
}

static kelpie_outcome order_meta(struct keeper *keeper, const struct klp_keeper_frame *frame,
                                 struct kelpie_error **err)
{
    struct klp_bytes meta;
    if (!klp_field_find(frame->fields, KLP_KTAG_META, &meta) || meta.size > KEEPER_META_MAX)
        return klp_fail(err, KELPIE_E_LIMIT, "META is missing or larger than %u bytes",
                        KEEPER_META_MAX);
    KLP_LOCKED (keeper->mutex) {
        klp_buf_clear(&keeper->meta);
        klp_buf_append(&keeper->meta, meta.data, meta.size);
    }
    return KLP_OK;
}

static void order_console(struct keeper *keeper, struct keeper_answer *answer)
{
    char *console = klp_mem_alloc_raw(KEEPER_CONSOLE_MAX);
    size_t size = keeper->hypervisor->ops->console(keeper->hypervisor, console, KEEPER_CONSOLE_MAX);
    klp_field_append(&answer->fields, KLP_KTAG_CONSOLE, console, size);
    klp_mem_free(console);
}

/* The folder is empty before the answer: whoever gets it may remove the folder at once, and launch
 * the next keeper in a new one of the same name. */
static kelpie_outcome order_exit(const struct kelpie_op *op, struct keeper *keeper,
                                 struct keeper_answer *answer, struct kelpie_error **err)
{
    KLP_LOCKED (keeper->mutex) {
        keeper->ending = true;
    }
    KLP_TRY(keeper_kill(op, keeper, err));
    keeper_folder_clear(keeper);
    answer->exit_after = true;
    return KLP_OK;
}

/* Orders that make the hypervisor do something come one at a time. */
static bool order_is_busy(uint16_t type)
{
    return type == KLP_KEEPER_SPAWN || type == KLP_KEEPER_LOAD || type == KLP_KEEPER_HOLD ||
           type == KLP_KEEPER_RELEASE || type == KLP_KEEPER_CAPTURE || type == KLP_KEEPER_AHEAD;
}

static kelpie_outcome order_do(const struct kelpie_op *op, struct keeper *keeper,
                               struct keeper_connection *connection,
                               const struct klp_keeper_frame *frame,
                               const struct klp_handle *handles, size_t handle_count,
                               struct keeper_answer *answer, struct kelpie_error **err)
{
    switch (frame->type) {
    case KLP_KEEPER_STATUS:
        keeper_status(keeper, &answer->fields);
        return KLP_OK;
    case KLP_KEEPER_SPAWN:
        return order_spawn(op, keeper, frame, handles, handle_count, answer, err);
    case KLP_KEEPER_LOAD:
        return order_load(op, keeper, handles, handle_count, err);
    case KLP_KEEPER_HOLD:
    case KLP_KEEPER_RELEASE:
        return order_holds(op, keeper, frame, frame->type == KLP_KEEPER_HOLD, answer, err);
    case KLP_KEEPER_LEASE:
        return order_lease(op, keeper, frame, err);
    case KLP_KEEPER_CAPTURE:
        return order_capture(op, keeper, answer, err);
    case KLP_KEEPER_AHEAD:
        return order_ahead(op, keeper, err);
    case KLP_KEEPER_GUEST:
    case KLP_KEEPER_LAYERS:
        return order_handle(keeper, frame->type, op, answer, err);
    case KLP_KEEPER_META:
        return order_meta(keeper, frame, err);
    case KLP_KEEPER_CONSOLE:
        order_console(keeper, answer);
        return KLP_OK;
    case KLP_KEEPER_WATCH:
        KLP_LOCKED (keeper->mutex) {
            connection->watches = true;
        }
        return KLP_OK;
    case KLP_KEEPER_KILL:
        return keeper_kill(op, keeper, err);
    case KLP_KEEPER_EXIT:
        return order_exit(op, keeper, answer, err);
    default:
        return klp_fail(err, KELPIE_E_PROTOCOL, "no order has the number %u", frame->type);
    }
}

kelpie_outcome keeper_order(const struct kelpie_op *op, struct keeper *keeper,
                            struct keeper_connection *connection,
                            const struct klp_keeper_frame *frame, const struct klp_handle *handles,
                            size_t handle_count, struct keeper_answer *answer,
                            struct kelpie_error **err)
{
    if (!order_is_busy(frame->type))
        return order_do(op, keeper, connection, frame, handles, handle_count, answer, err);
    KLP_TRY(keeper_busy_take(op, keeper, err));
    kelpie_outcome outcome =
        order_do(op, keeper, connection, frame, handles, handle_count, answer, err);
    keeper_busy_give(keeper);
    return outcome;
}
