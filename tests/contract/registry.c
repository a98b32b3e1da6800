/* SPDX-License-Identifier: Apache-2.0 */
/* What every registry must do, over any implementation that tests/contract/registry.h can reach:
 * records, compare-and-set, leases, races. The rest: registry_reading.c. */
#include "contract/registry_inside.h"

static void test_contract_registry__create_and_read_back(void **state)
{
    (void)state;
    struct klp_agent_record record = create("first", 1), found;
    assert_stored(&record);
    CONTRACT_OK(klp_registry_find(&op, second, "first", &found, &err_));
    assert_text_equal(&found, &record);
    klp_agent_record_finish(&found);
    CONTRACT_FAIL(NOT_FOUND, "absent", klp_registry_find(&op, registry, "absent", &found, &err_));
    CONTRACT_FAIL(
        NOT_FOUND, "00000000000000000000000000000009",
        klp_registry_get(&op, registry, "00000000000000000000000000000009", &found, &err_));
}

static void test_contract_registry__names_and_ids_are_taken_once(void **state)
{
    (void)state;
    struct klp_agent_record first = create("first", 1);
    struct klp_agent_record same_name = record_of("first", 2), same_id = record_of("other", 1);
    CONTRACT_FAIL(EXISTS, "first", klp_registry_create(&op, second, &same_name, &err_));
    assert_int_equal(same_name.revision, 0);
    CONTRACT_FAIL(EXISTS, "other", klp_registry_create(&op, registry, &same_id, &err_));
    assert_stored(&first);
    struct klp_agent_record found;
    CONTRACT_FAIL(NOT_FOUND, "other", klp_registry_find(&op, registry, "other", &found, &err_));
    CONTRACT_OK(klp_registry_delete(&op, registry, &first, &err_));
    CONTRACT_OK(klp_registry_create(&op, registry, &same_name, &err_));
}

static void test_contract_registry__bad_input_is_refused(void **state)
{
    (void)state;
    struct klp_agent_record record = record_of("fine", 1), found;
    record.id[3] = 'X';
    CONTRACT_FAIL(INVALID, "id", klp_registry_create(&op, registry, &record, &err_));
    record = record_of("Not a name", 1);
    CONTRACT_FAIL(INVALID, "agent", klp_registry_create(&op, registry, &record, &err_));
    record = record_of("fine", 1);
    klp_text_copy(record.owner, sizeof(record.owner), "No node");
    CONTRACT_FAIL(INVALID, "node", klp_registry_create(&op, registry, &record, &err_));
    record = record_of("fine", 1);
    record.epoch = 1ull << 63;
    CONTRACT_FAIL(LIMIT, "fine", klp_registry_create(&op, registry, &record, &err_));
    CONTRACT_FAIL(INVALID, "id", klp_registry_get(&op, registry, "1", &found, &err_));
    CONTRACT_FAIL(INVALID, "", klp_registry_find(&op, registry, "A'; --", &found, &err_));
    CONTRACT_FAIL(INVALID, "id", klp_registry_renew(&op, registry, "1", "node-a", 1, &err_));
    CONTRACT_FAIL(INVALID, "id", klp_registry_watch(&op, registry, "", 1, &err_));
}

/* ---- compare and set */

static void test_contract_registry__cas_wins_once(void **state)
{
    (void)state;
    struct klp_agent_record first = create("a", 1), next = first, rival = first;
    next.epoch = 2;
    next.state = KLP_AGENT_RUNNING;
    klp_text_copy(next.owner, sizeof(next.owner), "node-b");
    CONTRACT_OK(klp_registry_cas(&op, registry, &first, &next, &err_));
    assert_int_equal(next.revision, 2);
    rival.epoch = 2;
    CONTRACT_FAIL(CONFLICT, "node-b", klp_registry_cas(&op, second, &first, &rival, &err_));
    assert_int_equal(rival.revision, 1);
    assert_stored(&next);
    /* Each of the two alone is not enough. */
    struct klp_agent_record old_epoch = next, old_revision = next;
    old_epoch.epoch = 1;
    old_revision.revision = 1;
    rival = next;
    CONTRACT_FAIL(CONFLICT, "epoch 2", klp_registry_cas(&op, second, &old_epoch, &rival, &err_));
    CONTRACT_FAIL(CONFLICT, "revision 2",
                  klp_registry_cas(&op, second, &old_revision, &rival, &err_));
    assert_stored(&next);
    struct klp_agent_record absent = record_of("b", 2);
    absent.revision = 1;
    CONTRACT_FAIL(NOT_FOUND, "'b'", klp_registry_cas(&op, second, &absent, &absent, &err_));
    /* The caller's only copy may be both. */
    next.state = KLP_AGENT_PAUSED;
    CONTRACT_OK(klp_registry_cas(&op, registry, &next, &next, &err_));
    assert_int_equal(next.revision, 3);
    assert_stored(&next);
}

static void test_contract_registry__cas_can_rename(void **state)
{
    (void)state;
    struct klp_agent_record a = create("a", 1), b = create("b", 2), next = a, found;
    klp_text_copy(next.name, sizeof(next.name), "b");
    CONTRACT_FAIL(EXISTS, "taken", klp_registry_cas(&op, registry, &a, &next, &err_));
    assert_stored(&a);
    assert_stored(&b);
    next = a;
    klp_text_copy(next.name, sizeof(next.name), "c");
    CONTRACT_OK(klp_registry_cas(&op, registry, &a, &next, &err_));
    CONTRACT_FAIL(NOT_FOUND, "'a'", klp_registry_find(&op, second, "a", &found, &err_));
    CONTRACT_OK(klp_registry_find(&op, second, "c", &found, &err_));
    klp_agent_record_finish(&found);
}

static void test_contract_registry__delete_compares(void **state)
{
    (void)state;
    struct klp_agent_record first = create("a", 1), next = first;
    CONTRACT_OK(klp_registry_cas(&op, registry, &first, &next, &err_));
    CONTRACT_FAIL(CONFLICT, "'a'", klp_registry_delete(&op, second, &first, &err_));
    first.revision = 2;
    first.epoch = 7;
    CONTRACT_FAIL(CONFLICT, "'a'", klp_registry_delete(&op, second, &first, &err_));
    assert_stored(&next);
    CONTRACT_OK(klp_registry_delete(&op, second, &next, &err_));
    CONTRACT_FAIL(NOT_FOUND, "'a'", klp_registry_delete(&op, registry, &next, &err_));
}

static void test_contract_registry__renew_touches_the_beat_only(void **state)
{
    (void)state;
    struct klp_agent_record first = create("a", 1), next = first;
    CONTRACT_OK(klp_registry_renew(&op, second, first.id, "node-a", 1, &err_));
    CONTRACT_OK(klp_registry_renew(&op, registry, first.id, "node-a", 1, &err_));
    first.beat = 2;
    assert_stored(&first);
    /* A CAS made from what was read before the renewals wins, and keeps them. */
    next.state = KLP_AGENT_STOPPED;
    next.beat = 0;
    first.beat = 0;
    CONTRACT_OK(klp_registry_cas(&op, registry, &first, &next, &err_));
    next.beat = 2;
    assert_stored(&next);
    CONTRACT_FAIL(CONFLICT, "node-b",
                  klp_registry_renew(&op, registry, first.id, "node-b", 1, &err_));
    CONTRACT_FAIL(CONFLICT, "epoch 2",
                  klp_registry_renew(&op, registry, first.id, "node-a", 2, &err_));
    CONTRACT_FAIL(
        CONFLICT, "",
        klp_registry_renew(&op, registry, "00000000000000000000000000000009", "node-a", 1, &err_));
    assert_stored(&next);
}

static void test_contract_registry__unknown_fields_are_kept(void **state)
{
    (void)state;
    if (suite->plant == NULL)
        CONTRACT_SKIP("the text of this registry cannot be reached");
    struct klp_agent_record first = create("a", 1);
    KLP_AUTO(buf) struct klp_buf text = KLP_BUF_INIT(KLP_RECORD_SIZE_MAX);
    CONTRACT_TRUE(klp_agent_record_encode(&first, &text, &err_));
    text.size--; /* the last brace */
    klp_buf_append_text(&text, ",\"future\":{\"field\":[1,2]}}");
    suite->plant(suite->arg, first.id, klp_buf_text(&text));
    struct klp_agent_record read = get(registry, first.id), next = read;
    next.state = KLP_AGENT_RUNNING;
    CONTRACT_OK(klp_registry_cas(&op, registry, &read, &next, &err_));
    struct klp_agent_record again = get(second, first.id);
    assert_int_equal(again.state, KLP_AGENT_RUNNING);
    KLP_AUTO(buf) struct klp_buf after = KLP_BUF_INIT(KLP_RECORD_SIZE_MAX);
    CONTRACT_TRUE(klp_agent_record_encode(&again, &after, &err_));
    assert_non_null(strstr(klp_buf_text(&after), "\"future\":{\"field\":[1,2]}"));
    klp_agent_record_finish(&again);
    klp_agent_record_finish(&read); /* next borrowed its extra */
}

static bool count_records(void *arg, const struct klp_agent_record *record)
{
    (void)record;
    ++*(unsigned *)arg;
    return true;
}

static void test_contract_registry__damaged_text_is_found(void **state)
{
    (void)state;
    if (suite->plant == NULL)
        CONTRACT_SKIP("the text of this registry cannot be reached");
    struct klp_agent_record a = create("a", 1), b = create("b", 2), found;
    unsigned count = 0;
    suite->plant(suite->arg, b.id, "{\"version\":1");
    CONTRACT_FAIL(CORRUPT, "", klp_registry_get(&op, registry, b.id, &found, &err_));
    CONTRACT_FAIL(CORRUPT, "agents",
                  klp_registry_list(&op, registry, count_records, &count, &err_));
    assert_int_equal(count, 1);
    KLP_AUTO(buf) struct klp_buf text = KLP_BUF_INIT(KLP_RECORD_SIZE_MAX);
    CONTRACT_TRUE(klp_agent_record_encode(&a, &text, &err_));
    suite->plant(suite->arg, b.id, klp_buf_text(&text));
    CONTRACT_FAIL(CORRUPT, "another", klp_registry_get(&op, registry, b.id, &found, &err_));
    assert_stored(&a);
}

/* ---- races */

#define RACE_WINS 200

struct cas_task {
    struct klp_registry *registry;
    const char *owner;
    uint64_t won[RACE_WINS]; /* revisions */
    unsigned wins, conflicts, wrong;
};

static void race_to_set(void *arg)
{
    struct cas_task *task = arg;
    while (task->wins < RACE_WINS && task->wrong == 0) {
        struct klp_agent_record read, next;
        if (!kelpie_is_ok(klp_registry_find(&op, task->registry, "raced", &read, NULL))) {
            task->wrong++;
            return;
        }
        next = read;
        next.epoch++;
        klp_text_copy(next.owner, sizeof(next.owner), task->owner);
        struct kelpie_error *err = NULL;
        kelpie_outcome outcome = klp_registry_cas(&op, task->registry, &read, &next, &err);
        if (kelpie_is_ok(outcome))
            task->won[task->wins++] = next.revision;
        else if (outcome.kind == KELPIE_FAIL && kelpie_error_code(err) == KELPIE_E_CONFLICT)
            task->conflicts++;
        else
            task->wrong++;
        kelpie_error_free(err);
        klp_agent_record_finish(&read);
    }
}

static void test_contract_registry__every_revision_has_one_winner(void **state)
{
    (void)state;
    struct klp_agent_record first = create("raced", 1);
    static struct cas_task tasks[2];
    memset(tasks, 0, sizeof(tasks));
    tasks[0] = (struct cas_task){.registry = registry, .owner = "node-a"};
    tasks[1] = (struct cas_task){.registry = second, .owner = "node-b"};
    contract_together(suite->env, 2, race_to_set, tasks, sizeof(tasks[0]));
    unsigned char winners[2 + 2 * RACE_WINS] = {0};
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(tasks[i].wrong, 0);
        assert_int_equal(tasks[i].wins, RACE_WINS);
        for (unsigned win = 0; win < RACE_WINS; win++) {
            assert_in_range(tasks[i].won[win], 2, 1 + 2 * RACE_WINS);
            assert_int_equal(++winners[tasks[i].won[win]], 1);
        }
    }
    struct klp_agent_record last = get(registry, first.id);
    assert_int_equal(last.revision, 1 + 2 * RACE_WINS);
    assert_int_equal(last.epoch, 1 + 2 * RACE_WINS);
    klp_agent_record_finish(&last);
    print_message("conflicts: %u and %u\n", tasks[0].conflicts, tasks[1].conflicts);
}

#define RENEWALS 60

static void renew_often(void *arg)
{
    unsigned *renewed = arg;
    for (unsigned i = 0; i < RENEWALS; i++)
        *renewed += kelpie_is_ok(
            klp_registry_renew(&op, second, "00000000000000000000000000000001", "node-a", 1, NULL));
}

static void test_contract_registry__renewals_and_changes_do_not_hurt_each_other(void **state)
{
    (void)state;
    struct klp_agent_record record = create("a", 1);
    unsigned renewed = 0;
    struct klp_task *task = NULL;
    CONTRACT_TRUE(klp_task_spawn(suite->env, "renew", renew_often, &renewed, &task, &err_));
    for (unsigned i = 0; i < RENEWALS; i++) {
        struct klp_agent_record next = record;
        CONTRACT_OK(klp_registry_cas(&op, registry, &record, &next, &err_));
        record = next;
    }
    klp_task_join(task);
    assert_int_equal(renewed, RENEWALS);
    struct klp_agent_record last = get(registry, record.id);
    assert_int_equal(last.beat, RENEWALS);
    assert_int_equal(last.revision, 1 + RENEWALS);
    klp_agent_record_finish(&last);
}

struct create_task {
    struct klp_registry *registry;
    unsigned number;
    unsigned created, wrong;
};

static void race_to_create(void *arg)
{
    struct create_task *task = arg;
    struct klp_agent_record record = record_of("wanted", task->number);
    struct kelpie_error *err = NULL;
    if (kelpie_is_ok(klp_registry_create(&op, task->registry, &record, &err)))
        task->created = 1;
    else
        task->wrong = kelpie_error_code(err) != KELPIE_E_EXISTS;
    kelpie_error_free(err);
}

static void test_contract_registry__one_of_many_gets_the_name(void **state)
{
    (void)state;
    struct create_task tasks[4] = {{.registry = registry, .number = 1},
                                   {.registry = second, .number = 2},
                                   {.registry = registry, .number = 3},
                                   {.registry = second, .number = 4}};
    contract_together(suite->env, 4, race_to_create, tasks, sizeof(tasks[0]));
    unsigned created = 0;
    for (size_t i = 0; i < 4; i++) {
        created += tasks[i].created;
        assert_int_equal(tasks[i].wrong, 0);
    }
    assert_int_equal(created, 1);
}

int contract_registry(const struct contract_registry *of)
{
    const struct CMUnitTest tests[] = {
        REGISTRY_TEST(create_and_read_back),
        REGISTRY_TEST(names_and_ids_are_taken_once),
        REGISTRY_TEST(bad_input_is_refused),
        REGISTRY_TEST(cas_wins_once),
        REGISTRY_TEST(cas_can_rename),
        REGISTRY_TEST(delete_compares),
        REGISTRY_TEST(renew_touches_the_beat_only),
        REGISTRY_TEST(unknown_fields_are_kept),
        REGISTRY_TEST(damaged_text_is_found),
        REGISTRY_TEST(every_revision_has_one_winner),
        REGISTRY_TEST(renewals_and_changes_do_not_hurt_each_other),
        REGISTRY_TEST(one_of_many_gets_the_name),
    };
    suite = of;
    return cmocka_run_group_tests_name(of->name, tests, NULL, NULL) + contract_registry_reading(of);
}
