/* SPDX-License-Identifier: Apache-2.0 */
/* run and create. Foreground and unnamed = removed at its end, also when it is interrupted. */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/fmt.h"
#include "cli/cli.h"

static bool name_set(char *out, size_t size, const char *kind, const char *text,
                     struct kelpie_error **err)
{
    if (text == NULL)
        return true;
    KLP_CHECK(klp_name_check(kind, text, err));
    klp_text_copy(out, size, text);
    return true;
}

static bool arch_set(const struct cli *cli, enum klp_arch *out, struct kelpie_error **err)
{
    const char *text = cli_flag(cli, "arch");
    if (text == NULL)
        return true;
    *out = klp_arch_parse(text);
    return *out != KLP_ARCH_NONE ||
           klp_refuse(err, KELPIE_E_INVALID, "--arch '%.*s' is neither x86_64 nor aarch64", 40,
                      text);
}

static bool memory_set(const struct cli *cli, uint64_t *out, struct kelpie_error **err)
{
    const char *text = cli_flag(cli, "memory");
    if (text == NULL)
        return true;
    if (!klp_parse_size(text, out, err))
        return klp_wrap_refusal(err, "--memory");
    return *out >= (uint64_t)KLP_MEMORY_MIB_MIN * KLP_MIB ||
           klp_refuse(err, KELPIE_E_INVALID, "--memory %s is less than %dM", text,
                      KLP_MEMORY_MIB_MIN);
}

/* [IMAGE] [-- CMD...] or IMAGE CMD...; lists are borrowed from the arguments, except env. */
static bool request_read(struct cli *cli, struct klp_agent_request *out, struct kelpie_error **err)
{
    const struct cli_args *args = &cli->args;
    uint64_t cpus = 0;
    size_t images = args->dashes_at < args->word_count ? args->dashes_at : args->word_count;
    images = images > 1 ? 1 : images;
    *out = (struct klp_agent_request){.remove_at_end = cli_has(cli, "rm")};
    if (args->dashes_at != CLI_NO_DASHES && args->dashes_at > 1)
        return klp_refuse(err, KELPIE_E_INVALID, "more than an image stands before '--'");
    KLP_CHECK(name_set(out->name, sizeof(out->name), "agent", cli_flag(cli, "name"), err));
    KLP_CHECK(
        name_set(out->image, sizeof(out->image), "image", images ? args->words[0] : NULL, err));
    KLP_CHECK(arch_set(cli, &out->arch, err));
    KLP_CHECK(cli_flag_u64(cli, "cpus", KLP_VCPUS_MAX, &cpus, err));
    KLP_CHECK(memory_set(cli, &out->memory_bytes, err));
    const char *backend = cli_flag(cli, "backend");
    if (backend != NULL && strlen(backend) >= sizeof(out->backend))
        return klp_refuse(err, KELPIE_E_INVALID, "there is no backend '%.*s'", 40, backend);
    if (backend != NULL)
        klp_text_copy(out->backend, sizeof(out->backend), backend);
    out->vcpus = (uint32_t)cpus;
    out->workdir = (char *)(uintptr_t)cli_flag(cli, "workdir");
    out->argv = args->word_count > images ? (char **)(uintptr_t)(args->words + images) : NULL;
    out->env = (char **)(uintptr_t)cli_args_flag_all(args, "env");
    return true;
}

static kelpie_outcome agent_make(struct cli *cli, const struct klp_agent_request *request,
                                 struct klp_json **out, char name[KLP_NAME_SIZE],
                                 struct kelpie_error **err)
{
    KLP_TRY(cli_call(cli, "POST", "/v1/agents", klp_rest_agent_request_encode(request), out, err));
    const char *text = cli_text_of(cli_first(*out, "agents"), "name");
    if (!klp_name_is_valid(text))
        return klp_fail(err, KELPIE_E_PROTOCOL, "the daemon's answer names no agent");
    klp_text_copy(name, KLP_NAME_SIZE, text);
    return KLP_OK;
}

static kelpie_outcome make_and_print(struct cli *cli, const struct klp_agent_request *request,
                                     struct kelpie_error **err)
{
    KLP_AUTO(json) struct klp_json *document = NULL;
    char name[KLP_NAME_SIZE];
    KLP_TRY(agent_make(cli, request, &document, name, err));
    if (cli->args.json)
        KLP_REQUIRE(cli_print_json(document, err));
    else
        KLP_REQUIRE(cli_print_format(err, "%s\n", name));
    return KLP_OK;
}

kelpie_outcome verb_create(struct cli *cli, struct kelpie_error **err)
{
    struct klp_agent_request request;
    KLP_REQUIRE(request_read(cli, &request, err));
    kelpie_outcome outcome = make_and_print(cli, &request, err);
    klp_mem_free(request.env);
    return outcome;
}

/* ---- in the foreground */

static void agent_remove(struct cli *cli, const char *name)
{
    struct kelpie_error *error = NULL;
    char *path = klp_text("/v1/agents/%s?force=1", name);
    uint64_t given = cli->args.timeout_ms;
    cli->args.timeout_ms = 0; /* what ran out was the command's */
    if (!kelpie_is_ok(cli_call(cli, "DELETE", path, NULL, NULL, &error)) &&
        kelpie_error_code(error) != KELPIE_E_NOT_FOUND)
        fprintf(stderr, "kelpie: '%s' was not removed: %s\n", name, kelpie_error_message(error));
    cli->args.timeout_ms = given;
    klp_error_clear(&error);
    klp_mem_free(path);
}

/* A shell, or with -i or -t the command, as an exec beside an idle main process; else the command
 * is the main process, and its output is followed. */
static kelpie_outcome foreground(struct cli *cli, const struct klp_agent_request *asked,
                                 struct kelpie_error **err)
{
    static const char *const shell[] = {"/bin/sh", NULL};
    KLP_AUTO(json) struct klp_json *document = NULL;
    struct klp_agent_request request = *asked;
    bool by_exec = asked->argv == NULL || cli_has(cli, "interactive") || cli_has(cli, "tty");
    char name[KLP_NAME_SIZE];
    sigset_t held, before;
    if (by_exec)
        request.argv = NULL;
    request.remove_at_end = false; /* this command removes it, once it has the last output */
    sigemptyset(&held);
    sigaddset(&held, SIGINT);
    sigaddset(&held, SIGTERM);
    sigaddset(&held, SIGHUP);
    /* From here on an interrupt is seen by the stream, so that nothing stays behind. */
    sigprocmask(SIG_BLOCK, &held, &before);
    kelpie_outcome outcome = agent_make(cli, &request, &document, name, err);
    if (kelpie_is_ok(outcome)) {
        struct cli_exec exec = {.agent = name,
                                .argv =
                                    asked->argv != NULL ? (const char *const *)asked->argv : shell,
                                .env = (const char *const *)asked->env,
                                .workdir = asked->workdir,
                                .tty_wanted = cli_has(cli, "tty")};
        outcome = by_exec ? cli_exec_stream(cli, &exec, err)
                          : cli_logs_follow(cli, name, false, true, err);
        if (asked->name[0] == 0 || asked->remove_at_end)
            agent_remove(cli, name);
    }
    sigprocmask(SIG_SETMASK, &before, NULL);
    return outcome;
}

kelpie_outcome verb_run(struct cli *cli, struct kelpie_error **err)
{
    struct klp_agent_request request;
    KLP_REQUIRE(request_read(cli, &request, err));
    request.start = true;
    kelpie_outcome outcome = cli_has(cli, "detach") ? make_and_print(cli, &request, err)
                                                    : foreground(cli, &request, err);
    klp_mem_free(request.env);
    return outcome;
}
