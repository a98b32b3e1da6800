/* SPDX-License-Identifier: Apache-2.0 */
/* What a frame of the guest does to its channel. The guest is not trusted: an answer nobody asked
 * for, one after the end, more bytes than its credit, a field that cannot be: each ends the
 * session. A type that a newer guest may know ends its channel only. */
#include <string.h>

#include "base/fmt.h"
#include "vm/session.h"

#define CREDIT_MAX (1ull << 40) /* bytes; a sum nobody grants, and far from wrapping */
#define SIGNAL_NUMBER_MAX 127
#define LOG_END_MAX (1ull << 62)

static bool breach(const struct klp_guest_frame *frame, struct kelpie_error **err, const char *why)
{
    return klp_refuse(err, KELPIE_E_PROTOCOL, "frame of type %u on channel %u: %s", frame->type,
                      frame->channel, why);
}

/* ---- fields */

static void text_copy_clean(struct klp_bytes text, char *out, size_t capacity)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf clean = KLP_BUF_INIT(8 * GUEST_TEXT_MAX);
    size_t size = text.size < GUEST_TEXT_MAX ? text.size : GUEST_TEXT_MAX;
    klp_text_escape(&clean, text.data, size);
    klp_format(out, capacity, "%s", klp_buf_text(&clean));
}

bool guest_status_parse(struct klp_bytes body, struct kelpie_exec_status *out,
                        struct kelpie_error **err)
{
    uint64_t code, number, timed_out;
    KLP_CHECK(klp_field_u64(body, KLP_TAG_CODE, UINT64_MAX, &code, err));
    KLP_CHECK(klp_field_u64(body, KLP_TAG_SIGNAL, 0, &number, err));
    KLP_CHECK(klp_field_u64(body, KLP_TAG_TIMED_OUT, 0, &timed_out, err));
    if (number > SIGNAL_NUMBER_MAX || timed_out > 1 || (number == 0 && code > 255))
        return klp_refuse(err, KELPIE_E_PROTOCOL, "an exit status that cannot be");
    *out = (struct kelpie_exec_status){.signal = (int32_t)number, .timed_out = timed_out == 1};
    out->exit_code = number != 0 ? 128 + (int32_t)number : (int32_t)code;
    return true;
}

static bool main_parse(struct klp_bytes body, struct klp_guest_main *out, struct kelpie_error **err)
{
    uint64_t state, code, number, start, end;
    KLP_CHECK(klp_field_u64(body, KLP_TAG_MAIN_STATE, UINT64_MAX, &state, err));
    KLP_CHECK(klp_field_u64(body, KLP_TAG_CODE, 0, &code, err));
    KLP_CHECK(klp_field_u64(body, KLP_TAG_SIGNAL, 0, &number, err));
    KLP_CHECK(klp_field_u64(body, KLP_TAG_OFFSET, 0, &start, err));
    KLP_CHECK(klp_field_u64(body, KLP_TAG_BYTES, 0, &end, err));
    if (state > KLP_MAIN_EXITED || number > SIGNAL_NUMBER_MAX || (number == 0 && code > 255) ||
        start > end || end > LOG_END_MAX)
        return klp_refuse(err, KELPIE_E_PROTOCOL, "a main process that cannot be");
    *out = (struct klp_guest_main){.state = (enum klp_main_state)state,
                                   .exit_code = number != 0 ? 128 + (int32_t)number : (int32_t)code,
                                   .signal = (int32_t)number,
                                   .log_start = start,
                                   .log_end = end};
    return true;
}

bool guest_hello_parse(struct klp_bytes body, struct klp_guest_hello *out,
                       struct kelpie_error **err)
{
    uint64_t version, state;
    struct klp_bytes arch = {0}, generation;
    *out = (struct klp_guest_hello){0};
    KLP_CHECK(klp_field_u64(body, KLP_TAG_VERSION, 0, &version, err));
    KLP_CHECK(klp_field_u64(body, KLP_TAG_CAPS, 0, &out->caps, err));
    KLP_CHECK(klp_field_u64(body, KLP_TAG_MAIN_STATE, 0, &state, err));
    if (version != KLP_GUEST_VERSION)
        return klp_refuse(err, KELPIE_E_PROTOCOL, "it speaks version %llu of it",
                          (unsigned long long)version);
    if (state > KLP_MAIN_EXITED)
        return klp_refuse(err, KELPIE_E_PROTOCOL, "it greets with state %llu",
                          (unsigned long long)state);
    out->main_state = (enum klp_main_state)state;
    if (klp_field_find(body, KLP_TAG_ARCH, &arch)) {
        arch.size = arch.size < sizeof(out->arch) ? arch.size : sizeof(out->arch) - 1;
        text_copy_clean(arch, out->arch, sizeof(out->arch));
    }
    if (klp_field_find(body, KLP_TAG_GENERATION, &generation)) {
        if (generation.size != sizeof(out->generation))
            return klp_refuse(err, KELPIE_E_PROTOCOL, "it greets with a generation of %zu bytes",
                              generation.size);
        memcpy(out->generation, generation.data, generation.size);
        out->has_generation = true;
    }
    return true;
}

/* Codes a guest may answer with. All others would be taken for ours. */
static enum kelpie_code guest_code(struct klp_bytes name)
{
    static const enum kelpie_code allowed[] = {
        KELPIE_E_INVALID,  KELPIE_E_NOT_FOUND,      KELPIE_E_STATE,      KELPIE_E_EXISTS,
        KELPIE_E_BUSY,     KELPIE_E_UNSUPPORTED,    KELPIE_E_DENIED,     KELPIE_E_LIMIT,
        KELPIE_E_NO_SPACE, KELPIE_E_NO_MEMORY,      KELPIE_E_CORRUPT,    KELPIE_E_TIMEOUT,
        KELPIE_E_PROTOCOL, KELPIE_E_NOT_EXECUTABLE, KELPIE_E_NO_COMMAND, KELPIE_E_IO,
    };
    for (size_t i = 0; i < KLP_COUNT(allowed); i++) {
        const char *known = kelpie_code_name(allowed[i]);
        if (name.size == strlen(known) && memcmp(name.data, known, name.size) == 0)
            return allowed[i];
    }
    return KELPIE_E_INTERNAL;
}

static struct kelpie_error *refusal_of(struct klp_bytes body)
{
    char text[2 * GUEST_TEXT_MAX] = "it gives no reason";
    struct klp_bytes name = {0}, given;
    struct kelpie_error *refusal = NULL;
    KLP_IGNORE(klp_field_find(body, KLP_TAG_ERROR, &name));
    if (klp_field_find(body, KLP_TAG_TEXT, &given) && given.size > 0)
        text_copy_clean(given, text, sizeof(text));
    KLP_IGNORE(klp_refuse(&refusal, guest_code(name), "%s", text));
    return refusal;
}

/* ---- ends */

static void channel_end(struct guest_channel *channel)
{
    channel->ended = true;
    klp_cond_wake(channel->cond);
}

static bool exit_take(struct guest_channel *channel, const struct klp_guest_frame *frame,
                      struct kelpie_error **err)
{
    if (channel->kind != CHANNEL_EXEC && channel->kind != CHANNEL_LOG)
        return breach(frame, err, "nothing there can exit");
    KLP_CHECK(guest_status_parse(frame->body, &channel->status, err));
    if (channel->kind == CHANNEL_LOG) {
        channel->main.state = KLP_MAIN_EXITED;
        channel->main.exit_code = channel->status.exit_code;
        channel->main.signal = channel->status.signal;
    }
    channel_end(channel);
    return true;
}

static bool done_take(struct guest_channel *channel, const struct klp_guest_frame *frame,
                      struct kelpie_error **err)
{
    bool expected = channel->kind == CHANNEL_PUT || channel->kind == CHANNEL_GET ||
                    channel->kind == CHANNEL_ORDER || channel->kind == CHANNEL_LOG;
    if (!expected)
        return breach(frame, err, "DONE is no answer there");
    channel_end(channel);
    return true;
}

static bool started_take(struct guest_channel *channel, const struct klp_guest_frame *frame,
                         struct kelpie_error **err)
{
    bool expected = channel->kind == CHANNEL_START || channel->kind == CHANNEL_EXEC;
    if (!expected || channel->started)
        return breach(frame, err, "nothing was to start there");
    channel->started = true;
    if (channel->kind == CHANNEL_START)
        channel_end(channel);
    return true;
}

static bool main_take(struct guest_channel *channel, const struct klp_guest_frame *frame,
                      struct kelpie_error **err)
{
    if (channel->kind != CHANNEL_STATUS && channel->kind != CHANNEL_LOG)
        return breach(frame, err, "nobody asked for the main process");
    KLP_CHECK(main_parse(frame->body, &channel->main, err));
    channel->has_main = true;
    /* A reader that fell behind goes on where the log still begins. */
    if (channel->log_next < channel->main.log_start)
        channel->log_next = channel->main.log_start;
    if (channel->kind == CHANNEL_STATUS)
        channel_end(channel);
    return true;
}

static bool item_take(struct klp_unique_receipt *receipt, struct klp_bytes data,
                      struct kelpie_error **err)
{
    struct klp_reader reader = {.data = data.data, .size = data.size};
    uint16_t item = klp_read_u16(&reader), result = klp_read_u16(&reader);
    size_t size = klp_read_left(&reader);
    bool fits = !reader.failed && size <= sizeof(receipt->items[0].evidence) &&
                result >= KLP_UNIQUE_DONE && result <= KLP_UNIQUE_FAILED;
    if (!fits)
        return klp_refuse(err, KELPIE_E_PROTOCOL, "an item of a receipt that cannot be");
    if (item == 0 || item >= KLP_ITEM_COUNT)
        return true; /* of a newer guest */
    if (receipt->items[item].result != 0)
        receipt->duplicate = true;
    receipt->items[item].result = result;
    receipt->items[item].evidence_size = (uint16_t)size;
    if (size > 0)
        memcpy(receipt->items[item].evidence, klp_read_bytes(&reader, size), size);
    return true;
}

static bool receipt_take(struct guest_channel *channel, const struct klp_guest_frame *frame,
                         struct kelpie_error **err)
{
    struct klp_field field;
    size_t at = 0;
    int got;
    if (channel->kind != CHANNEL_UNIQUE)
        return breach(frame, err, "nobody asked for a receipt");
    while ((got = klp_field_next(frame->body, &at, &field, err)) > 0) {
        if (field.tag == KLP_TAG_ITEM)
            KLP_CHECK(item_take(channel->receipt, field.data, err));
    }
    if (got == 0)
        channel_end(channel);
    return got == 0;
}

/* ---- bytes */

/* When there are more changes between the streams than we remember, the stream of some bytes is
 * forgotten, not the bytes. */
static bool run_add(struct guest_channel *channel, const struct klp_guest_frame *frame,
                    struct kelpie_error **err)
{
    KLP_ASSERT(channel->runs != NULL); /* as long as it is a log's */
    bool is_stderr = (frame->flags & KLP_GUEST_FLAG_STDERR) != 0;
    struct log_run *last = channel->run_count > 0 ? &channel->runs[channel->run_count - 1] : NULL;
    bool goes_on = last != NULL && last->offset + last->size == channel->log_next;
    bool full = channel->run_count == GUEST_LOG_RUNS_MAX;
    if (full && !goes_on)
        return breach(frame, err, "a log of more gaps than can be");
    if (goes_on && (last->is_stderr == is_stderr || full))
        last->size += frame->body.size;
    else
        channel->runs[channel->run_count++] =
            (struct log_run){channel->log_next, frame->body.size, is_stderr};
    channel->log_next += frame->body.size;
    return true;
}

static bool data_take(struct guest_channel *channel, const struct klp_guest_frame *frame,
                      struct kelpie_error **err)
{
    bool is_stderr = (frame->flags & KLP_GUEST_FLAG_STDERR) != 0;
    bool may_have_stderr = channel->kind == CHANNEL_EXEC || channel->kind == CHANNEL_LOG;
    if (!may_have_stderr && (channel->kind != CHANNEL_GET || is_stderr))
        return breach(frame, err, "nobody asked for bytes");
    size_t which = is_stderr && channel->kind == CHANNEL_EXEC ? 1 : 0;
    if (channel->stream_ended[which])
        return breach(frame, err, "bytes after their end");
    if (frame->body.size > channel->receive_credit)
        return breach(frame, err, "more bytes than its credit");
    if (channel->kind == CHANNEL_LOG && frame->body.size > 0)
        KLP_CHECK(run_add(channel, frame, err));
    channel->receive_credit -= frame->body.size;
    klp_buf_append(&channel->in[which], frame->body.data, frame->body.size);
    KLP_CHECK(klp_buf_check(&channel->in[which], "output of the guest", err));
    if (channel->kind != CHANNEL_LOG)
        channel->stream_ended[which] = (frame->flags & KLP_GUEST_FLAG_END) != 0;
    klp_cond_wake(channel->cond);
    return true;
}

static bool credit_take(struct guest_channel *channel, const struct klp_guest_frame *frame,
                        struct kelpie_error **err)
{
    uint64_t bytes;
    if (channel->kind != CHANNEL_EXEC && channel->kind != CHANNEL_PUT)
        return breach(frame, err, "nothing is sent there");
    KLP_CHECK(klp_field_u64(frame->body, KLP_TAG_BYTES, 0, &bytes, err));
    if (bytes > CREDIT_MAX || channel->send_credit > CREDIT_MAX)
        return breach(frame, err, "a credit that cannot be");
    channel->send_credit += bytes;
    klp_cond_wake(channel->cond);
    return true;
}

/* ---- whose is it? */

static bool was_closed_by_us(const struct klp_guest *guest, uint32_t id)
{
    if (id >= guest->next_id || id == 0)
        return false;
    if (guest->next_id - id > GUEST_CLOSED_WINDOW)
        return true; /* too long ago to tell */
    uint32_t bit = id % GUEST_CLOSED_WINDOW;
    return (guest->closed[bit / 8] >> (bit % 8) & 1) != 0;
}

/* Frames of no channel: the greeting's repetitions, and complaints. */
static bool session_frame_take(const struct klp_guest_frame *frame, struct kelpie_error **err)
{
    bool of_a_channel = (frame->type >= KLP_GUEST_STARTED && frame->type <= KLP_GUEST_MAIN) ||
                        frame->type == KLP_GUEST_DATA || frame->type == KLP_GUEST_CREDIT_GRANT;
    if (frame->type == KLP_GUEST_ERROR) {
        KLP_AUTO(kelpie_error) struct kelpie_error *refusal = refusal_of(frame->body);
        return klp_refuse(err, KELPIE_E_PROTOCOL, "it gave the session up: %s",
                          kelpie_error_message(refusal));
    }
    return !of_a_channel || breach(frame, err, "it is the session's own");
}

static struct guest_channel *channel_find(struct klp_guest *guest, uint32_t id)
{
    KLP_LIST_EACH (item, &guest->channels) {
        struct guest_channel *channel = KLP_CONTAINER(item, struct guest_channel, link);
        if (channel->id == id)
            return channel;
    }
    return NULL;
}

static bool channel_frame_take(struct guest_channel *channel, const struct klp_guest_frame *frame,
                               struct kelpie_error **err)
{
    switch (frame->type) {
    case KLP_GUEST_DATA:
        return data_take(channel, frame, err);
    case KLP_GUEST_CREDIT_GRANT:
        return credit_take(channel, frame, err);
    case KLP_GUEST_STARTED:
        return started_take(channel, frame, err);
    case KLP_GUEST_EXIT:
        return exit_take(channel, frame, err);
    case KLP_GUEST_DONE:
        return done_take(channel, frame, err);
    case KLP_GUEST_RECEIPT:
        return receipt_take(channel, frame, err);
    case KLP_GUEST_MAIN:
        return main_take(channel, frame, err);
    case KLP_GUEST_ERROR:
        channel->refusal = refusal_of(frame->body);
        channel_end(channel);
        return true;
    default:
        break;
    }
    /* Not ours to judge; but without what it says the call cannot go on. */
    KLP_IGNORE(breach(frame, &channel->refusal, "an unknown type"));
    klp_cond_wake(channel->cond);
    return true;
}

bool guest_frame_take(struct klp_guest *guest, const struct klp_guest_frame *frame,
                      struct kelpie_error **err)
{
    if (frame->flags != 0 && frame->type != KLP_GUEST_DATA)
        return breach(frame, err, "it has the flags of bytes");
    if (frame->channel == 0)
        return session_frame_take(frame, err);
    struct guest_channel *channel = channel_find(guest, frame->channel);
    if (channel == NULL && was_closed_by_us(guest, frame->channel))
        return true;
    if (channel == NULL)
        return breach(frame, err, "the channel is not open");
    if (channel->ended)
        return breach(frame, err, "the channel has ended");
    if (channel->refusal != NULL)
        return true; /* about to be closed by us */
    return channel_frame_take(channel, frame, err);
}
