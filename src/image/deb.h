/* SPDX-License-Identifier: Apache-2.0 */
/* A Debian package: an `ar` archive whose member data.tar.* holds the files (deb(5)). The archive
 * is read here, dpkg-deb undoes the compression, format/tar.h reads what comes out of its pipe. */
#ifndef KLP_IMAGE_DEB_H
#define KLP_IMAGE_DEB_H

#include "image/child.h"
#include "image/tree.h"

#define KLP_DEB_FILE_MAX (128u * 1024u * 1024u)     /* one file of a package */
#define KLP_DEB_CONTENT_MAX (1024u * 1024u * 1024u) /* all files, also those that are not taken */

struct klp_ar_member {
    char name[17];
    uint64_t offset, size; /* of its content in the file */
};

/* The member data.tar, data.tar.gz, .xz or .zst of the package that `fd` is; the whole chain of
 * members is checked. CORRUPT: no package, truncated; UNSUPPORTED: another version or compression.
 */
KELPIE_MUST_USE bool klp_deb_data_find(int fd, const char *name, struct klp_ar_member *out,
                                       struct kelpie_error **err);

struct klp_deb_take {
    /* Is this file (or symlink) wanted? `path` has the layout of layout.h. */
    bool (*want)(const void *arg, const char *path);
    const void *arg;
    struct klp_tree *tree; /* where it goes */
};

/* Adds the wanted files and symlinks; directories come with them. A hard link becomes a copy. */
KELPIE_MUST_USE kelpie_outcome klp_deb_read(const struct kelpie_op *op, int fd, const char *name,
                                            const struct klp_deb_take *take,
                                            struct kelpie_error **err);

/* The second half, for a tar stream in memory: same rules. For tests. */
KELPIE_MUST_USE bool klp_deb_tar_read(struct klp_bytes tar, const char *name,
                                      const struct klp_deb_take *take, struct kelpie_error **err);

#endif
