/* SPDX-License-Identifier: Apache-2.0 */
/* Session, channels, credit, and time. */
#include "vm/mock/engine.h"

#include <string.h>

#include "base/fmt.h"

#define MAGIC 0x314b434f4d504c4bull /* "KLPMOCK1" */
#define OUT_MAX (4 * KLP_MIB)
#define CREDIT_MAX (1u << 30) /* bytes; a host that grants more is not believed */

uint8_t *mock_file_area(struct mock_engine *engine, uint64_t *out_size)
{
    uint64_t begin = sizeof(struct mock_state), end = engine->memory_size / 4;
    *out_size = end > begin ? end - begin : 0;
    return (uint8_t *)engine->state + begin;
}

uint8_t *mock_fill_area(struct mock_engine *engine, uint64_t *out_size)
{
    *out_size = engine->memory_size / 2;
    return (uint8_t *)engine->state + engine->memory_size / 2;
}

bool mock_text_ends(const char *text, size_t capacity)
{
    for (size_t i = 0; i < capacity; i++)
        if (text[i] == 0)
            return true;
    return false;
}

/* A snapshot comes from anywhere: what would lead us out of its memory is not followed. */
static bool state_is_sound(struct mock_engine *engine)
{
    const struct mock_state *state = engine->state;
    uint64_t fill_size;
    mock_fill_area(engine, &fill_size);
    return mock_text_ends(state->hostname, sizeof(state->hostname)) &&
           mock_text_ends(state->workdir, sizeof(state->workdir)) &&
           state->env_size <= MOCK_ENV_SIZE &&
           (state->env_size == 0 || state->env[state->env_size - 1] == 0) &&
           state->main_state <= KLP_MAIN_EXITED && state->frozen <= 1 &&
           state->fill_pages <= fill_size / engine->page_size && mock_files_are_sound(engine);
}

void mock_engine_init(struct mock_engine *engine, void *memory, uint64_t memory_size,
                      uint64_t page_size, const char *arch, const uint8_t seed[32])
{
    KLP_ASSERT(memory_size / 4 > sizeof(struct mock_state));
    *engine =
        (struct mock_engine){.state = memory,
                             .memory_size = memory_size,
                             .page_size = page_size,
                             .mib = KLP_MIB,
                             .in = KLP_BUF_INIT(2 * (KLP_FRAME_BODY_MAX + KLP_GUEST_HEADER_SIZE)),
                             .out = KLP_BUF_INIT(OUT_MAX),
                             .arch = arch};
    struct mock_state *state = engine->state;
    if (state->magic == MAGIC) {
        engine->crashed = !state_is_sound(engine);
        if (engine->crashed)
            klp_text_copy(engine->console, sizeof(engine->console),
                          "mock guest: its memory is damaged");
        return;
    }
    state->magic = MAGIC;
    memcpy(state->rng, seed, sizeof(state->rng));
    memcpy(state->machine_id, seed, 16);
    memcpy(state->boot_id, seed + 16, 16);
    klp_text_copy(state->hostname, sizeof(state->hostname), "mock");
    klp_text_copy(state->workdir, sizeof(state->workdir), "/");
}

void mock_channel_close(struct mock_channel *channel)
{
    klp_mem_free(channel->path);
    klp_buf_finish(&channel->out);
    klp_tar_reader_destroy(channel->tar);
    *channel = (struct mock_channel){.kind = MOCK_FREE};
}

void mock_engine_hangup(struct mock_engine *engine)
{
    for (size_t i = 0; i < MOCK_CHANNELS_MAX; i++)
        mock_channel_close(&engine->channels[i]);
    klp_buf_clear(&engine->in);
    klp_buf_clear(&engine->out);
    engine->in_session = false;
}

void mock_engine_finish(struct mock_engine *engine)
{
    mock_engine_hangup(engine);
    klp_buf_finish(&engine->in);
    klp_buf_finish(&engine->out);
}

/* Ends it by a signal: what it would still have said it does not say. */
static void exec_kill(struct mock_channel *channel, int32_t signal)
{
    channel->ended = true;
    channel->flood_left = 0;
    channel->sends = false;
    channel->signal = signal;
}

static struct mock_channel *channel_find(struct mock_engine *engine, uint32_t id)
{
    for (size_t i = 0; i < MOCK_CHANNELS_MAX; i++)
        if (engine->channels[i].kind != MOCK_FREE && engine->channels[i].id == id)
            return &engine->channels[i];
    return NULL;
}

struct mock_channel *mock_channel_open(struct mock_engine *engine, uint32_t id,
                                       enum mock_channel_kind kind)
{
    if (id == 0 || channel_find(engine, id) != NULL)
        return NULL;
    for (size_t i = 0; i < MOCK_CHANNELS_MAX; i++) {
        struct mock_channel *channel = &engine->channels[i];
        if (channel->kind != MOCK_FREE)
            continue;
        *channel = (struct mock_channel){.kind = kind,
                                         .id = id,
                                         .credit = KLP_GUEST_CREDIT,
                                         .out = KLP_BUF_INIT(OUT_MAX),
                                         .ends_in_ms = -1,
                                         .timeout_in_ms = -1};
        return channel;
    }
    mock_error(engine, id, KELPIE_E_LIMIT, "too many channels");
    return NULL;
}

void mock_frame(struct mock_engine *engine, uint16_t type, uint8_t flags, uint32_t channel,
                const struct klp_buf *fields)
{
    klp_guest_frame_append(&engine->out, type, flags, channel,
                           fields != NULL ? klp_buf_view(fields) : (struct klp_bytes){NULL, 0});
}

void mock_error(struct mock_engine *engine, uint32_t channel, enum kelpie_code code,
                const char *text)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf fields = KLP_BUF_INIT(KLP_FRAME_BODY_MAX);
    klp_field_append_text(&fields, KLP_TAG_ERROR, kelpie_code_name(code));
    klp_field_append_text(&fields, KLP_TAG_TEXT, text);
    mock_frame(engine, KLP_GUEST_ERROR, 0, channel, &fields);
}

void mock_done(struct mock_engine *engine, uint32_t channel)
{
    mock_frame(engine, KLP_GUEST_DONE, 0, channel, NULL);
}

bool mock_argv(struct klp_bytes body, struct klp_buf *bytes, const char *argv[64])
{
    size_t at = 0, count = 0, offsets[64];
    struct klp_field field;
    while (klp_field_next(body, &at, &field, NULL) == 1) {
        if (field.tag != KLP_TAG_ARG)
            continue;
        if (count == 63)
            return false;
        offsets[count++] = bytes->size;
        klp_buf_append(bytes, field.data.data, field.data.size);
        klp_buf_append_u8(bytes, 0);
    }
    for (size_t i = 0; i < count; i++)
        argv[i] = (const char *)bytes->data + offsets[i];
    argv[count] = NULL;
    return count > 0 && !bytes->over_limit && !bytes->no_memory;
}

/* ---- requests */

static void hello(struct mock_engine *engine, const struct klp_guest_frame *frame)
{
    struct mock_state *state = engine->state;
    struct klp_bytes nonce;
    if (!klp_field_find(frame->body, KLP_TAG_NONCE, &nonce) || nonce.size > 64)
        return;
    for (size_t i = 0; i < MOCK_CHANNELS_MAX; i++)
        mock_channel_close(&engine->channels[i]);
    engine->in_session = true;
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf fields = KLP_BUF_INIT(KLP_KIB);
    klp_field_append(&fields, KLP_TAG_NONCE, nonce.data, nonce.size); /* opaque to us */
    klp_field_append_u64(&fields, KLP_TAG_VERSION, KLP_GUEST_VERSION);
    klp_field_append_u64(&fields, KLP_TAG_CAPS,
                         KLP_GUEST_CAP_EXEC | KLP_GUEST_CAP_FILES | KLP_GUEST_CAP_RESEED |
                             KLP_GUEST_CAP_FREEZE | KLP_GUEST_CAP_MAIN | KLP_GUEST_CAP_CLOCK |
                             KLP_GUEST_CAP_IDENTITY);
    klp_field_append_text(&fields, KLP_TAG_ARCH, engine->arch);
    if (state->has_generation)
        klp_field_append(&fields, KLP_TAG_GENERATION, state->generation, sizeof(state->generation));
    klp_field_append_u64(&fields, KLP_TAG_MAIN_STATE, state->main_state);
    mock_frame(engine, KLP_GUEST_HELLO_ACK, 0, 0, &fields);
}

static void setup(struct mock_engine *engine, const struct klp_guest_frame *frame)
{
    struct mock_state *state = engine->state;
    struct klp_bytes value;
    struct klp_field field;
    size_t at = 0;
    if (klp_field_find(frame->body, KLP_TAG_HOSTNAME, &value) &&
        value.size < sizeof(state->hostname))
        klp_format(state->hostname, sizeof(state->hostname), "%.*s", (int)value.size,
                   (const char *)value.data);
    if (klp_field_find(frame->body, KLP_TAG_WORKDIR, &value) && value.size < sizeof(state->workdir))
        klp_format(state->workdir, sizeof(state->workdir), "%.*s", (int)value.size,
                   (const char *)value.data);
    state->env_size = 0;
    size_t count = 0;
    while (klp_field_next(frame->body, &at, &field, NULL) == 1) {
        if (field.tag != KLP_TAG_ENV)
            continue;
        if (field.data.size + 1 > MOCK_ENV_SIZE - state->env_size || ++count > MOCK_ENV_MAX) {
            mock_error(engine, frame->channel, KELPIE_E_LIMIT, "the environment does not fit");
            return;
        }
        memcpy(state->env + state->env_size, field.data.data, field.data.size);
        state->env_size += (uint32_t)field.data.size;
        state->env[state->env_size++] = 0;
    }
    mock_done(engine, frame->channel);
}

/* What by default ends nothing; nothing here can be stopped. */
static bool signal_is_idle(uint64_t number)
{
    return number == 17 || number == 18 || (number >= 19 && number <= 23) || number == 28;
}

static void signal_take(struct mock_engine *engine, const struct klp_guest_frame *frame)
{
    uint64_t number;
    if (!klp_field_u64(frame->body, KLP_TAG_SIGNAL, 0, &number, NULL) || number == 0 ||
        number > 64 || signal_is_idle(number))
        return;
    struct mock_channel *channel = channel_find(engine, frame->channel);
    if (frame->channel == 0)
        mock_main_signal(engine, (int)number);
    else if (channel != NULL && channel->kind == MOCK_EXEC && !channel->ended)
        exec_kill(channel, (int32_t)number);
}

static void credit_give(struct mock_engine *engine, const struct mock_channel *channel,
                        uint64_t bytes)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf fields = KLP_BUF_INIT(64);
    klp_field_append_u64(&fields, KLP_TAG_BYTES, bytes);
    mock_frame(engine, KLP_GUEST_CREDIT_GRANT, 0, channel->id, &fields);
}

/* What it reads comes back out: the host may send more when that much has left. */
static void echo_take(struct mock_engine *engine, struct mock_channel *channel,
                      struct klp_bytes data, bool end)
{
    if (data.size > KLP_GUEST_CREDIT - (channel->out.size - channel->out_at)) {
        mock_error(engine, channel->id, KELPIE_E_PROTOCOL, "more input than there was credit for");
        mock_channel_close(channel);
        return;
    }
    klp_buf_append(&channel->out, data.data, data.size);
    if (end) {
        channel->reads_input = false;
        channel->ended = true;
    }
}

static void data_take(struct mock_engine *engine, const struct klp_guest_frame *frame)
{
    struct mock_channel *channel = channel_find(engine, frame->channel);
    bool end = (frame->flags & KLP_GUEST_FLAG_END) != 0;
    if (channel == NULL)
        return;
    if (channel->kind == MOCK_EXEC && channel->reads_input) {
        echo_take(engine, channel, frame->body, end);
        return;
    }
    if (frame->body.size > 0) /* taken at once */
        credit_give(engine, channel, frame->body.size);
    if (channel->kind == MOCK_PUT)
        mock_put_data(engine, channel, frame->body, end);
}

static void credit_take(struct mock_engine *engine, const struct klp_guest_frame *frame)
{
    struct mock_channel *channel = channel_find(engine, frame->channel);
    uint64_t bytes;
    if (channel != NULL && klp_field_u64(frame->body, KLP_TAG_BYTES, 0, &bytes, NULL) &&
        bytes < CREDIT_MAX && channel->credit < CREDIT_MAX)
        channel->credit += bytes;
}

static void frame_take(struct mock_engine *engine, const struct klp_guest_frame *frame,
                       int64_t wall_ns)
{
    if (frame->type == KLP_GUEST_HELLO) {
        hello(engine, frame);
        return;
    }
    if (!engine->in_session)
        return;
    switch (frame->type) {
    case KLP_GUEST_EXEC:
        mock_exec(engine, frame);
        return;
    case KLP_GUEST_SIGNAL:
        signal_take(engine, frame);
        return;
    case KLP_GUEST_RESIZE:
        return;
    case KLP_GUEST_CLOSE:
        if (channel_find(engine, frame->channel) != NULL)
            mock_channel_close(channel_find(engine, frame->channel));
        return;
    case KLP_GUEST_PUT:
        mock_put_begin(engine, frame);
        return;
    case KLP_GUEST_GET:
    case KLP_GUEST_CHECKPOINT:
        mock_get_begin(engine, frame, frame->type == KLP_GUEST_CHECKPOINT);
        return;
    case KLP_GUEST_SETUP:
        setup(engine, frame);
        return;
    case KLP_GUEST_MAIN_START:
        mock_main_start(engine, frame);
        return;
    case KLP_GUEST_MAIN_STATUS:
        mock_main_frame(engine, frame->channel);
        return;
    case KLP_GUEST_MAIN_LOG:
        mock_main_log(engine, frame);
        return;
    case KLP_GUEST_FREEZE:
    case KLP_GUEST_THAW:
        engine->state->frozen = frame->type == KLP_GUEST_FREEZE;
        mock_done(engine, frame->channel);
        return;
    case KLP_GUEST_UNIQUE:
        mock_unique(engine, frame, wall_ns);
        return;
    case KLP_GUEST_SHUTDOWN:
        mock_done(engine, frame->channel);
        engine->powered_off = true;
        return;
    case KLP_GUEST_PING:
        mock_done(engine, frame->channel);
        return;
    case KLP_GUEST_DATA:
        data_take(engine, frame);
        return;
    case KLP_GUEST_CREDIT_GRANT:
        credit_take(engine, frame);
        return;
    default:
        mock_error(engine, frame->channel, KELPIE_E_PROTOCOL, "no such request");
    }
}

bool mock_engine_takes(const struct mock_engine *engine, size_t size)
{
    return size <= engine->in.size_max - engine->in.size;
}

void mock_engine_input(struct mock_engine *engine, const void *bytes, size_t size)
{
    klp_buf_append(&engine->in, bytes, size);
    if (engine->in.over_limit) /* nobody asked mock_engine_takes: the session is out of step */
        klp_buf_clear(&engine->in);
}

static void frames_take(struct mock_engine *engine, int64_t wall_ns)
{
    size_t at = 0;
    while (at < engine->in.size && engine->out.size < OUT_MAX / 2) {
        struct klp_guest_frame frame;
        int size = klp_guest_frame_next(engine->in.data + at, engine->in.size - at, &frame, NULL);
        if (size == 0)
            break;
        if (size > 0)
            frame_take(engine, &frame, wall_ns);
        at += size > 0 ? (size_t)size : 1; /* garbage: look for the next frame a byte further */
    }
    klp_buf_drop_front(&engine->in, at);
}

/* ---- time */

static void channel_send(struct mock_engine *engine, struct mock_channel *channel)
{
    while (channel->out_at < channel->out.size && channel->credit > 0 &&
           engine->out.size < OUT_MAX / 2) {
        size_t size = channel->out.size - channel->out_at;
        size = size < channel->credit ? size : (size_t)channel->credit;
        size = size < KLP_FRAME_BODY_MAX ? size : KLP_FRAME_BODY_MAX;
        klp_guest_frame_append(&engine->out, KLP_GUEST_DATA,
                               channel->out_is_stderr ? KLP_GUEST_FLAG_STDERR : 0, channel->id,
                               (struct klp_bytes){channel->out.data + channel->out_at, size});
        channel->out_at += size;
        channel->credit -= size;
        if (channel->echoes && channel->reads_input)
            credit_give(engine, channel, size);
    }
    if (channel->out_at == channel->out.size) {
        klp_buf_clear(&channel->out);
        channel->out_at = 0;
    }
}

static void flood_make(struct mock_channel *channel)
{
    while (channel->flood_left > 0 && channel->out.size < KLP_FRAME_BODY_MAX) {
        klp_buf_append_u8(&channel->out, (uint8_t)(channel->flood_at++ % 251));
        channel->flood_left--;
    }
    if (channel->kind == MOCK_EXEC && channel->word.kind == KLP_WORD_FLOOD &&
        channel->flood_left == 0)
        channel->ended = true;
}

void mock_channel_make(struct mock_engine *engine, struct mock_channel *channel)
{
    if (channel->sends)
        mock_files_make(engine, channel);
    flood_make(channel);
}

static void exec_end(struct mock_engine *engine, struct mock_channel *channel)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf fields = KLP_BUF_INIT(KLP_KIB);
    klp_field_append_u64(&fields, KLP_TAG_CODE,
                         (uint64_t)(channel->signal != 0 ? 128 + channel->signal : channel->code));
    klp_field_append_u64(&fields, KLP_TAG_SIGNAL, (uint64_t)channel->signal);
    if (channel->timed_out)
        klp_field_append_u64(&fields, KLP_TAG_TIMED_OUT, 1);
    if (channel->is_done)
        mock_done(engine, channel->id);
    else
        mock_frame(engine, KLP_GUEST_EXIT, 0, channel->id, &fields);
    mock_channel_close(channel);
}

/* Of its end and its timeout the earlier one counts, however long nobody looked. */
static void exec_tick(struct mock_channel *channel, uint64_t passed_ms)
{
    int64_t ms = passed_ms < INT64_MAX ? (int64_t)passed_ms : INT64_MAX;
    int64_t ends = channel->ends_in_ms, timeout = channel->timeout_in_ms;
    if (channel->ended)
        return;
    if (ends >= 0 && ends <= ms && (timeout < 0 || ends <= timeout)) {
        channel->ends_in_ms = -1;
        channel->ended = true;
    } else if (timeout >= 0 && timeout <= ms) {
        channel->timed_out = true;
        exec_kill(channel, 9);
    } else {
        channel->ends_in_ms = ends >= 0 ? ends - ms : -1;
        channel->timeout_in_ms = timeout >= 0 ? timeout - ms : -1;
    }
}

static void channel_step(struct mock_engine *engine, struct mock_channel *channel, uint64_t ms)
{
    bool stands = channel->kind == MOCK_EXEC && engine->state->frozen;
    if (channel->kind == MOCK_FREE || channel->kind == MOCK_PUT || stands)
        return;
    if (channel->kind == MOCK_FOLLOW) {
        mock_follow_step(engine, channel);
        return;
    }
    exec_tick(channel, ms);
    do {
        mock_channel_make(engine, channel);
        channel_send(engine, channel);
    } while ((channel->flood_left > 0 || channel->sends) && channel->out.size == 0 &&
             engine->out.size < OUT_MAX / 2);
    if (channel->ended && channel->out.size == 0 && channel->flood_left == 0 && !channel->sends)
        exec_end(engine, channel);
}

void mock_engine_step(struct mock_engine *engine, uint64_t elapsed_ns, int64_t wall_ns)
{
    uint64_t passed = engine->remainder_ns + elapsed_ns, ms = passed / 1000000;
    if (engine->crashed)
        return;
    engine->remainder_ns = passed % 1000000;
    frames_take(engine, wall_ns);
    if (!engine->state->frozen) {
        engine->state->counter += ms;
        mock_main_tick(engine, ms);
    }
    for (size_t i = 0; i < MOCK_CHANNELS_MAX; i++)
        channel_step(engine, &engine->channels[i], ms);
}

uint64_t mock_engine_idle_ms(const struct mock_engine *engine)
{
    int64_t idle = 1000;
    if (engine->state->frozen)
        return 1000;
    for (size_t i = 0; i < MOCK_CHANNELS_MAX; i++) {
        const struct mock_channel *channel = &engine->channels[i];
        if (channel->kind == MOCK_FREE)
            continue;
        if (channel->ends_in_ms >= 0 && channel->ends_in_ms < idle)
            idle = channel->ends_in_ms;
        if (channel->timeout_in_ms >= 0 && channel->timeout_in_ms < idle)
            idle = channel->timeout_in_ms;
    }
    if (engine->state->main_state == KLP_MAIN_RUNNING && engine->state->main_ends_in_ms >= 0 &&
        engine->state->main_ends_in_ms < idle)
        idle = engine->state->main_ends_in_ms;
    return idle < 1 ? 1 : (uint64_t)idle;
}
