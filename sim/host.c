/* SPDX-License-Identifier: Apache-2.0 */
#include "host.h"

#include <string.h>

#include "base/fmt.h"
#include "store/local/local.h"
#include "vm/keeper/keeper.h"

/* ---- errands */

bool host_is_up(const struct host *host)
{
    return host->node != NULL && !host->domain->crashed;
}

static void errand_begin(struct errand *errand, void (*run)(void *))
{
    struct host *host = errand->host;
    errand->outcome = errand->rival_outcome = (kelpie_outcome){KELPIE_UNKNOWN};
    errand->lost = errand->refused = false;
    errand->fiber =
        sim_fiber_start(sim_env_from(host->env), host->domain, errand->what, run, errand);
}

void host_wait(struct errand *errand)
{
    if (errand->fiber == NULL)
        return;
    while (!errand->fiber->ended)
        sim_wait_source(&errand->fiber->end, SIM_NEVER, "an errand");
    errand->lost = errand->fiber->killed;
    errand->fiber = NULL;
}

/* To a daemon that answers; to one that is down nothing comes. */
static void errand_send(struct errand *errand, void (*run)(void *))
{
    if (host_is_up(errand->host)) {
        errand_begin(errand, run);
        return;
    }
    errand->outcome = errand->rival_outcome = (kelpie_outcome){KELPIE_FAIL};
    errand->code = KELPIE_E_UNREACHABLE;
    errand->refused = true;
    klp_format(errand->why, sizeof(errand->why), "no daemon on node %s", errand->host->name);
}

static void errand_run(struct errand *errand, void (*run)(void *))
{
    errand_send(errand, run);
    host_wait(errand);
}

static struct kelpie_op errand_op(const struct errand *errand)
{
    return klp_op_plain(errand->host->env,
                        errand->timeout_ms != 0 ? errand->timeout_ms : HOST_OP_MS);
}

/* Takes the error. */
static void errand_end(struct errand *errand, kelpie_outcome outcome, struct kelpie_error *error)
{
    errand->outcome = outcome;
    errand->code = error != NULL ? kelpie_error_code(error) : KELPIE_E_NONE;
    if (error != NULL) {
        KLP_AUTO(buf) struct klp_buf line = KLP_BUF_INIT(4096);
        klp_rest_error_text(error, &line);
        for (size_t i = 0; i < kelpie_error_reason_count(error); i++)
            klp_buf_append_format(&line, "; %s", kelpie_error_reason(error, i));
        klp_format(errand->why, sizeof(errand->why), "%s", klp_buf_text(&line));
        sim_note("answer", "%s of %s: %s", errand->what, errand->agent, errand->why);
    }
    kelpie_error_free(error);
}

bool host_expect(const struct errand *errand)
{
    if (kelpie_is_ok(errand->outcome))
        return true;
    sim_fail(SIM_LIVENESS, "%s of %s on node %s %s: %s", errand->what, errand->agent,
             errand->host->name, kelpie_is_unknown(errand->outcome) ? "is unknown" : "failed",
             errand->lost ? "its daemon died" : errand->why);
    return false;
}

/* ---- opening and closing */

static kelpie_outcome host_wire(const struct kelpie_op *op, struct host *host,
                                struct kelpie_error **err)
{
    char path[64];
    klp_format(path, sizeof(path), "/%s/state", host->name);
    KLP_REQUIRE(klp_dir_open(host->env, path, true, &host->state_dir, err));
    KLP_REQUIRE(klp_dir_open_at(host->state_dir, "vms", true, &host->vms_dir, err));
    KLP_REQUIRE(klp_store_local_create(host->env, "/shared/store", &host->store, err));
    sim_store_spoil(host->store);
    host->registry = sim_registry_create(host->env, host->rows);
    host->factory =
        sim_factory_create(host->env, host->vms_dir, &sim_world->plan.node[host->index].facts);
    struct klp_node_options options = {.env = host->env,
                                       .name = host->name,
                                       .endpoint = host->peer->endpoint,
                                       .state_dir = host->state_dir,
                                       .store = host->store,
                                       .registry = host->registry,
                                       .factories = &host->factory,
                                       .factory_count = 1,
                                       .lease_ttl_ms = sim_world->plan.lease_ttl_ms,
                                       .boot_timeout_ms = 60000};
    return klp_node_open(op, &options, &host->node, err);
}

static void open_run(void *arg)
{
    struct errand *errand = arg;
    struct kelpie_error *error = NULL;
    struct kelpie_op op = errand_op(errand);
    kelpie_outcome outcome = host_wire(&op, errand->host, &error);
    errand_end(errand, outcome, error);
}

static void alive_run(void *arg)
{
    struct host *host = arg;
    while (!host->closes)
        sim_wait_source(&host->closing, SIM_NEVER, "the daemon's end");
}

void host_kill(struct host *host)
{
    host->node = NULL;
    if (!host->domain->crashed)
        sim_domain_crash(host->domain);
}

bool host_open(struct host *host, struct errand *out)
{
    *out = (struct errand){.host = host, .agent = "node", .what = "open"};
    host->peer = &sim_world->peers[host->index];
    host->node = NULL;
    host->closes = false;
    sim_source_init(&host->closing);
    host->env = &sim_world->envs[host->index]->base;
    host->domain = sim_domain_create(SIM_DAEMON, host->index, host->name);
    klp_format(host->peer->endpoint, sizeof(host->peer->endpoint), "sim:%s", host->name);
    host->peer->env = sim_world->envs[host->index];
    host->peer->domain = host->domain;
    host->alive = sim_fiber_start(sim_env_from(host->env), host->domain, "alive", alive_run, host);
    errand_begin(out, open_run);
    host_wait(out);
    if (out->lost || !kelpie_is_ok(out->outcome)) {
        host_kill(host);
        return false;
    }
    host->peer->node = host->node;
    return true;
}

/* One whose end was ordered and has not come: its keeper is at an order that takes long. */
static bool is_ending(void *arg, const char *name)
{
    struct host *host = arg;
    KLP_AUTO(dir) struct klp_dir *dir = NULL;
    KLP_AUTO(file) struct klp_file *file = NULL;
    if (klp_dir_open_at(host->vms_dir, name, false, &dir, NULL) &&
        klp_file_open(dir, KLP_KEEPER_ENDED, &file, NULL))
        host->ending = true;
    return !host->ending;
}

static void ending_run(void *arg)
{
    struct errand *errand = arg;
    errand->host->ending = false;
    KLP_IGNORE(klp_dir_list(errand->host->vms_dir, is_ending, errand->host, NULL));
    errand_end(errand, KLP_OK, NULL);
}

bool host_is_ending_vms(struct host *host)
{
    struct errand errand = {.host = host, .agent = "node", .what = "look"};
    errand_run(&errand, ending_run);
    return host->ending;
}

static bool leftover(void *arg, const char *name)
{
    const struct host *host = arg;
    sim_fail(SIM_SAFETY, "node %s leaves the folder of VM %s behind", host->name, name);
    return true;
}

static void close_run(void *arg)
{
    struct errand *errand = arg;
    struct host *host = errand->host;
    struct kelpie_op op = errand_op(errand);
    bool stop = strcmp(errand->what, "stop") == 0;
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
    host->node = NULL;
    errand_end(errand, KLP_OK, NULL);
}

void host_close(struct host *host, bool stop)
{
    struct errand errand = {.host = host, .agent = "node", .what = stop ? "stop" : "leave"};
    host->peer->node = NULL;
    host->closes = true;
    sim_wake(&host->closing);
    errand_run(&errand, close_run);
}

/* ---- what an operator asks for */

static bool collect(void *arg, bool is_stderr, const void *data, size_t size)
{
    struct errand *errand = arg;
    (void)is_stderr;
    if (size > sizeof(errand->text) - 1 - errand->text_size)
        size = sizeof(errand->text) - 1 - errand->text_size;
    memcpy(errand->text + errand->text_size, data, size);
    errand->text_size += size;
    return true;
}

static void exec_run(void *arg)
{
    struct errand *errand = arg;
    struct kelpie_error *error = NULL;
    struct kelpie_exec exec = {.argv = errand->argv, .output = collect, .arg = errand};
    struct kelpie_exec_status status = {.exit_code = -1};
    struct kelpie_op op = errand_op(errand);
    kelpie_outcome outcome =
        klp_node_exec(&op, errand->host->node, errand->agent, &exec, &status, &error);
    errand->exit_code = status.exit_code;
    errand_end(errand, outcome, error);
}

void host_exec(struct errand *errand)
{
    errand->what = errand->argv[0];
    errand->text_size = 0;
    memset(errand->text, 0, sizeof(errand->text));
    errand_run(errand, exec_run);
    if (kelpie_is_ok(errand->outcome))
        sim_note("exec", "%s on %s: %d %.*s", errand->what, errand->agent, (int)errand->exit_code,
                 (int)strcspn(errand->text, "\n"), errand->text);
}

static void create_run(void *arg)
{
    struct errand *errand = arg;
    struct kelpie_error *error = NULL;
    struct kelpie_op op = errand_op(errand);
    struct klp_agent_request request = {.memory_bytes = 128ull * KLP_MIB, .start = true};
    klp_text_copy(request.name, sizeof(request.name), errand->agent);
    klp_text_copy(request.image, sizeof(request.image), "base");
    kelpie_outcome outcome =
        klp_node_agent_create(&op, errand->host->node, &request, &errand->info, &error);
    if (kelpie_is_ok(outcome))
        klp_agent_info_finish(&errand->info);
    errand_end(errand, outcome, error);
}

void host_create(struct errand *errand)
{
    errand->what = "create";
    errand_run(errand, create_run);
}

static kelpie_outcome stop(const struct kelpie_op *op, struct klp_node *node, const char *agent,
                           struct kelpie_error **err)
{
    return klp_node_agent_stop(op, node, agent, 0, err);
}

static kelpie_outcome take_away(const struct kelpie_op *op, struct klp_node *node,
                                const char *agent, struct kelpie_error **err)
{
    return klp_node_agent_remove(op, node, agent, true, err);
}

static const struct {
    const char *name;
    kelpie_outcome (*run)(const struct kelpie_op *, struct klp_node *, const char *,
                          struct kelpie_error **);
} host_verbs[] = {
    {"start", klp_node_agent_start},   {"stop", stop},        {"pause", klp_node_agent_pause},
    {"resume", klp_node_agent_resume}, {"remove", take_away},
};

static void verb_run(void *arg)
{
    struct errand *errand = arg;
    struct kelpie_error *error = NULL;
    struct kelpie_op op = errand_op(errand);
    kelpie_outcome outcome = {KELPIE_FAIL};
    for (size_t i = 0; i < KLP_COUNT(host_verbs); i++)
        if (strcmp(errand->what, host_verbs[i].name) == 0)
            outcome = host_verbs[i].run(&op, errand->host->node, errand->agent, &error);
    errand_end(errand, outcome, error);
}

void host_verb(struct errand *errand)
{
    errand_run(errand, verb_run);
}

static void look_run(void *arg)
{
    struct errand *errand = arg;
    struct kelpie_error *error = NULL;
    struct klp_agent_info info;
    struct kelpie_op op = errand_op(errand);
    kelpie_outcome outcome =
        klp_node_agent_get(&op, errand->host->node, errand->agent, &info, &error);
    if (kelpie_is_ok(outcome)) {
        errand->info = info;
        errand->info.console_tail = NULL;
        klp_agent_info_finish(&info);
    }
    errand_end(errand, outcome, error);
}

void host_look(struct errand *errand)
{
    errand->what = "look";
    errand_run(errand, look_run);
}

static bool agent_pass(void *arg, const struct klp_agent_info *agent)
{
    const struct errand *errand = arg;
    errand->each(errand->arg, agent);
    return true;
}

static void list_run(void *arg)
{
    struct errand *errand = arg;
    struct kelpie_error *error = NULL;
    struct kelpie_op op = errand_op(errand);
    errand_end(errand, klp_node_agent_list(&op, errand->host->node, agent_pass, errand, &error),
               error);
}

bool host_agents(struct host *host, void (*each)(void *arg, const struct klp_agent_info *agent),
                 void *arg)
{
    struct errand errand = {.host = host, .agent = "all", .what = "list", .each = each, .arg = arg};
    errand_run(&errand, list_run);
    return host_expect(&errand);
}

static void snapshot_run(void *arg)
{
    struct errand *errand = arg;
    struct kelpie_error *error = NULL;
    struct klp_snapshot_info info;
    struct kelpie_op op = errand_op(errand);
    kelpie_outcome outcome = klp_node_snapshot_create(&op, errand->host->node, errand->agent,
                                                      &errand->request, &info, &error);
    if (kelpie_is_ok(outcome))
        klp_text_copy(errand->results[0], KLP_NAME_SIZE, info.id);
    errand_end(errand, outcome, error);
}

void host_snapshot(struct errand *errand)
{
    errand->what = "snapshot";
    errand_run(errand, snapshot_run);
}

/* ---- operations */

static kelpie_outcome ended_as(struct klp_operation_info *info, struct kelpie_error **err)
{
    if (info->state == KLP_OPERATION_DONE)
        return KLP_OK;
    klp_error_clear(err);
    *err = KLP_TAKE(&info->error);
    return (kelpie_outcome){info->state == KLP_OPERATION_FAILED ? KELPIE_FAIL : KELPIE_UNKNOWN};
}

/* Until it has ended. Done, failed, or unknown: what the operation came to, or what came of asking.
 */
static kelpie_outcome operation_wait(const struct kelpie_op *op, struct errand *errand,
                                     const char *id, bool is_ours, struct kelpie_error **err)
{
    struct klp_operation_info info;
    KLP_TRY(klp_node_operation_get(op, errand->host->node, id, 2 * HOST_OP_MS, &info, err));
    kelpie_outcome outcome = ended_as(&info, err);
    if (is_ours && kelpie_is_ok(outcome))
        sim_note("operation", "%s of %s: blackout_us=%llu", info.kind, errand->agent,
                 (unsigned long long)info.blackout_us);
    for (size_t i = 0; is_ours && info.results != NULL && i < HOST_RESULTS; i++) {
        if (info.results[i] == NULL)
            break;
        klp_text_copy(errand->results[i], KLP_NAME_SIZE, info.results[i]);
    }
    klp_operation_info_finish(&info);
    return outcome;
}

static kelpie_outcome operation_begin(const struct kelpie_op *op, const struct errand *errand,
                                      char id[KLP_ID_SIZE], struct kelpie_error **err)
{
    struct klp_action_request request = errand->request;
    if (request.timeout_ms == 0)
        request.timeout_ms = HOST_MOVE_MS;
    return klp_node_operation_begin(op, errand->host->node, errand->kind, errand->agent, &request,
                                    errand->key, id, err);
}

static kelpie_outcome operation_do(const struct kelpie_op *op, struct errand *errand,
                                   struct kelpie_error **err)
{
    char id[KLP_ID_SIZE], again[KLP_ID_SIZE], rival[KLP_ID_SIZE];
    KLP_TRY(operation_begin(op, errand, id, err));
    if (errand->key != NULL) {
        kelpie_outcome repeated = operation_begin(op, errand, again, NULL);
        errand->doubled = kelpie_is_ok(repeated) && strcmp(id, again) != 0;
    }
    bool has_rival =
        errand->rival != NULL && kelpie_is_ok(operation_begin(op, errand->rival, rival, NULL));
    if (errand->cancel_ns != 0) {
        KLP_TRY(klp_sleep_until(op, klp_boot_ns(op->env) + errand->cancel_ns, err));
        KLP_IGNORE(klp_node_operation_cancel(op, errand->host->node, id, NULL));
    }
    kelpie_outcome outcome = operation_wait(op, errand, id, true, err);
    KLP_AUTO(kelpie_error) struct kelpie_error *error = NULL;
    if (has_rival)
        errand->rival_outcome = operation_wait(op, errand, rival, false, &error);
    return outcome;
}

static void operate_run(void *arg)
{
    struct errand *errand = arg;
    struct kelpie_error *error = NULL;
    struct kelpie_op op = klp_op_plain(errand->host->env, 4 * HOST_OP_MS);
    kelpie_outcome outcome = operation_do(&op, errand, &error);
    errand_end(errand, outcome, error);
}

void host_operate_begin(struct errand *errand)
{
    static const char *const names[] = {"suspend", "fork", "restore", "teleport"};
    errand->what = names[errand->kind];
    errand_send(errand, operate_run);
}

void host_operate(struct errand *errand)
{
    host_operate_begin(errand);
    host_wait(errand);
}
