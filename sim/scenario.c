/* SPDX-License-Identifier: Apache-2.0 */
/* What a run does: two nodes over one registry and one store, an agent's life across them, and what
 * the plan breaks. Every answer is checked against what must be true (DESIGN 2); that no two copies
 * run is checked in the guests (hypervisor.c). */
#include <string.h>

#include "base/fmt.h"
#include "host.h"

#define AGENT "agent"
#define FILL_PAGES (SIM_MIB / SIM_PAGE_SIZE) /* of @fill 1 */
#define CONVERGE_NS (300 * KLP_SECOND)       /* after the last fault all is well again */
#define LOOK_NS (500 * KLP_MS)

struct story {
    struct host hosts[2];
    struct sim_registry_rows *rows;
    bool crashes; /* a VM died on the way */
};

static struct host *other_of(struct story *story, const struct host *host)
{
    return &story->hosts[1 - host->index];
}

/* Memory is what @fill left, byte for byte. *out_lost: the daemon died instead. */
static bool memory_is_whole(const struct story *story, struct host *host, const char *agent)
{
    const char *const argv[] = {"@check", NULL};
    char expected[64];
    struct errand errand = {.host = host, .agent = agent, .argv = argv};
    klp_format(expected, sizeof(expected), "pages=%u bad=0\n", FILL_PAGES);
    host_exec(&errand);
    if (!host_expect(&errand))
        return false;
    if (story->crashes && strcmp(errand.text, "pages=0 bad=0\n") == 0)
        return true; /* it had no snapshot yet, and was booted anew */
    if (strcmp(errand.text, expected) != 0)
        sim_fail(SIM_SAFETY, "memory of %s on node %s: %s", agent, host->name, errand.text);
    return strcmp(errand.text, expected) == 0;
}

static bool verb(struct host *host, const char *what, const char *agent)
{
    struct errand errand = {.host = host, .agent = agent, .what = what};
    host_verb(&errand);
    return host_expect(&errand);
}

static bool runs_at(struct host *host)
{
    const char *const argv[] = {"@count", NULL};
    struct errand errand = {.host = host, .agent = AGENT, .argv = argv, .timeout_ms = 5000};
    host_exec(&errand);
    return kelpie_is_ok(errand.outcome);
}

static bool one_copy(struct story *story, struct host *here)
{
    bool fine = runs_at(here) && !runs_at(other_of(story, here));
    if (!fine)
        sim_fail(SIM_SAFETY, "the agent does not run at its owner, or runs elsewhere too");
    return fine;
}

/* ---- after a fault */

static bool hosts_mend(struct story *story)
{
    for (size_t i = 0; i < 2; i++) {
        struct host *host = &story->hosts[i];
        if (!host->domain->crashed)
            continue;
        sim_park(sim_world->now_ns + sim_world->plan.restart_ms * KLP_MS, "a daemon's restart");
        if (!host_open(host))
            return false;
    }
    return true;
}

/* Who owns the agent, once it runs. An agent that was parked waits for an operator. */
static struct host *owner_find(struct story *story)
{
    uint64_t until_ns = sim_world->now_ns + CONVERGE_NS;
    struct errand look = {.host = &story->hosts[0], .agent = AGENT};
    while (sim_world->now_ns < until_ns) {
        look.host = &story->hosts[0];
        host_look(&look);
        if (!host_expect(&look))
            return NULL;
        struct host *owner = &story->hosts[strcmp(look.info.node, "a") == 0 ? 0 : 1];
        if (look.info.state == KLP_AGENT_RUNNING && runs_at(owner))
            return owner;
        story->crashes = story->crashes || look.info.state == KLP_AGENT_CRASHED;
        if (look.info.state == KLP_AGENT_PARKED || look.info.state == KLP_AGENT_CRASHED) {
            struct errand start = {.host = owner, .agent = AGENT, .what = "start"};
            host_verb(&start);
        }
        sim_park(sim_world->now_ns + LOOK_NS, "the nodes to settle");
    }
    sim_fail(SIM_LIVENESS, "the agent is still %s on node '%s' (epoch %llu): %s",
             klp_agent_state_name(look.info.state), look.info.node,
             (unsigned long long)look.info.epoch, look.info.reason);
    return NULL;
}

/* ---- the story */

/* From where it is to the other node. With a fault the move may fail; the agent may not. */
static struct host *move(struct story *story, struct host *from)
{
    struct errand errand = {.host = from, .agent = AGENT, .kind = KLP_OP_TELEPORT};
    struct host *to = other_of(story, from);
    uint64_t faults = sim_world->faults;
    klp_text_copy(errand.request.destination, sizeof(errand.request.destination), to->name);
    sim_world->fault.on = true;
    host_operate(&errand);
    sim_world->fault.on = false;
    sim_stops_end();
    sim_net_heal();
    if (sim_world->faults == faults) {
        if (!host_expect(&errand))
            return NULL;
        sim_world->teleports++;
        return one_copy(story, to) ? to : NULL;
    }
    if (!hosts_mend(story))
        return NULL;
    struct host *owner = owner_find(story);
    if (owner == NULL || !one_copy(story, owner))
        return NULL;
    sim_world->teleports += owner == to;
    return owner;
}

static bool rest_and_fork(const struct story *story, struct host *host)
{
    struct errand suspend = {.host = host, .agent = AGENT, .kind = KLP_OP_SUSPEND};
    struct errand fork = {.host = host, .agent = AGENT, .kind = KLP_OP_FORK};
    host_operate(&suspend);
    if (!host_expect(&suspend) || !verb(host, "resume", AGENT) ||
        !memory_is_whole(story, host, AGENT))
        return false;
    fork.request.count = HOST_RESULTS;
    host_operate(&fork);
    if (!host_expect(&fork))
        return false;
    for (size_t i = 0; i < HOST_RESULTS; i++)
        if (!memory_is_whole(story, host, fork.results[i]) ||
            !verb(host, "remove", fork.results[i]))
            return false;
    return true;
}

static uint64_t count_of(struct host *host)
{
    const char *const argv[] = {"@count", NULL};
    struct errand errand = {.host = host, .agent = AGENT, .argv = argv};
    uint64_t count = 0;
    host_exec(&errand);
    if (host_expect(&errand))
        KLP_IGNORE(klp_parse_u64(errand.text, strcspn(errand.text, "\n"), &count));
    return count;
}

/* A daemon that goes in order and comes back finds its agents running: they never noticed. */
static bool daemon_restart(const struct story *story, struct host *host)
{
    uint64_t before = count_of(host);
    host_close(host, false);
    sim_park(sim_world->now_ns + 3 * KLP_SECOND, "a daemon's restart");
    if (!host_open(host) || !memory_is_whole(story, host, AGENT))
        return false;
    uint64_t after = count_of(host);
    if (after < before + 2500) /* one a millisecond */
        sim_fail(SIM_SAFETY, "the agent stood still while its daemon was away: %llu, then %llu",
                 (unsigned long long)before, (unsigned long long)after);
    return after >= before + 2500;
}

static bool life(struct story *story)
{
    char seed[24];
    struct host *at = &story->hosts[0];
    klp_format(seed, sizeof(seed), "%llu", (unsigned long long)(sim_world->seed % 1000000));
    const char *const fill[] = {"@fill", "1", seed, NULL};
    struct errand create = {.host = at, .agent = AGENT};
    struct errand filled = {.host = at, .agent = AGENT, .argv = fill};
    host_create(&create);
    if (!host_expect(&create))
        return false;
    host_exec(&filled);
    if (!host_expect(&filled))
        return false;
    for (int i = 0; i < 2; i++) {
        at = move(story, at);
        if (at == NULL || !memory_is_whole(story, at, AGENT))
            return false;
    }
    return rest_and_fork(story, at) && daemon_restart(story, at) && verb(at, "remove", AGENT);
}

void sim_scenario_teleport(void *arg)
{
    struct story story = {.rows = sim_registry_rows_create()};
    (void)arg;
    for (uint32_t i = 0; i < 2; i++) {
        story.hosts[i] = (struct host){.index = i, .name = i == 0 ? "a" : "b", .rows = story.rows};
        if (!host_open(&story.hosts[i]))
            return;
    }
    if (!life(&story))
        return;
    host_close(&story.hosts[1], true);
    host_close(&story.hosts[0], true);
    sim_park(sim_world->now_ns + KLP_SECOND, "keepers that were told to end");
    sim_registry_rows_destroy(story.rows);
}
