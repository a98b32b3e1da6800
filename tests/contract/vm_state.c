/* SPDX-License-Identifier: Apache-2.0 */
/* The table of DESIGN 5: every row, every refusal, every end. */
#include "contract/vm_inside.h"

/* ---- configuration */

static void create_fails(const char *id, const struct kelpie_vm_config *config,
                         enum kelpie_code code, size_t reasons)
{
    struct kelpie_error *error = NULL;
    struct kelpie_vm *vm = NULL;
    kelpie_outcome outcome = kelpie_vm_create(&vm_op, vm_factory, id, config, &vm, &error);
    assert_int_equal(outcome.kind, KELPIE_FAIL);
    assert_string_equal(kelpie_code_name(kelpie_error_code(error)), kelpie_code_name(code));
    assert_int_equal(kelpie_error_reason_count(error), reasons);
    kelpie_error_free(error);
}

#define SOME_ID "0123456789abcdef0123456789abcdef"

static void test_contract_vm__all_faults_of_a_configuration_are_listed(void **state)
{
    (void)state;
    struct kelpie_vm_config config = vm_suite->config;
    config.vcpu_count = 33;
    config.memory_mib = 1;
    config.workdir = "relative";
    config.hostname = "bad name";
    config.kernel_args = "tab\tin it";
    config.networking_enabled = true;
    create_fails(SOME_ID, &config, KELPIE_E_INVALID, 6);
}

static void test_contract_vm__what_no_backend_can_is_unsupported(void **state)
{
    (void)state;
    struct kelpie_vm_config config = vm_suite->config;
    config.networking_enabled = true;
    config.shared_folder_count = 1;
    config.root_disk_path = "/disk";
    create_fails(SOME_ID, &config, KELPIE_E_UNSUPPORTED, 3);
}

static void test_contract_vm__ids_are_checked(void **state)
{
    (void)state;
    create_fails("", &vm_suite->config, KELPIE_E_INVALID, 0);
    create_fails("../../../../../../../../../../etc", &vm_suite->config, KELPIE_E_INVALID, 0);
    create_fails("0123456789ABCDEF0123456789ABCDEF", &vm_suite->config, KELPIE_E_INVALID, 0);
}

static void test_contract_vm__one_id_is_one_vm(void **state)
{
    (void)state;
    struct kelpie_vm *vm = vm_running(), *other = NULL;
    CONTRACT_OK(
        kelpie_vm_create(&vm_op, vm_factory, kelpie_vm_id(vm), &vm_suite->config, &other, &err_));
    CONTRACT_FAIL(EXISTS, kelpie_vm_id(vm), kelpie_vm_start(&vm_op, other, &err_));
    assert_state(other, CREATED);
    kelpie_vm_destroy(&vm_op, other);
    assert_string_equal(SAY(vm, "@echo", "untouched").text, "untouched\n");
}

/* ---- refused transitions */

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

#define REFUSED(vm, call) CONTRACT_FAIL(STATE, kelpie_vm_id(vm), call)

static void exec_is_refused(struct kelpie_vm *vm)
{
    const char *const argv[] = {"@echo", NULL};
    struct kelpie_exec exec = {.argv = argv};
    struct kelpie_exec_status status;
    REFUSED(vm, kelpie_vm_exec(&vm_op, vm, &exec, &status, &err_));
    REFUSED(vm, kelpie_vm_put(&vm_op, vm, "/", no_input, NULL, &err_));
    REFUSED(vm, kelpie_vm_get(&vm_op, vm, "/", no_output, NULL, &err_));
}

static void snapshot_is_refused(struct kelpie_vm *vm)
{
    struct klp_capture capture;
    if ((kelpie_vm_factory_caps(vm_factory) & KELPIE_VM_CAP_SNAPSHOT) != 0)
        REFUSED(vm, klp_vm_capture(&vm_op, vm, KLP_HOLD_SNAPSHOT, &capture, &err_));
}

static void restore_is_refused(struct kelpie_vm *vm)
{
    struct klp_vm_image image = {.machine = klp_vm_machine(vm)};
    REFUSED(vm, klp_vm_restore(&vm_op, vm, &image, &err_));
    REFUSED(vm, klp_vm_prepare(&vm_op, vm, klp_vm_machine(vm), NULL, &err_));
}

/* Of a VM without a guest. */
static void all_but_start_is_refused(struct kelpie_vm *vm)
{
    struct klp_guest *guest;
    exec_is_refused(vm);
    snapshot_is_refused(vm);
    REFUSED(vm, kelpie_vm_stop(&vm_op, vm, 0, &err_));
    REFUSED(vm, kelpie_vm_pause(&vm_op, vm, &err_));
    REFUSED(vm, kelpie_vm_resume(&vm_op, vm, &err_));
    REFUSED(vm, klp_vm_hold(&vm_op, vm, KLP_HOLD_USER, &err_));
    REFUSED(vm, klp_vm_release(&vm_op, vm, KLP_HOLD_USER, &err_));
    REFUSED(vm, klp_vm_guest(&vm_op, vm, &guest, &err_));
}

static void test_contract_vm__created(void **state)
{
    (void)state;
    char text[64] = "?";
    struct kelpie_vm *vm = vm_created();
    assert_state(vm, CREATED);
    assert_int_equal(kelpie_vm_pid(vm), 0);
    kelpie_vm_reason(vm, text, sizeof(text));
    assert_string_equal(text, "");
    kelpie_vm_console(&vm_op, vm, text, sizeof(text));
    assert_string_equal(text, "");
    all_but_start_is_refused(vm);
    CONTRACT_OK(klp_vm_kill(&vm_op, vm, &err_));
    assert_state(vm, CREATED);
}

static void test_contract_vm__running(void **state)
{
    (void)state;
    struct kelpie_vm *vm = vm_shared();
    assert_true(kelpie_vm_pid(vm) > 0);
    assert_string_equal(SAY(vm, "@echo", "hello").text, "hello\n");
    REFUSED(vm, kelpie_vm_start(&vm_op, vm, &err_));
    REFUSED(vm, kelpie_vm_resume(&vm_op, vm, &err_));
    restore_is_refused(vm);
    assert_state(vm, RUNNING);
}

static void test_contract_vm__pause_and_resume(void **state)
{
    (void)state;
    struct kelpie_vm *vm = vm_shared();
    struct klp_guest *guest;
    uint64_t before = vm_count(vm);
    CONTRACT_OK(kelpie_vm_pause(&vm_op, vm, &err_));
    assert_state(vm, PAUSED);
    assert_int_equal(klp_vm_holds(vm), KLP_HOLD_USER);
    exec_is_refused(vm);
    restore_is_refused(vm);
    REFUSED(vm, klp_vm_guest(&vm_op, vm, &guest, &err_));
    REFUSED(vm, kelpie_vm_start(&vm_op, vm, &err_));
    REFUSED(vm, kelpie_vm_pause(&vm_op, vm, &err_));
    CONTRACT_OK(kelpie_vm_resume(&vm_op, vm, &err_));
    assert_state(vm, RUNNING);
    assert_int_equal(klp_vm_holds(vm), 0);
    for (uint64_t since = vm_now_ms(); vm_count(vm) <= before; vm_sleep_ms(1))
        assert_true(vm_now_ms() - since < 10000);
}

/* The number stands for the guest's own time. Twice the same pause shows what a pause itself costs.
 */
static void test_contract_vm__a_paused_guest_does_not_run(void **state)
{
    (void)state;
    struct kelpie_vm *vm = vm_shared();
    uint64_t start = vm_count(vm);
    vm_sleep_ms(1500);
    uint64_t ran = vm_count(vm) - start;
    start = vm_count(vm);
    CONTRACT_OK(kelpie_vm_pause(&vm_op, vm, &err_));
    vm_sleep_ms(3000);
    CONTRACT_OK(kelpie_vm_resume(&vm_op, vm, &err_));
    uint64_t stood = vm_count(vm) - start;
    assert_true(ran > 0);
    assert_true(stood < ran);
}

static void test_contract_vm__holds_are_a_set(void **state)
{
    (void)state;
    struct kelpie_vm *vm = vm_shared();
    CONTRACT_OK(klp_vm_hold(&vm_op, vm, KLP_HOLD_SNAPSHOT, &err_));
    assert_state(vm, RUNNING); /* it is about to go on */
    CONTRACT_OK(klp_vm_hold(&vm_op, vm, KLP_HOLD_USER | KLP_HOLD_SNAPSHOT, &err_));
    assert_state(vm, PAUSED);
    CONTRACT_OK(klp_vm_release(&vm_op, vm, KLP_HOLD_USER, &err_));
    assert_int_equal(klp_vm_holds(vm), KLP_HOLD_SNAPSHOT);
    assert_state(vm, RUNNING);
    assert_false(vm_answers(vm, 400));
    CONTRACT_OK(klp_vm_release(&vm_op, vm, KLP_HOLD_SNAPSHOT, &err_));
    CONTRACT_OK(klp_vm_release(&vm_op, vm, KLP_HOLD_SNAPSHOT, &err_));
    assert_int_equal(klp_vm_holds(vm), 0);
    assert_true(vm_answers(vm, 10000));
}

/* ---- start */

static void test_contract_vm__library_use_needs_no_lease(void **state)
{
    (void)state;
    struct kelpie_vm *vm = vm_created();
    CONTRACT_OK(kelpie_vm_start(&vm_op, vm, &err_));
    assert_state(vm, RUNNING);
    assert_true(klp_vm_gate_is_open(vm));
    assert_string_equal(SAY(vm, "@echo", "free").text, "free\n");
}

static void test_contract_vm__a_start_that_has_no_time_changes_nothing(void **state)
{
    (void)state;
    struct kelpie_vm *vm = vm_created();
    struct kelpie_op none = vm_op_ms(0);
    CONTRACT_FAIL(TIMEOUT, kelpie_vm_id(vm), kelpie_vm_start(&none, vm, &err_));
    assert_true(kelpie_vm_state(vm) != KELPIE_VM_RUNNING);
    assert_int_equal(kelpie_vm_pid(vm), 0);
}

struct starting {
    struct kelpie_vm *vm;
    struct kelpie_op op;
    kelpie_outcome outcome;
    enum kelpie_code code;
};

static void start_run(void *arg)
{
    struct starting *starting = arg;
    struct kelpie_error *error = NULL;
    starting->outcome = kelpie_vm_start(&starting->op, starting->vm, &error);
    starting->code = kelpie_error_code(error);
    kelpie_error_free(error);
}

static struct klp_task *start_begin(struct starting *starting)
{
    struct klp_task *task;
    CONTRACT_TRUE(klp_task_spawn(vm_suite->env, "start", start_run, starting, &task, &err_));
    while (kelpie_vm_state(starting->vm) == KELPIE_VM_CREATED)
        vm_sleep_ms(1);
    return task;
}

static void test_contract_vm__one_changing_operation_at_a_time(void **state)
{
    (void)state;
    struct starting starting = {.vm = vm_created(), .op = vm_op};
    vm_lease_long(starting.vm, 1);
    struct klp_task *task = start_begin(&starting);
    KLP_AUTO(kelpie_error) struct kelpie_error *error = NULL;
    kelpie_outcome outcome = kelpie_vm_start(&vm_op, starting.vm, &error);
    klp_task_join(task);
    assert_int_equal(outcome.kind, KELPIE_FAIL); /* STATE: the first one was done already */
    assert_true(kelpie_error_code(error) == KELPIE_E_BUSY ||
                kelpie_error_code(error) == KELPIE_E_STATE);
    assert_true(kelpie_is_ok(starting.outcome));
    assert_state(starting.vm, RUNNING);
}

static void test_contract_vm__a_kill_ends_a_start(void **state)
{
    (void)state;
    struct starting starting = {.vm = vm_created(), .op = vm_op};
    CONTRACT_OK(
        klp_vm_lease(&vm_op, starting.vm, 1, 1, &err_)); /* it is fenced: it never answers */
    struct klp_task *task = start_begin(&starting);
    vm_sleep_ms(200);
    CONTRACT_OK(klp_vm_kill(&vm_op, starting.vm, &err_));
    klp_task_join(task);
    assert_false(kelpie_is_ok(starting.outcome));
    assert_state(starting.vm, STOPPED);
}

static void test_contract_vm__a_cancel_ends_a_start(void **state)
{
    (void)state;
    struct starting starting = {.vm = vm_created(), .op = vm_op};
    KLP_AUTO(cancel) struct klp_cancel *cancel = klp_cancel_create(vm_suite->env);
    starting.op.cancel = cancel;
    CONTRACT_OK(klp_vm_lease(&vm_op, starting.vm, 1, 1, &err_));
    struct klp_task *task = start_begin(&starting);
    vm_sleep_ms(200);
    klp_cancel_raise(cancel);
    klp_task_join(task);
    assert_int_equal(starting.outcome.kind, KELPIE_FAIL);
    assert_int_equal(starting.code, KELPIE_E_CANCELLED);
    assert_true(kelpie_vm_state(starting.vm) != KELPIE_VM_RUNNING);
    assert_int_equal(kelpie_vm_pid(starting.vm), 0);
}

static void test_contract_vm__a_guest_that_never_answers_is_crashed(void **state)
{
    (void)state;
    struct kelpie_vm *vm = vm_created();
    struct kelpie_op op = vm_op_ms(3000);
    char reason[256];
    KLP_AUTO(kelpie_error) struct kelpie_error *error = NULL;
    CONTRACT_OK(klp_vm_lease(&vm_op, vm, 1, 1, &err_));
    assert_int_equal(kelpie_vm_start(&op, vm, &error).kind, KELPIE_FAIL);
    assert_int_equal(kelpie_error_code(error), KELPIE_E_TIMEOUT);
    assert_true(kelpie_error_reason_count(error) >= 1);
    assert_non_null(strstr(kelpie_error_reason(error, 0), "lease"));
    assert_state(vm, CRASHED);
    kelpie_vm_reason(vm, reason, sizeof(reason));
    assert_non_null(strstr(reason, "answer"));
}

static void test_contract_vm__a_boot_that_fails(void **state)
{
    (void)state;
    if (vm_suite->fault == NULL)
        CONTRACT_SKIP("this backend has no faults to plant");
    struct kelpie_vm *vm = vm_created();
    vm_suite->fault(vm_suite->arg, "boot");
    CONTRACT_FAIL(IO, kelpie_vm_id(vm), kelpie_vm_start(&vm_op, vm, &err_));
    vm_suite->fault(vm_suite->arg, "");
    assert_state(vm, CREATED);
    CONTRACT_OK(kelpie_vm_start(&vm_op, vm, &err_));
    assert_state(vm, RUNNING);
}

/* ---- stop, kill, crash */

static void test_contract_vm__stop_and_start_again(void **state)
{
    (void)state;
    struct kelpie_vm *vm = vm_running();
    char reason[128];
    vm_fill(vm, "3");
    CONTRACT_OK(kelpie_vm_stop(&vm_op, vm, 10000, &err_));
    assert_state(vm, STOPPED);
    assert_int_equal(kelpie_vm_pid(vm), 0);
    kelpie_vm_reason(vm, reason, sizeof(reason));
    assert_string_equal(reason, "stopped");
    all_but_start_is_refused(vm);
    CONTRACT_OK(kelpie_vm_start(&vm_op, vm, &err_));
    assert_state(vm, RUNNING);
    assert_string_equal(SAY(vm, "@check").text,
                        "pages=0 bad=0\n"); /* a cold boot remembers nothing */
}

static void test_contract_vm__stop_of_a_paused_one(void **state)
{
    (void)state;
    struct kelpie_vm *vm = vm_running();
    CONTRACT_OK(kelpie_vm_pause(&vm_op, vm, &err_));
    CONTRACT_OK(kelpie_vm_stop(&vm_op, vm, 30000, &err_));
    assert_state(vm, STOPPED);
    assert_int_equal(klp_vm_holds(vm), 0);
}

static void test_contract_vm__kill_is_idempotent(void **state)
{
    (void)state;
    struct kelpie_vm *vm = vm_running();
    char reason[128];
    CONTRACT_OK(klp_vm_kill(&vm_op, vm, &err_));
    assert_state(vm, STOPPED);
    CONTRACT_OK(klp_vm_kill(&vm_op, vm, &err_));
    kelpie_vm_reason(vm, reason, sizeof(reason));
    assert_string_equal(reason, "killed");
}

struct waiting { /* an exec that would take long */
    struct kelpie_vm *vm;
    kelpie_outcome outcome;
    struct kelpie_error *error;
    uint64_t ended_ms;
};

static void wait_run(void *arg)
{
    struct waiting *waiting = arg;
    const char *const argv[] = {"@sleep", "60", NULL};
    struct kelpie_exec exec = {.argv = argv};
    struct kelpie_exec_status status;
    waiting->outcome = kelpie_vm_exec(&vm_op, waiting->vm, &exec, &status, &waiting->error);
    waiting->ended_ms = vm_now_ms();
}

static struct klp_task *wait_begin(struct waiting *waiting)
{
    struct klp_task *task;
    CONTRACT_TRUE(klp_task_spawn(vm_suite->env, "wait", wait_run, waiting, &task, &err_));
    vm_sleep_ms(200);
    return task;
}

static void wait_ends_crashed(struct waiting *waiting, struct klp_task *task, uint64_t since_ms)
{
    klp_task_join(task);
    assert_int_equal(waiting->outcome.kind, KELPIE_FAIL);
    assert_string_equal(kelpie_code_name(kelpie_error_code(waiting->error)), "crashed");
    assert_non_null(strstr(kelpie_error_message(waiting->error), kelpie_vm_id(waiting->vm)));
    assert_true(waiting->ended_ms - since_ms < 10000);
}

static void test_contract_vm__a_crash_ends_waiting_calls_and_is_explained(void **state)
{
    (void)state;
    struct kelpie_vm *vm = vm_running();
    struct waiting waiting = {.vm = vm};
    struct klp_task *task = wait_begin(&waiting);
    const char *const argv[] = {"@crash", NULL};
    struct kelpie_exec exec = {.argv = argv};
    struct kelpie_exec_status status;
    char text[512];
    uint64_t since_ms = vm_now_ms();
    CONTRACT_FAIL(CRASHED, kelpie_vm_id(vm), kelpie_vm_exec(&vm_op, vm, &exec, &status, &err_));
    wait_ends_crashed(&waiting, task, since_ms);
    assert_true(kelpie_error_reason_count(waiting.error) >= 1);
    assert_non_null(strstr(kelpie_error_reason(waiting.error, 0), "console: "));
    kelpie_error_free(waiting.error);
    assert_state(vm, CRASHED);
    kelpie_vm_reason(vm, text, sizeof(text));
    assert_string_not_equal(text, "");
    kelpie_vm_console(&vm_op, vm, text, sizeof(text));
    assert_non_null(strstr(text, "crash"));
    all_but_start_is_refused(vm);
    restore_is_refused(vm);
    REFUSED(vm, kelpie_vm_start(&vm_op, vm, &err_));
    CONTRACT_OK(klp_vm_kill(&vm_op, vm, &err_));
    assert_state(vm, CRASHED);
}

static void test_contract_vm__a_crash_is_watched(void **state)
{
    (void)state;
    struct kelpie_vm *vm = vm_running();
    struct kelpie_op soon = vm_op_ms(100);
    const char *const argv[] = {"@crash", NULL};
    struct kelpie_exec exec = {.argv = argv};
    struct kelpie_exec_status status;
    CONTRACT_OK(klp_vm_refresh(&vm_op, vm, &err_));
    CONTRACT_FAIL(TIMEOUT, kelpie_vm_id(vm), klp_vm_watch(&soon, vm, &err_));
    CONTRACT_FAIL(CRASHED, "", kelpie_vm_exec(&vm_op, vm, &exec, &status, &err_));
    CONTRACT_OK(klp_vm_watch(&vm_op, vm, &err_));
    assert_state(vm, CRASHED);
}

static void test_contract_vm__a_dead_keeper_is_a_crash(void **state)
{
    (void)state;
    if (vm_suite->keeper_kill == NULL)
        CONTRACT_SKIP("keepers cannot be killed here");
    struct kelpie_vm *vm = vm_running();
    int64_t pid = kelpie_vm_pid(vm);
    struct waiting waiting = {.vm = vm};
    struct klp_task *task = wait_begin(&waiting);
    uint64_t since_ms = vm_now_ms();
    vm_suite->keeper_kill(vm_suite->arg, vm);
    wait_ends_crashed(&waiting, task, since_ms);
    kelpie_error_free(waiting.error);
    assert_state(vm, CRASHED);
    if (vm_suite->process_lives != NULL)
        assert_false(vm_suite->process_lives(vm_suite->arg, pid));
    char reason[128];
    kelpie_vm_reason(vm, reason, sizeof(reason));
    assert_non_null(strstr(reason, "keeper is gone"));
}

size_t vm_state_tests(struct CMUnitTest *out)
{
    return VM_TESTS(
        out, VM_TEST(all_faults_of_a_configuration_are_listed),
        VM_TEST(what_no_backend_can_is_unsupported), VM_TEST(ids_are_checked), VM_TEST(created),
        VM_TEST(running), VM_TEST(pause_and_resume), VM_TEST(a_paused_guest_does_not_run),
        VM_TEST(holds_are_a_set), VM_TEST(one_id_is_one_vm), VM_TEST(library_use_needs_no_lease),
        VM_TEST(a_start_that_has_no_time_changes_nothing),
        VM_TEST(one_changing_operation_at_a_time), VM_TEST(a_kill_ends_a_start),
        VM_TEST(a_cancel_ends_a_start), VM_TEST(a_guest_that_never_answers_is_crashed),
        VM_TEST(a_boot_that_fails), VM_TEST(stop_and_start_again), VM_TEST(stop_of_a_paused_one),
        VM_TEST(kill_is_idempotent), VM_TEST(a_crash_ends_waiting_calls_and_is_explained),
        VM_TEST(a_crash_is_watched), VM_TEST(a_dead_keeper_is_a_crash));
}
