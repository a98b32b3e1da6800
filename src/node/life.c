/* SPDX-License-Identifier: Apache-2.0 */
/* Lives of VMs on this node: who watches them, who renews their leases, and what is done when one
 * ends by itself. */
#include <stdarg.h>
#include <string.h>

#include "base/fmt.h"
#include "node/inside.h"

#define LOG_FILE_MAX (4ull * KLP_MIB) /* bytes of main output kept on disk */
#define FOLLOW_RETRY_MS 200

/* ---- events */

void event_post(struct klp_node *node, const char *type, const char *agent, const char *format, ...)
{
    struct klp_event event = {.wall_ns = klp_wall_ns(node->host.env)};
    klp_format(event.type, sizeof(event.type), "%s", type);
    klp_format(event.agent, sizeof(event.agent), "%s", agent);
    va_list args;
    va_start(args, format);
    klp_vformat(event.text, sizeof(event.text), format, args);
    va_end(args);
    klp_log(node->host.env, KLP_LOG_INFO, event.type, "agent=%s text=%s", event.agent, event.text);
    KLP_LOCKED (node->mutex) {
        event.seq = ++node->event_seq;
        node->events[event.seq % NODE_EVENTS_MAX] = event;
        klp_cond_wake(node->changed);
    }
}

static void chore_add(struct klp_node *node, struct chore facts, const char *agent_id,
                      const char *text)
{
    struct chore *chore = KLP_NEW(struct chore);
    *chore = facts;
    klp_text_copy(chore->agent, sizeof(chore->agent), agent_id);
    klp_format(chore->text, sizeof(chore->text), "%s", text);
    KLP_LOCKED (node->mutex) {
        klp_list_append(&node->chores, &chore->link);
        klp_cond_wake(node->changed);
    }
}

void chore_post(struct klp_node *node, enum chore_kind kind, const char *agent_id,
                const struct life *life, const char *text)
{
    chore_add(node, (struct chore){.kind = kind, .life = life}, agent_id, text);
}

void record_later(struct node_agent *agent, enum klp_agent_state state, const char *reason)
{
    chore_add(agent->node, (struct chore){.kind = CHORE_RECORD, .state = state}, agent->id, reason);
}

/* ---- the two tasks of a life */

static void watch_run(void *arg)
{
    struct life *life = arg;
    struct klp_node *node = life->agent->node;
    for (;;) {
        struct kelpie_op op = {
            .env = node->host.env, .deadline_ns = KLP_NO_DEADLINE, .cancel = life->cancel};
        struct kelpie_error *error = NULL;
        kelpie_outcome outcome = klp_vm_watch(&op, life->vm, &error);
        klp_error_clear(&error);
        if (klp_cancel_is_raised(life->cancel))
            return;
        enum kelpie_vm_state state = kelpie_vm_state(life->vm);
        if (state == KELPIE_VM_CRASHED || state == KELPIE_VM_STOPPED) {
            char reason[160];
            kelpie_vm_reason(life->vm, reason, sizeof(reason));
            chore_post(node, CHORE_DIED, life->agent->id, life, reason);
            return;
        }
        if (!kelpie_is_ok(outcome)) {
            struct kelpie_op nap = op;
            KLP_IGNORE(klp_sleep_until(&nap, klp_boot_ns(op.env) + FOLLOW_RETRY_MS * KLP_MS, NULL));
        }
    }
}

struct following {
    struct klp_file *file;
    uint64_t at;   /* offset in the file: grows to LOG_FILE_MAX, then the file starts anew */
    uint64_t next; /* absolute offset of the guest's log not yet written */
};

static bool following_take(void *arg, uint64_t offset, bool is_stderr, const void *data,
                           size_t size)
{
    struct following *following = arg;
    (void)is_stderr;
    if (following->at + size > LOG_FILE_MAX) {
        following->at = 0;
        if (!klp_file_truncate(following->file, 0, NULL))
            return false;
    }
    if (!klp_file_pwrite(following->file, following->at, data, size, NULL))
        return false;
    following->at += size;
    following->next = offset + size;
    return true;
}

static void main_ended(struct life *life, const struct klp_guest_main *end)
{
    char text[64];
    if (end->signal != 0)
        klp_format(text, sizeof(text), "main process ended by signal %d", end->signal);
    else
        klp_format(text, sizeof(text), "main process ended with status %d", end->exit_code);
    chore_post(life->agent->node, CHORE_MAIN_ENDED, life->agent->id, life, text);
}

static kelpie_outcome follow_once(const struct kelpie_op *op, struct life *life,
                                  struct following *following, bool *out_ended)
{
    struct klp_guest *guest;
    struct klp_guest_main end = {.state = KLP_MAIN_NONE};
    KLP_TRY(klp_vm_guest(op, life->vm, &guest, NULL));
    KLP_TRY(klp_guest_main_log(op, guest, following->next, true, following_take, following, &end,
                               NULL));
    *out_ended = end.state == KLP_MAIN_EXITED;
    if (*out_ended)
        main_ended(life, &end);
    return KLP_OK;
}

static void follow_run(void *arg)
{
    struct life *life = arg;
    struct klp_env *env = life->agent->node->host.env;
    KLP_AUTO(dir) struct klp_dir *dir = NULL;
    KLP_AUTO(file) struct klp_file *file = NULL;
    if (!agent_folder(life->agent, &dir, NULL) ||
        !klp_file_create(dir, "log", false, &file, NULL) || !klp_file_truncate(file, 0, NULL))
        return;
    struct following following = {.file = file};
    bool ended = false;
    while (!ended && !klp_cancel_is_raised(life->cancel)) {
        struct kelpie_op op = {.env = env, .deadline_ns = KLP_NO_DEADLINE, .cancel = life->cancel};
        KLP_IGNORE(follow_once(&op, life, &following, &ended));
        if (!ended)
            KLP_IGNORE(klp_sleep_until(&op, klp_boot_ns(env) + FOLLOW_RETRY_MS * KLP_MS, NULL));
    }
}

void life_begin(struct node_agent *agent, struct kelpie_vm *vm)
{
    struct klp_env *env = agent->node->host.env;
    struct life *life = KLP_NEW(struct life);
    *life = (struct life){.agent = agent, .vm = vm, .cancel = klp_cancel_create(env)};
    KLP_LOCKED (agent->node->mutex) {
        KLP_ASSERT(agent->life == NULL);
        agent->life = life;
        agent->references++;
        klp_cond_wake(agent->node->changed);
    }
    KLP_ASSERT(klp_task_spawn(env, "vm-watch", watch_run, life, &life->watcher, NULL));
    if (agent->identity.argv != NULL)
        KLP_ASSERT(klp_task_spawn(env, "vm-follow", follow_run, life, &life->follower, NULL));
}

void life_end(const struct kelpie_op *op, struct node_agent *agent, bool leave)
{
    struct klp_node *node = agent->node;
    struct life *life = NULL;
    struct kelpie_op cleanup = klp_op_cleanup(op, NODE_CLEANUP_MS);
    KLP_LOCKED (node->mutex) {
        life = agent->life;
        agent->life = NULL;
    }
    if (life == NULL)
        return;
    klp_vm_gate_close(life->vm);
    klp_cancel_raise(life->cancel);
    if (!leave)
        KLP_IGNORE(klp_vm_kill(&cleanup, life->vm, NULL)); /* waiting execs end by it */
    else
        klp_vm_guest_drop(life->vm);
    klp_task_join(life->watcher);
    if (life->follower != NULL)
        klp_task_join(life->follower);
    struct kelpie_op forever = {.env = node->host.env, .deadline_ns = KLP_NO_DEADLINE};
    klp_mutex_lock(node->mutex);
    while (life->users > 0)
        KLP_IGNORE(klp_cond_wait(&forever, node->changed, node->mutex, NULL));
    klp_mutex_unlock(node->mutex);
    if (leave)
        klp_vm_leave(life->vm);
    else
        kelpie_vm_destroy(&cleanup, life->vm);
    klp_cancel_destroy(life->cancel);
    klp_mem_free(life);
    agent_put(agent);
}

kelpie_outcome life_borrow(struct node_agent *agent, struct life **out, struct kelpie_error **err)
{
    struct life *life = NULL;
    enum klp_agent_state state = KLP_AGENT_NONE;
    KLP_LOCKED (agent->node->mutex) {
        life = agent->life;
        state = agent->record.state;
        if (life != NULL)
            life->users++;
    }
    if (life == NULL) {
        kelpie_outcome refused = klp_fail(err, KELPIE_E_STATE, "agent '%s' is %s, not running",
                                          agent->name, klp_agent_state_name(state));
        klp_error_remedy_set(err, "kelpie start %s", agent->name);
        return refused;
    }
    *out = life;
    return KLP_OK;
}

void life_return(struct life *life)
{
    struct klp_node *node = life->agent->node;
    KLP_LOCKED (node->mutex) {
        life->users--;
        klp_cond_wake(node->changed);
    }
}

/* ---- the janitor */

static bool chore_is_stale(struct node_agent *agent, const struct chore *chore)
{
    bool stale = true;
    KLP_LOCKED (agent->node->mutex) {
        stale = chore->life != NULL && agent->life != chore->life;
    }
    return stale;
}

static bool state_record(const struct kelpie_op *op, struct node_agent *agent,
                         enum klp_agent_state state, const char *reason)
{
    struct klp_agent_record next = agent->record;
    struct kelpie_error *error = NULL;
    next.state = state;
    next.move_id[0] = next.destination[0] = 0;
    klp_format(next.reason, sizeof(next.reason), "%s", reason);
    bool fine = kelpie_is_ok(record_set(op, agent, &next, &error));
    if (!fine)
        klp_log(op->env, KLP_LOG_WARN, "agent.record", "agent=%s state=%s error=%s", agent->name,
                klp_agent_state_name(state), kelpie_error_message(error));
    klp_error_clear(&error);
    return fine;
}

/* The last console lines are kept beside the log: they say why it died. */
static void console_save(const struct kelpie_op *op, struct node_agent *agent)
{
    char console[4096];
    KLP_AUTO(dir) struct klp_dir *dir = NULL;
    if (agent->life == NULL)
        return;
    kelpie_vm_console(op, agent->life->vm, console, sizeof(console));
    if (agent_folder(agent, &dir, NULL))
        KLP_IGNORE(klp_file_write_all(dir, "console", console, strlen(console), NULL));
}

static bool is_handed_off(struct node_agent *agent)
{
    KLP_AUTO(file) struct klp_file *note = NULL;
    return klp_file_open(agent->node->notes_dir, agent->id, &note, NULL);
}

static void agent_end(const struct kelpie_op *op, struct node_agent *agent)
{
    life_end(op, agent, false);
    KLP_IGNORE(klp_dir_remove(agent->node->notes_dir, agent->id, NULL));
    agent_forget(agent);
}

/* The registry gave the agent to somebody else while its VM was here. By a move of ours the VM
 * stays until the agent runs there: nobody but settling decides that. */
static void agent_lost(const struct kelpie_op *op, struct node_agent *agent)
{
    struct klp_agent_record record;
    struct kelpie_error *error = NULL;
    char owner[KLP_NAME_SIZE];
    kelpie_outcome outcome =
        klp_registry_get(op, agent->node->host.registry, agent->id, &record, &error);
    bool gone = kelpie_error_code(error) == KELPIE_E_NOT_FOUND;
    klp_error_clear(&error);
    if (gone) { /* removed, perhaps just when it arrived here */
        event_post(agent->node, "agent.lost", agent->name, "%s", "it was removed");
        agent_end(op, agent);
    }
    if (!kelpie_is_ok(outcome))
        return;
    klp_text_copy(owner, sizeof(owner), record.owner);
    bool ours = strcmp(owner, agent->node->name) == 0;
    if (ours)
        record_adopt(agent, &record);
    else
        klp_agent_record_finish(&record);
    if (ours)
        return;
    if (agent->life != NULL && is_handed_off(agent)) {
        chore_post(agent->node, CHORE_SETTLE, agent->id, NULL, "");
        return;
    }
    event_post(agent->node, "agent.lost", agent->name, "node '%s' owns it now", owner);
    agent_end(op, agent);
}

static void agent_died(const struct kelpie_op *op, struct node_agent *agent,
                       const struct chore *chore)
{
    bool clean = kelpie_vm_state(agent->life->vm) == KELPIE_VM_STOPPED;
    enum klp_agent_state state = clean ? KLP_AGENT_STOPPED : KLP_AGENT_CRASHED;
    console_save(op, agent);
    life_end(op, agent, false);
    /* Dead in the middle of a move: either the record is still ours to say so, or the destination
     * has it. */
    if (!state_record(op, agent, state, chore->text)) {
        record_later(agent, state, chore->text);
        agent_lost(op, agent);
    }
    KLP_IGNORE(klp_dir_remove(agent->node->notes_dir, agent->id, NULL));
}

static void record_end(const struct kelpie_op *op, struct node_agent *agent,
                       enum klp_agent_state state, const char *reason)
{
    uint64_t epoch = agent->record.epoch;
    if (!state_record(op, agent, state, reason)) {
        /* At another epoch it is another life, of which nothing is owed. */
        if (!klp_cancel_is_raised(agent->node->cancel) && agent->record.epoch == epoch)
            record_later(agent, state, reason);
        agent_lost(op, agent);
    } else if (state == KLP_AGENT_STOPPED && agent->remove_at_end &&
               kelpie_is_ok(record_delete(op, agent, NULL))) {
        agent_forget(agent);
    }
}

static void agent_finished(const struct kelpie_op *op, struct node_agent *agent,
                           const struct chore *chore)
{
    console_save(op, agent);
    life_end(op, agent, false);
    record_end(op, agent, KLP_AGENT_STOPPED, chore->text);
}

/* What an agent's VM came to, still owed to the registry. A record that wants no VM needs nothing.
 */
static void agent_owes(const struct kelpie_op *op, struct node_agent *agent,
                       const struct chore *chore)
{
    bool remove = chore->state == KLP_AGENT_NONE;
    if (agent->life != NULL || (!remove && !record_needs_vm(&agent->record)))
        return;
    KLP_IGNORE(klp_sleep_until(op, klp_boot_ns(op->env) + FOLLOW_RETRY_MS * KLP_MS, NULL));
    if (chore->state == KLP_AGENT_CRASHED && node_has_undead(agent->node)) {
        if (!klp_cancel_is_raised(agent->node->cancel)) /* that one may be its own, and run */
            record_later(agent, chore->state, chore->text);
        return;
    }
    if (!remove)
        record_end(op, agent, chore->state, chore->text);
    else if (kelpie_is_ok(record_delete(op, agent, NULL)))
        agent_forget(agent);
    else if (!klp_cancel_is_raised(agent->node->cancel))
        record_later(agent, KLP_AGENT_NONE, "");
}

/* Something made its guest stand still and could not let it go on: tried until it does. One that
 * was handed off is settled. */
static void agent_wake(const struct kelpie_op *op, struct node_agent *agent,
                       const struct chore *chore)
{
    struct kelpie_op within = klp_op_within(op, NODE_CLEANUP_MS);
    bool paused = agent->record.state == KLP_AGENT_PAUSED;
    uint32_t holds = KLP_HOLD_SNAPSHOT | KLP_HOLD_RESTORE | (paused ? 0 : KLP_HOLD_USER);
    if ((!paused && agent->record.state != KLP_AGENT_RUNNING) || is_handed_off(agent))
        return;
    kelpie_outcome outcome = klp_vm_release(&within, agent->life->vm, holds, NULL);
    if (kelpie_is_ok(outcome) && !paused)
        outcome = klp_workload_thaw(&within, agent->life->vm, NULL);
    if (kelpie_is_ok(outcome) || klp_cancel_is_raised(agent->node->cancel))
        return;
    KLP_IGNORE(klp_sleep_until(op, klp_boot_ns(op->env) + FOLLOW_RETRY_MS * KLP_MS, NULL));
    chore_post(agent->node, CHORE_WAKE, agent->id, chore->life, "");
}

/* A suspension whose commit nobody answered: the registry is asked. One that did not come is kept
 * from coming still, by using up its revision, before the guest goes on. */
static bool suspension_settle(const struct kelpie_op *op, struct node_agent *agent)
{
    struct klp_agent_record record, next;
    if (!kelpie_is_ok(klp_registry_get(op, agent->node->host.registry, agent->id, &record, NULL)))
        return false;
    if (record.state == KLP_AGENT_SUSPENDED && strcmp(record.owner, agent->node->name) == 0) {
        record_adopt(agent, &record);
        life_end(op, agent, false);
        KLP_IGNORE(agent_save(agent, NULL));
        return true;
    }
    klp_agent_record_finish(&record);
    next = agent->record;
    if (!kelpie_is_ok(record_set(op, agent, &next, NULL)))
        return false;
    klp_vm_gate_open(agent->life->vm, agent->record.epoch);
    chore_post(agent->node, CHORE_WAKE, agent->id, agent->life, "");
    return true;
}

static void agent_ask(const struct kelpie_op *op, struct node_agent *agent,
                      const struct chore *chore)
{
    struct kelpie_op within = klp_op_within(op, NODE_CLEANUP_MS);
    if (suspension_settle(&within, agent) || klp_cancel_is_raised(agent->node->cancel))
        return;
    KLP_IGNORE(klp_sleep_until(op, klp_boot_ns(op->env) + FOLLOW_RETRY_MS * KLP_MS, NULL));
    chore_post(agent->node, CHORE_ASK, agent->id, chore->life, "");
}

static void chore_do(struct klp_node *node, const struct chore *chore)
{
    struct kelpie_op op = klp_op_plain(node->host.env, 60000);
    op.cancel = node->cancel;
    if (chore->kind == CHORE_SETTLE) {
        settle_chore(&op, node, chore->agent);
        return;
    }
    struct node_agent *agent = agent_find_id(node, chore->agent);
    if (agent == NULL)
        return;
    if (!kelpie_is_ok(accept_wait(&op, node, agent->id, NULL)) ||
        !kelpie_is_ok(slot_take(&op, agent, NULL))) {
        if (!klp_cancel_is_raised(node->cancel))
            chore_add(
                node,
                (struct chore){.kind = chore->kind, .state = chore->state, .life = chore->life},
                chore->agent, chore->text);
        agent_put(agent);
        return;
    }
    if (chore->kind == CHORE_RECORD) {
        agent_owes(&op, agent, chore);
    } else if (!chore_is_stale(agent, chore) && agent->life != NULL) {
        if (chore->kind == CHORE_DIED)
            agent_died(&op, agent, chore);
        else if (chore->kind == CHORE_MAIN_ENDED)
            agent_finished(&op, agent, chore);
        else if (chore->kind == CHORE_WAKE)
            agent_wake(&op, agent, chore);
        else if (chore->kind == CHORE_ASK)
            agent_ask(&op, agent, chore);
        else
            agent_lost(&op, agent);
    }
    agent_give(agent);
}

void janitor_run(void *arg)
{
    struct klp_node *node = arg;
    struct kelpie_op op = {
        .env = node->host.env, .deadline_ns = KLP_NO_DEADLINE, .cancel = node->cancel};
    while (!klp_cancel_is_raised(node->cancel)) {
        struct chore *chore = NULL;
        klp_mutex_lock(node->mutex);
        if (klp_list_is_empty(&node->chores) && !node->sweep_due)
            KLP_IGNORE(klp_cond_wait(&op, node->changed, node->mutex, NULL));
        if (!klp_list_is_empty(&node->chores)) {
            chore = KLP_CONTAINER(node->chores.next, struct chore, link);
            klp_list_remove(&chore->link);
        }
        bool sweep = node->sweep_due;
        node->sweep_due = false;
        klp_mutex_unlock(node->mutex);
        if (sweep) {
            struct kelpie_op within = klp_op_within(&op, NODE_CLEANUP_MS);
            node_sweep(&within, node);
        }
        if (chore == NULL)
            continue;
        chore_do(node, chore);
        klp_mem_free(chore);
    }
}

/* ---- leases */

static void lease_renew(const struct kelpie_op *op, struct node_agent *agent, struct life *life)
{
    struct klp_node *node = agent->node;
    struct klp_agent_record record;
    struct kelpie_error *error = NULL;
    record_copy(agent, &record);
    uint64_t sent_ns = klp_boot_ns(op->env); /* the lease counts from before the renewal was sent */
    kelpie_outcome outcome =
        klp_registry_renew(op, node->host.registry, agent->id, node->name, record.epoch, &error);
    if (kelpie_is_ok(outcome)) {
        uint64_t fence_at = sent_ns + node->host.lease_ttl_ms * KLP_MS / 3 * 2;
        KLP_IGNORE(klp_vm_lease(op, life->vm, record.epoch, fence_at, NULL));
    } else if (kelpie_error_code(error) == KELPIE_E_CONFLICT ||
               kelpie_error_code(error) == KELPIE_E_NOT_FOUND) {
        chore_post(node, CHORE_LOST, agent->id, life, "");
    } else {
        klp_log(op->env, KLP_LOG_WARN, "lease.renew", "agent=%s error=%s", agent->name,
                kelpie_error_message(error));
    }
    klp_error_clear(&error);
}

/* Places prepared for moves that came to nothing: their records say so. */
static void arrivals_expire(const struct kelpie_op *op, struct klp_node *node)
{
    for (size_t i = 0; i < NODE_ARRIVALS_MAX; i++) {
        char agent_id[KLP_ID_SIZE] = "", move_id[KLP_ID_SIZE] = "";
        KLP_LOCKED (node->mutex) {
            if (node->arrivals[i].arrival != NULL) {
                klp_text_copy(agent_id, sizeof(agent_id), node->arrivals[i].agent_id);
                klp_text_copy(move_id, sizeof(move_id), node->arrivals[i].move_id);
            }
        }
        struct klp_agent_record record;
        if (agent_id[0] == 0)
            continue;
        struct kelpie_error *error = NULL;
        bool over = false;
        if (kelpie_is_ok(klp_registry_get(op, node->host.registry, agent_id, &record, &error))) {
            over = record.state != KLP_AGENT_MOVING || strcmp(record.move_id, move_id) != 0;
            klp_agent_record_finish(&record);
        } else {
            over = kelpie_error_code(error) == KELPIE_E_NOT_FOUND;
        }
        klp_error_clear(&error);
        if (over)
            klp_arrival_drop(op, arrival_take(node, move_id));
    }
}

/* The agents that have a VM here, referenced, with their lives borrowed. */
static size_t lives_borrow(struct klp_node *node, struct life **out, size_t capacity)
{
    size_t count = 0;
    KLP_LOCKED (node->mutex) {
        KLP_LIST_EACH (item, &node->agents) {
            struct node_agent *agent = KLP_CONTAINER(item, struct node_agent, link);
            if (agent->life == NULL || count == capacity)
                continue;
            agent->life->users++;
            out[count++] = agent->life;
        }
    }
    return count;
}

static void node_record_put(const struct kelpie_op *op, struct klp_node *node, uint64_t beat)
{
    struct klp_node_record record = {.beat = beat, .lease_ttl_ms = node->host.lease_ttl_ms};
    klp_text_copy(record.name, sizeof(record.name), node->name);
    klp_text_copy(record.endpoint, sizeof(record.endpoint), node->endpoint);
    klp_text_copy(record.state, sizeof(record.state), node->draining ? "draining" : "ready");
    for (size_t i = 0; i < node->host.factory_count && i < 4; i++) {
        struct kelpie_vm_factory *factory = node->host.factories[i];
        klp_text_copy(record.backends[record.backend_count++], sizeof(record.backends[0]),
                      kelpie_vm_factory_name(factory));
        bool known = false;
        for (uint32_t known_at = 0; known_at < record.arch_count; known_at++)
            known = known || record.archs[known_at] == factory->arch;
        if (!known)
            record.archs[record.arch_count++] = factory->arch;
    }
    struct kelpie_error *error = NULL;
    if (!kelpie_is_ok(klp_registry_node_put(op, node->host.registry, &record, &error)))
        klp_log(op->env, KLP_LOG_WARN, "node.record", "error=%s", kelpie_error_message(error));
    klp_error_clear(&error);
}

void lease_run(void *arg)
{
    struct klp_node *node = arg;
    struct klp_env *env = node->host.env;
    uint64_t beat = 0, period_ns = node->host.lease_ttl_ms * KLP_MS / 3;
    uint64_t next_ns = klp_boot_ns(env);
    struct life **lives = klp_mem_alloc_raw(sizeof(lives[0]) * NODE_AGENTS_MAX);
    while (!klp_cancel_is_raised(node->cancel)) {
        struct kelpie_op op = klp_op_plain(env, node->host.lease_ttl_ms / 3);
        op.cancel = node->cancel;
        node_record_put(&op, node, ++beat);
        size_t count = lives_borrow(node, lives, NODE_AGENTS_MAX);
        for (size_t i = 0; i < count; i++) {
            lease_renew(&op, lives[i]->agent, lives[i]);
            life_return(lives[i]);
        }
        arrivals_expire(&op, node);
        KLP_LOCKED (node->mutex) {
            node->sweep_due = true;
            klp_cond_wake(node->changed);
        }
        next_ns += period_ns;
        if (next_ns < klp_boot_ns(env))
            next_ns = klp_boot_ns(env); /* the host slept */
        struct kelpie_op sleep = {
            .env = env, .deadline_ns = KLP_NO_DEADLINE, .cancel = node->cancel};
        KLP_IGNORE(klp_sleep_until(&sleep, next_ns, NULL));
    }
    klp_mem_free(lives);
}
