/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/private_pages/private_pages.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/fmt.h"
#include "base/limits.h"

#define PAGE 4096u
#define RUNS_MAX 512              /* of one scan */
#define COPY_MAX (8ull * KLP_MIB) /* bytes of one process_vm call */
#define IOV_MAX_USED 256
#define WINDOW (4ull * KLP_MIB) /* of the mapping, taken by one task at a time */
#define BLOCK 512u              /* of st_blocks */
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

/* ---- PAGEMAP_SCAN, Documentation/admin-guide/mm/pagemap.rst; Debian 12's headers are older than
 * it */
struct page_region {
    uint64_t start, end, categories;
};
struct pm_scan_arg {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define PAGEMAP_SCAN_CALL _IOWR('f', 16, struct pm_scan_arg)
#define PAGE_IS_FILE (1u << 2)
#define PAGE_IS_PRESENT (1u << 3)
#define PAGE_IS_SWAPPED (1u << 4)

/* Private = not of the file, and present or swapped. Runs of addresses. Returns the count, < 0 =
 * errno. */
static int scan_ioctl(int fd, uint64_t start, uint64_t end, struct page_region *runs,
                      uint64_t *next)
{
    struct pm_scan_arg arg = {.size = sizeof(arg),
                              .start = start,
                              .end = end,
                              .vec = (uint64_t)(uintptr_t)runs,
                              .vec_len = RUNS_MAX,
                              .category_inverted = PAGE_IS_FILE,
                              .category_mask = PAGE_IS_FILE,
                              .category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
                              .return_mask = PAGE_IS_PRESENT};
    int count = ioctl(fd, PAGEMAP_SCAN_CALL, &arg);
    *next = arg.walk_end;
    return count >= 0 ? count : -errno;
}

bool klp_pagemap_scan_works(void)
{
    struct page_region runs[RUNS_MAX];
    uint64_t next;
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    uint64_t here = (uint64_t)(uintptr_t)runs & ~(uint64_t)(PAGE - 1);
    int count = scan_ioctl(fd, here, here + PAGE, runs, &next);
    close(fd);
    return count == 1; /* our own stack is there and private */
}

bool klp_pagemap_entry_is_private(uint64_t entry)
{
    return (entry >> 62) != 0 && (entry >> 61 & 1) == 0;
}

/* The same from the table of entries. */
static int scan_table(int fd, uint64_t start, uint64_t end, struct page_region *runs,
                      uint64_t *next)
{
    uint64_t entries[2048];
    int count = 0;
    for (uint64_t at = start; at < end;) {
        size_t wanted = (size_t)((end - at) / PAGE);
        wanted = wanted < KLP_COUNT(entries) ? wanted : KLP_COUNT(entries);
        ssize_t got = pread(fd, entries, wanted * 8, (off_t)(at / PAGE * 8));
        if (got <= 0)
            return got < 0 ? -errno : -EIO;
        for (size_t i = 0; i < (size_t)got / 8; i++, at += PAGE) {
            bool is_private = klp_pagemap_entry_is_private(entries[i]);
            if (is_private && count > 0 && runs[count - 1].end == at) {
                runs[count - 1].end = at + PAGE;
            } else if (is_private && count == RUNS_MAX) {
                *next = at;
                return count;
            } else if (is_private) {
                runs[count++] = (struct page_region){at, at + PAGE, 0};
            }
        }
    }
    *next = end;
    return count;
}

struct pagemap { /* of the process that has the mapping */
    int fd;
    bool by_ioctl;
};

static kelpie_outcome pagemap_open(const struct klp_mapping *mapping, struct pagemap *out,
                                   struct kelpie_error **err)
{
    char path[64];
    klp_format(path, sizeof(path), "/proc/%d/pagemap", mapping->pid);
    out->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (out->fd < 0)
        return klp_posix_fail(err, errno, "cannot open %s", path);
    out->by_ioctl = !mapping->by_table && klp_pagemap_scan_works();
    return KLP_OK;
}

static kelpie_outcome pagemap_scan(const struct pagemap *pagemap, uint64_t start, uint64_t end,
                                   struct page_region *runs, int *out_count, uint64_t *next,
                                   struct kelpie_error **err)
{
    *next = end;
    *out_count = pagemap->by_ioctl ? scan_ioctl(pagemap->fd, start, end, runs, next)
                                   : scan_table(pagemap->fd, start, end, runs, next);
    if (*out_count < 0)
        return klp_posix_fail(err, -*out_count, "cannot see which pages the guest has written");
    return KLP_OK;
}

/* ---- the mapping */

bool klp_mapping_find(int pid, int memory_fd, uint64_t size, struct klp_mapping *out,
                      struct kelpie_error **err)
{
    char path[64], line[512];
    struct stat facts;
    if (fstat(memory_fd, &facts) != 0)
        return klp_posix_refuse(err, errno, "cannot look at a memory object");
    klp_format(path, sizeof(path), "/proc/%d/maps", pid);
    FILE *maps = fopen(path, "re");
    if (maps == NULL)
        return klp_posix_refuse(err, errno, "cannot read %s", path);
    uint64_t begin = 0, expected = 0;
    bool found = false;
    while (!found && fgets(line, sizeof(line), maps) != NULL) {
        unsigned long long start, end, offset, inode;
        unsigned major_number, minor_number;
        char rights[5];
        if (sscanf(line, "%llx-%llx %4s %llx %x:%x %llu", &start, &end, rights, &offset,
                   &major_number, &minor_number, &inode) != 7 ||
            rights[3] != 'p' || inode != facts.st_ino ||
            makedev(major_number, minor_number) != facts.st_dev)
            continue;
        if (offset == 0)
            begin = start;
        else if (start != expected || offset != start - begin)
            continue;
        expected = end;
        found = end - begin == size;
    }
    fclose(maps);
    if (!found)
        return klp_refuse(err, KELPIE_E_NOT_FOUND,
                          "process %d does not map the guest's memory in one stretch", pid);
    *out = (struct klp_mapping){.pid = pid, .address = begin, .size = size};
    return true;
}

/* ---- moving pages: iovecs of one process_vm call, then the next */

struct batch {
    int pid;
    bool reads; /* from there to here */
    struct iovec local[IOV_MAX_USED], remote[IOV_MAX_USED];
    size_t count;
    uint64_t bytes;
};

static kelpie_outcome batch_move(struct batch *batch, struct kelpie_error **err)
{
    size_t count = batch->count;
    uint64_t bytes = batch->bytes;
    batch->count = 0;
    batch->bytes = 0;
    if (count == 0)
        return KLP_OK;
    ssize_t moved =
        batch->reads ? process_vm_readv(batch->pid, batch->local, count, batch->remote, count, 0)
                     : process_vm_writev(batch->pid, batch->local, count, batch->remote, count, 0);
    if (moved == (ssize_t)bytes)
        return KLP_OK;
    return klp_posix_fail(err, moved < 0 ? errno : EFAULT, "cannot %s the guest's memory",
                          batch->reads ? "read" : "write");
}

static kelpie_outcome batch_add(const struct kelpie_op *op, struct batch *batch, void *local,
                                uint64_t remote, uint64_t size, struct kelpie_error **err)
{
    while (size > 0) {
        uint64_t part = size < COPY_MAX ? size : COPY_MAX;
        if (batch->count == IOV_MAX_USED || batch->bytes + part > COPY_MAX) {
            KLP_TRY(klp_op_check(op, "moving guest memory", err));
            KLP_TRY(batch_move(batch, err));
        }
        batch->local[batch->count] = (struct iovec){local, part};
        batch->remote[batch->count++] = (struct iovec){(void *)(uintptr_t)remote, part};
        batch->bytes += part;
        local = (char *)local + part;
        remote += part;
        size -= part;
    }
    return KLP_OK;
}

/* ---- room for a copy */

static bool room_open(struct klp_env *env, uint64_t size, struct klp_page_room *out,
                      struct kelpie_error **err)
{
    struct klp_handle memory;
    KLP_CHECK(klp_memory_create(env, "kelpie-dirty", size, &memory, err));
    char *image = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, klp_handle_fd(memory), 0);
    if (image == MAP_FAILED) {
        int error = errno;
        klp_handle_close(env, memory);
        return klp_posix_refuse(err, error, "cannot map %llu bytes", (unsigned long long)size);
    }
    *out = (struct klp_page_room){.image = image, .size = size, .memory = memory};
    return true;
}

void klp_page_room_drop(struct klp_env *env, struct klp_page_room *room)
{
    if (room->image == NULL)
        return;
    munmap(room->image, room->size);
    klp_handle_close(env, room->memory);
    *room = (struct klp_page_room){.image = NULL};
}

/* Ends early when the op does: what is there by then serves as well. */
static kelpie_outcome room_fill(const struct kelpie_op *op, const struct klp_mapping *mapping,
                                const struct pagemap *pagemap, char *image,
                                struct kelpie_error **err)
{
    struct page_region runs[RUNS_MAX] = {0};
    uint64_t at = mapping->address, end = mapping->address + mapping->size;
    while (at < end && kelpie_is_ok(klp_op_check(op, "making room", NULL))) {
        uint64_t next, stop = end - at < WINDOW ? end : at + WINDOW;
        int count;
        KLP_TRY(pagemap_scan(pagemap, at, stop, runs, &count, &next, err));
        for (int i = 0; i < count; i++)
            if (madvise(image + (runs[i].start - mapping->address), runs[i].end - runs[i].start,
                        MADV_POPULATE_WRITE) != 0)
                return klp_posix_fail(err, errno, "cannot make room for the guest's pages");
        if (next <= at)
            break;
        at = next;
    }
    return KLP_OK;
}

kelpie_outcome klp_page_room_make(const struct kelpie_op *op, const struct klp_mapping *mapping,
                                  struct klp_page_room *out, struct kelpie_error **err)
{
    struct pagemap pagemap;
    KLP_TRY(pagemap_open(mapping, &pagemap, err));
    kelpie_outcome outcome = {KELPIE_FAIL};
    if (room_open(op->env, mapping->size, out, err)) {
        outcome = room_fill(op, mapping, &pagemap, out->image, err);
        if (!kelpie_is_ok(outcome))
            klp_page_room_drop(op->env, out);
    }
    close(pagemap.fd);
    return outcome;
}

/* Every page copied is there; as many pages as were copied are there: then there are no others. */
static bool room_is_exact(const struct klp_page_room *room, uint64_t pages)
{
    struct stat facts;
    return fstat(klp_handle_fd(room->memory), &facts) == 0 &&
           (uint64_t)facts.st_blocks * BLOCK == pages * PAGE;
}

/* ---- copying out */

/* Two tasks, for a guest that stands still leaves its processor free. Each takes the next window of
 * the mapping, so that both end together however the pages lie. */
struct windows {
    const struct kelpie_op *op;
    uint64_t size, next; /* next: of both tasks, atomic */
    kelpie_outcome (*work)(void *arg, uint64_t at, uint64_t end, struct kelpie_error **err);
    void *arg;
    kelpie_outcome outcome; /* the helper's */
    struct kelpie_error *error;
};

static kelpie_outcome windows_do(struct windows *all, struct kelpie_error **err)
{
    for (;;) {
        uint64_t at = __atomic_fetch_add(&all->next, WINDOW, __ATOMIC_RELAXED);
        if (at >= all->size)
            return KLP_OK;
        KLP_TRY(klp_op_check(all->op, "moving guest memory", err));
        KLP_TRY(all->work(all->arg, at, at + WINDOW < all->size ? at + WINDOW : all->size, err));
    }
}

static void helper_run(void *arg)
{
    struct windows *all = arg;
    all->outcome = windows_do(all, &all->error);
}

static kelpie_outcome windows_run(struct windows *all, struct kelpie_error **err)
{
    struct klp_task *helper = NULL;
    if (!klp_task_spawn(all->op->env, "pages", helper_run, all, &helper, NULL))
        helper = NULL; /* then it takes longer */
    kelpie_outcome outcome = windows_do(all, err);
    if (helper != NULL)
        klp_task_join(helper);
    if (kelpie_is_ok(outcome) && helper != NULL && !kelpie_is_ok(all->outcome)) {
        klp_error_move(err, &all->error);
        outcome = all->outcome;
    }
    klp_error_clear(&all->error);
    return outcome;
}

struct gathering {
    const struct kelpie_op *op;
    const struct klp_mapping *mapping;
    struct pagemap pagemap;
    char *image;
    uint64_t pages; /* of both tasks: atomic */
};

static kelpie_outcome window_gather(void *arg, uint64_t from, uint64_t to,
                                    struct kelpie_error **err)
{
    struct gathering *all = arg;
    struct page_region runs[RUNS_MAX] = {0}; /* the kernel's word alone says that it filled them */
    struct batch batch = {.pid = all->mapping->pid, .reads = true};
    uint64_t pages = 0, at = all->mapping->address + from, end = all->mapping->address + to;
    while (at < end) {
        uint64_t next;
        int count;
        KLP_TRY(pagemap_scan(&all->pagemap, at, end, runs, &count, &next, err));
        for (int i = 0; i < count; i++) {
            KLP_TRY(batch_add(all->op, &batch, all->image + (runs[i].start - all->mapping->address),
                              runs[i].start, runs[i].end - runs[i].start, err));
            pages += (runs[i].end - runs[i].start) / PAGE;
        }
        if (next <= at)
            break;
        at = next;
    }
    __atomic_add_fetch(&all->pages, pages, __ATOMIC_RELAXED);
    KLP_TRY(batch_move(&batch, err));
    /* Here both tasks unmap, in the munmap one of them would. */
    madvise(all->image + from, to - from, MADV_DONTNEED);
    return KLP_OK;
}

static kelpie_outcome pages_gather(const struct kelpie_op *op, const struct klp_mapping *mapping,
                                   char *image, uint64_t *out_pages, struct kelpie_error **err)
{
    struct gathering all = {.op = op, .mapping = mapping, .image = image};
    struct windows windows = {.op = op, .size = mapping->size, .work = window_gather, .arg = &all};
    KLP_TRY(pagemap_open(mapping, &all.pagemap, err));
    kelpie_outcome outcome = windows_run(&windows, err);
    close(all.pagemap.fd);
    *out_pages = all.pages;
    return outcome;
}

/* Takes the room. */
static kelpie_outcome room_seal(struct klp_env *env, struct klp_page_room *room,
                                struct klp_handle *out, struct kelpie_error **err)
{
    struct klp_handle memory = room->memory;
    munmap(room->image, room->size); /* F_SEAL_WRITE refuses while a writable mapping is there */
    *room = (struct klp_page_room){.image = NULL};
    if (!klp_memory_seal(env, memory, err)) {
        klp_handle_close(env, memory);
        return (kelpie_outcome){KELPIE_FAIL};
    }
    *out = memory;
    return KLP_OK;
}

kelpie_outcome klp_private_pages_copy(const struct kelpie_op *op, const struct klp_mapping *mapping,
                                      struct klp_page_room *room, struct klp_handle *out,
                                      uint64_t *out_pages, struct kelpie_error **err)
{
    struct klp_page_room fresh = {.image = NULL};
    if (room != NULL && room->image != NULL && room->size == mapping->size) {
        kelpie_outcome outcome = pages_gather(op, mapping, room->image, out_pages, err);
        if (kelpie_is_ok(outcome) && room_is_exact(room, *out_pages))
            return room_seal(op->env, room, out, err);
        klp_page_room_drop(op->env, room); /* a page of it that the guest gave back since is zero */
        KLP_TRY(outcome);
    }
    KLP_REQUIRE(room_open(op->env, mapping->size, &fresh, err));
    kelpie_outcome outcome = pages_gather(op, mapping, fresh.image, out_pages, err);
    if (kelpie_is_ok(outcome))
        return room_seal(op->env, &fresh, out, err);
    klp_page_room_drop(op->env, &fresh);
    return outcome;
}

/* ---- laying over */

struct spreading {
    const struct kelpie_op *op;
    const struct klp_mapping *mapping;
    struct klp_handle overlay;
    char *image;
};

static kelpie_outcome window_spread(void *arg, uint64_t at, uint64_t end, struct kelpie_error **err)
{
    struct spreading *all = arg;
    struct batch batch = {.pid = all->mapping->pid, .reads = false};
    while (at < end) {
        uint64_t start, size;
        KLP_REQUIRE(klp_memory_next(all->op->env, all->overlay, at, &start, &size, err));
        if (size == 0 || start >= end)
            break;
        size = start + size < end ? size : end - start;
        KLP_TRY(batch_add(all->op, &batch, all->image + start, all->mapping->address + start, size,
                          err));
        at = start + size;
    }
    return batch_move(&batch, err);
}

kelpie_outcome klp_private_pages_lay(const struct kelpie_op *op, const struct klp_mapping *mapping,
                                     struct klp_handle overlay, struct kelpie_error **err)
{
    KLP_REQUIRE(klp_memory_check(op->env, overlay, mapping->size, err));
    char *image = mmap(NULL, mapping->size, PROT_READ, MAP_PRIVATE, klp_handle_fd(overlay), 0);
    if (image == MAP_FAILED)
        return klp_posix_fail(err, errno, "cannot map an overlay");
    struct spreading all = {op, mapping, overlay, image};
    struct windows windows = {.op = op, .size = mapping->size, .work = window_spread, .arg = &all};
    kelpie_outcome outcome = windows_run(&windows, err);
    munmap(image, mapping->size);
    return outcome;
}
