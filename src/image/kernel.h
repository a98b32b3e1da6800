/* SPDX-License-Identifier: Apache-2.0 */
/* The kernel as a hypervisor wants it: on x86_64 the uncompressed ELF out of an LZ4 bzImage (boots
 * by PVH, which saves the guest from unpacking it), on aarch64 the plain Image that Debian ships.
 */
#ifndef KLP_IMAGE_KERNEL_H
#define KLP_IMAGE_KERNEL_H

#include "format/machine.h"
#include "image/cpio.h"

#define KLP_KERNEL_SIZE_MAX (128u * 1024u * 1024u) /* unpacked */

/* CORRUPT: not a kernel of `arch`, truncated, or larger unpacked than it says; UNSUPPORTED: packed
 * by other means than LZ4, or without a PVH entry. */
KELPIE_MUST_USE bool klp_kernel_unpack(struct klp_bytes vmlinuz, enum klp_arch arch,
                                       struct klp_sink sink, struct kelpie_error **err);

#endif
