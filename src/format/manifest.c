/* SPDX-License-Identifier: Apache-2.0 */
/* The manifest's bytes: an object header "mani", then records in ascending order of their tags,
 * each once (docs/formats/manifest.md). What its fields may hold: manifest_check.c; the agent's
 * part: identity.c; the machine's: machine.c. */
#include <string.h>

#include "base/fmt.h"
#include "format/manifest_inside.h"
#include "format/pack.h"

enum manifest_tag {
    TAG_SNAPSHOT = 1, /* SNAPSHOT_SIZE bytes, see snapshot_append */
    TAG_LABEL,        /* text */
    TAG_AGENT,        /* records of identity.c */
    TAG_MACHINE,      /* machine.c */
    TAG_REGIONS,      /* REGION_SIZE bytes each */
    TAG_PACKS,        /* REF_SIZE bytes each */
    TAG_DEVICE_STATE, /* REF_SIZE bytes */
    TAG_AGENT_STATE,  /* REF_SIZE bytes */
    TAG_ENV,          /* texts; secret */
    TAG_SEALED,       /* verbatim, not critical */
    TAG_SIGNATURE,    /* verbatim, not critical */
    TAG_END
};

#define SNAPSHOT_SIZE 136u
#define REGION_SIZE 64u
#define REF_SIZE 40u

static const char *const kind_names[] = {"none", "suspend", "teleport", "checkpoint", "template"};

const char *klp_kind_name(enum klp_snapshot_kind kind)
{
    return (size_t)kind < KLP_COUNT(kind_names) ? kind_names[kind] : kind_names[0];
}

enum klp_snapshot_kind klp_kind_parse(const char *text)
{
    for (size_t i = KLP_KIND_SUSPEND; text != NULL && i < KLP_COUNT(kind_names); i++) {
        if (strcmp(text, kind_names[i]) == 0)
            return (enum klp_snapshot_kind)i;
    }
    return KLP_KIND_NONE;
}

void klp_manifest_finish(struct klp_manifest *manifest)
{
    klp_identity_finish(&manifest->agent);
    klp_mem_free(manifest->packs);
    klp_texts_free(manifest->env);
    klp_buf_finish(&manifest->sealed);
    klp_buf_finish(&manifest->signature);
    *manifest = (struct klp_manifest){0};
}

/* ---- writing */

/* What the header says of the memory; each region has its own as well. */
static void page_sizes(const struct klp_manifest *manifest, uint8_t *page_log2, uint8_t *frame_log2)
{
    bool has_memory = manifest->region_count > 0;
    *page_log2 = has_memory ? manifest->regions[0].page_log2 : 0;
    *frame_log2 = has_memory ? manifest->regions[0].frame_log2 : 0;
}

static void header_append(struct klp_buf *out, const struct klp_manifest *manifest)
{
    uint8_t page_log2, frame_log2;
    page_sizes(manifest, &page_log2, &frame_log2);
    struct klp_object_header header =
        klp_object_header_make("mani", KLP_CODEC_RAW, page_log2, frame_log2);
    header.nonce = manifest->nonce;
    uint8_t bytes[KLP_OBJECT_HEADER_SIZE];
    klp_object_header_encode(&header, bytes);
    klp_buf_append(out, bytes, sizeof(bytes));
}

static void snapshot_append(struct klp_buf *out, const struct klp_manifest *manifest)
{
    uint8_t id[KLP_ID_BYTES];
    bool is_id = klp_hex_decode(manifest->id, strlen(manifest->id), id, sizeof(id));
    KLP_ASSERT(is_id); /* klp_manifest_check */
    KLP_AUTO(buf) struct klp_buf bytes = KLP_BUF_INIT(SNAPSHOT_SIZE);
    klp_buf_append_u64(&bytes, (uint64_t)manifest->kind);
    klp_buf_append_u64(&bytes, manifest->seq);
    klp_buf_append_u64(&bytes, manifest->epoch);
    klp_buf_append_u64(&bytes, (uint64_t)manifest->created_wall_ns);
    klp_buf_append(&bytes, id, sizeof(id));
    klp_buf_append(&bytes, manifest->generation, sizeof(manifest->generation));
    klp_buf_append(&bytes, manifest->parent.bytes, KLP_DIGEST_BYTES);
    klp_buf_append(&bytes, manifest->template_.bytes, KLP_DIGEST_BYTES);
    klp_buf_append_u64(&bytes, manifest->stored_bytes);
    klp_record_append(out, TAG_SNAPSHOT, KLP_RECORD_CRITICAL, bytes.data, bytes.size);
}

static void ref_append(struct klp_buf *out, const struct klp_object_ref *ref)
{
    klp_buf_append_u64(out, ref->size);
    klp_buf_append(out, ref->digest.bytes, KLP_DIGEST_BYTES);
}

static void regions_append(struct klp_buf *out, const struct klp_manifest *manifest)
{
    KLP_AUTO(buf) struct klp_buf bytes = KLP_BUF_INIT(KLP_REGIONS_MAX * REGION_SIZE);
    for (uint32_t i = 0; i < manifest->region_count; i++) {
        const struct klp_region *region = &manifest->regions[i];
        klp_buf_append_u64(&bytes, region->base);
        klp_buf_append_u64(&bytes, region->size);
        klp_buf_append_u64(&bytes, (uint64_t)region->page_log2 | (uint64_t)region->frame_log2 << 8);
        ref_append(&bytes, &region->map);
    }
    klp_record_append(out, TAG_REGIONS, KLP_RECORD_CRITICAL, bytes.data, bytes.size);
}

static void refs_record(struct klp_buf *out, uint16_t tag, const struct klp_object_ref *refs,
                        size_t count)
{
    KLP_AUTO(buf) struct klp_buf bytes = KLP_BUF_INIT(KLP_PACKS_MAX * REF_SIZE);
    for (size_t i = 0; i < count; i++)
        ref_append(&bytes, &refs[i]);
    klp_record_append(out, tag, KLP_RECORD_CRITICAL, bytes.data, bytes.size);
}

static void texts_record(struct klp_buf *out, uint16_t tag, uint16_t flags, char *const *texts)
{
    KLP_AUTO(buf) struct klp_buf bytes = KLP_BUF_INIT(KLP_MANIFEST_SIZE_MAX);
    klp_texts_encode(texts, &bytes);
    if (bytes.size > 0)
        klp_record_append(out, tag, flags, bytes.data, bytes.size);
}

static void agent_record(struct klp_buf *out, const struct klp_agent_identity *agent)
{
    KLP_AUTO(buf) struct klp_buf bytes = KLP_BUF_INIT(KLP_MANIFEST_SIZE_MAX);
    klp_identity_encode(agent, &bytes);
    klp_record_append(out, TAG_AGENT, KLP_RECORD_CRITICAL, bytes.data, bytes.size);
}

static void machine_record(struct klp_buf *out, const struct klp_machine *machine)
{
    KLP_AUTO(buf) struct klp_buf bytes = KLP_BUF_INIT(KLP_MANIFEST_SIZE_MAX);
    klp_machine_encode(machine, &bytes);
    klp_record_append(out, TAG_MACHINE, KLP_RECORD_CRITICAL, bytes.data, bytes.size);
}

static void records_append(struct klp_buf *out, const struct klp_manifest *manifest)
{
    const uint16_t critical = KLP_RECORD_CRITICAL;
    snapshot_append(out, manifest);
    if (manifest->label[0] != '\0')
        klp_record_append(out, TAG_LABEL, critical, manifest->label, strlen(manifest->label));
    agent_record(out, &manifest->agent);
    if (manifest->machine.version != 0)
        machine_record(out, &manifest->machine);
    if (manifest->region_count > 0)
        regions_append(out, manifest);
    if (manifest->pack_count > 0)
        refs_record(out, TAG_PACKS, manifest->packs, manifest->pack_count);
    if (manifest->device_state.size > 0)
        refs_record(out, TAG_DEVICE_STATE, &manifest->device_state, 1);
    if (manifest->agent_state.size > 0)
        refs_record(out, TAG_AGENT_STATE, &manifest->agent_state, 1);
    texts_record(out, TAG_ENV, critical | KLP_RECORD_SECRET, manifest->env);
    if (manifest->sealed.size > 0)
        klp_record_append(out, TAG_SEALED, 0, manifest->sealed.data, manifest->sealed.size);
    if (manifest->signature.size > 0)
        klp_record_append(out, TAG_SIGNATURE, 0, manifest->signature.data,
                          manifest->signature.size);
}

bool klp_manifest_encode(const struct klp_manifest *manifest, struct klp_buf *out,
                         struct kelpie_error **err)
{
    KLP_CHECK(klp_manifest_check(manifest, KELPIE_E_INVALID, err));
    if (manifest->machine.version != 0 && !klp_machine_check(&manifest->machine, err))
        return klp_wrap_refusal(err, "manifest: machine cannot be written");
    KLP_AUTO(buf) struct klp_buf bytes = KLP_BUF_INIT(KLP_MANIFEST_SIZE_MAX);
    header_append(&bytes, manifest);
    records_append(&bytes, manifest);
    KLP_CHECK(klp_buf_check(&bytes, "manifest", err));
    klp_buf_append(out, bytes.data, bytes.size);
    return klp_buf_check(out, "manifest", err);
}

/* ---- reading */

static bool malformed(const char *field, struct kelpie_error **err)
{
    return klp_refuse(err, KELPIE_E_CORRUPT, "manifest: %s is malformed", field);
}

static void digest_read(struct klp_reader *reader, struct klp_digest *out)
{
    const uint8_t *bytes = klp_read_bytes(reader, KLP_DIGEST_BYTES);
    if (bytes != NULL)
        memcpy(out->bytes, bytes, KLP_DIGEST_BYTES);
}

static void ref_read(struct klp_reader *reader, struct klp_object_ref *out)
{
    out->size = klp_read_u64(reader);
    digest_read(reader, &out->digest);
}

static bool snapshot_read(struct klp_bytes data, struct klp_manifest *out,
                          struct kelpie_error **err)
{
    if (data.size != SNAPSHOT_SIZE)
        return malformed("snapshot", err);
    struct klp_reader reader = {.data = data.data, .size = data.size};
    uint64_t kind = klp_read_u64(&reader);
    if (kind < KLP_KIND_SUSPEND || kind > KLP_KIND_TEMPLATE)
        return malformed("kind", err);
    out->kind = (enum klp_snapshot_kind)kind;
    out->seq = klp_read_u64(&reader);
    out->epoch = klp_read_u64(&reader);
    out->created_wall_ns = (int64_t)klp_read_u64(&reader);
    klp_hex_encode(klp_read_bytes(&reader, KLP_ID_BYTES), KLP_ID_BYTES, out->id);
    memcpy(out->generation, klp_read_bytes(&reader, sizeof(out->generation)),
           sizeof(out->generation));
    digest_read(&reader, &out->parent);
    digest_read(&reader, &out->template_);
    out->stored_bytes = klp_read_u64(&reader);
    return true;
}

static bool label_read(struct klp_bytes data, struct klp_manifest *out, struct kelpie_error **err)
{
    if (data.size == 0)
        return malformed("label", err);
    return klp_text_decode(data, "label", out->label, sizeof(out->label), err);
}

static bool machine_read(struct klp_bytes data, struct klp_manifest *out, struct kelpie_error **err)
{
    if (!klp_machine_decode(data, &out->machine, err))
        return klp_wrap_refusal(err, "manifest: machine cannot be read");
    return true;
}

static bool regions_read(struct klp_bytes data, struct klp_manifest *out, struct kelpie_error **err)
{
    if (data.size == 0 || data.size % REGION_SIZE != 0 || data.size / REGION_SIZE > KLP_REGIONS_MAX)
        return malformed("regions", err);
    struct klp_reader reader = {.data = data.data, .size = data.size};
    out->region_count = (uint32_t)(data.size / REGION_SIZE);
    for (uint32_t i = 0; i < out->region_count; i++) {
        struct klp_region *region = &out->regions[i];
        region->base = klp_read_u64(&reader);
        region->size = klp_read_u64(&reader);
        uint64_t logs = klp_read_u64(&reader);
        if (logs > UINT16_MAX)
            return malformed("regions", err);
        region->page_log2 = (uint8_t)logs;
        region->frame_log2 = (uint8_t)(logs >> 8);
        ref_read(&reader, &region->map);
    }
    return true;
}

static bool packs_read(struct klp_bytes data, struct klp_manifest *out, struct kelpie_error **err)
{
    if (data.size == 0 || data.size % REF_SIZE != 0 || data.size / REF_SIZE > KLP_PACKS_MAX)
        return malformed("packs", err);
    uint32_t count = (uint32_t)(data.size / REF_SIZE);
    out->packs = klp_mem_try(count * sizeof(*out->packs));
    if (out->packs == NULL)
        return klp_refuse(err, KELPIE_E_NO_MEMORY, "no memory for %u packs of a manifest", count);
    out->pack_count = count;
    struct klp_reader reader = {.data = data.data, .size = data.size};
    for (uint32_t i = 0; i < count; i++)
        ref_read(&reader, &out->packs[i]);
    return true;
}

static bool one_ref_read(struct klp_bytes data, const char *field, struct klp_object_ref *out,
                         struct kelpie_error **err)
{
    struct klp_reader reader = {.data = data.data, .size = data.size};
    ref_read(&reader, out);
    if (data.size != REF_SIZE || out->size == 0)
        return malformed(field, err);
    return true;
}

static bool env_read(struct klp_bytes data, struct klp_manifest *out, struct kelpie_error **err)
{
    if (data.size == 0)
        return malformed("env", err);
    return klp_texts_decode(data, "env", KLP_ENV_MAX, &out->env, err);
}

static bool verbatim_read(struct klp_bytes data, const char *field, struct klp_buf *out,
                          struct kelpie_error **err)
{
    if (data.size == 0)
        return malformed(field, err);
    *out = KLP_BUF_INIT(KLP_MANIFEST_SIZE_MAX);
    klp_buf_append(out, data.data, data.size);
    return klp_buf_check(out, field, err);
}

static bool record_read(const struct klp_record *record, struct klp_manifest *out,
                        struct kelpie_error **err)
{
    struct klp_bytes data = record->data;
    switch (record->tag) {
    case TAG_SNAPSHOT:
        return snapshot_read(data, out, err);
    case TAG_LABEL:
        return label_read(data, out, err);
    case TAG_AGENT:
        return klp_identity_decode(data, &out->agent, err);
    case TAG_MACHINE:
        return machine_read(data, out, err);
    case TAG_REGIONS:
        return regions_read(data, out, err);
    case TAG_PACKS:
        return packs_read(data, out, err);
    case TAG_DEVICE_STATE:
        return one_ref_read(data, "device_state", &out->device_state, err);
    case TAG_AGENT_STATE:
        return one_ref_read(data, "agent_state", &out->agent_state, err);
    case TAG_ENV:
        return env_read(data, out, err);
    case TAG_SEALED:
        return verbatim_read(data, "sealed", &out->sealed, err);
    case TAG_SIGNATURE:
        return verbatim_read(data, "signature", &out->signature, err);
    default:
        if ((record->flags & KLP_RECORD_CRITICAL) == 0)
            return true; /* of a newer release, and it says that it may be passed over */
        return klp_refuse(err, KELPIE_E_UNSUPPORTED,
                          "manifest: record %u is of a newer release and must not be passed over",
                          (unsigned)record->tag);
    }
}

static uint16_t flags_of(uint16_t tag)
{
    if (tag == TAG_ENV)
        return KLP_RECORD_CRITICAL | KLP_RECORD_SECRET;
    return tag == TAG_SEALED || tag == TAG_SIGNATURE ? 0 : KLP_RECORD_CRITICAL;
}

static bool records_read(struct klp_bytes bytes, struct klp_manifest *out,
                         struct kelpie_error **err)
{
    struct klp_record record;
    uint32_t seen = 0; /* bit per known tag */
    unsigned last = 0;
    for (size_t at = 0;;) {
        int found = klp_record_next(bytes, &at, &record, err);
        if (found < 0)
            return false;
        if (found == 0)
            break;
        if (record.tag <= last)
            return klp_refuse(err, KELPIE_E_CORRUPT, "manifest: records out of order");
        last = record.tag;
        if (record.tag < TAG_END) {
            if (record.flags != flags_of(record.tag))
                return klp_refuse(err, KELPIE_E_CORRUPT, "manifest: flags of record %u", last);
            seen |= 1u << record.tag;
        }
        KLP_CHECK(record_read(&record, out, err));
    }
    if ((seen & 1u << TAG_SNAPSHOT) == 0 || (seen & 1u << TAG_AGENT) == 0)
        return klp_refuse(err, KELPIE_E_CORRUPT,
                          "manifest: its snapshot or agent record is missing");
    return true;
}

static bool manifest_read(struct klp_bytes bytes, struct klp_manifest *out,
                          struct kelpie_error **err)
{
    struct klp_object_header header;
    if (bytes.size > KLP_MANIFEST_SIZE_MAX)
        return klp_refuse(err, KELPIE_E_CORRUPT, "manifest: longer than a manifest may be");
    KLP_CHECK(klp_object_header_decode(bytes.data, bytes.size, "mani", &header, err));
    out->nonce = header.nonce;
    struct klp_bytes records = {bytes.data + KLP_OBJECT_HEADER_SIZE,
                                bytes.size - KLP_OBJECT_HEADER_SIZE};
    KLP_CHECK(records_read(records, out, err));
    uint8_t page_log2, frame_log2;
    page_sizes(out, &page_log2, &frame_log2);
    if (header.page_log2 != page_log2 || header.frame_log2 != frame_log2)
        return klp_refuse(err, KELPIE_E_CORRUPT,
                          "manifest: page sizes of header and regions differ");
    return klp_manifest_check(out, KELPIE_E_CORRUPT, err);
}

bool klp_manifest_decode(struct klp_bytes bytes, struct klp_manifest *out,
                         struct kelpie_error **err)
{
    *out = (struct klp_manifest){0};
    if (manifest_read(bytes, out, err))
        return true;
    klp_manifest_finish(out);
    return false;
}
