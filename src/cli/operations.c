/* SPDX-License-Identifier: Apache-2.0 */
/* Verbs that are operations: begun with a key that makes the request repeatable, waited for in
 * steps, cancelled by Ctrl-C. And `ops` over them. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/fmt.h"
#include "cli/cli.h"

#define WAIT_MS 20000
#define WAIT_MS_TERMINAL 500 /* Ctrl-C is looked at between two waits */

static volatile sig_atomic_t interrupted;

static void on_signal(int number)
{
    (void)number;
    interrupted++;
}

static void signals_take(struct sigaction before[2])
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    interrupted = 0;
    sigaction(SIGINT, &action, &before[0]);
    sigaction(SIGTERM, &action, &before[1]);
}

static void signals_return(const struct sigaction before[2])
{
    sigaction(SIGINT, &before[0], NULL);
    sigaction(SIGTERM, &before[1], NULL);
}

static const char *state_of(const struct klp_json *document)
{
    return cli_text_of(cli_first(document, "operations"), "state");
}

static kelpie_outcome cancel_ask(struct cli *cli, const char *endpoint, const char *id)
{
    struct kelpie_error *error = NULL;
    char *path = klp_text("/v1/operations/%s", id);
    kelpie_outcome outcome =
        cli_call_at(cli, endpoint, "DELETE", path, NULL, NULL, NULL, NULL, &error);
    klp_mem_free(path);
    klp_error_clear(&error);
    return outcome;
}

/* Until it ended. The first signal cancels, a second one leaves it to the daemon. */
static kelpie_outcome await(struct cli *cli, const char *endpoint, const char *id,
                            struct klp_json **document, struct kelpie_error **err)
{
    bool cancelled = false;
    while (strcmp(state_of(*document), "running") == 0) {
        if (interrupted > 1)
            return klp_fail(err, KELPIE_E_CANCELLED, "operation %s goes on without this command",
                            id);
        if (interrupted == 1 && !cancelled) {
            cancelled = true;
            fprintf(stderr, "kelpie: cancelling operation %s; once more leaves it to the daemon\n",
                    id);
            KLP_IGNORE(cancel_ask(cli, endpoint, id));
        }
        char *path = klp_text("/v1/operations/%s?wait_ms=%d", id,
                              isatty(STDERR_FILENO) ? WAIT_MS_TERMINAL : WAIT_MS);
        struct klp_json *next = NULL;
        kelpie_outcome outcome =
            cli_call_at(cli, endpoint, "GET", path, NULL, NULL, &next, NULL, err);
        klp_mem_free(path);
        if (!kelpie_is_ok(outcome)) {
            klp_json_free(next);
            return outcome;
        }
        klp_json_free(*document);
        *document = next;
    }
    return KLP_OK;
}

/* What the operation ended in. A failed one keeps its document: some of several may have succeeded.
 */
static kelpie_outcome end_of(const struct klp_json *document, struct kelpie_error **err)
{
    const struct klp_json *operation = cli_first(document, "operations");
    struct klp_operation_info info;
    if (operation == NULL)
        return klp_fail(err, KELPIE_E_PROTOCOL, "the daemon's answer has no operation");
    KLP_REQUIRE(klp_rest_operation_decode(operation, &info, err));
    kelpie_outcome outcome = KLP_OK;
    bool unknown = info.state == KLP_OPERATION_UNKNOWN;
    if (info.error != NULL) {
        unknown = unknown || kelpie_error_code(info.error) == KELPIE_E_OUTCOME_UNKNOWN;
        klp_error_move(err, &info.error);
        outcome = (kelpie_outcome){unknown ? KELPIE_UNKNOWN : KELPIE_FAIL};
    } else if (unknown) {
        outcome = klp_unknown(err, "it is not known how operation %s ended", info.id);
    } else if (info.state != KLP_OPERATION_DONE) {
        outcome = klp_fail(err, KELPIE_E_INTERNAL, "operation %s failed", info.id);
    }
    klp_operation_info_finish(&info);
    return outcome;
}

/* Begins again with the same key when the answer was lost: the same operation comes back. */
static kelpie_outcome begin(struct cli *cli, const char *path,
                            const struct klp_action_request *action, struct klp_json **out,
                            char endpoint[KLP_ENDPOINT_SIZE], struct kelpie_error **err)
{
    char key[KLP_ID_SIZE];
    struct kelpie_error *error = NULL;
    cli_key(key);
    kelpie_outcome outcome = cli_call_at(cli, NULL, "POST", path, key,
                                         klp_rest_action_encode(action), out, endpoint, &error);
    if (kelpie_is_unknown(outcome)) {
        klp_error_clear(&error);
        outcome = cli_call_at(cli, NULL, "POST", path, key, klp_rest_action_encode(action), out,
                              endpoint, &error);
        if (!kelpie_is_ok(outcome)) {
            enum kelpie_code code = kelpie_error_code(error);
            bool still = kelpie_is_unknown(outcome) || code == KELPIE_E_UNREACHABLE;
            if (still) {
                klp_error_clear(&error);
                return klp_unknown(err, "the daemon went away before it said whether it began");
            }
        }
    }
    klp_error_move(err, &error);
    return outcome;
}

kelpie_outcome cli_operate(struct cli *cli, const char *path,
                           const struct klp_action_request *action, struct klp_json **out,
                           struct kelpie_error **err)
{
    char endpoint[KLP_ENDPOINT_SIZE] = "", id[KLP_ID_SIZE];
    struct sigaction before[2];
    KLP_TRY(begin(cli, path, action, out, endpoint, err));
    const char *text = cli_text_of(cli_first(*out, "operations"), "id");
    if (!klp_id_is_valid(text))
        return klp_fail(err, KELPIE_E_PROTOCOL, "the daemon's answer names no operation");
    klp_text_copy(id, sizeof(id), text);
    signals_take(before);
    kelpie_outcome outcome = await(cli, endpoint[0] != 0 ? endpoint : NULL, id, out, err);
    signals_return(before);
    KLP_TRY(outcome);
    outcome = end_of(*out, err);
    return outcome;
}

/* ---- what is shown */

static bool results_print(const struct klp_json *document, struct kelpie_error **err)
{
    const struct klp_json *results = klp_json_find(cli_first(document, "operations"), "results");
    for (size_t i = 0; results != NULL && i < klp_json_count(results); i++) {
        const char *name = klp_json_text(klp_json_at(results, i));
        if (name != NULL)
            KLP_CHECK(cli_print_format(err, "%s\n", name));
    }
    return true;
}

/* Names also of those that were made when some were not. */
static kelpie_outcome operate_and_print(struct cli *cli, const char *path,
                                        const struct klp_action_request *action,
                                        struct kelpie_error **err)
{
    KLP_AUTO(json) struct klp_json *document = NULL;
    kelpie_outcome outcome = cli_operate(cli, path, action, &document, err);
    bool partly = !kelpie_is_ok(outcome) && klp_error_code(err) == KELPIE_E_PARTIAL;
    if (!kelpie_is_ok(outcome) && !partly)
        return outcome;
    bool fine = cli->args.json ? cli_print_json(document, partly ? NULL : err)
                               : results_print(document, partly ? NULL : err);
    return fine || partly ? outcome : (kelpie_outcome){KELPIE_FAIL};
}

static kelpie_outcome operate_on(struct cli *cli, const char *kind, const char *verb,
                                 const struct klp_action_request *action, struct kelpie_error **err)
{
    char *path;
    KLP_REQUIRE(cli_path(kind, cli->args.words[0], verb, &path, err));
    kelpie_outcome outcome = operate_and_print(cli, path, action, err);
    klp_mem_free(path);
    return outcome;
}

static bool name_flag(const struct cli *cli, char out[KLP_NAME_SIZE], struct kelpie_error **err)
{
    const char *name = cli_flag(cli, "name");
    if (name == NULL)
        return true;
    KLP_CHECK(klp_name_check("agent", name, err));
    klp_text_copy(out, KLP_NAME_SIZE, name);
    return true;
}

kelpie_outcome verb_restore(struct cli *cli, struct kelpie_error **err)
{
    struct klp_action_request action = {.claim = cli_has(cli, "claim"),
                                        .timeout_ms = cli->args.timeout_ms};
    KLP_REQUIRE(name_flag(cli, action.name, err));
    if (action.claim && action.name[0] != 0)
        return klp_fail(err, KELPIE_E_INVALID, "--claim keeps the agent's name");
    return operate_on(cli, action.claim ? "agents" : "snapshots", "restore", &action, err);
}

/* An agent of that name comes before a snapshot of it. */
kelpie_outcome verb_fork(struct cli *cli, struct kelpie_error **err)
{
    struct klp_action_request action = {.timeout_ms = cli->args.timeout_ms};
    uint64_t count = 1;
    char *path;
    KLP_REQUIRE(name_flag(cli, action.name, err));
    KLP_REQUIRE(cli_flag_u64(cli, "count", 1024, &count, err));
    action.count = (uint32_t)count;
    KLP_REQUIRE(cli_path("agents", cli->args.words[0], NULL, &path, err));
    struct kelpie_error *error = NULL;
    kelpie_outcome found = cli_call(cli, "GET", path, NULL, NULL, &error);
    bool is_agent = kelpie_is_ok(found) || kelpie_error_code(error) != KELPIE_E_NOT_FOUND;
    klp_mem_free(path);
    klp_error_clear(&error);
    return operate_on(cli, is_agent ? "agents" : "snapshots", "fork", &action, err);
}

static void phases_print(const struct klp_json *document)
{
    const struct klp_json *operation = cli_first(document, "operations"),
                          *phases = klp_json_find(operation, "phases");
    uint64_t pause_us = 0, moved = 0;
    fprintf(stderr, "%-16s %10s %14s\n", "STEP", "MS", "BYTES");
    for (size_t i = 0; phases != NULL && i < klp_json_count(phases); i++) {
        const struct klp_json *phase = klp_json_at(phases, i);
        uint64_t us = 0, bytes = 0;
        KLP_IGNORE(klp_json_get_u64(phase, "us", KLP_JSON_OPTIONAL, &us, NULL));
        KLP_IGNORE(klp_json_get_u64(phase, "bytes", KLP_JSON_OPTIONAL, &bytes, NULL));
        fprintf(stderr, "%-16.40s %6llu.%03llu %14llu\n", cli_text_of(phase, "step"),
                (unsigned long long)(us / 1000), (unsigned long long)(us % 1000),
                (unsigned long long)bytes);
    }
    KLP_IGNORE(klp_json_get_u64(operation, "blackout_us", KLP_JSON_OPTIONAL, &pause_us, NULL));
    KLP_IGNORE(klp_json_get_u64(operation, "bytes_moved", KLP_JSON_OPTIONAL, &moved, NULL));
    fprintf(stderr, "stood still for %llu.%03llu ms, %llu bytes moved\n",
            (unsigned long long)(pause_us / 1000), (unsigned long long)(pause_us % 1000),
            (unsigned long long)moved);
}

kelpie_outcome verb_teleport(struct cli *cli, struct kelpie_error **err)
{
    KLP_AUTO(json) struct klp_json *document = NULL;
    const char *name = cli->args.words[0], *node = cli->args.words[1];
    struct klp_action_request action = {.check = cli_has(cli, "check"),
                                        .checkpoint = cli_has(cli, "checkpoint"),
                                        .timeout_ms = cli->args.timeout_ms};
    char *path;
    KLP_REQUIRE(klp_name_check("node", node, err));
    KLP_REQUIRE(cli_flag_duration(cli, "max-pause", &action.max_pause_ms, err));
    klp_text_copy(action.destination, sizeof(action.destination), node);
    KLP_REQUIRE(cli_path("agents", name, "teleport", &path, err));
    kelpie_outcome outcome = cli_operate(cli, path, &action, &document, err);
    klp_mem_free(path);
    if (!kelpie_is_ok(outcome)) {
        if (klp_error_code(err) == KELPIE_E_INCOMPATIBLE && !action.checkpoint)
            klp_error_remedy_set(err, "kelpie teleport %s %s --checkpoint", name, node);
        return outcome;
    }
    if (cli->args.json)
        KLP_REQUIRE(cli_print_json(document, err));
    else if (action.check)
        cli_say(cli, "kelpie: '%s' can be teleported to '%s'", name, node);
    else if (!cli->args.quiet)
        phases_print(document);
    return KLP_OK;
}

/* ---- ops */

static const struct cli_column operation_columns[] = {
    {"ID", "id", CLI_TEXT},
    {"KIND", "kind", CLI_TEXT},
    {"STATE", "state", CLI_TEXT},
    {"AGENT", "agent", CLI_TEXT},
    {"TO", "destination", CLI_TEXT},
    {"PAUSE-MS", "blackout_ms", CLI_NUMBER},
    {"MOVED", "bytes_moved", CLI_SIZE},
    {"CREATED", "created_at", CLI_TEXT},
};

kelpie_outcome verb_ops_ls(struct cli *cli, struct kelpie_error **err)
{
    KLP_AUTO(json) struct klp_json *document = NULL;
    KLP_TRY(cli_call(cli, "GET", "/v1/operations", NULL, &document, err));
    KLP_REQUIRE(cli_print_list(cli, document, "operations", operation_columns,
                               KLP_COUNT(operation_columns), err));
    return KLP_OK;
}

static kelpie_outcome one(struct cli *cli, const char *method, struct klp_json **out,
                          struct kelpie_error **err)
{
    const char *id = cli->args.words[0];
    if (!klp_id_is_valid(id))
        return klp_fail(err, KELPIE_E_INVALID, "'%.*s' is no operation's id", 40, id);
    char *path = klp_text("/v1/operations/%s", id);
    kelpie_outcome outcome = cli_call(cli, method, path, NULL, out, err);
    klp_mem_free(path);
    return outcome;
}

kelpie_outcome verb_ops_show(struct cli *cli, struct kelpie_error **err)
{
    KLP_AUTO(json) struct klp_json *document = NULL;
    KLP_TRY(one(cli, "GET", &document, err));
    KLP_REQUIRE(cli_print_list(cli, document, "operations", operation_columns,
                               KLP_COUNT(operation_columns), err));
    if (!cli->args.json && !cli->args.quiet)
        phases_print(document);
    return KLP_OK;
}

kelpie_outcome verb_ops_wait(struct cli *cli, struct kelpie_error **err)
{
    KLP_AUTO(json) struct klp_json *document = NULL;
    KLP_TRY(one(cli, "GET", &document, err));
    KLP_TRY(await(cli, NULL, cli->args.words[0], &document, err));
    KLP_TRY(end_of(document, err));
    KLP_REQUIRE(cli_print_list(cli, document, "operations", operation_columns,
                               KLP_COUNT(operation_columns), err));
    return KLP_OK;
}

kelpie_outcome verb_ops_cancel(struct cli *cli, struct kelpie_error **err)
{
    KLP_AUTO(json) struct klp_json *document = NULL;
    KLP_TRY(one(cli, "DELETE", &document, err));
    if (cli->args.json)
        KLP_REQUIRE(cli_print_json(document, err));
    return KLP_OK;
}
