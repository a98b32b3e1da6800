/* SPDX-License-Identifier: Apache-2.0 */
/* The registry's calls as SQL. Compare-and-set is one UPDATE whose WHERE names revision and epoch;
 * the beat has a column of its own, so a renewal touches nothing else. Locks, transactions and
 * doubtful commits are left to connection.c. */
#include "registry/sqlite/sqlite.h"

#include <string.h>

#include "base/limits.h"
#include "registry/sqlite/connection.h"

#define LIST_BYTES_MAX (64 * KLP_MIB) /* of one listing, in memory */
#define WATCH_PAUSE_MAX_MS 10

static struct klp_sqlite *sqlite_from(const struct klp_registry *registry)
{
    return KLP_CONTAINER(registry, struct klp_sqlite, base);
}

static const char *sqlite_name(const struct klp_registry *registry)
{
    return sqlite_from(registry)->path;
}

/* ---- binding and stepping */

static void bind_text(sqlite3_stmt *statement, int index, const char *text)
{
    KLP_ASSERT(sqlite3_bind_text(statement, index, text, -1, SQLITE_STATIC) == SQLITE_OK);
}

static void bind_bytes(sqlite3_stmt *statement, int index, struct klp_bytes bytes)
{
    KLP_ASSERT(bytes.size <= KLP_RECORD_SIZE_MAX);
    KLP_ASSERT(sqlite3_bind_text(statement, index, (const char *)bytes.data, (int)bytes.size,
                                 SQLITE_STATIC) == SQLITE_OK);
}

static void bind_number(sqlite3_stmt *statement, int index, uint64_t number)
{
    KLP_ASSERT(number <= INT64_MAX); /* registry.c checked it */
    KLP_ASSERT(sqlite3_bind_int64(statement, index, (int64_t)number) == SQLITE_OK);
}

/* A statement without rows; *out_changed: the rows it touched. */
static kelpie_outcome step_change(struct klp_sqlite *sqlite, sqlite3_stmt *statement,
                                  int *out_changed, struct kelpie_error **err)
{
    int rc = sqlite3_step(statement);
    if (rc == SQLITE_CONSTRAINT_UNIQUE)
        return klp_fail(err, KELPIE_E_EXISTS, "the name is taken");
    if (rc == SQLITE_CONSTRAINT_PRIMARYKEY)
        return klp_fail(err, KELPIE_E_EXISTS, "the id is taken");
    if (rc != SQLITE_DONE)
        return klp_sqlite_fail(sqlite, rc, err);
    *out_changed = sqlite3_changes(sqlite->db);
    return KLP_OK;
}

static kelpie_outcome step_row(struct klp_sqlite *sqlite, sqlite3_stmt *statement, bool *out_row,
                               struct kelpie_error **err)
{
    int rc = sqlite3_step(statement);
    *out_row = rc == SQLITE_ROW;
    if (rc == SQLITE_ROW || rc == SQLITE_DONE)
        return KLP_OK;
    return klp_sqlite_fail(sqlite, rc, err);
}

/* A row's text, column 0, within the bound that held when it was written. */
static kelpie_outcome column_text(sqlite3_stmt *statement, struct klp_bytes *out,
                                  struct kelpie_error **err)
{
    const unsigned char *text = sqlite3_column_text(statement, 0);
    int size = sqlite3_column_bytes(statement, 0);
    if (text == NULL || size < 0 || (size_t)size > KLP_RECORD_SIZE_MAX)
        return klp_fail(err, KELPIE_E_CORRUPT, "a record of %d bytes, at most %u are written", size,
                        KLP_RECORD_SIZE_MAX);
    *out = (struct klp_bytes){text, (size_t)size};
    return KLP_OK;
}

/* ---- one record */

struct get {
    enum klp_sql which;
    const char *key;
    struct klp_buf *out;
    uint64_t beat;
};

static kelpie_outcome get_body(struct klp_sqlite *sqlite, void *arg, struct kelpie_error **err)
{
    struct get *get = arg;
    KLP_AUTO(sql) sqlite3_stmt *statement = sqlite->statements[get->which];
    bool found = false;
    struct klp_bytes text = {0};
    bind_text(statement, 1, get->key);
    KLP_TRY(step_row(sqlite, statement, &found, err));
    if (!found)
        return klp_fail(err, KELPIE_E_NOT_FOUND, "there is no such record");
    KLP_TRY(column_text(statement, &text, err));
    klp_buf_append(get->out, text.data, text.size);
    get->beat = (uint64_t)sqlite3_column_int64(statement, 1);
    KLP_REQUIRE(klp_buf_check(get->out, "a record", err));
    return KLP_OK;
}

static kelpie_outcome sqlite_get(const struct kelpie_op *op, struct klp_registry *registry,
                                 bool by_name, const char *key, struct klp_buf *out,
                                 uint64_t *out_beat, struct kelpie_error **err)
{
    struct get get = {by_name ? KLP_SQL_FIND : KLP_SQL_GET, key, out, 0};
    KLP_TRY(klp_sqlite_read(op, sqlite_from(registry), get_body, &get, err));
    *out_beat = get.beat;
    return KLP_OK;
}

struct change {
    const char *id;
    uint64_t revision, epoch;
    const char *owner;                     /* of a renewal */
    const struct klp_agent_record *record; /* what is to be written */
    struct klp_bytes text;
};

static kelpie_outcome create_body(struct klp_sqlite *sqlite, void *arg, struct kelpie_error **err)
{
    const struct change *change = arg;
    const struct klp_agent_record *record = change->record;
    KLP_AUTO(sql) sqlite3_stmt *statement = sqlite->statements[KLP_SQL_CREATE];
    int changed = 0;
    bind_text(statement, 1, record->id);
    bind_text(statement, 2, record->name);
    bind_text(statement, 3, record->owner);
    bind_number(statement, 4, record->epoch);
    bind_number(statement, 5, record->revision);
    bind_number(statement, 6, record->beat);
    bind_bytes(statement, 7, change->text);
    return step_change(sqlite, statement, &changed, err);
}

static kelpie_outcome sqlite_create(const struct kelpie_op *op, struct klp_registry *registry,
                                    const struct klp_agent_record *record, struct klp_bytes text,
                                    struct kelpie_error **err)
{
    struct change change = {.record = record, .text = text};
    return klp_sqlite_change(op, sqlite_from(registry), create_body, &change, err);
}

/* Nothing matched: says who holds the agent now. */
static kelpie_outcome no_match(struct klp_sqlite *sqlite, const char *id, bool gone_is_conflict,
                               struct kelpie_error **err)
{
    KLP_AUTO(sql) sqlite3_stmt *statement = sqlite->statements[KLP_SQL_WHO];
    bool found = false;
    bind_text(statement, 1, id);
    KLP_TRY(step_row(sqlite, statement, &found, err));
    if (!found)
        return klp_fail(err, gone_is_conflict ? KELPIE_E_CONFLICT : KELPIE_E_NOT_FOUND,
                        "there is no such record");
    return klp_fail(err, KELPIE_E_CONFLICT, "it belongs to node '%s' at epoch %lld, revision %lld",
                    (const char *)sqlite3_column_text(statement, 0),
                    (long long)sqlite3_column_int64(statement, 1),
                    (long long)sqlite3_column_int64(statement, 2));
}

static kelpie_outcome cas_body(struct klp_sqlite *sqlite, void *arg, struct kelpie_error **err)
{
    const struct change *change = arg;
    const struct klp_agent_record *next = change->record;
    int changed = 0;
    {
        KLP_AUTO(sql) sqlite3_stmt *statement = sqlite->statements[KLP_SQL_CAS];
        bind_text(statement, 1, change->id);
        bind_number(statement, 2, change->revision);
        bind_number(statement, 3, change->epoch);
        bind_text(statement, 4, next->name);
        bind_text(statement, 5, next->owner);
        bind_number(statement, 6, next->epoch);
        bind_number(statement, 7, next->revision);
        bind_bytes(statement, 8, change->text);
        KLP_TRY(step_change(sqlite, statement, &changed, err));
    }
    return changed == 1 ? KLP_OK : no_match(sqlite, change->id, false, err);
}

static kelpie_outcome sqlite_cas(const struct kelpie_op *op, struct klp_registry *registry,
                                 const char *id, uint64_t revision, uint64_t epoch,
                                 const struct klp_agent_record *next, struct klp_bytes text,
                                 struct kelpie_error **err)
{
    struct change change = {
        .id = id, .revision = revision, .epoch = epoch, .record = next, .text = text};
    return klp_sqlite_change(op, sqlite_from(registry), cas_body, &change, err);
}

static kelpie_outcome renew_body(struct klp_sqlite *sqlite, void *arg, struct kelpie_error **err)
{
    const struct change *change = arg;
    int changed = 0;
    {
        KLP_AUTO(sql) sqlite3_stmt *statement = sqlite->statements[KLP_SQL_RENEW];
        bind_text(statement, 1, change->id);
        bind_text(statement, 2, change->owner);
        bind_number(statement, 3, change->epoch);
        KLP_TRY(step_change(sqlite, statement, &changed, err));
    }
    return changed == 1 ? KLP_OK : no_match(sqlite, change->id, true, err);
}

static kelpie_outcome sqlite_renew(const struct kelpie_op *op, struct klp_registry *registry,
                                   const char *id, const char *owner, uint64_t epoch,
                                   struct kelpie_error **err)
{
    struct change change = {.id = id, .owner = owner, .epoch = epoch};
    return klp_sqlite_change(op, sqlite_from(registry), renew_body, &change, err);
}

static kelpie_outcome remove_body(struct klp_sqlite *sqlite, void *arg, struct kelpie_error **err)
{
    const struct change *change = arg;
    int changed = 0;
    {
        KLP_AUTO(sql) sqlite3_stmt *statement = sqlite->statements[KLP_SQL_DELETE];
        bind_text(statement, 1, change->id);
        bind_number(statement, 2, change->revision);
        bind_number(statement, 3, change->epoch);
        KLP_TRY(step_change(sqlite, statement, &changed, err));
    }
    return changed == 1 ? KLP_OK : no_match(sqlite, change->id, false, err);
}

static kelpie_outcome sqlite_remove(const struct kelpie_op *op, struct klp_registry *registry,
                                    const char *id, uint64_t revision, uint64_t epoch,
                                    struct kelpie_error **err)
{
    struct change change = {.id = id, .revision = revision, .epoch = epoch};
    return klp_sqlite_change(op, sqlite_from(registry), remove_body, &change, err);
}

/* ---- listings: copied first, so that the caller's function runs without the lock and may call us
 * again */

struct rows {
    enum klp_sql which;
    struct klp_buf bytes; /* rows: u64 beat, u32 size, text */
};

static kelpie_outcome rows_body(struct klp_sqlite *sqlite, void *arg, struct kelpie_error **err)
{
    struct rows *rows = arg;
    KLP_AUTO(sql) sqlite3_stmt *statement = sqlite->statements[rows->which];
    klp_buf_clear(&rows->bytes);
    for (;;) {
        bool found = false;
        struct klp_bytes text = {0};
        KLP_TRY(step_row(sqlite, statement, &found, err));
        if (!found)
            break;
        KLP_TRY(column_text(statement, &text, err));
        klp_buf_append_u64(&rows->bytes, (uint64_t)sqlite3_column_int64(statement, 1));
        klp_buf_append_u32(&rows->bytes, (uint32_t)text.size);
        klp_buf_append(&rows->bytes, text.data, text.size);
    }
    KLP_REQUIRE(klp_buf_check(&rows->bytes, "the listing", err));
    return KLP_OK;
}

static bool row_next(struct klp_reader *reader, struct klp_bytes *out_text, uint64_t *out_beat)
{
    if (klp_read_left(reader) == 0)
        return false;
    *out_beat = klp_read_u64(reader);
    out_text->size = klp_read_u32(reader);
    out_text->data = klp_read_bytes(reader, out_text->size);
    return out_text->data != NULL;
}

static kelpie_outcome sqlite_list(const struct kelpie_op *op, struct klp_registry *registry,
                                  bool (*each)(void *, struct klp_bytes text, uint64_t beat),
                                  void *arg, struct kelpie_error **err)
{
    struct rows rows = {KLP_SQL_LIST, KLP_BUF_INIT(LIST_BYTES_MAX)};
    kelpie_outcome outcome = klp_sqlite_read(op, sqlite_from(registry), rows_body, &rows, err);
    struct klp_reader reader = {.data = rows.bytes.data, .size = rows.bytes.size};
    struct klp_bytes text;
    uint64_t beat;
    while (kelpie_is_ok(outcome) && row_next(&reader, &text, &beat)) {
        if (!each(arg, text, beat))
            break;
    }
    klp_buf_finish(&rows.bytes);
    return outcome;
}

/* ---- watch */

struct watch {
    const char *id;
    uint64_t revision;
    bool changed;
};

static kelpie_outcome watch_body(struct klp_sqlite *sqlite, void *arg, struct kelpie_error **err)
{
    struct watch *watch = arg;
    KLP_AUTO(sql) sqlite3_stmt *statement = sqlite->statements[KLP_SQL_WHO];
    bool found = false;
    bind_text(statement, 1, watch->id);
    KLP_TRY(step_row(sqlite, statement, &found, err));
    watch->changed = !found || (uint64_t)sqlite3_column_int64(statement, 2) > watch->revision;
    return KLP_OK;
}

/* One look costs some microseconds and no write; PRAGMA data_version would cost as much and not see
 * the changes that this connection makes itself. */
static kelpie_outcome sqlite_watch(const struct kelpie_op *op, struct klp_registry *registry,
                                   const char *id, uint64_t revision, struct kelpie_error **err)
{
    struct watch watch = {id, revision, false};
    uint64_t pause_ms = 1;
    for (;;) {
        KLP_TRY(klp_sqlite_read(op, sqlite_from(registry), watch_body, &watch, err));
        if (watch.changed)
            return KLP_OK;
        KLP_TRY(klp_sleep_until(op, klp_boot_ns(op->env) + pause_ms * KLP_MS, err));
        pause_ms = pause_ms * 2 < WATCH_PAUSE_MAX_MS ? pause_ms * 2 : WATCH_PAUSE_MAX_MS;
    }
}

/* ---- nodes */

struct node_change {
    const char *name;
    struct klp_bytes text;
};

static kelpie_outcome node_put_body(struct klp_sqlite *sqlite, void *arg, struct kelpie_error **err)
{
    const struct node_change *change = arg;
    KLP_AUTO(sql) sqlite3_stmt *statement = sqlite->statements[KLP_SQL_NODE_PUT];
    int changed = 0;
    bind_text(statement, 1, change->name);
    bind_bytes(statement, 2, change->text);
    return step_change(sqlite, statement, &changed, err);
}

static kelpie_outcome sqlite_node_put(const struct kelpie_op *op, struct klp_registry *registry,
                                      const char *name, struct klp_bytes text,
                                      struct kelpie_error **err)
{
    struct node_change change = {name, text};
    return klp_sqlite_change(op, sqlite_from(registry), node_put_body, &change, err);
}

static kelpie_outcome sqlite_node_get(const struct kelpie_op *op, struct klp_registry *registry,
                                      const char *name, struct klp_buf *out,
                                      struct kelpie_error **err)
{
    struct get get = {KLP_SQL_NODE_GET, name, out, 0};
    return klp_sqlite_read(op, sqlite_from(registry), get_body, &get, err);
}

static kelpie_outcome sqlite_node_list(const struct kelpie_op *op, struct klp_registry *registry,
                                       bool (*each)(void *, struct klp_bytes text), void *arg,
                                       struct kelpie_error **err)
{
    struct rows rows = {KLP_SQL_NODE_LIST, KLP_BUF_INIT(LIST_BYTES_MAX)};
    kelpie_outcome outcome = klp_sqlite_read(op, sqlite_from(registry), rows_body, &rows, err);
    struct klp_reader reader = {.data = rows.bytes.data, .size = rows.bytes.size};
    struct klp_bytes text;
    uint64_t beat;
    while (kelpie_is_ok(outcome) && row_next(&reader, &text, &beat)) {
        if (!each(arg, text))
            break;
    }
    klp_buf_finish(&rows.bytes);
    return outcome;
}

/* Absent is fine. */
static kelpie_outcome node_remove_body(struct klp_sqlite *sqlite, void *arg,
                                       struct kelpie_error **err)
{
    const struct node_change *change = arg;
    KLP_AUTO(sql) sqlite3_stmt *statement = sqlite->statements[KLP_SQL_NODE_REMOVE];
    int changed = 0;
    bind_text(statement, 1, change->name);
    return step_change(sqlite, statement, &changed, err);
}

static kelpie_outcome sqlite_node_remove(const struct kelpie_op *op, struct klp_registry *registry,
                                         const char *name, struct kelpie_error **err)
{
    struct node_change change = {name, {NULL, 0}};
    return klp_sqlite_change(op, sqlite_from(registry), node_remove_body, &change, err);
}

/* ---- the registry */

static void sqlite_destroy(struct klp_registry *registry)
{
    struct klp_sqlite *sqlite = sqlite_from(registry);
    klp_sqlite_finish(sqlite);
    klp_mutex_destroy(sqlite->mutex);
    klp_mem_free(sqlite->path);
    klp_mem_free(sqlite);
}

bool klp_registry_sqlite_create(struct klp_env *env, const char *path, struct klp_registry **out,
                                struct kelpie_error **err)
{
    static const struct klp_registry_ops ops = {
        .name = sqlite_name,
        .create = sqlite_create,
        .get = sqlite_get,
        .cas = sqlite_cas,
        .renew = sqlite_renew,
        .remove = sqlite_remove,
        .list = sqlite_list,
        .watch = sqlite_watch,
        .node_put = sqlite_node_put,
        .node_get = sqlite_node_get,
        .node_list = sqlite_node_list,
        .node_remove = sqlite_node_remove,
        .destroy = sqlite_destroy,
    };
    if (path[0] == '\0' || strlen(path) > KLP_PATH_MAX)
        return klp_refuse(err, KELPIE_E_INVALID,
                          "cannot open a registry: its path is empty or over %d bytes",
                          KLP_PATH_MAX);
    struct klp_sqlite *sqlite = KLP_NEW(struct klp_sqlite);
    sqlite->base = (struct klp_registry){&ops, env};
    sqlite->path = klp_mem_string(path);
    sqlite->mutex = klp_mutex_create(env);
    if (!klp_sqlite_open(sqlite, err)) {
        sqlite_destroy(&sqlite->base);
        return false;
    }
    *out = &sqlite->base;
    return true;
}
