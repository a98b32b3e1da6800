/* SPDX-License-Identifier: Apache-2.0 */
/* exec: arguments, environment, input, output, ends, limits, many at once. All but what ends a VM
 * happens in one that is shared. */
#include "contract/vm_inside.h"

#include "format/vocabulary.h"

static struct klp_exec_output collect(struct kelpie_vm *vm, const struct kelpie_exec *exec,
                                      const void *input, size_t size)
{
    struct klp_exec_output result;
    CONTRACT_OK(
        klp_exec_collect(&vm_op, vm, exec, (struct klp_bytes){input, size}, &result, &err_));
    return result;
}

static void assert_output(const struct klp_buf *output, const void *want, size_t size)
{
    assert_int_equal(output->size, size);
    if (size > 0)
        assert_memory_equal(output->data, want, size);
}

/* ---- what goes in */

static void test_contract_vm__exec_arguments(void **state)
{
    (void)state;
    struct kelpie_vm *vm = vm_shared();
    assert_string_equal(SAY(vm, "@echo", "one", "two  spaces", "", "$HOME;'\"").text,
                        "one two  spaces  $HOME;'\"\n");
    assert_string_equal(SAY(vm, "@echo").text, "\n");
    assert_string_equal(SAY(vm, "@echo", "\xff\xfe", "\x1b[0m").text, "\xff\xfe \x1b[0m\n");
}

static void test_contract_vm__exec_environment(void **state)
{
    (void)state;
    struct kelpie_vm *vm = vm_shared();
    const char *const argv[] = {"@env", NULL}, *const env[] = {"ZZ=a=b", "YY=", NULL};
    struct kelpie_exec exec = {.argv = argv, .env = env};
    struct klp_exec_output result = collect(vm, &exec, NULL, 0);
    assert_non_null(strstr(klp_buf_text(&result.out), "ZZ=a=b\n"));
    assert_non_null(strstr(klp_buf_text(&result.out), "YY=\n"));
    klp_exec_output_finish(&result);
    exec.env = NULL; /* it was for that one only */
    result = collect(vm, &exec, NULL, 0);
    assert_null(strstr(klp_buf_text(&result.out), "ZZ="));
    klp_exec_output_finish(&result);
}

static void test_contract_vm__exec_folder(void **state)
{
    (void)state;
    struct kelpie_vm *vm = vm_shared();
    const char *const argv[] = {"@pwd", NULL};
    struct kelpie_exec exec = {.argv = argv, .workdir = "/tmp"};
    struct klp_exec_output result = collect(vm, &exec, NULL, 0);
    assert_string_equal(klp_buf_text(&result.out), "/tmp\n");
    klp_exec_output_finish(&result);
}

static void test_contract_vm__exec_defaults_of_the_configuration(void **state)
{
    (void)state;
    const char *const env[] = {"QQ=default", "RR=default", NULL}, *const own[] = {"RR=own", NULL};
    const char *const argv_env[] = {"@env", NULL};
    struct kelpie_vm_config config = vm_suite->config;
    struct kelpie_vm *vm = NULL;
    char id[KLP_ID_SIZE];
    config.env = env;
    config.workdir = "/work";
    config.hostname = "contract-host";
    klp_random_id(vm_suite->env, id);
    CONTRACT_OK(kelpie_vm_create(&vm_op, vm_factory, id, &config, &vm, &err_));
    vm_keep(vm);
    CONTRACT_OK(kelpie_vm_start(&vm_op, vm, &err_));
    assert_string_equal(SAY(vm, "@pwd").text, "/work\n");
    struct kelpie_exec exec = {.argv = argv_env, .env = own};
    struct klp_exec_output result = collect(vm, &exec, NULL, 0);
    assert_non_null(strstr(klp_buf_text(&result.out), "QQ=default\n"));
    assert_non_null(strstr(klp_buf_text(&result.out), "RR=own\n"));
    assert_null(strstr(klp_buf_text(&result.out), "RR=default\n"));
    klp_exec_output_finish(&result);
}

/* Beyond all credit, both ways, every byte. */
static void test_contract_vm__exec_input_comes_back(void **state)
{
    (void)state;
    struct kelpie_vm *vm = vm_shared();
    const char *const argv[] = {"@cat", NULL};
    size_t size = 3 * KLP_GUEST_CREDIT + 12345;
    uint8_t *input = klp_mem_alloc(size);
    for (size_t i = 0; i < size; i++)
        input[i] = (uint8_t)(i * 7 + i / 256);
    struct kelpie_exec exec = {.argv = argv};
    struct klp_exec_output result = collect(vm, &exec, input, size);
    assert_output(&result.out, input, size);
    assert_int_equal(result.err.size, 0);
    assert_int_equal(result.status.exit_code, 0);
    klp_exec_output_finish(&result);
    klp_mem_free(input);
}

/* Nothing reads it: neither the call nor the session may hang on it. */
static void test_contract_vm__exec_input_nobody_reads(void **state)
{
    (void)state;
    struct kelpie_vm *vm = vm_shared();
    const char *const argv[] = {"@exit", "5", NULL};
    size_t size = 4 * KLP_GUEST_CREDIT;
    uint8_t *input = klp_mem_alloc(size);
    struct kelpie_exec exec = {.argv = argv};
    for (int i = 0; i < 3; i++) {
        struct klp_exec_output result = collect(vm, &exec, input, size);
        assert_int_equal(result.status.exit_code, 5);
        klp_exec_output_finish(&result);
    }
    klp_mem_free(input);
    assert_string_equal(SAY(vm, "@echo", "alive").text, "alive\n");
}

/* ---- what comes out */

static void test_contract_vm__exec_streams_are_separate(void **state)
{
    (void)state;
    struct kelpie_vm *vm = vm_shared();
    const char *const to_stdout[] = {"@flood", "1000", NULL};
    const char *const to_stderr[] = {"@flood", "1000", "err", NULL};
    uint8_t want[1000];
    for (size_t i = 0; i < sizeof(want); i++)
        want[i] = (uint8_t)(i % 251);
    struct kelpie_exec exec = {.argv = to_stdout};
    struct klp_exec_output result = collect(vm, &exec, NULL, 0);
    assert_output(&result.out, want, sizeof(want));
    assert_output(&result.err, NULL, 0);
    klp_exec_output_finish(&result);
    exec.argv = to_stderr;
    result = collect(vm, &exec, NULL, 0);
    assert_output(&result.out, NULL, 0);
    assert_output(&result.err, want, sizeof(want));
    assert_false(result.truncated);
    klp_exec_output_finish(&result);
}

static void test_contract_vm__exec_output_is_cut_and_says_so(void **state)
{
    (void)state;
    struct kelpie_vm *vm = vm_shared();
    char text[24];
    const char *const argv[] = {"@flood", text, NULL};
    struct kelpie_exec exec = {.argv = argv};
    klp_format(text, sizeof(text), "%u", KLP_EXEC_OUTPUT_MAX);
    struct klp_exec_output result = collect(vm, &exec, NULL, 0);
    assert_int_equal(result.out.size, KLP_EXEC_OUTPUT_MAX);
    assert_false(result.truncated);
    klp_exec_output_finish(&result);
    klp_format(text, sizeof(text), "%u", KLP_EXEC_OUTPUT_MAX + 1);
    result = collect(vm, &exec, NULL, 0);
    assert_int_equal(result.out.size, KLP_EXEC_OUTPUT_MAX);
    assert_true(result.truncated);
    assert_int_equal(result.status.exit_code, 0);
    klp_exec_output_finish(&result);
}

static bool never(void *arg, bool is_stderr, const void *data, size_t size)
{
    (void)is_stderr;
    (void)data;
    (void)size;
    (*(int *)arg)++;
    return false;
}

static void test_contract_vm__exec_may_stop_listening(void **state)
{
    (void)state;
    struct kelpie_vm *vm = vm_shared();
    const char *const argv[] = {"@flood", "100000000", NULL};
    int calls = 0;
    struct kelpie_exec exec = {.argv = argv, .output = never, .arg = &calls};
    struct kelpie_exec_status status;
    CONTRACT_FAIL(CANCELLED, "@flood", kelpie_vm_exec(&vm_op, vm, &exec, &status, &err_));
    assert_int_equal(calls, 1);
    assert_string_equal(SAY(vm, "@echo", "alive").text, "alive\n");
}

/* ---- its end */

static void test_contract_vm__exec_status(void **state)
{
    (void)state;
    struct kelpie_vm *vm = vm_shared();
    assert_int_equal(SAY(vm, "@exit", "0").status.exit_code, 0);
    assert_int_equal(SAY(vm, "@exit", "255").status.exit_code, 255);
    struct kelpie_exec_status killed = SAY(vm, "@raise", "9").status;
    assert_int_equal(killed.signal, 9);
    assert_int_equal(killed.exit_code, 137);
    assert_false(killed.timed_out);
}

static void exec_fails(struct kelpie_vm *vm, const char *const *argv, enum kelpie_code code)
{
    struct kelpie_exec exec = {.argv = argv};
    struct kelpie_exec_status status;
    KLP_AUTO(kelpie_error) struct kelpie_error *error = NULL;
    assert_int_equal(kelpie_vm_exec(&vm_op, vm, &exec, &status, &error).kind, KELPIE_FAIL);
    assert_string_equal(kelpie_code_name(kelpie_error_code(error)), kelpie_code_name(code));
}

static void test_contract_vm__exec_that_cannot_be(void **state)
{
    (void)state;
    struct kelpie_vm *vm = vm_shared();
    const char *const nothing[] = {NULL}, *const empty[] = {"", NULL};
    const char *const unknown[] = {"@nonsense", NULL}, *const absent[] = {"/no/such/program", NULL};
    const char *const malformed[] = {"@exit", "256", NULL};
    exec_fails(vm, NULL, KELPIE_E_INVALID);
    exec_fails(vm, nothing, KELPIE_E_INVALID);
    exec_fails(vm, empty, KELPIE_E_INVALID);
    exec_fails(vm, unknown, KELPIE_E_NO_COMMAND);
    exec_fails(vm, absent, KELPIE_E_NO_COMMAND);
    exec_fails(vm, malformed, KELPIE_E_INVALID);
}

static void test_contract_vm__exec_of_too_much(void **state)
{
    (void)state;
    struct kelpie_vm *vm = vm_shared();
    char *large = klp_mem_alloc(KLP_FRAME_BODY_MAX + 1);
    memset(large, 'x', KLP_FRAME_BODY_MAX);
    const char *const argv[] = {"@echo", large, NULL};
    exec_fails(vm, argv, KELPIE_E_LIMIT);
    klp_mem_free(large);
    const char **many = klp_mem_alloc((KLP_ARGV_MAX + 2) * sizeof(many[0]));
    for (size_t i = 0; i <= KLP_ARGV_MAX; i++)
        many[i] = "@echo";
    exec_fails(vm, many, KELPIE_E_LIMIT);
    klp_mem_free(many);
}

static void test_contract_vm__exec_time_limit_of_the_guest(void **state)
{
    (void)state;
    struct kelpie_vm *vm = vm_shared();
    const char *const argv[] = {"@sleep", "60", NULL};
    struct kelpie_exec exec = {.argv = argv, .timeout_ms = 300};
    struct kelpie_exec_status status;
    uint64_t since = vm_now_ms();
    CONTRACT_OK(kelpie_vm_exec(&vm_op, vm, &exec, &status, &err_));
    assert_true(status.timed_out);
    assert_int_not_equal(status.exit_code, 0);
    assert_true(vm_now_ms() - since < 20000);
}

static void test_contract_vm__exec_time_limit_of_the_call(void **state)
{
    (void)state;
    struct kelpie_vm *vm = vm_shared();
    const char *const argv[] = {"@sleep", "60", NULL};
    struct kelpie_exec exec = {.argv = argv};
    struct kelpie_exec_status status;
    struct kelpie_op soon = vm_op_ms(300);
    CONTRACT_FAIL(TIMEOUT, "@sleep", kelpie_vm_exec(&soon, vm, &exec, &status, &err_));
    assert_state(vm, RUNNING);
    assert_string_equal(SAY(vm, "@echo", "alive").text, "alive\n");
}

/* ---- signals, cancels, many at once */

struct running { /* an exec in a task of its own */
    struct kelpie_vm *vm;
    struct kelpie_op op;
    struct kelpie_exec exec;
    struct kelpie_exec_status status;
    kelpie_outcome outcome;
    enum kelpie_code code;
};

static void run(void *arg)
{
    struct running *running = arg;
    KLP_AUTO(kelpie_error) struct kelpie_error *error = NULL;
    running->outcome =
        kelpie_vm_exec(&running->op, running->vm, &running->exec, &running->status, &error);
    running->code = kelpie_error_code(error);
}

static struct klp_task *run_begin(struct running *running)
{
    struct klp_task *task;
    CONTRACT_TRUE(klp_task_spawn(vm_suite->env, "exec", run, running, &task, &err_));
    vm_sleep_ms(300);
    return task;
}

static void test_contract_vm__exec_signal(void **state)
{
    (void)state;
    const char *const argv[] = {"@sleep", "60", NULL};
    struct running running = {.vm = vm_shared(), .op = vm_op, .exec = {.argv = argv}};
    struct kelpie_exec_control *control = kelpie_exec_control_create(running.vm);
    kelpie_exec_signal(&vm_op, control, 15); /* too early: nothing happens */
    running.exec.control = control;
    struct klp_task *task = run_begin(&running);
    kelpie_exec_resize(&vm_op, control, 50, 100);
    kelpie_exec_signal(&vm_op, control, 15);
    klp_task_join(task);
    kelpie_exec_signal(&vm_op, control, 15); /* too late */
    kelpie_exec_control_destroy(control);
    assert_true(kelpie_is_ok(running.outcome));
    assert_int_equal(running.status.signal, 15);
    assert_int_equal(running.status.exit_code, 143);
}

static void test_contract_vm__exec_cancel(void **state)
{
    (void)state;
    const char *const argv[] = {"@sleep", "60", NULL};
    KLP_AUTO(cancel) struct klp_cancel *cancel = klp_cancel_create(vm_suite->env);
    struct running running = {.vm = vm_shared(), .op = vm_op, .exec = {.argv = argv}};
    running.op.cancel = cancel;
    struct klp_task *task = run_begin(&running);
    klp_cancel_raise(cancel);
    klp_task_join(task);
    assert_int_equal(running.outcome.kind, KELPIE_FAIL);
    assert_int_equal(running.code, KELPIE_E_CANCELLED);
    assert_string_equal(SAY(running.vm, "@echo", "alive").text, "alive\n");
}

/* A person's input ends when the program has: `ended` is how it is told. */
struct person {
    struct klp_mutex *mutex;
    struct klp_cond *changed;
    bool ended;
};

static size_t person_types(void *arg, void *out, size_t capacity)
{
    struct person *person = arg;
    struct kelpie_op op = vm_op;
    (void)out;
    (void)capacity;
    klp_mutex_lock(person->mutex);
    while (!person->ended &&
           kelpie_is_ok(klp_cond_wait(&op, person->changed, person->mutex, NULL))) {
    }
    klp_mutex_unlock(person->mutex);
    return 0;
}

static void person_is_told(void *arg)
{
    struct person *person = arg;
    KLP_LOCKED (person->mutex) {
        person->ended = true;
        klp_cond_wake(person->changed);
    }
}

static void test_contract_vm__exec_end_is_told_to_its_input(void **state)
{
    (void)state;
    KLP_AUTO(mutex) struct klp_mutex *mutex = klp_mutex_create(vm_suite->env);
    KLP_AUTO(cond) struct klp_cond *changed = klp_cond_create(vm_suite->env);
    struct person person = {.mutex = mutex, .changed = changed};
    const char *const argv[] = {"@exit", "4", NULL};
    struct kelpie_exec exec = {
        .argv = argv, .input = person_types, .ended = person_is_told, .arg = &person};
    struct kelpie_exec_status status;
    uint64_t since = vm_now_ms();
    CONTRACT_OK(kelpie_vm_exec(&vm_op, vm_shared(), &exec, &status, &err_));
    assert_int_equal(status.exit_code, 4);
    assert_true(vm_now_ms() - since < CONTRACT_TIMEOUT_MS / 2);
}

#define MANY 8
#define MANY_BYTES 300000

struct one_of_many {
    struct kelpie_vm *vm;
    uint8_t seed;
    bool good;
};

static void many_run(void *arg)
{
    struct one_of_many *one = arg;
    const char *const argv[] = {"@cat", NULL};
    struct kelpie_exec exec = {.argv = argv};
    struct klp_exec_output result;
    uint8_t *input = klp_mem_alloc(MANY_BYTES);
    for (size_t i = 0; i < MANY_BYTES; i++)
        input[i] = (uint8_t)(i * one->seed + i / 1000);
    if (kelpie_is_ok(klp_exec_collect(&vm_op, one->vm, &exec, (struct klp_bytes){input, MANY_BYTES},
                                      &result, NULL))) {
        one->good =
            result.out.size == MANY_BYTES && memcmp(result.out.data, input, MANY_BYTES) == 0;
        klp_exec_output_finish(&result);
    }
    klp_mem_free(input);
}

static void test_contract_vm__many_execs_at_once(void **state)
{
    (void)state;
    struct one_of_many many[MANY];
    struct kelpie_vm *vm = vm_shared();
    for (size_t i = 0; i < MANY; i++)
        many[i] = (struct one_of_many){.vm = vm, .seed = (uint8_t)(2 * i + 1)};
    contract_together(vm_suite->env, MANY, many_run, many, sizeof(many[0]));
    for (size_t i = 0; i < MANY; i++)
        assert_true(many[i].good);
}

/* ---- the main process */

struct main_log {
    char text[64];
    size_t size;
    uint64_t first;
};

static bool main_log_take(void *arg, uint64_t offset, bool is_stderr, const void *data, size_t size)
{
    struct main_log *log = arg;
    (void)is_stderr;
    if (log->size == 0)
        log->first = offset;
    assert_int_equal(offset, log->first + log->size);
    assert_true(log->size + size < sizeof(log->text));
    memcpy(log->text + log->size, data, size);
    log->size += size;
    return true;
}

static void test_contract_vm__main_process(void **state)
{
    (void)state;
    struct kelpie_vm *vm = vm_running();
    struct klp_guest *guest;
    struct klp_guest_main end;
    struct main_log log = {.size = 0};
    const char *const argv[] = {"@echo", "from", "main", NULL};
    CONTRACT_OK(klp_vm_guest(&vm_op, vm, &guest, &err_));
    CONTRACT_OK(klp_guest_main_status(&vm_op, guest, &end, &err_));
    assert_int_equal(end.state, KLP_MAIN_NONE);
    CONTRACT_OK(klp_guest_main_start(&vm_op, guest, argv, NULL, NULL, &err_));
    CONTRACT_OK(klp_guest_main_log(&vm_op, guest, 0, true, main_log_take, &log, &end, &err_));
    assert_int_equal(end.state, KLP_MAIN_EXITED);
    assert_int_equal(end.exit_code, 0);
    assert_string_equal(log.text, "from main\n");
    log = (struct main_log){.size = 0};
    CONTRACT_OK(klp_guest_main_log(&vm_op, guest, 5, false, main_log_take, &log, &end, &err_));
    assert_string_equal(log.text, "main\n");
    assert_int_equal(log.first, 5);
}

static void test_contract_vm__main_process_is_signalled(void **state)
{
    (void)state;
    struct kelpie_vm *vm = vm_running();
    struct klp_guest *guest;
    struct klp_guest_main end;
    struct main_log log = {.size = 0};
    const char *const argv[] = {"@sleep", "60", NULL};
    CONTRACT_OK(klp_vm_guest(&vm_op, vm, &guest, &err_));
    CONTRACT_OK(klp_guest_main_start(&vm_op, guest, argv, NULL, NULL, &err_));
    CONTRACT_OK(klp_guest_main_status(&vm_op, guest, &end, &err_));
    assert_int_equal(end.state, KLP_MAIN_RUNNING);
    CONTRACT_OK(klp_guest_main_signal(&vm_op, guest, 15, &err_));
    CONTRACT_OK(klp_guest_main_log(&vm_op, guest, 0, true, main_log_take, &log, &end, &err_));
    assert_int_equal(end.state, KLP_MAIN_EXITED);
    assert_int_equal(end.signal, 15);
}

size_t vm_exec_tests(struct CMUnitTest *out)
{
    return VM_TESTS(out, VM_TEST(exec_arguments), VM_TEST(exec_environment), VM_TEST(exec_folder),
                    VM_TEST(exec_defaults_of_the_configuration), VM_TEST(exec_input_comes_back),
                    VM_TEST(exec_input_nobody_reads), VM_TEST(exec_streams_are_separate),
                    VM_TEST(exec_output_is_cut_and_says_so), VM_TEST(exec_may_stop_listening),
                    VM_TEST(exec_status), VM_TEST(exec_that_cannot_be), VM_TEST(exec_of_too_much),
                    VM_TEST(exec_time_limit_of_the_guest), VM_TEST(exec_time_limit_of_the_call),
                    VM_TEST(exec_signal), VM_TEST(exec_cancel),
                    VM_TEST(exec_end_is_told_to_its_input), VM_TEST(many_execs_at_once),
                    VM_TEST(main_process), VM_TEST(main_process_is_signalled));
}
