/* SPDX-License-Identifier: Apache-2.0 */
#include "fault.h"

#include "sim.h"

#define FIRE_TAG 0x66697265ull
#define DRAW_TAG 0x64726177ull
#define SWARM_TAG 0x737761726dull
#define MOST_MAX 12 /* faults of a run, when a seed is unlucky */

/* What is declared and not wired does not link. */
#define SIM_FAULT_WIRED(name, text, visits, exhaustive) extern const char sim_wired_##name;
SIM_FAULT_MAP(SIM_FAULT_WIRED)
#undef SIM_FAULT_WIRED

struct row {
    const char *name;
    uint32_t visits;
    bool exhaustive;
    const char *wired;
};

static const struct row rows[] = {
#define SIM_FAULT_ROW(name, text, visits, exhaustive) {text, visits, exhaustive, &sim_wired_##name},
    SIM_FAULT_MAP(SIM_FAULT_ROW)
#undef SIM_FAULT_ROW
};

const char *sim_fault_name(enum sim_fault_kind kind)
{
    return rows[kind].name;
}

static bool is_listed(const struct sim_fault_choice *choice, enum sim_fault_kind kind,
                      uint32_t node, uint64_t visit)
{
    for (unsigned i = 0; i < choice->count; i++)
        if (choice->list[i].kind == kind && choice->list[i].node == node &&
            choice->list[i].visit == visit)
            return true;
    return false;
}

/* Of its name, not of its number: a row more moves no decision about another kind. */
static uint64_t name_key(enum sim_fault_kind kind)
{
    uint64_t key = FIRE_TAG;
    for (const char *at = rows[kind].name; *at != 0; at++)
        key = sim_mix(key, (uint8_t)*at, 0);
    return key;
}

static uint64_t key_of(enum sim_fault_kind kind, uint32_t node)
{
    return sim_mix(sim_world->fault.key[kind], node, 0);
}

static bool is_chosen(const struct sim_faults *faults, enum sim_fault_kind kind, uint32_t node,
                      uint64_t visit, uint64_t point)
{
    switch (faults->choice.mode) {
    case SIM_FAULTS_SWARM:
        return faults->threshold[kind] != 0 && faults->fired_count < faults->most &&
               (sim_mix(sim_world->seed, key_of(kind, node), visit) & 0xffffff) <
                   faults->threshold[kind];
    case SIM_FAULTS_LIST:
        return is_listed(&faults->choice, kind, node, visit);
    case SIM_FAULTS_POINTS:
        return point == faults->choice.points[0] || point == faults->choice.points[1];
    }
    return false;
}

bool sim_fault_fires(enum sim_fault_kind kind, uint32_t node)
{
    struct sim_faults *faults = &sim_world->fault;
    KLP_ASSERT(node < SIM_FAULT_NODES && *rows[kind].wired == 1);
    if (!faults->on)
        return false;
    uint64_t visit = faults->visits[kind][node]++, point = UINT64_MAX;
    if (rows[kind].exhaustive)
        point = faults->points++;
    else if (faults->choice.mode == SIM_FAULTS_POINTS)
        return false;
    if (!is_chosen(faults, kind, node, visit, point) || faults->fired_count == SIM_FAULTS_MAX)
        return false;
    faults->fired[faults->fired_count++] =
        (struct sim_fault){kind, node, visit, point, sim_world->now_ns};
    faults->draws = 0;
    sim_world->faults++;
    sim_note("fault", "%s node=%u visit=%llu", rows[kind].name, node, (unsigned long long)visit);
    return true;
}

uint64_t sim_fault_draw(uint64_t below)
{
    struct sim_faults *faults = &sim_world->fault;
    KLP_ASSERT(faults->fired_count > 0 && below > 0);
    const struct sim_fault *last = &faults->fired[faults->fired_count - 1];
    return sim_mix(sim_world->seed ^ DRAW_TAG, key_of(last->kind, last->node),
                   last->visit * 16 + faults->draws++) %
           below;
}

/* Half of the kinds are off, so that no kind hides another; the others are weak or strong. One seed
 * in eight is without any. */
void sim_faults_plan(uint64_t seed, struct sim_faults *out)
{
    out->most = sim_mix(seed, SWARM_TAG, 0) % 8 == 0
                    ? 0
                    : 1 + (unsigned)(sim_mix(seed, SWARM_TAG, 1) % MOST_MAX);
    for (unsigned kind = 0; kind < SIM_FAULT_COUNT; kind++) {
        out->key[kind] = name_key((enum sim_fault_kind)kind);
        uint64_t draw = sim_mix(seed, SWARM_TAG, out->key[kind]);
        bool off = (draw & 1) != 0;
        uint32_t strength = 1u << (draw >> 1) % 5; /* a quarter to four times */
        out->threshold[kind] = off ? 0 : (uint32_t)(((uint64_t)strength << 22) / rows[kind].visits);
    }
}
