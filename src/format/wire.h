/* SPDX-License-Identifier: Apache-2.0 */
/* What the JSON codecs of this folder share: typed fields that end up in fixed arrays, times,
 * lists. Getters: an absent or null field leaves the output as it was and is fine unless
 * `required`; whatever is wrong is INVALID and names the key. Not for use outside format/. */
#ifndef KLP_FORMAT_WIRE_H
#define KLP_FORMAT_WIRE_H

#include "base/ext/json.h"
#include "base/name.h"
#include "format/record.h"

#define KLP_WIRE_TIME_SIZE 32 /* "2026-11-22T23:59:59.123456789Z" and NUL */
#define KLP_UNIQUENESS_COUNT 4
#define KLP_UNIQUENESS_SIZE 16

/* RFC 3339 UTC. Milliseconds; nine digits of a second when `exact` and they are needed. */
void klp_wire_time_text(int64_t wall_ns, bool exact, char out[KLP_WIRE_TIME_SIZE]);
/* "YYYY-MM-DDTHH:MM:SS[.digits]Z", 1970 to 2261. */
KELPIE_MUST_USE bool klp_wire_time_parse(const char *text, int64_t *out_ns);

/* Not there, or null. */
bool klp_wire_is_absent(const struct klp_json *object, const char *key);
KELPIE_MUST_USE bool klp_wire_get_text(const struct klp_json *object, const char *key,
                                       bool required, char *out, size_t capacity,
                                       struct kelpie_error **err);
/* For people only: what does not fit is cut at a whole character. */
KELPIE_MUST_USE bool klp_wire_get_text_cut(const struct klp_json *object, const char *key,
                                           char *out, size_t capacity, struct kelpie_error **err);
void klp_wire_text_cut(const char *text, char *out, size_t capacity);
KELPIE_MUST_USE bool klp_wire_get_name(const struct klp_json *object, const char *key,
                                       bool required, char out[KLP_NAME_SIZE],
                                       struct kelpie_error **err);
KELPIE_MUST_USE bool klp_wire_get_id(const struct klp_json *object, const char *key, bool required,
                                     char out[KLP_ID_SIZE], struct kelpie_error **err);
KELPIE_MUST_USE bool klp_wire_get_digest(const struct klp_json *object, const char *key,
                                         bool required, struct klp_digest *out,
                                         struct kelpie_error **err);
/* Absent is NONE; a name nobody knows is INVALID. */
KELPIE_MUST_USE bool klp_wire_get_arch(const struct klp_json *object, const char *key,
                                       enum klp_arch *out, struct kelpie_error **err);
KELPIE_MUST_USE bool klp_wire_get_u32(const struct klp_json *object, const char *key, bool required,
                                      uint32_t *out, struct kelpie_error **err);
KELPIE_MUST_USE bool klp_wire_get_i32(const struct klp_json *object, const char *key, int32_t *out,
                                      struct kelpie_error **err);
KELPIE_MUST_USE bool klp_wire_get_time(const struct klp_json *object, const char *key,
                                       bool required, int64_t *out_ns, struct kelpie_error **err);
/* A copy owned by the caller; *out is NULL before. */
KELPIE_MUST_USE bool klp_wire_get_owned(const struct klp_json *object, const char *key,
                                        size_t size_max, char **out, struct kelpie_error **err);
/* NULL-terminated, owned by the caller; an empty list is NULL. Adds the bytes to *total, at most
 * KLP_ARG_BYTES_MAX. */
KELPIE_MUST_USE bool klp_wire_get_texts(const struct klp_json *object, const char *key,
                                        size_t count_max, size_t *total, char ***out,
                                        struct kelpie_error **err);
KELPIE_MUST_USE bool klp_wire_get_uniqueness(const struct klp_json *object,
                                             char out[KLP_UNIQUENESS_COUNT][KLP_UNIQUENESS_SIZE],
                                             struct kelpie_error **err);

/* Numbers beyond 2^63-1 (only hostile input has them) are shown as that. */
void klp_wire_set_u64(struct klp_json *object, const char *key, uint64_t value);
void klp_wire_set_text(struct klp_json *object, const char *key, const char *text); /* "" = null */
void klp_wire_set_digest(struct klp_json *object, const char *key,
                         const struct klp_digest *digest); /* zero = null */
void klp_wire_set_arch(struct klp_json *object, const char *key, enum klp_arch arch);
void klp_wire_set_time(struct klp_json *object, const char *key, int64_t wall_ns, bool exact);
void klp_wire_set_texts(struct klp_json *object, const char *key, char *const *texts);
void klp_wire_set_uniqueness(struct klp_json *object,
                             const char uniqueness[KLP_UNIQUENESS_COUNT][KLP_UNIQUENESS_SIZE]);

void klp_wire_set_node_lists(struct klp_json *object, const struct klp_node_record *node);

/* Raises "WHAT: message of `why`" with `code`; no memory and a newer version keep their codes. */
KELPIE_MUST_USE bool klp_wire_refuse(struct kelpie_error **err, enum kelpie_code code,
                                     const char *what, const struct kelpie_error *why);

#endif
