/* SPDX-License-Identifier: Apache-2.0 */
/* The keeper's logic over a hypervisor that blocks and fails as it is told: what must not wait for
 * what, and what a failure leaves behind. */
#include "keeper_kit.h"

#include <signal.h>

enum call { CALL_SPAWN, CALL_LOAD, CALL_STOP, CALL_CONT, CALL_CAPTURE, CALL_WAIT, CALL_COUNT };

struct fake {
    struct klp_hypervisor base;
    struct klp_mutex *mutex;
    struct klp_cond *changed;
    bool blocks[CALL_COUNT], fails[CALL_COUNT];
    unsigned calls[CALL_COUNT]; /* begun */
    unsigned freezes, unfreezes, kills;
    bool stopped, frozen, alive, dead;
    char order[64]; /* s stop, c cont, f freeze, u unfreeze, k kill: in the order they came */
};

struct serving {
    struct kit *kit;
    struct fake *fake;
    struct klp_task *task;
    struct klp_keeper_options options;
    struct line *line;
    kelpie_outcome outcome;
    bool ready;
};

static struct fake *fake_from(struct klp_hypervisor *base)
{
    return (struct fake *)base;
}

static void note(struct fake *fake, char letter)
{
    size_t size = strlen(fake->order);
    if (size + 1 < sizeof(fake->order))
        fake->order[size] = letter;
}

/* Blocks while it is told to, and then fails if it is told to. */
static kelpie_outcome called(const struct kelpie_op *op, struct fake *fake, enum call call,
                             struct kelpie_error **err)
{
    kelpie_outcome outcome = KLP_OK;
    klp_mutex_lock(fake->mutex);
    fake->calls[call]++;
    klp_cond_wake(fake->changed);
    while (kelpie_is_ok(outcome) && fake->blocks[call])
        outcome = klp_cond_wait(op, fake->changed, fake->mutex, err);
    bool fails = fake->fails[call];
    klp_mutex_unlock(fake->mutex);
    if (kelpie_is_ok(outcome) && fails)
        return klp_fail(err, KELPIE_E_IO, "as told");
    return outcome;
}

static kelpie_outcome fake_spawn(const struct kelpie_op *op, struct klp_hypervisor *base,
                                 enum klp_spawn_mode mode, const struct klp_machine *machine,
                                 struct klp_handle memory, const struct klp_handle *files,
                                 size_t file_count, struct kelpie_error **err)
{
    struct fake *fake = fake_from(base);
    (void)mode, (void)machine, (void)memory, (void)files, (void)file_count;
    KLP_TRY(called(op, fake, CALL_SPAWN, err));
    KLP_LOCKED (fake->mutex) {
        fake->alive = true;
    }
    return KLP_OK;
}

static kelpie_outcome fake_load(const struct kelpie_op *op, struct klp_hypervisor *base,
                                struct klp_handle device_state, const struct klp_handle *overlays,
                                size_t overlay_count, struct kelpie_error **err)
{
    (void)device_state, (void)overlays, (void)overlay_count;
    return called(op, fake_from(base), CALL_LOAD, err);
}

static kelpie_outcome fake_turn(const struct kelpie_op *op, struct fake *fake, enum call call,
                                struct kelpie_error **err)
{
    KLP_TRY(called(op, fake, call, err));
    KLP_LOCKED (fake->mutex) {
        fake->stopped = call == CALL_STOP;
        note(fake, call == CALL_STOP ? 's' : 'c');
    }
    return KLP_OK;
}

static kelpie_outcome fake_stop(const struct kelpie_op *op, struct klp_hypervisor *base,
                                struct kelpie_error **err)
{
    return fake_turn(op, fake_from(base), CALL_STOP, err);
}

static kelpie_outcome fake_cont(const struct kelpie_op *op, struct klp_hypervisor *base,
                                struct kelpie_error **err)
{
    return fake_turn(op, fake_from(base), CALL_CONT, err);
}

static void fake_freeze(struct klp_hypervisor *base)
{
    KLP_LOCKED (fake_from(base)->mutex) {
        fake_from(base)->frozen = true;
        fake_from(base)->freezes++;
        note(fake_from(base), 'f');
        klp_cond_wake(fake_from(base)->changed);
    }
}

static void fake_unfreeze(struct klp_hypervisor *base)
{
    KLP_LOCKED (fake_from(base)->mutex) {
        fake_from(base)->frozen = false;
        fake_from(base)->unfreezes++;
        note(fake_from(base), 'u');
        klp_cond_wake(fake_from(base)->changed);
    }
}

static kelpie_outcome fake_capture(const struct kelpie_op *op, struct klp_hypervisor *base,
                                   struct klp_handle *device_state, struct klp_handle *dirty,
                                   struct kelpie_error **err)
{
    KLP_TRY(called(op, fake_from(base), CALL_CAPTURE, err));
    KLP_REQUIRE(klp_memory_create(op->env, "device", 8, device_state, err));
    KLP_REQUIRE(klp_memory_create(op->env, "dirty", 4096, dirty, err));
    return KLP_OK;
}

static kelpie_outcome fake_guest(const struct kelpie_op *op, struct klp_hypervisor *base,
                                 struct klp_handle *out, struct kelpie_error **err)
{
    (void)base;
    KLP_REQUIRE(klp_memory_create(op->env, "stream", 1, out, err));
    return KLP_OK;
}

static kelpie_outcome fake_wait(const struct kelpie_op *op, struct klp_hypervisor *base,
                                struct klp_hypervisor_exit *out, struct kelpie_error **err)
{
    struct fake *fake = fake_from(base);
    KLP_TRY(called(op, fake, CALL_WAIT, err));
    klp_mutex_lock(fake->mutex);
    while (!fake->dead)
        KLP_IGNORE(klp_cond_wait(op, fake->changed, fake->mutex, NULL));
    klp_mutex_unlock(fake->mutex);
    *out = (struct klp_hypervisor_exit){.signal = 9, .reason = "as told"};
    return KLP_OK;
}

static void fake_kill(struct klp_hypervisor *base)
{
    KLP_LOCKED (fake_from(base)->mutex) {
        fake_from(base)->dead = fake_from(base)->alive;
        fake_from(base)->kills++;
        note(fake_from(base), 'k');
        klp_cond_wake(fake_from(base)->changed);
    }
}

static int64_t fake_pid(struct klp_hypervisor *base)
{
    (void)base;
    return 4242;
}

static size_t fake_console(struct klp_hypervisor *base, char *out, size_t capacity)
{
    (void)base;
    memset(out, 'c', capacity);
    return capacity;
}

static void fake_destroy(struct klp_hypervisor *base)
{
    klp_cond_destroy(fake_from(base)->changed);
    klp_mutex_destroy(fake_from(base)->mutex);
    klp_mem_free(base);
}

static const struct klp_hypervisor_ops fake_ops = {
    .name = "fake",
    .spawn = fake_spawn,
    .load = fake_load,
    .stop = fake_stop,
    .cont = fake_cont,
    .freeze = fake_freeze,
    .unfreeze = fake_unfreeze,
    .capture = fake_capture,
    .guest = fake_guest,
    .wait = fake_wait,
    .kill = fake_kill,
    .pid = fake_pid,
    .console = fake_console,
    .destroy = fake_destroy,
};

/* ---- telling it what to do, and looking at what it did */

static void fake_set(struct fake *fake, bool *flag, bool value)
{
    KLP_LOCKED (fake->mutex) {
        *flag = value;
        klp_cond_wake(fake->changed);
    }
}

static bool counted(struct fake *fake, const unsigned *count, unsigned at_least, uint64_t within_ms)
{
    struct kelpie_op op = klp_op_plain(fake->base.env, within_ms);
    kelpie_outcome outcome = KLP_OK;
    klp_mutex_lock(fake->mutex);
    while (*count < at_least && kelpie_is_ok(outcome))
        outcome = klp_cond_wait(&op, fake->changed, fake->mutex, NULL);
    bool reached = *count >= at_least;
    klp_mutex_unlock(fake->mutex);
    return reached;
}

static void ready(void *arg)
{
    *(bool *)arg = true;
}

static void serve_run(void *arg)
{
    struct serving *serving = arg;
    serving->outcome = klp_keeper_serve(serving->kit->env, &serving->options, NULL);
}

static void serve_begin(struct serving *serving, struct kit *kit)
{
    struct kelpie_error *err = NULL;
    struct fake *fake = KLP_NEW(struct fake);
    *fake = (struct fake){.base = {&fake_ops, kit->env},
                          .mutex = klp_mutex_create(kit->env),
                          .changed = klp_cond_create(kit->env)};
    *serving = (struct serving){.kit = kit, .fake = fake};
    serving->options = (struct klp_keeper_options){.vm = KEEPER_VM,
                                                   .dir = kit->dir,
                                                   .hypervisor = &fake->base,
                                                   .orphan_ms = 60000,
                                                   .pid = 77,
                                                   .ready = ready,
                                                   .ready_arg = &serving->ready};
    assert_true(klp_task_spawn(kit->env, "serve", serve_run, serving, &serving->task, &err));
    for (int i = 0; i < 1000 && access(kit->path, F_OK) == 0; i++) {
        struct kelpie_op op = klp_op_plain(kit->env, 1000);
        struct klp_chan *chan;
        if (kelpie_is_ok(klp_chan_connect(&op, kit->dir, KLP_KEEPER_SOCKET, &chan, NULL))) {
            klp_chan_close(chan);
            break;
        }
        nap(kit, 2);
    }
    serving->line = line_open(kit, kit->dir);
}

static void serve_joined(struct serving *serving)
{
    if (serving->line != NULL)
        line_close(serving->line);
    klp_task_join(serving->task);
    assert_true(kelpie_is_ok(serving->outcome));
    assert_true(serving->ready);
    fake_destroy(&serving->fake->base);
}

static void serve_end(struct serving *serving)
{
    assert_string_equal(line_ask(serving->line, KLP_KEEPER_EXIT, NULL, NULL, 0), "");
    serve_joined(serving);
}

static void serve_running(struct serving *serving, struct kit *kit)
{
    serve_begin(serving, kit);
    assert_string_equal(line_lease(serving->line, 1, 60000), "");
    assert_string_equal(line_spawn(serving->line, KLP_SPAWN_COLD, NULL), "");
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
