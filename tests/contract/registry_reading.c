/* SPDX-License-Identifier: Apache-2.0 */
/* What every registry must do for those who read it: settling an unknown outcome, watching,
 * listings, nodes. */
#include "contract/registry_inside.h"

/* ---- settle */

static void assert_settles(const struct klp_agent_record *next, bool want)
{
    bool happened = !want;
    struct klp_agent_record current;
    CONTRACT_OK(klp_registry_settle(&op, registry, next, &happened, &current, &err_));
    assert_int_equal(happened, want);
    assert_string_equal(current.id, next->id);
    klp_agent_record_finish(&current);
}

static void test_contract_registry__settle_tells_what_happened(void **state)
{
    (void)state;
    struct klp_agent_record first = create("a", 1), next = first;
    next.revision = 2; /* as a CAS that ended UNKNOWN leaves it */
    next.manifest.bytes[0] = 7;
    assert_settles(&next, false);
    /* What had not arrived by then never does: its revision is used up. */
    struct klp_agent_record late = next;
    CONTRACT_FAIL(CONFLICT, "revision 2", klp_registry_cas(&op, registry, &first, &late, &err_));
    first.revision = 2;
    next.revision = 3;
    /* Owner, epoch and state are alike, but it was somebody else's change. */
    struct klp_agent_record rival = first;
    klp_text_copy(rival.reason, sizeof(rival.reason), "a rival");
    CONTRACT_OK(klp_registry_cas(&op, second, &first, &rival, &err_));
    assert_settles(&next, false);
    assert_settles(&rival, true);
    CONTRACT_OK(klp_registry_renew(&op, registry, first.id, "node-a", 1, &err_));
    assert_settles(&rival, true);
    /* Later revisions that say the same were built upon it; others perhaps not. */
    struct klp_agent_record later = rival;
    CONTRACT_OK(klp_registry_cas(&op, second, &rival, &later, &err_));
    assert_settles(&rival, true);
    struct klp_agent_record same = later;
    later.state = KLP_AGENT_RUNNING;
    CONTRACT_OK(klp_registry_cas(&op, second, &same, &later, &err_));
    assert_settles(&rival, false);
    assert_settles(&later, true);
    struct klp_agent_record claimed = later;
    claimed.epoch = 2;
    klp_text_copy(claimed.owner, sizeof(claimed.owner), "node-b");
    CONTRACT_OK(klp_registry_cas(&op, second, &later, &claimed, &err_));
    assert_settles(&later, false);
    /* Without a revision: by epoch, owner, state and move. */
    claimed.revision = 0;
    assert_settles(&claimed, true);
    claimed.state = KLP_AGENT_PARKED;
    assert_settles(&claimed, false);
}

static void test_contract_registry__settle_of_what_is_gone(void **state)
{
    (void)state;
    struct klp_agent_record record = record_of("a", 1), current;
    bool happened = false;
    record.revision = 2;
    CONTRACT_FAIL(NOT_FOUND, record.id,
                  klp_registry_settle(&op, registry, &record, &happened, &current, &err_));
    struct kelpie_op late = op;
    late.deadline_ns = klp_boot_ns(suite->env);
    CONTRACT_UNKNOWN(OUTCOME_UNKNOWN, "epoch 1",
                     klp_registry_settle(&late, registry, &record, &happened, &current, &err_));
}

static void bring_back(void *arg)
{
    (void)arg;
    KLP_IGNORE(klp_sleep_until(&op, klp_boot_ns(suite->env) + 150 * KLP_MS, NULL));
    suite->hide(suite->arg, false);
}

static void test_contract_registry__taken_away_is_unreachable(void **state)
{
    (void)state;
    if (suite->hide == NULL)
        CONTRACT_SKIP("this registry cannot be taken away");
    struct klp_agent_record record = create("a", 1), next = record, found;
    bool happened = true;
    suite->hide(suite->arg, true);
    const char *name = klp_registry_name(registry);
    CONTRACT_FAIL(UNREACHABLE, name, klp_registry_cas(&op, registry, &record, &next, &err_));
    CONTRACT_FAIL(UNREACHABLE, name, klp_registry_get(&op, registry, record.id, &found, &err_));
    CONTRACT_FAIL(UNREACHABLE, name,
                  klp_registry_renew(&op, registry, record.id, "node-a", 1, &err_));
    CONTRACT_FAIL(UNREACHABLE, name, klp_registry_watch(&op, registry, record.id, 1, &err_));
    /* Settling waits for it to come back. */
    struct kelpie_op brief = klp_op_within(&op, 30);
    next.revision = 2;
    next.epoch = 2;
    CONTRACT_UNKNOWN(OUTCOME_UNKNOWN, "'a'",
                     klp_registry_settle(&brief, registry, &next, &happened, &found, &err_));
    struct klp_task *task = NULL;
    CONTRACT_TRUE(klp_task_spawn(suite->env, "back", bring_back, NULL, &task, &err_));
    assert_settles(&next, false);
    klp_task_join(task);
    record.revision = 2; /* used up */
    assert_stored(&record);
}

/* ---- watch */

static void change_soon(void *arg)
{
    struct klp_agent_record *record = arg, next = *record;
    KLP_IGNORE(klp_sleep_until(&op, klp_boot_ns(suite->env) + 60 * KLP_MS, NULL));
    KLP_IGNORE(klp_registry_renew(&op, second, record->id, record->owner, record->epoch, NULL));
    KLP_IGNORE(klp_sleep_until(&op, klp_boot_ns(suite->env) + 60 * KLP_MS, NULL));
    KLP_IGNORE(klp_registry_cas(&op, second, record, &next, NULL));
}

static void test_contract_registry__watch_wakes_up(void **state)
{
    (void)state;
    struct klp_agent_record record = create("a", 1);
    CONTRACT_OK(klp_registry_watch(&op, registry, record.id, 0, &err_));
    struct kelpie_op brief = klp_op_within(&op, 30);
    CONTRACT_FAIL(TIMEOUT, record.id, klp_registry_watch(&brief, registry, record.id, 1, &err_));
    struct klp_task *task = NULL;
    uint64_t start = klp_boot_ns(suite->env);
    CONTRACT_TRUE(klp_task_spawn(suite->env, "change", change_soon, &record, &task, &err_));
    CONTRACT_OK(klp_registry_watch(&op, registry, record.id, 1, &err_));
    uint64_t took = klp_boot_ns(suite->env) - start;
    klp_task_join(task);
    assert_in_range(took, 120 * KLP_MS, 5 * KLP_SECOND); /* by the change, not by the renewal */
    struct klp_agent_record last = get(registry, record.id);
    assert_int_equal(last.revision, 2);
    CONTRACT_OK(klp_registry_delete(&op, second, &last, &err_));
    klp_agent_record_finish(&last);
    CONTRACT_OK(klp_registry_watch(&op, registry, record.id, 2, &err_));
}

static void cancel_soon(void *arg)
{
    KLP_IGNORE(klp_sleep_until(&op, klp_boot_ns(suite->env) + 50 * KLP_MS, NULL));
    klp_cancel_raise(arg);
}

static void test_contract_registry__watch_wakes_on_cancel(void **state)
{
    (void)state;
    struct klp_agent_record record = create("a", 1);
    KLP_AUTO(cancel) struct klp_cancel *cancel = klp_cancel_create(suite->env);
    struct kelpie_op stopped = op;
    stopped.cancel = cancel;
    struct klp_task *task = NULL;
    CONTRACT_TRUE(klp_task_spawn(suite->env, "cancel", cancel_soon, cancel, &task, &err_));
    CONTRACT_FAIL(CANCELLED, record.id,
                  klp_registry_watch(&stopped, registry, record.id, 1, &err_));
    klp_task_join(task);
}

/* ---- listings, nodes */

struct names {
    char text[256];
    unsigned stop_after, count;
};

static bool name_add(void *arg, const struct klp_agent_record *record)
{
    struct names *names = arg;
    size_t size = strlen(names->text);
    snprintf(names->text + size, sizeof(names->text) - size, "%s:%u ", record->name,
             (unsigned)record->beat);
    /* The registry may be used from within. */
    struct klp_agent_record again = get(registry, record->id);
    klp_agent_record_finish(&again);
    return ++names->count != names->stop_after;
}

static void test_contract_registry__list_is_sorted(void **state)
{
    (void)state;
    struct names none = {0}, all = {0}, some = {.stop_after = 2};
    CONTRACT_OK(klp_registry_list(&op, registry, name_add, &none, &err_));
    assert_int_equal(none.count, 0);
    static const char *const names[] = {"m", "b", "a-1", "z", "a"};
    for (unsigned i = 0; i < KLP_COUNT(names); i++)
        create(names[i], i + 1);
    CONTRACT_OK(
        klp_registry_renew(&op, second, "00000000000000000000000000000004", "node-a", 1, &err_));
    CONTRACT_OK(klp_registry_list(&op, registry, name_add, &all, &err_));
    assert_string_equal(all.text, "a:0 a-1:0 b:0 m:0 z:1 ");
    CONTRACT_OK(klp_registry_list(&op, registry, name_add, &some, &err_));
    assert_string_equal(some.text, "a:0 a-1:0 ");
}

static bool node_add(void *arg, const struct klp_node_record *node)
{
    struct names *names = arg;
    size_t size = strlen(names->text);
    snprintf(names->text + size, sizeof(names->text) - size, "%s ", node->name);
    return ++names->count != names->stop_after;
}

static void node_put(const char *name, const char *endpoint, uint64_t beat)
{
    struct klp_node_record node = {.archs = {KLP_ARCH_X86_64},
                                   .arch_count = 1,
                                   .backends = {"mock"},
                                   .backend_count = 1,
                                   .beat = beat,
                                   .lease_ttl_ms = 30000,
                                   .state = "ready"};
    klp_text_copy(node.name, sizeof(node.name), name);
    klp_text_copy(node.endpoint, sizeof(node.endpoint), endpoint);
    CONTRACT_OK(klp_registry_node_put(&op, registry, &node, &err_));
}

static void test_contract_registry__nodes(void **state)
{
    (void)state;
    struct klp_node_record node;
    struct names names = {0}, left = {0};
    CONTRACT_FAIL(NOT_FOUND, "'b'", klp_registry_node_get(&op, second, "b", &node, &err_));
    node_put("b", "unix:/run/b", 1);
    node_put("a", "unix:/run/a", 1);
    node_put("b", "https://b:1", 2);
    CONTRACT_OK(klp_registry_node_get(&op, second, "b", &node, &err_));
    assert_string_equal(node.endpoint, "https://b:1");
    assert_int_equal(node.beat, 2);
    assert_int_equal(node.arch_count, 1);
    CONTRACT_OK(klp_registry_node_list(&op, second, node_add, &names, &err_));
    assert_string_equal(names.text, "a b ");
    CONTRACT_OK(klp_registry_node_remove(&op, second, "b", &err_));
    CONTRACT_OK(klp_registry_node_remove(&op, second, "b", &err_));
    CONTRACT_OK(klp_registry_node_list(&op, registry, node_add, &left, &err_));
    assert_string_equal(left.text, "a ");
    CONTRACT_FAIL(INVALID, "node", klp_registry_node_get(&op, second, "B", &node, &err_));
}

static void test_contract_registry__ended_op_does_nothing(void **state)
{
    (void)state;
    struct klp_agent_record record = create("a", 1), next = record, other = record_of("b", 2),
                            found;
    KLP_AUTO(cancel) struct klp_cancel *cancel = klp_cancel_create(suite->env);
    struct kelpie_op late = op, stopped = op;
    late.deadline_ns = klp_boot_ns(suite->env);
    stopped.cancel = cancel;
    klp_cancel_raise(cancel);
    CONTRACT_FAIL(TIMEOUT, "", klp_registry_create(&late, registry, &other, &err_));
    CONTRACT_FAIL(CANCELLED, "", klp_registry_create(&stopped, registry, &other, &err_));
    CONTRACT_FAIL(TIMEOUT, "", klp_registry_cas(&late, registry, &record, &next, &err_));
    CONTRACT_FAIL(CANCELLED, "",
                  klp_registry_renew(&stopped, registry, record.id, "node-a", 1, &err_));
    CONTRACT_FAIL(TIMEOUT, "", klp_registry_delete(&late, registry, &record, &err_));
    CONTRACT_FAIL(CANCELLED, "", klp_registry_get(&stopped, registry, record.id, &found, &err_));
    CONTRACT_FAIL(TIMEOUT, "", klp_registry_watch(&late, registry, record.id, 1, &err_));
    assert_stored(&record);
    CONTRACT_FAIL(NOT_FOUND, "'b'", klp_registry_find(&op, registry, "b", &found, &err_));
}

int contract_registry_reading(const struct contract_registry *of)
{
    const struct CMUnitTest tests[] = {
        REGISTRY_TEST(settle_tells_what_happened),
        REGISTRY_TEST(settle_of_what_is_gone),
        REGISTRY_TEST(taken_away_is_unreachable),
        REGISTRY_TEST(watch_wakes_up),
        REGISTRY_TEST(watch_wakes_on_cancel),
        REGISTRY_TEST(list_is_sorted),
        REGISTRY_TEST(nodes),
        REGISTRY_TEST(ended_op_does_nothing),
    };
    suite = of;
    return cmocka_run_group_tests_name(of->name, tests, NULL, NULL);
}
