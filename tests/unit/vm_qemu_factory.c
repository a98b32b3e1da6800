/* SPDX-License-Identifier: Apache-2.0 */
/* The factory's judgement and QEMU's words, from facts of our own making: no QEMU needed. */
#include "env_kit.h"

#include "base/fmt.h"
#include "base/limits.h"
#include "vm/qemu/inside.h"

static const struct klp_qemu_probe facts = {
    .found = true,
    .path = "/usr/bin/qemu-system-x86_64",
    .version = "7.2.22",
    .has_xen_save = true,
    .tsc_khz = 2600000,
    .cpu = "EPYC-Rome",
    .accelerator = "tcg",
};

static struct kelpie_vm_factory *factory_make(void **state, const struct klp_qemu_probe *probe,
                                              enum klp_arch arch)
{
    struct kit *kit = *state;
    struct kelpie_vm_factory *factory;
    const struct klp_qemu_options options = {
        .keeper_path = "/nowhere/kelpie-keeper", .arch = arch, .probe = probe};
    assert_true(klp_vm_qemu_create(kit->env, kit->dir, &options, &factory, NULL));
    return factory;
}

static struct klp_machine machine_make(struct kelpie_vm_factory *factory)
{
    struct klp_machine machine;
    const struct kelpie_vm_config config = {.vcpu_count = 2,
                                            .memory_mib = 256,
                                            .kernel_image_path = "/k",
                                            .initrd_path = "/i",
                                            .kernel_args = "kelpie.x=1"};
    assert_true(factory->ops->machine(factory, &config, &machine, NULL));
    assert_true(klp_machine_check(&machine, NULL));
    return machine;
}

static bool has_words(const struct klp_qemu_arguments *arguments, const char *first,
                      const char *second)
{
    for (size_t i = 0; i < arguments->count; i++)
        if (strcmp(arguments->words[i], first) == 0 &&
            (second == NULL ||
             (i + 1 < arguments->count && strcmp(arguments->words[i + 1], second) == 0)))
            return true;
    return false;
}

static void test_vm_qemu_factory__builds_a_machine_from_a_config(void **state)
{
    struct kelpie_vm_factory *factory = factory_make(state, &facts, KLP_ARCH_X86_64);
    struct klp_machine machine = machine_make(factory);
    assert_string_equal(machine.backend, "qemu");
    assert_string_equal(machine.backend_version, "7.2.22");
    assert_string_equal(machine.type, "microvm");
    assert_int_equal(machine.vcpus, 2);
    assert_int_equal(machine.memory_bytes, 256ull * KLP_MIB);
    assert_int_equal(machine.tsc_khz, 2600000);
    assert_non_null(strstr(machine.cmdline, " kelpie.x=1"));
    assert_null(strstr(machine.cmdline, "tsc_early_khz"));
    assert_true(factory->ops->accepts(factory, &machine, NULL));
    assert_true((factory->ops->caps & KELPIE_VM_CAP_SNAPSHOT) != 0);
    klp_vm_factory_destroy(factory);
}

static void test_vm_qemu_factory__lists_every_fault_of_a_config(void **state)
{
    struct kelpie_vm_factory *factory = factory_make(state, &facts, KLP_ARCH_AARCH64);
    struct kelpie_error *faults = klp_error_create(KELPIE_E_INVALID, "faults");
    struct klp_machine machine;
    struct kelpie_vm_config config = {.vcpu_count = 9, .kernel_args = "tsc_early_khz=1"};
    assert_false(factory->ops->machine(factory, &config, &machine, &faults));
    assert_int_equal(kelpie_error_reason_count(faults), 3);
    klp_error_clear(&faults);
    klp_vm_factory_destroy(factory);
}

static void test_vm_qemu_factory__a_boot_and_a_restore_differ_in_few_words(void **state)
{
    struct kelpie_vm_factory *factory = factory_make(state, &facts, KLP_ARCH_X86_64);
    struct klp_machine machine = machine_make(factory);
    struct klp_qemu_arguments boot, restore;
    struct kelpie_error *error = NULL;
    assert_true(klp_qemu_arguments_make(&machine, KLP_SPAWN_COLD, true, &boot, NULL));
    assert_true(klp_qemu_arguments_make(&machine, KLP_SPAWN_INCOMING, false, &restore, NULL));
    for (size_t i = 0; i < 2; i++) {
        const struct klp_qemu_arguments *both = i == 0 ? &boot : &restore;
        assert_true(has_words(both, "-no-reboot", NULL));
        assert_false(has_words(both, "-daemonize", NULL));
        assert_true(has_words(both, "-cpu", "EPYC-Rome"));
        assert_true(has_words(both, "-smp", "2"));
        assert_true(has_words(both, "-m", "256M"));
        assert_true(
            has_words(both, "-object",
                      "memory-backend-file,id=ram0,size=256M,mem-path=/proc/self/fd/6,share=off"));
        assert_true(
            has_words(both, "-sandbox",
                      "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"));
        assert_true(has_words(both, "-device",
                              "virtserialport,id=agent0,bus=vs0.0,chardev=agent,"
                              "name=agent.0,nr=1"));
        assert_true(has_words(both, "-device", "pvpanic,id=panic0"));
    }
    assert_true(has_words(&boot, "-kernel", "/proc/self/fd/7"));
    char append[600];
    klp_format(append, sizeof(append), "%s tsc_early_khz=2600000", machine.cmdline);
    assert_true(has_words(&boot, "-append", append));
    assert_false(has_words(&boot, "-incoming", NULL));
    assert_true(has_words(&restore, "-incoming", "defer"));
    assert_true(has_words(&restore, "-S", NULL));
    assert_true(has_words(&restore, "-global", "migration.send-configuration=off"));
    klp_qemu_arguments_finish(&boot);
    klp_qemu_arguments_finish(&restore);
    assert_false(klp_qemu_arguments_make(&machine, KLP_SPAWN_COLD, false, &boot, &error));
    assert_int_equal(kelpie_error_code(error), KELPIE_E_INVALID);
    klp_error_clear(&error);
    klp_vm_factory_destroy(factory);
}

static void reason_expect(struct kelpie_vm_factory *factory, const struct klp_machine *machine,
                          const char *reason)
{
    struct kelpie_error *error = NULL;
    assert_false(factory->ops->accepts(factory, machine, &error));
    assert_int_equal(kelpie_error_code(error), KELPIE_E_INCOMPATIBLE);
    bool found = false;
    for (size_t i = 0; i < kelpie_error_reason_count(error); i++)
        found = found || strcmp(kelpie_error_reason(error, i), reason) == 0;
    if (!found)
        fail_msg("no reason '%s', the first of %zu is '%s'", reason,
                 kelpie_error_reason_count(error), kelpie_error_reason(error, 0));
    klp_error_clear(&error);
}

static void test_vm_qemu_factory__refuses_what_cannot_run_here_with_all_reasons(void **state)
{
    struct kelpie_vm_factory *factory = factory_make(state, &facts, KLP_ARCH_X86_64);
    struct klp_machine good = machine_make(factory), machine = good;
    klp_text_copy(machine.backend_version, sizeof(machine.backend_version), "7.2.1");
    assert_true(factory->ops->accepts(factory, &machine, NULL));
    klp_text_copy(machine.backend_version, sizeof(machine.backend_version), "7.20.22");
    reason_expect(factory, &machine, "version: snapshot needs QEMU 7.20, node has 7.2.22");
    machine = good;
    machine.tsc_khz = 2600000 - 600; /* 231 ppm */
    assert_true(factory->ops->accepts(factory, &machine, NULL));
    machine.tsc_khz = 2600000 + 700; /* 269 ppm */
    reason_expect(factory, &machine, "tsc: snapshot needs 2600700 kHz, node counts 2600000 kHz");
    machine = good;
    klp_text_copy(machine.cpu, sizeof(machine.cpu), "qemu64");
    reason_expect(factory, &machine, "cpu: snapshot needs qemu64, node has EPYC-Rome");
    machine = good;
    klp_text_copy(machine.accelerator, sizeof(machine.accelerator), "kvm");
    reason_expect(factory, &machine, "accelerator: snapshot needs kvm, node has tcg");
    machine.arch = KLP_ARCH_AARCH64;
    machine.tsc_khz = 0;
    reason_expect(factory, &machine, "arch: snapshot needs aarch64, node runs x86_64");
    reason_expect(factory, &machine, "accelerator: snapshot needs kvm, node has tcg");
    klp_vm_factory_destroy(factory);
}

/* A description from elsewhere cannot make QEMU open files, sockets or the host's devices. */
static void test_vm_qemu_factory__a_hostile_machine_names_no_device_of_its_own(void **state)
{
    static const struct {
        const char *kind, *args;
    } hostile[] = {{"vfio-pci", "host=00:02.0"},
                   {"virtio-serial-device", "max_ports=99"},
                   {"loader", "file=/etc/passwd"},
                   {"virtserialport", "bus=vs0.0,chardev=qmp,name=agent.0,nr=1"}};
    struct kelpie_vm_factory *factory = factory_make(state, &facts, KLP_ARCH_X86_64);
    struct klp_machine good = machine_make(factory);
    struct klp_qemu_arguments arguments;
    for (size_t i = 0; i < KLP_COUNT(hostile); i++) {
        struct klp_machine machine = good;
        klp_text_copy(machine.devices[0].kind, sizeof(machine.devices[0].kind), hostile[i].kind);
        klp_text_copy(machine.devices[0].args, sizeof(machine.devices[0].args), hostile[i].args);
        assert_false(factory->ops->accepts(factory, &machine, NULL));
        assert_false(
            klp_qemu_arguments_make(&machine, KLP_SPAWN_INCOMING, false, &arguments, NULL));
    }
    struct klp_machine machine = good;
    klp_text_copy(machine.type, sizeof(machine.type), "none");
    assert_false(klp_qemu_arguments_make(&machine, KLP_SPAWN_COLD, true, &arguments, NULL));
    machine = good;
    klp_text_copy(machine.cpu, sizeof(machine.cpu), "max,x=y");
    assert_false(klp_qemu_arguments_make(&machine, KLP_SPAWN_COLD, true, &arguments, NULL));
    machine = good;
    machine.memory_bytes += 4096;
    assert_false(klp_qemu_arguments_make(&machine, KLP_SPAWN_COLD, true, &arguments, NULL));
    klp_vm_factory_destroy(factory);
}

static void test_vm_qemu_factory__without_qemu_says_what_to_install(void **state)
{
    struct kit *kit = *state;
    struct klp_qemu_probe none;
    struct kelpie_vm_factory *factory;
    struct kelpie_error *error = NULL;
    struct kelpie_op op = klp_op_plain(kit->env, 10000);
    klp_qemu_probe(&op, KLP_ARCH_AARCH64, "/nowhere/qemu", &none);
    assert_false(none.found);
    klp_qemu_probe(&op, KLP_ARCH_AARCH64, "/bin/true", &none);
    assert_false(none.found);
    assert_non_null(strstr(none.why, "does not answer"));
    const struct klp_qemu_options options = {
        .keeper_path = "/k", .arch = KLP_ARCH_AARCH64, .probe = &none};
    assert_false(klp_vm_qemu_create(kit->env, kit->dir, &options, &factory, &error));
    assert_int_equal(kelpie_error_code(error), KELPIE_E_UNSUPPORTED);
    assert_string_equal(kelpie_error_remedy(error), "apt install qemu-system-arm");
    klp_error_clear(&error);
    struct klp_qemu_probe plain = facts;
    plain.has_xen_save = false;
    factory = factory_make(state, &plain, KLP_ARCH_X86_64);
    assert_int_equal(factory->ops->caps & KELPIE_VM_CAP_SNAPSHOT, 0);
    klp_vm_factory_destroy(factory);
}

static void test_vm_qemu_factory__a_missing_boot_file_is_named_and_nothing_leaks(void **state)
{
    struct kit *kit = *state;
    struct kelpie_vm_factory *factory = factory_make(state, &facts, KLP_ARCH_X86_64);
    struct kelpie_op op = klp_op_plain(kit->env, 1000);
    struct klp_handle files[4];
    size_t count;
    struct kelpie_error *error = NULL;
    struct kelpie_vm_config config = {.kernel_image_path = "/bin/true", .initrd_path = "/no/such"};
    assert_false(
        kelpie_is_ok(factory->ops->boot_files(&op, factory, &config, files, &count, &error)));
    assert_int_equal(kelpie_error_code(error), KELPIE_E_NOT_FOUND);
    assert_non_null(strstr(kelpie_error_message(error), "/no/such"));
    klp_error_clear(&error);
    config.initrd_path = NULL;
    assert_true(kelpie_is_ok(factory->ops->boot_files(&op, factory, &config, files, &count, NULL)));
    assert_int_equal(count, 0);
    klp_vm_factory_destroy(factory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        KIT_TEST(test_vm_qemu_factory__builds_a_machine_from_a_config),
        KIT_TEST(test_vm_qemu_factory__lists_every_fault_of_a_config),
        KIT_TEST(test_vm_qemu_factory__a_boot_and_a_restore_differ_in_few_words),
        KIT_TEST(test_vm_qemu_factory__refuses_what_cannot_run_here_with_all_reasons),
        KIT_TEST(test_vm_qemu_factory__a_hostile_machine_names_no_device_of_its_own),
        KIT_TEST(test_vm_qemu_factory__without_qemu_says_what_to_install),
        KIT_TEST(test_vm_qemu_factory__a_missing_boot_file_is_named_and_nothing_leaks),
    };
    return cmocka_run_group_tests_name("vm_qemu_factory", tests, NULL, NULL);
}
