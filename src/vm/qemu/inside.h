/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of vm/qemu share: the QMP client, the command line, the hypervisor's own struct.
 */
#ifndef KLP_VM_QEMU_INSIDE_H
#define KLP_VM_QEMU_INSIDE_H

#include "base/ext/json.h"
#include "env/posix/posix.h"
#include "vm/private_pages/private_pages.h"
#include "vm/qemu/qemu.h"

/* ---- qmp.c: one connection. A thread of its own pumps; any other may call. */
struct klp_qmp;
struct klp_qmp_facts { /* what events have told so far */
    bool over;         /* the connection ended */
    bool panicked;     /* GUEST_PANICKED */
    bool shut_down;    /* SHUTDOWN, and its reason: "guest-shutdown", "guest-reset", ... */
    char shutdown_reason[32];
    char migration[24]; /* status of the last MIGRATION event: "completed", "failed", ... */
};
/* Takes the descriptor (non-blocking). */
struct klp_qmp *klp_qmp_create(struct klp_env *env, int fd);
void klp_qmp_destroy(struct klp_qmp *qmp); /* nobody pumps or calls any more */
int klp_qmp_fd(const struct klp_qmp *qmp); /* borrowed, to poll */
/* Reads what is there; false = the connection is over: end of stream, or no QMP. */
bool klp_qmp_pump(struct klp_qmp *qmp);
/* Waits for the greeting, leaves the negotiation. `version` ("7.2.22") may be NULL. */
KELPIE_MUST_USE kelpie_outcome klp_qmp_open(const struct kelpie_op *op, struct klp_qmp *qmp,
                                            char *version, size_t version_size,
                                            struct kelpie_error **err);
/* `arguments` is taken, NULL = none; fd: passed beside the command, stays the caller's, -1 = none.
 * out: the value returned, the caller's; NULL = not wanted. UNSUPPORTED when QEMU does not know the
 * command; UNKNOWN when it was sent and no answer came before the op ended. */
KELPIE_MUST_USE kelpie_outcome klp_qmp_call(const struct kelpie_op *op, struct klp_qmp *qmp,
                                            const char *command, struct klp_json *arguments, int fd,
                                            struct klp_json **out, struct kelpie_error **err);
/* Sent if there is room, answer dropped: puts back what a call of unknown outcome may have done. */
void klp_qmp_post(struct klp_qmp *qmp, const char *command);
/* OK at MIGRATION completed. */
KELPIE_MUST_USE kelpie_outcome klp_qmp_migration_wait(const struct kelpie_op *op,
                                                      struct klp_qmp *qmp,
                                                      struct kelpie_error **err);
void klp_qmp_facts(struct klp_qmp *qmp, struct klp_qmp_facts *out);

/* ---- cmdline.c */
enum qemu_fd { /* numbers in the hypervisor */
               QEMU_FD_QMP = 3,
               QEMU_FD_AGENT,
               QEMU_FD_CONSOLE,
               QEMU_FD_RAM,
               QEMU_FD_KERNEL,
               QEMU_FD_INITRAMFS,
};
#define QEMU_ARGUMENTS_MAX 96
struct klp_qemu_arguments {
    char *words[QEMU_ARGUMENTS_MAX + 1]; /* NULL-terminated; without the program's own name */
    size_t count;
};
/* The machine's parts that do not depend on a config: type, cpu, devices, kernel command line. */
void klp_qemu_machine_fill(struct klp_machine *machine, enum klp_arch arch, const char *accelerator,
                           const char *cpu);
/* A description comes from outside: only machine types, accelerators and devices that this backend
 * itself writes are passed on. Every other one is a reason of INCOMPATIBLE. */
KELPIE_MUST_USE bool klp_qemu_machine_check(const struct klp_machine *machine,
                                            struct kelpie_error **err);
KELPIE_MUST_USE bool klp_qemu_arguments_make(const struct klp_machine *machine,
                                             enum klp_spawn_mode mode, bool has_kernel,
                                             struct klp_qemu_arguments *out,
                                             struct kelpie_error **err);
void klp_qemu_arguments_finish(struct klp_qemu_arguments *arguments);

/* ---- exec.c */
/* The hypervisor is started through its keeper: `kelpie-keeper --exec-qemu PATH WORDS...`. */
#define QEMU_EXEC_OPTION "--exec-qemu"

/* ---- probe_kvm.c: runs a guest of 100,000 supervisor instructions in a child of its own; gives up
 * after 200 ms. False = it did not run; `why` says. */
bool klp_qemu_kvm_measure(bool *present, uint64_t *out_us, char *why, size_t why_size);
#define QEMU_KVM_USABLE_US 20000

/* ---- hypervisor.c, home.c, capture.c */
#define QEMU_CONSOLE_SIZE (64u * KLP_KIB)
#define QEMU_COMPLAINT_SIZE (4u * KLP_KIB)

struct qemu_ring { /* the last bytes of a stream */
    char *bytes;
    size_t size;
    uint64_t end; /* bytes ever written */
};

struct qemu_hypervisor {
    struct klp_hypervisor base;
    char *qemu_path;
    struct klp_mutex *mutex; /* the fields marked (m) */
    struct klp_cond *changed;

    /* The home thread: the hypervisor's parent as PDEATHSIG understands it; reads all it says. */
    struct klp_task *home;
    int leave_fd;                  /* eventfd: home ends */
    const struct klp_spawn *order; /* what home is to start */
    struct kelpie_error *spawn_error;
    bool answered, started;               /* (m) home has tried; with success */
    bool drained;                         /* (m) nothing more will come from the hypervisor */
    int console_fd, complaint_fd;         /* home's alone once it runs */
    struct qemu_ring console, complaints; /* (m) */

    int pid, pidfd;
    struct klp_qmp *qmp;
    int agent_fd;
    int ram_fd; /* the base layer, or zeros */
    uint64_t memory_bytes;
    struct klp_page_room room; /* for the next capture; orders come one at a time */
    bool killed;               /* atomic: by us */
    bool reaped;               /* (m) and `end` holds */
    struct klp_hypervisor_exit end;
};
static inline struct qemu_hypervisor *qemu_from(struct klp_hypervisor *hypervisor)
{
    return (struct qemu_hypervisor *)hypervisor;
}

/* home.c: starts the thread, which starts the hypervisor and answers. */
KELPIE_MUST_USE bool qemu_home_start(struct qemu_hypervisor *self, const struct klp_spawn *spawn,
                                     struct kelpie_error **err);
void qemu_home_leave(struct qemu_hypervisor *self); /* the hypervisor is dead by then */
size_t qemu_ring_read(const struct qemu_ring *ring, char *out,
                      size_t capacity); /* under the mutex */
/* The first line of complaint that is no mere warning; "" when there is none. */
void qemu_complaint(struct qemu_hypervisor *self, char *out, size_t capacity);

/* hypervisor.c: until a dead one's last words are read. */
void qemu_drained_wait(struct qemu_hypervisor *self);

/* capture.c */
kelpie_outcome qemu_load(const struct kelpie_op *op, struct klp_hypervisor *hypervisor,
                         struct klp_handle device_state, const struct klp_handle *overlays,
                         size_t overlay_count, struct kelpie_error **err);
kelpie_outcome qemu_capture(const struct kelpie_op *op, struct klp_hypervisor *hypervisor,
                            struct klp_handle *device_state, struct klp_handle *dirty,
                            struct kelpie_error **err);
kelpie_outcome qemu_ahead(const struct kelpie_op *op, struct klp_hypervisor *hypervisor,
                          struct kelpie_error **err);
void qemu_ahead_drop(struct klp_hypervisor *hypervisor);
#endif
