/* SPDX-License-Identifier: Apache-2.0 */
/* One job at a time, and the programs a job needs: hooks in the order of their names, a tool, a
 * function in a child. They run outside the workload, for they must run while it is frozen; each
 * has a deadline, and one that cannot even be killed is left behind. */
#include "guest/guest.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fmt.h"

bool guest_job_begin(struct guest *g, enum guest_job_kind kind, uint32_t id)
{
    static const char *const names[] = {"", "a freeze", "a renewal of its identity",
                                        "a checkpoint"};
    if (g->job != GUEST_JOB_NONE) {
        guest_send_refusal(g, id, KELPIE_E_BUSY, "cannot begin: %s is under way in the guest",
                           names[g->job]);
        return false;
    }
    g->job = kind;
    return true;
}

void guest_job_end(struct guest *g)
{
    g->job = GUEST_JOB_NONE;
    g->job_channel = NULL;
}

/* ---- the list */

static bool name_is_hook(const char *name)
{
    static const char allowed[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.";
    return name[0] != '.' && strspn(name, allowed) == strlen(name);
}

static bool is_program(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 && S_ISREG(info.st_mode) && (info.st_mode & 0111) != 0;
}

static void list_insert(struct guest_runner *runner, char *path)
{
    size_t at = runner->count++;
    for (; at > 0 && strcmp(runner->paths[at - 1], path) > 0; at--)
        runner->paths[at] = runner->paths[at - 1];
    runner->paths[at] = path;
}

static void list_read(struct guest_runner *runner, const char *folder)
{
    char path[KLP_PATH_MAX];
    DIR *list = opendir(folder);
    if (list == NULL)
        return;
    for (struct dirent *entry; (entry = readdir(list)) != NULL;) {
        bool fits = klp_format(path, sizeof(path), "%s/%s", folder, entry->d_name) < sizeof(path);
        if (!fits || !name_is_hook(entry->d_name) || !is_program(path))
            continue;
        if (runner->count == GUEST_HOOKS_MAX) {
            guest_log("more than %d hooks in '%s': '%s' does not run", GUEST_HOOKS_MAX, folder,
                      entry->d_name);
            continue;
        }
        list_insert(runner, klp_mem_string(path));
    }
    closedir(list);
}

static void list_free(struct guest_runner *runner)
{
    for (size_t i = 0; i < runner->count; i++)
        klp_mem_free(runner->paths[i]);
    runner->count = runner->next = 0;
}

/* ---- running */

static void runner_finish(struct guest *g, const char *failure)
{
    guest_runner_done *done = g->runner.done;
    if (failure != NULL)
        guest_log("%s", failure);
    g->runner.done = NULL;
    list_free(&g->runner);
    done(g, failure);
}

__attribute__((noreturn)) static void child_run(struct guest *g, char *const *argv)
{
    struct guest_runner *runner = &g->runner;
    const char *env[GUEST_RUNNER_VARIABLES + 3];
    size_t count = 0;
    env[count++] = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    env[count++] = "HOME=/root";
    for (size_t i = 0; i < runner->variable_count; i++)
        env[count++] = runner->variables[i];
    env[count] = NULL;
    setsid();
    if (!g->options.is_init)
        prctl(PR_SET_PDEATHSIG, SIGKILL);
    int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    dup2(null_fd, 0);
    dup2(2, 1); /* hooks speak on the console */
    syscall(SYS_close_range, 3u, ~0u, 0);
    guest_signals_reset();
    if (runner->call != NULL)
        _exit(runner->call(g));
    if (argv[0] != NULL && chdir("/") == 0)
        execve(argv[0], argv, (char *const *)env);
    _exit(126);
}

static void runner_next(struct guest *g)
{
    struct guest_runner *runner = &g->runner;
    char *hook[2] = {NULL, NULL};
    char *const *argv = runner->argv != NULL ? runner->argv : hook;
    bool is_last = runner->is_single ? runner->next == 1 : runner->next == runner->count;
    if (is_last) {
        runner_finish(g, NULL);
        return;
    }
    if (!runner->is_single)
        hook[0] = runner->paths[runner->next];
    runner->next++;
    runner->deadline_ms = guest_now_ms() + runner->limit_ms;
    klp_format(runner->name, sizeof(runner->name), "%.*s", (int)sizeof(runner->name) - 1,
               argv[0] != NULL ? argv[0] : "a helper");
    runner->pid = fork();
    if (runner->pid == 0)
        child_run(g, argv);
    if (runner->pid < 0) {
        runner->pid = 0;
        runner_finish(g, "cannot start a helper: no process");
    }
}

static void runner_begin(struct guest *g, guest_runner_done *done, uint64_t limit_ms)
{
    KLP_ASSERT(g->runner.done == NULL);
    g->runner.done = done;
    g->runner.next = 0;
    g->runner.pid = 0;
    g->runner.limit_ms = limit_ms;
    runner_next(g);
}

void guest_run_hooks(struct guest *g, const char *folder, guest_runner_done *done)
{
    char path[KLP_PATH_MAX];
    g->runner.argv = NULL;
    g->runner.call = NULL;
    g->runner.is_single = false;
    if (guest_system_path(g, folder, path))
        list_read(&g->runner, path);
    g->runner.hooks_run = g->runner.count;
    runner_begin(g, done, GUEST_HOOK_MS);
}

void guest_run_program(struct guest *g, char *const *argv, guest_runner_done *done)
{
    g->runner.argv = argv;
    g->runner.call = NULL;
    g->runner.is_single = true;
    runner_begin(g, done, GUEST_HOOK_MS);
}

void guest_run_call(struct guest *g, int (*call)(struct guest *g), guest_runner_done *done)
{
    g->runner.argv = NULL;
    g->runner.call = call;
    g->runner.is_single = true;
    runner_begin(g, done, GUEST_FREEZE_MS);
}

void guest_runner_variable(struct guest *g, const char *text)
{
    struct guest_runner *runner = &g->runner;
    KLP_ASSERT(runner->variable_count < GUEST_RUNNER_VARIABLES);
    klp_format(runner->variables[runner->variable_count++], GUEST_RUNNER_VARIABLE_SIZE, "%s", text);
}

void guest_runner_cancel(struct guest *g)
{
    if (g->runner.pid > 0)
        guest_kill_group(g->runner.pid, SIGKILL);
    g->runner.pid = 0;
    g->runner.done = NULL;
    list_free(&g->runner);
}

bool guest_runner_child(struct guest *g, pid_t pid, int status)
{
    struct guest_runner *runner = &g->runner;
    char text[300];
    if (runner->pid != pid || pid == 0)
        return false;
    runner->pid = 0;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
        runner_next(g);
        return true;
    }
    klp_format(text, sizeof(text), "'%s' ended with %s %d", runner->name,
               WIFSIGNALED(status) ? "signal" : "status",
               WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    runner_finish(g, text);
    return true;
}

uint64_t guest_runner_deadline(const struct guest *g)
{
    return g->runner.pid > 0 ? g->runner.deadline_ms : GUEST_NEVER;
}

void guest_runner_tick(struct guest *g, uint64_t now_ms)
{
    struct guest_runner *runner = &g->runner;
    char text[300];
    if (guest_runner_deadline(g) > now_ms)
        return;
    guest_kill_group(runner->pid, SIGKILL);
    runner->pid = 0; /* the loop reaps it, whenever it can die */
    klp_format(text, sizeof(text), "'%s' ran longer than %u ms", runner->name,
               (unsigned)runner->limit_ms);
    runner_finish(g, text);
}
