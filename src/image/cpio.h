/* SPDX-License-Identifier: Apache-2.0 */
/* A tree as a "newc" cpio archive, the initramfs format of Linux (kernel doc:
 * driver-api/early-userspace/ buffer-format). The same tree gives the same bytes: sorted, owned by
 * root, time 0, inodes counted. */
#ifndef KLP_IMAGE_CPIO_H
#define KLP_IMAGE_CPIO_H

#include "image/tree.h"

/* Where bytes go: a file, a hash, a test. */
struct klp_sink {
    bool (*write)(void *arg, const void *data, size_t size, struct kelpie_error **err);
    void *arg;
};

KELPIE_MUST_USE bool klp_cpio_write(const struct klp_tree *tree, struct klp_sink sink,
                                    struct kelpie_error **err);

#endif
