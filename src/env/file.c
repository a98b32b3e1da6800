/* SPDX-License-Identifier: Apache-2.0 */
/* Wrappers of env/file.h, and whole small files. */
#include "env/file.h"

#include <string.h>

#include "base/fmt.h"

#define NAME_SIZE_MAX 255    /* bytes; what Linux file systems take */
#define WRITE_ATTEMPTS_MAX 8 /* of writers of one name that get in each other's way */

/* One component, so that nothing can lead out of the directory. */
bool klp_file_name_check(const char *name, struct kelpie_error **err)
{
    size_t size = strlen(name);
    bool dots = strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
    bool slash = false;
    for (size_t i = 0; i < size; i++)
        slash = slash || name[i] == '/';
    if (size == 0 || size > NAME_SIZE_MAX || dots || slash)
        return klp_refuse(err, KELPIE_E_INVALID, "'%s' is no file name", name);
    return true;
}

bool klp_file_range_check(uint64_t offset, uint64_t size, struct kelpie_error **err)
{
    uint64_t end;
    if (__builtin_add_overflow(offset, size, &end) || end > INT64_MAX)
        return klp_refuse(err, KELPIE_E_INVALID, "no file has %llu bytes at %llu",
                          (unsigned long long)size, (unsigned long long)offset);
    return true;
}

bool klp_dir_open(struct klp_env *env, const char *path, bool create, struct klp_dir **out,
                  struct kelpie_error **err)
{
    if (path[0] == 0)
        return klp_refuse(err, KELPIE_E_INVALID, "the path of a folder is empty");
    return env->ops->file->dir_open(env, path, create, out, err);
}

bool klp_dir_open_at(struct klp_dir *dir, const char *name, bool create, struct klp_dir **out,
                     struct kelpie_error **err)
{
    KLP_CHECK(klp_file_name_check(name, err));
    return dir->env->ops->file->dir_open_at(dir, name, create, out, err);
}

void klp_dir_close(struct klp_dir *dir)
{
    if (dir != NULL)
        dir->env->ops->file->dir_close(dir);
}

const char *klp_dir_path(const struct klp_dir *dir)
{
    return dir->env->ops->file->dir_path(dir);
}

struct klp_env *klp_dir_env(const struct klp_dir *dir)
{
    return dir->env;
}

bool klp_file_open(struct klp_dir *dir, const char *name, struct klp_file **out,
                   struct kelpie_error **err)
{
    KLP_CHECK(klp_file_name_check(name, err));
    return dir->env->ops->file->open(dir, name, out, err);
}

bool klp_file_create(struct klp_dir *dir, const char *name, bool exclusive, struct klp_file **out,
                     struct kelpie_error **err)
{
    KLP_CHECK(klp_file_name_check(name, err));
    return dir->env->ops->file->create(dir, name, exclusive, out, err);
}

bool klp_file_create_unnamed(struct klp_dir *dir, struct klp_file **out, struct kelpie_error **err)
{
    return dir->env->ops->file->create_unnamed(dir, out, err);
}

bool klp_file_link(struct klp_file *file, struct klp_dir *dir, const char *name,
                   struct kelpie_error **err)
{
    KLP_CHECK(klp_file_name_check(name, err));
    return file->env->ops->file->link(file, dir, name, err);
}

bool klp_file_pread(struct klp_file *file, uint64_t offset, void *out, size_t size,
                    size_t *out_size, struct kelpie_error **err)
{
    KLP_CHECK(klp_file_range_check(offset, size, err));
    return file->env->ops->file->pread(file, offset, out, size, out_size, err);
}

bool klp_file_pwrite(struct klp_file *file, uint64_t offset, const void *data, size_t size,
                     struct kelpie_error **err)
{
    KLP_CHECK(klp_file_range_check(offset, size, err));
    return file->env->ops->file->pwrite(file, offset, data, size, err);
}

bool klp_file_size(struct klp_file *file, uint64_t *out, struct kelpie_error **err)
{
    return file->env->ops->file->size(file, out, err);
}

bool klp_file_truncate(struct klp_file *file, uint64_t size, struct kelpie_error **err)
{
    KLP_CHECK(klp_file_range_check(0, size, err));
    return file->env->ops->file->truncate(file, size, err);
}

bool klp_file_sync(struct klp_file *file, struct kelpie_error **err)
{
    return file->env->ops->file->sync(file, err);
}

void klp_file_close(struct klp_file *file)
{
    if (file != NULL)
        file->env->ops->file->close(file);
}

bool klp_dir_rename(struct klp_dir *dir, const char *from, const char *to,
                    struct kelpie_error **err)
{
    KLP_CHECK(klp_file_name_check(from, err));
    KLP_CHECK(klp_file_name_check(to, err));
    return dir->env->ops->file->rename(dir, from, to, err);
}

bool klp_dir_remove(struct klp_dir *dir, const char *name, struct kelpie_error **err)
{
    KLP_CHECK(klp_file_name_check(name, err));
    return dir->env->ops->file->remove(dir, name, err);
}

bool klp_dir_remove_tree(struct klp_dir *dir, const char *name, struct kelpie_error **err)
{
    KLP_CHECK(klp_file_name_check(name, err));
    return dir->env->ops->file->remove_tree(dir, name, err);
}

bool klp_dir_sync(struct klp_dir *dir, struct kelpie_error **err)
{
    return dir->env->ops->file->dir_sync(dir, err);
}

bool klp_dir_list(struct klp_dir *dir, bool (*each)(void *arg, const char *name), void *arg,
                  struct kelpie_error **err)
{
    return dir->env->ops->file->list(dir, each, arg, err);
}

bool klp_file_read_all(struct klp_dir *dir, const char *name, struct klp_buf *out,
                       struct kelpie_error **err)
{
    KLP_AUTO(file) struct klp_file *file = NULL;
    KLP_CHECK(klp_file_open(dir, name, &file, err));

    uint64_t size;
    KLP_CHECK(klp_file_size(file, &size, err));
    if (size > out->size_max - out->size)
        return klp_refuse(err, KELPIE_E_LIMIT, "%s/%s is larger than %zu bytes", klp_dir_path(dir),
                          name, out->size_max);
    void *room = klp_buf_reserve(out, (size_t)size);
    KLP_CHECK(klp_buf_check(out, name, err));
    size_t got = 0;
    KLP_CHECK(klp_file_pread(file, 0, room, (size_t)size, &got, err));
    klp_buf_grow(out, got);
    return true;
}

/* The file under its temporary name, complete and durable. A name that is taken is what a crash or
 * another writer left: its own contents are of no more use. */
static bool temporary_link(struct klp_dir *dir, const char *temporary, const void *data,
                           size_t size, struct kelpie_error **err)
{
    KLP_AUTO(file) struct klp_file *file = NULL;
    KLP_CHECK(klp_file_create_unnamed(dir, &file, err));
    KLP_CHECK(klp_file_pwrite(file, 0, data, size, err));
    KLP_CHECK(klp_file_sync(file, err));
    for (unsigned i = 0; i < WRITE_ATTEMPTS_MAX; i++) {
        struct kelpie_error *why = NULL;
        if (klp_file_link(file, dir, temporary, &why))
            return true;
        if (klp_error_code(&why) != KELPIE_E_EXISTS) {
            klp_error_move(err, &why);
            return false;
        }
        klp_error_clear(&why);
        KLP_IGNORE(klp_dir_remove(dir, temporary, NULL));
    }
    return klp_refuse(err, KELPIE_E_BUSY, "%s/%s is written by others", klp_dir_path(dir),
                      temporary);
}

/* One attempt. *out_again: another writer of this name took the temporary one away; both files were
 * complete, so only the order of the two is open. */
static bool write_once(struct klp_dir *dir, const char *temporary, const char *name,
                       const void *data, size_t size, bool *out_again, struct kelpie_error **err)
{
    struct kelpie_error *why = NULL;
    KLP_CHECK(temporary_link(dir, temporary, data, size, err));
    if (klp_dir_rename(dir, temporary, name, &why))
        return klp_dir_sync(dir, err);
    *out_again = klp_error_code(&why) == KELPIE_E_NOT_FOUND;
    if (!*out_again)
        KLP_IGNORE(klp_dir_remove(dir, temporary, NULL));
    klp_error_move(err, &why);
    return false;
}

bool klp_file_write_all(struct klp_dir *dir, const char *name, const void *data, size_t size,
                        struct kelpie_error **err)
{
    char temporary[NAME_SIZE_MAX + 8];
    KLP_CHECK(klp_file_name_check(name, err));
    klp_format(temporary, sizeof(temporary), ".%s.new", name);
    KLP_CHECK(klp_file_name_check(temporary, err));
    for (unsigned i = 1;; i++) {
        struct kelpie_error *why = NULL;
        bool again = false;
        if (write_once(dir, temporary, name, data, size, &again, &why))
            return true;
        if (!again || i == WRITE_ATTEMPTS_MAX) {
            klp_error_move(err, &why);
            return false;
        }
        klp_error_clear(&why);
    }
}
