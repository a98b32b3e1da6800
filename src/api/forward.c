/* SPDX-License-Identifier: Apache-2.0 */
/* Any node answers for every agent: requests for another node's agent are asked of that node. A
 * stream is not relayed: the client is told where to go (307 and Kelpie-Endpoint). */
#include <string.h>

#include "api/inside.h"
#include "base/fmt.h"
#include "env/chan.h"

struct query {
    struct klp_buf text;
};

static enum MHD_Result query_each(void *arg, enum MHD_ValueKind kind, const char *key,
                                  const char *value)
{
    struct query *query = arg;
    (void)kind;
    klp_buf_append_text(&query->text, query->text.size == 0 ? "?" : "&");
    klp_percent_append(&query->text, key);
    if (value != NULL) {
        klp_buf_append_text(&query->text, "=");
        klp_percent_append(&query->text, value);
    }
    return MHD_YES;
}

static kelpie_outcome relay(struct api_request *request, const char *endpoint,
                            struct kelpie_error **err)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf answer = KLP_BUF_INIT(64 * KLP_MIB);
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf path = KLP_BUF_INIT(8 * KLP_KIB);
    struct query query = {KLP_BUF_INIT(6 * KLP_KIB)};
    MHD_get_connection_values(request->connection, MHD_GET_ARGUMENT_KIND, query_each, &query);
    klp_percent_append(&path, request->path);
    klp_buf_append_text(&path, klp_buf_text(&query.text));
    klp_buf_finish(&query.text);
    int status;
    KLP_TRY(klp_peer_call(&request->op, endpoint, request->method, klp_buf_text(&path),
                          klp_buf_view(&request->body), &status, &answer, err));
    struct klp_json *json = NULL;
    if (answer.size > 0)
        KLP_REQUIRE(klp_json_parse(answer.data, answer.size, KLP_REST_DEPTH_MAX, &json, err));
    reply_json(request, status, json);
    klp_format(request->endpoint, sizeof(request->endpoint), "%s", endpoint);
    return KLP_OK;
}

kelpie_outcome agent_is_here(struct api_request *request, const char *name, bool streams,
                             bool *out_done, struct kelpie_error **err)
{
    char endpoint[KLP_ENDPOINT_SIZE];
    bool mine;
    KLP_TRY(klp_node_owner(&request->op, request->api->options.node, name, &mine, endpoint, err));
    *out_done = !mine;
    if (mine)
        return KLP_OK;
    if (!streams)
        return relay(request, endpoint, err);
    reply_json(request, 307, klp_json_object());
    klp_format(request->endpoint, sizeof(request->endpoint), "%s", endpoint);
    klp_format(request->location, sizeof(request->location), "%.*s", 150, request->path);
    return KLP_OK;
}
