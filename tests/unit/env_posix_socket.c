/* SPDX-License-Identifier: Apache-2.0 */
/* Sockets by name: private, taken over from the dead and from nobody else, one winner of many, and
 * paths longer than an address. */
#include "env_kit.h"

#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>

static struct kelpie_op soon(const struct kit *kit)
{
    return klp_op_plain(kit->env, 10000);
}

static void test_env_posix_socket__listener_is_private_and_leaves_nothing(void **state)
{
    struct kit *kit = *state;
    struct kelpie_op op = soon(kit);
    struct kelpie_error *err = NULL;
    struct klp_listener *listener, *other;
    struct klp_chan *chan;
    struct stat facts;
    mode_t mask = umask(0);
    assert_true(klp_listener_open(kit->dir, "s", &listener, &err));
    umask(mask);
    assert_int_equal(lstat(kit_path(kit, "s"), &facts), 0);
    assert_true(S_ISSOCK(facts.st_mode));
    assert_int_equal(facts.st_mode & 0777, 0600);
    KIT_REFUSED(klp_listener_open(kit->dir, "s", &other, &err), &err, KELPIE_E_EXISTS,
                "/s is in use");
    klp_listener_close(listener);
    klp_listener_close(NULL);
    assert_int_equal(kit_entries(kit), 0);
    KIT_FAILS(klp_chan_connect(&op, kit->dir, "s", &chan, &err), &err, KELPIE_E_UNREACHABLE, "/s");
    KIT_REFUSED(klp_listener_open(kit->dir, "../s", &listener, &err), &err, KELPIE_E_INVALID, "");
    KIT_FAILS(klp_chan_connect(&op, kit->dir, "a/b", &chan, &err), &err, KELPIE_E_INVALID, "");
}

/* A socket as a killed process leaves it: bound, and nobody behind it. */
static void stale_make(const char *path, int type)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, type, 0);
    klp_text_copy(address.sun_path, sizeof(address.sun_path), path);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    close(fd);
}

static void test_env_posix_socket__stale_socket_is_replaced(void **state)
{
    struct kit *kit = *state;
    struct kelpie_op op = soon(kit);
    struct kelpie_error *err = NULL;
    struct klp_listener *listener;
    struct klp_chan *chan;
    stale_make(kit_path(kit, "s"), SOCK_SEQPACKET);
    KIT_FAILS(klp_chan_connect(&op, kit->dir, "s", &chan, &err), &err, KELPIE_E_UNREACHABLE, "/s");
    close(open(kit_path(kit, "s.lock"), O_CREAT | O_RDWR, 0600)); /* and its lock, held by nobody */
    assert_true(klp_listener_open(kit->dir, "s", &listener, &err));
    KIT_OK(klp_chan_connect(&op, kit->dir, "s", &chan, &err));
    klp_chan_close(chan);
    klp_listener_close(listener);
    assert_int_equal(kit_entries(kit), 0);
}

static void test_env_posix_socket__stale_after_a_kill(void **state)
{
    struct kit *kit = *state;
    struct kelpie_error *err = NULL;
    int ready[2];
    char byte;
    assert_int_equal(pipe(ready), 0);
    pid_t pid = fork();
    if (pid == 0) {
        struct klp_listener *listener;
        bool fine = klp_listener_open(kit->dir, "s", &listener, NULL);
        byte = fine ? 'y' : 'n';
        if (write(ready[1], &byte, 1) == 1)
            pause();
        _exit(1);
    }
    close(ready[1]);
    assert_int_equal(read(ready[0], &byte, 1), 1);
    assert_int_equal(byte, 'y');
    close(ready[0]);
    struct klp_listener *listener;
    KIT_REFUSED(klp_listener_open(kit->dir, "s", &listener, &err), &err, KELPIE_E_EXISTS, "in use");
    assert_int_equal(kill(pid, SIGKILL), 0);
    kit_wait(pid, 0);
    assert_true(klp_listener_open(kit->dir, "s", &listener, &err));
    klp_listener_close(listener);
    assert_int_equal(kit_entries(kit), 0);
}

static void test_env_posix_socket__only_dead_sockets_are_removed(void **state)
{
    struct kit *kit = *state;
    struct kelpie_error *err = NULL;
    struct klp_listener *listener;
    struct stat facts;
    int fd = open(kit_path(kit, "file"), O_CREAT | O_RDWR, 0600);
    assert_int_equal(write(fd, "keep me", 7), 7);
    close(fd);
    assert_int_equal(symlink("file", kit_path(kit, "link")), 0);
    KIT_REFUSED(klp_listener_open(kit->dir, "file", &listener, &err), &err, KELPIE_E_EXISTS,
                "/file");
    KIT_REFUSED(klp_listener_open(kit->dir, "link", &listener, &err), &err, KELPIE_E_EXISTS,
                "/link");
    KIT_REFUSED(klp_posix_unix_listen(kit_path(kit, "file"), SOCK_STREAM, &fd, &err), &err,
                KELPIE_E_EXISTS, "/file");
    assert_int_equal(stat(kit_path(kit, "file"), &facts), 0);
    assert_int_equal(facts.st_size, 7);
    /* A live socket of another type answers EPROTOTYPE. */
    assert_true(klp_posix_unix_listen(kit_path(kit, "stream"), SOCK_STREAM, &fd, &err));
    KIT_REFUSED(klp_listener_open(kit->dir, "stream", &listener, &err), &err, KELPIE_E_EXISTS, "");
    close(fd);
    assert_int_equal(kit_entries(kit), 3); /* and no lock stays behind */
}

static void test_env_posix_socket__busy_is_not_stale(void **state)
{
    struct kit *kit = *state;
    struct kelpie_op op = klp_op_plain(kit->env, 60);
    struct kelpie_error *err = NULL;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct klp_listener *listener;
    struct klp_chan *chans[4] = {NULL}, *one_more = NULL;
    size_t connected = 0;
    /* Somebody who accepts nothing, with the smallest backlog. */
    int fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    klp_text_copy(address.sun_path, sizeof(address.sun_path), kit_path(kit, "s"));
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(listen(fd, 0), 0);
    while (connected < KLP_COUNT(chans) &&
           kelpie_is_ok(klp_chan_connect(&op, kit->dir, "s", &chans[connected], &err)))
        connected++;
    assert_in_range(connected, 1, KLP_COUNT(chans) - 1);
    kit_code_at(__LINE__, klp_error_code(&err), &err, KELPIE_E_TIMEOUT, "connecting");
    KIT_REFUSED(klp_listener_open(kit->dir, "s", &listener, &err), &err, KELPIE_E_EXISTS, "in use");
    assert_true(kit_exists(kit, "s"));
    /* Room is used as soon as there is some. */
    op = soon(kit);
    int accepted = accept(fd, NULL, NULL);
    assert_true(accepted >= 0);
    KIT_OK(klp_chan_connect(&op, kit->dir, "s", &one_more, &err));
    klp_chan_close(one_more);
    close(accepted);
    for (size_t i = 0; i < connected; i++)
        klp_chan_close(chans[i]);
    close(fd);
}

struct racer {
    const struct kit *kit;
    char path[128];
    int fd;
    enum kelpie_code code;
};

static void race_listen(void *arg)
{
    struct racer *racer = arg;
    struct kelpie_error *err = NULL;
    racer->fd = -1;
    if (!klp_posix_unix_listen(racer->path, SOCK_STREAM, &racer->fd, &err))
        racer->fd = -1;
    racer->code = klp_error_code(&err);
    klp_error_clear(&err);
}

static void test_env_posix_socket__of_many_that_start_at_once_one_wins(void **state)
{
    enum { RACERS = 4, ROUNDS = 25 };
    struct kit *kit = *state;
    struct kelpie_error *err = NULL;
    for (int round = 0; round < ROUNDS; round++) {
        struct racer racers[RACERS];
        struct klp_task *tasks[RACERS];
        int winners = 0;
        stale_make(kit_path(kit, "s"), SOCK_STREAM);
        for (int i = 0; i < RACERS; i++) {
            racers[i].kit = kit;
            klp_text_copy(racers[i].path, sizeof(racers[i].path), kit_path(kit, "s"));
            assert_true(
                klp_task_spawn(kit->env, "racer", race_listen, &racers[i], &tasks[i], &err));
        }
        for (int i = 0; i < RACERS; i++)
            klp_task_join(tasks[i]);
        for (int i = 0; i < RACERS; i++) {
            winners += racers[i].fd >= 0;
            assert_true(racers[i].fd >= 0 || racers[i].code == KELPIE_E_EXISTS);
        }
        assert_int_equal(winners, 1);
        /* The name leads to the winner. */
        int fd;
        assert_true(klp_posix_unix_connect(racers[0].path, SOCK_STREAM, &fd, &err));
        close(fd);
        for (int i = 0; i < RACERS; i++)
            if (racers[i].fd >= 0)
                close(racers[i].fd);
        assert_int_equal(unlink(racers[0].path), 0);
        assert_int_equal(kit_entries(kit), 0);
    }
}

static void test_env_posix_socket__paths_longer_than_an_address(void **state)
{
    struct kit *kit = *state;
    struct kelpie_op op = soon(kit);
    struct kelpie_error *err = NULL;
    struct klp_dir *deep;
    struct klp_listener *listener;
    struct klp_chan *chan;
    char name[101], path[600];
    int fd, peer;
    memset(name, 'd', 100);
    name[100] = 0;
    snprintf(path, sizeof(path), "%s/%s/%s", kit->path, name, name);
    assert_true(klp_dir_open(kit->env, path, true, &deep, &err));
    snprintf(path, sizeof(path), "%s/stream", klp_dir_path(deep));
    assert_true(strlen(path) > 200);
    assert_true(klp_posix_unix_listen(path, SOCK_STREAM, &fd, &err));
    assert_true(klp_posix_unix_connect(path, SOCK_STREAM, &peer, &err));
    assert_true(fcntl(peer, F_GETFD) & FD_CLOEXEC);
    close(peer);
    close(fd);
    KIT_REFUSED(klp_posix_unix_connect(path, SOCK_STREAM, &peer, &err), &err, KELPIE_E_UNREACHABLE,
                path);
    assert_true(
        klp_posix_unix_listen(path, SOCK_STREAM, &fd, &err)); /* stale, through the folder */
    close(fd);
    assert_true(klp_listener_open(deep, "chan", &listener, &err));
    KIT_OK(klp_chan_connect(&op, deep, "chan", &chan, &err));
    klp_chan_close(chan);
    klp_listener_close(listener);
    KIT_REFUSED(klp_listener_open(deep, name, &listener, &err), &err, KELPIE_E_INVALID, name);
    klp_dir_close(deep);
}

static void test_env_posix_socket__bad_socket_paths(void **state)
{
    struct kit *kit = *state;
    struct kelpie_error *err = NULL;
    int fd;
    KIT_REFUSED(klp_posix_unix_connect(kit_path(kit, "none/s"), SOCK_STREAM, &fd, &err), &err,
                KELPIE_E_UNREACHABLE, "none/s");
    KIT_REFUSED(klp_posix_unix_connect(kit_path(kit, "none"), SOCK_STREAM, &fd, &err), &err,
                KELPIE_E_UNREACHABLE, "none");
    KIT_REFUSED(klp_posix_unix_listen(kit_path(kit, "none/s"), SOCK_STREAM, &fd, &err), &err,
                KELPIE_E_NOT_FOUND, "none/s");
    KIT_REFUSED(klp_posix_unix_listen("", SOCK_STREAM, &fd, &err), &err, KELPIE_E_INVALID, "");
    KIT_REFUSED(klp_posix_unix_connect(kit_path(kit, ""), SOCK_STREAM, &fd, &err), &err,
                KELPIE_E_INVALID, "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        KIT_TEST(test_env_posix_socket__listener_is_private_and_leaves_nothing),
        KIT_TEST(test_env_posix_socket__stale_socket_is_replaced),
        KIT_TEST(test_env_posix_socket__stale_after_a_kill),
        KIT_TEST(test_env_posix_socket__only_dead_sockets_are_removed),
        KIT_TEST(test_env_posix_socket__busy_is_not_stale),
        KIT_TEST(test_env_posix_socket__of_many_that_start_at_once_one_wins),
        KIT_TEST(test_env_posix_socket__paths_longer_than_an_address),
        KIT_TEST(test_env_posix_socket__bad_socket_paths),
    };
    return cmocka_run_group_tests_name("env_posix_socket", tests, NULL, NULL);
}
