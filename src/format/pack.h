/* SPDX-License-Identifier: Apache-2.0 */
/* A pack: an object header, then frames back to back. A frame is up to KLP_FRAME_PAGES pages in the
 * order of its page map, compressed together: 16-byte header + stored bytes, padded with zeros
 * to 8. 0 4 "FRM2"   4 1 codec (0 raw, 2 zstd)   5 1 AEAD id (0)   6 2 pages   8 4 stored length 12
 * 4 plain length A frame is checked over header and stored bytes by the SHA-256 its page map gives,
 * before it is decoded. */
#ifndef KLP_FORMAT_PACK_H
#define KLP_FORMAT_PACK_H

#include "base/ext/zstd.h"
#include "base/limits.h"
#include "format/records.h"

#define KLP_PACK_FRAME_HEADER_SIZE 16
#define KLP_CODEC_RAW 0
#define KLP_CODEC_ZSTD 2

/* Compresses `page_count` pages into a whole frame appended to `out` (raw when zstd does not pay).
 */
KELPIE_MUST_USE bool klp_pack_frame_encode(struct klp_zstd *zstd, const void *pages,
                                           uint32_t page_count, uint8_t page_log2,
                                           struct klp_buf *out, struct kelpie_error **err);
/* `frame`: header, stored bytes and padding. out: room for page_count << page_log2 bytes. CORRUPT.
 */
KELPIE_MUST_USE bool klp_pack_frame_decode(struct klp_zstd *zstd, struct klp_bytes frame,
                                           uint32_t page_count, uint8_t page_log2, void *out,
                                           struct kelpie_error **err);

#endif
