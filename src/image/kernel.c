/* SPDX-License-Identifier: Apache-2.0 */
/* bzImage: Linux doc arch/x86/boot (setup header). Legacy LZ4 frames: lz4_Frame_format.md, "Legacy
 * Format". arm64 Image: Linux doc arch/arm64/booting. */
#include "image/kernel.h"

#include <lz4.h>
#include <string.h>

#include "image/elf.h"

enum {
    SETUP_SECTS_AT = 0x1f1, /* u8: sectors of real-mode code after the first */
    SETUP_MAGIC_AT = 0x202, /* "HdrS" */
    SETUP_VERSION_AT = 0x206,
    SETUP_PAYLOAD_AT = 0x248, /* u32 offset and u32 length, from the protected-mode code on */
    SETUP_END = 0x250,
    SECTOR = 512,
    PAYLOAD_PROTOCOL = 0x0208, /* the first with payload fields */
    IMAGE_MAGIC_AT = 56,
    IMAGE_HEADER_SIZE = 64,
};

#define LZ4_LEGACY_MAGIC 0x184c2102u
#define LZ4_BLOCK_MAX (8u * 1024u * 1024u) /* unpacked, by the format */

static uint32_t u32_at(struct klp_bytes bytes, size_t at)
{
    const uint8_t *byte = bytes.data + at;
    return byte[0] | (uint32_t)byte[1] << 8 | (uint32_t)byte[2] << 16 | (uint32_t)byte[3] << 24;
}

static bool damaged(struct kelpie_error **err, const char *why)
{
    return klp_refuse(err, KELPIE_E_CORRUPT, "cannot unpack the kernel: %s", why);
}

static bool payload_find(struct klp_bytes image, struct klp_bytes *out, struct kelpie_error **err)
{
    if (image.size < SETUP_END || memcmp(image.data + SETUP_MAGIC_AT, "HdrS", 4) != 0)
        return damaged(err, "no bzImage");
    uint32_t version = u32_at(image, SETUP_VERSION_AT) & 0xffff;
    uint32_t sectors = image.data[SETUP_SECTS_AT] == 0 ? 4 : image.data[SETUP_SECTS_AT];
    uint64_t at = (uint64_t)(sectors + 1) * SECTOR + u32_at(image, SETUP_PAYLOAD_AT);
    uint64_t size = u32_at(image, SETUP_PAYLOAD_AT + 4);
    if (version < PAYLOAD_PROTOCOL)
        return damaged(err, "too old a bzImage");
    if (at > image.size || size > image.size - at || size < 12)
        return damaged(err, "the bzImage is truncated");
    *out = (struct klp_bytes){image.data + at, (size_t)size};
    return true;
}

/* `packed` is the frames without the size behind them; `out` holds exactly `size` bytes. */
static bool frames_unpack(struct klp_bytes packed, uint8_t *out, size_t size,
                          struct kelpie_error **err)
{
    size_t done = 0, at = 0;
    while (at < packed.size) {
        if (packed.size - at < 4)
            return damaged(err, "its LZ4 data is truncated");
        uint32_t block = u32_at(packed, at);
        at += 4;
        if (block == LZ4_LEGACY_MAGIC)
            continue; /* another frame follows */
        if (block == 0 || block > LZ4_COMPRESSBOUND(LZ4_BLOCK_MAX) || block > packed.size - at)
            return damaged(err, "its LZ4 data is truncated");
        size_t room = size - done < LZ4_BLOCK_MAX ? size - done : LZ4_BLOCK_MAX;
        int got = LZ4_decompress_safe((const char *)packed.data + at, (char *)out + done,
                                      (int)block, (int)room);
        if (got < 0)
            return damaged(err, "its LZ4 data is damaged, or larger unpacked than it says");
        at += block;
        done += (size_t)got;
    }
    return done == size || damaged(err, "its LZ4 data is shorter unpacked than it says");
}

static bool entry_check(struct klp_bytes vmlinux, struct kelpie_error **err)
{
    struct klp_elf elf;
    KLP_CHECK(klp_elf_parse(vmlinux, "vmlinux", &elf, err));
    if (elf.arch != KLP_ARCH_X86_64)
        return damaged(err, "not for x86_64");
    if (!elf.has_pvh)
        return klp_refuse(err, KELPIE_E_UNSUPPORTED,
                          "cannot use the kernel: it was built without a PVH entry");
    return true;
}

static bool bzimage_unpack(struct klp_bytes image, struct klp_sink sink, struct kelpie_error **err)
{
    struct klp_bytes payload = image;
    KLP_CHECK(payload_find(image, &payload, err));
    if (u32_at(payload, 0) != LZ4_LEGACY_MAGIC)
        return klp_refuse(err, KELPIE_E_UNSUPPORTED,
                          "cannot unpack the kernel: it is not packed with LZ4");
    uint32_t size = u32_at(payload, payload.size - 4); /* the kernel's build appends it */
    if (size == 0 || size > KLP_KERNEL_SIZE_MAX)
        return damaged(err, "it says it is larger unpacked than allowed");
    KLP_AUTO(memory) uint8_t *out = klp_mem_try(size);
    if (out == NULL)
        return klp_refuse(err, KELPIE_E_NO_MEMORY, "cannot unpack the kernel: %u bytes", size);
    struct klp_bytes frames = {payload.data, payload.size - 4};
    KLP_CHECK(frames_unpack(frames, out, size, err));
    KLP_CHECK(entry_check((struct klp_bytes){out, size}, err));
    return sink.write(sink.arg, out, size, err);
}

static bool image_copy(struct klp_bytes image, struct klp_sink sink, struct kelpie_error **err)
{
    if (image.size >= 2 && image.data[0] == 0x1f && image.data[1] == 0x8b)
        return klp_refuse(err, KELPIE_E_UNSUPPORTED,
                          "cannot use the kernel: it is packed, and a plain Image is wanted");
    if (image.size < IMAGE_HEADER_SIZE || memcmp(image.data + IMAGE_MAGIC_AT, "ARM\x64", 4) != 0)
        return damaged(err, "no arm64 Image");
    if (image.size > KLP_KERNEL_SIZE_MAX)
        return damaged(err, "it is larger than allowed");
    return sink.write(sink.arg, image.data, image.size, err);
}

bool klp_kernel_unpack(struct klp_bytes vmlinuz, enum klp_arch arch, struct klp_sink sink,
                       struct kelpie_error **err)
{
    if (arch == KLP_ARCH_AARCH64)
        return image_copy(vmlinuz, sink, err);
    return bzimage_unpack(vmlinuz, sink, err);
}
