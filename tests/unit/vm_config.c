/* SPDX-License-Identifier: Apache-2.0 */
/* The whole configuration is judged, every fault is named, a backend's are among them, and what is
 * copied belongs to the VM. */
#include "env_kit.h"

#include "base/limits.h"
#include "vm/config.h"

struct fake {
    struct kelpie_vm_factory base;
    const char *fault; /* added by the backend; NULL = none */
    bool refuses;      /* false without a reason */
    bool bad_machine;
    unsigned asked;
    struct kelpie_vm_config seen; /* numbers only */
};

static bool fake_machine(struct kelpie_vm_factory *factory, const struct kelpie_vm_config *config,
                         struct klp_machine *out, struct kelpie_error **faults)
{
    struct fake *fake = (struct fake *)factory;
    fake->asked++;
    fake->seen.vcpu_count = config->vcpu_count;
    fake->seen.memory_mib = config->memory_mib;
    *out = (struct klp_machine){.version = KLP_MACHINE_VERSION,
                                .arch = factory->arch,
                                .vcpus = config->vcpu_count,
                                .memory_bytes = (uint64_t)config->memory_mib * KLP_MIB,
                                .page_log2 = 12};
    klp_text_copy(out->backend, sizeof(out->backend), fake->bad_machine ? "not a name!" : "fake");
    klp_text_copy(out->backend_version, sizeof(out->backend_version), "1.0.0");
    klp_text_copy(out->type, sizeof(out->type), "fake");
    klp_text_copy(out->cpu, sizeof(out->cpu), "fake");
    if (fake->fault != NULL)
        klp_error_reason_add(faults, "%s", fake->fault);
    return fake->fault == NULL && !fake->refuses;
}

static const struct klp_factory_ops fake_ops = {.name = "fake", .machine = fake_machine};

static struct fake fake_make(const struct kit *kit)
{
    return (struct fake){.base = {.ops = &fake_ops, .env = kit->env, .arch = KLP_ARCH_X86_64}};
}

static void refused(struct fake *fake, const struct kelpie_vm_config *config, enum kelpie_code code,
                    size_t count, const char *reason)
{
    struct kelpie_error *err = NULL;
    struct klp_machine machine;
    bool found = false;
    assert_false(klp_vm_config_check(&fake->base, "VM x", config, &machine, &err));
    assert_string_equal(kelpie_code_name(kelpie_error_code(err)), kelpie_code_name(code));
    assert_non_null(strstr(kelpie_error_message(err), "VM x"));
    assert_int_equal(kelpie_error_reason_count(err), count);
    for (size_t i = 0; i < count; i++)
        found = found || strstr(kelpie_error_reason(err, i), reason) != NULL;
    if (!found)
        fail_msg("no reason says '%s', the first is '%s'", reason, kelpie_error_reason(err, 0));
    klp_error_clear(&err);
}

static void test_vm_config__defaults(void **state)
{
    struct fake fake = fake_make(*state);
    struct kelpie_vm_config config = {0};
    struct klp_machine machine;
    assert_true(klp_vm_config_check(&fake.base, "VM x", &config, &machine, NULL));
    assert_int_equal(fake.seen.vcpu_count, KLP_VCPUS_DEFAULT);
    assert_int_equal(fake.seen.memory_mib, KLP_MEMORY_MIB_DEFAULT);
    assert_true(klp_vm_factory_machine(&fake.base, &config, &machine, NULL));
    assert_int_equal(machine.memory_bytes, (uint64_t)KLP_MEMORY_MIB_DEFAULT * KLP_MIB);
}

static void test_vm_config__numbers(void **state)
{
    struct fake fake = fake_make(*state);
    struct kelpie_vm_config config = {.vcpu_count = 33};
    struct klp_machine machine;
    refused(&fake, &config, KELPIE_E_INVALID, 1, "vcpu_count is 33");
    config = (struct kelpie_vm_config){.memory_mib = 127};
    refused(&fake, &config, KELPIE_E_INVALID, 1, "memory_mib is 127");
    config.memory_mib = 16385;
    refused(&fake, &config, KELPIE_E_INVALID, 1, "16384");
    config = (struct kelpie_vm_config){.vcpu_count = 32, .memory_mib = 16384};
    assert_true(klp_vm_config_check(&fake.base, "VM x", &config, &machine, NULL));
    config = (struct kelpie_vm_config){.vcpu_count = 1, .memory_mib = 128};
    assert_true(klp_vm_config_check(&fake.base, "VM x", &config, &machine, NULL));
}

static void test_vm_config__architectures(void **state)
{
    struct fake fake = fake_make(*state);
    struct kelpie_vm_config config = {.arch = "x86_64"};
    struct klp_machine machine;
    assert_true(klp_vm_config_check(&fake.base, "VM x", &config, &machine, NULL));
    config.arch = "amd64"; /* the same by its other name */
    assert_true(klp_vm_config_check(&fake.base, "VM x", &config, &machine, NULL));
    config.arch = "aarch64";
    refused(&fake, &config, KELPIE_E_UNSUPPORTED, 1, "guests of x86_64 run here");
    config.arch = "pdp11";
    refused(&fake, &config, KELPIE_E_INVALID, 1, "pdp11");
}

static void test_vm_config__paths(void **state)
{
    struct fake fake = fake_make(*state);
    struct kelpie_vm_config config = {.kernel_image_path = "", .initrd_path = ""};
    char longest[KLP_PATH_MAX + 2];
    refused(&fake, &config, KELPIE_E_INVALID, 2, "initrd_path is empty");
    memset(longest, 'x', sizeof(longest) - 1);
    longest[0] = '/';
    longest[sizeof(longest) - 1] = 0;
    config = (struct kelpie_vm_config){.kernel_image_path = longest, .workdir = longest};
    refused(&fake, &config, KELPIE_E_INVALID, 2, "workdir has 4097 bytes");
    config = (struct kelpie_vm_config){.workdir = "here"};
    refused(&fake, &config, KELPIE_E_INVALID, 1, "workdir is not absolute");
    config.workdir = "";
    refused(&fake, &config, KELPIE_E_INVALID, 1, "workdir is empty");
}

static void test_vm_config__kernel_arguments(void **state)
{
    struct fake fake = fake_make(*state);
    char longest[258];
    struct kelpie_vm_config config = {.kernel_args = longest};
    struct klp_machine machine;
    memset(longest, 'a', sizeof(longest));
    longest[257] = 0;
    refused(&fake, &config, KELPIE_E_INVALID, 1, "257 bytes");
    longest[256] = 0;
    assert_true(klp_vm_config_check(&fake.base, "VM x", &config, &machine, NULL));
    config.kernel_args = "quiet\npanic=1";
    refused(&fake, &config, KELPIE_E_INVALID, 1, "byte 5");
    config.kernel_args = "caf\xc3\xa9";
    refused(&fake, &config, KELPIE_E_INVALID, 1, "byte 3");
}

static void test_vm_config__environment(void **state)
{
    struct fake fake = fake_make(*state);
    const char *const bad[] = {"A=1", "SECRET", "=x", NULL};
    struct kelpie_vm_config config = {.env = bad};
    struct klp_machine machine;
    struct kelpie_error *err = NULL;
    refused(&fake, &config, KELPIE_E_INVALID, 1, "entry 2");
    assert_false(klp_vm_config_check(&fake.base, "VM x", &config, &machine, &err));
    assert_null(strstr(kelpie_error_reason(err, 0), "SECRET")); /* a value may be a secret */
    klp_error_clear(&err);
    const char *many[KLP_ENV_MAX + 2] = {NULL};
    for (size_t i = 0; i <= KLP_ENV_MAX; i++)
        many[i] = "K=V";
    config.env = many;
    refused(&fake, &config, KELPIE_E_INVALID, 1, "more than 1024");
    many[KLP_ENV_MAX] = NULL;
    assert_true(klp_vm_config_check(&fake.base, "VM x", &config, &machine, NULL));
    char *large = malloc(KLP_VM_ENV_BYTES_MAX + 2);
    memset(large, 'v', KLP_VM_ENV_BYTES_MAX + 1);
    large[1] = '=';
    large[KLP_VM_ENV_BYTES_MAX + 1] = 0;
    const char *const one[] = {large, NULL};
    config.env = one;
    refused(&fake, &config, KELPIE_E_INVALID, 1, "at most");
    free(large);
}

static void test_vm_config__hostnames(void **state)
{
    struct fake fake = fake_make(*state);
    static const char *const good[] = {"a", "Agent-7.example", "x123"};
    static const char *const bad[] = {"",    "-a",  "a-",  ".a",         "a.",
                                      "a b", "a_b", "a\n", "caf\xc3\xa9"};
    struct kelpie_vm_config config = {0};
    struct klp_machine machine;
    for (size_t i = 0; i < KLP_COUNT(good); i++) {
        config.hostname = good[i];
        assert_true(klp_vm_config_check(&fake.base, "VM x", &config, &machine, NULL));
    }
    for (size_t i = 0; i < KLP_COUNT(bad); i++) {
        config.hostname = bad[i];
        refused(&fake, &config, KELPIE_E_INVALID, 1, "hostname");
    }
    char longest[65];
    memset(longest, 'h', 64);
    longest[64] = 0;
    config.hostname = longest;
    refused(&fake, &config, KELPIE_E_INVALID, 1, "hostname");
}

static void test_vm_config__what_does_not_exist_yet(void **state)
{
    struct fake fake = fake_make(*state);
    struct kelpie_vm_config config = {.networking_enabled = true};
    refused(&fake, &config, KELPIE_E_UNSUPPORTED, 1, "networking_enabled");
    config = (struct kelpie_vm_config){.shared_folder_count = 1};
    refused(&fake, &config, KELPIE_E_UNSUPPORTED, 1, "shared_folder_count");
    config = (struct kelpie_vm_config){.root_disk_path = "/d", .root_disk_readonly = true};
    refused(&fake, &config, KELPIE_E_UNSUPPORTED, 1, "root_disk_path");
    config = (struct kelpie_vm_config){.root_disk_readonly = true};
    refused(&fake, &config, KELPIE_E_INVALID, 1, "root_disk_readonly");
    config = (struct kelpie_vm_config){.networking_enabled = true, .vcpu_count = 99};
    refused(&fake, &config, KELPIE_E_INVALID, 2, "networking_enabled"); /* one is enough */
}

static void test_vm_config__faults_of_the_backend(void **state)
{
    struct fake fake = fake_make(*state);
    struct kelpie_vm_config config = {0};
    fake.fault = "kernel_image_path: needs one";
    refused(&fake, &config, KELPIE_E_INVALID, 1, "needs one");
    config.networking_enabled = true;
    refused(&fake, &config, KELPIE_E_INVALID, 2, "needs one"); /* both are told at once */
    config.networking_enabled = false;
    fake.fault = NULL;
    fake.refuses = true;
    refused(&fake, &config, KELPIE_E_INVALID, 1, "backend fake");
    fake.refuses = false;
    fake.bad_machine = true;
    refused(&fake, &config, KELPIE_E_INVALID, 1, "backend");
    fake.asked = 0;
    config.memory_mib = 1; /* it may rely on what is checked here */
    refused(&fake, &config, KELPIE_E_INVALID, 1, "memory_mib");
    assert_int_equal(fake.asked, 0);
}

static void test_vm_config__copies_are_its_own(void **state)
{
    (void)state;
    char path[] = "/kernel", entry[] = "K=V";
    const char *env[] = {entry, "L=W", NULL};
    struct kelpie_vm_config copy,
        config = {.kernel_image_path = path, .env = env, .memory_mib = 256};
    klp_vm_config_copy(&copy, &config, KLP_ARCH_AARCH64);
    path[0] = entry[0] = 'X';
    env[1] = NULL;
    assert_string_equal(copy.kernel_image_path, "/kernel");
    assert_string_equal(copy.env[0], "K=V");
    assert_string_equal(copy.env[1], "L=W");
    assert_null(copy.env[2]);
    assert_string_equal(copy.arch, "aarch64");
    assert_int_equal(copy.vcpu_count, KLP_VCPUS_DEFAULT);
    assert_int_equal(copy.memory_mib, 256);
    assert_null(copy.workdir);
    klp_vm_config_finish(&copy);
    assert_null(copy.env);
    klp_vm_config_finish(&copy);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        KIT_TEST(test_vm_config__defaults),
        KIT_TEST(test_vm_config__numbers),
        KIT_TEST(test_vm_config__architectures),
        KIT_TEST(test_vm_config__paths),
        KIT_TEST(test_vm_config__kernel_arguments),
        KIT_TEST(test_vm_config__environment),
        KIT_TEST(test_vm_config__hostnames),
        KIT_TEST(test_vm_config__what_does_not_exist_yet),
        KIT_TEST(test_vm_config__faults_of_the_backend),
        KIT_TEST(test_vm_config__copies_are_its_own),
    };
    return cmocka_run_group_tests_name("vm_config", tests, NULL, NULL);
}
