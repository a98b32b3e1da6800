/* SPDX-License-Identifier: Apache-2.0 */
/* The host's side of a guest session against a guest in the test's hands: deadlines, cancels,
 * closed sessions, and the gate that holds answers back. */
#include "vm_guest_kit.h"

/* ---- giving up */

static void test_vm_guest_ends__deadline_of_a_call(void **state)
{
    struct guest_kit *g = *state;
    struct guest_call call;
    guest_call_init(&call, g, CALL_EXEC);
    call.op = klp_op_plain(g->env, 200);
    guest_call_begin(&call);
    uint32_t channel = guest_expect(g, KLP_GUEST_EXEC);
    guest_expect(g, KLP_GUEST_DATA);
    assert_int_equal(guest_expect(g, KLP_GUEST_CLOSE), channel);
    guest_call_fails(&call, KELPIE_E_TIMEOUT, "program");
    guest_say(g, KLP_GUEST_DATA, 0, channel, "late", 4); /* it was on its way */
    guest_say_exit(g, channel, 0);
    guest_is_well(g);
}

static void test_vm_guest_ends__cancel_of_a_call(void **state)
{
    struct guest_kit *g = *state;
    struct guest_call call;
    KLP_AUTO(cancel) struct klp_cancel *cancel = klp_cancel_create(g->env);
    guest_call_init(&call, g, CALL_PING);
    call.op.cancel = cancel;
    guest_call_begin(&call);
    uint32_t channel = guest_expect(g, KLP_GUEST_PING);
    klp_cancel_raise(cancel);
    assert_int_equal(guest_expect(g, KLP_GUEST_CLOSE), channel);
    guest_call_fails(&call, KELPIE_E_CANCELLED, "hear from the guest");
    guest_is_well(g);
}

/* Nobody reads: calls end by their deadlines, and none of them cuts a frame in two. */
static void test_vm_guest_ends__a_guest_that_does_not_read(void **state)
{
    struct guest_kit *g = *state;
    struct guest_call calls[6];
    for (size_t i = 0; i < 6; i++) {
        guest_call_init(&calls[i], g, CALL_PUT);
        calls[i].op = klp_op_plain(g->env, 700);
        calls[i].input_left = 8 << 20;
        guest_call_begin(&calls[i]);
    }
    for (size_t i = 0; i < 6; i++)
        guest_call_fails(&calls[i], KELPIE_E_TIMEOUT, "/to");
    assert_true(klp_guest_is_alive(g->guest));
    unsigned closes = 0;
    while (guest_next(g, 200)) /* asserts that every frame is whole */
        closes += g->frame.type == KLP_GUEST_CLOSE;
    assert_int_equal(closes, 6);
    guest_is_well(g);
}

static void test_vm_guest_ends__at_most_so_many_calls(void **state)
{
    struct guest_kit *g = *state;
    static struct guest_call calls[KLP_EXEC_CHANNELS_MAX];
    struct guest_call one_more;
    uint32_t channels[KLP_EXEC_CHANNELS_MAX];
    for (size_t i = 0; i < KLP_EXEC_CHANNELS_MAX; i++) {
        guest_call_start(&calls[i], g, CALL_PING);
        channels[i] = guest_expect(g, KLP_GUEST_PING);
    }
    guest_call_start(&one_more, g, CALL_PING);
    guest_call_fails(&one_more, KELPIE_E_LIMIT, "64 calls");
    for (size_t i = 0; i < KLP_EXEC_CHANNELS_MAX; i++)
        guest_say(g, KLP_GUEST_DONE, 0, channels[i], NULL, 0);
    for (size_t i = 0; i < KLP_EXEC_CHANNELS_MAX; i++) {
        guest_call_is_ok(&calls[i]);
        guest_call_finish(&calls[i]);
    }
    guest_is_well(g);
}

static void test_vm_guest_ends__close_ends_waiting_calls(void **state)
{
    struct guest_kit *g = *state;
    struct guest_call exec, ping;
    guest_exec_begin(&exec, g);
    guest_call_start(&ping, g, CALL_PING);
    guest_expect(g, KLP_GUEST_PING);
    klp_guest_close(KLP_TAKE(&g->guest));
    guest_call_fails(&exec, KELPIE_E_UNREACHABLE, "closed");
    guest_call_fails(&ping, KELPIE_E_UNREACHABLE, "closed");
    /* The stream goes on: the keeper gives it to the next session. */
    assert_int_equal(send(g->fd, "x", 1, MSG_NOSIGNAL), -1); /* here it was the last holder */
}

static void test_vm_guest_ends__a_stopped_session_answers_with_its_end(void **state)
{
    struct guest_kit *g = *state;
    struct guest_call ping;
    klp_guest_end(g->guest, KELPIE_E_CRASHED, "the machine is gone");
    klp_guest_end(g->guest, KELPIE_E_IO, "the first end counts");
    klp_guest_stop(g->guest);
    klp_guest_stop(g->guest);
    assert_false(klp_guest_is_alive(g->guest));
    guest_call_start(&ping, g, CALL_PING);
    guest_call_fails(&ping, KELPIE_E_CRASHED, "the machine is gone");
}

static void test_vm_guest_ends__the_guest_goes_away(void **state)
{
    struct guest_kit *g = *state;
    struct guest_call exec;
    uint32_t channel = guest_exec_begin(&exec, g);
    guest_say(g, KLP_GUEST_DATA, 0, channel, "last words", 10);
    assert_int_equal(shutdown(g->fd, SHUT_RDWR), 0);
    klp_task_join(exec.task);
    assert_string_equal(klp_buf_text(&exec.out), "last words"); /* what came is delivered */
    assert_int_equal(kelpie_error_code(exec.error), KELPIE_E_UNREACHABLE);
    guest_call_finish(&exec);
    assert_false(klp_guest_is_alive(g->guest));
}

/* ---- gate */

static bool gate_asks(void *arg)
{
    return __atomic_load_n((bool *)arg, __ATOMIC_SEQ_CST);
}

static void gate_set(struct guest_kit *g, bool *gate, bool open)
{
    __atomic_store_n(gate, open, __ATOMIC_SEQ_CST);
    klp_guest_wake(g->guest);
}

static void test_vm_guest_ends__gate(void **state)
{
    struct guest_kit *g = *state;
    struct guest_call call;
    bool gate = false;
    klp_guest_gate(g->guest, gate_asks, &gate);
    uint32_t channel = guest_exec_begin(&call, g);
    guest_say(g, KLP_GUEST_DATA, 0, channel, "secret", 6);
    guest_is_well(g); /* orders pass */
    assert_int_equal(call.out.size, 0);
    gate_set(g, &gate, true);
    while (__atomic_load_n(&call.deliveries, __ATOMIC_SEQ_CST) == 0)
        poll(NULL, 0, 5);
    gate_set(g, &gate, false);
    guest_say_exit(g, channel, 1);
    guest_is_well(g);
    assert_false(guest_call_has_ended(&call));
    gate_set(g, &gate, true);
    guest_call_is_ok(&call);
    guest_call_finish(&call);
}

static void test_vm_guest_ends__gate_and_deadlines(void **state)
{
    struct guest_kit *g = *state;
    struct guest_call call;
    bool gate = false;
    klp_guest_gate(g->guest, gate_asks, &gate);
    guest_call_init(&call, g, CALL_GET);
    call.op = klp_op_plain(g->env, 200);
    guest_call_begin(&call);
    uint32_t channel = guest_expect(g, KLP_GUEST_GET);
    guest_say(g, KLP_GUEST_DATA, 0, channel, "secret", 6);
    klp_task_join(call.task);
    assert_int_equal(kelpie_error_code(call.error), KELPIE_E_TIMEOUT);
    assert_int_equal(call.out.size, 0);
    guest_call_finish(&call);
    assert_int_equal(guest_expect(g, KLP_GUEST_CLOSE), channel);
    guest_exec_begin(&call, g); /* an end frees what is held back */
    guest_say(g, KLP_GUEST_DATA, 0, g->frame.channel, "secret", 6);
    guest_is_well(g);
    klp_guest_end(g->guest, KELPIE_E_CRASHED, "gone");
    klp_task_join(call.task);
    assert_int_equal(kelpie_error_code(call.error), KELPIE_E_CRASHED);
    assert_int_equal(call.out.size, 0);
    guest_call_finish(&call);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        GUEST_TEST(test_vm_guest_ends__deadline_of_a_call),
        GUEST_TEST(test_vm_guest_ends__cancel_of_a_call),
        GUEST_TEST(test_vm_guest_ends__a_guest_that_does_not_read),
        GUEST_TEST(test_vm_guest_ends__at_most_so_many_calls),
        GUEST_TEST(test_vm_guest_ends__close_ends_waiting_calls),
        GUEST_TEST(test_vm_guest_ends__a_stopped_session_answers_with_its_end),
        GUEST_TEST(test_vm_guest_ends__the_guest_goes_away),
        GUEST_TEST(test_vm_guest_ends__gate),
        GUEST_TEST(test_vm_guest_ends__gate_and_deadlines),
    };
    return cmocka_run_group_tests_name("vm_guest_ends", tests, NULL, NULL);
}
