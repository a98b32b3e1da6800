/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of node/ share. Locking: `mutex` guards the tables and every field marked (m), and
 * is never held over a call that blocks. An agent's op slot is held by whoever changes it; fields
 * marked (s) belong to the holder. */
#ifndef KLP_NODE_INSIDE_H
#define KLP_NODE_INSIDE_H

#include "base/list.h"
#include "node/node.h"

#define NODE_AGENTS_MAX 4096
#define NODE_OPERATIONS_MAX 256 /* remembered */
#define NODE_EVENTS_MAX 1024
#define NODE_BASES_MAX 4  /* resident template layers */
#define NODE_PARTS_MAX 16 /* kernels and initramfs remembered as whole */
#define NODE_ARRIVALS_MAX 32
#define NODE_FORKS_MAX 64 /* of one operation */
#define NODE_CLEANUP_MS 20000

/* One run of an agent's VM on this node: from bring-up until the VM is let go of. */
struct life {
    struct node_agent *agent;
    struct kelpie_vm *vm;
    unsigned users;                      /* (m) execs and the like */
    struct klp_cancel *cancel;           /* ends the two tasks */
    struct klp_task *watcher, *follower; /* death of the VM; output and end of the main process */
};

struct node_agent {
    struct klp_list link; /* (m) */
    struct klp_node *node;
    char id[KLP_ID_SIZE], name[KLP_NAME_SIZE];
    bool busy;                          /* (m) the op slot */
    bool forgotten;                     /* (m) not in the table any more */
    unsigned references;                /* (m) */
    struct klp_agent_record record;     /* (s), copied under (m) */
    struct life *life;                  /* (m) to read, (s) to change; NULL = no VM here */
    struct klp_agent_identity identity; /* (s) */
    char **env;                         /* (s) */
    uint64_t seq;                       /* (s) of the last snapshot */
    struct klp_digest template_;        /* (s) the VM was cloned from; zero = none */
    bool remove_at_end;
    struct klp_settle_watch settle; /* (s) of a hand-off that is open */
    bool intent_open; /* (s) of a move whose intent is to be taken back; it may not have arrived yet
                       */
};

struct base { /* a resident template layer */
    struct klp_digest digest;
    struct klp_layer *layer;
    uint64_t used; /* for evicting the one not used for longest */
};

enum chore_kind {
    CHORE_DIED,
    CHORE_MAIN_ENDED,
    CHORE_SETTLE,
    CHORE_LOST,
    CHORE_RECORD,
    CHORE_WAKE,
    CHORE_ASK /* did a suspension come through? */
};
struct chore { /* what a task noticed and the janitor does */
    struct klp_list link;
    enum chore_kind kind;
    char agent[KLP_ID_SIZE];
    const struct life *life;    /* compared, never followed */
    enum klp_agent_state state; /* of CHORE_RECORD */
    char text[160];
};

struct operation {
    struct klp_list link;
    struct klp_node *node;
    enum klp_operation_kind kind;
    struct klp_operation_info info; /* (m) */
    char subject[KLP_NAME_SIZE], key[128], request_hash[KLP_DIGEST_SIZE];
    struct klp_action_request request;
    struct klp_cancel *cancel;
    struct klp_progress *progress;
    struct klp_task *task;
    bool ended; /* (m) */
};

struct arrival_slot {
    char move_id[KLP_ID_SIZE], agent_id[KLP_ID_SIZE];
    struct klp_arrival *arrival; /* NULL = free */
};

struct spare { /* a VM that is prepared and nobody's; vm NULL = none */
    struct kelpie_vm *vm;
    struct klp_machine machine;
    struct klp_layer *base;
};

struct spare_wish { /* base NULL = none */
    struct klp_machine machine;
    struct klp_layer *base;
    uint64_t not_before_ns; /* boot-time clock */
};

struct klp_node {
    struct klp_host host; /* first: the teleport's view */
    struct klp_node_options options;
    char name[KLP_NAME_SIZE];
    char *endpoint;
    struct klp_mutex *mutex;
    struct klp_cond *changed; /* any (m) field */
    struct klp_samples *samples;
    struct klp_dir *agents_dir, *notes_dir, *operations_dir;
    struct klp_list agents, operations, chores;      /* (m) */
    bool sweep_due;                                  /* (m) the janitor looks for VMs to end */
    bool undead;                                     /* (m) the last look left one that may live */
    unsigned agent_count, operation_count;           /* (m) */
    struct base bases[NODE_BASES_MAX];               /* (m) */
    uint64_t base_clock;                             /* (m) */
    struct klp_digest parts[NODE_PARTS_MAX];         /* (m) of images: found whole by this daemon */
    unsigned part_count;                             /* (m) counts on: the place is its remainder */
    bool template_busy;                              /* (m) one template is booted at a time */
    struct arrival_slot arrivals[NODE_ARRIVALS_MAX]; /* (m) */
    char accepting[NODE_ARRIVALS_MAX][KLP_ID_SIZE];  /* (m) agents that are being taken in */
    struct klp_event *events;                        /* (m) ring of NODE_EVENTS_MAX */
    uint64_t event_seq;                              /* (m) of the last */
    struct klp_cancel *cancel;                       /* ends the node's own tasks */
    struct spare spare;                              /* (m) */
    struct spare_wish spare_wish;                    /* (m) */
    struct klp_task *lease_task, *janitor, *spare_task;
    bool draining;
};

static inline struct klp_node *node_from_host(struct klp_host *host)
{
    return (struct klp_node *)host;
}

/* ---- table.c: agents by name, references, op slots, lives */
/* Borrowed until agent_put. NOT_FOUND, or CONFLICT naming the node that owns it. Loads what only
 * the registry has. */
KELPIE_MUST_USE kelpie_outcome agent_get(const struct kelpie_op *op, struct klp_node *node,
                                         const char *name, struct node_agent **out,
                                         struct kelpie_error **err);
struct node_agent *agent_find_id(struct klp_node *node, const char *id); /* referenced; NULL */
void agent_put(struct node_agent *agent);
/* The one of that id in the table, made when there was none; referenced. */
struct node_agent *agent_add(struct klp_node *node, const struct klp_agent_record *record);
void agent_forget(struct node_agent *agent); /* out of the table; its folder goes */
/* Waits for the slot until the op ends (BUSY). */
KELPIE_MUST_USE kelpie_outcome slot_take(const struct kelpie_op *op, struct node_agent *agent,
                                         struct kelpie_error **err);
void slot_give(struct node_agent *agent);
/* get + slot. */
KELPIE_MUST_USE kelpie_outcome agent_take(const struct kelpie_op *op, struct klp_node *node,
                                          const char *name, struct node_agent **out,
                                          struct kelpie_error **err);
void agent_give(struct node_agent *agent); /* slot_give + agent_put; NULL is fine */
static inline void agent_auto_give(struct node_agent **agent)
{
    agent_give(*agent);
}
#define AUTO_AGENT __attribute__((cleanup(agent_auto_give)))
void record_copy(struct node_agent *agent, struct klp_agent_record *out);
/* Changes the record through the registry; `next` is consumed. Publishes an event on a new state.
 */
KELPIE_MUST_USE kelpie_outcome record_set(const struct kelpie_op *op, struct node_agent *agent,
                                          struct klp_agent_record *next, struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome record_delete(const struct kelpie_op *op, struct node_agent *agent,
                                             struct kelpie_error **err);
/* For callers that got the record from the protocol. */
void record_adopt(struct node_agent *agent, const struct klp_agent_record *record);
KELPIE_MUST_USE bool agent_folder(struct node_agent *agent, struct klp_dir **out,
                                  struct kelpie_error **err);
KELPIE_MUST_USE bool agent_save(struct node_agent *agent,
                                struct kelpie_error **err); /* STATE/agents/ID/config */
KELPIE_MUST_USE bool agent_load(struct node_agent *agent, struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome agent_template_find(const struct kelpie_op *op,
                                                   struct node_agent *agent,
                                                   struct kelpie_error **err);
/* From its folder, or, when the daemon ended between the claim and writing it, from the snapshot
 * that its record names. */
KELPIE_MUST_USE kelpie_outcome agent_know(const struct kelpie_op *op, struct node_agent *agent,
                                          struct kelpie_error **err);
KELPIE_MUST_USE bool
agent_take_manifest(struct node_agent *agent, const struct klp_manifest *manifest,
                    struct kelpie_error **err); /* identity, env, seq, template from it */

/* ---- life.c */
void life_begin(struct node_agent *agent, struct kelpie_vm *vm);
/* Under the slot. Lets go of the VM: destroyed, or left to its keeper. */
void life_end(const struct kelpie_op *op, struct node_agent *agent, bool leave);
/* For execs: a VM that will not vanish meanwhile. STATE when it has none. */
KELPIE_MUST_USE kelpie_outcome life_borrow(struct node_agent *agent, struct life **out,
                                           struct kelpie_error **err);
void life_return(struct life *life);
bool record_needs_vm(const struct klp_agent_record *record);
/* Its VM is gone and the registry did not take it: the janitor tries again until it does. NONE =
 * the agent is to be removed. */
void record_later(struct node_agent *agent, enum klp_agent_state state, const char *reason);
/* VMs whose end was ordered and not answered. */
void node_sweep(const struct kelpie_op *op, struct klp_node *node);
/* A VM of this node could not be ended (its keeper stands still, say), and may run: whose it is
 * nobody can ask. Until it is, no agent whose VM is missing is said to have crashed: it would be
 * started a second time. */
bool node_has_undead(struct klp_node *node);
void chore_post(struct klp_node *node, enum chore_kind kind, const char *agent_id,
                const struct life *life, const char *text);
void janitor_run(void *node);
void lease_run(void *node);
extern const struct klp_host_ops node_host_ops;

/* ---- template.c */
KELPIE_MUST_USE kelpie_outcome template_get(const struct kelpie_op *op, struct klp_host *host,
                                            const struct klp_agent_identity *identity,
                                            struct klp_digest *out, struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome base_get(const struct kelpie_op *op, struct klp_host *host,
                                        const struct klp_digest *digest, struct klp_layer **out,
                                        struct kelpie_error **err);
void base_keep(struct klp_node *node, const struct klp_digest *digest,
               struct klp_layer *layer); /* shares it */
void bases_drop(struct klp_node *node);
/* Where this host has a part of an image, found whole; *out stays NULL when there is none (a zero
 * digest). CORRUPT. */
KELPIE_MUST_USE kelpie_outcome part_path(const struct kelpie_op *op, struct klp_node *node,
                                         const struct klp_digest *digest, char **out,
                                         struct kelpie_error **err);
/* The template of an image on that factory, booted now if the store has none. out_image,
 * out_version may be NULL. */
KELPIE_MUST_USE kelpie_outcome template_for(const struct kelpie_op *op, struct klp_node *node,
                                            struct kelpie_vm_factory *factory,
                                            const struct klp_agent_identity *identity,
                                            struct klp_digest *out, struct klp_digest *out_image,
                                            char out_version[24], struct kelpie_error **err);
struct kelpie_vm_factory *factory_pick(struct klp_node *node, const char *backend,
                                       enum klp_arch arch);
KELPIE_MUST_USE kelpie_outcome image_load(const struct kelpie_op *op, struct klp_node *node,
                                          const char *name, enum klp_arch arch,
                                          struct klp_image *out, struct klp_digest *out_digest,
                                          struct kelpie_error **err);

/* ---- spare.c */
/* The spare, when it fits and is there; the caller's now. Another is made when starts rest. */
struct kelpie_vm *spare_take(struct klp_node *node, const struct klp_machine *machine,
                             struct klp_layer *base);
void spare_run(void *node);
void spare_drop(const struct kelpie_op *op, struct klp_node *node); /* after its task has ended */
/* A VM for that machine, Created. */
KELPIE_MUST_USE kelpie_outcome vm_create_for(const struct kelpie_op *op, struct klp_node *node,
                                             const struct klp_machine *machine,
                                             struct kelpie_vm **out, struct kelpie_error **err);

/* ---- lifecycle.c */
/* From a template: a first start, or one after a stop. Slot held; record CREATED, STOPPED or
 * CRASHED. */
KELPIE_MUST_USE kelpie_outcome start_cold(const struct kelpie_op *op, struct node_agent *agent,
                                          struct kelpie_error **err);
/* From a manifest (record.manifest). */
KELPIE_MUST_USE kelpie_outcome start_from(const struct kelpie_op *op, struct node_agent *agent,
                                          enum klp_unique_case which, struct kelpie_error **err);

/* ---- capture.c, birth.c, moves.c: snapshot, suspend, fork, restore: the work of operations */
KELPIE_MUST_USE kelpie_outcome suspend_run(const struct kelpie_op *op, struct operation *operation,
                                           struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome fork_run(const struct kelpie_op *op, struct operation *operation,
                                        struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome restore_run(const struct kelpie_op *op, struct operation *operation,
                                           struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome teleport_run(const struct kelpie_op *op, struct operation *operation,
                                            struct kelpie_error **err);
struct shot { /* what a snapshot of an agent came to */
    struct klp_manifest manifest;
    struct klp_digest digest;
    uint64_t pause_ns;
};

/* A snapshot of an agent that runs or is paused here: published, not named. It is back in its
 * former state in every case. The slot is held; finish shot.manifest. */
KELPIE_MUST_USE kelpie_outcome shot_take(const struct kelpie_op *op, struct node_agent *agent,
                                         enum klp_snapshot_kind kind, const char *label,
                                         struct shot *out, struct kelpie_error **err);
/* What the store has of this agent's memory already. `held` keeps it: finish both when done. */
struct parent_hold {
    struct klp_manifest template_, last;
    bool has_template, has_last;
};
KELPIE_MUST_USE kelpie_outcome parent_find(const struct kelpie_op *op, struct node_agent *agent,
                                           struct parent_hold *hold,
                                           struct klp_snapshot_parent *out,
                                           struct kelpie_error **err);
void parent_drop(struct parent_hold *hold);

/* ---- others */
void event_post(struct klp_node *node, const char *type, const char *agent, const char *format, ...)
    KLP_PRINTF(4, 5);
KELPIE_MUST_USE kelpie_outcome recover(const struct kelpie_op *op, struct klp_node *node,
                                       struct kelpie_error **err);
/* The prepared place of a move, out of the table; NULL = none. */
struct klp_arrival *arrival_take(struct klp_node *node, const char *move_id);
/* Until nobody takes that agent in here any more: what comes of it is in the table then. */
KELPIE_MUST_USE kelpie_outcome accept_wait(const struct kelpie_op *op, struct klp_node *node,
                                           const char *agent_id, struct kelpie_error **err);
/* Tells a VM's keeper whose VM it is. */
KELPIE_MUST_USE kelpie_outcome meta_put(const struct kelpie_op *op, struct kelpie_vm *vm,
                                        const char *agent_id, struct kelpie_error **err);
/* What a move left open that ended before its hand-off note, before something else is begun. */
KELPIE_MUST_USE kelpie_outcome intent_close(const struct kelpie_op *op, struct node_agent *agent,
                                            struct kelpie_error **err);
void settle_chore(const struct kelpie_op *op, struct klp_node *node, const char *agent_id);
void operations_close(struct klp_node *node);
KELPIE_MUST_USE bool operations_load(struct klp_node *node, struct kelpie_error **err);
void info_fill(const struct klp_agent_record *record, struct klp_agent_info *out);

#endif
