/* SPDX-License-Identifier: Apache-2.0 */
/* REST answers: the exact fields, both directions, lenient reading, hostile values. */
#include "format_rest_kit.h"

/* ---- agents */

static const char agent_example[] =
    "{\"name\":\"rex\",\"id\":\"" ID "\",\"state\":\"crashed\",\"image\":\"python\",\"arch\":"
    "\"x86_64\",\"backend\":\"qemu\",\"node\":\"laptop\",\"epoch\":7,\"generation\":\"" MOVE
    "\",\"vcpus\":2,\"memory_bytes\":536870912,\"parent\":\"mother\",\"created_at\":\"" TIME
    "\",\"pid\":4711,\"reason\":\"exit 3\",\"uniqueness\":{\"kernel_rng\":\"proven\",\"clock\":"
    "null,\"identity\":null,\"userspace_rng\":\"unproven\"},\"console_tail\":\"panic\\n\"}";

static void test_format_rest__agent(void **state)
{
    (void)state;
    struct klp_agent_info a, b;
    DECODE_GOOD(klp_rest_agent_decode, agent_example, &a);
    assert_string_equal(a.name, "rex");
    assert_int_equal(a.state, KLP_AGENT_CRASHED);
    assert_int_equal(a.arch, KLP_ARCH_X86_64);
    assert_int_equal(a.epoch, 7);
    assert_string_equal(a.generation, MOVE);
    assert_int_equal(a.memory_bytes, 536870912);
    assert_true(a.created_wall_ns == TIME_NS);
    assert_int_equal(a.pid, 4711);
    assert_string_equal(a.uniqueness[3], "unproven");
    assert_string_equal(a.uniqueness[1], "");
    assert_string_equal(a.console_tail, "panic\n");
    assert_prints(klp_rest_agent_encode(&a), agent_example);
    klp_agent_info_finish(&a);
    a.state = KLP_AGENT_CREATED;
    SET(a.name, "a");
    SET(a.id, ID);
    const char *empty =
        "{\"name\":\"a\",\"id\":\"" ID "\",\"state\":\"created\",\"image\":null,\"arch\":null,"
        "\"backend\":null,\"node\":null,\"epoch\":0,\"generation\":null,\"vcpus\":0,"
        "\"memory_bytes\":0,\"parent\":null,\"created_at\":\"1970-01-01T00:00:00.000Z\","
        "\"pid\":null,\"reason\":null,\"uniqueness\":{\"kernel_rng\":null,\"clock\":null,"
        "\"identity\":null,\"userspace_rng\":null}}";
    assert_prints(klp_rest_agent_encode(&a), empty);
    DECODE_GOOD(klp_rest_agent_decode, empty, &b);
    assert_memory_equal(&a, &b, sizeof(a));
    a.epoch = UINT64_MAX; /* cannot be, but must not stop the daemon */
    klp_json_free(klp_rest_agent_encode(&a));
}

static void test_format_rest__agent_answers_of_others(void **state)
{
    (void)state;
    struct klp_agent_info a;
    DECODE_GOOD(klp_rest_agent_decode,
                "{\"name\":\"a\",\"id\":\"" ID "\",\"state\":\"running\",\"new_field\":[1,{}]}",
                &a);
    assert_int_equal(a.state, KLP_AGENT_RUNNING);
    klp_agent_info_finish(&a);
    const struct {
        const char *text, *piece;
    } cases[] = {
        {"[]", "name"},
        {"7", "name"},
        {"{}", "name"},
        {"{\"name\":\"A\"}", "name"},
        {"{\"name\":\"a\"}", "id"},
        {"{\"name\":\"a\",\"id\":\"1\"}", "id"},
        {"{\"name\":\"a\",\"id\":\"" ID "\"}", "state"},
        {"{\"name\":\"a\",\"id\":\"" ID "\",\"state\":\"dancing\"}", "state"},
        {"{\"name\":\"a\",\"id\":\"" ID "\",\"state\":\"running\",\"epoch\":-1}", "epoch"},
        {"{\"name\":\"a\",\"id\":\"" ID "\",\"state\":\"running\",\"vcpus\":4294967296}", "vcpus"},
        {"{\"name\":\"a\",\"id\":\"" ID "\",\"state\":\"running\",\"generation\":\"" MOVE "0\"}",
         "generation"},
        {"{\"name\":\"a\",\"id\":\"" ID "\",\"state\":\"running\",\"created_at\":\"now\"}",
         "created_at"},
        {"{\"name\":\"a\",\"id\":\"" ID "\",\"state\":\"running\",\"uniqueness\":[]}",
         "uniqueness"},
        {"{\"name\":\"a\",\"id\":\"" ID "\",\"state\":\"running\",\"uniqueness\":{\"clock\":1}}",
         "clock"},
        {"{\"name\":\"a\",\"id\":\"" ID "\",\"state\":\"running\",\"console_tail\":1}",
         "console_tail"},
    };
    for (size_t i = 0; i < KLP_COUNT(cases); i++)
        ASSERT_REFUSED(klp_rest_agent_decode, klp_agent_info, cases[i].text, KELPIE_E_PROTOCOL,
                       cases[i].piece);
}

/* ---- snapshots, nodes, images, events, checks, documents */

static void test_format_rest__snapshot(void **state)
{
    (void)state;
    static const char example[] =
        "{\"id\":\"" ID "\",\"name\":\"lunch\",\"agent\":\"rex\",\"kind\":\"teleport\",\"parent\":"
        "\"" DIGEST "\",\"arch\":\"aarch64\",\"backend\":\"qemu\",\"memory_bytes\":536870912,"
        "\"stored_bytes\":1234567,\"created_at\":\"" TIME "\",\"manifest\":\"" DIGEST
        "\",\"pause_ms\":13,\"pause_us\":12001}";
    struct klp_snapshot_info s, empty = {0}, back;
    DECODE_GOOD(klp_rest_snapshot_decode, example, &s);
    assert_int_equal(s.kind, KLP_KIND_TELEPORT);
    assert_int_equal(s.pause_ms_x1000, 12001);
    assert_string_equal(s.parent, DIGEST);
    assert_true(s.created_wall_ns == TIME_NS);
    assert_prints(klp_rest_snapshot_encode(&s), example);
    SET(empty.id, ID);
    empty.kind = KLP_KIND_CHECKPOINT;
    struct klp_json *json = klp_rest_snapshot_encode(&empty);
    assert_true(klp_rest_snapshot_decode(json, &back, NULL));
    klp_json_free(json);
    assert_memory_equal(&back, &empty, sizeof(back));
    s.stored_bytes = UINT64_MAX; /* a hostile manifest says so */
    klp_json_free(klp_rest_snapshot_encode(&s));
    ASSERT_REFUSED(klp_rest_snapshot_decode, klp_snapshot_info,
                   "{\"id\":\"" ID "\",\"kind\":\"polaroid\"}", KELPIE_E_PROTOCOL, "kind");
    ASSERT_REFUSED(klp_rest_snapshot_decode, klp_snapshot_info,
                   "{\"id\":\"" ID "\",\"kind\":\"suspend\",\"parent\":\"ab\"}", KELPIE_E_PROTOCOL,
                   "parent");
    ASSERT_REFUSED(klp_rest_snapshot_decode, klp_snapshot_info, "{\"id\":\"" ID "\"}",
                   KELPIE_E_PROTOCOL, "kind");
    ASSERT_REFUSED(klp_rest_snapshot_decode, klp_snapshot_info, "{}", KELPIE_E_PROTOCOL, "id");
}

static void test_format_rest__node_image_event_check(void **state)
{
    (void)state;
    struct klp_node_record n = {.archs = {KLP_ARCH_X86_64},
                                .arch_count = 1,
                                .backends = {"qemu", "mock"},
                                .backend_count = 2,
                                .lease_ttl_ms = 30000};
    SET(n.name, "laptop");
    SET(n.state, "ready");
    assert_prints(klp_rest_node_encode(&n, "lost"),
                  "{\"name\":\"laptop\",\"state\":\"lost\",\"archs\":[\"x86_64\"],\"backends\":"
                  "[\"qemu\",\"mock\"],\"endpoint\":null,\"cpu\":null,\"tsc_khz\":0,"
                  "\"memory_free_bytes\":0,\"lease_ttl_ms\":30000}");
    struct klp_image_info i = {.arch = KLP_ARCH_AARCH64, .size_bytes = 5};
    SET(i.name, "base");
    SET(i.version, "1.0.0");
    SET(i.digest, DIGEST);
    assert_prints(klp_rest_image_encode(&i),
                  "{\"name\":\"base\",\"version\":\"1.0.0\",\"arch\":\"aarch64\",\"digest\":"
                  "\"" DIGEST "\",\"size_bytes\":5}");
    struct klp_event e = {.seq = 9, .wall_ns = TIME_NS};
    SET(e.type, "gap");
    assert_prints(klp_rest_event_encode(&e), "{\"seq\":9,\"type\":\"gap\",\"time\":\"" TIME
                                             "\",\"agent\":null,\"text\":null}");
    struct klp_check c = {.name = "kvm", .status = "warn", .detail = "slow"};
    assert_prints(klp_rest_check_encode(&c), "{\"name\":\"kvm\",\"status\":\"warn\",\"detail\":"
                                             "\"slow\",\"remedy\":null}");
    SET(c.remedy, "kelpie doctor");
    assert_prints(klp_rest_check_encode(&c), "{\"name\":\"kvm\",\"status\":\"warn\",\"detail\":"
                                             "\"slow\",\"remedy\":\"kelpie doctor\"}");
}

static void test_format_rest__documents_and_their_items(void **state)
{
    (void)state;
    struct klp_json *items = klp_json_array();
    klp_json_append_text(items, "x");
    struct klp_json *document = klp_rest_document("agents", items);
    assert_int_equal(klp_json_count(klp_rest_items(document, "agents")), 1);
    assert_null(klp_rest_items(document, "nodes"));
    assert_prints(document, "{\"version\":1,\"agents\":[\"x\"]}");
    const char *none[] = {"[]",
                          "7",
                          "{}",
                          "{\"agents\":[]}",
                          "{\"version\":2,\"agents\":[]}",
                          "{\"version\":\"1\",\"agents\":[]}",
                          "{\"version\":1,\"agents\":{}}",
                          "{\"version\":1,\"agents\":null}"};
    for (size_t i = 0; i < KLP_COUNT(none); i++) {
        struct klp_json *json = parse(none[i]);
        assert_null(klp_rest_items(json, "agents"));
        klp_json_free(json);
    }
    assert_null(klp_rest_items(NULL, "agents"));
}

/* ---- operations */

static const char operation_example[] =
    "{\"id\":\"" ID "\",\"kind\":\"teleport\",\"state\":\"failed\",\"agent\":\"rex\",\"move_id\":"
    "\"" MOVE "\",\"epoch\":8,\"destination\":\"server\",\"phases\":[{\"step\":\"pre-copy\",\"ms\":"
    "2,\"us\":1001,\"bytes\":4096},{\"step\":\"quiesce\",\"ms\":0,\"us\":0,\"bytes\":0}],"
    "\"blackout_ms\":1,\"blackout_us\":1,\"bytes_moved\":99,\"created_at\":\"" TIME
    "\",\"results\":[\"rex-1\",\"rex-2\"],\"error\":{\"type\":\"urn:kelpie:error:incompatible\","
    "\"title\":\"cannot run there\",\"status\":422,\"detail\":\"cannot teleport 'rex'\","
    "\"instance\":\"/v1/operations/" ID "\",\"code\":\"incompatible\",\"reasons\":[\"one\","
    "\"two\"],\"remedy\":\"kelpie teleport rex server --checkpoint\",\"retryable\":false,"
    "\"operation_id\":\"" ID "\"}}";

static void test_format_rest__operation(void **state)
{
    (void)state;
    struct klp_operation_info o;
    DECODE_GOOD(klp_rest_operation_decode, operation_example, &o);
    assert_int_equal(o.state, KLP_OPERATION_FAILED);
    assert_int_equal(o.phase_count, 2);
    assert_string_equal(o.phases[0].step, "pre-copy");
    assert_int_equal(o.phases[0].us, 1001);
    assert_int_equal(o.blackout_us, 1);
    assert_string_equal(o.results[1], "rex-2");
    assert_int_equal(kelpie_error_code(o.error), KELPIE_E_INCOMPATIBLE);
    assert_string_equal(kelpie_error_message(o.error), "cannot teleport 'rex'");
    assert_int_equal(kelpie_error_reason_count(o.error), 2);
    assert_prints(klp_rest_operation_encode(&o), operation_example);
    klp_operation_info_finish(&o);
    SET(o.id, ID);
    SET(o.kind, "fork");
    const char *states[] = {"running", "done", "failed", "unknown"};
    for (unsigned i = 0; i < KLP_COUNT(states); i++) {
        char want[32];
        struct klp_operation_info back;
        o.state = (enum klp_operation_state)i;
        struct klp_json *json = klp_rest_operation_encode(&o);
        struct klp_buf text KLP_AUTO(buf) = KLP_BUF_INIT(TEXT_MAX);
        klp_json_print(json, &text);
        snprintf(want, sizeof(want), "\"state\":\"%s\"", states[i]);
        assert_non_null(strstr(klp_buf_text(&text), want));
        assert_non_null(strstr(klp_buf_text(&text), "\"error\":null"));
        assert_true(klp_rest_operation_decode(json, &back, NULL));
        assert_memory_equal(&back, &o, sizeof(o));
        klp_json_free(json);
    }
}

#define OPERATION "{\"id\":\"" ID "\",\"kind\":\"fork\",\"state\":\"done\""

static void test_format_rest__operation_answers_of_others(void **state)
{
    (void)state;
    struct klp_operation_info o;
    DECODE_GOOD(klp_rest_operation_decode,
                OPERATION
                ",\"blackout_ms\":5,\"phases\":[{\"step\":\"a step with a name of no end\","
                "\"ms\":3,\"new\":1}],\"later\":true}",
                &o);
    assert_int_equal(o.blackout_us, 5000); /* an answer without microseconds */
    assert_int_equal(o.phases[0].us, 3000);
    assert_string_equal(o.phases[0].step, "a step with a name of n");
    klp_operation_info_finish(&o);
    struct klp_buf many KLP_AUTO(buf) = KLP_BUF_INIT(TEXT_MAX);
    klp_buf_append_text(&many, OPERATION ",\"phases\":[{}");
    for (int i = 0; i < 30; i++)
        klp_buf_append_text(&many, ",{\"bytes\":1}");
    klp_buf_append_text(&many, "]}");
    DECODE_GOOD(klp_rest_operation_decode, klp_buf_text(&many), &o);
    assert_int_equal(o.phase_count, KLP_COUNT(o.phases));
    klp_operation_info_finish(&o);
    const struct {
        const char *text, *piece;
    } cases[] = {
        {"{}", "id"},
        {"{\"id\":\"" ID "\"}", "kind"},
        {"{\"id\":\"" ID "\",\"kind\":\"a kind of no known kind\"}", "kind"},
        {"{\"id\":\"" ID "\",\"kind\":\"fork\"}", "state"},
        {"{\"id\":\"" ID "\",\"kind\":\"fork\",\"state\":\"odd\"}", "state"},
        {OPERATION ",\"phases\":{}}", "phases"},
        {OPERATION ",\"phases\":[1]}", "phases"},
        {OPERATION ",\"phases\":[{\"us\":-1}]}", "us"},
        {OPERATION ",\"phases\":[{\"ms\":9223372036854775807}]}", "ms"},
        {OPERATION ",\"blackout_us\":\"1\"}", "blackout_us"},
        {OPERATION ",\"results\":[\"a\",7]}", "results"},
        {OPERATION ",\"results\":[\"a\"],\"error\":7}", "error"},
        {OPERATION ",\"error\":{\"title\":\"x\"}}", "error"},
    };
    for (size_t i = 0; i < KLP_COUNT(cases); i++)
        ASSERT_REFUSED(klp_rest_operation_decode, klp_operation_info, cases[i].text,
                       KELPIE_E_PROTOCOL, cases[i].piece);
}

/* ---- problems */

static struct kelpie_error *an_error(void)
{
    struct kelpie_error *err = NULL;
    bool refused = klp_refuse(&err, KELPIE_E_UNREACHABLE,
                              "cannot teleport 'rex': node 'server' does not answer");
    assert_false(refused);
    klp_error_reason_add(&err, "tried for 5 s");
    klp_error_remedy_set(&err, "kelpie node ls");
    return err;
}

static void test_format_rest__problem_there_and_back(void **state)
{
    (void)state;
    struct kelpie_error *err = an_error();
    struct klp_buf text KLP_AUTO(buf) = KLP_BUF_INIT(TEXT_MAX);
    struct klp_json *json = klp_rest_problem_encode(err, NULL);
    klp_json_print(json, &text);
    klp_json_free(json);
    assert_string_equal(
        klp_buf_text(&text),
        "{\"type\":\"urn:kelpie:error:unreachable\",\"title\":\"cannot be reached\","
        "\"status\":503,\"detail\":\"cannot teleport 'rex': node 'server' does not "
        "answer\",\"instance\":null,\"code\":\"unreachable\",\"reasons\":[\"tried "
        "for 5 s\"],\"remedy\":\"kelpie node ls\",\"retryable\":true,"
        "\"operation_id\":null}");
    struct kelpie_error *back = klp_rest_problem_decode(503, klp_buf_view(&text));
    assert_int_equal(kelpie_error_code(back), KELPIE_E_UNREACHABLE);
    assert_string_equal(kelpie_error_message(back),
                        "cannot teleport 'rex': node 'server' does not answer");
    assert_int_equal(kelpie_error_reason_count(back), 1);
    assert_string_equal(kelpie_error_reason(back, 0), "tried for 5 s");
    assert_string_equal(kelpie_error_remedy(back), "kelpie node ls");
    kelpie_error_free(back);
    klp_buf_clear(&text);
    klp_rest_error_line(err, 14, &text);
    assert_string_equal(klp_buf_text(&text),
                        "{\"type\":\"error\",\"code\":\"unreachable\",\"exit\":14,\"message\":"
                        "\"cannot teleport 'rex': node 'server' does not answer\",\"reasons\":"
                        "[\"tried for 5 s\"],\"remedy\":\"kelpie node ls\"}");
    kelpie_error_free(err);
    klp_buf_clear(&text);
    klp_rest_error_line(NULL, 1, &text); /* a bug, but not a hidden one */
    assert_non_null(strstr(klp_buf_text(&text), "\"code\":\"internal\""));
}

static void test_format_rest__causes_are_told_once(void **state)
{
    (void)state;
    struct klp_buf text KLP_AUTO(buf) = KLP_BUF_INIT(TEXT_MAX);
    struct kelpie_error *err = an_error();
    bool refused = klp_wrap_refusal(&err, "cannot move everything");
    assert_false(refused);
    klp_rest_error_text(err, &text);
    assert_string_equal(klp_buf_text(&text), "cannot move everything: cannot teleport 'rex': node "
                                             "'server' does not answer");
    struct klp_json *json = klp_rest_problem_encode(err, "");
    assert_string_equal(klp_json_text(klp_json_find(json, "detail")), klp_buf_text(&text));
    klp_json_free(json);
    refused = klp_wrap_refusal(&err, "sorry: %s", klp_buf_text(&text)); /* said already */
    assert_false(refused);
    klp_buf_clear(&text);
    klp_rest_error_text(err, &text);
    assert_string_equal(klp_buf_text(&text), "sorry: cannot move everything: cannot teleport "
                                             "'rex': node 'server' does not answer");
    char long_text[KLP_ERROR_TEXT_MAX];
    memset(long_text, 'x', sizeof(long_text) - 1);
    long_text[sizeof(long_text) - 1] = '\0';
    for (char i = 0; i < 10; i++) {
        long_text[sizeof(long_text) - 2] = (char)('a' + i);
        refused = klp_wrap_refusal(&err, "%s", long_text);
        assert_false(refused);
    }
    json = klp_rest_problem_encode(err, "");
    assert_true(strlen(klp_json_text(klp_json_find(json, "detail"))) <= 4 * KLP_ERROR_TEXT_MAX);
    klp_json_free(json);
    kelpie_error_free(err);
}

static void test_format_rest__every_code_survives(void **state)
{
    (void)state;
    for (int code = KELPIE_E_NONE + 1; code < KELPIE_E_COUNT; code++) {
        struct klp_buf text KLP_AUTO(buf) = KLP_BUF_INIT(TEXT_MAX);
        struct kelpie_error *err = klp_error_create((enum kelpie_code)code, "x");
        struct klp_json *json = klp_rest_problem_encode(err, ID);
        klp_json_print(json, &text);
        klp_json_free(json);
        kelpie_error_free(err);
        struct kelpie_error *back = klp_rest_problem_decode(0, klp_buf_view(&text));
        assert_int_equal(kelpie_error_code(back), code);
        kelpie_error_free(back);
        bool retryable =
            code == KELPIE_E_UNREACHABLE || code == KELPIE_E_BUSY || code == KELPIE_E_TIMEOUT;
        assert_non_null(
            strstr(klp_buf_text(&text), retryable ? "\"retryable\":true" : "\"retryable\":false"));
        assert_non_null(strstr(klp_buf_text(&text), "\"instance\":\"/v1/operations/" ID "\""));
    }
}

static void test_format_rest__problem_never_null(void **state)
{
    (void)state;
    const char *none[] = {
        "", "<html>502</html>", "[]", "\"code\"", "{}", "{\"code\":7}", "{\"code\":\"busy\""};
    for (size_t i = 0; i < KLP_COUNT(none); i++) {
        uint8_t *bytes = kit_copy(none[i], strlen(none[i]));
        struct klp_bytes body = {bytes, strlen(none[i])};
        kit_assert_error(klp_rest_problem_decode(502, body), KELPIE_E_PROTOCOL, "502");
        free(bytes);
    }
    static const char odd[] = "{\"code\":\"of_the_future\",\"detail\":\"100%s\",\"reasons\":"
                              "[1,\"%n\",null],\"remedy\":3}";
    struct kelpie_error *err =
        klp_rest_problem_decode(500, (struct klp_bytes){(const uint8_t *)odd, strlen(odd)});
    assert_int_equal(kelpie_error_reason_count(err), 1);
    assert_string_equal(kelpie_error_reason(err, 0), "%n");
    kit_assert_error(err, KELPIE_E_INTERNAL, "100%s");
    struct klp_buf long_list KLP_AUTO(buf) = KLP_BUF_INIT(TEXT_MAX);
    klp_buf_append_text(&long_list, "{\"code\":\"limit\",\"reasons\":[\"r\"");
    for (int i = 0; i < 100; i++)
        klp_buf_append_text(&long_list, ",\"r\"");
    klp_buf_append_text(&long_list, "]}");
    err = klp_rest_problem_decode(429, klp_buf_view(&long_list));
    assert_int_equal(kelpie_error_reason_count(err), KLP_ERROR_REASONS_MAX);
    kit_assert_error(err, KELPIE_E_LIMIT, "over a limit");
    klp_buf_clear(&long_list);
    klp_buf_append_text(&long_list, "{\"code\":\"busy\",\"x\":\"");
    while (long_list.size < KLP_REST_BODY_MAX)
        klp_buf_append_u8(&long_list, 'x');
    klp_buf_append_text(&long_list, "\"}");
    kit_assert_error(klp_rest_problem_decode(409, klp_buf_view(&long_list)), KELPIE_E_PROTOCOL,
                     "409");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_format_rest__agent),
        cmocka_unit_test(test_format_rest__agent_answers_of_others),
        cmocka_unit_test(test_format_rest__snapshot),
        cmocka_unit_test(test_format_rest__node_image_event_check),
        cmocka_unit_test(test_format_rest__documents_and_their_items),
        cmocka_unit_test(test_format_rest__operation),
        cmocka_unit_test(test_format_rest__operation_answers_of_others),
        cmocka_unit_test(test_format_rest__problem_there_and_back),
        cmocka_unit_test(test_format_rest__causes_are_told_once),
        cmocka_unit_test(test_format_rest__every_code_survives),
        cmocka_unit_test(test_format_rest__problem_never_null),
    };
    return cmocka_run_group_tests_name("format_rest", tests, NULL, NULL);
}
