/* SPDX-License-Identifier: Apache-2.0 */
/* ELF reading. Numbers: ELF-64 Object File Format 1.5; the PVH note: Xen's elfnote.h, which Linux's
 * arch/x86/platform/pvh/head.S emits and QEMU looks for. */
#include "image/elf.h"

#include <string.h>

enum {
    FILE_HEADER_SIZE = 64,
    PROGRAM_HEADER_SIZE = 56,
    DYNAMIC_SIZE = 16,
    PROGRAM_HEADERS_MAX = 128,
    DYNAMICS_MAX = 4096,
    MACHINE_X86_64 = 62,
    MACHINE_AARCH64 = 183,
    PT_LOAD = 1,
    PT_DYNAMIC = 2,
    PT_INTERP = 3,
    PT_NOTE = 4,
    DT_NULL = 0,
    DT_NEEDED = 1,
    DT_STRTAB = 5,
    NOTE_PHYS32_ENTRY = 18,
};

static const uint8_t ident[] = {0x7f, 'E', 'L', 'F', 2 /* 64 bit */, 1 /* little-endian */, 1};

struct segment {
    uint32_t type;
    uint64_t offset, address, size; /* size: in the file */
};

bool klp_elf_is(struct klp_bytes bytes)
{
    return bytes.size >= 4 && memcmp(bytes.data, ident, 4) == 0;
}

static uint64_t number_at(struct klp_bytes bytes, uint64_t at, unsigned size)
{
    uint64_t value = 0;
    for (unsigned i = size; i-- > 0;)
        value = value << 8 | bytes.data[at + i];
    return value;
}

static bool inside(struct klp_bytes bytes, uint64_t at, uint64_t size)
{
    return at <= bytes.size && size <= bytes.size - at;
}

/* The caller checked the index; a segment outside the file comes out empty. */
static struct segment segment_read(const struct klp_elf *elf, uint32_t index)
{
    uint64_t at = elf->headers_at + (uint64_t)index * PROGRAM_HEADER_SIZE;
    struct segment segment = {
        .type = (uint32_t)number_at(elf->bytes, at, 4),
        .offset = number_at(elf->bytes, at + 8, 8),
        .address = number_at(elf->bytes, at + 16, 8),
        .size = number_at(elf->bytes, at + 32, 8),
    };
    if (!inside(elf->bytes, segment.offset, segment.size))
        segment.size = 0;
    return segment;
}

/* A NUL-terminated text inside the file, or NULL. */
static const char *text_at(struct klp_bytes bytes, uint64_t at)
{
    if (at >= bytes.size || memchr(bytes.data + at, 0, bytes.size - at) == NULL)
        return NULL;
    return (const char *)bytes.data + at;
}

static bool offset_of(const struct klp_elf *elf, uint64_t address, uint64_t *out)
{
    for (uint32_t i = 0; i < elf->header_count; i++) {
        struct segment load = segment_read(elf, i);
        if (load.type == PT_LOAD && address >= load.address && address - load.address < load.size) {
            *out = load.offset + (address - load.address);
            return true;
        }
    }
    return false;
}

static bool dynamic_read(struct klp_elf *elf, struct segment segment)
{
    uint64_t strings_at = 0, count = segment.size / DYNAMIC_SIZE;
    bool has_strings = false;
    if (count > DYNAMICS_MAX)
        return false;
    for (uint64_t i = 0; i < count && !has_strings; i++)
        if (number_at(elf->bytes, segment.offset + i * DYNAMIC_SIZE, 8) == DT_STRTAB)
            has_strings = offset_of(
                elf, number_at(elf->bytes, segment.offset + i * DYNAMIC_SIZE + 8, 8), &strings_at);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t at = segment.offset + i * DYNAMIC_SIZE;
        uint64_t tag = number_at(elf->bytes, at, 8), value = number_at(elf->bytes, at + 8, 8);
        if (tag == DT_NULL)
            return true;
        if (tag != DT_NEEDED)
            continue;
        const char *name = NULL;
        if (has_strings && value < elf->bytes.size)
            name = text_at(elf->bytes, strings_at + value);
        if (name == NULL || name[0] == '\0' || elf->needed_count == KLP_ELF_NEEDED_MAX)
            return false;
        elf->needed[elf->needed_count++] = name;
    }
    return true;
}

static bool notes_have_pvh(struct klp_bytes bytes, struct segment segment)
{
    uint64_t at = segment.offset, end = segment.offset + segment.size;
    while (end - at >= 12) {
        uint64_t name_size = number_at(bytes, at, 4), size = number_at(bytes, at + 4, 4);
        uint64_t type = number_at(bytes, at + 8, 4);
        uint64_t whole = 12 + ((name_size + 3) & ~UINT64_C(3)) + ((size + 3) & ~UINT64_C(3));
        if (whole > end - at)
            return false;
        if (type == NOTE_PHYS32_ENTRY && name_size == 4 &&
            memcmp(bytes.data + at + 12, "Xen", 4) == 0)
            return true;
        at += whole;
    }
    return false;
}

static bool segments_read(struct klp_elf *elf)
{
    for (uint32_t i = 0; i < elf->header_count; i++) {
        struct segment segment = segment_read(elf, i);
        if (segment.type == PT_NOTE && notes_have_pvh(elf->bytes, segment))
            elf->has_pvh = true;
        if (segment.type == PT_INTERP) {
            elf->interpreter = segment.size > 0 ? text_at(elf->bytes, segment.offset) : NULL;
            if (elf->interpreter == NULL)
                return false;
        }
        if (segment.type == PT_DYNAMIC && !dynamic_read(elf, segment))
            return false;
    }
    return true;
}

static enum klp_arch arch_of(uint64_t machine)
{
    switch (machine) {
    case MACHINE_X86_64:
        return KLP_ARCH_X86_64;
    case MACHINE_AARCH64:
        return KLP_ARCH_AARCH64;
    default:
        return KLP_ARCH_NONE;
    }
}

bool klp_elf_parse(struct klp_bytes bytes, const char *what, struct klp_elf *out,
                   struct kelpie_error **err)
{
    struct klp_elf elf = {.bytes = bytes};
    if (bytes.size < FILE_HEADER_SIZE || memcmp(bytes.data, ident, sizeof(ident)) != 0)
        return klp_refuse(err, KELPIE_E_CORRUPT, "cannot use '%s': no 64-bit ELF file", what);
    elf.arch = arch_of(number_at(bytes, 18, 2));
    elf.headers_at = number_at(bytes, 32, 8);
    elf.header_count = (uint32_t)number_at(bytes, 56, 2);
    bool good = elf.header_count <= PROGRAM_HEADERS_MAX &&
                (elf.header_count == 0 || number_at(bytes, 54, 2) == PROGRAM_HEADER_SIZE) &&
                inside(bytes, elf.headers_at, (uint64_t)elf.header_count * PROGRAM_HEADER_SIZE);
    if (!good || !segments_read(&elf))
        return klp_refuse(err, KELPIE_E_CORRUPT, "cannot use '%s': damaged ELF file", what);
    *out = elf;
    return true;
}
