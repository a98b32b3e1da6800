/* SPDX-License-Identifier: Apache-2.0 */
/* Buffers with a ceiling, failures that stick, and the reader of untrusted bytes. */
#include "base_kit.h"

#include "base/buf.h"

static void assert_bytes(const struct klp_buf *buf, const void *bytes, size_t size)
{
    assert_int_equal(buf->size, size);
    assert_memory_equal(buf->data, bytes, size);
    assert_int_equal(buf->data[size], 0);
}

static void test_base_buf__appends_little_endian(void **state)
{
    struct klp_buf buf = KLP_BUF_INIT(100);
    (void)state;
    klp_buf_append_u8(&buf, 0x01);
    klp_buf_append_u16(&buf, 0x0302);
    klp_buf_append_u32(&buf, 0x07060504);
    klp_buf_append_u64(&buf, 0x0f0e0d0c0b0a0908);
    klp_buf_append_text(&buf, "\x10");
    klp_buf_append(&buf, "\x11\x12", 2);
    klp_buf_append(&buf, NULL, 0);
    assert_bytes(&buf, "\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\x10\x11\x12",
                 18);
    klp_buf_finish(&buf);
    assert_int_equal(kit_live, 0);
}

static void test_base_buf__formats_at_the_end(void **state)
{
    struct klp_buf buf = KLP_BUF_INIT(1000);
    (void)state;
    for (int i = 0; i < 100; i++)
        klp_buf_append_format(&buf, "%d,%s;", i, "x");
    assert_int_equal(buf.size, 10 * 4 + 90 * 5);
    assert_memory_equal(klp_buf_text(&buf) + buf.size - 10, "98,x;99,x;", 11);
    klp_buf_finish(&buf);
}

static void test_base_buf__ceiling_is_exact_and_sticks(void **state)
{
    struct klp_buf buf = KLP_BUF_INIT(4);
    struct kelpie_error *err = NULL;
    (void)state;
    klp_buf_append_text(&buf, "abcd");
    assert_true(klp_buf_check(&buf, "x", &err));
    klp_buf_append(&buf, NULL, 0);
    assert_true(klp_buf_check(&buf, "x", &err));
    klp_buf_append_u8(&buf, 'e');
    assert_true(buf.over_limit);
    assert_string_equal(klp_buf_text(&buf), "abcd");
    assert_null(klp_buf_reserve(&buf, 0));
    klp_buf_append_format(&buf, "%d", 1);
    assert_int_equal(buf.size, 4);
    KIT_REFUSED(klp_buf_check(&buf, "the frame", &err), &err, KELPIE_E_LIMIT, "the frame");
    klp_buf_clear(&buf);
    assert_true(klp_buf_check(&buf, "x", &err));
    assert_string_equal(klp_buf_text(&buf), "");
    klp_buf_append_text(&buf, "fits");
    assert_bytes(&buf, "fits", 4);
    klp_buf_finish(&buf);
    assert_int_equal(buf.size_max, 4); /* usable again */
    klp_buf_append_text(&buf, "again");
    assert_true(buf.over_limit);
    klp_buf_finish(&buf);
    assert_int_equal(kit_live, 0);
}

static void test_base_buf__nothing_fits_a_stopped_buffer(void **state)
{
    struct klp_buf buf = KLP_BUF_INIT(0);
    (void)state;
    klp_buf_append_u8(&buf, 1);
    assert_true(buf.over_limit);
    assert_int_equal(buf.size, 0);
    klp_buf_finish(&buf);
}

static void test_base_buf__sizes_do_not_wrap(void **state)
{
    struct klp_buf buf = KLP_BUF_INIT(SIZE_MAX);
    (void)state;
    klp_buf_append_text(&buf, "abc");
    assert_null(klp_buf_reserve(&buf, SIZE_MAX - 3)); /* with the NUL it would wrap to nothing */
    assert_true(buf.over_limit);
    klp_buf_clear(&buf);
    assert_null(klp_buf_reserve(&buf, SIZE_MAX));
    klp_buf_finish(&buf);
    assert_int_equal(kit_live, 0);
}

static void test_base_buf__no_memory_sticks_and_keeps_the_bytes(void **state)
{
    struct klp_buf buf = KLP_BUF_INIT(1 << 20);
    struct kelpie_error *err = NULL;
    (void)state;
    klp_buf_append_text(&buf, "kept");
    kit_allocations_left = 0;
    assert_null(klp_buf_reserve(&buf, 5000));
    kit_allocations_left = -1;
    klp_buf_append_text(&buf, "not");
    assert_string_equal(klp_buf_text(&buf), "kept");
    KIT_REFUSED(klp_buf_check(&buf, "the list", &err), &err, KELPIE_E_NO_MEMORY, "the list");
    klp_buf_finish(&buf);
    assert_int_equal(kit_live, 0);
}

static void test_base_buf__reserve_and_grow(void **state)
{
    struct klp_buf buf = KLP_BUF_INIT(1000);
    (void)state;
    KIT_ASSERT_BUG(klp_buf_grow(&buf, 1));
    void *room = klp_buf_reserve(&buf, 500);
    assert_non_null(room);
    memset(room, 'z', 500);
    klp_buf_grow(&buf, 200);
    assert_int_equal(buf.size, 200);
    assert_int_equal(buf.data[200], 0);
    KIT_ASSERT_BUG(klp_buf_grow(&buf, 100000));
    klp_buf_finish(&buf);
    assert_non_null(klp_buf_reserve(&buf, 0)); /* NULL means failed, so even nothing is somewhere */
    klp_buf_finish(&buf);
}

static void test_base_buf__drop_front(void **state)
{
    struct klp_buf buf = KLP_BUF_INIT(100);
    (void)state;
    klp_buf_drop_front(&buf, 0);
    klp_buf_append_text(&buf, "hello world");
    klp_buf_drop_front(&buf, 6);
    assert_bytes(&buf, "world", 5);
    klp_buf_drop_front(&buf, 5);
    assert_bytes(&buf, "", 0);
    KIT_ASSERT_BUG(klp_buf_drop_front(&buf, 1));
    klp_buf_finish(&buf);
}

static void test_base_buf__take_text(void **state)
{
    struct klp_buf buf = KLP_BUF_INIT(100);
    (void)state;
    char *text = klp_buf_take_text(&buf);
    assert_string_equal(text, "");
    klp_mem_free(text);
    klp_buf_append_text(&buf, "moved");
    text = klp_buf_take_text(&buf);
    assert_string_equal(text, "moved");
    assert_int_equal(buf.size, 0);
    assert_int_equal(klp_buf_view(&buf).size, 0);
    klp_mem_free(text);
    klp_buf_finish(&buf);
    assert_int_equal(kit_live, 0);
}

static void test_base_buf__reader_reads_and_sticks(void **state)
{
    static const uint8_t bytes[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 255};
    struct klp_reader reader = {bytes, sizeof(bytes), 0, false};
    (void)state;
    assert_int_equal(klp_read_u8(&reader), 1);
    assert_int_equal(klp_read_u16(&reader), 0x0302);
    assert_int_equal(klp_read_u32(&reader), 0x07060504);
    assert_true(klp_read_u64(&reader) == 0x0f0e0d0c0b0a0908);
    assert_int_equal(klp_read_left(&reader), 1);
    assert_int_equal(klp_read_u16(&reader), 0); /* one byte is not two */
    assert_true(reader.failed);
    assert_int_equal(klp_read_left(&reader), 0);
    assert_int_equal(klp_read_u8(&reader), 0); /* though one byte would be there */
    assert_null(klp_read_bytes(&reader, 0));
}

static void test_base_buf__reader_refuses_hostile_lengths(void **state)
{
    static const uint8_t bytes[] = {0xff, 0xff};
    struct klp_reader reader = {bytes, sizeof(bytes), 0, false};
    (void)state;
    assert_int_equal(klp_read_u8(&reader), 255);
    assert_null(klp_read_bytes(&reader, SIZE_MAX));
    assert_true(reader.failed);
    reader = (struct klp_reader){bytes, sizeof(bytes), 0, false};
    assert_ptr_equal(klp_read_bytes(&reader, 2), bytes);
    assert_non_null(klp_read_bytes(&reader, 0));
    assert_false(reader.failed);
    reader = (struct klp_reader){0};
    assert_non_null(klp_read_bytes(&reader, 0));
    assert_false(reader.failed);
    assert_null(klp_read_bytes(&reader, 1));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_base_buf__appends_little_endian),
        cmocka_unit_test(test_base_buf__formats_at_the_end),
        cmocka_unit_test(test_base_buf__ceiling_is_exact_and_sticks),
        cmocka_unit_test(test_base_buf__nothing_fits_a_stopped_buffer),
        cmocka_unit_test(test_base_buf__sizes_do_not_wrap),
        cmocka_unit_test(test_base_buf__no_memory_sticks_and_keeps_the_bytes),
        cmocka_unit_test(test_base_buf__reserve_and_grow),
        cmocka_unit_test(test_base_buf__drop_front),
        cmocka_unit_test(test_base_buf__take_text),
        cmocka_unit_test(test_base_buf__reader_reads_and_sticks),
        cmocka_unit_test(test_base_buf__reader_refuses_hostile_lengths),
    };
    return cmocka_run_group_tests_name("base_buf", tests, NULL, NULL);
}
