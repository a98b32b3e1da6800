/* SPDX-License-Identifier: Apache-2.0 */
/* The folder of a local store, as its other files share it: one opened tree, and how a file in it
 * becomes durable and named. Layout: kelpie-store (the marker), KIND/aa/HEX, refs/CLASS/REST. */
#ifndef KLP_STORE_LOCAL_TREE_H
#define KLP_STORE_LOCAL_TREE_H

#include "env/file.h"
#include "store/store.h"

#define KLP_LOCAL_FANOUT_SIZE 3 /* "aa" */
#define KLP_LOCAL_CLASSES_KNOWN_MAX 16

/* One opening of the folder. Counted: it stays while a call uses it, also after the folder was
 * replaced. */
struct klp_local_tree {
    struct klp_env *env;
    unsigned uses;
    char id[KLP_ID_SIZE]; /* the marker's: drawn when the store was made */
    struct klp_dir *root;
    struct klp_dir *kinds[KLP_OBJECT_KIND_COUNT];
    struct klp_dir *refs;
    /* Sub-folders whose own names are known to be durable. */
    uint8_t fanouts_durable[KLP_OBJECT_KIND_COUNT][256 / 8];
    char *classes_durable[KLP_LOCAL_CLASSES_KNOWN_MAX];
    size_t class_count;
};

struct klp_store_local {
    struct klp_store base;
    char *path;
    struct klp_mutex *mutex; /* guards all below, and uses, *_durable of the tree */
    struct klp_local_tree *tree;
    unsigned syncs_failed; /* in a row */
    bool dir_suspect;      /* a directory's sync failed: a later one that works proves nothing */
};

/* A use of a tree, ended by the scope. */
struct klp_local_use {
    struct klp_store_local *store;
    struct klp_local_tree *tree;
};
void klp_local_use_end(struct klp_local_use *use);
static inline void klp_auto_local_use(struct klp_local_use *use)
{
    klp_local_use_end(use);
}

/* Opens the folder at store->path as a tree with one use; `create`: makes what is missing.
 * UNREACHABLE: no folder or no marker; UNSUPPORTED: a newer store; CORRUPT: the marker is damaged.
 */
KELPIE_MUST_USE bool klp_local_tree_open(struct klp_store_local *store, bool create,
                                         struct klp_local_tree **out, struct kelpie_error **err);
void klp_local_tree_close(struct klp_local_tree *tree);

/* The tree that was opened last, whatever became of it since: for reading. */
void klp_local_use_begin(struct klp_store_local *store, struct klp_local_use *out);
/* The tree that is at the path now: before writing, and when something was not found. UNREACHABLE
 * names the folder. A folder that came back, or another one in its place, is used from then on. */
KELPIE_MUST_USE bool klp_local_use_current(struct klp_store_local *store, struct klp_local_use *out,
                                           struct kelpie_error **err);

/* For writing: open, made if missing, and their own names durable. */
KELPIE_MUST_USE bool klp_local_fanout_create(struct klp_local_use *use, enum klp_object_kind kind,
                                             uint8_t first, struct klp_dir **out,
                                             struct kelpie_error **err);
KELPIE_MUST_USE bool klp_local_class_create(struct klp_local_use *use, const char *name,
                                            struct klp_dir **out, struct kelpie_error **err);
/* For reading: NOT_FOUND when it was never made. */
KELPIE_MUST_USE bool klp_local_fanout_open(struct klp_local_tree *tree, enum klp_object_kind kind,
                                           uint8_t first, struct klp_dir **out,
                                           struct kelpie_error **err);

/* The syncs of a store: they count failures. After KLP_LOCAL_SYNCS_FAILED_MAX in a row it is
 * read-only until it is opened anew: a disk that fails so is not written to blindly. */
#define KLP_LOCAL_SYNCS_FAILED_MAX 3
KELPIE_MUST_USE bool klp_local_file_sync(struct klp_store_local *store, struct klp_file *file,
                                         struct kelpie_error **err);
KELPIE_MUST_USE bool klp_local_dir_sync(struct klp_store_local *store, struct klp_dir *dir,
                                        struct kelpie_error **err);
/* IO when it is read-only. */
KELPIE_MUST_USE bool klp_local_writable(struct klp_store_local *store, struct kelpie_error **err);
bool klp_local_dir_is_suspect(struct klp_store_local *store);

static inline struct klp_store_local *klp_store_local_from(struct klp_store *store)
{
    return KLP_CONTAINER(store, struct klp_store_local, base);
}
/* The failure that *err holds already. */
static inline kelpie_outcome klp_local_failed(void)
{
    return (kelpie_outcome){KELPIE_FAIL};
}

/* refs: ref.c */
kelpie_outcome klp_local_ref_create(const struct kelpie_op *op, struct klp_store *store,
                                    const char *name, const void *value, size_t size,
                                    struct kelpie_error **err);
kelpie_outcome klp_local_ref_get(const struct kelpie_op *op, struct klp_store *store,
                                 const char *name, struct klp_buf *out, struct kelpie_error **err);
kelpie_outcome klp_local_ref_delete(const struct kelpie_op *op, struct klp_store *store,
                                    const char *name, struct kelpie_error **err);
kelpie_outcome klp_local_ref_list(const struct kelpie_op *op, struct klp_store *store,
                                  const char *prefix, bool (*each)(void *arg, const char *name),
                                  void *arg, struct kelpie_error **err);

#endif
