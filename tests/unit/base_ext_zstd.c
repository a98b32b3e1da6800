/* SPDX-License-Identifier: Apache-2.0 */
/* zstd frames: round trips, inputs that do not shrink, and every way a stored frame can lie. */
#include "base_kit.h"

#include "base/ext/zstd.h"

#define PLAIN_SIZE 65536

static uint8_t plain[PLAIN_SIZE], stored[PLAIN_SIZE], again[PLAIN_SIZE + 1];

/* Text-like: shrinks well, and not to almost nothing. */
static void plain_fill(void)
{
    uint32_t random = 1;
    for (size_t i = 0; i < PLAIN_SIZE; i++) {
        random = random * 1664525u + 1013904223u;
        plain[i] = (uint8_t)("kelpie "[random >> 29 == 7 ? 0 : random >> 29]);
    }
}

static void noise_fill(void)
{
    uint64_t random = 88172645463325252ull; /* xorshift64 */
    for (size_t i = 0; i < PLAIN_SIZE; i++) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        plain[i] = (uint8_t)random;
    }
}

static void test_base_ext_zstd__round_trip(void **state)
{
    struct klp_zstd *zstd = klp_zstd_create();
    (void)state;
    plain_fill();
    for (size_t size = 1; size <= PLAIN_SIZE; size = size * 3 + 1) {
        size_t written = klp_zstd_compress(zstd, plain, size, stored, sizeof(stored));
        assert_in_range(written, 1, sizeof(stored) - 1);
        memset(again, 0, sizeof(again));
        assert_true(klp_zstd_expand(zstd, stored, written, again, size));
        assert_memory_equal(again, plain, size);
    }
    klp_zstd_destroy(zstd);
    klp_zstd_destroy(NULL);
    assert_int_equal(kit_live, 0);
}

static void test_base_ext_zstd__same_bytes_whatever_went_before(void **state)
{
    static uint8_t other[PLAIN_SIZE];
    struct klp_zstd *fresh = klp_zstd_create(), *used = klp_zstd_create();
    (void)state;
    noise_fill();
    KLP_IGNORE(klp_zstd_compress(used, plain, 30000, other, sizeof(other)));
    KLP_IGNORE(klp_zstd_compress(used, plain, 10, other, 1)); /* a failure on the way */
    plain_fill();
    size_t size = klp_zstd_compress(fresh, plain, PLAIN_SIZE, stored, sizeof(stored));
    assert_int_equal(klp_zstd_compress(used, plain, PLAIN_SIZE, other, sizeof(other)), size);
    assert_memory_equal(stored, other, size);
    klp_zstd_destroy(fresh);
    klp_zstd_destroy(used);
}

static void test_base_ext_zstd__result_is_smaller_than_capacity_or_none(void **state)
{
    struct klp_zstd *zstd = klp_zstd_create();
    (void)state;
    noise_fill();
    assert_int_equal(klp_zstd_compress(zstd, plain, PLAIN_SIZE, stored, PLAIN_SIZE), 0);
    assert_int_equal(klp_zstd_compress(zstd, plain, PLAIN_SIZE, stored, 0), 0);
    /* Equal is not smaller: a frame as large as its capacity is stored plain by the caller. */
    for (size_t plain_size = 1; plain_size <= 60; plain_size++)
        for (size_t capacity = 1; capacity <= plain_size + 20; capacity++) {
            size_t size = klp_zstd_compress(zstd, plain, plain_size, stored, capacity);
            assert_true(size < capacity);
        }
    plain_fill();
    assert_in_range(klp_zstd_compress(zstd, plain, 1000, stored, 1000), 1, 999);
    klp_zstd_destroy(zstd);
}

static void test_base_ext_zstd__expand_wants_the_exact_size(void **state)
{
    struct klp_zstd *zstd = klp_zstd_create();
    (void)state;
    plain_fill();
    size_t size = klp_zstd_compress(zstd, plain, 4096, stored, sizeof(stored));
    again[4095] = again[4096] = 0x5a;
    assert_false(klp_zstd_expand(zstd, stored, size, again, 4097));
    assert_false(klp_zstd_expand(zstd, stored, size, again, 4095)); /* a bomb has no room */
    assert_int_equal(again[4095], 0x5a);
    assert_false(klp_zstd_expand(zstd, stored, size, again, 0));
    assert_true(klp_zstd_expand(zstd, stored, size, again, 4096));
    assert_int_equal(again[4096], 0x5a);
    klp_zstd_destroy(zstd);
}

static void test_base_ext_zstd__cut_and_lengthened_frames(void **state)
{
    struct klp_zstd *zstd = klp_zstd_create();
    (void)state;
    plain_fill();
    size_t size = klp_zstd_compress(zstd, plain, 2000, stored, sizeof(stored));
    for (size_t cut = 0; cut < size; cut++) {
        uint8_t *exact = malloc(cut + 1); /* a read behind the end is seen */
        memcpy(exact, stored, cut);
        assert_false(klp_zstd_expand(zstd, exact, cut, again, 2000));
        free(exact);
    }
    stored[size] = 0;
    assert_false(klp_zstd_expand(zstd, stored, size + 1, again, 2000));
    assert_true(klp_zstd_expand(zstd, stored, size, again, 2000)); /* and none of it sticks */
    klp_zstd_destroy(zstd);
}

static void test_base_ext_zstd__one_frame_and_nothing_beside(void **state)
{
    /* A skippable frame of no bytes: magic 0x184D2A50, length 0 (RFC 8878, 3.1.2). */
    static const uint8_t skippable[8] = {0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0};
    struct klp_zstd *zstd = klp_zstd_create();
    uint8_t joined[4096];
    (void)state;
    plain_fill();
    size_t size = klp_zstd_compress(zstd, plain, 1000, stored, sizeof(stored));
    assert_in_range(size, 1, 1000);
    memcpy(joined, stored, size);
    memcpy(joined + size, skippable, sizeof(skippable));
    assert_false(klp_zstd_expand(zstd, joined, size + sizeof(skippable), again, 1000));
    memcpy(joined, skippable, sizeof(skippable));
    memcpy(joined + sizeof(skippable), stored, size);
    assert_false(klp_zstd_expand(zstd, joined, size + sizeof(skippable), again, 1000));
    memcpy(joined, stored, size);
    memcpy(joined + size, stored, size);
    assert_false(klp_zstd_expand(zstd, joined, 2 * size, again, 2000));
    klp_zstd_destroy(zstd);
}

static void test_base_ext_zstd__flipped_bits_do_no_harm(void **state)
{
    struct klp_zstd *zstd = klp_zstd_create();
    (void)state;
    plain_fill();
    size_t size = klp_zstd_compress(zstd, plain, 600, stored, sizeof(stored));
    for (size_t bit = 0; bit < size * 8; bit++) {
        stored[bit / 8] ^= (uint8_t)(1u << bit % 8);
        again[600] = 0x5a;
        KLP_IGNORE(klp_zstd_expand(zstd, stored, size, again, 600));
        assert_int_equal(again[600], 0x5a);
        stored[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    assert_true(klp_zstd_expand(zstd, stored, size, again, 600));
    klp_zstd_destroy(zstd);
}

static void test_base_ext_zstd__a_dropped_domain_drops_it(void **state)
{
    (void)state;
    kit_guards = 0;
    struct klp_zstd *zstd = klp_zstd_create();
    size_t size = klp_zstd_compress(zstd, plain, 600, stored, sizeof(stored));
    assert_true(klp_zstd_expand(zstd, stored, size, again, 600));
    assert_int_equal(kit_guards, 1);
    kit_guard.destroy(kit_guard.object);
    assert_int_equal(kit_live, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_base_ext_zstd__round_trip),
        cmocka_unit_test(test_base_ext_zstd__same_bytes_whatever_went_before),
        cmocka_unit_test(test_base_ext_zstd__result_is_smaller_than_capacity_or_none),
        cmocka_unit_test(test_base_ext_zstd__expand_wants_the_exact_size),
        cmocka_unit_test(test_base_ext_zstd__cut_and_lengthened_frames),
        cmocka_unit_test(test_base_ext_zstd__one_frame_and_nothing_beside),
        cmocka_unit_test(test_base_ext_zstd__flipped_bits_do_no_harm),
        cmocka_unit_test(test_base_ext_zstd__a_dropped_domain_drops_it),
    };
    return cmocka_run_group_tests_name("base_ext_zstd", tests, NULL, NULL);
}
