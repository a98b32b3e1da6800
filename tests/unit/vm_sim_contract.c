/* SPDX-License-Identifier: Apache-2.0 */
/* The contract of VMs over the simulator's: real keeper's logic, simulated hypervisors and guests,
 * all of it fibers under a virtual clock. The suite runs in a fiber, too, of one run. */
#include "contract/contract.h"
#include "contract/vm.h"

#include "base/ext/ext.h"
#include "sim.h"

#define SEED 20261123

static struct klp_dir *vms_dir;

static bool sim_make(void *arg, struct kelpie_vm_factory **out, struct kelpie_error **err)
{
    const struct sim_facts facts = SIM_FACTS(KLP_ARCH_X86_64);
    (void)arg;
    (void)err;
    *out = sim_factory_create(&sim_world->envs[0]->base, vms_dir, &facts);
    return true;
}

static void sim_plant(void *arg, const char *name)
{
    (void)arg;
    sim_world->planted = name;
}

static void keeper_kill(void *arg, struct kelpie_vm *vm)
{
    (void)arg;
    sim_keeper_kill(kelpie_vm_id(vm));
}

static bool process_lives(void *arg, int64_t pid)
{
    (void)arg;
    return sim_guest_lives(pid);
}

static void suite_run(void *arg)
{
    struct klp_env *env = &sim_world->envs[0]->base;
    struct kelpie_error *error = NULL;
    const struct contract_vm suite = {.name = "vm_sim",
                                      .env = env,
                                      .make = sim_make,
                                      .config = {.memory_mib = 128},
                                      .fill_mib = 1,
                                      .fault = sim_plant,
                                      .keeper_kill = keeper_kill,
                                      .process_lives = process_lives};
    if (!klp_dir_open(env, "/a/vms", true, &vms_dir, &error)) {
        print_error("%s\n", kelpie_error_message(error));
        return;
    }
    *(int *)arg = contract_vm(&suite);
    klp_dir_close(vms_dir);
    sim_park(sim_world->now_ns + KLP_SECOND, "keepers that were told to end");
}

/* What is left of it at the end (memory, handles, fibers) is a verdict of the run. */
int main(void)
{
    int failed = 1;
    struct sim_order order = {
        .scenario = suite_run, .arg = &failed, .choice = {.mode = SIM_FAULTS_LIST}, .apart = true};
    static struct sim_result result; /* large */
    klp_ext_init();
    sim_run(SEED, &order, &result);
    sim_stacks_drop();
    if (result.verdict == SIM_PASS)
        return failed;
    print_error("vm_sim: %s: %s\n", sim_verdict_name(result.verdict), result.why);
    return failed + 1;
}
