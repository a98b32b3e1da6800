/* SPDX-License-Identifier: Apache-2.0 */
/* Finding the VMs of an earlier daemon, and taking them over: all that is known of them is asked
 * back from their keepers. */
#include <string.h>

#include "base/fmt.h"
#include "base/list.h"
#include "vm/inside.h"
#include "vm/keeper/keeper.h"

#define SCAN_MAX 4096 /* VMs of one node */
#define SCAN_CONNECT_MS 2000

/* ---- adoption */

/* What a configuration can be rebuilt from; the rest (environment, names) is inside the guest. */
static void config_rebuild(struct kelpie_vm *vm)
{
    struct kelpie_vm_config config = {.vcpu_count = vm->machine.vcpus,
                                      .memory_mib = (uint32_t)(vm->machine.memory_bytes / KLP_MIB)};
    klp_vm_config_copy(&vm->config, &config, vm->machine.arch);
}

static kelpie_outcome base_ask(const struct kelpie_op *op, struct kelpie_vm *vm,
                               struct kelpie_error **err)
{
    struct klp_keeper_answer answer;
    struct kelpie_error *why = NULL;
    kelpie_outcome outcome = vm_ask(op, vm, KLP_KEEPER_LAYERS, NULL, NULL, 0, &answer, &why);
    if (kelpie_is_ok(outcome)) {
        struct klp_handle handle = klp_keeper_answer_take(&answer, 0);
        klp_keeper_answer_finish(&answer);
        if (klp_handle_is_none(handle))
            return klp_fail(err, KELPIE_E_PROTOCOL, "the keeper hands over no layer");
        KLP_REQUIRE(klp_layer_adopt(vm->env, handle, vm->machine.memory_bytes,
                                    vm->machine.page_log2, &vm->base, err));
        return KLP_OK;
    }
    if (klp_error_code(&why) == KELPIE_E_NOT_FOUND) {
        klp_error_clear(&why);
        return KLP_OK;
    }
    klp_error_move(err, &why);
    return outcome;
}

static kelpie_outcome status_adopt(struct kelpie_vm *vm, const struct klp_keeper_status *status,
                                   struct kelpie_error **err)
{
    if (strcmp(status->vm, vm->id) != 0)
        return klp_fail(err, KELPIE_E_CORRUPT, "its keeper keeps '%s'", status->vm);
    if (status->machine.size > 0)
        KLP_REQUIRE(klp_machine_decode(status->machine, &vm->machine, err));
    else if (status->state != KLP_KEEPER_EMPTY)
        return klp_fail(err, KELPIE_E_PROTOCOL, "its keeper tells no machine");
    vm->leased = status->fence_at_ns != 0;
    vm->epoch = status->epoch;
    vm->fence_at_ns = status->fence_at_ns;
    vm->used = status->state != KLP_KEEPER_EMPTY;
    klp_buf_append(&vm->meta, status->meta.data, status->meta.size);
    KLP_REQUIRE(klp_buf_check(&vm->meta, "its note", err));
    config_rebuild(vm);
    return KLP_OK;
}

/* As if it had lived here: then what the keeper tells makes the state. */
static kelpie_outcome live_adopt(const struct kelpie_op *op, struct kelpie_vm *vm,
                                 const struct klp_keeper_status *status, struct kelpie_error **err)
{
    if (status->state != KLP_KEEPER_LIVE && status->state != KLP_KEEPER_DEAD)
        return KLP_OK;
    KLP_LOCKED (vm->mutex) {
        vm->live = true;
        vm->state = KELPIE_VM_RUNNING;
    }
    KLP_TRY(vm_settle(op, vm, err));
    return status->state == KLP_KEEPER_LIVE ? base_ask(op, vm, err) : KLP_OK;
}

static kelpie_outcome adopt(const struct kelpie_op *op, struct kelpie_vm *vm,
                            struct kelpie_error **err)
{
    struct klp_keeper_answer answer;
    struct klp_keeper_status status;
    KLP_REQUIRE(klp_dir_open_at(vm->factory->vms_dir, vm->id, false, &vm->dir, err));
    vm->client = klp_keeper_client_create(vm->env, vm->dir, vm->id);
    KLP_TRY(vm_keeper_connect(op, vm, err));
    KLP_TRY(vm_ask(op, vm, KLP_KEEPER_STATUS, NULL, NULL, 0, &answer, err));
    kelpie_outcome outcome = klp_keeper_status_parse(answer.fields, &status, err)
                                 ? status_adopt(vm, &status, err)
                                 : (kelpie_outcome){KELPIE_FAIL};
    if (kelpie_is_ok(outcome))
        outcome = live_adopt(op, vm, &status, err);
    klp_keeper_answer_finish(&answer);
    return outcome;
}

kelpie_outcome klp_vm_adopt(const struct kelpie_op *op, struct kelpie_vm_factory *factory,
                            const char *id, struct kelpie_vm **out, struct kelpie_error **err)
{
    if (!klp_id_is_valid(id))
        return klp_fail(err, KELPIE_E_INVALID, "'%.*s' is no id of a VM", 64, id);
    struct kelpie_vm *vm = vm_new(factory, id);
    kelpie_outcome outcome = adopt(op, vm, err);
    if (kelpie_is_ok(outcome)) {
        *out = vm;
        return outcome;
    }
    klp_vm_leave(vm);
    return klp_wrap(err, outcome, "cannot adopt VM %s", id);
}

kelpie_outcome klp_vm_abandon(const struct kelpie_op *op, struct kelpie_vm_factory *factory,
                              const char *id, struct kelpie_error **err)
{
    if (!klp_id_is_valid(id))
        return klp_fail(err, KELPIE_E_INVALID, "'%.*s' is no id of a VM", 64, id);
    struct kelpie_vm *vm = vm_new(factory, id);
    kelpie_outcome outcome = {KELPIE_FAIL};
    if (klp_dir_open_at(factory->vms_dir, id, false, &vm->dir, err)) {
        vm->client = klp_keeper_client_create(vm->env, vm->dir, id);
        outcome = vm_keeper_exit(op, vm, err);
        if (!kelpie_is_ok(outcome))
            vm_condemn(vm);
    }
    klp_vm_leave(vm);
    return klp_wrap(err, outcome, "cannot end VM %s", id);
}

/* ---- scan */

struct scan {
    size_t count;
    char (*ids)[KLP_ID_SIZE]; /* SCAN_MAX */
};

static bool id_take(void *arg, const char *name)
{
    struct scan *scan = arg;
    if (klp_id_is_valid(name) && scan->count < SCAN_MAX)
        klp_text_copy(scan->ids[scan->count++], KLP_ID_SIZE, name);
    return scan->count < SCAN_MAX;
}

/* A keeper that does not answer in time is taken for alive: only a refused connection proves its
 * end, or a folder that it took along. */
static kelpie_outcome keeper_probe(const struct kelpie_op *op, struct kelpie_vm_factory *factory,
                                   const char *id, bool *out_there, struct kelpie_error **err)
{
    struct kelpie_op within = klp_op_within(op, SCAN_CONNECT_MS);
    KLP_AUTO(dir) struct klp_dir *dir = NULL;
    KLP_AUTO(chan) struct klp_chan *chan = NULL;
    struct kelpie_error *why = NULL;
    *out_there = true;
    kelpie_outcome outcome = {KELPIE_FAIL};
    if (klp_dir_open_at(factory->vms_dir, id, false, &dir, &why))
        outcome = klp_chan_connect(&within, dir, KLP_KEEPER_SOCKET, &chan, &why);
    enum kelpie_code code = klp_error_code(&why);
    if (code == KELPIE_E_UNREACHABLE || code == KELPIE_E_NOT_FOUND) {
        *out_there = false;
        outcome = KLP_OK;
    }
    klp_error_clear(&why);
    return kelpie_is_ok(outcome) ? outcome : klp_op_check(op, "looking for keepers", err);
}

static bool is_condemned(struct kelpie_vm_factory *factory, const char *id)
{
    KLP_AUTO(dir) struct klp_dir *dir = NULL;
    KLP_AUTO(file) struct klp_file *file = NULL;
    return klp_dir_open_at(factory->vms_dir, id, false, &dir, NULL) &&
           klp_file_open(dir, KLP_KEEPER_ENDED, &file, NULL);
}

/* Later, if not now: its keeper has the order, and fences its guest whatever comes. */
static bool condemned_end(const struct kelpie_op *op, struct kelpie_vm_factory *factory,
                          const char *id)
{
    struct kelpie_op within = klp_op_within(op, SCAN_CONNECT_MS);
    KLP_AUTO(kelpie_error) struct kelpie_error *why = NULL;
    if (kelpie_is_ok(klp_vm_abandon(&within, factory, id, &why)))
        return true;
    klp_log(op->env, KLP_LOG_WARN, "vm.sweep", "vm=%s error=%s", id, kelpie_error_message(why));
    return false;
}

static kelpie_outcome scan_run(const struct kelpie_op *op, struct kelpie_vm_factory *factory,
                               struct scan *scan, bool (*each)(void *arg, const char *id),
                               void *arg, struct kelpie_error **err)
{
    KLP_REQUIRE(klp_dir_list(factory->vms_dir, id_take, scan, err));
    for (size_t i = 0; i < scan->count; i++) {
        bool there;
        KLP_TRY(keeper_probe(op, factory, scan->ids[i], &there, err));
        if (!there)
            KLP_REQUIRE(klp_dir_remove_tree(factory->vms_dir, scan->ids[i], err));
        else if (is_condemned(factory, scan->ids[i]))
            KLP_IGNORE(condemned_end(op, factory, scan->ids[i]));
        else if (!each(arg, scan->ids[i]))
            break;
    }
    return KLP_OK;
}

static kelpie_outcome sweep_run(const struct kelpie_op *op, struct kelpie_vm_factory *factory,
                                struct scan *scan, struct kelpie_error **err)
{
    KLP_REQUIRE(klp_dir_list(factory->vms_dir, id_take, scan, err));
    size_t left = 0;
    for (size_t i = 0; i < scan->count; i++)
        if (is_condemned(factory, scan->ids[i]) && !condemned_end(op, factory, scan->ids[i]))
            left++;
    return left == 0 ? KLP_OK
                     : klp_fail(err, KELPIE_E_BUSY, "%zu VMs that were given up may live on", left);
}

static kelpie_outcome with_ids(const struct kelpie_op *op, struct kelpie_vm_factory *factory,
                               bool (*each)(void *arg, const char *id), void *arg,
                               struct kelpie_error **err)
{
    struct scan scan = {.ids = klp_mem_try_raw(SCAN_MAX * KLP_ID_SIZE)};
    if (scan.ids == NULL)
        return klp_fail(err, KELPIE_E_NO_MEMORY, "no memory for a list of VMs");
    kelpie_outcome outcome = each != NULL ? scan_run(op, factory, &scan, each, arg, err)
                                          : sweep_run(op, factory, &scan, err);
    klp_mem_free(scan.ids);
    return klp_wrap(err, outcome, "cannot look for VMs below %s", klp_dir_path(factory->vms_dir));
}

/* Only before VMs are made here: a folder whose keeper is just being launched looks dead. */
kelpie_outcome klp_vm_scan(const struct kelpie_op *op, struct kelpie_vm_factory *factory,
                           bool (*each)(void *arg, const char *id), void *arg,
                           struct kelpie_error **err)
{
    return with_ids(op, factory, each, arg, err);
}

kelpie_outcome klp_vm_sweep(const struct kelpie_op *op, struct kelpie_vm_factory *factory,
                            struct kelpie_error **err)
{
    return with_ids(op, factory, NULL, NULL, err);
}
