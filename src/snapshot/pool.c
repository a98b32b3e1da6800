/* SPDX-License-Identifier: Apache-2.0 */
#include "snapshot/pool.h"

#define GRAIN 4 /* fewer items than this a worker are not worth another task */

struct pool {
    const struct kelpie_op *op;
    kelpie_outcome (*work)(const struct kelpie_op *, void *, unsigned, size_t,
                           struct kelpie_error **);
    void *arg;
    struct klp_mutex *mutex;
    size_t next, count;
    kelpie_outcome outcome;
    struct kelpie_error *error;
};

struct pool_worker {
    struct pool *pool;
    unsigned index;
    struct klp_task *task;
};

static bool item_take(struct pool *pool, size_t *out)
{
    bool taken = false;
    KLP_LOCKED (pool->mutex) {
        taken = kelpie_is_ok(pool->outcome) && pool->next < pool->count;
        if (taken)
            *out = pool->next++;
    }
    return taken;
}

static void worker_run(void *arg)
{
    struct pool_worker *worker = arg;
    struct pool *pool = worker->pool;
    size_t item;
    while (item_take(pool, &item)) {
        struct kelpie_error *error = NULL;
        kelpie_outcome outcome = pool->work(pool->op, pool->arg, worker->index, item, &error);
        if (kelpie_is_ok(outcome))
            continue;
        KLP_LOCKED (pool->mutex) {
            if (kelpie_is_ok(pool->outcome))
                pool->outcome = outcome;
            klp_error_move(&pool->error, &error);
        }
    }
}

kelpie_outcome klp_pool_run(const struct kelpie_op *op, unsigned workers, size_t count,
                            kelpie_outcome (*work)(const struct kelpie_op *, void *, unsigned,
                                                   size_t, struct kelpie_error **),
                            void *arg, struct kelpie_error **err)
{
    KLP_ASSERT(workers >= 1 && workers <= KLP_POOL_WORKERS_MAX);
    struct pool pool = {.op = op, .work = work, .arg = arg, .count = count};
    struct pool_worker members[KLP_POOL_WORKERS_MAX] = {0};
    pool.mutex = klp_mutex_create(op->env);
    unsigned started = 1;
    for (; started < workers && count >= (size_t)GRAIN * (started + 1); started++) {
        members[started] = (struct pool_worker){&pool, started, NULL};
        /* Fewer hands are slower, not wrong. */
        if (!klp_task_spawn(op->env, "pool", worker_run, &members[started], &members[started].task,
                            NULL))
            break;
    }
    members[0] = (struct pool_worker){&pool, 0, NULL};
    worker_run(&members[0]);
    for (unsigned i = 1; i < started; i++)
        klp_task_join(members[i].task);
    klp_mutex_destroy(pool.mutex);
    if (pool.error != NULL)
        klp_error_move(err, &pool.error);
    return pool.outcome;
}
