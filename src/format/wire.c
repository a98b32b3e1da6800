/* SPDX-License-Identifier: Apache-2.0 */
/* Typed JSON fields for the codecs of this folder. Times: wire_time.c; what the fields mean: the
 * codecs. */
#include <string.h>

#include "base/fmt.h"
#include "format/manifest.h"
#include "format/wire.h"

static bool field_wrong(struct kelpie_error **err, const char *key, const char *why)
{
    return klp_refuse(err, KELPIE_E_INVALID, "field '%s' %s", key, why);
}

/* ---- getting */

bool klp_wire_is_absent(const struct klp_json *object, const char *key)
{
    const char *text = NULL; /* what is there and no text is refused */
    return klp_json_get_text(object, key, KLP_JSON_OPTIONAL, &text, NULL) && text == NULL;
}

bool klp_wire_get_text(const struct klp_json *object, const char *key, bool required, char *out,
                       size_t capacity, struct kelpie_error **err)
{
    const char *text = NULL;
    KLP_CHECK(klp_json_get_text(object, key, required, &text, err));
    if (text == NULL)
        return true;
    if (strlen(text) >= capacity)
        return klp_refuse(err, KELPIE_E_INVALID, "field '%s' is longer than %zu bytes", key,
                          capacity - 1);
    klp_text_copy(out, capacity, text);
    return true;
}

void klp_wire_text_cut(const char *text, char *out, size_t capacity)
{
    size_t size = strlen(text);
    if (size >= capacity) {
        size = capacity - 1;
        while (size > 0 && ((uint8_t)text[size] & 0xC0) == 0x80) /* within a UTF-8 character */
            size--;
    }
    memcpy(out, text, size);
    out[size] = '\0';
}

bool klp_wire_get_text_cut(const struct klp_json *object, const char *key, char *out,
                           size_t capacity, struct kelpie_error **err)
{
    const char *text = NULL;
    KLP_CHECK(klp_json_get_text(object, key, KLP_JSON_OPTIONAL, &text, err));
    if (text != NULL)
        klp_wire_text_cut(text, out, capacity);
    return true;
}

bool klp_wire_get_name(const struct klp_json *object, const char *key, bool required,
                       char out[KLP_NAME_SIZE], struct kelpie_error **err)
{
    const char *text = NULL;
    KLP_CHECK(klp_json_get_text(object, key, required, &text, err));
    if (text == NULL)
        return true;
    KLP_CHECK(klp_name_check(key, text, err));
    klp_text_copy(out, KLP_NAME_SIZE, text);
    return true;
}

bool klp_wire_get_id(const struct klp_json *object, const char *key, bool required,
                     char out[KLP_ID_SIZE], struct kelpie_error **err)
{
    const char *text = NULL;
    KLP_CHECK(klp_json_get_text(object, key, required, &text, err));
    if (text == NULL)
        return true;
    if (!klp_id_is_valid(text))
        return field_wrong(err, key, "is no id (32 hex digits)");
    klp_text_copy(out, KLP_ID_SIZE, text);
    return true;
}

bool klp_wire_get_digest(const struct klp_json *object, const char *key, bool required,
                         struct klp_digest *out, struct kelpie_error **err)
{
    const char *text = NULL;
    KLP_CHECK(klp_json_get_text(object, key, required, &text, err));
    if (text != NULL && !klp_digest_parse(text, out))
        return field_wrong(err, key, "is no SHA-256 (64 hex digits)");
    return true;
}

bool klp_wire_get_arch(const struct klp_json *object, const char *key, enum klp_arch *out,
                       struct kelpie_error **err)
{
    const char *text = NULL;
    KLP_CHECK(klp_json_get_text(object, key, KLP_JSON_OPTIONAL, &text, err));
    *out = text == NULL ? KLP_ARCH_NONE : klp_arch_parse(text);
    if (text != NULL && *out == KLP_ARCH_NONE)
        return field_wrong(err, key, "is no architecture (x86_64, aarch64)");
    return true;
}

bool klp_wire_get_u32(const struct klp_json *object, const char *key, bool required, uint32_t *out,
                      struct kelpie_error **err)
{
    uint64_t value = *out;
    KLP_CHECK(klp_json_get_u64(object, key, required, &value, err));
    if (value > UINT32_MAX)
        return field_wrong(err, key, "is too large");
    *out = (uint32_t)value;
    return true;
}

bool klp_wire_get_i32(const struct klp_json *object, const char *key, int32_t *out,
                      struct kelpie_error **err)
{
    int64_t value = *out;
    KLP_CHECK(klp_json_get_i64(object, key, KLP_JSON_OPTIONAL, &value, err));
    if (value > INT32_MAX || value < INT32_MIN)
        return field_wrong(err, key, "is out of range");
    *out = (int32_t)value;
    return true;
}

bool klp_wire_get_time(const struct klp_json *object, const char *key, bool required,
                       int64_t *out_ns, struct kelpie_error **err)
{
    const char *text = NULL;
    KLP_CHECK(klp_json_get_text(object, key, required, &text, err));
    if (text != NULL && !klp_wire_time_parse(text, out_ns))
        return field_wrong(err, key, "is no time (YYYY-MM-DDTHH:MM:SS.mmmZ)");
    return true;
}

bool klp_wire_get_owned(const struct klp_json *object, const char *key, size_t size_max, char **out,
                        struct kelpie_error **err)
{
    const char *text = NULL;
    KLP_CHECK(klp_json_get_text(object, key, KLP_JSON_OPTIONAL, &text, err));
    if (text != NULL && strlen(text) > size_max)
        return klp_refuse(err, KELPIE_E_INVALID, "field '%s' is longer than %zu bytes", key,
                          size_max);
    *out = klp_mem_string(text);
    return true;
}

/* Every item a text, and all within the bounds. */
static bool texts_check(const struct klp_json *list, const char *key, size_t count_max,
                        size_t *total, struct kelpie_error **err)
{
    if (!klp_json_is_array(list))
        return field_wrong(err, key, "is no list");
    if (klp_json_count(list) > count_max)
        return klp_refuse(err, KELPIE_E_INVALID, "field '%s' has more than %zu entries", key,
                          count_max);
    for (size_t i = 0; i < klp_json_count(list); i++) {
        const char *text = klp_json_text(klp_json_at(list, i));
        if (text == NULL)
            return field_wrong(err, key, "has an entry that is no text");
        *total += strlen(text) + 1;
        if (*total > KLP_ARG_BYTES_MAX)
            return klp_refuse(err, KELPIE_E_INVALID,
                              "field '%s' goes beyond %u bytes of texts in all", key,
                              KLP_ARG_BYTES_MAX);
    }
    return true;
}

bool klp_wire_get_texts(const struct klp_json *object, const char *key, size_t count_max,
                        size_t *total, char ***out, struct kelpie_error **err)
{
    const struct klp_json *list = klp_json_find(object, key);
    *out = NULL;
    if (klp_wire_is_absent(object, key))
        return true;
    KLP_CHECK(texts_check(list, key, count_max, total, err));
    size_t count = klp_json_count(list);
    if (count == 0)
        return true;
    *out = klp_mem_try((count + 1) * sizeof(**out));
    if (*out == NULL)
        return klp_refuse(err, KELPIE_E_NO_MEMORY, "no memory for %zu texts", count);
    for (size_t i = 0; i < count; i++)
        (*out)[i] = klp_mem_string(klp_json_text(klp_json_at(list, i)));
    return true;
}

static const char *const uniqueness_keys[KLP_UNIQUENESS_COUNT] = {"kernel_rng", "clock", "identity",
                                                                  "userspace_rng"};

bool klp_wire_get_uniqueness(const struct klp_json *object,
                             char out[KLP_UNIQUENESS_COUNT][KLP_UNIQUENESS_SIZE],
                             struct kelpie_error **err)
{
    const struct klp_json *members = klp_json_find(object, "uniqueness");
    if (klp_wire_is_absent(object, "uniqueness"))
        return true;
    if (!klp_json_is_object(members))
        return field_wrong(err, "uniqueness", "is no object");
    for (size_t i = 0; i < KLP_UNIQUENESS_COUNT; i++)
        KLP_CHECK(klp_wire_get_text(members, uniqueness_keys[i], KLP_JSON_OPTIONAL, out[i],
                                    KLP_UNIQUENESS_SIZE, err));
    return true;
}

/* ---- setting */

void klp_wire_set_u64(struct klp_json *object, const char *key, uint64_t value)
{
    klp_json_set_u64(object, key, value <= INT64_MAX ? value : INT64_MAX);
}

void klp_wire_set_text(struct klp_json *object, const char *key, const char *text)
{
    klp_json_set_text(object, key, text[0] == '\0' ? NULL : text);
}

void klp_wire_set_digest(struct klp_json *object, const char *key, const struct klp_digest *digest)
{
    char text[KLP_DIGEST_SIZE];
    klp_digest_text(digest, text);
    klp_json_set_text(object, key, klp_digest_is_zero(digest) ? NULL : text);
}

void klp_wire_set_arch(struct klp_json *object, const char *key, enum klp_arch arch)
{
    klp_json_set_text(object, key, arch == KLP_ARCH_NONE ? NULL : klp_arch_name(arch));
}

void klp_wire_set_time(struct klp_json *object, const char *key, int64_t wall_ns, bool exact)
{
    char text[KLP_WIRE_TIME_SIZE];
    klp_wire_time_text(wall_ns, exact, text);
    klp_json_set_text(object, key, text);
}

void klp_wire_set_texts(struct klp_json *object, const char *key, char *const *texts)
{
    struct klp_json *list = klp_json_array();
    for (size_t i = 0; texts != NULL && texts[i] != NULL; i++)
        klp_json_append_text(list, texts[i]);
    klp_json_set(object, key, list);
}

void klp_wire_set_uniqueness(struct klp_json *object,
                             const char uniqueness[KLP_UNIQUENESS_COUNT][KLP_UNIQUENESS_SIZE])
{
    struct klp_json *members = klp_json_object();
    for (size_t i = 0; i < KLP_UNIQUENESS_COUNT; i++)
        klp_wire_set_text(members, uniqueness_keys[i], uniqueness[i]);
    klp_json_set(object, "uniqueness", members);
}

bool klp_wire_refuse(struct kelpie_error **err, enum kelpie_code code, const char *what,
                     const struct kelpie_error *why)
{
    enum kelpie_code own = kelpie_error_code(why);
    if (own == KELPIE_E_NO_MEMORY || own == KELPIE_E_INTERNAL || own == KELPIE_E_UNSUPPORTED)
        code = own;
    return klp_refuse(err, code, "%s: %s", what, kelpie_error_message(why));
}
