/* SPDX-License-Identifier: Apache-2.0 */
/* SHA-256, by OpenSSL. */
#ifndef KLP_BASE_EXT_SHA256_H
#define KLP_BASE_EXT_SHA256_H

#include "base/name.h"

struct klp_sha256; /* one running hash */

struct klp_sha256 *klp_sha256_create(void);
void klp_sha256_update(struct klp_sha256 *hash, const void *data, size_t size);
/* The hash is reset and may be used again. */
void klp_sha256_final(struct klp_sha256 *hash, struct klp_digest *out);
void klp_sha256_destroy(struct klp_sha256 *hash);
void klp_sha256_once(const void *data, size_t size, struct klp_digest *out);

KLP_AUTO_DEFINE(sha256, struct klp_sha256 *, klp_sha256_destroy)

#endif
