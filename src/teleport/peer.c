/* SPDX-License-Identifier: Apache-2.0 */
#include "teleport/peer.h"

#include "base/fmt.h"
#include "env/chan.h"

kelpie_outcome klp_peer_ask(const struct kelpie_op *op, const char *endpoint, const char *verb,
                            const struct klp_peer_request *request, struct klp_peer_answer *out,
                            struct kelpie_error **err)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(KLP_REST_BODY_MAX);
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf answer = KLP_BUF_INIT(KLP_REST_BODY_MAX);
    KLP_AUTO(json) struct klp_json *json = klp_rest_peer_request_encode(request);
    klp_json_print(json, &body);
    KLP_REQUIRE(klp_buf_check(&body, "a message to a node", err));

    char path[64];
    int status;
    klp_format(path, sizeof(path), "/v1/peer/%s", verb);
    KLP_TRY(klp_peer_call(op, endpoint, "POST", path, klp_buf_view(&body), &status, &answer, err));
    if (status >= 300) {
        struct kelpie_error *told = klp_rest_problem_decode(status, klp_buf_view(&answer));
        klp_error_move(err, &told);
        return (kelpie_outcome){KELPIE_FAIL};
    }
    KLP_AUTO(json) struct klp_json *parsed = NULL;
    KLP_REQUIRE(
        klp_json_parse(klp_buf_text(&answer), answer.size, KLP_REST_DEPTH_MAX, &parsed, err));
    KLP_REQUIRE(klp_rest_peer_answer_decode(parsed, out, err));
    return KLP_OK;
}
