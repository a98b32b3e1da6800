/* SPDX-License-Identifier: Apache-2.0 */
/* exec, shell, logs: commands in a guest, streamed; with --json in one piece. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/fmt.h"
#include "cli/cli.h"
#include "env/posix/posix.h"

#define STDIN_JSON_MAX                                                                             \
    (700 * KLP_KIB) /* of the one-shot form: it travels in the request's document */
#define FOREVER_MS (7ull * 24 * 3600 * 1000)
#define SETTLE_MS 30000 /* for the daemon, behind the command's own timeout */

kelpie_outcome cli_exec_end(struct cli *cli, const char *agent,
                            const struct klp_exec_result *result, struct kelpie_error **err)
{
    if (result->timed_out)
        return klp_fail(err, KELPIE_E_TIMEOUT, "the command in '%s' took longer than %llums", agent,
                        (unsigned long long)cli->args.timeout_ms);
    cli->status = result->exit_code & 255;
    return KLP_OK;
}

static kelpie_outcome upgrade_open(struct cli *cli, const struct http_request *request,
                                   struct http *http, struct kelpie_error **err)
{
    KLP_TRY(cli_http_open(cli, request, http, err));
    if (http->status == 101)
        return KLP_OK;
    kelpie_outcome outcome = cli_answer_check(http, err);
    if (kelpie_is_ok(outcome))
        outcome = klp_fail(err, KELPIE_E_PROTOCOL, "the daemon did not open a stream: HTTP %d",
                           http->status);
    http_finish(http);
    return outcome;
}

static bool tty_decide(const struct cli *cli, const struct cli_exec *exec)
{
    bool terminals = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO);
    if (exec->tty_refused || exec->no_stdin)
        return false;
    if (exec->tty_wanted && !terminals)
        cli_say(cli, "kelpie: no terminal here: going on without one");
    return terminals;
}

static struct klp_exec_request request_make(struct cli *cli, const struct cli_exec *exec, bool tty)
{
    struct klp_exec_request request = {.argv = (char **)(uintptr_t)exec->argv,
                                       .env = (char **)(uintptr_t)exec->env,
                                       .workdir = (char *)(uintptr_t)exec->workdir,
                                       .timeout_ms = cli->args.timeout_ms,
                                       .tty = tty};
    struct winsize size;
    if (tty && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0) {
        request.rows = size.ws_row;
        request.cols = size.ws_col;
    }
    return request;
}

kelpie_outcome cli_exec_stream(struct cli *cli, const struct cli_exec *exec,
                               struct kelpie_error **err)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(KLP_REST_BODY_MAX);
    bool tty = tty_decide(cli, exec);
    struct klp_exec_request asked = request_make(cli, exec, tty);
    struct klp_json *json = klp_rest_exec_request_encode(&asked);
    char *path;
    klp_json_print(json, &body);
    klp_json_free(json);
    KLP_REQUIRE(klp_buf_check(&body, "the command", err));
    KLP_REQUIRE(cli_path("agents", exec->agent, "exec?timeout_ms=60000", &path, err));
    struct http http;
    struct http_request request = {
        .method = "POST", .path = path, .upgrade = KLP_EXEC_UPGRADE, .body = klp_buf_view(&body)};
    kelpie_outcome outcome = upgrade_open(cli, &request, &http, err);
    klp_mem_free(path);
    KLP_TRY(outcome);
    struct cli_stream stream = {
        .reads_stdin = !exec->no_stdin, .tty = tty, .passes_signals = true, .agent = exec->agent};
    struct klp_exec_result result = {0};
    outcome = cli_stream_run(cli, &http, &stream, &result, err);
    http_finish(&http);
    if (kelpie_is_ok(outcome))
        outcome = cli_exec_end(cli, exec->agent, &result, err);
    klp_exec_result_finish(&result);
    return outcome;
}

/* ---- in one piece */

static bool stdin_all(struct klp_buf *out, struct kelpie_error **err)
{
    *out = KLP_BUF_INIT(STDIN_JSON_MAX);
    for (;;) {
        uint8_t bytes[16 * KLP_KIB];
        ssize_t got = read(STDIN_FILENO, bytes, sizeof(bytes));
        if (got == 0 || (got < 0 && errno == EBADF))
            return klp_buf_check(out, "standard input", err);
        if (got < 0 && errno != EINTR)
            return klp_posix_refuse(err, errno, "cannot read standard input");
        if (got > 0)
            klp_buf_append(out, bytes, (size_t)got);
        if (out->over_limit)
            return klp_refuse(err, KELPIE_E_LIMIT, "with --json standard input is at most %u bytes",
                              STDIN_JSON_MAX);
    }
}

/* The answer is relayed by the daemon we speak to, or says where the owner is. */
static kelpie_outcome exec_once(struct cli *cli, const struct cli_exec *exec,
                                struct kelpie_error **err)
{
    KLP_AUTO(json) struct klp_json *answer = NULL;
    struct klp_exec_request asked = request_make(cli, exec, false);
    struct klp_exec_result result;
    uint64_t wait = cli->args.timeout_ms != 0 ? cli->args.timeout_ms + SETTLE_MS : FOREVER_MS;
    char *path, *whole;
    KLP_REQUIRE(cli_path("agents", exec->agent, "exec", &path, err));
    whole = klp_text("%s?timeout_ms=%llu", path, (unsigned long long)wait);
    klp_mem_free(path);
    kelpie_outcome outcome = KLP_OK;
    if (!exec->no_stdin && !isatty(STDIN_FILENO) && !stdin_all(&asked.stdin_bytes, err))
        outcome = (kelpie_outcome){KELPIE_FAIL};
    if (kelpie_is_ok(outcome)) {
        uint64_t given = cli->args.timeout_ms;
        cli->args.timeout_ms = given != 0 ? wait : 0; /* the guest's own timeout comes first */
        outcome = cli_call(cli, "POST", whole, klp_rest_exec_request_encode(&asked), &answer, err);
        cli->args.timeout_ms = given;
    }
    klp_buf_finish(&asked.stdin_bytes);
    klp_mem_free(whole);
    KLP_TRY(outcome);
    if (answer == NULL)
        return klp_fail(err, KELPIE_E_PROTOCOL, "the daemon's answer is empty");
    KLP_REQUIRE(klp_rest_exec_result_decode(answer, &result, err));
    outcome = cli_exec_end(cli, exec->agent, &result, err);
    klp_exec_result_finish(&result);
    KLP_TRY(outcome);
    klp_json_set_u64(answer, "version", KLP_REST_VERSION);
    KLP_REQUIRE(cli_print_json(answer, err));
    return KLP_OK;
}

static kelpie_outcome exec_verb(struct cli *cli, const char *const *argv, struct kelpie_error **err)
{
    const char **env = cli_args_flag_all(&cli->args, "env");
    struct cli_exec exec = {.agent = cli->args.words[0],
                            .argv = argv,
                            .env = env,
                            .workdir = cli_flag(cli, "workdir"),
                            .tty_wanted = cli_has(cli, "tty"),
                            .tty_refused = cli_has(cli, "no-tty"),
                            .no_stdin = cli_has(cli, "no-stdin")};
    kelpie_outcome outcome =
        cli->args.json ? exec_once(cli, &exec, err) : cli_exec_stream(cli, &exec, err);
    klp_mem_free(env);
    return outcome;
}

kelpie_outcome verb_exec(struct cli *cli, struct kelpie_error **err)
{
    return exec_verb(cli, cli->args.words + 1, err);
}

kelpie_outcome verb_shell(struct cli *cli, struct kelpie_error **err)
{
    static const char *const shell[] = {"/bin/sh", NULL};
    return exec_verb(cli, shell, err);
}

/* ---- logs */

kelpie_outcome cli_logs_follow(struct cli *cli, const char *agent, bool console,
                               bool passes_signals, struct kelpie_error **err)
{
    struct http http;
    char *path;
    KLP_REQUIRE(cli_path("agents", agent, console ? "logs?follow=1&console=1" : "logs?follow=1",
                         &path, err));
    struct http_request request = {.method = "GET", .path = path, .upgrade = KLP_EXEC_UPGRADE};
    kelpie_outcome outcome = upgrade_open(cli, &request, &http, err);
    klp_mem_free(path);
    KLP_TRY(outcome);
    struct cli_stream stream = {.passes_signals = passes_signals, .is_log = true, .agent = agent};
    struct klp_exec_result result = {0};
    outcome = cli_stream_run(cli, &http, &stream, &result, err);
    http_finish(&http);
    if (kelpie_is_ok(outcome))
        cli->status = result.exit_code & 255;
    klp_exec_result_finish(&result);
    return outcome;
}

static kelpie_outcome log_print(struct cli *cli, struct http *http, struct kelpie_error **err)
{
    if (!cli->args.json) {
        uint8_t bytes[32 * KLP_KIB];
        size_t got;
        do {
            KLP_TRY(http_body_read(http, bytes, sizeof(bytes), &got, err));
            KLP_REQUIRE(cli_write(bytes, got, err));
        } while (got > 0);
        return KLP_OK;
    }
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(64 * KLP_MIB);
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf text = KLP_BUF_INIT(96 * KLP_MIB);
    KLP_TRY(http_body_all(http, &body, err));
    klp_base64_append(&text, body.data, body.size);
    KLP_AUTO(json) struct klp_json *document = klp_json_object();
    struct klp_json *log = klp_json_object();
    klp_json_set_u64(document, "version", KLP_REST_VERSION);
    klp_json_set_text(log, "agent", cli->args.words[0]);
    klp_json_set_text(log, "output_base64", klp_buf_text(&text));
    klp_json_set(document, "log", log);
    KLP_REQUIRE(cli_print_json(document, err));
    return KLP_OK;
}

kelpie_outcome verb_logs(struct cli *cli, struct kelpie_error **err)
{
    const char *agent = cli->args.words[0];
    bool console = cli_has(cli, "console");
    struct http http;
    char *path;
    if (cli_has(cli, "follow")) {
        if (cli->args.json)
            return klp_fail(err, KELPIE_E_INVALID, "a log that is followed is no JSON document");
        KLP_TRY(cli_logs_follow(cli, agent, console, false, err));
        cli->status = 0; /* the log ended well, however the process did */
        return KLP_OK;
    }
    KLP_REQUIRE(cli_path("agents", agent, console ? "logs?console=1" : "logs", &path, err));
    struct http_request request = {.method = "GET", .path = path};
    kelpie_outcome outcome = cli_http_open(cli, &request, &http, err);
    klp_mem_free(path);
    KLP_TRY(outcome);
    outcome = cli_answer_check(&http, err);
    if (kelpie_is_ok(outcome))
        outcome = log_print(cli, &http, err);
    http_finish(&http);
    return outcome;
}
