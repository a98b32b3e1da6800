/* SPDX-License-Identifier: Apache-2.0 */
/* Frames between host and guest agent, and the fields of their bodies. */
#include "format_kit.h"

#include "format/guest_frame.h"

/* The worked example of docs/formats/guest-frames.md: EXEC of "@echo hi" on channel 1. */
#define EXEC_HEX                                                                                   \
    "4b47 01 00 0200 0000 01000000 27000000"                                                       \
    "0700 0000 05000000 406563686f"                                                                \
    "0700 0000 02000000 6869"                                                                      \
    "0a00 0000 08000000 8813000000000000"                                                          \
    "4b47 01 01 4000 0000 01000000 03000000 616263"

static void example_append(struct klp_buf *out)
{
    struct klp_buf body KLP_AUTO(buf) = KLP_BUF_INIT(KLP_FRAME_BODY_MAX);
    klp_field_append_text(&body, KLP_TAG_ARG, "@echo");
    klp_field_append_text(&body, KLP_TAG_ARG, "hi");
    klp_field_append_u64(&body, KLP_TAG_TIMEOUT_MS, 5000);
    klp_guest_frame_append(out, KLP_GUEST_EXEC, 0, 1, klp_buf_view(&body));
    klp_guest_frame_append(out, KLP_GUEST_DATA, KLP_GUEST_FLAG_END, 1,
                           (struct klp_bytes){(const uint8_t *)"abc", 3});
}

/* Numbers on the wire: a change of the enums would break every guest that is out there. */
static void test_format_guest_frame__numbers_stay(void **state)
{
    (void)state;
    assert_int_equal(KLP_GUEST_PING, 17);
    assert_int_equal(KLP_GUEST_CREDIT_GRANT, 65);
    assert_int_equal(KLP_GUEST_MAIN, 134);
    assert_int_equal(KLP_TAG_ARG, 7);
    assert_int_equal(KLP_TAG_TIMEOUT_MS, 10);
    assert_int_equal(KLP_TAG_MAIN_STATE, 32);
    assert_int_equal(KLP_ITEM_HOOKS, 10);
}

static void test_format_guest_frame__worked_example(void **state)
{
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(4096);
    struct klp_guest_frame frame;
    struct klp_field field;
    size_t at = 0;
    (void)state;
    example_append(&bytes);
    kit_assert_hex(&bytes, EXEC_HEX);
    int size = klp_guest_frame_next(bytes.data, bytes.size, &frame, NULL);
    assert_int_equal(size, 16 + 39);
    assert_int_equal(frame.type, KLP_GUEST_EXEC);
    assert_int_equal(frame.channel, 1);
    assert_int_equal(klp_field_next(frame.body, &at, &field, NULL), 1);
    kit_assert_bytes(field.data, "@echo");
    assert_int_equal(klp_field_next(frame.body, &at, &field, NULL), 1);
    kit_assert_bytes(field.data, "hi");
    assert_int_equal(klp_field_next(frame.body, &at, &field, NULL), 1);
    assert_int_equal(field.tag, KLP_TAG_TIMEOUT_MS);
    assert_int_equal(klp_field_next(frame.body, &at, &field, NULL), 0);
    assert_int_equal(
        klp_guest_frame_next(bytes.data + size, bytes.size - (size_t)size, &frame, NULL), 19);
    assert_int_equal(frame.flags, KLP_GUEST_FLAG_END);
    kit_assert_bytes(frame.body, "abc");
}

static void test_format_guest_frame__any_part_of_a_frame_needs_more(void **state)
{
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(4096);
    struct klp_guest_frame frame;
    (void)state;
    example_append(&bytes);
    for (size_t size = 0; size < 55; size++) {
        uint8_t *exact = kit_copy(bytes.data, size);
        struct kelpie_error *err = NULL;
        assert_int_equal(klp_guest_frame_next(exact, size, &frame, &err), 0);
        assert_null(err);
        free(exact);
    }
    assert_int_equal(klp_guest_frame_next(NULL, 0, &frame, NULL), 0);
}

static void assert_no_frame(size_t offset, uint8_t value, size_t size, const char *piece)
{
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(4096);
    struct klp_guest_frame frame;
    example_append(&bytes);
    bytes.data[offset] = value;
    KIT_REFUSED(klp_guest_frame_next(bytes.data, size, &frame, &err), -1, KELPIE_E_PROTOCOL, piece);
}

static void test_format_guest_frame__garbage_is_refused_early(void **state)
{
    (void)state;
    assert_no_frame(0, 'X', 1, "magic");
    assert_no_frame(1, 'X', 2, "magic");
    assert_no_frame(2, 2, 3, "version");
    assert_no_frame(3, 4, 16, "reserved");
    assert_no_frame(6, 1, 16, "reserved");
    assert_no_frame(7, 0x80, 16, "reserved");
    assert_no_frame(14, 2, 16, "131111 bytes");
    assert_no_frame(15, 0xff, 16, "at most 65536");
}

static void test_format_guest_frame__unknown_types_are_the_callers_affair(void **state)
{
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(4096);
    struct klp_guest_frame frame;
    (void)state;
    klp_guest_frame_append(&bytes, 0xffff, 3, UINT32_MAX, (struct klp_bytes){0});
    assert_int_equal(klp_guest_frame_next(bytes.data, bytes.size, &frame, NULL), 16);
    assert_int_equal(frame.type, 0xffff);
    assert_int_equal(frame.channel, UINT32_MAX);
    assert_int_equal(frame.flags, 3);
    assert_int_equal(frame.body.size, 0);
}

static void test_format_guest_frame__largest_body(void **state)
{
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(KLP_MIB);
    struct klp_guest_frame frame;
    uint8_t *body = calloc(1, KLP_FRAME_BODY_MAX + 1);
    (void)state;
    assert_non_null(body);
    klp_guest_frame_append(&bytes, KLP_GUEST_DATA, 0, 1,
                           (struct klp_bytes){body, KLP_FRAME_BODY_MAX});
    assert_int_equal(klp_guest_frame_next(bytes.data, bytes.size, &frame, NULL),
                     16 + KLP_FRAME_BODY_MAX);
    klp_guest_frame_append(&bytes, KLP_GUEST_DATA, 0, 1,
                           (struct klp_bytes){body, KLP_FRAME_BODY_MAX + 1});
    KIT_REFUSED(klp_buf_check(&bytes, "frame", &err), false, KELPIE_E_LIMIT, "frame");
    assert_int_equal(bytes.size, 16 + KLP_FRAME_BODY_MAX);
    klp_buf_clear(&bytes);
    klp_field_append(&bytes, KLP_TAG_ARG, body, (size_t)UINT32_MAX + 1); /* nothing is read of it */
    assert_true(bytes.over_limit);
    free(body);
}

static void test_format_guest_frame__fields_are_found(void **state)
{
    struct klp_buf body KLP_AUTO(buf) = KLP_BUF_INIT(4096);
    struct klp_bytes found;
    uint64_t number = 0;
    (void)state;
    klp_field_append_text(&body, KLP_TAG_ARG, "first");
    klp_field_append_text(&body, KLP_TAG_ARG, "second");
    klp_field_append(&body, KLP_TAG_TTY, NULL, 0);
    klp_field_append_u64(&body, KLP_TAG_ROWS, UINT64_MAX);
    klp_field_append(&body, 0xfff0, "of a later version", 18);
    assert_true(klp_field_find(klp_buf_view(&body), KLP_TAG_ARG, &found));
    kit_assert_bytes(found, "first");
    assert_true(klp_field_find(klp_buf_view(&body), KLP_TAG_TTY, &found));
    assert_int_equal(found.size, 0);
    assert_false(klp_field_find(klp_buf_view(&body), KLP_TAG_COLS, &found));
    assert_true(klp_field_u64(klp_buf_view(&body), KLP_TAG_ROWS, 7, &number, NULL));
    assert_true(number == UINT64_MAX);
    assert_true(klp_field_u64(klp_buf_view(&body), KLP_TAG_COLS, 7, &number, NULL));
    assert_int_equal(number, 7);
    assert_true(klp_field_u64((struct klp_bytes){0}, KLP_TAG_COLS, 8, &number, NULL));
    assert_int_equal(number, 8);
    KIT_REFUSED(klp_field_u64(klp_buf_view(&body), KLP_TAG_TTY, 0, &number, &err), false,
                KELPIE_E_PROTOCOL, "0 bytes");
    klp_field_append_u64(&body, KLP_TAG_ROWS, 1);
    KIT_REFUSED(klp_field_u64(klp_buf_view(&body), KLP_TAG_ROWS, 0, &number, &err), false,
                KELPIE_E_PROTOCOL, "2 times");
}

/* Whatever is cut or bent: never a field beyond the body, and the same answer from all who ask. */
static void test_format_guest_frame__malformed_fields(void **state)
{
    struct klp_buf body KLP_AUTO(buf) = KLP_BUF_INIT(4096);
    struct klp_field field;
    struct klp_bytes found;
    uint64_t number;
    (void)state;
    klp_field_append_text(&body, KLP_TAG_ARG, "whole");
    klp_field_append_text(&body, KLP_TAG_ARG, "cut");
    for (size_t size = 14; size < body.size; size++) {
        uint8_t *exact = kit_copy(body.data, size);
        struct klp_bytes cut = {exact, size};
        size_t at = 0;
        assert_int_equal(klp_field_next(cut, &at, &field, NULL), 1);
        KIT_REFUSED(klp_field_next(cut, &at, &field, &err), -1, KELPIE_E_PROTOCOL, "byte 13");
        assert_false(klp_field_find(cut, KLP_TAG_ARG, &found));
        KIT_REFUSED(klp_field_u64(cut, KLP_TAG_ROWS, 0, &number, &err), false, KELPIE_E_PROTOCOL,
                    "byte 13");
        free(exact);
    }
    size_t at = 0;
    memset(body.data + 4, 0xff, 4);
    KIT_REFUSED(klp_field_next(klp_buf_view(&body), &at, &field, &err), -1, KELPIE_E_PROTOCOL,
                "longer");
    body.data[2] = 1;
    KIT_REFUSED(klp_field_next(klp_buf_view(&body), &at, &field, &err), -1, KELPIE_E_PROTOCOL,
                "reserved");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_format_guest_frame__numbers_stay),
        cmocka_unit_test(test_format_guest_frame__worked_example),
        cmocka_unit_test(test_format_guest_frame__any_part_of_a_frame_needs_more),
        cmocka_unit_test(test_format_guest_frame__garbage_is_refused_early),
        cmocka_unit_test(test_format_guest_frame__unknown_types_are_the_callers_affair),
        cmocka_unit_test(test_format_guest_frame__largest_body),
        cmocka_unit_test(test_format_guest_frame__fields_are_found),
        cmocka_unit_test(test_format_guest_frame__malformed_fields),
    };
    return cmocka_run_group_tests_name("format_guest_frame", tests, NULL, NULL);
}
