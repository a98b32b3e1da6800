/* SPDX-License-Identifier: Apache-2.0 */
/* Layers: sparse pages over a memory object. What lies over what, and who writes it: vm.h,
 * snapshot/. */
#include "vm/layer.h"

#include <string.h>

struct klp_layer {
    struct klp_env *env;
    struct klp_handle handle;
    uint64_t size;
    uint8_t page_log2;
    bool sealed;
    unsigned owners; /* atomic */
};

struct klp_layer_cursor {
    struct klp_layer *layer;
    uint64_t at;
    uint8_t *block; /* KLP_BLOCK_SIZE bytes; NULL until the first run */
};

static bool shape_check(uint64_t size, uint8_t page_log2, struct kelpie_error **err)
{
    if (page_log2 < KLP_PAGE_LOG2_MIN || page_log2 > KLP_PAGE_LOG2_MAX)
        return klp_refuse(err, KELPIE_E_INVALID, "a layer of pages of 2^%u bytes", page_log2);
    if (size == 0 || size > (uint64_t)KLP_MEMORY_MIB_MAX * KLP_MIB)
        return klp_refuse(err, KELPIE_E_INVALID, "a layer of %llu bytes", (unsigned long long)size);
    if (size & ((1ull << page_log2) - 1))
        return klp_refuse(err, KELPIE_E_INVALID, "a layer of %llu bytes in pages of %llu",
                          (unsigned long long)size, 1ull << page_log2);
    return true;
}

static struct klp_layer *layer_new(struct klp_env *env, struct klp_handle handle, uint64_t size,
                                   uint8_t page_log2, bool sealed)
{
    struct klp_layer *layer = KLP_NEW(struct klp_layer);
    *layer = (struct klp_layer){.env = env,
                                .handle = handle,
                                .size = size,
                                .page_log2 = page_log2,
                                .sealed = sealed,
                                .owners = 1};
    return layer;
}

bool klp_layer_create(struct klp_env *env, uint64_t size, uint8_t page_log2, struct klp_layer **out,
                      struct kelpie_error **err)
{
    struct klp_handle handle;
    KLP_CHECK(shape_check(size, page_log2, err));
    KLP_CHECK(klp_memory_create(env, "kelpie-layer", size, &handle, err));
    *out = layer_new(env, handle, size, page_log2, false);
    return true;
}

bool klp_layer_adopt(struct klp_env *env, struct klp_handle handle, uint64_t size,
                     uint8_t page_log2, struct klp_layer **out, struct kelpie_error **err)
{
    if (shape_check(size, page_log2, err) && klp_memory_check(env, handle, size, err)) {
        *out = layer_new(env, handle, size, page_log2, true);
        return true;
    }
    klp_handle_close(env, handle);
    return false;
}

uint64_t klp_layer_size(const struct klp_layer *layer)
{
    return layer->size;
}

uint8_t klp_layer_page_log2(const struct klp_layer *layer)
{
    return layer->page_log2;
}

static bool range_check(const struct klp_layer *layer, uint64_t offset, size_t size,
                        struct kelpie_error **err)
{
    if (offset <= layer->size && size <= layer->size - offset)
        return true;
    return klp_refuse(err, KELPIE_E_INVALID, "bytes %llu+%zu of a layer of %llu",
                      (unsigned long long)offset, size, (unsigned long long)layer->size);
}

bool klp_layer_write(struct klp_layer *layer, uint64_t offset, const void *data, size_t size,
                     struct kelpie_error **err)
{
    uint64_t mask = (1ull << layer->page_log2) - 1;
    if (klp_layer_is_sealed(layer))
        return klp_refuse(err, KELPIE_E_STATE, "cannot write to a layer that is sealed");
    KLP_CHECK(range_check(layer, offset, size, err));
    if ((offset & mask) != 0 || (size & mask) != 0)
        return klp_refuse(err, KELPIE_E_INVALID, "bytes %llu+%zu of a layer are no whole pages",
                          (unsigned long long)offset, size);
    return size == 0 || klp_memory_write(layer->env, layer->handle, offset, data, size, err);
}

bool klp_layer_read(struct klp_layer *layer, uint64_t offset, void *out, size_t size,
                    struct kelpie_error **err)
{
    KLP_CHECK(range_check(layer, offset, size, err));
    return size == 0 || klp_memory_read(layer->env, layer->handle, offset, out, size, err);
}

bool klp_layer_seal(struct klp_layer *layer, struct kelpie_error **err)
{
    if (klp_layer_is_sealed(layer))
        return true;
    KLP_CHECK(klp_memory_seal(layer->env, layer->handle, err));
    __atomic_store_n(&layer->sealed, true, __ATOMIC_RELEASE);
    return true;
}

bool klp_layer_is_sealed(const struct klp_layer *layer)
{
    return __atomic_load_n(&layer->sealed, __ATOMIC_ACQUIRE);
}

struct klp_layer *klp_layer_share(struct klp_layer *layer)
{
    __atomic_add_fetch(&layer->owners, 1, __ATOMIC_RELAXED);
    return layer;
}

void klp_layer_close(struct klp_layer *layer)
{
    if (layer == NULL || __atomic_sub_fetch(&layer->owners, 1, __ATOMIC_ACQ_REL) > 0)
        return;
    klp_handle_close(layer->env, layer->handle);
    klp_mem_free(layer);
}

struct klp_handle klp_layer_handle(const struct klp_layer *layer)
{
    return layer->handle;
}

struct klp_layer_cursor *klp_layer_walk(struct klp_layer *layer)
{
    struct klp_layer_cursor *cursor = KLP_NEW(struct klp_layer_cursor);
    cursor->layer = klp_layer_share(layer);
    return cursor;
}

void klp_layer_cursor_close(struct klp_layer_cursor *cursor)
{
    if (cursor == NULL)
        return;
    klp_layer_close(cursor->layer);
    klp_mem_free(cursor->block);
    klp_mem_free(cursor);
}

/* The memory object knows of host pages: what it has written is widened to whole pages of ours.
 * What comes next begins at or behind cursor->at, which is a whole page already, so no page comes
 * twice. */
static bool range_next(struct klp_layer_cursor *cursor, uint64_t *out_offset, uint64_t *out_size,
                       struct kelpie_error **err)
{
    struct klp_layer *layer = cursor->layer;
    uint64_t mask = (1ull << layer->page_log2) - 1, start = 0, size = 0;
    *out_offset = layer->size;
    *out_size = 0;
    if (cursor->at >= layer->size)
        return true;
    KLP_CHECK(klp_memory_next(layer->env, layer->handle, cursor->at, &start, &size, err));
    if (size == 0 || start >= layer->size)
        return true;
    uint64_t end = size > layer->size - start ? layer->size : start + size;
    end = (end + mask) & ~mask; /* the layer is a whole number of pages */
    *out_offset = start & ~mask;
    *out_size = end - *out_offset;
    return true;
}

bool klp_layer_next_run(struct klp_layer_cursor *cursor, struct klp_run *out,
                        struct kelpie_error **err)
{
    struct klp_layer *layer = cursor->layer;
    uint64_t offset, size;
    KLP_CHECK(range_next(cursor, &offset, &size, err));
    *out = (struct klp_run){.offset = offset};
    cursor->at = offset;
    if (size == 0)
        return true;
    if (cursor->block == NULL)
        cursor->block = klp_mem_try_raw(KLP_BLOCK_SIZE);
    if (cursor->block == NULL)
        return klp_refuse(err, KELPIE_E_NO_MEMORY, "no memory for a block of a layer");
    out->size = size < KLP_BLOCK_SIZE ? (size_t)size : KLP_BLOCK_SIZE;
    KLP_CHECK(klp_memory_read(layer->env, layer->handle, offset, cursor->block, out->size, err));
    out->data = cursor->block;
    cursor->at = offset + out->size;
    return true;
}
