/* SPDX-License-Identifier: Apache-2.0 */
/* Outcomes and error objects: how every fallible call of libkelpie answers.
 *
 * A call that only computes returns bool; a call that may block on a process, a peer, a guest or a
 * service returns kelpie_outcome, because such a call can also end UNKNOWN: it may have happened.
 * UNKNOWN is never a failure: read the thing back before the next step. Both kinds take
 * `struct kelpie_error **err` last: untouched on success, set exactly once otherwise; NULL is
 * allowed. */
#ifndef KELPIE_ERROR_H
#define KELPIE_ERROR_H

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/* X(NAME, name on the wire, text, default remedy or "", HTTP status, exit status of `kelpie`) */
#define KELPIE_ERROR_MAP(X)                                                                        \
    X(INVALID, "invalid", "invalid argument or input", "kelpie --help", 400, 2)                    \
    X(NOT_FOUND, "not_found", "no such object", "kelpie ps -a", 404, 10)                           \
    X(STATE, "wrong_state", "not allowed in this state", "", 409, 11)                              \
    X(EXISTS, "name_taken", "the name is taken", "", 409, 11)                                      \
    X(CONFLICT, "conflict", "changed by someone else", "", 409, 11)                                \
    X(BUSY, "busy", "another operation is under way", "kelpie ops", 409, 11)                       \
    X(INCOMPATIBLE, "incompatible", "cannot run there", "", 422, 12)                               \
    X(UNSUPPORTED, "unsupported", "not supported here", "kelpie doctor", 422, 12)                  \
    X(DENIED, "denied", "not allowed", "", 403, 13)                                                \
    X(UNREACHABLE, "unreachable", "cannot be reached", "kelpie doctor", 503, 14)                   \
    X(LIMIT, "limit", "over a limit", "", 429, 15)                                                 \
    X(NO_SPACE, "no_space", "no space left", "df -h", 507, 15)                                     \
    X(NO_MEMORY, "no_memory", "out of memory", "", 507, 15)                                        \
    X(CORRUPT, "corrupt", "the bytes are damaged", "", 422, 16)                                    \
    X(OUTCOME_UNKNOWN, "outcome_unknown", "it is not known whether it happened", "kelpie ops",     \
      504, 17)                                                                                     \
    X(PARTIAL, "partial", "some of several failed", "", 500, 18)                                   \
    X(TIMEOUT, "timeout", "took longer than allowed", "", 504, 124)                                \
    X(CANCELLED, "cancelled", "was cancelled", "", 409, 130)                                       \
    X(CRASHED, "crashed", "the virtual machine died", "", 500, 1)                                  \
    X(PROTOCOL, "protocol", "the other side broke the protocol", "", 502, 1)                       \
    X(NOT_EXECUTABLE, "not_executable", "cannot be invoked", "", 422, 126)                         \
    X(NO_COMMAND, "no_command", "command not found in the guest", "", 404, 127)                    \
    X(IO, "io", "input or output failed", "", 500, 1)                                              \
    X(INTERNAL, "internal", "internal error", "", 500, 1)

enum kelpie_code {
    KELPIE_E_NONE = 0,
#define KELPIE_ERROR_ENUM(name, wire, text, remedy, http, exit_status) KELPIE_E_##name,
    KELPIE_ERROR_MAP(KELPIE_ERROR_ENUM)
#undef KELPIE_ERROR_ENUM
        KELPIE_E_COUNT
};

enum kelpie_outcome_kind { KELPIE_OK = 0, KELPIE_FAIL = 1, KELPIE_UNKNOWN = 2 };

/* A struct, so that no `if (call())` can mistake UNKNOWN for either of the others. */
typedef struct kelpie_outcome {
    enum kelpie_outcome_kind kind;
} kelpie_outcome;

#define KELPIE_MUST_USE __attribute__((warn_unused_result))

static inline bool kelpie_is_ok(kelpie_outcome outcome)
{
    return outcome.kind == KELPIE_OK;
}

static inline bool kelpie_is_unknown(kelpie_outcome outcome)
{
    return outcome.kind == KELPIE_UNKNOWN;
}

struct kelpie_error; /* opaque; owned by the caller of the call that set it */

enum kelpie_code kelpie_error_code(const struct kelpie_error *err);
/* One line without full stop: what, which thing, why. Borrowed. */
const char *kelpie_error_message(const struct kelpie_error *err);
/* The next lower layer's error, NULL at the end of the chain. Borrowed. */
const struct kelpie_error *kelpie_error_cause(const struct kelpie_error *err);
/* All reasons of a refusal, beside the message. Borrowed; NULL when index >= count. */
size_t kelpie_error_reason_count(const struct kelpie_error *err);
const char *kelpie_error_reason(const struct kelpie_error *err, size_t index);
/* A command that mends it, or "": the error's own, else its code's. Borrowed. */
const char *kelpie_error_remedy(const struct kelpie_error *err);
/* NULL is allowed. */
void kelpie_error_free(struct kelpie_error *err);

/* Facts of a code; unknown numbers answer as INTERNAL. */
const char *kelpie_code_name(enum kelpie_code code);
const char *kelpie_code_text(enum kelpie_code code);
int kelpie_code_http(enum kelpie_code code);
int kelpie_code_exit(enum kelpie_code code);
/* KELPIE_E_INTERNAL for a name that is not in the list. */
enum kelpie_code kelpie_code_from_name(const char *name);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
