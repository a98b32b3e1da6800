/* SPDX-License-Identifier: Apache-2.0 */
/* How a guest's tree is laid out: one directory of programs and one of libraries (bin, sbin and
 * usr/sbin lead to usr/bin; lib and lib64 to usr/), and the few files every guest has. */
#ifndef KLP_IMAGE_LAYOUT_H
#define KLP_IMAGE_LAYOUT_H

#include "format/machine.h"
#include "image/tree.h"

/* "x86_64-linux-gnu": Debian's directory of libraries. */
const char *klp_layout_triplet(enum klp_arch arch);
/* A package's path ("./lib/x", "/sbin/y") as it is in the tree ("usr/lib/x", "usr/bin/y"). `out`
 * holds KLP_TREE_PATH_MAX + 1 bytes. CORRUPT for a bad path. */
KELPIE_MUST_USE bool klp_layout_path(const char *path, char *out, struct kelpie_error **err);
/* The symlinks and directories that klp_layout_path relies on. */
KELPIE_MUST_USE bool klp_layout_directories_add(struct klp_tree *tree, struct kelpie_error **err);
/* /etc, /dev, mount points, home directories. */
KELPIE_MUST_USE bool klp_layout_base_add(struct klp_tree *tree, const char *version,
                                         struct kelpie_error **err);
/* A symlink in usr/bin for every applet of `busybox` (its own table is read, nothing is run). A
 * binary without a readable table gets a fixed list of common applets. */
KELPIE_MUST_USE bool klp_layout_applets_add(struct klp_tree *tree, struct klp_bytes busybox,
                                            struct kelpie_error **err);

#endif
