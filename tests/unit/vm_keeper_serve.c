/* SPDX-License-Identifier: Apache-2.0 */
/* The keeper's logic over a hypervisor that blocks and fails as it is told: what must not wait for
 * what, and what a failure leaves behind. */
#include "vm_keeper_serve_kit.h"

/* ---- what is prepared for a capture */

static const char *ahead(struct serving *serving)
{
    return line_ask(serving->line, KLP_KEEPER_AHEAD, NULL, NULL, 0);
}

static void test_vm_keeper_serve__what_was_prepared_is_kept_for_the_capture(void **state)
{
    struct serving serving;
    serve_begin(&serving, *state);
    serving.options.ahead_ms = 300;
    assert_string_equal(line_lease(serving.line, 1, 60000), "");
    assert_string_equal(ahead(&serving), "wrong_state");
    assert_string_equal(line_spawn(serving.line, KLP_SPAWN_COLD, NULL), "");
    assert_string_equal(ahead(&serving), "");
    assert_string_equal(line_hold(serving.line, KLP_HOLD_SNAPSHOT), "");
    assert_int_equal(serving.fake->drops, 0);
    assert_string_equal(line_ask(serving.line, KLP_KEEPER_CAPTURE, NULL, NULL, 0), "");
    assert_false(counted(serving.fake, &serving.fake->drops, 1, 500)); /* the capture took it */
    assert_string_equal(ahead(&serving), "");
    assert_true(counted(serving.fake, &serving.fake->drops, 1, 5000)); /* none came in time */
    assert_false(counted(serving.fake, &serving.fake->drops, 2, 100));
    fake_set(serving.fake, &serving.fake->fails[CALL_AHEAD], true);
    assert_string_equal(ahead(&serving), "io");
    assert_false(counted(serving.fake, &serving.fake->drops, 2, 500)); /* nothing was prepared */
    serve_end(&serving);
}

/* An order that is under way goes first. */
static void test_vm_keeper_serve__a_fence_and_a_death_drop_what_was_prepared(void **state)
{
    struct serving serving;
    serve_running(&serving, *state);
    assert_string_equal(ahead(&serving), "");
    assert_string_equal(line_lease(serving.line, 1, 0), "");
    assert_true(counted(serving.fake, &serving.fake->drops, 1, 5000));
    assert_string_equal(line_lease(serving.line, 1, 60000), "");
    struct line *other = line_open(serving.kit, serving.kit->dir);
    fake_set(serving.fake, &serving.fake->blocks[CALL_AHEAD], true);
    line_send(other, KLP_KEEPER_AHEAD, NULL, NULL, 0);
    assert_true(counted(serving.fake, &serving.fake->calls[CALL_AHEAD], 2, 5000));
    assert_string_equal(line_ask(serving.line, KLP_KEEPER_KILL, NULL, NULL, 0), "");
    assert_int_equal(serving.fake->drops, 1);
    fake_set(serving.fake, &serving.fake->blocks[CALL_AHEAD], false);
    assert_true(line_receive(other, 5000));
    assert_true(counted(serving.fake, &serving.fake->drops, 2, 5000));
    line_close(other);
    serve_end(&serving);
}

/* ---- what must not wait */

static void test_vm_keeper_serve__the_fence_waits_for_no_order(void **state)
{
    static const enum call blocked[] = {CALL_CAPTURE, CALL_STOP};
    for (size_t i = 0; i < KLP_COUNT(blocked); i++) {
        struct serving serving;
        serve_running(&serving, *state);
        struct line *other = line_open(serving.kit, serving.kit->dir);
        __attribute__((cleanup(klp_auto_buf))) struct klp_buf fields = KLP_BUF_INIT(64);
        klp_field_append_u64(&fields, KLP_KTAG_HOLDS, KLP_HOLD_SNAPSHOT);
        bool captures = blocked[i] == CALL_CAPTURE;
        if (captures)
            assert_string_equal(line_hold(serving.line, KLP_HOLD_SNAPSHOT), "");
        fake_set(serving.fake, &serving.fake->blocks[blocked[i]], true);
        line_send(other, captures ? KLP_KEEPER_CAPTURE : KLP_KEEPER_HOLD, &fields, NULL, 0);
        assert_true(counted(serving.fake, &serving.fake->calls[blocked[i]], 1, 5000));
        uint64_t before = klp_boot_ns(serving.kit->env);
        assert_string_equal(line_lease(serving.line, 1, 100), ""); /* answered at once */
        assert_in_range((klp_boot_ns(serving.kit->env) - before) / KLP_MS, 0, 90);
        assert_true(counted(serving.fake, &serving.fake->freezes, 1, 1000));
        line_status(serving.line);
        assert_string_equal(line_ask(serving.line, KLP_KEEPER_CONSOLE, NULL, NULL, 0), "");
        assert_string_equal(line_ask(serving.line, KLP_KEEPER_GUEST, NULL, NULL, 0), "");
        assert_string_equal(line_lease(serving.line, 1, 60000), "");
        assert_true(counted(serving.fake, &serving.fake->unfreezes, 1, 1000));
        fake_set(serving.fake, &serving.fake->blocks[blocked[i]], false);
        assert_true(line_receive(other, 5000)); /* the order itself was none the worse for it */
        assert_int_equal(other->answer.type, KLP_KEEPER_OK);
        line_close(other);
        serve_end(&serving);
    }
}

static void test_vm_keeper_serve__a_kill_waits_for_no_order(void **state)
{
    struct serving serving;
    serve_running(&serving, *state);
    struct line *other = line_open(serving.kit, serving.kit->dir);
    assert_string_equal(line_hold(serving.line, KLP_HOLD_SNAPSHOT), "");
    fake_set(serving.fake, &serving.fake->blocks[CALL_CAPTURE], true);
    line_send(other, KLP_KEEPER_CAPTURE, NULL, NULL, 0);
    assert_true(counted(serving.fake, &serving.fake->calls[CALL_CAPTURE], 1, 5000));
    assert_string_equal(line_ask(serving.line, KLP_KEEPER_KILL, NULL, NULL, 0), "");
    assert_int_equal(status_number(serving.line, KLP_KTAG_STATE), KLP_KEEPER_DEAD);
    fake_set(serving.fake, &serving.fake->blocks[CALL_CAPTURE], false);
    assert_true(line_receive(other, 5000));
    line_close(other);
    serve_end(&serving);
}

static void test_vm_keeper_serve__orders_come_one_at_a_time(void **state)
{
    struct serving serving;
    serve_running(&serving, *state);
    struct line *other = line_open(serving.kit, serving.kit->dir);
    assert_string_equal(line_hold(serving.line, KLP_HOLD_SNAPSHOT), "");
    fake_set(serving.fake, &serving.fake->blocks[CALL_CAPTURE], true);
    line_send(other, KLP_KEEPER_CAPTURE, NULL, NULL, 0);
    assert_true(counted(serving.fake, &serving.fake->calls[CALL_CAPTURE], 1, 5000));
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf fields = KLP_BUF_INIT(64);
    klp_field_append_u64(&fields, KLP_KTAG_HOLDS, KLP_HOLD_SNAPSHOT);
    line_send(serving.line, KLP_KEEPER_RELEASE, &fields, NULL, 0);
    assert_false(line_receive(serving.line, 200)); /* not while pages are being copied */
    assert_int_equal(serving.fake->calls[CALL_CONT], 0);
    fake_set(serving.fake, &serving.fake->blocks[CALL_CAPTURE], false);
    assert_true(line_receive(other, 5000));
    assert_int_equal(other->answer.type, KLP_KEEPER_OK);
    assert_true(line_receive(serving.line, 5000));
    assert_int_equal(serving.line->answer.type, KLP_KEEPER_OK);
    assert_int_equal(serving.fake->calls[CALL_CONT], 1);
    line_close(other);
    serve_end(&serving);
}

static void test_vm_keeper_serve__a_watcher_that_does_not_read_holds_nobody_up(void **state)
{
    struct serving serving;
    serve_running(&serving, *state);
    struct line *deaf = line_open(serving.kit, serving.kit->dir);
    assert_string_equal(line_ask(deaf, KLP_KEEPER_WATCH, NULL, NULL, 0), "");
    for (unsigned i = 0; i < 2000; i++) { /* far more than a socket takes */
        assert_string_equal(line_lease(serving.line, 1, 0), "");
        assert_string_equal(line_lease(serving.line, 1, 60000), "");
    }
    assert_int_equal(serving.fake->freezes, serving.fake->unfreezes);
    unsigned events = 0;
    while (line_receive(deaf, 2000))
        events++;
    assert_in_range(events, 1, 3999); /* cut off: it cannot believe it has heard all */
    line_close(deaf);
    serve_end(&serving);
}

/* ---- what a failure leaves behind */

static void test_vm_keeper_serve__a_stop_that_fails_holds_nothing(void **state)
{
    struct serving serving;
    serve_running(&serving, *state);
    fake_set(serving.fake, &serving.fake->fails[CALL_STOP], true);
    assert_string_equal(line_hold(serving.line, KLP_HOLD_USER), "io");
    assert_int_equal(status_number(serving.line, KLP_KTAG_HOLDS), 0);
    assert_string_equal(line_ask(serving.line, KLP_KEEPER_CAPTURE, NULL, NULL, 0), "wrong_state");
    fake_set(serving.fake, &serving.fake->fails[CALL_STOP], false);
    assert_string_equal(line_hold(serving.line, KLP_HOLD_USER), "");
    fake_set(serving.fake, &serving.fake->fails[CALL_CONT], true);
    assert_string_equal(line_release(serving.line, KLP_HOLD_USER), "io");
    assert_int_equal(status_number(serving.line, KLP_KTAG_HOLDS), KLP_HOLD_USER);
    assert_true(serving.fake->stopped);
    serve_end(&serving);
}

static void test_vm_keeper_serve__a_spawn_that_fails_can_be_tried_again(void **state)
{
    struct serving serving;
    serve_begin(&serving, *state);
    fake_set(serving.fake, &serving.fake->fails[CALL_SPAWN], true);
    assert_string_equal(line_spawn(serving.line, KLP_SPAWN_COLD, NULL), "io");
    assert_int_equal(status_number(serving.line, KLP_KTAG_STATE), KLP_KEEPER_EMPTY);
    assert_string_equal(line_ask(serving.line, KLP_KEEPER_KILL, NULL, NULL, 0), "");
    assert_int_equal(serving.fake->kills, 0);
    fake_set(serving.fake, &serving.fake->fails[CALL_SPAWN], false);
    assert_string_equal(line_spawn(serving.line, KLP_SPAWN_COLD, NULL), "");
    assert_int_equal(serving.fake->freezes, 1); /* nobody leased it */
    serve_end(&serving);
}

static void test_vm_keeper_serve__a_load_that_fails_leaves_it_waiting(void **state)
{
    struct serving serving;
    struct klp_handle device;
    struct kelpie_error *err = NULL;
    serve_begin(&serving, *state);
    assert_true(klp_memory_create(serving.kit->env, "device", 8, &device, &err));
    assert_string_equal(line_spawn(serving.line, KLP_SPAWN_INCOMING, NULL), "");
    fake_set(serving.fake, &serving.fake->fails[CALL_LOAD], true);
    assert_string_equal(line_ask(serving.line, KLP_KEEPER_LOAD, NULL, &device, 1), "io");
    assert_int_equal(status_number(serving.line, KLP_KTAG_STATE), KLP_KEEPER_SPAWNED);
    assert_string_equal(line_hold(serving.line, KLP_HOLD_USER), "wrong_state");
    assert_int_equal(serving.fake->freezes, 0); /* a process that waits to be loaded must run */
    fake_set(serving.fake, &serving.fake->fails[CALL_LOAD], false);
    assert_string_equal(line_ask(serving.line, KLP_KEEPER_LOAD, NULL, &device, 1), "");
    assert_int_equal(serving.fake->freezes, 1);
    klp_handle_close(serving.kit->env, device);
    serve_end(&serving);
}

static void test_vm_keeper_serve__a_lease_lets_go_what_was_released(void **state)
{
    struct serving serving;
    serve_running(&serving, *state);
    assert_string_equal(line_hold(serving.line, KLP_HOLD_USER), "");
    assert_string_equal(line_lease(serving.line, 1, 0), "");
    assert_string_equal(line_release(serving.line, KLP_HOLD_USER), "");
    assert_string_equal(serving.fake->order, "sf"); /* a frozen process takes no orders */
    fake_set(serving.fake, &serving.fake->fails[CALL_CONT], true);
    assert_string_equal(line_lease(serving.line, 1, 60000), "io");
    assert_int_equal(status_number(serving.line, KLP_KTAG_HOLDS), 0);
    fake_set(serving.fake, &serving.fake->fails[CALL_CONT], false);
    assert_string_equal(line_lease(serving.line, 1, 60000), ""); /* a renewal mends it */
    assert_string_equal(serving.fake->order, "sfuc");
    assert_string_equal(line_lease(serving.line, 1, 60000), "");
    assert_string_equal(serving.fake->order, "sfuc");
    serve_end(&serving);
}

static void test_vm_keeper_serve__released_and_held_again_it_never_ran(void **state)
{
    struct serving serving;
    serve_running(&serving, *state);
    assert_string_equal(line_hold(serving.line, KLP_HOLD_HANDOFF), "");
    assert_string_equal(line_lease(serving.line, 1, 0), "");
    assert_string_equal(line_release(serving.line, KLP_HOLD_HANDOFF), "");
    assert_string_equal(line_hold(serving.line, KLP_HOLD_USER), "");
    assert_string_equal(line_lease(serving.line, 1, 60000), "");
    assert_string_equal(serving.fake->order, "sfu");
    assert_int_equal(status_number(serving.line, KLP_KTAG_HOLDS), KLP_HOLD_USER);
    serve_end(&serving);
}

/* ---- ends */

static void test_vm_keeper_serve__nothing_starts_after_an_exit(void **state)
{
    struct serving serving;
    serve_begin(&serving, *state);
    struct line *other = line_open(serving.kit, serving.kit->dir);
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf fields = KLP_BUF_INIT(32 * 1024);
    spawn_fields(&fields, KLP_SPAWN_COLD);
    fake_set(serving.fake, &serving.fake->blocks[CALL_SPAWN], true);
    line_send(other, KLP_KEEPER_SPAWN, &fields, NULL, 0);
    assert_true(counted(serving.fake, &serving.fake->calls[CALL_SPAWN], 1, 5000));
    line_send(serving.line, KLP_KEEPER_EXIT, NULL, NULL, 0);
    assert_false(line_receive(serving.line, 200)); /* it knows that one is on its way */
    fake_set(serving.fake, &serving.fake->blocks[CALL_SPAWN], false);
    assert_true(line_receive(serving.line, 5000));
    assert_int_equal(serving.line->answer.type, KLP_KEEPER_OK);
    assert_true(counted(serving.fake, &serving.fake->kills, 1, 0));
    line_close(other);
    serve_joined(&serving);
}

static void test_vm_keeper_serve__an_exit_empties_the_folder_before_its_answer(void **state)
{
    struct serving serving;
    struct kelpie_error *err = NULL;
    struct klp_dir *sub;
    serve_running(&serving, *state);
    assert_true(klp_file_write_all(serving.kit->dir, "keeper.log", "x", 1, &err));
    assert_true(klp_dir_open_at(serving.kit->dir, "folder", true, &sub, &err));
    assert_true(klp_file_write_all(sub, "inside", "x", 1, &err));
    klp_dir_close(sub);
    assert_string_equal(line_ask(serving.line, KLP_KEEPER_EXIT, NULL, NULL, 0), "");
    assert_int_equal(rmdir(serving.kit->path), 0); /* empty: or this would fail */
    assert_int_equal(mkdir(serving.kit->path, 0700), 0);
    char path[128];
    snprintf(path, sizeof(path), "%s/keeper", serving.kit->path);
    int fd = open(path, O_WRONLY | O_CREAT, 0600); /* the next one's: the old one leaves it alone */
    close(fd);
    serve_joined(&serving);
    assert_int_equal(access(path, F_OK), 0);
}

static void test_vm_keeper_serve__a_death_nobody_can_watch_is_still_a_death(void **state)
{
    struct serving serving;
    serve_begin(&serving, *state);
    struct line *watch = line_open(serving.kit, serving.kit->dir);
    assert_string_equal(line_ask(watch, KLP_KEEPER_WATCH, NULL, NULL, 0), "");
    fake_set(serving.fake, &serving.fake->fails[CALL_WAIT], true);
    assert_string_equal(line_spawn(serving.line, KLP_SPAWN_COLD, NULL), "");
    assert_true(event_wait(watch, KLP_KEEPER_DEAD, false));
    assert_string_equal(answer_text(watch, KLP_KTAG_REASON),
                        "the hypervisor could not be waited for");
    line_close(watch);
    serve_end(&serving);
}

static void test_vm_keeper_serve__two_cannot_listen_in_one_folder(void **state)
{
    struct serving serving;
    struct kelpie_error *err = NULL;
    serve_running(&serving, *state);
    struct klp_keeper_options second = serving.options;
    bool is_ready = false;
    second.ready_arg = &is_ready;
    assert_false(kelpie_is_ok(klp_keeper_serve(serving.kit->env, &second, &err)));
    assert_int_equal(kelpie_error_code(err), KELPIE_E_EXISTS);
    kelpie_error_free(err);
    assert_false(is_ready);
    struct line *again = line_open(serving.kit, serving.kit->dir); /* the first is untouched */
    line_status(again);
    line_close(again);
    assert_int_equal(serving.fake->kills, 0);
    serve_end(&serving);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        KIT_TEST(test_vm_keeper_serve__what_was_prepared_is_kept_for_the_capture),
        KIT_TEST(test_vm_keeper_serve__a_fence_and_a_death_drop_what_was_prepared),
        KIT_TEST(test_vm_keeper_serve__the_fence_waits_for_no_order),
        KIT_TEST(test_vm_keeper_serve__a_kill_waits_for_no_order),
        KIT_TEST(test_vm_keeper_serve__orders_come_one_at_a_time),
        KIT_TEST(test_vm_keeper_serve__a_watcher_that_does_not_read_holds_nobody_up),
        KIT_TEST(test_vm_keeper_serve__a_stop_that_fails_holds_nothing),
        KIT_TEST(test_vm_keeper_serve__a_spawn_that_fails_can_be_tried_again),
        KIT_TEST(test_vm_keeper_serve__a_load_that_fails_leaves_it_waiting),
        KIT_TEST(test_vm_keeper_serve__a_lease_lets_go_what_was_released),
        KIT_TEST(test_vm_keeper_serve__released_and_held_again_it_never_ran),
        KIT_TEST(test_vm_keeper_serve__nothing_starts_after_an_exit),
        KIT_TEST(test_vm_keeper_serve__an_exit_empties_the_folder_before_its_answer),
        KIT_TEST(test_vm_keeper_serve__a_death_nobody_can_watch_is_still_a_death),
        KIT_TEST(test_vm_keeper_serve__two_cannot_listen_in_one_folder),
    };
    return cmocka_run_group_tests_name("vm_keeper_serve", tests, NULL, NULL);
}
