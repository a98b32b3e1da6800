/* SPDX-License-Identifier: Apache-2.0 */
/* Image objects and version numbers. */
#include "format_kit.h"

#include <stdio.h>

#include "format/image.h"

#define DIGEST(two) two two two two two two two two two two two two two two two two

static const char example[] =
    "{\"format\":\"kelpie-image\",\"format_version\":1,\"name\":\"python\",\"version\":\"1.4.0\","
    "\"arch\":\"aarch64\",\"kernel\":{\"digest\":\"" DIGEST(
        "1111") "\",\"size_bytes\":9000000},"
                "\"initramfs\":{\"digest\":\"" DIGEST(
                    "2222") "\",\"size_bytes\":30000000},"
                            "\"cmdline\":\"quiet\",\"guest\":\"" DIGEST("3333") "\"}";

static void fill(struct klp_image *image)
{
    *image = (struct klp_image){.arch = KLP_ARCH_AARCH64};
    klp_text_copy(image->name, sizeof(image->name), "python");
    klp_text_copy(image->version, sizeof(image->version), "1.4.0");
    klp_text_copy(image->cmdline, sizeof(image->cmdline), "quiet");
    memset(&image->kernel.digest, 0x11, KLP_DIGEST_BYTES);
    image->kernel.size = 9000000;
    memset(&image->initramfs.digest, 0x22, KLP_DIGEST_BYTES);
    image->initramfs.size = 30000000;
    memset(&image->guest, 0x33, KLP_DIGEST_BYTES);
}

static bool decode_text(const char *text, struct klp_image *out, struct kelpie_error **err)
{
    uint8_t *copy = kit_copy(text, strlen(text));
    bool ok = klp_image_decode((struct klp_bytes){copy, strlen(text)}, out, err);
    free(copy);
    return ok;
}

static void test_format_image__example_byte_for_byte(void **state)
{
    (void)state;
    struct klp_image image, back;
    struct klp_buf text KLP_AUTO(buf) = KLP_BUF_INIT(4096);
    fill(&image);
    klp_image_encode(&image, &text);
    assert_string_equal(klp_buf_text(&text), example);
    assert_true(decode_text(example, &back, NULL));
    assert_memory_equal(&back, &image, sizeof(image));
}

static void test_format_image__without_initramfs_and_guest(void **state)
{
    (void)state;
    struct klp_image image, back;
    struct klp_buf text KLP_AUTO(buf) = KLP_BUF_INIT(4096);
    fill(&image);
    image.initramfs = (struct klp_object_ref){0};
    memset(&image.guest, 0, sizeof(image.guest));
    image.cmdline[0] = '\0';
    memset(image.cmdline, 0, sizeof(image.cmdline));
    klp_image_encode(&image, &text);
    assert_non_null(strstr(klp_buf_text(&text), "\"initramfs\":null"));
    assert_non_null(strstr(klp_buf_text(&text), "\"guest\":null"));
    assert_true(decode_text(klp_buf_text(&text), &back, NULL));
    assert_memory_equal(&back, &image, sizeof(image));
}

static char *replaced(const char *from, const char *to)
{
    const char *at = strstr(example, from);
    assert_non_null(at);
    size_t size = strlen(example) + strlen(to) + 1;
    char *out = malloc(size);
    assert_non_null(out);
    snprintf(out, size, "%.*s%s%s", (int)(at - example), example, to, at + strlen(from));
    return out;
}

static void test_format_image__damaged_and_newer_ones(void **state)
{
    (void)state;
    const struct {
        const char *from, *to;
        enum kelpie_code code;
        const char *piece;
    } cases[] = {
        {"kelpie-image", "other-image", KELPIE_E_CORRUPT, "'format'"},
        {"\"format\"", "\"form\"", KELPIE_E_CORRUPT, "'format'"},
        {"\"format_version\":1", "\"format_version\":2", KELPIE_E_UNSUPPORTED, "newer"},
        {"\"format_version\":1", "\"format_version\":0", KELPIE_E_CORRUPT, "format_version"},
        {"\"python\"", "\"Python\"", KELPIE_E_CORRUPT, "name"},
        {"1.4.0", "1.4", KELPIE_E_CORRUPT, "1.4"},
        {"\"1.4.0\"", "null", KELPIE_E_CORRUPT, "version"},
        {"aarch64", "vax", KELPIE_E_CORRUPT, "arch"},
        {"\"aarch64\"", "null", KELPIE_E_CORRUPT, "arch"},
        {"\"kernel\"", "\"colonel\"", KELPIE_E_CORRUPT, "kernel"},
        {"9000000", "0", KELPIE_E_CORRUPT, "kernel"},
        {"9000000", "1073741825", KELPIE_E_CORRUPT, "kernel"},
        {"30000000", "-1", KELPIE_E_CORRUPT, "size_bytes"},
        {"1111", "111g", KELPIE_E_CORRUPT, "digest"},
        {DIGEST("1111"), DIGEST("0000"), KELPIE_E_CORRUPT, "kernel"},
        {"quiet", "quiet\x7f", KELPIE_E_CORRUPT, "cmdline"},
        {"quiet", "quiet\\n", KELPIE_E_CORRUPT, "cmdline"},
        {"quiet", "qui\xc3\xa4t", KELPIE_E_CORRUPT, "cmdline"},
        {"\"3333", "\"333", KELPIE_E_CORRUPT, "guest"},
        {"{\"format\"", "[{\"format\"", KELPIE_E_CORRUPT, "image"},
    };
    for (size_t i = 0; i < KLP_COUNT(cases); i++) {
        struct klp_image image;
        char *text = replaced(cases[i].from, cases[i].to);
        KIT_REFUSED(decode_text(text, &image, &err), false, cases[i].code, cases[i].piece);
        free(text);
    }
    struct klp_image image;
    char *newer = replaced("\"name\"", "\"signed_by\":\"us\",\"name\"");
    assert_true(decode_text(newer, &image, NULL));
    free(newer);
    KIT_REFUSED(decode_text("[]", &image, &err), false, KELPIE_E_CORRUPT, "no object");
    KIT_REFUSED(decode_text("", &image, &err), false, KELPIE_E_CORRUPT, "image");
    char *large = malloc(5000);
    assert_non_null(large);
    memset(large, ' ', 5000);
    KIT_REFUSED(klp_image_decode((struct klp_bytes){(uint8_t *)large, 5000}, &image, &err), false,
                KELPIE_E_CORRUPT, "longer");
    free(large);
}

static void test_format_image__versions(void **state)
{
    (void)state;
    uint32_t parts[3] = {7, 7, 7};
    assert_true(klp_version_parse("1.0.65535", parts, NULL));
    assert_int_equal(parts[0], 1);
    assert_int_equal(parts[1], 0);
    assert_int_equal(parts[2], 65535);
    assert_true(klp_version_parse("0.10.200", parts, NULL));
    const char *bad[] = {"",         "1",
                         "1.2",      "1.2.",
                         "1.2.3.",   "1.2.3.4",
                         ".1.2",     "1..3",
                         "01.2.3",   "1.02.3",
                         "1.2.00",   "65536.0.0",
                         "1.2.-3",   "+1.2.3",
                         " 1.2.3",   "1.2.3 ",
                         "1.2.3-rc", "a.b.c",
                         "1.2.3\n",  "1.2.3.de",
                         "0x1.2.3",  "99999999999999999999.0.0"};
    for (size_t i = 0; i < KLP_COUNT(bad); i++) {
        parts[0] = 9;
        KIT_REFUSED(klp_version_parse(bad[i], parts, &err), false, KELPIE_E_INVALID,
                    "MAJOR.MINOR.PATCH");
        assert_int_equal(parts[0], 9);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_format_image__example_byte_for_byte),
        cmocka_unit_test(test_format_image__without_initramfs_and_guest),
        cmocka_unit_test(test_format_image__damaged_and_newer_ones),
        cmocka_unit_test(test_format_image__versions),
    };
    return cmocka_run_group_tests_name("format_image", tests, NULL, NULL);
}
