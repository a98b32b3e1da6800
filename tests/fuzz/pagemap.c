/* SPDX-License-Identifier: Apache-2.0 */
/* Leaves of a page map. Input: two bytes for the pages of the region, one for the number of packs,
 * then leaves back to back. What decodes encodes to the very same bytes. */
#include "fuzz.h"

#include "format/pagemap.h"

static void leaf_check(struct klp_leaf *leaf, struct klp_bytes bytes)
{
    struct klp_buf again KLP_AUTO(buf) = KLP_BUF_INIT(KLP_LEAF_SIZE_MAX);
    for (uint32_t i = 0; i < leaf->page_count; i++) {
        uint32_t page = leaf->pages[i];
        FUZZ_CHECK(page == KLP_PAGE_ZERO || page / KLP_FRAME_PAGES < leaf->frame_count);
        FUZZ_CHECK(page == KLP_PAGE_ZERO ||
                   page % KLP_FRAME_PAGES < leaf->frames[page / KLP_FRAME_PAGES].pages);
        FUZZ_CHECK(klp_leaf_page_equal(leaf, leaf, i));
    }
    FUZZ_CHECK(!klp_leaf_is_zero(leaf));
    klp_leaf_encode(leaf, &again);
    FUZZ_CHECK(fuzz_equal(klp_buf_view(&again), bytes));
    klp_leaf_compact(leaf); /* it is, already */
    klp_buf_clear(&again);
    klp_leaf_encode(leaf, &again);
    FUZZ_CHECK(fuzz_equal(klp_buf_view(&again), bytes));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 3)
        return 0;
    uint64_t region_pages = (uint64_t)(data[0] | data[1] << 8) + 1;
    uint32_t pack_count = data[2];
    data += 3;
    size -= 3;
    for (;;) {
        struct klp_leaf leaf;
        struct kelpie_error *err = NULL;
        size_t used = 99, needed = 99;
        if (!klp_leaf_decode((struct klp_bytes){data, size}, region_pages, pack_count, &leaf, &used,
                             &needed, &err)) {
            fuzz_refused(err, KELPIE_E_CORRUPT);
            return 0;
        }
        FUZZ_CHECK(used == 0 ? needed > size && needed <= KLP_LEAF_SIZE_MAX : needed == used);
        if (used == 0)
            return 0;
        leaf_check(&leaf, (struct klp_bytes){data, used});
        klp_leaf_finish(&leaf);
        data += used;
        size -= used;
    }
}
