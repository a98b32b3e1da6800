/* SPDX-License-Identifier: Apache-2.0 */
/* Frames of the guest protocol and the fields of their bodies (docs/formats/guest-frames.md). Pure:
 * sessions, channels, credit and the meaning of a field belong to whoever speaks. */
#include "format/guest_frame.h"

#include <string.h>

#define FLAGS_ALL (KLP_GUEST_FLAG_END | KLP_GUEST_FLAG_STDERR)
#define FIELD_HEADER_SIZE 8u
#define NUMBER_SIZE 8u

static const uint8_t frame_start[] = {'K', 'G', KLP_GUEST_VERSION};

void klp_guest_frame_append(struct klp_buf *out, uint16_t type, uint8_t flags, uint32_t channel,
                            struct klp_bytes body)
{
    if (body.size > KLP_FRAME_BODY_MAX) {
        out->over_limit = true; /* sticks, as any append past a ceiling */
        return;
    }
    klp_buf_append(out, frame_start, sizeof(frame_start));
    klp_buf_append_u8(out, flags);
    klp_buf_append_u16(out, type);
    klp_buf_append_u16(out, 0);
    klp_buf_append_u32(out, channel);
    klp_buf_append_u32(out, (uint32_t)body.size);
    klp_buf_append(out, body.data, body.size);
}

/* klp_refuse answers false: what it returns, less one, is the -1 of these iterators. */
static int not_a_frame(struct kelpie_error **err, const char *why)
{
    return klp_refuse(err, KELPIE_E_PROTOCOL, "cannot read a guest frame: %s", why) - 1;
}

int klp_guest_frame_next(const void *bytes, size_t size, struct klp_guest_frame *out,
                         struct kelpie_error **err)
{
    /* Garbage is told from its first bytes: it may never grow to a whole header. */
    size_t start = size < sizeof(frame_start) ? size : sizeof(frame_start);
    if (start != 0 && memcmp(bytes, frame_start, start) != 0)
        return not_a_frame(err, "no magic and version at its start");
    if (size < KLP_GUEST_HEADER_SIZE)
        return 0;
    struct klp_reader reader = {.data = bytes, .size = size, .at = sizeof(frame_start)};
    struct klp_guest_frame frame;
    frame.flags = klp_read_u8(&reader);
    frame.type = klp_read_u16(&reader);
    uint16_t reserved = klp_read_u16(&reader);
    frame.channel = klp_read_u32(&reader);
    uint32_t body_size = klp_read_u32(&reader);
    if ((frame.flags & ~FLAGS_ALL) != 0 || reserved != 0)
        return not_a_frame(err, "reserved bits are set");
    if (body_size > KLP_FRAME_BODY_MAX)
        return klp_refuse(err, KELPIE_E_PROTOCOL,
                          "cannot read a guest frame: a body of %u bytes, at most %u are allowed",
                          body_size, KLP_FRAME_BODY_MAX) -
               1;
    if (klp_read_left(&reader) < body_size)
        return 0;
    frame.body = (struct klp_bytes){klp_read_bytes(&reader, body_size), body_size};
    *out = frame;
    return (int)reader.at;
}

/* ---- fields */

void klp_field_append(struct klp_buf *body, uint16_t tag, const void *data, size_t size)
{
    if (size > UINT32_MAX) {
        body->over_limit = true;
        return;
    }
    klp_buf_append_u16(body, tag);
    klp_buf_append_u16(body, 0);
    klp_buf_append_u32(body, (uint32_t)size);
    klp_buf_append(body, data, size);
}

void klp_field_append_u64(struct klp_buf *body, uint16_t tag, uint64_t value)
{
    klp_buf_append_u16(body, tag);
    klp_buf_append_u16(body, 0);
    klp_buf_append_u32(body, NUMBER_SIZE);
    klp_buf_append_u64(body, value);
}

void klp_field_append_text(struct klp_buf *body, uint16_t tag, const char *text)
{
    klp_field_append(body, tag, text, strlen(text));
}

static int malformed_field(struct kelpie_error **err, size_t at, const char *why)
{
    return klp_refuse(err, KELPIE_E_PROTOCOL, "cannot read the field at byte %zu: %s", at, why) - 1;
}

int klp_field_next(struct klp_bytes body, size_t *at, struct klp_field *out,
                   struct kelpie_error **err)
{
    if (*at >= body.size)
        return 0;
    if (body.size - *at < FIELD_HEADER_SIZE)
        return malformed_field(err, *at, "its header is cut off");
    struct klp_reader reader = {.data = body.data, .size = body.size, .at = *at};
    uint16_t tag = klp_read_u16(&reader);
    uint16_t reserved = klp_read_u16(&reader);
    uint32_t size = klp_read_u32(&reader);
    if (reserved != 0)
        return malformed_field(err, *at, "reserved bits are set");
    if (klp_read_left(&reader) < size)
        return malformed_field(err, *at, "it is longer than what is left");
    out->tag = tag;
    out->data = (struct klp_bytes){klp_read_bytes(&reader, size), size};
    *at = reader.at;
    return 1;
}

/* Looks at the whole body, so that the answer does not depend on where it is broken. */
static int field_scan(struct klp_bytes body, uint16_t tag, struct klp_bytes *out, size_t *out_count,
                      struct kelpie_error **err)
{
    struct klp_field field;
    size_t at = 0;
    int got;
    *out_count = 0;
    while ((got = klp_field_next(body, &at, &field, err)) > 0) {
        if (field.tag == tag && (*out_count)++ == 0)
            *out = field.data;
    }
    return got;
}

bool klp_field_find(struct klp_bytes body, uint16_t tag, struct klp_bytes *out)
{
    struct klp_bytes found;
    size_t count;
    if (field_scan(body, tag, &found, &count, NULL) < 0 || count == 0)
        return false;
    *out = found;
    return true;
}

bool klp_field_u64(struct klp_bytes body, uint16_t tag, uint64_t fallback, uint64_t *out,
                   struct kelpie_error **err)
{
    struct klp_bytes found = {0};
    size_t count;
    if (field_scan(body, tag, &found, &count, err) < 0)
        return false;
    if (count == 0) {
        *out = fallback;
        return true;
    }
    if (count > 1)
        return klp_refuse(err, KELPIE_E_PROTOCOL, "field %u: a number given %zu times", tag, count);
    if (found.size != NUMBER_SIZE)
        return klp_refuse(err, KELPIE_E_PROTOCOL, "field %u: a number of %zu bytes, not 8", tag,
                          found.size);
    struct klp_reader reader = {.data = found.data, .size = found.size};
    *out = klp_read_u64(&reader);
    return true;
}
