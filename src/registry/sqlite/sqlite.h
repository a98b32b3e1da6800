/* SPDX-License-Identifier: Apache-2.0 */
/* The registry in one SQLite file that all daemons of a host share: WAL, synchronous=FULL, so that
 * an epoch never goes back (store-and-teleport f.2). */
#ifndef KLP_REGISTRY_SQLITE_SQLITE_H
#define KLP_REGISTRY_SQLITE_SQLITE_H

#include "registry/registry.h"

/* Opens or makes it. CORRUPT / UNREACHABLE name the file. */
KELPIE_MUST_USE bool klp_registry_sqlite_create(struct klp_env *env, const char *path,
                                                struct klp_registry **out,
                                                struct kelpie_error **err);

#endif
