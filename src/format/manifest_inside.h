/* SPDX-License-Identifier: Apache-2.0 */
/* Between the files of the manifest's codec only. */
#ifndef KLP_FORMAT_MANIFEST_INSIDE_H
#define KLP_FORMAT_MANIFEST_INSIDE_H

#include "format/manifest.h"

/* `code`: INVALID before writing, CORRUPT after reading. The message names the field. */
KELPIE_MUST_USE bool klp_manifest_check(const struct klp_manifest *manifest, enum kelpie_code code,
                                        struct kelpie_error **err);

/* The agent record's bytes. */
void klp_identity_encode(const struct klp_agent_identity *identity, struct klp_buf *out);
/* CORRUPT. `out` must be finished by the caller, also after a failure. */
KELPIE_MUST_USE bool klp_identity_decode(struct klp_bytes bytes, struct klp_agent_identity *out,
                                         struct kelpie_error **err);

/* Texts one after another, each u32 length and bytes without NUL. */
void klp_texts_encode(char *const *texts, struct klp_buf *out);
/* CORRUPT names `field`. An empty list is NULL. */
KELPIE_MUST_USE bool klp_texts_decode(struct klp_bytes bytes, const char *field, size_t count_max,
                                      char ***out, struct kelpie_error **err);
/* A text of a fixed field; CORRUPT when it does not fit or holds a NUL. */
KELPIE_MUST_USE bool klp_text_decode(struct klp_bytes bytes, const char *field, char *out,
                                     size_t capacity, struct kelpie_error **err);

#endif
