/* SPDX-License-Identifier: Apache-2.0 */
/* kelpie-keeper as a process, over a mock guest: what is told and what is left when it, its guest
 * or a capture ends badly. */
#include "vm_keeper_kit.h"

static void test_vm_keeper_ends__a_kill_is_told_and_remembered(void **state)
{
    struct vm vm;
    vm_run(&vm, *state);
    int64_t pid = guest_pid(&vm);
    struct line *watch = line_open(vm.kit, vm.dir);
    assert_string_equal(line_ask(watch, KLP_KEEPER_WATCH, NULL, NULL, 0), "");
    assert_string_equal(line_ask(vm.line, KLP_KEEPER_KILL, NULL, NULL, 0), "");
    assert_int_equal(process_state(pid), 0); /* reaped before the answer */
    assert_true(event_wait(watch, KLP_KEEPER_DEAD, false));
    assert_string_equal(answer_text(watch, KLP_KTAG_REASON), "killed as ordered");
    assert_int_equal(answer_number(watch, KLP_KTAG_EXIT_SIGNAL), SIGKILL);
    assert_string_equal(line_hold(vm.line, KLP_HOLD_USER), "crashed");
    assert_string_equal(line_ask(vm.line, KLP_KEEPER_CAPTURE, NULL, NULL, 0), "crashed");
    assert_string_equal(line_ask(vm.line, KLP_KEEPER_GUEST, NULL, NULL, 0), "crashed");
    assert_string_equal(line_spawn(vm.line, KLP_SPAWN_COLD, NULL), "crashed");
    assert_string_equal(line_ask(vm.line, KLP_KEEPER_KILL, NULL, NULL, 0), "");
    assert_string_equal(line_lease(vm.line, 2, 60000), "");
    line_close(watch);
    vm_exit(&vm);
}

static void test_vm_keeper_ends__a_fenced_guest_can_be_ended(void **state)
{
    struct vm vm;
    vm_run(&vm, *state);
    int64_t pid = guest_pid(&vm);
    assert_string_equal(line_lease(vm.line, 1, 0), "");
    assert_true(process_wait(vm.kit, pid, STANDS));
    vm_exit(&vm);
    assert_int_equal(process_state(pid), 0);
}

static void guest_order(struct vm *vm, uint16_t type, const char *word)
{
    struct guest *guest = malloc(sizeof(*guest));
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(256);
    assert_true(guest_open(vm, guest, 5000));
    if (word != NULL)
        klp_field_append_text(&body, KLP_TAG_ARG, word);
    frame_send(guest, type, 1, &body);
    klp_stream_close(guest->stream);
    free(guest);
}

static void test_vm_keeper_ends__a_crash_leaves_its_last_words(void **state)
{
    struct vm vm;
    vm_run(&vm, *state);
    struct line *watch = line_open(vm.kit, vm.dir);
    assert_string_equal(line_ask(watch, KLP_KEEPER_WATCH, NULL, NULL, 0), "");
    guest_order(&vm, KLP_GUEST_EXEC, "@crash");
    assert_true(event_wait(watch, KLP_KEEPER_DEAD, false));
    assert_string_equal(line_ask(vm.line, KLP_KEEPER_CONSOLE, NULL, NULL, 0), "");
    if (answer_number(watch, KLP_KTAG_EXIT_CODE) != 99)
        print_message("%s\n", answer_text(vm.line, KLP_KTAG_CONSOLE));
    assert_int_equal(answer_number(watch, KLP_KTAG_CLEAN), 0);
    assert_int_equal(answer_number(watch, KLP_KTAG_EXIT_CODE), 99);
    assert_non_null(strstr(answer_text(vm.line, KLP_KTAG_CONSOLE), "crashed"));
    line_close(watch);
    vm_exit(&vm);
}

static void test_vm_keeper_ends__a_shutdown_is_clean(void **state)
{
    struct vm vm;
    vm_run(&vm, *state);
    struct line *watch = line_open(vm.kit, vm.dir);
    assert_string_equal(line_ask(watch, KLP_KEEPER_WATCH, NULL, NULL, 0), "");
    guest_order(&vm, KLP_GUEST_SHUTDOWN, NULL);
    assert_true(event_wait(watch, KLP_KEEPER_DEAD, false));
    assert_int_equal(answer_number(watch, KLP_KTAG_CLEAN), 1);
    assert_string_equal(answer_text(watch, KLP_KTAG_REASON), "the guest powered off");
    line_close(watch);
    vm_exit(&vm);
}

static void killed(struct vm *vm, int signal)
{
    int how = 0;
    assert_int_equal(kill(vm->pid, signal), 0);
    assert_int_equal(waitpid(vm->pid, &how, 0), vm->pid);
    assert_true(WIFSIGNALED(how));
    line_close(vm->line);
    klp_dir_close(vm->dir);
}

static void test_vm_keeper_ends__a_killed_keeper_takes_its_guest_along(void **state)
{
    struct vm vm;
    vm_run(&vm, *state);
    int64_t pid = guest_pid(&vm);
    assert_true(guest_answers(&vm, 5000));
    killed(&vm, SIGKILL);
    assert_true(process_wait(vm.kit, pid, GONE));
}

static void test_vm_keeper_ends__a_killed_keeper_takes_a_fenced_guest_along(void **state)
{
    struct vm vm;
    vm_run(&vm, *state);
    int64_t pid = guest_pid(&vm);
    assert_string_equal(line_lease(vm.line, 1, 0), "");
    assert_true(process_wait(vm.kit, pid, STANDS));
    killed(&vm, SIGKILL);
    assert_true(process_wait(vm.kit, pid, GONE));
}

static void test_vm_keeper_ends__sigterm_ends_keeper_and_guest(void **state)
{
    struct vm vm;
    vm_run(&vm, *state);
    int64_t pid = guest_pid(&vm);
    kill(vm.pid, SIGHUP); /* of no interest */
    kill(vm.pid, SIGINT);
    assert_string_equal(guest_say(&vm, "@echo there"), "there\n");
    killed(&vm, SIGTERM);
    assert_true(process_wait(vm.kit, pid, GONE));
}

static void test_vm_keeper_ends__an_empty_one_that_nobody_wants_ends(void **state)
{
    struct vm vm;
    vm_start_as(&vm, *state, "vm", (const char *[]){"--orphan-ms", "300", NULL}, NULL);
    nap(vm.kit, 700); /* somebody is connected */
    line_status(vm.line);
    vm_ended(&vm, 0);
    assert_int_equal(access(vm.path, F_OK), -1);
}

static void test_vm_keeper_ends__a_live_guest_is_kept_without_a_daemon(void **state)
{
    struct vm vm;
    vm_start_as(&vm, *state, "vm", (const char *[]){"--orphan-ms", "200", NULL}, NULL);
    assert_string_equal(line_lease(vm.line, 1, 100), "");
    assert_string_equal(line_spawn(vm.line, KLP_SPAWN_COLD, NULL), "");
    int64_t pid = guest_pid(&vm);
    line_close(vm.line);
    nap(vm.kit, 800);
    assert_true(process_wait(vm.kit, pid, STANDS)); /* fenced, and not killed */
    vm.line = line_open(vm.kit, vm.dir);
    assert_string_equal(line_lease(vm.line, 1, 60000), "");
    assert_string_equal(guest_say(&vm, "@echo adopted"), "adopted\n");
    line_close(vm.line);
    vm.line = NULL;
    assert_int_equal(kill((pid_t)pid, SIGKILL), 0);
    vm_ended(&vm, 0); /* what is left is of no use to anybody */
    assert_int_equal(access(vm.path, F_OK), -1);
}

/* ---- faults and kill points */

static void fault_start(struct vm *vm, struct kit *kit, const char *setting)
{
    const char *env[] = {setting, NULL};
    vm_start_as(vm, kit, "vm", (const char *[]){"--test-points", NULL}, env);
    assert_string_equal(line_lease(vm->line, 1, 60000), "");
}

static void test_vm_keeper_ends__a_failed_capture_leaves_the_guest_as_it_was(void **state)
{
    struct vm vm;
    fault_start(&vm, *state, "KELPIE_MOCK_FAULT=capture");
    assert_string_equal(line_spawn(vm.line, KLP_SPAWN_COLD, NULL), "");
    assert_string_equal(line_hold(vm.line, KLP_HOLD_SNAPSHOT), "");
    assert_string_equal(line_ask(vm.line, KLP_KEEPER_CAPTURE, NULL, NULL, 0), "io");
    assert_int_equal(status_number(vm.line, KLP_KTAG_HOLDS), KLP_HOLD_SNAPSHOT);
    assert_string_equal(line_release(vm.line, KLP_HOLD_SNAPSHOT), "");
    assert_true(guest_answers(&vm, 5000));
    vm_exit(&vm);
}

static void test_vm_keeper_ends__a_guest_that_dies_in_a_capture_has_crashed(void **state)
{
    struct vm vm;
    fault_start(&vm, *state, "KELPIE_MOCK_FAULT=crash-in-capture");
    assert_string_equal(line_spawn(vm.line, KLP_SPAWN_COLD, NULL), "");
    assert_string_equal(line_hold(vm.line, KLP_HOLD_SNAPSHOT), "");
    assert_string_equal(line_ask(vm.line, KLP_KEEPER_CAPTURE, NULL, NULL, 0), "crashed");
    for (int i = 0; i < 500 && status_number(vm.line, KLP_KTAG_STATE) != KLP_KEEPER_DEAD; i++)
        nap(vm.kit, 10);
    assert_int_equal(status_number(vm.line, KLP_KTAG_STATE), KLP_KEEPER_DEAD);
    vm_exit(&vm);
}

static void test_vm_keeper_ends__dies_at_each_point_with_its_guest(void **state)
{
    static const char *const points[] = {"spawned",        "lease",         "held",
                                         "before-capture", "after-capture", "released",
                                         "before-load",    "after-load"};
    struct klp_handle base = zeros_make(*state);
    for (size_t i = 0; i < KLP_COUNT(points); i++) {
        char setting[64];
        struct vm vm;
        int how;
        bool loads = strstr(points[i], "load") != NULL;
        const char *env[] = {setting, NULL};
        snprintf(setting, sizeof(setting), "KELPIE_POINT=keeper.%s:kill", points[i]);
        vm_start_as(&vm, *state, "vm", (const char *[]){"--test-points", NULL}, env);
        line_send(vm.line, loads ? KLP_KEEPER_STATUS : KLP_KEEPER_LEASE, NULL, NULL, 0);
        struct kelpie_op op = klp_op_plain(vm.kit->env, 5000);
        const uint16_t orders[] = {loads ? KLP_KEEPER_LOAD : KLP_KEEPER_HOLD, KLP_KEEPER_CAPTURE,
                                   KLP_KEEPER_RELEASE};
        __attribute__((cleanup(klp_auto_buf))) struct klp_buf spawn = KLP_BUF_INIT(32 * 1024);
        __attribute__((cleanup(klp_auto_buf))) struct klp_buf frames = KLP_BUF_INIT(64 * 1024);
        __attribute__((cleanup(klp_auto_buf))) struct klp_buf lease = KLP_BUF_INIT(64);
        klp_field_append_u64(&lease, KLP_KTAG_HOLDS, KLP_HOLD_USER);
        klp_field_append_u64(&lease, KLP_KTAG_EPOCH, 2);
        klp_field_append_u64(&lease, KLP_KTAG_FENCE_AT_NS, UINT64_MAX);
        spawn_fields(&spawn, loads ? KLP_SPAWN_INCOMING : KLP_SPAWN_COLD);
        /* All at once, each answered or cut off; the mock's device state is its magic alone. */
        struct klp_handle device;
        assert_true(klp_memory_create(vm.kit->env, "device", 8, &device, NULL));
        assert_true(klp_memory_write(vm.kit->env, device, 0, "MOCKDEV1", 8, NULL));
        assert_true(klp_memory_seal(vm.kit->env, device, NULL));
        for (size_t order = 0; order < 5; order++) {
            uint16_t type = order == 0   ? KLP_KEEPER_LEASE
                            : order == 1 ? KLP_KEEPER_SPAWN
                                         : orders[order - 2];
            const struct klp_buf *fields = order == 1 ? &spawn : &lease;
            klp_buf_clear(&frames);
            klp_keeper_frame_append(&frames, type, order, klp_buf_view(fields));
            KLP_IGNORE(klp_chan_send(&op, vm.line->chan, frames.data, frames.size,
                                     order == 1 ? &base : &device,
                                     loads && (order == 1 || order == 2) ? 1 : 0, NULL));
        }
        klp_handle_close(vm.kit->env, device);
        assert_int_equal(waitpid(vm.pid, &how, 0), vm.pid);
        assert_true(WIFSIGNALED(how) && WTERMSIG(how) == SIGKILL);
        while (line_receive(vm.line, 1000))
            continue;
        line_close(vm.line);
        klp_dir_close(vm.dir);
        assert_int_equal(klp_dir_remove_tree(vm.kit->dir, "vm", NULL), true);
    }
    klp_handle_close(((struct kit *)*state)->env, base);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        KIT_TEST(test_vm_keeper_ends__a_kill_is_told_and_remembered),
        KIT_TEST(test_vm_keeper_ends__a_fenced_guest_can_be_ended),
        KIT_TEST(test_vm_keeper_ends__a_crash_leaves_its_last_words),
        KIT_TEST(test_vm_keeper_ends__a_shutdown_is_clean),
        KIT_TEST(test_vm_keeper_ends__a_killed_keeper_takes_its_guest_along),
        KIT_TEST(test_vm_keeper_ends__a_killed_keeper_takes_a_fenced_guest_along),
        KIT_TEST(test_vm_keeper_ends__sigterm_ends_keeper_and_guest),
        KIT_TEST(test_vm_keeper_ends__an_empty_one_that_nobody_wants_ends),
        KIT_TEST(test_vm_keeper_ends__a_live_guest_is_kept_without_a_daemon),
        KIT_TEST(test_vm_keeper_ends__a_failed_capture_leaves_the_guest_as_it_was),
        KIT_TEST(test_vm_keeper_ends__a_guest_that_dies_in_a_capture_has_crashed),
        KIT_TEST(test_vm_keeper_ends__dies_at_each_point_with_its_guest),
    };
    return cmocka_run_group_tests_name("vm_keeper_ends", tests, keeper_find, NULL);
}
