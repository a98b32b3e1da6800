/* SPDX-License-Identifier: Apache-2.0 */
/* All descendants of the agent, found in /proc. The agent is PID 1 or a subreaper, so a process
 * cannot leave this set by losing its parent. Used where there is no cgroup to do it. */
#include "guest/guest.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fmt.h"

#define PROCESSES_MAX 8192

struct process {
    pid_t pid, parent;
    char state; /* the letter of /proc/PID/stat */
    bool is_ours;
};

static struct process processes[PROCESSES_MAX];

/* proc(5): pid (name) state ppid ...; the name may hold anything, also ")". */
static bool process_read(const char *name, struct process *out)
{
    char path[64], text[512];
    klp_format(path, sizeof(path), "/proc/%.*s/stat", 20, name);
    if (guest_file_read(path, text, sizeof(text)) <= 0)
        return false;
    const char *at = strrchr(text, ')');
    if (at == NULL || at[1] != ' ' || at[2] == '\0' || at[3] != ' ')
        return false;
    *out = (struct process){.pid = (pid_t)strtol(name, NULL, 10),
                            .parent = (pid_t)strtol(at + 4, NULL, 10),
                            .state = at[2]};
    return true;
}

static int processes_read(void)
{
    DIR *list = opendir("/proc");
    int count = 0;
    if (list == NULL)
        return -1;
    for (struct dirent *entry; count < PROCESSES_MAX && (entry = readdir(list)) != NULL;) {
        if (entry->d_name[0] >= '1' && entry->d_name[0] <= '9' &&
            process_read(entry->d_name, &processes[count]))
            count++;
    }
    closedir(list);
    return count;
}

static bool parent_is_ours(int count, pid_t parent, pid_t self)
{
    if (parent == self)
        return true;
    for (int i = 0; i < count; i++) {
        if (processes[i].pid == parent)
            return processes[i].is_ours;
    }
    return false;
}

/* Each pass marks at least one more generation. */
static void descendants_mark(int count)
{
    pid_t self = getpid();
    bool again = true;
    while (again) {
        again = false;
        for (int i = 0; i < count; i++) {
            struct process *process = &processes[i];
            if (!process->is_ours && process->pid != self &&
                parent_is_ours(count, process->parent, self))
                process->is_ours = again = true;
        }
    }
}

static bool process_done(const struct process *process, enum guest_sweep what)
{
    if (process->state == 'Z' || process->state == 'X')
        return true;
    bool is_stopped = process->state == 'T' || process->state == 't';
    return what == GUEST_SWEEP_STOP ? is_stopped : what == GUEST_SWEEP_CONTINUE && !is_stopped;
}

static int sweep_once(enum guest_sweep what)
{
    static const int signals[] = {SIGSTOP, SIGCONT, SIGKILL};
    int count = processes_read(), left = 0;
    if (count < 0)
        return -1;
    descendants_mark(count);
    for (int i = 0; i < count; i++) {
        if (!processes[i].is_ours || process_done(&processes[i], what))
            continue;
        kill(processes[i].pid, signals[what]);
        left++;
    }
    return left;
}

int guest_sweep(struct guest *g, enum guest_sweep what)
{
    (void)g;
    int left = sweep_once(what);
    /* What was born during the first sweep falls to the next. */
    for (int i = 0; what != GUEST_SWEEP_STOP && left > 0 && i < 8; i++)
        left = sweep_once(what);
    return left;
}
