/* SPDX-License-Identifier: Apache-2.0 */
/* Runs one of Debian's tools to its end: standard output goes to a function as it comes, the end of
 * standard error into the message of a failure. The child is dead when the call returns, and dies
 * with us. */
#ifndef KLP_IMAGE_CHILD_H
#define KLP_IMAGE_CHILD_H

#include "env/env.h"

/* The message in *err, for a wrapping message that says why itself. Borrowed; stays alive as its
 * cause. */
static inline const char *klp_error_why(struct kelpie_error *const *err)
{
    return err != NULL && *err != NULL ? kelpie_error_message(*err) : "";
}

struct klp_child {
    const char *const *argv; /* NULL-terminated; argv[0] is looked up in the system's directories */
    const char *directory;   /* NULL = "/" */
    int stdin_fd;            /* -1 = empty */
    /* Gets standard output in pieces; false (error set) stops the child. NULL = thrown away. */
    bool (*each)(void *arg, struct klp_bytes bytes, struct kelpie_error **err);
    void *arg;
};

/* UNSUPPORTED: the tool is not installed. IO: it ended with another status than 0; the message
 * carries its last lines of standard error. */
KELPIE_MUST_USE kelpie_outcome klp_child_run(const struct kelpie_op *op,
                                             const struct klp_child *child,
                                             struct kelpie_error **err);
/* The same, with all of standard output in `out`. */
KELPIE_MUST_USE kelpie_outcome klp_child_read(const struct kelpie_op *op, const char *const *argv,
                                              struct klp_buf *out, struct kelpie_error **err);

#endif
