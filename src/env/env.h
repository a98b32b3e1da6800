/* SPDX-License-Identifier: Apache-2.0 */
/* The seam to the world: all that core code may know of time, tasks, randomness, other processes
 * and other nodes. posix/ implements it with threads and system calls; sim/env with fibers, a
 * virtual clock and faults. Files: env/file.h. Memory objects: env/memory.h. Channels, streams,
 * peers: env/chan.h.
 *
 * Core code calls the klp_* functions; only implementations see the tables of methods. */
#ifndef KLP_ENV_ENV_H
#define KLP_ENV_ENV_H

#include <stdint.h>

#include "base/buf.h"
#include "base/name.h"

struct klp_env_ops;
struct klp_env { /* first member of every implementation's own struct */
    const struct klp_env_ops *ops;
};

/* ---- time. BOOTTIME counts while the host sleeps: leases and deadlines. Wall time is only shown.
 */
#define KLP_MS 1000000ull /* nanoseconds */
#define KLP_SECOND (1000 * KLP_MS)
uint64_t klp_boot_ns(struct klp_env *env);
int64_t klp_wall_ns(struct klp_env *env); /* since 1970 */

/* ---- randomness, cryptographic (keyed by the seed in simulation). */
void klp_random(struct klp_env *env, void *out, size_t size);
void klp_random_id(struct klp_env *env, char out[KLP_ID_SIZE]);

/* ---- operations: what may block takes one. A deadline, a cancel, a progress record, a move id. */
#define KLP_NO_DEADLINE UINT64_MAX

struct klp_cancel;   /* env's: can be raised from any task; wakes every wait of the op */
struct klp_progress; /* phases for api/: see below */

struct kelpie_op {
    struct klp_env *env;
    uint64_t deadline_ns;          /* boot-time clock */
    struct klp_cancel *cancel;     /* borrowed; NULL = cannot be cancelled */
    struct klp_progress *progress; /* borrowed; NULL = nobody looks */
    char move_id[KLP_ID_SIZE];     /* "" outside of a move */
};

/* An op without cancel or progress that ends timeout_ms from now. */
struct kelpie_op klp_op_plain(struct klp_env *env, uint64_t timeout_ms);
/* The same op with the earlier of both deadlines; shares cancel and progress. */
struct kelpie_op klp_op_within(const struct kelpie_op *op, uint64_t timeout_ms);
/* For undoing: same progress and move id, own deadline, cannot be cancelled. */
struct kelpie_op klp_op_cleanup(const struct kelpie_op *op, uint64_t timeout_ms);
/* FAIL with TIMEOUT or CANCELLED ("... while WHAT") when the op has ended, else OK. Never blocks.
 */
KELPIE_MUST_USE kelpie_outcome klp_op_check(const struct kelpie_op *op, const char *what,
                                            struct kelpie_error **err);
uint64_t klp_op_left_ms(const struct kelpie_op *op); /* 0 when past; UINT64_MAX without deadline */

struct klp_cancel *klp_cancel_create(struct klp_env *env);
void klp_cancel_raise(struct klp_cancel *cancel);
bool klp_cancel_is_raised(const struct klp_cancel *cancel);
void klp_cancel_destroy(struct klp_cancel *cancel);
KLP_AUTO_DEFINE(cancel, struct klp_cancel *, klp_cancel_destroy)

#define KLP_PHASES_MAX 24
struct klp_phase {
    char step[24];             /* "precopy", "quiesce", ... */
    uint64_t start_ns, end_ns; /* boot-time clock; end 0 = under way */
    uint64_t bytes;
};
/* Thread-safe. begin ends the phase before it. All accept an op without progress. */
struct klp_progress *klp_progress_create(struct klp_env *env);
void klp_progress_destroy(struct klp_progress *progress);
void klp_op_phase(const struct kelpie_op *op, const char *step);
void klp_op_bytes(const struct kelpie_op *op, uint64_t bytes);
void klp_op_phase_end(const struct kelpie_op *op);
/* Copies; returns the count. */
size_t klp_progress_read(struct klp_progress *progress, struct klp_phase out[KLP_PHASES_MAX]);
KLP_AUTO_DEFINE(progress, struct klp_progress *, klp_progress_destroy)

/* OK at the instant, or FAIL with TIMEOUT / CANCELLED when the op ended earlier. */
KELPIE_MUST_USE kelpie_outcome klp_sleep_until(const struct kelpie_op *op, uint64_t boot_ns,
                                               struct kelpie_error **err);

/* ---- tasks: a thread, or a fiber. Every task is joined exactly once. */
struct klp_task;
KELPIE_MUST_USE bool klp_task_spawn(struct klp_env *env, const char *name, void (*run)(void *arg),
                                    void *arg, struct klp_task **out, struct kelpie_error **err);
void klp_task_join(struct klp_task *task);

struct klp_mutex;
struct klp_mutex *klp_mutex_create(struct klp_env *env);
void klp_mutex_destroy(struct klp_mutex *mutex);
void klp_mutex_lock(struct klp_mutex *mutex); /* never held over a blocking call */
void klp_mutex_unlock(struct klp_mutex *mutex);
KLP_AUTO_DEFINE(mutex, struct klp_mutex *, klp_mutex_destroy)

struct klp_cond;
struct klp_cond *klp_cond_create(struct klp_env *env);
void klp_cond_destroy(struct klp_cond *cond);
/* Unlocks, waits, locks. OK = woken (perhaps for nothing: check again); FAIL = TIMEOUT / CANCELLED.
 */
KELPIE_MUST_USE kelpie_outcome klp_cond_wait(const struct kelpie_op *op, struct klp_cond *cond,
                                             struct klp_mutex *mutex, struct kelpie_error **err);
void klp_cond_wake(struct klp_cond *cond); /* all waiters */
KLP_AUTO_DEFINE(cond, struct klp_cond *, klp_cond_destroy)

/* A scope that holds a mutex: KLP_LOCKED(m) { ... } must not be left by return, break or goto. */
#define KLP_LOCKED(mutex)                                                                          \
    for (int klp_once = (klp_mutex_lock(mutex), 1); klp_once; klp_mutex_unlock(mutex), klp_once = 0)

/* ---- the one hook for crashes and tests. NAME is dotted lower case: "teleport.before-claim".
 * Production: acts only when the program was started with --test-points (KELPIE_POINT=NAME:kill,
 * :stop). */
void klp_point(struct klp_env *env, const char *name);

/* ---- facts, never errors that are also returned. `event` is a stable dotted name, the rest
 * "key=value ...". */
enum klp_level { KLP_LOG_DEBUG, KLP_LOG_INFO, KLP_LOG_WARN, KLP_LOG_ERROR };
void klp_log(struct klp_env *env, enum klp_level level, const char *event, const char *format, ...)
    KLP_PRINTF(4, 5);

/* ---- for implementations only. */
struct klp_file_ops;
struct klp_memory_ops;
struct klp_chan_ops;
struct klp_env_ops {
    uint64_t (*boot_ns)(struct klp_env *env);
    int64_t (*wall_ns)(struct klp_env *env);
    void (*random)(struct klp_env *env, void *out, size_t size);
    kelpie_outcome (*sleep_until)(const struct kelpie_op *op, uint64_t boot_ns,
                                  struct kelpie_error **err);
    bool (*task_spawn)(struct klp_env *env, const char *name, void (*run)(void *), void *arg,
                       struct klp_task **out, struct kelpie_error **err);
    void (*task_join)(struct klp_task *task);
    struct klp_mutex *(*mutex_create)(struct klp_env *env);
    void (*mutex_destroy)(struct klp_mutex *mutex);
    void (*mutex_lock)(struct klp_mutex *mutex);
    void (*mutex_unlock)(struct klp_mutex *mutex);
    struct klp_cond *(*cond_create)(struct klp_env *env);
    void (*cond_destroy)(struct klp_cond *cond);
    kelpie_outcome (*cond_wait)(const struct kelpie_op *op, struct klp_cond *cond,
                                struct klp_mutex *mutex, struct kelpie_error **err);
    void (*cond_wake)(struct klp_cond *cond);
    struct klp_cancel *(*cancel_create)(struct klp_env *env);
    void (*cancel_raise)(struct klp_cancel *cancel);
    bool (*cancel_is_raised)(const struct klp_cancel *cancel);
    void (*cancel_destroy)(struct klp_cancel *cancel);
    void (*point)(struct klp_env *env, const char *name);
    void (*log)(struct klp_env *env, enum klp_level level, const char *event, const char *text);
    const struct klp_file_ops *file;
    const struct klp_memory_ops *memory;
    const struct klp_chan_ops *chan;
};
/* Implementations embed these as first member, so that the wrappers find the table. */
struct klp_task {
    struct klp_env *env;
};
struct klp_mutex {
    struct klp_env *env;
};
struct klp_cond {
    struct klp_env *env;
};
struct klp_cancel {
    struct klp_env *env;
};

#endif
