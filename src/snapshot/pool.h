/* SPDX-License-Identifier: Apache-2.0 */
/* The same work on many items by a few tasks: fork and join, in batches. Inside of snapshot/ only.
 */
#ifndef KLP_SNAPSHOT_POOL_H
#define KLP_SNAPSHOT_POOL_H

#include "env/env.h"

/* Calls work(arg, worker, item) for each item in 0..count-1, from up to `workers` tasks at once
 * (the caller is one); `worker` is below `workers`: an index for scratch memory. Stops at the first
 * failure and returns it. */
KELPIE_MUST_USE kelpie_outcome
klp_pool_run(const struct kelpie_op *op, unsigned workers, size_t count,
             kelpie_outcome (*work)(const struct kelpie_op *op, void *arg, unsigned worker,
                                    size_t item, struct kelpie_error **err),
             void *arg, struct kelpie_error **err);
#define KLP_POOL_WORKERS_MAX 8

#endif
