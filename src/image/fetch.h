/* SPDX-License-Identifier: Apache-2.0 */
/* Debian packages by name: apt says which version and which SHA-256 (its lists are signed), the
 * cache directory keeps what was downloaded, and nothing is used whose hash differs. Needs no root.
 * With the packages in the cache it needs no network, only apt's lists. */
#ifndef KLP_IMAGE_FETCH_H
#define KLP_IMAGE_FETCH_H

#include "env/env.h"
#include "format/machine.h"

#define KLP_PACKAGES_MAX 32 /* of one image */
#define KLP_PACKAGE_SIZE_MAX (256u * 1024u * 1024u)

struct klp_package {
    char name[96];
    char file[192]; /* "busybox-static_1.35.0-4_amd64.deb": what apt names it */
    uint64_t size;
    struct klp_digest sha256;
};

/* Debian's name of an architecture: "amd64", "arm64". */
const char *klp_fetch_arch(enum klp_arch arch);

/* The newest linux-image-6.1.0-N-cloud-ARCH that apt's lists know. UNREACHABLE: they know none; the
 * error says what to run. */
KELPIE_MUST_USE kelpie_outcome klp_fetch_kernel_name(const struct kelpie_op *op, enum klp_arch arch,
                                                     char *out, size_t capacity,
                                                     struct kelpie_error **err);
/* Fills `packages` (names set by the caller) with what apt would download. */
KELPIE_MUST_USE kelpie_outcome klp_fetch_resolve(const struct kelpie_op *op, enum klp_arch arch,
                                                 struct klp_package *packages, size_t count,
                                                 struct kelpie_error **err);
/* Downloads those that the cache lacks, checks all. `say` may be NULL. */
KELPIE_MUST_USE kelpie_outcome klp_fetch_packages(const struct kelpie_op *op, enum klp_arch arch,
                                                  const char *cache_dir,
                                                  const struct klp_package *packages, size_t count,
                                                  void (*say)(void *arg, const char *line),
                                                  void *say_arg, struct kelpie_error **err);
/* One of them for reading; its hash is checked once more. */
KELPIE_MUST_USE bool klp_fetch_open(const char *cache_dir, const struct klp_package *package,
                                    int *out_fd, struct kelpie_error **err);

/* ---- parsing of what apt prints, apart for tests. */

/* From a list of package names, one a line. "" in `out`: none is such a kernel. */
void klp_fetch_kernel_choose(struct klp_bytes names, enum klp_arch arch, char *out,
                             size_t capacity);
/* A line of `apt-get download --print-uris`: 'URI' FILE SIZE SHA256:HEX. PROTOCOL when it is none.
 */
KELPIE_MUST_USE bool klp_fetch_line_parse(const char *line, struct klp_package *out,
                                          struct kelpie_error **err);

#endif
