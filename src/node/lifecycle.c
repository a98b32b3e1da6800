/* SPDX-License-Identifier: Apache-2.0 */
/* create, start, stop, kill, rm, pause, resume: one agent, under its op slot. */
#include <string.h>

#include "base/fmt.h"
#include "node/inside.h"

#define STOP_GRACE_MS 10000

/* ---- create */

struct kelpie_vm_factory *factory_pick(struct klp_node *node, const char *backend,
                                       enum klp_arch arch)
{
    for (size_t i = 0; i < node->host.factory_count; i++) {
        struct kelpie_vm_factory *factory = node->host.factories[i];
        if ((backend[0] == 0 || strcmp(kelpie_vm_factory_name(factory), backend) == 0) &&
            (arch == KLP_ARCH_NONE || factory->arch == arch))
            return factory;
    }
    return NULL;
}

static kelpie_outcome no_factory(const struct klp_node *node, const char *backend,
                                 enum klp_arch arch, struct kelpie_error **err)
{
    kelpie_outcome refused =
        klp_fail(err, KELPIE_E_UNSUPPORTED, "node '%s' does not run %s%sguests%s%s", node->name,
                 arch == KLP_ARCH_NONE ? "" : klp_arch_name(arch), arch == KLP_ARCH_NONE ? "" : " ",
                 backend[0] != 0 ? " with " : "", backend);
    klp_error_remedy_set(err, "kelpie doctor");
    return refused;
}

static bool request_env_check(char *const *env, struct kelpie_error **err)
{
    size_t bytes = 0, count = 0;
    for (; env != NULL && env[count] != NULL; count++) {
        const char *equals = env[count];
        while (*equals != 0 && *equals != '=')
            equals++;
        if (*equals == 0 || equals == env[count])
            return klp_refuse(err, KELPIE_E_INVALID, "environment: '%.*s' is not NAME=VALUE", 40,
                              env[count]);
        bytes += strlen(env[count]) + 1;
    }
    if (count > KLP_ENV_MAX || bytes > KLP_ARG_BYTES_MAX)
        return klp_refuse(err, KELPIE_E_LIMIT,
                          "the environment is larger than %u bytes or %d entries",
                          KLP_ARG_BYTES_MAX, KLP_ENV_MAX);
    return true;
}

static void name_draw(struct klp_env *env, char out[KLP_NAME_SIZE])
{
    static const char *const first[] = {"able",  "bold", "calm", "deft",
                                        "eager", "fair", "glad", "keen"};
    static const char *const second[] = {"alder", "birch", "cedar", "fern",
                                         "hazel", "larch", "maple", "rowan"};
    uint8_t bytes[6];
    klp_random(env, bytes, sizeof(bytes));
    klp_format(out, KLP_NAME_SIZE, "%s-%s-%02x%02x%02x", first[bytes[0] % 8], second[bytes[1] % 8],
               bytes[2], bytes[3], bytes[4]);
}

/* Everything about a request that can be wrong, before anything is made. */
static kelpie_outcome request_check(const struct kelpie_op *op, struct klp_node *node,
                                    const struct klp_agent_request *request,
                                    struct kelpie_vm_factory **out, struct kelpie_error **err)
{
    struct klp_machine machine;
    if (request->name[0] != 0)
        KLP_REQUIRE(klp_name_check("agent", request->name, err));
    if (request->image[0] != 0)
        KLP_REQUIRE(klp_name_check("image", request->image, err));
    KLP_REQUIRE(request_env_check(request->env, err));
    struct kelpie_vm_factory *factory = factory_pick(node, request->backend, request->arch);
    if (factory == NULL)
        return no_factory(node, request->backend, request->arch, err);
    if (request->memory_bytes % KLP_MIB != 0)
        return klp_fail(err, KELPIE_E_INVALID, "memory of %llu bytes is not a whole number of MiB",
                        (unsigned long long)request->memory_bytes);
    uint64_t memory_mib = request->memory_bytes / KLP_MIB;
    struct kelpie_vm_config config = {.vcpu_count = request->vcpus,
                                      .memory_mib = memory_mib > UINT32_MAX ? UINT32_MAX
                                                                            : (uint32_t)memory_mib,
                                      .arch = klp_arch_name(factory->arch),
                                      .workdir = request->workdir,
                                      .env = (const char *const *)request->env};
    const char *image = request->image[0] != 0 ? request->image : "base";
    struct klp_image found;
    struct klp_digest digest;
    bool needs_image = strcmp(kelpie_vm_factory_name(factory), "mock") != 0 &&
                       strcmp(kelpie_vm_factory_name(factory), "sim") != 0;
    if (needs_image) {
        KLP_TRY(image_load(op, node, image, factory->arch, &found, &digest, err));
        config.kernel_image_path = config.initrd_path =
            "/"; /* their places are found at the start */
    }
    KLP_REQUIRE(klp_vm_factory_machine(factory, &config, &machine, err));
    *out = factory;
    return KLP_OK;
}

static void record_fill(struct klp_node *node, const struct klp_agent_request *request,
                        const struct kelpie_vm_factory *factory, struct klp_agent_record *out)
{
    *out = (struct klp_agent_record){
        .epoch = 1,
        .state = KLP_AGENT_CREATED,
        .lease_ttl_ms = node->host.lease_ttl_ms,
        .arch = factory->arch,
        .vcpus = request->vcpus != 0 ? request->vcpus : KLP_VCPUS_DEFAULT,
        .memory_bytes = request->memory_bytes != 0 ? request->memory_bytes
                                                   : (uint64_t)KLP_MEMORY_MIB_DEFAULT * KLP_MIB,
        .created_wall_ns = klp_wall_ns(node->host.env)};
    klp_random_id(node->host.env, out->id);
    if (request->name[0] != 0)
        klp_text_copy(out->name, sizeof(out->name), request->name);
    else
        name_draw(node->host.env, out->name);
    klp_text_copy(out->owner, sizeof(out->owner), node->name);
    klp_text_copy(out->image, sizeof(out->image), request->image[0] != 0 ? request->image : "base");
    klp_text_copy(out->backend, sizeof(out->backend), kelpie_vm_factory_name(factory));
}

static void identity_fill(struct node_agent *agent, const struct klp_agent_request *request)
{
    const struct klp_agent_record *record = &agent->record;
    struct klp_agent_identity *identity = &agent->identity;
    *identity =
        (struct klp_agent_identity){.vcpus = record->vcpus, .memory_bytes = record->memory_bytes};
    klp_text_copy(identity->id, sizeof(identity->id), record->id);
    klp_text_copy(identity->name, sizeof(identity->name), record->name);
    klp_text_copy(identity->image, sizeof(identity->image), record->image);
    klp_text_copy(identity->image_version, sizeof(identity->image_version), "0.0.0");
    identity->workdir = klp_mem_string(request->workdir);
    if (request->argv != NULL)
        identity->argv = klp_texts_copy((const char *const *)request->argv);
    if (request->env != NULL)
        agent->env = klp_texts_copy((const char *const *)request->env);
    agent->remove_at_end = request->remove_at_end;
}

kelpie_outcome klp_node_agent_create(const struct kelpie_op *op, struct klp_node *node,
                                     const struct klp_agent_request *request,
                                     struct klp_agent_info *out, struct kelpie_error **err)
{
    struct kelpie_vm_factory *factory = NULL;
    struct klp_agent_record record;
    KLP_TRY(request_check(op, node, request, &factory, err));
    if (node->agent_count >= NODE_AGENTS_MAX)
        return klp_fail(err, KELPIE_E_LIMIT, "node '%s' has %d agents already", node->name,
                        NODE_AGENTS_MAX);
    record_fill(node, request, factory, &record);
    KLP_TRY(klp_registry_create(op, node->host.registry, &record, err));

    struct node_agent *agent = agent_add(node, &record);
    AUTO_AGENT struct node_agent *held = agent;
    KLP_TRY(slot_take(op, agent, err));
    identity_fill(agent, request);
    kelpie_outcome outcome = agent_save(agent, err) ? KLP_OK : (kelpie_outcome){KELPIE_FAIL};
    if (kelpie_is_ok(outcome)) {
        event_post(node, "agent.created", agent->name, "%s", record.image);
        if (request->start)
            outcome = start_cold(op, agent, err);
    }
    if (!kelpie_is_ok(outcome)) {
        /* Nothing was made: a run that could not start leaves no agent behind. */
        struct kelpie_op cleanup = klp_op_cleanup(op, NODE_CLEANUP_MS);
        if (kelpie_is_ok(record_delete(&cleanup, agent, NULL)))
            agent_forget(agent);
        else
            record_later(agent, KLP_AGENT_NONE, "");
        return outcome;
    }
    info_fill(&held->record, out);
    if (agent->life != NULL)
        out->pid = kelpie_vm_pid(agent->life->vm);
    return KLP_OK;
}

/* ---- start */

/* Hostname, environment, working directory: before anybody can see the guest. */
static kelpie_outcome setup_prepare(const struct kelpie_op *op, void *arg, struct kelpie_vm *vm,
                                    struct kelpie_error **err)
{
    struct node_agent *agent = arg;
    struct klp_guest *guest;
    KLP_TRY(klp_vm_guest(op, vm, &guest, err));
    return klp_guest_setup(op, guest, agent->name, (const char *const *)agent->env,
                           agent->identity.workdir, err);
}

static kelpie_outcome setup_thawed(const struct kelpie_op *op, void *arg, struct kelpie_vm *vm,
                                   struct kelpie_error **err)
{
    struct node_agent *agent = arg;
    struct klp_guest *guest;
    if (agent->identity.argv == NULL)
        return KLP_OK;
    KLP_TRY(klp_vm_guest(op, vm, &guest, err));
    return klp_guest_main_start(op, guest, (const char *const *)agent->identity.argv, NULL,
                                agent->identity.workdir, err);
}

/* STARTING in the registry, then the bring-up; failure puts the state back to `failure`. An agent
 * that starts anew has no snapshot any more: what it was before must not come back in a crash. */
static kelpie_outcome bring_up(const struct kelpie_op *op, struct node_agent *agent,
                               const struct klp_parts *parts, const struct klp_bringup *how,
                               bool anew, struct kelpie_error **err)
{
    struct klp_node *node = agent->node;
    struct klp_agent_record next = agent->record;
    if (anew)
        next.manifest = (struct klp_digest){{0}};
    next.state = KLP_AGENT_STARTING;
    next.reason[0] = 0;
    KLP_TRY(record_set(op, agent, &next, err));

    struct klp_bringup bringup = *how;
    struct kelpie_vm *vm = NULL;
    bringup.parts = parts;
    bringup.hostname = agent->name;
    bringup.samples = node->samples;
    struct klp_agent_record record = agent->record;
    kelpie_outcome outcome = klp_bringup_run(op, &node->host, &bringup, &vm, &record, err);
    record_adopt(agent, &record);
    if (!kelpie_is_ok(outcome)) {
        if (agent->record.state == KLP_AGENT_STARTING) /* not even that could be recorded */
            record_later(agent, how->failure_state, "it could not be started");
        return klp_wrap(err, outcome, "cannot start '%s'", agent->name);
    }
    life_begin(agent, vm);
    return KLP_OK;
}

kelpie_outcome start_cold(const struct kelpie_op *op, struct node_agent *agent,
                          struct kelpie_error **err)
{
    struct klp_node *node = agent->node;
    struct kelpie_vm_factory *factory =
        factory_pick(node, agent->record.backend, agent->record.arch);
    struct klp_parts parts;
    struct klp_digest template_;
    if (factory == NULL)
        return no_factory(node, agent->record.backend, agent->record.arch, err);
    KLP_TRY(template_for(op, node, factory, &agent->identity, &template_,
                         &agent->identity.image_digest, agent->identity.image_version, err));
    agent->template_ = template_;
    KLP_REQUIRE(agent_save(agent, err));
    klp_op_phase(op, "load");
    KLP_TRY(klp_parts_load(op, &node->host, &template_, NULL, &parts, err));
    struct klp_bringup how = {.which = KLP_UNIQUE_FORK,
                              .failure_state = agent->record.state,
                              .prepare = setup_prepare,
                              .thawed = setup_thawed,
                              .arg = agent};
    kelpie_outcome outcome = bring_up(op, agent, &parts, &how, true, err);
    klp_parts_finish(&parts);
    return outcome;
}

kelpie_outcome start_from(const struct kelpie_op *op, struct node_agent *agent,
                          enum klp_unique_case which, struct kelpie_error **err)
{
    struct klp_node *node = agent->node;
    struct klp_parts parts;
    struct klp_manifest manifest;
    KLP_TRY(klp_snapshot_load(op, &node->host.snapshots, &agent->record.manifest, &manifest, err));
    struct klp_digest digest = agent->record.manifest;
    struct klp_checkpoint checkpoint = {&node->host, &manifest};
    bool is_checkpoint = manifest.kind == KLP_KIND_CHECKPOINT;
    if (strcmp(manifest.agent.id, agent->id) != 0)
        which = KLP_UNIQUE_FORK; /* of another agent: a fork that has no snapshot of its own yet */
    struct klp_bringup how = {.which = is_checkpoint ? KLP_UNIQUE_FORK : which,
                              .failure_state = agent->record.state,
                              .prepare = is_checkpoint ? klp_checkpoint_prepare : NULL,
                              .thawed = is_checkpoint ? klp_checkpoint_thawed : NULL,
                              .arg = &checkpoint};
    kelpie_outcome outcome = KLP_OK;
    if (is_checkpoint)
        outcome = template_get(op, &node->host, &manifest.agent, &digest, err);
    else
        outcome = klp_gate_check(op, &node->host, manifest.kind, &manifest.machine, &manifest.agent,
                                 NULL, err);
    klp_op_phase(op, "load");
    if (kelpie_is_ok(outcome))
        outcome = klp_parts_load(op, &node->host, &digest, NULL, &parts, err);
    if (kelpie_is_ok(outcome)) {
        agent->template_ = is_checkpoint ? digest : manifest.template_;
        outcome = bring_up(op, agent, &parts, &how, false, err);
        klp_parts_finish(&parts);
    }
    klp_manifest_finish(&manifest);
    return outcome;
}

static kelpie_outcome state_refused(const struct node_agent *agent, const char *verb,
                                    struct kelpie_error **err)
{
    return klp_fail(err, KELPIE_E_STATE, "cannot %s '%s': it is %s", verb, agent->name,
                    klp_agent_state_name(agent->record.state));
}

kelpie_outcome klp_node_agent_start(const struct kelpie_op *op, struct klp_node *node,
                                    const char *name, struct kelpie_error **err)
{
    AUTO_AGENT struct node_agent *agent = NULL;
    KLP_TRY(agent_take(op, node, name, &agent, err));
    bool has_manifest = !klp_digest_is_zero(&agent->record.manifest);
    switch (agent->record.state) {
    case KLP_AGENT_CREATED:
    case KLP_AGENT_STOPPED:
        return start_cold(op, agent, err);
    case KLP_AGENT_SUSPENDED:
    case KLP_AGENT_PARKED:
        return start_from(op, agent, KLP_UNIQUE_MOVE, err);
    case KLP_AGENT_CRASHED:
        return has_manifest ? start_from(op, agent, KLP_UNIQUE_REWIND, err)
                            : start_cold(op, agent, err);
    default:
        return state_refused(agent, "start", err);
    }
}

/* ---- stop, kill, rm: the record first. A registry that refuses it leaves the agent as it is; a
 * crash behind it leaves a VM that nobody wants, which recovery destroys. */

static kelpie_outcome state_set(const struct kelpie_op *op, struct node_agent *agent,
                                enum klp_agent_state state, const char *reason,
                                struct kelpie_error **err)
{
    struct klp_agent_record next = agent->record;
    next.state = state;
    next.move_id[0] = next.destination[0] = 0;
    klp_format(next.reason, sizeof(next.reason), "%s", reason);
    return record_set(op, agent, &next, err);
}

kelpie_outcome klp_node_agent_stop(const struct kelpie_op *op, struct klp_node *node,
                                   const char *name, uint64_t grace_ms, struct kelpie_error **err)
{
    AUTO_AGENT struct node_agent *agent = NULL;
    KLP_TRY(agent_take(op, node, name, &agent, err));
    if (agent->life == NULL && agent->record.state != KLP_AGENT_SUSPENDED &&
        agent->record.state != KLP_AGENT_PARKED)
        return state_refused(agent, "stop", err);
    bool paused = agent->record.state == KLP_AGENT_PAUSED;
    kelpie_outcome outcome = state_set(op, agent, KLP_AGENT_STOPPED, "stopped", err);
    if (outcome.kind == KELPIE_FAIL || agent->life == NULL)
        return outcome;
    if (paused)
        KLP_IGNORE(klp_vm_release(op, agent->life->vm, KLP_HOLD_USER, NULL));
    KLP_IGNORE(kelpie_vm_stop(op, agent->life->vm, grace_ms != 0 ? grace_ms : STOP_GRACE_MS, NULL));
    life_end(op, agent, false); /* whatever the guest made of it */
    return outcome;
}

kelpie_outcome klp_node_agent_kill(const struct kelpie_op *op, struct klp_node *node,
                                   const char *name, int signal, struct kelpie_error **err)
{
    AUTO_AGENT struct node_agent *agent = NULL;
    KLP_TRY(agent_take(op, node, name, &agent, err));
    if (agent->life == NULL)
        return state_refused(agent, "kill", err);
    if (signal != 9 && signal != 0) {
        struct klp_guest *guest;
        KLP_TRY(klp_vm_guest(op, agent->life->vm, &guest, err));
        return klp_guest_main_signal(op, guest, signal, err);
    }
    kelpie_outcome outcome = state_set(op, agent, KLP_AGENT_STOPPED, "killed", err);
    if (outcome.kind != KELPIE_FAIL)
        life_end(op, agent, false);
    return outcome;
}

kelpie_outcome klp_node_agent_remove(const struct kelpie_op *op, struct klp_node *node,
                                     const char *name, bool force, struct kelpie_error **err)
{
    struct kelpie_error *error = NULL;
    AUTO_AGENT struct node_agent *agent = NULL;
    kelpie_outcome taken = agent_take(op, node, name, &agent, &error);
    if (!kelpie_is_ok(taken)) {
        bool absent =
            force && kelpie_error_code(error) == KELPIE_E_NOT_FOUND && klp_name_is_valid(name);
        if (absent)
            klp_error_clear(&error);
        klp_error_move(err, &error);
        return absent ? KLP_OK : taken;
    }
    if (agent->life != NULL && !force) {
        kelpie_outcome refused = state_refused(agent, "remove", err);
        klp_error_remedy_set(err, "kelpie rm -f %s", name);
        return refused;
    }
    kelpie_outcome outcome = record_delete(op, agent, &error);
    bool gone = kelpie_is_ok(outcome) || kelpie_error_code(error) == KELPIE_E_NOT_FOUND;
    if (!gone) {
        if (kelpie_is_unknown(outcome)) {
            life_end(op, agent, false);
            record_later(agent, KLP_AGENT_STOPPED, "stopped");
        }
        klp_error_move(err, &error);
        return outcome;
    }
    klp_error_clear(&error);
    life_end(op, agent, false);
    KLP_IGNORE(klp_dir_remove(node->notes_dir, agent->id, NULL));
    event_post(node, "agent.removed", agent->name, "%s", "");
    agent_forget(agent);
    return KLP_OK;
}

/* ---- pause, resume. A paused agent is frozen inside as well, so that a snapshot of it is
 * consistent. */

kelpie_outcome klp_node_agent_pause(const struct kelpie_op *op, struct klp_node *node,
                                    const char *name, struct kelpie_error **err)
{
    AUTO_AGENT struct node_agent *agent = NULL;
    KLP_TRY(agent_take(op, node, name, &agent, err));
    if (agent->record.state != KLP_AGENT_RUNNING || agent->life == NULL)
        return state_refused(agent, "pause", err);
    struct kelpie_vm *vm = agent->life->vm;
    /* A freeze that failed may have been done: its answer was lost, or was none. */
    kelpie_outcome outcome = klp_workload_freeze(op, vm, err);
    if (kelpie_is_ok(outcome))
        outcome = kelpie_vm_pause(op, vm, err);
    if (kelpie_is_ok(outcome))
        outcome = state_set(op, agent, KLP_AGENT_PAUSED, "", err);
    if (!kelpie_is_ok(outcome)) {
        struct kelpie_op cleanup = klp_op_cleanup(op, NODE_CLEANUP_MS);
        if (!kelpie_is_ok(klp_vm_release(&cleanup, vm, KLP_HOLD_USER, NULL)) ||
            !kelpie_is_ok(klp_workload_thaw(&cleanup, vm, NULL)))
            chore_post(agent->node, CHORE_WAKE, agent->id, agent->life, "");
    }
    return outcome;
}

kelpie_outcome klp_node_agent_resume(const struct kelpie_op *op, struct klp_node *node,
                                     const char *name, struct kelpie_error **err)
{
    AUTO_AGENT struct node_agent *agent = NULL;
    KLP_TRY(agent_take(op, node, name, &agent, err));
    if (agent->record.state == KLP_AGENT_SUSPENDED || agent->record.state == KLP_AGENT_PARKED)
        return start_from(op, agent, KLP_UNIQUE_MOVE, err);
    if (agent->record.state != KLP_AGENT_PAUSED || agent->life == NULL)
        return state_refused(agent, "resume", err);
    /* Perhaps again: one that failed behind the first step left the VM running. */
    KLP_TRY(klp_vm_release(op, agent->life->vm, KLP_HOLD_USER, err));
    KLP_TRY(klp_workload_thaw(op, agent->life->vm, err));
    return state_set(op, agent, KLP_AGENT_RUNNING, "", err);
}
