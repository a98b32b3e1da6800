/* SPDX-License-Identifier: Apache-2.0 */
/* UNIQUE below a test root: which files change in which case, and an honest receipt for what a test
 * on a host may not do. The kernel's part is proven in a real guest. */
#include "guest_kit.h"

#define OLD_ID "0123456789abcdef0123456789abcdef\n"

struct receipt {
    uint16_t result[KLP_ITEM_COUNT];
    struct klp_buf evidence[KLP_ITEM_COUNT];
};

static struct client the_client;

static int setup(void **state)
{
    client_open(&the_client, NULL);
    client_write_file(&the_client, "/etc/machine-id", OLD_ID, 0444);
    client_write_file(&the_client, "/etc/hostname", "old\n", 0644);
    *state = &the_client;
    return 0;
}

static int teardown(void **state)
{
    client_stop(*state);
    return 0;
}

static struct klp_buf request(enum klp_unique_case kind, uint8_t generation)
{
    struct klp_buf body = KLP_BUF_INIT(KLP_FRAME_BODY_MAX);
    uint8_t bytes[64];
    memset(bytes, generation, sizeof(bytes));
    klp_field_append_u64(&body, KLP_TAG_CASE, kind);
    klp_field_append(&body, KLP_TAG_GENERATION, bytes, 16);
    klp_field_append(&body, KLP_TAG_ENTROPY, bytes, 64);
    klp_field_append_u64(&body, KLP_TAG_WALL_NS, 1700000000000000000u);
    klp_field_append_text(&body, KLP_TAG_HOSTNAME, "new-name");
    klp_field_append(&body, KLP_TAG_MACHINE_ID, bytes, 16);
    klp_field_append(&body, KLP_TAG_BOOT_ID, bytes, 16);
    return body;
}

static void receipt_take(struct client *c, uint32_t channel, struct receipt *receipt)
{
    struct client_frame frame;
    struct klp_field field;
    size_t at = 0;
    client_expect(c, KLP_GUEST_RECEIPT, channel, &frame);
    memset(receipt, 0, sizeof(*receipt));
    while (klp_field_next(frame.body, &at, &field, NULL) > 0) {
        struct klp_reader reader = {.data = field.data.data, .size = field.data.size};
        assert_int_equal(field.tag, KLP_TAG_ITEM);
        uint16_t item = klp_read_u16(&reader);
        assert_in_range(item, 1, KLP_ITEM_COUNT - 1);
        assert_int_equal(receipt->result[item], 0); /* once each */
        receipt->result[item] = klp_read_u16(&reader);
        receipt->evidence[item] = KLP_BUF_INIT(1024);
        klp_buf_append(&receipt->evidence[item], field.data.data + 4, field.data.size - 4);
        assert_in_range(field.data.size, 4, 68);
    }
    for (int item = 1; item < KLP_ITEM_COUNT; item++)
        assert_in_range(receipt->result[item], KLP_UNIQUE_DONE, KLP_UNIQUE_FAILED);
}

static void receipt_finish(struct receipt *receipt)
{
    for (int item = 1; item < KLP_ITEM_COUNT; item++)
        klp_buf_finish(&receipt->evidence[item]);
}

static void unique(struct client *c, enum klp_unique_case kind, uint8_t generation,
                   struct receipt *receipt)
{
    struct klp_buf body = request(kind, generation);
    client_send_body(c, KLP_GUEST_UNIQUE, ++c->last_channel, &body);
    receipt_take(c, c->last_channel, receipt);
}

static uint64_t counter_read(struct client *c)
{
    uint64_t value = 0;
    int fd = open(client_path(c, "/run/kelpie/generation-counter"), O_RDONLY);
    assert_true(fd >= 0);
    assert_int_equal(read(fd, &value, sizeof(value)), sizeof(value));
    close(fd);
    return value;
}

/* ---- the table */

static void test_guest_unique__move_keeps_the_identity(void **state)
{
    struct client *c = *state;
    struct receipt receipt;
    uint8_t id[16];
    unique(c, KLP_UNIQUE_MOVE, 0x11, &receipt);
    assert_int_equal(receipt.result[KLP_ITEM_GENERATION], KLP_UNIQUE_DONE);
    assert_int_equal(receipt.evidence[KLP_ITEM_GENERATION].size, 16);
    assert_int_equal(receipt.evidence[KLP_ITEM_GENERATION].data[0], 0x11);
    assert_int_equal(receipt.result[KLP_ITEM_MACHINE_ID], KLP_UNIQUE_NOT_APPLICABLE);
    assert_true(klp_hex_decode(OLD_ID, 32, id, sizeof(id)));
    assert_int_equal(receipt.evidence[KLP_ITEM_MACHINE_ID].size, 16);
    assert_memory_equal(receipt.evidence[KLP_ITEM_MACHINE_ID].data, id, 16);
    assert_string_equal(client_read_file(client_path(c, "/etc/machine-id")), OLD_ID);
    assert_string_equal(client_read_file(client_path(c, "/etc/hostname")), "old\n");
    assert_int_equal(receipt.result[KLP_ITEM_HOOKS], KLP_UNIQUE_NOT_APPLICABLE);
    receipt_finish(&receipt);
}

static void test_guest_unique__fork_gets_a_new_identity(void **state)
{
    struct client *c = *state;
    struct receipt receipt;
    unique(c, KLP_UNIQUE_FORK, 0x22, &receipt);
    assert_int_equal(receipt.result[KLP_ITEM_MACHINE_ID], KLP_UNIQUE_DONE);
    assert_int_equal(receipt.evidence[KLP_ITEM_MACHINE_ID].data[15], 0x22);
    assert_string_equal(client_read_file(client_path(c, "/etc/machine-id")),
                        "22222222222222222222222222222222\n");
    assert_string_equal(client_read_file(client_path(c, "/etc/hostname")), "new-name\n");
    receipt_finish(&receipt);
    /* Without the id it needs, the item fails; it is never skipped. */
    struct klp_buf body = KLP_BUF_INIT(KLP_FRAME_BODY_MAX);
    uint8_t bytes[64] = {3};
    klp_field_append_u64(&body, KLP_TAG_CASE, KLP_UNIQUE_FORK);
    klp_field_append(&body, KLP_TAG_GENERATION, bytes, 16);
    klp_field_append(&body, KLP_TAG_ENTROPY, bytes, 64);
    client_send_body(c, KLP_GUEST_UNIQUE, ++c->last_channel, &body);
    receipt_take(c, c->last_channel, &receipt);
    assert_int_equal(receipt.result[KLP_ITEM_MACHINE_ID], KLP_UNIQUE_FAILED);
    receipt_finish(&receipt);
}

static void test_guest_unique__nothing_of_the_host_is_claimed(void **state)
{
    struct client *c = *state;
    struct receipt receipt[2];
    char before[80], after[80];
    assert_int_equal(gethostname(before, sizeof(before)), 0);
    unique(c, KLP_UNIQUE_FORK, 0x33, &receipt[0]);
    unique(c, KLP_UNIQUE_FORK, 0x33, &receipt[1]);
    static const int items[] = {KLP_ITEM_KERNEL_RNG, KLP_ITEM_HWRNG, KLP_ITEM_CLOCK,
                                KLP_ITEM_BOOT_ID, KLP_ITEM_HOSTNAME};
    for (size_t i = 0; i < KLP_COUNT(items); i++)
        assert_int_equal(receipt[0].result[items[i]], KLP_UNIQUE_NOT_APPLICABLE);
    struct klp_buf *samples[] = {&receipt[0].evidence[KLP_ITEM_KERNEL_RNG],
                                 &receipt[1].evidence[KLP_ITEM_KERNEL_RNG]};
    assert_int_equal(samples[0]->size, 32);
    assert_memory_not_equal(samples[0]->data, samples[1]->data, 32);
    assert_int_equal(gethostname(after, sizeof(after)), 0);
    assert_string_equal(before, after);
    receipt_finish(&receipt[0]);
    receipt_finish(&receipt[1]);
}

static void test_guest_unique__generation_is_published(void **state)
{
    struct client *c = *state;
    struct receipt receipt;
    struct client_frame ack;
    struct klp_bytes found;
    struct stat first, second;
    unique(c, KLP_UNIQUE_REWIND, 0x44, &receipt);
    receipt_finish(&receipt);
    assert_string_equal(client_read_file(client_path(c, "/run/kelpie/generation")),
                        "44444444444444444444444444444444\n");
    assert_int_equal(counter_read(c), 1);
    assert_int_equal(stat(client_path(c, "/run/kelpie/generation-counter"), &first), 0);
    unique(c, KLP_UNIQUE_MOVE, 0x55, &receipt);
    receipt_finish(&receipt);
    assert_int_equal(counter_read(c), 2);
    assert_int_equal(stat(client_path(c, "/run/kelpie/generation-counter"), &second), 0);
    assert_int_equal(first.st_ino, second.st_ino); /* whoever mapped it sees it change */
    client_hello_send(c, NULL);
    client_ack(c, &ack);
    assert_true(klp_field_find(ack.body, KLP_TAG_GENERATION, &found));
    assert_int_equal(found.size, 16);
    assert_int_equal(found.data[0], 0x55);
}

static void test_guest_unique__seed_files_and_leases_go(void **state)
{
    struct client *c = *state;
    struct receipt receipt;
    client_write_file(c, "/var/lib/systemd/random-seed", "seed", 0600);
    client_write_file(c, "/var/lib/dhcp/dhclient.eth0.leases", "lease", 0600);
    client_write_file(c, "/var/lib/dhcp/keep.conf", "keep", 0600);
    unique(c, KLP_UNIQUE_MOVE, 1, &receipt);
    assert_int_equal(receipt.result[KLP_ITEM_SEED_FILES], KLP_UNIQUE_DONE);
    assert_int_equal(access(client_path(c, "/var/lib/systemd/random-seed"), F_OK), -1);
    assert_int_equal(access(client_path(c, "/var/lib/dhcp/dhclient.eth0.leases"), F_OK), -1);
    assert_int_equal(access(client_path(c, "/var/lib/dhcp/keep.conf"), F_OK), 0);
    receipt_finish(&receipt);
    unique(c, KLP_UNIQUE_MOVE, 2, &receipt);
    assert_int_equal(receipt.result[KLP_ITEM_SEED_FILES], KLP_UNIQUE_NOT_APPLICABLE);
    receipt_finish(&receipt);
    client_write_file(c, "/var/lib/random-seed", "seed", 0600);
    client_expect(c, KLP_GUEST_DONE, client_ask(c, KLP_GUEST_FREEZE), NULL);
    assert_int_equal(access(client_path(c, "/var/lib/random-seed"), F_OK), -1); /* step 0 */
}

static void test_guest_unique__ssh_host_keys(void **state)
{
    struct client *c = *state;
    struct receipt receipt;
    unique(c, KLP_UNIQUE_FORK, 1, &receipt);
    assert_int_equal(receipt.result[KLP_ITEM_SSH_KEYS], KLP_UNIQUE_NOT_APPLICABLE);
    receipt_finish(&receipt);
    client_write_file(c, "/etc/ssh/ssh_host_ed25519_key", "old key", 0600);
    client_write_file(c, "/etc/ssh/ssh_host_ed25519_key.pub", "old key", 0644);
    client_write_file(c, "/etc/ssh/sshd_config", "stays", 0644);
    unique(c, KLP_UNIQUE_MOVE, 1, &receipt);
    assert_int_equal(receipt.result[KLP_ITEM_SSH_KEYS], KLP_UNIQUE_NOT_APPLICABLE);
    assert_string_equal(client_read_file(client_path(c, "/etc/ssh/ssh_host_ed25519_key")),
                        "old key");
    receipt_finish(&receipt);
    unique(c, KLP_UNIQUE_FORK, 1, &receipt);
    assert_string_not_equal(client_read_file(client_path(c, "/etc/ssh/ssh_host_ed25519_key")),
                            "old key");
    assert_string_equal(client_read_file(client_path(c, "/etc/ssh/sshd_config")), "stays");
    bool has_tool = access("/usr/bin/ssh-keygen", X_OK) == 0;
    assert_int_equal(receipt.result[KLP_ITEM_SSH_KEYS],
                     has_tool ? KLP_UNIQUE_DONE : KLP_UNIQUE_FAILED);
    assert_int_equal(access(client_path(c, "/etc/ssh/ssh_host_ed25519_key"), F_OK),
                     has_tool ? 0 : -1);
    receipt_finish(&receipt);
}

/* ---- hooks */

static void test_guest_unique__restore_hooks_learn_case_and_generation(void **state)
{
    struct client *c = *state;
    struct receipt receipt;
    char script[300];
    snprintf(script, sizeof(script),
             "#!/bin/sh\necho \"$KELPIE_CASE $KELPIE_GENERATION\" > %s/seen\n"
             "cat %s/run/kelpie/generation >> %s/seen\n",
             c->root, c->root, c->root);
    client_write_file(c, "/etc/kelpie/restore.d/10-look", script, 0755);
    unique(c, KLP_UNIQUE_FORK, 0x66, &receipt);
    assert_int_equal(receipt.result[KLP_ITEM_HOOKS], KLP_UNIQUE_DONE);
    assert_string_equal(klp_buf_text(&receipt.evidence[KLP_ITEM_HOOKS]), "");
    assert_string_equal(client_read_file(client_path(c, "/seen")),
                        "fork 66666666666666666666666666666666\n"
                        "66666666666666666666666666666666\n");
    receipt_finish(&receipt);
    snprintf(script, sizeof(script), "#!/bin/sh\ntouch %s/run/kelpie/reseeded\n", c->root);
    client_write_file(c, "/etc/kelpie/restore.d/20-reseed", script, 0755);
    unique(c, KLP_UNIQUE_MOVE, 0x67, &receipt);
    assert_string_equal(klp_buf_text(&receipt.evidence[KLP_ITEM_HOOKS]), "reseeded");
    receipt_finish(&receipt);
    client_write_file(c, "/etc/kelpie/restore.d/30-fails", "#!/bin/sh\nkill -9 $$\n", 0755);
    unique(c, KLP_UNIQUE_MOVE, 0x68, &receipt);
    assert_int_equal(receipt.result[KLP_ITEM_HOOKS], KLP_UNIQUE_FAILED);
    assert_int_equal(receipt.result[KLP_ITEM_GENERATION], KLP_UNIQUE_DONE);
    receipt_finish(&receipt);
}

static void test_guest_unique__works_while_frozen_and_thaw_waits(void **state)
{
    struct client *c = *state;
    struct receipt receipt;
    client_write_file(c, "/etc/kelpie/restore.d/slow", "#!/bin/sh\nsleep 0.3\n", 0755);
    client_expect(c, KLP_GUEST_DONE, client_ask(c, KLP_GUEST_FREEZE), NULL);
    struct klp_buf body = request(KLP_UNIQUE_MOVE, 1);
    client_send_body(c, KLP_GUEST_UNIQUE, ++c->last_channel, &body);
    uint32_t channel = c->last_channel;
    client_expect_error(c, client_ask(c, KLP_GUEST_THAW), "busy");
    body = request(KLP_UNIQUE_MOVE, 2);
    client_send_body(c, KLP_GUEST_UNIQUE, ++c->last_channel, &body);
    client_expect_error(c, c->last_channel, "busy");
    client_expect_error(c, client_exec(c, CLIENT_ARGV("@echo", "x")), "wrong_state");
    receipt_take(c, channel, &receipt);
    receipt_finish(&receipt);
    client_expect_error(c, client_exec(c, CLIENT_ARGV("@echo", "x")), "wrong_state");
    client_expect(c, KLP_GUEST_DONE, client_ask(c, KLP_GUEST_THAW), NULL);
    client_check_output(c, CLIENT_ARGV("@echo", "x"), "x\n");
}

/* ---- bad requests */

static void refused(struct client *c, struct klp_buf *body)
{
    client_send_body(c, KLP_GUEST_UNIQUE, ++c->last_channel, body);
    client_expect_error(c, c->last_channel, "invalid");
}

static void test_guest_unique__incomplete_requests_change_nothing(void **state)
{
    struct client *c = *state;
    struct klp_buf body = KLP_BUF_INIT(KLP_FRAME_BODY_MAX);
    uint8_t bytes[64] = {0};
    klp_field_append_u64(&body, KLP_TAG_CASE, KLP_UNIQUE_FORK);
    klp_field_append(&body, KLP_TAG_GENERATION, bytes, 16);
    klp_field_append(&body, KLP_TAG_ENTROPY, bytes, 63); /* one short */
    refused(c, &body);
    body = KLP_BUF_INIT(KLP_FRAME_BODY_MAX);
    klp_field_append_u64(&body, KLP_TAG_CASE, KLP_UNIQUE_FORK);
    klp_field_append(&body, KLP_TAG_ENTROPY, bytes, 64);
    refused(c, &body);
    for (uint64_t kind = 0; kind < 5; kind += 4) {
        body = request((enum klp_unique_case)kind, 1);
        refused(c, &body);
    }
    body = request(KLP_UNIQUE_FORK, 1);
    char name[100];
    memset(name, 'n', sizeof(name));
    body.size = 0;
    klp_field_append(&body, KLP_TAG_HOSTNAME, name, 65);
    klp_field_append_u64(&body, KLP_TAG_CASE, KLP_UNIQUE_FORK);
    klp_field_append(&body, KLP_TAG_GENERATION, bytes, 16);
    klp_field_append(&body, KLP_TAG_ENTROPY, bytes, 64);
    refused(c, &body);
    assert_string_equal(client_read_file(client_path(c, "/etc/machine-id")), OLD_ID);
    assert_int_equal(access(client_path(c, "/run/kelpie/generation"), F_OK), -1);
}

#define TEST(name) cmocka_unit_test_setup_teardown(test_guest_unique__##name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(move_keeps_the_identity),
        TEST(fork_gets_a_new_identity),
        TEST(nothing_of_the_host_is_claimed),
        TEST(generation_is_published),
        TEST(seed_files_and_leases_go),
        TEST(ssh_host_keys),
        TEST(restore_hooks_learn_case_and_generation),
        TEST(works_while_frozen_and_thaw_waits),
        TEST(incomplete_requests_change_nothing),
    };
    return cmocka_run_group_tests_name("guest_unique", tests, NULL, NULL);
}
