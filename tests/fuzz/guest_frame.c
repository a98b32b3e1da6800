/* SPDX-License-Identifier: Apache-2.0 */
/* A stream of guest frames: every frame and field comes out again byte for byte, and how the stream
 * was cut into pieces makes no difference. */
#include "fuzz.h"

#include "format/guest_frame.h"

static void body_check(struct klp_bytes body)
{
    struct klp_buf again KLP_AUTO(buf) = KLP_BUF_INIT(body.size + 1);
    struct kelpie_error *err = NULL;
    struct klp_bytes found;
    struct klp_field field;
    size_t at = 0, count = 0;
    uint64_t number, first = 0;
    int got;
    while ((got = klp_field_next(body, &at, &field, &err)) > 0) {
        klp_field_append(&again, field.tag, field.data.data, field.data.size);
        FUZZ_CHECK(again.size == at);
        FUZZ_CHECK(field.data.data >= body.data &&
                   field.data.data + field.data.size <= body.data + body.size);
        count += field.tag == KLP_TAG_BYTES;
        first |= field.tag == KLP_TAG_BYTES && count == 1 && field.data.size == 8;
    }
    FUZZ_CHECK(klp_field_find(body, KLP_TAG_BYTES, &found) == (got == 0 && count > 0));
    struct kelpie_error *number_err = NULL;
    bool is_number = klp_field_u64(body, KLP_TAG_BYTES, 7, &number, &number_err);
    FUZZ_CHECK(is_number == (got == 0 && (count == 0 || (count == 1 && first))));
    if (!is_number)
        fuzz_refused(number_err, KELPIE_E_PROTOCOL);
    if (got < 0)
        fuzz_refused(err, KELPIE_E_PROTOCOL);
    else
        FUZZ_CHECK(fuzz_equal(klp_buf_view(&again), body));
}

/* A frame that is whole was never taken for broken before its last byte came. */
static void prefix_check(const uint8_t *data, size_t size, size_t step)
{
    struct klp_guest_frame frame;
    for (size_t part = 0; part < size; part += step)
        FUZZ_CHECK(klp_guest_frame_next(data, part, &frame, NULL) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct kelpie_error *err = NULL;
    struct klp_guest_frame frame;
    int got;
    body_check((struct klp_bytes){data, size});
    while ((got = klp_guest_frame_next(data, size, &frame, &err)) > 0) {
        struct klp_buf again KLP_AUTO(buf) = KLP_BUF_INIT(size);
        klp_guest_frame_append(&again, frame.type, frame.flags, frame.channel, frame.body);
        FUZZ_CHECK(fuzz_equal(klp_buf_view(&again), (struct klp_bytes){data, (size_t)got}));
        prefix_check(data, (size_t)got, 1 + (size_t)got / 16);
        body_check(frame.body);
        data += got;
        size -= (size_t)got;
    }
    if (got < 0)
        fuzz_refused(err, KELPIE_E_PROTOCOL);
    else
        FUZZ_CHECK(err == NULL && size < KLP_GUEST_HEADER_SIZE + KLP_FRAME_BODY_MAX);
    return 0;
}
