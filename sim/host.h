/* SPDX-License-Identifier: Apache-2.0 */
/* A simulated host as an operator has it: a daemon that can be opened, closed and lost, and errands
 * to it. Each errand is a fiber of the daemon's own crash domain: it dies with the daemon, and then
 * nobody knows what came of it. */
#ifndef SIM_HOST_H
#define SIM_HOST_H

#include "sim.h"

#define HOST_OP_MS 120000
#define HOST_RESULTS 2

struct host {
    uint32_t index;
    const char *name;
    struct sim_registry_rows *rows;
    struct sim_peer *peer;
    struct klp_env *env;
    struct sim_domain *domain;
    struct klp_dir *state_dir, *vms_dir;
    struct klp_store *store;
    struct klp_registry *registry;
    struct kelpie_vm_factory *factory;
    struct klp_node *node; /* NULL = down */
};

struct errand { /* filled in by whoever sends it; answers below */
    struct host *host;
    const char *agent, *what;
    const char *const *argv;
    enum klp_operation_kind kind;
    struct klp_action_request request;
    uint64_t timeout_ms;

    kelpie_outcome outcome;
    bool lost; /* the daemon died under it; the outcome is UNKNOWN */
    enum kelpie_code code;
    char why[256];
    int32_t exit_code;
    char text[256];
    size_t text_size;
    struct klp_agent_info info;
    char results[HOST_RESULTS][KLP_NAME_SIZE];
};

bool host_open(struct host *host); /* false = a verdict was given */
void host_close(struct host *host, bool stop);

void host_exec(struct errand *errand);
void host_create(struct errand *errand);
void host_verb(struct errand *errand); /* what: "start", "resume", "remove" */
void host_operate(struct errand *errand);
void host_look(struct errand *errand);
/* True if it went well, else a verdict was given. */
bool host_expect(const struct errand *errand);

#endif
