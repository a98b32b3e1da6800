/* SPDX-License-Identifier: Apache-2.0 */
/* Which 4 KiB of a guest's memory were ever touched the kernel knows, so that nothing reads all of
 * it. What one guest leaves the next one of that size gets, zeroed where it was touched: to make a
 * mapping and to fault its pages in costs more than a run has time for. */
#include "ram.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "sim.h"

#define HOST_PAGE 4096u
#define SPARES_MAX 16

static struct sim_ram spares[SPARES_MAX];
static size_t spare_count;

/* Calls for all host pages that were ever touched. */
static bool pages_each(const struct sim_ram *ram,
                       bool (*each)(const struct sim_ram *ram, uint64_t offset, void *arg),
                       void *arg)
{
    off_t at = lseek(ram->fd, 0, SEEK_DATA);
    while (at >= 0) {
        off_t end = lseek(ram->fd, at, SEEK_HOLE);
        for (; at < end; at += HOST_PAGE)
            KLP_CHECK(each(ram, (uint64_t)at, arg));
        at = lseek(ram->fd, end, SEEK_DATA);
    }
    return true;
}

/* ---- making and dropping */

void sim_ram_make(struct sim_ram *ram, uint64_t size)
{
    for (size_t i = 0; i < spare_count; i++) {
        if (spares[i].size != size)
            continue;
        *ram = spares[i];
        spares[i] = spares[--spare_count];
        return;
    }
    *ram = (struct sim_ram){.size = size, .fd = memfd_create("kelpie-dst-guest", MFD_CLOEXEC)};
    KLP_ASSERT(ram->fd >= 0 && ftruncate(ram->fd, (off_t)size) == 0);
    ram->bytes = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, ram->fd, 0);
    KLP_ASSERT(ram->bytes != MAP_FAILED);
}

static bool page_clear(const struct sim_ram *ram, uint64_t offset, void *arg)
{
    (void)arg;
    memset(ram->bytes + offset, 0, HOST_PAGE);
    return true;
}

void sim_ram_drop(struct sim_ram *ram)
{
    if (ram->bytes == NULL)
        return;
    if (spare_count < SPARES_MAX && ram->size <= KLP_MIB) {
        KLP_IGNORE(pages_each(ram, page_clear, NULL));
        spares[spare_count++] = *ram;
    } else {
        munmap(ram->bytes, ram->size);
        close(ram->fd);
    }
    *ram = (struct sim_ram){.fd = -1};
}

/* ---- what is in it */

void sim_ram_lay(struct sim_ram *ram, const struct sim_memory *layer)
{
    uint64_t offset = 0, size = 0;
    while (sim_memory_next(layer, offset + size, &offset, &size))
        sim_memory_copy_out(layer, offset, ram->bytes + offset, (size_t)size);
}

static bool page_digest(const struct sim_ram *ram, uint64_t offset, void *arg)
{
    static const uint64_t zeros[SIM_PAGE_SIZE / 8];
    uint64_t *digest = arg, words[SIM_PAGE_SIZE / 8];
    for (uint64_t at = offset; at < offset + HOST_PAGE; at += SIM_PAGE_SIZE) {
        if (memcmp(ram->bytes + at, zeros, SIM_PAGE_SIZE) == 0)
            continue;
        memcpy(words, ram->bytes + at, SIM_PAGE_SIZE);
        for (size_t i = 0; i < KLP_COUNT(words); i += 2)
            *digest = sim_mix(*digest ^ at, words[i], words[i + 1]);
    }
    return true;
}

uint64_t sim_ram_digest(const struct sim_ram *ram)
{
    uint64_t digest = ram->size;
    KLP_IGNORE(pages_each(ram, page_digest, &digest));
    return digest;
}

struct capture { /* where captured pages go */
    struct klp_env *env;
    const struct sim_memory *base;
    struct klp_handle dirty;
    struct kelpie_error **err;
};

/* One host page: the small pages in it that are not as they were in the base. */
static bool page_capture(const struct sim_ram *ram, uint64_t offset, void *arg)
{
    const struct capture *capture = arg;
    uint8_t before[HOST_PAGE] = {0};
    if (capture->base != NULL)
        sim_memory_copy_out(capture->base, offset, before, HOST_PAGE);
    if (memcmp(ram->bytes + offset, before, HOST_PAGE) == 0)
        return true;
    for (uint32_t at = 0; at < HOST_PAGE; at += SIM_PAGE_SIZE) {
        const uint8_t *page = ram->bytes + offset + at;
        if (memcmp(page, before + at, SIM_PAGE_SIZE) == 0)
            continue;
        sim_fold(offset + at);
        sim_fold_bytes(page, SIM_PAGE_SIZE);
        KLP_CHECK(klp_memory_write(capture->env, capture->dirty, offset + at, page, SIM_PAGE_SIZE,
                                   capture->err));
    }
    return true;
}

bool sim_ram_capture(struct klp_env *env, const struct sim_ram *ram, const struct sim_memory *base,
                     struct klp_handle dirty, struct kelpie_error **err)
{
    struct capture capture = {env, base, dirty, err};
    return pages_each(ram, page_capture, &capture) && klp_memory_seal(env, dirty, err);
}
