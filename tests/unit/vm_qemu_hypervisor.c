/* SPDX-License-Identifier: Apache-2.0 */
/* A real QEMU with a real guest: boots, is captured, comes back, is captured again, and every way
 * it can end. Needs an image: KELPIE_TEST_KERNEL and KELPIE_TEST_INITRAMFS, which tools/runtests.py
 * gives; skipped without. */
#include <signal.h>

#include "env_kit.h"

#include "base/ext/ext.h"
#include "base/fmt.h"
#include "base/limits.h"
#include "vm/guest.h"
#include "vm/qemu/inside.h"

#define MEMORY (256ull * KLP_MIB)
#define LONG_MS 90000

static struct klp_qemu_probe probe;
static const char *skip_reason; /* NULL = all is there */

/* ---- the kit: one hypervisor, one guest session */

struct bench {
    struct kit *kit;
    struct kelpie_op op;
    struct klp_machine machine;
    struct klp_handle files[2];
    struct klp_hypervisor *hypervisor;
    struct klp_guest *guest;
    bool spawned;
};

#define GOOD(call)                                                                                 \
    do {                                                                                           \
        struct kelpie_error *good_error = NULL;                                                    \
        struct kelpie_error **err = &good_error;                                                   \
        kelpie_outcome good_outcome = call;                                                        \
        if (!kelpie_is_ok(good_outcome))                                                           \
            fail_msg("%s: %s", #call, kelpie_error_message(good_error));                           \
    } while (0)

static uint64_t ms_since(struct klp_env *env, uint64_t start)
{
    return (klp_boot_ns(env) - start) / KLP_MS;
}

static void bench_open(struct bench *bench, void **state)
{
    if (skip_reason != NULL) {
        print_message("skipped: %s\n", skip_reason);
        skip();
    }
    const char *paths[2] = {getenv("KELPIE_TEST_KERNEL"), getenv("KELPIE_TEST_INITRAMFS")};
    *bench = (struct bench){.kit = *state, .files = {KLP_NO_HANDLE, KLP_NO_HANDLE}};
    bench->op = klp_op_plain(bench->kit->env, LONG_MS);
    klp_qemu_machine_fill(&bench->machine, KLP_ARCH_X86_64, probe.accelerator, probe.cpu);
    klp_text_copy(bench->machine.backend_version, sizeof(bench->machine.backend_version),
                  probe.version);
    bench->machine.vcpus = 1;
    bench->machine.memory_bytes = MEMORY;
    bench->machine.tsc_khz = probe.tsc_khz;
    for (size_t i = 0; i < 2; i++) {
        int fd = open(paths[i], O_RDONLY | O_CLOEXEC);
        assert_true(fd >= 0);
        bench->files[i] = klp_handle_from_fd(fd);
    }
    assert_true(klp_hypervisor_qemu_create(bench->kit->env, bench->kit->dir, probe.path,
                                           &bench->hypervisor, NULL));
}

static void bench_greet(struct bench *bench)
{
    struct klp_handle handle;
    struct klp_stream *stream;
    GOOD(bench->hypervisor->ops->guest(&bench->op, bench->hypervisor, &handle, err));
    assert_true(klp_stream_open(bench->kit->env, handle, &stream, NULL));
    GOOD(klp_guest_open(&bench->op, bench->kit->env, stream, &bench->guest, err));
}

static void bench_boot(struct bench *bench)
{
    GOOD(bench->hypervisor->ops->spawn(&bench->op, bench->hypervisor, KLP_SPAWN_COLD,
                                       &bench->machine, KLP_NO_HANDLE, bench->files, 2, err));
    bench->spawned = true;
    bench_greet(bench);
}

static void bench_incoming(struct bench *bench, struct klp_handle base)
{
    GOOD(bench->hypervisor->ops->spawn(&bench->op, bench->hypervisor, KLP_SPAWN_INCOMING,
                                       &bench->machine, base, NULL, 0, err));
    bench->spawned = true;
}

static void bench_leave_guest(struct bench *bench)
{
    if (bench->guest != NULL)
        klp_guest_close(bench->guest);
    bench->guest = NULL;
}

static struct klp_hypervisor_exit bench_end(struct bench *bench)
{
    struct klp_hypervisor_exit end = {0};
    bench_leave_guest(bench);
    GOOD(bench->hypervisor->ops->wait(&bench->op, bench->hypervisor, &end, err));
    bench->spawned = false;
    return end;
}

static void bench_close(struct bench *bench)
{
    bench_leave_guest(bench);
    if (bench->spawned) {
        bench->hypervisor->ops->kill(bench->hypervisor);
        struct klp_hypervisor_exit end = bench_end(bench);
        assert_int_equal(end.signal, SIGKILL);
    }
    bench->hypervisor->ops->destroy(bench->hypervisor);
    klp_handle_close(bench->kit->env, bench->files[0]);
    klp_handle_close(bench->kit->env, bench->files[1]);
}

struct answer {
    char text[4096];
    size_t size;
};

static bool answer_take(void *arg, bool is_stderr, const void *data, size_t size)
{
    struct answer *answer = arg;
    (void)is_stderr;
    if (size > sizeof(answer->text) - 1 - answer->size)
        size = sizeof(answer->text) - 1 - answer->size;
    memcpy(answer->text + answer->size, data, size);
    answer->size += size;
    return true;
}

static struct answer bench_exec(struct bench *bench, const char *const *argv, int status)
{
    struct answer answer = {0};
    struct kelpie_exec exec = {.argv = argv, .output = answer_take, .arg = &answer};
    struct kelpie_exec_status ended;
    GOOD(klp_guest_exec(&bench->op, bench->guest, &exec, &ended, err));
    assert_int_equal(ended.exit_code, status);
    return answer;
}

#define EXEC(bench, ...) bench_exec(bench, (const char *const[]){__VA_ARGS__, NULL}, 0)

static unsigned long bench_count(struct bench *bench)
{
    return strtoul(EXEC(bench, "@count").text, NULL, 10);
}

struct taken {
    struct klp_handle state, dirty;
};

static uint64_t bytes_held(struct klp_env *env, struct klp_handle memory)
{
    uint64_t at = 0, offset, size, sum = 0;
    for (;;) {
        assert_true(klp_memory_next(env, memory, at, &offset, &size, NULL));
        if (size == 0)
            return sum;
        sum += size;
        at = offset + size;
    }
}

static struct taken bench_capture(struct bench *bench, const char *what)
{
    struct klp_env *env = bench->kit->env;
    struct taken taken;
    uint64_t start = klp_boot_ns(env), size;
    GOOD(bench->hypervisor->ops->stop(&bench->op, bench->hypervisor, err));
    GOOD(bench->hypervisor->ops->capture(&bench->op, bench->hypervisor, &taken.state, &taken.dirty,
                                         err));
    uint64_t us = (klp_boot_ns(env) - start) / 1000;
    assert_true(klp_memory_check(env, taken.dirty, MEMORY, NULL));
    assert_true(klp_memory_size(env, taken.state, &size, NULL));
    assert_true(klp_memory_check(env, taken.state, size, NULL)); /* sealed */
    print_message("%s: stop and capture %llu.%03llu ms, %llu KiB of pages, %llu bytes of state\n",
                  what, (unsigned long long)us / 1000, (unsigned long long)us % 1000,
                  (unsigned long long)bytes_held(env, taken.dirty) / 1024,
                  (unsigned long long)size);
    return taken;
}

static void taken_close(struct bench *bench, struct taken *taken)
{
    klp_handle_close(bench->kit->env, taken->state);
    klp_handle_close(bench->kit->env, taken->dirty);
}

static void bench_restore(struct bench *bench, struct klp_handle base, struct klp_handle state,
                          const struct klp_handle *overlays, size_t count, const char *what)
{
    struct klp_env *env = bench->kit->env;
    uint64_t start = klp_boot_ns(env);
    bench_incoming(bench, base);
    uint64_t spawned = ms_since(env, start);
    GOOD(bench->hypervisor->ops->load(&bench->op, bench->hypervisor, state, overlays, count, err));
    uint64_t loaded = ms_since(env, start);
    GOOD(bench->hypervisor->ops->cont(&bench->op, bench->hypervisor, err));
    bench_greet(bench);
    print_message("%s: spawned %llu, loaded %llu, answered %llu ms\n", what,
                  (unsigned long long)spawned, (unsigned long long)loaded,
                  (unsigned long long)ms_since(env, start));
}

/* ---- the tests */

static void test_vm_qemu_hypervisor__comes_back_as_it_was(void **state)
{
    struct bench first, second, third;
    bench_open(&first, state);
    uint64_t start = klp_boot_ns(first.kit->env);
    bench_boot(&first);
    print_message("boot to agent: %llu ms\n", (unsigned long long)ms_since(first.kit->env, start));
    EXEC(&first, "@fill", "4", "1");
    assert_non_null(strstr(EXEC(&first, "@check").text, "bad=0"));
    unsigned long counted = bench_count(&first);
    struct taken whole = bench_capture(&first, "after boot");
    bench_close(&first);

    bench_open(&second, state);
    bench_restore(&second, whole.dirty, whole.state, NULL, 0, "restore");
    assert_non_null(strstr(EXEC(&second, "@check").text, "bad=0"));
    unsigned long again = bench_count(&second);
    assert_true(again > counted);
    EXEC(&second, "/bin/sh", "-c", "echo kept > /tmp/later");
    struct taken small = bench_capture(&second, "of the clone");
    assert_true(bytes_held(second.kit->env, small.dirty) <
                bytes_held(second.kit->env, whole.dirty) / 2);
    GOOD(second.hypervisor->ops->cont(&second.op, second.hypervisor, err)); /* goes on as before */
    assert_non_null(strstr(EXEC(&second, "@check").text, "bad=0"));
    EXEC(&second, "/bin/rm", "/tmp/later");

    bench_open(&third, state);
    bench_restore(&third, whole.dirty, small.state, &small.dirty, 1, "restore with an overlay");
    assert_non_null(strstr(EXEC(&third, "@check").text, "bad=0"));
    assert_string_equal(EXEC(&third, "/bin/cat", "/tmp/later").text, "kept\n");
    assert_true(bench_count(&third) > again);
    bench_close(&third);
    bench_close(&second);
    taken_close(&second, &small);
    taken_close(&second, &whole);
}

struct trickle {
    struct bench *bench;
    struct klp_handle handle;
};

/* For 60 ms: longer than the first copy of the pages takes to begin, shorter than the capture. */
static void trickle_run(void *arg)
{
    struct trickle *trickle = arg;
    char noise[400];
    memset(noise, 'x', sizeof(noise));
    for (int i = 0; i < 60; i++) {
        assert_true(write(klp_handle_fd(trickle->handle), noise, sizeof(noise)) > 0);
        KLP_IGNORE(klp_sleep_until(&trickle->bench->op,
                                   klp_boot_ns(trickle->bench->kit->env) + KLP_MS, NULL));
    }
}

/* Bytes for the agent that arrive while the guest stands still must not tear the capture. */
static void test_vm_qemu_hypervisor__input_during_a_capture_tears_nothing(void **state)
{
    struct bench first, second;
    struct trickle trickle = {.bench = &first};
    struct klp_task *task;
    bench_open(&first, state);
    bench_boot(&first);
    EXEC(&first, "@fill", "4", "7");
    GOOD(first.hypervisor->ops->guest(&first.op, first.hypervisor, &trickle.handle, err));
    bench_leave_guest(&first);
    GOOD(first.hypervisor->ops->stop(&first.op, first.hypervisor, err));
    assert_true(klp_task_spawn(first.kit->env, "trickle", trickle_run, &trickle, &task, NULL));
    struct taken taken = bench_capture(&first, "with input");
    klp_task_join(task);
    klp_handle_close(first.kit->env, trickle.handle);
    bench_close(&first);
    bench_open(&second, state);
    bench_restore(&second, taken.dirty, taken.state, NULL, 0, "restore");
    assert_non_null(strstr(EXEC(&second, "@check").text, "bad=0"));
    bench_close(&second);
    taken_close(&second, &taken);
}

static void test_vm_qemu_hypervisor__stands_still_when_stopped_or_frozen(void **state)
{
    struct bench bench;
    struct klp_guest *guest;
    bench_open(&bench, state);
    bench_boot(&bench);
    guest = bench.guest;
    struct kelpie_op shortly = klp_op_plain(bench.kit->env, 300);
    GOOD(bench.hypervisor->ops->stop(&bench.op, bench.hypervisor, err));
    GOOD(bench.hypervisor->ops->stop(&bench.op, bench.hypervisor, err));
    assert_false(kelpie_is_ok(klp_guest_order(&shortly, guest, KLP_GUEST_PING, NULL)));
    GOOD(bench.hypervisor->ops->cont(&bench.op, bench.hypervisor, err));
    bench_leave_guest(&bench);
    bench_greet(&bench);
    bench.hypervisor->ops->freeze(bench.hypervisor);
    bench.hypervisor->ops->freeze(bench.hypervisor);
    shortly = klp_op_plain(bench.kit->env, 300);
    struct kelpie_error *error = NULL;
    assert_int_equal(bench.hypervisor->ops->stop(&shortly, bench.hypervisor, &error).kind,
                     KELPIE_FAIL);
    assert_int_equal(kelpie_error_code(error), KELPIE_E_TIMEOUT);
    kelpie_error_free(error);
    bench.hypervisor->ops->unfreeze(bench.hypervisor);
    GOOD(
        klp_guest_order(&bench.op, bench.guest, KLP_GUEST_PING, err)); /* the late stop is undone */
    bench_close(&bench);
}

static void test_vm_qemu_hypervisor__tells_a_power_off_from_a_panic(void **state)
{
    struct bench bench;
    struct klp_hypervisor_exit end;
    bench_open(&bench, state);
    bench_boot(&bench);
    GOOD(klp_guest_order(&bench.op, bench.guest, KLP_GUEST_SHUTDOWN, err));
    end = bench_end(&bench);
    assert_true(end.clean);
    assert_string_equal(end.reason, "guest powered off");
    assert_int_equal(end.code, 0);
    bench_close(&bench);

    bench_open(&bench, state);
    bench_boot(&bench);
    struct kelpie_exec exec = {
        .argv = (const char *const[]){"/bin/sh", "-c", "echo c > /proc/sysrq-trigger", NULL}};
    struct kelpie_exec_status status;
    struct kelpie_op shortly = klp_op_plain(bench.kit->env, 2000);
    KLP_IGNORE(klp_guest_exec(&shortly, bench.guest, &exec, &status, NULL));
    end = bench_end(&bench);
    char console[8192];
    size_t size = bench.hypervisor->ops->console(bench.hypervisor, console, sizeof(console) - 1);
    console[size] = 0;
    assert_false(end.clean);
    assert_string_equal(end.reason, "guest kernel panicked");
    assert_non_null(strstr(console, "Kernel panic"));
    bench_close(&bench);
}

static bool process_says(pid_t pid, const char *file, const char *text)
{
    char path[64], line[512];
    bool found = false;
    klp_format(path, sizeof(path), "/proc/%d/%s", (int)pid, file);
    FILE *stream = fopen(path, "re");
    assert_non_null(stream);
    while (!found && fgets(line, sizeof(line), stream) != NULL)
        found = strstr(line, text) != NULL;
    fclose(stream);
    return found;
}

/* No huge pages: a fault of a lazily restored guest would read 2 MiB. No privileges, few calls. */
static void test_vm_qemu_hypervisor__runs_under_its_filters(void **state)
{
    struct bench bench;
    bench_open(&bench, state);
    bench_incoming(&bench, KLP_NO_HANDLE);
    pid_t pid = (pid_t)bench.hypervisor->ops->pid(bench.hypervisor);
    assert_true(process_says(pid, "smaps", "kelpie-zeros"));
    assert_true(process_says(pid, "smaps", "VmFlags"));
    assert_false(process_says(pid, "smaps", " hg"));
    assert_true(process_says(pid, "status", "NoNewPrivs:\t1"));
    assert_true(process_says(pid, "status", "Seccomp:\t2"));
    bench_close(&bench);
}

static void test_vm_qemu_hypervisor__a_killed_one_is_gone(void **state)
{
    struct bench bench;
    bench_open(&bench, state);
    bench_boot(&bench);
    pid_t pid = (pid_t)bench.hypervisor->ops->pid(bench.hypervisor);
    assert_int_equal(kill(pid, 0), 0);
    kill(pid, SIGKILL); /* not by us */
    struct klp_hypervisor_exit end = bench_end(&bench);
    assert_false(end.clean);
    assert_int_equal(end.signal, SIGKILL);
    assert_string_equal(end.reason, "killed by signal 9");
    assert_int_equal(kill(pid, 0), -1);
    struct kelpie_error *error = NULL;
    assert_false(kelpie_is_ok(bench.hypervisor->ops->stop(&bench.op, bench.hypervisor, &error)));
    assert_int_equal(kelpie_error_code(error), KELPIE_E_CRASHED);
    kelpie_error_free(error);
    bench.hypervisor->ops->freeze(bench.hypervisor);
    bench.hypervisor->ops->kill(bench.hypervisor);
    bench_close(&bench);
}

/* A hypervisor must not outlive its keeper, however that dies. */
static void test_vm_qemu_hypervisor__dies_with_its_parent(void **state)
{
    struct bench bench;
    int pipe_fds[2];
    pid_t pid = 0;
    bench_open(&bench, state);
    assert_int_equal(pipe2(pipe_fds, O_CLOEXEC), 0);
    pid_t parent = fork();
    if (parent == 0) {
        bool fine = kelpie_is_ok(bench.hypervisor->ops->spawn(&bench.op, bench.hypervisor,
                                                              KLP_SPAWN_COLD, &bench.machine,
                                                              KLP_NO_HANDLE, bench.files, 2, NULL));
        pid = fine ? (pid_t)bench.hypervisor->ops->pid(bench.hypervisor) : -1;
        ssize_t ignored = write(pipe_fds[1], &pid, sizeof(pid));
        (void)ignored;
        for (;;)
            pause();
    }
    assert_int_equal(read(pipe_fds[0], &pid, sizeof(pid)), sizeof(pid));
    assert_true(pid > 0);
    assert_int_equal(kill(pid, 0), 0);
    kill(parent, SIGKILL);
    assert_int_equal(waitpid(parent, NULL, 0), parent);
    char path[64];
    klp_format(path, sizeof(path), "/proc/%d/exe", (int)pid);
    char text[8];
    bool gone = false;
    for (int i = 0; i < 500 && !gone; i++) { /* a zombie of init's has no program any more */
        gone = readlink(path, text, sizeof(text)) < 0;
        KLP_IGNORE(klp_sleep_until(&bench.op, klp_boot_ns(bench.kit->env) + 10 * KLP_MS, NULL));
    }
    assert_true(gone);
    close(pipe_fds[0]);
    close(pipe_fds[1]);
    bench_close(&bench);
}

static void test_vm_qemu_hypervisor__refuses_a_damaged_state(void **state)
{
    struct bench bench;
    struct klp_handle zeros, bad;
    struct kelpie_error *error = NULL;
    bench_open(&bench, state);
    assert_true(klp_memory_create(bench.kit->env, "bad", 5000, &bad, NULL));
    assert_true(klp_memory_write(bench.kit->env, bad, 0, "QEVM\0\0\0\3garbage", 15, NULL));
    assert_true(klp_memory_seal(bench.kit->env, bad, NULL));
    bench_incoming(&bench, KLP_NO_HANDLE);
    assert_false(kelpie_is_ok(
        bench.hypervisor->ops->load(&bench.op, bench.hypervisor, bad, NULL, 0, &error)));
    print_message("%s\n", kelpie_error_message(error));
    assert_int_equal(kelpie_error_code(error), KELPIE_E_CORRUPT);
    klp_error_clear(&error);
    bench_leave_guest(&bench);
    struct klp_hypervisor_exit end = {0};
    bench.hypervisor->ops->kill(bench.hypervisor);
    GOOD(bench.hypervisor->ops->wait(&bench.op, bench.hypervisor, &end, err));
    bench.spawned = false;
    bench_close(&bench);

    bench_open(&bench, state); /* an overlay of another size */
    assert_true(klp_memory_create(bench.kit->env, "small", 8192, &zeros, NULL));
    assert_true(klp_memory_seal(bench.kit->env, zeros, NULL));
    bench_incoming(&bench, KLP_NO_HANDLE);
    assert_false(kelpie_is_ok(
        bench.hypervisor->ops->load(&bench.op, bench.hypervisor, bad, &zeros, 1, &error)));
    assert_int_equal(kelpie_error_code(error), KELPIE_E_CORRUPT);
    klp_error_clear(&error);
    bench_close(&bench);
    klp_handle_close(bench.kit->env, zeros);
    klp_handle_close(bench.kit->env, bad);
}

/* What cannot start says why in QEMU's words, leaves no process, and may be tried again. */
static void test_vm_qemu_hypervisor__a_start_that_fails_leaves_nothing(void **state)
{
    struct bench bench;
    struct kelpie_error *error = NULL;
    bench_open(&bench, state);
    klp_text_copy(bench.machine.cpu, sizeof(bench.machine.cpu), "no-such-cpu");
    int before = kit_fd_count();
    assert_false(kelpie_is_ok(bench.hypervisor->ops->spawn(&bench.op, bench.hypervisor,
                                                           KLP_SPAWN_COLD, &bench.machine,
                                                           KLP_NO_HANDLE, bench.files, 2, &error)));
    assert_non_null(strstr(kelpie_error_message(error), "no-such-cpu"));
    klp_error_clear(&error);
    assert_int_equal(kit_fd_count(), before);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
    klp_text_copy(bench.machine.cpu, sizeof(bench.machine.cpu), probe.cpu);
    assert_false(
        kelpie_is_ok(bench.hypervisor->ops->spawn(&bench.op, bench.hypervisor, KLP_SPAWN_COLD,
                                                  &bench.machine, KLP_NO_HANDLE, NULL, 0, &error)));
    assert_int_equal(kelpie_error_code(error), KELPIE_E_INVALID);
    klp_error_clear(&error);
    bench_incoming(&bench, KLP_NO_HANDLE);
    bench_close(&bench);
}

static void prepare(void)
{
    static char reason[300];
    struct klp_env_posix_options options = {.program = "unit-test", .level = KLP_LOG_ERROR};
    struct klp_env *env;
    assert_true(klp_env_posix_create(&options, &env, NULL));
    struct kelpie_op op = klp_op_plain(env, 10000);
    klp_qemu_probe(&op, KLP_ARCH_X86_64, NULL, &probe);
    klp_env_posix_destroy(env);
    if (!probe.found)
        snprintf(reason, sizeof(reason), "no QEMU: %s", probe.why);
    else if (!probe.has_xen_save)
        snprintf(reason, sizeof(reason), "QEMU lacks xen-save-devices-state");
    else if (getenv("KELPIE_TEST_NO_IMAGE") != NULL)
        snprintf(reason, sizeof(reason), "no image: %s", getenv("KELPIE_TEST_NO_IMAGE"));
    else if (getenv("KELPIE_TEST_KERNEL") == NULL || getenv("KELPIE_TEST_INITRAMFS") == NULL)
        snprintf(reason, sizeof(reason), "no KELPIE_TEST_KERNEL and KELPIE_TEST_INITRAMFS");
    skip_reason = reason[0] != 0 ? reason : NULL;
    print_message("QEMU %s, %s; tsc %llu kHz; pagemap scan %d\n", probe.version, probe.why,
                  (unsigned long long)probe.tsc_khz, probe.has_pagemap_scan);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], QEMU_EXEC_OPTION) == 0)
        return klp_qemu_exec_main(argc, argv);
    klp_ext_init();
    prepare();
    const struct CMUnitTest tests[] = {
        KIT_TEST(test_vm_qemu_hypervisor__comes_back_as_it_was),
        KIT_TEST(test_vm_qemu_hypervisor__input_during_a_capture_tears_nothing),
        KIT_TEST(test_vm_qemu_hypervisor__stands_still_when_stopped_or_frozen),
        KIT_TEST(test_vm_qemu_hypervisor__tells_a_power_off_from_a_panic),
        KIT_TEST(test_vm_qemu_hypervisor__runs_under_its_filters),
        KIT_TEST(test_vm_qemu_hypervisor__a_killed_one_is_gone),
        KIT_TEST(test_vm_qemu_hypervisor__dies_with_its_parent),
        KIT_TEST(test_vm_qemu_hypervisor__refuses_a_damaged_state),
        KIT_TEST(test_vm_qemu_hypervisor__a_start_that_fails_leaves_nothing),
    };
    return cmocka_run_group_tests_name("vm_qemu_hypervisor", tests, NULL, NULL);
}
