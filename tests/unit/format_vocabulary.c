/* SPDX-License-Identifier: Apache-2.0 */
/* The @ words as every guest parses them, and the contents of keyed pages. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "base/error.h"
#include "format/vocabulary.h"

#define ARGV(...) ((const char *const[]){__VA_ARGS__, NULL})

static struct klp_word parse(const char *const *argv)
{
    struct klp_word word;
    struct kelpie_error *err = NULL;
    if (!klp_word_parse(argv, &word, &err))
        fail_msg("%s", kelpie_error_message(err));
    assert_null(err);
    return word;
}

static void refuse(const char *const *argv, enum kelpie_code code)
{
    struct klp_word word;
    struct kelpie_error *err = NULL;
    assert_false(klp_word_parse(argv, &word, &err));
    assert_int_equal(kelpie_error_code(err), code);
    assert_non_null(strstr(kelpie_error_message(err), argv[0]));
    kelpie_error_free(err);
}

static void test_format_vocabulary__words_without_numbers(void **state)
{
    (void)state;
    assert_int_equal(parse(ARGV("@echo")).kind, KLP_WORD_ECHO);
    assert_int_equal(parse(ARGV("@echo", "a", "", "c")).kind, KLP_WORD_ECHO);
    assert_int_equal(parse(ARGV("@check")).kind, KLP_WORD_CHECK);
    assert_int_equal(parse(ARGV("@count")).kind, KLP_WORD_COUNT);
    assert_int_equal(parse(ARGV("@env")).kind, KLP_WORD_ENV);
    assert_int_equal(parse(ARGV("@pwd")).kind, KLP_WORD_PWD);
    assert_int_equal(parse(ARGV("@crash")).kind, KLP_WORD_CRASH);
    assert_null(parse(ARGV("@cat")).path);
    assert_string_equal(parse(ARGV("@cat", "/etc/x")).path, "/etc/x");
}

static void test_format_vocabulary__numbers(void **state)
{
    (void)state;
    assert_int_equal(parse(ARGV("@exit", "0")).number, 0);
    assert_int_equal(parse(ARGV("@exit", "255")).number, 255);
    assert_int_equal(parse(ARGV("@raise", "9")).number, 9);
    struct klp_word fill = parse(ARGV("@fill", "16", "18446744073709551615"));
    assert_int_equal(fill.number, 16);
    assert_true(fill.seed == UINT64_MAX);
    struct klp_word flood = parse(ARGV("@flood", "1000000"));
    assert_int_equal(flood.number, 1000000);
    assert_false(flood.to_stderr);
    assert_true(parse(ARGV("@flood", "0", "err")).to_stderr);
}

static void test_format_vocabulary__seconds_with_decimals(void **state)
{
    (void)state;
    assert_int_equal(parse(ARGV("@sleep", "0")).number, 0);
    assert_int_equal(parse(ARGV("@sleep", "3")).number, 3000);
    assert_int_equal(parse(ARGV("@sleep", "0.5")).number, 500);
    assert_int_equal(parse(ARGV("@sleep", "1.05")).number, 1050);
    assert_int_equal(parse(ARGV("@sleep", "0.001")).number, 1);
    assert_int_equal(parse(ARGV("@sleep", ".25")).number, 250);
    assert_int_equal(parse(ARGV("@sleep", "86400")).number, 86400000);
}

static void test_format_vocabulary__bad_arguments_are_refused(void **state)
{
    (void)state;
    static const char *const bad[][4] = {
        {"@exit"},
        {"@exit", "256"},
        {"@exit", "-1"},
        {"@exit", "1", "2"},
        {"@exit", ""},
        {"@sleep"},
        {"@sleep", "-1"},
        {"@sleep", "1.2345"},
        {"@sleep", "."},
        {"@sleep", "1.x"},
        {"@sleep", "1e3"},
        {"@sleep", "86401"},
        {"@sleep", "1.2.3"},
        {"@raise", "0"},
        {"@raise", "65"},
        {"@raise", "TERM"},
        {"@fill", "1"},
        {"@fill", "0", "1"},
        {"@fill", "16385", "1"},
        {"@fill", "1", "x"},
        {"@check", "x"},
        {"@count", "1"},
        {"@env", "X"},
        {"@pwd", "X"},
        {"@flood"},
        {"@flood", "1", "ou"},
        {"@flood", "-1"},
        {"@crash", "now"},
        {"@cat", ""},
        {"@cat", "a", "b"},
        {"@fill", "1", "18446744073709551616"},
    };
    for (size_t i = 0; i < KLP_COUNT(bad); i++)
        refuse(bad[i], KELPIE_E_INVALID);
}

static void test_format_vocabulary__unknown_words_are_no_commands(void **state)
{
    (void)state;
    refuse(ARGV("@"), KELPIE_E_NO_COMMAND);
    refuse(ARGV("@Echo"), KELPIE_E_NO_COMMAND);
    refuse(ARGV("@echoo"), KELPIE_E_NO_COMMAND);
}

/* Other guests (the bare-metal one too) hold the same bytes: they are fixed. */
static void test_format_vocabulary__page_contents_are_fixed(void **state)
{
    (void)state;
    static const uint8_t first[8] = {0x2c, 0xd7, 0xc2, 0xad, 0x15, 0xe6, 0xce, 0x01};
    uint8_t page[64], again[64];
    klp_keyed_page(1, 2, 3, page, sizeof(page));
    klp_keyed_page(1, 2, 3, again, sizeof(again));
    assert_memory_equal(page, again, sizeof(page));
    assert_memory_equal(page, first, sizeof(first));
}

static void test_format_vocabulary__pages_differ_by_every_key(void **state)
{
    (void)state;
    uint8_t page[4096], other[4096];
    klp_keyed_page(7, 0, 0, page, sizeof(page));
    static const uint64_t keys[][3] = {{8, 0, 0}, {7, 1, 0}, {7, 0, 1}, {0, 7, 0}, {0, 0, 7}};
    for (size_t i = 0; i < KLP_COUNT(keys); i++) {
        klp_keyed_page(keys[i][0], keys[i][1], keys[i][2], other, sizeof(other));
        assert_memory_not_equal(page, other, sizeof(page));
        assert_memory_not_equal(page, other, 8);
    }
    for (size_t at = 8; at < sizeof(page); at += 8) /* no repeats inside a page either */
        assert_memory_not_equal(page, page + at, 8);
}

static void test_format_vocabulary__check_finds_one_changed_bit(void **state)
{
    (void)state;
    uint8_t page[4096];
    klp_keyed_page(3, 4, 5, page, sizeof(page));
    assert_true(klp_keyed_page_check(3, 4, 5, page, sizeof(page)));
    assert_false(klp_keyed_page_check(3, 4, 6, page, sizeof(page)));
    assert_false(klp_keyed_page_check(3, 5, 5, page, sizeof(page)));
    for (size_t at = 0; at < sizeof(page); at += 1365) {
        page[at] ^= 1;
        assert_false(klp_keyed_page_check(3, 4, 5, page, sizeof(page)));
        page[at] ^= 1;
    }
    page[4095] ^= 0x80;
    assert_false(klp_keyed_page_check(3, 4, 5, page, sizeof(page)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_format_vocabulary__words_without_numbers),
        cmocka_unit_test(test_format_vocabulary__numbers),
        cmocka_unit_test(test_format_vocabulary__seconds_with_decimals),
        cmocka_unit_test(test_format_vocabulary__bad_arguments_are_refused),
        cmocka_unit_test(test_format_vocabulary__unknown_words_are_no_commands),
        cmocka_unit_test(test_format_vocabulary__page_contents_are_fixed),
        cmocka_unit_test(test_format_vocabulary__pages_differ_by_every_key),
        cmocka_unit_test(test_format_vocabulary__check_finds_one_changed_bit),
    };
    return cmocka_run_group_tests_name("format_vocabulary", tests, NULL, NULL);
}
