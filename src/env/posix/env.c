/* SPDX-License-Identifier: Apache-2.0 */
/* The posix env itself: clocks, randomness, log lines, test points, and errno's way into error
 * codes. */
#include <errno.h>
#include <malloc.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "base/fmt.h"
#include "env/posix/inside.h"

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec now;
    KLP_ASSERT(clock_gettime(clock, &now) == 0);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t posix_boot_ns(struct klp_env *env)
{
    (void)env;
    return clock_ns(CLOCK_BOOTTIME);
}

static int64_t posix_wall_ns(struct klp_env *env)
{
    (void)env;
    return (int64_t)clock_ns(CLOCK_REALTIME);
}

static void posix_random(struct klp_env *env, void *out, size_t size)
{
    (void)env;
    for (size_t at = 0; at < size;) {
        ssize_t got = getrandom((char *)out + at, size - at, 0);
        KLP_ASSERT(got > 0 || errno == EINTR);
        at += got > 0 ? (size_t)got : 0;
    }
}

void klp_posix_log(struct klp_env *env, enum klp_level level, const char *event, const char *text)
{
    static const char *const levels[] = {"debug", "info", "warn", "error"};
    struct posix_env *posix = posix_from_env(env);
    if (level < posix->options.level)
        return;
    char now[KLP_TIME_TEXT_SIZE];
    klp_time_text(posix_wall_ns(env), now);
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf line = KLP_BUF_INIT(8192);
    klp_buf_append_format(&line, "%s level=%s event=%s program=%s ", now, levels[level], event,
                          posix->options.program);
    size_t size = strlen(text);
    klp_text_escape(&line, text, size < 1500 ? size : 1500);
    klp_buf_append(&line, "\n", 1);
    if (write(STDERR_FILENO, line.data, line.size) < 0)
        return; /* nobody listens: a log line is not worth more */
}

void klp_posix_point(struct klp_env *env, const char *name)
{
    struct posix_env *posix = posix_from_env(env);
    if (posix->point_name == NULL || strcmp(posix->point_name, name) != 0)
        return;
    unsigned visit = __atomic_add_fetch(&posix->point_visits, 1, __ATOMIC_SEQ_CST);
    if (visit != posix->point_visit)
        return;
    dprintf(STDERR_FILENO, "%s: test point %s: %s\n", posix->options.program, name,
            posix->point_stops ? "stop" : "kill");
    /* To this thread: a stop sent to the process may reach another first, and let this one run on.
     */
    KLP_ASSERT(raise(posix->point_stops ? SIGSTOP : SIGKILL) == 0);
}

/* NAME:kill, NAME:stop, either with @N. */
static bool point_parse(struct posix_env *posix, const char *text, struct kelpie_error **err)
{
    const char *colon = strchr(text, ':');
    const char *action = colon != NULL ? colon + 1 : "";
    size_t size = strcspn(action, "@");
    uint64_t visit = 1;
    bool is_kill = size == 4 && strncmp(action, "kill", 4) == 0;
    bool is_stop = size == 4 && strncmp(action, "stop", 4) == 0;
    bool counted =
        action[size] == 0 || klp_parse_u64(action + size + 1, strlen(action + size + 1), &visit);
    if (colon == NULL || colon == text || !(is_kill || is_stop) || !counted || visit == 0 ||
        visit > UINT32_MAX)
        return klp_refuse(
            err, KELPIE_E_INVALID,
            "KELPIE_POINT is '%s': it must be NAME:kill or NAME:stop, perhaps with @N", text);
    posix->point_name = klp_mem_string_n(text, (size_t)(colon - text));
    posix->point_stops = is_stop;
    posix->point_visit = (unsigned)visit;
    return true;
}

static kelpie_outcome no_peer_call(const struct kelpie_op *op, const char *endpoint,
                                   const char *method, const char *path, struct klp_bytes body,
                                   int *out_status, struct klp_buf *out_body,
                                   struct kelpie_error **err)
{
    (void)op;
    (void)method;
    (void)path;
    (void)body;
    (void)out_status;
    (void)out_body;
    return klp_fail(err, KELPIE_E_UNREACHABLE, "this program asks no peers: %s", endpoint);
}

kelpie_outcome klp_posix_peer_call(const struct kelpie_op *op, const char *endpoint,
                                   const char *method, const char *path, struct klp_bytes body,
                                   int *out_status, struct klp_buf *out_body,
                                   struct kelpie_error **err)
{
    return posix_from_env(op->env)->options.peer_call(op, endpoint, method, path, body, out_status,
                                                      out_body, err);
}

static const struct klp_env_ops posix_ops = {
    .boot_ns = posix_boot_ns,
    .wall_ns = posix_wall_ns,
    .random = posix_random,
    .sleep_until = klp_posix_sleep_until,
    .task_spawn = klp_posix_task_spawn,
    .task_join = klp_posix_task_join,
    .mutex_create = klp_posix_mutex_create,
    .mutex_destroy = klp_posix_mutex_destroy,
    .mutex_lock = klp_posix_mutex_lock,
    .mutex_unlock = klp_posix_mutex_unlock,
    .cond_create = klp_posix_cond_create,
    .cond_destroy = klp_posix_cond_destroy,
    .cond_wait = klp_posix_cond_wait,
    .cond_wake = klp_posix_cond_wake,
    .cancel_create = klp_posix_cancel_create,
    .cancel_raise = klp_posix_cancel_raise,
    .cancel_is_raised = klp_posix_cancel_is_raised,
    .cancel_destroy = klp_posix_cancel_destroy,
    .point = klp_posix_point,
    .log = klp_posix_log,
    .file = &klp_posix_file_ops,
    .memory = &klp_posix_memory_ops,
    .chan = &klp_posix_chan_ops,
};

/* Many short tasks that each take a block of a MiB: with the C library's usual settings every
 * processor gets several heaps, and blocks once freed stay in them, so that the peak grew with the
 * guest that was captured (make bench, peak memory: 1.35 times without, 1.02 with). */
static void heap_set(void)
{
    mallopt(M_ARENA_MAX, 2);
    mallopt(M_MMAP_THRESHOLD, 128 * 1024); /* and not adapting any more */
    mallopt(M_TRIM_THRESHOLD, 128 * 1024);
}

bool klp_env_posix_create(const struct klp_env_posix_options *options, struct klp_env **out,
                          struct kelpie_error **err)
{
    const char *point = getenv("KELPIE_POINT");
    if (point != NULL && !options->test_points)
        return klp_refuse(err, KELPIE_E_INVALID,
                          "KELPIE_POINT is set, but %s was started without --test-points",
                          options->program);
    heap_set();
    struct posix_env *posix = KLP_NEW(struct posix_env);
    posix->base.ops = &posix_ops;
    posix->options = *options;
    if (posix->options.peer_call == NULL)
        posix->options.peer_call = no_peer_call;
    if (point != NULL && !point_parse(posix, point, err)) {
        klp_mem_free(posix);
        return false;
    }
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    KLP_ASSERT(sigaction(SIGPIPE, &ignore, NULL) == 0);
    KLP_ASSERT(sigaction(SIGXFSZ, &ignore, NULL) == 0); /* the write answers EFBIG instead */
    *out = &posix->base;
    return true;
}

void klp_env_posix_destroy(struct klp_env *env)
{
    if (env == NULL)
        return;
    klp_mem_free(posix_from_env(env)->point_name);
    klp_mem_free(posix_from_env(env));
}

bool klp_env_posix_test_points(struct klp_env *env)
{
    return posix_from_env(env)->options.test_points;
}

static enum kelpie_code code_of_errno(int number)
{
    switch (number) {
    case ENOENT:
    case ENOTDIR:
        return KELPIE_E_NOT_FOUND;
    case EEXIST:
    case EADDRINUSE:
        return KELPIE_E_EXISTS;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return KELPIE_E_NO_SPACE;
    case ENOMEM:
        return KELPIE_E_NO_MEMORY;
    case EACCES:
    case EPERM:
    case EROFS:
    case ELOOP:
    case EISDIR:
        return KELPIE_E_DENIED;
    case EMFILE:
    case ENFILE:
    case EAGAIN:
    case EMSGSIZE:
    case ETOOMANYREFS:
        return KELPIE_E_LIMIT;
    case ECONNREFUSED:
    case ECONNRESET:
    case EPIPE:
    case ENOTCONN:
    case ENETUNREACH:
    case EHOSTUNREACH:
    case ETIMEDOUT:
        return KELPIE_E_UNREACHABLE;
    case EBUSY:
    case ETXTBSY:
        return KELPIE_E_BUSY;
    case ENOTEMPTY:
        return KELPIE_E_STATE;
    case ENAMETOOLONG:
        return KELPIE_E_INVALID;
    case ENOEXEC:
        return KELPIE_E_NOT_EXECUTABLE;
    case ENOSYS:
    case EOPNOTSUPP:
        return KELPIE_E_UNSUPPORTED;
    default:
        return KELPIE_E_IO;
    }
}

/* strerror_r's two forms differ by libc; this one names the number when the text cannot be had. */
static void errno_set(struct kelpie_error **err, int number, const char *format, va_list args)
{
    char why[128];
    const char *text = strerror_r(number, why, sizeof(why));
    char *what = klp_vtext(format, args);
    KLP_IGNORE(klp_refuse(err, code_of_errno(number), "%s: %s", what, text));
    klp_mem_free(what);
}

bool klp_posix_refuse(struct kelpie_error **err, int error_number, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    errno_set(err, error_number, format, args);
    va_end(args);
    return false;
}

kelpie_outcome klp_posix_fail(struct kelpie_error **err, int error_number, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    errno_set(err, error_number, format, args);
    va_end(args);
    return (kelpie_outcome){KELPIE_FAIL};
}
