/* SPDX-License-Identifier: Apache-2.0 */
/* Both halves of `kelpie cp`: what is packed comes out the same, and an archive of a hostile guest
 * writes nothing outside of its folder. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>

#include "cli/pack.c"
#undef PIECE_SIZE
#include "cli/unpack.c"

struct fixture {
    char root[64];
    int root_fd, in_fd, out_fd;
    struct klp_buf archive;
};

static int one_remove(const char *path, const struct stat *info, int kind, struct FTW *place)
{
    (void)info;
    (void)kind;
    (void)place;
    return remove(path);
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    snprintf(f->root, sizeof(f->root), "/tmp/kelpie-unit-XXXXXX");
    assert_non_null(mkdtemp(f->root));
    f->root_fd = open(f->root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_int_equal(mkdirat(f->root_fd, "in", 0755), 0);
    assert_int_equal(mkdirat(f->root_fd, "out", 0755), 0);
    f->in_fd = openat(f->root_fd, "in", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    f->out_fd = openat(f->root_fd, "out", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    f->archive = KLP_BUF_INIT(8 * KLP_MIB);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    close(f->in_fd);
    close(f->out_fd);
    close(f->root_fd);
    klp_buf_finish(&f->archive);
    nftw(f->root, one_remove, 16, FTW_DEPTH | FTW_PHYS);
    free(f);
    return 0;
}

static void file_put(int dir, const char *path, const char *text, mode_t mode)
{
    int fd = openat(dir, path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    assert_int_equal(fchmod(fd, mode), 0);
    close(fd);
}

static void file_is(int dir, const char *path, const char *text)
{
    char bytes[256] = "";
    int fd = openat(dir, path, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    ssize_t size = read(fd, bytes, sizeof(bytes) - 1);
    close(fd);
    assert_int_equal(size, strlen(text));
    assert_string_equal(bytes, text);
}

static bool exists(int dir, const char *path)
{
    return faccessat(dir, path, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

static bool collect(void *arg, const void *data, size_t size, struct kelpie_error **err)
{
    (void)err;
    klp_buf_append(arg, data, size);
    return true;
}

static void entry_add(struct fixture *f, enum klp_tar_kind kind, const char *path,
                      const char *target, const char *content)
{
    struct klp_tar_entry *entry = calloc(1, sizeof(*entry));
    static const uint8_t zeros[KLP_TAR_BLOCK];
    entry->kind = kind;
    entry->mode = 0777;
    entry->size = content != NULL ? strlen(content) : 0;
    klp_text_copy(entry->path, sizeof(entry->path), path);
    klp_text_copy(entry->target, sizeof(entry->target), target);
    assert_true(klp_tar_header_append(&f->archive, entry, NULL));
    klp_buf_append(&f->archive, content, entry->size);
    klp_buf_append(&f->archive, zeros, klp_tar_padding(entry->size));
    free(entry);
}

/* Fed in pieces of `step` bytes. */
static enum kelpie_code unpack_all(struct fixture *f, const char *rename, size_t step)
{
    struct copy_unpack *unpack = copy_unpack_create(f->out_fd, rename);
    struct kelpie_error *error = NULL;
    bool fine = true;
    for (size_t at = 0; fine && at < f->archive.size; at += step)
        fine = copy_unpack_feed(unpack, f->archive.data + at,
                                f->archive.size - at < step ? f->archive.size - at : step, &error);
    fine = fine && copy_unpack_end(unpack, &error);
    enum kelpie_code code = klp_error_code(&error);
    assert_int_equal(fine, code == KELPIE_E_NONE);
    klp_error_clear(&error);
    copy_unpack_destroy(unpack);
    return code;
}

static enum kelpie_code unpack_ended(struct fixture *f, const char *rename)
{
    klp_tar_end_append(&f->archive);
    return unpack_all(f, rename, 512);
}

static void test_cli_copy__a_folder_comes_out_the_same(void **state)
{
    struct fixture *f = *state;
    struct stat info;
    char link[16] = "", path[128];
    assert_int_equal(mkdirat(f->in_fd, "d", 0750), 0);
    file_put(f->in_fd, "d/script", "#!/bin/sh\n", 0755);
    file_put(f->in_fd, "d/empty", "", 0644);
    assert_int_equal(symlinkat("script", f->in_fd, "d/link"), 0);
    snprintf(path, sizeof(path), "%s/in/d", f->root);
    assert_true(copy_pack(path, "d", collect, &f->archive, NULL));
    assert_int_equal(unpack_all(f, NULL, 77), KELPIE_E_NONE);
    assert_int_equal(unpack_all(f, "renamed", 1 << 20), KELPIE_E_NONE);
    file_is(f->out_fd, "d/script", "#!/bin/sh\n");
    file_is(f->out_fd, "renamed/empty", "");
    assert_int_equal(readlinkat(f->out_fd, "renamed/link", link, sizeof(link) - 1), 6);
    assert_string_equal(link, "script");
    assert_int_equal(fstatat(f->out_fd, "d/script", &info, 0), 0);
    assert_int_equal(info.st_mode & 0100, 0100);
}

static void test_cli_copy__nothing_is_written_through_a_link(void **state)
{
    struct fixture *f = *state;
    entry_add(f, KLP_TAR_SYMLINK, "a", "../in", NULL);
    entry_add(f, KLP_TAR_FILE, "a/escaped", "", "x");
    assert_int_not_equal(unpack_ended(f, NULL), KELPIE_E_NONE);
    assert_false(exists(f->in_fd, "escaped"));
}

static void test_cli_copy__a_link_in_a_files_place_is_replaced(void **state)
{
    struct fixture *f = *state;
    file_put(f->in_fd, "kept", "kept", 0644);
    entry_add(f, KLP_TAR_SYMLINK, "a", "../in/kept", NULL);
    entry_add(f, KLP_TAR_FILE, "a", "", "new");
    assert_int_equal(unpack_ended(f, NULL), KELPIE_E_NONE);
    file_is(f->in_fd, "kept", "kept");
    file_is(f->out_fd, "a", "new");
}

static void test_cli_copy__a_hard_link_stays_inside(void **state)
{
    struct fixture *f = *state;
    file_put(f->in_fd, "secret", "secret", 0600);
    entry_add(f, KLP_TAR_SYMLINK, "a", "../in", NULL);
    entry_add(f, KLP_TAR_HARDLINK, "b", "a/secret", NULL);
    assert_int_not_equal(unpack_ended(f, NULL), KELPIE_E_NONE);
    assert_false(exists(f->out_fd, "b"));
}

static void test_cli_copy__another_top_than_asked_for_is_refused(void **state)
{
    struct fixture *f = *state;
    entry_add(f, KLP_TAR_FILE, "a", "", "x");
    entry_add(f, KLP_TAR_FILE, "other", "", "x");
    assert_int_equal(unpack_ended(f, "mine"), KELPIE_E_PROTOCOL);
    file_is(f->out_fd, "mine", "x");
    assert_false(exists(f->out_fd, "other"));
}

static void test_cli_copy__a_cut_archive_is_corrupt(void **state)
{
    struct fixture *f = *state;
    entry_add(f, KLP_TAR_FILE, "a", "", "content");
    assert_int_equal(unpack_all(f, NULL, 512), KELPIE_E_CORRUPT);
}

static void test_cli_copy__what_cannot_be_packed_is_named(void **state)
{
    struct fixture *f = *state;
    struct kelpie_error *error = NULL;
    char path[128];
    snprintf(path, sizeof(path), "%s/in/none", f->root);
    assert_false(copy_pack(path, "none", collect, &f->archive, &error));
    assert_int_equal(klp_error_code(&error), KELPIE_E_NOT_FOUND);
    klp_error_clear(&error);
    assert_int_equal(mkfifoat(f->in_fd, "fifo", 0600), 0);
    snprintf(path, sizeof(path), "%s/in/fifo", f->root);
    assert_false(copy_pack(path, "fifo", collect, &f->archive, &error));
    assert_int_equal(klp_error_code(&error), KELPIE_E_INVALID);
    klp_error_clear(&error);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_cli_copy__a_folder_comes_out_the_same),
        TEST(test_cli_copy__nothing_is_written_through_a_link),
        TEST(test_cli_copy__a_link_in_a_files_place_is_replaced),
        TEST(test_cli_copy__a_hard_link_stays_inside),
        TEST(test_cli_copy__another_top_than_asked_for_is_refused),
        TEST(test_cli_copy__a_cut_archive_is_corrupt),
        TEST(test_cli_copy__what_cannot_be_packed_is_named),
    };
    return cmocka_run_group_tests_name("cli_copy", tests, NULL, NULL);
}
