/* SPDX-License-Identifier: Apache-2.0 */
/* Starting other programs: nothing inherited but what is given, and no half-started child: whatever
 * fails before exec comes back over a pipe as (step, errno). */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "env/posix/inside.h"

#define FDS_MAX 16

struct failure {
    int step, error;
};

enum { STEP_SESSION, STEP_PARENT, STEP_DESCRIPTORS, STEP_LIMITS, STEP_FOLDER, STEP_EXEC };
static const char *const steps[] = {"own session", "parent", "descriptors",
                                    "limits",      "folder", "exec"};

__attribute__((noreturn)) static void child_fail(int pipe_fd, int step)
{
    struct failure failure = {step, errno};
    ssize_t ignored = write(pipe_fd, &failure, sizeof(failure));
    (void)ignored;
    _exit(127);
}

/* All are blocked on entry, so that no handler of the parent's ever runs in the child. */
/* By the system call: the C library keeps two signals for itself and would leave them as we
 * inherited them. */
static void signals_default(void)
{
    static const uint64_t
        action[4]; /* struct kernel_sigaction: handler SIG_DFL, no flags, empty mask */
    sigset_t none;
    for (int number = 1; number < NSIG; number++)
        syscall(SYS_rt_sigaction, number, action, NULL, sizeof(uint64_t));
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

/* Everything is first copied above the range it will land in, so that no step overwrites a source.
 */
static bool descriptors_place(const struct klp_spawn *spawn, int *pipe_fd)
{
    int base = 3 + (int)spawn->fd_count + 1, copies[FDS_MAX + 3];
    int sources[FDS_MAX + 3];
    size_t count = spawn->fd_count + 3;
    sources[0] = spawn->stdin_fd, sources[1] = spawn->stdout_fd, sources[2] = spawn->stderr_fd;
    for (size_t i = 0; i < spawn->fd_count; i++)
        sources[3 + i] = spawn->fds[i];
    for (size_t i = 0; i < count; i++) {
        int source = sources[i] >= 0 ? sources[i] : open("/dev/null", O_RDWR | O_CLOEXEC);
        if ((copies[i] = fcntl(source, F_DUPFD_CLOEXEC, base)) < 0)
            return false;
    }
    int pipe_copy = fcntl(*pipe_fd, F_DUPFD_CLOEXEC, base);
    if (pipe_copy < 0)
        return false;
    for (size_t i = 0; i < count; i++)
        if (dup2(copies[i], (int)i) < 0)
            return false;
    *pipe_fd = dup3(pipe_copy, (int)count, O_CLOEXEC);
    return *pipe_fd >= 0 && syscall(SYS_close_range, (unsigned)count + 1, ~0u, 0) == 0;
}

__attribute__((noreturn)) static void child_run(const struct klp_spawn *spawn, int pipe_fd,
                                                pid_t parent)
{
    static const char *const nothing[] = {NULL};
    signals_default();
    umask(077);
    if (setsid() < 0)
        child_fail(pipe_fd, STEP_SESSION);
    if (spawn->die_with_parent && prctl(PR_SET_PDEATHSIG, SIGKILL) != 0)
        child_fail(pipe_fd, STEP_PARENT);
    if (spawn->die_with_parent && getppid() != parent)
        _exit(127); /* it died before it could be watched, and nobody is left to tell */
    if (!descriptors_place(spawn, &pipe_fd))
        child_fail(pipe_fd, STEP_DESCRIPTORS);
    struct rlimit no_core = {0, 0};
    if (setrlimit(RLIMIT_CORE, &no_core) != 0)
        child_fail(pipe_fd, STEP_LIMITS);
    if (chdir(spawn->directory != NULL ? spawn->directory : "/") != 0)
        child_fail(pipe_fd, STEP_FOLDER);
    execve(spawn->path, (char *const *)(uintptr_t)spawn->argv,
           (char *const *)(uintptr_t)(spawn->env != NULL ? spawn->env : nothing));
    child_fail(pipe_fd, STEP_EXEC);
}

/* The child's report: nothing (exec closed the pipe), or why it failed. */
static bool report_read(int pipe_fd, const struct klp_spawn *spawn, struct kelpie_error **err)
{
    struct failure failure;
    ssize_t got;
    do {
        got = read(pipe_fd, &failure, sizeof(failure));
    } while (got < 0 && errno == EINTR);
    if (got == 0)
        return true;
    if (got != (ssize_t)sizeof(failure))
        return klp_refuse(err, KELPIE_E_IO, "cannot start %s", spawn->path);
    return klp_posix_refuse(err, failure.error, "cannot start %s (%s)", spawn->path,
                            steps[failure.step]);
}

static void child_reap(pid_t pid)
{
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        continue;
}

/* fork() that hands out the pidfd too: a short-lived child of a process that ignores SIGCHLD is
 * gone before pidfd_open() could name it. */
static pid_t child_fork(const struct klp_spawn *spawn, int pipe_fd, int *out_pidfd)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pid_t parent = getpid();
    pid_t pid = (pid_t)syscall(SYS_clone, CLONE_PIDFD | SIGCHLD, NULL, out_pidfd, NULL, NULL);
    if (pid == 0)
        child_run(spawn, pipe_fd, parent);
    int error = errno;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = error;
    return pid;
}

bool klp_posix_spawn(const struct klp_spawn *spawn, int *out_pid, int *out_pidfd,
                     struct kelpie_error **err)
{
    KLP_ASSERT(spawn->fd_count <= FDS_MAX);
    int report[2], pidfd = -1;
    if (pipe2(report, O_CLOEXEC) != 0)
        return klp_posix_refuse(err, errno, "cannot start %s", spawn->path);
    pid_t pid = child_fork(spawn, report[1], &pidfd);
    int error = errno;
    close(report[1]);
    if (pid < 0) {
        close(report[0]);
        return klp_posix_refuse(err, error, "cannot start %s", spawn->path);
    }
    bool fine = report_read(report[0], spawn, err);
    close(report[0]);
    if (!fine)
        child_reap(pid);
    if (!fine || out_pidfd == NULL)
        close(pidfd);
    if (!fine)
        return false;
    *out_pid = pid;
    if (out_pidfd != NULL)
        *out_pidfd = pidfd;
    return true;
}
