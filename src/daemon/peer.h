/* SPDX-License-Identifier: Apache-2.0 */
/* How this node asks others: HTTP by libcurl. */
#ifndef KLP_DAEMON_PEER_H
#define KLP_DAEMON_PEER_H

#include "env/chan.h"

void daemon_peer_init(void); /* once, before any thread */
kelpie_outcome daemon_peer_call(const struct kelpie_op *op, const char *endpoint,
                                const char *method, const char *path, struct klp_bytes body,
                                int *out_status, struct klp_buf *out_body,
                                struct kelpie_error **err);

#endif
