/* SPDX-License-Identifier: Apache-2.0 */
/* For tests of kelpie-keeper as a process: starting and ending one, and the mock guest in it. */
#ifndef VM_KEEPER_KIT_H
#define VM_KEEPER_KIT_H

#include "keeper_kit.h"

#include <signal.h>

static char keeper_path[4096];

/* Group setup: the program is KELPIE_KEEPER, or build/kelpie-keeper. */
static inline int keeper_find(void **state)
{
    const char *named = getenv("KELPIE_KEEPER");
    (void)state;
    if (realpath(named != NULL ? named : "build/kelpie-keeper", keeper_path) != NULL)
        return 0;
    print_error("no kelpie-keeper: set KELPIE_KEEPER to the program\n");
    return -1;
}

struct vm {
    struct kit *kit;
    struct klp_dir *dir;
    char path[96];
    int pid; /* the keeper's */
    struct line *line;
};

/* ---- starting and ending */

static inline int keeper_spawn(struct vm *vm, const char *const *words, const char *const *env)
{
    const char *argv[16] = {"kelpie-keeper", "--dir",     vm->path, "--vm",
                            KEEPER_VM,       "--backend", "mock"};
    struct kelpie_error *err = NULL;
    char log[128];
    int pid, pidfd;
    for (size_t i = 0; words != NULL && words[i] != NULL; i++)
        argv[7 + i] = words[i];
    snprintf(log, sizeof(log), "%s/keeper.log", vm->kit->path);
    int log_fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    struct klp_spawn spawn = {.path = keeper_path,
                              .argv = argv,
                              .env = env,
                              .stdin_fd = -1,
                              .stdout_fd = log_fd,
                              .stderr_fd = log_fd,
                              .directory = vm->path};
    assert_true(klp_posix_spawn(&spawn, &pid, &pidfd, &err));
    close(pidfd);
    close(log_fd);
    return pid;
}

static inline void folder_make(struct vm *vm, struct kit *kit, const char *name)
{
    struct kelpie_error *err = NULL;
    *vm = (struct vm){.kit = kit};
    snprintf(vm->path, sizeof(vm->path), "%s/%s", kit->path, name);
    assert_true(klp_dir_open_at(kit->dir, name, true, &vm->dir, &err));
}

static inline void vm_start_as(struct vm *vm, struct kit *kit, const char *name,
                               const char *const *words, const char *const *env)
{
    struct kelpie_op op = klp_op_plain(kit->env, 10000);
    struct klp_chan *chan = NULL;
    folder_make(vm, kit, name);
    vm->pid = keeper_spawn(vm, words, env);
    while (!kelpie_is_ok(klp_chan_connect(&op, vm->dir, KLP_KEEPER_SOCKET, &chan, NULL))) {
        assert_true(kelpie_is_ok(klp_op_check(&op, "starting", NULL)));
        nap(kit, 2);
    }
    klp_chan_close(chan);
    vm->line = line_open(kit, vm->dir);
}

static inline void vm_start(struct vm *vm, struct kit *kit)
{
    vm_start_as(vm, kit, "vm", NULL, NULL);
}

static inline void log_show(struct vm *vm)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf log = KLP_BUF_INIT(1 << 20);
    KLP_IGNORE(klp_file_read_all(vm->kit->dir, "keeper.log", &log, NULL));
    print_message("%s\n", klp_buf_text(&log));
}

/* The keeper ends by itself, with that status, and leaves no folder. */
static inline void vm_ended(struct vm *vm, int status)
{
    int how = 0;
    if (vm->line != NULL)
        line_close(vm->line);
    assert_int_equal(waitpid(vm->pid, &how, 0), vm->pid);
    if (!WIFEXITED(how) || WEXITSTATUS(how) != status)
        log_show(vm);
    assert_true(WIFEXITED(how));
    assert_int_equal(WEXITSTATUS(how), status);
    klp_dir_close(vm->dir);
}

static inline void vm_exit(struct vm *vm)
{
    assert_string_equal(line_ask(vm->line, KLP_KEEPER_EXIT, NULL, NULL, 0), "");
    vm_ended(vm, 0);
    assert_int_equal(access(vm->path, F_OK), -1); /* the folder went too */
}

static inline int64_t guest_pid(struct vm *vm)
{
    int64_t pid = (int64_t)status_number(vm->line, KLP_KTAG_PID);
    assert_true(pid > 1);
    return pid;
}

/* A guest that runs, leased for long. */
static inline void vm_run(struct vm *vm, struct kit *kit)
{
    vm_start(vm, kit);
    assert_string_equal(line_lease(vm->line, 1, 60000), "");
    assert_string_equal(line_spawn(vm->line, KLP_SPAWN_COLD, NULL), "");
}

/* ---- the guest behind it */

struct guest {
    struct klp_env *env;
    struct klp_stream *stream;
    uint32_t channel;
    uint8_t bytes[256 * 1024];
    size_t size;
};

static inline void frame_send(struct guest *guest, uint16_t type, uint32_t channel,
                              const struct klp_buf *body)
{
    struct kelpie_op op = klp_op_plain(guest->env, 5000);
    struct kelpie_error *err = NULL;
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf frame = KLP_BUF_INIT(128 * 1024);
    klp_guest_frame_append(&frame, type, 0, channel, klp_buf_view(body));
    KIT_OK(klp_stream_write(&op, guest->stream, frame.data, frame.size, &err));
}

/* The next frame of that channel; false when none came in time. Valid until the next call. */
static inline bool frame_receive(struct guest *guest, uint32_t channel, uint64_t timeout_ms,
                                 struct klp_guest_frame *out)
{
    static uint8_t body[KLP_FRAME_BODY_MAX];
    struct kelpie_op op = klp_op_plain(guest->env, timeout_ms);
    for (;;) {
        size_t got;
        int size = klp_guest_frame_next(guest->bytes, guest->size, out, NULL);
        assert_true(size >= 0);
        if (size > 0) {
            memcpy(body, out->body.data, out->body.size);
            out->body.data = body;
            guest->size -= (size_t)size;
            memmove(guest->bytes, guest->bytes + size, guest->size);
            if (out->channel == channel)
                return true;
            continue;
        }
        if (!kelpie_is_ok(klp_stream_read(&op, guest->stream, guest->bytes + guest->size,
                                          sizeof(guest->bytes) - guest->size, &got, NULL)) ||
            got == 0)
            return false;
        guest->size += got;
    }
}

/* A session of its own; false when the guest does not answer in time. */
static inline bool guest_open(struct vm *vm, struct guest *guest, uint64_t timeout_ms)
{
    struct kelpie_error *err = NULL;
    struct klp_guest_frame frame;
    uint8_t nonce[16];
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(256);
    *guest = (struct guest){.env = vm->kit->env};
    assert_string_equal(line_ask(vm->line, KLP_KEEPER_GUEST, NULL, NULL, 0), "");
    assert_true(klp_stream_open(guest->env, answer_take(vm->line, 0), &guest->stream, &err));
    klp_random(guest->env, nonce, sizeof(nonce));
    klp_field_append(&body, KLP_TAG_NONCE, nonce, sizeof(nonce));
    frame_send(guest, KLP_GUEST_HELLO, 0, &body);
    while (frame_receive(guest, 0, timeout_ms, &frame)) {
        struct klp_bytes back;
        if (frame.type == KLP_GUEST_HELLO_ACK && klp_field_find(frame.body, KLP_TAG_NONCE, &back) &&
            back.size == sizeof(nonce) && memcmp(back.data, nonce, sizeof(nonce)) == 0)
            return true;
    }
    klp_stream_close(guest->stream);
    return false;
}

static inline bool guest_answers(struct vm *vm, uint64_t timeout_ms)
{
    struct guest *guest = malloc(sizeof(*guest));
    bool answers = guest_open(vm, guest, timeout_ms);
    if (answers)
        klp_stream_close(guest->stream);
    free(guest);
    return answers;
}

/* What a word prints; the guest must be running. */
static inline const char *guest_say(struct vm *vm, const char *words)
{
    static char text[512];
    struct guest *guest = malloc(sizeof(*guest));
    struct klp_guest_frame frame;
    size_t size = 0;
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(4096);
    assert_true(guest_open(vm, guest, 10000));
    while (*words != 0) {
        size_t length = strcspn(words, " ");
        klp_field_append(&body, KLP_TAG_ARG, words, length);
        words += length + (words[length] == ' ' ? 1 : 0);
    }
    frame_send(guest, KLP_GUEST_EXEC, 1, &body);
    do {
        assert_true(frame_receive(guest, 1, 10000, &frame));
        assert_int_not_equal(frame.type, KLP_GUEST_ERROR);
        if (frame.type == KLP_GUEST_DATA && size + frame.body.size < sizeof(text)) {
            memcpy(text + size, frame.body.data, frame.body.size);
            size += frame.body.size;
        }
    } while (frame.type != KLP_GUEST_EXIT);
    text[size] = 0;
    klp_stream_close(guest->stream);
    free(guest);
    return text;
}

static inline struct klp_handle zeros_make(struct kit *kit)
{
    struct kelpie_error *err = NULL;
    struct klp_handle memory;
    assert_true(klp_memory_create(kit->env, "zeros", (uint64_t)GUEST_MIB * KLP_MIB, &memory, &err));
    assert_true(klp_memory_seal(kit->env, memory, &err));
    return memory;
}

#endif
