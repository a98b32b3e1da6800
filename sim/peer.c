/* SPDX-License-Identifier: Apache-2.0 */
/* Nodes that ask one another: a request travels as the bytes that HTTP would carry, is served by a
 * fiber of the other node, and its answer travels back. Each way takes time; a caller whose time
 * ran out does not know what became of its request. */
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "sim.h"

#define WAY_NS KLP_MS
#define LATENCY_TAG 0x7761792e70656572ull
#define SERVE_MS 600000 /* what the server allows a request */
#define PEER_PATH "/v1/peer/"

struct call {             /* the network's: shared by both ends, lost with neither */
    struct klp_list link; /* world->calls */
    unsigned refs;
    bool broken; /* the server died */
    struct sim_peer *peer;
    char *method, *path;
    uint8_t *body, *answer;
    size_t body_size, answer_size;
    int status; /* 0 = no answer yet */
    struct sim_source answered;
};

static void call_put(struct call *call)
{
    if (--call->refs > 0)
        return;
    klp_list_remove(&call->link);
    free(call->method);
    free(call->path);
    free(call->body);
    free(call->answer);
    free(call);
}

/* An end of a call, so that it is let go of also when its process dies. */
struct call_end {
    struct sim_resource resource;
    struct call *call;
};

static void end_release(struct sim_resource *resource)
{
    call_put(KLP_CONTAINER(resource, struct call_end, resource)->call);
}

static struct call_end *end_take(struct call *call)
{
    struct call_end *end = KLP_NEW(struct call_end);
    end->call = call;
    sim_resource_add(&end->resource, end_release);
    return end;
}

static void end_drop(struct call_end *end)
{
    sim_resource_remove(&end->resource);
    end_release(&end->resource);
    klp_mem_free(end);
}

void sim_peer_break(struct sim_peer *peer)
{
    peer->node = NULL;
    peer->calls = 0;
    KLP_LIST_EACH (item, &sim_world->calls) {
        struct call *call = KLP_CONTAINER(item, struct call, link);
        if (call->peer != peer || call->status != 0)
            continue;
        call->broken = true;
        sim_wake(&call->answered);
    }
}

static uint64_t way_ns(void)
{
    return WAY_NS / 2 + sim_mix(sim_world->seed, LATENCY_TAG, ++sim_world->sequence) % WAY_NS;
}

/* ---- the serving side */

static kelpie_outcome peer_verb(const struct kelpie_op *op, const struct call *call,
                                struct klp_json **out, struct kelpie_error **err)
{
    KLP_AUTO(json) struct klp_json *json = NULL;
    struct klp_peer_request request;
    struct klp_peer_answer answer;
    KLP_REQUIRE(klp_json_parse(call->body, call->body_size, KLP_REST_DEPTH_MAX, &json, err));
    KLP_REQUIRE(klp_rest_peer_request_decode(json, &request, err));
    KLP_TRY(klp_node_peer(op, call->peer->node, call->path + strlen(PEER_PATH), &request, &answer,
                          err));
    *out = klp_rest_peer_answer_encode(&answer);
    return KLP_OK;
}

static kelpie_outcome route(const struct kelpie_op *op, const struct call *call,
                            struct klp_json **out, struct kelpie_error **err)
{
    if (strcmp(call->method, "POST") == 0 && strncmp(call->path, PEER_PATH, strlen(PEER_PATH)) == 0)
        return peer_verb(op, call, out, err);
    if (strcmp(call->method, "GET") != 0 || strcmp(call->path, "/v1") != 0)
        return klp_fail(err, KELPIE_E_NOT_FOUND, "the simulator has no %s %s", call->method,
                        call->path);
    *out = klp_json_object();
    klp_json_set_u64(*out, "version", KLP_REST_VERSION);
    klp_json_set_text(*out, "node", klp_node_name(call->peer->node));
    return KLP_OK;
}

static void serve_run(void *arg)
{
    struct call *call = arg;
    struct call_end *end = end_take(call);
    struct kelpie_op op = klp_op_plain(&call->peer->env->base, SERVE_MS);
    KLP_IGNORE(klp_sleep_until(&op, klp_boot_ns(op.env) + way_ns(), NULL));
    KLP_AUTO(json) struct klp_json *json = NULL;
    KLP_AUTO(kelpie_error) struct kelpie_error *error = NULL;
    KLP_AUTO(buf) struct klp_buf text = KLP_BUF_INIT(KLP_REST_BODY_MAX);
    int status = 200;
    if (!kelpie_is_ok(route(&op, call, &json, &error))) {
        status = kelpie_code_http(kelpie_error_code(error));
        json = klp_rest_problem_encode(error, NULL);
    }
    klp_json_print(json, &text);
    call->answer = malloc(text.size + 1);
    memcpy(call->answer, klp_buf_text(&text), text.size);
    call->answer_size = text.size;
    KLP_IGNORE(klp_sleep_until(&op, klp_boot_ns(op.env) + way_ns(), NULL));
    call->status = status;
    sim_note("peer", "%s -> %d", call->path, status);
    sim_wake(&call->answered);
    call->peer->calls--;
    sim_wake(&call->peer->idle);
    end_drop(end);
}

/* ---- the asking side */

static struct sim_peer *peer_find(const char *endpoint)
{
    for (size_t i = 0; i < SIM_NODES_MAX; i++) {
        struct sim_peer *peer = &sim_world->peers[i];
        if (peer->node != NULL && strcmp(peer->endpoint, endpoint) == 0)
            return peer;
    }
    return NULL;
}

static struct call *call_make(struct sim_peer *peer, const char *method, const char *path,
                              struct klp_bytes body)
{
    struct call *call = calloc(1, sizeof(*call));
    *call = (struct call){.refs = 2,
                          .peer = peer,
                          .method = strdup(method),
                          .path = strdup(path),
                          .body = malloc(body.size + 1),
                          .body_size = body.size};
    if (body.size > 0)
        memcpy(call->body, body.data, body.size);
    sim_source_init(&call->answered);
    klp_list_append(&sim_world->calls, &call->link);
    return call;
}

kelpie_outcome sim_peer_call(const struct kelpie_op *op, const char *endpoint, const char *method,
                             const char *path, struct klp_bytes body, int *out_status,
                             struct klp_buf *out_body, struct kelpie_error **err)
{
    KLP_TRY(klp_op_check(op, "asking a node", err));
    struct sim_peer *peer = peer_find(endpoint);
    if (peer == NULL)
        return klp_fail(err, KELPIE_E_UNREACHABLE, "cannot reach %s", endpoint);
    struct call *call = call_make(peer, method, path, body);
    struct call_end *end = end_take(call);
    peer->calls++;
    sim_fiber_start(peer->env, peer->domain, "peer", serve_run, call);
    kelpie_outcome outcome = KLP_OK;
    while (call->status == 0 && !call->broken && kelpie_is_ok(outcome))
        outcome = sim_wait(op, &call->answered, "waiting for a node's answer", NULL);
    if (kelpie_is_ok(outcome) && !call->broken) {
        *out_status = call->status;
        klp_buf_append(out_body, call->answer, call->answer_size);
    } else {
        outcome = klp_unknown(err, "no answer from %s%s", endpoint,
                              call->broken ? ": it is gone" : " in time");
    }
    end_drop(end);
    return outcome;
}
