/* SPDX-License-Identifier: Apache-2.0 */
/* The thread a hypervisor calls home. PDEATHSIG means the thread that forked, so this one lives as
 * long as the hypervisor; meanwhile it reads QMP, the console and QEMU's complaints. */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/fmt.h"
#include "vm/qemu/inside.h"

/* ---- rings */

static void ring_write(struct qemu_ring *ring, const char *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++)
        ring->bytes[(ring->end + i) % ring->size] = bytes[i];
    ring->end += size;
}

size_t qemu_ring_read(const struct qemu_ring *ring, char *out, size_t capacity)
{
    uint64_t kept = ring->end < ring->size ? ring->end : ring->size;
    size_t size = kept < capacity ? (size_t)kept : capacity;
    for (size_t i = 0; i < size; i++)
        out[i] = ring->bytes[(ring->end - size + i) % ring->size];
    return size;
}

void qemu_complaint(struct qemu_hypervisor *self, char *out, size_t capacity)
{
    char text[QEMU_COMPLAINT_SIZE + 1];
    size_t size = 0;
    KLP_LOCKED (self->mutex) {
        size = qemu_ring_read(&self->complaints, text, QEMU_COMPLAINT_SIZE);
    }
    text[size] = 0;
    out[0] = 0;
    for (char *line = text, *end; line[0] != 0; line = end) {
        end = line + strcspn(line, "\n");
        if (*end != 0)
            *end++ = 0;
        if (line[0] == 0 || strstr(line, "warning:") != NULL)
            continue;
        __attribute__((cleanup(klp_auto_buf))) struct klp_buf shown =
            KLP_BUF_INIT(8 * QEMU_COMPLAINT_SIZE);
        klp_text_escape(&shown, line, strlen(line));
        klp_format(out, capacity, "%s", klp_buf_text(&shown));
        return;
    }
}

/* ---- the thread */

/* False = its end. */
static bool ring_fill(struct qemu_hypervisor *self, int fd, struct qemu_ring *ring)
{
    char bytes[4096];
    ssize_t got = read(fd, bytes, sizeof(bytes));
    if (got < 0 && (errno == EINTR || errno == EAGAIN))
        return true;
    if (got <= 0)
        return false;
    KLP_LOCKED (self->mutex) {
        ring_write(ring, bytes, (size_t)got);
    }
    return true;
}

/* Until the hypervisor has closed all three, or home is to end. */
static void home_listen(struct qemu_hypervisor *self)
{
    struct pollfd polled[4] = {{.fd = self->leave_fd, .events = POLLIN},
                               {.fd = klp_qmp_fd(self->qmp), .events = POLLIN},
                               {.fd = self->console_fd, .events = POLLIN},
                               {.fd = self->complaint_fd, .events = POLLIN}};
    while (polled[1].fd >= 0 || polled[2].fd >= 0 || polled[3].fd >= 0) {
        if (poll(polled, KLP_COUNT(polled), -1) < 0)
            continue;
        if (polled[0].revents != 0)
            return;
        if (polled[1].revents != 0 && !klp_qmp_pump(self->qmp))
            polled[1].fd = -1;
        if (polled[2].revents != 0 && !ring_fill(self, polled[2].fd, &self->console))
            polled[2].fd = -1;
        if (polled[3].revents != 0 && !ring_fill(self, polled[3].fd, &self->complaints))
            polled[3].fd = -1;
    }
    KLP_LOCKED (self->mutex) {
        self->drained = true;
        klp_cond_wake(self->changed);
    }
    struct pollfd leave = {.fd = self->leave_fd, .events = POLLIN};
    while (poll(&leave, 1, -1) <= 0)
        continue;
}

static void home_run(void *arg)
{
    struct qemu_hypervisor *self = arg;
    bool started = klp_posix_spawn(self->order, &self->pid, &self->pidfd, &self->spawn_error);
    KLP_LOCKED (self->mutex) {
        self->answered = true;
        self->started = started;
        klp_cond_wake(self->changed);
    }
    /* The other ends are the hypervisor's and the caller's, who closes his when we have answered.
     */
    if (started)
        home_listen(self);
}

bool qemu_home_start(struct qemu_hypervisor *self, const struct klp_spawn *spawn,
                     struct kelpie_error **err)
{
    struct kelpie_op forever = {.env = self->base.env, .deadline_ns = KLP_NO_DEADLINE};
    self->order = spawn;
    self->leave_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (self->leave_fd < 0)
        return klp_posix_refuse(err, errno, "cannot start QEMU");
    KLP_CHECK(klp_task_spawn(self->base.env, "hv-home", home_run, self, &self->home, err));
    klp_mutex_lock(self->mutex);
    while (!self->answered) /* forking and exec: bounded by themselves */
        KLP_IGNORE(klp_cond_wait(&forever, self->changed, self->mutex, NULL));
    klp_mutex_unlock(self->mutex);
    self->order = NULL;
    if (!self->started)
        klp_error_move(err, &self->spawn_error);
    return self->started;
}

void qemu_home_leave(struct qemu_hypervisor *self)
{
    uint64_t one = 1;
    if (self->home == NULL)
        return;
    ssize_t ignored = write(self->leave_fd, &one, sizeof(one));
    (void)ignored;
    klp_task_join(KLP_TAKE(&self->home));
}
