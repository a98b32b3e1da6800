/* SPDX-License-Identifier: Apache-2.0 */
/* The registry's wrappers: records to text and back, the checks that all implementations share,
 * reading back after an unknown outcome. How text is kept and compared-and-set is left to the
 * implementations. */
#include "registry/registry.h"

#include <string.h>

#include "base/fmt.h"

#define SETTLE_PAUSE_MS 50   /* between two readings of a registry that does not answer */
#define NUMBER_MAX INT64_MAX /* epoch, revision, beat: what SQL and JSON can hold */

/* ---- records */

static bool record_encode(const struct klp_agent_record *record, struct klp_buf *out,
                          struct kelpie_error **err)
{
    KLP_CHECK(klp_agent_record_encode(record, out, err));
    return klp_buf_check(out, "an agent's record", err);
}

static bool record_check(const struct klp_agent_record *record, struct kelpie_error **err)
{
    KLP_CHECK(klp_name_check("agent", record->name, err));
    if (record->owner[0] != '\0')
        KLP_CHECK(klp_name_check("node", record->owner, err));
    if (!klp_id_is_valid(record->id))
        return klp_refuse(err, KELPIE_E_INVALID, "cannot record agent '%s': bad id", record->name);
    if (record->epoch > NUMBER_MAX || record->revision >= NUMBER_MAX || record->beat > NUMBER_MAX)
        return klp_refuse(err, KELPIE_E_LIMIT, "cannot record agent '%s': a number is over 2^63",
                          record->name);
    return true;
}

static bool record_decode(const struct klp_registry *registry, struct klp_bytes text, uint64_t beat,
                          struct klp_agent_record *out, struct kelpie_error **err)
{
    if (!klp_agent_record_decode(text, out, err))
        return klp_wrap_refusal(err, "cannot read a record of registry '%s'",
                                klp_registry_name(registry));
    out->beat = beat;
    return true;
}

/* What is not there is said without the registry; where it was looked for matters to nobody. */
static kelpie_outcome read_failed(const struct klp_registry *registry, const char *what,
                                  const char *key, kelpie_outcome outcome,
                                  struct kelpie_error **why, struct kelpie_error **err)
{
    if (klp_error_code(why) == KELPIE_E_NOT_FOUND) {
        klp_error_clear(why);
        return klp_fail(err, KELPIE_E_NOT_FOUND, "there is no %s '%s'", what, key);
    }
    klp_error_move(err, why);
    return klp_wrap(err, outcome, "cannot read %s '%s' in registry '%s'", what, key,
                    klp_registry_name(registry));
}

static kelpie_outcome record_get(const struct kelpie_op *op, struct klp_registry *registry,
                                 bool by_name, const char *key, struct klp_agent_record *out,
                                 struct kelpie_error **err)
{
    KLP_TRY(klp_op_check(op, "reading the registry", err));
    KLP_AUTO(buf) struct klp_buf text = KLP_BUF_INIT(KLP_RECORD_SIZE_MAX);
    struct klp_agent_record record;
    uint64_t beat = 0;
    struct kelpie_error *why = NULL;
    kelpie_outcome outcome = registry->ops->get(op, registry, by_name, key, &text, &beat, &why);
    if (!kelpie_is_ok(outcome))
        return read_failed(registry, "agent", key, outcome, &why, err);
    KLP_REQUIRE(record_decode(registry, klp_buf_view(&text), beat, &record, err));
    if (strcmp(by_name ? record.name : record.id, key) != 0) {
        klp_agent_record_finish(&record);
        return klp_fail(err, KELPIE_E_CORRUPT,
                        "cannot use the record of agent '%s' in registry '%s': it is another's",
                        key, klp_registry_name(registry));
    }
    *out = record;
    return KLP_OK;
}

/* ---- agents */

kelpie_outcome klp_registry_create(const struct kelpie_op *op, struct klp_registry *registry,
                                   struct klp_agent_record *record, struct kelpie_error **err)
{
    KLP_REQUIRE(record_check(record, err));
    KLP_TRY(klp_op_check(op, "creating an agent's record", err));
    KLP_AUTO(buf) struct klp_buf text = KLP_BUF_INIT(KLP_RECORD_SIZE_MAX);
    const uint64_t before = record->revision;
    record->revision = 1;
    if (!record_encode(record, &text, err)) {
        record->revision = before;
        return klp_wrap(err, (kelpie_outcome){KELPIE_FAIL}, "cannot record agent '%s'",
                        record->name);
    }
    struct kelpie_error *why = NULL;
    kelpie_outcome outcome = registry->ops->create(op, registry, record, klp_buf_view(&text), &why);
    if (outcome.kind == KELPIE_FAIL)
        record->revision = before;
    if (klp_error_code(&why) == KELPIE_E_EXISTS) {
        klp_error_clear(&why);
        KLP_IGNORE(klp_fail(err, KELPIE_E_EXISTS, "there is an agent '%s' already", record->name));
        klp_error_remedy_set(err, "kelpie inspect %s", record->name);
        return outcome;
    }
    klp_error_move(err, &why);
    return klp_wrap(err, outcome, "cannot create agent '%s' in registry '%s'", record->name,
                    klp_registry_name(registry));
}

kelpie_outcome klp_registry_get(const struct kelpie_op *op, struct klp_registry *registry,
                                const char *id, struct klp_agent_record *out,
                                struct kelpie_error **err)
{
    if (!klp_id_is_valid(id))
        return klp_fail(err, KELPIE_E_INVALID, "cannot read an agent's record: bad id");
    return record_get(op, registry, false, id, out, err);
}

kelpie_outcome klp_registry_find(const struct kelpie_op *op, struct klp_registry *registry,
                                 const char *name, struct klp_agent_record *out,
                                 struct kelpie_error **err)
{
    KLP_REQUIRE(klp_name_check("agent", name, err));
    return record_get(op, registry, true, name, out, err);
}

kelpie_outcome klp_registry_cas(const struct kelpie_op *op, struct klp_registry *registry,
                                const struct klp_agent_record *expected,
                                struct klp_agent_record *next, struct kelpie_error **err)
{
    KLP_ASSERT(next->epoch >= expected->epoch);
    KLP_ASSERT(strcmp(next->id, expected->id) == 0);
    KLP_REQUIRE(record_check(expected, err));
    KLP_REQUIRE(record_check(next, err));
    KLP_TRY(klp_op_check(op, "changing an agent's record", err));
    KLP_AUTO(buf) struct klp_buf text = KLP_BUF_INIT(KLP_RECORD_SIZE_MAX);
    /* expected may be next itself: a caller that changes its only copy. */
    const uint64_t before = next->revision, revision = expected->revision, epoch = expected->epoch;
    next->revision = revision + 1;
    if (!record_encode(next, &text, err)) {
        next->revision = before;
        return klp_wrap(err, (kelpie_outcome){KELPIE_FAIL}, "cannot record agent '%s'", next->name);
    }
    kelpie_outcome outcome =
        registry->ops->cas(op, registry, next->id, revision, epoch, next, klp_buf_view(&text), err);
    if (outcome.kind == KELPIE_FAIL)
        next->revision = before;
    return klp_wrap(err, outcome,
                    "cannot change agent '%s' (epoch %llu, revision %llu) in registry '%s'",
                    next->name, (unsigned long long)epoch, (unsigned long long)revision,
                    klp_registry_name(registry));
}

kelpie_outcome klp_registry_renew(const struct kelpie_op *op, struct klp_registry *registry,
                                  const char *id, const char *owner, uint64_t epoch,
                                  struct kelpie_error **err)
{
    KLP_REQUIRE(klp_name_check("node", owner, err));
    if (!klp_id_is_valid(id) || epoch > NUMBER_MAX)
        return klp_fail(err, KELPIE_E_INVALID, "cannot renew a lease: bad id or epoch");
    KLP_TRY(klp_op_check(op, "renewing a lease", err));
    return klp_wrap(
        err, registry->ops->renew(op, registry, id, owner, epoch, err),
        "cannot renew the lease of agent %s for node '%s' at epoch %llu in registry '%s'", id,
        owner, (unsigned long long)epoch, klp_registry_name(registry));
}

kelpie_outcome klp_registry_delete(const struct kelpie_op *op, struct klp_registry *registry,
                                   const struct klp_agent_record *expected,
                                   struct kelpie_error **err)
{
    KLP_REQUIRE(record_check(expected, err));
    KLP_TRY(klp_op_check(op, "deleting an agent's record", err));
    return klp_wrap(
        err,
        registry->ops->remove(op, registry, expected->id, expected->revision, expected->epoch, err),
        "cannot delete agent '%s' in registry '%s'", expected->name, klp_registry_name(registry));
}

/* ---- settle */

bool klp_registry_says_same(const struct klp_agent_record *a, const struct klp_agent_record *b)
{
    KLP_AUTO(buf) struct klp_buf text_a = KLP_BUF_INIT(KLP_RECORD_SIZE_MAX);
    KLP_AUTO(buf) struct klp_buf text_b = KLP_BUF_INIT(KLP_RECORD_SIZE_MAX);
    struct klp_agent_record copy = *b; /* borrows b's `extra` */
    copy.beat = a->beat;
    copy.revision = a->revision;
    return record_encode(a, &text_a, NULL) && record_encode(&copy, &text_b, NULL) &&
           text_a.size == text_b.size && memcmp(text_a.data, text_b.data, text_a.size) == 0;
}

static bool has_happened(const struct klp_agent_record *stored, const struct klp_agent_record *next)
{
    if (stored->epoch != next->epoch || strcmp(stored->owner, next->owner) != 0)
        return false;
    if (next->revision == 0)
        return stored->state == next->state && strcmp(stored->move_id, next->move_id) == 0;
    return stored->revision >= next->revision && klp_registry_says_same(stored, next);
}

static kelpie_outcome settle_ended(const struct klp_registry *registry,
                                   const struct klp_agent_record *next,
                                   const struct kelpie_error *why, struct kelpie_error **err)
{
    return klp_unknown(err,
                       "cannot tell whether agent '%s' came to epoch %llu: registry '%s' did not "
                       "answer: %s",
                       next->name, (unsigned long long)next->epoch, klp_registry_name(registry),
                       kelpie_error_message(why));
}

/* A change that was sent and not answered may be on its way still, as long as the record waits at
 * the revision it expects. */
static bool may_come_yet(const struct klp_agent_record *stored, const struct klp_agent_record *next)
{
    return next->revision != 0 ? stored->revision < next->revision : stored->epoch <= next->epoch;
}

/* Uses that revision up with a change that changes nothing. On OK *stored is what is stored. */
static kelpie_outcome overtake(const struct kelpie_op *op, struct klp_registry *registry,
                               struct klp_agent_record *stored, struct kelpie_error **err)
{
    return klp_registry_cas(op, registry, stored, stored, err);
}

/* One reading. OK: it is known. */
static kelpie_outcome settle_once(const struct kelpie_op *op, struct klp_registry *registry,
                                  const struct klp_agent_record *next, bool *out_happened,
                                  struct klp_agent_record *current, struct kelpie_error **err)
{
    struct klp_agent_record stored;
    KLP_TRY(klp_registry_get(op, registry, next->id, &stored, err));
    *out_happened = has_happened(&stored, next);
    kelpie_outcome outcome = KLP_OK;
    if (!*out_happened && may_come_yet(&stored, next))
        outcome = overtake(op, registry, &stored, err);
    if (kelpie_is_ok(outcome))
        *current = stored;
    else
        klp_agent_record_finish(&stored);
    return outcome;
}

kelpie_outcome klp_registry_settle(const struct kelpie_op *op, struct klp_registry *registry,
                                   const struct klp_agent_record *next, bool *out_happened,
                                   struct klp_agent_record *current, struct kelpie_error **err)
{
    for (;;) {
        KLP_AUTO(kelpie_error) struct kelpie_error *why = NULL;
        if (kelpie_is_ok(settle_once(op, registry, next, out_happened, current, &why)))
            return KLP_OK;
        enum kelpie_code code = klp_error_code(&why);
        if (code == KELPIE_E_NOT_FOUND || code == KELPIE_E_INVALID) {
            klp_error_move(err, &why);
            return (kelpie_outcome){KELPIE_FAIL};
        }
        uint64_t until = klp_boot_ns(op->env) + SETTLE_PAUSE_MS * KLP_MS;
        if (code == KELPIE_E_CORRUPT || !kelpie_is_ok(klp_sleep_until(op, until, NULL)))
            return settle_ended(registry, next, why, err);
    }
}

/* ---- list, watch */

struct listing {
    struct klp_registry *registry;
    bool (*each_agent)(void *arg, const struct klp_agent_record *record);
    bool (*each_node)(void *arg, const struct klp_node_record *node);
    void *arg;
    bool failed;
    struct kelpie_error *why;
};

static bool visit_agent(void *arg, struct klp_bytes text, uint64_t beat)
{
    struct listing *listing = arg;
    struct klp_agent_record record;
    if (!record_decode(listing->registry, text, beat, &record, &listing->why)) {
        listing->failed = true;
        return false;
    }
    bool more = listing->each_agent(listing->arg, &record);
    klp_agent_record_finish(&record);
    return more;
}

static kelpie_outcome listing_end(struct listing *listing, kelpie_outcome outcome, const char *what,
                                  struct kelpie_error **err)
{
    if (kelpie_is_ok(outcome) && !listing->failed)
        return KLP_OK;
    if (kelpie_is_ok(outcome))
        klp_error_move(err, &listing->why);
    else
        klp_error_clear(&listing->why);
    return klp_wrap(err, (kelpie_outcome){KELPIE_FAIL}, "cannot list the %s of registry '%s'", what,
                    klp_registry_name(listing->registry));
}

kelpie_outcome klp_registry_list(const struct kelpie_op *op, struct klp_registry *registry,
                                 bool (*each)(void *arg, const struct klp_agent_record *record),
                                 void *arg, struct kelpie_error **err)
{
    KLP_TRY(klp_op_check(op, "listing the registry", err));
    struct listing listing = {.registry = registry, .each_agent = each, .arg = arg};
    return listing_end(&listing, registry->ops->list(op, registry, visit_agent, &listing, err),
                       "agents", err);
}

kelpie_outcome klp_registry_watch(const struct kelpie_op *op, struct klp_registry *registry,
                                  const char *id, uint64_t revision, struct kelpie_error **err)
{
    if (!klp_id_is_valid(id))
        return klp_fail(err, KELPIE_E_INVALID, "cannot watch an agent's record: bad id");
    KLP_TRY(klp_op_check(op, "watching the registry", err));
    return klp_wrap(err, registry->ops->watch(op, registry, id, revision, err),
                    "cannot watch agent %s in registry '%s'", id, klp_registry_name(registry));
}

/* ---- nodes */

kelpie_outcome klp_registry_node_put(const struct kelpie_op *op, struct klp_registry *registry,
                                     const struct klp_node_record *node, struct kelpie_error **err)
{
    KLP_REQUIRE(klp_name_check("node", node->name, err));
    KLP_TRY(klp_op_check(op, "recording a node", err));
    KLP_AUTO(buf) struct klp_buf text = KLP_BUF_INIT(KLP_RECORD_SIZE_MAX);
    if (!klp_node_record_encode(node, &text, err) || !klp_buf_check(&text, "a node's record", err))
        return klp_wrap(err, (kelpie_outcome){KELPIE_FAIL}, "cannot record node '%s'", node->name);
    return klp_wrap(
        err, registry->ops->node_put(op, registry, node->name, klp_buf_view(&text), err),
        "cannot record node '%s' in registry '%s'", node->name, klp_registry_name(registry));
}

kelpie_outcome klp_registry_node_get(const struct kelpie_op *op, struct klp_registry *registry,
                                     const char *name, struct klp_node_record *out,
                                     struct kelpie_error **err)
{
    KLP_REQUIRE(klp_name_check("node", name, err));
    KLP_TRY(klp_op_check(op, "reading a node's record", err));
    KLP_AUTO(buf) struct klp_buf text = KLP_BUF_INIT(KLP_RECORD_SIZE_MAX);
    struct kelpie_error *why = NULL;
    kelpie_outcome outcome = registry->ops->node_get(op, registry, name, &text, &why);
    if (!kelpie_is_ok(outcome)) {
        outcome = read_failed(registry, "node", name, outcome, &why, err);
        if (klp_error_code(err) == KELPIE_E_NOT_FOUND)
            klp_error_remedy_set(err, "kelpie node ls");
        return outcome;
    }
    if (!klp_node_record_decode(klp_buf_view(&text), out, err))
        return klp_wrap(err, (kelpie_outcome){KELPIE_FAIL},
                        "cannot read node '%s' in registry '%s'", name,
                        klp_registry_name(registry));
    return KLP_OK;
}

static bool visit_node(void *arg, struct klp_bytes text)
{
    struct listing *listing = arg;
    struct klp_node_record node;
    if (!klp_node_record_decode(text, &node, &listing->why)) {
        listing->failed = true;
        return false;
    }
    return listing->each_node(listing->arg, &node);
}

kelpie_outcome klp_registry_node_list(const struct kelpie_op *op, struct klp_registry *registry,
                                      bool (*each)(void *arg, const struct klp_node_record *node),
                                      void *arg, struct kelpie_error **err)
{
    KLP_TRY(klp_op_check(op, "listing the nodes", err));
    struct listing listing = {.registry = registry, .each_node = each, .arg = arg};
    return listing_end(&listing, registry->ops->node_list(op, registry, visit_node, &listing, err),
                       "nodes", err);
}

kelpie_outcome klp_registry_node_remove(const struct kelpie_op *op, struct klp_registry *registry,
                                        const char *name, struct kelpie_error **err)
{
    KLP_REQUIRE(klp_name_check("node", name, err));
    KLP_TRY(klp_op_check(op, "removing a node's record", err));
    return klp_wrap(err, registry->ops->node_remove(op, registry, name, err),
                    "cannot remove node '%s' from registry '%s'", name,
                    klp_registry_name(registry));
}

const char *klp_registry_name(const struct klp_registry *registry)
{
    return registry->ops->name(registry);
}

void klp_registry_destroy(struct klp_registry *registry)
{
    if (registry != NULL)
        registry->ops->destroy(registry);
}
