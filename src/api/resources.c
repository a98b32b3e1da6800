/* SPDX-License-Identifier: Apache-2.0 */
/* /v1/snapshots, /v1/operations, /v1/nodes, /v1/events, /v1/doctor, /v1/peer and /v1 itself. */
#include <string.h>

#include "api/inside.h"
#include "base/fmt.h"

#define EVENTS_MAX 256

static bool is_get(const struct api_request *request)
{
    return strcmp(request->method, "GET") == 0;
}

static void reply_list(struct api_request *request, const char *key, struct klp_json *items)
{
    reply_json(request, 200, klp_rest_document(key, items));
}

/* Frees the items when the listing failed. */
static kelpie_outcome listed(struct api_request *request, const char *key, struct klp_json *items,
                             kelpie_outcome outcome)
{
    if (kelpie_is_ok(outcome))
        reply_list(request, key, items);
    else
        klp_json_free(items);
    return outcome;
}

/* ---- operations */

kelpie_outcome reply_operation(struct api_request *request, const char *id,
                               struct kelpie_error **err)
{
    uint64_t wait_ms = 0;
    struct klp_operation_info info;
    KLP_REQUIRE(query_u64(request, "wait_ms", &wait_ms, err));
    KLP_TRY(
        klp_node_operation_get(&request->op, request->api->options.node, id, wait_ms, &info, err));
    struct klp_json *items = klp_json_array();
    klp_json_append(items, klp_rest_operation_encode(&info));
    bool ended = info.state != KLP_OPERATION_RUNNING;
    klp_operation_info_finish(&info);
    reply_json(request, ended ? 200 : 202, klp_rest_document("operations", items));
    klp_format(request->location, sizeof(request->location), "/v1/operations/%s", id);
    return KLP_OK;
}

kelpie_outcome operation_start(struct api_request *request, enum klp_operation_kind kind,
                               const char *subject, struct kelpie_error **err)
{
    KLP_AUTO(json) struct klp_json *json = NULL;
    struct klp_action_request action;
    char id[KLP_ID_SIZE];
    const char *key =
        MHD_lookup_connection_value(request->connection, MHD_HEADER_KIND, "Idempotency-Key");
    KLP_REQUIRE(body_json(request, &json, err));
    KLP_REQUIRE(klp_rest_action_decode(json, &action, err));
    KLP_TRY(klp_node_operation_begin(&request->op, request->api->options.node, kind, subject,
                                     &action, key, id, err));
    klp_text_copy(request->operation_id, sizeof(request->operation_id), id);
    return reply_operation(request, id, err);
}

static bool operation_each(void *arg, const struct klp_operation_info *info)
{
    klp_json_append(arg, klp_rest_operation_encode(info));
    return true;
}

kelpie_outcome api_operations(struct api_request *request, struct kelpie_error **err)
{
    struct klp_node *node = request->api->options.node;
    if (request->segment_count == 1 && is_get(request)) {
        struct klp_json *items = klp_json_array();
        return listed(request, "operations", items,
                      klp_node_operation_list(&request->op, node, operation_each, items, err));
    }
    if (request->segment_count != 2)
        return route_unknown(request, err);
    if (strcmp(request->method, "DELETE") == 0)
        KLP_TRY(klp_node_operation_cancel(&request->op, node, request->segments[1], err));
    else if (!is_get(request))
        return method_refused(request, err);
    return reply_operation(request, request->segments[1], err);
}

/* ---- snapshots */

static bool snapshot_each(void *arg, const struct klp_snapshot_info *info)
{
    klp_json_append(arg, klp_rest_snapshot_encode(info));
    return true;
}

static kelpie_outcome snapshot_one(struct api_request *request, const char *id,
                                   struct kelpie_error **err)
{
    struct klp_node *node = request->api->options.node;
    if (strcmp(request->method, "DELETE") == 0) {
        KLP_TRY(
            klp_node_snapshot_remove(&request->op, node, id, query_flag(request, "force"), err));
        reply_json(request, 200, klp_json_object());
        return KLP_OK;
    }
    if (!is_get(request))
        return method_refused(request, err);
    struct klp_snapshot_info info;
    KLP_TRY(klp_node_snapshot_get(&request->op, node, id, &info, err));
    struct klp_json *items = klp_json_array();
    snapshot_each(items, &info);
    reply_list(request, "snapshots", items);
    return KLP_OK;
}

kelpie_outcome api_snapshots(struct api_request *request, struct kelpie_error **err)
{
    struct klp_node *node = request->api->options.node;
    if (request->segment_count == 1 && is_get(request)) {
        struct klp_json *items = klp_json_array();
        return listed(request, "snapshots", items,
                      klp_node_snapshot_list(&request->op, node, snapshot_each, items, err));
    }
    if (request->segment_count == 2)
        return snapshot_one(request, request->segments[1], err);
    if (request->segment_count == 3 && strcmp(request->method, "POST") == 0) {
        if (strcmp(request->segments[2], "restore") == 0)
            return operation_start(request, KLP_OP_RESTORE, request->segments[1], err);
        if (strcmp(request->segments[2], "fork") == 0)
            return operation_start(request, KLP_OP_FORK, request->segments[1], err);
    }
    return route_unknown(request, err);
}

/* ---- nodes, events, doctor, index */

static bool node_each(void *arg, const struct klp_node_record *record, const char *state)
{
    klp_json_append(arg, klp_rest_node_encode(record, state));
    return true;
}

kelpie_outcome api_nodes(struct api_request *request, struct kelpie_error **err)
{
    if (request->segment_count != 1 || !is_get(request))
        return route_unknown(request, err);
    struct klp_json *items = klp_json_array();
    return listed(request, "nodes", items,
                  klp_node_list(&request->op, request->api->options.node, node_each, items, err));
}

kelpie_outcome api_events(struct api_request *request, struct kelpie_error **err)
{
    uint64_t since = 0, wait_ms = 0;
    size_t count;
    KLP_REQUIRE(query_u64(request, "since", &since, err));
    KLP_REQUIRE(query_u64(request, "wait_ms", &wait_ms, err));
    struct klp_event *events = klp_mem_alloc(sizeof(events[0]) * EVENTS_MAX);
    struct kelpie_op within = klp_op_within(&request->op, wait_ms);
    kelpie_outcome outcome = klp_node_events(&within, request->api->options.node, since, events,
                                             EVENTS_MAX, &count, err);
    struct klp_json *items = klp_json_array();
    for (size_t i = 0; kelpie_is_ok(outcome) && i < count; i++)
        klp_json_append(items, klp_rest_event_encode(&events[i]));
    klp_mem_free(events);
    return listed(request, "events", items, outcome);
}

kelpie_outcome api_doctor(struct api_request *request, struct kelpie_error **err)
{
    (void)err;
    struct klp_json *items = klp_json_array();
    request->api->options.doctor(request->api->options.arg, items);
    reply_list(request, "checks", items);
    return KLP_OK;
}

kelpie_outcome api_index(struct api_request *request, struct kelpie_error **err)
{
    (void)err;
    struct klp_json *json = klp_json_object(), *features = klp_json_array();
    static const char *const names[] = {"exec-stream", "idempotency-key", "operations",
                                        "checkpoint", "fork"};
    klp_json_set_u64(json, "version", KLP_REST_VERSION);
    klp_json_set_text(json, "node", klp_node_name(request->api->options.node));
    klp_json_set_text(json, "release", request->api->options.version);
    for (size_t i = 0; i < KLP_COUNT(names); i++)
        klp_json_append_text(features, names[i]);
    klp_json_set(json, "features", features);
    reply_json(request, 200, json);
    return KLP_OK;
}

kelpie_outcome api_peer(struct api_request *request, struct kelpie_error **err)
{
    KLP_AUTO(json) struct klp_json *json = NULL;
    struct klp_peer_request message;
    struct klp_peer_answer answer;
    if (request->segment_count != 2 || strcmp(request->method, "POST") != 0)
        return route_unknown(request, err);
    KLP_REQUIRE(body_json(request, &json, err));
    KLP_REQUIRE(klp_rest_peer_request_decode(json, &message, err));
    KLP_TRY(klp_node_peer(&request->op, request->api->options.node, request->segments[1], &message,
                          &answer, err));
    reply_json(request, 200, klp_rest_peer_answer_encode(&answer));
    return KLP_OK;
}
