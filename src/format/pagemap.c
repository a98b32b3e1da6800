/* SPDX-License-Identifier: Apache-2.0 */
/* Page map leaves in memory: making, changing and comparing them. Their bytes: pagemap_code.c. */
#include <string.h>

#include "format/pagemap.h"

void klp_leaf_init(struct klp_leaf *leaf, uint32_t number, uint32_t page_count)
{
    KLP_ASSERT(page_count > 0 && page_count <= KLP_LEAF_PAGES);
    *leaf = (struct klp_leaf){.number = number, .page_count = page_count};
    leaf->pages = klp_mem_alloc_raw(page_count * sizeof(*leaf->pages));
    memset(leaf->pages, 0xFF, page_count * sizeof(*leaf->pages)); /* KLP_PAGE_ZERO */
}

void klp_leaf_finish(struct klp_leaf *leaf)
{
    klp_mem_free(leaf->frames);
    klp_mem_free(leaf->pages);
    *leaf = (struct klp_leaf){0};
}

uint32_t klp_leaf_frame_add(struct klp_leaf *leaf, const struct klp_frame_ref *frame)
{
    KLP_ASSERT(frame->pages >= 1 && frame->pages <= KLP_FRAME_PAGES);
    KLP_ASSERT(leaf->frame_count < KLP_LEAF_FRAMES_MAX);
    if (leaf->frame_count == leaf->frame_capacity) {
        uint32_t capacity = leaf->frame_capacity == 0 ? 64 : 2 * leaf->frame_capacity;
        struct klp_frame_ref *frames = klp_mem_alloc(capacity * sizeof(*frames));
        if (leaf->frame_count > 0)
            memcpy(frames, leaf->frames, leaf->frame_count * sizeof(*frames));
        klp_mem_free(leaf->frames);
        leaf->frames = frames;
        leaf->frame_capacity = capacity;
    }
    leaf->frames[leaf->frame_count] = *frame;
    return leaf->frame_count++;
}

void klp_leaf_compact(struct klp_leaf *leaf)
{
    if (leaf->frame_count == 0)
        return;
    KLP_AUTO(memory)
    uint32_t *renumber = klp_mem_alloc(leaf->frame_count * sizeof(*renumber)); /* index + 1 */
    struct klp_frame_ref *frames = klp_mem_alloc(leaf->frame_count * sizeof(*frames));
    uint32_t used = 0;
    for (uint32_t i = 0; i < leaf->page_count; i++) {
        if (leaf->pages[i] == KLP_PAGE_ZERO)
            continue;
        uint32_t frame = leaf->pages[i] / KLP_FRAME_PAGES;
        KLP_ASSERT(frame < leaf->frame_count);
        if (renumber[frame] == 0) {
            frames[used] = leaf->frames[frame];
            renumber[frame] = ++used;
        }
        uint32_t slot = leaf->pages[i] % KLP_FRAME_PAGES;
        leaf->pages[i] = (renumber[frame] - 1) * KLP_FRAME_PAGES + slot;
    }
    klp_mem_free(leaf->frames);
    leaf->frames = frames;
    leaf->frame_capacity = leaf->frame_count;
    leaf->frame_count = used;
}

bool klp_leaf_page_equal(const struct klp_leaf *a, const struct klp_leaf *b, uint32_t index)
{
    KLP_ASSERT(index < a->page_count && index < b->page_count);
    uint32_t in_a = a->pages[index], in_b = b->pages[index];
    if (in_a == KLP_PAGE_ZERO || in_b == KLP_PAGE_ZERO)
        return in_a == in_b;
    const struct klp_frame_ref *frame_a = &a->frames[in_a / KLP_FRAME_PAGES];
    const struct klp_frame_ref *frame_b = &b->frames[in_b / KLP_FRAME_PAGES];
    return in_a % KLP_FRAME_PAGES == in_b % KLP_FRAME_PAGES && frame_a->pack == frame_b->pack &&
           frame_a->offset == frame_b->offset && frame_a->size == frame_b->size &&
           klp_digest_equal(&frame_a->digest, &frame_b->digest);
}

bool klp_leaf_is_zero(const struct klp_leaf *leaf)
{
    for (uint32_t i = 0; i < leaf->page_count; i++) {
        if (leaf->pages[i] != KLP_PAGE_ZERO)
            return false;
    }
    return true;
}
