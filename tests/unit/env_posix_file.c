/* SPDX-License-Identifier: Apache-2.0 */
/* Files beneath a folder: what they hold, and that no name, link or special file leads anywhere
 * else. */
#include "env_kit.h"

#include <sys/resource.h>

#include "env/posix/inside.h"

static void put(const struct kit *kit, const char *name, const char *text)
{
    struct kelpie_error *err = NULL;
    KLP_AUTO(file) struct klp_file *file = NULL;
    assert_true(klp_file_create(kit->dir, name, true, &file, &err));
    assert_true(klp_file_pwrite(file, 0, text, strlen(text), &err));
    assert_true(klp_file_sync(file, &err));
}

static void holds(const struct kit *kit, const char *name, const char *text)
{
    struct kelpie_error *err = NULL;
    struct klp_buf buf = KLP_BUF_INIT(100000);
    if (!klp_file_read_all(kit->dir, name, &buf, &err))
        fail_msg("%s", kelpie_error_message(err));
    assert_string_equal(klp_buf_text(&buf), text);
    klp_buf_finish(&buf);
}

static void test_env_posix_file__reads_and_writes_at_offsets(void **state)
{
    struct kit *kit = *state;
    struct kelpie_error *err = NULL;
    struct klp_file *file = NULL;
    char bytes[16];
    size_t size = 99;
    uint64_t length = 99;
    assert_true(klp_file_create(kit->dir, "a", true, &file, &err));
    assert_true(klp_file_pwrite(file, 4, "data", 4, &err));
    assert_true(klp_file_size(file, &length, &err));
    assert_int_equal(length, 8);
    assert_true(klp_file_pread(file, 0, bytes, sizeof(bytes), &size, &err));
    assert_int_equal(size, 8); /* fewer than asked: the end */
    assert_memory_equal(bytes, "\0\0\0\0data", 8);
    assert_true(klp_file_pread(file, 8, bytes, 1, &size, &err));
    assert_int_equal(size, 0);
    assert_true(klp_file_pread(file, 100, bytes, 1, &size, &err));
    assert_int_equal(size, 0);
    assert_true(klp_file_truncate(file, 5, &err));
    assert_true(klp_file_size(file, &length, &err));
    assert_int_equal(length, 5);
    assert_true(klp_file_sync(file, &err));
    klp_file_close(file);
    assert_true(klp_file_open(kit->dir, "a", &file, &err));
    KIT_REFUSED(klp_file_pwrite(file, 0, "x", 1, &err), &err, KELPIE_E_IO, "/a"); /* read-only */
    klp_file_close(file);
    klp_file_close(NULL);
}

static void test_env_posix_file__ranges_no_file_has_are_refused(void **state)
{
    struct kit *kit = *state;
    struct kelpie_error *err = NULL;
    struct klp_file *file = NULL;
    char byte = 0;
    size_t size;
    assert_true(klp_file_create(kit->dir, "a", true, &file, &err));
    KIT_REFUSED(klp_file_pread(file, UINT64_MAX, &byte, 1, &size, &err), &err, KELPIE_E_INVALID,
                "");
    KIT_REFUSED(klp_file_pread(file, (uint64_t)INT64_MAX + 1, &byte, 0, &size, &err), &err,
                KELPIE_E_INVALID, "");
    KIT_REFUSED(klp_file_pwrite(file, INT64_MAX, &byte, 1, &err), &err, KELPIE_E_INVALID, "");
    KIT_REFUSED(klp_file_truncate(file, 1ull << 63, &err), &err, KELPIE_E_INVALID, "");
    klp_file_close(file);
}

static void test_env_posix_file__names_are_one_component(void **state)
{
    static const char *const bad[] = {"", ".", "..", "/", "a/b", "../x", "/etc/passwd", "a/"};
    struct kit *kit = *state;
    struct kelpie_error *err = NULL;
    struct klp_file *file = NULL;
    struct klp_dir *dir = NULL;
    struct klp_buf buf = KLP_BUF_INIT(10);
    char big[257];
    memset(big, 'n', 256);
    big[256] = 0;
    for (size_t i = 0; i <= KLP_COUNT(bad); i++) {
        const char *name = i < KLP_COUNT(bad) ? bad[i] : big;
        KIT_REFUSED(klp_file_open(kit->dir, name, &file, &err), &err, KELPIE_E_INVALID, name);
        KIT_REFUSED(klp_file_create(kit->dir, name, false, &file, &err), &err, KELPIE_E_INVALID,
                    "");
        KIT_REFUSED(klp_dir_open_at(kit->dir, name, true, &dir, &err), &err, KELPIE_E_INVALID, "");
        KIT_REFUSED(klp_dir_rename(kit->dir, name, "x", &err), &err, KELPIE_E_INVALID, "");
        KIT_REFUSED(klp_dir_rename(kit->dir, "x", name, &err), &err, KELPIE_E_INVALID, "");
        KIT_REFUSED(klp_dir_remove(kit->dir, name, &err), &err, KELPIE_E_INVALID, "");
        KIT_REFUSED(klp_dir_remove_tree(kit->dir, name, &err), &err, KELPIE_E_INVALID, "");
        KIT_REFUSED(klp_file_read_all(kit->dir, name, &buf, &err), &err, KELPIE_E_INVALID, "");
        KIT_REFUSED(klp_file_write_all(kit->dir, name, "", 0, &err), &err, KELPIE_E_INVALID, "");
    }
    assert_null(file);
    assert_int_equal(kit_entries(kit), 0);
}

static void test_env_posix_file__exclusive_and_not(void **state)
{
    struct kit *kit = *state;
    struct kelpie_error *err = NULL;
    struct klp_file *file = NULL;
    struct stat facts;
    put(kit, "a", "first");
    KIT_REFUSED(klp_file_create(kit->dir, "a", true, &file, &err), &err, KELPIE_E_EXISTS, "/a");
    assert_true(klp_file_create(kit->dir, "a", false, &file, &err));
    klp_file_close(file);
    holds(kit, "a", "first"); /* opened as it is */
    assert_int_equal(stat(kit_path(kit, "a"), &facts), 0);
    assert_int_equal(facts.st_mode & 07777, 0600);
    KIT_REFUSED(klp_file_open(kit->dir, "none", &file, &err), &err, KELPIE_E_NOT_FOUND, "/none");
}

static void test_env_posix_file__links_are_not_followed(void **state)
{
    struct kit *kit = *state;
    struct kelpie_error *err = NULL;
    struct klp_file *file = NULL;
    struct klp_dir *dir = NULL;
    put(kit, "real", "secret");
    assert_int_equal(symlink("real", kit_path(kit, "link")), 0);
    assert_int_equal(symlink("nowhere", kit_path(kit, "dangling")), 0);
    assert_int_equal(symlink("/tmp", kit_path(kit, "folder")), 0);
    KIT_REFUSED(klp_file_open(kit->dir, "link", &file, &err), &err, KELPIE_E_DENIED, "/link");
    KIT_REFUSED(klp_file_create(kit->dir, "link", false, &file, &err), &err, KELPIE_E_DENIED,
                "/link");
    KIT_REFUSED(klp_file_create(kit->dir, "dangling", false, &file, &err), &err, KELPIE_E_DENIED,
                "");
    assert_false(kit_exists(kit, "nowhere"));
    KIT_REFUSED(klp_dir_open_at(kit->dir, "folder", false, &dir, &err), &err, KELPIE_E_DENIED,
                "symbolic link");
    KIT_REFUSED(klp_dir_open_at(kit->dir, "folder", true, &dir, &err), &err, KELPIE_E_DENIED,
                "symbolic link");
    /* Removing removes the link. */
    assert_true(klp_dir_remove_tree(kit->dir, "link", &err));
    holds(kit, "real", "secret");
}

static void test_env_posix_file__special_files_are_refused_without_waiting(void **state)
{
    struct kit *kit = *state;
    struct kelpie_error *err = NULL;
    struct klp_file *file = NULL;
    assert_int_equal(mkfifo(kit_path(kit, "pipe"), 0600), 0);
    assert_int_equal(mkdir(kit_path(kit, "folder"), 0700), 0);
    KIT_REFUSED(klp_file_open(kit->dir, "pipe", &file, &err), &err, KELPIE_E_DENIED, "/pipe");
    KIT_REFUSED(klp_file_create(kit->dir, "pipe", false, &file, &err), &err, KELPIE_E_DENIED,
                "/pipe");
    KIT_REFUSED(klp_file_open(kit->dir, "folder", &file, &err), &err, KELPIE_E_DENIED, "/folder");
    KIT_REFUSED(klp_file_create(kit->dir, "folder", false, &file, &err), &err, KELPIE_E_DENIED, "");
}

static void unnamed_is_gone_or_linked(struct kit *kit,
                                      bool (*create)(struct klp_dir *, struct klp_file **,
                                                     struct kelpie_error **))
{
    struct kelpie_error *err = NULL;
    struct klp_file *file = NULL;
    assert_true(create(kit->dir, &file, &err));
    assert_true(klp_file_pwrite(file, 0, "lost", 4, &err));
    klp_file_close(file);
    assert_int_equal(kit_entries(kit), 0);

    assert_true(create(kit->dir, &file, &err));
    assert_true(klp_file_pwrite(file, 0, "kept", 4, &err));
    assert_true(klp_file_sync(file, &err));
    assert_true(klp_file_link(file, kit->dir, "kept", &err));
    assert_int_equal(kit_entries(kit), 1); /* at once, and not only when it is closed */
    klp_file_close(file);
    assert_int_equal(kit_entries(kit), 1);
    holds(kit, "kept", "kept");

    assert_true(create(kit->dir, &file, &err));
    assert_true(klp_file_pwrite(file, 0, "late", 4, &err));
    KIT_REFUSED(klp_file_link(file, kit->dir, "kept", &err), &err, KELPIE_E_EXISTS, "/kept");
    assert_true(klp_file_link(file, kit->dir, "other", &err)); /* a refusal took nothing away */
    klp_file_close(file);
    holds(kit, "kept", "kept");
    holds(kit, "other", "late");
    assert_int_equal(kit_entries(kit), 2);
    assert_true(klp_dir_remove(kit->dir, "kept", &err));
    assert_true(klp_dir_remove(kit->dir, "other", &err));
}

static void test_env_posix_file__unnamed_files(void **state)
{
    unnamed_is_gone_or_linked(*state, klp_file_create_unnamed);
    /* The way taken where the file system has no unnamed files. */
    unnamed_is_gone_or_linked(*state, klp_posix_create_hidden);
}

static void test_env_posix_file__folders_are_made_private(void **state)
{
    struct kit *kit = *state;
    struct kelpie_error *err = NULL;
    struct klp_dir *dir = NULL;
    struct stat facts;
    assert_true(klp_dir_open(kit->env, kit_path(kit, "a/b//c/"), true, &dir, &err));
    assert_string_equal(klp_dir_path(dir), kit_path(kit, "a/b/c"));
    assert_ptr_equal(klp_dir_env(dir), kit->env);
    klp_dir_close(dir);
    assert_int_equal(stat(kit_path(kit, "a/b"), &facts), 0);
    assert_int_equal(facts.st_mode & 07777, 0700);
    assert_true(klp_dir_open(kit->env, kit_path(kit, "a/b/c"), true, &dir, &err));
    klp_dir_close(dir);
    KIT_REFUSED(klp_dir_open(kit->env, kit_path(kit, "none"), false, &dir, &err), &err,
                KELPIE_E_NOT_FOUND, "/none");
    KIT_REFUSED(klp_dir_open(kit->env, "", true, &dir, &err), &err, KELPIE_E_INVALID, "empty");
    put(kit, "file", "");
    KIT_REFUSED(klp_dir_open(kit->env, kit_path(kit, "file/x"), true, &dir, &err), &err,
                KELPIE_E_NOT_FOUND, "/file");
    klp_dir_close(NULL);
}

static void test_env_posix_file__state_folders_must_be_ours(void **state)
{
    struct kit *kit = *state;
    struct kelpie_error *err = NULL;
    struct klp_dir *dir = NULL;
    assert_int_equal(mkdir(kit_path(kit, "open"), 0700), 0);
    for (mode_t mode = 0; mode < 01000; mode = mode == 0 ? 020 : mode == 020 ? 02 : 01000) {
        bool safe = mode == 0;
        assert_int_equal(chmod(kit_path(kit, "open"), 0700 | mode), 0);
        if (safe) {
            assert_true(klp_dir_open(kit->env, kit_path(kit, "open"), true, &dir, &err));
            klp_dir_close(dir);
            continue;
        }
        assert_false(klp_dir_open(kit->env, kit_path(kit, "open"), true, &dir, &err));
        assert_non_null(strstr(kelpie_error_remedy(err), "chmod go-w"));
        kit_code_at(__LINE__, klp_error_code(&err), &err, KELPIE_E_DENIED, "/open");
        assert_true(klp_dir_open(kit->env, kit_path(kit, "open"), false, &dir, &err));
        klp_dir_close(dir);
    }
    assert_int_equal(chmod(kit_path(kit, "open"), 01777), 0); /* as /tmp */
    assert_true(klp_dir_open(kit->env, kit_path(kit, "open"), true, &dir, &err));
    klp_dir_close(dir);
    if (geteuid() == 0) {
        assert_int_equal(chmod(kit_path(kit, "open"), 0700), 0);
        assert_int_equal(chown(kit_path(kit, "open"), 12345, 0), 0);
        KIT_REFUSED(klp_dir_open(kit->env, kit_path(kit, "open"), true, &dir, &err), &err,
                    KELPIE_E_DENIED, "another user");
    }
}

static void test_env_posix_file__state_folder_is_no_link(void **state)
{
    struct kit *kit = *state;
    struct kelpie_error *err = NULL;
    struct klp_dir *dir = NULL;
    assert_int_equal(mkdir(kit_path(kit, "real"), 0700), 0);
    assert_int_equal(symlink("real", kit_path(kit, "link")), 0);
    KIT_REFUSED(klp_dir_open(kit->env, kit_path(kit, "link"), true, &dir, &err), &err,
                KELPIE_E_DENIED, "/link is a symbolic link");
    /* A slash at the end would make the kernel follow it. */
    KIT_REFUSED(klp_dir_open(kit->env, kit_path(kit, "link/"), true, &dir, &err), &err,
                KELPIE_E_DENIED, "/link is a symbolic link");
    KIT_REFUSED(klp_dir_open(kit->env, kit_path(kit, "link///"), true, &dir, &err), &err,
                KELPIE_E_DENIED, "/link is a symbolic link");
    /* Above it links are the host's own business. */
    assert_true(klp_dir_open(kit->env, kit_path(kit, "link/below"), true, &dir, &err));
    klp_dir_close(dir);
    assert_true(kit_exists(kit, "real/below"));
}

static bool names_add(void *arg, const char *name)
{
    char *names = arg;
    strcat(names, name);
    strcat(names, " ");
    return strcmp(name, "stop") != 0;
}

static void test_env_posix_file__lists_in_order_and_stops(void **state)
{
    struct kit *kit = *state;
    struct kelpie_error *err = NULL;
    char names[200] = "";
    assert_true(klp_dir_list(kit->dir, names_add, names, &err));
    assert_string_equal(names, "");
    put(kit, "b", "");
    put(kit, "a", "");
    put(kit, "B", "");
    put(kit, ".hidden", "");
    assert_true(klp_dir_list(kit->dir, names_add, names, &err));
    assert_string_equal(names, ".hidden B a b ");
    put(kit, "stop", "");
    put(kit, "zz", "");
    names[0] = 0;
    assert_true(klp_dir_list(kit->dir, names_add, names, &err));
    assert_string_equal(names, ".hidden B a b stop ");
}

static void test_env_posix_file__rename_and_remove(void **state)
{
    struct kit *kit = *state;
    struct kelpie_error *err = NULL;
    struct klp_dir *dir = NULL;
    put(kit, "a", "new");
    put(kit, "b", "old");
    assert_true(klp_dir_rename(kit->dir, "a", "b", &err));
    holds(kit, "b", "new");
    KIT_REFUSED(klp_dir_rename(kit->dir, "a", "c", &err), &err, KELPIE_E_NOT_FOUND, "/a");
    assert_true(klp_dir_remove(kit->dir, "b", &err));
    KIT_REFUSED(klp_dir_remove(kit->dir, "b", &err), &err, KELPIE_E_NOT_FOUND, "/b");
    assert_true(klp_dir_open_at(kit->dir, "d", true, &dir, &err));
    assert_true(klp_dir_sync(dir, &err));
    assert_true(klp_file_write_all(dir, "x", "", 0, &err));
    KIT_REFUSED(klp_dir_remove(kit->dir, "d", &err), &err, KELPIE_E_STATE, "/d");
    assert_true(klp_dir_remove(dir, "x", &err));
    klp_dir_close(dir);
    assert_true(klp_dir_remove(kit->dir, "d", &err));
    assert_int_equal(kit_entries(kit), 0);
}

static void test_env_posix_file__trees_go_and_links_in_them_lead_nowhere(void **state)
{
    struct kit *kit = *state;
    struct kelpie_error *err = NULL;
    struct klp_dir *dir = NULL;
    put(kit, "outside", "stays");
    assert_int_equal(mkdir(kit_path(kit, "beside"), 0700), 0);
    assert_int_equal(mkdir(kit_path(kit, "beside/x"), 0700), 0);
    assert_true(klp_dir_open(kit->env, kit_path(kit, "t/1/2/3/4/5/6/7"), true, &dir, &err));
    assert_true(klp_file_write_all(dir, "deep", "x", 1, &err));
    klp_dir_close(dir);
    assert_int_equal(symlink("../outside", kit_path(kit, "t/file")), 0);
    assert_int_equal(symlink("../beside", kit_path(kit, "t/folder")), 0);
    assert_true(klp_dir_remove_tree(kit->dir, "t", &err));
    assert_false(kit_exists(kit, "t"));
    holds(kit, "outside", "stays");
    assert_true(kit_exists(kit, "beside/x"));
    assert_true(klp_dir_remove_tree(kit->dir, "t", &err)); /* absent is fine */
    assert_true(klp_dir_open(kit->env, kit_path(kit, "t/1/2/3/4/5/6/7/8"), true, &dir, &err));
    klp_dir_close(dir);
    KIT_REFUSED(klp_dir_remove_tree(kit->dir, "t", &err), &err, KELPIE_E_LIMIT, "too deep");
}

static void test_env_posix_file__read_all_is_bounded(void **state)
{
    struct kit *kit = *state;
    struct kelpie_error *err = NULL;
    struct klp_buf buf = KLP_BUF_INIT(5);
    put(kit, "five", "12345");
    put(kit, "six", "123456");
    put(kit, "none", "");
    assert_true(klp_file_read_all(kit->dir, "five", &buf, &err));
    assert_string_equal(klp_buf_text(&buf), "12345");
    klp_buf_clear(&buf);
    KIT_REFUSED(klp_file_read_all(kit->dir, "six", &buf, &err), &err, KELPIE_E_LIMIT, "/six");
    assert_int_equal(buf.size, 0);
    assert_true(klp_file_read_all(kit->dir, "none", &buf, &err));
    assert_int_equal(buf.size, 0);
    KIT_REFUSED(klp_file_read_all(kit->dir, "gone", &buf, &err), &err, KELPIE_E_NOT_FOUND, "/gone");
    klp_buf_finish(&buf);
}

static void test_env_posix_file__write_all_replaces_whole_files(void **state)
{
    struct kit *kit = *state;
    struct kelpie_error *err = NULL;
    char name[252];
    assert_true(klp_file_write_all(kit->dir, "a", "a longer first text", 19, &err));
    assert_true(klp_file_write_all(kit->dir, "a", "short", 5, &err));
    holds(kit, "a", "short");
    assert_true(klp_file_write_all(kit->dir, "a", "", 0, &err));
    holds(kit, "a", "");
    assert_int_equal(kit_entries(kit), 1);
    /* What a crash left behind is used up by the next write, whatever it is. */
    put(kit, ".a.new", "half a te");
    assert_true(klp_file_write_all(kit->dir, "a", "after", 5, &err));
    assert_int_equal(mkdir(kit_path(kit, ".a.new"), 0700), 0);
    assert_true(klp_file_write_all(kit->dir, "a", "again", 5, &err));
    holds(kit, "a", "again");
    assert_int_equal(kit_entries(kit), 1);
    memset(name, 'n', sizeof(name));
    name[250] = 0;
    assert_true(klp_file_write_all(kit->dir, name, "x", 1, &err));
    assert_int_equal(kit_entries(kit), 2);
    name[250] = 'n';
    name[251] = 0;
    KIT_REFUSED(klp_file_write_all(kit->dir, name, "x", 1, &err), &err, KELPIE_E_INVALID, "nnn");
}

static void test_env_posix_file__write_all_fails_clean(void **state)
{
    struct kit *kit = *state;
    struct kelpie_error *err = NULL;
    struct rlimit before, small = {1000, 1000};
    static char big[5000];
    assert_true(klp_file_write_all(kit->dir, "a", "before", 6, &err));
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small.rlim_max = before.rlim_max;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    /* A write that is cut short is an error, and not a signal. */
    bool written = klp_file_write_all(kit->dir, "a", big, sizeof(big), &err);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    KIT_REFUSED(written, &err, KELPIE_E_NO_SPACE, "1000 of 5000");
    holds(kit, "a", "before");
    assert_int_equal(kit_entries(kit), 1);
    /* The name is a folder: nothing can be put over it. */
    assert_int_equal(mkdir(kit_path(kit, "d"), 0700), 0);
    KIT_REFUSED(klp_file_write_all(kit->dir, "d", "x", 1, &err), &err, KELPIE_E_DENIED, "d");
    assert_int_equal(kit_entries(kit), 2);
}

struct writers {
    struct kit *kit;
    char letter;
};

static void write_often(void *arg)
{
    struct writers *writer = arg;
    char text[3000];
    memset(text, writer->letter, sizeof(text));
    for (int i = 0; i < 40; i++)
        if (!klp_file_write_all(writer->kit->dir, "shared", text, sizeof(text), NULL))
            writer->letter = 0;
}

static void test_env_posix_file__writers_of_one_name_never_mix(void **state)
{
    struct kit *kit = *state;
    struct kelpie_error *err = NULL;
    struct writers writers[2] = {{kit, 'a'}, {kit, 'b'}};
    struct klp_task *tasks[2];
    assert_true(klp_file_write_all(kit->dir, "shared", "a", 1, &err));
    for (int i = 0; i < 2; i++)
        assert_true(klp_task_spawn(kit->env, "writer", write_often, &writers[i], &tasks[i], &err));
    for (int i = 0; i < 200; i++) {
        struct klp_buf buf = KLP_BUF_INIT(4000);
        assert_true(klp_file_read_all(kit->dir, "shared", &buf, &err));
        assert_true(buf.size == 1 || buf.size == 3000);
        for (size_t at = 1; at < buf.size; at++)
            assert_int_equal(buf.data[at], buf.data[0]);
        klp_buf_finish(&buf);
    }
    for (int i = 0; i < 2; i++)
        klp_task_join(tasks[i]);
    assert_int_equal(writers[0].letter, 'a');
    assert_int_equal(writers[1].letter, 'b');
    assert_int_equal(kit_entries(kit), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        KIT_TEST(test_env_posix_file__reads_and_writes_at_offsets),
        KIT_TEST(test_env_posix_file__ranges_no_file_has_are_refused),
        KIT_TEST(test_env_posix_file__names_are_one_component),
        KIT_TEST(test_env_posix_file__exclusive_and_not),
        KIT_TEST(test_env_posix_file__links_are_not_followed),
        KIT_TEST(test_env_posix_file__special_files_are_refused_without_waiting),
        KIT_TEST(test_env_posix_file__unnamed_files),
        KIT_TEST(test_env_posix_file__folders_are_made_private),
        KIT_TEST(test_env_posix_file__state_folders_must_be_ours),
        KIT_TEST(test_env_posix_file__state_folder_is_no_link),
        KIT_TEST(test_env_posix_file__lists_in_order_and_stops),
        KIT_TEST(test_env_posix_file__rename_and_remove),
        KIT_TEST(test_env_posix_file__trees_go_and_links_in_them_lead_nowhere),
        KIT_TEST(test_env_posix_file__read_all_is_bounded),
        KIT_TEST(test_env_posix_file__write_all_replaces_whole_files),
        KIT_TEST(test_env_posix_file__write_all_fails_clean),
        KIT_TEST(test_env_posix_file__writers_of_one_name_never_mix),
    };
    return cmocka_run_group_tests_name("env_posix_file", tests, NULL, NULL);
}
