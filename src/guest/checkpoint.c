/* SPDX-License-Identifier: Apache-2.0 */
/* CHECKPOINT: the agent's state without its memory. Hooks write into an empty
 * /run/kelpie/checkpoint; then that folder and the workspace go out as one archive whose names
 * start at "/", so that a PUT at "/" on any architecture brings both back to their places. */
#include "guest/guest.h"

#include <ftw.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/fmt.h"

#define STATE_DIR "/run/kelpie/checkpoint"

static char state_path[KLP_PATH_MAX]; /* nftw has no argument of the caller's */

static int remove_one(const char *path, const struct stat *info, int kind, struct FTW *where)
{
    (void)info;
    (void)kind;
    (void)where;
    return strcmp(path, state_path) == 0 ? 0 : remove(path);
}

/* In a child: a large old state must not stop the agent. */
static int state_clear(struct guest *g)
{
    KLP_AUTO(kelpie_error) struct kelpie_error *err = NULL;
    (void)g;
    if (!guest_make_folders(state_path, &err))
        return 1;
    return nftw(state_path, remove_one, 16, FTW_DEPTH | FTW_PHYS | FTW_MOUNT) == 0 ? 0 : 1;
}

static void checkpoint_fail(struct guest *g, const char *why)
{
    char text[400];
    klp_format(text, sizeof(text), "cannot make a checkpoint: %s", why);
    guest_channel_fail(g, g->job_channel, klp_error_create(KELPIE_E_IO, text));
}

static void hooks_done(struct guest *g, const char *failure)
{
    struct guest_channel *channel = g->job_channel;
    const char *workspace = g->defaults.workdir;
    if (failure != NULL) {
        checkpoint_fail(g, failure);
        return;
    }
    struct guest_walk *walk = guest_walk_create();
    if (state_path[0] != '\0')
        guest_walk_add(walk, state_path, &STATE_DIR[1], true);
    if (workspace != NULL && workspace[1] != '\0') /* the whole root is no workspace */
        guest_walk_add(walk, workspace, workspace + 1, false);
    guest_job_end(g);
    guest_stream_attach(channel, walk);
}

static void clear_done(struct guest *g, const char *failure)
{
    char variable[GUEST_RUNNER_VARIABLE_SIZE];
    if (failure != NULL) {
        checkpoint_fail(g, "the folder for its state cannot be emptied");
        return;
    }
    g->runner.variable_count = 0;
    klp_format(variable, sizeof(variable), "KELPIE_CHECKPOINT_DIR=%s", state_path);
    guest_runner_variable(g, variable);
    guest_run_hooks(g, "/etc/kelpie/checkpoint.d", hooks_done);
}

void guest_checkpoint_open(struct guest *g, uint32_t id)
{
    if (!guest_job_begin(g, GUEST_JOB_CHECKPOINT, id))
        return;
    g->job_channel = guest_stream_open(g, id, NULL, true);
    if (g->job_channel == NULL) {
        guest_job_end(g);
        return;
    }
    if (guest_system_path(g, STATE_DIR, state_path)) {
        guest_run_call(g, state_clear, clear_done);
        return;
    }
    state_path[0] = '\0';
    hooks_done(g, NULL);
}
