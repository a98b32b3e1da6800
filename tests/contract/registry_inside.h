/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of the registry's contract share: two connections to a registry made anew for each
 * test, and records as assertions. Included once by each part, which has all of it for itself. */
#ifndef TESTS_CONTRACT_REGISTRY_INSIDE_H
#define TESTS_CONTRACT_REGISTRY_INSIDE_H

#include <stdio.h>

#include "contract/contract.h"
#include "contract/registry.h"

#include "base/fmt.h"

/* Settling, watching, listings and nodes; contract_registry runs it after its own. */
int contract_registry_reading(const struct contract_registry *suite);

static const struct contract_registry *suite; /* of the run under way */
static struct klp_registry *registry, *second;
static struct kelpie_op op;

static inline int set_up(void **state)
{
    (void)state;
    op = klp_op_plain(suite->env, CONTRACT_TIMEOUT_MS);
    CONTRACT_TRUE(suite->make(suite->arg, &registry, &err_));
    CONTRACT_TRUE(suite->again(suite->arg, &second, &err_));
    return 0;
}

static inline int tear_down(void **state)
{
    (void)state;
    klp_registry_destroy(second);
    klp_registry_destroy(registry);
    return 0;
}

/* ---- records */

static inline struct klp_agent_record record_of(const char *name, unsigned number)
{
    struct klp_agent_record record = {.epoch = 1,
                                      .state = KLP_AGENT_CREATED,
                                      .lease_ttl_ms = 30000,
                                      .backend = "mock",
                                      .arch = KLP_ARCH_X86_64,
                                      .vcpus = 2,
                                      .memory_bytes = 512ull << 20,
                                      .image = "base"};
    snprintf(record.id, sizeof(record.id), "%032x", number);
    klp_text_copy(record.name, sizeof(record.name), name);
    klp_text_copy(record.owner, sizeof(record.owner), "node-a");
    return record;
}

static inline struct klp_agent_record create(const char *name, unsigned number)
{
    struct klp_agent_record record = record_of(name, number);
    CONTRACT_OK(klp_registry_create(&op, registry, &record, &err_));
    assert_int_equal(record.revision, 1);
    return record;
}

static inline struct klp_agent_record get(struct klp_registry *from, const char *id)
{
    struct klp_agent_record record;
    CONTRACT_OK(klp_registry_get(&op, from, id, &record, &err_));
    return record;
}

static inline void assert_text_equal(const struct klp_agent_record *a,
                                     const struct klp_agent_record *b)
{
    KLP_AUTO(buf) struct klp_buf text_a = KLP_BUF_INIT(KLP_RECORD_SIZE_MAX);
    KLP_AUTO(buf) struct klp_buf text_b = KLP_BUF_INIT(KLP_RECORD_SIZE_MAX);
    CONTRACT_TRUE(klp_agent_record_encode(a, &text_a, &err_));
    CONTRACT_TRUE(klp_agent_record_encode(b, &text_b, &err_));
    assert_string_equal(klp_buf_text(&text_a), klp_buf_text(&text_b));
}

/* The stored record is exactly this one. */
static inline void assert_stored(const struct klp_agent_record *want)
{
    struct klp_agent_record record = get(second, want->id);
    assert_text_equal(&record, want);
    klp_agent_record_finish(&record);
}

#define REGISTRY_TEST(name)                                                                        \
    cmocka_unit_test_setup_teardown(test_contract_registry__##name, set_up, tear_down)

#endif
