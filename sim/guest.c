/* SPDX-License-Identifier: Apache-2.0 */
/* The witness's program in a guest, and the ledger's questions to it. It works a tick a millisecond
 * while the workload runs; nobody counts them one by one: what they come to is computed when
 * somebody looks, so that a minute costs as much as a moment. */
#include <string.h>

#include "sim.h"

#define MAGIC 0x314e5449574d4953ull /* "SIMWITN1" */
#define TICK_NS KLP_MS
#define EFFECT_TICKS 5 /* an effect on the outside every so often */
#define CHAIN_TAG 0x636861696eull
#define PAGE_TAG 0x6b65796564ull

_Static_assert(sizeof(struct sim_witness) == (2 + SIM_WITNESS_PAGES) * SIM_PAGE_SIZE,
               "whole pages, no padding");

uint64_t sim_guest_offset(uint64_t memory_size)
{
    return memory_size / 4 & ~(uint64_t)(SIM_PAGE_SIZE - 1); /* between files and filling */
}

static uint64_t key_of(const uint8_t id[16])
{
    uint64_t words[2] = {0, 0};
    for (unsigned i = 0; i < 16; i++)
        words[i / 8] |= (uint64_t)id[i] << (8 * (i % 8));
    return sim_mix(CHAIN_TAG, words[0], words[1]);
}

static struct sim_lineage *lineage_of(const struct sim_guest *guest)
{
    return &sim_world->ledger.lineages[guest->lineage];
}

/* ---- keyed pages: tick n rewrites page n % PAGES, so each tells when it was written last */

static uint64_t page_tick(uint64_t ticks, uint64_t page)
{
    uint64_t back = (ticks + SIM_WITNESS_PAGES - page) % SIM_WITNESS_PAGES;
    return ticks >= back ? ticks - back : 0;
}

static uint64_t page_word(uint64_t key, uint64_t tick, uint64_t word)
{
    return tick == 0 ? 0 : sim_mix(PAGE_TAG ^ key, tick, word);
}

static void pages_write(struct sim_witness *witness, uint64_t key)
{
    for (uint64_t page = 0; page < SIM_WITNESS_PAGES; page++)
        for (uint64_t word = 0; word < 8; word++)
            witness->keyed[page][word] = page_word(key, page_tick(witness->ticks, page), word);
}

static bool pages_are_right(const struct sim_witness *witness, uint64_t key)
{
    bool right = true;
    for (uint64_t page = 0; page < SIM_WITNESS_PAGES; page++)
        for (uint64_t word = 0; word < 8; word++)
            right = right && witness->keyed[page][word] ==
                                 page_word(key, page_tick(witness->ticks, page), word);
    return right;
}

/* ---- work */

/* The book against the guest's own memory, each time it goes on. */
static void memory_check(const struct sim_guest *guest)
{
    const struct sim_witness *witness = guest->witness;
    const struct sim_lineage *lineage = lineage_of(guest);
    if (sim_world->ledger.off)
        return;
    if (witness->magic != MAGIC || !pages_are_right(witness, key_of(witness->machine_id)))
        sim_fail(SIM_SAFETY, "memory of %s is wrong: its pages are not those of tick %llu",
                 lineage->name, (unsigned long long)witness->ticks);
    else if (witness->effects < lineage->effects)
        sim_fail(SIM_SAFETY, "effect %llu of %s comes twice: two copies ran",
                 (unsigned long long)witness->effects + 1, lineage->name);
    else if (witness->effects > lineage->effects)
        sim_fail(SIM_SAFETY, "effects of %s are lost: %llu comes after %llu", lineage->name,
                 (unsigned long long)witness->effects + 1, (unsigned long long)lineage->effects);
    else if (witness->chain != lineage->chain || witness->ticks != lineage->ticks)
        sim_fail(SIM_SAFETY, "the chain of %s is broken at tick %llu", lineage->name,
                 (unsigned long long)witness->ticks);
}

static void work_do(struct sim_guest *guest, uint64_t ticks)
{
    struct sim_witness *witness = guest->witness;
    struct sim_lineage *lineage = lineage_of(guest);
    uint64_t key = key_of(witness->machine_id);
    memory_check(guest);
    witness->ticks += ticks;
    witness->generation_key = key_of(guest->state->generation);
    witness->chain = sim_mix(witness->chain ^ key, witness->generation_key, witness->ticks);
    witness->effects = witness->ticks / EFFECT_TICKS; /* the numbers since the last are out now */
    pages_write(witness, key);
    lineage->ticks = witness->ticks;
    lineage->chain = witness->chain;
    lineage->effects = witness->effects;
    lineage->holder = guest->number;
    lineage->holder_died = lineage->holder_gone = false;
    sim_fold(witness->chain);
}

void sim_guest_look(struct sim_guest *guest)
{
    uint64_t passed = sim_world->now_ns > guest->since_ns ? sim_world->now_ns - guest->since_ns : 0;
    guest->since_ns = sim_world->now_ns;
    if (!guest->works)
        return;
    passed += guest->witness->remainder_ns;
    guest->witness->remainder_ns = passed % TICK_NS;
    if (passed >= TICK_NS)
        work_do(guest, passed / TICK_NS);
}

/* Its host sleeps: it stands still, and does not know. */
void sim_guests_sleep(uint32_t node, uint64_t until_ns)
{
    KLP_LIST_EACH (item, &sim_world->ledger.guests) {
        struct sim_guest *guest = KLP_CONTAINER(item, struct sim_guest, link);
        if (guest->node != node)
            continue;
        sim_guest_look(guest);
        guest->since_ns = until_ns;
    }
}

/* ---- when it begins to work, and whether it may */

/* A machine id that never worked: booted, or forked from who its memory says it was. */
static void lineage_begin(struct sim_guest *guest)
{
    struct sim_witness *witness = guest->witness;
    const struct sim_lineage *parent =
        witness->magic == MAGIC ? sim_lineage_find(witness->machine_id) : NULL;
    uint32_t parent_number = parent != NULL ? sim_lineage_number(parent) : SIM_NO_LINEAGE;
    *witness = (struct sim_witness){.magic = MAGIC, .chain = CHAIN_TAG};
    memcpy(witness->machine_id, guest->state->machine_id, sizeof(witness->machine_id));
    struct sim_lineage *lineage = sim_lineage_add(guest, parent_number);
    lineage->chain = witness->chain;
    guest->lineage = sim_lineage_number(lineage);
    sim_note("lineage", "%u %s is born in guest %u", guest->lineage, lineage->name, guest->number);
}

/* What it was told when it was made unique: boot ids change when it is set back. */
static void rewind_note(struct sim_guest *guest, struct sim_lineage *lineage)
{
    const struct sim_witness *witness = guest->witness;
    struct sim_rewind *rewind = sim_rewind_add();
    *rewind = (struct sim_rewind){.lineage = guest->lineage,
                                  .guest = guest->number,
                                  .at_ns = sim_world->now_ns,
                                  .capture = guest->loaded_from,
                                  .from_ticks = lineage->ticks,
                                  .to_ticks = witness->ticks,
                                  .crashed = lineage->holder_died};
    if (!lineage->holder_gone)
        sim_fail(SIM_SAFETY, "%s is set back while guest %u, that had its work, still lives",
                 lineage->name, lineage->holder);
    lineage->rewinds++;
    lineage->lost_ticks += lineage->ticks - witness->ticks;
    lineage->ticks = witness->ticks;
    lineage->chain = witness->chain;
    lineage->effects = witness->effects;
    sim_note("rewind", "%s to tick %llu", lineage->name, (unsigned long long)witness->ticks);
}

/* Is what comes to work now where the lineage's work stands? A guest that was set back knows it:
 * its boot id is a new one. Then what it has is that of a capture. */
static void continuity_check(struct sim_guest *guest)
{
    const struct sim_witness *witness = guest->witness;
    struct sim_lineage *lineage = lineage_of(guest);
    const struct sim_capture *capture = sim_capture_get(guest->loaded_from);
    bool told = memcmp(witness->boot_id, guest->state->boot_id, sizeof(witness->boot_id)) != 0;
    if (witness->ticks == lineage->ticks && witness->chain == lineage->chain)
        return;
    if (told && capture != NULL && capture->lineage == guest->lineage &&
        capture->ticks == witness->ticks && capture->chain == witness->chain &&
        witness->ticks <= lineage->ticks)
        rewind_note(guest, lineage);
    else
        sim_fail(SIM_SAFETY,
                 "%s goes on from tick %llu on node %s, and was not told that it was set back: it "
                 "had been at tick %llu",
                 lineage->name, (unsigned long long)witness->ticks,
                 sim_world->envs[guest->node]->name, (unsigned long long)lineage->ticks);
}

/* DESIGN 2.1 and 2.5, seen from the guests themselves: a move keeps the machine's id and a copy
 * gets its own, so no two workloads that run have the same one, nor the same generation. Asked
 * whenever one begins: what held then holds until the next begins. */
static void only_copy_check(const struct sim_guest *guest)
{
    const struct mock_state *here = guest->state;
    KLP_LIST_EACH (item, &sim_world->ledger.guests) {
        const struct sim_guest *other = KLP_CONTAINER(item, struct sim_guest, link);
        if (other == guest || !other->works || other->since_ns > sim_world->now_ns)
            continue;
        const struct mock_state *there = other->state;
        if (memcmp(here->machine_id, there->machine_id, sizeof(here->machine_id)) == 0)
            sim_fail(SIM_SAFETY, "two copies of one agent run: on node %s and on node %s",
                     sim_world->envs[guest->node]->name, sim_world->envs[other->node]->name);
        else if (here->has_generation && there->has_generation &&
                 memcmp(here->generation, there->generation, sizeof(here->generation)) == 0)
            sim_fail(SIM_SAFETY, "two guests run in the same generation");
    }
}

static void work_begin(struct sim_guest *guest)
{
    struct sim_lineage *lineage = sim_lineage_find(guest->state->machine_id);
    only_copy_check(guest);
    if (lineage == NULL) {
        lineage_begin(guest);
    } else {
        guest->lineage = sim_lineage_number(lineage);
        continuity_check(guest);
    }
    memcpy(guest->witness->boot_id, guest->state->boot_id, sizeof(guest->witness->boot_id));
    lineage_of(guest)->working = guest;
    guest->works = true;
    sim_stretch_open(guest);
}

static void work_end(struct sim_guest *guest)
{
    struct sim_lineage *lineage = lineage_of(guest);
    if (lineage->working == guest)
        lineage->working = NULL;
    guest->works = false;
    sim_stretch_close(guest);
}

void sim_guest_turn(struct sim_guest *guest, bool works)
{
    sim_guest_look(guest);
    if (sim_world->ledger.off)
        return;
    bool anew = works && guest->works &&
                memcmp(guest->witness->machine_id, guest->state->machine_id, 16) != 0;
    if (guest->works && (!works || anew))
        work_end(guest);
    if (works && !guest->works)
        work_begin(guest);
}

/* ---- its life */

void sim_guest_begin(struct sim_guest *guest, uint32_t node)
{
    *guest = (struct sim_guest){
        .node = node, .number = ++sim_world->ledger.guest_count, .lineage = SIM_NO_LINEAGE};
    klp_list_append(&sim_world->ledger.guests, &guest->link);
}

void sim_guest_map(struct sim_guest *guest, uint8_t *memory, uint64_t size)
{
    guest->mapped_bytes = size;
    guest->state = (const struct mock_state *)memory;
    guest->witness = (struct sim_witness *)(memory + sim_guest_offset(size));
}

void sim_guest_end(struct sim_guest *guest, bool asked)
{
    if (guest->ended)
        return;
    guest->ended = true;
    if (guest->state != NULL)
        sim_guest_turn(guest, false);
    if (guest->lineage != SIM_NO_LINEAGE && lineage_of(guest)->holder == guest->number) {
        lineage_of(guest)->holder_gone = true;
        lineage_of(guest)->holder_died = !asked;
    }
    guest->state = NULL;
    guest->witness = NULL;
    klp_list_remove(&guest->link);
}

bool sim_guest_lives(int64_t pid)
{
    KLP_LIST_EACH (item, &sim_world->ledger.guests) {
        if (KLP_CONTAINER(item, struct sim_guest, link)->pid == pid)
            return true;
    }
    return false;
}

/* ---- what is captured and restored */

uint64_t sim_guest_captured(struct sim_guest *guest, uint64_t digest)
{
    const struct sim_witness *witness = guest->witness;
    const struct sim_lineage *lineage =
        witness->magic == MAGIC ? sim_lineage_find(witness->machine_id) : NULL;
    struct sim_capture *capture = sim_capture_add();
    *capture = (struct sim_capture){.lineage = lineage != NULL ? sim_lineage_number(lineage)
                                                               : SIM_NO_LINEAGE,
                                    .guest = guest->number,
                                    .node = guest->node,
                                    .at_ns = sim_world->now_ns,
                                    .ticks = witness->ticks,
                                    .chain = witness->chain,
                                    .effects = witness->effects,
                                    .digest = digest,
                                    .size_bytes = guest->mapped_bytes};
    return sim_world->ledger.capture_count;
}

void sim_guest_loaded(struct sim_guest *guest, uint64_t number, uint64_t digest)
{
    const struct sim_capture *capture = sim_capture_get(number);
    guest->loaded_from = number;
    if (capture == NULL)
        sim_fail(SIM_SAFETY, "a guest on node %s is restored from what nobody captured",
                 sim_world->envs[guest->node]->name);
    else if (capture->digest != digest || capture->size_bytes != guest->mapped_bytes)
        sim_fail(SIM_SAFETY, "restored memory on node %s is not that of capture %llu",
                 sim_world->envs[guest->node]->name, (unsigned long long)number);
}
