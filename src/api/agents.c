/* SPDX-License-Identifier: Apache-2.0 */
/* /v1/agents and what can be done with one. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "api/inside.h"
#include "base/fmt.h"
#include "env/posix/posix.h"

static bool list_each(void *arg, const struct klp_agent_info *agent)
{
    klp_json_append(arg, klp_rest_agent_encode(agent));
    return true;
}

static kelpie_outcome agents_list(struct api_request *request, struct kelpie_error **err)
{
    struct klp_json *items = klp_json_array();
    kelpie_outcome outcome =
        klp_node_agent_list(&request->op, request->api->options.node, list_each, items, err);
    if (!kelpie_is_ok(outcome)) {
        klp_json_free(items);
        return outcome;
    }
    reply_json(request, 200, klp_rest_document("agents", items));
    return KLP_OK;
}

static void reply_agent(struct api_request *request, int status, struct klp_agent_info *info)
{
    struct klp_json *items = klp_json_array();
    klp_json_append(items, klp_rest_agent_encode(info));
    klp_agent_info_finish(info);
    reply_json(request, status, klp_rest_document("agents", items));
}

static kelpie_outcome agents_create(struct api_request *request, struct kelpie_error **err)
{
    KLP_AUTO(json) struct klp_json *json = NULL;
    struct klp_agent_request asked;
    struct klp_agent_info info;
    KLP_REQUIRE(body_json(request, &json, err));
    KLP_REQUIRE(klp_rest_agent_request_decode(json, &asked, err));
    kelpie_outcome outcome =
        klp_node_agent_create(&request->op, request->api->options.node, &asked, &info, err);
    klp_agent_request_finish(&asked);
    KLP_TRY(outcome);
    reply_agent(request, 201, &info);
    return KLP_OK;
}

static kelpie_outcome agent_show(struct api_request *request, const char *name,
                                 struct kelpie_error **err)
{
    struct klp_agent_info info;
    bool done;
    if (query_flag(request, "local") == false) {
        struct kelpie_error *error =
            NULL; /* an owner out of reach does not hide what the registry knows */
        if (kelpie_is_ok(agent_is_here(request, name, false, &done, &error)) && done)
            return KLP_OK;
        klp_error_clear(&error);
    }
    KLP_TRY(klp_node_agent_get(&request->op, request->api->options.node, name, &info, err));
    reply_agent(request, 200, &info);
    return KLP_OK;
}

static kelpie_outcome agent_remove(struct api_request *request, const char *name,
                                   struct kelpie_error **err)
{
    bool done, force = query_flag(request, "force");
    struct kelpie_error *error = NULL;
    kelpie_outcome outcome = agent_is_here(request, name, false, &done, &error);
    if (!kelpie_is_ok(outcome) && force && kelpie_error_code(error) == KELPIE_E_NOT_FOUND) {
        klp_error_clear(&error);
        reply_json(request, 200, klp_json_object());
        return KLP_OK;
    }
    klp_error_move(err, &error);
    KLP_TRY(outcome);
    if (done)
        return KLP_OK;
    KLP_TRY(klp_node_agent_remove(&request->op, request->api->options.node, name, force, err));
    reply_json(request, 200, klp_json_object());
    return KLP_OK;
}

/* ---- exec in one piece */

struct collected {
    struct klp_exec_result *result;
    const struct klp_buf *input;
    size_t input_at;
};

static size_t exec_input(void *arg, void *out, size_t capacity)
{
    struct collected *collected = arg;
    size_t left = collected->input->size - collected->input_at,
           size = left < capacity ? left : capacity;
    if (size > 0)
        memcpy(out, collected->input->data + collected->input_at, size);
    collected->input_at += size;
    return size;
}

/* More than the limit is read on and thrown away, so that the process is not stopped by a full
 * pipe. */
static bool exec_output(void *arg, bool is_stderr, const void *data, size_t size)
{
    struct collected *collected = arg;
    struct klp_buf *buf = is_stderr ? &collected->result->err : &collected->result->out;
    size_t room = KLP_EXEC_OUTPUT_MAX - buf->size;
    if (size > room) {
        collected->result->truncated = true;
        size = room;
    }
    klp_buf_append(buf, data, size);
    return true;
}

static kelpie_outcome agent_exec(struct api_request *request, const char *name,
                                 struct kelpie_error **err)
{
    KLP_AUTO(json) struct klp_json *json = NULL;
    struct klp_exec_request asked;
    if (request_wants_upgrade(request))
        return exec_upgrade(request, name, err);
    KLP_REQUIRE(body_json(request, &json, err));
    KLP_REQUIRE(klp_rest_exec_request_decode(json, &asked, err));
    struct klp_exec_result result = {.out = KLP_BUF_INIT(KLP_EXEC_OUTPUT_MAX),
                                     .err = KLP_BUF_INIT(KLP_EXEC_OUTPUT_MAX)};
    struct collected collected = {&result, &asked.stdin_bytes, 0};
    struct kelpie_exec exec = {.argv = (const char *const *)asked.argv,
                               .env = (const char *const *)asked.env,
                               .workdir = asked.workdir,
                               .timeout_ms = asked.timeout_ms,
                               .input = exec_input,
                               .output = exec_output,
                               .arg = &collected};
    struct kelpie_exec_status status;
    kelpie_outcome outcome =
        klp_node_exec(&request->op, request->api->options.node, name, &exec, &status, err);
    if (kelpie_is_ok(outcome)) {
        result.exit_code = status.exit_code;
        result.signal = status.signal;
        result.timed_out = status.timed_out;
        reply_json(request, 200, klp_rest_exec_result_encode(&result));
    }
    klp_exec_result_finish(&result);
    klp_exec_request_finish(&asked);
    return outcome;
}

/* ---- files */

struct spool {
    int fd;
    kelpie_outcome outcome;
    struct kelpie_error *error;
};

static size_t spool_input(void *arg, void *out, size_t capacity)
{
    struct spool *spool = arg;
    ssize_t got = read(spool->fd, out, capacity);
    return got > 0 ? (size_t)got : 0;
}

static bool spool_output(void *arg, const void *data, size_t size)
{
    struct spool *spool = arg;
    for (size_t at = 0; at < size;) {
        ssize_t put = write(spool->fd, (const char *)data + at, size - at);
        if (put <= 0) {
            spool->outcome =
                klp_posix_fail(&spool->error, put < 0 ? errno : ENOSPC, "cannot spool files");
            return false;
        }
        at += (size_t)put;
    }
    return true;
}

static bool log_output(void *arg, bool is_stderr, const void *data, size_t size)
{
    (void)is_stderr;
    return spool_output(arg, data, size);
}

static int spool_open(struct api_request *request)
{
    return openat(klp_dir_fd(request->api->options.spool_dir), ".", O_TMPFILE | O_RDWR | O_CLOEXEC,
                  0600);
}

static kelpie_outcome spool_reply(struct api_request *request, struct spool *spool,
                                  kelpie_outcome outcome, const char *type,
                                  struct kelpie_error **err)
{
    if (spool->error != NULL) {
        klp_error_clear(err);
        klp_error_move(err, &spool->error);
        outcome = spool->outcome;
    }
    if (!kelpie_is_ok(outcome)) {
        close(spool->fd);
        return outcome;
    }
    request->status = 200;
    request->reply_fd = spool->fd;
    request->reply_type = type;
    return KLP_OK;
}

static kelpie_outcome agent_files(struct api_request *request, const char *name,
                                  struct kelpie_error **err)
{
    const char *path = query_text(request, "path");
    struct klp_node *node = request->api->options.node;
    if (path == NULL || path[0] == 0 || strlen(path) > KLP_PATH_MAX)
        return klp_fail(err, KELPIE_E_INVALID, "query 'path' is missing or too long");
    if (strcmp(request->method, "PUT") == 0) {
        struct spool spool = {.fd = request->spool_fd};
        if (spool.fd < 0 || lseek(spool.fd, 0, SEEK_SET) != 0)
            return klp_fail(err, KELPIE_E_INVALID, "the body is empty: a tar stream was expected");
        KLP_TRY(klp_node_put(&request->op, node, name, path, spool_input, &spool, err));
        reply_json(request, 200, klp_json_object());
        return KLP_OK;
    }
    if (strcmp(request->method, "GET") != 0)
        return method_refused(request, err);
    struct spool spool = {.fd = spool_open(request)};
    if (spool.fd < 0)
        return klp_posix_fail(err, errno, "cannot spool files");
    kelpie_outcome outcome =
        klp_node_get(&request->op, node, name, path, spool_output, &spool, err);
    return spool_reply(request, &spool, outcome, "application/x-tar", err);
}

static kelpie_outcome agent_logs(struct api_request *request, const char *name,
                                 struct kelpie_error **err)
{
    if (request_wants_upgrade(request))
        return logs_upgrade(request, name, err);
    struct kelpie_exec_status status;
    bool ended;
    struct spool spool = {.fd = spool_open(request)};
    if (spool.fd < 0)
        return klp_posix_fail(err, errno, "cannot spool a log");
    kelpie_outcome outcome =
        klp_node_logs(&request->op, request->api->options.node, name, false,
                      query_flag(request, "console"), log_output, &spool, &status, &ended, err);
    return spool_reply(request, &spool, outcome, "application/octet-stream", err);
}

/* ---- actions */

static kelpie_outcome snapshot_create(struct api_request *request, const char *name,
                                      const struct klp_action_request *action,
                                      struct kelpie_error **err)
{
    struct klp_snapshot_info info;
    KLP_TRY(klp_node_snapshot_create(&request->op, request->api->options.node, name, action, &info,
                                     err));
    struct klp_json *items = klp_json_array();
    klp_json_append(items, klp_rest_snapshot_encode(&info));
    reply_json(request, 201, klp_rest_document("snapshots", items));
    return KLP_OK;
}

static kelpie_outcome agent_act(struct api_request *request, const char *name, const char *verb,
                                const struct klp_action_request *action, struct kelpie_error **err)
{
    const struct kelpie_op *op = &request->op;
    struct klp_node *node = request->api->options.node;
    if (strcmp(verb, "start") == 0)
        KLP_TRY(klp_node_agent_start(op, node, name, err));
    else if (strcmp(verb, "stop") == 0)
        KLP_TRY(action->force ? klp_node_agent_kill(op, node, name, 9, err)
                              : klp_node_agent_stop(op, node, name, action->timeout_ms, err));
    else if (strcmp(verb, "kill") == 0)
        KLP_TRY(klp_node_agent_kill(op, node, name, action->signal, err));
    else if (strcmp(verb, "pause") == 0)
        KLP_TRY(klp_node_agent_pause(op, node, name, err));
    else if (strcmp(verb, "resume") == 0)
        KLP_TRY(klp_node_agent_resume(op, node, name, err));
    else if (strcmp(verb, "snapshots") == 0)
        return snapshot_create(request, name, action, err);
    else if (strcmp(verb, "suspend") == 0)
        return operation_start(request, KLP_OP_SUSPEND, name, err);
    else if (strcmp(verb, "fork") == 0)
        return operation_start(request, KLP_OP_FORK, name, err);
    else if (strcmp(verb, "teleport") == 0)
        return operation_start(request, KLP_OP_TELEPORT, name, err);
    else
        return route_unknown(request, err);
    struct klp_agent_info info;
    KLP_TRY(klp_node_agent_get(op, node, name, &info, err));
    reply_agent(request, 200, &info);
    return KLP_OK;
}

static kelpie_outcome agent_wait(struct api_request *request, const char *name,
                                 struct kelpie_error **err)
{
    const char *condition = query_text(request, "for");
    struct klp_agent_info info;
    KLP_TRY(klp_node_agent_wait(&request->op, request->api->options.node, name,
                                condition != NULL ? condition : "stopped", &info, err));
    reply_agent(request, 200, &info);
    return KLP_OK;
}

static kelpie_outcome agent_action(struct api_request *request, const char *name, const char *verb,
                                   struct kelpie_error **err)
{
    KLP_AUTO(json) struct klp_json *json = NULL;
    struct klp_action_request action;
    KLP_REQUIRE(body_json(request, &json, err));
    KLP_REQUIRE(klp_rest_action_decode(json, &action, err));
    /* An agent of a dead node is claimed here, by this node. */
    if (strcmp(verb, "restore") == 0 && action.claim)
        return operation_start(request, KLP_OP_RESTORE, name, err);
    bool done;
    KLP_TRY(agent_is_here(request, name, false, &done, err));
    return done ? KLP_OK : agent_act(request, name, verb, &action, err);
}

kelpie_outcome api_agents(struct api_request *request, struct kelpie_error **err)
{
    const char *name = request->segments[1], *verb = request->segments[2];
    bool get = strcmp(request->method, "GET") == 0, post = strcmp(request->method, "POST") == 0;
    if (request->segment_count == 1)
        return get    ? agents_list(request, err)
               : post ? agents_create(request, err)
                      : method_refused(request, err);
    if (request->segment_count == 2) {
        if (get)
            return agent_show(request, name, err);
        return strcmp(request->method, "DELETE") == 0 ? agent_remove(request, name, err)
                                                      : method_refused(request, err);
    }
    if (request->segment_count != 3)
        return route_unknown(request, err);
    if (strcmp(verb, "wait") == 0)
        return agent_wait(request, name, err);
    bool files = strcmp(verb, "files") == 0, logs = strcmp(verb, "logs") == 0,
         exec = strcmp(verb, "exec") == 0;
    if (!files && !logs && !exec)
        return post ? agent_action(request, name, verb, err) : method_refused(request, err);
    bool done, streams = files || logs || request_wants_upgrade(request);
    KLP_TRY(agent_is_here(request, name, streams, &done, err));
    if (done)
        return KLP_OK;
    return files  ? agent_files(request, name, err)
           : logs ? agent_logs(request, name, err)
                  : agent_exec(request, name, err);
}
