/* SPDX-License-Identifier: Apache-2.0 */
/* What must be true of every manifest, whether it is about to be written (INVALID) or was read from
 * bytes somebody else wrote (CORRUPT). Whether its objects exist is the store's affair, and whether
 * the machine can run here is teleport's. */
#include <string.h>

#include "format/image.h"
#include "format/manifest_inside.h"

/* A guest of the largest size may have other regions beside its memory. */
#define REGIONS_SIZE_MAX (2 * (uint64_t)KLP_MEMORY_MIB_MAX * KLP_MIB)
#define FRAME_PAGES_LOG2 4
_Static_assert(1u << FRAME_PAGES_LOG2 == KLP_FRAME_PAGES, "the same in both forms");

struct check {
    enum kelpie_code code;
    struct kelpie_error **err;
};

static bool wrong(const struct check *check, const char *field, const char *why)
{
    return klp_refuse(check->err, check->code, "manifest: %s %s", field, why);
}

static bool name_check(const struct check *check, const char *field, const char *name,
                       bool required)
{
    if (name[0] == '\0' ? !required : klp_name_is_valid(name))
        return true;
    return wrong(check, field, name[0] == '\0' ? "is missing" : "is no valid name");
}

static bool ref_check(const struct check *check, const char *field,
                      const struct klp_object_ref *ref, uint64_t size_max)
{
    if ((ref->size == 0) != klp_digest_is_zero(&ref->digest))
        return wrong(check, field, "has a size without a digest or the reverse");
    if (ref->size > size_max)
        return wrong(check, field, "is larger than it may be");
    return true;
}

/* Adds the bytes of the list to *total. */
static bool texts_check(const struct check *check, const char *field, char *const *texts,
                        size_t count_max, size_t *total)
{
    size_t count = 0;
    for (; texts != NULL && texts[count] != NULL; count++) {
        if (count == count_max)
            return wrong(check, field, "has too many entries");
        *total += strlen(texts[count]) + 1;
        if (*total > KLP_ARG_BYTES_MAX)
            return wrong(check, field, "is too long");
    }
    return true;
}

static bool env_check(const struct check *check, char *const *env)
{
    for (size_t i = 0; env != NULL && env[i] != NULL; i++) {
        size_t at = 0;
        while (env[i][at] != '\0' && env[i][at] != '=')
            at++;
        if (at == 0 || env[i][at] == '\0') /* the entry itself is secret: not named */
            return wrong(check, "env", "has an entry that is not KEY=VALUE");
    }
    return true;
}

static bool identity_check(const struct check *check, const struct klp_agent_identity *agent,
                           bool required)
{
    if (agent->id[0] == '\0' ? required : !klp_id_is_valid(agent->id))
        return wrong(check, "agent.id", "is no id");
    KLP_CHECK(name_check(check, "agent.name", agent->name, required));
    KLP_CHECK(name_check(check, "agent.image", agent->image, false));
    KLP_CHECK(name_check(check, "agent.parent", agent->parent, false));
    uint32_t version[3];
    if (agent->image_version[0] != '\0' && !klp_version_parse(agent->image_version, version, NULL))
        return wrong(check, "agent.image_version", "is not MAJOR.MINOR.PATCH");
    if (agent->vcpus > KLP_VCPUS_MAX)
        return wrong(check, "agent.vcpus", "is over the limit");
    if (agent->memory_bytes > (uint64_t)KLP_MEMORY_MIB_MAX * KLP_MIB)
        return wrong(check, "agent.memory_bytes", "is over the limit");
    if (agent->workdir != NULL && strlen(agent->workdir) >= KLP_PATH_MAX)
        return wrong(check, "agent.workdir", "is too long");
    return true;
}

static bool region_check(const struct check *check, const struct klp_region *region, uint64_t from)
{
    if (region->page_log2 < KLP_PAGE_LOG2_MIN || region->page_log2 > KLP_PAGE_LOG2_MAX)
        return wrong(check, "region.page_log2", "is out of range");
    if (region->frame_log2 < region->page_log2 ||
        region->frame_log2 - region->page_log2 > FRAME_PAGES_LOG2)
        return wrong(check, "region.frame_log2", "is out of range");
    uint64_t page_mask = ((uint64_t)1 << region->page_log2) - 1;
    if (region->size == 0 || region->size > REGIONS_SIZE_MAX || (region->size & page_mask) != 0)
        return wrong(check, "region.size", "is zero, over the limit or not in whole pages");
    if (region->base < from || (region->base & page_mask) != 0 ||
        region->base > UINT64_MAX - region->size)
        return wrong(check, "region.base", "overlaps, is out of order or not on a page");
    return ref_check(check, "region.map", &region->map, REGIONS_SIZE_MAX);
}

static bool regions_check(const struct check *check, const struct klp_manifest *manifest)
{
    uint64_t end = 0, total = 0;
    if (manifest->region_count > KLP_REGIONS_MAX)
        return wrong(check, "regions", "are too many");
    for (uint32_t i = 0; i < manifest->region_count; i++) {
        const struct klp_region *region = &manifest->regions[i];
        KLP_CHECK(region_check(check, region, end));
        end = region->base + region->size;
        total += region->size; /* no overflow: each is bounded, and there are few */
    }
    return total <= REGIONS_SIZE_MAX || wrong(check, "regions", "are over the limit in all");
}

static bool packs_check(const struct check *check, const struct klp_manifest *manifest)
{
    if (manifest->pack_count > KLP_PACKS_MAX)
        return wrong(check, "packs", "are too many");
    for (uint32_t i = 0; i < manifest->pack_count; i++) {
        if (manifest->packs[i].size == 0)
            return wrong(check, "pack", "is empty");
        KLP_CHECK(ref_check(check, "pack", &manifest->packs[i], KLP_PACK_SIZE_MAX));
    }
    return true;
}

/* What a kind must and must not carry. */
static bool kind_check(const struct check *check, const struct klp_manifest *manifest)
{
    bool is_checkpoint = manifest->kind == KLP_KIND_CHECKPOINT;
    if (manifest->kind < KLP_KIND_SUSPEND || manifest->kind > KLP_KIND_TEMPLATE)
        return wrong(check, "kind", "is unknown");
    if (is_checkpoint != (manifest->machine.version == 0))
        return wrong(check, "machine",
                     is_checkpoint ? "does not belong in a checkpoint" : "is missing");
    if (is_checkpoint && (manifest->region_count != 0 || manifest->device_state.size != 0))
        return wrong(check, "memory", "does not belong in a checkpoint");
    if (is_checkpoint && manifest->agent_state.size == 0)
        return wrong(check, "agent_state", "is missing");
    return true;
}

bool klp_manifest_check(const struct klp_manifest *manifest, enum kelpie_code code,
                        struct kelpie_error **err)
{
    struct check check = {code, err};
    size_t total = 0;
    if (!klp_id_is_valid(manifest->id))
        return wrong(&check, "id", "is no id");
    if (manifest->seq > INT64_MAX || manifest->epoch > INT64_MAX ||
        manifest->stored_bytes > INT64_MAX)
        return wrong(&check, "seq, epoch or stored_bytes", "is out of range");
    KLP_CHECK(kind_check(&check, manifest));
    KLP_CHECK(name_check(&check, "label", manifest->label, false));
    KLP_CHECK(identity_check(&check, &manifest->agent, manifest->kind != KLP_KIND_TEMPLATE));
    KLP_CHECK(texts_check(&check, "agent.argv", manifest->agent.argv, KLP_ARGV_MAX, &total));
    KLP_CHECK(texts_check(&check, "env", manifest->env, KLP_ENV_MAX, &total));
    KLP_CHECK(env_check(&check, manifest->env));
    KLP_CHECK(regions_check(&check, manifest));
    KLP_CHECK(packs_check(&check, manifest));
    KLP_CHECK(ref_check(&check, "device_state", &manifest->device_state,
                        KLP_DEVICE_STATE_MAX + KLP_OBJECT_HEADER_SIZE));
    return ref_check(&check, "agent_state", &manifest->agent_state, KLP_AGENT_STATE_MAX);
}
