/* SPDX-License-Identifier: Apache-2.0 */
/* Nodes that ask one another: a request travels as the bytes that HTTP would carry, is served by a
 * fiber of the other node, and its answer travels back. Each way takes time, and anything is lost
 * on it; a caller that had no answer does not know what became of its request, which may be served
 * when nobody waits for it any more, or twice. Over a way that is cut TCP sends again until it is
 * not. */
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "sim.h"

#define SERVE_MS 600000 /* what the server allows a request */
#define PEER_PATH "/v1/peer/"

SIM_FAULT_SITE(PEER_CUT)
SIM_FAULT_SITE(PEER_SLOW)
SIM_FAULT_SITE(PEER_REQUEST_LOST)
SIM_FAULT_SITE(TELEPORT_TIMEOUT)
SIM_FAULT_SITE(PEER_REQUEST_TWICE)
SIM_FAULT_SITE(PEER_REQUEST_GARBLED)
SIM_FAULT_SITE(PEER_ANSWER_LOST)
SIM_FAULT_SITE(PEER_ANSWER_RESET)
SIM_FAULT_SITE(PEER_ANSWER_GARBLED)

struct call {             /* the network's: shared by both ends, lost with neither */
    struct klp_list link; /* world->calls */
    unsigned refs;
    bool broken;     /* the server died, or the connection was reset */
    bool unheard;    /* the answer is never to come */
    uint32_t from;   /* node */
    uint32_t server; /* domain: what is late is not for the one that comes after it */
    struct sim_peer *peer;
    char *method, *path;
    uint8_t *body, *answer;
    size_t body_size, answer_size;
    int status, told; /* 0 = no answer yet; what it is to be */
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
    bool again; /* of the serving side: it had this request before */
};

static void end_release(struct sim_resource *resource)
{
    call_put(KLP_CONTAINER(resource, struct call_end, resource)->call);
}

static struct call_end *end_take(struct call *call, struct sim_domain *domain)
{
    struct sim_domain *before = sim_domain_enter(domain);
    struct call_end *end = KLP_NEW(struct call_end);
    *end = (struct call_end){.call = call};
    call->refs++;
    sim_resource_add(&end->resource, end_release);
    sim_domain_enter(before);
    return end;
}

static void end_drop(struct call_end *end)
{
    sim_resource_remove(&end->resource);
    end_release(&end->resource);
    klp_mem_free(end);
}

static void call_break(struct call *call)
{
    call->broken = true;
    sim_wake(&call->answered);
}

void sim_peer_break(struct sim_peer *peer)
{
    peer->node = NULL;
    peer->calls = 0;
    KLP_LIST_EACH (item, &sim_world->calls) {
        struct call *call = KLP_CONTAINER(item, struct call, link);
        if (call->peer != peer || call->status != 0)
            continue;
        call_break(call);
    }
}

void sim_peer_heal(void)
{
    KLP_LIST_EACH (item, &sim_world->calls) {
        struct call *call = KLP_CONTAINER(item, struct call, link);
        if (call->unheard)
            call_break(call);
    }
}

static uint32_t node_of(const struct sim_peer *peer)
{
    return peer->env->node;
}

/* ---- what is late: carried by a fiber of the world's */

struct message {
    struct sim_late late;
    struct call_end *end;
    uint64_t delay_ns;
    bool is_answer;
};

static void deliver(struct call *call, bool again);

static void message_run(void *arg)
{
    struct message *message = arg;
    struct call *call = message->end->call;
    sim_net_late_wait(&message->late, message->delay_ns);
    if (message->is_answer) {
        call->status = call->told;
        sim_wake(&call->answered);
    } else if (call->peer->node != NULL && call->peer->domain->id == call->server) {
        deliver(call, message->end->again);
    } else if (!message->end->again) {
        call_break(call);
    }
    end_drop(message->end);
    klp_mem_free(message);
}

static void message_send(struct call *call, uint64_t delay_ns, bool is_answer, bool again)
{
    struct call_end *end = end_take(call, sim_world->world_domain);
    struct sim_domain *before = sim_domain_enter(sim_world->world_domain);
    struct message *message = KLP_NEW(struct message);
    *message = (struct message){.end = end, .delay_ns = delay_ns, .is_answer = is_answer};
    end->again = again;
    sim_fiber_start(call->peer->env, sim_world->world_domain, "late", message_run, message);
    sim_domain_enter(before);
}

/* ---- the serving side */

static void twice_note(const struct call *call, const struct klp_peer_request *request)
{
    struct sim_net *net = &sim_world->net;
    if (net->twice_count == SIM_TWICE_MAX)
        return;
    struct sim_twice *twice = &net->twice[net->twice_count++];
    *twice = (struct sim_twice){.node = node_of(call->peer), .at_ns = sim_world->now_ns};
    klp_text_copy(twice->verb, sizeof(twice->verb), call->path + strlen(PEER_PATH));
    klp_text_copy(twice->agent, sizeof(twice->agent), request->agent);
    klp_text_copy(twice->move_id, sizeof(twice->move_id), request->move_id);
}

static kelpie_outcome peer_verb(const struct kelpie_op *op, const struct call *call, bool again,
                                struct klp_json **out, struct kelpie_error **err)
{
    KLP_AUTO(json) struct klp_json *json = NULL;
    struct klp_peer_request request;
    struct klp_peer_answer answer;
    KLP_REQUIRE(klp_json_parse(call->body, call->body_size, KLP_REST_DEPTH_MAX, &json, err));
    KLP_REQUIRE(klp_rest_peer_request_decode(json, &request, err));
    if (again)
        twice_note(call, &request);
    KLP_TRY(klp_node_peer(op, call->peer->node, call->path + strlen(PEER_PATH), &request, &answer,
                          err));
    *out = klp_rest_peer_answer_encode(&answer);
    return KLP_OK;
}

static kelpie_outcome route(const struct kelpie_op *op, const struct call *call, bool again,
                            struct klp_json **out, struct kelpie_error **err)
{
    if (call->peer->node == NULL)
        return klp_fail(err, KELPIE_E_UNREACHABLE, "the node is closing");
    if (strcmp(call->method, "POST") == 0 && strncmp(call->path, PEER_PATH, strlen(PEER_PATH)) == 0)
        return peer_verb(op, call, again, out, err);
    if (strcmp(call->method, "GET") != 0 || strcmp(call->path, "/v1") != 0)
        return klp_fail(err, KELPIE_E_NOT_FOUND, "the simulator has no %s %s", call->method,
                        call->path);
    *out = klp_json_object();
    klp_json_set_u64(*out, "version", KLP_REST_VERSION);
    klp_json_set_text(*out, "node", call->peer->env->name);
    return KLP_OK;
}

/* What came of it is known to the server; what the caller gets is the network's business. A body
 * that was cut off is no JSON any more; a proxy's word is none. */
static void answer_garble(struct call *call)
{
    static const char proxy[] = "<html><body>502 Bad Gateway</body></html>";
    if (sim_fault_draw(2) == 0 && call->answer_size >= sizeof(proxy)) {
        memcpy(call->answer, proxy, sizeof(proxy) - 1);
        call->answer_size = sizeof(proxy) - 1;
        call->told = sim_fault_draw(2) == 0 ? 502 : 200;
    } else if (call->answer_size > 0) {
        call->answer_size = sim_fault_draw(call->answer_size);
    }
}

static void answer_send(struct call *call)
{
    uint32_t node = node_of(call->peer);
    uint64_t cut_ns = sim_net_cut_left_ns(node, call->from);
    if (fault_PEER_ANSWER_GARBLED(node))
        answer_garble(call);
    if (fault_PEER_ANSWER_LOST(node)) {
        call->unheard = true;
        if (sim_fault_draw(2) == 0)
            call_break(call);
    } else if (call->answer_size > 1 && fault_PEER_ANSWER_RESET(node)) {
        call->answer_size = 1 + sim_fault_draw(call->answer_size - 1);
        call_break(call);
    } else if (cut_ns > 0) {
        message_send(call, cut_ns, true, false);
    } else {
        call->status = call->told;
        sim_wake(&call->answered);
    }
}

static void answer_keep(struct call *call, const struct klp_buf *text, int status)
{
    call->answer = malloc(text->size + 1);
    KLP_ASSERT(call->answer != NULL);
    memcpy(call->answer, klp_buf_text(text), text->size);
    call->answer_size = text->size;
    call->told = status;
}

static void serve(const struct kelpie_op *op, struct call *call, bool again)
{
    KLP_AUTO(json) struct klp_json *json = NULL;
    KLP_AUTO(kelpie_error) struct kelpie_error *error = NULL;
    KLP_AUTO(buf) struct klp_buf text = KLP_BUF_INIT(KLP_REST_BODY_MAX);
    uint32_t node = node_of(call->peer);
    int status = 200;
    if (!kelpie_is_ok(route(op, call, again, &json, &error))) {
        status = kelpie_code_http(kelpie_error_code(error));
        json = klp_rest_problem_encode(error, NULL);
    }
    klp_json_print(json, &text);
    if (!again)
        answer_keep(call, &text, status);
    KLP_IGNORE(klp_sleep_until(op, klp_boot_ns(op->env) + sim_net_way_ns(node, call->from), NULL));
    sim_note("peer", "%s -> %d%s", call->path, status, again ? ", again" : "");
    if (!again)
        answer_send(call);
}

static void serve_run(void *arg)
{
    struct call_end *end = arg;
    struct call *call = end->call;
    struct kelpie_op op = klp_op_plain(&call->peer->env->base, SERVE_MS);
    uint64_t way_ns = sim_net_way_ns(call->from, node_of(call->peer));
    KLP_IGNORE(klp_sleep_until(&op, klp_boot_ns(op.env) + way_ns, NULL));
    if (call->peer->node != NULL)
        serve(&op, call, end->again);
    else if (!end->again) /* the daemon is closing, and hears nobody any more */
        call_break(call);
    call->peer->calls--;
    sim_wake(&call->peer->idle);
    end_drop(end);
}

static void deliver(struct call *call, bool again)
{
    struct call_end *end = end_take(call, call->peer->domain);
    end->again = again;
    call->peer->calls++;
    sim_fiber_start(call->peer->env, call->peer->domain, "peer", serve_run, end);
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

static struct call *call_make(uint32_t from, struct sim_peer *peer, const char *method,
                              const char *path, struct klp_bytes body)
{
    struct call *call = calloc(1, sizeof(*call));
    *call = (struct call){.from = from,
                          .server = peer->domain->id,
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

/* Faults that last. Nodes may not hear one another, and both the registry. */
static void cuts_draw(uint32_t from, uint32_t to)
{
    if (fault_PEER_CUT(from)) {
        uint64_t until_ns = sim_world->now_ns + sim_net_span_ns(), which = sim_fault_draw(3);
        bool refuses = sim_fault_draw(2) == 0;
        if (which != 0)
            sim_net_cut(from, to, until_ns, refuses);
        if (which != 1)
            sim_net_cut(to, from, until_ns, false);
    }
    if (fault_PEER_SLOW(from)) {
        uint64_t until_ns = sim_world->now_ns + sim_net_span_ns();
        sim_net_slow(from, to, until_ns);
        sim_net_slow(to, from, until_ns);
    }
}

/* On its way, or not. *reset_ns: when the caller is told that the connection is no more, if it has
 * no answer before. */
static void request_send(struct call *call, uint64_t *reset_ns)
{
    uint32_t from = call->from;
    uint64_t cut_ns = sim_net_cut_left_ns(from, node_of(call->peer));
    if (call->body_size > 0 && fault_PEER_REQUEST_GARBLED(from))
        call->body_size = sim_fault_draw(call->body_size);
    if (fault_PEER_REQUEST_LOST(from)) {
        call->unheard = true;
        if (sim_fault_draw(2) == 0)
            *reset_ns = sim_net_span_ns();
        return;
    }
    if (fault_TELEPORT_TIMEOUT(from)) {
        message_send(call, cut_ns + sim_net_span_ns(), false, false);
        if (sim_fault_draw(2) == 0)
            *reset_ns = sim_net_span_ns();
    } else if (cut_ns > 0) {
        message_send(call, cut_ns, false, false);
    } else {
        deliver(call, false);
    }
    if (fault_PEER_REQUEST_TWICE(from))
        message_send(call, cut_ns + sim_net_span_ns(), false, true);
}

static kelpie_outcome answer_wait(const struct kelpie_op *op, const char *endpoint,
                                  struct call *call, uint64_t reset_ns, int *out_status,
                                  struct klp_buf *out_body, struct kelpie_error **err)
{
    struct kelpie_op within = *op;
    kelpie_outcome outcome = KLP_OK;
    uint64_t reset_at = klp_boot_ns(op->env) + reset_ns;
    if (reset_ns != 0 && reset_at < within.deadline_ns)
        within.deadline_ns = reset_at;
    while (call->status == 0 && !call->broken && kelpie_is_ok(outcome))
        outcome = sim_wait(&within, &call->answered, "waiting for a node's answer", NULL);
    bool heard = kelpie_is_ok(outcome) && call->status != 0;
    if (heard || (call->broken && call->answer != NULL && !call->unheard))
        klp_buf_append(out_body, call->answer, call->answer_size);
    if (!heard)
        return klp_unknown(err, "no answer from %s%s", endpoint,
                           call->broken ? ": the connection broke" : " in time");
    *out_status = call->status;
    return KLP_OK;
}

kelpie_outcome sim_peer_call(const struct kelpie_op *op, const char *endpoint, const char *method,
                             const char *path, struct klp_bytes body, int *out_status,
                             struct klp_buf *out_body, struct kelpie_error **err)
{
    KLP_TRY(klp_op_check(op, "asking a node", err));
    struct sim_peer *peer = peer_find(endpoint);
    uint32_t from = sim_env_from(op->env)->node;
    uint64_t reset_ns = 0;
    if (peer == NULL)
        return klp_fail(err, KELPIE_E_UNREACHABLE, "cannot reach %s", endpoint);
    cuts_draw(from, node_of(peer));
    if (sim_net_refuses(from, node_of(peer)))
        return klp_fail(err, KELPIE_E_UNREACHABLE, "cannot reach %s: refused", endpoint);
    struct call *call = call_make(from, peer, method, path, body);
    struct call_end *end = end_take(call, sim_world->current->domain);
    request_send(call, &reset_ns);
    kelpie_outcome outcome = answer_wait(op, endpoint, call, reset_ns, out_status, out_body, err);
    end_drop(end);
    return outcome;
}
