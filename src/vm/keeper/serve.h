/* SPDX-License-Identifier: Apache-2.0 */
/* What the keeper's files share. */
#ifndef KLP_VM_KEEPER_SERVE_H
#define KLP_VM_KEEPER_SERVE_H

#include "base/limits.h"
#include "vm/keeper/keeper.h"

#define KEEPER_CONNECTIONS_MAX 16
#define KEEPER_META_MAX (32 * KLP_KIB)
#define KEEPER_CONSOLE_MAX (16 * KLP_KIB)
#define KEEPER_SEND_MS 5000
#define KEEPER_AHEAD_MS 5000       /* preparing a capture may take */
#define KEEPER_AHEAD_KEPT_MS 10000 /* and then it is expected to come */

struct keeper;
struct keeper_connection {
    struct keeper *keeper;
    struct klp_chan *chan; /* (m) NULL = free slot */
    struct klp_task *task;
    bool watches; /* (m) */
    bool ended;   /* (m) its task is about to return */
};

/* `mutex` guards the fields marked (m) and is never held over a call to the hypervisor: the lease
 * task takes it and must never wait long. The hypervisor's orders are serialised by `busy`. */
struct keeper {
    struct klp_env *env;
    const struct klp_keeper_options *options;
    struct klp_hypervisor *hypervisor;
    struct klp_mutex *mutex;
    struct klp_cond *changed;  /* any (m) field */
    struct klp_cancel *cancel; /* ends every task */
    struct klp_listener *listener;
    struct klp_task *accept_task, *lease_task, *wait_task;
    bool busy;                      /* (m) somebody orders the hypervisor */
    bool spawning;                  /* (m) the hypervisor is being started */
    bool spawned;                   /* (m) it was; wait_task runs */
    bool ending;                    /* (m) EXIT came: nothing is started any more */
    bool exiting;                   /* (m) EXIT was answered */
    enum klp_keeper_state state;    /* (m) */
    uint32_t holds;                 /* (m) */
    bool stopped;                   /* (m) the hypervisor was told to stand still */
    bool behind;                    /* (m) `stopped` is to follow the holds when the fence ends */
    uint64_t epoch, fence_at_ns;    /* (m) */
    bool lease_given;               /* (m) */
    uint64_t ahead_until_ns;        /* (m) what AHEAD prepared goes then; 0 = there is nothing */
    uint64_t last_talk_ns;          /* (m) */
    unsigned connection_count;      /* (m) */
    struct klp_hypervisor_exit end; /* (m) once DEAD */
    struct klp_handle base;         /* (m) */
    struct klp_buf machine, meta;   /* (m) */
    struct keeper_connection connections[KEEPER_CONNECTIONS_MAX];
};

struct keeper_answer { /* to one order */
    struct klp_buf fields;
    struct klp_handle handles[KLP_KEEPER_HANDLES_MAX];
    size_t handle_count; /* closed after sending */
    bool exit_after;
};

/* orders.c */
KELPIE_MUST_USE kelpie_outcome keeper_order(const struct kelpie_op *op, struct keeper *keeper,
                                            struct keeper_connection *connection,
                                            const struct klp_keeper_frame *frame,
                                            const struct klp_handle *handles, size_t handle_count,
                                            struct keeper_answer *answer,
                                            struct kelpie_error **err);
/* serve.c */
void keeper_status(struct keeper *keeper, struct klp_buf *out); /* fields; takes the mutex */
void keeper_notify(struct keeper *keeper);                      /* EVENT to all watchers */
void keeper_wait_run(void *keeper);                             /* waits for the hypervisor's end */
KELPIE_MUST_USE kelpie_outcome keeper_busy_take(const struct kelpie_op *op, struct keeper *keeper,
                                                struct kelpie_error **err);
void keeper_busy_give(struct keeper *keeper);
/* Under the mutex: what AHEAD prepared will not be used. */
void keeper_ahead_end(struct keeper *keeper);
/* Kills the hypervisor if there is one, and waits until it is reaped. */
KELPIE_MUST_USE kelpie_outcome keeper_kill(const struct kelpie_op *op, struct keeper *keeper,
                                           struct kelpie_error **err);
/* Removes all that lies in the VM's folder. */
void keeper_folder_clear(struct keeper *keeper);
/* lease.c */
void keeper_lease_run(void *keeper);
/* Under the mutex: fences or ends the fence by what the clock says. Never blocks. True if it
 * changed. */
bool keeper_fence_apply(struct keeper *keeper);

#endif
