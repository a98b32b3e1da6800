/* SPDX-License-Identifier: Apache-2.0 */
/* A simulated hypervisor: the mock guest's engine in a crash domain of its own, driven by virtual
 * time, with a witness beside it (guest.c). */
#include <string.h>

#include "ram.h"
#include "sim.h"
#include "spoil.h"
#include "vm/keeper/keeper.h"
#include "vm/mock/engine.h"

#define SPAWN_NS (5 * KLP_MS)
#define LOAD_NS (2 * KLP_MS)
#define STOP_NS (KLP_MS / 2)
#define CAPTURE_NS (2 * KLP_MS)
#define SLOW_NS (3 * KLP_SECOND)
#define SLOWER_NS (40 * KLP_SECOND)  /* past a lease */
#define HANGS_NS (1000 * KLP_SECOND) /* past all that anybody waits for an order */
#define ANSWER_NS (5 * KLP_SECOND)   /* an answer that does not come by then is lost */
#define CONSOLE_SIZE 256

#define DEVICE_MAGIC 0x3130564544

/* Registers, and all else that is no memory. They are of this capture and no other. */
struct sim_device {
    uint64_t magic, capture, words[30];
};

SIM_FAULT_SITE(VM_CREATE_FAIL)
SIM_FAULT_SITE(VM_STOP_FAIL)
SIM_FAULT_SITE(VM_CONT_FAIL)
SIM_FAULT_SITE(VM_SLOW)
SIM_FAULT_SITE(VM_DIES_MIDWAY)
SIM_FAULT_SITE(SNAPSHOT_CREATE_FAIL)
SIM_FAULT_SITE(SNAPSHOT_TOO_LARGE)
SIM_FAULT_SITE(SNAPSHOT_RESTORE_FAIL)

struct sim_vm {
    struct klp_hypervisor base;
    struct sim_resource resource, process; /* the keeper's hold on it; the process itself */
    struct sim_guest guest;
    struct sim_domain *domain;
    struct sim_fiber *fiber; /* NULL = not spawned */
    struct mock_engine engine;
    struct sim_facts facts; /* of its node */
    enum klp_arch arch;
    struct sim_ram ram;
    struct klp_handle base_memory;
    struct sim_end host; /* the guest's end of the agent stream; conn NULL = none */
    bool loaded, begun, stopped, frozen, killed, died, ended;
    uint64_t last_ns, deaf_until_ns;
    const char *planted; /* a fault that it has for its life; NULL = none */
    int exit_code;       /* of a process that ended by itself */
    struct sim_source changed;
    int64_t pid;
    char console[CONSOLE_SIZE];
    size_t console_size;
};

static struct sim_vm *vm_from(struct klp_hypervisor *base)
{
    return (struct sim_vm *)base;
}

static uint32_t node_of(const struct sim_vm *vm)
{
    return sim_env_from(vm->base.env)->node;
}

/* ---- the guest */

static void console_put(struct sim_vm *vm, const char *line)
{
    size_t size = strlen(line);
    if (size == 0 || size + 1 > CONSOLE_SIZE - vm->console_size)
        return;
    memcpy(vm->console + vm->console_size, line, size);
    vm->console[vm->console_size + size] = '\n';
    vm->console_size += size + 1;
}

static void guest_read(struct sim_vm *vm)
{
    uint8_t bytes[4096];
    while (vm->host.conn != NULL && vm->engine.in.size + sizeof(bytes) < vm->engine.in.size_max) {
        long got = sim_end_take(vm->host, bytes, sizeof(bytes));
        if (got == 0)
            return;
        if (got > 0) {
            mock_engine_input(&vm->engine, bytes, (size_t)got);
        } else {
            mock_engine_hangup(&vm->engine);
            sim_end_close(&vm->host);
        }
    }
}

static void guest_write(struct sim_vm *vm)
{
    struct klp_buf *out = &vm->engine.out;
    if (vm->host.conn != NULL && out->size > 0)
        klp_buf_drop_front(out, sim_end_give(vm->host, out->data, out->size));
}

static bool guest_runs(const struct sim_vm *vm)
{
    return vm->loaded && !vm->stopped && !vm->frozen && !vm->killed && !vm->died &&
           vm->exit_code == 0 && !vm->ended;
}

/* What the witness is to know: does the workload run, after all that just happened? */
static void guest_turn(struct sim_vm *vm)
{
    bool over = vm->engine.crashed || vm->engine.powered_off;
    sim_guest_turn(&vm->guest, guest_runs(vm) && vm->begun && !over && !vm->engine.state->frozen);
}

/* Brings the guest to now. Never blocks. Whoever calls: what the guest allocates is the guest's. */
static void guest_advance(struct sim_vm *vm)
{
    struct sim_domain *before = sim_domain_enter(vm->domain);
    uint64_t now = sim_world->now_ns;
    sim_guest_look(&vm->guest);
    if (!vm->begun) {
        uint8_t seed[32];
        klp_random(vm->base.env, seed, sizeof(seed));
        mock_engine_init(&vm->engine, vm->ram.bytes, vm->ram.size, SIM_PAGE_SIZE,
                         klp_arch_name(vm->arch), seed);
        vm->engine.mib = sim_world->mib;
        vm->begun = true;
        vm->last_ns = now;
    }
    if (now >= vm->deaf_until_ns && vm->host.conn != NULL)
        vm->deaf_until_ns = now + sim_guest_deaf_ns(node_of(vm));
    if (now >= vm->deaf_until_ns)
        guest_read(vm);
    mock_engine_step(&vm->engine, now - vm->last_ns, klp_wall_ns(vm->base.env));
    vm->last_ns = now;
    guest_turn(vm);
    sim_guest_says(&vm->engine.out, node_of(vm));
    if (now >= vm->deaf_until_ns)
        guest_write(vm);
    console_put(vm, vm->engine.console);
    vm->engine.console[0] = 0;
    sim_domain_enter(before);
}

static bool guest_is_over(const struct sim_vm *vm)
{
    return vm->killed || vm->died || vm->exit_code != 0 || vm->engine.crashed ||
           (vm->engine.powered_off && vm->engine.out.size == 0);
}

static void vm_run(void *arg)
{
    struct sim_vm *vm = arg;
    for (;;) {
        uint64_t until_ns = SIM_NEVER;
        if (guest_runs(vm)) {
            guest_advance(vm);
            until_ns = sim_world->now_ns + mock_engine_idle_ms(&vm->engine) * KLP_MS;
        }
        if (guest_is_over(vm))
            break;
        sim_wait_source(&vm->changed, until_ns, "a guest's input");
    }
    sim_guest_end(&vm->guest, !vm->engine.crashed && !vm->died && vm->exit_code == 0);
    if (vm->begun)
        mock_engine_finish(&vm->engine);
    sim_end_close(&vm->host);
    sim_resource_remove(&vm->process);
    vm->ended = true;
}

/* The process dies: of what was its own nothing is left, and its keeper hears of it. */
static void process_release(struct sim_resource *resource)
{
    struct sim_vm *vm = KLP_CONTAINER(resource, struct sim_vm, process);
    sim_guest_end(&vm->guest, false);
    vm->engine = (struct mock_engine){.state = NULL}; /* its buffers go with its domain */
    vm->begun = false;
    vm->ended = vm->died = true;
    sim_end_close(&vm->host);
}

static void process_start(struct sim_vm *vm)
{
    struct sim_env *env = sim_env_from(vm->base.env);
    vm->pid = vm->guest.pid = ++sim_world->pid_count;
    vm->domain = sim_domain_create(SIM_VM, env->node, "vm");
    struct sim_domain *before = sim_domain_enter(vm->domain);
    sim_resource_add(&vm->process, process_release);
    sim_domain_enter(before);
    vm->fiber = sim_fiber_start(env, vm->domain, "vm", vm_run, vm);
}

/* From now on it runs, or stands still; time that passed meanwhile is not the guest's. */
static void run_set(struct sim_vm *vm, bool *flag, bool value)
{
    if (guest_runs(vm))
        guest_advance(vm);
    *flag = value;
    vm->last_ns = sim_world->now_ns;
    if (vm->begun)
        guest_turn(vm);
    sim_wake(&vm->changed);
}

/* ---- the keeper's orders */

/* The time an order needs; one that runs out of time has no effect. */
static kelpie_outcome takes(const struct kelpie_op *op, uint64_t ns, struct kelpie_error **err)
{
    static const uint64_t more_ns[] = {SLOW_NS, SLOWER_NS, HANGS_NS};
    if (fault_VM_SLOW(sim_env_from(op->env)->node))
        ns += sim_fault_draw(more_ns[sim_fault_draw(KLP_COUNT(more_ns))]);
    return klp_sleep_until(op, klp_boot_ns(op->env) + ns, err);
}

static bool is_planted(const struct sim_vm *vm, const char *fault)
{
    return vm->planted != NULL && strcmp(vm->planted, fault) == 0;
}

static kelpie_outcome broke(const char *what, struct kelpie_error **err)
{
    return klp_fail(err, KELPIE_E_IO, "the simulated hypervisor could not %s", what);
}

/* In the middle of an order its process ends: by a signal, or by itself. OK = it does not. */
static kelpie_outcome lives_on(struct sim_vm *vm, bool dies, struct kelpie_error **err)
{
    if (!vm->ended && (fault_VM_DIES_MIDWAY(node_of(vm)) || dies)) {
        sim_guest_end(&vm->guest, false);
        vm->died = dies || sim_fault_draw(2) == 0;
        vm->exit_code = vm->died ? 0 : 1;
        sim_wake(&vm->changed);
        while (!vm->fiber->ended)
            sim_wait_source(&vm->fiber->end, SIM_NEVER, "a guest's end");
    }
    return vm->ended ? klp_fail(err, KELPIE_E_CRASHED, "the simulated guest is gone") : KLP_OK;
}

/* What cannot be started comes to nothing: one that was started is gone again. */
static kelpie_outcome vm_spawn(const struct kelpie_op *op, struct klp_hypervisor *base,
                               enum klp_spawn_mode mode, const struct klp_machine *machine,
                               struct klp_handle memory, const struct klp_handle *files,
                               size_t file_count, struct kelpie_error **err)
{
    struct sim_vm *vm = vm_from(base);
    (void)files;
    (void)file_count;
    KLP_TRY(takes(op, SPAWN_NS, err));
    if (fault_VM_CREATE_FAIL(node_of(vm)) || is_planted(vm, "boot"))
        return broke("start", err);
    if (!sim_facts_fit(&vm->facts, machine, NULL)) /* DESIGN 2.4: it was to be refused before */
        sim_fail(SIM_SAFETY, "node %s starts a machine that it cannot run: %s %s %s",
                 sim_env_from(op->env)->name, klp_arch_name(machine->arch), machine->cpu,
                 machine->backend_version);
    vm->arch = machine->arch;
    if (!klp_handle_is_none(memory))
        KLP_REQUIRE(klp_handle_copy(op->env, memory, &vm->base_memory, err));
    sim_ram_make(&vm->ram, machine->memory_bytes);
    if (!klp_handle_is_none(memory))
        sim_ram_lay(&vm->ram, sim_handle_object(memory, SIM_HANDLE_MEMORY));
    sim_guest_map(&vm->guest, vm->ram.bytes, vm->ram.size);
    vm->loaded = mode == KLP_SPAWN_COLD;
    vm->stopped = mode != KLP_SPAWN_COLD;
    process_start(vm);
    console_put(vm, mode == KLP_SPAWN_COLD ? "sim guest: cold" : "sim guest: incoming");
    return KLP_OK;
}

static void device_fill(struct sim_device *device, uint64_t capture)
{
    *device = (struct sim_device){.magic = DEVICE_MAGIC, .capture = capture};
    for (size_t i = 0; i < KLP_COUNT(device->words); i++)
        device->words[i] = sim_mix(DEVICE_MAGIC, capture, i);
}

/* A hypervisor takes registers for what they are: whether they are right the world knows. */
static kelpie_outcome device_load(const struct kelpie_op *op, struct sim_vm *vm,
                                  struct klp_handle state, struct kelpie_error **err)
{
    struct sim_device device, right;
    KLP_REQUIRE(klp_memory_read(op->env, state, 0, &device, sizeof(device), err));
    if (vm->loaded || device.magic != DEVICE_MAGIC)
        return klp_fail(err, KELPIE_E_CORRUPT, "cannot load the device state: it is no sim's");
    device_fill(&right, device.capture);
    if (memcmp(&device, &right, sizeof(device)) != 0)
        sim_fail(SIM_SAFETY, "a guest on node %s is restored with damaged registers",
                 sim_env_from(op->env)->name);
    sim_guest_loaded(&vm->guest, device.capture, sim_ram_digest(&vm->ram));
    return KLP_OK;
}

static kelpie_outcome overlays_lay(const struct kelpie_op *op, struct sim_vm *vm,
                                   const struct klp_handle *overlays, size_t count,
                                   struct kelpie_error **err)
{
    for (size_t i = 0; i < count; i++) {
        uint64_t size;
        const struct sim_memory *layer = sim_handle_object(overlays[i], SIM_HANDLE_MEMORY);
        KLP_REQUIRE(klp_memory_size(op->env, overlays[i], &size, err));
        if (layer == NULL || size != vm->ram.size)
            return klp_fail(err, KELPIE_E_CORRUPT, "an overlay is not of the guest's size");
        sim_ram_lay(&vm->ram, layer);
    }
    return KLP_OK;
}

static kelpie_outcome vm_load(const struct kelpie_op *op, struct klp_hypervisor *base,
                              struct klp_handle device_state, const struct klp_handle *overlays,
                              size_t count, struct kelpie_error **err)
{
    struct sim_vm *vm = vm_from(base);
    bool fails = fault_SNAPSHOT_RESTORE_FAIL(node_of(vm));
    bool at_once = (fails && sim_fault_draw(2) == 0) || is_planted(vm, "load");
    KLP_TRY(takes(op, LOAD_NS, err));
    if (at_once)
        return broke("load anything", err);
    KLP_TRY(lives_on(vm, false, err));
    KLP_TRY(overlays_lay(op, vm, overlays, count, err));
    if (fails)
        return broke("load the device state", err);
    KLP_TRY(device_load(op, vm, device_state, err));
    vm->loaded = vm->stopped = true;
    return KLP_OK;
}

/* One that fails is refused; or it had its effect, the answer is lost, and it is taken back. */
static kelpie_outcome vm_turn(const struct kelpie_op *op, struct sim_vm *vm, bool stopped,
                              bool fails, struct kelpie_error **err)
{
    bool before = vm->stopped, refused = fails && sim_fault_draw(2) == 0;
    KLP_TRY(takes(op, STOP_NS, err));
    KLP_TRY(lives_on(vm, false, err));
    if (refused)
        return broke(stopped ? "stop" : "go on", err);
    run_set(vm, &vm->stopped, stopped);
    if (!fails)
        return KLP_OK;
    KLP_IGNORE(klp_sleep_until(op, klp_boot_ns(op->env) + ANSWER_NS, NULL));
    if (!vm->ended)
        run_set(vm, &vm->stopped, before);
    return klp_fail(err, KELPIE_E_TIMEOUT, "the simulated hypervisor does not answer");
}

static kelpie_outcome vm_stop(const struct kelpie_op *op, struct klp_hypervisor *base,
                              struct kelpie_error **err)
{
    struct sim_vm *vm = vm_from(base);
    return vm_turn(op, vm, true, fault_VM_STOP_FAIL(node_of(vm)), err);
}

static kelpie_outcome vm_cont(const struct kelpie_op *op, struct klp_hypervisor *base,
                              struct kelpie_error **err)
{
    struct sim_vm *vm = vm_from(base);
    return vm_turn(op, vm, false, fault_VM_CONT_FAIL(node_of(vm)), err);
}

static void vm_freeze(struct klp_hypervisor *base)
{
    run_set(vm_from(base), &vm_from(base)->frozen, true);
}

static void vm_unfreeze(struct klp_hypervisor *base)
{
    run_set(vm_from(base), &vm_from(base)->frozen, false);
}

static bool device_save(struct sim_vm *vm, struct klp_handle *out, struct kelpie_error **err)
{
    struct sim_device device;
    struct klp_env *env = vm->base.env;
    uint64_t size = sizeof(device);
    if (fault_SNAPSHOT_TOO_LARGE(node_of(vm)))
        size = KLP_DEVICE_STATE_MAX + 1 + sim_fault_draw(KLP_DEVICE_STATE_MAX);
    device_fill(&device, sim_guest_captured(&vm->guest, sim_ram_digest(&vm->ram)));
    KLP_CHECK(klp_memory_create(env, "device", size, out, err));
    if (klp_memory_write(env, *out, 0, &device, sizeof(device), err) &&
        klp_memory_seal(env, *out, err))
        return true;
    klp_handle_close(env, *out);
    return false;
}

static kelpie_outcome parts_save(struct sim_vm *vm, bool fails, struct klp_handle *device_state,
                                 struct klp_handle *dirty, struct kelpie_error **err)
{
    KLP_REQUIRE(klp_memory_create(vm->base.env, "dirty", vm->ram.size, dirty, err));
    const struct sim_memory *below = klp_handle_is_none(vm->base_memory)
                                         ? NULL
                                         : sim_handle_object(vm->base_memory, SIM_HANDLE_MEMORY);
    kelpie_outcome outcome = {
        sim_ram_capture(vm->base.env, &vm->ram, below, *dirty, err) ? KELPIE_OK : KELPIE_FAIL};
    if (kelpie_is_ok(outcome) && fails)
        outcome = broke("save the device state", err);
    else if (kelpie_is_ok(outcome) && !device_save(vm, device_state, err))
        outcome = (kelpie_outcome){KELPIE_FAIL};
    if (!kelpie_is_ok(outcome))
        klp_handle_close(vm->base.env, *dirty);
    return outcome;
}

static kelpie_outcome vm_capture(const struct kelpie_op *op, struct klp_hypervisor *base,
                                 struct klp_handle *device_state, struct klp_handle *dirty,
                                 struct kelpie_error **err)
{
    struct sim_vm *vm = vm_from(base);
    bool fails = fault_SNAPSHOT_CREATE_FAIL(node_of(vm));
    bool at_once = (fails && sim_fault_draw(2) == 0) || is_planted(vm, "capture");
    KLP_TRY(takes(op, CAPTURE_NS, err));
    if (at_once)
        return broke("capture anything", err);
    KLP_TRY(lives_on(vm, is_planted(vm, "crash-in-capture"), err));
    if (!vm->stopped)
        return klp_fail(err, KELPIE_E_CRASHED, "the simulated guest does not stand still");
    return parts_save(vm, fails, device_state, dirty, err);
}

/* A new stream: whoever had the one before is cut off, and the guest's session with it. */
static kelpie_outcome vm_guest(const struct kelpie_op *op, struct klp_hypervisor *base,
                               struct klp_handle *out, struct kelpie_error **err)
{
    struct sim_vm *vm = vm_from(base);
    struct sim_end theirs;
    (void)op;
    if (vm->ended)
        return klp_fail(err, KELPIE_E_CRASHED, "the simulated guest is gone");
    struct sim_domain *before = sim_domain_enter(vm->domain);
    if (vm->begun)
        mock_engine_hangup(&vm->engine);
    sim_domain_enter(before);
    sim_end_close(&vm->host);
    sim_stream_pair(&vm->host, &theirs);
    sim_end_watch(vm->host, &vm->changed);
    *out = sim_stream_handle(theirs);
    return KLP_OK;
}

static kelpie_outcome vm_wait(const struct kelpie_op *op, struct klp_hypervisor *base,
                              struct klp_hypervisor_exit *out, struct kelpie_error **err)
{
    struct sim_vm *vm = vm_from(base);
    while (!vm->fiber->ended)
        KLP_TRY(sim_wait(op, &vm->fiber->end, "waiting for a guest's end", err));
    bool crashed = vm->engine.crashed, signalled = vm->killed || vm->died;
    *out = (struct klp_hypervisor_exit){.clean = !signalled && !crashed && vm->exit_code == 0,
                                        .code = crashed ? 99 : vm->exit_code,
                                        .signal = signalled ? 9 : 0};
    snprintf(out->reason, sizeof(out->reason), "%s",
             vm->killed           ? "killed as ordered"
             : vm->died           ? "the hypervisor was killed by signal 9"
             : crashed            ? "the guest crashed"
             : vm->exit_code != 0 ? "the hypervisor ended with status 1"
                                  : "the guest powered off");
    return KLP_OK;
}

static void vm_kill(struct klp_hypervisor *base)
{
    struct sim_vm *vm = vm_from(base);
    vm->killed = true;
    sim_guest_end(&vm->guest, true);
    sim_wake(&vm->changed);
}

static int64_t vm_pid(struct klp_hypervisor *base)
{
    return vm_from(base)->pid;
}

static size_t vm_console(struct klp_hypervisor *base, char *out, size_t capacity)
{
    const struct sim_vm *vm = vm_from(base);
    size_t size = vm->console_size < capacity ? vm->console_size : capacity;
    memcpy(out, vm->console + vm->console_size - size, size);
    return size;
}

static void vm_release(struct sim_resource *resource)
{
    struct sim_vm *vm = KLP_CONTAINER(resource, struct sim_vm, resource);
    if (vm->domain != NULL && !vm->ended) /* a hypervisor dies with its keeper */
        sim_domain_crash(vm->domain);
    sim_ram_drop(&vm->ram);
    sim_end_close(&vm->host);
    sim_guest_end(&vm->guest, true); /* one that was never started */
}

static void vm_destroy(struct klp_hypervisor *base)
{
    struct sim_vm *vm = vm_from(base);
    KLP_ASSERT(vm->fiber == NULL || vm->fiber->ended);
    sim_resource_remove(&vm->resource);
    vm_release(&vm->resource);
    klp_handle_close(base->env, vm->base_memory);
    klp_mem_free(vm);
}

static const struct klp_hypervisor_ops vm_ops = {
    .name = "sim",
    .spawn = vm_spawn,
    .load = vm_load,
    .stop = vm_stop,
    .cont = vm_cont,
    .freeze = vm_freeze,
    .unfreeze = vm_unfreeze,
    .capture = vm_capture,
    .guest = vm_guest,
    .wait = vm_wait,
    .kill = vm_kill,
    .pid = vm_pid,
    .console = vm_console,
    .destroy = vm_destroy,
};

struct klp_hypervisor *sim_hypervisor_create(struct klp_env *env, const struct sim_facts *facts)
{
    struct sim_vm *vm = KLP_NEW(struct sim_vm);
    vm->base = (struct klp_hypervisor){&vm_ops, env};
    vm->facts = *facts;
    vm->planted = sim_world->planted;
    vm->base_memory = KLP_NO_HANDLE;
    sim_source_init(&vm->changed);
    sim_guest_begin(&vm->guest, sim_env_from(env)->node);
    sim_resource_add(&vm->resource, vm_release);
    return &vm->base;
}
