/* SPDX-License-Identifier: Apache-2.0 */
/* VMs and factories as objects, and the table of DESIGN 5: which operation may begin in which
 * state. What the operations do: run.c, capture.c, restore.c, call.c, lease.c. */
#include "vm/vm.h"

#include <string.h>

#include "base/fmt.h"
#include "vm/inside.h"
#include "vm/keeper/keeper.h"

static const char *const state_names[] = {
#define STATE_NAME(name, text) [KELPIE_VM_##name] = text,
    KELPIE_VM_STATE_MAP(STATE_NAME)
#undef STATE_NAME
};

const char *kelpie_vm_state_name(enum kelpie_vm_state state)
{
    return (unsigned)state < KLP_COUNT(state_names) ? state_names[state] : "unknown";
}

/* ---- the table */

#define IN(state) (1u << KELPIE_VM_##state)

struct rule {
    const char *verb; /* "cannot VERB VM x" */
    unsigned from;
    const char *needed;
};

static const struct rule rules[] = {
    [VM_START] = {"start", IN(CREATED) | IN(STOPPED), "created or stopped"},
    [VM_STOP] = {"stop", IN(RUNNING) | IN(PAUSED), "running or paused"},
    [VM_PAUSE] = {"pause", IN(RUNNING), "running"},
    [VM_RESUME] = {"resume", IN(PAUSED), "paused"},
    [VM_EXEC] = {"run a command in", IN(RUNNING), "running"},
    [VM_FILES] = {"copy files of", IN(RUNNING), "running"},
    [VM_TALK] = {"talk to the guest of", IN(RUNNING) | IN(STARTING), "running"},
    [VM_SNAPSHOT] = {"take a snapshot of", IN(RUNNING) | IN(PAUSED), "running or paused"},
    [VM_RESTORE] = {"restore into", IN(CREATED) | IN(STOPPED), "created or stopped"},
    [VM_HOLD] = {"hold or release", IN(RUNNING) | IN(PAUSED), "running or paused"},
};

kelpie_outcome vm_may(const struct kelpie_vm *vm, enum vm_verb verb, struct kelpie_error **err)
{
    const struct rule *rule = &rules[verb];
    if ((rule->from >> vm->state & 1) != 0)
        return KLP_OK;
    const char *why = vm->state == KELPIE_VM_CRASHED ? vm->reason : "";
    return klp_fail(err, KELPIE_E_STATE, "cannot %s VM %s: it is %s%s%s%s; it must be %s",
                    rule->verb, vm->id, kelpie_vm_state_name(vm->state), why[0] != 0 ? " (" : "",
                    why, why[0] != 0 ? ")" : "", rule->needed);
}

kelpie_outcome vm_begin(struct kelpie_vm *vm, enum vm_verb verb, enum kelpie_vm_state *former,
                        struct kelpie_error **err)
{
    kelpie_outcome outcome = KLP_OK;
    KLP_LOCKED (vm->mutex) {
        *former = vm->state;
        if (vm->busy != NULL)
            outcome = klp_fail(err, KELPIE_E_BUSY, "cannot %s VM %s: somebody is about to %s it",
                               rules[verb].verb, vm->id, vm->busy);
        else
            outcome = vm_may(vm, verb, err);
        if (kelpie_is_ok(outcome))
            vm->busy = rules[verb].verb;
    }
    return outcome;
}

void vm_end(struct kelpie_vm *vm)
{
    KLP_LOCKED (vm->mutex) {
        vm->busy = NULL;
        klp_cond_wake(vm->changed);
    }
}

void vm_state_set(struct kelpie_vm *vm, enum kelpie_vm_state state)
{
    KLP_LOCKED (vm->mutex) {
        vm->state = state;
        klp_cond_wake(vm->changed);
    }
}

bool vm_is_live(struct kelpie_vm *vm)
{
    bool live = false;
    KLP_LOCKED (vm->mutex) {
        live = vm->live;
    }
    return live;
}

/* ---- objects */

struct kelpie_vm *vm_new(struct kelpie_vm_factory *factory, const char *id)
{
    struct kelpie_vm *vm = KLP_NEW(struct kelpie_vm);
    *vm = (struct kelpie_vm){.factory = factory,
                             .env = factory->env,
                             .mutex = klp_mutex_create(factory->env),
                             .changed = klp_cond_create(factory->env),
                             .state = KELPIE_VM_CREATED,
                             .meta = KLP_BUF_INIT(VM_META_MAX)};
    klp_text_copy(vm->id, sizeof(vm->id), id);
    return vm;
}

void vm_free(struct kelpie_vm *vm)
{
    for (size_t i = 0; i < VM_RETIRED_MAX; i++) {
        if (vm->retired[i] != NULL)
            klp_guest_release(vm->retired[i]);
    }
    klp_layer_close(vm->base);
    klp_mem_free(vm->console);
    klp_buf_finish(&vm->meta);
    klp_vm_config_finish(&vm->config);
    klp_cond_destroy(vm->changed);
    klp_mutex_destroy(vm->mutex);
    klp_mem_free(vm);
}

kelpie_outcome kelpie_vm_create(const struct kelpie_op *op, struct kelpie_vm_factory *factory,
                                const char *id, const struct kelpie_vm_config *config,
                                struct kelpie_vm **out, struct kelpie_error **err)
{
    struct klp_machine machine;
    char what[KLP_ID_SIZE + 8];
    KLP_TRY(klp_op_check(op, "creating a VM", err));
    if (id == NULL || !klp_id_is_valid(id))
        return klp_fail(err, KELPIE_E_INVALID, "the id of a VM must be %d lower-case hex digits",
                        2 * KLP_ID_BYTES);
    klp_format(what, sizeof(what), "VM %s", id);
    KLP_REQUIRE(klp_vm_config_check(factory, what, config, &machine, err));
    struct kelpie_vm *vm = vm_new(factory, id);
    klp_vm_config_copy(&vm->config, config, factory->arch);
    vm->machine = machine;
    *out = vm;
    return KLP_OK;
}

void vm_condemn(struct kelpie_vm *vm)
{
    KLP_AUTO(kelpie_error) struct kelpie_error *error = NULL;
    if (vm->dir != NULL && !klp_file_write_all(vm->dir, KLP_KEEPER_ENDED, "", 0, &error))
        klp_log(vm->env, KLP_LOG_WARN, "vm.condemn", "vm=%s error=%s", vm->id,
                kelpie_error_message(error));
}

void kelpie_vm_destroy(const struct kelpie_op *op, struct kelpie_vm *vm)
{
    KLP_AUTO(kelpie_error) struct kelpie_error *why = NULL;
    if (vm == NULL)
        return;
    struct kelpie_op cleanup = klp_op_cleanup(op, VM_CLEANUP_MS);
    vm_end_order(vm, KELPIE_VM_STOPPED, "removed");
    if (!kelpie_is_ok(vm_keeper_exit(&cleanup, vm, &why))) {
        klp_log(vm->env, KLP_LOG_WARN, "vm.destroy", "vm=%s error=%s", vm->id,
                kelpie_error_message(why));
        vm_condemn(vm);
    }
    klp_vm_guest_drop(vm);
    vm_keeper_leave(vm);
    vm_free(vm);
}

void klp_vm_leave(struct kelpie_vm *vm)
{
    if (vm == NULL)
        return;
    klp_vm_guest_drop(vm);
    vm_keeper_leave(vm);
    vm_free(vm);
}

/* ---- facts */

enum kelpie_vm_state kelpie_vm_state(struct kelpie_vm *vm)
{
    enum kelpie_vm_state state = KELPIE_VM_CREATED;
    KLP_LOCKED (vm->mutex) {
        state = vm->state;
    }
    return state;
}

const char *kelpie_vm_id(const struct kelpie_vm *vm)
{
    return vm->id;
}

void kelpie_vm_reason(struct kelpie_vm *vm, char *out, size_t capacity)
{
    KLP_LOCKED (vm->mutex) {
        bool ended = vm->state == KELPIE_VM_CRASHED || vm->state == KELPIE_VM_STOPPED;
        klp_format(out, capacity, "%s", ended ? vm->reason : "");
    }
}

int64_t kelpie_vm_pid(struct kelpie_vm *vm)
{
    int64_t pid = 0;
    KLP_LOCKED (vm->mutex) {
        pid = vm->pid;
    }
    return pid;
}

uint32_t klp_vm_holds(struct kelpie_vm *vm)
{
    uint32_t holds = 0;
    KLP_LOCKED (vm->mutex) {
        holds = vm->holds;
    }
    return holds;
}

const struct klp_machine *klp_vm_machine(const struct kelpie_vm *vm)
{
    return &vm->machine;
}

struct klp_layer *klp_vm_base(struct kelpie_vm *vm)
{
    struct klp_layer *base = NULL;
    KLP_LOCKED (vm->mutex) {
        base = vm->base;
    }
    return base;
}

uint64_t klp_vm_epoch(struct kelpie_vm *vm)
{
    uint64_t epoch = 0;
    KLP_LOCKED (vm->mutex) {
        epoch = vm->epoch;
    }
    return epoch;
}

/* ---- the console */

static void console_read(const struct kelpie_op *op, struct kelpie_vm *vm, struct klp_buf *out)
{
    struct klp_keeper_answer answer;
    struct klp_bytes console;
    if (kelpie_is_ok(vm_ask(op, vm, KLP_KEEPER_CONSOLE, NULL, NULL, 0, &answer, NULL))) {
        if (klp_field_find(answer.fields, KLP_KTAG_CONSOLE, &console))
            klp_buf_append(out, console.data, console.size);
        klp_keeper_answer_finish(&answer);
        return;
    }
    KLP_LOCKED (vm->mutex) {
        if (vm->console != NULL)
            klp_buf_append_text(out, vm->console);
    }
}

void kelpie_vm_console(const struct kelpie_op *op, struct kelpie_vm *vm, char *out, size_t capacity)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf console =
        KLP_BUF_INIT(KLP_KEEPER_FRAME_MAX);
    if (capacity == 0)
        return;
    console_read(op, vm, &console);
    size_t size = console.size < capacity ? console.size : capacity - 1;
    for (size_t i = 0; i < size; i++) {
        char c = (char)console.data[console.size - size + i];
        out[i] = c != 0 ? c : ' ';
    }
    out[size] = 0;
}

/* Backwards from `end`: where its line begins. */
static size_t line_start(const char *text, size_t end)
{
    while (end > 0 && text[end - 1] != '\n')
        end--;
    return end;
}

void vm_console_explain(const struct kelpie_op *op, struct kelpie_vm *vm, struct kelpie_error **err)
{
    size_t starts[VM_CONSOLE_LINES + 1], count = 0;
    if (err == NULL || *err == NULL)
        return;
    char *text = klp_mem_alloc(VM_CONSOLE_MAX);
    kelpie_vm_console(op, vm, text, VM_CONSOLE_MAX);
    size_t end = strlen(text);
    while (end > 0 && (text[end - 1] == '\n' || text[end - 1] == '\r'))
        text[--end] = 0;
    for (size_t at = end; at > 0 && count < VM_CONSOLE_LINES; count++) {
        starts[count] = line_start(text, at);
        at = starts[count] > 0 ? starts[count] - 1 : 0;
    }
    for (size_t i = count, line_end; i-- > 0;) {
        __attribute__((cleanup(klp_auto_buf))) struct klp_buf line = KLP_BUF_INIT(2 * KLP_KIB);
        line_end = i > 0 ? starts[i - 1] - 1 : end;
        size_t size = line_end - starts[i] < 160 ? line_end - starts[i] : 160;
        klp_text_escape(&line, text + starts[i], size);
        klp_error_reason_add(err, "console: %s", klp_buf_text(&line));
    }
    klp_mem_free(text);
}

/* ---- factories */

const char *kelpie_vm_factory_name(const struct kelpie_vm_factory *factory)
{
    return factory->ops->name;
}

uint32_t kelpie_vm_factory_caps(const struct kelpie_vm_factory *factory)
{
    return factory->ops->caps;
}

void klp_vm_factory_destroy(struct kelpie_vm_factory *factory)
{
    if (factory != NULL)
        factory->ops->destroy(factory);
}

bool klp_vm_factory_machine(struct kelpie_vm_factory *factory,
                            const struct kelpie_vm_config *config, struct klp_machine *out,
                            struct kelpie_error **err)
{
    return klp_vm_config_check(factory, "a machine", config, out, err);
}

/* A backend answers with reasons, or with one message that is the reason. */
static void reasons_move(struct kelpie_error **err, struct kelpie_error **from)
{
    size_t count = kelpie_error_reason_count(*from);
    for (size_t i = 0; i < count; i++)
        klp_error_reason_add(err, "%s", kelpie_error_reason(*from, i));
    if (count == 0 && *from != NULL)
        klp_error_reason_add(err, "%s", kelpie_error_message(*from));
    klp_error_clear(from);
}

bool klp_vm_factory_accepts(struct kelpie_vm_factory *factory, const struct klp_machine *machine,
                            struct kelpie_error **err)
{
    struct kelpie_error *refusal = NULL, *own = NULL;
    const char *name = factory->ops->name;
    bool accepted = true;
    KLP_IGNORE(
        klp_refuse(&refusal, KELPIE_E_INCOMPATIBLE, "backend %s cannot run this machine", name));
    if (strcmp(machine->backend, name) != 0)
        klp_error_reason_add(&refusal, "it was made by backend %s", machine->backend);
    if (machine->arch != factory->arch)
        klp_error_reason_add(&refusal, "its guest is %s, guests here are %s",
                             klp_arch_name(machine->arch), klp_arch_name(factory->arch));
    if (kelpie_error_reason_count(refusal) == 0 && factory->ops->accepts != NULL)
        accepted = factory->ops->accepts(factory, machine, &own);
    reasons_move(&refusal, &own);
    if (accepted && kelpie_error_reason_count(refusal) == 0) {
        klp_error_clear(&refusal);
        return true;
    }
    klp_error_move(err, &refusal);
    return false;
}
