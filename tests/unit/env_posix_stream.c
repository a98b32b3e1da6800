/* SPDX-License-Identifier: Apache-2.0 */
/* Streams over sockets and pipes: every byte in order, and every wait ends by deadline, shutdown or
 * the other side's end. */
#include "env_kit.h"

#include <sys/socket.h>

static struct kelpie_op soon(const struct kit *kit)
{
    return klp_op_plain(kit->env, 10000);
}

struct later {
    struct kit *kit;
    struct klp_stream *stream;
};

static void act_later(void *arg)
{
    struct later *later = arg;
    struct kelpie_op op = soon(later->kit);
    KLP_IGNORE(klp_sleep_until(&op, klp_boot_ns(later->kit->env) + 50 * KLP_MS, NULL));
    klp_stream_shutdown(later->stream);
}

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

static void test_env_posix_stream__carries_every_byte(void **state)
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

static void test_env_posix_stream__ends(void **state)
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

static void test_env_posix_stream__shutdown_wakes_both_ways(void **state)
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

static void test_env_posix_stream__open_takes_the_handle_also_on_failure(void **state)
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        KIT_TEST(test_env_posix_stream__carries_every_byte),
        KIT_TEST(test_env_posix_stream__ends),
        KIT_TEST(test_env_posix_stream__shutdown_wakes_both_ways),
        KIT_TEST(test_env_posix_stream__open_takes_the_handle_also_on_failure),
    };
    return cmocka_run_group_tests_name("env_posix_stream", tests, NULL, NULL);
}
