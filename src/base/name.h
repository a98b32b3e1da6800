/* SPDX-License-Identifier: Apache-2.0 */
/* Names people give, ids we draw, digests: one parser and one spelling for each. */
#ifndef KLP_BASE_NAME_H
#define KLP_BASE_NAME_H

#include <stdint.h>

#include "base/error.h"

#define KLP_NAME_MAX 63 /* bytes; [a-z0-9][a-z0-9-]* */
#define KLP_NAME_SIZE (KLP_NAME_MAX + 1)
#define KLP_ID_BYTES 16                    /* random */
#define KLP_ID_SIZE (2 * KLP_ID_BYTES + 1) /* as lower-case hex with NUL */
#define KLP_DIGEST_BYTES 32                /* SHA-256 */
#define KLP_DIGEST_SIZE (2 * KLP_DIGEST_BYTES + 1)

struct klp_digest {
    uint8_t bytes[KLP_DIGEST_BYTES];
};

/* INVALID names `kind` ("agent", "node", ...), the text (escaped, cut) and the rule. */
KELPIE_MUST_USE bool klp_name_check(const char *kind, const char *name, struct kelpie_error **err);
bool klp_name_is_valid(const char *name);
bool klp_id_is_valid(const char *text); /* 32 lower-case hex digits */
void klp_digest_text(const struct klp_digest *digest, char out[KLP_DIGEST_SIZE]);
KELPIE_MUST_USE bool klp_digest_parse(const char *text, struct klp_digest *out);
bool klp_digest_is_zero(const struct klp_digest *digest);
bool klp_digest_equal(const struct klp_digest *a, const struct klp_digest *b);
/* Bounded copy into a fixed field; asserts that it fits (callers checked the input). */
void klp_text_copy(char *out, size_t capacity, const char *text);

#endif
