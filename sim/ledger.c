/* SPDX-License-Identifier: Apache-2.0 */
/* What the world writes down about its guests: lineages, when each ran, what was captured. */
#include "witness.h"

#include <stdlib.h>
#include <string.h>

#include "base/fmt.h"
#include "sim.h"

void sim_ledger_begin(struct sim_ledger *ledger)
{
    *ledger = (struct sim_ledger){.off = false};
    klp_list_init(&ledger->guests);
}

void sim_ledger_end(struct sim_ledger *ledger)
{
    free(ledger->lineages);
    free(ledger->stretches);
    free(ledger->captures);
    free(ledger->rewinds);
}

/* Room for one more at the end; grows by powers of two. */
static void *row_add(void **rows, size_t *count, size_t row_size)
{
    if ((*count & (*count - 1)) == 0) {
        *rows = realloc(*rows, (*count != 0 ? 2 * *count : 1) * row_size);
        KLP_ASSERT(*rows != NULL);
    }
    void *row = (uint8_t *)*rows + *count * row_size;
    memset(row, 0, row_size);
    (*count)++;
    return row;
}

#define ROW_ADD(rows, count) row_add((void **)&(rows), &(count), sizeof((rows)[0]))

/* ---- lineages */

struct sim_lineage *sim_lineage_find(const uint8_t machine_id[16])
{
    struct sim_ledger *ledger = &sim_world->ledger;
    for (size_t i = ledger->lineage_count; i-- > 0;)
        if (memcmp(ledger->lineages[i].machine_id, machine_id, 16) == 0)
            return &ledger->lineages[i];
    return NULL;
}

struct sim_lineage *sim_lineage_named(const char *name)
{
    struct sim_ledger *ledger = &sim_world->ledger;
    for (size_t i = ledger->lineage_count; i-- > 0;)
        if (strcmp(ledger->lineages[i].name, name) == 0)
            return &ledger->lineages[i];
    return NULL;
}

struct sim_lineage *sim_lineage_add(const struct sim_guest *guest, uint32_t parent)
{
    struct sim_ledger *ledger = &sim_world->ledger;
    struct sim_lineage *lineage = ROW_ADD(ledger->lineages, ledger->lineage_count);
    memcpy(lineage->machine_id, guest->state->machine_id, sizeof(lineage->machine_id));
    klp_text_copy(lineage->name, sizeof(lineage->name), guest->state->hostname);
    lineage->parent = parent;
    lineage->born_ns = sim_world->now_ns;
    lineage->holder = guest->number;
    return lineage;
}

uint32_t sim_lineage_number(const struct sim_lineage *lineage)
{
    return (uint32_t)(lineage - sim_world->ledger.lineages);
}

/* ---- stretches */

void sim_stretch_open(struct sim_guest *guest)
{
    struct sim_ledger *ledger = &sim_world->ledger;
    struct sim_stretch *stretch = ROW_ADD(ledger->stretches, ledger->stretch_count);
    guest->stretch = ledger->stretch_count - 1;
    *stretch = (struct sim_stretch){.lineage = guest->lineage,
                                    .guest = guest->number,
                                    .node = guest->node,
                                    .from_ns = sim_world->now_ns,
                                    .to_ns = SIM_NEVER,
                                    .from_ticks = guest->witness->ticks};
}

void sim_stretch_close(struct sim_guest *guest)
{
    struct sim_stretch *stretch = &sim_world->ledger.stretches[guest->stretch];
    stretch->to_ns = sim_world->now_ns;
    stretch->to_ticks = guest->witness->ticks;
}

/* ---- captures, and what came up from them */

struct sim_capture *sim_capture_get(uint64_t number)
{
    struct sim_ledger *ledger = &sim_world->ledger;
    return number == 0 || number > ledger->capture_count ? NULL : &ledger->captures[number - 1];
}

struct sim_capture *sim_capture_add(void)
{
    struct sim_ledger *ledger = &sim_world->ledger;
    return ROW_ADD(ledger->captures, ledger->capture_count);
}

struct sim_rewind *sim_rewind_add(void)
{
    struct sim_ledger *ledger = &sim_world->ledger;
    return ROW_ADD(ledger->rewinds, ledger->rewind_count);
}
