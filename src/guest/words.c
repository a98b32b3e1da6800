/* SPDX-License-Identifier: Apache-2.0 */
/* The @ words, each in a child that looks to everyone like the program of that name: pipes,
 * signals, time limits and the freezer treat it as one. */
#include "guest/guest.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/fmt.h"

#define FLOOD_VALUES 251u /* bytes 0 to 250 in turn: a prime, so blocks never line up */

static void write_all(int fd, const void *data, size_t size)
{
    const char *at = data;
    while (size > 0) {
        ssize_t sent = write(fd, at, size);
        if (sent < 0 && errno != EINTR && errno != EAGAIN)
            _exit(1);
        at += sent > 0 ? sent : 0;
        size -= sent > 0 ? (size_t)sent : 0;
    }
}

static void say(int fd, const char *format, ...) KLP_PRINTF(2, 3);
static void say(int fd, const char *format, ...)
{
    char text[KLP_PATH_MAX + 256];
    va_list args;
    va_start(args, format);
    size_t size = klp_vformat(text, sizeof(text), format, args);
    va_end(args);
    write_all(fd, text, size < sizeof(text) ? size : sizeof(text) - 1);
}

static int word_echo(char *const *args)
{
    for (size_t i = 0; args[i] != NULL; i++) {
        if (i > 0)
            write_all(1, " ", 1);
        write_all(1, args[i], strlen(args[i]));
    }
    write_all(1, "\n", 1);
    return 0;
}

static int word_cat(const char *path)
{
    static char bytes[32 * KLP_KIB];
    int fd = path != NULL ? open(path, O_RDONLY | O_CLOEXEC) : 0;
    ssize_t size = -1;
    while (fd >= 0 && (size = read(fd, bytes, sizeof(bytes))) > 0)
        write_all(1, bytes, (size_t)size);
    if (size == 0)
        return 0;
    say(2, "@cat: cannot read '%s': %s\n", path != NULL ? path : "standard input", strerror(errno));
    return 1;
}

static int word_sleep(uint64_t ms)
{
    struct timespec left = {(time_t)(ms / 1000), (long)(ms % 1000) * 1000000};
    while (nanosleep(&left, &left) < 0 && errno == EINTR) {
    }
    return 0;
}

static int word_raise(int number)
{
    struct rlimit none = {0, 0};
    setrlimit(RLIMIT_CORE, &none);
    raise(number);
    return 128 + number; /* a signal whose default is to do nothing */
}

static int text_compare(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static int word_env(char *const *env)
{
    size_t count = 0;
    while (env[count] != NULL)
        count++;
    char **sorted = klp_mem_try((count + 1) * sizeof(*sorted));
    if (sorted == NULL)
        return 1;
    memcpy(sorted, env, count * sizeof(*sorted));
    qsort(sorted, count, sizeof(*sorted), text_compare);
    for (size_t i = 0; i < count; i++) {
        write_all(1, sorted[i], strlen(sorted[i]));
        write_all(1, "\n", 1);
    }
    return 0;
}

static int word_pwd(void)
{
    char path[KLP_PATH_MAX];
    if (getcwd(path, sizeof(path)) == NULL)
        return 1;
    say(1, "%s\n", path);
    return 0;
}

static int word_flood(uint64_t size, bool to_stderr)
{
    static uint8_t bytes[FLOOD_VALUES * 64];
    for (size_t i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)(i % FLOOD_VALUES);
    while (size > 0) {
        size_t part = size < sizeof(bytes) ? (size_t)size : sizeof(bytes);
        write_all(to_stderr ? 2 : 1, bytes, part);
        size -= part;
    }
    return 0;
}

/* ---- answered by the workload process */

static bool ask(int fd, uint64_t what, const struct klp_word *word, struct guest_answer *answer)
{
    struct guest_question question = {what, word->number, word->seed};
    if (send(fd, &question, sizeof(question), MSG_NOSIGNAL) == (ssize_t)sizeof(question) &&
        recv(fd, answer, sizeof(*answer), 0) == (ssize_t)sizeof(*answer))
        return true;
    say(2, "the workload process does not answer\n");
    return false;
}

static int word_fill(const struct klp_word *word, int fd)
{
    struct guest_answer answer;
    if (!ask(fd, GUEST_ASK_FILL, word, &answer))
        return 1;
    if (answer.failed != 0) {
        say(2, "@fill: %s\n", answer.text);
        return 1;
    }
    say(1, "pages=%llu\n", (unsigned long long)answer.pages);
    return 0;
}

static int word_check(const struct klp_word *word, int fd)
{
    struct guest_answer answer;
    if (!ask(fd, GUEST_ASK_CHECK, word, &answer))
        return 2;
    say(1, "pages=%llu bad=%llu\n", (unsigned long long)answer.pages,
        (unsigned long long)answer.bad);
    return answer.bad != 0 ? 1 : 0;
}

static int word_count(const struct klp_word *word, int fd)
{
    struct guest_answer answer;
    if (!ask(fd, GUEST_ASK_COUNT, word, &answer))
        return 1;
    say(1, "%llu\n", (unsigned long long)answer.count);
    return 0;
}

static int word_status(const struct klp_word *word, char *const *argv, char *const *env, int fd)
{
    switch (word->kind) {
    case KLP_WORD_ECHO:
        return word_echo(argv + 1);
    case KLP_WORD_CAT:
        return word_cat(word->path);
    case KLP_WORD_EXIT:
        return (int)word->number;
    case KLP_WORD_SLEEP:
        return word_sleep(word->number);
    case KLP_WORD_RAISE:
        return word_raise((int)word->number);
    case KLP_WORD_FILL:
        return word_fill(word, fd);
    case KLP_WORD_CHECK:
        return word_check(word, fd);
    case KLP_WORD_COUNT:
        return word_count(word, fd);
    case KLP_WORD_ENV:
        return word_env(env);
    case KLP_WORD_PWD:
        return word_pwd();
    case KLP_WORD_FLOOD:
        return word_flood(word->number, word->to_stderr);
    case KLP_WORD_CRASH: /* the agent's own */
        break;
    }
    return 1;
}

void guest_word_run(const struct klp_word *word, char *const *argv, char *const *env,
                    int workload_fd)
{
    _exit(word_status(word, argv, env, workload_fd));
}
