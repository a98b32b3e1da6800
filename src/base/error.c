/* SPDX-License-Identifier: Apache-2.0 */
/* Error objects: code, one line, reasons, a remedy and the cause below. Out of memory is a static
 * object, so that reporting it cannot fail. */
#include "base/error.h"

#include <stdarg.h>
#include <string.h>

#include "base/fmt.h"
#include "base/limits.h"

struct kelpie_error {
    enum kelpie_code code;
    char *message;
    char *remedy; /* NULL = the code's own, or the cause's */
    struct kelpie_error *cause;
    size_t reason_count;
    char *reasons[KLP_ERROR_REASONS_MAX];
};

struct code_facts {
    const char *name, *text, *remedy;
    int http, exit_status;
};

static const struct code_facts facts[KELPIE_E_COUNT] = {
    [KELPIE_E_NONE] = {"none", "no error", "", 200, 0},
#define ERROR_FACTS(name, wire, text, remedy, http, exit_status)                                   \
    [KELPIE_E_##name] = {wire, text, remedy, http, exit_status},
    KELPIE_ERROR_MAP(ERROR_FACTS)
#undef ERROR_FACTS
};

/* Never freed: the answer when there is no memory for an answer. */
static const struct kelpie_error no_memory = {
    .code = KELPIE_E_NO_MEMORY,
    .message = (char *)(uintptr_t) "out of memory",
};

static const struct code_facts *code_facts(enum kelpie_code code)
{
    return (unsigned)code < KELPIE_E_COUNT ? &facts[code] : &facts[KELPIE_E_INTERNAL];
}

const char *kelpie_code_name(enum kelpie_code code)
{
    return code_facts(code)->name;
}

const char *kelpie_code_text(enum kelpie_code code)
{
    return code_facts(code)->text;
}

int kelpie_code_http(enum kelpie_code code)
{
    return code_facts(code)->http;
}

int kelpie_code_exit(enum kelpie_code code)
{
    return code_facts(code)->exit_status;
}

enum kelpie_code kelpie_code_from_name(const char *name)
{
    for (int code = KELPIE_E_NONE + 1; name != NULL && code < KELPIE_E_COUNT; code++)
        if (strcmp(facts[code].name, name) == 0)
            return (enum kelpie_code)code;
    return KELPIE_E_INTERNAL;
}

static bool error_is_static(const struct kelpie_error *err)
{
    return err == &no_memory;
}

/* A message is one line, whatever a guest or a peer put into its arguments. */
static void text_clean(char *text)
{
    for (; *text != 0; text++)
        if ((unsigned char)*text < 0x20 || *text == 0x7f)
            *text = '?';
}

/* A message of at most KLP_ERROR_TEXT_MAX bytes; NULL when there is no memory. */
static char *text_create(const char *format, va_list args)
{
    va_list again;
    va_copy(again, args);
    size_t size = klp_vformat(NULL, 0, format, again);
    va_end(again);
    if (size > KLP_ERROR_TEXT_MAX)
        size = KLP_ERROR_TEXT_MAX;
    char *text = klp_mem_try(size + 1);
    if (text == NULL)
        return NULL;
    klp_vformat(text, size + 1, format, args);
    text_clean(text);
    return text;
}

/* NULL when there is no memory. */
static struct kelpie_error *error_create(enum kelpie_code code, const char *format, va_list args)
{
    struct kelpie_error *created = klp_mem_try(sizeof(*created));
    char *message = created != NULL ? text_create(format, args) : NULL;
    if (message == NULL) {
        klp_mem_free(created);
        return NULL;
    }
    created->code = code;
    created->message = message;
    return created;
}

static void error_set(struct kelpie_error **err, enum kelpie_code code, const char *format,
                      va_list args)
{
    if (err == NULL)
        return;
    KLP_ASSERT(*err == NULL);
    struct kelpie_error *created = error_create(code, format, args);
    *err = created != NULL ? created : (struct kelpie_error *)(uintptr_t)&no_memory;
}

kelpie_outcome klp_fail(struct kelpie_error **err, enum kelpie_code code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    error_set(err, code, format, args);
    va_end(args);
    return (kelpie_outcome){KELPIE_FAIL};
}

kelpie_outcome klp_unknown(struct kelpie_error **err, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    error_set(err, KELPIE_E_OUTCOME_UNKNOWN, format, args);
    va_end(args);
    return (kelpie_outcome){KELPIE_UNKNOWN};
}

bool klp_refuse(struct kelpie_error **err, enum kelpie_code code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    error_set(err, code, format, args);
    va_end(args);
    return false;
}

/* Without memory for the layer the lower error stays alone: its code is what callers act on. */
static void error_wrap(struct kelpie_error **err, const char *format, va_list args)
{
    if (err == NULL || *err == NULL || error_is_static(*err))
        return;
    struct kelpie_error *outer = error_create((*err)->code, format, args);
    if (outer == NULL)
        return;
    outer->cause = *err;
    *err = outer;
}

kelpie_outcome klp_wrap(struct kelpie_error **err, kelpie_outcome outcome, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    if (!kelpie_is_ok(outcome))
        error_wrap(err, format, args);
    va_end(args);
    return outcome;
}

bool klp_wrap_refusal(struct kelpie_error **err, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    error_wrap(err, format, args);
    va_end(args);
    return false;
}

/* The outermost error of the chain that has reasons of its own. */
static const struct kelpie_error *error_with_reasons(const struct kelpie_error *err)
{
    while (err != NULL && err->reason_count == 0)
        err = err->cause;
    return err;
}

/* Goes where the chain's reasons are already: reasons of an outer error would hide them. */
void klp_error_reason_add(struct kelpie_error **err, const char *format, ...)
{
    if (err == NULL || *err == NULL || error_is_static(*err))
        return;
    struct kelpie_error *holder = (struct kelpie_error *)(uintptr_t)error_with_reasons(*err);
    if (holder == NULL)
        holder = *err;
    if (holder->reason_count == KLP_ERROR_REASONS_MAX)
        return;
    va_list args;
    va_start(args, format);
    char *text = text_create(format, args);
    va_end(args);
    if (text != NULL)
        holder->reasons[holder->reason_count++] = text;
}

void klp_error_remedy_set(struct kelpie_error **err, const char *format, ...)
{
    if (err == NULL || *err == NULL || error_is_static(*err))
        return;
    va_list args;
    va_start(args, format);
    char *text = text_create(format, args); /* before the old one goes: it may be an argument */
    va_end(args);
    if (text == NULL)
        return;
    klp_mem_free((*err)->remedy);
    (*err)->remedy = text;
}

enum kelpie_code klp_error_code(struct kelpie_error *const *err)
{
    return err != NULL && *err != NULL ? (*err)->code : KELPIE_E_NONE;
}

void klp_error_clear(struct kelpie_error **err)
{
    if (err == NULL)
        return;
    kelpie_error_free(*err);
    *err = NULL;
}

void klp_error_move(struct kelpie_error **err, struct kelpie_error **from)
{
    if (err != NULL && *err == NULL)
        *err = *from;
    else
        kelpie_error_free(*from);
    *from = NULL;
}

struct kelpie_error *klp_error_create(enum kelpie_code code, const char *message)
{
    struct kelpie_error *err = NULL;
    KLP_IGNORE(klp_refuse(&err, code, "%s", message));
    return err;
}

enum kelpie_code kelpie_error_code(const struct kelpie_error *err)
{
    return err != NULL ? err->code : KELPIE_E_NONE;
}

const char *kelpie_error_message(const struct kelpie_error *err)
{
    return err != NULL ? err->message : "";
}

const struct kelpie_error *kelpie_error_cause(const struct kelpie_error *err)
{
    return err != NULL ? err->cause : NULL;
}

size_t kelpie_error_reason_count(const struct kelpie_error *err)
{
    const struct kelpie_error *found = error_with_reasons(err);
    return found != NULL ? found->reason_count : 0;
}

const char *kelpie_error_reason(const struct kelpie_error *err, size_t index)
{
    const struct kelpie_error *found = error_with_reasons(err);
    return found != NULL && index < found->reason_count ? found->reasons[index] : NULL;
}

const char *kelpie_error_remedy(const struct kelpie_error *err)
{
    for (const struct kelpie_error *at = err; at != NULL; at = at->cause)
        if (at->remedy != NULL)
            return at->remedy;
    return err != NULL ? code_facts(err->code)->remedy : "";
}

void kelpie_error_free(struct kelpie_error *err)
{
    while (err != NULL && !error_is_static(err)) {
        struct kelpie_error *cause = err->cause;
        for (size_t i = 0; i < err->reason_count; i++)
            klp_mem_free(err->reasons[i]);
        klp_mem_free(err->remedy);
        klp_mem_free(err->message);
        klp_mem_free(err);
        err = cause;
    }
}
