/* SPDX-License-Identifier: Apache-2.0 */
/* The smallest scenario (--store-only): fibers of two hosts race for one record and share one
 * store. */
#include <string.h>

#include "base/fmt.h"
#include "sim.h"
#include "store/local/local.h"

#define RACERS 4
#define TURNS 8
#define OP_MS 60000

struct racer {
    struct klp_env *env;
    struct klp_registry *registry;
    struct klp_store *store;
    unsigned index, won;
};

/* One step of the record, as often as it takes. */
static kelpie_outcome turn(const struct kelpie_op *op, struct racer *racer,
                           struct kelpie_error **err)
{
    for (;;) {
        struct klp_agent_record record;
        struct kelpie_error *why = NULL;
        KLP_TRY(klp_registry_find(op, racer->registry, "raced", &record, err));
        record.epoch++;
        struct klp_agent_record expected = record;
        expected.epoch--;
        kelpie_outcome outcome = klp_registry_cas(op, racer->registry, &expected, &record, &why);
        klp_agent_record_finish(&record);
        if (kelpie_is_ok(outcome) || kelpie_error_code(why) != KELPIE_E_CONFLICT) {
            klp_error_move(err, &why);
            return outcome;
        }
        klp_error_clear(&why);
    }
}

static kelpie_outcome object_turn(const struct kelpie_op *op, struct racer *racer, unsigned number,
                                  struct kelpie_error **err)
{
    char text[64];
    struct klp_digest digest;
    KLP_AUTO(buf) struct klp_buf back = KLP_BUF_INIT(sizeof(text));
    klp_format(text, sizeof(text), "object %u", number % 3); /* the same by several at once */
    KLP_TRY(klp_store_put(op, racer->store, KLP_OBJECT_BLOB, text, strlen(text), &digest, err));
    KLP_TRY(klp_store_get(op, racer->store, KLP_OBJECT_BLOB, &digest, &back, err));
    if (strcmp(klp_buf_text(&back), text) != 0)
        sim_fail(SIM_SAFETY, "an object came back as another");
    return KLP_OK;
}

static void race(void *arg)
{
    struct racer *racer = arg;
    struct kelpie_op op = klp_op_plain(racer->env, OP_MS);
    KLP_AUTO(kelpie_error) struct kelpie_error *error = NULL;
    for (unsigned i = 0; i < TURNS; i++) {
        if (!kelpie_is_ok(turn(&op, racer, &error)) ||
            !kelpie_is_ok(object_turn(&op, racer, racer->index + i, &error))) {
            sim_fail(SIM_LIVENESS, "a turn failed: %s", kelpie_error_message(error));
            return;
        }
        racer->won++;
    }
}

static kelpie_outcome race_all(const struct kelpie_op *op, struct racer *racers,
                               struct kelpie_error **err)
{
    struct klp_task *tasks[RACERS];
    struct klp_agent_record record = {
        .state = KLP_AGENT_CREATED, .arch = KLP_ARCH_X86_64, .epoch = 1};
    klp_random_id(op->env, record.id);
    klp_text_copy(record.name, sizeof(record.name), "raced");
    klp_text_copy(record.owner, sizeof(record.owner), "a");
    KLP_TRY(klp_registry_create(op, racers[0].registry, &record, err));
    for (unsigned i = 0; i < RACERS; i++)
        KLP_REQUIRE(klp_task_spawn(racers[i].env, "racer", race, &racers[i], &tasks[i], err));
    for (unsigned i = 0; i < RACERS; i++)
        klp_task_join(tasks[i]);
    KLP_TRY(klp_registry_find(op, racers[0].registry, "raced", &record, err));
    if (record.epoch != 1 + RACERS * TURNS)
        sim_fail(SIM_SAFETY, "%d changes came to epoch %llu", RACERS * TURNS,
                 (unsigned long long)record.epoch);
    klp_agent_record_finish(&record);
    return KLP_OK;
}

void sim_scenario_store(void *arg)
{
    struct racer racers[RACERS];
    struct sim_registry_rows *rows = sim_registry_rows_create();
    KLP_AUTO(kelpie_error) struct kelpie_error *error = NULL;
    struct kelpie_op op = klp_op_plain(&sim_world->envs[0]->base, OP_MS);
    kelpie_outcome outcome = KLP_OK;
    (void)arg;
    for (unsigned i = 0; i < RACERS; i++) {
        struct klp_env *env = &sim_world->envs[i % 2]->base;
        racers[i] =
            (struct racer){.env = env, .registry = sim_registry_create(env, rows), .index = i};
        if (!klp_store_local_create(env, "/shared/store", &racers[i].store, &error))
            outcome.kind = KELPIE_FAIL;
    }
    if (kelpie_is_ok(outcome))
        outcome = race_all(&op, racers, &error);
    if (!kelpie_is_ok(outcome))
        sim_fail(SIM_LIVENESS, "%s", kelpie_error_message(error));
    for (unsigned i = 0; i < RACERS; i++) {
        klp_registry_destroy(racers[i].registry);
        klp_store_destroy(racers[i].store);
    }
    sim_registry_rows_destroy(rows);
}
