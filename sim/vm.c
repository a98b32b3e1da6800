/* SPDX-License-Identifier: Apache-2.0 */
/* The backend "sim": VMs under the real keeper's logic, each keeper a fiber in a crash domain of
 * its own. Guests are simulated by hypervisor.c. */
#include <stdlib.h>
#include <string.h>

#include "base/fmt.h"
#include "base/limits.h"
#include "sim.h"
#include "vm/keeper/keeper.h"
#include "vm/vm.h"

#define ORPHAN_MS 30000
#define LOOK_MS 1
#define CPU_PREFIX "sim-"

struct sim_factory {
    struct kelpie_vm_factory base;
    struct sim_facts facts;
};

static const struct sim_facts *facts_of(const struct kelpie_vm_factory *factory)
{
    return &((const struct sim_factory *)factory)->facts;
}

static bool machine_make(struct kelpie_vm_factory *factory, const struct kelpie_vm_config *config,
                         struct klp_machine *out, struct kelpie_error **faults)
{
    const struct sim_facts *facts = facts_of(factory);
    (void)faults; /* kernel, initramfs and arguments mean nothing to it */
    *out = (struct klp_machine){.version = KLP_MACHINE_VERSION,
                                .arch = factory->arch,
                                .vcpus = config->vcpu_count,
                                .memory_bytes = (uint64_t)config->memory_mib * sim_world->mib,
                                .page_log2 = SIM_PAGE_LOG2};
    klp_text_copy(out->backend, sizeof(out->backend), "sim");
    klp_text_copy(out->backend_version, sizeof(out->backend_version), facts->version);
    klp_text_copy(out->type, sizeof(out->type), "sim");
    klp_format(out->cpu, sizeof(out->cpu), CPU_PREFIX "%04x", facts->cpu);
    return true;
}

static size_t release_size(const char *version) /* of MAJOR.MINOR */
{
    size_t major = strcspn(version, ".");
    return version[major] == 0 ? major : major + 1 + strcspn(version + major + 1, ".");
}

/* What its processor needs, a bit a feature. */
static bool cpu_parse(const char *cpu, uint32_t *out)
{
    char *end = NULL;
    if (strncmp(cpu, CPU_PREFIX, strlen(CPU_PREFIX)) != 0)
        return false;
    *out = (uint32_t)strtoul(cpu + strlen(CPU_PREFIX), &end, 16);
    return *end == 0;
}

bool sim_facts_fit(const struct sim_facts *facts, const struct klp_machine *machine,
                   struct kelpie_error **faults)
{
    uint32_t needed = 0;
    size_t size = release_size(facts->version);
    bool known = cpu_parse(machine->cpu, &needed);
    bool same_release = size == release_size(machine->backend_version) &&
                        strncmp(machine->backend_version, facts->version, size) == 0;
    if (!same_release)
        klp_error_reason_add(faults, "version: snapshot needs sim %s, node has %s",
                             machine->backend_version, facts->version);
    if (!known || (needed & ~facts->cpu) != 0)
        klp_error_reason_add(faults, "cpu: snapshot needs %s, node has " CPU_PREFIX "%04x",
                             machine->cpu, facts->cpu);
    return same_release && known && (needed & ~facts->cpu) == 0 && machine->arch == facts->arch;
}

/* A destination that was set up anew between two questions: it runs other machines, or has another
 * build of the image. */
SIM_FAULT_SITE(TELEPORT_ARCH_MISMATCH)
SIM_FAULT_SITE(TELEPORT_IMAGE_MISMATCH)

static bool machine_accept(struct kelpie_vm_factory *factory, const struct klp_machine *machine,
                           struct kelpie_error **err)
{
    struct kelpie_error *faults = NULL;
    KLP_IGNORE(klp_refuse(&faults, KELPIE_E_INCOMPATIBLE, "this simulated backend cannot run it"));
    uint32_t node = sim_env_from(factory->env)->node;
    bool fits = sim_facts_fit(facts_of(factory), machine, &faults);
    if (fault_TELEPORT_ARCH_MISMATCH(node) || fault_TELEPORT_IMAGE_MISMATCH(node)) {
        klp_error_reason_add(&faults, "node: it is not what it was when it was asked last");
        fits = false;
    }
    if (fits) {
        klp_error_clear(&faults);
        return true;
    }
    klp_error_move(err, &faults);
    return false;
}

/* ---- keepers: what a process would be given on its command line */

struct keeper_start {
    struct sim_env *env;
    char *path;
    char vm[KLP_ID_SIZE];
    int64_t pid;
    struct sim_facts facts;
};

static void keeper_run(void *arg)
{
    struct keeper_start *start = arg;
    struct klp_env *env = &start->env->base;
    KLP_AUTO(kelpie_error) struct kelpie_error *error = NULL;
    KLP_AUTO(dir) struct klp_dir *dir = NULL;
    if (klp_dir_open(env, start->path, false, &dir, &error)) {
        struct klp_keeper_options options = {.dir = dir,
                                             .hypervisor =
                                                 sim_hypervisor_create(env, &start->facts),
                                             .orphan_ms = ORPHAN_MS,
                                             .pid = start->pid};
        memcpy(options.vm, start->vm, sizeof(options.vm));
        KLP_IGNORE(klp_keeper_serve(env, &options, &error));
        options.hypervisor->ops->destroy(options.hypervisor);
    }
    sim_note("keeper", "%s ended%s%s", start->vm, error != NULL ? ": " : "",
             error != NULL ? kelpie_error_message(error) : "");
    klp_mem_free(start->path);
    klp_mem_free(start);
}

static void keeper_name(const char *vm, char *out, size_t capacity)
{
    klp_format(out, capacity, "keeper %.*s", 12, vm);
}

/* What it is started with is the keeper's own from the first: it may die before it runs. */
static struct sim_fiber *keeper_start(struct sim_env *env, const char *path, const char *id,
                                      const struct sim_facts *facts)
{
    char name[32];
    keeper_name(id, name, sizeof(name));
    struct sim_domain *domain = sim_domain_create(SIM_KEEPER, env->node, name);
    struct sim_domain *before = sim_domain_enter(domain);
    struct keeper_start *start = KLP_NEW(struct keeper_start);
    *start = (struct keeper_start){
        .env = env, .path = klp_mem_string(path), .pid = ++sim_world->pid_count, .facts = *facts};
    snprintf(start->vm, sizeof(start->vm), "%s", id);
    sim_domain_enter(before);
    return sim_fiber_start(env, domain, "keeper", keeper_run, start);
}

void sim_keeper_kill(const char *vm)
{
    char name[sizeof(((struct sim_domain *)NULL)->name)];
    keeper_name(vm, name, sizeof(name));
    KLP_LIST_EACH (item, &sim_world->domains) {
        struct sim_domain *domain = KLP_CONTAINER(item, struct sim_domain, link);
        if (domain->kind == SIM_KEEPER && !domain->crashed && strcmp(domain->name, name) == 0)
            sim_domain_crash(domain);
    }
}

static kelpie_outcome launch(const struct kelpie_op *op, struct kelpie_vm_factory *factory,
                             struct klp_dir *dir, const char *id, struct kelpie_error **err)
{
    struct sim_env *env = sim_env_from(factory->env);
    struct sim_fiber *fiber = keeper_start(env, klp_dir_path(dir), id, facts_of(factory));
    for (;;) {
        struct klp_chan *chan;
        if (kelpie_is_ok(klp_chan_connect(op, dir, KLP_KEEPER_SOCKET, &chan, NULL))) {
            klp_chan_close(chan);
            return KLP_OK;
        }
        if (fiber->ended)
            return klp_fail(err, KELPIE_E_IO, "the keeper ended at once");
        KLP_TRY(klp_sleep_until(op, klp_boot_ns(op->env) + LOOK_MS * KLP_MS, err));
    }
}

static kelpie_outcome boot_files(const struct kelpie_op *op, struct kelpie_vm_factory *factory,
                                 const struct kelpie_vm_config *config, struct klp_handle *out,
                                 size_t *count, struct kelpie_error **err)
{
    (void)op;
    (void)factory;
    (void)config;
    (void)out;
    (void)err;
    *count = 0;
    return KLP_OK;
}

static void destroy(struct kelpie_vm_factory *factory)
{
    klp_mem_free(factory);
}

static const struct klp_factory_ops factory_ops = {
    .name = "sim",
    .caps = KELPIE_VM_CAP_SNAPSHOT | KELPIE_VM_CAP_DIFF_SNAPSHOT | KELPIE_VM_CAP_LIVE_CAPTURE |
            KELPIE_VM_CAP_CROSS_HOST_RESTORE | KELPIE_VM_CAP_TEMPLATE,
    .machine = machine_make,
    .accepts = machine_accept,
    .launch = launch,
    .boot_files = boot_files,
    .destroy = destroy,
};

struct kelpie_vm_factory *sim_factory_create(struct klp_env *env, struct klp_dir *vms_dir,
                                             const struct sim_facts *facts)
{
    struct sim_factory *factory = KLP_NEW(struct sim_factory);
    *factory = (struct sim_factory){.base = {.ops = &factory_ops,
                                             .env = env,
                                             .vms_dir = vms_dir,
                                             .arch = facts->arch,
                                             .boot_timeout_ms = 60000},
                                    .facts = *facts};
    return &factory->base;
}
