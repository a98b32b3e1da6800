/* SPDX-License-Identifier: Apache-2.0 */
/* Fibers: a stack with a guard page below and a mark that tells when most of it was used, and what
 * sanitizers must be told of a switch. How a switch is made: fiber_*.c. When a fiber runs is the
 * hub's business. */
#include "sim.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fiber.h"

#ifdef SIM_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define STACK_SIZE (2u * 1024 * 1024) /* bytes: red zones make frames several times larger */
#else
#define STACK_SIZE (512u * 1024)
#endif
#define MARK_WORDS 8
#define MARK 0x6b656c7069652121ull
#define MARK_OFFSET (STACK_SIZE / 4) /* above the guard: three quarters may be used */

static const struct sim_switcher *const switchers[] = {
#ifdef SIM_FIBER_ASM
    &sim_fiber_asm,
#endif
#ifdef SIM_FIBER_UCONTEXT
    &sim_fiber_ucontext,
#endif
    &sim_fiber_thread,
};
static const struct sim_switcher *switcher;
static struct sim_stack *spare;

bool sim_fibers_choose(const char *name)
{
    KLP_ASSERT(spare == NULL); /* a stack belongs to who made it */
    for (size_t i = 0; i < KLP_COUNT(switchers); i++) {
        if (strcmp(switchers[i]->name, name) != 0)
            continue;
        switcher = switchers[i];
        return true;
    }
    return false;
}

/* ---- what the address sanitizer is told. Its own threads it knows. */
#ifdef SIM_ASAN
static const void *hub_bottom;
static size_t hub_size;
static void *hub_fake;

static void leave_hub(struct sim_stack *stack)
{
    if (!switcher->own_threads)
        __sanitizer_start_switch_fiber(&hub_fake, stack->low, stack->size);
}

static void reach_hub(void)
{
    if (!switcher->own_threads)
        __sanitizer_finish_switch_fiber(hub_fake, NULL, NULL);
}

/* Also for ever: the next fiber on this stack takes its second one over, which is large and slow to
 * make. */
static void leave_fiber(struct sim_stack *stack)
{
    if (!switcher->own_threads)
        __sanitizer_start_switch_fiber(&stack->fake, hub_bottom, hub_size);
}

static void reach_fiber(struct sim_stack *stack)
{
    if (!switcher->own_threads)
        __sanitizer_finish_switch_fiber(KLP_TAKE(&stack->fake), &hub_bottom, &hub_size);
}

/* A killed fiber leaves frames behind: whoever runs goes there and away for ever in its name,
 * without a switch, which frees what the sanitizer keeps of it. Then nothing on its stack is
 * guarded. */
static void forget(struct sim_stack *stack)
{
    void *fake = NULL;
    const void *bottom = NULL;
    size_t size = 0;
    if (switcher->own_threads)
        return;
    if (stack->fake != NULL) {
        __sanitizer_start_switch_fiber(&fake, stack->low, stack->size);
        __sanitizer_finish_switch_fiber(KLP_TAKE(&stack->fake), &bottom, &size);
        __sanitizer_start_switch_fiber(NULL, bottom, size);
        __sanitizer_finish_switch_fiber(fake, NULL, NULL);
    }
    __asan_unpoison_memory_region(stack->low, stack->size);
}
#else
#define leave_hub(stack) ((void)(stack))
#define reach_hub() ((void)0)
#define leave_fiber(stack) ((void)(stack))
#define reach_fiber(stack) ((void)(stack))
#define forget(stack) ((void)(stack))
#endif

/* ---- stacks */

static volatile uint64_t *stack_mark(const struct sim_stack *stack)
{
    return (volatile uint64_t *)(void *)(stack->low + MARK_OFFSET);
}

static void stack_mark_set(struct sim_stack *stack)
{
    for (size_t i = 0; i < MARK_WORDS; i++)
        stack_mark(stack)[i] = MARK;
}

static bool stack_mark_intact(const struct sim_stack *stack)
{
    for (size_t i = 0; i < MARK_WORDS; i++)
        if (stack_mark(stack)[i] != MARK)
            return false;
    return true;
}

static struct sim_stack *stack_create(void)
{
    struct sim_stack *stack = calloc(1, sizeof(*stack));
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    KLP_ASSERT(stack != NULL);
    uint8_t *memory = mmap(NULL, STACK_SIZE + page, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    KLP_ASSERT(memory != MAP_FAILED);
    KLP_ASSERT(mprotect(memory, page, PROT_NONE) == 0);
    stack->low = memory + page;
    stack->size = STACK_SIZE;
    stack_mark_set(stack);
    return stack;
}

/* The one that was used last: its upper pages are in the caches. */
static struct sim_stack *stack_get(void)
{
    if (switcher == NULL)
        switcher = switchers[0];
    struct sim_stack *stack = spare;
    if (stack == NULL)
        stack = stack_create();
    else
        spare = stack->next;
    if (stack->abandoned)
        forget(stack);
    stack->abandoned = false;
    switcher->prepare(stack);
    return stack;
}

void sim_stacks_drop(void)
{
    while (spare != NULL) {
        struct sim_stack *stack = spare;
        size_t page = (size_t)sysconf(_SC_PAGESIZE);
        spare = stack->next;
        forget(stack);
        switcher->drop(stack);
        munmap(stack->low - page, stack->size + page);
        free(stack);
    }
}

/* ---- fibers */

void sim_fiber_main(void)
{
    struct sim_fiber *fiber = sim_world->current;
    reach_fiber(fiber->stack);
    fiber->run(fiber->arg);
    KLP_ASSERT(fiber->mutexes == 0);
    fiber->ended = true;
    sim_wake(&fiber->end);
    sim_fiber_switch_out();
    abort(); /* an ended fiber is never switched in */
}

struct sim_fiber *sim_fiber_start(struct sim_env *env, struct sim_domain *domain, const char *name,
                                  void (*run)(void *), void *arg)
{
    struct sim_fiber *fiber = calloc(1, sizeof(*fiber));
    KLP_ASSERT(fiber != NULL);
    fiber->id = ++sim_world->fiber_count;
    snprintf(fiber->name, sizeof(fiber->name), "%s", name);
    fiber->env = env;
    fiber->domain = domain;
    fiber->run = run;
    fiber->arg = arg;
    fiber->stack = stack_get();
    sim_source_init(&fiber->end);
    klp_list_init(&fiber->waiters);
    klp_list_append(&sim_world->fibers, &fiber->link);
    fiber->parked = true;
    fiber->waits_for = "its start";
    sim_ready(fiber);
    return fiber;
}

void sim_fiber_bury(struct sim_fiber *fiber)
{
    struct sim_stack *stack = KLP_TAKE(&fiber->stack);
    if (stack == NULL)
        return;
    if (!stack_mark_intact(stack)) {
        sim_fail(SIM_ASSERTION, "fiber %s used more than three quarters of its stack", fiber->name);
        stack_mark_set(stack);
    }
    stack->abandoned = fiber->killed;
    stack->next = spare;
    spare = stack;
}

void sim_fiber_switch_in(struct sim_fiber *fiber)
{
    sim_world->current = fiber;
    leave_hub(fiber->stack);
    switcher->to_fiber(fiber->stack);
    reach_hub();
    sim_world->current = NULL;
    if (fiber->ended)
        sim_fiber_bury(fiber);
}

void sim_fiber_switch_out(void)
{
    struct sim_stack *stack = sim_world->current->stack;
    leave_fiber(stack);
    switcher->to_hub(stack);
    reach_fiber(stack);
}
