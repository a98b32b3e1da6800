/* SPDX-License-Identifier: Apache-2.0 */
/* The workload as a whole: its main process and log, freeze and thaw, uniqueness, checkpoints. */
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

/* ---- the main process */

static void main_start(struct client *c, const char *const *argv)
{
    struct klp_buf body = client_arguments(argv);
    c->wants_started = true;
    client_send_body(c, KLP_GUEST_MAIN_START, ++c->last_channel, &body);
    client_expect(c, KLP_GUEST_STARTED, c->last_channel, NULL);
    c->wants_started = false;
}

static void main_refused(struct client *c, const char *const *argv, const char *code)
{
    struct klp_buf body = client_arguments(argv);
    client_send_body(c, KLP_GUEST_MAIN_START, ++c->last_channel, &body);
    client_expect_error(c, c->last_channel, code);
}

static struct client_frame main_status(struct client *c)
{
    struct client_frame frame;
    client_expect(c, KLP_GUEST_MAIN, client_ask(c, KLP_GUEST_MAIN_STATUS), &frame);
    return frame;
}

static uint32_t log_ask(struct client *c, uint64_t offset, bool follow)
{
    struct klp_buf body = KLP_BUF_INIT(64);
    klp_field_append_u64(&body, KLP_TAG_OFFSET, offset);
    klp_field_append_u64(&body, KLP_TAG_FOLLOW, follow);
    client_send_body(c, KLP_GUEST_MAIN_LOG, ++c->last_channel, &body);
    return c->last_channel;
}

static void main_wait(struct client *c)
{
    struct client_result result;
    client_collect(c, log_ask(c, 0, true), &result);
    assert_int_equal(result.type, KLP_GUEST_EXIT);
    client_result_finish(&result);
}

static void test_guest_state__main_process_runs_and_ends(void **state)
{
    struct client *c = *state;
    struct client_result result;
    main_start(c, CLIENT_SHELL("echo one; echo two >&2; sleep 0.1; exit 9"));
    struct client_frame status = main_status(c);
    assert_int_equal(client_number(&status, KLP_TAG_MAIN_STATE), KLP_MAIN_RUNNING);
    assert_true(client_process_lives((int)client_number(&status, KLP_TAG_PID)));
    main_refused(c, CLIENT_ARGV("@echo", "second"), "wrong_state");
    client_collect(c, log_ask(c, 0, true), &result);
    assert_int_equal(result.type, KLP_GUEST_EXIT);
    assert_int_equal(result.code, 9);
    assert_string_equal(klp_buf_text(&result.out), "one\n");
    assert_string_equal(klp_buf_text(&result.err), "two\n");
    client_result_finish(&result);
    status = main_status(c);
    assert_int_equal(client_number(&status, KLP_TAG_MAIN_STATE), KLP_MAIN_EXITED);
    assert_int_equal(client_number(&status, KLP_TAG_CODE), 9);
    assert_int_equal(client_number(&status, KLP_TAG_BYTES), 8);
    /* A later one goes on in the same log. */
    main_start(c, CLIENT_ARGV("@raise", "15"));
    main_wait(c);
    status = main_status(c);
    assert_int_equal(client_number(&status, KLP_TAG_SIGNAL), 15);
    client_collect(c, log_ask(c, 4, false), &result);
    assert_int_equal(result.type, KLP_GUEST_DONE);
    assert_string_equal(klp_buf_text(&result.err), "two\n");
    client_result_finish(&result);
}

static void test_guest_state__main_process_that_cannot_start(void **state)
{
    struct client *c = *state;
    main_refused(c, CLIENT_ARGV("no-such-program"), "no_command");
    main_refused(c, CLIENT_ARGV("/tmp"), "not_executable");
    struct client_frame status = main_status(c);
    assert_int_equal(client_number(&status, KLP_TAG_MAIN_STATE), KLP_MAIN_NONE);
    main_start(c, CLIENT_ARGV("@exit", "3"));
    main_wait(c);
    main_refused(c, CLIENT_ARGV("no-such-program"), "no_command");
    status = main_status(c);
    assert_int_equal(client_number(&status, KLP_TAG_MAIN_STATE), KLP_MAIN_EXITED);
    assert_int_equal(client_number(&status, KLP_TAG_CODE), 3);
}

static void test_guest_state__main_process_survives_hello_and_takes_signals(void **state)
{
    struct client *c = *state;
    struct client_result result;
    main_start(c, CLIENT_SHELL("trap 'echo told; exit 5' TERM; echo begun; while :; do sleep 0.01; "
                               "done"));
    uint32_t first = log_ask(c, 0, true), second = log_ask(c, 2, true);
    struct client_frame frame;
    unsigned got = 0;
    while (got != 3) {
        client_frame(c, &frame);
        if (frame.type == KLP_GUEST_DATA)
            got |= frame.channel == first ? 1 : frame.channel == second ? 2 : 0;
    }
    client_hello_send(c, NULL);
    client_ack(c, &frame);
    assert_int_equal(client_number(&frame, KLP_TAG_MAIN_STATE), KLP_MAIN_RUNNING);
    uint32_t follower = log_ask(c, 0, true);
    struct klp_buf body = KLP_BUF_INIT(64);
    klp_field_append_u64(&body, KLP_TAG_SIGNAL, SIGTERM);
    client_send_body(c, KLP_GUEST_SIGNAL, 0, &body);
    client_collect(c, follower, &result);
    assert_int_equal(result.code, 5);
    assert_string_equal(klp_buf_text(&result.out), "begun\ntold\n");
    client_result_finish(&result);
}

/* It never waits for a reader: the oldest bytes go, and the offsets say which. */
static void test_guest_state__log_keeps_the_last_bytes(void **state)
{
    struct client *c = *state;
    struct client_frame frame;
    enum { TOTAL = 1000003 };
    main_start(c, CLIENT_ARGV("@flood", "1000003"));
    main_wait(c);
    struct client_frame status = main_status(c);
    assert_int_equal(client_number(&status, KLP_TAG_BYTES), TOTAL);
    assert_int_equal(client_number(&status, KLP_TAG_OFFSET), TOTAL - KLP_GUEST_LOG_MAX);
    uint32_t channel = log_ask(c, 5, false);
    uint64_t at = 0;
    for (;;) {
        client_frame(c, &frame);
        if (frame.type == KLP_GUEST_DONE)
            break;
        if (frame.type == KLP_GUEST_MAIN) {
            uint64_t first = client_number(&frame, KLP_TAG_OFFSET);
            at = at < first ? first : at;
            continue;
        }
        assert_int_equal(frame.type, KLP_GUEST_DATA);
        for (size_t i = 0; i < frame.body.size; i++)
            assert_int_equal(frame.body.data[i], (at + i) % 251);
        at += frame.body.size;
        client_grant(c, channel, frame.body.size);
    }
    assert_int_equal(at, TOTAL);
    client_expect(c, KLP_GUEST_MAIN, log_ask(c, TOTAL, false), NULL);
    client_expect(c, KLP_GUEST_DONE, c->last_channel, NULL);
    client_expect(c, KLP_GUEST_MAIN, log_ask(c, UINT64_MAX, true), NULL);
    client_expect(c, KLP_GUEST_EXIT, c->last_channel, NULL);
}

/* More turns of its two streams than are remembered: the oldest bytes may go, but none changes its
 * stream. The pauses let the agent read each line by itself. */
static void test_guest_state__log_knows_its_streams(void **state)
{
    struct client *c = *state;
    struct client_result result;
    const char *script = "i=0; while [ $i -lt 600 ]; do echo o; /bin/true; echo e >&2; /bin/true; "
                         "i=$((i+1)); done";
    main_start(c, CLIENT_SHELL(script));
    main_wait(c);
    struct client_frame status = main_status(c);
    uint64_t first = client_number(&status, KLP_TAG_OFFSET);
    assert_int_equal(client_number(&status, KLP_TAG_BYTES), 2400);
    client_collect(c, log_ask(c, 0, false), &result);
    assert_true(result.out.size > 0 && result.err.size > 0);
    assert_null(strchr(klp_buf_text(&result.out), 'e'));
    assert_null(strchr(klp_buf_text(&result.err), 'o'));
    assert_int_equal(result.out.size + result.err.size, 2400 - first);
    client_result_finish(&result);
}

/* ---- freeze and thaw */

static void freeze_done(struct client *c, bool by_signal)
{
    struct client_frame frame;
    char text[128];
    client_expect(c, KLP_GUEST_DONE, client_ask(c, KLP_GUEST_FREEZE), &frame);
    client_text(&frame, KLP_TAG_TEXT, text, sizeof(text));
    assert_int_equal(strstr(text, "signal") != NULL, by_signal); /* it says how */
}

static void thaw_done(struct client *c)
{
    client_expect(c, KLP_GUEST_DONE, client_ask(c, KLP_GUEST_THAW), NULL);
}

static void freeze_stops_everything(struct client *c, bool by_signal)
{
    char path[128];
    struct stat info;
    snprintf(path, sizeof(path), "%s", client_path(c, "/beat"));
    char script[256];
    snprintf(script, sizeof(script), "setsid sh -c 'while :; do echo x >> %s; sleep 0.005; done'",
             path);
    main_start(c, CLIENT_SHELL(script));
    uint64_t before = client_output_number(c, CLIENT_ARGV("@count"));
    while (stat(path, &info) != 0 || info.st_size < 4)
        client_pause_ms(5);
    freeze_done(c, by_signal);
    freeze_done(c, by_signal); /* again: nothing happens twice */
    assert_int_equal(stat(path, &info), 0);
    off_t size = info.st_size;
    client_expect_error(c, client_exec(c, CLIENT_ARGV("@echo", "x")), "wrong_state");
    main_refused(c, CLIENT_ARGV("@echo", "x"), "wrong_state");
    client_expect(c, KLP_GUEST_DONE, client_ask(c, KLP_GUEST_PING), NULL);
    main_status(c);
    client_hello(c); /* a restored guest sees a new host, and stays frozen */
    client_expect_error(c, client_exec(c, CLIENT_ARGV("@echo", "x")), "wrong_state");
    client_pause_ms(600);
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_size, size);
    thaw_done(c);
    thaw_done(c);
    uint64_t after = client_output_number(c, CLIENT_ARGV("@count"));
    assert_in_range(after - before, 0, 450); /* what it stood still does not count */
    while (stat(path, &info) == 0 && info.st_size == size)
        client_pause_ms(5);
}

static void test_guest_state__freeze_by_signal(void **state)
{
    freeze_stops_everything(*state, true);
}

static void test_guest_state__freeze_by_cgroup(void **state)
{
    static struct client own;
    static const char *const roots[] = {"/sys/fs/cgroup", "/sys/fs/cgroup/unified"};
    char folder[128] = "";
    (void)state;
    for (size_t i = 0; i < KLP_COUNT(roots) && folder[0] == '\0'; i++) {
        char path[128], events[160];
        snprintf(path, sizeof(path), "%s/kelpie-test-%d", roots[i], getpid());
        snprintf(events, sizeof(events), "%s/cgroup.freeze", path);
        if (mkdir(path, 0755) == 0 && access(events, W_OK) == 0)
            snprintf(folder, sizeof(folder), "%s", path);
        else
            rmdir(path);
    }
    if (folder[0] == '\0') {
        print_message("skipped: no cgroup2 folder can be made here\n");
        skip();
    }
    client_open(&own, CLIENT_ARGV("--cgroup", folder));
    freeze_stops_everything(&own, false);
    client_stop(&own);
    for (int i = 0; i < 200 && rmdir(folder) != 0; i++)
        client_pause_ms(5);
    assert_int_equal(access(folder, F_OK), -1); /* nobody is left in it */
}

static void test_guest_state__time_limits_stand_still_while_frozen(void **state)
{
    struct client *c = *state;
    struct client_result result;
    struct klp_buf body = client_arguments(CLIENT_ARGV("@sleep", "0.1"));
    klp_field_append_u64(&body, KLP_TAG_TIMEOUT_MS, 300);
    client_send_body(c, KLP_GUEST_EXEC, ++c->last_channel, &body);
    uint32_t channel = c->last_channel;
    client_expect(c, KLP_GUEST_DONE, client_ask(c, KLP_GUEST_FREEZE), NULL);
    client_pause_ms(500);
    client_no_frame(c, 10);
    thaw_done(c);
    client_collect(c, channel, &result);
    assert_false(result.timed_out);
    assert_int_equal(result.code, 0);
    client_result_finish(&result);
}

static void test_guest_state__snapshot_hooks_run_in_order(void **state)
{
    struct client *c = *state;
    char script[3][300];
    for (int i = 0; i < 3; i++) {
        static const char *const names[] = {"/etc/kelpie/snapshot.d/20-b",
                                            "/etc/kelpie/snapshot.d/10-a",
                                            "/etc/kelpie/snapshot.d/30-not-executable"};
        snprintf(script[i], sizeof(script[i]), "#!/bin/sh\necho %d >> %s/order\n", i, c->root);
        client_write_file(c, names[i], script[i], i == 2 ? 0644 : 0755);
    }
    freeze_done(c, true);
    assert_string_equal(client_read_file(client_path(c, "/order")), "1\n0\n");
    thaw_done(c);
    client_write_file(c, "/etc/kelpie/snapshot.d/15-fails", "#!/bin/sh\nexit 3\n", 0755);
    client_expect_error(c, client_ask(c, KLP_GUEST_FREEZE), "io");
    assert_string_equal(client_read_file(client_path(c, "/order")), "1\n0\n1\n");
    client_check_output(c, CLIENT_ARGV("@echo", "not frozen"), "not frozen\n");
}

static void test_guest_state__hanging_hook_is_killed(void **state)
{
    struct client *c = *state;
    struct client_frame frame;
    uint64_t start = client_now_ms();
    client_write_file(c, "/etc/kelpie/snapshot.d/hang", "#!/bin/sh\nsleep 1000\n", 0755);
    uint32_t channel = client_ask(c, KLP_GUEST_FREEZE);
    client_expect_error(c, client_ask(c, KLP_GUEST_FREEZE), "busy");
    client_expect_error(c, client_ask(c, KLP_GUEST_CHECKPOINT), "busy");
    client_expect(c, KLP_GUEST_DONE, client_ask(c, KLP_GUEST_PING), NULL);
    client_frame(c, &frame);
    assert_int_equal(frame.type, KLP_GUEST_ERROR);
    assert_int_equal(frame.channel, channel);
    assert_in_range(client_now_ms() - start, 4900, 8000);
    client_check_output(c, CLIENT_ARGV("@echo", "x"), "x\n");
    /* A thaw, a lost interest and a new host each end such a freeze at once. */
    channel = client_ask(c, KLP_GUEST_FREEZE);
    uint32_t thaw = client_ask(c, KLP_GUEST_THAW);
    client_expect_error(c, channel, "wrong_state");
    client_expect(c, KLP_GUEST_DONE, thaw, NULL);
    channel = client_ask(c, KLP_GUEST_FREEZE);
    client_send_empty(c, KLP_GUEST_CLOSE, channel);
    client_check_output(c, CLIENT_ARGV("@echo", "x"), "x\n");
    client_ask(c, KLP_GUEST_FREEZE);
    client_hello(c);
    client_check_output(c, CLIENT_ARGV("@echo", "x"), "x\n");
}

/* ---- checkpoints */

static void test_guest_state__checkpoint_is_hooks_and_workspace(void **state)
{
    struct client *c = *state;
    struct client_result result;
    struct klp_buf body = KLP_BUF_INIT(KLP_FRAME_BODY_MAX);
    klp_field_append_text(&body, KLP_TAG_WORKDIR, client_path(c, "/ws"));
    client_send_body(c, KLP_GUEST_SETUP, ++c->last_channel, &body);
    client_expect(c, KLP_GUEST_DONE, c->last_channel, NULL);
    client_write_file(c, "/ws/file", "of the workspace", 0600);
    client_write_file(c, "/run/kelpie/checkpoint/stale/old", "of an earlier one", 0600);
    client_write_file(c, "/etc/kelpie/checkpoint.d/save",
                      "#!/bin/sh\necho saved > \"$KELPIE_CHECKPOINT_DIR/state\"\n", 0755);
    freeze_done(c, true); /* its hooks run beside the frozen workload */
    client_collect(c, client_ask(c, KLP_GUEST_CHECKPOINT), &result);
    if (result.type != KLP_GUEST_DONE)
        fail_msg("%s: %s", result.error, result.text);
    thaw_done(c);
    /* A PUT below another root brings every name back to its place. */
    uint32_t channel = client_ask_path(c, KLP_GUEST_PUT, client_path(c, "/other"));
    assert_true(result.out.size < KLP_GUEST_CREDIT);
    for (size_t at = 0; at < result.out.size; at += 512)
        client_send_data(c, channel, result.out.data + at, 512, at + 512 == result.out.size);
    client_expect(c, KLP_GUEST_DONE, channel, NULL);
    client_result_finish(&result);
    char path[300];
    snprintf(path, sizeof(path), "%s/other%s/ws/file", c->root, c->root);
    assert_string_equal(client_read_file(path), "of the workspace");
    assert_string_equal(client_read_file(client_path(c, "/other/run/kelpie/checkpoint/state")),
                        "saved\n");
    assert_int_equal(access(client_path(c, "/other/run/kelpie/checkpoint/stale"), F_OK), -1);
    client_write_file(c, "/etc/kelpie/checkpoint.d/save", "#!/bin/sh\nexit 1\n", 0755);
    client_expect_error(c, client_ask(c, KLP_GUEST_CHECKPOINT), "io");
    client_expect(c, KLP_GUEST_DONE, client_ask(c, KLP_GUEST_PING), NULL);
}

#define TEST(name) cmocka_unit_test_setup_teardown(test_guest_state__##name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(main_process_runs_and_ends),
        TEST(main_process_that_cannot_start),
        TEST(main_process_survives_hello_and_takes_signals),
        TEST(log_keeps_the_last_bytes),
        TEST(log_knows_its_streams),
        TEST(freeze_by_signal),
        cmocka_unit_test(test_guest_state__freeze_by_cgroup),
        TEST(time_limits_stand_still_while_frozen),
        TEST(snapshot_hooks_run_in_order),
        TEST(hanging_hook_is_killed),
        TEST(checkpoint_is_hooks_and_workspace),
    };
    return cmocka_run_group_tests_name("guest_state", tests, NULL, NULL);
}
