/* SPDX-License-Identifier: Apache-2.0 */
/* Memory objects: sparse, of a fixed size, sealed for good, and checked when they come from
 * strangers. */
#include "env_kit.h"

#include <sys/mman.h>

#define PAGE 4096u

static void test_env_posix_memory__unwritten_bytes_are_zero_and_holes(void **state)
{
    struct kit *kit = *state;
    struct kelpie_error *err = NULL;
    struct klp_handle memory;
    uint8_t bytes[PAGE];
    uint64_t at = 7, size = 7;
    assert_true(klp_memory_create(kit->env, "test", 64 * PAGE, &memory, &err));
    assert_true(klp_memory_size(kit->env, memory, &size, &err));
    assert_int_equal(size, 64 * PAGE);
    assert_true(klp_memory_next(kit->env, memory, 0, &at, &size, &err));
    assert_int_equal(size, 0);
    memset(bytes, 1, sizeof(bytes));
    assert_true(klp_memory_read(kit->env, memory, 3 * PAGE, bytes, sizeof(bytes), &err));
    for (size_t i = 0; i < sizeof(bytes); i++)
        assert_int_equal(bytes[i], 0);
    klp_handle_close(kit->env, memory);
    klp_handle_close(kit->env, KLP_NO_HANDLE);
}

static void test_env_posix_memory__next_walks_written_pages(void **state)
{
    struct kit *kit = *state;
    struct kelpie_error *err = NULL;
    struct klp_handle memory;
    uint64_t at = 0, size = 0;
    assert_true(klp_memory_create(kit->env, "test", 64 * PAGE, &memory, &err));
    assert_true(klp_memory_write(kit->env, memory, 5 * PAGE + 10, "x", 1, &err));
    assert_true(klp_memory_write(kit->env, memory, 7 * PAGE - 1, "yy", 2, &err)); /* 6 and 7 */
    assert_true(klp_memory_write(kit->env, memory, 63 * PAGE, "z", 1, &err));
    assert_true(klp_memory_next(kit->env, memory, 0, &at, &size, &err));
    assert_int_equal(at, 5 * PAGE);
    assert_int_equal(size, 3 * PAGE);
    assert_true(klp_memory_next(kit->env, memory, 6 * PAGE, &at, &size, &err));
    assert_int_equal(at, 6 * PAGE);
    assert_int_equal(size, 2 * PAGE);
    assert_true(klp_memory_next(kit->env, memory, 8 * PAGE, &at, &size, &err));
    assert_int_equal(at, 63 * PAGE);
    assert_int_equal(size, PAGE);
    assert_true(klp_memory_next(kit->env, memory, 64 * PAGE, &at, &size, &err));
    assert_int_equal(size, 0);
    klp_handle_close(kit->env, memory);
}

static void test_env_posix_memory__ends_where_it_ends(void **state)
{
    struct kit *kit = *state;
    struct kelpie_error *err = NULL;
    struct klp_handle memory;
    uint64_t size;
    uint8_t bytes[8] = {0};
    assert_true(klp_memory_create(kit->env, "test", 100, &memory, &err));
    assert_true(klp_memory_write(kit->env, memory, 92, bytes, 8, &err));
    assert_true(klp_memory_read(kit->env, memory, 92, bytes, 8, &err));
    KIT_REFUSED(klp_memory_read(kit->env, memory, 93, bytes, 8, &err), &err, KELPIE_E_CORRUPT,
                "100");
    assert_false(klp_memory_write(kit->env, memory, 93, bytes, 8, &err));
    klp_error_clear(&err);
    assert_true(klp_memory_size(kit->env, memory, &size, &err));
    assert_int_equal(size, 100); /* a write never makes it grow */
    KIT_REFUSED(klp_memory_read(kit->env, memory, UINT64_MAX - 3, bytes, 8, &err), &err,
                KELPIE_E_INVALID, "");
    KIT_REFUSED(klp_memory_write(kit->env, memory, 1ull << 63, bytes, 8, &err), &err,
                KELPIE_E_INVALID, "");
    /* Nor can whoever is given it cut it under somebody's mapping. */
    assert_int_equal(ftruncate(klp_handle_fd(memory), 50), -1);
    assert_int_equal(ftruncate(klp_handle_fd(memory), 200), -1);
    klp_handle_close(kit->env, memory);
    KIT_REFUSED(klp_memory_create(kit->env, "test", UINT64_MAX, &memory, &err), &err,
                KELPIE_E_INVALID, "");
}

static void test_env_posix_memory__sealed_is_for_everybody(void **state)
{
    struct kit *kit = *state;
    struct kelpie_error *err = NULL;
    struct klp_handle memory, copy;
    char bytes[6] = "";
    assert_true(klp_memory_create(kit->env, "test", PAGE, &memory, &err));
    assert_true(klp_memory_write(kit->env, memory, 0, "before", 6, &err));
    assert_true(klp_handle_copy(kit->env, memory, &copy, &err)); /* made before the seal */
    KIT_REFUSED(klp_memory_check(kit->env, memory, PAGE, &err), &err, KELPIE_E_CORRUPT, "sealed");
    assert_true(klp_memory_seal(kit->env, memory, &err));
    KIT_REFUSED(klp_memory_write(kit->env, copy, 0, "x", 1, &err), &err, KELPIE_E_DENIED, "");
    assert_int_equal(ftruncate(klp_handle_fd(copy), 0), -1);
    assert_ptr_equal(mmap(NULL, PAGE, PROT_WRITE, MAP_SHARED, klp_handle_fd(copy), 0), MAP_FAILED);
    assert_true(klp_memory_read(kit->env, copy, 0, bytes, 6, &err));
    assert_memory_equal(bytes, "before", 6);
    assert_true(klp_memory_check(kit->env, copy, PAGE, &err));
    KIT_REFUSED(klp_memory_check(kit->env, copy, PAGE + 1, &err), &err, KELPIE_E_CORRUPT, "4097");
    klp_handle_close(kit->env, memory);
    klp_handle_close(kit->env, copy);
}

static void test_env_posix_memory__no_seal_while_somebody_can_write(void **state)
{
    struct kit *kit = *state;
    struct kelpie_error *err = NULL;
    struct klp_handle memory;
    assert_true(klp_memory_create(kit->env, "test", PAGE, &memory, &err));
    char *mapped = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, klp_handle_fd(memory), 0);
    assert_ptr_not_equal(mapped, MAP_FAILED);
    KIT_REFUSED(klp_memory_seal(kit->env, memory, &err), &err, KELPIE_E_BUSY, "seal");
    assert_int_equal(munmap(mapped, PAGE), 0);
    assert_true(klp_memory_seal(kit->env, memory, &err));
    klp_handle_close(kit->env, memory);
}

static void check_refuses(const struct kit *kit, int fd)
{
    struct kelpie_error *err = NULL;
    assert_true(fd >= 0);
    KIT_REFUSED(klp_memory_check(kit->env, klp_handle_from_fd(fd), PAGE, &err), &err,
                KELPIE_E_CORRUPT, "sealed");
    close(fd);
}

static void test_env_posix_memory__check_sees_through_impostors(void **state)
{
    struct kit *kit = *state;
    int pair[2], fd;
    assert_int_equal(pipe(pair), 0);
    close(pair[0]);
    check_refuses(kit, pair[1]);
    check_refuses(kit, open("/dev/null", O_RDWR));
    fd = open(kit_path(kit, "file"), O_RDWR | O_CREAT, 0600);
    assert_int_equal(ftruncate(fd, PAGE), 0);
    check_refuses(kit, fd);
    /* Sealed, but not against everything. */
    fd = memfd_create("half", MFD_ALLOW_SEALING);
    assert_int_equal(ftruncate(fd, PAGE), 0);
    assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL), 0);
    check_refuses(kit, fd);
    fd = memfd_create("future", MFD_ALLOW_SEALING);
    assert_int_equal(ftruncate(fd, PAGE), 0);
    assert_int_equal(
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL | 0x10 /* FUTURE_WRITE */),
        0);
    check_refuses(kit, fd);
    check_refuses(kit, memfd_create("never", 0));
}

static void test_env_posix_memory__bad_handles(void **state)
{
    struct kit *kit = *state;
    struct kelpie_error *err = NULL;
    struct klp_handle copy = KLP_NO_HANDLE;
    uint64_t size;
    assert_true(klp_handle_is_none(KLP_NO_HANDLE));
    KIT_REFUSED(klp_handle_copy(kit->env, KLP_NO_HANDLE, &copy, &err), &err, KELPIE_E_IO, "handle");
    KIT_REFUSED(klp_memory_size(kit->env, KLP_NO_HANDLE, &size, &err), &err, KELPIE_E_IO, "");
    KIT_REFUSED(klp_memory_seal(kit->env, KLP_NO_HANDLE, &err), &err, KELPIE_E_IO, "");
    assert_true(klp_handle_is_none(copy));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        KIT_TEST(test_env_posix_memory__unwritten_bytes_are_zero_and_holes),
        KIT_TEST(test_env_posix_memory__next_walks_written_pages),
        KIT_TEST(test_env_posix_memory__ends_where_it_ends),
        KIT_TEST(test_env_posix_memory__sealed_is_for_everybody),
        KIT_TEST(test_env_posix_memory__no_seal_while_somebody_can_write),
        KIT_TEST(test_env_posix_memory__check_sees_through_impostors),
        KIT_TEST(test_env_posix_memory__bad_handles),
    };
    return cmocka_run_group_tests_name("env_posix_memory", tests, NULL, NULL);
}
