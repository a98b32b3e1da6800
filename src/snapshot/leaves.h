/* SPDX-License-Identifier: Apache-2.0 */
/* Page maps out of the store, one leaf at a time, in ascending order. Inside of snapshot/ only. */
#ifndef KLP_SNAPSHOT_LEAVES_H
#define KLP_SNAPSHOT_LEAVES_H

#include "format/pagemap.h"
#include "snapshot/snapshot.h"

struct klp_leaf_source;

/* Verifies the whole map by its name first. `manifest` is borrowed for the source's life and has
 * the region. */
KELPIE_MUST_USE kelpie_outcome klp_leaf_source_open(const struct kelpie_op *op,
                                                    const struct klp_snapshots *snapshots,
                                                    const struct klp_manifest *manifest,
                                                    struct klp_leaf_source **out,
                                                    struct kelpie_error **err);
/* The leaf of that number (numbers ascend from call to call); all zero when the map leaves it out.
 */
KELPIE_MUST_USE kelpie_outcome klp_leaf_source_get(const struct kelpie_op *op,
                                                   struct klp_leaf_source *source, uint32_t number,
                                                   struct klp_leaf *out, struct kelpie_error **err);
/* After the last leaf: CORRUPT when what was read is not what the map is named by. Nothing made of
 * the leaves is to be used before. */
KELPIE_MUST_USE kelpie_outcome klp_leaf_source_end(const struct kelpie_op *op,
                                                   struct klp_leaf_source *source,
                                                   struct kelpie_error **err);
void klp_leaf_source_close(struct klp_leaf_source *source);
KLP_AUTO_DEFINE(leaf_source, struct klp_leaf_source *, klp_leaf_source_close)

uint64_t klp_region_pages(const struct klp_region *region);
uint32_t klp_region_leaves(const struct klp_region *region);
uint32_t klp_region_leaf_pages(const struct klp_region *region, uint32_t number);

/* Do both maps say the same stored page (or zero) at `index` of this leaf? Packs are compared by
 * name. */
bool klp_page_refs_equal(const struct klp_manifest *a, const struct klp_leaf *leaf_a,
                         const struct klp_manifest *b, const struct klp_leaf *leaf_b,
                         uint32_t index);

static inline void klp_auto_leaf(struct klp_leaf *leaf)
{
    klp_leaf_finish(leaf);
}

#endif
