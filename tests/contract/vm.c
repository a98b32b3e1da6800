/* SPDX-License-Identifier: Apache-2.0 */
/* The VM suite's frame: VMs of a test and what must be left of them, small words to their guests.
 */
#include "contract/vm_inside.h"

#define TESTS_MAX 128
#define LONG_MS (3600ull * 1000)

const struct contract_vm *vm_suite;
struct kelpie_op vm_op;
struct kelpie_vm_factory *vm_factory;

static struct kelpie_vm *made[VMS_MAX];
static size_t made_count;
static struct kelpie_vm *shared;

struct kelpie_op vm_op_ms(uint64_t timeout_ms)
{
    return klp_op_plain(vm_suite->env, timeout_ms);
}

void vm_sleep_ms(uint64_t ms)
{
    struct kelpie_op op = vm_op_ms(ms + 10000);
    CONTRACT_OK(klp_sleep_until(&op, klp_boot_ns(vm_suite->env) + ms * KLP_MS, &err_));
}

uint64_t vm_now_ms(void)
{
    return klp_boot_ns(vm_suite->env) / KLP_MS;
}

/* ---- VMs of a test */

void vm_keep(struct kelpie_vm *vm)
{
    assert_true(made_count < VMS_MAX);
    made[made_count++] = vm;
}

void vm_forget(struct kelpie_vm *vm)
{
    for (size_t i = 0; i < made_count; i++) {
        if (made[i] == vm)
            made[i] = made[--made_count];
    }
}

static struct kelpie_vm *create(void)
{
    char id[KLP_ID_SIZE];
    struct kelpie_vm *vm = NULL;
    klp_random_id(vm_suite->env, id);
    CONTRACT_OK(kelpie_vm_create(&vm_op, vm_factory, id, &vm_suite->config, &vm, &err_));
    return vm;
}

struct kelpie_vm *vm_created(void)
{
    struct kelpie_vm *vm = create();
    vm_keep(vm);
    return vm;
}

void vm_lease_long(struct kelpie_vm *vm, uint64_t epoch)
{
    uint64_t until = klp_boot_ns(vm_suite->env) + LONG_MS * KLP_MS;
    CONTRACT_OK(klp_vm_lease(&vm_op, vm, epoch, until, &err_));
    klp_vm_gate_open(vm, epoch);
}

static void run(struct kelpie_vm *vm)
{
    vm_lease_long(vm, 1);
    CONTRACT_OK(kelpie_vm_start(&vm_op, vm, &err_));
    assert_state(vm, RUNNING);
}

struct kelpie_vm *vm_running(void)
{
    struct kelpie_vm *vm = vm_created();
    run(vm);
    return vm;
}

/* A test that failed may have left it in any state: then it is made anew. */
struct kelpie_vm *vm_shared(void)
{
    if (shared != NULL && (kelpie_vm_state(shared) != KELPIE_VM_RUNNING ||
                           klp_vm_holds(shared) != 0 || !vm_answers(shared, 5000)))
        vm_shared_end();
    if (shared == NULL) {
        shared = create();
        run(shared);
    }
    vm_lease_long(shared, klp_vm_epoch(shared));
    return shared;
}

void vm_shared_end(void)
{
    kelpie_vm_destroy(&vm_op, shared);
    shared = NULL;
}

static bool folder_count(void *arg, const char *name)
{
    (void)name;
    (*(size_t *)arg)++;
    return true;
}

int vm_set_up(void **state)
{
    (void)state;
    vm_op = vm_op_ms(CONTRACT_TIMEOUT_MS);
    made_count = 0;
    return 0;
}

int vm_tear_down(void **state)
{
    int64_t pids[VMS_MAX];
    size_t folders = 0, count = made_count;
    (void)state;
    vm_op = vm_op_ms(CONTRACT_TIMEOUT_MS);
    for (size_t i = 0; i < count; i++) {
        pids[i] = kelpie_vm_pid(made[i]);
        kelpie_vm_destroy(&vm_op, made[i]);
    }
    made_count = 0;
    for (size_t i = 0; i < count && vm_suite->process_lives != NULL; i++)
        assert_false(pids[i] != 0 && vm_suite->process_lives(vm_suite->arg, pids[i]));
    CONTRACT_TRUE(klp_dir_list(vm_factory->vms_dir, folder_count, &folders, &err_));
    assert_int_equal(folders, shared != NULL && kelpie_vm_pid(shared) != 0 ? 1 : 0);
    return 0;
}

void assert_state_at(struct kelpie_vm *vm, enum kelpie_vm_state state, const char *file, int line)
{
    char reason[256];
    if (kelpie_vm_state(vm) == state)
        return;
    kelpie_vm_reason(vm, reason, sizeof(reason));
    print_error("%s:%d: VM is %s (%s), want %s\n", file, line,
                kelpie_vm_state_name(kelpie_vm_state(vm)), reason, kelpie_vm_state_name(state));
    fail();
}

/* ---- words to a guest */

bool vm_answers(struct kelpie_vm *vm, uint64_t within_ms)
{
    struct kelpie_op op = vm_op_ms(within_ms);
    struct klp_guest *guest;
    return kelpie_is_ok(klp_vm_guest(&op, vm, &guest, NULL)) &&
           kelpie_is_ok(klp_guest_order(&op, guest, KLP_GUEST_PING, NULL));
}

struct vm_words vm_say(struct kelpie_vm *vm, const char *const *argv)
{
    struct vm_words words = {0};
    struct klp_exec_output result;
    struct kelpie_exec exec = {.argv = argv};
    CONTRACT_OK(klp_exec_collect(&vm_op, vm, &exec, (struct klp_bytes){0}, &result, &err_));
    klp_format(words.text, sizeof(words.text), "%s", klp_buf_text(&result.out));
    words.status = result.status;
    klp_exec_output_finish(&result);
    return words;
}

unsigned vm_fill(struct kelpie_vm *vm, const char *seed)
{
    char mib[16], *end;
    klp_format(mib, sizeof(mib), "%u", vm_suite->fill_mib);
    struct vm_words words = SAY(vm, "@fill", mib, seed);
    assert_int_equal(words.status.exit_code, 0);
    assert_memory_equal(words.text, "pages=", 6);
    unsigned long pages = strtoul(words.text + 6, &end, 10);
    assert_string_equal(end, "\n");
    assert_true(pages > 0);
    return (unsigned)pages;
}

void assert_filled(struct kelpie_vm *vm, unsigned pages)
{
    char want[64];
    struct vm_words words = SAY(vm, "@check");
    klp_format(want, sizeof(want), "pages=%u bad=0\n", pages);
    assert_string_equal(words.text, want);
    assert_int_equal(words.status.exit_code, 0);
}

uint64_t vm_count(struct kelpie_vm *vm)
{
    uint64_t count = 0;
    struct vm_words words = SAY(vm, "@count");
    size_t size = strlen(words.text);
    assert_true(size > 1 && words.text[size - 1] == '\n');
    assert_true(klp_parse_u64(words.text, size - 1, &count));
    return count;
}

/* ---- the run */

static int group_end(void **state)
{
    (void)state;
    vm_op = vm_op_ms(CONTRACT_TIMEOUT_MS);
    vm_shared_end();
    return 0;
}

int contract_vm(const struct contract_vm *of)
{
    static struct CMUnitTest tests[TESTS_MAX];
    struct kelpie_error *error = NULL;
    size_t count = 0;
    vm_suite = of;
    if (!of->make(of->arg, &vm_factory, &error)) {
        print_error("%s: %s\n", of->name, kelpie_error_message(error));
        kelpie_error_free(error);
        return 1;
    }
    count += vm_state_tests(tests + count);
    count += vm_exec_tests(tests + count);
    count += vm_file_tests(tests + count);
    count += vm_move_tests(tests + count);
    count += vm_lease_tests(tests + count);
    assert_true(count <= TESTS_MAX);
    int failed = _cmocka_run_group_tests(of->name, tests, count, NULL, group_end);
    klp_vm_factory_destroy(vm_factory);
    return failed;
}
