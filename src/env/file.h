/* SPDX-License-Identifier: Apache-2.0 */
/* Files below a directory that is held open: no path is ever joined from input. A name is one
 * component; symlinks are not followed. Calls are bounded by size, so they take no op; errors:
 * NOT_FOUND, EXISTS, NO_SPACE, DENIED, IO, each naming the file. A short write is an error. After a
 * failed sync the file's contents are unknown: write it anew under another name. */
#ifndef KLP_ENV_FILE_H
#define KLP_ENV_FILE_H

#include "env/env.h"

struct klp_dir;
struct klp_file;

/* `path` comes from configuration only. `create`: makes missing components, mode 0700. */
KELPIE_MUST_USE bool klp_dir_open(struct klp_env *env, const char *path, bool create,
                                  struct klp_dir **out, struct kelpie_error **err);
KELPIE_MUST_USE bool klp_dir_open_at(struct klp_dir *dir, const char *name, bool create,
                                     struct klp_dir **out, struct kelpie_error **err);
void klp_dir_close(struct klp_dir *dir);
/* The path it was opened by, for messages and for child processes. Borrowed. */
const char *klp_dir_path(const struct klp_dir *dir);
struct klp_env *klp_dir_env(const struct klp_dir *dir);

/* Read-only. */
KELPIE_MUST_USE bool klp_file_open(struct klp_dir *dir, const char *name, struct klp_file **out,
                                   struct kelpie_error **err);
/* Read-write; `exclusive`: EXISTS if it is there, else it is opened as it is. Mode 0600. */
KELPIE_MUST_USE bool klp_file_create(struct klp_dir *dir, const char *name, bool exclusive,
                                     struct klp_file **out, struct kelpie_error **err);
/* A file without a name: gone when closed or when the process dies, unless linked. */
KELPIE_MUST_USE bool klp_file_create_unnamed(struct klp_dir *dir, struct klp_file **out,
                                             struct kelpie_error **err);
/* Gives an unnamed file a name: create-only (EXISTS). Not durable before klp_dir_sync(dir). */
KELPIE_MUST_USE bool klp_file_link(struct klp_file *file, struct klp_dir *dir, const char *name,
                                   struct kelpie_error **err);
/* *out_size < size only at the end of the file. */
KELPIE_MUST_USE bool klp_file_pread(struct klp_file *file, uint64_t offset, void *out, size_t size,
                                    size_t *out_size, struct kelpie_error **err);
KELPIE_MUST_USE bool klp_file_pwrite(struct klp_file *file, uint64_t offset, const void *data,
                                     size_t size, struct kelpie_error **err);
KELPIE_MUST_USE bool klp_file_size(struct klp_file *file, uint64_t *out, struct kelpie_error **err);
KELPIE_MUST_USE bool klp_file_truncate(struct klp_file *file, uint64_t size,
                                       struct kelpie_error **err);
KELPIE_MUST_USE bool klp_file_sync(struct klp_file *file, struct kelpie_error **err);
void klp_file_close(struct klp_file *file);

KELPIE_MUST_USE bool klp_dir_rename(struct klp_dir *dir, const char *from, const char *to,
                                    struct kelpie_error **err); /* replaces `to` */
KELPIE_MUST_USE bool klp_dir_remove(struct klp_dir *dir, const char *name,
                                    struct kelpie_error **err);
/* The name and all below it; absent is fine. Depth <= 8. */
KELPIE_MUST_USE bool klp_dir_remove_tree(struct klp_dir *dir, const char *name,
                                         struct kelpie_error **err);
KELPIE_MUST_USE bool klp_dir_sync(struct klp_dir *dir, struct kelpie_error **err);
/* Calls `each` for every entry (not . and ..) sorted by name, until it returns false. */
KELPIE_MUST_USE bool klp_dir_list(struct klp_dir *dir, bool (*each)(void *arg, const char *name),
                                  void *arg, struct kelpie_error **err);

/* Whole small files. read: appends; LIMIT when more than out->size_max. write: durable and atomic
 * (unnamed file, sync, link as ".NAME.new", rename over, sync of the directory); names of at most
 * 250 bytes. What a crash leaves of one write, the next write of that name removes. */
KELPIE_MUST_USE bool klp_file_read_all(struct klp_dir *dir, const char *name, struct klp_buf *out,
                                       struct kelpie_error **err);
KELPIE_MUST_USE bool klp_file_write_all(struct klp_dir *dir, const char *name, const void *data,
                                        size_t size, struct kelpie_error **err);

KLP_AUTO_DEFINE(dir, struct klp_dir *, klp_dir_close)
KLP_AUTO_DEFINE(file, struct klp_file *, klp_file_close)

/* ---- for the wrappers and implementations only. */
/* INVALID: no single component, or ranges that no file has. */
KELPIE_MUST_USE bool klp_file_name_check(const char *name, struct kelpie_error **err);
KELPIE_MUST_USE bool klp_file_range_check(uint64_t offset, uint64_t size,
                                          struct kelpie_error **err);
struct klp_dir {
    struct klp_env *env;
};
struct klp_file {
    struct klp_env *env;
};
struct klp_file_ops {
    bool (*dir_open)(struct klp_env *, const char *path, bool create, struct klp_dir **,
                     struct kelpie_error **);
    bool (*dir_open_at)(struct klp_dir *, const char *name, bool create, struct klp_dir **,
                        struct kelpie_error **);
    void (*dir_close)(struct klp_dir *);
    const char *(*dir_path)(const struct klp_dir *);
    bool (*open)(struct klp_dir *, const char *name, struct klp_file **, struct kelpie_error **);
    bool (*create)(struct klp_dir *, const char *name, bool exclusive, struct klp_file **,
                   struct kelpie_error **);
    bool (*create_unnamed)(struct klp_dir *, struct klp_file **, struct kelpie_error **);
    bool (*link)(struct klp_file *, struct klp_dir *, const char *name, struct kelpie_error **);
    bool (*pread)(struct klp_file *, uint64_t, void *, size_t, size_t *, struct kelpie_error **);
    bool (*pwrite)(struct klp_file *, uint64_t, const void *, size_t, struct kelpie_error **);
    bool (*size)(struct klp_file *, uint64_t *, struct kelpie_error **);
    bool (*truncate)(struct klp_file *, uint64_t, struct kelpie_error **);
    bool (*sync)(struct klp_file *, struct kelpie_error **);
    void (*close)(struct klp_file *);
    bool (*rename)(struct klp_dir *, const char *from, const char *to, struct kelpie_error **);
    bool (*remove)(struct klp_dir *, const char *name, struct kelpie_error **);
    bool (*remove_tree)(struct klp_dir *, const char *name, struct kelpie_error **);
    bool (*dir_sync)(struct klp_dir *, struct kelpie_error **);
    bool (*list)(struct klp_dir *, bool (*each)(void *, const char *), void *,
                 struct kelpie_error **);
};

#endif
