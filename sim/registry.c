/* SPDX-License-Identifier: Apache-2.0 */
/* The registry of a simulation: rows in the world's memory that lose nothing, and a way to them and
 * back that takes time and on which anything is lost. What a caller sees is what a client over a
 * network sees: FAIL when there was no connection or the service refused, UNKNOWN when a change was
 * sent and no answer came, in silence or by a reset; and such a change may still be on its way. */
#include "registry/registry.h"

#include <stdlib.h>
#include <string.h>

#include "base/fmt.h"
#include "registry_rows.h"

#define PATIENCE_MS 5000 /* of a client for one answer */
#define RESET_NS (3 * KLP_MS)
#define NO_CALL SIZE_MAX

SIM_FAULT_SITE(REGISTRY_CUT)
SIM_FAULT_SITE(REGISTRY_DOWN)
SIM_FAULT_SITE(REGISTRY_SLOW)
SIM_FAULT_SITE(REGISTRY_REQUEST_LOST)
SIM_FAULT_SITE(REGISTRY_REPLY_LOST)
SIM_FAULT_SITE(REGISTRY_LATE)
SIM_FAULT_SITE(REGISTRY_RIVAL)
SIM_FAULT_SITE(WATCH_MISSED)
SIM_FAULT_SITE(WATCH_FOR_NOTHING)

struct sim_registry {
    struct klp_registry base;
    struct sim_registry_rows *rows;
};

static struct sim_registry_rows *rows_of(struct klp_registry *registry)
{
    return ((struct sim_registry *)registry)->rows;
}

/* ---- the way there and back */

enum trip {
    TRIP_FINE,
    TRIP_REFUSED, /* no connection: it cannot have happened */
    TRIP_LOST,    /* sent, and never there */
    TRIP_LATE,    /* there when nobody waits for the answer any more */
    TRIP_UNHEARD  /* there, and the answer lost */
};

static uint32_t node_of(const struct kelpie_op *op)
{
    return sim_env_from(op->env)->node;
}

/* Faults that last: a host that is cut off, one way or both, or the service down for all. */
static void cuts_draw(uint32_t node)
{
    if (fault_REGISTRY_CUT(node)) {
        uint64_t until_ns = sim_world->now_ns + sim_net_span_ns(), which = sim_fault_draw(3);
        bool refuses = sim_fault_draw(2) == 0;
        if (which != 0)
            sim_net_cut(node, SIM_NET_REGISTRY, until_ns, refuses);
        if (which != 1)
            sim_net_cut(SIM_NET_REGISTRY, node, until_ns, false);
    }
    if (fault_REGISTRY_DOWN(SIM_FAULT_NOWHERE)) {
        uint64_t until_ns = sim_world->now_ns + sim_net_span_ns();
        bool refuses = sim_fault_draw(2) == 0;
        for (uint32_t i = 0; i < SIM_NODES_MAX; i++)
            sim_net_cut(i, SIM_NET_REGISTRY, until_ns, refuses);
    }
    if (fault_REGISTRY_SLOW(node)) {
        uint64_t until_ns = sim_world->now_ns + sim_net_span_ns();
        sim_net_slow(node, SIM_NET_REGISTRY, until_ns);
        sim_net_slow(SIM_NET_REGISTRY, node, until_ns);
    }
}

static enum trip trip_draw(uint32_t node)
{
    if (!sim_world->fault.on)
        return TRIP_FINE;
    cuts_draw(node);
    if (sim_net_refuses(node, SIM_NET_REGISTRY))
        return TRIP_REFUSED;
    if (sim_net_is_cut(node, SIM_NET_REGISTRY))
        return TRIP_LOST;
    if (fault_REGISTRY_REQUEST_LOST(node))
        return sim_fault_draw(3) == 0 ? TRIP_REFUSED : TRIP_LOST;
    if (fault_REGISTRY_REPLY_LOST(node))
        return TRIP_UNHEARD;
    return TRIP_FINE;
}

/* How long a client waits for an answer, at most: for the op, and not for ever for one that may
 * have been lost. */
static struct kelpie_op patience(const struct kelpie_op *op)
{
    return klp_op_within(op, PATIENCE_MS);
}

static kelpie_outcome travel(const struct kelpie_op *op, uint32_t from, uint32_t to)
{
    return klp_sleep_until(op, klp_boot_ns(op->env) + sim_net_way_ns(from, to), NULL);
}

/* Until the client gives up: in silence, or told by a reset. */
static void wait_in_vain(const struct kelpie_op *op)
{
    uint64_t until_ns = op->deadline_ns;
    if (sim_world->fault.on && sim_net_way_ns(SIM_NET_REGISTRY, node_of(op)) % 2 == 0)
        until_ns = klp_boot_ns(op->env) + RESET_NS;
    KLP_IGNORE(klp_sleep_until(op, until_ns, NULL));
}

static kelpie_outcome refused(const struct kelpie_op *op, struct kelpie_error **err)
{
    KLP_IGNORE(travel(op, node_of(op), SIM_NET_REGISTRY));
    return klp_fail(err, KELPIE_E_UNREACHABLE, "cannot reach the registry");
}

/* A change that arrives when whoever sent it has given up, or died. */
struct late_change {
    struct sim_late late;
    struct klp_list link; /* rows->late */
    struct sim_registry_rows *rows;
    struct change change;
    uint64_t delay_ns;
};

static void late_run(void *arg)
{
    struct late_change *late = arg;
    sim_net_late_wait(&late->late, late->delay_ns);
    kelpie_outcome outcome = sim_change_apply(late->rows, &late->change, NULL);
    sim_note("late", "%s %s: %s", sim_change_name(late->change.kind), late->change.row.name,
             kelpie_is_ok(outcome) ? "done" : "refused");
    klp_list_remove(&late->link);
    klp_mem_free(late->change.row.text);
    klp_mem_free(late);
}

static void late_send(const struct kelpie_op *op, struct sim_registry_rows *rows,
                      const struct change *change, uint64_t delay_ns)
{
    struct sim_domain *before = sim_domain_enter(sim_world->world_domain);
    struct late_change *late = KLP_NEW(struct late_change);
    *late = (struct late_change){.rows = rows, .change = *change, .delay_ns = delay_ns};
    if (change->row.text != NULL)
        late->change.row.text = klp_mem_string_n(change->row.text, change->row.size);
    klp_list_append(&rows->late, &late->link);
    sim_fiber_start(sim_env_from(op->env), sim_world->world_domain, "late", late_run, late);
    sim_domain_enter(before);
}

static kelpie_outcome unheard(const struct kelpie_op *op, struct kelpie_error **err)
{
    wait_in_vain(op);
    return klp_unknown(err, "no answer from the registry");
}

/* From the caller's side: FAIL is what cannot have happened, or was refused. */
static kelpie_outcome change_send(const struct kelpie_op *op, struct sim_registry_rows *rows,
                                  const struct change *change, struct kelpie_error **err)
{
    uint32_t node = node_of(op);
    KLP_TRY(klp_op_check(op, "asking the registry", err));
    enum trip trip = trip_draw(node);
    struct kelpie_op within = patience(op);
    if (trip == TRIP_REFUSED)
        return refused(&within, err);
    if (trip == TRIP_LOST)
        return unheard(&within, err);
    if (fault_REGISTRY_LATE(node)) {
        late_send(op, rows, change, sim_net_span_ns());
        return unheard(&within, err);
    }
    uint64_t way_ns = sim_net_way_ns(node, SIM_NET_REGISTRY), start_ns = sim_world->now_ns;
    if (!kelpie_is_ok(klp_sleep_until(&within, klp_boot_ns(op->env) + way_ns, NULL))) {
        uint64_t gone_ns = sim_world->now_ns - start_ns;
        late_send(op, rows, change, gone_ns < way_ns ? way_ns - gone_ns : 1);
        return klp_unknown(err, "no answer from the registry in time");
    }
    if (change->kind == CAS && fault_REGISTRY_RIVAL(node))
        sim_rival_apply(rows, change->row.id);
    struct kelpie_error *why = NULL;
    kelpie_outcome outcome = sim_change_apply(rows, change, &why);
    bool heard = trip != TRIP_UNHEARD && !sim_net_is_cut(SIM_NET_REGISTRY, node);
    if (heard && kelpie_is_ok(travel(&within, SIM_NET_REGISTRY, node))) {
        klp_error_move(err, &why);
        return outcome;
    }
    klp_error_clear(&why);
    return heard ? klp_unknown(err, "no answer from the registry in time") : unheard(&within, err);
}

static kelpie_outcome there(const struct kelpie_op *op, enum trip trip, struct kelpie_error **err)
{
    KLP_TRY(klp_op_check(op, "asking the registry", err));
    struct kelpie_op within = patience(op);
    if (trip == TRIP_REFUSED)
        return refused(&within, err);
    if (trip == TRIP_FINE || trip == TRIP_UNHEARD) {
        if (kelpie_is_ok(travel(&within, node_of(op), SIM_NET_REGISTRY)))
            return KLP_OK;
    } else {
        wait_in_vain(&within);
    }
    KLP_TRY(klp_op_check(op, "asking the registry", err));
    return klp_fail(err, KELPIE_E_UNREACHABLE, "no answer from the registry");
}

/* Of a read: what does not come back in time has failed, and nothing has happened. */
static kelpie_outcome back(const struct kelpie_op *op, enum trip trip, struct kelpie_error **err)
{
    struct kelpie_op within = patience(op);
    bool heard = trip != TRIP_UNHEARD && !sim_net_is_cut(SIM_NET_REGISTRY, node_of(op));
    if (heard && kelpie_is_ok(travel(&within, SIM_NET_REGISTRY, node_of(op))))
        return KLP_OK;
    if (!heard)
        wait_in_vain(&within);
    KLP_TRY(klp_op_check(op, "asking the registry", err));
    return klp_fail(err, KELPIE_E_UNREACHABLE, "no answer from the registry");
}

/* ---- agents */

static kelpie_outcome change_ask(const struct kelpie_op *op, struct klp_registry *registry,
                                 enum sim_call_kind kind, struct change *change,
                                 enum klp_agent_state state, struct kelpie_error **err)
{
    struct kelpie_error *why = NULL;
    change->call = sim_net_call_begin(kind, node_of(op));
    sim_call_fill(change->call, change, state);
    kelpie_outcome outcome = change_send(op, rows_of(registry), change, &why);
    sim_net_call_end(change->call, outcome, klp_error_code(&why));
    klp_error_move(err, &why);
    return outcome;
}

static void row_of_record(const struct klp_agent_record *record, struct klp_bytes text,
                          struct row *out)
{
    *out = (struct row){.epoch = record->epoch,
                        .revision = record->revision,
                        .beat = record->beat,
                        .text = (char *)text.data,
                        .size = text.size};
    memcpy(out->id, record->id, sizeof(out->id));
    memcpy(out->name, record->name, sizeof(out->name));
    memcpy(out->owner, record->owner, sizeof(out->owner));
}

static kelpie_outcome create(const struct kelpie_op *op, struct klp_registry *registry,
                             const struct klp_agent_record *record, struct klp_bytes text,
                             struct kelpie_error **err)
{
    struct change change = {.kind = CREATE};
    row_of_record(record, text, &change.row);
    return change_ask(op, registry, SIM_CALL_CREATE, &change, record->state, err);
}

static kelpie_outcome cas(const struct kelpie_op *op, struct klp_registry *registry, const char *id,
                          uint64_t revision, uint64_t epoch, const struct klp_agent_record *next,
                          struct klp_bytes text, struct kelpie_error **err)
{
    struct change change = {.kind = CAS, .revision = revision, .epoch = epoch};
    row_of_record(next, text, &change.row);
    KLP_ASSERT(strcmp(change.row.id, id) == 0);
    return change_ask(op, registry, SIM_CALL_CAS, &change, next->state, err);
}

static kelpie_outcome renew(const struct kelpie_op *op, struct klp_registry *registry,
                            const char *id, const char *owner, uint64_t epoch,
                            struct kelpie_error **err)
{
    struct change change = {.kind = RENEW, .epoch = epoch};
    klp_text_copy(change.row.id, sizeof(change.row.id), id);
    klp_text_copy(change.row.owner, sizeof(change.row.owner), owner);
    return change_ask(op, registry, SIM_CALL_RENEW, &change, KLP_AGENT_NONE, err);
}

static kelpie_outcome remove_row(const struct kelpie_op *op, struct klp_registry *registry,
                                 const char *id, uint64_t revision, uint64_t epoch,
                                 struct kelpie_error **err)
{
    struct change change = {.kind = REMOVE, .revision = revision, .epoch = epoch};
    klp_text_copy(change.row.id, sizeof(change.row.id), id);
    return change_ask(op, registry, SIM_CALL_DELETE, &change, KLP_AGENT_NONE, err);
}

/* What is told is of the moment at which the service was asked, never older: a stale answer would
 * break klp_registry_settle, and registry.h does not permit it. */
static kelpie_outcome row_read(const struct kelpie_op *op, struct rows *rows, bool by_name,
                               const char *key, struct klp_buf *out, uint64_t *out_beat,
                               size_t call, struct kelpie_error **err)
{
    enum trip trip = trip_draw(node_of(op));
    KLP_TRY(there(op, trip, err));
    const struct row *row = sim_row_find(rows, by_name, key);
    if (row != NULL) {
        klp_buf_append(out, row->text, row->size);
        *out_beat = row->beat;
    }
    if (call != NO_CALL)
        sim_call_fill_read(call, row);
    KLP_REQUIRE(klp_buf_check(out, "a record", err));
    bool found = row != NULL; /* it may be gone when the answer has travelled */
    KLP_TRY(back(op, trip, err));
    return found ? KLP_OK : klp_fail(err, KELPIE_E_NOT_FOUND, "there is no such record");
}

static kelpie_outcome get(const struct kelpie_op *op, struct klp_registry *registry, bool by_name,
                          const char *key, struct klp_buf *out, uint64_t *out_beat,
                          struct kelpie_error **err)
{
    struct kelpie_error *why = NULL;
    size_t call = sim_net_call_begin(SIM_CALL_GET, node_of(op));
    if (!by_name)
        klp_text_copy(sim_net_call(call)->id, KLP_ID_SIZE, key);
    kelpie_outcome outcome =
        row_read(op, &rows_of(registry)->agents, by_name, key, out, out_beat, call, &why);
    sim_net_call_end(call, outcome, klp_error_code(&why));
    klp_error_move(err, &why);
    return outcome;
}

/* A copy first: `each` may ask us again. */
static kelpie_outcome rows_each(const struct kelpie_op *op, const struct rows *rows,
                                bool (*agent)(void *, struct klp_bytes, uint64_t),
                                bool (*node)(void *, struct klp_bytes), void *arg,
                                struct kelpie_error **err)
{
    enum trip trip = trip_draw(node_of(op));
    KLP_TRY(there(op, trip, err));
    size_t count = rows->count;
    struct row *copy = klp_mem_alloc((count + 1) * sizeof(*copy)); /* lost with who asks */
    for (size_t i = 0; i < count; i++) {
        copy[i] = rows->list[i];
        copy[i].text = klp_mem_string_n(rows->list[i].text, rows->list[i].size);
    }
    kelpie_outcome outcome = back(op, trip, err);
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
    return rows_each(op, &rows_of(registry)->agents, each, NULL, arg, err);
}

/* Told of a change, or, as from any service that lost count of what it told, for nothing; or not
 * told. */
static kelpie_outcome watch(const struct kelpie_op *op, struct klp_registry *registry,
                            const char *id, uint64_t revision, struct kelpie_error **err)
{
    struct sim_registry_rows *rows = rows_of(registry);
    uint32_t node = node_of(op);
    enum trip trip = trip_draw(node);
    KLP_TRY(there(op, trip, err));
    if (fault_WATCH_FOR_NOTHING(node))
        return KLP_OK;
    bool missed = trip == TRIP_UNHEARD || fault_WATCH_MISSED(node);
    for (;;) {
        const struct row *row = sim_row_find(&rows->agents, false, id);
        bool told = row == NULL || row->revision > revision;
        if (told && !missed && !sim_net_is_cut(SIM_NET_REGISTRY, node))
            return KLP_OK;
        KLP_TRY(sim_wait(op, &rows->changed, "waiting for a record to change", err));
    }
}

/* ---- nodes */

static kelpie_outcome node_put(const struct kelpie_op *op, struct klp_registry *registry,
                               const char *name, struct klp_bytes text, struct kelpie_error **err)
{
    struct change change = {.kind = NODE_PUT};
    klp_text_copy(change.row.name, sizeof(change.row.name), name);
    change.row.text = (char *)text.data;
    change.row.size = text.size;
    return change_send(op, rows_of(registry), &change, err);
}

static kelpie_outcome node_get(const struct kelpie_op *op, struct klp_registry *registry,
                               const char *name, struct klp_buf *out, struct kelpie_error **err)
{
    uint64_t beat;
    return row_read(op, &rows_of(registry)->nodes, true, name, out, &beat, NO_CALL, err);
}

static kelpie_outcome node_list(const struct kelpie_op *op, struct klp_registry *registry,
                                bool (*each)(void *, struct klp_bytes text), void *arg,
                                struct kelpie_error **err)
{
    return rows_each(op, &rows_of(registry)->nodes, NULL, each, arg, err);
}

static kelpie_outcome node_remove(const struct kelpie_op *op, struct klp_registry *registry,
                                  const char *name, struct kelpie_error **err)
{
    struct change change = {.kind = NODE_REMOVE};
    klp_text_copy(change.row.name, sizeof(change.row.name), name);
    return change_send(op, rows_of(registry), &change, err);
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
