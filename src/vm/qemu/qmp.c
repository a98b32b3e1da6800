/* SPDX-License-Identifier: Apache-2.0 */
/* A small QMP client: lines of JSON both ways, one call at a time, ids, events kept as facts, and
 * descriptors beside commands. Whoever owns the connection has a thread that pumps. */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fmt.h"
#include "base/limits.h"
#include "vm/qemu/inside.h"

#define LINE_MAX_BYTES KLP_MIB
#define DEPTH_MAX 16
#define READ_SIZE 16384

struct klp_qmp {
    struct klp_env *env;
    int fd;
    struct klp_buf input;    /* the pumping thread's alone */
    struct klp_mutex *mutex; /* all below */
    struct klp_cond *changed;
    struct klp_json *greeting;
    struct klp_json *answer;  /* to `wanted` */
    uint64_t next_id, wanted; /* 0 = nobody waits */
    bool calling;             /* somebody has the connection */
    struct klp_qmp_facts facts;
};

struct klp_qmp *klp_qmp_create(struct klp_env *env, int fd)
{
    struct klp_qmp *qmp = KLP_NEW(struct klp_qmp);
    *qmp = (struct klp_qmp){.env = env,
                            .fd = fd,
                            .input = KLP_BUF_INIT(LINE_MAX_BYTES + READ_SIZE),
                            .mutex = klp_mutex_create(env),
                            .changed = klp_cond_create(env),
                            .next_id = 1};
    return qmp;
}

void klp_qmp_destroy(struct klp_qmp *qmp)
{
    if (qmp == NULL)
        return;
    close(qmp->fd);
    klp_buf_finish(&qmp->input);
    klp_json_free(qmp->greeting);
    klp_json_free(qmp->answer);
    klp_cond_destroy(qmp->changed);
    klp_mutex_destroy(qmp->mutex);
    klp_mem_free(qmp);
}

int klp_qmp_fd(const struct klp_qmp *qmp)
{
    return qmp->fd;
}

void klp_qmp_facts(struct klp_qmp *qmp, struct klp_qmp_facts *out)
{
    KLP_LOCKED (qmp->mutex) {
        *out = qmp->facts;
    }
}

/* ---- what QEMU says */

static void event_note(struct klp_qmp *qmp, const char *event, const struct klp_json *data)
{
    const char *text = NULL;
    if (strcmp(event, "MIGRATION") == 0) {
        if (klp_json_get_text(data, "status", KLP_JSON_REQUIRED, &text, NULL))
            klp_format(qmp->facts.migration, sizeof(qmp->facts.migration), "%s", text);
    } else if (strcmp(event, "GUEST_PANICKED") == 0) {
        qmp->facts.panicked = true;
    } else if (strcmp(event, "SHUTDOWN") == 0) {
        qmp->facts.shut_down = true;
        if (klp_json_get_text(data, "reason", KLP_JSON_REQUIRED, &text, NULL))
            klp_format(qmp->facts.shutdown_reason, sizeof(qmp->facts.shutdown_reason), "%s", text);
    }
}

/* Under the mutex. Takes the message. */
static void message_take(struct klp_qmp *qmp, struct klp_json *message)
{
    uint64_t id = 0;
    const char *event = klp_json_text(klp_json_find(message, "event"));
    if (event != NULL) {
        event_note(qmp, event, klp_json_find(message, "data"));
    } else if (klp_json_find(message, "QMP") != NULL && qmp->greeting == NULL) {
        qmp->greeting = message;
        message = NULL;
    } else if (klp_json_get_u64(message, "id", KLP_JSON_OPTIONAL, &id, NULL) && id != 0 &&
               id == qmp->wanted) {
        klp_json_free(qmp->answer);
        qmp->answer = message;
        qmp->wanted = 0;
        message = NULL;
    }
    klp_json_free(message); /* an answer that nobody waits for any more */
    klp_cond_wake(qmp->changed);
}

static bool line_take(struct klp_qmp *qmp, const void *line, size_t size)
{
    struct klp_json *message;
    if (!klp_json_parse(line, size, DEPTH_MAX, &message, NULL))
        return false;
    KLP_LOCKED (qmp->mutex) {
        message_take(qmp, message);
    }
    return true;
}

static bool lines_take(struct klp_qmp *qmp)
{
    size_t at = 0;
    const uint8_t *end;
    while (at < qmp->input.size &&
           (end = memchr(qmp->input.data + at, '\n', qmp->input.size - at)) != NULL) {
        size_t size = (size_t)(end - (qmp->input.data + at));
        if (size > 1 && !line_take(qmp, qmp->input.data + at, size))
            return false;
        at += size + 1;
    }
    klp_buf_drop_front(&qmp->input, at);
    return qmp->input.size <= LINE_MAX_BYTES;
}

/* False = end of stream, an error, or no QMP. */
static bool input_read(struct klp_qmp *qmp)
{
    for (;;) {
        void *room = klp_buf_reserve(&qmp->input, READ_SIZE);
        if (room == NULL)
            return false;
        ssize_t got = recv(qmp->fd, room, READ_SIZE, MSG_DONTWAIT);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return true;
        if (got <= 0)
            return false;
        klp_buf_grow(&qmp->input, (size_t)got);
        if (!lines_take(qmp))
            return false;
    }
}

bool klp_qmp_pump(struct klp_qmp *qmp)
{
    if (input_read(qmp))
        return true;
    KLP_LOCKED (qmp->mutex) {
        qmp->facts.over = true;
        klp_cond_wake(qmp->changed);
    }
    return false;
}

/* ---- what it is told */

static ssize_t part_send(int fd, const void *data, size_t size, int passed_fd)
{
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct iovec part = {(void *)(uintptr_t)data, size};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (passed_fd >= 0) {
        message.msg_control = control.room;
        message.msg_controllen = sizeof(control.room);
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(header), &passed_fd, sizeof(int));
    }
    return sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* *sent tells whether a byte of it has left. */
static kelpie_outcome line_send(const struct kelpie_op *op, struct klp_qmp *qmp,
                                const struct klp_buf *line, int passed_fd, bool *sent,
                                struct kelpie_error **err)
{
    *sent = false;
    for (size_t at = 0; at < line->size;) {
        ssize_t put = part_send(qmp->fd, line->data + at, line->size - at, *sent ? -1 : passed_fd);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            KLP_TRY(klp_posix_wait(op, qmp->fd, POLLOUT, "talking to QEMU", err));
            continue;
        }
        if (put < 0 && (errno == EPIPE || errno == ECONNRESET))
            return klp_fail(err, KELPIE_E_CRASHED, "QEMU is gone");
        if (put < 0)
            return klp_posix_fail(err, errno, "cannot talk to QEMU");
        *sent = true;
        at += (size_t)put;
    }
    return KLP_OK;
}

static kelpie_outcome connection_take(const struct kelpie_op *op, struct klp_qmp *qmp,
                                      uint64_t *out_id, struct kelpie_error **err)
{
    kelpie_outcome outcome = KLP_OK;
    klp_mutex_lock(qmp->mutex);
    while (qmp->calling && kelpie_is_ok(outcome))
        outcome = klp_cond_wait(op, qmp->changed, qmp->mutex, err);
    if (kelpie_is_ok(outcome)) {
        qmp->calling = true;
        *out_id = qmp->wanted = qmp->next_id++;
        klp_json_free(KLP_TAKE(&qmp->answer));
    }
    klp_mutex_unlock(qmp->mutex);
    return outcome;
}

static void connection_give(struct klp_qmp *qmp)
{
    KLP_LOCKED (qmp->mutex) {
        qmp->calling = false;
        qmp->wanted = 0;
        klp_cond_wake(qmp->changed);
    }
}

static kelpie_outcome answer_wait(const struct kelpie_op *op, struct klp_qmp *qmp,
                                  const char *command, struct klp_json **out,
                                  struct kelpie_error **err)
{
    kelpie_outcome outcome = KLP_OK;
    bool over = false;
    KLP_AUTO(kelpie_error) struct kelpie_error *waiting = NULL;
    klp_mutex_lock(qmp->mutex);
    while (qmp->answer == NULL && !qmp->facts.over && kelpie_is_ok(outcome))
        outcome = klp_cond_wait(op, qmp->changed, qmp->mutex, &waiting);
    *out = KLP_TAKE(&qmp->answer);
    over = qmp->facts.over;
    klp_mutex_unlock(qmp->mutex);
    if (*out != NULL)
        return KLP_OK;
    if (over)
        return klp_fail(err, KELPIE_E_CRASHED, "QEMU ended before it answered %s", command);
    return klp_unknown(err, "QEMU was told to %s and has not answered: %s", command,
                       kelpie_error_message(waiting));
}

static kelpie_outcome answer_judge(const struct klp_json *answer, const char *command,
                                   struct klp_json **out, struct kelpie_error **err)
{
    const struct klp_json *error = klp_json_find(answer, "error");
    const struct klp_json *value = klp_json_find(answer, "return");
    if (error != NULL) {
        const char *kind = klp_json_text(klp_json_find(error, "class"));
        const char *text = klp_json_text(klp_json_find(error, "desc"));
        bool missing = kind != NULL && strcmp(kind, "CommandNotFound") == 0;
        return klp_fail(err, missing ? KELPIE_E_UNSUPPORTED : KELPIE_E_IO, "QEMU refuses %s: %s",
                        command, text != NULL ? text : "no reason given");
    }
    if (value == NULL)
        return klp_fail(err, KELPIE_E_PROTOCOL, "QEMU's answer to %s has no value", command);
    if (out != NULL)
        *out = klp_json_copy(value);
    return KLP_OK;
}

static void command_print(struct klp_buf *out, const char *command, struct klp_json *arguments,
                          uint64_t id)
{
    KLP_AUTO(json) struct klp_json *message = klp_json_object();
    klp_json_set_text(message, "execute", command);
    if (arguments != NULL)
        klp_json_set(message, "arguments", arguments);
    klp_json_set_u64(message, "id", id);
    klp_json_print(message, out);
    klp_buf_append_text(out, "\n");
}

static kelpie_outcome exchange(const struct kelpie_op *op, struct klp_qmp *qmp, const char *command,
                               const struct klp_buf *line, int fd, struct klp_json **out,
                               struct kelpie_error **err)
{
    KLP_AUTO(json) struct klp_json *answer = NULL;
    bool sent;
    kelpie_outcome outcome = line_send(op, qmp, line, fd, &sent, err);
    if (!kelpie_is_ok(outcome)) {
        if (sent) /* half a line has left: nothing that follows would be understood */
            shutdown(qmp->fd, SHUT_RDWR);
        return klp_wrap(err, outcome, "cannot send %s", command);
    }
    KLP_TRY(answer_wait(op, qmp, command, &answer, err));
    return answer_judge(answer, command, out, err);
}

kelpie_outcome klp_qmp_call(const struct kelpie_op *op, struct klp_qmp *qmp, const char *command,
                            struct klp_json *arguments, int fd, struct klp_json **out,
                            struct kelpie_error **err)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf line = KLP_BUF_INIT(LINE_MAX_BYTES);
    uint64_t id = 0;
    kelpie_outcome outcome = connection_take(op, qmp, &id, err);
    if (!kelpie_is_ok(outcome)) {
        klp_json_free(arguments);
        return outcome;
    }
    command_print(&line, command, arguments, id);
    if (klp_buf_check(&line, command, err))
        outcome = exchange(op, qmp, command, &line, fd, out, err);
    else
        outcome = (kelpie_outcome){KELPIE_FAIL};
    connection_give(qmp);
    return outcome;
}

void klp_qmp_post(struct klp_qmp *qmp, const char *command)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf line = KLP_BUF_INIT(KLP_KIB);
    struct kelpie_op now = klp_op_plain(qmp->env, 0);
    uint64_t id = 0;
    bool sent;
    KLP_LOCKED (qmp->mutex) {
        id = qmp->next_id++;
    }
    command_print(&line, command, NULL, id);
    if (!kelpie_is_ok(line_send(&now, qmp, &line, -1, &sent, NULL)) && sent)
        shutdown(qmp->fd, SHUT_RDWR);
}

/* ---- beginning, and waiting for events */

static void version_read(const struct klp_json *greeting, char *out, size_t size)
{
    const struct klp_json *version =
        klp_json_find(klp_json_find(klp_json_find(greeting, "QMP"), "version"), "qemu");
    uint64_t parts[3] = {0};
    KLP_IGNORE(klp_json_get_u64(version, "major", KLP_JSON_OPTIONAL, &parts[0], NULL));
    KLP_IGNORE(klp_json_get_u64(version, "minor", KLP_JSON_OPTIONAL, &parts[1], NULL));
    KLP_IGNORE(klp_json_get_u64(version, "micro", KLP_JSON_OPTIONAL, &parts[2], NULL));
    klp_format(out, size, "%llu.%llu.%llu", (unsigned long long)parts[0],
               (unsigned long long)parts[1], (unsigned long long)parts[2]);
}

kelpie_outcome klp_qmp_open(const struct kelpie_op *op, struct klp_qmp *qmp, char *version,
                            size_t version_size, struct kelpie_error **err)
{
    kelpie_outcome outcome = KLP_OK;
    bool greeted = false;
    klp_mutex_lock(qmp->mutex);
    while (qmp->greeting == NULL && !qmp->facts.over && kelpie_is_ok(outcome))
        outcome = klp_cond_wait(op, qmp->changed, qmp->mutex, err);
    greeted = qmp->greeting != NULL;
    if (greeted && version != NULL)
        version_read(qmp->greeting, version, version_size);
    klp_mutex_unlock(qmp->mutex);
    KLP_TRY(outcome);
    if (!greeted)
        return klp_fail(err, KELPIE_E_CRASHED, "QEMU ended before it greeted");
    return klp_qmp_call(op, qmp, "qmp_capabilities", NULL, -1, NULL, err);
}

kelpie_outcome klp_qmp_migration_wait(const struct kelpie_op *op, struct klp_qmp *qmp,
                                      struct kelpie_error **err)
{
    kelpie_outcome outcome = KLP_OK;
    bool completed = false, failed = false, over = false;
    klp_mutex_lock(qmp->mutex);
    for (;;) {
        completed = strcmp(qmp->facts.migration, "completed") == 0;
        failed = strcmp(qmp->facts.migration, "failed") == 0;
        over = qmp->facts.over;
        if (completed || failed || over || !kelpie_is_ok(outcome))
            break;
        outcome = klp_cond_wait(op, qmp->changed, qmp->mutex, err);
    }
    klp_mutex_unlock(qmp->mutex);
    if (completed || failed || over)
        klp_error_clear(err); /* it came at the last moment */
    if (completed)
        return KLP_OK;
    if (failed)
        return klp_fail(err, KELPIE_E_CORRUPT, "QEMU cannot load the device state");
    if (over)
        return klp_fail(err, KELPIE_E_CRASHED, "QEMU ended while it loaded the device state");
    return outcome;
}
