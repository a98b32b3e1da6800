/* SPDX-License-Identifier: Apache-2.0 */
/* Operations: deadlines that only shrink, and the progress that api/ reads. */
#include <string.h>

#include "base/fmt.h"
#include "env/env.h"

static uint64_t deadline_after(struct klp_env *env, uint64_t timeout_ms)
{
    uint64_t span, deadline;
    if (__builtin_mul_overflow(timeout_ms, KLP_MS, &span) ||
        __builtin_add_overflow(klp_boot_ns(env), span, &deadline))
        return KLP_NO_DEADLINE;
    return deadline;
}

struct kelpie_op klp_op_plain(struct klp_env *env, uint64_t timeout_ms)
{
    return (struct kelpie_op){.env = env, .deadline_ns = deadline_after(env, timeout_ms)};
}

struct kelpie_op klp_op_within(const struct kelpie_op *op, uint64_t timeout_ms)
{
    struct kelpie_op inner = *op;
    uint64_t deadline = deadline_after(op->env, timeout_ms);
    if (deadline < inner.deadline_ns)
        inner.deadline_ns = deadline;
    return inner;
}

struct kelpie_op klp_op_cleanup(const struct kelpie_op *op, uint64_t timeout_ms)
{
    struct kelpie_op cleanup = *op;
    cleanup.deadline_ns = deadline_after(op->env, timeout_ms);
    cleanup.cancel = NULL;
    return cleanup;
}

kelpie_outcome klp_op_check(const struct kelpie_op *op, const char *what, struct kelpie_error **err)
{
    if (op->cancel != NULL && klp_cancel_is_raised(op->cancel))
        return klp_fail(err, KELPIE_E_CANCELLED, "cancelled while %s", what);
    if (op->deadline_ns != KLP_NO_DEADLINE && klp_boot_ns(op->env) >= op->deadline_ns)
        return klp_fail(err, KELPIE_E_TIMEOUT, "time ran out while %s", what);
    return KLP_OK;
}

uint64_t klp_op_left_ms(const struct kelpie_op *op)
{
    if (op->deadline_ns == KLP_NO_DEADLINE)
        return UINT64_MAX;
    uint64_t now = klp_boot_ns(op->env);
    /* Rounded up: 0 must mean past, and a caller that passes it on must not give up too early. */
    return now >= op->deadline_ns ? 0 : (op->deadline_ns - now - 1) / KLP_MS + 1;
}

struct klp_progress {
    struct klp_env *env;
    struct klp_mutex *mutex;
    size_t count;
    struct klp_phase phases[KLP_PHASES_MAX];
};

struct klp_progress *klp_progress_create(struct klp_env *env)
{
    struct klp_progress *progress = KLP_NEW(struct klp_progress);
    progress->env = env;
    progress->mutex = klp_mutex_create(env);
    return progress;
}

void klp_progress_destroy(struct klp_progress *progress)
{
    if (progress == NULL)
        return;
    klp_mutex_destroy(progress->mutex);
    klp_mem_free(progress);
}

static void phase_end(struct klp_progress *progress)
{
    struct klp_phase *last = progress->count > 0 ? &progress->phases[progress->count - 1] : NULL;
    if (last != NULL && last->end_ns == 0)
        last->end_ns = klp_boot_ns(progress->env);
}

void klp_op_phase(const struct kelpie_op *op, const char *step)
{
    struct klp_progress *progress = op->progress;
    if (progress == NULL)
        return;
    KLP_LOCKED (progress->mutex) {
        phase_end(progress);
        if (progress->count < KLP_PHASES_MAX) {
            struct klp_phase *phase = &progress->phases[progress->count++];
            *phase = (struct klp_phase){.start_ns = klp_boot_ns(progress->env)};
            klp_text_copy(phase->step, sizeof(phase->step), step);
        }
    }
}

void klp_op_bytes(const struct kelpie_op *op, uint64_t bytes)
{
    struct klp_progress *progress = op->progress;
    if (progress == NULL)
        return;
    KLP_LOCKED (progress->mutex) {
        if (progress->count > 0)
            progress->phases[progress->count - 1].bytes += bytes;
    }
}

void klp_op_phase_end(const struct kelpie_op *op)
{
    if (op->progress == NULL)
        return;
    KLP_LOCKED (op->progress->mutex) {
        phase_end(op->progress);
    }
}

size_t klp_progress_read(struct klp_progress *progress, struct klp_phase out[KLP_PHASES_MAX])
{
    size_t count = 0;
    KLP_LOCKED (progress->mutex) {
        count = progress->count;
        memcpy(out, progress->phases, count * sizeof(out[0]));
    }
    return count;
}
