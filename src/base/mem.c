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
