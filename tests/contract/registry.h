/* SPDX-License-Identifier: Apache-2.0 */
/* The contract of a registry, as one suite for every implementation: tests/contract/registry.c. */
#ifndef TESTS_CONTRACT_REGISTRY_H
#define TESTS_CONTRACT_REGISTRY_H

#include "registry/registry.h"

/* How to get at an implementation. */
struct contract_registry {
    const char *name;
    struct klp_env *env;
    void *arg;
    /* A new, empty registry; whatever was made before is gone. */
    bool (*make)(void *arg, struct klp_registry **out, struct kelpie_error **err);
    /* One more connection to the registry that `make` made. */
    bool (*again)(void *arg, struct klp_registry **out, struct kelpie_error **err);
    /* Overwrites an agent's text behind the registry's back. May be NULL: what needs it is skipped.
     */
    void (*plant)(void *arg, const char *id, const char *text);
    /* Takes the registry away from its users, and gives it back. May be NULL. */
    void (*hide)(void *arg, bool hidden);
};

/* Runs all of it; the number of failed tests. */
int contract_registry(const struct contract_registry *suite);

#endif
