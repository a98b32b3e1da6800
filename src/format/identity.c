/* SPDX-License-Identifier: Apache-2.0 */
/* What an agent was asked to be: copying it, its record in a manifest, and lists of texts. Bounds
 * and names are checked by manifest_check.c. */
#include <string.h>

#include "format/manifest_inside.h"

enum identity_tag {
    TAG_ID = 1,
    TAG_NAME,
    TAG_IMAGE,
    TAG_IMAGE_VERSION,
    TAG_IMAGE_DIGEST,
    TAG_PARENT,
    TAG_SIZE, /* u64 memory bytes, u32 vCPUs, u32 flags */
    TAG_WORKDIR,
    TAG_ARGV
};

#define IDENTITY_SIZE_RECORD 16
#define IDENTITY_FLAG_RNG_HOOKED 1u
#define TEXT_MAX (KLP_ARG_BYTES_MAX - 1) /* bytes of one text of a list */

/* ---- lists of texts */

size_t klp_texts_count(const char *const *texts)
{
    size_t count = 0;
    while (texts != NULL && texts[count] != NULL)
        count++;
    return count;
}

char **klp_texts_copy(const char *const *texts)
{
    if (texts == NULL)
        return NULL;
    size_t count = klp_texts_count(texts);
    char **copy = klp_mem_alloc((count + 1) * sizeof(*copy));
    for (size_t i = 0; i < count; i++)
        copy[i] = klp_mem_string(texts[i]);
    return copy;
}

void klp_texts_free(char **texts)
{
    for (size_t i = 0; texts != NULL && texts[i] != NULL; i++)
        klp_mem_free(texts[i]);
    klp_mem_free(texts);
}

void klp_texts_encode(char *const *texts, struct klp_buf *out)
{
    for (size_t i = 0; texts != NULL && texts[i] != NULL; i++) {
        size_t size = strlen(texts[i]);
        KLP_ASSERT(size <= TEXT_MAX);
        klp_buf_append_u32(out, (uint32_t)size);
        klp_buf_append(out, texts[i], size);
    }
}

static bool holds_nul(const uint8_t *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        if (bytes[i] == 0)
            return true;
    }
    return false;
}

/* Counts the texts of a list and checks all of it. */
static bool texts_measure(struct klp_bytes bytes, const char *field, size_t count_max,
                          size_t *out_count, struct kelpie_error **err)
{
    struct klp_reader reader = {.data = bytes.data, .size = bytes.size};
    *out_count = 0;
    while (klp_read_left(&reader) > 0) {
        uint32_t size = klp_read_u32(&reader);
        const uint8_t *text = klp_read_bytes(&reader, size);
        if (reader.failed || size > TEXT_MAX || holds_nul(text, size))
            return klp_refuse(err, KELPIE_E_CORRUPT, "manifest: %s is malformed", field);
        if (++*out_count > count_max)
            return klp_refuse(err, KELPIE_E_CORRUPT, "manifest: %s has too many entries", field);
    }
    return true;
}

bool klp_texts_decode(struct klp_bytes bytes, const char *field, size_t count_max, char ***out,
                      struct kelpie_error **err)
{
    size_t count;
    KLP_CHECK(texts_measure(bytes, field, count_max, &count, err));
    *out = NULL;
    if (count == 0)
        return true;
    char **texts = klp_mem_try((count + 1) * sizeof(*texts));
    if (texts == NULL)
        return klp_refuse(err, KELPIE_E_NO_MEMORY, "no memory for %s of a manifest", field);
    struct klp_reader reader = {.data = bytes.data, .size = bytes.size};
    for (size_t i = 0; i < count; i++) {
        uint32_t size = klp_read_u32(&reader);
        texts[i] = klp_mem_string_n((const char *)klp_read_bytes(&reader, size), size);
    }
    *out = texts;
    return true;
}

bool klp_text_decode(struct klp_bytes bytes, const char *field, char *out, size_t capacity,
                     struct kelpie_error **err)
{
    if (bytes.size >= capacity)
        return klp_refuse(err, KELPIE_E_CORRUPT, "manifest: %s is too long", field);
    if (holds_nul(bytes.data, bytes.size))
        return klp_refuse(err, KELPIE_E_CORRUPT, "manifest: %s holds a NUL", field);
    if (bytes.size > 0)
        memcpy(out, bytes.data, bytes.size);
    out[bytes.size] = '\0';
    return true;
}

/* ---- the identity */

bool klp_identity_copy(const struct klp_agent_identity *from, struct klp_agent_identity *to,
                       struct kelpie_error **err)
{
    (void)err; /* small: running out of memory stops the process */
    *to = *from;
    to->workdir = klp_mem_string(from->workdir);
    to->argv = klp_texts_copy((const char *const *)from->argv);
    return true;
}

void klp_identity_finish(struct klp_agent_identity *identity)
{
    klp_mem_free(identity->workdir);
    klp_texts_free(identity->argv);
    *identity = (struct klp_agent_identity){0};
}

static void text_record(struct klp_buf *out, uint16_t tag, const char *text)
{
    if (text != NULL && text[0] != '\0')
        klp_record_append(out, tag, KLP_RECORD_CRITICAL, text, strlen(text));
}

static void size_record(struct klp_buf *out, const struct klp_agent_identity *identity)
{
    KLP_AUTO(buf) struct klp_buf bytes = KLP_BUF_INIT(IDENTITY_SIZE_RECORD);
    klp_buf_append_u64(&bytes, identity->memory_bytes);
    klp_buf_append_u32(&bytes, identity->vcpus);
    klp_buf_append_u32(&bytes, identity->userspace_rng_hooked ? IDENTITY_FLAG_RNG_HOOKED : 0);
    klp_record_append(out, TAG_SIZE, KLP_RECORD_CRITICAL, bytes.data, bytes.size);
}

void klp_identity_encode(const struct klp_agent_identity *identity, struct klp_buf *out)
{
    text_record(out, TAG_ID, identity->id);
    text_record(out, TAG_NAME, identity->name);
    text_record(out, TAG_IMAGE, identity->image);
    text_record(out, TAG_IMAGE_VERSION, identity->image_version);
    if (!klp_digest_is_zero(&identity->image_digest))
        klp_record_append(out, TAG_IMAGE_DIGEST, KLP_RECORD_CRITICAL, identity->image_digest.bytes,
                          KLP_DIGEST_BYTES);
    text_record(out, TAG_PARENT, identity->parent);
    size_record(out, identity);
    text_record(out, TAG_WORKDIR, identity->workdir);
    KLP_AUTO(buf) struct klp_buf argv = KLP_BUF_INIT(KLP_MANIFEST_SIZE_MAX);
    klp_texts_encode(identity->argv, &argv);
    if (argv.size > 0)
        klp_record_append(out, TAG_ARGV, KLP_RECORD_CRITICAL, argv.data, argv.size);
}

static bool size_read(struct klp_bytes bytes, struct klp_agent_identity *out,
                      struct kelpie_error **err)
{
    struct klp_reader reader = {.data = bytes.data, .size = bytes.size};
    out->memory_bytes = klp_read_u64(&reader);
    out->vcpus = klp_read_u32(&reader);
    uint32_t flags = klp_read_u32(&reader);
    out->userspace_rng_hooked = (flags & IDENTITY_FLAG_RNG_HOOKED) != 0;
    if (reader.failed || klp_read_left(&reader) != 0 || (flags & ~IDENTITY_FLAG_RNG_HOOKED) != 0)
        return klp_refuse(err, KELPIE_E_CORRUPT, "manifest: agent.size is malformed");
    return true;
}

static bool workdir_read(struct klp_bytes bytes, struct klp_agent_identity *out,
                         struct kelpie_error **err)
{
    if (bytes.size >= KLP_PATH_MAX || holds_nul(bytes.data, bytes.size))
        return klp_refuse(err, KELPIE_E_CORRUPT, "manifest: agent.workdir is malformed");
    out->workdir = klp_mem_string_n((const char *)bytes.data, bytes.size);
    return true;
}

static bool digest_read(struct klp_bytes bytes, struct klp_digest *out, struct kelpie_error **err)
{
    if (bytes.size != KLP_DIGEST_BYTES)
        return klp_refuse(err, KELPIE_E_CORRUPT, "manifest: agent.image_digest is malformed");
    memcpy(out->bytes, bytes.data, KLP_DIGEST_BYTES);
    if (klp_digest_is_zero(out)) /* written by leaving the record out */
        return klp_refuse(err, KELPIE_E_CORRUPT, "manifest: agent.image_digest is zero");
    return true;
}

static bool record_read(const struct klp_record *record, struct klp_agent_identity *out,
                        struct kelpie_error **err)
{
    struct klp_bytes data = record->data;
    if (data.size == 0 && record->tag <= TAG_ARGV)
        return klp_refuse(err, KELPIE_E_CORRUPT, "manifest: empty record %u of the agent",
                          (unsigned)record->tag);
    switch (record->tag) {
    case TAG_ID:
        return klp_text_decode(data, "agent.id", out->id, sizeof(out->id), err);
    case TAG_NAME:
        return klp_text_decode(data, "agent.name", out->name, sizeof(out->name), err);
    case TAG_IMAGE:
        return klp_text_decode(data, "agent.image", out->image, sizeof(out->image), err);
    case TAG_IMAGE_VERSION:
        return klp_text_decode(data, "agent.image_version", out->image_version,
                               sizeof(out->image_version), err);
    case TAG_IMAGE_DIGEST:
        return digest_read(data, &out->image_digest, err);
    case TAG_PARENT:
        return klp_text_decode(data, "agent.parent", out->parent, sizeof(out->parent), err);
    case TAG_SIZE:
        return size_read(data, out, err);
    case TAG_WORKDIR:
        return workdir_read(data, out, err);
    case TAG_ARGV:
        return klp_texts_decode(data, "agent.argv", KLP_ARGV_MAX, &out->argv, err);
    default:
        if ((record->flags & KLP_RECORD_CRITICAL) == 0)
            return true;
        return klp_refuse(err, KELPIE_E_UNSUPPORTED,
                          "manifest: agent record %u is of a newer release", (unsigned)record->tag);
    }
}

bool klp_identity_decode(struct klp_bytes bytes, struct klp_agent_identity *out,
                         struct kelpie_error **err)
{
    *out = (struct klp_agent_identity){0};
    struct klp_record record;
    unsigned last = 0;
    bool has_size = false;
    for (size_t at = 0;;) {
        int found = klp_record_next(bytes, &at, &record, err);
        if (found <= 0) {
            if (found == 0 && !has_size)
                return klp_refuse(err, KELPIE_E_CORRUPT, "manifest: agent.size is missing");
            return found == 0;
        }
        if (record.tag <= last)
            return klp_refuse(err, KELPIE_E_CORRUPT, "manifest: agent records out of order");
        if (record.tag <= TAG_ARGV && record.flags != KLP_RECORD_CRITICAL)
            return klp_refuse(err, KELPIE_E_CORRUPT, "manifest: flags of agent record %u",
                              (unsigned)record.tag);
        last = record.tag;
        has_size = has_size || record.tag == TAG_SIZE;
        KLP_CHECK(record_read(&record, out, err));
    }
}
