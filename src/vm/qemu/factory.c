/* SPDX-License-Identifier: Apache-2.0 */
/* The factory: facts of the probe, a machine for a config, and a keeper for each VM. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base/fmt.h"
#include "base/limits.h"
#include "vm/keeper_launch.h"
#include "vm/qemu/inside.h"

#define BOOT_TIMEOUT_TCG_MS 60000 /* an idle host needs 1 s: qemu-lab 1.3 */
#define BOOT_TIMEOUT_KVM_MS 20000
#define TSC_TOLERANCE_PPM 250 /* what KVM itself takes for equal */
#define ARM_VCPUS_MAX 8       /* of the interrupt controller of machine virt */

struct qemu_factory {
    struct kelpie_vm_factory base;
    char *keeper_path;
    struct klp_qemu_probe probe;
};

static const struct qemu_factory *facts_of(const struct kelpie_vm_factory *factory)
{
    return (const struct qemu_factory *)factory;
}

/* ---- the machine for a config */

static bool kernel_args_add(struct klp_machine *machine, const char *args,
                            struct kelpie_error **faults)
{
    size_t size = strlen(machine->cmdline);
    if (args == NULL || args[0] == 0)
        return true;
    if (strstr(args, "tsc_early_khz") != NULL) {
        klp_error_reason_add(faults, "kernel_args: tsc_early_khz is set by the backend");
        return false;
    }
    if (size + 1 + strlen(args) >= sizeof(machine->cmdline)) {
        klp_error_reason_add(faults, "kernel_args: the kernel's command line would be too long");
        return false;
    }
    klp_format(machine->cmdline + size, sizeof(machine->cmdline) - size, " %s", args);
    return true;
}

static bool qemu_machine(struct kelpie_vm_factory *factory, const struct kelpie_vm_config *config,
                         struct klp_machine *out, struct kelpie_error **faults)
{
    const struct klp_qemu_probe *probe = &facts_of(factory)->probe;
    bool fine = true;
    *out = (struct klp_machine){0};
    klp_qemu_machine_fill(out, factory->arch, probe->accelerator, probe->cpu);
    klp_text_copy(out->backend_version, sizeof(out->backend_version), probe->version);
    out->tsc_khz = probe->tsc_khz;
    out->vcpus = config->vcpu_count != 0 ? config->vcpu_count : KLP_VCPUS_DEFAULT;
    out->memory_bytes =
        KLP_MIB * (uint64_t)(config->memory_mib != 0 ? config->memory_mib : KLP_MEMORY_MIB_DEFAULT);
    if (config->kernel_image_path == NULL || config->initrd_path == NULL) {
        klp_error_reason_add(faults, "backend qemu needs kernel_image_path and initrd_path");
        fine = false;
    }
    if (factory->arch == KLP_ARCH_AARCH64 && out->vcpus > ARM_VCPUS_MAX) {
        klp_error_reason_add(faults, "vcpu_count is %u: backend qemu has at most %d on aarch64",
                             out->vcpus, ARM_VCPUS_MAX);
        fine = false;
    }
    return kernel_args_add(out, config->kernel_args, faults) && fine;
}

/* ---- what it can take over from elsewhere */

static size_t release_size(const char *version) /* of MAJOR.MINOR */
{
    size_t major = strcspn(version, ".");
    return version[major] == 0 ? major : major + 1 + strcspn(version + major + 1, ".");
}

static bool release_equal(const char *a, const char *b)
{
    size_t size = release_size(a);
    return size == release_size(b) && strncmp(a, b, size) == 0;
}

static bool tsc_is_near(uint64_t a, uint64_t b)
{
    uint64_t apart = a > b ? a - b : b - a;
    return apart <= b / 1000000 * TSC_TOLERANCE_PPM + b % 1000000 * TSC_TOLERANCE_PPM / 1000000;
}

static void processor_compare(const struct qemu_factory *self, const struct klp_machine *machine,
                              struct kelpie_error **faults)
{
    const struct klp_qemu_probe *probe = &self->probe;
    bool emulated = strcmp(machine->accelerator, "tcg") == 0; /* its CPUs are the same everywhere */
    bool same = strcmp(machine->accelerator, probe->accelerator) == 0;
    if (!same && !emulated)
        klp_error_reason_add(faults, "accelerator: snapshot needs %s, node has %s",
                             machine->accelerator, probe->accelerator);
    if (same && strcmp(machine->cpu, probe->cpu) != 0)
        klp_error_reason_add(faults, "cpu: snapshot needs %s, node has %s", machine->cpu,
                             probe->cpu);
    if (machine->tsc_khz != 0 && !tsc_is_near(probe->tsc_khz, machine->tsc_khz))
        klp_error_reason_add(faults, "tsc: snapshot needs %llu kHz, node counts %llu kHz",
                             (unsigned long long)machine->tsc_khz,
                             (unsigned long long)probe->tsc_khz);
}

static bool qemu_accepts(struct kelpie_vm_factory *factory, const struct klp_machine *machine,
                         struct kelpie_error **err)
{
    const struct qemu_factory *self = facts_of(factory);
    struct kelpie_error *faults = NULL;
    KLP_IGNORE(klp_refuse(&faults, KELPIE_E_INCOMPATIBLE, "QEMU here cannot run this machine"));
    if (strcmp(machine->backend, "qemu") != 0)
        klp_error_reason_add(&faults, "backend: snapshot needs %s, this is qemu", machine->backend);
    if (machine->arch != factory->arch)
        klp_error_reason_add(&faults, "arch: snapshot needs %s, node runs %s",
                             klp_arch_name(machine->arch), klp_arch_name(factory->arch));
    if (!release_equal(machine->backend_version, self->probe.version))
        klp_error_reason_add(&faults, "version: snapshot needs QEMU %.*s, node has %s",
                             (int)release_size(machine->backend_version), machine->backend_version,
                             self->probe.version);
    processor_compare(self, machine, &faults);
    KLP_IGNORE(klp_qemu_machine_check(machine, &faults));
    if (kelpie_error_reason_count(faults) == 0) {
        klp_error_clear(&faults);
        return true;
    }
    if (err != NULL && *err != NULL) { /* the caller gathers reasons of several places */
        for (size_t i = 0; i < kelpie_error_reason_count(faults); i++)
            klp_error_reason_add(err, "%s", kelpie_error_reason(faults, i));
        klp_error_clear(&faults);
    } else {
        klp_error_move(err, &faults);
    }
    return false;
}

/* ---- starting one */

static kelpie_outcome qemu_launch(const struct kelpie_op *op, struct kelpie_vm_factory *factory,
                                  struct klp_dir *dir, const char *id, struct kelpie_error **err)
{
    const struct qemu_factory *self = facts_of(factory);
    const char *const arguments[] = {"--qemu", self->probe.path, NULL};
    return klp_keeper_launch(op, self->keeper_path, "qemu", arguments, dir, id, err);
}

static kelpie_outcome qemu_boot_files(const struct kelpie_op *op, struct kelpie_vm_factory *factory,
                                      const struct kelpie_vm_config *config, struct klp_handle *out,
                                      size_t *count, struct kelpie_error **err)
{
    const char *const paths[2] = {config->kernel_image_path, config->initrd_path};
    (void)op;
    (void)factory;
    *count = 0;
    if (paths[0] == NULL || paths[1] == NULL)
        return KLP_OK; /* a restore needs none, and a boot without is refused at SPAWN */
    for (size_t i = 0; i < 2; i++) {
        int fd = open(paths[i], O_RDONLY | O_CLOEXEC | O_NOCTTY);
        int error = errno;
        if (fd < 0) {
            if (i == 1)
                close(klp_handle_fd(out[0]));
            return klp_posix_fail(err, error, "cannot open %s", paths[i]);
        }
        out[i] = klp_handle_from_fd(fd);
    }
    *count = 2;
    return KLP_OK;
}

static void qemu_destroy(struct kelpie_vm_factory *factory)
{
    struct qemu_factory *self = (struct qemu_factory *)factory;
    klp_mem_free(self->keeper_path);
    klp_mem_free(self);
}

#define QEMU_FACTORY_OPS(capabilities)                                                             \
    {                                                                                              \
        .name = "qemu", .caps = (capabilities), .machine = qemu_machine, .accepts = qemu_accepts,  \
        .launch = qemu_launch, .boot_files = qemu_boot_files, .destroy = qemu_destroy,             \
        .slow_spawn = true                                                                         \
    }
static const struct klp_factory_ops ops_full =
    QEMU_FACTORY_OPS(KELPIE_VM_CAP_SNAPSHOT | KELPIE_VM_CAP_DIFF_SNAPSHOT |
                     KELPIE_VM_CAP_CROSS_HOST_RESTORE | KELPIE_VM_CAP_TEMPLATE);
/* Without xen-save-devices-state: it runs guests and cannot save them. */
static const struct klp_factory_ops ops_plain = QEMU_FACTORY_OPS(0);

bool klp_vm_qemu_create(struct klp_env *env, struct klp_dir *vms_dir,
                        const struct klp_qemu_options *options, struct kelpie_vm_factory **out,
                        struct kelpie_error **err)
{
    const struct klp_qemu_probe *probe = options->probe;
    bool x86 = options->arch == KLP_ARCH_X86_64;
    if (!x86 && options->arch != KLP_ARCH_AARCH64)
        return klp_refuse(err, KELPIE_E_UNSUPPORTED, "backend qemu runs x86_64 or aarch64");
    if (!probe->found) {
        KLP_IGNORE(klp_refuse(err, KELPIE_E_UNSUPPORTED, "cannot use QEMU: %s", probe->why));
        klp_error_remedy_set(err, "apt install qemu-system-%s", x86 ? "x86" : "arm");
        return false;
    }
    struct qemu_factory *self = KLP_NEW(struct qemu_factory);
    bool kvm = strcmp(probe->accelerator, "kvm") == 0;
    *self = (struct qemu_factory){
        .base = {.ops = probe->has_xen_save ? &ops_full : &ops_plain,
                 .env = env,
                 .vms_dir = vms_dir,
                 .arch = options->arch,
                 .boot_timeout_ms = kvm ? BOOT_TIMEOUT_KVM_MS : BOOT_TIMEOUT_TCG_MS},
        .keeper_path = klp_mem_string(options->keeper_path),
        .probe = *probe};
    *out = &self->base;
    return true;
}
