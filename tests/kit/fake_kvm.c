/* SPDX-License-Identifier: Apache-2.0 */
/* A preloaded /dev/kvm for tests of what kelpied makes of one. FAKE_KVM says how it is: none,
 * denied, fast, slow (too slow to be of use), hang. Built by tests/e2e/doctor.py. */
#include <errno.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define RUN_SIZE 4096
#define SLOW_US 60000
#define HANG_US 3000000

static const char *how(void)
{
    const char *text = getenv("FAKE_KVM");
    return text != NULL ? text : "none";
}

static int memory_file(void)
{
    int fd = memfd_create("fake-kvm", MFD_CLOEXEC);
    return fd >= 0 && ftruncate(fd, RUN_SIZE) == 0 ? fd : -1;
}

static int kvm_open(void)
{
    if (strcmp(how(), "none") == 0 || strcmp(how(), "denied") == 0) {
        errno = strcmp(how(), "none") == 0 ? ENOENT : EACCES;
        return -1;
    }
    return memory_file();
}

static int guest_run(int cpu)
{
    struct kvm_run *run = mmap(NULL, RUN_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, cpu, 0);
    if (run == MAP_FAILED)
        return -1;
    usleep(strcmp(how(), "hang") == 0 ? HANG_US : strcmp(how(), "slow") == 0 ? SLOW_US : 10);
    run->exit_reason = KVM_EXIT_HLT;
    return munmap(run, RUN_SIZE);
}

int access(const char *path, int mode)
{
    if (strcmp(path, "/dev/kvm") != 0)
        return (int)syscall(SYS_faccessat, -100 /* AT_FDCWD */, path, mode);
    errno = ENOENT;
    return strcmp(how(), "none") == 0 ? -1 : 0;
}

int open64(const char *path, int flags, ...)
{
    va_list args;
    va_start(args, flags);
    unsigned mode = va_arg(args, unsigned);
    va_end(args);
    return strcmp(path, "/dev/kvm") == 0 ? kvm_open()
                                         : (int)syscall(SYS_openat, -100, path, flags, mode);
}

int open(const char *path, int flags, ...) __attribute__((alias("open64")));

int ioctl(int fd, unsigned long request, ...)
{
    va_list args;
    va_start(args, request);
    void *argument = va_arg(args, void *);
    va_end(args);
    if (_IOC_TYPE(request) != KVMIO)
        return (int)syscall(SYS_ioctl, fd, request, argument);
    switch (request) {
    case KVM_CREATE_VM:
    case KVM_CREATE_VCPU:
        return memory_file();
    case KVM_GET_VCPU_MMAP_SIZE:
        return RUN_SIZE;
    case KVM_RUN:
        return guest_run(fd);
    default:
        return 0; /* memory and registers: taken */
    }
}
