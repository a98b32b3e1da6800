/* SPDX-License-Identifier: Apache-2.0 */
/* The machine description: what decodes is allowed, and encodes to the same bytes but for records
 * of a later release, which are passed over. */
#include "fuzz.h"

#include "format/machine.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct klp_buf once KLP_AUTO(buf) = KLP_BUF_INIT(64 * KLP_KIB);
    struct kelpie_error *err = NULL;
    struct klp_machine machine, again;
    if (!klp_machine_decode((struct klp_bytes){data, size}, &machine, &err)) {
        enum kelpie_code code = kelpie_error_code(err);
        fuzz_refused(err, code == KELPIE_E_UNSUPPORTED ? code : KELPIE_E_CORRUPT);
        return 0;
    }
    FUZZ_CHECK(klp_machine_check(&machine, NULL));
    klp_machine_encode(&machine, &once);
    FUZZ_CHECK(once.size <= size && memcmp(once.data, data, once.size) == 0);
    FUZZ_CHECK(klp_machine_decode(klp_buf_view(&once), &again, NULL));
    FUZZ_CHECK(memcmp(&machine, &again, sizeof(machine)) == 0);
    return 0;
}
