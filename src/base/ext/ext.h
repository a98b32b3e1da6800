/* SPDX-License-Identifier: Apache-2.0 */
/* Once at a program's start, before any thread: lets the foreign libraries take memory from klp_mem_*. */
#ifndef KLP_BASE_EXT_EXT_H
#define KLP_BASE_EXT_EXT_H

void klp_ext_init(void);

#endif
