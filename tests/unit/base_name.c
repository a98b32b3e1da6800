/* SPDX-License-Identifier: Apache-2.0 */
/* Names, ids and digests: every byte at every place, and bounds. */
#include "base_kit.h"

#include "base/name.h"

static bool byte_starts(int byte)
{
    return (byte >= 'a' && byte <= 'z') || (byte >= '0' && byte <= '9');
}

static void test_base_name__every_byte(void **state)
{
    (void)state;
    for (int byte = 1; byte < 256; byte++) {
        char first[] = {(char)byte, 'x', 0}, later[] = {'x', (char)byte, 0};
        assert_int_equal(klp_name_is_valid(first), byte_starts(byte));
        assert_int_equal(klp_name_is_valid(later), byte_starts(byte) || byte == '-');
    }
}

static void test_base_name__bounds(void **state)
{
    char name[KLP_NAME_SIZE + 1];
    (void)state;
    assert_false(klp_name_is_valid(NULL));
    assert_false(klp_name_is_valid(""));
    assert_true(klp_name_is_valid("a"));
    memset(name, 'a', sizeof(name));
    name[KLP_NAME_MAX] = 0;
    assert_true(klp_name_is_valid(name));
    name[KLP_NAME_MAX] = 'a';
    name[KLP_NAME_MAX + 1] = 0;
    assert_false(klp_name_is_valid(name));
}

static void test_base_name__check_names_kind_and_text(void **state)
{
    struct kelpie_error *err = NULL;
    char big[1000];
    (void)state;
    assert_true(klp_name_check("agent", "web-1", &err));
    assert_null(err);
    KIT_REFUSED(klp_name_check("agent", "Web", &err), &err, KELPIE_E_INVALID, "'Web'");
    KIT_REFUSED(klp_name_check("node", "", &err), &err, KELPIE_E_INVALID, "node");
    KIT_REFUSED(klp_name_check("node", NULL, &err), &err, KELPIE_E_INVALID, "node");
    KIT_REFUSED(klp_name_check("node", "a\x1b[2J", &err), &err, KELPIE_E_INVALID, "a\\x1b[2J");
    memset(big, 'Z', sizeof(big));
    big[sizeof(big) - 1] = 0;
    assert_false(klp_name_check("agent", big, &err));
    assert_true(strlen(kelpie_error_message(err)) < 300);
    klp_error_clear(&err);
    assert_int_equal(kit_live, 0);
}

static void test_base_name__ids(void **state)
{
    (void)state;
    assert_true(klp_id_is_valid("0123456789abcdef0123456789abcdef"));
    assert_false(klp_id_is_valid("0123456789ABCDEF0123456789abcdef"));
    assert_false(klp_id_is_valid("0123456789abcdef0123456789abcde"));
    assert_false(klp_id_is_valid("0123456789abcdef0123456789abcdef0"));
    assert_false(klp_id_is_valid(""));
    assert_false(klp_id_is_valid(NULL));
}

static void test_base_name__digests(void **state)
{
    struct klp_digest digest, other;
    char text[KLP_DIGEST_SIZE];
    (void)state;
    memset(&digest, 0, sizeof(digest));
    assert_true(klp_digest_is_zero(&digest));
    digest.bytes[31] = 1;
    assert_false(klp_digest_is_zero(&digest));
    klp_digest_text(&digest, text);
    assert_int_equal(strlen(text), 64);
    assert_string_equal(text + 60, "0001");
    assert_true(klp_digest_parse(text, &other));
    assert_true(klp_digest_equal(&digest, &other));
    other.bytes[0] ^= 1;
    assert_false(klp_digest_equal(&digest, &other));
    text[0] = 'G';
    assert_false(klp_digest_parse(text, &other));
    assert_false(klp_digest_parse("00", &other));
    assert_false(klp_digest_parse(NULL, &other));
}

static void test_base_name__text_copy_fits_or_is_a_bug(void **state)
{
    char out[4] = "###";
    (void)state;
    klp_text_copy(out, sizeof(out), "abc");
    assert_string_equal(out, "abc");
    klp_text_copy(out, sizeof(out), "");
    assert_string_equal(out, "");
    KIT_ASSERT_BUG(klp_text_copy(out, sizeof(out), "abcd"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_base_name__every_byte),
        cmocka_unit_test(test_base_name__bounds),
        cmocka_unit_test(test_base_name__check_names_kind_and_text),
        cmocka_unit_test(test_base_name__ids),
        cmocka_unit_test(test_base_name__digests),
        cmocka_unit_test(test_base_name__text_copy_fits_or_is_a_bug),
    };
    return cmocka_run_group_tests_name("base_name", tests, NULL, NULL);
}
