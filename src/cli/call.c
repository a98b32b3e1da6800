/* SPDX-License-Identifier: Apache-2.0 */
/* Requests: one JSON document out, one in, errors as the daemon gave them. */
#include <string.h>
#include <sys/random.h>

#include "base/fmt.h"
#include "cli/cli.h"

#define ANSWER_MAX (64 * KLP_MIB)
#define SERVER_TIMEOUT_MS 600000 /* what the daemon is given when nobody said --timeout */
#define GRACE_MS 10000           /* for its answer, behind its own deadline */

bool cli_path(const char *kind, const char *name, const char *verb, char **out,
              struct kelpie_error **err)
{
    char what[16];
    klp_format(what, sizeof(what), "%.*s", (int)strlen(kind) - 1, kind); /* "agents" -> "agent" */
    KLP_CHECK(klp_name_check(what, name, err));
    *out = klp_text("/v1/%s/%s%s%s", kind, name, verb != NULL ? "/" : "", verb != NULL ? verb : "");
    return true;
}

void cli_key(char out[KLP_ID_SIZE])
{
    uint8_t bytes[KLP_ID_BYTES];
    KLP_ASSERT(getrandom(bytes, sizeof(bytes), 0) == (ssize_t)sizeof(bytes));
    klp_hex_encode(bytes, sizeof(bytes), out);
}

static uint64_t server_timeout(const struct cli *cli)
{
    return cli->args.timeout_ms != 0 ? cli->args.timeout_ms : SERVER_TIMEOUT_MS;
}

/* One attempt at one place. */
static kelpie_outcome attempt(struct cli *cli, const char *endpoint,
                              const struct http_request *request, struct http *out,
                              struct kelpie_error **err)
{
    int fd;
    KLP_TRY(cli_connect(cli, endpoint, &fd, err));
    http_init(out, fd, cli->args.timeout_ms != 0 ? cli->args.timeout_ms + GRACE_MS : 0);
    KLP_TRY(http_send(out, request, err));
    return request->chunked ? KLP_OK : http_answer(out, err);
}

static kelpie_outcome with_deadline(struct cli *cli, const char *endpoint,
                                    const struct http_request *asked, struct http *out,
                                    struct kelpie_error **err)
{
    struct http_request request = *asked;
    bool has = strstr(asked->path, "timeout_ms=") != NULL;
    char *path = has ? klp_mem_string(asked->path)
                     : klp_text("%s%stimeout_ms=%llu", asked->path,
                                strchr(asked->path, '?') != NULL ? "&" : "?",
                                (unsigned long long)server_timeout(cli));
    request.path = path;
    kelpie_outcome outcome = attempt(cli, endpoint, &request, out, err);
    klp_mem_free(path);
    /* A question that was not answered has changed nothing. */
    if (kelpie_is_unknown(outcome) && strcmp(asked->method, "GET") == 0) {
        klp_error_clear(err);
        return klp_fail(err, KELPIE_E_UNREACHABLE, "the daemon closed the connection");
    }
    return outcome;
}

kelpie_outcome cli_http_open(struct cli *cli, const struct http_request *request, struct http *out,
                             struct kelpie_error **err)
{
    *out = (struct http){.fd = -1};
    kelpie_outcome outcome = with_deadline(cli, NULL, request, out, err);
    if (!kelpie_is_ok(outcome) || out->status != 307 || out->endpoint[0] == 0) {
        if (!kelpie_is_ok(outcome))
            http_finish(out);
        return outcome;
    }
    char endpoint[KLP_ENDPOINT_SIZE];
    klp_text_copy(endpoint, sizeof(endpoint), out->endpoint);
    http_finish(out);
    outcome = with_deadline(cli, endpoint, request, out, err);
    if (!kelpie_is_ok(outcome))
        http_finish(out);
    return outcome;
}

/* An answer that was relayed names who gave it. */
kelpie_outcome cli_http_open_owner(struct cli *cli, const char *agent,
                                   const struct http_request *request, struct http *out,
                                   struct kelpie_error **err)
{
    char endpoint[KLP_ENDPOINT_SIZE], *path;
    *out = (struct http){.fd = -1};
    KLP_REQUIRE(cli_path("agents", agent, NULL, &path, err));
    kelpie_outcome outcome = cli_call_at(cli, NULL, "GET", path, NULL, NULL, NULL, endpoint, err);
    klp_mem_free(path);
    KLP_TRY(outcome);
    outcome = with_deadline(cli, endpoint[0] != 0 ? endpoint : NULL, request, out, err);
    if (!kelpie_is_ok(outcome))
        http_finish(out);
    return outcome;
}

kelpie_outcome cli_answer_check(struct http *http, struct kelpie_error **err)
{
    if (http->status < 300)
        return KLP_OK;
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(KLP_REST_BODY_MAX);
    KLP_TRY(http_body_all(http, &body, err));
    struct kelpie_error *error = klp_rest_problem_decode(http->status, klp_buf_view(&body));
    bool unknown = kelpie_error_code(error) == KELPIE_E_OUTCOME_UNKNOWN;
    klp_error_move(err, &error);
    return (kelpie_outcome){unknown ? KELPIE_UNKNOWN : KELPIE_FAIL};
}

static kelpie_outcome answer_json(struct http *http, struct klp_json **out,
                                  struct kelpie_error **err)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(ANSWER_MAX);
    KLP_TRY(cli_answer_check(http, err));
    KLP_TRY(http_body_all(http, &body, err));
    if (body.size == 0)
        return KLP_OK;
    struct kelpie_error *error = NULL;
    if (klp_json_parse(body.data, body.size, KLP_REST_DEPTH_MAX, out, &error))
        return KLP_OK;
    kelpie_outcome outcome = klp_fail(err, KELPIE_E_PROTOCOL, "the daemon's answer is no JSON: %s",
                                      kelpie_error_message(error));
    klp_error_clear(&error);
    return outcome;
}

kelpie_outcome cli_call_at(struct cli *cli, const char *endpoint, const char *method,
                           const char *path, const char *key, struct klp_json *body,
                           struct klp_json **out, char *out_endpoint, struct kelpie_error **err)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf text = KLP_BUF_INIT(KLP_REST_BODY_MAX);
    KLP_AUTO(json) struct klp_json *answer = NULL;
    struct http http = {.fd = -1};
    if (body != NULL)
        klp_json_print(body, &text);
    klp_json_free(body);
    KLP_REQUIRE(klp_buf_check(&text, "the request", err));
    struct http_request request = {
        .method = method, .path = path, .key = key, .body = klp_buf_view(&text)};
    kelpie_outcome outcome = with_deadline(cli, endpoint, &request, &http, err);
    if (kelpie_is_ok(outcome))
        outcome = answer_json(&http, &answer, err);
    if (out_endpoint != NULL)
        klp_text_copy(out_endpoint, KLP_ENDPOINT_SIZE, http.endpoint);
    http_finish(&http);
    if (kelpie_is_ok(outcome) && out != NULL)
        *out = KLP_TAKE(&answer);
    return outcome;
}

kelpie_outcome cli_call(struct cli *cli, const char *method, const char *path,
                        struct klp_json *body, struct klp_json **out, struct kelpie_error **err)
{
    return cli_call_at(cli, NULL, method, path, NULL, body, out, NULL, err);
}
