/* SPDX-License-Identifier: Apache-2.0 */
/* Snapshots, restores, adoption: what a guest was comes back, and what fails leaves nothing. */
#include "contract/vm_inside.h"

#define NEEDS_SNAPSHOTS()                                                                          \
    do {                                                                                           \
        if ((kelpie_vm_factory_caps(vm_factory) & KELPIE_VM_CAP_SNAPSHOT) == 0)                    \
            CONTRACT_SKIP("this backend takes no snapshots");                                      \
    } while (0)

static struct klp_capture capture(struct kelpie_vm *vm, uint32_t reason)
{
    struct klp_capture taken;
    CONTRACT_OK(klp_vm_capture(&vm_op, vm, reason, &taken, &err_));
    return taken;
}

static struct klp_vm_image image_of(const struct klp_capture *taken)
{
    struct klp_vm_image image = {.machine = &taken->machine,
                                 .base = taken->base,
                                 .overlay_count = 1,
                                 .device_state = klp_buf_view(&taken->device_state)};
    image.overlays[0] = taken->dirty;
    return image;
}

static struct kelpie_vm *restored(const struct klp_vm_image *image)
{
    struct kelpie_vm *vm = vm_created();
    vm_lease_long(vm, 1);
    CONTRACT_OK(klp_vm_restore(&vm_op, vm, image, &err_));
    assert_state(vm, PAUSED);
    assert_int_equal(klp_vm_holds(vm), KLP_HOLD_RESTORE);
    return vm;
}

/* ---- snapshots */

static void test_contract_vm__a_snapshot_leaves_a_running_vm_running(void **state)
{
    (void)state;
    NEEDS_SNAPSHOTS();
    struct kelpie_vm *vm = vm_shared();
    struct klp_capture taken = capture(vm, KLP_HOLD_SNAPSHOT);
    assert_int_equal(klp_vm_holds(vm), KLP_HOLD_SNAPSHOT);
    assert_state(vm, RUNNING);
    assert_true(taken.pause_ns > 0);
    assert_true(taken.device_state.size > 0);
    assert_non_null(taken.dirty);
    assert_int_equal(klp_layer_size(taken.dirty), taken.machine.memory_bytes);
    assert_true(klp_layer_is_sealed(taken.dirty));
    assert_false(vm_answers(vm, 400));
    CONTRACT_OK(klp_vm_release(&vm_op, vm, KLP_HOLD_SNAPSHOT, &err_));
    assert_true(vm_answers(vm, 10000));
    klp_capture_finish(&taken);
}

static void test_contract_vm__a_snapshot_leaves_a_paused_vm_paused(void **state)
{
    (void)state;
    NEEDS_SNAPSHOTS();
    struct kelpie_vm *vm = vm_shared();
    CONTRACT_OK(kelpie_vm_pause(&vm_op, vm, &err_));
    struct klp_capture taken = capture(vm, KLP_HOLD_SNAPSHOT);
    klp_capture_finish(&taken);
    CONTRACT_OK(klp_vm_release(&vm_op, vm, KLP_HOLD_SNAPSHOT, &err_));
    assert_state(vm, PAUSED);
    CONTRACT_OK(kelpie_vm_resume(&vm_op, vm, &err_));
    assert_true(vm_answers(vm, 10000));
}

static void test_contract_vm__a_snapshot_that_fails_changes_nothing(void **state)
{
    (void)state;
    struct klp_capture taken;
    NEEDS_SNAPSHOTS();
    if (vm_suite->fault == NULL)
        CONTRACT_SKIP("this backend has no faults to plant");
    vm_suite->fault(vm_suite->arg, "capture");
    struct kelpie_vm *vm = vm_running();
    vm_suite->fault(vm_suite->arg, "");
    unsigned pages = vm_fill(vm, "5");
    CONTRACT_FAIL(IO, kelpie_vm_id(vm),
                  klp_vm_capture(&vm_op, vm, KLP_HOLD_SNAPSHOT, &taken, &err_));
    assert_state(vm, RUNNING);
    assert_int_equal(klp_vm_holds(vm), 0);
    assert_filled(vm, pages);
    CONTRACT_OK(kelpie_vm_pause(&vm_op, vm, &err_));
    CONTRACT_FAIL(IO, kelpie_vm_id(vm),
                  klp_vm_capture(&vm_op, vm, KLP_HOLD_HANDOFF, &taken, &err_));
    assert_state(vm, PAUSED);
    assert_int_equal(klp_vm_holds(vm), KLP_HOLD_USER);
}

static void test_contract_vm__a_guest_that_dies_in_its_snapshot(void **state)
{
    (void)state;
    struct klp_capture taken;
    NEEDS_SNAPSHOTS();
    if (vm_suite->fault == NULL)
        CONTRACT_SKIP("this backend has no faults to plant");
    vm_suite->fault(vm_suite->arg, "crash-in-capture");
    struct kelpie_vm *vm = vm_running();
    vm_suite->fault(vm_suite->arg, "");
    CONTRACT_FAIL(CRASHED, kelpie_vm_id(vm),
                  klp_vm_capture(&vm_op, vm, KLP_HOLD_SNAPSHOT, &taken, &err_));
    assert_state(vm, CRASHED);
}

/* ---- restores */

static void test_contract_vm__what_was_comes_back(void **state)
{
    (void)state;
    NEEDS_SNAPSHOTS();
    struct kelpie_vm *vm = vm_running();
    unsigned pages = vm_fill(vm, "7");
    uint64_t before = vm_count(vm);
    struct klp_capture taken = capture(vm, KLP_HOLD_HANDOFF);
    struct klp_vm_image image = image_of(&taken);
    struct kelpie_vm *other = restored(&image);
    klp_capture_finish(&taken); /* the VM needs it no longer */
    const char *const argv[] = {"@echo", NULL};
    struct kelpie_exec exec = {.argv = argv};
    struct kelpie_exec_status status;
    CONTRACT_FAIL(STATE, "paused", kelpie_vm_exec(&vm_op, other, &exec, &status, &err_));
    CONTRACT_OK(kelpie_vm_resume(&vm_op, other, &err_));
    assert_state(other, RUNNING);
    assert_int_equal(klp_vm_holds(other), 0);
    assert_filled(other, pages);
    uint64_t after = vm_count(other);
    assert_true(after >= before);
    for (uint64_t since = vm_now_ms(); vm_count(other) <= after; vm_sleep_ms(1))
        assert_true(vm_now_ms() - since < 10000);
    CONTRACT_OK(
        klp_vm_release(&vm_op, vm, KLP_HOLD_HANDOFF, &err_)); /* the first goes its own way */
    vm_fill(vm, "8");
    assert_filled(other, pages);
}

static void test_contract_vm__restores_of_restores(void **state)
{
    (void)state;
    NEEDS_SNAPSHOTS();
    struct kelpie_vm *vm = vm_running();
    vm_fill(vm, "1");
    struct klp_capture first = capture(vm, KLP_HOLD_SNAPSHOT);
    struct klp_vm_image image = {.machine = &first.machine,
                                 .base = first.dirty, /* as a template */
                                 .device_state = klp_buf_view(&first.device_state)};
    struct kelpie_vm *clone = restored(&image);
    assert_ptr_equal(klp_vm_base(clone), first.dirty);
    CONTRACT_OK(kelpie_vm_resume(&vm_op, clone, &err_));
    unsigned pages = vm_fill(clone, "2");
    struct klp_capture second = capture(clone, KLP_HOLD_SNAPSHOT);
    assert_ptr_equal(second.base, first.dirty);
    image = image_of(&second);
    struct kelpie_vm *third = restored(&image);
    CONTRACT_OK(kelpie_vm_resume(&vm_op, third, &err_));
    assert_filled(third, pages);
    struct klp_capture last = capture(third, KLP_HOLD_SNAPSHOT); /* two layers in one */
    assert_ptr_equal(last.base, first.dirty);
    image = image_of(&last);
    struct kelpie_vm *fourth = restored(&image);
    klp_capture_finish(&first);
    klp_capture_finish(&second);
    klp_capture_finish(&last);
    CONTRACT_OK(kelpie_vm_resume(&vm_op, fourth, &err_));
    assert_filled(fourth, pages);
}

static void test_contract_vm__a_frozen_workload_stays_frozen(void **state)
{
    (void)state;
    NEEDS_SNAPSHOTS();
    struct kelpie_vm *vm = vm_running();
    struct klp_guest *guest;
    CONTRACT_OK(klp_vm_guest(&vm_op, vm, &guest, &err_));
    CONTRACT_OK(klp_guest_order(&vm_op, guest, KLP_GUEST_FREEZE, &err_));
    struct klp_capture taken = capture(vm, KLP_HOLD_SNAPSHOT);
    struct klp_vm_image image = image_of(&taken);
    struct kelpie_vm *other = restored(&image);
    klp_capture_finish(&taken);
    CONTRACT_OK(kelpie_vm_resume(&vm_op, other, &err_));
    const char *const argv[] = {"@echo", NULL};
    struct kelpie_exec exec = {.argv = argv};
    struct kelpie_exec_status status;
    CONTRACT_FAIL(STATE, "frozen", kelpie_vm_exec(&vm_op, other, &exec, &status, &err_));
    CONTRACT_OK(klp_vm_guest(&vm_op, other, &guest, &err_));
    CONTRACT_OK(klp_guest_order(&vm_op, guest, KLP_GUEST_THAW, &err_));
    assert_string_equal(SAY(other, "@echo", "thawed").text, "thawed\n");
}

static void test_contract_vm__clones_are_made_unique(void **state)
{
    (void)state;
    NEEDS_SNAPSHOTS();
    struct kelpie_vm *vm = vm_running();
    struct klp_capture taken = capture(vm, KLP_HOLD_SNAPSHOT);
    struct klp_vm_image image = image_of(&taken);
    struct klp_unique_receipt receipts[2];
    for (size_t i = 0; i < 2; i++) {
        struct kelpie_vm *clone = restored(&image);
        struct klp_guest *guest;
        struct klp_unique_request request = {
            .which = KLP_UNIQUE_FORK, .wall_ns = klp_wall_ns(vm_suite->env), .hostname = "a-clone"};
        klp_random(vm_suite->env, request.generation, sizeof(request.generation));
        klp_random(vm_suite->env, request.entropy, sizeof(request.entropy));
        klp_random(vm_suite->env, request.machine_id, sizeof(request.machine_id));
        klp_random(vm_suite->env, request.boot_id, sizeof(request.boot_id));
        klp_vm_gate_close(clone); /* it needs no open gate */
        CONTRACT_OK(klp_vm_release(&vm_op, clone, KLP_HOLD_RESTORE, &err_));
        CONTRACT_OK(klp_vm_guest(&vm_op, clone, &guest, &err_));
        CONTRACT_OK(klp_guest_unique(&vm_op, guest, &request, &receipts[i], &err_));
        assert_false(receipts[i].duplicate);
        assert_int_equal(receipts[i].items[KLP_ITEM_GENERATION].result, KLP_UNIQUE_DONE);
        assert_memory_equal(receipts[i].items[KLP_ITEM_GENERATION].evidence, request.generation,
                            sizeof(request.generation));
        assert_int_equal(receipts[i].items[KLP_ITEM_KERNEL_RNG].result, KLP_UNIQUE_DONE);
        assert_int_equal(receipts[i].items[KLP_ITEM_KERNEL_RNG].evidence_size, 32);
    }
    klp_capture_finish(&taken);
    assert_memory_not_equal(receipts[0].items[KLP_ITEM_KERNEL_RNG].evidence,
                            receipts[1].items[KLP_ITEM_KERNEL_RNG].evidence, 32);
}

/* ---- restores that cannot be */

static void test_contract_vm__images_that_do_not_fit_are_refused(void **state)
{
    (void)state;
    NEEDS_SNAPSHOTS();
    struct kelpie_vm *vm = vm_created();
    struct klp_machine machine = *klp_vm_machine(vm);
    KLP_AUTO(layer) struct klp_layer *small = NULL;
    KLP_AUTO(layer) struct klp_layer *open = NULL;
    struct klp_vm_image image = {.machine = &machine, .overlay_count = 1};
    CONTRACT_TRUE(klp_layer_create(vm_suite->env, machine.memory_bytes / 2, machine.page_log2,
                                   &small, &err_));
    CONTRACT_TRUE(klp_layer_seal(small, &err_));
    CONTRACT_TRUE(
        klp_layer_create(vm_suite->env, machine.memory_bytes, machine.page_log2, &open, &err_));
    image.overlays[0] = small;
    CONTRACT_FAIL(INVALID, "bytes", klp_vm_restore(&vm_op, vm, &image, &err_));
    image.overlays[0] = open;
    CONTRACT_FAIL(INVALID, "written", klp_vm_restore(&vm_op, vm, &image, &err_));
    image.overlay_count = 0;
    image.base = small;
    CONTRACT_FAIL(INVALID, "bytes", klp_vm_restore(&vm_op, vm, &image, &err_));
    image.base = NULL;
    image.device_state.size = KLP_DEVICE_STATE_MAX + 1ull;
    CONTRACT_FAIL(LIMIT, "device state", klp_vm_restore(&vm_op, vm, &image, &err_));
    assert_state(vm, CREATED);
}

static void test_contract_vm__foreign_machines_are_refused(void **state)
{
    (void)state;
    NEEDS_SNAPSHOTS();
    struct kelpie_vm *vm = vm_created();
    struct klp_machine machine = *klp_vm_machine(vm);
    struct klp_vm_image image = {.machine = &machine};
    bool arm = machine.arch == KLP_ARCH_AARCH64;
    KLP_AUTO(kelpie_error) struct kelpie_error *error = NULL;
    machine.arch = arm ? KLP_ARCH_X86_64 : KLP_ARCH_AARCH64;
    klp_text_copy(machine.backend, sizeof(machine.backend), "elsewhere");
    assert_int_equal(klp_vm_restore(&vm_op, vm, &image, &error).kind, KELPIE_FAIL);
    assert_int_equal(kelpie_error_code(error), KELPIE_E_INCOMPATIBLE);
    assert_int_equal(kelpie_error_reason_count(error), 2);
    CONTRACT_FALSE(INCOMPATIBLE, "", klp_vm_factory_accepts(vm_factory, &machine, &err_));
    CONTRACT_TRUE(klp_vm_factory_accepts(vm_factory, klp_vm_machine(vm), &err_));
    assert_state(vm, CREATED);
}

static void test_contract_vm__a_load_that_fails_leaves_nothing(void **state)
{
    (void)state;
    NEEDS_SNAPSHOTS();
    if (vm_suite->fault == NULL)
        CONTRACT_SKIP("this backend has no faults to plant");
    struct kelpie_vm *vm = vm_running();
    unsigned pages = vm_fill(vm, "9");
    struct klp_capture taken = capture(vm, KLP_HOLD_SNAPSHOT);
    struct klp_vm_image image = image_of(&taken);
    struct kelpie_vm *other = vm_created();
    vm_suite->fault(vm_suite->arg, "load");
    CONTRACT_FAIL(IO, kelpie_vm_id(other), klp_vm_restore(&vm_op, other, &image, &err_));
    vm_suite->fault(vm_suite->arg, "");
    assert_state(other, CREATED);
    assert_int_equal(kelpie_vm_pid(other), 0);
    vm_lease_long(other, 1);
    CONTRACT_OK(klp_vm_restore(&vm_op, other, &image, &err_));
    CONTRACT_OK(kelpie_vm_resume(&vm_op, other, &err_));
    assert_filled(other, pages);
    klp_capture_finish(&taken);
}

static void test_contract_vm__a_damaged_device_state_is_refused(void **state)
{
    (void)state;
    NEEDS_SNAPSHOTS();
    struct kelpie_vm *vm = vm_running();
    struct klp_capture taken = capture(vm, KLP_HOLD_SNAPSHOT);
    struct klp_vm_image image = image_of(&taken);
    struct kelpie_vm *other = vm_created();
    memset(taken.device_state.data, 0x5a,
           taken.device_state.size < 64 ? taken.device_state.size : 64);
    struct kelpie_error *error = NULL;
    kelpie_outcome outcome = klp_vm_restore(&vm_op, other, &image, &error);
    assert_int_equal(outcome.kind, KELPIE_FAIL);
    kelpie_error_free(error);
    assert_state(other, CREATED);
    klp_capture_finish(&taken);
}

static void test_contract_vm__prepared_ahead(void **state)
{
    (void)state;
    NEEDS_SNAPSHOTS();
    struct kelpie_vm *vm = vm_running();
    unsigned pages = vm_fill(vm, "11");
    struct klp_capture taken = capture(vm, KLP_HOLD_SNAPSHOT);
    struct klp_vm_image image = image_of(&taken);
    struct kelpie_vm *ready = vm_created(), *wrong = vm_created(), *unused = vm_created();
    CONTRACT_OK(klp_vm_prepare(&vm_op, ready, &taken.machine, taken.base, &err_));
    assert_state(ready, CREATED);
    assert_true(kelpie_vm_pid(ready) > 0);
    int64_t pid = kelpie_vm_pid(ready);
    CONTRACT_OK(klp_vm_prepare(&vm_op, unused, &taken.machine, taken.base, &err_));
    CONTRACT_OK(klp_vm_prepare(&vm_op, wrong, &taken.machine, taken.dirty, &err_));
    vm_lease_long(ready, 1);
    vm_lease_long(wrong, 1);
    CONTRACT_OK(klp_vm_restore(&vm_op, ready, &image, &err_));
    assert_true(kelpie_vm_pid(ready) == pid);                  /* the one that waited */
    CONTRACT_OK(klp_vm_restore(&vm_op, wrong, &image, &err_)); /* waited for another base */
    klp_capture_finish(&taken);
    CONTRACT_OK(kelpie_vm_resume(&vm_op, ready, &err_));
    CONTRACT_OK(kelpie_vm_resume(&vm_op, wrong, &err_));
    assert_filled(ready, pages);
    assert_filled(wrong, pages);
}

/* ---- adoption */

struct found {
    const char *id;
    size_t count, all;
};

static bool found_take(void *arg, const char *id)
{
    struct found *found = arg;
    found->all++;
    found->count += strcmp(id, found->id) == 0;
    return true;
}

/* Lets go of it as a daemon that ends, and is the next daemon. */
static struct kelpie_vm *adopt(struct kelpie_vm *vm)
{
    struct kelpie_vm *again = NULL;
    char id[KLP_ID_SIZE];
    struct found found = {.id = id};
    klp_text_copy(id, sizeof(id), kelpie_vm_id(vm));
    vm_forget(vm);
    klp_vm_leave(vm);
    CONTRACT_OK(klp_vm_scan(&vm_op, vm_factory, found_take, &found, &err_));
    assert_int_equal(found.count, 1);
    CONTRACT_OK(klp_vm_adopt(&vm_op, vm_factory, id, &again, &err_));
    vm_keep(again);
    assert_string_equal(kelpie_vm_id(again), id);
    return again;
}

static void test_contract_vm__a_running_vm_is_adopted(void **state)
{
    (void)state;
    struct kelpie_vm *vm = vm_running();
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf meta = KLP_BUF_INIT(64);
    struct klp_machine machine = *klp_vm_machine(vm);
    unsigned pages = vm_fill(vm, "13");
    int64_t pid = kelpie_vm_pid(vm);
    vm_lease_long(vm, 7);
    CONTRACT_OK(klp_vm_meta_set(&vm_op, vm, (struct klp_bytes){(const uint8_t *)"note", 4}, &err_));
    vm = adopt(vm);
    assert_state(vm, RUNNING);
    assert_true(kelpie_vm_pid(vm) == pid);
    assert_int_equal(klp_vm_epoch(vm), 7);
    assert_memory_equal(&machine, klp_vm_machine(vm), sizeof(machine));
    CONTRACT_OK(klp_vm_meta_get(&vm_op, vm, &meta, &err_));
    assert_string_equal(klp_buf_text(&meta), "note");
    assert_false(klp_vm_gate_is_open(vm));
    CONTRACT_FAIL(DENIED, "6", klp_vm_lease(&vm_op, vm, 6, UINT64_MAX, &err_));
    klp_vm_gate_open(vm, 7);
    assert_filled(vm, pages);
    CONTRACT_OK(kelpie_vm_stop(&vm_op, vm, 10000, &err_));
    assert_state(vm, STOPPED);
}

static void test_contract_vm__a_paused_clone_is_adopted(void **state)
{
    (void)state;
    NEEDS_SNAPSHOTS();
    struct kelpie_vm *vm = vm_running();
    unsigned pages = vm_fill(vm, "17");
    struct klp_capture taken = capture(vm, KLP_HOLD_SNAPSHOT);
    struct klp_vm_image image = {.machine = &taken.machine,
                                 .base = taken.dirty,
                                 .device_state = klp_buf_view(&taken.device_state)};
    struct kelpie_vm *clone = restored(&image);
    CONTRACT_OK(kelpie_vm_resume(&vm_op, clone, &err_));
    CONTRACT_OK(kelpie_vm_pause(&vm_op, clone, &err_));
    clone = adopt(clone);
    assert_state(clone, PAUSED);
    assert_int_equal(klp_vm_holds(clone), KLP_HOLD_USER);
    assert_non_null(klp_vm_base(clone));
    CONTRACT_OK(kelpie_vm_resume(&vm_op, clone, &err_));
    klp_vm_gate_open(clone, 1);
    assert_filled(clone, pages);
    struct klp_capture again = capture(clone, KLP_HOLD_SNAPSHOT); /* over the layer asked back */
    image = image_of(&again);
    struct kelpie_vm *last = restored(&image);
    klp_capture_finish(&taken);
    klp_capture_finish(&again);
    CONTRACT_OK(kelpie_vm_resume(&vm_op, last, &err_));
    assert_filled(last, pages);
}

static void test_contract_vm__a_dead_vm_is_adopted_as_such(void **state)
{
    (void)state;
    struct kelpie_vm *vm = vm_running();
    const char *const argv[] = {"@crash", NULL};
    struct kelpie_exec exec = {.argv = argv};
    struct kelpie_exec_status status;
    char text[512];
    CONTRACT_FAIL(CRASHED, "", kelpie_vm_exec(&vm_op, vm, &exec, &status, &err_));
    vm = adopt(vm);
    assert_state(vm, CRASHED);
    kelpie_vm_reason(vm, text, sizeof(text));
    assert_string_not_equal(text, "");
    kelpie_vm_console(&vm_op, vm, text, sizeof(text));
    assert_non_null(strstr(text, "crash"));
}

static void test_contract_vm__one_that_is_abandoned_is_gone(void **state)
{
    (void)state;
    struct kelpie_vm *vm = vm_running(), *none = NULL;
    char id[KLP_ID_SIZE];
    int64_t pid = kelpie_vm_pid(vm);
    klp_text_copy(id, sizeof(id), kelpie_vm_id(vm));
    vm_forget(vm);
    klp_vm_leave(vm);
    CONTRACT_OK(klp_vm_abandon(&vm_op, vm_factory, id, &err_));
    if (vm_suite->process_lives != NULL)
        assert_false(vm_suite->process_lives(vm_suite->arg, pid));
    CONTRACT_FAIL(NOT_FOUND, id, klp_vm_adopt(&vm_op, vm_factory, id, &none, &err_));
    CONTRACT_FAIL(NOT_FOUND, id, klp_vm_abandon(&vm_op, vm_factory, id, &err_));
    CONTRACT_FAIL(INVALID, "..", klp_vm_abandon(&vm_op, vm_factory, "..", &err_));
}

static void test_contract_vm__folders_of_dead_keepers_go(void **state)
{
    (void)state;
    KLP_AUTO(dir) struct klp_dir *dir = NULL;
    KLP_AUTO(dir) struct klp_dir *gone = NULL;
    struct found found = {.id = "00000000000000000000000000000abc"};
    struct kelpie_vm *vm = NULL;
    CONTRACT_TRUE(klp_dir_open_at(vm_factory->vms_dir, found.id, true, &dir, &err_));
    CONTRACT_TRUE(klp_file_write_all(dir, "keeper.log", "words", 5, &err_));
    CONTRACT_FAIL(UNREACHABLE, found.id, klp_vm_adopt(&vm_op, vm_factory, found.id, &vm, &err_));
    CONTRACT_OK(klp_vm_scan(&vm_op, vm_factory, found_take, &found, &err_));
    assert_int_equal(found.count, 0);
    CONTRACT_FALSE(NOT_FOUND, found.id,
                   klp_dir_open_at(vm_factory->vms_dir, found.id, false, &gone, &err_));
    CONTRACT_FAIL(NOT_FOUND, found.id, klp_vm_adopt(&vm_op, vm_factory, found.id, &vm, &err_));
    CONTRACT_FAIL(INVALID, "..", klp_vm_adopt(&vm_op, vm_factory, "..", &vm, &err_));
}

size_t vm_move_tests(struct CMUnitTest *out)
{
    return VM_TESTS(
        out, VM_TEST(a_snapshot_leaves_a_running_vm_running),
        VM_TEST(a_snapshot_leaves_a_paused_vm_paused),
        VM_TEST(a_snapshot_that_fails_changes_nothing), VM_TEST(a_guest_that_dies_in_its_snapshot),
        VM_TEST(what_was_comes_back), VM_TEST(restores_of_restores),
        VM_TEST(a_frozen_workload_stays_frozen), VM_TEST(clones_are_made_unique),
        VM_TEST(images_that_do_not_fit_are_refused), VM_TEST(foreign_machines_are_refused),
        VM_TEST(a_load_that_fails_leaves_nothing), VM_TEST(a_damaged_device_state_is_refused),
        VM_TEST(prepared_ahead), VM_TEST(a_running_vm_is_adopted),
        VM_TEST(a_paused_clone_is_adopted), VM_TEST(a_dead_vm_is_adopted_as_such),
        VM_TEST(one_that_is_abandoned_is_gone), VM_TEST(folders_of_dead_keepers_go));
}
