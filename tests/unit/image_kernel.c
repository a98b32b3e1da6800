/* SPDX-License-Identifier: Apache-2.0 */
/* Kernels: what comes out of a bzImage, and every way in which one can lie. */
#include "image_kit.h"

#include "image/kernel.h"

struct kernel {
    struct klp_buf vmlinux, image, out;
};

static void kernel_init(struct kernel *kernel, uint32_t says)
{
    kernel->vmlinux = kernel->image = kernel->out = KLP_BUF_INIT(KIT_SIZE_MAX);
    kit_elf(&kernel->vmlinux, KIT_X86_64, NULL, "", true);
    kit_bzimage(&kernel->image, klp_buf_view(&kernel->vmlinux),
                says != 0 ? says : (uint32_t)kernel->vmlinux.size);
}

static void klp_auto_kernel(struct kernel *kernel)
{
    klp_buf_finish(&kernel->vmlinux);
    klp_buf_finish(&kernel->image);
    klp_buf_finish(&kernel->out);
}

static bool unpack(struct kernel *kernel, enum klp_arch arch, struct kelpie_error **err)
{
    uint8_t *copy = kit_copy(kernel->image.data, kernel->image.size);
    struct klp_sink sink = {kit_sink_buf, &kernel->out};
    klp_buf_clear(&kernel->out);
    bool done = klp_kernel_unpack((struct klp_bytes){copy, kernel->image.size}, arch, sink, err);
    free(copy);
    return done;
}

#define REFUSED(kernel, code, piece)                                                               \
    KIT_REFUSED(unpack((kernel), KLP_ARCH_X86_64, &err), false, (code), (piece))

static uint8_t *payload_of(struct kernel *kernel)
{
    return kernel->image.data + KIT_SETUP_SIZE + KIT_PAYLOAD_AT;
}

static void test_image_kernel__vmlinux_comes_out(void **state)
{
    KLP_AUTO(kernel) struct kernel kernel;
    (void)state;
    kernel_init(&kernel, 0);
    assert_true(unpack(&kernel, KLP_ARCH_X86_64, NULL));
    assert_int_equal(kernel.out.size, kernel.vmlinux.size);
    assert_memory_equal(kernel.out.data, kernel.vmlinux.data, kernel.out.size);
}

static void test_image_kernel__several_frames_in_one_payload(void **state)
{
    KLP_AUTO(kernel) struct kernel kernel;
    (void)state;
    kernel_init(&kernel, 0);
    /* The magic once more, where the first block begins. */
    uint8_t *payload = payload_of(&kernel);
    size_t rest = kernel.image.size - (size_t)(payload - kernel.image.data);
    struct klp_buf image = KLP_BUF_INIT(KIT_SIZE_MAX);
    kit_u(kernel.image.data + 0x24c, rest + 4, 4);
    klp_buf_append(&image, kernel.image.data, kernel.image.size - rest + 4);
    klp_buf_append(&image, payload, rest);
    klp_buf_finish(&kernel.image);
    kernel.image = image;
    assert_true(unpack(&kernel, KLP_ARCH_X86_64, NULL));
    assert_memory_equal(kernel.out.data, kernel.vmlinux.data, kernel.vmlinux.size);
}

static void test_image_kernel__every_truncation_is_refused(void **state)
{
    KLP_AUTO(kernel) struct kernel kernel;
    (void)state;
    kernel_init(&kernel, 0);
    for (size_t size = 0; size < kernel.image.size; size += size < 0x250 ? 7 : 1) {
        struct kelpie_error *err = NULL;
        struct klp_sink sink = {kit_sink_buf, &kernel.out};
        uint8_t *copy = kit_copy(kernel.image.data, size);
        assert_false(
            klp_kernel_unpack((struct klp_bytes){copy, size}, KLP_ARCH_X86_64, sink, &err));
        free(copy);
        assert_int_equal(kelpie_error_code(err), KELPIE_E_CORRUPT);
        kelpie_error_free(err);
    }
    assert_int_equal(kernel.out.size, 0);
}

static void test_image_kernel__flipped_bytes_never_come_out_unnoticed_in_length(void **state)
{
    KLP_AUTO(kernel) struct kernel kernel;
    (void)state;
    kernel_init(&kernel, 0);
    for (size_t at = 0; at < kernel.image.size; at++) {
        struct kelpie_error *err = NULL;
        kernel.image.data[at] ^= 0xff;
        if (unpack(&kernel, KLP_ARCH_X86_64, &err))
            assert_int_equal(kernel.out.size, kernel.vmlinux.size);
        else
            assert_non_null(err);
        kelpie_error_free(err);
        kernel.image.data[at] ^= 0xff;
    }
}

static void test_image_kernel__a_size_that_lies_is_refused(void **state)
{
    static const struct {
        uint32_t says;
        const char *piece;
    } cases[] = {
        {KIT_ELF_SIZE - 1, "larger unpacked than it says"},
        {KIT_ELF_SIZE + 1, "shorter unpacked than it says"},
        {1, "larger unpacked than it says"},
        {KLP_KERNEL_SIZE_MAX + 1, "larger unpacked than allowed"},
        {UINT32_MAX, "larger unpacked than allowed"},
    };
    (void)state;
    for (size_t i = 0; i < KLP_COUNT(cases); i++) {
        KLP_AUTO(kernel) struct kernel kernel;
        kernel_init(&kernel, cases[i].says);
        REFUSED(&kernel, KELPIE_E_CORRUPT, cases[i].piece);
    }
}

/* 40 KiB that unpack to 10 MiB in one block, where the format allows 8. */
static void test_image_kernel__a_bomb_is_refused(void **state)
{
    KLP_AUTO(kernel) struct kernel kernel;
    size_t size = 10u << 20;
    char *zeros = calloc(1, size), *packed = malloc((size_t)LZ4_compressBound((int)size));
    (void)state;
    kernel_init(&kernel, (uint32_t)size);
    int packed_size = LZ4_compress_default(zeros, packed, (int)size, LZ4_compressBound((int)size));
    assert_true(packed_size > 0 && packed_size < 64 << 10);
    kernel.image.size = KIT_SETUP_SIZE + KIT_PAYLOAD_AT + 4; /* keep header and magic */
    klp_buf_append_u32(&kernel.image, (uint32_t)packed_size);
    klp_buf_append(&kernel.image, packed, (size_t)packed_size);
    klp_buf_append_u32(&kernel.image, (uint32_t)size);
    kit_u(kernel.image.data + 0x24c, 12 + (size_t)packed_size, 4);
    REFUSED(&kernel, KELPIE_E_CORRUPT, "damaged");
    free(zeros);
    free(packed);
}

static void test_image_kernel__block_sizes_are_checked(void **state)
{
    static const uint32_t sizes[] = {0, UINT32_MAX, 9u << 20, 1u << 31};
    (void)state;
    for (size_t i = 0; i < KLP_COUNT(sizes); i++) {
        KLP_AUTO(kernel) struct kernel kernel;
        kernel_init(&kernel, 0);
        kit_u(payload_of(&kernel) + 4, sizes[i], 4);
        REFUSED(&kernel, KELPIE_E_CORRUPT, "truncated");
    }
}

static void test_image_kernel__header_fields_are_checked(void **state)
{
    static const struct {
        size_t at;
        uint32_t value;
        unsigned size;
        enum kelpie_code code;
        const char *piece;
    } cases[] = {
        {0x202, 0, 4, KELPIE_E_CORRUPT, "no bzImage"},
        {0x206, 0x207, 2, KELPIE_E_CORRUPT, "too old"},
        {0x248, UINT32_MAX, 4, KELPIE_E_CORRUPT, "truncated"},
        {0x24c, UINT32_MAX, 4, KELPIE_E_CORRUPT, "truncated"},
        {0x24c, 11, 4, KELPIE_E_CORRUPT, "truncated"},
        {0x1f1, 0xff, 1, KELPIE_E_CORRUPT, "truncated"},
        {KIT_SETUP_SIZE + KIT_PAYLOAD_AT, 0xfd2fb528, 4, KELPIE_E_UNSUPPORTED, "LZ4"},
    };
    (void)state;
    for (size_t i = 0; i < KLP_COUNT(cases); i++) {
        KLP_AUTO(kernel) struct kernel kernel;
        kernel_init(&kernel, 0);
        kit_u(kernel.image.data + cases[i].at, cases[i].value, cases[i].size);
        REFUSED(&kernel, cases[i].code, cases[i].piece);
    }
}

static void packed_elf_refused(unsigned machine, bool pvh, enum kelpie_code code, const char *piece)
{
    KLP_AUTO(kernel) struct kernel kernel;
    kernel_init(&kernel, 0);
    klp_buf_clear(&kernel.vmlinux);
    klp_buf_clear(&kernel.image);
    if (machine == 0)
        klp_buf_append(&kernel.vmlinux, (char[4096]){"no ELF file"}, 4096);
    else
        kit_elf(&kernel.vmlinux, machine, NULL, "", pvh);
    kit_bzimage(&kernel.image, klp_buf_view(&kernel.vmlinux), (uint32_t)kernel.vmlinux.size);
    REFUSED(&kernel, code, piece);
    assert_int_equal(kernel.out.size, 0);
}

static void test_image_kernel__what_comes_out_must_boot(void **state)
{
    (void)state;
    packed_elf_refused(KIT_X86_64, false, KELPIE_E_UNSUPPORTED, "PVH");
    packed_elf_refused(KIT_AARCH64, true, KELPIE_E_CORRUPT, "x86_64");
    packed_elf_refused(0, false, KELPIE_E_CORRUPT, "ELF");
}

static void test_image_kernel__arm64_image_as_it_is(void **state)
{
    KLP_AUTO(kernel) struct kernel kernel;
    uint8_t image[128] = {'M', 'Z'};
    (void)state;
    kernel_init(&kernel, 0);
    KIT_REFUSED(unpack(&kernel, KLP_ARCH_AARCH64, &err), false, KELPIE_E_CORRUPT, "no arm64 Image");
    memcpy(image + 56, "ARM\x64", 4);
    klp_buf_clear(&kernel.image);
    klp_buf_append(&kernel.image, image, sizeof(image));
    assert_true(unpack(&kernel, KLP_ARCH_AARCH64, NULL));
    assert_memory_equal(kernel.out.data, image, sizeof(image));
    REFUSED(&kernel, KELPIE_E_CORRUPT, "no bzImage");
    kernel.image.size = 60;
    KIT_REFUSED(unpack(&kernel, KLP_ARCH_AARCH64, &err), false, KELPIE_E_CORRUPT, "no arm64 Image");
    memcpy(kernel.image.data, "\x1f\x8b", 2);
    KIT_REFUSED(unpack(&kernel, KLP_ARCH_AARCH64, &err), false, KELPIE_E_UNSUPPORTED, "plain");
}

static void test_image_kernel__a_full_disk_is_reported(void **state)
{
    KLP_AUTO(kernel) struct kernel kernel;
    size_t left = 100;
    (void)state;
    kernel_init(&kernel, 0);
    KIT_REFUSED(klp_kernel_unpack(klp_buf_view(&kernel.image), KLP_ARCH_X86_64,
                                  (struct klp_sink){kit_sink_full, &left}, &err),
                false, KELPIE_E_NO_SPACE, "no space");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_image_kernel__vmlinux_comes_out),
        cmocka_unit_test(test_image_kernel__several_frames_in_one_payload),
        cmocka_unit_test(test_image_kernel__every_truncation_is_refused),
        cmocka_unit_test(test_image_kernel__flipped_bytes_never_come_out_unnoticed_in_length),
        cmocka_unit_test(test_image_kernel__a_size_that_lies_is_refused),
        cmocka_unit_test(test_image_kernel__a_bomb_is_refused),
        cmocka_unit_test(test_image_kernel__block_sizes_are_checked),
        cmocka_unit_test(test_image_kernel__header_fields_are_checked),
        cmocka_unit_test(test_image_kernel__what_comes_out_must_boot),
        cmocka_unit_test(test_image_kernel__arm64_image_as_it_is),
        cmocka_unit_test(test_image_kernel__a_full_disk_is_reported),
    };
    return cmocka_run_group_tests_name("image_kernel", tests, NULL, NULL);
}
