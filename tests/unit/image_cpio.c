/* SPDX-License-Identifier: Apache-2.0 */
/* The initramfs archive: its bytes, and names that must not get in. */
#include "image_kit.h"

#include "image/cpio.h"

static struct klp_sink sink_to(struct klp_buf *out)
{
    return (struct klp_sink){kit_sink_buf, out};
}

/* Written out by hand after the kernel's description of the format. */
static void test_image_cpio__worked_example(void **state)
{
    static const char want[] = "070701"
                               "00000001"
                               "000041ED"
                               "00000000"
                               "00000000"
                               "00000002"
                               "00000000"
                               "00000000"
                               "00000000"
                               "00000000"
                               "00000000"
                               "00000000"
                               "00000002"
                               "00000000"
                               "d\0"
                               "070701"
                               "00000002"
                               "000081A4"
                               "00000000"
                               "00000000"
                               "00000001"
                               "00000000"
                               "00000005"
                               "00000000"
                               "00000000"
                               "00000000"
                               "00000000"
                               "00000004"
                               "00000000"
                               "d/f\0"
                               "\0\0"
                               "hello"
                               "\0\0\0"
                               "070701"
                               "00000003"
                               "00002180"
                               "00000000"
                               "00000000"
                               "00000001"
                               "00000000"
                               "00000000"
                               "00000000"
                               "00000000"
                               "00000005"
                               "00000001"
                               "00000002"
                               "00000000"
                               "n\0"
                               "070701"
                               "00000004"
                               "0000A1FF"
                               "00000000"
                               "00000000"
                               "00000001"
                               "00000000"
                               "00000003"
                               "00000000"
                               "00000000"
                               "00000000"
                               "00000000"
                               "00000002"
                               "00000000"
                               "s\0"
                               "d/f"
                               "\0"
                               "070701"
                               "00000000"
                               "00000000"
                               "00000000"
                               "00000000"
                               "00000001"
                               "00000000"
                               "00000000"
                               "00000000"
                               "00000000"
                               "00000000"
                               "00000000"
                               "0000000B"
                               "00000000"
                               "TRAILER!!!\0";
    KLP_AUTO(tree) struct klp_tree *tree = klp_tree_create();
    struct klp_buf out KLP_AUTO(buf) = KLP_BUF_INIT(1 << 20);
    (void)state;
    assert_true(klp_tree_symlink_add(tree, "s", "d/f", NULL));
    assert_true(klp_tree_device_add(tree, "n", 0600, 5, 1, NULL));
    assert_true(klp_tree_text_add(tree, "d/f", 0644, "hello", NULL));
    assert_true(klp_cpio_write(tree, sink_to(&out), NULL));
    assert_int_equal(out.size % 512, 0);
    assert_memory_equal(out.data, want, sizeof(want) - 1);
    for (size_t i = sizeof(want) - 1; i < out.size; i++)
        assert_int_equal(out.data[i], 0);
}

static void test_image_cpio__order_of_adding_does_not_show(void **state)
{
    static const char *const paths[] = {"b/c", "a", "b-c", "b/a", "zz", "b.d"};
    struct klp_buf outs[2] = {KLP_BUF_INIT(1 << 20), KLP_BUF_INIT(1 << 20)};
    (void)state;
    for (size_t round = 0; round < 2; round++) {
        KLP_AUTO(tree) struct klp_tree *tree = klp_tree_create();
        for (size_t i = 0; i < KLP_COUNT(paths); i++) {
            const char *path = paths[round == 0 ? i : KLP_COUNT(paths) - 1 - i];
            assert_true(klp_tree_text_add(tree, path, 0644, path, NULL));
        }
        assert_true(klp_cpio_write(tree, sink_to(&outs[round]), NULL));
    }
    assert_int_equal(outs[0].size, outs[1].size);
    assert_memory_equal(outs[0].data, outs[1].data, outs[0].size);
    klp_buf_finish(&outs[0]);
    klp_buf_finish(&outs[1]);
}

static void test_image_cpio__an_empty_tree_is_an_archive(void **state)
{
    KLP_AUTO(tree) struct klp_tree *tree = klp_tree_create();
    struct klp_buf out KLP_AUTO(buf) = KLP_BUF_INIT(1 << 20);
    (void)state;
    assert_true(klp_cpio_write(tree, sink_to(&out), NULL));
    assert_int_equal(out.size, 512);
}

/* Such nodes cannot be added; should one get there by a mistake, it still does not get out. */
static void test_image_cpio__bad_names_are_refused(void **state)
{
    static char bad[][16] = {"../etc/passwd", "/etc/passwd", "", "a//b", "a/../../b", "x\ny"};
    (void)state;
    for (size_t i = 0; i < KLP_COUNT(bad); i++) {
        struct klp_tree_node node = {.path = bad[i], .kind = KLP_TREE_FILE};
        struct klp_tree tree = {.nodes = &node, .count = 1, .capacity = 1};
        struct klp_buf out KLP_AUTO(buf) = KLP_BUF_INIT(1 << 20);
        KIT_REFUSED(klp_cpio_write(&tree, sink_to(&out), &err), false, KELPIE_E_CORRUPT,
                    "bad path");
        assert_int_equal(out.size, 0);
    }
}

static void test_image_cpio__a_file_cannot_end_the_archive(void **state)
{
    KLP_AUTO(tree) struct klp_tree *tree = klp_tree_create();
    struct klp_buf out KLP_AUTO(buf) = KLP_BUF_INIT(1 << 20);
    (void)state;
    assert_true(klp_tree_text_add(tree, "TRAILER!!!", 0644, "", NULL));
    KIT_REFUSED(klp_cpio_write(tree, sink_to(&out), &err), false, KELPIE_E_CORRUPT, "ends");
}

static void test_image_cpio__size_over_the_field_is_refused(void **state)
{
    struct klp_tree_node node = {
        .path = (char[]){"big"}, .kind = KLP_TREE_FILE, .size = (size_t)UINT32_MAX + 1};
    struct klp_tree tree = {.nodes = &node, .count = 1, .capacity = 1};
    struct klp_buf out KLP_AUTO(buf) = KLP_BUF_INIT(1 << 20);
    (void)state;
    KIT_REFUSED(klp_cpio_write(&tree, sink_to(&out), &err), false, KELPIE_E_LIMIT, "4 GiB");
}

static void test_image_cpio__a_full_disk_is_reported(void **state)
{
    KLP_AUTO(tree) struct klp_tree *tree = klp_tree_create();
    (void)state;
    assert_true(klp_tree_text_add(tree, "f", 0644, "hello", NULL));
    for (size_t room = 0; room < 512; room += 37) {
        size_t left = room;
        struct klp_sink sink = {kit_sink_full, &left};
        KIT_REFUSED(klp_cpio_write(tree, sink, &err), false, KELPIE_E_NO_SPACE, "no space");
    }
    size_t left = 512;
    assert_true(klp_cpio_write(tree, (struct klp_sink){kit_sink_full, &left}, NULL));
    assert_int_equal(left, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_image_cpio__worked_example),
        cmocka_unit_test(test_image_cpio__order_of_adding_does_not_show),
        cmocka_unit_test(test_image_cpio__an_empty_tree_is_an_archive),
        cmocka_unit_test(test_image_cpio__bad_names_are_refused),
        cmocka_unit_test(test_image_cpio__a_file_cannot_end_the_archive),
        cmocka_unit_test(test_image_cpio__size_over_the_field_is_refused),
        cmocka_unit_test(test_image_cpio__a_full_disk_is_reported),
    };
    return cmocka_run_group_tests_name("image_cpio", tests, NULL, NULL);
}
