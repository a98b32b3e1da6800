/* SPDX-License-Identifier: Apache-2.0 */
/* Fibers by the C library: a system call for the signal mask each switch, but no assembly. For
 * machines that fiber_switch.S does not know, and as a second opinion. */
#include "sim.h"

#include "fiber.h"

#ifdef SIM_FIBER_UCONTEXT
#include <stdlib.h>
#include <ucontext.h>

static ucontext_t hub;

static void ucontext_prepare(struct sim_stack *stack)
{
    if (stack->machine == NULL)
        stack->machine = calloc(1, sizeof(ucontext_t));
    KLP_ASSERT(stack->machine != NULL && getcontext(stack->machine) == 0);
    ucontext_t *context = stack->machine;
    context->uc_stack.ss_sp = stack->low;
    context->uc_stack.ss_size = stack->size;
    context->uc_link = NULL;
    makecontext(context, sim_fiber_main, 0);
}

static void ucontext_to_fiber(struct sim_stack *stack)
{
    KLP_ASSERT(swapcontext(&hub, stack->machine) == 0);
}

static void ucontext_to_hub(struct sim_stack *stack)
{
    KLP_ASSERT(swapcontext(stack->machine, &hub) == 0);
}

static void ucontext_drop(struct sim_stack *stack)
{
    free(stack->machine);
    stack->machine = NULL;
}

const struct sim_switcher sim_fiber_ucontext = {
    .name = "ucontext",
    .prepare = ucontext_prepare,
    .to_fiber = ucontext_to_fiber,
    .to_hub = ucontext_to_hub,
    .drop = ucontext_drop,
};

#endif
