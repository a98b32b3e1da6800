/* SPDX-License-Identifier: Apache-2.0 */
/* main() of a fuzz target where the compiler has no libFuzzer: runs the files and directories given
 * as arguments, then, with --seconds or --runs, mutations of them. The same seed over the same
 * files gives the same inputs in the same order; what made a target fall over is written to
 * ./crash-SEED-RUN. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "fuzz.h"

#define INPUT_MAX (64u * 1024u) /* bytes of a mutated input */
#define FILE_MAX (16u * 1024u * 1024u)
#define CORPUS_MAX 4096
#define EDITS_MAX 8

struct input {
    uint8_t *data;
    size_t size;
};

static struct input corpus[CORPUS_MAX];
static size_t corpus_count;
/* For the handlers of a crash. */
static struct input current;
static char crash_name[64];

/* ---- crashes */

static void current_save(void)
{
    int fd = open(crash_name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0)
        return;
    ssize_t written = write(fd, current.data, current.size);
    static const char told[] = "input written to ";
    if (written == (ssize_t)current.size && write(2, told, sizeof(told) - 1) > 0 &&
        write(2, crash_name, strlen(crash_name)) > 0)
        written = write(2, "\n", 1);
    close(fd);
}

static void crashed(int number)
{
    current_save();
    _exit(128 + number);
}

/* Defined where a sanitizer is linked in. */
__attribute__((weak)) void __sanitizer_set_death_callback(void (*callback)(void));

static void crashes_catch(void)
{
    static const int numbers[] = {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGALRM};
    struct sigaction action = {.sa_handler = crashed};
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        /* A sanitizer explains these better, and calls back when it is done. */
        if (__sanitizer_set_death_callback != NULL && numbers[i] != SIGABRT &&
            numbers[i] != SIGALRM)
            continue;
        sigaction(numbers[i], &action, NULL);
    }
    if (__sanitizer_set_death_callback != NULL)
        __sanitizer_set_death_callback(current_save);
}

/* ---- inputs */

/* In memory of exactly its size, so that a sanitizer sees a read beyond it. */
static void run(const uint8_t *data, size_t size)
{
    current.data = malloc(size == 0 ? 1 : size);
    current.size = size;
    if (current.data == NULL)
        abort();
    memcpy(current.data, data, size);
    alarm(25); /* whatever takes longer is not linear */
    LLVMFuzzerTestOneInput(current.data, size);
    alarm(0);
    free(current.data);
    current = (struct input){0};
}

static bool file_load(const char *path)
{
    FILE *file = fopen(path, "rbe");
    if (file == NULL || corpus_count == CORPUS_MAX) {
        fprintf(stderr, "cannot take '%s': %s\n", path, strerror(errno));
        if (file != NULL)
            fclose(file);
        return false;
    }
    uint8_t *data = malloc(FILE_MAX);
    size_t size = data != NULL ? fread(data, 1, FILE_MAX, file) : 0;
    fclose(file);
    uint8_t *exact = realloc(data, size == 0 ? 1 : size);
    corpus[corpus_count++] = (struct input){exact, size};
    return exact != NULL;
}

static int name_compare(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* In the order of names: the order of a directory is no order. */
static bool folder_load(const char *path, DIR *folder)
{
    char *names[CORPUS_MAX];
    size_t count = 0;
    bool good = true;
    for (struct dirent *entry; (entry = readdir(folder)) != NULL && count < CORPUS_MAX;) {
        if (entry->d_name[0] == '.')
            continue;
        size_t size = strlen(path) + strlen(entry->d_name) + 2;
        names[count] = malloc(size);
        if (names[count] != NULL)
            snprintf(names[count++], size, "%s/%s", path, entry->d_name);
    }
    qsort(names, count, sizeof(names[0]), name_compare);
    for (size_t i = 0; i < count; i++) {
        good = file_load(names[i]) && good;
        free(names[i]);
    }
    return good;
}

static bool path_load(const char *path)
{
    DIR *folder = opendir(path);
    if (folder == NULL)
        return file_load(path);
    bool good = folder_load(path, folder);
    closedir(folder);
    return good;
}

/* ---- mutation */

static uint64_t random_state;

/* splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators"). */
static uint64_t draw(uint64_t below)
{
    uint64_t value = random_state += 0x9e3779b97f4a7c15u;
    value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9u;
    value = (value ^ value >> 27) * 0x94d049bb133111ebu;
    value ^= value >> 31;
    return below == 0 ? value : value % below;
}

static void number_put(uint8_t *data, size_t size)
{
    static const uint64_t odd[] = {0,          1,           7,          8,
                                   15,         16,          17,         31,
                                   32,         63,          64,         127,
                                   128,        255,         256,        511,
                                   512,        4096,        0x7fff,     0x8000,
                                   0xffff,     0x10000,     0x7fffffff, 0x80000000,
                                   0xffffffff, 0x100000000, INT64_MAX,  1 + (uint64_t)INT64_MAX,
                                   UINT64_MAX};
    size_t width = (size_t)1 << draw(4);
    if (width > size)
        return;
    size_t at = draw(size - width + 1);
    uint64_t value = odd[draw(sizeof(odd) / sizeof(odd[0]))] - draw(3) + draw(3);
    bool is_big = draw(8) == 0;
    for (size_t i = 0; i < width; i++)
        data[at + (is_big ? width - 1 - i : i)] = (uint8_t)(value >> (8 * i));
}

/* Changes `data` of `size` bytes and room for INPUT_MAX; answers its new size. */
static size_t edit(uint8_t *data, size_t size)
{
    size_t at = draw(size + 1), length = 1 + draw(1u << draw(9));
    const struct input *other = &corpus[draw(corpus_count)];
    switch (draw(9)) {
    case 0: /* cut off */
        return at;
    case 1: /* take out */
        length = length < size - at ? length : size - at;
        memmove(data + at, data + at + length, size - at - length);
        return size - length;
    case 2: /* double a part */
        length = length < size - at ? length : size - at;
        if (size + length > INPUT_MAX)
            return size;
        memmove(data + at + length, data + at, size - at);
        return size + length;
    case 3: /* put a part of another in */
        if (other->size == 0 || size + length > INPUT_MAX)
            return size;
        length = length < other->size ? length : other->size;
        memmove(data + at + length, data + at, size - at);
        memcpy(data + at, other->data + draw(other->size - length + 1), length);
        return size + length;
    case 4: /* lay a part of another over it */
        if (other->size == 0 || at == size)
            return size;
        length = length < other->size ? length : other->size;
        length = length < size - at ? length : size - at;
        memcpy(data + at, other->data + draw(other->size - length + 1), length);
        return size;
    case 5:
    case 6:
        number_put(data, size);
        return size;
    case 7:
        if (at < size)
            data[at] = (uint8_t)draw(256);
        return size;
    default:
        if (at < size)
            data[at] ^= (uint8_t)(1u << draw(8));
        return size;
    }
}

static size_t mutate(uint8_t *data)
{
    const struct input *base = &corpus[draw(corpus_count)];
    size_t size = base->size < INPUT_MAX ? base->size : INPUT_MAX;
    memcpy(data, base->data, size);
    for (uint64_t edits = 1 + draw(EDITS_MAX); edits > 0; edits--)
        size = edit(data, size);
    return size;
}

static double seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* ---- main */

static bool number_parse(const char *text, uint64_t *out)
{
    char *end;
    errno = 0;
    *out = strtoull(text, &end, 0);
    return errno == 0 && text[0] >= '0' && text[0] <= '9' && *end == '\0';
}

static int usage(const char *name)
{
    fprintf(stderr, "usage: %s [--seconds N] [--runs N] [--seed S] FILE-OR-FOLDER...\n", name);
    return 2;
}

static uint64_t mutations_run(uint64_t seconds, uint64_t runs, uint64_t seed)
{
    static uint8_t data[INPUT_MAX];
    double end = seconds_now() + (double)seconds;
    uint64_t count = 0;
    while (runs != 0 ? count < runs : (count % 64 != 0 || seconds_now() < end)) {
        count++;
        /* Each run has a number of its own: a crash is repeated without those before it. */
        random_state = seed * 0x2545f4914f6cdd1du + count;
        size_t size = mutate(data);
        snprintf(crash_name, sizeof(crash_name), "crash-%" PRIu64 "-%" PRIu64, seed, count);
        run(data, size);
    }
    return count;
}

int main(int argc, char **argv)
{
    uint64_t seconds = 0, runs = 0, seed = 1;
    bool good = true;
    for (int i = 1; i < argc; i++) {
        uint64_t *number = strcmp(argv[i], "--seconds") == 0 ? &seconds
                           : strcmp(argv[i], "--runs") == 0  ? &runs
                           : strcmp(argv[i], "--seed") == 0  ? &seed
                                                             : NULL;
        if (number != NULL) {
            if (++i == argc || !number_parse(argv[i], number))
                return usage(argv[0]);
        } else if (argv[i][0] == '-') {
            return usage(argv[0]);
        } else {
            good = path_load(argv[i]) && good;
        }
    }
    if (!good || corpus_count == 0)
        return good ? usage(argv[0]) : 1;
    crashes_catch();
    for (size_t i = 0; i < corpus_count; i++) {
        snprintf(crash_name, sizeof(crash_name), "crash-file-%zu", i + 1);
        run(corpus[i].data, corpus[i].size);
    }
    uint64_t count = seconds != 0 || runs != 0 ? mutations_run(seconds, runs, seed) : 0;
    printf("files=%zu execs=%" PRIu64 " seed=%" PRIu64 "\n", corpus_count, count, seed);
    for (size_t i = 0; i < corpus_count; i++)
        free(corpus[i].data);
    return 0;
}
