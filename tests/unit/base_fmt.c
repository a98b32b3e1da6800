/* SPDX-License-Identifier: Apache-2.0 */
/* The formatter against the C library's, strict parsers, encodings, times and escaping. */
#include "base_kit.h"

#include "base/buf.h"
#include "base/fmt.h"

/* Ours and the C library's must agree, for every capacity. */
#define SAME_AS_LIBC(...)                                                                          \
    do {                                                                                           \
        char ours[200], theirs[200];                                                               \
        for (size_t capacity = 0; capacity < sizeof(ours); capacity += 7) {                        \
            memset(ours, '#', sizeof(ours));                                                       \
            memset(theirs, '#', sizeof(theirs));                                                   \
            assert_int_equal(klp_format(ours, capacity, __VA_ARGS__),                              \
                             snprintf(theirs, capacity, __VA_ARGS__));                             \
            assert_memory_equal(ours, theirs, sizeof(ours));                                       \
        }                                                                                          \
    } while (0)

static void test_base_fmt__agrees_with_the_c_library(void **state)
{
    (void)state;
    SAME_AS_LIBC("plain %% text");
    SAME_AS_LIBC("%s|%.*s|%s", "a", 3, "abcdef", "");
    SAME_AS_LIBC("%.*s", 10, "short");
    SAME_AS_LIBC("%c%c", 'x', 'y');
    SAME_AS_LIBC("%d %i %d %d", 0, -1, INT32_MAX, INT32_MIN);
    SAME_AS_LIBC("%ld %lld %lld", -5l, (long long)INT64_MIN, (long long)INT64_MAX);
    SAME_AS_LIBC("%u %lu %llu %zu", UINT32_MAX, 7ul, (unsigned long long)UINT64_MAX, SIZE_MAX);
    SAME_AS_LIBC("%x %lx %08x %02x %llx", 0xabcu, 0xdeadul, 0xbeefu, 5u, 1ull << 63);
    SAME_AS_LIBC("%5d|%05d|%05d|%2d", 42, 42, -42, 12345);
    SAME_AS_LIBC("%5d|%6s|%2s|%20llu", -42, "abc", "abc", 123456789012ull);
}

static void test_base_fmt__reads_no_byte_behind_the_precision(void **state)
{
    char exact[3] = {'a', 'b', 'c'}; /* no NUL: the sanitizer sees a read too far */
    char out[8];
    (void)state;
    assert_int_equal(klp_format(out, sizeof(out), "%.*s", 3, exact), 3);
    assert_string_equal(out, "abc");
}

static void is_a_bug(const char *format)
{
    char out[32];
    va_list none;
    memset(&none, 0, sizeof(none));
    KIT_ASSERT_BUG(klp_vformat(out, sizeof(out), format, none));
}

static void test_base_fmt__what_is_not_listed_is_a_bug(void **state)
{
    (void)state;
    is_a_bug("%f");
    is_a_bug("%p");
    is_a_bug("%n");
    is_a_bug("%");
    is_a_bug("%5");
}

static void test_base_fmt__text_makes_a_string(void **state)
{
    (void)state;
    char *text = klp_text("%s-%zu", "agent", (size_t)12);
    assert_string_equal(text, "agent-12");
    klp_mem_free(text);
    assert_null(klp_mem_string(NULL));
    text = klp_mem_string_n("abcdef", 3);
    assert_string_equal(text, "abc");
    klp_mem_free(text);
    assert_int_equal(kit_live, 0);
}

static void test_base_fmt__parse_u64_is_strict(void **state)
{
    uint64_t value = 77;
    (void)state;
    assert_true(klp_parse_u64("0", 1, &value));
    assert_true(value == 0);
    assert_true(klp_parse_u64("18446744073709551615", 20, &value));
    assert_true(value == UINT64_MAX);
    assert_true(klp_parse_u64("12x", 2, &value));
    assert_true(value == 12);
    static const char *const bad[] = {"",
                                      "-1",
                                      "+1",
                                      " 1",
                                      "1 ",
                                      "0x1",
                                      "1.0",
                                      "18446744073709551616",
                                      "99999999999999999999999"};
    for (size_t i = 0; i < KLP_COUNT(bad); i++)
        assert_false(klp_parse_u64(bad[i], strlen(bad[i]), &value));
    assert_true(value == 12);
}

static void test_base_fmt__durations_and_sizes(void **state)
{
    static const struct {
        const char *text;
        uint64_t value;
    } durations[] = {{"500ms", 500}, {"30s", 30000}, {"5m", 300000}, {"2h", 7200000}, {"0s", 0}},
      sizes[] = {
          {"0", 0}, {"4096", 4096}, {"64K", 65536}, {"512M", 512u << 20}, {"2G", 2ull << 30}};
    static const char *const bad[] = {"",
                                      "5",
                                      "s",
                                      "-5s",
                                      "5 s",
                                      "5S",
                                      "1.5s",
                                      "5sx",
                                      "5d",
                                      "18446744073709551615h",
                                      "99999999999h"};
    static const char *const bad_sizes[] = {"",    "K",    "-1",   "5k",
                                            "5KB", "1.5G", "0x10", "18000000000G"};
    struct kelpie_error *err = NULL;
    uint64_t value;
    (void)state;
    for (size_t i = 0; i < KLP_COUNT(durations); i++) {
        assert_true(klp_parse_duration(durations[i].text, &value, &err));
        assert_true(value == durations[i].value);
    }
    for (size_t i = 0; i < KLP_COUNT(sizes); i++) {
        assert_true(klp_parse_size(sizes[i].text, &value, &err));
        assert_true(value == sizes[i].value);
    }
    for (size_t i = 0; i < KLP_COUNT(bad); i++)
        KIT_REFUSED(klp_parse_duration(bad[i], &value, &err), &err, KELPIE_E_INVALID, "500ms");
    for (size_t i = 0; i < KLP_COUNT(bad_sizes); i++)
        KIT_REFUSED(klp_parse_size(bad_sizes[i], &value, &err), &err, KELPIE_E_INVALID, "512M");
}

static void test_base_fmt__hex(void **state)
{
    char text[9];
    uint8_t bytes[4];
    (void)state;
    klp_hex_encode("\x00\x9f\xff\x10", 4, text);
    assert_string_equal(text, "009fff10");
    assert_true(klp_hex_decode(text, 8, bytes, 4));
    assert_memory_equal(bytes, "\x00\x9f\xff\x10", 4);
    assert_false(klp_hex_decode("009FFF10", 8, bytes, 4));
    assert_false(klp_hex_decode("009fff1", 7, bytes, 4));
    assert_false(klp_hex_decode("009fff1000", 10, bytes, 4));
    assert_false(klp_hex_decode("009fff1g", 8, bytes, 4));
}

static void test_base_fmt__base64_vectors(void **state)
{
    /* RFC 4648, section 10 */
    static const char *const vectors[][2] = {{"", ""},
                                             {"f", "Zg=="},
                                             {"fo", "Zm8="},
                                             {"foo", "Zm9v"},
                                             {"foob", "Zm9vYg=="},
                                             {"fooba", "Zm9vYmE="},
                                             {"foobar", "Zm9vYmFy"},
                                             {"\xff\xfe\xfd", "//79"}};
    static const char *const bad[] = {
        "Zg",   "Zg=",      "Zg===",    "Z===",  "====", "=Zg=", "Zh==",
        "Zm9=", "Zg==Zg==", "Zm8=Zm8=", "Zm9\n", "Zm-_", " Zm9"};
    (void)state;
    for (size_t i = 0; i < KLP_COUNT(vectors); i++) {
        struct klp_buf text = KLP_BUF_INIT(100), plain = KLP_BUF_INIT(100);
        klp_base64_append(&text, vectors[i][0], strlen(vectors[i][0]));
        assert_string_equal(klp_buf_text(&text), vectors[i][1]);
        assert_true(klp_base64_decode(klp_buf_text(&text), text.size, &plain));
        assert_string_equal(klp_buf_text(&plain), vectors[i][0]);
        klp_buf_finish(&text);
        klp_buf_finish(&plain);
    }
    for (size_t i = 0; i < KLP_COUNT(bad); i++) {
        struct klp_buf plain = KLP_BUF_INIT(100);
        if (klp_base64_decode(bad[i], strlen(bad[i]), &plain))
            fail_msg("'%s' was taken", bad[i]);
        klp_buf_finish(&plain);
    }
    struct klp_buf small = KLP_BUF_INIT(5);
    assert_false(klp_base64_decode("Zm9vYmFy", 8, &small));
    klp_buf_finish(&small);
}

static void time_is(int64_t seconds, unsigned ms, const char *expected)
{
    char out[KLP_TIME_TEXT_SIZE];
    klp_time_text(seconds * 1000000000 + ms * 1000000ll + 999999, out);
    assert_string_equal(out, expected);
}

static void test_base_fmt__times(void **state)
{
    char out[KLP_TIME_TEXT_SIZE];
    (void)state;
    time_is(0, 0, "1970-01-01T00:00:00.000Z");
    time_is(951782399, 1, "2000-02-28T23:59:59.001Z");
    time_is(951782400, 0, "2000-02-29T00:00:00.000Z"); /* 2000 is a leap year */
    time_is(951868800, 0, "2000-03-01T00:00:00.000Z");
    time_is(1709164800, 0, "2024-02-29T00:00:00.000Z");
    time_is(1795391999, 123, "2026-11-22T23:59:59.123Z");
    time_is(4107542400, 0, "2100-03-01T00:00:00.000Z"); /* 2100 is none */
    klp_time_text(-1, out);
    assert_string_equal(out, "1970-01-01T00:00:00.000Z");
    klp_time_text(INT64_MIN, out);
    assert_string_equal(out, "1970-01-01T00:00:00.000Z");
    klp_time_text(INT64_MAX, out);
    assert_string_equal(out, "2262-04-11T23:47:16.854Z");
}

static void escapes_to(const char *text, size_t size, const char *expected)
{
    struct klp_buf out = KLP_BUF_INIT(1000);
    char *exact = malloc(size + 1); /* so that a read behind the end is seen */
    memcpy(exact + 1, text, size);
    klp_text_escape(&out, exact + 1, size);
    assert_string_equal(klp_buf_text(&out), expected);
    free(exact);
    klp_buf_finish(&out);
}

#define ESCAPES(text, expected) escapes_to(text, sizeof(text) - 1, expected)

static void test_base_fmt__escapes_what_moves_a_terminal(void **state)
{
    (void)state;
    ESCAPES("", "");
    ESCAPES("plain 'text' ~", "plain 'text' ~");
    ESCAPES("gr\xc3\xbc\xc3\x9f \xe2\x82\xac \xf0\x9f\x90\xb4",
            "gr\xc3\xbc\xc3\x9f \xe2\x82\xac \xf0\x9f\x90\xb4");
    ESCAPES("a\nb\tc\0d", "a\\x0ab\\x09c\\x00d");
    ESCAPES("\x1b[2J\x7f", "\\x1b[2J\\x7f");
    ESCAPES("\xc2\x9b"
            "31m",
            "\\x9b31m"); /* C1: CSI as one code point */
    ESCAPES("\xe2\x80\xae"
            "evil\xe2\x81\xa6",
            "\\u202eevil\\u2066"); /* bidi override and isolate */
}

static void test_base_fmt__escapes_invalid_utf8(void **state)
{
    (void)state;
    ESCAPES("\xff\xfe", "\\xff\\xfe");
    ESCAPES("\x80", "\\x80");
    ESCAPES("\xc0\xaf", "\\xc0\\xaf");                   /* overlong */
    ESCAPES("\xe0\x80\xaf", "\\xe0\\x80\\xaf");          /* overlong */
    ESCAPES("\xed\xa0\x80", "\\xed\\xa0\\x80");          /* a surrogate */
    ESCAPES("\xf4\x90\x80\x80", "\\xf4\\x90\\x80\\x80"); /* above U+10FFFF */
    ESCAPES("\xe2\x82", "\\xe2\\x82");                   /* cut off */
    ESCAPES("\xe2(\xa1", "\\xe2(\\xa1");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_base_fmt__agrees_with_the_c_library),
        cmocka_unit_test(test_base_fmt__reads_no_byte_behind_the_precision),
        cmocka_unit_test(test_base_fmt__what_is_not_listed_is_a_bug),
        cmocka_unit_test(test_base_fmt__text_makes_a_string),
        cmocka_unit_test(test_base_fmt__parse_u64_is_strict),
        cmocka_unit_test(test_base_fmt__durations_and_sizes),
        cmocka_unit_test(test_base_fmt__hex),
        cmocka_unit_test(test_base_fmt__base64_vectors),
        cmocka_unit_test(test_base_fmt__times),
        cmocka_unit_test(test_base_fmt__escapes_what_moves_a_terminal),
        cmocka_unit_test(test_base_fmt__escapes_invalid_utf8),
    };
    return cmocka_run_group_tests_name("base_fmt", tests, NULL, NULL);
}
