/* SPDX-License-Identifier: Apache-2.0 */
/* Two pieces of arithmetic the codecs of this folder share. */
#ifndef KLP_FORMAT_BYTES_H
#define KLP_FORMAT_BYTES_H

#include <stddef.h>
#include <stdint.h>

/* The low `size` bytes of value, little-endian. */
static inline void klp_store_le(uint8_t *out, uint64_t value, unsigned size)
{
    for (unsigned i = 0; i < size; i++)
        out[i] = (uint8_t)(value >> (8 * i));
}

/* Zero bytes that must follow `size` bytes so that the next thing lies on a multiple of 8. */
static inline size_t klp_padding_8(size_t size)
{
    return (8u - size % 8u) % 8u;
}

#endif
