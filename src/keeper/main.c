/* SPDX-License-Identifier: Apache-2.0 */
/* kelpie-keeper: parent, guard and fence of one hypervisor. Everything of substance is in
 * vm/keeper. SIGTERM has its default effect: the keeper ends, and its hypervisor with it. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/ext/ext.h"
#include "base/fmt.h"
#include "env/posix/posix.h"
#include "vm/keeper/keeper.h"
#include "vm/mock/mock.h"
#ifdef KLP_WITH_QEMU
#include "vm/qemu/qemu.h"
#endif

#define ORPHAN_MS 10000
#define FILES_MAX 256

struct arguments {
    const char *dir, *vm, *backend, *qemu;
    uint64_t orphan_ms;
    bool detach, test_points;
};

static bool arguments_read(int argc, char **argv, struct arguments *out, struct kelpie_error **err)
{
    *out = (struct arguments){.orphan_ms = ORPHAN_MS};
    for (int i = 1; i < argc; i++) {
        const char *name = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(name, "--test-points") == 0 || strcmp(name, "--detach") == 0) {
            *(name[2] == 'd' ? &out->detach : &out->test_points) = true;
            continue;
        }
        const char **place = strcmp(name, "--dir") == 0       ? &out->dir
                             : strcmp(name, "--vm") == 0      ? &out->vm
                             : strcmp(name, "--backend") == 0 ? &out->backend
                             : strcmp(name, "--qemu") == 0    ? &out->qemu
                                                              : NULL;
        bool orphan = strcmp(name, "--orphan-ms") == 0;
        if ((place == NULL && !orphan) || value == NULL)
            return klp_refuse(err, KELPIE_E_INVALID,
                              "'%s' is no flag of kelpie-keeper, or lacks its value", name);
        if (orphan && !klp_parse_u64(value, strlen(value), &out->orphan_ms))
            return klp_refuse(err, KELPIE_E_INVALID, "--orphan-ms %s is no number", value);
        if (place != NULL)
            *place = value;
        i++;
    }
    if (out->dir == NULL || out->backend == NULL || !klp_id_is_valid(out->vm))
        return klp_refuse(err, KELPIE_E_INVALID,
                          "kelpie-keeper needs --dir, --vm with an id, and --backend");
    return true;
}

static bool hypervisor_make(struct klp_env *env, struct klp_dir *dir,
                            const struct arguments *arguments, struct klp_hypervisor **out,
                            struct kelpie_error **err)
{
    if (strcmp(arguments->backend, "mock") == 0)
        return klp_hypervisor_mock_create(env, out, err);
#ifdef KLP_WITH_QEMU
    if (strcmp(arguments->backend, "qemu") == 0 && arguments->qemu != NULL)
        return klp_hypervisor_qemu_create(env, dir, arguments->qemu, out, err);
#endif
    (void)dir;
    return klp_refuse(err, KELPIE_E_UNSUPPORTED, "this kelpie-keeper has no backend '%s'",
                      arguments->backend);
}

static void limits_set(void)
{
    struct rlimit none = {0, 0}, files = {FILES_MAX, FILES_MAX};
    setrlimit(RLIMIT_CORE, &none);
    setrlimit(RLIMIT_NOFILE, &files);
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    sigaction(SIGHUP, &ignore, NULL);
    sigaction(SIGINT, &ignore, NULL);
}

/* ---- --detach: the keeper is a grandchild of whoever launches it, which waits for the child only:
 * the launcher needs not reap it, and knows that it listens, or why not, by the child's end. */

/* In the keeper: from now on it lives for itself. */
static void ready_tell(void *arg)
{
    int *fd = arg;
    prctl(PR_SET_PDEATHSIG, 0);
    if (write(*fd, "", 1) < 0)
        KLP_ASSERT(errno == EPIPE); /* the launcher gave up this instant */
    close(*fd);
    *fd = -1;
}

/* In the child: the status to end with. */
static int ready_wait(int fd, pid_t keeper)
{
    char byte;
    int status = 0;
    ssize_t got;
    do {
        got = read(fd, &byte, 1);
    } while (got < 0 && errno == EINTR);
    if (got == 1)
        return 0;
    while (waitpid(keeper, &status, 0) < 0 && errno == EINTR)
        continue;
    return WIFEXITED(status) && WEXITSTATUS(status) != 0 ? WEXITSTATUS(status) : 1;
}

/* Before any thread. Returns in the keeper only. */
static bool detach(int *out_ready_fd, struct kelpie_error **err)
{
    int pipe_fds[2];
    if (pipe2(pipe_fds, O_CLOEXEC) != 0)
        return klp_posix_refuse(err, errno, "cannot detach");
    pid_t parent = getpid(), keeper = fork();
    if (keeper < 0)
        return klp_posix_refuse(err, errno, "cannot detach");
    if (keeper > 0) {
        close(pipe_fds[1]);
        _exit(ready_wait(pipe_fds[0], keeper));
    }
    /* A launcher that gives up kills the child, and with it the keeper as long as it is not ready.
     */
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0 || getppid() != parent || setsid() < 0)
        _exit(1);
    close(pipe_fds[0]);
    *out_ready_fd = pipe_fds[1];
    return true;
}

/* ---- */

/* What lay in it is gone. The next keeper of this VM may live in a new folder of that name by now.
 */
static void folder_remove(struct klp_dir *dir)
{
    struct stat ours, there;
    if (fstat(klp_dir_fd(dir), &ours) == 0 && lstat(klp_dir_path(dir), &there) == 0 &&
        ours.st_ino == there.st_ino && ours.st_dev == there.st_dev)
        rmdir(klp_dir_path(dir));
}

static void env_destroy(struct klp_env **env)
{
    klp_env_posix_destroy(*env);
}

static bool run(const struct arguments *arguments, struct kelpie_error **err)
{
    struct klp_env_posix_options options = {
        .program = "kelpie-keeper", .level = KLP_LOG_INFO, .test_points = arguments->test_points};
    __attribute__((cleanup(env_destroy))) struct klp_env *env = NULL;
    struct klp_hypervisor *hypervisor;
    KLP_AUTO(dir) struct klp_dir *dir = NULL;
    int ready_fd = -1;
    if (!arguments->test_points) /* a mock guest's faults are a test's too */
        unsetenv("KELPIE_MOCK_FAULT");
    KLP_CHECK(!arguments->detach || detach(&ready_fd, err));
    KLP_CHECK(klp_env_posix_create(&options, &env, err));
    KLP_CHECK(klp_dir_open(env, arguments->dir, false, &dir, err));
    KLP_CHECK(hypervisor_make(env, dir, arguments, &hypervisor, err));
    struct klp_keeper_options serving = {.dir = dir,
                                         .hypervisor = hypervisor,
                                         .orphan_ms = arguments->orphan_ms,
                                         .pid = getpid(),
                                         .ready = arguments->detach ? ready_tell : NULL,
                                         .ready_arg = &ready_fd};
    klp_text_copy(serving.vm, sizeof(serving.vm), arguments->vm);
    bool fine = kelpie_is_ok(klp_keeper_serve(env, &serving, err));
    hypervisor->ops->destroy(hypervisor);
    if (fine)
        folder_remove(dir);
    return fine;
}

int main(int argc, char **argv)
{
    struct arguments arguments;
    struct kelpie_error *error = NULL;
    if (argc > 1 && strcmp(argv[1], "--mock-guest") == 0)
        return klp_mock_guest_main(argc, argv);
#ifdef KLP_WITH_QEMU
    if (argc > 1 && strcmp(argv[1], "--exec-qemu") == 0)
        return klp_qemu_exec_main(argc, argv);
#endif
    klp_ext_init();
    limits_set();
    if (arguments_read(argc, argv, &arguments, &error) && run(&arguments, &error))
        return 0;
    fprintf(stderr, "kelpie-keeper: %s\n", kelpie_error_message(error));
    int status = kelpie_code_exit(kelpie_error_code(error));
    kelpie_error_free(error);
    return status;
}
