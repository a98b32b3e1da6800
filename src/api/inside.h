/* SPDX-License-Identifier: Apache-2.0 */
/* What the resources share. */
#ifndef KLP_API_INSIDE_H
#define KLP_API_INSIDE_H

#include <microhttpd.h>

#include "api/api.h"
#include "base/list.h"

#define API_SEGMENTS_MAX 6
#define API_TIMEOUT_MS_DEFAULT 120000
#define API_SPOOL_MAX (8ull * 1024 * KLP_MIB) /* bytes of a streamed body */

struct klp_api {
    struct klp_api_options options;
    struct MHD_Daemon *daemon;
    struct klp_mutex *mutex;
    struct klp_cond *changed;
    struct klp_cancel *cancel; /* raised at the end: waiting requests end */
    struct klp_list streams;   /* upgraded connections under way */
};

struct api_request {
    struct klp_api *api;
    struct MHD_Connection *connection;
    const char *method;
    char *path;                             /* owned */
    const char *segments[API_SEGMENTS_MAX]; /* of the path below /v1, NULL-terminated */
    size_t segment_count;
    struct klp_buf body;
    int spool_fd; /* the body of a streaming route; -1 = in memory */
    uint64_t spool_size;
    bool spools;                /* this route's body goes to the spool */
    struct kelpie_error *early; /* refused while the body was read */
    struct kelpie_op op;
    /* the answer */
    int status;
    struct klp_json *reply;                          /* NULL = empty */
    int reply_fd;                                    /* a file instead; -1 */
    const char *reply_type;                          /* of the file */
    struct MHD_Response *upgrade;                    /* instead of all that */
    char location[160], endpoint[KLP_ENDPOINT_SIZE]; /* headers when not empty */
    char operation_id[KLP_ID_SIZE];
};

/* A resource's handler: fills the answer, or fails. */
typedef kelpie_outcome api_handler(struct api_request *request, struct kelpie_error **err);
api_handler api_agents, api_snapshots, api_images, api_nodes, api_operations, api_events,
    api_doctor, api_peer, api_index;

void reply_json(struct api_request *request, int status, struct klp_json *json); /* taken over */
const char *query_text(const struct api_request *request, const char *key);      /* NULL = absent */
KELPIE_MUST_USE bool query_u64(const struct api_request *request, const char *key, uint64_t *out,
                               struct kelpie_error **err);
bool query_flag(const struct api_request *request, const char *key);
/* The body as one JSON object; an empty body is {}. The caller frees it. */
KELPIE_MUST_USE bool body_json(const struct api_request *request, struct klp_json **out,
                               struct kelpie_error **err);
kelpie_outcome method_refused(const struct api_request *request, struct kelpie_error **err);
kelpie_outcome route_unknown(const struct api_request *request, struct kelpie_error **err);
/* Is it ours? If not, the request is answered by the owner (*out_done). Streams are redirected, not
 * relayed. */
KELPIE_MUST_USE kelpie_outcome agent_is_here(struct api_request *request, const char *name,
                                             bool streams, bool *out_done,
                                             struct kelpie_error **err);
/* 202 with the operation, or its end when the client said wait_ms. */
KELPIE_MUST_USE kelpie_outcome reply_operation(struct api_request *request, const char *id,
                                               struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome operation_start(struct api_request *request,
                                               enum klp_operation_kind kind, const char *subject,
                                               struct kelpie_error **err);
/* exec.c: the streaming forms */
KELPIE_MUST_USE kelpie_outcome exec_upgrade(struct api_request *request, const char *agent,
                                            struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome logs_upgrade(struct api_request *request, const char *agent,
                                            struct kelpie_error **err);
/* Ends all streams and waits until they are gone. */
void streams_end(struct klp_api *api);
bool request_wants_upgrade(const struct api_request *request);

#endif
