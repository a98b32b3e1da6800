/* SPDX-License-Identifier: Apache-2.0 */
/* For tests of the keeper's logic: a hypervisor that blocks and fails as it is told, served in this
 * process. */
#ifndef VM_KEEPER_SERVE_KIT_H
#define VM_KEEPER_SERVE_KIT_H

#include "keeper_kit.h"

#include <signal.h>

enum call {
    CALL_SPAWN,
    CALL_LOAD,
    CALL_STOP,
    CALL_CONT,
    CALL_CAPTURE,
    CALL_WAIT,
    CALL_AHEAD,
    CALL_COUNT
};

struct fake {
    struct klp_hypervisor base;
    struct klp_mutex *mutex;
    struct klp_cond *changed;
    bool blocks[CALL_COUNT], fails[CALL_COUNT];
    unsigned calls[CALL_COUNT]; /* begun */
    unsigned freezes, unfreezes, kills, drops;
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

static inline struct fake *fake_from(struct klp_hypervisor *base)
{
    return (struct fake *)base;
}

static inline void note(struct fake *fake, char letter)
{
    size_t size = strlen(fake->order);
    if (size + 1 < sizeof(fake->order))
        fake->order[size] = letter;
}

/* Blocks while it is told to, and then fails if it is told to. */
static inline kelpie_outcome called(const struct kelpie_op *op, struct fake *fake, enum call call,
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

static inline kelpie_outcome fake_spawn(const struct kelpie_op *op, struct klp_hypervisor *base,
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

static inline kelpie_outcome fake_load(const struct kelpie_op *op, struct klp_hypervisor *base,
                                       struct klp_handle device_state,
                                       const struct klp_handle *overlays, size_t overlay_count,
                                       struct kelpie_error **err)
{
    (void)device_state, (void)overlays, (void)overlay_count;
    return called(op, fake_from(base), CALL_LOAD, err);
}

static inline kelpie_outcome fake_turn(const struct kelpie_op *op, struct fake *fake,
                                       enum call call, struct kelpie_error **err)
{
    KLP_TRY(called(op, fake, call, err));
    KLP_LOCKED (fake->mutex) {
        fake->stopped = call == CALL_STOP;
        note(fake, call == CALL_STOP ? 's' : 'c');
    }
    return KLP_OK;
}

static inline kelpie_outcome fake_stop(const struct kelpie_op *op, struct klp_hypervisor *base,
                                       struct kelpie_error **err)
{
    return fake_turn(op, fake_from(base), CALL_STOP, err);
}

static inline kelpie_outcome fake_cont(const struct kelpie_op *op, struct klp_hypervisor *base,
                                       struct kelpie_error **err)
{
    return fake_turn(op, fake_from(base), CALL_CONT, err);
}

static inline void fake_freeze(struct klp_hypervisor *base)
{
    KLP_LOCKED (fake_from(base)->mutex) {
        fake_from(base)->frozen = true;
        fake_from(base)->freezes++;
        note(fake_from(base), 'f');
        klp_cond_wake(fake_from(base)->changed);
    }
}

static inline void fake_unfreeze(struct klp_hypervisor *base)
{
    KLP_LOCKED (fake_from(base)->mutex) {
        fake_from(base)->frozen = false;
        fake_from(base)->unfreezes++;
        note(fake_from(base), 'u');
        klp_cond_wake(fake_from(base)->changed);
    }
}

static inline kelpie_outcome fake_ahead(const struct kelpie_op *op, struct klp_hypervisor *base,
                                        struct kelpie_error **err)
{
    return called(op, fake_from(base), CALL_AHEAD, err);
}

static inline void fake_ahead_drop(struct klp_hypervisor *base)
{
    KLP_LOCKED (fake_from(base)->mutex) {
        fake_from(base)->drops++;
        klp_cond_wake(fake_from(base)->changed);
    }
}

static inline kelpie_outcome fake_capture(const struct kelpie_op *op, struct klp_hypervisor *base,
                                          struct klp_handle *device_state, struct klp_handle *dirty,
                                          struct kelpie_error **err)
{
    KLP_TRY(called(op, fake_from(base), CALL_CAPTURE, err));
    KLP_REQUIRE(klp_memory_create(op->env, "device", 8, device_state, err));
    KLP_REQUIRE(klp_memory_create(op->env, "dirty", 4096, dirty, err));
    return KLP_OK;
}

static inline kelpie_outcome fake_guest(const struct kelpie_op *op, struct klp_hypervisor *base,
                                        struct klp_handle *out, struct kelpie_error **err)
{
    (void)base;
    KLP_REQUIRE(klp_memory_create(op->env, "stream", 1, out, err));
    return KLP_OK;
}

static inline kelpie_outcome fake_wait(const struct kelpie_op *op, struct klp_hypervisor *base,
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

static inline void fake_kill(struct klp_hypervisor *base)
{
    KLP_LOCKED (fake_from(base)->mutex) {
        fake_from(base)->dead = fake_from(base)->alive;
        fake_from(base)->kills++;
        note(fake_from(base), 'k');
        klp_cond_wake(fake_from(base)->changed);
    }
}

static inline int64_t fake_pid(struct klp_hypervisor *base)
{
    (void)base;
    return 4242;
}

static inline size_t fake_console(struct klp_hypervisor *base, char *out, size_t capacity)
{
    (void)base;
    memset(out, 'c', capacity);
    return capacity;
}

static inline void fake_destroy(struct klp_hypervisor *base)
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
    .ahead = fake_ahead,
    .ahead_drop = fake_ahead_drop,
    .capture = fake_capture,
    .guest = fake_guest,
    .wait = fake_wait,
    .kill = fake_kill,
    .pid = fake_pid,
    .console = fake_console,
    .destroy = fake_destroy,
};

/* ---- telling it what to do, and looking at what it did */

static inline void fake_set(struct fake *fake, bool *flag, bool value)
{
    KLP_LOCKED (fake->mutex) {
        *flag = value;
        klp_cond_wake(fake->changed);
    }
}

static inline bool counted(struct fake *fake, const unsigned *count, unsigned at_least,
                           uint64_t within_ms)
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

static inline void ready(void *arg)
{
    *(bool *)arg = true;
}

static inline void serve_run(void *arg)
{
    struct serving *serving = arg;
    serving->outcome = klp_keeper_serve(serving->kit->env, &serving->options, NULL);
}

static inline void serve_begin(struct serving *serving, struct kit *kit)
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

static inline void serve_joined(struct serving *serving)
{
    if (serving->line != NULL)
        line_close(serving->line);
    klp_task_join(serving->task);
    assert_true(kelpie_is_ok(serving->outcome));
    assert_true(serving->ready);
    fake_destroy(&serving->fake->base);
}

static inline void serve_end(struct serving *serving)
{
    assert_string_equal(line_ask(serving->line, KLP_KEEPER_EXIT, NULL, NULL, 0), "");
    serve_joined(serving);
}

static inline void serve_running(struct serving *serving, struct kit *kit)
{
    serve_begin(serving, kit);
    assert_string_equal(line_lease(serving->line, 1, 60000), "");
    assert_string_equal(line_spawn(serving->line, KLP_SPAWN_COLD, NULL), "");
}

#endif
