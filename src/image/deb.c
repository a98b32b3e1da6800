/* SPDX-License-Identifier: Apache-2.0 */
/* Packages are trusted as far as apt's signatures go (fetch.c checks the hash), and read as if they
 * were not: every number is checked, and nothing is written anywhere but into a tree in memory. */
#include "image/deb.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fmt.h"
#include "env/posix/posix.h"
#include "format/tar.h"
#include "image/layout.h"

enum {
    AR_MAGIC_SIZE = 8,
    AR_HEADER_SIZE = 60,
    AR_SIZE_AT = 48,
    AR_SIZE_DIGITS = 10,
    AR_END_AT = 58,
    AR_MEMBERS_MAX = 16,
};

/* ---- ar */

static bool damaged(struct kelpie_error **err, const char *name, const char *why)
{
    return klp_refuse(err, KELPIE_E_CORRUPT, "cannot read package '%s': %s", name, why);
}

static bool bytes_read(int fd, uint64_t at, void *out, size_t size, const char *name,
                       struct kelpie_error **err)
{
    for (size_t done = 0; done < size;) {
        ssize_t got = pread(fd, (char *)out + done, size - done, (off_t)(at + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return klp_posix_refuse(err, errno, "cannot read package '%s'", name);
        if (got == 0)
            return damaged(err, name, "it is truncated");
        done += (size_t)got;
    }
    return true;
}

static bool header_read(int fd, uint64_t at, const char *name, struct klp_ar_member *out,
                        struct kelpie_error **err)
{
    char header[AR_HEADER_SIZE];
    size_t size = 16, digits = 0;
    KLP_CHECK(bytes_read(fd, at, header, sizeof(header), name, err));
    if (header[AR_END_AT] != '`' || header[AR_END_AT + 1] != '\n')
        return damaged(err, name, "a member has no header");
    while (size > 0 && (header[size - 1] == ' ' || header[size - 1] == '/'))
        size--;
    memcpy(out->name, header, size);
    out->name[size] = '\0';
    while (digits < AR_SIZE_DIGITS && header[AR_SIZE_AT + digits] != ' ')
        digits++;
    out->offset = at + AR_HEADER_SIZE;
    if (!klp_parse_u64(header + AR_SIZE_AT, digits, &out->size))
        return damaged(err, name, "a member's size is no number");
    return true;
}

static bool version_check(int fd, const struct klp_ar_member *member, const char *name,
                          struct kelpie_error **err)
{
    char version[2];
    if (strcmp(member->name, "debian-binary") != 0 || member->size < sizeof(version))
        return damaged(err, name, "it does not begin as a Debian package");
    KLP_CHECK(bytes_read(fd, member->offset, version, sizeof(version), name, err));
    if (memcmp(version, "2.", 2) != 0)
        return klp_refuse(err, KELPIE_E_UNSUPPORTED,
                          "cannot read package '%s': not a package of format 2", name);
    return true;
}

static bool data_check(const struct klp_ar_member *member, const char *name,
                       struct kelpie_error **err)
{
    static const char *const suffixes[] = {"", ".gz", ".xz", ".zst"};
    for (size_t i = 0; i < KLP_COUNT(suffixes); i++)
        if (strcmp(member->name + strlen("data.tar"), suffixes[i]) == 0)
            return true;
    return klp_refuse(err, KELPIE_E_UNSUPPORTED,
                      "cannot read package '%s': its data is neither gz, xz nor zst", name);
}

bool klp_deb_data_find(int fd, const char *name, struct klp_ar_member *out,
                       struct kelpie_error **err)
{
    char magic[AR_MAGIC_SIZE];
    struct stat info;
    if (fstat(fd, &info) != 0)
        return klp_posix_refuse(err, errno, "cannot read package '%s'", name);
    KLP_CHECK(bytes_read(fd, 0, magic, sizeof(magic), name, err));
    if (memcmp(magic, "!<arch>\n", sizeof(magic)) != 0)
        return damaged(err, name, "it is no ar archive");
    bool found = false;
    uint64_t at = AR_MAGIC_SIZE, end = (uint64_t)info.st_size;
    for (unsigned i = 0; at < end; i++) {
        struct klp_ar_member member = {0};
        if (i == AR_MEMBERS_MAX)
            return damaged(err, name, "it has too many members");
        KLP_CHECK(header_read(fd, at, name, &member, err));
        if (member.size > end - member.offset)
            return damaged(err, name, "it is truncated");
        if (i == 0)
            KLP_CHECK(version_check(fd, &member, name, err));
        if (!found && strncmp(member.name, "data.tar", strlen("data.tar")) == 0) {
            KLP_CHECK(data_check(&member, name, err));
            *out = member;
            found = true;
        }
        at = member.offset + member.size + (member.size & 1);
    }
    return found || damaged(err, name, "it holds no data.tar");
}

/* ---- tar */

struct reading {
    const char *name; /* of the package */
    const struct klp_deb_take *take;
    struct klp_tar_reader *reader;
    bool ended;
    /* The file under way; NULL data = it is not wanted. */
    char path[KLP_TREE_PATH_MAX + 1];
    uint32_t mode;
    uint8_t *data;
    size_t size, filled;
};

static void reading_finish(struct reading *reading)
{
    if (reading->reader != NULL)
        klp_tar_reader_destroy(reading->reader);
    klp_mem_free(reading->data);
}

static bool reading_init(struct reading *reading, const char *name, const struct klp_deb_take *take,
                         struct kelpie_error **err)
{
    *reading = (struct reading){.name = name, .take = take};
    reading->reader = klp_tar_reader_create(KLP_DEB_CONTENT_MAX);
    return reading->reader != NULL ||
           klp_refuse(err, KELPIE_E_NO_MEMORY, "cannot read package '%s'", name);
}

static bool hardlink_add(struct reading *reading, const char *target, struct kelpie_error **err)
{
    char merged[KLP_TREE_PATH_MAX + 1];
    KLP_CHECK(klp_layout_path(target, merged, err));
    const struct klp_tree_node *node = klp_tree_find(reading->take->tree, merged);
    if (node == NULL || node->kind != KLP_TREE_FILE)
        return damaged(err, reading->name, "a hard link leads to a file that was not taken");
    return klp_tree_file_add(reading->take->tree, reading->path, node->mode, node->data, node->size,
                             err);
}

static bool file_begin(struct reading *reading, const struct klp_tar_entry *entry,
                       struct kelpie_error **err)
{
    if (entry->size > KLP_DEB_FILE_MAX)
        return klp_refuse(err, KELPIE_E_LIMIT, "cannot read package '%s': '%s' is too large",
                          reading->name, reading->path);
    reading->mode = entry->mode;
    reading->size = (size_t)entry->size;
    reading->filled = 0;
    reading->data = klp_mem_try(reading->size + 1);
    return reading->data != NULL ||
           klp_refuse(err, KELPIE_E_NO_MEMORY, "cannot read package '%s': %zu bytes", reading->name,
                      reading->size);
}

static bool entry_begin(struct reading *reading, const struct klp_tar_entry *entry,
                        struct kelpie_error **err)
{
    bool is_root = entry->path[0] == '\0' || strcmp(entry->path, ".") == 0;
    if (entry->kind == KLP_TAR_DIRECTORY || is_root)
        return true;
    KLP_CHECK(klp_layout_path(entry->path, reading->path, err));
    if (!reading->take->want(reading->take->arg, reading->path))
        return true;
    switch (entry->kind) {
    case KLP_TAR_FILE:
        return file_begin(reading, entry, err);
    case KLP_TAR_SYMLINK:
        return klp_tree_symlink_add(reading->take->tree, reading->path, entry->target, err);
    case KLP_TAR_HARDLINK:
        return hardlink_add(reading, entry->target, err);
    case KLP_TAR_DIRECTORY:
    case KLP_TAR_OTHER:
        break;
    }
    return true;
}

static bool content_add(struct reading *reading, struct klp_bytes content,
                        struct kelpie_error **err)
{
    if (reading->data == NULL)
        return true;
    if (content.size > reading->size - reading->filled)
        return damaged(err, reading->name, "a file is longer than it says");
    memcpy(reading->data + reading->filled, content.data, content.size);
    reading->filled += content.size;
    return true;
}

static bool entry_end(struct reading *reading, struct kelpie_error **err)
{
    if (reading->data == NULL)
        return true;
    if (reading->filled != reading->size)
        return damaged(err, reading->name, "a file is shorter than it says");
    return klp_tree_file_give(reading->take->tree, reading->path, reading->mode,
                              KLP_TAKE(&reading->data), reading->size, err);
}

static bool piece_read(void *arg, struct klp_bytes piece, struct kelpie_error **err)
{
    struct reading *reading = arg;
    while (!reading->ended) {
        const struct klp_tar_entry *entry = NULL;
        struct klp_bytes content = {NULL, 0};
        switch (klp_tar_next(reading->reader, &piece, &entry, &content, err)) {
        case KLP_TAR_NEED_MORE:
            return true;
        case KLP_TAR_ENTRY:
            KLP_CHECK(entry_begin(reading, entry, err));
            break;
        case KLP_TAR_CONTENT:
            KLP_CHECK(content_add(reading, content, err));
            break;
        case KLP_TAR_ENTRY_END:
            KLP_CHECK(entry_end(reading, err));
            break;
        case KLP_TAR_SKIPPED:
            break;
        case KLP_TAR_END:
            reading->ended = true;
            break;
        case KLP_TAR_BAD:
            return klp_wrap_refusal(err, "cannot read package '%s': %s", reading->name,
                                    klp_error_why(err));
        }
    }
    return true; /* what follows the end is padding */
}

static bool end_check(const struct reading *reading, struct kelpie_error **err)
{
    return reading->ended || damaged(err, reading->name, "its files are truncated");
}

static inline void klp_auto_reading(struct reading *reading)
{
    reading_finish(reading);
}

kelpie_outcome klp_deb_read(const struct kelpie_op *op, int fd, const char *name,
                            const struct klp_deb_take *take, struct kelpie_error **err)
{
    static const char *const argv[] = {"dpkg-deb", "--fsys-tarfile", "-", NULL};
    struct klp_ar_member data;
    KLP_REQUIRE(klp_deb_data_find(fd, name, &data, err));
    if (lseek(fd, 0, SEEK_SET) != 0)
        return klp_posix_fail(err, errno, "cannot read package '%s'", name);
    KLP_AUTO(reading) struct reading reading = {0};
    KLP_REQUIRE(reading_init(&reading, name, take, err));
    struct klp_child child = {.argv = argv, .stdin_fd = fd, .each = piece_read, .arg = &reading};
    kelpie_outcome outcome = klp_child_run(op, &child, err);
    KLP_TRY(klp_wrap(err, outcome, "cannot unpack package '%s': %s", name, klp_error_why(err)));
    KLP_REQUIRE(end_check(&reading, err));
    return KLP_OK;
}

bool klp_deb_tar_read(struct klp_bytes tar, const char *name, const struct klp_deb_take *take,
                      struct kelpie_error **err)
{
    KLP_AUTO(reading) struct reading reading = {0};
    return reading_init(&reading, name, take, err) && piece_read(&reading, tar, err) &&
           end_check(&reading, err);
}
