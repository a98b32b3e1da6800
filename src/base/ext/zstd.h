/* SPDX-License-Identifier: Apache-2.0 */
/* zstd for frames: both sides know the plain size, so a bomb has no room. */
#ifndef KLP_BASE_EXT_ZSTD_H
#define KLP_BASE_EXT_ZSTD_H

#include "base/error.h"

struct klp_zstd; /* a reusable context; one task at a time */

struct klp_zstd *klp_zstd_create(void);
void klp_zstd_destroy(struct klp_zstd *zstd);
/* Bytes written, or 0 when the result would not be smaller than `capacity`. Level 1, fixed. */
size_t klp_zstd_compress(struct klp_zstd *zstd, const void *plain, size_t size, void *out,
                         size_t capacity);
/* False unless the input is one frame that decodes to exactly plain_size bytes. The output is also
 * the window: no memory beyond it, whatever window the frame asks for. */
KELPIE_MUST_USE bool klp_zstd_expand(struct klp_zstd *zstd, const void *stored, size_t size,
                                     void *out, size_t plain_size);

KLP_AUTO_DEFINE(zstd, struct klp_zstd *, klp_zstd_destroy)

#endif
