/* SPDX-License-Identifier: Apache-2.0 */
/* The contract of a backend, as one suite for every implementation: tests/contract/vm*.c. It speaks
 * the small vocabulary that every guest has built in (format/vocabulary.h). */
#ifndef TESTS_CONTRACT_VM_H
#define TESTS_CONTRACT_VM_H

#include "vm/vm.h"

/* How to get at a backend. */
struct contract_vm {
    const char *name;
    struct klp_env *env;
    void *arg;
    /* A factory; all of one run work in one folder, so that a second is what a later daemon has. */
    bool (*make)(void *arg, struct kelpie_vm_factory **out, struct kelpie_error **err);
    /* What every VM needs: kernel, initramfs, memory. The suite adds to it. */
    struct kelpie_vm_config config;
    uint32_t fill_mib; /* of a guest's memory, for @fill */
    /* Guests that are launched from now on have this fault (vm/mock/mock.h); "" = none. NULL: tests
     * that need faults are skipped. */
    void (*fault)(void *arg, const char *name);
    /* Kills a VM's keeper, as kill -9 does. NULL: tests that need it are skipped. */
    void (*keeper_kill)(void *arg, struct kelpie_vm *vm);
    /* Is there still a process of that number? NULL: not looked at. */
    bool (*process_lives)(void *arg, int64_t pid);
};

/* Runs all of it; the number of failed tests. */
int contract_vm(const struct contract_vm *suite);

#endif
