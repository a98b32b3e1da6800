/* SPDX-License-Identifier: Apache-2.0 */
/* Channels: SEQPACKET sockets with descriptors beside the message. Streams: stream sockets. All are
 * non-blocking; waiting is klp_posix_wait's, so that deadlines and cancels hold everywhere. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/fmt.h"
#include "base/limits.h"
#include "env/posix/inside.h"

#define BACKLOG 64

struct posix_listener {
    struct klp_listener base;
    int fd, lock_fd, dir_fd;
    char *name;
};

struct posix_chan {
    struct klp_chan base;
    int fd;
};

struct posix_stream {
    struct klp_stream base;
    int fd; /* a socket: shutdown must wake a waiting read */
};

/* ---- addresses. sun_path is short: a long path goes through its folder's descriptor. */

static bool address_fill(const char *path, struct sockaddr_un *address, int *folder_fd,
                         struct kelpie_error **err)
{
    *address = (struct sockaddr_un){.sun_family = AF_UNIX};
    *folder_fd = -1;
    size_t size = strlen(path);
    if (size < sizeof(address->sun_path)) {
        memcpy(address->sun_path, path, size + 1);
        return true;
    }
    const char *slash = strrchr(path, '/');
    if (slash == NULL || strlen(slash) > 60)
        return klp_refuse(err, KELPIE_E_INVALID, "socket path %s is too long", path);
    char *folder = klp_mem_string_n(path, (size_t)(slash - path));
    *folder_fd = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
    klp_mem_free(folder);
    if (*folder_fd < 0)
        return klp_posix_refuse(err, errno, "cannot open the folder of %s", path);
    klp_format(address->sun_path, sizeof(address->sun_path), "/proc/self/fd/%d%s", *folder_fd,
               slash);
    return true;
}

static int socket_open(int type)
{
    return socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
}

/* connect or bind; returns errno. */
static int address_use(int (*use)(int, const struct sockaddr *, socklen_t), int fd,
                       const char *path, struct kelpie_error **err, bool *out_told)
{
    struct sockaddr_un address;
    int folder_fd;
    *out_told = !address_fill(path, &address, &folder_fd, err);
    if (*out_told)
        return EINVAL;
    int error = use(fd, (struct sockaddr *)&address, sizeof(address)) == 0 ? 0 : errno;
    if (folder_fd >= 0)
        close(folder_fd);
    return error;
}

bool klp_posix_unix_connect(const char *path, int type, int *out_fd, struct kelpie_error **err)
{
    int fd = socket_open(type);
    if (fd < 0)
        return klp_posix_refuse(err, errno, "cannot make a socket");
    bool told;
    int error = address_use(connect, fd, path, err, &told);
    if (error == 0) {
        *out_fd = fd;
        return true;
    }
    close(fd);
    if (told)
        return false;
    if (error == ENOENT || error == ENOTDIR)
        error = ECONNREFUSED; /* no socket is nobody listening */
    return klp_posix_refuse(err, error, "cannot connect to %s", path);
}

static bool socket_is_live(const char *path, int type)
{
    int fd;
    if (!klp_posix_unix_connect(path, type, &fd, NULL))
        return false;
    close(fd);
    return true;
}

bool klp_posix_unix_listen(const char *path, int type, int *out_fd, struct kelpie_error **err)
{
    int fd = socket_open(type);
    if (fd < 0)
        return klp_posix_refuse(err, errno, "cannot make a socket");
    bool told = false;
    mode_t before = umask(0177);
    int error = address_use(bind, fd, path, err, &told);
    if (error == EADDRINUSE && socket_is_live(path, type)) {
        umask(before);
        close(fd);
        return klp_refuse(err, KELPIE_E_EXISTS, "socket %s is in use", path);
    }
    if (error == EADDRINUSE && unlink(path) == 0)
        error = address_use(bind, fd, path, err, &told);
    umask(before);
    if (error == 0 && listen(fd, BACKLOG) == 0) {
        *out_fd = fd;
        return true;
    }
    error = error != 0 ? error : errno;
    close(fd);
    return told ? false : klp_posix_refuse(err, error, "cannot listen on %s", path);
}

/* ---- listeners */

/* Two that start at once must not both take the stale socket away: the one who holds NAME.lock may.
 */
static int lock_take(int dir_fd, const char *name, const char *path, struct kelpie_error **err)
{
    char *lock_name = klp_text("%s.lock", name);
    int fd = openat(dir_fd, lock_name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    klp_mem_free(lock_name);
    if (fd < 0) {
        KLP_IGNORE(klp_posix_refuse(err, errno, "cannot open the lock of %s", path));
        return -1;
    }
    if (flock(fd, LOCK_EX | LOCK_NB) == 0)
        return fd;
    KLP_IGNORE(klp_refuse(err, KELPIE_E_EXISTS, "socket %s is in use", path));
    close(fd);
    return -1;
}

static bool posix_listen(struct klp_dir *dir, const char *name, struct klp_listener **out,
                         struct kelpie_error **err)
{
    char *path = klp_text("%s/%s", klp_dir_path(dir), name);
    int fd = -1, lock_fd = lock_take(klp_dir_fd(dir), name, path, err);
    bool fine = lock_fd >= 0 && klp_posix_unix_listen(path, SOCK_SEQPACKET, &fd, err);
    klp_mem_free(path);
    if (!fine) {
        if (lock_fd >= 0)
            close(lock_fd);
        return false;
    }
    struct posix_listener *listener = KLP_NEW(struct posix_listener);
    *listener = (struct posix_listener){.base.env = klp_dir_env(dir), .fd = fd, .lock_fd = lock_fd};
    listener->dir_fd = fcntl(klp_dir_fd(dir), F_DUPFD_CLOEXEC, 3);
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
    char *lock_name = klp_text("%s.lock", listener->name);
    unlinkat(listener->dir_fd, listener->name, 0);
    unlinkat(listener->dir_fd, lock_name, 0);
    klp_mem_free(lock_name);
    close(listener->fd);
    close(listener->lock_fd);
    close(listener->dir_fd);
    klp_mem_free(listener->name);
    klp_mem_free(listener);
}

/* ---- channels */

static kelpie_outcome posix_connect(const struct kelpie_op *op, struct klp_dir *dir,
                                    const char *name, struct klp_chan **out,
                                    struct kelpie_error **err)
{
    char *path = klp_text("%s/%s", klp_dir_path(dir), name);
    int fd;
    bool fine = klp_posix_unix_connect(path, SOCK_SEQPACKET, &fd, err);
    klp_mem_free(path);
    KLP_REQUIRE(fine);
    *out = chan_create(op->env, fd);
    return KLP_OK;
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
    KLP_ASSERT(handle_count <= KLP_KEEPER_HANDLES_MAX && size > 0);
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

/* ---- streams */

static bool posix_stream_open(struct klp_env *env, struct klp_handle handle,
                              struct klp_stream **out, struct kelpie_error **err)
{
    int fd = klp_handle_fd(handle), flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0) {
        int error = errno;
        close(fd);
        return klp_posix_refuse(err, error, "cannot open a stream");
    }
    struct posix_stream *stream = KLP_NEW(struct posix_stream);
    *stream = (struct posix_stream){.base.env = env, .fd = fd};
    *out = &stream->base;
    return true;
}

static kelpie_outcome posix_stream_read(const struct kelpie_op *op, struct klp_stream *base,
                                        void *out, size_t capacity, size_t *out_size,
                                        struct kelpie_error **err)
{
    struct posix_stream *stream = (struct posix_stream *)base;
    for (;;) {
        ssize_t got = read(stream->fd, out, capacity);
        if (got >= 0 || errno == ECONNRESET || errno == EIO) {
            *out_size = got > 0 ? (size_t)got : 0;
            return KLP_OK;
        }
        if (errno != EAGAIN && errno != EINTR)
            return klp_posix_fail(err, errno, "cannot read a stream");
        KLP_TRY(klp_posix_wait(op, stream->fd, POLLIN, "waiting for bytes of a stream", err));
    }
}

static kelpie_outcome posix_stream_write(const struct kelpie_op *op, struct klp_stream *base,
                                         const void *data, size_t size, struct kelpie_error **err)
{
    struct posix_stream *stream = (struct posix_stream *)base;
    for (size_t at = 0; at < size;) {
        ssize_t put = write(stream->fd, (const char *)data + at, size - at);
        if (put >= 0) {
            at += (size_t)put;
            continue;
        }
        if (errno != EAGAIN && errno != EINTR)
            return klp_posix_fail(err, errno, "cannot write to a stream");
        KLP_TRY(klp_posix_wait(op, stream->fd, POLLOUT, "writing to a stream", err));
    }
    return KLP_OK;
}

static void posix_stream_shutdown(struct klp_stream *base)
{
    shutdown(((struct posix_stream *)base)->fd, SHUT_RDWR);
}

static void posix_stream_close(struct klp_stream *base)
{
    struct posix_stream *stream = (struct posix_stream *)base;
    close(stream->fd);
    klp_mem_free(stream);
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
    .stream_open = posix_stream_open,
    .stream_read = posix_stream_read,
    .stream_write = posix_stream_write,
    .stream_shutdown = posix_stream_shutdown,
    .stream_close = posix_stream_close,
    .peer_call = klp_posix_peer_call,
};
