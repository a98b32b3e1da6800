/* SPDX-License-Identifier: Apache-2.0 */
/* Memory of a simulated guest: ram.c. */
#ifndef SIM_RAM_H
#define SIM_RAM_H

#include "env/memory.h"

struct sim_memory;
struct sim_ram {
    uint8_t *bytes; /* one mapping, so that the guest's engine can point into it; NULL = none */
    uint64_t size;
    int fd;
};
void sim_ram_make(struct sim_ram *ram, uint64_t size); /* all zero */
void sim_ram_drop(struct sim_ram *ram);
/* Writes what is present in `layer`. */
void sim_ram_lay(struct sim_ram *ram, const struct sim_memory *layer);
/* Of all bytes; what is zero does not count. */
uint64_t sim_ram_digest(const struct sim_ram *ram);
/* Writes all pages that are not as in `base` (NULL = all zero) into `dirty`, and seals it. */
KELPIE_MUST_USE bool sim_ram_capture(struct klp_env *env, const struct sim_ram *ram,
                                     const struct sim_memory *base, struct klp_handle dirty,
                                     struct kelpie_error **err);

#endif
