/* SPDX-License-Identifier: Apache-2.0 */
/* The private pages of a process's copy-on-write mapping: what a guest has written since it was
 * cloned. Exact on anonymous-over-file mappings: present and not of the file, or swapped (qemu-lab
 * 6). The target must stand still. */
#ifndef KLP_VM_PRIVATE_PAGES_PRIVATE_PAGES_H
#define KLP_VM_PRIVATE_PAGES_PRIVATE_PAGES_H

#include "env/posix/posix.h"

struct klp_mapping { /* of guest memory in another process */
    int pid;
    uint64_t address; /* there */
    uint64_t size;    /* bytes */
    bool by_table;    /* read the table of pages even where the kernel could scan it for us */
};
/* The private mapping of `memory` (a descriptor of ours) in the process: found by device and inode
 * in its maps; several neighbouring pieces of it count as one. NOT_FOUND when none covers `size`
 * bytes in one stretch from offset 0. */
KELPIE_MUST_USE bool klp_mapping_find(int pid, int memory_fd, uint64_t size,
                                      struct klp_mapping *out, struct kelpie_error **err);
/* Copies every private page into a new, sparse, sealed memory object at the same offsets.
 * *out_pages: how many. */
KELPIE_MUST_USE kelpie_outcome klp_private_pages_copy(const struct kelpie_op *op,
                                                      const struct klp_mapping *mapping,
                                                      struct klp_handle *out, uint64_t *out_pages,
                                                      struct kelpie_error **err);
/* Writes every present page of a sparse memory object into the mapping: an overlay. */
KELPIE_MUST_USE kelpie_outcome klp_private_pages_lay(const struct kelpie_op *op,
                                                     const struct klp_mapping *mapping,
                                                     struct klp_handle overlay,
                                                     struct kelpie_error **err);
/* One entry of /proc/PID/pagemap: bit 63 present, 62 swapped (or under way to another place), 61 of
 * a file or shared. */
bool klp_pagemap_entry_is_private(uint64_t entry);
/* Does the kernel have ioctl PAGEMAP_SCAN (Linux 6.7)? Probed once a call, cheap. */
bool klp_pagemap_scan_works(void);

#endif
