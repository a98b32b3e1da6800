/* SPDX-License-Identifier: Apache-2.0 */
/* Verbs over agents that are one request each: lists, states, removal. run and create: run.c. */
#include <signal.h>
#include <string.h>
#include <strings.h>

#include "base/fmt.h"
#include "cli/cli.h"

#define WAIT_STEP_MS 60000

static const struct cli_column agent_columns[] = {
    {"NAME", "name", CLI_TEXT},          {"STATE", "state", CLI_TEXT},
    {"IMAGE", "image", CLI_TEXT},        {"ARCH", "arch", CLI_TEXT},
    {"BACKEND", "backend", CLI_TEXT},    {"NODE", "node", CLI_TEXT},
    {"CPU", "vcpus", CLI_NUMBER},        {"MEM", "memory_bytes", CLI_SIZE},
    {"CREATED", "created_at", CLI_TEXT},
};

static bool state_runs(const char *state)
{
    static const char *const running[] = {"running", "paused", "moving", "starting"};
    for (size_t i = 0; i < KLP_COUNT(running); i++)
        if (strcmp(state, running[i]) == 0)
            return true;
    return false;
}

kelpie_outcome verb_ps(struct cli *cli, struct kelpie_error **err)
{
    KLP_AUTO(json) struct klp_json *all = NULL, *shown = NULL;
    KLP_TRY(cli_call(cli, "GET", "/v1/agents", NULL, &all, err));
    const struct klp_json *items = klp_rest_items(all, "agents");
    if (items == NULL)
        return klp_fail(err, KELPIE_E_PROTOCOL, "the daemon's answer has no 'agents'");
    struct klp_json *kept = klp_json_array();
    for (size_t i = 0; i < klp_json_count(items); i++)
        if (cli_has(cli, "all") || state_runs(cli_text_of(klp_json_at(items, i), "state")))
            klp_json_append(kept, klp_json_copy(klp_json_at(items, i)));
    shown = klp_rest_document("agents", kept);
    KLP_REQUIRE(cli_print_list(cli, shown, "agents", agent_columns, KLP_COUNT(agent_columns), err));
    return KLP_OK;
}

static kelpie_outcome agent_get(struct cli *cli, const char *name, struct klp_json **out,
                                struct kelpie_error **err)
{
    char *path;
    KLP_REQUIRE(cli_path("agents", name, NULL, &path, err));
    kelpie_outcome outcome = cli_call(cli, "GET", path, NULL, out, err);
    klp_mem_free(path);
    return outcome;
}

kelpie_outcome verb_status(struct cli *cli, struct kelpie_error **err)
{
    KLP_AUTO(json) struct klp_json *document = NULL;
    KLP_TRY(agent_get(cli, cli->args.words[0], &document, err));
    const struct klp_json *agent = cli_first(document, "agents");
    if (agent == NULL)
        return klp_fail(err, KELPIE_E_PROTOCOL, "the daemon's answer has no agent");
    if (cli->args.json)
        KLP_REQUIRE(cli_print_json(document, err));
    else if (cli->args.quiet)
        KLP_REQUIRE(cli_print_format(err, "%s\n", cli_text_of(agent, "state")));
    else
        KLP_REQUIRE(cli_print_fields(agent, err));
    return KLP_OK;
}

/* ---- inspect: agents, else snapshots; files by their look */

static kelpie_outcome inspect_one(struct cli *cli, const char *name, struct klp_json *agents,
                                  struct klp_json *snapshots, struct kelpie_error **err)
{
    KLP_AUTO(json) struct klp_json *document = NULL;
    struct kelpie_error *error = NULL, *second = NULL;
    kelpie_outcome outcome = agent_get(cli, name, &document, &error);
    if (kelpie_is_ok(outcome)) {
        const struct klp_json *agent = cli_first(document, "agents");
        if (agent != NULL)
            klp_json_append(agents, klp_json_copy(agent));
        return KLP_OK;
    }
    if (kelpie_error_code(error) == KELPIE_E_NOT_FOUND) {
        char *path = klp_text("/v1/snapshots/%s", name);
        kelpie_outcome found = cli_call(cli, "GET", path, NULL, &document, &second);
        const struct klp_json *snapshot = cli_first(document, "snapshots");
        klp_mem_free(path);
        if (kelpie_is_ok(found) && snapshot != NULL) {
            klp_json_append(snapshots, klp_json_copy(snapshot));
            klp_error_clear(&error);
            return KLP_OK;
        }
        klp_error_clear(&second);
    }
    klp_error_move(err, &error);
    return outcome;
}

kelpie_outcome verb_inspect(struct cli *cli, struct kelpie_error **err)
{
    const struct cli_args *args = &cli->args;
    if (cli_word_is_file(args->words[0])) {
        if (args->word_count > 1)
            return klp_fail(err, KELPIE_E_INVALID, "one file at a time can be inspected");
        return cli_inspect_file(cli, args->words[0], err);
    }
    KLP_AUTO(json) struct klp_json *document = NULL, *snapshots = klp_json_array();
    struct klp_json *agents = klp_json_array();
    kelpie_outcome outcome = KLP_OK;
    for (size_t i = 0; kelpie_is_ok(outcome) && i < args->word_count; i++)
        outcome = inspect_one(cli, args->words[i], agents, snapshots, err);
    bool only_snapshots = klp_json_count(agents) == 0;
    document = klp_rest_document(only_snapshots ? "snapshots" : "agents",
                                 only_snapshots ? KLP_TAKE(&snapshots) : agents);
    if (only_snapshots)
        klp_json_free(agents);
    else if (klp_json_count(snapshots) > 0)
        klp_json_set(document, "snapshots", KLP_TAKE(&snapshots));
    if (kelpie_is_ok(outcome))
        KLP_REQUIRE(cli_print_json(document, err));
    return outcome;
}

/* ---- actions on one or several */

static bool signal_parse(const char *text, int32_t *out, struct kelpie_error **err)
{
    static const struct {
        const char *name;
        int number;
    } names[] = {{"HUP", SIGHUP},   {"INT", SIGINT},    {"QUIT", SIGQUIT}, {"KILL", SIGKILL},
                 {"USR1", SIGUSR1}, {"USR2", SIGUSR2},  {"TERM", SIGTERM}, {"STOP", SIGSTOP},
                 {"CONT", SIGCONT}, {"WINCH", SIGWINCH}};
    uint64_t number;
    if (klp_parse_u64(text, strlen(text), &number) && number > 0 && number <= 64) {
        *out = (int32_t)number;
        return true;
    }
    const char *bare = strncasecmp(text, "SIG", 3) == 0 ? text + 3 : text;
    for (size_t i = 0; i < KLP_COUNT(names); i++) {
        if (strcasecmp(bare, names[i].name) == 0) {
            *out = names[i].number;
            return true;
        }
    }
    return klp_refuse(err, KELPIE_E_INVALID, "there is no signal '%.*s'", 40, text);
}

static kelpie_outcome act_plain(struct cli *cli, const char *name, const void *verb,
                                struct klp_json **out, struct kelpie_error **err)
{
    char *path;
    struct klp_action_request action = {.force = cli_has(cli, "force")};
    const char *number = cli_flag(cli, "signal");
    if (number != NULL)
        KLP_REQUIRE(signal_parse(number, &action.signal, err));
    KLP_REQUIRE(cli_path("agents", name, verb, &path, err));
    kelpie_outcome outcome = cli_call(cli, "POST", path, klp_rest_action_encode(&action), out, err);
    klp_mem_free(path);
    return outcome;
}

static kelpie_outcome act_remove(struct cli *cli, const char *name, const void *verb,
                                 struct klp_json **out, struct kelpie_error **err)
{
    char *path;
    KLP_REQUIRE(cli_path("agents", name, NULL, &path, err));
    char *whole = klp_text("%s%s", path, cli_has(cli, "force") ? "?force=1" : "");
    (void)verb;
    kelpie_outcome outcome = cli_call(cli, "DELETE", whole, NULL, out, err);
    klp_mem_free(path);
    klp_mem_free(whole);
    return outcome;
}

static kelpie_outcome act_suspend(struct cli *cli, const char *name, const void *verb,
                                  struct klp_json **out, struct kelpie_error **err)
{
    char *path;
    struct klp_action_request action = {.timeout_ms = cli->args.timeout_ms};
    KLP_AUTO(json) struct klp_json *operation = NULL;
    KLP_REQUIRE(cli_path("agents", name, verb, &path, err));
    kelpie_outcome outcome = cli_operate(cli, path, &action, &operation, err);
    klp_mem_free(path);
    return kelpie_is_ok(outcome) && cli->args.json ? agent_get(cli, name, out, err) : outcome;
}

kelpie_outcome verb_start(struct cli *cli, struct kelpie_error **err)
{
    return cli_on_each(cli, "agents", true, act_plain, "start", err);
}

kelpie_outcome verb_stop(struct cli *cli, struct kelpie_error **err)
{
    return cli_on_each(cli, "agents", true, act_plain, "stop", err);
}

kelpie_outcome verb_kill(struct cli *cli, struct kelpie_error **err)
{
    return cli_on_each(cli, "agents", true, act_plain, "kill", err);
}

kelpie_outcome verb_pause(struct cli *cli, struct kelpie_error **err)
{
    return cli_on_each(cli, "agents", true, act_plain, "pause", err);
}

kelpie_outcome verb_resume(struct cli *cli, struct kelpie_error **err)
{
    return cli_on_each(cli, "agents", true, act_plain, "resume", err);
}

kelpie_outcome verb_rm(struct cli *cli, struct kelpie_error **err)
{
    return cli_on_each(cli, "agents", true, act_remove, "rm", err);
}

kelpie_outcome verb_suspend(struct cli *cli, struct kelpie_error **err)
{
    return cli_on_each(cli, "agents", true, act_suspend, "suspend", err);
}

/* Asked in steps, so that a wait without --timeout has no end. */
kelpie_outcome verb_wait(struct cli *cli, struct kelpie_error **err)
{
    const char *condition = cli_has(cli, "for") ? cli_flag(cli, "for") : "stopped";
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf path = KLP_BUF_INIT(8 * KLP_KIB);
    KLP_AUTO(json) struct klp_json *document = NULL;
    char *base;
    KLP_REQUIRE(cli_path("agents", cli->args.words[0], "wait", &base, err));
    klp_buf_append_format(&path, "%s?for=", base);
    klp_mem_free(base);
    klp_percent_append(&path, condition);
    if (cli->args.timeout_ms == 0)
        klp_buf_append_format(&path, "&timeout_ms=%d", WAIT_STEP_MS);
    for (;;) {
        struct kelpie_error *error = NULL;
        kelpie_outcome outcome = cli_call(cli, "GET", klp_buf_text(&path), NULL, &document, &error);
        if (kelpie_is_ok(outcome))
            break;
        if (cli->args.timeout_ms != 0 || kelpie_error_code(error) != KELPIE_E_TIMEOUT) {
            klp_error_move(err, &error);
            return outcome;
        }
        klp_error_clear(&error);
    }
    if (cli->args.json)
        KLP_REQUIRE(cli_print_json(document, err));
    else
        KLP_REQUIRE(
            cli_print_format(err, "%s\n", cli_text_of(cli_first(document, "agents"), "state")));
    return KLP_OK;
}
