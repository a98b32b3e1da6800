/* SPDX-License-Identifier: Apache-2.0 */
/* The host's side of a guest session against a guest in the test's hands: greeting, calls, credit,
 * the main process. Calls that end early: vm_guest_ends.c; hostile guests: vm_guest_hostile.c. */
#include "vm_guest_kit.h"

#define U64(value) ((uint64_t)(value))

/* ---- greeting */

static void test_vm_guest__greeting(void **state)
{
    struct guest_kit *g = *state;
    struct guest_opening opening;
    struct klp_buf body = KLP_BUF_INIT(1024);
    struct klp_task *task = guest_open_begin(g, &opening);
    struct klp_bytes nonce = guest_hello_nonce(g);
    klp_field_append(&body, KLP_TAG_NONCE, nonce.data, nonce.size);
    klp_field_append_u64(&body, KLP_TAG_VERSION, KLP_GUEST_VERSION);
    klp_field_append_u64(&body, KLP_TAG_CAPS, KLP_GUEST_CAP_EXEC | KLP_GUEST_CAP_FREEZE);
    klp_field_append_text(&body, KLP_TAG_ARCH, "a-very-long-architecture");
    klp_field_append(&body, KLP_TAG_GENERATION, "0123456789abcdef", 16);
    klp_field_append_u64(&body, KLP_TAG_MAIN_STATE, KLP_MAIN_EXITED);
    guest_say(g, KLP_GUEST_HELLO_ACK, 0, 0, body.data, body.size);
    klp_buf_finish(&body);
    klp_task_join(task);
    assert_true(kelpie_is_ok(opening.outcome));
    const struct klp_guest_hello *hello = klp_guest_hello(g->guest);
    assert_int_equal(hello->caps, KLP_GUEST_CAP_EXEC | KLP_GUEST_CAP_FREEZE);
    assert_string_equal(hello->arch, "a-very-long-arc");
    assert_true(hello->has_generation);
    assert_memory_equal(hello->generation, "0123456789abcdef", 16);
    assert_int_equal(hello->main_state, KLP_MAIN_EXITED);
}

static void test_vm_guest__greeting_is_repeated(void **state)
{
    struct guest_kit *g = *state;
    struct guest_opening opening;
    uint8_t first[64];
    struct klp_task *task = guest_open_begin(g, &opening);
    struct klp_bytes nonce = guest_hello_nonce(g);
    size_t size = nonce.size;
    memcpy(first, nonce.data, size);
    for (int i = 0; i < 2; i++) { /* it was not up yet */
        nonce = guest_hello_nonce(g);
        assert_int_equal(nonce.size, size);
        assert_memory_equal(nonce.data, first, size);
    }
    guest_ack(g, nonce, KLP_GUEST_VERSION, GUEST_ALL_CAPS);
    guest_ack(g, nonce, KLP_GUEST_VERSION, GUEST_ALL_CAPS); /* late answers to the first ones */
    klp_task_join(task);
    assert_true(kelpie_is_ok(opening.outcome));
    while (guest_next(g, 50)) { /* perhaps one more HELLO */
    }
    guest_is_well(g);
}

/* What an earlier session or a restore left in the stream: halves of frames, whole frames, noise,
 * and the answer to somebody else's greeting. */
static void test_vm_guest__greeting_is_found_in_garbage(void **state)
{
    struct guest_kit *g = *state;
    struct guest_opening opening;
    static const uint8_t other[16] = {1, 2, 3};
    uint8_t noise[20000], half[KLP_GUEST_HEADER_SIZE] = {'K', 'G', 1, 0, 64};
    struct klp_task *task = guest_open_begin(g, &opening);
    struct klp_bytes nonce = guest_hello_nonce(g);
    for (size_t i = 0; i < sizeof(noise); i++)
        noise[i] = (uint8_t) "KG\1K"[i * i % 4];
    guest_say_bytes(g, noise, sizeof(noise));
    guest_say_exit(g, 5, 0);
    guest_ack(g, (struct klp_bytes){other, sizeof(other)}, KLP_GUEST_VERSION, 1);
    half[12] = half[13] = 0xff; /* a body of 65,535 bytes that swallows what follows */
    guest_say_bytes(g, half, sizeof(half));
    guest_ack(g, nonce, KLP_GUEST_VERSION, GUEST_ALL_CAPS);
    klp_task_join(task);
    assert_true(kelpie_is_ok(opening.outcome));
    assert_int_equal(klp_guest_hello(g->guest)->caps, GUEST_ALL_CAPS);
    guest_is_well(g);
}

static void test_vm_guest__greeting_byte_by_byte(void **state)
{
    struct guest_kit *g = *state;
    struct guest_opening opening;
    struct klp_buf body = KLP_BUF_INIT(256), frame = KLP_BUF_INIT(512);
    struct klp_task *task = guest_open_begin(g, &opening);
    struct klp_bytes nonce = guest_hello_nonce(g);
    klp_field_append(&body, KLP_TAG_NONCE, nonce.data, nonce.size);
    klp_field_append_u64(&body, KLP_TAG_VERSION, KLP_GUEST_VERSION);
    klp_guest_frame_append(&frame, KLP_GUEST_HELLO_ACK, 0, 0, klp_buf_view(&body));
    for (size_t i = 0; i < frame.size; i++)
        guest_say_bytes(g, frame.data + i, 1);
    klp_buf_finish(&body);
    klp_buf_finish(&frame);
    klp_task_join(task);
    assert_true(kelpie_is_ok(opening.outcome));
}

static void test_vm_guest__greeting_has_a_deadline(void **state)
{
    struct guest_kit *g = *state;
    struct kelpie_error *err = NULL;
    struct kelpie_op op = klp_op_plain(g->env, 250);
    KIT_FAILS(klp_guest_open(&op, g->env, g->stream, &g->guest, &err), &err, KELPIE_E_TIMEOUT,
              "greeting");
}

static void test_vm_guest__greeting_to_nobody(void **state)
{
    struct guest_kit *g = *state;
    struct kelpie_error *err = NULL;
    struct kelpie_op op = klp_op_plain(g->env, GUEST_WAIT_MS);
    assert_int_equal(shutdown(g->fd, SHUT_RDWR), 0);
    KIT_FAILS(klp_guest_open(&op, g->env, g->stream, &g->guest, &err), &err, KELPIE_E_UNREACHABLE,
              "");
}

/* ---- exec */

static void test_vm_guest__exec(void **state)
{
    struct guest_kit *g = *state;
    struct guest_call call;
    struct klp_bytes field;
    uint64_t number;
    const char *const env[] = {"K=V", NULL};
    guest_call_init(&call, g, CALL_EXEC);
    call.exec.env = env;
    call.exec.workdir = "/w";
    call.exec.timeout_ms = 77;
    call.exec.tty = true;
    call.exec.rows = 3;
    call.exec.cols = 4;
    guest_call_begin(&call);
    uint32_t channel = guest_expect(g, KLP_GUEST_EXEC);
    assert_true(channel > 0);
    assert_true(klp_field_find(g->frame.body, KLP_TAG_ARG, &field));
    assert_memory_equal(field.data, "program", field.size);
    assert_true(klp_field_find(g->frame.body, KLP_TAG_ENV, &field));
    assert_memory_equal(field.data, "K=V", field.size);
    assert_true(klp_field_find(g->frame.body, KLP_TAG_WORKDIR, &field));
    assert_memory_equal(field.data, "/w", field.size);
    assert_true(klp_field_u64(g->frame.body, KLP_TAG_TIMEOUT_MS, 0, &number, NULL));
    assert_int_equal(number, 77);
    assert_true(klp_field_u64(g->frame.body, KLP_TAG_COLS, 0, &number, NULL));
    assert_int_equal(number, 4);
    guest_say_numbers(g, KLP_GUEST_STARTED, channel, KLP_TAG_PID, U64(5), 0);
    guest_say(g, KLP_GUEST_DATA, 0, channel, "out", 3);
    guest_say(g, KLP_GUEST_DATA, KLP_GUEST_FLAG_STDERR, channel, "err", 3);
    guest_say(g, KLP_GUEST_DATA, KLP_GUEST_FLAG_END, channel, "put", 3);
    guest_say_numbers(g, KLP_GUEST_EXIT, channel, KLP_TAG_CODE, U64(0), KLP_TAG_SIGNAL, U64(9),
                      KLP_TAG_TIMED_OUT, U64(1), 0);
    guest_call_is_ok(&call);
    assert_string_equal(klp_buf_text(&call.out), "output");
    assert_string_equal(klp_buf_text(&call.err), "err");
    assert_int_equal(call.status.exit_code, 137);
    assert_int_equal(call.status.signal, 9);
    assert_true(call.status.timed_out);
    guest_call_finish(&call);
}

static void exec_is_refused(struct guest_kit *g, const char *code, const char *text,
                            enum kelpie_code want, const char *part)
{
    struct guest_call call;
    uint32_t channel = guest_exec_begin(&call, g);
    guest_say_error(g, channel, code, text);
    guest_call_fails(&call, want, part);
}

static void test_vm_guest__refusals_of_the_guest(void **state)
{
    struct guest_kit *g = *state;
    exec_is_refused(g, "no_command", "no such program", KELPIE_E_NO_COMMAND, "no such program");
    exec_is_refused(g, "not_executable", "x", KELPIE_E_NOT_EXECUTABLE, "program");
    exec_is_refused(g, "wrong_state", "frozen", KELPIE_E_STATE, "frozen");
    exec_is_refused(g, "a new word", "x", KELPIE_E_INTERNAL, "x");
    exec_is_refused(g, "crashed", "x", KELPIE_E_INTERNAL, "x"); /* ours to say */
    exec_is_refused(g, "outcome_unknown", "x", KELPIE_E_INTERNAL, "x");
    exec_is_refused(g, "io", "line\n\x1b[31mred", KELPIE_E_IO, "\\x1b[31mred");
    exec_is_refused(g, "", "", KELPIE_E_INTERNAL, "no reason");
    guest_is_well(g);
}

static void test_vm_guest__bounds_of_a_request(void **state)
{
    struct guest_kit *g = *state;
    struct kelpie_error *err = NULL;
    struct kelpie_exec_status status;
    struct kelpie_op op = klp_op_plain(g->env, GUEST_WAIT_MS);
    const char *const none[] = {NULL};
    struct kelpie_exec exec = {.argv = none};
    char *large = calloc(1, KLP_FRAME_BODY_MAX + 1);
    KIT_FAILS(klp_guest_exec(&op, g->guest, &exec, &status, &err), &err, KELPIE_E_INVALID,
              "command");
    memset(large, 'x', KLP_FRAME_BODY_MAX);
    const char *const too_large[] = {large, NULL};
    exec.argv = too_large;
    KIT_FAILS(klp_guest_exec(&op, g->guest, &exec, &status, &err), &err, KELPIE_E_LIMIT, "frame");
    KIT_FAILS(klp_guest_put(&op, g->guest, large, guest_call_input, NULL, &err), &err,
              KELPIE_E_INVALID, "");
    free(large);
    guest_is_well(g);
}

static void test_vm_guest__caps_are_honoured(void **state)
{
    struct guest_kit *g = *state;
    struct kelpie_error *err = NULL;
    struct kelpie_exec_status status;
    struct kelpie_op op = klp_op_plain(g->env, GUEST_WAIT_MS);
    const char *const argv[] = {"p", NULL};
    struct kelpie_exec exec = {.argv = argv, .tty = true};
    struct klp_guest_main facts;
    guest_begin(g, KLP_GUEST_CAP_EXEC);
    KIT_FAILS(klp_guest_exec(&op, g->guest, &exec, &status, &err), &err, KELPIE_E_UNSUPPORTED, "p");
    KIT_FAILS(klp_guest_put(&op, g->guest, "/", guest_call_input, NULL, &err), &err,
              KELPIE_E_UNSUPPORTED, "");
    KIT_FAILS(klp_guest_order(&op, g->guest, KLP_GUEST_FREEZE, &err), &err, KELPIE_E_UNSUPPORTED,
              "freeze");
    KIT_FAILS(klp_guest_main_status(&op, g->guest, &facts, &err), &err, KELPIE_E_UNSUPPORTED, "");
    assert_false(guest_next(g, 50)); /* nothing was sent */
    guest_is_well(g);
}

/* ---- credit */

static void test_vm_guest__output_is_bounded_by_credit(void **state)
{
    struct guest_kit *g = *state;
    struct guest_call call;
    uint8_t *bytes = calloc(1, 64 * 1024);
    uint64_t granted = 0, got;
    guest_call_init(&call, g, CALL_EXEC);
    call.block_output = true;
    guest_call_begin(&call);
    uint32_t channel = guest_expect(g, KLP_GUEST_EXEC);
    guest_expect(g, KLP_GUEST_DATA);
    for (int i = 0; i < 4; i++)
        guest_say(g, KLP_GUEST_DATA, i % 2 == 0 ? 0 : KLP_GUEST_FLAG_STDERR, channel, bytes,
                  64 * 1024);
    guest_is_well(g); /* a slow reader holds up nobody else, and gets no more credit */
    assert_false(guest_next(g, 50));
    __atomic_store_n(&call.block_output, false, __ATOMIC_SEQ_CST);
    while (granted < KLP_GUEST_CREDIT) {
        assert_int_equal(guest_expect(g, KLP_GUEST_CREDIT_GRANT), channel);
        assert_true(klp_field_u64(g->frame.body, KLP_TAG_BYTES, 0, &got, NULL));
        granted += got;
    }
    assert_int_equal(granted, KLP_GUEST_CREDIT); /* never more than was delivered */
    guest_say(g, KLP_GUEST_DATA, 0, channel, bytes, 64 * 1024);
    guest_say_exit(g, channel, 0);
    guest_call_is_ok(&call);
    assert_int_equal(call.out.size, 3 * 64 * 1024);
    assert_int_equal(call.err.size, 2 * 64 * 1024);
    guest_call_finish(&call);
    free(bytes);
}

static size_t read_input(struct guest_kit *g, uint32_t channel, size_t want, bool *end)
{
    size_t size = 0;
    *end = false;
    while (size < want && !*end && guest_next(g, 300)) {
        assert_int_equal(g->frame.type, KLP_GUEST_DATA);
        assert_int_equal(g->frame.channel, channel);
        size += g->frame.body.size;
        *end = (g->frame.flags & KLP_GUEST_FLAG_END) != 0;
    }
    return size;
}

static void test_vm_guest__input_is_bounded_by_credit(void **state)
{
    struct guest_kit *g = *state;
    struct guest_call call;
    bool end;
    guest_call_init(&call, g, CALL_EXEC);
    call.exec.input = guest_call_input;
    call.input_left = 2 * KLP_GUEST_CREDIT + 10;
    guest_call_begin(&call);
    uint32_t channel = guest_expect(g, KLP_GUEST_EXEC);
    assert_int_equal(read_input(g, channel, SIZE_MAX, &end), KLP_GUEST_CREDIT);
    assert_false(end);
    guest_say_numbers(g, KLP_GUEST_CREDIT_GRANT, channel, KLP_TAG_BYTES, U64(5), 0);
    assert_int_equal(read_input(g, channel, SIZE_MAX, &end), 5);
    guest_say_numbers(g, KLP_GUEST_CREDIT_GRANT, channel, KLP_TAG_BYTES, U64(1 << 30), 0);
    assert_int_equal(read_input(g, channel, SIZE_MAX, &end), KLP_GUEST_CREDIT + 5);
    assert_true(end);
    guest_say_exit(g, channel, 0);
    guest_call_is_ok(&call);
    guest_call_finish(&call);
}

/* It ends while its input has no credit: the call does not wait for that. */
static void test_vm_guest__end_before_all_input(void **state)
{
    struct guest_kit *g = *state;
    struct guest_call call;
    bool end;
    for (int kind = 0; kind < 2; kind++) {
        guest_call_init(&call, g, kind == 0 ? CALL_EXEC : CALL_PUT);
        call.exec.input = guest_call_input;
        call.input_left = 3 * KLP_GUEST_CREDIT;
        guest_call_begin(&call);
        uint32_t channel = guest_expect(g, kind == 0 ? KLP_GUEST_EXEC : KLP_GUEST_PUT);
        assert_int_equal(read_input(g, channel, SIZE_MAX, &end), KLP_GUEST_CREDIT);
        if (kind == 0) {
            guest_say_exit(g, channel, 3);
            guest_call_is_ok(&call);
            assert_int_equal(call.status.exit_code, 3);
            guest_call_finish(&call);
        } else {
            guest_say_error(g, channel, "no_space", "full");
            guest_call_fails(&call, KELPIE_E_NO_SPACE, "full");
        }
    }
    guest_is_well(g);
}

static void test_vm_guest__files(void **state)
{
    struct guest_kit *g = *state;
    struct guest_call call;
    bool end;
    guest_call_init(&call, g, CALL_PUT);
    call.input_left = 1000;
    guest_call_begin(&call);
    uint32_t channel = guest_expect(g, KLP_GUEST_PUT);
    assert_int_equal(read_input(g, channel, SIZE_MAX, &end), 1000);
    assert_true(end);
    guest_say(g, KLP_GUEST_DONE, 0, channel, NULL, 0);
    guest_call_is_ok(&call);
    guest_call_finish(&call);

    guest_call_start(&call, g, CALL_GET);
    channel = guest_expect(g, KLP_GUEST_GET);
    guest_say(g, KLP_GUEST_DATA, 0, channel, "abc", 3);
    guest_say(g, KLP_GUEST_DATA, KLP_GUEST_FLAG_END, channel, NULL, 0);
    guest_say(g, KLP_GUEST_DONE, 0, channel, NULL, 0);
    guest_call_is_ok(&call);
    assert_string_equal(klp_buf_text(&call.out), "abc");
    guest_call_finish(&call);

    guest_call_start(&call, g, CALL_GET); /* it breaks off in the middle */
    channel = guest_expect(g, KLP_GUEST_GET);
    guest_say(g, KLP_GUEST_DATA, 0, channel, "abc", 3);
    guest_say_error(g, channel, "io", "disk");
    guest_call_fails(&call, KELPIE_E_IO, "disk");
}

/* ---- the main process */

static void test_vm_guest__main_status(void **state)
{
    struct guest_kit *g = *state;
    struct guest_call call;
    guest_call_start(&call, g, CALL_MAIN);
    guest_say_numbers(g, KLP_GUEST_MAIN, guest_expect(g, KLP_GUEST_MAIN_STATUS), KLP_TAG_MAIN_STATE,
                      U64(KLP_MAIN_EXITED), KLP_TAG_CODE, U64(4), KLP_TAG_OFFSET, U64(10),
                      KLP_TAG_BYTES, U64(99), 0);
    guest_call_is_ok(&call);
    assert_int_equal(call.main.state, KLP_MAIN_EXITED);
    assert_int_equal(call.main.exit_code, 4);
    assert_int_equal(call.main.log_start, 10);
    assert_int_equal(call.main.log_end, 99);
    guest_call_finish(&call);
}

static void say_log(struct guest_kit *g, uint32_t channel, uint64_t start, uint64_t end,
                    bool is_stderr, const char *text)
{
    guest_say_numbers(g, KLP_GUEST_MAIN, channel, KLP_TAG_MAIN_STATE, U64(KLP_MAIN_RUNNING),
                      KLP_TAG_OFFSET, start, KLP_TAG_BYTES, end, 0);
    guest_say(g, KLP_GUEST_DATA, is_stderr ? KLP_GUEST_FLAG_STDERR : 0, channel, text,
              strlen(text));
}

static void test_vm_guest__log_tells_where_bytes_belong(void **state)
{
    struct guest_kit *g = *state;
    struct guest_call call;
    guest_call_init(&call, g, CALL_LOG);
    call.log_from = 100;
    call.block_output = true;
    guest_call_begin(&call);
    uint32_t channel = guest_expect(g, KLP_GUEST_MAIN_LOG);
    say_log(g, channel, 50, 200, false, "aa"); /* 100 */
    say_log(g, channel, 50, 200, false, "bb"); /* 102 */
    say_log(g, channel, 50, 200, true, "cc");  /* 104, the other stream */
    say_log(g, channel, 150, 200, true, "dd"); /* 150: bytes were lost */
    guest_say_numbers(g, KLP_GUEST_EXIT, channel, KLP_TAG_CODE, U64(0), KLP_TAG_SIGNAL, U64(6), 0);
    __atomic_store_n(&call.block_output, false, __ATOMIC_SEQ_CST);
    guest_call_is_ok(&call);
    assert_string_equal(klp_buf_text(&call.out), "aabbccdd");
    assert_int_equal(call.log_first, 100);
    assert_int_equal(call.log_next, 152);
    assert_int_equal(call.log_gaps, 1);
    assert_int_equal(call.log_turns, 1);
    assert_int_equal(call.main.state, KLP_MAIN_EXITED);
    assert_int_equal(call.main.signal, 6);
    assert_int_equal(call.main.exit_code, 134);
    guest_call_finish(&call);
}

/* More changes of the stream than are remembered: every byte comes, in its place. */
static void test_vm_guest__log_of_many_turns(void **state)
{
    struct guest_kit *g = *state;
    struct guest_call call;
    unsigned turns = GUEST_LOG_RUNS_MAX * 2;
    guest_call_init(&call, g, CALL_LOG);
    call.block_output = true;
    guest_call_begin(&call);
    uint32_t channel = guest_expect(g, KLP_GUEST_MAIN_LOG);
    guest_say(g, KLP_GUEST_DATA, 0, channel, "first", 5);
    for (unsigned i = 0; i < turns; i++)
        guest_say(g, KLP_GUEST_DATA, i % 2 == 0 ? KLP_GUEST_FLAG_STDERR : 0, channel, "x", 1);
    guest_say(g, KLP_GUEST_DONE, 0, channel, NULL, 0);
    guest_is_well(g);
    __atomic_store_n(&call.block_output, false, __ATOMIC_SEQ_CST);
    guest_call_is_ok(&call);
    assert_int_equal(call.out.size, 5 + turns);
    assert_int_equal(call.log_gaps, 0);
    assert_int_equal(call.log_next, 5 + turns);
    guest_call_finish(&call);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        GUEST_TEST_BARE(test_vm_guest__greeting),
        GUEST_TEST_BARE(test_vm_guest__greeting_is_repeated),
        GUEST_TEST_BARE(test_vm_guest__greeting_is_found_in_garbage),
        GUEST_TEST_BARE(test_vm_guest__greeting_byte_by_byte),
        GUEST_TEST_BARE(test_vm_guest__greeting_has_a_deadline),
        GUEST_TEST_BARE(test_vm_guest__greeting_to_nobody),
        GUEST_TEST(test_vm_guest__exec),
        GUEST_TEST(test_vm_guest__refusals_of_the_guest),
        GUEST_TEST(test_vm_guest__bounds_of_a_request),
        GUEST_TEST_BARE(test_vm_guest__caps_are_honoured),
        GUEST_TEST(test_vm_guest__output_is_bounded_by_credit),
        GUEST_TEST(test_vm_guest__input_is_bounded_by_credit),
        GUEST_TEST(test_vm_guest__end_before_all_input),
        GUEST_TEST(test_vm_guest__files),
        GUEST_TEST(test_vm_guest__main_status),
        GUEST_TEST(test_vm_guest__log_tells_where_bytes_belong),
        GUEST_TEST(test_vm_guest__log_of_many_turns),
    };
    return cmocka_run_group_tests_name("vm_guest", tests, NULL, NULL);
}
