/* SPDX-License-Identifier: Apache-2.0 */
/* KLP1: the original's blob and its metadata, bit for bit (kelpie-original 1.3 and 6). Pure:
 * reading files and turning a KLP1 blob into a KLP2 package are others' work. */
#include "format/klp1.h"

#include <string.h>

#include "base/crc32.h"
#include "base/ext/json.h"
#include "base/fmt.h"
#include "base/limits.h"
#include "format/bytes.h"

#define KLP1_VERSION 1u
#define METADATA_DEPTH_MAX 64 /* of unknown keys' values; the nine known ones are flat */

static const uint8_t klp1_magic[4] = {'K', 'L', 'P', '1'};

/* ---- the blob */

static bool lengths_sum(const struct klp1_lengths *lengths, uint64_t *out)
{
    uint64_t total = KLP1_HEADER_SIZE;
    return !__builtin_add_overflow(total, lengths->metadata, &total) &&
           !__builtin_add_overflow(total, lengths->snapshot, &total) &&
           !__builtin_add_overflow(total, lengths->memory, out);
}

bool klp1_header_decode(const void *bytes, size_t size, uint64_t total_size,
                        struct klp1_lengths *out, struct kelpie_error **err)
{
    struct klp_reader reader = {.data = bytes, .size = size};
    if (size < KLP1_HEADER_SIZE)
        return klp_refuse(err, KELPIE_E_CORRUPT,
                          "cannot read a KLP1 blob of %zu bytes: its header alone has %d", size,
                          KLP1_HEADER_SIZE);
    const uint8_t *magic = klp_read_bytes(&reader, sizeof(klp1_magic));
    if (memcmp(magic, klp1_magic, sizeof(klp1_magic)) != 0)
        return klp_refuse(err, KELPIE_E_CORRUPT,
                          "cannot read as KLP1: the magic is %02x%02x%02x%02x, not 4b4c5031",
                          magic[0], magic[1], magic[2], magic[3]);
    uint32_t version = klp_read_u32(&reader);
    if (version != KLP1_VERSION)
        return klp_refuse(err, KELPIE_E_CORRUPT,
                          "cannot read a KLP1 blob of version %u: only version 1 exists", version);
    struct klp1_lengths lengths;
    lengths.metadata = klp_read_u64(&reader);
    lengths.snapshot = klp_read_u64(&reader);
    lengths.memory = klp_read_u64(&reader);
    uint64_t sum;
    if (!lengths_sum(&lengths, &sum))
        return klp_refuse(err, KELPIE_E_CORRUPT,
                          "cannot read a KLP1 blob: its lengths add up to more than 2^64");
    if (total_size != UINT64_MAX && sum != total_size)
        return klp_refuse(err, KELPIE_E_CORRUPT,
                          "cannot read a KLP1 blob: its lengths ask for %llu bytes, there are %llu",
                          (unsigned long long)sum, (unsigned long long)total_size);
    *out = lengths;
    return true;
}

void klp1_header_encode(const struct klp1_lengths *lengths, uint8_t out[KLP1_HEADER_SIZE])
{
    memcpy(out, klp1_magic, sizeof(klp1_magic));
    klp_store_le(out + 4, KLP1_VERSION, 4);
    klp_store_le(out + 8, lengths->metadata, 8);
    klp_store_le(out + 16, lengths->snapshot, 8);
    klp_store_le(out + 24, lengths->memory, 8);
}

bool klp1_decode(const void *bytes, size_t size, struct klp1_blob *out, struct kelpie_error **err)
{
    struct klp1_lengths lengths = {0}; /* gcc 12 at -O3 sees a way past the header */
    KLP_CHECK(klp1_header_decode(bytes, size, size, &lengths, err));
    /* Each length is at most `size` now: their sum is exactly that. */
    const uint8_t *at = (const uint8_t *)bytes + KLP1_HEADER_SIZE;
    out->metadata = (struct klp_bytes){at, (size_t)lengths.metadata};
    at += lengths.metadata;
    out->snapshot = (struct klp_bytes){at, (size_t)lengths.snapshot};
    at += lengths.snapshot;
    out->memory = (struct klp_bytes){at, (size_t)lengths.memory};
    return true;
}

void klp1_encode(const struct klp1_blob *blob, struct klp_buf *out)
{
    uint8_t header[KLP1_HEADER_SIZE];
    const struct klp1_lengths lengths = {blob->metadata.size, blob->snapshot.size,
                                         blob->memory.size};
    klp1_header_encode(&lengths, header);
    klp_buf_append(out, header, sizeof(header));
    klp_buf_append(out, blob->metadata.data, blob->metadata.size);
    klp_buf_append(out, blob->snapshot.data, blob->snapshot.size);
    klp_buf_append(out, blob->memory.data, blob->memory.size);
}

/* ---- its metadata */

/* The JSON layer answers INVALID; here the bytes are at fault, not the caller. */
static bool metadata_corrupt(struct kelpie_error *lower, struct kelpie_error **err)
{
    KLP_AUTO(kelpie_error) struct kelpie_error *owned = lower;
    struct klp_buf text KLP_AUTO(buf) = KLP_BUF_INIT(KLP_ERROR_TEXT_MAX);
    const char *message = kelpie_error_message(owned);
    klp_text_escape(&text, message, strlen(message)); /* may quote the document */
    return klp_refuse(err, KELPIE_E_CORRUPT, "cannot read KLP1 metadata: %s", klp_buf_text(&text));
}

static bool text_field(const struct klp_json *json, const char *key, char **out,
                       struct kelpie_error **err)
{
    const char *text = NULL;
    KLP_CHECK(klp_json_get_text(json, key, KLP_JSON_REQUIRED, &text, err));
    *out = klp_mem_string(text);
    return true;
}

static bool u32_field(const struct klp_json *json, const char *key, uint32_t *out,
                      struct kelpie_error **err)
{
    uint64_t value = 0;
    KLP_CHECK(klp_json_get_u64(json, key, KLP_JSON_REQUIRED, &value, err));
    if (value > UINT32_MAX)
        return klp_refuse(err, KELPIE_E_INVALID, "\"%s\" is over 2^32 - 1", key);
    *out = (uint32_t)value;
    return true;
}

static bool metadata_fields(const struct klp_json *json, struct klp1_metadata *out,
                            struct kelpie_error **err)
{
    if (!klp_json_is_object(json))
        return klp_refuse(err, KELPIE_E_INVALID, "not a JSON object");
    KLP_CHECK(text_field(json, "snapshot_id", &out->snapshot_id, err));
    KLP_CHECK(text_field(json, "vm_id", &out->vm_id, err));
    KLP_CHECK(klp_json_get_u64(json, "created_at_ms", KLP_JSON_REQUIRED, &out->created_at_ms, err));
    KLP_CHECK(klp_json_get_u64(json, "size_bytes", KLP_JSON_REQUIRED, &out->size_bytes, err));
    KLP_CHECK(u32_field(json, "checksum", &out->checksum, err));
    KLP_CHECK(text_field(json, "architecture", &out->architecture, err));
    KLP_CHECK(u32_field(json, "vcpu_count", &out->vcpu_count, err));
    KLP_CHECK(klp_json_get_u64(json, "memory_mib", KLP_JSON_REQUIRED, &out->memory_mib, err));
    return klp_json_get_bool(json, "is_full_snapshot", KLP_JSON_REQUIRED, &out->is_full_snapshot,
                             err);
}

bool klp1_metadata_decode(struct klp_bytes json, struct klp1_metadata *out,
                          struct kelpie_error **err)
{
    KLP_AUTO(json) struct klp_json *document = NULL;
    struct klp1_metadata metadata = {0};
    struct kelpie_error *lower = NULL;
    if (json.size > KLP1_METADATA_SIZE_MAX)
        return klp_refuse(err, KELPIE_E_CORRUPT,
                          "cannot read KLP1 metadata: %zu bytes, at most %u are", json.size,
                          KLP1_METADATA_SIZE_MAX);
    if (!klp_json_parse(json.data, json.size, METADATA_DEPTH_MAX, &document, &lower))
        return metadata_corrupt(lower, err);
    if (!metadata_fields(document, &metadata, &lower)) {
        klp1_metadata_finish(&metadata);
        return metadata_corrupt(lower, err);
    }
    *out = metadata;
    return true;
}

/* As serde_json writes a string: the original's bytes come out again. */
static void string_append(struct klp_buf *out, const char *text)
{
    static const char short_names[] = "btn\0fr"; /* of 0x08 .. 0x0d; 0x0b has none */
    klp_buf_append_u8(out, '"');
    for (const char *at = text; *at != '\0'; at++) {
        uint8_t byte = (uint8_t)*at;
        if (byte == '"' || byte == '\\')
            klp_buf_append_format(out, "\\%c", byte);
        else if (byte >= 0x08 && byte <= 0x0d && byte != 0x0b)
            klp_buf_append_format(out, "\\%c", short_names[byte - 0x08]);
        else if (byte < 0x20)
            klp_buf_append_format(out, "\\u%04x", byte);
        else
            klp_buf_append_u8(out, byte);
    }
    klp_buf_append_u8(out, '"');
}

void klp1_metadata_encode(const struct klp1_metadata *metadata, struct klp_buf *out)
{
    klp_buf_append_text(out, "{\"snapshot_id\":");
    string_append(out, metadata->snapshot_id);
    klp_buf_append_text(out, ",\"vm_id\":");
    string_append(out, metadata->vm_id);
    klp_buf_append_format(out, ",\"created_at_ms\":%llu,\"size_bytes\":%llu,\"checksum\":%u",
                          (unsigned long long)metadata->created_at_ms,
                          (unsigned long long)metadata->size_bytes, metadata->checksum);
    klp_buf_append_text(out, ",\"architecture\":");
    string_append(out, metadata->architecture);
    klp_buf_append_format(out, ",\"vcpu_count\":%u,\"memory_mib\":%llu,\"is_full_snapshot\":%s}",
                          metadata->vcpu_count, (unsigned long long)metadata->memory_mib,
                          metadata->is_full_snapshot ? "true" : "false");
}

void klp1_metadata_finish(struct klp1_metadata *metadata)
{
    klp_mem_free(metadata->snapshot_id);
    klp_mem_free(metadata->vm_id);
    klp_mem_free(metadata->architecture);
    *metadata = (struct klp1_metadata){0};
}

bool klp1_verify(const struct klp1_blob *blob, bool *out_has_metadata, struct kelpie_error **err)
{
    struct klp1_metadata metadata;
    *out_has_metadata = blob->metadata.size != 0;
    if (!*out_has_metadata)
        return true;
    KLP_CHECK(klp1_metadata_decode(blob->metadata, &metadata, err));
    uint64_t size_bytes = metadata.size_bytes;
    uint32_t expected = metadata.checksum;
    klp1_metadata_finish(&metadata);
    if (size_bytes != blob->snapshot.size)
        return klp_refuse(err, KELPIE_E_CORRUPT,
                          "the KLP1 snapshot part has %zu bytes, its metadata says %llu",
                          blob->snapshot.size, (unsigned long long)size_bytes);
    uint32_t actual = klp_crc32(0, blob->snapshot.data, blob->snapshot.size);
    if (actual != expected)
        return klp_refuse(err, KELPIE_E_CORRUPT,
                          "the KLP1 snapshot part has checksum %u, its metadata says %u", actual,
                          expected);
    return true;
}
