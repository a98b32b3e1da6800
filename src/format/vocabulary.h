/* SPDX-License-Identifier: Apache-2.0 */
/* The small vocabulary every guest has built in (CONTRACT, "Verbs"), so that one suite tests every
 * backend: parsing, and the contents of keyed pages. What it does with them is each guest's own. */
#ifndef KLP_FORMAT_VOCABULARY_H
#define KLP_FORMAT_VOCABULARY_H

#include "base/buf.h"

enum klp_word_kind {
    KLP_WORD_ECHO,  /* @echo WORDS: words joined by one space, newline; status 0 */
    KLP_WORD_CAT,   /* @cat PATH: the file; without PATH: standard input back out */
    KLP_WORD_EXIT,  /* @exit N: 0..255 */
    KLP_WORD_SLEEP, /* @sleep SECONDS: decimal, up to three decimals */
    KLP_WORD_RAISE, /* @raise SIGNAL: number; ends by that signal */
    KLP_WORD_FILL,  /* @fill MIB SEED: writes keyed pages into memory that stays; prints pages=N */
    KLP_WORD_CHECK, /* @check: prints pages=N bad=M, status 1 when any is bad; pages=0 without a
                       fill */
    KLP_WORD_COUNT, /* @count: prints a number that grows while the workload runs */
    KLP_WORD_ENV,   /* @env: the environment, one K=V a line, sorted */
    KLP_WORD_PWD,   /* @pwd: the working directory */
    KLP_WORD_FLOOD, /* @flood BYTES [err]: that many bytes 0..250 in turn, on stdout (or stderr) */
    KLP_WORD_CRASH  /* @crash: the guest itself dies, with a line on its console first */
};

struct klp_word {
    enum klp_word_kind kind;
    uint64_t number;  /* EXIT code, SLEEP milliseconds, RAISE signal, FILL MiB, FLOOD bytes */
    uint64_t seed;    /* FILL */
    bool to_stderr;   /* FLOOD */
    const char *path; /* CAT; NULL = standard input; borrowed from argv */
};

/* argv[0] begins with '@'. INVALID names the word and its form; NO_COMMAND for an unknown word. */
KELPIE_MUST_USE bool klp_word_parse(const char *const *argv, struct klp_word *out,
                                    struct kelpie_error **err);
/* Fills `size` bytes (a multiple of 8) with what page `page` of fill `seed` at round `round` holds.
 */
void klp_keyed_page(uint64_t seed, uint64_t page, uint64_t round, void *out, size_t size);
/* Compares without a buffer. */
bool klp_keyed_page_check(uint64_t seed, uint64_t page, uint64_t round, const void *bytes,
                          size_t size);

#endif
