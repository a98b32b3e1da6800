/* SPDX-License-Identifier: Apache-2.0 */
/* One program a channel: pipes or a terminal, a time limit, its end. EXIT is sent once, after both
 * outputs are drained; a grandchild that keeps a pipe open holds it back for GUEST_GRACE_MS at
 * most, and what lies in the pipe by then is still delivered. */
#include "guest/guest.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "base/fmt.h"

#define END_OF_INPUT "\004" /* what a terminal takes for it */

enum { WHICH_STATUS, WHICH_IN, WHICH_OUT, WHICH_ERR };

struct exec {
    pid_t pid;   /* 0 once reaped */
    pid_t group; /* killed when the host loses interest; 0 = its members may live on */
    int status_fd, in_fd, out_fd, err_fd;
    bool tty, ended, timed_out, input_ended;
    bool cut; /* grace is over: only out_left and err_left are still delivered */
    size_t out_left, err_left;
    int code, signal;
    uint64_t deadline_ms, grace_ms;
    struct klp_buf input; /* from the host, not written yet: at most its credit */
    char *name, *workdir;
};

static struct exec *exec_of(const struct guest_channel *channel)
{
    return channel->state;
}

static void exec_free(struct exec *exec)
{
    guest_close(&exec->status_fd);
    guest_close(&exec->in_fd);
    guest_close(&exec->out_fd);
    guest_close(&exec->err_fd);
    klp_buf_finish(&exec->input);
    klp_mem_free(exec->name);
    klp_mem_free(exec->workdir);
    klp_mem_free(exec);
}

static void exec_finish(struct guest *g, struct guest_channel *channel)
{
    struct exec *exec = exec_of(channel);
    (void)g;
    guest_kill_group(exec->group, SIGKILL);
    exec_free(exec);
}

void guest_send_exit(struct guest *g, uint32_t id, int code, int number, bool timed_out)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(128);
    klp_field_append_u64(&body, KLP_TAG_CODE, (uint64_t)code);
    klp_field_append_u64(&body, KLP_TAG_SIGNAL, (uint64_t)number);
    klp_field_append_u64(&body, KLP_TAG_TIMED_OUT, timed_out ? 1 : 0);
    guest_send(g, KLP_GUEST_EXIT, 0, id, klp_buf_view(&body));
}

void guest_send_started(struct guest *g, uint32_t id, pid_t pid)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(64);
    klp_field_append_u64(&body, KLP_TAG_PID, (uint64_t)pid);
    guest_send(g, KLP_GUEST_STARTED, 0, id, klp_buf_view(&body));
}

/* ---- input */

static void input_close(struct guest *g, struct guest_channel *channel)
{
    struct exec *exec = exec_of(channel);
    size_t dropped = exec->input.size;
    guest_close(&exec->in_fd);
    klp_buf_finish(&exec->input);
    guest_channel_consumed(g, channel, dropped);
}

static void input_write(struct guest *g, struct guest_channel *channel)
{
    struct exec *exec = exec_of(channel);
    while (exec->in_fd >= 0 && exec->input.size > 0) {
        ssize_t size = write(exec->in_fd, exec->input.data, exec->input.size);
        if (size < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (size < 0) { /* nobody reads it any more: what still comes is thrown away */
            input_close(g, channel);
            return;
        }
        klp_buf_drop_front(&exec->input, (size_t)size);
        guest_channel_consumed(g, channel, (size_t)size);
    }
    if (exec->input_ended && exec->in_fd >= 0)
        input_close(g, channel);
}

static void exec_data(struct guest *g, struct guest_channel *channel, struct klp_bytes bytes,
                      bool end)
{
    struct exec *exec = exec_of(channel);
    if (exec->in_fd < 0 || exec->input_ended) {
        guest_channel_consumed(g, channel, bytes.size);
        return;
    }
    klp_buf_append(&exec->input, bytes.data, bytes.size);
    if (end && exec->tty) /* the terminal stays open, or its program would be hung up on */
        klp_buf_append(&exec->input, END_OF_INPUT, 1);
    else
        exec->input_ended = end;
    struct kelpie_error *err = NULL;
    if (!klp_buf_check(&exec->input, "a program's input", &err))
        guest_channel_fail(g, channel, err);
    else
        input_write(g, channel);
}

/* ---- output */

static void output_end(struct guest *g, struct guest_channel *channel, int *fd, uint8_t stream)
{
    guest_close(fd);
    guest_channel_send(g, channel, (uint8_t)(stream | KLP_GUEST_FLAG_END), (struct klp_bytes){0});
}

static void output_read(struct guest *g, struct guest_channel *channel, int *fd, size_t *left,
                        uint8_t stream)
{
    static uint8_t bytes[GUEST_DATA_MAX];
    struct exec *exec = exec_of(channel);
    size_t room = guest_channel_room(g, channel);
    if (exec->cut && room > *left)
        room = *left;
    if (*fd < 0 || room == 0)
        return;
    ssize_t size = read(*fd, bytes, room);
    if (size > 0) {
        guest_channel_send(g, channel, stream, (struct klp_bytes){bytes, (size_t)size});
        *left -= exec->cut ? (size_t)size : 0;
    }
    bool again = size < 0 && (errno == EAGAIN || errno == EINTR);
    /* A terminal whose last program is gone answers EIO. */
    if (size == 0 || (size < 0 && !again) || (exec->cut && (again || *left == 0)))
        output_end(g, channel, fd, stream);
}

static size_t output_waiting(int fd)
{
    int size = 0;
    return fd >= 0 && ioctl(fd, FIONREAD, &size) == 0 && size > 0 ? (size_t)size : 0;
}

static void outputs_cut(struct guest *g, struct guest_channel *channel)
{
    struct exec *exec = exec_of(channel);
    exec->cut = true;
    exec->out_left = output_waiting(exec->out_fd);
    exec->err_left = output_waiting(exec->err_fd);
    if (exec->out_fd >= 0 && exec->out_left == 0)
        output_end(g, channel, &exec->out_fd, 0);
    if (exec->err_fd >= 0 && exec->err_left == 0)
        output_end(g, channel, &exec->err_fd, KLP_GUEST_FLAG_STDERR);
}

/* ---- its end */

static void exec_end_if_done(struct guest *g, struct guest_channel *channel)
{
    struct exec *exec = exec_of(channel);
    if (!exec->ended || exec->status_fd >= 0 || exec->out_fd >= 0 || exec->err_fd >= 0)
        return;
    uint32_t id = channel->id;
    int code = exec->code, number = exec->signal;
    bool timed_out = exec->timed_out;
    exec->group = 0;
    guest_channel_end(g, channel);
    guest_send_exit(g, id, code, number, timed_out);
}

static bool exec_child(struct guest *g, struct guest_channel *channel, pid_t pid, int status)
{
    struct exec *exec = exec_of(channel);
    if (exec->pid != pid)
        return false;
    exec->pid = 0;
    exec->ended = true;
    exec->grace_ms = guest_now_ms() + GUEST_GRACE_MS;
    exec->signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    exec->code = WIFSIGNALED(status) ? 128 + exec->signal : WEXITSTATUS(status);
    exec_end_if_done(g, channel);
    return true;
}

static bool exec_is_frozen(const struct guest *g)
{
    return g->freeze.state != GUEST_THAWED;
}

static uint64_t exec_deadline(const struct guest *g, const struct guest_channel *channel)
{
    const struct exec *exec = exec_of(channel);
    if (exec->ended)
        return exec->cut ? GUEST_NEVER : exec->grace_ms;
    return exec_is_frozen(g) || exec->timed_out ? GUEST_NEVER : exec->deadline_ms;
}

static void exec_tick(struct guest *g, struct guest_channel *channel, uint64_t now_ms)
{
    struct exec *exec = exec_of(channel);
    if (exec_deadline(g, channel) > now_ms)
        return;
    if (!exec->ended) {
        exec->timed_out = true;
        guest_kill_group(exec->pid, SIGKILL);
        return;
    }
    outputs_cut(g, channel);
    exec_end_if_done(g, channel);
}

/* ---- the loop's side */

static void exec_poll(struct guest *g, struct guest_channel *channel)
{
    const struct exec *exec = exec_of(channel);
    bool has_room = guest_channel_room(g, channel) > 0;
    if (exec->status_fd >= 0) { /* STARTED comes before the first byte */
        guest_poll_add(g, exec->status_fd, POLLIN, GUEST_POLL_CHANNEL, channel, WHICH_STATUS);
        return;
    }
    if (exec->in_fd >= 0 && exec->input.size > 0)
        guest_poll_add(g, exec->in_fd, POLLOUT, GUEST_POLL_CHANNEL, channel, WHICH_IN);
    if (exec->out_fd >= 0 && has_room)
        guest_poll_add(g, exec->out_fd, POLLIN, GUEST_POLL_CHANNEL, channel, WHICH_OUT);
    if (exec->err_fd >= 0 && has_room)
        guest_poll_add(g, exec->err_fd, POLLIN, GUEST_POLL_CHANNEL, channel, WHICH_ERR);
}

/* False: the channel has ended. */
static bool status_take(struct guest *g, struct guest_channel *channel)
{
    struct exec *exec = exec_of(channel);
    struct kelpie_error *err = NULL;
    int result = guest_spawn_result(&exec->status_fd, exec->name, exec->workdir, &err);
    if (result < 0)
        guest_channel_fail(g, channel, err);
    else if (result > 0)
        guest_send_started(g, channel->id, exec->group);
    return result >= 0;
}

static void exec_ready(struct guest *g, struct guest_channel *channel, int which, short events)
{
    struct exec *exec = exec_of(channel);
    (void)events;
    switch (which) {
    case WHICH_STATUS:
        if (!status_take(g, channel))
            return;
        break;
    case WHICH_IN:
        input_write(g, channel);
        break;
    case WHICH_OUT:
        output_read(g, channel, &exec->out_fd, &exec->out_left, 0);
        break;
    default:
        output_read(g, channel, &exec->err_fd, &exec->err_left, KLP_GUEST_FLAG_STDERR);
        break;
    }
    exec_end_if_done(g, channel);
}

static void exec_signal(struct guest *g, struct guest_channel *channel, int number)
{
    (void)g;
    guest_kill_group(exec_of(channel)->pid, number);
}

static void terminal_resize(int fd, unsigned rows, unsigned columns)
{
    struct winsize size = {.ws_row = (unsigned short)rows, .ws_col = (unsigned short)columns};
    ioctl(fd, TIOCSWINSZ, &size);
}

static void exec_resize(struct guest *g, struct guest_channel *channel, unsigned rows,
                        unsigned columns)
{
    (void)g;
    if (exec_of(channel)->tty)
        terminal_resize(exec_of(channel)->out_fd, rows, columns);
}

static const struct guest_channel_ops exec_ops = {
    .data = exec_data,
    .poll = exec_poll,
    .ready = exec_ready,
    .deadline = exec_deadline,
    .tick = exec_tick,
    .child = exec_child,
    .signal = exec_signal,
    .resize = exec_resize,
    .finish = exec_finish,
};

void guest_exec_shift_deadlines(struct guest *g, uint64_t by_ms)
{
    for (size_t i = 0; i < GUEST_CHANNELS; i++) {
        struct guest_channel *channel = &g->channels[i];
        if (channel->id != 0 && channel->ops == &exec_ops &&
            exec_of(channel)->deadline_ms != GUEST_NEVER)
            exec_of(channel)->deadline_ms += by_ms;
    }
}

/* ---- starting */

static bool pipe_for(int *ours, int *theirs, bool ours_is_read, struct kelpie_error **err)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0)
        return klp_refuse(err, guest_errno_code(errno), "cannot make a pipe: %s", strerror(errno));
    *ours = ends[ours_is_read ? 0 : 1];
    *theirs = ends[ours_is_read ? 1 : 0];
    fcntl(*ours, F_SETFL, O_NONBLOCK);
    return true;
}

static bool terminal_for(struct exec *exec, const struct guest_request *request, int theirs[3],
                         struct kelpie_error **err)
{
    char name[64];
    int slave = -1;
    exec->out_fd = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    if (exec->out_fd >= 0 && grantpt(exec->out_fd) == 0 && unlockpt(exec->out_fd) == 0 &&
        ptsname_r(exec->out_fd, name, sizeof(name)) == 0)
        slave = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (slave < 0)
        return klp_refuse(err, guest_errno_code(errno), "cannot make a terminal: %s",
                          strerror(errno));
    theirs[0] = slave;
    theirs[1] = fcntl(slave, F_DUPFD_CLOEXEC, 0);
    theirs[2] = fcntl(slave, F_DUPFD_CLOEXEC, 0);
    exec->in_fd = fcntl(exec->out_fd, F_DUPFD_CLOEXEC, 0);
    if (theirs[1] < 0 || theirs[2] < 0 || exec->in_fd < 0)
        return klp_refuse(err, KELPIE_E_LIMIT, "cannot make a terminal: %s", strerror(errno));
    terminal_resize(exec->out_fd, request->rows, request->columns);
    return true;
}

static bool exec_wire(struct exec *exec, const struct guest_request *request, int theirs[3],
                      struct kelpie_error **err)
{
    if (request->tty)
        return terminal_for(exec, request, theirs, err);
    return pipe_for(&exec->in_fd, &theirs[0], false, err) &&
           pipe_for(&exec->out_fd, &theirs[1], true, err) &&
           pipe_for(&exec->err_fd, &theirs[2], true, err);
}

static bool exec_start(struct guest *g, struct exec *exec, const struct guest_request *request,
                       const struct klp_word *word, struct kelpie_error **err)
{
    struct guest_strings env = {0};
    int theirs[3] = {-1, -1, -1}, word_fd = -1;
    bool fine = guest_environment(g, request, &env, err) && exec_wire(exec, request, theirs, err);
    if (fine && word != NULL && guest_word_needs_workload(word)) {
        word_fd = guest_workload_connect(g, err);
        fine = word_fd >= 0;
    }
    struct guest_spawn spawn = {
        .argv = request->argv.items,
        .env = env.items,
        .workdir = exec->workdir,
        .word = word,
        .word_fd = word_fd,
        .in_fd = theirs[0],
        .out_fd = theirs[1],
        .err_fd = theirs[2],
        .tty = request->tty,
        .workload = true,
    };
    fine = fine && guest_spawn(g, &spawn, &exec->pid, &exec->status_fd, err);
    exec->group = exec->pid;
    klp_mem_free(env.items);
    guest_close(&word_fd);
    for (size_t i = 0; i < KLP_COUNT(theirs); i++)
        guest_close(&theirs[i]);
    return fine;
}

/* False with *err, or with a word that ends the guest. */
static bool exec_check(const struct guest *g, const struct guest_request *request,
                       struct klp_word *word, struct kelpie_error **err)
{
    if (request->argv.count == 0)
        return klp_refuse(err, KELPIE_E_INVALID, "cannot run a program: no name was given");
    if (exec_is_frozen(g))
        return klp_refuse(err, KELPIE_E_STATE, "cannot run '%.*s': the workload is frozen", 64,
                          request->argv.items[0]);
    if (request->argv.items[0][0] != '@')
        return true;
    return klp_word_parse((const char *const *)request->argv.items, word, err);
}

static struct exec *exec_create(const struct guest *g, const struct guest_request *request)
{
    struct exec *exec = KLP_NEW(struct exec);
    exec->status_fd = exec->in_fd = exec->out_fd = exec->err_fd = -1;
    exec->tty = request->tty;
    exec->input = KLP_BUF_INIT(KLP_GUEST_CREDIT + 64);
    exec->name = klp_mem_string_n(request->argv.items[0], strnlen(request->argv.items[0], 256));
    exec->workdir = klp_mem_string(guest_workdir(g, request));
    bool has_limit = request->timeout_ms != 0 && request->timeout_ms < INT64_MAX;
    exec->deadline_ms = has_limit ? guest_now_ms() + request->timeout_ms : GUEST_NEVER;
    return exec;
}

static void exec_open_parsed(struct guest *g, uint32_t id, const struct guest_request *request,
                             const struct klp_word *word)
{
    struct kelpie_error *err = NULL;
    struct exec *exec = exec_create(g, request);
    struct guest_channel *channel = guest_channel_open(g, id, &exec_ops, exec, false);
    if (channel == NULL)
        exec_free(exec);
    else if (!exec_start(g, exec, request, word, &err))
        guest_channel_fail(g, channel, err);
}

void guest_exec_open(struct guest *g, uint32_t id, struct klp_bytes body)
{
    struct kelpie_error *err = NULL;
    struct guest_request request;
    struct klp_word word;
    if (!guest_request_parse(body, &request, &err)) {
        guest_send_error(g, id, err);
        return;
    }
    if (!exec_check(g, &request, &word, &err)) {
        guest_send_error(g, id, err);
    } else {
        bool is_word = request.argv.items[0][0] == '@';
        if (is_word && word.kind == KLP_WORD_CRASH)
            guest_crash(g);
        exec_open_parsed(g, id, &request, is_word ? &word : NULL);
    }
    guest_request_finish(&request);
}
