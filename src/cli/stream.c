/* SPDX-License-Identifier: Apache-2.0 */
/* An upgraded connection: frames of format/rest.h both ways, signals, the terminal. Bytes are
 * passed exactly; input is read only while the daemon takes it. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <termios.h>
#include <unistd.h>

#include "base/fmt.h"
#include "cli/cli.h"
#include "env/posix/posix.h"

#define FRAME_HEADER 8
#define INTERRUPT_GRACE_MS 2000
#define SIGNAL_TWICE_NS 250000000ull

struct stream {
    struct cli *cli;
    struct http *http;
    const struct cli_stream *asked;
    struct klp_buf out;
    bool stdin_open, ended;
    unsigned signals; /* that ask for an end */
    uint64_t signal_ns;
    int last_signal;
    uint64_t give_up_ns; /* after a signal to a process that stays; 0 = never */
    int signal_fd;
    sigset_t mask_before;
    bool raw;
    struct termios terminal_before;
    struct klp_exec_result *result;
};

/* ---- the terminal */

static void raw_enter(struct stream *stream)
{
    struct termios raw;
    if (!stream->asked->tty || tcgetattr(STDIN_FILENO, &stream->terminal_before) != 0)
        return;
    raw = stream->terminal_before;
    cfmakeraw(&raw);
    stream->raw = tcsetattr(STDIN_FILENO, TCSADRAIN, &raw) == 0;
}

static void raw_leave(struct stream *stream)
{
    if (stream->raw)
        tcsetattr(STDIN_FILENO, TCSADRAIN, &stream->terminal_before);
    stream->raw = false;
}

/* ---- towards the daemon */

static void frame_queue(struct stream *stream, enum klp_exec_stream kind, const void *data,
                        size_t size)
{
    uint8_t header[FRAME_HEADER];
    klp_exec_frame_header(kind, (uint32_t)size, header);
    klp_buf_append(&stream->out, header, sizeof(header));
    klp_buf_append(&stream->out, data, size);
}

static void resize_queue(struct stream *stream)
{
    struct winsize size;
    char text[32];
    if (!stream->asked->tty || ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_row == 0)
        return;
    size_t length =
        klp_format(text, sizeof(text), "%u %u", (unsigned)size.ws_row, (unsigned)size.ws_col);
    frame_queue(stream, KLP_EXEC_RESIZE, text, length);
}

static void stdin_read(struct stream *stream)
{
    static uint8_t bytes[KLP_EXEC_FRAME_MAX];
    ssize_t got = read(STDIN_FILENO, bytes, sizeof(bytes));
    if (got < 0 && (errno == EINTR || errno == EAGAIN))
        return;
    if (got > 0) {
        frame_queue(stream, KLP_EXEC_STDIN, bytes, (size_t)got);
        return;
    }
    stream->stdin_open = false; /* an error reads like the end */
    frame_queue(stream, KLP_EXEC_STDIN, NULL, 0);
}

static kelpie_outcome out_write(struct stream *stream, struct kelpie_error **err)
{
    ssize_t put = send(stream->http->fd, stream->out.data, stream->out.size, MSG_NOSIGNAL);
    if (put > 0) {
        klp_buf_drop_front(&stream->out, (size_t)put);
        return KLP_OK;
    }
    if (put < 0 && (errno == EAGAIN || errno == EINTR))
        return KLP_OK;
    if (put < 0 && (errno == EPIPE || errno == ECONNRESET)) {
        klp_buf_clear(&stream->out); /* what it said last is still to be read */
        stream->stdin_open = false;
        return KLP_OK;
    }
    return klp_posix_fail(err, errno, "cannot send to the daemon");
}

/* ---- signals */

/* A followed log has nobody who reads frames: the agent's main process is told by REST. */
static void agent_signal(struct stream *stream, int number)
{
    struct kelpie_error *error = NULL;
    struct klp_action_request action = {.signal = number};
    char *path;
    if (!cli_path("agents", stream->asked->agent, "kill", &path, NULL))
        return;
    KLP_IGNORE(cli_call(stream->cli, "POST", path, klp_rest_action_encode(&action), NULL, &error));
    klp_mem_free(path);
    klp_error_clear(&error);
}

static kelpie_outcome signal_take(struct stream *stream, struct kelpie_error **err)
{
    struct signalfd_siginfo info;
    char text[16];
    if (read(stream->signal_fd, &info, sizeof(info)) != (ssize_t)sizeof(info))
        return KLP_OK;
    int number = (int)info.ssi_signo;
    if (number == SIGWINCH) {
        resize_queue(stream);
        return KLP_OK;
    }
    stream->last_signal = number;
    if (!stream->asked->passes_signals)
        return klp_fail(err, KELPIE_E_CANCELLED, "interrupted by signal %d", number);
    if (stream->asked->is_log) {
        /* One key press may come as two signals, to the process and to its group. */
        bool again = stream->signals > 0 && http_now_ns() - stream->signal_ns > SIGNAL_TWICE_NS;
        if (again)
            return klp_fail(err, KELPIE_E_CANCELLED, "interrupted twice");
        if (stream->signals++ > 0)
            return KLP_OK;
        stream->signal_ns = http_now_ns();
        stream->give_up_ns = http_now_ns() + INTERRUPT_GRACE_MS * 1000000ull;
        agent_signal(stream, number);
        return KLP_OK;
    }
    size_t size = klp_format(text, sizeof(text), "%d", number);
    frame_queue(stream, KLP_EXEC_SIGNAL, text, size);
    return KLP_OK;
}

static bool signals_take(struct stream *stream, struct kelpie_error **err)
{
    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGINT);
    sigaddset(&mask, SIGTERM);
    sigaddset(&mask, SIGHUP);
    sigaddset(&mask, SIGQUIT);
    sigaddset(&mask, SIGWINCH);
    sigprocmask(SIG_BLOCK, &mask, &stream->mask_before);
    stream->signal_fd = signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK);
    return stream->signal_fd >= 0 || klp_posix_refuse(err, errno, "cannot wait for signals");
}

/* ---- from the daemon */

static bool write_fd(int fd, const uint8_t *data, size_t size, struct kelpie_error **err)
{
    for (size_t at = 0; at < size;) {
        ssize_t put = write(fd, data + at, size - at);
        if (put > 0) {
            at += (size_t)put;
        } else if (put < 0 && errno == EAGAIN) {
            struct pollfd item = {.fd = fd, .events = POLLOUT};
            poll(&item, 1, -1);
        } else if (put < 0 && errno == EPIPE) {
            return klp_refuse(err, KELPIE_E_IO, "nobody reads the output any more");
        } else if (put < 0 && errno != EINTR) {
            return klp_posix_refuse(err, errno, "cannot write the command's output");
        }
    }
    return true;
}

static kelpie_outcome exit_take(struct stream *stream, const uint8_t *data, size_t size,
                                struct kelpie_error **err)
{
    KLP_AUTO(json) struct klp_json *json = NULL;
    struct kelpie_error *error = NULL;
    stream->ended = true;
    if (!klp_json_parse(data, size, KLP_REST_DEPTH_MAX, &json, &error)) {
        klp_error_clear(&error);
        return klp_fail(err, KELPIE_E_PROTOCOL, "the daemon's last frame is no JSON");
    }
    if (klp_json_find(json, "exit_code") != NULL) {
        KLP_REQUIRE(klp_rest_exec_result_decode(json, stream->result, err));
        return KLP_OK;
    }
    error = klp_rest_problem_decode(500, (struct klp_bytes){data, size});
    bool unknown = kelpie_error_code(error) == KELPIE_E_OUTCOME_UNKNOWN;
    klp_error_move(err, &error);
    return (kelpie_outcome){unknown ? KELPIE_UNKNOWN : KELPIE_FAIL};
}

static kelpie_outcome frames_take(struct stream *stream, struct kelpie_error **err)
{
    struct klp_buf *in = &stream->http->in;
    size_t at = 0;
    kelpie_outcome outcome = KLP_OK;
    while (kelpie_is_ok(outcome) && !stream->ended && in->size - at >= FRAME_HEADER) {
        enum klp_exec_stream kind;
        uint32_t size;
        KLP_REQUIRE(klp_exec_frame_decode(in->data + at, &kind, &size, err));
        if (in->size - at - FRAME_HEADER < size)
            break;
        const uint8_t *data = in->data + at + FRAME_HEADER;
        if (kind == KLP_EXEC_STDOUT || kind == KLP_EXEC_STDERR)
            outcome =
                write_fd(kind == KLP_EXEC_STDOUT ? STDOUT_FILENO : STDERR_FILENO, data, size, err)
                    ? KLP_OK
                    : (kelpie_outcome){KELPIE_FAIL};
        else if (kind == KLP_EXEC_EXIT)
            outcome = exit_take(stream, data, size, err);
        at += FRAME_HEADER + size;
    }
    klp_buf_drop_front(in, at);
    return outcome;
}

static kelpie_outcome in_read(struct stream *stream, struct kelpie_error **err)
{
    struct klp_buf *in = &stream->http->in;
    void *place = klp_buf_reserve(in, KLP_EXEC_FRAME_MAX);
    if (place == NULL)
        return klp_fail(err, KELPIE_E_PROTOCOL, "a frame of the daemon's is too long");
    ssize_t got = recv(stream->http->fd, place, KLP_EXEC_FRAME_MAX, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return KLP_OK;
    if (got <= 0)
        return klp_unknown(err, "the connection to the daemon ended before the command did");
    klp_buf_grow(in, (size_t)got);
    return frames_take(stream, err);
}

/* ---- the whole */

static int wait_ms(const struct stream *stream)
{
    if (stream->give_up_ns == 0)
        return -1;
    uint64_t now = http_now_ns();
    return now >= stream->give_up_ns ? 0 : (int)((stream->give_up_ns - now) / 1000000 + 1);
}

static kelpie_outcome turn(struct stream *stream, struct kelpie_error **err)
{
    bool room = stream->out.size == 0;
    struct pollfd items[3] = {
        {.fd = stream->http->fd, .events = (short)(POLLIN | (room ? 0 : POLLOUT))},
        {.fd = stream->signal_fd, .events = POLLIN},
        {.fd = stream->stdin_open && room ? STDIN_FILENO : -1, .events = POLLIN},
    };
    int got = poll(items, KLP_COUNT(items), wait_ms(stream));
    if (got < 0 && errno != EINTR)
        return klp_posix_fail(err, errno, "cannot wait for the daemon");
    if (got == 0 && stream->give_up_ns != 0)
        return klp_fail(err, KELPIE_E_CANCELLED, "interrupted by signal %d", stream->last_signal);
    if (got <= 0)
        return KLP_OK;
    if (items[1].revents != 0)
        KLP_TRY(signal_take(stream, err));
    if (items[2].revents != 0)
        stdin_read(stream);
    if (stream->out.size > 0)
        KLP_TRY(out_write(stream, err));
    return items[0].revents & (POLLIN | POLLHUP | POLLERR) ? in_read(stream, err) : KLP_OK;
}

kelpie_outcome cli_stream_run(struct cli *cli, struct http *http, const struct cli_stream *asked,
                              struct klp_exec_result *out, struct kelpie_error **err)
{
    struct stream stream = {.cli = cli,
                            .http = http,
                            .asked = asked,
                            .result = out,
                            .signal_fd = -1,
                            .stdin_open = asked->reads_stdin,
                            .out = KLP_BUF_INIT(2 * KLP_EXEC_FRAME_MAX)};
    KLP_REQUIRE(signals_take(&stream, err));
    http->in.size_max = 4 * KLP_EXEC_FRAME_MAX;
    raw_enter(&stream);
    if (!stream.stdin_open && !asked->is_log)
        frame_queue(&stream, KLP_EXEC_STDIN, NULL, 0);
    kelpie_outcome outcome = frames_take(&stream, err); /* those that came with the answer */
    while (kelpie_is_ok(outcome) && !stream.ended)
        outcome = turn(&stream, err);
    raw_leave(&stream);
    close(stream.signal_fd);
    sigprocmask(SIG_SETMASK, &stream.mask_before, NULL);
    klp_buf_finish(&stream.out);
    return outcome;
}
