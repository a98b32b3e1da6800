/* SPDX-License-Identifier: Apache-2.0 */
/* Immutable objects named by the SHA-256 of their stored bytes, and create-only refs that name
 * them. Kinds keep them apart in listings; the name alone identifies. Implementations: local/ (a
 * directory that several daemons of one host may share), later peer/ and s3/. Every call may block.
 */
#ifndef KLP_STORE_STORE_H
#define KLP_STORE_STORE_H

#include "env/env.h"

enum klp_object_kind {
    KLP_OBJECT_PACK,
    KLP_OBJECT_MAP,
    KLP_OBJECT_STATE,
    KLP_OBJECT_MANIFEST,
    KLP_OBJECT_BLOB,
    KLP_OBJECT_KIND_COUNT
};
const char *
klp_object_kind_name(enum klp_object_kind kind); /* "packs" "maps" "states" "manifests" "blobs" */

#define KLP_REF_NAME_MAX 200   /* bytes; components [a-z0-9][a-z0-9.-]*, at most 4, joined by '/' */
#define KLP_REF_VALUE_MAX 1024 /* bytes */
#define KLP_OBJECT_SIZE_MAX (1ull << 40) /* bytes */

struct klp_store_ops;
struct klp_store { /* first member of every implementation */
    const struct klp_store_ops *ops;
    struct klp_env *env;
};

/* ---- writing: bytes are spooled, hashed, made durable, then named. Concurrent writers are fine.
 */
struct klp_store_writer;
KELPIE_MUST_USE kelpie_outcome klp_store_begin(const struct kelpie_op *op, struct klp_store *store,
                                               enum klp_object_kind kind,
                                               struct klp_store_writer **out,
                                               struct kelpie_error **err);
/* NO_SPACE names the store and the bytes written so far. */
KELPIE_MUST_USE kelpie_outcome klp_store_write(const struct kelpie_op *op,
                                               struct klp_store_writer *writer, const void *data,
                                               size_t size, struct kelpie_error **err);
/* Durable and named when OK; an object that is there already is fine (*out_existed). Ends the
 * writer in every case. */
KELPIE_MUST_USE kelpie_outcome klp_store_commit(const struct kelpie_op *op,
                                                struct klp_store_writer *writer,
                                                struct klp_digest *out, uint64_t *out_size,
                                                bool *out_existed, struct kelpie_error **err);
void klp_store_abandon(struct klp_store_writer *writer); /* NULL is fine; nothing stays behind */
KLP_AUTO_DEFINE(store_writer, struct klp_store_writer *, klp_store_abandon)
/* begin + write + commit. */
KELPIE_MUST_USE kelpie_outcome klp_store_put(const struct kelpie_op *op, struct klp_store *store,
                                             enum klp_object_kind kind, const void *data,
                                             size_t size, struct klp_digest *out,
                                             struct kelpie_error **err);

/* ---- reading. NOT_FOUND names kind and digest. */
struct klp_store_reader; /* one object held open: ranges are cheap */
KELPIE_MUST_USE kelpie_outcome klp_store_open(const struct kelpie_op *op, struct klp_store *store,
                                              enum klp_object_kind kind,
                                              const struct klp_digest *digest,
                                              struct klp_store_reader **out, uint64_t *out_size,
                                              struct kelpie_error **err);
/* Exactly `size` bytes, or CORRUPT naming the object when it is shorter. Thread-safe on one reader.
 */
KELPIE_MUST_USE kelpie_outcome klp_store_read(const struct kelpie_op *op,
                                              struct klp_store_reader *reader, uint64_t offset,
                                              void *out, size_t size, struct kelpie_error **err);
void klp_store_close(struct klp_store_reader *reader);
KLP_AUTO_DEFINE(store_reader, struct klp_store_reader *, klp_store_close)
/* The whole object, hash verified, appended to *out, which is unchanged on failure: CORRUPT names
 * it. LIMIT when it would grow past out->size_max. */
KELPIE_MUST_USE kelpie_outcome klp_store_get(const struct kelpie_op *op, struct klp_store *store,
                                             enum klp_object_kind kind,
                                             const struct klp_digest *digest, struct klp_buf *out,
                                             struct kelpie_error **err);
/* Reads it all, in blocks, and compares the hash: CORRUPT names the object. */
KELPIE_MUST_USE kelpie_outcome klp_store_verify(const struct kelpie_op *op, struct klp_store *store,
                                                enum klp_object_kind kind,
                                                const struct klp_digest *digest,
                                                struct kelpie_error **err);
/* A path other programs of this host can read the object by (kernel images), or UNSUPPORTED. Owned
 * text. */
KELPIE_MUST_USE kelpie_outcome klp_store_path(const struct kelpie_op *op, struct klp_store *store,
                                              enum klp_object_kind kind,
                                              const struct klp_digest *digest, char **out,
                                              struct kelpie_error **err);

/* ---- maintenance. */
KELPIE_MUST_USE kelpie_outcome
klp_store_list(const struct kelpie_op *op, struct klp_store *store, enum klp_object_kind kind,
               bool (*each)(void *arg, const struct klp_digest *digest, uint64_t size), void *arg,
               struct kelpie_error **err);
/* Absent is fine. */
KELPIE_MUST_USE kelpie_outcome klp_store_delete(const struct kelpie_op *op, struct klp_store *store,
                                                enum klp_object_kind kind,
                                                const struct klp_digest *digest,
                                                struct kelpie_error **err);

/* ---- refs: small, create-only. */
/* EXISTS when the ref is there (with whatever value); durable when OK; UNKNOWN: read it back. */
KELPIE_MUST_USE kelpie_outcome klp_ref_create(const struct kelpie_op *op, struct klp_store *store,
                                              const char *name, const void *value, size_t size,
                                              struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome klp_ref_get(const struct kelpie_op *op, struct klp_store *store,
                                           const char *name, struct klp_buf *out,
                                           struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome klp_ref_delete(const struct kelpie_op *op, struct klp_store *store,
                                              const char *name, struct kelpie_error **err);
/* Whole names strictly below `prefix` ("snapshots", "images/base"; "" = all), sorted component by
 * component; absent prefix = none. */
KELPIE_MUST_USE kelpie_outcome klp_ref_list(const struct kelpie_op *op, struct klp_store *store,
                                            const char *prefix,
                                            bool (*each)(void *arg, const char *name), void *arg,
                                            struct kelpie_error **err);
KELPIE_MUST_USE bool klp_ref_name_check(const char *name, struct kelpie_error **err);

const char *klp_store_name(const struct klp_store *store); /* its URL, for messages; borrowed */
void klp_store_destroy(struct klp_store *store); /* NULL is fine; after its readers and writers */
KLP_AUTO_DEFINE(store, struct klp_store *, klp_store_destroy)

/* ---- for implementations only. The wrappers in store.c check names, sizes and the op, and hash.
 */
struct klp_store_writer {
    struct klp_store *store;
    enum klp_object_kind kind;
    uint64_t size;
    struct klp_sha256 *hash;
    bool failed; /* a write failed: only abandon is left */
};
struct klp_store_reader {
    struct klp_store *store;
    enum klp_object_kind kind;
    struct klp_digest digest;
    uint64_t size;
};
struct klp_store_ops {
    const char *(*name)(const struct klp_store *);
    kelpie_outcome (*begin)(const struct kelpie_op *, struct klp_store *, enum klp_object_kind,
                            struct klp_store_writer **, struct kelpie_error **);
    kelpie_outcome (*write)(const struct kelpie_op *, struct klp_store_writer *, const void *,
                            size_t, struct kelpie_error **);
    kelpie_outcome (*commit)(const struct kelpie_op *, struct klp_store_writer *,
                             const struct klp_digest *, bool *existed, struct kelpie_error **);
    void (*writer_free)(struct klp_store_writer *);
    kelpie_outcome (*open)(const struct kelpie_op *, struct klp_store *, enum klp_object_kind,
                           const struct klp_digest *, struct klp_store_reader **,
                           struct kelpie_error **);
    kelpie_outcome (*read)(const struct kelpie_op *, struct klp_store_reader *, uint64_t, void *,
                           size_t, struct kelpie_error **);
    void (*reader_free)(struct klp_store_reader *);
    kelpie_outcome (*path)(const struct kelpie_op *, struct klp_store *, enum klp_object_kind,
                           const struct klp_digest *, char **, struct kelpie_error **);
    kelpie_outcome (*list)(const struct kelpie_op *, struct klp_store *, enum klp_object_kind,
                           bool (*)(void *, const struct klp_digest *, uint64_t), void *,
                           struct kelpie_error **);
    kelpie_outcome (*remove)(const struct kelpie_op *, struct klp_store *, enum klp_object_kind,
                             const struct klp_digest *, struct kelpie_error **);
    kelpie_outcome (*ref_create)(const struct kelpie_op *, struct klp_store *, const char *,
                                 const void *, size_t, struct kelpie_error **);
    kelpie_outcome (*ref_get)(const struct kelpie_op *, struct klp_store *, const char *,
                              struct klp_buf *, struct kelpie_error **);
    kelpie_outcome (*ref_delete)(const struct kelpie_op *, struct klp_store *, const char *,
                                 struct kelpie_error **);
    kelpie_outcome (*ref_list)(const struct kelpie_op *, struct klp_store *, const char *,
                               bool (*)(void *, const char *), void *, struct kelpie_error **);
    void (*destroy)(struct klp_store *);
};

#endif
