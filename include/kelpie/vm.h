/* SPDX-License-Identifier: Apache-2.0 */
/* Virtual machines: one interface, several backends. The table of DESIGN 5 is enforced here, once.
 * Every call takes an op and may block until its deadline. A VM allows one changing operation at a
 * time (BUSY otherwise); status calls never block. */
#ifndef KELPIE_VM_H
#define KELPIE_VM_H

#include <stdint.h>

#include "kelpie/error.h"

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

struct kelpie_op;
struct kelpie_vm;
struct kelpie_vm_factory;

#define KELPIE_VM_STATE_MAP(X)                                                                     \
    X(CREATED, "created")                                                                          \
    X(STARTING, "starting")                                                                        \
    X(RUNNING, "running")                                                                          \
    X(PAUSED, "paused")                                                                            \
    X(STOPPED, "stopped")                                                                          \
    X(CRASHED, "crashed")

enum kelpie_vm_state {
#define KELPIE_VM_STATE_ENUM(name, text) KELPIE_VM_##name,
    KELPIE_VM_STATE_MAP(KELPIE_VM_STATE_ENUM)
#undef KELPIE_VM_STATE_ENUM
};
const char *kelpie_vm_state_name(enum kelpie_vm_state state);

enum kelpie_vm_cap { /* one bit per optional ability of a backend */
                     KELPIE_VM_CAP_SNAPSHOT = 1,
                     KELPIE_VM_CAP_DIFF_SNAPSHOT = 2,
                     KELPIE_VM_CAP_LAZY_RESTORE = 4,
                     KELPIE_VM_CAP_LIVE_CAPTURE = 8,
                     KELPIE_VM_CAP_DISKS = 16,
                     KELPIE_VM_CAP_NETWORK = 32,
                     KELPIE_VM_CAP_CROSS_HOST_RESTORE = 64,
                     KELPIE_VM_CAP_TEMPLATE =
                         128, /* a cold start is dear: clone a template instead */
};

/* Every field is honoured or refused by a backend, never ignored. Texts are borrowed by create and
 * copied. */
struct kelpie_vm_config {
    uint32_t vcpu_count;           /* 1..32; 0 = 1 */
    uint32_t memory_mib;           /* 128..16384; 0 = 512 */
    const char *arch;              /* "x86_64", "aarch64"; NULL = the host's */
    const char *kernel_image_path; /* NULL where the backend needs none (Mock) */
    const char *initrd_path;
    const char *root_disk_path; /* refused until disks exist */
    bool root_disk_readonly;
    bool networking_enabled;      /* refused until guests have networks */
    uint32_t shared_folder_count; /* must be 0: shared host folders cannot be snapshotted */
    const char *kernel_args; /* added to the backend's own; NULL = none; printable ASCII, <= 256 */
    const char *const *env;  /* "K=V", NULL-terminated; defaults of every exec; NULL = none */
    const char *workdir;     /* absolute; NULL = the guest's own */
    const char *hostname;    /* NULL = the guest's own */
};

/* A factory makes VMs of one backend; made by the program's wiring, borrowed by its VMs. */
const char *kelpie_vm_factory_name(const struct kelpie_vm_factory *factory);
uint32_t kelpie_vm_factory_caps(const struct kelpie_vm_factory *factory);

/* Checks the whole config: INVALID or UNSUPPORTED with every fault in it as a reason. Created. */
KELPIE_MUST_USE kelpie_outcome kelpie_vm_create(const struct kelpie_op *op,
                                                struct kelpie_vm_factory *factory, const char *id,
                                                const struct kelpie_vm_config *config,
                                                struct kelpie_vm **out, struct kelpie_error **err);
/* Kills what still runs and leaves nothing behind. Any state; NULL is fine. */
void kelpie_vm_destroy(const struct kelpie_op *op, struct kelpie_vm *vm);

enum kelpie_vm_state kelpie_vm_state(struct kelpie_vm *vm);
const char *kelpie_vm_id(const struct kelpie_vm *vm);
/* CRASHED / STOPPED: why, in one line; "" otherwise. Copies. */
void kelpie_vm_reason(struct kelpie_vm *vm, char *out, size_t capacity);
int64_t kelpie_vm_pid(struct kelpie_vm *vm); /* the hypervisor's; 0 = none */

/* Created, Stopped -> Running: a cold boot; returns when the guest agent answers. */
KELPIE_MUST_USE kelpie_outcome kelpie_vm_start(const struct kelpie_op *op, struct kelpie_vm *vm,
                                               struct kelpie_error **err);
/* Running, Paused -> Stopped: asks the guest, kills it at the op's deadline or after grace_ms. */
KELPIE_MUST_USE kelpie_outcome kelpie_vm_stop(const struct kelpie_op *op, struct kelpie_vm *vm,
                                              uint64_t grace_ms, struct kelpie_error **err);
/* Running -> Paused, Paused -> Running. */
KELPIE_MUST_USE kelpie_outcome kelpie_vm_pause(const struct kelpie_op *op, struct kelpie_vm *vm,
                                               struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome kelpie_vm_resume(const struct kelpie_op *op, struct kelpie_vm *vm,
                                                struct kelpie_error **err);

/* Running: a process in the guest. Callbacks run on the calling task, or a task of the call; they
 * may block within the op. */
struct kelpie_exec {
    const char *const *argv; /* NULL-terminated, at least one */
    const char *const *env;  /* "K=V" added to the defaults; NULL = none */
    const char *workdir;     /* NULL = default */
    uint64_t timeout_ms;     /* 0 = none; then the guest kills the process group */
    bool tty;
    uint32_t rows, cols;
    /* Fills up to capacity bytes; returns the count, 0 = end of input. NULL = no input. Called from
     * a task of its own; must return when the op ends. */
    size_t (*input)(void *arg, void *out, size_t capacity);
    /* Output as it comes; false = stop listening (the process is killed). */
    bool (*output)(void *arg, bool is_stderr, const void *data, size_t size);
    /* Once, when the process has ended or the call gives up, and before it waits for `input` to
     * return: an input that waits for a person is to return 0 from then on. May be NULL. */
    void (*ended)(void *arg);
    void *arg;
    struct kelpie_exec_control *control; /* NULL, or for signals and resizes from other tasks */
};
struct kelpie_exec_status {
    int32_t exit_code; /* 128 + signal when a signal ended it */
    int32_t signal;    /* 0 = none */
    bool timed_out;
};
/* NO_COMMAND, NOT_EXECUTABLE, STATE, TIMEOUT (of the op), CRASHED. */
KELPIE_MUST_USE kelpie_outcome kelpie_vm_exec(const struct kelpie_op *op, struct kelpie_vm *vm,
                                              const struct kelpie_exec *exec,
                                              struct kelpie_exec_status *out,
                                              struct kelpie_error **err);
struct kelpie_exec_control *kelpie_exec_control_create(struct kelpie_vm *vm);
void kelpie_exec_control_destroy(struct kelpie_exec_control *control);
/* Thread-safe; no-ops before the start and after the end. */
void kelpie_exec_signal(const struct kelpie_op *op, struct kelpie_exec_control *control,
                        int signal);
void kelpie_exec_resize(const struct kelpie_op *op, struct kelpie_exec_control *control,
                        uint32_t rows, uint32_t cols);

/* Running: files as tar streams. put: extracted below `path`; get: of a file or a folder. */
KELPIE_MUST_USE kelpie_outcome kelpie_vm_put(const struct kelpie_op *op, struct kelpie_vm *vm,
                                             const char *path,
                                             size_t (*input)(void *arg, void *out, size_t capacity),
                                             void *arg, struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome kelpie_vm_get(
    const struct kelpie_op *op, struct kelpie_vm *vm, const char *path,
    bool (*output)(void *arg, const void *data, size_t size), void *arg, struct kelpie_error **err);
/* The last console bytes, also of a crashed VM; <= capacity, NUL-terminated. */
void kelpie_vm_console(const struct kelpie_op *op, struct kelpie_vm *vm, char *out,
                       size_t capacity);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
