/* SPDX-License-Identifier: Apache-2.0 */
/* The agents of one host: lifecycle, leases, operations, journal, events, templates, images,
 * recovery at start. api/ calls this; every call may block until the op ends; agents are named by
 * name (any agent this node owns; api/ forwards the others: klp_node_owner). */
#ifndef KLP_NODE_NODE_H
#define KLP_NODE_NODE_H

#include "env/file.h"
#include "format/image.h"
#include "format/rest.h"
#include "teleport/teleport.h"

struct klp_node;

struct klp_node_options {
    struct klp_env *env;
    const char *name;     /* node name */
    const char *endpoint; /* where peers reach it */
    struct klp_dir
        *state_dir; /* STATE: agents/, vms/, notes/, journal; borrowed for the node's life */
    struct klp_store *store;              /* borrowed */
    struct klp_registry *registry;        /* borrowed */
    struct kelpie_vm_factory **factories; /* borrowed; first = the default backend */
    size_t factory_count;
    uint64_t lease_ttl_ms;    /* default 30,000 */
    uint64_t boot_timeout_ms; /* of a template */
    const char *guest_path;   /* kelpie-guest, for image digests; may be NULL */
    bool keep_spare; /* a started hypervisor over the last template, where starting one is slow */
};
/* Puts the node's record, recovers: adopts VMs whose keepers answer, settles hand-offs, marks the
 * dead, removes leftovers. Starts the lease and watch tasks. */
KELPIE_MUST_USE kelpie_outcome klp_node_open(const struct kelpie_op *op,
                                             const struct klp_node_options *options,
                                             struct klp_node **out, struct kelpie_error **err);
/* stop_agents: stops them first; else leaves the VMs to their keepers. */
void klp_node_close(const struct kelpie_op *op, struct klp_node *node, bool stop_agents);
const char *klp_node_name(const struct klp_node *node);

/* ---- agents. *out must be finished. */
KELPIE_MUST_USE kelpie_outcome klp_node_agent_create(const struct kelpie_op *op,
                                                     struct klp_node *node,
                                                     const struct klp_agent_request *request,
                                                     struct klp_agent_info *out,
                                                     struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome klp_node_agent_get(
    const struct kelpie_op *op, struct klp_node *node, const char *name, struct klp_agent_info *out,
    struct kelpie_error **err); /* of any node; pid only for ours */
KELPIE_MUST_USE kelpie_outcome klp_node_agent_list(const struct kelpie_op *op,
                                                   struct klp_node *node,
                                                   bool (*each)(void *arg,
                                                                const struct klp_agent_info *agent),
                                                   void *arg, struct kelpie_error **err);
/* *out_mine, or the owner's endpoint (into a KLP_ENDPOINT_SIZE buffer). UNREACHABLE when the
 * owner's node is gone. */
KELPIE_MUST_USE kelpie_outcome klp_node_owner(const struct kelpie_op *op, struct klp_node *node,
                                              const char *name, bool *out_mine, char *out_endpoint,
                                              struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome klp_node_agent_start(
    const struct kelpie_op *op, struct klp_node *node, const char *name,
    struct kelpie_error *
        *err); /* created, stopped, suspended, parked, crashed (from its last snapshot) */
KELPIE_MUST_USE kelpie_outcome klp_node_agent_stop(const struct kelpie_op *op,
                                                   struct klp_node *node, const char *name,
                                                   uint64_t grace_ms, struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome
klp_node_agent_kill(const struct kelpie_op *op, struct klp_node *node, const char *name, int signal,
                    struct kelpie_error **err); /* signal to the main process; 9 = the VM */
KELPIE_MUST_USE kelpie_outcome klp_node_agent_remove(const struct kelpie_op *op,
                                                     struct klp_node *node, const char *name,
                                                     bool force, struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome klp_node_agent_pause(const struct kelpie_op *op,
                                                    struct klp_node *node, const char *name,
                                                    struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome
klp_node_agent_resume(const struct kelpie_op *op, struct klp_node *node, const char *name,
                      struct kelpie_error **err); /* paused, suspended, parked */
/* "running", "stopped", "ready" (running and its agent answers): waits until the op ends. */
KELPIE_MUST_USE kelpie_outcome klp_node_agent_wait(const struct kelpie_op *op,
                                                   struct klp_node *node, const char *name,
                                                   const char *condition,
                                                   struct klp_agent_info *out,
                                                   struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome klp_node_exec(const struct kelpie_op *op, struct klp_node *node,
                                             const char *name, const struct kelpie_exec *exec,
                                             struct kelpie_exec_status *out,
                                             struct kelpie_error **err);
/* For kelpie_exec.control. NULL + STATE when it does not run. */
KELPIE_MUST_USE kelpie_outcome klp_node_exec_control(const struct kelpie_op *op,
                                                     struct klp_node *node, const char *name,
                                                     struct kelpie_exec_control **out,
                                                     struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome klp_node_put(const struct kelpie_op *op, struct klp_node *node,
                                            const char *name, const char *path,
                                            size_t (*input)(void *, void *, size_t), void *arg,
                                            struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome klp_node_get(const struct kelpie_op *op, struct klp_node *node,
                                            const char *name, const char *path,
                                            bool (*output)(void *, const void *, size_t), void *arg,
                                            struct kelpie_error **err);
/* Output of the main process; console = the serial console instead. Also of agents that do not run.
 */
KELPIE_MUST_USE kelpie_outcome
klp_node_logs(const struct kelpie_op *op, struct klp_node *node, const char *name, bool follow,
              bool console, bool (*output)(void *, bool is_stderr, const void *, size_t), void *arg,
              struct kelpie_exec_status *out_status, bool *out_ended, struct kelpie_error **err);

/* ---- snapshots. */
KELPIE_MUST_USE kelpie_outcome klp_node_snapshot_create(const struct kelpie_op *op,
                                                        struct klp_node *node, const char *agent,
                                                        const struct klp_action_request *request,
                                                        struct klp_snapshot_info *out,
                                                        struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome klp_node_snapshot_get(const struct kelpie_op *op,
                                                     struct klp_node *node, const char *id_or_label,
                                                     struct klp_snapshot_info *out,
                                                     struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome klp_node_snapshot_list(
    const struct kelpie_op *op, struct klp_node *node,
    bool (*each)(void *, const struct klp_snapshot_info *), void *arg, struct kelpie_error **err);
/* CONFLICT when an agent's record still names it as where it is brought up from, unless force. */
KELPIE_MUST_USE kelpie_outcome klp_node_snapshot_remove(const struct kelpie_op *op,
                                                        struct klp_node *node,
                                                        const char *id_or_label, bool force,
                                                        struct kelpie_error **err);

/* ---- operations: begin returns at once with an id; they go on when the caller goes away, and are
 * in the journal. A key (Idempotency-Key, may be NULL) that was seen with the same request returns
 * the same operation; with another: CONFLICT. */
enum klp_operation_kind { KLP_OP_SUSPEND, KLP_OP_FORK, KLP_OP_RESTORE, KLP_OP_TELEPORT };
KELPIE_MUST_USE kelpie_outcome klp_node_operation_begin(
    const struct kelpie_op *op, struct klp_node *node, enum klp_operation_kind kind,
    const char *subject, /* agent, or snapshot (fork, restore) */
    const struct klp_action_request *request, const char *key, char out_id[KLP_ID_SIZE],
    struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome
klp_node_operation_get(const struct kelpie_op *op, struct klp_node *node, const char *id,
                       uint64_t wait_ms, struct klp_operation_info *out,
                       struct kelpie_error **err); /* returns when it ended or wait_ms passed */
KELPIE_MUST_USE kelpie_outcome klp_node_operation_cancel(const struct kelpie_op *op,
                                                         struct klp_node *node, const char *id,
                                                         struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome klp_node_operation_list(
    const struct kelpie_op *op, struct klp_node *node,
    bool (*each)(void *, const struct klp_operation_info *), void *arg, struct kelpie_error **err);

/* ---- nodes, images, events. */
KELPIE_MUST_USE kelpie_outcome
klp_node_list(const struct kelpie_op *op, struct klp_node *node,
              bool (*each)(void *, const struct klp_node_record *, const char *state), void *arg,
              struct kelpie_error **err); /* state: ready, draining, unreachable */
KELPIE_MUST_USE kelpie_outcome klp_node_image_list(
    const struct kelpie_op *op, struct klp_node *node,
    bool (*each)(void *, const struct klp_image_info *), void *arg, struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome klp_node_image_get(const struct kelpie_op *op, struct klp_node *node,
                                                  const char *name, enum klp_arch arch,
                                                  struct klp_image_info *out,
                                                  struct kelpie_error **err);
/* Names an image whose parts are in the store already (see klp_store_put); replaces the name's
 * former one. */
KELPIE_MUST_USE kelpie_outcome klp_node_image_put(const struct kelpie_op *op, struct klp_node *node,
                                                  const struct klp_image *image,
                                                  struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome klp_node_image_remove(const struct kelpie_op *op,
                                                     struct klp_node *node, const char *name,
                                                     enum klp_arch arch, struct kelpie_error **err);
/* Events after `since`, up to `capacity`; waits until there is one or the op ends (then *out_count
 * 0 and OK). The first is a "gap" when `since` is older than the ring. */
KELPIE_MUST_USE kelpie_outcome klp_node_events(const struct kelpie_op *op, struct klp_node *node,
                                               uint64_t since, struct klp_event *out,
                                               size_t capacity, size_t *out_count,
                                               struct kelpie_error **err);
struct klp_store *klp_node_store(struct klp_node *node);

/* ---- from peers (api/): the destination's side of a move. */
KELPIE_MUST_USE kelpie_outcome klp_node_peer(
    const struct kelpie_op *op, struct klp_node *node,
    const char *verb, /* preflight prepare accept cancel status */
    const struct klp_peer_request *request, struct klp_peer_answer *out, struct kelpie_error **err);

#endif
