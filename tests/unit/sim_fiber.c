/* SPDX-License-Identifier: Apache-2.0 */
/* Fibers without a hub: each way to switch keeps what a caller may rely on, forgets a killed fiber,
 * and uses stacks again. */
#include "base_kit.h"

#include "sim.h"

#include "fiber.h"

#define FIBERS 5
#define ROUNDS 200

static const char *const ways[] = {"asm", "ucontext", "thread"};
static struct sim world;
struct sim *sim_world = &world;
static struct sim_env host;
static struct sim_domain domain;

void sim_source_init(struct sim_source *source)
{
    klp_list_init(&source->waiters);
}

void sim_wake(struct sim_source *source)
{
    (void)source;
}

void sim_ready(struct sim_fiber *fiber)
{
    (void)fiber;
}

static enum sim_verdict failed;

void sim_fail(enum sim_verdict verdict, const char *format, ...)
{
    assert_non_null(strstr(format, "three quarters of its stack"));
    failed = verdict;
}

/* false = this machine has no such way */
static bool way_begin(const char *way)
{
    world = (struct sim){0};
    klp_list_init(&world.fibers);
    return sim_fibers_choose(way);
}

static struct sim_fiber *begin(void (*run)(void *), void *arg)
{
    return sim_fiber_start(&host, &domain, "a fiber", run, arg);
}

static void drop(struct sim_fiber *fiber)
{
    klp_list_remove(&fiber->link);
    free(fiber);
}

/* As a crash of its process does. */
static void kill_fiber(struct sim_fiber *fiber)
{
    fiber->ended = fiber->killed = true;
    sim_fiber_bury(fiber);
    drop(fiber);
}

/* More values than there are registers, whole and broken: some live in each that a callee keeps. */
static void mix_run(void *arg)
{
    uint64_t *out = arg, a = *out, b = a + 1, c = a + 2, d = a + 3, e = a + 4, f = a + 5, g = a + 6;
    double p = 0.5, q = (double)a, r = 1.0 / 3, s = 0.125, t = 1e9, u = (double)b;
    double v = 3, w = (double)c, x = 1e3, y = 7, z = 0.75;
    for (unsigned i = 0; i < ROUNDS; i++) {
        a = a * 3 + b, b ^= c << 1, c += d, d = d * 5 + e, e ^= f, f += g, g = g * 7 + a;
        p += q / 8, q = r + s, r = t / (1 + s * s), s += 0.25, t -= u, u = p / 3;
        v += w / 9, w = x - v, x += y / 2, y = z - x, z += 0.5;
        if (out[1] != 0)
            sim_fiber_switch_out();
    }
    double sum = p + q + r + s + t + u + v + w + x + y + z;
    memcpy(out, &sum, sizeof(sum));
    out[0] ^= a ^ b ^ c ^ d ^ e ^ f ^ g;
}

static void test_sim_fiber__keeps_what_the_abi_keeps(void **state)
{
    (void)state;
    for (size_t way = 0; way < KLP_COUNT(ways); way++) {
        struct sim_fiber *fibers[FIBERS];
        uint64_t values[FIBERS][2];
        if (!way_begin(ways[way]))
            continue;
        for (uint64_t i = 0; i < FIBERS; i++) {
            values[i][0] = i * 1000, values[i][1] = 1;
            fibers[i] = begin(mix_run, values[i]);
        }
        for (unsigned round = 0; round <= ROUNDS; round++)
            for (unsigned i = 0; i < FIBERS; i++)
                sim_fiber_switch_in(fibers[i]);
        for (uint64_t i = 0; i < FIBERS; i++) {
            uint64_t alone[2] = {i * 1000, 0};
            mix_run(alone);
            assert_true(fibers[i]->ended && fibers[i]->stack == NULL);
            assert_int_equal(values[i][0], alone[0]);
            drop(fibers[i]);
        }
        sim_stacks_drop();
    }
}

static bool cleaned, went_on;

static void clean(const int *scope)
{
    (void)scope;
    cleaned = true;
}

static void hurt_run(void *arg)
{
    __attribute__((cleanup(clean))) int scope = 1;
    char buffer[256];
    (void)arg;
    (void)scope;
    memset(buffer, 1, sizeof(buffer));
    sim_fiber_switch_out();
    went_on = buffer[17] != 0;
}

static void short_run(void *arg)
{
    char buffer[1024]; /* over whatever the killed one left there */
    memset(buffer, 2, sizeof(buffer));
    *(uintptr_t *)arg = (uintptr_t)__builtin_frame_address(0);
    sim_fiber_switch_out();
    *(uintptr_t *)arg += (uintptr_t)(buffer[512] - 2);
}

static void test_sim_fiber__nothing_of_a_killed_one_runs(void **state)
{
    (void)state;
    for (size_t way = 0; way < KLP_COUNT(ways); way++) {
        uintptr_t first = 0, again = 0;
        if (!way_begin(ways[way]))
            continue;
        cleaned = went_on = false;
        for (unsigned started = 0; started < 2; started++) { /* also one that never ran */
            struct sim_fiber *fiber = begin(hurt_run, NULL);
            if (started != 0)
                sim_fiber_switch_in(fiber);
            kill_fiber(fiber);
        }
        for (unsigned i = 0; i < 50; i++) { /* all on the stack of the killed one */
            struct sim_fiber *fiber = begin(short_run, i == 0 ? &first : &again);
            sim_fiber_switch_in(fiber);
            sim_fiber_switch_in(fiber);
            assert_true(fiber->ended);
            drop(fiber);
        }
        sim_stacks_drop();
        assert_false(cleaned || went_on);
        assert_true(first != 0);
#ifndef SIM_ASAN /* whose frames may lie elsewhere */
        assert_int_equal(first, again);
#endif
    }
}

static void deep_run(void *arg)
{
    volatile char room[4096];
    for (size_t i = sizeof(room); i > 0; i--)
        room[i - 1] = 1;
    size_t left = *(size_t *)arg;
    if (left > sizeof(room)) {
        left -= sizeof(room);
        deep_run(&left);
    }
    *(size_t *)arg = left + (size_t)room[0];
}

static bool is_reported(size_t deep_bytes)
{
    struct sim_fiber *fiber = begin(deep_run, &deep_bytes);
    failed = SIM_PASS;
    sim_fiber_switch_in(fiber);
    assert_true(fiber->ended);
    drop(fiber);
    return failed == SIM_ASSERTION;
}

static void test_sim_fiber__a_deep_one_is_reported(void **state)
{
    (void)state;
    for (size_t way = 0; way < KLP_COUNT(ways); way++) {
        if (!way_begin(ways[way]))
            continue;
        size_t size;
        struct sim_fiber *fiber = begin(short_run, &size);
        size = fiber->stack->size;
        kill_fiber(fiber);
        assert_false(is_reported(size / 4)); /* with red zones half as much again */
        assert_true(is_reported(size / 16 * 13));
        assert_false(is_reported(size / 4)); /* the next one is not blamed for it */
        sim_stacks_drop();
    }
}

static void test_sim_fiber__ways_are_known_by_name(void **state)
{
    (void)state;
    assert_false(sim_fibers_choose("green"));
    assert_false(sim_fibers_choose(""));
    assert_true(sim_fibers_choose("thread"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sim_fiber__keeps_what_the_abi_keeps),
        cmocka_unit_test(test_sim_fiber__nothing_of_a_killed_one_runs),
        cmocka_unit_test(test_sim_fiber__a_deep_one_is_reported),
        cmocka_unit_test(test_sim_fiber__ways_are_known_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
