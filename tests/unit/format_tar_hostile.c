/* SPDX-License-Identifier: Apache-2.0 */
/* tar: what would lead out of a directory, past a limit, or be read in two ways is refused. */
#include "format_tar_kit.h"

/* reliability-security 2, row 8: names that lead out. */
static void test_format_tar_hostile__hostile_names(void **state)
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

static void test_format_tar_hostile__depth_and_length(void **state)
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
static void test_format_tar_hostile__content_is_bounded(void **state)
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

static void test_format_tar_hostile__entries_are_bounded(void **state)
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
static void test_format_tar_hostile__ambiguous_archives(void **state)
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
static void test_format_tar_hostile__zeros_after_the_end(void **state)
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

static void test_format_tar_hostile__numbers_in_all_their_forms(void **state)
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

static void test_format_tar_hostile__headers_that_are_none(void **state)
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
static void test_format_tar_hostile__cut_archives_need_more(void **state)
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

static void test_format_tar_hostile__a_bad_reader_stays_bad(void **state)
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

static void test_format_tar_hostile__padding(void **state)
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
        cmocka_unit_test(test_format_tar_hostile__hostile_names),
        cmocka_unit_test(test_format_tar_hostile__depth_and_length),
        cmocka_unit_test(test_format_tar_hostile__content_is_bounded),
        cmocka_unit_test(test_format_tar_hostile__entries_are_bounded),
        cmocka_unit_test(test_format_tar_hostile__ambiguous_archives),
        cmocka_unit_test(test_format_tar_hostile__zeros_after_the_end),
        cmocka_unit_test(test_format_tar_hostile__numbers_in_all_their_forms),
        cmocka_unit_test(test_format_tar_hostile__headers_that_are_none),
        cmocka_unit_test(test_format_tar_hostile__cut_archives_need_more),
        cmocka_unit_test(test_format_tar_hostile__a_bad_reader_stays_bad),
        cmocka_unit_test(test_format_tar_hostile__padding),
    };
    return cmocka_run_group_tests_name("format_tar_hostile", tests, NULL, NULL);
}
