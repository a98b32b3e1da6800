/* SPDX-License-Identifier: Apache-2.0 */
/* Files beneath a directory's descriptor. Names are single components (env/file.c checks), opened
 * with O_NOFOLLOW, so no link leads out. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fmt.h"
#include "env/posix/inside.h"

#define DEPTH_MAX 8 /* of a tree that is removed */

struct posix_dir {
    struct klp_dir base;
    int fd;
    char *path;
};

struct posix_file {
    struct klp_file base;
    int fd;
    char *name; /* for messages: its path, or the directory's when it has no name */
    /* Of a file without a name, where the file system has none (NFS, some shared folders): */
    int temporary_dir_fd;
    char *temporary; /* NULL = truly without a name */
};

static struct posix_dir *dir_inside(struct klp_dir *dir)
{
    return (struct posix_dir *)dir;
}

static struct posix_file *file_inside(struct klp_file *file)
{
    return (struct posix_file *)file;
}

int klp_dir_fd(const struct klp_dir *dir)
{
    return ((const struct posix_dir *)dir)->fd;
}

static struct klp_dir *dir_create(struct klp_env *env, int fd, char *path)
{
    struct posix_dir *dir = KLP_NEW(struct posix_dir);
    *dir = (struct posix_dir){.base.env = env, .fd = fd, .path = path};
    return &dir->base;
}

/* A folder of ours holds secrets and is trusted at recovery: nobody else may write there. */
static bool dir_is_ours(int fd, const char *path, struct kelpie_error **err)
{
    struct stat facts;
    if (fstat(fd, &facts) != 0)
        return klp_posix_refuse(err, errno, "cannot look at %s", path);
    bool owned = facts.st_uid == geteuid() || facts.st_uid == 0;
    bool open_to_all = (facts.st_mode & 022) != 0 && (facts.st_mode & S_ISVTX) == 0;
    if (owned && !open_to_all)
        return true;
    KLP_IGNORE(klp_refuse(err, KELPIE_E_DENIED, "%s is not safe: %s", path,
                          owned ? "others may write to it" : "it belongs to another user"));
    if (owned)
        klp_error_remedy_set(err, "chmod go-w %s", path);
    return false;
}

/* Opens a folder that must not be a symbolic link; the kernel answers ENOTDIR for one. */
static int folder_open(int parent, const char *name, const char *path, struct kelpie_error **err)
{
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (fd >= 0)
        return fd;
    int error = errno;
    struct stat facts;
    if (fstatat(parent, name, &facts, AT_SYMLINK_NOFOLLOW) == 0 && S_ISLNK(facts.st_mode))
        KLP_IGNORE(klp_refuse(err, KELPIE_E_DENIED, "folder %s is a symbolic link", path));
    else
        KLP_IGNORE(klp_posix_refuse(err, error, "cannot open folder %s", path));
    return -1;
}

/* A new folder that a power cut takes away would take all within it along. */
static bool folder_make(const char *path, struct kelpie_error **err)
{
    if (mkdir(path, 0700) != 0)
        return errno == EEXIST || klp_posix_refuse(err, errno, "cannot make folder %s", path);
    const char *slash = strrchr(path, '/');
    char *parent = slash == NULL   ? klp_mem_string(".")
                   : slash == path ? klp_mem_string("/")
                                   : klp_mem_string_n(path, (size_t)(slash - path));
    int fd = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    klp_mem_free(parent);
    bool fine = fd < 0 || fsync(fd) == 0 || /* a parent that may not be read is not ours to sync */
                klp_posix_refuse(err, errno, "cannot make folder %s durable", path);
    if (fd >= 0)
        close(fd);
    return fine;
}

/* mkdir -p, every new folder 0700. */
static bool path_make(const char *path, struct kelpie_error **err)
{
    char *at = klp_mem_string(path);
    bool fine = true;
    for (char *slash = at + 1; fine && *slash != 0; slash++) {
        if (*slash != '/')
            continue;
        *slash = 0;
        fine = folder_make(at, err);
        *slash = '/';
    }
    if (fine)
        fine = folder_make(at, err);
    klp_mem_free(at);
    return fine;
}

static int path_open_own(const char *path, struct kelpie_error **err)
{
    if (!path_make(path, err))
        return -1;
    int fd = folder_open(AT_FDCWD, path, path, err);
    if (fd >= 0 && !dir_is_ours(fd, path, err)) {
        close(fd);
        return -1;
    }
    return fd;
}

static int path_open(const char *path, struct kelpie_error **err)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        KLP_IGNORE(klp_posix_refuse(err, errno, "cannot open folder %s", path));
    return fd;
}

static bool posix_dir_open(struct klp_env *env, const char *given, bool create,
                           struct klp_dir **out, struct kelpie_error **err)
{
    /* With a slash at its end the kernel would follow a symbolic link after all. */
    size_t size = strlen(given);
    while (size > 1 && given[size - 1] == '/')
        size--;
    char *path KLP_AUTO(memory) = klp_mem_string_n(given, size);
    int fd = create ? path_open_own(path, err) : path_open(path, err);
    if (fd < 0)
        return false;
    char *real = realpath(path, NULL);
    *out = dir_create(env, fd, klp_mem_string(real != NULL ? real : path));
    free(real);
    return true;
}

static bool posix_dir_open_at(struct klp_dir *parent, const char *name, bool create,
                              struct klp_dir **out, struct kelpie_error **err)
{
    struct posix_dir *dir = dir_inside(parent);
    char *path = klp_text("%s/%s", dir->path, name);
    bool fine = !create || mkdirat(dir->fd, name, 0700) == 0 || errno == EEXIST ||
                klp_posix_refuse(err, errno, "cannot make folder %s", path);
    int fd = fine ? folder_open(dir->fd, name, path, err) : -1;
    if (fd < 0) {
        klp_mem_free(path);
        return false;
    }
    *out = dir_create(parent->env, fd, path);
    return true;
}

static void posix_dir_close(struct klp_dir *base)
{
    struct posix_dir *dir = dir_inside(base);
    close(dir->fd);
    klp_mem_free(dir->path);
    klp_mem_free(dir);
}

static const char *posix_dir_path(const struct klp_dir *dir)
{
    return ((const struct posix_dir *)dir)->path;
}

static bool file_open_as(struct klp_dir *base, const char *name, int flags, struct klp_file **out,
                         struct kelpie_error **err)
{
    struct posix_dir *dir = dir_inside(base);
    int fd = openat(dir->fd, name, flags | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
    if (fd < 0)
        return klp_posix_refuse(err, errno, "cannot open %s/%s", dir->path, name);
    struct stat facts;
    if (fstat(fd, &facts) != 0 || !S_ISREG(facts.st_mode)) {
        close(fd);
        return klp_refuse(err, KELPIE_E_DENIED, "%s/%s is no ordinary file", dir->path, name);
    }
    struct posix_file *file = KLP_NEW(struct posix_file);
    *file = (struct posix_file){.base.env = base->env, .fd = fd};
    file->name = klp_text("%s/%s", dir->path, name);
    *out = &file->base;
    return true;
}

static bool posix_open(struct klp_dir *dir, const char *name, struct klp_file **out,
                       struct kelpie_error **err)
{
    return file_open_as(dir, name, O_RDONLY, out, err);
}

static bool posix_create(struct klp_dir *dir, const char *name, bool exclusive,
                         struct klp_file **out, struct kelpie_error **err)
{
    return file_open_as(dir, name, O_RDWR | O_CREAT | (exclusive ? O_EXCL : 0), out, err);
}

/* The next best: a name nobody knows, removed when it gets its own or is closed. Only a killed
 * process leaves it behind. */
bool klp_posix_create_hidden(struct klp_dir *base, struct klp_file **out, struct kelpie_error **err)
{
    struct posix_dir *dir = dir_inside(base);
    char id[KLP_ID_SIZE], name[KLP_ID_SIZE + 8];
    klp_random_id(base->env, id);
    klp_format(name, sizeof(name), ".tmp-%s", id);
    int dir_fd = fcntl(dir->fd, F_DUPFD_CLOEXEC, 3);
    if (dir_fd < 0)
        return klp_posix_refuse(err, errno, "cannot make a file in %s", dir->path);
    if (!posix_create(base, name, true, out, err)) {
        close(dir_fd);
        return false;
    }
    file_inside(*out)->temporary_dir_fd = dir_fd;
    file_inside(*out)->temporary = klp_mem_string(name);
    return true;
}

static bool posix_create_unnamed(struct klp_dir *base, struct klp_file **out,
                                 struct kelpie_error **err)
{
    struct posix_dir *dir = dir_inside(base);
    int fd = openat(dir->fd, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR)) /* EISDIR: a kernel before 3.11 */
        return klp_posix_create_hidden(base, out, err);
    if (fd < 0)
        return klp_posix_refuse(err, errno, "cannot make a file in %s", dir->path);
    struct posix_file *file = KLP_NEW(struct posix_file);
    *file = (struct posix_file){.base.env = base->env, .fd = fd};
    file->name = klp_text("%s/(new file)", dir->path);
    *out = &file->base;
    return true;
}

static void temporary_remove(struct posix_file *file)
{
    if (file->temporary == NULL)
        return;
    unlinkat(file->temporary_dir_fd, file->temporary, 0);
    close(file->temporary_dir_fd);
    klp_mem_free(KLP_TAKE(&file->temporary));
}

static bool posix_link(struct klp_file *base, struct klp_dir *dir_base, const char *name,
                       struct kelpie_error **err)
{
    struct posix_file *file = file_inside(base);
    struct posix_dir *dir = dir_inside(dir_base);
    char source[64];
    klp_format(source, sizeof(source), "/proc/self/fd/%d", file->fd);
    int done = file->temporary != NULL
                   ? linkat(file->temporary_dir_fd, file->temporary, dir->fd, name, 0)
                   : linkat(AT_FDCWD, source, dir->fd, name, AT_SYMLINK_FOLLOW);
    if (done != 0)
        return klp_posix_refuse(err, errno, "cannot name %s/%s", dir->path, name);
    temporary_remove(file);
    return true;
}

static bool posix_pread(struct klp_file *base, uint64_t offset, void *out, size_t size,
                        size_t *out_size, struct kelpie_error **err)
{
    struct posix_file *file = file_inside(base);
    size_t at = 0;
    while (at < size) {
        ssize_t got = pread(file->fd, (char *)out + at, size - at, (off_t)(offset + at));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return klp_posix_refuse(err, errno, "cannot read %s", file->name);
        if (got == 0)
            break;
        at += (size_t)got;
    }
    *out_size = at;
    return true;
}

static bool posix_pwrite(struct klp_file *base, uint64_t offset, const void *data, size_t size,
                         struct kelpie_error **err)
{
    struct posix_file *file = file_inside(base);
    for (size_t at = 0; at < size;) {
        ssize_t put = pwrite(file->fd, (const char *)data + at, size - at, (off_t)(offset + at));
        if (put < 0 && errno == EINTR)
            continue;
        /* A full disk may answer with a short count first, and only then with its errno. */
        if (put <= 0)
            return klp_posix_refuse(err, put < 0 ? errno : ENOSPC,
                                    "cannot write %s (%zu of %zu bytes)", file->name, at, size);
        at += (size_t)put;
    }
    return true;
}

static bool posix_size(struct klp_file *base, uint64_t *out, struct kelpie_error **err)
{
    struct stat facts;
    if (fstat(file_inside(base)->fd, &facts) != 0)
        return klp_posix_refuse(err, errno, "cannot look at %s", file_inside(base)->name);
    *out = (uint64_t)facts.st_size;
    return true;
}

static bool posix_truncate(struct klp_file *base, uint64_t size, struct kelpie_error **err)
{
    if (ftruncate(file_inside(base)->fd, (off_t)size) != 0)
        return klp_posix_refuse(err, errno, "cannot cut %s", file_inside(base)->name);
    return true;
}

static bool posix_sync(struct klp_file *base, struct kelpie_error **err)
{
    if (fsync(file_inside(base)->fd) != 0)
        return klp_posix_refuse(err, errno, "cannot make %s durable", file_inside(base)->name);
    return true;
}

static void posix_close(struct klp_file *base)
{
    struct posix_file *file = file_inside(base);
    temporary_remove(file);
    close(file->fd);
    klp_mem_free(file->name);
    klp_mem_free(file);
}

static bool posix_rename(struct klp_dir *base, const char *from, const char *to,
                         struct kelpie_error **err)
{
    struct posix_dir *dir = dir_inside(base);
    if (renameat(dir->fd, from, dir->fd, to) != 0)
        return klp_posix_refuse(err, errno, "cannot rename %s/%s to %s", dir->path, from, to);
    return true;
}

static bool posix_remove(struct klp_dir *base, const char *name, struct kelpie_error **err)
{
    struct posix_dir *dir = dir_inside(base);
    if (unlinkat(dir->fd, name, 0) == 0 ||
        (errno == EISDIR && unlinkat(dir->fd, name, AT_REMOVEDIR) == 0))
        return true;
    return klp_posix_refuse(err, errno, "cannot remove %s/%s", dir->path, name);
}

static int entry_is_real(const struct dirent *entry)
{
    return strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
}

static int entry_order(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static int entries_read(int fd, struct dirent ***out)
{
    return scandirat(fd, ".", out, entry_is_real, entry_order);
}

static void entries_free(struct dirent **entries, int count)
{
    for (int i = 0; i < count; i++)
        free(entries[i]);
    free(entries);
}

static bool tree_remove(int parent, const char *name, const char *path, unsigned depth,
                        struct kelpie_error **err)
{
    if (unlinkat(parent, name, 0) == 0 || errno == ENOENT)
        return true;
    if (errno != EISDIR && errno != EPERM)
        return klp_posix_refuse(err, errno, "cannot remove %s/%s", path, name);
    if (depth == 0)
        return klp_refuse(err, KELPIE_E_LIMIT, "%s/%s is too deep to be removed", path, name);
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 && errno == ENOENT)
        return true; /* its owner was faster */
    if (fd < 0)
        return klp_posix_refuse(err, errno, "cannot open %s/%s", path, name);
    struct dirent **entries;
    int count = entries_read(fd, &entries);
    bool fine = count >= 0 || klp_posix_refuse(err, errno, "cannot list %s/%s", path, name);
    for (int i = 0; fine && i < count; i++)
        fine = tree_remove(fd, entries[i]->d_name, path, depth - 1, err);
    if (count >= 0)
        entries_free(entries, count);
    close(fd);
    if (fine && unlinkat(parent, name, AT_REMOVEDIR) != 0 && errno != ENOENT)
        return klp_posix_refuse(err, errno, "cannot remove %s/%s", path, name);
    return fine;
}

static bool posix_remove_tree(struct klp_dir *base, const char *name, struct kelpie_error **err)
{
    struct posix_dir *dir = dir_inside(base);
    return tree_remove(dir->fd, name, dir->path, DEPTH_MAX, err);
}

static bool posix_dir_sync(struct klp_dir *base, struct kelpie_error **err)
{
    struct posix_dir *dir = dir_inside(base);
    if (fsync(dir->fd) != 0)
        return klp_posix_refuse(err, errno, "cannot make folder %s durable", dir->path);
    return true;
}

static bool posix_list(struct klp_dir *base, bool (*each)(void *, const char *), void *arg,
                       struct kelpie_error **err)
{
    struct posix_dir *dir = dir_inside(base);
    struct dirent **entries;
    int count = entries_read(dir->fd, &entries);
    if (count < 0)
        return klp_posix_refuse(err, errno, "cannot list %s", dir->path);
    for (int i = 0; i < count && each(arg, entries[i]->d_name); i++)
        continue;
    entries_free(entries, count);
    return true;
}

const struct klp_file_ops klp_posix_file_ops = {
    .dir_open = posix_dir_open,
    .dir_open_at = posix_dir_open_at,
    .dir_close = posix_dir_close,
    .dir_path = posix_dir_path,
    .open = posix_open,
    .create = posix_create,
    .create_unnamed = posix_create_unnamed,
    .link = posix_link,
    .pread = posix_pread,
    .pwrite = posix_pwrite,
    .size = posix_size,
    .truncate = posix_truncate,
    .sync = posix_sync,
    .close = posix_close,
    .rename = posix_rename,
    .remove = posix_remove,
    .remove_tree = posix_remove_tree,
    .dir_sync = posix_dir_sync,
    .list = posix_list,
};
