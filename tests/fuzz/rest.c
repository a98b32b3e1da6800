/* SPDX-License-Identifier: Apache-2.0 */
/* REST bodies. Input: a digit that chooses the decoder, then JSON. What decodes is encoded, and
 * that decodes and encodes to the same text. 'p' reads a problem document, 'f' an exec frame's
 * header. */
#include "fuzz.h"

#include "format/rest.h"

#define TEXT_MAX (16u * KLP_MIB)

/* Decodes `json`, encodes what came out into `text`; false with the decoder's error. */
typedef bool recode(const struct klp_json *json, struct klp_buf *text, struct kelpie_error **err);

static void print(struct klp_json *json, struct klp_buf *text)
{
    klp_json_print(json, text);
    klp_json_free(json);
    FUZZ_CHECK(klp_buf_check(text, "text", NULL));
}

#define RECODE(function, type, decode, encode, finish)                                             \
    static bool function(const struct klp_json *json, struct klp_buf *text,                        \
                         struct kelpie_error **err)                                                \
    {                                                                                              \
        struct type value;                                                                         \
        if (!decode(json, &value, err))                                                            \
            return false;                                                                          \
        print(encode(&value), text);                                                               \
        finish(&value);                                                                            \
        return true;                                                                               \
    }
#define OWNS_NOTHING(value) ((void)(value))

RECODE(agent, klp_agent_info, klp_rest_agent_decode, klp_rest_agent_encode, klp_agent_info_finish)
RECODE(snapshot, klp_snapshot_info, klp_rest_snapshot_decode, klp_rest_snapshot_encode,
       OWNS_NOTHING)
RECODE(operation, klp_operation_info, klp_rest_operation_decode, klp_rest_operation_encode,
       klp_operation_info_finish)
RECODE(agent_request, klp_agent_request, klp_rest_agent_request_decode,
       klp_rest_agent_request_encode, klp_agent_request_finish)
RECODE(exec_request, klp_exec_request, klp_rest_exec_request_decode, klp_rest_exec_request_encode,
       klp_exec_request_finish)
RECODE(exec_result, klp_exec_result, klp_rest_exec_result_decode, klp_rest_exec_result_encode,
       klp_exec_result_finish)
RECODE(action, klp_action_request, klp_rest_action_decode, klp_rest_action_encode, OWNS_NOTHING)
RECODE(peer_request, klp_peer_request, klp_rest_peer_request_decode, klp_rest_peer_request_encode,
       OWNS_NOTHING)
RECODE(peer_answer, klp_peer_answer, klp_rest_peer_answer_decode, klp_rest_peer_answer_encode,
       OWNS_NOTHING)

static const struct {
    recode *function;
    enum kelpie_code code; /* of its refusals */
} targets[] = {
    {agent, KELPIE_E_PROTOCOL},       {snapshot, KELPIE_E_PROTOCOL},
    {operation, KELPIE_E_PROTOCOL},   {agent_request, KELPIE_E_INVALID},
    {exec_request, KELPIE_E_INVALID}, {exec_result, KELPIE_E_PROTOCOL},
    {action, KELPIE_E_INVALID},       {peer_request, KELPIE_E_INVALID},
    {peer_answer, KELPIE_E_PROTOCOL},
};

static void body(size_t target, const uint8_t *data, size_t size)
{
    struct klp_buf once KLP_AUTO(buf) = KLP_BUF_INIT(TEXT_MAX);
    struct klp_buf twice KLP_AUTO(buf) = KLP_BUF_INIT(TEXT_MAX);
    struct kelpie_error *err = NULL;
    KLP_AUTO(json) struct klp_json *json = NULL;
    KLP_AUTO(json) struct klp_json *again = NULL;
    if (!klp_json_parse(data, size, KLP_REST_DEPTH_MAX, &json, &err)) {
        fuzz_refused(err, KELPIE_E_INVALID);
        return;
    }
    (void)klp_rest_items(json, "agents");
    if (!targets[target].function(json, &once, &err)) {
        bool is_newer = kelpie_error_code(err) == KELPIE_E_UNSUPPORTED; /* a machine within */
        fuzz_refused(err, is_newer ? KELPIE_E_UNSUPPORTED : targets[target].code);
        return;
    }
    FUZZ_CHECK(klp_json_parse(once.data, once.size, KLP_REST_DEPTH_MAX, &again, NULL));
    FUZZ_CHECK(targets[target].function(again, &twice, NULL));
    FUZZ_CHECK(fuzz_equal(klp_buf_view(&once), klp_buf_view(&twice)));
}

static void problem(const uint8_t *data, size_t size)
{
    struct klp_buf text KLP_AUTO(buf) = KLP_BUF_INIT(TEXT_MAX);
    struct kelpie_error *err = klp_rest_problem_decode(500, (struct klp_bytes){data, size});
    FUZZ_CHECK(err != NULL);
    print(klp_rest_problem_encode(err, "x"), &text);
    struct kelpie_error *again = klp_rest_problem_decode(500, klp_buf_view(&text));
    FUZZ_CHECK(kelpie_error_code(again) == kelpie_error_code(err));
    FUZZ_CHECK(kelpie_error_reason_count(again) == kelpie_error_reason_count(err));
    klp_buf_clear(&text);
    klp_rest_error_line(err, 1, &text);
    FUZZ_CHECK(memchr(text.data, '\n', text.size) == NULL); /* one line, whatever it says */
    kelpie_error_free(again);
    kelpie_error_free(err);
}

static void frame(const uint8_t *data, size_t size)
{
    uint8_t header[8] = {0}, again[8];
    enum klp_exec_stream stream;
    uint32_t length;
    memcpy(header, data, size < 8 ? size : 8);
    if (!klp_exec_frame_decode(header, &stream, &length, NULL))
        return;
    klp_exec_frame_header(stream, length, again);
    FUZZ_CHECK(memcmp(header, again, 8) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2)
        return 0;
    if (data[0] == 'p')
        problem(data + 1, size - 1);
    else if (data[0] == 'f')
        frame(data + 1, size - 1);
    else
        body((uint8_t)(data[0] - 48) % KLP_COUNT(targets), data + 1, size - 1);
    return 0;
}
