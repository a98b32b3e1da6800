/* SPDX-License-Identifier: Apache-2.0 */
/* Architectures, and the machine description against bytes made by others. */
#include "format_kit.h"

#include "format/machine.h"
#include "format/records.h"

/* The worked example of docs/formats/objects.md. */
#define EXAMPLE_HEX                                                                                \
    "0100 0100 08000000 0100000000000000" /* version 1 */                                          \
    "0200 0100 04000000 71656d7500000000" /* backend "qemu" */                                     \
    "0300 0100 06000000 372e322e32320000" /* backend version "7.2.22" */                           \
    "0400 0100 03000000 7463670000000000" /* accelerator "tcg" */                                  \
    "0500 0100 07000000 6d6963726f766d00" /* type "microvm" */                                     \
    "0600 0100 03000000 6d61780000000000" /* CPU "max" */                                          \
    "0700 0100 08000000 0100000000000000" /* x86_64 */                                             \
    "0800 0100 08000000 0200000000000000" /* 2 vCPUs */                                            \
    "0900 0100 08000000 0000002000000000" /* 512 MiB */                                            \
    "0a00 0100 08000000 0c00000000000000" /* pages of 4 KiB */                                     \
    "0b00 0100 08000000 0000000000000000" /* any TSC */                                            \
    "0c00 0100 05000000 7175696574000000" /* command line "quiet" */                               \
    "0d00 0100 20000000"                                                                           \
    "1111111111111111111111111111111111111111111111111111111111111111"                             \
    "0e00 0100 20000000"                                                                           \
    "2222222222222222222222222222222222222222222222222222222222222222"                             \
    "0f00 0100 19000000 0300 767330 0d00 7669727469" /* "vs0" "virtio-serial" "a=b" */             \
    "6f2d73657269616c 0300 613d62 00000000000000"

#define SINGLE_COUNT 14

static struct klp_machine example(void)
{
    struct klp_machine machine;
    memset(&machine, 0, sizeof(machine));
    machine.version = KLP_MACHINE_VERSION;
    strncpy(machine.backend, "qemu", sizeof(machine.backend) - 1);
    strncpy(machine.backend_version, "7.2.22", sizeof(machine.backend_version) - 1);
    strncpy(machine.accelerator, "tcg", sizeof(machine.accelerator) - 1);
    strncpy(machine.type, "microvm", sizeof(machine.type) - 1);
    strncpy(machine.cpu, "max", sizeof(machine.cpu) - 1);
    machine.arch = KLP_ARCH_X86_64;
    machine.vcpus = 2;
    machine.memory_bytes = 512 * (uint64_t)KLP_MIB;
    machine.page_log2 = 12;
    strncpy(machine.cmdline, "quiet", sizeof(machine.cmdline) - 1);
    memset(machine.kernel.bytes, 0x11, sizeof(machine.kernel.bytes));
    memset(machine.initramfs.bytes, 0x22, sizeof(machine.initramfs.bytes));
    machine.device_count = 1;
    strncpy(machine.devices[0].id, "vs0", sizeof(machine.devices[0].id) - 1);
    strncpy(machine.devices[0].kind, "virtio-serial", sizeof(machine.devices[0].kind) - 1);
    strncpy(machine.devices[0].args, "a=b", sizeof(machine.devices[0].args) - 1);
    return machine;
}

static void test_format_machine__architectures(void **state)
{
    (void)state;
    assert_string_equal(klp_arch_name(KLP_ARCH_X86_64), "x86_64");
    assert_string_equal(klp_arch_name(KLP_ARCH_AARCH64), "aarch64");
    assert_string_equal(klp_arch_name(KLP_ARCH_NONE), "none");
    assert_string_equal(klp_arch_name((enum klp_arch)77), "none");
    assert_int_equal(klp_arch_parse("amd64"), KLP_ARCH_X86_64);
    assert_int_equal(klp_arch_parse("arm64"), KLP_ARCH_AARCH64);
    assert_int_equal(klp_arch_parse("X86_64"), KLP_ARCH_NONE);
    assert_int_equal(klp_arch_parse(""), KLP_ARCH_NONE);
    assert_int_equal(klp_arch_parse(NULL), KLP_ARCH_NONE);
    assert_int_equal(klp_arch_parse(klp_arch_name(klp_arch_host())), klp_arch_host());
}

static void test_format_machine__worked_example(void **state)
{
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(8192);
    struct klp_machine machine = example(), again;
    (void)state;
    assert_true(klp_machine_check(&machine, NULL));
    klp_machine_encode(&machine, &bytes);
    kit_assert_hex(&bytes, EXAMPLE_HEX);
    assert_true(klp_machine_decode(klp_buf_view(&bytes), &again, NULL));
    assert_memory_equal(&machine, &again, sizeof(machine));
}

static void test_format_machine__fullest(void **state)
{
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(16384);
    struct klp_machine machine = example(), again;
    (void)state;
    memset(machine.backend, 'b', sizeof(machine.backend) - 1);
    memset(machine.backend_version, '~', sizeof(machine.backend_version) - 1);
    memset(machine.accelerator, '_', sizeof(machine.accelerator) - 1);
    memset(machine.type, '.', sizeof(machine.type) - 1);
    memset(machine.cpu, ' ', sizeof(machine.cpu) - 1);
    memset(machine.cmdline, ',', sizeof(machine.cmdline) - 1);
    machine.arch = KLP_ARCH_AARCH64;
    machine.vcpus = KLP_VCPUS_MAX;
    machine.memory_bytes = (uint64_t)KLP_MEMORY_MIB_MAX * KLP_MIB;
    machine.page_log2 = KLP_PAGE_LOG2_MAX;
    machine.tsc_khz = UINT64_MAX;
    machine.device_count = KLP_MACHINE_DEVICES_MAX;
    for (unsigned i = 0; i < KLP_MACHINE_DEVICES_MAX; i++) {
        memset(machine.devices[i].id, 'a' + (int)i, sizeof(machine.devices[i].id) - 1);
        memset(machine.devices[i].kind, '-', sizeof(machine.devices[i].kind) - 1);
        memset(machine.devices[i].args, '/', sizeof(machine.devices[i].args) - 1);
    }
    klp_machine_encode(&machine, &bytes);
    assert_true(klp_machine_decode(klp_buf_view(&bytes), &again, NULL));
    assert_memory_equal(&machine, &again, sizeof(machine));
}

/* What may not be written may not be read either. */
static void assert_wrong(const struct klp_machine *machine, const char *piece)
{
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(16384);
    struct klp_machine again;
    KIT_REFUSED(klp_machine_check(machine, &err), false, KELPIE_E_INVALID, piece);
    klp_machine_encode(machine, &bytes);
    KIT_REFUSED(klp_machine_decode(klp_buf_view(&bytes), &again, &err), false, KELPIE_E_CORRUPT,
                piece);
}

static void test_format_machine__values_out_of_range(void **state)
{
    struct klp_machine machine;
    (void)state;
#define CASE(change, piece)                                                                        \
    machine = example();                                                                           \
    change;                                                                                        \
    assert_wrong(&machine, piece)
    CASE(machine.version = 0, "version");
    CASE(machine.backend[0] = '\0', "backend");
    CASE(machine.arch = KLP_ARCH_NONE, "arch");
    CASE(machine.arch = (enum klp_arch)3, "arch");
    CASE(machine.vcpus = 0, "vcpus");
    CASE(machine.vcpus = KLP_VCPUS_MAX + 1, "vcpus");
    CASE(machine.page_log2 = 5, "page_log2");
    CASE(machine.page_log2 = 255, "page_log2");
    CASE(machine.memory_bytes = 0, "memory_bytes");
    CASE(machine.memory_bytes += 64, "memory_bytes");
    CASE(machine.memory_bytes = ((uint64_t)KLP_MEMORY_MIB_MAX + 1) * KLP_MIB, "memory_bytes");
    CASE(machine.devices[0].id[0] = '\0', "device has no id");
    CASE(machine.devices[0].kind[0] = '\0', "device has no id or no kind");
    CASE((machine.devices[1] = machine.devices[0], machine.device_count = 2), "given twice");
#undef CASE
    machine = example();
    machine.device_count = KLP_MACHINE_DEVICES_MAX + 1;
    KIT_REFUSED(klp_machine_check(&machine, &err), false, KELPIE_E_INVALID, "too many");
}

/* Texts become arguments of a hypervisor: no way to smuggle another option in. */
static void test_format_machine__letters_that_would_be_options(void **state)
{
    struct klp_machine machine;
    (void)state;
#define CASE(field, letter, name)                                                                  \
    machine = example();                                                                           \
    machine.field[1] = (letter);                                                                   \
    assert_wrong(&machine, name)
    CASE(backend, '/', "backend");
    CASE(backend_version, ',', "backend_version");
    CASE(backend_version, '\n', "backend_version");
    CASE(accelerator, ',', "accelerator");
    CASE(type, ',', "type");
    CASE(type, ' ', "type");
    CASE(cpu, ',', "cpu");
    CASE(cpu, '\x7f', "cpu");
    CASE(cmdline, '\x1b', "cmdline");
    CASE(cmdline, '\xc3', "cmdline");
    CASE(devices[0].id, ',', "device.id");
    CASE(devices[0].kind, '=', "device.kind");
    CASE(devices[0].args, ' ', "device.args");
    CASE(devices[0].args, '"', "device.args");
    CASE(devices[0].args, ';', "device.args");
#undef CASE
}

static void test_format_machine__a_text_without_its_end_stays_inside_its_field(void **state)
{
    struct klp_machine machine = example(), again;
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(16384);
    (void)state;
    memset(machine.backend, 'b', sizeof(machine.backend));
    KIT_REFUSED(klp_machine_check(&machine, &err), false, KELPIE_E_INVALID, "fit");
    klp_machine_encode(&machine, &bytes);
    KIT_REFUSED(klp_machine_decode(klp_buf_view(&bytes), &again, &err), false, KELPIE_E_CORRUPT,
                "fit");
}

/* The example with one record replaced, doubled or left out. */
enum edit { EDIT_DROP, EDIT_DOUBLE, EDIT_REPLACE, EDIT_SWAP };
static void edited(struct klp_buf *out, uint16_t tag, enum edit edit, uint16_t flags,
                   const void *data, size_t size)
{
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(8192);
    struct klp_record record, next;
    size_t at = 0;
    kit_hex(&bytes, EXAMPLE_HEX);
    while (klp_record_next(klp_buf_view(&bytes), &at, &record, NULL) == 1) {
        if (record.tag != tag) {
            klp_record_append(out, record.tag, record.flags, record.data.data, record.data.size);
            continue;
        }
        if (edit == EDIT_SWAP && klp_record_next(klp_buf_view(&bytes), &at, &next, NULL) == 1)
            klp_record_append(out, next.tag, next.flags, next.data.data, next.data.size);
        if (edit == EDIT_DOUBLE || edit == EDIT_SWAP)
            klp_record_append(out, tag, record.flags, record.data.data, record.data.size);
        if (edit == EDIT_DOUBLE)
            klp_record_append(out, tag, record.flags, record.data.data, record.data.size);
        if (edit == EDIT_REPLACE)
            klp_record_append(out, tag, flags, data, size);
    }
}

static void assert_edit(uint16_t tag, enum edit edit, uint16_t flags, const void *data, size_t size,
                        enum kelpie_code code, const char *piece)
{
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(16384);
    struct klp_machine machine;
    edited(&bytes, tag, edit, flags, data, size);
    KIT_REFUSED(klp_machine_decode(klp_buf_view(&bytes), &machine, &err), false, code, piece);
}

static void test_format_machine__each_record_once_and_in_order(void **state)
{
    (void)state;
    for (uint16_t tag = 1; tag <= SINGLE_COUNT; tag++) {
        assert_edit(tag, EDIT_DROP, 0, NULL, 0, KELPIE_E_CORRUPT, "missing");
        assert_edit(tag, EDIT_DOUBLE, 0, NULL, 0, KELPIE_E_CORRUPT, "twice");
        assert_edit(tag, EDIT_SWAP, 0, NULL, 0, KELPIE_E_CORRUPT, "order");
        assert_edit(tag, EDIT_REPLACE, 0, "qemu", 4, KELPIE_E_CORRUPT, "flags");
        assert_edit(tag, EDIT_REPLACE, 3, "qemu", 4, KELPIE_E_CORRUPT, "flags");
    }
    assert_edit(SINGLE_COUNT + 1, EDIT_DOUBLE, 0, NULL, 0, KELPIE_E_CORRUPT, "device.id");
    struct klp_machine machine;
    KIT_REFUSED(klp_machine_decode((struct klp_bytes){0}, &machine, &err), false, KELPIE_E_CORRUPT,
                "missing");
}

static void test_format_machine__malformed_values(void **state)
{
    static const char two[8] = {2}, wide[8] = {0, 1}, huge[8] = {1, 0, 0, 0, 1};
    static const char long_text[64] = "0123456789abcdef0123456789abcdef";
    (void)state;
    assert_edit(1, EDIT_REPLACE, 1, two, 8, KELPIE_E_UNSUPPORTED, "version 2");
    assert_edit(1, EDIT_REPLACE, 1, two, 4, KELPIE_E_CORRUPT, "version");
    assert_edit(10, EDIT_REPLACE, 1, wide, 8, KELPIE_E_CORRUPT, "page_log2");
    assert_edit(8, EDIT_REPLACE, 1, huge, 8, KELPIE_E_CORRUPT, "vcpus");
    assert_edit(7, EDIT_REPLACE, 1, huge, 8, KELPIE_E_CORRUPT, "arch");
    assert_edit(2, EDIT_REPLACE, 1, long_text, 16, KELPIE_E_CORRUPT, "backend does not fit");
    assert_edit(2, EDIT_REPLACE, 1, "qe\0mu", 5, KELPIE_E_CORRUPT, "NUL");
    assert_edit(2, EDIT_REPLACE, 1, "qemu\0", 5, KELPIE_E_CORRUPT, "NUL");
    assert_edit(13, EDIT_REPLACE, 1, long_text, 31, KELPIE_E_CORRUPT, "digest");
    assert_edit(15, EDIT_REPLACE, 1, "", 0, KELPIE_E_CORRUPT, "cut off");
    assert_edit(15, EDIT_REPLACE, 1, "\3\0vs0\1\0k\1", 9, KELPIE_E_CORRUPT, "cut off");
    assert_edit(15, EDIT_REPLACE, 1, "\3\0vs0\1\0k\2\0a", 11, KELPIE_E_CORRUPT, "cut off");
    assert_edit(15, EDIT_REPLACE, 1, "\3\0vs0\1\0k\0\0x", 11, KELPIE_E_CORRUPT, "nobody asked");
    assert_edit(15, EDIT_REPLACE, 1, "\40\0aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\1\0k\0\0", 39,
                KELPIE_E_CORRUPT, "device.id does not fit");
}

static void test_format_machine__too_many_devices(void **state)
{
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(16384);
    struct klp_machine machine;
    (void)state;
    kit_hex(&bytes, EXAMPLE_HEX);
    for (unsigned i = 0; i < KLP_MACHINE_DEVICES_MAX; i++) {
        char device[8] = {1, 0, (char)('a' + i), 1, 0, 'k', 0, 0};
        klp_record_append(&bytes, 15, KLP_RECORD_CRITICAL, device, sizeof(device));
    }
    KIT_REFUSED(klp_machine_decode(klp_buf_view(&bytes), &machine, &err), false, KELPIE_E_CORRUPT,
                "too many");
}

static void test_format_machine__records_of_a_later_release(void **state)
{
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(16384);
    struct klp_machine machine, plain = example();
    (void)state;
    kit_hex(&bytes, EXAMPLE_HEX);
    klp_record_append(&bytes, 500, 0, "skipped", 7);
    klp_record_append(&bytes, 500, 2, "skipped too", 11);
    assert_true(klp_machine_decode(klp_buf_view(&bytes), &machine, NULL));
    assert_memory_equal(&machine, &plain, sizeof(plain));
    klp_record_append(&bytes, 499, 0, "", 0);
    KIT_REFUSED(klp_machine_decode(klp_buf_view(&bytes), &machine, &err), false, KELPIE_E_CORRUPT,
                "order");
    bytes.size -= 8;
    klp_record_append(&bytes, 501, KLP_RECORD_CRITICAL, "", 0);
    KIT_REFUSED(klp_machine_decode(klp_buf_view(&bytes), &machine, &err), false,
                KELPIE_E_UNSUPPORTED, "501");
}

/* The last record's tag says nothing about those that should have come before it. */
static void test_format_machine__later_records_hide_no_missing_ones(void **state)
{
    (void)state;
    for (size_t cut = 0; cut < SINGLE_COUNT; cut++) {
        struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(16384);
        struct klp_buf whole KLP_AUTO(buf) = KLP_BUF_INIT(16384);
        struct klp_machine machine;
        struct klp_record record;
        size_t at = 0;
        kit_hex(&whole, EXAMPLE_HEX);
        for (size_t i = 0; i < cut; i++)
            assert_int_equal(klp_record_next(klp_buf_view(&whole), &at, &record, NULL), 1);
        klp_buf_append(&bytes, whole.data, at);
        klp_record_append(&bytes, 500, 0, "later", 5);
        KIT_REFUSED(klp_machine_decode(klp_buf_view(&bytes), &machine, &err), false,
                    KELPIE_E_CORRUPT, "missing");
    }
}

static void test_format_machine__every_cut_is_refused(void **state)
{
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(16384);
    struct klp_machine machine;
    size_t devices_at;
    (void)state;
    kit_hex(&bytes, EXAMPLE_HEX);
    devices_at = bytes.size - 40;
    for (size_t size = 0; size < bytes.size; size++) {
        uint8_t *exact = kit_copy(bytes.data, size);
        bool whole = klp_machine_decode((struct klp_bytes){exact, size}, &machine, NULL);
        assert_int_equal(whole, size == devices_at); /* a machine without devices */
        free(exact);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_format_machine__architectures),
        cmocka_unit_test(test_format_machine__worked_example),
        cmocka_unit_test(test_format_machine__fullest),
        cmocka_unit_test(test_format_machine__values_out_of_range),
        cmocka_unit_test(test_format_machine__letters_that_would_be_options),
        cmocka_unit_test(test_format_machine__a_text_without_its_end_stays_inside_its_field),
        cmocka_unit_test(test_format_machine__each_record_once_and_in_order),
        cmocka_unit_test(test_format_machine__malformed_values),
        cmocka_unit_test(test_format_machine__too_many_devices),
        cmocka_unit_test(test_format_machine__records_of_a_later_release),
        cmocka_unit_test(test_format_machine__later_records_hide_no_missing_ones),
        cmocka_unit_test(test_format_machine__every_cut_is_refused),
    };
    return cmocka_run_group_tests_name("format_machine", tests, NULL, NULL);
}
