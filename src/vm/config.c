/* SPDX-License-Identifier: Apache-2.0 */
/* What a VM may be configured to, whatever the backend (kelpie-original 1.4). What one backend
 * cannot honour it adds itself, so that a person reads all faults at once. Whether files exist is
 * seen when they are opened. */
#include "vm/config.h"

#include <string.h>

#include "base/fmt.h"

struct faults {
    struct kelpie_error *list; /* holds the reasons; its own message is replaced at the end */
    size_t unsupported;        /* of them: what we may learn one day */
};

static size_t fault_count(const struct faults *faults)
{
    return kelpie_error_reason_count(faults->list);
}

static void unsupported_add(struct faults *faults, const char *reason)
{
    faults->unsupported++;
    klp_error_reason_add(&faults->list, "%s", reason);
}

static void range_check(struct faults *faults, const char *field, uint32_t value, uint32_t min,
                        uint32_t max)
{
    if (value < min || value > max)
        klp_error_reason_add(&faults->list, "%s is %u: it must be %u to %u", field, value, min,
                             max);
}

static void path_check(struct faults *faults, const char *field, const char *path)
{
    if (path == NULL)
        return;
    if (path[0] == 0)
        klp_error_reason_add(&faults->list, "%s is empty", field);
    else if (strlen(path) > KLP_PATH_MAX)
        klp_error_reason_add(&faults->list, "%s has %zu bytes: at most %d are allowed", field,
                             strlen(path), KLP_PATH_MAX);
}

static void kernel_args_check(struct faults *faults, const char *args)
{
    size_t size = args != NULL ? strlen(args) : 0;
    if (size > KLP_VM_KERNEL_ARGS_MAX)
        klp_error_reason_add(&faults->list, "kernel_args has %zu bytes: at most %d are allowed",
                             size, KLP_VM_KERNEL_ARGS_MAX);
    for (size_t i = 0; i < size && i < KLP_VM_KERNEL_ARGS_MAX; i++) {
        if (args[i] < 0x20 || args[i] > 0x7e) {
            klp_error_reason_add(&faults->list, "kernel_args: byte %zu is not printable ASCII", i);
            return;
        }
    }
}

static bool is_assignment(const char *text)
{
    size_t at = 0;
    while (text[at] != 0 && text[at] != '=')
        at++;
    return at > 0 && text[at] == '=';
}

/* An environment may hold secrets: a fault names the place, never the text. */
static void env_check(struct faults *faults, const char *const *env)
{
    size_t count = 0, size = 0, bad = 0;
    for (; env != NULL && env[count] != NULL && count <= KLP_ENV_MAX; count++) {
        size += strlen(env[count]) + 8; /* and the header of its field */
        if (bad == 0 && !is_assignment(env[count]))
            bad = count + 1;
    }
    if (bad != 0)
        klp_error_reason_add(&faults->list, "env: entry %zu is not K=V", bad);
    if (count > KLP_ENV_MAX)
        klp_error_reason_add(&faults->list, "env has more than %d entries", KLP_ENV_MAX);
    else if (size > KLP_VM_ENV_BYTES_MAX)
        klp_error_reason_add(&faults->list, "env takes %zu bytes: at most %u are allowed", size,
                             KLP_VM_ENV_BYTES_MAX);
}

static bool is_host_character(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '.';
}

static void hostname_check(struct faults *faults, const char *hostname)
{
    if (hostname == NULL)
        return;
    size_t size = strlen(hostname);
    bool good = size >= 1 && size <= KLP_VM_HOSTNAME_MAX && hostname[0] != '-' &&
                hostname[0] != '.' && hostname[size - 1] != '-' && hostname[size - 1] != '.';
    for (size_t i = 0; good && i < size; i++)
        good = is_host_character(hostname[i]);
    if (!good)
        klp_error_reason_add(&faults->list,
                             "hostname must be 1 to %d of letters, digits, '-' and '.', "
                             "the last two not at its ends",
                             KLP_VM_HOSTNAME_MAX);
}

static void arch_check(struct faults *faults, const char *name, enum klp_arch runs)
{
    if (name == NULL)
        return;
    enum klp_arch arch = klp_arch_parse(name);
    if (arch == KLP_ARCH_NONE)
        klp_error_reason_add(&faults->list, "arch is '%s': it must be x86_64 or aarch64", name);
    else if (arch != runs) {
        faults->unsupported++;
        klp_error_reason_add(&faults->list, "arch is %s: guests of %s run here",
                             klp_arch_name(arch), klp_arch_name(runs));
    }
}

static void fields_check(struct faults *faults, const struct kelpie_vm_config *config,
                         enum klp_arch arch)
{
    if (config->vcpu_count != 0)
        range_check(faults, "vcpu_count", config->vcpu_count, 1, KLP_VCPUS_MAX);
    if (config->memory_mib != 0)
        range_check(faults, "memory_mib", config->memory_mib, KLP_MEMORY_MIB_MIN,
                    KLP_MEMORY_MIB_MAX);
    arch_check(faults, config->arch, arch);
    path_check(faults, "kernel_image_path", config->kernel_image_path);
    path_check(faults, "initrd_path", config->initrd_path);
    path_check(faults, "workdir", config->workdir);
    if (config->workdir != NULL && config->workdir[0] != 0 && config->workdir[0] != '/')
        klp_error_reason_add(&faults->list, "workdir is not absolute");
    kernel_args_check(faults, config->kernel_args);
    env_check(faults, config->env);
    hostname_check(faults, config->hostname);
    if (config->root_disk_path != NULL)
        unsupported_add(faults, "root_disk_path: no backend has disks yet");
    if (config->root_disk_path == NULL && config->root_disk_readonly)
        klp_error_reason_add(&faults->list, "root_disk_readonly without a root_disk_path");
    if (config->networking_enabled)
        unsupported_add(faults, "networking_enabled: guests have no network yet");
    if (config->shared_folder_count != 0)
        unsupported_add(faults,
                        "shared_folder_count: a shared host folder cannot be in a snapshot");
}

/* The backend sees defaults in place of zeros. */
static void backend_check(struct faults *faults, struct kelpie_vm_factory *factory,
                          const struct kelpie_vm_config *config, struct klp_machine *out)
{
    struct kelpie_vm_config full;
    KLP_AUTO(kelpie_error) struct kelpie_error *fault = NULL;
    size_t before = fault_count(faults);
    klp_vm_config_copy(&full, config, factory->arch);
    *out = (struct klp_machine){0};
    bool made = factory->ops->machine(factory, &full, out, &faults->list);
    klp_vm_config_finish(&full);
    if (made && fault_count(faults) == before && !klp_machine_check(out, &fault))
        klp_error_reason_add(&faults->list, "%s", kelpie_error_message(fault));
    if (!made && fault_count(faults) == before)
        klp_error_reason_add(&faults->list, "backend %s cannot build it", factory->ops->name);
}

bool klp_vm_config_check(struct kelpie_vm_factory *factory, const char *what,
                         const struct kelpie_vm_config *config, struct klp_machine *out,
                         struct kelpie_error **err)
{
    struct faults faults = {.list = klp_error_create(KELPIE_E_INVALID, "faults")};
    fields_check(&faults, config, factory->arch);
    /* A backend may rely on what was checked so far, but for what it can do without. */
    if (fault_count(&faults) == faults.unsupported)
        backend_check(&faults, factory, config, out);
    size_t count = fault_count(&faults);
    if (count > 0) {
        enum kelpie_code code =
            count == faults.unsupported ? KELPIE_E_UNSUPPORTED : KELPIE_E_INVALID;
        KLP_IGNORE(klp_refuse(err, code, "cannot use the configuration of %s: %zu %s", what, count,
                              count == 1 ? "fault" : "faults"));
        for (size_t i = 0; i < count; i++)
            klp_error_reason_add(err, "%s", kelpie_error_reason(faults.list, i));
    }
    kelpie_error_free(faults.list);
    return count == 0;
}

/* ---- copies */

static const char *const *texts_copy(const char *const *texts)
{
    size_t count = 0;
    while (texts != NULL && texts[count] != NULL)
        count++;
    if (count == 0)
        return NULL;
    const char **copy = klp_mem_alloc((count + 1) * sizeof(copy[0]));
    for (size_t i = 0; i < count; i++)
        copy[i] = klp_mem_string(texts[i]);
    return copy;
}

void klp_vm_config_copy(struct kelpie_vm_config *out, const struct kelpie_vm_config *config,
                        enum klp_arch arch)
{
    *out = *config;
    if (out->vcpu_count == 0)
        out->vcpu_count = KLP_VCPUS_DEFAULT;
    if (out->memory_mib == 0)
        out->memory_mib = KLP_MEMORY_MIB_DEFAULT;
    out->arch = klp_arch_name(arch);
    out->kernel_image_path = klp_mem_string(config->kernel_image_path);
    out->initrd_path = klp_mem_string(config->initrd_path);
    out->root_disk_path = klp_mem_string(config->root_disk_path);
    out->kernel_args = klp_mem_string(config->kernel_args);
    out->env = texts_copy(config->env);
    out->workdir = klp_mem_string(config->workdir);
    out->hostname = klp_mem_string(config->hostname);
}

static void text_free(const char *text)
{
    klp_mem_free((void *)(uintptr_t)text);
}

void klp_vm_config_finish(struct kelpie_vm_config *config)
{
    text_free(config->kernel_image_path);
    text_free(config->initrd_path);
    text_free(config->root_disk_path);
    text_free(config->kernel_args);
    for (size_t i = 0; config->env != NULL && config->env[i] != NULL; i++)
        text_free(config->env[i]);
    klp_mem_free((void *)(uintptr_t)config->env);
    text_free(config->workdir);
    text_free(config->hostname);
    *config = (struct kelpie_vm_config){0};
}
