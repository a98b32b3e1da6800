/* SPDX-License-Identifier: Apache-2.0 */
/* Running a command over REST: the request, the one-shot result, and the frame header of the
 * streaming form. Carrying the frames is api/'s and the client's. */
#include <string.h>

#include "base/fmt.h"
#include "format/rest_inside.h"

/* ---- the request */

static void base64_set(struct klp_json *json, const char *key, const struct klp_buf *bytes)
{
    KLP_AUTO(buf) struct klp_buf text = KLP_BUF_INIT((size_t)2 * KLP_EXEC_OUTPUT_MAX);
    klp_base64_append(&text, bytes->data, bytes->size);
    klp_json_set_text_n(json, key, klp_buf_text(&text), text.size);
}

static bool base64_get(const struct klp_json *json, const char *key, size_t size_max,
                       struct klp_buf *out, struct kelpie_error **err)
{
    const char *text = NULL;
    *out = KLP_BUF_INIT(size_max);
    KLP_CHECK(klp_json_get_text(json, key, KLP_JSON_OPTIONAL, &text, err));
    if (text == NULL || text[0] == '\0')
        return true;
    if (strlen(text) / 4 * 3 > size_max + 2)
        return klp_refuse(err, KELPIE_E_INVALID, "field '%s' holds more than %zu bytes", key,
                          size_max);
    bool is_base64 = klp_base64_decode(text, strlen(text), out);
    KLP_CHECK(klp_buf_check(out, key, err));
    if (!is_base64)
        return klp_refuse(err, KELPIE_E_INVALID, "field '%s' is no base64", key);
    return true;
}

struct klp_json *klp_rest_exec_request_encode(const struct klp_exec_request *request)
{
    struct klp_json *json = klp_json_object();
    klp_wire_set_texts(json, "argv", request->argv);
    if (request->env != NULL)
        klp_wire_set_texts(json, "env", request->env);
    if (request->workdir != NULL)
        klp_json_set_text(json, "workdir", request->workdir);
    if (request->timeout_ms != 0)
        klp_wire_set_u64(json, "timeout_ms", request->timeout_ms);
    if (request->tty) {
        klp_json_set_bool(json, "tty", true);
        klp_json_set_u64(json, "rows", request->rows);
        klp_json_set_u64(json, "cols", request->cols);
    }
    if (request->stdin_bytes.size > 0)
        base64_set(json, "stdin_base64", &request->stdin_bytes);
    return json;
}

static bool exec_request_get(const struct klp_json *json, struct klp_exec_request *out,
                             struct kelpie_error **err)
{
    static const char *const keys[] = {"argv", "env",  "workdir",      "timeout_ms", "tty",
                                       "rows", "cols", "stdin_base64", NULL};
    KLP_CHECK(klp_rest_only(json, keys, err));
    KLP_CHECK(klp_rest_get_command(json, &out->argv, &out->env, &out->workdir, err));
    if (out->argv == NULL || out->argv[0][0] == '\0')
        return klp_refuse(err, KELPIE_E_INVALID, "field 'argv' names no command");
    KLP_CHECK(klp_json_get_u64(json, "timeout_ms", KLP_JSON_OPTIONAL, &out->timeout_ms, err));
    KLP_CHECK(klp_json_get_bool(json, "tty", KLP_JSON_OPTIONAL, &out->tty, err));
    KLP_CHECK(klp_wire_get_u32(json, "rows", KLP_JSON_OPTIONAL, &out->rows, err));
    KLP_CHECK(klp_wire_get_u32(json, "cols", KLP_JSON_OPTIONAL, &out->cols, err));
    if (out->rows > UINT16_MAX || out->cols > UINT16_MAX)
        return klp_refuse(err, KELPIE_E_INVALID, "field 'rows' or 'cols' is over %u", UINT16_MAX);
    return base64_get(json, "stdin_base64", KLP_REST_BODY_MAX, &out->stdin_bytes, err);
}

bool klp_rest_exec_request_decode(const struct klp_json *json, struct klp_exec_request *out,
                                  struct kelpie_error **err)
{
    *out = (struct klp_exec_request){0};
    if (exec_request_get(json, out, err))
        return true;
    klp_exec_request_finish(out);
    return false;
}

void klp_exec_request_finish(struct klp_exec_request *request)
{
    klp_texts_free(request->argv);
    klp_texts_free(request->env);
    klp_mem_free(request->workdir);
    klp_buf_finish(&request->stdin_bytes);
    *request = (struct klp_exec_request){0};
}

/* ---- the result */

struct klp_json *klp_rest_exec_result_encode(const struct klp_exec_result *result)
{
    struct klp_json *json = klp_json_object();
    klp_json_set_i64(json, "exit_code", result->exit_code);
    if (result->signal != 0)
        klp_json_set_i64(json, "signal", result->signal);
    else
        klp_json_set_null(json, "signal");
    klp_json_set_bool(json, "timed_out", result->timed_out);
    klp_json_set_bool(json, "truncated", result->truncated);
    base64_set(json, "stdout_base64", &result->out);
    base64_set(json, "stderr_base64", &result->err);
    return json;
}

static bool exec_result_get(const struct klp_json *json, struct klp_exec_result *out,
                            struct kelpie_error **err)
{
    int64_t exit_code = 0;
    KLP_CHECK(klp_json_get_i64(json, "exit_code", KLP_JSON_REQUIRED, &exit_code, err));
    if (exit_code < INT32_MIN || exit_code > INT32_MAX)
        return klp_refuse(err, KELPIE_E_INVALID, "field 'exit_code' is out of range");
    out->exit_code = (int32_t)exit_code;
    KLP_CHECK(klp_wire_get_i32(json, "signal", &out->signal, err));
    KLP_CHECK(klp_json_get_bool(json, "timed_out", KLP_JSON_OPTIONAL, &out->timed_out, err));
    KLP_CHECK(klp_json_get_bool(json, "truncated", KLP_JSON_OPTIONAL, &out->truncated, err));
    KLP_CHECK(base64_get(json, "stdout_base64", KLP_EXEC_OUTPUT_MAX, &out->out, err));
    return base64_get(json, "stderr_base64", KLP_EXEC_OUTPUT_MAX, &out->err, err);
}

bool klp_rest_exec_result_decode(const struct klp_json *json, struct klp_exec_result *out,
                                 struct kelpie_error **err)
{
    KLP_AUTO(kelpie_error) struct kelpie_error *why = NULL;
    *out = (struct klp_exec_result){0};
    if (exec_result_get(json, out, &why))
        return true;
    klp_exec_result_finish(out);
    return klp_wire_refuse(err, KELPIE_E_PROTOCOL, "answer to an exec", why);
}

void klp_exec_result_finish(struct klp_exec_result *result)
{
    klp_buf_finish(&result->out);
    klp_buf_finish(&result->err);
    *result = (struct klp_exec_result){0};
}

/* ---- frames of the streaming form */

void klp_exec_frame_header(enum klp_exec_stream stream, uint32_t size, uint8_t out[8])
{
    KLP_ASSERT(size <= KLP_EXEC_FRAME_MAX);
    memset(out, 0, 8);
    out[0] = (uint8_t)stream;
    for (unsigned i = 0; i < 4; i++)
        out[4 + i] = (uint8_t)(size >> (8 * (3 - i)));
}

bool klp_exec_frame_decode(const uint8_t in[8], enum klp_exec_stream *stream, uint32_t *size,
                           struct kelpie_error **err)
{
    if (in[0] > KLP_EXEC_RESIZE || in[1] != 0 || in[2] != 0 || in[3] != 0)
        return klp_refuse(err, KELPIE_E_PROTOCOL, "exec frame of an unknown stream");
    uint32_t length = 0;
    for (unsigned i = 0; i < 4; i++)
        length = length << 8 | in[4 + i];
    if (length > KLP_EXEC_FRAME_MAX)
        return klp_refuse(err, KELPIE_E_PROTOCOL, "exec frame of %u bytes, over the %u allowed",
                          length, KLP_EXEC_FRAME_MAX);
    *stream = (enum klp_exec_stream)in[0];
    *size = length;
    return true;
}
