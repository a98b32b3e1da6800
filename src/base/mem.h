/* SPDX-License-Identifier: Apache-2.0 */
/* Memory and cleanup by scope. Core code has no malloc: the env that is linked in defines these
 * (env/posix: the C heap; the simulator: the arena of the current crash domain). */
#ifndef KLP_BASE_MEM_H
#define KLP_BASE_MEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Small, fixed-size objects: zeroed; running out of memory stops the process. */
void *klp_mem_alloc(size_t size_bytes) __attribute__((malloc, alloc_size(1), returns_nonnull));
/* Anything sized by input, after its bound was checked: zeroed; NULL when there is no memory. */
void *klp_mem_try(size_t size_bytes) __attribute__((malloc, alloc_size(1)));
/* The same two for room that is written before it is read: not zeroed. */
void *klp_mem_alloc_raw(size_t size_bytes) __attribute__((malloc, alloc_size(1), returns_nonnull));
void *klp_mem_try_raw(size_t size_bytes) __attribute__((malloc, alloc_size(1)));
/* As realloc; NULL leaves `memory` as it was. New bytes are not zeroed. */
void *klp_mem_resize(void *memory, size_t size_bytes) __attribute__((alloc_size(2)));
/* NULL is allowed. */
void klp_mem_free(void *memory);

/* Copies; stop on out of memory; `text` may be NULL and then so is the copy. */
char *klp_mem_string(const char *text);
char *klp_mem_string_n(const char *text, size_t size);

/* What ext/ holds of a foreign library registers how to drop it, so that dropping a simulated
 * crash domain runs it. env/posix ignores both calls. */
void klp_mem_guard(void *object, void (*destroy)(void *object));
void klp_mem_unguard(void *object);

/* What ext/ makes of a foreign library and is dear to make waits for its next user. Core has no
 * place to keep it: the env that is linked in has. take: NULL = none waits. give: returns what is
 * too much, the object or one that waited before it. */
enum klp_spare { KLP_SPARE_COMPRESS, KLP_SPARE_EXPAND, KLP_SPARE_SHA256, KLP_SPARE_COUNT };
#define KLP_SPARE_MAX 2 /* of each kind */
struct klp_spares {
    void *places[KLP_SPARE_COUNT][KLP_SPARE_MAX];
};
struct klp_spares *klp_mem_spares(void); /* the process's; NULL = keeps none */
void *klp_spare_take(enum klp_spare kind);
void *klp_spare_give(enum klp_spare kind, void *object);

/* KLP_AUTO(type) struct type *x = NULL; is destroyed when the scope ends, unless KLP_TAKE(&x). */
#define KLP_AUTO(name) __attribute__((cleanup(klp_auto_##name)))
#define KLP_AUTO_DEFINE(name, pointer_type, destroy)                                               \
    static inline void klp_auto_##name(pointer_type *object)                                       \
    {                                                                                              \
        if (*object != NULL)                                                                       \
            destroy(*object);                                                                      \
    }
#define KLP_TAKE(place)                                                                            \
    __extension__({                                                                                \
        __typeof__(*(place)) klp_taken = *(place);                                                 \
        *(place) = NULL;                                                                           \
        klp_taken;                                                                                 \
    })

static inline void klp_auto_memory(void *place)
{
    klp_mem_free(*(void **)place);
}

#define KLP_NEW(type) ((type *)klp_mem_alloc(sizeof(type)))
#define KLP_COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define KLP_CONTAINER(pointer, type, member) ((type *)((char *)(pointer)-offsetof(type, member)))

#endif
