/* SPDX-License-Identifier: Apache-2.0 */
/* An object header and the records behind it. A mutated header nearly always fails its checksum, so
 * it is tried a second time with the right one. */
#include "fuzz.h"

#include "base/crc32.h"
#include "format/records.h"

static void header_check(const uint8_t *data, size_t size)
{
    static const char kinds[][5] = {"pack", "pmap", "mani", "stat", "ckpt"};
    uint8_t again[KLP_OBJECT_HEADER_SIZE];
    struct klp_object_header header;
    for (size_t i = 0; i < KLP_COUNT(kinds); i++) {
        struct kelpie_error *err = NULL;
        if (!klp_object_header_decode(data, size, kinds[i], &header, &err)) {
            enum kelpie_code code = kelpie_error_code(err);
            fuzz_refused(err, code == KELPIE_E_UNSUPPORTED ? code : KELPIE_E_CORRUPT);
            continue;
        }
        klp_object_header_encode(&header, again);
        FUZZ_CHECK(memcmp(again, data, sizeof(again)) == 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct klp_bytes records = {data, size};
    struct klp_buf again KLP_AUTO(buf) = KLP_BUF_INIT(size + 1);
    struct kelpie_error *err = NULL;
    struct klp_record record;
    size_t at = 0;
    int got;
    header_check(data, size);
    if (size >= KLP_OBJECT_HEADER_SIZE) {
        uint8_t sealed[KLP_OBJECT_HEADER_SIZE];
        memcpy(sealed, data, sizeof(sealed));
        uint32_t crc = klp_crc32(0, sealed, 60);
        for (unsigned i = 0; i < 4; i++)
            sealed[60 + i] = (uint8_t)(crc >> (8 * i));
        header_check(sealed, sizeof(sealed));
        records = (struct klp_bytes){data + sizeof(sealed), size - sizeof(sealed)};
    }
    while ((got = klp_record_next(records, &at, &record, &err)) > 0) {
        klp_record_append(&again, record.tag, record.flags, record.data.data, record.data.size);
        FUZZ_CHECK(again.size == at && at % 8 == 0);
    }
    if (got < 0)
        fuzz_refused(err, KELPIE_E_CORRUPT);
    FUZZ_CHECK(again.size == at && at <= records.size);
    FUZZ_CHECK(again.size == 0 || memcmp(again.data, records.data, again.size) == 0);
    FUZZ_CHECK(got < 0 || at == records.size);
    return 0;
}
