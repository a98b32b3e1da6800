/* SPDX-License-Identifier: Apache-2.0 */
/* One frame of a pack: pages compressed together (docs/formats/objects.md). Pure: checking a
 * frame's SHA-256 before it comes here, and where it lies, are the page map's and the snapshot's.
 */
#include "format/pack.h"

#include <string.h>

#include "format/bytes.h"

static const uint8_t frame_magic[4] = {'F', 'R', 'M', '2'};

static bool shape_check(uint32_t page_count, uint8_t page_log2, struct kelpie_error **err)
{
    if (page_count == 0 || page_count > KLP_FRAME_PAGES)
        return klp_refuse(err, KELPIE_E_INVALID, "a frame of %u pages: 1 to %d are allowed",
                          page_count, KLP_FRAME_PAGES);
    if (page_log2 < KLP_PAGE_LOG2_MIN || page_log2 > KLP_PAGE_LOG2_MAX)
        return klp_refuse(err, KELPIE_E_INVALID, "a frame of pages of 2^%u bytes: 2^%d to 2^%d",
                          page_log2, KLP_PAGE_LOG2_MIN, KLP_PAGE_LOG2_MAX);
    return true;
}

bool klp_pack_frame_encode(struct klp_zstd *zstd, const void *pages, uint32_t page_count,
                           uint8_t page_log2, struct klp_buf *out, struct kelpie_error **err)
{
    KLP_CHECK(shape_check(page_count, page_log2, err));
    size_t plain_size = (size_t)page_count << page_log2;
    /* In place: no second copy of the pages, and no scratch memory to own. */
    uint8_t *frame = klp_buf_reserve(out, KLP_PACK_FRAME_HEADER_SIZE + plain_size);
    if (frame == NULL)
        return klp_buf_check(out, "pack", err);
    uint8_t *stored = frame + KLP_PACK_FRAME_HEADER_SIZE;
    uint8_t codec = KLP_CODEC_ZSTD;
    size_t size = klp_zstd_compress(zstd, pages, plain_size, stored, plain_size);
    size_t padding = klp_padding_8(size);
    if (size == 0 || size + padding >= plain_size) {
        codec = KLP_CODEC_RAW;
        size = plain_size; /* a multiple of 8: pages have 64 bytes and more */
        padding = 0;
        memcpy(stored, pages, plain_size);
    }
    memset(stored + size, 0, padding);
    memcpy(frame, frame_magic, sizeof(frame_magic));
    frame[4] = codec;
    frame[5] = 0;
    klp_store_le(frame + 6, page_count, 2);
    klp_store_le(frame + 8, (uint32_t)size, 4);
    klp_store_le(frame + 12, (uint32_t)plain_size, 4);
    klp_buf_grow(out, KLP_PACK_FRAME_HEADER_SIZE + size + padding);
    return true;
}

static bool bad_frame(struct kelpie_error **err, const char *why)
{
    return klp_refuse(err, KELPIE_E_CORRUPT, "cannot read a frame of a pack: %s", why);
}

/* The one size each codec allows: zstd is stored only where it saves something. */
static bool stored_size_check(uint8_t codec, size_t stored_size, size_t plain_size)
{
    if (codec == KLP_CODEC_RAW)
        return stored_size == plain_size;
    return stored_size != 0 && stored_size + klp_padding_8(stored_size) < plain_size;
}

bool klp_pack_frame_decode(struct klp_zstd *zstd, struct klp_bytes frame, uint32_t page_count,
                           uint8_t page_log2, void *out, struct kelpie_error **err)
{
    KLP_CHECK(shape_check(page_count, page_log2, err));
    size_t plain_size = (size_t)page_count << page_log2;
    struct klp_reader reader = {.data = frame.data, .size = frame.size};
    if (frame.size < KLP_PACK_FRAME_HEADER_SIZE)
        return bad_frame(err, "its header is cut off");
    if (memcmp(klp_read_bytes(&reader, sizeof(frame_magic)), frame_magic, sizeof(frame_magic)))
        return bad_frame(err, "no magic at its start");
    uint8_t codec = klp_read_u8(&reader);
    uint8_t aead_id = klp_read_u8(&reader);
    uint16_t pages = klp_read_u16(&reader);
    uint32_t stored_size = klp_read_u32(&reader);
    uint32_t plain_said = klp_read_u32(&reader);
    if ((codec != KLP_CODEC_RAW && codec != KLP_CODEC_ZSTD) || aead_id != 0)
        return bad_frame(err, "unknown codec or encryption");
    if (pages != page_count || plain_said != plain_size)
        return bad_frame(err, "it holds another number of pages than its page map says");
    if (!stored_size_check(codec, stored_size, plain_size))
        return bad_frame(err, "its stored length is out of range");
    if (klp_read_left(&reader) != stored_size + klp_padding_8(stored_size))
        return bad_frame(err, "its length is not that of its contents");
    const uint8_t *stored = klp_read_bytes(&reader, stored_size);
    while (klp_read_left(&reader) > 0) {
        if (klp_read_u8(&reader) != 0)
            return bad_frame(err, "its padding is not zero");
    }
    if (codec == KLP_CODEC_RAW)
        memcpy(out, stored, plain_size);
    else if (!klp_zstd_expand(zstd, stored, stored_size, out, plain_size))
        return bad_frame(err, "it does not decompress to its plain length");
    return true;
}
