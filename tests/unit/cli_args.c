/* SPDX-License-Identifier: Apache-2.0 */
/* How `kelpie` reads its arguments, by a table of its own: verbs and groups, flags between words,
 * where a command begins, and every refusal with the help it points to. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "cli/args.c"

static kelpie_outcome nothing(struct cli *cli, struct kelpie_error **err)
{
    (void)cli;
    (void)err;
    return KLP_OK;
}

static const struct cli_flag exec_flags[] = {
    {'i', "interactive", NULL, "x"}, {'t', "tty", NULL, "x"}, {'e', "env", "K=V", "x"},
    {'c', "count", "N", "x"},        {0, "name", "A", "x"},   {0, NULL, NULL, NULL}};
static const struct cli_verb verbs[] = {
    {.name = "exec",
     .words = "A CMD...",
     .summary = "x",
     .flags = exec_flags,
     .words_min = 2,
     .words_max = 100,
     .command_after = 1,
     .run = nothing},
    {.name = "run",
     .words = "[IMAGE] [-- CMD...]",
     .summary = "x",
     .flags = exec_flags,
     .words_max = 100,
     .command_after = 1,
     .run = nothing},
    {.name = "ps", .words = "", .summary = "x", .run = nothing},
    {.name = "rm", .words = "A...", .summary = "x", .words_min = 1, .words_max = 3, .run = nothing},
    {.name = "ops ls", .words = "", .summary = "x", .is_default = true, .run = nothing},
    {.name = "ops show",
     .words = "ID",
     .summary = "x",
     .words_min = 1,
     .words_max = 1,
     .run = nothing},
    {.name = "snapshot ls", .words = "", .summary = "x", .run = nothing},
    {.name = "attach", .words_max = 100},
    {.name = NULL},
};

#define PARSE(args, err, ...) parse(args, err, (const char *const[]){"kelpie", __VA_ARGS__, NULL})

static bool parse(struct cli_args *args, struct kelpie_error **err, const char *const *words)
{
    int count = 0;
    while (words[count] != NULL)
        count++;
    return cli_args_parse(verbs, count, (char *const *)(uintptr_t)words, args, err);
}

static void refused(const char *message, const char *remedy, struct cli_args *args,
                    struct kelpie_error *error)
{
    assert_non_null(error);
    assert_int_equal(kelpie_error_code(error), KELPIE_E_INVALID);
    assert_string_equal(kelpie_error_message(error), message);
    assert_string_equal(kelpie_error_remedy(error), remedy);
    kelpie_error_free(error);
    cli_args_finish(args);
}

#define REFUSED(message, remedy, ...)                                                              \
    do {                                                                                           \
        struct cli_args args_;                                                                     \
        struct kelpie_error *error_ = NULL;                                                        \
        assert_false(PARSE(&args_, &error_, __VA_ARGS__));                                         \
        refused(message, remedy, &args_, error_);                                                  \
    } while (0)

static void test_cli_args__a_command_is_passed_on_untouched(void **state)
{
    struct cli_args args;
    (void)state;
    assert_true(PARSE(&args, NULL, "exec", "-it", "a", "-e", "K=V", "ls", "-l", "--json", "--"));
    assert_string_equal(args.verb->name, "exec");
    assert_int_equal(args.word_count, 5);
    assert_string_equal(args.words[0], "a");
    assert_string_equal(args.words[2], "-l");
    assert_string_equal(args.words[3], "--json");
    assert_string_equal(args.words[4], "--");
    assert_null(args.words[5]);
    assert_false(args.json);
    assert_non_null(cli_args_flag(&args, "tty"));
    assert_string_equal(cli_args_flag(&args, "env"), "K=V");
    assert_null(cli_args_flag(&args, "name"));
    cli_args_finish(&args);
}

static void test_cli_args__two_dashes_are_removed_once(void **state)
{
    struct cli_args args;
    (void)state;
    assert_true(PARSE(&args, NULL, "exec", "a", "--", "-x", "--"));
    assert_int_equal(args.word_count, 3);
    assert_int_equal(args.dashes_at, 1);
    assert_string_equal(args.words[1], "-x");
    assert_string_equal(args.words[2], "--");
    cli_args_finish(&args);
    assert_true(PARSE(&args, NULL, "run", "--", "cmd"));
    assert_int_equal(args.dashes_at, 0);
    assert_int_equal(args.word_count, 1);
    cli_args_finish(&args);
    assert_true(PARSE(&args, NULL, "run", "image", "cmd", "-x"));
    assert_int_equal(args.dashes_at, CLI_NO_DASHES);
    assert_int_equal(args.word_count, 3);
    cli_args_finish(&args);
}

static void test_cli_args__global_flags_stand_anywhere(void **state)
{
    struct cli_args args;
    (void)state;
    assert_true(PARSE(&args, NULL, "--json", "rm", "--host=unix:/s", "a", "-q", "b", "--timeout",
                      "1500ms", "-y"));
    assert_true(args.json && args.quiet && args.yes);
    assert_string_equal(args.host, "unix:/s");
    assert_int_equal(args.timeout_ms, 1500);
    assert_int_equal(args.word_count, 2);
    cli_args_finish(&args);
}

static void test_cli_args__values_attached_or_apart(void **state)
{
    struct cli_args args;
    (void)state;
    assert_true(PARSE(&args, NULL, "run", "-c3", "--name=x=y", "-ie", "A=1", "-eB=2", "--env", ""));
    assert_string_equal(cli_args_flag(&args, "count"), "3");
    assert_string_equal(cli_args_flag(&args, "name"), "x=y");
    const char **all = cli_args_flag_all(&args, "env");
    assert_string_equal(all[0], "A=1");
    assert_string_equal(all[1], "B=2");
    assert_string_equal(all[2], "");
    assert_null(all[3]);
    klp_mem_free(all);
    assert_null(cli_args_flag_all(&args, "tty"));
    cli_args_finish(&args);
}

static void test_cli_args__groups_and_their_default(void **state)
{
    struct cli_args args;
    (void)state;
    assert_true(PARSE(&args, NULL, "ops"));
    assert_string_equal(args.verb->name, "ops ls");
    cli_args_finish(&args);
    assert_true(PARSE(&args, NULL, "ops", "-q", "show", "x"));
    assert_string_equal(args.verb->name, "ops show");
    cli_args_finish(&args);
    REFUSED("'snapshot' needs a verb of its own", "kelpie snapshot --help", "snapshot");
    REFUSED("there is no verb 'snapshot tr'", "kelpie snapshot --help", "snapshot", "tr");
    REFUSED("too many arguments, from 'nosuch' on", "kelpie ops ls --help", "ops", "nosuch");
}

static void test_cli_args__help_needs_nothing_else(void **state)
{
    struct cli_args args;
    (void)state;
    assert_true(PARSE(&args, NULL, "exec", "--help"));
    assert_true(args.help);
    assert_string_equal(args.verb->name, "exec");
    cli_args_finish(&args);
    assert_true(PARSE(&args, NULL, "snapshot", "-h"));
    assert_string_equal(args.group, "snapshot");
    cli_args_finish(&args);
    assert_true(PARSE(&args, NULL, "--version"));
    assert_true(args.version);
    cli_args_finish(&args);
}

static void test_cli_args__wrong_use_is_named(void **state)
{
    (void)state;
    REFUSED("a verb is missing", "kelpie --help", "-q");
    REFUSED("there is no verb 'frobnicate'", "kelpie --help", "frobnicate");
    REFUSED("there is no verb 'exce'", "kelpie exec --help", "exce");
    REFUSED("there is no verb 'snapsho'", "kelpie snapshot --help", "snapsho");
    REFUSED("'attach' is reserved and does not work yet", "kelpie --help", "attach", "a");
    REFUSED("there is no flag --bogus", "kelpie ps --help", "ps", "--bogus=1");
    REFUSED("there is no flag -z", "kelpie exec --help", "exec", "-tz", "a");
    REFUSED("--json takes no value", "kelpie ps --help", "ps", "--json=1");
    REFUSED("--name needs A", "kelpie run --help", "run", "--name");
    REFUSED("-c needs N", "kelpie run --help", "run", "-c");
    REFUSED("too few arguments: kelpie exec A CMD...", "kelpie exec --help", "exec", "a");
    REFUSED("too many arguments, from 'x' on", "kelpie ps --help", "ps", "x");
    REFUSED("too many arguments, from 'd' on", "kelpie rm --help", "rm", "a", "b", "c", "d");
    REFUSED("--timeout 0s leaves no time", "kelpie ps --help", "ps", "--timeout", "0s");
}

static void test_cli_args__a_bare_number_is_no_duration(void **state)
{
    struct cli_args args;
    struct kelpie_error *error = NULL;
    (void)state;
    assert_false(PARSE(&args, &error, "ps", "--timeout", "5"));
    assert_int_equal(kelpie_error_code(error), KELPIE_E_INVALID);
    kelpie_error_free(error);
    cli_args_finish(&args);
}

static void test_cli_args__flags_have_a_ceiling(void **state)
{
    static const char *words[2 * CLI_FLAGS_MAX + 8];
    struct cli_args args;
    struct kelpie_error *error = NULL;
    size_t at = 0;
    (void)state;
    words[at++] = "kelpie";
    words[at++] = "run";
    for (size_t i = 0; i <= CLI_FLAGS_MAX; i++)
        words[at++] = "-i";
    assert_false(parse(&args, &error, words));
    assert_string_equal(kelpie_error_message(error), "more than 1100 flags");
    kelpie_error_free(error);
    cli_args_finish(&args);
}

static void test_cli_args__json_is_found_in_wrong_arguments(void **state)
{
    char *const json[] = {(char *)"kelpie", (char *)"--zz", (char *)"--json"};
    char *const behind[] = {(char *)"kelpie", (char *)"exec", (char *)"--", (char *)"--json"};
    (void)state;
    assert_true(cli_args_want_json(3, json));
    assert_false(cli_args_want_json(4, behind));
    assert_false(cli_args_want_json(1, json));
}

static void test_cli_args__files_are_told_by_their_look(void **state)
{
    (void)state;
    assert_true(cli_word_is_file("a/b"));
    assert_true(cli_word_is_file("-"));
    assert_true(cli_word_is_file("x.kelpie"));
    assert_true(cli_word_is_file("x.klp1"));
    assert_false(cli_word_is_file(".klp1"));
    assert_false(cli_word_is_file("web"));
    assert_false(cli_word_is_file("--"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cli_args__a_command_is_passed_on_untouched),
        cmocka_unit_test(test_cli_args__two_dashes_are_removed_once),
        cmocka_unit_test(test_cli_args__global_flags_stand_anywhere),
        cmocka_unit_test(test_cli_args__values_attached_or_apart),
        cmocka_unit_test(test_cli_args__groups_and_their_default),
        cmocka_unit_test(test_cli_args__help_needs_nothing_else),
        cmocka_unit_test(test_cli_args__wrong_use_is_named),
        cmocka_unit_test(test_cli_args__a_bare_number_is_no_duration),
        cmocka_unit_test(test_cli_args__flags_have_a_ceiling),
        cmocka_unit_test(test_cli_args__json_is_found_in_wrong_arguments),
        cmocka_unit_test(test_cli_args__files_are_told_by_their_look),
    };
    return cmocka_run_group_tests_name("cli_args", tests, NULL, NULL);
}
