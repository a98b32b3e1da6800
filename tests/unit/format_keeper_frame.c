/* SPDX-License-Identifier: Apache-2.0 */
/* Messages between daemon and keeper. */
#include "format_kit.h"

#include "format/keeper_frame.h"

/* The worked example of docs/formats/keeper-frames.md: LEASE of epoch 3 until 20 s after boot. */
#define LEASE_HEX                                                                                  \
    "4b505231 0600 0000 2a00000000000000"                                                          \
    "0500 0000 08000000 0300000000000000"                                                          \
    "0600 0000 08000000 00c817a804000000"

static void example_append(struct klp_buf *out)
{
    struct klp_buf fields KLP_AUTO(buf) = KLP_BUF_INIT(KLP_KEEPER_FRAME_MAX);
    klp_field_append_u64(&fields, KLP_KTAG_EPOCH, 3);
    klp_field_append_u64(&fields, KLP_KTAG_FENCE_AT_NS, 20000000000);
    klp_keeper_frame_append(out, KLP_KEEPER_LEASE, 42, klp_buf_view(&fields));
}

static void test_format_keeper_frame__worked_example(void **state)
{
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(4096);
    struct klp_keeper_frame frame;
    uint64_t number = 0;
    (void)state;
    example_append(&bytes);
    kit_assert_hex(&bytes, LEASE_HEX);
    assert_true(klp_keeper_frame_decode(bytes.data, bytes.size, &frame, NULL));
    assert_int_equal(frame.type, KLP_KEEPER_LEASE);
    assert_int_equal(frame.id, 42);
    assert_true(klp_field_u64(frame.fields, KLP_KTAG_EPOCH, 0, &number, NULL));
    assert_int_equal(number, 3);
    assert_true(klp_field_u64(frame.fields, KLP_KTAG_FENCE_AT_NS, 0, &number, NULL));
    assert_true(number == 20000000000);
}

/* A keeper outlives the daemon that started it: the numbers of its orders must not move. */
static void test_format_keeper_frame__numbers_stay(void **state)
{
    (void)state;
    assert_int_equal(KLP_KEEPER_EXIT, 14);
    assert_int_equal(KLP_KEEPER_AHEAD, 15);
    assert_int_equal(KLP_KEEPER_EVENT, 66);
    assert_int_equal(KLP_KTAG_META, 13);
    assert_int_equal(KLP_KTAG_CLEAN, 21);
}

static void assert_no_frame(const void *bytes, size_t size, const char *piece)
{
    struct klp_keeper_frame frame;
    uint8_t *exact = kit_copy(bytes, size);
    KIT_REFUSED(klp_keeper_frame_decode(exact, size, &frame, &err), false, KELPIE_E_PROTOCOL,
                piece);
    free(exact);
}

static void test_format_keeper_frame__every_cut_is_refused(void **state)
{
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(4096);
    struct klp_keeper_frame frame;
    (void)state;
    example_append(&bytes);
    for (size_t size = 0; size < bytes.size; size++) {
        if (size == 16 || size == 32)
            assert_true(klp_keeper_frame_decode(bytes.data, size, &frame, NULL)); /* whole fields */
        else
            assert_no_frame(bytes.data, size, "keeper frame");
    }
}

static void test_format_keeper_frame__bent_headers(void **state)
{
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(4096);
    (void)state;
    example_append(&bytes);
    bytes.data[3] = '2';
    assert_no_frame(bytes.data, bytes.size, "magic");
    bytes.data[3] = '1';
    bytes.data[7] = 1;
    assert_no_frame(bytes.data, bytes.size, "reserved");
    bytes.data[7] = 0;
    bytes.data[19] = 1;
    assert_no_frame(bytes.data, bytes.size, "type 6");
    bytes.data[19] = 0;
    bytes.data[4] = KLP_KEEPER_EVENT;
    assert_no_frame(bytes.data, bytes.size, "event");
}

static void test_format_keeper_frame__largest(void **state)
{
    struct klp_buf fields KLP_AUTO(buf) = KLP_BUF_INIT(KLP_MIB);
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(KLP_MIB);
    struct klp_keeper_frame frame;
    uint8_t *zeros = calloc(1, KLP_KEEPER_FRAME_MAX);
    (void)state;
    assert_non_null(zeros);
    klp_field_append(&fields, KLP_KTAG_META, zeros, KLP_KEEPER_FRAME_MAX - 16 - 8);
    klp_keeper_frame_append(&bytes, KLP_KEEPER_META, 1, klp_buf_view(&fields));
    assert_int_equal(bytes.size, KLP_KEEPER_FRAME_MAX);
    assert_true(klp_keeper_frame_decode(bytes.data, bytes.size, &frame, NULL));
    klp_buf_append_u8(&bytes, 0);
    assert_no_frame(bytes.data, bytes.size, "65537 bytes");
    klp_buf_clear(&bytes);
    klp_buf_append_u8(&fields, 0);
    klp_keeper_frame_append(&bytes, KLP_KEEPER_META, 1, klp_buf_view(&fields));
    KIT_REFUSED(klp_buf_check(&bytes, "order", &err), false, KELPIE_E_LIMIT, "order");
    free(zeros);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_format_keeper_frame__worked_example),
        cmocka_unit_test(test_format_keeper_frame__numbers_stay),
        cmocka_unit_test(test_format_keeper_frame__every_cut_is_refused),
        cmocka_unit_test(test_format_keeper_frame__bent_headers),
        cmocka_unit_test(test_format_keeper_frame__largest),
    };
    return cmocka_run_group_tests_name("format_keeper_frame", tests, NULL, NULL);
}
