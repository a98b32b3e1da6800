/* SPDX-License-Identifier: Apache-2.0 */
/* What a seed expands to, told before the run begins. */
#include "base/fmt.h"
#include "sim.h"

#define PLAN_TAG 0x706c616e0000ull
#define RESTART_MS_SHORT 3000
#define STEPS_MAX 4
#define LINGER_MS_MAX 20000

static uint64_t draw(uint64_t seed, uint64_t what, uint64_t below)
{
    return sim_mix(seed, PLAN_TAG, what) % below;
}

/* How long a daemon is away: hardly, about a lease, longer than anybody waits. */
static uint64_t restart_ms(uint64_t seed, uint64_t node, uint64_t lease_ttl_ms)
{
    uint64_t extra = 100 + draw(seed, 0x200 + node, RESTART_MS_SHORT);
    switch (draw(seed, 0x210 + node, 4)) {
    case 0:
        return lease_ttl_ms + extra - RESTART_MS_SHORT / 2;
    case 1:
        return 5 * lease_ttl_ms + extra;
    default:
        return extra;
    }
}

/* Most runs have one kind of host; in some they differ, so that a memory image fits on some only.
 */
static struct sim_facts facts_make(uint64_t seed, uint64_t node)
{
    struct sim_facts facts = SIM_FACTS(KLP_ARCH_X86_64);
    if (draw(seed, 7, 4) != 0)
        return facts;
    uint64_t kind = draw(seed, 0x300 + node, 8);
    if (kind < 3)
        facts.arch = KLP_ARCH_AARCH64;
    else if (kind == 3)
        facts.cpu = 0x7;
    else if (kind == 4)
        klp_text_copy(facts.version, sizeof(facts.version), "1.1.0");
    else if (kind == 5)
        klp_text_copy(facts.version, sizeof(facts.version), "1.0.3");
    return facts;
}

void sim_plan_make(uint64_t seed, struct sim_plan *out)
{
    static const uint32_t nodes[] = {3, 3, 3, 3, 3, 4, 2, 2};
    static const uint32_t agents[] = {1, 1, 1, 2, 2, 3};
    static const uint64_t leases[] = {30000, 30000, 12000, 60000};
    *out = (struct sim_plan){.nodes = nodes[draw(seed, 1, KLP_COUNT(nodes))],
                             .agents = agents[draw(seed, 2, KLP_COUNT(agents))],
                             .lease_ttl_ms = leases[draw(seed, 3, KLP_COUNT(leases))],
                             .linger_ms = draw(seed, 4, LINGER_MS_MAX),
                             .rolling = draw(seed, 5, 4) == 0,
                             .emptied = draw(seed, 6, 2) == 0};
    for (uint32_t i = 0; i < out->nodes; i++) {
        out->node[i].facts = facts_make(seed, i);
        out->node[i].restart_ms = restart_ms(seed, i, out->lease_ttl_ms);
    }
    for (uint32_t i = 0; i < out->agents; i++)
        out->steps[i] = 1 + (uint32_t)draw(seed, 0x400 + i, STEPS_MAX) + (out->agents == 1 ? 3 : 1);
}

static size_t nodes_text(const struct sim_plan *plan, char *out, size_t capacity)
{
    size_t at = klp_format(out, capacity, "nodes=");
    for (uint32_t i = 0; i < plan->nodes && at < capacity; i++)
        at += klp_format(out + at, capacity - at, "%s%s/%x/%s/%llums", i > 0 ? "," : "",
                         klp_arch_name(plan->node[i].facts.arch), plan->node[i].facts.cpu,
                         plan->node[i].facts.version, (unsigned long long)plan->node[i].restart_ms);
    return at;
}

void sim_plan_text(const struct sim_plan *plan, const struct sim_faults *faults, char *out,
                   size_t capacity)
{
    size_t at = nodes_text(plan, out, capacity);
    for (uint32_t i = 0; i < plan->agents && at < capacity; i++)
        at += klp_format(out + at, capacity - at, "%s%u", i > 0 ? "," : " steps=", plan->steps[i]);
    if (at < capacity)
        at += klp_format(out + at, capacity - at, " lease_ms=%llu linger_ms=%llu%s%s faults<=%u",
                         (unsigned long long)plan->lease_ttl_ms,
                         (unsigned long long)plan->linger_ms, plan->rolling ? " rolling" : "",
                         plan->emptied ? " emptied" : "", faults->most);
    for (unsigned kind = 0; faults->most > 0 && kind < SIM_FAULT_COUNT && at < capacity; kind++)
        if (faults->threshold[kind] != 0)
            at += klp_format(out + at, capacity - at, " %s:%u", sim_fault_name(kind),
                             faults->threshold[kind]);
}
