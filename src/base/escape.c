/* SPDX-License-Identifier: Apache-2.0 */
/* Text that a guest or a peer chose, made harmless for a terminal, for a log line and for a URL. */
#include "base/buf.h"
#include "base/fmt.h"

/* Length of the UTF-8 sequence at the front, its code point in *out; 0 = not UTF-8. */
static size_t utf8_next(const uint8_t *text, size_t size, uint32_t *out)
{
    static const uint32_t smallest[] = {0, 0, 0x80, 0x800, 0x10000};
    uint8_t lead = text[0];
    size_t need = lead < 0x80       ? 1
                  : lead >> 5 == 6  ? 2
                  : lead >> 4 == 14 ? 3
                  : lead >> 3 == 30 ? 4
                                    : 0;
    if (need == 0 || need > size)
        return 0;
    uint32_t point = need == 1 ? lead : lead & (0x7fu >> need);
    for (size_t i = 1; i < need; i++) {
        if (text[i] >> 6 != 2)
            return 0;
        point = point << 6 | (text[i] & 0x3fu);
    }
    if (point < smallest[need] || point > 0x10ffff || (point >= 0xd800 && point < 0xe000))
        return 0;
    *out = point;
    return need;
}

/* Controls, and what changes the direction or hides text (Unicode bidi and zero-width formatting).
 */
static bool point_is_harmful(uint32_t point)
{
    return point < 0x20 || (point >= 0x7f && point < 0xa0) || point == 0x61c ||
           (point >= 0x200b && point <= 0x200f) || (point >= 0x2028 && point <= 0x202e) ||
           (point >= 0x2060 && point <= 0x2069) || point == 0xfeff;
}

void klp_text_escape(struct klp_buf *out, const void *text, size_t size)
{
    const uint8_t *bytes = text;
    for (size_t at = 0; at < size;) {
        uint32_t point;
        size_t length = utf8_next(bytes + at, size - at, &point);
        if (length == 0) {
            klp_buf_append_format(out, "\\x%02x", bytes[at]);
            at++;
            continue;
        }
        if (!point_is_harmful(point))
            klp_buf_append(out, bytes + at, length);
        else if (point < 0x100)
            klp_buf_append_format(out, "\\x%02x", (unsigned)point);
        else
            klp_buf_append_format(out, "\\u%04x", (unsigned)point);
        at += length;
    }
}

void klp_percent_append(struct klp_buf *out, const char *text)
{
    for (const char *at = text; *at != 0; at++) {
        char byte = *at;
        bool plain = (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z') ||
                     (byte >= '0' && byte <= '9') || byte == '-' || byte == '_' || byte == '.' ||
                     byte == '/';
        if (plain)
            klp_buf_append_u8(out, (uint8_t)byte);
        else
            klp_buf_append_format(out, "%%%02x", (unsigned)(unsigned char)byte);
    }
}
