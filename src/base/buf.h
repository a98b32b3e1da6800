/* SPDX-License-Identifier: Apache-2.0 */
/* A growing byte buffer with a ceiling, a view, and text. A failed append sticks: later appends do
 * nothing, and the caller checks once at the end with klp_buf_check. */
#ifndef KLP_BASE_BUF_H
#define KLP_BASE_BUF_H

#include <stdarg.h>
#include <stdint.h>

#include "base/error.h"

struct klp_buf {
    uint8_t *data; /* size bytes, and one NUL behind them whenever data is not NULL */
    size_t size;
    size_t capacity;
    size_t size_max; /* bytes; 0 = a stopped buffer */
    bool over_limit; /* an append would have passed size_max */
    bool no_memory;
};

/* A view; owns nothing. */
struct klp_bytes {
    const uint8_t *data;
    size_t size;
};

#define KLP_BUF_INIT(max) ((struct klp_buf){.size_max = (max)})

void klp_buf_finish(
    struct klp_buf *buf); /* frees the inside; the buffer is empty and usable again */
void klp_buf_clear(struct klp_buf *buf); /* keeps the memory */
void klp_buf_append(struct klp_buf *buf, const void *data, size_t size);
void klp_buf_append_u8(struct klp_buf *buf, uint8_t value);
void klp_buf_append_u16(struct klp_buf *buf, uint16_t value); /* little-endian, as all of ours */
void klp_buf_append_u32(struct klp_buf *buf, uint32_t value);
void klp_buf_append_u64(struct klp_buf *buf, uint64_t value);
void klp_buf_append_text(struct klp_buf *buf, const char *text);
void klp_buf_append_format(struct klp_buf *buf, const char *format, ...) KLP_PRINTF(2, 3);
void klp_buf_append_vformat(struct klp_buf *buf, const char *format, va_list args);
/* Room for `size` more bytes, to be filled by the caller and then counted with klp_buf_grow; NULL =
 * failed. */
void *klp_buf_reserve(struct klp_buf *buf, size_t size);
void klp_buf_grow(struct klp_buf *buf, size_t size);
void klp_buf_drop_front(struct klp_buf *buf, size_t size);
/* LIMIT or NO_MEMORY when any append failed; `what` names the thing. */
KELPIE_MUST_USE bool klp_buf_check(const struct klp_buf *buf, const char *what,
                                   struct kelpie_error **err);
/* Moves the bytes out as a NUL-terminated string (never NULL). The buffer is empty afterwards. */
char *klp_buf_take_text(struct klp_buf *buf);
const char *klp_buf_text(const struct klp_buf *buf); /* "" when empty; borrowed */
static inline struct klp_bytes klp_buf_view(const struct klp_buf *buf)
{
    return (struct klp_bytes){buf->data, buf->size};
}

static inline void klp_auto_buf(struct klp_buf *buf)
{
    klp_buf_finish(buf);
}

/* Bounds-checked little-endian reading of untrusted bytes: a read past the end sticks (`failed`)
 * and answers zeros, so a parser checks once a record. */
struct klp_reader {
    const uint8_t *data;
    size_t size, at;
    bool failed;
};

uint8_t klp_read_u8(struct klp_reader *reader);
uint16_t klp_read_u16(struct klp_reader *reader);
uint32_t klp_read_u32(struct klp_reader *reader);
uint64_t klp_read_u64(struct klp_reader *reader);
/* Borrowed; NULL when fewer than `size` remain. */
const uint8_t *klp_read_bytes(struct klp_reader *reader, size_t size);
static inline size_t klp_read_left(const struct klp_reader *reader)
{
    return reader->failed ? 0 : reader->size - reader->at;
}

#endif
