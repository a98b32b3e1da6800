/* SPDX-License-Identifier: Apache-2.0 */
/* Programs in the guest: their streams, ends, time limits, groups and terminals, and the @ words.
 */
#include "guest_kit.h"

static struct client the_client;

static int setup(void **state)
{
    client_open(&the_client, NULL);
    *state = &the_client;
    return 0;
}

static int teardown(void **state)
{
    client_stop(*state);
    return 0;
}

static uint32_t exec_limited(struct client *c, const char *const *argv, uint64_t timeout_ms)
{
    struct klp_buf body = client_arguments(argv);
    klp_field_append_u64(&body, KLP_TAG_TIMEOUT_MS, timeout_ms);
    client_send_body(c, KLP_GUEST_EXEC, ++c->last_channel, &body);
    return c->last_channel;
}

static uint32_t exec_terminal(struct client *c, const char *const *argv, uint64_t rows)
{
    struct klp_buf body = client_arguments(argv);
    klp_field_append_u64(&body, KLP_TAG_TTY, 1);
    klp_field_append_u64(&body, KLP_TAG_ROWS, rows);
    klp_field_append_u64(&body, KLP_TAG_COLS, 100);
    client_send_body(c, KLP_GUEST_EXEC, ++c->last_channel, &body);
    return c->last_channel;
}

static void send_signal(struct client *c, uint32_t channel, uint64_t number)
{
    struct klp_buf body = KLP_BUF_INIT(64);
    klp_field_append_u64(&body, KLP_TAG_SIGNAL, number);
    client_send_body(c, KLP_GUEST_SIGNAL, channel, &body);
}

/* The first number a program prints. */
static int first_number(struct client *c, uint32_t channel)
{
    struct client_frame frame;
    do {
        client_frame(c, &frame);
    } while (frame.channel != channel || frame.type != KLP_GUEST_DATA || frame.body.size == 0);
    char text[32];
    snprintf(text, sizeof(text), "%.*s", (int)frame.body.size, (const char *)frame.body.data);
    return atoi(text);
}

/* ---- streams and ends */

static void test_guest_exec__output_status_and_streams(void **state)
{
    struct client *c = *state;
    struct client_result result;
    client_check_output(c, CLIENT_ARGV("@echo", "a  b", "", "c"), "a  b  c\n");
    client_run_program(c, CLIENT_SHELL("echo out; echo err >&2; exit 7"), &result);
    assert_int_equal(result.code, 7);
    assert_int_equal(result.signal, 0);
    assert_false(result.timed_out);
    assert_string_equal(klp_buf_text(&result.out), "out\n");
    assert_string_equal(klp_buf_text(&result.err), "err\n");
    client_result_finish(&result);
    for (int code = 0; code < 256; code += 85) {
        char text[16];
        snprintf(text, sizeof(text), "%d", code);
        client_run_program(c, CLIENT_ARGV("@exit", text), &result);
        assert_int_equal(result.code, code);
        client_result_finish(&result);
    }
}

static void test_guest_exec__signals_end_programs(void **state)
{
    struct client *c = *state;
    struct client_result result;
    static const int numbers[] = {SIGKILL, SIGTERM, SIGSEGV, SIGUSR1, SIGPIPE};
    for (size_t i = 0; i < KLP_COUNT(numbers); i++) {
        char text[16];
        snprintf(text, sizeof(text), "%d", numbers[i]);
        client_run_program(c, CLIENT_ARGV("@raise", text), &result);
        assert_int_equal(result.signal, numbers[i]);
        assert_int_equal(result.code, 128 + numbers[i]);
        client_result_finish(&result);
    }
}

static void test_guest_exec__signals_from_the_host_reach_the_group(void **state)
{
    struct client *c = *state;
    struct client_result result;
    uint32_t channel = client_exec(c, CLIENT_SHELL("sleep 1000 & echo $!; wait"));
    int child = first_number(c, channel);
    send_signal(c, channel, SIGTERM);
    client_collect(c, channel, &result);
    assert_int_equal(result.signal, SIGTERM);
    assert_true(client_process_ends(child));
    client_result_finish(&result);
    /* A program that takes it has its own way. */
    channel = client_exec(c, CLIENT_SHELL("trap 'echo caught; exit 3' USR1; echo 1; while :; do "
                                          "sleep 0.01; done"));
    assert_int_equal(first_number(c, channel), 1);
    send_signal(c, channel, SIGUSR1);
    client_collect(c, channel, &result);
    assert_int_equal(result.code, 3);
    assert_string_equal(klp_buf_text(&result.out), "caught\n");
    client_result_finish(&result);
    channel = client_exec(c, CLIENT_ARGV("@sleep", "1000"));
    send_signal(c, channel, 65);
    client_expect_error(c, channel, "protocol");
}

static void test_guest_exec__input_is_passed_and_ended(void **state)
{
    struct client *c = *state;
    struct client_result result;
    uint32_t channel = client_exec(c, CLIENT_SHELL("wc -c"));
    client_send_data(c, channel, "hello", 5, false);
    client_send_data(c, channel, " world", 6, true);
    client_collect(c, channel, &result);
    assert_int_equal(atoi(klp_buf_text(&result.out)), 11);
    client_result_finish(&result);
    channel = client_exec(c, CLIENT_ARGV("@cat"));
    client_send_data(c, channel, NULL, 0, true);
    client_collect(c, channel, &result);
    assert_int_equal(result.code, 0);
    assert_int_equal(result.out.size, 0);
    client_result_finish(&result);
}

/* Twice the credit both ways at once: neither side may wait for the other for ever. */
static void test_guest_exec__large_input_comes_back_whole(void **state)
{
    struct client *c = *state;
    enum { SIZE = 2 * 1024 * 1024, PART = 16384 };
    uint8_t *bytes = klp_mem_alloc(SIZE);
    struct klp_buf out = KLP_BUF_INIT(SIZE);
    struct client_frame frame;
    size_t sent = 0, credit = KLP_GUEST_CREDIT;
    klp_keyed_page(1, 2, 3, bytes, SIZE);
    uint32_t channel = client_exec(c, CLIENT_ARGV("@cat"));
    for (bool ended = false; !ended;) {
        while (sent < SIZE && credit >= PART) {
            client_send_data(c, channel, bytes + sent, PART, sent + PART == SIZE);
            sent += PART;
            credit -= PART;
        }
        client_frame(c, &frame);
        assert_int_equal(frame.channel, channel);
        if (frame.type == KLP_GUEST_CREDIT_GRANT) {
            credit += client_number(&frame, KLP_TAG_BYTES);
        } else if (frame.type == KLP_GUEST_DATA) {
            klp_buf_append(&out, frame.body.data, frame.body.size);
            client_grant(c, channel, frame.body.size);
        } else {
            assert_int_equal(frame.type, KLP_GUEST_EXIT);
            ended = true;
        }
    }
    assert_int_equal(out.size, SIZE);
    assert_memory_equal(out.data, bytes, SIZE);
    klp_buf_finish(&out);
    klp_mem_free(bytes);
}

/* Nobody reads it: it is taken and thrown away, so that a host's copy does not stall. */
static void test_guest_exec__input_nobody_reads_is_granted_again(void **state)
{
    struct client *c = *state;
    struct client_frame frame;
    struct client_result result;
    static uint8_t bytes[64 * KLP_KIB];
    uint32_t channel = client_exec(c, CLIENT_SHELL("exec 0<&-; echo 1; sleep 0.3"));
    assert_int_equal(first_number(c, channel), 1);
    size_t granted = 0;
    for (int i = 0; i < 4; i++)
        client_send_data(c, channel, bytes, sizeof(bytes), false);
    while (granted < KLP_GUEST_CREDIT / 2) {
        client_expect(c, KLP_GUEST_CREDIT_GRANT, channel, &frame);
        granted += client_number(&frame, KLP_TAG_BYTES);
    }
    client_collect(c, channel, &result);
    assert_int_equal(result.code, 0);
    client_result_finish(&result);
}

static void flood_check(const struct klp_buf *bytes, size_t size)
{
    assert_int_equal(bytes->size, size);
    for (size_t i = 0; i < size; i++) {
        if (bytes->data[i] != i % 251)
            fail_msg("byte %zu is wrong", i);
    }
}

static void test_guest_exec__floods_arrive_whole_on_both_streams(void **state)
{
    struct client *c = *state;
    struct client_result result;
    client_run_program(c, CLIENT_ARGV("@flood", "3000000"), &result);
    flood_check(&result.out, 3000000);
    assert_int_equal(result.err.size, 0);
    client_result_finish(&result);
    client_run_program(c, CLIENT_ARGV("@flood", "1000000", "err"), &result);
    flood_check(&result.err, 1000000);
    assert_int_equal(result.out.size, 0);
    client_result_finish(&result);
}

static void test_guest_exec__both_streams_end_before_exit(void **state)
{
    struct client *c = *state;
    struct client_frame frame;
    unsigned ends = 0;
    c->wants_started = true;
    uint32_t channel = client_exec(c, CLIENT_ARGV("@echo", "x"));
    client_expect(c, KLP_GUEST_STARTED, channel, &frame); /* before its first byte */
    assert_true(client_number(&frame, KLP_TAG_PID) > 1);
    do {
        client_frame(c, &frame);
        if (frame.type == KLP_GUEST_DATA && (frame.flags & KLP_GUEST_FLAG_END) != 0)
            ends |= frame.flags & KLP_GUEST_FLAG_STDERR ? 2 : 1;
    } while (frame.type == KLP_GUEST_DATA);
    assert_int_equal(frame.type, KLP_GUEST_EXIT);
    assert_int_equal(ends, 3);
    client_no_frame(c, 30); /* EXIT comes once, and last */
}

/* ---- what cannot run */

static void expect_refusal(struct client *c, const char *const *argv, const char *code)
{
    client_expect_error(c, client_exec(c, argv), code);
}

static void test_guest_exec__what_cannot_run_says_why(void **state)
{
    struct client *c = *state;
    client_write_file(c, "/plain", "no program\n", 0644);
    client_write_file(c, "/text", "no program, but executable\n", 0755);
    expect_refusal(c, CLIENT_ARGV("no-such-program"), "no_command");
    expect_refusal(c, CLIENT_ARGV("/no/such/program"), "no_command");
    expect_refusal(c, CLIENT_ARGV(""), "no_command");
    expect_refusal(c, CLIENT_ARGV("@nothing"), "no_command");
    expect_refusal(c, CLIENT_ARGV("@exit", "x"), "invalid");
    expect_refusal(c, CLIENT_ARGV(client_path(c, "/plain")), "not_executable");
    expect_refusal(c, CLIENT_ARGV(client_path(c, "/text")), "not_executable");
    expect_refusal(c, CLIENT_ARGV("/tmp"), "not_executable");
    expect_refusal(c, CLIENT_ARGV(client_path(c, "/plain/x")), "no_command");
    struct klp_buf body = client_arguments(CLIENT_ARGV("@pwd"));
    klp_field_append_text(&body, KLP_TAG_WORKDIR, "/no/such/folder");
    client_send_body(c, KLP_GUEST_EXEC, ++c->last_channel, &body);
    client_expect_error(c, c->last_channel, "not_found");
}

static void test_guest_exec__environment_and_folder(void **state)
{
    struct client *c = *state;
    struct client_result result;
    struct klp_buf body = KLP_BUF_INIT(KLP_FRAME_BODY_MAX);
    char folder[300];
    snprintf(folder, sizeof(folder), "%s/work/space", c->root);
    client_check_output(c, CLIENT_ARGV("@env"),
                        "HOME=/root\nPATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:"
                        "/bin\n");
    client_check_output(c, CLIENT_ARGV("@pwd"), "/\n");
    klp_field_append_text(&body, KLP_TAG_ENV, "A=setup");
    klp_field_append_text(&body, KLP_TAG_ENV, "B=setup");
    klp_field_append_text(&body, KLP_TAG_ENV, "PATH=/usr/bin:/bin");
    klp_field_append_text(&body, KLP_TAG_WORKDIR, folder);
    klp_field_append_text(&body, KLP_TAG_HOSTNAME, "ignored-on-a-host");
    client_send_body(c, KLP_GUEST_SETUP, ++c->last_channel, &body);
    client_expect(c, KLP_GUEST_DONE, c->last_channel, NULL);
    body = client_arguments(CLIENT_ARGV("@env"));
    klp_field_append_text(&body, KLP_TAG_ENV, "B=exec");
    klp_field_append_text(&body, KLP_TAG_ENV, "C=");
    client_send_body(c, KLP_GUEST_EXEC, ++c->last_channel, &body);
    client_collect(c, c->last_channel, &result);
    assert_string_equal(klp_buf_text(&result.out),
                        "A=setup\nB=exec\nC=\nHOME=/root\nPATH=/usr/bin:/bin\n");
    client_result_finish(&result);
    char wanted[320];
    snprintf(wanted, sizeof(wanted), "%s\n", folder); /* made by SETUP */
    client_check_output(c, CLIENT_ARGV("@pwd"), wanted);
    /* The request's PATH decides what is found. */
    body = client_arguments(CLIENT_ARGV("sh", "-c", "exit 0"));
    klp_field_append_text(&body, KLP_TAG_ENV, "PATH=/nonexistent");
    client_send_body(c, KLP_GUEST_EXEC, ++c->last_channel, &body);
    client_expect_error(c, c->last_channel, "no_command");
    client_check_output(c, CLIENT_ARGV("sh", "-c", "echo found"), "found\n");
}

/* ---- time limits and groups */

static void test_guest_exec__time_limit_kills_the_group(void **state)
{
    struct client *c = *state;
    struct client_result result;
    uint64_t start = client_now_ms();
    uint32_t channel = exec_limited(c, CLIENT_SHELL("sleep 1000 & echo $!; wait"), 150);
    int child = first_number(c, channel);
    client_collect(c, channel, &result);
    assert_true(result.timed_out);
    assert_int_equal(result.signal, SIGKILL);
    assert_in_range(client_now_ms() - start, 140, 3000);
    assert_true(client_process_ends(child));
    client_result_finish(&result);
    client_collect(c, exec_limited(c, CLIENT_ARGV("@sleep", "1000"), 50), &result);
    assert_true(result.timed_out);
    client_result_finish(&result);
    client_collect(c, exec_limited(c, CLIENT_ARGV("@echo", "fast"), 5000), &result);
    assert_false(result.timed_out);
    assert_int_equal(result.code, 0);
    client_result_finish(&result);
}

static void test_guest_exec__close_kills_without_an_answer(void **state)
{
    struct client *c = *state;
    uint32_t channel = client_exec(c, CLIENT_SHELL("sleep 1000 & echo $!; wait"));
    int child = first_number(c, channel);
    client_send_empty(c, KLP_GUEST_CLOSE, channel);
    assert_true(client_process_ends(child));
    client_no_frame(c, 50);
}

/* The pipe is held, the program has ended: EXIT after the grace, with all it wrote before. */
static void test_guest_exec__grandchild_holds_exit_back_for_a_while(void **state)
{
    struct client *c = *state;
    struct client_result result;
    uint64_t start = client_now_ms();
    client_run_program(c, CLIENT_SHELL("setsid sleep 1000 & echo $!; exit 4"), &result);
    assert_in_range(client_now_ms() - start, 1800, 4000);
    assert_int_equal(result.code, 4);
    int child = atoi(klp_buf_text(&result.out));
    assert_true(client_process_lives(child)); /* what it left behind lives on */
    kill(child, SIGKILL);
    client_result_finish(&result);
}

static void test_guest_exec__output_waits_for_credit_beyond_the_grace(void **state)
{
    struct client *c = *state;
    struct client_frame frame;
    struct client_result result;
    size_t size = 0;
    /* 300000 bytes: the credit, and what the pipe holds; then it ends. */
    uint32_t channel = client_exec(c, CLIENT_ARGV("@flood", "300000"));
    while (client_try_frame(c, &frame, 2600)) {
        assert_int_equal(frame.type, KLP_GUEST_DATA);
        size += frame.flags & KLP_GUEST_FLAG_STDERR ? 0 : frame.body.size;
    }
    assert_int_equal(size, KLP_GUEST_CREDIT);
    client_grant(c, channel, 1000000);
    client_collect(c, channel, &result);
    assert_int_equal(result.type, KLP_GUEST_EXIT);
    assert_int_equal(result.code, 0);
    assert_int_equal(size + result.out.size, 300000);
    client_result_finish(&result);
}

/* ---- terminals */

static void test_guest_exec__terminal(void **state)
{
    struct client *c = *state;
    struct client_result result;
    client_collect(
        c, exec_terminal(c, CLIENT_SHELL("test -t 0 && test -t 1 && test -t 2 && stty size"), 33),
        &result);
    assert_int_equal(result.code, 0);
    assert_string_equal(klp_buf_text(&result.out), "33 100\r\n");
    client_result_finish(&result);
    /* It is the controlling terminal: ^C reaches the group. */
    uint32_t channel = exec_terminal(c, CLIENT_SHELL("echo 5; exec sleep 1000"), 24);
    assert_int_equal(first_number(c, channel), 5);
    client_send_data(c, channel, "\003", 1, false);
    client_collect(c, channel, &result);
    assert_int_equal(result.signal, SIGINT);
    client_result_finish(&result);
}

static void test_guest_exec__terminal_resize_and_end_of_input(void **state)
{
    struct client *c = *state;
    struct client_result result;
    uint32_t channel =
        exec_terminal(c, CLIENT_SHELL("stty -echo; echo 6; read x; stty size; cat; echo end"), 24);
    assert_int_equal(first_number(c, channel), 6);
    struct klp_buf body = KLP_BUF_INIT(64);
    klp_field_append_u64(&body, KLP_TAG_ROWS, 50);
    klp_field_append_u64(&body, KLP_TAG_COLS, 132);
    client_send_body(c, KLP_GUEST_RESIZE, channel, &body);
    client_send_data(c, channel, "\n", 1, false);
    client_send_data(c, channel, "typed\n", 6, true);
    client_collect(c, channel, &result);
    assert_int_equal(result.code, 0);
    assert_string_equal(klp_buf_text(&result.out), "50 132\r\ntyped\r\nend\r\n");
    client_result_finish(&result);
}

/* ---- words answered by the workload process */

static void test_guest_exec__fill_check_count(void **state)
{
    struct client *c = *state;
    client_check_output(c, CLIENT_ARGV("@check"), "pages=0 bad=0\n");
    client_check_output(c, CLIENT_ARGV("@fill", "8", "42"), "pages=2048\n");
    client_check_output(c, CLIENT_ARGV("@check"), "pages=2048 bad=0\n");
    client_hello(c); /* it stays */
    client_check_output(c, CLIENT_ARGV("@check"), "pages=2048 bad=0\n");
    client_check_output(c, CLIENT_ARGV("@fill", "1", "7"), "pages=256\n");
    client_check_output(c, CLIENT_ARGV("@check"), "pages=256 bad=0\n");
    uint64_t first = client_output_number(c, CLIENT_ARGV("@count"));
    client_pause_ms(120);
    uint64_t second = client_output_number(c, CLIENT_ARGV("@count"));
    assert_in_range(second - first, 60, 1000);
}

static int workload_pid(struct client *c)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/task/%d/children", c->pid, c->pid);
    return atoi(client_read_file(path));
}

static void test_guest_exec__a_bad_page_is_found(void **state)
{
    struct client *c = *state;
    struct client_result result;
    char path[64];
    client_check_output(c, CLIENT_ARGV("@fill", "2", "9"), "pages=512\n");
    /* Through the kernel, as a broken restore would: find the fill in its map and change one byte.
     */
    int pid = workload_pid(c);
    snprintf(path, sizeof(path), "/proc/%d/maps", pid);
    FILE *maps = fopen(path, "r");
    char line[256];
    unsigned long from = 0, to = 0;
    while (maps != NULL && fgets(line, sizeof(line), maps) != NULL) {
        if (sscanf(line, "%lx-%lx", &from, &to) == 2 && to - from == 2 * KLP_MIB)
            break;
    }
    assert_non_null(maps);
    fclose(maps);
    assert_int_equal(to - from, 2 * KLP_MIB);
    snprintf(path, sizeof(path), "/proc/%d/mem", pid);
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    uint8_t byte;
    assert_int_equal(pread(fd, &byte, 1, (off_t)(from + 4096 * 100 + 5)), 1);
    byte ^= 1;
    assert_int_equal(pwrite(fd, &byte, 1, (off_t)(from + 4096 * 100 + 5)), 1);
    close(fd);
    client_run_program(c, CLIENT_ARGV("@check"), &result);
    assert_int_equal(result.code, 1);
    assert_string_equal(klp_buf_text(&result.out), "pages=512 bad=1\n");
    client_result_finish(&result);
}

static void test_guest_exec__a_killed_workload_process_comes_back_empty(void **state)
{
    struct client *c = *state;
    client_check_output(c, CLIENT_ARGV("@fill", "2", "9"), "pages=512\n");
    int pid = workload_pid(c);
    kill(pid, SIGKILL);
    assert_true(client_process_ends(pid));
    client_pause_ms(30);
    client_check_output(c, CLIENT_ARGV("@check"), "pages=0 bad=0\n");
}

/* ---- leaks */

static void test_guest_exec__many_programs_leave_nothing(void **state)
{
    struct client *c = *state;
    client_check_output(c, CLIENT_ARGV("@echo", "x"), "x\n");
    size_t descriptors = client_descriptors(c), children = client_children(c);
    for (int round = 0; round < 12; round++) {
        uint32_t channels[32];
        size_t open_count = KLP_COUNT(channels);
        for (size_t i = 0; i < KLP_COUNT(channels); i++) {
            static const char *const words[] = {"@pwd", "@count", "no-such", "@exit"};
            channels[i] = client_exec(c, CLIENT_ARGV(words[i % 4], i % 4 == 3 ? "1" : NULL));
        }
        while (open_count > 0) {
            struct client_frame frame;
            client_frame(c, &frame);
            open_count -= frame.type == KLP_GUEST_EXIT || frame.type == KLP_GUEST_ERROR;
        }
    }
    client_pause_ms(50);
    assert_int_equal(client_descriptors(c), descriptors);
    assert_int_equal(client_children(c), children);
}

static void test_guest_exec__programs_see_none_of_our_descriptors(void **state)
{
    struct client *c = *state;
    /* Each looks at itself: a shell has pipes open and signals blocked while it starts others. 3 is
     * the folder that ls reads. */
    client_check_output(c, CLIENT_ARGV("/bin/ls", "/proc/self/fd"), "0\n1\n2\n3\n");
    client_check_output(c, CLIENT_ARGV("/bin/grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"),
                        "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n");
}

#define TEST(name) cmocka_unit_test_setup_teardown(test_guest_exec__##name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(output_status_and_streams),
        TEST(signals_end_programs),
        TEST(signals_from_the_host_reach_the_group),
        TEST(input_is_passed_and_ended),
        TEST(large_input_comes_back_whole),
        TEST(input_nobody_reads_is_granted_again),
        TEST(floods_arrive_whole_on_both_streams),
        TEST(both_streams_end_before_exit),
        TEST(what_cannot_run_says_why),
        TEST(environment_and_folder),
        TEST(time_limit_kills_the_group),
        TEST(close_kills_without_an_answer),
        TEST(grandchild_holds_exit_back_for_a_while),
        TEST(output_waits_for_credit_beyond_the_grace),
        TEST(terminal),
        TEST(terminal_resize_and_end_of_input),
        TEST(fill_check_count),
        TEST(a_bad_page_is_found),
        TEST(a_killed_workload_process_comes_back_empty),
        TEST(many_programs_leave_nothing),
        TEST(programs_see_none_of_our_descriptors),
    };
    return cmocka_run_group_tests_name("guest_exec", tests, NULL, NULL);
}
