/* SPDX-License-Identifier: Apache-2.0 */
#include "base/ext/zstd.h"

#include <zstd.h>

#define LEVEL                                                                                      \
    1 /* store-and-teleport a.3: higher levels buy 3 to 10 % for 1.3 to 5 times the time */

struct klp_zstd {
    ZSTD_CCtx *compress; /* made by need */
    ZSTD_DCtx *expand;
};

/* Contexts are some hundred KiB, fresh from the kernel each time: a few wait for the next user. */
static void zstd_drop(void *object)
{
    struct klp_zstd *zstd = object;
    ZSTD_freeCCtx(klp_spare_give(KLP_SPARE_COMPRESS, zstd->compress));
    ZSTD_freeDCtx(klp_spare_give(KLP_SPARE_EXPAND, zstd->expand));
    klp_mem_free(zstd);
}

static ZSTD_CCtx *compress_create(void)
{
    ZSTD_CCtx *context = klp_spare_take(KLP_SPARE_COMPRESS);
    if (context != NULL)
        return context;
    context = ZSTD_createCCtx();
    KLP_ASSERT(context != NULL);
    KLP_ASSERT(!ZSTD_isError(ZSTD_CCtx_setParameter(context, ZSTD_c_compressionLevel, LEVEL)));
    return context;
}

static ZSTD_DCtx *expand_create(void)
{
    ZSTD_DCtx *context = klp_spare_take(KLP_SPARE_EXPAND);
    if (context == NULL)
        context = ZSTD_createDCtx();
    KLP_ASSERT(context != NULL);
    return context;
}

struct klp_zstd *klp_zstd_create(void)
{
    struct klp_zstd *zstd = KLP_NEW(struct klp_zstd);
    klp_mem_guard(zstd, zstd_drop);
    return zstd;
}

void klp_zstd_destroy(struct klp_zstd *zstd)
{
    if (zstd == NULL)
        return;
    klp_mem_unguard(zstd);
    zstd_drop(zstd);
}

size_t klp_zstd_compress(struct klp_zstd *zstd, const void *plain, size_t size, void *out,
                         size_t capacity)
{
    if (capacity == 0)
        return 0;
    if (zstd->compress == NULL)
        zstd->compress = compress_create();
    size_t stored = ZSTD_compress2(zstd->compress, out, capacity - 1, plain, size);
    return ZSTD_isError(stored) ? 0 : stored;
}

bool klp_zstd_expand(struct klp_zstd *zstd, const void *stored, size_t size, void *out,
                     size_t plain_size)
{
    if (zstd->expand == NULL)
        zstd->expand = expand_create();
    /* One frame and nothing else: without this, several frames and "skippable" ones are taken too,
     * so that a frame of ours would have more than one spelling. */
    if (ZSTD_findFrameCompressedSize(stored, size) != size)
        return false;
    unsigned long long named = ZSTD_getFrameContentSize(stored, size);
    if (named != ZSTD_CONTENTSIZE_UNKNOWN && named != plain_size)
        return false;
    size_t plain = ZSTD_decompressDCtx(zstd->expand, out, plain_size, stored, size);
    return !ZSTD_isError(plain) && plain == plain_size;
}
