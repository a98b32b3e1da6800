/* SPDX-License-Identifier: Apache-2.0 */
/* The QMP client against a QEMU of our own making: a script that reads lines and answers as told.
 */
#include <poll.h>
#include <sys/socket.h>

#include "env_kit.h"

#include "base/limits.h"
#include "vm/qemu/inside.h"

#define GREETING                                                                                   \
    "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 22, \"minor\": 2, \"major\": 7}, "             \
    "\"package\": \"\"}, \"capabilities\": [\"oob\"]}}\r\n"

struct fake {
    struct kit *kit;
    struct klp_qmp *qmp;
    int fd; /* QEMU's end */
    struct klp_task *pump, *script;
    const char *const *answers; /* one a line received; NULL = the end: silence */
    bool hang_up;               /* at the end */
    char received[4096];
    int passed_fd;
};

static void pump_run(void *arg)
{
    struct fake *fake = arg;
    struct kelpie_op op = klp_op_plain(fake->kit->env, 20000);
    while (kelpie_is_ok(klp_posix_wait(&op, klp_qmp_fd(fake->qmp), POLLIN, "pumping", NULL)))
        if (!klp_qmp_pump(fake->qmp))
            return;
}

static bool line_receive(struct fake *fake)
{
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof(int))];
    } control;
    size_t size = strlen(fake->received);
    for (;;) {
        struct iovec part = {fake->received + size, 1};
        struct msghdr message = {.msg_iov = &part,
                                 .msg_iovlen = 1,
                                 .msg_control = control.room,
                                 .msg_controllen = sizeof(control.room)};
        struct pollfd polled = {.fd = fake->fd, .events = POLLIN};
        poll(&polled, 1, -1);
        if (size + 1 >= sizeof(fake->received) || recvmsg(fake->fd, &message, 0) != 1)
            return false;
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        if (header != NULL)
            memcpy(&fake->passed_fd, CMSG_DATA(header), sizeof(int));
        if (fake->received[size++] == '\n')
            return true;
    }
}

static void script_run(void *arg)
{
    struct fake *fake = arg;
    for (const char *const *answer = fake->answers; *answer != NULL; answer++) {
        if (!line_receive(fake))
            return;
        assert_int_equal(write(fake->fd, *answer, strlen(*answer)), strlen(*answer));
    }
    if (fake->hang_up)
        shutdown(fake->fd, SHUT_RDWR);
}

static void fake_open(struct fake *fake, void **state, const char *greeting,
                      const char *const *answers, bool hang_up)
{
    int pair[2];
    *fake = (struct fake){.kit = *state, .answers = answers, .hang_up = hang_up, .passed_fd = -1};
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
    fake->fd = pair[1];
    fake->qmp = klp_qmp_create(fake->kit->env, pair[0]);
    assert_true(klp_task_spawn(fake->kit->env, "pump", pump_run, fake, &fake->pump, NULL));
    assert_int_equal(write(fake->fd, greeting, strlen(greeting)), strlen(greeting));
    assert_true(klp_task_spawn(fake->kit->env, "script", script_run, fake, &fake->script, NULL));
}

static void fake_close(struct fake *fake)
{
    shutdown(fake->fd, SHUT_RDWR);
    klp_task_join(fake->pump);
    if (fake->script != NULL)
        klp_task_join(fake->script);
    klp_qmp_destroy(fake->qmp);
    close(fake->fd);
    if (fake->passed_fd >= 0)
        close(fake->passed_fd);
}

static struct kelpie_op op_of(struct fake *fake, uint64_t ms)
{
    return klp_op_plain(fake->kit->env, ms);
}

static void test_vm_qemu_qmp__greets_calls_and_passes_descriptors(void **state)
{
    static const char *const answers[] = {
        "{\"return\": {}, \"id\": 1}\n",
        "{\"timestamp\": {\"seconds\": 1, \"microseconds\": 2}, \"event\": \"STOP\"}\r\n"
        "{\"return\": {\"fdset-id\": 3, \"fd\": 9}, \"id\": 2}\r\n",
        NULL};
    struct fake fake;
    char version[64];
    fake_open(&fake, state, GREETING, answers, false);
    struct kelpie_op op = op_of(&fake, 5000);
    assert_true(kelpie_is_ok(klp_qmp_open(&op, fake.qmp, version, sizeof(version), NULL)));
    assert_string_equal(version, "7.2.22");
    struct klp_json *arguments = klp_json_object(), *out = NULL;
    uint64_t set = 0;
    klp_json_set_text(arguments, "opaque", "a \"quoted\" word");
    assert_true(kelpie_is_ok(klp_qmp_call(&op, fake.qmp, "add-fd", arguments, 1, &out, NULL)));
    assert_true(klp_json_get_u64(out, "fdset-id", true, &set, NULL));
    assert_int_equal(set, 3);
    klp_json_free(out);
    klp_task_join(fake.script);
    fake.script = NULL;
    assert_non_null(strstr(fake.received, "\"execute\":\"qmp_capabilities\""));
    assert_non_null(strstr(fake.received, "\"opaque\":\"a \\\"quoted\\\" word\""));
    assert_true(fake.passed_fd >= 0);
    fake_close(&fake);
}

static void test_vm_qemu_qmp__errors_have_codes(void **state)
{
    static const char *const answers[] = {
        "{\"return\": {}, \"id\": 1}\n",
        "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"no such\"}, \"id\": 2}\n",
        "{\"error\": {\"class\": \"GenericError\", \"desc\": \"a reason\"}, \"id\": 3}\n",
        "{\"id\": 4}\n", NULL};
    struct fake fake;
    struct kelpie_error *error = NULL;
    fake_open(&fake, state, GREETING, answers, false);
    struct kelpie_op op = op_of(&fake, 5000);
    assert_true(kelpie_is_ok(klp_qmp_open(&op, fake.qmp, NULL, 0, NULL)));
    const enum kelpie_code codes[] = {KELPIE_E_UNSUPPORTED, KELPIE_E_IO, KELPIE_E_PROTOCOL};
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(klp_qmp_call(&op, fake.qmp, "stop", NULL, -1, NULL, &error).kind,
                         KELPIE_FAIL);
        assert_int_equal(kelpie_error_code(error), codes[i]);
        if (i == 1)
            assert_string_equal(kelpie_error_message(error), "QEMU refuses stop: a reason");
        klp_error_clear(&error);
    }
    fake_close(&fake);
}

static void test_vm_qemu_qmp__a_missing_answer_is_unknown_and_a_late_one_dropped(void **state)
{
    static const char *const answers[] = {
        "{\"return\": {}, \"id\": 1}\n", "",
        "{\"return\": {\"old\": true}, \"id\": 2}\n{\"return\": {\"new\": true}, \"id\": 3}\n",
        NULL};
    struct fake fake;
    struct kelpie_error *error = NULL;
    struct klp_json *out = NULL;
    fake_open(&fake, state, GREETING, answers, false);
    struct kelpie_op op = op_of(&fake, 5000);
    assert_true(kelpie_is_ok(klp_qmp_open(&op, fake.qmp, NULL, 0, NULL)));
    struct kelpie_op shortly = op_of(&fake, 50);
    assert_true(
        kelpie_is_unknown(klp_qmp_call(&shortly, fake.qmp, "stop", NULL, -1, NULL, &error)));
    assert_int_equal(kelpie_error_code(error), KELPIE_E_OUTCOME_UNKNOWN);
    klp_error_clear(&error);
    assert_true(kelpie_is_ok(klp_qmp_call(&op, fake.qmp, "cont", NULL, -1, &out, NULL)));
    assert_non_null(klp_json_find(out, "new"));
    klp_json_free(out);
    fake_close(&fake);
}

static void test_vm_qemu_qmp__events_become_facts(void **state)
{
    static const char *const answers[] = {
        "{\"return\": {}, \"id\": 1}\n",
        "{\"return\": {}, \"id\": 2}\n"
        "{\"event\": \"MIGRATION\", \"data\": {\"status\": \"active\"}}\n"
        "{\"event\": \"MIGRATION\", \"data\": {\"status\": \"completed\"}}\n"
        "{\"event\": \"GUEST_PANICKED\", \"data\": {\"action\": \"poweroff\"}}\n"
        "{\"event\": \"SHUTDOWN\", \"data\": {\"guest\": true, \"reason\": \"guest-panic\"}}\n",
        NULL};
    struct fake fake;
    struct klp_qmp_facts facts;
    struct kelpie_error *error = NULL;
    fake_open(&fake, state, GREETING, answers, true);
    struct kelpie_op op = op_of(&fake, 5000);
    assert_true(kelpie_is_ok(klp_qmp_open(&op, fake.qmp, NULL, 0, NULL)));
    assert_true(
        kelpie_is_ok(klp_qmp_call(&op, fake.qmp, "migrate-incoming", NULL, -1, NULL, NULL)));
    assert_true(kelpie_is_ok(klp_qmp_migration_wait(&op, fake.qmp, &error)));
    assert_null(error);
    do
        klp_qmp_facts(fake.qmp, &facts);
    while (!facts.over);
    assert_true(facts.panicked);
    assert_true(facts.shut_down);
    assert_string_equal(facts.shutdown_reason, "guest-panic");
    assert_int_equal(klp_qmp_call(&op, fake.qmp, "stop", NULL, -1, NULL, &error).kind, KELPIE_FAIL);
    assert_int_equal(kelpie_error_code(error), KELPIE_E_CRASHED);
    klp_error_clear(&error);
    fake_close(&fake);
}

static void test_vm_qemu_qmp__a_migration_that_fails_or_hangs(void **state)
{
    static const char *const answers[] = {"{\"return\": {}, \"id\": 1}\n",
                                          "{\"event\": \"MIGRATION\", \"data\": {\"status\": "
                                          "\"active\"}}\n{\"return\": {}, \"id\": 2}\n",
                                          "{\"event\": \"MIGRATION\", \"data\": {\"status\": "
                                          "\"failed\"}}\n{\"return\": {}, \"id\": 3}\n",
                                          NULL};
    struct fake fake;
    struct kelpie_error *error = NULL;
    fake_open(&fake, state, GREETING, answers, false);
    struct kelpie_op op = op_of(&fake, 5000), shortly = op_of(&fake, 50);
    assert_true(kelpie_is_ok(klp_qmp_open(&op, fake.qmp, NULL, 0, NULL)));
    assert_true(kelpie_is_ok(klp_qmp_call(&op, fake.qmp, "a", NULL, -1, NULL, NULL)));
    assert_false(kelpie_is_ok(klp_qmp_migration_wait(&shortly, fake.qmp, &error)));
    assert_int_equal(kelpie_error_code(error), KELPIE_E_TIMEOUT);
    klp_error_clear(&error);
    assert_true(kelpie_is_ok(klp_qmp_call(&op, fake.qmp, "b", NULL, -1, NULL, NULL)));
    assert_false(kelpie_is_ok(klp_qmp_migration_wait(&op, fake.qmp, &error)));
    assert_int_equal(kelpie_error_code(error), KELPIE_E_CORRUPT);
    klp_error_clear(&error);
    fake_close(&fake);
}

/* What is no QMP ends the connection; nothing hangs, nothing grows. */
static void test_vm_qemu_qmp__garbage_ends_the_connection(void **state)
{
    static const char *const none[] = {NULL};
    char *huge = klp_mem_alloc(KLP_MIB + 100000);
    memset(huge, ' ', KLP_MIB + 99999);
    const char *const greetings[] = {"HTTP/1.0 200 OK\r\n", "{\"QMP\": \n",
                                     "[[[[[[[[[[[[[[[[[[[[[\n"};
    for (size_t i = 0; i < KLP_COUNT(greetings); i++) {
        struct fake fake;
        struct kelpie_error *error = NULL;
        fake_open(&fake, state, greetings[i], none, false);
        struct kelpie_op op = op_of(&fake, 5000);
        assert_false(kelpie_is_ok(klp_qmp_open(&op, fake.qmp, NULL, 0, &error)));
        assert_int_equal(kelpie_error_code(error), KELPIE_E_CRASHED);
        klp_error_clear(&error);
        fake_close(&fake);
    }
    struct fake fake;
    struct kelpie_error *error = NULL;
    fake_open(&fake, state, "", none, false);
    struct kelpie_op op = op_of(&fake, 5000);
    size_t sent = 0;
    for (;;) { /* one line without an end */
        ssize_t put = send(fake.fd, huge, 65536, MSG_NOSIGNAL);
        struct klp_qmp_facts facts;
        sent += put > 0 ? (size_t)put : 0;
        klp_qmp_facts(fake.qmp, &facts);
        if (facts.over)
            break;
        assert_true(sent < 4 * KLP_MIB);
    }
    assert_true(sent >= KLP_MIB);
    assert_false(kelpie_is_ok(klp_qmp_open(&op, fake.qmp, NULL, 0, &error)));
    klp_error_clear(&error);
    fake_close(&fake);
    klp_mem_free(huge);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        KIT_TEST(test_vm_qemu_qmp__greets_calls_and_passes_descriptors),
        KIT_TEST(test_vm_qemu_qmp__errors_have_codes),
        KIT_TEST(test_vm_qemu_qmp__a_missing_answer_is_unknown_and_a_late_one_dropped),
        KIT_TEST(test_vm_qemu_qmp__events_become_facts),
        KIT_TEST(test_vm_qemu_qmp__a_migration_that_fails_or_hangs),
        KIT_TEST(test_vm_qemu_qmp__garbage_ends_the_connection),
    };
    return cmocka_run_group_tests_name("vm_qemu_qmp", tests, NULL, NULL);
}
