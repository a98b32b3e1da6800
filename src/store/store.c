/* SPDX-License-Identifier: Apache-2.0 */
/* The store's wrappers: every check that all implementations share (names, sizes, the op), hashing,
 * and the object's name in every message. Where bytes lie and how they become durable is left to
 * the implementations; who may delete what, to snapshot/. */
#include "store/store.h"

#include <string.h>

#include "base/ext/sha256.h"
#include "base/fmt.h"
#include "base/limits.h"

#define REF_COMPONENTS_MAX 4
#define OBJECT_TEXT_SIZE (16 + KLP_DIGEST_SIZE) /* "manifests/HEX" */

const char *klp_object_kind_name(enum klp_object_kind kind)
{
    static const char *const names[KLP_OBJECT_KIND_COUNT] = {"packs", "maps", "states", "manifests",
                                                             "blobs"};
    KLP_ASSERT((unsigned)kind < KLP_OBJECT_KIND_COUNT);
    return names[kind];
}

static void object_text(char out[OBJECT_TEXT_SIZE], enum klp_object_kind kind,
                        const struct klp_digest *digest)
{
    char hex[KLP_DIGEST_SIZE];
    klp_digest_text(digest, hex);
    klp_format(out, OBJECT_TEXT_SIZE, "%s/%s", klp_object_kind_name(kind), hex);
}

/* ---- writing */

kelpie_outcome klp_store_begin(const struct kelpie_op *op, struct klp_store *store,
                               enum klp_object_kind kind, struct klp_store_writer **out,
                               struct kelpie_error **err)
{
    KLP_ASSERT((unsigned)kind < KLP_OBJECT_KIND_COUNT);
    KLP_TRY(klp_op_check(op, "writing to the store", err));
    struct klp_store_writer *writer = NULL;
    KLP_TRY(store->ops->begin(op, store, kind, &writer, err));
    writer->store = store;
    writer->kind = kind;
    writer->size = 0;
    writer->failed = false;
    writer->hash = klp_sha256_create();
    *out = writer;
    return KLP_OK;
}

kelpie_outcome klp_store_write(const struct kelpie_op *op, struct klp_store_writer *writer,
                               const void *data, size_t size, struct kelpie_error **err)
{
    const char *name = klp_store_name(writer->store);
    if (writer->failed)
        return klp_fail(err, KELPIE_E_STATE,
                        "cannot write to store '%s': an earlier write of this object failed", name);
    KLP_TRY(klp_op_check(op, "writing to the store", err));
    if (size > KLP_OBJECT_SIZE_MAX - writer->size)
        return klp_fail(err, KELPIE_E_LIMIT, "cannot write to store '%s': object over %llu bytes",
                        name, (unsigned long long)KLP_OBJECT_SIZE_MAX);
    kelpie_outcome outcome = writer->store->ops->write(op, writer, data, size, err);
    if (!kelpie_is_ok(outcome)) {
        writer->failed = true;
        return klp_wrap(err, outcome, "cannot write %zu bytes to store '%s' after %llu", size, name,
                        (unsigned long long)writer->size);
    }
    klp_sha256_update(writer->hash, data, size);
    writer->size += size;
    return KLP_OK;
}

kelpie_outcome klp_store_commit(const struct kelpie_op *op, struct klp_store_writer *writer,
                                struct klp_digest *out, uint64_t *out_size, bool *out_existed,
                                struct kelpie_error **err)
{
    KLP_AUTO(store_writer) struct klp_store_writer *owned = writer;
    const char *name = klp_store_name(owned->store);
    if (owned->failed)
        return klp_fail(err, KELPIE_E_STATE,
                        "cannot commit to store '%s': an earlier write of this object failed",
                        name);
    KLP_TRY(klp_op_check(op, "writing to the store", err));
    struct klp_digest digest;
    klp_sha256_final(owned->hash, &digest);
    bool existed = false;
    kelpie_outcome outcome = owned->store->ops->commit(op, owned, &digest, &existed, err);
    if (!kelpie_is_ok(outcome)) {
        char text[OBJECT_TEXT_SIZE];
        object_text(text, owned->kind, &digest);
        return klp_wrap(err, outcome, "cannot commit %s of %llu bytes to store '%s'", text,
                        (unsigned long long)owned->size, name);
    }
    *out = digest;
    if (out_size != NULL)
        *out_size = owned->size;
    if (out_existed != NULL)
        *out_existed = existed;
    return KLP_OK;
}

void klp_store_abandon(struct klp_store_writer *writer)
{
    if (writer == NULL)
        return;
    klp_sha256_destroy(writer->hash);
    writer->store->ops->writer_free(writer);
}

kelpie_outcome klp_store_put(const struct kelpie_op *op, struct klp_store *store,
                             enum klp_object_kind kind, const void *data, size_t size,
                             struct klp_digest *out, struct kelpie_error **err)
{
    KLP_AUTO(store_writer) struct klp_store_writer *writer = NULL;
    KLP_TRY(klp_store_begin(op, store, kind, &writer, err));
    KLP_TRY(klp_store_write(op, writer, data, size, err));
    return klp_store_commit(op, KLP_TAKE(&writer), out, NULL, NULL, err);
}

/* ---- reading */

kelpie_outcome klp_store_open(const struct kelpie_op *op, struct klp_store *store,
                              enum klp_object_kind kind, const struct klp_digest *digest,
                              struct klp_store_reader **out, uint64_t *out_size,
                              struct kelpie_error **err)
{
    KLP_ASSERT((unsigned)kind < KLP_OBJECT_KIND_COUNT);
    KLP_TRY(klp_op_check(op, "reading from the store", err));
    struct klp_store_reader *reader = NULL;
    kelpie_outcome outcome = store->ops->open(op, store, kind, digest, &reader, err);
    if (!kelpie_is_ok(outcome)) {
        char text[OBJECT_TEXT_SIZE];
        object_text(text, kind, digest);
        return klp_wrap(err, outcome, "cannot open %s in store '%s'", text, klp_store_name(store));
    }
    reader->store = store;
    reader->kind = kind;
    reader->digest = *digest;
    *out = reader;
    if (out_size != NULL)
        *out_size = reader->size;
    return KLP_OK;
}

kelpie_outcome klp_store_read(const struct kelpie_op *op, struct klp_store_reader *reader,
                              uint64_t offset, void *out, size_t size, struct kelpie_error **err)
{
    char text[OBJECT_TEXT_SIZE];
    object_text(text, reader->kind, &reader->digest);
    KLP_TRY(klp_op_check(op, "reading from the store", err));
    if (offset > reader->size || size > reader->size - offset)
        return klp_fail(err, KELPIE_E_CORRUPT,
                        "cannot read %zu bytes at %llu of %s in store '%s': it ends at %llu", size,
                        (unsigned long long)offset, text, klp_store_name(reader->store),
                        (unsigned long long)reader->size);
    if (size == 0)
        return KLP_OK;
    return klp_wrap(err, reader->store->ops->read(op, reader, offset, out, size, err),
                    "cannot read %zu bytes at %llu of %s in store '%s'", size,
                    (unsigned long long)offset, text, klp_store_name(reader->store));
}

void klp_store_close(struct klp_store_reader *reader)
{
    if (reader != NULL)
        reader->store->ops->reader_free(reader);
}

static kelpie_outcome hash_compare(const struct klp_store_reader *reader, struct klp_sha256 *hash,
                                   struct kelpie_error **err)
{
    struct klp_digest found;
    klp_sha256_final(hash, &found);
    if (klp_digest_equal(&found, &reader->digest))
        return KLP_OK;
    char text[OBJECT_TEXT_SIZE], hex[KLP_DIGEST_SIZE];
    object_text(text, reader->kind, &reader->digest);
    klp_digest_text(&found, hex);
    return klp_fail(err, KELPIE_E_CORRUPT,
                    "cannot use %s in store '%s': its %llu bytes have the hash %s", text,
                    klp_store_name(reader->store), (unsigned long long)reader->size, hex);
}

/* Reads all of the object in blocks into `out` (kept whole) or, when that is NULL, over one block.
 */
static kelpie_outcome read_and_hash(const struct kelpie_op *op, struct klp_store_reader *reader,
                                    uint8_t *out, struct kelpie_error **err)
{
    KLP_AUTO(memory) uint8_t *block = NULL;
    if (out == NULL && reader->size > 0) {
        block =
            klp_mem_try_raw(reader->size < KLP_BLOCK_SIZE ? (size_t)reader->size : KLP_BLOCK_SIZE);
        if (block == NULL)
            return klp_fail(err, KELPIE_E_NO_MEMORY, "cannot verify in store '%s': out of memory",
                            klp_store_name(reader->store));
    }
    KLP_AUTO(sha256) struct klp_sha256 *hash = klp_sha256_create();
    for (uint64_t at = 0; at < reader->size;) {
        uint64_t left = reader->size - at;
        size_t size = left < KLP_BLOCK_SIZE ? (size_t)left : KLP_BLOCK_SIZE;
        uint8_t *place = out != NULL ? out + at : block;
        KLP_TRY(klp_store_read(op, reader, at, place, size, err));
        klp_sha256_update(hash, place, size);
        at += size;
    }
    return hash_compare(reader, hash, err);
}

kelpie_outcome klp_store_get(const struct kelpie_op *op, struct klp_store *store,
                             enum klp_object_kind kind, const struct klp_digest *digest,
                             struct klp_buf *out, struct kelpie_error **err)
{
    KLP_AUTO(store_reader) struct klp_store_reader *reader = NULL;
    uint64_t size = 0;
    KLP_REQUIRE(klp_buf_check(out, "an object of the store", err));
    KLP_TRY(klp_store_open(op, store, kind, digest, &reader, &size, err));
    char text[OBJECT_TEXT_SIZE];
    object_text(text, kind, digest);
    if (size > out->size_max - out->size)
        return klp_fail(err, KELPIE_E_LIMIT,
                        "cannot read %s in store '%s': %llu bytes, at most %zu are expected", text,
                        klp_store_name(store), (unsigned long long)size, out->size_max - out->size);
    if (size == 0)
        return read_and_hash(op, reader, NULL, err);
    uint8_t *place = klp_buf_reserve(out, (size_t)size);
    if (place == NULL)
        return (kelpie_outcome){klp_buf_check(out, text, err) ? KELPIE_OK : KELPIE_FAIL};
    kelpie_outcome outcome = read_and_hash(op, reader, place, err);
    if (kelpie_is_ok(outcome))
        klp_buf_grow(out, (size_t)size);
    else
        *place = 0; /* the NUL that stands behind a buffer's bytes */
    return outcome;
}

kelpie_outcome klp_store_verify(const struct kelpie_op *op, struct klp_store *store,
                                enum klp_object_kind kind, const struct klp_digest *digest,
                                struct kelpie_error **err)
{
    KLP_AUTO(store_reader) struct klp_store_reader *reader = NULL;
    KLP_TRY(klp_store_open(op, store, kind, digest, &reader, NULL, err));
    return read_and_hash(op, reader, NULL, err);
}

kelpie_outcome klp_store_path(const struct kelpie_op *op, struct klp_store *store,
                              enum klp_object_kind kind, const struct klp_digest *digest,
                              char **out, struct kelpie_error **err)
{
    KLP_ASSERT((unsigned)kind < KLP_OBJECT_KIND_COUNT);
    char text[OBJECT_TEXT_SIZE];
    object_text(text, kind, digest);
    KLP_TRY(klp_op_check(op, "looking for a path in the store", err));
    if (store->ops->path == NULL)
        return klp_fail(err, KELPIE_E_UNSUPPORTED,
                        "cannot give a path of %s: store '%s' is not a folder of this host", text,
                        klp_store_name(store));
    return klp_wrap(err, store->ops->path(op, store, kind, digest, out, err),
                    "cannot give a path of %s in store '%s'", text, klp_store_name(store));
}

/* ---- maintenance */

kelpie_outcome
klp_store_list(const struct kelpie_op *op, struct klp_store *store, enum klp_object_kind kind,
               bool (*each)(void *arg, const struct klp_digest *digest, uint64_t size), void *arg,
               struct kelpie_error **err)
{
    KLP_TRY(klp_op_check(op, "listing the store", err));
    return klp_wrap(err, store->ops->list(op, store, kind, each, arg, err),
                    "cannot list the %s of store '%s'", klp_object_kind_name(kind),
                    klp_store_name(store));
}

kelpie_outcome klp_store_delete(const struct kelpie_op *op, struct klp_store *store,
                                enum klp_object_kind kind, const struct klp_digest *digest,
                                struct kelpie_error **err)
{
    KLP_TRY(klp_op_check(op, "deleting from the store", err));
    char text[OBJECT_TEXT_SIZE];
    object_text(text, kind, digest);
    return klp_wrap(err, store->ops->remove(op, store, kind, digest, err),
                    "cannot delete %s from store '%s'", text, klp_store_name(store));
}

/* ---- refs */

static bool is_lower_or_digit(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
}

static bool ref_name_is_valid(const char *name, size_t size)
{
    size_t components = 0;
    for (size_t i = 0; i < size; i++) {
        bool starts = i == 0 || name[i - 1] == '/';
        if (starts && (++components > REF_COMPONENTS_MAX || !is_lower_or_digit(name[i])))
            return false;
        bool ends = name[i] == '/' && i + 1 < size;
        if (!is_lower_or_digit(name[i]) && name[i] != '.' && name[i] != '-' && !ends)
            return false;
    }
    return size > 0 && size <= KLP_REF_NAME_MAX;
}

bool klp_ref_name_check(const char *name, struct kelpie_error **err)
{
    size_t size = strlen(name);
    if (ref_name_is_valid(name, size))
        return true;
    KLP_AUTO(buf) struct klp_buf shown = KLP_BUF_INIT(8 * KLP_REF_NAME_MAX);
    klp_text_escape(&shown, name, size < KLP_REF_NAME_MAX ? size : KLP_REF_NAME_MAX);
    return klp_refuse(err, KELPIE_E_INVALID,
                      "cannot use the ref name '%s': it is 1 to 4 parts [a-z0-9][a-z0-9.-]* with / "
                      "between, at most %d bytes",
                      klp_buf_text(&shown), KLP_REF_NAME_MAX);
}

kelpie_outcome klp_ref_create(const struct kelpie_op *op, struct klp_store *store, const char *name,
                              const void *value, size_t size, struct kelpie_error **err)
{
    KLP_REQUIRE(klp_ref_name_check(name, err));
    if (size > KLP_REF_VALUE_MAX)
        return klp_fail(err, KELPIE_E_LIMIT,
                        "cannot create ref '%s': %zu bytes, at most %d are kept", name, size,
                        KLP_REF_VALUE_MAX);
    KLP_TRY(klp_op_check(op, "creating a ref", err));
    return klp_wrap(err, store->ops->ref_create(op, store, name, value, size, err),
                    "cannot create ref '%s' in store '%s'", name, klp_store_name(store));
}

kelpie_outcome klp_ref_get(const struct kelpie_op *op, struct klp_store *store, const char *name,
                           struct klp_buf *out, struct kelpie_error **err)
{
    KLP_REQUIRE(klp_ref_name_check(name, err));
    KLP_REQUIRE(klp_buf_check(out, "a ref of the store", err));
    KLP_TRY(klp_op_check(op, "reading a ref", err));
    return klp_wrap(err, store->ops->ref_get(op, store, name, out, err),
                    "cannot read ref '%s' in store '%s'", name, klp_store_name(store));
}

kelpie_outcome klp_ref_delete(const struct kelpie_op *op, struct klp_store *store, const char *name,
                              struct kelpie_error **err)
{
    KLP_REQUIRE(klp_ref_name_check(name, err));
    KLP_TRY(klp_op_check(op, "deleting a ref", err));
    return klp_wrap(err, store->ops->ref_delete(op, store, name, err),
                    "cannot delete ref '%s' from store '%s'", name, klp_store_name(store));
}

kelpie_outcome klp_ref_list(const struct kelpie_op *op, struct klp_store *store, const char *prefix,
                            bool (*each)(void *arg, const char *name), void *arg,
                            struct kelpie_error **err)
{
    if (prefix[0] != '\0')
        KLP_REQUIRE(klp_ref_name_check(prefix, err));
    KLP_TRY(klp_op_check(op, "listing refs", err));
    return klp_wrap(err, store->ops->ref_list(op, store, prefix, each, arg, err),
                    "cannot list the refs below '%s' in store '%s'", prefix, klp_store_name(store));
}

const char *klp_store_name(const struct klp_store *store)
{
    return store->ops->name(store);
}

void klp_store_destroy(struct klp_store *store)
{
    if (store != NULL)
        store->ops->destroy(store);
}
