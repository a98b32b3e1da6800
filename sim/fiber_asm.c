/* SPDX-License-Identifier: Apache-2.0 */
/* Fibers by the hand-written switch (fiber_switch.S): the first frame of a stack, and where the
 * hub goes on. */
#include "sim.h"

#include "fiber.h"

#ifdef SIM_FIBER_ASM

void sim_switch(void **save, void *load);
void sim_switch_entry(void);

/* Words from the saved stack pointer on: as fiber_switch.S takes them off. */
#ifdef __x86_64__
#define FRAME_WORDS 7 /* r15, r14, r13, r12, rbx, rbp, where it goes on */
#define FRAME_NEXT 6
#else
#define FRAME_WORDS 20 /* x19 to x29, x30 = where it goes on, d8 to d15 */
#define FRAME_NEXT 11
#endif

static void *hub;

/* Nothing above the frame: the entry is met with a stack pointer that is a multiple of 16, as both
 * ABIs ask at a call. */
static void asm_prepare(struct sim_stack *stack)
{
    uintptr_t *top = (uintptr_t *)(void *)(stack->low + stack->size);
    uintptr_t *frame = top - FRAME_WORDS;
    for (size_t i = 0; i < FRAME_WORDS; i++)
        frame[i] = 0;
    frame[FRAME_NEXT] = (uintptr_t)sim_switch_entry;
    stack->machine = frame;
}

static void asm_to_fiber(struct sim_stack *stack)
{
    sim_switch(&hub, stack->machine);
}

static void asm_to_hub(struct sim_stack *stack)
{
    sim_switch(&stack->machine, hub);
}

static void asm_drop(struct sim_stack *stack)
{
    stack->machine = NULL;
}

const struct sim_switcher sim_fiber_asm = {
    .name = "asm",
    .prepare = asm_prepare,
    .to_fiber = asm_to_fiber,
    .to_hub = asm_to_hub,
    .drop = asm_drop,
};

#endif
