/* SPDX-License-Identifier: Apache-2.0 */
/* The node as a whole: opening, closing, what the teleport asks of it, what peers ask of it, and
 * looking at things. */
#include <string.h>

#include "base/fmt.h"
#include "env/chan.h"
#include "node/inside.h"

/* ---- the teleport's view */

kelpie_outcome vm_create_for(const struct kelpie_op *op, struct klp_node *node,
                             const struct klp_machine *machine, struct kelpie_vm **out,
                             struct kelpie_error **err)
{
    char id[KLP_ID_SIZE];
    struct kelpie_vm_factory *factory = factory_pick(node, machine->backend, machine->arch);
    if (factory == NULL)
        return klp_fail(err, KELPIE_E_UNSUPPORTED, "node '%s' does not run %s", node->name,
                        machine->backend);
    /* A restore builds the hypervisor from the machine description; the config names only its size.
     */
    struct kelpie_vm_config config = {.vcpu_count = machine->vcpus,
                                      .memory_mib = (uint32_t)(machine->memory_bytes / KLP_MIB),
                                      .arch = klp_arch_name(machine->arch)};
    char *kernel = NULL, *initramfs = NULL;
    klp_random_id(op->env, id);
    kelpie_outcome made = part_path(op, node, &machine->kernel, &kernel, err);
    if (kelpie_is_ok(made))
        made = part_path(op, node, &machine->initramfs, &initramfs, err);
    config.kernel_image_path = kernel;
    config.initrd_path = initramfs;
    if (kelpie_is_ok(made))
        made = kelpie_vm_create(op, factory, id, &config, out, err);
    klp_mem_free(kernel);
    klp_mem_free(initramfs);
    return made;
}

static kelpie_outcome vm_own(const struct kelpie_op *op, struct klp_host *host,
                             const char *agent_id, uint64_t epoch, struct kelpie_vm **vm,
                             struct kelpie_error **err)
{
    uint64_t fence_at = klp_boot_ns(op->env) + host->lease_ttl_ms * KLP_MS / 3 * 2;
    kelpie_outcome outcome = klp_vm_lease(op, *vm, epoch, fence_at, err);
    if (kelpie_is_ok(outcome))
        outcome = meta_put(op, *vm, agent_id, err);
    if (!kelpie_is_ok(outcome)) {
        struct kelpie_op cleanup = klp_op_cleanup(op, NODE_CLEANUP_MS);
        kelpie_vm_destroy(&cleanup, KLP_TAKE(vm));
    }
    return outcome;
}

static kelpie_outcome host_vm_make(const struct kelpie_op *op, struct klp_host *host,
                                   const char *agent_id, const struct klp_machine *machine,
                                   struct klp_layer *base, uint64_t epoch, struct kelpie_vm **out,
                                   struct kelpie_error **err)
{
    struct klp_node *node = node_from_host(host);
    *out = spare_take(node, machine, base);
    if (*out != NULL && kelpie_is_ok(vm_own(op, host, agent_id, epoch, out, NULL)))
        return KLP_OK; /* else it died unseen: what nobody had asked for is missed by nobody */
    KLP_TRY(vm_create_for(op, node, machine, out, err));
    return vm_own(op, host, agent_id, epoch, out, err);
}

static kelpie_outcome host_note_put(const struct kelpie_op *op, struct klp_host *host,
                                    const char *agent_id, struct klp_bytes text,
                                    struct kelpie_error **err)
{
    (void)op;
    KLP_REQUIRE(
        klp_file_write_all(node_from_host(host)->notes_dir, agent_id, text.data, text.size, err));
    return KLP_OK;
}

static kelpie_outcome host_note_remove(const struct kelpie_op *op, struct klp_host *host,
                                       const char *agent_id, struct kelpie_error **err)
{
    struct kelpie_error *error = NULL;
    (void)op;
    if (!klp_dir_remove(node_from_host(host)->notes_dir, agent_id, &error) &&
        kelpie_error_code(error) != KELPIE_E_NOT_FOUND) {
        klp_error_move(err, &error);
        return (kelpie_outcome){KELPIE_FAIL};
    }
    klp_error_clear(&error);
    return KLP_OK;
}

static void host_event(struct klp_host *host, const char *type, const char *agent, const char *text)
{
    event_post(node_from_host(host), type, agent, "%s", text);
}

const struct klp_host_ops node_host_ops = {
    .vm_make = host_vm_make,
    .base_get = base_get,
    .template_get = template_get,
    .note_put = host_note_put,
    .note_remove = host_note_remove,
    .event = host_event,
};

/* ---- open and close */

static bool dirs_open(struct klp_node *node, struct kelpie_error **err)
{
    struct klp_dir *state = node->options.state_dir;
    return klp_dir_open_at(state, "agents", true, &node->agents_dir, err) &&
           klp_dir_open_at(state, "notes", true, &node->notes_dir, err) &&
           klp_dir_open_at(state, "operations", true, &node->operations_dir, err) &&
           klp_dir_sync(state, err);
}

static void node_free(struct klp_node *node)
{
    while (!klp_list_is_empty(&node->agents)) {
        struct node_agent *agent = KLP_CONTAINER(node->agents.next, struct node_agent, link);
        klp_list_remove(&agent->link);
        agent_put(agent);
    }
    while (!klp_list_is_empty(&node->chores)) {
        struct chore *chore = KLP_CONTAINER(node->chores.next, struct chore, link);
        klp_list_remove(&chore->link);
        klp_mem_free(chore);
    }
    bases_drop(node);
    klp_samples_destroy(node->samples);
    klp_dir_close(node->agents_dir);
    klp_dir_close(node->notes_dir);
    klp_dir_close(node->operations_dir);
    klp_cancel_destroy(node->cancel);
    klp_cond_destroy(node->changed);
    klp_mutex_destroy(node->mutex);
    klp_mem_free(node->endpoint);
    klp_mem_free(node->events);
    klp_mem_free(node);
}

static struct klp_node *node_make(const struct klp_node_options *options)
{
    struct klp_node *node = KLP_NEW(struct klp_node);
    node->options = *options;
    klp_text_copy(node->name, sizeof(node->name), options->name);
    node->endpoint = klp_mem_string(options->endpoint);
    node->events = klp_mem_alloc_raw(NODE_EVENTS_MAX * sizeof(node->events[0]));
    node->host = (struct klp_host){.ops = &node_host_ops,
                                   .env = options->env,
                                   .node = node->name,
                                   .registry = options->registry,
                                   .snapshots = {options->env, options->store, 2},
                                   .lease_ttl_ms = options->lease_ttl_ms,
                                   .factories = options->factories,
                                   .factory_count = options->factory_count};
    node->mutex = klp_mutex_create(options->env);
    node->changed = klp_cond_create(options->env);
    node->cancel = klp_cancel_create(options->env);
    node->samples = klp_samples_create(options->env);
    klp_list_init(&node->agents);
    klp_list_init(&node->operations);
    klp_list_init(&node->chores);
    return node;
}

kelpie_outcome klp_node_open(const struct kelpie_op *op, const struct klp_node_options *options,
                             struct klp_node **out, struct kelpie_error **err)
{
    struct klp_node *node = node_make(options);
    kelpie_outcome outcome = KLP_OK;
    if (!dirs_open(node, err) || !operations_load(node, err))
        outcome = (kelpie_outcome){KELPIE_FAIL};
    if (kelpie_is_ok(outcome))
        outcome = recover(op, node, err);
    if (kelpie_is_ok(outcome) &&
        !klp_task_spawn(options->env, "lease", lease_run, node, &node->lease_task, err))
        outcome = (kelpie_outcome){KELPIE_FAIL};
    if (kelpie_is_ok(outcome) &&
        !klp_task_spawn(options->env, "janitor", janitor_run, node, &node->janitor, err))
        outcome = (kelpie_outcome){KELPIE_FAIL};
    if (kelpie_is_ok(outcome) && options->keep_spare &&
        !klp_task_spawn(options->env, "spare", spare_run, node, &node->spare_task, err))
        outcome = (kelpie_outcome){KELPIE_FAIL};
    if (!kelpie_is_ok(outcome)) {
        klp_node_close(op, node, false);
        return klp_wrap(err, outcome, "cannot open node '%s'", options->name);
    }
    event_post(node, "node.started", "", "%s", node->name);
    *out = node;
    return KLP_OK;
}

static void agents_stop(const struct kelpie_op *op, struct klp_node *node)
{
    for (;;) {
        char name[KLP_NAME_SIZE] = "";
        KLP_LOCKED (node->mutex) {
            KLP_LIST_EACH (item, &node->agents) {
                struct node_agent *agent = KLP_CONTAINER(item, struct node_agent, link);
                if (agent->life != NULL)
                    klp_text_copy(name, sizeof(name), agent->name);
            }
        }
        if (name[0] == 0 || !kelpie_is_ok(klp_node_agent_stop(op, node, name, 0, NULL)))
            return;
    }
}

void klp_node_close(const struct kelpie_op *op, struct klp_node *node, bool stop_agents)
{
    if (node == NULL)
        return;
    if (stop_agents)
        agents_stop(op, node);
    operations_close(node);
    klp_cancel_raise(node->cancel);
    if (node->lease_task != NULL)
        klp_task_join(node->lease_task);
    if (node->janitor != NULL)
        klp_task_join(node->janitor);
    if (node->spare_task != NULL)
        klp_task_join(node->spare_task);
    spare_drop(op, node);
    for (size_t i = 0; i < NODE_ARRIVALS_MAX; i++)
        klp_arrival_drop(op, KLP_TAKE(&node->arrivals[i].arrival));
    KLP_LIST_EACH (item, &node->agents) {
        life_end(op, KLP_CONTAINER(item, struct node_agent, link), true);
    }
    if (stop_agents)
        node_sweep(op, node);
    node_free(node);
}

const char *klp_node_name(const struct klp_node *node)
{
    return node->name;
}

struct klp_store *klp_node_store(struct klp_node *node)
{
    return node->options.store;
}

/* ---- looking at agents */

void info_fill(const struct klp_agent_record *record, struct klp_agent_info *out)
{
    static const uint8_t none[16];
    *out = (struct klp_agent_info){.state = record->state,
                                   .arch = record->arch,
                                   .epoch = record->epoch,
                                   .memory_bytes = record->memory_bytes,
                                   .vcpus = record->vcpus,
                                   .created_wall_ns = record->created_wall_ns};
    klp_text_copy(out->name, sizeof(out->name), record->name);
    klp_text_copy(out->id, sizeof(out->id), record->id);
    klp_text_copy(out->image, sizeof(out->image), record->image);
    klp_text_copy(out->node, sizeof(out->node), record->owner);
    klp_text_copy(out->parent, sizeof(out->parent), record->parent);
    klp_text_copy(out->backend, sizeof(out->backend), record->backend);
    klp_text_copy(out->reason, sizeof(out->reason), record->reason);
    memcpy(out->uniqueness, record->uniqueness, sizeof(out->uniqueness));
    if (memcmp(record->generation, none, sizeof(none)) != 0)
        klp_hex_encode(record->generation, sizeof(record->generation), out->generation);
}

/* What only this node knows of its own agents. */
static void info_complete(struct klp_node *node, struct klp_agent_info *info)
{
    struct node_agent *agent = agent_find_id(node, info->id);
    if (agent == NULL)
        return;
    KLP_LOCKED (node->mutex) {
        if (agent->life != NULL)
            info->pid = kelpie_vm_pid(agent->life->vm);
    }
    if (info->state == KLP_AGENT_CRASHED) {
        __attribute__((cleanup(klp_auto_buf))) struct klp_buf console = KLP_BUF_INIT(8 * KLP_KIB);
        KLP_AUTO(dir) struct klp_dir *dir = NULL;
        if (klp_dir_open_at(node->agents_dir, agent->id, false, &dir, NULL) &&
            klp_file_read_all(dir, "console", &console, NULL))
            info->console_tail = klp_buf_take_text(&console);
    }
    agent_put(agent);
}

kelpie_outcome klp_node_agent_get(const struct kelpie_op *op, struct klp_node *node,
                                  const char *name, struct klp_agent_info *out,
                                  struct kelpie_error **err)
{
    struct klp_agent_record record;
    if (!klp_name_is_valid(name))
        return klp_fail(err, KELPIE_E_NOT_FOUND, "no agent '%.*s'", 80, name);
    KLP_TRY(klp_registry_find(op, node->host.registry, name, &record, err));
    info_fill(&record, out);
    klp_agent_record_finish(&record);
    info_complete(node, out);
    return KLP_OK;
}

struct agent_listing {
    struct klp_node *node;
    bool (*each)(void *, const struct klp_agent_info *);
    void *arg;
};

static bool agent_each(void *arg, const struct klp_agent_record *record)
{
    struct agent_listing *listing = arg;
    struct klp_agent_info info;
    info_fill(record, &info);
    info_complete(listing->node, &info);
    bool more = listing->each(listing->arg, &info);
    klp_agent_info_finish(&info);
    return more;
}

kelpie_outcome klp_node_agent_list(const struct kelpie_op *op, struct klp_node *node,
                                   bool (*each)(void *, const struct klp_agent_info *), void *arg,
                                   struct kelpie_error **err)
{
    struct agent_listing listing = {node, each, arg};
    return klp_registry_list(op, node->host.registry, agent_each, &listing, err);
}

kelpie_outcome klp_node_owner(const struct kelpie_op *op, struct klp_node *node, const char *name,
                              bool *out_mine, char *out_endpoint, struct kelpie_error **err)
{
    struct klp_agent_record record;
    struct klp_node_record owner;
    if (!klp_name_is_valid(name))
        return klp_fail(err, KELPIE_E_NOT_FOUND, "no agent '%.*s'", 80, name);
    KLP_TRY(klp_registry_find(op, node->host.registry, name, &record, err));
    *out_mine = strcmp(record.owner, node->name) == 0;
    kelpie_outcome outcome = KLP_OK;
    if (!*out_mine) {
        struct kelpie_error *error = NULL;
        outcome = klp_registry_node_get(op, node->host.registry, record.owner, &owner, &error);
        if (kelpie_is_ok(outcome))
            klp_text_copy(out_endpoint, KLP_ENDPOINT_SIZE, owner.endpoint);
        else if (kelpie_error_code(error) == KELPIE_E_NOT_FOUND) {
            klp_error_clear(&error);
            outcome = klp_fail(err, KELPIE_E_UNREACHABLE,
                               "'%s' is on node '%s', which is not there", name, record.owner);
            klp_error_remedy_set(err, "kelpie restore %s --claim", name);
        }
        klp_error_move(err, &error);
    }
    klp_agent_record_finish(&record);
    return outcome;
}

static bool condition_holds(const char *condition, enum klp_agent_state state)
{
    if (strcmp(condition, "stopped") == 0)
        return state == KLP_AGENT_STOPPED || state == KLP_AGENT_CRASHED ||
               state == KLP_AGENT_SUSPENDED;
    return state == KLP_AGENT_RUNNING;
}

kelpie_outcome klp_node_agent_wait(const struct kelpie_op *op, struct klp_node *node,
                                   const char *name, const char *condition,
                                   struct klp_agent_info *out, struct kelpie_error **err)
{
    if (strcmp(condition, "running") != 0 && strcmp(condition, "stopped") != 0 &&
        strcmp(condition, "ready") != 0)
        return klp_fail(err, KELPIE_E_INVALID, "cannot wait for '%.*s': running, stopped or ready",
                        40, condition);
    for (;;) {
        struct klp_agent_record record;
        KLP_TRY(klp_registry_find(op, node->host.registry, name, &record, err));
        bool holds = condition_holds(condition, record.state);
        info_fill(&record, out);
        klp_agent_record_finish(&record);
        if (holds) {
            info_complete(node, out);
            return KLP_OK;
        }
        struct kelpie_op nap = klp_op_within(op, 1000);
        KLP_IGNORE(klp_registry_watch(&nap, node->host.registry, record.id, record.revision, NULL));
        KLP_TRY(klp_op_check(op, "waiting for an agent", err));
    }
}

/* ---- exec, files, logs */

kelpie_outcome klp_node_exec(const struct kelpie_op *op, struct klp_node *node, const char *name,
                             const struct kelpie_exec *exec, struct kelpie_exec_status *out,
                             struct kelpie_error **err)
{
    struct node_agent *agent;
    struct life *life;
    KLP_TRY(agent_get(op, node, name, &agent, err));
    kelpie_outcome outcome = life_borrow(agent, &life, err);
    if (kelpie_is_ok(outcome)) {
        outcome = kelpie_vm_exec(op, life->vm, exec, out, err);
        life_return(life);
    }
    agent_put(agent);
    return outcome;
}

kelpie_outcome klp_node_exec_control(const struct kelpie_op *op, struct klp_node *node,
                                     const char *name, struct kelpie_exec_control **out,
                                     struct kelpie_error **err)
{
    struct node_agent *agent;
    struct life *life;
    KLP_TRY(agent_get(op, node, name, &agent, err));
    kelpie_outcome outcome = life_borrow(agent, &life, err);
    if (kelpie_is_ok(outcome)) {
        *out = kelpie_exec_control_create(life->vm);
        life_return(life);
    }
    agent_put(agent);
    return outcome;
}

kelpie_outcome klp_node_put(const struct kelpie_op *op, struct klp_node *node, const char *name,
                            const char *path, size_t (*input)(void *, void *, size_t), void *arg,
                            struct kelpie_error **err)
{
    struct node_agent *agent;
    struct life *life;
    KLP_TRY(agent_get(op, node, name, &agent, err));
    kelpie_outcome outcome = life_borrow(agent, &life, err);
    if (kelpie_is_ok(outcome)) {
        outcome = kelpie_vm_put(op, life->vm, path, input, arg, err);
        life_return(life);
    }
    agent_put(agent);
    return outcome;
}

kelpie_outcome klp_node_get(const struct kelpie_op *op, struct klp_node *node, const char *name,
                            const char *path, bool (*output)(void *, const void *, size_t),
                            void *arg, struct kelpie_error **err)
{
    struct node_agent *agent;
    struct life *life;
    KLP_TRY(agent_get(op, node, name, &agent, err));
    kelpie_outcome outcome = life_borrow(agent, &life, err);
    if (kelpie_is_ok(outcome)) {
        outcome = kelpie_vm_get(op, life->vm, path, output, arg, err);
        life_return(life);
    }
    agent_put(agent);
    return outcome;
}

struct log_output {
    bool (*output)(void *, bool, const void *, size_t);
    void *arg;
};

static bool log_take(void *arg, uint64_t offset, bool is_stderr, const void *data, size_t size)
{
    struct log_output *log = arg;
    (void)offset;
    return log->output(log->arg, is_stderr, data, size);
}

static kelpie_outcome log_live(const struct kelpie_op *op, struct life *life, bool follow,
                               bool console, struct log_output *log,
                               struct kelpie_exec_status *out_status, bool *out_ended,
                               struct kelpie_error **err)
{
    struct klp_guest *guest;
    struct klp_guest_main end = {.state = KLP_MAIN_NONE};
    if (console) {
        char text[16 * KLP_KIB];
        kelpie_vm_console(op, life->vm, text, sizeof(text));
        log->output(log->arg, false, text, strlen(text));
        return KLP_OK;
    }
    KLP_TRY(klp_vm_guest(op, life->vm, &guest, err));
    KLP_TRY(klp_guest_main_log(op, guest, 0, follow, log_take, log, &end, err));
    *out_ended = end.state == KLP_MAIN_EXITED;
    out_status->signal = end.signal;
    out_status->exit_code = end.signal != 0 ? 128 + end.signal : end.exit_code;
    return KLP_OK;
}

static void log_saved(struct klp_node *node, struct node_agent *agent, bool console,
                      struct log_output *log)
{
    KLP_AUTO(dir) struct klp_dir *dir = NULL;
    KLP_AUTO(file) struct klp_file *file = NULL;
    if (!klp_dir_open_at(node->agents_dir, agent->id, false, &dir, NULL) ||
        !klp_file_open(dir, console ? "console" : "log", &file, NULL))
        return;
    uint8_t bytes[16 * KLP_KIB];
    size_t got = 1;
    for (uint64_t at = 0; got > 0; at += got)
        if (!klp_file_pread(file, at, bytes, sizeof(bytes), &got, NULL) ||
            (got > 0 && !log->output(log->arg, false, bytes, got)))
            return;
}

kelpie_outcome klp_node_logs(const struct kelpie_op *op, struct klp_node *node, const char *name,
                             bool follow, bool console,
                             bool (*output)(void *, bool, const void *, size_t), void *arg,
                             struct kelpie_exec_status *out_status, bool *out_ended,
                             struct kelpie_error **err)
{
    struct node_agent *agent;
    struct life *life;
    struct log_output log = {output, arg};
    *out_ended = false;
    *out_status = (struct kelpie_exec_status){.exit_code = 0};
    KLP_TRY(agent_get(op, node, name, &agent, err));
    kelpie_outcome outcome = KLP_OK;
    if (kelpie_is_ok(life_borrow(agent, &life, NULL))) {
        outcome = log_live(op, life, follow, console, &log, out_status, out_ended, err);
        life_return(life);
    } else {
        log_saved(node, agent, console, &log);
    }
    agent_put(agent);
    return outcome;
}

/* ---- nodes and events */

struct node_listing {
    struct klp_node *node;
    size_t count;
    struct klp_node_record records[64];
};

static bool node_each(void *arg, const struct klp_node_record *record)
{
    struct node_listing *listing = arg;
    if (listing->count < KLP_COUNT(listing->records))
        listing->records[listing->count++] = *record;
    return true;
}

kelpie_outcome klp_node_list(const struct kelpie_op *op, struct klp_node *node,
                             bool (*each)(void *, const struct klp_node_record *, const char *),
                             void *arg, struct kelpie_error **err)
{
    struct node_listing *listing = KLP_NEW(struct node_listing);
    kelpie_outcome outcome =
        klp_registry_node_list(op, node->host.registry, node_each, listing, err);
    bool more = kelpie_is_ok(outcome);
    for (size_t i = 0; more && i < listing->count; i++) {
        struct klp_node_record *record = &listing->records[i];
        __attribute__((cleanup(klp_auto_buf))) struct klp_buf answer =
            KLP_BUF_INIT(KLP_REST_BODY_MAX);
        struct kelpie_op within = klp_op_within(op, 1000);
        int status;
        bool mine = strcmp(record->name, node->name) == 0;
        bool reached = mine || kelpie_is_ok(klp_peer_call(&within, record->endpoint, "GET", "/v1",
                                                          (struct klp_bytes){NULL, 0}, &status,
                                                          &answer, NULL));
        more = each(arg, record, reached ? record->state : "unreachable");
    }
    klp_mem_free(listing);
    return outcome;
}

kelpie_outcome klp_node_events(const struct kelpie_op *op, struct klp_node *node, uint64_t since,
                               struct klp_event *out, size_t capacity, size_t *out_count,
                               struct kelpie_error **err)
{
    (void)err;
    *out_count = 0;
    klp_mutex_lock(node->mutex);
    while (node->event_seq <= since &&
           kelpie_is_ok(klp_cond_wait(op, node->changed, node->mutex, NULL)))
        continue;
    uint64_t first = since + 1;
    if (node->event_seq > NODE_EVENTS_MAX && first + NODE_EVENTS_MAX <= node->event_seq) {
        first = node->event_seq - NODE_EVENTS_MAX + 1;
        out[(*out_count)++] =
            (struct klp_event){.seq = first - 1, .wall_ns = klp_wall_ns(op->env), .type = "gap"};
    }
    for (uint64_t seq = first; seq <= node->event_seq && *out_count < capacity; seq++)
        out[(*out_count)++] = node->events[seq % NODE_EVENTS_MAX];
    klp_mutex_unlock(node->mutex);
    return KLP_OK;
}
