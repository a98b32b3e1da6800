/* SPDX-License-Identifier: Apache-2.0 */
/* At the daemon's start: what still runs is adopted, what stands still with a hand-off note is
 * settled with the registry, what died is said to have died, and nothing is left behind. */
#include <string.h>

#include "base/fmt.h"
#include "env/chan.h"
#include "node/inside.h"

#define VMS_MAX 4096
#define ADOPT_MS 5000
#define SETTLE_MS 5000
#define PEER_ASK_MS 2000
#define ASK_AGAIN_MS 100 /* the registry */

/* ---- what a VM's keeper keeps for us: whose VM it is */

kelpie_outcome meta_put(const struct kelpie_op *op, struct kelpie_vm *vm, const char *agent_id,
                        struct kelpie_error **err)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf text = KLP_BUF_INIT(KLP_KIB);
    klp_buf_append_format(&text, "agent=%s", agent_id);
    return klp_vm_meta_set(op, vm, klp_buf_view(&text), err);
}

static bool meta_agent(const struct kelpie_op *op, struct kelpie_vm *vm, char out[KLP_ID_SIZE])
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf meta = KLP_BUF_INIT(32 * KLP_KIB);
    static const char prefix[] = "agent=";
    if (!kelpie_is_ok(klp_vm_meta_get(op, vm, &meta, NULL)) ||
        strncmp(klp_buf_text(&meta), prefix, strlen(prefix)) != 0 ||
        !klp_id_is_valid(klp_buf_text(&meta) + strlen(prefix)))
        return false;
    klp_text_copy(out, KLP_ID_SIZE, klp_buf_text(&meta) + strlen(prefix));
    return true;
}

/* ---- hand-off notes */

static bool note_get(struct klp_node *node, const char *agent_id, struct klp_handoff *out)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf text = KLP_BUF_INIT(4 * KLP_KIB);
    return klp_file_read_all(node->notes_dir, agent_id, &text, NULL) &&
           klp_handoff_decode(klp_buf_view(&text), out, NULL);
}

/* True: it is known whose agent it is. */
static bool settle_try(const struct kelpie_op *op, struct node_agent *agent,
                       const struct klp_handoff *note, struct klp_agent_record *record,
                       bool *out_gone)
{
    struct klp_host *host = &agent->node->host;
    if (agent->life == NULL)
        return true;
    kelpie_outcome outcome =
        note != NULL ? klp_teleport_settle_on(op, host, agent->life->vm, note, &agent->settle,
                                              record, out_gone, NULL)
                     : klp_teleport_intent_undo(op, host, agent->life->vm, record, NULL);
    return kelpie_is_ok(outcome);
}

static void settle(const struct kelpie_op *op, struct node_agent *agent,
                   const struct klp_handoff *note)
{
    struct klp_node *node = agent->node;
    struct kelpie_op within = klp_op_within(op, SETTLE_MS);
    struct klp_agent_record record = agent->record;
    bool gone = false, known = settle_try(&within, agent, note, &record, &gone);
    if (!known) {
        if (!klp_cancel_is_raised(node->cancel))
            chore_post(node, CHORE_SETTLE, agent->id, NULL, "");
        return;
    }
    agent->settle = (struct klp_settle_watch){0};
    agent->intent_open = false;
    if (gone) {
        life_end(op, agent, false);
        KLP_IGNORE(klp_dir_remove(node->notes_dir, agent->id, NULL));
        event_post(node, "teleport.done", agent->name, "settled: node '%s' owns it", record.owner);
        agent_forget(agent);
    } else {
        record_adopt(agent, &record);
        event_post(node, "teleport.undone", agent->name, "settled: it stays here at epoch %llu",
                   (unsigned long long)record.epoch);
    }
}

kelpie_outcome intent_close(const struct kelpie_op *op, struct node_agent *agent,
                            struct kelpie_error **err)
{
    struct klp_handoff note;
    if (!agent->intent_open || agent->life == NULL || note_get(agent->node, agent->id, &note))
        return KLP_OK;
    struct klp_agent_record record = agent->record;
    KLP_TRY(klp_wrap(
        err, klp_teleport_intent_undo(op, &agent->node->host, agent->life->vm, &record, err),
        "a move of '%s' is not over", agent->name));
    agent->intent_open = false;
    record_adopt(agent, &record);
    return KLP_OK;
}

void settle_chore(const struct kelpie_op *op, struct klp_node *node, const char *agent_id)
{
    struct klp_handoff note;
    struct node_agent *agent = agent_find_id(node, agent_id);
    if (agent == NULL)
        return;
    struct kelpie_error *error = NULL;
    if (!kelpie_is_ok(slot_take(op, agent, &error))) {
        if (kelpie_error_code(error) == KELPIE_E_BUSY) /* by an operation that takes its time */
            chore_post(node, CHORE_SETTLE, agent_id, NULL, "");
        klp_error_clear(&error);
        agent_put(agent);
        return;
    }
    bool has_note = note_get(node, agent_id, &note);
    if (has_note || agent->intent_open)
        settle(op, agent, has_note ? &note : NULL);
    agent_give(agent);
}

/* ---- adoption */

enum fate { FATE_ADOPT, FATE_SETTLE, FATE_DESTROY };

static enum fate fate_of(const struct klp_node *node, const struct klp_agent_record *record,
                         bool has_note)
{
    bool ours = strcmp(record->owner, node->name) == 0;
    if (has_note)
        return FATE_SETTLE;
    if (!ours)
        return FATE_DESTROY;
    switch (record->state) {
    case KLP_AGENT_RUNNING:
    case KLP_AGENT_PAUSED:
    case KLP_AGENT_MOVING: /* no note: it had not been quiesced; the intent is taken back */
        return FATE_ADOPT;
    default:
        return FATE_DESTROY; /* STARTING: no instruction of its workload ran; the rest want no VM */
    }
}

/* A registry that does not answer says nothing about an agent: it is asked again, for as long as
 * the daemon's start may take. False: it answered, or there is no time left. */
static bool ask_again(const struct kelpie_op *op, kelpie_outcome outcome, struct kelpie_error **err)
{
    enum kelpie_code code = klp_error_code(err);
    if (kelpie_is_ok(outcome) || code == KELPIE_E_NOT_FOUND || code == KELPIE_E_CONFLICT ||
        code == KELPIE_E_CORRUPT || code == KELPIE_E_INVALID)
        return false;
    if (!kelpie_is_ok(klp_sleep_until(op, klp_boot_ns(op->env) + ASK_AGAIN_MS * KLP_MS, NULL)))
        return false;
    klp_error_clear(err);
    return true;
}

static kelpie_outcome record_read(const struct kelpie_op *op, struct klp_node *node, const char *id,
                                  struct klp_agent_record *out, struct kelpie_error **err)
{
    kelpie_outcome outcome;
    do {
        outcome = klp_registry_get(op, node->host.registry, id, out, err);
    } while (ask_again(op, outcome, err));
    return outcome;
}

/* Ours, and running or paused. */
static kelpie_outcome record_hold(const struct kelpie_op *op, struct node_agent *agent,
                                  struct kelpie_error **err)
{
    struct klp_agent_record next = agent->record;
    if (next.state == KLP_AGENT_MOVING) {
        next.state = KLP_AGENT_RUNNING;
        next.epoch++;
        next.move_id[0] = next.destination[0] = 0;
    }
    return record_set(op, agent, &next, err);
}

/* What the former daemon asked for and got no answer to may still come: the record is changed
 * before anything rests on it, so that it finds its revision used up. One that came just before is
 * dealt with as it says. */
static kelpie_outcome adopt_lease(const struct kelpie_op *op, struct klp_node *node,
                                  struct node_agent *agent, uint64_t *out_sent_ns,
                                  struct kelpie_error **err)
{
    struct kelpie_error *error = NULL;
    kelpie_outcome outcome = record_hold(op, agent, &error);
    if (kelpie_error_code(error) == KELPIE_E_CONFLICT &&
        (agent->record.state == KLP_AGENT_MOVING || record_needs_vm(&agent->record))) {
        klp_error_clear(&error);
        outcome = record_hold(op, agent, &error);
    }
    klp_error_move(err, &error);
    KLP_TRY(outcome);
    *out_sent_ns = klp_boot_ns(op->env);
    return klp_registry_renew(op, node->host.registry, agent->id, node->name, agent->record.epoch,
                              err);
}

/* The VM goes on where it was: leased, its leftover holds dropped, its workload thawed unless the
 * user paused it. */
static kelpie_outcome adopt_running(const struct kelpie_op *patient, struct klp_node *node,
                                    struct node_agent *agent, struct kelpie_vm *vm,
                                    struct kelpie_error **err)
{
    uint64_t sent_ns = 0, third_ns = node->host.lease_ttl_ms * KLP_MS / 3;
    struct kelpie_error *error = NULL;
    kelpie_outcome outcome;
    do {
        outcome = adopt_lease(patient, node, agent, &sent_ns, &error);
    } while (ask_again(patient, outcome, &error));
    klp_error_move(err, &error);
    KLP_TRY(outcome);
    struct kelpie_op within = klp_op_within(patient, ADOPT_MS), *op = &within;
    KLP_TRY(klp_vm_lease(op, vm, agent->record.epoch, sent_ns + 2 * third_ns, err));
    KLP_TRY(klp_vm_release(op, vm, KLP_HOLD_SNAPSHOT | KLP_HOLD_RESTORE | KLP_HOLD_HANDOFF, err));
    if (agent->record.state == KLP_AGENT_RUNNING) {
        KLP_TRY(klp_vm_release(op, vm, KLP_HOLD_USER, err));
        KLP_TRY(klp_workload_thaw(op, vm, err));
    }
    klp_vm_gate_open(vm, agent->record.epoch);
    life_begin(agent, vm);
    event_post(node, "agent.adopted", agent->name, "%s", "");
    return KLP_OK;
}

static kelpie_outcome adopt_agent(const struct kelpie_op *op, struct klp_node *node,
                                  struct klp_agent_record *record, struct kelpie_vm *vm,
                                  enum fate fate, struct kelpie_error **err)
{
    struct node_agent *agent = agent_find_id(node, record->id);
    if (agent == NULL)
        agent = agent_add(node, record);
    AUTO_AGENT struct node_agent *held = agent;
    KLP_TRY(slot_take(op, agent, err));
    if (held->life != NULL)
        return klp_fail(err, KELPIE_E_CONFLICT, "'%s' has another VM here", agent->name);
    struct kelpie_error *error = NULL;
    if (!kelpie_is_ok(agent_know(op, agent, &error)))
        klp_log(op->env, KLP_LOG_WARN, "recover.config", "agent=%s error=%s", agent->name,
                kelpie_error_message(error));
    klp_error_clear(&error);
    if (fate == FATE_ADOPT)
        return adopt_running(op, node, agent, vm, err);
    life_begin(agent, vm); /* it stands still by its HANDOFF hold, or its lease */
    chore_post(node, CHORE_SETTLE, agent->id, NULL, "");
    return KLP_OK;
}

struct scan {
    const struct kelpie_op *op;
    struct klp_node *node;
    struct kelpie_vm_factory *factory;
    size_t count;
    char (*ids)[KLP_ID_SIZE];
};

static bool scan_each(void *arg, const char *id)
{
    struct scan *scan = arg;
    if (scan->count == VMS_MAX)
        return false;
    klp_text_copy(scan->ids[scan->count++], KLP_ID_SIZE, id);
    return true;
}

/* Left to the next start, which this one does not outlive: whose VM it is could not be learned. */
static void vm_postpone(const struct kelpie_op *op, const char *vm_id, struct kelpie_vm *vm,
                        const struct kelpie_error *why)
{
    klp_log(op->env, KLP_LOG_WARN, "recover.postponed", "vm=%s error=%s", vm_id,
            kelpie_error_message(why));
    klp_vm_leave(vm);
}

static void vm_recover(struct scan *scan, const char *vm_id)
{
    struct klp_node *node = scan->node;
    struct kelpie_op op = klp_op_within(scan->op, ADOPT_MS);
    struct kelpie_op cleanup = klp_op_cleanup(scan->op, NODE_CLEANUP_MS);
    struct kelpie_error *error = NULL;
    struct kelpie_vm *vm;
    char agent_id[KLP_ID_SIZE];
    if (!kelpie_is_ok(klp_vm_adopt(&op, scan->factory, vm_id, &vm, &error))) {
        klp_log(op.env, KLP_LOG_WARN, "recover.adopt", "vm=%s error=%s", vm_id,
                kelpie_error_message(error));
        klp_error_clear(&error);
        /* Its agent is declared dead below: it must not live on beside the next VM. */
        op = klp_op_cleanup(scan->op, ADOPT_MS);
        if (!kelpie_is_ok(klp_vm_abandon(&op, scan->factory, vm_id, &error)))
            klp_log(op.env, KLP_LOG_WARN, "recover.abandon", "vm=%s error=%s", vm_id,
                    kelpie_error_message(error));
        klp_error_clear(&error);
        return;
    }
    struct klp_agent_record record;
    struct klp_handoff note;
    bool alive =
        kelpie_vm_state(vm) == KELPIE_VM_RUNNING || kelpie_vm_state(vm) == KELPIE_VM_PAUSED;
    bool named = meta_agent(&op, vm, agent_id);
    kelpie_outcome outcome = KLP_OK;
    if (alive && named)
        outcome = record_read(scan->op, node, agent_id, &record, &error);
    if (!kelpie_is_ok(outcome) && klp_error_code(&error) != KELPIE_E_NOT_FOUND) {
        vm_postpone(&op, vm_id, vm, error);
        klp_error_clear(&error);
        return;
    }
    klp_error_clear(&error);
    if (!alive || !named || !kelpie_is_ok(outcome)) {
        /* Nobody's, or dead: its agent is looked at below. */
        klp_log(op.env, KLP_LOG_WARN, "recover.orphan", "vm=%s state=%s agent=%s", vm_id,
                kelpie_vm_state_name(kelpie_vm_state(vm)), named ? agent_id : "none");
        kelpie_vm_destroy(&cleanup, vm);
        return;
    }
    bool has_note = note_get(node, agent_id, &note);
    if (has_note && record.state != KLP_AGENT_MOVING && record.epoch > note.epoch &&
        strcmp(record.owner, node->name) == 0) { /* of a move that is over: it is here since */
        KLP_IGNORE(klp_dir_remove(node->notes_dir, agent_id, NULL));
        has_note = false;
    }
    enum fate fate = fate_of(node, &record, has_note);
    if (fate != FATE_DESTROY)
        outcome = adopt_agent(scan->op, node, &record, vm, fate, &error);
    if (fate != FATE_DESTROY && !kelpie_is_ok(outcome) &&
        !kelpie_is_ok(klp_op_check(scan->op, "", NULL))) {
        vm_postpone(&op, vm_id, vm, error);
    } else if (fate == FATE_DESTROY || !kelpie_is_ok(outcome)) {
        klp_log(op.env, KLP_LOG_WARN, "recover.destroy", "agent=%s vm=%s error=%s", record.name,
                vm_id, kelpie_error_message(error));
        kelpie_vm_destroy(&cleanup, vm);
    }
    klp_error_clear(&error);
    klp_agent_record_finish(&record);
}

/* ---- VMs that were given up */

void node_sweep(const struct kelpie_op *op, struct klp_node *node)
{
    bool undead = false;
    for (size_t i = 0; i < node->host.factory_count; i++) {
        KLP_AUTO(kelpie_error) struct kelpie_error *error = NULL;
        if (kelpie_is_ok(klp_vm_sweep(op, node->host.factories[i], &error)))
            continue;
        undead = true;
        klp_log(op->env, KLP_LOG_WARN, "node.sweep", "error=%s", kelpie_error_message(error));
    }
    KLP_LOCKED (node->mutex) {
        node->undead = undead;
    }
}

bool node_has_undead(struct klp_node *node)
{
    bool undead = false;
    KLP_LOCKED (node->mutex) {
        undead = node->undead;
    }
    return undead;
}

/* ---- our records without a VM */

static void dead_state(const struct klp_agent_record *record, struct klp_agent_record *next)
{
    *next = *record;
    next->move_id[0] = next->destination[0] = 0;
    if (record->state == KLP_AGENT_STARTING && klp_digest_is_zero(&record->manifest)) {
        next->state = KLP_AGENT_STOPPED;
        klp_format(next->reason, sizeof(next->reason), "the daemon ended while it was starting");
    } else if (record->state == KLP_AGENT_STARTING && record->move_id[0] == 0) {
        /* From its last snapshot, which may be older than what it did since. */
        next->state = KLP_AGENT_CRASHED;
        klp_format(next->reason, sizeof(next->reason), "the daemon ended while it was starting");
    } else if (record->state == KLP_AGENT_STARTING) {
        next->state = KLP_AGENT_PARKED;
        next->epoch++;
        klp_format(next->reason, sizeof(next->reason), "the daemon ended while it was starting");
    } else {
        next->state = KLP_AGENT_CRASHED;
        klp_format(next->reason, sizeof(next->reason),
                   "its keeper or hypervisor died while no daemon was there");
    }
}

bool record_needs_vm(const struct klp_agent_record *record)
{
    return record->state == KLP_AGENT_RUNNING || record->state == KLP_AGENT_PAUSED ||
           record->state == KLP_AGENT_STARTING || record->state == KLP_AGENT_MOVING;
}

struct roll { /* records that say this node owns them */
    struct klp_node *node;
    size_t count;
    char (*ids)[KLP_ID_SIZE];
};

static bool roll_each(void *arg, const struct klp_agent_record *record)
{
    struct roll *roll = arg;
    if (strcmp(record->owner, roll->node->name) == 0 && roll->count < NODE_AGENTS_MAX)
        klp_text_copy(roll->ids[roll->count++], KLP_ID_SIZE, record->id);
    return true;
}

static kelpie_outcome roll_read(const struct kelpie_op *op, struct roll *roll,
                                struct kelpie_error **err)
{
    kelpie_outcome outcome;
    do {
        roll->count = 0;
        outcome = klp_registry_list(op, roll->node->host.registry, roll_each, roll, err);
    } while (ask_again(op, outcome, err));
    return outcome;
}

static kelpie_outcome record_recover(const struct kelpie_op *op, struct klp_node *node,
                                     const char *id, struct kelpie_error **err)
{
    struct klp_agent_record record, next;
    struct node_agent *agent = agent_find_id(node, id);
    struct kelpie_error *error = NULL;
    if (agent == NULL) {
        kelpie_outcome outcome = record_read(op, node, id, &record, &error);
        if (klp_error_code(&error) == KELPIE_E_NOT_FOUND) {
            klp_error_clear(&error); /* removed since it was listed */
            return KLP_OK;
        }
        klp_error_move(err, &error);
        KLP_TRY(outcome);
        agent = agent_add(node, &record);
        klp_agent_record_finish(&record);
        if (!kelpie_is_ok(agent_know(op, agent, &error)))
            klp_log(op->env, KLP_LOG_WARN, "recover.config", "agent=%s error=%s", agent->name,
                    kelpie_error_message(error));
        klp_error_clear(&error);
    }
    if (agent->life == NULL && record_needs_vm(&agent->record) &&
        kelpie_is_ok(slot_take(op, agent, NULL))) {
        dead_state(&agent->record, &next);
        bool may_run = next.state == KLP_AGENT_CRASHED && node_has_undead(node);
        if (may_run)
            record_later(agent, KLP_AGENT_CRASHED, next.reason);
        else if (!kelpie_is_ok(record_set(op, agent, &next, &error))) {
            klp_log(op->env, KLP_LOG_WARN, "recover.record", "agent=%s error=%s", agent->name,
                    kelpie_error_message(error));
            record_later(agent, KLP_AGENT_CRASHED, next.reason);
        }
        klp_error_clear(&error);
        KLP_IGNORE(klp_dir_remove(node->notes_dir, id, NULL));
        slot_give(agent);
    }
    agent_put(agent);
    return KLP_OK;
}

/* Folders of agents that the registry does not know as ours any more. */
static bool folder_each(void *arg, const char *name)
{
    struct klp_node *node = arg;
    struct node_agent *agent = agent_find_id(node, name);
    if (agent == NULL)
        KLP_IGNORE(klp_dir_remove_tree(node->agents_dir, name, NULL));
    agent_put(agent);
    return true;
}

/* A living node of the same name elsewhere: each would take the other's agents for its own dead
 * ones. One that was asked and does not answer may live. */
static kelpie_outcome name_check(const struct kelpie_op *op, struct klp_node *node,
                                 struct kelpie_error **err)
{
    struct klp_node_record other;
    struct kelpie_error *error = NULL;
    kelpie_outcome outcome =
        klp_registry_node_get(op, node->host.registry, node->name, &other, &error);
    if (kelpie_error_code(error) == KELPIE_E_NOT_FOUND ||
        (kelpie_is_ok(outcome) && strcmp(other.endpoint, node->endpoint) == 0)) {
        klp_error_clear(&error);
        return KLP_OK;
    }
    klp_error_move(err, &error);
    KLP_TRY(outcome);
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf answer = KLP_BUF_INIT(KLP_REST_BODY_MAX);
    struct kelpie_op within = klp_op_within(op, PEER_ASK_MS);
    int status;
    outcome = klp_peer_call(&within, other.endpoint, "GET", "/v1", (struct klp_bytes){NULL, 0},
                            &status, &answer, NULL);
    if (outcome.kind == KELPIE_FAIL)
        return KLP_OK;
    outcome = klp_fail(err, KELPIE_E_EXISTS, "there is a node '%s' at %s already", node->name,
                       other.endpoint);
    klp_error_remedy_set(err, "kelpied --name ANOTHER");
    return outcome;
}

kelpie_outcome recover(const struct kelpie_op *op, struct klp_node *node, struct kelpie_error **err)
{
    KLP_TRY(name_check(op, node, err));
    char(*ids)[KLP_ID_SIZE] = klp_mem_alloc_raw(sizeof(ids[0]) * VMS_MAX);
    kelpie_outcome outcome = KLP_OK;
    for (size_t i = 0; kelpie_is_ok(outcome) && i < node->host.factory_count; i++) {
        struct scan scan = {op, node, node->host.factories[i], 0, ids};
        outcome = klp_vm_scan(op, scan.factory, scan_each, &scan, err);
        for (size_t vm = 0; kelpie_is_ok(outcome) && vm < scan.count; vm++)
            vm_recover(&scan, ids[vm]);
    }
    struct kelpie_op within = klp_op_within(op, ADOPT_MS);
    node_sweep(&within, node);
    struct roll roll = {node, 0, ids};
    if (kelpie_is_ok(outcome))
        outcome = roll_read(op, &roll, err);
    for (size_t i = 0; kelpie_is_ok(outcome) && i < roll.count; i++)
        outcome = record_recover(op, node, ids[i], err);
    klp_mem_free(ids);
    KLP_TRY(outcome);
    KLP_REQUIRE(klp_dir_list(node->agents_dir, folder_each, node, err));
    return KLP_OK;
}
