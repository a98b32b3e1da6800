/* SPDX-License-Identifier: Apache-2.0 */
/* The protocol of DESIGN 7, written once: the daemon runs it on real VMs, the simulator on SimVm.
 * Step numbers hold: 0 preflight, 1 intent, 2 pre-copy, 3 quiesce, 4 final, 5 claim (the only commit point),
 * 6 restore and run, 7 release, A abort. */
#ifndef KLP_TELEPORT_TELEPORT_H
#define KLP_TELEPORT_TELEPORT_H

#include "format/rest.h"
#include "registry/registry.h"
#include "snapshot/snapshot.h"

/* ---- what the protocol needs of the node it runs on. */
struct klp_host;
struct klp_host_ops {
    /* A VM of this agent, Created, leased for `epoch` as the node leases (renewed from now on). */
    kelpie_outcome (*vm_make)(const struct kelpie_op *, struct klp_host *, const struct klp_agent_identity *,
                              const struct klp_machine *, uint64_t epoch, struct kelpie_vm **, struct kelpie_error **);
    /* The resident layer of a template or base manifest, made resident if need be. Shared: close it. */
    kelpie_outcome (*base_get)(const struct kelpie_op *, struct klp_host *, const struct klp_digest *manifest,
                               struct klp_layer **, struct kelpie_error **);
    /* The hand-off note of an agent: durable before OK. `text`: klp_handoff_encode. */
    kelpie_outcome (*note_put)(const struct kelpie_op *, struct klp_host *, const char *agent_id, struct klp_bytes text, struct kelpie_error **);
    kelpie_outcome (*note_remove)(const struct kelpie_op *, struct klp_host *, const char *agent_id, struct kelpie_error **);
    /* When the lease that was last known renewed ends for us: the keeper's fence time. */
    uint64_t (*fence_at_ns)(struct klp_host *, uint64_t renewal_sent_ns);
    void (*event)(struct klp_host *, const char *type, const char *agent, const char *text);
};
struct klp_host {
    const struct klp_host_ops *ops;
    struct klp_env *env;
    const char *node;            /* this node's name */
    struct klp_registry *registry;
    struct klp_snapshots snapshots;
    uint64_t lease_ttl_ms;
    /* Facts for the gate; factories in order of preference. */
    struct kelpie_vm_factory **factories;
    size_t factory_count;
};

/* ---- the compatibility gate (gate.c): every reason is collected, nothing is touched. */
/* May this host run that machine with that image? INCOMPATIBLE with all reasons; `Try:` names --checkpoint. */
KELPIE_MUST_USE kelpie_outcome klp_gate_check(const struct kelpie_op *op, struct klp_host *host,
                                              enum klp_snapshot_kind kind,
                                              const struct klp_machine *machine,
                                              const struct klp_agent_identity *identity,
                                              struct kelpie_vm_factory **out_factory,
                                              struct kelpie_error **err);

/* ---- uniqueness (unique.c), after every restore, with the workload frozen (reliability-security 5). */
/* Draws generation, entropy, ids; sends; checks the receipt against the case; fails closed. `seen`: remembers kernel
 * RNG samples of this node and refuses one seen before. Fills generation and the four words of the record. */
struct klp_samples; /* bounded set of digests of samples */
struct klp_samples *klp_samples_create(struct klp_env *env);
void klp_samples_destroy(struct klp_samples *samples);
KELPIE_MUST_USE kelpie_outcome klp_unique_run(const struct kelpie_op *op, struct klp_env *env,
                                              struct klp_samples *samples, struct kelpie_vm *vm,
                                              enum klp_unique_case which, const char *hostname,
                                              struct klp_agent_record *record,
                                              struct kelpie_error **err);
/* The pure part, for tests: is this receipt good enough for that request? CORRUPT lists every item missing, false or twice. */
KELPIE_MUST_USE bool klp_receipt_check(const struct klp_unique_request *request,
                                       const struct klp_unique_receipt *receipt,
                                       struct kelpie_error **err);

/* ---- bring-up (bringup.c): steps 6 of a teleport, and all of start, resume, fork and restore: restore -> Paused,
 * resume with the workload frozen, uniqueness, CAS to RUNNING, and only when that is known: gate, thaw.
 * `record` is the claimed record (owner = us, STARTING); updated. `vm` may have been prepared.
 * On failure after the claim: the VM is destroyed, the record CASed to PARKED (manifest kept) with the reason. */
struct klp_bringup {
    const struct klp_manifest *manifest; /* what is restored */
    enum klp_unique_case which;
    const char *hostname;
    struct klp_samples *samples;
    /* Runs between uniqueness and RUNNING, workload still frozen (first start: SETUP); may be NULL. */
    kelpie_outcome (*prepare)(const struct kelpie_op *, void *arg, struct kelpie_vm *, struct kelpie_error **);
    void *arg;
};
KELPIE_MUST_USE kelpie_outcome klp_bringup_run(const struct kelpie_op *op, struct klp_host *host,
                                               const struct klp_bringup *bringup,
                                               struct kelpie_vm **vm, struct klp_agent_record *record,
                                               struct kelpie_error **err);

/* ---- hand-off note: what a source must know after a crash. */
struct klp_handoff {
    char agent[KLP_ID_SIZE], move_id[KLP_ID_SIZE], destination[KLP_NAME_SIZE];
    uint64_t epoch; /* ours when we quiesced */
};
void klp_handoff_encode(const struct klp_handoff *note, struct klp_buf *out);
KELPIE_MUST_USE bool klp_handoff_decode(struct klp_bytes text, struct klp_handoff *out, struct kelpie_error **err);

/* ---- the source. */
struct klp_departure {
    struct kelpie_vm *vm;                 /* Running or Paused */
    struct klp_agent_record *record;      /* ours; updated with every CAS */
    const struct klp_agent_identity *identity;
    const char *const *env;
    const struct klp_node_record *destination;
    struct klp_snapshot_parent parent;    /* what the store has already */
    struct klp_digest template_;
    uint64_t seq;
    bool checkpoint;                      /* move the state only */
    uint64_t max_pause_ms;                /* 0 = no bound; else LIMIT before anything is lost, and A */
};
struct klp_departure_result {
    struct klp_digest manifest;           /* final snapshot */
    uint64_t blackout_ns;                 /* gate closed here .. RUNNING there, as this node saw it */
    bool gone;                            /* the destination owns it; the caller destroys its VM */
};
/* Step 0 only (`--check`). */
KELPIE_MUST_USE kelpie_outcome klp_teleport_check(const struct kelpie_op *op, struct klp_host *host,
                                                  const struct klp_departure *departure,
                                                  struct kelpie_error **err);
/* OK and gone: done. FAIL: the agent runs here as before (or stands still, held by HANDOFF, if only the registry can
 * tell who owns it: then UNKNOWN, and klp_teleport_settle goes on later). */
KELPIE_MUST_USE kelpie_outcome klp_teleport_send(const struct kelpie_op *op, struct klp_host *host,
                                                 const struct klp_departure *departure,
                                                 struct klp_departure_result *out,
                                                 struct kelpie_error **err);
/* Recovery of a source: a VM that stands still with HANDOFF. Reads the registry until it answers: *out_gone = the
 * destination runs it (destroy yours); else the agent is ours again at a higher epoch and runs. TIMEOUT: ask again. */
KELPIE_MUST_USE kelpie_outcome klp_teleport_settle(const struct kelpie_op *op, struct klp_host *host,
                                                   struct kelpie_vm *vm, const struct klp_handoff *note,
                                                   struct klp_agent_record *record, bool *out_gone,
                                                   struct kelpie_error **err);

/* ---- the destination. Messages are hints: each is safe twice, late, or never. */
struct klp_arrival; /* a prepared place: VM shell and resident base, by move id */
KELPIE_MUST_USE kelpie_outcome klp_arrival_prepare(const struct kelpie_op *op, struct klp_host *host,
                                                   const struct klp_peer_request *request,
                                                   struct klp_arrival **out, struct kelpie_error **err);
void klp_arrival_drop(const struct kelpie_op *op, struct klp_arrival *arrival);
/* Steps 5 and 6. `arrival` may be NULL; taken over. On OK *vm runs and *record is ours; *identity and *env are filled. */
KELPIE_MUST_USE kelpie_outcome klp_arrival_accept(const struct kelpie_op *op, struct klp_host *host,
                                                  struct klp_arrival *arrival,
                                                  const struct klp_peer_request *request,
                                                  struct klp_samples *samples, struct kelpie_vm **vm,
                                                  struct klp_agent_record *record,
                                                  struct klp_manifest *manifest,
                                                  struct kelpie_error **err);

#endif
