/* SPDX-License-Identifier: Apache-2.0 */
/* REST requests, exec and what nodes ask one another: exact fields, strict reading, bounds. */
#include "format_rest_kit.h"

/* ---- requests */

static void test_format_rest_request__agent_request(void **state)
{
    (void)state;
    static const char full[] =
        "{\"name\":\"rex\",\"image\":\"python\",\"backend\":\"qemu\",\"arch\":\"aarch64\","
        "\"vcpus\":2,\"memory_bytes\":536870912,\"workdir\":\"/data\",\"argv\":[\"python3\","
        "\"-c\"],\"env\":[\"A=\",\"B=x=y\"],\"start\":true,\"remove_at_end\":true}";
    struct klp_agent_request r;
    DECODE_GOOD(klp_rest_agent_request_decode, full, &r);
    assert_string_equal(r.image, "python");
    assert_int_equal(r.arch, KLP_ARCH_AARCH64);
    assert_string_equal(r.argv[1], "-c");
    assert_null(r.argv[2]);
    assert_string_equal(r.env[1], "B=x=y");
    assert_string_equal(r.workdir, "/data");
    assert_true(r.start && r.remove_at_end);
    assert_prints(klp_rest_agent_request_encode(&r), full);
    klp_agent_request_finish(&r);
    DECODE_GOOD(klp_rest_agent_request_decode, "{\"name\":null,\"argv\":null,\"env\":[]}", &r);
    assert_string_equal(r.name, "");
    assert_null(r.argv);
    assert_null(r.env);
    assert_false(r.start);
    assert_prints(klp_rest_agent_request_encode(&r), "{\"start\":false}");
    const struct {
        const char *text, *piece;
    } cases[] = {
        {"[]", "no JSON object"},
        {"null", "no JSON object"},
        {"{\"nmae\":\"x\"}", "nmae"},
        {"{\"name\":\"\"}", "name"},
        {"{\"name\":\"../x\"}", "name"},
        {"{\"image\":\"a/b\"}", "image"},
        {"{\"backend\":\"a-backend-of-a-long-name\"}", "backend"},
        {"{\"arch\":\"vax\"}", "arch"},
        {"{\"vcpus\":4294967296}", "vcpus"},
        {"{\"memory_bytes\":\"512M\"}", "memory_bytes"},
        {"{\"argv\":\"sh\"}", "argv"},
        {"{\"argv\":[\"sh\",1]}", "argv"},
        {"{\"argv\":{}}", "argv"},
        {"{\"env\":[\"SECRET\"]}", "entry 0"},
        {"{\"argv\":[\"x\"],\"env\":[\"A=1\",\"=x\"]}", "entry 1"},
        {"{\"workdir\":7}", "workdir"},
        {"{\"argv\":[\"x\"],\"env\":[\"A=1\"],\"workdir\":\"/\",\"start\":1}", "start"},
        {"{\"remove_at_end\":\"yes\"}", "remove_at_end"},
    };
    for (size_t i = 0; i < KLP_COUNT(cases); i++)
        ASSERT_REFUSED(klp_rest_agent_request_decode, klp_agent_request, cases[i].text,
                       KELPIE_E_INVALID, cases[i].piece);
}

static void test_format_rest_request__lists_in_requests_are_bounded(void **state)
{
    (void)state;
    struct klp_buf text KLP_AUTO(buf) = KLP_BUF_INIT(TEXT_MAX);
    klp_buf_append_text(&text, "{\"argv\":[\"x\"");
    for (size_t i = 0; i < KLP_ARGV_MAX; i++)
        klp_buf_append_text(&text, ",\"x\"");
    klp_buf_append_text(&text, "]}");
    ASSERT_REFUSED(klp_rest_agent_request_decode, klp_agent_request, klp_buf_text(&text),
                   KELPIE_E_INVALID, "1024 entries");
    klp_buf_clear(&text);
    klp_buf_append_text(&text, "{\"argv\":[\"");
    for (size_t i = 0; i < KLP_ARG_BYTES_MAX / 2; i++)
        klp_buf_append_u8(&text, 'x');
    size_t half = text.size;
    klp_buf_append_text(&text, "\"],\"env\":[\"A=");
    for (size_t i = 0; i < KLP_ARG_BYTES_MAX / 2; i++)
        klp_buf_append_u8(&text, 'x');
    klp_buf_append_text(&text, "\"]}"); /* argv and environment share one bound */
    assert_true(half < text.size);
    ASSERT_REFUSED(klp_rest_agent_request_decode, klp_agent_request, klp_buf_text(&text),
                   KELPIE_E_INVALID, "'env' goes beyond");
    klp_buf_clear(&text);
    klp_buf_append_text(&text, "{\"workdir\":\"");
    for (size_t i = 0; i < KLP_PATH_MAX; i++)
        klp_buf_append_u8(&text, '/');
    klp_buf_append_text(&text, "\"}");
    ASSERT_REFUSED(klp_rest_agent_request_decode, klp_agent_request, klp_buf_text(&text),
                   KELPIE_E_INVALID, "workdir");
}

static void test_format_rest_request__action(void **state)
{
    (void)state;
    static const char full[] =
        "{\"name\":\"lunch\",\"destination\":\"server\",\"kind\":\"teleport\",\"count\":3,"
        "\"check\":true,\"checkpoint\":true,\"claim\":true,\"force\":true,\"max_pause_ms\":500,"
        "\"timeout_ms\":30000,\"signal\":15}";
    struct klp_action_request r, empty = {0}, back;
    DECODE_GOOD(klp_rest_action_decode, full, &r);
    assert_int_equal(r.kind, KLP_KIND_TELEPORT);
    assert_int_equal(r.count, 3);
    assert_int_equal(r.signal, 15);
    assert_true(r.check && r.checkpoint && r.claim && r.force);
    assert_prints(klp_rest_action_encode(&r), full);
    assert_prints(klp_rest_action_encode(&empty), "{}");
    DECODE_GOOD(klp_rest_action_decode, "{}", &back);
    assert_memory_equal(&back, &empty, sizeof(back));
    const struct {
        const char *text, *piece;
    } cases[] = {
        {"7", "no JSON object"},
        {"{\"dest\":\"x\"}", "dest"},
        {"{\"name\":\"-x\"}", "name"},
        {"{\"destination\":\"UP\"}", "destination"},
        {"{\"kind\":\"template\"}", "kind"},
        {"{\"kind\":\"full\"}", "kind"},
        {"{\"count\":-1}", "count"},
        {"{\"count\":4294967296}", "count"},
        {"{\"check\":1}", "check"},
        {"{\"max_pause_ms\":\"5s\"}", "max_pause_ms"},
        {"{\"timeout_ms\":1.5}", "timeout_ms"},
        {"{\"signal\":65}", "signal"},
        {"{\"signal\":-9}", "signal"},
        {"{\"signal\":4294967305}", "signal"},
    };
    for (size_t i = 0; i < KLP_COUNT(cases); i++)
        ASSERT_REFUSED(klp_rest_action_decode, klp_action_request, cases[i].text, KELPIE_E_INVALID,
                       cases[i].piece);
}

/* ---- exec */

static void test_format_rest_request__exec_request(void **state)
{
    (void)state;
    static const char full[] = "{\"argv\":[\"cat\"],\"env\":[\"A=1\"],\"workdir\":\"/\","
                               "\"timeout_ms\":5000,\"tty\":true,\"rows\":24,\"cols\":80,"
                               "\"stdin_base64\":\"aGkA/w==\"}";
    struct klp_exec_request r;
    DECODE_GOOD(klp_rest_exec_request_decode, full, &r);
    assert_string_equal(r.argv[0], "cat");
    assert_int_equal(r.timeout_ms, 5000);
    assert_int_equal(r.cols, 80);
    assert_int_equal(r.stdin_bytes.size, 4);
    assert_memory_equal(r.stdin_bytes.data, "hi\0\xff", 4);
    assert_prints(klp_rest_exec_request_encode(&r), full);
    klp_exec_request_finish(&r);
    r.argv = texts("true", NULL);
    assert_prints(klp_rest_exec_request_encode(&r), "{\"argv\":[\"true\"]}");
    klp_exec_request_finish(&r);
    const struct {
        const char *text, *piece;
    } cases[] = {
        {"{}", "argv"},
        {"{\"argv\":[]}", "argv"},
        {"{\"argv\":[\"\"]}", "argv"},
        {"{\"argv\":[\"x\"],\"user\":\"root\"}", "user"},
        {"{\"argv\":[\"x\"],\"rows\":65536}", "rows"},
        {"{\"argv\":[\"x\"],\"cols\":65536}", "cols"},
        {"{\"argv\":[\"x\"],\"tty\":0}", "tty"},
        {"{\"argv\":[\"x\"],\"timeout_ms\":-1}", "timeout_ms"},
        {"{\"argv\":[\"x\"],\"stdin_base64\":\"a\"}", "stdin_base64"},
        {"{\"argv\":[\"x\"],\"stdin_base64\":\"a*==\"}", "stdin_base64"},
        {"{\"argv\":[\"x\"],\"stdin_base64\":7}", "stdin_base64"},
    };
    for (size_t i = 0; i < KLP_COUNT(cases); i++)
        ASSERT_REFUSED(klp_rest_exec_request_decode, klp_exec_request, cases[i].text,
                       KELPIE_E_INVALID, cases[i].piece);
    struct klp_buf text KLP_AUTO(buf) = KLP_BUF_INIT(TEXT_MAX);
    klp_buf_append_text(&text, "{\"argv\":[\"x\"],\"stdin_base64\":\"");
    for (size_t i = 0; i < KLP_REST_BODY_MAX / 3 + 2; i++)
        klp_buf_append_text(&text, "AAAA");
    klp_buf_append_text(&text, "\"}");
    ASSERT_REFUSED(klp_rest_exec_request_decode, klp_exec_request, klp_buf_text(&text),
                   KELPIE_E_INVALID, "stdin_base64");
}

static void test_format_rest_request__exec_result(void **state)
{
    (void)state;
    static const char full[] = "{\"exit_code\":137,\"signal\":9,\"timed_out\":true,\"truncated\":"
                               "true,\"stdout_base64\":\"aGk=\",\"stderr_base64\":\"\"}";
    struct klp_exec_result r;
    DECODE_GOOD(klp_rest_exec_result_decode, full, &r);
    assert_int_equal(r.exit_code, 137);
    assert_int_equal(r.signal, 9);
    assert_true(r.timed_out && r.truncated);
    assert_string_equal(klp_buf_text(&r.out), "hi");
    assert_int_equal(r.err.size, 0);
    assert_prints(klp_rest_exec_result_encode(&r), full);
    klp_exec_result_finish(&r);
    DECODE_GOOD(klp_rest_exec_result_decode, "{\"exit_code\":0,\"new\":1}", &r);
    assert_prints(klp_rest_exec_result_encode(&r),
                  "{\"exit_code\":0,\"signal\":null,\"timed_out\":false,\"truncated\":false,"
                  "\"stdout_base64\":\"\",\"stderr_base64\":\"\"}");
    klp_exec_result_finish(&r);
    const struct {
        const char *text, *piece;
    } cases[] = {
        {"{}", "exit_code"},
        {"{\"exit_code\":4294967296}", "exit_code"},
        {"{\"exit_code\":0,\"signal\":4294967296}", "signal"},
        {"{\"exit_code\":0,\"stdout_base64\":\"aGk=\",\"stderr_base64\":\"?\"}", "stderr_base64"},
    };
    for (size_t i = 0; i < KLP_COUNT(cases); i++)
        ASSERT_REFUSED(klp_rest_exec_result_decode, klp_exec_result, cases[i].text,
                       KELPIE_E_PROTOCOL, cases[i].piece);
}

static void test_format_rest_request__largest_exec_output(void **state)
{
    (void)state;
    struct klp_exec_result r = {.out = KLP_BUF_INIT(KLP_EXEC_OUTPUT_MAX)}, back;
    assert_non_null(klp_buf_reserve(&r.out, KLP_EXEC_OUTPUT_MAX));
    klp_buf_grow(&r.out, KLP_EXEC_OUTPUT_MAX);
    memset(r.out.data, 0xA5, KLP_EXEC_OUTPUT_MAX);
    struct klp_json *json = klp_rest_exec_result_encode(&r);
    assert_true(klp_rest_exec_result_decode(json, &back, NULL));
    klp_json_free(json);
    assert_int_equal(back.out.size, KLP_EXEC_OUTPUT_MAX);
    assert_memory_equal(back.out.data, r.out.data, KLP_EXEC_OUTPUT_MAX);
    klp_exec_result_finish(&r);
    klp_exec_result_finish(&back);
}

static void test_format_rest_request__exec_frames(void **state)
{
    (void)state;
    uint8_t header[8];
    enum klp_exec_stream stream;
    uint32_t size;
    klp_exec_frame_header(KLP_EXEC_STDERR, 0x1234, header);
    assert_memory_equal(header, "\x02\0\0\0\0\0\x12\x34", 8);
    assert_true(klp_exec_frame_decode(header, &stream, &size, NULL));
    assert_int_equal(stream, KLP_EXEC_STDERR);
    assert_int_equal(size, 0x1234);
    klp_exec_frame_header(KLP_EXEC_RESIZE, KLP_EXEC_FRAME_MAX, header);
    assert_true(klp_exec_frame_decode(header, &stream, &size, NULL));
    assert_int_equal(size, KLP_EXEC_FRAME_MAX);
    header[7] = 1;
    KIT_REFUSED(klp_exec_frame_decode(header, &stream, &size, &err), false, KELPIE_E_PROTOCOL,
                "65537");
    memset(header + 4, 0xFF, 4);
    KIT_REFUSED(klp_exec_frame_decode(header, &stream, &size, &err), false, KELPIE_E_PROTOCOL,
                "4294967295");
    for (size_t i = 0; i < 4; i++) {
        klp_exec_frame_header(KLP_EXEC_STDIN, 0, header);
        header[i] = 6;
        KIT_REFUSED(klp_exec_frame_decode(header, &stream, &size, &err), false, KELPIE_E_PROTOCOL,
                    "stream");
    }
}

/* ---- peers */

static void fill_peer(struct klp_peer_request *r)
{
    *r = (struct klp_peer_request){.epoch = 7, .kind = KLP_KIND_TELEPORT};
    SET(r->agent, ID);
    SET(r->name, "rex");
    SET(r->source, "laptop");
    SET(r->move_id, MOVE);
    memset(&r->manifest, 0xAB, sizeof(r->manifest));
    memset(&r->image, 0xAB, sizeof(r->image));
    SET(r->image_name, "python");
    SET(r->image_version, "1.4.0");
}

static void test_format_rest_request__peer_request(void **state)
{
    (void)state;
    static const char example[] =
        "{\"agent\":\"" ID "\",\"name\":\"rex\",\"source\":\"laptop\",\"move_id\":\"" MOVE
        "\",\"epoch\":7,\"kind\":\"teleport\",\"manifest\":\"" DIGEST "\",\"image\":\"" DIGEST
        "\",\"image_name\":\"python\",\"image_version\":\"1.4.0\",\"machine_base64\":null}";
    struct klp_peer_request r, back;
    fill_peer(&r);
    assert_prints(klp_rest_peer_request_encode(&r), example);
    DECODE_GOOD(klp_rest_peer_request_decode, example, &back);
    assert_memory_equal(&back, &r, sizeof(r));
    r.machine = (struct klp_machine){.version = KLP_MACHINE_VERSION,
                                     .arch = KLP_ARCH_X86_64,
                                     .vcpus = 1,
                                     .memory_bytes = 1 << 20,
                                     .page_log2 = 12};
    SET(r.machine.backend, "qemu");
    assert_true(klp_machine_check(&r.machine, NULL));
    struct klp_json *json = klp_rest_peer_request_encode(&r);
    assert_true(klp_rest_peer_request_decode(json, &back, NULL));
    klp_json_free(json);
    assert_memory_equal(&back, &r, sizeof(r));
    const struct {
        const char *text, *piece;
    } cases[] = {
        {"[]", "no JSON object"},
        {"{\"agnt\":\"x\"}", "agnt"},
        {"{\"agent\":\"rex\"}", "agent"},
        {"{\"name\":\"\"}", "name"},
        {"{\"source\":\"a.b\"}", "source"},
        {"{\"move_id\":\"1\"}", "move_id"},
        {"{\"epoch\":-1}", "epoch"},
        {"{\"kind\":\"x\"}", "kind"},
        {"{\"manifest\":\"\"}", "manifest"},
        {"{\"image\":7}", "image"},
        {"{\"image_name\":\"?\"}", "image_name"},
        {"{\"image_version\":\"1\"}", "MAJOR.MINOR.PATCH"},
        {"{\"machine_base64\":\"*\"}", "machine_base64"},
        {"{\"machine_base64\":\"AAAA\"}", "machine_base64"},
        {"{\"machine_base64\":\"\"}", "machine_base64"},
    };
    for (size_t i = 0; i < KLP_COUNT(cases); i++)
        ASSERT_REFUSED(klp_rest_peer_request_decode, klp_peer_request, cases[i].text,
                       KELPIE_E_INVALID, cases[i].piece);
}

static void test_format_rest_request__peer_answer(void **state)
{
    (void)state;
    static const char full[] = "{\"reasons\":[\"needs x86_64\",\"needs qemu 7.2\"],\"epoch\":8,"
                               "\"state\":\"running\",\"state_digest\":\"" DIGEST "\"}";
    struct klp_peer_answer a;
    DECODE_GOOD(klp_rest_peer_answer_decode, full, &a);
    assert_int_equal(a.reason_count, 2);
    assert_string_equal(a.reasons[1], "needs qemu 7.2");
    assert_int_equal(a.epoch, 8);
    assert_prints(klp_rest_peer_answer_encode(&a), full);
    struct klp_buf many KLP_AUTO(buf) = KLP_BUF_INIT(TEXT_MAX);
    klp_buf_append_text(&many, "{\"unknown\":0,\"reasons\":[\"r\"");
    for (int i = 0; i < 40; i++)
        klp_buf_append_text(&many, ",\"r\"");
    klp_buf_append_text(&many, ",\"");
    klp_buf_append_text(&many, "\"]}");
    DECODE_GOOD(klp_rest_peer_answer_decode, klp_buf_text(&many), &a);
    assert_int_equal(a.reason_count, KLP_COUNT(a.reasons));
    DECODE_GOOD(klp_rest_peer_answer_decode, "{\"reasons\":[\"\"]}", &a);
    assert_int_equal(a.reason_count, 1); /* a refusal without words is one */
    ASSERT_REFUSED(klp_rest_peer_answer_decode, klp_peer_answer, "{}", KELPIE_E_PROTOCOL,
                   "reasons");
    ASSERT_REFUSED(klp_rest_peer_answer_decode, klp_peer_answer, "{\"reasons\":null}",
                   KELPIE_E_PROTOCOL, "reasons");
    ASSERT_REFUSED(klp_rest_peer_answer_decode, klp_peer_answer, "{\"reasons\":[7]}",
                   KELPIE_E_PROTOCOL, "reasons");
    ASSERT_REFUSED(klp_rest_peer_answer_decode, klp_peer_answer,
                   "{\"reasons\":[],\"state\":\"far beyond the room\"}", KELPIE_E_PROTOCOL,
                   "state");
    ASSERT_REFUSED(klp_rest_peer_answer_decode, klp_peer_answer,
                   "{\"reasons\":[],\"state_digest\":\"0\"}", KELPIE_E_PROTOCOL, "state_digest");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_format_rest_request__agent_request),
        cmocka_unit_test(test_format_rest_request__lists_in_requests_are_bounded),
        cmocka_unit_test(test_format_rest_request__action),
        cmocka_unit_test(test_format_rest_request__exec_request),
        cmocka_unit_test(test_format_rest_request__exec_result),
        cmocka_unit_test(test_format_rest_request__largest_exec_output),
        cmocka_unit_test(test_format_rest_request__exec_frames),
        cmocka_unit_test(test_format_rest_request__peer_request),
        cmocka_unit_test(test_format_rest_request__peer_answer),
    };
    return cmocka_run_group_tests_name("format_rest_request", tests, NULL, NULL);
}
