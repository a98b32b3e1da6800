/* SPDX-License-Identifier: Apache-2.0 */
/* JSON, by jansson: bounded parsing, no duplicate keys, typed access that names the field at fault.
 */
#ifndef KLP_BASE_EXT_JSON_H
#define KLP_BASE_EXT_JSON_H

#include <stdint.h>

#include "base/buf.h"

struct klp_json; /* a value; children are borrowed, what a function creates is the caller's */

/* One document, UTF-8, at most `depth_max` deep; anything after it is an error. INVALID with line
 * and column. */
KELPIE_MUST_USE bool klp_json_parse(const void *text, size_t size, unsigned depth_max,
                                    struct klp_json **out, struct kelpie_error **err);
void klp_json_free(struct klp_json *json);
/* Compact, keys in order of insertion; strings that are not UTF-8 must not get in (see
 * klp_json_set_text). */
void klp_json_print(const struct klp_json *json, struct klp_buf *out);

struct klp_json *klp_json_copy(const struct klp_json *json); /* deep */
struct klp_json *klp_json_object(void);
struct klp_json *klp_json_array(void);
/* Setters take over nothing but `value`. Text is escaped UTF-8: invalid bytes become U+FFFD. NULL
 * text = JSON null. */
void klp_json_set(struct klp_json *object, const char *key, struct klp_json *value);
void klp_json_set_text(struct klp_json *object, const char *key, const char *text);
void klp_json_set_text_n(struct klp_json *object, const char *key, const void *text, size_t size);
void klp_json_set_u64(struct klp_json *object, const char *key, uint64_t value); /* < 2^63 */
void klp_json_set_i64(struct klp_json *object, const char *key, int64_t value);
void klp_json_set_bool(struct klp_json *object, const char *key, bool value);
void klp_json_set_null(struct klp_json *object, const char *key);
void klp_json_append(struct klp_json *array, struct klp_json *value);
void klp_json_append_text(struct klp_json *array, const char *text);

bool klp_json_is_object(const struct klp_json *json);
bool klp_json_is_array(const struct klp_json *json);
bool klp_json_is_text(const struct klp_json *json);
size_t klp_json_count(const struct klp_json *array);
const struct klp_json *klp_json_at(const struct klp_json *array, size_t index);
/* NULL when absent (or `object` is no object). */
const struct klp_json *klp_json_find(const struct klp_json *object, const char *key);
/* Text of a string value; NULL when it is none. Borrowed. */
const char *klp_json_text(const struct klp_json *json);

/* Typed fields of an object. Absent or null: *out untouched, true, unless `required`. Wrong type,
 * negative or out of range: INVALID names the key. Texts are borrowed. */
#define KLP_JSON_REQUIRED true
#define KLP_JSON_OPTIONAL false
KELPIE_MUST_USE bool klp_json_get_text(const struct klp_json *object, const char *key,
                                       bool required, const char **out, struct kelpie_error **err);
KELPIE_MUST_USE bool klp_json_get_u64(const struct klp_json *object, const char *key, bool required,
                                      uint64_t *out, struct kelpie_error **err);
KELPIE_MUST_USE bool klp_json_get_i64(const struct klp_json *object, const char *key, bool required,
                                      int64_t *out, struct kelpie_error **err);
KELPIE_MUST_USE bool klp_json_get_bool(const struct klp_json *object, const char *key,
                                       bool required, bool *out, struct kelpie_error **err);
/* Refuses (INVALID, names the first) any key that is not in the NULL-terminated list. */
KELPIE_MUST_USE bool klp_json_only(const struct klp_json *object, const char *const keys[],
                                   struct kelpie_error **err);

KLP_AUTO_DEFINE(json, struct klp_json *, klp_json_free)

#endif
