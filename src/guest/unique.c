/* SPDX-License-Identifier: Apache-2.0 */
/* UNIQUE: the guest becomes one of a kind again, in the order of reliability-security 5: hwrng,
 * kernel random state, clock, files, keys, generation, hooks, receipt. Every item of the receipt is
 * judged by what was read back; nothing that could not be done is called done. How: identity.c and
 * renew.c. */
#include "guest/guest.h"

#include <string.h>
#include <unistd.h>

#include "base/fmt.h"

#define HOOKS "/etc/kelpie/restore.d"

void guest_item_set(struct guest_unique *unique, enum klp_unique_item item, uint16_t result,
                    const void *evidence, size_t size)
{
    struct guest_item *place = &unique->items[item];
    place->result = result;
    place->size = size < sizeof(place->evidence) ? size : sizeof(place->evidence);
    memcpy(place->evidence, evidence, place->size);
}

void guest_item_text(struct guest_unique *unique, enum klp_unique_item item, uint16_t result,
                     const char *text)
{
    guest_item_set(unique, item, result, text, strlen(text));
}

/* ---- the request */

static bool exact_bytes(struct klp_bytes body, uint16_t tag, void *out, size_t size)
{
    struct klp_bytes found;
    if (!klp_field_find(body, tag, &found) || found.size != size)
        return false;
    memcpy(out, found.data, size);
    return true;
}

static bool unique_parse(struct klp_bytes body, struct guest_unique *out, struct kelpie_error **err)
{
    struct klp_bytes found;
    uint64_t kind;
    memset(out, 0, sizeof(*out));
    KLP_CHECK(klp_field_u64(body, KLP_TAG_CASE, 0, &kind, err));
    KLP_CHECK(klp_field_u64(body, KLP_TAG_WALL_NS, 0, &out->wall_ns, err));
    if (kind < KLP_UNIQUE_MOVE || kind > KLP_UNIQUE_FORK)
        return klp_refuse(err, KELPIE_E_INVALID, "cannot make the guest unique: no such case");
    if (!exact_bytes(body, KLP_TAG_GENERATION, out->generation, sizeof(out->generation)) ||
        !exact_bytes(body, KLP_TAG_ENTROPY, out->entropy, sizeof(out->entropy)))
        return klp_refuse(err, KELPIE_E_INVALID,
                          "cannot make the guest unique: generation or entropy is missing");
    out->kind = (enum klp_unique_case)kind;
    out->has_wall = out->wall_ns != 0;
    out->has_machine_id =
        exact_bytes(body, KLP_TAG_MACHINE_ID, out->machine_id, sizeof(out->machine_id));
    out->has_boot_id = exact_bytes(body, KLP_TAG_BOOT_ID, out->boot_id, sizeof(out->boot_id));
    if (klp_field_find(body, KLP_TAG_HOSTNAME, &found) && found.size > 0)
        return guest_text_copy(found, "host name", out->hostname, sizeof(out->hostname), err);
    return true;
}

/* ---- the receipt */

static void item_append(struct klp_buf *body, unsigned item, const struct guest_item *from)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf field = KLP_BUF_INIT(KLP_KIB);
    klp_buf_append_u16(&field, (uint16_t)item);
    klp_buf_append_u16(&field, from->result);
    klp_buf_append(&field, from->evidence, from->size);
    klp_field_append(body, KLP_TAG_ITEM, field.data, field.size);
}

static void receipt_send(struct guest *g)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(8 * KLP_KIB);
    struct guest_channel *channel = g->job_channel;
    uint32_t id = channel->id;
    for (unsigned item = 1; item < KLP_ITEM_COUNT; item++) {
        if (g->unique.items[item].result == 0) /* a step forgot it: never in silence */
            guest_item_text(&g->unique, item, KLP_UNIQUE_FAILED, "not judged");
        item_append(&body, item, &g->unique.items[item]);
    }
    explicit_bzero(g->unique.entropy, sizeof(g->unique.entropy));
    guest_job_end(g);
    guest_channel_end(g, channel);
    guest_send(g, KLP_GUEST_RECEIPT, 0, id, klp_buf_view(&body));
}

static void hooks_done(struct guest *g, const char *failure)
{
    struct guest_unique *unique = &g->unique;
    char path[KLP_PATH_MAX], text[8];
    bool reseeded = g->runner.hooks_run > 0 && guest_system_path(g, "/run/kelpie/reseeded", path) &&
                    guest_file_read(path, text, sizeof(text)) >= 0;
    if (failure != NULL)
        guest_item_text(unique, KLP_ITEM_HOOKS, KLP_UNIQUE_FAILED, failure);
    else if (g->runner.hooks_run == 0)
        guest_item_text(unique, KLP_ITEM_HOOKS, KLP_UNIQUE_NOT_APPLICABLE, "");
    else
        guest_item_text(unique, KLP_ITEM_HOOKS, KLP_UNIQUE_DONE, reseeded ? "reseeded" : "");
    receipt_send(g);
}

/* What a hook said of an earlier generation. */
static void hooks_forget(const struct guest *g)
{
    char path[KLP_PATH_MAX];
    if (guest_system_path(g, HOOKS, path) && access(path, F_OK) == 0 &&
        guest_system_path(g, "/run/kelpie/reseeded", path))
        unlink(path);
}

static void hooks_begin(struct guest *g)
{
    static const char *const names[] = {"", "move", "rewind", "fork"};
    char hex[2 * GUEST_GENERATION_SIZE + 1], text[128];
    g->runner.variable_count = 0;
    klp_hex_encode(g->unique.generation, GUEST_GENERATION_SIZE, hex);
    klp_format(text, sizeof(text), "KELPIE_GENERATION=%s", hex);
    guest_runner_variable(g, text);
    klp_format(text, sizeof(text), "KELPIE_CASE=%s", names[g->unique.kind]);
    guest_runner_variable(g, text);
    hooks_forget(g);
    guest_run_hooks(g, HOOKS, hooks_done);
}

static void generation_take(struct guest *g)
{
    struct guest_unique *unique = &g->unique;
    memcpy(g->generation, unique->generation, sizeof(g->generation));
    g->has_generation = true;
    g->counter++;
    bool fine = guest_publish_generation(g);
    guest_item_set(unique, KLP_ITEM_GENERATION, fine ? KLP_UNIQUE_DONE : KLP_UNIQUE_FAILED,
                   unique->generation, sizeof(unique->generation));
    hooks_begin(g);
}

static void keys_done(struct guest *g, const char *failure)
{
    guest_unique_keys_made(g, &g->unique, failure);
    generation_take(g);
}

/* ---- the channel */

static void unique_finish(struct guest *g, struct guest_channel *channel)
{
    if (g->job != GUEST_JOB_UNIQUE || g->job_channel != channel)
        return;
    guest_runner_cancel(g); /* half unique: the host has to begin anew */
    guest_job_end(g);
}

static const struct guest_channel_ops unique_ops = {.finish = unique_finish};

void guest_unique_open(struct guest *g, uint32_t id, struct klp_bytes body)
{
    static char tool[] = "/usr/bin/ssh-keygen", all[] = "-A", below[] = "-f";
    static char *keygen[5] = {tool, all, NULL};
    static char root[KLP_PATH_MAX];
    struct kelpie_error *err = NULL;
    if (!guest_job_begin(g, GUEST_JOB_UNIQUE, id))
        return;
    g->job_channel = guest_channel_open(g, id, &unique_ops, NULL, true);
    if (g->job_channel == NULL) {
        guest_job_end(g);
        return;
    }
    if (!unique_parse(body, &g->unique, &err)) {
        guest_channel_fail(g, g->job_channel, err);
        return;
    }
    guest_unique_random(g, &g->unique);
    guest_unique_clock(g, &g->unique);
    guest_unique_identity(g, &g->unique);
    guest_unique_seeds(g, &g->unique);
    if (!guest_unique_keys(g, &g->unique)) {
        generation_take(g);
        return;
    }
    if (g->options.root != NULL && guest_system_path(g, "", root)) {
        keygen[2] = below;
        keygen[3] = root;
    }
    guest_run_program(g, keygen, keys_done);
}
