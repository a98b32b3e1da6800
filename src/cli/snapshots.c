/* SPDX-License-Identifier: Apache-2.0 */
/* snapshot create, ls, inspect, rm. restore and fork: operations.c. */
#include <string.h>

#include "base/fmt.h"
#include "cli/cli.h"

static const struct cli_column columns[] = {
    {"NAME", "name", CLI_TEXT},          {"ID", "id", CLI_TEXT},
    {"AGENT", "agent", CLI_TEXT},        {"KIND", "kind", CLI_TEXT},
    {"ARCH", "arch", CLI_TEXT},          {"BACKEND", "backend", CLI_TEXT},
    {"MEM", "memory_bytes", CLI_SIZE},   {"STORED", "stored_bytes", CLI_SIZE},
    {"CREATED", "created_at", CLI_TEXT},
};

kelpie_outcome verb_snapshot_create(struct cli *cli, struct kelpie_error **err)
{
    KLP_AUTO(json) struct klp_json *document = NULL;
    struct klp_action_request action = {.timeout_ms = cli->args.timeout_ms};
    const char *name = cli_flag(cli, "name"), *kind = cli_flag(cli, "kind");
    char *path;
    if (name != NULL) {
        KLP_REQUIRE(klp_name_check("snapshot", name, err));
        klp_text_copy(action.name, sizeof(action.name), name);
    }
    if (kind != NULL) {
        action.kind = klp_kind_parse(kind);
        if (action.kind == KLP_KIND_NONE || action.kind == KLP_KIND_TEMPLATE)
            return klp_fail(err, KELPIE_E_INVALID,
                            "--kind '%.*s' is none of suspend, teleport, checkpoint", 40, kind);
    }
    KLP_REQUIRE(cli_path("agents", cli->args.words[0], "snapshots", &path, err));
    kelpie_outcome outcome =
        cli_call(cli, "POST", path, klp_rest_action_encode(&action), &document, err);
    klp_mem_free(path);
    KLP_TRY(outcome);
    const struct klp_json *snapshot = cli_first(document, "snapshots");
    const char *given = cli_text_of(snapshot, "name");
    if (cli->args.json)
        KLP_REQUIRE(cli_print_json(document, err));
    else
        KLP_REQUIRE(
            cli_print_format(err, "%s\n", given[0] != 0 ? given : cli_text_of(snapshot, "id")));
    return KLP_OK;
}

kelpie_outcome verb_snapshot_ls(struct cli *cli, struct kelpie_error **err)
{
    KLP_AUTO(json) struct klp_json *document = NULL;
    KLP_TRY(cli_call(cli, "GET", "/v1/snapshots", NULL, &document, err));
    KLP_REQUIRE(cli_print_list(cli, document, "snapshots", columns, KLP_COUNT(columns), err));
    return KLP_OK;
}

kelpie_outcome verb_snapshot_inspect(struct cli *cli, struct kelpie_error **err)
{
    return cli_inspect_each(cli, "snapshots", "", err);
}

kelpie_outcome verb_snapshot_rm(struct cli *cli, struct kelpie_error **err)
{
    return cli_remove_each(cli, "snapshots", cli_has(cli, "force") ? "?force=1" : "", err);
}
