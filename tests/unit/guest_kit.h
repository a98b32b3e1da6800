/* SPDX-License-Identifier: Apache-2.0 */
/* Starts the built kelpie-guest on a socket pair and speaks its protocol frame by frame, also
 * wrongly. For unit tests of the agent alone; the real host side is vm/guest. Header only: each
 * test is one program. */
#ifndef KLP_TESTS_UNIT_GUEST_KIT_H
#define KLP_TESTS_UNIT_GUEST_KIT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/error.h"
#include "base/fmt.h"
#include "format/guest_frame.h"
#include "format/tar.h"
#include "format/vocabulary.h"

#define CLIENT_WAIT_MS 10000
#define CLIENT_OUTPUT_MAX (32u * KLP_MIB)

struct client {
    int fd;
    pid_t pid;
    char root[64]; /* --test-root; removed at the end */
    uint8_t in[256 * 1024];
    size_t in_size, in_used; /* of in; in_used: the last frame, dropped at the next call */
    uint32_t last_channel;
    uint8_t last_nonce;
    bool wants_started; /* else STARTED of a program is passed over */
};

struct client_frame {
    uint16_t type;
    uint8_t flags;
    uint32_t channel;
    struct klp_bytes body; /* valid until the next frame is read */
};

struct client_result {
    struct klp_buf out, err;
    uint16_t type; /* of the frame that ended the channel */
    int code, signal;
    bool timed_out;
    char error[64], text[512];
};

static inline uint64_t client_now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static inline void client_pause_ms(unsigned ms)
{
    struct timespec left = {ms / 1000, (long)(ms % 1000) * 1000000};
    nanosleep(&left, NULL);
}

static inline const char *client_program(void)
{
    const char *path = getenv("KELPIE_GUEST");
    return path != NULL ? path : "build/kelpie-guest";
}

/* ---- starting and ending */

static inline void client_run(const char *const *argv)
{
    execv(argv[0], (char *const *)argv);
    perror(argv[0]);
    _exit(127);
}

/* extra: NULL-terminated further arguments, or NULL. */
static inline void client_start(struct client *c, const char *const *extra)
{
    int ends[2];
    const char *argv[16] = {client_program(), "--fd", "3", "--test-root", c->root};
    size_t count = 5;
    memset(c, 0, sizeof(*c));
    snprintf(c->root, sizeof(c->root), "/tmp/kelpie-guest-test-XXXXXX");
    assert_non_null(mkdtemp(c->root));
    for (; extra != NULL && *extra != NULL && count < 15; extra++)
        argv[count++] = *extra;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    c->pid = fork();
    assert_true(c->pid >= 0);
    if (c->pid == 0) {
        if (ends[1] == 3)
            fcntl(3, F_SETFD, 0);
        else
            dup2(ends[1], 3);
        client_run(argv);
    }
    close(ends[1]);
    c->fd = ends[0];
}

static inline int client_wait_exit(struct client *c)
{
    uint64_t until = client_now_ms() + CLIENT_WAIT_MS;
    int status = -1;
    while (waitpid(c->pid, &status, WNOHANG) == 0) {
        if (client_now_ms() > until) {
            kill(c->pid, SIGKILL);
            waitpid(c->pid, &status, 0);
            fail_msg("the agent did not end");
        }
        client_pause_ms(2);
    }
    c->pid = 0;
    return status;
}

static inline void client_remove_tree(const char *path)
{
    pid_t pid = fork();
    if (pid == 0) {
        execl("/bin/rm", "rm", "-rf", path, (char *)NULL);
        _exit(127);
    }
    waitpid(pid, NULL, 0);
}

/* The host goes away; the agent has to end by itself, well. */
static inline void client_stop(struct client *c)
{
    close(c->fd);
    assert_int_equal(client_wait_exit(c), 0);
    client_remove_tree(c->root);
}

static inline const char *client_path(struct client *c, const char *path)
{
    static char texts[8][512];
    static unsigned turn;
    char *text = texts[turn++ % 8];
    snprintf(text, sizeof(texts[0]), "%s%s", c->root, path);
    return text;
}

/* Makes the folders before it as well. */
static inline void client_write_file(struct client *c, const char *path, const char *text,
                                     unsigned mode)
{
    char full[512];
    snprintf(full, sizeof(full), "%s", client_path(c, path));
    for (char *at = full + 1; *at != '\0'; at++) {
        if (*at == '/') {
            *at = '\0';
            mkdir(full, 0755);
            *at = '/';
        }
    }
    int fd = open(full, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    assert_int_equal(fchmod(fd, mode), 0);
    close(fd);
}

/* "" when it is not there; static. */
static inline const char *client_read_file(const char *path)
{
    static char text[4096];
    int fd = open(path, O_RDONLY);
    ssize_t size = fd >= 0 ? read(fd, text, sizeof(text) - 1) : 0;
    if (fd >= 0)
        close(fd);
    text[size > 0 ? size : 0] = '\0';
    return text;
}

/* ---- bytes and frames */

static inline void client_send_bytes(struct client *c, const void *data, size_t size)
{
    const uint8_t *at = data;
    while (size > 0) {
        ssize_t sent = send(c->fd, at, size, MSG_NOSIGNAL);
        assert_true(sent > 0);
        at += sent;
        size -= (size_t)sent;
    }
}

static inline void client_send(struct client *c, uint16_t type, uint8_t flags, uint32_t channel,
                               struct klp_bytes body)
{
    struct klp_buf frame = KLP_BUF_INIT(KLP_MIB);
    klp_guest_frame_append(&frame, type, flags, channel, body);
    assert_false(frame.over_limit || frame.no_memory);
    client_send_bytes(c, frame.data, frame.size);
    klp_buf_finish(&frame);
}

/* Sends and frees the body. */
static inline void client_send_body(struct client *c, uint16_t type, uint32_t channel,
                                    struct klp_buf *body)
{
    client_send(c, type, 0, channel, klp_buf_view(body));
    klp_buf_finish(body);
}

static inline void client_send_empty(struct client *c, uint16_t type, uint32_t channel)
{
    client_send(c, type, 0, channel, (struct klp_bytes){0});
}

static inline void client_send_data(struct client *c, uint32_t channel, const void *data,
                                    size_t size, bool end)
{
    client_send(c, KLP_GUEST_DATA, end ? KLP_GUEST_FLAG_END : 0, channel,
                (struct klp_bytes){data, size});
}

static inline void client_grant(struct client *c, uint32_t channel, uint64_t bytes)
{
    struct klp_buf body = KLP_BUF_INIT(64);
    klp_field_append_u64(&body, KLP_TAG_BYTES, bytes);
    client_send_body(c, KLP_GUEST_CREDIT_GRANT, channel, &body);
}

/* False: nothing whole came in time, or the agent closed the stream. */
static inline bool client_try_frame(struct client *c, struct client_frame *out, unsigned wait_ms)
{
    uint64_t until = client_now_ms() + wait_ms;
    *out = (struct client_frame){0};
    memmove(c->in, c->in + c->in_used, c->in_size - c->in_used);
    c->in_size -= c->in_used;
    c->in_used = 0;
    for (;;) {
        struct klp_guest_frame frame;
        int size = klp_guest_frame_next(c->in, c->in_size, &frame, NULL);
        assert_true(size >= 0); /* the agent never sends garbage */
        if (size > 0) {
            c->in_used = (size_t)size;
            if (frame.type == KLP_GUEST_STARTED && !c->wants_started) {
                c->in_size -= c->in_used;
                memmove(c->in, c->in + c->in_used, c->in_size);
                c->in_used = 0;
                continue;
            }
            *out = (struct client_frame){frame.type, frame.flags, frame.channel, frame.body};
            return true;
        }
        uint64_t now = client_now_ms();
        struct pollfd wait = {.fd = c->fd, .events = POLLIN};
        if (now > until || poll(&wait, 1, (int)(until - now)) <= 0)
            return false;
        ssize_t got = read(c->fd, c->in + c->in_size, sizeof(c->in) - c->in_size);
        if (got <= 0)
            return false;
        c->in_size += (size_t)got;
    }
}

static inline void client_frame(struct client *c, struct client_frame *out)
{
    if (!client_try_frame(c, out, CLIENT_WAIT_MS))
        fail_msg("no frame came");
}

static inline void client_no_frame(struct client *c, unsigned wait_ms)
{
    struct client_frame frame;
    if (client_try_frame(c, &frame, wait_ms))
        fail_msg("a frame of type %u came on channel %u", frame.type, frame.channel);
}

static inline uint64_t client_number(const struct client_frame *frame, uint16_t tag)
{
    uint64_t value = 0;
    assert_true(klp_field_u64(frame->body, tag, UINT64_MAX, &value, NULL));
    return value;
}

static inline void client_text(const struct client_frame *frame, uint16_t tag, char *out,
                               size_t capacity)
{
    struct klp_bytes found = {0};
    if (!klp_field_find(frame->body, tag, &found))
        found = (struct klp_bytes){0};
    snprintf(out, capacity, "%.*s", (int)found.size, (const char *)found.data);
}

/* The next frame is an ERROR of that name on that channel. */
static inline void client_expect_error(struct client *c, uint32_t channel, const char *name)
{
    struct client_frame frame;
    char error[64], text[256];
    client_frame(c, &frame);
    client_text(&frame, KLP_TAG_ERROR, error, sizeof(error));
    client_text(&frame, KLP_TAG_TEXT, text, sizeof(text));
    if (frame.type != KLP_GUEST_ERROR || frame.channel != channel || strcmp(error, name) != 0)
        fail_msg("expected %s on %u, got type %u on %u: %s: %s", name, channel, frame.type,
                 frame.channel, error, text);
    assert_true(strlen(text) > 0);
}

static inline void client_expect(struct client *c, uint16_t type, uint32_t channel,
                                 struct client_frame *out)
{
    struct client_frame frame;
    char error[64], text[256];
    client_frame(c, &frame);
    client_text(&frame, KLP_TAG_ERROR, error, sizeof(error));
    client_text(&frame, KLP_TAG_TEXT, text, sizeof(text));
    if (frame.type != type || frame.channel != channel)
        fail_msg("expected type %u on %u, got type %u on %u %s %s", type, channel, frame.type,
                 frame.channel, error, text);
    if (out != NULL)
        *out = frame;
}

/* ---- sessions */

static inline void client_hello_send(struct client *c, const uint8_t *generation)
{
    struct klp_buf body = KLP_BUF_INIT(256);
    uint8_t nonce[16];
    memset(nonce, ++c->last_nonce, sizeof(nonce));
    klp_field_append(&body, KLP_TAG_NONCE, nonce, sizeof(nonce));
    klp_field_append_u64(&body, KLP_TAG_EPOCH, 1);
    if (generation != NULL)
        klp_field_append(&body, KLP_TAG_GENERATION, generation, 16);
    client_send_body(c, KLP_GUEST_HELLO, 0, &body);
}

/* Throws away what an earlier session still sends. */
static inline void client_ack(struct client *c, struct client_frame *out)
{
    struct client_frame frame;
    struct klp_bytes nonce;
    do {
        client_frame(c, &frame);
    } while (frame.type != KLP_GUEST_HELLO_ACK ||
             !klp_field_find(frame.body, KLP_TAG_NONCE, &nonce) || nonce.size != 16 ||
             nonce.data[0] != c->last_nonce);
    if (out != NULL)
        *out = frame;
}

static inline void client_hello(struct client *c)
{
    client_hello_send(c, NULL);
    client_ack(c, NULL);
}

static inline void client_open(struct client *c, const char *const *extra)
{
    client_start(c, extra);
    client_hello(c);
}

/* ---- requests */

static inline struct klp_buf client_arguments(const char *const *argv)
{
    struct klp_buf body = KLP_BUF_INIT(KLP_FRAME_BODY_MAX);
    for (; *argv != NULL; argv++)
        klp_field_append_text(&body, KLP_TAG_ARG, *argv);
    return body;
}

static inline uint32_t client_exec(struct client *c, const char *const *argv)
{
    struct klp_buf body = client_arguments(argv);
    client_send_body(c, KLP_GUEST_EXEC, ++c->last_channel, &body);
    return c->last_channel;
}

static inline uint32_t client_ask(struct client *c, uint16_t type)
{
    client_send_empty(c, type, ++c->last_channel);
    return c->last_channel;
}

static inline uint32_t client_ask_path(struct client *c, uint16_t type, const char *path)
{
    struct klp_buf body = KLP_BUF_INIT(KLP_FRAME_BODY_MAX);
    klp_field_append_text(&body, KLP_TAG_PATH, path);
    client_send_body(c, type, ++c->last_channel, &body);
    return c->last_channel;
}

static inline void client_result_init(struct client_result *result)
{
    memset(result, 0, sizeof(*result));
    result->out = KLP_BUF_INIT(CLIENT_OUTPUT_MAX);
    result->err = KLP_BUF_INIT(CLIENT_OUTPUT_MAX);
}

static inline void client_result_finish(struct client_result *result)
{
    klp_buf_finish(&result->out);
    klp_buf_finish(&result->err);
}

/* Reads a channel to its end, granting what it takes. Frames of other channels are dropped. */
static inline void client_collect(struct client *c, uint32_t channel, struct client_result *result)
{
    struct client_frame frame;
    client_result_init(result);
    for (;;) {
        client_frame(c, &frame);
        if (frame.channel != channel)
            continue;
        if (frame.type == KLP_GUEST_DATA) {
            klp_buf_append(frame.flags & KLP_GUEST_FLAG_STDERR ? &result->err : &result->out,
                           frame.body.data, frame.body.size);
            if (frame.body.size > 0)
                client_grant(c, channel, frame.body.size);
            continue;
        }
        if (frame.type == KLP_GUEST_CREDIT_GRANT || frame.type == KLP_GUEST_STARTED ||
            frame.type == KLP_GUEST_MAIN)
            continue;
        break;
    }
    result->type = frame.type;
    if (frame.type == KLP_GUEST_EXIT) {
        result->code = (int)client_number(&frame, KLP_TAG_CODE);
        result->signal = (int)client_number(&frame, KLP_TAG_SIGNAL);
        result->timed_out = client_number(&frame, KLP_TAG_TIMED_OUT) != 0;
    }
    client_text(&frame, KLP_TAG_ERROR, result->error, sizeof(result->error));
    client_text(&frame, KLP_TAG_TEXT, result->text, sizeof(result->text));
}

#define CLIENT_ARGV(...) ((const char *const[]){__VA_ARGS__, NULL})
#define CLIENT_SHELL(script) CLIENT_ARGV("/bin/sh", "-c", script)

/* Runs a program to its end: it must have run. */
static inline void client_run_program(struct client *c, const char *const *argv,
                                      struct client_result *result)
{
    client_collect(c, client_exec(c, argv), result);
    if (result->type != KLP_GUEST_EXIT)
        fail_msg("'%s' did not run: %s: %s", argv[0], result->error, result->text);
}

/* The program's output must be exactly that, its status 0. */
static inline void client_check_output(struct client *c, const char *const *argv,
                                       const char *wanted)
{
    struct client_result result;
    client_run_program(c, argv, &result);
    assert_int_equal(result.code, 0);
    assert_string_equal(klp_buf_text(&result.out), wanted);
    client_result_finish(&result);
}

static inline uint64_t client_output_number(struct client *c, const char *const *argv)
{
    struct client_result result;
    client_run_program(c, argv, &result);
    assert_int_equal(result.code, 0);
    uint64_t number = strtoull(klp_buf_text(&result.out), NULL, 10);
    client_result_finish(&result);
    return number;
}

/* ---- what the agent holds */

static inline size_t client_descriptors(struct client *c)
{
    char path[64];
    size_t count = 0;
    snprintf(path, sizeof(path), "/proc/%d/fd", c->pid);
    DIR *list = opendir(path);
    assert_non_null(list);
    while (readdir(list) != NULL)
        count++;
    closedir(list);
    return count;
}

static inline size_t client_children(struct client *c)
{
    char path[64];
    size_t count = 0;
    snprintf(path, sizeof(path), "/proc/%d/task/%d/children", c->pid, c->pid);
    for (const char *at = client_read_file(path); *at != '\0'; at++)
        count += *at == ' ';
    return count;
}

static inline bool client_process_lives(int pid)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/stat", pid);
    const char *text = client_read_file(path);
    const char *at = strrchr(text, ')');
    return at != NULL && at[1] == ' ' && at[2] != 'Z' && at[2] != 'X';
}

/* Waits until a process is gone: a kill takes its time. */
static inline bool client_process_ends(int pid)
{
    for (int i = 0; i < 1000; i++) {
        if (!client_process_lives(pid))
            return true;
        client_pause_ms(2);
    }
    return false;
}

static inline void client_tar_entry(struct klp_buf *out, enum klp_tar_kind kind, const char *path,
                                    const char *target, const char *content, unsigned mode)
{
    struct klp_tar_entry *entry = klp_mem_alloc(sizeof(*entry));
    snprintf(entry->path, sizeof(entry->path), "%s", path);
    snprintf(entry->target, sizeof(entry->target), "%s", target);
    entry->kind = kind;
    entry->mode = mode;
    entry->mtime = 1000000000;
    entry->size = strlen(content);
    assert_true(klp_tar_header_append(out, entry, NULL));
    klp_buf_append(out, content, strlen(content));
    static const uint8_t zeros[KLP_TAR_BLOCK];
    klp_buf_append(out, zeros, klp_tar_padding(strlen(content)));
    klp_mem_free(entry);
}

#endif
