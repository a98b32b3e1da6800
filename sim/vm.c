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

static bool machine_make(struct kelpie_vm_factory *factory, const struct kelpie_vm_config *config,
                         struct klp_machine *out, struct kelpie_error **faults)
{
    (void)faults; /* kernel, initramfs and arguments mean nothing to it */
    *out = (struct klp_machine){.version = KLP_MACHINE_VERSION,
                                .arch = factory->arch,
                                .vcpus = config->vcpu_count,
                                .memory_bytes = (uint64_t)config->memory_mib * SIM_MIB,
                                .page_log2 = SIM_PAGE_LOG2};
    klp_text_copy(out->backend, sizeof(out->backend), "sim");
    klp_text_copy(out->backend_version, sizeof(out->backend_version), "1.0.0");
    klp_text_copy(out->type, sizeof(out->type), "sim");
    klp_text_copy(out->cpu, sizeof(out->cpu), "sim");
    return true;
}

static bool machine_accept(struct kelpie_vm_factory *factory, const struct klp_machine *machine,
                           struct kelpie_error **err)
{
    struct kelpie_error *faults = NULL;
    KLP_IGNORE(klp_refuse(&faults, KELPIE_E_INCOMPATIBLE, "this simulated backend cannot run it"));
    if (strcmp(machine->backend, "sim") != 0)
        klp_error_reason_add(&faults, "backend: the snapshot is of %s, this is sim",
                             machine->backend);
    if (machine->arch != factory->arch)
        klp_error_reason_add(&faults, "arch: the snapshot needs %s, this node is %s",
                             klp_arch_name(machine->arch), klp_arch_name(factory->arch));
    if (kelpie_error_reason_count(faults) > 0) {
        klp_error_move(err, &faults);
        return false;
    }
    klp_error_clear(&faults);
    return true;
}

/* ---- keepers: what a process would be given on its command line */

struct keeper_start {
    struct sim_env *env;
    char *path;
    char vm[KLP_ID_SIZE];
    int64_t pid;
};

static void keeper_run(void *arg)
{
    struct keeper_start *start = arg;
    struct klp_env *env = &start->env->base;
    KLP_AUTO(kelpie_error) struct kelpie_error *error = NULL;
    KLP_AUTO(dir) struct klp_dir *dir = NULL;
    if (klp_dir_open(env, start->path, false, &dir, &error)) {
        struct klp_keeper_options options = {.dir = dir,
                                             .hypervisor = sim_hypervisor_create(env),
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

/* What it is started with is the keeper's own from the first: it may die before it runs. */
static struct sim_fiber *keeper_start(struct sim_env *env, const char *path, const char *id)
{
    struct sim_domain *domain = sim_domain_create(SIM_KEEPER, env->node, "keeper");
    struct sim_domain *before = sim_domain_enter(domain);
    struct keeper_start *start = KLP_NEW(struct keeper_start);
    *start = (struct keeper_start){
        .env = env, .path = klp_mem_string(path), .pid = ++sim_world->pid_count};
    snprintf(start->vm, sizeof(start->vm), "%s", id);
    sim_domain_enter(before);
    return sim_fiber_start(env, domain, "keeper", keeper_run, start);
}

static kelpie_outcome launch(const struct kelpie_op *op, struct kelpie_vm_factory *factory,
                             struct klp_dir *dir, const char *id, struct kelpie_error **err)
{
    struct sim_env *env = sim_env_from(factory->env);
    struct sim_fiber *fiber = keeper_start(env, klp_dir_path(dir), id);
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
                                             enum klp_arch arch)
{
    struct kelpie_vm_factory *factory = KLP_NEW(struct kelpie_vm_factory);
    *factory = (struct kelpie_vm_factory){.ops = &factory_ops,
                                          .env = env,
                                          .vms_dir = vms_dir,
                                          .arch = arch,
                                          .boot_timeout_ms = 60000};
    return factory;
}
