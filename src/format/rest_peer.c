/* SPDX-License-Identifier: Apache-2.0 */
/* What nodes ask one another while an agent moves. The answer's meaning is teleport/'s. */
#include <string.h>

#include "base/fmt.h"
#include "format/image.h"
#include "format/rest_inside.h"

#define MACHINE_SIZE_MAX (64 * KLP_KIB) /* bytes of a machine description's records */

static void machine_set(struct klp_json *json, const struct klp_machine *machine)
{
    if (machine->version == 0) {
        klp_json_set_null(json, "machine_base64");
        return;
    }
    KLP_AUTO(buf) struct klp_buf bytes = KLP_BUF_INIT(MACHINE_SIZE_MAX);
    KLP_AUTO(buf) struct klp_buf text = KLP_BUF_INIT(2 * MACHINE_SIZE_MAX);
    klp_machine_encode(machine, &bytes);
    klp_base64_append(&text, bytes.data, bytes.size);
    klp_json_set_text(json, "machine_base64", klp_buf_text(&text));
}

struct klp_json *klp_rest_peer_request_encode(const struct klp_peer_request *request)
{
    struct klp_json *json = klp_json_object();
    klp_wire_set_text(json, "agent", request->agent);
    klp_wire_set_text(json, "name", request->name);
    klp_wire_set_text(json, "source", request->source);
    klp_wire_set_text(json, "move_id", request->move_id);
    klp_wire_set_u64(json, "epoch", request->epoch);
    klp_json_set_text(json, "kind",
                      request->kind == KLP_KIND_NONE ? NULL : klp_kind_name(request->kind));
    klp_wire_set_digest(json, "manifest", &request->manifest);
    klp_wire_set_digest(json, "image", &request->image);
    klp_wire_set_text(json, "image_name", request->image_name);
    klp_wire_set_text(json, "image_version", request->image_version);
    machine_set(json, &request->machine);
    return json;
}

static bool machine_get(const struct klp_json *json, struct klp_machine *out,
                        struct kelpie_error **err)
{
    const char *text = NULL;
    KLP_CHECK(klp_json_get_text(json, "machine_base64", KLP_JSON_OPTIONAL, &text, err));
    if (text == NULL)
        return true;
    KLP_AUTO(buf) struct klp_buf bytes = KLP_BUF_INIT(MACHINE_SIZE_MAX);
    if (strlen(text) > 2 * MACHINE_SIZE_MAX || !klp_base64_decode(text, strlen(text), &bytes))
        return klp_refuse(err, KELPIE_E_INVALID, "field 'machine_base64' is no base64");
    KLP_AUTO(kelpie_error) struct kelpie_error *why = NULL;
    if (!klp_machine_decode(klp_buf_view(&bytes), out, &why))
        return klp_wire_refuse(err, KELPIE_E_INVALID, "field 'machine_base64'", why);
    return true;
}

static bool image_version_get(const struct klp_json *json, struct klp_peer_request *out,
                              struct kelpie_error **err)
{
    uint32_t version[3];
    KLP_CHECK(klp_wire_get_text(json, "image_version", KLP_JSON_OPTIONAL, out->image_version,
                                sizeof(out->image_version), err));
    return out->image_version[0] == '\0' || klp_version_parse(out->image_version, version, err);
}

static bool peer_request_get(const struct klp_json *json, struct klp_peer_request *out,
                             struct kelpie_error **err)
{
    static const char *const keys[] = {"agent",      "name",          "source",         "move_id",
                                       "epoch",      "kind",          "manifest",       "image",
                                       "image_name", "image_version", "machine_base64", NULL};
    KLP_CHECK(klp_rest_only(json, keys, err));
    KLP_CHECK(klp_wire_get_id(json, "agent", KLP_JSON_OPTIONAL, out->agent, err));
    KLP_CHECK(klp_wire_get_name(json, "name", KLP_JSON_OPTIONAL, out->name, err));
    KLP_CHECK(klp_wire_get_name(json, "source", KLP_JSON_OPTIONAL, out->source, err));
    KLP_CHECK(klp_wire_get_id(json, "move_id", KLP_JSON_OPTIONAL, out->move_id, err));
    KLP_CHECK(klp_json_get_u64(json, "epoch", KLP_JSON_OPTIONAL, &out->epoch, err));
    KLP_CHECK(klp_rest_get_kind(json, &out->kind, err));
    KLP_CHECK(klp_wire_get_digest(json, "manifest", KLP_JSON_OPTIONAL, &out->manifest, err));
    KLP_CHECK(klp_wire_get_digest(json, "image", KLP_JSON_OPTIONAL, &out->image, err));
    KLP_CHECK(klp_wire_get_name(json, "image_name", KLP_JSON_OPTIONAL, out->image_name, err));
    KLP_CHECK(image_version_get(json, out, err));
    return machine_get(json, &out->machine, err);
}

bool klp_rest_peer_request_decode(const struct klp_json *json, struct klp_peer_request *out,
                                  struct kelpie_error **err)
{
    *out = (struct klp_peer_request){0};
    if (peer_request_get(json, out, err))
        return true;
    *out = (struct klp_peer_request){0};
    return false;
}

/* ---- the answer */

struct klp_json *klp_rest_peer_answer_encode(const struct klp_peer_answer *answer)
{
    struct klp_json *json = klp_json_object();
    struct klp_json *reasons = klp_json_array();
    KLP_ASSERT(answer->reason_count <= KLP_COUNT(answer->reasons));
    for (uint32_t i = 0; i < answer->reason_count; i++)
        klp_json_append_text(reasons, answer->reasons[i]);
    klp_json_set(json, "reasons", reasons);
    klp_wire_set_u64(json, "epoch", answer->epoch);
    klp_wire_set_text(json, "state", answer->state);
    klp_wire_set_digest(json, "state_digest", &answer->state_digest);
    return json;
}

/* A refusal must never be read as consent: every reason counts, and a list that is none is refused.
 */
static bool reasons_get(const struct klp_json *json, struct klp_peer_answer *out,
                        struct kelpie_error **err)
{
    const struct klp_json *list = klp_json_find(json, "reasons");
    if (!klp_json_is_array(list))
        return klp_refuse(err, KELPIE_E_INVALID, "field 'reasons' is missing or no list");
    size_t count = klp_json_count(list);
    for (size_t i = 0; i < count && i < KLP_COUNT(out->reasons); i++) {
        const char *text = klp_json_text(klp_json_at(list, i));
        if (text == NULL)
            return klp_refuse(err, KELPIE_E_INVALID,
                              "field 'reasons' has an entry that is no text");
        klp_wire_text_cut(text, out->reasons[i], sizeof(out->reasons[i]));
        out->reason_count++;
    }
    return true;
}

static bool peer_answer_get(const struct klp_json *json, struct klp_peer_answer *out,
                            struct kelpie_error **err)
{
    KLP_CHECK(reasons_get(json, out, err));
    KLP_CHECK(klp_json_get_u64(json, "epoch", KLP_JSON_OPTIONAL, &out->epoch, err));
    KLP_CHECK(
        klp_wire_get_text(json, "state", KLP_JSON_OPTIONAL, out->state, sizeof(out->state), err));
    return klp_wire_get_digest(json, "state_digest", KLP_JSON_OPTIONAL, &out->state_digest, err);
}

bool klp_rest_peer_answer_decode(const struct klp_json *json, struct klp_peer_answer *out,
                                 struct kelpie_error **err)
{
    KLP_AUTO(kelpie_error) struct kelpie_error *why = NULL;
    *out = (struct klp_peer_answer){0};
    if (peer_answer_get(json, out, &why))
        return true;
    *out = (struct klp_peer_answer){0};
    return klp_wire_refuse(err, KELPIE_E_PROTOCOL, "answer of a peer", why);
}
