/* SPDX-License-Identifier: Apache-2.0 */
/* What the registry's service of a simulation holds and does; the way to it: registry.c. */
#ifndef SIM_REGISTRY_ROWS_H
#define SIM_REGISTRY_ROWS_H

#include "sim.h"

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
    struct klp_list late; /* changes on their way that nobody waits for */
};

enum change_kind { CREATE, CAS, RENEW, REMOVE, NODE_PUT, NODE_REMOVE };
struct change {
    enum change_kind kind;
    uint64_t revision, epoch; /* expected */
    struct row row;           /* what is written, or whose it is; the text is borrowed */
    size_t call;              /* what is noted of it; agents only */
};

/* NULL = none */
struct row *sim_row_find(struct rows *rows, bool by_name, const char *key);
kelpie_outcome sim_change_apply(struct sim_registry_rows *rows, const struct change *change,
                                struct kelpie_error **err);
/* Somebody else is there first with a change that means nothing: another node that settles, an
 * operator. */
void sim_rival_apply(struct sim_registry_rows *rows, const char *id);
const char *sim_change_name(enum change_kind kind);
/* What is noted of a change before it is sent; of a reading: row, or NULL. */
void sim_call_fill(size_t index, const struct change *change, enum klp_agent_state state);
void sim_call_fill_read(size_t index, const struct row *row);

#endif
