/* SPDX-License-Identifier: Apache-2.0 */
/* The mock guest's engine, bytes in and bytes out: every request, credit, time, what its memory
 * carries over to another engine, and memory that no guest of ours can have left. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/fmt.h"
#include "vm/mock/engine.h"

#define MEMORY (16u * KLP_MIB)
#define PAGE 4096u
#define WALL 1700000000000000000ll
#define MS 1000000ull

struct rig {
    struct mock_engine engine;
    uint8_t *memory;
    uint32_t channel;   /* the last one opened */
    bool grants;        /* give back credit for what comes */
    struct klp_buf out; /* DATA of stdout and stderr of the last call */
    struct klp_buf errors;
    struct klp_buf body; /* of the frame that ended it */
    uint16_t end;        /* its type */
    uint64_t given;      /* credit the guest granted us */
};

/* ---- driving */

static void rig_step(struct rig *rig, uint64_t ms)
{
    mock_engine_step(&rig->engine, ms * MS, WALL);
}

static void frame_put(struct rig *rig, uint16_t type, uint8_t flags, uint32_t channel,
                      struct klp_bytes body)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf frame = KLP_BUF_INIT(128 * KLP_KIB);
    klp_guest_frame_append(&frame, type, flags, channel, body);
    mock_engine_input(&rig->engine, frame.data, frame.size);
}

static void frame_number(struct rig *rig, uint16_t type, uint32_t channel, uint16_t tag,
                         uint64_t value)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(64);
    klp_field_append_u64(&body, tag, value);
    frame_put(rig, type, 0, channel, klp_buf_view(&body));
}

static bool is_end(uint16_t type)
{
    return type == KLP_GUEST_EXIT || type == KLP_GUEST_DONE || type == KLP_GUEST_ERROR ||
           type == KLP_GUEST_RECEIPT;
}

/* Takes what the engine has to say, of the rig's channel. */
static void rig_read(struct rig *rig)
{
    size_t at = 0;
    struct klp_buf *out = &rig->engine.out;
    uint64_t got = 0;
    while (at < out->size) {
        struct klp_guest_frame frame;
        int size = klp_guest_frame_next(out->data + at, out->size - at, &frame, NULL);
        assert_true(size > 0); /* it writes whole frames only */
        at += (size_t)size;
        if (frame.channel != rig->channel)
            continue;
        if (frame.type == KLP_GUEST_DATA) {
            bool is_error = (frame.flags & KLP_GUEST_FLAG_STDERR) != 0;
            klp_buf_append(is_error ? &rig->errors : &rig->out, frame.body.data, frame.body.size);
            got += frame.body.size;
        } else if (frame.type == KLP_GUEST_CREDIT_GRANT) {
            uint64_t bytes = 0;
            assert_true(klp_field_u64(frame.body, KLP_TAG_BYTES, 0, &bytes, NULL));
            rig->given += bytes;
        } else if (is_end(frame.type) || frame.type == KLP_GUEST_MAIN ||
                   frame.type == KLP_GUEST_HELLO_ACK) {
            rig->end = frame.type;
            klp_buf_clear(&rig->body);
            klp_buf_append(&rig->body, frame.body.data, frame.body.size);
        }
    }
    klp_buf_drop_front(out, at);
    if (got > 0 && rig->grants)
        frame_number(rig, KLP_GUEST_CREDIT_GRANT, rig->channel, KLP_TAG_BYTES, got);
}

static void rig_clear(struct rig *rig)
{
    klp_buf_clear(&rig->out);
    klp_buf_clear(&rig->errors);
    klp_buf_clear(&rig->body);
    rig->end = 0;
    rig->given = 0;
}

static uint32_t request(struct rig *rig, uint16_t type, const struct klp_buf *body)
{
    rig_clear(rig);
    frame_put(rig, type, 0, ++rig->channel,
              body != NULL ? klp_buf_view(body) : (struct klp_bytes){NULL, 0});
    return rig->channel;
}

/* Until the channel ends, or `ms` of the guest's time are over; returns the type of the end. */
static uint16_t finish(struct rig *rig, uint64_t ms)
{
    for (uint64_t at = 0;; at++) {
        rig_step(rig, at == 0 ? 0 : 1);
        rig_read(rig);
        if (is_end(rig->end) || at >= ms)
            return rig->end;
    }
}

static uint16_t ask(struct rig *rig, uint16_t type, const struct klp_buf *body)
{
    request(rig, type, body);
    return finish(rig, 200);
}

static uint64_t number(const struct rig *rig, uint16_t tag)
{
    uint64_t value;
    assert_true(klp_field_u64(klp_buf_view(&rig->body), tag, UINT64_MAX, &value, NULL));
    return value;
}

static const char *text(const struct rig *rig, uint16_t tag)
{
    static char out[512];
    struct klp_bytes value = {NULL, 0};
    klp_field_find(klp_buf_view(&rig->body), tag, &value);
    klp_format(out, sizeof(out), "%.*s", (int)value.size, (const char *)value.data);
    return out;
}

static void words_append(struct klp_buf *body, const char *words)
{
    while (*words != 0) {
        size_t length = strcspn(words, " ");
        klp_field_append(body, KLP_TAG_ARG, words, length);
        words += length + (words[length] == ' ' ? 1 : 0);
    }
}

static uint32_t exec_begin(struct rig *rig, const char *words, uint64_t timeout_ms)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(KLP_FRAME_BODY_MAX);
    words_append(&body, words);
    klp_field_append_u64(&body, KLP_TAG_TIMEOUT_MS, timeout_ms);
    return request(rig, KLP_GUEST_EXEC, &body);
}

static const char *say(struct rig *rig, const char *words)
{
    exec_begin(rig, words, 0);
    assert_int_equal(finish(rig, 1000), KLP_GUEST_EXIT);
    return klp_buf_text(&rig->out);
}

static void hello(struct rig *rig)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(256);
    klp_field_append(&body, KLP_TAG_NONCE, "nonce-of-16bytes", 16);
    uint32_t channel = rig->channel;
    rig_clear(rig);
    rig->channel = 0;
    frame_put(rig, KLP_GUEST_HELLO, 0, 0, klp_buf_view(&body));
    rig_step(rig, 0);
    rig_read(rig);
    assert_int_equal(rig->end, KLP_GUEST_HELLO_ACK);
    assert_string_equal(text(rig, KLP_TAG_NONCE), "nonce-of-16bytes");
    rig->channel = channel;
}

static void rig_init(struct rig *rig, uint8_t *memory, uint64_t size, uint64_t page_size)
{
    uint8_t seed[32];
    memset(seed, 7, sizeof(seed));
    *rig = (struct rig){.memory = memory,
                        .grants = true,
                        .out = KLP_BUF_INIT(64 * KLP_MIB),
                        .errors = KLP_BUF_INIT(64 * KLP_MIB),
                        .body = KLP_BUF_INIT(128 * KLP_KIB)};
    mock_engine_init(&rig->engine, memory, size, page_size, "x86_64", seed);
}

static int set_up(void **state)
{
    struct rig *rig = malloc(sizeof(*rig));
    rig_init(rig, calloc(1, MEMORY), MEMORY, PAGE);
    hello(rig);
    *state = rig;
    return 0;
}

static void rig_finish(struct rig *rig)
{
    mock_engine_finish(&rig->engine);
    klp_buf_finish(&rig->out);
    klp_buf_finish(&rig->errors);
    klp_buf_finish(&rig->body);
}

static int tear_down(void **state)
{
    struct rig *rig = *state;
    rig_finish(rig);
    free(rig->memory);
    free(rig);
    return 0;
}

/* ---- session */

static void test_vm_mock_engine__is_silent_before_a_hello(void **state)
{
    struct rig rig;
    uint8_t *memory = calloc(1, MEMORY);
    (void)state;
    rig_init(&rig, memory, MEMORY, PAGE);
    ask(&rig, KLP_GUEST_PING, NULL);
    assert_int_equal(rig.end, 0);
    hello(&rig);
    assert_int_equal(ask(&rig, KLP_GUEST_PING, NULL), KLP_GUEST_DONE);
    rig_finish(&rig);
    free(memory);
}

static void test_vm_mock_engine__a_new_hello_drops_what_was(void **state)
{
    struct rig *rig = *state;
    uint32_t old = exec_begin(rig, "@sleep 0.05", 0);
    finish(rig, 5);
    hello(rig);
    assert_int_not_equal(number(rig, KLP_TAG_CAPS) & KLP_GUEST_CAP_EXEC, 0);
    assert_string_equal(text(rig, KLP_TAG_ARCH), "x86_64");
    rig_clear(rig);
    rig->channel = old;
    finish(rig, 200);
    assert_int_equal(rig->end, 0);
    assert_string_equal(say(rig, "@echo fresh"), "fresh\n");
}

static void test_vm_mock_engine__garbage_is_passed_over(void **state)
{
    static const char garbage[] = "GK\1\0KG\2KGKG\1\377 and more of it, without an end\r\n";
    struct rig *rig = *state;
    for (size_t size = 1; size < sizeof(garbage); size++)
        mock_engine_input(&rig->engine, garbage, size);
    rig_step(rig, 1);
    hello(rig);
    assert_string_equal(say(rig, "@echo found"), "found\n");
}

static void test_vm_mock_engine__frames_come_in_pieces(void **state)
{
    struct rig *rig = *state;
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(256),
                                                          frame = KLP_BUF_INIT(512);
    words_append(&body, "@echo bit by bit");
    klp_guest_frame_append(&frame, KLP_GUEST_EXEC, 0, ++rig->channel, klp_buf_view(&body));
    rig_clear(rig);
    for (size_t i = 0; i < frame.size; i++) {
        mock_engine_input(&rig->engine, frame.data + i, 1);
        rig_step(rig, 0);
        if (i + 1 < frame.size)
            assert_int_equal(rig->engine.out.size, 0);
    }
    assert_int_equal(finish(rig, 10), KLP_GUEST_EXIT);
    assert_string_equal(klp_buf_text(&rig->out), "bit by bit\n");
}

static void test_vm_mock_engine__unknown_requests_are_answered(void **state)
{
    struct rig *rig = *state;
    assert_int_equal(ask(rig, 63, NULL), KLP_GUEST_ERROR);
    assert_string_equal(text(rig, KLP_TAG_ERROR), "protocol");
    assert_string_equal(say(rig, "@echo on"), "on\n");
}

/* ---- words */

static void exec_fails(struct rig *rig, const char *words, const char *code)
{
    exec_begin(rig, words, 0);
    assert_int_equal(finish(rig, 10), KLP_GUEST_ERROR);
    assert_string_equal(text(rig, KLP_TAG_ERROR), code);
}

static void test_vm_mock_engine__says_its_words(void **state)
{
    struct rig *rig = *state;
    assert_string_equal(say(rig, "@echo a b  c"), "a b  c\n");
    assert_int_equal(number(rig, KLP_TAG_CODE), 0);
    say(rig, "@exit 7");
    assert_int_equal(number(rig, KLP_TAG_CODE), 7);
    say(rig, "@raise 11");
    assert_int_equal(number(rig, KLP_TAG_SIGNAL), 11);
    assert_int_equal(number(rig, KLP_TAG_CODE), 139);
    assert_string_equal(say(rig, "@pwd"), "/\n");
    assert_string_equal(say(rig, "@check"), "pages=0 bad=0\n");
    say(rig, "@cat /none");
    assert_int_equal(number(rig, KLP_TAG_CODE), 1);
    assert_string_equal(klp_buf_text(&rig->out), "");
    assert_non_null(strstr(klp_buf_text(&rig->errors), "/none"));
    exec_fails(rig, "ls -l", "no_command");
    exec_fails(rig, "@nonsense", "no_command");
    exec_fails(rig, "@exit 256", "invalid");
    exec_fails(rig, "", "invalid");
}

static void test_vm_mock_engine__fills_and_checks_its_pages(void **state)
{
    struct rig *rig = *state;
    assert_string_equal(say(rig, "@fill 4 99"), "pages=1024\n");
    assert_string_equal(say(rig, "@check"), "pages=1024 bad=0\n");
    rig->memory[MEMORY / 2 + 5 * PAGE + 17] ^= 1;
    rig->memory[MEMORY / 2 + 1023 * PAGE] ^= 0x80;
    assert_string_equal(say(rig, "@check"), "pages=1024 bad=2\n");
    assert_int_equal(number(rig, KLP_TAG_CODE), 1);
    assert_string_equal(say(rig, "@fill 4 99"), "pages=1024\n"); /* another round: other contents */
    assert_string_equal(say(rig, "@check"), "pages=1024 bad=0\n");
    say(rig, "@fill 9 1"); /* half of 16 MiB is for this */
    assert_int_equal(number(rig, KLP_TAG_CODE), 1);
    assert_string_equal(say(rig, "@check"), "pages=1024 bad=0\n");
}

static void test_vm_mock_engine__runs_on_small_pages(void **state)
{
    struct rig rig;
    uint8_t *memory = calloc(1, 2 * KLP_MIB);
    (void)state;
    rig_init(&rig, memory, 2 * KLP_MIB, 64);
    hello(&rig);
    assert_string_equal(say(&rig, "@fill 1 5"), "pages=16384\n");
    memory[KLP_MIB + 64 * 100] ^= 1;
    assert_string_equal(say(&rig, "@check"), "pages=16384 bad=1\n");
    rig_finish(&rig);
    free(memory);
}

static void test_vm_mock_engine__setup_is_the_default_of_all(void **state)
{
    struct rig *rig = *state;
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(KLP_FRAME_BODY_MAX);
    klp_field_append_text(&body, KLP_TAG_ENV, "B=2");
    klp_field_append_text(&body, KLP_TAG_ENV, "A=1");
    klp_field_append_text(&body, KLP_TAG_ENV, "A1=x");
    klp_field_append_text(&body, KLP_TAG_WORKDIR, "/work");
    klp_field_append_text(&body, KLP_TAG_HOSTNAME, "box");
    assert_int_equal(ask(rig, KLP_GUEST_SETUP, &body), KLP_GUEST_DONE);
    assert_string_equal(say(rig, "@pwd"), "/work\n");
    assert_string_equal(say(rig, "@env"), "A=1\nA1=x\nB=2\n");
    klp_buf_clear(&body);
    words_append(&body, "@env");
    klp_field_append_text(&body, KLP_TAG_ENV, "B=3");
    klp_field_append_text(&body, KLP_TAG_ENV, "C=4");
    assert_int_equal(ask(rig, KLP_GUEST_EXEC, &body), KLP_GUEST_EXIT);
    assert_string_equal(klp_buf_text(&rig->out), "A=1\nA1=x\nB=3\nC=4\n");
    klp_buf_clear(&body);
    words_append(&body, "@pwd");
    klp_field_append_text(&body, KLP_TAG_WORKDIR, "/else");
    assert_int_equal(ask(rig, KLP_GUEST_EXEC, &body), KLP_GUEST_EXIT);
    assert_string_equal(klp_buf_text(&rig->out), "/else\n");
}

static void test_vm_mock_engine__an_environment_has_bounds(void **state)
{
    struct rig *rig = *state;
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(KLP_FRAME_BODY_MAX);
    char *large = malloc(MOCK_ENV_SIZE);
    memset(large, 'x', MOCK_ENV_SIZE);
    large[1] = '=';
    klp_field_append(&body, KLP_TAG_ENV, large, MOCK_ENV_SIZE - 1);
    assert_int_equal(ask(rig, KLP_GUEST_SETUP, &body), KLP_GUEST_DONE);
    klp_field_append(&body, KLP_TAG_ENV, "Y=1", 3);
    assert_int_equal(ask(rig, KLP_GUEST_SETUP, &body), KLP_GUEST_ERROR);
    klp_buf_clear(&body);
    klp_field_append(&body, KLP_TAG_ENV, large, MOCK_ENV_SIZE);
    assert_int_equal(ask(rig, KLP_GUEST_SETUP, &body), KLP_GUEST_ERROR);
    klp_buf_clear(&body);
    for (unsigned i = 0; i <= MOCK_ENV_MAX; i++)
        klp_field_append_text(&body, KLP_TAG_ENV, "N=1");
    assert_int_equal(ask(rig, KLP_GUEST_SETUP, &body), KLP_GUEST_ERROR);
    free(large);
}

/* ---- time */

static void test_vm_mock_engine__sleeps_and_counts_its_own_time(void **state)
{
    struct rig *rig = *state;
    uint64_t before = strtoull(say(rig, "@count"), NULL, 10);
    exec_begin(rig, "@sleep 0.1", 0);
    finish(rig, 99);
    assert_int_equal(rig->end, 0);
    assert_int_equal(mock_engine_idle_ms(&rig->engine), 1);
    assert_int_equal(finish(rig, 2), KLP_GUEST_EXIT);
    assert_int_equal(strtoull(say(rig, "@count"), NULL, 10) - before, 100);
    assert_int_equal(mock_engine_idle_ms(&rig->engine), 1000);
    exec_begin(rig, "@sleep 0.5", 0);
    rig_step(rig, 0);
    assert_int_equal(mock_engine_idle_ms(&rig->engine), 500);
    rig_step(rig, 3600 * 1000); /* as far as it likes in one step */
    rig_read(rig);
    assert_int_equal(rig->end, KLP_GUEST_EXIT);
    for (int i = 0; i < 10; i++)
        mock_engine_step(&rig->engine, MS / 4, WALL); /* parts of a millisecond add up */
    assert_int_equal(strtoull(say(rig, "@count"), NULL, 10) - before, 100 + 3600 * 1000 + 2);
}

static void test_vm_mock_engine__the_earlier_of_end_and_timeout_counts(void **state)
{
    struct rig *rig = *state;
    exec_begin(rig, "@sleep 5", 100);
    rig_step(rig, 0);
    assert_int_equal(mock_engine_idle_ms(&rig->engine), 100);
    rig_step(rig, 60000);
    rig_read(rig);
    assert_int_equal(rig->end, KLP_GUEST_EXIT);
    assert_int_equal(number(rig, KLP_TAG_TIMED_OUT), 1);
    assert_int_equal(number(rig, KLP_TAG_SIGNAL), 9);
    exec_begin(rig, "@sleep 0.1", 5000);
    rig_step(rig, 0);
    rig_step(rig, 60000);
    rig_read(rig);
    assert_int_equal(rig->end, KLP_GUEST_EXIT);
    assert_int_equal(number(rig, KLP_TAG_TIMED_OUT), UINT64_MAX);
    assert_int_equal(number(rig, KLP_TAG_CODE), 0);
}

static void signal_send(struct rig *rig, uint32_t channel, uint64_t signal)
{
    frame_number(rig, KLP_GUEST_SIGNAL, channel, KLP_TAG_SIGNAL, signal);
}

static void test_vm_mock_engine__signals_end_what_they_end(void **state)
{
    static const uint64_t idle[] = {0, 17, 18, 28, 65, UINT64_MAX};
    struct rig *rig = *state;
    uint32_t channel = exec_begin(rig, "@sleep 100", 0);
    finish(rig, 2);
    for (size_t i = 0; i < KLP_COUNT(idle); i++)
        signal_send(rig, channel, idle[i]);
    signal_send(rig, channel + 1, 9); /* nobody's */
    finish(rig, 20);
    assert_int_equal(rig->end, 0);
    signal_send(rig, channel, 15);
    assert_int_equal(finish(rig, 5), KLP_GUEST_EXIT);
    assert_int_equal(number(rig, KLP_TAG_SIGNAL), 15);
    assert_int_equal(number(rig, KLP_TAG_CODE), 143);
}

static void test_vm_mock_engine__a_closed_channel_says_no_more(void **state)
{
    struct rig *rig = *state;
    uint32_t channel = exec_begin(rig, "@sleep 0.02", 0);
    finish(rig, 2);
    frame_put(rig, KLP_GUEST_CLOSE, 0, channel, (struct klp_bytes){NULL, 0});
    finish(rig, 100);
    assert_int_equal(rig->end, 0);
    assert_int_equal(mock_engine_idle_ms(&rig->engine), 1000);
}

/* ---- credit */

static void test_vm_mock_engine__a_flood_stops_where_credit_ends(void **state)
{
    struct rig *rig = *state;
    rig->grants = false;
    uint32_t channel = exec_begin(rig, "@flood 1000000", 0);
    finish(rig, 50);
    assert_int_equal(rig->end, 0);
    assert_int_equal(rig->out.size, KLP_GUEST_CREDIT);
    frame_number(rig, KLP_GUEST_CREDIT_GRANT, channel, KLP_TAG_BYTES, 1000);
    finish(rig, 5);
    assert_int_equal(rig->out.size, KLP_GUEST_CREDIT + 1000);
    rig->grants = true;
    frame_number(rig, KLP_GUEST_CREDIT_GRANT, channel, KLP_TAG_BYTES, KLP_GUEST_CREDIT);
    assert_int_equal(finish(rig, 200), KLP_GUEST_EXIT);
    assert_int_equal(rig->out.size, 1000000);
    for (size_t i = 0; i < rig->out.size; i++)
        assert_int_equal(rig->out.data[i], i % 251);
    exec_begin(rig, "@flood 300 err", 0);
    assert_int_equal(finish(rig, 20), KLP_GUEST_EXIT);
    assert_int_equal(rig->errors.size, 300);
    assert_int_equal(rig->out.size, 0);
}

static void test_vm_mock_engine__nobody_reads_and_nothing_grows(void **state)
{
    struct rig *rig = *state;
    for (unsigned i = 0; i < 200; i++) { /* of which some are refused: too many at once */
        exec_begin(rig, "@flood 1099511627776", 0);
        rig_step(rig, 1);
    }
    for (unsigned i = 0; i < 50; i++)
        frame_number(rig, KLP_GUEST_CREDIT_GRANT, i, KLP_TAG_BYTES, UINT64_MAX);
    for (unsigned i = 0; i < 1000; i++)
        rig_step(rig, 1);
    assert_false(rig->engine.out.over_limit);
    assert_in_range(rig->engine.out.size, 1, 4 * KLP_MIB);
    size_t fed = 0;
    uint8_t zeros[16384] = {0};
    while (mock_engine_takes(&rig->engine, sizeof(zeros)) && fed < 100 * KLP_MIB) {
        mock_engine_input(&rig->engine, zeros, sizeof(zeros));
        rig_step(rig, 0);
        fed += sizeof(zeros);
    }
    assert_in_range(fed, 0, KLP_MIB); /* it says when it has had enough */
}

static void data_put(struct rig *rig, const void *bytes, size_t size, bool end)
{
    frame_put(rig, KLP_GUEST_DATA, end ? KLP_GUEST_FLAG_END : 0, rig->channel,
              (struct klp_bytes){bytes, size});
}

static void test_vm_mock_engine__input_comes_back_at_the_readers_pace(void **state)
{
    struct rig *rig = *state;
    static uint8_t bytes[KLP_FRAME_BODY_MAX];
    memset(bytes, 'i', sizeof(bytes));
    rig->grants = false;
    exec_begin(rig, "@cat", 0);
    for (unsigned i = 0; i < 4; i++) { /* all the credit there is to begin with */
        data_put(rig, bytes, sizeof(bytes), false);
        finish(rig, 2);
    }
    assert_int_equal(rig->out.size, KLP_GUEST_CREDIT);
    assert_int_equal(rig->given, KLP_GUEST_CREDIT);
    for (unsigned i = 0; i < 4; i++) { /* granted again; but now we do not read */
        data_put(rig, bytes, sizeof(bytes), false);
        finish(rig, 2);
    }
    assert_int_equal(rig->out.size, KLP_GUEST_CREDIT);
    assert_int_equal(rig->given, KLP_GUEST_CREDIT);
    data_put(rig, bytes, 1, false); /* more than was granted */
    assert_int_equal(finish(rig, 5), KLP_GUEST_ERROR);
    assert_string_equal(text(rig, KLP_TAG_ERROR), "protocol");
    rig->grants = true;
    exec_begin(rig, "@cat", 0);
    data_put(rig, "tail", 4, true);
    assert_int_equal(finish(rig, 5), KLP_GUEST_EXIT);
    assert_string_equal(klp_buf_text(&rig->out), "tail");
}

/* ---- files */

static void entry_append(struct klp_buf *tar, const char *path, enum klp_tar_kind kind,
                         const void *bytes, uint64_t size)
{
    static struct klp_tar_entry entry;
    static const uint8_t zeros[KLP_TAR_BLOCK];
    memset(&entry, 0, sizeof(entry));
    klp_text_copy(entry.path, sizeof(entry.path), path);
    entry.kind = kind;
    entry.mode = kind == KLP_TAR_DIRECTORY ? 0755 : 0640;
    entry.size = size;
    if (kind == KLP_TAR_SYMLINK)
        klp_text_copy(entry.target, sizeof(entry.target), "there");
    assert_true(klp_tar_header_append(tar, &entry, NULL));
    klp_buf_append(tar, bytes, (size_t)size);
    klp_buf_append(tar, zeros, klp_tar_padding(size));
}

static uint16_t put(struct rig *rig, const char *folder, const struct klp_buf *tar)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(512);
    klp_field_append_text(&body, KLP_TAG_PATH, folder);
    request(rig, KLP_GUEST_PUT, &body);
    for (size_t at = 0; at < tar->size; at += 40000) {
        size_t size = tar->size - at < 40000 ? tar->size - at : 40000;
        data_put(rig, tar->data + at, size, false);
        rig_step(rig, 0);
    }
    data_put(rig, NULL, 0, true);
    return finish(rig, 50);
}

static uint16_t put_file(struct rig *rig, const char *path, const void *bytes, uint64_t size)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf tar = KLP_BUF_INIT(64 * KLP_MIB);
    entry_append(&tar, path, KLP_TAR_FILE, bytes, size);
    klp_tar_end_append(&tar);
    return put(rig, "/", &tar);
}

/* Into rig->out. */
static uint16_t get(struct rig *rig, const char *path)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(512);
    klp_field_append_text(&body, KLP_TAG_PATH, path);
    return ask(rig, KLP_GUEST_GET, &body);
}

/* The archive in rig->out as text: "name size kind" a line, in its order. */
static const char *listed(struct rig *rig)
{
    static char out[8192];
    size_t at = 0;
    struct klp_tar_reader *reader = klp_tar_reader_create(64 * KLP_MIB);
    struct klp_bytes input = klp_buf_view(&rig->out), content;
    const struct klp_tar_entry *entry;
    out[0] = 0;
    for (;;) {
        enum klp_tar_event event = klp_tar_next(reader, &input, &entry, &content, NULL);
        assert_int_not_equal(event, KLP_TAR_BAD);
        assert_int_not_equal(event, KLP_TAR_NEED_MORE);
        if (event == KLP_TAR_END)
            break;
        if (event == KLP_TAR_ENTRY)
            at += klp_format(out + at, sizeof(out) - at, "%s %llu %d\n", entry->path,
                             (unsigned long long)entry->size, (int)entry->kind);
    }
    klp_tar_reader_destroy(reader);
    return out;
}

static void tree_put(struct rig *rig)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf tar = KLP_BUF_INIT(KLP_MIB);
    entry_append(&tar, "d", KLP_TAR_DIRECTORY, NULL, 0);
    entry_append(&tar, "d/a", KLP_TAR_FILE, "hello", 5);
    entry_append(&tar, "d/link", KLP_TAR_SYMLINK, NULL, 0);
    entry_append(&tar, "d/none", KLP_TAR_FILE, NULL, 0);
    entry_append(&tar, "dd", KLP_TAR_FILE, "x", 1);
    klp_tar_end_append(&tar);
    assert_int_equal(put(rig, "/w", &tar), KLP_GUEST_DONE);
}

static void test_vm_mock_engine__files_go_in_and_come_out(void **state)
{
    struct rig *rig = *state;
    tree_put(rig);
    assert_string_equal(say(rig, "@cat /w/d/a"), "hello");
    assert_string_equal(say(rig, "@cat w//./d/a"), "hello");
    assert_string_equal(say(rig, "@cat /w/d/none"), "");
    assert_int_equal(get(rig, "/w/d"), KLP_GUEST_DONE);
    assert_string_equal(listed(rig), "d 0 1\nd/a 5 0\nd/link 0 2\nd/none 0 0\n");
    assert_int_equal(get(rig, "/w/d/a"), KLP_GUEST_DONE);
    assert_string_equal(listed(rig), "a 5 0\n");
    assert_int_equal(get(rig, "/nothing"), KLP_GUEST_ERROR);
    assert_string_equal(text(rig, KLP_TAG_ERROR), "not_found");
    assert_int_equal(ask(rig, KLP_GUEST_GET, NULL), KLP_GUEST_ERROR);
    assert_int_equal(ask(rig, KLP_GUEST_PUT, NULL), KLP_GUEST_ERROR);
    assert_int_equal(ask(rig, KLP_GUEST_CHECKPOINT, NULL), KLP_GUEST_DONE);
    assert_string_equal(listed(rig), "w/d 0 1\nw/d/a 5 0\nw/d/link 0 2\nw/d/none 0 0\nw/dd 1 0\n");
}

static void test_vm_mock_engine__an_empty_checkpoint_is_one(void **state)
{
    struct rig *rig = *state;
    assert_int_equal(ask(rig, KLP_GUEST_CHECKPOINT, NULL), KLP_GUEST_DONE);
    assert_string_equal(listed(rig), "");
}

static void pattern(uint8_t *bytes, size_t size, unsigned seed)
{
    for (size_t i = 0; i < size; i++)
        bytes[i] = (uint8_t)(i * 31 + i / 977 + seed);
}

static void rig_init_large(struct rig *rig, uint8_t **memory)
{
    *memory = calloc(1, 64 * KLP_MIB);
    rig_init(rig, *memory, 64 * KLP_MIB, PAGE);
    hello(rig);
}

static void test_vm_mock_engine__a_large_file_passes_whole(void **state)
{
    struct rig rig;
    uint8_t *memory, *bytes = malloc(9 * KLP_MIB + 13);
    (void)state;
    rig_init_large(&rig, &memory);
    pattern(bytes, 9 * KLP_MIB + 13, 1);
    assert_int_equal(put_file(&rig, "big", bytes, 9 * KLP_MIB + 13), KLP_GUEST_DONE);
    exec_begin(&rig, "@cat /big", 0);
    assert_int_equal(finish(&rig, 1000), KLP_GUEST_EXIT);
    assert_int_equal(rig.out.size, 9 * KLP_MIB + 13);
    assert_memory_equal(rig.out.data, bytes, rig.out.size);
    assert_int_equal(get(&rig, "/big"), KLP_GUEST_DONE);
    assert_string_equal(listed(&rig), "big 9437197 0\n");
    assert_memory_equal(rig.out.data + KLP_TAR_BLOCK, bytes, 9 * KLP_MIB + 13);
    rig_finish(&rig);
    free(memory);
    free(bytes);
}

static void test_vm_mock_engine__a_replaced_file_gives_its_room_back(void **state)
{
    struct rig *rig = *state;
    size_t size = 3 * KLP_MIB; /* the area has less than 4 */
    uint8_t *bytes = malloc(size);
    assert_int_equal(put_file(rig, "keep", "kept", 4), KLP_GUEST_DONE);
    for (unsigned i = 0; i < 5; i++) {
        pattern(bytes, size, i);
        assert_int_equal(put_file(rig, "large", bytes, size), KLP_GUEST_DONE);
        assert_int_equal(put_file(rig, "small", bytes, 100 + i), KLP_GUEST_DONE);
        exec_begin(rig, "@cat /large", 0);
        assert_int_equal(finish(rig, 500), KLP_GUEST_EXIT);
        assert_int_equal(rig->out.size, size);
        assert_memory_equal(rig->out.data, bytes, size);
        assert_string_equal(say(rig, "@cat /keep"), "kept");
    }
    pattern(bytes, size, 4);
    assert_int_equal(put_file(rig, "second", bytes, size), KLP_GUEST_ERROR); /* that is too much */
    assert_string_equal(text(rig, KLP_TAG_ERROR), "no_space");
    exec_begin(rig, "@cat /large", 0);
    finish(rig, 500);
    assert_memory_equal(rig->out.data, bytes, size); /* and nothing else was harmed */
    free(bytes);
}

static void test_vm_mock_engine__the_table_of_files_is_finite(void **state)
{
    struct rig *rig = *state;
    char name[16];
    for (unsigned i = 0; i < MOCK_FILES_MAX; i++) {
        klp_format(name, sizeof(name), "f%u", i);
        assert_int_equal(put_file(rig, name, name, 2), KLP_GUEST_DONE);
    }
    assert_int_equal(put_file(rig, "more", "x", 1), KLP_GUEST_ERROR);
    assert_string_equal(text(rig, KLP_TAG_ERROR), "no_space");
    assert_int_equal(put_file(rig, "f3", "anew", 4), KLP_GUEST_DONE);
    assert_string_equal(say(rig, "@cat /f3"), "anew");
}

/* Two archives with the same name at once, of different sizes: neither writes past its room. */
static void test_vm_mock_engine__two_puts_of_one_name_stay_in_bounds(void **state)
{
    struct rig *rig = *state;
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(512);
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf big = KLP_BUF_INIT(KLP_MIB),
                                                          small = KLP_BUF_INIT(KLP_MIB);
    uint8_t bytes[8192];
    memset(bytes, 'B', sizeof(bytes));
    entry_append(&big, "same", KLP_TAR_FILE, bytes, sizeof(bytes));
    entry_append(&small, "same", KLP_TAR_FILE, "s", 1);
    klp_field_append_text(&body, KLP_TAG_PATH, "/");
    uint32_t first = request(rig, KLP_GUEST_PUT, &body);
    data_put(rig, big.data, KLP_TAR_BLOCK + 100, false);
    rig_step(rig, 0);
    request(rig, KLP_GUEST_PUT, &body);
    data_put(rig, small.data, small.size, false);
    rig_step(rig, 0);
    assert_int_equal(put_file(rig, "behind", "intact", 6), KLP_GUEST_DONE);
    rig_clear(rig);
    rig->channel = first;
    data_put(rig, big.data + KLP_TAR_BLOCK + 100, big.size - KLP_TAR_BLOCK - 100, false);
    assert_int_equal(finish(rig, 5), KLP_GUEST_ERROR);
    rig->channel += 10;
    assert_string_equal(say(rig, "@cat /behind"), "intact");
    assert_string_equal(say(rig, "@cat /same"), "s");
}

static void test_vm_mock_engine__bad_archives_are_errors(void **state)
{
    struct rig *rig = *state;
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf tar = KLP_BUF_INIT(KLP_MIB);
    uint8_t junk[KLP_TAR_BLOCK];
    memset(junk, 0x5a, sizeof(junk));
    klp_buf_append(&tar, junk, sizeof(junk));
    assert_int_equal(put(rig, "/", &tar), KLP_GUEST_ERROR);
    assert_string_equal(text(rig, KLP_TAG_ERROR), "corrupt");
    klp_buf_clear(&tar);
    entry_append(&tar, "cut", KLP_TAR_FILE, "1234", 4);
    tar.size -= 100;
    assert_int_equal(put(rig, "/", &tar), KLP_GUEST_ERROR);
    assert_string_equal(text(rig, KLP_TAG_ERROR), "corrupt");
    assert_string_equal(say(rig, "@echo alive"), "alive\n");
}

/* ---- the main process */

static uint16_t main_start(struct rig *rig, const char *words)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(4096);
    words_append(&body, words);
    request(rig, KLP_GUEST_MAIN_START, &body);
    return finish(rig, 0);
}

static uint64_t main_status(struct rig *rig)
{
    request(rig, KLP_GUEST_MAIN_STATUS, NULL);
    finish(rig, 0); /* no time passes */
    assert_int_equal(rig->end, KLP_GUEST_MAIN);
    return number(rig, KLP_TAG_MAIN_STATE);
}

static uint32_t log_follow(struct rig *rig, uint64_t offset, bool follow)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(256);
    klp_field_append_u64(&body, KLP_TAG_OFFSET, offset);
    klp_field_append_u64(&body, KLP_TAG_FOLLOW, follow);
    return request(rig, KLP_GUEST_MAIN_LOG, &body);
}

static void test_vm_mock_engine__a_main_process_runs_and_ends(void **state)
{
    struct rig *rig = *state;
    assert_int_equal(main_status(rig), KLP_MAIN_NONE);
    log_follow(rig, 0, true);
    assert_int_equal(finish(rig, 5), KLP_GUEST_DONE); /* there is nothing to follow */
    assert_int_equal(main_start(rig, "@sleep 0.1"), 0);
    assert_int_equal(main_status(rig), KLP_MAIN_RUNNING);
    assert_int_equal(main_start(rig, "@sleep 1"), KLP_GUEST_ERROR); /* one at a time */
    log_follow(rig, 0, true);
    finish(rig, 10);
    assert_int_equal(rig->end, 0);
    assert_int_equal(finish(rig, 1000), KLP_GUEST_EXIT);
    assert_int_equal(number(rig, KLP_TAG_CODE), 0);
    assert_int_equal(main_status(rig), KLP_MAIN_EXITED);
    main_start(rig, "@exit 3");
    assert_int_equal(main_status(rig), KLP_MAIN_EXITED);
    assert_int_equal(number(rig, KLP_TAG_CODE), 3);
    main_start(rig, "@cat");
    assert_int_equal(main_status(rig), KLP_MAIN_RUNNING);
    signal_send(rig, 0, 28);
    assert_int_equal(main_status(rig), KLP_MAIN_RUNNING);
    signal_send(rig, 0, 15);
    assert_int_equal(main_status(rig), KLP_MAIN_EXITED);
    assert_int_equal(number(rig, KLP_TAG_SIGNAL), 15);
    assert_int_equal(main_start(rig, "python3 agent.py"), KLP_GUEST_ERROR);
    assert_string_equal(text(rig, KLP_TAG_ERROR), "no_command");
}

static void test_vm_mock_engine__a_main_process_sees_its_surroundings(void **state)
{
    struct rig *rig = *state;
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(4096);
    klp_field_append_text(&body, KLP_TAG_ENV, "A=1");
    assert_int_equal(ask(rig, KLP_GUEST_SETUP, &body), KLP_GUEST_DONE);
    klp_buf_clear(&body);
    words_append(&body, "@env");
    klp_field_append_text(&body, KLP_TAG_ENV, "Z=2");
    ask(rig, KLP_GUEST_MAIN_START, &body);
    log_follow(rig, 0, false);
    assert_int_equal(finish(rig, 5), KLP_GUEST_EXIT);
    assert_string_equal(klp_buf_text(&rig->out), "A=1\nZ=2\n");
}

static void test_vm_mock_engine__the_log_keeps_the_last_bytes(void **state)
{
    struct rig *rig = *state;
    main_start(rig, "@flood 100000");
    log_follow(rig, 0, false);
    assert_int_equal(finish(rig, 20), KLP_GUEST_EXIT);
    assert_int_equal(rig->out.size, MOCK_LOG_SIZE);
    for (size_t i = 0; i < rig->out.size; i++)
        assert_int_equal(rig->out.data[i], (100000 - MOCK_LOG_SIZE + i) % 251);
    main_status(rig);
    assert_int_equal(number(rig, KLP_TAG_BYTES), 100000);
    assert_int_equal(number(rig, KLP_TAG_OFFSET), 100000 - MOCK_LOG_SIZE);
    log_follow(rig, 99990, false);
    assert_int_equal(finish(rig, 5), KLP_GUEST_EXIT);
    assert_int_equal(rig->out.size, 10);
    log_follow(rig, UINT64_MAX, false);
    assert_int_equal(finish(rig, 5), KLP_GUEST_EXIT);
    assert_int_equal(rig->out.size, 0);
    main_start(rig, "@flood 1099511627776"); /* at once, whatever its size */
    main_status(rig);
    assert_int_equal(number(rig, KLP_TAG_BYTES), 1099511627776ull + 100000);
}

/* ---- frozen, unique, down */

static void test_vm_mock_engine__a_frozen_workload_stands_still(void **state)
{
    struct rig *rig = *state;
    assert_int_equal(main_start(rig, "@sleep 0.05"), 0);
    uint32_t sleeper = exec_begin(rig, "@sleep 0.05", 80);
    finish(rig, 3);
    assert_int_equal(ask(rig, KLP_GUEST_FREEZE, NULL), KLP_GUEST_DONE);
    assert_int_equal(mock_engine_idle_ms(&rig->engine), 1000);
    uint64_t count = rig->engine.state->counter;
    rig_step(rig, 10000);
    assert_int_equal(rig->engine.state->counter, count);
    exec_fails(rig, "@echo no", "wrong_state");
    assert_int_equal(main_status(rig), KLP_MAIN_RUNNING);
    assert_int_equal(ask(rig, KLP_GUEST_CHECKPOINT, NULL), KLP_GUEST_DONE); /* not the workload's */
    assert_int_equal(ask(rig, KLP_GUEST_THAW, NULL), KLP_GUEST_DONE);
    rig_clear(rig);
    uint32_t last = rig->channel;
    rig->channel = sleeper;
    assert_int_equal(finish(rig, 60), KLP_GUEST_EXIT);
    assert_int_equal(number(rig, KLP_TAG_TIMED_OUT), UINT64_MAX);
    rig->channel = last;
    assert_int_equal(main_status(rig), KLP_MAIN_EXITED);
}

static void unique_body(struct klp_buf *out, enum klp_unique_case which, uint8_t entropy_byte)
{
    uint8_t bytes[64];
    klp_field_append_u64(out, KLP_TAG_CASE, which);
    klp_field_append_u64(out, KLP_TAG_WALL_NS, (uint64_t)WALL + 5000000000ull);
    klp_field_append(out, KLP_TAG_GENERATION, "generation-16byt", 16);
    memset(bytes, entropy_byte, sizeof(bytes));
    klp_field_append(out, KLP_TAG_ENTROPY, bytes, sizeof(bytes));
}

static struct klp_bytes receipt_item(const struct rig *rig, enum klp_unique_item which,
                                     unsigned *result)
{
    size_t at = 0;
    struct klp_field field;
    while (klp_field_next(klp_buf_view(&rig->body), &at, &field, NULL) == 1) {
        struct klp_reader reader = {.data = field.data.data, .size = field.data.size};
        if (field.tag != KLP_TAG_ITEM || klp_read_u16(&reader) != which)
            continue;
        *result = klp_read_u16(&reader);
        return (struct klp_bytes){field.data.data + 4, field.data.size - 4};
    }
    fail_msg("no item %d", which);
    return (struct klp_bytes){NULL, 0};
}

static unsigned receipt_result(const struct rig *rig, enum klp_unique_item which)
{
    unsigned result = 0;
    receipt_item(rig, which, &result);
    return result;
}

static void test_vm_mock_engine__a_receipt_says_what_was_done(void **state)
{
    struct rig *rig = *state;
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(1024);
    uint8_t machine[16], wall[8];
    unsigned result;
    memcpy(machine, rig->engine.state->machine_id, 16);
    unique_body(&body, KLP_UNIQUE_MOVE, 1);
    assert_int_equal(ask(rig, KLP_GUEST_UNIQUE, &body), KLP_GUEST_RECEIPT);
    assert_memory_equal(receipt_item(rig, KLP_ITEM_GENERATION, &result).data, "generation-16byt",
                        16);
    assert_int_equal(receipt_result(rig, KLP_ITEM_MACHINE_ID), KLP_UNIQUE_NOT_APPLICABLE);
    assert_int_equal(receipt_result(rig, KLP_ITEM_BOOT_ID), KLP_UNIQUE_NOT_APPLICABLE);
    memcpy(wall, receipt_item(rig, KLP_ITEM_CLOCK, &result).data, 8);
    uint64_t now = 0;
    for (unsigned i = 0; i < 8; i++)
        now |= (uint64_t)wall[i] << (8 * i);
    assert_int_equal(now, (uint64_t)WALL + 5000000000ull);
    assert_memory_equal(rig->engine.state->machine_id, machine, 16);

    /* A fork that is not told who it is says that it is not: it failed, and is not "done". */
    klp_buf_clear(&body);
    unique_body(&body, KLP_UNIQUE_FORK, 2);
    assert_int_equal(ask(rig, KLP_GUEST_UNIQUE, &body), KLP_GUEST_RECEIPT);
    assert_int_equal(receipt_result(rig, KLP_ITEM_MACHINE_ID), KLP_UNIQUE_FAILED);
    assert_int_equal(receipt_result(rig, KLP_ITEM_BOOT_ID), KLP_UNIQUE_FAILED);
    assert_int_equal(receipt_result(rig, KLP_ITEM_HOSTNAME), KLP_UNIQUE_FAILED);
    klp_field_append(&body, KLP_TAG_MACHINE_ID, "machine-16-bytes", 16);
    klp_field_append(&body, KLP_TAG_BOOT_ID, "bootid--16-bytes", 16);
    klp_field_append_text(&body, KLP_TAG_HOSTNAME, "fork-1");
    assert_int_equal(ask(rig, KLP_GUEST_UNIQUE, &body), KLP_GUEST_RECEIPT);
    assert_memory_equal(receipt_item(rig, KLP_ITEM_MACHINE_ID, &result).data, "machine-16-bytes",
                        16);
    assert_int_equal(result, KLP_UNIQUE_DONE);
    assert_memory_equal(receipt_item(rig, KLP_ITEM_HOSTNAME, &result).data, "fork-1", 6);
    assert_int_equal(result, KLP_UNIQUE_DONE);
}

static void test_vm_mock_engine__an_incomplete_unique_changes_nothing(void **state)
{
    static const uint16_t needed[] = {KLP_TAG_CASE, KLP_TAG_WALL_NS, KLP_TAG_GENERATION,
                                      KLP_TAG_ENTROPY};
    struct rig *rig = *state;
    struct mock_state before = *rig->engine.state;
    for (unsigned left_out = 0; left_out < 5; left_out++) {
        __attribute__((cleanup(klp_auto_buf))) struct klp_buf whole = KLP_BUF_INIT(1024),
                                                              body = KLP_BUF_INIT(1024);
        size_t at = 0;
        struct klp_field field;
        unique_body(&whole, left_out == 4 ? (enum klp_unique_case)9 : KLP_UNIQUE_MOVE, 3);
        while (klp_field_next(klp_buf_view(&whole), &at, &field, NULL) == 1)
            if (left_out == 4 || field.tag != needed[left_out])
                klp_field_append(&body, field.tag, field.data.data, field.data.size);
        if (left_out ==
            1) { /* the time alone has a value when it is absent: zero, and it is taken */
            continue;
        }
        assert_int_equal(ask(rig, KLP_GUEST_UNIQUE, &body), KLP_GUEST_ERROR);
        assert_memory_equal(rig->engine.state->rng, before.rng, sizeof(before.rng));
        assert_memory_equal(rig->engine.state->generation, before.generation, 16);
        assert_int_equal(rig->engine.state->has_generation, 0);
    }
}

static void test_vm_mock_engine__clones_differ_once_they_are_unique(void **state)
{
    struct rig *rig = *state, clone;
    uint8_t *memory = malloc(MEMORY), drawn[2][32];
    unsigned result;
    say(rig, "@fill 2 8");
    memcpy(memory, rig->memory, MEMORY);
    rig_init(&clone, memory, MEMORY, PAGE);
    hello(&clone);
    assert_memory_equal(clone.engine.state->rng, rig->engine.state->rng, 32); /* the danger */
    for (unsigned i = 0; i < 2; i++) {
        __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(1024);
        struct rig *one = i == 0 ? rig : &clone;
        unique_body(&body, KLP_UNIQUE_REWIND, (uint8_t)(10 + i));
        klp_field_append(&body, KLP_TAG_BOOT_ID, "bootid--16-bytes", 16);
        assert_int_equal(ask(one, KLP_GUEST_UNIQUE, &body), KLP_GUEST_RECEIPT);
        memcpy(drawn[i], receipt_item(one, KLP_ITEM_KERNEL_RNG, &result).data, 32);
        assert_int_equal(result, KLP_UNIQUE_DONE);
    }
    assert_memory_not_equal(drawn[0], drawn[1], 32);
    assert_string_equal(say(&clone, "@check"), "pages=512 bad=0\n");
    rig_finish(&clone);
    free(memory);
}

static void test_vm_mock_engine__all_of_its_state_is_in_its_memory(void **state)
{
    struct rig *rig = *state, later;
    uint8_t *memory = malloc(MEMORY);
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(1024);
    klp_field_append_text(&body, KLP_TAG_ENV, "A=1");
    klp_field_append_text(&body, KLP_TAG_WORKDIR, "/w");
    ask(rig, KLP_GUEST_SETUP, &body);
    tree_put(rig);
    main_start(rig, "@sleep 1");
    say(rig, "@fill 3 4");
    rig_step(rig, 400);
    uint64_t count = strtoull(say(rig, "@count"), NULL, 10);
    assert_int_equal(ask(rig, KLP_GUEST_FREEZE, NULL), KLP_GUEST_DONE);
    exec_begin(rig, "@sleep 100", 0); /* half a session is under way */
    memcpy(memory, rig->memory, MEMORY);
    memset(rig->memory, 0xdd, MEMORY); /* no pointer leads back */
    rig_init(&later, memory, MEMORY, PAGE);
    assert_false(later.engine.crashed);
    hello(&later);
    assert_int_equal(number(&later, KLP_TAG_MAIN_STATE), KLP_MAIN_RUNNING);
    exec_fails(&later, "@echo", "wrong_state"); /* frozen still */
    assert_int_equal(ask(&later, KLP_GUEST_THAW, NULL), KLP_GUEST_DONE);
    assert_string_equal(say(&later, "@check"), "pages=768 bad=0\n");
    assert_string_equal(say(&later, "@env"), "A=1\n");
    assert_string_equal(say(&later, "@cat d/a"), "hello");
    assert_in_range(strtoull(say(&later, "@count"), NULL, 10), count, count + 20);
    assert_int_equal(main_status(&later), KLP_MAIN_RUNNING);
    rig_step(&later, 700);
    assert_int_equal(main_status(&later), KLP_MAIN_EXITED);
    rig_finish(&later);
    free(memory);
}

static void test_vm_mock_engine__goes_down_and_crashes_as_told(void **state)
{
    struct rig *rig = *state;
    assert_int_equal(ask(rig, KLP_GUEST_SHUTDOWN, NULL), KLP_GUEST_DONE);
    assert_true(rig->engine.powered_off);
    exec_begin(rig, "@crash", 0);
    finish(rig, 5);
    assert_int_equal(rig->end, 0); /* the dead answer nothing */
    assert_true(rig->engine.crashed);
    assert_non_null(strstr(rig->engine.console, "crashed"));
}

/* ---- memory from anywhere */

static bool is_sound_with(struct rig *rig, uint8_t *memory)
{
    struct mock_engine engine;
    uint8_t seed[32] = {0};
    memcpy(memory, rig->memory, MEMORY);
    mock_engine_init(&engine, memory, MEMORY, PAGE, "x86_64", seed);
    bool sound = !engine.crashed;
    mock_engine_finish(&engine);
    return sound;
}

#define DAMAGED(statement)                                                                         \
    do {                                                                                           \
        struct mock_state kept = *state_;                                                          \
        statement;                                                                                 \
        assert_false(is_sound_with(rig, memory));                                                  \
        *state_ = kept;                                                                            \
        assert_true(is_sound_with(rig, memory));                                                   \
    } while (0)

static void test_vm_mock_engine__damaged_memory_is_refused(void **state)
{
    struct rig *rig = *state;
    struct mock_state *state_ = rig->engine.state;
    uint8_t *memory = malloc(MEMORY);
    tree_put(rig);
    assert_true(is_sound_with(rig, memory));
    DAMAGED(state_->env_size = MOCK_ENV_SIZE + 1);
    DAMAGED((state_->env_size = 3, memcpy(state_->env, "A=1", 3)));
    DAMAGED(memset(state_->hostname, 'h', sizeof(state_->hostname)));
    DAMAGED(memset(state_->workdir, 'w', sizeof(state_->workdir)));
    DAMAGED(state_->fill_pages = MEMORY / 2 / PAGE + 1);
    DAMAGED(state_->fill_pages = UINT64_MAX);
    DAMAGED(state_->main_state = 3);
    DAMAGED(state_->frozen = 2);
    DAMAGED(state_->files_used = MEMORY);
    DAMAGED(state_->files[1].size = 6);
    DAMAGED(state_->files[1].offset = UINT64_MAX - 2);
    DAMAGED((state_->files[1].reserved = UINT64_MAX, state_->files[1].size = UINT64_MAX));
    DAMAGED(memset(state_->files[2].target, 't', sizeof(state_->files[2].target)));
    DAMAGED(memset(state_->files[63].path, 'p', sizeof(state_->files[63].path)));
    DAMAGED(state_->files[4].offset = state_->files[1].offset); /* two in one place */
    free(memory);
}

/* Whatever bytes lie there, nothing is read or written outside: under a sanitizer this would show.
 */
static void test_vm_mock_engine__random_memory_does_no_harm(void **state)
{
    struct rig *rig = *state;
    uint8_t *memory = malloc(MEMORY);
    unsigned usable = 0;
    uint64_t random = 88172645463325252ull;
    tree_put(rig);
    say(rig, "@fill 1 1");
    for (unsigned round = 0; round < 300; round++) {
        struct rig other;
        memcpy(memory, rig->memory, sizeof(struct mock_state));
        for (unsigned i = 0; i < 1 + round % 4; i++) {
            random ^= random << 13, random ^= random >> 7, random ^= random << 17;
            memory[8 + random % (sizeof(struct mock_state) - 8)] ^=
                (uint8_t)(1u << (random >> 60) % 8);
        }
        rig_init(&other, memory, MEMORY, PAGE);
        if (!other.engine.crashed) {
            usable++;
            hello(&other);
            ask(&other, KLP_GUEST_THAW, NULL);
            exec_begin(&other, "@check", 0);
            finish(&other, 5);
            exec_begin(&other, "@env", 0);
            finish(&other, 5);
            ask(&other, KLP_GUEST_CHECKPOINT, NULL);
            log_follow(&other, 0, false);
            finish(&other, 5);
            put_file(&other, "new", "1234", 4);
        } else {
            __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(64);
            klp_field_append(&body, KLP_TAG_NONCE, "nonce-of-16bytes", 16);
            assert_string_equal(other.engine.console, "mock guest: its memory is damaged");
            frame_put(&other, KLP_GUEST_HELLO, 0, 0, klp_buf_view(&body));
            rig_step(&other, 5);
            assert_int_equal(other.engine.out.size, 0);
        }
        rig_finish(&other);
    }
    assert_in_range(usable, 1, 300);
    free(memory);
}

#define RIG_TEST(test)                                                                             \
    cmocka_unit_test_setup_teardown(test_vm_mock_engine__##test, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        RIG_TEST(is_silent_before_a_hello),
        RIG_TEST(a_new_hello_drops_what_was),
        RIG_TEST(garbage_is_passed_over),
        RIG_TEST(frames_come_in_pieces),
        RIG_TEST(unknown_requests_are_answered),
        RIG_TEST(says_its_words),
        RIG_TEST(fills_and_checks_its_pages),
        RIG_TEST(runs_on_small_pages),
        RIG_TEST(setup_is_the_default_of_all),
        RIG_TEST(an_environment_has_bounds),
        RIG_TEST(sleeps_and_counts_its_own_time),
        RIG_TEST(the_earlier_of_end_and_timeout_counts),
        RIG_TEST(signals_end_what_they_end),
        RIG_TEST(a_closed_channel_says_no_more),
        RIG_TEST(a_flood_stops_where_credit_ends),
        RIG_TEST(nobody_reads_and_nothing_grows),
        RIG_TEST(input_comes_back_at_the_readers_pace),
        RIG_TEST(files_go_in_and_come_out),
        RIG_TEST(an_empty_checkpoint_is_one),
        RIG_TEST(a_large_file_passes_whole),
        RIG_TEST(a_replaced_file_gives_its_room_back),
        RIG_TEST(the_table_of_files_is_finite),
        RIG_TEST(two_puts_of_one_name_stay_in_bounds),
        RIG_TEST(bad_archives_are_errors),
        RIG_TEST(a_main_process_runs_and_ends),
        RIG_TEST(a_main_process_sees_its_surroundings),
        RIG_TEST(the_log_keeps_the_last_bytes),
        RIG_TEST(a_frozen_workload_stands_still),
        RIG_TEST(a_receipt_says_what_was_done),
        RIG_TEST(an_incomplete_unique_changes_nothing),
        RIG_TEST(clones_differ_once_they_are_unique),
        RIG_TEST(all_of_its_state_is_in_its_memory),
        RIG_TEST(goes_down_and_crashes_as_told),
        RIG_TEST(damaged_memory_is_refused),
        RIG_TEST(random_memory_does_no_harm),
    };
    return cmocka_run_group_tests_name("vm_mock_engine", tests, NULL, NULL);
}
