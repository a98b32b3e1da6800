/* SPDX-License-Identifier: Apache-2.0 */
/* Leaves of a page map as bytes (layout: pagemap.h). Decoding is linear in pages and frames and
 * allocates twice a leaf, because it lies on the way of every restore. Neither the order of the
 * leaves of a map nor the packs are looked at here. */
#include <string.h>

#include "base/buf.h"
#include "format/pack.h"
#include "format/pagemap.h"

#define LEAF_HEADER_SIZE 8u /* number, length */
#define FRAME_ENTRY_SIZE 48u
#define FRAME_SIZE_MIN 24u /* a frame header and one stored byte, padded */
#define POSITION_NONE UINT32_MAX

_Static_assert(KLP_PACK_SIZE_MAX <= UINT32_MAX, "offsets in a pack are written as u32");
_Static_assert(sizeof(((struct klp_frame_ref *)0)->digest) == KLP_DIGEST_BYTES, "no padding");

enum run_kind { RUN_ZERO = 0, RUN_DATA = 1 };

struct run {
    uint32_t kind, length; /* pages */
    uint32_t
        position; /* data: frame * KLP_FRAME_PAGES + slot of its first page, canonical numbers */
};

/* ---- writing */

static uint32_t uv_encode(uint32_t value, uint8_t out[5])
{
    uint32_t size = 0;
    while (value >= 0x80) {
        out[size++] = (uint8_t)(value | 0x80);
        value >>= 7;
    }
    out[size++] = (uint8_t)value;
    return size;
}

static void uv_append(struct klp_buf *out, uint32_t value)
{
    uint8_t bytes[5];
    klp_buf_append(out, bytes, uv_encode(value, bytes));
}

/* The order in which frames are written. */
struct frame_order {
    uint32_t count;
    uint32_t *places; /* of leaf->frames: canonical number + 1, 0 = unused; owned */
    uint32_t *frames; /* the inverse: index into leaf->frames by canonical number; owned */
};

static void frame_order_init(struct frame_order *order, const struct klp_leaf *leaf)
{
    *order = (struct frame_order){0};
    order->places = klp_mem_alloc((leaf->frame_count + 1) * sizeof(*order->places));
    order->frames = klp_mem_alloc((leaf->frame_count + 1) * sizeof(*order->frames));
    for (uint32_t i = 0; i < leaf->page_count; i++) {
        if (leaf->pages[i] == KLP_PAGE_ZERO)
            continue;
        uint32_t frame = leaf->pages[i] / KLP_FRAME_PAGES;
        KLP_ASSERT(frame < leaf->frame_count);
        KLP_ASSERT(leaf->pages[i] % KLP_FRAME_PAGES < leaf->frames[frame].pages);
        if (order->places[frame] != 0)
            continue;
        order->frames[order->count] = frame;
        order->places[frame] = ++order->count;
    }
}

static void frame_order_finish(struct frame_order *order)
{
    klp_mem_free(order->places);
    klp_mem_free(order->frames);
}

static void frame_append(struct klp_buf *out, const struct klp_frame_ref *frame)
{
    KLP_ASSERT(frame->offset <= KLP_PACK_SIZE_MAX);
    klp_buf_append_u32(out, frame->pack);
    klp_buf_append_u32(out, (uint32_t)frame->offset);
    klp_buf_append_u32(out, frame->size);
    klp_buf_append_u32(out, frame->pages); /* u8 and three zero bytes */
    klp_buf_append(out, frame->digest.bytes, KLP_DIGEST_BYTES);
}

static uint32_t page_position(const struct klp_leaf *leaf, const struct frame_order *order,
                              uint32_t page)
{
    uint32_t place = order->places[leaf->pages[page] / KLP_FRAME_PAGES] - 1;
    return place * KLP_FRAME_PAGES + leaf->pages[page] % KLP_FRAME_PAGES;
}

/* Where a data run goes on; frame_pages is the count of the position's own frame. */
static uint32_t position_next(uint32_t position, uint32_t frame_pages)
{
    uint32_t slot = position % KLP_FRAME_PAGES + 1;
    return slot < frame_pages ? position + 1 : (position / KLP_FRAME_PAGES + 1) * KLP_FRAME_PAGES;
}

/* The longest run that begins at page `at`. */
static struct run run_find(const struct klp_leaf *leaf, const struct frame_order *order,
                           uint32_t at)
{
    struct run run = {.kind = RUN_ZERO};
    if (leaf->pages[at] == KLP_PAGE_ZERO) {
        uint32_t end = at, page_count = leaf->page_count;
        const uint32_t *pages = leaf->pages;
        while (end < page_count && pages[end] == KLP_PAGE_ZERO)
            end++;
        run.length = end - at;
        return run;
    }
    run.kind = RUN_DATA;
    run.position = page_position(leaf, order, at);
    uint32_t expected = run.position;
    while (at + run.length < leaf->page_count && leaf->pages[at + run.length] != KLP_PAGE_ZERO &&
           page_position(leaf, order, at + run.length) == expected) {
        uint32_t frame = order->frames[expected / KLP_FRAME_PAGES];
        expected = position_next(expected, leaf->frames[frame].pages);
        run.length++;
    }
    return run;
}

static void runs_append(struct klp_buf *out, const struct klp_leaf *leaf,
                        const struct frame_order *order)
{
    uint32_t count = 0;
    for (uint32_t at = 0; at < leaf->page_count; at += run_find(leaf, order, at).length)
        count++;
    uv_append(out, count);
    for (uint32_t at = 0; at < leaf->page_count;) {
        struct run run = run_find(leaf, order, at);
        uv_append(out, run.kind);
        uv_append(out, run.length);
        if (run.kind == RUN_DATA) {
            uv_append(out, run.position / KLP_FRAME_PAGES);
            uv_append(out, run.position % KLP_FRAME_PAGES);
        }
        at += run.length;
    }
}

static void length_patch(struct klp_buf *out, size_t start)
{
    if (out->over_limit || out->no_memory)
        return;
    size_t length = out->size - start - LEAF_HEADER_SIZE;
    KLP_ASSERT(length <= KLP_LEAF_SIZE_MAX - LEAF_HEADER_SIZE);
    for (unsigned i = 0; i < 4; i++)
        out->data[start + 4 + i] = (uint8_t)(length >> (8 * i));
}

void klp_leaf_encode(const struct klp_leaf *leaf, struct klp_buf *out)
{
    if (klp_leaf_is_zero(leaf))
        return;
    struct frame_order order;
    frame_order_init(&order, leaf);
    size_t start = out->size;
    klp_buf_append_u32(out, leaf->number);
    klp_buf_append_u32(out, 0); /* length, known at the end */
    klp_buf_append_u32(out, order.count);
    for (uint32_t i = 0; i < order.count; i++)
        frame_append(out, &leaf->frames[order.frames[i]]);
    runs_append(out, leaf, &order);
    length_patch(out, start);
    frame_order_finish(&order);
}

/* ---- reading */

struct parse {
    struct klp_reader reader;
    uint32_t pack_count;
    struct klp_leaf *leaf;
    struct kelpie_error **err;
};

static bool damaged(const struct parse *parse, const char *why)
{
    return klp_refuse(parse->err, KELPIE_E_CORRUPT, "page map leaf %u: %s", parse->leaf->number,
                      why);
}

static uint32_t u32_at(const uint8_t *bytes)
{
    return (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 |
           (uint32_t)bytes[3] << 24;
}

/* A number of at most 21 bits (nothing in a leaf is larger) in its shortest form; fails the reader.
 */
static uint32_t uv_read(struct klp_reader *reader)
{
    uint32_t value = 0;
    for (unsigned i = 0; i < 3; i++) {
        uint8_t byte = klp_read_u8(reader);
        value |= (uint32_t)(byte & 0x7F) << (7 * i);
        if ((byte & 0x80) == 0) {
            if (byte == 0 && i > 0)
                reader->failed = true;
            return value;
        }
    }
    reader->failed = true;
    return 0;
}

/* Bounds that hold for every page size; the frame's own check needs the pack. */
static bool frame_is_sound(const struct klp_frame_ref *frame, uint32_t pack_count)
{
    uint32_t size_max = KLP_PACK_FRAME_HEADER_SIZE + (frame->pages << KLP_PAGE_LOG2_MAX);
    return frame->pages >= 1 && frame->pages <= KLP_FRAME_PAGES && frame->pack < pack_count &&
           frame->offset >= KLP_OBJECT_HEADER_SIZE && frame->offset % 8 == 0 &&
           frame->size >= FRAME_SIZE_MIN && frame->size <= size_max && frame->size % 8 == 0 &&
           frame->offset + frame->size <= KLP_PACK_SIZE_MAX;
}

static bool frames_read(struct parse *parse)
{
    struct klp_leaf *leaf = parse->leaf;
    uint32_t count = klp_read_u32(&parse->reader);
    if (parse->reader.failed || count == 0 || count > leaf->page_count)
        return damaged(parse, "frame count");
    const uint8_t *table = klp_read_bytes(&parse->reader, (size_t)count * FRAME_ENTRY_SIZE);
    if (table == NULL)
        return damaged(parse, "frame table is cut off");
    leaf->frames = klp_mem_try(count * sizeof(*leaf->frames));
    if (leaf->frames == NULL)
        return klp_refuse(parse->err, KELPIE_E_NO_MEMORY, "no memory for %u frames of a page map",
                          count);
    leaf->frame_capacity = leaf->frame_count = count;
    for (uint32_t i = 0; i < count; i++, table += FRAME_ENTRY_SIZE) {
        struct klp_frame_ref *frame = &leaf->frames[i];
        frame->pack = u32_at(table);
        frame->offset = u32_at(table + 4);
        frame->size = u32_at(table + 8);
        frame->pages = u32_at(table + 12); /* with its zero bytes: too large unless they are zero */
        memcpy(frame->digest.bytes, table + 16, KLP_DIGEST_BYTES);
        if (!frame_is_sound(frame, parse->pack_count))
            return damaged(parse, "frame entry out of bounds");
    }
    return true;
}

/* Writes the places of one data run. `used` counts the frames seen so far: a frame not seen yet
 * must be the next one. Returns the position the run would go on at, POSITION_NONE when it is
 * malformed. */
static uint32_t run_place(struct klp_leaf *leaf, uint32_t at, struct run run, uint32_t *used)
{
    uint32_t frame = run.position / KLP_FRAME_PAGES, slot = run.position % KLP_FRAME_PAGES;
    uint32_t *pages = leaf->pages + at;
    while (run.length > 0) {
        if (frame >= leaf->frame_count || frame > *used)
            return POSITION_NONE;
        uint32_t frame_pages = leaf->frames[frame].pages;
        if (slot >= frame_pages)
            return POSITION_NONE;
        if (frame == *used)
            (*used)++;
        uint32_t part = frame_pages - slot;
        if (part > run.length)
            part = run.length;
        for (uint32_t i = 0; i < part; i++)
            *pages++ = frame * KLP_FRAME_PAGES + slot + i;
        run.length -= part;
        slot += part;
        if (slot == frame_pages) {
            frame++;
            slot = 0;
        }
    }
    return frame * KLP_FRAME_PAGES + slot;
}

/* False with the reader failed when the bytes are no run. */
static bool run_read(struct klp_reader *reader, struct run *out)
{
    *out = (struct run){.kind = uv_read(reader)};
    out->length = uv_read(reader);
    if (out->kind == RUN_DATA) {
        uint32_t frame = uv_read(reader), slot = uv_read(reader);
        if (frame >= KLP_LEAF_FRAMES_MAX || slot >= KLP_FRAME_PAGES)
            return false;
        out->position = frame * KLP_FRAME_PAGES + slot;
    }
    return !reader->failed && out->kind <= RUN_DATA && out->length > 0;
}

static bool runs_read(struct parse *parse)
{
    struct klp_leaf *leaf = parse->leaf;
    uint32_t count = uv_read(&parse->reader), at = 0, used = 0;
    uint32_t last_kind = UINT32_MAX, next_position = POSITION_NONE;
    for (uint32_t i = 0; i < count; i++) {
        struct run run;
        if (!run_read(&parse->reader, &run) || run.length > leaf->page_count - at)
            return damaged(parse, "malformed run");
        if (run.kind == last_kind && (run.kind == RUN_ZERO || run.position == next_position))
            return damaged(parse, "a run that should have been one with the run before");
        last_kind = run.kind;
        if (run.kind == RUN_DATA) {
            next_position = run_place(leaf, at, run, &used);
            if (next_position == POSITION_NONE)
                return damaged(parse,
                               "a run names a page that no frame holds, or frames out of order");
        }
        at += run.length;
    }
    if (parse->reader.failed || at != leaf->page_count)
        return damaged(parse, "its runs do not cover it");
    if (used != leaf->frame_count)
        return damaged(parse, "a frame that no page uses");
    return true;
}

/* Pages the leaf covers; 0 when the region does not reach it. */
static uint32_t leaf_pages(uint32_t number, uint64_t region_pages)
{
    uint64_t first = (uint64_t)number * KLP_LEAF_PAGES;
    if (first >= region_pages)
        return 0;
    return region_pages - first < KLP_LEAF_PAGES ? (uint32_t)(region_pages - first)
                                                 : KLP_LEAF_PAGES;
}

static bool body_read(struct parse *parse)
{
    struct klp_leaf *leaf = parse->leaf;
    leaf->pages = klp_mem_try_raw(leaf->page_count * sizeof(*leaf->pages));
    if (leaf->pages == NULL)
        return klp_refuse(parse->err, KELPIE_E_NO_MEMORY, "no memory for a page map leaf");
    memset(leaf->pages, 0xFF, leaf->page_count * sizeof(*leaf->pages));
    KLP_CHECK(frames_read(parse));
    KLP_CHECK(runs_read(parse));
    if (klp_read_left(&parse->reader) != 0)
        return damaged(parse, "bytes behind its runs");
    return true;
}

bool klp_leaf_decode(struct klp_bytes bytes, uint64_t region_pages, uint32_t pack_count,
                     struct klp_leaf *out, size_t *out_size, size_t *out_needed,
                     struct kelpie_error **err)
{
    *out = (struct klp_leaf){0};
    *out_size = 0;
    *out_needed = LEAF_HEADER_SIZE;
    if (bytes.size < LEAF_HEADER_SIZE)
        return true;
    struct parse parse = {.pack_count = pack_count, .leaf = out, .err = err};
    out->number = u32_at(bytes.data);
    uint32_t length = u32_at(bytes.data + 4);
    out->page_count = leaf_pages(out->number, region_pages);
    if (out->page_count == 0)
        return damaged(&parse, "lies behind the end of its region");
    if (length > KLP_LEAF_SIZE_MAX - LEAF_HEADER_SIZE)
        return damaged(&parse, "longer than a leaf may be");
    *out_needed = LEAF_HEADER_SIZE + length;
    if (bytes.size < *out_needed) {
        *out = (struct klp_leaf){0};
        return true;
    }
    parse.reader = (struct klp_reader){.data = bytes.data + LEAF_HEADER_SIZE, .size = length};
    if (!body_read(&parse)) {
        klp_leaf_finish(out);
        return false;
    }
    *out_size = *out_needed;
    return true;
}
