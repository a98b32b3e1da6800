/* SPDX-License-Identifier: Apache-2.0 */
/* Values from text: strict, no locale, no overflow. */
#include <string.h>

#include "base/buf.h"
#include "base/fmt.h"

bool klp_parse_u64(const char *text, size_t size, uint64_t *out)
{
    uint64_t value = 0;
    for (size_t i = 0; i < size; i++) {
        if (text[i] < '0' || text[i] > '9' || __builtin_mul_overflow(value, 10, &value) ||
            __builtin_add_overflow(value, (uint64_t)(text[i] - '0'), &value))
            return false;
    }
    if (size == 0)
        return false;
    *out = value;
    return true;
}

/* A number and its unit: the number's digits end where the unit begins. */
static bool parse_scaled(const char *text, const char *const units[], const uint64_t scales[],
                         uint64_t *out)
{
    size_t digits = 0;
    while (text[digits] >= '0' && text[digits] <= '9')
        digits++;
    uint64_t value;
    if (!klp_parse_u64(text, digits, &value))
        return false;
    for (size_t i = 0; units[i] != NULL; i++)
        if (strcmp(text + digits, units[i]) == 0)
            return !__builtin_mul_overflow(value, scales[i], out);
    return false;
}

bool klp_parse_duration(const char *text, uint64_t *out_ms, struct kelpie_error **err)
{
    static const char *const units[] = {"ms", "s", "m", "h", NULL};
    static const uint64_t scales[] = {1, 1000, 60000, 3600000};
    /* Deadlines are nanoseconds in 64 bits: a hundred years is bound enough. */
    const uint64_t max_ms = 100ull * 365 * 86400 * 1000;
    if (parse_scaled(text, units, scales, out_ms) && *out_ms <= max_ms)
        return true;
    return klp_refuse(err, KELPIE_E_INVALID,
                      "'%s' is no duration: a number and its unit, such as 500ms, 30s, 5m, 2h",
                      text);
}

bool klp_parse_size(const char *text, uint64_t *out_bytes, struct kelpie_error **err)
{
    static const char *const units[] = {"", "K", "M", "G", "T", NULL};
    static const uint64_t scales[] = {1, 1ull << 10, 1ull << 20, 1ull << 30, 1ull << 40};
    if (parse_scaled(text, units, scales, out_bytes))
        return true;
    return klp_refuse(err, KELPIE_E_INVALID,
                      "'%s' is no size: bytes, or a number with K, M, G or T, such as 512M", text);
}

static int hex_digit(char byte)
{
    if (byte >= '0' && byte <= '9')
        return byte - '0';
    return byte >= 'a' && byte <= 'f' ? byte - 'a' + 10 : -1;
}

bool klp_hex_decode(const char *text, size_t text_size, void *out, size_t size)
{
    if (text_size != 2 * size)
        return false;
    for (size_t i = 0; i < size; i++) {
        int high = hex_digit(text[2 * i]), low = hex_digit(text[2 * i + 1]);
        if (high < 0 || low < 0)
            return false;
        ((uint8_t *)out)[i] = (uint8_t)(high << 4 | low);
    }
    return true;
}

static int base64_digit(char byte)
{
    if (byte >= 'A' && byte <= 'Z')
        return byte - 'A';
    if (byte >= 'a' && byte <= 'z')
        return byte - 'a' + 26;
    if (byte >= '0' && byte <= '9')
        return byte - '0' + 52;
    return byte == '+' ? 62 : byte == '/' ? 63 : -1;
}

/* One group of four; `pads` of them are '='. Bits that padding cuts off must be zero. */
static bool base64_group(const char *text, unsigned pads, struct klp_buf *out)
{
    uint32_t group = 0;
    for (unsigned i = 0; i < 4; i++) {
        int digit = i >= 4 - pads ? 0 : base64_digit(text[i]);
        if (digit < 0 || (i >= 4 - pads && text[i] != '='))
            return false;
        group = group << 6 | (uint32_t)digit;
    }
    if ((group & ((1u << (8 * pads)) - 1)) != 0)
        return false;
    uint8_t bytes[3] = {(uint8_t)(group >> 16), (uint8_t)(group >> 8), (uint8_t)group};
    klp_buf_append(out, bytes, 3 - pads);
    return true;
}

bool klp_base64_decode(const char *text, size_t size, struct klp_buf *out)
{
    if (size % 4 != 0)
        return false;
    for (size_t i = 0; i < size; i += 4) {
        unsigned pads = i + 4 < size || text[i + 3] != '=' ? 0 : text[i + 2] == '=' ? 2 : 1;
        if (!base64_group(text + i, pads, out))
            return false;
    }
    return !out->over_limit && !out->no_memory;
}
