/* SPDX-License-Identifier: Apache-2.0 */
/* What the contract suites share: outcomes as assertions, and tasks that start together. They know
 * env's seam only, so a suite runs over any implementation in any env. */
#ifndef TESTS_CONTRACT_CONTRACT_H
#define TESTS_CONTRACT_CONTRACT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "env/env.h"

#define CONTRACT_TIMEOUT_MS 60000
#define CONTRACT_TASKS_MAX 8

/* Takes the place of `struct kelpie_error **err`: one for each call of a test. */
struct contract_answer {
    kelpie_outcome outcome;
    struct kelpie_error *err;
};

static inline void contract_ok_at(struct contract_answer answer, const char *file, int line)
{
    if (kelpie_is_ok(answer.outcome))
        return;
    print_error("%s:%d: outcome %d: %s\n", file, line, (int)answer.outcome.kind,
                answer.err != NULL ? kelpie_error_message(answer.err) : "(no error)");
    for (size_t i = 0; i < kelpie_error_reason_count(answer.err); i++)
        print_error("    %s\n", kelpie_error_reason(answer.err, i));
    for (const struct kelpie_error *at = kelpie_error_cause(answer.err); at != NULL;
         at = kelpie_error_cause(at))
        print_error("  because: %s\n", kelpie_error_message(at));
    kelpie_error_free(answer.err);
    fail();
}

/* `piece`: must be in the message or in that of a cause. */
static inline void contract_fails_at(struct contract_answer answer, enum kelpie_outcome_kind kind,
                                     enum kelpie_code code, const char *piece, const char *file,
                                     int line)
{
    bool found = false;
    const struct kelpie_error *at = answer.err;
    for (; at != NULL && !found; at = kelpie_error_cause(at))
        found = strstr(kelpie_error_message(at), piece) != NULL;
    if (answer.outcome.kind == kind && kelpie_error_code(answer.err) == code && found) {
        kelpie_error_free(answer.err);
        return;
    }
    print_error("%s:%d: outcome %d, want %d; code %s, want %s; message: %s\n", file, line,
                (int)answer.outcome.kind, (int)kind,
                answer.err != NULL ? kelpie_code_name(kelpie_error_code(answer.err)) : "none",
                kelpie_code_name(code),
                answer.err != NULL ? kelpie_error_message(answer.err) : "(no error)");
    kelpie_error_free(answer.err);
    fail();
}

/* The call names `&err_` as its last argument: CONTRACT_OK(klp_store_put(..., &err_)). */
#define CONTRACT_CALL(call)                                                                        \
    __extension__({                                                                                \
        struct kelpie_error *err_ = NULL;                                                          \
        kelpie_outcome outcome_ = (call);                                                          \
        (struct contract_answer){outcome_, err_};                                                  \
    })
#define CONTRACT_OK(call) contract_ok_at(CONTRACT_CALL(call), __FILE__, __LINE__)
#define CONTRACT_FAIL(code, piece, call)                                                           \
    contract_fails_at(CONTRACT_CALL(call), KELPIE_FAIL, KELPIE_E_##code, piece, __FILE__, __LINE__)
#define CONTRACT_UNKNOWN(code, piece, call)                                                        \
    contract_fails_at(CONTRACT_CALL(call), KELPIE_UNKNOWN, KELPIE_E_##code, piece, __FILE__,       \
                      __LINE__)
/* The same for calls that return bool. */
#define CONTRACT_BOOL(call) ((kelpie_outcome){(call) ? KELPIE_OK : KELPIE_FAIL})
#define CONTRACT_TRUE(call) CONTRACT_OK(CONTRACT_BOOL(call))
#define CONTRACT_FALSE(code, piece, call) CONTRACT_FAIL(code, piece, CONTRACT_BOOL(call))

/* Runs `run` on `count` tasks at once, with arg, arg + arg_size, ...; returns when all have ended.
 */
static inline void contract_together(struct klp_env *env, size_t count, void (*run)(void *),
                                     void *args, size_t arg_size)
{
    struct klp_task *tasks[CONTRACT_TASKS_MAX];
    assert_true(count <= CONTRACT_TASKS_MAX);
    for (size_t i = 0; i < count; i++)
        CONTRACT_TRUE(
            klp_task_spawn(env, "contract", run, (char *)args + i * arg_size, &tasks[i], &err_));
    for (size_t i = 0; i < count; i++)
        klp_task_join(tasks[i]);
}

/* Skips with its reason. */
#define CONTRACT_SKIP(why)                                                                         \
    do {                                                                                           \
        print_message("skipped: %s: %s\n", __func__, why);                                         \
        skip();                                                                                    \
    } while (0)

#endif
