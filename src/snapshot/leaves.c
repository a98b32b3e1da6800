/* SPDX-License-Identifier: Apache-2.0 */
#include "snapshot/leaves.h"

#include <string.h>

#include "base/ext/sha256.h"

#define READ_SIZE (256 * KLP_KIB) /* bytes asked of the store at once */

struct klp_leaf_source {
    const struct klp_manifest *manifest;
    struct klp_store_reader *reader;
    uint64_t at, size;       /* of the map object */
    struct klp_sha256 *hash; /* of what was read up to `at` */
    struct klp_buf bytes;    /* read, not yet decoded */
    bool has_next;
    struct klp_leaf next; /* decoded, its turn has not come */
};

uint64_t klp_region_pages(const struct klp_region *region)
{
    return region->size >> region->page_log2;
}

uint32_t klp_region_leaves(const struct klp_region *region)
{
    return (uint32_t)((klp_region_pages(region) + KLP_LEAF_PAGES - 1) / KLP_LEAF_PAGES);
}

uint32_t klp_region_leaf_pages(const struct klp_region *region, uint32_t number)
{
    uint64_t left = klp_region_pages(region) - (uint64_t)number * KLP_LEAF_PAGES;
    return left < KLP_LEAF_PAGES ? (uint32_t)left : KLP_LEAF_PAGES;
}

static kelpie_outcome header_check(const struct kelpie_op *op, struct klp_leaf_source *source,
                                   struct kelpie_error **err)
{
    const struct klp_region *region = &source->manifest->regions[0];
    uint8_t bytes[KLP_OBJECT_HEADER_SIZE];
    if (source->size < sizeof(bytes))
        return klp_fail(err, KELPIE_E_CORRUPT, "page map of %llu bytes is too short",
                        (unsigned long long)source->size);
    KLP_TRY(klp_store_read(op, source->reader, 0, bytes, sizeof(bytes), err));
    struct klp_object_header header;
    KLP_REQUIRE(klp_object_header_decode(bytes, sizeof(bytes), "pmap", &header, err));
    if (header.page_log2 != region->page_log2 || header.frame_log2 != region->frame_log2)
        return klp_fail(err, KELPIE_E_CORRUPT, "page map and manifest differ in their page size");
    klp_sha256_update(source->hash, bytes, sizeof(bytes));
    source->at = sizeof(bytes);
    return KLP_OK;
}

kelpie_outcome klp_leaf_source_open(const struct kelpie_op *op,
                                    const struct klp_snapshots *snapshots,
                                    const struct klp_manifest *manifest,
                                    struct klp_leaf_source **out, struct kelpie_error **err)
{
    const struct klp_region *region = &manifest->regions[0];
    KLP_TRY(klp_store_verify(op, snapshots->store, KLP_OBJECT_MAP, &region->map.digest, err));

    KLP_AUTO(leaf_source) struct klp_leaf_source *source = KLP_NEW(struct klp_leaf_source);
    source->manifest = manifest;
    source->hash = klp_sha256_create();
    source->bytes = KLP_BUF_INIT(KLP_LEAF_SIZE_MAX + READ_SIZE);
    KLP_TRY(klp_store_open(op, snapshots->store, KLP_OBJECT_MAP, &region->map.digest,
                           &source->reader, &source->size, err));
    KLP_TRY(header_check(op, source, err));
    *out = KLP_TAKE(&source);
    return KLP_OK;
}

static kelpie_outcome more_read(const struct kelpie_op *op, struct klp_leaf_source *source,
                                size_t needed, struct kelpie_error **err)
{
    uint64_t left = source->size - source->at;
    size_t size = needed > READ_SIZE ? needed : READ_SIZE;
    if (size > left)
        size = (size_t)left;
    if (size == 0 || size + source->bytes.size < needed)
        return klp_fail(err, KELPIE_E_CORRUPT, "page map ends in the middle of a leaf");
    void *room = klp_buf_reserve(&source->bytes, size);
    KLP_REQUIRE(klp_buf_check(&source->bytes, "a leaf of a page map", err));
    KLP_TRY(klp_store_read(op, source->reader, source->at, room, size, err));
    klp_sha256_update(source->hash, room, size);
    klp_buf_grow(&source->bytes, size);
    source->at += size;
    return KLP_OK;
}

static kelpie_outcome next_decode(const struct kelpie_op *op, struct klp_leaf_source *source,
                                  struct kelpie_error **err)
{
    const struct klp_manifest *manifest = source->manifest;
    while (!source->has_next && (source->bytes.size > 0 || source->at < source->size)) {
        size_t size = 0, needed = 1;
        if (source->bytes.size > 0)
            KLP_REQUIRE(klp_leaf_decode(klp_buf_view(&source->bytes),
                                        klp_region_pages(&manifest->regions[0]),
                                        manifest->pack_count, &source->next, &size, &needed, err));
        if (size == 0) {
            KLP_TRY(more_read(op, source, needed, err));
            continue;
        }
        klp_buf_drop_front(&source->bytes, size);
        source->has_next = true;
    }
    return KLP_OK;
}

kelpie_outcome klp_leaf_source_get(const struct kelpie_op *op, struct klp_leaf_source *source,
                                   uint32_t number, struct klp_leaf *out, struct kelpie_error **err)
{
    KLP_TRY(next_decode(op, source, err));
    if (source->has_next && source->next.number < number)
        return klp_fail(err, KELPIE_E_CORRUPT, "page map has leaf %u twice or out of order",
                        source->next.number);
    if (source->has_next && source->next.number == number) {
        *out = source->next;
        source->has_next = false;
        return KLP_OK;
    }
    klp_leaf_init(out, number, klp_region_leaf_pages(&source->manifest->regions[0], number));
    return KLP_OK;
}

/* That it was whole when it was opened does not say that it was read so now. */
kelpie_outcome klp_leaf_source_end(const struct kelpie_op *op, struct klp_leaf_source *source,
                                   struct kelpie_error **err)
{
    struct klp_digest digest;
    while (source->at < source->size) { /* leaves that nobody asked for */
        klp_buf_clear(&source->bytes);
        KLP_TRY(more_read(op, source, 1, err));
    }
    klp_sha256_final(source->hash, &digest);
    if (!klp_digest_equal(&digest, &source->manifest->regions[0].map.digest))
        return klp_fail(err, KELPIE_E_CORRUPT, "the page map was not read as it was written");
    return KLP_OK;
}

void klp_leaf_source_close(struct klp_leaf_source *source)
{
    if (source == NULL)
        return;
    if (source->has_next)
        klp_leaf_finish(&source->next);
    klp_buf_finish(&source->bytes);
    klp_sha256_destroy(source->hash);
    klp_store_close(source->reader);
    klp_mem_free(source);
}

bool klp_page_refs_equal(const struct klp_manifest *a, const struct klp_leaf *leaf_a,
                         const struct klp_manifest *b, const struct klp_leaf *leaf_b,
                         uint32_t index)
{
    if (index >= leaf_a->page_count || index >= leaf_b->page_count)
        return false; /* memories of two sizes: one of them has no such page */
    uint32_t page_a = leaf_a->pages[index], page_b = leaf_b->pages[index];
    if (page_a == KLP_PAGE_ZERO || page_b == KLP_PAGE_ZERO)
        return page_a == page_b;
    const struct klp_frame_ref *frame_a = &leaf_a->frames[page_a / KLP_FRAME_PAGES];
    const struct klp_frame_ref *frame_b = &leaf_b->frames[page_b / KLP_FRAME_PAGES];
    return page_a % KLP_FRAME_PAGES == page_b % KLP_FRAME_PAGES &&
           frame_a->offset == frame_b->offset && frame_a->size == frame_b->size &&
           klp_digest_equal(&a->packs[frame_a->pack].digest, &b->packs[frame_b->pack].digest);
}
