/* SPDX-License-Identifier: Apache-2.0 */
/* What the unit tests of src/image/ share: small packages, programs and kernels, made here. */
#ifndef TESTS_UNIT_IMAGE_KIT_H
#define TESTS_UNIT_IMAGE_KIT_H

#include "format_kit.h"

#include <fcntl.h>
#include <lz4.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "env/posix/posix.h"
#include "format/tar.h"
#include "image/tree.h"

#define KIT_SIZE_MAX (32u << 20)

static inline struct klp_env *kit_env(void)
{
    struct klp_env_posix_options options = {.program = "test", .level = KLP_LOG_ERROR};
    struct klp_env *env = NULL;
    assert_true(klp_env_posix_create(&options, &env, NULL));
    return env;
}

/* A file without a name that holds `bytes`. */
static inline int kit_file(struct klp_bytes bytes)
{
    int fd = memfd_create("test", MFD_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, bytes.data, bytes.size), (ssize_t)bytes.size);
    return fd;
}

static inline void kit_u(uint8_t *at, uint64_t value, unsigned size)
{
    for (unsigned i = 0; i < size; i++)
        at[i] = (uint8_t)(value >> (8 * i));
}

/* ---- tar, ar, deb */

static inline void kit_tar_add(struct klp_buf *tar, enum klp_tar_kind kind, const char *path,
                               const char *target, struct klp_bytes content)
{
    struct klp_tar_entry *entry = calloc(1, sizeof(*entry));
    assert_non_null(entry);
    snprintf(entry->path, sizeof(entry->path), "%s", path);
    snprintf(entry->target, sizeof(entry->target), "%s", target);
    entry->kind = kind;
    entry->mode = 0755;
    entry->size = content.size;
    assert_true(klp_tar_header_append(tar, entry, NULL));
    klp_buf_append(tar, content.data, content.size);
    for (size_t i = klp_tar_padding(content.size); i > 0; i--)
        klp_buf_append_u8(tar, 0);
    free(entry);
}

static inline void kit_tar_file(struct klp_buf *tar, const char *path, struct klp_bytes content)
{
    kit_tar_add(tar, KLP_TAR_FILE, path, "", content);
}

static inline struct klp_bytes kit_text(const char *text)
{
    return (struct klp_bytes){(const uint8_t *)text, strlen(text)};
}

/* `size` is what the header says. */
static inline void kit_ar_member(struct klp_buf *out, const char *name, struct klp_bytes content,
                                 size_t size)
{
    char header[128];
    snprintf(header, sizeof(header), "%-16s%-12d%-6d%-6d%-8s%-10zu`\n", name, 0, 0, 0, "100644",
             size);
    klp_buf_append(out, header, 60);
    klp_buf_append(out, content.data, content.size);
    if (content.size % 2 == 1)
        klp_buf_append_text(out, "\n");
}

/* A package as dpkg-deb reads it, its files not compressed. `control` is the text of the file
 * control. */
static inline void kit_deb(struct klp_buf *out, const char *control, struct klp_bytes data_tar)
{
    struct klp_buf inner KLP_AUTO(buf) = KLP_BUF_INIT(1 << 20);
    kit_tar_file(&inner, "control", kit_text(control));
    klp_tar_end_append(&inner);
    klp_buf_append_text(out, "!<arch>\n");
    kit_ar_member(out, "debian-binary", kit_text("2.0\n"), 4);
    kit_ar_member(out, "control.tar", klp_buf_view(&inner), inner.size);
    kit_ar_member(out, "data.tar", data_tar, data_tar.size);
    assert_true(klp_buf_check(out, "package", NULL));
}

/* ---- ELF: one segment loaded at 0x400000; NULL and "" leave a thing out */

enum { KIT_X86_64 = 62, KIT_AARCH64 = 183, KIT_ELF_DYNAMIC_AT = 1024, KIT_ELF_SIZE = 2048 };

static inline void kit_segment(uint8_t *elf, unsigned type, uint64_t at, uint64_t size)
{
    unsigned count = elf[56]++;
    uint8_t *header = elf + 64 + 56 * count;
    kit_u(header, type, 4);
    kit_u(header + 8, at, 8);
    kit_u(header + 16, 0x400000 + at, 8);
    kit_u(header + 32, size, 8);
}

/* `needed`: names, each ended by a space. */
static inline void kit_elf(struct klp_buf *out, unsigned machine, const char *interpreter,
                           const char *needed, bool pvh)
{
    uint8_t elf[KIT_ELF_SIZE] = {0x7f, 'E', 'L', 'F', 2, 1, 1};
    uint8_t *dynamic = elf + KIT_ELF_DYNAMIC_AT;
    size_t string = 1;
    kit_u(elf + 16, 2, 2);
    kit_u(elf + 18, machine, 2);
    kit_u(elf + 32, 64, 8);
    kit_u(elf + 54, 56, 2);
    kit_segment(elf, 1, 0, sizeof(elf));
    if (interpreter != NULL) {
        memcpy(elf + 512, interpreter, strlen(interpreter));
        kit_segment(elf, 3, 512, strlen(interpreter) + 1);
    }
    if (needed[0] != '\0') {
        kit_u(dynamic, 5, 8);
        kit_u(dynamic + 8, 0x400000 + 640, 8);
        dynamic += 16;
        for (size_t size; (size = strcspn(needed, " ")) > 0; needed += size + 1) {
            memcpy(elf + 640 + string, needed, size);
            kit_u(dynamic, 1, 8);
            kit_u(dynamic + 8, string, 8);
            dynamic += 16;
            string += size + 1;
        }
        kit_segment(elf, 2, KIT_ELF_DYNAMIC_AT, 16 + (size_t)(dynamic - elf) - KIT_ELF_DYNAMIC_AT);
    }
    if (pvh) {
        kit_u(elf + 1536, 4, 4);
        kit_u(elf + 1540, 8, 4);
        kit_u(elf + 1544, 18, 4);
        memcpy(elf + 1548, "Xen", 4);
        kit_segment(elf, 4, 1536, 24);
    }
    klp_buf_append(out, elf, sizeof(elf));
}

/* ---- bzImage */

enum { KIT_SETUP_SIZE = 1024, KIT_PAYLOAD_AT = 16 };

/* Payload of two LZ4 blocks and the size behind them; `says` is that size. */
static inline void kit_bzimage(struct klp_buf *out, struct klp_bytes vmlinux, uint32_t says)
{
    uint8_t setup[KIT_SETUP_SIZE + KIT_PAYLOAD_AT] = {0};
    struct klp_buf payload KLP_AUTO(buf) = KLP_BUF_INIT(KIT_SIZE_MAX);
    klp_buf_append_u32(&payload, 0x184c2102);
    for (size_t at = 0, size; at < vmlinux.size; at += size) {
        size = vmlinux.size - at < 8u << 20 ? vmlinux.size - at : 8u << 20;
        if (size == vmlinux.size)
            size = vmlinux.size / 2 + 1;
        int bound = LZ4_compressBound((int)size);
        uint8_t *room = malloc((size_t)bound);
        assert_non_null(room);
        int packed =
            LZ4_compress_default((const char *)vmlinux.data + at, (char *)room, (int)size, bound);
        assert_true(packed > 0);
        klp_buf_append_u32(&payload, (uint32_t)packed);
        klp_buf_append(&payload, room, (size_t)packed);
        free(room);
    }
    klp_buf_append_u32(&payload, says);
    setup[0x1f1] = 1; /* one sector after the first */
    memcpy(setup + 0x202, "HdrS", 4);
    kit_u(setup + 0x206, 0x20f, 2);
    kit_u(setup + 0x248, KIT_PAYLOAD_AT, 4);
    kit_u(setup + 0x24c, payload.size, 4);
    klp_buf_append(out, setup, sizeof(setup));
    klp_buf_append(out, payload.data, payload.size);
    assert_true(klp_buf_check(out, "bzImage", NULL));
}

/* ---- sinks */

static inline bool kit_sink_buf(void *arg, const void *data, size_t size, struct kelpie_error **err)
{
    klp_buf_append(arg, data, size);
    return klp_buf_check(arg, "sink", err);
}

static inline bool kit_sink_full(void *arg, const void *data, size_t size,
                                 struct kelpie_error **err)
{
    size_t *left = arg;
    (void)data;
    if (size > *left)
        return klp_refuse(err, KELPIE_E_NO_SPACE, "no space left");
    *left -= size;
    return true;
}

#endif
