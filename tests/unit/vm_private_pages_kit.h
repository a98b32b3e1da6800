/* SPDX-License-Identifier: Apache-2.0 */
/* For tests of private pages: a child with a copy-on-write mapping, which does as a short script
 * says, and then stands still. */
#ifndef VM_PRIVATE_PAGES_KIT_H
#define VM_PRIVATE_PAGES_KIT_H

#include "env_kit.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#include "base/limits.h"
#include "vm/private_pages/private_pages.h"

#define PAGE 4096u
#define PAGES 4096u /* of most guests here: more runs than one scan and one batch take */
#define SIZE ((uint64_t)PAGES * PAGE)

/* Runs in the child, on its mapping. */
typedef void script(uint8_t *memory, uint64_t size, int base_fd);

struct guest {
    struct klp_handle base;
    int pid, ready_fd;
    uint64_t size;
    script *first, *second; /* the second when guest_go_on says so */
};

static inline uint8_t base_byte(uint64_t page)
{
    return (uint8_t)(page % 250 + 1);
}

static inline uint8_t written_byte(uint64_t page)
{
    return (uint8_t)(page % 249 + 3);
}

static inline void base_make(struct kit *kit, struct guest *guest)
{
    struct kelpie_error *err = NULL;
    assert_true(klp_memory_create(kit->env, "base", guest->size, &guest->base, &err));
    for (uint64_t page = 0; page < guest->size / PAGE; page += 3) { /* the others are holes */
        uint8_t bytes[PAGE];
        memset(bytes, base_byte(page), PAGE);
        assert_true(klp_memory_write(kit->env, guest->base, page * PAGE, bytes, PAGE, &err));
    }
    assert_true(klp_memory_seal(kit->env, guest->base, &err));
}

static inline void child_run(const struct guest *guest, int ready_fd)
{
    int fd = klp_handle_fd(guest->base), number;
    sigset_t on;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    sigemptyset(&on);
    sigaddset(&on, SIGUSR1);
    sigprocmask(SIG_BLOCK, &on, NULL);
    uint8_t *memory = mmap(NULL, guest->size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    if (memory == MAP_FAILED)
        _exit(1);
    for (script *run = guest->first;; run = guest->second) {
        run(memory, guest->size, fd);
        if (write(ready_fd, "r", 1) != 1 || sigwait(&on, &number) != 0)
            _exit(2);
    }
}

static inline void guest_await(const struct guest *guest)
{
    char byte;
    assert_int_equal(read(guest->ready_fd, &byte, 1), 1);
}

static inline void run_nothing(uint8_t *memory, uint64_t size, int base_fd)
{
    (void)memory, (void)size, (void)base_fd;
}

static inline void guest_start_two(struct kit *kit, struct guest *guest, uint64_t size,
                                   script *first, script *second)
{
    int ready[2];
    *guest = (struct guest){.size = size, .first = first, .second = second};
    base_make(kit, guest);
    assert_int_equal(pipe(ready), 0);
    guest->ready_fd = ready[0];
    guest->pid = fork();
    assert_true(guest->pid >= 0);
    if (guest->pid == 0)
        child_run(guest, ready[1]);
    close(ready[1]);
    guest_await(guest);
}

static inline void guest_start(struct kit *kit, struct guest *guest, uint64_t size, script *run)
{
    guest_start_two(kit, guest, size, run, run_nothing);
}

static inline void guest_go_on(const struct guest *guest)
{
    assert_int_equal(kill(guest->pid, SIGUSR1), 0);
    guest_await(guest);
}

static inline void guest_end(struct kit *kit, struct guest *guest)
{
    kill(guest->pid, SIGKILL);
    assert_int_equal(waitpid(guest->pid, NULL, 0), guest->pid);
    close(guest->ready_fd);
    klp_handle_close(kit->env, guest->base);
}

static inline struct klp_mapping mapping_of(const struct guest *guest, bool by_table)
{
    struct klp_mapping mapping;
    struct kelpie_error *err = NULL;
    assert_true(
        klp_mapping_find(guest->pid, klp_handle_fd(guest->base), guest->size, &mapping, &err));
    mapping.by_table = by_table;
    return mapping;
}

/* By the kernel's scan where it has one, and by its table. */
#define WAYS 2
static inline bool way_is_there(int way)
{
    return way == 1 || klp_pagemap_scan_works();
}

static inline struct klp_handle copied_into(struct kit *kit, const struct guest *guest, int way,
                                            struct klp_page_room *room, uint64_t *pages)
{
    struct kelpie_op op = klp_op_plain(kit->env, 20000);
    struct kelpie_error *err = NULL;
    struct klp_mapping mapping = mapping_of(guest, way == 1);
    struct klp_handle out;
    kelpie_outcome outcome = klp_private_pages_copy(&op, &mapping, room, &out, pages, &err);
    if (!kelpie_is_ok(outcome))
        print_error("%s\n", kelpie_error_message(err));
    assert_true(kelpie_is_ok(outcome));
    assert_true(klp_memory_check(kit->env, out, guest->size, &err)); /* sealed, and of that size */
    return out;
}

static inline struct klp_handle copied(struct kit *kit, const struct guest *guest, int way,
                                       uint64_t *pages)
{
    return copied_into(kit, guest, way, NULL, pages);
}

/* Exactly the pages of `is_written` are there, with `byte_of` in them. */
static inline void assert_pages(struct kit *kit, struct klp_handle memory, uint64_t size,
                                bool (*is_written)(uint64_t page),
                                uint8_t (*byte_of)(uint64_t page))
{
    struct kelpie_error *err = NULL;
    bool *present = calloc(size / PAGE, 1);
    for (uint64_t at = 0; at < size;) {
        uint64_t start, run;
        assert_true(klp_memory_next(kit->env, memory, at, &start, &run, &err));
        if (run == 0)
            break;
        for (uint64_t page = start / PAGE; page < (start + run) / PAGE; page++)
            present[page] = true;
        at = start + run;
    }
    for (uint64_t page = 0; page < size / PAGE; page++) {
        uint8_t bytes[PAGE], expected[PAGE];
        if (present[page] != is_written(page))
            fail_msg("page %llu is %s", (unsigned long long)page,
                     present[page] ? "there" : "missing");
        if (!present[page])
            continue;
        memset(expected, byte_of(page), PAGE);
        assert_true(klp_memory_read(kit->env, memory, page * PAGE, bytes, PAGE, &err));
        assert_memory_equal(bytes, expected, PAGE);
    }
    free(present);
}

/* ---- scripts: what the child does, and which pages that makes private */

static inline void run_reads(uint8_t *memory, uint64_t size, int base_fd)
{
    volatile const uint8_t *read_only = memory;
    (void)base_fd;
    for (uint64_t at = 0; at < size; at += PAGE)
        (void)read_only[at];
}

static inline bool is_other(uint64_t page) /* single pages, a long run, and the last one */
{
    return page % 2 == 0 || (page > 1000 && page < 1700) || page == PAGES - 1;
}

static inline void run_writes(uint8_t *memory, uint64_t size, int base_fd)
{
    run_reads(memory, size, base_fd);
    for (uint64_t page = 0; page < size / PAGE; page++)
        if (is_other(page))
            memset(memory + page * PAGE, written_byte(page), PAGE);
}

static inline bool always(uint64_t page)
{
    (void)page;
    return true;
}

static inline void run_all(uint8_t *memory, uint64_t size, int base_fd)
{
    (void)base_fd;
    for (uint64_t page = 0; page < size / PAGE; page++)
        memset(memory + page * PAGE, written_byte(page), PAGE);
}

#endif
