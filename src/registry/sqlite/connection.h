/* SPDX-License-Identifier: Apache-2.0 */
/* One connection to the registry's file, as sqlite.c uses it: cached statements, and the two ways
 * to run them, reading or changing, each again and again while others hold the lock, until the op
 * ends. */
#ifndef KLP_REGISTRY_SQLITE_CONNECTION_H
#define KLP_REGISTRY_SQLITE_CONNECTION_H

#include <sqlite3.h>

#include "registry/registry.h"

/* X(NAME, SQL): prepared once a connection. */
#define KLP_SQL_MAP(X)                                                                             \
    X(BEGIN, "BEGIN IMMEDIATE")                                                                    \
    X(COMMIT, "COMMIT")                                                                            \
    X(ROLLBACK, "ROLLBACK")                                                                        \
    X(SETTLE, "UPDATE settled SET count = count + 1")                                              \
    X(CREATE, "INSERT INTO agents (id, name, owner, epoch, revision, beat, text)"                  \
              " VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")                                              \
    X(GET, "SELECT text, beat FROM agents WHERE id = ?1")                                          \
    X(FIND, "SELECT text, beat FROM agents WHERE name = ?1")                                       \
    X(CAS, "UPDATE agents SET name = ?4, owner = ?5, epoch = ?6, revision = ?7, text = ?8"         \
           " WHERE id = ?1 AND revision = ?2 AND epoch = ?3")                                      \
    X(RENEW, "UPDATE agents SET beat = beat + 1 WHERE id = ?1 AND owner = ?2 AND epoch = ?3")      \
    X(DELETE, "DELETE FROM agents WHERE id = ?1 AND revision = ?2 AND epoch = ?3")                 \
    X(WHO, "SELECT owner, epoch, revision FROM agents WHERE id = ?1")                              \
    X(LIST, "SELECT text, beat FROM agents ORDER BY name")                                         \
    X(NODE_PUT, "INSERT INTO nodes (name, text) VALUES (?1, ?2)"                                   \
                " ON CONFLICT (name) DO UPDATE SET text = excluded.text")                          \
    X(NODE_GET, "SELECT text, 0 FROM nodes WHERE name = ?1")                                       \
    X(NODE_LIST, "SELECT text, 0 FROM nodes ORDER BY name")                                        \
    X(NODE_REMOVE, "DELETE FROM nodes WHERE name = ?1")

enum klp_sql {
#define KLP_SQL_ENUM(name, sql) KLP_SQL_##name,
    KLP_SQL_MAP(KLP_SQL_ENUM)
#undef KLP_SQL_ENUM
        KLP_SQL_COUNT
};

struct klp_sqlite {
    struct klp_registry base;
    char *path;
    struct klp_mutex *mutex; /* guards all below */
    sqlite3 *db;
    sqlite3_stmt *statements[KLP_SQL_COUNT];
    /* A COMMIT failed and its frames may lie whole in the log: a crash could bring them back.
     * Nothing is read or changed before they are surely gone. */
    bool doubt;
};

/* Opens or makes file and schema; finish also after a failure. */
KELPIE_MUST_USE bool klp_sqlite_open(struct klp_sqlite *sqlite, struct kelpie_error **err);
void klp_sqlite_finish(struct klp_sqlite *sqlite);

/* Works on the locked connection; may be called several times, so it only ever sets what it
 * answers. Code BUSY means: again later. */
typedef kelpie_outcome klp_sqlite_body(struct klp_sqlite *sqlite, void *arg,
                                       struct kelpie_error **err);
/* FAIL(TIMEOUT, CANCELLED): nothing was read, nothing changed. */
KELPIE_MUST_USE kelpie_outcome klp_sqlite_read(const struct kelpie_op *op,
                                               struct klp_sqlite *sqlite, klp_sqlite_body *body,
                                               void *arg, struct kelpie_error **err);
/* In a transaction, undone when the body fails. UNKNOWN: its COMMIT failed in a way that may turn
 * out as done. */
KELPIE_MUST_USE kelpie_outcome klp_sqlite_change(const struct kelpie_op *op,
                                                 struct klp_sqlite *sqlite, klp_sqlite_body *body,
                                                 void *arg, struct kelpie_error **err);

/* FAIL with the code that belongs to a result code of SQLite. */
KELPIE_MUST_USE kelpie_outcome klp_sqlite_fail(struct klp_sqlite *sqlite, int rc,
                                               struct kelpie_error **err);

/* A cached statement, given back (reset, unbound) by the scope. */
static inline void klp_auto_sql(sqlite3_stmt **statement)
{
    (void)sqlite3_reset(*statement); /* repeats the error of the last step */
    (void)sqlite3_clear_bindings(*statement);
}

#endif
