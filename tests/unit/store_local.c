/* SPDX-License-Identifier: Apache-2.0 */
/* The store in a folder: the contract of every store, and what only a folder has: its marker, its
 * syncs and what becomes of them when they fail, full disks. Faults are put in by a table of file
 * calls in front of env's own. */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "contract/contract.h"
#include "contract/store.h"

#include "base/ext/sha256.h"
#include "base/limits.h"
#include "env/posix/posix.h"
#include "store/local/local.h"

/* ---- an env whose file calls are counted and fail on demand */

static struct klp_env *env;
static const struct klp_env_ops *env_real;
static struct klp_env_ops env_ops;
static struct klp_file_ops file_ops;

static struct faults {
    unsigned file_syncs, dir_syncs, links;
    int file_sync_fails, dir_sync_fails; /* the next so many; -1 = all */
    int link_fails;
    int dir_syncs_until_fail; /* that many work first */
    char order[64];           /* f = file synced, l = linked, d = directory synced */
} faults;

static void note(char what)
{
    size_t size = strlen(faults.order);
    if (size + 1 < sizeof(faults.order))
        faults.order[size] = what;
}

static bool due(int *count)
{
    if (*count == 0)
        return false;
    if (*count > 0)
        (*count)--;
    return true;
}

static bool faulty_sync(struct klp_file *file, struct kelpie_error **err)
{
    faults.file_syncs++;
    if (due(&faults.file_sync_fails))
        return klp_refuse(err, KELPIE_E_IO, "planted: sync of a file");
    note('f');
    return env_real->file->sync(file, err);
}

static bool faulty_dir_sync(struct klp_dir *dir, struct kelpie_error **err)
{
    faults.dir_syncs++;
    if (faults.dir_syncs_until_fail > 0)
        faults.dir_syncs_until_fail--;
    else if (due(&faults.dir_sync_fails))
        return klp_refuse(err, KELPIE_E_IO, "planted: sync of a folder");
    note('d');
    return env_real->file->dir_sync(dir, err);
}

static bool faulty_link(struct klp_file *file, struct klp_dir *dir, const char *name,
                        struct kelpie_error **err)
{
    faults.links++;
    if (due(&faults.link_fails))
        return klp_refuse(err, KELPIE_E_NO_SPACE, "planted: no room for a name");
    note('l');
    return env_real->file->link(file, dir, name, err);
}

/* ---- folders */

static char base[64]; /* of all folders of this program */
static char folder[160];
static unsigned folder_number;

static int remove_entry(const char *path, const struct stat *facts, int type, struct FTW *ftw)
{
    (void)facts;
    (void)type;
    (void)ftw;
    return remove(path);
}

static void folder_new(void)
{
    snprintf(folder, sizeof(folder), "%s/s%u/deep/store", base, folder_number++);
}

static void object_file(char out[512], enum klp_object_kind kind, const struct klp_digest *digest)
{
    char hex[KLP_DIGEST_SIZE];
    klp_digest_text(digest, hex);
    snprintf(out, 512, "%s/%s/%.2s/%s", folder, klp_object_kind_name(kind), hex, hex);
}

static unsigned files_counted;

static int count_entry(const char *path, const struct stat *facts, int type, struct FTW *ftw)
{
    (void)path;
    (void)facts;
    (void)ftw;
    files_counted += type == FTW_F;
    return 0;
}

/* All files of the store but its marker. */
static unsigned count_files(void)
{
    files_counted = 0;
    assert_int_equal(nftw(folder, count_entry, 16, FTW_PHYS), 0);
    return files_counted - 1;
}

static void damage_file(const char *path, enum contract_damage how, uint64_t offset)
{
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    if (how == CONTRACT_CUT) {
        assert_int_equal(ftruncate(fd, (off_t)offset), 0);
    } else {
        unsigned char byte;
        assert_int_equal(pread(fd, &byte, 1, (off_t)offset), 1);
        byte ^= 0x10;
        assert_int_equal(pwrite(fd, &byte, 1, (off_t)offset), 1);
    }
    close(fd);
}

/* ---- the factory of the contract suite */

static bool local_make(void *arg, struct klp_store **out, struct kelpie_error **err)
{
    (void)arg;
    folder_new();
    return klp_store_local_create(env, folder, out, err);
}

static bool local_again(void *arg, struct klp_store **out, struct kelpie_error **err)
{
    (void)arg;
    return klp_store_local_create(env, folder, out, err);
}

static void local_damage(void *arg, enum klp_object_kind kind, const struct klp_digest *digest,
                         enum contract_damage how, uint64_t offset)
{
    char path[512];
    (void)arg;
    object_file(path, kind, digest);
    damage_file(path, how, offset);
}

static void local_ref_damage(void *arg, const char *name, enum contract_damage how, uint64_t offset)
{
    char path[512];
    (void)arg;
    snprintf(path, sizeof(path), "%s/refs/%s", folder, name); /* of two parts */
    damage_file(path, how, offset);
}

static void local_hide(void *arg, bool hidden)
{
    char away[256];
    (void)arg;
    snprintf(away, sizeof(away), "%s-away", folder);
    assert_int_equal(hidden ? rename(folder, away) : rename(away, folder), 0);
}

/* ---- what only a folder has */

static struct kelpie_op op;
static struct klp_store *store;

static int set_up(void **state)
{
    (void)state;
    op = klp_op_plain(env, CONTRACT_TIMEOUT_MS);
    folder_new();
    faults = (struct faults){0};
    CONTRACT_TRUE(klp_store_local_create(env, folder, &store, &err_));
    faults = (struct faults){0};
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    klp_store_destroy(store);
    faults = (struct faults){0};
    return 0;
}

static struct klp_digest put_text(const char *text)
{
    struct klp_digest digest;
    CONTRACT_OK(klp_store_put(&op, store, KLP_OBJECT_PACK, text, strlen(text), &digest, &err_));
    return digest;
}

static void write_marker(const char *text)
{
    char path[256];
    snprintf(path, sizeof(path), "%s/kelpie-store", folder);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static void assert_mode(const char *path, mode_t want)
{
    struct stat facts;
    assert_int_equal(stat(path, &facts), 0);
    assert_int_equal(facts.st_mode & 0777, want);
}

static void test_store_local__layout_and_modes(void **state)
{
    (void)state;
    char path[512];
    struct klp_digest digest = put_text("abc");
    CONTRACT_OK(klp_ref_create(&op, store, "images/base/x86", "v", 1, &err_));
    object_file(path, KLP_OBJECT_PACK, &digest);
    assert_mode(path, 0600);
    snprintf(path, sizeof(path), "%s/refs/images/base+x86", folder);
    assert_mode(path, 0600);
    assert_mode(folder, 0700);
    assert_string_equal(klp_store_name(store), folder);
}

static void test_store_local__small_put_takes_at_most_three_syncs(void **state)
{
    (void)state;
    put_text("abc");
    assert_string_equal(faults.order, "dfld"); /* the new sub-folder, the file, its name, durable */
    faults = (struct faults){0};
    put_text("abc"); /* is there already: only its name must be durable */
    assert_string_equal(faults.order, "d");
    faults = (struct faults){0};
    CONTRACT_OK(klp_ref_create(&op, store, "snapshots/a", "v", 1, &err_));
    assert_string_equal(faults.order, "dfld");
    faults = (struct faults){0};
    CONTRACT_OK(klp_ref_create(&op, store, "snapshots/b", "v", 1, &err_));
    assert_string_equal(faults.order, "fld");
}

static void test_store_local__failed_file_sync_names_nothing(void **state)
{
    (void)state;
    struct klp_digest digest;
    faults.file_sync_fails = 1;
    CONTRACT_FAIL(IO, "planted",
                  klp_store_put(&op, store, KLP_OBJECT_PACK, "abc", 3, &digest, &err_));
    assert_int_equal(faults.links, 0);
    assert_int_equal(count_files(), 0);
    faults.file_sync_fails = 1;
    CONTRACT_FAIL(IO, "planted", klp_ref_create(&op, store, "snapshots/a", "v", 1, &err_));
    assert_int_equal(faults.links, 0);
    assert_int_equal(count_files(), 0);
    put_text("abc"); /* written anew, from its source */
    CONTRACT_OK(klp_ref_create(&op, store, "snapshots/a", "v", 1, &err_));
}

static void test_store_local__failed_folder_sync_makes_a_retry_name_it_anew(void **state)
{
    (void)state;
    struct klp_digest digest;
    put_text("abc");
    faults = (struct faults){.dir_syncs_until_fail = 1, .dir_sync_fails = 1};
    CONTRACT_FAIL(IO, "planted",
                  klp_store_put(&op, store, KLP_OBJECT_PACK, "x", 1, &digest, &err_));
    assert_int_equal(faults.links, 1);
    faults = (struct faults){0};
    digest = put_text("x");
    /* Its name stands there, but only a new entry is sure to be carried by the sync. */
    assert_string_equal(faults.order, "fld");
    assert_int_equal(count_files(), 2);
    CONTRACT_OK(klp_store_verify(&op, store, KLP_OBJECT_PACK, &digest, &err_));
}

static void test_store_local__ref_with_failed_folder_sync_is_unknown(void **state)
{
    (void)state;
    KLP_AUTO(buf) struct klp_buf out = KLP_BUF_INIT(100);
    CONTRACT_OK(klp_ref_create(&op, store, "snapshots/a", "v", 1, &err_));
    faults.dir_sync_fails = 1;
    CONTRACT_UNKNOWN(OUTCOME_UNKNOWN, "snapshots/b",
                     klp_ref_create(&op, store, "snapshots/b", "v", 1, &err_));
    CONTRACT_FAIL(NOT_FOUND, "snapshots/b", klp_ref_get(&op, store, "snapshots/b", &out, &err_));
    CONTRACT_OK(klp_ref_create(&op, store, "snapshots/b", "v", 1, &err_));
    faults.dir_sync_fails = 1;
    CONTRACT_UNKNOWN(OUTCOME_UNKNOWN, "snapshots/b",
                     klp_ref_delete(&op, store, "snapshots/b", &err_));
    /* EXISTS is only said of a ref that lasts. */
    faults.dir_sync_fails = 1;
    CONTRACT_FAIL(IO, "planted", klp_ref_create(&op, store, "snapshots/a", "v", 1, &err_));
}

static void test_store_local__read_only_after_three_failed_syncs(void **state)
{
    (void)state;
    struct klp_digest digest = put_text("good");
    KLP_AUTO(store_writer) struct klp_store_writer *writer = NULL;
    CONTRACT_OK(klp_store_begin(&op, store, KLP_OBJECT_PACK, &writer, &err_));
    faults.file_sync_fails = -1;
    for (int i = 0; i < 3; i++)
        CONTRACT_FAIL(IO, "planted",
                      klp_store_put(&op, store, KLP_OBJECT_PACK, "abc", 3, &digest, &err_));
    faults = (struct faults){0};
    CONTRACT_FAIL(IO, "read-only",
                  klp_store_put(&op, store, KLP_OBJECT_PACK, "abc", 3, &digest, &err_));
    CONTRACT_FAIL(IO, "read-only",
                  klp_store_commit(&op, KLP_TAKE(&writer), &digest, NULL, NULL, &err_));
    CONTRACT_FAIL(IO, "read-only", klp_ref_create(&op, store, "snapshots/a", "v", 1, &err_));
    assert_int_equal(faults.file_syncs + faults.links, 0);
    klp_sha256_once("good", 4, &digest);
    CONTRACT_OK(klp_store_verify(&op, store, KLP_OBJECT_PACK, &digest, &err_));
    klp_store_destroy(KLP_TAKE(&store));
    CONTRACT_TRUE(klp_store_local_create(env, folder, &store, &err_));
    put_text("abc");
}

static void test_store_local__failed_link_leaves_nothing(void **state)
{
    (void)state;
    struct klp_digest digest;
    faults.link_fails = 1;
    CONTRACT_FAIL(NO_SPACE, "planted",
                  klp_store_put(&op, store, KLP_OBJECT_PACK, "abc", 3, &digest, &err_));
    faults.link_fails = 1;
    CONTRACT_FAIL(NO_SPACE, "planted", klp_ref_create(&op, store, "a/b", "v", 1, &err_));
    assert_int_equal(count_files(), 0);
}

static void test_store_local__marker_is_checked(void **state)
{
    (void)state;
    static const char *const damaged[] = {
        "",
        "kelpie-store",
        "kelpie-store ",
        "kelpie-store 1\n",
        "kelpie-store x 0123456789abcdef0123456789abcdef\n",
        "kelpie-store 0 0123456789abcdef0123456789abcdef\n",
        "kelpie-store 1 0123456789abcdef0123456789abcde\n",
        "kelpie-store 1 0123456789ABCDEF0123456789abcdef\n",
        "kelpie-store 1 0123456789abcdef0123456789abcdef",
        "kelpie-store 1 0123456789abcdef0123456789abcdef\nmore\n",
        "kelpie-store 99999999999999999999 0123456789abcdef0123456789abcdef\n",
        "some other file that somebody put there, much longer than a marker of ours would ever be, "
        "so "
        "that it does not fit into the room that is kept for it when it is read",
    };
    struct klp_store *other = NULL;
    for (size_t i = 0; i < KLP_COUNT(damaged); i++) {
        write_marker(damaged[i]);
        CONTRACT_FALSE(CORRUPT, folder, klp_store_local_create(env, folder, &other, &err_));
    }
    write_marker("kelpie-store 2 0123456789abcdef0123456789abcdef and what version 2 has\n");
    CONTRACT_FALSE(UNSUPPORTED, "version 2", klp_store_local_create(env, folder, &other, &err_));
    write_marker("kelpie-store 1 0123456789abcdef0123456789abcdef\n");
    CONTRACT_TRUE(klp_store_local_create(env, folder, &other, &err_));
    klp_store_destroy(other);
}

static void test_store_local__another_store_in_its_place(void **state)
{
    (void)state;
    char away[256];
    struct klp_digest digest = put_text("in the first"), second;
    snprintf(away, sizeof(away), "%s-first", folder);
    assert_int_equal(rename(folder, away), 0);
    assert_int_equal(mkdir(folder, 0700), 0);
    /* An empty folder is a disk that is not mounted: nothing is written into it. */
    CONTRACT_FAIL(UNREACHABLE, "no store",
                  klp_store_put(&op, store, KLP_OBJECT_PACK, "abc", 3, &second, &err_));
    KLP_AUTO(store) struct klp_store *other = NULL;
    CONTRACT_TRUE(klp_store_local_create(env, folder, &other, &err_));
    CONTRACT_OK(klp_store_put(&op, store, KLP_OBJECT_PACK, "abc", 3, &second, &err_));
    CONTRACT_OK(klp_store_verify(&op, other, KLP_OBJECT_PACK, &second, &err_));
    CONTRACT_FAIL(NOT_FOUND, "packs/",
                  klp_store_verify(&op, store, KLP_OBJECT_PACK, &digest, &err_));
}

static void test_store_local__deleted_under_a_writer(void **state)
{
    (void)state;
    KLP_AUTO(store_writer) struct klp_store_writer *writer = NULL;
    struct klp_digest digest;
    CONTRACT_OK(klp_store_begin(&op, store, KLP_OBJECT_PACK, &writer, &err_));
    CONTRACT_OK(klp_store_write(&op, writer, "abc", 3, &err_));
    assert_int_equal(nftw(folder, remove_entry, 16, FTW_DEPTH | FTW_PHYS), 0);
    CONTRACT_FAIL(UNREACHABLE, folder,
                  klp_store_commit(&op, KLP_TAKE(&writer), &digest, NULL, NULL, &err_));
    CONTRACT_FAIL(UNREACHABLE, folder,
                  klp_store_begin(&op, store, KLP_OBJECT_PACK, &writer, &err_));
}

static bool count_object(void *arg, const struct klp_digest *digest, uint64_t size)
{
    (void)digest;
    (void)size;
    ++*(unsigned *)arg;
    return true;
}

static bool count_ref(void *arg, const char *name)
{
    (void)name;
    ++*(unsigned *)arg;
    return true;
}

static void test_store_local__foreign_files_are_no_objects(void **state)
{
    (void)state;
    char path[512];
    struct klp_digest digest = put_text("abc");
    object_file(path, KLP_OBJECT_PACK, &digest);
    static const char *const strays[] = {"packs/README", "packs/ba/notes.txt", "packs/zz",
                                         "refs/images/.hidden", "refs/images/UPPER"};
    CONTRACT_OK(klp_ref_create(&op, store, "images/a", "v", 1, &err_));
    for (size_t i = 0; i < KLP_COUNT(strays); i++) {
        snprintf(path, sizeof(path), "%s/%s", folder, strays[i]);
        FILE *file = fopen(path, "w");
        assert_non_null(file);
        fclose(file);
    }
    /* A good name in the wrong sub-folder is not found by name either. */
    char hex[KLP_DIGEST_SIZE];
    klp_digest_text(&digest, hex);
    hex[0] = 'c';
    snprintf(path, sizeof(path), "%s/packs/ba/%s", folder, hex);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fclose(file);
    unsigned objects = 0, refs = 0;
    CONTRACT_OK(klp_store_list(&op, store, KLP_OBJECT_PACK, count_object, &objects, &err_));
    CONTRACT_OK(klp_ref_list(&op, store, "images", count_ref, &refs, &err_));
    assert_int_equal(objects, 1);
    assert_int_equal(refs, 1);
}

static void test_store_local__bad_paths(void **state)
{
    (void)state;
    struct klp_store *other = NULL;
    char path[300], *longest = test_malloc(KLP_PATH_MAX + 3);
    CONTRACT_FALSE(INVALID, "empty", klp_store_local_create(env, "", &other, &err_));
    memset(longest, '/', KLP_PATH_MAX + 2);
    longest[KLP_PATH_MAX + 2] = '\0';
    CONTRACT_FALSE(INVALID, "over", klp_store_local_create(env, longest, &other, &err_));
    test_free(longest);
    snprintf(path, sizeof(path), "%s/kelpie-store", folder); /* a file */
    CONTRACT_FALSE(UNREACHABLE, path, klp_store_local_create(env, path, &other, &err_));
    assert_null(other);
}

/* ---- a full disk */

static char disk[128];

static int disk_up(void **state)
{
    (void)state;
    op = klp_op_plain(env, CONTRACT_TIMEOUT_MS);
    snprintf(disk, sizeof(disk), "%s/disk%u", base, folder_number++);
    assert_int_equal(mkdir(disk, 0700), 0);
    snprintf(folder, sizeof(folder), "%s/store", disk);
    store = NULL;
    if (mount("kelpie-test", disk, "tmpfs", 0, "size=1m,mode=700") == 0)
        CONTRACT_TRUE(klp_store_local_create(env, folder, &store, &err_));
    return 0;
}

static int disk_down(void **state)
{
    (void)state;
    klp_store_destroy(store);
    (void)umount2(disk, MNT_DETACH);
    return 0;
}

static void test_store_local__full_disk(void **state)
{
    (void)state;
    if (store == NULL)
        CONTRACT_SKIP("needs root, to mount a small disk");
    uint8_t *block = test_calloc(1, 300 * KLP_KIB);
    struct klp_digest first, digest;
    CONTRACT_OK(klp_store_put(&op, store, KLP_OBJECT_PACK, block, 300 * KLP_KIB, &first, &err_));
    KLP_AUTO(store_writer) struct klp_store_writer *writer = NULL;
    CONTRACT_OK(klp_store_begin(&op, store, KLP_OBJECT_PACK, &writer, &err_));
    CONTRACT_OK(klp_store_write(&op, writer, block, 300 * KLP_KIB, &err_));
    block[0] = 1;
    CONTRACT_OK(klp_store_write(&op, writer, block, 300 * KLP_KIB, &err_));
    CONTRACT_FAIL(NO_SPACE, "after 614400",
                  klp_store_write(&op, writer, block, 300 * KLP_KIB, &err_));
    /* Half of an object is never committed, also when there is room again. */
    CONTRACT_FAIL(STATE, "earlier write", klp_store_write(&op, writer, "x", 1, &err_));
    CONTRACT_FAIL(STATE, "earlier write",
                  klp_store_commit(&op, KLP_TAKE(&writer), &digest, NULL, NULL, &err_));
    assert_int_equal(count_files(), 1);
    CONTRACT_OK(klp_store_verify(&op, store, KLP_OBJECT_PACK, &first, &err_));
    /* The same again, once there is room: the failed one gave back all it took. */
    CONTRACT_OK(klp_store_put(&op, store, KLP_OBJECT_PACK, block, 300 * KLP_KIB, &digest, &err_));
    CONTRACT_OK(klp_store_verify(&op, store, KLP_OBJECT_PACK, &digest, &err_));
    test_free(block);
}

#define LOCAL_TEST(name)                                                                           \
    cmocka_unit_test_setup_teardown(test_store_local__##name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        LOCAL_TEST(layout_and_modes),
        LOCAL_TEST(small_put_takes_at_most_three_syncs),
        LOCAL_TEST(failed_file_sync_names_nothing),
        LOCAL_TEST(failed_folder_sync_makes_a_retry_name_it_anew),
        LOCAL_TEST(ref_with_failed_folder_sync_is_unknown),
        LOCAL_TEST(read_only_after_three_failed_syncs),
        LOCAL_TEST(failed_link_leaves_nothing),
        LOCAL_TEST(marker_is_checked),
        LOCAL_TEST(another_store_in_its_place),
        LOCAL_TEST(deleted_under_a_writer),
        LOCAL_TEST(foreign_files_are_no_objects),
        LOCAL_TEST(bad_paths),
        cmocka_unit_test_setup_teardown(test_store_local__full_disk, disk_up, disk_down),
    };
    const struct klp_env_posix_options options = {.program = "store_local",
                                                  .level = KLP_LOG_ERROR + 1};
    CONTRACT_TRUE(klp_env_posix_create(&options, &env, &err_));
    env_real = env->ops;
    env_ops = *env->ops;
    file_ops = *env->ops->file;
    file_ops.sync = faulty_sync;
    file_ops.dir_sync = faulty_dir_sync;
    file_ops.link = faulty_link;
    env_ops.file = &file_ops;
    const char *parent = getenv("TMPDIR");
    snprintf(base, sizeof(base), "%s/kelpie-store-XXXXXX", parent != NULL ? parent : "/tmp");
    if (mkdtemp(base) == NULL)
        return 1;
    const struct contract_store suite = {
        .name = "contract_store: local",
        .env = env,
        .make = local_make,
        .again = local_again,
        .damage = local_damage,
        .ref_damage = local_ref_damage,
        .hide = local_hide,
        .has_paths = true,
    };
    int failed = contract_store(&suite); /* on env's own calls */
    env->ops = &env_ops;
    failed += cmocka_run_group_tests_name("store_local", tests, NULL, NULL);
    env->ops = env_real;
    (void)nftw(base, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    klp_env_posix_destroy(env);
    return failed != 0;
}
