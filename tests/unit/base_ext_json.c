/* SPDX-License-Identifier: Apache-2.0 */
/* JSON: strict parsing, typed fields that name themselves, and texts that are not UTF-8. */
#include "base_kit.h"

#include "base/ext/ext.h"
#include "base/ext/json.h"

static struct klp_json *parse_within(const char *text, unsigned depth_max)
{
    struct klp_json *json = NULL;
    struct kelpie_error *err = NULL;
    if (!klp_json_parse(text, strlen(text), depth_max, &json, &err))
        fail_msg("%s: %s", text, kelpie_error_message(err));
    return json;
}

static struct klp_json *parse(const char *text)
{
    return parse_within(text, 16);
}

static void prints_as(const struct klp_json *json, const char *expected)
{
    struct klp_buf out = KLP_BUF_INIT(10000);
    klp_json_print(json, &out);
    assert_string_equal(klp_buf_text(&out), expected);
    klp_buf_finish(&out);
}

static void test_base_ext_json__prints_in_order_of_insertion(void **state)
{
    struct klp_json *object = klp_json_object(), *list = klp_json_array();
    (void)state;
    klp_json_set_text(object, "zulu", "a\"\n");
    klp_json_set_u64(object, "big", INT64_MAX);
    klp_json_set_i64(object, "alpha", -3);
    klp_json_set_bool(object, "yes", true);
    klp_json_set_text(object, "none", NULL);
    klp_json_append_text(list, "x");
    klp_json_append(list, klp_json_object());
    klp_json_set(object, "list", list);
    klp_json_set_null(object, "end");
    prints_as(object,
              "{\"zulu\":\"a\\\"\\n\",\"big\":9223372036854775807,\"alpha\":-3,\"yes\":true,"
              "\"none\":null,\"list\":[\"x\",{}],\"end\":null}");
    klp_json_free(object);
    klp_json_free(NULL);
    assert_int_equal(kit_live, 0);
}

static void test_base_ext_json__print_stops_at_the_ceiling(void **state)
{
    struct klp_json *object = parse("{\"key\":\"0123456789\"}");
    struct klp_buf out = KLP_BUF_INIT(8);
    (void)state;
    klp_json_print(object, &out);
    assert_true(out.over_limit);
    klp_buf_finish(&out);
    klp_json_free(object);
}

static void test_base_ext_json__prints_escapes(void **state)
{
    struct klp_json *all = parse("[\"\\u0001\\b\\t\\n\\f\\r\\u001f \\\"\\\\\\/\\u007f\\u00fc\","
                                 "{\"\\u001b\":[]},true,null,-0,1.5,{}]");
    (void)state;
    prints_as(all, "[\"\\u0001\\b\\t\\n\\f\\r\\u001F \\\"\\\\/\x7f\xc3\xbc\","
                   "{\"\\u001B\":[]},true,null,0,1.5,{}]");
    klp_json_free(all);
    assert_int_equal(kit_live, 0);
}

static void test_base_ext_json__bytes_that_are_no_utf8_are_replaced(void **state)
{
    struct klp_json *object = klp_json_object();
    (void)state;
    klp_json_set_text_n(object, "a", "x\xff\xc3\xbcy\xe2\x82", 7);
    klp_json_set_text_n(object, "b", "", 0);
    prints_as(object, "{\"a\":\"x\xef\xbf\xbd\xc3\xbcy\xef\xbf\xbd\xef\xbf\xbd\",\"b\":\"\"}");
    klp_json_free(object);
    assert_int_equal(kit_live, 0);
}

static void test_base_ext_json__numbers_out_of_range_are_bugs_of_the_writer(void **state)
{
    struct klp_json *object = klp_json_object();
    (void)state;
    KIT_ASSERT_BUG(klp_json_set_u64(object, "x", (uint64_t)INT64_MAX + 1));
    klp_json_free(object);
}

static void test_base_ext_json__refuses_what_is_not_one_document(void **state)
{
    static const char *const bad[] = {"",
                                      " ",
                                      "{",
                                      "}",
                                      "{} x",
                                      "{}{}",
                                      "[1,]",
                                      "{\"a\":1,}",
                                      "{'a':1}",
                                      "{\"a\":1,\"a\":2}",
                                      "nul",
                                      "\"\\u0000\"",
                                      "\"\xff\"",
                                      "\"a\nb\"",
                                      "9223372036854775808",
                                      "01",
                                      "// c\n{}",
                                      "{\"a\\u0000\":1}"};
    struct klp_json *json = NULL;
    struct kelpie_error *err = NULL;
    (void)state;
    for (size_t i = 0; i < KLP_COUNT(bad); i++) {
        if (klp_json_parse(bad[i], strlen(bad[i]), 16, &json, &err))
            fail_msg("'%s' was taken", bad[i]);
        assert_int_equal(kelpie_error_code(err), KELPIE_E_INVALID);
        klp_error_clear(&err);
        assert_null(json);
    }
    KIT_REFUSED(klp_json_parse("{\n \"a\":}", 9, 16, &json, &err), &err, KELPIE_E_INVALID,
                "line 2");
    KIT_REFUSED(klp_json_parse("{\"a\":1}", 3, 16, &json, &err), &err, KELPIE_E_INVALID, "line 1");
    assert_int_equal(kit_live, 0);
}

static void test_base_ext_json__depth_is_bounded_before_parsing(void **state)
{
    static char deep[200001];
    struct klp_json *json = NULL;
    struct kelpie_error *err = NULL;
    (void)state;
    memset(deep, '[', sizeof(deep) - 1);
    KIT_REFUSED(klp_json_parse(deep, sizeof(deep) - 1, 16, &json, &err), &err, KELPIE_E_INVALID,
                "16");
    assert_true(klp_json_parse("[[[1]]]", 7, 3, &json, &err));
    klp_json_free(json);
    json = NULL;
    KIT_REFUSED(klp_json_parse("[[[1]]]", 7, 2, &json, &err), &err, KELPIE_E_INVALID, "2");
    /* Brackets inside of strings are no depth, also behind an escaped quote. */
    klp_json_free(parse_within("[\"[[[\\\"[[[\",[]]", 2));
    assert_int_equal(kit_live, 0);
}

static void test_base_ext_json__walks(void **state)
{
    struct klp_json *json = parse("{\"list\":[\"x\",2],\"text\":\"t\"}");
    const struct klp_json *list = klp_json_find(json, "list");
    (void)state;
    assert_true(klp_json_is_object(json));
    assert_false(klp_json_is_array(json));
    assert_true(klp_json_is_array(list));
    assert_int_equal(klp_json_count(list), 2);
    assert_string_equal(klp_json_text(klp_json_at(list, 0)), "x");
    assert_null(klp_json_text(klp_json_at(list, 1)));
    assert_false(klp_json_is_text(klp_json_at(list, 1)));
    assert_null(klp_json_at(list, 2));
    assert_null(klp_json_find(json, "other"));
    assert_null(klp_json_find(list, "x"));
    assert_null(klp_json_find(NULL, "x"));
    assert_int_equal(klp_json_count(json), 0);
    klp_json_free(json);
}

static void test_base_ext_json__typed_fields(void **state)
{
    struct klp_json *json = parse("{\"t\":\"text\",\"n\":7,\"m\":-7,\"b\":false,\"z\":null}");
    struct kelpie_error *err = NULL;
    const char *text = "before";
    uint64_t number = 1;
    int64_t integer = 1;
    bool flag = true;
    (void)state;
    assert_true(klp_json_get_text(json, "t", KLP_JSON_REQUIRED, &text, &err));
    assert_string_equal(text, "text");
    assert_true(klp_json_get_u64(json, "n", KLP_JSON_REQUIRED, &number, &err));
    assert_true(number == 7);
    assert_true(klp_json_get_i64(json, "m", KLP_JSON_REQUIRED, &integer, &err));
    assert_true(integer == -7);
    assert_true(klp_json_get_bool(json, "b", KLP_JSON_REQUIRED, &flag, &err));
    assert_false(flag);
    /* Absent or null: untouched. */
    assert_true(klp_json_get_text(json, "z", KLP_JSON_OPTIONAL, &text, &err));
    assert_true(klp_json_get_u64(json, "absent", KLP_JSON_OPTIONAL, &number, &err));
    assert_true(klp_json_get_i64(json, "z", KLP_JSON_OPTIONAL, &integer, &err));
    assert_true(klp_json_get_bool(json, "absent", KLP_JSON_OPTIONAL, &flag, &err));
    assert_string_equal(text, "text");
    assert_true(number == 7 && integer == -7 && !flag);
    KIT_REFUSED(klp_json_get_text(json, "z", KLP_JSON_REQUIRED, &text, &err), &err,
                KELPIE_E_INVALID, "'z'");
    KIT_REFUSED(klp_json_get_u64(json, "gone", KLP_JSON_REQUIRED, &number, &err), &err,
                KELPIE_E_INVALID, "'gone'");
    klp_json_free(json);
    assert_int_equal(kit_live, 0);
}

static void test_base_ext_json__wrong_types_name_the_field(void **state)
{
    struct klp_json *json = parse("{\"t\":\"1\",\"n\":7,\"m\":-7,\"r\":1.0,\"o\":{}}");
    struct kelpie_error *err = NULL;
    const char *text = NULL;
    uint64_t number = 1;
    int64_t integer = 1;
    bool flag = true;
    (void)state;
    KIT_REFUSED(klp_json_get_text(json, "n", false, &text, &err), &err, KELPIE_E_INVALID, "'n'");
    KIT_REFUSED(klp_json_get_u64(json, "t", false, &number, &err), &err, KELPIE_E_INVALID, "'t'");
    KIT_REFUSED(klp_json_get_u64(json, "m", false, &number, &err), &err, KELPIE_E_INVALID, "'m'");
    KIT_REFUSED(klp_json_get_u64(json, "r", false, &number, &err), &err, KELPIE_E_INVALID, "'r'");
    KIT_REFUSED(klp_json_get_i64(json, "r", false, &integer, &err), &err, KELPIE_E_INVALID, "'r'");
    KIT_REFUSED(klp_json_get_bool(json, "n", false, &flag, &err), &err, KELPIE_E_INVALID, "'n'");
    KIT_REFUSED(klp_json_get_text(json, "o", false, &text, &err), &err, KELPIE_E_INVALID, "'o'");
    assert_true(text == NULL && number == 1 && integer == 1 && flag);
    klp_json_free(json);
}

static void test_base_ext_json__unknown_fields_are_named(void **state)
{
    static const char *const keys[] = {"name", "image", NULL};
    struct klp_json *json = parse("{\"name\":1,\"image\":2}");
    struct kelpie_error *err = NULL;
    (void)state;
    assert_true(klp_json_only(json, keys, &err));
    klp_json_free(json);
    json = parse("{\"name\":1,\"imagee\":2,\"other\":3}");
    KIT_REFUSED(klp_json_only(json, keys, &err), &err, KELPIE_E_INVALID, "'imagee'");
    klp_json_free(json);
}

int main(void)
{
    klp_ext_init_seeded(12345);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_base_ext_json__prints_in_order_of_insertion),
        cmocka_unit_test(test_base_ext_json__print_stops_at_the_ceiling),
        cmocka_unit_test(test_base_ext_json__prints_escapes),
        cmocka_unit_test(test_base_ext_json__bytes_that_are_no_utf8_are_replaced),
        cmocka_unit_test(test_base_ext_json__numbers_out_of_range_are_bugs_of_the_writer),
        cmocka_unit_test(test_base_ext_json__refuses_what_is_not_one_document),
        cmocka_unit_test(test_base_ext_json__depth_is_bounded_before_parsing),
        cmocka_unit_test(test_base_ext_json__walks),
        cmocka_unit_test(test_base_ext_json__typed_fields),
        cmocka_unit_test(test_base_ext_json__wrong_types_name_the_field),
        cmocka_unit_test(test_base_ext_json__unknown_fields_are_named),
    };
    return cmocka_run_group_tests_name("base_ext_json", tests, NULL, NULL);
}
