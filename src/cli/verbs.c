/* SPDX-License-Identifier: Apache-2.0 */
/* The table of verbs: parsing, help and dispatch are driven by it. Reserved verbs have no summary.
 */
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"

#define MANY 4096

#define END                                                                                        \
    {                                                                                              \
        0, NULL, NULL, NULL                                                                        \
    }

#define VM_FLAGS                                                                                   \
    {0, "name", "A", "its name (default: one is drawn)"},                                          \
        {0, "memory", "SIZE", "memory: 512M, 2G"}, {0, "cpus", "N", "virtual CPUs"},               \
        {0, "arch", "A", "x86_64 or aarch64"},                                                     \
        {0, "backend", "B", "qemu, firecracker, vz, mock (default: the node's)"},                  \
        {'e', "env", "K=V", "environment; may stand several times"},                               \
        {'w', "workdir", "DIR", "working directory in the guest"},                                 \
    {                                                                                              \
        0, "rm", NULL, "remove it at its end"                                                      \
    }

static const struct cli_flag run_flags[] = {VM_FLAGS,
                                            {'d', "detach", NULL, "print the name and return"},
                                            {'i', "interactive", NULL, "pass standard input"},
                                            {'t', "tty", NULL, "a terminal, if there is one here"},
                                            END};
static const struct cli_flag create_flags[] = {VM_FLAGS, END};
static const struct cli_flag ps_flags[] = {{'a', "all", NULL, "also those that do not run"}, END};
static const struct cli_flag exec_flags[] = {
    {'i', "interactive", NULL, "pass standard input (the default)"},
    {'t', "tty", NULL, "a terminal, if there is one here (the default between terminals)"},
    {'T', "no-tty", NULL, "no terminal"},
    {'n', "no-stdin", NULL, "standard input is empty"},
    {'e', "env", "K=V", "environment; may stand several times"},
    {'w', "workdir", "DIR", "working directory in the guest"},
    END};
static const struct cli_flag logs_flags[] = {{'f', "follow", NULL, "wait for more until it ends"},
                                             {0, "console", NULL, "the serial console instead"},
                                             END};
static const struct cli_flag stop_flags[] = {{'f', "force", NULL, "do not ask the guest"}, END};
static const struct cli_flag kill_flags[] = {
    {'s', "signal", "N", "number or name of the signal (default: 9, the whole machine)"}, END};
static const struct cli_flag rm_flags[] = {
    {'f', "force", NULL, "from every state; an unknown name is no error"}, END};
static const struct cli_flag wait_flags[] = {{0, "for", "X", "running, stopped (default) or ready"},
                                             END};
static const struct cli_flag snapshot_flags[] = {
    {'n', "name", "NAME", "a name for the snapshot"},
    {0, "kind", "KIND", "suspend, teleport or checkpoint"},
    END};
static const struct cli_flag restore_flags[] = {
    {0, "name", "N", "the new agent's name"},
    {0, "claim", NULL, "take over the agent of a dead node"},
    END};
static const struct cli_flag fork_flags[] = {{'c', "count", "N", "how many (default: 1)"},
                                             {0, "name", "N", "the name, or its beginning"},
                                             END};
static const struct cli_flag teleport_flags[] = {
    {0, "check", NULL, "only say whether it could"},
    {0, "checkpoint", NULL, "move the agent's state only, to any architecture"},
    {0, "max-pause", "DUR", "give up rather than stand still for longer"},
    END};
static const struct cli_flag build_flags[] = {
    {0, "arch", "A", "x86_64 or aarch64 (default: this machine's)"},
    {0, "recipe", "R", "base or python (default: by the name)"},
    END};
static const struct cli_flag arch_flags[] = {{0, "arch", "A", "x86_64 or aarch64"}, END};
static const struct cli_flag events_flags[] = {
    {0, "since", "SEQ", "those after this number (default: all that are kept)"},
    {'n', "no-follow", NULL, "do not wait for more"},
    END};

static const struct cli_flag demo_flags[] = {
    {0, "backend", "B", "qemu or mock (default: a real one, if any can run here)"}, END};

#define VERB(name_, words_, min_, max_, summary_, flags_, run_)                                    \
    {                                                                                              \
        .name = name_, .words = words_, .summary = summary_, .flags = flags_, .words_min = min_,   \
        .words_max = max_, .run = run_                                                             \
    }
#define RESERVED(name_)                                                                            \
    {                                                                                              \
        .name = name_, .words_max = MANY                                                           \
    }

const struct cli_verb cli_verbs[] = {
    {.name = "run",
     .words = "[IMAGE] [-- CMD...]",
     .summary = "create an agent and run it",
     .flags = run_flags,
     .words_max = MANY,
     .command_after = 1,
     .passes_status = true,
     .run = verb_run},
    {.name = "create",
     .words = "[IMAGE] [-- CMD...]",
     .summary = "create an agent, not started",
     .flags = create_flags,
     .words_max = MANY,
     .command_after = 1,
     .run = verb_create},
    VERB("ps", "", 0, 0, "list agents", ps_flags, verb_ps),
    VERB("inspect", "A|SNAPSHOT|FILE...", 1, MANY, "everything about them, as JSON", NULL,
         verb_inspect),
    VERB("status", "A", 1, 1, "one agent, for people", NULL, verb_status),
    {.name = "exec",
     .words = "A CMD...",
     .summary = "run a command in an agent",
     .flags = exec_flags,
     .words_min = 2,
     .words_max = MANY,
     .command_after = 1,
     .passes_status = true,
     .run = verb_exec},
    {.name = "shell",
     .words = "A",
     .summary = "a shell in an agent",
     .flags = exec_flags,
     .words_min = 1,
     .words_max = 1,
     .passes_status = true,
     .run = verb_shell},
    VERB("logs", "A", 1, 1, "output of an agent's main process", logs_flags, verb_logs),
    VERB("cp", "A:PATH DEST | SRC A:PATH", 2, 2, "copy files; - is a tar stream", NULL, verb_cp),
    VERB("start", "A...", 1, MANY, "start agents that do not run", NULL, verb_start),
    VERB("stop", "A...", 1, MANY, "stop agents", stop_flags, verb_stop),
    VERB("kill", "A...", 1, MANY, "signal or kill agents", kill_flags, verb_kill),
    VERB("rm", "A...", 1, MANY, "remove agents", rm_flags, verb_rm),
    VERB("pause", "A...", 1, MANY, "let agents stand still", NULL, verb_pause),
    VERB("resume", "A...", 1, MANY, "let paused or suspended agents go on", NULL, verb_resume),
    VERB("suspend", "A...", 1, MANY, "save agents with their memory and stop them", NULL,
         verb_suspend),
    VERB("wait", "A", 1, 1, "wait for a state", wait_flags, verb_wait),
    VERB("snapshot create", "A", 1, 1, "save an agent's state", snapshot_flags,
         verb_snapshot_create),
    VERB("snapshot ls", "", 0, 0, "list snapshots", NULL, verb_snapshot_ls),
    VERB("snapshot inspect", "SNAPSHOT...", 1, MANY, "everything about snapshots", NULL,
         verb_snapshot_inspect),
    VERB("snapshot rm", "SNAPSHOT...", 1, MANY, "remove snapshots", rm_flags, verb_snapshot_rm),
    VERB("restore", "SNAPSHOT | A --claim", 1, 1, "an agent from a snapshot", restore_flags,
         verb_restore),
    VERB("fork", "A|SNAPSHOT", 1, 1, "copies of an agent, memory included", fork_flags, verb_fork),
    VERB("teleport", "A NODE", 2, 2, "move an agent to another node", teleport_flags,
         verb_teleport),
    VERB("image build", "NAME", 1, 1, "build an image from Debian packages", build_flags,
         verb_image_build),
    VERB("image ls", "", 0, 0, "list images", NULL, verb_image_ls),
    VERB("image inspect", "NAME...", 1, MANY, "everything about images", arch_flags,
         verb_image_inspect),
    VERB("image rm", "NAME...", 1, MANY, "remove images", arch_flags, verb_image_rm),
    VERB("node ls", "", 0, 0, "list nodes", NULL, verb_node_ls),
    VERB("node inspect", "NODE...", 1, MANY, "everything about nodes", NULL, verb_node_inspect),
    VERB("events", "", 0, 0, "what happens, as it happens", events_flags, verb_events),
    {.name = "ops ls",
     .words = "",
     .summary = "list operations",
     .is_default = true,
     .run = verb_ops_ls},
    VERB("ops show", "ID", 1, 1, "one operation", NULL, verb_ops_show),
    VERB("ops wait", "ID", 1, 1, "wait for an operation's end", NULL, verb_ops_wait),
    VERB("ops cancel", "ID", 1, 1, "cancel an operation", NULL, verb_ops_cancel),
    VERB("doctor", "", 0, 0, "what this machine can do, and what mends it", NULL, verb_doctor),
    VERB("demo", "", 0, 0, "suspend, teleport and fork on this machine", demo_flags, verb_demo),
    VERB("version", "", 0, 0, "versions of client and daemon", NULL, verb_version),
    RESERVED("attach"),
    RESERVED("console"),
    RESERVED("rename"),
    RESERVED("snapshot tree"),
    RESERVED("snapshot diff"),
    RESERVED("snapshot verify"),
    RESERVED("export"),
    RESERVED("import"),
    RESERVED("node drain"),
    RESERVED("node init"),
    RESERVED("node invite"),
    RESERVED("node join"),
    RESERVED("stats"),
    RESERVED("top"),
    RESERVED("verify"),
    RESERVED("convert"),
    RESERVED("gc"),
    RESERVED("prune"),
    RESERVED("df"),
    RESERVED("bench"),
    RESERVED("completion"),
    {.name = NULL},
};

/* ---- help */

static void flags_print(const struct cli_flag *flags)
{
    for (; flags != NULL && flags->name != NULL; flags++) {
        char left[64];
        snprintf(left, sizeof(left), "%c%c%s --%s%s%s", flags->letter != 0 ? '-' : ' ',
                 flags->letter != 0 ? flags->letter : ' ', flags->letter != 0 ? "," : " ",
                 flags->name, flags->value != NULL ? " " : "",
                 flags->value != NULL ? flags->value : "");
        printf("  %-24s %s\n", left, flags->help);
    }
}

static void verb_help(const struct cli_verb *verb)
{
    printf("kelpie %s: %s\n\nUsage: kelpie %s%s %s\n", verb->name, verb->summary, verb->name,
           verb->flags != NULL ? " [flags]" : "", verb->words);
    if (verb->flags != NULL)
        printf("\nFlags:\n");
    flags_print(verb->flags);
    printf("\nFlags of every verb:\n");
    flags_print(cli_global_flags);
}

void cli_help(const struct cli_args *args)
{
    if (args->verb != NULL && args->verb->summary != NULL) {
        verb_help(args->verb);
        return;
    }
    size_t group = args->group != NULL ? strlen(args->group) : 0;
    printf(
        "Kelpie runs agents in virtual machines that can be suspended, forked and teleported.\n\n"
        "Usage: kelpie [flags] VERB ...\n\nVerbs:\n");
    for (const struct cli_verb *verb = cli_verbs; verb->name != NULL; verb++)
        if (verb->summary != NULL && (group == 0 || (strncmp(verb->name, args->group, group) == 0 &&
                                                     verb->name[group] == ' ')))
            printf("  %-18s %s\n", verb->name, verb->summary);
    printf("\nFlags of every verb:\n");
    flags_print(cli_global_flags);
    printf("\n`kelpie VERB --help` says more of one.\n");
}
