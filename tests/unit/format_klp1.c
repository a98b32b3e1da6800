/* SPDX-License-Identifier: Apache-2.0 */
/* KLP1 against the vectors of kelpie-original 6, byte for byte, and its hostile headers. */
#include "format_kit.h"

#include "base/crc32.h"
#include "format/klp1.h"

#define V1_HEX "4b4c503101000000000000000000000000000000000000000000000000000000"
#define V2_HEX                                                                                     \
    "4b4c5031010000000800000000000000080000000000000003000000000000006d65746164617461736e61707368" \
    "6f"                                                                                           \
    "74010203"
#define V3_HEX "4b4c5031010000000000000000000000030000000000000006000000000000006370756d656d6f7279"
#define V5_HEX                                                                                     \
    "4b4c50310100000000000000000000000500000000000000060000000000000053544154454d454d4f5259"

static const char v4_metadata[] =
    "{\"snapshot_id\":\"sim-snap-0\",\"vm_id\":\"sim-vm-1\",\"created_at_ms\":1704067200000,"
    "\"size_bytes\":16,\"checksum\":2411188178,\"architecture\":\"aarch64\",\"vcpu_count\":2,"
    "\"memory_mib\":512,\"is_full_snapshot\":true}";

static struct klp_bytes text(const char *chars)
{
    return (struct klp_bytes){(const uint8_t *)chars, strlen(chars)};
}

static void assert_vector(const char *hex, size_t size, uint32_t crc, struct klp_bytes metadata,
                          struct klp_bytes snapshot, struct klp_bytes memory)
{
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(4096);
    struct klp_buf again KLP_AUTO(buf) = KLP_BUF_INIT(4096);
    struct klp1_blob blob;
    const struct klp1_blob parts = {metadata, snapshot, memory};
    klp1_encode(&parts, &bytes);
    kit_assert_hex(&bytes, hex);
    assert_int_equal(bytes.size, size);
    assert_int_equal(klp_crc32(0, bytes.data, bytes.size), crc);
    assert_true(klp1_decode(bytes.data, bytes.size, &blob, NULL));
    assert_int_equal(blob.metadata.size, metadata.size);
    assert_int_equal(blob.snapshot.size, snapshot.size);
    assert_int_equal(blob.memory.size, memory.size);
    klp1_encode(&blob, &again);
    kit_assert_hex(&again, hex);
}

static void test_format_klp1__vectors_without_metadata(void **state)
{
    const uint8_t three[] = {1, 2, 3};
    (void)state;
    assert_vector(V1_HEX, 32, 0x5f6b70d0, text(""), text(""), text(""));
    assert_vector(V2_HEX, 51, 0x97506ce9, text("metadata"), text("snapshot"),
                  (struct klp_bytes){three, 3});
    assert_vector(V3_HEX, 41, 0x94af218a, text(""), text("cpu"), text("memory"));
    assert_vector(V5_HEX, 43, 0xa6f2266a, text(""), text("STATE"), text("MEMORY"));
}

static void test_format_klp1__vector_of_the_simulator(void **state)
{
    struct klp_buf metadata_text KLP_AUTO(buf) = KLP_BUF_INIT(4096);
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(4096);
    struct klp_buf header KLP_AUTO(buf) = KLP_BUF_INIT(4096);
    struct klp1_metadata metadata;
    struct klp1_blob blob;
    bool has_metadata = false;
    (void)state;
    assert_int_equal(strlen(v4_metadata), 196);
    assert_int_equal(klp_crc32(0, "sim:0:echo:hello", 16), 2411188178u);
    assert_true(klp1_metadata_decode(text(v4_metadata), &metadata, NULL));
    assert_string_equal(metadata.snapshot_id, "sim-snap-0");
    assert_string_equal(metadata.vm_id, "sim-vm-1");
    assert_string_equal(metadata.architecture, "aarch64");
    assert_int_equal(metadata.created_at_ms, 1704067200000);
    assert_int_equal(metadata.size_bytes, 16);
    assert_int_equal(metadata.checksum, 2411188178u);
    assert_int_equal(metadata.vcpu_count, 2);
    assert_int_equal(metadata.memory_mib, 512);
    assert_true(metadata.is_full_snapshot);
    klp1_metadata_encode(&metadata, &metadata_text);
    klp1_metadata_finish(&metadata);
    assert_string_equal(klp_buf_text(&metadata_text), v4_metadata);

    blob = (struct klp1_blob){klp_buf_view(&metadata_text), text("sim:0:echo:hello"), {0}};
    klp1_encode(&blob, &bytes);
    assert_int_equal(bytes.size, 244);
    assert_int_equal(klp_crc32(0, bytes.data, bytes.size), 0xf2cfa0ea);
    klp_buf_append(&header, bytes.data, KLP1_HEADER_SIZE);
    kit_assert_hex(&header, "4b4c503101000000c40000000000000010000000000000000000000000000000");
    assert_true(klp1_decode(bytes.data, bytes.size, &blob, NULL));
    assert_true(klp1_verify(&blob, &has_metadata, NULL));
    assert_true(has_metadata);
}

static void test_format_klp1__vector_of_firecracker_wrapped(void **state)
{
    struct klp_buf inner KLP_AUTO(buf) = KLP_BUF_INIT(4096);
    struct klp_buf metadata_text KLP_AUTO(buf) = KLP_BUF_INIT(4096);
    struct klp_buf outer KLP_AUTO(buf) = KLP_BUF_INIT(4096);
    bool has_metadata = false;
    (void)state;
    kit_hex(&inner, V5_HEX);
    const struct klp1_metadata metadata = {
        .snapshot_id = "11111111-2222-4333-8444-555555555555",
        .vm_id = "fc-00000000-0000-4000-8000-000000000000",
        .architecture = "x86_64",
        .created_at_ms = 1700000000000,
        .size_bytes = 43,
        .checksum = 2800887402u,
        .vcpu_count = 2,
        .memory_mib = 512,
        .is_full_snapshot = true,
    };
    klp1_metadata_encode(&metadata, &metadata_text);
    assert_int_equal(metadata_text.size, 252);
    struct klp1_blob blob = {klp_buf_view(&metadata_text), klp_buf_view(&inner), {0}};
    klp1_encode(&blob, &outer);
    assert_int_equal(outer.size, 327);
    assert_int_equal(klp_crc32(0, outer.data, outer.size), 0x72bffe8b);
    assert_true(klp1_verify(&blob, &has_metadata, NULL));
    assert_true(has_metadata);
}

static void assert_corrupt(const struct klp_buf *bytes, const char *piece)
{
    struct klp1_blob blob;
    uint8_t *exact = kit_copy(bytes->data, bytes->size);
    KIT_REFUSED(klp1_decode(exact, bytes->size, &blob, &err), false, KELPIE_E_CORRUPT, piece);
    free(exact);
}

static void test_format_klp1__negative_vectors(void **state)
{
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(4096);
    (void)state;
    kit_hex(&bytes, V1_HEX);
    bytes.size = 31;
    assert_corrupt(&bytes, "31 bytes");
    bytes.size = 32;
    bytes.data[0] = 0x58;
    assert_corrupt(&bytes, "584c5031");
    bytes.data[0] = 0x4b;
    bytes.data[4] = 2;
    assert_corrupt(&bytes, "version 2");
    bytes.data[4] = 1;
    klp_buf_append_u8(&bytes, 0);
    assert_corrupt(&bytes, "ask for 32 bytes, there are 33");
    klp_buf_clear(&bytes);
    kit_hex(&bytes, V2_HEX);
    bytes.size--;
    assert_corrupt(&bytes, "ask for 51 bytes, there are 50");
    klp_buf_clear(&bytes);
    kit_hex(&bytes,
            "4b4c503101000000e0ffffffffffffff300000000000000000000000000000004141414141414141"
            "4141414141414141");
    assert_int_equal(bytes.size, 48);
    assert_corrupt(&bytes, "more than 2^64");
    bytes.size = 0;
    assert_corrupt(&bytes, "0 bytes");
}

/* What is wrong first is named, in the original's order. */
static void test_format_klp1__checks_in_order(void **state)
{
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(4096);
    (void)state;
    kit_hex(&bytes, "00000000 02000000 e0ffffffffffffff 3000000000000000 0000000000000000");
    assert_corrupt(&bytes, "magic");
    memcpy(bytes.data, "KLP1", 4);
    assert_corrupt(&bytes, "version");
    bytes.data[4] = 1;
    assert_corrupt(&bytes, "2^64");
}

static void test_format_klp1__header_of_a_stream(void **state)
{
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(4096);
    struct klp1_lengths lengths;
    uint8_t header[KLP1_HEADER_SIZE];
    (void)state;
    const struct klp1_lengths large = {1, 0x1122334455667788, UINT64_MAX - 0x1122334455667788 - 34};
    klp1_header_encode(&large, header);
    assert_true(klp1_header_decode(header, sizeof(header), UINT64_MAX, &lengths, NULL));
    assert_memory_equal(&lengths, &large, sizeof(large));
    KIT_REFUSED(klp1_header_decode(header, sizeof(header), 100, &lengths, &err), false,
                KELPIE_E_CORRUPT, "there are 100");
    const struct klp1_lengths larger = {2, UINT64_MAX - 33, 0};
    klp1_header_encode(&larger, header);
    KIT_REFUSED(klp1_header_decode(header, sizeof(header), UINT64_MAX, &lengths, &err), false,
                KELPIE_E_CORRUPT, "2^64");
    kit_hex(&bytes, V3_HEX);
    assert_true(klp1_header_decode(bytes.data, KLP1_HEADER_SIZE, 41, &lengths, NULL));
    assert_int_equal(lengths.snapshot, 3);
}

static void test_format_klp1__encoding_past_a_ceiling_is_told(void **state)
{
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(40);
    const struct klp1_blob blob = {text("metadata"), text("snapshot"), {0}};
    (void)state;
    klp1_encode(&blob, &bytes);
    KIT_REFUSED(klp_buf_check(&bytes, "blob", &err), false, KELPIE_E_LIMIT, "blob");
}

static void test_format_klp1__metadata_is_read_leniently_where_the_original_does(void **state)
{
    struct klp1_metadata metadata;
    struct klp_buf out KLP_AUTO(buf) = KLP_BUF_INIT(4096);
    (void)state;
    const char *other_order =
        " { \"new\" : {\"a\":[1,2]}, \"is_full_snapshot\":false,\"memory_mib\":128,\n"
        "\"vcpu_count\":32,\"architecture\":\"\",\"checksum\":0,\"size_bytes\":0,"
        "\"created_at_ms\":0,\"vm_id\":\"a\\\"b\\\\c\\u0001\\b\\t\\n\\f\\r\\u000b/\x7f\xc3\xa9\","
        "\"snapshot_id\":\"s\"}";
    assert_true(klp1_metadata_decode(text(other_order), &metadata, NULL));
    assert_string_equal(metadata.vm_id, "a\"b\\c\x01\b\t\n\f\r\x0b/\x7f\xc3\xa9");
    assert_false(metadata.is_full_snapshot);
    klp1_metadata_encode(&metadata, &out);
    klp1_metadata_finish(&metadata);
    assert_string_equal(klp_buf_text(&out),
                        "{\"snapshot_id\":\"s\",\"vm_id\":"
                        "\"a\\\"b\\\\c\\u0001\\b\\t\\n\\f\\r\\u000b/\x7f\xc3\xa9\","
                        "\"created_at_ms\":0,\"size_bytes\":0,\"checksum\":0,\"architecture\":\"\","
                        "\"vcpu_count\":32,\"memory_mib\":128,\"is_full_snapshot\":false}");
}

/* One key or value of a good document replaced. */
static void assert_metadata_corrupt(const char *from, const char *to, const char *piece)
{
    struct klp_buf changed KLP_AUTO(buf) = KLP_BUF_INIT(4096);
    struct klp1_metadata metadata;
    const char *at = strstr(v4_metadata, from);
    assert_non_null(at);
    klp_buf_append(&changed, v4_metadata, (size_t)(at - v4_metadata));
    klp_buf_append_text(&changed, to);
    klp_buf_append_text(&changed, at + strlen(from));
    KIT_REFUSED(klp1_metadata_decode(klp_buf_view(&changed), &metadata, &err), false,
                KELPIE_E_CORRUPT, piece);
}

static void test_format_klp1__metadata_faults(void **state)
{
    static const char *const keys[] = {"snapshot_id", "vm_id",      "created_at_ms",
                                       "size_bytes",  "checksum",   "architecture",
                                       "vcpu_count",  "memory_mib", "is_full_snapshot"};
    struct klp1_metadata metadata;
    (void)state;
    for (size_t i = 0; i < KLP_COUNT(keys); i++)
        assert_metadata_corrupt(keys[i], "else", keys[i]);
    assert_metadata_corrupt("\"sim-vm-1\"", "1", "vm_id");
    assert_metadata_corrupt("\"sim-vm-1\"", "null", "vm_id");
    assert_metadata_corrupt("1704067200000", "-1", "created_at_ms");
    assert_metadata_corrupt("1704067200000", "1.0", "created_at_ms");
    assert_metadata_corrupt("2411188178", "4294967296", "checksum");
    assert_metadata_corrupt(":2,", ":4294967296,", "vcpu_count");
    assert_metadata_corrupt("true", "1", "is_full_snapshot");
    assert_metadata_corrupt("{", "{\"vm_id\":\"twice\",", "cannot read KLP1 metadata");
    assert_metadata_corrupt("}", "", "cannot read KLP1 metadata");
    assert_metadata_corrupt("}", "} x", "cannot read KLP1 metadata");
    assert_metadata_corrupt("sim-vm-1", "\xff", "cannot read KLP1 metadata");
    KIT_REFUSED(klp1_metadata_decode(text("[]"), &metadata, &err), false, KELPIE_E_CORRUPT,
                "object");
    KIT_REFUSED(klp1_metadata_decode(text("metadata"), &metadata, &err), false, KELPIE_E_CORRUPT,
                "metadata");
}

static void test_format_klp1__metadata_of_any_length_is_not_parsed(void **state)
{
    struct klp1_metadata metadata;
    uint8_t *large = calloc(KLP1_METADATA_SIZE_MAX + 1, 1);
    (void)state;
    assert_non_null(large);
    KIT_REFUSED(klp1_metadata_decode((struct klp_bytes){large, KLP1_METADATA_SIZE_MAX + 1},
                                     &metadata, &err),
                false, KELPIE_E_CORRUPT, "at most 1048576");
    free(large);
}

static void test_format_klp1__verify(void **state)
{
    bool has_metadata = true;
    struct klp1_blob blob = {{0}, text("anything"), {0}};
    (void)state;
    assert_true(klp1_verify(&blob, &has_metadata, NULL)); /* nothing to compare with */
    assert_false(has_metadata);
    blob.metadata = text(v4_metadata);
    KIT_REFUSED(klp1_verify(&blob, &has_metadata, &err), false, KELPIE_E_CORRUPT, "8 bytes");
    blob.snapshot = text("sim:0:echo:hellO");
    KIT_REFUSED(klp1_verify(&blob, &has_metadata, &err), false, KELPIE_E_CORRUPT, "checksum");
    blob.snapshot = text("sim:0:echo:hello");
    blob.memory = text("covered by nothing, as in the original");
    assert_true(klp1_verify(&blob, &has_metadata, NULL));
    assert_true(has_metadata);
    blob.metadata = text("metadata");
    KIT_REFUSED(klp1_verify(&blob, &has_metadata, &err), false, KELPIE_E_CORRUPT, "metadata");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_format_klp1__vectors_without_metadata),
        cmocka_unit_test(test_format_klp1__vector_of_the_simulator),
        cmocka_unit_test(test_format_klp1__vector_of_firecracker_wrapped),
        cmocka_unit_test(test_format_klp1__negative_vectors),
        cmocka_unit_test(test_format_klp1__checks_in_order),
        cmocka_unit_test(test_format_klp1__header_of_a_stream),
        cmocka_unit_test(test_format_klp1__encoding_past_a_ceiling_is_told),
        cmocka_unit_test(test_format_klp1__metadata_is_read_leniently_where_the_original_does),
        cmocka_unit_test(test_format_klp1__metadata_faults),
        cmocka_unit_test(test_format_klp1__metadata_of_any_length_is_not_parsed),
        cmocka_unit_test(test_format_klp1__verify),
    };
    return cmocka_run_group_tests_name("format_klp1", tests, NULL, NULL);
}
