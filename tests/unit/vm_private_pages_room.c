/* SPDX-License-Identifier: Apache-2.0 */
/* Room for a copy of private pages, made while the guest still runs: whatever the guest does before
 * it is used, exactly its private pages come out. */
#include "vm_private_pages_kit.h"

#include <sys/stat.h>

static struct klp_page_room room_made(struct kit *kit, const struct guest *guest, int way,
                                      uint64_t timeout_ms)
{
    struct kelpie_op op = klp_op_plain(kit->env, timeout_ms);
    struct kelpie_error *err = NULL;
    struct klp_mapping mapping = mapping_of(guest, way == 1);
    struct klp_page_room room = {.image = NULL};
    KIT_OK(klp_page_room_make(&op, &mapping, &room, &err));
    assert_non_null(room.image);
    return room;
}

static uint64_t room_pages(const struct klp_page_room *room)
{
    struct stat facts;
    assert_int_equal(fstat(klp_handle_fd(room->memory), &facts), 0);
    return (uint64_t)facts.st_blocks * 512 / PAGE;
}

/* First `first` runs, then room is made, then `second` runs, then the pages are copied. */
static void room_and_compare(void **state, script *first, uint64_t there, script *second,
                             bool (*is_written)(uint64_t), uint8_t (*byte_of)(uint64_t))
{
    struct kit *kit = *state;
    uint64_t count = 0, pages = 0;
    for (uint64_t page = 0; page < PAGES; page++)
        count += is_written(page);
    for (int way = 0; way < WAYS; way++) {
        struct guest guest;
        if (!way_is_there(way))
            continue;
        guest_start_two(kit, &guest, SIZE, first, second);
        struct klp_page_room room = room_made(kit, &guest, way, 20000);
        assert_int_equal(room_pages(&room), there);
        guest_go_on(&guest);
        struct klp_handle out = copied_into(kit, &guest, way, &room, &pages);
        assert_null(room.image);
        assert_int_equal(pages, count);
        assert_pages(kit, out, SIZE, is_written, byte_of);
        klp_handle_close(kit->env, out);
        guest_end(kit, &guest);
    }
}

static uint64_t other_count(void)
{
    uint64_t count = 0;
    for (uint64_t page = 0; page < PAGES; page++)
        count += is_other(page);
    return count;
}

static void test_vm_private_pages_room__is_for_the_private_ones(void **state)
{
    room_and_compare(state, run_writes, other_count(), run_nothing, is_other, written_byte);
}

static void test_vm_private_pages_room__pages_written_after_the_room_was_made(void **state)
{
    room_and_compare(state, run_nothing, 0, run_writes, is_other, written_byte);
    room_and_compare(state, run_writes, other_count(), run_all, always, written_byte);
}

static bool is_kept(uint64_t page)
{
    return is_other(page) && (page < 1200 || page >= 1300);
}

static void run_gives_back(uint8_t *memory, uint64_t size, int base_fd)
{
    (void)size, (void)base_fd;
    if (madvise(memory + 1200 * PAGE, 100 * PAGE, MADV_DONTNEED) != 0)
        _exit(3);
}

/* As many come as go: their count alone says nothing. */
static void run_trades(uint8_t *memory, uint64_t size, int base_fd)
{
    run_gives_back(memory, size, base_fd);
    for (uint64_t page = 2001; page < 2201; page += 2)
        memset(memory + page * PAGE, written_byte(page), PAGE);
}

static bool is_traded(uint64_t page)
{
    return is_kept(page) || (page > 2000 && page < 2200);
}

/* Such a page is the base's again; in a copy it would be zeros. */
static void test_vm_private_pages_room__pages_given_back_after_the_room_was_made(void **state)
{
    room_and_compare(state, run_writes, other_count(), run_gives_back, is_kept, written_byte);
    room_and_compare(state, run_writes, other_count(), run_trades, is_traded, written_byte);
}

static void test_vm_private_pages_room__of_an_op_that_is_over_is_empty(void **state)
{
    struct kit *kit = *state;
    struct guest guest;
    uint64_t pages = 0;
    guest_start(kit, &guest, SIZE, run_writes);
    struct klp_page_room room = room_made(kit, &guest, 0, 0);
    assert_int_equal(room_pages(&room), 0);
    struct klp_handle out = copied_into(kit, &guest, 0, &room, &pages);
    assert_pages(kit, out, SIZE, is_other, written_byte);
    klp_handle_close(kit->env, out);
    guest_end(kit, &guest);
}

static bool room_is_mapped(void)
{
    char line[512];
    bool found = false;
    FILE *maps = fopen("/proc/self/maps", "r");
    assert_non_null(maps);
    while (fgets(line, sizeof(line), maps) != NULL)
        found = found || strstr(line, "kelpie-dirty") != NULL;
    fclose(maps);
    return found;
}

static void test_vm_private_pages_room__that_is_dropped_leaves_nothing(void **state)
{
    struct kit *kit = *state;
    struct kelpie_op op = klp_op_plain(kit->env, 20000);
    struct kelpie_error *err = NULL;
    struct guest guest;
    struct klp_handle out;
    uint64_t pages;
    guest_start(kit, &guest, SIZE, run_writes);
    struct klp_mapping mapping = mapping_of(&guest, false);
    struct klp_page_room room = room_made(kit, &guest, 0, 20000);
    assert_true(room_is_mapped());
    klp_page_room_drop(kit->env, &room);
    assert_false(room_is_mapped());
    klp_page_room_drop(kit->env, &room); /* there is none: nothing happens */
    room = room_made(kit, &guest, 0, 20000);
    guest_end(kit, &guest);
    assert_false(kelpie_is_ok(klp_private_pages_copy(&op, &mapping, &room, &out, &pages, &err)));
    klp_error_clear(&err);
    assert_null(room.image);
    assert_false(kelpie_is_ok(klp_page_room_make(&op, &mapping, &room, &err)));
    klp_error_clear(&err);
    assert_null(room.image);
    assert_false(room_is_mapped());
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        KIT_TEST(test_vm_private_pages_room__is_for_the_private_ones),
        KIT_TEST(test_vm_private_pages_room__pages_written_after_the_room_was_made),
        KIT_TEST(test_vm_private_pages_room__pages_given_back_after_the_room_was_made),
        KIT_TEST(test_vm_private_pages_room__of_an_op_that_is_over_is_empty),
        KIT_TEST(test_vm_private_pages_room__that_is_dropped_leaves_nothing),
    };
    return cmocka_run_group_tests_name("vm_private_pages_room", tests, NULL, NULL);
}
