/* SPDX-License-Identifier: Apache-2.0 */
/* Manifests as objects, and the refs that name them: snapshots/ID and names/LABEL, each holding a
 * digest in hex. */
#include <string.h>

#include "base/fmt.h"
#include "snapshot/snapshot.h"

static kelpie_outcome object_check(const struct kelpie_op *op,
                                   const struct klp_snapshots *snapshots, enum klp_object_kind kind,
                                   const struct klp_object_ref *ref, struct kelpie_error **err)
{
    KLP_AUTO(store_reader) struct klp_store_reader *reader = NULL;
    uint64_t size;
    KLP_TRY(klp_store_open(op, snapshots->store, kind, &ref->digest, &reader, &size, err));
    if (size == ref->size)
        return KLP_OK;
    char name[KLP_DIGEST_SIZE];
    klp_digest_text(&ref->digest, name);
    return klp_fail(err, KELPIE_E_CORRUPT, "%s/%s has %llu bytes instead of %llu",
                    klp_object_kind_name(kind), name, (unsigned long long)size,
                    (unsigned long long)ref->size);
}

kelpie_outcome klp_snapshot_check(const struct kelpie_op *op, const struct klp_snapshots *snapshots,
                                  const struct klp_manifest *manifest, struct kelpie_error **err)
{
    for (uint32_t i = 0; i < manifest->pack_count; i++)
        KLP_TRY(object_check(op, snapshots, KLP_OBJECT_PACK, &manifest->packs[i], err));
    for (uint32_t i = 0; i < manifest->region_count; i++)
        KLP_TRY(object_check(op, snapshots, KLP_OBJECT_MAP, &manifest->regions[i].map, err));
    if (manifest->device_state.size != 0)
        KLP_TRY(object_check(op, snapshots, KLP_OBJECT_STATE, &manifest->device_state, err));
    if (manifest->agent_state.size != 0)
        KLP_TRY(object_check(op, snapshots, KLP_OBJECT_BLOB, &manifest->agent_state, err));
    return KLP_OK;
}

kelpie_outcome klp_snapshot_publish(const struct kelpie_op *op,
                                    const struct klp_snapshots *snapshots,
                                    const struct klp_manifest *manifest, struct klp_digest *out,
                                    struct kelpie_error **err)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf bytes =
        KLP_BUF_INIT(KLP_MANIFEST_SIZE_MAX);
    KLP_REQUIRE(klp_manifest_encode(manifest, &bytes, err));
    KLP_TRY(klp_snapshot_check(op, snapshots, manifest, err));
    klp_point(op->env, "snapshot.before-manifest");
    KLP_TRY(
        klp_store_put(op, snapshots->store, KLP_OBJECT_MANIFEST, bytes.data, bytes.size, out, err));
    klp_op_bytes(op, bytes.size);
    klp_point(op->env, "snapshot.after-manifest");
    return KLP_OK;
}

static void ref_id(char out[KLP_REF_NAME_MAX], const char *id)
{
    klp_format(out, KLP_REF_NAME_MAX, "snapshots/%s", id);
}

static void ref_label(char out[KLP_REF_NAME_MAX], const char *label)
{
    klp_format(out, KLP_REF_NAME_MAX, "names/%s", label);
}

/* Creates the ref, or finds it there with that very value (a retry after an unknown outcome). */
static kelpie_outcome ref_put(const struct kelpie_op *op, const struct klp_snapshots *snapshots,
                              const char *name, const char *value, struct kelpie_error **err)
{
    struct kelpie_error *error = NULL;
    kelpie_outcome outcome =
        klp_ref_create(op, snapshots->store, name, value, strlen(value), &error);
    if (kelpie_is_ok(outcome))
        return outcome;
    if (!kelpie_is_unknown(outcome) && kelpie_error_code(error) != KELPIE_E_EXISTS) {
        klp_error_move(err, &error);
        return outcome;
    }
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf there = KLP_BUF_INIT(KLP_REF_VALUE_MAX);
    kelpie_outcome read = klp_ref_get(op, snapshots->store, name, &there, NULL);
    if (kelpie_is_ok(read) && strcmp(klp_buf_text(&there), value) == 0) {
        klp_error_clear(&error);
        return KLP_OK;
    }
    klp_error_move(err, &error);
    return outcome;
}

kelpie_outcome klp_snapshot_name(const struct kelpie_op *op, const struct klp_snapshots *snapshots,
                                 const struct klp_manifest *manifest,
                                 const struct klp_digest *digest, struct kelpie_error **err)
{
    char name[KLP_REF_NAME_MAX], value[KLP_DIGEST_SIZE];
    klp_digest_text(digest, value);
    if (manifest->label[0] != 0) {
        ref_label(name, manifest->label);
        kelpie_outcome outcome = ref_put(op, snapshots, name, value, err);
        KLP_TRY(klp_wrap(err, outcome, "cannot name a snapshot '%s'", manifest->label));
    }
    ref_id(name, manifest->id);
    KLP_TRY(ref_put(op, snapshots, name, value, err));
    klp_point(op->env, "snapshot.named");
    return KLP_OK;
}

static kelpie_outcome ref_digest(const struct kelpie_op *op, const struct klp_snapshots *snapshots,
                                 const char *name, struct klp_digest *out,
                                 struct kelpie_error **err)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf value = KLP_BUF_INIT(KLP_REF_VALUE_MAX);
    KLP_TRY(klp_ref_get(op, snapshots->store, name, &value, err));
    if (!klp_digest_parse(klp_buf_text(&value), out))
        return klp_fail(err, KELPIE_E_CORRUPT, "ref %s holds no digest", name);
    return KLP_OK;
}

kelpie_outcome klp_snapshot_find(const struct kelpie_op *op, const struct klp_snapshots *snapshots,
                                 const char *id_or_label, struct klp_digest *out,
                                 struct kelpie_error **err)
{
    char name[KLP_REF_NAME_MAX];
    if (!klp_name_is_valid(id_or_label))
        return klp_fail(err, KELPIE_E_NOT_FOUND, "no snapshot '%.*s'", 80, id_or_label);
    if (klp_id_is_valid(id_or_label))
        ref_id(name, id_or_label);
    else
        ref_label(name, id_or_label);
    struct kelpie_error *error = NULL;
    kelpie_outcome outcome = ref_digest(op, snapshots, name, out, &error);
    if (kelpie_is_ok(outcome) || kelpie_error_code(error) != KELPIE_E_NOT_FOUND) {
        klp_error_move(err, &error);
        return outcome;
    }
    klp_error_clear(&error);
    outcome = klp_fail(err, KELPIE_E_NOT_FOUND, "no snapshot '%s'", id_or_label);
    klp_error_remedy_set(err, "kelpie snapshot ls");
    return outcome;
}

kelpie_outcome klp_snapshot_load(const struct kelpie_op *op, const struct klp_snapshots *snapshots,
                                 const struct klp_digest *digest, struct klp_manifest *out,
                                 struct kelpie_error **err)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf bytes =
        KLP_BUF_INIT(KLP_MANIFEST_SIZE_MAX);
    KLP_TRY(klp_store_get(op, snapshots->store, KLP_OBJECT_MANIFEST, digest, &bytes, err));
    KLP_REQUIRE(klp_manifest_decode(klp_buf_view(&bytes), out, err));
    return KLP_OK;
}

struct listing {
    const struct kelpie_op *op;
    const struct klp_snapshots *snapshots;
    bool (*each)(void *, const struct klp_digest *, const struct klp_manifest *);
    void *arg;
};

static bool listing_each(void *arg, const char *name)
{
    struct listing *listing = arg;
    struct klp_digest digest;
    struct klp_manifest manifest;
    struct kelpie_error *error = NULL;
    kelpie_outcome outcome = ref_digest(listing->op, listing->snapshots, name, &digest, &error);
    if (kelpie_is_ok(outcome))
        outcome = klp_snapshot_load(listing->op, listing->snapshots, &digest, &manifest, &error);
    if (!kelpie_is_ok(outcome)) {
        /* One damaged snapshot must not hide the others. */
        klp_log(listing->op->env, KLP_LOG_WARN, "snapshot.unreadable", "ref=%s error=%s", name,
                kelpie_error_message(error));
        klp_error_clear(&error);
        return true;
    }
    bool more = listing->each(listing->arg, &digest, &manifest);
    klp_manifest_finish(&manifest);
    return more;
}

kelpie_outcome klp_snapshot_list(const struct kelpie_op *op, const struct klp_snapshots *snapshots,
                                 bool (*each)(void *, const struct klp_digest *,
                                              const struct klp_manifest *),
                                 void *arg, struct kelpie_error **err)
{
    struct listing listing = {op, snapshots, each, arg};
    return klp_ref_list(op, snapshots->store, "snapshots", listing_each, &listing, err);
}

kelpie_outcome klp_snapshot_remove(const struct kelpie_op *op,
                                   const struct klp_snapshots *snapshots,
                                   const struct klp_manifest *manifest, struct kelpie_error **err)
{
    char name[KLP_REF_NAME_MAX];
    if (manifest->label[0] != 0) {
        ref_label(name, manifest->label);
        KLP_TRY(klp_ref_delete(op, snapshots->store, name, err));
    }
    ref_id(name, manifest->id);
    return klp_ref_delete(op, snapshots->store, name, err);
}

kelpie_outcome klp_snapshot_verify(const struct kelpie_op *op,
                                   const struct klp_snapshots *snapshots,
                                   const struct klp_digest *digest, struct kelpie_error **err)
{
    struct klp_manifest manifest;
    KLP_TRY(klp_snapshot_load(op, snapshots, digest, &manifest, err));
    kelpie_outcome outcome = klp_snapshot_check(op, snapshots, &manifest, err);
    for (uint32_t i = 0; kelpie_is_ok(outcome) && i < manifest.pack_count; i++)
        outcome =
            klp_store_verify(op, snapshots->store, KLP_OBJECT_PACK, &manifest.packs[i].digest, err);
    if (kelpie_is_ok(outcome) && manifest.device_state.size != 0)
        outcome = klp_store_verify(op, snapshots->store, KLP_OBJECT_STATE,
                                   &manifest.device_state.digest, err);
    if (kelpie_is_ok(outcome) && manifest.agent_state.size != 0)
        outcome = klp_store_verify(op, snapshots->store, KLP_OBJECT_BLOB,
                                   &manifest.agent_state.digest, err);
    /* Bringing the memory up into a layer checks map, frames and their decoding in one go. */
    KLP_AUTO(layer) struct klp_layer *layer = NULL;
    if (kelpie_is_ok(outcome) && manifest.region_count == 1)
        outcome = klp_snapshot_materialise(op, snapshots, &manifest, &layer, err);
    klp_manifest_finish(&manifest);
    return outcome;
}
