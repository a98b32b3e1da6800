/* SPDX-License-Identifier: Apache-2.0 */
/* kelpie-keeper as a process, over a mock guest: what it makes of nonsense, on its socket and on
 * its command line. */
#include "vm_keeper_kit.h"

static void raw_send(struct line *line, const void *bytes, size_t size)
{
    struct kelpie_op op = klp_op_plain(line->env, 5000);
    struct kelpie_error *err = NULL;
    KIT_OK(klp_chan_send(&op, line->chan, bytes, size, NULL, 0, &err));
}

static void test_vm_keeper_hostile__nonsense_ends_its_connection_only(void **state)
{
    static uint8_t huge[KLP_KEEPER_FRAME_MAX + 1];
    static const uint8_t zeros[16];
    struct vm vm;
    const struct {
        const void *bytes;
        size_t size;
        const char *code;
    } cases[] = {{"x", 1, "protocol"},
                 {"KPR1", 4, "protocol"},
                 {zeros, sizeof(zeros), "protocol"},
                 {"KPR1\x01\0\0\0\0\0\0\0\0\0\0\0\x07", 17, "protocol"},
                 {"KPR1\x01\0\1\0\0\0\0\0\0\0\0\0", 16, "protocol"},
                 {huge, sizeof(huge), "limit"}};
    vm_run(&vm, *state);
    for (size_t i = 0; i < KLP_COUNT(cases); i++) {
        struct line *line = line_open(vm.kit, vm.dir);
        raw_send(line, cases[i].bytes, cases[i].size);
        assert_true(line_receive(line, 5000));
        assert_int_equal(line->answer.type, KLP_KEEPER_ERROR);
        assert_int_equal(line->answer.id, 0);
        assert_string_equal(answer_text(line, KLP_KTAG_ERROR), cases[i].code);
        assert_false(line_receive(line, 5000)); /* and nothing more */
        line_close(line);
    }
    assert_string_equal(guest_say(&vm, "@echo unmoved"), "unmoved\n");
    vm_exit(&vm);
}

static void test_vm_keeper_hostile__wrong_orders_are_answered(void **state)
{
    struct vm vm;
    struct klp_handle zeros[3];
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf fields = KLP_BUF_INIT(32 * 1024);
    vm_start(&vm, *state);
    for (size_t i = 0; i < 3; i++)
        zeros[i] = zeros_make(vm.kit);
    const uint16_t types[] = {62, 63, KLP_KEEPER_OK, KLP_KEEPER_ERROR, 65535};
    for (size_t i = 0; i < KLP_COUNT(types); i++)
        assert_string_equal(line_ask(vm.line, types[i], NULL, NULL, 0), "protocol");
    assert_string_equal(line_ask(vm.line, KLP_KEEPER_SPAWN, NULL, zeros, 3), "protocol");
    klp_field_append(&fields, KLP_KTAG_MACHINE, "junk", 4);
    assert_string_equal(line_ask(vm.line, KLP_KEEPER_SPAWN, &fields, NULL, 0), "corrupt");
    klp_buf_clear(&fields);
    spawn_fields(&fields, (enum klp_spawn_mode)7);
    assert_string_equal(line_ask(vm.line, KLP_KEEPER_SPAWN, &fields, NULL, 0), "protocol");
    klp_buf_clear(&fields);
    klp_field_append(&fields, KLP_KTAG_EPOCH, "1234", 4); /* a number has 8 bytes */
    assert_string_equal(line_ask(vm.line, KLP_KEEPER_LEASE, &fields, NULL, 0), "protocol");
    assert_string_equal(line_hold(vm.line, KLP_HOLD_USER), "wrong_state");
    assert_string_equal(line_ask(vm.line, KLP_KEEPER_GUEST, NULL, NULL, 0), "wrong_state");
    assert_string_equal(line_ask(vm.line, KLP_KEEPER_CAPTURE, NULL, NULL, 0), "wrong_state");
    assert_string_equal(line_ask(vm.line, KLP_KEEPER_KILL, NULL, NULL, 0), "");
    assert_int_equal(status_number(vm.line, KLP_KTAG_STATE), KLP_KEEPER_EMPTY);
    for (size_t i = 0; i < 3; i++)
        klp_handle_close(vm.kit->env, zeros[i]);
    vm_exit(&vm);
}

static size_t fd_count(int pid)
{
    char path[64];
    size_t count = 0;
    snprintf(path, sizeof(path), "/proc/%d/fd", pid);
    DIR *fds = opendir(path);
    while (fds != NULL && readdir(fds) != NULL)
        count++;
    closedir(fds);
    return count;
}

static void test_vm_keeper_hostile__handles_of_refused_orders_do_not_pile_up(void **state)
{
    struct vm vm;
    vm_run(&vm, *state);
    struct klp_handle all[KLP_KEEPER_HANDLES_MAX];
    all[0] = zeros_make(vm.kit);
    for (size_t i = 1; i < KLP_COUNT(all); i++)
        all[i] = all[0];
    line_status(vm.line);
    size_t before = fd_count(vm.pid);
    for (size_t i = 0; i < 40; i++) {
        assert_string_equal(line_ask(vm.line, KLP_KEEPER_STATUS, NULL, all, KLP_COUNT(all)), "");
        assert_string_equal(line_ask(vm.line, KLP_KEEPER_LOAD, NULL, all, KLP_COUNT(all)),
                            "wrong_state");
        assert_string_equal(line_ask(vm.line, KLP_KEEPER_GUEST, NULL, NULL, 0), "");
    }
    line_status(vm.line);
    assert_int_equal(fd_count(vm.pid), before);
    klp_handle_close(vm.kit->env, all[0]);
    vm_exit(&vm);
}

static void test_vm_keeper_hostile__connections_have_a_limit_and_come_back(void **state)
{
    struct vm vm;
    struct line *lines[15], *late;
    vm_start(&vm, *state);
    for (size_t i = 0; i < KLP_COUNT(lines); i++) {
        lines[i] = line_open(vm.kit, vm.dir);
        line_status(lines[i]);
    }
    late = line_open(vm.kit, vm.dir);
    assert_false(line_receive(late, 5000)); /* closed */
    line_close(late);
    line_status(vm.line);
    for (size_t i = 0; i < KLP_COUNT(lines); i++)
        line_close(lines[i]);
    for (int i = 0; i < 100; i++) { /* slots are used again */
        bool served = false;
        for (int tries = 0; tries < 100 && !served; tries++) { /* an end is seen in its own time */
            struct line *line = line_open(vm.kit, vm.dir);
            struct kelpie_op op = klp_op_plain(vm.kit->env, 1000);
            __attribute__((cleanup(klp_auto_buf))) struct klp_buf frame = KLP_BUF_INIT(64);
            klp_keeper_frame_append(&frame, KLP_KEEPER_STATUS, 1, (struct klp_bytes){NULL, 0});
            served = kelpie_is_ok(
                         klp_chan_send(&op, line->chan, frame.data, frame.size, NULL, 0, NULL)) &&
                     line_receive(line, 1000);
            line_close(line);
        }
        assert_true(served);
    }
    vm_exit(&vm);
}

static void test_vm_keeper_hostile__two_in_one_folder_are_one_too_many(void **state)
{
    struct vm vm, second = {.kit = *state};
    vm_run(&vm, *state);
    memcpy(second.path, vm.path, sizeof(vm.path));
    int pid = keeper_spawn(&second, NULL, NULL), how;
    assert_int_equal(waitpid(pid, &how, 0), pid);
    assert_true(WIFEXITED(how) && WEXITSTATUS(how) == kelpie_code_exit(KELPIE_E_EXISTS));
    assert_string_equal(guest_say(&vm, "@echo mine"), "mine\n"); /* the first has lost nothing */
    struct line *again = line_open(vm.kit, vm.dir);
    line_close(again);
    vm_exit(&vm);
}

/* ---- the program */

static void refused(struct kit *kit, const char *const *words, const char *const *env, int status)
{
    struct vm vm;
    int how;
    folder_make(&vm, kit, "refused");
    int pid = keeper_spawn(&vm, words, env);
    assert_int_equal(waitpid(pid, &how, 0), pid);
    assert_true(WIFEXITED(how));
    assert_int_equal(WEXITSTATUS(how), status);
    klp_dir_close(vm.dir);
}

static void test_vm_keeper_hostile__wrong_words_are_refused(void **state)
{
    struct kit *kit = *state;
    int invalid = kelpie_code_exit(KELPIE_E_INVALID);
    refused(kit, (const char *[]){"--nonsense", NULL}, NULL, invalid);
    refused(kit, (const char *[]){"--orphan-ms", NULL}, NULL, invalid);
    refused(kit, (const char *[]){"--orphan-ms", "-1", NULL}, NULL, invalid);
    refused(kit, (const char *[]){"--vm", "../../x", NULL}, NULL, invalid);
    refused(kit, (const char *[]){"--backend", "none", NULL}, NULL,
            kelpie_code_exit(KELPIE_E_UNSUPPORTED));
    refused(kit, (const char *[]){"--dir", "/nonexistent/x", NULL}, NULL,
            kelpie_code_exit(KELPIE_E_NOT_FOUND));
    refused(kit, NULL, (const char *[]){"KELPIE_POINT=keeper.lease:kill", NULL}, invalid);
}

static void test_vm_keeper_hostile__faults_need_test_points(void **state)
{
    static const char *const boot[] = {"KELPIE_MOCK_FAULT=boot", NULL};
    struct vm vm;
    vm_start_as(&vm, *state, "vm", NULL, boot);
    assert_string_equal(line_spawn(vm.line, KLP_SPAWN_COLD, NULL), "");
    vm_exit(&vm);
    vm_start_as(&vm, *state, "vm", (const char *[]){"--test-points", NULL}, boot);
    assert_string_equal(line_spawn(vm.line, KLP_SPAWN_COLD, NULL), "io");
    assert_int_equal(status_number(vm.line, KLP_KTAG_STATE), KLP_KEEPER_EMPTY);
    vm_exit(&vm);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        KIT_TEST(test_vm_keeper_hostile__nonsense_ends_its_connection_only),
        KIT_TEST(test_vm_keeper_hostile__wrong_orders_are_answered),
        KIT_TEST(test_vm_keeper_hostile__handles_of_refused_orders_do_not_pile_up),
        KIT_TEST(test_vm_keeper_hostile__connections_have_a_limit_and_come_back),
        KIT_TEST(test_vm_keeper_hostile__two_in_one_folder_are_one_too_many),
        KIT_TEST(test_vm_keeper_hostile__wrong_words_are_refused),
        KIT_TEST(test_vm_keeper_hostile__faults_need_test_points),
    };
    return cmocka_run_group_tests_name("vm_keeper_hostile", tests, keeper_find, NULL);
}
