/* SPDX-License-Identifier: Apache-2.0 */
/* Frames of a pack. Input: a byte for log2 of the page, one for the number of pages, then a frame
 * to decode. zstd has many streams for the same pages, so what must come out again is the pages. */
#include "fuzz.h"

#include "format/pack.h"

static void round_trip(struct klp_zstd *zstd, const uint8_t *pages, uint32_t count, uint8_t log2)
{
    size_t size = (size_t)count << log2;
    struct klp_buf frame KLP_AUTO(buf) = KLP_BUF_INIT(size + KLP_PACK_FRAME_HEADER_SIZE);
    uint8_t *again = malloc(size);
    FUZZ_CHECK(again != NULL);
    FUZZ_CHECK(klp_pack_frame_encode(zstd, pages, count, log2, &frame, NULL));
    FUZZ_CHECK(klp_pack_frame_decode(zstd, klp_buf_view(&frame), count, log2, again, NULL));
    FUZZ_CHECK(memcmp(again, pages, size) == 0);
    free(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2)
        return 0;
    KLP_AUTO(zstd) struct klp_zstd *zstd = klp_zstd_create();
    struct kelpie_error *err = NULL;
    uint8_t log2 = (uint8_t)(KLP_PAGE_LOG2_MIN + data[0] % 7u); /* larger ones only take longer */
    uint32_t count = 1 + data[1] % KLP_FRAME_PAGES;
    size_t plain_size = (size_t)count << log2;
    uint8_t *plain = calloc(1, plain_size); /* of its exact size: one byte more would be seen */
    FUZZ_CHECK(plain != NULL);
    data += 2;
    size -= 2;
    if (klp_pack_frame_decode(zstd, (struct klp_bytes){data, size}, count, log2, plain, &err))
        round_trip(zstd, plain, count, log2);
    else
        fuzz_refused(err, KELPIE_E_CORRUPT);
    memset(plain, 0, plain_size);
    memcpy(plain, data, size < plain_size ? size : plain_size);
    round_trip(zstd, plain, count, log2);
    free(plain);
    return 0;
}
