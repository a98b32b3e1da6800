/* SPDX-License-Identifier: Apache-2.0 */
/* The real world: threads, CLOCK_BOOTTIME, files, memfds, Unix sockets. Only programs' main() and
 * other implementations (vm/qemu, vm/mock, api/...) may name this header. */
#ifndef KLP_ENV_POSIX_POSIX_H
#define KLP_ENV_POSIX_POSIX_H

#include <stdio.h>

#include "env/chan.h"

struct klp_env_posix_options {
    const char *program;  /* for log lines; borrowed for the life of the env */
    enum klp_level level; /* log lines below it are dropped */
    bool test_points;     /* --test-points was given: KELPIE_POINT acts */
    /* How klp_peer_call asks (daemon/: libcurl); NULL = UNREACHABLE. */
    kelpie_outcome (*peer_call)(const struct kelpie_op *, const char *endpoint, const char *method,
                                const char *path, struct klp_bytes body, int *out_status,
                                struct klp_buf *out_body, struct kelpie_error **err);
};

/* FAIL: KELPIE_POINT is set without --test-points, or is malformed (INVALID): NAME:kill or
 * NAME:stop, with @N to act at the N-th visit instead of the first. Ignores SIGPIPE and SIGXFSZ. */
KELPIE_MUST_USE bool klp_env_posix_create(const struct klp_env_posix_options *options,
                                          struct klp_env **out, struct kelpie_error **err);
void klp_env_posix_destroy(struct klp_env *env);
bool klp_env_posix_test_points(struct klp_env *env); /* as it was created */

/* errno enters here and stops here: maps it to a code, adds strerror to the message. */
KELPIE_MUST_USE bool klp_posix_refuse(struct kelpie_error **err, int error_number,
                                      const char *format, ...) KLP_PRINTF(3, 4);
KELPIE_MUST_USE kelpie_outcome klp_posix_fail(struct kelpie_error **err, int error_number,
                                              const char *format, ...) KLP_PRINTF(3, 4);

/* Waits for `events` (poll.h) on fd until the op ends; OK = ready (or error/hangup: try the call).
 */
KELPIE_MUST_USE kelpie_outcome klp_posix_wait(const struct kelpie_op *op, int fd, short events,
                                              const char *what, struct kelpie_error **err);
/* Two descriptors (fd_b may be -1). *out_ready: bit 0 = fd_a, bit 1 = fd_b. */
KELPIE_MUST_USE kelpie_outcome klp_posix_wait_two(const struct kelpie_op *op, int fd_a, int fd_b,
                                                  short events, unsigned *out_ready,
                                                  const char *what, struct kelpie_error **err);

/* Handles are descriptors. */
static inline struct klp_handle klp_handle_from_fd(int fd)
{
    return (struct klp_handle){fd};
}
static inline int klp_handle_fd(struct klp_handle handle)
{
    return (int)handle.value;
}
int klp_dir_fd(const struct klp_dir *dir); /* borrowed */

/* A Unix stream or SEQPACKET address, also for paths longer than sun_path: through
 * /proc/self/fd/DIR/name. The descriptor is non-blocking. connect: UNREACHABLE when nobody listens.
 * listen: mode 0600; EXISTS when somebody listens or the name is no socket; a socket that a dead
 * process left is replaced; of several that try at once one wins. */
KELPIE_MUST_USE bool klp_posix_unix_connect(const char *path, int type, int *out_fd,
                                            struct kelpie_error **err);
KELPIE_MUST_USE bool klp_posix_unix_listen(const char *path, int type, int *out_fd,
                                           struct kelpie_error **err);

/* Starts a program by the recipe of reliability-security 3.3 as far as it holds without root:
 * descriptors `fds` become 3, 4, ...; all others are closed; empty environment but for `env`; new
 * session; signals default; umask 077; core 0. A failure before exec comes back as an error: no
 * half-started child. */
struct klp_spawn {
    const char *path;        /* absolute */
    const char *const *argv; /* NULL-terminated */
    const char *const *env;  /* NULL-terminated, may be NULL = empty */
    const int *fds;
    size_t fd_count;
    int stdin_fd, stdout_fd, stderr_fd; /* -1 = /dev/null */
    const char *directory;              /* NULL = "/" */
    /* PR_SET_PDEATHSIG SIGKILL: a hypervisor dies with its keeper. It fires when the THREAD that
     * spawned ends, so spawn such a child from a thread that lives as long as the process. */
    bool die_with_parent;
};
KELPIE_MUST_USE bool klp_posix_spawn(const struct klp_spawn *spawn, int *out_pid, int *out_pidfd,
                                     struct kelpie_error **err);

#endif
