/* SPDX-License-Identifier: Apache-2.0 */
/* Channels with handles, listeners among stale and live sockets, and streams; every wait ends by
 * deadline, cancel or the other side's death, and no descriptor leaks on any of these ways. */
#include "env_kit.h"

#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "base/limits.h"

struct pair {
    struct klp_listener *listener;
    struct klp_chan *a, *b;
};

static struct kelpie_op soon(const struct kit *kit)
{
    return klp_op_plain(kit->env, 10000);
}

static void pair_open(struct kit *kit, struct pair *pair)
{
    struct kelpie_op op = soon(kit);
    struct kelpie_error *err = NULL;
    assert_true(klp_listener_open(kit->dir, "s", &pair->listener, &err));
    KIT_OK(klp_chan_connect(&op, kit->dir, "s", &pair->a, &err));
    KIT_OK(klp_listener_accept(&op, pair->listener, &pair->b, &err));
}

static void pair_close(struct pair *pair)
{
    klp_chan_close(pair->a);
    klp_chan_close(pair->b);
    klp_listener_close(pair->listener);
}

static void test_env_posix_chan__messages_keep_their_bounds(void **state)
{
    struct kit *kit = *state;
    struct kelpie_op op = soon(kit);
    struct kelpie_error *err = NULL;
    struct pair pair;
    char text[100];
    size_t size = 0, handles = 0;
    pair_open(kit, &pair);
    KIT_OK(klp_chan_send(&op, pair.a, "one", 3, NULL, 0, &err));
    KIT_OK(klp_chan_send(&op, pair.a, "three", 5, NULL, 0, &err));
    KIT_OK(klp_chan_receive(&op, pair.b, text, sizeof(text), &size, NULL, &handles, &err));
    assert_int_equal(size, 3);
    assert_memory_equal(text, "one", 3);
    KIT_OK(klp_chan_receive(&op, pair.b, text, 5, &size, NULL, NULL, &err)); /* exactly fits */
    assert_int_equal(size, 5);
    KIT_OK(klp_chan_send(&op, pair.b, "back", 4, NULL, 0, &err));
    KIT_OK(klp_chan_receive(&op, pair.a, text, sizeof(text), &size, NULL, NULL, &err));
    assert_int_equal(size, 4);
    pair_close(&pair);
}

static void test_env_posix_chan__largest_frame_passes(void **state)
{
    static uint8_t out[KLP_KEEPER_FRAME_MAX], in[KLP_KEEPER_FRAME_MAX];
    struct kit *kit = *state;
    struct kelpie_op op = soon(kit);
    struct kelpie_error *err = NULL;
    struct pair pair;
    size_t size = 0;
    static uint8_t huge[8 << 20];
    pair_open(kit, &pair);
    memset(out, 0x5a, sizeof(out));
    KIT_OK(klp_chan_send(&op, pair.a, out, sizeof(out), NULL, 0, &err));
    KIT_OK(klp_chan_receive(&op, pair.b, in, sizeof(in), &size, NULL, NULL, &err));
    assert_int_equal(size, sizeof(out));
    assert_memory_equal(in, out, sizeof(out));
    KIT_FAILS(klp_chan_send(&op, pair.a, huge, sizeof(huge), NULL, 0, &err), &err, KELPIE_E_LIMIT,
              "");
    KIT_FAILS(klp_chan_send(&op, pair.a, out, 0, NULL, 0, &err), &err, KELPIE_E_INVALID,
              "no bytes");
    pair_close(&pair);
}

static void test_env_posix_chan__handles_travel(void **state)
{
    struct kit *kit = *state;
    struct kelpie_op op = soon(kit);
    struct kelpie_error *err = NULL;
    struct klp_handle sent[KLP_KEEPER_HANDLES_MAX], got[KLP_KEEPER_HANDLES_MAX];
    size_t size = 0, count = KLP_COUNT(got);
    struct pair pair;
    char byte;
    pair_open(kit, &pair);
    for (size_t i = 0; i < KLP_COUNT(sent); i++) {
        assert_true(klp_memory_create(kit->env, "handed over", 4096, &sent[i], &err));
        byte = (char)('a' + i);
        assert_true(klp_memory_write(kit->env, sent[i], 0, &byte, 1, &err));
    }
    KIT_OK(klp_chan_send(&op, pair.a, "x", 1, sent, KLP_COUNT(sent), &err));
    for (size_t i = 0; i < KLP_COUNT(sent); i++)
        klp_handle_close(kit->env, sent[i]); /* they stayed ours */
    KIT_OK(klp_chan_receive(&op, pair.b, &byte, 1, &size, got, &count, &err));
    assert_int_equal(count, KLP_COUNT(got));
    for (size_t i = 0; i < count; i++) {
        assert_true(klp_memory_read(kit->env, got[i], 0, &byte, 1, &err));
        assert_int_equal(byte, 'a' + i);
        assert_true(fcntl(klp_handle_fd(got[i]), F_GETFD) & FD_CLOEXEC);
        klp_handle_close(kit->env, got[i]);
    }
    KIT_FAILS(klp_chan_send(&op, pair.a, "x", 1, sent, KLP_KEEPER_HANDLES_MAX + 1, &err), &err,
              KELPIE_E_LIMIT, "17 handles");
    pair_close(&pair);
}

/* The count of descriptors in the teardown proves that nothing of these stays open. */
static void test_env_posix_chan__what_does_not_fit_is_dropped_whole(void **state)
{
    struct kit *kit = *state;
    struct kelpie_op op = soon(kit);
    struct kelpie_error *err = NULL;
    struct klp_handle sent[3], got[3];
    struct pair pair;
    char text[8];
    size_t size = 0, count;
    pair_open(kit, &pair);
    for (size_t i = 0; i < 3; i++)
        assert_true(klp_memory_create(kit->env, "x", 1, &sent[i], &err));
    for (size_t room = 0; room < 3; room++) {
        KIT_OK(klp_chan_send(&op, pair.a, "hello", 5, sent, 3, &err));
        count = room;
        KIT_FAILS(klp_chan_receive(&op, pair.b, text, sizeof(text), &size, got, &count, &err), &err,
                  KELPIE_E_LIMIT, "fit");
        assert_int_equal(count, 0);
    }
    KIT_OK(klp_chan_send(&op, pair.a, "hello", 5, sent, 3, &err));
    KIT_FAILS(klp_chan_receive(&op, pair.b, text, sizeof(text), &size, NULL, NULL, &err), &err,
              KELPIE_E_LIMIT, "fit");
    KIT_OK(klp_chan_send(&op, pair.a, "hello", 5, sent, 3, &err));
    count = 3; /* the handles fit, the message does not */
    KIT_FAILS(klp_chan_receive(&op, pair.b, text, 4, &size, got, &count, &err), &err,
              KELPIE_E_LIMIT, "fit");
    /* And the channel still works. */
    KIT_OK(klp_chan_send(&op, pair.a, "next", 4, NULL, 0, &err));
    KIT_OK(klp_chan_receive(&op, pair.b, text, sizeof(text), &size, NULL, NULL, &err));
    assert_int_equal(size, 4);
    for (size_t i = 0; i < 3; i++)
        klp_handle_close(kit->env, sent[i]);
    pair_close(&pair);
}

/* A peer that does not keep to our rules: more handles than any message of ours, or handles beside
 * nothing. */
static void raw_send(const struct kit *kit, int count, size_t size)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET, 0), fds[40];
    klp_text_copy(address.sun_path, sizeof(address.sun_path), kit_path(kit, "s"));
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(fds))];
    } control;
    char byte = 'x';
    struct iovec part = {&byte, size};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes};
    memset(&control, 0, sizeof(control));
    message.msg_controllen = CMSG_SPACE((size_t)count * sizeof(int));
    control.header.cmsg_level = SOL_SOCKET;
    control.header.cmsg_type = SCM_RIGHTS;
    control.header.cmsg_len = CMSG_LEN((size_t)count * sizeof(int));
    for (int i = 0; i < count; i++)
        fds[i] = fd;
    memcpy(CMSG_DATA(&control.header), fds, (size_t)count * sizeof(int));
    assert_int_equal(sendmsg(fd, &message, 0), size);
    close(fd);
}

static void test_env_posix_chan__hostile_peers_leak_nothing(void **state)
{
    static const struct {
        int handles;
        size_t size;
        enum kelpie_code code;
    } cases[] = {{40, 1, KELPIE_E_LIMIT}, {17, 1, KELPIE_E_LIMIT}, {5, 0, KELPIE_E_UNREACHABLE}};
    struct kit *kit = *state;
    struct kelpie_op op = soon(kit);
    struct kelpie_error *err = NULL;
    struct klp_listener *listener;
    struct klp_chan *chan;
    struct klp_handle got[KLP_KEEPER_HANDLES_MAX];
    char text[8];
    assert_true(klp_listener_open(kit->dir, "s", &listener, &err));
    for (size_t i = 0; i < KLP_COUNT(cases); i++) {
        size_t size = 0, count = KLP_COUNT(got);
        raw_send(kit, cases[i].handles, cases[i].size);
        KIT_OK(klp_listener_accept(&op, listener, &chan, &err));
        KIT_FAILS(klp_chan_receive(&op, chan, text, sizeof(text), &size, got, &count, &err), &err,
                  cases[i].code, "");
        assert_int_equal(count, 0);
        klp_chan_close(chan);
    }
    klp_listener_close(listener);
}

static void test_env_posix_chan__the_end_is_unreachable(void **state)
{
    struct kit *kit = *state;
    struct kelpie_op op = soon(kit);
    struct kelpie_error *err = NULL;
    struct pair pair;
    char text[8];
    size_t size = 0;
    pair_open(kit, &pair);
    KIT_OK(klp_chan_send(&op, pair.a, "last", 4, NULL, 0, &err));
    klp_chan_close(pair.a);
    pair.a = NULL;
    KIT_OK(
        klp_chan_receive(&op, pair.b, text, sizeof(text), &size, NULL, NULL, &err)); /* not lost */
    assert_int_equal(size, 4);
    KIT_FAILS(klp_chan_receive(&op, pair.b, text, sizeof(text), &size, NULL, NULL, &err), &err,
              KELPIE_E_UNREACHABLE, "");
    KIT_FAILS(klp_chan_send(&op, pair.b, "x", 1, NULL, 0, &err), &err, KELPIE_E_UNREACHABLE, "");
    pair_close(&pair);
}

static void test_env_posix_chan__waits_end_at_the_deadline(void **state)
{
    struct kit *kit = *state;
    struct kelpie_error *err = NULL;
    struct kelpie_op op = klp_op_plain(kit->env, 60);
    struct klp_chan *none;
    struct pair pair;
    char text[8];
    size_t size;
    uint64_t start = kit_ms(kit);
    pair_open(kit, &pair);
    KIT_FAILS(klp_chan_receive(&op, pair.b, text, sizeof(text), &size, NULL, NULL, &err), &err,
              KELPIE_E_TIMEOUT, "");
    assert_in_range(kit_ms(kit) - start, 59, 5000);
    KIT_FAILS(klp_listener_accept(&op, pair.listener, &none, &err), &err, KELPIE_E_TIMEOUT, "");
    /* Nobody receives: sooner or later a send has to wait. */
    op = klp_op_plain(kit->env, 60);
    kelpie_outcome outcome = KLP_OK;
    static char frame[30000];
    for (int i = 0; i < 1000 && kelpie_is_ok(outcome); i++)
        outcome = klp_chan_send(&op, pair.a, frame, sizeof(frame), NULL, 0, &err);
    KIT_FAILS(outcome, &err, KELPIE_E_TIMEOUT, "");
    pair_close(&pair);
}

struct later {
    struct kit *kit;
    struct klp_cancel *cancel;
    struct klp_chan *chan;
    struct klp_stream *stream;
};

static void act_later(void *arg)
{
    struct later *later = arg;
    struct kelpie_op op = soon(later->kit);
    KLP_IGNORE(klp_sleep_until(&op, klp_boot_ns(later->kit->env) + 50 * KLP_MS, NULL));
    if (later->cancel != NULL)
        klp_cancel_raise(later->cancel);
    if (later->chan != NULL)
        klp_chan_shutdown(later->chan);
    if (later->stream != NULL)
        klp_stream_shutdown(later->stream);
}

static void test_env_posix_chan__waits_end_at_a_cancel_at_once(void **state)
{
    struct kit *kit = *state;
    struct kelpie_error *err = NULL;
    KLP_AUTO(cancel) struct klp_cancel *cancel = klp_cancel_create(kit->env);
    struct kelpie_op op = klp_op_plain(kit->env, 30000);
    struct later later = {.kit = kit, .cancel = cancel};
    struct klp_task *task;
    struct klp_chan *none;
    struct pair pair;
    char text[8];
    size_t size;
    op.cancel = cancel;
    pair_open(kit, &pair);
    uint64_t start = kit_ms(kit);
    assert_true(klp_task_spawn(kit->env, "later", act_later, &later, &task, &err));
    KIT_FAILS(klp_chan_receive(&op, pair.b, text, sizeof(text), &size, NULL, NULL, &err), &err,
              KELPIE_E_CANCELLED, "");
    assert_in_range(kit_ms(kit) - start, 40, 900); /* a nap would have taken a second */
    KIT_FAILS(klp_listener_accept(&op, pair.listener, &none, &err), &err, KELPIE_E_CANCELLED, "");
    klp_task_join(task);
    pair_close(&pair);
}

static void test_env_posix_chan__shutdown_wakes_the_receiver(void **state)
{
    struct kit *kit = *state;
    struct kelpie_op op = klp_op_plain(kit->env, 30000);
    struct kelpie_error *err = NULL;
    struct klp_task *task;
    struct pair pair;
    char text[8];
    size_t size;
    pair_open(kit, &pair);
    struct later later = {.kit = kit, .chan = pair.b};
    uint64_t start = kit_ms(kit);
    assert_true(klp_task_spawn(kit->env, "later", act_later, &later, &task, &err));
    KIT_FAILS(klp_chan_receive(&op, pair.b, text, sizeof(text), &size, NULL, NULL, &err), &err,
              KELPIE_E_UNREACHABLE, "");
    assert_in_range(kit_ms(kit) - start, 40, 900);
    klp_task_join(task);
    KIT_FAILS(klp_chan_send(&op, pair.b, "x", 1, NULL, 0, &err), &err, KELPIE_E_UNREACHABLE, "");
    pair_close(&pair);
}

/* ---- listeners */

static void test_env_posix_chan__listener_is_private_and_leaves_nothing(void **state)
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

static void test_env_posix_chan__stale_socket_is_replaced(void **state)
{
    struct kit *kit = *state;
    struct kelpie_op op = soon(kit);
    struct kelpie_error *err = NULL;
    struct pair pair;
    struct klp_chan *chan;
    stale_make(kit_path(kit, "s"), SOCK_SEQPACKET);
    KIT_FAILS(klp_chan_connect(&op, kit->dir, "s", &chan, &err), &err, KELPIE_E_UNREACHABLE, "/s");
    close(open(kit_path(kit, "s.lock"), O_CREAT | O_RDWR, 0600)); /* and its lock, held by nobody */
    pair_open(kit, &pair);
    pair_close(&pair);
    assert_int_equal(kit_entries(kit), 0);
}

static void test_env_posix_chan__stale_after_a_kill(void **state)
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

static void test_env_posix_chan__only_dead_sockets_are_removed(void **state)
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

static void test_env_posix_chan__busy_is_not_stale(void **state)
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

static void test_env_posix_chan__of_many_that_start_at_once_one_wins(void **state)
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

static void test_env_posix_chan__paths_longer_than_an_address(void **state)
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

static void test_env_posix_chan__bad_socket_paths(void **state)
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

/* ---- streams */

static void streams_open(struct kit *kit, bool sockets, struct klp_stream **reader,
                         struct klp_stream **writer)
{
    int fds[2];
    struct kelpie_error *err = NULL;
    assert_int_equal(sockets ? socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds)
                             : pipe2(fds, O_CLOEXEC),
                     0);
    assert_true(klp_stream_open(kit->env, klp_handle_from_fd(fds[0]), reader, &err));
    assert_true(klp_stream_open(kit->env, klp_handle_from_fd(fds[1]), writer, &err));
}

struct copy {
    struct kit *kit;
    struct klp_stream *reader;
    uint64_t bytes;
    bool in_order, ended;
};

static void copy_run(void *arg)
{
    struct copy *copy = arg;
    struct kelpie_op op = soon(copy->kit);
    uint8_t block[5000];
    size_t size = 0;
    copy->in_order = true;
    while (kelpie_is_ok(klp_stream_read(&op, copy->reader, block, sizeof(block), &size, NULL))) {
        if (size == 0) {
            copy->ended = true;
            return;
        }
        for (size_t i = 0; i < size; i++)
            copy->in_order = copy->in_order && block[i] == (uint8_t)((copy->bytes + i) / 7);
        copy->bytes += size;
    }
}

static void test_env_posix_chan__streams_carry_every_byte(void **state)
{
    static uint8_t block[1 << 20];
    struct kit *kit = *state;
    for (int sockets = 0; sockets < 2; sockets++) {
        struct kelpie_op op = soon(kit);
        struct kelpie_error *err = NULL;
        struct klp_stream *writer;
        struct copy copy = {.kit = kit};
        struct klp_task *task;
        streams_open(kit, sockets, &copy.reader, &writer);
        for (size_t i = 0; i < sizeof(block); i++)
            block[i] = (uint8_t)(i / 7);
        assert_true(klp_task_spawn(kit->env, "copy", copy_run, &copy, &task, &err));
        KIT_OK(klp_stream_write(&op, writer, block, sizeof(block), &err));
        KIT_OK(klp_stream_write(&op, writer, block, 0, &err));
        klp_stream_close(writer);
        klp_task_join(task);
        assert_true(copy.in_order && copy.ended);
        assert_int_equal(copy.bytes, sizeof(block));
        klp_stream_close(copy.reader);
    }
}

static void test_env_posix_chan__streams_end(void **state)
{
    static char block[1 << 20];
    struct kit *kit = *state;
    for (int sockets = 0; sockets < 2; sockets++) {
        struct kelpie_op op = klp_op_plain(kit->env, 60);
        struct kelpie_error *err = NULL;
        struct klp_stream *reader, *writer;
        char text[8];
        size_t size = 9;
        streams_open(kit, sockets, &reader, &writer);
        KIT_FAILS(klp_stream_read(&op, reader, text, sizeof(text), &size, &err), &err,
                  KELPIE_E_TIMEOUT, "");
        op = klp_op_plain(kit->env, 60);
        KIT_FAILS(klp_stream_write(&op, writer, block, sizeof(block), &err), &err, KELPIE_E_TIMEOUT,
                  "");
        op = soon(kit);
        klp_stream_close(reader);
        KIT_FAILS(klp_stream_write(&op, writer, "x", 1, &err), &err, KELPIE_E_UNREACHABLE, "");
        klp_stream_close(writer);
        streams_open(kit, sockets, &reader, &writer);
        klp_stream_close(writer);
        KIT_OK(klp_stream_read(&op, reader, text, sizeof(text), &size, &err));
        assert_int_equal(size, 0);
        klp_stream_close(reader);
    }
    klp_stream_close(NULL);
}

static void test_env_posix_chan__stream_shutdown_wakes_both_ways(void **state)
{
    static char block[4 << 20];
    struct kit *kit = *state;
    for (int way = 0; way < 4; way++) {
        struct kelpie_op op = klp_op_plain(kit->env, 30000);
        struct kelpie_error *err = NULL;
        struct klp_stream *reader, *writer;
        struct klp_task *task;
        char text[8];
        size_t size;
        streams_open(kit, way & 1, &reader, &writer);
        struct later later = {.kit = kit, .stream = way & 2 ? writer : reader};
        uint64_t start = kit_ms(kit);
        assert_true(klp_task_spawn(kit->env, "later", act_later, &later, &task, &err));
        if (way & 2) {
            KIT_FAILS(klp_stream_write(&op, writer, block, sizeof(block), &err), &err,
                      KELPIE_E_UNREACHABLE, "");
            KIT_FAILS(klp_stream_write(&op, writer, "x", 1, &err), &err, KELPIE_E_UNREACHABLE, "");
        } else {
            KIT_FAILS(klp_stream_read(&op, reader, text, sizeof(text), &size, &err), &err,
                      KELPIE_E_UNREACHABLE, "shut down");
            KIT_FAILS(klp_stream_read(&op, reader, text, sizeof(text), &size, &err), &err,
                      KELPIE_E_UNREACHABLE, "shut down");
        }
        assert_in_range(kit_ms(kit) - start, 40, 900);
        klp_task_join(task);
        klp_stream_close(reader);
        klp_stream_close(writer);
    }
}

static void test_env_posix_chan__stream_open_takes_the_handle_also_on_failure(void **state)
{
    struct kit *kit = *state;
    struct kelpie_error *err = NULL;
    struct klp_stream *stream = NULL;
    int fd = open(kit->path, O_PATH); /* F_SETFL is refused on it */
    assert_true(fd >= 0);
    KIT_REFUSED(klp_stream_open(kit->env, klp_handle_from_fd(fd), &stream, &err), &err, KELPIE_E_IO,
                "stream");
    assert_int_equal(fcntl(fd, F_GETFD), -1);
    KIT_REFUSED(klp_stream_open(kit->env, KLP_NO_HANDLE, &stream, &err), &err, KELPIE_E_IO,
                "stream");
    assert_null(stream);
}

static void test_env_posix_chan__a_program_without_peers_says_so(void **state)
{
    struct kit *kit = *state;
    struct kelpie_op op = soon(kit);
    struct kelpie_error *err = NULL;
    struct klp_buf body = KLP_BUF_INIT(100);
    int status = 0;
    KIT_FAILS(klp_peer_call(&op, "https://other", "GET", "/", (struct klp_bytes){NULL, 0}, &status,
                            &body, &err),
              &err, KELPIE_E_UNREACHABLE, "https://other");
    klp_buf_finish(&body);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        KIT_TEST(test_env_posix_chan__messages_keep_their_bounds),
        KIT_TEST(test_env_posix_chan__largest_frame_passes),
        KIT_TEST(test_env_posix_chan__handles_travel),
        KIT_TEST(test_env_posix_chan__what_does_not_fit_is_dropped_whole),
        KIT_TEST(test_env_posix_chan__hostile_peers_leak_nothing),
        KIT_TEST(test_env_posix_chan__the_end_is_unreachable),
        KIT_TEST(test_env_posix_chan__waits_end_at_the_deadline),
        KIT_TEST(test_env_posix_chan__waits_end_at_a_cancel_at_once),
        KIT_TEST(test_env_posix_chan__shutdown_wakes_the_receiver),
        KIT_TEST(test_env_posix_chan__listener_is_private_and_leaves_nothing),
        KIT_TEST(test_env_posix_chan__stale_socket_is_replaced),
        KIT_TEST(test_env_posix_chan__stale_after_a_kill),
        KIT_TEST(test_env_posix_chan__only_dead_sockets_are_removed),
        KIT_TEST(test_env_posix_chan__busy_is_not_stale),
        KIT_TEST(test_env_posix_chan__of_many_that_start_at_once_one_wins),
        KIT_TEST(test_env_posix_chan__paths_longer_than_an_address),
        KIT_TEST(test_env_posix_chan__bad_socket_paths),
        KIT_TEST(test_env_posix_chan__streams_carry_every_byte),
        KIT_TEST(test_env_posix_chan__streams_end),
        KIT_TEST(test_env_posix_chan__stream_shutdown_wakes_both_ways),
        KIT_TEST(test_env_posix_chan__stream_open_takes_the_handle_also_on_failure),
        KIT_TEST(test_env_posix_chan__a_program_without_peers_says_so),
    };
    return cmocka_run_group_tests_name("env_posix_chan", tests, NULL, NULL);
}
