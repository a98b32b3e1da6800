/* SPDX-License-Identifier: Apache-2.0 */
/* The mock hypervisor: what a keeper sees of a mock guest's process. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fmt.h"
#include "vm/anchor.h"
#include "vm/mock/mock.h"
#include "vm/mock/process.h"
#include "vm/private_pages/private_pages.h"

#define CONSOLE_SIZE (16 * 1024)
#define CONTROL_MS 5000
#define DRAIN_MS 1000 /* for the last words of a dead process */
#define GONE_MS 200   /* for a process that was killed to be reaped */

struct mock_hypervisor {
    struct klp_hypervisor base;
    struct klp_anchor *anchor;
    struct klp_handle memory; /* what the guest maps */
    struct klp_mapping mapping;
    int guest_fd, control_fd, console_fd;
    struct klp_task *console_task;
    struct klp_mutex *mutex;
    struct klp_cond *changed;   /* drained */
    char console[CONSOLE_SIZE]; /* ring, under the mutex */
    uint64_t console_end;
    bool drained; /* under the mutex, like the next: the console is at its end */
    bool killed;
    uint8_t order_number;
    const char *fault; /* KELPIE_MOCK_FAULT, or "" */
};

static struct mock_hypervisor *mock_from(struct klp_hypervisor *base)
{
    return (struct mock_hypervisor *)base;
}

static bool fault_is(const struct mock_hypervisor *mock, const char *name)
{
    return strcmp(mock->fault, name) == 0;
}

static kelpie_outcome injected(const struct mock_hypervisor *mock, struct kelpie_error **err)
{
    return klp_fail(err, KELPIE_E_IO, "mock fault: %s", mock->fault);
}

static void console_run(void *arg)
{
    struct mock_hypervisor *mock = arg;
    char bytes[1024];
    ssize_t got;
    while ((got = read(mock->console_fd, bytes, sizeof(bytes))) > 0 ||
           (got < 0 && errno == EINTR)) {
        KLP_LOCKED (mock->mutex) {
            for (ssize_t i = 0; i < got; i++)
                mock->console[mock->console_end++ % CONSOLE_SIZE] = bytes[i];
        }
    }
    KLP_LOCKED (mock->mutex) {
        mock->drained = true;
        klp_cond_wake(mock->changed);
    }
}

/* The process is dead: whoever is told so finds its last words. */
static void console_drain(struct mock_hypervisor *mock)
{
    struct kelpie_op op = klp_op_plain(mock->base.env, DRAIN_MS);
    kelpie_outcome outcome = KLP_OK;
    klp_mutex_lock(mock->mutex);
    while (!mock->drained && kelpie_is_ok(outcome))
        outcome = klp_cond_wait(&op, mock->changed, mock->mutex, NULL);
    klp_mutex_unlock(mock->mutex);
}

/* ---- control: one order, one answer */

struct order {
    char bytes[MOCK_ORDER_MAX];
    size_t size;
};

static bool control_send(struct mock_hypervisor *mock, struct order *order, char letter)
{
    order->bytes[0] = letter;
    order->bytes[1] = (char)++mock->order_number;
    return send(mock->control_fd, order->bytes, order->size, MSG_NOSIGNAL) == (ssize_t)order->size;
}

/* What is left of orders that nobody waits for any more is passed over. */
static kelpie_outcome control_receive(const struct kelpie_op *op, struct mock_hypervisor *mock,
                                      struct order *answer, struct kelpie_error **err)
{
    for (;;) {
        KLP_TRY(klp_posix_wait(op, mock->control_fd, POLLIN, "waiting for the mock guest", err));
        ssize_t got = recv(mock->control_fd, answer->bytes, sizeof(answer->bytes), MSG_DONTWAIT);
        if (got < 0 && (errno == EAGAIN || errno == EINTR))
            continue;
        if (got < MOCK_ORDER_HEADER)
            return klp_fail(err, KELPIE_E_CRASHED, "the mock guest is gone");
        answer->size = (size_t)got;
        if ((uint8_t)answer->bytes[1] == mock->order_number)
            return KLP_OK;
    }
}

/* `order` holds what goes with the letter; then the answer's. */
static kelpie_outcome control_ask(const struct kelpie_op *op, struct mock_hypervisor *mock,
                                  char letter, struct order *order, struct kelpie_error **err)
{
    struct kelpie_op within = klp_op_within(op, CONTROL_MS);
    if (!control_send(mock, order, letter))
        return klp_fail(err, KELPIE_E_CRASHED, "the mock guest is gone");
    KLP_TRY(control_receive(&within, mock, order, err));
    if (order->bytes[0] != letter)
        return klp_fail(err, KELPIE_E_CORRUPT, "the mock guest refused order %c", letter);
    return KLP_OK;
}

static kelpie_outcome control_order(const struct kelpie_op *op, struct mock_hypervisor *mock,
                                    char letter, struct kelpie_error **err)
{
    struct order order = {.size = MOCK_ORDER_HEADER};
    return control_ask(op, mock, letter, &order, err);
}

/* An order without an answer would take effect later, when nobody thinks of it: its opposite
 * follows, and so the guest stays as it was. */
static kelpie_outcome control_turn(const struct kelpie_op *op, struct mock_hypervisor *mock,
                                   char letter, char opposite, struct kelpie_error **err)
{
    struct order undo = {.size = MOCK_ORDER_HEADER};
    kelpie_outcome outcome = control_order(op, mock, letter, err);
    if (!kelpie_is_ok(outcome))
        KLP_IGNORE(control_send(mock, &undo, opposite));
    return outcome;
}

/* ---- spawn */

static bool sockets_make(struct mock_hypervisor *mock, int theirs[3], struct kelpie_error **err)
{
    int *ours[] = {&mock->guest_fd, &mock->control_fd, &mock->console_fd};
    for (size_t i = 0; i < 3; i++) {
        int pair[2], type = i == 0 ? SOCK_STREAM : SOCK_SEQPACKET;
        int result =
            i == 2 ? pipe2(pair, O_CLOEXEC) : socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, pair);
        if (result != 0)
            return klp_posix_refuse(err, errno, "cannot make the mock guest's sockets");
        *ours[i] = pair[0];
        theirs[i] = pair[1];
    }
    return true;
}

static bool process_start(struct mock_hypervisor *mock, const int theirs[3],
                          enum klp_spawn_mode mode, const struct klp_machine *machine,
                          struct kelpie_error **err)
{
    char size[24], here[4096];
    klp_format(size, sizeof(size), "%llu", (unsigned long long)machine->memory_bytes);
    const char *argv[] = {"kelpie-keeper",
                          "--mock-guest",
                          klp_arch_name(machine->arch),
                          size,
                          mode == KLP_SPAWN_COLD ? "cold" : "incoming",
                          NULL};
    const int fds[] = {theirs[0], theirs[1], klp_handle_fd(mock->memory)};
    struct klp_spawn spawn = {.path = "/proc/self/exe",
                              .argv = argv,
                              .fds = fds,
                              .fd_count = 3,
                              .stdin_fd = -1,
                              .stdout_fd = -1,
                              .stderr_fd = theirs[2],
                              .directory = "/"};
    if (getcwd(here, sizeof(here)) !=
        NULL) /* whoever counts processes finds it by the VM's folder */
        spawn.directory = here;
    return klp_anchor_start(mock->base.env, &spawn, &mock->anchor, err);
}

static bool guest_start(struct mock_hypervisor *mock, enum klp_spawn_mode mode,
                        const struct klp_machine *machine, struct kelpie_error **err)
{
    int theirs[3] = {-1, -1, -1};
    bool fine = sockets_make(mock, theirs, err) && process_start(mock, theirs, mode, machine, err);
    for (size_t i = 0; i < KLP_COUNT(theirs); i++)
        if (theirs[i] >= 0)
            close(theirs[i]);
    return fine &&
           klp_task_spawn(mock->base.env, "console", console_run, mock, &mock->console_task, err);
}

/* As if it had never been spawned. The process is killed and reaped; its pipe ends with it. */
static void guest_leave(struct mock_hypervisor *mock)
{
    int *fds[] = {&mock->guest_fd, &mock->control_fd, &mock->console_fd};
    klp_anchor_destroy(KLP_TAKE(&mock->anchor));
    if (mock->console_task != NULL)
        klp_task_join(KLP_TAKE(&mock->console_task));
    for (size_t i = 0; i < KLP_COUNT(fds); i++) {
        if (*fds[i] >= 0)
            close(*fds[i]);
        *fds[i] = -1;
    }
    klp_handle_close(mock->base.env, mock->memory);
    mock->memory = KLP_NO_HANDLE;
    mock->drained = false;
}

static kelpie_outcome guest_spawn(const struct kelpie_op *op, struct mock_hypervisor *mock,
                                  enum klp_spawn_mode mode, const struct klp_machine *machine,
                                  struct klp_handle memory, struct kelpie_error **err)
{
    if (!klp_handle_is_none(memory)) {
        KLP_REQUIRE(klp_handle_copy(op->env, memory, &mock->memory, err));
    } else {
        KLP_REQUIRE(
            klp_memory_create(op->env, "mock-memory", machine->memory_bytes, &mock->memory, err));
        KLP_REQUIRE(klp_memory_seal(op->env, mock->memory, err));
    }
    mock->mapping.size = machine->memory_bytes;
    KLP_REQUIRE(guest_start(mock, mode, machine, err));
    /* It maps its memory before it obeys: an answer means the mapping is there. */
    if (mode == KLP_SPAWN_INCOMING)
        KLP_TRY(control_order(op, mock, MOCK_ORDER_STOP, err));
    return KLP_OK;
}

static kelpie_outcome mock_spawn(const struct kelpie_op *op, struct klp_hypervisor *base,
                                 enum klp_spawn_mode mode, const struct klp_machine *machine,
                                 struct klp_handle memory, const struct klp_handle *files,
                                 size_t file_count, struct kelpie_error **err)
{
    struct mock_hypervisor *mock = mock_from(base);
    (void)files;
    (void)file_count;
    if (fault_is(mock, "boot"))
        return injected(mock, err);
    kelpie_outcome outcome = guest_spawn(op, mock, mode, machine, memory, err);
    if (!kelpie_is_ok(outcome))
        guest_leave(mock);
    return outcome;
}

/* ---- load and capture */

static kelpie_outcome mapping_find(struct mock_hypervisor *mock, struct kelpie_error **err)
{
    KLP_REQUIRE(klp_mapping_find(klp_anchor_pid(mock->anchor), klp_handle_fd(mock->memory),
                                 mock->mapping.size, &mock->mapping, err));
    return KLP_OK;
}

static kelpie_outcome mock_load(const struct kelpie_op *op, struct klp_hypervisor *base,
                                struct klp_handle device_state, const struct klp_handle *overlays,
                                size_t count, struct kelpie_error **err)
{
    struct mock_hypervisor *mock = mock_from(base);
    struct order order;
    uint64_t size;
    if (fault_is(mock, "load"))
        return injected(mock, err);
    KLP_REQUIRE(klp_memory_size(op->env, device_state, &size, err));
    if (size > MOCK_DEVICE_MAX)
        return klp_fail(err, KELPIE_E_CORRUPT, "a mock device state of %llu bytes",
                        (unsigned long long)size);
    KLP_REQUIRE(klp_memory_read(op->env, device_state, 0, order.bytes + MOCK_ORDER_HEADER,
                                (size_t)size, err));
    order.size = MOCK_ORDER_HEADER + (size_t)size;
    KLP_TRY(mapping_find(mock, err));
    for (size_t i = 0; i < count; i++)
        KLP_TRY(klp_private_pages_lay(op, &mock->mapping, overlays[i], err));
    kelpie_outcome outcome = control_ask(op, mock, MOCK_ORDER_LOAD, &order, err);
    return klp_wrap(err, outcome, "cannot load the device state");
}

static kelpie_outcome state_save(const struct kelpie_op *op, struct mock_hypervisor *mock,
                                 struct klp_handle *out, struct kelpie_error **err)
{
    struct order order = {.size = MOCK_ORDER_HEADER};
    struct klp_handle memory;
    KLP_TRY(control_ask(op, mock, MOCK_ORDER_SAVE, &order, err));
    size_t size = order.size - MOCK_ORDER_HEADER;
    KLP_REQUIRE(klp_memory_create(op->env, "mock-device", size, &memory, err));
    if (klp_memory_write(op->env, memory, 0, order.bytes + MOCK_ORDER_HEADER, size, err) &&
        klp_memory_seal(op->env, memory, err)) {
        *out = memory;
        return KLP_OK;
    }
    klp_handle_close(op->env, memory);
    return (kelpie_outcome){KELPIE_FAIL};
}

/* Of a process that dies under it a capture sees all sorts of failures. */
static bool guest_is_gone(struct mock_hypervisor *mock)
{
    struct kelpie_op op = klp_op_plain(mock->base.env, GONE_MS);
    int code, signal;
    return kelpie_is_ok(klp_anchor_wait(&op, mock->anchor, &code, &signal, NULL));
}

static kelpie_outcome parts_capture(const struct kelpie_op *op, struct mock_hypervisor *mock,
                                    struct klp_handle *device_state, struct klp_handle *dirty,
                                    struct kelpie_error **err)
{
    uint64_t pages;
    KLP_TRY(mapping_find(mock, err));
    KLP_TRY(state_save(op, mock, device_state, err));
    kelpie_outcome outcome = klp_private_pages_copy(op, &mock->mapping, NULL, dirty, &pages, err);
    if (!kelpie_is_ok(outcome))
        klp_handle_close(op->env, *device_state);
    return outcome;
}

static kelpie_outcome mock_capture(const struct kelpie_op *op, struct klp_hypervisor *base,
                                   struct klp_handle *device_state, struct klp_handle *dirty,
                                   struct kelpie_error **err)
{
    struct mock_hypervisor *mock = mock_from(base);
    if (fault_is(mock, "crash-in-capture"))
        klp_anchor_signal(mock->anchor, SIGKILL);
    if (fault_is(mock, "capture"))
        return injected(mock, err);
    kelpie_outcome outcome = parts_capture(op, mock, device_state, dirty, err);
    if (kelpie_is_ok(outcome) || !guest_is_gone(mock))
        return outcome;
    klp_error_clear(err);
    return klp_fail(err, KELPIE_E_CRASHED, "the mock guest is gone");
}

/* ---- the rest */

static kelpie_outcome mock_stop(const struct kelpie_op *op, struct klp_hypervisor *base,
                                struct kelpie_error **err)
{
    return control_turn(op, mock_from(base), MOCK_ORDER_STOP, MOCK_ORDER_CONT, err);
}

static kelpie_outcome mock_cont(const struct kelpie_op *op, struct klp_hypervisor *base,
                                struct kelpie_error **err)
{
    return control_turn(op, mock_from(base), MOCK_ORDER_CONT, MOCK_ORDER_STOP, err);
}

static void mock_freeze(struct klp_hypervisor *base)
{
    klp_anchor_signal(mock_from(base)->anchor, SIGSTOP);
}

static void mock_unfreeze(struct klp_hypervisor *base)
{
    klp_anchor_signal(mock_from(base)->anchor, SIGCONT);
}

static kelpie_outcome mock_guest(const struct kelpie_op *op, struct klp_hypervisor *base,
                                 struct klp_handle *out, struct kelpie_error **err)
{
    KLP_REQUIRE(klp_handle_copy(op->env, klp_handle_from_fd(mock_from(base)->guest_fd), out, err));
    return KLP_OK;
}

static kelpie_outcome mock_wait(const struct kelpie_op *op, struct klp_hypervisor *base,
                                struct klp_hypervisor_exit *out, struct kelpie_error **err)
{
    struct mock_hypervisor *mock = mock_from(base);
    KLP_TRY(klp_anchor_wait(op, mock->anchor, &out->code, &out->signal, err));
    console_drain(mock);
    out->clean = out->signal == 0 && out->code == 0;
    bool killed = false;
    KLP_LOCKED (mock->mutex) {
        killed = mock->killed;
    }
    if (killed)
        klp_format(out->reason, sizeof(out->reason), "killed as ordered");
    else if (out->signal != 0)
        klp_format(out->reason, sizeof(out->reason), "the hypervisor was killed by signal %d",
                   out->signal);
    else if (out->code == 99)
        klp_format(out->reason, sizeof(out->reason), "the guest crashed");
    else
        klp_format(out->reason, sizeof(out->reason),
                   out->code == 0 ? "the guest powered off" : "the hypervisor ended with status %d",
                   out->code);
    return KLP_OK;
}

static void mock_kill(struct klp_hypervisor *base)
{
    KLP_LOCKED (mock_from(base)->mutex) {
        mock_from(base)->killed = true;
    }
    klp_anchor_signal(mock_from(base)->anchor, SIGKILL);
}

static int64_t mock_pid(struct klp_hypervisor *base)
{
    return mock_from(base)->anchor != NULL ? klp_anchor_pid(mock_from(base)->anchor) : 0;
}

static size_t mock_console(struct klp_hypervisor *base, char *out, size_t capacity)
{
    struct mock_hypervisor *mock = mock_from(base);
    size_t size = 0;
    KLP_LOCKED (mock->mutex) {
        uint64_t kept = mock->console_end < CONSOLE_SIZE ? mock->console_end : CONSOLE_SIZE;
        uint64_t start = mock->console_end - (kept < capacity ? kept : capacity);
        for (; start + size < mock->console_end; size++)
            out[size] = mock->console[(start + size) % CONSOLE_SIZE];
    }
    return size;
}

static void mock_destroy(struct klp_hypervisor *base)
{
    struct mock_hypervisor *mock = mock_from(base);
    guest_leave(mock);
    klp_cond_destroy(mock->changed);
    klp_mutex_destroy(mock->mutex);
    klp_mem_free(mock);
}

static const struct klp_hypervisor_ops mock_ops = {
    .name = "mock",
    .spawn = mock_spawn,
    .load = mock_load,
    .stop = mock_stop,
    .cont = mock_cont,
    .freeze = mock_freeze,
    .unfreeze = mock_unfreeze,
    .capture = mock_capture,
    .guest = mock_guest,
    .wait = mock_wait,
    .kill = mock_kill,
    .pid = mock_pid,
    .console = mock_console,
    .destroy = mock_destroy,
};

bool klp_hypervisor_mock_create(struct klp_env *env, struct klp_hypervisor **out,
                                struct kelpie_error **err)
{
    struct mock_hypervisor *mock = KLP_NEW(struct mock_hypervisor);
    const char *fault = getenv("KELPIE_MOCK_FAULT");
    (void)err;
    mock->base = (struct klp_hypervisor){&mock_ops, env};
    mock->memory = KLP_NO_HANDLE;
    mock->guest_fd = mock->control_fd = mock->console_fd = -1;
    mock->mutex = klp_mutex_create(env);
    mock->changed = klp_cond_create(env);
    mock->fault = fault != NULL ? fault : "";
    *out = &mock->base;
    return true;
}
