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
    char choice[320];        /* the same of the backend alone, for people */
    char *keeper;            /* kelpie-keeper's path */
    struct klp_qemu_probe *qemu; /* NULL = QEMU was not asked for */
    bool state_is_new;           /* the state folder was not there before */
};

/* Looks at the machine and chooses a backend; changes nothing; the checks are filled in any case.
 * UNSUPPORTED: none can be had. */
KELPIE_MUST_USE bool wiring_choose(struct wiring *wiring, const struct daemon_config *config,
                                   struct kelpie_error **err);
/* The state folder, ours alone. EXISTS: another daemon has it. */
KELPIE_MUST_USE bool wiring_state(struct wiring *wiring, const struct daemon_config *config,
                                  struct kelpie_error **err);
/* What lies in the state folder, store, registry. */
KELPIE_MUST_USE bool wiring_storage(struct wiring *wiring, const struct daemon_config *config,
                                    struct kelpie_error **err);
/* The factory of the chosen backend. */
KELPIE_MUST_USE bool wiring_factory(struct wiring *wiring, const struct daemon_config *config,
                                    struct kelpie_error **err);
/* After a refused start: the folders it made, as far as nothing is in them. */
void wiring_unmake(struct wiring *wiring, const struct daemon_config *config);
void wiring_finish(struct wiring *wiring);

#endif
