/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of env/posix share. */
#ifndef KLP_ENV_POSIX_INSIDE_H
#define KLP_ENV_POSIX_INSIDE_H

#include <poll.h>
#include <pthread.h>

#include "env/posix/posix.h"

struct posix_env {
    struct klp_env base;
    struct klp_env_posix_options options;
    char *point_name; /* KELPIE_POINT without its action; NULL = none */
    bool point_stops;
    unsigned point_visit;  /* acts at this one */
    unsigned point_visits; /* atomic */
};

static inline struct posix_env *posix_from_env(struct klp_env *env)
{
    return (struct posix_env *)env;
}

/* Raised flag, an eventfd for poll, and the conditions that tasks of this op wait for. */
struct posix_cancel {
    struct klp_cancel base;
    int event_fd;
    bool raised; /* atomic */
};

struct posix_mutex {
    struct klp_mutex base;
    pthread_mutex_t mutex;
};

/* A name in a folder, for sockets. */
struct posix_place {
    int dir_fd;
    const char *name;
    const char *path; /* the same as text; may be NULL where nothing is refused */
    bool is_direct;   /* the path itself serves as address if it is short enough */
};

/* Returns an errno; the descriptor is non-blocking. */
int klp_posix_place_connect(const struct posix_place *place, int type, int *out_fd);
bool klp_posix_connect_refuse(struct kelpie_error **err, int error, const char *path);
/* The caller holds the place's lock. Mode 0600; a stale socket is replaced; EXISTS. */
bool klp_posix_place_listen(const struct posix_place *place, int type, int *out_fd,
                            struct kelpie_error **err);
/* Holds NAME.lock; -1 = EXISTS, or it cannot be made. `wait`: a while, not for ever. */
int klp_posix_place_lock(const struct posix_place *place, bool wait, struct kelpie_error **err);
void klp_posix_place_unlock(const struct posix_place *place, int lock_fd); /* removes it too */

/* Until one of them (at most POSIX_POLL_MAX, -1 = none) is ready or the op ends. */
#define POSIX_POLL_MAX 3
kelpie_outcome klp_posix_poll(const struct kelpie_op *op, struct pollfd *polled, size_t count,
                              const char *what, struct kelpie_error **err);

bool klp_posix_stream_open(struct klp_env *env, struct klp_handle handle, struct klp_stream **out,
                           struct kelpie_error **err);
kelpie_outcome klp_posix_stream_read(const struct kelpie_op *op, struct klp_stream *stream,
                                     void *out, size_t capacity, size_t *out_size,
                                     struct kelpie_error **err);
kelpie_outcome klp_posix_stream_write(const struct kelpie_op *op, struct klp_stream *stream,
                                      const void *data, size_t size, struct kelpie_error **err);
void klp_posix_stream_shutdown(struct klp_stream *stream);
void klp_posix_stream_close(struct klp_stream *stream);

/* A file with a name of its own making, where the file system knows no unnamed ones. */
bool klp_posix_create_hidden(struct klp_dir *dir, struct klp_file **out, struct kelpie_error **err);

extern const struct klp_file_ops klp_posix_file_ops;
extern const struct klp_memory_ops klp_posix_memory_ops;
extern const struct klp_chan_ops klp_posix_chan_ops;

kelpie_outcome klp_posix_sleep_until(const struct kelpie_op *op, uint64_t boot_ns,
                                     struct kelpie_error **err);
bool klp_posix_task_spawn(struct klp_env *env, const char *name, void (*run)(void *), void *arg,
                          struct klp_task **out, struct kelpie_error **err);
void klp_posix_task_join(struct klp_task *task);
struct klp_mutex *klp_posix_mutex_create(struct klp_env *env);
void klp_posix_mutex_destroy(struct klp_mutex *mutex);
void klp_posix_mutex_lock(struct klp_mutex *mutex);
void klp_posix_mutex_unlock(struct klp_mutex *mutex);
struct klp_cond *klp_posix_cond_create(struct klp_env *env);
void klp_posix_cond_destroy(struct klp_cond *cond);
kelpie_outcome klp_posix_cond_wait(const struct kelpie_op *op, struct klp_cond *cond,
                                   struct klp_mutex *mutex, struct kelpie_error **err);
void klp_posix_cond_wake(struct klp_cond *cond);
struct klp_cancel *klp_posix_cancel_create(struct klp_env *env);
void klp_posix_cancel_raise(struct klp_cancel *cancel);
bool klp_posix_cancel_is_raised(const struct klp_cancel *cancel);
void klp_posix_cancel_destroy(struct klp_cancel *cancel);
void klp_posix_point(struct klp_env *env, const char *name);
kelpie_outcome klp_posix_peer_call(const struct kelpie_op *op, const char *endpoint,
                                   const char *method, const char *path, struct klp_bytes body,
                                   int *out_status, struct klp_buf *out_body,
                                   struct kelpie_error **err);
void klp_posix_log(struct klp_env *env, enum klp_level level, const char *event, const char *text);

#endif
