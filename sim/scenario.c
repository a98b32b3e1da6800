/* SPDX-License-Identifier: Apache-2.0 */
/* A run in five phases: (1) nodes open, agents are created; (2) things break while their operators
 * ask for moves and all else, and daemons that died come back; (3) nothing breaks any more; (4) all
 * comes to rest: each agent runs at its owner, or an operator can bring it up; (5) all is taken
 * down, and nothing may be left. */
#include <string.h>

#include "base/fmt.h"
#include "story.h"

#define KEEPER_ORDER_NS (120 * KLP_SECOND) /* the longest a keeper is at one order */

/* ---- daemons that die come back */

static bool host_reopen(struct host *host)
{
    struct errand errand;
    bool broken = sim_world->fault.on;
    uint64_t faults = sim_world->faults;
    if (host_open(host, &errand))
        return true;
    if (!broken && faults == sim_world->faults && !errand.lost)
        host_expect(&errand);
    return false;
}

struct janitor {
    struct story *story;
    struct host *host;
};

static void janitor_run(void *arg)
{
    const struct janitor *janitor = arg;
    struct host *host = janitor->host;
    while (sim_world->verdict == SIM_PASS) {
        if (!host_is_up(host)) {
            host->node = NULL;
            sim_park(sim_world->now_ns + sim_world->plan.node[host->index].restart_ms * KLP_MS,
                     "a daemon's restart");
            host_reopen(host);
        } else if (janitor->story->healing) {
            break;
        } else {
            sim_wait_source(&host->alive->end, SIM_NEVER, "a daemon's end");
        }
    }
}

static void fiber_wait(struct sim_fiber *fiber)
{
    while (!fiber->ended)
        sim_wait_source(&fiber->end, SIM_NEVER, "an operator");
}

static struct sim_fiber *fiber_start(const char *name, void (*run)(void *), void *arg)
{
    return sim_fiber_start(sim_world->envs[0], sim_world->world_domain, name, run, arg);
}

/* ---- phases */

static bool nodes_open(struct story *story)
{
    static const char *const names[SIM_NODES_MAX] = {"a", "b", "c", "d"};
    story->host_count = sim_world->plan.nodes;
    for (uint32_t i = 0; i < story->host_count; i++) {
        struct host *host = &story->hosts[i];
        *host = (struct host){.index = i, .name = names[i], .rows = story->rows};
        if (!host_reopen(host))
            return false;
    }
    return true;
}

static bool agents_create(struct story *story)
{
    story->agent_count = sim_world->plan.agents;
    for (uint32_t i = 0; i < story->agent_count; i++) {
        struct agent *agent = &story->agents[i];
        struct host *host = &story->hosts[i % story->host_count];
        *agent = (struct agent){.story = story, .index = i, .owner = host, .booted = host};
        klp_format(agent->name, sizeof(agent->name), "agent-%u", i);
        struct errand create = {.host = host, .agent = agent->name};
        host_create(&create);
        if (!host_expect(&create))
            return false;
        if (!agent_fill(agent, host)) {
            sim_fail(SIM_LIVENESS, "%s does not answer", agent->name);
            return false;
        }
    }
    return true;
}

/* The phase in which things go wrong. */
static bool agents_work(struct story *story)
{
    struct janitor janitors[SIM_NODES_MAX];
    sim_world->fault.on = true;
    for (uint32_t i = 0; i < story->host_count; i++) {
        janitors[i] = (struct janitor){story, &story->hosts[i]};
        story->janitors[i] = fiber_start("janitor", janitor_run, &janitors[i]);
    }
    for (uint32_t i = 0; i < story->agent_count; i++)
        story->agents[i].operator_ = fiber_start("operator", workload_run, &story->agents[i]);
    for (uint32_t i = 0; i < story->agent_count; i++)
        fiber_wait(story->agents[i].operator_);
    if (!story_is_calm())
        sim_park(sim_world->now_ns + sim_world->plan.linger_ms * KLP_MS, "more to break");
    sim_world->fault.on = false;
    story->healing = true;
    sim_stops_end();
    sim_net_heal();
    for (uint32_t i = 0; i < story->host_count; i++) {
        sim_wake(&story->hosts[i].alive->end);
        fiber_wait(story->janitors[i]);
    }
    return sim_world->verdict == SIM_PASS;
}

/* A daemon that goes in order and comes back finds its agents running. */
static bool nodes_roll(struct story *story)
{
    for (uint32_t i = 0; i < story->host_count; i++) {
        host_close(&story->hosts[i], false);
        sim_park(sim_world->now_ns + KLP_SECOND, "a daemon's restart");
        if (!host_reopen(&story->hosts[i]))
            return false;
    }
    return true;
}

static bool agents_settle(struct story *story)
{
    for (uint32_t i = 0; i < story->agent_count; i++) {
        struct agent *agent = &story->agents[i];
        bool gone;
        struct host *owner = agent_bring(agent, &gone);
        if (owner == NULL && gone && !agent->may_be_gone)
            sim_fail(SIM_SAFETY, "%s is lost: nobody removed it", agent->name);
        if (owner != NULL && !agent_memory_check(agent, owner, agent->name))
            sim_fail(SIM_LIVENESS, "%s does not answer on node %s", agent->name, owner->name);
        if (sim_world->verdict != SIM_PASS)
            return false;
    }
    return true;
}

/* ---- taking down */

static bool is_main(const struct story *story, const char *name)
{
    for (uint32_t i = 0; i < story->agent_count; i++)
        if (strcmp(story->agents[i].name, name) == 0)
            return true;
    return false;
}

#define ROLL_MAX 64
struct names {
    size_t count;
    char name[ROLL_MAX][KLP_NAME_SIZE], node[ROLL_MAX][KLP_NAME_SIZE];
};

static void name_take(void *arg, const struct klp_agent_info *agent)
{
    struct names *names = arg;
    if (names->count == ROLL_MAX)
        return;
    klp_text_copy(names->name[names->count], KLP_NAME_SIZE, agent->name);
    klp_text_copy(names->node[names->count++], KLP_NAME_SIZE, agent->node);
}

/* Copies that nobody waited for, and, if the plan says so, the agents too. */
static bool agents_remove(struct story *story)
{
    struct names names = {.count = 0};
    if (!host_agents(&story->hosts[0], name_take, &names))
        return false;
    for (size_t i = 0; i < names.count; i++) {
        if (is_main(story, names.name[i]) && !sim_world->plan.emptied)
            continue;
        for (uint32_t at = 0; at < story->host_count; at++) {
            struct errand errand = {
                .host = &story->hosts[at], .agent = names.name[i], .what = "remove"};
            if (strcmp(story->hosts[at].name, names.node[i]) != 0)
                continue;
            host_verb(&errand);
            if (!host_expect(&errand))
                return false;
        }
    }
    return true;
}

/* Who could not end something asks again with each lease, as long as its keeper needs. */
static void sweeps_wait(struct story *story)
{
    uint64_t lease_ns = sim_world->plan.lease_ttl_ms * KLP_MS;
    uint64_t until_ns = sim_world->now_ns + KEEPER_ORDER_NS + lease_ns;
    sim_park(sim_world->now_ns + lease_ns / 2, "sweeps");
    for (uint32_t i = 0; i < story->host_count; i++)
        while (sim_world->now_ns < until_ns && host_is_ending_vms(&story->hosts[i]))
            sim_park(sim_world->now_ns + lease_ns / 3, "sweeps");
}

void sim_scenario_teleport(void *arg)
{
    struct story story = {.rows = sim_registry_rows_create()};
    (void)arg;
    bool well = nodes_open(&story) && agents_create(&story) && agents_work(&story) &&
                (!sim_world->plan.rolling || nodes_roll(&story)) && agents_settle(&story) &&
                agents_remove(&story);
    if (well && !story_is_calm())
        sweeps_wait(&story);
    for (uint32_t i = story.host_count; well && i-- > 0;)
        host_close(&story.hosts[i], true);
    if (!well) { /* others wait for what lies in this frame: it stays until they are gone */
        sim_world->over = true;
        sim_park(SIM_NEVER, "the run's end");
    }
    sim_park(sim_world->now_ns + KLP_SECOND, "keepers that were told to end");
    sim_registry_rows_destroy(story.rows);
}
