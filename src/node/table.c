/* SPDX-License-Identifier: Apache-2.0 */
/* The agents this node has in hand: by name, with references and op slots; their records and their
 * saved configs. */
#include <string.h>

#include "base/fmt.h"
#include "node/inside.h"

#define CONFIG_MAX (512 * KLP_KIB)

static void agent_free(struct node_agent *agent)
{
    klp_agent_record_finish(&agent->record);
    klp_identity_finish(&agent->identity);
    klp_texts_free(agent->env);
    klp_mem_free(agent);
}

/* Referenced; the mutex is held. */
static struct node_agent *find_locked(struct klp_node *node, const char *id, const char *name)
{
    KLP_LIST_EACH (item, &node->agents) {
        struct node_agent *agent = KLP_CONTAINER(item, struct node_agent, link);
        if ((id != NULL && strcmp(agent->id, id) == 0) ||
            (name != NULL && strcmp(agent->name, name) == 0)) {
            agent->references++;
            return agent;
        }
    }
    return NULL;
}

static struct node_agent *agent_find(struct klp_node *node, const char *id, const char *name)
{
    struct node_agent *found = NULL;
    KLP_LOCKED (node->mutex) {
        found = find_locked(node, id, name);
    }
    return found;
}

/* Not in the table yet: nobody else knows it. */
static struct node_agent *agent_make(struct klp_node *node, const struct klp_agent_record *record)
{
    struct node_agent *agent = KLP_NEW(struct node_agent);
    *agent = (struct node_agent){.node = node, .references = 1, .record = *record};
    agent->record.extra = NULL;
    klp_text_copy(agent->id, sizeof(agent->id), record->id);
    klp_text_copy(agent->name, sizeof(agent->name), record->name);
    return agent;
}

/* Takes it; returns the one that is in the table from now on, for somebody may have been faster. */
static struct node_agent *agent_enlist(struct node_agent *agent)
{
    struct klp_node *node = agent->node;
    struct node_agent *former = NULL;
    KLP_LOCKED (node->mutex) {
        former = find_locked(node, agent->id, NULL);
        if (former == NULL) {
            agent->references++;
            klp_list_append(&node->agents, &agent->link);
            node->agent_count++;
        }
    }
    if (former == NULL)
        return agent;
    agent_free(agent);
    return former;
}

struct node_agent *agent_add(struct klp_node *node, const struct klp_agent_record *record)
{
    return agent_enlist(agent_make(node, record));
}

struct node_agent *agent_find_id(struct klp_node *node, const char *id)
{
    return agent_find(node, id, NULL);
}

void agent_put(struct node_agent *agent)
{
    if (agent == NULL)
        return;
    bool last = false;
    struct klp_node *node = agent->node;
    KLP_LOCKED (node->mutex) {
        last = --agent->references == 0;
    }
    if (last)
        agent_free(agent);
}

void agent_forget(struct node_agent *agent)
{
    struct klp_node *node = agent->node;
    struct kelpie_error *error = NULL;
    bool was_there = false;
    /* The folder first: behind the other it may be that of one who has come back. */
    if (!klp_dir_remove_tree(node->agents_dir, agent->id, &error))
        klp_log(node->host.env, KLP_LOG_WARN, "agent.leftover", "agent=%s error=%s", agent->name,
                kelpie_error_message(error));
    klp_error_clear(&error);
    KLP_LOCKED (node->mutex) {
        was_there = !agent->forgotten;
        if (was_there) {
            agent->forgotten = true;
            klp_list_remove(&agent->link);
            node->agent_count--;
        }
        klp_cond_wake(node->changed);
    }
    if (was_there)
        agent_put(agent); /* the table's reference */
}

/* A checkpoint brings no memory: its agent's VM is a clone of this host's own template. */
kelpie_outcome agent_template_find(const struct kelpie_op *op, struct node_agent *agent,
                                   struct kelpie_error **err)
{
    return template_get(op, &agent->node->host, &agent->identity, &agent->template_, err);
}

kelpie_outcome agent_know(const struct kelpie_op *op, struct node_agent *agent,
                          struct kelpie_error **err)
{
    struct klp_manifest manifest;
    struct kelpie_error *error = NULL;
    if (agent_load(agent, &error))
        return KLP_OK;
    if (klp_digest_is_zero(&agent->record.manifest)) {
        klp_error_move(err, &error);
        return (kelpie_outcome){KELPIE_FAIL};
    }
    klp_error_clear(&error);
    KLP_TRY(klp_snapshot_load(op, &agent->node->host.snapshots, &agent->record.manifest, &manifest,
                              err));
    kelpie_outcome outcome =
        agent_take_manifest(agent, &manifest, err) ? KLP_OK : (kelpie_outcome){KELPIE_FAIL};
    if (kelpie_is_ok(outcome) && manifest.kind == KLP_KIND_CHECKPOINT)
        outcome = agent_template_find(op, agent, err);
    klp_manifest_finish(&manifest);
    return outcome;
}

/* An agent of ours that only the registry knows: parked here, or moved here by an operator. */
static kelpie_outcome agent_from_record(const struct kelpie_op *op, struct klp_node *node,
                                        const struct klp_agent_record *record,
                                        struct node_agent **out, struct kelpie_error **err)
{
    struct node_agent *agent = agent_make(node, record);
    kelpie_outcome outcome = KLP_OK;
    if (!klp_digest_is_zero(&record->manifest))
        outcome = agent_know(op, agent, err);
    else
        KLP_IGNORE(agent_load(agent, NULL));
    if (kelpie_is_ok(outcome))
        *out = agent_enlist(agent);
    else
        agent_free(agent);
    return outcome;
}

kelpie_outcome agent_get(const struct kelpie_op *op, struct klp_node *node, const char *name,
                         struct node_agent **out, struct kelpie_error **err)
{
    if (!klp_name_is_valid(name))
        return klp_fail(err, KELPIE_E_NOT_FOUND, "no agent '%.*s'", 80, name);
    *out = agent_find(node, NULL, name);
    if (*out != NULL)
        return KLP_OK;
    struct klp_agent_record record;
    KLP_TRY(klp_registry_find(op, node->host.registry, name, &record, err));
    kelpie_outcome outcome;
    if (strcmp(record.owner, node->name) == 0)
        outcome = agent_from_record(op, node, &record, out, err);
    else
        outcome =
            klp_fail(err, KELPIE_E_CONFLICT, "agent '%s' is on node '%s'", name, record.owner);
    klp_agent_record_finish(&record);
    return outcome;
}

kelpie_outcome slot_take(const struct kelpie_op *op, struct node_agent *agent,
                         struct kelpie_error **err)
{
    struct klp_node *node = agent->node;
    kelpie_outcome outcome = KLP_OK;
    bool taken = false, forgotten = false;
    struct kelpie_error *error = NULL;
    klp_mutex_lock(node->mutex);
    while (agent->busy && !agent->forgotten && kelpie_is_ok(outcome))
        outcome = klp_cond_wait(op, node->changed, node->mutex, &error);
    forgotten = agent->forgotten;
    taken = !agent->busy && !forgotten;
    if (taken)
        agent->busy = true;
    klp_mutex_unlock(node->mutex);
    if (taken) {
        klp_error_clear(&error);
        return KLP_OK;
    }
    bool cancelled = kelpie_error_code(error) == KELPIE_E_CANCELLED;
    klp_error_clear(&error);
    if (forgotten)
        return klp_fail(err, KELPIE_E_NOT_FOUND, "agent '%s' is not here any more", agent->name);
    return klp_fail(err, cancelled ? KELPIE_E_CANCELLED : KELPIE_E_BUSY,
                    "another operation on '%s' is under way", agent->name);
}

void slot_give(struct node_agent *agent)
{
    KLP_LOCKED (agent->node->mutex) {
        agent->busy = false;
        klp_cond_wake(agent->node->changed);
    }
}

/* An agent that is to have a VM and has none here: the record was read while it arrived, say, and
 * what came of it was written behind our back. False: it is elsewhere, and forgotten here. */
static bool record_look(const struct kelpie_op *op, struct node_agent *agent)
{
    struct klp_agent_record record;
    if (agent->life != NULL || !record_needs_vm(&agent->record) ||
        !kelpie_is_ok(klp_registry_get(op, agent->node->host.registry, agent->id, &record, NULL)))
        return true;
    bool ours = strcmp(record.owner, agent->node->name) == 0;
    if (ours) {
        record_adopt(agent, &record);
    } else {
        klp_agent_record_finish(&record);
        agent_forget(agent);
    }
    return ours;
}

kelpie_outcome agent_take(const struct kelpie_op *op, struct klp_node *node, const char *name,
                          struct node_agent **out, struct kelpie_error **err)
{
    for (;;) {
        struct node_agent *agent;
        struct kelpie_error *error = NULL;
        KLP_TRY(agent_get(op, node, name, &agent, err));
        kelpie_outcome outcome = accept_wait(op, node, agent->id, &error);
        if (kelpie_is_ok(outcome))
            outcome = slot_take(op, agent, &error);
        if (kelpie_is_ok(outcome) && !record_look(op, agent)) {
            agent_give(agent);
            continue;
        }
        if (kelpie_is_ok(outcome)) {
            if (agent->identity.image[0] == 0) /* its files could not be read at the start */
                KLP_IGNORE(agent_know(op, agent, NULL));
            outcome = intent_close(op, agent, err);
            if (kelpie_is_ok(outcome))
                *out = agent;
            else
                agent_give(agent);
            return outcome;
        }
        agent_put(agent);
        if (kelpie_error_code(error) != KELPIE_E_NOT_FOUND) {
            klp_error_move(err, &error);
            return outcome;
        }
        klp_error_clear(&error); /* it left while we waited: the registry knows where it is */
        KLP_TRY(klp_op_check(op, "looking for an agent that has left", err));
    }
}

void agent_give(struct node_agent *agent)
{
    if (agent == NULL)
        return;
    slot_give(agent);
    agent_put(agent);
}

void record_copy(struct node_agent *agent, struct klp_agent_record *out)
{
    KLP_LOCKED (agent->node->mutex) {
        *out = agent->record;
    }
    out->extra = NULL;
}

void record_adopt(struct node_agent *agent, const struct klp_agent_record *record)
{
    bool changed = false;
    KLP_LOCKED (agent->node->mutex) {
        changed = agent->record.state != record->state;
        struct klp_json *extra = agent->record.extra;
        agent->record = *record;
        agent->record.extra = record->extra != NULL ? record->extra : extra;
        if (record->extra != NULL && extra != record->extra)
            klp_json_free(extra);
        klp_cond_wake(agent->node->changed);
    }
    if (changed) {
        char type[32];
        klp_format(type, sizeof(type), "agent.%s", klp_agent_state_name(record->state));
        event_post(agent->node, type, agent->name, "%s", record->reason);
    }
}

kelpie_outcome record_set(const struct kelpie_op *op, struct node_agent *agent,
                          struct klp_agent_record *next, struct kelpie_error **err)
{
    struct klp_agent_record current = agent->record; /* ours: the slot is held */
    if (next->extra == NULL)
        next->extra = current.extra;
    kelpie_outcome outcome = klp_record_change(op, agent->node->host.registry, &current, next, err);
    if (kelpie_is_ok(outcome))
        record_adopt(agent, next);
    else if (current.revision != agent->record.revision)
        record_adopt(agent, &current); /* another try starts from there */
    return outcome;
}

kelpie_outcome record_delete(const struct kelpie_op *op, struct node_agent *agent,
                             struct kelpie_error **err)
{
    struct klp_agent_record current = agent->record; /* ours: the slot is held */
    kelpie_outcome outcome = klp_record_delete(op, agent->node->host.registry, &current, err);
    if (!kelpie_is_ok(outcome) && current.revision != agent->record.revision)
        record_adopt(agent, &current);
    return outcome;
}

/* ---- the saved config: what the registry must not hold (the environment) or does not need. */

static void texts_set(struct klp_json *json, const char *key, char *const *texts)
{
    if (texts == NULL)
        return;
    struct klp_json *array = klp_json_array();
    for (size_t i = 0; texts[i] != NULL; i++)
        klp_json_append_text(array, texts[i]);
    klp_json_set(json, key, array);
}

static bool texts_get(const struct klp_json *json, const char *key, char ***out)
{
    const struct klp_json *array = klp_json_find(json, key);
    if (array == NULL)
        return true;
    size_t count = klp_json_count(array);
    if (!klp_json_is_array(array) || count > KLP_ENV_MAX)
        return false;
    const char **texts = klp_mem_alloc(sizeof(texts[0]) * (count + 1));
    bool fine = true;
    for (size_t i = 0; i < count; i++) {
        texts[i] = klp_json_text(klp_json_at(array, i));
        fine = fine && texts[i] != NULL;
    }
    if (fine)
        *out = klp_texts_copy(texts);
    klp_mem_free(texts);
    return fine;
}

/* A new one is durable with its name before anything relies on it. */
bool agent_folder(struct node_agent *agent, struct klp_dir **out, struct kelpie_error **err)
{
    struct klp_dir *agents = agent->node->agents_dir;
    if (klp_dir_open_at(agents, agent->id, false, out, NULL))
        return true;
    KLP_CHECK(klp_dir_open_at(agents, agent->id, true, out, err));
    if (klp_dir_sync(agents, err))
        return true;
    klp_dir_close(KLP_TAKE(out));
    KLP_IGNORE(
        klp_dir_remove_tree(agents, agent->id, NULL)); /* or the next one takes it for durable */
    return false;
}

bool agent_save(struct node_agent *agent, struct kelpie_error **err)
{
    const struct klp_agent_identity *identity = &agent->identity;
    char digest[KLP_DIGEST_SIZE];
    KLP_AUTO(json) struct klp_json *json = klp_json_object();
    klp_json_set_u64(json, "version", 1);
    klp_json_set_text(json, "image", identity->image);
    klp_json_set_text(json, "image_version", identity->image_version);
    klp_digest_text(&identity->image_digest, digest);
    klp_json_set_text(json, "image_digest", digest);
    klp_digest_text(&agent->template_, digest);
    klp_json_set_text(json, "template", digest);
    klp_json_set_text(json, "parent", identity->parent);
    klp_json_set_u64(json, "vcpus", identity->vcpus);
    klp_json_set_u64(json, "memory_bytes", identity->memory_bytes);
    klp_json_set_text(json, "workdir", identity->workdir);
    klp_json_set_u64(json, "seq", agent->seq);
    klp_json_set_bool(json, "remove_at_end", agent->remove_at_end);
    texts_set(json, "argv", identity->argv);
    texts_set(json, "env", agent->env);

    __attribute__((cleanup(klp_auto_buf))) struct klp_buf text = KLP_BUF_INIT(CONFIG_MAX);
    klp_json_print(json, &text);
    KLP_CHECK(klp_buf_check(&text, "an agent's configuration", err));
    KLP_AUTO(dir) struct klp_dir *dir = NULL;
    KLP_CHECK(agent_folder(agent, &dir, err));
    return klp_file_write_all(dir, "config", text.data, text.size, err);
}

static bool config_decode(struct node_agent *agent, const struct klp_json *json,
                          struct kelpie_error **err)
{
    struct klp_agent_identity *identity = &agent->identity;
    const char *image = "", *version = "", *digest = "", *template_ = "", *parent = "",
               *workdir = NULL;
    uint64_t vcpus = 0;
    KLP_CHECK(klp_json_get_text(json, "image", KLP_JSON_REQUIRED, &image, err));
    KLP_CHECK(klp_json_get_text(json, "image_version", KLP_JSON_REQUIRED, &version, err));
    KLP_CHECK(klp_json_get_text(json, "image_digest", KLP_JSON_REQUIRED, &digest, err));
    KLP_CHECK(klp_json_get_text(json, "template", KLP_JSON_REQUIRED, &template_, err));
    KLP_CHECK(klp_json_get_text(json, "parent", KLP_JSON_REQUIRED, &parent, err));
    KLP_CHECK(klp_json_get_text(json, "workdir", KLP_JSON_OPTIONAL, &workdir, err));
    KLP_CHECK(klp_json_get_u64(json, "vcpus", KLP_JSON_REQUIRED, &vcpus, err));
    KLP_CHECK(
        klp_json_get_u64(json, "memory_bytes", KLP_JSON_REQUIRED, &identity->memory_bytes, err));
    KLP_CHECK(klp_json_get_u64(json, "seq", KLP_JSON_REQUIRED, &agent->seq, err));
    KLP_CHECK(
        klp_json_get_bool(json, "remove_at_end", KLP_JSON_OPTIONAL, &agent->remove_at_end, err));
    if (strlen(image) >= sizeof(identity->image) || strlen(parent) >= sizeof(identity->parent) ||
        strlen(version) >= sizeof(identity->image_version) || vcpus > KLP_VCPUS_MAX ||
        !klp_digest_parse(digest, &identity->image_digest) ||
        !klp_digest_parse(template_, &agent->template_) ||
        !texts_get(json, "argv", &identity->argv) || !texts_get(json, "env", &agent->env))
        return klp_refuse(err, KELPIE_E_CORRUPT, "the saved configuration of '%s' is damaged",
                          agent->name);
    klp_text_copy(identity->image, sizeof(identity->image), image);
    klp_text_copy(identity->image_version, sizeof(identity->image_version), version);
    klp_text_copy(identity->parent, sizeof(identity->parent), parent);
    identity->vcpus = (uint32_t)vcpus;
    identity->workdir = klp_mem_string(workdir);
    return true;
}

bool agent_load(struct node_agent *agent, struct kelpie_error **err)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf text = KLP_BUF_INIT(CONFIG_MAX);
    KLP_AUTO(dir) struct klp_dir *dir = NULL;
    KLP_AUTO(json) struct klp_json *json = NULL;
    KLP_CHECK(klp_dir_open_at(agent->node->agents_dir, agent->id, false, &dir, err));
    KLP_CHECK(klp_file_read_all(dir, "config", &text, err));
    KLP_CHECK(klp_json_parse(text.data, text.size, 3, &json, err));
    klp_identity_finish(&agent->identity);
    agent->identity = (struct klp_agent_identity){.vcpus = 0};
    klp_texts_free(KLP_TAKE(&agent->env));
    klp_text_copy(agent->identity.id, sizeof(agent->identity.id), agent->id);
    klp_text_copy(agent->identity.name, sizeof(agent->identity.name), agent->name);
    return config_decode(agent, json, err);
}

bool agent_take_manifest(struct node_agent *agent, const struct klp_manifest *manifest,
                         struct kelpie_error **err)
{
    struct klp_agent_identity identity;
    KLP_CHECK(klp_identity_copy(&manifest->agent, &identity, err));
    klp_identity_finish(&agent->identity);
    agent->identity = identity;
    klp_text_copy(agent->identity.id, sizeof(agent->identity.id), agent->id);
    klp_text_copy(agent->identity.name, sizeof(agent->identity.name), agent->name);
    klp_texts_free(agent->env);
    agent->env = manifest->env != NULL ? klp_texts_copy((const char *const *)manifest->env) : NULL;
    agent->seq = manifest->seq;
    agent->template_ = manifest->template_;
    return agent_save(agent, err);
}
