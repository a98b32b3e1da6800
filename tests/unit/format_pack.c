/* SPDX-License-Identifier: Apache-2.0 */
/* Frames of a pack: pages out as they went in, and nothing believed that a frame says of itself. */
#include "format_kit.h"

#include "format/pack.h"

/* The worked example of docs/formats/objects.md: one page of 64 bytes 00 .. 3f, stored as it is. */
#define RAW_HEX                                                                                    \
    "46524d32 00 00 0100 40000000 40000000"                                                        \
    "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"                             \
    "202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f"

#define LARGEST (KLP_FRAME_PAGES << KLP_PAGE_LOG2_MAX)

/* Noise that does not compress (xorshift64). */
static void noise(uint8_t *out, size_t size)
{
    uint64_t value = 88172645463325252u;
    for (size_t i = 0; i < size; i++) {
        value ^= value << 13;
        value ^= value >> 7;
        value ^= value << 17;
        out[i] = (uint8_t)(value >> 32);
    }
}

struct fixture {
    struct klp_zstd *zstd;
    uint8_t *pages, *out;
    struct klp_buf frame;
};

static int setup(void **state)
{
    struct fixture *fixture = calloc(1, sizeof(*fixture));
    fixture->zstd = klp_zstd_create();
    fixture->pages = calloc(1, LARGEST);
    fixture->out = calloc(1, LARGEST);
    fixture->frame = KLP_BUF_INIT(4 * KLP_MIB);
    *state = fixture;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *fixture = *state;
    klp_zstd_destroy(fixture->zstd);
    klp_buf_finish(&fixture->frame);
    free(fixture->pages);
    free(fixture->out);
    free(fixture);
    return 0;
}

static void assert_comes_back(struct fixture *fixture, uint32_t pages, uint8_t log2)
{
    size_t size = (size_t)pages << log2;
    klp_buf_clear(&fixture->frame);
    assert_true(
        klp_pack_frame_encode(fixture->zstd, fixture->pages, pages, log2, &fixture->frame, NULL));
    assert_int_equal(fixture->frame.size % 8, 0);
    assert_true(fixture->frame.size <= KLP_PACK_FRAME_HEADER_SIZE + size);
    memset(fixture->out, 0xa5, LARGEST);
    assert_true(klp_pack_frame_decode(fixture->zstd, klp_buf_view(&fixture->frame), pages, log2,
                                      fixture->out, NULL));
    assert_memory_equal(fixture->out, fixture->pages, size);
    if (size < LARGEST)
        assert_int_equal(fixture->out[size], 0xa5);
}

static void test_format_pack__raw_example(void **state)
{
    struct fixture *fixture = *state;
    for (unsigned i = 0; i < 64; i++)
        fixture->pages[i] = (uint8_t)i;
    assert_comes_back(fixture, 1, 6);
    kit_assert_hex(&fixture->frame, RAW_HEX);
}

static void test_format_pack__all_sizes(void **state)
{
    struct fixture *fixture = *state;
    for (uint8_t log2 = KLP_PAGE_LOG2_MIN; log2 <= KLP_PAGE_LOG2_MAX; log2++) {
        memset(fixture->pages, log2, LARGEST);
        assert_comes_back(fixture, 1, log2);
        assert_comes_back(fixture, KLP_FRAME_PAGES, log2);
        if (log2 > 6) {
            assert_int_equal(fixture->frame.data[4], KLP_CODEC_ZSTD);
            assert_true(fixture->frame.size < 128);
        }
        noise(fixture->pages, LARGEST);
        assert_comes_back(fixture, 3, log2);
        assert_int_equal(fixture->frame.data[4], KLP_CODEC_RAW);
        assert_int_equal(fixture->frame.size, 16 + ((size_t)3 << log2));
    }
}

/* The same pages give the same bytes: that is what lets whole packs be found again by their name.
 */
static void test_format_pack__frames_follow_one_another(void **state)
{
    struct fixture *fixture = *state;
    assert_comes_back(fixture, 4, 12);
    size_t size = fixture->frame.size;
    assert_true(klp_pack_frame_encode(fixture->zstd, fixture->pages, 4, 12, &fixture->frame, NULL));
    assert_int_equal(fixture->frame.size, 2 * size);
    assert_memory_equal(fixture->frame.data, fixture->frame.data + size, size);
}

static void test_format_pack__shapes_that_cannot_be(void **state)
{
    struct fixture *fixture = *state;
    static const uint32_t shapes[][2] = {
        {0, 12}, {KLP_FRAME_PAGES + 1, 12}, {UINT32_MAX, 12}, {1, 5}, {1, 17}, {1, 64}};
    for (size_t i = 0; i < KLP_COUNT(shapes); i++) {
        KIT_REFUSED(klp_pack_frame_encode(fixture->zstd, fixture->pages, shapes[i][0],
                                          (uint8_t)shapes[i][1], &fixture->frame, &err),
                    false, KELPIE_E_INVALID, "a frame of");
        KIT_REFUSED(klp_pack_frame_decode(fixture->zstd, (struct klp_bytes){0}, shapes[i][0],
                                          (uint8_t)shapes[i][1], fixture->out, &err),
                    false, KELPIE_E_INVALID, "a frame of");
    }
    assert_int_equal(fixture->frame.size, 0);
}

static void test_format_pack__full_pack_is_told(void **state)
{
    struct fixture *fixture = *state;
    struct klp_buf small KLP_AUTO(buf) = KLP_BUF_INIT(64);
    KIT_REFUSED(klp_pack_frame_encode(fixture->zstd, fixture->pages, 1, 12, &small, &err), false,
                KELPIE_E_LIMIT, "pack");
}

static void assert_corrupt(struct fixture *fixture, size_t size, uint32_t pages, uint8_t log2,
                           const char *piece)
{
    uint8_t *exact = kit_copy(fixture->frame.data, size);
    KIT_REFUSED(klp_pack_frame_decode(fixture->zstd, (struct klp_bytes){exact, size}, pages, log2,
                                      fixture->out, &err),
                false, KELPIE_E_CORRUPT, piece);
    free(exact);
}

static void test_format_pack__cut_frames(void **state)
{
    struct fixture *fixture = *state;
    assert_comes_back(fixture, 1, 8);
    assert_int_equal(fixture->frame.data[4], KLP_CODEC_ZSTD);
    for (size_t size = 0; size < fixture->frame.size; size++)
        assert_corrupt(fixture, size, 1, 8, size < 16 ? "header" : "length");
    klp_buf_append_u64(&fixture->frame, 0);
    assert_corrupt(fixture, fixture->frame.size, 1, 8, "length");
}

static void test_format_pack__bent_headers(void **state)
{
    struct fixture *fixture = *state;
    static const struct {
        size_t at;
        uint8_t value;
        const char *piece;
    } cases[] = {
        {0, 'f', "magic"},
        {4, 1, "codec"},
        {4, 3, "codec"},
        {5, 1, "encryption"},
        {6, 2, "number of pages"},
        {7, 1, "number of pages"},
        {13, 2, "number of pages"},
        {8, 0, "stored length"},
        {11, 0xff, "stored length"},
        {4, KLP_CODEC_RAW, "stored length"},
    };
    assert_comes_back(fixture, 1, 8);
    for (size_t i = 0; i < KLP_COUNT(cases); i++) {
        uint8_t before = fixture->frame.data[cases[i].at];
        fixture->frame.data[cases[i].at] = cases[i].value;
        assert_corrupt(fixture, fixture->frame.size, 1, 8, cases[i].piece);
        fixture->frame.data[cases[i].at] = before;
    }
    assert_corrupt(fixture, fixture->frame.size, 2, 8, "number of pages");
    assert_corrupt(fixture, fixture->frame.size, 1, 9, "number of pages");
}

/* By hand: a zstd frame that would expand to more, or less, than the frame's own header says. */
static void test_format_pack__bombs_have_no_room(void **state)
{
    struct fixture *fixture = *state;
    uint8_t stored[256];
    static const size_t sizes[] = {512, 128, LARGEST};
    for (size_t i = 0; i < KLP_COUNT(sizes); i++) {
        size_t size =
            klp_zstd_compress(fixture->zstd, fixture->pages, sizes[i], stored, sizeof(stored));
        assert_true(size != 0);
        klp_buf_clear(&fixture->frame);
        kit_hex(&fixture->frame, "46524d32 02 00 0100");
        klp_buf_append_u32(&fixture->frame, (uint32_t)size);
        klp_buf_append_u32(&fixture->frame, 256);
        klp_buf_append(&fixture->frame, stored, size);
        while (fixture->frame.size % 8 != 0)
            klp_buf_append_u8(&fixture->frame, 0);
        assert_corrupt(fixture, fixture->frame.size, 1, 8, "decompress");
    }
}

static void test_format_pack__padding_is_zero(void **state)
{
    struct fixture *fixture = *state;
    struct klp_buf *frame = &fixture->frame;
    uint8_t fill = 0;
    do { /* until the stored length leaves room for padding */
        memset(fixture->pages, ++fill, 256);
        noise(fixture->pages, fill);
        assert_comes_back(fixture, 1, 8);
    } while (frame->data[8] % 8 == 0);
    frame->data[frame->size - 1] = 1;
    assert_corrupt(fixture, frame->size, 1, 8, "padding");
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(test_format_pack__##name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(raw_example),           TEST(all_sizes),          TEST(frames_follow_one_another),
        TEST(shapes_that_cannot_be), TEST(full_pack_is_told),  TEST(cut_frames),
        TEST(bent_headers),          TEST(bombs_have_no_room), TEST(padding_is_zero),
    };
    return cmocka_run_group_tests_name("format_pack", tests, NULL, NULL);
}
