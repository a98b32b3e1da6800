/* SPDX-License-Identifier: Apache-2.0 */
/* KLP1, the original's single-file blob, bit for bit (kelpie-original 1.3 and 6).
 *
 *   0  4  "KLP1"          4  4  u32 version = 1
 *   8  8  u64 metadata    16 8  u64 snapshot    24 8  u64 memory (lengths, little-endian)
 *   32 .. metadata, snapshot, memory bytes; the total is exact, any part may be empty
 */
#ifndef KLP_FORMAT_KLP1_H
#define KLP_FORMAT_KLP1_H

#include "base/buf.h"

#define KLP1_HEADER_SIZE 32
#define KLP1_METADATA_SIZE_MAX (1024u * 1024u) /* bytes, of metadata that is to be understood */

struct klp1_lengths {
    uint64_t metadata, snapshot, memory; /* bytes */
};

struct klp1_blob { /* borrowed slices of the decoded bytes */
    struct klp_bytes metadata, snapshot, memory;
};

/* From a stream: the header alone. total_size: of the whole file, or UINT64_MAX when not known yet.
 * CORRUPT, checked in this order: shorter than 32 bytes, magic, version, lengths (sum overflows or
 * differs). */
KELPIE_MUST_USE bool klp1_header_decode(const void *bytes, size_t size, uint64_t total_size,
                                        struct klp1_lengths *out, struct kelpie_error **err);
void klp1_header_encode(const struct klp1_lengths *lengths, uint8_t out[KLP1_HEADER_SIZE]);
KELPIE_MUST_USE bool klp1_decode(const void *bytes, size_t size, struct klp1_blob *out,
                                 struct kelpie_error **err);
void klp1_encode(const struct klp1_blob *blob, struct klp_buf *out);

/* VmSnapshotMetadata, the JSON of the metadata part. Checks of `kelpie verify` (kelpie-original 6):
 * all nine keys with their types; unknown keys are ignored, a duplicate key is an error. */
struct klp1_metadata {
    char *snapshot_id, *vm_id, *architecture; /* owned */
    uint64_t created_at_ms, size_bytes;
    uint32_t checksum; /* CRC-32 of the snapshot part only */
    uint32_t vcpu_count;
    uint64_t memory_mib;
    bool is_full_snapshot;
};
KELPIE_MUST_USE bool klp1_metadata_decode(struct klp_bytes json, struct klp1_metadata *out,
                                          struct kelpie_error **err);
void klp1_metadata_encode(const struct klp1_metadata *metadata, struct klp_buf *out);
void klp1_metadata_finish(struct klp1_metadata *metadata);
/* Everything: metadata (absent passes; *out_has_metadata says so), size_bytes and checksum.
 * CORRUPT. */
KELPIE_MUST_USE bool klp1_verify(const struct klp1_blob *blob, bool *out_has_metadata,
                                 struct kelpie_error **err);

#endif
