/* SPDX-License-Identifier: Apache-2.0 */
/* The REST answer about an operation: what was asked, how far it is, what it cost and made. */
#include <string.h>

#include "format/rest_inside.h"

#define RESULTS_MAX 4096 /* names one operation may have made */

static const char *const state_names[] = {"running", "done", "failed", "unknown"};

static struct klp_json *phases_encode(const struct klp_operation_info *operation)
{
    struct klp_json *list = klp_json_array();
    KLP_ASSERT(operation->phase_count <= KLP_COUNT(operation->phases));
    for (uint32_t i = 0; i < operation->phase_count; i++) {
        const struct klp_operation_phase *phase = &operation->phases[i];
        struct klp_json *json = klp_json_object();
        klp_json_set_text(json, "step", phase->step);
        klp_wire_set_u64(json, "ms", klp_rest_ms(phase->us));
        klp_wire_set_u64(json, "us", phase->us);
        klp_wire_set_u64(json, "bytes", phase->bytes);
        klp_json_append(list, json);
    }
    return list;
}

struct klp_json *klp_rest_operation_encode(const struct klp_operation_info *operation)
{
    struct klp_json *json = klp_json_object();
    KLP_ASSERT((size_t)operation->state < KLP_COUNT(state_names));
    klp_json_set_text(json, "id", operation->id);
    klp_json_set_text(json, "kind", operation->kind);
    klp_json_set_text(json, "state", state_names[operation->state]);
    klp_wire_set_text(json, "agent", operation->agent);
    klp_wire_set_text(json, "move_id", operation->move_id);
    klp_wire_set_u64(json, "epoch", operation->epoch);
    klp_wire_set_text(json, "destination", operation->destination);
    klp_json_set(json, "phases", phases_encode(operation));
    klp_wire_set_u64(json, "blackout_ms", klp_rest_ms(operation->blackout_us));
    klp_wire_set_u64(json, "blackout_us", operation->blackout_us);
    klp_wire_set_u64(json, "bytes_moved", operation->bytes_moved);
    klp_wire_set_time(json, "created_at", operation->created_wall_ns, false);
    klp_wire_set_texts(json, "results", operation->results);
    if (operation->error != NULL)
        klp_json_set(json, "error", klp_rest_problem_encode(operation->error, operation->id));
    else
        klp_json_set_null(json, "error");
    return json;
}

static bool state_get(const struct klp_json *json, enum klp_operation_state *out,
                      struct kelpie_error **err)
{
    const char *text = NULL;
    KLP_CHECK(klp_json_get_text(json, "state", KLP_JSON_REQUIRED, &text, err));
    for (size_t i = 0; i < KLP_COUNT(state_names); i++) {
        if (strcmp(text, state_names[i]) == 0) {
            *out = (enum klp_operation_state)i;
            return true;
        }
    }
    return klp_refuse(err, KELPIE_E_INVALID, "field 'state' is no state of an operation");
}

/* Exact in US_KEY; an answer without it has it in whole milliseconds. */
static bool duration_get(const struct klp_json *json, const char *us_key, const char *ms_key,
                         uint64_t *out_us, struct kelpie_error **err)
{
    uint64_t ms = 0;
    if (!klp_wire_is_absent(json, us_key))
        return klp_json_get_u64(json, us_key, KLP_JSON_REQUIRED, out_us, err);
    KLP_CHECK(klp_json_get_u64(json, ms_key, KLP_JSON_OPTIONAL, &ms, err));
    if (ms > INT64_MAX / 1000)
        return klp_refuse(err, KELPIE_E_INVALID, "field '%s' is too large", ms_key);
    *out_us = ms * 1000;
    return true;
}

/* Phases beyond those there is room for are passed over. */
static bool phases_get(const struct klp_json *json, struct klp_operation_info *out,
                       struct kelpie_error **err)
{
    const struct klp_json *list = klp_json_find(json, "phases");
    if (klp_wire_is_absent(json, "phases"))
        return true;
    if (!klp_json_is_array(list))
        return klp_refuse(err, KELPIE_E_INVALID, "field 'phases' is no list");
    size_t count = klp_json_count(list);
    for (size_t i = 0; i < count && i < KLP_COUNT(out->phases); i++) {
        const struct klp_json *item = klp_json_at(list, i);
        struct klp_operation_phase *phase = &out->phases[i];
        if (!klp_json_is_object(item))
            return klp_refuse(err, KELPIE_E_INVALID, "field 'phases' has an entry that is none");
        KLP_CHECK(klp_wire_get_text_cut(item, "step", phase->step, sizeof(phase->step), err));
        KLP_CHECK(duration_get(item, "us", "ms", &phase->us, err));
        KLP_CHECK(klp_json_get_u64(item, "bytes", KLP_JSON_OPTIONAL, &phase->bytes, err));
        out->phase_count++;
    }
    return true;
}

static bool error_get(const struct klp_json *json, struct klp_operation_info *out,
                      struct kelpie_error **err)
{
    if (klp_wire_is_absent(json, "error"))
        return true;
    out->error = klp_rest_problem_read(klp_json_find(json, "error"));
    if (out->error == NULL)
        return klp_refuse(err, KELPIE_E_INVALID, "field 'error' is no problem document");
    return true;
}

static bool operation_get(const struct klp_json *json, struct klp_operation_info *out,
                          struct kelpie_error **err)
{
    size_t total = 0;
    KLP_CHECK(klp_wire_get_id(json, "id", KLP_JSON_REQUIRED, out->id, err));
    KLP_CHECK(
        klp_wire_get_text(json, "kind", KLP_JSON_REQUIRED, out->kind, sizeof(out->kind), err));
    KLP_CHECK(state_get(json, &out->state, err));
    KLP_CHECK(klp_wire_get_name(json, "agent", KLP_JSON_OPTIONAL, out->agent, err));
    KLP_CHECK(klp_wire_get_id(json, "move_id", KLP_JSON_OPTIONAL, out->move_id, err));
    KLP_CHECK(klp_json_get_u64(json, "epoch", KLP_JSON_OPTIONAL, &out->epoch, err));
    KLP_CHECK(klp_wire_get_name(json, "destination", KLP_JSON_OPTIONAL, out->destination, err));
    KLP_CHECK(phases_get(json, out, err));
    KLP_CHECK(duration_get(json, "blackout_us", "blackout_ms", &out->blackout_us, err));
    KLP_CHECK(klp_json_get_u64(json, "bytes_moved", KLP_JSON_OPTIONAL, &out->bytes_moved, err));
    KLP_CHECK(klp_wire_get_time(json, "created_at", KLP_JSON_OPTIONAL, &out->created_wall_ns, err));
    KLP_CHECK(klp_wire_get_texts(json, "results", RESULTS_MAX, &total, &out->results, err));
    return error_get(json, out, err);
}

bool klp_rest_operation_decode(const struct klp_json *json, struct klp_operation_info *out,
                               struct kelpie_error **err)
{
    KLP_AUTO(kelpie_error) struct kelpie_error *why = NULL;
    *out = (struct klp_operation_info){0};
    if (operation_get(json, out, &why))
        return true;
    klp_operation_info_finish(out);
    return klp_wire_refuse(err, KELPIE_E_PROTOCOL, "answer about an operation", why);
}

void klp_operation_info_finish(struct klp_operation_info *operation)
{
    klp_texts_free(operation->results);
    kelpie_error_free(operation->error);
    *operation = (struct klp_operation_info){0};
}
