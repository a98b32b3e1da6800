/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/keeper_launch.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fmt.h"
#include "env/posix/posix.h"
#include "vm/keeper/keeper.h"

#define ARGUMENTS_MAX 16
#define LOG_NAME "keeper.log"

/* Of our environment a keeper sees test switches only, and those only from a program that takes
 * them itself. */
struct switches {
    char *texts[2];
    const char *env[3];
};

static void switches_fill(struct klp_env *env, struct switches *out)
{
    static const char *const names[2][2] = {{"KELPIE_MOCK_FAULT", "KELPIE_MOCK_FAULT"},
                                            {"KELPIE_KEEPER_POINT", "KELPIE_POINT"}};
    size_t count = 0;
    *out = (struct switches){0};
    for (size_t i = 0; i < KLP_COUNT(names) && klp_env_posix_test_points(env); i++) {
        const char *value = getenv(names[i][0]);
        if (value == NULL)
            continue;
        out->texts[count] = klp_text("%s=%s", names[i][1], value);
        out->env[count] = out->texts[count];
        count++;
    }
}

static void switches_finish(struct switches *switches)
{
    for (size_t i = 0; i < KLP_COUNT(switches->texts); i++)
        klp_mem_free(switches->texts[i]);
}

static kelpie_outcome child_fail(struct klp_dir *dir, struct kelpie_error **err)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf log = KLP_BUF_INIT(64 * 1024);
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf text = KLP_BUF_INIT(KLP_ERROR_TEXT_MAX);
    KLP_IGNORE(klp_file_read_all(dir, LOG_NAME, &log, NULL));
    while (log.size > 0 && log.data[log.size - 1] == '\n')
        log.size--;
    klp_text_escape(&text, log.data, log.size < 1000 ? log.size : 1000);
    return klp_fail(err, KELPIE_E_IO, "it ended at once%s%s", text.size > 0 ? ": " : "",
                    klp_buf_text(&text));
}

/* The child of ours ends when its own child, the keeper, listens; or when that has failed. Where
 * children are ignored its status is lost, so it is asked of the keeper. */
static kelpie_outcome launched(const struct kelpie_op *op, struct klp_dir *dir, int pidfd,
                               struct kelpie_error **err)
{
    struct klp_chan *chan;
    KLP_TRY(klp_posix_wait(op, pidfd, POLLIN, "starting a keeper", err));
    if (!kelpie_is_ok(klp_chan_connect(op, dir, KLP_KEEPER_SOCKET, &chan, NULL)))
        return child_fail(dir, err);
    klp_chan_close(chan);
    return KLP_OK;
}

/* Killed unless it has ended, and the keeper with it unless that listens already. */
static void child_end(int pidfd)
{
    siginfo_t end;
    syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
    while (waitid(P_PIDFD, (id_t)pidfd, &end, WEXITED) != 0 && errno == EINTR)
        continue;
    close(pidfd);
}

static bool child_start(const char *keeper_path, const char *const *argv, struct klp_dir *dir,
                        int *out_pidfd, struct kelpie_error **err)
{
    struct switches switches;
    int pid, log_fd = openat(klp_dir_fd(dir), LOG_NAME,
                             O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (log_fd < 0)
        return klp_posix_refuse(err, errno, "cannot make %s/%s", klp_dir_path(dir), LOG_NAME);
    switches_fill(klp_dir_env(dir), &switches);
    struct klp_spawn spawn = {.path = keeper_path,
                              .argv = argv,
                              .env = switches.env,
                              .stdin_fd = -1,
                              .stdout_fd = log_fd,
                              .stderr_fd = log_fd,
                              .directory = klp_dir_path(dir)};
    bool started = klp_posix_spawn(&spawn, &pid, out_pidfd, err);
    switches_finish(&switches);
    close(log_fd);
    return started;
}

kelpie_outcome klp_keeper_launch(const struct kelpie_op *op, const char *keeper_path,
                                 const char *backend, const char *const *arguments,
                                 struct klp_dir *dir, const char *vm_id, struct kelpie_error **err)
{
    const char *argv[ARGUMENTS_MAX + 10] = {"kelpie-keeper",   "--detach", "--dir",
                                            klp_dir_path(dir), "--vm",     vm_id,
                                            "--backend",       backend};
    size_t count = 8;
    int pidfd = -1;
    if (klp_env_posix_test_points(op->env))
        argv[count++] = "--test-points";
    for (size_t i = 0; arguments != NULL && arguments[i] != NULL; i++) {
        KLP_ASSERT(i < ARGUMENTS_MAX);
        argv[count++] = arguments[i];
    }
    if (!child_start(keeper_path, argv, dir, &pidfd, err))
        return klp_wrap(err, (kelpie_outcome){KELPIE_FAIL}, "cannot start a keeper for VM %s",
                        vm_id);
    kelpie_outcome outcome = launched(op, dir, pidfd, err);
    child_end(pidfd);
    return klp_wrap(err, outcome, "cannot start a keeper for VM %s", vm_id);
}
