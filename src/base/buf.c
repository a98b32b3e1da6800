/* SPDX-License-Identifier: Apache-2.0 */
#include "base/buf.h"

#include <string.h>

#include "base/fmt.h"

void klp_buf_finish(struct klp_buf *buf)
{
    klp_mem_free(buf->data);
    *buf = KLP_BUF_INIT(buf->size_max);
}

void klp_buf_clear(struct klp_buf *buf)
{
    buf->size = 0;
    buf->over_limit = buf->no_memory = false;
    if (buf->data != NULL)
        buf->data[0] = 0;
}

void *klp_buf_reserve(struct klp_buf *buf, size_t size)
{
    if (buf->over_limit || buf->no_memory)
        return NULL;
    if (size > buf->size_max - buf->size || size >= SIZE_MAX - buf->size) {
        buf->over_limit = true;
        return NULL;
    }
    size_t needed = buf->size + size + 1; /* one for the NUL behind the bytes */
    if (needed > buf->capacity) {
        size_t capacity = buf->capacity < 64 ? 64 : buf->capacity;
        while (capacity < needed)
            capacity = capacity > SIZE_MAX / 2 ? needed : capacity * 2;
        if (capacity > buf->size_max && buf->size_max + 1 >= needed)
            capacity = buf->size_max + 1;
        uint8_t *data = klp_mem_resize(buf->data, capacity);
        if (data == NULL) {
            buf->no_memory = true;
            return NULL;
        }
        buf->data = data;
        buf->capacity = capacity;
    }
    buf->data[buf->size] = 0;
    return buf->data + buf->size;
}

void klp_buf_grow(struct klp_buf *buf, size_t size)
{
    KLP_ASSERT(buf->data != NULL && size < buf->capacity - buf->size);
    buf->size += size;
    buf->data[buf->size] = 0;
}

/* Room that is there, one for the NUL left out. It never goes beyond size_max. */
static size_t room_left(const struct klp_buf *buf)
{
    bool none = buf->capacity == 0 || buf->over_limit || buf->no_memory;
    return none ? 0 : buf->capacity - buf->size - 1;
}

void klp_buf_append(struct klp_buf *buf, const void *data, size_t size)
{
    if (size > 0 && size <= room_left(buf)) { /* mostly */
        memcpy(buf->data + buf->size, data, size);
        buf->size += size;
        buf->data[buf->size] = 0;
        return;
    }
    void *room = klp_buf_reserve(buf, size);
    if (room == NULL || size == 0)
        return;
    memcpy(room, data, size);
    klp_buf_grow(buf, size);
}

void klp_buf_append_u8(struct klp_buf *buf, uint8_t value)
{
    klp_buf_append(buf, &value, 1);
}

static void append_little(struct klp_buf *buf, uint64_t value, size_t size)
{
    uint8_t bytes[8];
    for (size_t i = 0; i < size; i++)
        bytes[i] = (uint8_t)(value >> (8 * i));
    klp_buf_append(buf, bytes, size);
}

void klp_buf_append_u16(struct klp_buf *buf, uint16_t value)
{
    append_little(buf, value, 2);
}

void klp_buf_append_u32(struct klp_buf *buf, uint32_t value)
{
    append_little(buf, value, 4);
}

void klp_buf_append_u64(struct klp_buf *buf, uint64_t value)
{
    append_little(buf, value, 8);
}

void klp_buf_append_text(struct klp_buf *buf, const char *text)
{
    klp_buf_append(buf, text, strlen(text));
}

void klp_buf_append_vformat(struct klp_buf *buf, const char *format, va_list args)
{
    size_t left = room_left(buf);
    char *end = left > 0 ? (char *)buf->data + buf->size : NULL;
    size_t size = klp_vformat(end, left > 0 ? left + 1 : 0, format, args);
    if (left > 0 && size <= left) { /* mostly */
        buf->size += size;
        return;
    }
    if (left > 0)
        *end = 0; /* what it began is not there */
    char *room = klp_buf_reserve(buf, size);
    if (room == NULL)
        return;
    klp_vformat(room, size + 1, format, args);
    klp_buf_grow(buf, size);
}

void klp_buf_append_format(struct klp_buf *buf, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    klp_buf_append_vformat(buf, format, args);
    va_end(args);
}

void klp_buf_drop_front(struct klp_buf *buf, size_t size)
{
    KLP_ASSERT(size <= buf->size);
    if (size == 0)
        return;
    buf->size -= size;
    memmove(buf->data, buf->data + size, buf->size + 1);
}

bool klp_buf_check(const struct klp_buf *buf, const char *what, struct kelpie_error **err)
{
    if (buf->over_limit)
        return klp_refuse(err, KELPIE_E_LIMIT, "%s would be larger than %zu bytes", what,
                          buf->size_max);
    if (buf->no_memory)
        return klp_refuse(err, KELPIE_E_NO_MEMORY, "no memory for %s", what);
    return true;
}

char *klp_buf_take_text(struct klp_buf *buf)
{
    char *text = buf->data != NULL ? (char *)KLP_TAKE(&buf->data) : klp_mem_string("");
    *buf = KLP_BUF_INIT(buf->size_max);
    return text;
}

const char *klp_buf_text(const struct klp_buf *buf)
{
    return buf->data != NULL ? (const char *)buf->data : "";
}

const uint8_t *klp_read_bytes(struct klp_reader *reader, size_t size)
{
    if (reader->failed || size > reader->size - reader->at) {
        reader->failed = true;
        return NULL;
    }
    if (size == 0 && reader->data == NULL)
        return (const uint8_t *)""; /* nothing is asked of nothing: no failure */
    const uint8_t *bytes = reader->data + reader->at;
    reader->at += size;
    return bytes;
}

static uint64_t read_little(struct klp_reader *reader, size_t size)
{
    const uint8_t *bytes = klp_read_bytes(reader, size);
    uint64_t value = 0;
    for (size_t i = 0; bytes != NULL && i < size; i++)
        value |= (uint64_t)bytes[i] << (8 * i);
    return value;
}

uint8_t klp_read_u8(struct klp_reader *reader)
{
    return (uint8_t)read_little(reader, 1);
}

uint16_t klp_read_u16(struct klp_reader *reader)
{
    return (uint16_t)read_little(reader, 2);
}

uint32_t klp_read_u32(struct klp_reader *reader)
{
    return (uint32_t)read_little(reader, 4);
}

uint64_t klp_read_u64(struct klp_reader *reader)
{
    return read_little(reader, 8);
}
