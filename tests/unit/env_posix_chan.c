/* SPDX-License-Identifier: Apache-2.0 */
/* Channels with handles: every wait ends by deadline, cancel or the other side's death, and no
 * descriptor leaks on any of these ways, whatever the other side sends. */
#include "env_kit.h"

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
        KIT_TEST(test_env_posix_chan__a_program_without_peers_says_so),
    };
    return cmocka_run_group_tests_name("env_posix_chan", tests, NULL, NULL);
}
