/* SPDX-License-Identifier: Apache-2.0 */
/* See http.h. RFC 9112 as far as one client and one server of ours need it. */
#include "cli/http.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/fmt.h"
#include "env/posix/posix.h"

#define READ_SIZE (64 * KLP_KIB)
#define LINE_MAX_BYTES (8 * KLP_KIB)
#define INTERIM_MAX 4 /* answers of 1xx before the real one */

uint64_t http_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

void http_init(struct http *http, int fd, uint64_t timeout_ms)
{
    *http = (struct http){.fd = fd,
                          .deadline_ns = UINT64_MAX,
                          .timeout_ms = timeout_ms,
                          .in = KLP_BUF_INIT(HTTP_HEADER_MAX + READ_SIZE)};
    if (timeout_ms > 0 && timeout_ms < UINT64_MAX / 2000000)
        http->deadline_ns = http_now_ns() + timeout_ms * 1000000ull;
}

void http_finish(struct http *http)
{
    if (http->fd >= 0)
        close(http->fd);
    http->fd = -1;
    klp_buf_finish(&http->in);
}

kelpie_outcome http_wait(const struct http *http, short events, struct kelpie_error **err)
{
    for (;;) {
        int wait_ms = -1;
        if (http->deadline_ns != UINT64_MAX) {
            uint64_t now = http_now_ns();
            if (now >= http->deadline_ns)
                return klp_fail(err, KELPIE_E_TIMEOUT, "no answer from the daemon within %llums",
                                (unsigned long long)http->timeout_ms);
            uint64_t left_ms = (http->deadline_ns - now) / 1000000 + 1;
            wait_ms = left_ms > 60000 ? 60000 : (int)left_ms;
        }
        struct pollfd item = {.fd = http->fd, .events = events};
        int got = poll(&item, 1, wait_ms);
        if (got > 0)
            return KLP_OK;
        if (got < 0 && errno != EINTR)
            return klp_posix_fail(err, errno, "cannot wait for the daemon");
    }
}

/* ---- sending */

static kelpie_outcome write_all(struct http *http, const void *data, size_t size, bool *out_gone,
                                struct kelpie_error **err)
{
    *out_gone = false;
    for (size_t at = 0; at < size;) {
        ssize_t put = send(http->fd, (const char *)data + at, size - at, MSG_NOSIGNAL);
        if (put >= 0) {
            at += (size_t)put;
            continue;
        }
        if (errno == EINTR)
            continue;
        if (errno == EPIPE || errno == ECONNRESET) {
            *out_gone = true; /* it may have answered: that is read next */
            return KLP_OK;
        }
        if (errno != EAGAIN)
            return klp_posix_fail(err, errno, "cannot send to the daemon");
        KLP_TRY(http_wait(http, POLLOUT, err));
    }
    return KLP_OK;
}

kelpie_outcome http_send(struct http *http, const struct http_request *request,
                         struct kelpie_error **err)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf text = KLP_BUF_INIT(4 * KLP_MIB);
    bool gone;
    klp_buf_append_text(&text, request->method);
    klp_buf_append_text(&text, " ");
    klp_buf_append_text(&text, request->path);
    klp_buf_append_text(&text, " HTTP/1.1\r\nHost: kelpie\r\n");
    if (request->upgrade != NULL)
        klp_buf_append_format(&text, "Connection: Upgrade\r\nUpgrade: %s\r\n", request->upgrade);
    else
        klp_buf_append_text(&text, "Connection: close\r\n");
    if (request->key != NULL)
        klp_buf_append_format(&text, "Idempotency-Key: %s\r\n", request->key);
    if (request->body.size > 0 || request->chunked)
        klp_buf_append_format(&text, "Content-Type: %s\r\n",
                              request->type != NULL ? request->type : "application/json");
    if (request->chunked)
        klp_buf_append_text(&text, "Transfer-Encoding: chunked\r\n\r\n");
    else
        klp_buf_append_format(&text, "Content-Length: %zu\r\n\r\n", request->body.size);
    klp_buf_append(&text, request->body.data, request->body.size);
    KLP_REQUIRE(klp_buf_check(&text, "the request", err));
    KLP_TRY(write_all(http, text.data, text.size, &gone, err));
    http->sent = true;
    return KLP_OK;
}

kelpie_outcome http_body_write(struct http *http, const void *data, size_t size, bool *out_gone,
                               struct kelpie_error **err)
{
    char line[32];
    size_t length = klp_format(line, sizeof(line), "%zx\r\n", size);
    KLP_TRY(write_all(http, line, length, out_gone, err));
    if (!*out_gone && size > 0)
        KLP_TRY(write_all(http, data, size, out_gone, err));
    return *out_gone ? KLP_OK : write_all(http, "\r\n", 2, out_gone, err);
}

/* ---- reading */

/* More bytes behind http->in; *out_end: there are none. */
static kelpie_outcome fill(struct http *http, bool *out_end, struct kelpie_error **err)
{
    void *place = klp_buf_reserve(&http->in, READ_SIZE);
    if (place == NULL)
        return klp_fail(err, KELPIE_E_PROTOCOL, "the daemon's headers are too long");
    for (;;) {
        ssize_t got = recv(http->fd, place, READ_SIZE, 0);
        if (got >= 0) {
            klp_buf_grow(&http->in, (size_t)got);
            *out_end = got == 0;
            return KLP_OK;
        }
        if (errno == ECONNRESET) {
            *out_end = true;
            return KLP_OK;
        }
        if (errno == EAGAIN)
            KLP_TRY(http_wait(http, POLLIN, err));
        else if (errno != EINTR)
            return klp_posix_fail(err, errno, "cannot read the daemon's answer");
    }
}

/* One line without its end into `line`; bounded. */
static kelpie_outcome line_read(struct http *http, char line[LINE_MAX_BYTES],
                                struct kelpie_error **err)
{
    for (;;) {
        const uint8_t *end = http->in.size > 0 ? memchr(http->in.data, '\n', http->in.size) : NULL;
        if (end != NULL) {
            size_t size = (size_t)(end - http->in.data), drop = size + 1;
            if (size > 0 && http->in.data[size - 1] == '\r')
                size--;
            if (size >= LINE_MAX_BYTES || memchr(http->in.data, 0, size) != NULL)
                return klp_fail(err, KELPIE_E_PROTOCOL,
                                "a line of the daemon's answer is malformed");
            memcpy(line, http->in.data, size);
            line[size] = 0;
            klp_buf_drop_front(&http->in, drop);
            return KLP_OK;
        }
        bool ended = false;
        if (http->in.size >= LINE_MAX_BYTES)
            return klp_fail(err, KELPIE_E_PROTOCOL, "a line of the daemon's answer is too long");
        KLP_TRY(fill(http, &ended, err));
        if (ended)
            return klp_unknown(err, "the daemon closed the connection before its answer");
    }
}

static const char *header_value(const char *line, const char *name)
{
    size_t size = strlen(name);
    if (strncasecmp(line, name, size) != 0 || line[size] != ':')
        return NULL;
    line += size + 1;
    while (*line == ' ' || *line == '\t')
        line++;
    return line;
}

static bool header_take(struct http *http, const char *line, struct kelpie_error **err)
{
    const char *value = header_value(line, "Content-Length");
    if (value != NULL) {
        http->by_end = false;
        return klp_parse_u64(value, strlen(value), &http->left) ||
               klp_refuse(err, KELPIE_E_PROTOCOL, "the daemon's Content-Length is no number");
    }
    value = header_value(line, "Transfer-Encoding");
    if (value != NULL) {
        http->chunks = strcasecmp(value, "chunked") == 0;
        return http->chunks || klp_refuse(err, KELPIE_E_PROTOCOL,
                                          "the daemon's answer has an unknown transfer encoding");
    }
    value = header_value(line, "Kelpie-Endpoint");
    if (value != NULL && strlen(value) < sizeof(http->endpoint))
        klp_text_copy(http->endpoint, sizeof(http->endpoint), value);
    return true;
}

static kelpie_outcome head_read(struct http *http, char *line, struct kelpie_error **err)
{
    uint64_t status;
    KLP_TRY(line_read(http, line, err));
    if (strncmp(line, "HTTP/1.", 7) != 0 || strlen(line) < 12 ||
        !klp_parse_u64(line + 9, 3, &status))
        return klp_fail(err, KELPIE_E_PROTOCOL, "the other side does not speak HTTP");
    http->status = (int)status;
    http->by_end = true;
    http->chunks = http->ended = false;
    http->left = 0;
    for (unsigned count = 0; count < 100; count++) {
        KLP_TRY(line_read(http, line, err));
        if (line[0] == 0)
            return KLP_OK;
        KLP_REQUIRE(header_take(http, line, err));
    }
    return klp_fail(err, KELPIE_E_PROTOCOL, "the daemon's answer has too many headers");
}

kelpie_outcome http_answer(struct http *http, struct kelpie_error **err)
{
    char *line = klp_mem_alloc(LINE_MAX_BYTES);
    kelpie_outcome outcome = KLP_OK;
    unsigned count = 0;
    do
        outcome = head_read(http, line, err);
    while (kelpie_is_ok(outcome) && http->status >= 100 && http->status < 200 &&
           http->status != 101 && ++count < INTERIM_MAX);
    klp_mem_free(line);
    if (http->status == 204 || http->status == 304 || http->status == 101)
        http->ended = true;
    if (http->chunks || http->status == 101)
        http->by_end = false;
    if (!http->chunks && !http->by_end && http->left == 0)
        http->ended = true;
    return outcome;
}

/* At the end of a chunk: the size of the next. */
static kelpie_outcome chunk_next(struct http *http, struct kelpie_error **err)
{
    char *line = klp_mem_alloc(LINE_MAX_BYTES);
    kelpie_outcome outcome = line_read(http, line, err);
    if (kelpie_is_ok(outcome) && line[0] == 0) /* the line end behind the chunk before */
        outcome = line_read(http, line, err);
    uint64_t size = 0;
    size_t digits = 0;
    for (; kelpie_is_ok(outcome) && digits < 15; digits++) {
        char c = line[digits];
        if (c >= '0' && c <= '9')
            size = size * 16 + (uint64_t)(c - '0');
        else if ((c | 32) >= 'a' && (c | 32) <= 'f')
            size = size * 16 + (uint64_t)((c | 32) - 'a' + 10);
        else
            break;
    }
    if (kelpie_is_ok(outcome) && (digits == 0 || (line[digits] != 0 && line[digits] != ';')))
        outcome = klp_fail(err, KELPIE_E_PROTOCOL, "a chunk of the daemon's answer is malformed");
    klp_mem_free(line);
    http->left = size;
    http->ended = size == 0;
    return outcome;
}

kelpie_outcome http_body_read(struct http *http, void *out, size_t capacity, size_t *out_size,
                              struct kelpie_error **err)
{
    *out_size = 0;
    if (!http->ended && http->chunks && http->left == 0)
        KLP_TRY(chunk_next(http, err));
    if (http->ended)
        return KLP_OK;
    if (http->in.size == 0) {
        bool ended = false;
        KLP_TRY(fill(http, &ended, err));
        if (ended && http->by_end)
            http->ended = true;
        else if (ended)
            return klp_unknown(err, "the daemon's answer was cut off");
        if (http->ended)
            return KLP_OK;
    }
    size_t size = http->in.size < capacity ? http->in.size : capacity;
    if (!http->by_end && size > http->left)
        size = (size_t)http->left;
    memcpy(out, http->in.data, size);
    klp_buf_drop_front(&http->in, size);
    *out_size = size;
    if (!http->by_end)
        http->left -= size;
    if (!http->by_end && !http->chunks && http->left == 0)
        http->ended = true;
    return KLP_OK;
}

kelpie_outcome http_body_all(struct http *http, struct klp_buf *out, struct kelpie_error **err)
{
    for (;;) {
        size_t got;
        void *place = klp_buf_reserve(out, READ_SIZE);
        if (place == NULL)
            break;
        KLP_TRY(http_body_read(http, place, READ_SIZE, &got, err));
        if (got == 0)
            return KLP_OK;
        klp_buf_grow(out, got);
    }
    KLP_REQUIRE(klp_buf_check(out, "the daemon's answer", err));
    return klp_fail(err, KELPIE_E_LIMIT, "the daemon's answer is too large");
}
