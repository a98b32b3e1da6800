/* SPDX-License-Identifier: Apache-2.0 */
/* The daemon's settings: flag > environment > configuration file > default. Unknown keys, flags and
 * KELPIE_* variables are errors that name the thing. */
#ifndef KLP_DAEMON_CONFIG_H
#define KLP_DAEMON_CONFIG_H

#include "base/error.h"

struct daemon_config { /* texts are owned */
    char *state, *name, *listen, *backend, *store, *registry, *qemu, *mock_arch;
    uint64_t lease_ms;
    bool test_points, stop_agents, no_spare, doctor, help, version;
};

/* INVALID. `config` must be finished in every case. */
KELPIE_MUST_USE bool daemon_config_read(int argc, char **argv, struct daemon_config *config,
                                        struct kelpie_error **err);
void daemon_config_finish(struct daemon_config *config);
extern const char daemon_config_help[];

#endif
