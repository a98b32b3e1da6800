/* SPDX-License-Identifier: Apache-2.0 */
/* ELF files and the closure of shared libraries. */
#include "image_kit.h"

#include "image/elf.h"
#include "image/layout.h"
#include "image/library.h"

static bool parse(const struct klp_buf *bytes, struct klp_elf *out, struct kelpie_error **err)
{
    uint8_t *copy = kit_copy(bytes->data, bytes->size);
    bool done = klp_elf_parse((struct klp_bytes){copy, bytes->size}, "prog", out, err);
    free(copy);
    return done;
}

static void test_image_elf__facts(void **state)
{
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(1 << 20);
    struct klp_elf elf;
    (void)state;
    kit_elf(&bytes, KIT_X86_64, "/lib64/ld.so.2", "liba.so.1 libb.so.2 ", true);
    assert_true(klp_elf_is(klp_buf_view(&bytes)));
    assert_true(klp_elf_parse(klp_buf_view(&bytes), "prog", &elf, NULL));
    assert_int_equal(elf.arch, KLP_ARCH_X86_64);
    assert_string_equal(elf.interpreter, "/lib64/ld.so.2");
    assert_int_equal(elf.needed_count, 2);
    assert_string_equal(elf.needed[0], "liba.so.1");
    assert_string_equal(elf.needed[1], "libb.so.2");
    assert_true(elf.has_pvh);
    klp_buf_clear(&bytes);
    kit_elf(&bytes, KIT_AARCH64, NULL, "", false);
    assert_true(klp_elf_parse(klp_buf_view(&bytes), "prog", &elf, NULL));
    assert_int_equal(elf.arch, KLP_ARCH_AARCH64);
    assert_null(elf.interpreter);
    assert_false(elf.has_pvh);
    assert_int_equal(elf.needed_count, 0);
}

/* This test's own program is as real as ELF files get. */
static void test_image_elf__a_real_program(void **state)
{
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(64u << 20);
    struct klp_elf elf;
    FILE *file = fopen("/proc/self/exe", "re");
    bool has_libc = false;
    size_t got;
    (void)state;
    assert_non_null(file);
    do {
        uint8_t piece[65536];
        got = fread(piece, 1, sizeof(piece), file);
        klp_buf_append(&bytes, piece, got);
    } while (got > 0);
    fclose(file);
    assert_true(klp_elf_parse(klp_buf_view(&bytes), "self", &elf, NULL));
    assert_int_equal(elf.arch, klp_arch_host());
    for (size_t i = 0; i < elf.needed_count; i++)
        has_libc |= strcmp(elf.needed[i], "libc.so.6") == 0;
    assert_true(has_libc);
    assert_non_null(strstr(elf.interpreter, "/ld"));
}

static void test_image_elf__truncations_and_flips_stay_inside(void **state)
{
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(1 << 20);
    struct klp_elf elf;
    (void)state;
    kit_elf(&bytes, KIT_X86_64, "/lib64/ld.so.2", "liba.so.1 libb.so.2 ", true);
    for (size_t size = 0; size < KIT_ELF_SIZE; size++) {
        struct kelpie_error *err = NULL;
        bytes.size = size;
        if (!parse(&bytes, &elf, &err))
            assert_int_equal(kelpie_error_code(err), KELPIE_E_CORRUPT);
        kelpie_error_free(err);
    }
    bytes.size = KIT_ELF_SIZE;
    for (size_t at = 0; at < KIT_ELF_SIZE; at++) {
        struct kelpie_error *err = NULL;
        bytes.data[at] ^= 0xff;
        if (!parse(&bytes, &elf, &err))
            assert_int_equal(kelpie_error_code(err), KELPIE_E_CORRUPT);
        kelpie_error_free(err);
        bytes.data[at] ^= 0xff;
    }
}

static void field_refused(size_t at, uint64_t value, unsigned size, const char *piece)
{
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(1 << 20);
    struct klp_elf elf;
    kit_elf(&bytes, KIT_X86_64, "/lib64/ld.so.2", "liba.so.1 ", false);
    kit_u(bytes.data + at, value, size);
    KIT_REFUSED(parse(&bytes, &elf, &err), false, KELPIE_E_CORRUPT, piece);
}

static void test_image_elf__hostile_fields_are_refused(void **state)
{
    (void)state;
    field_refused(4, 1, 1, "no 64-bit ELF");
    field_refused(5, 2, 1, "no 64-bit ELF");
    field_refused(32, UINT64_MAX - 8, 8, "damaged");
    field_refused(32, KIT_ELF_SIZE - 8, 8, "damaged");
    field_refused(54, 1, 2, "damaged");
    field_refused(56, 0xffff, 2, "damaged");
    field_refused(64 + 56 + 8, UINT64_MAX, 8, "damaged");          /* interpreter outside */
    field_refused(KIT_ELF_DYNAMIC_AT + 24, 1 << 30, 8, "damaged"); /* name outside the strings */
    field_refused(KIT_ELF_DYNAMIC_AT + 8, 1, 8, "damaged");        /* strings in no segment */
    field_refused(KIT_ELF_DYNAMIC_AT + 24, 0, 8, "damaged");       /* an empty name */
}

static void test_image_elf__needed_libraries_are_bounded(void **state)
{
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(1 << 20);
    struct klp_elf elf;
    (void)state;
    kit_elf(&bytes, KIT_X86_64, NULL, "a ", false);
    kit_u(bytes.data + 64 + 56 + 32, 16 * (KLP_ELF_NEEDED_MAX + 3), 8);
    bytes.size = KIT_ELF_DYNAMIC_AT;
    klp_buf_append_u64(&bytes, 5);
    klp_buf_append_u64(&bytes, 0x400000 + 640);
    for (int i = 0; i <= KLP_ELF_NEEDED_MAX; i++) {
        klp_buf_append_u64(&bytes, 1);
        klp_buf_append_u64(&bytes, 1);
    }
    while (bytes.size < 2 * KIT_ELF_SIZE)
        klp_buf_append_u8(&bytes, 0);
    KIT_REFUSED(parse(&bytes, &elf, &err), false, KELPIE_E_CORRUPT, "damaged");
}

/* ---- libraries */

static void elf_add(struct klp_tree *tree, const char *path, unsigned machine,
                    const char *interpreter, const char *needed)
{
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(1 << 20);
    kit_elf(&bytes, machine, interpreter, needed, false);
    assert_true(klp_tree_file_add(tree, path, 0755, bytes.data, bytes.size, NULL));
}

#define LIB "usr/lib/x86_64-linux-gnu/"

static struct klp_tree *tree_make(void)
{
    struct klp_tree *tree = klp_tree_create();
    assert_true(klp_layout_directories_add(tree, NULL));
    elf_add(tree, "usr/bin/prog", KIT_X86_64, "/lib64/ld.so.2", "liba.so.1 ");
    assert_true(klp_tree_text_add(tree, "usr/bin/script", 0755, "#!/bin/sh\n", NULL));
    elf_add(tree, "usr/lib/modules/m.ko", KIT_X86_64, NULL, "not-a-library ");
    return tree;
}

static struct klp_tree *pool_make(void)
{
    struct klp_tree *pool = klp_tree_create();
    assert_true(klp_layout_directories_add(pool, NULL));
    elf_add(pool, LIB "liba.so.1.2.3", KIT_X86_64, NULL, "libb.so.1 ");
    assert_true(klp_tree_symlink_add(pool, LIB "liba.so.1", "liba.so.1.2", NULL));
    assert_true(klp_tree_symlink_add(pool, LIB "liba.so.1.2", "liba.so.1.2.3", NULL));
    elf_add(pool, LIB "libb.so.1", KIT_X86_64, NULL, "liba.so.1 ld.so.2 ");
    elf_add(pool, LIB "libc.so.1", KIT_X86_64, NULL, "");
    elf_add(pool, LIB "ld.so.2", KIT_X86_64, NULL, "");
    assert_true(
        klp_tree_symlink_add(pool, "usr/lib64/ld.so.2", "/lib/x86_64-linux-gnu/ld.so.2", NULL));
    return pool;
}

static void test_image_elf__exactly_the_needed_libraries(void **state)
{
    KLP_AUTO(tree) struct klp_tree *tree = tree_make();
    KLP_AUTO(tree) struct klp_tree *pool = pool_make();
    char out[KLP_TREE_PATH_MAX + 1];
    (void)state;
    assert_true(klp_libraries_take(tree, pool, KLP_ARCH_X86_64, NULL));
    klp_tree_resolve(tree, LIB "liba.so.1", out);
    assert_string_equal(out, LIB "liba.so.1.2.3");
    klp_tree_resolve(tree, "lib64/ld.so.2", out);
    assert_string_equal(out, LIB "ld.so.2");
    assert_non_null(klp_tree_find(tree, LIB "libb.so.1"));
    assert_null(klp_tree_find(tree, LIB "libc.so.1"));
    assert_null(klp_tree_find(tree, LIB "liba.so.1.2"));
}

static void test_image_elf__a_missing_library_is_named(void **state)
{
    KLP_AUTO(tree) struct klp_tree *tree = tree_make();
    KLP_AUTO(tree) struct klp_tree *pool = pool_make();
    KLP_AUTO(tree) struct klp_tree *other = klp_tree_create();
    (void)state;
    assert_true(klp_tree_move(pool, LIB "libb.so.1", other, "x", NULL));
    KIT_REFUSED(klp_libraries_take(tree, pool, KLP_ARCH_X86_64, &err), false, KELPIE_E_CORRUPT,
                LIB "liba.so.1.2.3' needs '" LIB "libb.so.1'");
}

static void test_image_elf__a_symlink_to_nowhere_is_a_missing_library(void **state)
{
    KLP_AUTO(tree) struct klp_tree *tree = tree_make();
    KLP_AUTO(tree) struct klp_tree *pool = pool_make();
    KLP_AUTO(tree) struct klp_tree *other = klp_tree_create();
    (void)state;
    assert_true(klp_tree_move(pool, LIB "liba.so.1.2.3", other, "x", NULL));
    KIT_REFUSED(klp_libraries_take(tree, pool, KLP_ARCH_X86_64, &err), false, KELPIE_E_CORRUPT,
                "needs '" LIB "liba.so.1'");
}

static void test_image_elf__programs_for_another_machine_are_refused(void **state)
{
    KLP_AUTO(tree) struct klp_tree *tree = tree_make();
    KLP_AUTO(tree) struct klp_tree *pool = pool_make();
    (void)state;
    KIT_REFUSED(klp_libraries_take(tree, pool, KLP_ARCH_AARCH64, &err), false, KELPIE_E_CORRUPT,
                "no program for aarch64");
}

static void test_image_elf__names_that_lead_elsewhere_are_refused(void **state)
{
    static const char *const bad[] = {"../../../etc/passwd ", "a/b ", ".. "};
    (void)state;
    for (size_t i = 0; i < KLP_COUNT(bad); i++) {
        KLP_AUTO(tree) struct klp_tree *tree = klp_tree_create();
        KLP_AUTO(tree) struct klp_tree *pool = pool_make();
        struct kelpie_error *err = NULL;
        elf_add(tree, "p", KIT_X86_64, NULL, bad[i]);
        assert_false(klp_libraries_take(tree, pool, KLP_ARCH_X86_64, &err));
        assert_int_equal(kelpie_error_code(err), KELPIE_E_CORRUPT);
        kelpie_error_free(err);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_image_elf__facts),
        cmocka_unit_test(test_image_elf__a_real_program),
        cmocka_unit_test(test_image_elf__truncations_and_flips_stay_inside),
        cmocka_unit_test(test_image_elf__hostile_fields_are_refused),
        cmocka_unit_test(test_image_elf__needed_libraries_are_bounded),
        cmocka_unit_test(test_image_elf__exactly_the_needed_libraries),
        cmocka_unit_test(test_image_elf__a_missing_library_is_named),
        cmocka_unit_test(test_image_elf__a_symlink_to_nowhere_is_a_missing_library),
        cmocka_unit_test(test_image_elf__programs_for_another_machine_are_refused),
        cmocka_unit_test(test_image_elf__names_that_lead_elsewhere_are_refused),
    };
    return cmocka_run_group_tests_name("image_elf", tests, NULL, NULL);
}
