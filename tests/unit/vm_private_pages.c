/* SPDX-License-Identifier: Apache-2.0 */
/* Private pages of a child's copy-on-write mapping: exactly what it wrote comes out, by both ways
 * the kernel offers, and overlays go in. Room for a copy: vm_private_pages_room.c. */
#include "vm_private_pages_kit.h"

#include <sys/utsname.h>

/* ---- scripts: what the child does, and which pages that makes private */

static bool never(uint64_t page)
{
    (void)page;
    return false;
}

static bool is_zeroed(uint64_t page)
{
    return page >= 30 && page < 60;
}

static uint8_t zero_byte(uint64_t page)
{
    (void)page;
    return 0;
}

static void run_zeros(uint8_t *memory, uint64_t size, int base_fd)
{
    (void)size, (void)base_fd;
    for (uint64_t page = 30; page < 60; page++)
        memset(memory + page * PAGE, 0, PAGE);
}

static void run_one_byte(uint8_t *memory, uint64_t size, int base_fd)
{
    (void)size, (void)base_fd;
    memory[3 * PAGE + 77] = 0xee;
}

/* Pieces of one mapping: the kernel lists each by itself. A shared view of the same memory beside
 * it. */
static void run_pieces(uint8_t *memory, uint64_t size, int base_fd)
{
    if (mmap(NULL, size, PROT_READ, MAP_SHARED, base_fd, 0) == MAP_FAILED)
        _exit(3);
    run_writes(memory, size, base_fd);
    if (mprotect(memory + 100 * PAGE, 50 * PAGE, PROT_READ) != 0 ||
        mprotect(memory + size / 2, PAGE, PROT_NONE) != 0 ||
        mprotect(memory + size / 2, PAGE, PROT_READ | PROT_WRITE) != 0)
        _exit(3);
}

static void run_hole(uint8_t *memory, uint64_t size, int base_fd)
{
    (void)base_fd;
    if (munmap(memory + size / 2, PAGE) != 0)
        _exit(3);
}

static void run_shared_only(uint8_t *memory, uint64_t size, int base_fd)
{
    if (munmap(memory, size) != 0 ||
        mmap(NULL, size, PROT_READ, MAP_SHARED, base_fd, 0) == MAP_FAILED)
        _exit(3);
}

/* ---- copying */

static void copy_and_compare(void **state, uint64_t size, script *run, bool (*is_written)(uint64_t),
                             uint8_t (*byte_of)(uint64_t), uint64_t count)
{
    struct kit *kit = *state;
    struct guest guest;
    guest_start(kit, &guest, size, run);
    for (int way = 0; way < WAYS; way++) {
        uint64_t pages = 99;
        if (!way_is_there(way)) {
            print_message("no PAGEMAP_SCAN in this kernel: only its table is tried\n");
            continue;
        }
        struct klp_handle out = copied(kit, &guest, way, &pages);
        assert_int_equal(pages, count);
        assert_pages(kit, out, size, is_written, byte_of);
        klp_handle_close(kit->env, out);
    }
    guest_end(kit, &guest);
}

static void test_vm_private_pages__untouched_memory_has_none(void **state)
{
    copy_and_compare(state, SIZE, run_nothing, never, zero_byte, 0);
}

static void test_vm_private_pages__reading_makes_none(void **state)
{
    copy_and_compare(state, SIZE, run_reads, never, zero_byte, 0);
}

static void test_vm_private_pages__written_ones_are_exact(void **state)
{
    uint64_t count = 0;
    for (uint64_t page = 0; page < PAGES; page++)
        count += is_other(page);
    copy_and_compare(state, SIZE, run_writes, is_other, written_byte, count);
}

static void test_vm_private_pages__written_zeros_count(void **state)
{
    copy_and_compare(state, SIZE, run_zeros, is_zeroed, zero_byte, 30);
}

static void test_vm_private_pages__a_run_larger_than_a_batch(void **state)
{
    copy_and_compare(state, 20ull * KLP_MIB, run_all, always, written_byte, 20u * KLP_MIB / PAGE);
}

static void test_vm_private_pages__a_page_carries_its_base_with_it(void **state)
{
    struct kit *kit = *state;
    struct kelpie_error *err = NULL;
    struct guest guest;
    uint8_t bytes[PAGE], expected[PAGE];
    guest_start(kit, &guest, SIZE, run_one_byte);
    memset(expected, base_byte(3), PAGE);
    expected[77] = 0xee;
    for (int way = 0; way < WAYS; way++) {
        uint64_t pages = 0;
        if (!way_is_there(way))
            continue;
        struct klp_handle out = copied(kit, &guest, way, &pages);
        assert_int_equal(pages, 1);
        assert_true(klp_memory_read(kit->env, out, 3 * PAGE, bytes, PAGE, &err));
        assert_memory_equal(bytes, expected, PAGE);
        klp_handle_close(kit->env, out);
    }
    guest_end(kit, &guest);
}

static void test_vm_private_pages__pieces_of_a_mapping_count_as_one(void **state)
{
    uint64_t count = 0;
    for (uint64_t page = 0; page < PAGES; page++)
        count += is_other(page);
    copy_and_compare(state, SIZE, run_pieces, is_other, written_byte, count);
}

/* What the table says of a page, entry by entry: swap is rare where tests run. */
static void test_vm_private_pages__entries_of_the_table(void **state)
{
    const uint64_t present = 1ull << 63, swapped = 1ull << 62, shared = 1ull << 61,
                   dirty = 1ull << 55;
    (void)state;
    assert_false(klp_pagemap_entry_is_private(0));
    assert_false(klp_pagemap_entry_is_private(dirty | 12345));
    assert_true(klp_pagemap_entry_is_private(present));
    assert_true(klp_pagemap_entry_is_private(present | dirty | 12345));
    assert_false(klp_pagemap_entry_is_private(present | shared | 12345));
    assert_true(klp_pagemap_entry_is_private(swapped | 777));
    assert_true(klp_pagemap_entry_is_private(swapped | dirty | 777));
    assert_false(
        klp_pagemap_entry_is_private(swapped | shared | 777)); /* a file's page on its way */
    assert_false(klp_pagemap_entry_is_private(shared));
}

static void run_paged_out(uint8_t *memory, uint64_t size, int base_fd)
{
    run_writes(memory, size, base_fd);
    if (madvise(memory, size, MADV_PAGEOUT) != 0)
        _exit(3);
}

static void test_vm_private_pages__swapped_ones_count(void **state)
{
    char line[256];
    FILE *swaps = fopen("/proc/swaps", "r");
    bool has_swap = swaps != NULL && fgets(line, sizeof(line), swaps) != NULL &&
                    fgets(line, sizeof(line), swaps) != NULL;
    if (swaps != NULL)
        fclose(swaps);
    if (!has_swap) {
        print_message("this host has no swap: only the table's bit is tested\n");
        skip();
    }
    uint64_t count = 0;
    for (uint64_t page = 0; page < PAGES; page++)
        count += is_other(page);
    copy_and_compare(state, SIZE, run_paged_out, is_other, written_byte, count);
}

/* Otherwise the slower way would be taken for ever, and nobody would notice. */
static void test_vm_private_pages__the_scan_is_found_where_the_kernel_has_it(void **state)
{
    struct utsname system;
    unsigned major_number = 0, minor_number = 0;
    (void)state;
    assert_int_equal(uname(&system), 0);
    assert_int_equal(sscanf(system.release, "%u.%u", &major_number, &minor_number), 2);
    if (major_number < 6 || (major_number == 6 && minor_number < 7)) {
        print_message("Linux %s is older than PAGEMAP_SCAN (6.7)\n", system.release);
        skip();
    }
    assert_true(klp_pagemap_scan_works());
}

/* ---- finding the mapping */

static void find_fails(struct kit *kit, int pid, struct klp_handle memory, uint64_t size)
{
    struct klp_mapping mapping;
    struct kelpie_error *err = NULL;
    (void)kit;
    assert_false(klp_mapping_find(pid, klp_handle_fd(memory), size, &mapping, &err));
    assert_int_equal(kelpie_error_code(err), KELPIE_E_NOT_FOUND);
    kelpie_error_free(err);
}

static void test_vm_private_pages__a_mapping_that_is_not_there(void **state)
{
    struct kit *kit = *state;
    struct kelpie_error *err = NULL;
    struct klp_handle other;
    struct guest guest;
    guest_start(kit, &guest, SIZE, run_nothing);
    assert_true(klp_memory_create(kit->env, "other", SIZE, &other, &err));
    find_fails(kit, guest.pid, other, SIZE);
    find_fails(kit, guest.pid, guest.base, SIZE + PAGE);
    find_fails(kit, guest.pid, guest.base, SIZE - PAGE);
    klp_handle_close(kit->env, other);
    kill(guest.pid, SIGKILL);
    siginfo_t end;
    assert_int_equal(waitid(P_PID, (id_t)guest.pid, &end, WEXITED | WNOWAIT), 0);
    find_fails(kit, guest.pid, guest.base, SIZE); /* a zombie maps nothing */
    guest_end(kit, &guest);
}

static void test_vm_private_pages__a_mapping_with_a_hole_is_none(void **state)
{
    struct kit *kit = *state;
    struct guest guest;
    guest_start(kit, &guest, SIZE, run_hole);
    find_fails(kit, guest.pid, guest.base, SIZE);
    guest_end(kit, &guest);
}

static void test_vm_private_pages__a_shared_mapping_is_none(void **state)
{
    struct kit *kit = *state;
    struct guest guest;
    guest_start(kit, &guest, SIZE, run_shared_only);
    find_fails(kit, guest.pid, guest.base, SIZE);
    guest_end(kit, &guest);
}

/* ---- failing */

static void test_vm_private_pages__a_dead_process_is_an_error(void **state)
{
    struct kit *kit = *state;
    struct kelpie_op op = klp_op_plain(kit->env, 20000);
    struct guest guest;
    guest_start(kit, &guest, SIZE, run_writes);
    struct klp_mapping mapping = mapping_of(&guest, false);
    guest_end(kit, &guest);
    for (int way = 0; way < WAYS; way++) {
        struct klp_handle out;
        struct kelpie_error *err = NULL;
        uint64_t pages;
        mapping.by_table = way == 1;
        assert_false(kelpie_is_ok(klp_private_pages_copy(&op, &mapping, NULL, &out, &pages, &err)));
        assert_non_null(err);
        kelpie_error_free(err);
    }
}

static void test_vm_private_pages__an_op_that_is_over_ends_it(void **state)
{
    struct kit *kit = *state;
    struct guest guest;
    guest_start(kit, &guest, 20ull * KLP_MIB, run_all);
    for (int way = 0; way < WAYS; way++) {
        struct kelpie_op op = klp_op_plain(kit->env, 0);
        struct klp_mapping mapping = mapping_of(&guest, way == 1);
        struct klp_handle out;
        struct kelpie_error *err = NULL;
        uint64_t pages;
        assert_false(kelpie_is_ok(klp_private_pages_copy(&op, &mapping, NULL, &out, &pages, &err)));
        assert_int_equal(kelpie_error_code(err), KELPIE_E_TIMEOUT);
        kelpie_error_free(err);
    }
    guest_end(kit, &guest);
}

/* ---- laying over */

static struct klp_handle overlay_make(struct kit *kit, uint64_t size, uint64_t first, uint64_t step,
                                      uint8_t byte)
{
    struct kelpie_error *err = NULL;
    struct klp_handle overlay;
    uint8_t bytes[PAGE];
    memset(bytes, byte, PAGE);
    assert_true(klp_memory_create(kit->env, "overlay", size, &overlay, &err));
    for (uint64_t page = first; page < size / PAGE; page += step)
        assert_true(klp_memory_write(kit->env, overlay, page * PAGE, bytes, PAGE, &err));
    assert_true(klp_memory_seal(kit->env, overlay, &err));
    return overlay;
}

static bool is_laid(uint64_t page)
{
    return page % 2 == 0 || page % 7 == 1;
}

static uint8_t laid_byte(uint64_t page)
{
    return page % 7 == 1 ? 22 : 11;
}

static void test_vm_private_pages__overlays_become_private_pages(void **state)
{
    struct kit *kit = *state;
    struct kelpie_op op = klp_op_plain(kit->env, 20000);
    struct kelpie_error *err = NULL;
    struct guest guest;
    guest_start(kit, &guest, SIZE, run_nothing);
    struct klp_mapping mapping = mapping_of(&guest, false);
    struct klp_handle low = overlay_make(kit, SIZE, 0, 2, 11),
                      high = overlay_make(kit, SIZE, 1, 7, 22);
    KIT_OK(klp_private_pages_lay(&op, &mapping, low, &err));
    KIT_OK(klp_private_pages_lay(&op, &mapping, high, &err));
    for (int way = 0; way < WAYS; way++) {
        uint64_t pages;
        if (!way_is_there(way))
            continue;
        struct klp_handle out = copied(kit, &guest, way, &pages);
        assert_pages(kit, out, SIZE, is_laid, laid_byte);
        klp_handle_close(kit->env, out);
    }
    klp_handle_close(kit->env, low);
    klp_handle_close(kit->env, high);
    guest_end(kit, &guest);
}

static void lay_fails(struct kit *kit, const struct klp_mapping *mapping, struct klp_handle overlay,
                      uint64_t timeout_ms, enum kelpie_code code)
{
    struct kelpie_op op = klp_op_plain(kit->env, timeout_ms);
    struct kelpie_error *err = NULL;
    assert_false(kelpie_is_ok(klp_private_pages_lay(&op, mapping, overlay, &err)));
    assert_int_equal(kelpie_error_code(err), code);
    kelpie_error_free(err);
    klp_handle_close(kit->env, overlay);
}

static void test_vm_private_pages__overlays_that_are_refused(void **state)
{
    struct kit *kit = *state;
    struct kelpie_error *err = NULL;
    struct klp_handle open_one;
    struct guest guest;
    guest_start(kit, &guest, SIZE, run_nothing);
    struct klp_mapping mapping = mapping_of(&guest, false);
    assert_true(klp_memory_create(kit->env, "open", SIZE, &open_one, &err));
    lay_fails(kit, &mapping, open_one, 20000, KELPIE_E_CORRUPT);
    lay_fails(kit, &mapping, overlay_make(kit, SIZE - PAGE, 0, 5, 1), 20000, KELPIE_E_CORRUPT);
    lay_fails(kit, &mapping, overlay_make(kit, SIZE + PAGE, 0, 5, 1), 20000, KELPIE_E_CORRUPT);
    lay_fails(kit, &mapping, overlay_make(kit, SIZE, 0, 1, 1), 0, KELPIE_E_TIMEOUT);
    guest_end(kit, &guest);
    lay_fails(kit, &mapping, overlay_make(kit, SIZE, 0, 1, 1), 20000, KELPIE_E_IO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        KIT_TEST(test_vm_private_pages__untouched_memory_has_none),
        KIT_TEST(test_vm_private_pages__reading_makes_none),
        KIT_TEST(test_vm_private_pages__written_ones_are_exact),
        KIT_TEST(test_vm_private_pages__written_zeros_count),
        KIT_TEST(test_vm_private_pages__a_run_larger_than_a_batch),
        KIT_TEST(test_vm_private_pages__a_page_carries_its_base_with_it),
        KIT_TEST(test_vm_private_pages__pieces_of_a_mapping_count_as_one),
        KIT_TEST(test_vm_private_pages__entries_of_the_table),
        KIT_TEST(test_vm_private_pages__swapped_ones_count),
        KIT_TEST(test_vm_private_pages__the_scan_is_found_where_the_kernel_has_it),
        KIT_TEST(test_vm_private_pages__a_mapping_that_is_not_there),
        KIT_TEST(test_vm_private_pages__a_mapping_with_a_hole_is_none),
        KIT_TEST(test_vm_private_pages__a_shared_mapping_is_none),
        KIT_TEST(test_vm_private_pages__a_dead_process_is_an_error),
        KIT_TEST(test_vm_private_pages__an_op_that_is_over_ends_it),
        KIT_TEST(test_vm_private_pages__overlays_become_private_pages),
        KIT_TEST(test_vm_private_pages__overlays_that_are_refused),
    };
    return cmocka_run_group_tests_name("vm_private_pages", tests, NULL, NULL);
}
