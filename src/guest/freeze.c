/* SPDX-License-Identifier: Apache-2.0 */
/* FREEZE and THAW (reliability-security 5, step 0): hooks, seeds deleted, the workload's cgroup
 * frozen, files synced. Where there is no cgroup2, every descendant is stopped by signal instead,
 * and the answer says so. A freeze that cannot finish undoes itself: the workload goes on as
 * before. */
#include "guest/guest.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fmt.h"

#define FREEZE_LOOK_MS 5
#define BY_SIGNAL "stopped by signal: no cgroup2 in this guest"

void guest_freeze_init(struct guest *g)
{
    struct guest_freeze *freeze = &g->freeze;
    const char *path = g->options.cgroup;
    *freeze = (struct guest_freeze){.cgroup_fd = -1, .switch_fd = -1, .events_fd = -1};
    if (path == NULL || (mkdir(path, 0755) < 0 && errno != EEXIST))
        return;
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        freeze->switch_fd = openat(fd, "cgroup.freeze", O_WRONLY | O_CLOEXEC);
        freeze->events_fd = openat(fd, "cgroup.events", O_RDONLY | O_CLOEXEC);
    }
    if (freeze->switch_fd >= 0 && freeze->events_fd >= 0) {
        freeze->cgroup_fd = fd;
        return;
    }
    guest_close(&freeze->switch_fd);
    guest_close(&freeze->events_fd);
    guest_close(&fd);
    guest_log("no freezer in '%s': the workload will be stopped by signal", path);
}

static bool cgroup_set(const struct guest *g, const char *value)
{
    return pwrite(g->freeze.switch_fd, value, 1, 0) == 1;
}

static bool cgroup_is_frozen(const struct guest *g)
{
    char text[256];
    ssize_t size = pread(g->freeze.events_fd, text, sizeof(text) - 1, 0);
    if (size < 0)
        return false;
    text[size] = '\0';
    return strstr(text, "frozen 1") != NULL;
}

static const char *freeze_text(const struct guest *g)
{
    return g->freeze.cgroup_fd >= 0 ? NULL : BY_SIGNAL;
}

/* ---- back to running */

static void workload_continue(struct guest *g)
{
    struct guest_freeze *freeze = &g->freeze;
    if (freeze->state == GUEST_THAWED)
        return;
    if (freeze->cgroup_fd < 0)
        guest_sweep(g, GUEST_SWEEP_CONTINUE);
    else if (!cgroup_set(g, "0"))
        guest_log("cannot thaw the workload: %s", strerror(errno));
    guest_exec_shift_deadlines(g, guest_now_ms() - freeze->since_ms);
    freeze->state = GUEST_THAWED;
    freeze->waiting = false;
}

static void freeze_stop(struct guest *g)
{
    guest_runner_cancel(g);
    guest_job_end(g);
    workload_continue(g);
}

static void freeze_finish(struct guest *g, struct guest_channel *channel)
{
    if (g->job == GUEST_JOB_FREEZE && g->job_channel == channel)
        freeze_stop(g); /* nobody waits for it any more */
}

static const struct guest_channel_ops freeze_ops = {.finish = freeze_finish};

static void freeze_fail(struct guest *g, enum kelpie_code code, const char *why)
{
    struct guest_channel *channel = g->job_channel;
    char text[400];
    klp_format(text, sizeof(text), "cannot freeze the workload: %s", why);
    guest_channel_fail(g, channel, klp_error_create(code, text));
}

/* ---- the steps */

/* Where nothing has a disk under it there is nothing to be synced, and the child for it would cost
 * a restored guest twenty milliseconds. Where that cannot be told, there may be disks. */
static bool disks_are_there(void)
{
    DIR *list = opendir("/sys/block");
    bool found = list == NULL;
    for (struct dirent *entry; !found && (entry = readdir(list)) != NULL;)
        found = entry->d_name[0] != '.';
    if (list != NULL)
        closedir(list);
    return found;
}

static int sync_call(struct guest *g)
{
    (void)g;
    sync();
    return 0;
}

static void sync_done(struct guest *g, const char *failure)
{
    struct guest_channel *channel = g->job_channel;
    if (failure != NULL) {
        freeze_fail(g, KELPIE_E_IO, "files could not be synced");
        return;
    }
    uint32_t id = channel->id;
    g->freeze.state = GUEST_FROZEN;
    guest_job_end(g);
    guest_channel_end(g, channel);
    guest_send_done(g, id, freeze_text(g));
}

static void hooks_done(struct guest *g, const char *failure)
{
    struct guest_freeze *freeze = &g->freeze;
    if (failure != NULL) {
        freeze_fail(g, KELPIE_E_IO, failure);
        return;
    }
    freeze->seeds_failed = 0;
    freeze->seeds_deleted = guest_seeds_delete(g, &freeze->seeds_failed);
    if (freeze->cgroup_fd >= 0 && !cgroup_set(g, "1")) {
        freeze_fail(g, KELPIE_E_IO, strerror(errno));
        return;
    }
    freeze->waiting = true;
    freeze->next_ms = guest_now_ms();
    freeze->deadline_ms = freeze->next_ms + GUEST_FREEZE_MS;
}

static bool workload_stands(struct guest *g)
{
    if (g->freeze.cgroup_fd >= 0)
        return cgroup_is_frozen(g);
    return guest_sweep(g, GUEST_SWEEP_STOP) == 0;
}

uint64_t guest_freeze_deadline(const struct guest *g)
{
    return g->freeze.waiting ? g->freeze.next_ms : GUEST_NEVER;
}

void guest_freeze_tick(struct guest *g, uint64_t now_ms)
{
    struct guest_freeze *freeze = &g->freeze;
    if (guest_freeze_deadline(g) > now_ms)
        return;
    if (workload_stands(g)) {
        freeze->waiting = false;
        if (disks_are_there())
            guest_run_call(g, sync_call, sync_done); /* a disk may never answer */
        else
            sync_done(g, NULL);
    } else if (now_ms >= freeze->deadline_ms) {
        freeze_fail(g, KELPIE_E_TIMEOUT, "it does not stand still");
    } else {
        freeze->next_ms = now_ms + FREEZE_LOOK_MS;
    }
}

void guest_freeze_open(struct guest *g, uint32_t id)
{
    if (g->freeze.state == GUEST_FROZEN) {
        guest_send_done(g, id, freeze_text(g));
        return;
    }
    if (!guest_job_begin(g, GUEST_JOB_FREEZE, id))
        return;
    g->job_channel = guest_channel_open(g, id, &freeze_ops, NULL, true);
    if (g->job_channel == NULL) {
        guest_job_end(g);
        return;
    }
    g->freeze.state = GUEST_FREEZING;
    g->freeze.since_ms = guest_now_ms();
    g->runner.variable_count = 0;
    guest_run_hooks(g, "/etc/kelpie/snapshot.d", hooks_done);
}

void guest_thaw_open(struct guest *g, uint32_t id)
{
    if (g->job == GUEST_JOB_UNIQUE) {
        guest_send_refusal(g, id, KELPIE_E_BUSY,
                           "cannot thaw: the guest's identity is being renewed");
        return;
    }
    if (g->job == GUEST_JOB_FREEZE)
        freeze_fail(g, KELPIE_E_STATE, "a thaw came first");
    workload_continue(g);
    guest_send_done(g, id, NULL);
}
