/* SPDX-License-Identifier: Apache-2.0 */
/* The keeper's logic: parent, guard and fence of one hypervisor. Linked into kelpie-keeper and into
 * the simulator. Tasks: one accepts, one a connection serves orders, one waits for the hypervisor's
 * end, one watches the lease and never waits for anything else. */
#ifndef KLP_VM_KEEPER_KEEPER_H
#define KLP_VM_KEEPER_KEEPER_H

#include "env/chan.h"
#include "format/keeper_frame.h"
#include "format/machine.h"

#define KLP_KEEPER_SOCKET "keeper" /* name in the VM's folder */
#define KLP_KEEPER_ENDED "ended"   /* there: its end was ordered and not awaited; the folder goes */

/* ---- a hypervisor as its keeper sees it; one implementation a backend (vm/mock, vm/qemu, sim/).
 */
struct klp_hypervisor_ops;
struct klp_hypervisor { /* first member */
    const struct klp_hypervisor_ops *ops;
    struct klp_env *env;
};
struct klp_hypervisor_exit {
    bool clean;       /* the guest powered itself off, or it was told to */
    int code, signal; /* of the process */
    char reason[192]; /* "guest kernel panicked", "killed by signal 9", ... */
};
struct klp_hypervisor_ops {
    const char *name;
    /* Starts the process. COLD: it begins to run at once unless held. INCOMING: it waits for load.
     * base: none = all zero. Handles stay the caller's. FAIL: as if it had never been called. */
    kelpie_outcome (*spawn)(const struct kelpie_op *, struct klp_hypervisor *, enum klp_spawn_mode,
                            const struct klp_machine *, struct klp_handle base,
                            const struct klp_handle *files, size_t file_count,
                            struct kelpie_error **);
    /* Lays overlays over the base, loads the device state; the guest stands still. */
    kelpie_outcome (*load)(const struct kelpie_op *, struct klp_hypervisor *,
                           struct klp_handle device_state, const struct klp_handle *overlays,
                           size_t overlay_count, struct kelpie_error **);
    /* FAIL: the guest is as it was before, or will be as soon as its process runs again (an order
     * that was not answered must not take effect later, when nobody thinks of it). */
    kelpie_outcome (*stop)(const struct kelpie_op *, struct klp_hypervisor *,
                           struct kelpie_error **);
    kelpie_outcome (*cont)(const struct kelpie_op *, struct klp_hypervisor *,
                           struct kelpie_error **);
    /* Cannot be refused, does not wait: SIGSTOP / SIGCONT of the process. */
    void (*freeze)(struct klp_hypervisor *);
    void (*unfreeze)(struct klp_hypervisor *);
    /* Running guest: prepares for a capture that comes soon. May be NULL, both: there is nothing to
     * prepare. drop: it does not come; always possible. */
    kelpie_outcome (*ahead)(const struct kelpie_op *, struct klp_hypervisor *,
                            struct kelpie_error **);
    void (*ahead_drop)(struct klp_hypervisor *);
    /* Stopped guest: device state and the sparse layer of pages that differ from base, both sealed.
     */
    kelpie_outcome (*capture)(const struct kelpie_op *, struct klp_hypervisor *,
                              struct klp_handle *device_state, struct klp_handle *dirty,
                              struct kelpie_error **);
    kelpie_outcome (*guest)(const struct kelpie_op *, struct klp_hypervisor *,
                            struct klp_handle *out, struct kelpie_error **);
    /* Blocks until the process is gone and reaped. */
    kelpie_outcome (*wait)(const struct kelpie_op *, struct klp_hypervisor *,
                           struct klp_hypervisor_exit *, struct kelpie_error **);
    void (*kill)(struct klp_hypervisor *); /* SIGKILL; idempotent */
    int64_t (*pid)(struct klp_hypervisor *);
    size_t (*console)(struct klp_hypervisor *, char *out, size_t capacity); /* the last bytes */
    void (*destroy)(struct klp_hypervisor *); /* after wait, or never spawned */
};

struct klp_keeper_options {
    char vm[KLP_ID_SIZE];
    struct klp_dir *dir; /* the VM's folder; the socket lives in it */
    struct klp_hypervisor *hypervisor;
    uint64_t orphan_ms; /* an EMPTY or DEAD keeper that nobody talks to ends after this long */
    uint64_t ahead_ms;  /* what AHEAD prepared is kept so long; 0 = 10,000 */
    int64_t pid;        /* of this process, for STATUS */
    void (*ready)(void *arg); /* called once it listens; NULL = nobody waits for that */
    void *ready_arg;
};
/* Serves until EXIT is ordered, or the hypervisor is dead and nobody asked for orphan_ms. The VM
 * starts out fenced: it runs only once a LEASE came. Kills the hypervisor on every way out, and
 * removes what lies in the VM's folder. What a fenced VM cannot do (its process does not run): be
 * held when it was not held before, be captured: STATE. A RELEASE takes effect with the LEASE that
 * ends the fence. */
KELPIE_MUST_USE kelpie_outcome klp_keeper_serve(struct klp_env *env,
                                                const struct klp_keeper_options *options,
                                                struct kelpie_error **err);

#endif
