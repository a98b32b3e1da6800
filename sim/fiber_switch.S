/* SPDX-License-Identifier: Apache-2.0 */
/* void sim_switch(void **save, void *load): leaves on this stack what the ABI makes a called
 * function keep, stores where that lies in *save, and goes on where `load` was left so.
 * void sim_switch_entry(void): what a fresh stack begins with (fiber_asm.c lays its first frame).
 *
 * Written from the System V ABI for x86-64 (3.2.1, registers) and the procedure call standard for
 * the Arm 64-bit architecture (6.1, registers). Not a system call, not a signal mask: fibers share
 * both.
 *
 * Hazards, and why each is none here:
 *  - The jump at the end is no `ret`: the return predictor holds the hub's callers and would miss
 *    every time.
 *  - Shadow stacks and landing pads (x86 CET, Arm BTI and GCS): a process that enforces them must
 *    switch the shadow stack too. This file carries no property note, so a linker that merges the
 *    notes leaves them off for the whole program, and nothing enforces them.
 *  - Signed return addresses (Arm PAC): functions sign what they store themselves, with the stack
 *    pointer as the modifier; a stack goes on at the address where it stopped, so they verify. The
 *    address stored here is not signed.
 *  - mxcsr, the x87 control word and fpcr are not saved: nobody in the simulator sets them.
 *  - x18 is the platform's and not saved: no platform that this file is built for uses it.
 *  - Threads: a stack goes on in the thread that left it. There is one.
 */
#if defined(__x86_64__) && defined(__LP64__) && defined(__ELF__)

    .text
    .globl sim_switch
    .hidden sim_switch
    .type sim_switch, @function
    .p2align 4
sim_switch:
    .cfi_startproc
    pushq %rbp
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %rbp, 0
    pushq %rbx
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %rbx, 0
    pushq %r12
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %r12, 0
    pushq %r13
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %r13, 0
    pushq %r14
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %r14, 0
    pushq %r15
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %r15, 0
    movq %rsp, (%rdi)
    movq %rsi, %rsp         /* from here the same words describe the other stack */
    popq %r15
    .cfi_adjust_cfa_offset -8
    .cfi_restore %r15
    popq %r14
    .cfi_adjust_cfa_offset -8
    .cfi_restore %r14
    popq %r13
    .cfi_adjust_cfa_offset -8
    .cfi_restore %r13
    popq %r12
    .cfi_adjust_cfa_offset -8
    .cfi_restore %r12
    popq %rbx
    .cfi_adjust_cfa_offset -8
    .cfi_restore %rbx
    popq %rbp
    .cfi_adjust_cfa_offset -8
    .cfi_restore %rbp
    popq %rcx
    .cfi_adjust_cfa_offset -8
    .cfi_register %rip, %rcx
    jmp *%rcx
    .cfi_endproc
    .size sim_switch, . - sim_switch

    .globl sim_switch_entry
    .hidden sim_switch_entry
    .type sim_switch_entry, @function
    .p2align 4
    .cfi_startproc
    .cfi_undefined %rip     /* nobody called: a debugger's walk ends here */
    nop                     /* and it looks a caller up before the address where that goes on */
sim_switch_entry:
    xorl %ebp, %ebp
    call sim_fiber_main
    ud2
    .cfi_endproc
    .size sim_switch_entry, . - sim_switch_entry

#elif defined(__aarch64__) && defined(__ELF__)

#define FRAME 160
    .text
    .globl sim_switch
    .hidden sim_switch
    .type sim_switch, %function
    .p2align 4
sim_switch:
    .cfi_startproc
    sub sp, sp, #FRAME
    .cfi_def_cfa_offset FRAME
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]   /* of v8 to v15 the lower halves are the caller's */
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    .cfi_offset x19, -160
    .cfi_offset x20, -152
    .cfi_offset x21, -144
    .cfi_offset x22, -136
    .cfi_offset x23, -128
    .cfi_offset x24, -120
    .cfi_offset x25, -112
    .cfi_offset x26, -104
    .cfi_offset x27, -96
    .cfi_offset x28, -88
    .cfi_offset x29, -80
    .cfi_offset x30, -72
    mov x9, sp
    str x9, [x0]
    mov sp, x1              /* from here the same words describe the other stack */
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #FRAME
    .cfi_def_cfa_offset 0
    br x30
    .cfi_endproc
    .size sim_switch, . - sim_switch

    .globl sim_switch_entry
    .hidden sim_switch_entry
    .type sim_switch_entry, %function
    .p2align 4
    .cfi_startproc
    .cfi_undefined x30      /* nobody called: a debugger's walk ends here */
    nop                     /* and it looks a caller up before the address where that goes on */
sim_switch_entry:
    mov x29, xzr
    bl sim_fiber_main
    brk #1
    .cfi_endproc
    .size sim_switch_entry, . - sim_switch_entry

#endif

/* Without it the linker would make every stack of the program executable. */
#if defined(__ELF__)
    .section .note.GNU-stack, "", %progbits
#endif
