/* SPDX-License-Identifier: Apache-2.0 */
/* Text from values, without stdio: %s %.*s %c %d %i %u %x %% with flags 0 and width, lengths l ll
 * z. Anything else is a bug (assert). */
#ifndef KLP_BASE_FMT_H
#define KLP_BASE_FMT_H

#include <stdarg.h>
#include <stdint.h>

#include "base/error.h"

/* Like snprintf: always NUL-terminated when capacity > 0; returns the length it would have had. */
size_t klp_format(char *out, size_t capacity, const char *format, ...) KLP_PRINTF(3, 4);
size_t klp_vformat(char *out, size_t capacity, const char *format, va_list args);
/* A new string; stops on out of memory. */
char *klp_text(const char *format, ...) KLP_PRINTF(1, 2);
char *klp_vtext(const char *format, va_list args);

/* Decimal, all digits, no sign, no overflow; "" refused. */
KELPIE_MUST_USE bool klp_parse_u64(const char *text, size_t size, uint64_t *out);
/* "500ms" "30s" "5m" "2h" to milliseconds; INVALID names the text and the forms. */
KELPIE_MUST_USE bool klp_parse_duration(const char *text, uint64_t *out_ms,
                                        struct kelpie_error **err);
/* "512M" "2G" "64K" or plain bytes, to bytes. */
KELPIE_MUST_USE bool klp_parse_size(const char *text, uint64_t *out_bytes,
                                    struct kelpie_error **err);

void klp_hex_encode(const void *bytes, size_t size, char *out); /* 2*size + NUL */
/* Lower-case hex only, exactly 2*size digits. */
KELPIE_MUST_USE bool klp_hex_decode(const char *text, size_t text_size, void *out, size_t size);
/* Standard alphabet with padding. encode: 4*ceil(n/3) bytes appended by the caller's klp_buf. */
struct klp_buf;
void klp_base64_append(struct klp_buf *out, const void *bytes, size_t size);
KELPIE_MUST_USE bool klp_base64_decode(const char *text, size_t size, struct klp_buf *out);
/* RFC 3339 UTC with milliseconds: 2026-11-22T23:59:59.123Z; out holds 25 bytes. Negative = before
 * 1970 shown as 1970. */
#define KLP_TIME_TEXT_SIZE 25
void klp_time_text(int64_t wall_ns, char out[KLP_TIME_TEXT_SIZE]);

/* Text from a guest or a peer, for a terminal or a log: C0/C1 controls, ESC and bidi controls as
 * \xNN or \uNNNN; invalid UTF-8 as \xNN. */
void klp_text_escape(struct klp_buf *out, const void *text, size_t size);
/* For a URL's path or query: all but letters, digits and "-_./" as %xx. */
void klp_percent_append(struct klp_buf *out, const char *text);

#endif
