/* SPDX-License-Identifier: Apache-2.0 */
/* The protocol of DESIGN 7, written once: the daemon runs it on real VMs, the simulator on SimVm.
 * Step numbers hold: 0 preflight, 1 intent, 2 pre-copy, 3 quiesce, 4 final, 5 claim (the only
 * commit point), 6 restore and run, 7 release, A abort. */
#ifndef KLP_TELEPORT_TELEPORT_H
#define KLP_TELEPORT_TELEPORT_H

#include "format/rest.h"
#include "registry/registry.h"
#include "snapshot/snapshot.h"

/* ---- what the protocol needs of the node it runs on. */
struct klp_host;
struct klp_host_ops {
    /* A VM of this agent for that machine over `base`: Created, perhaps prepared already; leased
     * for `epoch` as the node leases (renewed from now on). */
    kelpie_outcome (*vm_make)(const struct kelpie_op *, struct klp_host *, const char *agent_id,
                              const struct klp_machine *, struct klp_layer *base, uint64_t epoch,
                              struct kelpie_vm **, struct kelpie_error **);
    /* The resident layer of a template or base manifest, made resident if need be. Shared: close
     * it. */
    kelpie_outcome (*base_get)(const struct kelpie_op *, struct klp_host *,
                               const struct klp_digest *manifest, struct klp_layer **,
                               struct kelpie_error **);
    /* The template this host would start such an agent from (booted now if need be). */
    kelpie_outcome (*template_get)(const struct kelpie_op *, struct klp_host *,
                                   const struct klp_agent_identity *, struct klp_digest *,
                                   struct kelpie_error **);
    /* The hand-off note of an agent: durable before OK. `text`: klp_handoff_encode. */
    kelpie_outcome (*note_put)(const struct kelpie_op *, struct klp_host *, const char *agent_id,
                               struct klp_bytes text, struct kelpie_error **);
    kelpie_outcome (*note_remove)(const struct kelpie_op *, struct klp_host *, const char *agent_id,
                                  struct kelpie_error **);
    void (*event)(struct klp_host *, const char *type, const char *agent, const char *text);
};
struct klp_host {
    const struct klp_host_ops *ops;
    struct klp_env *env;
    const char *node; /* this node's name */
    struct klp_registry *registry;
    struct klp_snapshots snapshots;
    uint64_t lease_ttl_ms; /* a VM stands still two thirds of it after the renewal was sent */
    /* Facts for the gate; factories in order of preference. */
    struct kelpie_vm_factory **factories;
    size_t factory_count;
};

/* The ref that names an image of an architecture: "images/NAME/ARCH" (refs know no underscore:
 * x86-64). */
void klp_image_ref(char out[KLP_REF_NAME_MAX], const char *name, enum klp_arch arch);

/* ---- the compatibility gate (gate.c): every reason is collected, nothing is touched. */
/* May this host run that machine with that image? INCOMPATIBLE with all reasons; `Try:` names
 * --checkpoint. */
KELPIE_MUST_USE kelpie_outcome klp_gate_check(const struct kelpie_op *op, struct klp_host *host,
                                              enum klp_snapshot_kind kind,
                                              const struct klp_machine *machine,
                                              const struct klp_agent_identity *identity,
                                              struct kelpie_vm_factory **out_factory,
                                              struct kelpie_error **err);

/* ---- uniqueness (unique.c), after every restore, with the workload frozen (reliability-security
 * 5). */
/* Draws generation, entropy, ids; sends; checks the receipt against the case; fails closed. `seen`:
 * remembers kernel RNG samples of this node and refuses one seen before. Fills generation and the
 * four words of the record. */
struct klp_samples; /* bounded set of digests of samples */
struct klp_samples *klp_samples_create(struct klp_env *env);
void klp_samples_destroy(struct klp_samples *samples);
KELPIE_MUST_USE kelpie_outcome klp_unique_run(const struct kelpie_op *op,
                                              struct klp_samples *samples, struct kelpie_vm *vm,
                                              enum klp_unique_case which, const char *hostname,
                                              struct klp_agent_record *record,
                                              struct kelpie_error **err);
/* The pure part, for tests: is this receipt good enough for that request? CORRUPT lists every item
 * missing, false or twice. */
KELPIE_MUST_USE bool klp_receipt_check(const struct klp_unique_request *request,
                                       const struct klp_unique_receipt *receipt,
                                       struct kelpie_error **err);

/* ---- bring-up (bringup.c): step 6 of a teleport, and all of start, resume, fork and restore. */
/* What a VM is brought up from: verified pages in layers, and the device state. Made before
 * anything is claimed, so that damage is found while the agent still is where it was. */
struct klp_parts {
    struct klp_manifest manifest; /* owned */
    struct klp_digest digest;
    struct klp_layer *base;                     /* shared; NULL = all zero */
    struct klp_layer *overlays[KLP_LAYERS_MAX]; /* owned, lowest first */
    size_t overlay_count;
    struct klp_buf device_state; /* owned */
};
/* `below`: parts of an earlier snapshot of the same agent over the same base (a pre-copy), whose
 * layers are shared and only what differs from it is added; NULL = none. CORRUPT names the object
 * at fault. */
KELPIE_MUST_USE kelpie_outcome klp_parts_load(const struct kelpie_op *op, struct klp_host *host,
                                              const struct klp_digest *digest,
                                              const struct klp_parts *below, struct klp_parts *out,
                                              struct kelpie_error **err);
void klp_parts_finish(struct klp_parts *parts);

/* restore -> Paused, resume with the workload frozen, uniqueness, `prepare`, CAS to RUNNING, and
 * only when that is known: gate, thaw. `record` is the claimed record (owner = us, STARTING);
 * updated with every CAS. *vm may have been made (and prepared) before; NULL = made here. On
 * failure: the VM is destroyed (*vm NULL) and the record CASed to failure_state with the reason:
 * PARKED at the next epoch (its manifest kept), any other state at the same one. */
struct klp_bringup {
    const struct klp_parts *parts;
    enum klp_unique_case which;
    const char *hostname;
    struct klp_samples *samples;
    enum klp_agent_state failure_state;
    /* Runs between uniqueness and RUNNING, workload still frozen (SETUP of a first start); may be
     * NULL. */
    kelpie_outcome (*prepare)(const struct kelpie_op *, void *arg, struct kelpie_vm *,
                              struct kelpie_error **);
    /* Runs right after the thaw (the main process of a first start); its failure is a failure. May
     * be NULL. */
    kelpie_outcome (*thawed)(const struct kelpie_op *, void *arg, struct kelpie_vm *,
                             struct kelpie_error **);
    void *arg;
    bool leave_frozen; /* the caller thaws it, after its siblings are up; `thawed` does not run */
};
KELPIE_MUST_USE kelpie_outcome klp_bringup_run(const struct kelpie_op *op, struct klp_host *host,
                                               const struct klp_bringup *bringup,
                                               struct kelpie_vm **vm,
                                               struct klp_agent_record *record,
                                               struct kelpie_error **err);
/* A move ended before its hand-off note: its VM never stopped, and the registry has its intent or
 * is still to get it. `record` at a new epoch, RUNNING, which neither the intent nor a claim
 * survives. */
KELPIE_MUST_USE kelpie_outcome klp_teleport_intent_undo(const struct kelpie_op *op,
                                                        struct klp_host *host, struct kelpie_vm *vm,
                                                        struct klp_agent_record *record,
                                                        struct kelpie_error **err);
/* Removes the record as long as it is its owner's, whatever else it came to say. NOT_FOUND: it was
 * gone before. UNKNOWN: the op ended before the registry answered. CONFLICT: another's now. */
KELPIE_MUST_USE kelpie_outcome klp_record_delete(const struct kelpie_op *op,
                                                 struct klp_registry *registry,
                                                 struct klp_agent_record *record,
                                                 struct kelpie_error **err);
/* A lease of the VM for `record`, which a CAS sent at `sent_ns` made ours: it counts from then. Is
 * that a third of a lease ago or more, the registry was slow, and it is renewed first. */
KELPIE_MUST_USE kelpie_outcome klp_lease_since(const struct kelpie_op *op, struct klp_host *host,
                                               struct kelpie_vm *vm,
                                               const struct klp_agent_record *record,
                                               uint64_t sent_ns, struct kelpie_error **err);
/* A CAS whose outcome is made known: UNKNOWN is read back (DESIGN 2.6). OK: `record` is *next as
 * stored. FAIL(CONFLICT): someone else won; `record` is what is stored now if the agent is still
 * its owner's, else as it was. UNKNOWN: the op ended before the registry answered. */
KELPIE_MUST_USE kelpie_outcome klp_record_change(const struct kelpie_op *op,
                                                 struct klp_registry *registry,
                                                 struct klp_agent_record *record,
                                                 struct klp_agent_record *next,
                                                 struct kelpie_error **err);

/* ---- checkpoints (checkpoint.c): the agent's own state, no memory; any architecture. */
/* The workload is frozen. Fills a manifest of kind CHECKPOINT; finish it (also on failure). */
KELPIE_MUST_USE kelpie_outcome klp_checkpoint_write(const struct kelpie_op *op,
                                                    struct klp_host *host,
                                                    const struct klp_snapshot_request *request,
                                                    struct kelpie_vm *vm, struct klp_manifest *out,
                                                    struct kelpie_error **err);
/* prepare and thawed of a klp_bringup whose parts are a template: a fresh guest takes the agent's
 * name, environment and state before anybody can see it, then starts its main process. arg: */
struct klp_checkpoint {
    struct klp_host *host;
    const struct klp_manifest *manifest;
};
KELPIE_MUST_USE kelpie_outcome klp_checkpoint_prepare(const struct kelpie_op *op, void *checkpoint,
                                                      struct kelpie_vm *vm,
                                                      struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome klp_checkpoint_thawed(const struct kelpie_op *op, void *checkpoint,
                                                     struct kelpie_vm *vm,
                                                     struct kelpie_error **err);

/* Quiesce for any snapshot: freeze the workload inside the guest (hooks, file systems). thaw undoes
 * it. */
KELPIE_MUST_USE kelpie_outcome klp_workload_freeze(const struct kelpie_op *op, struct kelpie_vm *vm,
                                                   struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome klp_workload_thaw(const struct kelpie_op *op, struct kelpie_vm *vm,
                                                 struct kelpie_error **err);

/* ---- hand-off note: what a source must know after a crash. */
struct klp_handoff {
    char agent[KLP_ID_SIZE], move_id[KLP_ID_SIZE], destination[KLP_NAME_SIZE];
    uint64_t epoch; /* ours when we quiesced */
};
void klp_handoff_encode(const struct klp_handoff *note, struct klp_buf *out);
KELPIE_MUST_USE bool klp_handoff_decode(struct klp_bytes text, struct klp_handoff *out,
                                        struct kelpie_error **err);

/* ---- the source. */
struct klp_departure {
    struct kelpie_vm *vm;            /* Running or Paused */
    struct klp_agent_record *record; /* ours; updated with every CAS */
    const struct klp_agent_identity *identity;
    const char *const *env;
    const struct klp_node_record *destination;
    struct klp_snapshot_parent parent; /* what the store has already */
    struct klp_digest template_;
    uint64_t seq;
    bool checkpoint;       /* move the state only */
    uint64_t max_pause_ms; /* 0 = no bound; else LIMIT before anything is lost, and A */
};
struct klp_departure_result {
    struct klp_digest manifest; /* final snapshot */
    uint64_t blackout_ns;       /* gate closed here .. RUNNING there, as this node saw it */
    bool gone;                  /* the destination owns it; the caller destroys its VM */
};
/* Step 0 only (`--check`). */
KELPIE_MUST_USE kelpie_outcome klp_teleport_check(const struct kelpie_op *op, struct klp_host *host,
                                                  const struct klp_departure *departure,
                                                  struct kelpie_error **err);
/* OK and gone: done. FAIL: the agent runs here as before (or stands still, held by HANDOFF, if only
 * the registry can tell who owns it: then UNKNOWN, and klp_teleport_settle goes on later). */
KELPIE_MUST_USE kelpie_outcome klp_teleport_send(const struct kelpie_op *op, struct klp_host *host,
                                                 const struct klp_departure *departure,
                                                 struct klp_departure_result *out,
                                                 struct kelpie_error **err);
/* Recovery of a source: a VM that stands still with HANDOFF. Reads the registry until it answers:
 * *out_gone = the destination runs it (destroy yours); else the agent is ours again at a higher
 * epoch and runs. TIMEOUT: ask again. */
KELPIE_MUST_USE kelpie_outcome klp_teleport_settle(const struct kelpie_op *op,
                                                   struct klp_host *host, struct kelpie_vm *vm,
                                                   const struct klp_handoff *note,
                                                   struct klp_agent_record *record, bool *out_gone,
                                                   struct kelpie_error **err);
/* The same in portions: what one call saw of a destination that claimed and then is silent counts
 * for the next, else a dead one would never be found out. Zeroed before the first call of a
 * hand-off. */
struct klp_settle_watch {
    uint64_t beat, revision, since_ns;
};
KELPIE_MUST_USE kelpie_outcome klp_teleport_settle_on(const struct kelpie_op *op,
                                                      struct klp_host *host, struct kelpie_vm *vm,
                                                      const struct klp_handoff *note,
                                                      struct klp_settle_watch *watch,
                                                      struct klp_agent_record *record,
                                                      bool *out_gone, struct kelpie_error **err);

/* ---- the destination. Messages are hints: each is safe twice, late, or never. */
struct klp_arrival; /* a prepared place: VM shell and resident base, by move id */
KELPIE_MUST_USE kelpie_outcome klp_arrival_prepare(const struct kelpie_op *op,
                                                   struct klp_host *host,
                                                   const struct klp_peer_request *request,
                                                   struct klp_arrival **out,
                                                   struct kelpie_error **err);
void klp_arrival_drop(const struct kelpie_op *op, struct klp_arrival *arrival);
/* Steps 5 and 6. `arrival` may be NULL; taken over. On OK *vm runs and *record is ours. Else
 * *record has no owner, or is the claimed one whose failure could not be recorded: the caller's to
 * finish. */
KELPIE_MUST_USE kelpie_outcome klp_arrival_accept(
    const struct kelpie_op *op, struct klp_host *host, struct klp_arrival *arrival,
    const struct klp_peer_request *request, struct klp_samples *samples, struct kelpie_vm **vm,
    struct klp_agent_record *record, struct klp_manifest *manifest, struct kelpie_error **err);

#endif
