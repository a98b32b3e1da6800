/* SPDX-License-Identifier: Apache-2.0 */
/* env/file.h in memory: one tree for all hosts, each below a folder of its own. What was synced is
 * kept apart from what was only written, for the crashes to come. */
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "inode.h"

#define FILE_SIZE_MAX (256ull * KLP_MIB)
#define DEPTH_MAX 8
#define DIGEST_NAME_SIZE 64

SIM_FAULT_SITE(SNAPSHOT_CORRUPTION)

struct sim_dir {
    struct klp_dir base;
    struct sim_resource resource;
    struct sim_inode *inode;
    char *path;
};

struct sim_file {
    struct klp_file base;
    struct sim_resource resource;
    struct sim_inode *inode;
    bool writable;
    bool digested; /* its name is its digest, so that whoever reads it can tell */
};

static struct sim_dir *dir_inside(const struct klp_dir *dir)
{
    return (struct sim_dir *)(uintptr_t)dir;
}

static struct sim_file *file_inside(struct klp_file *file)
{
    return (struct sim_file *)file;
}

/* ---- inodes: the world's memory, so that a crash of who has them open loses nothing */

static struct sim_inode *inode_create(bool is_dir)
{
    struct sim_inode *inode = calloc(1, sizeof(*inode));
    inode->refs = 1;
    inode->is_dir = is_dir;
    return inode;
}

struct sim_inode *sim_root_create(void)
{
    return inode_create(true);
}

struct sim_inode *sim_inode_share(struct sim_inode *inode)
{
    inode->refs++;
    return inode;
}

void sim_entries_clear(struct entries *entries)
{
    for (size_t i = 0; i < entries->count; i++) {
        free(entries->list[i].name);
        sim_inode_put(entries->list[i].inode);
    }
    free(entries->list);
    *entries = (struct entries){NULL, 0, 0};
}

void sim_inode_put(struct sim_inode *inode)
{
    if (--inode->refs > 0)
        return;
    sim_entries_clear(&inode->names);
    sim_entries_clear(&inode->synced_names);
    free(inode->now.data);
    free(inode->synced.data);
    free(inode);
}

/* Its place, or where it would be. */
static size_t entry_place(const struct entries *entries, const char *name, bool *out_found)
{
    size_t low = 0, high = entries->count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        int order = strcmp(entries->list[middle].name, name);
        if (order == 0) {
            *out_found = true;
            return middle;
        }
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    *out_found = false;
    return low;
}

struct sim_inode *sim_entry_find(const struct entries *entries, const char *name)
{
    bool found;
    size_t at = entry_place(entries, name, &found);
    return found ? entries->list[at].inode : NULL;
}

static struct sim_inode *entry_find(const struct sim_inode *dir, const char *name)
{
    return sim_entry_find(&dir->names, name);
}

/* The entry takes the caller's reference. */
void sim_entry_insert(struct entries *entries, const char *name, struct sim_inode *inode)
{
    bool found;
    size_t at = entry_place(entries, name, &found);
    KLP_ASSERT(!found);
    if (entries->count == entries->capacity) {
        entries->capacity = entries->capacity != 0 ? 2 * entries->capacity : 8;
        entries->list = realloc(entries->list, entries->capacity * sizeof(entries->list[0]));
        KLP_ASSERT(entries->list != NULL);
    }
    memmove(entries->list + at + 1, entries->list + at,
            (entries->count - at) * sizeof(entries->list[0]));
    entries->list[at] = (struct entry){strdup(name), inode, false};
    entries->count++;
}

static void entry_remove(struct entries *entries, const char *name)
{
    bool found;
    size_t at = entry_place(entries, name, &found);
    if (!found)
        return;
    struct entry entry = entries->list[at];
    entries->count--;
    memmove(entries->list + at, entries->list + at + 1,
            (entries->count - at) * sizeof(entries->list[0]));
    free(entry.name);
    sim_inode_put(entry.inode);
}

/* ---- directories */

static bool not_found(const struct sim_dir *dir, const char *name, struct kelpie_error **err)
{
    return klp_refuse(err, KELPIE_E_NOT_FOUND, "%s/%s does not exist", dir->path, name);
}

static void dir_release(struct sim_resource *resource)
{
    sim_inode_put(KLP_CONTAINER(resource, struct sim_dir, resource)->inode);
}

static struct klp_dir *dir_make(struct klp_env *env, struct sim_inode *inode, char *path)
{
    struct sim_dir *dir = KLP_NEW(struct sim_dir);
    *dir = (struct sim_dir){.base.env = env, .inode = sim_inode_share(inode), .path = path};
    sim_resource_add(&dir->resource, dir_release);
    return &dir->base;
}

static struct sim_inode *folder_get(struct sim_inode *parent, const char *name, bool create)
{
    struct sim_inode *inode = entry_find(parent, name);
    if (inode == NULL && create) {
        inode = inode_create(true);
        sim_entry_insert(&parent->names, name, inode);
    }
    return inode != NULL && inode->is_dir ? inode : NULL;
}

static bool dir_open(struct klp_env *env, const char *path, bool create, struct klp_dir **out,
                     struct kelpie_error **err)
{
    struct sim_inode *inode = sim_world->root;
    char name[256];
    for (const char *at = path; *at != 0 && inode != NULL;) {
        size_t size = strcspn(at, "/");
        KLP_ASSERT(size < sizeof(name));
        memcpy(name, at, size);
        name[size] = 0;
        if (size > 0)
            inode = folder_get(inode, name, create);
        at += size + (at[size] == '/');
    }
    if (inode == NULL)
        return klp_refuse(err, KELPIE_E_NOT_FOUND, "cannot open folder %s: no such folder", path);
    *out = dir_make(env, inode, klp_mem_string(path));
    return true;
}

static bool dir_open_at(struct klp_dir *base, const char *name, bool create, struct klp_dir **out,
                        struct kelpie_error **err)
{
    struct sim_dir *dir = dir_inside(base);
    struct sim_inode *inode = folder_get(dir->inode, name, create);
    if (inode == NULL)
        return not_found(dir, name, err);
    size_t size = strlen(dir->path) + strlen(name) + 2;
    char *path = klp_mem_alloc(size);
    snprintf(path, size, "%s/%s", dir->path, name);
    *out = dir_make(base->env, inode, path);
    return true;
}

static void dir_close(struct klp_dir *base)
{
    struct sim_dir *dir = dir_inside(base);
    sim_resource_remove(&dir->resource);
    sim_inode_put(dir->inode);
    klp_mem_free(dir->path);
    klp_mem_free(dir);
}

static const char *dir_path(const struct klp_dir *dir)
{
    return dir_inside(dir)->path;
}

struct sim_inode *sim_dir_inode(const struct klp_dir *dir)
{
    return dir_inside(dir)->inode;
}

static bool dir_sync(struct klp_dir *base, struct kelpie_error **err)
{
    struct sim_inode *inode = dir_inside(base)->inode;
    bool broken;
    if (!sim_disk_syncs(base->env, &broken, err)) {
        for (size_t i = 0; broken && i < inode->names.count; i++) {
            struct entry *entry = &inode->names.list[i];
            entry->given_up = sim_entry_find(&inode->synced_names, entry->name) != entry->inode;
        }
        return false;
    }
    struct entries synced = {NULL, 0, 0};
    for (size_t i = 0; i < inode->names.count; i++) {
        const struct entry *entry = &inode->names.list[i];
        struct sim_inode *durable =
            entry->given_up ? sim_entry_find(&inode->synced_names, entry->name) : entry->inode;
        if (durable != NULL)
            sim_entry_insert(&synced, entry->name, sim_inode_share(durable));
    }
    sim_entries_clear(&inode->synced_names);
    inode->synced_names = synced;
    return true;
}

static bool dir_list(struct klp_dir *base, bool (*each)(void *, const char *), void *arg,
                     struct kelpie_error **err)
{
    struct sim_inode *inode = dir_inside(base)->inode;
    size_t count = inode->names.count;
    char **names = calloc(count + 1, sizeof(names[0])); /* `each` may change the folder */
    (void)err;
    for (size_t i = 0; i < count; i++)
        names[i] = strdup(inode->names.list[i].name);
    bool more = true;
    for (size_t i = 0; i < count; i++) {
        more = more && each(arg, names[i]);
        free(names[i]);
    }
    free(names);
    return true;
}

static bool dir_rename(struct klp_dir *base, const char *from, const char *to,
                       struct kelpie_error **err)
{
    struct sim_dir *dir = dir_inside(base);
    struct sim_inode *inode = entry_find(dir->inode, from);
    if (inode == NULL)
        return not_found(dir, from, err);
    if (strcmp(from, to) == 0)
        return true;
    sim_inode_share(inode);
    entry_remove(&dir->inode->names, from);
    entry_remove(&dir->inode->names, to);
    sim_entry_insert(&dir->inode->names, to, inode);
    return true;
}

static bool dir_remove(struct klp_dir *base, const char *name, struct kelpie_error **err)
{
    struct sim_dir *dir = dir_inside(base);
    struct sim_inode *inode = entry_find(dir->inode, name);
    if (inode == NULL)
        return not_found(dir, name, err);
    if (inode->names.count > 0)
        return klp_refuse(err, KELPIE_E_IO, "cannot remove %s/%s: it is not empty", dir->path,
                          name);
    entry_remove(&dir->inode->names, name);
    return true;
}

/* All below it goes too, even if somebody has the folder open: as with a real one. */
static bool tree_clear(struct sim_inode *inode, unsigned depth)
{
    if (inode->names.count > 0 && depth == 0)
        return false;
    while (inode->names.count > 0) {
        struct entry *last = &inode->names.list[inode->names.count - 1];
        if (!tree_clear(last->inode, depth - 1))
            return false;
        entry_remove(&inode->names, last->name);
    }
    return true;
}

static bool dir_remove_tree(struct klp_dir *base, const char *name, struct kelpie_error **err)
{
    struct sim_dir *dir = dir_inside(base);
    struct sim_inode *inode = entry_find(dir->inode, name);
    if (inode == NULL)
        return true;
    if (!tree_clear(inode, DEPTH_MAX))
        return klp_refuse(err, KELPIE_E_LIMIT, "%s/%s is too deep to be removed", dir->path, name);
    entry_remove(&dir->inode->names, name);
    return true;
}

/* ---- files */

static void file_release(struct sim_resource *resource)
{
    sim_inode_put(KLP_CONTAINER(resource, struct sim_file, resource)->inode);
}

static struct klp_file *file_make(struct klp_env *env, struct sim_inode *inode, bool writable)
{
    struct sim_file *file = KLP_NEW(struct sim_file);
    *file =
        (struct sim_file){.base.env = env, .inode = sim_inode_share(inode), .writable = writable};
    sim_resource_add(&file->resource, file_release);
    return &file->base;
}

static bool file_open(struct klp_dir *base, const char *name, struct klp_file **out,
                      struct kelpie_error **err)
{
    struct sim_dir *dir = dir_inside(base);
    struct sim_inode *inode = entry_find(dir->inode, name);
    if (inode == NULL)
        return not_found(dir, name, err);
    if (inode->is_dir)
        return klp_refuse(err, KELPIE_E_IO, "cannot open %s/%s: it is a folder", dir->path, name);
    *out = file_make(base->env, inode, false);
    file_inside(*out)->digested = strlen(name) == DIGEST_NAME_SIZE;
    return true;
}

static bool file_create(struct klp_dir *base, const char *name, bool exclusive,
                        struct klp_file **out, struct kelpie_error **err)
{
    struct sim_dir *dir = dir_inside(base);
    struct sim_inode *inode = entry_find(dir->inode, name);
    if (inode != NULL && exclusive)
        return klp_refuse(err, KELPIE_E_EXISTS, "%s/%s exists", dir->path, name);
    if (inode != NULL && inode->is_dir)
        return klp_refuse(err, KELPIE_E_IO, "cannot open %s/%s: it is a folder", dir->path, name);
    if (inode == NULL) {
        inode = inode_create(false);
        sim_entry_insert(&dir->inode->names, name, inode);
    }
    *out = file_make(base->env, inode, true);
    return true;
}

static bool file_create_unnamed(struct klp_dir *base, struct klp_file **out,
                                struct kelpie_error **err)
{
    KLP_CHECK(sim_disk_writes(base->env, err));
    struct sim_inode *inode = inode_create(false);
    *out = file_make(base->env, inode, true);
    sim_inode_put(inode); /* the file holds it */
    return true;
}

static bool file_link(struct klp_file *base, struct klp_dir *dir_base, const char *name,
                      struct kelpie_error **err)
{
    struct sim_dir *dir = dir_inside(dir_base);
    if (entry_find(dir->inode, name) != NULL)
        return klp_refuse(err, KELPIE_E_EXISTS, "cannot name %s/%s: it exists", dir->path, name);
    sim_entry_insert(&dir->inode->names, name, sim_inode_share(file_inside(base)->inode));
    return true;
}

/* A bit of a snapshot may flip on its way from the disk: the next time it is right again. */
static bool file_pread(struct klp_file *base, uint64_t offset, void *out, size_t size,
                       size_t *out_size, struct kelpie_error **err)
{
    const struct bytes *now = &file_inside(base)->inode->now;
    KLP_CHECK(sim_disk_reads(base->env, err));
    size_t left = offset < now->size ? now->size - (size_t)offset : 0;
    *out_size = size < left ? size : left;
    if (*out_size == 0)
        return true;
    memcpy(out, now->data + offset, *out_size);
    if (file_inside(base)->digested && fault_SNAPSHOT_CORRUPTION(sim_env_from(base->env)->node))
        ((uint8_t *)out)[sim_fault_draw(*out_size)] ^= (uint8_t)(1u << sim_fault_draw(8));
    return true;
}

bool sim_bytes_size_set(struct bytes *bytes, uint64_t size, struct kelpie_error **err)
{
    if (size > FILE_SIZE_MAX)
        return klp_refuse(err, KELPIE_E_NO_SPACE, "a file of %llu bytes", (unsigned long long)size);
    if (size > bytes->capacity) {
        size_t capacity = size > 2 * bytes->capacity ? (size_t)size : 2 * bytes->capacity;
        uint8_t *data = realloc(bytes->data, capacity);
        KLP_ASSERT(data != NULL);
        bytes->data = data;
        bytes->capacity = capacity;
    }
    if (size > bytes->size)
        memset(bytes->data + bytes->size, 0, (size_t)size - bytes->size);
    bytes->size = (size_t)size;
    return true;
}

static bool file_pwrite(struct klp_file *base, uint64_t offset, const void *data, size_t size,
                        struct kelpie_error **err)
{
    struct sim_file *file = file_inside(base);
    if (!file->writable)
        return klp_refuse(err, KELPIE_E_IO, "cannot write a file that was opened to be read");
    KLP_CHECK(sim_disk_writes(base->env, err));
    if (offset + size > file->inode->now.size)
        KLP_CHECK(sim_bytes_size_set(&file->inode->now, offset + size, err));
    if (size > 0)
        memcpy(file->inode->now.data + offset, data, size);
    return true;
}

static bool file_size(struct klp_file *base, uint64_t *out, struct kelpie_error **err)
{
    (void)err;
    *out = file_inside(base)->inode->now.size;
    return true;
}

static bool file_truncate(struct klp_file *base, uint64_t size, struct kelpie_error **err)
{
    return sim_bytes_size_set(&file_inside(base)->inode->now, size, err);
}

static bool file_sync(struct klp_file *base, struct kelpie_error **err)
{
    struct sim_inode *inode = file_inside(base)->inode;
    bool broken;
    if (!sim_disk_syncs(base->env, &broken, err)) {
        inode->given_up = broken;
        return false;
    }
    if (inode->given_up)
        return true;
    KLP_CHECK(sim_bytes_size_set(&inode->synced, inode->now.size, err));
    if (inode->now.size > 0)
        memcpy(inode->synced.data, inode->now.data, inode->now.size);
    return true;
}

static void file_close(struct klp_file *base)
{
    sim_resource_remove(&file_inside(base)->resource);
    sim_inode_put(file_inside(base)->inode);
    klp_mem_free(base);
}

const struct klp_file_ops sim_file_ops = {
    .dir_open = dir_open,
    .dir_open_at = dir_open_at,
    .dir_close = dir_close,
    .dir_path = dir_path,
    .open = file_open,
    .create = file_create,
    .create_unnamed = file_create_unnamed,
    .link = file_link,
    .pread = file_pread,
    .pwrite = file_pwrite,
    .size = file_size,
    .truncate = file_truncate,
    .sync = file_sync,
    .close = file_close,
    .rename = dir_rename,
    .remove = dir_remove,
    .remove_tree = dir_remove_tree,
    .dir_sync = dir_sync,
    .list = dir_list,
};
