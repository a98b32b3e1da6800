/* SPDX-License-Identifier: Apache-2.0 */
/* One run: making and dropping the world, its hash, its trace, its verdict. What happens in it:
 * scenario.c. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "sim.h"

struct sim *sim_world;

/* splitmix64's finaliser. */
static uint64_t finish(uint64_t value)
{
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ull;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebull;
    return value ^ (value >> 31);
}

uint64_t sim_mix(uint64_t a, uint64_t b, uint64_t c)
{
    return finish(finish(finish(a + 0x9e3779b97f4a7c15ull) ^ b) + 0x9e3779b97f4a7c15ull * (c + 1));
}

void sim_fold(uint64_t value)
{
    sim_world->hash = finish(sim_world->hash * 0x9e3779b97f4a7c15ull ^ value);
}

void sim_fold_bytes(const void *bytes, size_t size)
{
    const uint8_t *at = bytes;
    sim_fold(size);
    for (; size >= 8; size -= 8, at += 8) {
        uint64_t word = 0;
        for (unsigned i = 0; i < 8; i++)
            word |= (uint64_t)at[i] << (8 * i);
        sim_fold(word);
    }
    for (; size > 0; size--)
        sim_fold(*at++);
}

void sim_fold_text(const char *text)
{
    sim_fold_bytes(text, strlen(text));
}

void sim_trace(const char *kind, const char *text)
{
    const struct sim_fiber *fiber = sim_world->current;
    if (sim_world->order->diagram != NULL)
        sim_diagram_note(sim_world->order->diagram, kind, text);
    if (sim_world->order->trace != NULL)
        fprintf(sim_world->order->trace, "%" PRIu64 ".%06" PRIu64 " %s %u.%s %s %s\n",
                (uint64_t)(sim_world->now_ns / KLP_MS), (uint64_t)(sim_world->now_ns % KLP_MS),
                fiber != NULL ? fiber->env->name : "-", fiber != NULL ? fiber->id : 0,
                fiber != NULL ? fiber->name : "hub", kind, text);
}

void sim_note(const char *kind, const char *format, ...)
{
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    sim_fold_text(kind);
    sim_fold_text(text);
    sim_trace(kind, text);
}

void sim_tell(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    if (!sim_world->order->quiet)
        vfprintf(stderr, format, args);
    va_end(args);
}

void sim_fail(enum sim_verdict verdict, const char *format, ...)
{
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    sim_tell("kelpie-dst: %s: %s\n", sim_verdict_name(verdict), text);
    sim_trace("verdict", text);
    if (sim_world->verdict != SIM_PASS)
        return;
    sim_world->verdict = verdict;
    memcpy(sim_world->why, text, sizeof(text));
}

const char *sim_verdict_name(enum sim_verdict verdict)
{
    static const char *const names[] = {
#define SIM_VERDICT_NAME(name, text, status) text,
        SIM_VERDICT_MAP(SIM_VERDICT_NAME)
#undef SIM_VERDICT_NAME
    };
    return names[verdict];
}

int sim_verdict_status(enum sim_verdict verdict)
{
    static const int statuses[] = {
#define SIM_VERDICT_STATUS(name, text, status) status,
        SIM_VERDICT_MAP(SIM_VERDICT_STATUS)
#undef SIM_VERDICT_STATUS
    };
    return statuses[verdict];
}

static void world_begin(struct sim *world, uint64_t seed, const struct sim_order *order)
{
    static const char *const names[SIM_NODES_MAX] = {"a", "b", "c", "d"};
    *world = (struct sim){.seed = seed, .order = order, .now_ns = KLP_SECOND};
    sim_world = world;
    klp_list_init(&world->fibers);
    klp_list_init(&world->domains);
    klp_list_init(&world->listeners);
    sim_ledger_begin(&world->ledger);
    world->ledger.off = order->apart;
    world->mib = order->apart ? KLP_MIB : SIM_MIB;
    klp_list_init(&world->calls);
    sim_net_begin(&world->net);
    if (order->plan != NULL)
        world->plan = *order->plan;
    else
        sim_plan_make(seed, &world->plan);
    sim_faults_plan(seed, &world->fault);
    world->fault.choice = order->choice;
    world->world_domain = sim_domain_create(SIM_WORLD, SIM_FAULT_NOWHERE, "world");
    world->root = sim_root_create();
    sim_fold(seed);
    for (uint32_t i = 0; i < SIM_NODES_MAX; i++) {
        world->envs[i] = sim_env_create(i, names[i]);
        sim_source_init(&world->peers[i].idle);
    }
}

/* Also of a failed run, in which fibers still wait. */
static void world_end(struct sim *world)
{
    KLP_LIST_EACH (item, &world->domains) {
        sim_domain_crash(KLP_CONTAINER(item, struct sim_domain, link));
    }
    sim_handles_drop(NULL);
    free(world->handles);
    sim_inode_put(world->root);
    if (world->rows != NULL)
        sim_registry_rows_free(world->rows);
    KLP_LIST_EACH_SAFE (item, following, &world->fibers) {
        free(KLP_CONTAINER(item, struct sim_fiber, link));
    }
    KLP_LIST_EACH_SAFE (item, following, &world->domains) {
        free(KLP_CONTAINER(item, struct sim_domain, link));
    }
    for (uint32_t i = 0; i < SIM_NODES_MAX; i++)
        free(world->envs[i]);
    sim_net_end(&world->net);
    free(world->heap);
    sim_ledger_end(&world->ledger);
    sim_world = NULL;
}

/* What a run without faults must have given back. */
static void leftovers_check(struct sim *world, const struct sim_fiber *first)
{
    unsigned fibers = 0;
    KLP_LIST_EACH (item, &world->fibers) {
        const struct sim_fiber *fiber = KLP_CONTAINER(item, struct sim_fiber, link);
        if (fiber->ended || fiber == first)
            continue;
        fibers++;
        sim_tell("  fiber %u %s (node %s, %s) still waits for: %s\n", fiber->id, fiber->name,
                 fiber->env->name, fiber->domain->name, fiber->waits_for);
    }
    if (fibers > 0)
        sim_fail(SIM_ASSERTION, "%u fibers did not end", fibers);
    else if (sim_domain_leaks() > 0)
        sim_fail(SIM_ASSERTION, "memory leaked");
    else if (world->handle_used > 0)
        sim_fail(SIM_ASSERTION, "%zu handles leaked", world->handle_used);
}

void sim_run(uint64_t seed, const struct sim_order *order, struct sim_result *out)
{
    struct sim *world = calloc(1, sizeof(*world));
    world_begin(world, seed, order);
    struct sim_fiber *first = sim_fiber_start(world->envs[0], world->world_domain, "scenario",
                                              order->scenario, order->arg);
    sim_hub_run(first);
    if (world->verdict == SIM_PASS)
        leftovers_check(world, first);
    sim_fold(world->now_ns);
    *out = (struct sim_result){.hash = world->hash,
                               .teleports = world->teleports,
                               .faults = world->faults,
                               .points = world->fault.points,
                               .verdict = world->verdict,
                               .fired_count = world->fault.fired_count};
    memcpy(out->fired, world->fault.fired, sizeof(out->fired));
    memcpy(out->why, world->why, sizeof(out->why));
    world_end(world);
    free(world);
}
