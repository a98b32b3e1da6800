/* SPDX-License-Identifier: Apache-2.0 */
/* Raising errors. Reading them: include/kelpie/error.h. Set exactly once, as a `return` expression.
 */
#ifndef KLP_BASE_ERROR_H
#define KLP_BASE_ERROR_H

#include "kelpie/error.h"

#include "base/mem.h"

#define KLP_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))

#define KLP_OK ((kelpie_outcome){KELPIE_OK})

/* Each sets *err (when err is not NULL) to a new error and returns FAIL / UNKNOWN / false.
 * Formats: the subset of base/fmt.h. Asserts that *err is NULL before. */
KELPIE_MUST_USE kelpie_outcome klp_fail(struct kelpie_error **err, enum kelpie_code code,
                                        const char *format, ...) KLP_PRINTF(3, 4);
KELPIE_MUST_USE kelpie_outcome klp_unknown(struct kelpie_error **err, const char *format, ...)
    KLP_PRINTF(2, 3);
KELPIE_MUST_USE bool klp_refuse(struct kelpie_error **err, enum kelpie_code code,
                                const char *format, ...) KLP_PRINTF(3, 4);

/* Adds a layer that names what the lower one did not know; keeps the lower code, reasons and remedy
 * visible through the new error. No-op when err or *err is NULL. Returns `outcome` unchanged. */
KELPIE_MUST_USE kelpie_outcome klp_wrap(struct kelpie_error **err, kelpie_outcome outcome,
                                        const char *format, ...) KLP_PRINTF(3, 4);
/* The same for bool calls: always returns false. */
KELPIE_MUST_USE bool klp_wrap_refusal(struct kelpie_error **err, const char *format, ...)
    KLP_PRINTF(2, 3);

/* Decorate the error in *err; no-ops when err or *err is NULL. */
void klp_error_reason_add(struct kelpie_error **err, const char *format, ...) KLP_PRINTF(2, 3);
void klp_error_remedy_set(struct kelpie_error **err, const char *format, ...) KLP_PRINTF(2, 3);

/* Code of *err; NONE when there is none. For callers that act on two or three expected codes. */
enum kelpie_code klp_error_code(struct kelpie_error *const *err);
/* Frees *err and sets it to NULL: the failure was expected and handled. */
void klp_error_clear(struct kelpie_error **err);
/* Moves *from into *err if *err is NULL, frees it otherwise. */
void klp_error_move(struct kelpie_error **err, struct kelpie_error **from);
/* Rebuilds an error received from another process (problem+json, keeper frame). */
struct kelpie_error *klp_error_create(enum kelpie_code code, const char *message);

/* Pass a lower call's trouble on. */
#define KLP_TRY(call)                                                                              \
    do {                                                                                           \
        kelpie_outcome klp_try_outcome = (call);                                                   \
        if (!kelpie_is_ok(klp_try_outcome))                                                        \
            return klp_try_outcome;                                                                \
    } while (0)
#define KLP_REQUIRE(call)                                                                          \
    do {                                                                                           \
        if (!(call))                                                                               \
            return (kelpie_outcome){KELPIE_FAIL};                                                  \
    } while (0)
#define KLP_CHECK(call)                                                                            \
    do {                                                                                           \
        if (!(call))                                                                               \
            return false;                                                                          \
    } while (0)

/* The outcome does not matter here, and the reader is to know that it was seen. */
#define KLP_IGNORE(call)                                                                           \
    do {                                                                                           \
        __typeof__(call) klp_ignored = (call);                                                     \
        (void)klp_ignored;                                                                         \
    } while (0)

/* A bug in Kelpie, never bad input: on in release. */
#define KLP_ASSERT(condition)                                                                      \
    do {                                                                                           \
        if (!(condition))                                                                          \
            klp_bug(__FILE__, __LINE__, #condition);                                               \
    } while (0)
/* Defined by the env that is linked in: reports and stops the process (the run, in simulation). */
__attribute__((noreturn)) void klp_bug(const char *file, int line, const char *what);

KLP_AUTO_DEFINE(kelpie_error, struct kelpie_error *, kelpie_error_free)

#endif
