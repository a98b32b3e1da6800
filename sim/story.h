/* SPDX-License-Identifier: Apache-2.0 */
/* What a run is about: hosts, agents, and an operator for each agent who asks for one thing after
 * the other, whatever breaks. */
#ifndef SIM_STORY_H
#define SIM_STORY_H

#include "host.h"

struct story;
struct agent {
    struct story *story;
    uint32_t index;
    char name[KLP_NAME_SIZE];
    uint32_t step;
    const struct host *owner;  /* as seen last; moves are counted by it */
    const struct host *booted; /* what it was booted on: its memory fits where that fits */
    bool may_be_empty;         /* it was booted anew, or came as a checkpoint: no memory */
    bool may_be_gone;          /* its removal was asked for */
    struct sim_fiber *operator_;
};

struct story {
    struct host hosts[SIM_NODES_MAX];
    uint32_t host_count;
    struct agent agents[SIM_AGENTS_MAX];
    uint32_t agent_count;
    struct sim_registry_rows *rows;
    struct sim_fiber *janitors[SIM_NODES_MAX];
    bool healing; /* nothing breaks any more */
    bool over;    /* a verdict was given */
};

/* Nothing has gone wrong in this run: every answer has to be the right one. */
static inline bool story_is_calm(void)
{
    return sim_world->faults == 0;
}

/* ---- operator.c: what can be asked for an agent */
/* Its owner, as the registry says; NULL = nobody could tell, or it is gone. Counts moves. */
struct host *agent_look(struct agent *agent, struct klp_agent_info *out);
/* The same, started first if it rests. *out_gone may be NULL. */
struct host *agent_bring(struct agent *agent, bool *out_gone);
bool agent_fill(struct agent *agent, struct host *host);
/* What @fill left is there, byte for byte; `name`: the agent, or a copy of it. False when it could
 * not be asked; wrong memory is a verdict. */
bool agent_memory_check(const struct agent *agent, struct host *host, const char *name);

/* ---- workload.c */
/* A fiber: the steps of one agent. */
void workload_run(void *agent);

#endif
