/* SPDX-License-Identifier: Apache-2.0 */
/* Starting programs: what the child has, what it does not have, and that a child which cannot start
 * leaves neither a process nor a descriptor. The children are the host's shell. */
#include "env_kit.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#define SHELL "/bin/sh"

struct run {
    char out[4096];
    int status;
};

/* The shell's output and status. */
static void shell(const char *script, const struct klp_spawn *extra, struct run *run)
{
    const char *argv[] = {"sh", "-c", script, NULL};
    struct klp_spawn spawn = *extra;
    struct kelpie_error *err = NULL;
    int out[2], pid, pidfd;
    size_t at = 0;
    ssize_t got;
    assert_int_equal(pipe2(out, O_CLOEXEC), 0);
    spawn.path = SHELL;
    spawn.argv = argv;
    spawn.stdout_fd = out[1];
    if (!klp_posix_spawn(&spawn, &pid, &pidfd, &err))
        fail_msg("%s", kelpie_error_message(err));
    close(out[1]);
    while ((got = read(out[0], run->out + at, sizeof(run->out) - 1 - at)) > 0)
        at += (size_t)got;
    run->out[at] = 0;
    close(out[0]);
    struct pollfd ended = {pidfd, POLLIN, 0};
    assert_int_equal(poll(&ended, 1, 10000), 1);
    assert_true(fcntl(pidfd, F_GETFD) & FD_CLOEXEC);
    close(pidfd);
    run->status = kit_wait(pid, 0);
}

static const struct klp_spawn plain = {.stdin_fd = -1, .stdout_fd = -1, .stderr_fd = -1};

static void test_env_posix_spawn__gives_what_was_asked_and_nothing_else(void **state)
{
    static const char *const env[] = {"ONLY=this", "PATH=/usr/bin:/bin", NULL};
    struct kit *kit = *state;
    struct klp_spawn spawn = plain;
    struct run run;
    int leak = open("/dev/null", O_RDWR); /* not CLOEXEC, on purpose */
    assert_int_equal(setenv("KELPIE_UNIT_SECRET", "x", 1), 0);
    spawn.env = env;
    spawn.directory = kit->path;
    shell("pwd; umask; ulimit -c; env | grep -v '^PWD=\\|^_=\\|^SHLVL=\\|^OLDPWD=' | sort;"
          "ls /proc/self/fd | tr '\\n' ' '; read x; echo \"stdin:$?\"; exit 7",
          &spawn, &run);
    char expected[300];
    /* 3 is the folder that ls itself reads. */
    snprintf(expected, sizeof(expected),
             "%s\n0077\n0\nONLY=this\nPATH=/usr/bin:/bin\n0 1 2 3 stdin:1\n", kit->path);
    assert_string_equal(run.out, expected);
    assert_true(WIFEXITED(run.status));
    assert_int_equal(WEXITSTATUS(run.status), 7);
    close(leak);
    unsetenv("KELPIE_UNIT_SECRET");
}

static void test_env_posix_spawn__defaults(void **state)
{
    struct run run;
    (void)state;
    shell("pwd; echo \"${HOME-none} $0\"", &plain, &run);
    assert_string_equal(run.out, "/\nnone sh\n");
}

/* Descriptors land at 3, 4, ... in order, whatever their numbers were: also where they collide with
 * their own targets. */
static void test_env_posix_spawn__descriptors_keep_their_order(void **state)
{
    struct kit *kit = *state;
    struct klp_spawn spawn = plain;
    struct run run;
    int fds[4], low[3];
    for (int i = 0; i < 4; i++) {
        char name[2] = {(char)('a' + i), 0}, text[3] = {(char)('A' + i), '\n', 0};
        fds[i] = open(kit_path(kit, name), O_CREAT | O_RDWR | O_CLOEXEC, 0600);
        assert_int_equal(write(fds[i], text, 2), 2);
        assert_int_equal(lseek(fds[i], 0, SEEK_SET), 0);
    }
    int mixed[4] = {fds[3], fds[0], fds[2], fds[0]}; /* out of order, one twice */
    spawn.fds = mixed;
    spawn.fd_count = 4;
    spawn.stdin_fd = fds[1];
    shell("cat; cat <&3; cat <&4; cat <&5; ls /proc/self/fd | tr '\\n' ' '", &spawn, &run);
    assert_string_equal(run.out, "B\nD\nA\nC\n0 1 2 3 4 5 6 7 ");
    for (int i = 0; i < 3; i++)
        low[i] = open("/dev/null", O_RDWR | O_CLOEXEC);
    /* stdout given as one of the extra descriptors as well */
    for (int i = 0; i < 4; i++)
        assert_int_equal(lseek(fds[i], 0, SEEK_SET), 0);
    mixed[0] = fds[0];
    spawn.fd_count = 1;
    spawn.stdin_fd = fds[0];
    shell("cat; cat <&3", &spawn, &run);
    assert_string_equal(run.out, "A\n"); /* one file position, shared */
    for (int i = 0; i < 3; i++)
        close(low[i]);
    for (int i = 0; i < 4; i++)
        close(fds[i]);
}

static void handler(int number)
{
    (void)number;
}

static void test_env_posix_spawn__signals_are_default_and_open(void **state)
{
    struct sigaction action = {.sa_handler = handler}, before_usr1;
    sigset_t blocked, before;
    struct run run;
    (void)state;
    assert_int_equal(sigaction(SIGUSR1, &action, &before_usr1), 0);
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGTERM);
    assert_int_equal(pthread_sigmask(SIG_BLOCK, &blocked, &before), 0);
    /* What is caught never survives exec; what is blocked or ignored would. */
    shell("grep -E '^(SigBlk|SigIgn):' /proc/self/status", &plain, &run);
    assert_string_equal(run.out, "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n");
    sigset_t after; /* ours are as they were */
    assert_int_equal(pthread_sigmask(SIG_SETMASK, &before, &after), 0);
    assert_true(sigismember(&after, SIGTERM) && !sigismember(&after, SIGINT));
    assert_int_equal(sigaction(SIGUSR1, &before_usr1, NULL), 0);
    /* And SIGPIPE kills again, though the env ignores it here. */
    shell("kill -PIPE $$; echo lived", &plain, &run);
    assert_true(WIFSIGNALED(run.status));
    assert_int_equal(WTERMSIG(run.status), SIGPIPE);
}

static void test_env_posix_spawn__has_a_session_of_its_own(void **state)
{
    struct run run;
    int pid = 0, session = 0, group = 0;
    (void)state;
    shell("set -- $(cat /proc/$$/stat); echo $1 $5 $6", &plain, &run);
    assert_int_equal(sscanf(run.out, "%d %d %d", &pid, &group, &session), 3);
    assert_int_equal(session, pid);
    assert_int_equal(group, pid);
    assert_int_not_equal(session, getsid(0));
}

static void test_env_posix_spawn__failures_before_exec_come_back(void **state)
{
    struct kit *kit = *state;
    struct kelpie_error *err = NULL;
    const char *argv[] = {"x", NULL};
    struct klp_spawn spawn = plain;
    int pid = -7, pidfd = -7;
    spawn.argv = argv;
    spawn.path = "/nonexistent/program";
    KIT_REFUSED(klp_posix_spawn(&spawn, &pid, &pidfd, &err), &err, KELPIE_E_NOT_FOUND,
                "/nonexistent/program (exec)");
    spawn.path = kit->path;
    KIT_REFUSED(klp_posix_spawn(&spawn, &pid, &pidfd, &err), &err, KELPIE_E_DENIED, "(exec)");
    int fd = open(kit_path(kit, "text"), O_CREAT | O_RDWR | O_CLOEXEC, 0700);
    assert_int_equal(write(fd, "no program\n", 11), 11);
    close(fd);
    char path[200];
    klp_text_copy(path, sizeof(path), kit_path(kit, "text"));
    spawn.path = path;
    KIT_REFUSED(klp_posix_spawn(&spawn, &pid, &pidfd, &err), &err, KELPIE_E_NOT_EXECUTABLE,
                "/text");
    spawn.path = SHELL;
    spawn.directory = "/nonexistent";
    KIT_REFUSED(klp_posix_spawn(&spawn, &pid, &pidfd, &err), &err, KELPIE_E_NOT_FOUND, "(folder)");
    spawn.directory = NULL;
    int bad = 1000;
    spawn.fds = &bad;
    spawn.fd_count = 1;
    KIT_REFUSED(klp_posix_spawn(&spawn, &pid, &pidfd, &err), &err, KELPIE_E_IO, "(descriptors)");
    assert_int_equal(pid, -7);
    assert_int_equal(pidfd, -7);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1); /* no child is left, not even a dead one */
    assert_int_equal(errno, ECHILD);
}

/* No descriptors left, at every step: an error each time, never an abort, and nobody left behind.
 */
static void test_env_posix_spawn__without_descriptors(void **state)
{
    struct kelpie_error *err = NULL;
    const char *argv[] = {"sh", "-c", "exit 0", NULL};
    struct klp_spawn spawn = plain;
    struct rlimit before, few;
    int highest = dup(0), refused = 0;
    bool done = false;
    (void)state;
    close(highest);
    spawn.path = SHELL;
    spawn.argv = argv;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    for (int room = 0; room < 30 && !done; room++) {
        int pid, pidfd = -1;
        few = before;
        few.rlim_cur = (rlim_t)(highest + room);
        assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
        done = klp_posix_spawn(&spawn, &pid, &pidfd, &err);
        assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
        if (done) {
            close(pidfd);
            kit_wait(pid, 0);
        } else {
            refused++;
            klp_error_clear(&err);
        }
        assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
    }
    assert_true(done);
    assert_in_range(refused, 2, 20);
}

static void test_env_posix_spawn__dies_with_its_parent(void **state)
{
    struct kit *kit = *state;
    int ends[2];
    char byte;
    (void)kit;
    /* A parent in between; both hold the pipe's writing end, so its end tells that both are dead.
     */
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    pid_t parent = fork();
    if (parent == 0) {
        const char *argv[] = {"sh", "-c", "echo x >&3; exec sleep 100", NULL};
        struct klp_spawn spawn = plain;
        int pid;
        spawn.path = SHELL;
        spawn.argv = argv;
        spawn.fds = &ends[1];
        spawn.fd_count = 1;
        spawn.env = (const char *const[]){"PATH=/usr/bin:/bin", NULL};
        spawn.die_with_parent = true;
        if (klp_posix_spawn(&spawn, &pid, NULL, NULL))
            pause();
        _exit(1);
    }
    close(ends[1]);
    assert_int_equal(read(ends[0], &byte, 1), 1);
    assert_int_equal(read(ends[0], &byte, 1), 1); /* the line's end */
    assert_int_equal(kill(parent, SIGKILL), 0);
    kit_wait(parent, 0);
    struct pollfd ended = {ends[0], POLLIN, 0};
    assert_int_equal(poll(&ended, 1, 10000), 1);
    assert_int_equal(read(ends[0], &byte, 1), 0);
    close(ends[0]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        KIT_TEST(test_env_posix_spawn__gives_what_was_asked_and_nothing_else),
        KIT_TEST(test_env_posix_spawn__defaults),
        KIT_TEST(test_env_posix_spawn__descriptors_keep_their_order),
        KIT_TEST(test_env_posix_spawn__signals_are_default_and_open),
        KIT_TEST(test_env_posix_spawn__has_a_session_of_its_own),
        KIT_TEST(test_env_posix_spawn__failures_before_exec_come_back),
        KIT_TEST(test_env_posix_spawn__without_descriptors),
        KIT_TEST(test_env_posix_spawn__dies_with_its_parent),
    };
    return cmocka_run_group_tests_name("env_posix_spawn", tests, NULL, NULL);
}
