/* SPDX-License-Identifier: Apache-2.0 */
/* From a machine description to QEMU's words. A description may come from elsewhere, and a device's
 * words may name files: so the only devices passed on are those of the table below. */
#include <string.h>

#include "base/fmt.h"
#include "vm/qemu/inside.h"

/* What pays is measured in qemu-lab 1.3. Without tsc=reliable and the host's rate (added at start)
 * a microvm calibrates against the PIT, and a loaded host makes it hang for ever (1.5). */
#define FLAGS_ALL "panic=-1 quiet cryptomgr.notests init_on_alloc=0 lsm= audit=0 ipv6.disable=1"
#define FLAGS_X86 " console=ttyS0 tsc=reliable no_timer_check"
#define FLAGS_ARM " console=ttyAMA0"
/* No second guest shares an emulated CPU's predictors. */
#define FLAGS_EMULATED " mitigations=off"

static const struct known_device {
    enum klp_arch arch; /* NONE = any */
    char id[32], kind[32], args[128];
} known_devices[] = {
    {KLP_ARCH_NONE, "vs0", "virtio-serial-device", ""},
    {KLP_ARCH_NONE, "agent0", "virtserialport", "bus=vs0.0,chardev=agent,name=agent.0,nr=1"},
    {KLP_ARCH_X86_64, "panic0", "pvpanic", ""},
};

static bool device_is_for(const struct known_device *device, enum klp_arch arch)
{
    return device->arch == KLP_ARCH_NONE || device->arch == arch;
}

static const char *machine_type(enum klp_arch arch)
{
    return arch == KLP_ARCH_X86_64 ? "microvm" : "virt";
}

void klp_qemu_machine_fill(struct klp_machine *machine, enum klp_arch arch, const char *accelerator,
                           const char *cpu)
{
    bool emulated = strcmp(accelerator, "tcg") == 0;
    machine->version = KLP_MACHINE_VERSION;
    machine->arch = arch;
    machine->page_log2 = 12;
    klp_text_copy(machine->backend, sizeof(machine->backend), "qemu");
    klp_text_copy(machine->accelerator, sizeof(machine->accelerator), accelerator);
    klp_text_copy(machine->type, sizeof(machine->type), machine_type(arch));
    klp_text_copy(machine->cpu, sizeof(machine->cpu), cpu);
    klp_format(machine->cmdline, sizeof(machine->cmdline), "%s%s%s", FLAGS_ALL,
               arch == KLP_ARCH_X86_64 ? FLAGS_X86 : FLAGS_ARM, emulated ? FLAGS_EMULATED : "");
    machine->device_count = 0;
    for (size_t i = 0; i < KLP_COUNT(known_devices); i++) {
        if (!device_is_for(&known_devices[i], arch))
            continue;
        struct klp_device *device = &machine->devices[machine->device_count++];
        klp_text_copy(device->id, sizeof(device->id), known_devices[i].id);
        klp_text_copy(device->kind, sizeof(device->kind), known_devices[i].kind);
        klp_text_copy(device->args, sizeof(device->args), known_devices[i].args);
    }
}

/* ---- what is not passed on */

static bool device_is_known(const struct klp_device *device, enum klp_arch arch)
{
    for (size_t i = 0; i < KLP_COUNT(known_devices); i++)
        if (device_is_for(&known_devices[i], arch) &&
            strcmp(device->id, known_devices[i].id) == 0 &&
            strcmp(device->kind, known_devices[i].kind) == 0 &&
            strcmp(device->args, known_devices[i].args) == 0)
            return true;
    return false;
}

static bool refused(struct kelpie_error **err)
{
    if (klp_error_code(err) == KELPIE_E_NONE)
        KLP_IGNORE(klp_refuse(err, KELPIE_E_INCOMPATIBLE, "QEMU here cannot run this machine"));
    return false;
}

static bool devices_check(const struct klp_machine *machine, struct kelpie_error **err)
{
    bool fine = true;
    for (uint32_t i = 0; i < machine->device_count; i++) {
        if (device_is_known(&machine->devices[i], machine->arch))
            continue;
        fine = refused(err);
        klp_error_reason_add(err, "device: snapshot needs '%s' (%s), which is not known here",
                             machine->devices[i].id, machine->devices[i].kind);
    }
    return fine;
}

bool klp_qemu_machine_check(const struct klp_machine *machine, struct kelpie_error **err)
{
    KLP_AUTO(kelpie_error) struct kelpie_error *fault = NULL;
    bool fine = true;
    if (!klp_machine_check(machine, &fault)) {
        KLP_IGNORE(refused(err));
        klp_error_reason_add(err, "%s", kelpie_error_message(fault));
        return false;
    }
    if (strcmp(machine->type, machine_type(machine->arch)) != 0) {
        fine = refused(err);
        klp_error_reason_add(err, "type: snapshot needs machine '%s', known here is %s",
                             machine->type, machine_type(machine->arch));
    }
    if (strcmp(machine->accelerator, "tcg") != 0 && strcmp(machine->accelerator, "kvm") != 0) {
        fine = refused(err);
        klp_error_reason_add(err, "accelerator: snapshot needs '%s', known here are tcg and kvm",
                             machine->accelerator);
    }
    if (machine->cpu[0] == 0 || machine->cpu[0] == '-' || machine->memory_bytes % KLP_MIB != 0) {
        fine = refused(err);
        klp_error_reason_add(err, "machine: it names no CPU, or its memory is not in whole MiB");
    }
    if (!devices_check(machine, err))
        fine = false;
    return fine;
}

/* ---- words */

static void word_add(struct klp_qemu_arguments *out, const char *format, ...) KLP_PRINTF(2, 3);
static void word_add(struct klp_qemu_arguments *out, const char *format, ...)
{
    va_list args;
    KLP_ASSERT(out->count < QEMU_ARGUMENTS_MAX);
    va_start(args, format);
    out->words[out->count++] = klp_vtext(format, args);
    va_end(args);
}

static void words_add(struct klp_qemu_arguments *out, const char *const *words)
{
    for (; *words != NULL; words++)
        word_add(out, "%s", *words);
}

/* Which host wrote it follows the model's name: "host/AuthenticAMD-...". */
static int cpu_size(const char *cpu)
{
    const char *slash = strchr(cpu, '/');
    return slash != NULL ? (int)(slash - cpu) : (int)strlen(cpu);
}

static void machine_words(const struct klp_machine *machine, struct klp_qemu_arguments *out)
{
    unsigned long long mib = machine->memory_bytes / KLP_MIB;
    word_add(out, "-accel");
    word_add(out, "%s", machine->accelerator);
    word_add(out, "-cpu");
    word_add(out, "%.*s", cpu_size(machine->cpu), machine->cpu);
    word_add(out, "-smp");
    word_add(out, "%u", machine->vcpus);
    word_add(out, "-m");
    word_add(out, "%lluM", mib);
    word_add(out, "-M");
    word_add(out, "%s,memory-backend=ram0,mem-merge=off,dump-guest-core=off", machine->type);
    word_add(out, "-object");
    word_add(out, "memory-backend-file,id=ram0,size=%lluM,mem-path=/proc/self/fd/%d,share=off", mib,
             QEMU_FD_RAM);
}

static void device_words(const struct klp_machine *machine, struct klp_qemu_arguments *out)
{
    static const struct {
        char id[8];
        int fd;
    } chardevs[] = {{"qmp", QEMU_FD_QMP}, {"agent", QEMU_FD_AGENT}, {"console", QEMU_FD_CONSOLE}};
    for (size_t i = 0; i < KLP_COUNT(chardevs); i++) {
        word_add(out, "-chardev");
        word_add(out, "socket,id=%s,fd=%d", chardevs[i].id, chardevs[i].fd);
    }
    word_add(out, "-mon");
    word_add(out, "chardev=qmp,mode=control");
    word_add(out, "-serial");
    word_add(out, "chardev:console");
    for (uint32_t i = 0; i < machine->device_count; i++) {
        const struct klp_device *device = &machine->devices[i];
        word_add(out, "-device");
        word_add(out, "%s,id=%s%s%s", device->kind, device->id, device->args[0] != 0 ? "," : "",
                 device->args);
    }
}

/* Only for a boot: a restored guest has its kernel in memory, is not reset (-no-reboot), and QEMU
 * would hold 50 MiB of it in vain (qemu-lab 3.1). */
static void kernel_words(const struct klp_machine *machine, struct klp_qemu_arguments *out)
{
    word_add(out, "-kernel");
    word_add(out, "/proc/self/fd/%d", QEMU_FD_KERNEL);
    word_add(out, "-initrd");
    word_add(out, "/proc/self/fd/%d", QEMU_FD_INITRAMFS);
    word_add(out, "-append");
    if (machine->tsc_khz != 0)
        word_add(out, "%s tsc_early_khz=%llu", machine->cmdline,
                 (unsigned long long)machine->tsc_khz);
    else
        word_add(out, "%s", machine->cmdline);
}

bool klp_qemu_arguments_make(const struct klp_machine *machine, enum klp_spawn_mode mode,
                             bool has_kernel, struct klp_qemu_arguments *out,
                             struct kelpie_error **err)
{
    static const char *const always[] = {
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot", /* its firmware is in no state: a reboot in place would hang (qemu-lab 6) */
        "-rtc",
        "base=utc,clock=vm", /* a guest that stands still has a device state that stands still */
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        NULL};
    /* xen-save-devices-state writes no configuration section. */
    static const char *const incoming[] = {
        "-S", "-incoming", "defer", "-global", "migration.send-configuration=off", NULL};
    KLP_CHECK(klp_qemu_machine_check(machine, err));
    if (mode == KLP_SPAWN_COLD && !has_kernel)
        return klp_refuse(err, KELPIE_E_INVALID, "QEMU boots from a kernel and an initramfs");
    *out = (struct klp_qemu_arguments){0};
    words_add(out, always);
    machine_words(machine, out);
    device_words(machine, out);
    if (mode == KLP_SPAWN_COLD)
        kernel_words(machine, out);
    else
        words_add(out, incoming);
    return true;
}

void klp_qemu_arguments_finish(struct klp_qemu_arguments *arguments)
{
    for (size_t i = 0; i < arguments->count; i++)
        klp_mem_free(arguments->words[i]);
    *arguments = (struct klp_qemu_arguments){0};
}
