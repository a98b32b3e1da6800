/* SPDX-License-Identifier: Apache-2.0 */
/* env's table over the hub: one env a simulated host, with clocks of its own. A lock is a place
 * where another fiber may come first, as the seed says. Files, memory objects, channels: their own
 * files. */
#include <stdlib.h>
#include <string.h>

#include "sim.h"

#define WALL_START_NS 1767225600000000000ll /* 2026-01-01 */
#define DRAW_TAG 0x72616e646f6dull
#define TURN_TAG 0x7475726eull
#define TURN_ONE_IN 8
#define DRIFT_TAG 0x6472696674ull
#define DRIFT_SHIFT 20 /* drift is in parts of 2^20, about a millionth */
#define FAR_SHIFT 52   /* ns: beyond any run */
#define DRIFT_MAX 210  /* 200 ppm: what clocks of hosts are specified for */
#define STEP_SCALES 3
#define WALL_MAX_NS (20ll * 365 * 86400 * (int64_t)KLP_SECOND) /* a step does not go beyond */
#define TIMER_OFF_NS (20 * KLP_MS)

SIM_FAULT_SITE(CRASH_DAEMON_AT_POINT)
SIM_FAULT_SITE(CRASH_HOST)
SIM_FAULT_SITE(POWER_LOSS)
SIM_FAULT_SITE(WALL_STEP)
SIM_FAULT_SITE(HOST_SLEEP)
SIM_FAULT_SITE(TIMER_LATE)
SIM_FAULT_SITE(TIMER_EARLY)

struct sim_env *sim_env_from(struct klp_env *env)
{
    return (struct sim_env *)env;
}

/* ---- clocks. A host's clock runs from its own start and at its own rate. */

static uint64_t boot_at(const struct sim_env *env, uint64_t true_ns)
{
    true_ns -= env->since_ns;
    uint64_t rate = (uint64_t)(env->drift < 0 ? -env->drift : env->drift);
    uint64_t off_ns = (true_ns * rate) >> DRIFT_SHIFT; /* of days, not of years */
    return env->boot_offset_ns + (env->drift < 0 ? true_ns - off_ns : true_ns + off_ns);
}

static uint64_t boot_ns(struct klp_env *env)
{
    return boot_at(sim_env_from(env), sim_world->now_ns);
}

uint64_t sim_env_true_ns(const struct sim_env *env, uint64_t boot)
{
    if (boot <= boot_at(env, env->since_ns))
        return env->since_ns;
    uint64_t true_ns = env->since_ns + (boot - env->boot_offset_ns);
    if (true_ns >> FAR_SHIFT != 0)
        return true_ns;
    for (int i = 0; i < 4; i++) /* each leaves a five-thousandth of the error */
        true_ns += boot - boot_at(env, true_ns);
    while (boot_at(env, true_ns) < boot)
        true_ns++;
    while (boot_at(env, true_ns - 1) >= boot)
        true_ns--;
    return true_ns;
}

/* A lid is closed: nothing of the host runs, and its clock goes on. Where the sleep ends by chance,
 * or at the very moment a keeper waits for, or beside it. */
static void host_sleep(struct sim_env *env)
{
    uint64_t until_ns = sim_world->now_ns + sim_net_span_ns(), where = sim_fault_draw(6);
    if (where < 3 && env->fence_ns > sim_world->now_ns + 1)
        until_ns = env->fence_ns + where - 1;
    sim_note("sleep", "node=%u until %llu", env->node, (unsigned long long)until_ns);
    KLP_LIST_EACH (item, &sim_world->domains) {
        struct sim_domain *domain = KLP_CONTAINER(item, struct sim_domain, link);
        if (domain->node == env->node && domain->stopped_until_ns < until_ns)
            domain->stopped_until_ns = until_ns;
    }
    sim_guests_sleep(env->node, until_ns);
}

uint64_t sim_env_wake_ns(struct sim_env *env, uint64_t boot)
{
    const struct sim_domain *domain = sim_world->current->domain;
    uint64_t now = sim_world->now_ns, true_ns = SIM_NEVER;
    if (boot != SIM_NEVER)
        true_ns = sim_env_true_ns(env, boot);
    if (!sim_world->fault.on || domain->kind == SIM_WORLD)
        return true_ns;
    if (domain->kind == SIM_KEEPER && true_ns != SIM_NEVER && true_ns > now + KLP_SECOND)
        env->fence_ns = true_ns;
    if (fault_HOST_SLEEP(env->node))
        host_sleep(env);
    if (true_ns != SIM_NEVER && fault_TIMER_LATE(env->node))
        true_ns += sim_fault_draw(TIMER_OFF_NS);
    if (true_ns > now && fault_TIMER_EARLY(env->node)) /* woken for nothing, too */
        true_ns = now + sim_fault_draw(true_ns - now < TIMER_OFF_NS ? true_ns - now : TIMER_OFF_NS);
    return true_ns;
}

/* Set by hand, or by a time server: forward or back, by moments or years. Nothing may rest on it.
 */
static void wall_step(struct sim_env *env)
{
    static const uint64_t scales[STEP_SCALES] = {KLP_SECOND, 3600 * KLP_SECOND,
                                                 86400ull * 3650 * KLP_SECOND};
    uint64_t scale = scales[sim_fault_draw(STEP_SCALES)];
    int64_t offset = env->wall_offset_ns + (int64_t)sim_fault_draw(2 * scale) - (int64_t)scale;
    if (offset > -WALL_MAX_NS && offset < WALL_MAX_NS)
        env->wall_offset_ns = offset;
}

static int64_t wall_ns(struct klp_env *base)
{
    struct sim_env *env = sim_env_from(base);
    if (fault_WALL_STEP(env->node))
        wall_step(env);
    return WALL_START_NS + (int64_t)sim_world->now_ns + env->wall_offset_ns;
}

/* Keyed by who asks and how often it did, so that one more draw there changes nothing here. */
static void random_fill(struct klp_env *env, void *out, size_t size)
{
    struct sim_domain *domain =
        sim_world->current != NULL ? sim_world->current->domain : sim_world->world_domain;
    uint64_t key = sim_mix(DRAW_TAG, domain->id, sim_env_from(env)->node);
    for (uint8_t *at = out; size > 0;) {
        uint64_t word = sim_mix(sim_world->seed, key, domain->draws++);
        size_t part = size < sizeof(word) ? size : sizeof(word);
        for (size_t i = 0; i < part; i++)
            at[i] = (uint8_t)(word >> (8 * i));
        at += part;
        size -= part;
    }
}

static kelpie_outcome sleep_until(const struct kelpie_op *op, uint64_t until_boot_ns,
                                  struct kelpie_error **err)
{
    struct kelpie_op nap = *op;
    if (until_boot_ns < nap.deadline_ns)
        nap.deadline_ns = until_boot_ns;
    for (;;) {
        if (klp_boot_ns(op->env) >= until_boot_ns)
            return KLP_OK;
        KLP_TRY(klp_op_check(op, "sleeping", err));
        KLP_IGNORE(sim_wait(&nap, NULL, "sleeping", NULL));
    }
}

/* ---- tasks */

struct sim_task {
    struct klp_task base;
    struct sim_fiber *fiber;
};

static bool task_spawn(struct klp_env *env, const char *name, void (*run)(void *), void *arg,
                       struct klp_task **out, struct kelpie_error **err)
{
    (void)err;
    struct sim_task *task = KLP_NEW(struct sim_task);
    task->base.env = env;
    task->fiber = sim_fiber_start(sim_env_from(env), sim_world->current->domain, name, run, arg);
    *out = &task->base;
    return true;
}

static void task_join(struct klp_task *base)
{
    struct sim_task *task = (struct sim_task *)base;
    while (!task->fiber->ended)
        sim_wait_source(&task->fiber->end, SIM_NEVER, "a task's end");
    klp_mem_free(task);
}

/* ---- locks */

struct sim_mutex {
    struct klp_mutex base;
    struct sim_fiber *owner;
    struct sim_source free;
};

static struct klp_mutex *mutex_create(struct klp_env *env)
{
    struct sim_mutex *mutex = KLP_NEW(struct sim_mutex);
    mutex->base.env = env;
    sim_source_init(&mutex->free);
    return &mutex->base;
}

static void mutex_destroy(struct klp_mutex *base)
{
    struct sim_mutex *mutex = (struct sim_mutex *)base;
    KLP_ASSERT(mutex->owner == NULL && klp_list_is_empty(&mutex->free.waiters));
    klp_mem_free(mutex);
}

static void mutex_lock(struct klp_mutex *base)
{
    struct sim_mutex *mutex = (struct sim_mutex *)base;
    struct sim_fiber *fiber = sim_world->current;
    KLP_ASSERT(mutex->owner != fiber);
    if (fiber->mutexes == 0 &&
        sim_mix(sim_world->seed ^ sim_world->fault.choice.jitter, TURN_TAG, ++sim_world->sequence) %
                TURN_ONE_IN ==
            0)
        sim_yield();
    while (mutex->owner != NULL)
        sim_wait_source(&mutex->free, SIM_NEVER, "a mutex");
    mutex->owner = fiber;
    fiber->mutexes++;
}

static void mutex_unlock(struct klp_mutex *base)
{
    struct sim_mutex *mutex = (struct sim_mutex *)base;
    KLP_ASSERT(mutex->owner == sim_world->current);
    mutex->owner = NULL;
    sim_world->current->mutexes--;
    sim_wake(&mutex->free);
}

struct sim_cond {
    struct klp_cond base;
    struct sim_source woken;
};

static struct klp_cond *cond_create(struct klp_env *env)
{
    struct sim_cond *cond = KLP_NEW(struct sim_cond);
    cond->base.env = env;
    sim_source_init(&cond->woken);
    return &cond->base;
}

static void cond_destroy(struct klp_cond *base)
{
    struct sim_cond *cond = (struct sim_cond *)base;
    KLP_ASSERT(klp_list_is_empty(&cond->woken.waiters));
    klp_mem_free(cond);
}

static kelpie_outcome cond_wait(const struct kelpie_op *op, struct klp_cond *base,
                                struct klp_mutex *mutex, struct kelpie_error **err)
{
    struct sim_cond *cond = (struct sim_cond *)base;
    KLP_TRY(klp_op_check(op, "waiting", err));
    mutex_unlock(mutex);
    kelpie_outcome outcome = sim_wait(op, &cond->woken, "a condition", err);
    mutex_lock(mutex);
    return outcome;
}

static void cond_wake(struct klp_cond *base)
{
    sim_wake(&((struct sim_cond *)base)->woken);
}

struct sim_cancel {
    struct klp_cancel base;
    bool raised;
    struct sim_source source;
};

struct sim_source *sim_cancel_source(struct klp_cancel *cancel)
{
    return &((struct sim_cancel *)cancel)->source;
}

static struct klp_cancel *cancel_create(struct klp_env *env)
{
    struct sim_cancel *cancel = KLP_NEW(struct sim_cancel);
    cancel->base.env = env;
    sim_source_init(&cancel->source);
    return &cancel->base;
}

static void cancel_raise(struct klp_cancel *base)
{
    struct sim_cancel *cancel = (struct sim_cancel *)base;
    cancel->raised = true;
    sim_wake(&cancel->source);
}

static bool cancel_is_raised(const struct klp_cancel *base)
{
    return ((const struct sim_cancel *)base)->raised;
}

static void cancel_destroy(struct klp_cancel *base)
{
    struct sim_cancel *cancel = (struct sim_cancel *)base;
    KLP_ASSERT(klp_list_is_empty(&cancel->source.waiters));
    klp_mem_free(cancel);
}

/* ---- what is told */

/* A named place where a process may die: what is tested with kill -9 on real ones. */
static void point(struct klp_env *env, const char *name)
{
    struct sim_fiber *fiber = sim_world->current;
    uint32_t node = sim_env_from(env)->node;
    sim_note("point", "%s", name);
    if (fiber->domain->kind != SIM_DAEMON)
        return;
    if (fault_CRASH_DAEMON_AT_POINT(node))
        sim_domain_crash_soon(fiber->domain);
    else if (fault_CRASH_HOST(node))
        sim_world->dying = 1u << node;
    else if (fault_POWER_LOSS(SIM_FAULT_NOWHERE))
        sim_world->dying = SIM_ALL_HOSTS;
    else
        return;
    fiber->mutexes = 0;
    sim_park(SIM_NEVER, "its burial");
}

static void log_line(struct klp_env *env, enum klp_level level, const char *event, const char *text)
{
    static const char *const levels[] = {"debug", "info", "warn", "error"};
    (void)env;
    sim_note(levels[level], "%s %s", event, text);
}

static const struct klp_env_ops env_ops = {
    .boot_ns = boot_ns,
    .wall_ns = wall_ns,
    .random = random_fill,
    .sleep_until = sleep_until,
    .task_spawn = task_spawn,
    .task_join = task_join,
    .mutex_create = mutex_create,
    .mutex_destroy = mutex_destroy,
    .mutex_lock = mutex_lock,
    .mutex_unlock = mutex_unlock,
    .cond_create = cond_create,
    .cond_destroy = cond_destroy,
    .cond_wait = cond_wait,
    .cond_wake = cond_wake,
    .cancel_create = cancel_create,
    .cancel_raise = cancel_raise,
    .cancel_is_raised = cancel_is_raised,
    .cancel_destroy = cancel_destroy,
    .point = point,
    .log = log_line,
    .file = &sim_file_ops,
    .memory = &sim_memory_ops,
    .chan = &sim_chan_ops,
};

void sim_env_boot(struct sim_env *env, uint64_t uptime_ns)
{
    env->since_ns = sim_world->now_ns;
    env->boot_offset_ns = uptime_ns;
    env->fence_ns = 0;
}

struct sim_env *sim_env_create(uint32_t node, const char *name)
{
    struct sim_env *env = calloc(1, sizeof(*env));
    env->base.ops = &env_ops;
    env->node = node;
    snprintf(env->name, sizeof(env->name), "%s", name);
    /* Hosts were started at different times, and their wall clocks are off by up to a second. */
    env->boot_offset_ns = sim_mix(sim_world->seed, 0x626f6f74, node) % (10000 * KLP_SECOND);
    uint64_t drift = sim_mix(sim_world->seed, DRIFT_TAG, node);
    if (drift % 4 != 0)
        env->drift = (int64_t)(drift / 4 % (2 * DRIFT_MAX + 1)) - DRIFT_MAX;
    env->wall_offset_ns = (int64_t)(sim_mix(sim_world->seed, 0x77616c6c, node) % (2 * KLP_SECOND)) -
                          (int64_t)KLP_SECOND;
    return env;
}
