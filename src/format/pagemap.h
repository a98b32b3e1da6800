/* SPDX-License-Identifier: Apache-2.0 */
/* A page map says where every page of one memory region lies: zero, or a page of a frame of a pack.
 * Always fully resolved: no chain. An object: header "pmap", then leaves back to back in ascending
 * order of their numbers, each for KLP_LEAF_PAGES pages; all-zero leaves are left out. A leaf,
 * little-endian, unpadded: u32 leaf number, u32 bytes that follow, then u32 frame count, frame
 * table (48 bytes each: u32 pack ordinal in the manifest, u32 offset in the pack, u32 frame size
 * incl. header and padding, u8 pages, u8[3] zero, 32 bytes SHA-256 of the frame), run list (uv =
 * LEB128, shortest form): count, then per run: kind (0 zero, 1 data), length in pages, for data:
 * frame index, first slot. The pages of a data run lie in consecutive slots, going on in slot 0 of
 * the next frame of the table. Runs cover the leaf exactly and are as long as they can be; frames
 * stand in the order of their first use and each is used: so one leaf has one encoding. Memory
 * needed to read or write one: one leaf. */
#ifndef KLP_FORMAT_PAGEMAP_H
#define KLP_FORMAT_PAGEMAP_H

#include "base/limits.h"
#include "base/name.h"
#include "format/records.h"

#define KLP_LEAF_PAGES 16384u
#define KLP_LEAF_FRAMES_MAX KLP_LEAF_PAGES /* a frame holds at least one page */
#define KLP_LEAF_SIZE_MAX (4u * KLP_MIB)   /* encoded */
#define KLP_PAGE_ZERO UINT32_MAX

struct klp_frame_ref {
    uint32_t pack;  /* ordinal in the manifest's list of packs */
    uint32_t pages; /* 1..KLP_FRAME_PAGES */
    uint64_t
        offset;    /* of the frame header in the pack; a multiple of 8, at most KLP_PACK_SIZE_MAX */
    uint32_t size; /* header + stored bytes + padding */
    struct klp_digest digest; /* SHA-256 of those bytes */
};

struct klp_leaf {        /* decoded; owned by its user, finish when done */
    uint32_t number;     /* covers pages number*KLP_LEAF_PAGES .. */
    uint32_t page_count; /* KLP_LEAF_PAGES, fewer in the last leaf */
    uint32_t frame_count, frame_capacity;
    struct klp_frame_ref *frames;
    /* For each page: KLP_PAGE_ZERO or frame index * KLP_FRAME_PAGES + slot. */
    uint32_t *pages;
};

void klp_leaf_init(struct klp_leaf *leaf, uint32_t number,
                   uint32_t page_count); /* all zero pages */
void klp_leaf_finish(struct klp_leaf *leaf);
/* Adds a frame, returns its index. At most KLP_LEAF_FRAMES_MAX (asserted): compact before that. */
uint32_t klp_leaf_frame_add(struct klp_leaf *leaf, const struct klp_frame_ref *frame);
/* Drops frames no page refers to and renumbers the others in the order of their first use. */
void klp_leaf_compact(struct klp_leaf *leaf);
/* Is the page at `index` the same stored page in both? (Same pack digest is the caller's to
 * compare: pack ordinals of both leaves must be of one list.) */
bool klp_leaf_page_equal(const struct klp_leaf *a, const struct klp_leaf *b, uint32_t index);
bool klp_leaf_is_zero(const struct klp_leaf *leaf);

/* Appends the canonical form, as of a compacted leaf; nothing for an all-zero one. */
void klp_leaf_encode(const struct klp_leaf *leaf, struct klp_buf *out);
/* `bytes` begin at a leaf; *out_size = its encoded length (0 with true = more bytes needed than
 * given: *out_needed says how many, counted from the leaf's first byte; `out` then holds nothing).
 * pack_count bounds the ordinals. Verifies everything that can be verified without the packs. `out`
 * must be finished by the caller on success only. CORRUPT. */
KELPIE_MUST_USE bool klp_leaf_decode(struct klp_bytes bytes, uint64_t region_pages,
                                     uint32_t pack_count, struct klp_leaf *out, size_t *out_size,
                                     size_t *out_needed, struct kelpie_error **err);

#endif
