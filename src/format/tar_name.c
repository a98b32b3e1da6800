/* SPDX-License-Identifier: Apache-2.0 */
/* Names in archives, pax records and the header's checksum: what reading and writing tar share. */
#include <string.h>

#include "base/fmt.h"
#include "format/tar_inside.h"

#define SHOWN_MAX 128u /* bytes of a hostile name worth showing */

size_t klp_tar_padding(uint64_t size)
{
    return (size_t)((KLP_TAR_BLOCK - size % KLP_TAR_BLOCK) % KLP_TAR_BLOCK);
}

uint32_t klp_tar_sum(const uint8_t block[KLP_TAR_BLOCK])
{
    uint32_t sum = 0;
    for (size_t i = 0; i < KLP_TAR_BLOCK; i++)
        sum += i >= TAR_SUM && i < TAR_SUM + TAR_NUMBER_SIZE ? ' ' : block[i];
    return sum;
}

static bool bad_name(struct kelpie_error **err, enum kelpie_code code, struct klp_bytes name,
                     const char *why)
{
    struct klp_buf shown KLP_AUTO(buf) = KLP_BUF_INIT(8 * SHOWN_MAX);
    klp_text_escape(&shown, name.data, name.size < SHOWN_MAX ? name.size : SHOWN_MAX);
    return klp_refuse(err, code, "tar entry '%s%s': %s", klp_buf_text(&shown),
                      name.size > SHOWN_MAX ? "..." : "", why);
}

static bool text_check(struct klp_bytes text, enum kelpie_code code, struct kelpie_error **err)
{
    if (text.size == 0)
        return bad_name(err, code, text, "a name without a letter");
    if (text.size > KLP_PATH_MAX)
        return bad_name(err, KELPIE_E_LIMIT, text, "the name has more than 4096 bytes");
    for (size_t i = 0; i < text.size; i++) {
        if (text.data[i] == '\0')
            return bad_name(err, code, text, "a NUL in the name");
    }
    return true;
}

bool klp_tar_path_normal(struct klp_bytes name, char *out, enum kelpie_code code,
                         struct kelpie_error **err)
{
    size_t depth = 0, size = 0;
    KLP_CHECK(text_check(name, code, err));
    for (size_t at = 0; at < name.size;) {
        size_t end = at;
        while (end < name.size && name.data[end] != '/')
            end++;
        const uint8_t *part = name.data + at;
        size_t part_size = end - at;
        at = end + 1;
        if (part_size == 0 || (part_size == 1 && part[0] == '.'))
            continue;
        if (part_size == 2 && part[0] == '.' && part[1] == '.')
            return bad_name(err, code, name, "\"..\" leads out of the archive");
        if (++depth > KLP_TAR_DEPTH_MAX)
            return bad_name(err, KELPIE_E_LIMIT, name, "more than 128 directories deep");
        if (size != 0)
            out[size++] = '/';
        memcpy(out + size, part, part_size);
        size += part_size;
    }
    if (size == 0)
        out[size++] = '.';
    out[size] = '\0';
    return true;
}

bool klp_tar_target_copy(struct klp_bytes target, char *out, enum kelpie_code code,
                         struct kelpie_error **err)
{
    KLP_CHECK(text_check(target, code, err));
    memcpy(out, target.data, target.size);
    out[target.size] = '\0';
    return true;
}

/* ---- pax records: "LENGTH KEY=VALUE\n", LENGTH counting all of itself */

static bool bad_pax(struct kelpie_error **err, const char *why)
{
    return klp_refuse(err, KELPIE_E_CORRUPT, "tar: pax header: %s", why);
}

static bool key_is(struct klp_bytes key, const char *name)
{
    return key.size == strlen(name) && memcmp(key.data, name, key.size) == 0;
}

static bool seconds_parse(struct klp_bytes text, int64_t *out)
{
    bool is_negative = text.size > 0 && text.data[0] == '-';
    const char *digits = (const char *)text.data + is_negative;
    size_t left = text.size - is_negative, count = 0;
    uint64_t whole, fraction;
    while (count < left && digits[count] != '.')
        count++;
    if (!klp_parse_u64(digits, count, &whole) || whole > INT64_MAX)
        return false;
    for (size_t i = count + 1; i < left; i++) { /* whole seconds are enough for us */
        if (!klp_parse_u64(digits + i, 1, &fraction))
            return false;
    }
    *out = is_negative ? -(int64_t)whole : (int64_t)whole;
    return true;
}

static bool path_record(struct klp_bytes value, bool *has, char *out, struct kelpie_error **err)
{
    if (*has)
        return bad_pax(err, "a name given twice");
    *has = true;
    return klp_tar_target_copy(value, out, KELPIE_E_CORRUPT, err);
}

static bool number_record(struct klp_bytes key, struct klp_bytes value,
                          struct klp_tar_override *out, struct kelpie_error **err)
{
    bool *has = key_is(key, "size") ? &out->has_size : &out->has_mtime;
    if (*has)
        return bad_pax(err, "size or mtime given twice");
    *has = true;
    if (has == &out->has_mtime)
        return seconds_parse(value, &out->mtime) || bad_pax(err, "mtime is no number of seconds");
    if (!klp_parse_u64((const char *)value.data, value.size, &out->size) || out->size > INT64_MAX)
        return bad_pax(err, "size is no number of bytes");
    return true;
}

static bool record_apply(struct klp_bytes key, struct klp_bytes value, bool is_global,
                         struct klp_tar_override *out, struct kelpie_error **err)
{
    static const char sparse[] = "GNU.sparse.";
    bool is_path = key_is(key, "path"), is_target = key_is(key, "linkpath");
    bool is_number = key_is(key, "size") || key_is(key, "mtime");
    bool is_sparse =
        key.size >= sizeof(sparse) - 1 && memcmp(key.data, sparse, sizeof(sparse) - 1) == 0;
    /* Readers differ on what a global name or size does: so nobody may send one. */
    if (is_global && (is_path || is_target || is_number || is_sparse))
        return bad_pax(err, "a name, size or mtime for all entries");
    if (is_path)
        return path_record(value, &out->has_path, out->path, err);
    if (is_target)
        return path_record(value, &out->has_target, out->target, err);
    if (is_number)
        return number_record(key, value, out, err);
    out->is_sparse = out->is_sparse || is_sparse;
    return true;
}

/* Bytes of the record at the front and where its key begins; 0 = malformed. */
static size_t record_size(struct klp_bytes left, size_t *out_key)
{
    size_t digits = 0;
    uint64_t size;
    while (digits < left.size && left.data[digits] != ' ' && digits < 8)
        digits++;
    if (digits == left.size || left.data[digits] != ' ' || left.data[0] == '0' ||
        !klp_parse_u64((const char *)left.data, digits, &size))
        return 0;
    if (size > left.size || size < digits + 3 || left.data[size - 1] != '\n')
        return 0;
    *out_key = digits + 1;
    return (size_t)size;
}

bool klp_tar_pax_decode(struct klp_bytes body, bool is_global, struct klp_tar_override *out,
                        struct kelpie_error **err)
{
    while (body.size > 0) {
        size_t key_at = 0, equals;
        size_t size = record_size(body, &key_at);
        if (size == 0)
            return bad_pax(err, "a malformed record");
        for (equals = key_at; equals < size && body.data[equals] != '='; equals++) {
        }
        if (equals == size || equals == key_at)
            return bad_pax(err, "a record without a key");
        struct klp_bytes key = {body.data + key_at, equals - key_at};
        struct klp_bytes value = {body.data + equals + 1, size - equals - 2};
        KLP_CHECK(record_apply(key, value, is_global, out, err));
        body.data += size;
        body.size -= size;
    }
    return true;
}
