/* SPDX-License-Identifier: Apache-2.0 */
/* One QEMU as its keeper sees it: start, stand still, go on, end. Loading and capturing: capture.c.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fmt.h"
#include "vm/qemu/inside.h"

#define DRAIN_MS 1000 /* the last words of a dead process */
#define SELF "/proc/self/exe"

static const struct klp_hypervisor_ops qemu_ops;

static void fd_close(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

bool klp_hypervisor_qemu_create(struct klp_env *env, struct klp_dir *vm_dir, const char *qemu_path,
                                struct klp_hypervisor **out, struct kelpie_error **err)
{
    (void)vm_dir; /* nothing of ours has a name: sockets and memory are inherited */
    if (qemu_path == NULL || qemu_path[0] != '/')
        return klp_refuse(err, KELPIE_E_INVALID, "the path of QEMU must be absolute");
    struct qemu_hypervisor *self = KLP_NEW(struct qemu_hypervisor);
    *self = (struct qemu_hypervisor){.base = {&qemu_ops, env},
                                     .qemu_path = klp_mem_string(qemu_path),
                                     .mutex = klp_mutex_create(env),
                                     .changed = klp_cond_create(env),
                                     .leave_fd = -1,
                                     .console_fd = -1,
                                     .complaint_fd = -1,
                                     .pidfd = -1,
                                     .agent_fd = -1,
                                     .ram_fd = -1};
    self->console =
        (struct qemu_ring){.bytes = klp_mem_alloc(QEMU_CONSOLE_SIZE), .size = QEMU_CONSOLE_SIZE};
    self->complaints = (struct qemu_ring){.bytes = klp_mem_alloc(QEMU_COMPLAINT_SIZE),
                                          .size = QEMU_COMPLAINT_SIZE};
    *out = &self->base;
    return true;
}

static void qemu_destroy(struct klp_hypervisor *hypervisor)
{
    struct qemu_hypervisor *self = qemu_from(hypervisor);
    qemu_ahead_drop(hypervisor);
    qemu_home_leave(self);
    klp_qmp_destroy(self->qmp);
    fd_close(&self->leave_fd);
    fd_close(&self->console_fd);
    fd_close(&self->complaint_fd);
    fd_close(&self->pidfd);
    fd_close(&self->agent_fd);
    fd_close(&self->ram_fd);
    klp_mem_free(self->console.bytes);
    klp_mem_free(self->complaints.bytes);
    klp_error_clear(&self->spawn_error);
    klp_cond_destroy(self->changed);
    klp_mutex_destroy(self->mutex);
    klp_mem_free(self->qemu_path);
    klp_mem_free(self);
}

/* ---- starting */

struct there { /* the hypervisor's ends; closed here once it has them */
    int qmp, agent, console, complaint;
};

static void there_close(struct there *there)
{
    fd_close(&there->qmp);
    fd_close(&there->agent);
    fd_close(&there->console);
    fd_close(&there->complaint);
}

static bool pair_make(int *here, int *there, struct kelpie_error **err)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) != 0)
        return klp_posix_refuse(err, errno, "cannot make a socket for QEMU");
    *here = pair[0];
    *there = pair[1];
    return true;
}

static bool ends_make(struct qemu_hypervisor *self, struct there *there, struct kelpie_error **err)
{
    int qmp_fd = -1;
    KLP_CHECK(pair_make(&qmp_fd, &there->qmp, err));
    self->qmp = klp_qmp_create(self->base.env, qmp_fd);
    KLP_CHECK(pair_make(&self->agent_fd, &there->agent, err));
    KLP_CHECK(pair_make(&self->console_fd, &there->console, err));
    return pair_make(&self->complaint_fd, &there->complaint, err);
}

/* Every guest is a clone: of its base, or of as many zeros, so that in both cases what it wrote is
 * its private pages and one way of capturing serves. */
static bool memory_take(struct qemu_hypervisor *self, const struct klp_machine *machine,
                        struct klp_handle base, struct kelpie_error **err)
{
    struct klp_env *env = self->base.env;
    struct klp_handle memory;
    if (!klp_handle_is_none(base)) {
        KLP_CHECK(klp_memory_check(env, base, machine->memory_bytes, err));
        KLP_CHECK(klp_handle_copy(env, base, &memory, err));
    } else {
        KLP_CHECK(klp_memory_create(env, "kelpie-zeros", machine->memory_bytes, &memory, err));
        if (!klp_memory_seal(env, memory, err)) {
            klp_handle_close(env, memory);
            return false;
        }
    }
    self->ram_fd = klp_handle_fd(memory);
    self->memory_bytes = machine->memory_bytes;
    return true;
}

static bool process_start(struct qemu_hypervisor *self, const struct klp_qemu_arguments *arguments,
                          const struct there *there, const struct klp_handle *files, size_t count,
                          struct kelpie_error **err)
{
    const char *argv[QEMU_ARGUMENTS_MAX + 4] = {"kelpie-keeper", QEMU_EXEC_OPTION, self->qemu_path};
    int fds[6] = {there->qmp, there->agent, there->console, self->ram_fd};
    size_t fd_count = 4;
    for (size_t i = 0; i < arguments->count; i++)
        argv[3 + i] = arguments->words[i];
    for (size_t i = 0; i < count; i++)
        fds[fd_count++] = klp_handle_fd(files[i]);
    const struct klp_spawn spawn = {.path = SELF,
                                    .argv = argv,
                                    .fds = fds,
                                    .fd_count = fd_count,
                                    .stdin_fd = -1,
                                    .stdout_fd = there->complaint,
                                    .stderr_fd = there->complaint,
                                    .die_with_parent = true};
    return qemu_home_start(self, &spawn, err);
}

static kelpie_outcome capabilities_set(const struct kelpie_op *op, struct qemu_hypervisor *self,
                                       struct kelpie_error **err)
{
    struct klp_json *events = klp_json_object(), *list = klp_json_array(),
                    *arguments = klp_json_object();
    klp_json_set_text(events, "capability", "events");
    klp_json_set_bool(events, "state", true);
    klp_json_append(list, events);
    klp_json_set(arguments, "capabilities", list);
    return klp_qmp_call(op, self->qmp, "migrate-set-capabilities", arguments, -1, NULL, err);
}

static kelpie_outcome process_greet(const struct kelpie_op *op, struct qemu_hypervisor *self,
                                    enum klp_spawn_mode mode, struct kelpie_error **err)
{
    KLP_TRY(klp_qmp_open(op, self->qmp, NULL, 0, err));
    return mode == KLP_SPAWN_INCOMING ? capabilities_set(op, self, err) : KLP_OK;
}

static void process_signal(struct qemu_hypervisor *self, int number)
{
    if (self->pidfd >= 0)
        syscall(SYS_pidfd_send_signal, self->pidfd, number, NULL, 0);
}

/* Back to never spawned. */
static void process_undo(struct qemu_hypervisor *self)
{
    siginfo_t ignored;
    process_signal(self, SIGKILL);
    while (self->pidfd >= 0 && waitid(P_PIDFD, (id_t)self->pidfd, &ignored, WEXITED) != 0 &&
           errno == EINTR)
        continue;
    qemu_home_leave(self);
    klp_qmp_destroy(KLP_TAKE(&self->qmp));
    fd_close(&self->leave_fd);
    fd_close(&self->console_fd);
    fd_close(&self->complaint_fd);
    fd_close(&self->pidfd);
    fd_close(&self->agent_fd);
    fd_close(&self->ram_fd);
    klp_error_clear(&self->spawn_error);
    self->answered = self->started = self->drained = false;
    self->pid = 0;
}

void qemu_drained_wait(struct qemu_hypervisor *self)
{
    struct kelpie_op op = klp_op_plain(self->base.env, DRAIN_MS);
    kelpie_outcome outcome = KLP_OK;
    klp_mutex_lock(self->mutex);
    while (!self->drained && kelpie_is_ok(outcome))
        outcome = klp_cond_wait(&op, self->changed, self->mutex, NULL);
    klp_mutex_unlock(self->mutex);
}

/* A QEMU that ended before it greeted has said why on stderr. */
static kelpie_outcome complaint_tell(struct qemu_hypervisor *self, kelpie_outcome outcome,
                                     struct kelpie_error **err)
{
    char complaint[256];
    if (klp_error_code(err) == KELPIE_E_CRASHED)
        qemu_drained_wait(self);
    qemu_complaint(self, complaint, sizeof(complaint));
    if (complaint[0] != 0)
        klp_error_reason_add(err, "%s", complaint);
    return klp_wrap(err, outcome, "cannot start QEMU%s%s", complaint[0] != 0 ? ": " : "",
                    complaint);
}

static kelpie_outcome qemu_spawn(const struct kelpie_op *op, struct klp_hypervisor *hypervisor,
                                 enum klp_spawn_mode mode, const struct klp_machine *machine,
                                 struct klp_handle base, const struct klp_handle *files,
                                 size_t file_count, struct kelpie_error **err)
{
    struct qemu_hypervisor *self = qemu_from(hypervisor);
    struct klp_qemu_arguments arguments;
    struct there there = {-1, -1, -1, -1};
    if (self->pidfd >= 0)
        return klp_fail(err, KELPIE_E_STATE, "this hypervisor was started before");
    if (mode == KLP_SPAWN_INCOMING)
        file_count = 0; /* cmdline.c: kernel_words */
    if (file_count != 0 && file_count != 2)
        return klp_fail(err, KELPIE_E_INVALID, "QEMU needs a kernel and an initramfs");
    KLP_REQUIRE(klp_qemu_arguments_make(machine, mode, file_count == 2, &arguments, err));
    bool started = memory_take(self, machine, base, err) && ends_make(self, &there, err) &&
                   process_start(self, &arguments, &there, files, file_count, err);
    there_close(&there);
    klp_qemu_arguments_finish(&arguments);
    kelpie_outcome outcome = {started ? KELPIE_OK : KELPIE_FAIL};
    if (started) {
        outcome = process_greet(op, self, mode, err);
        if (!kelpie_is_ok(outcome))
            outcome = complaint_tell(self, outcome, err);
    }
    if (!kelpie_is_ok(outcome)) {
        process_undo(self); /* whatever was unknown is over */
        return (kelpie_outcome){KELPIE_FAIL};
    }
    return KLP_OK;
}

/* ---- standing still and going on */

/* An answer that does not come leaves a command in the queue that would take effect later, when
 * nobody thinks of it: the opposite is queued behind it, and so the state stays the former one. */
static kelpie_outcome order_give(const struct kelpie_op *op, struct klp_hypervisor *hypervisor,
                                 const char *command, const char *opposite,
                                 struct kelpie_error **err)
{
    struct qemu_hypervisor *self = qemu_from(hypervisor);
    KLP_AUTO(kelpie_error) struct kelpie_error *late = NULL;
    if (self->qmp == NULL)
        return klp_fail(err, KELPIE_E_STATE, "cannot %s: QEMU was not started", command);
    kelpie_outcome outcome = klp_qmp_call(op, self->qmp, command, NULL, -1, NULL, &late);
    if (kelpie_is_unknown(outcome)) {
        klp_qmp_post(self->qmp, opposite);
        return klp_fail(err, KELPIE_E_TIMEOUT, "%s", kelpie_error_message(late));
    }
    if (!kelpie_is_ok(outcome))
        klp_error_move(err, &late);
    return outcome;
}

static kelpie_outcome qemu_stop(const struct kelpie_op *op, struct klp_hypervisor *hypervisor,
                                struct kelpie_error **err)
{
    return order_give(op, hypervisor, "stop", "cont", err);
}

static kelpie_outcome qemu_cont(const struct kelpie_op *op, struct klp_hypervisor *hypervisor,
                                struct kelpie_error **err)
{
    return order_give(op, hypervisor, "cont", "stop", err);
}

static void qemu_freeze(struct klp_hypervisor *hypervisor)
{
    process_signal(qemu_from(hypervisor), SIGSTOP);
}

static void qemu_unfreeze(struct klp_hypervisor *hypervisor)
{
    process_signal(qemu_from(hypervisor), SIGCONT);
}

static void qemu_kill(struct klp_hypervisor *hypervisor)
{
    struct qemu_hypervisor *self = qemu_from(hypervisor);
    __atomic_store_n(&self->killed, true, __ATOMIC_RELAXED);
    process_signal(self, SIGKILL);
}

/* ---- the end */

static bool console_has(struct qemu_hypervisor *self, const char *text)
{
    char *copy = klp_mem_alloc(QEMU_CONSOLE_SIZE);
    size_t size = 0;
    KLP_LOCKED (self->mutex) {
        size = qemu_ring_read(&self->console, copy, QEMU_CONSOLE_SIZE);
    }
    bool has = memmem(copy, size, text, strlen(text)) != NULL;
    klp_mem_free(copy);
    return has;
}

/* Without a driver for pvpanic in the guest a panic looks like a reset: panic=-1 (qemu-lab 9). */
static bool guest_panicked(struct qemu_hypervisor *self, const struct klp_qmp_facts *facts)
{
    return facts->panicked || (strcmp(facts->shutdown_reason, "guest-shutdown") != 0 &&
                               console_has(self, "Kernel panic - not syncing"));
}

static void end_explain(struct qemu_hypervisor *self, struct klp_hypervisor_exit *end)
{
    struct klp_qmp_facts facts;
    char complaint[128];
    klp_qmp_facts(self->qmp, &facts);
    qemu_complaint(self, complaint, sizeof(complaint));
    bool killed = __atomic_load_n(&self->killed, __ATOMIC_RELAXED);
    end->clean = killed || strcmp(facts.shutdown_reason, "guest-shutdown") == 0 ||
                 strcmp(facts.shutdown_reason, "host-qmp-quit") == 0;
    const char *reason = NULL;
    if (guest_panicked(self, &facts)) {
        end->clean = killed;
        reason = "guest kernel panicked";
    } else if (end->signal == 0 && facts.shut_down) {
        reason = strcmp(facts.shutdown_reason, "guest-shutdown") == 0 ? "guest powered off"
                 : strcmp(facts.shutdown_reason, "guest-reset") == 0  ? "guest reset itself"
                                                                      : facts.shutdown_reason;
    }
    if (reason != NULL)
        klp_format(end->reason, sizeof(end->reason), "%s", reason);
    else if (end->signal != 0)
        klp_format(end->reason, sizeof(end->reason), "killed by signal %d", end->signal);
    else
        klp_format(end->reason, sizeof(end->reason), "QEMU ended with status %d%s%s", end->code,
                   complaint[0] != 0 ? ": " : "", complaint);
}

static kelpie_outcome process_reap(const struct kelpie_op *op, struct qemu_hypervisor *self,
                                   struct klp_hypervisor_exit *end, struct kelpie_error **err)
{
    siginfo_t info;
    KLP_TRY(klp_posix_wait(op, self->pidfd, POLLIN, "waiting for QEMU's end", err));
    info.si_pid = 0;
    if (waitid(P_PIDFD, (id_t)self->pidfd, &info, WEXITED) != 0)
        return klp_posix_fail(err, errno, "cannot wait for QEMU");
    *end = (struct klp_hypervisor_exit){0};
    if (info.si_code == CLD_EXITED)
        end->code = info.si_status;
    else
        end->signal = info.si_status;
    return KLP_OK;
}

static kelpie_outcome qemu_wait(const struct kelpie_op *op, struct klp_hypervisor *hypervisor,
                                struct klp_hypervisor_exit *out, struct kelpie_error **err)
{
    struct qemu_hypervisor *self = qemu_from(hypervisor);
    bool reaped = false;
    if (self->pidfd < 0)
        return klp_fail(err, KELPIE_E_STATE, "QEMU was not started");
    KLP_LOCKED (self->mutex) {
        reaped = self->reaped;
    }
    if (!reaped) {
        KLP_TRY(process_reap(op, self, &self->end, err));
        qemu_drained_wait(self);
        end_explain(self, &self->end);
        KLP_LOCKED (self->mutex) {
            self->reaped = true;
        }
    }
    *out = self->end;
    return KLP_OK;
}

/* ---- the rest */

/* One stream, handed out again and again: its two ends resynchronise by HELLO. */
static kelpie_outcome qemu_guest(const struct kelpie_op *op, struct klp_hypervisor *hypervisor,
                                 struct klp_handle *out, struct kelpie_error **err)
{
    struct qemu_hypervisor *self = qemu_from(hypervisor);
    if (self->agent_fd < 0)
        return klp_fail(err, KELPIE_E_STATE, "QEMU was not started");
    KLP_REQUIRE(klp_handle_copy(op->env, klp_handle_from_fd(self->agent_fd), out, err));
    return KLP_OK;
}

static int64_t qemu_pid(struct klp_hypervisor *hypervisor)
{
    return qemu_from(hypervisor)->pid;
}

static size_t qemu_console(struct klp_hypervisor *hypervisor, char *out, size_t capacity)
{
    struct qemu_hypervisor *self = qemu_from(hypervisor);
    size_t size = 0;
    KLP_LOCKED (self->mutex) {
        size = qemu_ring_read(&self->console, out, capacity);
    }
    return size;
}

static const struct klp_hypervisor_ops qemu_ops = {
    .name = "qemu",
    .spawn = qemu_spawn,
    .load = qemu_load,
    .stop = qemu_stop,
    .cont = qemu_cont,
    .freeze = qemu_freeze,
    .unfreeze = qemu_unfreeze,
    .ahead = qemu_ahead,
    .ahead_drop = qemu_ahead_drop,
    .capture = qemu_capture,
    .guest = qemu_guest,
    .wait = qemu_wait,
    .kill = qemu_kill,
    .pid = qemu_pid,
    .console = qemu_console,
    .destroy = qemu_destroy,
};
