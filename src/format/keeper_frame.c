/* SPDX-License-Identifier: Apache-2.0 */
/* Messages between a daemon and a keeper: one frame a message (docs/formats/keeper-frames.md).
 * Pure: handles travel beside it, and what an order means is vm/keeper's. */
#include "format/keeper_frame.h"

#include <string.h>

static const uint8_t keeper_magic[4] = {'K', 'P', 'R', '1'};

void klp_keeper_frame_append(struct klp_buf *out, uint16_t type, uint64_t id,
                             struct klp_bytes fields)
{
    if (fields.size > KLP_KEEPER_FRAME_MAX - KLP_KEEPER_HEADER_SIZE) {
        out->over_limit = true; /* sticks, as any append past a ceiling */
        return;
    }
    klp_buf_append(out, keeper_magic, sizeof(keeper_magic));
    klp_buf_append_u16(out, type);
    klp_buf_append_u16(out, 0);
    klp_buf_append_u64(out, id);
    klp_buf_append(out, fields.data, fields.size);
}

static bool fields_check(struct klp_bytes fields, struct kelpie_error **err)
{
    struct klp_field field;
    size_t at = 0;
    int got;
    while ((got = klp_field_next(fields, &at, &field, err)) > 0) {
    }
    return got == 0;
}

bool klp_keeper_frame_decode(const void *bytes, size_t size, struct klp_keeper_frame *out,
                             struct kelpie_error **err)
{
    struct klp_reader reader = {.data = bytes, .size = size};
    if (size < KLP_KEEPER_HEADER_SIZE || size > KLP_KEEPER_FRAME_MAX)
        return klp_refuse(err, KELPIE_E_PROTOCOL,
                          "cannot read a keeper frame of %zu bytes: %d to %u are allowed", size,
                          KLP_KEEPER_HEADER_SIZE, KLP_KEEPER_FRAME_MAX);
    if (memcmp(klp_read_bytes(&reader, sizeof(keeper_magic)), keeper_magic, sizeof(keeper_magic)))
        return klp_refuse(err, KELPIE_E_PROTOCOL, "cannot read a keeper frame: no magic");
    struct klp_keeper_frame frame;
    frame.type = klp_read_u16(&reader);
    uint16_t reserved = klp_read_u16(&reader);
    frame.id = klp_read_u64(&reader);
    if (reserved != 0)
        return klp_refuse(err, KELPIE_E_PROTOCOL,
                          "cannot read a keeper frame: reserved bits are set");
    if (frame.type == KLP_KEEPER_EVENT && frame.id != 0)
        return klp_refuse(err, KELPIE_E_PROTOCOL,
                          "cannot read a keeper event: it answers an order");
    size_t left = klp_read_left(&reader);
    frame.fields = (struct klp_bytes){klp_read_bytes(&reader, left), left};
    if (!fields_check(frame.fields, err))
        return klp_wrap_refusal(err, "cannot read a keeper frame of type %u", frame.type);
    *out = frame;
    return true;
}
