/* SPDX-License-Identifier: Apache-2.0 */
/* The file tree of an image: order, parents, what is refused, symlinks. */
#include "image_kit.h"

static struct klp_tree *tree_make(void)
{
    struct klp_tree *tree = klp_tree_create();
    assert_true(klp_tree_text_add(tree, "usr/lib/x/libz.so.1.2", 0644, "z", NULL));
    assert_true(klp_tree_symlink_add(tree, "usr/lib/x/libz.so.1", "libz.so.1.2", NULL));
    assert_true(klp_tree_symlink_add(tree, "lib", "usr/lib", NULL));
    assert_true(klp_tree_symlink_add(tree, "ld", "/lib/x/../x/./libz.so.1", NULL));
    return tree;
}

static void test_image_tree__is_sorted_and_has_parents(void **state)
{
    KLP_AUTO(tree) struct klp_tree *tree = tree_make();
    (void)state;
    for (size_t i = 1; i < tree->count; i++)
        assert_true(strcmp(tree->nodes[i - 1].path, tree->nodes[i].path) < 0);
    assert_int_equal(tree->count, 7);
    assert_int_equal(klp_tree_find(tree, "usr/lib/x")->kind, KLP_TREE_DIRECTORY);
    assert_int_equal(klp_tree_find(tree, "usr/lib/x")->mode, 0755);
    assert_null(klp_tree_find(tree, "usr/lib/y"));
    assert_null(klp_tree_find(tree, "usr/li"));
}

static void test_image_tree__bad_paths_are_refused(void **state)
{
    static const char *const bad[] = {"",       "/etc",  "a//b", "a/",   ".",      "..",     "../a",
                                      "a/../b", "a/./b", "a/..", "a\nb", "a/\x7f", "\x1b[2J"};
    KLP_AUTO(tree) struct klp_tree *tree = klp_tree_create();
    char path[KLP_TREE_PATH_MAX + 3];
    (void)state;
    for (size_t i = 0; i < KLP_COUNT(bad); i++)
        KIT_REFUSED(klp_tree_text_add(tree, bad[i], 0644, "", &err), false, KELPIE_E_CORRUPT,
                    "bad path");
    for (size_t i = 0; i < sizeof(path) - 1; i++)
        path[i] = i % 2 == 0 ? 'a' : '/';
    path[sizeof(path) - 1] = '\0';
    KIT_REFUSED(klp_tree_text_add(tree, path, 0644, "", &err), false, KELPIE_E_CORRUPT, "too long");
    memset(path, 'a', 256);
    path[256] = '\0';
    KIT_REFUSED(klp_tree_text_add(tree, path, 0644, "", &err), false, KELPIE_E_CORRUPT, "bad path");
    assert_int_equal(tree->count, 0);
    assert_true(klp_tree_text_add(tree, "...", 0644, "", NULL));
    assert_true(klp_tree_text_add(tree, "a..b/.c", 0644, "", NULL));
}

static void test_image_tree__a_name_is_taken_once(void **state)
{
    KLP_AUTO(tree) struct klp_tree *tree = tree_make();
    (void)state;
    KIT_REFUSED(klp_tree_text_add(tree, "lib", 0644, "", &err), false, KELPIE_E_EXISTS, "'lib'");
    KIT_REFUSED(klp_tree_text_add(tree, "lib/a", 0644, "", &err), false, KELPIE_E_CORRUPT,
                "no directory");
    KIT_REFUSED(klp_tree_directory_add(tree, "usr/lib/x/libz.so.1.2", 0755, &err), false,
                KELPIE_E_CORRUPT, "no directory");
    assert_true(klp_tree_directory_add(tree, "usr/lib", 0700, NULL));
    assert_int_equal(klp_tree_find(tree, "usr/lib")->mode, 0755);
    KIT_REFUSED(klp_tree_symlink_add(tree, "empty", "", &err), false, KELPIE_E_CORRUPT, "target");
}

static void test_image_tree__no_set_id_bits(void **state)
{
    KLP_AUTO(tree) struct klp_tree *tree = klp_tree_create();
    (void)state;
    assert_true(klp_tree_text_add(tree, "su", 06755, "", NULL));
    assert_int_equal(klp_tree_find(tree, "su")->mode, 0755);
}

static void test_image_tree__symlinks_resolve_inside(void **state)
{
    static const char *const cases[][2] = {
        {"usr/lib/x/libz.so.1", "usr/lib/x/libz.so.1.2"},
        {"lib/x/libz.so.1", "usr/lib/x/libz.so.1.2"},
        {"ld", "usr/lib/x/libz.so.1.2"},
        {"usr/lib", "usr/lib"},
        {"lib/none", ""},
        {"loop", ""},
        {"up", "usr/lib"}, /* ".." at the top stays there, as in a real root */
        {"gone", ""},
        {"", ""},
    };
    KLP_AUTO(tree) struct klp_tree *tree = tree_make();
    char out[KLP_TREE_PATH_MAX + 1];
    (void)state;
    assert_true(klp_tree_symlink_add(tree, "loop", "loop", NULL));
    assert_true(klp_tree_symlink_add(tree, "up", "../../usr/lib", NULL));
    assert_true(klp_tree_symlink_add(tree, "gone", "/etc/shadow", NULL));
    for (size_t i = 0; i < KLP_COUNT(cases); i++) {
        klp_tree_resolve(tree, cases[i][0], out);
        assert_string_equal(out, cases[i][1]);
    }
}

static void test_image_tree__symlinks_that_grow_end(void **state)
{
    KLP_AUTO(tree) struct klp_tree *tree = klp_tree_create();
    char target[1000], out[KLP_TREE_PATH_MAX + 1];
    (void)state;
    memset(target, 'b', sizeof(target));
    target[0] = 'a';
    for (size_t i = 1; i < sizeof(target); i += 2)
        target[i] = '/';
    target[sizeof(target) - 1] = '\0';
    assert_true(klp_tree_symlink_add(tree, "a", target, NULL));
    klp_tree_resolve(tree, "a", out);
    assert_string_equal(out, "");
}

static void test_image_tree__moves_between_trees(void **state)
{
    KLP_AUTO(tree) struct klp_tree *from = tree_make();
    KLP_AUTO(tree) struct klp_tree *to = klp_tree_create();
    uint64_t bytes = from->bytes;
    (void)state;
    assert_true(klp_tree_move(from, "usr/lib/x/libz.so.1.2", to, "a/b", NULL));
    assert_null(klp_tree_find(from, "usr/lib/x/libz.so.1.2"));
    assert_memory_equal(klp_tree_find(to, "a/b")->data, "z", 2);
    assert_int_equal(from->bytes + to->bytes, bytes);
    KIT_REFUSED(klp_tree_move(from, "usr/lib/x/libz.so.1.2", to, "a/c", &err), false,
                KELPIE_E_NOT_FOUND, "libz");
    KIT_REFUSED(klp_tree_move(from, "usr", to, "usr", &err), false, KELPIE_E_NOT_FOUND, "'usr'");
    KIT_REFUSED(klp_tree_move(from, "lib", to, "a/b", &err), false, KELPIE_E_EXISTS, "'a/b'");
}

static void test_image_tree__finds_by_both_ends(void **state)
{
    KLP_AUTO(tree) struct klp_tree *tree = tree_make();
    (void)state;
    assert_string_equal(klp_tree_find_like(tree, "usr/lib/", ".1.2")->path,
                        "usr/lib/x/libz.so.1.2");
    assert_string_equal(klp_tree_find_like(tree, "usr/lib/", "")->path, "usr/lib/x");
    assert_null(klp_tree_find_like(tree, "usr/lib/", "/lib"));
    assert_null(klp_tree_find_like(tree, "zzz", ""));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_image_tree__is_sorted_and_has_parents),
        cmocka_unit_test(test_image_tree__bad_paths_are_refused),
        cmocka_unit_test(test_image_tree__a_name_is_taken_once),
        cmocka_unit_test(test_image_tree__no_set_id_bits),
        cmocka_unit_test(test_image_tree__symlinks_resolve_inside),
        cmocka_unit_test(test_image_tree__symlinks_that_grow_end),
        cmocka_unit_test(test_image_tree__moves_between_trees),
        cmocka_unit_test(test_image_tree__finds_by_both_ends),
    };
    return cmocka_run_group_tests_name("image_tree", tests, NULL, NULL);
}
