/* SPDX-License-Identifier: Apache-2.0 */
/* Memory of runs by size class. What is given back is kept for the next run: nothing of it goes to
 * the C heap or the kernel in between. Under AddressSanitizer it is the C heap's after all, so that
 * use after free shows. */
#include <stdlib.h>

#include "fiber.h"
#include "sim.h"

#define STEP 32u /* bytes between small classes */
#define SMALL_MAX 1024u
#define SMALL_COUNT (SMALL_MAX / STEP)
#define LARGE_COUNT 13u /* powers of two: 2 KiB to 8 MiB; above: the C heap's */
#define CHUNK_SIZE (256 * KLP_KIB)

struct piece {
    struct piece *next;
};

static struct pool {
    struct piece *free[SMALL_COUNT + LARGE_COUNT];
    uint8_t *chunk; /* small ones are cut from it */
    size_t left;
} pool;

static unsigned class_of(size_t size)
{
    if (size <= SMALL_MAX)
        return size == 0 ? 0 : (unsigned)((size - 1) / STEP);
    unsigned log2 = 64 - (unsigned)__builtin_clzll((unsigned long long)size - 1);
    return SMALL_COUNT + log2 - 11; /* 2 KiB first */
}

static size_t class_size(unsigned class)
{
    return class < SMALL_COUNT ? (class + 1) * (size_t)STEP : (size_t)2048 << (class - SMALL_COUNT);
}

static bool is_pooled(unsigned class)
{
#ifdef SIM_ASAN
    (void)class;
    return false;
#else
    return class < SMALL_COUNT + LARGE_COUNT;
#endif
}

static void *chunk_cut(size_t size)
{
    if (pool.left < size) { /* the little that is left stays unused */
        pool.chunk = malloc(CHUNK_SIZE);
        pool.left = pool.chunk != NULL ? CHUNK_SIZE : 0;
        if (pool.chunk == NULL)
            return NULL;
    }
    void *memory = pool.chunk;
    pool.chunk += size;
    pool.left -= size;
    return memory;
}

void *sim_pool_take(size_t size)
{
    unsigned class = class_of(size);
    if (!is_pooled(class))
        return malloc(size != 0 ? size : 1);
    struct piece *piece = pool.free[class];
    if (piece == NULL)
        return class < SMALL_COUNT ? chunk_cut(class_size(class)) : malloc(class_size(class));
    pool.free[class] = piece->next;
    return piece;
}

void sim_pool_give(void *memory, size_t size)
{
    unsigned class = class_of(size);
    if (!is_pooled(class)) {
        free(memory);
        return;
    }
    struct piece *piece = memory;
    piece->next = pool.free[class];
    pool.free[class] = piece;
}
