/* SPDX-License-Identifier: Apache-2.0 */
/* Channels: SEQPACKET sockets with descriptors beside the message, non-blocking: waiting is
 * klp_posix_wait's, so that deadlines and cancels hold everywhere. Names: socket.c. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fmt.h"
#include "base/limits.h"
#include "env/posix/inside.h"

#define CONNECT_PAUSE_NS (10 * KLP_MS) /* between tries while the backlog is full */

struct posix_listener {
    struct klp_listener base;
    int fd, lock_fd, dir_fd;
    char *name;
};

struct posix_chan {
    struct klp_chan base;
    int fd;
};

/* ---- listeners */

static bool posix_listen(struct klp_dir *dir, const char *name, struct klp_listener **out,
                         struct kelpie_error **err)
{
    int dir_fd = fcntl(klp_dir_fd(dir), F_DUPFD_CLOEXEC, 3), fd = -1;
    if (dir_fd < 0)
        return klp_posix_refuse(err, errno, "cannot listen on %s/%s", klp_dir_path(dir), name);
    char *path = klp_text("%s/%s", klp_dir_path(dir), name);
    struct posix_place place = {.dir_fd = dir_fd, .name = name, .path = path};
    /* Held as long as the listener: a live one is known without connecting to it. */
    int lock_fd = klp_posix_place_lock(&place, false, err);
    if (lock_fd >= 0 && !klp_posix_place_listen(&place, SOCK_SEQPACKET, &fd, err))
        klp_posix_place_unlock(&place, lock_fd);
    klp_mem_free(path);
    if (fd < 0) {
        close(dir_fd);
        return false;
    }
    struct posix_listener *listener = KLP_NEW(struct posix_listener);
    *listener = (struct posix_listener){
        .base.env = klp_dir_env(dir), .fd = fd, .lock_fd = lock_fd, .dir_fd = dir_fd};
    listener->name = klp_mem_string(name);
    *out = &listener->base;
    return true;
}

static struct klp_chan *chan_create(struct klp_env *env, int fd)
{
    struct posix_chan *chan = KLP_NEW(struct posix_chan);
    *chan = (struct posix_chan){.base.env = env, .fd = fd};
    return &chan->base;
}

static kelpie_outcome posix_accept(const struct kelpie_op *op, struct klp_listener *base,
                                   struct klp_chan **out, struct kelpie_error **err)
{
    struct posix_listener *listener = (struct posix_listener *)base;
    for (;;) {
        int fd = accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd >= 0) {
            *out = chan_create(op->env, fd);
            return KLP_OK;
        }
        if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
            return klp_posix_fail(err, errno, "cannot accept on %s", listener->name);
        KLP_TRY(klp_posix_wait(op, listener->fd, POLLIN, "waiting for a connection", err));
    }
}

static void posix_listener_close(struct klp_listener *base)
{
    struct posix_listener *listener = (struct posix_listener *)base;
    struct posix_place place = {.dir_fd = listener->dir_fd, .name = listener->name};
    unlinkat(listener->dir_fd, listener->name, 0);
    close(listener->fd);
    klp_posix_place_unlock(&place, listener->lock_fd);
    close(listener->dir_fd);
    klp_mem_free(listener->name);
    klp_mem_free(listener);
}

/* ---- channels */

static kelpie_outcome posix_connect(const struct kelpie_op *op, struct klp_dir *dir,
                                    const char *name, struct klp_chan **out,
                                    struct kelpie_error **err)
{
    struct posix_place place = {.dir_fd = klp_dir_fd(dir), .name = name};
    int fd = -1, error;
    while ((error = klp_posix_place_connect(&place, SOCK_SEQPACKET, &fd)) == EAGAIN) {
        /* The backlog is full, and no descriptor tells when it is not. */
        KLP_IGNORE(klp_posix_sleep_until(op, klp_boot_ns(op->env) + CONNECT_PAUSE_NS, NULL));
        KLP_TRY(klp_op_check(op, "connecting to another process", err));
    }
    if (error == 0) {
        *out = chan_create(op->env, fd);
        return KLP_OK;
    }
    char *path = klp_text("%s/%s", klp_dir_path(dir), name);
    KLP_IGNORE(klp_posix_connect_refuse(err, error, path));
    klp_mem_free(path);
    return (kelpie_outcome){KELPIE_FAIL};
}

union control {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(KLP_KEEPER_HANDLES_MAX * sizeof(int))];
};

static kelpie_outcome posix_send(const struct kelpie_op *op, struct klp_chan *base,
                                 const void *data, size_t size, const struct klp_handle *handles,
                                 size_t handle_count, struct kelpie_error **err)
{
    struct posix_chan *chan = (struct posix_chan *)base;
    KLP_ASSERT(handle_count <= KLP_KEEPER_HANDLES_MAX);
    struct iovec part = {(void *)(uintptr_t)data, size};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    union control control;
    memset(&control, 0, sizeof(control));
    if (handle_count > 0) {
        int fds[KLP_KEEPER_HANDLES_MAX];
        for (size_t i = 0; i < handle_count; i++)
            fds[i] = klp_handle_fd(handles[i]);
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE(handle_count * sizeof(int));
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(handle_count * sizeof(int));
        memcpy(CMSG_DATA(header), fds, handle_count * sizeof(int));
    }
    for (;;) {
        if (sendmsg(chan->fd, &message, MSG_NOSIGNAL) >= 0)
            return KLP_OK;
        if (errno != EAGAIN && errno != EINTR)
            return klp_posix_fail(err, errno, "cannot send to the other process");
        KLP_TRY(klp_posix_wait(op, chan->fd, POLLOUT, "sending to another process", err));
    }
}

/* Takes the descriptors out of a message; closes those that do not fit. Returns false if any did
 * not. */
static bool control_take(struct msghdr *message, struct klp_handle *handles, size_t *handle_count)
{
    size_t capacity = *handle_count;
    bool fits = true;
    *handle_count = 0;
    for (struct cmsghdr *at = CMSG_FIRSTHDR(message); at != NULL; at = CMSG_NXTHDR(message, at)) {
        if (at->cmsg_level != SOL_SOCKET || at->cmsg_type != SCM_RIGHTS)
            continue;
        size_t count = (at->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(at) + i * sizeof(int), sizeof(int));
            if (*handle_count < capacity) {
                handles[(*handle_count)++] = klp_handle_from_fd(fd);
            } else {
                close(fd);
                fits = false;
            }
        }
    }
    return fits;
}

static kelpie_outcome message_take(struct klp_env *env, struct msghdr *message, ssize_t size,
                                   size_t *out_size, struct klp_handle *handles,
                                   size_t *handle_count, struct kelpie_error **err)
{
    bool fits = control_take(message, handles, handle_count);
    if (fits && (message->msg_flags & (MSG_TRUNC | MSG_CTRUNC)) == 0 && size > 0) {
        *out_size = (size_t)size;
        return KLP_OK;
    }
    for (size_t i = 0; i < *handle_count; i++)
        klp_handle_close(env, handles[i]);
    *handle_count = 0;
    if (size == 0)
        return klp_fail(err, KELPIE_E_UNREACHABLE, "the other process closed the channel");
    return klp_fail(err, KELPIE_E_LIMIT, "a message or its handles do not fit");
}

static kelpie_outcome posix_receive(const struct kelpie_op *op, struct klp_chan *base, void *out,
                                    size_t capacity, size_t *out_size, struct klp_handle *handles,
                                    size_t *handle_count, struct kelpie_error **err)
{
    struct posix_chan *chan = (struct posix_chan *)base;
    size_t none = 0;
    if (handle_count == NULL)
        handle_count = &none;
    for (;;) {
        union control control;
        struct iovec part = {out, capacity};
        struct msghdr message = {.msg_iov = &part,
                                 .msg_iovlen = 1,
                                 .msg_control = control.bytes,
                                 .msg_controllen = sizeof(control.bytes)};
        ssize_t size = recvmsg(chan->fd, &message, MSG_CMSG_CLOEXEC);
        if (size >= 0)
            return message_take(op->env, &message, size, out_size, handles, handle_count, err);
        if (errno != EAGAIN && errno != EINTR)
            return klp_posix_fail(err, errno, "cannot receive from the other process");
        KLP_TRY(klp_posix_wait(op, chan->fd, POLLIN, "waiting for another process", err));
    }
}

static void posix_shutdown(struct klp_chan *base)
{
    shutdown(((struct posix_chan *)base)->fd, SHUT_RDWR);
}

static void posix_chan_close(struct klp_chan *base)
{
    close(((struct posix_chan *)base)->fd);
    klp_mem_free(base);
}

const struct klp_chan_ops klp_posix_chan_ops = {
    .listen = posix_listen,
    .accept = posix_accept,
    .listener_close = posix_listener_close,
    .connect = posix_connect,
    .send = posix_send,
    .receive = posix_receive,
    .shutdown = posix_shutdown,
    .close = posix_chan_close,
    .stream_open = klp_posix_stream_open,
    .stream_read = klp_posix_stream_read,
    .stream_write = klp_posix_stream_write,
    .stream_shutdown = klp_posix_stream_shutdown,
    .stream_close = klp_posix_stream_close,
    .peer_call = klp_posix_peer_call,
};
