/* SPDX-License-Identifier: Apache-2.0 */
/* What the refs of every store must do. */
#include "contract/store_inside.h"

#include "base/fmt.h"

static void test_contract_store__ref_is_create_only(void **state)
{
    (void)state;
    KLP_AUTO(buf) struct klp_buf out = KLP_BUF_INIT(KLP_REF_VALUE_MAX);
    CONTRACT_FAIL(NOT_FOUND, "snapshots/first",
                  klp_ref_get(&op, store, "snapshots/first", &out, &err_));
    ref_put("snapshots/first", "value 1");
    CONTRACT_FAIL(EXISTS, "snapshots/first",
                  klp_ref_create(&op, store, "snapshots/first", "value 2", 7, &err_));
    CONTRACT_FAIL(EXISTS, "snapshots/first",
                  klp_ref_create(&op, store, "snapshots/first", "value 1", 7, &err_));
    assert_ref("snapshots/first", "value 1");
    CONTRACT_OK(klp_ref_delete(&op, store, "snapshots/first", &err_));
    CONTRACT_OK(klp_ref_delete(&op, store, "snapshots/first", &err_));
    CONTRACT_OK(klp_ref_delete(&op, store, "never/was", &err_));
    CONTRACT_FAIL(NOT_FOUND, "snapshots/first",
                  klp_ref_get(&op, store, "snapshots/first", &out, &err_));
    ref_put("snapshots/first", "value 3");
    assert_ref("snapshots/first", "value 3");
}

static void test_contract_store__ref_values_have_bounds(void **state)
{
    (void)state;
    char value[KLP_REF_VALUE_MAX + 1];
    memset(value, 0x5a, sizeof(value));
    value[3] = '\0';
    CONTRACT_FAIL(LIMIT, "a/b", klp_ref_create(&op, store, "a/b", value, sizeof(value), &err_));
    CONTRACT_OK(klp_ref_create(&op, store, "a/b", value, KLP_REF_VALUE_MAX, &err_));
    KLP_AUTO(buf) struct klp_buf out = KLP_BUF_INIT(KLP_REF_VALUE_MAX);
    CONTRACT_OK(klp_ref_get(&op, store, "a/b", &out, &err_));
    assert_int_equal(out.size, KLP_REF_VALUE_MAX);
    assert_memory_equal(out.data, value, KLP_REF_VALUE_MAX);
    KLP_AUTO(buf) struct klp_buf small = KLP_BUF_INIT(10);
    CONTRACT_FAIL(LIMIT, "", klp_ref_get(&op, store, "a/b", &small, &err_));
    CONTRACT_OK(klp_ref_create(&op, store, "empty", NULL, 0, &err_));
    assert_ref("empty", "");
}

static void test_contract_store__ref_names(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "",      "/",   "a/",        "/a",  "a//b", "a/../b", ".",     "..",   "a/.b", "-a",
        "A",     "a_b", "a/b/c/d/e", "a b", "a\n",  "a+b",    "a/-b",  "ä",    "a\\b", "a/b/",
        "..\\x", "a:b", "%41",       "~",   "a*",   "a/\x01", "\x7f/", "a/+b",
    };
    static const char *const good[] = {"a", "0", "a.b-c", "a/b/c/d", "images/base/1.0.0", "x/0-.."};
    for (size_t i = 0; i < KLP_COUNT(bad); i++) {
        KLP_AUTO(buf) struct klp_buf out = KLP_BUF_INIT(10);
        CONTRACT_FAIL(INVALID, "ref name", klp_ref_create(&op, store, bad[i], "v", 1, &err_));
        CONTRACT_FAIL(INVALID, "ref name", klp_ref_get(&op, store, bad[i], &out, &err_));
        CONTRACT_FAIL(INVALID, "ref name", klp_ref_delete(&op, store, bad[i], &err_));
    }
    for (size_t i = 0; i < KLP_COUNT(good); i++) {
        ref_put(good[i], good[i]);
        assert_ref(good[i], good[i]);
    }
    char longest[KLP_REF_NAME_MAX + 2];
    memset(longest, 'a', sizeof(longest));
    longest[KLP_REF_NAME_MAX + 1] = '\0';
    CONTRACT_FAIL(INVALID, "at most 200", klp_ref_create(&op, store, longest, "v", 1, &err_));
    longest[KLP_REF_NAME_MAX] = '\0';
    ref_put(longest, "long");
    assert_ref(longest, "long");
    longest[1] = '/';
    ref_put(longest, "long, two parts");
    assert_ref(longest, "long, two parts");
}

static void test_contract_store__ref_list(void **state)
{
    (void)state;
    static const char *const names[] = {"images/base/x86",    "snapshots/b", "images/base",
                                        "images/base/1.0/x",  "snapshots/a", "images/base-2",
                                        "images/base.d/more", "images",      "images/bas/x",
                                        "images/base/0",      "zz",          "images-2/a"};
    for (size_t i = 0; i < KLP_COUNT(names); i++)
        ref_put(names[i], "v");
    assert_refs("snapshots", 0, "snapshots/a snapshots/b ");
    assert_refs("images/base", 0, "images/base/0 images/base/1.0/x images/base/x86 ");
    assert_refs("images/base/1.0", 0, "images/base/1.0/x ");
    assert_refs("images/base/0", 0, "");
    assert_refs("images", 0,
                "images/bas/x images/base images/base/0 images/base/1.0/x images/base/x86 "
                "images/base-2 images/base.d/more ");
    assert_refs("images", 2, "images/bas/x images/base ");
    assert_refs("absent", 0, "");
    assert_refs("absent/too", 0, "");
    assert_refs("zz", 0, "");
    struct names all = {0};
    CONTRACT_OK(klp_ref_list(&op, store, "", ref_add, &all, &err_));
    assert_int_equal(all.count, KLP_COUNT(names));
    struct names none = {0};
    CONTRACT_FAIL(INVALID, "ref name", klp_ref_list(&op, store, "a/", ref_add, &none, &err_));
}

static bool ref_delete_each(void *arg, const char *name)
{
    (void)arg;
    CONTRACT_OK(klp_ref_delete(&op, store, name, &err_));
    return true;
}

static void test_contract_store__ref_list_may_delete(void **state)
{
    (void)state;
    for (int i = 0; i < 20; i++) {
        char name[32];
        snprintf(name, sizeof(name), "sessions/s%d", i);
        ref_put(name, "v");
    }
    CONTRACT_OK(klp_ref_list(&op, store, "sessions", ref_delete_each, NULL, &err_));
    assert_refs("sessions", 0, "");
}

#define RACE_ROUNDS 25

struct race_task {
    char who[2];
    struct klp_store *store;
    unsigned won[RACE_ROUNDS];
    unsigned wrong;
};

static void race_for_refs(void *arg)
{
    struct race_task *task = arg;
    for (unsigned round = 0; round < RACE_ROUNDS; round++) {
        char name[32];
        struct kelpie_error *err = NULL;
        snprintf(name, sizeof(name), "race/r%u", round);
        kelpie_outcome outcome = klp_ref_create(&op, task->store, name, task->who, 1, &err);
        if (kelpie_is_ok(outcome))
            task->won[round] = 1;
        else if (outcome.kind != KELPIE_FAIL || kelpie_error_code(err) != KELPIE_E_EXISTS)
            task->wrong++;
        kelpie_error_free(err);
    }
}

static void test_contract_store__ref_race_has_one_winner(void **state)
{
    (void)state;
    KLP_AUTO(store) struct klp_store *second = NULL;
    CONTRACT_TRUE(suite->again(suite->arg, &second, &err_));
    struct race_task tasks[4] = {{.who = "a", .store = store},
                                 {.who = "b", .store = second},
                                 {.who = "c", .store = store},
                                 {.who = "d", .store = second}};
    contract_together(suite->env, 4, race_for_refs, tasks, sizeof(tasks[0]));
    for (unsigned round = 0; round < RACE_ROUNDS; round++) {
        unsigned winners = 0;
        for (size_t i = 0; i < 4; i++) {
            winners += tasks[i].won[round];
            if (tasks[i].won[round]) {
                char name[32];
                snprintf(name, sizeof(name), "race/r%u", round);
                assert_ref(name, tasks[i].who);
            }
        }
        assert_int_equal(winners, 1);
    }
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(tasks[i].wrong, 0);
}

static void test_contract_store__damaged_ref_is_found(void **state)
{
    (void)state;
    if (suite->ref_damage == NULL)
        CONTRACT_SKIP("the bytes of this store cannot be reached");
    KLP_AUTO(buf) struct klp_buf out = KLP_BUF_INIT(KLP_REF_VALUE_MAX);
    ref_put("snapshots/x", "0123456789");
    for (uint64_t at = 0; at < 21; at++) {
        suite->ref_damage(suite->arg, "snapshots/x", CONTRACT_FLIP, at);
        CONTRACT_FAIL(CORRUPT, "snapshots/x", klp_ref_get(&op, store, "snapshots/x", &out, &err_));
        suite->ref_damage(suite->arg, "snapshots/x", CONTRACT_FLIP, at);
    }
    assert_ref("snapshots/x", "0123456789");
    for (int size = 20; size >= 0; size--) {
        suite->ref_damage(suite->arg, "snapshots/x", CONTRACT_CUT, (uint64_t)size);
        CONTRACT_FAIL(CORRUPT, "snapshots/x", klp_ref_get(&op, store, "snapshots/x", &out, &err_));
    }
    assert_int_equal(out.size, 0);
}

int contract_store_refs(const struct contract_store *of)
{
    const struct CMUnitTest tests[] = {
        STORE_TEST(ref_is_create_only),
        STORE_TEST(ref_values_have_bounds),
        STORE_TEST(ref_names),
        STORE_TEST(ref_list),
        STORE_TEST(ref_list_may_delete),
        STORE_TEST(ref_race_has_one_winner),
        STORE_TEST(damaged_ref_is_found),
    };
    suite = of;
    return cmocka_run_group_tests_name(of->name, tests, NULL, NULL);
}
