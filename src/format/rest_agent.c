/* SPDX-License-Identifier: Apache-2.0 */
/* REST answers about things that are: agents, snapshots, nodes, images, events, checks, and the
 * lists they come in. What is under way: rest_operation.c; what went wrong: rest_problem.c. */
#include "format/rest_inside.h"

/* ---- documents */

struct klp_json *klp_rest_document(const char *key, struct klp_json *items)
{
    struct klp_json *document = klp_json_object();
    klp_json_set_u64(document, "version", KLP_REST_VERSION);
    klp_json_set(document, key, items);
    return document;
}

const struct klp_json *klp_rest_items(const struct klp_json *json, const char *key)
{
    uint64_t version = 0;
    if (!klp_json_is_object(json) ||
        !klp_json_get_u64(json, "version", KLP_JSON_REQUIRED, &version, NULL) ||
        version != KLP_REST_VERSION)
        return NULL;
    const struct klp_json *items = klp_json_find(json, key);
    return klp_json_is_array(items) ? items : NULL;
}

bool klp_rest_get_kind(const struct klp_json *json, enum klp_snapshot_kind *out,
                       struct kelpie_error **err)
{
    const char *text = NULL;
    KLP_CHECK(klp_json_get_text(json, "kind", KLP_JSON_OPTIONAL, &text, err));
    *out = klp_kind_parse(text);
    if (text != NULL && *out == KLP_KIND_NONE)
        return klp_refuse(err, KELPIE_E_INVALID,
                          "field 'kind' is none of suspend, teleport, checkpoint");
    return true;
}

/* ---- agents */

struct klp_json *klp_rest_agent_encode(const struct klp_agent_info *agent)
{
    struct klp_json *json = klp_json_object();
    klp_json_set_text(json, "name", agent->name);
    klp_json_set_text(json, "id", agent->id);
    klp_json_set_text(json, "state", klp_agent_state_name(agent->state));
    klp_wire_set_text(json, "image", agent->image);
    klp_wire_set_arch(json, "arch", agent->arch);
    klp_wire_set_text(json, "backend", agent->backend);
    klp_wire_set_text(json, "node", agent->node);
    klp_wire_set_u64(json, "epoch", agent->epoch);
    klp_wire_set_text(json, "generation", agent->generation);
    klp_wire_set_u64(json, "vcpus", agent->vcpus);
    klp_wire_set_u64(json, "memory_bytes", agent->memory_bytes);
    klp_wire_set_text(json, "parent", agent->parent);
    klp_wire_set_time(json, "created_at", agent->created_wall_ns, false);
    if (agent->pid > 0)
        klp_json_set_i64(json, "pid", agent->pid);
    else
        klp_json_set_null(json, "pid");
    klp_wire_set_text(json, "reason", agent->reason);
    klp_wire_set_uniqueness(json, agent->uniqueness);
    if (agent->console_tail != NULL)
        klp_json_set_text(json, "console_tail", agent->console_tail);
    return json;
}

static bool agent_state_get(const struct klp_json *json, enum klp_agent_state *out,
                            struct kelpie_error **err)
{
    const char *text = NULL;
    KLP_CHECK(klp_json_get_text(json, "state", KLP_JSON_REQUIRED, &text, err));
    *out = klp_agent_state_parse(text);
    if (*out == KLP_AGENT_NONE)
        return klp_refuse(err, KELPIE_E_INVALID, "field 'state' is no state of an agent");
    return true;
}

static bool agent_get(const struct klp_json *json, struct klp_agent_info *out,
                      struct kelpie_error **err)
{
    KLP_CHECK(klp_wire_get_name(json, "name", KLP_JSON_REQUIRED, out->name, err));
    KLP_CHECK(klp_wire_get_id(json, "id", KLP_JSON_REQUIRED, out->id, err));
    KLP_CHECK(agent_state_get(json, &out->state, err));
    KLP_CHECK(klp_wire_get_name(json, "image", KLP_JSON_OPTIONAL, out->image, err));
    KLP_CHECK(klp_wire_get_arch(json, "arch", &out->arch, err));
    KLP_CHECK(klp_wire_get_text(json, "backend", KLP_JSON_OPTIONAL, out->backend,
                                sizeof(out->backend), err));
    KLP_CHECK(klp_wire_get_name(json, "node", KLP_JSON_OPTIONAL, out->node, err));
    KLP_CHECK(klp_json_get_u64(json, "epoch", KLP_JSON_OPTIONAL, &out->epoch, err));
    KLP_CHECK(klp_wire_get_text(json, "generation", KLP_JSON_OPTIONAL, out->generation,
                                sizeof(out->generation), err));
    KLP_CHECK(klp_wire_get_u32(json, "vcpus", KLP_JSON_OPTIONAL, &out->vcpus, err));
    KLP_CHECK(klp_json_get_u64(json, "memory_bytes", KLP_JSON_OPTIONAL, &out->memory_bytes, err));
    KLP_CHECK(klp_wire_get_name(json, "parent", KLP_JSON_OPTIONAL, out->parent, err));
    KLP_CHECK(klp_wire_get_time(json, "created_at", KLP_JSON_OPTIONAL, &out->created_wall_ns, err));
    KLP_CHECK(klp_json_get_i64(json, "pid", KLP_JSON_OPTIONAL, &out->pid, err));
    KLP_CHECK(klp_wire_get_text_cut(json, "reason", out->reason, sizeof(out->reason), err));
    KLP_CHECK(klp_wire_get_uniqueness(json, out->uniqueness, err));
    return klp_wire_get_owned(json, "console_tail", KLP_REST_BODY_MAX, &out->console_tail, err);
}

bool klp_rest_agent_decode(const struct klp_json *json, struct klp_agent_info *out,
                           struct kelpie_error **err)
{
    KLP_AUTO(kelpie_error) struct kelpie_error *why = NULL;
    *out = (struct klp_agent_info){0};
    if (agent_get(json, out, &why))
        return true;
    klp_agent_info_finish(out);
    return klp_wire_refuse(err, KELPIE_E_PROTOCOL, "answer about an agent", why);
}

void klp_agent_info_finish(struct klp_agent_info *agent)
{
    klp_mem_free(agent->console_tail);
    *agent = (struct klp_agent_info){0};
}

/* ---- snapshots */

struct klp_json *klp_rest_snapshot_encode(const struct klp_snapshot_info *snapshot)
{
    struct klp_json *json = klp_json_object();
    klp_json_set_text(json, "id", snapshot->id);
    klp_wire_set_text(json, "name", snapshot->name);
    klp_wire_set_text(json, "agent", snapshot->agent);
    klp_json_set_text(json, "kind", klp_kind_name(snapshot->kind));
    klp_wire_set_text(json, "parent", snapshot->parent);
    klp_wire_set_arch(json, "arch", snapshot->arch);
    klp_wire_set_text(json, "backend", snapshot->backend);
    klp_wire_set_u64(json, "memory_bytes", snapshot->memory_bytes);
    klp_wire_set_u64(json, "stored_bytes", snapshot->stored_bytes);
    klp_wire_set_time(json, "created_at", snapshot->created_wall_ns, false);
    klp_wire_set_text(json, "manifest", snapshot->manifest);
    klp_wire_set_u64(json, "pause_ms", klp_rest_ms(snapshot->pause_ms_x1000));
    klp_wire_set_u64(json, "pause_us", snapshot->pause_ms_x1000);
    return json;
}

/* Digests as text; "" when absent. */
static bool digest_text_get(const struct klp_json *json, const char *key, char out[KLP_DIGEST_SIZE],
                            struct kelpie_error **err)
{
    struct klp_digest digest = {{0}};
    KLP_CHECK(klp_wire_get_digest(json, key, KLP_JSON_OPTIONAL, &digest, err));
    if (!klp_digest_is_zero(&digest))
        klp_digest_text(&digest, out);
    return true;
}

static bool snapshot_get(const struct klp_json *json, struct klp_snapshot_info *out,
                         struct kelpie_error **err)
{
    KLP_CHECK(klp_wire_get_id(json, "id", KLP_JSON_REQUIRED, out->id, err));
    KLP_CHECK(klp_wire_get_name(json, "name", KLP_JSON_OPTIONAL, out->name, err));
    KLP_CHECK(klp_wire_get_name(json, "agent", KLP_JSON_OPTIONAL, out->agent, err));
    KLP_CHECK(klp_rest_get_kind(json, &out->kind, err));
    if (out->kind == KLP_KIND_NONE)
        return klp_refuse(err, KELPIE_E_INVALID, "field 'kind' is missing");
    KLP_CHECK(digest_text_get(json, "parent", out->parent, err));
    KLP_CHECK(klp_wire_get_arch(json, "arch", &out->arch, err));
    KLP_CHECK(klp_wire_get_text(json, "backend", KLP_JSON_OPTIONAL, out->backend,
                                sizeof(out->backend), err));
    KLP_CHECK(klp_json_get_u64(json, "memory_bytes", KLP_JSON_OPTIONAL, &out->memory_bytes, err));
    KLP_CHECK(klp_json_get_u64(json, "stored_bytes", KLP_JSON_OPTIONAL, &out->stored_bytes, err));
    KLP_CHECK(klp_wire_get_time(json, "created_at", KLP_JSON_OPTIONAL, &out->created_wall_ns, err));
    KLP_CHECK(digest_text_get(json, "manifest", out->manifest, err));
    return klp_json_get_u64(json, "pause_us", KLP_JSON_OPTIONAL, &out->pause_ms_x1000, err);
}

bool klp_rest_snapshot_decode(const struct klp_json *json, struct klp_snapshot_info *out,
                              struct kelpie_error **err)
{
    KLP_AUTO(kelpie_error) struct kelpie_error *why = NULL;
    *out = (struct klp_snapshot_info){0};
    if (snapshot_get(json, out, &why))
        return true;
    *out = (struct klp_snapshot_info){0};
    return klp_wire_refuse(err, KELPIE_E_PROTOCOL, "answer about a snapshot", why);
}

/* ---- nodes, images, events, checks */

struct klp_json *klp_rest_node_encode(const struct klp_node_record *node, const char *state)
{
    struct klp_json *json = klp_json_object();
    klp_json_set_text(json, "name", node->name);
    klp_json_set_text(json, "state", state);
    klp_wire_set_node_lists(json, node);
    klp_wire_set_text(json, "endpoint", node->endpoint);
    klp_wire_set_text(json, "cpu", node->cpu);
    klp_wire_set_u64(json, "tsc_khz", node->tsc_khz);
    klp_wire_set_u64(json, "memory_free_bytes", node->memory_free_bytes);
    klp_wire_set_u64(json, "lease_ttl_ms", node->lease_ttl_ms);
    return json;
}

struct klp_json *klp_rest_image_encode(const struct klp_image_info *image)
{
    struct klp_json *json = klp_json_object();
    klp_json_set_text(json, "name", image->name);
    klp_wire_set_text(json, "version", image->version);
    klp_wire_set_arch(json, "arch", image->arch);
    klp_wire_set_text(json, "digest", image->digest);
    klp_wire_set_u64(json, "size_bytes", image->size_bytes);
    return json;
}

struct klp_json *klp_rest_event_encode(const struct klp_event *event)
{
    struct klp_json *json = klp_json_object();
    klp_wire_set_u64(json, "seq", event->seq);
    klp_json_set_text(json, "type", event->type);
    klp_wire_set_time(json, "time", event->wall_ns, false);
    klp_wire_set_text(json, "agent", event->agent);
    klp_wire_set_text(json, "text", event->text);
    return json;
}

struct klp_json *klp_rest_check_encode(const struct klp_check *check)
{
    struct klp_json *json = klp_json_object();
    klp_json_set_text(json, "name", check->name);
    klp_json_set_text(json, "status", check->status);
    klp_json_set_text(json, "detail", check->detail);
    klp_wire_set_text(json, "remedy", check->remedy);
    return json;
}
