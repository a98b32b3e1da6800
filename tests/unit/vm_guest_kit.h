/* SPDX-License-Identifier: Apache-2.0 */
/* A guest that says exactly what a test wants: the other end of a session's stream in the test's
 * own hands. Calls on the session run in tasks; the test reads what they sent and answers it. */
#ifndef VM_GUEST_KIT_H
#define VM_GUEST_KIT_H

#include <poll.h>
#include <sys/socket.h>

#include "env_kit.h"

#include "vm/guest.h"
#include "vm/session.h"

#define GUEST_WAIT_MS 10000
#define GUEST_ALL_CAPS 0x1ffu

struct guest_kit {
    struct kit *kit;
    struct klp_env *env;
    struct klp_guest *guest;
    struct klp_stream *stream; /* before the session took it */
    int fd;                    /* the guest's end */
    uint8_t in[256 * 1024];
    size_t in_size;
    struct klp_guest_frame frame; /* read last; its body is in `body` */
    uint8_t body[KLP_FRAME_BODY_MAX];
};

/* ---- what the session sends */

/* True when a whole frame came within that time. */
static inline bool guest_next(struct guest_kit *g, int within_ms)
{
    for (;;) {
        struct klp_guest_frame frame;
        int size = klp_guest_frame_next(g->in, g->in_size, &frame, NULL);
        assert_true(size >= 0);
        if (size > 0) {
            memcpy(g->body, frame.body.data, frame.body.size);
            g->frame = frame;
            g->frame.body.data = g->body;
            g->in_size -= (size_t)size;
            memmove(g->in, g->in + size, g->in_size);
            return true;
        }
        struct pollfd polled = {g->fd, POLLIN, 0};
        if (poll(&polled, 1, within_ms) != 1)
            return false;
        ssize_t got = read(g->fd, g->in + g->in_size, sizeof(g->in) - g->in_size);
        if (got <= 0)
            return false;
        g->in_size += (size_t)got;
    }
}

/* The next frame is of that type; returns its channel. */
static inline uint32_t guest_expect_at(struct guest_kit *g, uint16_t type, int line)
{
    if (!guest_next(g, GUEST_WAIT_MS))
        fail_msg("line %d: no frame came where %u was due", line, type);
    if (g->frame.type != type)
        fail_msg("line %d: frame of type %u where %u was due", line, g->frame.type, type);
    return g->frame.channel;
}
#define guest_expect(g, type) guest_expect_at(g, type, __LINE__)

/* ---- what the guest says */

/* Gives up when nobody takes them: the session is over. */
static inline void guest_say_bytes(struct guest_kit *g, const void *bytes, size_t size)
{
    for (size_t at = 0; at < size;) {
        struct pollfd polled = {g->fd, POLLOUT, 0};
        bool writable = poll(&polled, 1, 1000) == 1;
        ssize_t put =
            writable ? send(g->fd, (const char *)bytes + at, size - at, MSG_NOSIGNAL | MSG_DONTWAIT)
                     : -1;
        if (put <= 0)
            return;
        at += (size_t)put;
    }
}

static inline void guest_say(struct guest_kit *g, uint16_t type, uint8_t flags, uint32_t channel,
                             const void *body, size_t size)
{
    struct klp_buf out = KLP_BUF_INIT(128 * 1024);
    klp_guest_frame_append(&out, type, flags, channel, (struct klp_bytes){body, size});
    guest_say_bytes(g, out.data, out.size);
    klp_buf_finish(&out);
}

/* Pairs of tag and number, ended by tag 0. */
static inline void guest_say_numbers(struct guest_kit *g, uint16_t type, uint32_t channel, ...)
{
    struct klp_buf body = KLP_BUF_INIT(1024);
    va_list args;
    va_start(args, channel);
    for (int tag = va_arg(args, int); tag != 0; tag = va_arg(args, int))
        klp_field_append_u64(&body, (uint16_t)tag, va_arg(args, uint64_t));
    va_end(args);
    guest_say(g, type, 0, channel, body.data, body.size);
    klp_buf_finish(&body);
}

static inline void guest_say_exit(struct guest_kit *g, uint32_t channel, uint64_t code)
{
    guest_say_numbers(g, KLP_GUEST_EXIT, channel, KLP_TAG_CODE, code, 0);
}

static inline void guest_say_error(struct guest_kit *g, uint32_t channel, const char *code,
                                   const char *text)
{
    struct klp_buf body = KLP_BUF_INIT(8192);
    klp_field_append_text(&body, KLP_TAG_ERROR, code);
    klp_field_append_text(&body, KLP_TAG_TEXT, text);
    guest_say(g, KLP_GUEST_ERROR, 0, channel, body.data, body.size);
    klp_buf_finish(&body);
}

static inline void guest_ack(struct guest_kit *g, struct klp_bytes nonce, uint64_t version,
                             uint64_t caps)
{
    struct klp_buf body = KLP_BUF_INIT(1024);
    klp_field_append(&body, KLP_TAG_NONCE, nonce.data, nonce.size);
    klp_field_append_u64(&body, KLP_TAG_VERSION, version);
    klp_field_append_u64(&body, KLP_TAG_CAPS, caps);
    klp_field_append_text(&body, KLP_TAG_ARCH, "x86_64");
    klp_field_append_u64(&body, KLP_TAG_MAIN_STATE, KLP_MAIN_RUNNING);
    guest_say(g, KLP_GUEST_HELLO_ACK, 0, 0, body.data, body.size);
    klp_buf_finish(&body);
}

static inline struct klp_bytes guest_hello_nonce(struct guest_kit *g)
{
    struct klp_bytes nonce;
    guest_expect(g, KLP_GUEST_HELLO);
    assert_true(klp_field_find(g->frame.body, KLP_TAG_NONCE, &nonce));
    assert_true(nonce.size >= 8 && nonce.size <= 64);
    return nonce;
}

/* ---- the session */

struct guest_opening {
    struct guest_kit *g;
    struct kelpie_op op;
    kelpie_outcome outcome;
    struct kelpie_error *error;
};

static inline void guest_open_run(void *arg)
{
    struct guest_opening *opening = arg;
    opening->outcome = klp_guest_open(&opening->op, opening->g->env, opening->g->stream,
                                      &opening->g->guest, &opening->error);
}

static inline struct klp_task *guest_open_begin(struct guest_kit *g, struct guest_opening *opening)
{
    struct klp_task *task;
    *opening = (struct guest_opening){.g = g, .op = klp_op_plain(g->env, GUEST_WAIT_MS)};
    assert_true(klp_task_spawn(g->env, "open", guest_open_run, opening, &task, NULL));
    return task;
}

static inline void guest_begin(struct guest_kit *g, uint64_t caps)
{
    struct guest_opening opening;
    struct klp_task *task = guest_open_begin(g, &opening);
    guest_ack(g, guest_hello_nonce(g), KLP_GUEST_VERSION, caps);
    klp_task_join(task);
    assert_true(kelpie_is_ok(opening.outcome));
    assert_true(klp_guest_is_alive(g->guest));
}

static inline int guest_setup_bare(void **state)
{
    struct guest_kit *g = calloc(1, sizeof(*g));
    int fds[2];
    void *kit = NULL;
    if (g == NULL || kit_setup(&kit) != 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, fds) != 0)
        return -1;
    g->kit = kit;
    g->env = g->kit->env;
    g->fd = fds[0];
    *state = g;
    return klp_stream_open(g->env, klp_handle_from_fd(fds[1]), &g->stream, NULL) ? 0 : -1;
}

static inline int guest_setup(void **state)
{
    if (guest_setup_bare(state) != 0)
        return -1;
    guest_begin(*state, GUEST_ALL_CAPS);
    return 0;
}

static inline int guest_teardown(void **state)
{
    struct guest_kit *g = *state;
    void *kit = g->kit;
    klp_guest_close(g->guest);
    close(g->fd);
    free(g);
    return kit_teardown(&kit);
}

#define GUEST_TEST(test) cmocka_unit_test_setup_teardown(test, guest_setup, guest_teardown)
#define GUEST_TEST_BARE(test)                                                                      \
    cmocka_unit_test_setup_teardown(test, guest_setup_bare, guest_teardown)

/* ---- calls in tasks. One struct for all kinds. */
struct guest_call {
    struct guest_kit *g;
    struct kelpie_op op;
    enum { CALL_EXEC, CALL_PING, CALL_PUT, CALL_GET, CALL_LOG, CALL_UNIQUE, CALL_MAIN } kind;
    struct kelpie_exec exec;
    struct kelpie_exec_status status;
    struct klp_guest_main main;
    struct klp_unique_receipt receipt;
    uint64_t log_from;
    size_t input_left;       /* bytes it has to give */
    struct klp_buf out, err; /* what was delivered */
    unsigned deliveries;     /* atomic: may be looked at while the call runs */
    uint64_t log_first, log_next;
    unsigned log_gaps, log_turns; /* deliveries not where the last ended; changes of the stream */
    bool log_stderr;
    bool block_output; /* `output` waits until it is unset */
    kelpie_outcome outcome;
    struct kelpie_error *error;
    struct klp_task *task;
    bool ended;
};

static inline size_t guest_call_input(void *arg, void *out, size_t capacity)
{
    struct guest_call *call = arg;
    size_t size = call->input_left < capacity ? call->input_left : capacity;
    memset(out, 'i', size);
    call->input_left -= size;
    return size;
}

static inline bool guest_call_exec_output(void *arg, bool is_stderr, const void *data, size_t size)
{
    struct guest_call *call = arg;
    while (__atomic_load_n(&call->block_output, __ATOMIC_SEQ_CST))
        poll(NULL, 0, 5);
    klp_buf_append(is_stderr ? &call->err : &call->out, data, size);
    __atomic_add_fetch(&call->deliveries, 1, __ATOMIC_SEQ_CST);
    return true;
}

static inline bool guest_call_output(void *arg, const void *data, size_t size)
{
    return guest_call_exec_output(arg, false, data, size);
}

static inline bool guest_call_log(void *arg, uint64_t offset, bool is_stderr, const void *data,
                                  size_t size)
{
    struct guest_call *call = arg;
    while (__atomic_load_n(&call->block_output, __ATOMIC_SEQ_CST))
        poll(NULL, 0, 5);
    if (call->out.size == 0)
        call->log_first = offset;
    else
        call->log_gaps += offset != call->log_next;
    call->log_turns += is_stderr != call->log_stderr;
    call->log_stderr = is_stderr;
    call->log_next = offset + size;
    klp_buf_append(&call->out, data, size);
    return true;
}

static inline void guest_call_run(void *arg)
{
    struct guest_call *call = arg;
    struct klp_guest *guest = call->g->guest;
    struct klp_unique_request request = {.which = KLP_UNIQUE_FORK, .hostname = "h"};
    switch (call->kind) {
    case CALL_EXEC:
        call->outcome = klp_guest_exec(&call->op, guest, &call->exec, &call->status, &call->error);
        break;
    case CALL_PING:
        call->outcome = klp_guest_order(&call->op, guest, KLP_GUEST_PING, &call->error);
        break;
    case CALL_PUT:
        call->outcome =
            klp_guest_put(&call->op, guest, "/to", guest_call_input, call, &call->error);
        break;
    case CALL_GET:
        call->outcome = klp_guest_get(&call->op, guest, KLP_GUEST_GET, "/from", guest_call_output,
                                      call, &call->error);
        break;
    case CALL_LOG:
        call->outcome = klp_guest_main_log(&call->op, guest, call->log_from, true, guest_call_log,
                                           call, &call->main, &call->error);
        break;
    case CALL_UNIQUE:
        call->outcome = klp_guest_unique(&call->op, guest, &request, &call->receipt, &call->error);
        break;
    case CALL_MAIN:
        call->outcome = klp_guest_main_status(&call->op, guest, &call->main, &call->error);
        break;
    }
    __atomic_store_n(&call->ended, true, __ATOMIC_SEQ_CST);
}

static inline void guest_call_init(struct guest_call *call, struct guest_kit *g, int kind)
{
    static const char *const argv[] = {"program", "word", NULL};
    *call = (struct guest_call){.g = g,
                                .op = klp_op_plain(g->env, GUEST_WAIT_MS),
                                .exec = {.argv = argv, .output = guest_call_exec_output},
                                .out = KLP_BUF_INIT(16 << 20),
                                .err = KLP_BUF_INIT(16 << 20)};
    call->kind = kind;
    call->exec.arg = call;
}

static inline void guest_call_begin(struct guest_call *call)
{
    assert_true(klp_task_spawn(call->g->env, "call", guest_call_run, call, &call->task, NULL));
}

static inline void guest_call_start(struct guest_call *call, struct guest_kit *g, int kind)
{
    guest_call_init(call, g, kind);
    guest_call_begin(call);
}

static inline bool guest_call_has_ended(struct guest_call *call)
{
    return __atomic_load_n(&call->ended, __ATOMIC_SEQ_CST);
}

static inline void guest_call_finish(struct guest_call *call)
{
    klp_buf_finish(&call->out);
    klp_buf_finish(&call->err);
    klp_error_clear(&call->error);
}

/* Joins; `part` must be in the message or in that of a cause. */
static inline void guest_call_fails_at(struct guest_call *call, enum kelpie_code code,
                                       const char *part, int line)
{
    bool found = false;
    klp_task_join(call->task);
    for (const struct kelpie_error *at = call->error; at != NULL; at = kelpie_error_cause(at))
        found = found || strstr(kelpie_error_message(at), part) != NULL;
    if (call->outcome.kind != KELPIE_FAIL || kelpie_error_code(call->error) != code || !found)
        fail_msg("line %d: outcome %d, code %s, '%s', want %s with '%s'", line,
                 (int)call->outcome.kind, kelpie_code_name(kelpie_error_code(call->error)),
                 kelpie_error_message(call->error), kelpie_code_name(code), part);
    guest_call_finish(call);
}
#define guest_call_fails(call, code, part) guest_call_fails_at(call, code, part, __LINE__)

static inline void guest_call_is_ok_at(struct guest_call *call, int line)
{
    klp_task_join(call->task);
    if (!kelpie_is_ok(call->outcome))
        fail_msg("line %d: %s", line, kelpie_error_message(call->error));
}
#define guest_call_is_ok(call) guest_call_is_ok_at(call, __LINE__)

/* An exec has been opened: its channel. Its end of input was read as well. */
static inline uint32_t guest_exec_begin(struct guest_call *call, struct guest_kit *g)
{
    guest_call_start(call, g, CALL_EXEC);
    uint32_t channel = guest_expect(g, KLP_GUEST_EXEC);
    assert_int_equal(guest_expect(g, KLP_GUEST_DATA), channel);
    assert_int_equal(g->frame.flags, KLP_GUEST_FLAG_END);
    return channel;
}

/* The session still works. */
static inline void guest_is_well(struct guest_kit *g)
{
    struct guest_call ping;
    guest_call_start(&ping, g, CALL_PING);
    guest_say(g, KLP_GUEST_DONE, 0, guest_expect(g, KLP_GUEST_PING), NULL, 0);
    guest_call_is_ok(&ping);
    guest_call_finish(&ping);
}

#endif
