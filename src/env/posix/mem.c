/* SPDX-License-Identifier: Apache-2.0 */
/* klp_mem_* on the C heap, and what a bug does. No other file of env/posix is needed by
 * kelpie-guest. */
#include "base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/error.h"

void klp_bug(const char *file, int line, const char *what)
{
    dprintf(STDERR_FILENO, "kelpie: bug: %s:%d: %s\n", file, line, what);
    abort();
}

void *klp_mem_try(size_t size_bytes)
{
    return calloc(1, size_bytes != 0 ? size_bytes : 1);
}

void *klp_mem_try_raw(size_t size_bytes)
{
    return malloc(size_bytes != 0 ? size_bytes : 1);
}

static void *must(void *memory)
{
    if (memory == NULL)
        klp_bug(__FILE__, __LINE__, "out of memory");
    return memory;
}

void *klp_mem_alloc(size_t size_bytes)
{
    return must(klp_mem_try(size_bytes));
}

void *klp_mem_alloc_raw(size_t size_bytes)
{
    return must(klp_mem_try_raw(size_bytes));
}

void *klp_mem_resize(void *memory, size_t size_bytes)
{
    return realloc(memory, size_bytes != 0 ? size_bytes : 1);
}

void klp_mem_free(void *memory)
{
    free(memory);
}

void klp_mem_guard(void *object, void (*destroy)(void *object))
{
    (void)object;
    (void)destroy;
}

void klp_mem_unguard(void *object)
{
    (void)object;
}

struct klp_spares *klp_mem_spares(void)
{
    static struct klp_spares spares;
    return &spares;
}
