/* SPDX-License-Identifier: Apache-2.0 */
/* KLP1: what decodes is what was there, and its metadata comes out as it would be written. */
#include "fuzz.h"

#include "format/klp1.h"

static void metadata_check(struct klp_bytes json)
{
    struct klp_buf once KLP_AUTO(buf) = KLP_BUF_INIT(8 * KLP1_METADATA_SIZE_MAX);
    struct klp_buf twice KLP_AUTO(buf) = KLP_BUF_INIT(8 * KLP1_METADATA_SIZE_MAX);
    struct kelpie_error *err = NULL;
    struct klp1_metadata metadata;
    if (!klp1_metadata_decode(json, &metadata, &err)) {
        fuzz_refused(err, KELPIE_E_CORRUPT);
        return;
    }
    klp1_metadata_encode(&metadata, &once);
    klp1_metadata_finish(&metadata);
    FUZZ_CHECK(klp1_metadata_decode(klp_buf_view(&once), &metadata, NULL));
    klp1_metadata_encode(&metadata, &twice);
    klp1_metadata_finish(&metadata);
    FUZZ_CHECK(fuzz_equal(klp_buf_view(&once), klp_buf_view(&twice)));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct klp_buf again KLP_AUTO(buf) = KLP_BUF_INIT(size + 1);
    struct kelpie_error *err = NULL;
    struct klp1_lengths lengths;
    struct klp1_blob blob;
    bool has_metadata = false;
    metadata_check((struct klp_bytes){data, size});
    if (!klp1_decode(data, size, &blob, &err)) {
        fuzz_refused(err, KELPIE_E_CORRUPT);
        return 0;
    }
    FUZZ_CHECK(klp1_header_decode(data, KLP1_HEADER_SIZE, size, &lengths, NULL));
    FUZZ_CHECK(lengths.snapshot == blob.snapshot.size);
    klp1_encode(&blob, &again);
    FUZZ_CHECK(fuzz_equal(klp_buf_view(&again), (struct klp_bytes){data, size}));
    if (!klp1_verify(&blob, &has_metadata, &err))
        fuzz_refused(err, KELPIE_E_CORRUPT);
    FUZZ_CHECK(has_metadata == (blob.metadata.size != 0));
    metadata_check(blob.metadata);
    return 0;
}
