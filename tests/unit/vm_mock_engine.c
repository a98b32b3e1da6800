/* SPDX-License-Identifier: Apache-2.0 */
/* The mock guest's engine, bytes in and bytes out: the session, every word, time and credit. */
#include "vm_mock_engine_kit.h"

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        RIG_TEST(test_vm_mock_engine__is_silent_before_a_hello),
        RIG_TEST(test_vm_mock_engine__a_new_hello_drops_what_was),
        RIG_TEST(test_vm_mock_engine__garbage_is_passed_over),
        RIG_TEST(test_vm_mock_engine__frames_come_in_pieces),
        RIG_TEST(test_vm_mock_engine__unknown_requests_are_answered),
        RIG_TEST(test_vm_mock_engine__says_its_words),
        RIG_TEST(test_vm_mock_engine__fills_and_checks_its_pages),
        RIG_TEST(test_vm_mock_engine__runs_on_small_pages),
        RIG_TEST(test_vm_mock_engine__setup_is_the_default_of_all),
        RIG_TEST(test_vm_mock_engine__an_environment_has_bounds),
        RIG_TEST(test_vm_mock_engine__sleeps_and_counts_its_own_time),
        RIG_TEST(test_vm_mock_engine__the_earlier_of_end_and_timeout_counts),
        RIG_TEST(test_vm_mock_engine__signals_end_what_they_end),
        RIG_TEST(test_vm_mock_engine__a_closed_channel_says_no_more),
        RIG_TEST(test_vm_mock_engine__a_flood_stops_where_credit_ends),
        RIG_TEST(test_vm_mock_engine__nobody_reads_and_nothing_grows),
        RIG_TEST(test_vm_mock_engine__input_comes_back_at_the_readers_pace),
    };
    return cmocka_run_group_tests_name("vm_mock_engine", tests, NULL, NULL);
}
