/* SPDX-License-Identifier: Apache-2.0 */
/* Writing tar: ustar headers, with a pax header before those whose values do not fit. Content and
 * its padding are the caller's. */
#include <string.h>

#include "format/tar_inside.h"

static void number_store(uint8_t *field, size_t size, uint64_t value)
{
    field[size - 1] = '\0';
    for (size_t i = size - 1; i-- > 0; value >>= 3)
        field[i] = (uint8_t)('0' + (value & 7));
}

static void header_store(uint8_t block[KLP_TAR_BLOCK], char type, uint32_t mode, uint64_t size,
                         uint64_t mtime)
{
    memset(block, 0, KLP_TAR_BLOCK);
    number_store(block + TAR_MODE, TAR_NUMBER_SIZE, mode);
    number_store(block + TAR_UID, TAR_NUMBER_SIZE, 0); /* whoever unpacks it owns it */
    number_store(block + TAR_GID, TAR_NUMBER_SIZE, 0);
    number_store(block + TAR_SIZE, TAR_LONG_SIZE, size);
    number_store(block + TAR_MTIME, TAR_LONG_SIZE, mtime);
    block[TAR_TYPE] = (uint8_t)type;
    memcpy(block + TAR_MAGIC, TAR_POSIX_MAGIC, TAR_MAGIC_SIZE);
    number_store(block + TAR_MAJOR, TAR_NUMBER_SIZE, 0);
    number_store(block + TAR_MINOR, TAR_NUMBER_SIZE, 0);
}

static void header_append(uint8_t block[KLP_TAR_BLOCK], struct klp_buf *out)
{
    number_store(block + TAR_SUM, TAR_NUMBER_SIZE - 1, klp_tar_sum(block));
    block[TAR_SUM + TAR_NUMBER_SIZE - 1] = ' ';
    klp_buf_append(out, block, KLP_TAR_BLOCK);
}

/* Puts the name into name and prefix; false when no '/' lies where it could be cut. */
static bool name_store(uint8_t block[KLP_TAR_BLOCK], const char *name, size_t size)
{
    if (size <= TAR_NAME_SIZE) {
        memcpy(block + TAR_NAME, name, size);
        return true;
    }
    for (size_t cut = size - TAR_NAME_SIZE - 1; cut <= TAR_PREFIX_SIZE && cut + 1 < size; cut++) {
        if (name[cut] != '/' || cut == 0)
            continue;
        memcpy(block + TAR_PREFIX, name, cut);
        memcpy(block + TAR_NAME, name + cut + 1, size - cut - 1);
        return true;
    }
    memcpy(block + TAR_NAME, name,
           TAR_NAME_SIZE); /* for readers without pax, at least unlike ours */
    return false;
}

static size_t digit_count(size_t value)
{
    size_t count = 1;
    for (; value >= 10; value /= 10)
        count++;
    return count;
}

static void pax_append(struct klp_buf *pax, const char *key, const char *value)
{
    size_t rest = strlen(key) + strlen(value) + 3; /* space, '=', newline */
    size_t size = rest + digit_count(rest);
    size = rest + digit_count(size); /* the digits may have grown by one */
    klp_buf_append_format(pax, "%zu %s=", size, key);
    klp_buf_append_text(pax, value);
    klp_buf_append_u8(pax, '\n');
}

static void pax_append_i64(struct klp_buf *pax, const char *key, int64_t value)
{
    struct klp_buf text KLP_AUTO(buf) = KLP_BUF_INIT(32);
    uint64_t magnitude = value < 0 ? (uint64_t)0 - (uint64_t)value : (uint64_t)value;
    klp_buf_append_format(&text, "%s%llu", value < 0 ? "-" : "", (unsigned long long)magnitude);
    pax_append(pax, key, klp_buf_text(&text));
}

static void pax_header_append(struct klp_buf *out, struct klp_bytes records)
{
    static const char name[] = "././@PaxHeader";
    static const uint8_t zeros[KLP_TAR_BLOCK];
    uint8_t block[KLP_TAR_BLOCK];
    if (records.size == 0)
        return;
    header_store(block, 'x', 0644, records.size, 0);
    memcpy(block + TAR_NAME, name, sizeof(name));
    header_append(block, out);
    klp_buf_append(out, records.data, records.size);
    klp_buf_append(out, zeros, klp_tar_padding(records.size));
}

static char type_of(enum klp_tar_kind kind)
{
    switch (kind) {
    case KLP_TAR_FILE:
        return '0';
    case KLP_TAR_HARDLINK:
        return '1';
    case KLP_TAR_SYMLINK:
        return '2';
    case KLP_TAR_DIRECTORY:
        return '5';
    case KLP_TAR_OTHER:
        break;
    }
    return '\0';
}

/* Name and target as they are written; room for KLP_PATH_MAX + 2 bytes each. */
static bool names_check(const struct klp_tar_entry *entry, char *name, char *target,
                        struct kelpie_error **err)
{
    struct klp_bytes path = {(const uint8_t *)entry->path, strlen(entry->path)};
    struct klp_bytes link = {(const uint8_t *)entry->target, strlen(entry->target)};
    if (type_of(entry->kind) == '\0')
        return klp_refuse(err, KELPIE_E_INVALID, "tar: only files, directories and links go in");
    KLP_CHECK(klp_tar_path_normal(path, name, KELPIE_E_INVALID, err));
    size_t size = strlen(name);
    if (entry->kind == KLP_TAR_DIRECTORY) {
        name[size] = '/';
        name[size + 1] = '\0';
    } else if (strcmp(name, ".") == 0) {
        return klp_refuse(err, KELPIE_E_INVALID, "tar: only a directory can be '.'");
    }
    target[0] = '\0';
    if (entry->kind == KLP_TAR_SYMLINK)
        return klp_tar_target_copy(link, target, KELPIE_E_INVALID, err);
    if (entry->kind == KLP_TAR_HARDLINK)
        return klp_tar_path_normal(link, target, KELPIE_E_INVALID, err);
    return true;
}

bool klp_tar_header_append(struct klp_buf *out, const struct klp_tar_entry *entry,
                           struct kelpie_error **err)
{
    KLP_AUTO(memory) char *name = klp_mem_alloc(KLP_PATH_MAX + 2);
    KLP_AUTO(memory) char *target = klp_mem_alloc(KLP_PATH_MAX + 2);
    struct klp_buf pax KLP_AUTO(buf) = KLP_BUF_INIT(TAR_META_MAX);
    uint8_t block[KLP_TAR_BLOCK];
    KLP_CHECK(names_check(entry, name, target, err));
    uint64_t size = entry->kind == KLP_TAR_FILE ? entry->size : 0;
    if (size > INT64_MAX)
        return klp_refuse(err, KELPIE_E_INVALID, "tar: a file of more than 2^63 bytes");
    bool size_fits = size <= TAR_NUMBER_MAX;
    bool mtime_fits = entry->mtime >= 0 && (uint64_t)entry->mtime <= TAR_NUMBER_MAX;
    header_store(block, type_of(entry->kind), entry->mode & 0777u, size_fits ? size : 0,
                 mtime_fits ? (uint64_t)entry->mtime : 0);
    size_t target_size = strlen(target);
    if (!name_store(block, name, strlen(name))) {
        if (entry->kind == KLP_TAR_DIRECTORY)
            name[strlen(name) - 1] = '\0'; /* its type says it: no byte more than a path may have */
        pax_append(&pax, "path", name);
    }
    if (target_size > TAR_NAME_SIZE)
        pax_append(&pax, "linkpath", target);
    memcpy(block + TAR_LINK, target, target_size < TAR_NAME_SIZE ? target_size : TAR_NAME_SIZE);
    if (!size_fits)
        pax_append_i64(&pax, "size", (int64_t)size);
    if (!mtime_fits)
        pax_append_i64(&pax, "mtime", entry->mtime);
    KLP_CHECK(klp_buf_check(&pax, "pax header", err));
    pax_header_append(out, klp_buf_view(&pax));
    header_append(block, out);
    return klp_buf_check(out, "tar stream", err);
}

void klp_tar_end_append(struct klp_buf *out)
{
    static const uint8_t zeros[2 * KLP_TAR_BLOCK];
    klp_buf_append(out, zeros, sizeof(zeros));
}
