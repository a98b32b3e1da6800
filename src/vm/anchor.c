/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/anchor.h"

#include <errno.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

struct klp_anchor {
    struct klp_env *env;
    const struct klp_spawn *spawn; /* until started */
    struct klp_task *task;
    struct klp_mutex *mutex;
    struct klp_cond *changed;
    bool started, ended; /* under the mutex */
    struct kelpie_error *error;
    int pid, pidfd, code, signal;
};

static void child_wait(struct klp_anchor *anchor)
{
    int status = 0;
    while (waitpid(anchor->pid, &status, 0) < 0 && errno == EINTR)
        continue;
    KLP_LOCKED (anchor->mutex) {
        anchor->ended = true;
        anchor->code = WIFEXITED(status) ? WEXITSTATUS(status) : 0;
        anchor->signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
        klp_cond_wake(anchor->changed);
    }
}

static void anchor_run(void *arg)
{
    struct klp_anchor *anchor = arg;
    struct kelpie_error *error = NULL;
    bool fine = klp_posix_spawn(anchor->spawn, &anchor->pid, &anchor->pidfd, &error);
    KLP_LOCKED (anchor->mutex) {
        anchor->started = true;
        anchor->ended = !fine;
        anchor->error = error;
        klp_cond_wake(anchor->changed);
    }
    if (fine)
        child_wait(anchor);
}

static void until(struct klp_anchor *anchor, const bool *flag)
{
    struct kelpie_op forever = {.env = anchor->env, .deadline_ns = KLP_NO_DEADLINE};
    klp_mutex_lock(anchor->mutex);
    while (!*flag)
        KLP_IGNORE(klp_cond_wait(&forever, anchor->changed, anchor->mutex, NULL));
    klp_mutex_unlock(anchor->mutex);
}

bool klp_anchor_start(struct klp_env *env, const struct klp_spawn *spawn, struct klp_anchor **out,
                      struct kelpie_error **err)
{
    struct klp_spawn anchored = *spawn;
    struct klp_anchor *anchor = KLP_NEW(struct klp_anchor);
    anchored.die_with_parent = true;
    *anchor = (struct klp_anchor){.env = env, .spawn = &anchored, .pidfd = -1};
    anchor->mutex = klp_mutex_create(env);
    anchor->changed = klp_cond_create(env);
    bool fine = klp_task_spawn(env, "hypervisor", anchor_run, anchor, &anchor->task, err);
    if (fine) {
        until(anchor, &anchor->started);
        anchor->spawn = NULL;
        fine = anchor->error == NULL;
        if (!fine)
            klp_error_move(err, &anchor->error);
    }
    if (!fine) {
        klp_anchor_destroy(anchor);
        return false;
    }
    *out = anchor;
    return true;
}

int klp_anchor_pid(const struct klp_anchor *anchor)
{
    return anchor->pid;
}

void klp_anchor_signal(struct klp_anchor *anchor, int number)
{
    syscall(SYS_pidfd_send_signal, anchor->pidfd, number, NULL, 0); /* ESRCH: it has ended */
}

kelpie_outcome klp_anchor_wait(const struct kelpie_op *op, struct klp_anchor *anchor, int *out_code,
                               int *out_signal, struct kelpie_error **err)
{
    kelpie_outcome outcome = KLP_OK;
    klp_mutex_lock(anchor->mutex);
    while (!anchor->ended && kelpie_is_ok(outcome))
        outcome = klp_cond_wait(op, anchor->changed, anchor->mutex, err);
    *out_code = anchor->code;
    *out_signal = anchor->signal;
    klp_mutex_unlock(anchor->mutex);
    return outcome;
}

void klp_anchor_destroy(struct klp_anchor *anchor)
{
    if (anchor == NULL)
        return;
    if (anchor->pidfd >= 0)
        klp_anchor_signal(anchor, SIGKILL);
    if (anchor->task != NULL)
        klp_task_join(anchor->task);
    if (anchor->pidfd >= 0)
        close(anchor->pidfd);
    klp_cond_destroy(anchor->changed);
    klp_mutex_destroy(anchor->mutex);
    klp_mem_free(anchor);
}
