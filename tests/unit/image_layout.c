/* SPDX-License-Identifier: Apache-2.0 */
/* The guest's layout: where a package's files go, busybox's applets, recipes. */
#include "image_kit.h"

#include "image/layout.h"
#include "image/recipe.h"

static void test_image_layout__paths(void **state)
{
    static const char *const cases[][2] = {
        {"./bin/sh", "usr/bin/sh"},
        {"/sbin/init", "usr/bin/init"},
        {"usr/sbin/x", "usr/bin/x"},
        {"lib/x.so", "usr/lib/x.so"},
        {"././/lib64/ld.so", "usr/lib64/ld.so"},
        {"lib32/x", "lib32/x"},
        {"binary/x", "binary/x"},
        {"bin", "usr/bin"},
        {"usr/bin/x", "usr/bin/x"},
        {"etc/x", "etc/x"},
    };
    char out[KLP_TREE_PATH_MAX + 1];
    (void)state;
    for (size_t i = 0; i < KLP_COUNT(cases); i++) {
        assert_true(klp_layout_path(cases[i][0], out, NULL));
        assert_string_equal(out, cases[i][1]);
    }
}

static void test_image_layout__bad_paths_are_refused(void **state)
{
    static const char *const bad[] = {"", "./", "/", "bin/../../x", "../x", "bin//x", "bin/./x"};
    char out[KLP_TREE_PATH_MAX + 1], path[KLP_TREE_PATH_MAX + 1];
    (void)state;
    for (size_t i = 0; i < KLP_COUNT(bad); i++)
        KIT_REFUSED(klp_layout_path(bad[i], out, &err), false, KELPIE_E_CORRUPT, "cannot place");
    memcpy(path, "bin/", 4); /* fits as it is, and no longer below usr/ */
    for (size_t i = 4; i < KLP_TREE_PATH_MAX; i++)
        path[i] = i % 2 == 0 ? 'a' : '/';
    path[KLP_TREE_PATH_MAX] = '\0';
    KIT_REFUSED(klp_layout_path(path, out, &err), false, KELPIE_E_CORRUPT, "too long");
}

static void test_image_layout__old_places_lead_to_the_new(void **state)
{
    static const char *const places[] = {"bin/x", "sbin/x", "usr/sbin/x", "usr/bin/x"};
    KLP_AUTO(tree) struct klp_tree *tree = klp_tree_create();
    char out[KLP_TREE_PATH_MAX + 1];
    (void)state;
    assert_true(klp_layout_directories_add(tree, NULL));
    assert_true(klp_tree_text_add(tree, "usr/bin/x", 0755, "", NULL));
    for (size_t i = 0; i < KLP_COUNT(places); i++) {
        klp_tree_resolve(tree, places[i], out);
        assert_string_equal(out, "usr/bin/x");
    }
}

static void test_image_layout__base_has_what_a_guest_needs(void **state)
{
    static const char *const directories[] = {"dev", "proc", "root", "run",
                                              "sys", "tmp",  "var",  "workspace"};
    static const char *const files[] = {"etc/group",  "etc/hostname",   "etc/hosts",
                                        "etc/passwd", "etc/os-release", "etc/nsswitch.conf"};
    KLP_AUTO(tree) struct klp_tree *tree = klp_tree_create();
    (void)state;
    assert_true(klp_layout_base_add(tree, "1.2.3", NULL));
    for (size_t i = 0; i < KLP_COUNT(directories); i++)
        assert_int_equal(klp_tree_find(tree, directories[i])->kind, KLP_TREE_DIRECTORY);
    for (size_t i = 0; i < KLP_COUNT(files); i++)
        assert_int_equal(klp_tree_find(tree, files[i])->kind, KLP_TREE_FILE);
    assert_int_equal(klp_tree_find(tree, "tmp")->mode, 01777);
    assert_int_equal(klp_tree_find(tree, "dev/console")->kind, KLP_TREE_CHAR_DEVICE);
    assert_int_equal(klp_tree_find(tree, "dev/console")->major, 5);
    assert_non_null(strstr((const char *)klp_tree_find(tree, "etc/os-release")->data,
                           "VERSION_ID=\"1.2.3\"\n"));
}

/* ---- applets */

static struct klp_tree *applets(const char *binary, size_t size)
{
    struct klp_tree *tree = klp_tree_create();
    uint8_t *copy = kit_copy(binary, size);
    assert_true(klp_tree_text_add(tree, "usr/bin/busybox", 0755, "", NULL));
    assert_true(klp_layout_applets_add(tree, (struct klp_bytes){copy, size}, NULL));
    free(copy);
    return tree;
}

#define APPLETS(literal) applets("" literal "", sizeof(literal) - 1)

static void test_image_layout__applets_of_the_table(void **state)
{
    KLP_AUTO(tree)
    struct klp_tree *tree =
        APPLETS("ELF..[[\0x\0[\0[[\0ash\0busybox\0sh\0zcat\0\0/var/log\0after\0");
    (void)state;
    assert_memory_equal(klp_tree_find(tree, "usr/bin/sh")->data, "busybox", 8);
    assert_non_null(klp_tree_find(tree, "usr/bin/["));
    assert_non_null(klp_tree_find(tree, "usr/bin/[["));
    assert_non_null(klp_tree_find(tree, "usr/bin/zcat"));
    assert_null(klp_tree_find(tree, "usr/bin/after"));
    assert_null(klp_tree_find(tree, "usr/bin/x"));
    assert_int_equal(klp_tree_find(tree, "usr/bin/busybox")->kind, KLP_TREE_FILE);
    assert_int_equal(tree->count, 2 + 6);
}

static void fallback_check(struct klp_tree *tree)
{
    assert_non_null(klp_tree_find(tree, "usr/bin/sh"));
    assert_non_null(klp_tree_find(tree, "usr/bin/tar"));
    assert_null(klp_tree_find(tree, "usr/bin/ash2"));
    assert_true(tree->count > 100);
    klp_tree_destroy(tree);
}

static void test_image_layout__without_a_table_the_common_ones(void **state)
{
    (void)state;
    fallback_check(APPLETS(""));
    fallback_check(APPLETS("[[["));
    fallback_check(APPLETS("\0[\0[["));
    fallback_check(APPLETS("\0[\0[[\0"));
    fallback_check(APPLETS("\0[\0[[\0ash2\0\0"));           /* has no sh */
    fallback_check(APPLETS("\0[\0[[\0ash2\0sh\0cut"));      /* has no end */
    fallback_check(APPLETS("\0[\0[[\0ash2\0sh\0../x\0\0")); /* no name of a program */
    fallback_check(APPLETS("\0[\0[[\0ash2\0sh\0A B\0\0"));
}

/* ---- recipes */

static const struct klp_recipe_part *part_of(const char *recipe, const char *package)
{
    const struct klp_recipe_part *part = klp_recipe_find(recipe)->parts;
    while (part->package != NULL && strcmp(part->package, package) != 0)
        part++;
    assert_non_null(part->package);
    return part;
}

static void test_image_layout__recipes(void **state)
{
    (void)state;
    assert_non_null(klp_recipe_find("base"));
    assert_null(klp_recipe_find("base")->parts[0].package);
    assert_null(klp_recipe_find("Base"));
    assert_null(klp_recipe_find(""));
    for (int arch = KLP_ARCH_X86_64; arch <= KLP_ARCH_AARCH64; arch++) {
        const char *const *modules = klp_recipe_modules((enum klp_arch)arch);
        assert_string_equal(modules[0], "virtio_ring");
        assert_string_equal(modules[1], "virtio");
        assert_true(strlen(klp_recipe_cmdline((enum klp_arch)arch)) < 256);
        assert_null(strstr(klp_recipe_cmdline((enum klp_arch)arch), "tsc_early_khz"));
    }
}

static void test_image_layout__python_leaves_ballast_out(void **state)
{
    const struct klp_recipe_part *library = part_of("python", "libpython3.11-stdlib");
    (void)state;
    assert_true(klp_recipe_wants(library, "usr/lib/python3.11/json/decoder.py"));
    assert_true(klp_recipe_wants(library, "usr/lib/python3.11/unittest/case.py"));
    assert_true(klp_recipe_wants(library, "usr/lib/python3.11/lib-dynload/_json.so"));
    assert_true(klp_recipe_wants(library, "etc/python3.11/sitecustomize.py"));
    assert_false(klp_recipe_wants(library, "usr/lib/python3.11/test/support/os.py"));
    assert_false(klp_recipe_wants(library, "usr/lib/python3.11/ctypes/tests/x.py"));
    assert_false(klp_recipe_wants(library, "usr/lib/python3.11/__pycache__/x.pyc"));
    assert_false(klp_recipe_wants(library, "usr/lib/python3.11/lib-dynload/_testcapi.so"));
    assert_false(klp_recipe_wants(library, "usr/lib/python3.110/x.py"));
    assert_false(klp_recipe_wants(library, "usr/share/doc/python3.11/x"));
}

static void test_image_layout__only_libraries_of_library_packages(void **state)
{
    const struct klp_recipe_part *part = part_of("python", "libc6");
    (void)state;
    assert_true(klp_recipe_wants(part, "usr/lib/x86_64-linux-gnu/libc.so.6"));
    assert_true(klp_recipe_wants(part, "usr/lib64/ld-linux-x86-64.so.2"));
    assert_false(klp_recipe_wants(part, "usr/share/doc/libc6/x.so"));
    assert_false(klp_recipe_wants(part, "etc/ld.so.conf"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_image_layout__paths),
        cmocka_unit_test(test_image_layout__bad_paths_are_refused),
        cmocka_unit_test(test_image_layout__old_places_lead_to_the_new),
        cmocka_unit_test(test_image_layout__base_has_what_a_guest_needs),
        cmocka_unit_test(test_image_layout__applets_of_the_table),
        cmocka_unit_test(test_image_layout__without_a_table_the_common_ones),
        cmocka_unit_test(test_image_layout__recipes),
        cmocka_unit_test(test_image_layout__python_leaves_ballast_out),
        cmocka_unit_test(test_image_layout__only_libraries_of_library_packages),
    };
    return cmocka_run_group_tests_name("image_layout", tests, NULL, NULL);
}
