/* SPDX-License-Identifier: Apache-2.0 */
/* Planted mistakes (tests/mutants, tools/mutants.py): each is a kelpie-dst of its own beside this
 * one, run as a process of its own, because a mistake may end it any way. A simulator that does not
 * find them proves nothing. */
#include "mutants.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sim.h"

#define MUTANTS_MAX 512
#define BATCH 64         /* seeds of one process */
#define SEEDS_MOST 5000  /* the hardest is to be found by so many */
#define BATCH_SECONDS 60 /* a mutant that runs for ever is found by that */
#define SURVIVED 24
#define WRONG_USE 2
#define NOT_STARTED 127
#define SELF "/proc/self/exe"

static bool mutant_path(const char *name, char *out, size_t capacity)
{
    char self[1024];
    ssize_t size = readlink(SELF, self, sizeof(self) - 1);
    if (size < 0)
        return false;
    self[size] = 0;
    char *end = strrchr(self, '/');
    if (end == NULL || strchr(name, '/') != NULL)
        return false;
    *end = 0;
    return snprintf(out, capacity, "%s/mutants/%s", self, name) < (int)capacity;
}

/* Never returns. */
static void child_run(const char *path, uint64_t seed, unsigned count)
{
    char seed_text[32], count_text[16];
    snprintf(seed_text, sizeof(seed_text), "%" PRIu64, seed);
    snprintf(count_text, sizeof(count_text), "%u", count);
    setenv("DST_SEED", seed_text, 1);
    alarm(BATCH_SECONDS);
    if (freopen("/dev/null", "w", stdout) != NULL && freopen("/dev/null", "w", stderr) != NULL)
        execl(path, path, "--seeds", count_text, "--first", (char *)NULL);
    _exit(NOT_STARTED);
}

/* Of the child: 127 = it could not be started, WRONG_USE = it ran no seed. Neither finds anything.
 */
static bool has_run(int status)
{
    return !WIFEXITED(status) ||
           (WEXITSTATUS(status) != NOT_STARTED && WEXITSTATUS(status) != WRONG_USE);
}

/* True = one of these seeds fails. */
static bool batch_fails(const char *path, uint64_t seed, unsigned count)
{
    int status = 0;
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0)
        child_run(path, seed, count);
    while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    if (pid < 0 || !has_run(status)) {
        fprintf(stderr, "kelpie-dst: %s runs no seed\n", path);
        exit(WRONG_USE);
    }
    return !WIFEXITED(status) || WEXITSTATUS(status) != 0;
}

/* Of a batch that fails, the first seed that does: by halves. */
static unsigned first_failing(const char *path, uint64_t seed, unsigned count)
{
    unsigned good = 0;
    while (count - good > 1) {
        unsigned half = (count - good) / 2;
        if (batch_fails(path, seed + good, half))
            count = good + half;
        else
            good += half;
    }
    return good + 1;
}

/* A seed that fails without the mistake, too, finds nothing: it is passed over. */
static bool mutant_run(const char *name, const char *path, uint64_t seed, uint64_t most)
{
    for (uint64_t at = 0; at < most;) {
        unsigned count = most - at < BATCH ? (unsigned)(most - at) : BATCH;
        if (!batch_fails(path, seed + at, count)) {
            at += count;
            continue;
        }
        at += first_failing(path, seed + at, count);
        if (batch_fails(SELF, seed + at - 1, 1))
            continue;
        printf("%s killed seeds=%" PRIu64 "\n", name, at);
        fflush(stdout);
        return true;
    }
    printf("%s survived\n", name);
    fflush(stdout);
    return false;
}

int sim_mutant_run(const char *name, uint64_t seed, uint64_t most)
{
    char path[1200];
    if (!mutant_path(name, path, sizeof(path)) || access(path, X_OK) < 0) {
        fprintf(stderr, "kelpie-dst: there is no mutant '%s': make mutants builds them\n", name);
        return WRONG_USE;
    }
    return mutant_run(name, path, seed, most != 0 ? most : SEEDS_MOST) ? 0 : SURVIVED;
}

static int name_order(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static size_t names_list(char **names)
{
    char path[1200];
    size_t count = 0;
    DIR *list = mutant_path("", path, sizeof(path)) ? opendir(path) : NULL;
    for (struct dirent *entry; list != NULL && (entry = readdir(list)) != NULL;)
        if (entry->d_name[0] != '.' && count < MUTANTS_MAX)
            names[count++] = strdup(entry->d_name);
    if (list != NULL)
        closedir(list);
    qsort(names, count, sizeof(names[0]), name_order);
    return count;
}

int sim_mutants_run(uint64_t seed, uint64_t most)
{
    static char *names[MUTANTS_MAX];
    size_t count = names_list(names);
    int status = 0;
    if (count == 0) {
        fprintf(stderr, "kelpie-dst: no mutants are built: make mutants builds them\n");
        return WRONG_USE;
    }
    for (size_t i = 0; i < count; i++) {
        int ended = sim_mutant_run(names[i], seed, most);
        status = ended != 0 ? ended : status;
        free(names[i]);
    }
    return status;
}
