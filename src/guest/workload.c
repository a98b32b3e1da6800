/* SPDX-License-Identifier: Apache-2.0 */
/* The workload process: lives as long as the guest inside the workload's cgroup, holds what @fill
 * wrote and counts while it runs. Words reach it through a socket of their own, which the agent
 * hands over; a frozen one answers nothing, and that is the proof that it is frozen. */
#include "guest/guest.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "base/fmt.h"

#define CONTROL_FD 3
#define CLIENTS_MAX (2 * GUEST_CHANNELS)
#define PAGE_SIZE_KEYED 4096u
#define PAGES_MIB (KLP_MIB / PAGE_SIZE_KEYED)
#define ROOM_KEPT (16ull * KLP_MIB) /* bytes of memory a fill leaves to the guest */
/* One tick never counts for more than twice its length: time spent frozen is not time it ran. It
 * ticks finely only while somebody asks, so that an idle guest stays idle. */
#define TICK_FINE_MS 10
#define TICK_COARSE_MS 250
#define FINE_FOR_MS 30000

struct workload {
    struct pollfd polls[1 + CLIENTS_MAX]; /* the control socket first */
    size_t count;
    uint8_t *memory;
    uint64_t pages, seed;
    uint64_t counter, last_ms, fine_until_ms;
};

static uint64_t tick_ms(const struct workload *w, uint64_t now)
{
    return now < w->fine_until_ms ? TICK_FINE_MS : TICK_COARSE_MS;
}

static void count_on(struct workload *w)
{
    uint64_t now = guest_now_ms(), passed = now - w->last_ms, most = 2 * tick_ms(w, w->last_ms);
    w->counter += passed < most ? passed : most;
    w->last_ms = now;
}

/* ---- memory */

static void memory_drop(struct workload *w)
{
    if (w->memory != NULL)
        munmap(w->memory, w->pages * PAGE_SIZE_KEYED);
    w->memory = NULL;
    w->pages = 0;
}

static bool memory_has_room(uint64_t bytes)
{
    struct sysinfo info;
    if (sysinfo(&info) < 0)
        return true;
    uint64_t available = (info.freeram + info.bufferram) * (uint64_t)info.mem_unit;
    return bytes + ROOM_KEPT <= available;
}

static bool asker_is_gone(int fd)
{
    struct pollfd asker = {.fd = fd, .events = POLLIN};
    return poll(&asker, 1, 0) > 0 && (asker.revents & (POLLHUP | POLLERR)) != 0;
}

static void memory_fill(struct workload *w, const struct guest_question *question, int asker,
                        struct guest_answer *answer)
{
    uint64_t pages = question->mib * PAGES_MIB;
    memory_drop(w);
    answer->failed = 1;
    if (question->mib > KLP_MEMORY_MIB_MAX || !memory_has_room(pages * PAGE_SIZE_KEYED)) {
        klp_format(answer->text, sizeof(answer->text), "no room for %u MiB",
                   (unsigned)question->mib);
        return;
    }
    void *memory = mmap(NULL, pages * PAGE_SIZE_KEYED, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        klp_format(answer->text, sizeof(answer->text), "no memory for %u MiB",
                   (unsigned)question->mib);
        return;
    }
    w->memory = memory;
    w->pages = pages;
    w->seed = question->seed;
    for (uint64_t page = 0; page < pages; page++) {
        klp_keyed_page(w->seed, page, 0, w->memory + page * PAGE_SIZE_KEYED, PAGE_SIZE_KEYED);
        if (page % PAGES_MIB == 0) {
            count_on(w);
            if (asker_is_gone(asker)) { /* a half fill must not pass for one */
                memory_drop(w);
                return;
            }
        }
    }
    answer->failed = 0;
    answer->pages = pages;
}

static void memory_check(struct workload *w, struct guest_answer *answer)
{
    answer->pages = w->pages;
    for (uint64_t page = 0; page < w->pages; page++) {
        if (!klp_keyed_page_check(w->seed, page, 0, w->memory + page * PAGE_SIZE_KEYED,
                                  PAGE_SIZE_KEYED))
            answer->bad++;
        if (page % PAGES_MIB == 0)
            count_on(w);
    }
}

/* ---- askers */

static void question_answer(struct workload *w, int asker)
{
    struct guest_question question;
    struct guest_answer answer = {0};
    if (recv(asker, &question, sizeof(question), 0) != (ssize_t)sizeof(question))
        return;
    if (question.ask == GUEST_ASK_FILL)
        memory_fill(w, &question, asker, &answer);
    else if (question.ask == GUEST_ASK_CHECK)
        memory_check(w, &answer);
    count_on(w);
    answer.count = w->counter;
    if (question.ask == GUEST_ASK_COUNT)
        w->fine_until_ms = guest_now_ms() + FINE_FOR_MS;
    send(asker, &answer, sizeof(answer), MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void asker_take(struct workload *w)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    char byte;
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof(control)};
    ssize_t size = recvmsg(CONTROL_FD, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (size == 0)
        _exit(0); /* the agent is gone */
    struct cmsghdr *header = size > 0 ? CMSG_FIRSTHDR(&message) : NULL;
    int fd;
    if (header == NULL || header->cmsg_type != SCM_RIGHTS)
        return;
    memcpy(&fd, CMSG_DATA(header), sizeof(fd));
    if (w->count < KLP_COUNT(w->polls))
        w->polls[w->count++] = (struct pollfd){.fd = fd, .events = POLLIN};
    else
        close(fd);
}

static void askers_serve(struct workload *w)
{
    for (size_t i = w->count; i-- > 1;) {
        if (w->polls[i].revents == 0)
            continue;
        if (w->polls[i].revents & POLLIN)
            question_answer(w, w->polls[i].fd);
        close(w->polls[i].fd);
        w->polls[i] = w->polls[--w->count];
    }
    if (w->polls[0].revents != 0)
        asker_take(w);
}

__attribute__((noreturn)) static void workload_run(void)
{
    static struct workload w;
    w.polls[0] = (struct pollfd){.fd = CONTROL_FD, .events = POLLIN};
    w.count = 1;
    w.last_ms = guest_now_ms();
    for (;;) {
        int got = poll(w.polls, w.count, (int)tick_ms(&w, w.last_ms));
        count_on(&w);
        if (got > 0)
            askers_serve(&w);
    }
}

/* ---- the agent's side */

static void join_cgroup(const struct guest *g)
{
    int fd = g->freeze.cgroup_fd < 0
                 ? -1
                 : openat(g->freeze.cgroup_fd, "cgroup.procs", O_WRONLY | O_CLOEXEC);
    if (fd >= 0 && write(fd, "0", 1) < 0)
        guest_log("the workload process stays outside its cgroup: %s", strerror(errno));
    guest_close(&fd);
}

__attribute__((noreturn)) static void workload_child(struct guest *g, int control_fd)
{
    setsid();
    if (!g->options.is_init)
        prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_NAME, "kelpie-workload");
    join_cgroup(g);
    if (control_fd != CONTROL_FD)
        dup2(control_fd, CONTROL_FD);
    syscall(SYS_close_range, CONTROL_FD + 1u, ~0u, 0);
    guest_signals_reset();
    workload_run();
}

void guest_workload_start(struct guest *g)
{
    int ends[2];
    guest_close(&g->workload_fd);
    g->workload_pid = 0;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0) {
        guest_log("no workload process: %s", strerror(errno));
        return;
    }
    pid_t pid = fork();
    if (pid == 0)
        workload_child(g, ends[1]);
    close(ends[1]);
    g->workload_fd = ends[0];
    g->workload_pid = pid > 0 ? pid : 0;
}

static bool hand_over(int control_fd, int fd)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {.bytes = {0}};
    char byte = 0;
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof(control)};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &fd, sizeof(fd));
    return sendmsg(control_fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT) == 1;
}

int guest_workload_connect(struct guest *g, struct kelpie_error **err)
{
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
        return klp_refuse(err, guest_errno_code(errno), "cannot reach the workload process: %s",
                          strerror(errno)) -
               1;
    bool given = g->workload_fd >= 0 && hand_over(g->workload_fd, ends[1]);
    close(ends[1]);
    if (given)
        return ends[0];
    close(ends[0]);
    return klp_refuse(err, KELPIE_E_BUSY, "cannot reach the workload process: it does not listen") -
           1;
}

bool guest_word_needs_workload(const struct klp_word *word)
{
    return word->kind == KLP_WORD_FILL || word->kind == KLP_WORD_CHECK ||
           word->kind == KLP_WORD_COUNT;
}
