/* SPDX-License-Identifier: Apache-2.0 */
/* Messages to the other node of a move. Inside of teleport/ only. */
#ifndef KLP_TELEPORT_PEER_H
#define KLP_TELEPORT_PEER_H

#include "teleport/teleport.h"

/* POST /v1/peer/VERB. An error answer comes back as that error. UNKNOWN: it may have been acted
 * upon. */
KELPIE_MUST_USE kelpie_outcome klp_peer_ask(const struct kelpie_op *op, const char *endpoint,
                                            const char *verb,
                                            const struct klp_peer_request *request,
                                            struct klp_peer_answer *out, struct kelpie_error **err);
#endif
