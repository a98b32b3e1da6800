/* SPDX-License-Identifier: Apache-2.0 */
/* PUT: a tar stream becomes files below one folder. Each entry is opened beneath that folder anew
 * (beneath.c); what stands in a file's place is removed first, never written through. */
#include "guest/guest.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "format/tar.h"

#define PUT_BYTES_MAX (64ull * 1024 * KLP_MIB) /* of one archive's contents */

struct put {
    int base_fd;
    int file_fd; /* the file whose content comes now */
    uint32_t mode;
    int64_t mtime;
    struct klp_tar_reader *reader;
    bool ended; /* the archive's own end was seen */
    char *path;
};

static void put_free(struct put *put)
{
    guest_close(&put->base_fd);
    guest_close(&put->file_fd);
    klp_tar_reader_destroy(put->reader);
    klp_mem_free(put->path);
    klp_mem_free(put);
}

static void put_finish(struct guest *g, struct guest_channel *channel)
{
    g->file_channels--;
    put_free(channel->state);
}

/* ---- entries */

static bool entry_refuse(struct kelpie_error **err, const struct klp_tar_entry *entry,
                         int error_number)
{
    return klp_refuse(err, guest_errno_code(error_number), "cannot write '%s': %s", entry->path,
                      strerror(error_number));
}

static bool folder_write(int dir_fd, const char *leaf, const struct klp_tar_entry *entry)
{
    if (leaf[0] == '\0')
        return true;
    if (mkdirat(dir_fd, leaf, 0755) < 0 && errno != EEXIST)
        return false;
    int fd = openat(dir_fd, leaf, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    bool fine = fd >= 0 && fchmod(fd, entry->mode & 0777) == 0;
    int error_number = errno == ENOTDIR ? ELOOP : errno; /* a link or file stands there */
    guest_close(&fd);
    errno = error_number;
    return fine;
}

static bool place_clear(int dir_fd, const char *leaf)
{
    return unlinkat(dir_fd, leaf, 0) == 0 || errno == ENOENT;
}

static bool file_begin(struct put *put, int dir_fd, const char *leaf,
                       const struct klp_tar_entry *entry)
{
    if (!place_clear(dir_fd, leaf))
        return false;
    put->file_fd = openat(dir_fd, leaf, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    put->mode = entry->mode & 0777;
    put->mtime = entry->mtime;
    return put->file_fd >= 0;
}

/* Only a plain file of the same folder may be linked to: a link to a link would be one to follow.
 */
static bool hardlink_write(const struct put *put, int dir_fd, const char *leaf,
                           const struct klp_tar_entry *entry, struct kelpie_error **err)
{
    const char *target;
    struct stat info;
    int target_fd = guest_beneath_parent(put->base_fd, entry->target, false, &target, err);
    if (target_fd < 0)
        return false;
    bool fine = fstatat(target_fd, target, &info, AT_SYMLINK_NOFOLLOW) == 0;
    if (fine && !S_ISREG(info.st_mode)) {
        fine = false;
        errno = EPERM;
    }
    fine = fine && place_clear(dir_fd, leaf) && linkat(target_fd, target, dir_fd, leaf, 0) == 0;
    int error_number = errno;
    close(target_fd);
    return fine || entry_refuse(err, entry, error_number);
}

static bool entry_write(struct put *put, const struct klp_tar_entry *entry,
                        struct kelpie_error **err)
{
    const char *leaf;
    int dir_fd = guest_beneath_parent(put->base_fd, entry->path, true, &leaf, err);
    bool fine = false, told = false;
    if (dir_fd < 0)
        return false;
    errno = EINVAL;
    switch (entry->kind) {
    case KLP_TAR_DIRECTORY:
        fine = folder_write(dir_fd, leaf, entry);
        break;
    case KLP_TAR_FILE:
        fine = leaf[0] != '\0' && file_begin(put, dir_fd, leaf, entry);
        break;
    case KLP_TAR_SYMLINK:
        fine = leaf[0] != '\0' && place_clear(dir_fd, leaf) &&
               symlinkat(entry->target, dir_fd, leaf) == 0;
        break;
    case KLP_TAR_HARDLINK:
        told = true;
        fine = hardlink_write(put, dir_fd, leaf, entry, err);
        break;
    case KLP_TAR_OTHER:
        fine = true;
        break;
    }
    int error_number = errno;
    close(dir_fd);
    return fine || told ? fine : entry_refuse(err, entry, error_number);
}

static bool content_write(struct put *put, struct klp_bytes content, struct kelpie_error **err)
{
    while (put->file_fd >= 0 && content.size > 0) {
        ssize_t size = write(put->file_fd, content.data, content.size);
        if (size <= 0)
            return klp_refuse(err, guest_errno_code(errno), "cannot write below '%s': %s",
                              put->path, strerror(errno));
        content.data += size;
        content.size -= (size_t)size;
    }
    return true;
}

static bool file_end(struct put *put, struct kelpie_error **err)
{
    if (put->file_fd < 0)
        return true;
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_sec = put->mtime}};
    bool fine = fchmod(put->file_fd, put->mode) == 0;
    int error_number = errno;
    /* A time the file system cannot hold loses nothing that matters. */
    if (futimens(put->file_fd, times) < 0)
        errno = 0;
    fine = close(put->file_fd) == 0 && fine;
    put->file_fd = -1;
    return fine ||
           klp_refuse(err, guest_errno_code(error_number), "cannot finish a file below '%s': %s",
                      put->path, strerror(error_number));
}

/* ---- the stream */

static bool put_step(struct put *put, enum klp_tar_event event, const struct klp_tar_entry *entry,
                     struct klp_bytes content, struct kelpie_error **err)
{
    switch (event) {
    case KLP_TAR_ENTRY:
        return entry_write(put, entry, err);
    case KLP_TAR_CONTENT:
        return content_write(put, content, err);
    case KLP_TAR_ENTRY_END:
        return file_end(put, err);
    case KLP_TAR_END:
        put->ended = true;
        return true;
    case KLP_TAR_SKIPPED:
    case KLP_TAR_NEED_MORE:
        return true;
    case KLP_TAR_BAD:
        return false;
    }
    return false;
}

static bool put_feed(struct put *put, struct klp_bytes bytes, struct kelpie_error **err)
{
    const struct klp_tar_entry *entry = NULL;
    struct klp_bytes content = {0};
    enum klp_tar_event event;
    do {
        event = klp_tar_next(put->reader, &bytes, &entry, &content, err);
        KLP_CHECK(put_step(put, event, entry, content, err));
    } while (event != KLP_TAR_NEED_MORE && !(event == KLP_TAR_END && bytes.size == 0));
    return true;
}

static void put_data(struct guest *g, struct guest_channel *channel, struct klp_bytes bytes,
                     bool end)
{
    struct put *put = channel->state;
    struct kelpie_error *err = NULL;
    bool fine = bytes.size == 0 || put_feed(put, bytes, &err);
    if (fine && end && !put->ended)
        fine = klp_refuse(&err, KELPIE_E_CORRUPT, "cannot put files below '%s': the archive is cut",
                          put->path);
    if (!fine) {
        guest_channel_fail(g, channel, err);
    } else if (end) {
        uint32_t id = channel->id;
        guest_channel_end(g, channel);
        guest_send_done(g, id, NULL);
    } else {
        guest_channel_consumed(g, channel, bytes.size);
    }
}

static const struct guest_channel_ops put_ops = {.data = put_data, .finish = put_finish};

static bool put_create(struct guest *g, struct klp_bytes body, struct put **out,
                       struct kelpie_error **err)
{
    char path[KLP_PATH_MAX];
    KLP_CHECK(guest_path_field(g, body, path, err));
    KLP_CHECK(guest_make_folders(path, err));
    if (g->file_channels >= GUEST_FILE_CHANNELS_MAX)
        return klp_refuse(err, KELPIE_E_BUSY, "cannot put files: %u transfers are under way",
                          GUEST_FILE_CHANNELS_MAX);
    int base_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (base_fd < 0)
        return klp_refuse(err, guest_errno_code(errno), "cannot open the folder '%s': %s", path,
                          strerror(errno));
    struct put *put = KLP_NEW(struct put);
    put->base_fd = base_fd;
    put->file_fd = -1;
    put->reader = klp_tar_reader_create(PUT_BYTES_MAX);
    put->path = klp_mem_string(path);
    *out = put;
    return true;
}

void guest_put_open(struct guest *g, uint32_t id, struct klp_bytes body)
{
    struct kelpie_error *err = NULL;
    struct put *put = NULL;
    if (!put_create(g, body, &put, &err))
        guest_send_error(g, id, err);
    else if (guest_channel_open(g, id, &put_ops, put, false) == NULL)
        put_free(put);
    else
        g->file_channels++;
}
