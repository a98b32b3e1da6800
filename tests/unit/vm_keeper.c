/* SPDX-License-Identifier: Apache-2.0 */
/* kelpie-keeper as a process, over a mock guest: what it lets run and when, and what it captures
 * and loads. */
#include "vm_keeper_kit.h"

/* ---- what it says of itself */

static void test_vm_keeper__begins_empty_and_fenced(void **state)
{
    struct vm vm;
    vm_start(&vm, *state);
    line_status(vm.line);
    assert_int_equal(answer_number(vm.line, KLP_KTAG_STATE), KLP_KEEPER_EMPTY);
    assert_int_equal(answer_number(vm.line, KLP_KTAG_HOLDS), KLP_HOLD_FENCE);
    assert_int_equal(answer_number(vm.line, KLP_KTAG_KEEPER_PID), vm.pid);
    assert_string_equal(answer_text(vm.line, KLP_KTAG_VM), KEEPER_VM);
    assert_string_equal(answer_text(vm.line, KLP_KTAG_BACKEND), "mock");
    vm_exit(&vm);
}

static void test_vm_keeper__keeps_a_note_and_the_machine(void **state)
{
    struct vm vm;
    struct klp_bytes bytes;
    struct klp_machine machine;
    static char note[33 * 1024];
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf fields = KLP_BUF_INIT(64 * 1024);
    vm_run(&vm, *state);
    memset(note, 'n', sizeof(note));
    klp_field_append(&fields, KLP_KTAG_META, note, 32 * 1024);
    assert_string_equal(line_ask(vm.line, KLP_KEEPER_META, &fields, NULL, 0), "");
    klp_buf_clear(&fields);
    klp_field_append(&fields, KLP_KTAG_META, note, 32 * 1024 + 1);
    assert_string_equal(line_ask(vm.line, KLP_KEEPER_META, &fields, NULL, 0), "limit");
    assert_string_equal(line_ask(vm.line, KLP_KEEPER_META, NULL, NULL, 0), "limit");
    line_status(vm.line);
    assert_true(klp_field_find(vm.line->answer.fields, KLP_KTAG_META, &bytes));
    assert_int_equal(bytes.size, 32 * 1024);
    assert_memory_equal(bytes.data, note, bytes.size);
    assert_true(klp_field_find(vm.line->answer.fields, KLP_KTAG_MACHINE, &bytes));
    assert_true(klp_machine_decode(bytes, &machine, NULL));
    assert_int_equal(machine.memory_bytes, (uint64_t)GUEST_MIB * KLP_MIB);
    vm_exit(&vm);
}

/* Mock has nothing to prepare. */
static void test_vm_keeper__a_capture_may_be_announced_to_every_backend(void **state)
{
    struct vm vm;
    vm_start(&vm, *state);
    assert_string_equal(line_ask(vm.line, KLP_KEEPER_AHEAD, NULL, NULL, 0), "wrong_state");
    assert_string_equal(line_lease(vm.line, 1, 60000), "");
    assert_string_equal(line_spawn(vm.line, KLP_SPAWN_COLD, NULL), "");
    assert_string_equal(line_ask(vm.line, KLP_KEEPER_AHEAD, NULL, NULL, 0), "");
    vm_exit(&vm);
}

/* ---- lease */

static void test_vm_keeper__nothing_runs_without_a_lease(void **state)
{
    struct vm vm;
    vm_start(&vm, *state);
    assert_string_equal(line_spawn(vm.line, KLP_SPAWN_COLD, NULL), "");
    int64_t pid = guest_pid(&vm);
    assert_true(process_wait(vm.kit, pid, STANDS));
    assert_false(guest_answers(&vm, 200));
    assert_string_equal(line_lease(vm.line, 1, 60000), "");
    assert_int_equal(status_number(vm.line, KLP_KTAG_HOLDS), 0);
    assert_true(process_wait(vm.kit, pid, RUNS));
    assert_string_equal(guest_say(&vm, "@echo leased"), "leased\n");
    vm_exit(&vm);
    assert_true(process_wait(vm.kit, pid, GONE));
}

static void test_vm_keeper__the_clock_fences_without_a_daemon(void **state)
{
    struct vm vm;
    vm_run(&vm, *state);
    int64_t pid = guest_pid(&vm);
    struct line *watch = line_open(vm.kit, vm.dir);
    assert_string_equal(line_ask(watch, KLP_KEEPER_WATCH, NULL, NULL, 0), "");
    assert_true(guest_answers(&vm, 5000));
    uint64_t before = klp_boot_ns(vm.kit->env);
    assert_string_equal(line_lease(vm.line, 1, 250), "");
    line_close(vm.line); /* nobody is there any more */
    vm.line = NULL;
    assert_true(event_wait(watch, KLP_KEEPER_LIVE, true));
    uint64_t took_ms = (klp_boot_ns(vm.kit->env) - before) / KLP_MS;
    assert_in_range(took_ms, 250, 1250);
    assert_true(process_wait(vm.kit, pid, STANDS));
    vm.line = line_open(vm.kit, vm.dir);
    assert_string_equal(line_lease(vm.line, 1, 60000), "");
    assert_true(event_wait(watch, KLP_KEEPER_LIVE, false));
    assert_true(process_wait(vm.kit, pid, RUNS));
    assert_string_equal(guest_say(&vm, "@echo again"), "again\n");
    line_close(watch);
    vm_exit(&vm);
}

static void test_vm_keeper__time_under_a_fence_is_not_the_guests(void **state)
{
    struct vm vm;
    vm_run(&vm, *state);
    int64_t pid = guest_pid(&vm);
    uint64_t before = strtoull(guest_say(&vm, "@count"), NULL, 10);
    assert_string_equal(line_lease(vm.line, 1, 0), "");
    assert_true(process_wait(vm.kit, pid, STANDS));
    nap(vm.kit, 1500);
    assert_string_equal(line_lease(vm.line, 1, 60000), "");
    uint64_t after = strtoull(guest_say(&vm, "@count"), NULL, 10);
    assert_in_range(after, before, before + 1000);
    nap(vm.kit, 50);
    assert_in_range(strtoull(guest_say(&vm, "@count"), NULL, 10), after + 1, UINT64_MAX);
    vm_exit(&vm);
}

static void test_vm_keeper__a_renewal_postpones_the_fence(void **state)
{
    struct vm vm;
    vm_run(&vm, *state);
    for (int i = 0; i < 5; i++) {
        assert_string_equal(line_lease(vm.line, 1, 300), "");
        nap(vm.kit, 120);
    }
    assert_int_equal(status_number(vm.line, KLP_KTAG_HOLDS), 0);
    nap(vm.kit, 400);
    assert_int_equal(status_number(vm.line, KLP_KTAG_HOLDS), KLP_HOLD_FENCE);
    vm_exit(&vm);
}

static void test_vm_keeper__an_older_epoch_is_denied(void **state)
{
    struct vm vm;
    vm_run(&vm, *state);
    assert_string_equal(line_lease(vm.line, 7, 60000), "");
    assert_string_equal(line_lease(vm.line, 6, 90000), "denied");
    assert_string_equal(line_lease(vm.line, 6, 0), "denied");
    assert_int_equal(status_number(vm.line, KLP_KTAG_EPOCH), 7);
    assert_int_equal(status_number(vm.line, KLP_KTAG_HOLDS), 0);
    assert_string_equal(line_lease(vm.line, 7, 0), "");
    assert_string_equal(line_lease(vm.line, 6, 60000), "denied"); /* it ends no fence */
    assert_int_equal(status_number(vm.line, KLP_KTAG_HOLDS), KLP_HOLD_FENCE);
    assert_string_equal(line_lease(vm.line, 8, 60000), "");
    assert_int_equal(status_number(vm.line, KLP_KTAG_HOLDS), 0);
    vm_exit(&vm);
}

/* ---- holds */

static void test_vm_keeper__holds_are_a_set(void **state)
{
    struct vm vm;
    vm_run(&vm, *state);
    assert_string_equal(line_hold(vm.line, KLP_HOLD_USER), "");
    assert_int_equal(answer_number(vm.line, KLP_KTAG_HOLDS), KLP_HOLD_USER);
    assert_false(guest_answers(&vm, 200));
    assert_string_equal(line_hold(vm.line, KLP_HOLD_SNAPSHOT | KLP_HOLD_USER), "");
    assert_string_equal(line_release(vm.line, KLP_HOLD_USER), "");
    assert_int_equal(answer_number(vm.line, KLP_KTAG_HOLDS), KLP_HOLD_SNAPSHOT);
    assert_false(guest_answers(&vm, 200));
    assert_string_equal(line_release(vm.line, KLP_HOLD_HANDOFF), ""); /* was never there */
    assert_false(guest_answers(&vm, 100));
    assert_string_equal(line_release(vm.line, KLP_HOLD_SNAPSHOT), "");
    assert_int_equal(answer_number(vm.line, KLP_KTAG_HOLDS), 0);
    assert_true(guest_answers(&vm, 5000));
    vm_exit(&vm);
}

static void test_vm_keeper__the_fence_is_the_clocks_alone(void **state)
{
    struct vm vm;
    vm_run(&vm, *state);
    assert_string_equal(line_hold(vm.line, KLP_HOLD_FENCE), "");
    assert_int_equal(answer_number(vm.line, KLP_KTAG_HOLDS), 0);
    assert_true(guest_answers(&vm, 5000));
    assert_string_equal(line_lease(vm.line, 1, 0), "");
    assert_string_equal(line_release(vm.line, KLP_HOLD_FENCE | KLP_HOLD_USER), "");
    assert_int_equal(answer_number(vm.line, KLP_KTAG_HOLDS), KLP_HOLD_FENCE);
    assert_true(process_wait(vm.kit, guest_pid(&vm), STANDS));
    vm_exit(&vm);
}

static void test_vm_keeper__under_a_fence_nothing_new_is_held_or_captured(void **state)
{
    struct vm vm;
    vm_run(&vm, *state);
    assert_string_equal(line_lease(vm.line, 1, 0), "");
    uint64_t before = klp_boot_ns(vm.kit->env);
    assert_string_equal(line_hold(vm.line, KLP_HOLD_USER), "wrong_state");
    assert_string_equal(line_ask(vm.line, KLP_KEEPER_CAPTURE, NULL, NULL, 0), "wrong_state");
    assert_in_range((klp_boot_ns(vm.kit->env) - before) / KLP_MS, 0, 2000); /* at once */
    assert_int_equal(status_number(vm.line, KLP_KTAG_HOLDS), KLP_HOLD_FENCE);
    assert_string_equal(line_lease(vm.line, 1, 60000), "");
    assert_true(guest_answers(&vm, 5000));
    vm_exit(&vm);
}

static void test_vm_keeper__a_hold_outlasts_a_fence(void **state)
{
    struct vm vm;
    vm_run(&vm, *state);
    assert_string_equal(line_hold(vm.line, KLP_HOLD_HANDOFF), "");
    assert_string_equal(line_lease(vm.line, 1, 0), "");
    assert_string_equal(line_ask(vm.line, KLP_KEEPER_CAPTURE, NULL, NULL, 0), "wrong_state");
    assert_string_equal(line_hold(vm.line, KLP_HOLD_USER), ""); /* it stands still already */
    assert_string_equal(line_release(vm.line, KLP_HOLD_USER), "");
    assert_string_equal(line_lease(vm.line, 1, 60000), "");
    assert_int_equal(status_number(vm.line, KLP_KTAG_HOLDS), KLP_HOLD_HANDOFF);
    assert_false(guest_answers(&vm, 200));
    assert_string_equal(line_release(vm.line, KLP_HOLD_HANDOFF), "");
    assert_true(guest_answers(&vm, 5000));
    vm_exit(&vm);
}

static void test_vm_keeper__a_release_under_a_fence_waits_for_the_lease(void **state)
{
    struct vm vm;
    vm_run(&vm, *state);
    assert_string_equal(line_hold(vm.line, KLP_HOLD_USER), "");
    assert_string_equal(line_lease(vm.line, 1, 0), "");
    assert_string_equal(line_release(vm.line, KLP_HOLD_USER), "");
    assert_int_equal(answer_number(vm.line, KLP_KTAG_HOLDS), KLP_HOLD_FENCE);
    assert_true(process_wait(vm.kit, guest_pid(&vm), STANDS));
    assert_string_equal(line_lease(vm.line, 1, 60000), "");
    assert_true(guest_answers(&vm, 5000));
    vm_exit(&vm);
}

/* ---- capture and load */

static void test_vm_keeper__what_was_captured_goes_on_elsewhere(void **state)
{
    struct kit *kit = *state;
    struct vm first, second;
    struct klp_handle parts[2], base = zeros_make(kit);
    struct kelpie_error *err = NULL;
    vm_run(&first, kit);
    assert_string_equal(guest_say(&first, "@fill 8 42"), "pages=2048\n");
    assert_string_equal(line_ask(first.line, KLP_KEEPER_CAPTURE, NULL, NULL, 0), "wrong_state");
    assert_string_equal(line_hold(first.line, KLP_HOLD_SNAPSHOT), "");
    assert_string_equal(line_ask(first.line, KLP_KEEPER_CAPTURE, NULL, NULL, 0), "");
    assert_int_equal(first.line->answer.handle_count, 2);
    for (size_t i = 0; i < 2; i++)
        parts[i] = answer_take(first.line, i);
    assert_true(klp_memory_check(kit->env, parts[1], (uint64_t)GUEST_MIB * KLP_MIB, &err));
    assert_string_equal(line_release(first.line, KLP_HOLD_SNAPSHOT), "");
    assert_string_equal(guest_say(&first, "@fill 8 43"), "pages=2048\n"); /* not in the capture */
    uint64_t count = strtoull(guest_say(&first, "@count"), NULL, 10);

    vm_start_as(&second, kit, "second", NULL, NULL);
    assert_string_equal(line_ask(second.line, KLP_KEEPER_LOAD, NULL, parts, 2), "wrong_state");
    assert_string_equal(line_spawn(second.line, KLP_SPAWN_INCOMING, &base), "");
    assert_int_equal(status_number(second.line, KLP_KTAG_STATE), KLP_KEEPER_SPAWNED);
    assert_string_equal(line_spawn(second.line, KLP_SPAWN_INCOMING, &base), "wrong_state");
    assert_string_equal(line_ask(second.line, KLP_KEEPER_LOAD, NULL, NULL, 0), "protocol");
    assert_string_equal(line_ask(second.line, KLP_KEEPER_LOAD, NULL, parts, 2), "");
    line_status(second.line);
    assert_int_equal(answer_number(second.line, KLP_KTAG_STATE), KLP_KEEPER_LIVE);
    assert_int_equal(answer_number(second.line, KLP_KTAG_HOLDS), KLP_HOLD_RESTORE | KLP_HOLD_FENCE);
    assert_string_equal(line_ask(second.line, KLP_KEEPER_LOAD, NULL, parts, 2), "wrong_state");
    assert_string_equal(line_lease(second.line, 2, 60000), "");
    assert_false(guest_answers(&second, 200));
    assert_string_equal(line_release(second.line, KLP_HOLD_RESTORE), "");
    assert_string_equal(guest_say(&second, "@check"), "pages=2048 bad=0\n");
    assert_in_range(strtoull(guest_say(&second, "@count"), NULL, 10), 1, count + 5000);

    /* The base is given back; a copy of a copy is as good. */
    assert_string_equal(line_ask(second.line, KLP_KEEPER_LAYERS, NULL, NULL, 0), "");
    assert_int_equal(second.line->answer.handle_count, 1);
    assert_true(klp_memory_check(kit->env, second.line->answer.handles[0],
                                 (uint64_t)GUEST_MIB * KLP_MIB, &err));
    assert_string_equal(line_ask(first.line, KLP_KEEPER_LAYERS, NULL, NULL, 0), "not_found");
    klp_handle_close(kit->env, parts[0]);
    klp_handle_close(kit->env, parts[1]);
    klp_handle_close(kit->env, base);
    vm_exit(&first);
    vm_exit(&second);
}

static void test_vm_keeper__a_damaged_device_state_is_refused(void **state)
{
    struct kit *kit = *state;
    struct kelpie_error *err = NULL;
    struct klp_handle base = zeros_make(kit), device;
    struct vm vm;
    uint64_t sizes[] = {0, 3, 8, 256, 257, 1 << 20};
    for (size_t i = 0; i < KLP_COUNT(sizes); i++) {
        vm_start(&vm, kit);
        assert_string_equal(line_spawn(vm.line, KLP_SPAWN_INCOMING, &base), "");
        assert_true(klp_memory_create(kit->env, "device", sizes[i], &device, &err));
        assert_true(klp_memory_seal(kit->env, device, &err));
        assert_string_equal(line_ask(vm.line, KLP_KEEPER_LOAD, NULL, &device, 1), "corrupt");
        assert_int_equal(status_number(vm.line, KLP_KTAG_STATE), KLP_KEEPER_SPAWNED);
        klp_handle_close(kit->env, device);
        vm_exit(&vm);
    }
    klp_handle_close(kit->env, base);
}

static void test_vm_keeper__a_base_must_be_sealed_and_fit(void **state)
{
    struct kit *kit = *state;
    struct kelpie_error *err = NULL;
    struct klp_handle base;
    struct vm vm;
    vm_start(&vm, kit);
    assert_true(klp_memory_create(kit->env, "open", (uint64_t)GUEST_MIB * KLP_MIB, &base, &err));
    assert_string_equal(line_spawn(vm.line, KLP_SPAWN_INCOMING, &base), "corrupt");
    klp_handle_close(kit->env, base);
    assert_true(klp_memory_create(kit->env, "small", KLP_MIB, &base, &err));
    assert_true(klp_memory_seal(kit->env, base, &err));
    assert_string_equal(line_spawn(vm.line, KLP_SPAWN_INCOMING, &base), "corrupt");
    klp_handle_close(kit->env, base);
    assert_int_equal(status_number(vm.line, KLP_KTAG_STATE), KLP_KEEPER_EMPTY);
    assert_string_equal(line_spawn(vm.line, KLP_SPAWN_COLD, NULL), ""); /* nothing is spoilt */
    vm_exit(&vm);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        KIT_TEST(test_vm_keeper__begins_empty_and_fenced),
        KIT_TEST(test_vm_keeper__keeps_a_note_and_the_machine),
        KIT_TEST(test_vm_keeper__a_capture_may_be_announced_to_every_backend),
        KIT_TEST(test_vm_keeper__nothing_runs_without_a_lease),
        KIT_TEST(test_vm_keeper__the_clock_fences_without_a_daemon),
        KIT_TEST(test_vm_keeper__time_under_a_fence_is_not_the_guests),
        KIT_TEST(test_vm_keeper__a_renewal_postpones_the_fence),
        KIT_TEST(test_vm_keeper__an_older_epoch_is_denied),
        KIT_TEST(test_vm_keeper__holds_are_a_set),
        KIT_TEST(test_vm_keeper__the_fence_is_the_clocks_alone),
        KIT_TEST(test_vm_keeper__under_a_fence_nothing_new_is_held_or_captured),
        KIT_TEST(test_vm_keeper__a_hold_outlasts_a_fence),
        KIT_TEST(test_vm_keeper__a_release_under_a_fence_waits_for_the_lease),
        KIT_TEST(test_vm_keeper__what_was_captured_goes_on_elsewhere),
        KIT_TEST(test_vm_keeper__a_damaged_device_state_is_refused),
        KIT_TEST(test_vm_keeper__a_base_must_be_sealed_and_fit),
    };
    return cmocka_run_group_tests_name("vm_keeper", tests, keeper_find, NULL);
}
