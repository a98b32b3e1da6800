/* SPDX-License-Identifier: Apache-2.0 */
/* What every fuzz target is: one function over bytes of unknown origin, and a check that stays on.
 */
#ifndef TESTS_FUZZ_FUZZ_H
#define TESTS_FUZZ_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A bug in a codec, never a bad input. */
#define FUZZ_CHECK(condition)                                                                      \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: fuzz check failed: %s\n", __FILE__, __LINE__, #condition);     \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

static inline int fuzz_equal(struct klp_bytes a, struct klp_bytes b)
{
    return a.size == b.size && (a.size == 0 || memcmp(a.data, b.data, a.size) == 0);
}

/* A refusal has a code and one line that a terminal can show; it is freed here. */
static inline void fuzz_refused(struct kelpie_error *err, enum kelpie_code code)
{
    FUZZ_CHECK(err != NULL);
    FUZZ_CHECK(kelpie_error_code(err) == code);
    for (const char *at = kelpie_error_message(err); *at != '\0'; at++)
        FUZZ_CHECK((unsigned char)*at >= ' ' && *at != 0x7f);
    kelpie_error_free(err);
}

#endif
