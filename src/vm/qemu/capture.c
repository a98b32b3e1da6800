/* SPDX-License-Identifier: Apache-2.0 */
/* Device state and pages in and out. QEMU's own migration of memory is never used: with TCG before
 * 9.0 it loses writes (qemu-lab 7.1). The device state goes by xen-save-devices-state, which needs
 * no Xen and leaves the guest standing still; the pages are the process's private ones. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fmt.h"
#include "base/limits.h"
#include "vm/qemu/inside.h"

#define SAVES_MAX 8 /* a device that still takes input has a queue, and queues fill */
#define SEALS (F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)

/* A descriptor of its own: offset 0, shared with nobody. */
static int fd_anew(int fd, int flags, struct kelpie_error **err)
{
    char path[64];
    klp_format(path, sizeof(path), "/proc/self/fd/%d", fd);
    int anew = open(path, flags | O_CLOEXEC);
    if (anew < 0)
        KLP_IGNORE(klp_posix_refuse(err, errno, "cannot reopen a memory object"));
    return anew;
}

/* ---- loading */

static struct klp_json *text_argument(const char *key, const char *text)
{
    struct klp_json *arguments = klp_json_object();
    klp_json_set_text(arguments, key, text);
    return arguments;
}

static kelpie_outcome state_load(const struct kelpie_op *op, struct qemu_hypervisor *self,
                                 int state_fd, struct kelpie_error **err)
{
    KLP_TRY(klp_qmp_call(op, self->qmp, "getfd", text_argument("fdname", "state"), state_fd, NULL,
                         err));
    KLP_TRY(klp_qmp_call(op, self->qmp, "migrate-incoming", text_argument("uri", "fd:state"), -1,
                         NULL, err));
    return klp_qmp_migration_wait(op, self->qmp, err);
}

/* QEMU ends by itself, with a complaint, when it cannot read a state; without one it was killed. */
static kelpie_outcome load_explain(struct qemu_hypervisor *self, kelpie_outcome outcome,
                                   struct kelpie_error **err)
{
    struct klp_qmp_facts facts;
    char complaint[256];
    klp_qmp_facts(self->qmp, &facts);
    if (facts.over || klp_error_code(err) == KELPIE_E_CORRUPT)
        qemu_drained_wait(self);
    qemu_complaint(self, complaint, sizeof(complaint));
    if (complaint[0] == 0)
        return klp_wrap(err, outcome, "cannot restore the guest");
    klp_error_clear(err);
    return klp_fail(err, KELPIE_E_CORRUPT, "cannot restore the guest: %s", complaint);
}

kelpie_outcome qemu_load(const struct kelpie_op *op, struct klp_hypervisor *hypervisor,
                         struct klp_handle device_state, const struct klp_handle *overlays,
                         size_t overlay_count, struct kelpie_error **err)
{
    struct qemu_hypervisor *self = qemu_from(hypervisor);
    struct klp_mapping mapping;
    if (self->qmp == NULL)
        return klp_fail(err, KELPIE_E_STATE, "cannot load: QEMU was not started");
    KLP_REQUIRE(klp_mapping_find(self->pid, self->ram_fd, self->memory_bytes, &mapping, err));
    for (size_t i = 0; i < overlay_count; i++)
        KLP_TRY(klp_private_pages_lay(op, &mapping, overlays[i], err));
    int state_fd = fd_anew(klp_handle_fd(device_state), O_RDONLY, err);
    if (state_fd < 0)
        return (kelpie_outcome){KELPIE_FAIL};
    kelpie_outcome outcome = state_load(op, self, state_fd, err);
    close(state_fd);
    return kelpie_is_ok(outcome) ? outcome : load_explain(self, outcome, err);
}

/* ---- capturing */

kelpie_outcome qemu_ahead(const struct kelpie_op *op, struct klp_hypervisor *hypervisor,
                          struct kelpie_error **err)
{
    struct qemu_hypervisor *self = qemu_from(hypervisor);
    struct klp_mapping mapping;
    qemu_ahead_drop(hypervisor);
    KLP_REQUIRE(klp_mapping_find(self->pid, self->ram_fd, self->memory_bytes, &mapping, err));
    return klp_page_room_make(op, &mapping, &self->room, err);
}

void qemu_ahead_drop(struct klp_hypervisor *hypervisor)
{
    klp_page_room_drop(hypervisor->env, &qemu_from(hypervisor)->room);
}

static bool state_seal(int fd, struct kelpie_error **err)
{
    struct stat facts;
    if (fstat(fd, &facts) != 0)
        return klp_posix_refuse(err, errno, "cannot look at the device state");
    if (facts.st_size == 0)
        return klp_refuse(err, KELPIE_E_IO, "QEMU wrote an empty device state");
    if ((uint64_t)facts.st_size > KLP_DEVICE_STATE_MAX)
        return klp_refuse(err, KELPIE_E_LIMIT, "the device state has %llu bytes, the limit is %u",
                          (unsigned long long)facts.st_size, KLP_DEVICE_STATE_MAX);
    if (fcntl(fd, F_ADD_SEALS, SEALS) != 0)
        return klp_posix_refuse(err, errno, "cannot seal the device state");
    return true;
}

static kelpie_outcome fdset_remove(const struct kelpie_op *op, struct qemu_hypervisor *self,
                                   uint64_t set, struct kelpie_error **err)
{
    struct klp_json *arguments = klp_json_object();
    klp_json_set_u64(arguments, "fdset-id", set);
    return klp_qmp_call(op, self->qmp, "remove-fd", arguments, -1, NULL, err);
}

static kelpie_outcome state_write(const struct kelpie_op *op, struct qemu_hypervisor *self,
                                  int write_fd, struct kelpie_error **err)
{
    char name[48];
    uint64_t set;
    KLP_AUTO(json) struct klp_json *added = NULL;
    KLP_TRY(klp_qmp_call(op, self->qmp, "add-fd", NULL, write_fd, &added, err));
    KLP_REQUIRE(klp_json_get_u64(added, "fdset-id", KLP_JSON_REQUIRED, &set, err));
    klp_format(name, sizeof(name), "/dev/fdset/%llu", (unsigned long long)set);
    struct klp_json *arguments = text_argument("filename", name);
    klp_json_set_bool(arguments, "live", false);
    kelpie_outcome outcome =
        klp_qmp_call(op, self->qmp, "xen-save-devices-state", arguments, -1, NULL, err);
    if (!kelpie_is_ok(outcome)) {
        KLP_IGNORE(fdset_remove(op, self, set, NULL));
        return outcome;
    }
    return fdset_remove(op, self, set, err);
}

/* The memory object grows as QEMU writes, so it is none of klp_memory_create's fixed size. */
static kelpie_outcome state_save(const struct kelpie_op *op, struct qemu_hypervisor *self,
                                 int *out_fd, struct kelpie_error **err)
{
    int fd = memfd_create("kelpie-devices", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return klp_posix_fail(err, errno, "cannot make a memory object");
    int write_fd = fd_anew(fd, O_WRONLY, err);
    kelpie_outcome outcome = {KELPIE_FAIL};
    if (write_fd >= 0) {
        outcome = state_write(op, self, write_fd, err);
        close(write_fd);
    }
    if (kelpie_is_ok(outcome) && !state_seal(fd, err))
        outcome = (kelpie_outcome){KELPIE_FAIL};
    if (!kelpie_is_ok(outcome)) {
        close(fd);
        return outcome;
    }
    *out_fd = fd;
    return KLP_OK;
}

static bool state_equal(int a, int b)
{
    struct stat a_facts, b_facts;
    if (fstat(a, &a_facts) != 0 || fstat(b, &b_facts) != 0 || a_facts.st_size != b_facts.st_size)
        return false;
    size_t size = (size_t)a_facts.st_size;
    void *a_bytes = mmap(NULL, size, PROT_READ, MAP_PRIVATE, a, 0);
    void *b_bytes = mmap(NULL, size, PROT_READ, MAP_PRIVATE, b, 0);
    bool equal =
        a_bytes != MAP_FAILED && b_bytes != MAP_FAILED && memcmp(a_bytes, b_bytes, size) == 0;
    if (a_bytes != MAP_FAILED)
        munmap(a_bytes, size);
    if (b_bytes != MAP_FAILED)
        munmap(b_bytes, size);
    return equal;
}

/* A guest that stands still does not write, but a device could: virtio-serial rests with the
 * machine in the QEMU we know, and nothing promises it of others. So the pages are taken between
 * two equal device states, in which a queue that moved would show; a save costs half a millisecond.
 */
static kelpie_outcome pages_between(const struct kelpie_op *op, struct qemu_hypervisor *self,
                                    const struct klp_mapping *mapping, int *state_fd,
                                    struct klp_handle *dirty, bool *settled,
                                    struct kelpie_error **err)
{
    uint64_t pages;
    int after;
    KLP_TRY(klp_private_pages_copy(op, mapping, &self->room, dirty, &pages, err));
    kelpie_outcome outcome = state_save(op, self, &after, err);
    *settled = kelpie_is_ok(outcome) && state_equal(*state_fd, after);
    if (*settled) {
        close(after);
        return KLP_OK;
    }
    klp_handle_close(op->env, *dirty);
    if (kelpie_is_ok(outcome)) {
        close(*state_fd);
        *state_fd = after;
    }
    return outcome;
}

kelpie_outcome qemu_capture(const struct kelpie_op *op, struct klp_hypervisor *hypervisor,
                            struct klp_handle *device_state, struct klp_handle *dirty,
                            struct kelpie_error **err)
{
    struct qemu_hypervisor *self = qemu_from(hypervisor);
    struct klp_mapping mapping;
    int state_fd;
    bool settled = false;
    if (self->qmp == NULL)
        return klp_fail(err, KELPIE_E_STATE, "cannot capture: QEMU was not started");
    KLP_REQUIRE(klp_mapping_find(self->pid, self->ram_fd, self->memory_bytes, &mapping, err));
    kelpie_outcome outcome = state_save(op, self, &state_fd, err);
    if (!kelpie_is_ok(outcome)) {
        if (klp_error_code(err) == KELPIE_E_UNSUPPORTED)
            klp_error_remedy_set(err, "use a QEMU that was built with xen-save-devices-state");
        return klp_wrap(err, outcome, "cannot save the device state");
    }
    for (int i = 0; i < SAVES_MAX && !settled && kelpie_is_ok(outcome); i++)
        outcome = pages_between(op, self, &mapping, &state_fd, dirty, &settled, err);
    if (kelpie_is_ok(outcome) && !settled)
        outcome = klp_fail(err, KELPIE_E_BUSY, "the guest's devices do not come to rest");
    if (!kelpie_is_ok(outcome)) {
        close(state_fd);
        return outcome;
    }
    *device_state = klp_handle_from_fd(state_fd);
    return KLP_OK;
}
