/* SPDX-License-Identifier: Apache-2.0 */
/* A simulated host as an operator has it: a daemon that can be opened, closed and lost, and errands
 * to it. Each errand is a fiber of the daemon's own crash domain: it dies with the daemon, and then
 * nobody knows what came of it. */
#ifndef SIM_HOST_H
#define SIM_HOST_H

#include "sim.h"

#define HOST_OP_MS 120000
#define HOST_MOVE_MS 60000 /* what an operation is given */
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
    struct klp_node *node;   /* NULL = down */
    bool ending;             /* of host_is_ending_vms */
    struct sim_fiber *alive; /* ends when the daemon ends, whichever way */
    struct sim_source closing;
    bool closes;
};

struct errand { /* filled in by whoever sends it; answers below */
    struct host *host;
    const char *agent, *what;
    const char *const *argv;
    enum klp_operation_kind kind;
    struct klp_action_request request;
    uint64_t timeout_ms;
    const char *key;            /* Idempotency-Key; asked for twice with it; NULL = once */
    uint64_t cancel_ns;         /* after the begin; 0 = not */
    const struct errand *rival; /* its operation is begun at once after this one; NULL = none */

    struct sim_fiber *fiber;
    kelpie_outcome outcome, rival_outcome;
    bool lost;    /* the daemon died under it; the outcome is UNKNOWN */
    bool refused; /* there was no daemon to ask */
    bool doubled; /* one key came to two operations */
    enum kelpie_code code;
    char why[256];
    int32_t exit_code;
    char text[256];
    size_t text_size;
    struct klp_agent_info info;
    void (*each)(void *arg, const struct klp_agent_info *agent);
    void *arg;
    char results[HOST_RESULTS][KLP_NAME_SIZE];
};

/* False: it could not open, and has ended. */
bool host_open(struct host *host, struct errand *out);
/* Some VM's end was ordered and has not come. */
bool host_is_ending_vms(struct host *host);
void host_close(struct host *host, bool stop);
bool host_is_up(const struct host *host);
/* Gone without a word, or is to be. */
void host_kill(struct host *host);

void host_exec(struct errand *errand);
void host_create(struct errand *errand);
void host_verb(struct errand *errand); /* what: a name of host_verbs */
void host_operate(struct errand *errand);
/* The same, and goes on meanwhile. */
void host_operate_begin(struct errand *errand);
void host_wait(struct errand *errand);
void host_snapshot(struct errand *errand); /* its id becomes results[0] */
void host_look(struct errand *errand);
/* Calls for each agent of the registry, whoever owns it. */
bool host_agents(struct host *host, void (*each)(void *arg, const struct klp_agent_info *agent),
                 void *arg);
/* True if it went well, else a verdict was given. */
bool host_expect(const struct errand *errand);

#endif
