/* SPDX-License-Identifier: Apache-2.0 */
/* Fibers by threads that hand one baton: whoever has it runs, everybody else waits. Slow, and what
 * tools understand without being told. A thread lives as long as its stack and serves one fiber
 * after another; from a fiber that was killed it comes back by a jump to where it began, past every
 * frame, so that nothing of the fiber runs again. */
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <stdlib.h>

#include "sim.h"

#include "fiber.h"

struct runner {
    pthread_t thread;
    sem_t baton;
    jmp_buf begin;
    bool fresh, quit; /* what it gets the baton for; neither = to go on */
};

static sem_t hub;
static bool hub_made;

static void baton_give(sem_t *baton)
{
    KLP_ASSERT(sem_post(baton) == 0);
}

static void baton_take(sem_t *baton)
{
    while (sem_wait(baton) != 0)
        KLP_ASSERT(errno == EINTR);
}

static void *runner_main(void *arg)
{
    struct runner *runner = arg;
    if (setjmp(runner->begin) == 0)
        baton_take(&runner->baton); /* who jumps here has it already */
    if (runner->quit)
        return NULL;
    runner->fresh = false;
    sim_fiber_main();
}

/* On the memory that fiber.c has, for its guard and its mark. */
static struct runner *runner_create(struct sim_stack *stack)
{
    struct runner *runner = calloc(1, sizeof(*runner));
    pthread_attr_t attributes;
    KLP_ASSERT(runner != NULL && sem_init(&runner->baton, 0, 0) == 0);
    KLP_ASSERT(pthread_attr_init(&attributes) == 0);
    KLP_ASSERT(pthread_attr_setstack(&attributes, stack->low, stack->size) == 0);
    KLP_ASSERT(pthread_create(&runner->thread, &attributes, runner_main, runner) == 0);
    KLP_ASSERT(pthread_attr_destroy(&attributes) == 0);
    return runner;
}

static void thread_prepare(struct sim_stack *stack)
{
    if (!hub_made)
        KLP_ASSERT(sem_init(&hub, 0, 0) == 0);
    hub_made = true;
    if (stack->machine == NULL)
        stack->machine = runner_create(stack);
    ((struct runner *)stack->machine)->fresh = true;
}

static void thread_to_fiber(struct sim_stack *stack)
{
    struct runner *runner = stack->machine;
    baton_give(&runner->baton);
    baton_take(&hub);
}

static void thread_to_hub(struct sim_stack *stack)
{
    struct runner *runner = stack->machine;
    baton_give(&hub);
    baton_take(&runner->baton);
    if (runner->fresh || runner->quit)
        longjmp(runner->begin, 1);
}

static void thread_drop(struct sim_stack *stack)
{
    struct runner *runner = stack->machine;
    runner->quit = true;
    baton_give(&runner->baton);
    KLP_ASSERT(pthread_join(runner->thread, NULL) == 0);
    KLP_ASSERT(sem_destroy(&runner->baton) == 0);
    free(runner);
    stack->machine = NULL;
}

const struct sim_switcher sim_fiber_thread = {
    .name = "thread",
    .own_threads = true,
    .prepare = thread_prepare,
    .to_fiber = thread_to_fiber,
    .to_hub = thread_to_hub,
    .drop = thread_drop,
};
