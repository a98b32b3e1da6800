/* SPDX-License-Identifier: Apache-2.0 */
/* Test points: they act at their name and visit, only where they were allowed, and kill or stop the
 * whole process exactly there. Each case runs in a child. */
#include "env_kit.h"

#include <signal.h>
#include <sys/mman.h>

/* What the child got done before it was killed or stopped; shared with it. */
static volatile int *progress;

static struct klp_env_posix_options options = {
    .program = "unit-test", .level = KLP_LOG_ERROR, .test_points = true};

static void child_run(const char *point)
{
    struct klp_env *env = NULL;
    int null = open("/dev/null", O_WRONLY);
    dup2(null, STDERR_FILENO); /* the line that a point writes */
    if (setenv("KELPIE_POINT", point, 1) != 0 || !klp_env_posix_create(&options, &env, NULL))
        _exit(9);
    for (int i = 1; i <= 3; i++) {
        klp_point(env, "unit.before");
        *progress = 10 * i;
        klp_point(env, "unit.after");
        *progress = 10 * i + 5;
    }
    klp_point(env, "unit.before");
    klp_env_posix_destroy(env);
    _exit(0);
}

static pid_t child_start(const char *point)
{
    *progress = 0;
    pid_t pid = fork();
    if (pid == 0)
        child_run(point);
    assert_true(pid > 0);
    return pid;
}

static void killed_at(const char *point, int expected)
{
    int status = kit_wait(child_start(point), 0);
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL || *progress != expected)
        fail_msg("%s: status %#x, progress %d", point, status, *progress);
}

static void test_env_posix_point__kills_at_its_name_and_visit(void **state)
{
    (void)state;
    killed_at("unit.before:kill", 0);
    killed_at("unit.after:kill", 10);
    killed_at("unit.before:kill@1", 0);
    killed_at("unit.before:kill@2", 15);
    killed_at("unit.after:kill@3", 30);
}

static void test_env_posix_point__stops_exactly_there_and_once(void **state)
{
    (void)state;
    for (int round = 0; round < 5; round++) {
        pid_t pid = child_start("unit.after:stop@2");
        int status = kit_wait(pid, WUNTRACED);
        assert_true(WIFSTOPPED(status));
        assert_int_equal(WSTOPSIG(status), SIGSTOP);
        assert_int_equal(*progress, 20);
        assert_int_equal(kill(pid, SIGCONT), 0);
        status = kit_wait(pid, WUNTRACED); /* later visits pass */
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        assert_int_equal(*progress, 35);
    }
}

static void visit_run(void *env)
{
    klp_point(env, "unit.here");
    *progress = 1;
}

/* A stop sent to the process is taken by its first thread, and the one at the point would run on
 * past it. */
static void test_env_posix_point__stops_the_thread_that_is_there(void **state)
{
    (void)state;
    for (int round = 0; round < 20; round++) {
        *progress = 0;
        pid_t pid = fork();
        if (pid == 0) {
            struct klp_env *env = NULL;
            struct klp_task *task;
            int null = open("/dev/null", O_WRONLY);
            dup2(null, STDERR_FILENO);
            if (setenv("KELPIE_POINT", "unit.here:stop", 1) != 0 ||
                !klp_env_posix_create(&options, &env, NULL) ||
                !klp_task_spawn(env, "visitor", visit_run, env, &task, NULL))
                _exit(9);
            klp_task_join(task);
            _exit(0);
        }
        int status = kit_wait(pid, WUNTRACED);
        assert_true(WIFSTOPPED(status));
        assert_int_equal(*progress, 0);
        assert_int_equal(kill(pid, SIGCONT), 0);
        status = kit_wait(pid, WUNTRACED);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        assert_int_equal(*progress, 1);
    }
}

static void test_env_posix_point__other_names_pass(void **state)
{
    static const char *const points[] = {"unit.befor:kill", "unit.before.x:kill",
                                         "Unit.before:kill", "unit.before:kill@5", "other:stop"};
    (void)state;
    for (size_t i = 0; i < KLP_COUNT(points); i++) {
        int status = kit_wait(child_start(points[i]), 0);
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0 || *progress != 35)
            fail_msg("%s: status %#x, progress %d", points[i], status, *progress);
    }
}

static void test_env_posix_point__refused_without_leave(void **state)
{
    struct klp_env_posix_options production = options;
    struct kelpie_error *err = NULL;
    struct klp_env *env = NULL;
    (void)state;
    production.test_points = false;
    assert_int_equal(setenv("KELPIE_POINT", "unit.before:kill", 1), 0);
    KIT_REFUSED(klp_env_posix_create(&production, &env, &err), &err, KELPIE_E_INVALID,
                "KELPIE_POINT is set, but unit-test was started without --test-points");
    assert_int_equal(setenv("KELPIE_POINT", "", 1), 0); /* set to nothing is set */
    KIT_REFUSED(klp_env_posix_create(&production, &env, &err), &err, KELPIE_E_INVALID,
                "--test-points");
    assert_null(env);
    assert_int_equal(unsetenv("KELPIE_POINT"), 0);
    assert_true(klp_env_posix_create(&production, &env, &err));
    klp_point(env, "unit.before");
    klp_env_posix_destroy(env);
    assert_true(klp_env_posix_create(&options, &env, &err)); /* allowed, and not used */
    klp_point(env, "unit.before");
    klp_env_posix_destroy(env);
    klp_env_posix_destroy(NULL);
}

static void test_env_posix_point__malformed_is_refused(void **state)
{
    static const char *const bad[] = {"",
                                      "unit.before",
                                      ":kill",
                                      "unit.before:",
                                      "unit.before:die",
                                      "unit.before:kill@",
                                      "unit.before:kill@0",
                                      "unit.before:kill@-1",
                                      "unit.before:kill@x",
                                      "unit.before:kill@99999999999",
                                      "unit.before:killer",
                                      "unit.before:kill:stop",
                                      "unit.before:@1"};
    struct kelpie_error *err = NULL;
    struct klp_env *env = NULL;
    (void)state;
    for (size_t i = 0; i < KLP_COUNT(bad); i++) {
        assert_int_equal(setenv("KELPIE_POINT", bad[i], 1), 0);
        if (klp_env_posix_create(&options, &env, &err))
            fail_msg("'%s' was taken", bad[i]);
        kit_code_at(__LINE__, klp_error_code(&err), &err, KELPIE_E_INVALID,
                    "NAME:kill or NAME:stop");
    }
    assert_int_equal(unsetenv("KELPIE_POINT"), 0);
}

/* A bug ends the process with a line that says where, whatever the build. */
static void test_env_posix_point__a_bug_aborts_with_its_place(void **state)
{
    int ends[2];
    char line[300];
    (void)state;
    assert_int_equal(pipe(ends), 0);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(ends[1], STDERR_FILENO);
        struct sigaction action = {.sa_handler = SIG_DFL}; /* cmocka catches it */
        sigaction(SIGABRT, &action, NULL);
        KLP_ASSERT(1 + 1 == 3);
        _exit(0);
    }
    close(ends[1]);
    int status = kit_wait(pid, 0);
    ssize_t size = read(ends[0], line, sizeof(line) - 1);
    close(ends[0]);
    line[size > 0 ? size : 0] = 0;
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    assert_non_null(strstr(line, "env_posix_point.c:"));
    assert_non_null(strstr(line, "1 + 1 == 3\n"));
}

int main(void)
{
    unsetenv("KELPIE_POINT");
    progress =
        mmap(NULL, sizeof(*progress), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_env_posix_point__kills_at_its_name_and_visit),
        cmocka_unit_test(test_env_posix_point__stops_exactly_there_and_once),
        cmocka_unit_test(test_env_posix_point__stops_the_thread_that_is_there),
        cmocka_unit_test(test_env_posix_point__other_names_pass),
        cmocka_unit_test(test_env_posix_point__refused_without_leave),
        cmocka_unit_test(test_env_posix_point__malformed_is_refused),
        cmocka_unit_test(test_env_posix_point__a_bug_aborts_with_its_place),
    };
    return cmocka_run_group_tests_name("env_posix_point", tests, NULL, NULL);
}
