/* SPDX-License-Identifier: Apache-2.0 */
/* The mock guest's engine, bytes in and bytes out: archives in and out of its files, and the main
 * process with its log. */
#include "vm_mock_engine_kit.h"

/* ---- files */

/* Into rig->out. */
static uint16_t get(struct rig *rig, const char *path)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(512);
    klp_field_append_text(&body, KLP_TAG_PATH, path);
    return ask(rig, KLP_GUEST_GET, &body);
}

/* The archive in rig->out as text: "name size kind" a line, in its order. */
static const char *listed(struct rig *rig)
{
    static char out[8192];
    size_t at = 0;
    struct klp_tar_reader *reader = klp_tar_reader_create(64 * KLP_MIB);
    struct klp_bytes input = klp_buf_view(&rig->out), content;
    const struct klp_tar_entry *entry;
    out[0] = 0;
    for (;;) {
        enum klp_tar_event event = klp_tar_next(reader, &input, &entry, &content, NULL);
        assert_int_not_equal(event, KLP_TAR_BAD);
        assert_int_not_equal(event, KLP_TAR_NEED_MORE);
        if (event == KLP_TAR_END)
            break;
        if (event == KLP_TAR_ENTRY)
            at += klp_format(out + at, sizeof(out) - at, "%s %llu %d\n", entry->path,
                             (unsigned long long)entry->size, (int)entry->kind);
    }
    klp_tar_reader_destroy(reader);
    return out;
}

static void test_vm_mock_engine_files__files_go_in_and_come_out(void **state)
{
    struct rig *rig = *state;
    tree_put(rig);
    assert_string_equal(say(rig, "@cat /w/d/a"), "hello");
    assert_string_equal(say(rig, "@cat w//./d/a"), "hello");
    assert_string_equal(say(rig, "@cat /w/d/none"), "");
    assert_int_equal(get(rig, "/w/d"), KLP_GUEST_DONE);
    assert_string_equal(listed(rig), "d 0 1\nd/a 5 0\nd/link 0 2\nd/none 0 0\n");
    assert_int_equal(get(rig, "/w/d/a"), KLP_GUEST_DONE);
    assert_string_equal(listed(rig), "a 5 0\n");
    assert_int_equal(get(rig, "/nothing"), KLP_GUEST_ERROR);
    assert_string_equal(text(rig, KLP_TAG_ERROR), "not_found");
    assert_int_equal(ask(rig, KLP_GUEST_GET, NULL), KLP_GUEST_ERROR);
    assert_int_equal(ask(rig, KLP_GUEST_PUT, NULL), KLP_GUEST_ERROR);
    assert_int_equal(ask(rig, KLP_GUEST_CHECKPOINT, NULL), KLP_GUEST_DONE);
    assert_string_equal(listed(rig), "w/d 0 1\nw/d/a 5 0\nw/d/link 0 2\nw/d/none 0 0\nw/dd 1 0\n");
}

static void test_vm_mock_engine_files__an_empty_checkpoint_is_one(void **state)
{
    struct rig *rig = *state;
    assert_int_equal(ask(rig, KLP_GUEST_CHECKPOINT, NULL), KLP_GUEST_DONE);
    assert_string_equal(listed(rig), "");
}

static void pattern(uint8_t *bytes, size_t size, unsigned seed)
{
    for (size_t i = 0; i < size; i++)
        bytes[i] = (uint8_t)(i * 31 + i / 977 + seed);
}

static void rig_init_large(struct rig *rig, uint8_t **memory)
{
    *memory = calloc(1, 64 * KLP_MIB);
    rig_init(rig, *memory, 64 * KLP_MIB, PAGE);
    hello(rig);
}

static void test_vm_mock_engine_files__a_large_file_passes_whole(void **state)
{
    struct rig rig;
    uint8_t *memory, *bytes = malloc(9 * KLP_MIB + 13);
    (void)state;
    rig_init_large(&rig, &memory);
    pattern(bytes, 9 * KLP_MIB + 13, 1);
    assert_int_equal(put_file(&rig, "big", bytes, 9 * KLP_MIB + 13), KLP_GUEST_DONE);
    exec_begin(&rig, "@cat /big", 0);
    assert_int_equal(finish(&rig, 1000), KLP_GUEST_EXIT);
    assert_int_equal(rig.out.size, 9 * KLP_MIB + 13);
    assert_memory_equal(rig.out.data, bytes, rig.out.size);
    assert_int_equal(get(&rig, "/big"), KLP_GUEST_DONE);
    assert_string_equal(listed(&rig), "big 9437197 0\n");
    assert_memory_equal(rig.out.data + KLP_TAR_BLOCK, bytes, 9 * KLP_MIB + 13);
    rig_finish(&rig);
    free(memory);
    free(bytes);
}

static void test_vm_mock_engine_files__a_replaced_file_gives_its_room_back(void **state)
{
    struct rig *rig = *state;
    size_t size = 3 * KLP_MIB; /* the area has less than 4 */
    uint8_t *bytes = malloc(size);
    assert_int_equal(put_file(rig, "keep", "kept", 4), KLP_GUEST_DONE);
    for (unsigned i = 0; i < 5; i++) {
        pattern(bytes, size, i);
        assert_int_equal(put_file(rig, "large", bytes, size), KLP_GUEST_DONE);
        assert_int_equal(put_file(rig, "small", bytes, 100 + i), KLP_GUEST_DONE);
        exec_begin(rig, "@cat /large", 0);
        assert_int_equal(finish(rig, 500), KLP_GUEST_EXIT);
        assert_int_equal(rig->out.size, size);
        assert_memory_equal(rig->out.data, bytes, size);
        assert_string_equal(say(rig, "@cat /keep"), "kept");
    }
    pattern(bytes, size, 4);
    assert_int_equal(put_file(rig, "second", bytes, size), KLP_GUEST_ERROR); /* that is too much */
    assert_string_equal(text(rig, KLP_TAG_ERROR), "no_space");
    exec_begin(rig, "@cat /large", 0);
    finish(rig, 500);
    assert_memory_equal(rig->out.data, bytes, size); /* and nothing else was harmed */
    free(bytes);
}

static void test_vm_mock_engine_files__the_table_of_files_is_finite(void **state)
{
    struct rig *rig = *state;
    char name[16];
    for (unsigned i = 0; i < MOCK_FILES_MAX; i++) {
        klp_format(name, sizeof(name), "f%u", i);
        assert_int_equal(put_file(rig, name, name, 2), KLP_GUEST_DONE);
    }
    assert_int_equal(put_file(rig, "more", "x", 1), KLP_GUEST_ERROR);
    assert_string_equal(text(rig, KLP_TAG_ERROR), "no_space");
    assert_int_equal(put_file(rig, "f3", "anew", 4), KLP_GUEST_DONE);
    assert_string_equal(say(rig, "@cat /f3"), "anew");
}

/* Two archives with the same name at once, of different sizes: neither writes past its room. */
static void test_vm_mock_engine_files__two_puts_of_one_name_stay_in_bounds(void **state)
{
    struct rig *rig = *state;
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(512);
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf big = KLP_BUF_INIT(KLP_MIB),
                                                          small = KLP_BUF_INIT(KLP_MIB);
    uint8_t bytes[8192];
    memset(bytes, 'B', sizeof(bytes));
    entry_append(&big, "same", KLP_TAR_FILE, bytes, sizeof(bytes));
    entry_append(&small, "same", KLP_TAR_FILE, "s", 1);
    klp_field_append_text(&body, KLP_TAG_PATH, "/");
    uint32_t first = request(rig, KLP_GUEST_PUT, &body);
    data_put(rig, big.data, KLP_TAR_BLOCK + 100, false);
    rig_step(rig, 0);
    request(rig, KLP_GUEST_PUT, &body);
    data_put(rig, small.data, small.size, false);
    rig_step(rig, 0);
    assert_int_equal(put_file(rig, "behind", "intact", 6), KLP_GUEST_DONE);
    rig_clear(rig);
    rig->channel = first;
    data_put(rig, big.data + KLP_TAR_BLOCK + 100, big.size - KLP_TAR_BLOCK - 100, false);
    assert_int_equal(finish(rig, 5), KLP_GUEST_ERROR);
    rig->channel += 10;
    assert_string_equal(say(rig, "@cat /behind"), "intact");
    assert_string_equal(say(rig, "@cat /same"), "s");
}

static void test_vm_mock_engine_files__bad_archives_are_errors(void **state)
{
    struct rig *rig = *state;
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf tar = KLP_BUF_INIT(KLP_MIB);
    uint8_t junk[KLP_TAR_BLOCK];
    memset(junk, 0x5a, sizeof(junk));
    klp_buf_append(&tar, junk, sizeof(junk));
    assert_int_equal(put(rig, "/", &tar), KLP_GUEST_ERROR);
    assert_string_equal(text(rig, KLP_TAG_ERROR), "corrupt");
    klp_buf_clear(&tar);
    entry_append(&tar, "cut", KLP_TAR_FILE, "1234", 4);
    tar.size -= 100;
    assert_int_equal(put(rig, "/", &tar), KLP_GUEST_ERROR);
    assert_string_equal(text(rig, KLP_TAG_ERROR), "corrupt");
    assert_string_equal(say(rig, "@echo alive"), "alive\n");
}

/* ---- the main process */

static void test_vm_mock_engine_files__a_main_process_runs_and_ends(void **state)
{
    struct rig *rig = *state;
    assert_int_equal(main_status(rig), KLP_MAIN_NONE);
    log_follow(rig, 0, true);
    assert_int_equal(finish(rig, 5), KLP_GUEST_DONE); /* there is nothing to follow */
    assert_int_equal(main_start(rig, "@sleep 0.1"), 0);
    assert_int_equal(main_status(rig), KLP_MAIN_RUNNING);
    assert_int_equal(main_start(rig, "@sleep 1"), KLP_GUEST_ERROR); /* one at a time */
    log_follow(rig, 0, true);
    finish(rig, 10);
    assert_int_equal(rig->end, 0);
    assert_int_equal(finish(rig, 1000), KLP_GUEST_EXIT);
    assert_int_equal(number(rig, KLP_TAG_CODE), 0);
    assert_int_equal(main_status(rig), KLP_MAIN_EXITED);
    main_start(rig, "@exit 3");
    assert_int_equal(main_status(rig), KLP_MAIN_EXITED);
    assert_int_equal(number(rig, KLP_TAG_CODE), 3);
    main_start(rig, "@cat");
    assert_int_equal(main_status(rig), KLP_MAIN_RUNNING);
    signal_send(rig, 0, 28);
    assert_int_equal(main_status(rig), KLP_MAIN_RUNNING);
    signal_send(rig, 0, 15);
    assert_int_equal(main_status(rig), KLP_MAIN_EXITED);
    assert_int_equal(number(rig, KLP_TAG_SIGNAL), 15);
    assert_int_equal(main_start(rig, "python3 agent.py"), KLP_GUEST_ERROR);
    assert_string_equal(text(rig, KLP_TAG_ERROR), "no_command");
}

static void test_vm_mock_engine_files__a_main_process_sees_its_surroundings(void **state)
{
    struct rig *rig = *state;
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(4096);
    klp_field_append_text(&body, KLP_TAG_ENV, "A=1");
    assert_int_equal(ask(rig, KLP_GUEST_SETUP, &body), KLP_GUEST_DONE);
    klp_buf_clear(&body);
    words_append(&body, "@env");
    klp_field_append_text(&body, KLP_TAG_ENV, "Z=2");
    ask(rig, KLP_GUEST_MAIN_START, &body);
    log_follow(rig, 0, false);
    assert_int_equal(finish(rig, 5), KLP_GUEST_EXIT);
    assert_string_equal(klp_buf_text(&rig->out), "A=1\nZ=2\n");
}

static void test_vm_mock_engine_files__the_log_keeps_the_last_bytes(void **state)
{
    struct rig *rig = *state;
    main_start(rig, "@flood 100000");
    log_follow(rig, 0, false);
    assert_int_equal(finish(rig, 20), KLP_GUEST_EXIT);
    assert_int_equal(rig->out.size, MOCK_LOG_SIZE);
    for (size_t i = 0; i < rig->out.size; i++)
        assert_int_equal(rig->out.data[i], (100000 - MOCK_LOG_SIZE + i) % 251);
    main_status(rig);
    assert_int_equal(number(rig, KLP_TAG_BYTES), 100000);
    assert_int_equal(number(rig, KLP_TAG_OFFSET), 100000 - MOCK_LOG_SIZE);
    log_follow(rig, 99990, false);
    assert_int_equal(finish(rig, 5), KLP_GUEST_EXIT);
    assert_int_equal(rig->out.size, 10);
    log_follow(rig, UINT64_MAX, false);
    assert_int_equal(finish(rig, 5), KLP_GUEST_EXIT);
    assert_int_equal(rig->out.size, 0);
    main_start(rig, "@flood 1099511627776"); /* at once, whatever its size */
    main_status(rig);
    assert_int_equal(number(rig, KLP_TAG_BYTES), 1099511627776ull + 100000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RIG_TEST(test_vm_mock_engine_files__files_go_in_and_come_out),
        RIG_TEST(test_vm_mock_engine_files__an_empty_checkpoint_is_one),
        RIG_TEST(test_vm_mock_engine_files__a_large_file_passes_whole),
        RIG_TEST(test_vm_mock_engine_files__a_replaced_file_gives_its_room_back),
        RIG_TEST(test_vm_mock_engine_files__the_table_of_files_is_finite),
        RIG_TEST(test_vm_mock_engine_files__two_puts_of_one_name_stay_in_bounds),
        RIG_TEST(test_vm_mock_engine_files__bad_archives_are_errors),
        RIG_TEST(test_vm_mock_engine_files__a_main_process_runs_and_ends),
        RIG_TEST(test_vm_mock_engine_files__a_main_process_sees_its_surroundings),
        RIG_TEST(test_vm_mock_engine_files__the_log_keeps_the_last_bytes),
    };
    return cmocka_run_group_tests_name("vm_mock_engine_files", tests, NULL, NULL);
}
