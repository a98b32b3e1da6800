/* SPDX-License-Identifier: Apache-2.0 */
/* Opening what an archive names without ever leaving the folder it is meant for: part by part, each
 * a real directory, so that no link in the archive or on the disk is followed. The same promise as
 * openat2's RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS, and folders can be made on the way. */
#include "guest/guest.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FOLDER_FLAGS (O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)

static bool part_is_safe(const char *part, size_t size)
{
    return size <= NAME_MAX && !(size == 2 && part[0] == '.' && part[1] == '.');
}

static int part_open(int at_fd, const char *part, bool make)
{
    int fd = openat(at_fd, part, FOLDER_FLAGS);
    if (fd >= 0 || errno != ENOENT || !make)
        return fd;
    if (mkdirat(at_fd, part, 0755) < 0 && errno != EEXIST)
        return -1;
    return openat(at_fd, part, FOLDER_FLAGS);
}

static int beneath_refuse(struct kelpie_error **err, int error_number, const char *path)
{
    if (error_number == ELOOP || error_number == ENOTDIR)
        return klp_refuse(err, KELPIE_E_DENIED,
                          "cannot reach '%s': a part of the path is a link or no folder", path) -
               1;
    return klp_refuse(err, guest_errno_code(error_number), "cannot reach '%s': %s", path,
                      strerror(error_number)) -
           1;
}

int guest_beneath_parent(int base_fd, const char *path, bool make, const char **leaf,
                         struct kelpie_error **err)
{
    char part[NAME_MAX + 1];
    int fd = fcntl(base_fd, F_DUPFD_CLOEXEC, 0);
    const char *at = path;
    while (fd >= 0) {
        size_t size = strcspn(at, "/");
        if (at[size] == '\0')
            break;
        int next = -1;
        if (size == 0 || (size == 1 && at[0] == '.')) {
            at += size + 1;
            continue;
        }
        if (part_is_safe(at, size)) {
            memcpy(part, at, size);
            part[size] = '\0';
            next = part_open(fd, part, make);
        } else {
            errno = EACCES;
        }
        int error_number = errno;
        close(fd);
        errno = error_number;
        fd = next;
        at += size + 1;
    }
    if (fd >= 0 && !part_is_safe(at, strlen(at))) {
        close(fd);
        fd = -1;
        errno = EACCES;
    }
    if (fd < 0)
        return beneath_refuse(err, errno, path);
    *leaf = strcmp(at, ".") == 0 ? "" : at;
    return fd;
}

/* A path the host names itself: its links are followed. */
bool guest_make_folders(const char *path, struct kelpie_error **err)
{
    char made[KLP_PATH_MAX];
    size_t size = strlen(path);
    struct stat info;
    if (size >= sizeof(made))
        return klp_refuse(err, KELPIE_E_LIMIT, "cannot make a folder: its name is too long");
    memcpy(made, path, size + 1);
    for (size_t at = 1; at <= size; at++) {
        if (made[at] != '/' && made[at] != '\0')
            continue;
        made[at] = '\0';
        if (mkdir(made, 0755) < 0 && errno != EEXIST && errno != EROFS && errno != EACCES)
            break;
        if (at < size)
            made[at] = '/';
    }
    if (stat(path, &info) < 0)
        return klp_refuse(err, guest_errno_code(errno), "cannot make the folder '%s': %s", path,
                          strerror(errno));
    if (!S_ISDIR(info.st_mode))
        return klp_refuse(err, KELPIE_E_INVALID, "cannot use '%s': it is no folder", path);
    return true;
}
