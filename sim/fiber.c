/* SPDX-License-Identifier: Apache-2.0 */
/* Fibers over ucontext: a stack with a guard page below and a mark that tells when most of it was
 * used. When a fiber runs is the hub's business. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include "base/fmt.h"
#include "sim.h"

#if defined(__SANITIZE_ADDRESS__)
#define SIM_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SIM_ASAN 1
#endif
#endif

#ifdef SIM_ASAN
#include <sanitizer/common_interface_defs.h>
#define STACK_SIZE (2u * 1024 * 1024) /* bytes: red zones make frames several times larger */
#else
#define STACK_SIZE (512u * 1024)
#endif
#define MARK_WORDS 8
#define MARK 0x6b656c7069652121ull
#define MARK_OFFSET (STACK_SIZE / 4) /* above the guard: three quarters may be used */

struct sim_stack {
    struct sim_stack *next; /* of the spare ones */
    uint8_t *memory;        /* the guard page first */
    size_t page;
    ucontext_t context;
    void *fake; /* the address sanitizer's */
};

static struct sim_stack *spare;
static ucontext_t hub_context;
#ifdef SIM_ASAN
static const void *hub_bottom;
static size_t hub_size;
static void *hub_fake;
#endif

static volatile uint64_t *stack_mark(const struct sim_stack *stack)
{
    return (volatile uint64_t *)(void *)(stack->memory + stack->page + MARK_OFFSET);
}

static struct sim_stack *stack_get(void)
{
    struct sim_stack *stack = spare;
    if (stack != NULL) {
        spare = stack->next;
    } else {
        stack = calloc(1, sizeof(*stack));
        stack->page = (size_t)sysconf(_SC_PAGESIZE);
        stack->memory = mmap(NULL, STACK_SIZE + stack->page, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        KLP_ASSERT(stack->memory != MAP_FAILED);
        KLP_ASSERT(mprotect(stack->memory, stack->page, PROT_NONE) == 0);
    }
    for (size_t i = 0; i < MARK_WORDS; i++)
        stack_mark(stack)[i] = MARK;
    return stack;
}

static void stack_put(struct sim_stack *stack)
{
    for (size_t i = 0; i < MARK_WORDS; i++)
        KLP_ASSERT(stack_mark(stack)[i] == MARK); /* else a fiber used more than it may */
    stack->next = spare;
    spare = stack;
}

void sim_stacks_drop(void)
{
    while (spare != NULL) {
        struct sim_stack *stack = spare;
        spare = stack->next;
        munmap(stack->memory, STACK_SIZE + stack->page);
        free(stack);
    }
}

static void fiber_main(void)
{
    struct sim_fiber *fiber = sim_world->current;
#ifdef SIM_ASAN
    __sanitizer_finish_switch_fiber(fiber->stack->fake, &hub_bottom, &hub_size);
#endif
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
    fiber->id = ++sim_world->fiber_count;
    snprintf(fiber->name, sizeof(fiber->name), "%s", name);
    fiber->env = env;
    fiber->domain = domain;
    fiber->run = run;
    fiber->arg = arg;
    fiber->stack = stack_get();
    sim_source_init(&fiber->end);
    klp_list_init(&fiber->waiters);
    KLP_ASSERT(getcontext(&fiber->stack->context) == 0);
    fiber->stack->context.uc_stack.ss_sp = fiber->stack->memory + fiber->stack->page;
    fiber->stack->context.uc_stack.ss_size = STACK_SIZE;
    fiber->stack->context.uc_link = NULL;
    makecontext(&fiber->stack->context, fiber_main, 0);
    klp_list_append(&sim_world->fibers, &fiber->link);
    fiber->parked = true;
    fiber->waits_for = "its start";
    sim_ready(fiber);
    return fiber;
}

void sim_fiber_bury(struct sim_fiber *fiber)
{
    if (fiber->stack != NULL)
        stack_put(KLP_TAKE(&fiber->stack));
}

void sim_fiber_switch_in(struct sim_fiber *fiber)
{
    sim_world->current = fiber;
#ifdef SIM_ASAN
    __sanitizer_start_switch_fiber(&hub_fake, fiber->stack->memory + fiber->stack->page,
                                   STACK_SIZE);
#endif
    KLP_ASSERT(swapcontext(&hub_context, &fiber->stack->context) == 0);
#ifdef SIM_ASAN
    __sanitizer_finish_switch_fiber(hub_fake, NULL, NULL);
#endif
    sim_world->current = NULL;
    if (fiber->ended)
        sim_fiber_bury(fiber);
}

void sim_fiber_switch_out(void)
{
    struct sim_fiber *fiber = sim_world->current;
#ifdef SIM_ASAN
    __sanitizer_start_switch_fiber(fiber->ended ? NULL : &fiber->stack->fake, hub_bottom, hub_size);
#endif
    KLP_ASSERT(swapcontext(&fiber->stack->context, &hub_context) == 0);
#ifdef SIM_ASAN
    __sanitizer_finish_switch_fiber(fiber->stack->fake, &hub_bottom, &hub_size);
#endif
}
