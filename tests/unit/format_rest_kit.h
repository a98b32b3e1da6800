/* SPDX-License-Identifier: Apache-2.0 */
/* What the tests of REST answers and requests share. */
#ifndef TESTS_UNIT_FORMAT_REST_KIT_H
#define TESTS_UNIT_FORMAT_REST_KIT_H

#include "format_kit.h"

#include <stdio.h>

#include "format/rest.h"

#define ID "000102030405060708090a0b0c0d0e0f"
#define MOVE "101112131415161718191a1b1c1d1e1f"
#define DIGEST "abababababababababababababababababababababababababababababababab"
#define TIME_NS 1795391999123000000
#define TIME "2026-11-22T23:59:59.123Z"
#define TEXT_MAX (40u * KLP_MIB)

#define SET(field, text) klp_text_copy((field), sizeof(field), (text))

/* Takes `json` over. */
static inline void assert_prints(struct klp_json *json, const char *want)
{
    struct klp_buf text KLP_AUTO(buf) = KLP_BUF_INIT(TEXT_MAX);
    klp_json_print(json, &text);
    klp_json_free(json);
    assert_string_equal(klp_buf_text(&text), want);
}

static inline struct klp_json *parse(const char *text)
{
    struct klp_json *json = NULL;
    struct kelpie_error *err = NULL;
    if (!klp_json_parse(text, strlen(text), KLP_REST_DEPTH_MAX, &json, &err))
        fail_msg("%s: %s", text, kelpie_error_message(err));
    return json;
}

/* DECODE(json of `text`, out) is refused; works for every decoder because all have one shape. */
#define ASSERT_REFUSED(decode, type, text, code, piece)                                            \
    do {                                                                                           \
        struct type refused;                                                                       \
        struct klp_json *refused_json = parse(text);                                               \
        KIT_REFUSED(decode(refused_json, &refused, &err), false, code, piece);                     \
        klp_json_free(refused_json);                                                               \
    } while (0)

#define DECODE_GOOD(decode, text, out)                                                             \
    do {                                                                                           \
        struct kelpie_error *good_err = NULL;                                                      \
        struct klp_json *good_json = parse(text);                                                  \
        if (!decode(good_json, (out), &good_err))                                                  \
            fail_msg("%s: %s", (text), kelpie_error_message(good_err));                            \
        klp_json_free(good_json);                                                                  \
    } while (0)

static inline char **texts(const char *first, const char *second)
{
    const char *list[] = {first, second, NULL};
    return klp_texts_copy(list);
}

#endif
