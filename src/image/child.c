/* SPDX-License-Identifier: Apache-2.0 */
/* Child processes of the image builder. The tools get a fixed locale, so that what they print can
 * be read. */
#include "image/child.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fmt.h"
#include "base/limits.h"
#include "env/posix/posix.h"

#define STDERR_TAIL_MAX 1024u /* bytes kept */
#define PIECE_SIZE (64u * KLP_KIB)
#define PATH_SIZE 256

struct running {
    int pid, pidfd;
    int out_fd, err_fd; /* our ends; -1 = at its end */
    char tail[STDERR_TAIL_MAX];
    size_t tail_size;
    uint8_t piece[PIECE_SIZE];
};

static void fd_close(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

/* Kills what still runs and collects it. */
static void running_end(struct running *running)
{
    if (running->pid > 0) {
        kill(-running->pid, SIGKILL); /* its session too; not collected yet, so the id is its own */
        kill(running->pid, SIGKILL);
        while (waitpid(running->pid, NULL, 0) < 0 && errno == EINTR)
            ;
    }
    fd_close(&running->pidfd);
    fd_close(&running->out_fd);
    fd_close(&running->err_fd);
    klp_mem_free(running);
}
KLP_AUTO_DEFINE(running, struct running *, running_end)

static bool tool_find(const char *name, char out[PATH_SIZE], struct kelpie_error **err)
{
    static const char *const places[] = {"/usr/bin", "/bin", "/usr/local/bin"};
    for (size_t i = 0; i < KLP_COUNT(places); i++) {
        snprintf(out, PATH_SIZE, "%s/%s", places[i], name);
        if (access(out, X_OK) == 0)
            return true;
    }
    bool refused = klp_refuse(err, KELPIE_E_UNSUPPORTED,
                              "cannot build an image: '%s' is not installed (images are made of "
                              "Debian packages)",
                              name);
    klp_error_remedy_set(err, "build the image on Debian, and import it from there");
    return refused;
}

/* Of our environment apt gets only where it is configured and which proxy to use. */
static char **environment_make(void)
{
    static const char *const names[] = {"APT_CONFIG", "http_proxy", "https_proxy", "no_proxy"};
    char **env = klp_mem_alloc((KLP_COUNT(names) + 3) * sizeof(*env));
    size_t count = 0;
    env[count++] = klp_mem_string("LC_ALL=C");
    env[count++] = klp_mem_string("PATH=/usr/sbin:/usr/bin:/sbin:/bin");
    for (size_t i = 0; i < KLP_COUNT(names); i++) {
        const char *value = getenv(names[i]);
        if (value != NULL && strlen(value) < KLP_PATH_MAX)
            env[count++] = klp_text("%s=%s", names[i], value);
    }
    return env;
}

static void environment_free(char **env)
{
    for (size_t i = 0; env[i] != NULL; i++)
        klp_mem_free(env[i]);
    klp_mem_free(env);
}
KLP_AUTO_DEFINE(environment, char **, environment_free)

static bool start(const struct klp_child *child, struct running *running, struct kelpie_error **err)
{
    char path[PATH_SIZE];
    int out[2] = {-1, -1}, errors[2] = {-1, -1};
    KLP_CHECK(tool_find(child->argv[0], path, err));
    if (pipe2(out, O_CLOEXEC) != 0)
        return klp_posix_refuse(err, errno, "cannot make a pipe");
    running->out_fd = out[0];
    if (pipe2(errors, O_CLOEXEC) != 0) {
        close(out[1]);
        return klp_posix_refuse(err, errno, "cannot make a pipe");
    }
    running->err_fd = errors[0];
    KLP_AUTO(environment) char **env = environment_make();
    struct klp_spawn spawn = {
        .path = path,
        .argv = child->argv,
        .env = (const char *const *)env,
        .stdin_fd = child->stdin_fd,
        .stdout_fd = out[1],
        .stderr_fd = errors[1],
        .directory = child->directory,
        .die_with_parent = true,
    };
    bool started = klp_posix_spawn(&spawn, &running->pid, &running->pidfd, err);
    close(out[1]);
    close(errors[1]);
    return started;
}

static void tail_add(struct running *running, const uint8_t *data, size_t size)
{
    if (size > STDERR_TAIL_MAX) {
        data += size - STDERR_TAIL_MAX;
        size = STDERR_TAIL_MAX;
    }
    size_t keep = STDERR_TAIL_MAX - size;
    if (running->tail_size > keep) {
        memmove(running->tail, running->tail + running->tail_size - keep, keep);
        running->tail_size = keep;
    }
    memcpy(running->tail + running->tail_size, data, size);
    running->tail_size += size;
}

/* One read of one pipe. */
static bool piece_take(const struct klp_child *child, struct running *running, int *fd,
                       struct kelpie_error **err)
{
    ssize_t got = read(*fd, running->piece, PIECE_SIZE);
    if (got < 0 && (errno == EINTR || errno == EAGAIN))
        return true;
    if (got < 0)
        return klp_posix_refuse(err, errno, "cannot read what '%s' prints", child->argv[0]);
    if (got == 0) {
        fd_close(fd);
        return true;
    }
    if (fd == &running->err_fd) {
        tail_add(running, running->piece, (size_t)got);
        return true;
    }
    struct klp_bytes bytes = {running->piece, (size_t)got};
    return child->each == NULL || child->each(child->arg, bytes, err);
}

static kelpie_outcome pipes_drain(const struct kelpie_op *op, const struct klp_child *child,
                                  struct running *running, struct kelpie_error **err)
{
    while (running->out_fd >= 0 || running->err_fd >= 0) {
        bool both = running->out_fd >= 0 && running->err_fd >= 0;
        int *first = running->out_fd >= 0 ? &running->out_fd : &running->err_fd;
        unsigned ready = 0;
        KLP_TRY(klp_posix_wait_two(op, *first, both ? running->err_fd : -1, POLLIN, &ready,
                                   child->argv[0], err));
        if (ready & 2)
            KLP_REQUIRE(piece_take(child, running, &running->err_fd, err));
        if (ready & 1)
            KLP_REQUIRE(piece_take(child, running, first, err));
    }
    return KLP_OK;
}

static kelpie_outcome exit_check(const struct klp_child *child, struct running *running, int status,
                                 struct kelpie_error **err)
{
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return KLP_OK;
    struct klp_buf text = KLP_BUF_INIT(8 * STDERR_TAIL_MAX);
    while (running->tail_size > 0 && running->tail[running->tail_size - 1] == '\n')
        running->tail_size--;
    for (size_t i = 0; i < running->tail_size; i++)
        if (running->tail[i] == '\n')
            running->tail[i] = ' ';
    klp_text_escape(&text, running->tail, running->tail_size);
    kelpie_outcome outcome =
        WIFEXITED(status) ? klp_fail(err, KELPIE_E_IO, "'%s' ended with status %d: %s",
                                     child->argv[0], WEXITSTATUS(status), klp_buf_text(&text))
                          : klp_fail(err, KELPIE_E_IO, "'%s' ended by signal %d", child->argv[0],
                                     WTERMSIG(status));
    klp_buf_finish(&text);
    return outcome;
}

kelpie_outcome klp_child_run(const struct kelpie_op *op, const struct klp_child *child,
                             struct kelpie_error **err)
{
    KLP_AUTO(running) struct running *running = KLP_NEW(struct running);
    running->pidfd = running->out_fd = running->err_fd = -1;
    int status = 0;
    KLP_REQUIRE(start(child, running, err));
    KLP_TRY(pipes_drain(op, child, running, err));
    KLP_TRY(klp_posix_wait(op, running->pidfd, POLLIN, child->argv[0], err));
    pid_t got = waitpid(running->pid, &status, 0);
    if (got != running->pid)
        return klp_posix_fail(err, errno, "cannot wait for '%s'", child->argv[0]);
    running->pid = 0;
    return exit_check(child, running, status, err);
}

static bool all_take(void *arg, struct klp_bytes bytes, struct kelpie_error **err)
{
    struct klp_buf *out = arg;
    klp_buf_append(out, bytes.data, bytes.size);
    return klp_buf_check(out, "what a tool printed", err);
}

kelpie_outcome klp_child_read(const struct kelpie_op *op, const char *const *argv,
                              struct klp_buf *out, struct kelpie_error **err)
{
    struct klp_child child = {.argv = argv, .stdin_fd = -1, .each = all_take, .arg = out};
    return klp_child_run(op, &child, err);
}
