/* SPDX-License-Identifier: Apache-2.0 */
/* For tests of base/: memory that can run out on demand and is counted, and bugs that can be
 * expected. Defines what the env defines elsewhere, so a program includes it in one file. */
#ifndef BASE_KIT_H
#define BASE_KIT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/error.h"

static long kit_allocations_left = -1; /* -1 = as many as wanted */
static long kit_live;                  /* allocations not freed */
static jmp_buf kit_bug_jump;
static volatile bool kit_bug_expected;

void klp_bug(const char *file, int line, const char *what)
{
    if (kit_bug_expected)
        longjmp(kit_bug_jump, 1);
    fprintf(stderr, "bug: %s:%d: %s\n", file, line, what);
    abort();
}

void *klp_mem_try(size_t size_bytes)
{
    if (kit_allocations_left == 0 || size_bytes > SIZE_MAX / 4)
        return NULL;
    if (kit_allocations_left > 0)
        kit_allocations_left--;
    kit_live++;
    return calloc(1, size_bytes != 0 ? size_bytes : 1);
}

void *klp_mem_alloc(size_t size_bytes)
{
    void *memory = klp_mem_try(size_bytes);
    KLP_ASSERT(memory != NULL);
    return memory;
}

/* Contexts are counted: none waits. */
struct klp_spares *klp_mem_spares(void)
{
    return NULL;
}

/* Not zeroed, and to be seen: what reads before it writes gets no zeros here. */
void *klp_mem_try_raw(size_t size_bytes)
{
    void *memory = klp_mem_try(size_bytes);
    if (memory != NULL)
        memset(memory, 0xa5, size_bytes);
    return memory;
}

void *klp_mem_alloc_raw(size_t size_bytes)
{
    void *memory = klp_mem_try_raw(size_bytes);
    KLP_ASSERT(memory != NULL);
    return memory;
}

void *klp_mem_resize(void *memory, size_t size_bytes)
{
    if (kit_allocations_left == 0 || size_bytes > SIZE_MAX / 4)
        return NULL;
    if (kit_allocations_left > 0)
        kit_allocations_left--;
    kit_live += memory == NULL;
    return realloc(memory, size_bytes != 0 ? size_bytes : 1);
}

void klp_mem_free(void *memory)
{
    kit_live -= memory != NULL;
    free(memory);
}

/* What ext/ guards, and how it is dropped with a simulated crash domain. */
struct kit_guard {
    void *object;
    void (*destroy)(void *object);
};
static struct kit_guard kit_guard; /* the last one; these tests hold one object at a time */
static int kit_guards;

void klp_mem_guard(void *object, void (*destroy)(void *object))
{
    kit_guard = (struct kit_guard){object, destroy};
    kit_guards++;
}

void klp_mem_unguard(void *object)
{
    if (kit_guard.object == object)
        kit_guards--;
}

#define KIT_ASSERT_BUG(call)                                                                       \
    do {                                                                                           \
        kit_bug_expected = true;                                                                   \
        if (setjmp(kit_bug_jump) == 0) {                                                           \
            call;                                                                                  \
            kit_bug_expected = false;                                                              \
            fail_msg("%s: no bug was reported", #call);                                            \
        }                                                                                          \
        kit_bug_expected = false;                                                                  \
    } while (0)

/* A refusal with this code; its message holds `part`. Clears the error. */
static inline void kit_refused_at(int line, bool answer, struct kelpie_error **err,
                                  enum kelpie_code code, const char *part)
{
    if (answer)
        fail_msg("line %d: not refused", line);
    if (kelpie_error_code(*err) != code || strstr(kelpie_error_message(*err), part) == NULL)
        fail_msg("line %d: refused with %s: %s", line, kelpie_code_name(kelpie_error_code(*err)),
                 kelpie_error_message(*err));
    klp_error_clear(err);
}
#define KIT_REFUSED(answer, err, code, part) kit_refused_at(__LINE__, answer, err, code, part)

#endif
