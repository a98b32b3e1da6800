/* SPDX-License-Identifier: Apache-2.0 */
/* Small files of the guest's own, and where they lie for us: in a guest at their names, under
 * --test-root below that folder, and otherwise nowhere, so that a test never touches its host. */
#include "guest/guest.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fmt.h"

bool guest_system_path(const struct guest *g, const char *path, char out[KLP_PATH_MAX])
{
    if (g->options.root == NULL && !g->options.system)
        return false;
    const char *root = g->options.root != NULL ? g->options.root : "";
    return klp_format(out, KLP_PATH_MAX, "%s%s", root, path) < KLP_PATH_MAX;
}

ssize_t guest_file_read(const char *path, char *out, size_t capacity)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    ssize_t size = fd >= 0 ? read(fd, out, capacity - 1) : -1;
    guest_close(&fd);
    if (size >= 0)
        out[size] = '\0';
    return size;
}

static bool write_whole(int fd, const void *data, size_t size)
{
    return fd >= 0 && write(fd, data, size) == (ssize_t)size && fsync(fd) == 0;
}

/* Readers see the old contents or the new ones. */
static bool file_replace(const char *path, const void *data, size_t size, unsigned mode)
{
    char next[KLP_PATH_MAX];
    if (klp_format(next, sizeof(next), "%s.kelpie-new", path) >= sizeof(next))
        return false;
    unlink(next);
    int fd = open(next, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
    bool fine = write_whole(fd, data, size) && fchmod(fd, mode) == 0 && rename(next, path) == 0;
    int error_number = errno;
    guest_close(&fd);
    if (!fine)
        unlink(next);
    errno = error_number;
    return fine;
}

static bool write_over(int fd, const void *data, size_t size)
{
    struct stat info;
    return fd >= 0 && fstat(fd, &info) == 0 && S_ISREG(info.st_mode) &&
           pwrite(fd, data, size, 0) == (ssize_t)size &&
           (info.st_size == (off_t)size || ftruncate(fd, (off_t)size) == 0);
}

/* A restored guest runs on cold caches, and under emulation every path through the kernel that was
 * not taken before costs a millisecond: so all of them take this one. */
bool guest_file_rewrite(const char *path, const void *data, size_t size, unsigned mode)
{
    int fd = open(path, O_WRONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    bool fine = write_over(fd, data, size);
    guest_close(&fd);
    return fine || file_replace(path, data, size, mode);
}

bool guest_hostname_set(const struct guest *g, const char *name, struct kelpie_error **err)
{
    char path[KLP_PATH_MAX], line[80], now[80];
    size_t size = strlen(name);
    if (size == 0 || size > 64)
        return klp_refuse(err, KELPIE_E_INVALID, "cannot set a host name of %zu bytes", size);
    if (g->options.system && sethostname(name, size) < 0)
        return klp_refuse(err, guest_errno_code(errno), "cannot set the host name '%s': %s", name,
                          strerror(errno));
    klp_format(line, sizeof(line), "%s\n", name);
    if (guest_system_path(g, "/etc/hostname", path) &&
        guest_file_read(path, now, sizeof(now)) >= 0 &&
        !guest_file_rewrite(path, line, size + 1, 0644) && errno != EROFS)
        return klp_refuse(err, guest_errno_code(errno), "cannot write '%s': %s", path,
                          strerror(errno));
    return true;
}
