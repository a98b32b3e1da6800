/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the simulator share. One world at a time in one thread: fibers under a virtual
 * clock, every decision drawn from the seed. Core code sees none of this: it sees env/, the
 * registry's table, and a factory. Memory of the world itself is the C heap's; what core code
 * allocates belongs to the crash domain of the fiber that runs. */
#ifndef SIM_SIM_H
#define SIM_SIM_H

#include <stdio.h>

#include "base/list.h"
#include "env/chan.h"
#include "fault.h"
#include "net.h"
#include "node/node.h"
#include "witness.h"

#define SIM_NODES_MAX 4
#define SIM_NEVER UINT64_MAX
#define SIM_EVENTS_MAX 5000000ull /* of one run: more is a livelock */

/* X(NAME, text, exit status) as in CONTRACT "Simulator" */
#define SIM_VERDICT_MAP(X)                                                                         \
    X(PASS, "pass", 0)                                                                             \
    X(SAFETY, "safety", 20)                                                                        \
    X(LIVENESS, "liveness", 21)                                                                    \
    X(NONDETERMINISM, "nondeterminism", 22)                                                        \
    X(ASSERTION, "assertion", 23)
enum sim_verdict {
#define SIM_VERDICT_ENUM(name, text, status) SIM_##name,
    SIM_VERDICT_MAP(SIM_VERDICT_ENUM)
#undef SIM_VERDICT_ENUM
};

/* ---- pool.c: memory that runs hand on. Bytes are unset; NULL = none; `size` as it was asked for.
 */
void *sim_pool_take(size_t size);
void sim_pool_give(void *memory, size_t size);

/* ---- crash domains (mem.c): a daemon, a keeper, a VM. Domain 0 is the world's own. */
enum sim_domain_kind { SIM_WORLD, SIM_DAEMON, SIM_KEEPER, SIM_VM };
struct sim_domain {
    struct klp_list link;
    enum sim_domain_kind kind;
    uint32_t id, node;
    char name[32];
    bool crashed;
    uint64_t stopped_until_ns; /* by SIGSTOP: none of its fibers runs before */
    struct klp_list blocks, guards, resources;
    size_t block_count, block_bytes;
    uint64_t draws; /* of klp_random */
};
struct sim_domain *sim_domain_create(enum sim_domain_kind kind, uint32_t node, const char *name);
/* Frees all that is left: what the world holds for it (resources, handles), guarded objects,
 * blocks. */
void sim_domain_drop(struct sim_domain *domain);
/* The process dies: its fibers never run again, and all it had is dropped. Not from one of its
 * fibers. */
void sim_domain_crash(struct sim_domain *domain);
/* The same, at once when its fiber has let go: from any fiber. */
void sim_domain_crash_soon(struct sim_domain *domain);
/* What an object of a domain holds of the world, and how a dying process lets go of it. */
struct sim_resource {
    struct klp_list link;
    void (*release)(struct sim_resource *resource);
};
void sim_resource_add(struct sim_resource *resource, void (*release)(struct sim_resource *));
void sim_resource_remove(struct sim_resource *resource);
/* From now on this fiber allocates there; returns where it did before. */
struct sim_domain *sim_domain_enter(struct sim_domain *domain);
/* Says what is left in which domain; returns how many domains leak. */
unsigned sim_domain_leaks(void);

/* ---- fibers (fiber.c) and the hub (hub.c). */
struct sim_env;
struct sim_source { /* what fibers wait for */
    struct klp_list waiters;
};
struct sim_stack;
struct sim_fiber {
    struct klp_list link;
    uint32_t id;
    char name[24];
    struct sim_env *env;
    struct sim_domain *domain;
    void (*run)(void *arg);
    void *arg;
    struct sim_stack *stack; /* NULL once it ended */
    uint64_t waits;          /* parked so often: tells a stale event */
    bool parked, ready, ended, killed;
    struct klp_list waiters; /* where it stands in line */
    unsigned mutexes;        /* held */
    const char *waits_for;
    struct sim_source end;
};
struct sim_fiber *sim_fiber_start(struct sim_env *env, struct sim_domain *domain, const char *name,
                                  void (*run)(void *), void *arg);
void sim_fiber_switch_in(struct sim_fiber *fiber); /* hub only; returns when it parks or ends */
void sim_fiber_switch_out(void);                   /* of the current fiber, to the hub */
void sim_fiber_kill(struct sim_fiber *fiber);
void sim_fiber_bury(struct sim_fiber *fiber); /* an ended one: its stack is free again */
/* Every process that was stopped goes on (SIGCONT). */
void sim_stops_end(void);
void sim_stacks_drop(void);
bool sim_fibers_choose(const char *name); /* asm, ucontext, thread; false = this build has none */

/* Waits until sim_ready, or until the true time `until_ns`. */
void sim_park(uint64_t until_ns, const char *what);
void sim_ready(struct sim_fiber *fiber);
void sim_yield(void);
void sim_source_init(struct sim_source *source);
void sim_wake(struct sim_source *source);
/* Without op: for ever. May return for nothing. */
void sim_wait_source(struct sim_source *source, uint64_t until_ns, const char *what);
/* With the op's deadline and cancel. OK = woken, perhaps for nothing. */
KELPIE_MUST_USE kelpie_outcome sim_wait(const struct kelpie_op *op, struct sim_source *source,
                                        const char *what, struct kelpie_error **err);
/* Runs events until `fiber` has ended. */
void sim_hub_run(struct sim_fiber *fiber);

/* ---- the world (world.c). */
struct sim_peer { /* a node that answers; chan.c routes to it by endpoint */
    char endpoint[64];
    struct sim_env *env;
    struct sim_domain *domain;
    struct klp_node *node; /* NULL = down */
    unsigned calls;        /* under way */
    struct sim_source idle;
};
#define SIM_AGENTS_MAX 3
struct sim_facts { /* what machines a node can run */
    enum klp_arch arch;
    uint32_t cpu;     /* a bit a feature */
    char version[16]; /* of the simulated hypervisor; snapshots are for one MAJOR.MINOR */
};
#define SIM_FACTS(of_arch) ((struct sim_facts){(of_arch), 0xf, "1.0.0"})
struct sim_plan_node {
    struct sim_facts facts;
    uint64_t restart_ms; /* its daemon comes back so much after it died */
};
struct sim_plan { /* what the seed expands to, but for the faults */
    uint32_t nodes, agents;
    uint32_t steps[SIM_AGENTS_MAX];     /* what its operator asks for, one after the other */
    const char *script[SIM_AGENTS_MAX]; /* which steps, in words of workload.c; NULL = drawn */
    struct sim_plan_node node[SIM_NODES_MAX];
    uint64_t lease_ttl_ms;
    uint64_t linger_ms; /* faults go on for so long after the last step */
    bool rolling;       /* every daemon is started anew once all is healed */
    bool emptied;       /* agents are removed before the daemons stop */
};
void sim_plan_make(uint64_t seed, struct sim_plan *out);
/* All of it, faults too: told before a run begins. */
void sim_plan_text(const struct sim_plan *plan, const struct sim_faults *faults, char *out,
                   size_t capacity);

struct sim_event;
struct sim_order;
struct sim_inode;
struct sim_handle_slot;
struct sim {
    uint64_t seed, now_ns, hash;
    uint64_t sequence, events;
    struct sim_event *heap;
    size_t heap_count, heap_capacity;
    struct klp_list fibers, domains, listeners, calls;
    uint32_t fiber_count, domain_count, pid_count;
    struct sim_fiber *current;
    struct sim_domain *world_domain;
    struct sim_env *envs[SIM_NODES_MAX];
    struct sim_peer peers[SIM_NODES_MAX];
    struct sim_inode *root;
    struct sim_registry_rows *rows; /* while there are any */
    struct sim_handle_slot *handles;
    size_t handle_count, handle_used;
    struct sim_plan plan;
    struct sim_faults fault;
    struct sim_net net;
    struct sim_ledger ledger;    /* what the guests witnessed */
    uint64_t mib;                /* bytes of what guests call one */
    const char *planted;         /* fault of VMs that are launched from now on; NULL = none */
    struct sim_domain *crashing; /* the hub drops it next */
    uint32_t dying;              /* hosts that do, a bit each; SIM_ALL_HOSTS = the store, too */
    const struct sim_order *order;
    bool over; /* a bug was met: nothing more runs */
    enum sim_verdict verdict;
    char why[512];
    uint64_t teleports, faults;
};
extern struct sim *sim_world; /* the one that runs */

void sim_fold(uint64_t value);
void sim_fold_bytes(const void *bytes, size_t size);
void sim_fold_text(const char *text);
uint64_t sim_mix(uint64_t a, uint64_t b, uint64_t c);
/* For people, on stderr; nothing in a run that is to be quiet. */
void sim_tell(const char *format, ...) KLP_PRINTF(1, 2);
/* An event of which the hash and the trace hear. */
void sim_note(const char *kind, const char *format, ...) KLP_PRINTF(2, 3);
/* The first verdict stays. */
void sim_fail(enum sim_verdict verdict, const char *format, ...) KLP_PRINTF(2, 3);
const char *sim_verdict_name(enum sim_verdict verdict);
int sim_verdict_status(enum sim_verdict verdict);
void sim_trace(const char *kind, const char *text);

struct sim_result {
    uint64_t hash, teleports, faults, points;
    enum sim_verdict verdict;
    char why[512];
    struct sim_fault fired[SIM_FAULTS_MAX];
    unsigned fired_count;
};
struct sim_diagram;
struct sim_order { /* how a run is to be; borrowed */
    void (*scenario)(void *arg);
    void *arg;
    const struct sim_plan *plan; /* NULL = as the seed says */
    struct sim_fault_choice choice;
    FILE *trace;                 /* NULL = none */
    struct sim_diagram *diagram; /* NULL = none */
    bool quiet;                  /* a failure is in the result only, not on stderr */
    bool apart; /* VMs for themselves, copied as a test likes: no witness works, a MiB is one */
};
void sim_run(uint64_t seed, const struct sim_order *order, struct sim_result *out);

/* ---- shrink.c, exhaustive.c, diagram.c */
/* A run that failed, again with fewer and fewer of its faults, as long as it fails in the same way;
 * prints what is left and how it went. `order` is the one that failed, `failed` its result. */
void sim_shrink(uint64_t seed, const struct sim_order *order, const struct sim_result *failed);
/* Every single fault and every pair of them (or singles only) in each canonical plan; a line each
 * on stdout. A plan's first failure ends it, shrunk. The first verdict, or PASS. */
enum sim_verdict sim_exhaustive(uint64_t seed, const char *plan, bool singles_only,
                                uint64_t *out_hash); /* plan NULL = all */
bool sim_plan_is_canonical(const char *name);
struct sim_diagram *sim_diagram_create(void);
void sim_diagram_note(struct sim_diagram *diagram, const char *kind, const char *text);
void sim_diagram_print(const struct sim_diagram *diagram, FILE *out);
void sim_diagram_destroy(struct sim_diagram *diagram);

/* ---- env.c */
struct sim_env {
    struct klp_env base;
    uint32_t node;
    char name[16];
    uint64_t since_ns;       /* true time of its last boot */
    uint64_t boot_offset_ns; /* this host's BOOTTIME then */
    uint64_t disk_full_until_ns;
    int64_t drift; /* of its rate */
    int64_t wall_offset_ns;
    uint64_t fence_ns; /* the last far time that a keeper waited for, true */
};
/* The first moment at which this host's BOOTTIME is `boot`, exactly. */
uint64_t sim_env_true_ns(const struct sim_env *env, uint64_t boot);
/* When a wait until then ends, for the fiber that runs; SIM_NEVER = it has no end of its own. Time
 * itself may go wrong here. */
uint64_t sim_env_wake_ns(struct sim_env *env, uint64_t boot);
struct sim_env *sim_env_create(uint32_t node, const char *name);
/* It boots now: BOOTTIME begins anew. */
void sim_env_boot(struct sim_env *env, uint64_t uptime_ns);
struct sim_env *sim_env_from(struct klp_env *env);
struct sim_source *sim_cancel_source(struct klp_cancel *cancel);
extern const struct klp_file_ops sim_file_ops;
extern const struct klp_memory_ops sim_memory_ops;
extern const struct klp_chan_ops sim_chan_ops;

/* ---- disk.c */
#define SIM_ALL_HOSTS ((1u << SIM_NODES_MAX) - 1)
/* Every process there dies, and what was not synced is lost or torn; then they boot. */
void sim_hosts_die(uint32_t hosts);

/* ---- store.c: from now on it is somewhere else. */
void sim_store_spoil(struct klp_store *store);

/* ---- file.c */
struct sim_inode *sim_root_create(void);
void sim_inode_put(struct sim_inode *inode);
struct sim_inode *sim_dir_inode(const struct klp_dir *dir); /* borrowed */
struct sim_inode *sim_inode_share(struct sim_inode *inode);

/* ---- memory.c: handles, as a table of descriptors; each belongs to who has it. */
struct sim_memory;
struct sim_conn;
enum sim_handle_kind { SIM_HANDLE_FREE, SIM_HANDLE_MEMORY, SIM_HANDLE_STREAM };
struct klp_handle sim_handle_create(enum sim_handle_kind kind, void *object);
void *sim_handle_object(struct klp_handle handle,
                        enum sim_handle_kind kind);                        /* NULL = another kind */
void sim_handles_drop(const struct sim_domain *domain);                    /* NULL = all */
void sim_handle_give(struct klp_handle handle, struct sim_domain *domain); /* NULL = on its way */
/* The first present page at or after `offset`; false = none. */
bool sim_memory_next(const struct sim_memory *memory, uint64_t offset, uint64_t *out_offset,
                     uint64_t *out_size);
void sim_memory_copy_out(const struct sim_memory *memory, uint64_t offset, void *out, size_t size);
uint64_t sim_memory_bytes(const struct sim_memory *memory);
#define SIM_MIB 3072u /* bytes of what a simulated guest calls a MiB: it is to be small */
#define SIM_PAGE_LOG2 6
#define SIM_PAGE_SIZE 64u

/* ---- chan.c: one connection has two sides; each side is owned by a chan, a stream, a handle or a
 * VM. */
struct sim_end {
    struct sim_conn *conn;
    unsigned side;
};
void sim_stream_pair(struct sim_end *out_a, struct sim_end *out_b);
struct klp_handle sim_stream_handle(struct sim_end end); /* takes the end over */
void *sim_stream_object_share(void *object);             /* for klp_handle_copy */
void sim_stream_object_put(void *object);
/* Neither blocks. take: -1 = the other side is gone and nothing is left. */
long sim_end_take(struct sim_end end, void *out, size_t capacity);
size_t sim_end_give(struct sim_end end, const void *data, size_t size);
void sim_end_watch(struct sim_end end,
                   struct sim_source *source); /* woken at every change; NULL = no more */
void sim_end_close(struct sim_end *end);

/* ---- peer.c */
void sim_peer_heal(void);                   /* whoever waits for what was lost is told so */
void sim_peer_break(struct sim_peer *peer); /* whoever asks it gets no answer any more */
kelpie_outcome sim_peer_call(const struct kelpie_op *op, const char *endpoint, const char *method,
                             const char *path, struct klp_bytes body, int *out_status,
                             struct klp_buf *out_body, struct kelpie_error **err);

/* ---- registry.c, vm.c, hypervisor.c */
struct sim_registry_rows;
struct sim_registry_rows *sim_registry_rows_create(void); /* the service: outlives every node */
void sim_registry_rows_destroy(struct sim_registry_rows *rows); /* may wait */
void sim_registry_rows_free(
    struct sim_registry_rows *rows); /* at the world's end: nobody is left */
struct klp_registry *sim_registry_create(struct klp_env *env, struct sim_registry_rows *rows);
/* `vms_dir` is borrowed. */
struct kelpie_vm_factory *sim_factory_create(struct klp_env *env, struct klp_dir *vms_dir,
                                             const struct sim_facts *facts);
/* False: it cannot run there; why not, but for the architecture, is added to *faults. */
bool sim_facts_fit(const struct sim_facts *facts, const struct klp_machine *machine,
                   struct kelpie_error **faults);
/* The keeper of that VM dies, as by kill -9. Not from one of its fibers. */
void sim_keeper_kill(const char *vm);
struct klp_hypervisor;
struct klp_hypervisor *sim_hypervisor_create(struct klp_env *env, const struct sim_facts *facts);

/* ---- scenario.c */
void sim_scenario_store(void *arg);
void sim_scenario_teleport(void *arg);

#endif
