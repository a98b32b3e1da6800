/* SPDX-License-Identifier: Apache-2.0 */
/* The hub: events ordered by (virtual time, a tie drawn from the seed, sequence). Nothing runs but
 * what it switches to; time passes only when nobody can run. */
#include <stdlib.h>
#include <string.h>

#include "sim.h"

#define STOP_MAX_NS (60 * KLP_SECOND) /* past any lease */

SIM_FAULT_SITE(CRASH_DAEMON)
SIM_FAULT_SITE(CRASH_KEEPER)
SIM_FAULT_SITE(CRASH_VM)
SIM_FAULT_SITE(STOP_DAEMON)
SIM_FAULT_SITE(STOP_KEEPER)

enum event_kind { EVENT_TIMER = 1, EVENT_READY };
struct sim_event {
    uint64_t at_ns, tie, sequence;
    enum event_kind kind;
    struct sim_fiber *fiber;
    uint64_t waits; /* fiber->waits when it was made; another number = stale */
};

static bool event_before(const struct sim_event *a, const struct sim_event *b)
{
    if (a->at_ns != b->at_ns)
        return a->at_ns < b->at_ns;
    return a->tie != b->tie ? a->tie < b->tie : a->sequence < b->sequence;
}

static void event_push(uint64_t at_ns, enum event_kind kind, struct sim_fiber *fiber)
{
    struct sim *world = sim_world;
    if (world->heap_count == world->heap_capacity) {
        world->heap_capacity = world->heap_capacity != 0 ? 2 * world->heap_capacity : 256;
        world->heap = realloc(world->heap, world->heap_capacity * sizeof(world->heap[0]));
        KLP_ASSERT(world->heap != NULL);
    }
    uint64_t sequence = ++world->sequence;
    struct sim_event event = {
        at_ns,
        sim_mix(world->seed ^ world->fault.choice.jitter, 0x74696573, sequence) &
            3, /* mostly in order */
        sequence,
        kind,
        fiber,
        fiber->waits};
    size_t at = world->heap_count++;
    while (at > 0 && event_before(&event, &world->heap[(at - 1) / 2])) {
        world->heap[at] = world->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    world->heap[at] = event;
}

static bool event_pop(struct sim_event *out)
{
    struct sim *world = sim_world;
    if (world->heap_count == 0)
        return false;
    *out = world->heap[0];
    struct sim_event last = world->heap[--world->heap_count];
    size_t at = 0;
    for (;;) {
        size_t child = 2 * at + 1;
        if (child + 1 < world->heap_count &&
            event_before(&world->heap[child + 1], &world->heap[child]))
            child++;
        if (child >= world->heap_count || !event_before(&world->heap[child], &last))
            break;
        world->heap[at] = world->heap[child];
        at = child;
    }
    world->heap[at] = last;
    return true;
}

/* Where a fiber lets go, its process may die or be stopped. */
static void process_faults(const struct sim_fiber *fiber)
{
    struct sim_domain *domain = fiber->domain;
    uint32_t node = domain->node;
    if (!sim_world->fault.on || domain == sim_world->crashing)
        return;
    bool dies = (domain->kind == SIM_DAEMON && fault_CRASH_DAEMON(node)) ||
                (domain->kind == SIM_KEEPER && fault_CRASH_KEEPER(node)) ||
                (domain->kind == SIM_VM && fault_CRASH_VM(node));
    if (dies)
        sim_domain_crash_soon(domain);
    else if ((domain->kind == SIM_DAEMON && fault_STOP_DAEMON(node)) ||
             (domain->kind == SIM_KEEPER && fault_STOP_KEEPER(node)))
        domain->stopped_until_ns = sim_world->now_ns + KLP_MS + sim_fault_draw(STOP_MAX_NS);
}

void sim_park(uint64_t until_ns, const char *what)
{
    struct sim_fiber *fiber = sim_world->current;
    KLP_ASSERT(fiber != NULL);
    if (fiber->mutexes != 0) {
        sim_tell("kelpie-dst: %s waits for %s holding a mutex\n", fiber->name, what);
        KLP_ASSERT(fiber->mutexes == 0); /* never held over a blocking call (env/env.h) */
    }
    fiber->waits++;
    fiber->parked = true;
    fiber->ready = false;
    fiber->waits_for = what;
    process_faults(fiber);
    if (until_ns != SIM_NEVER)
        event_push(until_ns > sim_world->now_ns ? until_ns : sim_world->now_ns, EVENT_TIMER, fiber);
    sim_fiber_switch_out();
}

void sim_ready(struct sim_fiber *fiber)
{
    if (!fiber->parked || fiber->ready || fiber->ended)
        return;
    fiber->ready = true;
    event_push(sim_world->now_ns, EVENT_READY, fiber);
}

void sim_yield(void)
{
    sim_park(sim_world->now_ns, "its turn");
}

void sim_stops_end(void)
{
    KLP_LIST_EACH (item, &sim_world->fibers) {
        struct sim_fiber *fiber = KLP_CONTAINER(item, struct sim_fiber, link);
        if (fiber->ended || fiber->domain->stopped_until_ns <= sim_world->now_ns || !fiber->ready)
            continue;
        fiber->ready = false; /* its event waits for the end of the stop: a new one, now */
        sim_ready(fiber);
    }
    KLP_LIST_EACH (item, &sim_world->domains) {
        KLP_CONTAINER(item, struct sim_domain, link)->stopped_until_ns = 0;
    }
}

/* ---- waiting for something */

struct waiter {
    struct klp_list link, of_fiber;
    struct sim_fiber *fiber;
};

static void waiter_add(struct waiter *waiter, struct sim_source *source)
{
    waiter->fiber = sim_world->current;
    klp_list_append(&source->waiters, &waiter->link);
    klp_list_append(&waiter->fiber->waiters, &waiter->of_fiber);
}

static void waiter_remove(struct waiter *waiter)
{
    klp_list_remove(&waiter->link);
    klp_list_remove(&waiter->of_fiber);
}

void sim_fiber_kill(struct sim_fiber *fiber)
{
    KLP_LIST_EACH_SAFE (item, following, &fiber->waiters) {
        waiter_remove(KLP_CONTAINER(item, struct waiter, of_fiber));
    }
    fiber->ended = fiber->killed = true;
    sim_wake(&fiber->end);
}

void sim_source_init(struct sim_source *source)
{
    klp_list_init(&source->waiters);
}

void sim_wake(struct sim_source *source)
{
    KLP_LIST_EACH (item, &source->waiters) {
        sim_ready(KLP_CONTAINER(item, struct waiter, link)->fiber);
    }
}

void sim_wait_source(struct sim_source *source, uint64_t until_ns, const char *what)
{
    struct waiter waiter;
    waiter_add(&waiter, source);
    sim_park(until_ns, what);
    waiter_remove(&waiter);
}

kelpie_outcome sim_wait(const struct kelpie_op *op, struct sim_source *source, const char *what,
                        struct kelpie_error **err)
{
    KLP_TRY(klp_op_check(op, what, err));
    uint64_t until_ns = op->deadline_ns;
    struct waiter waiter;
    until_ns = sim_env_wake_ns(sim_env_from(op->env), until_ns);
    if (op->cancel != NULL)
        waiter_add(&waiter, sim_cancel_source(op->cancel));
    if (source != NULL)
        sim_wait_source(source, until_ns, what);
    else
        sim_park(until_ns, what);
    if (op->cancel != NULL)
        waiter_remove(&waiter);
    return KLP_OK;
}

/* ---- running */

static void deadlock_tell(const char *what)
{
    sim_fail(SIM_LIVENESS, "%s at %llu ns", what, (unsigned long long)sim_world->now_ns);
    KLP_LIST_EACH (item, &sim_world->fibers) {
        const struct sim_fiber *fiber = KLP_CONTAINER(item, struct sim_fiber, link);
        if (!fiber->ended)
            sim_tell("  fiber %u %s (node %s, %s) waits for: %s\n", fiber->id, fiber->name,
                     fiber->env->name, fiber->domain->name, fiber->waits_for);
    }
}

void sim_hub_run(struct sim_fiber *until)
{
    struct sim *world = sim_world;
    while (!until->ended && !world->over) {
        struct sim_event event;
        if (!event_pop(&event)) {
            deadlock_tell("deadlock: nobody can run and nothing will happen");
            return;
        }
        struct sim_fiber *fiber = event.fiber;
        if (fiber->ended || !fiber->parked || fiber->waits != event.waits)
            continue;
        if (++world->events > SIM_EVENTS_MAX) {
            deadlock_tell("livelock: too many events");
            return;
        }
        world->now_ns = event.at_ns;
        if (fiber->domain->stopped_until_ns > world->now_ns) {
            fiber->ready = true; /* nothing else brings it back sooner */
            event_push(fiber->domain->stopped_until_ns, event.kind, fiber);
            continue;
        }
        fiber->parked = fiber->ready = false;
        sim_fold(event.at_ns);
        sim_fold(((uint64_t)fiber->env->node << 40) ^ ((uint64_t)event.kind << 32) ^ fiber->id);
        sim_fiber_switch_in(fiber);
        if (world->crashing != NULL)
            sim_domain_crash(KLP_TAKE(&world->crashing));
        if (world->dying != 0) {
            sim_hosts_die(world->dying);
            world->dying = 0;
        }
    }
}
