/* SPDX-License-Identifier: Apache-2.0 */
/* Registry records: the documented examples, fields of newer releases, times, and what is refused.
 */
#include "format_kit.h"

#include <stdio.h>

#include "format/record.h"
#include "format/wire.h"

#define ID "000102030405060708090a0b0c0d0e0f"
#define MOVE "101112131415161718191a1b1c1d1e1f"
#define DIGEST "abababababababababababababababababababababababababababababababab"

static const char example[] =
    "{\"version\":1,\"id\":\"" ID "\",\"name\":\"rex\",\"owner\":\"laptop\",\"epoch\":7,"
    "\"revision\":41,\"state\":\"moving\",\"move_id\":\"" MOVE "\",\"destination\":\"server\","
    "\"manifest\":\"" DIGEST "\",\"lease\":{\"ttl_ms\":30000,\"beat\":12},\"image\":\"python\","
    "\"backend\":\"qemu\",\"arch\":\"x86_64\",\"vcpus\":2,\"memory_bytes\":536870912,"
    "\"parent\":null,\"created_at\":\"2026-11-22T23:59:59.123Z\",\"reason\":null,"
    "\"generation\":\"03030303030303030303030303030303\",\"uniqueness\":{\"kernel_rng\":"
    "\"proven\",\"clock\":\"proven\",\"identity\":null,\"userspace_rng\":\"unproven\"}}";

static const char node_example[] =
    "{\"version\":1,\"name\":\"laptop\",\"endpoint\":\"https://laptop:7443\",\"state\":\"ready\","
    "\"archs\":[\"x86_64\",\"aarch64\"],\"backends\":[\"qemu\",\"mock\"],\"lease\":{\"ttl_ms\":"
    "30000,\"beat\":9},\"tsc_khz\":2400000,\"cpu\":\"max\",\"memory_free_bytes\":1073741824}";

static void fill(struct klp_agent_record *r)
{
    *r = (struct klp_agent_record){.epoch = 7,
                                   .revision = 41,
                                   .state = KLP_AGENT_MOVING,
                                   .lease_ttl_ms = 30000,
                                   .beat = 12,
                                   .arch = KLP_ARCH_X86_64,
                                   .vcpus = 2,
                                   .memory_bytes = 536870912,
                                   .created_wall_ns = 1795391999123000000};
    klp_text_copy(r->id, sizeof(r->id), ID);
    klp_text_copy(r->name, sizeof(r->name), "rex");
    klp_text_copy(r->owner, sizeof(r->owner), "laptop");
    klp_text_copy(r->move_id, sizeof(r->move_id), MOVE);
    klp_text_copy(r->destination, sizeof(r->destination), "server");
    memset(&r->manifest, 0xAB, sizeof(r->manifest));
    klp_text_copy(r->image, sizeof(r->image), "python");
    klp_text_copy(r->backend, sizeof(r->backend), "qemu");
    memset(r->generation, 3, sizeof(r->generation));
    klp_text_copy(r->uniqueness[0], 16, "proven");
    klp_text_copy(r->uniqueness[1], 16, "proven");
    klp_text_copy(r->uniqueness[3], 16, "unproven");
}

static void encode(const struct klp_agent_record *r, struct klp_buf *out)
{
    struct kelpie_error *err = NULL;
    if (!klp_agent_record_encode(r, out, &err))
        fail_msg("%s", kelpie_error_message(err));
}

static bool decode_text(const char *text, struct klp_agent_record *out, struct kelpie_error **err)
{
    uint8_t *copy = kit_copy(text, strlen(text));
    bool ok = klp_agent_record_decode((struct klp_bytes){copy, strlen(text)}, out, err);
    free(copy);
    return ok;
}

static void decode_good(const char *text, struct klp_agent_record *out)
{
    struct kelpie_error *err = NULL;
    if (!decode_text(text, out, &err))
        fail_msg("%s", kelpie_error_message(err));
}

static void test_format_record__example_byte_for_byte(void **state)
{
    (void)state;
    struct klp_agent_record r, back;
    struct klp_buf text KLP_AUTO(buf) = KLP_BUF_INIT(KLP_RECORD_SIZE_MAX);
    fill(&r);
    encode(&r, &text);
    assert_string_equal(klp_buf_text(&text), example);
    decode_good(example, &back);
    assert_memory_equal(&back, &r, sizeof(r)); /* no owned parts, and both began as zeros */
    klp_agent_record_finish(&back);
}

static void test_format_record__empty_fields_are_null(void **state)
{
    (void)state;
    struct klp_agent_record r = {.state = KLP_AGENT_CREATED}, back;
    struct klp_buf text KLP_AUTO(buf) = KLP_BUF_INIT(KLP_RECORD_SIZE_MAX);
    klp_text_copy(r.id, sizeof(r.id), ID);
    klp_text_copy(r.name, sizeof(r.name), "a");
    encode(&r, &text);
    const char *nulls[] = {"owner",   "move_id", "destination", "manifest", "image",
                           "backend", "arch",    "parent",      "reason",   "generation"};
    for (size_t i = 0; i < KLP_COUNT(nulls); i++) {
        char want[40];
        snprintf(want, sizeof(want), "\"%s\":null", nulls[i]);
        if (strstr(klp_buf_text(&text), want) == NULL)
            fail_msg("no %s in %s", want, klp_buf_text(&text));
    }
    decode_good(klp_buf_text(&text), &back);
    assert_memory_equal(&back, &r, sizeof(r));
    klp_agent_record_finish(&back);
}

static void test_format_record__states(void **state)
{
    (void)state;
    const char *names[] = {"created", "starting", "running", "paused", "suspended",
                           "moving",  "parked",   "stopped", "crashed"};
    for (size_t i = 0; i < KLP_COUNT(names); i++) {
        assert_string_equal(klp_agent_state_name((enum klp_agent_state)(i + 1)), names[i]);
        assert_int_equal(klp_agent_state_parse(names[i]), i + 1);
    }
    assert_string_equal(klp_agent_state_name(99), "none");
    assert_int_equal(klp_agent_state_parse("none"), KLP_AGENT_NONE);
    assert_int_equal(klp_agent_state_parse("Running"), KLP_AGENT_NONE);
    assert_int_equal(klp_agent_state_parse(NULL), KLP_AGENT_NONE);
}

static void test_format_record__nanoseconds_survive(void **state)
{
    (void)state;
    struct klp_agent_record r, back;
    struct klp_buf text KLP_AUTO(buf) = KLP_BUF_INIT(KLP_RECORD_SIZE_MAX);
    fill(&r);
    r.created_wall_ns += 7;
    encode(&r, &text);
    assert_non_null(strstr(klp_buf_text(&text), "23:59:59.123000007Z"));
    decode_good(klp_buf_text(&text), &back);
    assert_true(back.created_wall_ns == r.created_wall_ns);
    klp_agent_record_finish(&back);
}

/* The example with what stands between its first `from` and behind it replaced. */
static char *replaced(const char *text, const char *from, const char *to)
{
    const char *at = strstr(text, from);
    assert_non_null(at);
    char *out = malloc(strlen(text) + strlen(to) + 1);
    assert_non_null(out);
    snprintf(out, strlen(text) + strlen(to) + 1, "%.*s%s%s", (int)(at - text), text, to,
             at + strlen(from));
    return out;
}

static void test_format_record__newer_fields_are_kept(void **state)
{
    (void)state;
    struct klp_agent_record r, copy;
    struct klp_buf text KLP_AUTO(buf) = KLP_BUF_INIT(KLP_RECORD_SIZE_MAX);
    char *newer = replaced(example, "\"epoch\":7", "\"epoch\":7,\"mood\":{\"happy\":[1,2.5]}");
    decode_good(newer, &r);
    assert_non_null(r.extra);
    assert_true(klp_agent_record_copy(&r, &copy, NULL));
    assert_ptr_not_equal(copy.extra, r.extra);
    encode(&r, &text);
    assert_string_equal(klp_buf_text(&text), newer);
    klp_agent_record_finish(&r);
    /* A change of known fields, their ends included, and of nothing else. */
    copy.epoch = 8;
    copy.move_id[0] = copy.destination[0] = '\0';
    copy.state = KLP_AGENT_RUNNING;
    klp_buf_clear(&text);
    encode(&copy, &text);
    klp_agent_record_finish(&copy);
    decode_good(klp_buf_text(&text), &r);
    assert_int_equal(r.epoch, 8);
    assert_string_equal(r.move_id, "");
    assert_int_equal(r.state, KLP_AGENT_RUNNING);
    assert_non_null(strstr(klp_buf_text(&text), "\"mood\":{\"happy\":[1,2.5]}"));
    klp_agent_record_finish(&r);
    free(newer);
    decode_good(example, &r);
    assert_null(r.extra);
    assert_true(klp_agent_record_copy(&r, &copy, NULL));
    assert_null(copy.extra);
    klp_agent_record_finish(&r);
    klp_agent_record_finish(&copy);
}

static void assert_corrupt(const char *from, const char *to, const char *piece)
{
    struct klp_agent_record r;
    char *text = replaced(example, from, to);
    KIT_REFUSED(decode_text(text, &r, &err), false, KELPIE_E_CORRUPT, piece);
    free(text);
}

static void test_format_record__damaged_records(void **state)
{
    (void)state;
    assert_corrupt("\"version\":1", "\"version\":2", "version");
    assert_corrupt("\"version\":1,", "", "version");
    assert_corrupt("\"id\":\"0", "\"id\":\"x", "'id'");
    assert_corrupt("\"id\":\"" ID "\",", "", "'id'");
    assert_corrupt("\"rex\"", "\"Rex\"", "name");
    assert_corrupt("\"rex\"", "null", "name");
    assert_corrupt("\"laptop\"", "\"../x\"", "owner");
    assert_corrupt("\"epoch\":7", "\"epoch\":-7", "epoch");
    assert_corrupt("\"epoch\":7", "\"epoch\":7.5", "epoch");
    assert_corrupt("\"epoch\":7,", "", "epoch");
    assert_corrupt("\"epoch\":7", "\"epoch\":9223372036854775808", "agent record");
    assert_corrupt("\"revision\":41,", "", "revision");
    assert_corrupt("\"moving\"", "\"none\"", "state");
    assert_corrupt("\"moving\"", "3", "state");
    assert_corrupt("\"" MOVE "\"", "\"\"", "move_id");
    assert_corrupt(DIGEST, "ab", "manifest");
    assert_corrupt("{\"ttl_ms\":30000,\"beat\":12}", "[]", "lease");
    assert_corrupt("\"ttl_ms\":30000,", "", "ttl_ms");
    assert_corrupt("\"beat\":12", "\"beat\":\"12\"", "beat");
    assert_corrupt("\"qemu\"", "\"a-backend-of-a-very-long-name\"", "backend");
    assert_corrupt("\"x86_64\"", "\"vax\"", "arch");
    assert_corrupt("\"vcpus\":2", "\"vcpus\":4294967296", "vcpus");
    assert_corrupt("2026-11-22T", "2026-11-31T", "created_at");
    assert_corrupt("\"0303", "\"03", "generation");
    assert_corrupt("{\"kernel_rng\"", "{\"kernel_rng\":1,\"x\"", "kernel_rng");
    assert_corrupt("\"version\":1", "\"version\":1,\"version\":1", "agent record");
    assert_corrupt("{\"version\"", "[{\"version\"", "agent record");
    assert_corrupt("\"version\":1", "\"version\":1,\"x\":[[[[[[[[[]]]]]]]]]", "nested");
}

static void test_format_record__every_cut_is_corrupt(void **state)
{
    (void)state;
    for (size_t size = 0; size < strlen(example); size++) {
        struct klp_agent_record r;
        uint8_t *copy = kit_copy(example, size);
        KIT_REFUSED(klp_agent_record_decode((struct klp_bytes){copy, size}, &r, &err), false,
                    KELPIE_E_CORRUPT, "agent record");
        free(copy);
    }
}

static void test_format_record__texts_of_people_are_cut_not_refused(void **state)
{
    (void)state;
    struct klp_agent_record r, back;
    struct klp_buf text KLP_AUTO(buf) = KLP_BUF_INIT(KLP_RECORD_SIZE_MAX);
    fill(&r);
    memset(r.reason, 0xFF, sizeof(r.reason) - 1); /* no UTF-8: three times as long when mended */
    encode(&r, &text);
    decode_good(klp_buf_text(&text), &back);
    assert_int_equal(strlen(back.reason), 255 / 3 * 3);
    klp_agent_record_finish(&back);
    memset(r.reason, 1, sizeof(r.reason) - 1); /* six times as long when escaped */
    klp_buf_clear(&text);
    encode(&r, &text);
    decode_good(klp_buf_text(&text), &back);
    assert_string_equal(back.reason, r.reason);
    klp_agent_record_finish(&back);
}

static void test_format_record__bounds(void **state)
{
    (void)state;
    struct klp_agent_record r;
    struct klp_buf text KLP_AUTO(buf) = KLP_BUF_INIT(3 * KLP_RECORD_SIZE_MAX);
    klp_buf_append_text(&text, "{\"x\":\"");
    while (text.size < KLP_RECORD_SIZE_MAX)
        klp_buf_append_u8(&text, 'x');
    klp_buf_append_format(&text, "\",%s", example + 1);
    KIT_REFUSED(klp_agent_record_decode(klp_buf_view(&text), &r, &err), false, KELPIE_E_CORRUPT,
                "longer");
    /* Read within the limit, but no room for what is to be set. */
    klp_buf_clear(&text);
    klp_buf_append_text(&text, "{\"x\":\"");
    while (text.size < KLP_RECORD_SIZE_MAX - strlen(example) - 2)
        klp_buf_append_u8(&text, 'x');
    klp_buf_append_format(&text, "\",%s", example + 1);
    decode_good(klp_buf_text(&text), &r);
    memset(r.reason, 'r', sizeof(r.reason) - 1);
    KIT_REFUSED(klp_agent_record_encode(&r, &text, &err), false, KELPIE_E_LIMIT, "agent record");
    klp_agent_record_finish(&r);
}

#define ASSERT_FAULT(change, piece)                                                                \
    do {                                                                                           \
        struct klp_agent_record r;                                                                 \
        struct klp_buf text KLP_AUTO(buf) = KLP_BUF_INIT(KLP_RECORD_SIZE_MAX);                     \
        fill(&r);                                                                                  \
        change;                                                                                    \
        KIT_REFUSED(klp_agent_record_encode(&r, &text, &err), false, KELPIE_E_INVALID, piece);     \
        assert_int_equal(text.size, 0);                                                            \
    } while (0)

static void test_format_record__what_cannot_be_read_is_not_written(void **state)
{
    (void)state;
    ASSERT_FAULT(r.id[0] = '\0', "id");
    ASSERT_FAULT(r.name[0] = '\0', "name");
    ASSERT_FAULT(r.name[0] = 'R', "name");
    ASSERT_FAULT(r.owner[0] = '-', "owner");
    ASSERT_FAULT(r.state = KLP_AGENT_NONE, "state");
    ASSERT_FAULT(r.state = 77, "state");
    ASSERT_FAULT(r.move_id[3] = 'x', "move_id");
    ASSERT_FAULT(r.destination[0] = '-', "destination");
    ASSERT_FAULT(r.image[0] = '-', "image");
    ASSERT_FAULT(klp_text_copy(r.parent, sizeof(r.parent), "."), "parent");
    ASSERT_FAULT(r.epoch = UINT64_MAX, "number");
    ASSERT_FAULT(r.memory_bytes = (uint64_t)1 << 63, "number");
}

static void test_format_record__node_example(void **state)
{
    (void)state;
    struct klp_node_record n;
    struct klp_buf text KLP_AUTO(buf) = KLP_BUF_INIT(KLP_RECORD_SIZE_MAX);
    struct klp_bytes bytes = {(const uint8_t *)node_example, strlen(node_example)};
    assert_true(klp_node_record_decode(bytes, &n, NULL));
    assert_string_equal(n.endpoint, "https://laptop:7443");
    assert_int_equal(n.arch_count, 2);
    assert_int_equal(n.archs[1], KLP_ARCH_AARCH64);
    assert_string_equal(n.backends[1], "mock");
    assert_int_equal(n.beat, 9);
    assert_int_equal(n.lease_ttl_ms, 30000);
    assert_int_equal(n.tsc_khz, 2400000);
    assert_int_equal(n.memory_free_bytes, 1073741824);
    assert_true(klp_node_record_encode(&n, &text, NULL));
    assert_string_equal(klp_buf_text(&text), node_example);
    n.arch_count = 5;
    KIT_REFUSED(klp_node_record_encode(&n, &text, &err), false, KELPIE_E_INVALID, "archs");
    n.arch_count = 0;
    n.backend_count = 5;
    KIT_REFUSED(klp_node_record_encode(&n, &text, &err), false, KELPIE_E_INVALID, "backends");
    n.backend_count = 0;
    n.tsc_khz = UINT64_MAX;
    KIT_REFUSED(klp_node_record_encode(&n, &text, &err), false, KELPIE_E_INVALID, "number");
    n.name[0] = '\0';
    KIT_REFUSED(klp_node_record_encode(&n, &text, &err), false, KELPIE_E_INVALID, "name");
}

static bool node_decode(const char *from, const char *to, struct klp_node_record *out,
                        struct kelpie_error **err)
{
    char *text = replaced(node_example, from, to);
    uint8_t *copy = kit_copy(text, strlen(text));
    bool ok = klp_node_record_decode((struct klp_bytes){copy, strlen(text)}, out, err);
    free(copy);
    free(text);
    return ok;
}

static void test_format_record__nodes_of_newer_releases_and_damaged_ones(void **state)
{
    (void)state;
    struct klp_node_record n;
    assert_true(node_decode("[\"x86_64\",", "[\"riscv64\",", &n, NULL));
    assert_int_equal(n.arch_count, 1);
    assert_int_equal(n.archs[0], KLP_ARCH_AARCH64);
    assert_true(node_decode("\"tsc_khz\"", "\"gpus\":8,\"tsc_khz\"", &n, NULL));
    const struct {
        const char *from, *to, *piece;
    } cases[] = {
        {"\"laptop\"", "7", "name"},
        {"[\"x86_64\",\"aarch64\"]", "{}", "archs"},
        {"\"aarch64\"", "7", "archs"},
        {"\"aarch64\"", "\"arm64\",\"arm64\",\"arm64\",\"arm64\"", "archs"},
        {"\"mock\"", "\"\"", "backends"},
        {"\"mock\"", "\"sixteen-and-more-\"", "backends"},
        {"\"mock\"", "\"a\",\"b\",\"c\",\"d\"", "backends"},
        {",\"backends\":[\"qemu\",\"mock\"]", "", "backends"},
        {"\"ready\"", "\"a state beyond all room\"", "state"},
        {"\"lease\"", "\"lent\"", "lease"},
        {"\"tsc_khz\":2", "\"tsc_khz\":-2", "tsc_khz"},
        {"{\"version\":1", "{\"version\":9", "version"},
    };
    for (size_t i = 0; i < KLP_COUNT(cases); i++)
        KIT_REFUSED(node_decode(cases[i].from, cases[i].to, &n, &err), false, KELPIE_E_CORRUPT,
                    cases[i].piece);
}

static void assert_time(const char *text, int64_t want)
{
    int64_t ns = -1;
    if (!klp_wire_time_parse(text, &ns) || ns != want)
        fail_msg("%s is %lld, not %lld", text, (long long)ns, (long long)want);
}

static void test_format_record__times(void **state)
{
    (void)state;
    assert_time("1970-01-01T00:00:00Z", 0);
    assert_time("1970-01-01T00:00:00.000000001Z", 1);
    assert_time("2000-02-29T12:00:00.5Z", 951825600500000000);
    assert_time("2026-11-22T23:59:59.123Z", 1795391999123000000);
    assert_time("2261-12-31T23:59:59.999999999Z", 9214646399999999999);
    assert_time("2100-03-01T00:00:00.0000000009Z", 4107542400000000000);
    const char *bad[] = {
        "",
        "Z",
        "2026-11-22",
        "2026-11-22T23:59:59",
        "2026-11-22T23:59:59.Z",
        "2026-11-22T23:59:59.1",
        "2026-11-22T23:59:59+00:00",
        "2026-11-22 23:59:59Z",
        "2026-11-22t23:59:59z",
        "2026-13-01T00:00:00Z",
        "2026-00-01T00:00:00Z",
        "2026-02-29T00:00:00Z",
        "2100-02-29T00:00:00Z",
        "2026-11-00T00:00:00Z",
        "2026-11-22T24:00:00Z",
        "2026-11-22T23:60:00Z",
        "2026-11-22T23:59:60Z",
        "1969-12-31T23:59:59Z",
        "2262-01-01T00:00:00Z",
        "-026-11-22T23:59:59Z",
        "2026-11-22T23:59:5 Z",
        "2026-11-22T23:59:59ZZ",
        "2026-11-22T23:59:59.12345678901234567890Z",
    };
    for (size_t i = 0; i < KLP_COUNT(bad); i++) {
        int64_t ns;
        if (klp_wire_time_parse(bad[i], &ns))
            fail_msg("%s was taken", bad[i]);
    }
    char text[KLP_WIRE_TIME_SIZE];
    klp_wire_time_text(-5, true, text);
    assert_string_equal(text, "1970-01-01T00:00:00.000Z");
    klp_wire_time_text(1001, false, text);
    assert_string_equal(text, "1970-01-01T00:00:00.000Z");
    /* Every day's first second, a leap year and a century included, there and back. */
    for (int64_t day = 0; day < 200 * 366; day++) {
        int64_t ns = day * 86400 * 1000000000, back = -1;
        klp_wire_time_text(ns, false, text);
        if (!klp_wire_time_parse(text, &back) || back != ns)
            fail_msg("day %lld: %s", (long long)day, text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_format_record__example_byte_for_byte),
        cmocka_unit_test(test_format_record__empty_fields_are_null),
        cmocka_unit_test(test_format_record__states),
        cmocka_unit_test(test_format_record__nanoseconds_survive),
        cmocka_unit_test(test_format_record__newer_fields_are_kept),
        cmocka_unit_test(test_format_record__damaged_records),
        cmocka_unit_test(test_format_record__every_cut_is_corrupt),
        cmocka_unit_test(test_format_record__texts_of_people_are_cut_not_refused),
        cmocka_unit_test(test_format_record__bounds),
        cmocka_unit_test(test_format_record__what_cannot_be_read_is_not_written),
        cmocka_unit_test(test_format_record__node_example),
        cmocka_unit_test(test_format_record__nodes_of_newer_releases_and_damaged_ones),
        cmocka_unit_test(test_format_record__times),
    };
    return cmocka_run_group_tests_name("format_record", tests, NULL, NULL);
}
