/* SPDX-License-Identifier: Apache-2.0 */
/* Handles are descriptors; memory objects are sealable memfds. */
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "env/posix/inside.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U /* Linux 6.3; Debian 12's headers are older */
#endif
#define SEALS (F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)

static void memory_close(struct klp_env *env, struct klp_handle handle)
{
    (void)env;
    close(klp_handle_fd(handle));
}

static bool memory_copy(struct klp_env *env, struct klp_handle handle, struct klp_handle *out,
                        struct kelpie_error **err)
{
    (void)env;
    int fd = fcntl(klp_handle_fd(handle), F_DUPFD_CLOEXEC, 3);
    if (fd < 0)
        return klp_posix_refuse(err, errno, "cannot copy a handle");
    *out = klp_handle_from_fd(fd);
    return true;
}

static bool memory_create(struct klp_env *env, const char *name, uint64_t size,
                          struct klp_handle *out, struct kelpie_error **err)
{
    (void)env;
    unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
    int fd = memfd_create(name, flags | MFD_NOEXEC_SEAL);
    if (fd < 0 && errno == EINVAL)
        fd = memfd_create(name, flags);
    if (fd < 0)
        return klp_posix_refuse(err, errno, "cannot make a memory object");
    /* Its size is fixed from the start: nobody it is passed to can cut it under a mapping. */
    if (ftruncate(fd, (off_t)size) != 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) {
        int error = errno;
        close(fd);
        return klp_posix_refuse(err, error, "cannot size a memory object to %llu bytes",
                                (unsigned long long)size);
    }
    *out = klp_handle_from_fd(fd);
    return true;
}

static bool memory_size(struct klp_env *env, struct klp_handle memory, uint64_t *out,
                        struct kelpie_error **err)
{
    (void)env;
    struct stat facts;
    if (fstat(klp_handle_fd(memory), &facts) != 0)
        return klp_posix_refuse(err, errno, "cannot look at a memory object");
    *out = (uint64_t)facts.st_size;
    return true;
}

static bool memory_read(struct klp_env *env, struct klp_handle memory, uint64_t offset, void *out,
                        size_t size, struct kelpie_error **err)
{
    (void)env;
    for (size_t at = 0; at < size;) {
        ssize_t got =
            pread(klp_handle_fd(memory), (char *)out + at, size - at, (off_t)(offset + at));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return klp_posix_refuse(err, errno, "cannot read a memory object");
        if (got == 0)
            return klp_refuse(err, KELPIE_E_CORRUPT, "a memory object ends at %llu",
                              (unsigned long long)(offset + at));
        at += (size_t)got;
    }
    return true;
}

static bool memory_write(struct klp_env *env, struct klp_handle memory, uint64_t offset,
                         const void *data, size_t size, struct kelpie_error **err)
{
    (void)env;
    for (size_t at = 0; at < size;) {
        ssize_t put =
            pwrite(klp_handle_fd(memory), (const char *)data + at, size - at, (off_t)(offset + at));
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return klp_posix_refuse(err, put < 0 ? errno : ENOSPC, "cannot write a memory object");
        at += (size_t)put;
    }
    return true;
}

static bool memory_next(struct klp_env *env, struct klp_handle memory, uint64_t offset,
                        uint64_t *out_offset, uint64_t *out_size, struct kelpie_error **err)
{
    (void)env;
    int fd = klp_handle_fd(memory);
    *out_size = 0;
    off_t start = lseek(fd, (off_t)offset, SEEK_DATA);
    if (start < 0 && errno == ENXIO)
        return true;
    off_t end = start < 0 ? -1 : lseek(fd, start, SEEK_HOLE);
    if (start < 0 || end < 0)
        return klp_posix_refuse(err, errno, "cannot walk a memory object");
    *out_offset = (uint64_t)start;
    *out_size = (uint64_t)(end - start);
    return true;
}

static bool memory_seal(struct klp_env *env, struct klp_handle memory, struct kelpie_error **err)
{
    (void)env;
    if (fcntl(klp_handle_fd(memory), F_ADD_SEALS, SEALS) != 0)
        return klp_posix_refuse(err, errno, "cannot seal a memory object");
    return true;
}

static bool memory_check(struct klp_env *env, struct klp_handle memory, uint64_t size,
                         struct kelpie_error **err)
{
    uint64_t actual;
    int seals = fcntl(klp_handle_fd(memory), F_GET_SEALS);
    if (seals < 0 || (seals & SEALS) != SEALS)
        return klp_refuse(err, KELPIE_E_CORRUPT, "a memory object is not sealed");
    KLP_CHECK(memory_size(env, memory, &actual, err));
    if (actual != size)
        return klp_refuse(err, KELPIE_E_CORRUPT, "a memory object has %llu bytes instead of %llu",
                          (unsigned long long)actual, (unsigned long long)size);
    return true;
}

const struct klp_memory_ops klp_posix_memory_ops = {
    .close = memory_close,
    .copy = memory_copy,
    .create = memory_create,
    .size = memory_size,
    .read = memory_read,
    .write = memory_write,
    .next = memory_next,
    .seal = memory_seal,
    .check = memory_check,
};
