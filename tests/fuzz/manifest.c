/* SPDX-License-Identifier: Apache-2.0 */
/* Manifests. The header's checksum is mended first, since no mutation would get past it. What
 * decodes can be encoded, and that decodes to the same; records of a later release are passed over,
 * so it may be shorter than the input. */
#include "fuzz.h"

#include "base/crc32.h"
#include "format/manifest.h"

static void round_trip(const struct klp_manifest *manifest, size_t size)
{
    struct klp_buf once KLP_AUTO(buf) = KLP_BUF_INIT(KLP_MANIFEST_SIZE_MAX);
    struct klp_buf twice KLP_AUTO(buf) = KLP_BUF_INIT(KLP_MANIFEST_SIZE_MAX);
    struct klp_manifest again;
    FUZZ_CHECK(klp_manifest_encode(manifest, &once, NULL));
    FUZZ_CHECK(once.size <= size);
    FUZZ_CHECK(klp_manifest_decode(klp_buf_view(&once), &again, NULL));
    FUZZ_CHECK(klp_manifest_encode(&again, &twice, NULL));
    FUZZ_CHECK(fuzz_equal(klp_buf_view(&once), klp_buf_view(&twice)));
    klp_manifest_finish(&again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct kelpie_error *err = NULL;
    struct klp_manifest manifest;
    uint8_t *copy = malloc(size == 0 ? 1 : size);
    FUZZ_CHECK(copy != NULL);
    if (size > 0)
        memcpy(copy, data, size);
    if (size >= KLP_OBJECT_HEADER_SIZE) {
        uint32_t crc = klp_crc32(0, copy, KLP_OBJECT_HEADER_SIZE - 4);
        for (unsigned i = 0; i < 4; i++)
            copy[KLP_OBJECT_HEADER_SIZE - 4 + i] = (uint8_t)(crc >> (8 * i));
    }
    if (klp_manifest_decode((struct klp_bytes){copy, size}, &manifest, &err)) {
        round_trip(&manifest, size);
        klp_manifest_finish(&manifest);
    } else {
        enum kelpie_code code = kelpie_error_code(err);
        fuzz_refused(err, code == KELPIE_E_UNSUPPORTED ? code : KELPIE_E_CORRUPT);
    }
    free(copy);
    return 0;
}
