/* SPDX-License-Identifier: Apache-2.0 */
/* Handles and memory objects: a table of descriptors over refcounted objects. A memory object is
 * sparse in pages of 64 bytes, the smallest of the formats, so that small guests have many pages.
 */
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "sim.h"

#define CHUNK_SIZE 4096u /* bytes: 64 pages, one word of marks */
#define HANDLES_MAX 65536u

struct chunk {
    uint64_t present; /* one bit a page */
    uint8_t bytes[CHUNK_SIZE];
};

struct sim_memory {
    unsigned refs;
    uint64_t size;
    bool sealed;
    size_t chunk_count;
    struct chunk **chunks; /* NULL = nothing written there */
};

struct sim_handle_slot {
    enum sim_handle_kind kind;
    void *object;
    struct sim_domain *domain; /* whose it is; NULL = in a message */
};

/* ---- handles */

struct klp_handle sim_handle_create(enum sim_handle_kind kind, void *object)
{
    struct sim *world = sim_world;
    size_t at = 0;
    while (at < world->handle_count && world->handles[at].kind != SIM_HANDLE_FREE)
        at++;
    if (at == world->handle_count) {
        KLP_ASSERT(at < HANDLES_MAX); /* else somebody leaks them */
        world->handle_count = at != 0 ? 2 * at : 64;
        world->handles = realloc(world->handles, world->handle_count * sizeof(world->handles[0]));
        KLP_ASSERT(world->handles != NULL);
        memset(world->handles + at, 0, (world->handle_count - at) * sizeof(world->handles[0]));
    }
    world->handles[at] = (struct sim_handle_slot){
        kind, object, world->current != NULL ? world->current->domain : world->world_domain};
    world->handle_used++;
    return (struct klp_handle){(intptr_t)at};
}

void *sim_handle_object(struct klp_handle handle, enum sim_handle_kind kind)
{
    KLP_ASSERT(handle.value >= 0 && (size_t)handle.value < sim_world->handle_count);
    const struct sim_handle_slot *slot = &sim_world->handles[handle.value];
    KLP_ASSERT(slot->kind != SIM_HANDLE_FREE); /* used after it was closed */
    return slot->kind == kind ? slot->object : NULL;
}

static void memory_put(struct sim_memory *memory)
{
    if (--memory->refs > 0)
        return;
    for (size_t i = 0; i < memory->chunk_count; i++)
        free(memory->chunks[i]);
    free(memory->chunks);
    free(memory);
}

static void object_put(enum sim_handle_kind kind, void *object)
{
    if (kind == SIM_HANDLE_MEMORY)
        memory_put(object);
    else
        sim_stream_object_put(object);
}

static void handle_close(struct klp_env *env, struct klp_handle handle)
{
    (void)env;
    KLP_ASSERT(handle.value >= 0 && (size_t)handle.value < sim_world->handle_count);
    struct sim_handle_slot slot = sim_world->handles[handle.value];
    KLP_ASSERT(slot.kind != SIM_HANDLE_FREE);
    sim_world->handles[handle.value] = (struct sim_handle_slot){SIM_HANDLE_FREE, NULL, NULL};
    sim_world->handle_used--;
    object_put(slot.kind, slot.object);
}

void sim_handles_drop(const struct sim_domain *domain)
{
    for (size_t i = 0; i < sim_world->handle_count; i++) {
        const struct sim_handle_slot *slot = &sim_world->handles[i];
        if (slot->kind != SIM_HANDLE_FREE && (domain == NULL || slot->domain == domain))
            handle_close(NULL, (struct klp_handle){(intptr_t)i});
    }
}

void sim_handle_give(struct klp_handle handle, struct sim_domain *domain)
{
    sim_world->handles[handle.value].domain = domain;
}

static bool handle_copy(struct klp_env *env, struct klp_handle handle, struct klp_handle *out,
                        struct kelpie_error **err)
{
    (void)env;
    (void)err;
    struct sim_memory *memory = sim_handle_object(handle, SIM_HANDLE_MEMORY);
    if (memory != NULL) {
        memory->refs++;
        *out = sim_handle_create(SIM_HANDLE_MEMORY, memory);
    } else {
        void *stream = sim_handle_object(handle, SIM_HANDLE_STREAM);
        *out = sim_handle_create(SIM_HANDLE_STREAM, sim_stream_object_share(stream));
    }
    return true;
}

/* ---- memory objects */

static bool memory_get(struct klp_handle handle, struct sim_memory **out, struct kelpie_error **err)
{
    *out = sim_handle_object(handle, SIM_HANDLE_MEMORY);
    return *out != NULL || klp_refuse(err, KELPIE_E_CORRUPT, "a handle is no memory object");
}

static bool memory_create(struct klp_env *env, const char *name, uint64_t size,
                          struct klp_handle *out, struct kelpie_error **err)
{
    (void)env;
    (void)name;
    if (size > (uint64_t)KLP_MEMORY_MIB_MAX * KLP_MIB)
        return klp_refuse(err, KELPIE_E_NO_MEMORY, "cannot size a memory object to %llu bytes",
                          (unsigned long long)size);
    struct sim_memory *memory = calloc(1, sizeof(*memory));
    memory->refs = 1;
    memory->size = size;
    memory->chunk_count = (size_t)((size + CHUNK_SIZE - 1) / CHUNK_SIZE);
    memory->chunks = calloc(memory->chunk_count + 1, sizeof(memory->chunks[0]));
    KLP_ASSERT(memory->chunks != NULL);
    *out = sim_handle_create(SIM_HANDLE_MEMORY, memory);
    return true;
}

static bool memory_size(struct klp_env *env, struct klp_handle handle, uint64_t *out,
                        struct kelpie_error **err)
{
    struct sim_memory *memory;
    (void)env;
    KLP_CHECK(memory_get(handle, &memory, err));
    *out = memory->size;
    return true;
}

void sim_memory_copy_out(const struct sim_memory *memory, uint64_t offset, void *out, size_t size)
{
    for (uint8_t *to = out; size > 0;) {
        size_t within = offset % CHUNK_SIZE;
        size_t part = size < CHUNK_SIZE - within ? size : CHUNK_SIZE - within;
        const struct chunk *chunk = memory->chunks[offset / CHUNK_SIZE];
        if (chunk != NULL)
            memcpy(to, chunk->bytes + within, part);
        else
            memset(to, 0, part);
        to += part;
        offset += part;
        size -= part;
    }
}

uint64_t sim_memory_bytes(const struct sim_memory *memory)
{
    return memory->size;
}

static bool range_check(const struct sim_memory *memory, uint64_t offset, size_t size,
                        struct kelpie_error **err)
{
    return (offset <= memory->size && size <= memory->size - offset) ||
           klp_refuse(err, KELPIE_E_CORRUPT, "a memory object ends at %llu",
                      (unsigned long long)memory->size);
}

static bool memory_read(struct klp_env *env, struct klp_handle handle, uint64_t offset, void *out,
                        size_t size, struct kelpie_error **err)
{
    struct sim_memory *memory;
    (void)env;
    KLP_CHECK(memory_get(handle, &memory, err));
    KLP_CHECK(range_check(memory, offset, size, err));
    sim_memory_copy_out(memory, offset, out, size);
    return true;
}

static void chunk_write(struct chunk *chunk, size_t at, const uint8_t *data, size_t size)
{
    memcpy(chunk->bytes + at, data, size);
    for (size_t page = at / SIM_PAGE_SIZE; page <= (at + size - 1) / SIM_PAGE_SIZE; page++)
        chunk->present |= 1ull << page;
}

static bool memory_write(struct klp_env *env, struct klp_handle handle, uint64_t offset,
                         const void *data, size_t size, struct kelpie_error **err)
{
    struct sim_memory *memory;
    (void)env;
    KLP_CHECK(memory_get(handle, &memory, err));
    KLP_CHECK(range_check(memory, offset, size, err));
    if (memory->sealed)
        return klp_refuse(err, KELPIE_E_DENIED, "cannot write a memory object: it is sealed");
    for (const uint8_t *from = data; size > 0;) {
        size_t within = offset % CHUNK_SIZE;
        size_t part = size < CHUNK_SIZE - within ? size : CHUNK_SIZE - within;
        struct chunk **chunk = &memory->chunks[offset / CHUNK_SIZE];
        if (*chunk == NULL)
            *chunk = calloc(1, sizeof(**chunk));
        KLP_ASSERT(*chunk != NULL);
        chunk_write(*chunk, within, from, part);
        from += part;
        offset += part;
        size -= part;
    }
    return true;
}

static bool page_is_present(const struct sim_memory *memory, uint64_t page)
{
    const struct chunk *chunk = memory->chunks[page / 64];
    return chunk != NULL && (chunk->present >> (page % 64) & 1) != 0;
}

bool sim_memory_next(const struct sim_memory *memory, uint64_t offset, uint64_t *out_offset,
                     uint64_t *out_size)
{
    uint64_t page = offset >> SIM_PAGE_LOG2;
    uint64_t end = (memory->size + SIM_PAGE_SIZE - 1) >> SIM_PAGE_LOG2;
    while (page < end && !page_is_present(memory, page))
        page = page % 64 == 0 && memory->chunks[page / 64] == NULL ? page + 64 : page + 1;
    if (page >= end)
        return false;
    uint64_t first = page;
    while (page < end && page_is_present(memory, page))
        page++;
    *out_offset = first << SIM_PAGE_LOG2;
    *out_size = (page - first) << SIM_PAGE_LOG2;
    return true;
}

static bool memory_next(struct klp_env *env, struct klp_handle handle, uint64_t offset,
                        uint64_t *out_offset, uint64_t *out_size, struct kelpie_error **err)
{
    struct sim_memory *memory;
    (void)env;
    KLP_CHECK(memory_get(handle, &memory, err));
    if (!sim_memory_next(memory, offset, out_offset, out_size))
        *out_size = 0;
    return true;
}

static bool memory_seal(struct klp_env *env, struct klp_handle handle, struct kelpie_error **err)
{
    struct sim_memory *memory;
    (void)env;
    KLP_CHECK(memory_get(handle, &memory, err));
    memory->sealed = true;
    return true;
}

static bool memory_check(struct klp_env *env, struct klp_handle handle, uint64_t size,
                         struct kelpie_error **err)
{
    struct sim_memory *memory;
    (void)env;
    KLP_CHECK(memory_get(handle, &memory, err));
    if (!memory->sealed)
        return klp_refuse(err, KELPIE_E_CORRUPT, "a memory object is not sealed");
    if (memory->size != size)
        return klp_refuse(err, KELPIE_E_CORRUPT, "a memory object has %llu bytes instead of %llu",
                          (unsigned long long)memory->size, (unsigned long long)size);
    return true;
}

const struct klp_memory_ops sim_memory_ops = {
    .close = handle_close,
    .copy = handle_copy,
    .create = memory_create,
    .size = memory_size,
    .read = memory_read,
    .write = memory_write,
    .next = memory_next,
    .seal = memory_seal,
    .check = memory_check,
};
