/* SPDX-License-Identifier: Apache-2.0 */
/* `kelpie`: reads the environment and the arguments, runs one verb, says how it ended. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/ext/ext.h"
#include "base/fmt.h"
#include "cli/cli.h"

#define STATUS_OWN_FAILURE 125

extern char **environ;

const char *cli_flag(const struct cli *cli, const char *name)
{
    return cli_args_flag(&cli->args, name);
}

bool cli_has(const struct cli *cli, const char *name)
{
    return cli_flag(cli, name) != NULL;
}

bool cli_flag_u64(const struct cli *cli, const char *name, uint64_t max, uint64_t *out,
                  struct kelpie_error **err)
{
    const char *text = cli_flag(cli, name);
    if (text == NULL)
        return true;
    if (klp_parse_u64(text, strlen(text), out) && *out > 0 && *out <= max)
        return true;
    return klp_refuse(err, KELPIE_E_INVALID, "--%s '%.*s' is not a number from 1 to %llu", name, 40,
                      text, (unsigned long long)max);
}

bool cli_flag_duration(const struct cli *cli, const char *name, uint64_t *out_ms,
                       struct kelpie_error **err)
{
    const char *text = cli_flag(cli, name);
    if (text == NULL || klp_parse_duration(text, out_ms, err))
        return true;
    return klp_wrap_refusal(err, "--%s", name);
}

/* ---- the end */

static int status_of(const struct kelpie_error *error, bool passes_status)
{
    enum kelpie_code code = kelpie_error_code(error);
    int status = kelpie_code_exit(code);
    bool kept = status == 2 || code == KELPIE_E_TIMEOUT || code == KELPIE_E_NO_COMMAND ||
                code == KELPIE_E_NOT_EXECUTABLE || code == KELPIE_E_CANCELLED;
    return passes_status && !kept ? STATUS_OWN_FAILURE : status;
}

static void line_print(const char *before, const char *text)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf line = KLP_BUF_INIT(64 * KLP_KIB);
    klp_text_escape(&line, text, strlen(text));
    fprintf(stderr, "%s%s\n", before, klp_buf_text(&line));
}

int cli_complain(const struct kelpie_error *error, bool json, bool passes_status)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf text = KLP_BUF_INIT(256 * KLP_KIB);
    int status = status_of(error, passes_status);
    if (json) {
        klp_rest_error_line(error, status, &text);
        fprintf(stderr, "%s\n", klp_buf_text(&text));
        return status;
    }
    klp_rest_error_text(error, &text);
    line_print("kelpie: ", klp_buf_text(&text));
    for (size_t i = 0; i < kelpie_error_reason_count(error); i++)
        line_print("  ", kelpie_error_reason(error, i));
    if (kelpie_error_remedy(error)[0] != 0)
        line_print("Try: ", kelpie_error_remedy(error));
    return status;
}

/* ---- the environment */

static bool environment_check(struct kelpie_error **err)
{
    static const char *const known[] = {
        "KELPIE_HOST", "KELPIE_STATE",      "KELPIE_POINT",   "KELPIE_DEBUG",
        "KELPIE_BIN",  "KELPIE_MOCK_FAULT", "KELPIE_LIBEXEC",
    };
    for (char **entry = environ; *entry != NULL; entry++) {
        size_t size = strcspn(*entry, "="), i = 0;
        if (strncmp(*entry, "KELPIE_", 7) != 0)
            continue;
        while (i < KLP_COUNT(known) &&
               (strlen(known[i]) != size || memcmp(known[i], *entry, size) != 0))
            i++;
        if (i == KLP_COUNT(known)) {
            KLP_IGNORE(klp_refuse(err, KELPIE_E_INVALID, "unknown environment variable %.*s",
                                  size < 80 ? (int)size : 80, *entry));
            klp_error_remedy_set(err, "unset %.*s", size < 80 ? (int)size : 80, *entry);
            return false;
        }
    }
    return true;
}

static const char *environment_text(const char *name)
{
    const char *text = getenv(name);
    return text != NULL && text[0] != 0 ? text : NULL;
}

static bool state_find(struct cli *cli, struct kelpie_error **err)
{
    const char *state = environment_text("KELPIE_STATE"), *xdg = environment_text("XDG_STATE_HOME"),
               *home = environment_text("HOME");
    if (state != NULL && state[0] != '/') {
        char folder[KLP_PATH_MAX];
        if (getcwd(folder, sizeof(folder)) == NULL)
            return klp_refuse(err, KELPIE_E_IO, "the working directory is gone");
        cli->state = klp_text("%s/%s", folder, state);
    } else if (state != NULL) {
        cli->state = klp_mem_string(state);
    } else if (xdg != NULL && xdg[0] == '/') {
        cli->state = klp_text("%s/kelpie", xdg);
    } else if (home != NULL) {
        cli->state = klp_text("%s/.local/state/kelpie", home);
    } else {
        return klp_refuse(err, KELPIE_E_INVALID, "neither KELPIE_STATE nor HOME is set");
    }
    return true;
}

static bool host_find(struct cli *cli, struct kelpie_error **err)
{
    const char *given = cli->args.host != NULL ? cli->args.host : environment_text("KELPIE_HOST");
    KLP_CHECK(state_find(cli, err));
    cli->host_given = given != NULL;
    cli->may_start = true;
    cli->host =
        given != NULL ? klp_mem_string(given) : klp_text("unix:%s/kelpied.sock", cli->state);
    return true;
}

/* ---- one verb */

static bool verb_call(struct cli *cli, struct kelpie_error **err)
{
    KLP_CHECK(environment_check(err));
    KLP_CHECK(host_find(cli, err));
    return kelpie_is_ok(cli->args.verb->run(cli, err));
}

static int run(struct cli *cli, int argc, char **argv)
{
    KLP_AUTO(kelpie_error) struct kelpie_error *error = NULL;
    bool fine = cli_args_parse(cli_verbs, argc, argv, &cli->args, &error);
    if (!fine)
        return cli_complain(error, cli_args_want_json(argc, argv), false);
    if (cli->args.help) {
        cli_help(&cli->args);
        return 0;
    }
    if (cli->args.version) {
        printf("kelpie %s\n", CLI_VERSION);
        return 0;
    }
    if (!verb_call(cli, &error)) {
        if (strcmp(kelpie_error_remedy(error), "kelpie --help") == 0)
            klp_error_remedy_set(&error, "kelpie %s --help", cli->args.verb->name);
        return cli_complain(error, cli->args.json,
                            cli->args.verb->passes_status && !cli_has(cli, "detach"));
    }
    return cli->status;
}

int main(int argc, char **argv)
{
    struct cli cli = {.status = 0};
    signal(SIGPIPE, SIG_IGN);
    klp_ext_init();
    int status = run(&cli, argc, argv);
    cli_args_finish(&cli.args);
    klp_mem_free(cli.state);
    klp_mem_free(cli.host);
    if (fflush(stdout) != 0 && status == 0)
        status = 1;
    return status;
}
