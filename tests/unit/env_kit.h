/* SPDX-License-Identifier: Apache-2.0 */
/* For tests of env/posix: a real env, a folder of its own for every test, and a count of
 * descriptors that must be the same afterwards. */
#ifndef ENV_KIT_H
#define ENV_KIT_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "env/posix/posix.h"

struct kit {
    struct klp_env *env;
    char path[64];
    struct klp_dir *dir;
    int fds;
};

static inline int kit_fd_count(void)
{
    DIR *fds = opendir("/proc/self/fd");
    int count = 0;
    assert_non_null(fds);
    while (readdir(fds) != NULL)
        count++;
    closedir(fds);
    return count;
}

static inline int kit_setup(void **state)
{
    struct kit *kit = KLP_NEW(struct kit);
    struct klp_env_posix_options options = {.program = "unit-test", .level = KLP_LOG_ERROR};
    snprintf(kit->path, sizeof(kit->path), "/tmp/kelpie-unit-XXXXXX");
    if (mkdtemp(kit->path) == NULL || !klp_env_posix_create(&options, &kit->env, NULL))
        return -1;
    kit->fds = kit_fd_count();
    if (!klp_dir_open(kit->env, kit->path, true, &kit->dir, NULL))
        return -1;
    *state = kit;
    return 0;
}

static inline int kit_unlink(const char *path, const struct stat *facts, int kind, struct FTW *ftw)
{
    (void)facts;
    (void)kind;
    (void)ftw;
    return remove(path);
}

static inline int kit_teardown(void **state)
{
    struct kit *kit = *state;
    klp_dir_close(kit->dir);
    int left = kit_fd_count();
    if (left != kit->fds)
        print_error("%d descriptors leaked\n", left - kit->fds);
    bool clean = nftw(kit->path, kit_unlink, 16, FTW_DEPTH | FTW_PHYS) == 0 && left == kit->fds;
    klp_env_posix_destroy(kit->env);
    klp_mem_free(kit);
    return clean ? 0 : -1;
}

#define KIT_TEST(test) cmocka_unit_test_setup_teardown(test, kit_setup, kit_teardown)

static inline void kit_code_at(int line, enum kelpie_code code, struct kelpie_error **err,
                               enum kelpie_code expected, const char *part)
{
    if (code != expected || strstr(kelpie_error_message(*err), part) == NULL)
        fail_msg("line %d: %s: '%s' instead of %s with '%s'", line, kelpie_code_name(code),
                 kelpie_error_message(*err), kelpie_code_name(expected), part);
    klp_error_clear(err);
}

/* For bool calls. */
#define KIT_REFUSED(call, err, code, part)                                                         \
    do {                                                                                           \
        assert_false(call);                                                                        \
        kit_code_at(__LINE__, klp_error_code(err), err, code, part);                               \
    } while (0)

/* For calls with an outcome. */
#define KIT_FAILS(call, err, code, part)                                                           \
    do {                                                                                           \
        assert_int_equal((call).kind, KELPIE_FAIL);                                                \
        kit_code_at(__LINE__, klp_error_code(err), err, code, part);                               \
    } while (0)

#define KIT_OK(call) assert_true(kelpie_is_ok(call))

/* The file's path in the test's folder; valid until the next call. */
static inline const char *kit_path(const struct kit *kit, const char *name)
{
    static char path[4400];
    snprintf(path, sizeof(path), "%s/%s", kit->path, name);
    return path;
}

static inline bool kit_exists(const struct kit *kit, const char *name)
{
    struct stat facts;
    return lstat(kit_path(kit, name), &facts) == 0;
}

/* Names in the test's folder, without . and .. */
static inline int kit_entries(const struct kit *kit)
{
    DIR *dir = opendir(kit->path);
    int count = -2;
    assert_non_null(dir);
    while (readdir(dir) != NULL)
        count++;
    closedir(dir);
    return count;
}

static inline uint64_t kit_ms(const struct kit *kit)
{
    return klp_boot_ns(kit->env) / KLP_MS;
}

/* The child's status; it is not waited for longer than the test program's own limit. */
static inline int kit_wait(pid_t pid, int options)
{
    int status = 0;
    pid_t got;
    do {
        got = waitpid(pid, &status, options);
    } while (got < 0 && errno == EINTR);
    assert_int_equal(got, pid);
    return status;
}

#endif
