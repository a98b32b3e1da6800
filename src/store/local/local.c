/* SPDX-License-Identifier: Apache-2.0 */
/* The objects of a local store, and the store itself. An object is written to an unnamed file,
 * synced, linked as KIND/aa/HEX, and its folder synced: a crash leaves the whole object or nothing.
 * Refs: ref.c; the folder itself, its marker and its syncs: tree.c. */
#include "store/local/local.h"

#include <string.h>

#include "base/fmt.h"
#include "base/limits.h"
#include "store/local/tree.h"

#define LINK_TRIES_MAX 4 /* an object that others link and delete at the same time */
#define SPARE_NAME_SIZE (KLP_DIGEST_SIZE + KLP_ID_SIZE + 1)

struct writer {
    struct klp_store_writer base;
    struct klp_local_use use;
    struct klp_file *file;
};

struct reader {
    struct klp_store_reader base;
    struct klp_file *file;
};

static const char *local_name(const struct klp_store *base)
{
    return KLP_CONTAINER(base, const struct klp_store_local, base)->path;
}

/* ---- writing */

static void local_writer_free(struct klp_store_writer *base)
{
    struct writer *writer = KLP_CONTAINER(base, struct writer, base);
    if (writer->file != NULL)
        klp_file_close(writer->file);
    klp_local_use_end(&writer->use);
    klp_mem_free(writer);
}

static kelpie_outcome local_begin(const struct kelpie_op *op, struct klp_store *base,
                                  enum klp_object_kind kind, struct klp_store_writer **out,
                                  struct kelpie_error **err)
{
    (void)op;
    struct klp_store_local *store = klp_store_local_from(base);
    KLP_AUTO(local_use) struct klp_local_use use = {0};
    KLP_REQUIRE(klp_local_writable(store, err));
    KLP_REQUIRE(klp_local_use_current(store, &use, err));
    struct klp_file *file = NULL;
    KLP_REQUIRE(klp_file_create_unnamed(use.tree->kinds[kind], &file, err));
    struct writer *writer = KLP_NEW(struct writer);
    writer->file = file;
    writer->use = use;
    use.tree = NULL;
    *out = &writer->base;
    return KLP_OK;
}

static kelpie_outcome local_write(const struct kelpie_op *op, struct klp_store_writer *base,
                                  const void *data, size_t size, struct kelpie_error **err)
{
    (void)op;
    struct writer *writer = KLP_CONTAINER(base, struct writer, base);
    KLP_REQUIRE(klp_file_pwrite(writer->file, base->size, data, size, err));
    return KLP_OK;
}

/* Is the object there, and as long as it must be? A shorter or longer one is CORRUPT. */
static bool object_find(struct klp_dir *dir, const char *hex, uint64_t size, bool *out_there,
                        struct kelpie_error **err)
{
    KLP_AUTO(file) struct klp_file *file = NULL;
    struct kelpie_error *why = NULL;
    uint64_t found = 0;
    *out_there = false;
    if (!klp_file_open(dir, hex, &file, &why)) {
        if (klp_error_code(&why) == KELPIE_E_NOT_FOUND) {
            klp_error_clear(&why);
            return true;
        }
        klp_error_move(err, &why);
        return false;
    }
    KLP_CHECK(klp_file_size(file, &found, err));
    if (found != size)
        return klp_refuse(err, KELPIE_E_CORRUPT,
                          "the object is there already, but with %llu bytes instead of %llu",
                          (unsigned long long)found, (unsigned long long)size);
    *out_there = true;
    return true;
}

/* Links the synced file, or finds the object there. */
static bool object_link(struct writer *writer, struct klp_dir *dir, const char *hex,
                        bool *out_there, struct kelpie_error **err)
{
    for (unsigned tries = 0; tries < LINK_TRIES_MAX; tries++) {
        struct kelpie_error *why = NULL;
        *out_there = false;
        if (klp_file_link(writer->file, dir, hex, &why))
            return true;
        if (klp_error_code(&why) != KELPIE_E_EXISTS) {
            klp_error_move(err, &why);
            return false;
        }
        klp_error_clear(&why);
        KLP_CHECK(object_find(dir, hex, writer->base.size, out_there, err));
        if (*out_there)
            return true;
    }
    return klp_refuse(err, KELPIE_E_BUSY, "the object is created and deleted over and over");
}

/* After a directory's sync has failed, one that works proves nothing about names linked before: the
 * object is put in place anew by a rename, which the next sync of the directory must carry. */
static bool object_replace(struct writer *writer, struct klp_dir *dir, const char *hex,
                           struct kelpie_error **err)
{
    char spare[SPARE_NAME_SIZE], id[KLP_ID_SIZE];
    klp_random_id(writer->base.store->env, id);
    klp_format(spare, sizeof(spare), "%s+%s", hex, id);
    KLP_CHECK(klp_local_file_sync(writer->use.store, writer->file, err));
    KLP_CHECK(klp_file_link(writer->file, dir, spare, err));
    if (klp_dir_rename(dir, spare, hex, err))
        return true;
    struct kelpie_error *why = NULL;
    if (!klp_dir_remove(dir, spare, &why))
        klp_error_clear(&why);
    return false;
}

static bool object_name(struct writer *writer, struct klp_dir *dir, const char *hex,
                        bool *out_existed, struct kelpie_error **err)
{
    struct klp_store_local *store = writer->use.store;
    struct klp_env *env = writer->base.store->env;
    KLP_CHECK(object_find(dir, hex, writer->base.size, out_existed, err));
    klp_point(env, "store.object-written");
    if (*out_existed && klp_local_dir_is_suspect(store)) {
        KLP_CHECK(object_replace(writer, dir, hex, err));
    } else if (!*out_existed) {
        KLP_CHECK(klp_local_file_sync(store, writer->file, err));
        klp_point(env, "store.object-synced");
        KLP_CHECK(object_link(writer, dir, hex, out_existed, err));
    }
    klp_point(env, "store.object-named");
    /* Needed for an object that existed, too: whoever linked it may not have come to its own sync.
     * When this fails the object keeps its name: it is whole, and another writer may rely on it by
     * now. */
    return klp_local_dir_sync(store, dir, err);
}

/* NOT_FOUND in the middle of writing: the folder was taken away under us. */
static bool folder_gone(struct klp_store_local *store, struct kelpie_error **why,
                        struct kelpie_error **err)
{
    if (klp_error_code(why) != KELPIE_E_NOT_FOUND) {
        klp_error_move(err, why);
        return false;
    }
    klp_error_clear(why);
    return klp_refuse(err, KELPIE_E_UNREACHABLE,
                      "the folder of store '%s' was removed while it was written to", store->path);
}

static kelpie_outcome local_commit(const struct kelpie_op *op, struct klp_store_writer *base,
                                   const struct klp_digest *digest, bool *existed,
                                   struct kelpie_error **err)
{
    (void)op;
    struct writer *writer = KLP_CONTAINER(base, struct writer, base);
    KLP_AUTO(dir) struct klp_dir *dir = NULL;
    struct kelpie_error *why = NULL;
    char hex[KLP_DIGEST_SIZE];
    klp_digest_text(digest, hex);
    KLP_REQUIRE(klp_local_writable(writer->use.store, err));
    if (!klp_local_fanout_create(&writer->use, base->kind, digest->bytes[0], &dir, &why) ||
        !object_name(writer, dir, hex, existed, &why))
        KLP_REQUIRE(folder_gone(writer->use.store, &why, err));
    return KLP_OK;
}

/* ---- reading */

static void local_reader_free(struct klp_store_reader *base)
{
    struct reader *reader = KLP_CONTAINER(base, struct reader, base);
    klp_file_close(reader->file);
    klp_mem_free(reader);
}

static bool object_open(struct klp_local_tree *tree, enum klp_object_kind kind,
                        const struct klp_digest *digest, struct klp_file **out,
                        struct kelpie_error **err)
{
    KLP_AUTO(dir) struct klp_dir *dir = NULL;
    char hex[KLP_DIGEST_SIZE];
    klp_digest_text(digest, hex);
    KLP_CHECK(klp_local_fanout_open(tree, kind, digest->bytes[0], &dir, err));
    return klp_file_open(dir, hex, out, err);
}

/* Not found in the tree that was opened last: then it counts what is at the path now, so that an
 * object of a folder that went missing is UNREACHABLE, never NOT_FOUND. */
static bool object_open_current(struct klp_store_local *store, enum klp_object_kind kind,
                                const struct klp_digest *digest, struct klp_file **out,
                                struct kelpie_error **err)
{
    KLP_AUTO(local_use) struct klp_local_use use = {0}, current = {0};
    struct kelpie_error *why = NULL;
    klp_local_use_begin(store, &use);
    if (object_open(use.tree, kind, digest, out, &why))
        return true;
    if (klp_error_code(&why) != KELPIE_E_NOT_FOUND) {
        klp_error_move(err, &why);
        return false;
    }
    klp_error_clear(&why);
    KLP_CHECK(klp_local_use_current(store, &current, err));
    if (object_open(current.tree, kind, digest, out, &why))
        return true;
    if (klp_error_code(&why) != KELPIE_E_NOT_FOUND) {
        klp_error_move(err, &why);
        return false;
    }
    klp_error_clear(&why);
    return klp_refuse(err, KELPIE_E_NOT_FOUND, "there is no such object");
}

static kelpie_outcome local_open(const struct kelpie_op *op, struct klp_store *base,
                                 enum klp_object_kind kind, const struct klp_digest *digest,
                                 struct klp_store_reader **out, struct kelpie_error **err)
{
    (void)op;
    KLP_AUTO(file) struct klp_file *file = NULL;
    uint64_t size = 0;
    KLP_REQUIRE(object_open_current(klp_store_local_from(base), kind, digest, &file, err));
    KLP_REQUIRE(klp_file_size(file, &size, err));
    struct reader *reader = KLP_NEW(struct reader);
    reader->base.size = size;
    reader->file = KLP_TAKE(&file);
    *out = &reader->base;
    return KLP_OK;
}

static kelpie_outcome local_read(const struct kelpie_op *op, struct klp_store_reader *base,
                                 uint64_t offset, void *out, size_t size, struct kelpie_error **err)
{
    (void)op;
    struct reader *reader = KLP_CONTAINER(base, struct reader, base);
    size_t got = 0;
    KLP_REQUIRE(klp_file_pread(reader->file, offset, out, size, &got, err));
    if (got != size)
        return klp_fail(err, KELPIE_E_CORRUPT, "only %zu bytes are left: it was cut", got);
    return KLP_OK;
}

static kelpie_outcome local_path(const struct kelpie_op *op, struct klp_store *base,
                                 enum klp_object_kind kind, const struct klp_digest *digest,
                                 char **out, struct kelpie_error **err)
{
    (void)op;
    struct klp_store_local *store = klp_store_local_from(base);
    KLP_AUTO(file) struct klp_file *file = NULL;
    KLP_AUTO(local_use) struct klp_local_use use = {0};
    char hex[KLP_DIGEST_SIZE];
    klp_digest_text(digest, hex);
    KLP_REQUIRE(object_open_current(store, kind, digest, &file, err));
    klp_local_use_begin(store, &use);
    const char *root = klp_dir_path(use.tree->root);
    if (root[0] != '/')
        return klp_fail(err, KELPIE_E_UNSUPPORTED, "'%s' names other files to other programs",
                        root);
    *out = klp_text("%s/%s/%.*s/%s", root, klp_object_kind_name(kind), 2, hex, hex);
    return KLP_OK;
}

/* ---- maintenance */

struct walk {
    const struct kelpie_op *op;
    struct klp_local_tree *tree;
    enum klp_object_kind kind;
    bool (*each)(void *arg, const struct klp_digest *digest, uint64_t size);
    void *arg;
    struct klp_dir *dir; /* the fan-out folder under way */
    uint8_t first;
    bool ended; /* by the callback */
    struct kelpie_error *why;
    bool failed;
};

/* An object that a collector deletes meanwhile is left out; every other trouble ends the walk. */
static bool walk_trouble(struct walk *walk)
{
    if (klp_error_code(&walk->why) == KELPIE_E_NOT_FOUND) {
        klp_error_clear(&walk->why);
        return true;
    }
    walk->failed = true;
    return false;
}

static bool visit_object(void *arg, const char *name)
{
    struct walk *walk = arg;
    KLP_AUTO(file) struct klp_file *file = NULL;
    struct klp_digest digest;
    uint64_t size = 0;
    if (!kelpie_is_ok(klp_op_check(walk->op, "listing the store", &walk->why))) {
        walk->failed = true;
        return false;
    }
    if (!klp_digest_parse(name, &digest) || digest.bytes[0] != walk->first)
        return true; /* none of ours, or the spare name of object_replace */
    if (!klp_file_open(walk->dir, name, &file, &walk->why) ||
        !klp_file_size(file, &size, &walk->why))
        return walk_trouble(walk);
    walk->ended = !walk->each(walk->arg, &digest, size);
    return !walk->ended;
}

static bool visit_fanout(void *arg, const char *name)
{
    struct walk *walk = arg;
    KLP_AUTO(dir) struct klp_dir *dir = NULL;
    if (strlen(name) != 2 || !klp_hex_decode(name, 2, &walk->first, 1))
        return true;
    if (!klp_dir_open_at(walk->tree->kinds[walk->kind], name, false, &dir, &walk->why))
        return walk_trouble(walk);
    walk->dir = dir;
    if (!klp_dir_list(dir, visit_object, walk, &walk->why))
        return walk_trouble(walk);
    return !walk->ended && !walk->failed;
}

static kelpie_outcome
local_list(const struct kelpie_op *op, struct klp_store *base, enum klp_object_kind kind,
           bool (*each)(void *arg, const struct klp_digest *digest, uint64_t size), void *arg,
           struct kelpie_error **err)
{
    KLP_AUTO(local_use) struct klp_local_use use = {0};
    KLP_REQUIRE(klp_local_use_current(klp_store_local_from(base), &use, err));
    struct walk walk = {.op = op, .tree = use.tree, .kind = kind, .each = each, .arg = arg};
    KLP_REQUIRE(klp_dir_list(use.tree->kinds[kind], visit_fanout, &walk, err));
    if (walk.failed) {
        klp_error_move(err, &walk.why);
        return klp_local_failed();
    }
    return KLP_OK;
}

/* Not synced: an object that comes back after a crash is whole, named by its hash, and garbage. */
static kelpie_outcome local_remove(const struct kelpie_op *op, struct klp_store *base,
                                   enum klp_object_kind kind, const struct klp_digest *digest,
                                   struct kelpie_error **err)
{
    (void)op;
    KLP_AUTO(local_use) struct klp_local_use use = {0};
    KLP_AUTO(dir) struct klp_dir *dir = NULL;
    struct kelpie_error *why = NULL;
    char hex[KLP_DIGEST_SIZE];
    klp_digest_text(digest, hex);
    KLP_REQUIRE(klp_local_use_current(klp_store_local_from(base), &use, err));
    if (klp_local_fanout_open(use.tree, kind, digest->bytes[0], &dir, &why) &&
        klp_dir_remove(dir, hex, &why))
        return KLP_OK;
    if (klp_error_code(&why) == KELPIE_E_NOT_FOUND) {
        klp_error_clear(&why);
        return KLP_OK;
    }
    klp_error_move(err, &why);
    return klp_local_failed();
}

/* ---- the store */

static void local_destroy(struct klp_store *base)
{
    struct klp_store_local *store = klp_store_local_from(base);
    KLP_ASSERT(store->tree == NULL ||
               store->tree->uses == 1); /* else a writer outlived its store */
    klp_local_tree_close(store->tree);
    klp_mutex_destroy(store->mutex);
    klp_mem_free(store->path);
    klp_mem_free(store);
}

bool klp_store_local_create(struct klp_env *env, const char *path, struct klp_store **out,
                            struct kelpie_error **err)
{
    static const struct klp_store_ops ops = {
        .name = local_name,
        .begin = local_begin,
        .write = local_write,
        .commit = local_commit,
        .writer_free = local_writer_free,
        .open = local_open,
        .read = local_read,
        .reader_free = local_reader_free,
        .path = local_path,
        .list = local_list,
        .remove = local_remove,
        .ref_create = klp_local_ref_create,
        .ref_get = klp_local_ref_get,
        .ref_delete = klp_local_ref_delete,
        .ref_list = klp_local_ref_list,
        .destroy = local_destroy,
    };
    if (path[0] == '\0' || strlen(path) > KLP_PATH_MAX)
        return klp_refuse(err, KELPIE_E_INVALID,
                          "cannot open a store: its path is empty or over %d "
                          "bytes",
                          KLP_PATH_MAX);
    struct klp_store_local *store = KLP_NEW(struct klp_store_local);
    store->base = (struct klp_store){&ops, env};
    store->path = klp_mem_string(path);
    store->mutex = klp_mutex_create(env);
    if (!klp_local_tree_open(store, true, &store->tree, err)) {
        local_destroy(&store->base);
        return false;
    }
    *out = &store->base;
    return true;
}
