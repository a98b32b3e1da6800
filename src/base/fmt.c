/* SPDX-License-Identifier: Apache-2.0 */
/* Text from values. Parsing text into values: parse.c. Escaping for terminals: escape.c. */
#include "base/fmt.h"

#include <string.h>

#include "base/buf.h"

struct format_out {
    char *out;
    size_t capacity, size;
};

static void put(struct format_out *to, char byte)
{
    if (to->size + 1 < to->capacity)
        to->out[to->size] = byte;
    to->size++;
}

static void put_padded(struct format_out *to, const char *text, size_t size, size_t width, char pad)
{
    for (size_t i = size; i < width; i++)
        put(to, pad);
    for (size_t i = 0; i < size; i++)
        put(to, text[i]);
}

static void put_number(struct format_out *to, uint64_t value, bool negative, unsigned base,
                       size_t width, char pad)
{
    char digits[21];
    size_t at = sizeof(digits);
    do {
        digits[--at] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value != 0);
    if (negative && pad == '0') {
        put(to, '-');
        width = width > 0 ? width - 1 : 0;
    } else if (negative) {
        digits[--at] = '-';
    }
    put_padded(to, digits + at, sizeof(digits) - at, width, pad);
}

struct format_spec {
    char pad;
    size_t width;
    bool has_precision;
    size_t precision;
    int length; /* 0 int, 1 long, 2 long long, 3 size_t */
};

static const char *spec_parse(const char *at, struct format_spec *spec, va_list *args)
{
    *spec = (struct format_spec){.pad = ' '};
    if (*at == '0') {
        spec->pad = '0';
        at++;
    }
    for (; *at >= '0' && *at <= '9'; at++)
        spec->width = spec->width * 10 + (size_t)(*at - '0');
    if (at[0] == '.' && at[1] == '*') {
        int precision = va_arg(*args, int);
        spec->has_precision = precision >= 0;
        spec->precision = precision >= 0 ? (size_t)precision : 0;
        at += 2;
    }
    for (; *at == 'l'; at++)
        spec->length++;
    if (*at == 'z') {
        spec->length = 3;
        at++;
    }
    return at;
}

static int64_t arg_signed(const struct format_spec *spec, va_list *args)
{
    switch (spec->length) {
    case 1:
        return va_arg(*args, long);
    case 2:
        return va_arg(*args, long long);
    case 3:
        return (int64_t)va_arg(*args, size_t);
    default:
        return va_arg(*args, int);
    }
}

static uint64_t arg_unsigned(const struct format_spec *spec, va_list *args)
{
    switch (spec->length) {
    case 1:
        return va_arg(*args, unsigned long);
    case 2:
        return va_arg(*args, unsigned long long);
    case 3:
        return va_arg(*args, size_t);
    default:
        return va_arg(*args, unsigned);
    }
}

static void put_text(struct format_out *to, const struct format_spec *spec, const char *text)
{
    if (text == NULL)
        text = "(none)";
    size_t size = 0;
    while ((!spec->has_precision || size < spec->precision) && text[size] != 0)
        size++;
    put_padded(to, text, size, spec->width, ' ');
}

static void put_spec(struct format_out *to, char kind, const struct format_spec *spec,
                     va_list *args)
{
    switch (kind) {
    case 's':
        put_text(to, spec, va_arg(*args, const char *));
        return;
    case 'c':
        put(to, (char)va_arg(*args, int));
        return;
    case 'd':
    case 'i': {
        int64_t value = arg_signed(spec, args);
        put_number(to, value < 0 ? 0 - (uint64_t)value : (uint64_t)value, value < 0, 10,
                   spec->width, spec->pad);
        return;
    }
    case 'u':
        put_number(to, arg_unsigned(spec, args), false, 10, spec->width, spec->pad);
        return;
    case 'x':
        put_number(to, arg_unsigned(spec, args), false, 16, spec->width, spec->pad);
        return;
    default:
        KLP_ASSERT(kind == '%');
        put(to, '%');
    }
}

size_t klp_vformat(char *out, size_t capacity, const char *format, va_list args)
{
    struct format_out to = {out, capacity, 0};
    va_list rest;
    va_copy(rest, args);
    for (const char *at = format; *at != 0; at++) {
        if (*at != '%') {
            put(&to, *at);
            continue;
        }
        struct format_spec spec;
        at = spec_parse(at + 1, &spec, &rest);
        put_spec(&to, *at, &spec, &rest);
    }
    va_end(rest);
    if (capacity > 0)
        out[to.size < capacity ? to.size : capacity - 1] = 0;
    return to.size;
}

size_t klp_format(char *out, size_t capacity, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    size_t size = klp_vformat(out, capacity, format, args);
    va_end(args);
    return size;
}

char *klp_vtext(const char *format, va_list args)
{
    size_t size = klp_vformat(NULL, 0, format, args);
    char *text = klp_mem_alloc(size + 1);
    klp_vformat(text, size + 1, format, args);
    return text;
}

char *klp_text(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    char *text = klp_vtext(format, args);
    va_end(args);
    return text;
}

void klp_hex_encode(const void *bytes, size_t size, char *out)
{
    const uint8_t *from = bytes;
    for (size_t i = 0; i < size; i++) {
        out[2 * i] = "0123456789abcdef"[from[i] >> 4];
        out[2 * i + 1] = "0123456789abcdef"[from[i] & 15];
    }
    out[2 * size] = 0;
}

void klp_base64_append(struct klp_buf *out, const void *bytes, size_t size)
{
    static const char alphabet[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const uint8_t *from = bytes;
    for (size_t i = 0; i < size; i += 3) {
        size_t left = size - i;
        uint32_t group = (uint32_t)from[i] << 16 | (left > 1 ? (uint32_t)from[i + 1] << 8 : 0) |
                         (left > 2 ? from[i + 2] : 0);
        char text[4] = {alphabet[group >> 18], alphabet[group >> 12 & 63],
                        left > 1 ? alphabet[group >> 6 & 63] : '=',
                        left > 2 ? alphabet[group & 63] : '='};
        klp_buf_append(out, text, 4);
    }
}

/* Days since 1970 to a civil date, by counting 400-year eras from 1 March 0000. */
static void civil_date(uint64_t days, unsigned *year, unsigned *month, unsigned *day)
{
    uint64_t shifted = days + 719468;
    uint64_t era = shifted / 146097;
    uint64_t of_era = shifted % 146097;
    uint64_t year_of_era = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
    uint64_t of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    uint64_t shifted_month = (5 * of_year + 2) / 153;
    *day = (unsigned)(of_year - (153 * shifted_month + 2) / 5 + 1);
    *month = (unsigned)(shifted_month < 10 ? shifted_month + 3 : shifted_month - 9);
    *year = (unsigned)(year_of_era + era * 400 + (*month <= 2 ? 1 : 0));
}

void klp_time_text(int64_t wall_ns, char out[KLP_TIME_TEXT_SIZE])
{
    uint64_t ms = wall_ns > 0 ? (uint64_t)wall_ns / 1000000 : 0;
    uint64_t seconds = ms / 1000;
    unsigned year, month, day;
    civil_date(seconds / 86400, &year, &month, &day);
    klp_format(out, KLP_TIME_TEXT_SIZE, "%04u-%02u-%02uT%02u:%02u:%02u.%03uZ", year, month, day,
               (unsigned)(seconds / 3600 % 24), (unsigned)(seconds / 60 % 60),
               (unsigned)(seconds % 60), (unsigned)(ms % 1000));
}
