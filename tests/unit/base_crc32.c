/* SPDX-License-Identifier: Apache-2.0 */
/* CRC-32 against the bitwise definition, known values, and any way of cutting the input. */
#include "base_kit.h"

#include "base/crc32.h"

static uint32_t crc_bitwise(const uint8_t *bytes, size_t size)
{
    uint32_t crc = UINT32_MAX;
    for (size_t i = 0; i < size; i++) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ ((crc & 1) != 0 ? 0xedb88320u : 0);
    }
    return ~crc;
}

static void test_base_crc32__known_values(void **state)
{
    (void)state;
    assert_int_equal(klp_crc32(0, "", 0), 0);
    assert_int_equal(klp_crc32(0, "123456789", 9), 0xcbf43926);
    assert_int_equal(klp_crc32(0, "The quick brown fox jumps over the lazy dog", 43), 0x414fa339);
}

static void test_base_crc32__every_byte_and_length(void **state)
{
    uint8_t bytes[300];
    (void)state;
    for (size_t i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)(i * 151 + (i >> 3));
    for (size_t size = 0; size <= sizeof(bytes); size++)
        assert_int_equal(klp_crc32(0, bytes, size), crc_bitwise(bytes, size));
    for (unsigned value = 0; value < 256; value++) {
        uint8_t byte = (uint8_t)value;
        assert_int_equal(klp_crc32(0, &byte, 1), crc_bitwise(&byte, 1));
    }
}

static void test_base_crc32__parts_equal_the_whole(void **state)
{
    const char *text = "at most one copy of an agent runs its workload with effect";
    size_t size = strlen(text);
    (void)state;
    for (size_t cut = 0; cut <= size; cut++)
        assert_int_equal(klp_crc32(klp_crc32(0, text, cut), text + cut, size - cut),
                         klp_crc32(0, text, size));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_base_crc32__known_values),
        cmocka_unit_test(test_base_crc32__every_byte_and_length),
        cmocka_unit_test(test_base_crc32__parts_equal_the_whole),
    };
    return cmocka_run_group_tests_name("base_crc32", tests, NULL, NULL);
}
