/* SPDX-License-Identifier: Apache-2.0 */
/* Once at a program's start, before any thread: lets the foreign libraries take memory from
 * klp_mem_*. */
#ifndef KLP_BASE_EXT_EXT_H
#define KLP_BASE_EXT_EXT_H

#include <stdint.h>

/* JSON's keys hash with a fixed seed: simulator, tests, and programs that parse their own side's
 * text. */
void klp_ext_init(void);
/* Instead of it, with a random seed, where strangers send JSON: nobody can prepare keys that
 * collide. The seed changes no output: keys keep their order of insertion. */
void klp_ext_init_seeded(uint32_t seed);

#endif
