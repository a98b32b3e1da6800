/* SPDX-License-Identifier: Apache-2.0 */
/* The header every stored object begins with, and the records inside them
 * (docs/formats/objects.md). Pure: which records an object must have is said where the object is.
 */
#include "format/records.h"

#include <string.h>

#include "base/crc32.h"
#include "base/fmt.h"
#include "base/limits.h"
#include "format/bytes.h"

#define CRC_OFFSET 60u
#define RECORD_HEADER_SIZE 8u
#define DRAFT_MARK 'D' /* last byte of the magic until the format is frozen */
#define CODEC_RAW 0
#define CODEC_ZSTD 2
#define FRAME_LOG2_MAX 21 /* 2 MiB: the ceiling of one frame */

struct klp_object_header klp_object_header_make(const char kind[4], uint8_t codec,
                                                uint8_t page_log2, uint8_t frame_log2)
{
    struct klp_object_header header = {
        .major = KLP_OBJECT_MAJOR,
        .minor = KLP_OBJECT_MINOR,
        .hash_id = KLP_HASH_SHA256,
        .codec = codec,
        .page_log2 = page_log2,
        .frame_log2 = frame_log2,
    };
    memcpy(header.kind, kind, sizeof(header.kind));
    return header;
}

void klp_object_header_encode(const struct klp_object_header *header,
                              uint8_t out[KLP_OBJECT_HEADER_SIZE])
{
    memset(out, 0, KLP_OBJECT_HEADER_SIZE);
    memcpy(out, "KLP", 3);
    memcpy(out + 3, header->kind, sizeof(header->kind));
    out[7] = DRAFT_MARK;
    klp_store_le(out + 8, header->major, 2);
    klp_store_le(out + 10, header->minor, 2);
    klp_store_le(out + 12, KLP_OBJECT_HEADER_SIZE, 4);
    klp_store_le(out + 16, header->incompat, 8);
    klp_store_le(out + 24, header->ro_compat, 8);
    klp_store_le(out + 32, header->compat, 8);
    out[40] = header->hash_id;
    out[41] = header->codec;
    out[42] = header->aead_id;
    out[43] = header->page_log2;
    out[44] = header->frame_log2;
    klp_store_le(out + 48, header->key_id, 4);
    klp_store_le(out + 52, header->nonce, 8);
    klp_store_le(out + CRC_OFFSET, klp_crc32(0, out, CRC_OFFSET), 4);
}

static bool bad_header(struct kelpie_error **err, enum kelpie_code code, const char kind[4],
                       const char *why)
{
    return klp_refuse(err, code, "cannot read a '%.*s' object: %s", 4, kind, why);
}

static bool magic_check(const uint8_t *bytes, const char kind[4], struct kelpie_error **err)
{
    if (memcmp(bytes, "KLP", 3) != 0)
        return bad_header(err, KELPIE_E_CORRUPT, kind, "no magic at its start");
    if (memcmp(bytes + 3, kind, 4) != 0) {
        struct klp_buf other KLP_AUTO(buf) = KLP_BUF_INIT(64);
        klp_text_escape(&other, bytes + 3, 4);
        return klp_refuse(err, KELPIE_E_CORRUPT, "cannot read a '%.*s' object: it is a '%s'", 4,
                          kind, klp_buf_text(&other));
    }
    if (bytes[7] == '\0')
        return bad_header(err, KELPIE_E_UNSUPPORTED, kind,
                          "it has the frozen format, this program knows the draft");
    if (bytes[7] != DRAFT_MARK)
        return bad_header(err, KELPIE_E_CORRUPT, kind, "no magic at its start");
    return true;
}

static bool features_check(const struct klp_object_header *header, const char kind[4],
                           struct kelpie_error **err)
{
    if (header->incompat != 0)
        return klp_refuse(err, KELPIE_E_UNSUPPORTED,
                          "cannot read a '%.*s' object: unknown features %llx", 4, kind,
                          (unsigned long long)header->incompat);
    if (header->hash_id != KLP_HASH_SHA256)
        return bad_header(err, KELPIE_E_UNSUPPORTED, kind, "unknown hash");
    if (header->codec != CODEC_RAW && header->codec != CODEC_ZSTD)
        return bad_header(err, KELPIE_E_UNSUPPORTED, kind, "unknown codec");
    if (header->aead_id != 0)
        return bad_header(err, KELPIE_E_UNSUPPORTED, kind, "unknown encryption");
    if (header->key_id != 0)
        return bad_header(err, KELPIE_E_CORRUPT, kind, "a key without encryption");
    return true;
}

static bool sizes_check(const struct klp_object_header *header, const char kind[4],
                        struct kelpie_error **err)
{
    if (header->page_log2 != 0 &&
        (header->page_log2 < KLP_PAGE_LOG2_MIN || header->page_log2 > KLP_PAGE_LOG2_MAX))
        return bad_header(err, KELPIE_E_CORRUPT, kind, "its page size is out of range");
    if (header->frame_log2 != 0 && (header->page_log2 == 0 || header->frame_log2 > FRAME_LOG2_MAX ||
                                    header->frame_log2 < header->page_log2))
        return bad_header(err, KELPIE_E_CORRUPT, kind, "its frame size is out of range");
    return true;
}

/* True when a reserved byte is set, or the header says it is longer than it is. */
static bool header_read(const uint8_t *bytes, struct klp_object_header *out)
{
    struct klp_reader reader = {.data = bytes, .size = KLP_OBJECT_HEADER_SIZE, .at = 8};
    memcpy(out->kind, bytes + 3, sizeof(out->kind));
    out->major = klp_read_u16(&reader);
    out->minor = klp_read_u16(&reader);
    uint32_t size = klp_read_u32(&reader);
    out->incompat = klp_read_u64(&reader);
    out->ro_compat = klp_read_u64(&reader);
    out->compat = klp_read_u64(&reader);
    out->hash_id = klp_read_u8(&reader);
    out->codec = klp_read_u8(&reader);
    out->aead_id = klp_read_u8(&reader);
    out->page_log2 = klp_read_u8(&reader);
    out->frame_log2 = klp_read_u8(&reader);
    uint32_t reserved = klp_read_u16(&reader);
    reserved |= klp_read_u8(&reader);
    out->key_id = klp_read_u32(&reader);
    out->nonce = klp_read_u64(&reader);
    return size != KLP_OBJECT_HEADER_SIZE || reserved != 0;
}

bool klp_object_header_decode(const void *bytes, size_t size, const char kind[4],
                              struct klp_object_header *out, struct kelpie_error **err)
{
    const uint8_t *at = bytes;
    if (size < KLP_OBJECT_HEADER_SIZE)
        return klp_refuse(err, KELPIE_E_CORRUPT,
                          "cannot read a '%.*s' object of %zu bytes: its header alone has %d", 4,
                          kind, size, KLP_OBJECT_HEADER_SIZE);
    KLP_CHECK(magic_check(at, kind, err));
    struct klp_reader reader = {.data = at, .size = KLP_OBJECT_HEADER_SIZE, .at = CRC_OFFSET};
    if (klp_read_u32(&reader) != klp_crc32(0, at, CRC_OFFSET))
        return bad_header(err, KELPIE_E_CORRUPT, kind, "its header has the wrong checksum");
    struct klp_object_header header;
    bool reserved = header_read(at, &header);
    if (header.major != KLP_OBJECT_MAJOR)
        return klp_refuse(err, KELPIE_E_UNSUPPORTED,
                          "cannot read a '%.*s' object of version %u.%u: this program knows %d", 4,
                          kind, header.major, header.minor, KLP_OBJECT_MAJOR);
    if (reserved)
        return bad_header(err, KELPIE_E_CORRUPT, kind, "reserved bytes of its header are set");
    KLP_CHECK(features_check(&header, kind, err));
    KLP_CHECK(sizes_check(&header, kind, err));
    *out = header;
    return true;
}

/* ---- records */

void klp_record_append(struct klp_buf *out, uint16_t tag, uint16_t flags, const void *data,
                       size_t size)
{
    static const uint8_t zeros[8];
    if (size > UINT32_MAX) {
        out->over_limit = true; /* sticks, as any append past a ceiling */
        return;
    }
    klp_buf_append_u16(out, tag);
    klp_buf_append_u16(out, flags);
    klp_buf_append_u32(out, (uint32_t)size);
    klp_buf_append(out, data, size);
    klp_buf_append(out, zeros, klp_padding_8(size));
}

static int malformed_record(struct kelpie_error **err, size_t at, const char *why)
{
    return klp_refuse(err, KELPIE_E_CORRUPT, "cannot read the record at byte %zu: %s", at, why) -
           1; /* klp_refuse answers false */
}

int klp_record_next(struct klp_bytes bytes, size_t *at, struct klp_record *out,
                    struct kelpie_error **err)
{
    if (*at >= bytes.size)
        return 0;
    if (bytes.size - *at < RECORD_HEADER_SIZE)
        return malformed_record(err, *at, "its header is cut off");
    struct klp_reader reader = {.data = bytes.data, .size = bytes.size, .at = *at};
    struct klp_record record;
    record.tag = klp_read_u16(&reader);
    record.flags = klp_read_u16(&reader);
    uint32_t size = klp_read_u32(&reader);
    if ((record.flags & ~KLP_RECORD_FLAGS_ALL) != 0)
        return malformed_record(err, *at, "reserved flags are set");
    size_t left = klp_read_left(&reader);
    if (left < size || left - size < klp_padding_8(size))
        return malformed_record(err, *at, "it is longer than what is left");
    record.data = (struct klp_bytes){klp_read_bytes(&reader, size), size};
    for (size_t i = klp_padding_8(size); i > 0; i--) {
        if (klp_read_u8(&reader) != 0)
            return malformed_record(err, *at, "its padding is not zero");
    }
    *at = reader.at;
    *out = record;
    return 1;
}
