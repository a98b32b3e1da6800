/* SPDX-License-Identifier: Apache-2.0 */
/* Child processes: what they print, how they end, that none outlives its call. */
#include "image_kit.h"

#include <errno.h>
#include <signal.h>

#include "image/child.h"

static kelpie_outcome shell(struct klp_env *env, const char *script, uint64_t timeout_ms,
                            struct klp_buf *out, struct kelpie_error **err)
{
    const char *const argv[] = {"sh", "-c", script, NULL};
    struct kelpie_op op = klp_op_plain(env, timeout_ms);
    return klp_child_read(&op, argv, out, err);
}

static void test_image_child__output_comes_back(void **state)
{
    struct klp_buf out KLP_AUTO(buf) = KLP_BUF_INIT(1 << 20);
    assert_true(
        kelpie_is_ok(shell(*state, "echo a; echo noise >&2; echo b; pwd; cat", 20000, &out, NULL)));
    assert_string_equal(klp_buf_text(&out), "a\nb\n/\n");
}

/* More on both pipes than a pipe holds. */
static void test_image_child__much_output_on_both_pipes(void **state)
{
    struct klp_buf out KLP_AUTO(buf) = KLP_BUF_INIT(1 << 20);
    assert_true(kelpie_is_ok(shell(*state,
                                   "head -c 300000 /dev/zero >&2; head -c 300000 /dev/zero; "
                                   "head -c 300000 /dev/zero >&2",
                                   20000, &out, NULL)));
    assert_int_equal(out.size, 300000);
}

static void test_image_child__a_failure_says_what_the_tool_said(void **state)
{
    struct klp_buf out KLP_AUTO(buf) = KLP_BUF_INIT(1 << 20);
    KIT_REFUSED(
        shell(*state, "echo one >&2; printf 'tw\\033o' >&2; exit 3", 20000, &out, &err).kind,
        KELPIE_FAIL, KELPIE_E_IO, "'sh' ended with status 3: one tw\\x1bo");
    KIT_REFUSED(shell(*state, "kill -9 $$", 20000, &out, &err).kind, KELPIE_FAIL, KELPIE_E_IO,
                "'sh' ended by signal 9");
    KIT_REFUSED(shell(*state, "head -c 100000 /dev/zero | tr '\\0' x >&2; echo END >&2; exit 1",
                      20000, &out, &err)
                    .kind,
                KELPIE_FAIL, KELPIE_E_IO, "xxxEND");
}

static void test_image_child__the_environment_is_not_ours(void **state)
{
    struct klp_buf out KLP_AUTO(buf) = KLP_BUF_INIT(1 << 20);
    setenv("KELPIE_SECRET", "s", 1);
    setenv("https_proxy", "http://proxy", 1);
    assert_true(kelpie_is_ok(
        shell(*state, "echo ${KELPIE_SECRET-none} $LC_ALL $https_proxy", 20000, &out, NULL)));
    assert_string_equal(klp_buf_text(&out), "none C http://proxy\n");
    unsetenv("KELPIE_SECRET");
    unsetenv("https_proxy");
}

static void test_image_child__no_such_tool(void **state)
{
    static const char *const argv[] = {"kelpie-no-such-tool", NULL};
    struct klp_buf out KLP_AUTO(buf) = KLP_BUF_INIT(1 << 20);
    struct kelpie_op op = klp_op_plain(*state, 20000);
    KIT_REFUSED(klp_child_read(&op, argv, &out, &err).kind, KELPIE_FAIL, KELPIE_E_UNSUPPORTED,
                "'kelpie-no-such-tool' is not installed");
}

static bool pid_take(void *arg, struct klp_bytes bytes, struct kelpie_error **err)
{
    klp_buf_append(arg, bytes.data, bytes.size);
    return klp_buf_check(arg, "pid", err);
}

static bool is_alive(const struct klp_buf *pid)
{
    long number = strtol(klp_buf_text(pid), NULL, 10);
    assert_true(number > 1);
    for (int i = 0; i < 200; i++) { /* a killed grandchild is gone when init collects it */
        char path[64], line[256] = "";
        snprintf(path, sizeof(path), "/proc/%ld/stat", number);
        FILE *file = fopen(path, "re");
        if (file == NULL)
            return false;
        char *got = fgets(line, sizeof(line), file);
        fclose(file);
        if (got == NULL || strstr(line, ") Z ") != NULL)
            return false;
        usleep(10000);
    }
    return true;
}

/* The deadline passes while a grandchild holds the pipes. */
static void test_image_child__a_deadline_kills_all_of_it(void **state)
{
    static const char *const argv[] = {"sh", "-c", "sleep 60 & echo $!; wait", NULL};
    struct klp_buf pid KLP_AUTO(buf) = KLP_BUF_INIT(64);
    struct klp_child child = {.argv = argv, .stdin_fd = -1, .each = pid_take, .arg = &pid};
    struct kelpie_op op = klp_op_plain(*state, 400);
    KIT_REFUSED(klp_child_run(&op, &child, &err).kind, KELPIE_FAIL, KELPIE_E_TIMEOUT, "sh");
    assert_false(is_alive(&pid));
}

static void test_image_child__too_much_output_stops_it(void **state)
{
    struct klp_buf out KLP_AUTO(buf) = KLP_BUF_INIT(1000);
    KIT_REFUSED(shell(*state, "yes", 20000, &out, &err).kind, KELPIE_FAIL, KELPIE_E_LIMIT,
                "printed");
}

static int env_setup(void **state)
{
    *state = kit_env();
    return 0;
}

static int env_teardown(void **state)
{
    klp_env_posix_destroy(*state);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_image_child__output_comes_back),
        cmocka_unit_test(test_image_child__much_output_on_both_pipes),
        cmocka_unit_test(test_image_child__a_failure_says_what_the_tool_said),
        cmocka_unit_test(test_image_child__the_environment_is_not_ours),
        cmocka_unit_test(test_image_child__no_such_tool),
        cmocka_unit_test(test_image_child__a_deadline_kills_all_of_it),
        cmocka_unit_test(test_image_child__too_much_output_stops_it),
    };
    return cmocka_run_group_tests_name("image_child", tests, env_setup, env_teardown);
}
