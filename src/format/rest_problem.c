/* SPDX-License-Identifier: Apache-2.0 */
/* Errors on the wire: problem+json (RFC 9457) both ways, and the line a client ends with. */
#include <string.h>

#include "base/fmt.h"
#include "format/rest_inside.h"

#define URI_SIZE_MAX 128u
#define ERROR_LINE_MAX (4u * KLP_ERROR_TEXT_MAX) /* bytes of a chain of causes; the rest is cut */

#define CHAIN_MAX 32 /* causes that are told */

static bool ends_in(const char *text, const struct klp_buf *end)
{
    size_t size = strlen(text);
    return size >= end->size &&
           (end->size == 0 || memcmp(text + size - end->size, end->data, end->size) == 0);
}

void klp_rest_error_text(const struct kelpie_error *err, struct klp_buf *out)
{
    const struct kelpie_error *chain[CHAIN_MAX];
    size_t count = 0;
    for (; err != NULL && count < CHAIN_MAX; err = kelpie_error_cause(err))
        chain[count++] = err;
    KLP_AUTO(buf) struct klp_buf line = KLP_BUF_INIT(ERROR_LINE_MAX);
    while (count-- > 0) { /* from the innermost */
        const char *message = kelpie_error_message(chain[count]);
        KLP_AUTO(buf) struct klp_buf inner = line;
        line = KLP_BUF_INIT(ERROR_LINE_MAX);
        klp_buf_append_text(&line, message);
        if (ends_in(message, &inner))
            continue;
        klp_buf_append_text(&line, ": ");
        klp_buf_append(&line, inner.data, inner.size);
    }
    klp_buf_append(out, line.data, line.size);
}

static void message_set(struct klp_json *json, const char *key, const struct kelpie_error *err)
{
    KLP_AUTO(buf) struct klp_buf text = KLP_BUF_INIT(ERROR_LINE_MAX);
    klp_rest_error_text(err, &text);
    klp_json_set_text_n(json, key, klp_buf_text(&text), text.size);
}

static bool is_retryable(enum kelpie_code code)
{
    return code == KELPIE_E_UNREACHABLE || code == KELPIE_E_BUSY || code == KELPIE_E_TIMEOUT;
}

/* A failure without an error object is a bug, but not one to hide. */
static enum kelpie_code code_of(const struct kelpie_error *err)
{
    enum kelpie_code code = kelpie_error_code(err);
    return code == KELPIE_E_NONE ? KELPIE_E_INTERNAL : code;
}

static void reasons_set(struct klp_json *json, const struct kelpie_error *err)
{
    struct klp_json *reasons = klp_json_array();
    for (size_t i = 0; i < kelpie_error_reason_count(err); i++)
        klp_json_append_text(reasons, kelpie_error_reason(err, i));
    klp_json_set(json, "reasons", reasons);
}

struct klp_json *klp_rest_problem_encode(const struct kelpie_error *err, const char *operation_id)
{
    enum kelpie_code code = code_of(err);
    KLP_AUTO(buf) struct klp_buf text = KLP_BUF_INIT(URI_SIZE_MAX);
    struct klp_json *json = klp_json_object();
    bool has_operation = operation_id != NULL && operation_id[0] != '\0';
    klp_buf_append_format(&text, "urn:kelpie:error:%s", kelpie_code_name(code));
    klp_json_set_text(json, "type", klp_buf_text(&text));
    klp_json_set_text(json, "title", kelpie_code_text(code));
    klp_json_set_i64(json, "status", kelpie_code_http(code));
    message_set(json, "detail", err);
    klp_buf_clear(&text);
    klp_buf_append_format(&text, "/v1/operations/%s", has_operation ? operation_id : "");
    klp_json_set_text(json, "instance", has_operation ? klp_buf_text(&text) : NULL);
    klp_json_set_text(json, "code", kelpie_code_name(code));
    reasons_set(json, err);
    klp_wire_set_text(json, "remedy", kelpie_error_remedy(err));
    klp_json_set_bool(json, "retryable", is_retryable(code));
    klp_json_set_text(json, "operation_id", has_operation ? operation_id : NULL);
    return json;
}

void klp_rest_error_line(const struct kelpie_error *err, int exit_status, struct klp_buf *out)
{
    KLP_AUTO(json) struct klp_json *json = klp_json_object();
    klp_json_set_text(json, "type", "error");
    klp_json_set_text(json, "code", kelpie_code_name(code_of(err)));
    klp_json_set_i64(json, "exit", exit_status);
    message_set(json, "message", err);
    reasons_set(json, err);
    klp_wire_set_text(json, "remedy", kelpie_error_remedy(err));
    klp_json_print(json, out);
}

/* ---- reading: whatever is there is used, because an error about an error helps nobody. */

static const char *text_or(const struct klp_json *json, const char *key, const char *fallback)
{
    const char *text = klp_json_text(klp_json_find(json, key));
    return text != NULL && text[0] != '\0' ? text : fallback;
}

struct kelpie_error *klp_rest_problem_read(const struct klp_json *problem)
{
    const char *name = text_or(problem, "code", NULL);
    if (name == NULL)
        return NULL;
    enum kelpie_code code = kelpie_code_from_name(name);
    struct kelpie_error *err =
        klp_error_create(code, text_or(problem, "detail", kelpie_code_text(code)));
    const struct klp_json *reasons = klp_json_find(problem, "reasons");
    size_t count = klp_json_is_array(reasons) ? klp_json_count(reasons) : 0;
    for (size_t i = 0; i < count && i < KLP_ERROR_REASONS_MAX; i++) {
        const char *reason = klp_json_text(klp_json_at(reasons, i));
        if (reason != NULL)
            klp_error_reason_add(&err, "%s", reason);
    }
    const char *remedy = text_or(problem, "remedy", NULL);
    if (remedy != NULL)
        klp_error_remedy_set(&err, "%s", remedy);
    return err;
}

struct kelpie_error *klp_rest_problem_decode(int http_status, struct klp_bytes body)
{
    KLP_AUTO(json) struct klp_json *json = NULL;
    struct kelpie_error *err = NULL;
    if (body.size <= KLP_REST_BODY_MAX &&
        klp_json_parse(body.data, body.size, KLP_REST_DEPTH_MAX, &json, NULL))
        err = klp_rest_problem_read(json);
    if (err == NULL) {
        char message[96];
        (void)klp_format(message, sizeof(message),
                         "the answer with HTTP status %d is no problem document", http_status);
        err = klp_error_create(KELPIE_E_PROTOCOL, message);
    }
    return err;
}
