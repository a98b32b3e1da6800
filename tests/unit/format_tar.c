/* SPDX-License-Identifier: Apache-2.0 */
/* tar: what we write we read, and what other programs write we read. Hostile archives:
 * format_tar_hostile.c. */
#include "format_tar_kit.h"

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
    ASSERT_BAD(RAW(&tar, .name = "pax", .type = 'x', .size = "8"), "malformed number");
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
    };
    return cmocka_run_group_tests_name("format_tar", tests, NULL, NULL);
}
