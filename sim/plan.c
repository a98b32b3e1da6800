/* SPDX-License-Identifier: Apache-2.0 */
/* What a seed expands to: the faults of a run, told before it begins. */
#include "base/fmt.h"
#include "sim.h"

#define PLAN_TAG 0x706c616e0000ull
#define VISITS_MAX 60        /* about as many points as a daemon passes in the moves of a run */
#define RESTART_MS_MAX 40000 /* a lease and more: its VMs may have been fenced meanwhile */

static uint64_t draw(uint64_t seed, uint64_t what, uint64_t below)
{
    return sim_mix(seed, PLAN_TAG, what) % below;
}

void sim_plan_make(uint64_t seed, struct sim_plan *out)
{
    *out = (struct sim_plan){.crash = draw(seed, 0, 4) != 0,
                             .node = (uint32_t)draw(seed, 1, 2),
                             .visit = 1 + draw(seed, 2, VISITS_MAX),
                             .restart_ms = 100 + draw(seed, 3, RESTART_MS_MAX)};
    if (draw(seed, 4, 4) == 0)
        out->restart_ms += SIM_LONG_AWAY_MS;
}

void sim_plan_text(const struct sim_plan *plan, char *out, size_t capacity)
{
    if (!plan->crash)
        klp_format(out, capacity, "nodes=2 agents=1 faults=none");
    else
        klp_format(out, capacity,
                   "nodes=2 agents=1 faults=crash-daemon node=%s visit=%llu restart_ms=%llu",
                   plan->node == 0 ? "a" : "b", (unsigned long long)plan->visit,
                   (unsigned long long)plan->restart_ms);
}
