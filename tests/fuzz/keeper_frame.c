/* SPDX-License-Identifier: Apache-2.0 */
/* One message to or from a keeper: what decodes comes out again byte for byte. */
#include "fuzz.h"

#include "format/keeper_frame.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct klp_buf again KLP_AUTO(buf) = KLP_BUF_INIT(size + 1);
    struct klp_buf fields KLP_AUTO(buf) = KLP_BUF_INIT(size + 1);
    struct kelpie_error *err = NULL;
    struct klp_keeper_frame frame;
    struct klp_field field;
    size_t at = 0;
    if (!klp_keeper_frame_decode(data, size, &frame, &err)) {
        fuzz_refused(err, KELPIE_E_PROTOCOL);
        return 0;
    }
    klp_keeper_frame_append(&again, frame.type, frame.id, frame.fields);
    FUZZ_CHECK(fuzz_equal(klp_buf_view(&again), (struct klp_bytes){data, size}));
    while (klp_field_next(frame.fields, &at, &field, &err) > 0)
        klp_field_append(&fields, field.tag, field.data.data, field.data.size);
    FUZZ_CHECK(err == NULL); /* they were checked when the frame was decoded */
    FUZZ_CHECK(fuzz_equal(klp_buf_view(&fields), frame.fields));
    return 0;
}
