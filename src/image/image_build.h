/* SPDX-License-Identifier: Apache-2.0 */
/* `kelpie image build`: Debian packages into a bootable image, no root needed, reproducible: the
 * same packages, guest agent and options give the same bytes. Used by the command line only. May
 * block for minutes (downloads). */
#ifndef KLP_IMAGE_IMAGE_BUILD_H
#define KLP_IMAGE_IMAGE_BUILD_H

#include "env/env.h"
#include "format/image.h"

struct klp_image_build {
    const char *name;   /* image name: "base", "python" or another */
    const char *recipe; /* "base" (kernel + busybox) or "python" (the same + Python 3); NULL = by
                           name, else base */
    enum klp_arch arch;
    const char *guest_path;                   /* the static kelpie-guest of that architecture */
    const char *cache_dir;                    /* downloaded packages are kept here */
    void (*say)(void *arg, const char *line); /* progress for people; may be NULL */
    void *say_arg;
};

/* What came out: files without a name in `directory` semantics are the caller's to read and close.
 */
struct klp_image_parts {
    struct klp_image image; /* digests and sizes filled in */
    int kernel_fd;    /* uncompressed vmlinux (PVH) on x86_64; Image on aarch64; at offset 0 */
    int initramfs_fd; /* newc cpio, not compressed */
};

/* UNSUPPORTED: apt-get is missing, or no such architecture; UNREACHABLE: packages cannot be had,
 * names them. */
KELPIE_MUST_USE kelpie_outcome klp_image_build(const struct kelpie_op *op,
                                               const struct klp_image_build *build,
                                               struct klp_image_parts *out,
                                               struct kelpie_error **err);

#endif
