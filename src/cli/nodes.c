/* SPDX-License-Identifier: Apache-2.0 */
/* node ls and inspect, events, doctor, version. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fmt.h"
#include "cli/cli.h"
#include "env/posix/posix.h"

#define EVENTS_WAIT_MS 20000
#define DOCTOR_MAX KLP_MIB

/* ---- nodes */

kelpie_outcome verb_node_ls(struct cli *cli, struct kelpie_error **err)
{
    static const struct cli_column columns[] = {
        {"NAME", "name", CLI_TEXT},         {"STATE", "state", CLI_TEXT},
        {"ARCHS", "archs", CLI_LIST},       {"BACKENDS", "backends", CLI_LIST},
        {"ENDPOINT", "endpoint", CLI_TEXT},
    };
    KLP_AUTO(json) struct klp_json *document = NULL;
    KLP_TRY(cli_call(cli, "GET", "/v1/nodes", NULL, &document, err));
    KLP_REQUIRE(cli_print_list(cli, document, "nodes", columns, KLP_COUNT(columns), err));
    return KLP_OK;
}

/* The daemon lists nodes only: one is taken from the list. */
static kelpie_outcome node_one(struct cli *cli, const char *name, const void *arg,
                               struct klp_json **out, struct kelpie_error **err)
{
    const struct klp_json *nodes = klp_rest_items(arg, "nodes");
    (void)cli;
    KLP_REQUIRE(klp_name_check("node", name, err));
    for (size_t i = 0; nodes != NULL && i < klp_json_count(nodes); i++) {
        if (strcmp(cli_text_of(klp_json_at(nodes, i), "name"), name) != 0)
            continue;
        struct klp_json *items = klp_json_array();
        klp_json_append(items, klp_json_copy(klp_json_at(nodes, i)));
        *out = klp_rest_document("nodes", items);
        return KLP_OK;
    }
    kelpie_outcome outcome = klp_fail(err, KELPIE_E_NOT_FOUND, "there is no node '%s'", name);
    klp_error_remedy_set(err, "kelpie node ls");
    return outcome;
}

kelpie_outcome verb_node_inspect(struct cli *cli, struct kelpie_error **err)
{
    KLP_AUTO(json) struct klp_json *all = NULL;
    KLP_TRY(cli_call(cli, "GET", "/v1/nodes", NULL, &all, err));
    return cli_on_each(cli, "nodes", false, node_one, all, err);
}

/* ---- events */

static bool event_print(const struct cli *cli, const struct klp_json *event,
                        struct kelpie_error **err)
{
    if (cli->args.json)
        return cli_print_json(event, err);
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf text = KLP_BUF_INIT(64 * KLP_KIB);
    klp_buf_append_format(&text, "%s  %s", cli_text_of(event, "time"), cli_text_of(event, "type"));
    if (cli_text_of(event, "agent")[0] != 0)
        klp_buf_append_format(&text, "  %s", cli_text_of(event, "agent"));
    if (cli_text_of(event, "text")[0] != 0)
        klp_buf_append_format(&text, "  %s", cli_text_of(event, "text"));
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf line = KLP_BUF_INIT(256 * KLP_KIB);
    klp_text_escape(&line, text.data, text.size);
    return cli_print_format(err, "%s\n", klp_buf_text(&line));
}

/* One line an event, until interrupted, or until --timeout ran out. */
kelpie_outcome verb_events(struct cli *cli, struct kelpie_error **err)
{
    const char *since_text = cli_flag(cli, "since");
    uint64_t since = 0, wait_ms = cli_has(cli, "no-follow") ? 0 : EVENTS_WAIT_MS;
    uint64_t end_ns =
        cli->args.timeout_ms != 0 ? http_now_ns() + cli->args.timeout_ms * 1000000ull : UINT64_MAX;
    if (since_text != NULL && !klp_parse_u64(since_text, strlen(since_text), &since))
        return klp_fail(err, KELPIE_E_INVALID, "--since '%.*s' is no number", 40, since_text);
    cli->args.timeout_ms = 0; /* it is of the whole, not of one question */
    do {
        KLP_AUTO(json) struct klp_json *document = NULL;
        uint64_t now = http_now_ns();
        if (now >= end_ns)
            return klp_fail(err, KELPIE_E_TIMEOUT, "no more time for events");
        uint64_t left_ms = (end_ns - now) / 1000000 + 1;
        char *path = klp_text("/v1/events?since=%llu&wait_ms=%llu", (unsigned long long)since,
                              (unsigned long long)(left_ms < wait_ms ? left_ms : wait_ms));
        kelpie_outcome outcome = cli_call(cli, "GET", path, NULL, &document, err);
        klp_mem_free(path);
        KLP_TRY(outcome);
        const struct klp_json *events = klp_rest_items(document, "events");
        for (size_t i = 0; events != NULL && i < klp_json_count(events); i++) {
            const struct klp_json *event = klp_json_at(events, i);
            KLP_REQUIRE(event_print(cli, event, err));
            KLP_REQUIRE(klp_json_get_u64(event, "seq", KLP_JSON_OPTIONAL, &since, err));
        }
    } while (wait_ms > 0);
    return KLP_OK;
}

/* ---- doctor */

/* Without a daemon the program itself is asked: what keeps it from starting is what matters then.
 */
kelpie_outcome cli_doctor_here(struct cli *cli, struct klp_json **out, struct kelpie_error **err)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf text = KLP_BUF_INIT(DOCTOR_MAX);
    char *program = cli_program_path("kelpied");
    int ends[2];
    if (program == NULL)
        return klp_fail(err, KELPIE_E_UNREACHABLE,
                        "no daemon answers at '%s', and the program kelpied was not found",
                        cli->host);
    if (pipe(ends) != 0)
        return klp_posix_fail(err, errno, "cannot open a pipe");
    pid_t pid = fork();
    if (pid == 0) {
        dup2(ends[1], STDOUT_FILENO);
        close(ends[0]);
        close(ends[1]);
        execl(program, program, "--doctor", "--state", cli->state, (char *)NULL);
        _exit(127);
    }
    close(ends[1]);
    for (;;) {
        void *place = klp_buf_reserve(&text, 4096);
        ssize_t got = place != NULL ? read(ends[0], place, 4096) : 0;
        if (got > 0)
            klp_buf_grow(&text, (size_t)got);
        else if (got == 0 || errno != EINTR)
            break;
    }
    close(ends[0]);
    if (pid > 0)
        waitpid(pid, NULL, 0);
    klp_mem_free(program);
    if (klp_json_parse(text.data, text.size, KLP_REST_DEPTH_MAX, out, NULL))
        return KLP_OK;
    return klp_fail(err, KELPIE_E_PROTOCOL, "kelpied --doctor did not answer");
}

kelpie_outcome verb_doctor(struct cli *cli, struct kelpie_error **err)
{
    static const struct cli_column columns[] = {
        {"NAME", "name", CLI_TEXT},
        {"STATUS", "status", CLI_TEXT},
        {"DETAIL", "detail", CLI_TEXT},
        {"REMEDY", "remedy", CLI_TEXT},
    };
    KLP_AUTO(json) struct klp_json *document = NULL;
    struct kelpie_error *error = NULL;
    cli->may_start = false;
    kelpie_outcome outcome = cli_call(cli, "GET", "/v1/doctor", NULL, &document, &error);
    if (!kelpie_is_ok(outcome) && !cli->host_given &&
        kelpie_error_code(error) == KELPIE_E_UNREACHABLE) {
        klp_error_clear(&error);
        outcome = cli_doctor_here(cli, &document, &error);
    }
    klp_error_move(err, &error);
    KLP_TRY(outcome);
    KLP_REQUIRE(cli_print_list(cli, document, "checks", columns, KLP_COUNT(columns), err));
    const struct klp_json *checks = klp_rest_items(document, "checks");
    for (size_t i = 0; i < klp_json_count(checks); i++)
        if (strcmp(cli_text_of(klp_json_at(checks, i), "status"), "fail") == 0)
            cli->status = 1;
    return KLP_OK;
}

/* ---- version */

/* A daemon that somebody named must answer; an unnamed one is not started for this. */
kelpie_outcome verb_version(struct cli *cli, struct kelpie_error **err)
{
    KLP_AUTO(json) struct klp_json *index = NULL, *document = klp_json_object();
    struct kelpie_error *error = NULL;
    cli->may_start = false;
    kelpie_outcome outcome = cli_call(cli, "GET", "/v1", NULL, &index, &error);
    if (!kelpie_is_ok(outcome) &&
        (cli->host_given || kelpie_error_code(error) != KELPIE_E_UNREACHABLE)) {
        klp_error_move(err, &error);
        return outcome;
    }
    klp_error_clear(&error);
    klp_json_set_u64(document, "version", KLP_REST_VERSION);
    klp_json_set_text(document, "client", CLI_VERSION);
    klp_json_set_text(document, "daemon", klp_json_text(klp_json_find(index, "release")));
    klp_json_set_text(document, "node", klp_json_text(klp_json_find(index, "node")));
    if (cli->args.json)
        KLP_REQUIRE(cli_print_json(document, err));
    else if (index != NULL)
        KLP_REQUIRE(cli_print_format(err, "client %s\ndaemon %s (node %s)\n", CLI_VERSION,
                                     cli_text_of(index, "release"), cli_text_of(index, "node")));
    else
        KLP_REQUIRE(cli_print_format(err, "client %s\ndaemon -\n", CLI_VERSION));
    return KLP_OK;
}
