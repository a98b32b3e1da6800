/* SPDX-License-Identifier: Apache-2.0 */
#include "base/ext/sha256.h"

#include <openssl/evp.h>

struct klp_sha256 {
    EVP_MD_CTX *context;
};

/* EVP_sha256() is a name only: OpenSSL 3 looks for the code behind it at each use, under a lock.
 * Found once, it stays for the life of the process. */
static const EVP_MD *algorithm(void)
{
    static EVP_MD *found;
    EVP_MD *md = __atomic_load_n(&found, __ATOMIC_ACQUIRE), *none = NULL;
    if (md != NULL)
        return md;
    md = EVP_MD_fetch(NULL, "SHA256", NULL);
    KLP_ASSERT(md != NULL);
    if (__atomic_compare_exchange_n(&found, &none, md, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
        return md;
    EVP_MD_free(md); /* another thread was first */
    return none;
}

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
    KLP_ASSERT(EVP_DigestInit_ex(hash->context, algorithm(), NULL) == 1);
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
    KLP_ASSERT(EVP_Digest(data, size, out->bytes, NULL, algorithm(), NULL) == 1);
}
