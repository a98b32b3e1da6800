/* SPDX-License-Identifier: Apache-2.0 */
/* A VM's inside, shared by the files of vm/. Nobody else includes it.
 *
 * Three kinds of knowledge: `state` is what callers see and the table of DESIGN 5 speaks of; `live`
 * says that a guest exists whose death matters; the rest is what the keeper told last. Changing
 * operations take the slot (busy). vm->mutex is never held over a call that blocks, nor over one of
 * a guest session (lock order: guest, then VM). */
#ifndef KLP_VM_INSIDE_H
#define KLP_VM_INSIDE_H

#include "vm/config.h"
#include "vm/keeper/client.h"
#include "vm/session.h"
#include "vm/vm.h"

#define VM_REASON_SIZE 512
#define VM_CONSOLE_MAX (16u * KLP_KIB) /* bytes kept of a dead VM's */
#define VM_CONSOLE_LINES 5             /* of an error */
#define VM_META_MAX (32u * KLP_KIB)
#define VM_CLEANUP_MS 10000
#define VM_BOOT_TIMEOUT_MS 60000 /* of a factory that names none */
#define VM_RETIRED_MAX 32        /* ended sessions whose borrowers may still hold them */

struct kelpie_vm {
    struct kelpie_vm_factory *factory;
    struct klp_env *env;
    char id[KLP_ID_SIZE];
    struct kelpie_vm_config config; /* a copy */
    struct klp_mutex *mutex;        /* all below */
    struct klp_cond *changed;
    enum kelpie_vm_state state;
    const char *busy; /* the operation that has the slot; NULL = free */
    char reason[VM_REASON_SIZE];
    struct klp_machine machine;
    struct klp_layer *base; /* owned; NULL = none */

    /* The keeper. */
    struct klp_dir *dir; /* the VM's folder; NULL = no keeper was launched */
    struct klp_keeper_client *client;
    unsigned orders; /* under way on the client */
    struct klp_chan *watch;
    struct klp_task *watcher;
    bool exiting;          /* its end is our will */
    bool lost;             /* it is gone without our will */
    bool used;             /* it had its hypervisor: a start needs a new one */
    bool prepared;         /* a hypervisor waits for its image */
    bool dead, dead_clean; /* the hypervisor's end was told */
    char dead_reason[VM_REASON_SIZE];

    /* The guest. */
    bool live;
    bool end_ordered; /* its end is our will, and looks like this: */
    enum kelpie_vm_state end_state;
    char end_reason[VM_REASON_SIZE];
    uint32_t holds;
    int64_t pid;
    uint64_t changes, changes_seen; /* deaths, fences */
    char *console;                  /* of a dead one; NULL = none */

    bool leased;
    uint64_t epoch, fence_at_ns;
    bool gate_open;
    uint64_t gate_epoch;
    struct klp_buf meta;

    struct klp_guest *guest; /* NULL = no session */
    bool greeting;           /* somebody opens one */
    struct klp_guest *retired[VM_RETIRED_MAX];
    size_t retired_next;
};

/* ---- vm.c: the table of DESIGN 5. */
enum vm_verb {
    VM_START,
    VM_STOP,
    VM_PAUSE,
    VM_RESUME,
    VM_EXEC,
    VM_FILES,
    VM_TALK,
    VM_SNAPSHOT,
    VM_RESTORE,
    VM_HOLD,
};
/* STATE names the VM, its state and what it would need. Held. */
KELPIE_MUST_USE kelpie_outcome vm_may(const struct kelpie_vm *vm, enum vm_verb verb,
                                      struct kelpie_error **err);
/* Checks the state and takes the slot; BUSY. *former: the state before. */
KELPIE_MUST_USE kelpie_outcome vm_begin(struct kelpie_vm *vm, enum vm_verb verb,
                                        enum kelpie_vm_state *former, struct kelpie_error **err);
void vm_end(struct kelpie_vm *vm);
struct kelpie_vm *vm_new(struct kelpie_vm_factory *factory, const char *id);
void vm_free(struct kelpie_vm *vm);
void vm_state_set(struct kelpie_vm *vm, enum kelpie_vm_state state);
bool vm_is_live(struct kelpie_vm *vm);
/* Adds the last lines of its console as reasons. */
void vm_console_explain(const struct kelpie_op *op, struct kelpie_vm *vm,
                        struct kelpie_error **err);

/* ---- keep.c: the keeper's life, and what it tells. */
/* A keeper that has no hypervisor yet, knows the lease and the meta. */
KELPIE_MUST_USE kelpie_outcome vm_keeper_fresh(const struct kelpie_op *op, struct kelpie_vm *vm,
                                               struct kelpie_error **err);
/* To the keeper that is there already (adoption). */
KELPIE_MUST_USE kelpie_outcome vm_keeper_connect(const struct kelpie_op *op, struct kelpie_vm *vm,
                                                 struct kelpie_error **err);
/* Lets it end, and removes its folder. OK when there is none. */
KELPIE_MUST_USE kelpie_outcome vm_keeper_exit(const struct kelpie_op *op, struct kelpie_vm *vm,
                                              struct kelpie_error **err);
void vm_keeper_leave(struct kelpie_vm *vm);
/* Its keeper did not say that it ended. Whoever looks at the folder next ends it, and nobody ever
 * takes it up again. In vm.c. */
void vm_condemn(struct kelpie_vm *vm);
/* An order; CRASHED when the keeper is gone. */
KELPIE_MUST_USE kelpie_outcome vm_ask(const struct kelpie_op *op, struct kelpie_vm *vm,
                                      uint16_t type, const struct klp_buf *fields,
                                      const struct klp_handle *handles, size_t handle_count,
                                      struct klp_keeper_answer *out, struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome vm_ask_number(const struct kelpie_op *op, struct kelpie_vm *vm,
                                             uint16_t type, uint16_t tag, uint64_t value,
                                             struct kelpie_error **err);
/* After UNKNOWN: takes what the keeper says now. FAIL: the VM died; UNKNOWN: nobody can tell. */
KELPIE_MUST_USE kelpie_outcome vm_settle(const struct kelpie_op *op, struct kelpie_vm *vm,
                                         struct kelpie_error **err);
/* From now on its end is our will. */
void vm_end_order(struct kelpie_vm *vm, enum kelpie_vm_state state, const char *reason);
/* KILL, and the state that was ordered. */
KELPIE_MUST_USE kelpie_outcome vm_kill(const struct kelpie_op *op, struct kelpie_vm *vm,
                                       struct kelpie_error **err);
/* The guest exists from now on; CRASHED when its end came first. */
KELPIE_MUST_USE kelpie_outcome vm_born(struct kelpie_vm *vm, struct kelpie_error **err);
/* Something broke: waits a moment for the news that the VM has ended. */
void vm_news_wait(struct kelpie_vm *vm);
/* It is not live any more: *err becomes CRASHED or STATE, with the reason and the last console
 * lines. */
KELPIE_MUST_USE kelpie_outcome vm_ended(const struct kelpie_op *op, struct kelpie_vm *vm,
                                        struct kelpie_error **err);
/* A call ended with *err: was it the VM's end? Then as vm_ended. */
KELPIE_MUST_USE kelpie_outcome vm_explain(const struct kelpie_op *op, struct kelpie_vm *vm,
                                          kelpie_outcome outcome, struct kelpie_error **err);

/* ---- lease.c */
/* Tells the keeper the lease that was given, or the library's own. */
KELPIE_MUST_USE kelpie_outcome vm_lease_send(const struct kelpie_op *op, struct kelpie_vm *vm,
                                             bool own, struct kelpie_error **err);
void vm_gate_wake(struct kelpie_vm *vm);
bool vm_may_pass(void *arg);

/* ---- call.c */
/* A session, greeted; shared: klp_guest_release. */
KELPIE_MUST_USE kelpie_outcome vm_session(const struct kelpie_op *op, struct kelpie_vm *vm,
                                          enum vm_verb verb, struct klp_guest **out,
                                          struct kelpie_error **err);

/* ---- restore.c */
KELPIE_MUST_USE kelpie_outcome vm_spawn(const struct kelpie_op *op, struct kelpie_vm *vm,
                                        enum klp_spawn_mode mode, const struct klp_machine *machine,
                                        struct klp_layer *base, struct kelpie_error **err);

#endif
