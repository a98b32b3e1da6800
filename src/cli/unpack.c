/* SPDX-License-Identifier: Apache-2.0 */
/* A tar stream from a guest, who may be hostile, into files below one folder: every name is opened
 * beneath the folder anew by the kernel (openat2), never through a link that leads out. Set-id bits
 * and owners are dropped; what stands in a file's place is replaced, never written through. */
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/fmt.h"
#include "cli/copy.h"
#include "env/posix/posix.h"

#define CONTENT_MAX (64ull * 1024 * KLP_MIB)

struct copy_unpack {
    int dir_fd, file_fd;
    char *rename;
    char top[KLP_PATH_MAX + 1]; /* the archive's own name of what is renamed */
    struct klp_tar_reader *reader;
    struct klp_tar_entry entry; /* the file under way */
    mode_t mask;
    bool ended;
};

struct copy_unpack *copy_unpack_create(int dir_fd, const char *rename)
{
    struct copy_unpack *unpack = KLP_NEW(struct copy_unpack);
    unpack->dir_fd = dir_fd;
    unpack->file_fd = -1;
    unpack->rename = klp_mem_string(rename);
    unpack->reader = klp_tar_reader_create(CONTENT_MAX);
    unpack->mask = umask(0);
    umask(unpack->mask);
    return unpack;
}

void copy_unpack_destroy(struct copy_unpack *unpack)
{
    if (unpack->file_fd >= 0)
        close(unpack->file_fd);
    klp_tar_reader_destroy(unpack->reader);
    klp_mem_free(unpack->rename);
    klp_mem_free(unpack);
}

static int open_beneath(int dir_fd, const char *path, int flags, mode_t mode)
{
    struct open_how how = {.flags = (uint64_t)(unsigned)flags | O_CLOEXEC,
                           .mode = mode,
                           .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS};
    return (int)syscall(SYS_openat2, dir_fd, path, &how, sizeof(how));
}

/* The folder that holds `path`, made where it is missing; *out_leaf points into path. */
static int parent_open(int dir_fd, const char *path, const char **out_leaf)
{
    const char *slash = strrchr(path, '/');
    *out_leaf = slash != NULL ? slash + 1 : path;
    if (slash == NULL)
        return open_beneath(dir_fd, ".", O_RDONLY | O_DIRECTORY, 0);
    char folder[KLP_PATH_MAX + 1];
    klp_format(folder, sizeof(folder), "%.*s", (int)(slash - path), path);
    int fd = open_beneath(dir_fd, folder, O_RDONLY | O_DIRECTORY, 0);
    if (fd >= 0 || errno != ENOENT)
        return fd;
    const char *leaf;
    int above = parent_open(dir_fd, folder, &leaf);
    if (above < 0)
        return -1;
    if (mkdirat(above, leaf, 0777) != 0 && errno != EEXIST) {
        int error = errno;
        close(above);
        errno = error;
        return -1;
    }
    close(above);
    return open_beneath(dir_fd, folder, O_RDONLY | O_DIRECTORY, 0);
}

static bool name_place(struct copy_unpack *unpack, const char *path, char *out,
                       struct kelpie_error **err)
{
    if (unpack->rename == NULL) {
        klp_text_copy(out, KLP_PATH_MAX + 1, path);
        return true;
    }
    size_t top = strcspn(path, "/");
    if (unpack->top[0] == 0)
        klp_format(unpack->top, sizeof(unpack->top), "%.*s", (int)top, path);
    if (strlen(unpack->top) != top || memcmp(unpack->top, path, top) != 0)
        return klp_refuse(err, KELPIE_E_PROTOCOL, "the guest sent more than was asked for");
    if (klp_format(out, KLP_PATH_MAX + 1, "%s%s", unpack->rename, path + top) > KLP_PATH_MAX)
        return klp_refuse(err, KELPIE_E_LIMIT, "a path is longer than %d bytes", KLP_PATH_MAX);
    return true;
}

static int folder_write(int parent, const char *leaf, mode_t mode)
{
    if (mkdirat(parent, leaf, 0700) != 0 && errno != EEXIST)
        return -1;
    int fd = openat(parent, leaf, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return -1;
    /* Its owner must be able to fill it. */
    int result = fchmod(fd, mode | 0700);
    close(fd);
    return result;
}

static int hardlink_write(struct copy_unpack *unpack, int parent, const char *leaf,
                          const char *target)
{
    const char *target_leaf;
    int from = parent_open(unpack->dir_fd, target, &target_leaf);
    if (from < 0)
        return -1;
    int result = linkat(from, target_leaf, parent, leaf, 0);
    int error = errno;
    close(from);
    errno = error;
    return result;
}

static int any_write(struct copy_unpack *unpack, const struct klp_tar_entry *entry, int parent,
                     const char *leaf, const char *target)
{
    if (leaf[0] == 0 || strcmp(leaf, ".") == 0)
        return 0; /* the folder itself */
    if (entry->kind == KLP_TAR_DIRECTORY)
        return folder_write(parent, leaf, entry->mode & 0777 & ~unpack->mask);
    if (unlinkat(parent, leaf, 0) != 0 && errno != ENOENT)
        return -1;
    if (entry->kind == KLP_TAR_SYMLINK)
        return symlinkat(entry->target, parent, leaf);
    if (entry->kind == KLP_TAR_HARDLINK)
        return hardlink_write(unpack, parent, leaf, target);
    unpack->file_fd =
        openat(parent, leaf, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    return unpack->file_fd < 0 ? -1 : 0;
}

static bool entry_take(struct copy_unpack *unpack, const struct klp_tar_entry *entry,
                       struct kelpie_error **err)
{
    char path[KLP_PATH_MAX + 1], target[KLP_PATH_MAX + 1] = "";
    const char *leaf;
    KLP_CHECK(name_place(unpack, entry->path, path, err));
    if (entry->kind == KLP_TAR_HARDLINK)
        KLP_CHECK(name_place(unpack, entry->target, target, err));
    unpack->entry = *entry;
    int parent = parent_open(unpack->dir_fd, path, &leaf);
    if (parent < 0)
        return klp_posix_refuse(err, errno, "cannot open the folder of '%s'", path);
    int result = any_write(unpack, entry, parent, leaf, target);
    int error = errno;
    close(parent);
    return result == 0 || klp_posix_refuse(err, error, "cannot write '%s'", path);
}

static bool content_take(struct copy_unpack *unpack, struct klp_bytes content,
                         struct kelpie_error **err)
{
    for (size_t at = 0; unpack->file_fd >= 0 && at < content.size;) {
        ssize_t put = write(unpack->file_fd, content.data + at, content.size - at);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return klp_posix_refuse(err, put < 0 ? errno : ENOSPC, "cannot write '%s'",
                                    unpack->entry.path);
        at += (size_t)put;
    }
    return true;
}

static bool entry_end(struct copy_unpack *unpack, struct kelpie_error **err)
{
    if (unpack->file_fd < 0)
        return true;
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_sec = unpack->entry.mtime}};
    int fd = unpack->file_fd;
    unpack->file_fd = -1;
    bool fine = fchmod(fd, unpack->entry.mode & 0777 & ~unpack->mask) == 0;
    futimens(fd, times); /* a time that cannot be kept is no failure */
    fine = close(fd) == 0 && fine;
    return fine || klp_posix_refuse(err, errno, "cannot finish '%s'", unpack->entry.path);
}

bool copy_unpack_feed(struct copy_unpack *unpack, const void *data, size_t size,
                      struct kelpie_error **err)
{
    struct klp_bytes input = {data, size}, content = {NULL, 0};
    const struct klp_tar_entry *entry = NULL;
    for (;;) {
        enum klp_tar_event event = klp_tar_next(unpack->reader, &input, &entry, &content, err);
        if (event == KLP_TAR_BAD)
            return false;
        if (event == KLP_TAR_ENTRY)
            KLP_CHECK(entry_take(unpack, entry, err));
        if (event == KLP_TAR_CONTENT)
            KLP_CHECK(content_take(unpack, content, err));
        if (event == KLP_TAR_ENTRY_END)
            KLP_CHECK(entry_end(unpack, err));
        unpack->ended = unpack->ended || event == KLP_TAR_END;
        if (event == KLP_TAR_NEED_MORE || event == KLP_TAR_END)
            return true;
    }
}

bool copy_unpack_end(struct copy_unpack *unpack, struct kelpie_error **err)
{
    return unpack->ended || klp_refuse(err, KELPIE_E_CORRUPT, "the tar stream is cut off");
}
