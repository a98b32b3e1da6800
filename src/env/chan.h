/* SPDX-License-Identifier: Apache-2.0 */
/* Talking to other processes and nodes. A channel carries whole messages and handles between two
 * processes of one host (a SEQPACKET socket); a stream carries bytes (to a guest); a peer is
 * another node, asked by HTTP. Every wait has the op's deadline and wakes on cancel. */
#ifndef KLP_ENV_CHAN_H
#define KLP_ENV_CHAN_H

#include "env/file.h"
#include "env/memory.h"

/* ---- channels. One task may receive while others send. */
struct klp_chan;
struct klp_listener;

/* A socket `name` in `dir`; a stale one is replaced, a live one is EXISTS. Mode 0600. */
KELPIE_MUST_USE bool klp_listener_open(struct klp_dir *dir, const char *name,
                                       struct klp_listener **out, struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome klp_listener_accept(const struct kelpie_op *op,
                                                   struct klp_listener *listener,
                                                   struct klp_chan **out,
                                                   struct kelpie_error **err);
void klp_listener_close(struct klp_listener *listener); /* removes the name */
/* UNREACHABLE when nobody listens. */
KELPIE_MUST_USE kelpie_outcome klp_chan_connect(const struct kelpie_op *op, struct klp_dir *dir,
                                                const char *name, struct klp_chan **out,
                                                struct kelpie_error **err);
/* Handles stay the caller's. UNREACHABLE when the other side is gone (nothing was delivered). */
KELPIE_MUST_USE kelpie_outcome klp_chan_send(const struct kelpie_op *op, struct klp_chan *chan,
                                             const void *data, size_t size,
                                             const struct klp_handle *handles, size_t handle_count,
                                             struct kelpie_error **err);
/* One message. LIMIT when it is larger than the buffer or carries more handles than *handle_count
 * (nothing is delivered, nothing leaks). UNREACHABLE at the end. Received handles are the caller's.
 */
KELPIE_MUST_USE kelpie_outcome klp_chan_receive(const struct kelpie_op *op, struct klp_chan *chan,
                                                void *out, size_t capacity, size_t *out_size,
                                                struct klp_handle *handles, size_t *handle_count,
                                                struct kelpie_error **err);
/* Ends both directions: waiting calls of other tasks end with UNREACHABLE. The chan stays to be
 * closed. */
void klp_chan_shutdown(struct klp_chan *chan);
void klp_chan_close(struct klp_chan *chan);

/* ---- streams. One task may read while one other writes. */
struct klp_stream;
/* Takes the handle over, also on failure. */
KELPIE_MUST_USE bool klp_stream_open(struct klp_env *env, struct klp_handle handle,
                                     struct klp_stream **out, struct kelpie_error **err);
/* 1..capacity bytes; 0 = the other side closed. */
KELPIE_MUST_USE kelpie_outcome klp_stream_read(const struct kelpie_op *op,
                                               struct klp_stream *stream, void *out,
                                               size_t capacity, size_t *out_size,
                                               struct kelpie_error **err);
/* All of it, or an error: UNREACHABLE, TIMEOUT, CANCELLED (a part may have been sent). */
KELPIE_MUST_USE kelpie_outcome klp_stream_write(const struct kelpie_op *op,
                                                struct klp_stream *stream, const void *data,
                                                size_t size, struct kelpie_error **err);
void klp_stream_shutdown(struct klp_stream *stream); /* as klp_chan_shutdown */
void klp_stream_close(struct klp_stream *stream);

/* ---- peers. endpoint: as the node's record has it ("unix:PATH", "https://..."). body: JSON or
 * empty. OK = an answer came, whatever its HTTP status; FAIL (UNREACHABLE) = nothing was delivered;
 * UNKNOWN = it may have been delivered. */
KELPIE_MUST_USE kelpie_outcome klp_peer_call(const struct kelpie_op *op, const char *endpoint,
                                             const char *method, const char *path,
                                             struct klp_bytes body, int *out_status,
                                             struct klp_buf *out_body, struct kelpie_error **err);

KLP_AUTO_DEFINE(listener, struct klp_listener *, klp_listener_close)
KLP_AUTO_DEFINE(chan, struct klp_chan *, klp_chan_close)
KLP_AUTO_DEFINE(stream, struct klp_stream *, klp_stream_close)

/* ---- for implementations only. */
struct klp_listener {
    struct klp_env *env;
};
struct klp_chan {
    struct klp_env *env;
};
struct klp_stream {
    struct klp_env *env;
};
struct klp_chan_ops {
    bool (*listen)(struct klp_dir *, const char *, struct klp_listener **, struct kelpie_error **);
    kelpie_outcome (*accept)(const struct kelpie_op *, struct klp_listener *, struct klp_chan **,
                             struct kelpie_error **);
    void (*listener_close)(struct klp_listener *);
    kelpie_outcome (*connect)(const struct kelpie_op *, struct klp_dir *, const char *,
                              struct klp_chan **, struct kelpie_error **);
    kelpie_outcome (*send)(const struct kelpie_op *, struct klp_chan *, const void *, size_t,
                           const struct klp_handle *, size_t, struct kelpie_error **);
    kelpie_outcome (*receive)(const struct kelpie_op *, struct klp_chan *, void *, size_t, size_t *,
                              struct klp_handle *, size_t *, struct kelpie_error **);
    void (*shutdown)(struct klp_chan *);
    void (*close)(struct klp_chan *);
    bool (*stream_open)(struct klp_env *, struct klp_handle, struct klp_stream **,
                        struct kelpie_error **);
    kelpie_outcome (*stream_read)(const struct kelpie_op *, struct klp_stream *, void *, size_t,
                                  size_t *, struct kelpie_error **);
    kelpie_outcome (*stream_write)(const struct kelpie_op *, struct klp_stream *, const void *,
                                   size_t, struct kelpie_error **);
    void (*stream_shutdown)(struct klp_stream *);
    void (*stream_close)(struct klp_stream *);
    kelpie_outcome (*peer_call)(const struct kelpie_op *, const char *endpoint, const char *method,
                                const char *path, struct klp_bytes body, int *out_status,
                                struct klp_buf *out_body, struct kelpie_error **err);
};

#endif
