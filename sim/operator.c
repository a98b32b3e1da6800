/* SPDX-License-Identifier: Apache-2.0 */
/* What an operator knows and does: where an agent is, to bring it up again, to look at its memory.
 */
#include <string.h>

#include "base/fmt.h"
#include "story.h"

#define FILL_PAGES (SIM_MIB / SIM_PAGE_SIZE) /* of @fill 1 */
#define PAUSE_NS (100 * KLP_MS)              /* before it asks again; doubles */
#define PAUSE_MAX_NS (8 * KLP_SECOND)
#define PATIENCE_NS (30 * KLP_SECOND)  /* while things break */
#define CONVERGE_NS (600 * KLP_SECOND) /* once nothing breaks any more all is well again */
#define EXEC_MS 10000

static struct host *host_named(struct story *story, const char *name)
{
    for (uint32_t i = 0; i < story->host_count; i++)
        if (strcmp(story->hosts[i].name, name) == 0)
            return &story->hosts[i];
    return NULL;
}

static void owner_note(struct agent *agent, const struct host *owner)
{
    if (agent->owner != NULL && agent->owner != owner)
        sim_world->teleports++;
    agent->owner = owner;
}

/* By any node: each answers for all. */
static bool look(struct agent *agent, struct klp_agent_info *out, bool *out_gone)
{
    struct story *story = agent->story;
    *out_gone = false;
    for (uint32_t i = 0; i < story->host_count; i++) {
        struct host *host = &story->hosts[(agent->index + i) % story->host_count];
        struct errand errand = {.host = host, .agent = agent->name};
        if (!host_is_up(host))
            continue;
        host_look(&errand);
        *out_gone = errand.code == KELPIE_E_NOT_FOUND;
        *out = errand.info;
        if (*out_gone || kelpie_is_ok(errand.outcome))
            return !*out_gone;
    }
    return false;
}

struct host *agent_look(struct agent *agent, struct klp_agent_info *out)
{
    bool gone;
    if (!look(agent, out, &gone))
        return NULL;
    struct host *owner = host_named(agent->story, out->node);
    owner_note(agent, owner);
    return owner;
}

/* The verb that brings it up from there; NULL = it is up, or somebody is at it. */
static const char *verb_for(enum klp_agent_state state)
{
    switch (state) {
    case KLP_AGENT_CREATED:
    case KLP_AGENT_STOPPED:
    case KLP_AGENT_CRASHED:
    case KLP_AGENT_SUSPENDED:
    case KLP_AGENT_PARKED:
        return "start";
    case KLP_AGENT_PAUSED:
        return "resume";
    default:
        return NULL;
    }
}

static bool answers(struct host *host, const char *name)
{
    const char *const argv[] = {"@count", NULL};
    struct errand errand = {.host = host, .agent = name, .argv = argv, .timeout_ms = EXEC_MS};
    host_exec(&errand);
    return kelpie_is_ok(errand.outcome);
}

/* One that rests must say why, unless it was told to. */
static void rest_check(const struct agent *agent, const struct klp_agent_info *info)
{
    bool owes = info->state == KLP_AGENT_CRASHED || info->state == KLP_AGENT_PARKED;
    if (owes && info->reason[0] == 0)
        sim_fail(SIM_SAFETY, "%s is %s without a reason", agent->name,
                 klp_agent_state_name(info->state));
}

static bool bring_step(struct agent *agent, struct host *owner, const struct klp_agent_info *info)
{
    const char *what = verb_for(info->state);
    rest_check(agent, info);
    if (info->state == KLP_AGENT_RUNNING)
        return answers(owner, agent->name);
    if (what == NULL)
        return false;
    if (info->state != KLP_AGENT_SUSPENDED && info->state != KLP_AGENT_PAUSED &&
        info->state != KLP_AGENT_PARKED)
        agent->may_be_empty = true;
    struct errand errand = {.host = owner, .agent = agent->name, .what = what};
    host_verb(&errand);
    return kelpie_is_ok(errand.outcome);
}

struct host *agent_bring(struct agent *agent, bool *out_gone)
{
    struct klp_agent_info info = {.state = KLP_AGENT_NONE};
    uint64_t pause_ns = PAUSE_NS, begun_ns = sim_world->now_ns;
    bool gone = false, healing = false;
    for (;;) {
        if (agent->story->healing && !healing) {
            healing = true; /* from now on it has to come true */
            begun_ns = sim_world->now_ns;
        }
        struct host *owner = NULL;
        if (look(agent, &info, &gone) && (owner = host_named(agent->story, info.node)) != NULL) {
            owner_note(agent, owner);
            if (bring_step(agent, owner, &info))
                return owner;
        }
        bool late =
            sim_world->now_ns - begun_ns > (agent->story->healing ? CONVERGE_NS : PATIENCE_NS);
        if (gone || late || sim_world->verdict != SIM_PASS)
            break;
        sim_park(sim_world->now_ns + pause_ns, "an agent to settle");
        pause_ns = pause_ns < PAUSE_MAX_NS ? 2 * pause_ns : PAUSE_MAX_NS;
    }
    if (out_gone != NULL)
        *out_gone = gone;
    if (agent->story->healing && !gone)
        sim_fail(SIM_LIVENESS, "%s is still %s on node '%s' (epoch %llu): %s", agent->name,
                 klp_agent_state_name(info.state), info.node, (unsigned long long)info.epoch,
                 info.reason);
    return NULL;
}

/* ---- memory */

bool agent_fill(struct agent *agent, struct host *host)
{
    char seed[24];
    klp_format(seed, sizeof(seed), "%llu",
               (unsigned long long)(sim_world->seed + agent->index) % 1000000);
    const char *const argv[] = {"@fill", "1", seed, NULL};
    struct errand errand = {.host = host, .agent = agent->name, .argv = argv};
    host_exec(&errand);
    return kelpie_is_ok(errand.outcome);
}

bool agent_memory_check(const struct agent *agent, struct host *host, const char *name)
{
    const char *const argv[] = {"@check", NULL};
    char whole[64];
    struct errand errand = {.host = host, .agent = name, .argv = argv, .timeout_ms = EXEC_MS};
    klp_format(whole, sizeof(whole), "pages=%u bad=0\n", FILL_PAGES);
    host_exec(&errand);
    if (!kelpie_is_ok(errand.outcome))
        return false;
    if (strcmp(errand.text, whole) == 0 ||
        (agent->may_be_empty && strcmp(errand.text, "pages=0 bad=0\n") == 0))
        return true;
    sim_fail(SIM_SAFETY, "memory of %s on node %s: %s", name, host->name, errand.text);
    return false;
}
