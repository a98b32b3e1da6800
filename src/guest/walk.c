/* SPDX-License-Identifier: Apache-2.0 */
/* A folder or file as a tar stream, in steps of bounded size: one open descriptor a level, and one
 * place in the folder's list, so that memory does not grow with the tree. Stays on one file system:
 * /proc and the like are no files of the agent's. Devices, sockets and pipes are left out. */
#include "guest/guest.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/fmt.h"
#include "format/tar.h"

#define WALK_ROOTS_MAX 2
#define WALK_LIST_SIZE (4 * KLP_KIB) /* bytes of a folder's list read at a time */

/* linux: struct linux_dirent64 */
struct list_entry {
    uint64_t inode;
    int64_t next;
    uint16_t size;
    uint8_t type;
    char name[];
};

struct walk_root {
    char *path, *name;
    bool optional;
};

struct walk_level {
    int fd;
    int64_t place;    /* in the folder's list, behind the last entry used */
    size_t name_size; /* of its path in the archive */
};

struct guest_walk {
    struct walk_root roots[WALK_ROOTS_MAX];
    size_t root_count, root_next;
    struct walk_level levels[KLP_TAR_DEPTH_MAX + 1];
    size_t depth; /* levels in use */
    dev_t device;
    int file_fd;
    uint64_t file_left;
    size_t padding;
    bool ended;
    struct klp_tar_entry entry; /* path: where the walk stands */
    uint8_t list[WALK_LIST_SIZE] __attribute__((aligned(8)));
    size_t list_size, list_at; /* of the innermost level */
};

struct guest_walk *guest_walk_create(void)
{
    struct guest_walk *walk = KLP_NEW(struct guest_walk);
    walk->file_fd = -1;
    return walk;
}

void guest_walk_destroy(struct guest_walk *walk)
{
    while (walk->depth > 0)
        close(walk->levels[--walk->depth].fd);
    guest_close(&walk->file_fd);
    for (size_t i = 0; i < walk->root_count; i++) {
        klp_mem_free(walk->roots[i].path);
        klp_mem_free(walk->roots[i].name);
    }
    klp_mem_free(walk);
}

void guest_walk_add(struct guest_walk *walk, const char *path, const char *name, bool optional)
{
    KLP_ASSERT(walk->root_count < WALK_ROOTS_MAX);
    walk->roots[walk->root_count++] =
        (struct walk_root){klp_mem_string(path), klp_mem_string(name), optional};
}

static int walk_refuse(struct kelpie_error **err, int error_number, const char *name)
{
    return klp_refuse(err, guest_errno_code(error_number), "cannot read '%s': %s", name,
                      strerror(error_number)) -
           1;
}

/* ---- single entries */

static bool header_put(struct guest_walk *walk, struct klp_buf *out, enum klp_tar_kind kind,
                       const struct stat *info, struct kelpie_error **err)
{
    struct klp_tar_entry *entry = &walk->entry;
    entry->kind = kind;
    entry->mode = info->st_mode & 0777;
    entry->size = kind == KLP_TAR_FILE ? (uint64_t)info->st_size : 0;
    entry->mtime = info->st_mtime;
    if (kind != KLP_TAR_SYMLINK)
        entry->target[0] = '\0';
    return entry->path[0] == '\0' || klp_tar_header_append(out, entry, err);
}

/* Takes fd. */
static int folder_enter(struct guest_walk *walk, int fd, const struct stat *info,
                        struct klp_buf *out, struct kelpie_error **err)
{
    if (walk->depth > KLP_TAR_DEPTH_MAX - 1) {
        close(fd);
        return klp_refuse(err, KELPIE_E_LIMIT, "cannot read '%s': more than %d folders deep",
                          walk->entry.path, KLP_TAR_DEPTH_MAX) -
               1;
    }
    walk->levels[walk->depth++] =
        (struct walk_level){.fd = fd, .name_size = strlen(walk->entry.path)};
    walk->list_size = walk->list_at = 0;
    return header_put(walk, out, KLP_TAR_DIRECTORY, info, err) ? 1 : -1;
}

static int file_enter(struct guest_walk *walk, int fd, const struct stat *info, struct klp_buf *out,
                      struct kelpie_error **err)
{
    walk->file_fd = fd;
    walk->file_left = (uint64_t)info->st_size;
    walk->padding = klp_tar_padding(walk->file_left);
    return header_put(walk, out, KLP_TAR_FILE, info, err) ? 1 : -1;
}

static int link_put(struct guest_walk *walk, int dir_fd, const char *name, const struct stat *info,
                    struct klp_buf *out, struct kelpie_error **err)
{
    ssize_t size = readlinkat(dir_fd, name, walk->entry.target, KLP_PATH_MAX);
    if (size < 0)
        return errno == ENOENT ? 1 : walk_refuse(err, errno, walk->entry.path);
    walk->entry.target[size] = '\0';
    return header_put(walk, out, KLP_TAR_SYMLINK, info, err) ? 1 : -1;
}

/* What vanished since its name was read is left out: the tree may be in use. */
static int thing_put(struct guest_walk *walk, int dir_fd, const char *name, int flags,
                     struct klp_buf *out, struct kelpie_error **err)
{
    struct stat info;
    if (fstatat(dir_fd, name, &info, flags & O_NOFOLLOW ? AT_SYMLINK_NOFOLLOW : 0) < 0)
        return errno == ENOENT && walk->depth > 0 ? 1 : walk_refuse(err, errno, name);
    if (S_ISLNK(info.st_mode))
        return link_put(walk, dir_fd, name, &info, out, err);
    if (!S_ISREG(info.st_mode) && !S_ISDIR(info.st_mode))
        return 1;
    if (walk->depth == 0)
        walk->device = info.st_dev;
    else if (info.st_dev != walk->device)
        return 1;
    int fd = openat(dir_fd, name, O_RDONLY | O_NONBLOCK | O_CLOEXEC | flags);
    if (fd < 0 || fstat(fd, &info) < 0) {
        int error_number = errno;
        guest_close(&fd);
        return error_number == ENOENT && walk->depth > 0
                   ? 1
                   : walk_refuse(err, error_number, walk->entry.path);
    }
    if (S_ISDIR(info.st_mode))
        return folder_enter(walk, fd, &info, out, err);
    if (S_ISREG(info.st_mode))
        return file_enter(walk, fd, &info, out, err);
    close(fd);
    return 1;
}

/* ---- steps: 1 = go on, 0 = end, -1 = *err */

static int root_step(struct guest_walk *walk, struct klp_buf *out, struct kelpie_error **err)
{
    struct stat info;
    if (walk->root_next == walk->root_count) {
        klp_tar_end_append(out);
        walk->ended = true;
        return 0;
    }
    const struct walk_root *root = &walk->roots[walk->root_next++];
    if (root->optional && stat(root->path, &info) < 0)
        return 1;
    if (strlen(root->name) > KLP_PATH_MAX)
        return walk_refuse(err, ENAMETOOLONG, root->name);
    memcpy(walk->entry.path, root->name, strlen(root->name) + 1);
    return thing_put(walk, AT_FDCWD, root->path, 0, out, err);
}

/* The file may shrink or grow while it is read: the archive holds what its header said. */
static int file_step(struct guest_walk *walk, struct klp_buf *out, size_t want,
                     struct kelpie_error **err)
{
    size_t size = walk->file_left < want ? (size_t)walk->file_left : want;
    if (size == 0) {
        static const uint8_t zeros[KLP_TAR_BLOCK];
        klp_buf_append(out, zeros, walk->padding);
        guest_close(&walk->file_fd);
        return 1;
    }
    uint8_t *room = klp_buf_reserve(out, size);
    if (room == NULL)
        return klp_buf_check(out, "an archive", err) ? 1 : -1;
    ssize_t got = read(walk->file_fd, room, size);
    if (got < 0)
        return walk_refuse(err, errno, walk->entry.path);
    if (got == 0)
        memset(room, 0, size);
    size = got == 0 ? size : (size_t)got;
    klp_buf_grow(out, size);
    walk->file_left -= size;
    return 1;
}

static int list_read(struct guest_walk *walk, struct walk_level *level, struct kelpie_error **err)
{
    lseek(level->fd, level->place, SEEK_SET);
    long size = syscall(SYS_getdents64, level->fd, walk->list, sizeof(walk->list));
    if (size < 0)
        return walk_refuse(err, errno, walk->entry.path);
    walk->list_at = 0;
    walk->list_size = (size_t)size;
    return size > 0 ? 1 : 0;
}

static bool name_is_self(const char *name)
{
    return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

static int folder_step(struct guest_walk *walk, struct klp_buf *out, struct kelpie_error **err)
{
    struct walk_level *level = &walk->levels[walk->depth - 1];
    walk->entry.path[level->name_size] = '\0';
    if (walk->list_at == walk->list_size) {
        int got = list_read(walk, level, err);
        if (got != 0)
            return got;
        close(level->fd);
        walk->depth--;
        walk->list_at = walk->list_size = 0; /* the outer list is read again from its place */
        return 1;
    }
    struct list_entry *item = (struct list_entry *)(void *)(walk->list + walk->list_at);
    walk->list_at += item->size;
    level->place = item->next;
    if (name_is_self(item->name))
        return 1;
    size_t room = KLP_PATH_MAX + 1 - level->name_size;
    const char *slash = level->name_size > 0 ? "/" : "";
    if (klp_format(walk->entry.path + level->name_size, room, "%s%s", slash, item->name) >= room)
        return walk_refuse(err, ENAMETOOLONG, item->name);
    return thing_put(walk, level->fd, item->name, O_NOFOLLOW, out, err);
}

int guest_walk_fill(struct guest_walk *walk, struct klp_buf *out, size_t want,
                    struct kelpie_error **err)
{
    size_t start = out->size;
    int got = walk->ended ? 0 : 1;
    while (got > 0 && out->size - start < want) {
        if (walk->file_fd >= 0)
            got = file_step(walk, out, want - (out->size - start), err);
        else if (walk->depth > 0)
            got = folder_step(walk, out, err);
        else
            got = root_step(walk, out, err);
    }
    if (got >= 0 && !klp_buf_check(out, "an archive", err))
        return -1;
    return got;
}
