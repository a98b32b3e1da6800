/* SPDX-License-Identifier: Apache-2.0 */
/* The registry in an SQLite file: the contract of every registry, and what only a file has: its
 * mode and schema, locks held by others, full and failing disks in the middle of a COMMIT, several
 * processes. */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "contract/contract.h"
#include "contract/registry.h"

#include "base/limits.h"
#include "env/posix/posix.h"
#include "registry/sqlite/sqlite.h"
#include "unit/sqlite_faults.h"

static struct klp_env *env;
static struct kelpie_op op;
static struct klp_registry *registry;
static char base[64], path[160];
static unsigned number;

#define ID "00000000000000000000000000000001"

static int remove_entry(const char *at, const struct stat *facts, int type, struct FTW *ftw)
{
    (void)facts;
    (void)type;
    (void)ftw;
    return remove(at);
}

/* ---- the factory of the contract suite */

static bool sqlite_make(void *arg, struct klp_registry **out, struct kelpie_error **err)
{
    (void)arg;
    snprintf(path, sizeof(path), "%s/r%u.db", base, number++);
    return klp_registry_sqlite_create(env, path, out, err);
}

static bool sqlite_again(void *arg, struct klp_registry **out, struct kelpie_error **err)
{
    (void)arg;
    return klp_registry_sqlite_create(env, path, out, err);
}

static sqlite3 *raw_open(const char *at)
{
    sqlite3 *db = NULL;
    assert_int_equal(sqlite3_open(at, &db), SQLITE_OK);
    return db;
}

static void raw_run(const char *at, const char *sql, int want)
{
    sqlite3 *db = raw_open(at);
    char *text = NULL;
    int rc = sqlite3_exec(db, sql, NULL, NULL, &text);
    if (rc != want)
        print_error("%s: %d (%s)\n", sql, rc, text != NULL ? text : "");
    sqlite3_free(text);
    assert_int_equal(rc, want);
    assert_int_equal(sqlite3_close(db), SQLITE_OK);
}

static void sqlite_plant(void *arg, const char *id, const char *text)
{
    (void)arg;
    char *sql = sqlite3_mprintf("UPDATE agents SET text = %Q WHERE id = %Q", text, id);
    raw_run(path, sql, SQLITE_OK);
    sqlite3_free(sql);
}

static void sqlite_hide(void *arg, bool hidden)
{
    char away[256];
    (void)arg;
    snprintf(away, sizeof(away), "%s-away", path);
    assert_int_equal(hidden ? rename(path, away) : rename(away, path), 0);
}

/* ---- what only a file has */

static int set_up(void **state)
{
    (void)state;
    op = klp_op_plain(env, CONTRACT_TIMEOUT_MS);
    sqlite_faults = (struct sqlite_faults){0};
    CONTRACT_TRUE(sqlite_make(NULL, &registry, &err_));
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    sqlite_faults = (struct sqlite_faults){0};
    klp_registry_destroy(registry);
    registry = NULL;
    return 0;
}

static struct klp_agent_record record_of(const char *name)
{
    struct klp_agent_record record = {.id = ID,
                                      .owner = "node-a",
                                      .epoch = 1,
                                      .state = KLP_AGENT_CREATED,
                                      .lease_ttl_ms = 30000,
                                      .backend = "mock",
                                      .arch = KLP_ARCH_X86_64,
                                      .vcpus = 1,
                                      .memory_bytes = 512ull << 20};
    klp_text_copy(record.name, sizeof(record.name), name);
    return record;
}

static struct klp_agent_record create(void)
{
    struct klp_agent_record record = record_of("a");
    CONTRACT_OK(klp_registry_create(&op, registry, &record, &err_));
    return record;
}

static void assert_revision(struct klp_registry *from, uint64_t want)
{
    struct klp_agent_record record;
    CONTRACT_OK(klp_registry_get(&op, from, ID, &record, &err_));
    assert_int_equal(record.revision, want);
    klp_agent_record_finish(&record);
}

static void assert_mode(const char *suffix, mode_t want)
{
    char at[256];
    struct stat facts;
    snprintf(at, sizeof(at), "%s%s", path, suffix);
    assert_int_equal(stat(at, &facts), 0);
    assert_int_equal(facts.st_mode & 0777, want);
}

static void test_registry_sqlite__only_the_owner_may_read(void **state)
{
    (void)state;
    create();
    assert_mode("", 0600);
    assert_mode("-wal", 0600);
    assert_mode("-shm", 0600);
}

static void test_registry_sqlite__every_change_is_synced(void **state)
{
    (void)state;
    struct klp_agent_record record = create(), next = record;
    sqlite_faults.log_syncs = 0;
    CONTRACT_OK(klp_registry_cas(&op, registry, &record, &next, &err_));
    assert_true(sqlite_faults.log_syncs >= 1);
    sqlite_faults.log_syncs = 0;
    CONTRACT_OK(klp_registry_renew(&op, registry, ID, "node-a", 1, &err_));
    assert_true(sqlite_faults.log_syncs >= 1);
}

static void test_registry_sqlite__survives_its_connection(void **state)
{
    (void)state;
    create();
    klp_registry_destroy(registry);
    registry = NULL;
    CONTRACT_TRUE(sqlite_again(NULL, &registry, &err_));
    assert_revision(registry, 1);
}

static void test_registry_sqlite__newer_schema_is_refused(void **state)
{
    (void)state;
    create();
    raw_run(path, "PRAGMA user_version = 2", SQLITE_OK);
    struct klp_registry *other = NULL;
    CONTRACT_FALSE(UNSUPPORTED, "version 2", sqlite_again(NULL, &other, &err_));
    raw_run(path, "PRAGMA user_version = 1", SQLITE_OK);
    CONTRACT_TRUE(sqlite_again(NULL, &other, &err_));
    assert_revision(other, 1);
    klp_registry_destroy(other);
}

static void write_file(const char *at, const void *bytes, size_t size, size_t offset)
{
    int fd = open(at, O_WRONLY | O_CREAT, 0600);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, bytes, size, (off_t)offset), (ssize_t)size);
    close(fd);
}

static void test_registry_sqlite__foreign_and_damaged_files_are_refused(void **state)
{
    (void)state;
    char at[160];
    struct klp_registry *other = NULL;
    snprintf(at, sizeof(at), "%s/foreign.db", base);
    raw_run(at, "CREATE TABLE songs (title); INSERT INTO songs VALUES ('x')", SQLITE_OK);
    CONTRACT_FALSE(CORRUPT, at, klp_registry_sqlite_create(env, at, &other, &err_));
    raw_run(at, "SELECT title FROM songs", SQLITE_OK); /* untouched */
    snprintf(at, sizeof(at), "%s/text.db", base);
    uint8_t noise[8192];
    memset(noise, 'x', sizeof(noise));
    write_file(at, noise, sizeof(noise), 0);
    CONTRACT_FALSE(CORRUPT, at, klp_registry_sqlite_create(env, at, &other, &err_));
    /* Ours, with a page of noise in the middle. */
    create();
    klp_registry_destroy(registry);
    registry = NULL;
    write_file(path, noise, 4096, 4096);
    CONTRACT_FALSE(CORRUPT, path, sqlite_again(NULL, &registry, &err_));
    assert_null(other);
    CONTRACT_TRUE(sqlite_make(NULL, &registry, &err_)); /* for tear_down */
}

static void test_registry_sqlite__bad_paths(void **state)
{
    (void)state;
    struct klp_registry *other = NULL;
    char at[160];
    CONTRACT_FALSE(INVALID, "empty", klp_registry_sqlite_create(env, "", &other, &err_));
    snprintf(at, sizeof(at), "%s/absent/r.db", base);
    CONTRACT_FALSE(UNREACHABLE, at, klp_registry_sqlite_create(env, at, &other, &err_));
    CONTRACT_FALSE(UNREACHABLE, base, klp_registry_sqlite_create(env, base, &other, &err_));
    assert_null(other);
}

static void test_registry_sqlite__lock_of_another_ends_in_a_timeout(void **state)
{
    (void)state;
    struct klp_agent_record record = create(), next = record;
    sqlite3 *other = raw_open(path);
    assert_int_equal(sqlite3_exec(other, "BEGIN IMMEDIATE", NULL, NULL, NULL), SQLITE_OK);
    struct kelpie_op brief = klp_op_within(&op, 80);
    uint64_t start = klp_boot_ns(env);
    CONTRACT_FAIL(TIMEOUT, "locked", klp_registry_cas(&brief, registry, &record, &next, &err_));
    assert_in_range(klp_boot_ns(env) - start, 70 * KLP_MS, 3 * KLP_SECOND);
    assert_revision(registry, 1); /* readers do not wait for it */
    assert_int_equal(sqlite3_exec(other, "ROLLBACK", NULL, NULL, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_close(other), SQLITE_OK);
    CONTRACT_OK(klp_registry_cas(&op, registry, &record, &next, &err_));
}

static void cancel_soon(void *arg)
{
    KLP_IGNORE(klp_sleep_until(&op, klp_boot_ns(env) + 50 * KLP_MS, NULL));
    klp_cancel_raise(arg);
}

static void test_registry_sqlite__waiting_for_a_lock_wakes_on_cancel(void **state)
{
    (void)state;
    struct klp_agent_record record = create(), next = record;
    sqlite3 *other = raw_open(path);
    assert_int_equal(sqlite3_exec(other, "BEGIN IMMEDIATE", NULL, NULL, NULL), SQLITE_OK);
    KLP_AUTO(cancel) struct klp_cancel *cancel = klp_cancel_create(env);
    struct kelpie_op stopped = op;
    struct klp_task *task = NULL;
    stopped.cancel = cancel;
    CONTRACT_TRUE(klp_task_spawn(env, "cancel", cancel_soon, cancel, &task, &err_));
    CONTRACT_FAIL(CANCELLED, "locked", klp_registry_cas(&stopped, registry, &record, &next, &err_));
    klp_task_join(task);
    assert_int_equal(sqlite3_close(other), SQLITE_OK);
}

static void test_registry_sqlite__an_epoch_cannot_go_back(void **state)
{
    (void)state;
    struct klp_agent_record record = create(), next = record;
    next.epoch = 5;
    CONTRACT_OK(klp_registry_cas(&op, registry, &record, &next, &err_));
    raw_run(path, "UPDATE agents SET epoch = 4", SQLITE_CONSTRAINT);
    raw_run(path, "UPDATE agents SET revision = 1", SQLITE_CONSTRAINT);
}

static void test_registry_sqlite__a_file_put_in_its_place_is_not_used(void **state)
{
    (void)state;
    create();
    assert_int_equal(unlink(path), 0);
    struct klp_agent_record record = record_of("b");
    CONTRACT_FAIL(UNREACHABLE, path, klp_registry_create(&op, registry, &record, &err_));
    write_file(path, "", 0, 0);
    CONTRACT_FAIL(UNREACHABLE, path, klp_registry_create(&op, registry, &record, &err_));
    CONTRACT_FAIL(UNREACHABLE, path, klp_registry_renew(&op, registry, ID, "node-a", 1, &err_));
}

/* ---- a COMMIT that fails */

/* In a process of its own: closing the file here would drop the registry's locks on it. */
static void copy_file(const char *from, const char *to)
{
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        static uint8_t bytes[4 * KLP_MIB];
        int in = open(from, O_RDONLY), out = open(to, O_WRONLY | O_CREAT, 0600);
        ssize_t size = read(in, bytes, sizeof(bytes));
        bool whole = size >= 0 && (size_t)size < sizeof(bytes);
        _exit(whole && write(out, bytes, (size_t)size) == size ? 0 : 1);
    }
    int status = -1;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

/* The revision that a recovery finds after a crash at this instant, with everything written on
 * disk. */
static void assert_revision_after_crash(uint64_t want)
{
    char crash[200], from[200], to[224];
    snprintf(crash, sizeof(crash), "%s/crash%u.db", base, number++);
    snprintf(from, sizeof(from), "%s-wal", path);
    snprintf(to, sizeof(to), "%s-wal", crash);
    copy_file(path, crash);
    copy_file(from, to);
    sqlite3 *db = raw_open(crash);
    sqlite3_stmt *statement = NULL;
    assert_int_equal(sqlite3_prepare_v2(db, "SELECT revision FROM agents", -1, &statement, NULL),
                     SQLITE_OK);
    assert_int_equal(sqlite3_step(statement), SQLITE_ROW);
    assert_int_equal(sqlite3_column_int64(statement, 0), (sqlite3_int64)want);
    assert_int_equal(sqlite3_finalize(statement), SQLITE_OK);
    assert_int_equal(sqlite3_close(db), SQLITE_OK);
}

static void test_registry_sqlite__failed_commit_is_undone_for_good(void **state)
{
    (void)state;
    struct klp_agent_record record = create(), next = record;
    sqlite_faults.log_sync_fails = 1;
    CONTRACT_FAIL(IO, path, klp_registry_cas(&op, registry, &record, &next, &err_));
    assert_int_equal(next.revision, 1);
    assert_revision_after_crash(1);
    assert_revision(registry, 1);
    CONTRACT_OK(klp_registry_cas(&op, registry, &record, &next, &err_));
    assert_revision_after_crash(2);
}

static void test_registry_sqlite__commit_that_cannot_be_undone_is_unknown(void **state)
{
    (void)state;
    struct klp_agent_record record = create(), next = record, found;
    next.state = KLP_AGENT_RUNNING;
    sqlite_faults.log_sync_fails = -1;
    CONTRACT_UNKNOWN(OUTCOME_UNKNOWN, path, klp_registry_cas(&op, registry, &record, &next, &err_));
    assert_int_equal(next.revision, 2);
    /* Why it is UNKNOWN: here, a crash would bring it back. So nothing is read that may not last.
     */
    CONTRACT_FAIL(IO, "not be undone", klp_registry_get(&op, registry, ID, &found, &err_));
    bool happened = true;
    struct kelpie_op brief = klp_op_within(&op, 120);
    CONTRACT_UNKNOWN(OUTCOME_UNKNOWN, "did not answer",
                     klp_registry_settle(&brief, registry, &next, &happened, &found, &err_));
    sqlite_faults.log_sync_fails = 0;
    CONTRACT_OK(klp_registry_settle(&op, registry, &next, &happened, &found, &err_));
    assert_false(happened);
    assert_true(klp_registry_says_same(&found, &record));
    assert_int_equal(found.revision, 2); /* used up: what is in doubt cannot come back */
    klp_agent_record_finish(&found);
    assert_revision_after_crash(2);
}

static void test_registry_sqlite__full_log_is_no_space(void **state)
{
    (void)state;
    struct klp_agent_record record = create(), next = record;
    for (int fails = 1; fails <= 3; fails++) {
        sqlite_faults.log_write_fails = fails;
        CONTRACT_FAIL(NO_SPACE, path, klp_registry_cas(&op, registry, &record, &next, &err_));
        sqlite_faults.log_write_fails = 0;
        assert_revision(registry, 1);
        assert_revision_after_crash(1);
    }
    /* Nothing can be written at all, not even a mend: then a checkpoint cuts the log. */
    sqlite_faults.log_write_fails = -1;
    CONTRACT_FAIL(NO_SPACE, path, klp_registry_cas(&op, registry, &record, &next, &err_));
    assert_revision(registry, 1);
    /* And if that does not work either, it is not known. */
    sqlite_faults.log_write_fails = 0;
    CONTRACT_OK(klp_registry_renew(&op, registry, ID, "node-a", 1, &err_));
    sqlite_faults.log_write_fails = sqlite_faults.file_write_fails = -1;
    CONTRACT_UNKNOWN(OUTCOME_UNKNOWN, path, klp_registry_cas(&op, registry, &record, &next, &err_));
    sqlite_faults = (struct sqlite_faults){0};
    assert_revision(registry, 1);
    CONTRACT_OK(klp_registry_cas(&op, registry, &record, &record, &err_));
}

/* ---- a full disk */

static char disk[128];

static int disk_up(void **state)
{
    (void)state;
    op = klp_op_plain(env, CONTRACT_TIMEOUT_MS);
    sqlite_faults = (struct sqlite_faults){0};
    snprintf(disk, sizeof(disk), "%s/disk%u", base, number++);
    assert_int_equal(mkdir(disk, 0700), 0);
    snprintf(path, sizeof(path), "%s/r.db", disk);
    if (mount("kelpie-test", disk, "tmpfs", 0, "size=1m,mode=700") == 0)
        CONTRACT_TRUE(klp_registry_sqlite_create(env, path, &registry, &err_));
    return 0;
}

static int disk_down(void **state)
{
    tear_down(state);
    (void)umount2(disk, MNT_DETACH);
    return 0;
}

static void fill_disk(const char *at)
{
    static uint8_t block[4096];
    int fd = open(at, O_WRONLY | O_CREAT, 0600);
    assert_true(fd >= 0);
    while (write(fd, block, sizeof(block)) > 0)
        continue;
    assert_int_equal(errno, ENOSPC);
    close(fd);
}

static void test_registry_sqlite__full_disk(void **state)
{
    (void)state;
    if (registry == NULL)
        CONTRACT_SKIP("needs root, to mount a small disk");
    char filler[160];
    snprintf(filler, sizeof(filler), "%s/filler", disk);
    struct klp_agent_record record = create();
    for (unsigned i = 2; i < 30; i++) { /* pages that lie in the log only */
        char name[16];
        snprintf(name, sizeof(name), "other-%u", i);
        struct klp_agent_record other = record_of(name);
        snprintf(other.id, sizeof(other.id), "%032x", i);
        CONTRACT_OK(klp_registry_create(&op, registry, &other, &err_));
    }
    fill_disk(filler);
    /* The log has some room left in its last page; then it is over. */
    kelpie_outcome outcome = KLP_OK;
    struct kelpie_error *err = NULL;
    uint64_t last = record.revision;
    for (int i = 0; i < 50 && kelpie_is_ok(outcome); i++) {
        last = record.revision;
        outcome = klp_registry_cas(&op, registry, &record, &record, &err);
    }
    contract_fails_at((struct contract_answer){outcome, err}, KELPIE_FAIL, KELPIE_E_NO_SPACE, path,
                      __FILE__, __LINE__);
    assert_revision(registry, last);
    struct klp_registry *other = NULL;
    char second[160];
    snprintf(second, sizeof(second), "%s/second.db", disk);
    fill_disk(filler); /* what the cut of the log gave back */
    CONTRACT_FALSE(NO_SPACE, second, klp_registry_sqlite_create(env, second, &other, &err_));
    assert_int_equal(unlink(filler), 0);
    CONTRACT_OK(klp_registry_cas(&op, registry, &record, &record, &err_));
    assert_revision(registry, last + 1);
}

/* ---- processes */

#define PROCESS_WINS 100

/* In a process of its own; the exit status says how it went. */
static int race_in_process(const char *owner)
{
    struct klp_registry *own = NULL;
    if (!klp_registry_sqlite_create(env, path, &own, NULL))
        return 2;
    for (unsigned wins = 0; wins < PROCESS_WINS;) {
        struct klp_agent_record read, next;
        struct kelpie_error *err = NULL;
        if (!kelpie_is_ok(klp_registry_get(&op, own, ID, &read, NULL)))
            return 3;
        next = read;
        next.epoch++;
        klp_text_copy(next.owner, sizeof(next.owner), owner);
        kelpie_outcome outcome = klp_registry_cas(&op, own, &read, &next, &err);
        if (kelpie_is_ok(outcome))
            wins++;
        else if (outcome.kind != KELPIE_FAIL || kelpie_error_code(err) != KELPIE_E_CONFLICT)
            return 4;
        kelpie_error_free(err);
        klp_agent_record_finish(&read);
    }
    klp_registry_destroy(own);
    return 0;
}

static void test_registry_sqlite__processes_race(void **state)
{
    (void)state;
    create();
    klp_registry_destroy(registry); /* no connection may be carried through fork */
    registry = NULL;
    pid_t children[2];
    for (int i = 0; i < 2; i++) {
        children[i] = fork();
        assert_true(children[i] >= 0);
        if (children[i] == 0)
            _exit(race_in_process(i == 0 ? "node-a" : "node-b"));
    }
    for (int i = 0; i < 2; i++) {
        int status = -1;
        assert_int_equal(waitpid(children[i], &status, 0), children[i]);
        assert_int_equal(status, 0);
    }
    CONTRACT_TRUE(sqlite_again(NULL, &registry, &err_));
    assert_revision(registry, 1 + 2 * PROCESS_WINS);
}

struct open_task {
    unsigned failed;
};

static void open_and_close(void *arg)
{
    struct open_task *task = arg;
    struct klp_registry *other = NULL;
    struct kelpie_error *err = NULL;
    if (klp_registry_sqlite_create(env, path, &other, &err)) {
        klp_registry_destroy(other);
        return;
    }
    print_error("%s\n", kelpie_error_message(err));
    kelpie_error_free(err);
    task->failed = 1;
}

static void test_registry_sqlite__many_make_it_at_once(void **state)
{
    (void)state;
    klp_registry_destroy(registry);
    registry = NULL;
    for (unsigned round = 0; round < 8; round++) {
        struct open_task tasks[4] = {0};
        snprintf(path, sizeof(path), "%s/r%u.db", base, number++);
        contract_together(env, 4, open_and_close, tasks, sizeof(tasks[0]));
        for (size_t i = 0; i < 4; i++)
            assert_int_equal(tasks[i].failed, 0);
    }
    CONTRACT_TRUE(sqlite_again(NULL, &registry, &err_));
    create();
}

#define SQLITE_TEST(name)                                                                          \
    cmocka_unit_test_setup_teardown(test_registry_sqlite__##name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        SQLITE_TEST(only_the_owner_may_read),
        SQLITE_TEST(every_change_is_synced),
        SQLITE_TEST(survives_its_connection),
        SQLITE_TEST(newer_schema_is_refused),
        SQLITE_TEST(foreign_and_damaged_files_are_refused),
        SQLITE_TEST(bad_paths),
        SQLITE_TEST(lock_of_another_ends_in_a_timeout),
        SQLITE_TEST(waiting_for_a_lock_wakes_on_cancel),
        SQLITE_TEST(an_epoch_cannot_go_back),
        SQLITE_TEST(a_file_put_in_its_place_is_not_used),
        SQLITE_TEST(failed_commit_is_undone_for_good),
        SQLITE_TEST(commit_that_cannot_be_undone_is_unknown),
        SQLITE_TEST(full_log_is_no_space),
        SQLITE_TEST(processes_race),
        SQLITE_TEST(many_make_it_at_once),
        cmocka_unit_test_setup_teardown(test_registry_sqlite__full_disk, disk_up, disk_down),
    };
    const struct klp_env_posix_options options = {.program = "registry_sqlite",
                                                  .level = KLP_LOG_ERROR + 1};
    CONTRACT_TRUE(klp_env_posix_create(&options, &env, &err_));
    sqlite_faults_install();
    const char *parent = getenv("TMPDIR");
    snprintf(base, sizeof(base), "%s/kelpie-registry-XXXXXX", parent != NULL ? parent : "/tmp");
    if (mkdtemp(base) == NULL)
        return 1;
    const struct contract_registry suite = {
        .name = "contract_registry: sqlite",
        .env = env,
        .make = sqlite_make,
        .again = sqlite_again,
        .plant = sqlite_plant,
        .hide = sqlite_hide,
    };
    int failed = contract_registry(&suite);
    failed += cmocka_run_group_tests_name("registry_sqlite", tests, NULL, NULL);
    (void)nftw(base, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    klp_env_posix_destroy(env);
    return failed != 0;
}
