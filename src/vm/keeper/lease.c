/* SPDX-License-Identifier: Apache-2.0 */
/* The fence: a VM whose lease was not renewed stands still, whatever its daemon does. SIGSTOP
 * cannot be refused and does not wait; nothing here waits for anything but the clock. */
#include "vm/keeper/serve.h"

bool keeper_fence_apply(struct keeper *keeper)
{
    bool live = keeper->state == KLP_KEEPER_LIVE;
    bool over = klp_boot_ns(keeper->env) >= keeper->fence_at_ns;
    bool fenced = (keeper->holds & KLP_HOLD_FENCE) != 0;
    if (over && !fenced) {
        keeper->holds |= KLP_HOLD_FENCE;
        if (live)
            keeper->hypervisor->ops->freeze(keeper->hypervisor);
        return true;
    }
    if (!over && fenced) {
        keeper->holds &= ~(uint32_t)KLP_HOLD_FENCE;
        if (live)
            keeper->hypervisor->ops->unfreeze(keeper->hypervisor);
        return true;
    }
    return false;
}

void keeper_lease_run(void *arg)
{
    struct keeper *keeper = arg;
    while (!klp_cancel_is_raised(keeper->cancel)) {
        bool changed = false;
        uint64_t next_ns = KLP_NO_DEADLINE;
        KLP_LOCKED (keeper->mutex) {
            changed = keeper_fence_apply(keeper);
            if ((keeper->holds & KLP_HOLD_FENCE) == 0)
                next_ns = keeper->fence_at_ns;
            if (changed)
                klp_cond_wake(keeper->changed);
        }
        if (changed) {
            klp_point(keeper->env, "keeper.lease");
            keeper_notify(keeper);
        }
        struct kelpie_op op = {
            .env = keeper->env, .deadline_ns = next_ns, .cancel = keeper->cancel};
        KLP_LOCKED (keeper->mutex) {
            /* A renewal wakes this; so does the end. */
            bool same = next_ns == ((keeper->holds & KLP_HOLD_FENCE) != 0 ? KLP_NO_DEADLINE
                                                                          : keeper->fence_at_ns);
            if (same)
                KLP_IGNORE(klp_cond_wait(&op, keeper->changed, keeper->mutex, NULL));
        }
    }
}
