/* SPDX-License-Identifier: Apache-2.0 */
/* Small scope, all of it: a few short plans, and in each every single fault and every pair of
 * faults at every decision of the kinds that take part. What a pair can do to a move, some pair
 * here does. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "sim.h"

#define NONE UINT64_MAX

struct canonical {
    const char *name;
    uint32_t nodes, agents;
    const char *script[SIM_AGENTS_MAX];
    uint32_t steps[SIM_AGENTS_MAX]; /* words of the script */
    uint64_t restart_ms;
    bool mixed; /* the second node is of another architecture */
};

#define SOON_MS 500    /* a daemon that died is back before anybody's patience ends */
#define LATE_MS 150000 /* ... and after */

static const struct canonical canonicals[] = {
    {"move", 2, 1, {"move"}, {1}, SOON_MS, false},
    {"move-late", 2, 1, {"move"}, {1}, LATE_MS, false},
    {"there-and-back", 2, 1, {"move move"}, {2}, SOON_MS, false},
    {"crossing", 2, 2, {"move", "move"}, {1, 1}, SOON_MS, false},
    {"rest", 2, 1, {"suspend"}, {1}, SOON_MS, false},
    {"fork", 2, 1, {"fork"}, {1}, SOON_MS, false},
    {"copy", 2, 1, {"copy"}, {1}, SOON_MS, false},
    {"cancel", 2, 1, {"cancel"}, {1}, SOON_MS, false},
    {"rival", 3, 1, {"rival"}, {1}, SOON_MS, false},
    {"cross-arch", 2, 1, {"checkpoint"}, {1}, SOON_MS, true},
};

static void plan_fill(const struct canonical *canonical, struct sim_plan *out)
{
    *out = (struct sim_plan){
        .nodes = canonical->nodes, .agents = canonical->agents, .lease_ttl_ms = 30000};
    for (uint32_t i = 0; i < canonical->nodes; i++) {
        bool other = canonical->mixed && i == 1;
        out->node[i].facts = SIM_FACTS(other ? KLP_ARCH_AARCH64 : KLP_ARCH_X86_64);
        out->node[i].restart_ms = canonical->restart_ms;
    }
    for (uint32_t i = 0; i < canonical->agents; i++) {
        out->script[i] = canonical->script[i];
        out->steps[i] = canonical->steps[i];
    }
}

struct sweep {
    uint64_t seed;
    struct sim_order order;
    struct sim_result *result;
    uint64_t runs, hash;
};

/* True = it went well. `order` is as it was run. */
static bool run_with(struct sweep *sweep, uint64_t first, uint64_t second)
{
    sweep->order.choice.points[0] = first;
    sweep->order.choice.points[1] = second;
    sim_run(sweep->seed, &sweep->order, sweep->result);
    sweep->hash = sim_mix(sweep->hash, sweep->result->hash, sweep->runs++);
    return sweep->result->verdict == SIM_PASS;
}

/* A second fault is one that comes up behind the first: what the first made impossible is not
 * tried. */
static bool pairs_sweep(struct sweep *sweep, uint64_t first, uint64_t points)
{
    for (uint64_t second = first + 1; second < points; second++)
        if (!run_with(sweep, first, second))
            return false;
    return true;
}

static bool plan_sweep(struct sweep *sweep, bool singles_only, uint64_t *out_points)
{
    if (!run_with(sweep, NONE, NONE))
        return false;
    uint64_t points = *out_points = sweep->result->points;
    for (uint64_t first = 0; first < points; first++) {
        if (!run_with(sweep, first, NONE))
            return false;
        if (!singles_only && !pairs_sweep(sweep, first, sweep->result->points))
            return false;
    }
    return true;
}

static bool canonical_sweep(struct sweep *sweep, const struct canonical *canonical,
                            bool singles_only)
{
    struct sim_plan plan;
    uint64_t points = 0;
    plan_fill(canonical, &plan);
    sweep->order.plan = &plan;
    sweep->runs = 0;
    bool clean = plan_sweep(sweep, singles_only, &points);
    printf("%-16s points=%" PRIu64 " runs=%" PRIu64 " %s\n", canonical->name, points, sweep->runs,
           clean ? "clean" : sim_verdict_name(sweep->result->verdict));
    if (!clean) {
        printf("at points %" PRIu64 " and %" PRIu64 ": %s\n", sweep->order.choice.points[0],
               sweep->order.choice.points[1], sweep->result->why);
        sim_shrink(sweep->seed, &sweep->order, sweep->result);
    }
    fflush(stdout);
    return clean;
}

bool sim_plan_is_canonical(const char *name)
{
    for (unsigned i = 0; i < KLP_COUNT(canonicals); i++)
        if (strcmp(canonicals[i].name, name) == 0)
            return true;
    return false;
}

enum sim_verdict sim_exhaustive(uint64_t seed, const char *plan, bool singles_only,
                                uint64_t *out_hash)
{
    struct sweep sweep = {.seed = seed,
                          .order = {.scenario = sim_scenario_teleport,
                                    .choice = {.mode = SIM_FAULTS_POINTS},
                                    .quiet = true},
                          .result = calloc(1, sizeof(*sweep.result))};
    enum sim_verdict verdict = SIM_PASS;
    uint64_t total = 0;
    KLP_ASSERT(sweep.result != NULL);
    for (unsigned i = 0; i < KLP_COUNT(canonicals); i++) {
        if (plan != NULL && strcmp(plan, canonicals[i].name) != 0)
            continue;
        bool clean = canonical_sweep(&sweep, &canonicals[i], singles_only);
        total += sweep.runs;
        if (!clean && verdict == SIM_PASS)
            verdict = sweep.result->verdict;
    }
    printf("runs=%" PRIu64 "\n", total);
    *out_hash = sweep.hash;
    free(sweep.result);
    return verdict;
}
