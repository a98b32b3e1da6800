/* SPDX-License-Identifier: Apache-2.0 */
/* `kelpie demo`: two daemons in a temporary folder share a store and a registry; an agent with
 * keyed memory is suspended, teleported there and back, and forked, and its memory is checked after
 * each. Every step is this same program, so that what is shown is what a user does. Leaves nothing
 * behind. */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/fmt.h"
#include "cli/cli.h"
#include "env/posix/posix.h"

#define FORKS "3"
#define FILL_MIB "16"
#define OUTPUT_MAX KLP_MIB
#define START_WAIT_MS 30000
#define STEP_MS 50
#define WORDS_MAX 12

struct demo {
    struct cli *cli;
    char root[64]; /* short: a socket's path must fit */
    char *self, *kelpied;
    const char *backend;
    pid_t daemons[2];
    struct klp_json *steps; /* owned */
    uint64_t teleports, lost, count;
};

static volatile sig_atomic_t stopped;

static void on_signal(int number)
{
    stopped = number;
}

/* ---- programs */

/* The child's environment: ours without anything of Kelpie's. */
static void environment_clean(void)
{
    static const char *const names[] = {"KELPIE_HOST", "KELPIE_STATE", "KELPIE_POINT",
                                        "KELPIE_DEBUG", "KELPIE_MOCK_FAULT"};
    for (size_t i = 0; i < KLP_COUNT(names); i++)
        unsetenv(names[i]);
}

static bool output_collect(int fd, struct klp_buf *out)
{
    for (;;) {
        void *place = klp_buf_reserve(out, 4096);
        ssize_t got = place != NULL ? read(fd, place, 4096) : 0;
        if (got > 0)
            klp_buf_grow(out, (size_t)got);
        else if (got == 0 || errno != EINTR)
            return got == 0;
    }
}

/* Runs `kelpie --host NODE WORDS`; its standard output into *out. Errors of the step are its own
 * words, which go to standard error as they come. */
static kelpie_outcome kelpie(struct demo *demo, char node, const char *const *words,
                             struct klp_buf *out, struct kelpie_error **err)
{
    const char *argv[WORDS_MAX + 4] = {"kelpie", "--host"};
    char host[96];
    int ends[2], status = 0;
    size_t count = 3;
    klp_format(host, sizeof(host), "unix:%s/%c.sock", demo->root, node);
    argv[2] = host;
    while (words[count - 3] != NULL && count < WORDS_MAX + 3) {
        argv[count] = words[count - 3];
        count++;
    }
    if (pipe2(ends, O_CLOEXEC) != 0)
        return klp_posix_fail(err, errno, "cannot open a pipe");
    pid_t pid = fork();
    if (pid == 0) {
        int null_fd = open("/dev/null", O_RDONLY);
        dup2(null_fd, STDIN_FILENO);
        dup2(ends[1], STDOUT_FILENO);
        execv(demo->self, (char *const *)(uintptr_t)argv);
        _exit(127);
    }
    close(ends[1]);
    bool fine = pid > 0 && output_collect(ends[0], out);
    close(ends[0]);
    if (pid > 0)
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
            ;
    if (stopped != 0)
        return klp_fail(err, KELPIE_E_CANCELLED, "interrupted by signal %d", (int)stopped);
    if (!fine || !WIFEXITED(status) || WEXITSTATUS(status) != 0)
        return klp_fail(err, KELPIE_E_IO, "the demo's step '%s' ended with status %d", words[0],
                        WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
    return KLP_OK;
}

#define KELPIE(demo, node, out, err, ...)                                                          \
    kelpie(demo, node, (const char *const[]){__VA_ARGS__, NULL}, out, err)

/* Starts a node, which answers when this returns. */
static kelpie_outcome node_start(struct demo *demo, char node, struct kelpie_error **err)
{
    char name[2] = {node, 0}, *state = klp_text("%s/%c", demo->root, node),
         *listen = klp_text("unix:%s/%c.sock", demo->root, node),
         *store = klp_text("%s/store", demo->root),
         *registry = klp_text("%s/registry.db", demo->root),
         *log = klp_text("%s/%c.log", demo->root, node);
    const char *const argv[] = {"kelpied",     "--name",        name,     "--state",
                                state,         "--listen",      listen,   "--store",
                                store,         "--registry",    registry, "--backend",
                                demo->backend, "--stop-agents", NULL};
    pid_t pid = fork();
    if (pid == 0) {
        int log_fd = open(log, O_WRONLY | O_CREAT | O_APPEND, 0600),
            null_fd = open("/dev/null", O_RDONLY);
        setsid();
        dup2(null_fd, STDIN_FILENO);
        dup2(log_fd, STDOUT_FILENO);
        dup2(log_fd, STDERR_FILENO);
        execv(demo->kelpied, (char *const *)(uintptr_t)argv);
        _exit(127);
    }
    demo->daemons[node - 'a'] = pid;
    bool answers = false;
    for (unsigned waited = 0; pid > 0 && waited < START_WAIT_MS && stopped == 0;
         waited += STEP_MS) {
        int fd;
        if (klp_posix_unix_connect(listen + strlen("unix:"), SOCK_STREAM, &fd, NULL)) {
            close(fd);
            answers = true;
            break;
        }
        if (waitpid(pid, NULL, WNOHANG) == pid) {
            demo->daemons[node - 'a'] = 0;
            break;
        }
        nanosleep(&(struct timespec){.tv_nsec = STEP_MS * 1000000l}, NULL);
    }
    klp_mem_free(state);
    klp_mem_free(listen);
    klp_mem_free(store);
    klp_mem_free(registry);
    klp_mem_free(log);
    return answers ? KLP_OK
                   : klp_fail(err, KELPIE_E_UNREACHABLE, "the demo's node %c did not start", node);
}

/* ---- what is shown */

static void step_add(struct demo *demo, const char *what, uint64_t began_ns, uint64_t bytes,
                     const char *verified)
{
    struct klp_json *step = klp_json_object();
    uint64_t ms = (http_now_ns() - began_ns) / 1000000;
    klp_json_set_text(step, "what", what);
    klp_json_set_u64(step, "ms", ms);
    klp_json_set_u64(step, "bytes", bytes);
    klp_json_set_text(step, "verified", verified);
    klp_json_append(demo->steps, step);
    char line[160];
    int size = snprintf(line, sizeof(line), "%-44s %7llu ms %10llu KiB  %s\n", what,
                        (unsigned long long)ms, (unsigned long long)(bytes / 1024), verified);
    if (!demo->cli->args.json && size > 0)
        KLP_IGNORE(cli_write(line, strlen(line), NULL));
}

/* Every page as it was written, and the counter not behind what it was: else CORRUPT. */
static kelpie_outcome verify(struct demo *demo, char node, const char *agent,
                             struct kelpie_error **err)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf out = KLP_BUF_INIT(OUTPUT_MAX);
    uint64_t count = 0;
    KLP_TRY(KELPIE(demo, node, &out, err, "exec", agent, "@check"));
    if (strstr(klp_buf_text(&out), " bad=0\n") == NULL ||
        strncmp(klp_buf_text(&out), "pages=0 ", 8) == 0)
        return klp_fail(err, KELPIE_E_CORRUPT, "the memory of '%s' is not what it was", agent);
    klp_buf_clear(&out);
    KLP_TRY(KELPIE(demo, node, &out, err, "exec", agent, "@count"));
    if (!klp_parse_u64(klp_buf_text(&out), strcspn(klp_buf_text(&out), "\n"), &count))
        return klp_fail(err, KELPIE_E_PROTOCOL, "the counter of '%s' is no number", agent);
    if (count < demo->count) {
        demo->lost += demo->count - count;
        return klp_fail(err, KELPIE_E_CORRUPT, "the counter of '%s' went back", agent);
    }
    if (strcmp(agent, "demo") == 0)
        demo->count = count;
    return KLP_OK;
}

/* Bytes of the newest operation of a kind, as the daemon counted them. */
static uint64_t bytes_of(struct demo *demo, char node, const char *kind)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf out = KLP_BUF_INIT(OUTPUT_MAX);
    KLP_AUTO(json) struct klp_json *document = NULL;
    struct kelpie_error *error = NULL;
    uint64_t bytes = 0;
    if (kelpie_is_ok(KELPIE(demo, node, &out, &error, "ops", "--json")) &&
        klp_json_parse(out.data, out.size, KLP_REST_DEPTH_MAX, &document, &error)) {
        const struct klp_json *items = klp_rest_items(document, "operations");
        for (size_t i = 0; items != NULL && i < klp_json_count(items); i++)
            if (strcmp(cli_text_of(klp_json_at(items, i), "kind"), kind) == 0)
                KLP_IGNORE(klp_json_get_u64(klp_json_at(items, i), "bytes_moved", KLP_JSON_OPTIONAL,
                                            &bytes, NULL));
    }
    klp_error_clear(&error);
    return bytes;
}

/* ---- the steps */

static kelpie_outcome begin(struct demo *demo, struct kelpie_error **err)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf out = KLP_BUF_INIT(OUTPUT_MAX);
    uint64_t began = http_now_ns();
    if (strcmp(demo->backend, "mock") != 0) {
        KLP_TRY(KELPIE(demo, 'a', &out, err, "image", "build", "base"));
        step_add(demo, "build the image", began, 0, "from Debian packages, without root");
        began = http_now_ns();
    }
    KLP_TRY(KELPIE(demo, 'a', &out, err, "run", "-d", "--name", "demo"));
    step_add(demo, "boot, seal a template, run the agent from it", began, 0, "running");
    began = http_now_ns();
    KLP_TRY(KELPIE(demo, 'a', &out, err, "exec", "demo", "@fill", FILL_MIB, "7"));
    KLP_TRY(verify(demo, 'a', "demo", err));
    step_add(demo, "fill " FILL_MIB " MiB of its memory", began, 0, "every page");
    return KLP_OK;
}

static kelpie_outcome rest(struct demo *demo, struct kelpie_error **err)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf out = KLP_BUF_INIT(OUTPUT_MAX);
    uint64_t began = http_now_ns();
    KLP_TRY(KELPIE(demo, 'a', &out, err, "suspend", "demo"));
    step_add(demo, "suspend", began, bytes_of(demo, 'a', "suspend"), "its machine is gone");
    began = http_now_ns();
    KLP_TRY(KELPIE(demo, 'a', &out, err, "resume", "demo"));
    KLP_TRY(verify(demo, 'a', "demo", err));
    step_add(demo, "resume", began, 0, "every page");
    return KLP_OK;
}

static kelpie_outcome move(struct demo *demo, char from, char to, struct kelpie_error **err)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf out = KLP_BUF_INIT(OUTPUT_MAX);
    char what[32], name[2] = {to, 0};
    uint64_t began = http_now_ns();
    klp_format(what, sizeof(what), "teleport from %c to %c", from, to);
    KLP_TRY(KELPIE(demo, from, &out, err, "-q", "teleport", "demo", name));
    demo->teleports++;
    KLP_TRY(verify(demo, to, "demo", err));
    step_add(demo, what, began, bytes_of(demo, from, "teleport"), "every page, no step lost");
    return KLP_OK;
}

static kelpie_outcome multiply(struct demo *demo, struct kelpie_error **err)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf out = KLP_BUF_INIT(OUTPUT_MAX);
    uint64_t began = http_now_ns();
    KLP_TRY(KELPIE(demo, 'a', &out, err, "fork", "demo", "-c", FORKS, "-q"));
    for (const char *at = klp_buf_text(&out); *at != 0;) {
        size_t size = strcspn(at, "\n");
        char name[KLP_NAME_SIZE];
        klp_format(name, sizeof(name), "%.*s", (int)size, at);
        KLP_TRY(verify(demo, 'a', name, err));
        at += size + (at[size] == '\n' ? 1 : 0);
    }
    step_add(demo, "fork into " FORKS, began, bytes_of(demo, 'a', "fork"), "every page of each");
    return KLP_OK;
}

static kelpie_outcome steps(struct demo *demo, struct kelpie_error **err)
{
    cli_say(demo->cli, "kelpie: two nodes with backend %s in %s", demo->backend, demo->root);
    KLP_TRY(node_start(demo, 'a', err));
    KLP_TRY(node_start(demo, 'b', err));
    KLP_TRY(begin(demo, err));
    KLP_TRY(rest(demo, err));
    KLP_TRY(move(demo, 'a', 'b', err));
    KLP_TRY(move(demo, 'b', 'a', err));
    return multiply(demo, err);
}

/* ---- before and after */

static int one_remove(const char *path, const struct stat *info, int kind, struct FTW *place)
{
    (void)info;
    (void)kind;
    (void)place;
    remove(path);
    return 0;
}

static void clean(struct demo *demo)
{
    for (size_t i = 0; i < KLP_COUNT(demo->daemons); i++)
        if (demo->daemons[i] > 0)
            kill(demo->daemons[i], SIGTERM);
    for (size_t i = 0; i < KLP_COUNT(demo->daemons); i++)
        while (demo->daemons[i] > 0 && waitpid(demo->daemons[i], NULL, 0) < 0 && errno == EINTR)
            ;
    nftw(demo->root, one_remove, 32, FTW_DEPTH | FTW_PHYS);
    klp_json_free(demo->steps);
    klp_mem_free(demo->kelpied);
    klp_mem_free(demo->self);
}

/* A real machine when one can run here; the mock is said, never silent. */
static const char *backend_choose(struct cli *cli)
{
    KLP_AUTO(json) struct klp_json *document = NULL;
    const char *asked = cli_flag(cli, "backend");
    struct kelpie_error *error = NULL;
    bool real = false;
    if (asked != NULL)
        return asked;
    if (kelpie_is_ok(cli_doctor_here(cli, &document, &error))) {
        const struct klp_json *checks = klp_rest_items(document, "checks");
        for (size_t i = 0; checks != NULL && i < klp_json_count(checks); i++)
            if (strcmp(cli_text_of(klp_json_at(checks, i), "name"), "backend") == 0)
                real = strcmp(cli_text_of(klp_json_at(checks, i), "status"), "fail") != 0;
    }
    klp_error_clear(&error);
    if (!real)
        cli_say(cli, "kelpie: no backend can run machines here (kelpie doctor): showing the mock");
    return real ? "auto" : "mock";
}

static kelpie_outcome result_print(struct demo *demo, struct kelpie_error **err)
{
    KLP_AUTO(json) struct klp_json *document = klp_json_object();
    if (!demo->cli->args.json)
        return KLP_OK;
    klp_json_set_u64(document, "version", KLP_REST_VERSION);
    klp_json_set_text(document, "backend", demo->backend);
    klp_json_set_u64(document, "teleports", demo->teleports);
    klp_json_set_u64(document, "lost_steps", demo->lost);
    klp_json_set(document, "steps", KLP_TAKE(&demo->steps));
    KLP_REQUIRE(cli_print_json(document, err));
    return KLP_OK;
}

kelpie_outcome verb_demo(struct cli *cli, struct kelpie_error **err)
{
    struct demo demo = {
        .cli = cli, .root = "/tmp/kelpie-demo-XXXXXX", .backend = backend_choose(cli)};
    struct sigaction action = {.sa_handler = on_signal};
    environment_clean();
    demo.kelpied = cli_program_path("kelpied");
    if (demo.kelpied == NULL)
        return klp_fail(err, KELPIE_E_UNSUPPORTED, "the program kelpied was not found");
    if (mkdtemp(demo.root) == NULL) {
        int error = errno;
        klp_mem_free(demo.kelpied);
        return klp_posix_fail(err, error, "cannot make a folder in /tmp");
    }
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    demo.self = klp_mem_string("/proc/self/exe");
    demo.steps = klp_json_array();
    kelpie_outcome outcome = steps(&demo, err);
    if (kelpie_is_ok(outcome))
        outcome = result_print(&demo, err);
    clean(&demo);
    return outcome;
}
