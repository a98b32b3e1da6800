/* SPDX-License-Identifier: Apache-2.0 */
/* Guests that break the protocol: the session ends with PROTOCOL, whoever waits is told, nothing
 * else happens. What a newer guest may say is no breach. */
#include "vm_guest_kit.h"

#define U64(value) ((uint64_t)(value))

/* Whatever the test said last broke the session: the call is told, and so is the next. */
static void session_is_broken_at(struct guest_kit *g, struct guest_call *call, const char *part,
                                 int line)
{
    struct guest_call next;
    guest_call_fails_at(call, KELPIE_E_PROTOCOL, part, line);
    assert_false(klp_guest_is_alive(g->guest));
    guest_call_start(&next, g, CALL_PING);
    guest_call_fails_at(&next, KELPIE_E_PROTOCOL, part, line);
}
#define session_is_broken(g, call, part) session_is_broken_at(g, call, part, __LINE__)

static void greeting_fails(struct guest_kit *g, const struct klp_buf *body, const char *part)
{
    struct guest_opening opening;
    struct klp_task *task = guest_open_begin(g, &opening);
    struct klp_bytes nonce = guest_hello_nonce(g);
    struct klp_buf all = KLP_BUF_INIT(1024);
    klp_field_append(&all, KLP_TAG_NONCE, nonce.data, nonce.size);
    klp_buf_append(&all, body->data, body->size);
    guest_say(g, KLP_GUEST_HELLO_ACK, 0, 0, all.data, all.size);
    klp_buf_finish(&all);
    klp_task_join(task);
    assert_int_equal(kelpie_error_code(opening.error), KELPIE_E_PROTOCOL);
    assert_non_null(strstr(kelpie_error_message(opening.error), part));
    klp_error_clear(&opening.error);
}

static void test_vm_guest_hostile__greeting_of_another_version(void **state)
{
    struct klp_buf body = KLP_BUF_INIT(1024);
    klp_field_append_u64(&body, KLP_TAG_VERSION, 2);
    greeting_fails(*state, &body, "version 2");
    klp_buf_finish(&body);
}

static void test_vm_guest_hostile__greeting_with_half_a_generation(void **state)
{
    struct klp_buf body = KLP_BUF_INIT(1024);
    klp_field_append_u64(&body, KLP_TAG_VERSION, KLP_GUEST_VERSION);
    klp_field_append(&body, KLP_TAG_GENERATION, "short", 5);
    greeting_fails(*state, &body, "5 bytes");
    klp_buf_finish(&body);
}

static void test_vm_guest_hostile__greeting_with_a_wild_state(void **state)
{
    struct klp_buf body = KLP_BUF_INIT(1024);
    klp_field_append_u64(&body, KLP_TAG_VERSION, KLP_GUEST_VERSION);
    klp_field_append_u64(&body, KLP_TAG_MAIN_STATE, 3);
    greeting_fails(*state, &body, "state 3");
    klp_buf_finish(&body);
}

/* ---- frames that are none */

static void raw_breaks(struct guest_kit *g, const void *bytes, size_t size, const char *part)
{
    struct guest_call call;
    guest_exec_begin(&call, g);
    guest_say_bytes(g, bytes, size);
    session_is_broken(g, &call, part);
}

static void test_vm_guest_hostile__garbage(void **state)
{
    raw_breaks(*state, "hello?", 6, "no magic");
}

static void test_vm_guest_hostile__a_body_too_long(void **state)
{
    static const uint8_t header[16] = {'K', 'G', 1, 0, 64, 0, 0, 0, 1, 0, 0, 0, 1, 0, 1, 0};
    raw_breaks(*state, header, sizeof(header), "65537");
}

static void test_vm_guest_hostile__reserved_bits(void **state)
{
    static const uint8_t header[16] = {'K', 'G', 1, 0x80, 64, 0, 0, 0, 1};
    raw_breaks(*state, header, sizeof(header), "reserved");
}

static void test_vm_guest_hostile__a_frame_never_finished_holds_up_nobody_for_ever(void **state)
{
    struct guest_kit *g = *state;
    struct guest_call call;
    static const uint8_t header[16] = {'K', 'G', 1, 0, 64, 0, 0, 0, 1, 0, 0, 0, 0xff};
    guest_call_init(&call, g, CALL_PING);
    call.op = klp_op_plain(g->env, 300);
    guest_call_begin(&call);
    guest_expect(g, KLP_GUEST_PING);
    guest_say_bytes(g, header, sizeof(header));
    guest_call_fails(&call, KELPIE_E_TIMEOUT, "");
}

/* ---- answers that nobody asked for. One table: what is said on an exec's channel or near it. */

struct breach {
    const char *name;
    uint16_t type;
    uint8_t flags;
    int channel_offset; /* from the exec's; -1000 = the session's own */
    const char *part;
};

static const struct breach breaches[] = {
    {"done for exec", KLP_GUEST_DONE, 0, 0, "no answer there"},
    {"main for exec", KLP_GUEST_MAIN, 0, 0, "main process"},
    {"receipt for exec", KLP_GUEST_RECEIPT, 0, 0, "receipt"},
    {"a channel never opened", KLP_GUEST_DATA, 0, 1, "not open"},
    {"a channel far ahead", KLP_GUEST_DONE, 0, 100000, "not open"},
    {"flags without bytes", KLP_GUEST_DONE, KLP_GUEST_FLAG_END, 0, "flags"},
    {"bytes of the session", KLP_GUEST_DATA, 0, -1000, "session's own"},
    {"an end of the session's channel", KLP_GUEST_EXIT, 0, -1000, "session's own"},
    {"the session given up", KLP_GUEST_ERROR, 0, -1000, "gave the session up"},
};

static void test_vm_guest_hostile__answers_nobody_asked_for(void **state)
{
    for (size_t i = 0; i < KLP_COUNT(breaches); i++) {
        struct guest_kit *g;
        struct guest_call call;
        void *inner = NULL;
        const struct breach *breach = &breaches[i];
        (void)state;
        assert_int_equal(guest_setup(&inner), 0);
        g = inner;
        uint32_t channel = guest_exec_begin(&call, g);
        uint32_t told =
            breach->channel_offset == -1000 ? 0 : channel + (uint32_t)breach->channel_offset;
        guest_say(g, breach->type, breach->flags, told, NULL, 0);
        session_is_broken(g, &call, breach->part);
        assert_int_equal(guest_teardown(&inner), 0);
    }
}

static void numbers_break(struct guest_kit *g, uint16_t type, int tag, uint64_t value,
                          const char *part)
{
    struct guest_call call;
    guest_say_numbers(g, type, guest_exec_begin(&call, g), tag, value, 0);
    session_is_broken(g, &call, part);
}

static void test_vm_guest_hostile__a_status_that_cannot_be(void **state)
{
    numbers_break(*state, KLP_GUEST_EXIT, KLP_TAG_CODE, U64(256), "exit status");
}

static void test_vm_guest_hostile__an_exit_without_a_status(void **state)
{
    numbers_break(*state, KLP_GUEST_EXIT, KLP_TAG_PID, U64(1), "exit status");
}

static void test_vm_guest_hostile__a_signal_that_cannot_be(void **state)
{
    numbers_break(*state, KLP_GUEST_EXIT, KLP_TAG_SIGNAL, U64(128), "exit status");
}

static void test_vm_guest_hostile__credit_without_end(void **state)
{
    numbers_break(*state, KLP_GUEST_CREDIT_GRANT, KLP_TAG_BYTES, UINT64_MAX, "credit");
}

static void test_vm_guest_hostile__a_number_of_three_bytes(void **state)
{
    struct guest_kit *g = *state;
    struct guest_call call;
    struct klp_buf body = KLP_BUF_INIT(64);
    uint32_t channel = guest_exec_begin(&call, g);
    klp_field_append(&body, KLP_TAG_CODE, "abc", 3);
    guest_say(g, KLP_GUEST_EXIT, 0, channel, body.data, body.size);
    klp_buf_finish(&body);
    session_is_broken(g, &call, "3 bytes");
}

/* ---- order of frames */

static void test_vm_guest_hostile__exit_twice(void **state)
{
    struct guest_kit *g = *state;
    struct guest_call first, other;
    guest_call_start(&other, g, CALL_PING);
    guest_expect(g, KLP_GUEST_PING);
    uint32_t channel = guest_exec_begin(&first, g);
    guest_say_exit(g, channel, 0);
    guest_say_exit(g, channel, 1);
    klp_task_join(first.task); /* the first counts, or the session was over before it was seen */
    if (kelpie_is_ok(first.outcome))
        assert_int_equal(first.status.exit_code, 0);
    guest_call_finish(&first);
    session_is_broken(g, &other, "channel"); /* somebody else's call */
}

static void test_vm_guest_hostile__bytes_after_the_exit(void **state)
{
    struct guest_kit *g = *state;
    struct guest_call first, other;
    guest_call_start(&other, g, CALL_PING);
    guest_expect(g, KLP_GUEST_PING);
    uint32_t channel = guest_exec_begin(&first, g);
    guest_say_exit(g, channel, 0);
    guest_call_is_ok(&first);
    guest_say(g, KLP_GUEST_DATA, 0, channel, "more", 4);
    guest_call_finish(&first);
    session_is_broken(g, &other, "not open");
}

static void test_vm_guest_hostile__bytes_after_their_end(void **state)
{
    struct guest_kit *g = *state;
    struct guest_call call;
    uint32_t channel = guest_exec_begin(&call, g);
    guest_say(g, KLP_GUEST_DATA, KLP_GUEST_FLAG_END, channel, "end", 3);
    guest_say(g, KLP_GUEST_DATA, KLP_GUEST_FLAG_STDERR, channel, "fine", 4);
    guest_say(g, KLP_GUEST_DATA, 0, channel, "more", 4);
    session_is_broken(g, &call, "after their end");
}

static void test_vm_guest_hostile__started_twice(void **state)
{
    struct guest_kit *g = *state;
    struct guest_call call;
    uint32_t channel = guest_exec_begin(&call, g);
    guest_say(g, KLP_GUEST_STARTED, 0, channel, NULL, 0);
    guest_say(g, KLP_GUEST_STARTED, 0, channel, NULL, 0);
    session_is_broken(g, &call, "start");
}

static void test_vm_guest_hostile__more_than_its_credit(void **state)
{
    struct guest_kit *g = *state;
    struct guest_call call;
    uint8_t *bytes = calloc(1, KLP_FRAME_BODY_MAX);
    guest_call_init(&call, g, CALL_EXEC);
    call.block_output = true;
    guest_call_begin(&call);
    uint32_t channel = guest_expect(g, KLP_GUEST_EXEC);
    for (int i = 0; i < 4; i++)
        guest_say(g, KLP_GUEST_DATA, 0, channel, bytes, KLP_FRAME_BODY_MAX);
    guest_say(g, KLP_GUEST_DATA, 0, channel, bytes, 1);
    while (klp_guest_is_alive(g->guest))
        poll(NULL, 0, 5);
    __atomic_store_n(&call.block_output, false, __ATOMIC_SEQ_CST);
    session_is_broken(g, &call, "credit");
    free(bytes);
}

static void test_vm_guest_hostile__bytes_for_an_order(void **state)
{
    struct guest_kit *g = *state;
    struct guest_call call;
    guest_call_start(&call, g, CALL_PING);
    guest_say(g, KLP_GUEST_DATA, 0, guest_expect(g, KLP_GUEST_PING), "x", 1);
    session_is_broken(g, &call, "asked for bytes");
}

static void test_vm_guest_hostile__credit_for_an_order(void **state)
{
    struct guest_kit *g = *state;
    struct guest_call call;
    guest_call_start(&call, g, CALL_PING);
    guest_say_numbers(g, KLP_GUEST_CREDIT_GRANT, guest_expect(g, KLP_GUEST_PING), KLP_TAG_BYTES,
                      U64(1), 0);
    session_is_broken(g, &call, "nothing is sent");
}

static void test_vm_guest_hostile__error_stream_of_a_file(void **state)
{
    struct guest_kit *g = *state;
    struct guest_call call;
    guest_call_start(&call, g, CALL_GET);
    guest_say(g, KLP_GUEST_DATA, KLP_GUEST_FLAG_STDERR, guest_expect(g, KLP_GUEST_GET), "x", 1);
    session_is_broken(g, &call, "asked for bytes");
}

static void test_vm_guest_hostile__a_log_of_gaps(void **state)
{
    struct guest_kit *g = *state;
    struct guest_call call;
    guest_call_init(&call, g, CALL_LOG);
    call.block_output = true; /* so that what comes is remembered, not delivered */
    guest_call_begin(&call);
    uint32_t channel = guest_expect(g, KLP_GUEST_MAIN_LOG);
    for (unsigned i = 0; klp_guest_is_alive(g->guest) && i < 4 * GUEST_LOG_RUNS_MAX; i++) {
        guest_say_numbers(g, KLP_GUEST_MAIN, channel, KLP_TAG_MAIN_STATE, U64(1), KLP_TAG_OFFSET,
                          U64(10 * i), KLP_TAG_BYTES, U64(10 * i + 9), 0);
        guest_say(g, KLP_GUEST_DATA, 0, channel, "x", 1);
    }
    assert_false(klp_guest_is_alive(g->guest));
    __atomic_store_n(&call.block_output, false, __ATOMIC_SEQ_CST);
    session_is_broken(g, &call, "gaps");
}

static void test_vm_guest_hostile__a_log_that_ends_before_it_begins(void **state)
{
    struct guest_kit *g = *state;
    struct guest_call call;
    guest_call_start(&call, g, CALL_LOG);
    guest_say_numbers(g, KLP_GUEST_MAIN, guest_expect(g, KLP_GUEST_MAIN_LOG), KLP_TAG_MAIN_STATE,
                      U64(1), KLP_TAG_OFFSET, U64(10), KLP_TAG_BYTES, U64(9), 0);
    session_is_broken(g, &call, "cannot be");
}

/* ---- receipts */

static void item_add(struct klp_buf *body, uint16_t item, uint16_t result, size_t evidence)
{
    uint8_t bytes[128] = {0};
    bytes[0] = (uint8_t)item;
    bytes[2] = (uint8_t)result;
    memset(bytes + 4, 'e', evidence);
    klp_field_append(body, KLP_TAG_ITEM, bytes, 4 + evidence);
}

static void test_vm_guest_hostile__receipts_are_taken_as_told(void **state)
{
    struct guest_kit *g = *state;
    struct guest_call call;
    struct klp_buf body = KLP_BUF_INIT(4096);
    item_add(&body, KLP_ITEM_GENERATION, KLP_UNIQUE_DONE, 16);
    item_add(&body, KLP_ITEM_HOOKS, KLP_UNIQUE_NOT_APPLICABLE, 0);
    item_add(&body, 99, KLP_UNIQUE_DONE, 3); /* of a newer guest */
    item_add(&body, KLP_ITEM_HOOKS, KLP_UNIQUE_FAILED, 0);
    guest_call_start(&call, g, CALL_UNIQUE);
    guest_say(g, KLP_GUEST_RECEIPT, 0, guest_expect(g, KLP_GUEST_UNIQUE), body.data, body.size);
    klp_buf_finish(&body);
    guest_call_is_ok(&call);
    assert_int_equal(call.receipt.items[KLP_ITEM_GENERATION].result, KLP_UNIQUE_DONE);
    assert_int_equal(call.receipt.items[KLP_ITEM_GENERATION].evidence_size, 16);
    assert_int_equal(call.receipt.items[KLP_ITEM_GENERATION].evidence[15], 'e');
    assert_int_equal(call.receipt.items[KLP_ITEM_CLOCK].result, 0);
    assert_true(call.receipt.duplicate);
    guest_call_finish(&call);
    guest_is_well(g);
}

static void receipt_breaks(struct guest_kit *g, uint16_t result, size_t evidence)
{
    struct guest_call call;
    struct klp_buf body = KLP_BUF_INIT(4096);
    item_add(&body, KLP_ITEM_GENERATION, result, evidence);
    guest_call_start(&call, g, CALL_UNIQUE);
    guest_say(g, KLP_GUEST_RECEIPT, 0, guest_expect(g, KLP_GUEST_UNIQUE), body.data, body.size);
    klp_buf_finish(&body);
    session_is_broken(g, &call, "receipt");
}

static void test_vm_guest_hostile__a_receipt_with_a_wild_result(void **state)
{
    receipt_breaks(*state, 4, 0);
}

static void test_vm_guest_hostile__a_receipt_with_too_much_evidence(void **state)
{
    receipt_breaks(*state, KLP_UNIQUE_DONE, 65);
}

static void test_vm_guest_hostile__half_an_item(void **state)
{
    struct guest_kit *g = *state;
    struct guest_call call;
    struct klp_buf body = KLP_BUF_INIT(64);
    klp_field_append(&body, KLP_TAG_ITEM, "\1\0\1", 3);
    guest_call_start(&call, g, CALL_UNIQUE);
    guest_say(g, KLP_GUEST_RECEIPT, 0, guest_expect(g, KLP_GUEST_UNIQUE), body.data, body.size);
    klp_buf_finish(&body);
    session_is_broken(g, &call, "receipt");
}

/* ---- what is no breach */

static void test_vm_guest_hostile__unknown_types_end_their_channel_only(void **state)
{
    struct guest_kit *g = *state;
    struct guest_call call, other;
    uint32_t second = guest_exec_begin(&other, g);
    uint32_t channel = guest_exec_begin(&call, g);
    guest_say(g, 200, 0, 0, NULL, 0);
    guest_say(g, 201, 0, channel, "x", 1);
    assert_int_equal(guest_expect(g, KLP_GUEST_CLOSE), channel);
    guest_call_fails(&call, KELPIE_E_PROTOCOL, "unknown type");
    guest_say_exit(g, channel, 0); /* late */
    guest_say_exit(g, second, 0);
    guest_call_is_ok(&other);
    guest_call_finish(&other);
    guest_is_well(g);
}

/* The numbers of channels that were closed by us are remembered for a long time, and not for ever.
 */
static void test_vm_guest_hostile__late_frames_of_old_channels(void **state)
{
    struct guest_kit *g = *state;
    struct guest_call call;
    uint32_t closed = 0;
    for (unsigned i = 0; i < GUEST_CLOSED_WINDOW + 10; i++) {
        struct kelpie_op op = klp_op_plain(g->env, i == 0 ? 50 : 0);
        KLP_IGNORE(klp_guest_order(&op, g->guest, KLP_GUEST_PING, NULL));
        if (i == 0)
            closed = guest_expect(g, KLP_GUEST_PING);
        while (i % 64 == 0 && guest_next(g, 0)) {
        }
    }
    guest_say(g, KLP_GUEST_DONE, 0, closed, NULL, 0);
    while (guest_next(g, 100)) {
    }
    guest_is_well(g);
    uint32_t channel = guest_exec_begin(&call, g);
    guest_say_exit(g, channel - 2, 0); /* closed by us a moment ago */
    guest_say_exit(g, channel, 0);
    guest_call_is_ok(&call);
    guest_call_finish(&call);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        GUEST_TEST_BARE(test_vm_guest_hostile__greeting_of_another_version),
        GUEST_TEST_BARE(test_vm_guest_hostile__greeting_with_half_a_generation),
        GUEST_TEST_BARE(test_vm_guest_hostile__greeting_with_a_wild_state),
        GUEST_TEST(test_vm_guest_hostile__garbage),
        GUEST_TEST(test_vm_guest_hostile__a_body_too_long),
        GUEST_TEST(test_vm_guest_hostile__reserved_bits),
        GUEST_TEST(test_vm_guest_hostile__a_frame_never_finished_holds_up_nobody_for_ever),
        GUEST_TEST(test_vm_guest_hostile__answers_nobody_asked_for),
        GUEST_TEST(test_vm_guest_hostile__a_status_that_cannot_be),
        GUEST_TEST(test_vm_guest_hostile__an_exit_without_a_status),
        GUEST_TEST(test_vm_guest_hostile__a_signal_that_cannot_be),
        GUEST_TEST(test_vm_guest_hostile__credit_without_end),
        GUEST_TEST(test_vm_guest_hostile__a_number_of_three_bytes),
        GUEST_TEST(test_vm_guest_hostile__exit_twice),
        GUEST_TEST(test_vm_guest_hostile__bytes_after_the_exit),
        GUEST_TEST(test_vm_guest_hostile__bytes_after_their_end),
        GUEST_TEST(test_vm_guest_hostile__started_twice),
        GUEST_TEST(test_vm_guest_hostile__more_than_its_credit),
        GUEST_TEST(test_vm_guest_hostile__bytes_for_an_order),
        GUEST_TEST(test_vm_guest_hostile__credit_for_an_order),
        GUEST_TEST(test_vm_guest_hostile__error_stream_of_a_file),
        GUEST_TEST(test_vm_guest_hostile__a_log_of_gaps),
        GUEST_TEST(test_vm_guest_hostile__a_log_that_ends_before_it_begins),
        GUEST_TEST(test_vm_guest_hostile__receipts_are_taken_as_told),
        GUEST_TEST(test_vm_guest_hostile__a_receipt_with_a_wild_result),
        GUEST_TEST(test_vm_guest_hostile__a_receipt_with_too_much_evidence),
        GUEST_TEST(test_vm_guest_hostile__half_an_item),
        GUEST_TEST(test_vm_guest_hostile__unknown_types_end_their_channel_only),
        GUEST_TEST(test_vm_guest_hostile__late_frames_of_old_channels),
    };
    return cmocka_run_group_tests_name("vm_guest_hostile", tests, NULL, NULL);
}
