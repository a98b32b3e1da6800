/* SPDX-License-Identifier: Apache-2.0 */
/* A guest agent that does not do as it should: what it says is noise, breaks off, or its receipt
 * proves nothing. The host's side takes none of it on trust (DESIGN 2.5, 2.8). */
#include "spoil.h"

#include <string.h>

#include "format/guest_frame.h"
#include "sim.h"

SIM_FAULT_SITE(GUEST_DEAF)
SIM_FAULT_SITE(GUEST_GARBAGE)
SIM_FAULT_SITE(UNIQUE_FAILS)

#define NOISE_MAX 64u
#define DEAF_SHORT_NS KLP_SECOND
#define DEAF_LONG_NS (40 * KLP_SECOND) /* past a lease */

uint64_t sim_guest_deaf_ns(uint32_t node)
{
    if (!fault_GUEST_DEAF(node))
        return 0;
    return KLP_MS + sim_fault_draw(sim_fault_draw(2) == 0 ? DEAF_SHORT_NS : DEAF_LONG_NS);
}

/* ---- receipts */

enum receipt_fault { ITEM_FAILED, ITEM_MISSING, ITEM_TWICE, EVIDENCE_WRONG, SAMPLE_REPEATED };

/* One item of a receipt, as it shall be: KLP_TAG_ITEM is which, result, evidence. */
static void item_append(struct klp_buf *out, const struct klp_field *field, enum receipt_fault how)
{
    uint8_t item[KLP_KIB];
    size_t size = field->data.size < sizeof(item) ? field->data.size : sizeof(item);
    memcpy(item, field->data.data, size);
    if (how == ITEM_MISSING)
        return;
    if (how == ITEM_FAILED)
        item[2] = KLP_UNIQUE_FAILED;
    if (how == EVIDENCE_WRONG)
        item[size - 1] ^= 0x40;
    klp_field_append(out, field->tag, item, size);
    if (how == ITEM_TWICE)
        klp_field_append(out, field->tag, item, size);
}

/* Random bytes that this node has seen already: two guests that share them look so. */
static void sample_append(struct klp_buf *out, const struct klp_field *field, uint32_t node)
{
    uint8_t item[4 + SIM_SAMPLE_SIZE] = {0};
    memcpy(item, field->data.data, 4);
    memcpy(item + 4, sim_world->ledger.samples[node], SIM_SAMPLE_SIZE);
    klp_field_append(out, field->tag, item, sizeof(item));
}

static unsigned item_of(const struct klp_field *field)
{
    return field->tag == KLP_TAG_ITEM && field->data.size > 4 ? field->data.data[0] : 0;
}

/* Generation, random state and clock are proven in every case: one of these. */
static void receipt_spoil(const struct klp_guest_frame *frame, uint32_t node, struct klp_buf *out)
{
    static const unsigned items[] = {KLP_ITEM_GENERATION, KLP_ITEM_KERNEL_RNG, KLP_ITEM_CLOCK};
    KLP_AUTO(buf) struct klp_buf fields = KLP_BUF_INIT(8 * KLP_KIB);
    enum receipt_fault how = (enum receipt_fault)sim_fault_draw(SAMPLE_REPEATED + 1);
    unsigned item = how == EVIDENCE_WRONG    ? KLP_ITEM_GENERATION
                    : how == SAMPLE_REPEATED ? KLP_ITEM_KERNEL_RNG
                                             : items[sim_fault_draw(KLP_COUNT(items))];
    struct klp_field field;
    size_t at = 0;
    while (klp_field_next(frame->body, &at, &field, NULL) > 0) {
        if (item_of(&field) != item)
            klp_field_append(&fields, field.tag, field.data.data, field.data.size);
        else if (how == SAMPLE_REPEATED && sim_world->ledger.has_sample[node])
            sample_append(&fields, &field, node);
        else
            item_append(&fields, &field, how == SAMPLE_REPEATED ? ITEM_FAILED : how);
    }
    klp_guest_frame_append(out, frame->type, frame->flags, frame->channel, klp_buf_view(&fields));
}

static void sample_note(const struct klp_guest_frame *frame, uint32_t node)
{
    struct klp_field field;
    size_t at = 0;
    while (klp_field_next(frame->body, &at, &field, NULL) > 0) {
        if (item_of(&field) != KLP_ITEM_KERNEL_RNG || field.data.size != 4 + SIM_SAMPLE_SIZE)
            continue;
        memcpy(sim_world->ledger.samples[node], field.data.data + 4, SIM_SAMPLE_SIZE);
        sim_world->ledger.has_sample[node] = true;
    }
}

static void receipts_look(struct klp_buf *said, uint32_t node)
{
    struct klp_guest_frame frame;
    int size;
    for (size_t at = 0;
         (size = klp_guest_frame_next(said->data + at, said->size - at, &frame, NULL)) > 0;
         at += (size_t)size) {
        if (frame.type != KLP_GUEST_RECEIPT)
            continue;
        if (!fault_UNIQUE_FAILS(node)) {
            sample_note(&frame, node);
            continue;
        }
        KLP_AUTO(buf) struct klp_buf spoilt = KLP_BUF_INIT(KLP_MIB);
        klp_buf_append(&spoilt, said->data, at);
        receipt_spoil(&frame, node, &spoilt);
        klp_buf_append(&spoilt, said->data + at + size, said->size - at - (size_t)size);
        klp_buf_clear(said);
        klp_buf_append(said, spoilt.data, spoilt.size);
        return; /* one at a time */
    }
}

/* ---- noise */

/* Noise before what it says, or in the place of its first half. */
static void noise_add(struct klp_buf *said)
{
    KLP_AUTO(buf) struct klp_buf noisy = KLP_BUF_INIT(KLP_MIB);
    size_t noise = 1 + (size_t)sim_fault_draw(NOISE_MAX);
    size_t cut = sim_fault_draw(2) == 0 ? 0 : said->size / 2;
    uint64_t word = sim_fault_draw(UINT64_MAX);
    for (size_t i = 0; i < noise; i++)
        klp_buf_append_u8(&noisy, (uint8_t)(sim_mix(word, i, noise) & 0xff));
    klp_buf_append(&noisy, said->data + cut, said->size - cut);
    klp_buf_clear(said);
    klp_buf_append(said, noisy.data, noisy.size);
}

void sim_guest_says(struct klp_buf *said, uint32_t node)
{
    if (!sim_world->fault.on || said->size == 0)
        return;
    receipts_look(said, node);
    if (fault_GUEST_GARBAGE(node))
        noise_add(said);
}
