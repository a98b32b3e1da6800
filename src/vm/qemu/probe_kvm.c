/* SPDX-License-Identifier: Apache-2.0 */
/* Is /dev/kvm of use? A guest of a few instructions says it: where KVM runs without the processor's
 * help (KVM-PVM), supervisor code is emulated a hundred times slower than TCG would run it. The
 * guest runs in a child, because nothing but death ends a KVM_RUN that hangs. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/fmt.h"
#include "vm/qemu/inside.h"

#if defined(__x86_64__)
#include <linux/kvm.h>

#define DEADLINE_MS 200
#define MEMORY_SIZE 0x10000u
#define CODE_AT 0x8000u
#define INSTRUCTIONS 100000u

/* step: 0 = it ran, else where it stopped. */
struct report {
    int step, error;
    uint64_t us;
};
enum { STEP_RAN, STEP_OPEN, STEP_VM, STEP_MEMORY, STEP_VCPU, STEP_REGISTERS, STEP_RUN, STEP_EXIT };
static const char *const steps[] = {"ran",   "/dev/kvm",  "a VM",       "its memory",
                                    "a CPU", "registers", "running it", "its end"};

static uint64_t now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_RAW, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

/* Identity-mapped 2 MiB of 64-bit supervisor code: 50,000 times dec and jnz, then hlt. */
static void guest_write(uint8_t *memory)
{
    static const uint8_t code[] = {0xff, 0xc9, 0x75, 0xfc, 0xf4};
    static const uint64_t tables[] = {0x2003, 0x3003, 0x83}; /* present, writable; large page */
    for (size_t i = 0; i < KLP_COUNT(tables); i++)
        memcpy(memory + 0x1000 * (i + 1), &tables[i], sizeof(tables[i]));
    memcpy(memory + CODE_AT, code, sizeof(code));
}

static bool registers_set(int cpu)
{
    struct kvm_sregs special;
    struct kvm_regs plain = {.rip = CODE_AT, .rflags = 2, .rcx = INSTRUCTIONS / 2, .rsp = 0x7000};
    if (ioctl(cpu, KVM_GET_SREGS, &special) != 0)
        return false;
    struct kvm_segment segment = {
        .limit = 0xffffffff, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1};
    special.cs = segment;
    segment.type = 3;
    segment.selector = 16;
    segment.l = 0;
    special.ds = special.es = special.fs = special.gs = special.ss = segment;
    special.cr3 = 0x1000;
    special.cr4 = 0x20;       /* PAE */
    special.cr0 = 0x80000011; /* PG, ET, PE */
    special.efer = 0x500;     /* LME, LMA */
    return ioctl(cpu, KVM_SET_SREGS, &special) == 0 && ioctl(cpu, KVM_SET_REGS, &plain) == 0;
}

static int guest_run(struct report *report)
{
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm < 0)
        return STEP_OPEN;
    int vm = ioctl(kvm, KVM_CREATE_VM, 0);
    if (vm < 0)
        return STEP_VM;
    uint8_t *memory =
        mmap(NULL, MEMORY_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct kvm_userspace_memory_region region = {.memory_size = MEMORY_SIZE,
                                                 .userspace_addr = (uint64_t)(uintptr_t)memory};
    if (memory == MAP_FAILED || ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) != 0)
        return STEP_MEMORY;
    guest_write(memory);
    int cpu = ioctl(vm, KVM_CREATE_VCPU, 0), size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    struct kvm_run *run = size > 0
                              ? mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, cpu, 0)
                              : MAP_FAILED;
    if (cpu < 0 || run == MAP_FAILED)
        return STEP_VCPU;
    if (!registers_set(cpu))
        return STEP_REGISTERS;
    uint64_t start = now_us();
    while (ioctl(cpu, KVM_RUN, 0) != 0)
        if (errno != EINTR && errno != EAGAIN)
            return STEP_RUN;
    report->us = now_us() - start;
    errno = (int)run->exit_reason;
    return run->exit_reason == KVM_EXIT_HLT ? STEP_RAN : STEP_EXIT;
}

__attribute__((noreturn)) static void child_run(int out)
{
    struct report report = {0};
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    report.step = guest_run(&report);
    report.error = errno;
    ssize_t ignored = write(out, &report, sizeof(report));
    (void)ignored;
    _exit(0);
}

/* False = it did not answer in time. */
static bool report_await(int fd, struct report *out)
{
    struct pollfd polled = {.fd = fd, .events = POLLIN};
    uint64_t end = now_us() + DEADLINE_MS * 1000;
    for (uint64_t now = now_us(); now < end; now = now_us()) {
        if (poll(&polled, 1, (int)((end - now) / 1000 + 1)) > 0)
            return read(fd, out, sizeof(*out)) == (ssize_t)sizeof(*out);
    }
    return false;
}

bool klp_qemu_kvm_measure(bool *present, uint64_t *out_us, char *why, size_t why_size)
{
    int pipe_fds[2];
    struct report report = {0};
    *out_us = 0;
    *present = access("/dev/kvm", F_OK) == 0;
    if (!*present) {
        klp_format(why, why_size, "there is no /dev/kvm");
        return false;
    }
    if (pipe2(pipe_fds, O_CLOEXEC) != 0) {
        klp_format(why, why_size, "no pipe for the probe of KVM");
        return false;
    }
    pid_t pid = fork();
    if (pid == 0)
        child_run(pipe_fds[1]);
    close(pipe_fds[1]);
    bool answered = pid > 0 && report_await(pipe_fds[0], &report);
    close(pipe_fds[0]);
    if (pid > 0) {
        kill(pid, SIGKILL);
        while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
            continue;
    }
    if (!answered) {
        klp_format(why, why_size,
                   "/dev/kvm is there but too slow: it did not run %u instructions within %d ms",
                   INSTRUCTIONS, DEADLINE_MS);
        return false;
    }
    if (report.step != STEP_RAN) {
        klp_format(why, why_size,
                   "/dev/kvm is there but of no use: a probe guest failed at %s (%s)",
                   steps[report.step],
                   report.step == STEP_EXIT ? "it did not halt" : strerror(report.error));
        return false;
    }
    *out_us = report.us;
    return true;
}

#else

bool klp_qemu_kvm_measure(bool *present, uint64_t *out_us, char *why, size_t why_size)
{
    *out_us = 0;
    *present = access("/dev/kvm", F_OK) == 0;
    klp_format(why, why_size, "KVM is probed on x86_64 only");
    return false;
}
#endif
