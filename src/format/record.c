/* SPDX-License-Identifier: Apache-2.0 */
/* The registry's records as JSON (docs/formats/record.md). Fields a newer release added to an
 * agent's record survive a change by this one: the document they came in is kept, and the known
 * fields are set in it again. Who may change what: registry/. */
#include <string.h>

#include "base/fmt.h"
#include "format/record.h"
#include "format/wire.h"

#define RECORD_VERSION 1
#define RECORD_DEPTH_MAX 8
#define EXTRA_SIZE_MAX (16 * KLP_RECORD_SIZE_MAX) /* numbers may grow when they are printed */

static const char *const state_names[] = {"none",      "created", "starting", "running", "paused",
                                          "suspended", "moving",  "parked",   "stopped", "crashed"};

const char *klp_agent_state_name(enum klp_agent_state state)
{
    return (size_t)state < KLP_COUNT(state_names) ? state_names[state] : state_names[0];
}

enum klp_agent_state klp_agent_state_parse(const char *text)
{
    for (size_t i = KLP_AGENT_CREATED; text != NULL && i < KLP_COUNT(state_names); i++) {
        if (strcmp(text, state_names[i]) == 0)
            return (enum klp_agent_state)i;
    }
    return KLP_AGENT_NONE;
}

/* ---- writing */

static bool print(const struct klp_json *json, const char *what, struct klp_buf *out,
                  struct kelpie_error **err)
{
    KLP_AUTO(buf) struct klp_buf text = KLP_BUF_INIT(KLP_RECORD_SIZE_MAX);
    klp_json_print(json, &text);
    KLP_CHECK(klp_buf_check(&text, what, err));
    klp_buf_append(out, text.data, text.size);
    return klp_buf_check(out, what, err);
}

static void lease_set(struct klp_json *json, uint64_t ttl_ms, uint64_t beat)
{
    struct klp_json *lease = klp_json_object();
    klp_json_set_u64(lease, "ttl_ms", ttl_ms);
    klp_json_set_u64(lease, "beat", beat);
    klp_json_set(json, "lease", lease);
}

static bool bytes_are_zero(const uint8_t *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        if (bytes[i] != 0)
            return false;
    }
    return true;
}

static void generation_set(struct klp_json *json, const uint8_t generation[16])
{
    char text[33];
    klp_hex_encode(generation, 16, text);
    klp_json_set_text(json, "generation", bytes_are_zero(generation, 16) ? NULL : text);
}

static void ownership_set(struct klp_json *json, const struct klp_agent_record *record)
{
    klp_json_set_u64(json, "version", RECORD_VERSION);
    klp_json_set_text(json, "id", record->id);
    klp_json_set_text(json, "name", record->name);
    klp_wire_set_text(json, "owner", record->owner);
    klp_json_set_u64(json, "epoch", record->epoch);
    klp_json_set_u64(json, "revision", record->revision);
    klp_json_set_text(json, "state", klp_agent_state_name(record->state));
    klp_wire_set_text(json, "move_id", record->move_id);
    klp_wire_set_text(json, "destination", record->destination);
    klp_wire_set_digest(json, "manifest", &record->manifest);
    lease_set(json, record->lease_ttl_ms, record->beat);
}

static void workload_set(struct klp_json *json, const struct klp_agent_record *record)
{
    klp_wire_set_text(json, "image", record->image);
    klp_wire_set_text(json, "backend", record->backend);
    klp_wire_set_arch(json, "arch", record->arch);
    klp_json_set_u64(json, "vcpus", record->vcpus);
    klp_json_set_u64(json, "memory_bytes", record->memory_bytes);
    klp_wire_set_text(json, "parent", record->parent);
    klp_wire_set_time(json, "created_at", record->created_wall_ns, true);
    klp_wire_set_text(json, "reason", record->reason);
    generation_set(json, record->generation);
    klp_wire_set_uniqueness(json, record->uniqueness);
}

static bool json_copy(const struct klp_json *from, struct klp_json **out, struct kelpie_error **err)
{
    KLP_AUTO(buf) struct klp_buf text = KLP_BUF_INIT(EXTRA_SIZE_MAX);
    klp_json_print(from, &text);
    KLP_CHECK(klp_buf_check(&text, "agent record", err));
    return klp_json_parse(text.data, text.size, RECORD_DEPTH_MAX, out, err);
}

static bool name_is_sound(const char *name, bool required)
{
    return name[0] == '\0' ? !required : klp_name_is_valid(name);
}

static bool number_is_sound(uint64_t value)
{
    return value <= INT64_MAX; /* JSON's integers, as everyone reads them here */
}

/* NULL when all is well, else the field at fault. */
static const char *agent_fault(const struct klp_agent_record *record)
{
    if (!klp_id_is_valid(record->id))
        return "id";
    if (!name_is_sound(record->name, true))
        return "name";
    if (!name_is_sound(record->owner, false))
        return "owner";
    if (klp_agent_state_parse(klp_agent_state_name(record->state)) == KLP_AGENT_NONE)
        return "state";
    if (record->move_id[0] != '\0' && !klp_id_is_valid(record->move_id))
        return "move_id";
    if (!name_is_sound(record->destination, false))
        return "destination";
    if (!name_is_sound(record->image, false))
        return "image";
    if (!name_is_sound(record->parent, false))
        return "parent";
    if (!number_is_sound(record->epoch) || !number_is_sound(record->revision) ||
        !number_is_sound(record->lease_ttl_ms) || !number_is_sound(record->beat) ||
        !number_is_sound(record->memory_bytes))
        return "a number";
    return NULL;
}

bool klp_agent_record_encode(const struct klp_agent_record *record, struct klp_buf *out,
                             struct kelpie_error **err)
{
    const char *fault = agent_fault(record);
    if (fault != NULL)
        return klp_refuse(err, KELPIE_E_INVALID, "agent record: %s cannot be written", fault);
    KLP_AUTO(json) struct klp_json *json = NULL;
    if (record->extra == NULL)
        json = klp_json_object();
    else
        KLP_CHECK(json_copy(record->extra, &json, err));
    ownership_set(json, record);
    workload_set(json, record);
    return print(json, "agent record", out, err);
}

/* ---- reading */

static bool lease_get(const struct klp_json *json, uint64_t *ttl_ms, uint64_t *beat,
                      struct kelpie_error **err)
{
    const struct klp_json *lease = klp_json_find(json, "lease");
    if (!klp_json_is_object(lease))
        return klp_refuse(err, KELPIE_E_INVALID, "field 'lease' is missing or no object");
    KLP_CHECK(klp_json_get_u64(lease, "ttl_ms", KLP_JSON_REQUIRED, ttl_ms, err));
    return klp_json_get_u64(lease, "beat", KLP_JSON_REQUIRED, beat, err);
}

static bool version_get(const struct klp_json *json, struct kelpie_error **err)
{
    uint64_t version = 0;
    KLP_CHECK(klp_json_get_u64(json, "version", KLP_JSON_REQUIRED, &version, err));
    if (version != RECORD_VERSION)
        return klp_refuse(err, KELPIE_E_INVALID, "field 'version' is not %u", RECORD_VERSION);
    return true;
}

static bool ownership_get(const struct klp_json *json, struct klp_agent_record *out,
                          struct kelpie_error **err)
{
    const char *state = NULL;
    KLP_CHECK(version_get(json, err));
    KLP_CHECK(klp_wire_get_id(json, "id", KLP_JSON_REQUIRED, out->id, err));
    KLP_CHECK(klp_wire_get_name(json, "name", KLP_JSON_REQUIRED, out->name, err));
    KLP_CHECK(klp_wire_get_name(json, "owner", KLP_JSON_OPTIONAL, out->owner, err));
    KLP_CHECK(klp_json_get_u64(json, "epoch", KLP_JSON_REQUIRED, &out->epoch, err));
    KLP_CHECK(klp_json_get_u64(json, "revision", KLP_JSON_REQUIRED, &out->revision, err));
    KLP_CHECK(klp_json_get_text(json, "state", KLP_JSON_REQUIRED, &state, err));
    out->state = klp_agent_state_parse(state);
    if (out->state == KLP_AGENT_NONE)
        return klp_refuse(err, KELPIE_E_INVALID, "field 'state' is no state of an agent");
    KLP_CHECK(klp_wire_get_id(json, "move_id", KLP_JSON_OPTIONAL, out->move_id, err));
    KLP_CHECK(klp_wire_get_name(json, "destination", KLP_JSON_OPTIONAL, out->destination, err));
    KLP_CHECK(klp_wire_get_digest(json, "manifest", KLP_JSON_OPTIONAL, &out->manifest, err));
    return lease_get(json, &out->lease_ttl_ms, &out->beat, err);
}

static bool generation_get(const struct klp_json *json, uint8_t out[16], struct kelpie_error **err)
{
    const char *text = NULL;
    KLP_CHECK(klp_json_get_text(json, "generation", KLP_JSON_OPTIONAL, &text, err));
    if (text != NULL && !klp_hex_decode(text, strlen(text), out, 16))
        return klp_refuse(err, KELPIE_E_INVALID, "field 'generation' is not 32 hex digits");
    return true;
}

static bool workload_get(const struct klp_json *json, struct klp_agent_record *out,
                         struct kelpie_error **err)
{
    KLP_CHECK(klp_wire_get_name(json, "image", KLP_JSON_OPTIONAL, out->image, err));
    KLP_CHECK(klp_wire_get_text(json, "backend", KLP_JSON_OPTIONAL, out->backend,
                                sizeof(out->backend), err));
    KLP_CHECK(klp_wire_get_arch(json, "arch", &out->arch, err));
    KLP_CHECK(klp_wire_get_u32(json, "vcpus", KLP_JSON_OPTIONAL, &out->vcpus, err));
    KLP_CHECK(klp_json_get_u64(json, "memory_bytes", KLP_JSON_OPTIONAL, &out->memory_bytes, err));
    KLP_CHECK(klp_wire_get_name(json, "parent", KLP_JSON_OPTIONAL, out->parent, err));
    KLP_CHECK(klp_wire_get_time(json, "created_at", KLP_JSON_REQUIRED, &out->created_wall_ns, err));
    KLP_CHECK(klp_wire_get_text_cut(json, "reason", out->reason, sizeof(out->reason), err));
    KLP_CHECK(generation_get(json, out->generation, err));
    return klp_wire_get_uniqueness(json, out->uniqueness, err);
}

/* Parses one record's text into an object. */
static bool document_get(struct klp_bytes text, struct klp_json **out, struct kelpie_error **err)
{
    if (text.size > KLP_RECORD_SIZE_MAX)
        return klp_refuse(err, KELPIE_E_INVALID, "is longer than %u bytes", KLP_RECORD_SIZE_MAX);
    KLP_CHECK(klp_json_parse(text.data, text.size, RECORD_DEPTH_MAX, out, err));
    if (!klp_json_is_object(*out))
        return klp_refuse(err, KELPIE_E_INVALID, "is no object");
    return true;
}

static bool has_unknown_fields(const struct klp_json *json)
{
    static const char *const known[] = {
        "version",      "id",         "name",       "owner",  "epoch",      "revision",
        "state",        "move_id",    "lease",      "image",  "backend",    "destination",
        "manifest",     "arch",       "vcpus",      "parent", "created_at", "reason",
        "memory_bytes", "generation", "uniqueness", NULL};
    return !klp_json_only(json, known, NULL);
}

static bool agent_get(struct klp_bytes text, struct klp_agent_record *out,
                      struct kelpie_error **err)
{
    KLP_AUTO(json) struct klp_json *json = NULL;
    KLP_CHECK(document_get(text, &json, err));
    KLP_CHECK(ownership_get(json, out, err));
    KLP_CHECK(workload_get(json, out, err));
    if (has_unknown_fields(json))
        out->extra = KLP_TAKE(&json);
    return true;
}

bool klp_agent_record_decode(struct klp_bytes text, struct klp_agent_record *out,
                             struct kelpie_error **err)
{
    KLP_AUTO(kelpie_error) struct kelpie_error *why = NULL;
    *out = (struct klp_agent_record){0};
    if (agent_get(text, out, &why))
        return true;
    klp_agent_record_finish(out);
    return klp_wire_refuse(err, KELPIE_E_CORRUPT, "agent record", why);
}

bool klp_agent_record_copy(const struct klp_agent_record *from, struct klp_agent_record *to,
                           struct kelpie_error **err)
{
    struct klp_json *extra = NULL;
    if (from->extra != NULL)
        KLP_CHECK(json_copy(from->extra, &extra, err));
    *to = *from;
    to->extra = extra;
    return true;
}

void klp_agent_record_finish(struct klp_agent_record *record)
{
    klp_json_free(record->extra);
    *record = (struct klp_agent_record){0};
}

/* ---- nodes */

static const char *node_fault(const struct klp_node_record *record)
{
    if (!klp_name_is_valid(record->name))
        return "name";
    if (record->arch_count > KLP_COUNT(record->archs))
        return "archs";
    if (record->backend_count > KLP_COUNT(record->backends))
        return "backends";
    if (!number_is_sound(record->beat) || !number_is_sound(record->lease_ttl_ms) ||
        !number_is_sound(record->tsc_khz) || !number_is_sound(record->memory_free_bytes))
        return "a number";
    return NULL;
}

void klp_wire_set_node_lists(struct klp_json *json, const struct klp_node_record *record)
{
    struct klp_json *archs = klp_json_array(), *backends = klp_json_array();
    for (uint32_t i = 0; i < record->arch_count; i++)
        klp_json_append_text(archs, klp_arch_name(record->archs[i]));
    for (uint32_t i = 0; i < record->backend_count; i++)
        klp_json_append_text(backends, record->backends[i]);
    klp_json_set(json, "archs", archs);
    klp_json_set(json, "backends", backends);
}

bool klp_node_record_encode(const struct klp_node_record *record, struct klp_buf *out,
                            struct kelpie_error **err)
{
    const char *fault = node_fault(record);
    if (fault != NULL)
        return klp_refuse(err, KELPIE_E_INVALID, "node record: %s cannot be written", fault);
    KLP_AUTO(json) struct klp_json *json = klp_json_object();
    klp_json_set_u64(json, "version", RECORD_VERSION);
    klp_json_set_text(json, "name", record->name);
    klp_wire_set_text(json, "endpoint", record->endpoint);
    klp_wire_set_text(json, "state", record->state);
    klp_wire_set_node_lists(json, record);
    lease_set(json, record->lease_ttl_ms, record->beat);
    klp_json_set_u64(json, "tsc_khz", record->tsc_khz);
    klp_wire_set_text(json, "cpu", record->cpu);
    klp_json_set_u64(json, "memory_free_bytes", record->memory_free_bytes);
    return print(json, "node record", out, err);
}

/* An architecture this release does not know is no place for its agents: left out. */
static bool archs_get(const struct klp_json *json, struct klp_node_record *out,
                      struct kelpie_error **err)
{
    const struct klp_json *list = klp_json_find(json, "archs");
    for (size_t i = 0; i < klp_json_count(list); i++) {
        const char *text = klp_json_text(klp_json_at(list, i));
        if (text == NULL)
            return klp_refuse(err, KELPIE_E_INVALID, "field 'archs' has an entry that is no text");
        enum klp_arch arch = klp_arch_parse(text);
        if (arch == KLP_ARCH_NONE)
            continue;
        if (out->arch_count == KLP_COUNT(out->archs))
            return klp_refuse(err, KELPIE_E_INVALID, "field 'archs' has too many entries");
        out->archs[out->arch_count++] = arch;
    }
    return true;
}

static bool backends_get(const struct klp_json *json, struct klp_node_record *out,
                         struct kelpie_error **err)
{
    const struct klp_json *list = klp_json_find(json, "backends");
    for (size_t i = 0; i < klp_json_count(list); i++) {
        const char *text = klp_json_text(klp_json_at(list, i));
        if (text == NULL || text[0] == '\0' || strlen(text) >= sizeof(out->backends[0]) ||
            out->backend_count == KLP_COUNT(out->backends))
            return klp_refuse(err, KELPIE_E_INVALID,
                              "field 'backends' has too many entries or one that is no name");
        klp_text_copy(out->backends[out->backend_count++], sizeof(out->backends[0]), text);
    }
    return true;
}

static bool lists_get(const struct klp_json *json, struct klp_node_record *out,
                      struct kelpie_error **err)
{
    if (!klp_json_is_array(klp_json_find(json, "archs")) ||
        !klp_json_is_array(klp_json_find(json, "backends")))
        return klp_refuse(err, KELPIE_E_INVALID,
                          "field 'archs' or 'backends' is missing or no list");
    KLP_CHECK(archs_get(json, out, err));
    return backends_get(json, out, err);
}

static bool node_get(struct klp_bytes text, struct klp_node_record *out, struct kelpie_error **err)
{
    KLP_AUTO(json) struct klp_json *json = NULL;
    KLP_CHECK(document_get(text, &json, err));
    KLP_CHECK(version_get(json, err));
    KLP_CHECK(klp_wire_get_name(json, "name", KLP_JSON_REQUIRED, out->name, err));
    KLP_CHECK(klp_wire_get_text(json, "endpoint", KLP_JSON_OPTIONAL, out->endpoint,
                                sizeof(out->endpoint), err));
    KLP_CHECK(
        klp_wire_get_text(json, "state", KLP_JSON_OPTIONAL, out->state, sizeof(out->state), err));
    KLP_CHECK(lists_get(json, out, err));
    KLP_CHECK(lease_get(json, &out->lease_ttl_ms, &out->beat, err));
    KLP_CHECK(klp_json_get_u64(json, "tsc_khz", KLP_JSON_OPTIONAL, &out->tsc_khz, err));
    KLP_CHECK(klp_wire_get_text(json, "cpu", KLP_JSON_OPTIONAL, out->cpu, sizeof(out->cpu), err));
    return klp_json_get_u64(json, "memory_free_bytes", KLP_JSON_OPTIONAL, &out->memory_free_bytes,
                            err);
}

bool klp_node_record_decode(struct klp_bytes text, struct klp_node_record *out,
                            struct kelpie_error **err)
{
    KLP_AUTO(kelpie_error) struct kelpie_error *why = NULL;
    *out = (struct klp_node_record){0};
    if (node_get(text, out, &why))
        return true;
    *out = (struct klp_node_record){0};
    return klp_wire_refuse(err, KELPIE_E_CORRUPT, "node record", why);
}
