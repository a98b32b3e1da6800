/* SPDX-License-Identifier: Apache-2.0 */
/* CRC-32 of zlib and IEEE 802.3: against accidents only, never for security. */
#ifndef KLP_BASE_CRC32_H
#define KLP_BASE_CRC32_H

#include <stddef.h>
#include <stdint.h>

/* Start with crc = 0; feed in parts. "123456789" = 0xCBF43926. */
uint32_t klp_crc32(uint32_t crc, const void *data, size_t size);

#endif
