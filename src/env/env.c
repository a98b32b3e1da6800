/* SPDX-License-Identifier: Apache-2.0 */
/* The env's wrappers: what core code calls. Checks that hold for every implementation are here,
 * once. */
#include "env/env.h"

#include <string.h>

#include "base/fmt.h"

uint64_t klp_boot_ns(struct klp_env *env)
{
    return env->ops->boot_ns(env);
}

int64_t klp_wall_ns(struct klp_env *env)
{
    return env->ops->wall_ns(env);
}

void klp_random(struct klp_env *env, void *out, size_t size)
{
    env->ops->random(env, out, size);
}

void klp_random_id(struct klp_env *env, char out[KLP_ID_SIZE])
{
    uint8_t bytes[KLP_ID_BYTES];
    klp_random(env, bytes, sizeof(bytes));
    klp_hex_encode(bytes, sizeof(bytes), out);
}

kelpie_outcome klp_sleep_until(const struct kelpie_op *op, uint64_t boot_ns,
                               struct kelpie_error **err)
{
    return op->env->ops->sleep_until(op, boot_ns, err);
}

bool klp_task_spawn(struct klp_env *env, const char *name, void (*run)(void *arg), void *arg,
                    struct klp_task **out, struct kelpie_error **err)
{
    return env->ops->task_spawn(env, name, run, arg, out, err);
}

void klp_task_join(struct klp_task *task)
{
    task->env->ops->task_join(task);
}

struct klp_mutex *klp_mutex_create(struct klp_env *env)
{
    return env->ops->mutex_create(env);
}

void klp_mutex_destroy(struct klp_mutex *mutex)
{
    if (mutex != NULL)
        mutex->env->ops->mutex_destroy(mutex);
}

void klp_mutex_lock(struct klp_mutex *mutex)
{
    mutex->env->ops->mutex_lock(mutex);
}

void klp_mutex_unlock(struct klp_mutex *mutex)
{
    mutex->env->ops->mutex_unlock(mutex);
}

struct klp_cond *klp_cond_create(struct klp_env *env)
{
    return env->ops->cond_create(env);
}

void klp_cond_destroy(struct klp_cond *cond)
{
    if (cond != NULL)
        cond->env->ops->cond_destroy(cond);
}

kelpie_outcome klp_cond_wait(const struct kelpie_op *op, struct klp_cond *cond,
                             struct klp_mutex *mutex, struct kelpie_error **err)
{
    return op->env->ops->cond_wait(op, cond, mutex, err);
}

void klp_cond_wake(struct klp_cond *cond)
{
    cond->env->ops->cond_wake(cond);
}

struct klp_cancel *klp_cancel_create(struct klp_env *env)
{
    return env->ops->cancel_create(env);
}

void klp_cancel_raise(struct klp_cancel *cancel)
{
    cancel->env->ops->cancel_raise(cancel);
}

bool klp_cancel_is_raised(const struct klp_cancel *cancel)
{
    return cancel->env->ops->cancel_is_raised(cancel);
}

void klp_cancel_destroy(struct klp_cancel *cancel)
{
    if (cancel != NULL)
        cancel->env->ops->cancel_destroy(cancel);
}

void klp_point(struct klp_env *env, const char *name)
{
    env->ops->point(env, name);
}

void klp_log(struct klp_env *env, enum klp_level level, const char *event, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    char *text = klp_vtext(format, args);
    va_end(args);
    env->ops->log(env, level, event, text);
    klp_mem_free(text);
}
