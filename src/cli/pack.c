/* SPDX-License-Identifier: Apache-2.0 */
/* A file or folder of this host as a tar stream. Links are packed as links; a file that shrinks
 * while it is read is an error, since its size was already said. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fmt.h"
#include "cli/copy.h"
#include "env/posix/posix.h"

#define PIECE_SIZE (64 * KLP_KIB)

struct pack {
    copy_sink *sink;
    void *arg;
    uint8_t *piece;
    struct klp_tar_entry entry;
    unsigned depth;
};

static bool header_put(struct pack *pack, struct kelpie_error **err)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf header = KLP_BUF_INIT(64 * KLP_KIB);
    KLP_CHECK(klp_tar_header_append(&header, &pack->entry, err));
    return pack->sink(pack->arg, header.data, header.size, err);
}

static bool content_put(struct pack *pack, int fd, const char *path, struct kelpie_error **err)
{
    for (uint64_t left = pack->entry.size; left > 0;) {
        ssize_t got = read(fd, pack->piece, left < PIECE_SIZE ? (size_t)left : PIECE_SIZE);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return klp_posix_refuse(err, errno, "cannot read '%s'", path);
        if (got == 0)
            return klp_refuse(err, KELPIE_E_CONFLICT, "'%s' became shorter while it was read",
                              path);
        KLP_CHECK(pack->sink(pack->arg, pack->piece, (size_t)got, err));
        left -= (uint64_t)got;
    }
    memset(pack->piece, 0, KLP_TAR_BLOCK);
    size_t padding = klp_tar_padding(pack->entry.size);
    return padding == 0 || pack->sink(pack->arg, pack->piece, padding, err);
}

static bool entry_begin(struct pack *pack, const char *name, const struct stat *info,
                        enum klp_tar_kind kind, struct kelpie_error **err)
{
    if (strlen(name) > KLP_PATH_MAX)
        return klp_refuse(err, KELPIE_E_LIMIT, "a path is longer than %d bytes", KLP_PATH_MAX);
    klp_text_copy(pack->entry.path, sizeof(pack->entry.path), name);
    pack->entry.target[0] = 0;
    pack->entry.kind = kind;
    pack->entry.mode = info->st_mode & 0777;
    pack->entry.mtime = info->st_mtime;
    pack->entry.size = kind == KLP_TAR_FILE ? (uint64_t)info->st_size : 0;
    return true;
}

static bool file_pack(struct pack *pack, int dir_fd, const char *leaf, const char *path,
                      const char *name, struct kelpie_error **err)
{
    struct stat info;
    int fd = openat(dir_fd, leaf, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &info) != 0) {
        int error = errno;
        if (fd >= 0)
            close(fd);
        return klp_posix_refuse(err, error, "cannot open '%s'", path);
    }
    bool fine = S_ISREG(info.st_mode) ||
                klp_refuse(err, KELPIE_E_CONFLICT, "'%s' changed while it was read", path);
    fine = fine && entry_begin(pack, name, &info, KLP_TAR_FILE, err) && header_put(pack, err) &&
           content_put(pack, fd, path, err);
    close(fd);
    return fine;
}

static bool link_pack(struct pack *pack, int dir_fd, const char *leaf, const char *path,
                      const char *name, const struct stat *info, struct kelpie_error **err)
{
    KLP_CHECK(entry_begin(pack, name, info, KLP_TAR_SYMLINK, err));
    ssize_t size = readlinkat(dir_fd, leaf, pack->entry.target, sizeof(pack->entry.target) - 1);
    if (size < 0)
        return klp_posix_refuse(err, errno, "cannot read the link '%s'", path);
    pack->entry.target[size] = 0;
    return header_put(pack, err);
}

static bool any_pack(struct pack *pack, int dir_fd, const char *leaf, const char *path,
                     const char *name, struct kelpie_error **err);

static bool children_pack(struct pack *pack, DIR *dir, const char *path, const char *name,
                          struct kelpie_error **err)
{
    for (;;) {
        errno = 0;
        struct dirent *child = readdir(dir);
        if (child == NULL)
            return errno == 0 || klp_posix_refuse(err, errno, "cannot list '%s'", path);
        if (strcmp(child->d_name, ".") == 0 || strcmp(child->d_name, "..") == 0)
            continue;
        char *child_path = klp_text("%s/%s", path, child->d_name);
        char *child_name = klp_text("%s/%s", name, child->d_name);
        bool fine = any_pack(pack, dirfd(dir), child->d_name, child_path, child_name, err);
        klp_mem_free(child_path);
        klp_mem_free(child_name);
        KLP_CHECK(fine);
    }
}

static bool folder_pack(struct pack *pack, int dir_fd, const char *leaf, const char *path,
                        const char *name, const struct stat *info, struct kelpie_error **err)
{
    if (pack->depth >= KLP_TAR_DEPTH_MAX)
        return klp_refuse(err, KELPIE_E_LIMIT, "'%s' is deeper than %d folders", path,
                          KLP_TAR_DEPTH_MAX);
    int fd = openat(dir_fd, leaf, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
    if (dir == NULL) {
        int error = errno;
        if (fd >= 0)
            close(fd);
        return klp_posix_refuse(err, error, "cannot open the folder '%s'", path);
    }
    pack->depth++;
    bool fine = entry_begin(pack, name, info, KLP_TAR_DIRECTORY, err) && header_put(pack, err) &&
                children_pack(pack, dir, path, name, err);
    pack->depth--;
    closedir(dir);
    return fine;
}

static bool any_pack(struct pack *pack, int dir_fd, const char *leaf, const char *path,
                     const char *name, struct kelpie_error **err)
{
    struct stat info;
    if (fstatat(dir_fd, leaf, &info, AT_SYMLINK_NOFOLLOW) != 0)
        return klp_posix_refuse(err, errno, "cannot look at '%s'", path);
    if (S_ISREG(info.st_mode))
        return file_pack(pack, dir_fd, leaf, path, name, err);
    if (S_ISDIR(info.st_mode))
        return folder_pack(pack, dir_fd, leaf, path, name, &info, err);
    if (S_ISLNK(info.st_mode))
        return link_pack(pack, dir_fd, leaf, path, name, &info, err);
    return pack->depth > 0 ||
           klp_refuse(err, KELPIE_E_INVALID, "'%s' is no file, folder or link", path);
}

bool copy_pack(const char *path, const char *name, copy_sink *sink, void *arg,
               struct kelpie_error **err)
{
    struct pack *pack = KLP_NEW(struct pack);
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf end = KLP_BUF_INIT(64 * KLP_KIB);
    pack->sink = sink;
    pack->arg = arg;
    pack->piece = klp_mem_alloc(PIECE_SIZE);
    /* "link/" and "." are folders, not the link or the dot. */
    size_t size = strlen(path);
    bool inside = size > 0 && path[size - 1] == '/';
    char *full = inside ? klp_text("%s.", path) : klp_mem_string(path);
    bool fine = any_pack(pack, AT_FDCWD, full, path, name, err);
    klp_tar_end_append(&end);
    fine = fine && sink(arg, end.data, end.size, err);
    klp_mem_free(full);
    klp_mem_free(pack->piece);
    klp_mem_free(pack);
    return fine;
}
