/* SPDX-License-Identifier: Apache-2.0 */
/* A file tree in memory: what an initramfs will hold. Nothing of a package is ever unpacked to
 * disk, so no name in one can reach outside. Nodes are kept sorted by path; adding a node makes its
 * missing parents (directories, 0755). Bounded in nodes and bytes. What goes in is the recipe's
 * business. */
#ifndef KLP_IMAGE_TREE_H
#define KLP_IMAGE_TREE_H

#include "base/buf.h"

#define KLP_TREE_NODES_MAX 20000u
#define KLP_TREE_BYTES_MAX (512u * 1024u * 1024u) /* contents of all files */
#define KLP_TREE_PATH_MAX 1023u                   /* bytes without NUL; Linux reads up to 4095 */

enum klp_tree_kind { KLP_TREE_FILE, KLP_TREE_DIRECTORY, KLP_TREE_SYMLINK, KLP_TREE_CHAR_DEVICE };

struct klp_tree_node {
    char *path; /* owned; relative: "usr/bin/env" */
    enum klp_tree_kind kind;
    uint32_t mode; /* & 01777 */
    uint8_t *data; /* owned; a file's bytes, a symlink's target; NUL behind them */
    size_t size;
    uint32_t major, minor; /* of a device */
};

struct klp_tree {
    struct klp_tree_node
        *nodes; /* sorted by path, bytewise: a directory comes before what is in it */
    size_t count, capacity;
    uint64_t bytes; /* of all data */
};

struct klp_tree *klp_tree_create(void);
void klp_tree_destroy(struct klp_tree *tree);

/* Relative, no empty, "." or ".." component, no control character, not too long. CORRUPT names it.
 */
KELPIE_MUST_USE bool klp_tree_path_check(const char *path, struct kelpie_error **err);

/* EXISTS when the path is taken (a directory added twice is fine), CORRUPT for a bad path or a
 * parent that is no directory, LIMIT, NO_MEMORY. `data` is copied. */
KELPIE_MUST_USE bool klp_tree_file_add(struct klp_tree *tree, const char *path, uint32_t mode,
                                       const void *data, size_t size, struct kelpie_error **err);
KELPIE_MUST_USE bool klp_tree_text_add(struct klp_tree *tree, const char *path, uint32_t mode,
                                       const char *text, struct kelpie_error **err);
KELPIE_MUST_USE bool klp_tree_directory_add(struct klp_tree *tree, const char *path, uint32_t mode,
                                            struct kelpie_error **err);
KELPIE_MUST_USE bool klp_tree_symlink_add(struct klp_tree *tree, const char *path,
                                          const char *target, struct kelpie_error **err);
KELPIE_MUST_USE bool klp_tree_device_add(struct klp_tree *tree, const char *path, uint32_t mode,
                                         uint32_t major, uint32_t minor, struct kelpie_error **err);
/* As file_add, but takes over `data` (from klp_mem_*) on success and on failure alike. */
KELPIE_MUST_USE bool klp_tree_file_give(struct klp_tree *tree, const char *path, uint32_t mode,
                                        uint8_t *data, size_t size, struct kelpie_error **err);

/* Borrowed until the next change of the tree; NULL = not there. */
const struct klp_tree_node *klp_tree_find(const struct klp_tree *tree, const char *path);
/* The first path that begins with `prefix` and ends with `suffix`, "" matches all; NULL = none. */
const struct klp_tree_node *klp_tree_find_like(const struct klp_tree *tree, const char *prefix,
                                               const char *suffix);
/* Moves a file or symlink from one tree to another under `to_path`. NOT_FOUND when it is not there.
 */
KELPIE_MUST_USE bool klp_tree_move(struct klp_tree *from, const char *path, struct klp_tree *to,
                                   const char *to_path, struct kelpie_error **err);
/* Follows symlinks (also in parents, at most 16) inside the tree; "" = leads nowhere. `out` holds
 * KLP_TREE_PATH_MAX + 1 bytes. */
void klp_tree_resolve(const struct klp_tree *tree, const char *path, char *out);

KLP_AUTO_DEFINE(tree, struct klp_tree *, klp_tree_destroy)

#endif
