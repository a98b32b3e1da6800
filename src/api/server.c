/* SPDX-License-Identifier: Apache-2.0 */
/* The server: who may speak, how much, to which resource, and how it is answered. A thread a
 * connection: handlers may block. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "api/inside.h"
#include "base/fmt.h"
#include "env/posix/posix.h"

#define CONNECTIONS_MAX 256
#define IDLE_SECONDS 120 /* without a byte from or to a client, while nothing is worked on */
#define PATH_MAX_BYTES 1024

void reply_json(struct api_request *request, int status, struct klp_json *json)
{
    request->status = status;
    request->reply = json;
}

const char *query_text(const struct api_request *request, const char *key)
{
    return MHD_lookup_connection_value(request->connection, MHD_GET_ARGUMENT_KIND, key);
}

bool query_u64(const struct api_request *request, const char *key, uint64_t *out,
               struct kelpie_error **err)
{
    const char *text = query_text(request, key);
    if (text == NULL || klp_parse_u64(text, strlen(text), out))
        return true;
    return klp_refuse(err, KELPIE_E_INVALID, "query '%s' is no number", key);
}

bool query_flag(const struct api_request *request, const char *key)
{
    const char *text = query_text(request, key);
    return text != NULL && strcmp(text, "0") != 0 && strcmp(text, "false") != 0;
}

bool body_json(const struct api_request *request, struct klp_json **out, struct kelpie_error **err)
{
    if (request->body.size == 0) {
        *out = klp_json_object();
        return true;
    }
    KLP_CHECK(klp_json_parse(request->body.data, request->body.size, KLP_REST_DEPTH_MAX, out, err));
    if (klp_json_is_object(*out))
        return true;
    klp_json_free(KLP_TAKE(out));
    return klp_refuse(err, KELPIE_E_INVALID, "the body is no JSON object");
}

kelpie_outcome method_refused(const struct api_request *request, struct kelpie_error **err)
{
    return klp_fail(err, KELPIE_E_INVALID, "%s is not for %s", request->method, request->path);
}

kelpie_outcome route_unknown(const struct api_request *request, struct kelpie_error **err)
{
    return klp_fail(err, KELPIE_E_NOT_FOUND, "no such resource: %s", request->path);
}

bool request_wants_upgrade(const struct api_request *request)
{
    const char *upgrade =
        MHD_lookup_connection_value(request->connection, MHD_HEADER_KIND, "Upgrade");
    return upgrade != NULL && strcmp(upgrade, KLP_EXEC_UPGRADE) == 0;
}

/* ---- one request */

static bool peer_may_speak(struct MHD_Connection *connection)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    struct ucred peer;
    socklen_t size = sizeof(peer);
    if (info == NULL || getsockopt(info->connect_fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0)
        return false;
    return peer.uid == geteuid() || peer.uid == 0;
}

/* /v1/a/b into its parts. */
static bool path_split(struct api_request *request, const char *url)
{
    size_t size = strlen(url);
    if (size > PATH_MAX_BYTES || strncmp(url, "/v1", 3) != 0 || (url[3] != 0 && url[3] != '/'))
        return false;
    request->path = klp_mem_string(url);
    char *parts = klp_mem_string(url + 3);
    size_t count = 0;
    char *at = parts;
    while (*at != 0 && count < API_SEGMENTS_MAX) {
        *at++ = 0;
        if (*at == 0)
            break;
        request->segments[count++] = at;
        while (*at != 0 && *at != '/')
            at++;
    }
    bool fine = *at == 0;
    for (size_t i = 0; i < count; i++)
        request->segments[i] = klp_mem_string(request->segments[i]);
    request->segment_count = count;
    klp_mem_free(parts);
    return fine;
}

static bool route_spools(const struct api_request *request)
{
    bool put = strcmp(request->method, "PUT") == 0;
    if (!put || request->segment_count == 0)
        return false;
    bool files = request->segment_count == 3 && strcmp(request->segments[0], "agents") == 0 &&
                 strcmp(request->segments[2], "files") == 0;
    bool image = request->segment_count == 2 && strcmp(request->segments[0], "images") == 0;
    return files || image;
}

static struct api_request *request_create(struct klp_api *api, struct MHD_Connection *connection,
                                          const char *url, const char *method)
{
    struct api_request *request = KLP_NEW(struct api_request);
    *request = (struct api_request){.api = api,
                                    .connection = connection,
                                    .method = method,
                                    .body = KLP_BUF_INIT(KLP_REST_BODY_MAX),
                                    .spool_fd = -1,
                                    .reply_fd = -1};
    if (!peer_may_speak(connection))
        KLP_IGNORE(klp_refuse(&request->early, KELPIE_E_DENIED,
                              "this socket is for the daemon's own user"));
    else if (!path_split(request, url))
        KLP_IGNORE(klp_refuse(&request->early, KELPIE_E_NOT_FOUND, "no such resource"));
    request->spools = request->early == NULL && route_spools(request);
    return request;
}

static void request_free(struct api_request *request)
{
    for (size_t i = 0; i < request->segment_count; i++)
        klp_mem_free((void *)(uintptr_t)request->segments[i]);
    klp_mem_free(request->path);
    klp_buf_finish(&request->body);
    kelpie_error_free(request->early);
    klp_json_free(request->reply);
    if (request->spool_fd >= 0)
        close(request->spool_fd);
    if (request->reply_fd >= 0)
        close(request->reply_fd);
    klp_mem_free(request);
}

static void body_spool(struct api_request *request, const void *data, size_t size)
{
    if (request->spool_fd < 0)
        request->spool_fd = openat(klp_dir_fd(request->api->options.spool_dir), ".",
                                   O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (request->spool_size + size > API_SPOOL_MAX) {
        KLP_IGNORE(klp_refuse(&request->early, KELPIE_E_LIMIT, "the body is larger than %llu bytes",
                              (unsigned long long)API_SPOOL_MAX));
        return;
    }
    for (size_t at = 0; at < size;) {
        ssize_t put = request->spool_fd >= 0
                          ? write(request->spool_fd, (const char *)data + at, size - at)
                          : -1;
        if (put < 0 && request->spool_fd >= 0 && errno == EINTR)
            continue;
        if (put <= 0) {
            KLP_IGNORE(klp_posix_refuse(&request->early, put < 0 ? errno : ENOSPC,
                                        "cannot spool the body"));
            return;
        }
        at += (size_t)put;
    }
    request->spool_size += size;
}

static void body_take(struct api_request *request, const void *data, size_t size)
{
    if (request->early != NULL)
        return;
    if (request->spools) {
        body_spool(request, data, size);
        return;
    }
    klp_buf_append(&request->body, data, size);
    KLP_IGNORE(klp_buf_check(&request->body, "the request's body", &request->early));
}

static kelpie_outcome dispatch(struct api_request *request, struct kelpie_error **err)
{
    static const struct {
        const char *name;
        api_handler *handle;
    } routes[] = {
        {"agents", api_agents},         {"snapshots", api_snapshots},
        {"images", api_images},         {"nodes", api_nodes},
        {"operations", api_operations}, {"events", api_events},
        {"doctor", api_doctor},         {"peer", api_peer},
    };
    uint64_t timeout = API_TIMEOUT_MS_DEFAULT;
    KLP_REQUIRE(query_u64(request, "timeout_ms", &timeout, err));
    request->op = klp_op_plain(request->api->options.env, timeout);
    request->op.cancel = request->api->cancel;
    if (request->segment_count == 0)
        return api_index(request, err);
    for (size_t i = 0; i < KLP_COUNT(routes); i++)
        if (strcmp(routes[i].name, request->segments[0]) == 0)
            return routes[i].handle(request, err);
    return route_unknown(request, err);
}

static struct MHD_Response *response_make(struct api_request *request)
{
    if (request->upgrade != NULL)
        return request->upgrade;
    if (request->reply_fd >= 0) {
        off_t size = lseek(request->reply_fd, 0, SEEK_END);
        struct MHD_Response *response =
            MHD_create_response_from_fd((uint64_t)size, request->reply_fd);
        request->reply_fd = -1; /* the response closes it */
        MHD_add_response_header(response, "Content-Type", request->reply_type);
        return response;
    }
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf text = KLP_BUF_INIT(64 * KLP_MIB);
    if (request->reply != NULL) {
        klp_json_print(request->reply, &text);
        klp_buf_append(&text, "\n", 1);
    }
    struct MHD_Response *response = MHD_create_response_from_buffer(
        text.size, text.size > 0 ? text.data : (void *)(uintptr_t) "", MHD_RESPMEM_MUST_COPY);
    MHD_add_response_header(response, "Content-Type",
                            request->status >= 400 ? "application/problem+json"
                                                   : "application/json");
    return response;
}

static void failure_reply(struct api_request *request, const struct kelpie_error *error)
{
    klp_json_free(request->reply);
    request->reply = klp_rest_problem_encode(
        error, request->operation_id[0] != 0 ? request->operation_id : NULL);
    request->status = kelpie_code_http(kelpie_error_code(error));
}

/* libmicrohttpd counts a connection as idle since its last byte. A request that is worked on is not
 * idle, however long it takes: the clock stands still meanwhile, rather than relying on when a
 * version looks at it. Setting a limit where there was none starts it anew
 * (MHD_set_connection_option). */
static void idle_limit(struct MHD_Connection *connection, unsigned seconds)
{
    MHD_set_connection_option(connection, MHD_CONNECTION_OPTION_TIMEOUT, seconds);
}

static enum MHD_Result request_answer(struct api_request *request)
{
    struct kelpie_error *error = KLP_TAKE(&request->early);
    idle_limit(request->connection, 0);
    if (error == NULL)
        KLP_IGNORE(dispatch(request, &error));
    idle_limit(request->connection, IDLE_SECONDS);
    if (error != NULL)
        failure_reply(request, error);
    klp_error_clear(&error);
    struct MHD_Response *response = response_make(request);
    if (request->location[0] != 0)
        MHD_add_response_header(response, "Location", request->location);
    if (request->endpoint[0] != 0)
        MHD_add_response_header(response, "Kelpie-Endpoint", request->endpoint);
    enum MHD_Result result =
        MHD_queue_response(request->connection, (unsigned)request->status, response);
    MHD_destroy_response(response);
    return result;
}

static enum MHD_Result on_request(void *arg, struct MHD_Connection *connection, const char *url,
                                  const char *method, const char *version, const char *data,
                                  size_t *size, void **slot)
{
    (void)version;
    if (*slot == NULL) {
        *slot = request_create(arg, connection, url, method);
        return MHD_YES;
    }
    struct api_request *request = *slot;
    if (*size > 0) {
        body_take(request, data, *size);
        *size = 0;
        return MHD_YES;
    }
    return request_answer(request);
}

static void on_completed(void *arg, struct MHD_Connection *connection, void **slot,
                         enum MHD_RequestTerminationCode code)
{
    (void)arg;
    (void)connection;
    (void)code;
    if (*slot != NULL)
        request_free(*slot);
    *slot = NULL;
}

bool klp_api_start(const struct klp_api_options *options, int listen_fd, struct klp_api **out,
                   struct kelpie_error **err)
{
    struct klp_api *api = KLP_NEW(struct klp_api);
    api->options = *options;
    api->mutex = klp_mutex_create(options->env);
    api->changed = klp_cond_create(options->env);
    api->cancel = klp_cancel_create(options->env);
    klp_list_init(&api->streams);
    api->daemon = MHD_start_daemon(
        MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_THREAD_PER_CONNECTION | MHD_USE_POLL |
            MHD_ALLOW_UPGRADE | MHD_USE_ITC,
        0, NULL, NULL, on_request, api, MHD_OPTION_LISTEN_SOCKET, listen_fd,
        MHD_OPTION_CONNECTION_LIMIT, (unsigned)CONNECTIONS_MAX, MHD_OPTION_CONNECTION_TIMEOUT,
        (unsigned)IDLE_SECONDS, MHD_OPTION_NOTIFY_COMPLETED, on_completed, api,
        MHD_OPTION_THREAD_STACK_SIZE, (size_t)(512 * 1024), MHD_OPTION_END);
    if (api->daemon != NULL) {
        *out = api;
        return true;
    }
    close(listen_fd);
    klp_cancel_destroy(api->cancel);
    klp_cond_destroy(api->changed);
    klp_mutex_destroy(api->mutex);
    klp_mem_free(api);
    return klp_refuse(err, KELPIE_E_IO, "cannot start the HTTP server");
}

void klp_api_stop(struct klp_api *api)
{
    if (api == NULL)
        return;
    klp_cancel_raise(api->cancel);
    streams_end(api);
    MHD_stop_daemon(api->daemon);
    klp_cancel_destroy(api->cancel);
    klp_cond_destroy(api->changed);
    klp_mutex_destroy(api->mutex);
    klp_mem_free(api);
}
