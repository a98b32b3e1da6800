/* SPDX-License-Identifier: Apache-2.0 */
/* The smallest list of faults that still makes a seed fail in the same way. Decisions are keyed by
 * what they are about, so a fault can be left out without another one moving; where leaving one out
 * shifts the schedule, other schedules are tried before it is called needed. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "sim.h"

#define JITTERS 32

struct shrink {
    uint64_t seed;
    struct sim_order order;
    enum sim_verdict verdict;
    struct sim_fault faults[SIM_FAULTS_MAX];
    unsigned count, runs;
};

/* Fails it with these faults alone, in some schedule? Keeps the schedule when it does. */
static bool fails_with(struct shrink *shrink, const struct sim_fault *faults, unsigned count)
{
    uint64_t kept = shrink->order.choice.jitter;
    for (uint64_t i = 0; i <= JITTERS; i++) {
        struct sim_result *result = malloc(sizeof(*result));
        shrink->order.choice.list = faults;
        shrink->order.choice.count = count;
        shrink->order.choice.jitter = i == 0 ? kept : i;
        sim_run(shrink->seed, &shrink->order, result);
        shrink->runs++;
        bool same = result->verdict == shrink->verdict;
        free(result);
        if (same)
            return true;
    }
    shrink->order.choice.jitter = kept;
    return false;
}

/* Leaves out runs of `size` faults, from the end: what came last is needed least. */
static bool reduce(struct shrink *shrink, unsigned size)
{
    bool changed = false;
    for (unsigned end = shrink->count; end >= size && size > 0; end--) {
        struct sim_fault fewer[SIM_FAULTS_MAX];
        unsigned at = end - size, left = shrink->count - size;
        memcpy(fewer, shrink->faults, at * sizeof(fewer[0]));
        memcpy(fewer + at, shrink->faults + end, (shrink->count - end) * sizeof(fewer[0]));
        if (!fails_with(shrink, fewer, left))
            continue;
        memcpy(shrink->faults, fewer, left * sizeof(fewer[0]));
        shrink->count = left;
        changed = true;
        if (end > shrink->count)
            end = shrink->count + 1;
    }
    return changed;
}

static void faults_print(const struct shrink *shrink)
{
    for (unsigned i = 0; i < shrink->count; i++)
        printf("  fault %s node=%u visit=%llu\n", sim_fault_name(shrink->faults[i].kind),
               shrink->faults[i].node, (unsigned long long)shrink->faults[i].visit);
}

static void show(struct shrink *shrink)
{
    struct sim_result *result = malloc(sizeof(*result));
    struct sim_diagram *diagram = sim_diagram_create();
    shrink->order.choice.list = shrink->faults;
    shrink->order.choice.count = shrink->count;
    shrink->order.diagram = diagram;
    sim_run(shrink->seed, &shrink->order, result);
    sim_diagram_print(diagram, stdout);
    printf("  %s: %s\n", sim_verdict_name(result->verdict), result->why);
    sim_diagram_destroy(diagram);
    free(result);
}

static double seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

void sim_shrink(uint64_t seed, const struct sim_order *order, const struct sim_result *failed)
{
    struct shrink shrink = {
        .seed = seed, .order = *order, .verdict = failed->verdict, .count = failed->fired_count};
    double since = seconds_now();
    shrink.order.quiet = true;
    shrink.order.trace = NULL;
    shrink.order.choice.mode = SIM_FAULTS_LIST;
    memcpy(shrink.faults, failed->fired, sizeof(shrink.faults));
    if (!fails_with(&shrink, shrink.faults, shrink.count)) {
        printf("shrink: %u faults, and not by them alone\n", shrink.count);
        return;
    }
    for (unsigned size = shrink.count; size >= 1; size = size / 2)
        while (reduce(&shrink, size) && size == 1) {
        }
    printf("shrink: from %u faults to %u, %u runs, %.2f s\n", failed->fired_count, shrink.count,
           shrink.runs, seconds_now() - since);
    faults_print(&shrink);
    show(&shrink);
}
