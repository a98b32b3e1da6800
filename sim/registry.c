/* SPDX-License-Identifier: Apache-2.0 */
/* The registry of a simulation: rows in the world's memory, and a way to them and back that takes
 * time. A change whose answer does not come back within the op ends UNKNOWN, as over a network. */
#include "registry/registry.h"

#include <stdlib.h>
#include <string.h>

#include "sim.h"

#define WAY_NS KLP_MS /* there, and again back */
#define LATENCY_TAG 0x7761792e72656779ull

struct row {
    char id[KLP_ID_SIZE], name[KLP_NAME_SIZE], owner[KLP_NAME_SIZE];
    uint64_t epoch, revision, beat;
    char *text;
    size_t size;
};

struct rows {
    struct row *list; /* sorted by name */
    size_t count, capacity;
};

struct sim_registry_rows {
    struct rows agents, nodes;
    struct sim_source changed;
    uint64_t asked;
};

struct sim_registry {
    struct klp_registry base;
    struct sim_registry_rows *rows;
};

/* ---- rows */

struct sim_registry_rows *sim_registry_rows_create(void)
{
    struct sim_registry_rows *rows = calloc(1, sizeof(*rows));
    sim_source_init(&rows->changed);
    return rows;
}

static void rows_free(struct rows *rows)
{
    for (size_t i = 0; i < rows->count; i++)
        free(rows->list[i].text);
    free(rows->list);
}

void sim_registry_rows_destroy(struct sim_registry_rows *rows)
{
    rows_free(&rows->agents);
    rows_free(&rows->nodes);
    free(rows);
}

static struct row *row_find(struct rows *rows, bool by_name, const char *key)
{
    for (size_t i = 0; i < rows->count; i++)
        if (strcmp(by_name ? rows->list[i].name : rows->list[i].id, key) == 0)
            return &rows->list[i];
    return NULL;
}

static void row_remove(struct rows *rows, struct row *row)
{
    size_t at = (size_t)(row - rows->list);
    free(row->text);
    rows->count--;
    memmove(row, row + 1, (rows->count - at) * sizeof(*row));
}

static void row_insert(struct rows *rows, const struct row *row)
{
    if (rows->count == rows->capacity) {
        rows->capacity = rows->capacity != 0 ? 2 * rows->capacity : 16;
        rows->list = realloc(rows->list, rows->capacity * sizeof(rows->list[0]));
        KLP_ASSERT(rows->list != NULL);
    }
    size_t at = rows->count++;
    for (; at > 0 && strcmp(rows->list[at - 1].name, row->name) > 0; at--)
        rows->list[at] = rows->list[at - 1];
    rows->list[at] = *row;
}

static void row_text_set(struct row *row, struct klp_bytes text)
{
    free(row->text);
    row->text = malloc(text.size + 1);
    KLP_ASSERT(row->text != NULL);
    memcpy(row->text, text.data, text.size);
    row->text[text.size] = 0;
    row->size = text.size;
}

/* ---- the way */

static struct sim_registry_rows *rows_of(struct klp_registry *registry)
{
    return ((struct sim_registry *)registry)->rows;
}

static uint64_t way_ns(struct sim_registry_rows *rows)
{
    return WAY_NS / 2 + sim_mix(sim_world->seed, LATENCY_TAG, rows->asked++) % WAY_NS;
}

/* FAIL when the op ends before the request is there. */
static kelpie_outcome way_there(const struct kelpie_op *op, struct klp_registry *registry,
                                struct kelpie_error **err)
{
    return klp_sleep_until(op, klp_boot_ns(op->env) + way_ns(rows_of(registry)), err);
}

/* After a change: it happened, or was refused, whether or not the answer comes in time. */
static kelpie_outcome way_back(const struct kelpie_op *op, struct klp_registry *registry,
                               kelpie_outcome outcome, struct kelpie_error **err)
{
    kelpie_outcome back =
        klp_sleep_until(op, klp_boot_ns(op->env) + way_ns(rows_of(registry)), NULL);
    if (kelpie_is_ok(back))
        return outcome;
    klp_error_clear(err);
    return klp_unknown(err, "no answer from the registry in time");
}

static kelpie_outcome conflict(const struct row *row, struct kelpie_error **err)
{
    return klp_fail(err, KELPIE_E_CONFLICT, "it belongs to node '%s' at epoch %llu, revision %llu",
                    row->owner, (unsigned long long)row->epoch, (unsigned long long)row->revision);
}

static void changed_tell(struct sim_registry_rows *rows, const char *what, const struct row *row)
{
    sim_note("registry", "%s %s owner=%s epoch=%llu revision=%llu", what, row->name, row->owner,
             (unsigned long long)row->epoch, (unsigned long long)row->revision);
    sim_fold_bytes(row->text, row->size);
    sim_wake(&rows->changed);
}

/* ---- agents */

static void row_take(struct row *row, const struct klp_agent_record *record, struct klp_bytes text)
{
    memcpy(row->id, record->id, sizeof(row->id));
    memcpy(row->name, record->name, sizeof(row->name));
    memcpy(row->owner, record->owner, sizeof(row->owner));
    row->epoch = record->epoch;
    row->revision = record->revision;
    row_text_set(row, text);
}

static kelpie_outcome create(const struct kelpie_op *op, struct klp_registry *registry,
                             const struct klp_agent_record *record, struct klp_bytes text,
                             struct kelpie_error **err)
{
    struct sim_registry_rows *rows = rows_of(registry);
    KLP_TRY(way_there(op, registry, err));
    kelpie_outcome outcome = KLP_OK;
    if (row_find(&rows->agents, true, record->name) != NULL ||
        row_find(&rows->agents, false, record->id) != NULL) {
        outcome = klp_fail(err, KELPIE_E_EXISTS, "the id or the name is taken");
    } else {
        struct row row = {.beat = record->beat};
        row_take(&row, record, text);
        row_insert(&rows->agents, &row);
        changed_tell(rows, "create", &row);
    }
    return way_back(op, registry, outcome, err);
}

static kelpie_outcome get(const struct kelpie_op *op, struct klp_registry *registry, bool by_name,
                          const char *key, struct klp_buf *out, uint64_t *out_beat,
                          struct kelpie_error **err)
{
    KLP_TRY(way_there(op, registry, err));
    const struct row *row = row_find(&rows_of(registry)->agents, by_name, key);
    if (row == NULL)
        return klp_fail(err, KELPIE_E_NOT_FOUND, "there is no such record");
    klp_buf_append(out, row->text, row->size);
    *out_beat = row->beat;
    KLP_REQUIRE(klp_buf_check(out, "a record", err));
    return klp_sleep_until(op, klp_boot_ns(op->env) + way_ns(rows_of(registry)), err);
}

static kelpie_outcome cas_apply(struct sim_registry_rows *rows, const char *id, uint64_t revision,
                                uint64_t epoch, const struct klp_agent_record *next,
                                struct klp_bytes text, struct kelpie_error **err)
{
    struct row *row = row_find(&rows->agents, false, id);
    if (row == NULL)
        return klp_fail(err, KELPIE_E_NOT_FOUND, "there is no such record");
    if (row->revision != revision || row->epoch != epoch)
        return conflict(row, err);
    const struct row *named = row_find(&rows->agents, true, next->name);
    if (named != NULL && named != row)
        return klp_fail(err, KELPIE_E_EXISTS, "the name is taken");
    struct row changed = *row;
    changed.text = NULL;
    row_take(&changed, next, text);
    row_remove(&rows->agents, row);
    row_insert(&rows->agents, &changed);
    changed_tell(rows, "cas", &changed);
    return KLP_OK;
}

static kelpie_outcome cas(const struct kelpie_op *op, struct klp_registry *registry, const char *id,
                          uint64_t revision, uint64_t epoch, const struct klp_agent_record *next,
                          struct klp_bytes text, struct kelpie_error **err)
{
    KLP_TRY(way_there(op, registry, err));
    kelpie_outcome outcome = cas_apply(rows_of(registry), id, revision, epoch, next, text, err);
    return way_back(op, registry, outcome, err);
}

static kelpie_outcome renew(const struct kelpie_op *op, struct klp_registry *registry,
                            const char *id, const char *owner, uint64_t epoch,
                            struct kelpie_error **err)
{
    KLP_TRY(way_there(op, registry, err));
    struct row *row = row_find(&rows_of(registry)->agents, false, id);
    kelpie_outcome outcome = KLP_OK;
    if (row == NULL)
        outcome = klp_fail(err, KELPIE_E_CONFLICT, "there is no such record");
    else if (row->epoch != epoch || strcmp(row->owner, owner) != 0)
        outcome = conflict(row, err);
    else
        row->beat++;
    return way_back(op, registry, outcome, err);
}

static kelpie_outcome remove_row(const struct kelpie_op *op, struct klp_registry *registry,
                                 const char *id, uint64_t revision, uint64_t epoch,
                                 struct kelpie_error **err)
{
    struct sim_registry_rows *rows = rows_of(registry);
    KLP_TRY(way_there(op, registry, err));
    struct row *row = row_find(&rows->agents, false, id);
    kelpie_outcome outcome = KLP_OK;
    if (row == NULL) {
        outcome = klp_fail(err, KELPIE_E_NOT_FOUND, "there is no such record");
    } else if (row->revision != revision || row->epoch != epoch) {
        outcome = conflict(row, err);
    } else {
        changed_tell(rows, "delete", row);
        row_remove(&rows->agents, row);
    }
    return way_back(op, registry, outcome, err);
}

/* A copy first: `each` may ask us again. */
static kelpie_outcome rows_each(const struct kelpie_op *op, struct klp_registry *registry,
                                const struct rows *rows,
                                bool (*agent)(void *, struct klp_bytes, uint64_t),
                                bool (*node)(void *, struct klp_bytes), void *arg,
                                struct kelpie_error **err)
{
    KLP_TRY(way_there(op, registry, err));
    size_t count = rows->count;
    struct row *copy = klp_mem_alloc((count + 1) * sizeof(*copy)); /* lost with who asks */
    for (size_t i = 0; i < count; i++) {
        copy[i] = rows->list[i];
        copy[i].text = klp_mem_string_n(rows->list[i].text, rows->list[i].size);
    }
    kelpie_outcome outcome =
        klp_sleep_until(op, klp_boot_ns(op->env) + way_ns(rows_of(registry)), err);
    bool more = kelpie_is_ok(outcome);
    for (size_t i = 0; i < count; i++) {
        struct klp_bytes text = {(const uint8_t *)copy[i].text, copy[i].size};
        more = more && (agent != NULL ? agent(arg, text, copy[i].beat) : node(arg, text));
        klp_mem_free(copy[i].text);
    }
    klp_mem_free(copy);
    return outcome;
}

static kelpie_outcome list(const struct kelpie_op *op, struct klp_registry *registry,
                           bool (*each)(void *, struct klp_bytes text, uint64_t beat), void *arg,
                           struct kelpie_error **err)
{
    return rows_each(op, registry, &rows_of(registry)->agents, each, NULL, arg, err);
}

static kelpie_outcome watch(const struct kelpie_op *op, struct klp_registry *registry,
                            const char *id, uint64_t revision, struct kelpie_error **err)
{
    struct sim_registry_rows *rows = rows_of(registry);
    KLP_TRY(way_there(op, registry, err));
    for (;;) {
        const struct row *row = row_find(&rows->agents, false, id);
        if (row == NULL || row->revision > revision)
            return KLP_OK;
        KLP_TRY(sim_wait(op, &rows->changed, "waiting for a record to change", err));
    }
}

/* ---- nodes */

static kelpie_outcome node_put(const struct kelpie_op *op, struct klp_registry *registry,
                               const char *name, struct klp_bytes text, struct kelpie_error **err)
{
    struct sim_registry_rows *rows = rows_of(registry);
    KLP_TRY(way_there(op, registry, err));
    struct row *row = row_find(&rows->nodes, true, name);
    if (row != NULL) {
        row_text_set(row, text);
    } else {
        struct row made = {.epoch = 0};
        snprintf(made.name, sizeof(made.name), "%s", name);
        row_text_set(&made, text);
        row_insert(&rows->nodes, &made);
    }
    return way_back(op, registry, KLP_OK, err);
}

static kelpie_outcome node_get(const struct kelpie_op *op, struct klp_registry *registry,
                               const char *name, struct klp_buf *out, struct kelpie_error **err)
{
    KLP_TRY(way_there(op, registry, err));
    const struct row *row = row_find(&rows_of(registry)->nodes, true, name);
    if (row == NULL)
        return klp_fail(err, KELPIE_E_NOT_FOUND, "there is no such record");
    klp_buf_append(out, row->text, row->size);
    KLP_REQUIRE(klp_buf_check(out, "a record", err));
    return klp_sleep_until(op, klp_boot_ns(op->env) + way_ns(rows_of(registry)), err);
}

static kelpie_outcome node_list(const struct kelpie_op *op, struct klp_registry *registry,
                                bool (*each)(void *, struct klp_bytes text), void *arg,
                                struct kelpie_error **err)
{
    return rows_each(op, registry, &rows_of(registry)->nodes, NULL, each, arg, err);
}

static kelpie_outcome node_remove(const struct kelpie_op *op, struct klp_registry *registry,
                                  const char *name, struct kelpie_error **err)
{
    struct sim_registry_rows *rows = rows_of(registry);
    KLP_TRY(way_there(op, registry, err));
    struct row *row = row_find(&rows->nodes, true, name);
    if (row != NULL)
        row_remove(&rows->nodes, row);
    return way_back(op, registry, KLP_OK, err);
}

static const char *registry_name(const struct klp_registry *registry)
{
    (void)registry;
    return "sim";
}

static void destroy(struct klp_registry *registry)
{
    klp_mem_free(registry);
}

static const struct klp_registry_ops registry_ops = {
    .name = registry_name,
    .create = create,
    .get = get,
    .cas = cas,
    .renew = renew,
    .remove = remove_row,
    .list = list,
    .watch = watch,
    .node_put = node_put,
    .node_get = node_get,
    .node_list = node_list,
    .node_remove = node_remove,
    .destroy = destroy,
};

struct klp_registry *sim_registry_create(struct klp_env *env, struct sim_registry_rows *rows)
{
    struct sim_registry *registry = KLP_NEW(struct sim_registry);
    *registry = (struct sim_registry){.base = {&registry_ops, env}, .rows = rows};
    return &registry->base;
}
