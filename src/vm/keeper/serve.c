/* SPDX-License-Identifier: Apache-2.0 */
/* The keeper's tasks: one accepts, one a connection serves orders, one waits for the hypervisor's
 * end, one watches the lease. This file: connections, status, events, and the life of the whole. */
#include <string.h>

#include "base/fmt.h"
#include "vm/keeper/serve.h"

#define ORDER_MS 120000 /* the longest an order may take; the client gives up earlier */

kelpie_outcome keeper_busy_take(const struct kelpie_op *op, struct keeper *keeper,
                                struct kelpie_error **err)
{
    kelpie_outcome outcome = KLP_OK;
    klp_mutex_lock(keeper->mutex);
    while (keeper->busy && kelpie_is_ok(outcome))
        outcome = klp_cond_wait(op, keeper->changed, keeper->mutex, err);
    if (kelpie_is_ok(outcome))
        keeper->busy = true;
    klp_mutex_unlock(keeper->mutex);
    return outcome;
}

void keeper_busy_give(struct keeper *keeper)
{
    KLP_LOCKED (keeper->mutex) {
        keeper->busy = false;
        klp_cond_wake(keeper->changed);
    }
}

/* ---- status and events */

void keeper_status(struct keeper *keeper, struct klp_buf *out)
{
    KLP_LOCKED (keeper->mutex) {
        int64_t pid = keeper->spawned ? keeper->hypervisor->ops->pid(keeper->hypervisor) : 0;
        klp_field_append_text(out, KLP_KTAG_VM, keeper->options->vm);
        klp_field_append_text(out, KLP_KTAG_BACKEND, keeper->hypervisor->ops->name);
        klp_field_append_u64(out, KLP_KTAG_STATE, keeper->state);
        klp_field_append_u64(out, KLP_KTAG_HOLDS, keeper->holds);
        klp_field_append_u64(out, KLP_KTAG_EPOCH, keeper->epoch);
        klp_field_append_u64(out, KLP_KTAG_FENCE_AT_NS, keeper->fence_at_ns);
        klp_field_append_u64(out, KLP_KTAG_KEEPER_PID, (uint64_t)keeper->options->pid);
        if (keeper->state == KLP_KEEPER_DEAD) {
            klp_field_append_text(out, KLP_KTAG_REASON, keeper->end.reason);
            klp_field_append_u64(out, KLP_KTAG_EXIT_CODE, (uint64_t)keeper->end.code);
            klp_field_append_u64(out, KLP_KTAG_EXIT_SIGNAL, (uint64_t)keeper->end.signal);
            klp_field_append_u64(out, KLP_KTAG_CLEAN, keeper->end.clean);
        } else {
            klp_field_append_u64(out, KLP_KTAG_PID, (uint64_t)pid);
        }
        if (keeper->machine.size > 0)
            klp_field_append(out, KLP_KTAG_MACHINE, keeper->machine.data, keeper->machine.size);
        if (keeper->meta.size > 0)
            klp_field_append(out, KLP_KTAG_META, keeper->meta.data, keeper->meta.size);
    }
}

/* Channels that watch, each with its connection's slot kept from closing meanwhile. */
void keeper_notify(struct keeper *keeper)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf fields =
        KLP_BUF_INIT(KLP_KEEPER_FRAME_MAX);
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf frame =
        KLP_BUF_INIT(KLP_KEEPER_FRAME_MAX);
    keeper_status(keeper, &fields);
    klp_keeper_frame_append(&frame, KLP_KEEPER_EVENT, 0, klp_buf_view(&fields));
    struct kelpie_op op =
        klp_op_plain(keeper->env, 0); /* a watcher that does not read must not hold us up */
    KLP_LOCKED (keeper->mutex) {
        for (size_t i = 0; i < KEEPER_CONNECTIONS_MAX; i++) {
            struct keeper_connection *connection = &keeper->connections[i];
            if (connection->chan == NULL || !connection->watches || connection->ended)
                continue;
            if (!kelpie_is_ok(
                    klp_chan_send(&op, connection->chan, frame.data, frame.size, NULL, 0, NULL)))
                klp_chan_shutdown(connection->chan); /* it missed one: it must ask anew */
        }
    }
}

/* ---- connections */

static void answer_finish(struct keeper *keeper, struct keeper_answer *answer)
{
    for (size_t i = 0; i < answer->handle_count; i++)
        klp_handle_close(keeper->env, answer->handles[i]);
    klp_buf_finish(&answer->fields);
}

static void error_fields(const struct kelpie_error *error, struct klp_buf *out)
{
    klp_field_append_text(out, KLP_KTAG_ERROR, kelpie_code_name(kelpie_error_code(error)));
    klp_field_append_text(out, KLP_KTAG_TEXT, kelpie_error_message(error));
    for (size_t i = 0; i < kelpie_error_reason_count(error); i++)
        klp_field_append_text(out, KLP_KTAG_REASON, kelpie_error_reason(error, i));
    if (kelpie_error_remedy(error)[0] != 0)
        klp_field_append_text(out, KLP_KTAG_REMEDY, kelpie_error_remedy(error));
}

static kelpie_outcome answer_send(struct keeper_connection *connection, uint16_t type, uint64_t id,
                                  const struct keeper_answer *answer)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf frame =
        KLP_BUF_INIT(KLP_KEEPER_FRAME_MAX);
    struct kelpie_op op = klp_op_plain(connection->keeper->env, KEEPER_SEND_MS);
    klp_keeper_frame_append(&frame, type, id, klp_buf_view(&answer->fields));
    KLP_REQUIRE(klp_buf_check(&frame, "an answer", NULL));
    return klp_chan_send(&op, connection->chan, frame.data, frame.size, answer->handles,
                         answer->handle_count, NULL);
}

/* What is no order gets an answer too, and then nothing more: the two sides are out of step. */
static void nonsense_answer(struct keeper_connection *connection, struct kelpie_error *error)
{
    struct keeper_answer answer = {.fields = KLP_BUF_INIT(KLP_KEEPER_FRAME_MAX)};
    klp_log(connection->keeper->env, KLP_LOG_WARN, "keeper.bad-order", "error=%s",
            kelpie_error_message(error));
    error_fields(error, &answer.fields);
    KLP_IGNORE(answer_send(connection, KLP_KEEPER_ERROR, 0, &answer));
    klp_buf_finish(&answer.fields);
    kelpie_error_free(error);
}

/* One order. False = the connection is over. */
static bool order_serve(struct keeper_connection *connection, const void *bytes, size_t size,
                        const struct klp_handle *handles, size_t handle_count)
{
    struct keeper *keeper = connection->keeper;
    struct keeper_answer answer = {.fields = KLP_BUF_INIT(KLP_KEEPER_FRAME_MAX)};
    struct klp_keeper_frame frame;
    struct kelpie_error *error = NULL;
    if (!klp_keeper_frame_decode(bytes, size, &frame, &error)) {
        nonsense_answer(connection, error);
        return false;
    }
    struct kelpie_op op = klp_op_plain(keeper->env, ORDER_MS);
    op.cancel = keeper->cancel;
    kelpie_outcome outcome =
        keeper_order(&op, keeper, connection, &frame, handles, handle_count, &answer, &error);
    if (!kelpie_is_ok(outcome)) {
        klp_buf_clear(&answer.fields);
        error_fields(error, &answer.fields);
    }
    bool sent = kelpie_is_ok(answer_send(
        connection, kelpie_is_ok(outcome) ? KLP_KEEPER_OK : KLP_KEEPER_ERROR, frame.id, &answer));
    bool over = kelpie_is_ok(outcome) && answer.exit_after;
    klp_error_clear(&error);
    answer_finish(keeper, &answer);
    if (over) {
        KLP_LOCKED (keeper->mutex) {
            keeper->exiting = true;
            klp_cond_wake(keeper->changed);
        }
    }
    return sent && !over;
}

static void connection_run(void *arg)
{
    struct keeper_connection *connection = arg;
    struct keeper *keeper = connection->keeper;
    uint8_t *bytes = klp_mem_alloc_raw(KLP_KEEPER_FRAME_MAX);
    struct kelpie_error *error = NULL;
    bool more = true;
    while (more) {
        struct klp_handle handles[KLP_KEEPER_HANDLES_MAX];
        size_t size = 0, handle_count = KLP_KEEPER_HANDLES_MAX;
        struct kelpie_op op = {
            .env = keeper->env, .deadline_ns = KLP_NO_DEADLINE, .cancel = keeper->cancel};
        more = kelpie_is_ok(klp_chan_receive(&op, connection->chan, bytes, KLP_KEEPER_FRAME_MAX,
                                             &size, handles, &handle_count, &error));
        if (!more)
            break;
        KLP_LOCKED (keeper->mutex) {
            keeper->last_talk_ns = klp_boot_ns(keeper->env);
        }
        more = order_serve(connection, bytes, size, handles, handle_count);
        for (size_t i = 0; i < handle_count; i++)
            klp_handle_close(keeper->env, handles[i]);
    }
    if (klp_error_code(&error) == KELPIE_E_LIMIT)
        nonsense_answer(connection, KLP_TAKE(&error));
    klp_error_clear(&error);
    klp_mem_free(bytes);
    klp_chan_shutdown(connection->chan);
    KLP_LOCKED (keeper->mutex) {
        connection->ended = true;
        klp_cond_wake(keeper->changed);
        keeper->connection_count--;
        keeper->last_talk_ns = klp_boot_ns(keeper->env);
        klp_cond_wake(keeper->changed);
    }
}

/* Joins connections that are over; all of them at the end. */
static void connections_reap(struct keeper *keeper)
{
    for (size_t i = 0; i < KEEPER_CONNECTIONS_MAX; i++) {
        struct keeper_connection *connection = &keeper->connections[i];
        struct klp_chan *chan = NULL;
        KLP_LOCKED (keeper->mutex) {
            if (connection->ended)
                chan = connection->chan;
        }
        if (chan == NULL)
            continue;
        klp_task_join(connection->task);
        klp_chan_close(chan);
        KLP_LOCKED (keeper->mutex) {
            *connection = (struct keeper_connection){.chan = NULL};
        }
    }
}

static void connection_begin(struct keeper *keeper, struct klp_chan *chan)
{
    struct keeper_connection *slot = NULL;
    connections_reap(keeper);
    KLP_LOCKED (keeper->mutex) {
        for (size_t i = 0; i < KEEPER_CONNECTIONS_MAX && slot == NULL; i++)
            if (keeper->connections[i].chan == NULL)
                slot = &keeper->connections[i];
        if (slot != NULL) {
            *slot = (struct keeper_connection){.keeper = keeper, .chan = chan};
            keeper->connection_count++;
            keeper->last_talk_ns = klp_boot_ns(keeper->env);
        }
    }
    if (slot == NULL) {
        klp_log(keeper->env, KLP_LOG_WARN, "keeper.full", "connections=%d", KEEPER_CONNECTIONS_MAX);
        klp_chan_close(chan);
        return;
    }
    if (klp_task_spawn(keeper->env, "keeper-conn", connection_run, slot, &slot->task, NULL))
        return;
    KLP_LOCKED (keeper->mutex) {
        keeper->connection_count--;
        *slot = (struct keeper_connection){.chan = NULL};
    }
    klp_chan_close(chan);
}

static void accept_run(void *arg)
{
    struct keeper *keeper = arg;
    struct kelpie_op op = {
        .env = keeper->env, .deadline_ns = KLP_NO_DEADLINE, .cancel = keeper->cancel};
    while (!klp_cancel_is_raised(keeper->cancel)) {
        struct klp_chan *chan;
        if (kelpie_is_ok(klp_listener_accept(&op, keeper->listener, &chan, NULL)))
            connection_begin(keeper, chan);
        else /* out of descriptors, perhaps: not a busy loop */
            KLP_IGNORE(klp_sleep_until(&op, klp_boot_ns(keeper->env) + 10 * KLP_MS, NULL));
    }
}

/* ---- the hypervisor's end */

void keeper_wait_run(void *arg)
{
    struct keeper *keeper = arg;
    struct klp_hypervisor_exit end = {.code = -1};
    struct kelpie_op op = {.env = keeper->env, .deadline_ns = KLP_NO_DEADLINE};
    if (!kelpie_is_ok(keeper->hypervisor->ops->wait(&op, keeper->hypervisor, &end, NULL)))
        klp_format(end.reason, sizeof(end.reason), "the hypervisor could not be waited for");
    KLP_LOCKED (keeper->mutex) {
        keeper->end = end;
        keeper->state = KLP_KEEPER_DEAD;
        keeper_ahead_end(keeper);
        klp_cond_wake(keeper->changed);
    }
    klp_log(keeper->env, KLP_LOG_INFO, "keeper.dead", "reason=%s", end.reason);
    keeper_notify(keeper);
}

kelpie_outcome keeper_kill(const struct kelpie_op *op, struct keeper *keeper,
                           struct kelpie_error **err)
{
    kelpie_outcome outcome = KLP_OK;
    klp_mutex_lock(keeper->mutex);
    while (kelpie_is_ok(outcome) &&
           (keeper->spawning || (keeper->spawned && keeper->state != KLP_KEEPER_DEAD))) {
        if (keeper->spawned)
            keeper->hypervisor->ops->kill(keeper->hypervisor);
        outcome = klp_cond_wait(op, keeper->changed, keeper->mutex, err);
    }
    klp_mutex_unlock(keeper->mutex);
    return outcome;
}

/* ---- the whole */

static bool entry_remove(void *arg, const char *name)
{
    struct klp_dir *dir = arg;
    if (strcmp(name, KLP_KEEPER_ENDED) != 0) /* tells who may remove the folder itself */
        KLP_IGNORE(klp_dir_remove_tree(dir, name, NULL));
    return true;
}

void keeper_folder_clear(struct keeper *keeper)
{
    KLP_IGNORE(klp_dir_list(keeper->options->dir, entry_remove, keeper->options->dir, NULL));
}

/* How long an empty or dead VM may be left alone. UINT64_MAX = somebody needs it. */
static uint64_t alone_until_ns(const struct keeper *keeper)
{
    uint64_t orphan_ms = keeper->options->orphan_ms;
    bool needed = keeper->state == KLP_KEEPER_LIVE || keeper->connection_count > 0;
    if (needed || orphan_ms > (UINT64_MAX - keeper->last_talk_ns) / KLP_MS)
        return UINT64_MAX;
    return keeper->last_talk_ns + orphan_ms * KLP_MS;
}

void keeper_ahead_end(struct keeper *keeper)
{
    if (keeper->ahead_until_ns != 0)
        keeper->ahead_until_ns = 1; /* long ago */
}

/* An order that is under way goes first, and wakes us when it is done. */
static uint64_t ahead_until_ns(const struct keeper *keeper)
{
    return keeper->ahead_until_ns == 0 || keeper->busy ? UINT64_MAX : keeper->ahead_until_ns;
}

/* Under the mutex, which is let go meanwhile: giving memory back takes its time. */
static void ahead_drop(struct keeper *keeper)
{
    keeper->busy = true;
    keeper->ahead_until_ns = 0;
    klp_mutex_unlock(keeper->mutex);
    keeper->hypervisor->ops->ahead_drop(keeper->hypervisor);
    keeper_busy_give(keeper);
    klp_mutex_lock(keeper->mutex);
}

/* Waits until EXIT was answered, or nobody needs an empty or dead VM any more. */
static void keeper_stay(struct keeper *keeper)
{
    klp_mutex_lock(keeper->mutex);
    while (!keeper->exiting && klp_boot_ns(keeper->env) < alone_until_ns(keeper)) {
        if (klp_boot_ns(keeper->env) >= ahead_until_ns(keeper)) {
            ahead_drop(keeper);
            continue;
        }
        uint64_t alone_ns = alone_until_ns(keeper), ahead_ns = ahead_until_ns(keeper);
        struct kelpie_op op = {.env = keeper->env,
                               .deadline_ns = alone_ns < ahead_ns ? alone_ns : ahead_ns};
        KLP_IGNORE(klp_cond_wait(&op, keeper->changed, keeper->mutex, NULL));
    }
    keeper->ending = true;
    klp_mutex_unlock(keeper->mutex);
}

/* A connection that is just starting the hypervisor may still succeed: it is killed once more when
 * all connections are over. */
static void keeper_end(struct keeper *keeper)
{
    struct kelpie_op op = {.env = keeper->env, .deadline_ns = KLP_NO_DEADLINE};
    klp_cancel_raise(keeper->cancel);
    KLP_LOCKED (keeper->mutex) {
        if (keeper->spawned)
            keeper->hypervisor->ops->kill(keeper->hypervisor);
        klp_cond_wake(keeper->changed);
    }
    if (keeper->accept_task != NULL)
        klp_task_join(keeper->accept_task);
    if (keeper->lease_task != NULL)
        klp_task_join(keeper->lease_task);
    for (size_t i = 0; i < KEEPER_CONNECTIONS_MAX; i++)
        if (keeper->connections[i].chan != NULL) {
            struct klp_chan *chan = keeper->connections[i].chan;
            klp_task_join(keeper->connections[i].task);
            KLP_LOCKED (keeper->mutex) {
                keeper->connections[i].chan = NULL; /* the waiter still tells whoever watches */
            }
            klp_chan_close(chan);
        }
    KLP_IGNORE(keeper_kill(&op, keeper, NULL));
    if (keeper->wait_task != NULL)
        klp_task_join(keeper->wait_task);
}

static void keeper_free(struct keeper *keeper)
{
    klp_listener_close(keeper->listener);
    klp_handle_close(keeper->env, keeper->base);
    klp_buf_finish(&keeper->machine);
    klp_buf_finish(&keeper->meta);
    klp_cancel_destroy(keeper->cancel);
    klp_cond_destroy(keeper->changed);
    klp_mutex_destroy(keeper->mutex);
    klp_mem_free(keeper);
}

static bool tasks_start(struct keeper *keeper, struct kelpie_error **err)
{
    return klp_listener_open(keeper->options->dir, KLP_KEEPER_SOCKET, &keeper->listener, err) &&
           klp_task_spawn(keeper->env, "keeper-accept", accept_run, keeper, &keeper->accept_task,
                          err) &&
           klp_task_spawn(keeper->env, "keeper-lease", keeper_lease_run, keeper,
                          &keeper->lease_task, err);
}

kelpie_outcome klp_keeper_serve(struct klp_env *env, const struct klp_keeper_options *options,
                                struct kelpie_error **err)
{
    struct keeper *keeper = KLP_NEW(struct keeper);
    *keeper = (struct keeper){.env = env,
                              .options = options,
                              .hypervisor = options->hypervisor,
                              .holds = KLP_HOLD_FENCE,
                              .base = KLP_NO_HANDLE,
                              .machine = KLP_BUF_INIT(16 * KLP_KIB),
                              .meta = KLP_BUF_INIT(KEEPER_META_MAX),
                              .last_talk_ns = klp_boot_ns(env)};
    keeper->mutex = klp_mutex_create(env);
    keeper->changed = klp_cond_create(env);
    keeper->cancel = klp_cancel_create(env);
    kelpie_outcome outcome = tasks_start(keeper, err) ? KLP_OK : (kelpie_outcome){KELPIE_FAIL};
    if (kelpie_is_ok(outcome) && options->ready != NULL)
        options->ready(options->ready_arg);
    if (kelpie_is_ok(outcome))
        keeper_stay(keeper);
    keeper_end(keeper);
    if (kelpie_is_ok(outcome)) /* otherwise the folder may be another keeper's */
        keeper_folder_clear(keeper);
    keeper_free(keeper);
    return outcome;
}
