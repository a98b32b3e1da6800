/* SPDX-License-Identifier: Apache-2.0 */
/* Operations that outlive their callers: each has a task, a progress and a file in the journal. */
#include <string.h>

#include "base/ext/sha256.h"
#include "base/fmt.h"
#include "node/inside.h"

#define TIMEOUT_MS_DEFAULT 600000
#define JOURNAL_MAX (256 * KLP_KIB)

static const char *const kind_names[] = {
    [KLP_OP_SUSPEND] = "suspend",
    [KLP_OP_FORK] = "fork",
    [KLP_OP_RESTORE] = "restore",
    [KLP_OP_TELEPORT] = "teleport",
};

static void operation_free(struct operation *operation)
{
    klp_operation_info_finish(&operation->info);
    klp_cancel_destroy(operation->cancel);
    klp_progress_destroy(operation->progress);
    klp_mem_free(operation);
}

static void journal_write(struct operation *operation)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf text = KLP_BUF_INIT(JOURNAL_MAX);
    struct kelpie_error *error = NULL;
    KLP_LOCKED (operation->node->mutex) {
        struct klp_json *json = klp_rest_operation_encode(&operation->info);
        klp_json_print(json, &text);
        klp_json_free(json);
    }
    if (!klp_buf_check(&text, "an operation", &error) ||
        !klp_file_write_all(operation->node->operations_dir, operation->info.id, text.data,
                            text.size, &error))
        klp_log(operation->node->host.env, KLP_LOG_WARN, "operation.journal", "error=%s",
                kelpie_error_message(error));
    klp_error_clear(&error);
}

static void phases_copy(struct operation *operation)
{
    struct klp_phase phases[KLP_PHASES_MAX];
    size_t count = klp_progress_read(operation->progress, phases);
    uint64_t now = klp_boot_ns(operation->node->host.env), bytes = 0;
    operation->info.phase_count = (uint32_t)count;
    for (size_t i = 0; i < count; i++) {
        struct klp_operation_phase *out = &operation->info.phases[i];
        klp_text_copy(out->step, sizeof(out->step), phases[i].step);
        out->us = ((phases[i].end_ns != 0 ? phases[i].end_ns : now) - phases[i].start_ns) / 1000;
        out->bytes = phases[i].bytes;
        bytes += phases[i].bytes;
    }
    operation->info.bytes_moved = bytes;
}

static void operation_run(void *arg)
{
    struct operation *operation = arg;
    struct klp_node *node = operation->node;
    uint64_t timeout =
        operation->request.timeout_ms != 0 ? operation->request.timeout_ms : TIMEOUT_MS_DEFAULT;
    struct kelpie_op op = klp_op_plain(node->host.env, timeout);
    op.cancel = operation->cancel;
    op.progress = operation->progress;
    klp_text_copy(op.move_id, sizeof(op.move_id), operation->info.move_id);
    static kelpie_outcome (*const runs[])(const struct kelpie_op *, struct operation *,
                                          struct kelpie_error **) = {
        [KLP_OP_SUSPEND] = suspend_run,
        [KLP_OP_FORK] = fork_run,
        [KLP_OP_RESTORE] = restore_run,
        [KLP_OP_TELEPORT] = teleport_run,
    };
    struct kelpie_error *error = NULL;
    kelpie_outcome outcome = runs[operation->kind](&op, operation, &error);
    klp_op_phase_end(&op);
    KLP_LOCKED (node->mutex) {
        phases_copy(operation);
        operation->info.error = error;
        operation->info.state = kelpie_is_ok(outcome)        ? KLP_OPERATION_DONE
                                : kelpie_is_unknown(outcome) ? KLP_OPERATION_UNKNOWN
                                                             : KLP_OPERATION_FAILED;
    }
    journal_write(operation);
    char type[32];
    klp_format(type, sizeof(type), "%s.%s", kind_names[operation->kind],
               kelpie_is_ok(outcome) ? "done" : "failed");
    if (operation->kind != KLP_OP_TELEPORT || !kelpie_is_ok(outcome))
        event_post(node, type, operation->subject, "%s",
                   error != NULL ? kelpie_error_message(error) : "");
    KLP_LOCKED (node->mutex) {
        operation->ended = true;
        klp_cond_wake(node->changed);
    }
}

static struct operation *operation_find(struct klp_node *node, const char *id, const char *key)
{
    KLP_LIST_EACH (item, &node->operations) {
        struct operation *operation = KLP_CONTAINER(item, struct operation, link);
        if ((id != NULL && strcmp(operation->info.id, id) == 0) ||
            (key != NULL && strcmp(operation->key, key) == 0))
            return operation;
    }
    return NULL;
}

/* Forgets the oldest that have ended. Their files go with them. */
static void operations_trim(struct klp_node *node)
{
    struct operation *oldest = NULL;
    KLP_LOCKED (node->mutex) {
        if (node->operation_count >= NODE_OPERATIONS_MAX) {
            KLP_LIST_EACH (item, &node->operations) {
                struct operation *operation = KLP_CONTAINER(item, struct operation, link);
                if (operation->ended) {
                    oldest = operation;
                    break;
                }
            }
        }
        if (oldest != NULL) {
            klp_list_remove(&oldest->link);
            node->operation_count--;
        }
    }
    if (oldest == NULL)
        return;
    if (oldest->task != NULL)
        klp_task_join(oldest->task);
    KLP_IGNORE(klp_dir_remove(node->operations_dir, oldest->info.id, NULL));
    operation_free(oldest);
}

static void request_hash(enum klp_operation_kind kind, const char *subject,
                         const struct klp_action_request *request, char out[KLP_DIGEST_SIZE])
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf text = KLP_BUF_INIT(16 * KLP_KIB);
    KLP_AUTO(json) struct klp_json *json = klp_rest_action_encode(request);
    struct klp_digest digest;
    klp_buf_append_format(&text, "%d %s ", (int)kind, subject);
    klp_json_print(json, &text);
    klp_sha256_once(text.data, text.size, &digest);
    klp_digest_text(&digest, out);
}

/* *out_id of an operation with that key, if it was asked for before. */
static kelpie_outcome repeated(struct klp_node *node, const char *key, const char *hash,
                               bool *out_found, char out_id[KLP_ID_SIZE], struct kelpie_error **err)
{
    bool differs = false;
    *out_found = false;
    KLP_LOCKED (node->mutex) {
        struct operation *before =
            key != NULL && key[0] != 0 ? operation_find(node, NULL, key) : NULL;
        if (before != NULL) {
            *out_found = true;
            differs = strcmp(before->request_hash, hash) != 0;
            klp_text_copy(out_id, KLP_ID_SIZE, before->info.id);
        }
    }
    if (differs)
        return klp_fail(err, KELPIE_E_CONFLICT,
                        "Idempotency-Key '%.*s' was used for another request", 80, key);
    return KLP_OK;
}

kelpie_outcome klp_node_operation_begin(const struct kelpie_op *op, struct klp_node *node,
                                        enum klp_operation_kind kind, const char *subject,
                                        const struct klp_action_request *request, const char *key,
                                        char out_id[KLP_ID_SIZE], struct kelpie_error **err)
{
    char hash[KLP_DIGEST_SIZE];
    bool found;
    if (!klp_name_is_valid(subject))
        return klp_fail(err, KELPIE_E_NOT_FOUND, "no agent or snapshot '%.*s'", 80, subject);
    if (request->name[0] != 0)
        KLP_REQUIRE(klp_name_check("agent", request->name, err));
    if (key != NULL && strlen(key) >= 128)
        return klp_fail(err, KELPIE_E_INVALID, "Idempotency-Key is longer than 127 bytes");
    request_hash(kind, subject, request, hash);
    KLP_TRY(repeated(node, key, hash, &found, out_id, err));
    if (found)
        return KLP_OK;
    operations_trim(node);

    struct operation *operation = KLP_NEW(struct operation);
    *operation = (struct operation){.node = node, .kind = kind, .request = *request};
    operation->cancel = klp_cancel_create(op->env);
    operation->progress = klp_progress_create(op->env);
    klp_text_copy(operation->subject, sizeof(operation->subject), subject);
    klp_text_copy(operation->key, sizeof(operation->key), key != NULL ? key : "");
    klp_text_copy(operation->request_hash, sizeof(operation->request_hash), hash);
    struct klp_operation_info *info = &operation->info;
    info->state = KLP_OPERATION_RUNNING;
    info->created_wall_ns = klp_wall_ns(op->env);
    klp_random_id(op->env, info->id);
    if (kind == KLP_OP_TELEPORT)
        klp_random_id(op->env, info->move_id);
    klp_text_copy(info->kind, sizeof(info->kind), kind_names[kind]);
    klp_text_copy(info->agent, sizeof(info->agent), subject);
    klp_text_copy(info->destination, sizeof(info->destination), request->destination);
    klp_text_copy(out_id, KLP_ID_SIZE, info->id);
    journal_write(operation);
    KLP_LOCKED (node->mutex) {
        klp_list_append(&node->operations, &operation->link);
        node->operation_count++;
    }
    struct klp_task *task = NULL;
    if (!klp_task_spawn(op->env, kind_names[kind], operation_run, operation, &task, err)) {
        KLP_LOCKED (node->mutex) {
            klp_list_remove(&operation->link);
            node->operation_count--;
        }
        KLP_IGNORE(klp_dir_remove(node->operations_dir, operation->info.id, NULL));
        operation_free(operation);
        return (kelpie_outcome){KELPIE_FAIL};
    }
    operation->task = task;
    return KLP_OK;
}

/* A copy by way of its own JSON: one place that knows every field. */
static bool info_copy(const struct klp_operation_info *from, struct klp_operation_info *out,
                      struct kelpie_error **err)
{
    KLP_AUTO(json) struct klp_json *json = klp_rest_operation_encode(from);
    return klp_rest_operation_decode(json, out, err);
}

kelpie_outcome klp_node_operation_get(const struct kelpie_op *op, struct klp_node *node,
                                      const char *id, uint64_t wait_ms,
                                      struct klp_operation_info *out, struct kelpie_error **err)
{
    struct kelpie_op within = klp_op_within(op, wait_ms);
    bool found = false, copied = false;
    klp_mutex_lock(node->mutex);
    for (;;) {
        struct operation *operation = operation_find(node, id, NULL);
        found = operation != NULL;
        if (!found)
            break;
        bool last = operation->ended ||
                    !kelpie_is_ok(klp_cond_wait(&within, node->changed, node->mutex, NULL));
        operation = operation_find(node, id, NULL);
        if (operation == NULL || !(last || operation->ended))
            continue;
        if (!operation->ended && operation->progress != NULL)
            phases_copy(operation);
        copied = info_copy(&operation->info, out, err);
        break;
    }
    klp_mutex_unlock(node->mutex);
    if (!found)
        return klp_fail(err, KELPIE_E_NOT_FOUND, "no operation '%.*s'", 40, id);
    return copied ? KLP_OK : (kelpie_outcome){KELPIE_FAIL};
}

kelpie_outcome klp_node_operation_cancel(const struct kelpie_op *op, struct klp_node *node,
                                         const char *id, struct kelpie_error **err)
{
    bool found = false, ended = false;
    (void)op;
    KLP_LOCKED (node->mutex) {
        struct operation *operation = operation_find(node, id, NULL);
        found = operation != NULL;
        ended = found && operation->ended;
        if (found && !ended)
            klp_cancel_raise(operation->cancel);
    }
    if (!found)
        return klp_fail(err, KELPIE_E_NOT_FOUND, "no operation '%.*s'", 40, id);
    if (ended)
        return klp_fail(err, KELPIE_E_STATE, "operation %s has ended already", id);
    return KLP_OK;
}

kelpie_outcome klp_node_operation_list(const struct kelpie_op *op, struct klp_node *node,
                                       bool (*each)(void *, const struct klp_operation_info *),
                                       void *arg, struct kelpie_error **err)
{
    char(*ids)[KLP_ID_SIZE] = klp_mem_alloc_raw(sizeof(ids[0]) * NODE_OPERATIONS_MAX);
    size_t count = 0;
    (void)err;
    KLP_LOCKED (node->mutex) {
        KLP_LIST_EACH (item, &node->operations) {
            if (count < NODE_OPERATIONS_MAX)
                klp_text_copy(ids[count++], KLP_ID_SIZE,
                              KLP_CONTAINER(item, struct operation, link)->info.id);
        }
    }
    bool more = true;
    for (size_t i = 0; more && i < count; i++) {
        struct klp_operation_info info;
        if (!kelpie_is_ok(klp_node_operation_get(op, node, ids[i], 0, &info, NULL)))
            continue;
        more = each(arg, &info);
        klp_operation_info_finish(&info);
    }
    klp_mem_free(ids);
    return KLP_OK;
}

/* ---- the journal at start: what was under way when the daemon died is unknown until somebody
 * looks. */

static bool journal_each(void *arg, const char *name)
{
    struct klp_node *node = arg;
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf text = KLP_BUF_INIT(JOURNAL_MAX);
    KLP_AUTO(json) struct klp_json *json = NULL;
    struct klp_operation_info info;
    if (!klp_id_is_valid(name) || node->operation_count >= NODE_OPERATIONS_MAX ||
        !klp_file_read_all(node->operations_dir, name, &text, NULL) ||
        !klp_json_parse(text.data, text.size, 8, &json, NULL) ||
        !klp_rest_operation_decode(json, &info, NULL)) {
        KLP_IGNORE(klp_dir_remove(node->operations_dir, name, NULL));
        return true;
    }
    struct operation *operation = KLP_NEW(struct operation);
    *operation = (struct operation){.node = node, .info = info, .ended = true};
    operation->cancel = klp_cancel_create(node->host.env);
    operation->progress = klp_progress_create(node->host.env);
    if (operation->info.state == KLP_OPERATION_RUNNING) {
        operation->info.state = KLP_OPERATION_UNKNOWN;
        KLP_IGNORE(klp_unknown(&operation->info.error, "the daemon ended while it was under way"));
        journal_write(operation);
    }
    klp_list_append(&node->operations, &operation->link);
    node->operation_count++;
    return true;
}

bool operations_load(struct klp_node *node, struct kelpie_error **err)
{
    return klp_dir_list(node->operations_dir, journal_each, node, err);
}

void operations_close(struct klp_node *node)
{
    KLP_LOCKED (node->mutex) {
        KLP_LIST_EACH (item, &node->operations) {
            struct operation *operation = KLP_CONTAINER(item, struct operation, link);
            if (!operation->ended)
                klp_cancel_raise(operation->cancel);
        }
    }
    KLP_LIST_EACH_SAFE (item, following, &node->operations) {
        struct operation *operation = KLP_CONTAINER(item, struct operation, link);
        if (operation->task != NULL)
            klp_task_join(operation->task);
        operation_free(operation);
    }
    klp_list_init(&node->operations);
}
