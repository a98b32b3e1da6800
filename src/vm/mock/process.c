/* SPDX-License-Identifier: Apache-2.0 */
/* The mock guest's process: maps its memory copy-on-write from a sealed memory object, drives the
 * engine by the real clock, obeys stop, cont, load and save. It has one thread. Ends when its
 * keeper's end of the control socket closes. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "vm/mock/engine.h"
#include "vm/mock/mock.h"
#include "vm/mock/process.h"

#define PAGE 4096u
#define READ_SIZE 16384u

static const char device_magic[8] = "MOCKDEV1";

struct guest {
    struct mock_engine engine;
    void *memory;
    uint64_t size;
    const char *arch;
    bool loaded, stopped;
    uint64_t last_ns;
};

/* Set after a SIGSTOP: since then it did not run, so the time that passed is not the guest's. */
static volatile sig_atomic_t continued;

static void continued_note(int number)
{
    (void)number;
    continued = 1;
}

static uint64_t now_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void engine_begin(struct guest *guest)
{
    uint8_t seed[32];
    KLP_ASSERT(getrandom(seed, sizeof(seed), 0) == (ssize_t)sizeof(seed));
    mock_engine_init(&guest->engine, guest->memory, guest->size, PAGE, guest->arch, seed);
    guest->loaded = true;
    guest->last_ns = now_ns(CLOCK_MONOTONIC);
}

static bool device_load(struct guest *guest, const char *bytes, size_t size)
{
    if (guest->loaded || size < sizeof(device_magic) ||
        memcmp(bytes, device_magic, sizeof(device_magic)) != 0)
        return false;
    engine_begin(guest);
    guest->stopped = true;
    return !guest->engine.crashed;
}

/* One order. False = the keeper is gone. */
static bool order_serve(struct guest *guest)
{
    char order[MOCK_ORDER_MAX], answer[MOCK_ORDER_MAX];
    size_t answer_size = MOCK_ORDER_HEADER;
    ssize_t size = recv(MOCK_CONTROL_FD, order, sizeof(order), 0);
    if (size < MOCK_ORDER_HEADER)
        return size < 0 && (errno == EINTR || errno == EAGAIN);
    memcpy(answer, order, MOCK_ORDER_HEADER);
    if (order[0] == MOCK_ORDER_STOP) {
        guest->stopped = true;
    } else if (order[0] == MOCK_ORDER_CONT && guest->loaded) {
        guest->stopped = false;
        guest->last_ns = now_ns(CLOCK_MONOTONIC);
    } else if (order[0] == MOCK_ORDER_SAVE && guest->loaded && guest->stopped) {
        memcpy(answer + answer_size, device_magic, sizeof(device_magic));
        answer_size += sizeof(device_magic);
    } else if (order[0] != MOCK_ORDER_LOAD ||
               !device_load(guest, order + MOCK_ORDER_HEADER, (size_t)size - MOCK_ORDER_HEADER)) {
        answer[0] = '!';
    }
    return send(MOCK_CONTROL_FD, answer, answer_size, MSG_NOSIGNAL) == (ssize_t)answer_size;
}

static void guest_read(struct guest *guest)
{
    char bytes[READ_SIZE];
    ssize_t size = recv(MOCK_GUEST_FD, bytes, sizeof(bytes), MSG_DONTWAIT);
    if (size > 0)
        mock_engine_input(&guest->engine, bytes, (size_t)size);
}

static void guest_write(struct guest *guest)
{
    struct klp_buf *out = &guest->engine.out;
    ssize_t size =
        out->size > 0 ? send(MOCK_GUEST_FD, out->data, out->size, MSG_DONTWAIT | MSG_NOSIGNAL) : 0;
    if (size > 0)
        klp_buf_drop_front(out, (size_t)size);
}

static void guest_step(struct guest *guest)
{
    uint64_t now = now_ns(CLOCK_MONOTONIC), elapsed = now - guest->last_ns;
    if (continued != 0)
        elapsed = 0;
    continued = 0;
    guest->last_ns = now;
    mock_engine_step(&guest->engine, elapsed, (int64_t)now_ns(CLOCK_REALTIME));
    guest_write(guest);
}

/* Runs until the guest is over. Returns the exit status. */
static int guest_run(struct guest *guest)
{
    for (;;) {
        bool runs = guest->loaded && !guest->stopped;
        struct pollfd polled[2] = {{MOCK_CONTROL_FD, POLLIN, 0}, {MOCK_GUEST_FD, 0, 0}};
        bool takes = runs && mock_engine_takes(&guest->engine, READ_SIZE);
        if (runs)
            polled[1].events =
                (short)((takes ? POLLIN : 0) | (guest->engine.out.size > 0 ? POLLOUT : 0));
        int timeout = runs ? (int)mock_engine_idle_ms(&guest->engine) : -1;
        if (poll(polled, runs ? 2 : 1, timeout) < 0 && errno != EINTR)
            return 98;
        if (polled[0].revents != 0 && !order_serve(guest))
            return 0; /* nobody keeps us any more */
        if (!guest->loaded || guest->stopped)
            continue;
        if ((polled[1].revents & POLLIN) != 0) {
            guest_step(guest); /* what is read is of now, not of the last step */
            guest_read(guest);
        }
        guest_step(guest);
        if (guest->engine.console[0] != 0)
            dprintf(STDERR_FILENO, "%s\n", guest->engine.console);
        guest->engine.console[0] = 0;
        if (guest->engine.crashed)
            return 99;
        if (guest->engine.powered_off && guest->engine.out.size == 0)
            return 0;
    }
}

int klp_mock_guest_main(int argc, char **argv)
{
    /* --mock-guest ARCH BYTES cold|incoming */
    if (argc != 5)
        return 2;
    struct guest guest = {.arch = argv[2], .size = strtoull(argv[3], NULL, 10)};
    guest.memory = mmap(NULL, guest.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE,
                        MOCK_MEMORY_FD, 0);
    if (guest.memory == MAP_FAILED) {
        dprintf(STDERR_FILENO, "mock guest: cannot map its memory\n");
        return 97;
    }
    struct sigaction note = {.sa_handler = continued_note};
    sigaction(SIGCONT, &note, NULL);
    dprintf(STDERR_FILENO, "mock guest: %s memory %s\n", argv[4], argv[3]);
    if (strcmp(argv[4], "cold") == 0)
        engine_begin(&guest);
    int status = guest_run(&guest);
    if (guest.loaded)
        mock_engine_finish(&guest.engine);
    return status;
}
