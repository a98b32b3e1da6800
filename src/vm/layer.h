/* SPDX-License-Identifier: Apache-2.0 */
/* A layer: guest memory, or the pages of it that differ from what lies below. Sparse, of the
 * guest's size, over a memory object of env. Above vm/ nobody sees the object or an address: pages
 * go in and out in runs. */
#ifndef KLP_VM_LAYER_H
#define KLP_VM_LAYER_H

#include "base/limits.h"
#include "env/memory.h"

struct klp_layer;

struct klp_run {     /* borrowed pages, valid until the next call on the cursor */
    uint64_t offset; /* bytes; a whole number of pages */
    size_t size;     /* <= KLP_BLOCK_SIZE */
    const uint8_t *data;
};
struct klp_layer_cursor; /* one reader; several may walk a sealed layer at once */

KELPIE_MUST_USE bool klp_layer_create(struct klp_env *env, uint64_t size, uint8_t page_log2,
                                      struct klp_layer **out, struct kelpie_error **err);
/* Takes the handle over. Must be sealed and of that size: CORRUPT otherwise. */
KELPIE_MUST_USE bool klp_layer_adopt(struct klp_env *env, struct klp_handle handle, uint64_t size,
                                     uint8_t page_log2, struct klp_layer **out,
                                     struct kelpie_error **err);
uint64_t klp_layer_size(const struct klp_layer *layer);
uint8_t klp_layer_page_log2(const struct klp_layer *layer);
/* Whole pages. Unsealed only; different ranges may be written by several tasks at once. */
KELPIE_MUST_USE bool klp_layer_write(struct klp_layer *layer, uint64_t offset, const void *data,
                                     size_t size, struct kelpie_error **err);
/* Absent pages read as zero. */
KELPIE_MUST_USE bool klp_layer_read(struct klp_layer *layer, uint64_t offset, void *out,
                                    size_t size, struct kelpie_error **err);
KELPIE_MUST_USE bool klp_layer_seal(struct klp_layer *layer, struct kelpie_error **err);
bool klp_layer_is_sealed(const struct klp_layer *layer);
/* Two owners: the cache of templates and a VM. */
struct klp_layer *klp_layer_share(struct klp_layer *layer);
void klp_layer_close(struct klp_layer *layer); /* the last close frees it */

struct klp_layer_cursor *klp_layer_walk(struct klp_layer *layer);
/* Present pages in ascending order; size 0 = end. */
KELPIE_MUST_USE bool klp_layer_next_run(struct klp_layer_cursor *cursor, struct klp_run *out,
                                        struct kelpie_error **err);
void klp_layer_cursor_close(struct klp_layer_cursor *cursor);

KLP_AUTO_DEFINE(layer, struct klp_layer *, klp_layer_close)
KLP_AUTO_DEFINE(layer_cursor, struct klp_layer_cursor *, klp_layer_cursor_close)

/* For vm/ and below only. Borrowed. */
struct klp_handle klp_layer_handle(const struct klp_layer *layer);

#endif
