/* SPDX-License-Identifier: Apache-2.0 */
/* One connection to the registry's file: opening, schema, the lock others hold, and what a failed
 * COMMIT means. The statements' meaning is left to sqlite.c.
 *
 * WAL and synchronous=FULL: an answered COMMIT outlives a power loss, so an epoch never goes back
 * (store-and-teleport f.2). A COMMIT that fails leaves frames in the log that no reader sees, but
 * that a recovery after a crash might take for committed when only the sync failed. So they are
 * overwritten by another transaction or cut off by a checkpoint at once; where neither works the
 * outcome is UNKNOWN and the connection stays in doubt: it neither reads nor writes before it got
 * rid of them. */
#include "registry/sqlite/connection.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/vfs.h>
#endif

#include "base/fmt.h"

#define APPLICATION_ID 0x4b4c5052 /* "KLPR" */
#define SCHEMA_VERSION 1
#define OPEN_BUSY_MS 5000 /* others are making the schema, or recovering the log */
#define BUSY_MS 5         /* waited inside SQLite, with the mutex held */
#define PAUSE_MAX_MS 16   /* between two tries, with the mutex free */
#define VALUE_BYTES_MAX 65536
#define CHUNK_BYTES (256 * 1024) /* the file grows by: room for a checkpoint on a full disk */

static const char SCHEMA[] =
    "CREATE TABLE agents ("
    " id TEXT NOT NULL PRIMARY KEY, name TEXT NOT NULL UNIQUE, owner TEXT NOT NULL,"
    " epoch INTEGER NOT NULL, revision INTEGER NOT NULL, beat INTEGER NOT NULL, text TEXT NOT NULL"
    ") STRICT;"
    "CREATE TABLE nodes (name TEXT NOT NULL PRIMARY KEY, text TEXT NOT NULL) STRICT;"
    "CREATE TABLE settled (count INTEGER NOT NULL) STRICT;"
    "INSERT INTO settled VALUES (0);"
    /* Belt and braces: whatever writes to the file, an epoch does not go back. */
    "CREATE TRIGGER agents_forward BEFORE UPDATE ON agents"
    " WHEN NEW.epoch < OLD.epoch OR NEW.revision < OLD.revision OR NEW.beat < OLD.beat"
    " BEGIN SELECT RAISE(ABORT, 'epoch, revision or beat went back'); END;"
    "PRAGMA application_id = 1263292498;" /* APPLICATION_ID */
    "PRAGMA user_version = 1;";

/* ---- errors */

static enum kelpie_code code_of(int rc)
{
    switch (rc & 0xff) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
    case SQLITE_PROTOCOL: /* races at the start of reading a WAL */
        return KELPIE_E_BUSY;
    case SQLITE_FULL:
        return KELPIE_E_NO_SPACE;
    case SQLITE_NOMEM:
        return KELPIE_E_NO_MEMORY;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
        return KELPIE_E_CORRUPT;
    case SQLITE_CANTOPEN:
        return KELPIE_E_UNREACHABLE;
    case SQLITE_READONLY:
        return rc == SQLITE_READONLY_DBMOVED ? KELPIE_E_UNREACHABLE : KELPIE_E_DENIED;
    case SQLITE_PERM:
    case SQLITE_AUTH:
        return KELPIE_E_DENIED;
    case SQLITE_TOOBIG:
        return KELPIE_E_LIMIT;
    case SQLITE_IOERR:
        return KELPIE_E_IO;
    default:
        return KELPIE_E_INTERNAL;
    }
}

kelpie_outcome klp_sqlite_fail(struct klp_sqlite *sqlite, int rc, struct kelpie_error **err)
{
    const char *text = sqlite->db != NULL ? sqlite3_errmsg(sqlite->db) : sqlite3_errstr(rc);
    return klp_fail(err, code_of(rc), "registry '%s': %s (SQLite %d)", sqlite->path, text, rc);
}

static bool refuse(struct klp_sqlite *sqlite, int rc, struct kelpie_error **err)
{
    return kelpie_is_ok(klp_sqlite_fail(sqlite, rc, err)); /* never */
}

/* ---- opening */

#ifdef __linux__
/* WAL keeps its index in memory that all users share: two hosts on a network file system would each
 * believe in an index of their own, and so in an owner of their own (sqlite.org/wal.html). */
static bool is_network(const char *folder)
{
    static const unsigned long magics[] = {0x6969 /* NFS */, 0x517b /* SMB */,
                                           0xff534d42 /* CIFS */, 0xfe534d42 /* SMB2 */};
    struct statfs facts;
    if (statfs(folder, &facts) != 0)
        return false;
    for (size_t i = 0; i < KLP_COUNT(magics); i++) {
        if (((unsigned long)facts.f_type & 0xffffffff) == magics[i])
            return true;
    }
    return false;
}
#else
static bool is_network(const char *folder)
{
    (void)folder;
    return false;
}
#endif

static char *folder_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    if (slash == NULL)
        return klp_mem_string(".");
    return klp_mem_string_n(path, slash == path ? 1 : (size_t)(slash - path));
}

static bool folder_sync(const char *folder)
{
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return false;
    bool done = fsync(fd) == 0;
    (void)close(fd);
    return done;
}

/* 0 = made, else errno. Without a descriptor where that can be: closing one would drop the locks
 * that another connection of this process took on the file meanwhile (fcntl(2): they belong to
 * process and file). */
static int file_create(const char *path)
{
#ifdef __linux__
    return mknod(path, S_IFREG | 0600, 0) == 0 ? 0 : errno;
#else
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    return fd >= 0 && close(fd) == 0 ? 0 : errno;
#endif
}

/* Made here, so that it is ours alone (the log and its index take its mode over) and its name
 * durable. */
static bool file_make(struct klp_sqlite *sqlite, struct kelpie_error **err)
{
    KLP_AUTO(memory) char *folder = folder_of(sqlite->path);
    if (is_network(folder))
        return klp_refuse(err, KELPIE_E_UNSUPPORTED,
                          "cannot use registry '%s': it lies on a network file system, where hosts "
                          "cannot share it; let one node serve it (node:NAME)",
                          sqlite->path);
    int why = file_create(sqlite->path);
    if (why == 0 && folder_sync(folder))
        return true;
    if (why == 0)
        return klp_refuse(err, KELPIE_E_IO,
                          "cannot make registry '%s': the folder cannot be synced", sqlite->path);
    if (why == EEXIST)
        return true;
    enum kelpie_code code = why == EACCES || why == EPERM    ? KELPIE_E_DENIED
                            : why == ENOSPC || why == EDQUOT ? KELPIE_E_NO_SPACE
                            : why == EROFS                   ? KELPIE_E_DENIED
                                                             : KELPIE_E_UNREACHABLE;
    return klp_refuse(err, code, "cannot open registry '%s': %s", sqlite->path, strerror(why));
}

/* One number or the first byte of a text: what the pragmas answer. */
static int pragma(struct klp_sqlite *sqlite, const char *sql, int64_t *out_number,
                  char out_text[16])
{
    sqlite3_stmt *statement = NULL;
    int rc = sqlite3_prepare_v2(sqlite->db, sql, -1, &statement, NULL);
    if (rc == SQLITE_OK)
        rc = sqlite3_step(statement);
    if (rc == SQLITE_ROW) {
        const char *text = (const char *)sqlite3_column_text(statement, 0);
        if (out_number != NULL)
            *out_number = sqlite3_column_int64(statement, 0);
        if (out_text != NULL)
            klp_format(out_text, 16, "%s", text != NULL ? text : "");
        rc = SQLITE_DONE;
    }
    int end = sqlite3_finalize(statement);
    return rc == SQLITE_DONE ? end : rc;
}

static int options_set(struct klp_sqlite *sqlite)
{
    int rc = sqlite3_extended_result_codes(sqlite->db, 1);
    if (rc == SQLITE_OK)
        rc = sqlite3_busy_timeout(sqlite->db, OPEN_BUSY_MS);
    if (rc == SQLITE_OK)
        rc = sqlite3_db_config(sqlite->db, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
    if (rc == SQLITE_OK)
        rc = sqlite3_db_config(sqlite->db, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, NULL);
    if (rc == SQLITE_OK)
        rc = sqlite3_db_config(sqlite->db, SQLITE_DBCONFIG_ENABLE_FKEY, 1, NULL);
    if (rc == SQLITE_OK)
        rc = sqlite3_exec(sqlite->db,
                          "PRAGMA mmap_size = 0; PRAGMA cell_size_check = 1;"
                          "PRAGMA fullfsync = 1; PRAGMA checkpoint_fullfsync = 1;",
                          NULL, NULL, NULL);
    int chunk = CHUNK_BYTES;
    if (rc == SQLITE_OK)
        rc = sqlite3_file_control(sqlite->db, "main", SQLITE_FCNTL_CHUNK_SIZE, &chunk);
    (void)sqlite3_limit(sqlite->db, SQLITE_LIMIT_LENGTH, VALUE_BYTES_MAX);
    (void)sqlite3_limit(sqlite->db, SQLITE_LIMIT_ATTACHED, 0);
    return rc;
}

/* Switching to WAL asks for a lock that the busy handler does not wait for when two start at once.
 */
static bool wal_start(struct klp_sqlite *sqlite, struct kelpie_error **err)
{
    struct kelpie_op op = klp_op_plain(sqlite->base.env, OPEN_BUSY_MS);
    for (;;) {
        char mode[16] = "";
        int rc = pragma(sqlite, "PRAGMA journal_mode = WAL", NULL, mode);
        if (rc == SQLITE_OK && strcmp(mode, "wal") == 0)
            break;
        if (rc == SQLITE_OK)
            return klp_refuse(err, KELPIE_E_UNSUPPORTED,
                              "cannot use registry '%s': its file system cannot hold a write-ahead "
                              "log (journal mode stays '%s')",
                              sqlite->path, mode);
        if (code_of(rc) != KELPIE_E_BUSY)
            return refuse(sqlite, rc, err);
        if (!kelpie_is_ok(klp_sleep_until(&op, klp_boot_ns(op.env) + 10 * KLP_MS, NULL)))
            return klp_refuse(err, KELPIE_E_BUSY, "cannot open registry '%s': it stays locked",
                              sqlite->path);
    }
    int64_t level = 0;
    int rc = pragma(sqlite, "PRAGMA synchronous = FULL", NULL, NULL);
    if (rc == SQLITE_OK)
        rc = pragma(sqlite, "PRAGMA synchronous", &level, NULL);
    if (rc != SQLITE_OK)
        return refuse(sqlite, rc, err);
    KLP_ASSERT(level == 2); /* FULL */
    return true;
}

struct schema_facts {
    int64_t application, version, tables;
};

/* In one transaction: another daemon may be making the schema. */
static bool schema_read(struct klp_sqlite *sqlite, struct schema_facts *out,
                        struct kelpie_error **err)
{
    bool own = sqlite3_get_autocommit(sqlite->db) != 0;
    int rc = own ? sqlite3_exec(sqlite->db, "BEGIN", NULL, NULL, NULL) : SQLITE_OK;
    if (rc == SQLITE_OK)
        rc = pragma(sqlite, "PRAGMA application_id", &out->application, NULL);
    if (rc == SQLITE_OK)
        rc = pragma(sqlite, "PRAGMA user_version", &out->version, NULL);
    if (rc == SQLITE_OK)
        rc = pragma(sqlite, "SELECT count(*) FROM sqlite_schema", &out->tables, NULL);
    bool fine = rc == SQLITE_OK || refuse(sqlite, rc, err);
    if (own && !sqlite3_get_autocommit(sqlite->db))
        (void)sqlite3_exec(sqlite->db, "ROLLBACK", NULL, NULL, NULL);
    return fine;
}

/* *out_ready: the schema is there and of our version. */
static bool schema_check(struct klp_sqlite *sqlite, bool *out_ready, struct kelpie_error **err)
{
    struct schema_facts facts = {0};
    KLP_CHECK(schema_read(sqlite, &facts, err));
    *out_ready = facts.application == APPLICATION_ID && facts.version == SCHEMA_VERSION;
    if (*out_ready || (facts.application == 0 && facts.version == 0 && facts.tables == 0))
        return true;
    if (facts.application != APPLICATION_ID || facts.version < 1)
        return klp_refuse(err, KELPIE_E_CORRUPT,
                          "cannot use '%s': it is an SQLite file, but no registry of Kelpie",
                          sqlite->path);
    return klp_refuse(err, KELPIE_E_UNSUPPORTED,
                      "cannot use registry '%s': it has version %lld, this release knows %d",
                      sqlite->path, (long long)facts.version, SCHEMA_VERSION);
}

static bool schema_make(struct klp_sqlite *sqlite, struct kelpie_error **err)
{
    bool ready = false;
    KLP_CHECK(schema_check(sqlite, &ready, err));
    if (ready)
        return true;
    int rc = sqlite3_exec(sqlite->db, "BEGIN IMMEDIATE", NULL, NULL, NULL);
    if (rc != SQLITE_OK)
        return refuse(sqlite, rc, err);
    /* Again, under the lock: another daemon may have made it. */
    bool fine = schema_check(sqlite, &ready, err);
    if (fine && !ready) {
        rc = sqlite3_exec(sqlite->db, SCHEMA, NULL, NULL, NULL);
        if (rc == SQLITE_OK)
            rc = sqlite3_exec(sqlite->db, "COMMIT", NULL, NULL, NULL);
        fine = rc == SQLITE_OK || refuse(sqlite, rc, err);
    }
    if (!sqlite3_get_autocommit(sqlite->db))
        (void)sqlite3_exec(sqlite->db, "ROLLBACK", NULL, NULL, NULL);
    return fine;
}

static bool statements_prepare(struct klp_sqlite *sqlite, struct kelpie_error **err)
{
    static const char *const texts[KLP_SQL_COUNT] = {
#define KLP_SQL_TEXT(name, sql) sql,
        KLP_SQL_MAP(KLP_SQL_TEXT)
#undef KLP_SQL_TEXT
    };
    for (int i = 0; i < KLP_SQL_COUNT; i++) {
        int rc = sqlite3_prepare_v3(sqlite->db, texts[i], -1, SQLITE_PREPARE_PERSISTENT,
                                    &sqlite->statements[i], NULL);
        if (rc != SQLITE_OK)
            return refuse(sqlite, rc, err);
    }
    return true;
}

bool klp_sqlite_open(struct klp_sqlite *sqlite, struct kelpie_error **err)
{
    KLP_CHECK(file_make(sqlite, err));
    int rc = sqlite3_open_v2(sqlite->path, &sqlite->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX,
                             NULL);
    if (rc == SQLITE_OK)
        rc = options_set(sqlite);
    if (rc != SQLITE_OK)
        return refuse(sqlite, rc, err);
    bool ready = false;
    KLP_CHECK(schema_check(sqlite, &ready, err)); /* before anything is changed */
    KLP_CHECK(wal_start(sqlite, err));
    KLP_CHECK(schema_make(sqlite, err));
    char verdict[16] = "";
    rc = pragma(sqlite, "PRAGMA quick_check(1)", NULL, verdict);
    if (rc != SQLITE_OK)
        return refuse(sqlite, rc, err);
    if (strcmp(verdict, "ok") != 0)
        return klp_refuse(err, KELPIE_E_CORRUPT, "cannot use registry '%s': the file is damaged",
                          sqlite->path);
    KLP_CHECK(statements_prepare(sqlite, err));
    /* Gives a new file its first chunk; an old one has it, and a log left to others is no trouble.
     */
    (void)pragma(sqlite, "PRAGMA wal_checkpoint(PASSIVE)", NULL, NULL);
    rc = sqlite3_busy_timeout(sqlite->db, BUSY_MS);
    return rc == SQLITE_OK || refuse(sqlite, rc, err);
}

void klp_sqlite_finish(struct klp_sqlite *sqlite)
{
    for (int i = 0; i < KLP_SQL_COUNT; i++)
        (void)sqlite3_finalize(sqlite->statements[i]);
    KLP_ASSERT(sqlite3_close(sqlite->db) == SQLITE_OK); /* else a statement leaks */
}

/* ---- transactions */

static int run(struct klp_sqlite *sqlite, enum klp_sql which)
{
    KLP_AUTO(sql) sqlite3_stmt *statement = sqlite->statements[which];
    int rc = sqlite3_step(statement);
    return rc == SQLITE_DONE ? SQLITE_OK : rc;
}

static void undo(struct klp_sqlite *sqlite)
{
    /* Some failures roll back by themselves. A ROLLBACK cannot fail halfway: the log is only cut
     * off. */
    if (!sqlite3_get_autocommit(sqlite->db))
        (void)run(sqlite, KLP_SQL_ROLLBACK);
}

static bool log_sync(const struct klp_sqlite *sqlite)
{
    KLP_AUTO(memory) char *path = klp_text("%s-wal", sqlite->path);
    /* SQLite holds no locks on the log itself, so closing this descriptor drops none. */
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT;
    bool done = fsync(fd) == 0;
    (void)close(fd);
    return done;
}

/* Overwrites the doubtful frames, or cuts them off; true when they are gone for sure. */
static bool frames_drop(struct klp_sqlite *sqlite)
{
    if (run(sqlite, KLP_SQL_BEGIN) == SQLITE_OK && run(sqlite, KLP_SQL_SETTLE) == SQLITE_OK &&
        run(sqlite, KLP_SQL_COMMIT) == SQLITE_OK)
        return true;
    undo(sqlite);
    int64_t busy = 1; /* the first column: readers were in the way */
    int rc = pragma(sqlite, "PRAGMA wal_checkpoint(TRUNCATE)", &busy, NULL);
    return rc == SQLITE_OK && busy == 0 && log_sync(sqlite);
}

/* Is the file still at its path, and nothing in doubt? An unlinked file would take our writes and
 * show them to nobody. */
static kelpie_outcome connection_check(struct klp_sqlite *sqlite, struct kelpie_error **err)
{
    int moved = 0;
    int rc = sqlite3_file_control(sqlite->db, "main", SQLITE_FCNTL_HAS_MOVED, &moved);
    if (rc == SQLITE_OK && moved)
        return klp_fail(err, KELPIE_E_UNREACHABLE,
                        "registry '%s': the file is gone, or another lies in its place",
                        sqlite->path);
    if (sqlite->doubt && !frames_drop(sqlite))
        return klp_fail(err, KELPIE_E_IO,
                        "registry '%s': a change could not be written, and not be undone yet",
                        sqlite->path);
    sqlite->doubt = false;
    return KLP_OK;
}

static kelpie_outcome commit(struct klp_sqlite *sqlite, struct kelpie_error **err)
{
    int rc = run(sqlite, KLP_SQL_COMMIT);
    if (rc == SQLITE_OK)
        return KLP_OK;
    KLP_AUTO(kelpie_error) struct kelpie_error *why = NULL;
    kelpie_outcome outcome = klp_sqlite_fail(sqlite, rc, &why);
    undo(sqlite);
    if (code_of(rc) == KELPIE_E_BUSY || frames_drop(sqlite)) {
        klp_error_move(err, &why);
        return outcome;
    }
    sqlite->doubt = true;
    return klp_unknown(err, "the change may come back after a crash: %s",
                       kelpie_error_message(why));
}

static kelpie_outcome change_once(struct klp_sqlite *sqlite, klp_sqlite_body *body, void *arg,
                                  struct kelpie_error **err)
{
    KLP_TRY(connection_check(sqlite, err));
    int rc = run(sqlite, KLP_SQL_BEGIN);
    if (rc != SQLITE_OK)
        return klp_sqlite_fail(sqlite, rc, err);
    kelpie_outcome outcome = body(sqlite, arg, err);
    if (kelpie_is_ok(outcome))
        return commit(sqlite, err);
    undo(sqlite);
    return outcome;
}

/* Waits before the next try; random, so that two who collided do not collide again. */
static kelpie_outcome pause_before(const struct kelpie_op *op, unsigned tries, const char *path,
                                   struct kelpie_error **err)
{
    uint32_t dice = 0;
    uint64_t span_ms = tries < 4 ? 2ull << tries : PAUSE_MAX_MS;
    klp_random(op->env, &dice, sizeof(dice));
    uint64_t pause_ns = KLP_MS + dice % (span_ms * KLP_MS);
    return klp_wrap(err, klp_sleep_until(op, klp_boot_ns(op->env) + pause_ns, err),
                    "registry '%s' stayed locked by others", path);
}

static kelpie_outcome until_free(const struct kelpie_op *op, struct klp_sqlite *sqlite,
                                 bool changes, klp_sqlite_body *body, void *arg,
                                 struct kelpie_error **err)
{
    for (unsigned tries = 0;; tries++) {
        struct kelpie_error *why = NULL;
        kelpie_outcome outcome = KLP_OK;
        KLP_LOCKED (sqlite->mutex) {
            if (changes)
                outcome = change_once(sqlite, body, arg, &why);
            else
                outcome = connection_check(sqlite, &why);
            if (!changes && kelpie_is_ok(outcome))
                outcome = body(sqlite, arg, &why);
        }
        if (outcome.kind != KELPIE_FAIL || klp_error_code(&why) != KELPIE_E_BUSY) {
            klp_error_move(err, &why);
            return outcome;
        }
        klp_error_clear(&why);
        KLP_TRY(pause_before(op, tries, sqlite->path, err));
    }
}

kelpie_outcome klp_sqlite_read(const struct kelpie_op *op, struct klp_sqlite *sqlite,
                               klp_sqlite_body *body, void *arg, struct kelpie_error **err)
{
    return until_free(op, sqlite, false, body, arg, err);
}

kelpie_outcome klp_sqlite_change(const struct kelpie_op *op, struct klp_sqlite *sqlite,
                                 klp_sqlite_body *body, void *arg, struct kelpie_error **err)
{
    return until_free(op, sqlite, true, body, arg, err);
}
