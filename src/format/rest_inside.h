/* SPDX-License-Identifier: Apache-2.0 */
/* Between the files of the REST codec only. */
#ifndef KLP_FORMAT_REST_INSIDE_H
#define KLP_FORMAT_REST_INSIDE_H

#include "format/rest.h"
#include "format/wire.h"

/* A problem object within a document; NULL when it is none. */
struct kelpie_error *klp_rest_problem_read(const struct klp_json *problem);

/* Absent is NONE; INVALID when it is no kind. */
KELPIE_MUST_USE bool klp_rest_get_kind(const struct klp_json *json, enum klp_snapshot_kind *out,
                                       struct kelpie_error **err);
/* A request's body: an object with no other keys than these. INVALID. */
KELPIE_MUST_USE bool klp_rest_only(const struct klp_json *json, const char *const keys[],
                                   struct kelpie_error **err);
/* argv, env ("KEY=VALUE") and workdir; owned by the caller, also after a failure. */
KELPIE_MUST_USE bool klp_rest_get_command(const struct klp_json *json, char ***argv, char ***env,
                                          char **workdir, struct kelpie_error **err);
/* Microseconds to milliseconds, rounded up. */
static inline uint64_t klp_rest_ms(uint64_t us)
{
    return us / 1000 + (us % 1000 != 0);
}

#endif
