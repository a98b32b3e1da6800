/* SPDX-License-Identifier: Apache-2.0 */
/* The start of the foreign libraries where their input is hostile. The plain start is in json.c. */
#include "base/ext/ext.h"

#include <jansson.h>

void klp_ext_init_seeded(uint32_t seed)
{
    /* jansson takes the first seed it is given, and draws one of its own for 0. */
    json_object_seed(seed != 0 ? seed : 1);
    klp_ext_init();
}
