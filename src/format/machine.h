/* SPDX-License-Identifier: Apache-2.0 */
/* The machine description: what a VM is built from, and what a restore rebuilds it from, never from
 * current defaults. Versioned; a list of records in the form of format/records.h. */
#ifndef KLP_FORMAT_MACHINE_H
#define KLP_FORMAT_MACHINE_H

#include "base/buf.h"
#include "base/limits.h"
#include "base/name.h"

#define KLP_MACHINE_VERSION 1
#define KLP_MACHINE_DEVICES_MAX 16
#define KLP_MACHINE_TEXT_SIZE 64

enum klp_arch { KLP_ARCH_NONE, KLP_ARCH_X86_64, KLP_ARCH_AARCH64 };
const char *klp_arch_name(enum klp_arch arch);  /* "x86_64", "aarch64", "none" */
enum klp_arch klp_arch_parse(const char *text); /* also "arm64", "amd64"; NONE when unknown */
enum klp_arch klp_arch_host(void);              /* of this program */

struct klp_device {
    char id[32];    /* "vs0" */
    char kind[32];  /* "virtio-serial-device", as the backend names it */
    char args[128]; /* the rest of the backend's argument, "" when none */
};

struct klp_machine {
    uint32_t version; /* KLP_MACHINE_VERSION */
    char backend[16]; /* "mock", "qemu", "firecracker", "vz", "sim" */
    char
        backend_version[KLP_MACHINE_TEXT_SIZE]; /* "7.2.22"; a restore needs the same MAJOR.MINOR */
    char accelerator[16];                       /* "tcg", "kvm", "hvf", "" */
    char type[32];                              /* "microvm" */
    char cpu[KLP_MACHINE_TEXT_SIZE];            /* CPU model */
    enum klp_arch arch;
    uint32_t vcpus;
    uint64_t memory_bytes;
    uint8_t page_log2;                   /* of its memory region */
    uint64_t tsc_khz;                    /* 0 = does not matter */
    char cmdline[512];                   /* kernel command line */
    struct klp_digest kernel, initramfs; /* objects; zero when none */
    uint32_t device_count;
    struct klp_device devices[KLP_MACHINE_DEVICES_MAX]; /* in command-line order */
};

/* What decode demands of the values, for whoever fills one in: INVALID names the field. */
KELPIE_MUST_USE bool klp_machine_check(const struct klp_machine *machine,
                                       struct kelpie_error **err);
void klp_machine_encode(const struct klp_machine *machine, struct klp_buf *out);
/* One can run what was built for the other: every field is the same. */
bool klp_machine_equal(const struct klp_machine *a, const struct klp_machine *b);
/* CORRUPT, or UNSUPPORTED for a newer version or an unknown critical record; every text is checked
 * to be printable ASCII without comma-injection (args: [A-Za-z0-9=,._:/-]). */
KELPIE_MUST_USE bool klp_machine_decode(struct klp_bytes bytes, struct klp_machine *out,
                                        struct kelpie_error **err);

#endif
