/* SPDX-License-Identifier: Apache-2.0 */
/* Layers over real memory objects: shapes, bounds, sealing, strangers' memory, and the runs that a
 * cursor finds. */
#include "env_kit.h"

#include "base/limits.h"
#include "vm/layer.h"

#define PAGE 4096u

static struct klp_layer *layer_make(const struct kit *kit, uint64_t size, uint8_t log2)
{
    struct klp_layer *layer;
    assert_true(klp_layer_create(kit->env, size, log2, &layer, NULL));
    return layer;
}

static void layer_put(struct klp_layer *layer, uint64_t offset, uint8_t value, size_t size)
{
    uint8_t *bytes = malloc(size);
    memset(bytes, value, size);
    assert_true(klp_layer_write(layer, offset, bytes, size, NULL));
    free(bytes);
}

static void test_vm_layer__shapes(void **state)
{
    struct kit *kit = *state;
    struct kelpie_error *err = NULL;
    struct klp_layer *layer;
    KIT_REFUSED(klp_layer_create(kit->env, 0, 12, &layer, &err), &err, KELPIE_E_INVALID, "0 bytes");
    KIT_REFUSED(klp_layer_create(kit->env, PAGE, 5, &layer, &err), &err, KELPIE_E_INVALID, "2^5");
    KIT_REFUSED(klp_layer_create(kit->env, PAGE, 17, &layer, &err), &err, KELPIE_E_INVALID, "2^17");
    KIT_REFUSED(klp_layer_create(kit->env, PAGE + 1, 12, &layer, &err), &err, KELPIE_E_INVALID,
                "in pages of 4096");
    KIT_REFUSED(klp_layer_create(kit->env, UINT64_MAX << 12, 12, &layer, &err), &err,
                KELPIE_E_INVALID, "bytes");
    layer = layer_make(kit, 64, 6);
    assert_int_equal(klp_layer_size(layer), 64);
    assert_int_equal(klp_layer_page_log2(layer), 6);
    klp_layer_close(layer);
    klp_layer_close(NULL);
}

static void test_vm_layer__bounds_and_whole_pages(void **state)
{
    struct kit *kit = *state;
    struct kelpie_error *err = NULL;
    struct klp_layer *layer = layer_make(kit, 4 * PAGE, 12);
    uint8_t bytes[2 * PAGE] = {1};
    KIT_REFUSED(klp_layer_write(layer, 1, bytes, PAGE, &err), &err, KELPIE_E_INVALID,
                "whole pages");
    KIT_REFUSED(klp_layer_write(layer, 0, bytes, 100, &err), &err, KELPIE_E_INVALID, "whole pages");
    KIT_REFUSED(klp_layer_write(layer, 3 * PAGE, bytes, 2 * PAGE, &err), &err, KELPIE_E_INVALID,
                "12288+8192");
    KIT_REFUSED(klp_layer_write(layer, UINT64_MAX - PAGE + 1, bytes, PAGE, &err), &err,
                KELPIE_E_INVALID, "bytes");
    KIT_REFUSED(klp_layer_read(layer, 4 * PAGE, bytes, 1, &err), &err, KELPIE_E_INVALID, "16384+1");
    KIT_REFUSED(klp_layer_read(layer, UINT64_MAX, bytes, 2, &err), &err, KELPIE_E_INVALID, "bytes");
    assert_true(klp_layer_write(layer, 4 * PAGE, bytes, 0, &err));
    assert_true(klp_layer_read(layer, 4 * PAGE, bytes, 0, &err));
    klp_layer_close(layer);
}

static void test_vm_layer__what_is_written_is_read(void **state)
{
    struct kit *kit = *state;
    struct klp_layer *layer = layer_make(kit, 8 * PAGE, 12);
    uint8_t bytes[PAGE];
    layer_put(layer, 2 * PAGE, 7, PAGE);
    assert_true(klp_layer_read(layer, 2 * PAGE - 2, bytes, 4, NULL));
    assert_memory_equal(bytes, "\0\0\7\7", 4);
    assert_true(klp_layer_read(layer, 7 * PAGE, bytes, PAGE, NULL)); /* absent: zero */
    for (size_t i = 0; i < PAGE; i++)
        assert_int_equal(bytes[i], 0);
    klp_layer_close(layer);
}

static void test_vm_layer__sealed_is_final(void **state)
{
    struct kit *kit = *state;
    struct kelpie_error *err = NULL;
    struct klp_layer *layer = layer_make(kit, 4 * PAGE, 12);
    uint8_t page[PAGE] = {9};
    layer_put(layer, 0, 9, PAGE);
    assert_false(klp_layer_is_sealed(layer));
    assert_true(klp_layer_seal(layer, &err));
    assert_true(klp_layer_seal(layer, &err));
    assert_true(klp_layer_is_sealed(layer));
    KIT_REFUSED(klp_layer_write(layer, 0, page, PAGE, &err), &err, KELPIE_E_STATE, "sealed");
    assert_true(klp_memory_check(kit->env, klp_layer_handle(layer), 4 * PAGE, &err));
    klp_layer_close(layer);
}

/* The handle is the layer's, also when it is refused: the kit counts descriptors. */
static void test_vm_layer__strangers_memory(void **state)
{
    struct kit *kit = *state;
    struct kelpie_error *err = NULL;
    struct klp_handle memory;
    struct klp_layer *layer;
    assert_true(klp_memory_create(kit->env, "stranger", 4 * PAGE, &memory, &err));
    KIT_REFUSED(klp_layer_adopt(kit->env, memory, 4 * PAGE, 12, &layer, &err), &err,
                KELPIE_E_CORRUPT, "not sealed");
    assert_true(klp_memory_create(kit->env, "stranger", 4 * PAGE, &memory, &err));
    assert_true(klp_memory_seal(kit->env, memory, &err));
    KIT_REFUSED(klp_layer_adopt(kit->env, memory, 8 * PAGE, 12, &layer, &err), &err,
                KELPIE_E_CORRUPT, "16384");
    assert_true(klp_memory_create(kit->env, "stranger", 4 * PAGE, &memory, &err));
    assert_true(klp_memory_write(kit->env, memory, PAGE, "x", 1, &err));
    assert_true(klp_memory_seal(kit->env, memory, &err));
    assert_true(klp_layer_adopt(kit->env, memory, 4 * PAGE, 12, &layer, &err));
    assert_true(klp_layer_is_sealed(layer));
    struct klp_layer *other = klp_layer_share(layer);
    klp_layer_close(layer);
    uint8_t byte = 0;
    assert_true(klp_layer_read(other, PAGE, &byte, 1, &err)); /* the last owner has it still */
    assert_int_equal(byte, 'x');
    klp_layer_close(other);
}

/* ---- cursors */

struct walked {
    uint64_t offsets[16];
    size_t sizes[16], count;
};

static struct walked walk(struct klp_layer *layer)
{
    struct walked walked = {.count = 0};
    KLP_AUTO(layer_cursor) struct klp_layer_cursor *cursor = klp_layer_walk(layer);
    struct klp_run run;
    for (;;) {
        assert_true(klp_layer_next_run(cursor, &run, NULL));
        if (run.size == 0)
            break;
        assert_true(walked.count < 16);
        walked.offsets[walked.count] = run.offset;
        walked.sizes[walked.count++] = run.size;
    }
    assert_true(klp_layer_next_run(cursor, &run, NULL)); /* the end stays the end */
    assert_int_equal(run.size, 0);
    return walked;
}

static void test_vm_layer__runs_are_what_was_written(void **state)
{
    struct kit *kit = *state;
    struct klp_layer *layer = layer_make(kit, 64 * PAGE, 12);
    assert_int_equal(walk(layer).count, 0);
    layer_put(layer, 0, 1, PAGE);
    layer_put(layer, 5 * PAGE, 2, 3 * PAGE);
    layer_put(layer, 63 * PAGE, 3, PAGE);
    struct walked walked = walk(layer);
    assert_int_equal(walked.count, 3);
    assert_int_equal(walked.offsets[1], 5 * PAGE);
    assert_int_equal(walked.sizes[1], 3 * PAGE);
    assert_int_equal(walked.offsets[2], 63 * PAGE);
    KLP_AUTO(layer_cursor) struct klp_layer_cursor *cursor = klp_layer_walk(layer);
    struct klp_run run;
    klp_layer_close(layer); /* the cursor holds it */
    assert_true(klp_layer_next_run(cursor, &run, NULL));
    assert_int_equal(run.data[PAGE - 1], 1);
    assert_true(klp_layer_next_run(cursor, &run, NULL));
    assert_int_equal(run.data[0], 2);
}

static void test_vm_layer__long_runs_come_in_blocks(void **state)
{
    struct kit *kit = *state;
    struct klp_layer *layer = layer_make(kit, 8 * KLP_MIB, 12);
    layer_put(layer, PAGE, 1, 2 * KLP_BLOCK_SIZE + PAGE);
    struct walked walked = walk(layer);
    assert_int_equal(walked.count, 3);
    assert_int_equal(walked.sizes[0], KLP_BLOCK_SIZE);
    assert_int_equal(walked.offsets[1], PAGE + KLP_BLOCK_SIZE);
    assert_int_equal(walked.sizes[1], KLP_BLOCK_SIZE);
    assert_int_equal(walked.sizes[2], PAGE);
    klp_layer_close(layer);
}

/* Memory knows of 4 KiB pages; a layer of larger ones tells whole ones, and none twice. */
static void test_vm_layer__large_pages_are_whole(void **state)
{
    struct kit *kit = *state;
    uint64_t large = 64 * KLP_KIB;
    struct klp_layer *layer = layer_make(kit, 8 * large, 16);
    struct klp_handle memory = klp_layer_handle(layer);
    assert_true(klp_memory_write(kit->env, memory, large + 4 * PAGE, "a", 1, NULL));
    assert_true(klp_memory_write(kit->env, memory, large + 9 * PAGE, "b", 1, NULL));
    assert_true(klp_memory_write(kit->env, memory, 7 * large + 15 * PAGE, "c", 1, NULL));
    struct walked walked = walk(layer);
    assert_int_equal(walked.count, 2);
    assert_int_equal(walked.offsets[0], large);
    assert_int_equal(walked.sizes[0], large);
    assert_int_equal(walked.offsets[1], 7 * large);
    assert_int_equal(walked.sizes[1], large);
    klp_layer_close(layer);
}

static void test_vm_layer__several_cursors(void **state)
{
    struct kit *kit = *state;
    struct klp_layer *layer = layer_make(kit, 16 * PAGE, 12);
    struct klp_run a, b;
    layer_put(layer, PAGE, 1, PAGE);
    layer_put(layer, 8 * PAGE, 2, PAGE);
    assert_true(klp_layer_seal(layer, NULL));
    KLP_AUTO(layer_cursor) struct klp_layer_cursor *one = klp_layer_walk(layer);
    KLP_AUTO(layer_cursor) struct klp_layer_cursor *two = klp_layer_walk(layer);
    assert_true(klp_layer_next_run(one, &a, NULL));
    assert_true(klp_layer_next_run(one, &a, NULL));
    assert_true(klp_layer_next_run(two, &b, NULL));
    assert_int_equal(a.data[0], 2);
    assert_int_equal(b.data[0], 1);
    klp_layer_close(layer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        KIT_TEST(test_vm_layer__shapes),
        KIT_TEST(test_vm_layer__bounds_and_whole_pages),
        KIT_TEST(test_vm_layer__what_is_written_is_read),
        KIT_TEST(test_vm_layer__sealed_is_final),
        KIT_TEST(test_vm_layer__strangers_memory),
        KIT_TEST(test_vm_layer__runs_are_what_was_written),
        KIT_TEST(test_vm_layer__long_runs_come_in_blocks),
        KIT_TEST(test_vm_layer__large_pages_are_whole),
        KIT_TEST(test_vm_layer__several_cursors),
    };
    return cmocka_run_group_tests_name("vm_layer", tests, NULL, NULL);
}
