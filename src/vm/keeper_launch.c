/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/keeper_launch.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fmt.h"
#include "env/posix/posix.h"
#include "vm/keeper/keeper.h"

#define ARGUMENTS_MAX 16
#define LOOK_MS 2
#define LOG_NAME "keeper.log"

/* What of our environment a keeper may see: test switches only. */
static void environment_fill(const char *out[3], char *texts[2])
{
    static const char *const names[] = {"KELPIE_MOCK_FAULT", "KELPIE_KEEPER_POINT"};
    size_t count = 0;
    for (size_t i = 0; i < 2; i++) {
        const char *value = getenv(names[i]);
        texts[i] =
            value != NULL ? klp_text("%s=%s", i == 0 ? names[0] : "KELPIE_POINT", value) : NULL;
        if (texts[i] != NULL)
            out[count++] = texts[i];
    }
    out[count] = NULL;
}

static kelpie_outcome launched(const struct kelpie_op *op, struct klp_dir *dir, int pidfd,
                               struct kelpie_error **err)
{
    for (;;) {
        struct klp_chan *chan;
        if (kelpie_is_ok(klp_chan_connect(op, dir, KLP_KEEPER_SOCKET, &chan, NULL))) {
            klp_chan_close(chan);
            return KLP_OK;
        }
        siginfo_t end;
        end.si_pid = 0;
        if (waitid(P_PIDFD, (id_t)pidfd, &end, WEXITED | WNOHANG | WNOWAIT) != 0 ||
            end.si_pid != 0) { /* ended; where children are ignored, reaped already */
            __attribute__((cleanup(klp_auto_buf))) struct klp_buf log = KLP_BUF_INIT(64 * 1024);
            KLP_IGNORE(klp_file_read_all(dir, LOG_NAME, &log, NULL));
            return klp_fail(err, KELPIE_E_IO, "kelpie-keeper ended at once with status %d: %s",
                            end.si_status, klp_buf_text(&log));
        }
        KLP_TRY(klp_op_check(op, "starting a keeper", err));
        KLP_TRY(klp_sleep_until(op, klp_boot_ns(op->env) + LOOK_MS * KLP_MS, err));
    }
}

kelpie_outcome klp_keeper_launch(const struct kelpie_op *op, const char *keeper_path,
                                 const char *backend, const char *const *arguments,
                                 struct klp_dir *dir, const char *vm_id, struct kelpie_error **err)
{
    const char *argv[ARGUMENTS_MAX + 8] = {
        "kelpie-keeper", "--dir", klp_dir_path(dir), "--vm", vm_id, "--backend", backend};
    size_t count = 7;
    for (size_t i = 0; arguments != NULL && arguments[i] != NULL; i++) {
        KLP_ASSERT(i < ARGUMENTS_MAX);
        argv[count++] = arguments[i];
    }
    int log_fd = openat(klp_dir_fd(dir), LOG_NAME,
                        O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (log_fd < 0)
        return klp_posix_fail(err, errno, "cannot make %s/%s", klp_dir_path(dir), LOG_NAME);
    const char *env[3];
    char *texts[2];
    environment_fill(env, texts);
    struct klp_spawn spawn = {.path = keeper_path,
                              .argv = argv,
                              .env = env,
                              .stdin_fd = -1,
                              .stdout_fd = log_fd,
                              .stderr_fd = log_fd,
                              .directory = klp_dir_path(dir)};
    int pid, pidfd;
    bool started = klp_posix_spawn(&spawn, &pid, &pidfd, err);
    close(log_fd);
    klp_mem_free(texts[0]);
    klp_mem_free(texts[1]);
    KLP_REQUIRE(started);
    kelpie_outcome outcome = launched(op, dir, pidfd, err);
    if (!kelpie_is_ok(outcome)) {
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
    }
    close(pidfd);
    return klp_wrap(err, outcome, "cannot start a keeper for VM %s", vm_id);
}
