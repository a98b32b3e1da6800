/* SPDX-License-Identifier: Apache-2.0 */
/* tar: what we write we read, what other programs write we read, and what would lead out of a
 * directory, past a limit, or be read in two ways is refused. */
#include "format_kit.h"

#include "format/tar.h"

/* ---- reading into a log: one line an event, contents inside brackets */

static bool log_event(struct klp_buf *log, enum klp_tar_event event,
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
static enum klp_tar_event read_pieces(struct klp_bytes bytes, size_t piece, uint64_t content_max,
                                      struct klp_buf *log, struct kelpie_error **err)
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

static void assert_reads(const struct klp_buf *tar, const char *want)
{
    static const size_t pieces[] = {SIZE_MAX / 2, 1, 7, 511, 512, 513, 4096};
    for (size_t i = 0; i < KLP_COUNT(pieces); i++) {
        struct klp_buf log KLP_AUTO(buf) = KLP_BUF_INIT(KLP_MIB);
        assert_int_equal(read_pieces(klp_buf_view(tar), pieces[i], UINT64_MAX, &log, NULL),
                         KLP_TAR_END);
        assert_string_equal(klp_buf_text(&log), want);
    }
}

static void assert_bad(const struct klp_buf *tar, enum kelpie_code code, const char *piece)
{
    static const size_t pieces[] = {SIZE_MAX / 2, 1, 512};
    for (size_t i = 0; i < KLP_COUNT(pieces); i++) {
        struct klp_buf log KLP_AUTO(buf) = KLP_BUF_INIT(KLP_MIB);
        KIT_REFUSED(read_pieces(klp_buf_view(tar), pieces[i], 4096, &log, &err), KLP_TAR_BAD, code,
                    piece);
    }
}

/* ---- writing */

static void append(struct klp_buf *tar, enum klp_tar_kind kind, const char *path,
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

static void test_format_tar__what_is_written_is_read(void **state)
{
    struct klp_buf tar KLP_AUTO(buf) = KLP_BUF_INIT(KLP_MIB);
    (void)state;
    append(&tar, KLP_TAR_DIRECTORY, ".", "", "");
    append(&tar, KLP_TAR_DIRECTORY, "dir", "", "");
    append(&tar, KLP_TAR_FILE, "dir/file", "", "hello");
    append(&tar, KLP_TAR_FILE, "/dir//./empty", "", "");
    append(&tar, KLP_TAR_SYMLINK, "dir/link", "../../etc/passwd", "");
    append(&tar, KLP_TAR_HARDLINK, "again", "./dir/file", "");
    klp_tar_end_append(&tar);
    assert_int_equal(tar.size, 9 * KLP_TAR_BLOCK);
    assert_reads(&tar, "D . 640 0 1700000000 []\n"
                       "D dir 640 0 1700000000 []\n"
                       "F dir/file 640 5 1700000000 [hello]\n"
                       "F dir/empty 640 0 1700000000 []\n"
                       "L dir/link -> ../../etc/passwd 640 0 1700000000 []\n"
                       "H again -> dir/file 640 0 1700000000 []\n");
}

/* Byte for byte what GNU tar 1.34 writes with --format=ustar --owner=0 --group=0 --numeric-owner.
 */
static void test_format_tar__header_bytes(void **state)
{
    struct klp_buf tar KLP_AUTO(buf) = KLP_BUF_INIT(KLP_MIB);
    (void)state;
    append(&tar, KLP_TAR_FILE, "dir/file", "", "hello");
    assert_int_equal(tar.size, 2 * KLP_TAR_BLOCK);
    assert_memory_equal(tar.data, "dir/file\0", 9);
    assert_memory_equal(tar.data + 100,
                        "0000640\0"
                        "0000000\0"
                        "0000000\0",
                        24);
    assert_memory_equal(tar.data + 124,
                        "00000000005\0"
                        "14524770400\0",
                        24);
    assert_memory_equal(tar.data + 148, "010656\0 ", 8);
    assert_memory_equal(tar.data + 156, "0\0", 2);
    assert_memory_equal(tar.data + 257,
                        "ustar\0"
                        "00",
                        8);
    assert_memory_equal(tar.data + 329,
                        "0000000\0"
                        "0000000\0",
                        16);
}

static char *repeated(char letter, size_t count)
{
    char *text = calloc(1, count + 1);
    memset(text, letter, count);
    return text;
}

/* Around every length at which the form of a name changes. */
static void test_format_tar__names_of_every_length(void **state)
{
    static const size_t sizes[] = {1,   99,  100, 101, 102, 154, 155,  156,
                                   157, 254, 255, 256, 257, 300, 4095, 4096};
    static const enum klp_tar_kind kinds[] = {KLP_TAR_FILE, KLP_TAR_DIRECTORY, KLP_TAR_SYMLINK,
                                              KLP_TAR_HARDLINK};
    (void)state;
    for (size_t i = 0; i < KLP_COUNT(sizes) * KLP_COUNT(kinds) * 2; i++) {
        size_t size = sizes[i % KLP_COUNT(sizes)];
        enum klp_tar_kind kind = kinds[i / KLP_COUNT(sizes) % KLP_COUNT(kinds)];
        struct klp_buf tar KLP_AUTO(buf) = KLP_BUF_INIT(KLP_MIB);
        struct klp_buf want KLP_AUTO(buf) = KLP_BUF_INIT(KLP_MIB);
        char *name = repeated('n', size);
        bool is_cut = i >= KLP_COUNT(sizes) * KLP_COUNT(kinds);
        for (size_t slash = 60; is_cut && slash + 1 < size; slash += 60)
            name[slash] = '/';
        bool is_link = kind == KLP_TAR_SYMLINK || kind == KLP_TAR_HARDLINK;
        append(&tar, kind, name, is_link ? name : "", "");
        klp_tar_end_append(&tar);
        klp_buf_append_format(&want, "%c %s%s%s 640 0 1700000000 []\n", "FDLH"[kind], name,
                              is_link ? " -> " : "", is_link ? name : "");
        assert_reads(&tar, klp_buf_text(&want));
        free(name);
    }
}

static void test_format_tar__numbers_that_do_not_fit_a_header(void **state)
{
    static const int64_t times[] = {0, 077777777777, 0100000000000, -1, INT64_MIN, INT64_MAX};
    static const uint64_t sizes[] = {077777777777, 0100000000000, INT64_MAX};
    struct klp_tar_entry *entry = calloc(1, sizeof(*entry));
    (void)state;
    strncpy(entry->path, "f", KLP_PATH_MAX);
    for (size_t i = 0; i < KLP_COUNT(times) * KLP_COUNT(sizes); i++) {
        KLP_AUTO(tar_reader) struct klp_tar_reader *reader = klp_tar_reader_create(UINT64_MAX);
        struct klp_buf tar KLP_AUTO(buf) = KLP_BUF_INIT(KLP_MIB);
        const struct klp_tar_entry *got = NULL;
        struct klp_bytes content, input;
        entry->mtime = times[i % KLP_COUNT(times)];
        entry->size = sizes[i / KLP_COUNT(times)];
        assert_true(klp_tar_header_append(&tar, entry, NULL));
        input = klp_buf_view(&tar);
        enum klp_tar_event event = klp_tar_next(reader, &input, &got, &content, NULL);
        /* INT64_MIN is further back than a pax record of ours can say; any reader may refuse it. */
        if (entry->mtime == INT64_MIN) {
            assert_int_equal(event, KLP_TAR_BAD);
            continue;
        }
        assert_int_equal(event, KLP_TAR_ENTRY);
        assert_true(got->mtime == entry->mtime);
        assert_true(got->size == entry->size);
    }
    free(entry);
}

static void test_format_tar__entries_that_cannot_be_written(void **state)
{
    struct klp_buf tar KLP_AUTO(buf) = KLP_BUF_INIT(KLP_MIB);
    struct klp_buf small KLP_AUTO(buf) = KLP_BUF_INIT(100);
    struct klp_tar_entry *entry = calloc(1, sizeof(*entry));
    (void)state;
#define CASE(kind_, path_, target_, size_, code, piece)                                            \
    entry->kind = (kind_);                                                                         \
    strncpy(entry->path, path_, KLP_PATH_MAX);                                                     \
    strncpy(entry->target, target_, KLP_PATH_MAX);                                                 \
    entry->size = (size_);                                                                         \
    KIT_REFUSED(klp_tar_header_append(&tar, entry, &err), false, code, piece)
    CASE(KLP_TAR_OTHER, "a", "", 0, KELPIE_E_INVALID, "only files");
    CASE(KLP_TAR_FILE, "", "", 0, KELPIE_E_INVALID, "without a letter");
    CASE(KLP_TAR_FILE, ".", "", 0, KELPIE_E_INVALID, "'.'");
    CASE(KLP_TAR_FILE, "a/../b", "", 0, KELPIE_E_INVALID, "out of the archive");
    CASE(KLP_TAR_SYMLINK, "a", "", 0, KELPIE_E_INVALID, "without a letter");
    CASE(KLP_TAR_HARDLINK, "a", "../b", 0, KELPIE_E_INVALID, "out of the archive");
    CASE(KLP_TAR_FILE, "a", "", (uint64_t)1 << 63, KELPIE_E_INVALID, "2^63");
#undef CASE
    assert_int_equal(tar.size, 0);
    entry->size = 0;
    KIT_REFUSED(klp_tar_header_append(&small, entry, &err), false, KELPIE_E_LIMIT, "tar stream");
    free(entry);
}

/* ---- archives made by hand */

struct raw {
    const char *name, *link, *prefix, *magic;
    const char *size; /* as it stands in the header */
    char type;
    const char *content; /* with its padding */
};

static void raw_seal(uint8_t *block)
{
    unsigned sum = 0;
    memset(block + 148, ' ', 8);
    for (unsigned i = 0; i < KLP_TAR_BLOCK; i++)
        sum += block[i];
    for (int digit = 5; digit >= 0; digit--, sum >>= 3)
        block[148 + digit] = (uint8_t)('0' + (sum & 7));
    block[154] = '\0';
}

static uint8_t *raw_append(struct klp_buf *tar, struct raw raw)
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

static void test_format_tar__prefixes_and_old_types(void **state)
{
    (void)state;
    ASSERT_READS(RAW(&tar, .name = "name", .prefix = "pre/fix", .type = '0', .content = "x"),
                 "F pre/fix/name 644 1 7 [x]\n");
    ASSERT_READS(RAW(&tar, .name = "name", .prefix = "no prefix", .type = 0, .magic = GNU),
                 "F name 644 0 7 []\n");
    ASSERT_READS(RAW(&tar, .name = "c", .type = '7', .content = "y"), "F c 644 1 7 [y]\n");
    ASSERT_READS(RAW(&tar, .name = "///d///", .type = '5'), "D d 644 0 7 []\n");
    ASSERT_READS(RAW(&tar, .name = "/", .type = '5'), "D . 644 0 7 []\n");
}

static void test_format_tar__pax_overrides_one_entry(void **state)
{
    (void)state;
    ASSERT_READS((RAW(&tar, .name = "pax", .type = 'x',
                      .content = "12 path=new\n"
                                 "10 size=3\n"
                                 "14 mtime=-5.9\n"
                                 "8 uid=7\n"
                                 "33 SCHILY.xattr.user.k==\n\n=\nrest\n"),
                  RAW(&tar, .name = "old", .type = '0', .size = "0", .content = "abc"),
                  RAW(&tar, .name = "next", .type = '0')),
                 "F new 644 3 -5 [abc]\nF next 644 0 7 []\n");
    ASSERT_READS((RAW(&tar, .name = "pax", .type = 'x', .content = "18 linkpath=./a/b\n"),
                  RAW(&tar, .name = "l", .type = '2', .link = "x")),
                 "L l -> ./a/b 644 0 7 []\n");
    ASSERT_READS((RAW(&tar, .name = "pax", .type = 'g', .content = "13 comment=x\n"),
                  RAW(&tar, .name = "f", .type = '0')),
                 "F f 644 0 7 []\n");
    ASSERT_READS((RAW(&tar, .name = "pax", .type = 'x'), RAW(&tar, .name = "f", .type = '0')),
                 "F f 644 0 7 []\n");
}

static void test_format_tar__malformed_pax(void **state)
{
    static const struct {
        const char *body, *piece;
    } cases[] = {
        {"12 path=ne\n", "malformed record"},
        {"11 path=new\n", "malformed record"},
        {"13 path=new\n", "malformed record"},
        {"012 path=new\n", "malformed record"},
        {"12path=new\n", "malformed record"},
        {" 12 path=new\n", "malformed record"},
        {"12 path=new", "malformed record"},
        {"0 \n", "malformed record"},
        {"3 \n", "malformed record"},
        {"5 ab\n", "without a key"},
        {"5 =a\n", "without a key"},
        {"x", "malformed record"},
        {"99999999999999999999 path=a\n", "malformed record"},
        {"10 size=a\n", "size is no number"},
        {"11 size=-1\n", "size is no number"},
        {"8 size=\n", "size is no number"},
        {"28 size=9223372036854775808\n", "size is no number"},
        {"9 mtime=\n", "mtime is no number"},
        {"11 mtime=-\n", "mtime is no number"},
        {"11 mtime=x\n", "mtime is no number"},
        {"13 mtime=1.x\n", "mtime is no number"},
        {"8 path=\n", "without a letter"},
        {"9 path=a\n9 path=b\n", "given twice"},
        {"10 size=1\n10 size=1\n", "given twice"},
    };
    (void)state;
    for (size_t i = 0; i < KLP_COUNT(cases); i++)
        ASSERT_BAD((RAW(&tar, .name = "pax", .type = 'x', .content = cases[i].body),
                    RAW(&tar, .name = "f", .type = '0')),
                   cases[i].piece);
    ASSERT_BAD(RAW(&tar, .name = "pax", .type = 'g', .content = "9 path=a\n"), "for all entries");
    ASSERT_BAD(RAW(&tar, .name = "pax", .type = 'g', .content = "10 size=1\n"), "for all entries");
    ASSERT_BAD((RAW(&tar, .name = "pax", .type = 'x', .content = "9 path=a\n"),
                RAW(&tar, .name = "pax", .type = 'x', .content = "9 path=b\n")),
               "twice before one entry");
    ASSERT_BAD(RAW(&tar, .name = "pax", .type = 'x', .content = "9 path=a\n"), "it ends");
    ASSERT_LIMIT(RAW(&tar, .name = "pax", .type = 'x', .size = "00001000001"), "a header of more");
}

static void test_format_tar__a_nul_in_a_pax_name(void **state)
{
    (void)state;
    struct klp_buf tar KLP_AUTO(buf) = KLP_BUF_INIT(KLP_MIB);
    uint8_t *block = RAW(&tar, .name = "pax", .type = 'x', .content = "12 path=a.b\n");
    block[KLP_TAR_BLOCK + 9] = '\0';
    RAW(&tar, .name = "f", .type = '0');
    assert_bad(&tar, KELPIE_E_CORRUPT, "NUL");
}

static void test_format_tar__long_names_of_gnu(void **state)
{
    char *name = repeated('n', 150);
    struct klp_buf want KLP_AUTO(buf) = KLP_BUF_INIT(4096);
    (void)state;
    klp_buf_append_format(&want, "L %s -> %s 644 0 7 []\nF f 644 0 7 []\n", name, name);
    ASSERT_READS((RAW(&tar, .name = "././@LongLink", .type = 'K', .magic = GNU,
                      .size = "00000000227", .content = name),
                  RAW(&tar, .name = "././@LongLink", .type = 'L', .magic = GNU,
                      .size = "00000000227", .content = name),
                  RAW(&tar, .name = "nnn", .link = "nnn", .type = '2', .magic = GNU),
                  RAW(&tar, .name = "f", .type = '0', .magic = GNU)),
                 klp_buf_text(&want));
    ASSERT_BAD((RAW(&tar, .name = "l", .type = 'L', .content = "no end"),
                RAW(&tar, .name = "f", .type = '0')),
               "without its end");
    ASSERT_BAD((RAW(&tar, .name = "l", .type = 'L'), RAW(&tar, .name = "f", .type = '0')),
               "without its end");
    ASSERT_BAD((RAW(&tar, .name = "l", .type = 'L', .size = "00000000003", .content = "a"),
                RAW(&tar, .name = "f", .type = '0')),
               "NUL");
    ASSERT_BAD((RAW(&tar, .name = "l", .type = 'L', .size = "00000000002", .content = "a"),
                RAW(&tar, .name = "l", .type = 'L', .size = "00000000002", .content = "a")),
               "twice before one entry");
    ASSERT_BAD((RAW(&tar, .name = "l", .type = 'L', .size = "00000000002", .content = "a"),
                RAW(&tar, .name = "pax", .type = 'x', .content = "9 path=b\n")),
               "given twice");
    ASSERT_BAD(RAW(&tar, .name = "l", .type = 'K', .size = "00000000002", .content = "a"),
               "it ends");
    free(name);
}

static void test_format_tar__what_is_skipped(void **state)
{
    (void)state;
    ASSERT_READS((RAW(&tar, .name = "dev/null", .type = '3'), RAW(&tar, .name = "b", .type = '4'),
                  RAW(&tar, .name = "fifo", .type = '6'),
                  RAW(&tar, .name = "Volume", .type = 'V', .content = "data"),
                  RAW(&tar, .name = "f", .type = '0', .content = "x")),
                 "skip ? dev/null 644 0 7\nskip ? b 644 0 7\nskip ? fifo 644 0 7\n"
                 "skip ? Volume 644 4 7\nF f 644 1 7 [x]\n");
    ASSERT_READS((RAW(&tar, .name = "pax", .type = 'x', .content = "22 GNU.sparse.major=1\n"),
                  RAW(&tar, .name = "s", .type = '0', .content = "1\n0\n"),
                  RAW(&tar, .name = "f", .type = '0')),
                 "skip ? s 644 4 7\nF f 644 0 7 []\n");
}

/* GNU's old sparse entries carry their table in blocks that no size counts. */
static void test_format_tar__sparse_tables_are_skipped(void **state)
{
    (void)state;
    struct klp_buf tar KLP_AUTO(buf) = KLP_BUF_INIT(KLP_MIB);
    uint8_t table[2 * KLP_TAR_BLOCK];
    uint8_t *block = RAW(&tar, .name = "s", .type = 'S', .size = "00000000004", .magic = GNU);
    block[482] = 1;
    raw_seal(block);
    memset(table, 'T', sizeof(table));
    table[504] = 1;
    table[KLP_TAR_BLOCK + 504] = 0;
    klp_buf_append(&tar, table, sizeof(table));
    klp_buf_append(&tar, "data", 4);
    while (tar.size % KLP_TAR_BLOCK != 0)
        klp_buf_append_u8(&tar, 0);
    RAW(&tar, .name = "f", .type = '0', .magic = GNU);
    klp_tar_end_append(&tar);
    assert_reads(&tar, "skip ? s 644 4 7\nF f 644 0 7 []\n");
}

/* reliability-security 2, row 8: names that lead out. */
static void test_format_tar__hostile_names(void **state)
{
    static const char *const names[] = {"..", "../x", "a/../../x", "a/..", "/../x", "./../x"};
    (void)state;
    for (size_t i = 0; i < KLP_COUNT(names); i++) {
        ASSERT_BAD(RAW(&tar, .name = names[i], .type = '0'), "out of the archive");
        ASSERT_BAD(RAW(&tar, .name = names[i], .type = '5'), "out of the archive");
        ASSERT_BAD(RAW(&tar, .name = names[i], .type = '3'), "out of the archive");
        ASSERT_BAD(RAW(&tar, .name = "l", .link = names[i], .type = '1'), "out of the archive");
    }
    ASSERT_BAD(RAW(&tar, .name = "..", .prefix = "a", .type = '0'), "out of the archive");
    ASSERT_BAD(RAW(&tar, .name = ".", .prefix = "a/..", .type = '5'), "out of the archive");
    ASSERT_BAD((RAW(&tar, .name = "pax", .type = 'x', .content = "12 path=../\n"),
                RAW(&tar, .name = "f", .type = '5')),
               "out of the archive");
    ASSERT_BAD(RAW(&tar, .name = "", .type = '0'), "without a letter");
    ASSERT_BAD(RAW(&tar, .name = "l", .type = '2'), "without a letter");
    ASSERT_BAD(RAW(&tar, .name = "/", .type = '0'), "named as a directory");
    ASSERT_BAD(RAW(&tar, .name = "d/", .type = '0'), "named as a directory");
    ASSERT_BAD(RAW(&tar, .name = "d/", .link = "x", .type = '2'), "named as a directory");
    ASSERT_BAD(RAW(&tar, .name = "\x1b]0;x/..", .type = '0'), "'\\x1b]0;x/..'");
    ASSERT_READS(RAW(&tar, .name = "...", .type = '0'), "F ... 644 0 7 []\n");
    ASSERT_READS(RAW(&tar, .name = "a..b/..c", .type = '0'), "F a..b/..c 644 0 7 []\n");
}

static void test_format_tar__depth_and_length(void **state)
{
    struct klp_buf deep KLP_AUTO(buf) = KLP_BUF_INIT(8192);
    struct klp_buf pax KLP_AUTO(buf) = KLP_BUF_INIT(16384);
    char *long_name = repeated('n', 4097);
    (void)state;
    for (int i = 0; i < 128; i++)
        klp_buf_append_text(&deep, "d/");
    klp_buf_append_format(&pax, "266 path=%s\n", klp_buf_text(&deep));
    assert_int_equal(pax.size, 266);
    {
        ARCHIVE(tar, (RAW(&tar, .name = "p", .type = 'x', .content = klp_buf_text(&pax)),
                      RAW(&tar, .name = "d", .type = '5')));
        struct klp_buf log KLP_AUTO(buf) = KLP_BUF_INIT(8192);
        assert_int_equal(read_pieces(klp_buf_view(&tar), 512, 0, &log, NULL), KLP_TAR_END);
    }
    klp_buf_clear(&pax);
    klp_buf_append_format(&pax, "267 path=%sx\n", klp_buf_text(&deep));
    ASSERT_LIMIT((RAW(&tar, .name = "p", .type = 'x', .content = klp_buf_text(&pax)),
                  RAW(&tar, .name = "d", .type = '5')),
                 "128 directories deep");
    klp_buf_clear(&pax);
    klp_buf_append_format(&pax, "4108 path=%s\n", long_name);
    assert_int_equal(pax.size, 4108);
    ASSERT_LIMIT((RAW(&tar, .name = "p", .type = 'x', .content = klp_buf_text(&pax)),
                  RAW(&tar, .name = "d", .type = '5')),
                 "4096 bytes");
    free(long_name);
}

/* Row 10: what is announced counts, not what comes. */
static void test_format_tar__content_is_bounded(void **state)
{
    struct klp_buf log KLP_AUTO(buf) = KLP_BUF_INIT(KLP_MIB);
    (void)state;
    ARCHIVE(two, (RAW(&two, .name = "a", .type = '0', .content = "abc"),
                  RAW(&two, .name = "v", .type = 'V', .content = "de")));
    assert_int_equal(read_pieces(klp_buf_view(&two), 512, 5, &log, NULL), KLP_TAR_END);
    KIT_REFUSED(read_pieces(klp_buf_view(&two), 512, 4, &log, &err), KLP_TAR_BAD, KELPIE_E_LIMIT,
                "larger than allowed");
    ASSERT_LIMIT(RAW(&tar, .name = "a", .type = '0', .size = "77777777777"), "larger than allowed");
    ASSERT_LIMIT((RAW(&tar, .name = "p", .type = 'x', .content = "28 size=9223372036854775807\n"),
                  RAW(&tar, .name = "a", .type = '0')),
                 "larger than allowed");
}

static void test_format_tar__entries_are_bounded(void **state)
{
    KLP_AUTO(tar_reader) struct klp_tar_reader *reader = klp_tar_reader_create(0);
    struct klp_buf tar KLP_AUTO(buf) = KLP_BUF_INIT(KLP_MIB);
    const struct klp_tar_entry *entry;
    struct klp_bytes content, input;
    (void)state;
    RAW(&tar, .name = "same", .type = '5');
    for (uint32_t i = 0; i < KLP_TAR_ENTRIES_MAX; i++) {
        input = klp_buf_view(&tar);
        enum klp_tar_event event = klp_tar_next(reader, &input, &entry, &content, NULL);
        if (event == KLP_TAR_ENTRY)
            event = klp_tar_next(reader, &input, &entry, &content, NULL);
        assert_int_equal(event, KLP_TAR_ENTRY_END);
    }
    input = klp_buf_view(&tar);
    KIT_REFUSED(klp_tar_next(reader, &input, &entry, &content, &err), KLP_TAR_BAD, KELPIE_E_LIMIT,
                "1000000 entries");
}

/* What two tar programs would read in two ways. */
static void test_format_tar__ambiguous_archives(void **state)
{
    static const char with_size[] = "1235";
    (void)state;
    for (size_t i = 0; i + 1 < sizeof(with_size); i++)
        ASSERT_BAD(RAW(&tar, .name = "d", .link = "x", .type = with_size[i], .content = "hidden"),
                   "has a size");
    ASSERT_BAD((RAW(&tar, .name = "p", .type = 'x', .content = "10 size=1\n"),
                RAW(&tar, .name = "d", .type = '5')),
               "has a size");
    struct klp_buf tar KLP_AUTO(buf) = KLP_BUF_INIT(KLP_MIB);
    uint8_t zeros[KLP_TAR_BLOCK] = {0};
    klp_buf_append(&tar, zeros, sizeof(zeros));
    RAW(&tar, .name = "f", .type = '0');
    assert_bad(&tar, KELPIE_E_CORRUPT, "single zero block");
    klp_buf_clear(&tar);
    klp_tar_end_append(&tar);
    RAW(&tar, .name = "f", .type = '0');
    assert_bad(&tar, KELPIE_E_CORRUPT, "follows its end");
    klp_buf_clear(&tar);
    uint8_t *block = RAW(&tar, .name = "f", .type = '0', .content = "abc");
    block[KLP_TAR_BLOCK + 3] = 1;
    assert_bad(&tar, KELPIE_E_CORRUPT, "padding");
}

/* GNU tar fills up to 10 KiB with zeros. */
static void test_format_tar__zeros_after_the_end(void **state)
{
    (void)state;
    ARCHIVE(tar, RAW(&tar, .name = "f", .type = '0'));
    while (tar.size < 10240)
        klp_buf_append_u8(&tar, 0);
    assert_reads(&tar, "F f 644 0 7 []\n");
}

static void field_set(struct klp_buf *tar, size_t at, const char *bytes, size_t size)
{
    memcpy(tar->data + at, bytes, size);
    raw_seal(tar->data);
}

static void test_format_tar__numbers_in_all_their_forms(void **state)
{
    static const struct {
        const char *field; /* 12 bytes */
        const char *want;  /* NULL: refused */
    } cases[] = {
        {"           \0", "0"},
        {"\0\0\0\0\0\0\0\0\0\0\0\0", "0"},
        {"     17    \0", "15"},
        {"000000000017", "15"},
        {"777777777777", "68719476735"},
        {"17\0        \0", "15"},
        {"\x80\0\0\0\0\0\0\0\0\0\0\x0f", "15"},
        {"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", "9223372036854775807"},
        {"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", "-2"},
        {"\xff\xff\xff\xff\x80\0\0\0\0\0\0\0", "-9223372036854775808"},
        {"00000000018\0", NULL},
        {"0000000001 7", NULL},
        {"-0000000001\0", NULL},
        {"0x000000001\0", NULL},
        {"\x80\0\0\1\0\0\0\0\0\0\0\0", NULL},
        {"\x80\0\0\0\x80\0\0\0\0\0\0\0", NULL},
        {"\xff\xff\xff\xff\x7f\0\0\0\0\0\0\0", NULL},
        {"\xff\xff\xff\0\xff\0\0\0\0\0\0\0", NULL},
        {"\x81\0\0\0\0\0\0\0\0\0\0\0", NULL},
    };
    (void)state;
    for (size_t i = 0; i < KLP_COUNT(cases); i++) {
        ARCHIVE(tar, RAW(&tar, .name = "d", .type = '5'));
        field_set(&tar, 136, cases[i].field, 12);
        if (cases[i].want == NULL) {
            assert_bad(&tar, KELPIE_E_CORRUPT, "malformed number");
            continue;
        }
        struct klp_buf want KLP_AUTO(buf) = KLP_BUF_INIT(4096);
        klp_buf_append_format(&want, "D d 644 0 %s []\n", cases[i].want);
        assert_reads(&tar, klp_buf_text(&want));
    }
    ARCHIVE(tar, RAW(&tar, .name = "f", .type = '0'));
    field_set(&tar, 124, "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", 12);
    assert_bad(&tar, KELPIE_E_CORRUPT, "malformed number");
    field_set(&tar, 124, "00000000000\0", 12);
    field_set(&tar, 100, "\x80\0\0\0\0\0\x01\xff", 8); /* mode: 0777 */
    assert_reads(&tar, "F f 777 0 7 []\n");
    field_set(&tar, 100, "0006755\0", 8); /* set-user-id and -group-id never come out */
    assert_reads(&tar, "F f 755 0 7 []\n");
    field_set(&tar, 100, "\xff\xff\xff\xff\xff\xff\xff\xff", 8);
    assert_bad(&tar, KELPIE_E_CORRUPT, "malformed number");
}

static void test_format_tar__headers_that_are_none(void **state)
{
    (void)state;
    ARCHIVE(tar, RAW(&tar, .name = "f", .type = '0'));
    for (size_t i = 0; i < KLP_TAR_BLOCK; i += 5) {
        struct klp_buf log KLP_AUTO(buf) = KLP_BUF_INIT(4096);
        struct kelpie_error *err = NULL;
        tar.data[i] ^= 0x11;
        assert_int_equal(read_pieces(klp_buf_view(&tar), 512, 4096, &log, &err), KLP_TAR_BAD);
        kit_assert_error(err, KELPIE_E_CORRUPT, "tar");
        tar.data[i] ^= 0x11;
    }
    memcpy(tar.data + 257, "\0\0\0\0\0\0\0\0", 8);
    raw_seal(tar.data);
    assert_bad(&tar, KELPIE_E_CORRUPT, "ustar");
}

/* Never an end, never an error: the caller knows that no more comes. */
static void test_format_tar__cut_archives_need_more(void **state)
{
    struct klp_buf whole KLP_AUTO(buf) = KLP_BUF_INIT(KLP_MIB);
    (void)state;
    append(&whole, KLP_TAR_FILE, "dir/file", "", "hello");
    klp_tar_end_append(&whole);
    for (size_t size = 1; size < whole.size; size += 13) {
        struct klp_buf log KLP_AUTO(buf) = KLP_BUF_INIT(4096);
        assert_int_equal(
            read_pieces((struct klp_bytes){whole.data, size}, SIZE_MAX / 2, 4096, &log, NULL),
            KLP_TAR_NEED_MORE);
    }
}

static void test_format_tar__a_bad_reader_stays_bad(void **state)
{
    KLP_AUTO(tar_reader) struct klp_tar_reader *reader = klp_tar_reader_create(0);
    struct klp_buf tar KLP_AUTO(buf) = KLP_BUF_INIT(KLP_MIB);
    const struct klp_tar_entry *entry;
    struct klp_bytes content, input;
    (void)state;
    RAW(&tar, .name = "..", .type = '0');
    input = klp_buf_view(&tar);
    KIT_REFUSED(klp_tar_next(reader, &input, &entry, &content, &err), KLP_TAR_BAD, KELPIE_E_CORRUPT,
                "out of");
    klp_buf_clear(&tar);
    klp_tar_end_append(&tar);
    input = klp_buf_view(&tar);
    KIT_REFUSED(klp_tar_next(reader, &input, &entry, &content, &err), KLP_TAR_BAD, KELPIE_E_CORRUPT,
                "before");
}

static void test_format_tar__padding(void **state)
{
    (void)state;
    assert_int_equal(klp_tar_padding(0), 0);
    assert_int_equal(klp_tar_padding(1), 511);
    assert_int_equal(klp_tar_padding(512), 0);
    assert_int_equal(klp_tar_padding(UINT64_MAX), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_format_tar__what_is_written_is_read),
        cmocka_unit_test(test_format_tar__header_bytes),
        cmocka_unit_test(test_format_tar__names_of_every_length),
        cmocka_unit_test(test_format_tar__numbers_that_do_not_fit_a_header),
        cmocka_unit_test(test_format_tar__entries_that_cannot_be_written),
        cmocka_unit_test(test_format_tar__prefixes_and_old_types),
        cmocka_unit_test(test_format_tar__pax_overrides_one_entry),
        cmocka_unit_test(test_format_tar__malformed_pax),
        cmocka_unit_test(test_format_tar__a_nul_in_a_pax_name),
        cmocka_unit_test(test_format_tar__long_names_of_gnu),
        cmocka_unit_test(test_format_tar__what_is_skipped),
        cmocka_unit_test(test_format_tar__sparse_tables_are_skipped),
        cmocka_unit_test(test_format_tar__hostile_names),
        cmocka_unit_test(test_format_tar__depth_and_length),
        cmocka_unit_test(test_format_tar__content_is_bounded),
        cmocka_unit_test(test_format_tar__entries_are_bounded),
        cmocka_unit_test(test_format_tar__ambiguous_archives),
        cmocka_unit_test(test_format_tar__zeros_after_the_end),
        cmocka_unit_test(test_format_tar__numbers_in_all_their_forms),
        cmocka_unit_test(test_format_tar__headers_that_are_none),
        cmocka_unit_test(test_format_tar__cut_archives_need_more),
        cmocka_unit_test(test_format_tar__a_bad_reader_stays_bad),
        cmocka_unit_test(test_format_tar__padding),
    };
    return cmocka_run_group_tests_name("format_tar", tests, NULL, NULL);
}
