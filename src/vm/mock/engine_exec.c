/* SPDX-License-Identifier: Apache-2.0 */
/* The words, the main process and its log. */
#include <string.h>

#include "base/fmt.h"
#include "vm/mock/engine.h"

#define ARGV_BYTES (64 * KLP_KIB)

static void fill(struct mock_engine *engine, struct mock_channel *channel)
{
    struct mock_state *state = engine->state;
    uint64_t area_size;
    uint8_t *area = mock_fill_area(engine, &area_size);
    if (channel->word.number > area_size / engine->mib) {
        channel->code = 1;
        channel->out_is_stderr = true;
        klp_buf_append_text(&channel->out, "@fill: not that much memory\n");
        return;
    }
    state->fill_pages = channel->word.number * engine->mib / engine->page_size;
    state->fill_seed = channel->word.seed;
    state->fill_round++;
    for (uint64_t page = 0; page < state->fill_pages; page++)
        klp_keyed_page(state->fill_seed, page, state->fill_round, area + page * engine->page_size,
                       engine->page_size);
    klp_buf_append_format(&channel->out, "pages=%llu\n", (unsigned long long)state->fill_pages);
}

static void check(struct mock_engine *engine, struct mock_channel *channel)
{
    const struct mock_state *state = engine->state;
    uint64_t area_size, bad = 0;
    const uint8_t *area = mock_fill_area(engine, &area_size);
    for (uint64_t page = 0; page < state->fill_pages; page++)
        if (!klp_keyed_page_check(state->fill_seed, page, state->fill_round,
                                  area + page * engine->page_size, engine->page_size))
            bad++;
    channel->code = bad != 0;
    klp_buf_append_format(&channel->out, "pages=%llu bad=%llu\n",
                          (unsigned long long)state->fill_pages, (unsigned long long)bad);
}

static void echo(struct mock_channel *channel, const char *const *argv)
{
    for (size_t i = 1; argv[i] != NULL; i++) {
        if (i > 1)
            klp_buf_append_u8(&channel->out, ' ');
        klp_buf_append_text(&channel->out, argv[i]);
    }
    klp_buf_append_u8(&channel->out, '\n');
}

static void cat(struct mock_engine *engine, struct mock_channel *channel)
{
    if (channel->word.path == NULL) {
        channel->reads_input = channel->echoes = true;
        channel->ended = false;
        return;
    }
    struct mock_file *file = mock_file_find(engine, channel->word.path);
    if (file == NULL || file->kind != KLP_TAR_FILE) {
        channel->code = 1;
        channel->out_is_stderr = true;
        klp_buf_append_format(&channel->out, "@cat: %s: no such file\n", channel->word.path);
        return;
    }
    channel->sends = true;
    channel->from = file;
    channel->from_size = file->size;
}

/* Of K=V texts, by K. */
static int name_compare(const char *a, const char *b)
{
    size_t at = 0;
    while (a[at] == b[at] && a[at] != '=' && a[at] != 0)
        at++;
    int left = a[at] == '=' ? 0 : (unsigned char)a[at];
    int right = b[at] == '=' ? 0 : (unsigned char)b[at];
    return left - right;
}

/* What exec added to the defaults comes from the frame; sorted by name, the later of the same name
 * wins. */
static void env_print(struct mock_engine *engine, struct mock_channel *channel,
                      struct klp_bytes body)
{
    const struct mock_state *state = engine->state;
    const char *entries[2 * MOCK_ENV_MAX];
    size_t count = 0, at = 0;
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf added = KLP_BUF_INIT(ARGV_BYTES);
    struct klp_field field;
    for (uint32_t offset = 0; offset < state->env_size && count < MOCK_ENV_MAX;
         offset += (uint32_t)strlen(state->env + offset) + 1)
        entries[count++] = state->env + offset;
    while (klp_field_next(body, &at, &field, NULL) == 1)
        if (field.tag == KLP_TAG_ENV) {
            klp_buf_append(&added, field.data.data, field.data.size);
            klp_buf_append_u8(&added, 0);
        }
    for (size_t offset = 0; offset < added.size && count < KLP_COUNT(entries);
         offset += strlen((char *)added.data + offset) + 1)
        entries[count++] = (char *)added.data + offset;
    for (size_t i = 1; i < count; i++) /* insertion: stable, and few */
        for (size_t k = i; k > 0 && name_compare(entries[k - 1], entries[k]) > 0; k--) {
            const char *swap = entries[k];
            entries[k] = entries[k - 1];
            entries[k - 1] = swap;
        }
    for (size_t i = 0; i < count; i++) {
        size_t name = 0;
        while (entries[i][name] != 0 && entries[i][name] != '=')
            name++;
        bool later = i + 1 < count && strncmp(entries[i], entries[i + 1], name + 1) == 0;
        if (!later)
            klp_buf_append_format(&channel->out, "%s\n", entries[i]);
    }
}

static void pwd(const struct mock_engine *engine, struct mock_channel *channel,
                struct klp_bytes body)
{
    struct klp_bytes workdir;
    if (klp_field_find(body, KLP_TAG_WORKDIR, &workdir) && workdir.size > 0)
        klp_buf_append_format(&channel->out, "%.*s\n", (int)workdir.size,
                              (const char *)workdir.data);
    else
        klp_buf_append_format(&channel->out, "%s\n", engine->state->workdir);
}

void mock_word_run(struct mock_engine *engine, struct mock_channel *channel,
                   const char *const *argv, struct klp_bytes body)
{
    channel->ended = true;
    switch (channel->word.kind) {
    case KLP_WORD_ECHO:
        echo(channel, argv);
        return;
    case KLP_WORD_CAT:
        cat(engine, channel);
        return;
    case KLP_WORD_EXIT:
        channel->code = (int32_t)channel->word.number;
        return;
    case KLP_WORD_SLEEP:
        channel->ended = false;
        channel->ends_in_ms = (int64_t)channel->word.number;
        return;
    case KLP_WORD_RAISE:
        channel->signal = (int32_t)channel->word.number;
        return;
    case KLP_WORD_FILL:
        fill(engine, channel);
        return;
    case KLP_WORD_CHECK:
        check(engine, channel);
        return;
    case KLP_WORD_COUNT:
        klp_buf_append_format(&channel->out, "%llu\n", (unsigned long long)engine->state->counter);
        return;
    case KLP_WORD_FLOOD:
        channel->ended = false;
        channel->flood_left = channel->word.number;
        channel->out_is_stderr = channel->word.to_stderr;
        return;
    case KLP_WORD_CRASH:
        engine->crashed = true;
        channel->ended = false; /* the dead answer nothing */
        klp_format(engine->console, sizeof(engine->console),
                   "mock guest: crashed as it was told to");
        return;
    case KLP_WORD_ENV:
        env_print(engine, channel, body);
        return;
    case KLP_WORD_PWD:
        pwd(engine, channel, body);
        return;
    }
}

static void exec_run(struct mock_engine *engine, struct mock_channel *channel,
                     const char *const *argv, struct klp_bytes body)
{
    uint64_t timeout = 0;
    KLP_IGNORE(klp_field_u64(body, KLP_TAG_TIMEOUT_MS, 0, &timeout, NULL));
    channel->timeout_in_ms = timeout != 0 && timeout < INT64_MAX ? (int64_t)timeout : -1;
    if (channel->word.path != NULL) {
        channel->path = klp_mem_string(channel->word.path);
        channel->word.path = channel->path;
    }
    mock_word_run(engine, channel, argv, body);
}

void mock_exec(struct mock_engine *engine, const struct klp_guest_frame *frame)
{
    const char *argv[64];
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf bytes = KLP_BUF_INIT(ARGV_BYTES);
    struct kelpie_error *error = NULL;
    struct klp_word word;
    if (!mock_argv(frame->body, &bytes, argv)) {
        mock_error(engine, frame->channel, KELPIE_E_INVALID, "an exec needs 1 to 63 words");
    } else if (engine->state->frozen) {
        mock_error(engine, frame->channel, KELPIE_E_STATE, "the workload is frozen");
    } else if (argv[0][0] != '@') {
        mock_error(engine, frame->channel, KELPIE_E_NO_COMMAND,
                   "a mock guest knows only the words that begin with @");
    } else if (!klp_word_parse(argv, &word, &error)) {
        mock_error(engine, frame->channel, kelpie_error_code(error), kelpie_error_message(error));
    } else {
        struct mock_channel *channel = mock_channel_open(engine, frame->channel, MOCK_EXEC);
        if (channel != NULL) {
            __attribute__((cleanup(klp_auto_buf))) struct klp_buf fields = KLP_BUF_INIT(64);
            channel->word = word;
            klp_field_append_u64(&fields, KLP_TAG_PID, 100 + frame->channel);
            mock_frame(engine, KLP_GUEST_STARTED, 0, frame->channel, &fields);
            exec_run(engine, channel, argv, frame->body);
        }
    }
    klp_error_clear(&error);
}

/* ---- the main process: a word whose output goes to the log */

void mock_log_append(struct mock_engine *engine, const void *bytes, size_t size)
{
    struct mock_state *state = engine->state;
    for (size_t i = 0; i < size; i++)
        state->log[state->log_end++ % MOCK_LOG_SIZE] = ((const uint8_t *)bytes)[i];
}

static void main_over(struct mock_engine *engine, int32_t code, int32_t signal)
{
    engine->state->main_state = KLP_MAIN_EXITED;
    engine->state->main_code = code;
    engine->state->main_signal = signal;
}

/* All that a main process says at once; of a flood only what the log keeps is made. */
static void main_output(struct mock_engine *engine, struct mock_channel *run)
{
    if (run->flood_left > MOCK_LOG_SIZE) {
        uint64_t skipped = run->flood_left - MOCK_LOG_SIZE;
        run->flood_at += skipped;
        run->flood_left = MOCK_LOG_SIZE;
        engine->state->log_end += skipped;
    }
    do {
        mock_channel_make(engine, run);
        mock_log_append(engine, run->out.data, run->out.size);
        klp_buf_clear(&run->out);
    } while (run->sends || run->flood_left > 0);
}

void mock_main_start(struct mock_engine *engine, const struct klp_guest_frame *frame)
{
    const char *argv[64];
    struct mock_state *state = engine->state;
    struct mock_channel run = {
        .kind = MOCK_EXEC, .out = KLP_BUF_INIT(KLP_MIB), .ends_in_ms = -1, .timeout_in_ms = -1};
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf bytes = KLP_BUF_INIT(ARGV_BYTES);
    struct kelpie_error *error = NULL;
    if (state->main_state == KLP_MAIN_RUNNING) {
        mock_error(engine, frame->channel, KELPIE_E_STATE, "the main process runs already");
        return;
    }
    if (!mock_argv(frame->body, &bytes, argv) || argv[0][0] != '@') {
        mock_error(engine, frame->channel, KELPIE_E_NO_COMMAND,
                   "a mock guest knows only the words that begin with @");
        return;
    }
    if (!klp_word_parse(argv, &run.word, &error)) {
        mock_error(engine, frame->channel, kelpie_error_code(error), kelpie_error_message(error));
        klp_error_clear(&error);
        return;
    }
    mock_word_run(engine, &run, argv, frame->body);
    main_output(engine, &run);
    klp_buf_finish(&run.out);
    state->main_state = KLP_MAIN_RUNNING;
    state->main_ends_in_ms = run.ends_in_ms;
    if (run.ends_in_ms < 0 && !run.reads_input)
        main_over(engine, run.code, run.signal);
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf fields = KLP_BUF_INIT(64);
    klp_field_append_u64(&fields, KLP_TAG_PID, 2);
    mock_frame(engine, KLP_GUEST_STARTED, 0, frame->channel, &fields);
}

void mock_main_tick(struct mock_engine *engine, uint64_t ms)
{
    struct mock_state *state = engine->state;
    if (state->main_state != KLP_MAIN_RUNNING || state->main_ends_in_ms < 0)
        return;
    state->main_ends_in_ms -= (int64_t)ms;
    if (state->main_ends_in_ms <= 0)
        main_over(engine, 0, 0);
}

void mock_main_signal(struct mock_engine *engine, int signal)
{
    if (engine->state->main_state == KLP_MAIN_RUNNING)
        main_over(engine, 0, signal);
}

void mock_main_frame(struct mock_engine *engine, uint32_t channel)
{
    const struct mock_state *state = engine->state;
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf fields = KLP_BUF_INIT(KLP_KIB);
    uint64_t start = state->log_end > MOCK_LOG_SIZE ? state->log_end - MOCK_LOG_SIZE : 0;
    klp_field_append_u64(&fields, KLP_TAG_MAIN_STATE, state->main_state);
    klp_field_append_u64(&fields, KLP_TAG_CODE, (uint64_t)state->main_code);
    klp_field_append_u64(&fields, KLP_TAG_SIGNAL, (uint64_t)state->main_signal);
    klp_field_append_u64(&fields, KLP_TAG_PID, 2);
    klp_field_append_u64(&fields, KLP_TAG_OFFSET, start);
    klp_field_append_u64(&fields, KLP_TAG_BYTES, state->log_end);
    mock_frame(engine, KLP_GUEST_MAIN, 0, channel, &fields);
}

void mock_main_log(struct mock_engine *engine, const struct klp_guest_frame *frame)
{
    uint64_t offset = 0, follow = 0;
    struct mock_channel *channel = mock_channel_open(engine, frame->channel, MOCK_FOLLOW);
    if (channel == NULL)
        return;
    KLP_IGNORE(klp_field_u64(frame->body, KLP_TAG_OFFSET, 0, &offset, NULL));
    KLP_IGNORE(klp_field_u64(frame->body, KLP_TAG_FOLLOW, 0, &follow, NULL));
    channel->follow_at = offset;
    channel->follow = follow != 0;
}

/* MAIN and the bytes behind it, as far as they lie in one piece. */
static void log_send(struct mock_engine *engine, struct mock_channel *channel, uint64_t size)
{
    const struct mock_state *state = engine->state;
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf fields = KLP_BUF_INIT(KLP_KIB);
    klp_field_append_u64(&fields, KLP_TAG_MAIN_STATE, state->main_state);
    klp_field_append_u64(&fields, KLP_TAG_OFFSET, channel->follow_at);
    klp_field_append_u64(&fields, KLP_TAG_BYTES, state->log_end);
    mock_frame(engine, KLP_GUEST_MAIN, 0, channel->id, &fields);
    klp_guest_frame_append(
        &engine->out, KLP_GUEST_DATA, 0, channel->id,
        (struct klp_bytes){state->log + channel->follow_at % MOCK_LOG_SIZE, (size_t)size});
    channel->follow_at += size;
    channel->credit -= size;
}

static void follow_end(struct mock_engine *engine, struct mock_channel *channel)
{
    const struct mock_state *state = engine->state;
    if (state->main_state == KLP_MAIN_EXITED) {
        __attribute__((cleanup(klp_auto_buf))) struct klp_buf fields = KLP_BUF_INIT(KLP_KIB);
        klp_field_append_u64(&fields, KLP_TAG_CODE, (uint64_t)state->main_code);
        klp_field_append_u64(&fields, KLP_TAG_SIGNAL, (uint64_t)state->main_signal);
        mock_frame(engine, KLP_GUEST_EXIT, 0, channel->id, &fields);
    } else {
        mock_done(engine, channel->id);
    }
    mock_channel_close(channel);
}

void mock_follow_step(struct mock_engine *engine, struct mock_channel *channel)
{
    const struct mock_state *state = engine->state;
    uint64_t start = state->log_end > MOCK_LOG_SIZE ? state->log_end - MOCK_LOG_SIZE : 0;
    if (channel->follow_at < start)
        channel->follow_at = start;
    if (channel->follow_at > state->log_end)
        channel->follow_at = state->log_end;
    while (channel->follow_at < state->log_end && channel->credit > 0 &&
           engine->out.size < engine->out.size_max / 2) {
        uint64_t size = state->log_end - channel->follow_at;
        uint64_t piece = MOCK_LOG_SIZE - channel->follow_at % MOCK_LOG_SIZE;
        size = size < piece ? size : piece;
        log_send(engine, channel, size < channel->credit ? size : channel->credit);
    }
    if (channel->follow_at == state->log_end &&
        !(channel->follow && state->main_state == KLP_MAIN_RUNNING))
        follow_end(engine, channel);
}
