/* SPDX-License-Identifier: Apache-2.0 */
/* Parsing of the @ words, and the contents of keyed pages. Running a word is each guest's own. */
#include "format/vocabulary.h"

#include <string.h>

#include "base/error.h"
#include "base/fmt.h"
#include "base/limits.h"

#define WORD_ARGS_MAX KLP_ARGV_MAX
#define WORD_SLEEP_MAX_S 86400u
#define WORD_SIGNAL_MAX 64u
#define WORD_FLOOD_MAX (1024ull * 1024 * KLP_MIB)

struct word_form {
    const char *name;
    enum klp_word_kind kind;
    size_t args_min, args_max;
    const char *form; /* what a mistake is answered with */
};

static const struct word_form word_forms[] = {
    {"@echo", KLP_WORD_ECHO, 0, WORD_ARGS_MAX, "@echo WORDS"},
    {"@cat", KLP_WORD_CAT, 0, 1, "@cat [PATH]"},
    {"@exit", KLP_WORD_EXIT, 1, 1, "@exit N with N from 0 to 255"},
    {"@sleep", KLP_WORD_SLEEP, 1, 1, "@sleep SECONDS, at most 86400 with at most three decimals"},
    {"@raise", KLP_WORD_RAISE, 1, 1, "@raise SIGNAL with a number from 1 to 64"},
    {"@fill", KLP_WORD_FILL, 2, 2, "@fill MIB SEED with MIB from 1 to 16384"},
    {"@check", KLP_WORD_CHECK, 0, 0, "@check"},
    {"@count", KLP_WORD_COUNT, 0, 0, "@count"},
    {"@env", KLP_WORD_ENV, 0, 0, "@env"},
    {"@pwd", KLP_WORD_PWD, 0, 0, "@pwd"},
    {"@flood", KLP_WORD_FLOOD, 1, 2, "@flood BYTES [err]"},
    {"@crash", KLP_WORD_CRASH, 0, 0, "@crash"},
};

static const struct word_form *word_find(const char *name)
{
    for (size_t i = 0; i < KLP_COUNT(word_forms); i++) {
        if (strcmp(word_forms[i].name, name) == 0)
            return &word_forms[i];
    }
    return NULL;
}

static bool word_number(const char *text, uint64_t min, uint64_t max, uint64_t *out)
{
    KLP_ASSERT(text != NULL); /* its form says how many arguments a word has */
    return klp_parse_u64(text, strlen(text), out) && *out >= min && *out <= max;
}

/* "1", "0.25", ".5" and "2." to milliseconds. */
static bool word_seconds(const char *text, uint64_t *out_ms)
{
    KLP_ASSERT(text != NULL);
    size_t whole_size = 0, size = strlen(text);
    while (whole_size < size && text[whole_size] != '.')
        whole_size++;
    uint64_t whole = 0, fraction = 0;
    if (whole_size > 0 && !klp_parse_u64(text, whole_size, &whole))
        return false;
    size_t decimals = whole_size < size ? size - whole_size - 1 : 0;
    if (decimals > 3 || (whole_size == 0 && decimals == 0))
        return false;
    if (decimals > 0 && !klp_parse_u64(text + whole_size + 1, decimals, &fraction))
        return false;
    for (size_t i = decimals; i < 3; i++)
        fraction *= 10;
    if (whole > WORD_SLEEP_MAX_S)
        return false;
    *out_ms = whole * 1000 + fraction;
    return true;
}

static bool word_arguments(const char *const *args, size_t count, struct klp_word *word)
{
    switch (word->kind) {
    case KLP_WORD_CAT:
        word->path = count > 0 ? args[0] : NULL;
        return count == 0 || args[0][0] != '\0';
    case KLP_WORD_EXIT:
        return word_number(args[0], 0, 255, &word->number);
    case KLP_WORD_SLEEP:
        return word_seconds(args[0], &word->number);
    case KLP_WORD_RAISE:
        return word_number(args[0], 1, WORD_SIGNAL_MAX, &word->number);
    case KLP_WORD_FILL:
        return word_number(args[0], 1, KLP_MEMORY_MIB_MAX, &word->number) &&
               word_number(args[1], 0, UINT64_MAX, &word->seed);
    case KLP_WORD_FLOOD:
        word->to_stderr = count > 1;
        return word_number(args[0], 0, WORD_FLOOD_MAX, &word->number) &&
               (count == 1 || strcmp(args[1], "err") == 0);
    case KLP_WORD_ECHO:
    case KLP_WORD_CHECK:
    case KLP_WORD_COUNT:
    case KLP_WORD_ENV:
    case KLP_WORD_PWD:
    case KLP_WORD_CRASH:
        return true;
    }
    return false;
}

bool klp_word_parse(const char *const *argv, struct klp_word *out, struct kelpie_error **err)
{
    KLP_ASSERT(argv[0] != NULL && argv[0][0] == '@');
    const struct word_form *form = word_find(argv[0]);
    if (form == NULL)
        return klp_refuse(err, KELPIE_E_NO_COMMAND, "cannot run '%.*s': no such built-in word", 64,
                          argv[0]);
    size_t count = 0;
    while (argv[1 + count] != NULL && count <= WORD_ARGS_MAX)
        count++;
    struct klp_word word = {.kind = form->kind};
    if (count < form->args_min || count > form->args_max || !word_arguments(argv + 1, count, &word))
        return klp_refuse(err, KELPIE_E_INVALID, "cannot run '%s': its form is %s", form->name,
                          form->form);
    *out = word;
    return true;
}

/* The finaliser of splitmix64: every input bit reaches every output bit. */
static inline uint64_t page_mix(uint64_t value)
{
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
    return value ^ (value >> 31);
}

#define PAGE_STEP 0x9e3779b97f4a7c15u

static inline uint64_t page_start(uint64_t seed, uint64_t page, uint64_t round)
{
    return page_mix(page_mix(page_mix(seed + PAGE_STEP) ^ (page + PAGE_STEP)) ^
                    (round + PAGE_STEP));
}

/* Bytes, not a word: little-endian on every host, so that any of them can check any guest. */
static inline void page_word(uint64_t state, uint8_t out[8])
{
    uint64_t word = page_mix(state);
    for (unsigned i = 0; i < 8; i++)
        out[i] = (uint8_t)(word >> (8 * i));
}

void klp_keyed_page(uint64_t seed, uint64_t page, uint64_t round, void *out, size_t size)
{
    KLP_ASSERT(size % 8 == 0);
    uint64_t state = page_start(seed, page, round);
    for (size_t at = 0; at < size; at += 8) {
        page_word(state, (uint8_t *)out + at);
        state += PAGE_STEP;
    }
}

bool klp_keyed_page_check(uint64_t seed, uint64_t page, uint64_t round, const void *bytes,
                          size_t size)
{
    KLP_ASSERT(size % 8 == 0);
    uint64_t state = page_start(seed, page, round);
    for (size_t at = 0; at < size; at += 8) {
        uint8_t expected[8];
        page_word(state, expected);
        if (memcmp(expected, (const uint8_t *)bytes + at, 8) != 0)
            return false;
        state += PAGE_STEP;
    }
    return true;
}
