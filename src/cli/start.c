/* SPDX-License-Identifier: Apache-2.0 */
/* The daemon's address; and a local daemon that is started when none answers and nobody named one.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/fmt.h"
#include "cli/cli.h"
#include "env/posix/posix.h"

#define START_WAIT_MS 10000
#define START_STEP_MS 20
#define START_GONE_MS 1000
#define LAST_WORDS_MAX 4096 /* bytes of its log that are looked at */

static char *beside(const char *name, const char *below)
{
    char self[KLP_PATH_MAX];
    ssize_t size = readlink("/proc/self/exe", self, sizeof(self) - 1);
    if (size <= 0)
        return NULL;
    self[size] = 0;
    char *slash = strrchr(self, '/');
    if (slash == NULL)
        return NULL;
    *slash = 0;
    return klp_text("%s/%s%s", self, below, name);
}

static char *usable(char *path)
{
    if (path != NULL && access(path, X_OK) == 0)
        return path;
    klp_mem_free(path);
    return NULL;
}

static char *in_path(const char *name)
{
    const char *path = getenv("PATH");
    while (path != NULL && *path != 0) {
        size_t size = strcspn(path, ":");
        char *found = size > 0 ? usable(klp_text("%.*s/%s", (int)size, path, name)) : NULL;
        if (found != NULL)
            return found;
        path += size + (path[size] == ':' ? 1 : 0);
    }
    return NULL;
}

char *cli_program_path(const char *name)
{
    const char *libexec = getenv("KELPIE_LIBEXEC");
    char *found = usable(beside(name, ""));
    if (found == NULL && libexec != NULL && libexec[0] != 0)
        found = usable(klp_text("%s/%s", libexec, name));
    if (found == NULL)
        found = usable(beside(name, "../libexec/kelpie/"));
    return found != NULL ? found : in_path(name);
}

/* ---- starting */

static bool folders_make(const char *path, struct kelpie_error **err)
{
    char *copy = klp_mem_string(path);
    for (char *at = copy + 1; *at != 0; at++) {
        if (*at != '/')
            continue;
        *at = 0;
        mkdir(copy, 0700); /* what cannot be made shows at the last one */
        *at = '/';
    }
    bool fine = mkdir(copy, 0700) == 0 || errno == EEXIST;
    int error = errno;
    klp_mem_free(copy);
    return fine || klp_posix_refuse(err, error, "cannot make the state folder '%s'", path);
}

/* In the child, after fork: only what is safe there. */
static __attribute__((noreturn)) void child_become(const char *program, const char *state,
                                                   int log_fd, int null_fd, int report_fd)
{
    char *const argv[] = {(char *)(uintptr_t)program, (char *)(uintptr_t) "--state",
                          (char *)(uintptr_t)state, NULL};
    setsid();
    signal(SIGPIPE, SIG_DFL);
    dup2(null_fd, 0);
    dup2(log_fd, 1);
    dup2(log_fd, 2);
    execv(program, argv);
    int error = errno;
    KLP_IGNORE(write(report_fd, &error, sizeof(error)));
    _exit(127);
}

/* *out_log_at: so long was its log before. */
static bool daemon_spawn(const char *program, const char *state, pid_t *out_pid, off_t *out_log_at,
                         struct kelpie_error **err)
{
    int report[2], error = 0;
    char *log_path = klp_text("%s/kelpied.log", state);
    int log_fd = open(log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    int null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    klp_mem_free(log_path);
    if (log_fd < 0 || null_fd < 0 || pipe2(report, O_CLOEXEC) != 0) {
        error = errno;
        close(log_fd);
        close(null_fd);
        return klp_posix_refuse(err, error, "cannot open '%s/kelpied.log'", state);
    }
    *out_log_at = lseek(log_fd, 0, SEEK_END);
    pid_t pid = fork();
    if (pid == 0)
        child_become(program, state, log_fd, null_fd, report[1]);
    int fork_error = errno;
    close(log_fd);
    close(null_fd);
    close(report[1]);
    ssize_t got = pid > 0 ? read(report[0], &error, sizeof(error)) : 0;
    close(report[0]);
    *out_pid = pid;
    if (pid < 0 || got > 0)
        return klp_posix_refuse(err, pid < 0 ? fork_error : error, "cannot start '%s'", program);
    return true;
}

/* What a daemon that refused to start wrote: `kelpied: WHY`, reasons, `Try: COMMAND` (its main.c).
 */
static void last_words_read(const char *state, off_t at, char out[LAST_WORDS_MAX + 1])
{
    char *path = klp_text("%s/kelpied.log", state);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t size = fd >= 0 ? pread(fd, out, LAST_WORDS_MAX, at) : 0;
    out[size > 0 ? size : 0] = 0;
    if (fd >= 0)
        close(fd);
    klp_mem_free(path);
}

/* A log that holds but what was just said, and the folder, unless something else is in it. */
static void log_forget(const char *state)
{
    char *path = klp_text("%s/kelpied.log", state);
    unlink(path);
    rmdir(state);
    klp_mem_free(path);
}

/* Several codes share a status: first those that a start ends with. */
static enum kelpie_code code_of_status(int status)
{
    static const enum kelpie_code usual[] = {KELPIE_E_UNSUPPORTED, KELPIE_E_EXISTS,
                                             KELPIE_E_NO_SPACE, KELPIE_E_IO};
    for (size_t i = 0; i < KLP_COUNT(usual); i++)
        if (WIFEXITED(status) && kelpie_code_exit(usual[i]) == WEXITSTATUS(status))
            return usual[i];
    for (int code = KELPIE_E_NONE + 1; code < KELPIE_E_COUNT; code++)
        if (WIFEXITED(status) && kelpie_code_exit((enum kelpie_code)code) == WEXITSTATUS(status))
            return (enum kelpie_code)code;
    return KELPIE_E_UNREACHABLE;
}

/* It ended at once: its reason is ours. */
static kelpie_outcome daemon_refused(const struct cli *cli, int status, off_t log_at,
                                     struct kelpie_error **err)
{
    static const char name[] = "kelpied: ", try[] = "Try: ";
    char text[LAST_WORDS_MAX + 1], *line, *rest = text, *why = NULL, *remedy = NULL;
    last_words_read(cli->state, log_at, text);
    while ((line = strsep(&rest, "\n")) != NULL) {
        if (strncmp(line, name, strlen(name)) == 0)
            why = line + strlen(name);
        else if (why != NULL && strncmp(line, try, strlen(try)) == 0)
            remedy = line + strlen(try);
    }
    KLP_IGNORE(klp_fail(err, why != NULL ? code_of_status(status) : KELPIE_E_UNREACHABLE,
                        "cannot start kelpied: %s", why != NULL ? why : "it ended at once"));
    if (remedy != NULL)
        klp_error_remedy_set(err, "%s", remedy);
    else if (why == NULL)
        klp_error_remedy_set(err, "cat %s/kelpied.log", cli->state);
    if (why != NULL && log_at == 0)
        log_forget(cli->state);
    return (kelpie_outcome){KELPIE_FAIL};
}

static kelpie_outcome daemon_await(struct cli *cli, pid_t pid, off_t log_at, int *out_fd,
                                   struct kelpie_error **err)
{
    const char *path = cli->host + strlen("unix:");
    bool gone = false;
    int status = 0;
    unsigned until = START_WAIT_MS;
    for (unsigned waited = 0; waited < until; waited += START_STEP_MS) {
        struct kelpie_error *error = NULL;
        if (klp_posix_unix_connect(path, SOCK_STREAM, out_fd, &error))
            return KLP_OK;
        klp_error_clear(&error);
        if (!gone && waitpid(pid, &status, WNOHANG) == pid) {
            gone = true; /* perhaps because another one was started at the same time */
            until = waited + START_GONE_MS;
        }
        nanosleep(&(struct timespec){.tv_nsec = START_STEP_MS * 1000000l}, NULL);
    }
    if (gone)
        return daemon_refused(cli, status, log_at, err);
    kelpie_outcome outcome =
        klp_fail(err, KELPIE_E_UNREACHABLE, "kelpied was started and does not answer");
    klp_error_remedy_set(err, "cat %s/kelpied.log", cli->state);
    return outcome;
}

static kelpie_outcome daemon_start(struct cli *cli, int *out_fd, struct kelpie_error **err)
{
    pid_t pid = -1;
    off_t log_at = 0;
    char *program = cli_program_path("kelpied");
    if (program == NULL)
        return klp_fail(err, KELPIE_E_UNREACHABLE,
                        "no daemon answers at '%s', and the program kelpied was not found",
                        cli->host);
    bool fine =
        folders_make(cli->state, err) && daemon_spawn(program, cli->state, &pid, &log_at, err);
    klp_mem_free(program);
    KLP_REQUIRE(fine);
    fprintf(stderr, "kelpie: started kelpied (%s)\n", cli->state);
    return daemon_await(cli, pid, log_at, out_fd, err);
}

kelpie_outcome cli_connect(struct cli *cli, const char *endpoint, int *out_fd,
                           struct kelpie_error **err)
{
    const char *at = endpoint != NULL && endpoint[0] != 0 ? endpoint : cli->host;
    struct kelpie_error *error = NULL;
    if (strncmp(at, "unix:", 5) != 0 || at[5] == 0) {
        bool later = strncmp(at, "https://", 8) == 0;
        return klp_fail(err, later ? KELPIE_E_UNSUPPORTED : KELPIE_E_INVALID, "host '%s': %s", at,
                        later ? "only unix:PATH works yet" : "unix:PATH was expected");
    }
    if (klp_posix_unix_connect(at + 5, SOCK_STREAM, out_fd, &error))
        return KLP_OK;
    bool mine = at == cli->host && !cli->host_given && cli->may_start;
    if (mine && kelpie_error_code(error) == KELPIE_E_UNREACHABLE) {
        klp_error_clear(&error);
        return daemon_start(cli, out_fd, err);
    }
    kelpie_outcome outcome =
        klp_fail(err, KELPIE_E_UNREACHABLE, "cannot reach the daemon at '%s': %s", at,
                 kelpie_error_message(error));
    klp_error_clear(&error);
    return outcome;
}
