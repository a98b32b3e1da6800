/* SPDX-License-Identifier: Apache-2.0 */
/* Orders to a keeper and its answers. What they mean for a VM's state is vm.h's. */
#include "vm/keeper/client.h"

#include <string.h>

#include "base/fmt.h"
#include "vm/keeper/keeper.h"

#define IDLE_MAX 2 /* connections kept for the next order */

struct klp_keeper_client {
    struct klp_env *env;
    struct klp_dir *dir;
    char vm[KLP_ID_SIZE];
    struct klp_mutex *mutex; /* all below */
    struct klp_chan *idle[IDLE_MAX];
    size_t idle_count;
    uint64_t next_id;
};

struct klp_keeper_client *klp_keeper_client_create(struct klp_env *env, struct klp_dir *dir,
                                                   const char *vm_id)
{
    struct klp_keeper_client *client = KLP_NEW(struct klp_keeper_client);
    *client = (struct klp_keeper_client){
        .env = env, .dir = dir, .mutex = klp_mutex_create(env), .next_id = 1};
    klp_text_copy(client->vm, sizeof(client->vm), vm_id);
    return client;
}

void klp_keeper_client_destroy(struct klp_keeper_client *client)
{
    if (client == NULL)
        return;
    for (size_t i = 0; i < client->idle_count; i++)
        klp_chan_close(client->idle[i]);
    klp_mutex_destroy(client->mutex);
    klp_mem_free(client);
}

/* ---- answers */

struct klp_handle klp_keeper_answer_take(struct klp_keeper_answer *answer, size_t index)
{
    if (index >= answer->handle_count)
        return KLP_NO_HANDLE;
    struct klp_handle handle = answer->handles[index];
    answer->handles[index] = KLP_NO_HANDLE;
    return handle;
}

void klp_keeper_answer_finish(struct klp_keeper_answer *answer)
{
    for (size_t i = 0; i < answer->handle_count; i++)
        klp_handle_close(answer->env, answer->handles[i]);
    klp_mem_free(answer->message);
    *answer = (struct klp_keeper_answer){.env = answer->env};
}

static void text_take(struct klp_bytes fields, uint16_t tag, char *out, size_t capacity)
{
    struct klp_bytes text = {0};
    KLP_IGNORE(klp_field_find(fields, tag, &text));
    klp_format(out, capacity, "%.*s", (int)(text.size < capacity ? text.size : capacity - 1),
               text.size > 0 ? (const char *)text.data : "");
}

/* The keeper's error, as if it had happened here. */
static kelpie_outcome error_rebuild(struct klp_bytes fields, struct kelpie_error **err)
{
    char code[32], text[KLP_ERROR_TEXT_MAX / 4], remedy[256];
    struct klp_field field;
    size_t at = 0;
    text_take(fields, KLP_KTAG_ERROR, code, sizeof(code));
    text_take(fields, KLP_KTAG_TEXT, text, sizeof(text));
    text_take(fields, KLP_KTAG_REMEDY, remedy, sizeof(remedy));
    kelpie_outcome outcome = klp_fail(err, kelpie_code_from_name(code), "%s", text);
    while (klp_field_next(fields, &at, &field, NULL) > 0) {
        if (field.tag == KLP_KTAG_REASON)
            klp_error_reason_add(
                err, "%.*s", (int)(field.data.size < sizeof(text) ? field.data.size : sizeof(text)),
                field.data.size > 0 ? (const char *)field.data.data : "");
    }
    if (remedy[0] != 0)
        klp_error_remedy_set(err, "%s", remedy);
    return outcome;
}

/* ---- connections */

static kelpie_outcome chan_take(const struct kelpie_op *op, struct klp_keeper_client *client,
                                struct klp_chan **out, bool *was_idle, uint64_t *out_id,
                                struct kelpie_error **err)
{
    struct klp_chan *chan = NULL;
    KLP_LOCKED (client->mutex) {
        *out_id = client->next_id++;
        if (client->idle_count > 0)
            chan = client->idle[--client->idle_count];
    }
    *was_idle = chan != NULL;
    if (chan == NULL)
        KLP_TRY(klp_chan_connect(op, client->dir, KLP_KEEPER_SOCKET, &chan, err));
    *out = chan;
    return KLP_OK;
}

static void chan_give(struct klp_keeper_client *client, struct klp_chan *chan)
{
    KLP_LOCKED (client->mutex) {
        if (client->idle_count < IDLE_MAX) {
            client->idle[client->idle_count++] = chan;
            chan = NULL;
        }
    }
    klp_chan_close(chan);
}

/* ---- one order */

struct order {
    struct klp_buf frame;
    uint16_t type;
    uint64_t id;
    const struct klp_handle *handles;
    size_t handle_count;
};

static bool frame_make(struct order *order, const struct klp_buf *fields, struct kelpie_error **err)
{
    klp_buf_clear(&order->frame);
    klp_keeper_frame_append(&order->frame, order->type, order->id,
                            fields != NULL ? klp_buf_view(fields) : (struct klp_bytes){0});
    return klp_buf_check(&order->frame, "an order to a keeper", err);
}

/* A connection that lay idle may have lost its keeper since: nothing was delivered then, and a new
 * one tells whether there is a keeper. */
static kelpie_outcome order_send(const struct kelpie_op *op, struct klp_keeper_client *client,
                                 struct order *order, const struct klp_buf *fields,
                                 struct klp_chan **out, struct kelpie_error **err)
{
    for (;;) {
        KLP_AUTO(chan) struct klp_chan *chan = NULL;
        KLP_AUTO(kelpie_error) struct kelpie_error *why = NULL;
        bool was_idle;
        KLP_TRY(chan_take(op, client, &chan, &was_idle, &order->id, err));
        KLP_REQUIRE(frame_make(order, fields, err));
        kelpie_outcome outcome = klp_chan_send(op, chan, order->frame.data, order->frame.size,
                                               order->handles, order->handle_count, &why);
        if (kelpie_is_ok(outcome)) {
            *out = KLP_TAKE(&chan);
            return outcome;
        }
        if (was_idle && klp_error_code(&why) == KELPIE_E_UNREACHABLE)
            continue;
        klp_error_move(err, &why);
        return outcome;
    }
}

static kelpie_outcome answer_receive(const struct kelpie_op *op, struct klp_chan *chan, uint64_t id,
                                     struct klp_keeper_answer *out, struct klp_keeper_frame *frame,
                                     struct kelpie_error **err)
{
    size_t size = 0;
    out->handle_count = KLP_KEEPER_HANDLES_MAX;
    kelpie_outcome outcome = klp_chan_receive(op, chan, out->message, KLP_KEEPER_FRAME_MAX, &size,
                                              out->handles, &out->handle_count, err);
    if (!kelpie_is_ok(outcome)) {
        out->handle_count = 0;
        return outcome;
    }
    KLP_REQUIRE(klp_keeper_frame_decode(out->message, size, frame, err));
    if (frame->id != id || (frame->type != KLP_KEEPER_OK && frame->type != KLP_KEEPER_ERROR))
        return klp_fail(err, KELPIE_E_PROTOCOL,
                        "the keeper answered order %llu with a frame of type %u of order %llu",
                        (unsigned long long)id, frame->type, (unsigned long long)frame->id);
    out->fields = frame->fields;
    return KLP_OK;
}

static const char *order_name(uint16_t type)
{
    static const char *const names[] = {
        [KLP_KEEPER_STATUS] = "its status",
        [KLP_KEEPER_SPAWN] = "a start",
        [KLP_KEEPER_LOAD] = "a load",
        [KLP_KEEPER_HOLD] = "a hold",
        [KLP_KEEPER_RELEASE] = "a release",
        [KLP_KEEPER_LEASE] = "a lease",
        [KLP_KEEPER_CAPTURE] = "a capture",
        [KLP_KEEPER_GUEST] = "the guest's stream",
        [KLP_KEEPER_LAYERS] = "its layers",
        [KLP_KEEPER_META] = "a note",
        [KLP_KEEPER_CONSOLE] = "the console",
        [KLP_KEEPER_WATCH] = "a watch",
        [KLP_KEEPER_KILL] = "a kill",
        [KLP_KEEPER_EXIT] = "its exit",
        [KLP_KEEPER_AHEAD] = "room for a capture",
    };
    return type < KLP_COUNT(names) && names[type] != NULL ? names[type] : "an order";
}

/* The order went out, and no answer that can be read came: it may have happened. */
static kelpie_outcome answer_missing(struct kelpie_error *why, struct kelpie_error **err)
{
    kelpie_outcome unknown = klp_unknown(err, "%s", kelpie_error_message(why));
    kelpie_error_free(why);
    return unknown;
}

static kelpie_outcome order_run(const struct kelpie_op *op, struct klp_keeper_client *client,
                                struct order *order, const struct klp_buf *fields,
                                struct klp_keeper_answer *answer, struct kelpie_error **err)
{
    struct klp_chan *chan;
    struct klp_keeper_frame frame;
    struct kelpie_error *why = NULL;
    KLP_TRY(order_send(op, client, order, fields, &chan, err));
    if (!kelpie_is_ok(answer_receive(op, chan, order->id, answer, &frame, &why))) {
        klp_chan_close(chan);
        return answer_missing(why, err);
    }
    if (order->type == KLP_KEEPER_EXIT)
        klp_chan_close(chan); /* the keeper ends */
    else
        chan_give(client, chan);
    return frame.type == KLP_KEEPER_OK ? KLP_OK : error_rebuild(frame.fields, err);
}

kelpie_outcome klp_keeper_ask(const struct kelpie_op *op, struct klp_keeper_client *client,
                              uint16_t type, const struct klp_buf *fields,
                              const struct klp_handle *handles, size_t handle_count,
                              struct klp_keeper_answer *out, struct kelpie_error **err)
{
    struct order order = {.frame = KLP_BUF_INIT(KLP_KEEPER_FRAME_MAX),
                          .type = type,
                          .handles = handles,
                          .handle_count = handle_count};
    struct klp_keeper_answer answer = {.env = client->env,
                                       .message = klp_mem_alloc_raw(KLP_KEEPER_FRAME_MAX)};
    KLP_ASSERT(handle_count <= KLP_KEEPER_HANDLES_MAX);
    kelpie_outcome outcome = {KELPIE_FAIL};
    if (fields == NULL || klp_buf_check(fields, "an order to a keeper", err))
        outcome = order_run(op, client, &order, fields, &answer, err);
    klp_buf_finish(&order.frame);
    if (kelpie_is_ok(outcome) && out != NULL)
        *out = answer;
    else
        klp_keeper_answer_finish(&answer);
    return klp_wrap(err, outcome, "keeper of VM %s: cannot get %s", client->vm, order_name(type));
}

/* ---- status */

bool klp_keeper_status_parse(struct klp_bytes fields, struct klp_keeper_status *out,
                             struct kelpie_error **err)
{
    uint64_t state, holds, pid, keeper_pid, clean;
    *out = (struct klp_keeper_status){0};
    KLP_CHECK(klp_field_u64(fields, KLP_KTAG_STATE, UINT64_MAX, &state, err));
    KLP_CHECK(klp_field_u64(fields, KLP_KTAG_HOLDS, 0, &holds, err));
    KLP_CHECK(klp_field_u64(fields, KLP_KTAG_EPOCH, 0, &out->epoch, err));
    KLP_CHECK(klp_field_u64(fields, KLP_KTAG_FENCE_AT_NS, 0, &out->fence_at_ns, err));
    KLP_CHECK(klp_field_u64(fields, KLP_KTAG_PID, 0, &pid, err));
    KLP_CHECK(klp_field_u64(fields, KLP_KTAG_KEEPER_PID, 0, &keeper_pid, err));
    KLP_CHECK(klp_field_u64(fields, KLP_KTAG_CLEAN, 0, &clean, err));
    if (state > KLP_KEEPER_DEAD || holds > UINT32_MAX || pid > INT32_MAX || keeper_pid > INT32_MAX)
        return klp_refuse(err, KELPIE_E_PROTOCOL, "the keeper tells a status that cannot be");
    out->state = (enum klp_keeper_state)state;
    out->holds = (uint32_t)holds;
    out->pid = (int64_t)pid;
    out->keeper_pid = (int64_t)keeper_pid;
    out->clean = clean != 0;
    text_take(fields, KLP_KTAG_VM, out->vm, sizeof(out->vm));
    text_take(fields, KLP_KTAG_BACKEND, out->backend, sizeof(out->backend));
    text_take(fields, KLP_KTAG_REASON, out->reason, sizeof(out->reason));
    KLP_IGNORE(klp_field_find(fields, KLP_KTAG_MACHINE, &out->machine));
    KLP_IGNORE(klp_field_find(fields, KLP_KTAG_META, &out->meta));
    KLP_IGNORE(klp_field_find(fields, KLP_KTAG_CONSOLE, &out->console));
    return true;
}

/* ---- watching */

static kelpie_outcome watch_begin(const struct kelpie_op *op, struct klp_keeper_client *client,
                                  struct klp_chan *chan, struct kelpie_error **err)
{
    struct order order = {.frame = KLP_BUF_INIT(KLP_KIB), .type = KLP_KEEPER_WATCH, .id = 1};
    struct klp_keeper_frame frame = {0};
    struct klp_keeper_answer answer = {.env = client->env,
                                       .message = klp_mem_alloc_raw(KLP_KEEPER_FRAME_MAX)};
    KLP_ASSERT(frame_make(&order, NULL, NULL));
    kelpie_outcome outcome =
        klp_chan_send(op, chan, order.frame.data, order.frame.size, NULL, 0, err);
    if (kelpie_is_ok(outcome))
        outcome = answer_receive(op, chan, order.id, &answer, &frame, err);
    if (kelpie_is_ok(outcome) && frame.type == KLP_KEEPER_ERROR)
        outcome = error_rebuild(frame.fields, err);
    klp_buf_finish(&order.frame);
    klp_keeper_answer_finish(&answer);
    return outcome;
}

kelpie_outcome klp_keeper_watch(const struct kelpie_op *op, struct klp_keeper_client *client,
                                struct klp_chan **out, struct kelpie_error **err)
{
    KLP_AUTO(chan) struct klp_chan *chan = NULL;
    kelpie_outcome outcome = klp_chan_connect(op, client->dir, KLP_KEEPER_SOCKET, &chan, err);
    if (kelpie_is_ok(outcome))
        outcome = watch_begin(op, client, chan, err);
    if (kelpie_is_ok(outcome))
        *out = KLP_TAKE(&chan);
    return klp_wrap(err, outcome, "keeper of VM %s: cannot watch it", client->vm);
}

kelpie_outcome klp_keeper_event(const struct kelpie_op *op, struct klp_chan *chan, uint8_t *message,
                                struct klp_keeper_status *out, struct kelpie_error **err)
{
    struct klp_keeper_frame frame;
    size_t size, handle_count = 0;
    KLP_TRY(
        klp_chan_receive(op, chan, message, KLP_KEEPER_FRAME_MAX, &size, NULL, &handle_count, err));
    KLP_REQUIRE(klp_keeper_frame_decode(message, size, &frame, err));
    if (frame.type != KLP_KEEPER_EVENT)
        return klp_fail(err, KELPIE_E_PROTOCOL, "the keeper says %u where an event was due",
                        frame.type);
    KLP_REQUIRE(klp_keeper_status_parse(frame.fields, out, err));
    return KLP_OK;
}
