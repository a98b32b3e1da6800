/* SPDX-License-Identifier: Apache-2.0 */
/* Architectures, and the machine description as records (docs/formats/objects.md). Its texts end up
 * in a hypervisor's arguments, so each is held to the letters it may have. Whether the machine can
 * run here is teleport's question. */
#include "format/machine.h"

#include <string.h>

#include "format/bytes.h"
#include "format/records.h"

#define MACHINE_BYTES_MAX (64 * KLP_KIB) /* encoded */

/* One tag a field, in this order; each is there exactly once, but DEVICE. All are critical. */
enum machine_tag {
    TAG_VERSION = 1,
    TAG_BACKEND,
    TAG_BACKEND_VERSION,
    TAG_ACCELERATOR,
    TAG_TYPE,
    TAG_CPU,
    TAG_ARCH,
    TAG_VCPUS,
    TAG_MEMORY,
    TAG_PAGE_LOG2,
    TAG_TSC_KHZ,
    TAG_CMDLINE,
    TAG_KERNEL,
    TAG_INITRAMFS,
    TAG_DEVICE,
    TAG_COUNT
};

enum field_kind { FIELD_NUMBER, FIELD_DIGEST, FIELD_WORD, FIELD_TEXT, FIELD_LINE, FIELD_ARGS };

struct machine_field {
    uint16_t tag;
    uint8_t kind;
    char name[18];       /* no pointer: the tables stay in read-only data, also with -fPIC */
    size_t offset, size; /* of the member; a text's with its NUL */
};

#define MACHINE_FIELD(tag, kind, member)                                                           \
    {                                                                                              \
        tag, kind, #member, offsetof(struct klp_machine, member),                                  \
            sizeof(((struct klp_machine *)0)->member)                                              \
    }
static const struct machine_field machine_fields[] = {
    MACHINE_FIELD(TAG_VERSION, FIELD_NUMBER, version),
    MACHINE_FIELD(TAG_BACKEND, FIELD_WORD, backend),
    MACHINE_FIELD(TAG_BACKEND_VERSION, FIELD_TEXT, backend_version),
    MACHINE_FIELD(TAG_ACCELERATOR, FIELD_WORD, accelerator),
    MACHINE_FIELD(TAG_TYPE, FIELD_WORD, type),
    MACHINE_FIELD(TAG_CPU, FIELD_TEXT, cpu),
    MACHINE_FIELD(TAG_ARCH, FIELD_NUMBER, arch),
    MACHINE_FIELD(TAG_VCPUS, FIELD_NUMBER, vcpus),
    MACHINE_FIELD(TAG_MEMORY, FIELD_NUMBER, memory_bytes),
    MACHINE_FIELD(TAG_PAGE_LOG2, FIELD_NUMBER, page_log2),
    MACHINE_FIELD(TAG_TSC_KHZ, FIELD_NUMBER, tsc_khz),
    MACHINE_FIELD(TAG_CMDLINE, FIELD_LINE, cmdline),
    MACHINE_FIELD(TAG_KERNEL, FIELD_DIGEST, kernel),
    MACHINE_FIELD(TAG_INITRAMFS, FIELD_DIGEST, initramfs),
};
_Static_assert(KLP_COUNT(machine_fields) == TAG_DEVICE - 1, "one row a single field, by tag");
_Static_assert(sizeof(enum klp_arch) == sizeof(uint32_t), "stored as a number of 4 bytes");

#define DEVICE_FIELD(kind, member)                                                                 \
    {                                                                                              \
        TAG_DEVICE, kind, "device." #member, offsetof(struct klp_device, member),                  \
            sizeof(((struct klp_device *)0)->member)                                               \
    }
static const struct machine_field device_fields[] = {
    DEVICE_FIELD(FIELD_WORD, id),
    DEVICE_FIELD(FIELD_WORD, kind),
    DEVICE_FIELD(FIELD_ARGS, args),
};

/* ---- architectures */

const char *klp_arch_name(enum klp_arch arch)
{
    switch (arch) {
    case KLP_ARCH_X86_64:
        return "x86_64";
    case KLP_ARCH_AARCH64:
        return "aarch64";
    case KLP_ARCH_NONE:
        break;
    }
    return "none";
}

enum klp_arch klp_arch_parse(const char *text)
{
    if (text == NULL)
        return KLP_ARCH_NONE;
    if (strcmp(text, "x86_64") == 0 || strcmp(text, "amd64") == 0)
        return KLP_ARCH_X86_64;
    if (strcmp(text, "aarch64") == 0 || strcmp(text, "arm64") == 0)
        return KLP_ARCH_AARCH64;
    return KLP_ARCH_NONE;
}

enum klp_arch klp_arch_host(void)
{
#if defined(__x86_64__)
    return KLP_ARCH_X86_64;
#elif defined(__aarch64__)
    return KLP_ARCH_AARCH64;
#else
    return KLP_ARCH_NONE; /* such a host can still keep and serve agents of others */
#endif
}

/* ---- what every description must fulfil */

struct check {
    enum kelpie_code code; /* INVALID before writing, CORRUPT after reading */
    struct kelpie_error **err;
};

static bool wrong(const struct check *check, const char *field, const char *why)
{
    return klp_refuse(check->err, check->code, "machine description: %s %s", field, why);
}

static bool is_alphanumeric(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

/* A comma begins a new option of a hypervisor's argument: only where options are meant. */
static bool is_allowed(enum field_kind kind, char c)
{
    if (is_alphanumeric(c) || c == '-' || c == '.' || c == '_')
        return true;
    if (kind == FIELD_ARGS)
        return c == '=' || c == ',' || c == ':' || c == '/';
    if (kind == FIELD_TEXT)
        return c >= ' ' && c <= '~' && c != ',';
    return kind == FIELD_LINE && c >= ' ' && c <= '~';
}

static size_t text_length(const char *text, size_t capacity)
{
    size_t size = 0;
    while (size < capacity && text[size] != '\0')
        size++;
    return size;
}

static bool text_check(const struct check *check, const struct machine_field *field,
                       const void *object)
{
    const char *text = (const char *)object + field->offset;
    size_t size = text_length(text, field->size);
    if (size == field->size)
        return wrong(check, field->name, "does not fit its field");
    for (size_t i = 0; i < size; i++) {
        if (!is_allowed((enum field_kind)field->kind, text[i]))
            return wrong(check, field->name, "has a character that is not allowed there");
    }
    return true;
}

static bool texts_check(const struct check *check, const struct machine_field *fields, size_t count,
                        const void *object)
{
    for (size_t i = 0; i < count; i++) {
        if (fields[i].kind >= FIELD_WORD)
            KLP_CHECK(text_check(check, &fields[i], object));
    }
    return true;
}

static bool devices_check(const struct check *check, const struct klp_machine *machine)
{
    if (machine->device_count > KLP_MACHINE_DEVICES_MAX)
        return wrong(check, "devices", "are too many");
    for (uint32_t i = 0; i < machine->device_count; i++) {
        const struct klp_device *device = &machine->devices[i];
        KLP_CHECK(texts_check(check, device_fields, KLP_COUNT(device_fields), device));
        if (device->id[0] == '\0' || device->kind[0] == '\0')
            return wrong(check, "device", "has no id or no kind");
        for (uint32_t other = 0; other < i; other++) {
            if (strcmp(machine->devices[other].id, device->id) == 0)
                return wrong(check, "device.id", "is given twice");
        }
    }
    return true;
}

static bool machine_check(const struct check *check, const struct klp_machine *machine)
{
    if (machine->version != KLP_MACHINE_VERSION)
        return wrong(check, "version", "is unknown");
    KLP_CHECK(texts_check(check, machine_fields, KLP_COUNT(machine_fields), machine));
    if (machine->backend[0] == '\0')
        return wrong(check, "backend", "is missing");
    if (machine->arch != KLP_ARCH_X86_64 && machine->arch != KLP_ARCH_AARCH64)
        return wrong(check, "arch", "is unknown");
    if (machine->vcpus == 0 || machine->vcpus > KLP_VCPUS_MAX)
        return wrong(check, "vcpus", "is out of range");
    if (machine->page_log2 < KLP_PAGE_LOG2_MIN || machine->page_log2 > KLP_PAGE_LOG2_MAX)
        return wrong(check, "page_log2", "is out of range");
    uint64_t page_mask = ((uint64_t)1 << machine->page_log2) - 1;
    if (machine->memory_bytes == 0 || (machine->memory_bytes & page_mask) != 0 ||
        machine->memory_bytes > (uint64_t)KLP_MEMORY_MIB_MAX * KLP_MIB)
        return wrong(check, "memory_bytes", "is zero, over the limit or not in whole pages");
    return devices_check(check, machine);
}

bool klp_machine_check(const struct klp_machine *machine, struct kelpie_error **err)
{
    const struct check check = {KELPIE_E_INVALID, err};
    return machine_check(&check, machine);
}

/* ---- writing */

static uint64_t number_get(const struct machine_field *field, const void *object)
{
    const uint8_t *at = (const uint8_t *)object + field->offset;
    uint64_t wide;
    uint32_t narrow;
    if (field->size == sizeof(wide)) {
        memcpy(&wide, at, sizeof(wide));
        return wide;
    }
    if (field->size == 1)
        return *at;
    memcpy(&narrow, at, sizeof(narrow));
    return narrow;
}

static void field_encode(const struct machine_field *field, const struct klp_machine *machine,
                         struct klp_buf *out)
{
    const void *at = (const uint8_t *)machine + field->offset;
    uint8_t number[8];
    switch ((enum field_kind)field->kind) {
    case FIELD_NUMBER:
        klp_store_le(number, number_get(field, machine), sizeof(number));
        klp_record_append(out, field->tag, KLP_RECORD_CRITICAL, number, sizeof(number));
        return;
    case FIELD_DIGEST:
        klp_record_append(out, field->tag, KLP_RECORD_CRITICAL, at, field->size);
        return;
    case FIELD_WORD:
    case FIELD_TEXT:
    case FIELD_LINE:
    case FIELD_ARGS:
        klp_record_append(out, field->tag, KLP_RECORD_CRITICAL, at, text_length(at, field->size));
    }
}

static void device_encode(const struct klp_device *device, struct klp_buf *out)
{
    uint8_t data[sizeof(*device) + 2 * KLP_COUNT(device_fields)];
    size_t size = 0;
    for (size_t i = 0; i < KLP_COUNT(device_fields); i++) {
        const char *text = (const char *)device + device_fields[i].offset;
        size_t length = text_length(text, device_fields[i].size);
        klp_store_le(data + size, length, 2);
        memcpy(data + size + 2, text, length);
        size += 2 + length;
    }
    klp_record_append(out, TAG_DEVICE, KLP_RECORD_CRITICAL, data, size);
}

void klp_machine_encode(const struct klp_machine *machine, struct klp_buf *out)
{
    for (size_t i = 0; i < KLP_COUNT(machine_fields); i++)
        field_encode(&machine_fields[i], machine, out);
    for (uint32_t i = 0; i < machine->device_count && i < KLP_MACHINE_DEVICES_MAX; i++)
        device_encode(&machine->devices[i], out);
}

/* ---- reading */

static bool number_decode(const struct check *check, const struct machine_field *field,
                          struct klp_bytes data, void *object)
{
    uint8_t *at = (uint8_t *)object + field->offset;
    struct klp_reader reader = {.data = data.data, .size = data.size};
    if (data.size != 8)
        return wrong(check, field->name, "is no number of 8 bytes");
    uint64_t wide = klp_read_u64(&reader);
    if (field->size < 8 && wide >> (8 * field->size) != 0)
        return wrong(check, field->name, "is out of range");
    uint32_t narrow = (uint32_t)wide;
    if (field->size == sizeof(wide))
        memcpy(at, &wide, sizeof(wide));
    else if (field->size == 1)
        *at = (uint8_t)wide;
    else
        memcpy(at, &narrow, sizeof(narrow));
    return true;
}

/* `object` was zeroed: the text is terminated. */
static bool text_decode(const struct check *check, const struct machine_field *field,
                        struct klp_bytes data, void *object)
{
    if (data.size >= field->size)
        return wrong(check, field->name, "does not fit its field");
    if (data.size != 0)
        memcpy((char *)object + field->offset, data.data, data.size);
    if (text_length((char *)object + field->offset, field->size) != data.size)
        return wrong(check, field->name, "holds a NUL");
    return true;
}

static bool field_decode(const struct check *check, const struct machine_field *field,
                         struct klp_bytes data, struct klp_machine *out)
{
    switch ((enum field_kind)field->kind) {
    case FIELD_NUMBER:
        return number_decode(check, field, data, out);
    case FIELD_DIGEST:
        if (data.size != field->size)
            return wrong(check, field->name, "is no digest");
        memcpy((uint8_t *)out + field->offset, data.data, field->size);
        return true;
    case FIELD_WORD:
    case FIELD_TEXT:
    case FIELD_LINE:
    case FIELD_ARGS:
        break;
    }
    return text_decode(check, field, data, out);
}

static bool device_decode(const struct check *check, struct klp_bytes data, struct klp_machine *out)
{
    struct klp_reader reader = {.data = data.data, .size = data.size};
    if (out->device_count == KLP_MACHINE_DEVICES_MAX)
        return wrong(check, "devices", "are too many");
    struct klp_device *device = &out->devices[out->device_count++];
    for (size_t i = 0; i < KLP_COUNT(device_fields); i++) {
        size_t size = klp_read_u16(&reader);
        const uint8_t *text = klp_read_bytes(&reader, size);
        if (reader.failed)
            return wrong(check, "device", "is cut off");
        KLP_CHECK(text_decode(check, &device_fields[i], (struct klp_bytes){text, size}, device));
    }
    return klp_read_left(&reader) == 0 || wrong(check, "device", "has bytes nobody asked for");
}

/* `tag`: of the record before. */
static bool record_decode(const struct check *check, const struct klp_record *record, uint16_t tag,
                          struct klp_machine *out)
{
    bool is_critical = (record->flags & KLP_RECORD_CRITICAL) != 0;
    if (record->tag >= TAG_COUNT) {
        if (is_critical)
            return klp_refuse(check->err, KELPIE_E_UNSUPPORTED,
                              "machine description: unknown record %u must not be ignored",
                              record->tag);
        /* Only behind all of ours: else the last tag would hide that some are missing. */
        return (tag >= TAG_INITRAMFS && record->tag >= tag) ||
               wrong(check, "a record", "is missing or out of order");
    }
    if (record->flags != KLP_RECORD_CRITICAL)
        return wrong(check, "a record", "has the wrong flags");
    bool is_next = record->tag == tag + 1 || (record->tag == TAG_DEVICE && tag == TAG_DEVICE);
    if (!is_next)
        return wrong(check, "a record", "is missing, given twice or out of order");
    if (record->tag == TAG_DEVICE)
        return device_decode(check, record->data, out);
    KLP_CHECK(field_decode(check, &machine_fields[record->tag - 1], record->data, out));
    if (record->tag == TAG_VERSION && out->version > KLP_MACHINE_VERSION)
        return klp_refuse(check->err, KELPIE_E_UNSUPPORTED,
                          "machine description of version %u: this program knows %d", out->version,
                          KLP_MACHINE_VERSION);
    return true;
}

bool klp_machine_decode(struct klp_bytes bytes, struct klp_machine *out, struct kelpie_error **err)
{
    const struct check check = {KELPIE_E_CORRUPT, err};
    struct klp_record record;
    uint16_t tag = 0;
    size_t at = 0;
    int got;
    memset(out, 0, sizeof(*out));
    while ((got = klp_record_next(bytes, &at, &record, err)) > 0) {
        KLP_CHECK(record_decode(&check, &record, tag, out));
        tag = record.tag;
    }
    if (got < 0)
        return klp_wrap_refusal(err, "cannot read a machine description");
    if (tag < TAG_INITRAMFS)
        return wrong(&check, "a record", "is missing");
    return machine_check(&check, out);
}

bool klp_machine_equal(const struct klp_machine *a, const struct klp_machine *b)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf left = KLP_BUF_INIT(MACHINE_BYTES_MAX);
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf right = KLP_BUF_INIT(MACHINE_BYTES_MAX);
    klp_machine_encode(a, &left);
    klp_machine_encode(b, &right);
    return left.size == right.size && left.size > 0 &&
           memcmp(left.data, right.data, left.size) == 0;
}
