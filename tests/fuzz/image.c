/* SPDX-License-Identifier: Apache-2.0 */
/* Image objects and version numbers. */
#include "fuzz.h"

#include "format/image.h"

static void version(const uint8_t *data, size_t size)
{
    char text[64], again[64];
    uint32_t parts[3];
    size = size < sizeof(text) ? size : sizeof(text) - 1;
    if (size > 0)
        memcpy(text, data, size);
    text[size] = '\0';
    if (!klp_version_parse(text, parts, NULL))
        return;
    snprintf(again, sizeof(again), "%u.%u.%u", parts[0], parts[1], parts[2]);
    FUZZ_CHECK(strcmp(text, again) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct klp_buf once KLP_AUTO(buf) = KLP_BUF_INIT(64 * KLP_KIB);
    struct klp_buf twice KLP_AUTO(buf) = KLP_BUF_INIT(64 * KLP_KIB);
    struct kelpie_error *err = NULL;
    struct klp_image image;
    version(data, size);
    if (!klp_image_decode((struct klp_bytes){data, size}, &image, &err)) {
        enum kelpie_code code = kelpie_error_code(err);
        fuzz_refused(err, code == KELPIE_E_UNSUPPORTED ? code : KELPIE_E_CORRUPT);
        return 0;
    }
    klp_image_encode(&image, &once);
    FUZZ_CHECK(klp_image_decode(klp_buf_view(&once), &image, NULL));
    klp_image_encode(&image, &twice);
    FUZZ_CHECK(fuzz_equal(klp_buf_view(&once), klp_buf_view(&twice)));
    return 0;
}
