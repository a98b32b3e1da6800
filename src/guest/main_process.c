/* SPDX-License-Identifier: Apache-2.0 */
/* The workload's main process: it outlives sessions, and its output goes into a ring that never
 * makes it wait. Reading the ring: log.c. */
#include "guest/guest.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { WHICH_STATUS, WHICH_OUT, WHICH_ERR };

#define MAIN_READ_MAX (32 * KLP_KIB) /* bytes a round */

void guest_main_init(struct guest *g)
{
    g->main.status_fd = g->main.out_fd = g->main.err_fd = -1;
}

void guest_main_append(const struct guest *g, struct klp_buf *body)
{
    const struct guest_main *process = &g->main;
    klp_field_append_u64(body, KLP_TAG_MAIN_STATE, process->state);
    klp_field_append_u64(body, KLP_TAG_CODE, (uint64_t)process->code);
    klp_field_append_u64(body, KLP_TAG_SIGNAL, (uint64_t)process->signal);
    klp_field_append_u64(body, KLP_TAG_PID, (uint64_t)process->pid);
    klp_field_append_u64(body, KLP_TAG_OFFSET, process->ring.first);
    klp_field_append_u64(body, KLP_TAG_BYTES, process->ring.end);
}

void guest_main_report(struct guest *g, uint32_t id)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(256);
    guest_main_append(g, &body);
    guest_send(g, KLP_GUEST_MAIN, 0, id, klp_buf_view(&body));
}

void guest_main_signal(struct guest *g, int number)
{
    guest_kill_group(g->main.pid, number);
}

/* ---- starting */

static void starter_finish(struct guest *g, struct guest_channel *channel)
{
    (void)channel;
    g->main.starter = NULL; /* the process stays: only the answer is no longer wanted */
}

static const struct guest_channel_ops starter_ops = {.finish = starter_finish};

static void start_succeeded(struct guest *g)
{
    struct guest_channel *channel = g->main.starter;
    if (channel == NULL)
        return;
    uint32_t id = channel->id;
    guest_channel_end(g, channel);
    guest_send_started(g, id, g->main.started_pid);
}

/* It never ran: as if nobody had asked. */
static void start_failed(struct guest *g, struct kelpie_error *error)
{
    struct guest_main *process = &g->main;
    process->state = process->last_state;
    process->code = process->last_code;
    process->signal = process->last_signal;
    process->pid = 0; /* whoever it was, the loop reaps it as a stranger */
    process->ended = false;
    guest_close(&process->out_fd);
    guest_close(&process->err_fd);
    if (process->starter != NULL)
        guest_channel_fail(g, process->starter, error);
    else
        kelpie_error_free(error);
}

static bool output_pipe(int *ours, int *theirs, struct kelpie_error **err)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0)
        return klp_refuse(err, guest_errno_code(errno), "cannot make a pipe: %s", strerror(errno));
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    *ours = ends[0];
    *theirs = ends[1];
    return true;
}

static bool main_spawn(struct guest *g, const struct guest_request *request,
                       const struct klp_word *word, struct kelpie_error **err)
{
    struct guest_main *process = &g->main;
    struct guest_strings env = {0};
    int null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC), word_fd = -1;
    int out_fd = -1, err_fd = -1;
    bool fine = guest_environment(g, request, &env, err) &&
                output_pipe(&process->out_fd, &out_fd, err) &&
                output_pipe(&process->err_fd, &err_fd, err);
    if (fine && word != NULL && guest_word_needs_workload(word)) {
        word_fd = guest_workload_connect(g, err);
        fine = word_fd >= 0;
    }
    struct guest_spawn spawn = {
        .argv = request->argv.items,
        .env = env.items,
        .workdir = process->workdir,
        .word = word,
        .word_fd = word_fd,
        .in_fd = null_fd,
        .out_fd = out_fd,
        .err_fd = err_fd,
        .workload = true,
    };
    fine = fine && guest_spawn(g, &spawn, &process->pid, &process->status_fd, err);
    klp_mem_free(env.items);
    guest_close(&null_fd);
    guest_close(&word_fd);
    guest_close(&out_fd);
    guest_close(&err_fd);
    return fine;
}

static bool main_check(const struct guest *g, const struct guest_request *request,
                       struct klp_word *word, struct kelpie_error **err)
{
    if (request->argv.count == 0)
        return klp_refuse(err, KELPIE_E_INVALID, "cannot start the main process: no name");
    if (g->freeze.state != GUEST_THAWED)
        return klp_refuse(err, KELPIE_E_STATE,
                          "cannot start the main process: the workload is frozen");
    if (g->main.state == KLP_MAIN_RUNNING)
        return klp_refuse(err, KELPIE_E_STATE,
                          "cannot start the main process: it runs already (pid %d)", g->main.pid);
    if (request->argv.items[0][0] != '@')
        return true;
    return klp_word_parse((const char *const *)request->argv.items, word, err);
}

static void main_launch(struct guest *g, uint32_t id, const struct guest_request *request,
                        const struct klp_word *word)
{
    struct guest_main *process = &g->main;
    struct kelpie_error *err = NULL;
    struct guest_channel *channel = guest_channel_open(g, id, &starter_ops, NULL, true);
    if (channel == NULL)
        return;
    guest_close(&process->out_fd); /* a grandchild of the last one may hold them */
    guest_close(&process->err_fd);
    klp_mem_free(process->name);
    klp_mem_free(process->workdir);
    process->name = klp_mem_string_n(request->argv.items[0], strnlen(request->argv.items[0], 256));
    process->workdir = klp_mem_string(guest_workdir(g, request));
    process->starter = channel;
    process->ended = false;
    process->last_state = process->state;
    process->last_code = process->code;
    process->last_signal = process->signal;
    process->code = process->signal = 0;
    if (!main_spawn(g, request, word, &err)) {
        start_failed(g, err);
        return;
    }
    process->started_pid = process->pid;
    process->state = KLP_MAIN_RUNNING;
}

void guest_main_start(struct guest *g, uint32_t id, struct klp_bytes body)
{
    struct kelpie_error *err = NULL;
    struct guest_request request;
    struct klp_word word;
    if (!guest_request_parse(body, &request, &err)) {
        guest_send_error(g, id, err);
        return;
    }
    bool is_word = request.argv.count > 0 && request.argv.items[0][0] == '@';
    if (!main_check(g, &request, &word, &err))
        guest_send_error(g, id, err);
    else if (is_word && word.kind == KLP_WORD_CRASH)
        guest_crash(g);
    else
        main_launch(g, id, &request, is_word ? &word : NULL);
    guest_request_finish(&request);
}

/* ---- running and ending */

void guest_main_poll(struct guest *g)
{
    const struct guest_main *process = &g->main;
    const int fds[] = {process->status_fd, process->out_fd, process->err_fd};
    for (int which = 0; which < (int)KLP_COUNT(fds); which++) {
        if (fds[which] >= 0)
            guest_poll_add(g, fds[which], POLLIN, GUEST_POLL_MAIN, NULL, which);
    }
}

static void end_if_done(struct guest *g, bool give_up)
{
    struct guest_main *process = &g->main;
    bool is_drained = process->out_fd < 0 && process->err_fd < 0;
    if (process->state == KLP_MAIN_RUNNING && process->ended && process->status_fd < 0 &&
        (is_drained || give_up))
        process->state = KLP_MAIN_EXITED;
}

static void output_read(struct guest *g, int *fd, bool is_stderr)
{
    static uint8_t bytes[MAIN_READ_MAX];
    if (*fd < 0)
        return;
    ssize_t size = read(*fd, bytes, sizeof(bytes));
    if (size > 0)
        guest_ring_append(&g->main.ring, is_stderr, bytes, (size_t)size);
    else if (size == 0 || (errno != EAGAIN && errno != EINTR))
        guest_close(fd);
}

void guest_main_ready(struct guest *g, int which)
{
    struct guest_main *process = &g->main;
    struct kelpie_error *err = NULL;
    if (which == WHICH_STATUS && process->status_fd >= 0) {
        int result = guest_spawn_result(&process->status_fd, process->name, process->workdir, &err);
        if (result < 0)
            start_failed(g, err);
        else if (result > 0)
            start_succeeded(g);
    } else if (which == WHICH_OUT) {
        output_read(g, &process->out_fd, false);
    } else if (which == WHICH_ERR) {
        output_read(g, &process->err_fd, true);
    }
    end_if_done(g, false);
}

bool guest_main_child(struct guest *g, pid_t pid, int status)
{
    struct guest_main *process = &g->main;
    if (process->pid != pid || pid == 0)
        return false;
    process->pid = 0;
    process->ended = true;
    process->grace_ms = guest_now_ms() + GUEST_GRACE_MS;
    process->signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    process->code = WIFSIGNALED(status) ? 128 + process->signal : WEXITSTATUS(status);
    end_if_done(g, false);
    return true;
}

uint64_t guest_main_deadline(const struct guest *g)
{
    const struct guest_main *process = &g->main;
    return process->state == KLP_MAIN_RUNNING && process->ended ? process->grace_ms : GUEST_NEVER;
}

void guest_main_tick(struct guest *g, uint64_t now_ms)
{
    if (guest_main_deadline(g) <= now_ms)
        end_if_done(g, true);
}
