/* SPDX-License-Identifier: Apache-2.0 */
/* An image: kernel + initramfs of one architecture, with a name and a version. A small JSON object
 * in the store; its SHA-256 is the image's digest; the ref `images/NAME/ARCH` names it. */
#ifndef KLP_FORMAT_IMAGE_H
#define KLP_FORMAT_IMAGE_H

#include "format/manifest.h"

#define KLP_IMAGE_PART_MAX (1024ull * KLP_MIB) /* bytes of a kernel or an initramfs */

struct klp_image {
    char name[KLP_NAME_SIZE];
    char version[24]; /* MAJOR.MINOR.PATCH */
    enum klp_arch arch;
    struct klp_object_ref kernel, initramfs;
    char cmdline[256];       /* added to the backend's own */
    struct klp_digest guest; /* SHA-256 of the kelpie-guest inside */
};
/* What it may hold is checked by decode: whoever makes an image decodes it once. */
void klp_image_encode(const struct klp_image *image, struct klp_buf *out);
/* CORRUPT names the field; UNSUPPORTED for a newer format version. Fields of newer releases are
 * passed over. */
KELPIE_MUST_USE bool klp_image_decode(struct klp_bytes text, struct klp_image *out,
                                      struct kelpie_error **err);
/* "MAJOR.MINOR.PATCH", each <= 65535, digits only, no leading zeros. INVALID. */
KELPIE_MUST_USE bool klp_version_parse(const char *text, uint32_t out[3],
                                       struct kelpie_error **err);

#endif
