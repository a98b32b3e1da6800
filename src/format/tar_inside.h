/* SPDX-License-Identifier: Apache-2.0 */
/* Between the files of the tar codec only: one place for header offsets, names and pax records. */
#ifndef KLP_FORMAT_TAR_INSIDE_H
#define KLP_FORMAT_TAR_INSIDE_H

#include "format/tar.h"

/* POSIX.1-2017, pax, "ustar Interchange Format": offset and size of the fields. */
#define TAR_NAME 0
#define TAR_NAME_SIZE 100u
#define TAR_MODE 100
#define TAR_UID 108
#define TAR_GID 116
#define TAR_NUMBER_SIZE 8u
#define TAR_SIZE 124
#define TAR_MTIME 136
#define TAR_LONG_SIZE 12u
#define TAR_SUM 148
#define TAR_TYPE 156
#define TAR_LINK 157
#define TAR_MAGIC 257
#define TAR_MAGIC_SIZE 8u /* with the version */
#define TAR_MAJOR 329
#define TAR_MINOR 337
#define TAR_PREFIX 345
#define TAR_PREFIX_SIZE 155u
/* GNU tar's sparse entries: is another block of holes to come? */
#define TAR_GNU_EXTENDED 482
#define TAR_GNU_EXTENDED_NEXT 504

#define TAR_POSIX_MAGIC "ustar\00000"
#define TAR_GNU_MAGIC "ustar  \0"

#define TAR_NUMBER_MAX ((uint64_t)077777777777) /* 11 octal digits */
#define TAR_META_MAX (256u * KLP_KIB)           /* bytes of one pax header */

/* Sum of all bytes of the block, its checksum field taken as spaces. */
uint32_t klp_tar_sum(const uint8_t block[KLP_TAR_BLOCK]);

/* A name in normal form: relative, without "." and empty parts, "." when nothing is left.
 * out: KLP_PATH_MAX + 1 bytes. `code` for what can never be a name here; LIMIT for too long or
 * deep. */
KELPIE_MUST_USE bool klp_tar_path_normal(struct klp_bytes name, char *out, enum kelpie_code code,
                                         struct kelpie_error **err);
/* Where a symlink leads: any text of 1..KLP_PATH_MAX bytes without NUL, copied as it is. */
KELPIE_MUST_USE bool klp_tar_target_copy(struct klp_bytes target, char *out, enum kelpie_code code,
                                         struct kelpie_error **err);

/* What stands before a header and overrides it. */
struct klp_tar_override {
    bool has_path, has_target, has_size, has_mtime, is_sparse, is_pax;
    char path[KLP_PATH_MAX + 1], target[KLP_PATH_MAX + 1]; /* as found, not yet in normal form */
    uint64_t size;
    int64_t mtime;
};

/* Records of a pax header. Keys we know set a field, once; others are passed over. CORRUPT, LIMIT.
 */
KELPIE_MUST_USE bool klp_tar_pax_decode(struct klp_bytes body, bool is_global,
                                        struct klp_tar_override *out, struct kelpie_error **err);

#endif
