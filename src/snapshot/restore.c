/* SPDX-License-Identifier: Apache-2.0 */
/* From the store into layers. Every frame's hash is compared before it is decoded; a leaf at a
 * time, its frames by several tasks. */
#include <string.h>

#include "base/ext/sha256.h"
#include "format/pack.h"
#include "snapshot/leaves.h"
#include "snapshot/pool.h"

#define NO_PAGE UINT32_MAX

struct scratch { /* one a worker */
    struct klp_zstd *zstd;
    uint8_t *stored, *plain;
};

struct restore {
    const struct klp_snapshots *snapshots;
    const struct klp_manifest *manifest;
    const struct klp_region *region;
    struct klp_layer *layer;
    struct klp_mutex *mutex;
    struct klp_store_reader **packs; /* opened by need; pack_count of them */
    unsigned workers;
    struct scratch scratch[KLP_POOL_WORKERS_MAX];
    /* The leaf at hand: which pages want which slot of which frame. */
    const struct klp_leaf *leaf;
    uint32_t *slot_page; /* frame * KLP_FRAME_PAGES + slot -> first page of the leaf, or NO_PAGE */
    uint32_t *page_next; /* page -> next page that wants the same slot, or NO_PAGE */
    uint32_t *frames;    /* those that are wanted */
    size_t frame_count;
};

static size_t frame_size_max(const struct klp_region *region)
{
    return KLP_PACK_FRAME_HEADER_SIZE + ((size_t)KLP_FRAME_PAGES << region->page_log2) + 8;
}

static void restore_finish(struct restore *restore)
{
    for (uint32_t i = 0; restore->packs != NULL && i < restore->manifest->pack_count; i++)
        klp_store_close(restore->packs[i]);
    klp_mem_free(restore->packs);
    for (unsigned i = 0; i < restore->workers; i++) {
        klp_zstd_destroy(restore->scratch[i].zstd);
        klp_mem_free(restore->scratch[i].stored);
        klp_mem_free(restore->scratch[i].plain);
    }
    klp_mem_free(restore->slot_page);
    klp_mem_free(restore->page_next);
    klp_mem_free(restore->frames);
    klp_mutex_destroy(restore->mutex);
    klp_layer_close(restore->layer);
}

static void restore_init(struct restore *restore, const struct klp_snapshots *snapshots,
                         const struct klp_manifest *manifest)
{
    *restore = (struct restore){.snapshots = snapshots,
                                .manifest = manifest,
                                .region = &manifest->regions[0],
                                .workers = snapshots->worker_count};
    restore->mutex = klp_mutex_create(snapshots->env);
    restore->packs = klp_mem_alloc(sizeof(restore->packs[0]) * (manifest->pack_count + 1));
    restore->page_next = klp_mem_alloc_raw(sizeof(uint32_t) * KLP_LEAF_PAGES);
    for (unsigned i = 0; i < restore->workers; i++) {
        restore->scratch[i].zstd = klp_zstd_create();
        restore->scratch[i].stored = klp_mem_alloc_raw(frame_size_max(restore->region));
        restore->scratch[i].plain =
            klp_mem_alloc_raw((size_t)KLP_FRAME_PAGES << restore->region->page_log2);
    }
}

/* Frames have hashes of their own; what stands before them has a sum. */
static kelpie_outcome pack_header_check(const struct kelpie_op *op, struct klp_store_reader *pack,
                                        const struct klp_digest *digest, struct kelpie_error **err)
{
    uint8_t bytes[KLP_OBJECT_HEADER_SIZE];
    struct klp_object_header header;
    char name[KLP_DIGEST_SIZE];
    KLP_TRY(klp_store_read(op, pack, 0, bytes, sizeof(bytes), err));
    if (klp_object_header_decode(bytes, sizeof(bytes), "pack", &header, err))
        return KLP_OK;
    klp_digest_text(digest, name);
    return klp_wrap(err, (kelpie_outcome){KELPIE_FAIL}, "pack %s is damaged in its header", name);
}

static kelpie_outcome pack_get(const struct kelpie_op *op, struct restore *restore,
                               uint32_t ordinal, struct klp_store_reader **out,
                               struct kelpie_error **err)
{
    KLP_LOCKED (restore->mutex) {
        *out = restore->packs[ordinal];
    }
    if (*out != NULL)
        return KLP_OK;
    struct klp_store_reader *opened = NULL;
    uint64_t size;
    const struct klp_digest *digest = &restore->manifest->packs[ordinal].digest;
    KLP_TRY(klp_store_open(op, restore->snapshots->store, KLP_OBJECT_PACK, digest, &opened, &size,
                           err));
    kelpie_outcome checked = pack_header_check(op, opened, digest, err);
    if (!kelpie_is_ok(checked)) {
        klp_store_close(opened);
        return checked;
    }
    KLP_LOCKED (restore->mutex) {
        if (restore->packs[ordinal] == NULL)
            restore->packs[ordinal] = KLP_TAKE(&opened);
        *out = restore->packs[ordinal];
    }
    klp_store_close(opened); /* another task was faster */
    return KLP_OK;
}

static kelpie_outcome pack_damaged(const struct restore *restore, const struct klp_frame_ref *frame,
                                   struct kelpie_error **err)
{
    char name[KLP_DIGEST_SIZE];
    klp_digest_text(&restore->manifest->packs[frame->pack].digest, name);
    return klp_fail(err, KELPIE_E_CORRUPT, "pack %s is damaged at byte %llu", name,
                    (unsigned long long)frame->offset);
}

/* Reads, checks, decodes one frame into the worker's scratch. */
static kelpie_outcome frame_load(const struct kelpie_op *op, struct restore *restore,
                                 struct scratch *scratch, const struct klp_frame_ref *frame,
                                 struct kelpie_error **err)
{
    struct klp_store_reader *pack;
    if (frame->size > frame_size_max(restore->region))
        return pack_damaged(restore, frame, err);
    KLP_TRY(pack_get(op, restore, frame->pack, &pack, err));
    KLP_TRY(klp_store_read(op, pack, frame->offset, scratch->stored, frame->size, err));
    struct klp_digest digest;
    klp_sha256_once(scratch->stored, frame->size, &digest);
    if (!klp_digest_equal(&digest, &frame->digest) ||
        !klp_pack_frame_decode(scratch->zstd, (struct klp_bytes){scratch->stored, frame->size},
                               frame->pages, restore->region->page_log2, scratch->plain, NULL))
        return pack_damaged(restore, frame, err);
    return KLP_OK;
}

/* Writes the wanted pages of a decoded frame, neighbours together. */
static kelpie_outcome frame_spread(struct restore *restore, const struct scratch *scratch,
                                   uint32_t index, struct kelpie_error **err)
{
    const uint32_t *slots = restore->slot_page + (size_t)index * KLP_FRAME_PAGES;
    uint8_t log2 = restore->region->page_log2;
    uint64_t leaf_first = (uint64_t)restore->leaf->number * KLP_LEAF_PAGES;
    uint32_t pages = restore->leaf->frames[index].pages;
    for (uint32_t slot = 0; slot < pages;) {
        uint32_t page = slots[slot], run = 1;
        if (page == NO_PAGE) {
            slot++;
            continue;
        }
        while (slot + run < pages && slots[slot + run] == page + run &&
               restore->page_next[page + run - 1] == NO_PAGE)
            run++;
        for (uint32_t at = page, length = run; at != NO_PAGE;
             at = restore->page_next[at], length = 1)
            KLP_REQUIRE(klp_layer_write(restore->layer, (leaf_first + at) << log2,
                                        scratch->plain + ((size_t)slot << log2),
                                        (size_t)length << log2, err));
        /* Only the last page of a run may have followers: write them from its own slot. */
        if (run > 1)
            for (uint32_t at = restore->page_next[page + run - 1]; at != NO_PAGE;
                 at = restore->page_next[at])
                KLP_REQUIRE(klp_layer_write(restore->layer, (leaf_first + at) << log2,
                                            scratch->plain + ((size_t)(slot + run - 1) << log2),
                                            (size_t)1 << log2, err));
        slot += run;
    }
    return KLP_OK;
}

static kelpie_outcome frame_restore(const struct kelpie_op *op, void *arg, unsigned worker,
                                    size_t item, struct kelpie_error **err)
{
    struct restore *restore = arg;
    struct scratch *scratch = &restore->scratch[worker];
    uint32_t index = restore->frames[item];
    KLP_TRY(klp_op_check(op, "restoring memory", err));
    KLP_TRY(frame_load(op, restore, scratch, &restore->leaf->frames[index], err));
    return frame_spread(restore, scratch, index, err);
}

static kelpie_outcome slots_reset(struct restore *restore, const struct klp_leaf *leaf,
                                  struct kelpie_error **err)
{
    size_t slots = (size_t)leaf->frame_count * KLP_FRAME_PAGES;
    klp_mem_free(restore->slot_page);
    klp_mem_free(restore->frames);
    restore->slot_page = klp_mem_try_raw(sizeof(uint32_t) * (slots + 1));
    restore->frames = klp_mem_try(sizeof(uint32_t) * (leaf->frame_count + 1));
    if (restore->slot_page == NULL || restore->frames == NULL)
        return klp_fail(err, KELPIE_E_NO_MEMORY, "no memory for a leaf of a page map");
    memset(restore->slot_page, 0xff, sizeof(uint32_t) * slots);
    restore->leaf = leaf;
    restore->frame_count = 0;
    return KLP_OK;
}

/* Notes what each slot is wanted for. Pages that are the same in `base` are not; pages that are
 * zero here and not there are written as zeros at once. */
static kelpie_outcome leaf_plan(struct restore *restore, const struct klp_leaf *leaf,
                                const struct klp_manifest *base, const struct klp_leaf *base_leaf,
                                struct kelpie_error **err)
{
    static const uint8_t zeros[1u << KLP_PAGE_LOG2_MAX];
    uint8_t log2 = restore->region->page_log2;
    KLP_TRY(slots_reset(restore, leaf, err));
    for (uint32_t i = leaf->page_count; i-- > 0;) {
        uint32_t ref = leaf->pages[i];
        bool zero_there =
            base == NULL || (i < base_leaf->page_count && base_leaf->pages[i] == KLP_PAGE_ZERO);
        if (ref == KLP_PAGE_ZERO && zero_there) /* most pages of most guests */
            continue;
        if (base != NULL && klp_page_refs_equal(restore->manifest, leaf, base, base_leaf, i))
            continue;
        if (ref == KLP_PAGE_ZERO) {
            uint64_t page = (uint64_t)leaf->number * KLP_LEAF_PAGES + i;
            KLP_REQUIRE(
                klp_layer_write(restore->layer, page << log2, zeros, (size_t)1 << log2, err));
            continue;
        }
        restore->page_next[i] = restore->slot_page[ref];
        restore->slot_page[ref] = i;
    }
    for (uint32_t frame = 0; frame < leaf->frame_count; frame++) {
        bool wanted = false;
        for (uint32_t slot = 0; slot < KLP_FRAME_PAGES; slot++)
            wanted =
                wanted || restore->slot_page[(size_t)frame * KLP_FRAME_PAGES + slot] != NO_PAGE;
        if (wanted)
            restore->frames[restore->frame_count++] = frame;
    }
    return KLP_OK;
}

static kelpie_outcome leaf_restore(const struct kelpie_op *op, struct restore *restore,
                                   struct klp_leaf_source *source, const struct klp_manifest *base,
                                   struct klp_leaf_source *base_source, uint32_t number,
                                   struct kelpie_error **err)
{
    __attribute__((cleanup(klp_auto_leaf))) struct klp_leaf leaf = {0}, base_leaf = {0};
    KLP_TRY(klp_leaf_source_get(op, source, number, &leaf, err));
    if (base != NULL)
        KLP_TRY(klp_leaf_source_get(op, base_source, number, &base_leaf, err));
    KLP_TRY(leaf_plan(restore, &leaf, base, &base_leaf, err));
    return klp_pool_run(op, restore->workers, restore->frame_count, frame_restore, restore, err);
}

static kelpie_outcome restore_all(const struct kelpie_op *op, struct restore *restore,
                                  const struct klp_manifest *base, struct kelpie_error **err)
{
    KLP_AUTO(leaf_source) struct klp_leaf_source *source = NULL;
    KLP_AUTO(leaf_source) struct klp_leaf_source *base_source = NULL;
    const struct klp_region *region = restore->region;
    KLP_TRY(klp_leaf_source_open(op, restore->snapshots, restore->manifest, &source, err));
    if (base != NULL)
        KLP_TRY(klp_leaf_source_open(op, restore->snapshots, base, &base_source, err));
    KLP_REQUIRE(klp_layer_create(restore->snapshots->env, region->size, region->page_log2,
                                 &restore->layer, err));
    for (uint32_t number = 0; number < klp_region_leaves(region); number++)
        KLP_TRY(leaf_restore(op, restore, source, base, base_source, number, err));
    KLP_TRY(klp_leaf_source_end(op, source, err));
    if (base != NULL)
        KLP_TRY(klp_leaf_source_end(op, base_source, err));
    KLP_REQUIRE(klp_layer_seal(restore->layer, err));
    return KLP_OK;
}

static kelpie_outcome restore_run(const struct kelpie_op *op, const struct klp_snapshots *snapshots,
                                  const struct klp_manifest *manifest,
                                  const struct klp_manifest *base, struct klp_layer **out,
                                  struct kelpie_error **err)
{
    if (manifest->region_count != 1)
        return klp_fail(err, KELPIE_E_INVALID, "snapshot %s holds no memory", manifest->id);
    __attribute__((cleanup(restore_finish))) struct restore restore;
    restore_init(&restore, snapshots, manifest);
    KLP_TRY(klp_wrap(err, restore_all(op, &restore, base, err), "cannot restore snapshot %s",
                     manifest->id));
    *out = KLP_TAKE(&restore.layer);
    return KLP_OK;
}

kelpie_outcome klp_snapshot_materialise(const struct kelpie_op *op,
                                        const struct klp_snapshots *snapshots,
                                        const struct klp_manifest *manifest, struct klp_layer **out,
                                        struct kelpie_error **err)
{
    return restore_run(op, snapshots, manifest, NULL, out, err);
}

kelpie_outcome klp_snapshot_materialise_diff(const struct kelpie_op *op,
                                             const struct klp_snapshots *snapshots,
                                             const struct klp_manifest *manifest,
                                             const struct klp_manifest *base,
                                             struct klp_layer **out, struct kelpie_error **err)
{
    if (base->region_count != 1 || manifest->region_count != 1 ||
        base->regions[0].size != manifest->regions[0].size ||
        base->regions[0].page_log2 != manifest->regions[0].page_log2)
        return klp_fail(err, KELPIE_E_CORRUPT, "snapshot %s does not lie over template %s",
                        manifest->id, base->id);
    return restore_run(op, snapshots, manifest, base, out, err);
}

kelpie_outcome klp_snapshot_device_state(const struct kelpie_op *op,
                                         const struct klp_snapshots *snapshots,
                                         const struct klp_manifest *manifest, struct klp_buf *out,
                                         struct kelpie_error **err)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf object =
        KLP_BUF_INIT(KLP_DEVICE_STATE_MAX + KLP_OBJECT_HEADER_SIZE);
    KLP_TRY(klp_store_get(op, snapshots->store, KLP_OBJECT_STATE, &manifest->device_state.digest,
                          &object, err));
    struct klp_object_header header;
    KLP_REQUIRE(klp_object_header_decode(object.data, object.size, "stat", &header, err));
    klp_buf_append(out, object.data + KLP_OBJECT_HEADER_SIZE, object.size - KLP_OBJECT_HEADER_SIZE);
    KLP_REQUIRE(klp_buf_check(out, "the device state", err));
    return KLP_OK;
}
