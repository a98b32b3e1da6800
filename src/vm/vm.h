/* SPDX-License-Identifier: Apache-2.0 */
/* The inside of a VM, for node/, snapshot/ and teleport/ (first part) and for backends (second
 * part). The public part is kelpie/vm.h. */
#ifndef KLP_VM_VM_H
#define KLP_VM_VM_H

#include "kelpie/vm.h"

#include "env/env.h"
#include "format/keeper_frame.h"
#include "format/machine.h"
#include "vm/guest.h"
#include "vm/layer.h"

/* ---- capture: the complete state of a VM that stands still. */
struct klp_capture {
    struct klp_machine machine;
    struct klp_layer *base;  /* what the VM was cloned from; borrowed; NULL = nothing (all zero) */
    struct klp_layer *dirty; /* owned: every page that may differ from base; sealed */
    struct klp_buf device_state; /* owned; <= KLP_DEVICE_STATE_MAX */
    uint64_t pause_ns;           /* from the first stop until here */
};
void klp_capture_finish(struct klp_capture *capture);

/* Running, Paused. Puts `reason` (KLP_HOLD_SNAPSHOT or KLP_HOLD_HANDOFF) among the holds, waits
 * until the guest stands still, captures. On failure the hold is taken back: the VM is in its
 * former state. On OK it stays held until klp_vm_release. */
KELPIE_MUST_USE kelpie_outcome klp_vm_capture(const struct kelpie_op *op, struct kelpie_vm *vm,
                                              uint32_t reason, struct klp_capture *out,
                                              struct kelpie_error **err);
/* Running, a capture comes soon: makes its pause shorter, if the backend can. Nothing else depends
 * on it. May block for seconds. */
void klp_vm_capture_ahead(const struct kelpie_op *op, struct kelpie_vm *vm);
KELPIE_MUST_USE kelpie_outcome klp_vm_hold(const struct kelpie_op *op, struct kelpie_vm *vm,
                                           uint32_t reasons, struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome klp_vm_release(const struct kelpie_op *op, struct kelpie_vm *vm,
                                              uint32_t reasons, struct kelpie_error **err);
uint32_t klp_vm_holds(struct kelpie_vm *vm); /* enum klp_hold, as last heard from the keeper */

/* ---- restore: Created or Stopped -> Paused (hold RESTORE), with the workload still frozen inside.
 * prepare may come earlier, so that the hypervisor is up when the last pages arrive: it needs
 * machine and base. */
struct klp_vm_image {
    const struct klp_machine *machine;
    struct klp_layer *base;                     /* NULL = all zero; shared, not taken */
    struct klp_layer *overlays[KLP_LAYERS_MAX]; /* lowest first; not taken */
    size_t overlay_count;
    struct klp_bytes device_state;
};
KELPIE_MUST_USE kelpie_outcome klp_vm_prepare(const struct kelpie_op *op, struct kelpie_vm *vm,
                                              const struct klp_machine *machine,
                                              struct klp_layer *base, struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome klp_vm_restore(const struct kelpie_op *op, struct kelpie_vm *vm,
                                              const struct klp_vm_image *image,
                                              struct kelpie_error **err);

/* ---- lease and gate. */
/* Tells the keeper: this epoch may run until fence_at_ns (boot-time clock). DENIED for a lower
 * epoch. Also before there is a keeper: then it is told when it starts. Whoever calls this owns the
 * lease from then on; a VM that nobody leased leases itself for ever at epoch 0 when it starts, and
 * opens its own gate (library use). */
KELPIE_MUST_USE kelpie_outcome klp_vm_lease(const struct kelpie_op *op, struct kelpie_vm *vm,
                                            uint64_t epoch, uint64_t fence_at_ns,
                                            struct kelpie_error **err);
/* Closed: nothing of the guest passes to the outside, no exec begins; open only for this epoch and
 * only while the lease holds (checked with the clock at every answer). New VMs are closed. While
 * the gate is closed the calls of vm/guest.h that the uniqueness protocol needs still work. */
void klp_vm_gate_close(struct kelpie_vm *vm);
void klp_vm_gate_open(struct kelpie_vm *vm, uint64_t epoch);
bool klp_vm_gate_is_open(struct kelpie_vm *vm);

/* ---- the guest session, opened by need; resynchronised after a restore. Running only, but works
 * with a closed gate. Borrowed until klp_vm_guest_drop or the VM's end. */
KELPIE_MUST_USE kelpie_outcome klp_vm_guest(const struct kelpie_op *op, struct kelpie_vm *vm,
                                            struct klp_guest **out, struct kelpie_error **err);
void klp_vm_guest_drop(struct kelpie_vm *vm);

/* ---- exec in one piece: `input` is all of its standard input; of each output stream
 * KLP_EXEC_OUTPUT_MAX bytes are kept, what is more is cut and flagged. Of `exec`, callbacks and arg
 * are not used. */
struct klp_exec_output {
    struct kelpie_exec_status status;
    struct klp_buf out, err;
    bool truncated;
};
KELPIE_MUST_USE kelpie_outcome klp_exec_collect(const struct kelpie_op *op, struct kelpie_vm *vm,
                                                const struct kelpie_exec *exec,
                                                struct klp_bytes input, struct klp_exec_output *out,
                                                struct kelpie_error **err);
void klp_exec_output_finish(struct klp_exec_output *result); /* after OK */

/* Bytes kept by the keeper for a later daemon (<= 32 KiB). */
KELPIE_MUST_USE kelpie_outcome klp_vm_meta_set(const struct kelpie_op *op, struct kelpie_vm *vm,
                                               struct klp_bytes meta, struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome klp_vm_meta_get(const struct kelpie_op *op, struct kelpie_vm *vm,
                                               struct klp_buf *out, struct kelpie_error **err);
/* Asks the keeper again: state, holds, reason. */
KELPIE_MUST_USE kelpie_outcome klp_vm_refresh(const struct kelpie_op *op, struct kelpie_vm *vm,
                                              struct kelpie_error **err);
/* Returns OK when the VM died or was fenced / unfenced since the last refresh; TIMEOUT otherwise.
 */
KELPIE_MUST_USE kelpie_outcome klp_vm_watch(const struct kelpie_op *op, struct kelpie_vm *vm,
                                            struct kelpie_error **err);
const struct klp_machine *klp_vm_machine(const struct kelpie_vm *vm); /* borrowed */
/* The layer it was cloned from; asked back from the keeper after an adoption. Borrowed; NULL =
 * none. */
struct klp_layer *klp_vm_base(struct kelpie_vm *vm);
uint64_t klp_vm_epoch(struct kelpie_vm *vm); /* as last leased */

/* Kills without asking; the VM becomes Stopped. */
KELPIE_MUST_USE kelpie_outcome klp_vm_kill(const struct kelpie_op *op, struct kelpie_vm *vm,
                                           struct kelpie_error **err);
/* Lets go of the VM without touching it: the keeper goes on (daemon shutdown). */
void klp_vm_leave(struct kelpie_vm *vm);

/* The VMs whose keepers answer below the factory's folder, whoever started them: one id each.
 * Folders whose keeper is dead are emptied and removed. */
KELPIE_MUST_USE kelpie_outcome klp_vm_scan(const struct kelpie_op *op,
                                           struct kelpie_vm_factory *factory,
                                           bool (*each)(void *arg, const char *id), void *arg,
                                           struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome klp_vm_adopt(const struct kelpie_op *op,
                                            struct kelpie_vm_factory *factory, const char *id,
                                            struct kelpie_vm **out, struct kelpie_error **err);
/* For one that cannot be adopted: its keeper is told to end, its folder goes. A keeper that does
 * not answer has the order in its socket and ends, with its guest, as soon as it reads it. */
KELPIE_MUST_USE kelpie_outcome klp_vm_abandon(const struct kelpie_op *op,
                                              struct kelpie_vm_factory *factory, const char *id,
                                              struct kelpie_error **err);

/* Ends what was to be destroyed or abandoned and did not say that it ended: a keeper that stood
 * still then. BUSY: one still does, and its guest may run. */
KELPIE_MUST_USE kelpie_outcome klp_vm_sweep(const struct kelpie_op *op,
                                            struct kelpie_vm_factory *factory,
                                            struct kelpie_error **err);

/* ---- compatibility: may this factory run that machine? Every reason why not is appended to *err
 * of INCOMPATIBLE. Pure facts of the factory; no side effects. */
KELPIE_MUST_USE bool klp_vm_factory_accepts(struct kelpie_vm_factory *factory,
                                            const struct klp_machine *machine,
                                            struct kelpie_error **err);
/* The machine this factory would build for a config, without building it (the key of templates). */
KELPIE_MUST_USE bool klp_vm_factory_machine(struct kelpie_vm_factory *factory,
                                            const struct kelpie_vm_config *config,
                                            struct klp_machine *out, struct kelpie_error **err);

/* ---- for backends. A kept backend (Mock, QEMU, Sim) is: a table of facts, a machine for a config,
 * and a keeper that runs its hypervisor; all else is vm/keeper/client.c. */
struct klp_factory_ops {
    const char *name;
    uint32_t caps;
    bool slow_spawn; /* its process takes so long to come up that a node keeps one ready */
    /* Adds a reason to *faults (klp_error_reason_add: the error is there already) for every config
     * field it cannot honour; fills the machine. The config was checked, its zeros are replaced by
     * the defaults. */
    bool (*machine)(struct kelpie_vm_factory *, const struct kelpie_vm_config *,
                    struct klp_machine *, struct kelpie_error **faults);
    /* Backend and architecture are the same. NULL: then it runs whatever it made. */
    bool (*accepts)(struct kelpie_vm_factory *, const struct klp_machine *, struct kelpie_error **);
    /* Starts a keeper for VM `id` in its folder `dir` and waits until it listens on "keeper". */
    kelpie_outcome (*launch)(const struct kelpie_op *, struct kelpie_vm_factory *,
                             struct klp_dir *dir, const char *id, struct kelpie_error **);
    /* Handles the hypervisor needs beside the layers at SPAWN (kernel, initramfs), opened now;
     * count <= 4. */
    kelpie_outcome (*boot_files)(const struct kelpie_op *, struct kelpie_vm_factory *,
                                 const struct kelpie_vm_config *, struct klp_handle *out,
                                 size_t *count, struct kelpie_error **);
    void (*destroy)(struct kelpie_vm_factory *);
};
struct kelpie_vm_factory { /* first member of every backend's own */
    const struct klp_factory_ops *ops;
    struct klp_env *env;
    struct klp_dir *vms_dir; /* STATE/vms: one folder a VM */
    enum klp_arch arch;      /* it runs */
    uint64_t boot_timeout_ms;
};
void klp_vm_factory_destroy(struct kelpie_vm_factory *factory);

#endif
