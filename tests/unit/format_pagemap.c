/* SPDX-License-Identifier: Apache-2.0 */
/* Page map leaves: the one encoding of each, what a decoder refuses, and changing leaves in memory.
 */
#include "format_kit.h"

#include "format/pack.h"
#include "format/pagemap.h"

#define PACKS 3
#define REGION (4u * KLP_LEAF_PAGES)

/* Leaf 0 of a region of 8 pages: 1 zero page, 3 pages of a frame, 2 pages of the next, 2 zero
 * pages. */
#define SMALL_HEX                                                                                  \
    "00000000 6d000000 02000000"                                                                   \
    "01000000 40000000 00010000 03 000000"                                                         \
    "1111111111111111111111111111111111111111111111111111111111111111"                             \
    "02000000 40010000 80000000 04 000000"                                                         \
    "2222222222222222222222222222222222222222222222222222222222222222"                             \
    "03 00 01 01 05 00 00 00 02"

static struct klp_frame_ref frame(uint32_t pack, uint64_t offset, uint32_t size, uint32_t pages,
                                  uint8_t fill)
{
    struct klp_frame_ref ref = {.pack = pack, .pages = pages, .offset = offset, .size = size};
    memset(ref.digest.bytes, fill, sizeof(ref.digest.bytes));
    return ref;
}

static void small_leaf(struct klp_leaf *leaf)
{
    klp_leaf_init(leaf, 0, 8);
    struct klp_frame_ref one = frame(1, 0x40, 0x100, 3, 0x11);
    struct klp_frame_ref two = frame(2, 0x140, 0x80, 4, 0x22);
    assert_int_equal(klp_leaf_frame_add(leaf, &one), 0);
    assert_int_equal(klp_leaf_frame_add(leaf, &two), 1);
    for (uint32_t i = 0; i < 3; i++)
        leaf->pages[1 + i] = i;
    leaf->pages[4] = KLP_FRAME_PAGES;
    leaf->pages[5] = KLP_FRAME_PAGES + 1;
}

static bool decode(struct klp_bytes bytes, uint64_t region_pages, struct klp_leaf *out,
                   size_t *out_size, size_t *out_needed, struct kelpie_error **err)
{
    uint8_t *copy = kit_copy(bytes.data, bytes.size);
    bool ok = klp_leaf_decode((struct klp_bytes){copy, bytes.size}, region_pages, PACKS, out,
                              out_size, out_needed, err);
    free(copy);
    return ok;
}

/* Of bytes that hold exactly one leaf. */
static void decode_whole(const struct klp_buf *bytes, uint64_t region_pages, struct klp_leaf *out)
{
    size_t size, needed;
    struct kelpie_error *err = NULL;
    bool ok = decode(klp_buf_view(bytes), region_pages, out, &size, &needed, &err);
    if (!ok)
        fail_msg("%s", kelpie_error_message(err));
    assert_int_equal(size, bytes->size);
    assert_int_equal(needed, bytes->size);
}

static void assert_corrupt(const struct klp_buf *bytes, uint64_t region_pages, const char *piece)
{
    struct klp_leaf leaf;
    size_t size, needed;
    KIT_REFUSED(decode(klp_buf_view(bytes), region_pages, &leaf, &size, &needed, &err), false,
                KELPIE_E_CORRUPT, piece);
}

static void assert_hex_corrupt(const char *hex, uint64_t region_pages, const char *piece)
{
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(1 << 20);
    kit_hex(&bytes, hex);
    assert_corrupt(&bytes, region_pages, piece);
}

static void assert_same(const struct klp_leaf *a, const struct klp_leaf *b)
{
    assert_int_equal(a->number, b->number);
    assert_int_equal(a->page_count, b->page_count);
    for (uint32_t i = 0; i < a->page_count; i++)
        assert_true(klp_leaf_page_equal(a, b, i));
}

static void test_format_pagemap__small_leaf_byte_for_byte(void **state)
{
    (void)state;
    struct klp_leaf leaf, again;
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(KLP_LEAF_SIZE_MAX);
    small_leaf(&leaf);
    klp_leaf_encode(&leaf, &bytes);
    kit_assert_hex(&bytes, SMALL_HEX);
    decode_whole(&bytes, 8, &again);
    assert_int_equal(again.frame_count, 2);
    assert_int_equal(again.frames[1].offset, 0x140);
    assert_int_equal(again.pages[0], KLP_PAGE_ZERO);
    assert_int_equal(again.pages[3], 2);
    assert_int_equal(again.pages[4], KLP_FRAME_PAGES);
    assert_int_equal(again.pages[7], KLP_PAGE_ZERO);
    assert_same(&leaf, &again);
    klp_leaf_finish(&leaf);
    klp_leaf_finish(&again);
}

static void test_format_pagemap__zero_leaf_is_left_out(void **state)
{
    (void)state;
    struct klp_leaf leaf;
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(KLP_LEAF_SIZE_MAX);
    klp_leaf_init(&leaf, 3, KLP_LEAF_PAGES);
    assert_true(klp_leaf_is_zero(&leaf));
    klp_leaf_encode(&leaf, &bytes);
    assert_int_equal(bytes.size, 0);
    struct klp_frame_ref one = frame(0, 64, 64, 1, 1);
    klp_leaf_frame_add(&leaf, &one); /* a frame alone is no page */
    assert_true(klp_leaf_is_zero(&leaf));
    klp_leaf_encode(&leaf, &bytes);
    assert_int_equal(bytes.size, 0);
    leaf.pages[KLP_LEAF_PAGES - 1] = 0;
    assert_false(klp_leaf_is_zero(&leaf));
    klp_leaf_finish(&leaf);
    assert_hex_corrupt("00000000 07000000 00000000 01 00 08", 8, "frame count");
}

/* Deterministic and different for every seed. */
static uint32_t draw(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*seed >> 33);
}

static void random_leaf(struct klp_leaf *leaf, uint64_t seed, uint32_t page_count)
{
    klp_leaf_init(leaf, seed % 4, page_count);
    uint32_t frames = 1 + draw(&seed) % 200;
    for (uint32_t i = 0; i < frames; i++) {
        uint32_t pages = 1 + draw(&seed) % KLP_FRAME_PAGES;
        struct klp_frame_ref one =
            frame(draw(&seed) % PACKS, 64 + 8 * (draw(&seed) % 1000), 24, pages, (uint8_t)i);
        klp_leaf_frame_add(leaf, &one);
    }
    for (uint32_t i = 0; i < page_count;) {
        uint32_t run = 1 + draw(&seed) % 60, at = draw(&seed) % (frames + 1), slot = 0;
        for (; run > 0 && i < page_count; run--, i++) {
            if (at == frames)
                continue; /* zero */
            leaf->pages[i] = at * KLP_FRAME_PAGES + slot;
            if (++slot == leaf->frames[at].pages) {
                slot = 0;
                at++;
            }
        }
    }
}

static void test_format_pagemap__random_leaves_come_back(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 200; seed++) {
        struct klp_leaf leaf, again;
        struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(KLP_LEAF_SIZE_MAX);
        struct klp_buf twice KLP_AUTO(buf) = KLP_BUF_INIT(KLP_LEAF_SIZE_MAX);
        uint32_t page_count =
            seed % 4 == 3 ? 1 + (uint32_t)seed * 37 % KLP_LEAF_PAGES : KLP_LEAF_PAGES;
        random_leaf(&leaf, seed, page_count);
        klp_leaf_encode(&leaf, &bytes);
        if (bytes.size != 0) {
            decode_whole(&bytes, leaf.number * (uint64_t)KLP_LEAF_PAGES + page_count, &again);
            assert_same(&leaf, &again);
            klp_leaf_encode(&again, &twice);
            assert_int_equal(twice.size, bytes.size);
            assert_memory_equal(twice.data, bytes.data, bytes.size);
            klp_leaf_finish(&again);
        }
        klp_leaf_compact(&leaf);
        klp_buf_clear(&twice);
        klp_leaf_encode(&leaf, &twice);
        assert_int_equal(twice.size, bytes.size);
        if (bytes.size != 0)
            assert_memory_equal(twice.data, bytes.data, bytes.size);
        klp_leaf_finish(&leaf);
    }
}

static void test_format_pagemap__largest_leaf_fits(void **state)
{
    (void)state;
    struct klp_leaf leaf, again;
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(KLP_LEAF_SIZE_MAX);
    klp_leaf_init(&leaf, 0, KLP_LEAF_PAGES);
    for (uint32_t i = 0; i < KLP_LEAF_PAGES;
         i++) { /* every page its own frame, and its last slot */
        struct klp_frame_ref one = frame(i % PACKS, 64 + 24 * i, 24, KLP_FRAME_PAGES, (uint8_t)i);
        leaf.pages[i] = klp_leaf_frame_add(&leaf, &one) * KLP_FRAME_PAGES + KLP_FRAME_PAGES - 2;
    }
    klp_leaf_encode(&leaf, &bytes);
    assert_true(klp_buf_check(&bytes, "leaf", NULL));
    assert_true(bytes.size <= KLP_LEAF_SIZE_MAX);
    decode_whole(&bytes, KLP_LEAF_PAGES, &again);
    assert_same(&leaf, &again);
    klp_leaf_finish(&again);
    klp_leaf_finish(&leaf);
}

static void test_format_pagemap__encoding_past_a_ceiling_is_told(void **state)
{
    (void)state;
    struct klp_leaf leaf;
    small_leaf(&leaf);
    for (size_t max = 0; max < 8 + 0x6d; max++) {
        struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(max);
        klp_leaf_encode(&leaf, &bytes);
        assert_false(klp_buf_check(&bytes, "leaf", NULL));
    }
    klp_leaf_finish(&leaf);
}

static void test_format_pagemap__a_stream_asks_for_more(void **state)
{
    (void)state;
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(1 << 20);
    kit_hex(&bytes, SMALL_HEX);
    for (size_t size = 0; size < bytes.size; size++) {
        struct klp_leaf leaf;
        size_t out_size = 99, needed = 99;
        struct klp_bytes part = {bytes.data, size};
        assert_true(decode(part, 8, &leaf, &out_size, &needed, NULL));
        assert_int_equal(out_size, 0);
        assert_int_equal(needed, size < 8 ? 8 : bytes.size);
        assert_null(leaf.pages);
        klp_leaf_finish(&leaf); /* of nothing: harmless */
    }
    klp_buf_append_text(&bytes, "the next leaf");
    struct klp_leaf leaf;
    size_t out_size, needed;
    assert_true(decode(klp_buf_view(&bytes), 8, &leaf, &out_size, &needed, NULL));
    assert_int_equal(out_size, 8 + 0x6d);
    klp_leaf_finish(&leaf);
}

static void test_format_pagemap__bounds_before_anything(void **state)
{
    (void)state;
    assert_hex_corrupt("00000000 01000000 00", 0, "end of its region");
    assert_hex_corrupt("04000000 01000000 00", REGION, "end of its region");
    assert_hex_corrupt("ffffffff 01000000 00", REGION, "end of its region");
    assert_hex_corrupt("00000000 f9ff3f00", REGION, "longer than a leaf");
    assert_hex_corrupt("00000000 ffffffff", REGION, "longer than a leaf");
    assert_hex_corrupt("00000000 00000000", 8, "frame count");
    assert_hex_corrupt("00000000 04000000 ffffffff", 8, "frame count");
    assert_hex_corrupt("00000000 04000000 09000000", 8, "frame count"); /* more than pages */
    assert_hex_corrupt("00000000 04000000 08000000", 8, "cut off");
}

/* The small leaf with one byte replaced. */
static void assert_patched_corrupt(size_t at, uint8_t value, const char *piece)
{
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(1 << 20);
    kit_hex(&bytes, SMALL_HEX);
    assert_true(at < bytes.size);
    bytes.data[at] = value;
    assert_corrupt(&bytes, 8, piece);
}

static void test_format_pagemap__frame_entries_are_checked(void **state)
{
    (void)state;
    const size_t entry = 12;
    const char *why = "frame entry";
    assert_patched_corrupt(entry, PACKS, why);     /* pack ordinal */
    assert_patched_corrupt(entry + 4, 0x38, why);  /* within the pack's header */
    assert_patched_corrupt(entry + 4, 0x41, why);  /* not on 8 */
    assert_patched_corrupt(entry + 7, 0x04, why);  /* behind the largest pack */
    assert_patched_corrupt(entry + 8, 0x04, why);  /* size not on 8 */
    assert_patched_corrupt(entry + 9, 0x00, why);  /* no stored byte */
    assert_patched_corrupt(entry + 10, 0x04, why); /* more than the pages can be */
    assert_patched_corrupt(entry + 12, 0, why);    /* pages */
    assert_patched_corrupt(entry + 12, 17, why);
    assert_patched_corrupt(entry + 13, 1, why); /* reserved */
    assert_patched_corrupt(entry + 15, 1, why);
}

/* Runs behind a table of two frames (3 and 4 pages) in a leaf of 8 pages. */
static void assert_runs_corrupt(const char *runs, const char *piece)
{
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(1 << 20);
    kit_hex(&bytes, SMALL_HEX);
    bytes.size -= 9;
    kit_hex(&bytes, runs);
    bytes.data[4] = (uint8_t)(bytes.size - 8);
    assert_corrupt(&bytes, 8, piece);
}

static void test_format_pagemap__runs_are_checked(void **state)
{
    (void)state;
    assert_runs_corrupt("", "do not cover");
    assert_runs_corrupt("00", "do not cover");
    assert_runs_corrupt("01 01 07 00 00", "do not cover");
    assert_runs_corrupt("02 01 07 00 00 00 02", "malformed run"); /* 9 pages */
    assert_runs_corrupt("03 00 01 01 05 00 00", "malformed run");
    assert_runs_corrupt("03 00 01 01 05 00 00 00 02 00", "behind its runs");
    assert_runs_corrupt("02 01 07 00 00 02 01", "malformed run");       /* kind 2 */
    assert_runs_corrupt("03 01 07 00 00 00 00 00 01", "malformed run"); /* empty */
    assert_runs_corrupt("03 01 06 00 00 00 01 00 01", "one with the run before");
    assert_runs_corrupt("03 01 03 00 00 01 04 01 00 00 01", "one with the run before");
    assert_runs_corrupt("03 01 02 00 00 01 05 00 02 00 01", "one with the run before");
    assert_runs_corrupt("02 01 04 01 00 00 04", "out of order");   /* frame 1 first */
    assert_runs_corrupt("01 01 08 00 00", "no frame holds");       /* 7 pages in all */
    assert_runs_corrupt("02 01 07 00 03 00 01", "no frame holds"); /* slot 3 of 3 */
    assert_runs_corrupt("02 01 04 00 03 00 04", "no frame holds"); /* not slot 0 of the next */
    assert_runs_corrupt("02 01 07 00 10 00 01", "malformed run");  /* slot 16 */
    assert_runs_corrupt("02 01 07 02 00 00 01", "no frame holds");
    assert_runs_corrupt("02 01 07 80 80 01 00 00 01", "malformed run"); /* frame 16384 */
    assert_runs_corrupt("02 01 03 00 00 00 05", "no page uses");
    assert_runs_corrupt("02 01 87 00 00 00 00 01", "malformed run"); /* not the shortest form */
    assert_runs_corrupt("02 01 80 80 80 00 00 00 01", "malformed run");
    assert_runs_corrupt("ff ff 7f 00 01", "malformed run");
    assert_runs_corrupt("80 80 80 01", "do not cover");
}

static void test_format_pagemap__every_cut_and_every_flip_is_safe(void **state)
{
    (void)state;
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(1 << 20);
    kit_hex(&bytes, SMALL_HEX);
    for (size_t bit = 0; bit < 8 * bytes.size; bit++) {
        struct klp_leaf leaf;
        size_t size, needed;
        bytes.data[bit / 8] ^= (uint8_t)(1u << bit % 8);
        if (decode(klp_buf_view(&bytes), 8, &leaf, &size, &needed, NULL) && size != 0) {
            struct klp_buf again KLP_AUTO(buf) = KLP_BUF_INIT(KLP_LEAF_SIZE_MAX);
            klp_leaf_encode(&leaf, &again); /* whatever passes is canonical */
            assert_int_equal(again.size, size);
            assert_memory_equal(again.data, bytes.data, size);
            klp_leaf_finish(&leaf);
        }
        bytes.data[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
}

static void test_format_pagemap__compact_drops_and_renumbers(void **state)
{
    (void)state;
    struct klp_leaf leaf;
    klp_leaf_init(&leaf, 0, 4);
    klp_leaf_compact(&leaf); /* of nothing */
    for (uint32_t i = 0; i < 100; i++) {
        struct klp_frame_ref one = frame(0, 64 + 24 * i, 24, 2, (uint8_t)i);
        assert_int_equal(klp_leaf_frame_add(&leaf, &one), i);
    }
    leaf.pages[0] = 77 * KLP_FRAME_PAGES + 1;
    leaf.pages[2] = 5 * KLP_FRAME_PAGES;
    leaf.pages[3] = 77 * KLP_FRAME_PAGES;
    klp_leaf_compact(&leaf);
    assert_int_equal(leaf.frame_count, 2);
    assert_int_equal(leaf.frames[0].digest.bytes[0], 77);
    assert_int_equal(leaf.frames[1].digest.bytes[0], 5);
    assert_int_equal(leaf.pages[0], 1);
    assert_int_equal(leaf.pages[1], KLP_PAGE_ZERO);
    assert_int_equal(leaf.pages[2], KLP_FRAME_PAGES);
    assert_int_equal(leaf.pages[3], 0);
    struct klp_frame_ref one = frame(0, 64, 24, 2, 200);
    assert_int_equal(klp_leaf_frame_add(&leaf, &one), 2);
    klp_leaf_finish(&leaf);
    assert_null(leaf.pages);
}

static void test_format_pagemap__pages_are_compared_by_where_they_lie(void **state)
{
    (void)state;
    struct klp_leaf a, b;
    small_leaf(&a);
    small_leaf(&b);
    assert_same(&a, &b);
    struct klp_frame_ref same = a.frames[0]; /* another number of the same frame */
    b.pages[1] = klp_leaf_frame_add(&b, &same) * KLP_FRAME_PAGES;
    assert_true(klp_leaf_page_equal(&a, &b, 1));
    b.pages[2] = 2;
    assert_false(klp_leaf_page_equal(&a, &b, 2)); /* slot */
    b.pages[3] = KLP_PAGE_ZERO;
    assert_false(klp_leaf_page_equal(&a, &b, 3));
    assert_false(klp_leaf_page_equal(&b, &a, 3));
    b.frames[1].pack++;
    assert_false(klp_leaf_page_equal(&a, &b, 4));
    b.frames[1] = a.frames[1];
    b.frames[1].offset += 8;
    assert_false(klp_leaf_page_equal(&a, &b, 4));
    b.frames[1] = a.frames[1];
    b.frames[1].size += 8;
    assert_false(klp_leaf_page_equal(&a, &b, 4));
    b.frames[1] = a.frames[1];
    b.frames[1].digest.bytes[31] ^= 1;
    assert_false(klp_leaf_page_equal(&a, &b, 4));
    assert_true(klp_leaf_page_equal(&a, &b, 7)); /* zero */
    klp_leaf_finish(&a);
    klp_leaf_finish(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_format_pagemap__small_leaf_byte_for_byte),
        cmocka_unit_test(test_format_pagemap__zero_leaf_is_left_out),
        cmocka_unit_test(test_format_pagemap__random_leaves_come_back),
        cmocka_unit_test(test_format_pagemap__largest_leaf_fits),
        cmocka_unit_test(test_format_pagemap__encoding_past_a_ceiling_is_told),
        cmocka_unit_test(test_format_pagemap__a_stream_asks_for_more),
        cmocka_unit_test(test_format_pagemap__bounds_before_anything),
        cmocka_unit_test(test_format_pagemap__frame_entries_are_checked),
        cmocka_unit_test(test_format_pagemap__runs_are_checked),
        cmocka_unit_test(test_format_pagemap__every_cut_and_every_flip_is_safe),
        cmocka_unit_test(test_format_pagemap__compact_drops_and_renumbers),
        cmocka_unit_test(test_format_pagemap__pages_are_compared_by_where_they_lie),
    };
    return cmocka_run_group_tests_name("format_pagemap", tests, NULL, NULL);
}
