/* SPDX-License-Identifier: Apache-2.0 */
/* Between fiber.c, which keeps stacks and says who runs, and the ways to switch ("back ends"). One
 * hub; every switch is from the hub to a stack or back. */
#ifndef SIM_FIBER_H
#define SIM_FIBER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__SANITIZE_ADDRESS__)
#define SIM_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SIM_ASAN 1
#endif
#endif

struct sim_stack {
    struct sim_stack *next; /* of the spare ones */
    uint8_t *low;           /* above the guard page */
    size_t size;            /* bytes from there */
    void *machine;          /* the back end's: where it goes on */
    void *fake;             /* the address sanitizer's second stack, while it does not run */
    bool abandoned;         /* left in the middle of something */
};

struct sim_switcher {
    const char *name;
    bool own_threads; /* each stack is a thread's: a sanitizer knows of it without being told */
    /* The next switch to it begins sim_fiber_main. Whatever it was in the middle of is forgotten,
     * and no instruction of that is run again. */
    void (*prepare)(struct sim_stack *stack);
    void (*to_fiber)(struct sim_stack *stack); /* from the hub */
    void (*to_hub)(struct sim_stack *stack);   /* from the fiber on it */
    void (*drop)(struct sim_stack *stack);     /* its memory goes next */
};

/* What a fiber begins with, whatever the back end. Does not return, except where each stack is a
 * thread's: never there either, because the thread is taken back (fiber_thread.c). */
_Noreturn void sim_fiber_main(void);

/* The hand-written switch needs the ABI it was written for, and ELF's directives. */
#if (defined(__x86_64__) && defined(__LP64__) || defined(__aarch64__)) && defined(__ELF__)
#define SIM_FIBER_ASM 1
extern const struct sim_switcher sim_fiber_asm;
#endif
#if defined(__has_include) && !defined(__APPLE__)
#if __has_include(<ucontext.h>)
#define SIM_FIBER_UCONTEXT 1
extern const struct sim_switcher sim_fiber_ucontext;
#endif
#endif
extern const struct sim_switcher sim_fiber_thread;

#endif
