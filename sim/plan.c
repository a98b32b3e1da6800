/* SPDX-License-Identifier: Apache-2.0 */
/* What a seed expands to, told before the run begins. */
#include "base/fmt.h"
#include "sim.h"

#define PLAN_TAG 0x706c616e0000ull
#define RESTART_MS_MAX 40000 /* a lease and more: its VMs may have been fenced meanwhile */
#define LONG_AWAY_MS 150000  /* longer than anybody waits for a node that is gone */

static uint64_t draw(uint64_t seed, uint64_t what, uint64_t below)
{
    return sim_mix(seed, PLAN_TAG, what) % below;
}

void sim_plan_make(uint64_t seed, struct sim_plan *out)
{
    *out = (struct sim_plan){.nodes = 2, .restart_ms = 100 + draw(seed, 3, RESTART_MS_MAX)};
    if (draw(seed, 4, 4) == 0)
        out->restart_ms += LONG_AWAY_MS;
}

void sim_plan_text(const struct sim_plan *plan, const struct sim_faults *faults, char *out,
                   size_t capacity)
{
    size_t at = klp_format(out, capacity, "nodes=%u restart_ms=%llu faults<=%u", plan->nodes,
                           (unsigned long long)plan->restart_ms, faults->most);
    for (unsigned kind = 0; faults->most > 0 && kind < SIM_FAULT_COUNT; kind++)
        if (faults->threshold[kind] != 0 && at < capacity)
            at += klp_format(out + at, capacity - at, " %s:%u", sim_fault_name(kind),
                             faults->threshold[kind]);
}
