/* SPDX-License-Identifier: Apache-2.0 */
/* A capture into the store: pages that are new go into packs, a page map says where every page
 * lies. Pages come in ascending runs; a leaf of the map is finished before the next begins; new
 * pages wait in a batch of fixed size that several tasks compress. */
#include <string.h>

#include "base/ext/sha256.h"
#include "format/pack.h"
#include "snapshot/leaves.h"
#include "snapshot/pool.h"

#define BATCH_FRAMES 32 /* of KLP_FRAME_PAGES pages: 2 MiB of 4 KiB pages */

struct batch_frame {
    uint32_t pages;
    uint32_t page[KLP_FRAME_PAGES]; /* of the leaf: who refers to each slot */
    struct klp_buf encoded;
    struct klp_digest digest;
};

struct writing {
    const struct klp_snapshots *snapshots;
    const struct klp_capture *capture;
    const struct klp_snapshot_request *request;
    struct klp_manifest *out;
    uint8_t log2;
    unsigned workers;
    uint32_t pack_capacity;
    uint32_t *parent_ordinals; /* parent's ordinal + 1 -> ours + 1; 0 = not referred to yet */

    struct klp_leaf_source *parent,
        *base; /* NULL = none; base NULL while it is the parent itself */
    struct klp_leaf leaf, parent_leaf, base_leaf;
    bool has_leaf;
    uint32_t next_leaf; /* first number not yet begun */

    struct klp_store_writer *map, *pack;
    uint32_t pack_ordinal;
    uint64_t pack_offset;

    uint8_t *plain; /* BATCH_FRAMES frames of pages */
    struct batch_frame frames[BATCH_FRAMES];
    uint32_t frame_count;
    struct klp_zstd *zstd[KLP_POOL_WORKERS_MAX];

    /* Contents of the parent, for comparing. */
    uint8_t *compared, *stored, *decoded;
    struct klp_store_reader *parent_pack;
    uint32_t parent_pack_ordinal, decoded_frame; /* of the leaf; UINT32_MAX = none */
};

static void writing_finish(struct writing *writing)
{
    if (writing->has_leaf) {
        klp_leaf_finish(&writing->leaf);
        klp_leaf_finish(&writing->parent_leaf);
        klp_leaf_finish(&writing->base_leaf);
    }
    klp_leaf_source_close(writing->parent);
    klp_leaf_source_close(writing->base);
    klp_store_abandon(writing->map);
    klp_store_abandon(writing->pack);
    klp_store_close(writing->parent_pack);
    for (unsigned i = 0; i < BATCH_FRAMES; i++)
        klp_buf_finish(&writing->frames[i].encoded);
    for (unsigned i = 0; i < writing->workers; i++)
        klp_zstd_destroy(writing->zstd[i]);
    klp_mem_free(writing->parent_ordinals);
    klp_mem_free(writing->plain);
    klp_mem_free(writing->compared);
    klp_mem_free(writing->stored);
    klp_mem_free(writing->decoded);
}

static size_t frame_plain_size(const struct writing *writing)
{
    return (size_t)KLP_FRAME_PAGES << writing->log2;
}

static size_t frame_stored_size(const struct writing *writing)
{
    return KLP_PACK_FRAME_HEADER_SIZE + frame_plain_size(writing) + 8;
}

static const struct klp_manifest *parent_of(const struct writing *writing)
{
    return writing->request->parent.manifest;
}

static void writing_init(struct writing *writing, const struct klp_snapshots *snapshots,
                         const struct klp_capture *capture,
                         const struct klp_snapshot_request *request, struct klp_manifest *out)
{
    *writing = (struct writing){.snapshots = snapshots,
                                .capture = capture,
                                .request = request,
                                .out = out,
                                .log2 = klp_layer_page_log2(capture->dirty),
                                .workers = snapshots->worker_count,
                                .decoded_frame = UINT32_MAX,
                                .parent_pack_ordinal = UINT32_MAX};
    for (unsigned i = 0; i < BATCH_FRAMES; i++)
        writing->frames[i].encoded = KLP_BUF_INIT(frame_stored_size(writing));
    for (unsigned i = 0; i < writing->workers; i++)
        writing->zstd[i] = klp_zstd_create();
    writing->plain = klp_mem_alloc_raw(BATCH_FRAMES * frame_plain_size(writing));
    writing->compared = klp_mem_alloc_raw((size_t)1 << writing->log2);
    writing->stored = klp_mem_alloc_raw(frame_stored_size(writing));
    writing->decoded = klp_mem_alloc_raw(frame_plain_size(writing));
    if (parent_of(writing) != NULL)
        writing->parent_ordinals =
            klp_mem_alloc(sizeof(uint32_t) * (parent_of(writing)->pack_count + 1));
}

/* ---- the manifest's list of packs, in the order of first use */

static kelpie_outcome pack_list_add(struct writing *writing, const struct klp_object_ref *pack,
                                    uint32_t *out, struct kelpie_error **err)
{
    struct klp_manifest *manifest = writing->out;
    if (manifest->pack_count == KLP_PACKS_MAX)
        return klp_fail(err, KELPIE_E_LIMIT, "a snapshot may refer to %d packs at most",
                        KLP_PACKS_MAX);
    if (manifest->pack_count == writing->pack_capacity) {
        uint32_t capacity = writing->pack_capacity == 0 ? 16 : writing->pack_capacity * 2;
        void *packs = klp_mem_resize(manifest->packs, sizeof(manifest->packs[0]) * capacity);
        if (packs == NULL)
            return klp_fail(err, KELPIE_E_NO_MEMORY, "no memory for a list of packs");
        manifest->packs = packs;
        writing->pack_capacity = capacity;
    }
    manifest->packs[manifest->pack_count] = *pack;
    *out = manifest->pack_count++;
    return KLP_OK;
}

static kelpie_outcome parent_ordinal_map(struct writing *writing, uint32_t ordinal, uint32_t *out,
                                         struct kelpie_error **err)
{
    if (writing->parent_ordinals[ordinal] == 0) {
        uint32_t ours;
        KLP_TRY(pack_list_add(writing, &parent_of(writing)->packs[ordinal], &ours, err));
        writing->parent_ordinals[ordinal] = ours + 1;
    }
    *out = writing->parent_ordinals[ordinal] - 1;
    return KLP_OK;
}

/* ---- packs */

static kelpie_outcome pack_close(const struct kelpie_op *op, struct writing *writing,
                                 struct kelpie_error **err)
{
    if (writing->pack == NULL)
        return KLP_OK;
    struct klp_object_ref *ref = &writing->out->packs[writing->pack_ordinal];
    bool existed;
    KLP_TRY(
        klp_store_commit(op, KLP_TAKE(&writing->pack), &ref->digest, &ref->size, &existed, err));
    writing->out->stored_bytes += existed ? 0 : ref->size;
    klp_point(op->env, "snapshot.pack-written");
    return KLP_OK;
}

static kelpie_outcome pack_open(const struct kelpie_op *op, struct writing *writing,
                                struct kelpie_error **err)
{
    uint8_t bytes[KLP_OBJECT_HEADER_SIZE];
    struct klp_object_header header =
        klp_object_header_make("pack", KLP_CODEC_ZSTD, writing->log2, (uint8_t)(writing->log2 + 4));
    klp_object_header_encode(&header, bytes);
    KLP_TRY(klp_store_begin(op, writing->snapshots->store, KLP_OBJECT_PACK, &writing->pack, err));
    KLP_TRY(klp_store_write(op, writing->pack, bytes, sizeof(bytes), err));
    writing->pack_offset = sizeof(bytes);
    return pack_list_add(writing, &(struct klp_object_ref){.size = 0}, &writing->pack_ordinal, err);
}

static kelpie_outcome frame_encode(const struct kelpie_op *op, void *arg, unsigned worker,
                                   size_t item, struct kelpie_error **err)
{
    struct writing *writing = arg;
    struct batch_frame *frame = &writing->frames[item];
    (void)op;
    klp_buf_clear(&frame->encoded);
    KLP_REQUIRE(klp_pack_frame_encode(writing->zstd[worker],
                                      writing->plain + item * frame_plain_size(writing),
                                      frame->pages, writing->log2, &frame->encoded, err));
    klp_sha256_once(frame->encoded.data, frame->encoded.size, &frame->digest);
    return KLP_OK;
}

/* Appends an encoded frame to the pack and lets its pages refer to it. */
static kelpie_outcome frame_store(const struct kelpie_op *op, struct writing *writing,
                                  const struct batch_frame *frame, struct kelpie_error **err)
{
    if (writing->pack != NULL && writing->pack_offset + frame->encoded.size > KLP_PACK_SIZE_TARGET)
        KLP_TRY(pack_close(op, writing, err));
    if (writing->pack == NULL)
        KLP_TRY(pack_open(op, writing, err));
    KLP_TRY(klp_store_write(op, writing->pack, frame->encoded.data, frame->encoded.size, err));
    struct klp_frame_ref ref = {.pack = writing->pack_ordinal,
                                .pages = frame->pages,
                                .offset = writing->pack_offset,
                                .size = (uint32_t)frame->encoded.size,
                                .digest = frame->digest};
    if (writing->leaf.frame_count == KLP_LEAF_FRAMES_MAX)
        klp_leaf_compact(
            &writing->leaf); /* frames outnumber pages: some are not referred to any more */
    uint32_t index = klp_leaf_frame_add(&writing->leaf, &ref);
    for (uint32_t slot = 0; slot < frame->pages; slot++)
        writing->leaf.pages[frame->page[slot]] = index * KLP_FRAME_PAGES + slot;
    writing->pack_offset += frame->encoded.size;
    klp_op_bytes(op, frame->encoded.size);
    return KLP_OK;
}

static kelpie_outcome batch_flush(const struct kelpie_op *op, struct writing *writing,
                                  struct kelpie_error **err)
{
    uint32_t count = writing->frame_count;
    writing->frame_count = 0;
    KLP_TRY(klp_op_check(op, "writing a snapshot", err));
    KLP_TRY(klp_pool_run(op, writing->workers, count, frame_encode, writing, err));
    for (uint32_t i = 0; i < count; i++)
        KLP_TRY(frame_store(op, writing, &writing->frames[i], err));
    return KLP_OK;
}

static kelpie_outcome page_store(const struct kelpie_op *op, struct writing *writing,
                                 uint32_t index, const uint8_t *page, struct kelpie_error **err)
{
    struct batch_frame *frame =
        writing->frame_count > 0 ? &writing->frames[writing->frame_count - 1] : NULL;
    if (frame == NULL || frame->pages == KLP_FRAME_PAGES) {
        if (writing->frame_count == BATCH_FRAMES)
            KLP_TRY(batch_flush(op, writing, err));
        frame = &writing->frames[writing->frame_count++];
        frame->pages = 0;
    }
    size_t at = (writing->frame_count - 1) * frame_plain_size(writing) +
                ((size_t)frame->pages << writing->log2);
    memcpy(writing->plain + at, page, (size_t)1 << writing->log2);
    frame->page[frame->pages++] = index;
    return KLP_OK;
}

/* ---- leaves */

static kelpie_outcome leaf_from_parent(struct writing *writing, struct kelpie_error **err)
{
    struct klp_leaf *leaf = &writing->leaf, *parent = &writing->parent_leaf;
    for (uint32_t i = 0; i < parent->frame_count; i++) {
        struct klp_frame_ref frame = parent->frames[i];
        KLP_TRY(parent_ordinal_map(writing, frame.pack, &frame.pack, err));
        klp_leaf_frame_add(leaf, &frame);
    }
    memcpy(leaf->pages, parent->pages, sizeof(leaf->pages[0]) * leaf->page_count);
    return KLP_OK;
}

static kelpie_outcome leaf_begin(const struct kelpie_op *op, struct writing *writing,
                                 uint32_t number, struct kelpie_error **err)
{
    const struct klp_region *region = &writing->out->regions[0];
    uint32_t pages = klp_region_leaf_pages(region, number);
    klp_leaf_init(&writing->leaf, number, pages);
    writing->parent_leaf = writing->base_leaf = (struct klp_leaf){0};
    writing->has_leaf = true;
    writing->decoded_frame = UINT32_MAX;
    if (writing->parent == NULL)
        return KLP_OK;
    KLP_TRY(klp_leaf_source_get(op, writing->parent, number, &writing->parent_leaf, err));
    if (writing->base != NULL)
        KLP_TRY(klp_leaf_source_get(op, writing->base, number, &writing->base_leaf, err));
    return leaf_from_parent(writing, err);
}

static kelpie_outcome leaf_end(const struct kelpie_op *op, struct writing *writing,
                               struct kelpie_error **err)
{
    KLP_TRY(batch_flush(op, writing, err));
    klp_leaf_compact(&writing->leaf);
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf bytes = KLP_BUF_INIT(KLP_LEAF_SIZE_MAX);
    klp_leaf_encode(&writing->leaf, &bytes);
    KLP_REQUIRE(klp_buf_check(&bytes, "a leaf of the page map", err));
    if (bytes.size > 0)
        KLP_TRY(klp_store_write(op, writing->map, bytes.data, bytes.size, err));
    klp_leaf_finish(&writing->leaf);
    klp_leaf_finish(&writing->parent_leaf);
    klp_leaf_finish(&writing->base_leaf);
    writing->has_leaf = false;
    return KLP_OK;
}

/* Makes `number` the leaf at hand; those between are the parent's as they are. */
static kelpie_outcome leaf_reach(const struct kelpie_op *op, struct writing *writing,
                                 uint32_t number, struct kelpie_error **err)
{
    while (writing->next_leaf <= number) {
        if (writing->has_leaf)
            KLP_TRY(leaf_end(op, writing, err));
        KLP_TRY(leaf_begin(op, writing, writing->next_leaf, err));
        writing->next_leaf++;
    }
    return KLP_OK;
}

/* ---- is a touched page what the parent has? */

static kelpie_outcome parent_frame_load(const struct kelpie_op *op, struct writing *writing,
                                        uint32_t index, struct kelpie_error **err)
{
    const struct klp_frame_ref *frame = &writing->parent_leaf.frames[index];
    struct klp_digest digest;
    uint64_t size;
    if (writing->parent_pack_ordinal != frame->pack) {
        klp_store_close(KLP_TAKE(&writing->parent_pack));
        writing->parent_pack_ordinal = UINT32_MAX;
        KLP_TRY(klp_store_open(op, writing->snapshots->store, KLP_OBJECT_PACK,
                               &parent_of(writing)->packs[frame->pack].digest,
                               &writing->parent_pack, &size, err));
        writing->parent_pack_ordinal = frame->pack;
    }
    writing->decoded_frame = UINT32_MAX;
    if (frame->size > frame_stored_size(writing))
        return klp_fail(err, KELPIE_E_CORRUPT, "a frame of the parent is too large");
    KLP_TRY(
        klp_store_read(op, writing->parent_pack, frame->offset, writing->stored, frame->size, err));
    klp_sha256_once(writing->stored, frame->size, &digest);
    if (!klp_digest_equal(&digest, &frame->digest))
        return klp_fail(err, KELPIE_E_CORRUPT, "a pack of the parent is damaged at byte %llu",
                        (unsigned long long)frame->offset);
    KLP_REQUIRE(klp_pack_frame_decode(writing->zstd[0],
                                      (struct klp_bytes){writing->stored, frame->size},
                                      frame->pages, writing->log2, writing->decoded, err));
    writing->decoded_frame = index;
    return KLP_OK;
}

/* The parent's bytes of a page that is not zero there. */
static kelpie_outcome parent_page_get(const struct kelpie_op *op, struct writing *writing,
                                      uint32_t index, const uint8_t **out,
                                      struct kelpie_error **err)
{
    const struct klp_snapshot_parent *parent = &writing->request->parent;
    const struct klp_manifest *base = parent->base_manifest;
    uint64_t offset = ((uint64_t)writing->leaf.number * KLP_LEAF_PAGES + index) << writing->log2;
    bool in_base = base == NULL || klp_page_refs_equal(parent->manifest, &writing->parent_leaf,
                                                       base, &writing->base_leaf, index);
    struct klp_layer *layer = in_base ? parent->base : parent->overlay;
    if (layer != NULL) {
        KLP_REQUIRE(
            klp_layer_read(layer, offset, writing->compared, (size_t)1 << writing->log2, err));
        *out = writing->compared;
        return KLP_OK;
    }
    uint32_t ref = writing->parent_leaf.pages[index];
    if (writing->decoded_frame != ref / KLP_FRAME_PAGES)
        KLP_TRY(parent_frame_load(op, writing, ref / KLP_FRAME_PAGES, err));
    *out = writing->decoded + ((size_t)(ref % KLP_FRAME_PAGES) << writing->log2);
    return KLP_OK;
}

static bool page_is_zero(const uint8_t *page, size_t size)
{
    return page[0] == 0 && memcmp(page, page + 1, size - 1) == 0;
}

static kelpie_outcome page_take(const struct kelpie_op *op, struct writing *writing, uint32_t index,
                                const uint8_t *page, struct kelpie_error **err)
{
    size_t size = (size_t)1 << writing->log2;
    if (page_is_zero(page, size)) {
        writing->leaf.pages[index] = KLP_PAGE_ZERO;
        return KLP_OK;
    }
    if (writing->parent != NULL && writing->parent_leaf.pages[index] != KLP_PAGE_ZERO) {
        const uint8_t *before;
        KLP_TRY(parent_page_get(op, writing, index, &before, err));
        if (memcmp(before, page, size) == 0)
            return KLP_OK;
    }
    return page_store(op, writing, index, page, err);
}

static kelpie_outcome pages_write(const struct kelpie_op *op, struct writing *writing,
                                  struct kelpie_error **err)
{
    KLP_AUTO(layer_cursor)
    struct klp_layer_cursor *cursor = klp_layer_walk(writing->capture->dirty);
    struct klp_run run;
    for (;;) {
        KLP_REQUIRE(klp_layer_next_run(cursor, &run, err));
        if (run.size == 0)
            break;
        for (size_t at = 0; at < run.size; at += (size_t)1 << writing->log2) {
            uint64_t page = (run.offset + at) >> writing->log2;
            KLP_TRY(leaf_reach(op, writing, (uint32_t)(page / KLP_LEAF_PAGES), err));
            KLP_TRY(page_take(op, writing, (uint32_t)(page % KLP_LEAF_PAGES), run.data + at, err));
        }
    }
    KLP_TRY(leaf_reach(op, writing, klp_region_leaves(&writing->out->regions[0]) - 1, err));
    KLP_TRY(leaf_end(op, writing, err));
    if (writing->parent != NULL)
        KLP_TRY(klp_leaf_source_end(op, writing->parent, err));
    if (writing->base != NULL)
        KLP_TRY(klp_leaf_source_end(op, writing->base, err));
    return pack_close(op, writing, err);
}

/* ---- the whole */

static kelpie_outcome parents_open(const struct kelpie_op *op, struct writing *writing,
                                   struct kelpie_error **err)
{
    const struct klp_snapshot_parent *parent = &writing->request->parent;
    const struct klp_region *region = &writing->out->regions[0];
    if (parent->manifest == NULL)
        return KLP_OK;
    if (parent->manifest->region_count != 1 || parent->manifest->regions[0].size != region->size ||
        parent->manifest->regions[0].page_log2 != region->page_log2)
        return klp_fail(err, KELPIE_E_INVALID, "parent %s is of another memory size",
                        parent->manifest->id);
    KLP_TRY(klp_leaf_source_open(op, writing->snapshots, parent->manifest, &writing->parent, err));
    if (parent->base_manifest != NULL)
        KLP_TRY(klp_leaf_source_open(op, writing->snapshots, parent->base_manifest, &writing->base,
                                     err));
    return KLP_OK;
}

static kelpie_outcome memory_write(const struct kelpie_op *op, struct writing *writing,
                                   struct kelpie_error **err)
{
    struct klp_region *region = &writing->out->regions[0];
    uint8_t bytes[KLP_OBJECT_HEADER_SIZE];
    struct klp_object_header header =
        klp_object_header_make("pmap", KLP_CODEC_RAW, writing->log2, (uint8_t)(writing->log2 + 4));
    klp_object_header_encode(&header, bytes);
    KLP_TRY(parents_open(op, writing, err));
    KLP_TRY(klp_store_begin(op, writing->snapshots->store, KLP_OBJECT_MAP, &writing->map, err));
    KLP_TRY(klp_store_write(op, writing->map, bytes, sizeof(bytes), err));
    KLP_TRY(pages_write(op, writing, err));
    bool existed;
    KLP_TRY(klp_store_commit(op, KLP_TAKE(&writing->map), &region->map.digest, &region->map.size,
                             &existed, err));
    writing->out->stored_bytes += existed ? 0 : region->map.size;
    klp_op_bytes(op, existed ? 0 : region->map.size);
    klp_point(op->env, "snapshot.map-written");
    return KLP_OK;
}

static kelpie_outcome device_state_write(const struct kelpie_op *op, struct writing *writing,
                                         struct kelpie_error **err)
{
    const struct klp_buf *state = &writing->capture->device_state;
    struct klp_object_ref *ref = &writing->out->device_state;
    KLP_AUTO(store_writer) struct klp_store_writer *object = NULL;
    uint8_t bytes[KLP_OBJECT_HEADER_SIZE];
    struct klp_object_header header =
        klp_object_header_make("stat", KLP_CODEC_RAW, writing->log2, (uint8_t)(writing->log2 + 4));
    klp_object_header_encode(&header, bytes);
    KLP_TRY(klp_store_begin(op, writing->snapshots->store, KLP_OBJECT_STATE, &object, err));
    KLP_TRY(klp_store_write(op, object, bytes, sizeof(bytes), err));
    KLP_TRY(klp_store_write(op, object, state->data, state->size, err));
    bool existed;
    KLP_TRY(klp_store_commit(op, KLP_TAKE(&object), &ref->digest, &ref->size, &existed, err));
    writing->out->stored_bytes += existed ? 0 : ref->size;
    klp_op_bytes(op, existed ? 0 : ref->size);
    return KLP_OK;
}

static kelpie_outcome manifest_begin(const struct kelpie_op *op, const struct klp_capture *capture,
                                     const struct klp_snapshot_request *request,
                                     struct klp_manifest *out, struct kelpie_error **err)
{
    *out = (struct klp_manifest){.kind = request->kind,
                                 .seq = request->seq,
                                 .epoch = request->epoch,
                                 .created_wall_ns = klp_wall_ns(op->env),
                                 .parent = request->parent.digest,
                                 .template_ = request->template_,
                                 .machine = capture->machine,
                                 .region_count = 1};
    klp_random_id(op->env, out->id);
    klp_text_copy(out->label, sizeof(out->label), request->label != NULL ? request->label : "");
    memcpy(out->generation, request->generation, sizeof(out->generation));
    uint8_t log2 = klp_layer_page_log2(capture->dirty);
    out->regions[0] = (struct klp_region){.size = klp_layer_size(capture->dirty),
                                          .page_log2 = log2,
                                          .frame_log2 = (uint8_t)(log2 + 4)};
    if (request->env != NULL)
        out->env = klp_texts_copy(request->env);
    KLP_REQUIRE(klp_identity_copy(request->identity, &out->agent, err));
    return KLP_OK;
}

kelpie_outcome klp_snapshot_write(const struct kelpie_op *op, const struct klp_snapshots *snapshots,
                                  const struct klp_capture *capture,
                                  const struct klp_snapshot_request *request,
                                  struct klp_manifest *out, struct kelpie_error **err)
{
    struct klp_manifest manifest;
    kelpie_outcome outcome = manifest_begin(op, capture, request, &manifest, err);
    if (kelpie_is_ok(outcome)) {
        __attribute__((cleanup(writing_finish))) struct writing writing;
        writing_init(&writing, snapshots, capture, request, &manifest);
        outcome = memory_write(op, &writing, err);
        if (kelpie_is_ok(outcome))
            outcome = device_state_write(op, &writing, err);
    }
    if (!kelpie_is_ok(outcome)) {
        klp_manifest_finish(&manifest);
        return klp_wrap(err, outcome, "cannot write a snapshot of '%s'", request->identity->name);
    }
    *out = manifest;
    return KLP_OK;
}
