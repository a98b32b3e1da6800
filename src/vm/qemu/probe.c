/* SPDX-License-Identifier: Apache-2.0 */
/* What this host's QEMU and its accelerators can do, asked and measured. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <cpuid.h>
#include <x86intrin.h>
#endif

#include "base/crc32.h"
#include "base/fmt.h"
#include "vm/qemu/inside.h"

#define ASK_MS 5000
#define TSC_MEASURE_NS (20 * KLP_MS)
#define TSC_TRIES 8
#define MAJOR_MIN 7
#define MINOR_MIN 2

/* ---- the binary */

static bool program_find(const char *name, char *out, size_t size)
{
    const char *paths = getenv("PATH");
    paths = paths != NULL && paths[0] != 0 ? paths : "/usr/local/bin:/usr/bin:/bin";
    while (paths[0] != 0) {
        size_t part = strcspn(paths, ":");
        klp_format(out, size, "%.*s/%s", (int)part, paths, name);
        if (paths[0] == '/' && access(out, X_OK) == 0)
            return true;
        paths += part + (paths[part] == ':');
    }
    out[0] = 0;
    return false;
}

/* ---- asking it */

struct asking {
    struct klp_qmp *qmp;
    struct kelpie_op op;
};

static void asking_pump(void *arg)
{
    struct asking *asking = arg;
    while (kelpie_is_ok(
        klp_posix_wait(&asking->op, klp_qmp_fd(asking->qmp), POLLIN, "probing QEMU", NULL)))
        if (!klp_qmp_pump(asking->qmp))
            return;
}

static bool list_has(const struct klp_json *list, const char *key, const char *value)
{
    for (size_t i = 0; i < klp_json_count(list); i++) {
        const char *text = klp_json_text(klp_json_find(klp_json_at(list, i), key));
        if (text != NULL && strcmp(text, value) == 0)
            return true;
    }
    return false;
}

static kelpie_outcome questions_ask(const struct kelpie_op *op, struct klp_qmp *qmp,
                                    struct klp_qemu_probe *out, struct kelpie_error **err)
{
    KLP_AUTO(json) struct klp_json *commands = NULL, *capabilities = NULL;
    KLP_TRY(klp_qmp_open(op, qmp, out->version, sizeof(out->version), err));
    KLP_TRY(klp_qmp_call(op, qmp, "query-commands", NULL, -1, &commands, err));
    KLP_TRY(klp_qmp_call(op, qmp, "query-migrate-capabilities", NULL, -1, &capabilities, err));
    out->has_xen_save = list_has(commands, "name", "xen-save-devices-state");
    out->has_ignore_shared = list_has(capabilities, "capability", "x-ignore-shared");
    return KLP_OK;
}

static kelpie_outcome process_ask(struct asking *asking, struct klp_qemu_probe *out,
                                  struct kelpie_error **err)
{
    struct klp_task *pump;
    KLP_REQUIRE(klp_task_spawn(asking->op.env, "qemu-probe", asking_pump, asking, &pump, err));
    kelpie_outcome outcome = questions_ask(&asking->op, asking->qmp, out, err);
    shutdown(klp_qmp_fd(asking->qmp), SHUT_RDWR); /* ends the pump */
    klp_task_join(pump);
    return outcome;
}

static kelpie_outcome qemu_ask(const struct kelpie_op *op, struct klp_qemu_probe *out,
                               struct kelpie_error **err)
{
    static const char *const argv[] = {"qemu",
                                       "-M",
                                       "none",
                                       "-nodefaults",
                                       "-no-user-config",
                                       "-display",
                                       "none",
                                       "-chardev",
                                       "socket,id=qmp,fd=3",
                                       "-mon",
                                       "chardev=qmp,mode=control",
                                       NULL};
    int pair[2], pid, pidfd;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) != 0)
        return klp_posix_fail(err, errno, "cannot make a socket");
    struct asking asking = {klp_qmp_create(op->env, pair[0]), klp_op_within(op, ASK_MS)};
    /* Joined before this thread ends, so its death signal cannot come early. */
    const struct klp_spawn spawn = {.path = out->path,
                                    .argv = argv,
                                    .fds = &pair[1],
                                    .fd_count = 1,
                                    .stdin_fd = -1,
                                    .stdout_fd = -1,
                                    .stderr_fd = -1,
                                    .die_with_parent = true};
    bool started = klp_posix_spawn(&spawn, &pid, &pidfd, err);
    close(pair[1]);
    kelpie_outcome outcome = {KELPIE_FAIL};
    if (started) {
        outcome = process_ask(&asking, out, err);
        kill(pid, SIGKILL); /* not reaped yet: the number is still its own */
        while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
            continue;
        close(pidfd);
    }
    klp_qmp_destroy(asking.qmp);
    return outcome;
}

/* ---- the time stamp counter */

#if defined(__x86_64__)
struct tick {
    uint64_t tsc, ns;
};

static uint64_t raw_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_RAW, &now);
    return (uint64_t)now.tv_sec * KLP_SECOND + (uint64_t)now.tv_nsec;
}

/* The tightest of some readings: one that was interrupted says nothing. */
static struct tick tick_read(void)
{
    struct tick best = {0};
    uint64_t narrowest = UINT64_MAX;
    for (int i = 0; i < TSC_TRIES; i++) {
        uint64_t before = __rdtsc(), ns = raw_ns(), after = __rdtsc();
        if (after - before < narrowest) {
            narrowest = after - before;
            best = (struct tick){before + (after - before) / 2, ns};
        }
    }
    return best;
}

static uint64_t tsc_measure(void)
{
    struct tick start = tick_read(), end;
    struct timespec nap = {.tv_nsec = TSC_MEASURE_NS};
    nanosleep(&nap, NULL);
    end = tick_read();
    uint64_t khz = (end.tsc - start.tsc) * 1000000 / (end.ns - start.ns);
    return (khz + 50) / 100 * 100;
}
#else
/* QEMU's guests of x86 count nanoseconds there. */
static uint64_t tsc_measure(void)
{
    return 1000000;
}
#endif

/* ---- CPU models */

/* A guest on the host's own CPU goes on only where all of it is the same: vendor, family, model,
 * stepping and the flags the kernel shows. */
static void host_cpu_name(char *out, size_t size)
{
#if defined(__x86_64__)
    unsigned a = 0, b = 0, c = 0, d = 0;
    char vendor[13] = {0};
    __cpuid(0, a, b, c, d);
    memcpy(vendor, &b, 4);
    memcpy(vendor + 4, &d, 4);
    memcpy(vendor + 8, &c, 4);
    unsigned words[12] = {0};
    __cpuid(1, words[0], b, words[1], words[2]);
    __cpuid_count(7, 0, a, words[3], words[4], words[5]);
    __cpuid(0x80000001, a, b, words[6], words[7]);
    words[1] &= ~(1u << 27); /* OSXSAVE mirrors a control register */
    klp_format(out, size, "host/%s-%08x-%08x", vendor, words[0],
               klp_crc32(0, words + 1, sizeof(words) - sizeof(words[0])));
#else
    klp_format(out, size, "host");
#endif
}

static void cpu_choose(enum klp_arch arch, struct klp_qemu_probe *out)
{
    if (strcmp(out->accelerator, "kvm") == 0)
        host_cpu_name(out->cpu, sizeof(out->cpu));
    else /* no extras that cost: qemu-lab 1.3 and 8 */
        klp_text_copy(out->cpu, sizeof(out->cpu),
                      arch == KLP_ARCH_X86_64 ? "EPYC-Rome" : "cortex-a57");
}

/* ---- the whole */

static bool version_is_new_enough(const char *version)
{
    char *rest;
    unsigned long major = strtoul(version, &rest, 10);
    unsigned long minor = rest[0] == '.' ? strtoul(rest + 1, NULL, 10) : 0;
    return major > MAJOR_MIN || (major == MAJOR_MIN && minor >= MINOR_MIN);
}

static void accelerator_choose(enum klp_arch arch, struct klp_qemu_probe *out)
{
    char *why = out->kvm_why;
    size_t size = sizeof(out->kvm_why);
    bool same = arch == klp_arch_host();
    if (!same)
        klp_format(why, size, "guests of %s are emulated on %s", klp_arch_name(arch),
                   klp_arch_name(klp_arch_host()));
    else if (klp_qemu_kvm_measure(&out->kvm_present, &out->kvm_probe_us, why, size)) {
        out->kvm_usable = out->kvm_probe_us <= QEMU_KVM_USABLE_US;
        if (!out->kvm_usable)
            klp_format(why, size,
                       "/dev/kvm is there but too slow: 100,000 instructions took %llu us, the "
                       "limit is %d",
                       (unsigned long long)out->kvm_probe_us, QEMU_KVM_USABLE_US);
    }
    klp_text_copy(out->accelerator, sizeof(out->accelerator), out->kvm_usable ? "kvm" : "tcg");
    if (out->kvm_usable)
        klp_format(out->why, sizeof(out->why),
                   "KVM ran 100,000 instructions in %llu us, the limit is %d",
                   (unsigned long long)out->kvm_probe_us, QEMU_KVM_USABLE_US);
    else
        klp_text_copy(out->why, sizeof(out->why), why);
}

void klp_qemu_probe(const struct kelpie_op *op, enum klp_arch arch, const char *path,
                    struct klp_qemu_probe *out)
{
    char name[64];
    KLP_AUTO(kelpie_error) struct kelpie_error *error = NULL;
    *out = (struct klp_qemu_probe){.has_pagemap_scan = klp_pagemap_scan_works()};
    accelerator_choose(arch, out);
    cpu_choose(arch, out);
    out->tsc_khz = arch == KLP_ARCH_X86_64 ? tsc_measure() : 0;
    klp_format(name, sizeof(name), "qemu-system-%s", klp_arch_name(arch));
    if (path != NULL && (path[0] != '/' || strlen(path) >= sizeof(out->path))) {
        klp_format(out->why, sizeof(out->why), "the path of QEMU must be absolute and shorter");
        return;
    }
    if (path != NULL)
        klp_text_copy(out->path, sizeof(out->path), path);
    else if (!program_find(name, out->path, sizeof(out->path))) {
        klp_format(out->why, sizeof(out->why), "no %s in PATH", name);
        return;
    }
    if (!kelpie_is_ok(qemu_ask(op, out, &error)))
        klp_format(out->why, sizeof(out->why), "%s does not answer: %s", name,
                   kelpie_error_message(error));
    else if (!version_is_new_enough(out->version))
        klp_format(out->why, sizeof(out->why), "QEMU %s is too old, %d.%d is needed", out->version,
                   MAJOR_MIN, MINOR_MIN);
    else
        out->found = true;
}
