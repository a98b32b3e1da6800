/* SPDX-License-Identifier: Apache-2.0 */
/* A call on a guest: a channel from its opening to its end, whatever is said on it; and the calls
 * that are one question and one answer. Those that carry bytes: guest_exec.c, guest_files.c. */
#include <string.h>

#include "base/fmt.h"
#include "vm/session.h"

/* ---- channels */

static kelpie_outcome may_open(const struct klp_guest *guest, uint64_t cap,
                               struct kelpie_error **err)
{
    if (guest->ended)
        return guest_end_error(guest, err);
    if ((guest->hello.caps & cap) != cap)
        return klp_fail(err, KELPIE_E_UNSUPPORTED, "the guest agent cannot do that");
    if (guest->channel_count >= KLP_EXEC_CHANNELS_MAX)
        return klp_fail(err, KELPIE_E_LIMIT, "%zu calls on the guest are under way, no more may be",
                        guest->channel_count);
    if (guest->next_id == UINT32_MAX)
        return klp_fail(err, KELPIE_E_LIMIT, "the guest session is used up");
    return KLP_OK;
}

static void channel_register(struct klp_guest *guest, struct guest_channel *channel,
                             enum channel_kind kind)
{
    channel->id = guest->next_id++;
    channel->kind = kind;
    channel->cond = klp_cond_create(guest->env);
    channel->send_credit = channel->receive_credit = KLP_GUEST_CREDIT;
    channel->in[0] = channel->in[1] = KLP_BUF_INIT(KLP_GUEST_CREDIT);
    if (kind == CHANNEL_LOG)
        channel->runs = klp_mem_alloc(GUEST_LOG_RUNS_MAX * sizeof(channel->runs[0]));
    uint32_t bit = channel->id % GUEST_CLOSED_WINDOW;
    guest->closed[bit / 8] &= (uint8_t) ~(1u << (bit % 8));
    klp_list_append(&guest->channels, &channel->link);
    guest->channel_count++;
}

kelpie_outcome guest_channel_open(const struct kelpie_op *op, struct klp_guest *guest,
                                  struct guest_channel *channel, enum channel_kind kind,
                                  uint16_t type, uint64_t cap, const struct klp_buf *body,
                                  struct kelpie_error **err)
{
    struct klp_bytes view = body != NULL ? klp_buf_view(body) : (struct klp_bytes){0};
    KLP_REQUIRE(body == NULL || klp_buf_check(body, "a request to the guest", err));
    if (view.size > KLP_FRAME_BODY_MAX)
        return klp_fail(err, KELPIE_E_LIMIT,
                        "a request to the guest takes %zu bytes, at most %u fit", view.size,
                        KLP_FRAME_BODY_MAX);
    klp_mutex_lock(guest->mutex);
    kelpie_outcome outcome = may_open(guest, cap, err);
    if (kelpie_is_ok(outcome)) {
        channel_register(guest, channel, kind);
        guest->users++;
    }
    klp_mutex_unlock(guest->mutex);
    KLP_TRY(outcome);
    return guest_send(op, guest, type, 0, channel->id, view, err);
}

void guest_channel_close(struct klp_guest *guest, struct guest_channel *channel)
{
    if (channel->cond == NULL)
        return; /* it was never opened */
    KLP_LOCKED (guest->mutex) {
        klp_list_remove(&channel->link);
        guest->channel_count--;
        if (!channel->ended) {
            uint32_t bit = channel->id % GUEST_CLOSED_WINDOW;
            guest->closed[bit / 8] |= (uint8_t)(1u << (bit % 8));
            guest_send_now(guest, KLP_GUEST_CLOSE, channel->id, (struct klp_bytes){0});
        }
        guest->users--;
        klp_cond_wake(guest->changed);
    }
    klp_cond_destroy(KLP_TAKE(&channel->cond));
    klp_error_clear(&channel->refusal);
    klp_buf_finish(&channel->in[0]);
    klp_buf_finish(&channel->in[1]);
    klp_mem_free(KLP_TAKE(&channel->runs));
}

/* Held. OK: it ended well. */
static kelpie_outcome channel_result(struct klp_guest *guest, struct guest_channel *channel,
                                     struct kelpie_error **err)
{
    if (channel->refusal != NULL) {
        klp_error_move(err, &channel->refusal);
        return (kelpie_outcome){KELPIE_FAIL};
    }
    return channel->ended ? KLP_OK : guest_end_error(guest, err);
}

static bool channel_is_live(const struct klp_guest *guest, const struct guest_channel *channel)
{
    return !channel->ended && channel->refusal == NULL && !guest->ended;
}

kelpie_outcome guest_channel_wait(const struct kelpie_op *op, struct klp_guest *guest,
                                  struct guest_channel *channel, struct kelpie_error **err)
{
    kelpie_outcome outcome = KLP_OK;
    klp_mutex_lock(guest->mutex);
    while (kelpie_is_ok(outcome) && channel_is_live(guest, channel))
        outcome = klp_cond_wait(op, channel->cond, guest->mutex, err);
    if (kelpie_is_ok(outcome))
        outcome = channel_result(guest, channel, err);
    klp_mutex_unlock(guest->mutex);
    return outcome;
}

/* ---- bytes in and out */

void guest_taken_init(struct guest_taken *taken, enum channel_kind kind)
{
    *taken = (struct guest_taken){
        .bytes = {KLP_BUF_INIT(KLP_GUEST_CREDIT), KLP_BUF_INIT(KLP_GUEST_CREDIT)}};
    if (kind == CHANNEL_LOG)
        taken->runs = klp_mem_alloc(GUEST_LOG_RUNS_MAX * sizeof(taken->runs[0]));
}

void guest_taken_finish(struct guest_taken *taken)
{
    klp_buf_finish(&taken->bytes[0]);
    klp_buf_finish(&taken->bytes[1]);
    klp_mem_free(taken->runs);
}

static void taken_swap(struct guest_channel *channel, struct guest_taken *taken)
{
    for (size_t i = 0; i < 2; i++) {
        struct klp_buf came = channel->in[i];
        klp_buf_clear(&taken->bytes[i]);
        channel->in[i] = taken->bytes[i];
        taken->bytes[i] = came;
    }
    struct log_run *runs = channel->runs;
    channel->runs = taken->runs;
    taken->runs = runs;
    taken->run_count = channel->run_count;
    channel->run_count = 0;
}

kelpie_outcome guest_channel_take(const struct kelpie_op *op, struct klp_guest *guest,
                                  struct guest_channel *channel, struct guest_taken *taken,
                                  struct kelpie_error **err)
{
    kelpie_outcome outcome = KLP_OK;
    klp_mutex_lock(guest->mutex);
    while (kelpie_is_ok(outcome) && channel_is_live(guest, channel) && channel->in[0].size == 0 &&
           channel->in[1].size == 0)
        outcome = klp_cond_wait(op, channel->cond, guest->mutex, err);
    if (kelpie_is_ok(outcome)) {
        taken_swap(channel, taken);
        bool empty = taken->bytes[0].size == 0 && taken->bytes[1].size == 0;
        taken->ended = empty;
        if (empty) /* what came before the end is delivered first */
            outcome = channel_result(guest, channel, err);
    }
    klp_mutex_unlock(guest->mutex);
    return outcome;
}

kelpie_outcome guest_channel_consumed(const struct kelpie_op *op, struct klp_guest *guest,
                                      struct guest_channel *channel, size_t size,
                                      struct kelpie_error **err)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(64);
    bool due = false;
    KLP_LOCKED (guest->mutex) {
        channel->consumed += size;
        due = channel->consumed >= GUEST_GRANT_MIN && channel_is_live(guest, channel);
        if (due) {
            klp_field_append_u64(&body, KLP_TAG_BYTES, channel->consumed);
            channel->receive_credit += channel->consumed;
            channel->consumed = 0;
        }
    }
    return due ? guest_send(op, guest, KLP_GUEST_CREDIT_GRANT, 0, channel->id, klp_buf_view(&body),
                            err)
               : KLP_OK;
}

kelpie_outcome guest_channel_send(const struct kelpie_op *op, struct klp_guest *guest,
                                  struct guest_channel *channel, const void *data, size_t size,
                                  bool end, size_t *sent, struct kelpie_error **err)
{
    kelpie_outcome outcome = KLP_OK;
    bool live;
    *sent = 0;
    klp_mutex_lock(guest->mutex);
    while (kelpie_is_ok(outcome) && channel_is_live(guest, channel) && !channel->over && size > 0 &&
           channel->send_credit == 0)
        outcome = klp_cond_wait(op, channel->cond, guest->mutex, err);
    live = kelpie_is_ok(outcome) && channel_is_live(guest, channel) && !channel->over;
    if (live) {
        *sent = size < GUEST_DATA_MAX ? size : GUEST_DATA_MAX;
        if (*sent > channel->send_credit)
            *sent = (size_t)channel->send_credit;
        channel->send_credit -= *sent;
    }
    klp_mutex_unlock(guest->mutex);
    if (!live)
        return outcome;
    uint8_t flags = end && *sent == size ? KLP_GUEST_FLAG_END : 0;
    return guest_send(op, guest, KLP_GUEST_DATA, flags, channel->id,
                      (struct klp_bytes){data, *sent}, err);
}

/* ---- questions with one answer */

static kelpie_outcome ask(const struct kelpie_op *op, struct klp_guest *guest,
                          struct guest_channel *channel, enum channel_kind kind, uint16_t type,
                          uint64_t cap, const struct klp_buf *body, struct kelpie_error **err)
{
    KLP_TRY(guest_channel_open(op, guest, channel, kind, type, cap, body, err));
    return guest_channel_wait(op, guest, channel, err);
}

static bool texts_append(struct klp_buf *body, uint16_t tag, const char *const *texts, size_t max,
                         const char *what, struct kelpie_error **err)
{
    size_t count = 0;
    for (; texts != NULL && texts[count] != NULL; count++) {
        if (count == max)
            return klp_refuse(err, KELPIE_E_LIMIT, "more than %zu %s", max, what);
        klp_field_append_text(body, tag, texts[count]);
    }
    return true;
}

bool guest_request_fill(struct klp_buf *body, const char *const *argv, const char *const *env,
                        const char *workdir, struct kelpie_error **err)
{
    KLP_CHECK(texts_append(body, KLP_TAG_ARG, argv, KLP_ARGV_MAX, "arguments", err));
    KLP_CHECK(texts_append(body, KLP_TAG_ENV, env, KLP_ENV_MAX, "variables", err));
    if (workdir != NULL)
        klp_field_append_text(body, KLP_TAG_WORKDIR, workdir);
    return klp_buf_check(body, "arguments and environment in one frame", err);
}

kelpie_outcome klp_guest_setup(const struct kelpie_op *op, struct klp_guest *guest,
                               const char *hostname, const char *const *env, const char *workdir,
                               struct kelpie_error **err)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(KLP_FRAME_BODY_MAX);
    struct guest_channel channel = {0};
    if (hostname != NULL)
        klp_field_append_text(&body, KLP_TAG_HOSTNAME, hostname);
    KLP_REQUIRE(guest_request_fill(&body, NULL, env, workdir, err));
    kelpie_outcome outcome =
        ask(op, guest, &channel, CHANNEL_ORDER, KLP_GUEST_SETUP, 0, &body, err);
    guest_channel_close(guest, &channel);
    return klp_wrap(err, outcome, "cannot set the guest up");
}

kelpie_outcome klp_guest_main_start(const struct kelpie_op *op, struct klp_guest *guest,
                                    const char *const *argv, const char *const *env,
                                    const char *workdir, struct kelpie_error **err)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(KLP_FRAME_BODY_MAX);
    struct guest_channel channel = {0};
    KLP_REQUIRE(guest_request_fill(&body, argv, env, workdir, err));
    kelpie_outcome outcome = ask(op, guest, &channel, CHANNEL_START, KLP_GUEST_MAIN_START,
                                 KLP_GUEST_CAP_MAIN, &body, err);
    guest_channel_close(guest, &channel);
    return klp_wrap(err, outcome, "cannot start the main process");
}

kelpie_outcome klp_guest_main_status(const struct kelpie_op *op, struct klp_guest *guest,
                                     struct klp_guest_main *out, struct kelpie_error **err)
{
    struct guest_channel channel = {0};
    kelpie_outcome outcome = ask(op, guest, &channel, CHANNEL_STATUS, KLP_GUEST_MAIN_STATUS,
                                 KLP_GUEST_CAP_MAIN, NULL, err);
    if (kelpie_is_ok(outcome))
        *out = channel.main;
    guest_channel_close(guest, &channel);
    return klp_wrap(err, outcome, "cannot ask for the main process");
}

static const char *order_text(uint16_t type)
{
    switch (type) {
    case KLP_GUEST_FREEZE:
        return "freeze the workload";
    case KLP_GUEST_THAW:
        return "thaw the workload";
    case KLP_GUEST_SHUTDOWN:
        return "shut the guest down";
    default:
        return "hear from the guest";
    }
}

kelpie_outcome klp_guest_order(const struct kelpie_op *op, struct klp_guest *guest, uint16_t type,
                               struct kelpie_error **err)
{
    struct guest_channel channel = {0};
    bool freezes = type == KLP_GUEST_FREEZE || type == KLP_GUEST_THAW;
    KLP_ASSERT(freezes || type == KLP_GUEST_SHUTDOWN || type == KLP_GUEST_PING);
    kelpie_outcome outcome = ask(op, guest, &channel, CHANNEL_ORDER, type,
                                 freezes ? KLP_GUEST_CAP_FREEZE : 0, NULL, err);
    guest_channel_close(guest, &channel);
    return klp_wrap(err, outcome, "cannot %s", order_text(type));
}

kelpie_outcome klp_guest_main_signal(const struct kelpie_op *op, struct klp_guest *guest,
                                     int number, struct kelpie_error **err)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(64);
    klp_field_append_u64(&body, KLP_TAG_SIGNAL, (uint64_t)number);
    KLP_TRY(guest_send(op, guest, KLP_GUEST_SIGNAL, 0, 0, klp_buf_view(&body), err));
    /* A signal has no answer; what comes after it has. */
    return klp_guest_order(op, guest, KLP_GUEST_PING, err);
}

kelpie_outcome klp_guest_unique(const struct kelpie_op *op, struct klp_guest *guest,
                                const struct klp_unique_request *request,
                                struct klp_unique_receipt *out, struct kelpie_error **err)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(KLP_KIB);
    struct guest_channel channel = {.receipt = out};
    *out = (struct klp_unique_receipt){0};
    klp_field_append_u64(&body, KLP_TAG_CASE, request->which);
    klp_field_append(&body, KLP_TAG_GENERATION, request->generation, sizeof(request->generation));
    klp_field_append(&body, KLP_TAG_ENTROPY, request->entropy, sizeof(request->entropy));
    klp_field_append_u64(&body, KLP_TAG_WALL_NS, (uint64_t)request->wall_ns);
    klp_field_append_text(&body, KLP_TAG_HOSTNAME, request->hostname);
    klp_field_append(&body, KLP_TAG_MACHINE_ID, request->machine_id, sizeof(request->machine_id));
    klp_field_append(&body, KLP_TAG_BOOT_ID, request->boot_id, sizeof(request->boot_id));
    kelpie_outcome outcome =
        ask(op, guest, &channel, CHANNEL_UNIQUE, KLP_GUEST_UNIQUE, 0, &body, err);
    guest_channel_close(guest, &channel);
    return klp_wrap(err, outcome, "cannot make the guest unique");
}
