/* SPDX-License-Identifier: Apache-2.0 */
/* Launching kelpie-keeper: nobody's child, or an error that says why and nothing left. */
#include "vm_keeper_kit.h"

#include "vm/keeper_launch.h"

static void test_vm_keeper_launch__a_launched_one_is_nobodys_child(void **state)
{
    struct kelpie_error *err = NULL;
    struct vm vm;
    folder_make(&vm, *state, "vm");
    struct kelpie_op op = klp_op_plain(vm.kit->env, 20000);
    KIT_OK(klp_keeper_launch(&op, keeper_path, "mock", NULL, vm.dir, KEEPER_VM, &err));
    vm.line = line_open(vm.kit, vm.dir);
    int64_t pid = (int64_t)status_number(vm.line, KLP_KTAG_KEEPER_PID);
    assert_int_equal(waitpid((pid_t)pid, NULL, WNOHANG), -1);
    assert_int_equal(getsid((pid_t)pid), pid);        /* a session of its own */
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1); /* nothing to reap at all */
    assert_string_equal(line_lease(vm.line, 1, 60000), "");
    assert_string_equal(line_spawn(vm.line, KLP_SPAWN_COLD, NULL), "");
    assert_string_equal(guest_say(&vm, "@echo free"), "free\n");
    assert_string_equal(line_ask(vm.line, KLP_KEEPER_EXIT, NULL, NULL, 0), "");
    assert_true(process_wait(vm.kit, pid, GONE));
    line_close(vm.line);
    klp_dir_close(vm.dir);
}

static void launch_fails(struct kit *kit, const char *path, const char *backend,
                         const char *const *words, uint64_t timeout_ms, const char *text)
{
    struct kelpie_error *err = NULL;
    struct vm vm;
    folder_make(&vm, kit, "vm");
    struct kelpie_op op = klp_op_plain(kit->env, timeout_ms);
    assert_false(
        kelpie_is_ok(klp_keeper_launch(&op, path, backend, words, vm.dir, KEEPER_VM, &err)));
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf all = KLP_BUF_INIT(16384);
    for (const struct kelpie_error *at = err; at != NULL; at = kelpie_error_cause(at))
        klp_buf_append_text(&all, kelpie_error_message(at));
    if (strstr(klp_buf_text(&all), text) == NULL)
        fail_msg("'%s' does not say '%s'", klp_buf_text(&all), text);
    kelpie_error_free(err);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
    klp_dir_close(vm.dir);
    assert_true(klp_dir_remove_tree(kit->dir, "vm", NULL));
}

static void test_vm_keeper_launch__a_launch_that_fails_says_why(void **state)
{
    static const char *const nonsense[] = {"--nonsense", NULL};
    launch_fails(*state, "/nonexistent/kelpie-keeper", "mock", NULL, 10000, "kelpie-keeper");
    launch_fails(*state, keeper_path, "none", NULL, 10000, "no backend 'none'");
    launch_fails(*state, keeper_path, "mock", nonsense, 10000, "--nonsense");
}

/* A program that never gets ready, in a folder that it is found by: nothing of it stays. */
static void test_vm_keeper_launch__a_launch_that_hangs_is_given_up(void **state)
{
    static const char *const slow[] = {"--orphan-ms", "600000", NULL};
    struct kit *kit = *state;
    struct klp_env_posix_options options = {
        .program = "unit-test", .level = KLP_LOG_ERROR, .test_points = true};
    struct kelpie_error *err = NULL;
    struct klp_env *env;
    struct klp_dir *dir;
    assert_true(klp_env_posix_create(&options, &env, &err));
    assert_true(klp_dir_open(env, kit->path, false, &dir, &err));
    struct kelpie_op op = klp_op_plain(env, 0);
    assert_false(
        kelpie_is_ok(klp_keeper_launch(&op, keeper_path, "mock", slow, dir, KEEPER_VM, &err)));
    assert_int_equal(kelpie_error_code(err), KELPIE_E_TIMEOUT);
    kelpie_error_free(err);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
    nap(kit, 300); /* whoever still came up would listen by now */
    struct kelpie_op look = klp_op_plain(env, 1000);
    struct klp_chan *chan;
    assert_false(kelpie_is_ok(klp_chan_connect(&look, dir, KLP_KEEPER_SOCKET, &chan, NULL)));
    klp_dir_close(dir);
    klp_env_posix_destroy(env);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        KIT_TEST(test_vm_keeper_launch__a_launched_one_is_nobodys_child),
        KIT_TEST(test_vm_keeper_launch__a_launch_that_fails_says_why),
        KIT_TEST(test_vm_keeper_launch__a_launch_that_hangs_is_given_up),
    };
    return cmocka_run_group_tests_name("vm_keeper_launch", tests, keeper_find, NULL);
}
