/* SPDX-License-Identifier: Apache-2.0 */
/* The one loop: waits for descriptors, children, signals and deadlines, and hands each to its
 * owner. Signals are blocked except while it waits, so no call elsewhere is ever interrupted. */
#include "guest/guest.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/fmt.h"

static volatile sig_atomic_t signal_child, signal_port, signal_stop;

static void signal_note(int number)
{
    if (number == SIGCHLD)
        signal_child = 1;
    else if (number == SIGIO)
        signal_port = 1;
    else
        signal_stop = 1;
}

static const int noted_signals[] = {SIGCHLD, SIGIO, SIGTERM, SIGINT, SIGPWR};
static const int ignored_signals[] = {SIGPIPE, SIGHUP, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2, SIGQUIT};

void guest_signals_init(void)
{
    struct sigaction note = {.sa_handler = signal_note}, ignore = {.sa_handler = SIG_IGN};
    sigset_t all;
    for (size_t i = 0; i < KLP_COUNT(noted_signals); i++)
        sigaction(noted_signals[i], &note, NULL);
    for (size_t i = 0; i < KLP_COUNT(ignored_signals); i++)
        sigaction(ignored_signals[i], &ignore, NULL);
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
}

void guest_signals_reset(void)
{
    /* The kernel's struct, all zero: SIG_DFL, on every architecture. By system call, because the C
     * library refuses its own two signals, which posix_spawn of whoever started us left ignored. */
    static const unsigned char usual[64];
    sigset_t none;
    for (int number = 1; number < NSIG; number++)
        syscall(SYS_rt_sigaction, number, usual, NULL, (size_t)8);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

uint64_t guest_now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

void guest_log(const char *format, ...)
{
    char line[512];
    va_list args;
    va_start(args, format);
    size_t size = klp_vformat(line, sizeof(line) - 1, format, args);
    va_end(args);
    if (size > sizeof(line) - 2)
        size = sizeof(line) - 2;
    dprintf(STDERR_FILENO, "kelpie-guest: %.*s\n", (int)size, line);
}

void guest_stop(struct guest *g, bool leave)
{
    if (g->stopping)
        return;
    g->stopping = true;
    g->leave = leave || !g->options.system;
    g->stop_ms = guest_now_ms() + 1000; /* for the last answers to reach the host */
}

/* ---- what is waited for */

void guest_poll_add(struct guest *g, int fd, short events, enum guest_poll_kind kind,
                    struct guest_channel *channel, int which)
{
    KLP_ASSERT(g->poll_count < GUEST_POLL_MAX);
    g->polls[g->poll_count] = (struct pollfd){.fd = fd, .events = events};
    g->entries[g->poll_count] = (struct guest_poll_entry){
        .kind = kind, .channel = channel, .serial = channel ? channel->serial : 0, .which = which};
    g->poll_count++;
}

static struct guest_channel *channel_at(struct guest *g, size_t turn)
{
    struct guest_channel *channel = &g->channels[(g->first + turn) % GUEST_CHANNELS];
    return channel->id != 0 ? channel : NULL;
}

static void polls_collect(struct guest *g)
{
    g->poll_count = 0;
    guest_port_poll(g);
    guest_main_poll(g);
    for (size_t turn = 0; turn < GUEST_CHANNELS; turn++) {
        struct guest_channel *channel = channel_at(g, turn);
        if (channel != NULL && channel->ops->poll != NULL)
            channel->ops->poll(g, channel);
    }
    g->first = (g->first + 1) % GUEST_CHANNELS;
}

static uint64_t earlier(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static uint64_t next_deadline(struct guest *g)
{
    uint64_t at = guest_port_deadline(g);
    at = earlier(at, guest_session_deadline(g));
    at = earlier(at, guest_main_deadline(g));
    at = earlier(at, guest_runner_deadline(g));
    at = earlier(at, guest_freeze_deadline(g));
    if (g->stopping)
        at = earlier(at, g->stop_ms);
    for (size_t turn = 0; turn < GUEST_CHANNELS; turn++) {
        struct guest_channel *channel = channel_at(g, turn);
        if (channel != NULL && channel->ops->deadline != NULL)
            at = earlier(at, channel->ops->deadline(g, channel));
    }
    return at;
}

static void wait_for_events(struct guest *g, bool at_once)
{
    uint64_t at = next_deadline(g), now = guest_now_ms();
    uint64_t left = at_once || at <= now ? 0 : at - now;
    struct timespec timeout = {(time_t)(left / 1000), (long)(left % 1000) * 1000000};
    bool for_ever = at == GUEST_NEVER && !at_once;
    sigset_t none;
    sigemptyset(&none);
    if (ppoll(g->polls, g->poll_count, for_ever ? NULL : &timeout, &none) < 0) {
        for (size_t i = 0; i < g->poll_count; i++)
            g->polls[i].revents = 0;
    }
}

/* ---- what happened */

static void child_ended(struct guest *g, pid_t pid, int status)
{
    if (guest_main_child(g, pid, status) || guest_runner_child(g, pid, status))
        return;
    if (pid == g->workload_pid) {
        guest_log("the workload process ended: its memory is lost");
        guest_workload_start(g);
        return;
    }
    for (size_t i = 0; i < GUEST_CHANNELS; i++) {
        struct guest_channel *channel = &g->channels[i];
        if (channel->id != 0 && channel->ops->child != NULL &&
            channel->ops->child(g, channel, pid, status))
            return;
    }
}

static void children_reap(struct guest *g)
{
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) /* orphans come here too */
        child_ended(g, pid, status);
}

static void signals_handle(struct guest *g)
{
    if (signal_child) {
        signal_child = 0;
        children_reap(g);
    }
    if (signal_port) {
        signal_port = 0;
        guest_port_wake(g);
    }
    if (signal_stop) {
        signal_stop = 0;
        guest_stop(g, !g->options.is_init);
    }
}

static void event_handle(struct guest *g, const struct guest_poll_entry *entry, short events)
{
    struct guest_channel *channel = entry->channel;
    switch (entry->kind) {
    case GUEST_POLL_PORT:
        guest_port_ready(g, entry->which, events);
        return;
    case GUEST_POLL_MAIN:
        guest_main_ready(g, entry->which);
        return;
    case GUEST_POLL_CHANNEL:
        if (channel->id != 0 && channel->serial == entry->serial)
            channel->ops->ready(g, channel, entry->which, events);
        return;
    }
}

static void deadlines_handle(struct guest *g)
{
    uint64_t now = guest_now_ms();
    if (guest_port_deadline(g) <= now)
        guest_port_wake(g);
    guest_main_tick(g, now);
    guest_runner_tick(g, now);
    guest_freeze_tick(g, now);
    for (size_t i = 0; i < GUEST_CHANNELS; i++) {
        struct guest_channel *channel = &g->channels[i];
        if (channel->id != 0 && channel->ops->tick != NULL)
            channel->ops->tick(g, channel, now);
    }
    if (g->stopping && (g->stop_ms <= now || guest_out_pending(g) == 0))
        g->over = true;
}

static bool channels_pump(struct guest *g)
{
    bool more = false;
    for (size_t turn = 0; turn < GUEST_CHANNELS; turn++) {
        struct guest_channel *channel = channel_at(g, turn);
        if (channel != NULL && channel->ops->pump != NULL && channel->ops->pump(g, channel))
            more = true;
    }
    return more;
}

static void round_once(struct guest *g)
{
    guest_session_process(g);
    bool more = channels_pump(g);
    guest_port_flush(g);
    /* What the flush made room for may be sent at once. */
    more = (more && guest_out_pending(g) < GUEST_OUT_HIGH) || guest_session_can_read(g);
    polls_collect(g);
    wait_for_events(g, more);
    signals_handle(g);
    for (size_t i = 0; i < g->poll_count; i++) {
        if (g->polls[i].revents != 0)
            event_handle(g, &g->entries[i], g->polls[i].revents);
    }
    deadlines_handle(g);
}

int guest_loop(struct guest *g)
{
    while (!g->over)
        round_once(g);
    if (!g->leave)
        guest_power_off(g);
    guest_sweep(g, GUEST_SWEEP_KILL); /* a host that went away leaves nothing behind */
    return 0;
}
