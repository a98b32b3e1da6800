/* SPDX-License-Identifier: Apache-2.0 */
/* The streaming exec and the followed log: after an HTTP Upgrade both sides send frames
 * (format/rest.h). One task runs the exec and writes what comes out; another reads what the client
 * sends. */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "api/inside.h"
#include "base/fmt.h"
#include "env/posix/posix.h"

struct stream {
    struct klp_list link; /* under the api's mutex */
    struct klp_api *api;
    struct MHD_UpgradeResponseHandle *handle;
    struct klp_stream *socket; /* the upgraded connection, a copy of its descriptor */
    struct klp_mutex *write_mutex;
    struct klp_cancel *cancel; /* raised when the client is gone */
    struct klp_task *reader;
    int input[2]; /* what the client sends to the process; [1] -1 = ended */
    struct kelpie_exec_control *control;
    char agent[KLP_NAME_SIZE];
    uint8_t *early; /* bytes that came with the request */
    size_t early_size;
    bool is_log, console;
    struct klp_exec_request asked;
    struct kelpie_op op;
};

/* ---- towards the client */

static bool frame_send(struct stream *stream, enum klp_exec_stream kind, const void *data,
                       size_t size)
{
    uint8_t header[8];
    struct kelpie_op op = stream->op;
    klp_exec_frame_header(kind, (uint32_t)size, header);
    klp_mutex_lock(
        stream->write_mutex); /* one frame at a time; nobody else waits for anything under it */
    bool fine =
        kelpie_is_ok(klp_stream_write(&op, stream->socket, header, sizeof(header), NULL)) &&
        (size == 0 || kelpie_is_ok(klp_stream_write(&op, stream->socket, data, size, NULL)));
    klp_mutex_unlock(stream->write_mutex);
    if (!fine)
        klp_cancel_raise(stream->cancel);
    return fine;
}

static bool stream_output(void *arg, bool is_stderr, const void *data, size_t size)
{
    struct stream *stream = arg;
    for (size_t at = 0; at < size;) {
        size_t part = size - at < KLP_EXEC_FRAME_MAX ? size - at : KLP_EXEC_FRAME_MAX;
        if (!frame_send(stream, is_stderr ? KLP_EXEC_STDERR : KLP_EXEC_STDOUT,
                        (const char *)data + at, part))
            return false;
        at += part;
    }
    return true;
}

static void end_send(struct stream *stream, const struct kelpie_exec_status *status,
                     const struct kelpie_error *error)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf text = KLP_BUF_INIT(KLP_EXEC_FRAME_MAX);
    struct klp_exec_result result = {
        .exit_code = status->exit_code, .signal = status->signal, .timed_out = status->timed_out};
    struct klp_json *json =
        error != NULL ? klp_rest_problem_encode(error, NULL) : klp_rest_exec_result_encode(&result);
    klp_json_print(json, &text);
    klp_json_free(json);
    frame_send(stream, KLP_EXEC_EXIT, text.data, text.size);
}

/* ---- from the client */

static bool client_read(struct stream *stream, void *out, size_t size)
{
    for (size_t at = 0; at < size;) {
        size_t got = 0;
        if (stream->early_size > 0) {
            got = size - at < stream->early_size ? size - at : stream->early_size;
            memcpy((char *)out + at, stream->early, got);
            stream->early += got;
            stream->early_size -= got;
        } else if (!kelpie_is_ok(klp_stream_read(&stream->op, stream->socket, (char *)out + at,
                                                 size - at, &got, NULL)) ||
                   got == 0) {
            return false;
        }
        at += got;
    }
    return true;
}

static void input_close(struct stream *stream)
{
    if (stream->input[1] >= 0)
        close(stream->input[1]);
    stream->input[1] = -1;
}

static void input_pass(struct stream *stream, const uint8_t *data, size_t size)
{
    if (size == 0)
        input_close(stream);
    for (size_t at = 0; at < size && stream->input[1] >= 0;) {
        ssize_t put = send(stream->input[1], data + at, size - at, MSG_NOSIGNAL);
        if (put < 0 && errno == EAGAIN &&
            kelpie_is_ok(
                klp_posix_wait(&stream->op, stream->input[1], POLLOUT, "passing input on", NULL)))
            continue;
        if (put < 0) {
            input_close(stream); /* the process reads no more: the rest is thrown away */
            return;
        }
        at += (size_t)put;
    }
}

static void client_signal(struct stream *stream, const char *text, size_t size)
{
    uint64_t number;
    if (klp_parse_u64(text, size, &number) && number > 0 && number < 65 && stream->control != NULL)
        kelpie_exec_signal(&stream->op, stream->control, (int)number);
}

static void client_resize(struct stream *stream, const char *text, size_t size)
{
    size_t space = 0;
    uint64_t rows, cols;
    while (space < size && text[space] != ' ')
        space++;
    if (space < size && klp_parse_u64(text, space, &rows) &&
        klp_parse_u64(text + space + 1, size - space - 1, &cols) && rows < 10000 && cols < 10000 &&
        stream->control != NULL)
        kelpie_exec_resize(&stream->op, stream->control, (uint32_t)rows, (uint32_t)cols);
}

static void client_run(void *arg)
{
    struct stream *stream = arg;
    uint8_t header[8], *body = klp_mem_alloc(KLP_EXEC_FRAME_MAX);
    enum klp_exec_stream kind;
    uint32_t size;
    while (client_read(stream, header, sizeof(header)) &&
           klp_exec_frame_decode(header, &kind, &size, NULL) && client_read(stream, body, size)) {
        if (kind == KLP_EXEC_STDIN)
            input_pass(stream, body, size);
        else if (kind == KLP_EXEC_SIGNAL)
            client_signal(stream, (const char *)body, size);
        else if (kind == KLP_EXEC_RESIZE)
            client_resize(stream, (const char *)body, size);
    }
    klp_mem_free(body);
    input_close(stream);
    klp_cancel_raise(stream->cancel); /* gone, or broken: what runs for it ends */
}

static size_t stream_input(void *arg, void *out, size_t capacity)
{
    struct stream *stream = arg;
    for (;;) {
        ssize_t got = recv(stream->input[0], out, capacity, 0);
        if (got >= 0)
            return (size_t)got;
        if (errno != EAGAIN || !kelpie_is_ok(klp_posix_wait(&stream->op, stream->input[0], POLLIN,
                                                            "waiting for input", NULL)))
            return 0;
    }
}

/* The process has ended: whoever waits for more input of the client need not. */
static void stream_ended(void *arg)
{
    shutdown(((struct stream *)arg)->input[0], SHUT_RD);
}

/* ---- the whole */

static void stream_serve(struct stream *stream)
{
    struct klp_node *node = stream->api->options.node;
    struct kelpie_exec_status status = {.exit_code = 0};
    struct kelpie_error *error = NULL;
    bool ended = true;
    if (stream->is_log) {
        KLP_IGNORE(klp_node_logs(&stream->op, node, stream->agent, true, stream->console,
                                 stream_output, stream, &status, &ended, &error));
    } else {
        struct kelpie_exec exec = {.argv = (const char *const *)stream->asked.argv,
                                   .env = (const char *const *)stream->asked.env,
                                   .workdir = stream->asked.workdir,
                                   .timeout_ms = stream->asked.timeout_ms,
                                   .tty = stream->asked.tty,
                                   .rows = stream->asked.rows,
                                   .cols = stream->asked.cols,
                                   .input = stream_input,
                                   .output = stream_output,
                                   .ended = stream_ended,
                                   .arg = stream,
                                   .control = stream->control};
        KLP_IGNORE(klp_node_exec(&stream->op, node, stream->agent, &exec, &status, &error));
    }
    end_send(stream, &status, error);
    klp_error_clear(&error);
}

static void stream_free(struct stream *stream)
{
    struct klp_api *api = stream->api;
    KLP_LOCKED (api->mutex) {
        klp_list_remove(&stream->link);
        klp_cond_wake(api->changed);
    }
    if (stream->control != NULL)
        kelpie_exec_control_destroy(stream->control);
    klp_stream_close(stream->socket);
    klp_cancel_destroy(stream->cancel);
    klp_mutex_destroy(stream->write_mutex);
    input_close(stream);
    if (stream->input[0] >= 0)
        close(stream->input[0]);
    klp_exec_request_finish(&stream->asked);
    MHD_upgrade_action(stream->handle, MHD_UPGRADE_ACTION_CLOSE);
    klp_mem_free(stream);
}

void streams_end(struct klp_api *api)
{
    struct kelpie_op forever = {.env = api->options.env, .deadline_ns = KLP_NO_DEADLINE};
    klp_mutex_lock(api->mutex);
    KLP_LIST_EACH (item, &api->streams) {
        klp_cancel_raise(KLP_CONTAINER(item, struct stream, link)->cancel);
    }
    while (!klp_list_is_empty(&api->streams))
        KLP_IGNORE(klp_cond_wait(&forever, api->changed, api->mutex, NULL));
    klp_mutex_unlock(api->mutex);
}

/* MHD calls this on the connection's own thread, which is ours until the stream ends. */
static void on_upgrade(void *arg, struct MHD_Connection *connection, void *slot, const char *extra,
                       size_t extra_size, MHD_socket fd, struct MHD_UpgradeResponseHandle *handle)
{
    struct stream *stream = arg;
    (void)connection;
    (void)slot;
    stream->handle = handle;
    uint8_t *early = klp_mem_alloc(extra_size + 1);
    if (extra_size > 0)
        memcpy(early, extra, extra_size);
    stream->early = early;
    stream->early_size = extra_size;
    int copy = dup(fd);
    bool fine =
        copy >= 0 &&
        klp_stream_open(stream->op.env, klp_handle_from_fd(copy), &stream->socket, NULL) &&
        klp_task_spawn(stream->op.env, "exec-client", client_run, stream, &stream->reader, NULL);
    if (fine) {
        stream_serve(stream);
        klp_stream_shutdown(stream->socket); /* the reader sees the end */
        klp_task_join(stream->reader);
    }
    klp_mem_free(early);
    stream_free(stream);
}

static kelpie_outcome stream_begin(struct api_request *request, const char *agent,
                                   struct stream **out, struct kelpie_error **err)
{
    struct klp_api *api = request->api;
    struct stream *stream = KLP_NEW(struct stream);
    *stream = (struct stream){.api = api, .input = {-1, -1}};
    klp_text_copy(stream->agent, sizeof(stream->agent), agent);
    stream->write_mutex = klp_mutex_create(api->options.env);
    stream->cancel = klp_cancel_create(api->options.env);
    stream->op = (struct kelpie_op){
        .env = api->options.env, .deadline_ns = KLP_NO_DEADLINE, .cancel = stream->cancel};
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, stream->input) != 0) {
        int error = errno;
        klp_cancel_destroy(stream->cancel);
        klp_mutex_destroy(stream->write_mutex);
        klp_mem_free(stream);
        return klp_posix_fail(err, error, "cannot open a stream");
    }
    *out = stream;
    return KLP_OK;
}

static void stream_upgrade(struct api_request *request, struct stream *stream)
{
    KLP_LOCKED (request->api->mutex) {
        klp_list_append(&request->api->streams, &stream->link);
    }
    request->upgrade = MHD_create_response_for_upgrade(on_upgrade, stream);
    KLP_ASSERT(request->upgrade != NULL);
    MHD_add_response_header(request->upgrade, "Upgrade", KLP_EXEC_UPGRADE);
    request->status = MHD_HTTP_SWITCHING_PROTOCOLS;
}

kelpie_outcome exec_upgrade(struct api_request *request, const char *agent,
                            struct kelpie_error **err)
{
    KLP_AUTO(json) struct klp_json *json = NULL;
    struct klp_exec_request asked;
    struct kelpie_exec_control *control = NULL;
    struct stream *stream;
    KLP_REQUIRE(body_json(request, &json, err));
    KLP_REQUIRE(klp_rest_exec_request_decode(json, &asked, err));
    kelpie_outcome outcome =
        klp_node_exec_control(&request->op, request->api->options.node, agent, &control, err);
    if (kelpie_is_ok(outcome))
        outcome = stream_begin(request, agent, &stream, err);
    if (!kelpie_is_ok(outcome)) {
        kelpie_exec_control_destroy(control);
        klp_exec_request_finish(&asked);
        return outcome;
    }
    stream->asked = asked;
    stream->control = control;
    stream_upgrade(request, stream);
    return KLP_OK;
}

kelpie_outcome logs_upgrade(struct api_request *request, const char *agent,
                            struct kelpie_error **err)
{
    struct klp_agent_info info;
    struct stream *stream;
    KLP_TRY(klp_node_agent_get(&request->op, request->api->options.node, agent, &info, err));
    klp_agent_info_finish(&info);
    KLP_TRY(stream_begin(request, agent, &stream, err));
    stream->is_log = true;
    stream->console = query_flag(request, "console");
    stream_upgrade(request, stream);
    return KLP_OK;
}
