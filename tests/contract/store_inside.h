/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of the store's contract share: the store under test, made anew for each test, and
 * its refs as assertions. Included once by each part, which has all of it for itself. */
#ifndef TESTS_CONTRACT_STORE_INSIDE_H
#define TESTS_CONTRACT_STORE_INSIDE_H

#include <stdio.h>

#include "contract/contract.h"
#include "contract/store.h"

/* Runs the tests of refs; contract_store runs it after its own. */
int contract_store_refs(const struct contract_store *suite);

static const struct contract_store *suite; /* of the run under way */
static struct klp_store *store;
static struct kelpie_op op;

static inline int set_up(void **state)
{
    (void)state;
    op = klp_op_plain(suite->env, CONTRACT_TIMEOUT_MS);
    CONTRACT_TRUE(suite->make(suite->arg, &store, &err_));
    return 0;
}

static inline int tear_down(void **state)
{
    (void)state;
    klp_store_destroy(store);
    store = NULL;
    return 0;
}

struct names {
    size_t count;
    uint64_t bytes;
    size_t stop_after;
    struct klp_digest last;
    char text[512];
};

static inline void assert_ref(const char *name, const char *want)
{
    KLP_AUTO(buf) struct klp_buf out = KLP_BUF_INIT(KLP_REF_VALUE_MAX);
    CONTRACT_OK(klp_ref_get(&op, store, name, &out, &err_));
    assert_string_equal(klp_buf_text(&out), want);
    assert_int_equal(out.size, strlen(want));
}

static inline void ref_put(const char *name, const char *value)
{
    CONTRACT_OK(klp_ref_create(&op, store, name, value, strlen(value), &err_));
}

static inline bool ref_add(void *arg, const char *name)
{
    struct names *names = arg;
    size_t size = strlen(names->text);
    snprintf(names->text + size, sizeof(names->text) - size, "%s ", name);
    names->count++;
    return names->count != names->stop_after;
}

static inline void assert_refs(const char *prefix, size_t stop_after, const char *want)
{
    struct names names = {.stop_after = stop_after};
    CONTRACT_OK(klp_ref_list(&op, store, prefix, ref_add, &names, &err_));
    assert_string_equal(names.text, want);
}

#define STORE_TEST(name)                                                                           \
    cmocka_unit_test_setup_teardown(test_contract_store__##name, set_up, tear_down)

#endif
