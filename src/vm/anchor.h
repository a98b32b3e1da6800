/* SPDX-License-Identifier: Apache-2.0 */
/* A child that dies with its parent (PR_SET_PDEATHSIG) dies when the thread that started it ends.
 * An anchor is a thread that starts the child, waits for its end, and keeps what it came to. */
#ifndef KLP_VM_ANCHOR_H
#define KLP_VM_ANCHOR_H

#include "env/posix/posix.h"

struct klp_anchor;
/* spawn->die_with_parent is set. */
KELPIE_MUST_USE bool klp_anchor_start(struct klp_env *env, const struct klp_spawn *spawn,
                                      struct klp_anchor **out, struct kelpie_error **err);
int klp_anchor_pid(const struct klp_anchor *anchor);
void klp_anchor_signal(struct klp_anchor *anchor, int signal); /* no-op once it has ended */
/* Blocks until the child is reaped. *out_code: exit status, *out_signal: what ended it, 0 = none.
 */
KELPIE_MUST_USE kelpie_outcome klp_anchor_wait(const struct kelpie_op *op,
                                               struct klp_anchor *anchor, int *out_code,
                                               int *out_signal, struct kelpie_error **err);
/* Kills the child if it still runs. NULL is fine. */
void klp_anchor_destroy(struct klp_anchor *anchor);

#endif
