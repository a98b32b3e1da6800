/* SPDX-License-Identifier: Apache-2.0 */
/* What the unit tests of src/format/ share: bytes from hex, and looking at a refusal. */
#ifndef TESTS_UNIT_FORMAT_KIT_H
#define TESTS_UNIT_FORMAT_KIT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/buf.h"

/* Appends hex digits as bytes; anything else between them is for the reader's eye. */
static inline void kit_hex(struct klp_buf *out, const char *hex)
{
    int high = -1;
    for (; *hex != '\0'; hex++) {
        int digit = *hex >= '0' && *hex <= '9'   ? *hex - '0'
                    : *hex >= 'a' && *hex <= 'f' ? *hex - 'a' + 10
                                                 : -1;
        if (digit < 0)
            continue;
        if (high >= 0)
            klp_buf_append_u8(out, (uint8_t)(high << 4 | digit));
        high = high >= 0 ? -1 : digit;
    }
    assert_int_equal(high, -1);
}

static inline void kit_assert_hex(const struct klp_buf *got, const char *hex)
{
    struct klp_buf want KLP_AUTO(buf) = KLP_BUF_INIT(1 << 20);
    kit_hex(&want, hex);
    assert_int_equal(got->size, want.size);
    assert_memory_equal(got->data, want.data, want.size);
}

static inline void kit_assert_bytes(struct klp_bytes got, const char *text)
{
    assert_int_equal(got.size, strlen(text));
    assert_memory_equal(got.data, text, got.size);
}

/* The code and a piece of the message; frees the error. */
static inline void kit_assert_error(struct kelpie_error *err, enum kelpie_code code,
                                    const char *piece)
{
    assert_non_null(err);
    if (strstr(kelpie_error_message(err), piece) == NULL)
        fail_msg("\"%s\" is not in \"%s\"", piece, kelpie_error_message(err));
    assert_string_equal(kelpie_code_name(kelpie_error_code(err)), kelpie_code_name(code));
    kelpie_error_free(err);
}

/* CALL ends in `&err` and must answer ANSWER. */
#define KIT_REFUSED(call, answer, code, piece)                                                     \
    do {                                                                                           \
        struct kelpie_error *err = NULL;                                                           \
        assert_int_equal((call), (answer));                                                        \
        kit_assert_error(err, (code), (piece));                                                    \
    } while (0)

/* A copy of exactly `size` bytes, so that the sanitizer sees a read beyond them. */
static inline uint8_t *kit_copy(const void *bytes, size_t size)
{
    uint8_t *copy = malloc(size == 0 ? 1 : size);
    assert_non_null(copy);
    if (size != 0)
        memcpy(copy, bytes, size);
    return copy;
}

#endif
