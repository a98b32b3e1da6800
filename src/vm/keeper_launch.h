/* SPDX-License-Identifier: Apache-2.0 */
/* Starting a keeper: a process of its own session that outlives the daemon, and not its child:
 * there is nothing to reap. Not core: it starts programs. */
#ifndef KLP_VM_KEEPER_LAUNCH_H
#define KLP_VM_KEEPER_LAUNCH_H

#include "env/chan.h"

/* `arguments`: further words for kelpie-keeper, NULL-terminated. OK once it listens; on failure it
 * is gone. An op->env with test points passes them on, with KELPIE_MOCK_FAULT and
 * KELPIE_KEEPER_POINT (its KELPIE_POINT). */
KELPIE_MUST_USE kelpie_outcome klp_keeper_launch(const struct kelpie_op *op,
                                                 const char *keeper_path, const char *backend,
                                                 const char *const *arguments, struct klp_dir *dir,
                                                 const char *vm_id, struct kelpie_error **err);

#endif
