/* SPDX-License-Identifier: Apache-2.0 */
/* Versioned records: u16 tag, u16 flags (1 = critical: a reader that does not know the tag must
 * refuse), u32 length, bytes, zero padding to 8. Used by manifest, page map, machine description,
 * pack headers. */
#ifndef KLP_FORMAT_RECORDS_H
#define KLP_FORMAT_RECORDS_H

#include "base/buf.h"

#define KLP_RECORD_CRITICAL 1
#define KLP_RECORD_FLAGS_ALL 3 /* critical, secret; any other bit is CORRUPT */

/* The header every stored object of ours begins with, 64 bytes:
 *   0 8 magic ("KLPpack\0" ...; last byte 'D' while the format is a draft)   8 2 major   10 2 minor
 *   12 4 header length   16 8 incompat   24 8 ro_compat   32 8 compat features
 *   40 1 hash id (1 SHA-256)   41 1 default codec (0 raw, 2 zstd)   42 1 AEAD id (0 none)   43 1
 * log2 page 44 1 log2 frame   45 3 zero   48 4 key id (0)   52 8 nonce: fresh random when a
 * condemned object is written anew, else 0   60 4 CRC-32 of bytes 0..59 */
#define KLP_OBJECT_HEADER_SIZE 64
#define KLP_OBJECT_MAJOR 2 /* KLP2; the one major this release reads and writes */
#define KLP_OBJECT_MINOR 0
#define KLP_HASH_SHA256 1
struct klp_object_header {
    char kind[4]; /* "pack", "pmap", "mani", "stat", "ckpt" */
    uint16_t major, minor;
    uint64_t incompat, ro_compat, compat;
    uint8_t hash_id, codec, aead_id, page_log2, frame_log2;
    uint32_t key_id;
    uint64_t nonce;
};
/* What every object begins with today, nonce 0: version, SHA-256, codec `codec`, pages and frames
 * of that size. */
struct klp_object_header klp_object_header_make(const char kind[4], uint8_t codec,
                                                uint8_t page_log2, uint8_t frame_log2);
void klp_object_header_encode(const struct klp_object_header *header,
                              uint8_t out[KLP_OBJECT_HEADER_SIZE]);
/* CORRUPT: magic, CRC, reserved, page and frame sizes (0, or log2 page 6..16 and log2 frame not
 * smaller); UNSUPPORTED: another major, an unknown incompat bit, hash, codec or AEAD id. */
KELPIE_MUST_USE bool klp_object_header_decode(const void *bytes, size_t size, const char kind[4],
                                              struct klp_object_header *out,
                                              struct kelpie_error **err);

void klp_record_append(struct klp_buf *out, uint16_t tag, uint16_t flags, const void *data,
                       size_t size);
struct klp_record {
    uint16_t tag, flags;
    struct klp_bytes data; /* borrowed */
};
/* at = 0 at first; a record and its padding are counted from there. 1 = a record, 0 = end, -1 =
 * malformed (CORRUPT). Order, duplicates and unknown critical tags are the caller's to check. */
KELPIE_MUST_USE int klp_record_next(struct klp_bytes bytes, size_t *at, struct klp_record *out,
                                    struct kelpie_error **err);

#endif
