/* SPDX-License-Identifier: Apache-2.0 */
/* Becoming QEMU: the keeper's program started once more, under a filter that answers
 * madvise(MADV_HUGEPAGE) with success and nothing done. QEMU asks for huge pages and has no option
 * against it; with them one fault of a lazily restored guest would read 2 MiB (qemu-lab 5). */
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "vm/qemu/inside.h"

#if defined(__x86_64__)
#define FILTER_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define FILTER_ARCH AUDIT_ARCH_AARCH64
#endif

/* A host without such a filter runs all the same, only less sparingly. */
static void huge_pages_refuse(void)
{
#ifdef FILTER_ARCH
    struct sock_filter steps[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, FILTER_ARCH, 0, 5),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_madvise, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[2])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, MADV_HUGEPAGE, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = KLP_COUNT(steps), .filter = steps};
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
        fprintf(stderr, "warning: no filter against huge pages: %s\n", strerror(errno));
#endif
}

int klp_qemu_exec_main(int argc, char **argv)
{
    int at = 0; /* of PATH, whatever stands in front of the option */
    while (at < argc && strcmp(argv[at], QEMU_EXEC_OPTION) != 0)
        at++;
    if (++at >= argc) {
        fprintf(stderr, "kelpie-keeper: %s needs a program\n", QEMU_EXEC_OPTION);
        return 2;
    }
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) {
        fprintf(stderr, "kelpie-keeper: cannot give up new privileges: %s\n", strerror(errno));
        return 126;
    }
    huge_pages_refuse();
    execv(argv[at], argv + at);
    fprintf(stderr, "kelpie-keeper: cannot run %s: %s\n", argv[at], strerror(errno));
    return 127;
}
