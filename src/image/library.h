/* SPDX-License-Identifier: Apache-2.0 */
/* Takes exactly the shared libraries that the programs of a tree need out of a pool of unpacked
 * packages: the closure of interpreters and DT_NEEDED, found where Debian's loader looks. */
#ifndef KLP_IMAGE_LIBRARY_H
#define KLP_IMAGE_LIBRARY_H

#include "format/machine.h"
#include "image/tree.h"

/* CORRUPT names a library that neither tree holds, or a program for another machine. Both trees
 * have the layout of layout.h. A library's package symlink becomes one that leads straight to the
 * file. */
KELPIE_MUST_USE bool klp_libraries_take(struct klp_tree *tree, struct klp_tree *pool,
                                        enum klp_arch arch, struct kelpie_error **err);

#endif
