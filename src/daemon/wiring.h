/* SPDX-License-Identifier: Apache-2.0 */
/* The only place of the daemon that names concrete implementations. */
#ifndef KLP_DAEMON_WIRING_H
#define KLP_DAEMON_WIRING_H

#include "daemon/config.h"
#include "node/node.h"

#define WIRING_FACTORIES_MAX 4

struct wiring {
    struct klp_env *env;
    struct klp_dir *state_dir, *vms_dir, *spool_dir;
    struct klp_store *store;
    struct klp_registry *registry;
    struct kelpie_vm_factory *factories[WIRING_FACTORIES_MAX];
    size_t factory_count;
    struct klp_json *checks; /* what the machine can do, and what was chosen and why: an array */
};

/* Looks at the machine and chooses backends; the checks are filled in any case. UNSUPPORTED: none
 * can be had. */
KELPIE_MUST_USE bool wiring_backends(struct wiring *wiring, const struct daemon_config *config,
                                     struct kelpie_error **err);
/* State folders, store, registry. */
KELPIE_MUST_USE bool wiring_storage(struct wiring *wiring, const struct daemon_config *config,
                                    struct kelpie_error **err);
void wiring_finish(struct wiring *wiring);

#endif
