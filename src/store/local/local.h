/* SPDX-License-Identifier: Apache-2.0 */
/* A store in one directory: KIND/aa/DIGEST and refs/NAME, over env's files only, so that the
 * simulator runs it against torn writes. Unnamed file, sync, link, sync of the directory. */
#ifndef KLP_STORE_LOCAL_LOCAL_H
#define KLP_STORE_LOCAL_LOCAL_H

#include "env/file.h"
#include "store/store.h"

/* Opens or makes it; UNREACHABLE when the folder has gone missing later. `path` from configuration.
 */
KELPIE_MUST_USE bool klp_store_local_create(struct klp_env *env, const char *path,
                                            struct klp_store **out, struct kelpie_error **err);

#endif
