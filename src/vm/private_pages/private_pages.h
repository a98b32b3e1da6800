/* SPDX-License-Identifier: Apache-2.0 */
/* The private pages of a process's copy-on-write mapping: what a guest has written since it was
 * cloned. Exact on anonymous-over-file mappings: present and not of the file, or swapped (qemu-lab
 * 6). The target must stand still, except where it says otherwise. */
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
/* Room for a copy, with memory where pages are private now: most of a copy's time is the kernel's,
 * who finds and zeroes pages for it, and that needs no guest that stands still. */
struct klp_page_room {
    char *image; /* of `memory`, writable; NULL = no room */
    uint64_t size;
    struct klp_handle memory;
};
/* The target may run. Returns early, with what it has, when the op ends. FAIL: no room. */
KELPIE_MUST_USE kelpie_outcome klp_page_room_make(const struct kelpie_op *op,
                                                  const struct klp_mapping *mapping,
                                                  struct klp_page_room *out,
                                                  struct kelpie_error **err);
void klp_page_room_drop(struct klp_env *env, struct klp_page_room *room);
/* Copies every private page, and nothing else, into a sparse, sealed memory object at the same
 * offsets: a new one, or the room (NULL = none), which is used up whatever happens. A room with
 * pages that are not private any more is of no use: they would be zeros where the base is meant.
 * *out_pages: how many. */
KELPIE_MUST_USE kelpie_outcome klp_private_pages_copy(const struct kelpie_op *op,
                                                      const struct klp_mapping *mapping,
                                                      struct klp_page_room *room,
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
