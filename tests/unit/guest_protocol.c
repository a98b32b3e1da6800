/* SPDX-License-Identifier: Apache-2.0 */
/* The agent's sessions and channels, spoken to well and badly: HELLO, resync, garbage, limits,
 * credit, a host that vanishes. */
#include "guest_kit.h"

static struct client the_client;

static int setup(void **state)
{
    client_start(&the_client, NULL);
    *state = &the_client;
    return 0;
}

static int setup_hello(void **state)
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

/* ---- HELLO */

static void test_guest_protocol__hello_is_answered_with_its_nonce(void **state)
{
    struct client *c = *state;
    struct client_frame ack;
    struct klp_bytes found;
    char arch[32];
    client_hello_send(c, NULL);
    client_ack(c, &ack);
    assert_int_equal(client_number(&ack, KLP_TAG_VERSION), KLP_GUEST_VERSION);
    assert_int_equal(client_number(&ack, KLP_TAG_MAIN_STATE), KLP_MAIN_NONE);
    uint64_t wanted = KLP_GUEST_CAP_EXEC | KLP_GUEST_CAP_FILES | KLP_GUEST_CAP_FREEZE |
                      KLP_GUEST_CAP_MAIN | KLP_GUEST_CAP_HOOKS;
    assert_int_equal(client_number(&ack, KLP_TAG_CAPS) & wanted, wanted);
    /* On a host it must not claim what it would refuse to do. */
    assert_int_equal(client_number(&ack, KLP_TAG_CAPS) & KLP_GUEST_CAP_RESEED, 0);
    client_text(&ack, KLP_TAG_ARCH, arch, sizeof(arch));
    assert_true(strcmp(arch, "x86_64") == 0 || strcmp(arch, "aarch64") == 0);
    assert_false(klp_field_find(ack.body, KLP_TAG_GENERATION, &found));
}

static void test_guest_protocol__first_generation_stays_until_unique(void **state)
{
    struct client *c = *state;
    struct client_frame ack;
    struct klp_bytes found;
    const uint8_t first[16] = "first generation", second[16] = "second generatio";
    client_hello_send(c, first);
    client_ack(c, &ack);
    assert_false(klp_field_find(ack.body, KLP_TAG_GENERATION, &found));
    client_hello_send(c, second);
    client_ack(c, &ack);
    assert_true(klp_field_find(ack.body, KLP_TAG_GENERATION, &found));
    assert_memory_equal(found.data, first, sizeof(first));
    client_hello_send(c, second);
    client_ack(c, &ack);
    assert_true(klp_field_find(ack.body, KLP_TAG_GENERATION, &found));
    assert_memory_equal(found.data, first, sizeof(first));
}

static void test_guest_protocol__nothing_is_done_before_hello(void **state)
{
    struct client *c = *state;
    client_ask(c, KLP_GUEST_PING);
    client_exec(c, CLIENT_ARGV("@echo", "early"));
    client_no_frame(c, 100);
    client_hello(c);
    client_no_frame(c, 50);
    client_expect(c, KLP_GUEST_DONE, client_ask(c, KLP_GUEST_PING), NULL);
}

static void test_guest_protocol__hello_without_a_proper_nonce_is_ignored(void **state)
{
    struct client *c = *state;
    const size_t sizes[] = {0, 7, 65, 900};
    uint8_t nonce[1024] = {0};
    for (size_t i = 0; i < KLP_COUNT(sizes); i++) {
        struct klp_buf body = KLP_BUF_INIT(KLP_FRAME_BODY_MAX);
        klp_field_append(&body, KLP_TAG_NONCE, nonce, sizes[i]);
        client_send_body(c, KLP_GUEST_HELLO, 0, &body);
    }
    client_send_empty(c, KLP_GUEST_HELLO, 0);
    client_no_frame(c, 100);
    client_hello(c);
}

/* ---- resync */

static void test_guest_protocol__garbage_is_scanned_for_hello(void **state)
{
    struct client *c = *state;
    uint8_t garbage[3000];
    for (size_t i = 0; i < sizeof(garbage); i++)
        garbage[i] = (uint8_t)((i * 197) ^ (i >> 3));
    client_send_bytes(c, garbage, sizeof(garbage));
    client_hello(c);
    client_send_bytes(c, "KG\x01\x00garbage that begins well", 28);
    client_hello(c);
    client_send_bytes(c, "KKKKKKKG", 8);
    client_hello(c);
    client_expect(c, KLP_GUEST_DONE, client_ask(c, KLP_GUEST_PING), NULL);
}

static void test_guest_protocol__after_garbage_only_hello_counts(void **state)
{
    struct client *c = *state;
    client_send_bytes(c, "rubbish", 7);
    client_ask(c, KLP_GUEST_PING);
    client_exec(c, CLIENT_ARGV("@echo", "x"));
    client_no_frame(c, 100);
    client_hello(c);
}

static void test_guest_protocol__half_frame_then_hello(void **state)
{
    struct client *c = *state;
    struct klp_buf frame = KLP_BUF_INIT(KLP_MIB);
    uint8_t body[60000];
    memset(body, 'x', sizeof(body));
    klp_guest_frame_append(&frame, KLP_GUEST_DATA, 0, 1, (struct klp_bytes){body, sizeof(body)});
    const size_t cuts[] = {1, 3, 15, 16, 17, 5000, 59000};
    for (size_t i = 0; i < KLP_COUNT(cuts); i++) {
        client_send_bytes(c, frame.data, cuts[i]);
        client_hello(c);
        client_expect(c, KLP_GUEST_DONE, client_ask(c, KLP_GUEST_PING), NULL);
    }
    klp_buf_finish(&frame);
}

static void test_guest_protocol__frame_in_single_bytes(void **state)
{
    struct client *c = *state;
    struct klp_buf frame = KLP_BUF_INIT(KLP_MIB);
    klp_guest_frame_append(&frame, KLP_GUEST_PING, 0, 77, (struct klp_bytes){0});
    for (size_t i = 0; i < frame.size; i++) {
        client_send_bytes(c, frame.data + i, 1);
        client_pause_ms(1);
    }
    klp_buf_finish(&frame);
    client_expect(c, KLP_GUEST_DONE, 77, NULL);
}

static void test_guest_protocol__giant_length_is_garbage(void **state)
{
    struct client *c = *state;
    const uint8_t giant[] = {'K', 'G', 1, 0, KLP_GUEST_DATA, 0,    0,    0,
                             1,   0,   0, 0, 0xff,           0xff, 0xff, 0xff};
    client_send_bytes(c, giant, sizeof(giant));
    client_hello(c);
    client_expect(c, KLP_GUEST_DONE, client_ask(c, KLP_GUEST_PING), NULL);
}

/* Somebody may well copy a recorded HELLO through a channel. */
static void test_guest_protocol__hello_inside_data_is_data(void **state)
{
    struct client *c = *state;
    struct client_result result;
    struct klp_buf hello = KLP_BUF_INIT(KLP_MIB), body = KLP_BUF_INIT(KLP_MIB);
    klp_field_append(&body, KLP_TAG_NONCE, "nonce of another", 16);
    klp_guest_frame_append(&hello, KLP_GUEST_HELLO, 0, 0, klp_buf_view(&body));
    uint32_t channel = client_exec(c, CLIENT_ARGV("@cat"));
    client_send_data(c, channel, hello.data, hello.size, true);
    client_collect(c, channel, &result);
    assert_int_equal(result.type, KLP_GUEST_EXIT);
    assert_int_equal(result.out.size, hello.size);
    assert_memory_equal(result.out.data, hello.data, hello.size);
    client_result_finish(&result);
    klp_buf_finish(&hello);
    klp_buf_finish(&body);
}

static void test_guest_protocol__new_hello_drops_running_programs(void **state)
{
    struct client *c = *state;
    struct client_frame frame;
    uint32_t channel = client_exec(c, CLIENT_SHELL("echo $$; exec sleep 1000"));
    client_expect(c, KLP_GUEST_DATA, channel, &frame);
    int pid = atoi((const char *)frame.body.data);
    assert_true(client_process_lives(pid));
    uint32_t flood = client_exec(c, CLIENT_ARGV("@flood", "100000000"));
    client_pause_ms(30);
    client_hello(c);
    assert_true(client_process_ends(pid));
    client_no_frame(c, 50); /* nothing of the old session comes after the answer */
    client_send_empty(c, KLP_GUEST_CLOSE, flood);
    /* The numbers are free again in a new session. */
    c->last_channel = 0;
    client_check_output(c, CLIENT_ARGV("@echo", "again"), "again\n");
}

/* ---- channels */

static void test_guest_protocol__unknown_type_closes_its_channel(void **state)
{
    struct client *c = *state;
    struct client_frame frame;
    client_expect_error(c, client_ask(c, 999), "protocol");
    client_expect_error(c, client_ask(c, KLP_GUEST_HELLO_ACK), "protocol");
    client_expect_error(c, client_ask(c, 0), "protocol");
    uint32_t channel = client_exec(c, CLIENT_SHELL("echo $$; exec sleep 1000"));
    client_expect(c, KLP_GUEST_DATA, channel, &frame);
    int pid = atoi((const char *)frame.body.data);
    client_send_empty(c, 1234, channel);
    client_expect_error(c, channel, "protocol");
    assert_true(client_process_ends(pid));
    client_expect(c, KLP_GUEST_DONE, client_ask(c, KLP_GUEST_PING), NULL);
}

static void test_guest_protocol__channel_opened_twice(void **state)
{
    struct client *c = *state;
    uint32_t channel = client_exec(c, CLIENT_ARGV("@sleep", "1000"));
    client_send_empty(c, KLP_GUEST_PING, channel);
    client_expect_error(c, channel, "protocol");
    client_send_empty(c, KLP_GUEST_CLOSE, channel); /* it is gone */
    client_expect(c, KLP_GUEST_DONE, client_ask(c, KLP_GUEST_PING), NULL);
}

static void test_guest_protocol__channel_zero_opens_nothing(void **state)
{
    struct client *c = *state;
    client_send_empty(c, KLP_GUEST_PING, 0);
    client_expect_error(c, 0, "protocol");
    struct klp_buf body = client_arguments(CLIENT_ARGV("@echo", "x"));
    client_send_body(c, KLP_GUEST_EXEC, 0, &body);
    client_expect_error(c, 0, "protocol");
}

static void test_guest_protocol__frames_of_unknown_channels_are_ignored(void **state)
{
    struct client *c = *state;
    client_send_data(c, 4000000000u, "x", 1, true);
    client_send_empty(c, KLP_GUEST_CLOSE, 4000000000u);
    client_send_empty(c, KLP_GUEST_SIGNAL, 4000000000u);
    client_send_empty(c, KLP_GUEST_RESIZE, 4000000000u);
    client_grant(c, 4000000000u, UINT64_MAX);
    client_no_frame(c, 50);
    client_expect(c, KLP_GUEST_DONE, client_ask(c, KLP_GUEST_PING), NULL);
}

static void malformed(struct client *c, uint16_t type, const void *bytes, size_t size,
                      const char *code)
{
    client_send(c, type, 0, ++c->last_channel, (struct klp_bytes){bytes, size});
    client_expect_error(c, c->last_channel, code);
}

static void test_guest_protocol__malformed_bodies_are_refused(void **state)
{
    struct client *c = *state;
    static const uint8_t cut[] = {KLP_TAG_ARG, 0, 0, 0, 5, 0, 0, 0, 'a'};
    static const uint8_t huge[] = {KLP_TAG_ARG, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f, 'a'};
    static const uint8_t nul[] = {KLP_TAG_ARG, 0, 0, 0, 3, 0, 0, 0, 'a', 0, 'b'};
    static const uint8_t short_number[] = {KLP_TAG_OFFSET, 0, 0, 0, 1, 0, 0, 0, 1};
    malformed(c, KLP_GUEST_EXEC, cut, sizeof(cut), "protocol");
    malformed(c, KLP_GUEST_EXEC, huge, sizeof(huge), "protocol");
    malformed(c, KLP_GUEST_EXEC, "abc", 3, "protocol");
    malformed(c, KLP_GUEST_EXEC, nul, sizeof(nul), "invalid");
    malformed(c, KLP_GUEST_EXEC, NULL, 0, "invalid");
    malformed(c, KLP_GUEST_MAIN_START, NULL, 0, "invalid");
    malformed(c, KLP_GUEST_MAIN_LOG, short_number, sizeof(short_number), "protocol");
    malformed(c, KLP_GUEST_PUT, NULL, 0, "protocol");
    malformed(c, KLP_GUEST_GET, cut, sizeof(cut), "protocol");
    malformed(c, KLP_GUEST_UNIQUE, NULL, 0, "invalid");
    malformed(c, KLP_GUEST_SETUP, cut, sizeof(cut), "protocol");
}

static void test_guest_protocol__too_many_arguments_are_refused(void **state)
{
    struct client *c = *state;
    struct klp_buf body = KLP_BUF_INIT(KLP_FRAME_BODY_MAX);
    for (int i = 0; i <= KLP_ARGV_MAX; i++)
        klp_field_append_text(&body, KLP_TAG_ARG, "a");
    client_send_body(c, KLP_GUEST_EXEC, ++c->last_channel, &body);
    client_expect_error(c, c->last_channel, "limit");
    body = KLP_BUF_INIT(KLP_FRAME_BODY_MAX);
    klp_field_append_text(&body, KLP_TAG_ARG, "@env");
    klp_field_append_text(&body, KLP_TAG_ENV, "NOVALUE");
    client_send_body(c, KLP_GUEST_EXEC, ++c->last_channel, &body);
    client_expect_error(c, c->last_channel, "invalid");
}

static void test_guest_protocol__sixty_four_programs_and_no_more(void **state)
{
    struct client *c = *state;
    uint32_t channels[KLP_EXEC_CHANNELS_MAX];
    for (size_t i = 0; i < KLP_COUNT(channels); i++)
        channels[i] = client_exec(c, CLIENT_ARGV("@cat"));
    client_expect_error(c, client_exec(c, CLIENT_ARGV("@cat")), "limit");
    /* What a host needs to get out of it still works. */
    client_expect(c, KLP_GUEST_DONE, client_ask(c, KLP_GUEST_PING), NULL);
    client_expect(c, KLP_GUEST_DONE, client_ask(c, KLP_GUEST_FREEZE), NULL);
    client_expect(c, KLP_GUEST_DONE, client_ask(c, KLP_GUEST_THAW), NULL);
    for (size_t i = 0; i < KLP_COUNT(channels); i += 2)
        client_send_empty(c, KLP_GUEST_CLOSE, channels[i]);
    for (size_t i = 1; i < KLP_COUNT(channels); i += 2) {
        struct client_result result;
        client_send_data(c, channels[i], "late", 4, true);
        client_collect(c, channels[i], &result);
        assert_string_equal(klp_buf_text(&result.out), "late");
        client_result_finish(&result);
    }
    client_check_output(c, CLIENT_ARGV("@echo", "free"), "free\n");
}

/* ---- credit */

static size_t data_until_silence(struct client *c, uint32_t channel)
{
    struct client_frame frame;
    size_t size = 0;
    while (client_try_frame(c, &frame, 150)) {
        assert_int_equal(frame.channel, channel);
        assert_int_equal(frame.type, KLP_GUEST_DATA);
        assert_int_equal(frame.flags & KLP_GUEST_FLAG_END, 0);
        size += frame.body.size;
    }
    return size;
}

static void test_guest_protocol__output_stops_without_credit(void **state)
{
    struct client *c = *state;
    struct client_result result;
    uint32_t channel = client_exec(c, CLIENT_ARGV("@flood", "600000"));
    assert_int_equal(data_until_silence(c, channel), KLP_GUEST_CREDIT);
    client_grant(c, channel, 1);
    assert_int_equal(data_until_silence(c, channel), 1);
    /* Others go on meanwhile. */
    client_check_output(c, CLIENT_ARGV("@echo", "meanwhile"), "meanwhile\n");
    client_grant(c, channel, 1000000);
    client_collect(c, channel, &result);
    assert_int_equal(result.type, KLP_GUEST_EXIT);
    assert_int_equal(result.out.size, 600000 - KLP_GUEST_CREDIT - 1);
    client_result_finish(&result);
}

static void test_guest_protocol__input_beyond_its_credit_is_an_error(void **state)
{
    struct client *c = *state;
    static uint8_t bytes[32 * KLP_KIB];
    struct client_frame frame;
    uint32_t channel = client_exec(c, CLIENT_ARGV("@sleep", "1000")); /* never reads */
    for (size_t sent = 0; sent < KLP_GUEST_CREDIT; sent += sizeof(bytes))
        client_send_data(c, channel, bytes, sizeof(bytes), false);
    /* The pipe took some of it, and the agent grants that much; the rest stays with us. */
    size_t granted = 0;
    while (client_try_frame(c, &frame, 100)) {
        assert_int_equal(frame.type, KLP_GUEST_CREDIT_GRANT);
        granted += client_number(&frame, KLP_TAG_BYTES);
    }
    assert_in_range(granted, 0, KLP_GUEST_CREDIT / 2);
    for (size_t sent = 0; sent < granted; sent += sizeof(bytes))
        client_send_data(c, channel, bytes, sizeof(bytes), false);
    client_send_data(c, channel, bytes, sizeof(bytes), false);
    client_expect_error(c, channel, "protocol");
    client_expect(c, KLP_GUEST_DONE, client_ask(c, KLP_GUEST_PING), NULL);
}

static void test_guest_protocol__absurd_credit_is_an_error(void **state)
{
    struct client *c = *state;
    uint32_t channel = client_exec(c, CLIENT_ARGV("@sleep", "1000"));
    client_grant(c, channel, UINT64_MAX);
    client_expect_error(c, channel, "protocol");
}

#define PING_BATCH 64

/* A host that asks and never reads must make the agent neither grow nor hang. */
static void test_guest_protocol__flood_of_requests_is_answered_in_full(void **state)
{
    struct client *c = *state;
    struct klp_buf frame = KLP_BUF_INIT(KLP_MIB);
    struct client_frame answer;
    size_t sent = 0, at = 0, answered = 0;
    for (size_t i = 0; i < PING_BATCH; i++)
        klp_guest_frame_append(&frame, KLP_GUEST_PING, 0, 9, (struct klp_bytes){0});
    for (int quiet = 0; quiet < 20 && sent < 500000;) {
        ssize_t size = send(c->fd, frame.data + at, frame.size - at, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (size < 0) {
            quiet++;
            client_pause_ms(5);
            continue;
        }
        at += (size_t)size;
        if (at == frame.size) {
            at = 0;
            sent += PING_BATCH;
        }
    }
    assert_in_range(sent, 10000, 499999); /* it was held back, not swallowed */
    if (at > 0) {
        int flags = fcntl(c->fd, F_GETFL);
        fcntl(c->fd, F_SETFL, flags | O_NONBLOCK);
        while (at < frame.size) {
            ssize_t size = send(c->fd, frame.data + at, frame.size - at, MSG_NOSIGNAL);
            at += size > 0 ? (size_t)size : 0;
            if (size < 0 && client_try_frame(c, &answer, 1000))
                answered++;
        }
        fcntl(c->fd, F_SETFL, flags);
        sent += PING_BATCH;
    }
    while (answered < sent) {
        client_expect(c, KLP_GUEST_DONE, 9, NULL);
        answered++;
    }
    client_no_frame(c, 50);
    klp_buf_finish(&frame);
}

/* ---- hostile streams at large */

static uint64_t fuzz_next(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return *state >> 33;
}

/* Types that start programs or end the agent are left out: the bytes are not. */
static void fuzz_frame(uint64_t *seed, struct klp_buf *out)
{
    static const uint16_t types[] = {2, 3, 4, 5, 7, 9, 10, 11, 13, 14, 17, 64, 65, 128, 500};
    struct klp_buf body = KLP_BUF_INIT(KLP_FRAME_BODY_MAX);
    size_t fields = fuzz_next(seed) % 5, start = out->size;
    for (size_t i = 0; i < fields; i++) {
        uint64_t value = fuzz_next(seed);
        uint16_t tag = (uint16_t)(fuzz_next(seed) % 40);
        if (value % 3 == 0)
            klp_field_append_u64(&body, tag, value);
        else
            klp_field_append(&body, tag, "@/nonexistent/thing", value % 20);
    }
    uint16_t type = types[fuzz_next(seed) % KLP_COUNT(types)];
    klp_guest_frame_append(out, type, (uint8_t)(fuzz_next(seed) % 4),
                           (uint32_t)(fuzz_next(seed) % 70), klp_buf_view(&body));
    if (fuzz_next(seed) % 8 == 0)
        out->data[start + fuzz_next(seed) % (out->size - start)] ^=
            (uint8_t)(1 << (fuzz_next(seed) % 8));
    klp_buf_finish(&body);
}

static void test_guest_protocol__survives_mutated_frames(void **state)
{
    struct client *c = *state;
    uint64_t seed = 20240607;
    size_t before = client_descriptors(c);
    for (int session = 0; session < 40; session++) {
        struct klp_buf bytes = KLP_BUF_INIT(KLP_MIB);
        for (int i = 0; i < 60; i++)
            fuzz_frame(&seed, &bytes);
        client_send_bytes(c, bytes.data, bytes.size);
        klp_buf_finish(&bytes);
        client_hello(c);
    }
    client_expect(c, KLP_GUEST_DONE, client_ask(c, KLP_GUEST_THAW), NULL);
    assert_int_equal(waitpid(c->pid, NULL, WNOHANG), 0);
    assert_true(client_descriptors(c) <= before + 2);
}

/* ---- the host's end */

static void test_guest_protocol__host_that_vanishes_leaves_nothing(void **state)
{
    (void)state;
    static struct client own;
    struct client_frame frame;
    client_open(&own, NULL);
    const char *script = "setsid sleep 1000 & echo $!; echo $$; wait";
    uint32_t channel = client_exec(&own, CLIENT_SHELL(script));
    char text[64] = "";
    while (strchr(text, '\n') == NULL || strchr(text, '\n') == strrchr(text, '\n')) {
        client_expect(&own, KLP_GUEST_DATA, channel, &frame);
        strncat(text, (const char *)frame.body.data, frame.body.size);
    }
    int child = atoi(text), shell = atoi(strchr(text, '\n') + 1);
    assert_true(client_process_lives(child) && client_process_lives(shell));
    client_stop(&own);
    assert_true(client_process_ends(child));
    assert_true(client_process_ends(shell));
}

static void test_guest_protocol__shutdown_answers_and_ends(void **state)
{
    (void)state;
    static struct client own;
    client_open(&own, NULL);
    client_expect(&own, KLP_GUEST_DONE, client_ask(&own, KLP_GUEST_SHUTDOWN), NULL);
    assert_int_equal(client_wait_exit(&own), 0);
    close(own.fd);
    client_remove_tree(own.root);
}

static void test_guest_protocol__crash_word_kills_the_agent(void **state)
{
    (void)state;
    static struct client own;
    client_open(&own, NULL);
    client_exec(&own, CLIENT_ARGV("@crash"));
    int status = client_wait_exit(&own);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    close(own.fd);
    client_remove_tree(own.root);
}

static int connect_to(const char *path)
{
    struct sockaddr_storage storage = {.ss_family = AF_UNIX};
    memcpy((char *)&storage + offsetof(struct sockaddr, sa_data), path, strlen(path) + 1);
    for (int i = 0; i < 500; i++) {
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (connect(fd, (struct sockaddr *)&storage, 110) == 0)
            return fd;
        close(fd);
        client_pause_ms(4);
    }
    fail_msg("nobody listens on %s", path);
    return -1;
}

static void test_guest_protocol__socket_takes_one_host_after_another(void **state)
{
    (void)state;
    static struct client own;
    char path[128];
    memset(&own, 0, sizeof(own));
    snprintf(path, sizeof(path), "/tmp/kelpie-guest-test-%d.sock", getpid());
    own.pid = fork();
    if (own.pid == 0)
        client_run(CLIENT_ARGV(client_program(), "--socket", path));
    own.fd = connect_to(path);
    client_hello(&own);
    struct klp_buf body = client_arguments(CLIENT_ARGV("@sleep", "1000"));
    own.wants_started = true;
    client_send_body(&own, KLP_GUEST_MAIN_START, ++own.last_channel, &body);
    client_expect(&own, KLP_GUEST_STARTED, own.last_channel, NULL);
    for (int i = 0; i < 3; i++) {
        close(own.fd);
        own.in_size = own.in_used = 0;
        own.fd = connect_to(path);
        struct client_frame ack;
        client_hello_send(&own, NULL);
        client_ack(&own, &ack);
        assert_int_equal(client_number(&ack, KLP_TAG_MAIN_STATE), KLP_MAIN_RUNNING);
    }
    kill(own.pid, SIGTERM);
    assert_int_equal(client_wait_exit(&own), 0);
    close(own.fd);
    unlink(path);
}

#define TEST(name) cmocka_unit_test_setup_teardown(test_guest_protocol__##name, setup, teardown)
#define TEST_HELLO(name)                                                                           \
    cmocka_unit_test_setup_teardown(test_guest_protocol__##name, setup_hello, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(hello_is_answered_with_its_nonce),
        TEST(first_generation_stays_until_unique),
        TEST(nothing_is_done_before_hello),
        TEST(hello_without_a_proper_nonce_is_ignored),
        TEST(garbage_is_scanned_for_hello),
        TEST_HELLO(after_garbage_only_hello_counts),
        TEST_HELLO(half_frame_then_hello),
        TEST_HELLO(frame_in_single_bytes),
        TEST_HELLO(giant_length_is_garbage),
        TEST_HELLO(hello_inside_data_is_data),
        TEST_HELLO(new_hello_drops_running_programs),
        TEST_HELLO(unknown_type_closes_its_channel),
        TEST_HELLO(channel_opened_twice),
        TEST_HELLO(channel_zero_opens_nothing),
        TEST_HELLO(frames_of_unknown_channels_are_ignored),
        TEST_HELLO(malformed_bodies_are_refused),
        TEST_HELLO(too_many_arguments_are_refused),
        TEST_HELLO(sixty_four_programs_and_no_more),
        TEST_HELLO(output_stops_without_credit),
        TEST_HELLO(input_beyond_its_credit_is_an_error),
        TEST_HELLO(absurd_credit_is_an_error),
        TEST_HELLO(flood_of_requests_is_answered_in_full),
        TEST_HELLO(survives_mutated_frames),
        cmocka_unit_test(test_guest_protocol__host_that_vanishes_leaves_nothing),
        cmocka_unit_test(test_guest_protocol__shutdown_answers_and_ends),
        cmocka_unit_test(test_guest_protocol__crash_word_kills_the_agent),
        cmocka_unit_test(test_guest_protocol__socket_takes_one_host_after_another),
    };
    return cmocka_run_group_tests_name("guest_protocol", tests, NULL, NULL);
}
