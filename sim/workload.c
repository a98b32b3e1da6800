/* SPDX-License-Identifier: Apache-2.0 */
/* What an operator asks for, drawn from the seed. As long as nothing has gone wrong in the run
 * every answer must be the right one; afterwards any is allowed that leaves the agent whole. */
#include <string.h>

#include "base/fmt.h"
#include "story.h"

#define WORK_TAG 0x776f726bull
#define THINK_MS 400
#define CANCEL_MS 60
#define REMOVE_MS 60

/* X(name, share of 100): most are moves. */
#define STEP_MAP(X)                                                                                \
    X(checkpoint, 0)                                                                               \
    X(move, 57)                                                                                    \
    X(suspend, 5)                                                                                  \
    X(fork, 5)                                                                                     \
    X(copy, 4)                                                                                     \
    X(restart, 4)                                                                                  \
    X(hold, 2)                                                                                     \
    X(cancel, 6)                                                                                   \
    X(repeat, 4)                                                                                   \
    X(to_itself, 2)                                                                                \
    X(by_another, 3)                                                                               \
    X(rival, 5)                                                                                    \
    X(remove, 3)

/* Keyed by agent, step and question. */
static uint64_t draw(const struct agent *agent, uint64_t question, uint64_t below)
{
    return sim_mix(sim_world->seed ^ WORK_TAG, (uint64_t)agent->index << 32 | agent->step,
                   question) %
           below;
}

static bool must(const struct errand *errand)
{
    return !story_is_calm() || host_expect(errand);
}

/* Nothing went wrong, so this had to be refused, and with this code. */
static bool must_refuse(const struct errand *errand, enum kelpie_code code)
{
    if (!story_is_calm() || (errand->outcome.kind == KELPIE_FAIL && errand->code == code))
        return true;
    sim_fail(SIM_SAFETY, "%s of %s on node %s was not refused as %s: %s", errand->what,
             errand->agent, errand->host->name, kelpie_code_name(code),
             kelpie_is_ok(errand->outcome) ? "it was done" : errand->why);
    return false;
}

/* Where it is now: RUNNING there, or wherever a fault left it. */
static bool must_run_at(struct agent *agent, const struct host *host)
{
    struct klp_agent_info info;
    struct host *owner = agent_look(agent, &info);
    if (!story_is_calm() || (owner == host && info.state == KLP_AGENT_RUNNING))
        return true;
    sim_fail(SIM_SAFETY, "%s is not running on node %s, but %s on node %s", agent->name, host->name,
             owner != NULL ? klp_agent_state_name(info.state) : "nowhere",
             owner != NULL ? owner->name : "none");
    return false;
}

static struct host *other_host(struct agent *agent, const struct host *host, uint64_t question)
{
    struct story *story = agent->story;
    uint32_t away = 1 + (uint32_t)draw(agent, question, story->host_count - 1);
    return &story->hosts[(host->index + away) % story->host_count];
}

static struct errand verb(struct host *host, const char *name, const char *what)
{
    struct errand errand = {.host = host, .agent = name, .what = what};
    host_verb(&errand);
    return errand;
}

static struct errand teleport(const struct agent *agent, struct host *from, const struct host *to)
{
    struct errand errand = {.host = from, .agent = agent->name, .kind = KLP_OP_TELEPORT};
    klp_text_copy(errand.request.destination, sizeof(errand.request.destination), to->name);
    return errand;
}

static bool same_release(const char *a, const char *b)
{
    const char *patch = strrchr(a, '.');
    size_t size = patch != NULL ? (size_t)(patch - a) : strlen(a);
    return strncmp(a, b, size) == 0 && b[size] == '.';
}

static bool can_take_memory(const struct agent *agent, const struct host *to)
{
    const struct sim_facts *need = &sim_world->plan.node[agent->booted->index].facts;
    const struct sim_facts *have = &sim_world->plan.node[to->index].facts;
    return need->arch == have->arch && (need->cpu & ~have->cpu) == 0 &&
           same_release(need->version, have->version);
}

/* ---- steps: `at` is where the agent runs */

/* Moves to where memory cannot go are asked for as well: refused, before anything was touched. */
static void move_to(struct agent *agent, struct host *at, struct host *to, bool checkpoint)
{
    bool fits = can_take_memory(agent, to);
    struct errand errand = teleport(agent, at, to);
    errand.request.checkpoint = checkpoint;
    if (errand.request.checkpoint)
        agent->may_be_empty = true;
    host_operate(&errand);
    if (!fits && !errand.request.checkpoint) {
        if (must_refuse(&errand, KELPIE_E_INCOMPATIBLE))
            must_run_at(agent, at);
        return;
    }
    if (errand.request.checkpoint && kelpie_is_ok(errand.outcome))
        agent->booted = to;
    if (must(&errand) && must_run_at(agent, to) && draw(agent, 3, 2) == 0)
        agent_memory_check(agent, to, agent->name);
}

static void step_move(struct agent *agent, struct host *at)
{
    struct host *to = other_host(agent, at, 1);
    move_to(agent, at, to, draw(agent, 2, can_take_memory(agent, to) ? 8 : 2) == 0);
}

/* In a script; drawn moves are checkpoints now and then. */
static void step_checkpoint(struct agent *agent, struct host *at)
{
    move_to(agent, at, other_host(agent, at, 1), true);
}

static void step_suspend(struct agent *agent, struct host *at)
{
    struct errand suspend = {.host = at, .agent = agent->name, .kind = KLP_OP_SUSPEND};
    host_operate(&suspend);
    if (!must(&suspend) || !kelpie_is_ok(suspend.outcome))
        return;
    sim_park(sim_world->now_ns + draw(agent, 1, THINK_MS) * KLP_MS, "an operator's thoughts");
    struct errand resume = verb(at, agent->name, "resume");
    if (must(&resume) && kelpie_is_ok(resume.outcome))
        agent_memory_check(agent, at, agent->name);
}

/* A copy is whole, and goes. */
static void copy_check(const struct agent *agent, struct host *at, const char *name)
{
    if (agent_memory_check(agent, at, name) || !story_is_calm()) {
        struct errand gone = verb(at, name, "remove");
        must(&gone);
    } else {
        sim_fail(SIM_LIVENESS, "copy %s of %s does not answer", name, agent->name);
    }
}

static void step_fork(struct agent *agent, struct host *at)
{
    struct errand fork = {.host = at, .agent = agent->name, .kind = KLP_OP_FORK};
    fork.request.count = 1 + (uint32_t)draw(agent, 1, HOST_RESULTS);
    host_operate(&fork);
    if (!must(&fork) || !kelpie_is_ok(fork.outcome))
        return;
    for (uint32_t i = 0; i < fork.request.count; i++)
        copy_check(agent, at, fork.results[i]);
}

static void step_copy(struct agent *agent, struct host *at)
{
    struct errand snapshot = {.host = at, .agent = agent->name};
    host_snapshot(&snapshot);
    if (!must(&snapshot) || !kelpie_is_ok(snapshot.outcome))
        return;
    struct host *to = draw(agent, 1, 2) == 0 ? at : other_host(agent, at, 2);
    struct errand restore = {.host = to, .agent = snapshot.results[0], .kind = KLP_OP_RESTORE};
    klp_format(restore.request.name, sizeof(restore.request.name), "%s-copy-%u", agent->name,
               agent->step);
    host_operate(&restore);
    if (!can_take_memory(agent, to))
        must_refuse(&restore, KELPIE_E_INCOMPATIBLE);
    else if (must(&restore) && kelpie_is_ok(restore.outcome))
        copy_check(agent, to, restore.request.name);
}

static void step_restart(struct agent *agent, struct host *at)
{
    agent->may_be_empty = true;
    struct errand stop = verb(at, agent->name, "stop");
    if (!must(&stop) || !kelpie_is_ok(stop.outcome))
        return;
    struct errand start = verb(at, agent->name, "start");
    agent->booted = at;
    if (must(&start) && kelpie_is_ok(start.outcome) && !agent_fill(agent, at) && story_is_calm())
        sim_fail(SIM_LIVENESS, "%s does not answer after its start", agent->name);
}

static void step_hold(struct agent *agent, struct host *at)
{
    struct errand pause = verb(at, agent->name, "pause");
    if (!must(&pause) || !kelpie_is_ok(pause.outcome))
        return;
    sim_park(sim_world->now_ns + draw(agent, 1, THINK_MS) * KLP_MS, "an operator's thoughts");
    struct errand resume = verb(at, agent->name, "resume");
    must(&resume);
}

/* It moved, or it did not: either way it runs. */
static void step_cancel(struct agent *agent, struct host *at)
{
    struct host *to = other_host(agent, at, 1);
    struct errand errand = teleport(agent, at, to);
    errand.cancel_ns = 1 + draw(agent, 2, CANCEL_MS * KLP_MS);
    host_operate(&errand);
    struct host *now = agent_bring(agent, NULL);
    if (!story_is_calm() || kelpie_is_unknown(errand.outcome))
        return;
    if (now != (kelpie_is_ok(errand.outcome) ? to : at))
        sim_fail(SIM_SAFETY, "a move of %s was cancelled and %s, but it runs on node %s",
                 agent->name, kelpie_is_ok(errand.outcome) ? "done" : "failed",
                 now != NULL ? now->name : "none");
}

static void step_repeat(struct agent *agent, struct host *at)
{
    struct host *to = other_host(agent, at, 1);
    struct errand errand = teleport(agent, at, to);
    char key[32];
    klp_format(key, sizeof(key), "%s-%u", agent->name, agent->step);
    errand.key = key;
    host_operate(&errand);
    if (errand.doubled)
        sim_fail(SIM_SAFETY, "one Idempotency-Key came to two moves of %s", agent->name);
    else if (can_take_memory(agent, to) && must(&errand))
        must_run_at(agent, to);
}

static void step_to_itself(struct agent *agent, struct host *at)
{
    struct errand errand = teleport(agent, at, at);
    host_operate(&errand);
    if (must_refuse(&errand, KELPIE_E_STATE))
        must_run_at(agent, at);
}

/* Only its owner can send it away. */
static void step_by_another(struct agent *agent, struct host *at)
{
    struct host *by = other_host(agent, at, 1);
    struct errand errand = teleport(agent, by, other_host(agent, by, 2));
    host_operate(&errand);
    if (must_refuse(&errand, KELPIE_E_CONFLICT))
        must_run_at(agent, at);
}

/* Two at once: one of them at most can be done, for the other finds the agent gone or at rest. */
static void step_rival(struct agent *agent, struct host *at)
{
    struct errand first = teleport(agent, at, other_host(agent, at, 1));
    struct errand second = teleport(agent, at, other_host(agent, at, 2));
    if (draw(agent, 3, 2) == 0)
        second.kind = KLP_OP_SUSPEND;
    first.rival = &second;
    host_operate(&first);
    if (kelpie_is_ok(first.outcome) && kelpie_is_ok(first.rival_outcome) && story_is_calm())
        sim_fail(SIM_SAFETY, "two operations on %s at once were both done", agent->name);
    else if (story_is_calm() && !kelpie_is_ok(first.rival_outcome))
        must_run_at(agent, kelpie_is_ok(first.outcome) ? other_host(agent, at, 1) : at);
}

static void step_remove(struct agent *agent, struct host *at)
{
    struct host *to = other_host(agent, at, 1);
    struct errand errand = teleport(agent, at, to);
    host_operate_begin(&errand);
    sim_park(sim_world->now_ns + draw(agent, 2, REMOVE_MS * KLP_MS), "an operator's thoughts");
    agent->may_be_gone = true;
    struct errand remove = verb(draw(agent, 3, 2) == 0 ? at : to, agent->name, "remove");
    host_wait(&errand);
    if (kelpie_is_ok(remove.outcome) && story_is_calm()) {
        struct klp_agent_info info;
        if (agent_look(agent, &info) != NULL)
            sim_fail(SIM_SAFETY, "%s was removed and is still there", agent->name);
    }
}

static const struct {
    const char *name;
    unsigned share;
    void (*run)(struct agent *agent, struct host *at);
} steps[] = {
#define STEP_ROW(name, share) {#name, share, step_##name},
    STEP_MAP(STEP_ROW)
#undef STEP_ROW
};

/* The agent->step-th word. */
static size_t step_scripted(const struct agent *agent, const char *script)
{
    for (uint32_t skip = agent->step; skip > 0; skip--)
        script += strcspn(script, " ") + 1;
    size_t i = 0, size = strcspn(script, " ");
    while (strlen(steps[i].name) != size || strncmp(steps[i].name, script, size) != 0)
        KLP_ASSERT(++i < KLP_COUNT(steps));
    return i;
}

static size_t step_choose(const struct agent *agent)
{
    const char *script = sim_world->plan.script[agent->index];
    uint64_t drawn = draw(agent, 0, 100);
    size_t i = 0;
    if (script != NULL)
        return step_scripted(agent, script);
    while (drawn >= steps[i].share)
        drawn -= steps[i++].share;
    return i;
}

static void step_run(struct agent *agent, struct host *at)
{
    size_t i = step_choose(agent);
    sim_note("step", "%s %s at %s", steps[i].name, agent->name, at->name);
    steps[i].run(agent, at);
}

void workload_run(void *arg)
{
    struct agent *agent = arg;
    uint32_t count = sim_world->plan.steps[agent->index];
    for (; agent->step < count && sim_world->verdict == SIM_PASS; agent->step++) {
        bool gone = false;
        struct host *at = agent_bring(agent, &gone);
        if (at != NULL)
            step_run(agent, at);
        if (gone)
            break;
        sim_park(sim_world->now_ns + draw(agent, 100, THINK_MS) * KLP_MS, "an operator's thoughts");
    }
}
