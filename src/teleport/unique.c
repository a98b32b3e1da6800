/* SPDX-License-Identifier: Apache-2.0 */
/* Making a restored guest unique again, and the proof (reliability-security 5). Fails closed:
 * whatever is missing, false or seen before is a failure of the whole restore. */
#include <string.h>

#include "base/ext/sha256.h"
#include "base/fmt.h"
#include "teleport/teleport.h"

#define SAMPLES_MAX 4096 /* of kernel randomness this node remembers */
#define CLOCK_SLACK_NS (250 * KLP_MS)
#define EXCHANGE_MAX_NS (50 * KLP_MS) /* a clock this late is right enough */
#define EXCHANGES_MAX 4

struct klp_samples {
    struct klp_mutex *mutex;
    size_t count, next;
    struct klp_digest digests[SAMPLES_MAX];
};

struct klp_samples *klp_samples_create(struct klp_env *env)
{
    struct klp_samples *samples = klp_mem_alloc_raw(sizeof(*samples)); /* 128 KiB, mostly unused */
    samples->mutex = klp_mutex_create(env);
    samples->count = samples->next = 0;
    return samples;
}

void klp_samples_destroy(struct klp_samples *samples)
{
    if (samples == NULL)
        return;
    klp_mutex_destroy(samples->mutex);
    klp_mem_free(samples);
}

/* False when this sample was seen before: two guests share their random state. */
static bool sample_add(struct klp_samples *samples, const void *bytes, size_t size)
{
    struct klp_digest digest;
    bool is_new = true;
    klp_sha256_once(bytes, size, &digest);
    KLP_LOCKED (samples->mutex) {
        for (size_t i = 0; is_new && i < samples->count; i++)
            is_new = !klp_digest_equal(&samples->digests[i], &digest);
        if (is_new) {
            samples->digests[samples->next] = digest;
            samples->next = (samples->next + 1) % SAMPLES_MAX;
            if (samples->count < SAMPLES_MAX)
                samples->count++;
        }
    }
    return is_new;
}

static const char *const item_names[KLP_ITEM_COUNT] = {
    [KLP_ITEM_GENERATION] = "generation", [KLP_ITEM_KERNEL_RNG] = "kernel_rng",
    [KLP_ITEM_HWRNG] = "hwrng",           [KLP_ITEM_CLOCK] = "clock",
    [KLP_ITEM_MACHINE_ID] = "machine_id", [KLP_ITEM_BOOT_ID] = "boot_id",
    [KLP_ITEM_HOSTNAME] = "hostname",     [KLP_ITEM_SEED_FILES] = "seed_files",
    [KLP_ITEM_SSH_KEYS] = "ssh_keys",     [KLP_ITEM_HOOKS] = "hooks",
};

/* The case table: must this item be done, or may it be not applicable? */
static bool item_is_required(enum klp_unique_case which, enum klp_unique_item item)
{
    switch (item) {
    case KLP_ITEM_GENERATION:
    case KLP_ITEM_KERNEL_RNG:
    case KLP_ITEM_CLOCK:
        return true;
    case KLP_ITEM_MACHINE_ID:
    case KLP_ITEM_HOSTNAME:
        return which == KLP_UNIQUE_FORK;
    case KLP_ITEM_BOOT_ID:
        return which != KLP_UNIQUE_MOVE;
    default:
        return false;
    }
}

static bool evidence_is(const struct klp_unique_receipt *receipt, enum klp_unique_item item,
                        const void *expected, size_t size)
{
    return receipt->items[item].evidence_size == size &&
           memcmp(receipt->items[item].evidence, expected, size) == 0;
}

static bool clock_is_right(const struct klp_unique_request *request,
                           const struct klp_unique_receipt *receipt)
{
    struct klp_reader reader = {receipt->items[KLP_ITEM_CLOCK].evidence,
                                receipt->items[KLP_ITEM_CLOCK].evidence_size, 0, false};
    int64_t told = (int64_t)klp_read_u64(&reader);
    int64_t off = told - request->wall_ns;
    return !reader.failed && off > -(int64_t)CLOCK_SLACK_NS && off < (int64_t)CLOCK_SLACK_NS;
}

static bool evidence_is_good(const struct klp_unique_request *request,
                             const struct klp_unique_receipt *receipt, enum klp_unique_item item)
{
    switch (item) {
    case KLP_ITEM_GENERATION:
        return evidence_is(receipt, item, request->generation, sizeof(request->generation));
    case KLP_ITEM_KERNEL_RNG:
        return receipt->items[item].evidence_size >= 32;
    case KLP_ITEM_CLOCK:
        return clock_is_right(request, receipt);
    case KLP_ITEM_MACHINE_ID:
        return evidence_is(receipt, item, request->machine_id, sizeof(request->machine_id));
    case KLP_ITEM_BOOT_ID:
        return evidence_is(receipt, item, request->boot_id, sizeof(request->boot_id));
    case KLP_ITEM_HOSTNAME:
        return evidence_is(receipt, item, request->hostname, strlen(request->hostname));
    default:
        return true;
    }
}

bool klp_receipt_check(const struct klp_unique_request *request,
                       const struct klp_unique_receipt *receipt, struct kelpie_error **err)
{
    struct kelpie_error *faults = NULL;
    KLP_IGNORE(klp_refuse(&faults, KELPIE_E_CORRUPT, "the guest could not be made unique"));
    if (receipt->duplicate)
        klp_error_reason_add(&faults, "an item came twice");
    for (int item = KLP_ITEM_GENERATION; item < KLP_ITEM_COUNT; item++) {
        uint16_t result = receipt->items[item].result;
        bool required = item_is_required(request->which, (enum klp_unique_item)item);
        if (result == 0)
            klp_error_reason_add(&faults, "%s: missing from the receipt", item_names[item]);
        else if (result == KLP_UNIQUE_FAILED)
            klp_error_reason_add(&faults, "%s: failed", item_names[item]);
        else if (result == KLP_UNIQUE_NOT_APPLICABLE && required)
            klp_error_reason_add(&faults, "%s: not done", item_names[item]);
        else if (result == KLP_UNIQUE_DONE && required &&
                 !evidence_is_good(request, receipt, (enum klp_unique_item)item))
            klp_error_reason_add(&faults, "%s: the evidence is wrong", item_names[item]);
    }
    if (kelpie_error_reason_count(faults) == 0) {
        klp_error_clear(&faults);
        return true;
    }
    klp_error_move(err, &faults);
    return false;
}

static void request_draw(struct klp_env *env, enum klp_unique_case which, const char *hostname,
                         struct klp_unique_request *out)
{
    *out = (struct klp_unique_request){.which = which};
    klp_random(env, out->generation, sizeof(out->generation));
    klp_random(env, out->entropy, sizeof(out->entropy));
    klp_random(env, out->machine_id, sizeof(out->machine_id));
    klp_random(env, out->boot_id, sizeof(out->boot_id));
    klp_text_copy(out->hostname, sizeof(out->hostname), hostname);
    out->wall_ns = klp_wall_ns(env);
}

/* The clock was told on the way, so it is late by at most the time of the whole exchange. Where
 * keys were made or hooks ran that says nothing, and neither is for doing twice. */
static bool clock_was_prompt(const struct klp_unique_receipt *receipt, uint64_t took_ns)
{
    return took_ns <= EXCHANGE_MAX_NS ||
           receipt->items[KLP_ITEM_SSH_KEYS].result == KLP_UNIQUE_DONE ||
           receipt->items[KLP_ITEM_HOOKS].result == KLP_UNIQUE_DONE;
}

/* A busy host can hold the guest up before it sets its clock: then it is made unique once more, on
 * paths that are warm now. */
static kelpie_outcome exchange(const struct kelpie_op *op, struct klp_guest *guest,
                               enum klp_unique_case which, const char *hostname,
                               struct klp_unique_request *request,
                               struct klp_unique_receipt *receipt, struct kelpie_error **err)
{
    bool prompt = false;
    for (int i = 0; i < EXCHANGES_MAX && !prompt; i++) {
        uint64_t since_ns = klp_boot_ns(op->env);
        request_draw(op->env, which, hostname, request);
        KLP_TRY(klp_guest_unique(op, guest, request, receipt, err));
        prompt = clock_was_prompt(receipt, klp_boot_ns(op->env) - since_ns);
        KLP_REQUIRE(klp_receipt_check(request, receipt, err));
    }
    return KLP_OK;
}

kelpie_outcome klp_unique_run(const struct kelpie_op *op, struct klp_samples *samples,
                              struct kelpie_vm *vm, enum klp_unique_case which,
                              const char *hostname, struct klp_agent_record *record,
                              struct kelpie_error **err)
{
    struct klp_guest *guest;
    struct klp_unique_request request;
    struct klp_unique_receipt receipt;
    struct kelpie_op within = klp_op_within(op, 10000); /* fail closed after 10 s */
    KLP_TRY(klp_vm_guest(&within, vm, &guest, err));
    KLP_TRY(exchange(&within, guest, which, hostname, &request, &receipt, err));
    if (!sample_add(samples, receipt.items[KLP_ITEM_KERNEL_RNG].evidence,
                    receipt.items[KLP_ITEM_KERNEL_RNG].evidence_size))
        return klp_fail(err, KELPIE_E_CORRUPT,
                        "the guest of '%s' repeats random bytes another one has given",
                        record->name);
    bool hooked = receipt.items[KLP_ITEM_HOOKS].result == KLP_UNIQUE_DONE;
    memcpy(record->generation, request.generation, sizeof(record->generation));
    klp_text_copy(record->uniqueness[0], sizeof(record->uniqueness[0]), "proven");
    klp_text_copy(record->uniqueness[1], sizeof(record->uniqueness[1]), "proven");
    klp_text_copy(record->uniqueness[2], sizeof(record->uniqueness[2]), "proven");
    klp_text_copy(record->uniqueness[3], sizeof(record->uniqueness[3]),
                  hooked ? "hooked" : "unproven");
    return KLP_OK;
}
