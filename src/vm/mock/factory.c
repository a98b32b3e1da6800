/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/fmt.h"
#include "vm/keeper_launch.h"
#include "vm/mock/mock.h"

struct mock_factory {
    struct kelpie_vm_factory base;
    char *keeper_path;
};

static bool mock_machine(struct kelpie_vm_factory *factory, const struct kelpie_vm_config *config,
                         struct klp_machine *out, struct kelpie_error **faults)
{
    (void)faults; /* kernel, initramfs and arguments mean nothing to it, and it asks for none */
    *out = (struct klp_machine){
        .version = KLP_MACHINE_VERSION,
        .arch = factory->arch,
        .vcpus = config->vcpu_count != 0 ? config->vcpu_count : KLP_VCPUS_DEFAULT,
        .memory_bytes =
            (uint64_t)(config->memory_mib != 0 ? config->memory_mib : KLP_MEMORY_MIB_DEFAULT) *
            KLP_MIB,
        .page_log2 = 12};
    klp_text_copy(out->backend, sizeof(out->backend), "mock");
    klp_text_copy(out->backend_version, sizeof(out->backend_version), "1.0.0");
    klp_text_copy(out->type, sizeof(out->type), "mock");
    klp_text_copy(out->cpu, sizeof(out->cpu), "mock");
    return true;
}

static kelpie_outcome mock_launch(const struct kelpie_op *op, struct kelpie_vm_factory *factory,
                                  struct klp_dir *dir, const char *id, struct kelpie_error **err)
{
    return klp_keeper_launch(op, ((struct mock_factory *)factory)->keeper_path, "mock", NULL, dir,
                             id, err);
}

static kelpie_outcome mock_boot_files(const struct kelpie_op *op, struct kelpie_vm_factory *factory,
                                      const struct kelpie_vm_config *config, struct klp_handle *out,
                                      size_t *count, struct kelpie_error **err)
{
    (void)op;
    (void)factory;
    (void)config;
    (void)out;
    (void)err;
    *count = 0;
    return KLP_OK;
}

static void mock_destroy(struct kelpie_vm_factory *factory)
{
    klp_mem_free(((struct mock_factory *)factory)->keeper_path);
    klp_mem_free(factory);
}

static const struct klp_factory_ops mock_ops = {
    .name = "mock",
    .caps = KELPIE_VM_CAP_SNAPSHOT | KELPIE_VM_CAP_DIFF_SNAPSHOT | KELPIE_VM_CAP_LIVE_CAPTURE |
            KELPIE_VM_CAP_CROSS_HOST_RESTORE | KELPIE_VM_CAP_TEMPLATE,
    .machine = mock_machine,
    .launch = mock_launch,
    .boot_files = mock_boot_files,
    .destroy = mock_destroy,
};

bool klp_vm_mock_create(struct klp_env *env, struct klp_dir *vms_dir,
                        const struct klp_mock_options *options, struct kelpie_vm_factory **out,
                        struct kelpie_error **err)
{
    struct mock_factory *factory = KLP_NEW(struct mock_factory);
    (void)err;
    factory->base = (struct kelpie_vm_factory){
        .ops = &mock_ops,
        .env = env,
        .vms_dir = vms_dir,
        .arch = options->arch != KLP_ARCH_NONE ? options->arch : klp_arch_host(),
        .boot_timeout_ms = 10000};
    factory->keeper_path = klp_mem_string(options->keeper_path);
    *out = &factory->base;
    return true;
}
