/* SPDX-License-Identifier: Apache-2.0 */
/* Tasks are threads. Waits end at the op's deadline on CLOCK_BOOTTIME and at once on cancel.
 *
 * A waiter sleeps on a semaphore of its own, which stands in two lists: its condition's and its
 * op's cancel's. Whoever wakes or raises posts the semaphore under one lock that is never held
 * while another is taken, so no wake-up is lost and raising needs no lock of the waiter's.
 */
#include <errno.h>
#include <poll.h>
#include <semaphore.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "base/fmt.h"
#include "base/list.h"
#include "env/posix/inside.h"

#define STACK_SIZE (1024 * 1024) /* bytes: room for the frames of SQLite and a sanitizer */
#define NAP_MAX_MS 1000          /* a host that slept is noticed after at most this long */

struct posix_task {
    struct klp_task base;
    pthread_t thread;
    void (*run)(void *arg);
    void *arg;
    char name[16];
};

struct posix_cond {
    struct klp_cond base;
};

struct waiter {
    struct klp_list link;
    const struct klp_cond *cond;
    const struct klp_cancel *cancel; /* NULL = cannot be cancelled */
    sem_t woken;
};

static pthread_mutex_t waiters_mutex = PTHREAD_MUTEX_INITIALIZER;
static struct klp_list waiters = {&waiters, &waiters};

static void *task_main(void *arg)
{
    struct posix_task *task = arg;
    pthread_setname_np(pthread_self(), task->name);
    task->run(task->arg);
    return NULL;
}

/* Signals from outside go to the program's own threads, which know what to do with them. Those that
 * a thread raises by itself stay. Returns an errno. */
static int thread_start(struct posix_task *task)
{
    static const int own[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS};
    sigset_t blocked, before;
    sigfillset(&blocked);
    for (size_t i = 0; i < KLP_COUNT(own); i++)
        sigdelset(&blocked, own[i]);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_SIZE);
    pthread_sigmask(SIG_BLOCK, &blocked, &before);
    int error = pthread_create(&task->thread, &attributes, task_main, task);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return error;
}

bool klp_posix_task_spawn(struct klp_env *env, const char *name, void (*run)(void *), void *arg,
                          struct klp_task **out, struct kelpie_error **err)
{
    struct posix_task *task = KLP_NEW(struct posix_task);
    *task = (struct posix_task){.base.env = env, .run = run, .arg = arg};
    klp_format(task->name, sizeof(task->name), "%s", name);
    int error = thread_start(task);
    if (error != 0) {
        klp_mem_free(task);
        return klp_posix_refuse(err, error, "cannot start task '%s'", name);
    }
    *out = &task->base;
    return true;
}

void klp_posix_task_join(struct klp_task *base)
{
    struct posix_task *task = (struct posix_task *)base;
    KLP_ASSERT(pthread_join(task->thread, NULL) == 0);
    klp_mem_free(task);
}

struct klp_mutex *klp_posix_mutex_create(struct klp_env *env)
{
    struct posix_mutex *mutex = KLP_NEW(struct posix_mutex);
    mutex->base.env = env;
    /* Unlocking what another task holds, and locking twice, are bugs that must show. */
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ERRORCHECK);
    KLP_ASSERT(pthread_mutex_init(&mutex->mutex, &attributes) == 0);
    pthread_mutexattr_destroy(&attributes);
    return &mutex->base;
}

void klp_posix_mutex_destroy(struct klp_mutex *base)
{
    struct posix_mutex *mutex = (struct posix_mutex *)base;
    KLP_ASSERT(pthread_mutex_destroy(&mutex->mutex) == 0);
    klp_mem_free(mutex);
}

void klp_posix_mutex_lock(struct klp_mutex *base)
{
    KLP_ASSERT(pthread_mutex_lock(&((struct posix_mutex *)base)->mutex) == 0);
}

void klp_posix_mutex_unlock(struct klp_mutex *base)
{
    KLP_ASSERT(pthread_mutex_unlock(&((struct posix_mutex *)base)->mutex) == 0);
}

struct klp_cond *klp_posix_cond_create(struct klp_env *env)
{
    struct posix_cond *cond = KLP_NEW(struct posix_cond);
    cond->base.env = env;
    return &cond->base;
}

void klp_posix_cond_destroy(struct klp_cond *base)
{
    klp_mem_free((struct posix_cond *)base);
}

/* What is left of the op, at most a nap. */
static struct timespec nap_time(const struct kelpie_op *op)
{
    uint64_t nap_ns = NAP_MAX_MS * KLP_MS;
    uint64_t now = klp_boot_ns(op->env);
    if (op->deadline_ns != KLP_NO_DEADLINE && op->deadline_ns < now + nap_ns)
        nap_ns = op->deadline_ns > now ? op->deadline_ns - now : 0;
    return (struct timespec){(time_t)(nap_ns / KLP_SECOND), (long)(nap_ns % KLP_SECOND)};
}

static void waiter_nap(const struct kelpie_op *op, struct waiter *waiter)
{
    struct timespec until, nap = nap_time(op);
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += nap.tv_sec;
    until.tv_nsec += nap.tv_nsec;
    if (until.tv_nsec >= (long)KLP_SECOND) {
        until.tv_nsec -= (long)KLP_SECOND;
        until.tv_sec++;
    }
    if (sem_clockwait(&waiter->woken, CLOCK_MONOTONIC, &until) != 0)
        KLP_ASSERT(errno == ETIMEDOUT || errno == EINTR);
}

kelpie_outcome klp_posix_cond_wait(const struct kelpie_op *op, struct klp_cond *cond,
                                   struct klp_mutex *mutex, struct kelpie_error **err)
{
    struct waiter waiter = {.cond = cond, .cancel = op->cancel};
    KLP_ASSERT(sem_init(&waiter.woken, 0, 0) == 0);

    pthread_mutex_lock(&waiters_mutex);
    klp_list_append(&waiters, &waiter.link);
    pthread_mutex_unlock(&waiters_mutex);
    /* Checked after it stands in the list: a cancel raised earlier is seen here, a later one posts.
     */
    kelpie_outcome outcome = klp_op_check(op, "waiting", err);
    if (kelpie_is_ok(outcome)) {
        klp_posix_mutex_unlock(mutex);
        waiter_nap(op, &waiter);
        klp_posix_mutex_lock(mutex);
    }
    pthread_mutex_lock(&waiters_mutex);
    klp_list_remove(&waiter.link);
    pthread_mutex_unlock(&waiters_mutex);
    KLP_ASSERT(sem_destroy(&waiter.woken) == 0);
    return outcome;
}

/* Posts every waiter of the condition, or of the cancel. */
static void waiters_post(const struct klp_cond *cond, const struct klp_cancel *cancel)
{
    pthread_mutex_lock(&waiters_mutex);
    KLP_LIST_EACH (item, &waiters) {
        struct waiter *waiter = KLP_CONTAINER(item, struct waiter, link);
        if ((cond != NULL && waiter->cond == cond) || (cancel != NULL && waiter->cancel == cancel))
            KLP_ASSERT(sem_post(&waiter->woken) == 0);
    }
    pthread_mutex_unlock(&waiters_mutex);
}

void klp_posix_cond_wake(struct klp_cond *cond)
{
    waiters_post(cond, NULL);
}

struct klp_cancel *klp_posix_cancel_create(struct klp_env *env)
{
    struct posix_cancel *cancel = KLP_NEW(struct posix_cancel);
    cancel->base.env = env;
    cancel->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return &cancel->base;
}

void klp_posix_cancel_raise(struct klp_cancel *base)
{
    struct posix_cancel *cancel = (struct posix_cancel *)base;
    __atomic_store_n(&cancel->raised, true, __ATOMIC_SEQ_CST);
    uint64_t one = 1;
    if (cancel->event_fd >= 0 && write(cancel->event_fd, &one, sizeof(one)) < 0)
        KLP_ASSERT(errno == EAGAIN);
    waiters_post(NULL, base);
}

bool klp_posix_cancel_is_raised(const struct klp_cancel *base)
{
    return __atomic_load_n(&((const struct posix_cancel *)base)->raised, __ATOMIC_SEQ_CST);
}

void klp_posix_cancel_destroy(struct klp_cancel *base)
{
    struct posix_cancel *cancel = (struct posix_cancel *)base;
    if (cancel->event_fd >= 0)
        close(cancel->event_fd);
    klp_mem_free(cancel);
}

static int cancel_fd(const struct kelpie_op *op)
{
    return op->cancel != NULL ? ((const struct posix_cancel *)op->cancel)->event_fd : -1;
}

kelpie_outcome klp_posix_poll(const struct kelpie_op *op, struct pollfd *polled, size_t count,
                              const char *what, struct kelpie_error **err)
{
    KLP_ASSERT(count <= POSIX_POLL_MAX);
    for (;;) {
        struct pollfd all[POSIX_POLL_MAX + 1];
        bool ready = false;
        memcpy(all, polled, count * sizeof(all[0]));
        all[count] = (struct pollfd){cancel_fd(op), POLLIN, 0};
        struct timespec nap = nap_time(op);
        if (ppoll(all, count + 1, &nap, NULL) < 0) {
            if (errno != EINTR)
                return klp_posix_fail(err, errno, "cannot wait while %s", what);
        } else {
            memcpy(polled, all, count * sizeof(all[0]));
            for (size_t i = 0; i < count; i++)
                ready = ready || polled[i].revents != 0;
        }
        if (ready)
            return KLP_OK;
        KLP_TRY(klp_op_check(op, what, err));
    }
}

kelpie_outcome klp_posix_wait_two(const struct kelpie_op *op, int fd_a, int fd_b, short events,
                                  unsigned *out_ready, const char *what, struct kelpie_error **err)
{
    struct pollfd polled[2] = {{fd_a, events, 0}, {fd_b, events, 0}};
    KLP_TRY(klp_posix_poll(op, polled, 2, what, err));
    *out_ready = (polled[0].revents != 0 ? 1u : 0) | (polled[1].revents != 0 ? 2u : 0);
    return KLP_OK;
}

kelpie_outcome klp_posix_wait(const struct kelpie_op *op, int fd, short events, const char *what,
                              struct kelpie_error **err)
{
    unsigned ready;
    return klp_posix_wait_two(op, fd, -1, events, &ready, what, err);
}

kelpie_outcome klp_posix_sleep_until(const struct kelpie_op *op, uint64_t boot_ns,
                                     struct kelpie_error **err)
{
    struct kelpie_op nap = *op;
    if (boot_ns < nap.deadline_ns)
        nap.deadline_ns = boot_ns;
    for (;;) {
        if (klp_boot_ns(op->env) >= boot_ns)
            return KLP_OK;
        KLP_TRY(klp_op_check(op, "sleeping", err));
        struct pollfd polled = {cancel_fd(op), POLLIN, 0};
        struct timespec time = nap_time(&nap);
        if (ppoll(&polled, 1, &time, NULL) < 0 && errno != EINTR)
            return klp_posix_fail(err, errno, "cannot sleep");
    }
}
