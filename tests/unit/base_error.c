/* SPDX-License-Identifier: Apache-2.0 */
/* Error objects: set once, layers, reasons and remedies through layers, and no memory at any step.
 */
#include "base_kit.h"

#include "base/limits.h"

static kelpie_outcome lower(struct kelpie_error **err)
{
    return klp_fail(err, KELPIE_E_CORRUPT, "frame %d of '%s' is damaged", 3, "pack");
}

static kelpie_outcome middle(struct kelpie_error **err)
{
    KLP_TRY(lower(err));
    return KLP_OK;
}

static bool tried(bool fine)
{
    KLP_CHECK(fine);
    return true;
}

static kelpie_outcome required(bool fine)
{
    KLP_REQUIRE(fine);
    return KLP_OK;
}

static void test_base_error__fail_sets_code_and_message(void **state)
{
    struct kelpie_error *err = NULL;
    (void)state;
    assert_int_equal(middle(&err).kind, KELPIE_FAIL);
    assert_int_equal(kelpie_error_code(err), KELPIE_E_CORRUPT);
    assert_string_equal(kelpie_error_message(err), "frame 3 of 'pack' is damaged");
    assert_null(kelpie_error_cause(err));
    assert_int_equal(kelpie_error_reason_count(err), 0);
    assert_null(kelpie_error_reason(err, 0));
    klp_error_clear(&err);
    assert_null(err);
    assert_int_equal(kit_live, 0);
}

static void test_base_error__outcomes_pass_through_the_macros(void **state)
{
    struct kelpie_error *err = NULL;
    (void)state;
    kelpie_outcome unknown = klp_unknown(&err, "no answer from '%s'", "b");
    assert_true(kelpie_is_unknown(unknown));
    assert_false(kelpie_is_ok(unknown));
    assert_int_equal(klp_error_code(&err), KELPIE_E_OUTCOME_UNKNOWN);
    /* A layer over UNKNOWN stays UNKNOWN. */
    assert_int_equal(klp_wrap(&err, unknown, "claim").kind, KELPIE_UNKNOWN);
    assert_int_equal(klp_error_code(&err), KELPIE_E_OUTCOME_UNKNOWN);
    klp_error_clear(&err);
    assert_true(tried(true));
    assert_false(tried(false));
    assert_true(kelpie_is_ok(required(true)));
    assert_int_equal(required(false).kind, KELPIE_FAIL);
}

static void test_base_error__null_err_is_allowed_everywhere(void **state)
{
    (void)state;
    assert_int_equal(lower(NULL).kind, KELPIE_FAIL);
    assert_false(klp_refuse(NULL, KELPIE_E_IO, "x"));
    assert_int_equal(klp_unknown(NULL, "x").kind, KELPIE_UNKNOWN);
    assert_false(klp_wrap_refusal(NULL, "x"));
    klp_error_reason_add(NULL, "x");
    klp_error_remedy_set(NULL, "x");
    klp_error_clear(NULL);
    assert_int_equal(klp_error_code(NULL), KELPIE_E_NONE);
    assert_int_equal(kelpie_error_code(NULL), KELPIE_E_NONE);
    assert_null(kelpie_error_cause(NULL));
    assert_string_equal(kelpie_error_remedy(NULL), "");
    kelpie_error_free(NULL);
    assert_int_equal(kit_live, 0);
}

static void test_base_error__setting_twice_is_a_bug(void **state)
{
    struct kelpie_error *err = NULL;
    (void)state;
    assert_false(klp_refuse(&err, KELPIE_E_IO, "first"));
    KIT_ASSERT_BUG(KLP_IGNORE(klp_refuse(&err, KELPIE_E_IO, "second")));
    assert_string_equal(kelpie_error_message(err), "first");
    klp_error_clear(&err);
}

static void test_base_error__wrap_keeps_code_reasons_and_remedy(void **state)
{
    struct kelpie_error *err = NULL;
    (void)state;
    assert_false(klp_refuse(&err, KELPIE_E_INCOMPATIBLE, "node 'b' cannot run it"));
    klp_error_reason_add(&err, "needs %s", "avx2");
    klp_error_reason_add(&err, "needs 4 GiB");
    klp_error_remedy_set(&err, "kelpie teleport %s b --checkpoint", "a");
    assert_false(klp_wrap_refusal(&err, "cannot teleport '%s'", "a"));

    assert_int_equal(kelpie_error_code(err), KELPIE_E_INCOMPATIBLE);
    assert_string_equal(kelpie_error_message(err), "cannot teleport 'a'");
    assert_string_equal(kelpie_error_message(kelpie_error_cause(err)), "node 'b' cannot run it");
    assert_int_equal(kelpie_error_reason_count(err), 2);
    assert_string_equal(kelpie_error_reason(err, 0), "needs avx2");
    assert_null(kelpie_error_reason(err, 2));
    assert_string_equal(kelpie_error_remedy(err), "kelpie teleport a b --checkpoint");

    /* A reason added above joins those below: it must not hide them. */
    klp_error_reason_add(&err, "and a third");
    assert_int_equal(kelpie_error_reason_count(err), 3);
    assert_string_equal(kelpie_error_reason(err, 2), "and a third");
    /* The outer error's own remedy wins. */
    klp_error_remedy_set(&err, "kelpie doctor");
    assert_string_equal(kelpie_error_remedy(err), "kelpie doctor");
    klp_error_clear(&err);
    assert_int_equal(kit_live, 0);
}

static void test_base_error__wrap_without_an_error_does_nothing(void **state)
{
    struct kelpie_error *err = NULL;
    (void)state;
    assert_true(kelpie_is_ok(klp_wrap(&err, KLP_OK, "x")));
    assert_false(klp_wrap_refusal(&err, "x"));
    assert_null(err);
}

static void test_base_error__remedy_falls_back_to_the_code(void **state)
{
    struct kelpie_error *err = NULL;
    (void)state;
    assert_false(klp_refuse(&err, KELPIE_E_NOT_FOUND, "no agent 'x'"));
    assert_string_equal(kelpie_error_remedy(err), "kelpie ps -a");
    klp_error_clear(&err);
}

static void test_base_error__reasons_are_bounded(void **state)
{
    struct kelpie_error *err = NULL;
    (void)state;
    assert_false(klp_refuse(&err, KELPIE_E_INVALID, "many"));
    for (int i = 0; i < KLP_ERROR_REASONS_MAX + 5; i++)
        klp_error_reason_add(&err, "reason %d", i);
    assert_int_equal(kelpie_error_reason_count(err), KLP_ERROR_REASONS_MAX);
    assert_string_equal(kelpie_error_reason(err, KLP_ERROR_REASONS_MAX - 1), "reason 31");
    klp_error_clear(&err);
    assert_int_equal(kit_live, 0);
}

static void test_base_error__message_is_one_bounded_line(void **state)
{
    struct kelpie_error *err = NULL;
    static char long_text[3 * KLP_ERROR_TEXT_MAX];
    (void)state;
    memset(long_text, 'x', sizeof(long_text) - 1);
    assert_false(klp_refuse(&err, KELPIE_E_IO, "%s", long_text));
    assert_int_equal(strlen(kelpie_error_message(err)), KLP_ERROR_TEXT_MAX);
    klp_error_clear(&err);
    assert_false(klp_refuse(&err, KELPIE_E_IO, "guest said '%s'", "a\nb\x1b[2J\x7f"));
    assert_string_equal(kelpie_error_message(err), "guest said 'a?b?[2J?'");
    klp_error_clear(&err);
}

static void test_base_error__create_and_move(void **state)
{
    struct kelpie_error *err = NULL;
    struct kelpie_error *other = klp_error_create(KELPIE_E_BUSY, "100% busy %s");
    (void)state;
    assert_string_equal(kelpie_error_message(other), "100% busy %s"); /* a text, never a format */
    klp_error_move(&err, &other);
    assert_null(other);
    assert_int_equal(kelpie_error_code(err), KELPIE_E_BUSY);
    other = klp_error_create(KELPIE_E_IO, "second");
    klp_error_move(&err, &other);
    assert_null(other);
    assert_int_equal(kelpie_error_code(err), KELPIE_E_BUSY);
    other = klp_error_create(KELPIE_E_IO, "third");
    klp_error_move(NULL, &other);
    assert_null(other);
    klp_error_clear(&err);
    assert_int_equal(kit_live, 0);
}

static void test_base_error__no_memory_never_fails(void **state)
{
    (void)state;
    for (long allowed = 0; allowed < 2; allowed++) {
        struct kelpie_error *err = NULL;
        kit_allocations_left = allowed;
        assert_false(klp_refuse(&err, KELPIE_E_IO, "lost"));
        kit_allocations_left = -1;
        assert_int_equal(kelpie_error_code(err), KELPIE_E_NO_MEMORY);
        assert_string_equal(kelpie_error_message(err), "out of memory");
        klp_error_reason_add(&err, "cannot stick");
        klp_error_remedy_set(&err, "cannot stick");
        assert_false(klp_wrap_refusal(&err, "cannot stick"));
        assert_int_equal(kelpie_error_reason_count(err), 0);
        assert_string_equal(kelpie_error_remedy(err), "");
        klp_error_clear(&err);
        assert_int_equal(kit_live, 0);
    }
}

static void test_base_error__no_memory_for_a_layer_keeps_the_lower_error(void **state)
{
    (void)state;
    for (long allowed = 0; allowed < 2; allowed++) {
        struct kelpie_error *err = NULL;
        KLP_IGNORE(lower(&err));
        kit_allocations_left = allowed;
        assert_false(klp_wrap_refusal(&err, "layer"));
        kit_allocations_left = 0;
        klp_error_reason_add(&err, "no room");
        klp_error_remedy_set(&err, "no room");
        kit_allocations_left = -1;
        assert_int_equal(kelpie_error_code(err), KELPIE_E_CORRUPT);
        assert_string_equal(kelpie_error_message(err), "frame 3 of 'pack' is damaged");
        assert_int_equal(kelpie_error_reason_count(err), 0);
        klp_error_clear(&err);
        assert_int_equal(kit_live, 0);
    }
}

static void test_base_error__facts_of_codes(void **state)
{
    (void)state;
    for (int code = 1; code < KELPIE_E_COUNT; code++) {
        enum kelpie_code typed = (enum kelpie_code)code;
        assert_int_equal(kelpie_code_from_name(kelpie_code_name(typed)), typed);
        assert_true(kelpie_code_text(typed)[0] != 0);
        assert_in_range(kelpie_code_http(typed), 400, 599);
        assert_in_range(kelpie_code_exit(typed), 1, 130);
    }
    assert_int_equal(kelpie_code_exit(KELPIE_E_CORRUPT), 16);
    assert_int_equal(kelpie_code_exit(KELPIE_E_OUTCOME_UNKNOWN), 17);
    assert_int_equal(kelpie_code_from_name("no such"), KELPIE_E_INTERNAL);
    assert_int_equal(kelpie_code_from_name(NULL), KELPIE_E_INTERNAL);
    assert_string_equal(kelpie_code_name((enum kelpie_code)9999), "internal");
    assert_string_equal(kelpie_code_name((enum kelpie_code) - 1), "internal");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_base_error__fail_sets_code_and_message),
        cmocka_unit_test(test_base_error__outcomes_pass_through_the_macros),
        cmocka_unit_test(test_base_error__null_err_is_allowed_everywhere),
        cmocka_unit_test(test_base_error__setting_twice_is_a_bug),
        cmocka_unit_test(test_base_error__wrap_keeps_code_reasons_and_remedy),
        cmocka_unit_test(test_base_error__wrap_without_an_error_does_nothing),
        cmocka_unit_test(test_base_error__remedy_falls_back_to_the_code),
        cmocka_unit_test(test_base_error__reasons_are_bounded),
        cmocka_unit_test(test_base_error__message_is_one_bounded_line),
        cmocka_unit_test(test_base_error__create_and_move),
        cmocka_unit_test(test_base_error__no_memory_never_fails),
        cmocka_unit_test(test_base_error__no_memory_for_a_layer_keeps_the_lower_error),
        cmocka_unit_test(test_base_error__facts_of_codes),
    };
    return cmocka_run_group_tests_name("base_error", tests, NULL, NULL);
}
