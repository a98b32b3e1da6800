/* SPDX-License-Identifier: Apache-2.0 */
/* Connections between the processes of one simulated host: channels of whole messages with handles,
 * streams of bytes. Both lie over one kind of connection with two sides. Peers: peer.c. */
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "sim.h"

#define MESSAGES_MAX 64           /* waiting at one side */
#define STREAM_MAX (64 * KLP_KIB) /* bytes waiting at one side */
#define BACKLOG_MAX 16

struct message {
    struct klp_list link;
    size_t size;
    size_t handle_count;
    struct klp_handle handles[KLP_KEEPER_HANDLES_MAX];
    uint8_t bytes[];
};

struct side {
    struct klp_list messages; /* to be received here */
    size_t message_count;
    uint8_t *bytes; /* STREAM_MAX; NULL until the first */
    size_t size;
    bool closed; /* shut down or closed from here */
    struct sim_source changed;
    struct sim_source *watcher;
};

struct sim_conn {
    unsigned refs;
    struct side sides[2];
};

/* ---- connections */

static struct sim_conn *conn_create(void)
{
    struct sim_conn *conn = calloc(1, sizeof(*conn));
    conn->refs = 2;
    for (unsigned i = 0; i < 2; i++) {
        klp_list_init(&conn->sides[i].messages);
        sim_source_init(&conn->sides[i].changed);
    }
    return conn;
}

static void message_free(struct klp_env *env, struct message *message)
{
    klp_list_remove(&message->link);
    for (size_t i = 0; i < message->handle_count; i++)
        klp_handle_close(env, message->handles[i]);
    free(message);
}

static void conn_wake(struct sim_conn *conn)
{
    for (unsigned i = 0; i < 2; i++) {
        sim_wake(&conn->sides[i].changed);
        if (conn->sides[i].watcher != NULL)
            sim_wake(conn->sides[i].watcher);
    }
}

static void side_close(struct sim_conn *conn, unsigned side)
{
    conn->sides[side].closed = true;
    conn_wake(conn);
}

static void conn_put(struct klp_env *env, struct sim_conn *conn, unsigned side)
{
    side_close(conn, side);
    conn->sides[side].watcher = NULL;
    if (--conn->refs > 0)
        return;
    for (unsigned i = 0; i < 2; i++) {
        KLP_LIST_EACH_SAFE (item, following, &conn->sides[i].messages) {
            message_free(env, KLP_CONTAINER(item, struct message, link));
        }
        free(conn->sides[i].bytes);
    }
    free(conn);
}

/* ---- listeners */

struct sim_listener {
    struct klp_listener base;
    struct sim_resource resource;
    struct klp_list link;
    struct sim_inode *inode;
    char *name;
    struct sim_conn *waiting[BACKLOG_MAX];
    size_t count;
    struct sim_source changed;
};

static struct sim_listener *listener_find(const struct klp_dir *dir, const char *name)
{
    KLP_LIST_EACH (item, &sim_world->listeners) {
        struct sim_listener *listener = KLP_CONTAINER(item, struct sim_listener, link);
        if (listener->inode == sim_dir_inode(dir) && strcmp(listener->name, name) == 0)
            return listener;
    }
    return NULL;
}

static void listener_release(struct sim_resource *resource)
{
    struct sim_listener *listener = KLP_CONTAINER(resource, struct sim_listener, resource);
    klp_list_remove(&listener->link);
    for (size_t i = 0; i < listener->count; i++)
        conn_put(listener->base.env, listener->waiting[i], 1);
    sim_inode_put(listener->inode);
}

static bool chan_listen(struct klp_dir *dir, const char *name, struct klp_listener **out,
                        struct kelpie_error **err)
{
    if (listener_find(dir, name) != NULL)
        return klp_refuse(err, KELPIE_E_EXISTS, "somebody listens on %s/%s", klp_dir_path(dir),
                          name);
    struct sim_listener *listener = KLP_NEW(struct sim_listener);
    listener->base.env = dir->env;
    listener->inode = sim_inode_share(sim_dir_inode(dir));
    listener->name = klp_mem_string(name);
    sim_source_init(&listener->changed);
    klp_list_append(&sim_world->listeners, &listener->link);
    sim_resource_add(&listener->resource, listener_release);
    *out = &listener->base;
    return true;
}

struct sim_chan {
    struct klp_chan base;
    struct sim_resource resource;
    struct sim_conn *conn;
    unsigned side;
};

static void chan_release(struct sim_resource *resource)
{
    struct sim_chan *chan = KLP_CONTAINER(resource, struct sim_chan, resource);
    conn_put(chan->base.env, chan->conn, chan->side);
}

static struct klp_chan *chan_make(struct klp_env *env, struct sim_conn *conn, unsigned side)
{
    struct sim_chan *chan = KLP_NEW(struct sim_chan);
    *chan = (struct sim_chan){.base.env = env, .conn = conn, .side = side};
    sim_resource_add(&chan->resource, chan_release);
    return &chan->base;
}

static kelpie_outcome chan_accept(const struct kelpie_op *op, struct klp_listener *base,
                                  struct klp_chan **out, struct kelpie_error **err)
{
    struct sim_listener *listener = (struct sim_listener *)base;
    while (listener->count == 0)
        KLP_TRY(sim_wait(op, &listener->changed, "waiting for a connection", err));
    *out = chan_make(op->env, listener->waiting[0], 1);
    listener->count--;
    memmove(listener->waiting, listener->waiting + 1,
            listener->count * sizeof(listener->waiting[0]));
    sim_wake(&listener->changed);
    return KLP_OK;
}

static void listener_close(struct klp_listener *base)
{
    struct sim_listener *listener = (struct sim_listener *)base;
    sim_resource_remove(&listener->resource);
    listener_release(&listener->resource);
    listener->count = 0;
    sim_wake(&listener->changed);
    klp_mem_free(listener->name);
    klp_mem_free(listener);
}

static kelpie_outcome chan_connect(const struct kelpie_op *op, struct klp_dir *dir,
                                   const char *name, struct klp_chan **out,
                                   struct kelpie_error **err)
{
    for (;;) {
        struct sim_listener *listener = listener_find(dir, name);
        if (listener == NULL)
            return klp_fail(err, KELPIE_E_UNREACHABLE, "nobody listens on %s/%s", klp_dir_path(dir),
                            name);
        if (listener->count < BACKLOG_MAX) {
            struct sim_conn *conn = conn_create();
            listener->waiting[listener->count++] = conn;
            sim_wake(&listener->changed);
            *out = chan_make(op->env, conn, 0);
            return KLP_OK;
        }
        KLP_TRY(klp_sleep_until(op, klp_boot_ns(op->env) + KLP_MS, err));
    }
}

/* ---- channels */

static kelpie_outcome chan_send(const struct kelpie_op *op, struct klp_chan *base, const void *data,
                                size_t size, const struct klp_handle *handles, size_t handle_count,
                                struct kelpie_error **err)
{
    struct sim_chan *chan = (struct sim_chan *)base;
    struct side *to = &chan->conn->sides[1 - chan->side];
    for (;;) {
        if (to->closed || chan->conn->sides[chan->side].closed)
            return klp_fail(err, KELPIE_E_UNREACHABLE,
                            "cannot send to the other process: it is gone");
        if (to->message_count < MESSAGES_MAX)
            break;
        KLP_TRY(sim_wait(op, &chan->conn->sides[chan->side].changed, "sending to another process",
                         err));
    }
    struct message *message = calloc(1, sizeof(*message) + size);
    message->size = size;
    memcpy(message->bytes, data, size);
    for (size_t i = 0; i < handle_count; i++) {
        KLP_IGNORE(klp_handle_copy(op->env, handles[i], &message->handles[i], NULL));
        sim_handle_give(message->handles[i], NULL);
    }
    message->handle_count = handle_count;
    klp_list_append(&to->messages, &message->link);
    to->message_count++;
    conn_wake(chan->conn);
    return KLP_OK;
}

static kelpie_outcome message_take(const struct kelpie_op *op, struct message *message, void *out,
                                   size_t capacity, size_t *out_size, struct klp_handle *handles,
                                   size_t *handle_count, struct kelpie_error **err)
{
    bool fits = message->size <= capacity && message->handle_count <= *handle_count;
    *handle_count = 0;
    if (fits) {
        memcpy(out, message->bytes, message->size);
        *out_size = message->size;
        *handle_count = message->handle_count;
        for (size_t i = 0; i < message->handle_count; i++) {
            handles[i] = message->handles[i];
            sim_handle_give(handles[i], sim_world->current->domain);
        }
        message->handle_count = 0; /* they are the receiver's now */
    }
    message_free(op->env, message);
    return fits ? KLP_OK : klp_fail(err, KELPIE_E_LIMIT, "a message or its handles do not fit");
}

static kelpie_outcome chan_receive(const struct kelpie_op *op, struct klp_chan *base, void *out,
                                   size_t capacity, size_t *out_size, struct klp_handle *handles,
                                   size_t *handle_count, struct kelpie_error **err)
{
    struct sim_chan *chan = (struct sim_chan *)base;
    struct side *here = &chan->conn->sides[chan->side];
    size_t none = 0;
    if (handle_count == NULL)
        handle_count = &none;
    while (here->message_count == 0) {
        if (here->closed || chan->conn->sides[1 - chan->side].closed)
            return klp_fail(err, KELPIE_E_UNREACHABLE, "the other process closed the channel");
        KLP_TRY(sim_wait(op, &here->changed, "waiting for another process", err));
    }
    struct message *message = KLP_CONTAINER(here->messages.next, struct message, link);
    here->message_count--;
    conn_wake(chan->conn);
    return message_take(op, message, out, capacity, out_size, handles, handle_count, err);
}

static void chan_shutdown(struct klp_chan *base)
{
    struct sim_chan *chan = (struct sim_chan *)base;
    side_close(chan->conn, chan->side);
}

static void chan_close(struct klp_chan *base)
{
    struct sim_chan *chan = (struct sim_chan *)base;
    sim_resource_remove(&chan->resource);
    conn_put(base->env, chan->conn, chan->side);
    klp_mem_free(chan);
}

/* ---- ends of byte streams */

void sim_stream_pair(struct sim_end *out_a, struct sim_end *out_b)
{
    struct sim_conn *conn = conn_create();
    *out_a = (struct sim_end){conn, 0};
    *out_b = (struct sim_end){conn, 1};
}

long sim_end_take(struct sim_end end, void *out, size_t capacity)
{
    struct side *here = &end.conn->sides[end.side];
    if (here->size == 0)
        return here->closed || end.conn->sides[1 - end.side].closed ? -1 : 0;
    size_t size = here->size < capacity ? here->size : capacity;
    memcpy(out, here->bytes, size);
    here->size -= size;
    memmove(here->bytes, here->bytes + size, here->size);
    conn_wake(end.conn);
    return (long)size;
}

size_t sim_end_give(struct sim_end end, const void *data, size_t size)
{
    struct side *to = &end.conn->sides[1 - end.side];
    if (to->closed || end.conn->sides[end.side].closed)
        return size; /* nobody will read it */
    size_t room = STREAM_MAX - to->size, part = size < room ? size : room;
    if (to->bytes == NULL)
        to->bytes = malloc(STREAM_MAX);
    KLP_ASSERT(to->bytes != NULL);
    if (part > 0) {
        memcpy(to->bytes + to->size, data, part);
        to->size += part;
        conn_wake(end.conn);
    }
    return part;
}

void sim_end_watch(struct sim_end end, struct sim_source *source)
{
    end.conn->sides[end.side].watcher = source;
}

void sim_end_close(struct sim_end *end)
{
    if (end->conn != NULL)
        conn_put(&sim_world->envs[0]->base, end->conn, end->side);
    end->conn = NULL;
}

/* ---- a handle of an end: several handles may name it, and its last close closes the end */

struct stream_object {
    unsigned refs;
    struct sim_end end;
};

struct klp_handle sim_stream_handle(struct sim_end end)
{
    struct stream_object *object = calloc(1, sizeof(*object));
    *object = (struct stream_object){1, end};
    return sim_handle_create(SIM_HANDLE_STREAM, object);
}

void *sim_stream_object_share(void *object)
{
    ((struct stream_object *)object)->refs++;
    return object;
}

void sim_stream_object_put(void *arg)
{
    struct stream_object *object = arg;
    if (--object->refs > 0)
        return;
    sim_end_close(&object->end);
    free(object);
}

/* ---- streams */

struct sim_stream {
    struct klp_stream base;
    struct klp_handle handle;
    struct sim_end end; /* borrowed from the handle's object */
};

static bool stream_open(struct klp_env *env, struct klp_handle handle, struct klp_stream **out,
                        struct kelpie_error **err)
{
    const struct stream_object *object = sim_handle_object(handle, SIM_HANDLE_STREAM);
    if (object == NULL) {
        klp_handle_close(env, handle);
        return klp_refuse(err, KELPIE_E_IO, "cannot open a stream: the handle is none");
    }
    struct sim_stream *stream = KLP_NEW(struct sim_stream);
    *stream = (struct sim_stream){.base.env = env, .handle = handle, .end = object->end};
    *out = &stream->base;
    return true;
}

static bool stream_is_shut(const struct sim_stream *stream)
{
    return stream->end.conn->sides[stream->end.side].closed;
}

static kelpie_outcome stream_read(const struct kelpie_op *op, struct klp_stream *base, void *out,
                                  size_t capacity, size_t *out_size, struct kelpie_error **err)
{
    struct sim_stream *stream = (struct sim_stream *)base;
    for (;;) {
        if (stream_is_shut(stream))
            return klp_fail(err, KELPIE_E_UNREACHABLE, "the stream was shut down");
        long got = sim_end_take(stream->end, out, capacity);
        if (got != 0) {
            *out_size = got > 0 ? (size_t)got : 0;
            return KLP_OK;
        }
        KLP_TRY(sim_wait(op, &stream->end.conn->sides[stream->end.side].changed,
                         "waiting for bytes of a stream", err));
    }
}

static kelpie_outcome stream_write(const struct kelpie_op *op, struct klp_stream *base,
                                   const void *data, size_t size, struct kelpie_error **err)
{
    struct sim_stream *stream = (struct sim_stream *)base;
    for (size_t at = 0; at < size;) {
        if (stream_is_shut(stream) || stream->end.conn->sides[1 - stream->end.side].closed)
            return klp_fail(err, KELPIE_E_UNREACHABLE, "the stream was shut down");
        at += sim_end_give(stream->end, (const uint8_t *)data + at, size - at);
        if (at < size)
            KLP_TRY(sim_wait(op, &stream->end.conn->sides[stream->end.side].changed,
                             "writing to a stream", err));
    }
    return KLP_OK;
}

static void stream_shutdown(struct klp_stream *base)
{
    struct sim_stream *stream = (struct sim_stream *)base;
    side_close(stream->end.conn, stream->end.side);
}

static void stream_close(struct klp_stream *base)
{
    klp_handle_close(base->env, ((struct sim_stream *)base)->handle);
    klp_mem_free(base);
}

const struct klp_chan_ops sim_chan_ops = {
    .listen = chan_listen,
    .accept = chan_accept,
    .listener_close = listener_close,
    .connect = chan_connect,
    .send = chan_send,
    .receive = chan_receive,
    .shutdown = chan_shutdown,
    .close = chan_close,
    .stream_open = stream_open,
    .stream_read = stream_read,
    .stream_write = stream_write,
    .stream_shutdown = stream_shutdown,
    .stream_close = stream_close,
    .peer_call = sim_peer_call,
};
