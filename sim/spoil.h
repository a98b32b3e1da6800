/* SPDX-License-Identifier: Apache-2.0 */
/* Guest agents that misbehave: spoil.c. */
#ifndef SIM_SPOIL_H
#define SIM_SPOIL_H

#include "base/buf.h"

/* How long it hears and says nothing from now on; 0 = it does. */
uint64_t sim_guest_deaf_ns(uint32_t node);
/* What it is about to say, whole frames: perhaps spoilt. */
void sim_guest_says(struct klp_buf *said, uint32_t node);

#endif
