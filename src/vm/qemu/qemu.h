/* SPDX-License-Identifier: Apache-2.0 */
/* The QEMU backend: a stock QEMU 7.2 or newer under a keeper. What this machine can do is probed,
 * never assumed (probe.c). Restores are copy-on-write from a sealed memfd; captures are the private
 * pages of the process, by pagemap (qemu-lab 2, 3, 6, 9, 10). */
#ifndef KLP_VM_QEMU_QEMU_H
#define KLP_VM_QEMU_QEMU_H

#include "vm/keeper/keeper.h"
#include "vm/vm.h"

struct klp_qemu_probe { /* facts about this host; filled once, shown by doctor */
    bool found;
    char path[256], version[64]; /* "7.2.22" */
    bool has_xen_save;           /* xen-save-devices-state compiled in */
    bool has_ignore_shared;
    bool has_pagemap_scan;        /* ioctl, Linux 6.7; else pread of pagemap */
    bool kvm_present, kvm_usable; /* usable = runs a probe guest at speed: 100,000 supervisor
                                     instructions in <= 20 ms */
    uint64_t kvm_probe_us;        /* what it took; 0 = did not run */
    char kvm_why[160];            /* why KVM is not used; "" = it is */
    uint64_t tsc_khz;
    char cpu[64];         /* CPU model to ask for */
    char accelerator[16]; /* "kvm" or "tcg" */
    char why[256];        /* one line: why this accelerator, or why there is no QEMU */
};
/* May take some 100 ms. Never fails: what is missing is said in it. `path`: NULL = search PATH for
 * the arch's binary. */
void klp_qemu_probe(const struct kelpie_op *op, enum klp_arch arch, const char *path,
                    struct klp_qemu_probe *out);

struct klp_qemu_options {
    const char *keeper_path;
    enum klp_arch arch;
    const struct klp_qemu_probe *probe; /* copied */
};
/* UNSUPPORTED with the remedy when no QEMU is there. */
KELPIE_MUST_USE bool klp_vm_qemu_create(struct klp_env *env, struct klp_dir *vms_dir,
                                        const struct klp_qemu_options *options,
                                        struct kelpie_vm_factory **out, struct kelpie_error **err);
KELPIE_MUST_USE bool klp_hypervisor_qemu_create(struct klp_env *env, struct klp_dir *vm_dir,
                                                const char *qemu_path, struct klp_hypervisor **out,
                                                struct kelpie_error **err);
/* `kelpie-keeper --exec-qemu PATH WORDS...`: the keeper's program becomes the hypervisor (exec.c).
 * Returns an exit status when it cannot. */
int klp_qemu_exec_main(int argc, char **argv);

#endif
