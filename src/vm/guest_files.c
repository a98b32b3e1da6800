/* SPDX-License-Identifier: Apache-2.0 */
/* Streams of bytes between guest and caller: tar archives in and out, and the main process's log.
 * The calling task carries them; what is in them is not looked at here. */
#include <string.h>

#include "base/fmt.h"
#include "vm/session.h"

/* ---- put */

/* OK with *open false: the guest has answered, and takes nothing more. */
static kelpie_outcome piece_send(const struct kelpie_op *op, struct klp_guest *guest,
                                 struct guest_channel *channel, const uint8_t *data, size_t size,
                                 bool *open, struct kelpie_error **err)
{
    size_t at = 0, sent = 0;
    bool end = size == 0;
    do {
        KLP_TRY(guest_channel_send(op, guest, channel, data + at, size - at, end, &sent, err));
        at += sent;
    } while (sent > 0 && at < size);
    *open = at == size && !end;
    return KLP_OK;
}

static kelpie_outcome put_run(const struct kelpie_op *op, struct klp_guest *guest,
                              struct guest_channel *channel,
                              size_t (*input)(void *arg, void *out, size_t capacity), void *arg,
                              struct kelpie_error **err)
{
    uint8_t *bytes = klp_mem_alloc_raw(GUEST_DATA_MAX);
    kelpie_outcome outcome = KLP_OK;
    bool open = true;
    while (open && kelpie_is_ok(outcome)) {
        size_t size = input(arg, bytes, GUEST_DATA_MAX);
        KLP_ASSERT(size <= GUEST_DATA_MAX);
        outcome = piece_send(op, guest, channel, bytes, size, &open, err);
        if (kelpie_is_ok(outcome) && open)
            outcome = klp_op_check(op, "sending files", err);
    }
    klp_mem_free(bytes);
    KLP_TRY(outcome);
    return guest_channel_wait(op, guest, channel, err);
}

static bool path_append(struct klp_buf *body, const char *path, struct kelpie_error **err)
{
    size_t size = path != NULL ? strlen(path) : 0;
    if (size == 0 || size >= KLP_PATH_MAX)
        return klp_refuse(err, KELPIE_E_INVALID, "a path of %zu bytes in the guest", size);
    klp_field_append(body, KLP_TAG_PATH, path, size);
    return klp_buf_check(body, "a path in the guest", err);
}

kelpie_outcome klp_guest_put(const struct kelpie_op *op, struct klp_guest *guest, const char *path,
                             size_t (*input)(void *arg, void *out, size_t capacity), void *arg,
                             struct kelpie_error **err)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(2 * KLP_PATH_MAX);
    struct guest_channel channel = {0};
    KLP_REQUIRE(path_append(&body, path, err));
    kelpie_outcome outcome = guest_channel_open(op, guest, &channel, CHANNEL_PUT, KLP_GUEST_PUT,
                                                KLP_GUEST_CAP_FILES, &body, err);
    if (kelpie_is_ok(outcome))
        outcome = put_run(op, guest, &channel, input, arg, err);
    guest_channel_close(guest, &channel);
    return klp_wrap(err, outcome, "cannot put files into '%.*s'", 200, path);
}

/* ---- get */

static kelpie_outcome get_deliver(const struct kelpie_op *op, struct klp_guest *guest,
                                  struct guest_channel *channel, const struct klp_buf *bytes,
                                  bool gated,
                                  bool (*output)(void *arg, const void *data, size_t size),
                                  void *arg, struct kelpie_error **err)
{
    if (gated)
        KLP_TRY(klp_guest_pass(op, guest, err));
    if (!output(arg, bytes->data, bytes->size))
        return klp_fail(err, KELPIE_E_CANCELLED, "nobody takes its bytes any more");
    return guest_channel_consumed(op, guest, channel, bytes->size, err);
}

/* A checkpoint is for our own store: it passes a closed gate, which a move needs. */
static kelpie_outcome get_run(const struct kelpie_op *op, struct klp_guest *guest,
                              struct guest_channel *channel, bool gated,
                              bool (*output)(void *arg, const void *data, size_t size), void *arg,
                              struct kelpie_error **err)
{
    struct guest_taken taken;
    kelpie_outcome outcome = KLP_OK;
    guest_taken_init(&taken, CHANNEL_GET);
    while (kelpie_is_ok(outcome) && !taken.ended) {
        outcome = guest_channel_take(op, guest, channel, &taken, err);
        if (kelpie_is_ok(outcome) && !taken.ended)
            outcome = get_deliver(op, guest, channel, &taken.bytes[0], gated, output, arg, err);
        else if (kelpie_is_ok(outcome) && gated)
            outcome = klp_guest_pass(op, guest, err);
    }
    guest_taken_finish(&taken);
    return outcome;
}

kelpie_outcome klp_guest_get(const struct kelpie_op *op, struct klp_guest *guest, uint16_t type,
                             const char *path,
                             bool (*output)(void *arg, const void *data, size_t size), void *arg,
                             struct kelpie_error **err)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(2 * KLP_PATH_MAX);
    struct guest_channel channel = {0};
    bool is_get = type == KLP_GUEST_GET;
    KLP_ASSERT(is_get || type == KLP_GUEST_CHECKPOINT);
    KLP_REQUIRE(!is_get || path_append(&body, path, err));
    kelpie_outcome outcome =
        guest_channel_open(op, guest, &channel, CHANNEL_GET, type, KLP_GUEST_CAP_FILES, &body, err);
    if (kelpie_is_ok(outcome))
        outcome = get_run(op, guest, &channel, is_get, output, arg, err);
    guest_channel_close(guest, &channel);
    return is_get ? klp_wrap(err, outcome, "cannot get '%.*s'", 200, path)
                  : klp_wrap(err, outcome, "cannot get the agent's state");
}

/* ---- the main process's log */

struct log_call {
    const struct kelpie_op *op;
    struct klp_guest *guest;
    struct guest_channel channel;
    bool (*output)(void *arg, uint64_t offset, bool is_stderr, const void *data, size_t size);
    void *arg;
};

static kelpie_outcome log_deliver(struct log_call *call, const struct guest_taken *taken,
                                  struct kelpie_error **err)
{
    const struct klp_buf *bytes = &taken->bytes[0];
    size_t at = 0;
    KLP_TRY(klp_guest_pass(call->op, call->guest, err));
    for (size_t i = 0; i < taken->run_count; i++) {
        const struct log_run *run = &taken->runs[i];
        KLP_ASSERT(run->size <= bytes->size - at);
        if (!call->output(call->arg, run->offset, run->is_stderr, bytes->data + at, run->size))
            return klp_fail(err, KELPIE_E_CANCELLED, "nobody takes the log any more");
        at += run->size;
    }
    return guest_channel_consumed(call->op, call->guest, &call->channel, bytes->size, err);
}

static kelpie_outcome log_run(struct log_call *call, struct kelpie_error **err)
{
    struct guest_taken taken;
    kelpie_outcome outcome = KLP_OK;
    guest_taken_init(&taken, CHANNEL_LOG);
    while (kelpie_is_ok(outcome) && !taken.ended) {
        outcome = guest_channel_take(call->op, call->guest, &call->channel, &taken, err);
        if (kelpie_is_ok(outcome))
            outcome = taken.ended ? klp_guest_pass(call->op, call->guest, err)
                                  : log_deliver(call, &taken, err);
    }
    guest_taken_finish(&taken);
    return outcome;
}

kelpie_outcome klp_guest_main_log(const struct kelpie_op *op, struct klp_guest *guest,
                                  uint64_t offset, bool follow,
                                  bool (*output)(void *arg, uint64_t offset, bool is_stderr,
                                                 const void *data, size_t size),
                                  void *arg, struct klp_guest_main *out, struct kelpie_error **err)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(64);
    struct log_call call = {
        .op = op, .guest = guest, .channel = {.log_next = offset}, .output = output, .arg = arg};
    klp_field_append_u64(&body, KLP_TAG_OFFSET, offset);
    klp_field_append_u64(&body, KLP_TAG_FOLLOW, follow ? 1 : 0);
    kelpie_outcome outcome = guest_channel_open(op, guest, &call.channel, CHANNEL_LOG,
                                                KLP_GUEST_MAIN_LOG, KLP_GUEST_CAP_MAIN, &body, err);
    if (kelpie_is_ok(outcome))
        outcome = log_run(&call, err);
    if (kelpie_is_ok(outcome))
        *out = call.channel.main;
    guest_channel_close(guest, &call.channel);
    return klp_wrap(err, outcome, "cannot read the main process's log");
}
