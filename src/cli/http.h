/* SPDX-License-Identifier: Apache-2.0 */
/* A small HTTP/1.1 client over a connected Unix socket: one request a connection, bodies by length
 * or in chunks, Upgrade. The answer is untrusted: headers are bounded, bodies by their reader. */
#ifndef KLP_CLI_HTTP_H
#define KLP_CLI_HTTP_H

#include "base/buf.h"
#include "base/limits.h"
#include "format/record.h"

#define HTTP_HEADER_MAX (32 * KLP_KIB)

struct http_request {
    const char *method, *path; /* the path escaped, with its query */
    const char *key;           /* Idempotency-Key; NULL = none */
    const char *upgrade;       /* NULL = none */
    const char *type;          /* of the body; NULL = application/json */
    struct klp_bytes body;
    bool chunked; /* the body follows by http_body_write */
};

struct http {
    int fd;               /* owned; -1 = closed. Non-blocking */
    uint64_t deadline_ns; /* CLOCK_BOOTTIME; UINT64_MAX = none */
    uint64_t timeout_ms;  /* what the deadline came from, for the error */
    bool sent;            /* the whole request went out: from here on its outcome may be unknown */
    int status;
    char endpoint[KLP_ENDPOINT_SIZE]; /* Kelpie-Endpoint */
    struct klp_buf in;                /* read and not yet used */
    /* of the answer's body */
    bool chunks, ended, by_end;
    uint64_t left; /* bytes of the body, or of the chunk at hand */
};

/* Takes the descriptor over. */
void http_init(struct http *http, int fd, uint64_t timeout_ms);
void http_finish(struct http *http);
KELPIE_MUST_USE kelpie_outcome http_send(struct http *http, const struct http_request *request,
                                         struct kelpie_error **err);
/* One chunk; size 0 ends the body. *out_gone: the server answered before the end and reads no more.
 */
KELPIE_MUST_USE kelpie_outcome http_body_write(struct http *http, const void *data, size_t size,
                                               bool *out_gone, struct kelpie_error **err);
/* Status and headers. An interim 100 is passed over. */
KELPIE_MUST_USE kelpie_outcome http_answer(struct http *http, struct kelpie_error **err);
/* Some of the body; *out_size 0 = its end. */
KELPIE_MUST_USE kelpie_outcome http_body_read(struct http *http, void *out, size_t capacity,
                                              size_t *out_size, struct kelpie_error **err);
/* All of it, bounded by the buffer's own limit. */
KELPIE_MUST_USE kelpie_outcome http_body_all(struct http *http, struct klp_buf *out,
                                             struct kelpie_error **err);
/* Waits until fd is ready for `events` or the deadline passes. */
KELPIE_MUST_USE kelpie_outcome http_wait(const struct http *http, short events,
                                         struct kelpie_error **err);
uint64_t http_now_ns(void);

#endif
