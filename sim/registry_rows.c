/* SPDX-License-Identifier: Apache-2.0 */
#include "registry_rows.h"

#include <stdlib.h>
#include <string.h>

/* ---- rows */

struct sim_registry_rows *sim_registry_rows_create(void)
{
    struct sim_registry_rows *rows = calloc(1, sizeof(*rows));
    sim_source_init(&rows->changed);
    klp_list_init(&rows->late);
    sim_world->rows = rows;
    return rows;
}

static void rows_free(struct rows *rows)
{
    for (size_t i = 0; i < rows->count; i++)
        free(rows->list[i].text);
    free(rows->list);
}

void sim_registry_rows_free(struct sim_registry_rows *rows)
{
    rows_free(&rows->agents);
    rows_free(&rows->nodes);
    free(rows);
    sim_world->rows = NULL;
}

void sim_registry_rows_destroy(struct sim_registry_rows *rows)
{
    while (!klp_list_is_empty(&rows->late)) {
        sim_net_heal();
        sim_yield();
    }
    sim_registry_rows_free(rows);
}

struct row *sim_row_find(struct rows *rows, bool by_name, const char *key)
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

/* ---- what the service does, wherever the request comes from */

/* What is noted of a change before it is sent. */
void sim_call_fill(size_t index, const struct change *change, enum klp_agent_state state)
{
    struct sim_call *call = sim_net_call(index);
    const struct row *row = &change->row;
    memcpy(call->id, row->id, sizeof(call->id));
    call->revision = change->revision;
    call->epoch = change->epoch;
    call->new_revision = row->revision;
    call->new_epoch = row->epoch;
    call->state = state;
    snprintf(call->owner, sizeof(call->owner), "%.*s", (int)sizeof(call->owner) - 1, row->owner);
}

void sim_call_fill_read(size_t index, const struct row *row)
{
    struct sim_call *call = sim_net_call(index);
    call->applied = sim_net_order();
    if (row == NULL)
        return;
    memcpy(call->id, row->id, sizeof(call->id));
    call->new_revision = row->revision;
    call->new_epoch = row->epoch;
    snprintf(call->owner, sizeof(call->owner), "%.*s", (int)sizeof(call->owner) - 1, row->owner);
}

static kelpie_outcome conflict(const struct row *row, struct kelpie_error **err)
{
    return klp_fail(err, KELPIE_E_CONFLICT, "it belongs to node '%s' at epoch %llu, revision %llu",
                    row->owner, (unsigned long long)row->epoch, (unsigned long long)row->revision);
}

static kelpie_outcome gone(enum kelpie_code code, struct kelpie_error **err)
{
    return klp_fail(err, code, "there is no such record");
}

static void changed_tell(struct sim_registry_rows *rows, const char *what, const struct row *row)
{
    sim_note("registry", "%s %s owner=%s epoch=%llu revision=%llu", what, row->name, row->owner,
             (unsigned long long)row->epoch, (unsigned long long)row->revision);
    sim_fold_bytes(row->text, row->size);
    sim_wake(&rows->changed);
}

static struct row row_copy(const struct row *from)
{
    struct row row = *from;
    row.text = NULL;
    row_text_set(&row, (struct klp_bytes){(const uint8_t *)from->text, from->size});
    return row;
}

static kelpie_outcome create_apply(struct sim_registry_rows *rows, const struct change *change,
                                   struct kelpie_error **err)
{
    if (sim_row_find(&rows->agents, true, change->row.name) != NULL ||
        sim_row_find(&rows->agents, false, change->row.id) != NULL)
        return klp_fail(err, KELPIE_E_EXISTS, "the id or the name is taken");
    struct row row = row_copy(&change->row);
    row_insert(&rows->agents, &row);
    changed_tell(rows, "create", &row);
    return KLP_OK;
}

static kelpie_outcome cas_apply(struct sim_registry_rows *rows, const struct change *change,
                                struct kelpie_error **err)
{
    struct row *row = sim_row_find(&rows->agents, false, change->row.id);
    if (row == NULL)
        return gone(KELPIE_E_NOT_FOUND, err);
    if (row->revision != change->revision || row->epoch != change->epoch)
        return conflict(row, err);
    const struct row *named = sim_row_find(&rows->agents, true, change->row.name);
    if (named != NULL && named != row)
        return klp_fail(err, KELPIE_E_EXISTS, "the name is taken");
    struct row next = row_copy(&change->row);
    next.beat = row->beat;
    row_remove(&rows->agents, row);
    row_insert(&rows->agents, &next);
    changed_tell(rows, "cas", &next);
    return KLP_OK;
}

static kelpie_outcome renew_apply(struct sim_registry_rows *rows, const struct change *change,
                                  struct kelpie_error **err)
{
    struct row *row = sim_row_find(&rows->agents, false, change->row.id);
    if (row == NULL)
        return gone(KELPIE_E_CONFLICT, err);
    if (row->epoch != change->epoch || strcmp(row->owner, change->row.owner) != 0)
        return conflict(row, err);
    row->beat++;
    return KLP_OK;
}

static kelpie_outcome remove_apply(struct sim_registry_rows *rows, const struct change *change,
                                   struct kelpie_error **err)
{
    struct row *row = sim_row_find(&rows->agents, false, change->row.id);
    if (row == NULL)
        return gone(KELPIE_E_NOT_FOUND, err);
    if (row->revision != change->revision || row->epoch != change->epoch)
        return conflict(row, err);
    changed_tell(rows, "delete", row);
    row_remove(&rows->agents, row);
    return KLP_OK;
}

static kelpie_outcome node_apply(struct sim_registry_rows *rows, const struct change *change)
{
    struct row *row = sim_row_find(&rows->nodes, true, change->row.name);
    if (row != NULL)
        row_remove(&rows->nodes, row);
    if (change->kind == NODE_PUT) {
        struct row made = row_copy(&change->row);
        row_insert(&rows->nodes, &made);
    }
    return KLP_OK;
}

kelpie_outcome sim_change_apply(struct sim_registry_rows *rows, const struct change *change,
                                struct kelpie_error **err)
{
    kelpie_outcome outcome = KLP_OK;
    switch (change->kind) {
    case CREATE:
        outcome = create_apply(rows, change, err);
        break;
    case CAS:
        outcome = cas_apply(rows, change, err);
        break;
    case RENEW:
        outcome = renew_apply(rows, change, err);
        break;
    case REMOVE:
        outcome = remove_apply(rows, change, err);
        break;
    case NODE_PUT:
    case NODE_REMOVE:
        return node_apply(rows, change);
    }
    if (kelpie_is_ok(outcome))
        sim_net_call(change->call)->applied = sim_net_order();
    return outcome;
}

void sim_rival_apply(struct sim_registry_rows *rows, const char *id)
{
    struct klp_agent_record record;
    KLP_AUTO(buf) struct klp_buf text = KLP_BUF_INIT(KLP_RECORD_SIZE_MAX);
    struct row *row = sim_row_find(&rows->agents, false, id);
    if (row == NULL ||
        !klp_agent_record_decode((struct klp_bytes){(const uint8_t *)row->text, row->size}, &record,
                                 NULL))
        return;
    struct change change = {CAS, row->revision, row->epoch, *row,
                            sim_net_call_begin(SIM_CALL_CAS, SIM_NET_REGISTRY)};
    record.revision = ++change.row.revision;
    if (klp_agent_record_encode(&record, &text, NULL)) {
        change.row.text = (char *)text.data;
        change.row.size = text.size;
        sim_call_fill(change.call, &change, record.state);
        sim_net_call_end(change.call, sim_change_apply(rows, &change, NULL), KELPIE_E_NONE);
    }
    klp_agent_record_finish(&record);
}

const char *sim_change_name(enum change_kind kind)
{
    static const char *const names[] = {"create", "cas",      "renew",
                                        "delete", "node-put", "node-remove"};
    return names[kind];
}
