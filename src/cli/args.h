/* SPDX-License-Identifier: Apache-2.0 */
/* Arguments into a verb, its flags and its words, by one table. No side effects: what a verb does,
 * and what the values mean, is said elsewhere (verbs.c, and each verb's file). */
#ifndef KLP_CLI_ARGS_H
#define KLP_CLI_ARGS_H

#include <stdint.h>

#include "base/error.h"

#define CLI_FLAGS_MAX 1100 /* given at once: KLP_ENV_MAX times -e, and the rest */
#define CLI_NO_DASHES SIZE_MAX

struct cli;

struct cli_flag {
    char letter;       /* 0 = none */
    const char *name;  /* NULL ends a list */
    const char *value; /* what it takes, for help; NULL = a switch */
    const char *help;
};

struct cli_verb {
    const char *name;    /* "exec", "snapshot create"; NULL ends the table */
    const char *words;   /* for help: "A CMD..." */
    const char *summary; /* one line; NULL = reserved: it does not work yet and is in no help */
    const struct cli_flag *flags; /* NULL = none of its own */
    size_t words_min, words_max;
    /* So many words, then the next begins a command that is passed on untouched. 0 = never. */
    size_t command_after;
    bool passes_status; /* the command's own status; Kelpie's failures are 125 */
    bool is_default;    /* of its group: "ops" is "ops ls" */
    kelpie_outcome (*run)(struct cli *cli, struct kelpie_error **err);
};

struct cli_given {
    const struct cli_flag *flag;
    const char *value; /* borrowed from argv; NULL for a switch */
};

struct cli_args {
    const struct cli_verb *verb; /* NULL = no verb: --help or --version alone */
    const char *group;           /* "snapshot" of `kelpie snapshot --help`; NULL */
    bool help, version;
    const char **words; /* owned list of borrowed texts, NULL-terminated */
    size_t word_count;
    size_t dashes_at; /* so many words stood before "--"; CLI_NO_DASHES */
    struct cli_given *given;
    size_t given_count;
    /* global flags */
    const char *host;
    bool json, quiet, yes;
    uint64_t timeout_ms; /* 0 = not given */
};

extern const struct cli_flag cli_global_flags[];

/* INVALID names the argument; the remedy is the help to read. finish also after a failure. */
KELPIE_MUST_USE bool cli_args_parse(const struct cli_verb *verbs, int argc, char *const *argv,
                                    struct cli_args *out, struct kelpie_error **err);
void cli_args_finish(struct cli_args *args);

/* The last value given; NULL when it was not. A switch answers "". */
const char *cli_args_flag(const struct cli_args *args, const char *name);
/* All values of a flag that may stand several times: an owned, NULL-terminated list of borrowed
 * texts; NULL when it was not given. */
const char **cli_args_flag_all(const struct cli_args *args, const char *name);
/* Does --json stand among the arguments, however wrong they are? What follows "--" is not ours. */
bool cli_args_want_json(int argc, char *const *argv);
/* A file by CONTRACT: contains '/', is "-", or ends in .kelpie or .klp1. */
bool cli_word_is_file(const char *word);

#endif
