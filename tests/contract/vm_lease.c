/* SPDX-License-Identifier: Apache-2.0 */
/* Lease and gate: a guest stands still when its lease is over, and nothing of it passes a closed
 * gate. */
#include "contract/vm_inside.h"

static uint64_t in_ms(uint64_t ms)
{
    return klp_boot_ns(vm_suite->env) + ms * KLP_MS;
}

static void fence_wait(struct kelpie_vm *vm, bool fenced)
{
    struct kelpie_op op = vm_op_ms(10000);
    while (((klp_vm_holds(vm) & KLP_HOLD_FENCE) != 0) != fenced)
        CONTRACT_OK(klp_vm_watch(&op, vm, &err_));
}

static void test_contract_vm__a_guest_stands_still_without_its_lease(void **state)
{
    (void)state;
    struct kelpie_vm *vm = vm_running();
    CONTRACT_OK(klp_vm_refresh(&vm_op, vm, &err_));
    assert_true(vm_answers(vm, 10000));
    CONTRACT_OK(klp_vm_lease(&vm_op, vm, 1, in_ms(300), &err_));
    assert_int_equal(klp_vm_holds(vm) & KLP_HOLD_FENCE, 0);
    fence_wait(vm, true);
    assert_state(vm, RUNNING); /* nobody paused it */
    assert_false(vm_answers(vm, 500));
    CONTRACT_OK(klp_vm_lease(&vm_op, vm, 1, in_ms(60000), &err_));
    fence_wait(vm, false);
    assert_true(vm_answers(vm, 10000));
}

static void test_contract_vm__a_renewal_keeps_it_running(void **state)
{
    (void)state;
    struct kelpie_vm *vm = vm_running();
    struct kelpie_op op = vm_op_ms(1200);
    CONTRACT_OK(klp_vm_refresh(&vm_op, vm, &err_));
    CONTRACT_OK(klp_vm_lease(&vm_op, vm, 1, in_ms(400), &err_));
    CONTRACT_OK(klp_vm_lease(&vm_op, vm, 1, in_ms(60000), &err_));
    CONTRACT_FAIL(TIMEOUT, "", klp_vm_watch(&op, vm, &err_));
    assert_int_equal(klp_vm_holds(vm), 0);
}

static void test_contract_vm__an_older_epoch_is_denied(void **state)
{
    (void)state;
    struct kelpie_vm *vm = vm_running(), *fresh = vm_created();
    vm_lease_long(vm, 5);
    assert_int_equal(klp_vm_epoch(vm), 5);
    CONTRACT_FAIL(DENIED, kelpie_vm_id(vm), klp_vm_lease(&vm_op, vm, 4, UINT64_MAX, &err_));
    assert_int_equal(klp_vm_epoch(vm), 5);
    CONTRACT_OK(klp_vm_lease(&vm_op, vm, 5, in_ms(60000), &err_));
    vm_lease_long(fresh, 3); /* a VM that has no keeper yet knows as much */
    CONTRACT_FAIL(DENIED, kelpie_vm_id(fresh), klp_vm_lease(&vm_op, fresh, 2, UINT64_MAX, &err_));
}

static void exec_meets_the_gate(struct kelpie_vm *vm)
{
    const char *const argv[] = {"@echo", NULL};
    struct kelpie_exec exec = {.argv = argv};
    struct kelpie_exec_status status;
    CONTRACT_FAIL(STATE, "gate", kelpie_vm_exec(&vm_op, vm, &exec, &status, &err_));
}

static size_t no_input(void *arg, void *out, size_t capacity)
{
    (void)arg;
    (void)out;
    (void)capacity;
    return 0;
}

static bool no_output(void *arg, const void *data, size_t size)
{
    (void)arg;
    (void)data;
    (void)size;
    return true;
}

static void test_contract_vm__a_closed_gate_lets_no_call_begin(void **state)
{
    (void)state;
    struct kelpie_vm *vm = vm_shared();
    uint64_t epoch = klp_vm_epoch(vm);
    klp_vm_gate_close(vm);
    assert_false(klp_vm_gate_is_open(vm));
    exec_meets_the_gate(vm);
    CONTRACT_FAIL(STATE, "gate", kelpie_vm_put(&vm_op, vm, "/tmp", no_input, NULL, &err_));
    CONTRACT_FAIL(STATE, "gate", kelpie_vm_get(&vm_op, vm, "/tmp", no_output, NULL, &err_));
    assert_true(vm_answers(vm, 10000)); /* what makes a guest unique has to work */
    klp_vm_gate_open(vm, epoch + 1);
    assert_false(klp_vm_gate_is_open(vm));
    exec_meets_the_gate(vm);
    klp_vm_gate_open(vm, epoch);
    assert_true(klp_vm_gate_is_open(vm));
    assert_string_equal(SAY(vm, "@echo", "open").text, "open\n");
    vm_lease_long(vm, epoch + 1); /* an older epoch's gate is shut by a newer lease */
    klp_vm_gate_open(vm, epoch);
    exec_meets_the_gate(vm);
    klp_vm_gate_open(vm, epoch + 1);
}

static void test_contract_vm__a_lease_that_is_over_shuts_the_gate(void **state)
{
    (void)state;
    struct kelpie_vm *vm = vm_running();
    assert_true(klp_vm_gate_is_open(vm));
    CONTRACT_OK(klp_vm_lease(&vm_op, vm, 1, in_ms(0), &err_));
    assert_false(klp_vm_gate_is_open(vm)); /* by the clock, whoever has heard of it */
    exec_meets_the_gate(vm);
    CONTRACT_OK(klp_vm_lease(&vm_op, vm, 1, in_ms(60000), &err_));
    assert_string_equal(SAY(vm, "@echo", "open").text, "open\n");
}

struct held { /* an exec whose answer is held back */
    struct kelpie_vm *vm;
    struct klp_exec_output result;
    kelpie_outcome outcome;
    bool ended;
};

static void held_run(void *arg)
{
    struct held *held = arg;
    const char *const argv[] = {"@sleep", "0.3", NULL};
    struct kelpie_exec exec = {.argv = argv};
    struct kelpie_exec_status *status = &held->result.status;
    struct kelpie_op op = vm_op;
    held->outcome = kelpie_vm_exec(&op, held->vm, &exec, status, NULL);
    __atomic_store_n(&held->ended, true, __ATOMIC_SEQ_CST);
}

static struct klp_task *held_begin(struct held *held)
{
    struct klp_task *task;
    CONTRACT_TRUE(klp_task_spawn(vm_suite->env, "held", held_run, held, &task, &err_));
    vm_sleep_ms(100);
    return task;
}

static void test_contract_vm__a_closed_gate_holds_answers_back(void **state)
{
    (void)state;
    struct held held = {.vm = vm_running()};
    struct klp_task *task = held_begin(&held);
    klp_vm_gate_close(held.vm);
    vm_sleep_ms(1500);
    bool early = __atomic_load_n(&held.ended, __ATOMIC_SEQ_CST);
    klp_vm_gate_open(held.vm, 1);
    klp_task_join(task);
    assert_false(early);
    assert_true(kelpie_is_ok(held.outcome));
    assert_int_equal(held.result.status.exit_code, 0);
}

static void test_contract_vm__a_fence_holds_answers_back(void **state)
{
    (void)state;
    struct held held = {.vm = vm_running()};
    struct klp_task *task = held_begin(&held);
    CONTRACT_OK(klp_vm_lease(&vm_op, held.vm, 1, in_ms(0), &err_));
    vm_sleep_ms(1500);
    bool early = __atomic_load_n(&held.ended, __ATOMIC_SEQ_CST);
    CONTRACT_OK(klp_vm_lease(&vm_op, held.vm, 1, in_ms(60000), &err_));
    klp_task_join(task);
    assert_false(early);
    assert_true(kelpie_is_ok(held.outcome));
}

static void test_contract_vm__an_end_frees_what_is_held_back(void **state)
{
    (void)state;
    struct held held = {.vm = vm_running()};
    struct klp_task *task = held_begin(&held);
    klp_vm_gate_close(held.vm);
    vm_sleep_ms(500);
    CONTRACT_OK(klp_vm_kill(&vm_op, held.vm, &err_));
    klp_task_join(task);
    assert_false(kelpie_is_ok(held.outcome));
}

static void test_contract_vm__a_note_has_its_bounds(void **state)
{
    (void)state;
    struct kelpie_vm *vm = vm_shared();
    size_t max = 32u * KLP_KIB;
    uint8_t *bytes = klp_mem_alloc(max + 1);
    KLP_AUTO(buf) struct klp_buf back = KLP_BUF_INIT(64 * KLP_KIB);
    memset(bytes, 'n', max + 1);
    CONTRACT_FAIL(LIMIT, kelpie_vm_id(vm),
                  klp_vm_meta_set(&vm_op, vm, (struct klp_bytes){bytes, max + 1}, &err_));
    CONTRACT_OK(klp_vm_meta_set(&vm_op, vm, (struct klp_bytes){bytes, max}, &err_));
    CONTRACT_OK(klp_vm_meta_get(&vm_op, vm, &back, &err_));
    assert_int_equal(back.size, max);
    CONTRACT_OK(klp_vm_meta_set(&vm_op, vm, (struct klp_bytes){bytes, 1}, &err_));
    klp_mem_free(bytes);
}

size_t vm_lease_tests(struct CMUnitTest *out)
{
    return VM_TESTS(out, VM_TEST(a_guest_stands_still_without_its_lease),
                    VM_TEST(a_renewal_keeps_it_running), VM_TEST(an_older_epoch_is_denied),
                    VM_TEST(a_closed_gate_lets_no_call_begin),
                    VM_TEST(a_lease_that_is_over_shuts_the_gate),
                    VM_TEST(a_closed_gate_holds_answers_back), VM_TEST(a_fence_holds_answers_back),
                    VM_TEST(an_end_frees_what_is_held_back), VM_TEST(a_note_has_its_bounds));
}
