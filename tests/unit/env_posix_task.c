/* SPDX-License-Identifier: Apache-2.0 */
/* Time, operations, cancels, progress, tasks, mutexes and conditions of the real env. */
#include "env_kit.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>

static void test_env_posix_task__clocks_and_randomness(void **state)
{
    struct kit *kit = *state;
    uint64_t before = klp_boot_ns(kit->env);
    char id[KLP_ID_SIZE], other[KLP_ID_SIZE];
    uint8_t bytes[1000] = {0};
    size_t zeros = 0;
    assert_true(klp_boot_ns(kit->env) >= before);
    assert_true(klp_wall_ns(kit->env) > 1600000000 * (int64_t)KLP_SECOND);
    klp_random_id(kit->env, id);
    klp_random_id(kit->env, other);
    assert_true(klp_id_is_valid(id));
    assert_string_not_equal(id, other);
    klp_random(kit->env, bytes, sizeof(bytes));
    for (size_t i = 0; i < sizeof(bytes); i++)
        zeros += bytes[i] == 0;
    assert_in_range(zeros, 0, 60); /* 4 expected */
    klp_random(kit->env, bytes, 0);
}

static void test_env_posix_task__deadlines_only_shrink(void **state)
{
    struct kit *kit = *state;
    struct kelpie_op op = klp_op_plain(kit->env, 5000), other;
    struct kelpie_op forever = klp_op_plain(kit->env, UINT64_MAX);
    assert_null(op.cancel);
    assert_null(op.progress);
    assert_string_equal(op.move_id, "");
    assert_in_range(klp_op_left_ms(&op), 4000, 5000);
    other = klp_op_within(&op, 60000);
    assert_true(other.deadline_ns == op.deadline_ns);
    other = klp_op_within(&op, 100);
    assert_in_range(klp_op_left_ms(&other), 1, 100);
    assert_true(forever.deadline_ns == KLP_NO_DEADLINE);
    assert_true(klp_op_left_ms(&forever) == UINT64_MAX);
    other = klp_op_within(&forever, UINT64_MAX / 2);
    assert_true(other.deadline_ns == KLP_NO_DEADLINE); /* too far to be a number */
    other = klp_op_within(&forever, 50);
    assert_in_range(klp_op_left_ms(&other), 1, 50);
    other.deadline_ns = klp_boot_ns(kit->env);
    assert_int_equal(klp_op_left_ms(&other), 0);
    other.deadline_ns = klp_boot_ns(kit->env) + KLP_MS / 2; /* or it is past by now */
    uint64_t left = klp_op_left_ms(&other);
    assert_true(left == 1 || klp_boot_ns(kit->env) >= other.deadline_ns);
}

static void test_env_posix_task__check_and_cleanup(void **state)
{
    struct kit *kit = *state;
    struct kelpie_error *err = NULL;
    KLP_AUTO(cancel) struct klp_cancel *cancel = klp_cancel_create(kit->env);
    struct kelpie_op op = klp_op_plain(kit->env, 0);
    klp_text_copy(op.move_id, sizeof(op.move_id), "0123");
    KIT_FAILS(klp_op_check(&op, "booting 'a'", &err), &err, KELPIE_E_TIMEOUT, "while booting 'a'");
    op.deadline_ns = KLP_NO_DEADLINE;
    op.cancel = cancel;
    KIT_OK(klp_op_check(&op, "x", &err));
    assert_false(klp_cancel_is_raised(cancel));
    klp_cancel_raise(cancel);
    klp_cancel_raise(cancel);
    assert_true(klp_cancel_is_raised(cancel));
    KIT_FAILS(klp_op_check(&op, "waiting", &err), &err, KELPIE_E_CANCELLED, "while waiting");
    struct kelpie_op cleanup = klp_op_cleanup(&op, 1000);
    KIT_OK(klp_op_check(&cleanup, "undoing", &err));
    assert_string_equal(cleanup.move_id, "0123");
    assert_in_range(klp_op_left_ms(&cleanup), 1, 1000);
    klp_cancel_destroy(NULL);
}

static void test_env_posix_task__progress(void **state)
{
    struct kit *kit = *state;
    KLP_AUTO(progress) struct klp_progress *progress = klp_progress_create(kit->env);
    struct kelpie_op op = klp_op_plain(kit->env, 1000);
    struct klp_phase phases[KLP_PHASES_MAX];
    klp_op_phase(&op, "nobody"); /* without a progress: nothing happens */
    klp_op_bytes(&op, 1);
    klp_op_phase_end(&op);
    op.progress = progress;
    klp_op_bytes(&op, 5); /* before the first phase */
    klp_op_phase_end(&op);
    assert_int_equal(klp_progress_read(progress, phases), 0);
    klp_op_phase(&op, "precopy");
    klp_op_bytes(&op, 100);
    klp_op_bytes(&op, 11);
    assert_int_equal(klp_progress_read(progress, phases), 1);
    assert_int_equal(phases[0].end_ns, 0);
    klp_op_phase(&op, "quiesce");
    klp_op_phase_end(&op);
    assert_int_equal(klp_progress_read(progress, phases), 2);
    assert_string_equal(phases[0].step, "precopy");
    assert_int_equal(phases[0].bytes, 111);
    assert_true(phases[0].start_ns <= phases[0].end_ns && phases[0].end_ns <= phases[1].start_ns);
    assert_string_equal(phases[1].step, "quiesce");
    uint64_t end = phases[1].end_ns;
    assert_true(end >= phases[1].start_ns);
    klp_op_phase_end(&op); /* twice: the first holds */
    for (int i = 0; i < KLP_PHASES_MAX + 5; i++)
        klp_op_phase(&op, "more");
    assert_int_equal(klp_progress_read(progress, phases), KLP_PHASES_MAX);
    assert_true(phases[1].end_ns == end);
    klp_progress_destroy(NULL);
}

static void test_env_posix_task__sleep_ends_at_the_instant_or_with_the_op(void **state)
{
    struct kit *kit = *state;
    struct kelpie_error *err = NULL;
    struct kelpie_op op = klp_op_plain(kit->env, 10000);
    uint64_t start = klp_boot_ns(kit->env);
    KIT_OK(klp_sleep_until(&op, start + 30 * KLP_MS, &err));
    assert_true(klp_boot_ns(kit->env) >= start + 30 * KLP_MS);
    KIT_OK(klp_sleep_until(&op, 0, &err));
    op = klp_op_plain(kit->env, 30);
    start = kit_ms(kit);
    KIT_FAILS(klp_sleep_until(&op, UINT64_MAX, &err), &err, KELPIE_E_TIMEOUT, "sleeping");
    assert_in_range(kit_ms(kit) - start, 29, 5000);
}

/* ---- conditions */

struct shared {
    struct kit *kit;
    struct klp_mutex *mutex;
    struct klp_cond *cond;
    struct klp_cancel *cancel;
    uint64_t count, woken;
    bool go;
};

static void shared_open(struct kit *kit, struct shared *shared)
{
    *shared = (struct shared){.kit = kit,
                              .mutex = klp_mutex_create(kit->env),
                              .cond = klp_cond_create(kit->env),
                              .cancel = klp_cancel_create(kit->env)};
}

static void shared_close(struct shared *shared)
{
    klp_cond_destroy(shared->cond);
    klp_mutex_destroy(shared->mutex);
    klp_cancel_destroy(shared->cancel);
    klp_cond_destroy(NULL);
    klp_mutex_destroy(NULL);
}

static void count_run(void *arg)
{
    struct shared *shared = arg;
    for (int i = 0; i < 5000; i++)
        KLP_LOCKED (shared->mutex) {
            shared->count++;
        }
}

static void test_env_posix_task__mutex_excludes(void **state)
{
    struct kit *kit = *state;
    struct klp_task *tasks[4];
    struct shared shared;
    shared_open(kit, &shared);
    for (int i = 0; i < 4; i++)
        assert_true(klp_task_spawn(kit->env, "a name longer than the kernel takes", count_run,
                                   &shared, &tasks[i], NULL));
    for (int i = 0; i < 4; i++)
        klp_task_join(tasks[i]);
    assert_int_equal(shared.count, 20000);
    shared_close(&shared);
}

static void wait_for_go(void *arg)
{
    struct shared *shared = arg;
    struct kelpie_op op = klp_op_plain(shared->kit->env, 30000);
    klp_mutex_lock(shared->mutex);
    shared->count++;
    klp_cond_wake(shared->cond);
    while (!shared->go)
        if (!kelpie_is_ok(klp_cond_wait(&op, shared->cond, shared->mutex, NULL)))
            break;
    shared->woken += shared->go;
    klp_mutex_unlock(shared->mutex);
}

static void test_env_posix_task__wake_wakes_all_at_once(void **state)
{
    struct kit *kit = *state;
    struct kelpie_op op = klp_op_plain(kit->env, 30000);
    struct klp_task *tasks[4];
    struct shared shared;
    shared_open(kit, &shared);
    for (int i = 0; i < 4; i++)
        assert_true(klp_task_spawn(kit->env, "waiter", wait_for_go, &shared, &tasks[i], NULL));
    klp_mutex_lock(shared.mutex);
    while (shared.count < 4)
        KIT_OK(klp_cond_wait(&op, shared.cond, shared.mutex, NULL));
    shared.go = true;
    uint64_t start = kit_ms(kit);
    klp_mutex_unlock(shared.mutex);
    klp_cond_wake(shared.cond); /* also without the mutex */
    for (int i = 0; i < 4; i++)
        klp_task_join(tasks[i]);
    assert_in_range(kit_ms(kit) - start, 0, 900); /* woken, not napped */
    assert_int_equal(shared.woken, 4);
    shared_close(&shared);
}

/* Two tasks hand a token to and fro: one lost wake-up costs a nap of a second. */
static void ping_run(void *arg)
{
    struct shared *shared = arg;
    struct kelpie_op op = klp_op_plain(shared->kit->env, 30000);
    klp_mutex_lock(shared->mutex);
    while (shared->count < 4000) {
        if (shared->count % 2 == 1) {
            shared->count++;
            klp_cond_wake(shared->cond);
        } else if (!kelpie_is_ok(klp_cond_wait(&op, shared->cond, shared->mutex, NULL))) {
            break;
        }
    }
    klp_mutex_unlock(shared->mutex);
}

static void test_env_posix_task__no_wake_is_lost(void **state)
{
    struct kit *kit = *state;
    struct kelpie_op op = klp_op_plain(kit->env, 30000);
    struct klp_task *task;
    struct shared shared;
    shared_open(kit, &shared);
    uint64_t start = kit_ms(kit);
    assert_true(klp_task_spawn(kit->env, "ping", ping_run, &shared, &task, NULL));
    klp_mutex_lock(shared.mutex);
    while (shared.count < 4000) {
        if (shared.count % 2 == 0) {
            shared.count++;
            klp_cond_wake(shared.cond);
        } else {
            KIT_OK(klp_cond_wait(&op, shared.cond, shared.mutex, NULL));
        }
    }
    klp_cond_wake(shared.cond);
    klp_mutex_unlock(shared.mutex);
    klp_task_join(task);
    assert_in_range(kit_ms(kit) - start, 0, 10000); /* 4,000 naps would be an hour */
    shared_close(&shared);
}

static void test_env_posix_task__wait_ends_at_the_deadline_with_the_mutex_held(void **state)
{
    struct kit *kit = *state;
    struct kelpie_error *err = NULL;
    struct kelpie_op op = klp_op_plain(kit->env, 50);
    kelpie_outcome outcome = KLP_OK;
    struct shared shared;
    shared_open(kit, &shared);
    uint64_t start = kit_ms(kit);
    klp_mutex_lock(shared.mutex);
    for (int i = 0; i < 100 && kelpie_is_ok(outcome); i++)
        outcome = klp_cond_wait(&op, shared.cond, shared.mutex, &err);
    klp_mutex_unlock(shared.mutex); /* would be a bug if it were not held */
    KIT_FAILS(outcome, &err, KELPIE_E_TIMEOUT, "");
    assert_in_range(kit_ms(kit) - start, 49, 5000);
    shared_close(&shared);
}

static void raise_soon(void *arg)
{
    struct shared *shared = arg;
    struct kelpie_op op = klp_op_plain(shared->kit->env, 10000);
    KLP_IGNORE(klp_sleep_until(&op, klp_boot_ns(op.env) + 50 * KLP_MS, NULL));
    klp_cancel_raise(shared->cancel);
}

static void test_env_posix_task__cancel_wakes_every_wait_at_once(void **state)
{
    struct kit *kit = *state;
    for (int sleeps = 0; sleeps < 2; sleeps++) {
        struct kelpie_error *err = NULL;
        struct kelpie_op op = {.env = kit->env, .deadline_ns = KLP_NO_DEADLINE};
        kelpie_outcome outcome = KLP_OK;
        struct klp_task *task;
        struct shared shared;
        shared_open(kit, &shared);
        op.cancel = shared.cancel;
        uint64_t start = kit_ms(kit);
        assert_true(klp_task_spawn(kit->env, "raise", raise_soon, &shared, &task, NULL));
        if (sleeps)
            outcome = klp_sleep_until(&op, UINT64_MAX, &err);
        klp_mutex_lock(shared.mutex);
        while (kelpie_is_ok(outcome))
            outcome = klp_cond_wait(&op, shared.cond, shared.mutex, &err);
        klp_mutex_unlock(shared.mutex);
        KIT_FAILS(outcome, &err, KELPIE_E_CANCELLED, "");
        assert_in_range(kit_ms(kit) - start, 40, 900);
        klp_task_join(task);
        shared_close(&shared);
    }
}

static void test_env_posix_task__a_cancel_already_raised_is_seen(void **state)
{
    struct kit *kit = *state;
    struct kelpie_error *err = NULL;
    struct kelpie_op op = {.env = kit->env, .deadline_ns = KLP_NO_DEADLINE};
    struct shared shared;
    shared_open(kit, &shared);
    op.cancel = shared.cancel;
    klp_cancel_raise(shared.cancel);
    klp_mutex_lock(shared.mutex);
    KIT_FAILS(klp_cond_wait(&op, shared.cond, shared.mutex, &err), &err, KELPIE_E_CANCELLED, "");
    klp_mutex_unlock(shared.mutex);
    KIT_FAILS(klp_sleep_until(&op, UINT64_MAX, &err), &err, KELPIE_E_CANCELLED, "");
    shared_close(&shared);
}

static void raise_now(void *arg)
{
    klp_cancel_raise(((struct shared *)arg)->cancel);
}

/* The race of a raise with a wait that begins: it must never cost the nap. */
static void test_env_posix_task__no_cancel_is_lost(void **state)
{
    struct kit *kit = *state;
    uint64_t start = kit_ms(kit);
    for (int round = 0; round < 200; round++) {
        struct klp_task *task;
        struct shared shared;
        shared_open(kit, &shared);
        struct kelpie_op op = {
            .env = kit->env, .deadline_ns = KLP_NO_DEADLINE, .cancel = shared.cancel};
        kelpie_outcome outcome = KLP_OK;
        assert_true(klp_task_spawn(kit->env, "raise", raise_now, &shared, &task, NULL));
        klp_mutex_lock(shared.mutex);
        while (kelpie_is_ok(outcome))
            outcome = klp_cond_wait(&op, shared.cond, shared.mutex, NULL);
        klp_mutex_unlock(shared.mutex);
        klp_task_join(task);
        shared_close(&shared);
    }
    assert_in_range(kit_ms(kit) - start, 0, 20000); /* with the nap it would be 200 seconds */
}

/* ---- waits for descriptors */

static void test_env_posix_task__wait_two_says_which(void **state)
{
    struct kit *kit = *state;
    struct kelpie_error *err = NULL;
    struct kelpie_op op = klp_op_plain(kit->env, 50);
    int a[2], b[2];
    unsigned ready = 9;
    assert_int_equal(pipe2(a, O_CLOEXEC), 0);
    assert_int_equal(pipe2(b, O_CLOEXEC), 0);
    KIT_FAILS(klp_posix_wait_two(&op, a[0], b[0], POLLIN, &ready, "waiting", &err), &err,
              KELPIE_E_TIMEOUT, "while waiting");
    op = klp_op_plain(kit->env, 10000);
    assert_int_equal(write(b[1], "x", 1), 1);
    KIT_OK(klp_posix_wait_two(&op, a[0], b[0], POLLIN, &ready, "x", &err));
    assert_int_equal(ready, 2);
    close(a[1]); /* the end is something to be told as well */
    KIT_OK(klp_posix_wait_two(&op, a[0], b[0], POLLIN, &ready, "x", &err));
    assert_int_equal(ready, 3);
    KIT_OK(klp_posix_wait_two(&op, a[0], -1, POLLIN, &ready, "x", &err));
    assert_int_equal(ready, 1);
    /* What is ready is told also when no time is left: nothing to wait for. */
    op = klp_op_plain(kit->env, 0);
    KIT_OK(klp_posix_wait(&op, b[0], POLLIN, "x", &err));
    close(a[0]);
    close(b[0]);
    close(b[1]);
}

/* ---- signals */

static void mask_read(void *arg)
{
    pthread_sigmask(SIG_BLOCK, NULL, arg);
}

static void test_env_posix_task__signals_stay_with_the_program(void **state)
{
    struct kit *kit = *state;
    struct klp_task *task;
    sigset_t mask, before, after;
    pthread_sigmask(SIG_BLOCK, NULL, &before);
    assert_true(klp_task_spawn(kit->env, "mask", mask_read, &mask, &task, NULL));
    klp_task_join(task);
    assert_true(sigismember(&mask, SIGTERM) && sigismember(&mask, SIGCHLD));
    assert_false(sigismember(&mask, SIGSEGV) || sigismember(&mask, SIGABRT));
    pthread_sigmask(SIG_BLOCK, NULL, &after);
    assert_int_equal(sigismember(&after, SIGTERM), sigismember(&before, SIGTERM));
}

/* ---- log lines */

static void log_capture(struct kit *kit, enum klp_level level, const char *value, char out[4096])
{
    int pipe_fds[2], saved = dup(STDERR_FILENO);
    assert_int_equal(pipe(pipe_fds), 0);
    assert_int_equal(dup2(pipe_fds[1], STDERR_FILENO), STDERR_FILENO);
    close(pipe_fds[1]);
    klp_log(kit->env, level, "unit.event", "key=%s n=%d", value, 7);
    dup2(saved, STDERR_FILENO); /* the pipe's last writer goes with it */
    close(saved);
    ssize_t size = read(pipe_fds[0], out, 4095);
    close(pipe_fds[0]);
    out[size > 0 ? size : 0] = 0;
}

static void test_env_posix_task__log_is_one_escaped_line(void **state)
{
    struct kit *kit = *state;
    char line[4096];
    static char big[20000];
    log_capture(kit, KLP_LOG_INFO, "below the level", line);
    assert_string_equal(line, "");
    log_capture(kit, KLP_LOG_ERROR, "a\nlevel=info\x1b[2J", line);
    assert_int_equal(line[10], 'T');
    assert_string_equal(line + 24, " level=error event=unit.event program=unit-test "
                                   "key=a\\x0alevel=info\\x1b[2J n=7\n");
    memset(big, '\x01', sizeof(big) - 1);
    log_capture(kit, KLP_LOG_ERROR, big, line);
    assert_true(strlen(line) > 1000);
    log_capture(kit, KLP_LOG_ERROR, "", line);
    assert_non_null(strstr(line, "key= n=7\n"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        KIT_TEST(test_env_posix_task__clocks_and_randomness),
        KIT_TEST(test_env_posix_task__deadlines_only_shrink),
        KIT_TEST(test_env_posix_task__check_and_cleanup),
        KIT_TEST(test_env_posix_task__progress),
        KIT_TEST(test_env_posix_task__sleep_ends_at_the_instant_or_with_the_op),
        KIT_TEST(test_env_posix_task__mutex_excludes),
        KIT_TEST(test_env_posix_task__wake_wakes_all_at_once),
        KIT_TEST(test_env_posix_task__no_wake_is_lost),
        KIT_TEST(test_env_posix_task__wait_ends_at_the_deadline_with_the_mutex_held),
        KIT_TEST(test_env_posix_task__cancel_wakes_every_wait_at_once),
        KIT_TEST(test_env_posix_task__a_cancel_already_raised_is_seen),
        KIT_TEST(test_env_posix_task__no_cancel_is_lost),
        KIT_TEST(test_env_posix_task__wait_two_says_which),
        KIT_TEST(test_env_posix_task__signals_stay_with_the_program),
        KIT_TEST(test_env_posix_task__log_is_one_escaped_line),
    };
    return cmocka_run_group_tests_name("env_posix_task", tests, NULL, NULL);
}
