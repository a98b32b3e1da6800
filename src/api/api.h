/* SPDX-License-Identifier: Apache-2.0 */
/* REST over a Unix socket: one file a resource. Requests are bounded before they are read, answered
 * with a problem document when refused, and forwarded to the agent's owner when it is not this
 * node. */
#ifndef KLP_API_API_H
#define KLP_API_API_H

#include "node/node.h"

struct klp_api;
struct klp_api_options {
    struct klp_env *env;
    struct klp_node *node;
    const char *version;
    /* What `kelpie doctor` shows; appends to an array. */
    void (*doctor)(void *arg, struct klp_json *checks);
    void *arg;
    struct klp_dir *spool_dir; /* for bodies too large for memory */
};
/* Serves on a listening Unix socket, which it takes over, until stopped. Peers: the daemon's own
 * user and root. */
KELPIE_MUST_USE bool klp_api_start(const struct klp_api_options *options, int listen_fd,
                                   struct klp_api **out, struct kelpie_error **err);
void klp_api_stop(struct klp_api *api);

#endif
