/* SPDX-License-Identifier: Apache-2.0 */
/* The fence: a VM whose lease was not renewed stands still, whatever its daemon does. SIGSTOP
 * cannot be refused and does not wait; nothing here waits for anything but the clock. */
#include "vm/keeper/serve.h"

bool keeper_fence_apply(struct keeper *keeper)
{
    bool live = keeper->state == KLP_KEEPER_LIVE;
    bool over = klp_boot_ns(keeper->env) >= keeper->fence_at_ns;
    bool fenced = (keeper->holds & KLP_HOLD_FENCE) != 0;
    if (over == fenced)
        return false;
    if (over) {
        if (live)
            keeper->hypervisor->ops->freeze(keeper->hypervisor);
        keeper->holds |= KLP_HOLD_FENCE;
        keeper_ahead_end(keeper);
    } else {
        keeper->holds &= ~(uint32_t)KLP_HOLD_FENCE;
        if (live)
            keeper->hypervisor->ops->unfreeze(keeper->hypervisor);
    }
    klp_cond_wake(keeper->changed);
    return true;
}

void keeper_lease_run(void *arg)
{
    struct keeper *keeper = arg;
    klp_mutex_lock(keeper->mutex);
    while (!klp_cancel_is_raised(keeper->cancel)) {
        if (keeper_fence_apply(keeper)) {
            klp_mutex_unlock(keeper->mutex);
            klp_log(keeper->env, KLP_LOG_WARN, "keeper.fenced", "why=lease-over");
            klp_point(keeper->env, "keeper.fenced");
            keeper_notify(keeper);
            klp_mutex_lock(keeper->mutex);
            continue;
        }
        bool fenced = (keeper->holds & KLP_HOLD_FENCE) != 0;
        struct kelpie_op op = {.env = keeper->env,
                               .deadline_ns = fenced ? KLP_NO_DEADLINE : keeper->fence_at_ns,
                               .cancel = keeper->cancel};
        /* A renewal wakes this, and so does the end. */
        KLP_IGNORE(klp_cond_wait(&op, keeper->changed, keeper->mutex, NULL));
    }
    klp_mutex_unlock(keeper->mutex);
}
