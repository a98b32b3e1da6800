/* SPDX-License-Identifier: Apache-2.0 */
#include "base/ext/sha256.h"

#include <openssl/evp.h>

struct klp_sha256 {
    EVP_MD_CTX *context;
};

/* OpenSSL 3 looks for the code behind a name at each use, under a lock: a context that waited knows
 * it. */
static EVP_MD_CTX *context_take(void)
{
    EVP_MD_CTX *context = klp_spare_take(KLP_SPARE_SHA256);
    bool is_new = context == NULL;
    if (is_new)
        context = EVP_MD_CTX_new();
    KLP_ASSERT(context != NULL);
    KLP_ASSERT(EVP_DigestInit_ex(context, is_new ? EVP_sha256() : NULL, NULL) == 1);
    return context;
}

static void context_give(EVP_MD_CTX *context)
{
    EVP_MD_CTX_free(klp_spare_give(KLP_SPARE_SHA256, context));
}

static void sha256_drop(void *object)
{
    struct klp_sha256 *hash = object;
    context_give(hash->context);
    klp_mem_free(hash);
}

struct klp_sha256 *klp_sha256_create(void)
{
    struct klp_sha256 *hash = KLP_NEW(struct klp_sha256);
    hash->context = context_take();
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
    /* No name: the same again. */
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
    EVP_MD_CTX *context = context_take();
    KLP_ASSERT(EVP_DigestUpdate(context, data, size) == 1);
    KLP_ASSERT(EVP_DigestFinal_ex(context, out->bytes, NULL) == 1);
    context_give(context);
}
