/* SPDX-License-Identifier: Apache-2.0 */
/* Included before each file that clang-tidy reads (tools/tidy.py): what the analyzer cannot know of
 * functions in other files: a refusal answers false, a failure FAIL, never the good outcome, and a
 * wrapped outcome is what it was. Not before the two files that define these. */
#ifndef KLP_TOOLS_ANALYZER_H
#define KLP_TOOLS_ANALYZER_H

#include "base/error.h"
#include "env/posix/posix.h"

#define klp_refuse(...) ((void)!klp_refuse(__VA_ARGS__), false)
#define klp_wrap_refusal(...) ((void)!klp_wrap_refusal(__VA_ARGS__), false)
#define klp_fail(...)                                                                              \
    (KLP_IGNORE_FOR_ANALYZER(klp_fail(__VA_ARGS__)), (kelpie_outcome){KELPIE_FAIL})
#define klp_unknown(...)                                                                           \
    (KLP_IGNORE_FOR_ANALYZER(klp_unknown(__VA_ARGS__)), (kelpie_outcome){KELPIE_UNKNOWN})
#define klp_wrap(err, outcome, ...)                                                                \
    ({                                                                                             \
        kelpie_outcome klp_wrapped = (outcome);                                                    \
        KLP_IGNORE_FOR_ANALYZER(klp_wrap(err, klp_wrapped, __VA_ARGS__));                          \
        klp_wrapped;                                                                               \
    })
#define klp_posix_refuse(...) ((void)!klp_posix_refuse(__VA_ARGS__), false)
#define klp_posix_fail(...)                                                                        \
    (KLP_IGNORE_FOR_ANALYZER(klp_posix_fail(__VA_ARGS__)), (kelpie_outcome){KELPIE_FAIL})
#define KLP_IGNORE_FOR_ANALYZER(call) ((void)kelpie_is_ok(call))

#endif
