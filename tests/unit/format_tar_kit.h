/* SPDX-License-Identifier: Apache-2.0 */
/* What the unit tests of tar share: reading an archive into a log, and making one by hand. */
#ifndef TESTS_UNIT_FORMAT_TAR_KIT_H
#define TESTS_UNIT_FORMAT_TAR_KIT_H

#include "format_kit.h"

#include "format/tar.h"

/* ---- reading into a log: one line an event, contents inside brackets */

static inline bool log_event(struct klp_buf *log, enum klp_tar_event event,
                             const struct klp_tar_entry *entry, struct klp_bytes content)
{
    static const char kinds[] = "FDLH?";
    switch (event) {
    case KLP_TAR_ENTRY:
    case KLP_TAR_SKIPPED:
        klp_buf_append_format(log, "%s%c %s", event == KLP_TAR_SKIPPED ? "skip " : "",
                              kinds[entry->kind], entry->path);
        if (entry->target[0] != '\0')
            klp_buf_append_format(log, " -> %s", entry->target);
        klp_buf_append_format(log, " %u%u%u %llu %lld%s", entry->mode >> 6, entry->mode >> 3 & 7,
                              entry->mode & 7, (unsigned long long)entry->size,
                              (long long)entry->mtime, event == KLP_TAR_SKIPPED ? "\n" : " [");
        return true;
    case KLP_TAR_CONTENT:
        klp_buf_append(log, content.data, content.size);
        return true;
    case KLP_TAR_ENTRY_END:
        klp_buf_append_text(log, "]\n");
        return true;
    case KLP_TAR_END:
    case KLP_TAR_NEED_MORE:
    case KLP_TAR_BAD:
        break;
    }
    return false;
}

/* The last event; everything was fed in pieces of `piece` bytes, each in memory of its own. */
static inline enum klp_tar_event read_pieces(struct klp_bytes bytes, size_t piece,
                                             uint64_t content_max, struct klp_buf *log,
                                             struct kelpie_error **err)
{
    KLP_AUTO(tar_reader) struct klp_tar_reader *reader = klp_tar_reader_create(content_max);
    enum klp_tar_event event = KLP_TAR_NEED_MORE;
    const struct klp_tar_entry *entry = NULL;
    struct klp_bytes content = {0};
    for (size_t at = 0; at < bytes.size && event != KLP_TAR_BAD; at += piece) {
        size_t size = bytes.size - at < piece ? bytes.size - at : piece;
        uint8_t *exact = kit_copy(bytes.data + at, size);
        struct klp_bytes input = {exact, size};
        do {
            event = klp_tar_next(reader, &input, &entry, &content, err);
        } while (log_event(log, event, entry, content));
        if (event != KLP_TAR_BAD)
            assert_int_equal(input.size, 0);
        free(exact);
    }
    return event;
}

static inline void assert_reads(const struct klp_buf *tar, const char *want)
{
    static const size_t pieces[] = {SIZE_MAX / 2, 1, 7, 511, 512, 513, 4096};
    for (size_t i = 0; i < KLP_COUNT(pieces); i++) {
        struct klp_buf log KLP_AUTO(buf) = KLP_BUF_INIT(KLP_MIB);
        assert_int_equal(read_pieces(klp_buf_view(tar), pieces[i], UINT64_MAX, &log, NULL),
                         KLP_TAR_END);
        assert_string_equal(klp_buf_text(&log), want);
    }
}

static inline void assert_bad(const struct klp_buf *tar, enum kelpie_code code, const char *piece)
{
    static const size_t pieces[] = {SIZE_MAX / 2, 1, 512};
    for (size_t i = 0; i < KLP_COUNT(pieces); i++) {
        struct klp_buf log KLP_AUTO(buf) = KLP_BUF_INIT(KLP_MIB);
        KIT_REFUSED(read_pieces(klp_buf_view(tar), pieces[i], 4096, &log, &err), KLP_TAR_BAD, code,
                    piece);
    }
}

/* ---- writing */

static inline void append(struct klp_buf *tar, enum klp_tar_kind kind, const char *path,
                          const char *target, const char *content)
{
    static const uint8_t zeros[KLP_TAR_BLOCK];
    struct klp_tar_entry *entry = calloc(1, sizeof(*entry));
    strncpy(entry->path, path, KLP_PATH_MAX);
    strncpy(entry->target, target, KLP_PATH_MAX);
    entry->kind = kind;
    entry->mode = 0100640;
    entry->size = strlen(content);
    entry->mtime = 1700000000;
    assert_true(klp_tar_header_append(tar, entry, NULL));
    klp_buf_append_text(tar, content);
    klp_buf_append(tar, zeros, klp_tar_padding(strlen(content)));
    free(entry);
}

/* ---- archives made by hand */

struct raw {
    const char *name, *link, *prefix, *magic;
    const char *size; /* as it stands in the header */
    char type;
    const char *content; /* with its padding */
};

static inline void raw_seal(uint8_t *block)
{
    unsigned sum = 0;
    memset(block + 148, ' ', 8);
    for (unsigned i = 0; i < KLP_TAR_BLOCK; i++)
        sum += block[i];
    for (int digit = 5; digit >= 0; digit--, sum >>= 3)
        block[148 + digit] = (uint8_t)('0' + (sum & 7));
    block[154] = '\0';
}

static inline uint8_t *raw_append(struct klp_buf *tar, struct raw raw)
{
    uint8_t block[KLP_TAR_BLOCK] = {0};
    const char *magic = raw.magic != NULL ? raw.magic : "ustar\00000";
    size_t content = raw.content != NULL ? strlen(raw.content) : 0;
    memcpy(block, raw.name, strlen(raw.name) < 100 ? strlen(raw.name) : 100);
    memcpy(block + 100, "0000644", 8);
    if (raw.size != NULL)
        memcpy(block + 124, raw.size, strlen(raw.size));
    else
        for (size_t i = 0, left = content; i < 11; i++, left >>= 3)
            block[134 - i] = (uint8_t)('0' + (left & 7));
    memcpy(block + 136, "00000000007", 12);
    block[156] = (uint8_t)raw.type;
    if (raw.link != NULL)
        memcpy(block + 157, raw.link, strlen(raw.link));
    memcpy(block + 257, magic, 8);
    if (raw.prefix != NULL)
        memcpy(block + 345, raw.prefix, strlen(raw.prefix));
    raw_seal(block);
    size_t at = tar->size;
    klp_buf_append(tar, block, sizeof(block));
    if (content != 0)
        klp_buf_append(tar, raw.content, content);
    while (tar->size % KLP_TAR_BLOCK != 0)
        klp_buf_append_u8(tar, 0);
    return tar->data + at;
}

#define GNU "ustar  \0"
#define RAW(tar, ...) raw_append(tar, (struct raw){__VA_ARGS__})
/* A new archive, what `fill` puts into it, the end. */
#define ARCHIVE(name, fill)                                                                        \
    struct klp_buf name KLP_AUTO(buf) = KLP_BUF_INIT(4 * KLP_MIB);                                 \
    fill;                                                                                          \
    klp_tar_end_append(&name)
#define ASSERT_READS(fill, want)                                                                   \
    do {                                                                                           \
        ARCHIVE(tar, fill);                                                                        \
        assert_reads(&tar, want);                                                                  \
    } while (0)
#define ASSERT_BAD(fill, piece)                                                                    \
    do {                                                                                           \
        ARCHIVE(tar, fill);                                                                        \
        assert_bad(&tar, KELPIE_E_CORRUPT, piece);                                                 \
    } while (0)
#define ASSERT_LIMIT(fill, piece)                                                                  \
    do {                                                                                           \
        ARCHIVE(tar, fill);                                                                        \
        assert_bad(&tar, KELPIE_E_LIMIT, piece);                                                   \
    } while (0)

static inline char *repeated(char letter, size_t count)
{
    char *text = calloc(1, count + 1);
    memset(text, letter, count);
    return text;
}

#endif
