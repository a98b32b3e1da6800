/* SPDX-License-Identifier: Apache-2.0 */
#include "base/name.h"

#include <string.h>

#include "base/buf.h"
#include "base/fmt.h"

static bool name_byte(char byte)
{
    return (byte >= 'a' && byte <= 'z') || (byte >= '0' && byte <= '9');
}

bool klp_name_is_valid(const char *name)
{
    if (name == NULL || !name_byte(name[0]))
        return false;
    size_t size = 1;
    while (name[size] != 0) {
        if (size == KLP_NAME_MAX || !(name_byte(name[size]) || name[size] == '-'))
            return false;
        size++;
    }
    return true;
}

bool klp_name_check(const char *kind, const char *name, struct kelpie_error **err)
{
    if (klp_name_is_valid(name))
        return true;
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf shown = KLP_BUF_INIT(1024);
    size_t size = name != NULL ? strlen(name) : 0;
    klp_text_escape(&shown, name != NULL ? name : "", size > 80 ? 80 : size);
    return klp_refuse(err, KELPIE_E_INVALID,
                      "'%s' is no %s name: 1 to %d of a-z 0-9 -, the first not a -",
                      klp_buf_text(&shown), kind, KLP_NAME_MAX);
}

bool klp_id_is_valid(const char *text)
{
    uint8_t bytes[KLP_ID_BYTES];
    return text != NULL && klp_hex_decode(text, strlen(text), bytes, sizeof(bytes));
}

void klp_digest_text(const struct klp_digest *digest, char out[KLP_DIGEST_SIZE])
{
    klp_hex_encode(digest->bytes, KLP_DIGEST_BYTES, out);
}

bool klp_digest_parse(const char *text, struct klp_digest *out)
{
    return text != NULL && klp_hex_decode(text, strlen(text), out->bytes, KLP_DIGEST_BYTES);
}

bool klp_digest_is_zero(const struct klp_digest *digest)
{
    static const struct klp_digest zero;
    return klp_digest_equal(digest, &zero);
}

bool klp_digest_equal(const struct klp_digest *a, const struct klp_digest *b)
{
    return memcmp(a->bytes, b->bytes, KLP_DIGEST_BYTES) == 0;
}

void klp_text_copy(char *out, size_t capacity, const char *text)
{
    size_t size = strlen(text);
    KLP_ASSERT(size < capacity);
    memcpy(out, text, size + 1);
}
