/* SPDX-License-Identifier: Apache-2.0 */
#include "base/mem.h"

#include <string.h>

char *klp_mem_string_n(const char *text, size_t size)
{
    if (text == NULL)
        return NULL;
    char *copy = klp_mem_alloc(size + 1);
    memcpy(copy, text, size);
    copy[size] = 0;
    return copy;
}

char *klp_mem_string(const char *text)
{
    return text != NULL ? klp_mem_string_n(text, strlen(text)) : NULL;
}

void *klp_spare_take(enum klp_spare kind)
{
    struct klp_spares *spares = klp_mem_spares();
    void *object = NULL;
    for (size_t i = 0; spares != NULL && object == NULL && i < KLP_SPARE_MAX; i++)
        object = __atomic_exchange_n(&spares->places[kind][i], NULL, __ATOMIC_ACQUIRE);
    return object;
}

void *klp_spare_give(enum klp_spare kind, void *object)
{
    struct klp_spares *spares = klp_mem_spares();
    for (size_t i = 0; spares != NULL && object != NULL && i < KLP_SPARE_MAX; i++)
        object = __atomic_exchange_n(&spares->places[kind][i], object, __ATOMIC_ACQ_REL);
    return object;
}
