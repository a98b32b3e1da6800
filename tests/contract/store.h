/* SPDX-License-Identifier: Apache-2.0 */
/* The contract of a store, as one suite for every implementation: tests/contract/store.c. */
#ifndef TESTS_CONTRACT_STORE_H
#define TESTS_CONTRACT_STORE_H

#include "store/store.h"

enum contract_damage {
    CONTRACT_FLIP, /* one bit of the byte at `offset` */
    CONTRACT_CUT,  /* all from `offset` on */
};

/* How to get at an implementation. Functions that may be NULL: the tests that need them are
 * skipped. */
struct contract_store {
    const char *name;
    struct klp_env *env;
    void *arg;
    /* A new, empty store; whatever was made before is gone. */
    bool (*make)(void *arg, struct klp_store **out, struct kelpie_error **err);
    /* One more opening of the store that `make` made. */
    bool (*again)(void *arg, struct klp_store **out, struct kelpie_error **err);
    /* Changes an object's bytes behind the store's back. May be NULL. */
    void (*damage)(void *arg, enum klp_object_kind kind, const struct klp_digest *digest,
                   enum contract_damage how, uint64_t offset);
    /* The same for a ref's. May be NULL. */
    void (*ref_damage)(void *arg, const char *name, enum contract_damage how, uint64_t offset);
    /* Takes the store away from its users, and gives it back. May be NULL. */
    void (*hide)(void *arg, bool hidden);
    bool has_paths; /* klp_store_path works */
};

/* Runs all of it; the number of failed tests. */
int contract_store(const struct contract_store *suite);

#endif
