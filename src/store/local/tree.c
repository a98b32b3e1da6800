/* SPDX-License-Identifier: Apache-2.0 */
/* The folder of a local store: its marker, its sub-folders, whether it is still there, and its
 * syncs. What lies in the sub-folders is left to local.c (objects) and ref.c (refs).
 *
 * The marker `kelpie-store` holds "kelpie-store VERSION ID". It tells a store from an empty mount
 * point, an older release from a newer store, and, by the id, this store from another one that was
 * put in its place. */
#include "store/local/tree.h"

#include <string.h>

#include "base/fmt.h"
#include "base/limits.h"

#define MARKER_NAME "kelpie-store"
#define MARKER_VERSION 1u
#define MARKER_SIZE_MAX 128u /* bytes */
#define ANCESTORS_MAX 16     /* folders above the store whose entries are made durable */

/* ---- syncs */

static bool sync_counted(struct klp_store_local *store, bool worked, bool is_dir)
{
    unsigned failed = 0;
    KLP_LOCKED (store->mutex) {
        store->syncs_failed = failed = worked ? 0 : store->syncs_failed + 1;
        if (!worked && is_dir)
            store->dir_suspect = true;
    }
    if (!worked)
        klp_log(store->base.env, KLP_LOG_ERROR, "store.sync-failed", "store=%s failed_in_a_row=%u",
                store->path, failed);
    return worked;
}

bool klp_local_file_sync(struct klp_store_local *store, struct klp_file *file,
                         struct kelpie_error **err)
{
    return sync_counted(store, klp_file_sync(file, err), false);
}

bool klp_local_dir_sync(struct klp_store_local *store, struct klp_dir *dir,
                        struct kelpie_error **err)
{
    return sync_counted(store, klp_dir_sync(dir, err), true);
}

bool klp_local_writable(struct klp_store_local *store, struct kelpie_error **err)
{
    unsigned failed = 0;
    KLP_LOCKED (store->mutex) {
        failed = store->syncs_failed;
    }
    if (failed < KLP_LOCAL_SYNCS_FAILED_MAX)
        return true;
    return klp_refuse(err, KELPIE_E_IO,
                      "cannot write to store '%s': %u syncs failed in a row, it is read-only until "
                      "the daemon starts again",
                      store->path, failed);
}

bool klp_local_dir_is_suspect(struct klp_store_local *store)
{
    bool suspect = false;
    KLP_LOCKED (store->mutex) {
        suspect = store->dir_suspect;
    }
    return suspect;
}

/* ---- the marker */

static bool marker_damaged(const struct klp_store_local *store, struct kelpie_error **err)
{
    return klp_refuse(err, KELPIE_E_CORRUPT,
                      "cannot use store '%s': its file " MARKER_NAME " is damaged", store->path);
}

static bool marker_parse(const struct klp_store_local *store, const struct klp_buf *text,
                         char out_id[KLP_ID_SIZE], struct kelpie_error **err)
{
    const char head[] = MARKER_NAME " ";
    const size_t head_size = sizeof(head) - 1;
    const char *at = klp_buf_text(text);
    if (text->size <= head_size || memcmp(at, head, head_size) != 0)
        return marker_damaged(store, err);
    at += head_size;
    size_t digits = 0;
    while (at[digits] >= '0' && at[digits] <= '9')
        digits++;
    uint64_t version = 0;
    if (!klp_parse_u64(at, digits, &version) || version == 0)
        return marker_damaged(store, err);
    if (version > MARKER_VERSION)
        return klp_refuse(err, KELPIE_E_UNSUPPORTED,
                          "cannot use store '%s': it has version %llu, this release knows %u",
                          store->path, (unsigned long long)version, MARKER_VERSION);
    at += digits;
    size_t left = text->size - head_size - digits;
    if (left != 1 + (KLP_ID_SIZE - 1) + 1 || at[0] != ' ' || at[left - 1] != '\n')
        return marker_damaged(store, err);
    memcpy(out_id, at + 1, KLP_ID_SIZE - 1);
    out_id[KLP_ID_SIZE - 1] = '\0';
    return klp_id_is_valid(out_id) || marker_damaged(store, err);
}

/* NOT_FOUND when there is none. */
static bool marker_read(const struct klp_store_local *store, struct klp_dir *root,
                        char out_id[KLP_ID_SIZE], struct kelpie_error **err)
{
    KLP_AUTO(buf) struct klp_buf text = KLP_BUF_INIT(MARKER_SIZE_MAX);
    struct kelpie_error *why = NULL;
    if (klp_file_read_all(root, MARKER_NAME, &text, &why))
        return marker_parse(store, &text, out_id, err);
    if (klp_error_code(&why) == KELPIE_E_LIMIT) {
        klp_error_clear(&why);
        return marker_damaged(store, err);
    }
    klp_error_move(err, &why);
    return false;
}

/* Create-only, so that two daemons that start at once agree on the id. */
static bool marker_create(struct klp_store_local *store, struct klp_dir *root,
                          struct kelpie_error **err)
{
    KLP_AUTO(file) struct klp_file *file = NULL;
    char id[KLP_ID_SIZE], text[MARKER_SIZE_MAX];
    klp_random_id(store->base.env, id);
    size_t size = klp_format(text, sizeof(text), MARKER_NAME " %u %s\n", MARKER_VERSION, id);
    KLP_CHECK(klp_file_create_unnamed(root, &file, err));
    KLP_CHECK(klp_file_pwrite(file, 0, text, size, err));
    KLP_CHECK(klp_local_file_sync(store, file, err));
    struct kelpie_error *why = NULL;
    if (klp_file_link(file, root, MARKER_NAME, &why))
        return true;
    if (klp_error_code(&why) == KELPIE_E_EXISTS) {
        klp_error_clear(&why);
        return true;
    }
    klp_error_move(err, &why);
    return false;
}

/* ---- opening */

/* A new folder's own name lies in the folder above it, and so on upwards: what was made is made
 * durable. Where we may not open a folder, we made nothing in it. */
static bool ancestors_sync(struct klp_store_local *store, struct kelpie_error **err)
{
    KLP_AUTO(memory) char *path = klp_mem_string(store->path);
    size_t size = strlen(path);
    for (unsigned level = 0; level < ANCESTORS_MAX && size > 0; level++) {
        while (size > 1 && path[size - 1] == '/')
            size--;
        while (size > 0 && path[size - 1] != '/')
            size--;
        while (size > 1 && path[size - 1] == '/')
            size--;
        path[size] = '\0';
        KLP_AUTO(dir) struct klp_dir *dir = NULL;
        struct kelpie_error *why = NULL;
        if (!klp_dir_open(store->base.env, size > 0 ? path : ".", false, &dir, &why)) {
            klp_error_clear(&why);
            return true;
        }
        KLP_CHECK(klp_local_dir_sync(store, dir, err));
        if (size == 1 && path[0] == '/')
            return true;
    }
    return true;
}

static bool subfolders_open(struct klp_local_tree *tree, struct kelpie_error **err)
{
    for (int kind = 0; kind < KLP_OBJECT_KIND_COUNT; kind++)
        KLP_CHECK(klp_dir_open_at(tree->root, klp_object_kind_name((enum klp_object_kind)kind),
                                  true, &tree->kinds[kind], err));
    return klp_dir_open_at(tree->root, "refs", true, &tree->refs, err);
}

static bool tree_fill(struct klp_store_local *store, struct klp_local_tree *tree, bool create,
                      struct kelpie_error **err)
{
    struct kelpie_error *why = NULL;
    bool marked = marker_read(store, tree->root, tree->id, &why);
    bool missing = klp_error_code(&why) == KELPIE_E_NOT_FOUND;
    if (!marked && !missing) {
        klp_error_move(err, &why);
        return false;
    }
    klp_error_clear(&why);
    if (missing && !create)
        return klp_refuse(err, KELPIE_E_UNREACHABLE,
                          "cannot use store '%s': the folder holds no store (no file " MARKER_NAME
                          "): is its disk mounted?",
                          store->path);
    KLP_CHECK(subfolders_open(tree, err));
    if (marked)
        return klp_local_dir_sync(store, tree->root, err);
    KLP_CHECK(marker_create(store, tree->root, err));
    KLP_CHECK(klp_local_dir_sync(store, tree->root, err));
    KLP_CHECK(ancestors_sync(store, err));
    return marker_read(store, tree->root, tree->id, err);
}

static bool root_open(const struct klp_store_local *store, bool create, struct klp_dir **out,
                      struct kelpie_error **err)
{
    struct kelpie_error *why = NULL;
    if (klp_dir_open(store->base.env, store->path, create, out, &why))
        return true;
    if (klp_error_code(&why) != KELPIE_E_NOT_FOUND) {
        klp_error_move(err, &why);
        return klp_wrap_refusal(err, "cannot open store '%s'", store->path);
    }
    klp_error_clear(&why);
    return klp_refuse(err, KELPIE_E_UNREACHABLE, "cannot open store '%s': the folder is gone",
                      store->path);
}

static bool tree_open(struct klp_store_local *store, bool create, struct klp_dir *root,
                      struct klp_local_tree **out, struct kelpie_error **err)
{
    struct klp_local_tree *tree = KLP_NEW(struct klp_local_tree);
    tree->env = store->base.env;
    tree->uses = 1;
    tree->root = root;
    if (!tree_fill(store, tree, create, err)) {
        klp_local_tree_close(tree);
        return klp_wrap_refusal(err, "cannot open store '%s'", store->path);
    }
    *out = tree;
    return true;
}

bool klp_local_tree_open(struct klp_store_local *store, bool create, struct klp_local_tree **out,
                         struct kelpie_error **err)
{
    struct klp_dir *root = NULL;
    KLP_CHECK(root_open(store, create, &root, err));
    return tree_open(store, create, root, out, err);
}

void klp_local_tree_close(struct klp_local_tree *tree)
{
    if (tree == NULL)
        return;
    for (int kind = 0; kind < KLP_OBJECT_KIND_COUNT; kind++) {
        if (tree->kinds[kind] != NULL)
            klp_dir_close(tree->kinds[kind]);
    }
    if (tree->refs != NULL)
        klp_dir_close(tree->refs);
    klp_dir_close(tree->root);
    for (size_t i = 0; i < tree->class_count; i++)
        klp_mem_free(tree->classes_durable[i]);
    klp_mem_free(tree);
}

/* ---- uses */

static void tree_drop(struct klp_store_local *store, struct klp_local_tree *tree)
{
    bool last = false;
    KLP_LOCKED (store->mutex) {
        last = --tree->uses == 0;
    }
    if (last)
        klp_local_tree_close(tree);
}

void klp_local_use_begin(struct klp_store_local *store, struct klp_local_use *out)
{
    out->store = store;
    KLP_LOCKED (store->mutex) {
        out->tree = store->tree;
        out->tree->uses++;
    }
}

void klp_local_use_end(struct klp_local_use *use)
{
    if (use->tree != NULL)
        tree_drop(use->store, use->tree);
    use->tree = NULL;
}

/* Is the folder at the path the one that `tree` holds open? If so *root is closed, else it is kept.
 */
static bool is_same(const struct klp_store_local *store, const struct klp_local_tree *tree,
                    struct klp_dir *root)
{
    char id[KLP_ID_SIZE];
    struct kelpie_error *why = NULL;
    bool same = marker_read(store, root, id, &why) && strcmp(id, tree->id) == 0;
    klp_error_clear(&why);
    return same;
}

bool klp_local_use_current(struct klp_store_local *store, struct klp_local_use *out,
                           struct kelpie_error **err)
{
    struct klp_local_use use = {0};
    klp_local_use_begin(store, &use);
    struct klp_dir *root = NULL;
    if (!root_open(store, false, &root, err)) {
        klp_local_use_end(&use);
        return false;
    }
    if (is_same(store, use.tree, root)) {
        klp_dir_close(root);
        *out = use;
        return true;
    }
    klp_local_use_end(&use);
    struct klp_local_tree *tree = NULL, *old = NULL;
    KLP_CHECK(tree_open(store, false, root, &tree, err));
    KLP_LOCKED (store->mutex) {
        old = store->tree;
        store->tree = tree;
        tree->uses++; /* the store's own, and the caller's */
    }
    tree_drop(store, old);
    *out = (struct klp_local_use){store, tree};
    return true;
}

/* ---- sub-folders */

bool klp_local_fanout_open(struct klp_local_tree *tree, enum klp_object_kind kind, uint8_t first,
                           struct klp_dir **out, struct kelpie_error **err)
{
    char name[KLP_LOCAL_FANOUT_SIZE];
    klp_hex_encode(&first, 1, name);
    return klp_dir_open_at(tree->kinds[kind], name, false, out, err);
}

bool klp_local_fanout_create(struct klp_local_use *use, enum klp_object_kind kind, uint8_t first,
                             struct klp_dir **out, struct kelpie_error **err)
{
    KLP_AUTO(dir) struct klp_dir *dir = NULL;
    char name[KLP_LOCAL_FANOUT_SIZE];
    uint8_t *known = &use->tree->fanouts_durable[kind][first / 8];
    const uint8_t bit = (uint8_t)(1u << (first % 8));
    bool durable = false;
    klp_hex_encode(&first, 1, name);
    KLP_CHECK(klp_dir_open_at(use->tree->kinds[kind], name, true, &dir, err));
    KLP_LOCKED (use->store->mutex) {
        durable = (*known & bit) != 0;
    }
    if (!durable) {
        KLP_CHECK(klp_local_dir_sync(use->store, use->tree->kinds[kind], err));
        KLP_LOCKED (use->store->mutex) {
            *known |= bit;
        }
    }
    *out = KLP_TAKE(&dir);
    return true;
}

static bool class_is_durable(struct klp_local_use *use, const char *name)
{
    bool found = false;
    KLP_LOCKED (use->store->mutex) {
        for (size_t i = 0; i < use->tree->class_count && !found; i++)
            found = strcmp(use->tree->classes_durable[i], name) == 0;
    }
    return found;
}

bool klp_local_class_create(struct klp_local_use *use, const char *name, struct klp_dir **out,
                            struct kelpie_error **err)
{
    KLP_AUTO(dir) struct klp_dir *dir = NULL;
    KLP_CHECK(klp_dir_open_at(use->tree->refs, name, true, &dir, err));
    if (!class_is_durable(use, name)) {
        KLP_CHECK(klp_local_dir_sync(use->store, use->tree->refs, err));
        KLP_LOCKED (use->store->mutex) {
            if (use->tree->class_count < KLP_LOCAL_CLASSES_KNOWN_MAX)
                use->tree->classes_durable[use->tree->class_count++] = klp_mem_string(name);
        }
    }
    *out = KLP_TAKE(&dir);
    return true;
}
