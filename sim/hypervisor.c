/* SPDX-License-Identifier: Apache-2.0 */
/* A simulated hypervisor: the mock guest's engine in a crash domain of its own, driven by virtual
 * time. Its memory is one mapping, so that the engine can point into it; which 4 KiB of it were
 * ever touched the kernel knows, so that a capture does not read all of a guest. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "sim.h"
#include "vm/keeper/keeper.h"
#include "vm/mock/engine.h"

#define SPAWN_NS (5 * KLP_MS)
#define LOAD_NS (2 * KLP_MS)
#define STOP_NS (KLP_MS / 2)
#define CAPTURE_NS (2 * KLP_MS)
#define HOST_PAGE 4096u
#define CONSOLE_SIZE 256

static const char device_magic[8] = "SIMDEV01";

struct sim_vm {
    struct klp_hypervisor base;
    struct klp_list link; /* world->vms */
    struct sim_resource resource;
    struct sim_domain *domain;
    struct sim_fiber *fiber; /* NULL = not spawned */
    struct mock_engine engine;
    enum klp_arch arch;
    uint8_t *memory;
    int fd;
    uint64_t size;
    struct klp_handle base_memory;
    struct sim_end host; /* the guest's end of the agent stream; conn NULL = none */
    bool loaded, begun, stopped, frozen, killed, ended;
    uint64_t last_ns;
    struct sim_source changed;
    int64_t pid;
    char console[CONSOLE_SIZE];
    size_t console_size;
};

static struct sim_vm *vm_from(struct klp_hypervisor *base)
{
    return (struct sim_vm *)base;
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
    return vm->loaded && !vm->stopped && !vm->frozen && !vm->killed && !vm->ended;
}

/* DESIGN 2.1 and 2.5, seen from the guests themselves: a move keeps the machine's id and a copy
 * gets its own, so no two workloads that run have the same one, nor the same generation. */
static void only_copy_check(const struct sim_vm *vm)
{
    const struct mock_state *here = vm->engine.state;
    KLP_LIST_EACH (item, &sim_world->vms) {
        const struct sim_vm *other = KLP_CONTAINER(item, struct sim_vm, link);
        if (other == vm || !other->begun || !guest_runs(other) || other->engine.state->frozen)
            continue;
        const struct mock_state *there = other->engine.state;
        if (memcmp(here->machine_id, there->machine_id, sizeof(here->machine_id)) == 0)
            sim_fail(SIM_SAFETY, "two copies of one agent run: on node %s and on node %s",
                     vm->fiber->env->name, other->fiber->env->name);
        else if (here->has_generation && there->has_generation &&
                 memcmp(here->generation, there->generation, sizeof(here->generation)) == 0)
            sim_fail(SIM_SAFETY, "two guests run in the same generation");
    }
}

/* Brings the guest to now. Never blocks. Whoever calls: what the guest allocates is the guest's. */
static void guest_advance(struct sim_vm *vm)
{
    struct sim_domain *before = sim_domain_enter(vm->domain);
    uint64_t now = sim_world->now_ns;
    if (!vm->begun) {
        uint8_t seed[32];
        klp_random(vm->base.env, seed, sizeof(seed));
        mock_engine_init(&vm->engine, vm->memory, vm->size, SIM_PAGE_SIZE, klp_arch_name(vm->arch),
                         seed);
        vm->engine.mib = SIM_MIB;
        vm->begun = true;
        vm->last_ns = now;
    }
    guest_read(vm);
    mock_engine_step(&vm->engine, now - vm->last_ns, klp_wall_ns(vm->base.env));
    vm->last_ns = now;
    if (!vm->engine.state->frozen)
        only_copy_check(vm);
    guest_write(vm);
    console_put(vm, vm->engine.console);
    vm->engine.console[0] = 0;
    sim_domain_enter(before);
}

static bool guest_is_over(const struct sim_vm *vm)
{
    return vm->killed || vm->engine.crashed || (vm->engine.powered_off && vm->engine.out.size == 0);
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
    if (vm->begun)
        mock_engine_finish(&vm->engine);
    sim_end_close(&vm->host);
    vm->ended = true;
    sim_wake(&vm->changed);
}

/* From now on it runs, or stands still; time that passed meanwhile is not the guest's. */
static void run_set(struct sim_vm *vm, bool *flag, bool value)
{
    if (guest_runs(vm))
        guest_advance(vm);
    *flag = value;
    vm->last_ns = sim_world->now_ns;
    sim_wake(&vm->changed);
}

/* ---- the keeper's orders */

static kelpie_outcome takes(const struct kelpie_op *op, uint64_t ns, struct kelpie_error **err)
{
    return klp_sleep_until(op, klp_boot_ns(op->env) + ns, err);
}

static void layer_lay(struct sim_vm *vm, const struct sim_memory *layer)
{
    uint64_t offset = 0, size = 0;
    while (sim_memory_next(layer, offset + size, &offset, &size))
        sim_memory_copy_out(layer, offset, vm->memory + offset, (size_t)size);
}

static kelpie_outcome vm_spawn(const struct kelpie_op *op, struct klp_hypervisor *base,
                               enum klp_spawn_mode mode, const struct klp_machine *machine,
                               struct klp_handle memory, const struct klp_handle *files,
                               size_t file_count, struct kelpie_error **err)
{
    struct sim_vm *vm = vm_from(base);
    (void)files;
    (void)file_count;
    KLP_TRY(takes(op, SPAWN_NS, err));
    vm->size = machine->memory_bytes;
    vm->arch = machine->arch;
    vm->fd = memfd_create("kelpie-dst-guest", MFD_CLOEXEC);
    KLP_ASSERT(vm->fd >= 0 && ftruncate(vm->fd, (off_t)vm->size) == 0);
    vm->memory =
        mmap(NULL, vm->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, vm->fd, 0);
    KLP_ASSERT(vm->memory != MAP_FAILED);
    if (!klp_handle_is_none(memory)) {
        KLP_REQUIRE(klp_handle_copy(op->env, memory, &vm->base_memory, err));
        layer_lay(vm, sim_handle_object(memory, SIM_HANDLE_MEMORY));
    }
    vm->loaded = mode == KLP_SPAWN_COLD;
    vm->stopped = mode != KLP_SPAWN_COLD;
    vm->pid = ++sim_world->pid_count;
    vm->domain = sim_domain_create(SIM_VM, sim_env_from(op->env)->node, "vm");
    vm->fiber = sim_fiber_start(sim_env_from(op->env), vm->domain, "vm", vm_run, vm);
    console_put(vm, mode == KLP_SPAWN_COLD ? "sim guest: cold" : "sim guest: incoming");
    return KLP_OK;
}

static kelpie_outcome vm_load(const struct kelpie_op *op, struct klp_hypervisor *base,
                              struct klp_handle device_state, const struct klp_handle *overlays,
                              size_t count, struct kelpie_error **err)
{
    struct sim_vm *vm = vm_from(base);
    char magic[sizeof(device_magic)];
    KLP_TRY(takes(op, LOAD_NS, err));
    KLP_REQUIRE(klp_memory_read(op->env, device_state, 0, magic, sizeof(magic), err));
    if (vm->loaded || memcmp(magic, device_magic, sizeof(magic)) != 0)
        return klp_fail(err, KELPIE_E_CORRUPT, "cannot load the device state: it is no sim's");
    for (size_t i = 0; i < count; i++) {
        uint64_t size;
        const struct sim_memory *layer = sim_handle_object(overlays[i], SIM_HANDLE_MEMORY);
        KLP_REQUIRE(klp_memory_size(op->env, overlays[i], &size, err));
        if (layer == NULL || size != vm->size)
            return klp_fail(err, KELPIE_E_CORRUPT, "an overlay is not of the guest's size");
        layer_lay(vm, layer);
    }
    vm->loaded = vm->stopped = true;
    return KLP_OK;
}

static kelpie_outcome vm_stop(const struct kelpie_op *op, struct klp_hypervisor *base,
                              struct kelpie_error **err)
{
    KLP_TRY(takes(op, STOP_NS, err));
    if (vm_from(base)->ended)
        return klp_fail(err, KELPIE_E_CRASHED, "the simulated guest is gone");
    run_set(vm_from(base), &vm_from(base)->stopped, true);
    return KLP_OK;
}

static kelpie_outcome vm_cont(const struct kelpie_op *op, struct klp_hypervisor *base,
                              struct kelpie_error **err)
{
    KLP_TRY(takes(op, STOP_NS, err));
    if (vm_from(base)->ended)
        return klp_fail(err, KELPIE_E_CRASHED, "the simulated guest is gone");
    run_set(vm_from(base), &vm_from(base)->stopped, false);
    return KLP_OK;
}

static void vm_freeze(struct klp_hypervisor *base)
{
    run_set(vm_from(base), &vm_from(base)->frozen, true);
}

static void vm_unfreeze(struct klp_hypervisor *base)
{
    run_set(vm_from(base), &vm_from(base)->frozen, false);
}

/* One host page: the small pages in it that are not as they were in the base. */
static bool page_capture(struct sim_vm *vm, uint64_t offset, struct klp_handle dirty,
                         struct kelpie_error **err)
{
    uint8_t before[HOST_PAGE] = {0};
    if (!klp_handle_is_none(vm->base_memory))
        sim_memory_copy_out(sim_handle_object(vm->base_memory, SIM_HANDLE_MEMORY), offset, before,
                            HOST_PAGE);
    for (uint32_t at = 0; at < HOST_PAGE; at += SIM_PAGE_SIZE) {
        const uint8_t *page = vm->memory + offset + at;
        if (memcmp(page, before + at, SIM_PAGE_SIZE) == 0)
            continue;
        sim_fold(offset + at);
        sim_fold_bytes(page, SIM_PAGE_SIZE);
        KLP_CHECK(klp_memory_write(vm->base.env, dirty, offset + at, page, SIM_PAGE_SIZE, err));
    }
    return true;
}

static bool pages_capture(struct sim_vm *vm, struct klp_handle dirty, struct kelpie_error **err)
{
    off_t at = lseek(vm->fd, 0, SEEK_DATA);
    while (at >= 0) {
        off_t end = lseek(vm->fd, at, SEEK_HOLE);
        for (; at < end; at += HOST_PAGE)
            KLP_CHECK(page_capture(vm, (uint64_t)at, dirty, err));
        at = lseek(vm->fd, end, SEEK_DATA);
    }
    return klp_memory_seal(vm->base.env, dirty, err);
}

static bool device_save(struct sim_vm *vm, struct klp_handle *out, struct kelpie_error **err)
{
    KLP_CHECK(klp_memory_create(vm->base.env, "device", sizeof(device_magic), out, err));
    return klp_memory_write(vm->base.env, *out, 0, device_magic, sizeof(device_magic), err) &&
           klp_memory_seal(vm->base.env, *out, err);
}

static kelpie_outcome vm_capture(const struct kelpie_op *op, struct klp_hypervisor *base,
                                 struct klp_handle *device_state, struct klp_handle *dirty,
                                 struct kelpie_error **err)
{
    struct sim_vm *vm = vm_from(base);
    KLP_TRY(takes(op, CAPTURE_NS, err));
    if (vm->ended || !vm->stopped)
        return klp_fail(err, KELPIE_E_CRASHED, "the simulated guest does not stand still");
    KLP_REQUIRE(klp_memory_create(op->env, "dirty", vm->size, dirty, err));
    if (pages_capture(vm, *dirty, err) && device_save(vm, device_state, err))
        return KLP_OK;
    klp_handle_close(op->env, *dirty);
    return (kelpie_outcome){KELPIE_FAIL};
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
    *out = (struct klp_hypervisor_exit){.clean = !vm->killed && !vm->engine.crashed,
                                        .code = vm->engine.crashed ? 99 : 0,
                                        .signal = vm->killed ? 9 : 0};
    snprintf(out->reason, sizeof(out->reason), "%s",
             vm->killed           ? "killed as ordered"
             : vm->engine.crashed ? "the guest crashed"
                                  : "the guest powered off");
    return KLP_OK;
}

static void vm_kill(struct klp_hypervisor *base)
{
    vm_from(base)->killed = true;
    sim_wake(&vm_from(base)->changed);
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
    if (vm->memory != NULL)
        munmap(vm->memory, vm->size);
    if (vm->fd >= 0)
        close(vm->fd);
    sim_end_close(&vm->host);
    klp_list_remove(&vm->link);
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

struct klp_hypervisor *sim_hypervisor_create(struct klp_env *env)
{
    struct sim_vm *vm = KLP_NEW(struct sim_vm);
    vm->base = (struct klp_hypervisor){&vm_ops, env};
    vm->base_memory = KLP_NO_HANDLE;
    vm->fd = -1;
    sim_source_init(&vm->changed);
    klp_list_append(&sim_world->vms, &vm->link);
    sim_resource_add(&vm->resource, vm_release);
    return &vm->base;
}
