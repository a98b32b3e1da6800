/* SPDX-License-Identifier: Apache-2.0 */
/* PUT and GET of the agent: what goes in comes out, and no archive writes outside its folder. */
#include "guest_kit.h"

static struct client the_client;

static int setup(void **state)
{
    client_open(&the_client, NULL);
    *state = &the_client;
    return 0;
}

static int teardown(void **state)
{
    client_stop(*state);
    return 0;
}

/* Sends an archive within its credit; the frame that ends the channel is read by the caller. */
static void put_send(struct client *c, uint32_t channel, const void *data, size_t size)
{
    size_t credit = KLP_GUEST_CREDIT, sent = 0;
    struct client_frame frame;
    while (sent < size) {
        size_t part = size - sent < 20000 ? size - sent : 20000;
        if (credit < part) {
            client_expect(c, KLP_GUEST_CREDIT_GRANT, channel, &frame);
            credit += client_number(&frame, KLP_TAG_BYTES);
            continue;
        }
        client_send_data(c, channel, (const uint8_t *)data + sent, part, false);
        sent += part;
        credit -= part;
    }
    client_send_data(c, channel, NULL, 0, true);
}

/* Takes the archive; adds its end. */
static void put_result(struct client *c, const char *path, struct klp_buf *tar,
                       struct client_result *result)
{
    klp_tar_end_append(tar);
    assert_false(tar->over_limit);
    uint32_t channel = client_ask_path(c, KLP_GUEST_PUT, path);
    put_send(c, channel, tar->data, tar->size);
    client_collect(c, channel, result);
    klp_buf_finish(tar);
}

static void put_fine(struct client *c, const char *path, struct klp_buf *tar)
{
    struct client_result result;
    put_result(c, path, tar, &result);
    if (result.type != KLP_GUEST_DONE)
        fail_msg("%s: %s", result.error, result.text);
    client_result_finish(&result);
}

static void put_refused(struct client *c, const char *path, struct klp_buf *tar, const char *code)
{
    struct client_result result;
    put_result(c, path, tar, &result);
    assert_int_equal(result.type, KLP_GUEST_ERROR);
    assert_string_equal(result.error, code);
    assert_true(strlen(result.text) > 0);
    client_result_finish(&result);
}

static void get_fine(struct client *c, const char *path, struct client_result *result)
{
    client_collect(c, client_ask_path(c, KLP_GUEST_GET, path), result);
    if (result->type != KLP_GUEST_DONE)
        fail_msg("%s: %s", result->error, result->text);
}

/* "path kind mode size;" of every entry, in the archive's order; contents end to end in *contents.
 */
static void tar_list(const struct klp_buf *tar, struct klp_buf *names, struct klp_buf *contents)
{
    struct klp_tar_reader *reader = klp_tar_reader_create(UINT64_MAX);
    struct klp_bytes input = klp_buf_view(tar), content;
    const struct klp_tar_entry *entry;
    struct kelpie_error *err = NULL;
    enum klp_tar_event event;
    do {
        event = klp_tar_next(reader, &input, &entry, &content, &err);
        if (event == KLP_TAR_BAD)
            fail_msg("%s", kelpie_error_message(err));
        assert_int_not_equal(event, KLP_TAR_NEED_MORE); /* it has to have an end */
        if (event == KLP_TAR_ENTRY)
            klp_buf_append_format(names, "%s %d %x %zu;", entry->path, (int)entry->kind,
                                  entry->mode, (size_t)entry->size);
        if (event == KLP_TAR_CONTENT)
            klp_buf_append(contents, content.data, content.size);
    } while (event != KLP_TAR_END);
    klp_tar_reader_destroy(reader);
}

static struct klp_buf tar_new(void)
{
    return KLP_BUF_INIT(CLIENT_OUTPUT_MAX);
}

/* ---- there and back */

static void test_guest_files__put_writes_what_the_archive_says(void **state)
{
    struct client *c = *state;
    struct klp_buf tar = tar_new();
    struct stat info;
    char target[64] = "";
    client_tar_entry(&tar, KLP_TAR_DIRECTORY, "d", "", "", 0750);
    client_tar_entry(&tar, KLP_TAR_FILE, "d/file", "", "contents", 0640);
    client_tar_entry(&tar, KLP_TAR_FILE, "deep/er/made", "", "", 0755);
    client_tar_entry(&tar, KLP_TAR_SYMLINK, "d/link", "/etc/passwd", "", 0777);
    client_tar_entry(&tar, KLP_TAR_HARDLINK, "d/hard", "d/file", "", 0640);
    put_fine(c, client_path(c, "/new/folder"), &tar);
    assert_string_equal(client_read_file(client_path(c, "/new/folder/d/file")), "contents");
    assert_int_equal(stat(client_path(c, "/new/folder/d/file"), &info), 0);
    assert_int_equal(info.st_mode & 07777, 0640);
    assert_int_equal(info.st_mtime, 1000000000);
    assert_int_equal(info.st_nlink, 2);
    assert_int_equal(stat(client_path(c, "/new/folder/d"), &info), 0);
    assert_int_equal(info.st_mode & 07777, 0750);
    assert_int_equal(stat(client_path(c, "/new/folder/deep/er/made"), &info), 0);
    assert_int_equal(info.st_size, 0);
    assert_true(readlink(client_path(c, "/new/folder/d/link"), target, sizeof(target) - 1) > 0);
    assert_string_equal(target, "/etc/passwd");
}

static void test_guest_files__get_gives_a_file_or_a_tree(void **state)
{
    struct client *c = *state;
    struct client_result result;
    struct klp_buf names = tar_new(), contents = tar_new();
    client_write_file(c, "/t/one", "first", 0604);
    get_fine(c, client_path(c, "/t/one"), &result);
    tar_list(&result.out, &names, &contents);
    assert_string_equal(klp_buf_text(&names), "one 0 184 5;");
    assert_string_equal(klp_buf_text(&contents), "first");
    client_result_finish(&result);
    klp_buf_clear(&names);
    klp_buf_clear(&contents);
    assert_int_equal(symlink("nowhere", client_path(c, "/t/sym")), 0);
    assert_int_equal(mkfifo(client_path(c, "/t/fifo"), 0600), 0); /* left out, and not waited for */
    get_fine(c, client_path(c, "/t/"), &result);
    tar_list(&result.out, &names, &contents);
    assert_non_null(strstr(klp_buf_text(&names), "t 1 1ed 0;"));
    assert_non_null(strstr(klp_buf_text(&names), "t/one 0 184 5;"));
    assert_non_null(strstr(klp_buf_text(&names), "t/sym 2 1ff 0;"));
    assert_null(strstr(klp_buf_text(&names), "fifo"));
    client_result_finish(&result);
    klp_buf_finish(&names);
    klp_buf_finish(&contents);
}

/* Deep, wide and large at once, through many times the credit. */
static void test_guest_files__large_tree_survives_the_round_trip(void **state)
{
    struct client *c = *state;
    struct client_result first, second;
    struct klp_buf tar = tar_new(), names[2] = {tar_new(), tar_new()};
    struct klp_buf contents[2] = {tar_new(), tar_new()};
    char *big = klp_mem_alloc(1500001), path[600];
    memset(big, 'b', 1500000);
    client_tar_entry(&tar, KLP_TAR_FILE, "x/big", "", big, 0644);
    for (int i = 0; i < 400; i++) {
        snprintf(path, sizeof(path), "x/wide/a-name-of-some-length-%d", i);
        client_tar_entry(&tar, KLP_TAR_FILE, path, "", path, 0600);
    }
    size_t size = (size_t)snprintf(path, sizeof(path), "x");
    for (int i = 0; i < 120; i++)
        size += (size_t)snprintf(path + size, sizeof(path) - size, "/d%d", i % 10);
    client_tar_entry(&tar, KLP_TAR_FILE, path, "", "at the bottom", 0600);
    put_fine(c, client_path(c, "/from"), &tar);
    get_fine(c, client_path(c, "/from/x"), &first);
    tar_list(&first.out, &names[0], &contents[0]);
    uint32_t channel = client_ask_path(c, KLP_GUEST_PUT, client_path(c, "/to"));
    put_send(c, channel, first.out.data, first.out.size);
    struct client_result done;
    client_collect(c, channel, &done);
    assert_int_equal(done.type, KLP_GUEST_DONE);
    client_result_finish(&done);
    get_fine(c, client_path(c, "/to/x"), &second);
    tar_list(&second.out, &names[1], &contents[1]);
    assert_int_equal(names[0].size, names[1].size);
    assert_int_equal(contents[0].size, contents[1].size);
    assert_in_range(contents[0].size, 1500000, 1600000);
    assert_non_null(strstr(klp_buf_text(&names[1]), path));
    client_result_finish(&first);
    client_result_finish(&second);
    for (int i = 0; i < 2; i++) {
        klp_buf_finish(&names[i]);
        klp_buf_finish(&contents[i]);
    }
    klp_mem_free(big);
}

static void test_guest_files__put_replaces_files_not_their_targets(void **state)
{
    struct client *c = *state;
    struct klp_buf tar = tar_new();
    client_write_file(c, "/outside", "untouched", 0600);
    client_write_file(c, "/in/hard-source", "shared", 0600);
    assert_int_equal(link(client_path(c, "/in/hard-source"), client_path(c, "/in/hard")), 0);
    assert_int_equal(symlink(client_path(c, "/outside"), client_path(c, "/in/soft")), 0);
    client_tar_entry(&tar, KLP_TAR_FILE, "soft", "", "new", 0600);
    client_tar_entry(&tar, KLP_TAR_FILE, "hard", "", "new", 0600);
    put_fine(c, client_path(c, "/in"), &tar);
    assert_string_equal(client_read_file(client_path(c, "/outside")), "untouched");
    assert_string_equal(client_read_file(client_path(c, "/in/soft")), "new");
    assert_string_equal(client_read_file(client_path(c, "/in/hard-source")), "shared");
    assert_string_equal(client_read_file(client_path(c, "/in/hard")), "new");
}

/* ---- hostile archives */

static void test_guest_files__links_of_the_archive_are_not_followed(void **state)
{
    struct client *c = *state;
    struct klp_buf tar = tar_new();
    mkdir(client_path(c, "/victim"), 0755);
    client_tar_entry(&tar, KLP_TAR_SYMLINK, "way", client_path(c, "/victim"), "", 0777);
    client_tar_entry(&tar, KLP_TAR_FILE, "way/owned", "", "x", 0600);
    put_refused(c, client_path(c, "/in"), &tar, "denied");
    tar = tar_new();
    client_tar_entry(&tar, KLP_TAR_SYMLINK, "up", "..", "", 0777);
    client_tar_entry(&tar, KLP_TAR_FILE, "up/owned", "", "x", 0600);
    put_refused(c, client_path(c, "/in"), &tar, "denied");
    tar = tar_new();
    client_tar_entry(&tar, KLP_TAR_SYMLINK, "dir", client_path(c, "/victim"), "", 0777);
    client_tar_entry(&tar, KLP_TAR_DIRECTORY, "dir", "", "", 0777);
    put_refused(c, client_path(c, "/in"), &tar, "denied");
    assert_string_equal(client_read_file(client_path(c, "/victim/owned")), "");
    assert_string_equal(client_read_file(client_path(c, "/owned")), "");
    struct stat info;
    assert_int_equal(stat(client_path(c, "/victim"), &info), 0);
    assert_int_equal(info.st_mode & 0777, 0755);
}

static void test_guest_files__links_that_were_there_are_not_followed(void **state)
{
    struct client *c = *state;
    struct klp_buf tar = tar_new();
    mkdir(client_path(c, "/victim"), 0755);
    client_write_file(c, "/in/x", "", 0600);
    assert_int_equal(symlink("../victim", client_path(c, "/in/way")), 0);
    client_tar_entry(&tar, KLP_TAR_FILE, "way/owned", "", "x", 0600);
    put_refused(c, client_path(c, "/in"), &tar, "denied");
    assert_string_equal(client_read_file(client_path(c, "/victim/owned")), "");
}

static void test_guest_files__hard_links_stay_inside(void **state)
{
    struct client *c = *state;
    struct klp_buf tar = tar_new();
    client_write_file(c, "/secret", "secret", 0600);
    client_tar_entry(&tar, KLP_TAR_SYMLINK, "s", client_path(c, "/secret"), "", 0777);
    client_tar_entry(&tar, KLP_TAR_HARDLINK, "h", "s", "", 0600);
    put_refused(c, client_path(c, "/in"), &tar, "denied");
    tar = tar_new();
    client_tar_entry(&tar, KLP_TAR_SYMLINK, "d", c->root, "", 0777);
    client_tar_entry(&tar, KLP_TAR_HARDLINK, "h", "d/secret", "", 0600);
    put_refused(c, client_path(c, "/in"), &tar, "denied");
    tar = tar_new();
    client_tar_entry(&tar, KLP_TAR_HARDLINK, "h", "nothing", "", 0600);
    put_refused(c, client_path(c, "/in"), &tar, "not_found");
    assert_string_equal(client_read_file(client_path(c, "/in/h")), "");
}

/* The writer refuses such names, so they are put into the header by hand. */
static void name_patch(struct klp_buf *tar, const char *name)
{
    unsigned sum = 0;
    memset(tar->data, 0, 100);
    memcpy(tar->data, name, strlen(name));
    memset(tar->data + 148, ' ', 8);
    for (size_t i = 0; i < KLP_TAR_BLOCK; i++)
        sum += tar->data[i];
    snprintf((char *)tar->data + 148, 8, "%06o", sum);
    tar->data[155] = ' ';
}

static void test_guest_files__names_that_lead_out_are_refused(void **state)
{
    struct client *c = *state;
    static const char *const names[] = {"../owned", "a/../../owned", "..", "a/.."};
    for (size_t i = 0; i < KLP_COUNT(names); i++) {
        struct klp_buf tar = tar_new();
        client_tar_entry(&tar, KLP_TAR_FILE, "placeholder", "", "x", 0600);
        name_patch(&tar, names[i]);
        put_refused(c, client_path(c, "/in"), &tar, "corrupt");
    }
    assert_string_equal(client_read_file(client_path(c, "/owned")), "");
    /* An absolute name counts from the folder. */
    struct klp_buf tar = tar_new();
    client_tar_entry(&tar, KLP_TAR_FILE, "placeholder", "", "inside", 0600);
    name_patch(&tar, "/absolute");
    put_fine(c, client_path(c, "/in"), &tar);
    assert_string_equal(client_read_file(client_path(c, "/in/absolute")), "inside");
}

static void test_guest_files__setuid_and_devices_do_not_arrive(void **state)
{
    struct client *c = *state;
    struct klp_buf tar = tar_new();
    struct stat info;
    client_tar_entry(&tar, KLP_TAR_FILE, "suid", "", "x", 0755);
    memcpy(tar.data + 100, "0006755", 7); /* mode */
    name_patch(&tar, "suid");
    size_t at = tar.size;
    client_tar_entry(&tar, KLP_TAR_DIRECTORY, "device", "", "", 0600);
    struct klp_buf device = {.data = tar.data + at, .size = KLP_TAR_BLOCK};
    device.data[156] = '3'; /* a character device */
    name_patch(&device, "device");
    put_fine(c, client_path(c, "/in"), &tar);
    assert_int_equal(stat(client_path(c, "/in/suid"), &info), 0);
    assert_int_equal(info.st_mode & 07777, 0755);
    assert_int_equal(lstat(client_path(c, "/in/device"), &info), -1);
}

static void test_guest_files__cut_and_broken_archives_are_refused(void **state)
{
    struct client *c = *state;
    struct klp_buf tar = tar_new();
    struct client_result result;
    client_tar_entry(&tar, KLP_TAR_FILE, "f", "", "contents", 0600);
    const size_t cuts[] = {0, 1, 511, 512, 515, 1024};
    for (size_t i = 0; i < KLP_COUNT(cuts); i++) {
        uint32_t channel = client_ask_path(c, KLP_GUEST_PUT, client_path(c, "/in"));
        client_send_data(c, channel, tar.data, cuts[i], true);
        client_collect(c, channel, &result);
        assert_string_equal(result.error, "corrupt");
        client_result_finish(&result);
    }
    tar.data[0] ^= 1; /* checksum */
    put_refused(c, client_path(c, "/in"), &tar, "corrupt");
    /* More bytes of a transfer that has failed are nobody's. */
    uint32_t channel = client_ask_path(c, KLP_GUEST_PUT, client_path(c, "/in"));
    static char rubbish[2048];
    memset(rubbish, 'r', sizeof(rubbish));
    client_send_data(c, channel, rubbish, sizeof(rubbish), false);
    client_send_data(c, channel, rubbish, sizeof(rubbish), true);
    client_expect_error(c, channel, "corrupt");
    client_expect(c, KLP_GUEST_DONE, client_ask(c, KLP_GUEST_PING), NULL);
}

/* ---- refusals and ends */

static void test_guest_files__paths_that_cannot_be_used(void **state)
{
    struct client *c = *state;
    client_write_file(c, "/file", "x", 0600);
    client_expect_error(c, client_ask_path(c, KLP_GUEST_GET, "/no/such"), "not_found");
    client_expect_error(c, client_ask_path(c, KLP_GUEST_GET, "/dev/null"), "invalid");
    client_expect_error(c, client_ask_path(c, KLP_GUEST_GET, ""), "invalid");
    client_expect_error(c, client_ask_path(c, KLP_GUEST_PUT, client_path(c, "/file")), "invalid");
    client_expect_error(c, client_ask_path(c, KLP_GUEST_PUT, client_path(c, "/file/x")),
                        "not_found");
    char *path = klp_mem_alloc(8000);
    memset(path, 'p', 7999);
    path[0] = '/';
    client_expect_error(c, client_ask_path(c, KLP_GUEST_GET, path), "invalid");
    klp_mem_free(path);
}

static void test_guest_files__relative_paths_start_at_the_workspace(void **state)
{
    struct client *c = *state;
    struct klp_buf tar = tar_new(), body = KLP_BUF_INIT(KLP_FRAME_BODY_MAX);
    klp_field_append_text(&body, KLP_TAG_WORKDIR, client_path(c, "/ws"));
    client_send_body(c, KLP_GUEST_SETUP, ++c->last_channel, &body);
    client_expect(c, KLP_GUEST_DONE, c->last_channel, NULL);
    client_tar_entry(&tar, KLP_TAR_FILE, "f", "", "here", 0600);
    put_fine(c, "sub", &tar);
    assert_string_equal(client_read_file(client_path(c, "/ws/sub/f")), "here");
    body = KLP_BUF_INIT(KLP_FRAME_BODY_MAX);
    klp_field_append_text(&body, KLP_TAG_WORKDIR, "relative");
    client_send_body(c, KLP_GUEST_SETUP, ++c->last_channel, &body);
    client_expect_error(c, c->last_channel, "invalid");
}

static void test_guest_files__transfers_are_limited_and_closed(void **state)
{
    struct client *c = *state;
    uint32_t channels[8];
    size_t descriptors = client_descriptors(c);
    for (size_t i = 0; i < KLP_COUNT(channels); i++)
        channels[i] = client_ask_path(c, KLP_GUEST_PUT, client_path(c, "/in"));
    client_expect_error(c, client_ask_path(c, KLP_GUEST_PUT, client_path(c, "/in")), "busy");
    client_expect_error(c, client_ask_path(c, KLP_GUEST_GET, c->root), "busy");
    for (size_t i = 0; i < KLP_COUNT(channels); i++)
        client_send_empty(c, KLP_GUEST_CLOSE, channels[i]);
    struct client_result result;
    get_fine(c, c->root, &result);
    client_result_finish(&result);
    assert_int_equal(client_descriptors(c), descriptors);
    /* A new session ends a transfer that waits for credit. */
    struct klp_buf tar = tar_new();
    char *big = klp_mem_alloc(400001);
    memset(big, 'b', 400000);
    client_tar_entry(&tar, KLP_TAR_FILE, "big", "", big, 0600);
    put_fine(c, client_path(c, "/in"), &tar);
    client_ask_path(c, KLP_GUEST_GET, client_path(c, "/in/big"));
    client_pause_ms(50);
    client_hello(c);
    assert_int_equal(client_descriptors(c), descriptors);
    klp_mem_free(big);
}

#define TEST(name) cmocka_unit_test_setup_teardown(test_guest_files__##name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(put_writes_what_the_archive_says),
        TEST(get_gives_a_file_or_a_tree),
        TEST(large_tree_survives_the_round_trip),
        TEST(put_replaces_files_not_their_targets),
        TEST(links_of_the_archive_are_not_followed),
        TEST(links_that_were_there_are_not_followed),
        TEST(hard_links_stay_inside),
        TEST(names_that_lead_out_are_refused),
        TEST(setuid_and_devices_do_not_arrive),
        TEST(cut_and_broken_archives_are_refused),
        TEST(paths_that_cannot_be_used),
        TEST(relative_paths_start_at_the_workspace),
        TEST(transfers_are_limited_and_closed),
    };
    return cmocka_run_group_tests_name("guest_files", tests, NULL, NULL);
}
