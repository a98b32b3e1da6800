/* SPDX-License-Identifier: Apache-2.0 */
/* Wrappers of env/memory.h and env/chan.h. */
#include "env/chan.h"

#include "base/limits.h"

void klp_handle_close(struct klp_env *env, struct klp_handle handle)
{
    if (!klp_handle_is_none(handle))
        env->ops->memory->close(env, handle);
}

bool klp_handle_copy(struct klp_env *env, struct klp_handle handle, struct klp_handle *out,
                     struct kelpie_error **err)
{
    return env->ops->memory->copy(env, handle, out, err);
}

bool klp_memory_create(struct klp_env *env, const char *name, uint64_t size, struct klp_handle *out,
                       struct kelpie_error **err)
{
    KLP_CHECK(klp_file_range_check(0, size, err));
    return env->ops->memory->create(env, name, size, out, err);
}

bool klp_memory_size(struct klp_env *env, struct klp_handle memory, uint64_t *out,
                     struct kelpie_error **err)
{
    return env->ops->memory->size(env, memory, out, err);
}

bool klp_memory_read(struct klp_env *env, struct klp_handle memory, uint64_t offset, void *out,
                     size_t size, struct kelpie_error **err)
{
    KLP_CHECK(klp_file_range_check(offset, size, err));
    return env->ops->memory->read(env, memory, offset, out, size, err);
}

bool klp_memory_write(struct klp_env *env, struct klp_handle memory, uint64_t offset,
                      const void *data, size_t size, struct kelpie_error **err)
{
    KLP_CHECK(klp_file_range_check(offset, size, err));
    return env->ops->memory->write(env, memory, offset, data, size, err);
}

bool klp_memory_next(struct klp_env *env, struct klp_handle memory, uint64_t offset,
                     uint64_t *out_offset, uint64_t *out_size, struct kelpie_error **err)
{
    KLP_CHECK(klp_file_range_check(offset, 0, err));
    return env->ops->memory->next(env, memory, offset, out_offset, out_size, err);
}

bool klp_memory_seal(struct klp_env *env, struct klp_handle memory, struct kelpie_error **err)
{
    return env->ops->memory->seal(env, memory, err);
}

bool klp_memory_check(struct klp_env *env, struct klp_handle memory, uint64_t size,
                      struct kelpie_error **err)
{
    return env->ops->memory->check(env, memory, size, err);
}

bool klp_listener_open(struct klp_dir *dir, const char *name, struct klp_listener **out,
                       struct kelpie_error **err)
{
    KLP_CHECK(klp_file_name_check(name, err));
    return dir->env->ops->chan->listen(dir, name, out, err);
}

kelpie_outcome klp_listener_accept(const struct kelpie_op *op, struct klp_listener *listener,
                                   struct klp_chan **out, struct kelpie_error **err)
{
    return op->env->ops->chan->accept(op, listener, out, err);
}

void klp_listener_close(struct klp_listener *listener)
{
    if (listener != NULL)
        listener->env->ops->chan->listener_close(listener);
}

kelpie_outcome klp_chan_connect(const struct kelpie_op *op, struct klp_dir *dir, const char *name,
                                struct klp_chan **out, struct kelpie_error **err)
{
    KLP_REQUIRE(klp_file_name_check(name, err));
    return op->env->ops->chan->connect(op, dir, name, out, err);
}

kelpie_outcome klp_chan_send(const struct kelpie_op *op, struct klp_chan *chan, const void *data,
                             size_t size, const struct klp_handle *handles, size_t handle_count,
                             struct kelpie_error **err)
{
    if (size == 0) /* the receiver would take it for the end */
        return klp_fail(err, KELPIE_E_INVALID, "cannot send a message of no bytes");
    if (handle_count > KLP_KEEPER_HANDLES_MAX)
        return klp_fail(err, KELPIE_E_LIMIT, "cannot send %zu handles: a message carries %d",
                        handle_count, KLP_KEEPER_HANDLES_MAX);
    return op->env->ops->chan->send(op, chan, data, size, handles, handle_count, err);
}

kelpie_outcome klp_chan_receive(const struct kelpie_op *op, struct klp_chan *chan, void *out,
                                size_t capacity, size_t *out_size, struct klp_handle *handles,
                                size_t *handle_count, struct kelpie_error **err)
{
    return op->env->ops->chan->receive(op, chan, out, capacity, out_size, handles, handle_count,
                                       err);
}

void klp_chan_shutdown(struct klp_chan *chan)
{
    chan->env->ops->chan->shutdown(chan);
}

void klp_chan_close(struct klp_chan *chan)
{
    if (chan != NULL)
        chan->env->ops->chan->close(chan);
}

bool klp_stream_open(struct klp_env *env, struct klp_handle handle, struct klp_stream **out,
                     struct kelpie_error **err)
{
    return env->ops->chan->stream_open(env, handle, out, err);
}

kelpie_outcome klp_stream_read(const struct kelpie_op *op, struct klp_stream *stream, void *out,
                               size_t capacity, size_t *out_size, struct kelpie_error **err)
{
    return op->env->ops->chan->stream_read(op, stream, out, capacity, out_size, err);
}

kelpie_outcome klp_stream_write(const struct kelpie_op *op, struct klp_stream *stream,
                                const void *data, size_t size, struct kelpie_error **err)
{
    return op->env->ops->chan->stream_write(op, stream, data, size, err);
}

void klp_stream_shutdown(struct klp_stream *stream)
{
    stream->env->ops->chan->stream_shutdown(stream);
}

void klp_stream_close(struct klp_stream *stream)
{
    if (stream != NULL)
        stream->env->ops->chan->stream_close(stream);
}

kelpie_outcome klp_peer_call(const struct kelpie_op *op, const char *endpoint, const char *method,
                             const char *path, struct klp_bytes body, int *out_status,
                             struct klp_buf *out_body, struct kelpie_error **err)
{
    return op->env->ops->chan->peer_call(op, endpoint, method, path, body, out_status, out_body,
                                         err);
}
