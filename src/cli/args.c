/* SPDX-License-Identifier: Apache-2.0 */
/* See args.h. Flags may stand before and between a verb's words, up to "--" or to the word that
 * begins a command. */
#include "cli/args.h"

#include <string.h>

#include "base/fmt.h"

#define VERB_NAME_MAX 64
#define SUGGEST_DISTANCE_MAX 2

const struct cli_flag cli_global_flags[] = {
    {0, "host", "URL",
     "the daemon to speak to: unix:PATH (default: $KELPIE_HOST, else a local one)"},
    {0, "json", NULL, "one JSON document on standard output, errors as a JSON line"},
    {'q', "quiet", NULL, "names only, no progress"},
    {'y', "yes", NULL, "do not ask"},
    {0, "timeout", "DUR", "give up after DUR: 500ms, 30s, 5m (status 124)"},
    {'h', "help", NULL, "this help"},
    {0, NULL, NULL, NULL},
};

struct parser {
    const struct cli_verb *verbs;
    int argc;
    char *const *argv;
    int at;
    struct cli_args *out;
};

/* ---- which verb */

static size_t shorter(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Edit distance, for suggestions; long words are not close to anything. */
static size_t distance(const char *a, const char *b)
{
    size_t row[VERB_NAME_MAX + 1], size = strlen(b);
    if (strlen(a) > VERB_NAME_MAX || size > VERB_NAME_MAX)
        return VERB_NAME_MAX;
    for (size_t j = 0; j <= size; j++)
        row[j] = j;
    for (size_t i = 1; a[i - 1] != 0; i++) {
        size_t corner = row[0];
        row[0] = i;
        for (size_t j = 1; j <= size; j++) {
            size_t above = row[j];
            row[j] = shorter(shorter(row[j], row[j - 1]) + 1, corner + (a[i - 1] != b[j - 1]));
            corner = above;
        }
    }
    return row[size];
}

static bool is_group_of(const char *name, const char *group)
{
    size_t size = strlen(group);
    return strncmp(name, group, size) == 0 && name[size] == ' ';
}

static bool verb_unknown(const struct parser *parser, const char *text, struct kelpie_error **err)
{
    const char *near = NULL;
    size_t best = SUGGEST_DISTANCE_MAX + 1;
    for (const struct cli_verb *verb = parser->verbs; verb->name != NULL; verb++) {
        size_t far = distance(text, verb->name), group = strcspn(verb->name, " ");
        if (verb->name[group] == ' ') { /* a group, by its own name */
            char name[VERB_NAME_MAX];
            klp_format(name, sizeof(name), "%.*s", (int)group, verb->name);
            far = distance(text, name);
        }
        if (verb->summary != NULL && far < best) {
            best = far;
            near = verb->name;
        }
    }
    KLP_IGNORE(klp_refuse(err, KELPIE_E_INVALID, "there is no verb '%.*s'", VERB_NAME_MAX, text));
    if (near != NULL)
        klp_error_remedy_set(err, "kelpie %.*s --help", (int)strcspn(near, " "), near);
    return false;
}

static const struct cli_verb *verb_find(const struct cli_verb *verbs, const char *group,
                                        const char *name)
{
    size_t skip = group != NULL ? strlen(group) + 1 : 0;
    for (const struct cli_verb *verb = verbs; verb->name != NULL; verb++)
        if ((group == NULL || is_group_of(verb->name, group)) &&
            strcmp(verb->name + skip, name) == 0)
            return verb;
    return NULL;
}

static const struct cli_verb *group_default(const struct cli_verb *verbs, const char *group,
                                            bool *out_exists)
{
    *out_exists = false;
    for (const struct cli_verb *verb = verbs; verb->name != NULL; verb++) {
        if (!is_group_of(verb->name, group))
            continue;
        *out_exists = true;
        if (verb->is_default)
            return verb;
    }
    return NULL;
}

/* A word before the verb is complete: the verb, its group, or the second part. *out_used: it was
 * one of them. */
static bool verb_word(struct parser *parser, const char *word, bool *out_used,
                      struct kelpie_error **err)
{
    struct cli_args *out = parser->out;
    bool is_group;
    *out_used = true;
    if (out->group != NULL) {
        const struct cli_verb *verb = verb_find(parser->verbs, out->group, word);
        *out_used = verb != NULL;
        if (verb == NULL)
            verb = group_default(parser->verbs, out->group, &is_group);
        if (verb == NULL)
            return klp_refuse(err, KELPIE_E_INVALID, "there is no verb '%s %.*s'", out->group,
                              VERB_NAME_MAX, word);
        out->verb = verb;
        return true;
    }
    out->verb = verb_find(parser->verbs, NULL, word);
    if (out->verb != NULL)
        return true;
    KLP_IGNORE(group_default(parser->verbs, word, &is_group));
    if (!is_group)
        return verb_unknown(parser, word, err);
    out->group = word;
    return true;
}

/* ---- flags */

static const struct cli_flag *flag_find(const struct cli_flag *flags, char letter, const char *name,
                                        size_t size)
{
    for (; flags != NULL && flags->name != NULL; flags++)
        if (letter != 0 ? flags->letter == letter
                        : strlen(flags->name) == size && memcmp(flags->name, name, size) == 0)
            return flags;
    return NULL;
}

/* A verb's own flags come first: `-n` may mean what it likes. */
static const struct cli_flag *flag_known(const struct parser *parser, char letter, const char *name,
                                         size_t size)
{
    const struct cli_verb *verb = parser->out->verb;
    const struct cli_flag *flag = verb != NULL ? flag_find(verb->flags, letter, name, size) : NULL;
    return flag != NULL ? flag : flag_find(cli_global_flags, letter, name, size);
}

static bool flag_global_set(struct cli_args *out, const struct cli_flag *flag, const char *value,
                            struct kelpie_error **err)
{
    if (strcmp(flag->name, "host") == 0)
        out->host = value;
    else if (strcmp(flag->name, "json") == 0)
        out->json = true;
    else if (strcmp(flag->name, "quiet") == 0)
        out->quiet = true;
    else if (strcmp(flag->name, "yes") == 0)
        out->yes = true;
    else if (strcmp(flag->name, "help") == 0)
        out->help = true;
    else if (!klp_parse_duration(value, &out->timeout_ms, err))
        return klp_wrap_refusal(err, "--timeout");
    else if (out->timeout_ms == 0)
        return klp_refuse(err, KELPIE_E_INVALID, "--timeout %s leaves no time", value);
    return true;
}

static bool flag_set(struct parser *parser, const struct cli_flag *flag, const char *value,
                     struct kelpie_error **err)
{
    struct cli_args *out = parser->out;
    if (flag >= cli_global_flags && flag < cli_global_flags + KLP_COUNT(cli_global_flags))
        return flag_global_set(out, flag, value, err);
    if (out->given_count == CLI_FLAGS_MAX)
        return klp_refuse(err, KELPIE_E_INVALID, "more than %d flags", CLI_FLAGS_MAX);
    out->given[out->given_count++] = (struct cli_given){flag, value};
    return true;
}

static bool flag_value(struct parser *parser, const char *shown, const struct cli_flag *flag,
                       const char *attached, struct kelpie_error **err)
{
    if (flag->value == NULL)
        return attached == NULL ? flag_set(parser, flag, NULL, err)
                                : klp_refuse(err, KELPIE_E_INVALID, "%s takes no value", shown);
    if (attached == NULL && parser->at + 1 >= parser->argc)
        return klp_refuse(err, KELPIE_E_INVALID, "%s needs %s", shown, flag->value);
    return flag_set(parser, flag, attached != NULL ? attached : parser->argv[++parser->at], err);
}

static bool flag_long(struct parser *parser, const char *text, struct kelpie_error **err)
{
    const char *equals = strchr(text, '=');
    size_t size = equals != NULL ? (size_t)(equals - text) : strlen(text);
    const struct cli_flag *flag = flag_known(parser, 0, text + 2, size - 2);
    char shown[VERB_NAME_MAX];
    klp_format(shown, sizeof(shown), "%.*s", (int)shorter(size, VERB_NAME_MAX - 1), text);
    if (flag == NULL)
        return klp_refuse(err, KELPIE_E_INVALID, "there is no flag %s", shown);
    return flag_value(parser, shown, flag, equals != NULL ? equals + 1 : NULL, err);
}

/* -it, -c3, -c 3, -w=/ is a value that begins with '='. */
static bool flag_short(struct parser *parser, const char *text, struct kelpie_error **err)
{
    for (const char *at = text + 1; *at != 0; at++) {
        const struct cli_flag *flag = flag_known(parser, *at, NULL, 0);
        char shown[4] = {'-', *at, 0, 0};
        if (flag == NULL)
            return klp_refuse(err, KELPIE_E_INVALID, "there is no flag %s",
                              (unsigned char)*at < 0x80 ? shown : text);
        if (flag->value != NULL)
            return flag_value(parser, shown, flag, at[1] != 0 ? at + 1 : NULL, err);
        KLP_CHECK(flag_set(parser, flag, NULL, err));
    }
    return true;
}

/* ---- the whole */

static void words_rest(struct parser *parser)
{
    struct cli_args *out = parser->out;
    while (parser->at < parser->argc)
        out->words[out->word_count++] = parser->argv[parser->at++];
}

static bool word_take(struct parser *parser, const char *word, bool *out_done,
                      struct kelpie_error **err)
{
    struct cli_args *out = parser->out;
    if (out->verb == NULL) {
        bool used;
        KLP_CHECK(verb_word(parser, word, &used, err));
        if (used)
            return true;
    }
    if (out->verb->command_after > 0 && out->word_count == out->verb->command_after) {
        words_rest(parser);
        *out_done = true;
        return true;
    }
    out->words[out->word_count++] = word;
    return true;
}

static bool argument_take(struct parser *parser, bool *out_done, struct kelpie_error **err)
{
    const char *text = parser->argv[parser->at];
    struct cli_args *out = parser->out;
    if (strcmp(text, "--") == 0 && out->verb != NULL) {
        out->dashes_at = out->word_count;
        parser->at++;
        words_rest(parser);
        *out_done = true;
        return true;
    }
    if (strcmp(text, "--version") == 0 && out->verb == NULL) {
        out->version = true;
        return true;
    }
    if (text[0] != '-' || text[1] == 0)
        return word_take(parser, text, out_done, err);
    /* A flag of a group's default verb: `kelpie ops -q`. */
    if (out->verb == NULL && out->group != NULL) {
        bool is_group;
        const struct cli_verb *verb = group_default(parser->verbs, out->group, &is_group);
        if (verb != NULL && flag_find(cli_global_flags, text[1] == '-' ? 0 : text[1], text + 2,
                                      strlen(text) - 2) == NULL)
            out->verb = verb;
    }
    return text[1] == '-' ? flag_long(parser, text, err) : flag_short(parser, text, err);
}

static bool verb_complete(struct cli_args *out, const struct cli_verb *verbs,
                          struct kelpie_error **err)
{
    bool is_group;
    if (out->help || out->version)
        return true;
    if (out->verb == NULL && out->group != NULL)
        out->verb = group_default(verbs, out->group, &is_group);
    if (out->verb == NULL)
        return out->group != NULL
                   ? klp_refuse(err, KELPIE_E_INVALID, "'%s' needs a verb of its own", out->group)
                   : klp_refuse(err, KELPIE_E_INVALID, "a verb is missing");
    if (out->verb->summary == NULL)
        return klp_refuse(err, KELPIE_E_INVALID, "'%s' is reserved and does not work yet",
                          out->verb->name);
    if (out->word_count < out->verb->words_min)
        return klp_refuse(err, KELPIE_E_INVALID, "too few arguments: kelpie %s %s", out->verb->name,
                          out->verb->words);
    if (out->word_count > out->verb->words_max)
        return klp_refuse(err, KELPIE_E_INVALID, "too many arguments, from '%.*s' on",
                          VERB_NAME_MAX, out->words[out->verb->words_max]);
    return true;
}

bool cli_args_parse(const struct cli_verb *verbs, int argc, char *const *argv, struct cli_args *out,
                    struct kelpie_error **err)
{
    struct parser parser = {verbs, argc, argv, 1, out};
    size_t room = (size_t)argc + 1;
    bool done = false, fine = true;
    *out = (struct cli_args){.dashes_at = CLI_NO_DASHES};
    out->words = klp_mem_alloc(room * sizeof(out->words[0]));
    out->given = klp_mem_alloc(CLI_FLAGS_MAX * sizeof(out->given[0]));
    for (; fine && !done && parser.at < argc; parser.at++)
        fine = argument_take(&parser, &done, err);
    if (fine && verb_complete(out, verbs, err))
        return true;
    const char *named =
        out->verb != NULL && out->verb->summary != NULL ? out->verb->name : out->group;
    if (err != NULL && *err != NULL && strncmp(kelpie_error_remedy(*err), "kelpie --help", 14) == 0)
        klp_error_remedy_set(err, named != NULL ? "kelpie %s --help" : "kelpie --help%s",
                             named != NULL ? named : "");
    return false;
}

void cli_args_finish(struct cli_args *args)
{
    klp_mem_free(args->words);
    klp_mem_free(args->given);
    *args = (struct cli_args){0};
}

const char *cli_args_flag(const struct cli_args *args, const char *name)
{
    for (size_t i = args->given_count; i-- > 0;)
        if (strcmp(args->given[i].flag->name, name) == 0)
            return args->given[i].value != NULL ? args->given[i].value : "";
    return NULL;
}

const char **cli_args_flag_all(const struct cli_args *args, const char *name)
{
    size_t count = 0;
    const char **values = klp_mem_alloc((args->given_count + 1) * sizeof(values[0]));
    for (size_t i = 0; i < args->given_count; i++)
        if (strcmp(args->given[i].flag->name, name) == 0)
            values[count++] = args->given[i].value;
    if (count > 0)
        return values;
    klp_mem_free(values);
    return NULL;
}

bool cli_args_want_json(int argc, char *const *argv)
{
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (strcmp(argv[i], "--json") == 0)
            return true;
    return false;
}

bool cli_word_is_file(const char *word)
{
    static const char *const ends[] = {".kelpie", ".klp1"};
    size_t size = strlen(word);
    for (size_t i = 0; i < KLP_COUNT(ends); i++)
        if (size > strlen(ends[i]) && strcmp(word + size - strlen(ends[i]), ends[i]) == 0)
            return true;
    return strchr(word, '/') != NULL || strcmp(word, "-") == 0;
}
