/* SPDX-License-Identifier: Apache-2.0 */
/* Starting a child: in the workload's cgroup, in a session of its own, with nothing of ours but its
 * three descriptors. What went wrong between fork and exec comes back through a pipe that exec
 * closes; the loop polls it, because a child may freeze on the way. */
#include "guest/guest.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/fmt.h"

#define STATUS_FD 3
#define WORD_FD 4
#define EXEC_FAILED 127
#define CHILD_FILES 1024 /* descriptors; more may break programs that use select */

void guest_close(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

void guest_kill_group(pid_t pid, int number)
{
    /* Before its setsid the child has no group yet. */
    if (pid > 1 && kill(-pid, number) < 0 && errno == ESRCH)
        kill(pid, number);
}

enum kelpie_code guest_errno_code(int error_number)
{
    switch (error_number) {
    case ENOENT:
    case ENOTDIR:
        return KELPIE_E_NOT_FOUND;
    case EACCES:
    case EPERM:
    case EROFS:
    case ELOOP:
        return KELPIE_E_DENIED;
    case ENOSPC:
    case EDQUOT:
        return KELPIE_E_NO_SPACE;
    case ENOMEM:
        return KELPIE_E_NO_MEMORY;
    case EMFILE:
    case ENFILE:
    case E2BIG:
    case EFBIG:
    case EAGAIN:
    case ENAMETOOLONG:
        return KELPIE_E_LIMIT;
    default:
        return KELPIE_E_IO;
    }
}

struct kelpie_error *guest_errno(enum kelpie_code code, int error_number, const char *format, ...)
{
    char text[KLP_PATH_MAX + 256];
    va_list args;
    va_start(args, format);
    size_t size = klp_vformat(text, sizeof(text), format, args);
    va_end(args);
    size = size < sizeof(text) ? size : sizeof(text) - 1;
    klp_format(text + size, sizeof(text) - size, ": %s", strerror(error_number));
    return klp_error_create(code == KELPIE_E_NONE ? guest_errno_code(error_number) : code, text);
}

/* ---- in the child */

__attribute__((noreturn)) static void child_fail(int stage, int error_number)
{
    struct guest_spawn_failure failure = {stage, error_number};
    if (write(STATUS_FD, &failure, sizeof(failure)) < 0)
        _exit(EXEC_FAILED - 1);
    _exit(EXEC_FAILED);
}

static bool child_join_cgroup(const struct guest *g)
{
    int fd = openat(g->freeze.cgroup_fd, "cgroup.procs", O_WRONLY | O_CLOEXEC);
    bool joined = fd >= 0 && write(fd, "0", 1) == 1;
    int error_number = errno;
    if (fd >= 0)
        close(fd);
    errno = error_number;
    return joined;
}

/* The agent's own limit is higher. */
static void child_limits(void)
{
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur > CHILD_FILES) {
        files.rlim_cur = CHILD_FILES;
        setrlimit(RLIMIT_NOFILE, &files);
    }
}

static void keep(int from, int to)
{
    if (from == to)
        fcntl(to, F_SETFD, 0);
    else
        dup2(from, to);
}

/* 0 to 4 become what the child needs, all else is closed. The sources are moved out of the way
 * first, for any of them may lie where another goes. */
static void child_descriptors(const struct guest_spawn *spawn, int status_fd)
{
    int in_fd = fcntl(spawn->in_fd, F_DUPFD, 16), out_fd = fcntl(spawn->out_fd, F_DUPFD, 16);
    int err_fd = fcntl(spawn->err_fd, F_DUPFD, 16), report_fd = fcntl(status_fd, F_DUPFD, 16);
    int word_fd = spawn->word_fd >= 0 ? fcntl(spawn->word_fd, F_DUPFD, 16) : -1;
    keep(in_fd, 0);
    keep(out_fd, 1);
    keep(err_fd, 2);
    keep(report_fd, STATUS_FD);
    fcntl(STATUS_FD, F_SETFD, FD_CLOEXEC);
    if (word_fd >= 0)
        keep(word_fd, WORD_FD);
    syscall(SYS_close_range, word_fd >= 0 ? WORD_FD + 1u : WORD_FD, ~0u, 0);
}

/* execvp's search, without its /bin/sh for what is no program. */
static int child_exec(char *const *argv, char *const *env)
{
    const char *path = "/usr/bin:/bin";
    char file[KLP_PATH_MAX];
    int error_number = ENOENT;
    if (strchr(argv[0], '/') != NULL) {
        execve(argv[0], argv, env);
        return errno;
    }
    for (char *const *item = env; *item != NULL; item++) {
        if (strncmp(*item, "PATH=", 5) == 0)
            path = *item + 5;
    }
    while (*path != '\0' && argv[0][0] != '\0') {
        size_t size = strcspn(path, ":");
        if (klp_format(file, sizeof(file), "%.*s/%s", (int)size, path, argv[0]) < sizeof(file)) {
            execve(file, argv, env);
            if (errno != ENOENT && errno != ENOTDIR)
                error_number = errno;
            if (error_number != ENOENT && error_number != EACCES)
                return error_number;
        }
        path += size + (path[size] == ':');
    }
    return error_number;
}

__attribute__((noreturn)) static void child_run(struct guest *g, const struct guest_spawn *spawn,
                                                int status_fd, bool is_placed)
{
    setsid();
    if (!g->options.is_init)
        prctl(PR_SET_PDEATHSIG, SIGKILL);
    bool in_cgroup = is_placed || child_join_cgroup(g);
    int cgroup_error = errno;
    child_descriptors(spawn, status_fd);
    if (!in_cgroup)
        child_fail(GUEST_STAGE_CGROUP, cgroup_error);
    if (spawn->tty && ioctl(0, TIOCSCTTY, 0) < 0)
        child_fail(GUEST_STAGE_TTY, errno);
    child_limits();
    umask(022);
    if (chdir(spawn->workdir) < 0)
        child_fail(GUEST_STAGE_WORKDIR, errno);
    guest_signals_reset();
    if (spawn->word == NULL)
        child_fail(GUEST_STAGE_EXEC, child_exec(spawn->argv, spawn->env));
    close(STATUS_FD);
    guest_word_run(spawn->word, spawn->argv, spawn->env, WORD_FD);
}

/* ---- in the agent */

/* A fork right into the workload's cgroup: to move a process there later makes the kernel wait for
 * a grace period (a dozen milliseconds). Kernels before 5.7 cannot: the child moves itself. */
static pid_t fork_into(const struct guest *g, bool workload, bool *is_placed)
{
    *is_placed = !workload || g->freeze.cgroup_fd < 0;
    if (!*is_placed) {
        struct clone_args args = {.flags = CLONE_INTO_CGROUP,
                                  .exit_signal = SIGCHLD,
                                  .cgroup = (uint64_t)g->freeze.cgroup_fd};
        *is_placed = true;
        pid_t pid = (pid_t)syscall(SYS_clone3, &args, sizeof(args));
        if (pid >= 0)
            return pid;
        *is_placed = false;
    }
    return fork();
}

bool guest_spawn(struct guest *g, const struct guest_spawn *spawn, pid_t *pid, int *status_fd,
                 struct kelpie_error **err)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0)
        return klp_refuse(err, guest_errno_code(errno), "cannot start '%s': %s", spawn->argv[0],
                          strerror(errno));
    bool is_placed;
    *pid = fork_into(g, spawn->workload, &is_placed);
    if (*pid == 0)
        child_run(g, spawn, ends[1], is_placed);
    int error_number = errno;
    close(ends[1]);
    if (*pid < 0) {
        close(ends[0]);
        return klp_refuse(err, guest_errno_code(error_number), "cannot start '%s': %s",
                          spawn->argv[0], strerror(error_number));
    }
    *status_fd = ends[0];
    return true;
}

static struct kelpie_error *spawn_error(const struct guest_spawn_failure *failure, const char *name,
                                        const char *workdir)
{
    int number = failure->error;
    switch (failure->stage) {
    case GUEST_STAGE_WORKDIR:
        return guest_errno(KELPIE_E_NONE, number, "cannot enter '%s'", workdir);
    case GUEST_STAGE_EXEC:
        if (number == ENOENT || number == ENOTDIR)
            return guest_errno(KELPIE_E_NO_COMMAND, number, "cannot run '%s'", name);
        if (number == E2BIG || number == ENOMEM || number == EMFILE || number == ENFILE)
            return guest_errno(KELPIE_E_NONE, number, "cannot run '%s'", name);
        return guest_errno(KELPIE_E_NOT_EXECUTABLE, number, "cannot run '%s'", name);
    case GUEST_STAGE_TTY:
        return guest_errno(KELPIE_E_IO, number, "cannot give '%s' a terminal", name);
    default:
        return guest_errno(KELPIE_E_INTERNAL, number, "cannot put '%s' into the workload", name);
    }
}

int guest_spawn_result(int *status_fd, const char *name, const char *workdir,
                       struct kelpie_error **err)
{
    struct guest_spawn_failure failure;
    ssize_t size = read(*status_fd, &failure, sizeof(failure));
    if (size < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    guest_close(status_fd);
    if (size != (ssize_t)sizeof(failure))
        return 1;
    struct kelpie_error *error = spawn_error(&failure, name, workdir);
    klp_error_move(err, &error);
    return -1;
}
