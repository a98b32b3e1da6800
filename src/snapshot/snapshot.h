/* SPDX-License-Identifier: Apache-2.0 */
/* Captures into the store and back. One place knows how to publish: write, make durable, verify,
 * then name. Memory stays bounded: pages are pulled in runs, hashed and compressed by tasks,
 * spooled into packs; one leaf of a page map is held at a time. */
#ifndef KLP_SNAPSHOT_SNAPSHOT_H
#define KLP_SNAPSHOT_SNAPSHOT_H

#include "format/manifest.h"
#include "store/store.h"
#include "vm/vm.h"

struct klp_snapshots { /* what every call needs; borrowed */
    struct klp_env *env;
    struct klp_store *store;
    unsigned worker_count; /* compressing tasks, 1..8 */
};

/* What a new snapshot may refer to instead of storing again. */
struct klp_snapshot_parent {
    const struct klp_manifest
        *manifest;            /* its packs and maps are in the store; NULL = nothing to refer to */
    struct klp_digest digest; /* name of that manifest */
    /* What `base` materialises; NULL = `manifest` itself. A page whose reference is the same in
     * both is in base. */
    const struct klp_manifest *base_manifest;
    /* Contents of the parent, as far as they are at hand: base = the resident template the VM was
     * cloned from (its pages are those of `base_manifest`), overlay = the dirty layer of the
     * parent's own capture. Both may be NULL: then a page that was touched is compared with the
     * decoded frame. */
    struct klp_layer *base;
    struct klp_layer *overlay;
};

struct klp_snapshot_request {
    enum klp_snapshot_kind kind;
    const char *label; /* "" = none */
    const struct klp_agent_identity *identity;
    const char *const *env; /* may be NULL */
    uint64_t seq, epoch;
    uint8_t generation[16];
    struct klp_digest template_; /* zero = none */
    struct klp_snapshot_parent parent;
};

/* Packs, page map and device state, durable when OK. *out is a manifest that only lacks
 * publication; finish it. bytes: counted into the op's progress. Nothing is named by it on failure.
 */
KELPIE_MUST_USE kelpie_outcome klp_snapshot_write(const struct kelpie_op *op,
                                                  const struct klp_snapshots *snapshots,
                                                  const struct klp_capture *capture,
                                                  const struct klp_snapshot_request *request,
                                                  struct klp_manifest *out,
                                                  struct kelpie_error **err);
/* The manifest as an object, durable; *out is its name. Before that every object it refers to is
 * known durable. */
KELPIE_MUST_USE kelpie_outcome klp_snapshot_publish(const struct kelpie_op *op,
                                                    const struct klp_snapshots *snapshots,
                                                    const struct klp_manifest *manifest,
                                                    struct klp_digest *out,
                                                    struct kelpie_error **err);
/* Refs: snapshots/ID (value: digest) and, with a label, names/LABEL. EXISTS when the label is taken
 * (checked first). */
KELPIE_MUST_USE kelpie_outcome klp_snapshot_name(const struct kelpie_op *op,
                                                 const struct klp_snapshots *snapshots,
                                                 const struct klp_manifest *manifest,
                                                 const struct klp_digest *digest,
                                                 struct kelpie_error **err);
/* By id or label. */
KELPIE_MUST_USE kelpie_outcome klp_snapshot_find(const struct kelpie_op *op,
                                                 const struct klp_snapshots *snapshots,
                                                 const char *id_or_label, struct klp_digest *out,
                                                 struct kelpie_error **err);
/* Verified by its name, then parsed. */
KELPIE_MUST_USE kelpie_outcome klp_snapshot_load(const struct kelpie_op *op,
                                                 const struct klp_snapshots *snapshots,
                                                 const struct klp_digest *digest,
                                                 struct klp_manifest *out,
                                                 struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome klp_snapshot_list(
    const struct kelpie_op *op, const struct klp_snapshots *snapshots,
    bool (*each)(void *arg, const struct klp_digest *digest, const struct klp_manifest *manifest),
    void *arg, struct kelpie_error **err);
/* Removes the refs; objects go with the garbage collection. */
KELPIE_MUST_USE kelpie_outcome klp_snapshot_remove(const struct kelpie_op *op,
                                                   const struct klp_snapshots *snapshots,
                                                   const struct klp_manifest *manifest,
                                                   struct kelpie_error **err);
/* Are all objects there, and of the right size? Cheap: no bytes are read. NOT_FOUND / CORRUPT name
 * the object. */
KELPIE_MUST_USE kelpie_outcome klp_snapshot_check(const struct kelpie_op *op,
                                                  const struct klp_snapshots *snapshots,
                                                  const struct klp_manifest *manifest,
                                                  struct kelpie_error **err);
/* Reads everything and compares every hash and every frame: CORRUPT names the object. */
KELPIE_MUST_USE kelpie_outcome klp_snapshot_verify(const struct kelpie_op *op,
                                                   const struct klp_snapshots *snapshots,
                                                   const struct klp_digest *digest,
                                                   struct kelpie_error **err);

/* ---- restore. Every frame's hash is compared before it is decoded: no unverified byte gets into a
 * layer. */
/* All pages of region 0, as a sealed layer (a template becoming resident). */
KELPIE_MUST_USE kelpie_outcome klp_snapshot_materialise(const struct kelpie_op *op,
                                                        const struct klp_snapshots *snapshots,
                                                        const struct klp_manifest *manifest,
                                                        struct klp_layer **out,
                                                        struct kelpie_error **err);
/* Only the pages that are not the same stored page in `base` (the manifest of a resident layer): a
 * sealed layer, perhaps an empty one. Pages that are zero here and not zero there are in it as
 * zeros. */
KELPIE_MUST_USE kelpie_outcome klp_snapshot_materialise_diff(const struct kelpie_op *op,
                                                             const struct klp_snapshots *snapshots,
                                                             const struct klp_manifest *manifest,
                                                             const struct klp_manifest *base,
                                                             struct klp_layer **out,
                                                             struct kelpie_error **err);
/* The device state, verified. */
KELPIE_MUST_USE kelpie_outcome klp_snapshot_device_state(const struct kelpie_op *op,
                                                         const struct klp_snapshots *snapshots,
                                                         const struct klp_manifest *manifest,
                                                         struct klp_buf *out,
                                                         struct kelpie_error **err);

#endif
