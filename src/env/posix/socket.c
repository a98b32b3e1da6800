/* SPDX-License-Identifier: Apache-2.0 */
/* Unix sockets by name: connecting, and listening where a dead process may have left its socket.
 * Only a socket that refuses connections is ever removed: never a file, never one that is merely
 * busy. */
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
#include "env/posix/inside.h"

#define BACKLOG 64
#define LOCK_TRIES 200 /* of a lock that others hold while they bind */
#define LOCK_PAUSE_MS 10

/* sun_path is short: a long path goes through its folder's descriptor. Returns an errno. */
static int address_fill(const struct posix_place *place, struct sockaddr_un *out)
{
    *out = (struct sockaddr_un){.sun_family = AF_UNIX};
    size_t size = place->is_direct
                      ? klp_format(out->sun_path, sizeof(out->sun_path), "%s", place->path)
                      : sizeof(out->sun_path);
    if (size >= sizeof(out->sun_path))
        size = klp_format(out->sun_path, sizeof(out->sun_path), "/proc/self/fd/%d/%s",
                          place->dir_fd, place->name);
    return size < sizeof(out->sun_path) ? 0 : ENAMETOOLONG;
}

/* Splits a path; `name` of the place points into it. */
static bool place_open(const char *path, struct posix_place *out, struct kelpie_error **err)
{
    const char *slash = strrchr(path, '/');
    const char *name = slash != NULL ? slash + 1 : path;
    if (name[0] == 0)
        return klp_refuse(err, KELPIE_E_INVALID, "'%s' is no path of a socket", path);
    char *folder = slash == NULL   ? klp_mem_string(".")
                   : slash == path ? klp_mem_string("/")
                                   : klp_mem_string_n(path, (size_t)(slash - path));
    int fd = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
    int error = errno;
    klp_mem_free(folder);
    if (fd < 0)
        return klp_posix_refuse(err, error, "cannot open the folder of socket %s", path);
    *out = (struct posix_place){.dir_fd = fd, .name = name, .path = path, .is_direct = true};
    return true;
}

static int socket_open(int type)
{
    return socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
}

int klp_posix_place_connect(const struct posix_place *place, int type, int *out_fd)
{
    struct sockaddr_un address;
    int error = address_fill(place, &address);
    if (error != 0)
        return error;
    int fd = socket_open(type);
    if (fd < 0)
        return errno;
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) != 0) {
        error = errno;
        close(fd);
        return error;
    }
    *out_fd = fd;
    return 0;
}

bool klp_posix_connect_refuse(struct kelpie_error **err, int error, const char *path)
{
    if (error == ENOENT || error == ENOTDIR)
        error = ECONNREFUSED; /* no socket is nobody listening */
    return klp_posix_refuse(err, error, "cannot connect to %s", path);
}

bool klp_posix_unix_connect(const char *path, int type, int *out_fd, struct kelpie_error **err)
{
    struct posix_place place;
    struct kelpie_error *why = NULL;
    if (!place_open(path, &place, &why)) {
        bool gone = klp_error_code(&why) == KELPIE_E_NOT_FOUND;
        if (!gone) {
            klp_error_move(err, &why);
            return false;
        }
        klp_error_clear(&why);
        return klp_posix_connect_refuse(err, ENOENT, path);
    }
    int error = klp_posix_place_connect(&place, type, out_fd);
    close(place.dir_fd);
    return error == 0 || klp_posix_connect_refuse(err, error, path);
}

/* ---- listening */

/* Only a refused connection proves that nobody listens: a full backlog answers EAGAIN, a socket of
 * another type EPROTOTYPE, and connecting to an ordinary file is refused as well. */
static bool place_is_stale(const struct posix_place *place, int type)
{
    struct stat facts;
    if (fstatat(place->dir_fd, place->name, &facts, AT_SYMLINK_NOFOLLOW) != 0)
        return errno == ENOENT;
    if (!S_ISSOCK(facts.st_mode))
        return false;
    int fd = -1, error = klp_posix_place_connect(place, type, &fd);
    if (error == 0)
        close(fd);
    return error == ECONNREFUSED;
}

static int place_bind(const struct posix_place *place, int fd)
{
    struct sockaddr_un address;
    int error = address_fill(place, &address);
    if (error != 0)
        return error;
    return bind(fd, (struct sockaddr *)&address, sizeof(address)) == 0 ? 0 : errno;
}

bool klp_posix_place_listen(const struct posix_place *place, int type, int *out_fd,
                            struct kelpie_error **err)
{
    int fd = socket_open(type);
    if (fd < 0)
        return klp_posix_refuse(err, errno, "cannot make a socket");
    /* The name takes the socket's own mode; umask would be that of every thread. */
    int error = fchmod(fd, 0600) == 0 ? place_bind(place, fd) : errno;
    if (error == EADDRINUSE && !place_is_stale(place, type)) {
        close(fd);
        return klp_refuse(err, KELPIE_E_EXISTS, "socket %s is in use", place->path);
    }
    if (error == EADDRINUSE)
        error = unlinkat(place->dir_fd, place->name, 0) == 0 || errno == ENOENT
                    ? place_bind(place, fd)
                    : errno;
    if (error == 0 && listen(fd, BACKLOG) != 0) {
        error = errno;
        unlinkat(place->dir_fd, place->name, 0);
    }
    if (error != 0) {
        close(fd);
        return klp_posix_refuse(err, error, "cannot listen on %s", place->path);
    }
    *out_fd = fd;
    return true;
}

/* Is the file that was locked still the one of that name? Its last holder may have removed it. */
static bool lock_is_current(int dir_fd, const char *lock_name, int fd)
{
    struct stat held, named;
    return fstat(fd, &held) == 0 && fstatat(dir_fd, lock_name, &named, AT_SYMLINK_NOFOLLOW) == 0 &&
           held.st_dev == named.st_dev && held.st_ino == named.st_ino;
}

/* One attempt: the descriptor, or -1 with errno (EWOULDBLOCK: held by another, or just removed). */
static int lock_try(int dir_fd, const char *lock_name)
{
    int fd = openat(dir_fd, lock_name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return -1;
    if (flock(fd, LOCK_EX | LOCK_NB) == 0) {
        if (lock_is_current(dir_fd, lock_name, fd))
            return fd;
        errno = EWOULDBLOCK;
    }
    int error = errno;
    close(fd);
    errno = error;
    return -1;
}

int klp_posix_place_lock(const struct posix_place *place, bool wait, struct kelpie_error **err)
{
    char *lock_name = klp_text("%s.lock", place->name);
    int fd = lock_try(place->dir_fd, lock_name), error = errno;
    for (int i = 0; wait && fd < 0 && error == EWOULDBLOCK && i < LOCK_TRIES; i++) {
        poll(NULL, 0, LOCK_PAUSE_MS);
        fd = lock_try(place->dir_fd, lock_name);
        error = errno;
    }
    klp_mem_free(lock_name);
    if (fd >= 0)
        return fd;
    if (error == EWOULDBLOCK)
        KLP_IGNORE(klp_refuse(err, KELPIE_E_EXISTS, "socket %s is in use", place->path));
    else
        KLP_IGNORE(klp_posix_refuse(err, error, "cannot open the lock of socket %s", place->path));
    return -1;
}

/* The explicit unlock also ends it for a child that was forked and has not called exec yet. */
void klp_posix_place_unlock(const struct posix_place *place, int lock_fd)
{
    char *lock_name = klp_text("%s.lock", place->name);
    unlinkat(place->dir_fd, lock_name, 0);
    klp_mem_free(lock_name);
    flock(lock_fd, LOCK_UN);
    close(lock_fd);
}

bool klp_posix_unix_listen(const char *path, int type, int *out_fd, struct kelpie_error **err)
{
    struct posix_place place;
    KLP_CHECK(place_open(path, &place, err));
    /* Two that start at once must not both find the socket stale, or one removes the other's. */
    int lock_fd = klp_posix_place_lock(&place, true, err);
    bool fine = lock_fd >= 0 && klp_posix_place_listen(&place, type, out_fd, err);
    if (lock_fd >= 0)
        klp_posix_place_unlock(&place, lock_fd);
    close(place.dir_fd);
    return fine;
}
