/* SPDX-License-Identifier: Apache-2.0 */
/* The Mock backend: a guest of real, paged memory in a process of its own under a keeper, so that
 * snapshots, fences, kills and restores are tested without a hypervisor. No system dependencies;
 * any architecture by configuration; chosen by name or by tests only. */
#ifndef KLP_VM_MOCK_MOCK_H
#define KLP_VM_MOCK_MOCK_H

#include "vm/keeper/keeper.h"
#include "vm/vm.h"

struct klp_mock_options {
    const char *keeper_path; /* kelpie-keeper */
    enum klp_arch arch;      /* NONE = the host's */
};
KELPIE_MUST_USE bool klp_vm_mock_create(struct klp_env *env, struct klp_dir *vms_dir,
                                        const struct klp_mock_options *options,
                                        struct kelpie_vm_factory **out, struct kelpie_error **err);
/* In the keeper. Faults by environment of the keeper, tests only:
 * KELPIE_MOCK_FAULT=boot|capture|load|crash-in-capture. */
KELPIE_MUST_USE bool klp_hypervisor_mock_create(struct klp_env *env, struct klp_hypervisor **out,
                                                struct kelpie_error **err);
/* The guest process itself: `kelpie-keeper --mock-guest` with its descriptors. Returns the exit
 * status. */
int klp_mock_guest_main(int argc, char **argv);

#endif
