/* SPDX-License-Identifier: Apache-2.0 */
#include "base/ext/sha256.h"

#include <openssl/evp.h>

struct klp_sha256 {
    EVP_MD_CTX *context;
};

static void sha256_drop(void *object)
{
    struct klp_sha256 *hash = object;
    EVP_MD_CTX_free(hash->context);
    klp_mem_free(hash);
}

struct klp_sha256 *klp_sha256_create(void)
{
    struct klp_sha256 *hash = KLP_NEW(struct klp_sha256);
    hash->context = EVP_MD_CTX_new();
    KLP_ASSERT(hash->context != NULL);
    KLP_ASSERT(EVP_DigestInit_ex(hash->context, EVP_sha256(), NULL) == 1);
    klp_mem_guard(hash, sha256_drop);
    return hash;
}

void klp_sha256_update(struct klp_sha256 *hash, const void *data, size_t size)
{
    KLP_ASSERT(EVP_DigestUpdate(hash->context, data, size) == 1);
}

void klp_sha256_final(struct klp_sha256 *hash, struct klp_digest *out)
{
    KLP_ASSERT(EVP_DigestFinal_ex(hash->context, out->bytes, NULL) == 1);
    /* No name: OpenSSL 3 would look the algorithm up again, under a lock. */
    KLP_ASSERT(EVP_DigestInit_ex(hash->context, NULL, NULL) == 1);
}

void klp_sha256_destroy(struct klp_sha256 *hash)
{
    if (hash == NULL)
        return;
    klp_mem_unguard(hash);
    sha256_drop(hash);
}

void klp_sha256_once(const void *data, size_t size, struct klp_digest *out)
{
    KLP_ASSERT(EVP_Digest(data, size, out->bytes, NULL, EVP_sha256(), NULL) == 1);
}
