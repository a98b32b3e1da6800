/* SPDX-License-Identifier: Apache-2.0 */
/* The header of stored objects, and records. */
#include "format_kit.h"

#include "base/crc32.h"
#include "format/records.h"

/* The worked examples of docs/formats/objects.md. The checksum of the header is zlib's crc32. */
#define HEADER_HEX                                                                                 \
    "4b4c507061636b44 0200 0000 40000000 0000000000000000 0000000000000000 0000000000000000"       \
    "01 02 00 0c 10 000000 00000000 0807060504030201 aa8fd71a"
#define RECORDS_HEX "0700 0100 03000000 6162630000000000 0800 0000 00000000"

static struct klp_object_header example(void)
{
    struct klp_object_header header = klp_object_header_make("pack", 2, 12, 16);
    header.nonce = 0x0102030405060708;
    return header;
}

static void test_format_records__header_example(void **state)
{
    struct klp_object_header header = example(), again;
    uint8_t bytes[KLP_OBJECT_HEADER_SIZE];
    (void)state;
    klp_object_header_encode(&header, bytes);
    struct klp_buf got KLP_AUTO(buf) = KLP_BUF_INIT(64);
    klp_buf_append(&got, bytes, sizeof(bytes));
    kit_assert_hex(&got, HEADER_HEX);
    assert_true(klp_object_header_decode(bytes, sizeof(bytes), "pack", &again, NULL));
    assert_memory_equal(again.kind, "pack", 4);
    assert_int_equal(again.major, KLP_OBJECT_MAJOR);
    assert_int_equal(again.codec, 2);
    assert_int_equal(again.page_log2, 12);
    assert_int_equal(again.frame_log2, 16);
    assert_true(again.nonce == header.nonce);
}

static void assert_header_refused(const struct klp_object_header *header, enum kelpie_code code,
                                  const char *piece)
{
    struct klp_object_header again;
    uint8_t bytes[KLP_OBJECT_HEADER_SIZE];
    klp_object_header_encode(header, bytes);
    KIT_REFUSED(klp_object_header_decode(bytes, sizeof(bytes), "pack", &again, &err), false, code,
                piece);
}

static void test_format_records__headers_that_ask_too_much(void **state)
{
    struct klp_object_header header;
    (void)state;
#define CASE(change, code, piece)                                                                  \
    header = example();                                                                            \
    change;                                                                                        \
    assert_header_refused(&header, code, piece)
    CASE(header.major = 3, KELPIE_E_UNSUPPORTED, "version 3.0");
    CASE(header.major = 1, KELPIE_E_UNSUPPORTED, "version 1.0");
    CASE(header.incompat = (uint64_t)1 << 63, KELPIE_E_UNSUPPORTED, "features 8000000000000000");
    CASE(header.hash_id = 2, KELPIE_E_UNSUPPORTED, "hash");
    CASE(header.codec = 1, KELPIE_E_UNSUPPORTED, "codec");
    CASE(header.aead_id = 1, KELPIE_E_UNSUPPORTED, "encryption");
    CASE(header.key_id = 1, KELPIE_E_CORRUPT, "key");
    CASE(header.page_log2 = 5, KELPIE_E_CORRUPT, "page size");
    CASE(header.page_log2 = 17, KELPIE_E_CORRUPT, "page size");
    CASE(header.frame_log2 = 11, KELPIE_E_CORRUPT, "frame size");
    CASE(header.frame_log2 = 22, KELPIE_E_CORRUPT, "frame size");
    CASE(header.page_log2 = 0, KELPIE_E_CORRUPT, "frame size");
    CASE(memcpy(header.kind, "mani", 4), KELPIE_E_CORRUPT, "it is a 'mani'");
    CASE(memcpy(header.kind, "\x1b[2J", 4), KELPIE_E_CORRUPT, "it is a '\\x1b[2J'");
#undef CASE
}

/* A later minor version may set what we may ignore, and it comes back out as it was. */
static void test_format_records__header_of_a_later_minor(void **state)
{
    struct klp_object_header header = example(), again;
    uint8_t bytes[KLP_OBJECT_HEADER_SIZE], out[KLP_OBJECT_HEADER_SIZE];
    (void)state;
    header.minor = 9;
    header.compat = 5;
    header.ro_compat = 6;
    header.page_log2 = header.frame_log2 = 0;
    klp_object_header_encode(&header, bytes);
    assert_true(klp_object_header_decode(bytes, sizeof(bytes), "pack", &again, NULL));
    klp_object_header_encode(&again, out);
    assert_memory_equal(bytes, out, sizeof(out));
}

/* Every bit of a header is covered: no change of one goes unseen. */
static void test_format_records__every_flipped_bit_is_seen(void **state)
{
    struct klp_object_header header = example(), again;
    uint8_t bytes[KLP_OBJECT_HEADER_SIZE];
    (void)state;
    klp_object_header_encode(&header, bytes);
    for (size_t bit = 0; bit < 8 * sizeof(bytes); bit++) {
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        KIT_REFUSED(klp_object_header_decode(bytes, sizeof(bytes), "pack", &again, &err), false,
                    KELPIE_E_CORRUPT, "cannot read a 'pack' object");
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
}

static void header_seal(uint8_t bytes[KLP_OBJECT_HEADER_SIZE])
{
    uint32_t crc = klp_crc32(0, bytes, 60);
    for (unsigned i = 0; i < 4; i++)
        bytes[60 + i] = (uint8_t)(crc >> (8 * i));
}

/* With a right checksum over wrong bytes: a file made on purpose. */
static void test_format_records__reserved_bytes(void **state)
{
    static const uint8_t reserved[] = {12, 13, 14, 15, 45, 46, 47};
    struct klp_object_header header = example(), again;
    uint8_t bytes[KLP_OBJECT_HEADER_SIZE];
    (void)state;
    for (size_t i = 0; i < sizeof(reserved); i++) {
        klp_object_header_encode(&header, bytes);
        bytes[reserved[i]] ^= 1;
        header_seal(bytes);
        KIT_REFUSED(klp_object_header_decode(bytes, sizeof(bytes), "pack", &again, &err), false,
                    KELPIE_E_CORRUPT, "reserved");
    }
    klp_object_header_encode(&header, bytes);
    bytes[7] = 0;
    header_seal(bytes);
    KIT_REFUSED(klp_object_header_decode(bytes, sizeof(bytes), "pack", &again, &err), false,
                KELPIE_E_UNSUPPORTED, "frozen");
    bytes[7] = 'E';
    header_seal(bytes);
    KIT_REFUSED(klp_object_header_decode(bytes, sizeof(bytes), "pack", &again, &err), false,
                KELPIE_E_CORRUPT, "magic");
}

static void test_format_records__short_headers(void **state)
{
    struct klp_object_header header = example(), again;
    uint8_t bytes[KLP_OBJECT_HEADER_SIZE];
    (void)state;
    klp_object_header_encode(&header, bytes);
    for (size_t size = 0; size < sizeof(bytes); size++) {
        uint8_t *exact = kit_copy(bytes, size);
        KIT_REFUSED(klp_object_header_decode(exact, size, "pack", &again, &err), false,
                    KELPIE_E_CORRUPT, "bytes");
        free(exact);
    }
}

static void test_format_records__records_example(void **state)
{
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(4096);
    struct klp_record record;
    size_t at = 0;
    (void)state;
    klp_record_append(&bytes, 7, KLP_RECORD_CRITICAL, "abc", 3);
    klp_record_append(&bytes, 8, 0, NULL, 0);
    kit_assert_hex(&bytes, RECORDS_HEX);
    assert_int_equal(klp_record_next(klp_buf_view(&bytes), &at, &record, NULL), 1);
    assert_int_equal(record.tag, 7);
    assert_int_equal(record.flags, KLP_RECORD_CRITICAL);
    kit_assert_bytes(record.data, "abc");
    assert_int_equal(klp_record_next(klp_buf_view(&bytes), &at, &record, NULL), 1);
    assert_int_equal(record.tag, 8);
    assert_int_equal(record.data.size, 0);
    assert_int_equal(klp_record_next(klp_buf_view(&bytes), &at, &record, NULL), 0);
    assert_int_equal(klp_record_next(klp_buf_view(&bytes), &at, &record, NULL), 0);
    at = 0;
    assert_int_equal(klp_record_next((struct klp_bytes){0}, &at, &record, NULL), 0);
}

static void test_format_records__every_length_is_padded_to_8(void **state)
{
    struct klp_record record;
    (void)state;
    for (size_t size = 0; size < 24; size++) {
        struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(4096);
        size_t at = 0;
        klp_record_append(&bytes, 1, 0, "abcdefghijklmnopqrstuvwx", size);
        assert_int_equal(bytes.size, 8 + (size + 7) / 8 * 8);
        assert_int_equal(klp_record_next(klp_buf_view(&bytes), &at, &record, NULL), 1);
        assert_int_equal(record.data.size, size);
        assert_int_equal(at, bytes.size);
    }
}

static void test_format_records__a_record_of_4_gib_is_told(void **state)
{
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(SIZE_MAX);
    (void)state;
    klp_record_append(&bytes, 1, 0, "", (size_t)UINT32_MAX + 1); /* nothing is read of it */
    KIT_REFUSED(klp_buf_check(&bytes, "records", &err), false, KELPIE_E_LIMIT, "records");
}

static void test_format_records__cut_records(void **state)
{
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(4096);
    struct klp_record record;
    (void)state;
    klp_record_append(&bytes, 7, 0, "abc", 3);
    for (size_t size = 1; size < bytes.size; size++) {
        uint8_t *exact = kit_copy(bytes.data, size);
        size_t at = 0;
        KIT_REFUSED(klp_record_next((struct klp_bytes){exact, size}, &at, &record, &err), -1,
                    KELPIE_E_CORRUPT, "byte 0");
        assert_int_equal(at, 0);
        free(exact);
    }
}

static void test_format_records__bent_records(void **state)
{
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(4096);
    struct klp_record record;
    size_t at = 0;
    (void)state;
    klp_record_append(&bytes, 7, 0, "abc", 3);
    for (size_t i = 11; i < 16; i++) {
        bytes.data[i] = 1;
        KIT_REFUSED(klp_record_next(klp_buf_view(&bytes), &at, &record, &err), -1, KELPIE_E_CORRUPT,
                    "padding");
        bytes.data[i] = 0;
    }
    bytes.data[2] = 4;
    KIT_REFUSED(klp_record_next(klp_buf_view(&bytes), &at, &record, &err), -1, KELPIE_E_CORRUPT,
                "flags");
    bytes.data[2] = 0;
    bytes.data[4] = 9; /* its padding would end at 24 */
    KIT_REFUSED(klp_record_next(klp_buf_view(&bytes), &at, &record, &err), -1, KELPIE_E_CORRUPT,
                "longer");
    memset(bytes.data + 4, 0xff, 4); /* length + padding wraps in 32 bits */
    KIT_REFUSED(klp_record_next(klp_buf_view(&bytes), &at, &record, &err), -1, KELPIE_E_CORRUPT,
                "longer");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_format_records__header_example),
        cmocka_unit_test(test_format_records__headers_that_ask_too_much),
        cmocka_unit_test(test_format_records__header_of_a_later_minor),
        cmocka_unit_test(test_format_records__every_flipped_bit_is_seen),
        cmocka_unit_test(test_format_records__reserved_bytes),
        cmocka_unit_test(test_format_records__short_headers),
        cmocka_unit_test(test_format_records__records_example),
        cmocka_unit_test(test_format_records__every_length_is_padded_to_8),
        cmocka_unit_test(test_format_records__a_record_of_4_gib_is_told),
        cmocka_unit_test(test_format_records__cut_records),
        cmocka_unit_test(test_format_records__bent_records),
    };
    return cmocka_run_group_tests_name("format_records", tests, NULL, NULL);
}
