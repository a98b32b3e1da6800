/* SPDX-License-Identifier: Apache-2.0 */
/* REST requests from clients: create an agent, and every action on one. Exec: rest_exec.c. Unknown
 * fields are refused, so that a wish nobody knows is never passed over; whether a value suits a VM
 * or a node is for vm/ and node/ to say. */
#include "format/rest_inside.h"

#define SIGNAL_MAX 64

/* ---- POST /v1/agents */

static void text_set_if(struct klp_json *json, const char *key, const char *text)
{
    if (text != NULL && text[0] != '\0')
        klp_json_set_text(json, key, text);
}

static void u64_set_if(struct klp_json *json, const char *key, uint64_t value)
{
    if (value != 0)
        klp_wire_set_u64(json, key, value);
}

static void bool_set_if(struct klp_json *json, const char *key, bool value)
{
    if (value)
        klp_json_set_bool(json, key, true);
}

struct klp_json *klp_rest_agent_request_encode(const struct klp_agent_request *request)
{
    struct klp_json *json = klp_json_object();
    text_set_if(json, "name", request->name);
    text_set_if(json, "image", request->image);
    text_set_if(json, "backend", request->backend);
    if (request->arch != KLP_ARCH_NONE)
        klp_wire_set_arch(json, "arch", request->arch);
    u64_set_if(json, "vcpus", request->vcpus);
    u64_set_if(json, "memory_bytes", request->memory_bytes);
    text_set_if(json, "workdir", request->workdir);
    if (request->argv != NULL)
        klp_wire_set_texts(json, "argv", request->argv);
    if (request->env != NULL)
        klp_wire_set_texts(json, "env", request->env);
    klp_json_set_bool(json, "start", request->start);
    bool_set_if(json, "remove_at_end", request->remove_at_end);
    return json;
}

bool klp_rest_get_command(const struct klp_json *json, char ***argv, char ***env, char **workdir,
                          struct kelpie_error **err)
{
    size_t total = 0;
    KLP_CHECK(klp_wire_get_texts(json, "argv", KLP_ARGV_MAX, &total, argv, err));
    KLP_CHECK(klp_wire_get_texts(json, "env", KLP_ENV_MAX, &total, env, err));
    for (size_t i = 0; *env != NULL && (*env)[i] != NULL; i++) {
        const char *at = (*env)[i];
        while (*at != '\0' && *at != '=')
            at++;
        if (*at == '\0' || at == (*env)[i]) /* the value may be a secret: not named */
            return klp_refuse(err, KELPIE_E_INVALID, "field 'env' entry %zu is not KEY=VALUE", i);
    }
    return klp_wire_get_owned(json, "workdir", KLP_PATH_MAX - 1, workdir, err);
}

static bool agent_request_get(const struct klp_json *json, struct klp_agent_request *out,
                              struct kelpie_error **err)
{
    static const char *const keys[] = {"name",  "image",        "backend",       "arch",
                                       "vcpus", "workdir",      "argv",          "env",
                                       "start", "memory_bytes", "remove_at_end", NULL};
    KLP_CHECK(klp_rest_only(json, keys, err));
    KLP_CHECK(klp_wire_get_name(json, "name", KLP_JSON_OPTIONAL, out->name, err));
    KLP_CHECK(klp_wire_get_name(json, "image", KLP_JSON_OPTIONAL, out->image, err));
    KLP_CHECK(klp_wire_get_text(json, "backend", KLP_JSON_OPTIONAL, out->backend,
                                sizeof(out->backend), err));
    KLP_CHECK(klp_wire_get_arch(json, "arch", &out->arch, err));
    KLP_CHECK(klp_wire_get_u32(json, "vcpus", KLP_JSON_OPTIONAL, &out->vcpus, err));
    KLP_CHECK(klp_json_get_u64(json, "memory_bytes", KLP_JSON_OPTIONAL, &out->memory_bytes, err));
    KLP_CHECK(klp_rest_get_command(json, &out->argv, &out->env, &out->workdir, err));
    KLP_CHECK(klp_json_get_bool(json, "start", KLP_JSON_OPTIONAL, &out->start, err));
    return klp_json_get_bool(json, "remove_at_end", KLP_JSON_OPTIONAL, &out->remove_at_end, err);
}

bool klp_rest_agent_request_decode(const struct klp_json *json, struct klp_agent_request *out,
                                   struct kelpie_error **err)
{
    *out = (struct klp_agent_request){0};
    if (agent_request_get(json, out, err))
        return true;
    klp_agent_request_finish(out);
    return false;
}

void klp_agent_request_finish(struct klp_agent_request *request)
{
    klp_mem_free(request->workdir);
    klp_texts_free(request->argv);
    klp_texts_free(request->env);
    *request = (struct klp_agent_request){0};
}

/* ---- actions */

bool klp_rest_only(const struct klp_json *json, const char *const keys[], struct kelpie_error **err)
{
    if (!klp_json_is_object(json))
        return klp_refuse(err, KELPIE_E_INVALID, "the request's body is no JSON object");
    return klp_json_only(json, keys, err);
}

struct klp_json *klp_rest_action_encode(const struct klp_action_request *request)
{
    struct klp_json *json = klp_json_object();
    text_set_if(json, "name", request->name);
    text_set_if(json, "destination", request->destination);
    if (request->kind != KLP_KIND_NONE)
        klp_json_set_text(json, "kind", klp_kind_name(request->kind));
    u64_set_if(json, "count", request->count);
    bool_set_if(json, "check", request->check);
    bool_set_if(json, "checkpoint", request->checkpoint);
    bool_set_if(json, "claim", request->claim);
    bool_set_if(json, "force", request->force);
    u64_set_if(json, "max_pause_ms", request->max_pause_ms);
    u64_set_if(json, "timeout_ms", request->timeout_ms);
    if (request->signal != 0)
        klp_json_set_i64(json, "signal", request->signal);
    return json;
}

/* What a client may ask for: templates are made by nodes only. */
static bool action_kind_get(const struct klp_json *json, enum klp_snapshot_kind *out,
                            struct kelpie_error **err)
{
    KLP_CHECK(klp_rest_get_kind(json, out, err));
    if (*out == KLP_KIND_TEMPLATE)
        return klp_refuse(err, KELPIE_E_INVALID,
                          "field 'kind' is none of suspend, teleport, checkpoint");
    return true;
}

static bool action_get(const struct klp_json *json, struct klp_action_request *out,
                       struct kelpie_error **err)
{
    static const char *const keys[] = {"name",   "destination", "kind",         "count",
                                       "check",  "checkpoint",  "claim",        "force",
                                       "signal", "timeout_ms",  "max_pause_ms", NULL};
    KLP_CHECK(klp_rest_only(json, keys, err));
    KLP_CHECK(klp_wire_get_name(json, "name", KLP_JSON_OPTIONAL, out->name, err));
    KLP_CHECK(klp_wire_get_name(json, "destination", KLP_JSON_OPTIONAL, out->destination, err));
    KLP_CHECK(action_kind_get(json, &out->kind, err));
    KLP_CHECK(klp_wire_get_u32(json, "count", KLP_JSON_OPTIONAL, &out->count, err));
    KLP_CHECK(klp_json_get_bool(json, "check", KLP_JSON_OPTIONAL, &out->check, err));
    KLP_CHECK(klp_json_get_bool(json, "checkpoint", KLP_JSON_OPTIONAL, &out->checkpoint, err));
    KLP_CHECK(klp_json_get_bool(json, "claim", KLP_JSON_OPTIONAL, &out->claim, err));
    KLP_CHECK(klp_json_get_bool(json, "force", KLP_JSON_OPTIONAL, &out->force, err));
    KLP_CHECK(klp_json_get_u64(json, "max_pause_ms", KLP_JSON_OPTIONAL, &out->max_pause_ms, err));
    KLP_CHECK(klp_json_get_u64(json, "timeout_ms", KLP_JSON_OPTIONAL, &out->timeout_ms, err));
    KLP_CHECK(klp_wire_get_i32(json, "signal", &out->signal, err));
    if (out->signal < 0 || out->signal > SIGNAL_MAX)
        return klp_refuse(err, KELPIE_E_INVALID, "field 'signal' is not 1 to %d", SIGNAL_MAX);
    return true;
}

bool klp_rest_action_decode(const struct klp_json *json, struct klp_action_request *out,
                            struct kelpie_error **err)
{
    *out = (struct klp_action_request){0};
    if (action_get(json, out, err))
        return true;
    *out = (struct klp_action_request){0};
    return false;
}
