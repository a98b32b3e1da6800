/* SPDX-License-Identifier: Apache-2.0 */
/* For tests of the mock guest's engine: bytes in and bytes out, one call after the other. */
#ifndef VM_MOCK_ENGINE_KIT_H
#define VM_MOCK_ENGINE_KIT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/fmt.h"
#include "vm/mock/engine.h"

#define MEMORY (16u * KLP_MIB)
#define PAGE 4096u
#define WALL 1700000000000000000ll
#define MS 1000000ull

struct rig {
    struct mock_engine engine;
    uint8_t *memory;
    uint32_t channel;   /* the last one opened */
    bool grants;        /* give back credit for what comes */
    struct klp_buf out; /* DATA of stdout and stderr of the last call */
    struct klp_buf errors;
    struct klp_buf body; /* of the frame that ended it */
    uint16_t end;        /* its type */
    uint64_t given;      /* credit the guest granted us */
};

/* ---- driving */

static inline void rig_step(struct rig *rig, uint64_t ms)
{
    mock_engine_step(&rig->engine, ms * MS, WALL);
}

static inline void frame_put(struct rig *rig, uint16_t type, uint8_t flags, uint32_t channel,
                             struct klp_bytes body)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf frame = KLP_BUF_INIT(128 * KLP_KIB);
    klp_guest_frame_append(&frame, type, flags, channel, body);
    mock_engine_input(&rig->engine, frame.data, frame.size);
}

static inline void frame_number(struct rig *rig, uint16_t type, uint32_t channel, uint16_t tag,
                                uint64_t value)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(64);
    klp_field_append_u64(&body, tag, value);
    frame_put(rig, type, 0, channel, klp_buf_view(&body));
}

static inline bool is_end(uint16_t type)
{
    return type == KLP_GUEST_EXIT || type == KLP_GUEST_DONE || type == KLP_GUEST_ERROR ||
           type == KLP_GUEST_RECEIPT;
}

/* Takes what the engine has to say, of the rig's channel. */
static inline void rig_read(struct rig *rig)
{
    size_t at = 0;
    struct klp_buf *out = &rig->engine.out;
    uint64_t got = 0;
    while (at < out->size) {
        struct klp_guest_frame frame;
        int size = klp_guest_frame_next(out->data + at, out->size - at, &frame, NULL);
        assert_true(size > 0); /* it writes whole frames only */
        at += (size_t)size;
        if (frame.channel != rig->channel)
            continue;
        if (frame.type == KLP_GUEST_DATA) {
            bool is_error = (frame.flags & KLP_GUEST_FLAG_STDERR) != 0;
            klp_buf_append(is_error ? &rig->errors : &rig->out, frame.body.data, frame.body.size);
            got += frame.body.size;
        } else if (frame.type == KLP_GUEST_CREDIT_GRANT) {
            uint64_t bytes = 0;
            assert_true(klp_field_u64(frame.body, KLP_TAG_BYTES, 0, &bytes, NULL));
            rig->given += bytes;
        } else if (is_end(frame.type) || frame.type == KLP_GUEST_MAIN ||
                   frame.type == KLP_GUEST_HELLO_ACK) {
            rig->end = frame.type;
            klp_buf_clear(&rig->body);
            klp_buf_append(&rig->body, frame.body.data, frame.body.size);
        }
    }
    klp_buf_drop_front(out, at);
    if (got > 0 && rig->grants)
        frame_number(rig, KLP_GUEST_CREDIT_GRANT, rig->channel, KLP_TAG_BYTES, got);
}

static inline void rig_clear(struct rig *rig)
{
    klp_buf_clear(&rig->out);
    klp_buf_clear(&rig->errors);
    klp_buf_clear(&rig->body);
    rig->end = 0;
    rig->given = 0;
}

static inline uint32_t request(struct rig *rig, uint16_t type, const struct klp_buf *body)
{
    rig_clear(rig);
    frame_put(rig, type, 0, ++rig->channel,
              body != NULL ? klp_buf_view(body) : (struct klp_bytes){NULL, 0});
    return rig->channel;
}

/* Until the channel ends, or `ms` of the guest's time are over; returns the type of the end. */
static inline uint16_t finish(struct rig *rig, uint64_t ms)
{
    for (uint64_t at = 0;; at++) {
        rig_step(rig, at == 0 ? 0 : 1);
        rig_read(rig);
        if (is_end(rig->end) || at >= ms)
            return rig->end;
    }
}

static inline uint16_t ask(struct rig *rig, uint16_t type, const struct klp_buf *body)
{
    request(rig, type, body);
    return finish(rig, 200);
}

static inline uint64_t number(const struct rig *rig, uint16_t tag)
{
    uint64_t value;
    assert_true(klp_field_u64(klp_buf_view(&rig->body), tag, UINT64_MAX, &value, NULL));
    return value;
}

static inline const char *text(const struct rig *rig, uint16_t tag)
{
    static char out[512];
    struct klp_bytes value = {NULL, 0};
    klp_field_find(klp_buf_view(&rig->body), tag, &value);
    klp_format(out, sizeof(out), "%.*s", (int)value.size, (const char *)value.data);
    return out;
}

static inline void words_append(struct klp_buf *body, const char *words)
{
    while (*words != 0) {
        size_t length = strcspn(words, " ");
        klp_field_append(body, KLP_TAG_ARG, words, length);
        words += length + (words[length] == ' ' ? 1 : 0);
    }
}

static inline uint32_t exec_begin(struct rig *rig, const char *words, uint64_t timeout_ms)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(KLP_FRAME_BODY_MAX);
    words_append(&body, words);
    klp_field_append_u64(&body, KLP_TAG_TIMEOUT_MS, timeout_ms);
    return request(rig, KLP_GUEST_EXEC, &body);
}

static inline const char *say(struct rig *rig, const char *words)
{
    exec_begin(rig, words, 0);
    assert_int_equal(finish(rig, 1000), KLP_GUEST_EXIT);
    return klp_buf_text(&rig->out);
}

static inline void hello(struct rig *rig)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(256);
    klp_field_append(&body, KLP_TAG_NONCE, "nonce-of-16bytes", 16);
    uint32_t channel = rig->channel;
    rig_clear(rig);
    rig->channel = 0;
    frame_put(rig, KLP_GUEST_HELLO, 0, 0, klp_buf_view(&body));
    rig_step(rig, 0);
    rig_read(rig);
    assert_int_equal(rig->end, KLP_GUEST_HELLO_ACK);
    assert_string_equal(text(rig, KLP_TAG_NONCE), "nonce-of-16bytes");
    rig->channel = channel;
}

static inline void rig_init(struct rig *rig, uint8_t *memory, uint64_t size, uint64_t page_size)
{
    uint8_t seed[32];
    memset(seed, 7, sizeof(seed));
    *rig = (struct rig){.memory = memory,
                        .grants = true,
                        .out = KLP_BUF_INIT(64 * KLP_MIB),
                        .errors = KLP_BUF_INIT(64 * KLP_MIB),
                        .body = KLP_BUF_INIT(128 * KLP_KIB)};
    mock_engine_init(&rig->engine, memory, size, page_size, "x86_64", seed);
}

static inline int set_up(void **state)
{
    struct rig *rig = malloc(sizeof(*rig));
    rig_init(rig, calloc(1, MEMORY), MEMORY, PAGE);
    hello(rig);
    *state = rig;
    return 0;
}

static inline void rig_finish(struct rig *rig)
{
    mock_engine_finish(&rig->engine);
    klp_buf_finish(&rig->out);
    klp_buf_finish(&rig->errors);
    klp_buf_finish(&rig->body);
}

static inline int tear_down(void **state)
{
    struct rig *rig = *state;
    rig_finish(rig);
    free(rig->memory);
    free(rig);
    return 0;
}

/* ---- requests that more than one program makes */

static inline void exec_fails(struct rig *rig, const char *words, const char *code)
{
    exec_begin(rig, words, 0);
    assert_int_equal(finish(rig, 10), KLP_GUEST_ERROR);
    assert_string_equal(text(rig, KLP_TAG_ERROR), code);
}

static inline void signal_send(struct rig *rig, uint32_t channel, uint64_t signal)
{
    frame_number(rig, KLP_GUEST_SIGNAL, channel, KLP_TAG_SIGNAL, signal);
}

static inline void data_put(struct rig *rig, const void *bytes, size_t size, bool end)
{
    frame_put(rig, KLP_GUEST_DATA, end ? KLP_GUEST_FLAG_END : 0, rig->channel,
              (struct klp_bytes){bytes, size});
}

static inline void entry_append(struct klp_buf *tar, const char *path, enum klp_tar_kind kind,
                                const void *bytes, uint64_t size)
{
    static struct klp_tar_entry entry;
    static const uint8_t zeros[KLP_TAR_BLOCK];
    memset(&entry, 0, sizeof(entry));
    klp_text_copy(entry.path, sizeof(entry.path), path);
    entry.kind = kind;
    entry.mode = kind == KLP_TAR_DIRECTORY ? 0755 : 0640;
    entry.size = size;
    if (kind == KLP_TAR_SYMLINK)
        klp_text_copy(entry.target, sizeof(entry.target), "there");
    assert_true(klp_tar_header_append(tar, &entry, NULL));
    klp_buf_append(tar, bytes, (size_t)size);
    klp_buf_append(tar, zeros, klp_tar_padding(size));
}

static inline uint16_t put(struct rig *rig, const char *folder, const struct klp_buf *tar)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(512);
    klp_field_append_text(&body, KLP_TAG_PATH, folder);
    request(rig, KLP_GUEST_PUT, &body);
    for (size_t at = 0; at < tar->size; at += 40000) {
        size_t size = tar->size - at < 40000 ? tar->size - at : 40000;
        data_put(rig, tar->data + at, size, false);
        rig_step(rig, 0);
    }
    data_put(rig, NULL, 0, true);
    return finish(rig, 50);
}

static inline uint16_t put_file(struct rig *rig, const char *path, const void *bytes, uint64_t size)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf tar = KLP_BUF_INIT(64 * KLP_MIB);
    entry_append(&tar, path, KLP_TAR_FILE, bytes, size);
    klp_tar_end_append(&tar);
    return put(rig, "/", &tar);
}

static inline void tree_put(struct rig *rig)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf tar = KLP_BUF_INIT(KLP_MIB);
    entry_append(&tar, "d", KLP_TAR_DIRECTORY, NULL, 0);
    entry_append(&tar, "d/a", KLP_TAR_FILE, "hello", 5);
    entry_append(&tar, "d/link", KLP_TAR_SYMLINK, NULL, 0);
    entry_append(&tar, "d/none", KLP_TAR_FILE, NULL, 0);
    entry_append(&tar, "dd", KLP_TAR_FILE, "x", 1);
    klp_tar_end_append(&tar);
    assert_int_equal(put(rig, "/w", &tar), KLP_GUEST_DONE);
}

static inline uint16_t main_start(struct rig *rig, const char *words)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(4096);
    words_append(&body, words);
    request(rig, KLP_GUEST_MAIN_START, &body);
    return finish(rig, 0);
}

static inline uint64_t main_status(struct rig *rig)
{
    request(rig, KLP_GUEST_MAIN_STATUS, NULL);
    finish(rig, 0); /* no time passes */
    assert_int_equal(rig->end, KLP_GUEST_MAIN);
    return number(rig, KLP_TAG_MAIN_STATE);
}

static inline uint32_t log_follow(struct rig *rig, uint64_t offset, bool follow)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(256);
    klp_field_append_u64(&body, KLP_TAG_OFFSET, offset);
    klp_field_append_u64(&body, KLP_TAG_FOLLOW, follow);
    return request(rig, KLP_GUEST_MAIN_LOG, &body);
}

#define RIG_TEST(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

#endif
