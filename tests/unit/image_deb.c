/* SPDX-License-Identifier: Apache-2.0 */
/* Packages: the ar archive, the tar stream inside, and both together through dpkg-deb. */
#include "image_kit.h"

#include "image/deb.h"

static bool want_all(const void *arg, const char *path)
{
    (void)arg;
    (void)path;
    return true;
}

static bool want_named(const void *arg, const char *path)
{
    return strcmp(arg, path) == 0;
}

static bool tar_read(const struct klp_buf *tar, struct klp_tree *tree, struct kelpie_error **err)
{
    struct klp_deb_take take = {.want = want_all, .tree = tree};
    uint8_t *copy = kit_copy(tar->data, tar->size);
    bool done = klp_deb_tar_read((struct klp_bytes){copy, tar->size}, "x.deb", &take, err);
    free(copy);
    return done;
}

static bool find(const struct klp_buf *deb, struct klp_ar_member *out, struct kelpie_error **err)
{
    int fd = kit_file(klp_buf_view(deb));
    bool found = klp_deb_data_find(fd, "x.deb", out, err);
    close(fd);
    return found;
}

static void deb_make(struct klp_buf *deb)
{
    struct klp_buf tar KLP_AUTO(buf) = KLP_BUF_INIT(1 << 20);
    kit_tar_add(&tar, KLP_TAR_DIRECTORY, "./", "", (struct klp_bytes){NULL, 0});
    kit_tar_add(&tar, KLP_TAR_DIRECTORY, "./bin/", "", (struct klp_bytes){NULL, 0});
    kit_tar_file(&tar, "./bin/tool", kit_text("tool"));
    kit_tar_add(&tar, KLP_TAR_HARDLINK, "./bin/same", "./bin/tool", (struct klp_bytes){NULL, 0});
    kit_tar_add(&tar, KLP_TAR_SYMLINK, "./sbin/link", "../bin/tool", (struct klp_bytes){NULL, 0});
    kit_tar_file(&tar, "./usr/share/empty", kit_text(""));
    klp_tar_end_append(&tar);
    kit_deb(deb,
            "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: x\n",
            klp_buf_view(&tar));
}

/* ---- ar */

static void test_image_deb__finds_the_data(void **state)
{
    static const char *const names[] = {"data.tar", "data.tar.gz", "data.tar.xz", "data.tar.zst",
                                        "data.tar.xz/"};
    (void)state;
    for (size_t i = 0; i < KLP_COUNT(names); i++) {
        struct klp_buf deb KLP_AUTO(buf) = KLP_BUF_INIT(1 << 20);
        struct klp_ar_member member;
        klp_buf_append_text(&deb, "!<arch>\n");
        kit_ar_member(&deb, "debian-binary", kit_text("2.0\n"), 4);
        kit_ar_member(&deb, "control.tar.xz", kit_text("odd"), 3);
        kit_ar_member(&deb, names[i], kit_text("data!"), 5);
        assert_true(find(&deb, &member, NULL));
        assert_int_equal(member.size, 5);
        assert_memory_equal(deb.data + member.offset, "data!", 5);
    }
}

static void test_image_deb__every_truncation_is_refused(void **state)
{
    struct klp_buf deb KLP_AUTO(buf) = KLP_BUF_INIT(1 << 20);
    struct klp_ar_member member;
    (void)state;
    deb_make(&deb);
    assert_true(find(&deb, &member, NULL));
    size_t whole = member.offset + member.size;
    for (size_t size = 0; size < whole; size += size < 600 ? 1 : 97) {
        struct kelpie_error *err = NULL;
        deb.size = size;
        assert_false(find(&deb, &member, &err));
        assert_int_equal(kelpie_error_code(err), KELPIE_E_CORRUPT);
        kelpie_error_free(err);
    }
}

static void ar_refused(const char *first, const char *version, const char *data,
                       struct klp_bytes content, size_t says, enum kelpie_code code,
                       const char *piece)
{
    struct klp_buf deb KLP_AUTO(buf) = KLP_BUF_INIT(1 << 20);
    struct klp_ar_member member;
    klp_buf_append_text(&deb, "!<arch>\n");
    kit_ar_member(&deb, first, kit_text(version), strlen(version));
    kit_ar_member(&deb, data, content, says);
    KIT_REFUSED(find(&deb, &member, &err), false, code, piece);
}

static void test_image_deb__hostile_archives_are_refused(void **state)
{
    struct klp_bytes x = kit_text("xx");
    struct klp_buf deb KLP_AUTO(buf) = KLP_BUF_INIT(1 << 20);
    struct klp_ar_member member;
    (void)state;
    ar_refused("debian-binary", "2.0\n", "data.tar", x, 3, KELPIE_E_CORRUPT, "truncated");
    ar_refused("debian-binary", "2.0\n", "data.tar", x, 9999999999, KELPIE_E_CORRUPT, "truncated");
    ar_refused("debian-binary", "2.0\n", "data.tar.lzma", x, 2, KELPIE_E_UNSUPPORTED, "neither");
    ar_refused("debian-binary", "2.0\n", "other", x, 2, KELPIE_E_CORRUPT, "no data.tar");
    ar_refused("debian-binary", "3.0\n", "data.tar", x, 2, KELPIE_E_UNSUPPORTED, "format 2");
    ar_refused("debian-binary", "2", "data.tar", x, 2, KELPIE_E_CORRUPT, "begin");
    ar_refused("data.tar", "2.0\n", "debian-binary", x, 2, KELPIE_E_CORRUPT, "begin");
    deb_make(&deb);
    deb.data[0] = '?';
    KIT_REFUSED(find(&deb, &member, &err), false, KELPIE_E_CORRUPT, "no ar archive");
    deb.data[0] = '!';
    memcpy(deb.data + 8 + 48, "-4        ", 10);
    KIT_REFUSED(find(&deb, &member, &err), false, KELPIE_E_CORRUPT, "no number");
    memcpy(deb.data + 8 + 48, "          ", 10);
    KIT_REFUSED(find(&deb, &member, &err), false, KELPIE_E_CORRUPT, "no number");
    memcpy(deb.data + 8 + 48, "4         ", 10);
    deb.data[8 + 58] = ' ';
    KIT_REFUSED(find(&deb, &member, &err), false, KELPIE_E_CORRUPT, "no header");
}

static void test_image_deb__members_are_bounded(void **state)
{
    struct klp_buf deb KLP_AUTO(buf) = KLP_BUF_INIT(1 << 20);
    struct klp_ar_member member;
    (void)state;
    klp_buf_append_text(&deb, "!<arch>\n");
    kit_ar_member(&deb, "debian-binary", kit_text("2.0\n"), 4);
    for (int i = 0; i < 20; i++)
        kit_ar_member(&deb, "filler", kit_text(""), 0);
    KIT_REFUSED(find(&deb, &member, &err), false, KELPIE_E_CORRUPT, "too many");
}

/* ---- tar */

static void test_image_deb__files_get_the_guests_layout(void **state)
{
    struct klp_buf tar KLP_AUTO(buf) = KLP_BUF_INIT(1 << 20);
    KLP_AUTO(tree) struct klp_tree *tree = klp_tree_create();
    (void)state;
    kit_tar_file(&tar, "./lib64/ld.so", kit_text("ld"));
    kit_tar_file(&tar, "usr/sbin/tool", kit_text("tool"));
    kit_tar_file(&tar, "./library/x", kit_text("x"));
    klp_tar_end_append(&tar);
    assert_true(tar_read(&tar, tree, NULL));
    assert_non_null(klp_tree_find(tree, "usr/lib64/ld.so"));
    assert_non_null(klp_tree_find(tree, "usr/bin/tool"));
    assert_non_null(klp_tree_find(tree, "library/x"));
}

static void test_image_deb__only_what_is_wanted(void **state)
{
    struct klp_buf tar KLP_AUTO(buf) = KLP_BUF_INIT(1 << 20);
    KLP_AUTO(tree) struct klp_tree *tree = klp_tree_create();
    struct klp_deb_take take = {.want = want_named, .arg = "usr/bin/b", .tree = tree};
    (void)state;
    kit_tar_file(&tar, "bin/a", kit_text("a"));
    kit_tar_file(&tar, "bin/b", kit_text("b"));
    klp_tar_end_append(&tar);
    assert_true(klp_deb_tar_read(klp_buf_view(&tar), "x.deb", &take, NULL));
    assert_null(klp_tree_find(tree, "usr/bin/a"));
    assert_memory_equal(klp_tree_find(tree, "usr/bin/b")->data, "b", 2);
}

static void entry_refused(enum klp_tar_kind kind, const char *path, const char *target,
                          enum kelpie_code code, const char *piece)
{
    struct klp_buf tar KLP_AUTO(buf) = KLP_BUF_INIT(1 << 20);
    KLP_AUTO(tree) struct klp_tree *tree = klp_tree_create();
    kit_tar_file(&tar, "bin/a", kit_text("a"));
    kit_tar_add(&tar, kind, path, target, (struct klp_bytes){NULL, 0});
    klp_tar_end_append(&tar);
    KIT_REFUSED(tar_read(&tar, tree, &err), false, code, piece);
}

static void test_image_deb__entries_that_lead_out_are_refused(void **state)
{
    (void)state;
    entry_refused(KLP_TAR_FILE, "bin/a", "", KELPIE_E_EXISTS, "there already");
    entry_refused(KLP_TAR_FILE, "bin/a/b", "", KELPIE_E_CORRUPT, "no directory");
    entry_refused(KLP_TAR_FILE, "bin/\nb", "", KELPIE_E_CORRUPT, "bad path");
    entry_refused(KLP_TAR_HARDLINK, "bin/b", "bin/none", KELPIE_E_CORRUPT, "hard link");
    entry_refused(KLP_TAR_HARDLINK, "bin/b", "bin", KELPIE_E_CORRUPT, "hard link");
}

/* The tar writer would not make such a name, so it is patched in. */
static void test_image_deb__dots_in_a_name_are_refused(void **state)
{
    struct klp_buf tar KLP_AUTO(buf) = KLP_BUF_INIT(1 << 20);
    KLP_AUTO(tree) struct klp_tree *tree = klp_tree_create();
    uint32_t sum = 8 * ' ';
    (void)state;
    kit_tar_file(&tar, "aa/evil", kit_text("x"));
    klp_tar_end_append(&tar);
    memcpy(tar.data, "..", 2);
    for (size_t i = 0; i < 512; i++)
        sum += i >= 148 && i < 156 ? 0 : tar.data[i];
    snprintf((char *)tar.data + 148, 8, "%06o", sum);
    KIT_REFUSED(tar_read(&tar, tree, &err), false, KELPIE_E_CORRUPT, "x.deb");
    assert_int_equal(tree->count, 0);
}

static void test_image_deb__a_cut_tar_is_refused(void **state)
{
    struct klp_buf tar KLP_AUTO(buf) = KLP_BUF_INIT(1 << 20);
    (void)state;
    kit_tar_file(&tar, "bin/a", kit_text("content"));
    klp_tar_end_append(&tar);
    size_t whole = tar.size;
    for (size_t size = 0; size < whole; size += 64) {
        KLP_AUTO(tree) struct klp_tree *tree = klp_tree_create();
        tar.size = size;
        KIT_REFUSED(tar_read(&tar, tree, &err), false, KELPIE_E_CORRUPT, "truncated");
    }
}

static void test_image_deb__a_file_that_says_too_much_is_refused(void **state)
{
    struct klp_tar_entry *entry = calloc(1, sizeof(*entry));
    struct klp_buf tar KLP_AUTO(buf) = KLP_BUF_INIT(1 << 20);
    KLP_AUTO(tree) struct klp_tree *tree = klp_tree_create();
    (void)state;
    assert_non_null(entry);
    strncpy(entry->path, "big", sizeof(entry->path) - 1);
    entry->kind = KLP_TAR_FILE;
    entry->size = (uint64_t)KLP_DEB_FILE_MAX + 1;
    assert_true(klp_tar_header_append(&tar, entry, NULL));
    KIT_REFUSED(tar_read(&tar, tree, &err), false, KELPIE_E_LIMIT, "'big' is too large");
    klp_buf_clear(&tar);
    entry->size = (uint64_t)KLP_DEB_CONTENT_MAX + 1;
    assert_true(klp_tar_header_append(&tar, entry, NULL));
    KIT_REFUSED(tar_read(&tar, tree, &err), false, KELPIE_E_LIMIT, "x.deb");
    free(entry);
}

/* ---- through dpkg-deb */

static void skip_without_dpkg(void)
{
    if (access("/usr/bin/dpkg-deb", X_OK) == 0)
        return;
    print_message("skipped: dpkg-deb is not installed\n");
    skip();
}

static void test_image_deb__a_package_is_read(void **state)
{
    struct klp_buf deb KLP_AUTO(buf) = KLP_BUF_INIT(1 << 20);
    KLP_AUTO(tree) struct klp_tree *tree = klp_tree_create();
    struct klp_deb_take take = {.want = want_all, .tree = tree};
    struct kelpie_op op = klp_op_plain(*state, 20000);
    skip_without_dpkg();
    deb_make(&deb);
    int fd = kit_file(klp_buf_view(&deb));
    assert_true(kelpie_is_ok(klp_deb_read(&op, fd, "x.deb", &take, NULL)));
    assert_memory_equal(klp_tree_find(tree, "usr/bin/tool")->data, "tool", 5);
    assert_memory_equal(klp_tree_find(tree, "usr/bin/same")->data, "tool", 5);
    assert_memory_equal(klp_tree_find(tree, "usr/bin/link")->data, "../bin/tool", 12);
    assert_int_equal(klp_tree_find(tree, "usr/bin/tool")->mode, 0755);
    assert_int_equal(klp_tree_find(tree, "usr/share/empty")->size, 0);
    close(fd);
}

static void test_image_deb__dpkg_debs_refusal_is_passed_on(void **state)
{
    struct klp_buf deb KLP_AUTO(buf) = KLP_BUF_INIT(1 << 20);
    KLP_AUTO(tree) struct klp_tree *tree = klp_tree_create();
    struct klp_deb_take take = {.want = want_all, .tree = tree};
    struct kelpie_op op = klp_op_plain(*state, 20000);
    skip_without_dpkg();
    klp_buf_append_text(&deb, "!<arch>\n");
    kit_ar_member(&deb, "debian-binary", kit_text("2.0\n"), 4);
    kit_ar_member(&deb, "control.tar.xz", kit_text("no xz"), 5);
    kit_ar_member(&deb, "data.tar.xz", kit_text("no xz either"), 12);
    int fd = kit_file(klp_buf_view(&deb));
    KIT_REFUSED(klp_deb_read(&op, fd, "x.deb", &take, &err).kind, KELPIE_FAIL, KELPIE_E_IO,
                "cannot unpack package 'x.deb': 'dpkg-deb' ended with status");
    close(fd);
}

/* A refusal of ours stops the child: nothing of it may be left. */
static void test_image_deb__our_refusal_stops_dpkg_deb(void **state)
{
    struct klp_buf tar KLP_AUTO(buf) = KLP_BUF_INIT(KIT_SIZE_MAX);
    struct klp_buf deb KLP_AUTO(buf) = KLP_BUF_INIT(KIT_SIZE_MAX);
    KLP_AUTO(tree) struct klp_tree *tree = klp_tree_create();
    struct klp_deb_take take = {.want = want_all, .tree = tree};
    struct kelpie_op op = klp_op_plain(*state, 20000);
    uint8_t *big = calloc(1, 4 << 20);
    skip_without_dpkg();
    kit_tar_file(&tar, "a", kit_text(""));
    kit_tar_file(&tar, "a", kit_text(""));
    kit_tar_file(&tar, "big", (struct klp_bytes){big, 4 << 20});
    klp_tar_end_append(&tar);
    kit_deb(&deb,
            "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: x\n",
            klp_buf_view(&tar));
    int fd = kit_file(klp_buf_view(&deb));
    KIT_REFUSED(klp_deb_read(&op, fd, "x.deb", &take, &err).kind, KELPIE_FAIL, KELPIE_E_EXISTS,
                "there already");
    close(fd);
    free(big);
}

static int env_setup(void **state)
{
    *state = kit_env();
    return 0;
}

static int env_teardown(void **state)
{
    klp_env_posix_destroy(*state);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_image_deb__finds_the_data),
        cmocka_unit_test(test_image_deb__every_truncation_is_refused),
        cmocka_unit_test(test_image_deb__hostile_archives_are_refused),
        cmocka_unit_test(test_image_deb__members_are_bounded),
        cmocka_unit_test(test_image_deb__files_get_the_guests_layout),
        cmocka_unit_test(test_image_deb__only_what_is_wanted),
        cmocka_unit_test(test_image_deb__entries_that_lead_out_are_refused),
        cmocka_unit_test(test_image_deb__dots_in_a_name_are_refused),
        cmocka_unit_test(test_image_deb__a_cut_tar_is_refused),
        cmocka_unit_test(test_image_deb__a_file_that_says_too_much_is_refused),
        cmocka_unit_test(test_image_deb__a_package_is_read),
        cmocka_unit_test(test_image_deb__dpkg_debs_refusal_is_passed_on),
        cmocka_unit_test(test_image_deb__our_refusal_stops_dpkg_deb),
    };
    return cmocka_run_group_tests_name("image_deb", tests, env_setup, env_teardown);
}
