/* SPDX-License-Identifier: Apache-2.0 */
/* The manifest: everything about one snapshot or checkpoint, in one small object (<=
 * KLP_MANIFEST_SIZE_MAX). Object header "mani", then records. A reader verifies the name (SHA-256)
 * before it parses. */
#ifndef KLP_FORMAT_MANIFEST_H
#define KLP_FORMAT_MANIFEST_H

#include "format/machine.h"
#include "format/records.h"

/* Flag of the record that holds the environment: never shown, never logged. Beside
 * KLP_RECORD_CRITICAL. */
#define KLP_RECORD_SECRET 2

#define KLP_PACKS_MAX 4096
#define KLP_REGIONS_MAX 8
#define KLP_AGENT_STATE_MAX                                                                        \
    (4096ull * KLP_MIB) /* bytes of a checkpoint's agent state, as stored                          \
                         */

enum klp_snapshot_kind {
    KLP_KIND_NONE,
    KLP_KIND_SUSPEND,
    KLP_KIND_TELEPORT,
    KLP_KIND_CHECKPOINT,
    KLP_KIND_TEMPLATE
};
const char *klp_kind_name(enum klp_snapshot_kind kind); /* "suspend" ... */
enum klp_snapshot_kind klp_kind_parse(const char *text);

struct klp_object_ref {
    struct klp_digest digest;
    uint64_t size; /* bytes */
};

struct klp_region {      /* of guest-physical memory */
    uint64_t base, size; /* bytes */
    uint8_t page_log2, frame_log2;
    struct klp_object_ref map; /* its page map */
};

/* What the agent was asked to be; travels with it. */
struct klp_agent_identity {
    char id[KLP_ID_SIZE];
    char name[KLP_NAME_SIZE];
    char image[KLP_NAME_SIZE];
    char image_version[24]; /* MAJOR.MINOR.PATCH */
    struct klp_digest image_digest;
    char parent[KLP_NAME_SIZE]; /* agent or snapshot it was forked from, "" */
    uint32_t vcpus;
    uint64_t memory_bytes;
    char *workdir; /* owned; NULL = image's own */
    char **argv;   /* owned, NULL-terminated; NULL = none */
    bool userspace_rng_hooked;
};

struct klp_manifest {
    enum klp_snapshot_kind kind;
    uint64_t nonce; /* of the object header: 0, or fresh random when written anew (condemned) */
    char id[KLP_ID_SIZE];      /* of the snapshot */
    char label[KLP_NAME_SIZE]; /* name given by the user, "" */
    uint64_t seq;              /* grows with every snapshot of the agent */
    uint64_t epoch;            /* of the owner that took it */
    int64_t created_wall_ns;
    struct klp_digest parent;    /* manifest it was diffed against; zero = none */
    struct klp_digest template_; /* manifest of the template below it; zero = none */
    uint8_t generation[16];      /* the guest's generation id when it was taken */
    struct klp_agent_identity agent;
    struct klp_machine machine; /* not for checkpoints: version 0 */
    uint32_t region_count;
    struct klp_region regions[KLP_REGIONS_MAX];
    uint32_t pack_count;
    struct klp_object_ref *packs;       /* owned; clear references: enough for GC and mirrors */
    struct klp_object_ref device_state; /* zero size = none */
    struct klp_object_ref agent_state;  /* checkpoints: a tar; zero size = none */
    char **env;            /* owned, NULL-terminated "K=V": a record of its own, marked secret */
    uint64_t stored_bytes; /* bytes this snapshot added to the store */
    /* Room, empty today: a sealed part (AEAD) and a signature part. Their records are kept
     * verbatim. */
    struct klp_buf sealed, signature;
};

void klp_manifest_finish(struct klp_manifest *manifest);
KELPIE_MUST_USE bool klp_manifest_encode(const struct klp_manifest *manifest, struct klp_buf *out,
                                         struct kelpie_error **err);
/* CORRUPT names the field; UNSUPPORTED for an unknown critical record. */
KELPIE_MUST_USE bool klp_manifest_decode(struct klp_bytes bytes, struct klp_manifest *out,
                                         struct kelpie_error **err);

KELPIE_MUST_USE bool klp_identity_copy(const struct klp_agent_identity *from,
                                       struct klp_agent_identity *to, struct kelpie_error **err);
void klp_identity_finish(struct klp_agent_identity *identity);
/* NULL-terminated lists of texts. */
char **klp_texts_copy(const char *const *texts);
void klp_texts_free(char **texts);
size_t klp_texts_count(const char *const *texts);

#endif
