/* SPDX-License-Identifier: Apache-2.0 */
/* The same request for each of a verb's words: one document, one failure. */
#include <string.h>

#include "base/fmt.h"
#include "cli/cli.h"

/* One of one is itself. Of several: PARTIAL when some went well, else the first one's class; all
 * are reasons. */
static kelpie_outcome several_fail(size_t failed, size_t count, struct kelpie_error *const *errors,
                                   struct kelpie_error **err)
{
    enum kelpie_code code = failed < count ? KELPIE_E_PARTIAL : kelpie_error_code(errors[0]);
    KLP_IGNORE(klp_fail(err, code, "%zu of %zu failed", failed, count));
    for (size_t i = 0; i < failed; i++)
        klp_error_reason_add(err, "%s", kelpie_error_message(errors[i]));
    return (kelpie_outcome){KELPIE_FAIL};
}

kelpie_outcome cli_on_each(struct cli *cli, const char *key, bool says_names, cli_each *act,
                           const void *arg, struct kelpie_error **err)
{
    const struct cli_args *args = &cli->args;
    struct klp_json *items = klp_json_array();
    struct kelpie_error **errors = klp_mem_alloc((args->word_count + 1) * sizeof(errors[0]));
    size_t failed = 0;
    kelpie_outcome outcome = KLP_OK;
    for (size_t i = 0; i < args->word_count; i++) {
        KLP_AUTO(json) struct klp_json *document = NULL;
        outcome = act(cli, args->words[i], arg, &document, &errors[failed]);
        if (!kelpie_is_ok(outcome)) {
            failed++;
            continue;
        }
        const struct klp_json *item = cli_first(document, key);
        if (item != NULL)
            klp_json_append(items, klp_json_copy(item));
        if (!args->json && says_names)
            KLP_IGNORE(cli_print_format(NULL, "%s\n", args->words[i]));
    }
    KLP_AUTO(json) struct klp_json *document = klp_rest_document(key, items);
    if (failed == 1 && args->word_count == 1)
        klp_error_move(err, &errors[0]);
    else if (failed > 0)
        outcome = several_fail(failed, args->word_count, errors, err);
    for (size_t i = 0; i < failed; i++)
        klp_error_clear(&errors[i]);
    klp_mem_free(errors);
    if (failed > 0)
        return outcome;
    if (args->json || !says_names)
        KLP_REQUIRE(cli_print_json(document, err));
    return KLP_OK;
}

struct request {
    const char *kind, *method, *query;
};

static kelpie_outcome request_one(struct cli *cli, const char *name, const void *arg,
                                  struct klp_json **out, struct kelpie_error **err)
{
    const struct request *request = arg;
    char *path;
    KLP_REQUIRE(cli_path(request->kind, name, NULL, &path, err));
    char *whole = klp_text("%s%s", path, request->query);
    kelpie_outcome outcome = cli_call(cli, request->method, whole, NULL, out, err);
    klp_mem_free(path);
    klp_mem_free(whole);
    return outcome;
}

kelpie_outcome cli_inspect_each(struct cli *cli, const char *kind, const char *query,
                                struct kelpie_error **err)
{
    const struct request request = {kind, "GET", query};
    return cli_on_each(cli, kind, false, request_one, &request, err);
}

kelpie_outcome cli_remove_each(struct cli *cli, const char *kind, const char *query,
                               struct kelpie_error **err)
{
    const struct request request = {kind, "DELETE", query};
    return cli_on_each(cli, kind, true, request_one, &request, err);
}
