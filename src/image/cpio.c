/* SPDX-License-Identifier: Apache-2.0 */
/* The newc writer. Hard links are not used, so every inode has one name and its own number. */
#include "image/cpio.h"

#include <stdio.h>
#include <string.h>

#define HEADER_SIZE 110u   /* magic and 13 numbers of 8 hex digits */
#define ARCHIVE_ALIGN 512u /* as cpio(1) pads; Linux skips the zeros */

/* An entry of this name ends an archive. */
static const char trailer[] = "TRAILER!!!";

struct writer {
    struct klp_sink sink;
    uint64_t written;
};

struct entry {
    const char *name;
    uint32_t inode, mode, links, major, minor;
    const void *data;
    size_t size;
};

static bool put(struct writer *writer, const void *data, size_t size, struct kelpie_error **err)
{
    writer->written += size;
    return size == 0 || writer->sink.write(writer->sink.arg, data, size, err);
}

static bool pad(struct writer *writer, unsigned align, struct kelpie_error **err)
{
    static const uint8_t zeros[ARCHIVE_ALIGN];
    return put(writer, zeros, (size_t)(-writer->written & (align - 1)), err);
}

static bool entry_put(struct writer *writer, const struct entry *entry, struct kelpie_error **err)
{
    char header[HEADER_SIZE + 1];
    size_t name_size = strlen(entry->name) + 1;
    if (entry->size > UINT32_MAX)
        return klp_refuse(err, KELPIE_E_LIMIT, "cannot archive '%s': 4 GiB or larger", entry->name);
    int size = snprintf(header, sizeof(header),
                        "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X", entry->inode,
                        entry->mode, 0u, 0u, entry->links, 0u, (uint32_t)entry->size, 0u, 0u,
                        entry->major, entry->minor, (uint32_t)name_size, 0u);
    KLP_ASSERT(size == (int)HEADER_SIZE);
    return put(writer, header, HEADER_SIZE, err) && put(writer, entry->name, name_size, err) &&
           pad(writer, 4, err) && put(writer, entry->data, entry->size, err) && pad(writer, 4, err);
}

/* File type bits of stat(2), which are the archive's too. */
static uint32_t type_bits(enum klp_tree_kind kind)
{
    switch (kind) {
    case KLP_TREE_DIRECTORY:
        return 0040000;
    case KLP_TREE_SYMLINK:
        return 0120000;
    case KLP_TREE_CHAR_DEVICE:
        return 0020000;
    case KLP_TREE_FILE:
        break;
    }
    return 0100000;
}

static bool node_put(struct writer *writer, const struct klp_tree_node *node, uint32_t inode,
                     struct kelpie_error **err)
{
    struct entry entry = {
        .name = node->path,
        .inode = inode,
        .mode = type_bits(node->kind) | node->mode,
        .links = node->kind == KLP_TREE_DIRECTORY ? 2 : 1,
        .major = node->major,
        .minor = node->minor,
        .data = node->data,
        .size = node->size,
    };
    KLP_CHECK(klp_tree_path_check(node->path, err));
    if (strcmp(node->path, trailer) == 0)
        return klp_refuse(err, KELPIE_E_CORRUPT, "cannot archive '%s': that name ends an archive",
                          node->path);
    return entry_put(writer, &entry, err);
}

bool klp_cpio_write(const struct klp_tree *tree, struct klp_sink sink, struct kelpie_error **err)
{
    struct writer writer = {.sink = sink};
    for (size_t i = 0; i < tree->count; i++)
        KLP_CHECK(node_put(&writer, &tree->nodes[i], (uint32_t)i + 1, err));
    struct entry end = {.name = trailer, .links = 1};
    return entry_put(&writer, &end, err) && pad(&writer, ARCHIVE_ALIGN, err);
}
