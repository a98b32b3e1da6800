/* SPDX-License-Identifier: Apache-2.0 */
/* What a run does: two nodes over one registry and one store, and an agent's whole life across
 * them. Every answer is checked against what must be true (DESIGN 2). */
#include <string.h>

#include "base/fmt.h"
#include "sim.h"
#include "store/local/local.h"

#define OP_MS 120000
#define FILL_PAGES (KLP_MIB / SIM_PAGE_SIZE) /* of @fill 1 */
#define FORKS 2

struct host {
    struct sim_peer *peer;
    struct klp_env *env;
    struct sim_domain *domain;
    struct klp_dir *state_dir, *vms_dir;
    struct klp_store *store;
    struct klp_registry *registry;
    struct kelpie_vm_factory *factory;
    struct klp_node *node;
};

/* A call that must not fail did. Takes the error. */
static bool failed(const char *what, kelpie_outcome outcome, struct kelpie_error *error)
{
    if (kelpie_is_ok(outcome))
        return false;
    char reasons[256] = "";
    for (const struct kelpie_error *at = error; at != NULL; at = kelpie_error_cause(at))
        fprintf(stderr, "  %s\n", kelpie_error_message(at));
    if (kelpie_error_reason_count(error) > 0)
        snprintf(reasons, sizeof(reasons), ": %s", kelpie_error_reason(error, 0));
    sim_fail(SIM_LIVENESS, "%s %s without a fault: %s%s", what,
             kelpie_is_unknown(outcome) ? "is unknown" : "failed",
             error != NULL ? kelpie_error_message(error) : "", reasons);
    kelpie_error_free(error);
    return true;
}

/* ---- hosts */

static kelpie_outcome host_wire(const struct kelpie_op *op, struct host *host, const char *name,
                                struct sim_registry_rows *rows, struct kelpie_error **err)
{
    char path[64];
    klp_format(path, sizeof(path), "/%s/state", name);
    KLP_REQUIRE(klp_dir_open(host->env, path, true, &host->state_dir, err));
    KLP_REQUIRE(klp_dir_open_at(host->state_dir, "vms", true, &host->vms_dir, err));
    KLP_REQUIRE(klp_store_local_create(host->env, "/shared/store", &host->store, err));
    host->registry = sim_registry_create(host->env, rows);
    host->factory = sim_factory_create(host->env, host->vms_dir, KLP_ARCH_X86_64);
    struct klp_node_options options = {.env = host->env,
                                       .name = name,
                                       .endpoint = host->peer->endpoint,
                                       .state_dir = host->state_dir,
                                       .store = host->store,
                                       .registry = host->registry,
                                       .factories = &host->factory,
                                       .factory_count = 1,
                                       .lease_ttl_ms = 30000,
                                       .boot_timeout_ms = 60000};
    return klp_node_open(op, &options, &host->node, err);
}

static bool host_open(struct host *host, uint32_t index, const char *name,
                      struct sim_registry_rows *rows)
{
    struct kelpie_error *error = NULL;
    *host = (struct host){.peer = &sim_world->peers[index],
                          .env = &sim_world->envs[index]->base,
                          .domain = sim_domain_create(index, name)};
    klp_format(host->peer->endpoint, sizeof(host->peer->endpoint), "sim:%s", name);
    host->peer->env = sim_world->envs[index];
    host->peer->domain = host->domain;
    struct sim_domain *before = sim_domain_enter(host->domain);
    struct kelpie_op op = klp_op_plain(host->env, OP_MS);
    kelpie_outcome outcome = host_wire(&op, host, name, rows, &error);
    sim_domain_enter(before);
    host->peer->node = host->node;
    return !failed("opening a node", outcome, error);
}

static bool leftover(void *arg, const char *name)
{
    const struct host *host = arg;
    sim_fail(SIM_SAFETY, "node %s leaves the folder of VM %s behind", host->peer->env->name, name);
    return true;
}

/* stop: with its agents; else their keepers go on. */
static void host_close(struct host *host, bool stop)
{
    struct sim_domain *before = sim_domain_enter(host->domain);
    struct kelpie_op op = klp_op_plain(host->env, OP_MS);
    host->peer->node = NULL;
    while (host->peer->calls > 0)
        sim_wait_source(&host->peer->idle, SIM_NEVER, "requests to end");
    klp_node_close(&op, host->node, stop);
    if (stop)
        KLP_IGNORE(klp_dir_list(host->vms_dir, leftover, host, NULL));
    klp_vm_factory_destroy(host->factory);
    klp_registry_destroy(host->registry);
    klp_store_destroy(host->store);
    klp_dir_close(host->vms_dir);
    klp_dir_close(host->state_dir);
    sim_domain_enter(before);
}

/* ---- what an operator does */

struct collected {
    char text[256];
    size_t size;
};

static bool collect(void *arg, bool is_stderr, const void *data, size_t size)
{
    struct collected *collected = arg;
    (void)is_stderr;
    if (size > sizeof(collected->text) - 1 - collected->size)
        size = sizeof(collected->text) - 1 - collected->size;
    memcpy(collected->text + collected->size, data, size);
    collected->size += size;
    return true;
}

/* Runs words of the vocabulary in the agent; the exit code must be 0. */
static bool exec_on(struct host *host, const char *agent, const char *const *argv,
                    struct collected *out)
{
    struct kelpie_error *error = NULL;
    struct kelpie_exec exec = {.argv = argv, .output = collect, .arg = out};
    struct kelpie_exec_status status = {.exit_code = -1};
    *out = (struct collected){.size = 0};
    struct sim_domain *before = sim_domain_enter(host->domain);
    struct kelpie_op op = klp_op_plain(host->env, OP_MS);
    kelpie_outcome outcome = klp_node_exec(&op, host->node, agent, &exec, &status, &error);
    sim_domain_enter(before);
    if (failed(argv[0], outcome, error))
        return false;
    size_t line = strcspn(out->text, "\n");
    sim_note("exec", "%s on %s: %d %.*s", argv[0], agent, (int)status.exit_code, (int)line,
             out->text);
    if (status.exit_code != 0)
        sim_fail(SIM_SAFETY, "%s in %s ended with %d: %s", argv[0], agent, (int)status.exit_code,
                 out->text);
    return status.exit_code == 0;
}

/* Memory is what @fill left, byte for byte. */
static bool memory_is_whole(struct host *host, const char *agent)
{
    const char *const argv[] = {"@check", NULL};
    char expected[64];
    struct collected out;
    if (!exec_on(host, agent, argv, &out))
        return false;
    klp_format(expected, sizeof(expected), "pages=%u bad=0\n", FILL_PAGES);
    if (strcmp(out.text, expected) != 0)
        sim_fail(SIM_SAFETY, "memory of %s: %s", agent, out.text);
    return strcmp(out.text, expected) == 0;
}

static bool agent_create(struct host *host, const char *name)
{
    struct kelpie_error *error = NULL;
    struct klp_agent_info info;
    struct klp_agent_request request = {.memory_bytes = 128ull * KLP_MIB, .start = true};
    klp_text_copy(request.name, sizeof(request.name), name);
    klp_text_copy(request.image, sizeof(request.image), "base");
    struct sim_domain *before = sim_domain_enter(host->domain);
    struct kelpie_op op = klp_op_plain(host->env, OP_MS);
    kelpie_outcome outcome = klp_node_agent_create(&op, host->node, &request, &info, &error);
    if (kelpie_is_ok(outcome))
        klp_agent_info_finish(&info);
    sim_domain_enter(before);
    return !failed("creating an agent", outcome, error);
}

static bool agent_do(struct host *host, const char *what, const char *name)
{
    struct kelpie_error *error = NULL;
    struct sim_domain *before = sim_domain_enter(host->domain);
    struct kelpie_op op = klp_op_plain(host->env, OP_MS);
    kelpie_outcome outcome = strcmp(what, "resume") == 0
                                 ? klp_node_agent_resume(&op, host->node, name, &error)
                                 : klp_node_agent_remove(&op, host->node, name, true, &error);
    sim_domain_enter(before);
    return !failed(what, outcome, error);
}

/* Begins it, waits for its end. *out must be finished in the host's domain. */
static kelpie_outcome operation_do(const struct kelpie_op *op, struct host *host,
                                   enum klp_operation_kind kind, const char *agent,
                                   const struct klp_action_request *request,
                                   struct klp_operation_info *out, struct kelpie_error **err)
{
    char id[KLP_ID_SIZE];
    KLP_TRY(klp_node_operation_begin(op, host->node, kind, agent, request, NULL, id, err));
    return klp_node_operation_get(op, host->node, id, OP_MS, out, err);
}

static bool operation_run(struct host *host, enum klp_operation_kind kind, const char *agent,
                          const struct klp_action_request *request,
                          char results[FORKS][KLP_NAME_SIZE])
{
    struct kelpie_error *error = NULL;
    struct klp_operation_info info = {.id = ""};
    struct sim_domain *before = sim_domain_enter(host->domain);
    struct kelpie_op op = klp_op_plain(host->env, 2 * OP_MS);
    kelpie_outcome outcome = operation_do(&op, host, kind, agent, request, &info, &error);
    bool known = kelpie_is_ok(outcome);
    bool done = known && info.state == KLP_OPERATION_DONE;
    if (known && !done) {
        outcome.kind = info.state == KLP_OPERATION_UNKNOWN ? KELPIE_UNKNOWN : KELPIE_FAIL;
        error = KLP_TAKE(&info.error);
    }
    if (done)
        sim_note("operation", "%s of %s: blackout_us=%llu", info.kind, agent,
                 (unsigned long long)info.blackout_us);
    for (size_t i = 0;
         done && results != NULL && i < FORKS && info.results != NULL && info.results[i] != NULL;
         i++)
        klp_text_copy(results[i], KLP_NAME_SIZE, info.results[i]);
    if (known)
        klp_operation_info_finish(&info);
    sim_domain_enter(before);
    return !failed(kind == KLP_OP_TELEPORT ? "a teleport"
                   : kind == KLP_OP_FORK   ? "a fork"
                                           : "a suspend",
                   outcome, error);
}

/* ---- the oracle: the registry names one owner, and only there the agent runs */

static bool runs_at(struct host *host, const char *agent)
{
    const char *const argv[] = {"@count", NULL};
    struct collected out = {.size = 0};
    struct kelpie_exec exec = {.argv = argv, .output = collect, .arg = &out};
    struct kelpie_exec_status status;
    struct sim_domain *before = sim_domain_enter(host->domain);
    struct kelpie_op op = klp_op_plain(host->env, 5000);
    bool runs = kelpie_is_ok(klp_node_exec(&op, host->node, agent, &exec, &status, NULL));
    sim_domain_enter(before);
    return runs;
}

static bool one_copy(struct host *here, struct host *gone, const char *agent)
{
    bool fine = runs_at(here, agent) && !runs_at(gone, agent);
    if (!fine)
        sim_fail(SIM_SAFETY, "%s does not run at its owner, or runs elsewhere too", agent);
    return fine;
}

static bool there_and_back(struct host *a, struct host *b, const char *agent)
{
    char seed[24];
    struct collected out;
    struct klp_action_request to_b = {.destination = "b"}, to_a = {.destination = "a"};
    klp_format(seed, sizeof(seed), "%llu", (unsigned long long)(sim_world->seed % 1000000));
    const char *const fill[] = {"@fill", "1", seed, NULL};
    if (!exec_on(a, agent, fill, &out) || !memory_is_whole(a, agent))
        return false;
    if (!operation_run(a, KLP_OP_TELEPORT, agent, &to_b, NULL))
        return false;
    sim_world->teleports++;
    if (!memory_is_whole(b, agent) || !one_copy(b, a, agent))
        return false;
    if (!operation_run(b, KLP_OP_TELEPORT, agent, &to_a, NULL))
        return false;
    sim_world->teleports++;
    return memory_is_whole(a, agent) && one_copy(a, b, agent);
}

static bool rest_and_fork(struct host *host, const char *agent)
{
    char forks[FORKS][KLP_NAME_SIZE] = {"", ""};
    struct klp_action_request nothing = {.count = 0}, two = {.count = FORKS};
    if (!operation_run(host, KLP_OP_SUSPEND, agent, &nothing, NULL) ||
        !agent_do(host, "resume", agent) || !memory_is_whole(host, agent))
        return false;
    if (!operation_run(host, KLP_OP_FORK, agent, &two, forks))
        return false;
    for (size_t i = 0; i < FORKS; i++)
        if (!memory_is_whole(host, forks[i]) || !agent_do(host, "remove", forks[i]))
            return false;
    return true;
}

static uint64_t count_of(struct host *host, const char *agent)
{
    const char *const argv[] = {"@count", NULL};
    struct collected out;
    uint64_t count = 0;
    if (exec_on(host, agent, argv, &out))
        KLP_IGNORE(klp_parse_u64(out.text, strcspn(out.text, "\n"), &count));
    return count;
}

/* A daemon that goes and comes back finds its agents running: they never noticed. */
static bool daemon_restart(struct host *host, uint32_t index, const char *name,
                           struct sim_registry_rows *rows, const char *agent)
{
    uint64_t before = count_of(host, agent);
    host_close(host, false);
    sim_park(sim_world->now_ns + 3 * KLP_SECOND, "a daemon's restart");
    if (!host_open(host, index, name, rows) || !memory_is_whole(host, agent))
        return false;
    uint64_t after = count_of(host, agent);
    if (after < before + 2500) /* one a millisecond */
        sim_fail(SIM_SAFETY, "%s stood still while its daemon was away: %llu, then %llu", agent,
                 (unsigned long long)before, (unsigned long long)after);
    return after >= before + 2500;
}

void sim_scenario_teleport(void *arg)
{
    struct host a, b;
    struct sim_registry_rows *rows = sim_registry_rows_create();
    (void)arg;
    if (!host_open(&a, 0, "a", rows) || !host_open(&b, 1, "b", rows))
        return;
    if (!agent_create(&a, "agent") || !there_and_back(&a, &b, "agent") ||
        !rest_and_fork(&a, "agent") || !daemon_restart(&a, 0, "a", rows, "agent") ||
        !agent_do(&a, "remove", "agent"))
        return;
    host_close(&b, true);
    host_close(&a, true);
    sim_registry_rows_destroy(rows);
}
