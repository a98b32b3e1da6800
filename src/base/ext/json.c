/* SPDX-License-Identifier: Apache-2.0 */
#include "base/ext/json.h"

#include <jansson.h>
#include <string.h>

#include "base/ext/ext.h"
#include "base/fmt.h"

#define SHOWN_MAX 2048    /* bytes of a document's text in a message, escaped */
#define KEY_SHOWN_MAX 128 /* bytes of an unknown key in a message, before that */

/* struct klp_json is jansson's json_t under another name: never dereferenced by anyone else. */
static json_t *inside(struct klp_json *json)
{
    return (json_t *)json;
}

static const json_t *inside_const(const struct klp_json *json)
{
    return (const json_t *)json;
}

static struct klp_json *outside(json_t *json)
{
    KLP_ASSERT(json != NULL);
    return (struct klp_json *)json;
}

void klp_ext_init(void)
{
    json_set_alloc_funcs(klp_mem_try, klp_mem_free);
    json_object_seed(
        1); /* not secret: jansson's own seed is random, and a simulation must not be */
}

/* Depth before parsing, so that a deep document costs no stack. Brackets inside of strings do not
 * count. */
static bool depth_is_bounded(const char *text, size_t size, unsigned depth_max)
{
    unsigned depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < size; i++) {
        if (in_string) {
            if (text[i] == '\\')
                i++;
            else if (text[i] == '"')
                in_string = false;
        } else if (text[i] == '"') {
            in_string = true;
        } else if (text[i] == '{' || text[i] == '[') {
            if (++depth > depth_max)
                return false;
        } else if ((text[i] == '}' || text[i] == ']') && depth > 0) {
            depth--;
        }
    }
    return true;
}

bool klp_json_parse(const void *text, size_t size, unsigned depth_max, struct klp_json **out,
                    struct kelpie_error **err)
{
    if (!depth_is_bounded(text, size, depth_max))
        return klp_refuse(err, KELPIE_E_INVALID, "JSON is nested more than %u deep", depth_max);
    json_error_t at;
    json_t *json = json_loadb(text, size, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &at);
    if (json == NULL) {
        struct klp_buf shown KLP_AUTO(buf) = KLP_BUF_INIT(SHOWN_MAX);
        klp_text_escape(&shown, at.text, strlen(at.text)); /* it quotes the document */
        return klp_refuse(err, KELPIE_E_INVALID, "JSON line %d column %d: %s", at.line, at.column,
                          klp_buf_text(&shown));
    }
    *out = outside(json);
    return true;
}

void klp_json_free(struct klp_json *json)
{
    json_decref(inside(json));
}

/* ---- printing: jansson hands out a piece at a time and looks at each letter several times, and
 * records are printed with every step of an agent's life */

static void print_value(const json_t *value, struct klp_buf *out);

static void print_escaped(unsigned char letter, struct klp_buf *out)
{
    static const char letters[] = "\"\\\b\f\n\r\t", names[] = "\"\\bfnrt",
                      digits[] = "0123456789ABCDEF";
    const char *known = letter != 0 ? strchr(letters, letter) : NULL;
    char text[6] = {'\\', 'u', '0', '0', digits[letter >> 4], digits[letter & 15]};
    if (known != NULL)
        text[1] = names[known - letters];
    klp_buf_append(out, text, known != NULL ? 2 : sizeof(text));
}

static void print_text(const char *text, size_t size, struct klp_buf *out)
{
    size_t done = 0;
    klp_buf_append_u8(out, '"');
    for (size_t at = 0; at < size; at++) {
        unsigned char letter = (unsigned char)text[at];
        if (letter >= 0x20 && letter != '"' && letter != '\\')
            continue;
        klp_buf_append(out, text + done, at - done);
        print_escaped(letter, out);
        done = at + 1;
    }
    klp_buf_append(out, text + done, size - done);
    klp_buf_append_u8(out, '"');
}

static void print_object(json_t *object, struct klp_buf *out)
{
    char before = '{';
    for (void *at = json_object_iter(object); at != NULL; at = json_object_iter_next(object, at)) {
        const char *key = json_object_iter_key(at);
        klp_buf_append_u8(out, (uint8_t)before);
        print_text(key, strlen(key), out);
        klp_buf_append_u8(out, ':');
        print_value(json_object_iter_value(at), out);
        before = ',';
    }
    klp_buf_append_text(out, before == '{' ? "{}" : "}");
}

static void print_array(const json_t *array, struct klp_buf *out)
{
    klp_buf_append_u8(out, '[');
    for (size_t i = 0; i < json_array_size(array); i++) {
        if (i > 0)
            klp_buf_append_u8(out, ',');
        print_value(json_array_get(array, i), out);
    }
    klp_buf_append_u8(out, ']');
}

static int print_part(const char *part, size_t size, void *out)
{
    klp_buf_append(out, part, size);
    return 0;
}

/* Depth was bounded where it was parsed. */
static void print_value(const json_t *value, struct klp_buf *out)
{
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        print_object((json_t *)(uintptr_t)value, out); /* its iterators take no const */
        break;
    case JSON_ARRAY:
        print_array(value, out);
        break;
    case JSON_STRING:
        print_text(json_string_value(value), json_string_length(value), out);
        break;
    case JSON_INTEGER:
        klp_buf_append_format(out, "%lld", (long long)json_integer_value(value));
        break;
    case JSON_TRUE:
        klp_buf_append_text(out, "true");
        break;
    case JSON_FALSE:
        klp_buf_append_text(out, "false");
        break;
    case JSON_NULL:
        klp_buf_append_text(out, "null");
        break;
    case JSON_REAL:
        KLP_ASSERT(json_dump_callback(value, print_part, out, JSON_ENCODE_ANY) == 0);
        break;
    }
}

void klp_json_print(const struct klp_json *json, struct klp_buf *out)
{
    print_value(inside_const(json), out);
}

struct klp_json *klp_json_copy(const struct klp_json *json)
{
    return outside(json_deep_copy(inside_const(json)));
}

struct klp_json *klp_json_object(void)
{
    return outside(json_object());
}

struct klp_json *klp_json_array(void)
{
    return outside(json_array());
}

void klp_json_set(struct klp_json *object, const char *key, struct klp_json *value)
{
    KLP_ASSERT(json_object_set_new(inside(object), key, inside(value)) == 0);
}

/* Valid as it is, or every byte that is not UTF-8 replaced by U+FFFD. */
static json_t *text_create(const void *text, size_t size)
{
    json_t *json = json_stringn(text, size);
    if (json != NULL)
        return json;
    struct klp_buf fixed = KLP_BUF_INIT(size * 3);
    const char *bytes = text;
    for (size_t at = 0; at < size;) {
        size_t length = 1;
        json_t *one = NULL;
        for (; length <= 4 && at + length <= size; length++)
            if ((one = json_stringn(bytes + at, length)) != NULL)
                break;
        if (one != NULL)
            klp_buf_append(&fixed, bytes + at, length);
        else
            klp_buf_append_text(&fixed, "\xef\xbf\xbd");
        at += one != NULL ? length : 1;
        json_decref(one);
    }
    json = json_stringn(klp_buf_text(&fixed), fixed.size);
    klp_buf_finish(&fixed);
    return json;
}

void klp_json_set_text(struct klp_json *object, const char *key, const char *text)
{
    if (text == NULL)
        klp_json_set_null(object, key);
    else
        klp_json_set_text_n(object, key, text, strlen(text));
}

void klp_json_set_text_n(struct klp_json *object, const char *key, const void *text, size_t size)
{
    klp_json_set(object, key, outside(text_create(text, size)));
}

void klp_json_set_u64(struct klp_json *object, const char *key, uint64_t value)
{
    KLP_ASSERT(value <= INT64_MAX);
    klp_json_set(object, key, outside(json_integer((json_int_t)value)));
}

void klp_json_set_i64(struct klp_json *object, const char *key, int64_t value)
{
    klp_json_set(object, key, outside(json_integer(value)));
}

void klp_json_set_bool(struct klp_json *object, const char *key, bool value)
{
    klp_json_set(object, key, outside(json_boolean(value)));
}

void klp_json_set_null(struct klp_json *object, const char *key)
{
    klp_json_set(object, key, outside(json_null()));
}

void klp_json_append(struct klp_json *array, struct klp_json *value)
{
    KLP_ASSERT(json_array_append_new(inside(array), inside(value)) == 0);
}

void klp_json_append_text(struct klp_json *array, const char *text)
{
    klp_json_append(array, outside(text_create(text, strlen(text))));
}

bool klp_json_is_object(const struct klp_json *json)
{
    return json_is_object(inside_const(json));
}

bool klp_json_is_array(const struct klp_json *json)
{
    return json_is_array(inside_const(json));
}

bool klp_json_is_text(const struct klp_json *json)
{
    return json_is_string(inside_const(json));
}

size_t klp_json_count(const struct klp_json *array)
{
    return json_array_size(inside_const(array));
}

const struct klp_json *klp_json_at(const struct klp_json *array, size_t index)
{
    return (const struct klp_json *)json_array_get(inside_const(array), index);
}

const struct klp_json *klp_json_find(const struct klp_json *object, const char *key)
{
    return (const struct klp_json *)json_object_get(inside_const(object), key);
}

const char *klp_json_text(const struct klp_json *json)
{
    return json_string_value(inside_const(json));
}

/* The field's value. *out NULL = absent or null, and that is fine. */
static bool field_get(const struct klp_json *object, const char *key, bool required,
                      const json_t **out, struct kelpie_error **err)
{
    *out = json_object_get(inside_const(object), key);
    if (*out == NULL || json_is_null(*out)) {
        *out = NULL;
        if (required)
            return klp_refuse(err, KELPIE_E_INVALID, "field '%s' is missing", key);
    }
    return true;
}

static bool field_is_wrong(const char *key, const char *kind, struct kelpie_error **err)
{
    return klp_refuse(err, KELPIE_E_INVALID, "field '%s' is not %s", key, kind);
}

bool klp_json_get_text(const struct klp_json *object, const char *key, bool required,
                       const char **out, struct kelpie_error **err)
{
    const json_t *value;
    KLP_CHECK(field_get(object, key, required, &value, err));
    if (value == NULL)
        return true;
    if (!json_is_string(value) || strlen(json_string_value(value)) != json_string_length(value))
        return field_is_wrong(key, "a text", err);
    *out = json_string_value(value);
    return true;
}

bool klp_json_get_i64(const struct klp_json *object, const char *key, bool required, int64_t *out,
                      struct kelpie_error **err)
{
    const json_t *value;
    KLP_CHECK(field_get(object, key, required, &value, err));
    if (value == NULL)
        return true;
    if (!json_is_integer(value))
        return field_is_wrong(key, "an integer", err);
    *out = json_integer_value(value);
    return true;
}

bool klp_json_get_u64(const struct klp_json *object, const char *key, bool required, uint64_t *out,
                      struct kelpie_error **err)
{
    const json_t *value;
    KLP_CHECK(field_get(object, key, required, &value, err));
    if (value == NULL)
        return true;
    if (!json_is_integer(value) || json_integer_value(value) < 0)
        return field_is_wrong(key, "an integer of 0 or more", err);
    *out = (uint64_t)json_integer_value(value);
    return true;
}

bool klp_json_get_bool(const struct klp_json *object, const char *key, bool required, bool *out,
                       struct kelpie_error **err)
{
    const json_t *value;
    KLP_CHECK(field_get(object, key, required, &value, err));
    if (value == NULL)
        return true;
    if (!json_is_boolean(value))
        return field_is_wrong(key, "true or false", err);
    *out = json_is_true(value);
    return true;
}

bool klp_json_only(const struct klp_json *object, const char *const keys[],
                   struct kelpie_error **err)
{
    json_t *map = (json_t *)(uintptr_t)inside_const(object);
    for (void *at = json_object_iter(map); at != NULL; at = json_object_iter_next(map, at)) {
        const char *key = json_object_iter_key(at);
        size_t known = 0;
        while (keys[known] != NULL && strcmp(keys[known], key) != 0)
            known++;
        if (keys[known] == NULL) {
            struct klp_buf shown KLP_AUTO(buf) = KLP_BUF_INIT(SHOWN_MAX);
            size_t size = strlen(key);
            klp_text_escape(&shown, key, size < KEY_SHOWN_MAX ? size : KEY_SHOWN_MAX);
            return klp_refuse(err, KELPIE_E_INVALID, "unknown field '%s'", klp_buf_text(&shown));
        }
    }
    return true;
}
