/* SPDX-License-Identifier: Apache-2.0 */
/* The mock guest's engine, bytes in and bytes out: freezing, uniqueness, what its memory carries
 * over to another engine, and memory that no guest of ours can have left. */
#include "vm_mock_engine_kit.h"

/* ---- frozen, unique, down */

static void test_vm_mock_engine_state__a_frozen_workload_stands_still(void **state)
{
    struct rig *rig = *state;
    assert_int_equal(main_start(rig, "@sleep 0.05"), 0);
    uint32_t sleeper = exec_begin(rig, "@sleep 0.05", 80);
    finish(rig, 3);
    assert_int_equal(ask(rig, KLP_GUEST_FREEZE, NULL), KLP_GUEST_DONE);
    assert_int_equal(mock_engine_idle_ms(&rig->engine), 1000);
    uint64_t count = rig->engine.state->counter;
    rig_step(rig, 10000);
    assert_int_equal(rig->engine.state->counter, count);
    exec_fails(rig, "@echo no", "wrong_state");
    assert_int_equal(main_status(rig), KLP_MAIN_RUNNING);
    assert_int_equal(ask(rig, KLP_GUEST_CHECKPOINT, NULL), KLP_GUEST_DONE); /* not the workload's */
    assert_int_equal(ask(rig, KLP_GUEST_THAW, NULL), KLP_GUEST_DONE);
    rig_clear(rig);
    uint32_t last = rig->channel;
    rig->channel = sleeper;
    assert_int_equal(finish(rig, 60), KLP_GUEST_EXIT);
    assert_int_equal(number(rig, KLP_TAG_TIMED_OUT), UINT64_MAX);
    rig->channel = last;
    assert_int_equal(main_status(rig), KLP_MAIN_EXITED);
}

static void unique_body(struct klp_buf *out, enum klp_unique_case which, uint8_t entropy_byte)
{
    uint8_t bytes[64];
    klp_field_append_u64(out, KLP_TAG_CASE, which);
    klp_field_append_u64(out, KLP_TAG_WALL_NS, (uint64_t)WALL + 5000000000ull);
    klp_field_append(out, KLP_TAG_GENERATION, "generation-16byt", 16);
    memset(bytes, entropy_byte, sizeof(bytes));
    klp_field_append(out, KLP_TAG_ENTROPY, bytes, sizeof(bytes));
}

static struct klp_bytes receipt_item(const struct rig *rig, enum klp_unique_item which,
                                     unsigned *result)
{
    size_t at = 0;
    struct klp_field field;
    while (klp_field_next(klp_buf_view(&rig->body), &at, &field, NULL) == 1) {
        struct klp_reader reader = {.data = field.data.data, .size = field.data.size};
        if (field.tag != KLP_TAG_ITEM || klp_read_u16(&reader) != which)
            continue;
        *result = klp_read_u16(&reader);
        return (struct klp_bytes){field.data.data + 4, field.data.size - 4};
    }
    fail_msg("no item %d", which);
    return (struct klp_bytes){NULL, 0};
}

static unsigned receipt_result(const struct rig *rig, enum klp_unique_item which)
{
    unsigned result = 0;
    receipt_item(rig, which, &result);
    return result;
}

static void test_vm_mock_engine_state__a_receipt_says_what_was_done(void **state)
{
    struct rig *rig = *state;
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(1024);
    uint8_t machine[16], wall[8];
    unsigned result;
    memcpy(machine, rig->engine.state->machine_id, 16);
    unique_body(&body, KLP_UNIQUE_MOVE, 1);
    assert_int_equal(ask(rig, KLP_GUEST_UNIQUE, &body), KLP_GUEST_RECEIPT);
    assert_memory_equal(receipt_item(rig, KLP_ITEM_GENERATION, &result).data, "generation-16byt",
                        16);
    assert_int_equal(receipt_result(rig, KLP_ITEM_MACHINE_ID), KLP_UNIQUE_NOT_APPLICABLE);
    assert_int_equal(receipt_result(rig, KLP_ITEM_BOOT_ID), KLP_UNIQUE_NOT_APPLICABLE);
    memcpy(wall, receipt_item(rig, KLP_ITEM_CLOCK, &result).data, 8);
    uint64_t now = 0;
    for (unsigned i = 0; i < 8; i++)
        now |= (uint64_t)wall[i] << (8 * i);
    assert_int_equal(now, (uint64_t)WALL + 5000000000ull);
    assert_memory_equal(rig->engine.state->machine_id, machine, 16);

    /* A fork that is not told who it is says that it is not: it failed, and is not "done". */
    klp_buf_clear(&body);
    unique_body(&body, KLP_UNIQUE_FORK, 2);
    assert_int_equal(ask(rig, KLP_GUEST_UNIQUE, &body), KLP_GUEST_RECEIPT);
    assert_int_equal(receipt_result(rig, KLP_ITEM_MACHINE_ID), KLP_UNIQUE_FAILED);
    assert_int_equal(receipt_result(rig, KLP_ITEM_BOOT_ID), KLP_UNIQUE_FAILED);
    assert_int_equal(receipt_result(rig, KLP_ITEM_HOSTNAME), KLP_UNIQUE_FAILED);
    klp_field_append(&body, KLP_TAG_MACHINE_ID, "machine-16-bytes", 16);
    klp_field_append(&body, KLP_TAG_BOOT_ID, "bootid--16-bytes", 16);
    klp_field_append_text(&body, KLP_TAG_HOSTNAME, "fork-1");
    assert_int_equal(ask(rig, KLP_GUEST_UNIQUE, &body), KLP_GUEST_RECEIPT);
    assert_memory_equal(receipt_item(rig, KLP_ITEM_MACHINE_ID, &result).data, "machine-16-bytes",
                        16);
    assert_int_equal(result, KLP_UNIQUE_DONE);
    assert_memory_equal(receipt_item(rig, KLP_ITEM_HOSTNAME, &result).data, "fork-1", 6);
    assert_int_equal(result, KLP_UNIQUE_DONE);
}

static void test_vm_mock_engine_state__an_incomplete_unique_changes_nothing(void **state)
{
    static const uint16_t needed[] = {KLP_TAG_CASE, KLP_TAG_WALL_NS, KLP_TAG_GENERATION,
                                      KLP_TAG_ENTROPY};
    struct rig *rig = *state;
    struct mock_state before = *rig->engine.state;
    for (unsigned left_out = 0; left_out < 5; left_out++) {
        __attribute__((cleanup(klp_auto_buf))) struct klp_buf whole = KLP_BUF_INIT(1024),
                                                              body = KLP_BUF_INIT(1024);
        size_t at = 0;
        struct klp_field field;
        unique_body(&whole, left_out == 4 ? (enum klp_unique_case)9 : KLP_UNIQUE_MOVE, 3);
        while (klp_field_next(klp_buf_view(&whole), &at, &field, NULL) == 1)
            if (left_out == 4 || field.tag != needed[left_out])
                klp_field_append(&body, field.tag, field.data.data, field.data.size);
        assert_int_equal(ask(rig, KLP_GUEST_UNIQUE, &body), KLP_GUEST_ERROR);
        assert_memory_equal(rig->engine.state->rng, before.rng, sizeof(before.rng));
        assert_memory_equal(rig->engine.state->generation, before.generation, 16);
        assert_int_equal(rig->engine.state->has_generation, 0);
    }
}

static void test_vm_mock_engine_state__clones_differ_once_they_are_unique(void **state)
{
    struct rig *rig = *state, clone;
    uint8_t *memory = malloc(MEMORY), drawn[2][32];
    unsigned result;
    say(rig, "@fill 2 8");
    memcpy(memory, rig->memory, MEMORY);
    rig_init(&clone, memory, MEMORY, PAGE);
    hello(&clone);
    assert_memory_equal(clone.engine.state->rng, rig->engine.state->rng, 32); /* the danger */
    for (unsigned i = 0; i < 2; i++) {
        __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(1024);
        struct rig *one = i == 0 ? rig : &clone;
        unique_body(&body, KLP_UNIQUE_REWIND, (uint8_t)(10 + i));
        klp_field_append(&body, KLP_TAG_BOOT_ID, "bootid--16-bytes", 16);
        assert_int_equal(ask(one, KLP_GUEST_UNIQUE, &body), KLP_GUEST_RECEIPT);
        memcpy(drawn[i], receipt_item(one, KLP_ITEM_KERNEL_RNG, &result).data, 32);
        assert_int_equal(result, KLP_UNIQUE_DONE);
    }
    assert_memory_not_equal(drawn[0], drawn[1], 32);
    assert_string_equal(say(&clone, "@check"), "pages=512 bad=0\n");
    rig_finish(&clone);
    free(memory);
}

static void test_vm_mock_engine_state__all_of_its_state_is_in_its_memory(void **state)
{
    struct rig *rig = *state, later;
    uint8_t *memory = malloc(MEMORY);
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(1024);
    klp_field_append_text(&body, KLP_TAG_ENV, "A=1");
    klp_field_append_text(&body, KLP_TAG_WORKDIR, "/w");
    ask(rig, KLP_GUEST_SETUP, &body);
    tree_put(rig);
    main_start(rig, "@sleep 1");
    say(rig, "@fill 3 4");
    rig_step(rig, 400);
    uint64_t count = strtoull(say(rig, "@count"), NULL, 10);
    assert_int_equal(ask(rig, KLP_GUEST_FREEZE, NULL), KLP_GUEST_DONE);
    exec_begin(rig, "@sleep 100", 0); /* half a session is under way */
    memcpy(memory, rig->memory, MEMORY);
    memset(rig->memory, 0xdd, MEMORY); /* no pointer leads back */
    rig_init(&later, memory, MEMORY, PAGE);
    assert_false(later.engine.crashed);
    hello(&later);
    assert_int_equal(number(&later, KLP_TAG_MAIN_STATE), KLP_MAIN_RUNNING);
    exec_fails(&later, "@echo", "wrong_state"); /* frozen still */
    assert_int_equal(ask(&later, KLP_GUEST_THAW, NULL), KLP_GUEST_DONE);
    assert_string_equal(say(&later, "@check"), "pages=768 bad=0\n");
    assert_string_equal(say(&later, "@env"), "A=1\n");
    assert_string_equal(say(&later, "@cat d/a"), "hello");
    assert_in_range(strtoull(say(&later, "@count"), NULL, 10), count, count + 20);
    assert_int_equal(main_status(&later), KLP_MAIN_RUNNING);
    rig_step(&later, 700);
    assert_int_equal(main_status(&later), KLP_MAIN_EXITED);
    rig_finish(&later);
    free(memory);
}

static void test_vm_mock_engine_state__goes_down_and_crashes_as_told(void **state)
{
    struct rig *rig = *state;
    assert_int_equal(ask(rig, KLP_GUEST_SHUTDOWN, NULL), KLP_GUEST_DONE);
    assert_true(rig->engine.powered_off);
    exec_begin(rig, "@crash", 0);
    finish(rig, 5);
    assert_int_equal(rig->end, 0); /* the dead answer nothing */
    assert_true(rig->engine.crashed);
    assert_non_null(strstr(rig->engine.console, "crashed"));
}

/* ---- memory from anywhere */

static bool is_sound_with(struct rig *rig, uint8_t *memory)
{
    struct mock_engine engine;
    uint8_t seed[32] = {0};
    memcpy(memory, rig->memory, MEMORY);
    mock_engine_init(&engine, memory, MEMORY, PAGE, "x86_64", seed);
    bool sound = !engine.crashed;
    mock_engine_finish(&engine);
    return sound;
}

#define DAMAGED(statement)                                                                         \
    do {                                                                                           \
        struct mock_state kept = *state_;                                                          \
        statement;                                                                                 \
        assert_false(is_sound_with(rig, memory));                                                  \
        *state_ = kept;                                                                            \
        assert_true(is_sound_with(rig, memory));                                                   \
    } while (0)

static void test_vm_mock_engine_state__damaged_memory_is_refused(void **state)
{
    struct rig *rig = *state;
    struct mock_state *state_ = rig->engine.state;
    uint8_t *memory = malloc(MEMORY);
    tree_put(rig);
    assert_true(is_sound_with(rig, memory));
    DAMAGED(state_->env_size = MOCK_ENV_SIZE + 1);
    DAMAGED((state_->env_size = 3, memcpy(state_->env, "A=1", 3)));
    DAMAGED(memset(state_->hostname, 'h', sizeof(state_->hostname)));
    DAMAGED(memset(state_->workdir, 'w', sizeof(state_->workdir)));
    DAMAGED(state_->fill_pages = MEMORY / 2 / PAGE + 1);
    DAMAGED(state_->fill_pages = UINT64_MAX);
    DAMAGED(state_->main_state = 3);
    DAMAGED(state_->frozen = 2);
    DAMAGED(state_->files_used = MEMORY);
    DAMAGED(state_->files[1].size = 6);
    DAMAGED(state_->files[1].offset = UINT64_MAX - 2);
    DAMAGED((state_->files[1].reserved = UINT64_MAX, state_->files[1].size = UINT64_MAX));
    DAMAGED(memset(state_->files[2].target, 't', sizeof(state_->files[2].target)));
    DAMAGED(memset(state_->files[63].path, 'p', sizeof(state_->files[63].path)));
    DAMAGED(state_->files[4].offset = state_->files[1].offset); /* two in one place */
    free(memory);
}

/* Whatever bytes lie there, nothing is read or written outside: under a sanitizer this would show.
 */
static void test_vm_mock_engine_state__random_memory_does_no_harm(void **state)
{
    struct rig *rig = *state;
    uint8_t *memory = malloc(MEMORY);
    unsigned usable = 0;
    uint64_t random = 88172645463325252ull;
    tree_put(rig);
    say(rig, "@fill 1 1");
    for (unsigned round = 0; round < 300; round++) {
        struct rig other;
        memcpy(memory, rig->memory, sizeof(struct mock_state));
        for (unsigned i = 0; i < 1 + round % 4; i++) {
            random ^= random << 13, random ^= random >> 7, random ^= random << 17;
            memory[8 + random % (sizeof(struct mock_state) - 8)] ^=
                (uint8_t)(1u << (random >> 60) % 8);
        }
        rig_init(&other, memory, MEMORY, PAGE);
        if (!other.engine.crashed) {
            usable++;
            hello(&other);
            ask(&other, KLP_GUEST_THAW, NULL);
            exec_begin(&other, "@check", 0);
            finish(&other, 5);
            exec_begin(&other, "@env", 0);
            finish(&other, 5);
            ask(&other, KLP_GUEST_CHECKPOINT, NULL);
            log_follow(&other, 0, false);
            finish(&other, 5);
            put_file(&other, "new", "1234", 4);
        } else {
            __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(64);
            klp_field_append(&body, KLP_TAG_NONCE, "nonce-of-16bytes", 16);
            assert_string_equal(other.engine.console, "mock guest: its memory is damaged");
            frame_put(&other, KLP_GUEST_HELLO, 0, 0, klp_buf_view(&body));
            rig_step(&other, 5);
            assert_int_equal(other.engine.out.size, 0);
        }
        rig_finish(&other);
    }
    assert_in_range(usable, 1, 300);
    free(memory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RIG_TEST(test_vm_mock_engine_state__a_frozen_workload_stands_still),
        RIG_TEST(test_vm_mock_engine_state__a_receipt_says_what_was_done),
        RIG_TEST(test_vm_mock_engine_state__an_incomplete_unique_changes_nothing),
        RIG_TEST(test_vm_mock_engine_state__clones_differ_once_they_are_unique),
        RIG_TEST(test_vm_mock_engine_state__all_of_its_state_is_in_its_memory),
        RIG_TEST(test_vm_mock_engine_state__goes_down_and_crashes_as_told),
        RIG_TEST(test_vm_mock_engine_state__damaged_memory_is_refused),
        RIG_TEST(test_vm_mock_engine_state__random_memory_does_no_harm),
    };
    return cmocka_run_group_tests_name("vm_mock_engine_state", tests, NULL, NULL);
}
