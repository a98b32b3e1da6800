/* SPDX-License-Identifier: Apache-2.0 */
/* What the image builder asks of a 64-bit little-endian ELF file: its machine, its interpreter, the
 * libraries it names, whether it boots by PVH. Pure; every offset in the file is checked. */
#ifndef KLP_IMAGE_ELF_H
#define KLP_IMAGE_ELF_H

#include "base/buf.h"
#include "format/machine.h"

#define KLP_ELF_NEEDED_MAX 64 /* libraries one file may name */

struct klp_elf {
    struct klp_bytes bytes; /* borrowed */
    enum klp_arch arch;     /* NONE = another machine */
    uint64_t headers_at;    /* of the program headers */
    uint32_t header_count;
    const char *interpreter; /* borrowed from bytes; NULL = static */
    const char *needed[KLP_ELF_NEEDED_MAX];
    size_t needed_count;
    bool has_pvh; /* a note says where a PVH boot enters */
};

bool klp_elf_is(struct klp_bytes bytes); /* the magic alone */
/* CORRUPT: `what` is no such ELF file or is damaged. */
KELPIE_MUST_USE bool klp_elf_parse(struct klp_bytes bytes, const char *what, struct klp_elf *out,
                                   struct kelpie_error **err);

#endif
