/* SPDX-License-Identifier: Apache-2.0 */
/* SHA-256: the standard's examples, parts, reuse, and what a dropped crash domain leaves. */
#include "base_kit.h"

#include "base/ext/ext.h"
#include "base/ext/sha256.h"

#define ABC "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
#define EMPTY "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

static void digest_is(const struct klp_digest *digest, const char *expected)
{
    char text[KLP_DIGEST_SIZE];
    klp_digest_text(digest, text);
    assert_string_equal(text, expected);
}

static void test_base_ext_sha256__examples(void **state)
{
    struct klp_digest digest;
    (void)state;
    klp_sha256_once("abc", 3, &digest);
    digest_is(&digest, ABC);
    klp_sha256_once("", 0, &digest);
    digest_is(&digest, EMPTY);
    klp_sha256_once("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 56, &digest);
    digest_is(&digest, "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
}

static void test_base_ext_sha256__a_million_letters_in_odd_parts(void **state)
{
    struct klp_sha256 *hash = klp_sha256_create();
    struct klp_digest digest;
    char part[997];
    (void)state;
    memset(part, 'a', sizeof(part));
    for (size_t left = 1000000; left > 0;) {
        size_t size = left < sizeof(part) ? left : sizeof(part);
        klp_sha256_update(hash, part, size);
        left -= size;
    }
    klp_sha256_final(hash, &digest);
    digest_is(&digest, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    klp_sha256_destroy(hash);
    assert_int_equal(kit_live, 0);
}

static void test_base_ext_sha256__is_reset_by_final(void **state)
{
    struct klp_sha256 *hash = klp_sha256_create();
    struct klp_digest digest;
    (void)state;
    for (int round = 0; round < 3; round++) {
        klp_sha256_update(hash, "ab", 2);
        klp_sha256_update(hash, "c", 1);
        klp_sha256_final(hash, &digest);
        digest_is(&digest, ABC);
    }
    klp_sha256_final(hash, &digest);
    digest_is(&digest, EMPTY);
    klp_sha256_destroy(hash);
    klp_sha256_destroy(NULL);
}

/* The leak check of the sanitizer build sees OpenSSL's memory if the destructor does not drop it.
 */
static void test_base_ext_sha256__a_dropped_domain_drops_it(void **state)
{
    (void)state;
    kit_guards = 0;
    struct klp_sha256 *hash = klp_sha256_create();
    klp_sha256_update(hash, "abc", 3);
    assert_int_equal(kit_guards, 1);
    kit_guard.destroy(kit_guard.object);
    assert_int_equal(kit_live, 0);
    hash = klp_sha256_create();
    assert_int_equal(kit_guards, 2);
    klp_sha256_destroy(hash);
    assert_int_equal(kit_guards, 1); /* what is destroyed by hand is not dropped again */
    assert_int_equal(kit_live, 0);
}

int main(void)
{
    klp_ext_init();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_base_ext_sha256__examples),
        cmocka_unit_test(test_base_ext_sha256__a_million_letters_in_odd_parts),
        cmocka_unit_test(test_base_ext_sha256__is_reset_by_final),
        cmocka_unit_test(test_base_ext_sha256__a_dropped_domain_drops_it),
    };
    return cmocka_run_group_tests_name("base_ext_sha256", tests, NULL, NULL);
}
