/* SPDX-License-Identifier: Apache-2.0 */
/* Streams: sockets, pipes and terminals, non-blocking. shutdown(2) wakes whoever waits for a
 * socket; for the others an eventfd does. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "env/posix/inside.h"

struct posix_stream {
    struct klp_stream base;
    int fd;
    int end_fd; /* -1 for a socket */
    bool ended; /* atomic: klp_stream_shutdown was called */
};

static struct posix_stream *stream_inside(struct klp_stream *stream)
{
    return (struct posix_stream *)stream;
}

static bool stream_refuse(int fd, int error, struct kelpie_error **err)
{
    if (fd >= 0)
        close(fd);
    return klp_posix_refuse(err, error, "cannot open a stream");
}

bool klp_posix_stream_open(struct klp_env *env, struct klp_handle handle, struct klp_stream **out,
                           struct kelpie_error **err)
{
    int fd = klp_handle_fd(handle), flags = fcntl(fd, F_GETFL), end_fd = -1;
    struct stat facts;
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0 || fstat(fd, &facts) != 0)
        return stream_refuse(fd, errno, err);
    if (!S_ISSOCK(facts.st_mode) && (end_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) < 0)
        return stream_refuse(fd, errno, err);
    struct posix_stream *stream = KLP_NEW(struct posix_stream);
    *stream = (struct posix_stream){.base.env = env, .fd = fd, .end_fd = end_fd};
    *out = &stream->base;
    return true;
}

static bool stream_has_ended(struct posix_stream *stream)
{
    return __atomic_load_n(&stream->ended, __ATOMIC_SEQ_CST);
}

static kelpie_outcome fail_ended(struct kelpie_error **err)
{
    return klp_fail(err, KELPIE_E_UNREACHABLE, "the stream was shut down");
}

static kelpie_outcome stream_wait(const struct kelpie_op *op, struct posix_stream *stream,
                                  short events, const char *what, struct kelpie_error **err)
{
    struct pollfd polled[2] = {{stream->fd, events, 0}, {stream->end_fd, POLLIN, 0}};
    return klp_posix_poll(op, polled, 2, what, err);
}

kelpie_outcome klp_posix_stream_read(const struct kelpie_op *op, struct klp_stream *base, void *out,
                                     size_t capacity, size_t *out_size, struct kelpie_error **err)
{
    struct posix_stream *stream = stream_inside(base);
    for (;;) {
        ssize_t got = stream_has_ended(stream) ? 0 : read(stream->fd, out, capacity);
        int error = errno;
        if (got <= 0 && stream_has_ended(stream))
            return fail_ended(err);
        /* EIO: the other end of a terminal was closed. */
        if (got >= 0 || error == ECONNRESET || error == EIO) {
            *out_size = got > 0 ? (size_t)got : 0;
            return KLP_OK;
        }
        if (error != EAGAIN && error != EINTR)
            return klp_posix_fail(err, error, "cannot read a stream");
        KLP_TRY(stream_wait(op, stream, POLLIN, "waiting for bytes of a stream", err));
    }
}

static ssize_t stream_put(struct posix_stream *stream, const void *data, size_t size)
{
    if (stream->end_fd < 0)
        return send(stream->fd, data, size, MSG_NOSIGNAL);
    return write(stream->fd, data, size);
}

kelpie_outcome klp_posix_stream_write(const struct kelpie_op *op, struct klp_stream *base,
                                      const void *data, size_t size, struct kelpie_error **err)
{
    struct posix_stream *stream = stream_inside(base);
    for (size_t at = 0; at < size;) {
        if (stream_has_ended(stream))
            return fail_ended(err);
        ssize_t put = stream_put(stream, (const char *)data + at, size - at);
        if (put >= 0) {
            at += (size_t)put;
            /* A reader that keeps up never makes us wait: the op's end is looked at here as well.
             */
            if (at < size)
                KLP_TRY(klp_op_check(op, "writing to a stream", err));
            continue;
        }
        if (errno != EAGAIN && errno != EINTR)
            return klp_posix_fail(err, errno, "cannot write to a stream");
        KLP_TRY(stream_wait(op, stream, POLLOUT, "writing to a stream", err));
    }
    return KLP_OK;
}

void klp_posix_stream_shutdown(struct klp_stream *base)
{
    struct posix_stream *stream = stream_inside(base);
    __atomic_store_n(&stream->ended, true, __ATOMIC_SEQ_CST);
    uint64_t one = 1;
    if (stream->end_fd < 0)
        shutdown(stream->fd, SHUT_RDWR);
    else if (write(stream->end_fd, &one, sizeof(one)) < 0)
        KLP_ASSERT(errno == EAGAIN);
}

void klp_posix_stream_close(struct klp_stream *base)
{
    struct posix_stream *stream = stream_inside(base);
    close(stream->fd);
    if (stream->end_fd >= 0)
        close(stream->end_fd);
    klp_mem_free(stream);
}
