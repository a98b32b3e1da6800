/* SPDX-License-Identifier: Apache-2.0 */
/* kelpie-keeper as a process, over a mock guest: what it lets run and when, what is left when it or
 * its guest dies, and what it makes of nonsense. The program is KELPIE_KEEPER, or
 * build/kelpie-keeper. */
#include "keeper_kit.h"

#include <signal.h>

#include "vm/keeper_launch.h"

static char keeper_path[4096];

struct vm {
    struct kit *kit;
    struct klp_dir *dir;
    char path[96];
    int pid; /* the keeper's */
    struct line *line;
};

/* ---- starting and ending */

static int keeper_spawn(struct vm *vm, const char *const *words, const char *const *env)
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

static void folder_make(struct vm *vm, struct kit *kit, const char *name)
{
    struct kelpie_error *err = NULL;
    *vm = (struct vm){.kit = kit};
    snprintf(vm->path, sizeof(vm->path), "%s/%s", kit->path, name);
    assert_true(klp_dir_open_at(kit->dir, name, true, &vm->dir, &err));
}

static void vm_start_as(struct vm *vm, struct kit *kit, const char *name, const char *const *words,
                        const char *const *env)
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

static void vm_start(struct vm *vm, struct kit *kit)
{
    vm_start_as(vm, kit, "vm", NULL, NULL);
}

static void log_show(struct vm *vm)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf log = KLP_BUF_INIT(1 << 20);
    KLP_IGNORE(klp_file_read_all(vm->kit->dir, "keeper.log", &log, NULL));
    print_message("%s\n", klp_buf_text(&log));
}

/* The keeper ends by itself, with that status, and leaves no folder. */
static void vm_ended(struct vm *vm, int status)
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

static void vm_exit(struct vm *vm)
{
    assert_string_equal(line_ask(vm->line, KLP_KEEPER_EXIT, NULL, NULL, 0), "");
    vm_ended(vm, 0);
    assert_int_equal(access(vm->path, F_OK), -1); /* the folder went too */
}

static int64_t guest_pid(struct vm *vm)
{
    int64_t pid = (int64_t)status_number(vm->line, KLP_KTAG_PID);
    assert_true(pid > 1);
    return pid;
}

/* A guest that runs, leased for long. */
static void vm_run(struct vm *vm, struct kit *kit)
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

static void frame_send(struct guest *guest, uint16_t type, uint32_t channel,
                       const struct klp_buf *body)
{
    struct kelpie_op op = klp_op_plain(guest->env, 5000);
    struct kelpie_error *err = NULL;
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf frame = KLP_BUF_INIT(128 * 1024);
    klp_guest_frame_append(&frame, type, 0, channel, klp_buf_view(body));
    KIT_OK(klp_stream_write(&op, guest->stream, frame.data, frame.size, &err));
}

/* The next frame of that channel; false when none came in time. Valid until the next call. */
static bool frame_receive(struct guest *guest, uint32_t channel, uint64_t timeout_ms,
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
static bool guest_open(struct vm *vm, struct guest *guest, uint64_t timeout_ms)
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

static bool guest_answers(struct vm *vm, uint64_t timeout_ms)
{
    struct guest *guest = malloc(sizeof(*guest));
    bool answers = guest_open(vm, guest, timeout_ms);
    if (answers)
        klp_stream_close(guest->stream);
    free(guest);
    return answers;
}

/* What a word prints; the guest must be running. */
static const char *guest_say(struct vm *vm, const char *words)
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

/* ---- what it says of itself */

static void test_vm_keeper__begins_empty_and_fenced(void **state)
{
    struct vm vm;
    vm_start(&vm, *state);
    line_status(vm.line);
    assert_int_equal(answer_number(vm.line, KLP_KTAG_STATE), KLP_KEEPER_EMPTY);
    assert_int_equal(answer_number(vm.line, KLP_KTAG_HOLDS), KLP_HOLD_FENCE);
    assert_int_equal(answer_number(vm.line, KLP_KTAG_KEEPER_PID), vm.pid);
    assert_string_equal(answer_text(vm.line, KLP_KTAG_VM), KEEPER_VM);
    assert_string_equal(answer_text(vm.line, KLP_KTAG_BACKEND), "mock");
    vm_exit(&vm);
}

static void test_vm_keeper__keeps_a_note_and_the_machine(void **state)
{
    struct vm vm;
    struct klp_bytes bytes;
    struct klp_machine machine;
    static char note[33 * 1024];
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf fields = KLP_BUF_INIT(64 * 1024);
    vm_run(&vm, *state);
    memset(note, 'n', sizeof(note));
    klp_field_append(&fields, KLP_KTAG_META, note, 32 * 1024);
    assert_string_equal(line_ask(vm.line, KLP_KEEPER_META, &fields, NULL, 0), "");
    klp_buf_clear(&fields);
    klp_field_append(&fields, KLP_KTAG_META, note, 32 * 1024 + 1);
    assert_string_equal(line_ask(vm.line, KLP_KEEPER_META, &fields, NULL, 0), "limit");
    assert_string_equal(line_ask(vm.line, KLP_KEEPER_META, NULL, NULL, 0), "limit");
    line_status(vm.line);
    assert_true(klp_field_find(vm.line->answer.fields, KLP_KTAG_META, &bytes));
    assert_int_equal(bytes.size, 32 * 1024);
    assert_memory_equal(bytes.data, note, bytes.size);
    assert_true(klp_field_find(vm.line->answer.fields, KLP_KTAG_MACHINE, &bytes));
    assert_true(klp_machine_decode(bytes, &machine, NULL));
    assert_int_equal(machine.memory_bytes, (uint64_t)GUEST_MIB * KLP_MIB);
    vm_exit(&vm);
}

/* ---- lease */

static void test_vm_keeper__nothing_runs_without_a_lease(void **state)
{
    struct vm vm;
    vm_start(&vm, *state);
    assert_string_equal(line_spawn(vm.line, KLP_SPAWN_COLD, NULL), "");
    int64_t pid = guest_pid(&vm);
    assert_true(process_wait(vm.kit, pid, STANDS));
    assert_false(guest_answers(&vm, 200));
    assert_string_equal(line_lease(vm.line, 1, 60000), "");
    assert_int_equal(status_number(vm.line, KLP_KTAG_HOLDS), 0);
    assert_true(process_wait(vm.kit, pid, RUNS));
    assert_string_equal(guest_say(&vm, "@echo leased"), "leased\n");
    vm_exit(&vm);
    assert_true(process_wait(vm.kit, pid, GONE));
}

static void test_vm_keeper__the_clock_fences_without_a_daemon(void **state)
{
    struct vm vm;
    vm_run(&vm, *state);
    int64_t pid = guest_pid(&vm);
    struct line *watch = line_open(vm.kit, vm.dir);
    assert_string_equal(line_ask(watch, KLP_KEEPER_WATCH, NULL, NULL, 0), "");
    assert_true(guest_answers(&vm, 5000));
    uint64_t before = klp_boot_ns(vm.kit->env);
    assert_string_equal(line_lease(vm.line, 1, 250), "");
    line_close(vm.line); /* nobody is there any more */
    vm.line = NULL;
    assert_true(event_wait(watch, KLP_KEEPER_LIVE, true));
    uint64_t took_ms = (klp_boot_ns(vm.kit->env) - before) / KLP_MS;
    assert_in_range(took_ms, 250, 1250);
    assert_true(process_wait(vm.kit, pid, STANDS));
    vm.line = line_open(vm.kit, vm.dir);
    assert_string_equal(line_lease(vm.line, 1, 60000), "");
    assert_true(event_wait(watch, KLP_KEEPER_LIVE, false));
    assert_true(process_wait(vm.kit, pid, RUNS));
    assert_string_equal(guest_say(&vm, "@echo again"), "again\n");
    line_close(watch);
    vm_exit(&vm);
}

static void test_vm_keeper__time_under_a_fence_is_not_the_guests(void **state)
{
    struct vm vm;
    vm_run(&vm, *state);
    int64_t pid = guest_pid(&vm);
    uint64_t before = strtoull(guest_say(&vm, "@count"), NULL, 10);
    assert_string_equal(line_lease(vm.line, 1, 0), "");
    assert_true(process_wait(vm.kit, pid, STANDS));
    nap(vm.kit, 1500);
    assert_string_equal(line_lease(vm.line, 1, 60000), "");
    uint64_t after = strtoull(guest_say(&vm, "@count"), NULL, 10);
    assert_in_range(after, before, before + 1000);
    nap(vm.kit, 50);
    assert_in_range(strtoull(guest_say(&vm, "@count"), NULL, 10), after + 1, UINT64_MAX);
    vm_exit(&vm);
}

static void test_vm_keeper__a_renewal_postpones_the_fence(void **state)
{
    struct vm vm;
    vm_run(&vm, *state);
    for (int i = 0; i < 5; i++) {
        assert_string_equal(line_lease(vm.line, 1, 300), "");
        nap(vm.kit, 120);
    }
    assert_int_equal(status_number(vm.line, KLP_KTAG_HOLDS), 0);
    nap(vm.kit, 400);
    assert_int_equal(status_number(vm.line, KLP_KTAG_HOLDS), KLP_HOLD_FENCE);
    vm_exit(&vm);
}

static void test_vm_keeper__an_older_epoch_is_denied(void **state)
{
    struct vm vm;
    vm_run(&vm, *state);
    assert_string_equal(line_lease(vm.line, 7, 60000), "");
    assert_string_equal(line_lease(vm.line, 6, 90000), "denied");
    assert_string_equal(line_lease(vm.line, 6, 0), "denied");
    assert_int_equal(status_number(vm.line, KLP_KTAG_EPOCH), 7);
    assert_int_equal(status_number(vm.line, KLP_KTAG_HOLDS), 0);
    assert_string_equal(line_lease(vm.line, 7, 0), "");
    assert_string_equal(line_lease(vm.line, 6, 60000), "denied"); /* it ends no fence */
    assert_int_equal(status_number(vm.line, KLP_KTAG_HOLDS), KLP_HOLD_FENCE);
    assert_string_equal(line_lease(vm.line, 8, 60000), "");
    assert_int_equal(status_number(vm.line, KLP_KTAG_HOLDS), 0);
    vm_exit(&vm);
}

/* ---- holds */

static void test_vm_keeper__holds_are_a_set(void **state)
{
    struct vm vm;
    vm_run(&vm, *state);
    assert_string_equal(line_hold(vm.line, KLP_HOLD_USER), "");
    assert_int_equal(answer_number(vm.line, KLP_KTAG_HOLDS), KLP_HOLD_USER);
    assert_false(guest_answers(&vm, 200));
    assert_string_equal(line_hold(vm.line, KLP_HOLD_SNAPSHOT | KLP_HOLD_USER), "");
    assert_string_equal(line_release(vm.line, KLP_HOLD_USER), "");
    assert_int_equal(answer_number(vm.line, KLP_KTAG_HOLDS), KLP_HOLD_SNAPSHOT);
    assert_false(guest_answers(&vm, 200));
    assert_string_equal(line_release(vm.line, KLP_HOLD_HANDOFF), ""); /* was never there */
    assert_false(guest_answers(&vm, 100));
    assert_string_equal(line_release(vm.line, KLP_HOLD_SNAPSHOT), "");
    assert_int_equal(answer_number(vm.line, KLP_KTAG_HOLDS), 0);
    assert_true(guest_answers(&vm, 5000));
    vm_exit(&vm);
}

static void test_vm_keeper__the_fence_is_the_clocks_alone(void **state)
{
    struct vm vm;
    vm_run(&vm, *state);
    assert_string_equal(line_hold(vm.line, KLP_HOLD_FENCE), "");
    assert_int_equal(answer_number(vm.line, KLP_KTAG_HOLDS), 0);
    assert_true(guest_answers(&vm, 5000));
    assert_string_equal(line_lease(vm.line, 1, 0), "");
    assert_string_equal(line_release(vm.line, KLP_HOLD_FENCE | KLP_HOLD_USER), "");
    assert_int_equal(answer_number(vm.line, KLP_KTAG_HOLDS), KLP_HOLD_FENCE);
    assert_true(process_wait(vm.kit, guest_pid(&vm), STANDS));
    vm_exit(&vm);
}

static void test_vm_keeper__under_a_fence_nothing_new_is_held_or_captured(void **state)
{
    struct vm vm;
    vm_run(&vm, *state);
    assert_string_equal(line_lease(vm.line, 1, 0), "");
    uint64_t before = klp_boot_ns(vm.kit->env);
    assert_string_equal(line_hold(vm.line, KLP_HOLD_USER), "wrong_state");
    assert_string_equal(line_ask(vm.line, KLP_KEEPER_CAPTURE, NULL, NULL, 0), "wrong_state");
    assert_in_range((klp_boot_ns(vm.kit->env) - before) / KLP_MS, 0, 2000); /* at once */
    assert_int_equal(status_number(vm.line, KLP_KTAG_HOLDS), KLP_HOLD_FENCE);
    assert_string_equal(line_lease(vm.line, 1, 60000), "");
    assert_true(guest_answers(&vm, 5000));
    vm_exit(&vm);
}

static void test_vm_keeper__a_hold_outlasts_a_fence(void **state)
{
    struct vm vm;
    vm_run(&vm, *state);
    assert_string_equal(line_hold(vm.line, KLP_HOLD_HANDOFF), "");
    assert_string_equal(line_lease(vm.line, 1, 0), "");
    assert_string_equal(line_ask(vm.line, KLP_KEEPER_CAPTURE, NULL, NULL, 0), "wrong_state");
    assert_string_equal(line_hold(vm.line, KLP_HOLD_USER), ""); /* it stands still already */
    assert_string_equal(line_release(vm.line, KLP_HOLD_USER), "");
    assert_string_equal(line_lease(vm.line, 1, 60000), "");
    assert_int_equal(status_number(vm.line, KLP_KTAG_HOLDS), KLP_HOLD_HANDOFF);
    assert_false(guest_answers(&vm, 200));
    assert_string_equal(line_release(vm.line, KLP_HOLD_HANDOFF), "");
    assert_true(guest_answers(&vm, 5000));
    vm_exit(&vm);
}

static void test_vm_keeper__a_release_under_a_fence_waits_for_the_lease(void **state)
{
    struct vm vm;
    vm_run(&vm, *state);
    assert_string_equal(line_hold(vm.line, KLP_HOLD_USER), "");
    assert_string_equal(line_lease(vm.line, 1, 0), "");
    assert_string_equal(line_release(vm.line, KLP_HOLD_USER), "");
    assert_int_equal(answer_number(vm.line, KLP_KTAG_HOLDS), KLP_HOLD_FENCE);
    assert_true(process_wait(vm.kit, guest_pid(&vm), STANDS));
    assert_string_equal(line_lease(vm.line, 1, 60000), "");
    assert_true(guest_answers(&vm, 5000));
    vm_exit(&vm);
}

/* ---- capture and load */

static struct klp_handle zeros_make(struct kit *kit)
{
    struct kelpie_error *err = NULL;
    struct klp_handle memory;
    assert_true(klp_memory_create(kit->env, "zeros", (uint64_t)GUEST_MIB * KLP_MIB, &memory, &err));
    assert_true(klp_memory_seal(kit->env, memory, &err));
    return memory;
}

static void test_vm_keeper__what_was_captured_goes_on_elsewhere(void **state)
{
    struct kit *kit = *state;
    struct vm first, second;
    struct klp_handle parts[2], base = zeros_make(kit);
    struct kelpie_error *err = NULL;
    vm_run(&first, kit);
    assert_string_equal(guest_say(&first, "@fill 8 42"), "pages=2048\n");
    assert_string_equal(line_ask(first.line, KLP_KEEPER_CAPTURE, NULL, NULL, 0), "wrong_state");
    assert_string_equal(line_hold(first.line, KLP_HOLD_SNAPSHOT), "");
    assert_string_equal(line_ask(first.line, KLP_KEEPER_CAPTURE, NULL, NULL, 0), "");
    assert_int_equal(first.line->answer.handle_count, 2);
    for (size_t i = 0; i < 2; i++)
        parts[i] = answer_take(first.line, i);
    assert_true(klp_memory_check(kit->env, parts[1], (uint64_t)GUEST_MIB * KLP_MIB, &err));
    assert_string_equal(line_release(first.line, KLP_HOLD_SNAPSHOT), "");
    assert_string_equal(guest_say(&first, "@fill 8 43"), "pages=2048\n"); /* not in the capture */
    uint64_t count = strtoull(guest_say(&first, "@count"), NULL, 10);

    vm_start_as(&second, kit, "second", NULL, NULL);
    assert_string_equal(line_ask(second.line, KLP_KEEPER_LOAD, NULL, parts, 2), "wrong_state");
    assert_string_equal(line_spawn(second.line, KLP_SPAWN_INCOMING, &base), "");
    assert_int_equal(status_number(second.line, KLP_KTAG_STATE), KLP_KEEPER_SPAWNED);
    assert_string_equal(line_spawn(second.line, KLP_SPAWN_INCOMING, &base), "wrong_state");
    assert_string_equal(line_ask(second.line, KLP_KEEPER_LOAD, NULL, NULL, 0), "protocol");
    assert_string_equal(line_ask(second.line, KLP_KEEPER_LOAD, NULL, parts, 2), "");
    line_status(second.line);
    assert_int_equal(answer_number(second.line, KLP_KTAG_STATE), KLP_KEEPER_LIVE);
    assert_int_equal(answer_number(second.line, KLP_KTAG_HOLDS), KLP_HOLD_RESTORE | KLP_HOLD_FENCE);
    assert_string_equal(line_ask(second.line, KLP_KEEPER_LOAD, NULL, parts, 2), "wrong_state");
    assert_string_equal(line_lease(second.line, 2, 60000), "");
    assert_false(guest_answers(&second, 200));
    assert_string_equal(line_release(second.line, KLP_HOLD_RESTORE), "");
    assert_string_equal(guest_say(&second, "@check"), "pages=2048 bad=0\n");
    assert_in_range(strtoull(guest_say(&second, "@count"), NULL, 10), 1, count + 5000);

    /* The base is given back; a copy of a copy is as good. */
    assert_string_equal(line_ask(second.line, KLP_KEEPER_LAYERS, NULL, NULL, 0), "");
    assert_int_equal(second.line->answer.handle_count, 1);
    assert_true(klp_memory_check(kit->env, second.line->answer.handles[0],
                                 (uint64_t)GUEST_MIB * KLP_MIB, &err));
    assert_string_equal(line_ask(first.line, KLP_KEEPER_LAYERS, NULL, NULL, 0), "not_found");
    klp_handle_close(kit->env, parts[0]);
    klp_handle_close(kit->env, parts[1]);
    klp_handle_close(kit->env, base);
    vm_exit(&first);
    vm_exit(&second);
}

static void test_vm_keeper__a_damaged_device_state_is_refused(void **state)
{
    struct kit *kit = *state;
    struct kelpie_error *err = NULL;
    struct klp_handle base = zeros_make(kit), device;
    struct vm vm;
    uint64_t sizes[] = {0, 3, 8, 256, 257, 1 << 20};
    for (size_t i = 0; i < KLP_COUNT(sizes); i++) {
        vm_start(&vm, kit);
        assert_string_equal(line_spawn(vm.line, KLP_SPAWN_INCOMING, &base), "");
        assert_true(klp_memory_create(kit->env, "device", sizes[i], &device, &err));
        assert_true(klp_memory_seal(kit->env, device, &err));
        assert_string_equal(line_ask(vm.line, KLP_KEEPER_LOAD, NULL, &device, 1), "corrupt");
        assert_int_equal(status_number(vm.line, KLP_KTAG_STATE), KLP_KEEPER_SPAWNED);
        klp_handle_close(kit->env, device);
        vm_exit(&vm);
    }
    klp_handle_close(kit->env, base);
}

static void test_vm_keeper__a_base_must_be_sealed_and_fit(void **state)
{
    struct kit *kit = *state;
    struct kelpie_error *err = NULL;
    struct klp_handle base;
    struct vm vm;
    vm_start(&vm, kit);
    assert_true(klp_memory_create(kit->env, "open", (uint64_t)GUEST_MIB * KLP_MIB, &base, &err));
    assert_string_equal(line_spawn(vm.line, KLP_SPAWN_INCOMING, &base), "corrupt");
    klp_handle_close(kit->env, base);
    assert_true(klp_memory_create(kit->env, "small", KLP_MIB, &base, &err));
    assert_true(klp_memory_seal(kit->env, base, &err));
    assert_string_equal(line_spawn(vm.line, KLP_SPAWN_INCOMING, &base), "corrupt");
    klp_handle_close(kit->env, base);
    assert_int_equal(status_number(vm.line, KLP_KTAG_STATE), KLP_KEEPER_EMPTY);
    assert_string_equal(line_spawn(vm.line, KLP_SPAWN_COLD, NULL), ""); /* nothing is spoilt */
    vm_exit(&vm);
}

/* ---- ends */

static void test_vm_keeper__a_kill_is_told_and_remembered(void **state)
{
    struct vm vm;
    vm_run(&vm, *state);
    int64_t pid = guest_pid(&vm);
    struct line *watch = line_open(vm.kit, vm.dir);
    assert_string_equal(line_ask(watch, KLP_KEEPER_WATCH, NULL, NULL, 0), "");
    assert_string_equal(line_ask(vm.line, KLP_KEEPER_KILL, NULL, NULL, 0), "");
    assert_int_equal(process_state(pid), 0); /* reaped before the answer */
    assert_true(event_wait(watch, KLP_KEEPER_DEAD, false));
    assert_string_equal(answer_text(watch, KLP_KTAG_REASON), "killed as ordered");
    assert_int_equal(answer_number(watch, KLP_KTAG_EXIT_SIGNAL), SIGKILL);
    assert_string_equal(line_hold(vm.line, KLP_HOLD_USER), "crashed");
    assert_string_equal(line_ask(vm.line, KLP_KEEPER_CAPTURE, NULL, NULL, 0), "crashed");
    assert_string_equal(line_ask(vm.line, KLP_KEEPER_GUEST, NULL, NULL, 0), "crashed");
    assert_string_equal(line_spawn(vm.line, KLP_SPAWN_COLD, NULL), "crashed");
    assert_string_equal(line_ask(vm.line, KLP_KEEPER_KILL, NULL, NULL, 0), "");
    assert_string_equal(line_lease(vm.line, 2, 60000), "");
    line_close(watch);
    vm_exit(&vm);
}

static void test_vm_keeper__a_fenced_guest_can_be_ended(void **state)
{
    struct vm vm;
    vm_run(&vm, *state);
    int64_t pid = guest_pid(&vm);
    assert_string_equal(line_lease(vm.line, 1, 0), "");
    assert_true(process_wait(vm.kit, pid, STANDS));
    vm_exit(&vm);
    assert_int_equal(process_state(pid), 0);
}

static void guest_order(struct vm *vm, uint16_t type, const char *word)
{
    struct guest *guest = malloc(sizeof(*guest));
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(256);
    assert_true(guest_open(vm, guest, 5000));
    if (word != NULL)
        klp_field_append_text(&body, KLP_TAG_ARG, word);
    frame_send(guest, type, 1, &body);
    klp_stream_close(guest->stream);
    free(guest);
}

static void test_vm_keeper__a_crash_leaves_its_last_words(void **state)
{
    struct vm vm;
    vm_run(&vm, *state);
    struct line *watch = line_open(vm.kit, vm.dir);
    assert_string_equal(line_ask(watch, KLP_KEEPER_WATCH, NULL, NULL, 0), "");
    guest_order(&vm, KLP_GUEST_EXEC, "@crash");
    assert_true(event_wait(watch, KLP_KEEPER_DEAD, false));
    assert_string_equal(line_ask(vm.line, KLP_KEEPER_CONSOLE, NULL, NULL, 0), "");
    if (answer_number(watch, KLP_KTAG_EXIT_CODE) != 99)
        print_message("%s\n", answer_text(vm.line, KLP_KTAG_CONSOLE));
    assert_int_equal(answer_number(watch, KLP_KTAG_CLEAN), 0);
    assert_int_equal(answer_number(watch, KLP_KTAG_EXIT_CODE), 99);
    assert_non_null(strstr(answer_text(vm.line, KLP_KTAG_CONSOLE), "crashed"));
    line_close(watch);
    vm_exit(&vm);
}

static void test_vm_keeper__a_shutdown_is_clean(void **state)
{
    struct vm vm;
    vm_run(&vm, *state);
    struct line *watch = line_open(vm.kit, vm.dir);
    assert_string_equal(line_ask(watch, KLP_KEEPER_WATCH, NULL, NULL, 0), "");
    guest_order(&vm, KLP_GUEST_SHUTDOWN, NULL);
    assert_true(event_wait(watch, KLP_KEEPER_DEAD, false));
    assert_int_equal(answer_number(watch, KLP_KTAG_CLEAN), 1);
    assert_string_equal(answer_text(watch, KLP_KTAG_REASON), "the guest powered off");
    line_close(watch);
    vm_exit(&vm);
}

static void killed(struct vm *vm, int signal)
{
    int how = 0;
    assert_int_equal(kill(vm->pid, signal), 0);
    assert_int_equal(waitpid(vm->pid, &how, 0), vm->pid);
    assert_true(WIFSIGNALED(how));
    line_close(vm->line);
    klp_dir_close(vm->dir);
}

static void test_vm_keeper__a_killed_keeper_takes_its_guest_along(void **state)
{
    struct vm vm;
    vm_run(&vm, *state);
    int64_t pid = guest_pid(&vm);
    assert_true(guest_answers(&vm, 5000));
    killed(&vm, SIGKILL);
    assert_true(process_wait(vm.kit, pid, GONE));
}

static void test_vm_keeper__a_killed_keeper_takes_a_fenced_guest_along(void **state)
{
    struct vm vm;
    vm_run(&vm, *state);
    int64_t pid = guest_pid(&vm);
    assert_string_equal(line_lease(vm.line, 1, 0), "");
    assert_true(process_wait(vm.kit, pid, STANDS));
    killed(&vm, SIGKILL);
    assert_true(process_wait(vm.kit, pid, GONE));
}

static void test_vm_keeper__sigterm_ends_keeper_and_guest(void **state)
{
    struct vm vm;
    vm_run(&vm, *state);
    int64_t pid = guest_pid(&vm);
    kill(vm.pid, SIGHUP); /* of no interest */
    kill(vm.pid, SIGINT);
    assert_string_equal(guest_say(&vm, "@echo there"), "there\n");
    killed(&vm, SIGTERM);
    assert_true(process_wait(vm.kit, pid, GONE));
}

static void test_vm_keeper__an_empty_one_that_nobody_wants_ends(void **state)
{
    struct vm vm;
    vm_start_as(&vm, *state, "vm", (const char *[]){"--orphan-ms", "300", NULL}, NULL);
    nap(vm.kit, 700); /* somebody is connected */
    line_status(vm.line);
    vm_ended(&vm, 0);
    assert_int_equal(access(vm.path, F_OK), -1);
}

static void test_vm_keeper__a_live_guest_is_kept_without_a_daemon(void **state)
{
    struct vm vm;
    vm_start_as(&vm, *state, "vm", (const char *[]){"--orphan-ms", "200", NULL}, NULL);
    assert_string_equal(line_lease(vm.line, 1, 100), "");
    assert_string_equal(line_spawn(vm.line, KLP_SPAWN_COLD, NULL), "");
    int64_t pid = guest_pid(&vm);
    line_close(vm.line);
    nap(vm.kit, 800);
    assert_true(process_wait(vm.kit, pid, STANDS)); /* fenced, and not killed */
    vm.line = line_open(vm.kit, vm.dir);
    assert_string_equal(line_lease(vm.line, 1, 60000), "");
    assert_string_equal(guest_say(&vm, "@echo adopted"), "adopted\n");
    line_close(vm.line);
    vm.line = NULL;
    assert_int_equal(kill((pid_t)pid, SIGKILL), 0);
    vm_ended(&vm, 0); /* what is left is of no use to anybody */
    assert_int_equal(access(vm.path, F_OK), -1);
}

/* ---- nonsense */

static void raw_send(struct line *line, const void *bytes, size_t size)
{
    struct kelpie_op op = klp_op_plain(line->env, 5000);
    struct kelpie_error *err = NULL;
    KIT_OK(klp_chan_send(&op, line->chan, bytes, size, NULL, 0, &err));
}

static void test_vm_keeper__nonsense_ends_its_connection_only(void **state)
{
    static uint8_t huge[KLP_KEEPER_FRAME_MAX + 1];
    static const uint8_t zeros[16];
    struct vm vm;
    const struct {
        const void *bytes;
        size_t size;
        const char *code;
    } cases[] = {{"x", 1, "protocol"},
                 {"KPR1", 4, "protocol"},
                 {zeros, sizeof(zeros), "protocol"},
                 {"KPR1\x01\0\0\0\0\0\0\0\0\0\0\0\x07", 17, "protocol"},
                 {"KPR1\x01\0\1\0\0\0\0\0\0\0\0\0", 16, "protocol"},
                 {huge, sizeof(huge), "limit"}};
    vm_run(&vm, *state);
    for (size_t i = 0; i < KLP_COUNT(cases); i++) {
        struct line *line = line_open(vm.kit, vm.dir);
        raw_send(line, cases[i].bytes, cases[i].size);
        assert_true(line_receive(line, 5000));
        assert_int_equal(line->answer.type, KLP_KEEPER_ERROR);
        assert_int_equal(line->answer.id, 0);
        assert_string_equal(answer_text(line, KLP_KTAG_ERROR), cases[i].code);
        assert_false(line_receive(line, 5000)); /* and nothing more */
        line_close(line);
    }
    assert_string_equal(guest_say(&vm, "@echo unmoved"), "unmoved\n");
    vm_exit(&vm);
}

static void test_vm_keeper__wrong_orders_are_answered(void **state)
{
    struct vm vm;
    struct klp_handle zeros[3];
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf fields = KLP_BUF_INIT(32 * 1024);
    vm_start(&vm, *state);
    for (size_t i = 0; i < 3; i++)
        zeros[i] = zeros_make(vm.kit);
    const uint16_t types[] = {15, 63, KLP_KEEPER_OK, KLP_KEEPER_ERROR, 65535};
    for (size_t i = 0; i < KLP_COUNT(types); i++)
        assert_string_equal(line_ask(vm.line, types[i], NULL, NULL, 0), "protocol");
    assert_string_equal(line_ask(vm.line, KLP_KEEPER_SPAWN, NULL, zeros, 3), "protocol");
    klp_field_append(&fields, KLP_KTAG_MACHINE, "junk", 4);
    assert_string_equal(line_ask(vm.line, KLP_KEEPER_SPAWN, &fields, NULL, 0), "corrupt");
    klp_buf_clear(&fields);
    spawn_fields(&fields, (enum klp_spawn_mode)7);
    assert_string_equal(line_ask(vm.line, KLP_KEEPER_SPAWN, &fields, NULL, 0), "protocol");
    klp_buf_clear(&fields);
    klp_field_append(&fields, KLP_KTAG_EPOCH, "1234", 4); /* a number has 8 bytes */
    assert_string_equal(line_ask(vm.line, KLP_KEEPER_LEASE, &fields, NULL, 0), "protocol");
    assert_string_equal(line_hold(vm.line, KLP_HOLD_USER), "wrong_state");
    assert_string_equal(line_ask(vm.line, KLP_KEEPER_GUEST, NULL, NULL, 0), "wrong_state");
    assert_string_equal(line_ask(vm.line, KLP_KEEPER_CAPTURE, NULL, NULL, 0), "wrong_state");
    assert_string_equal(line_ask(vm.line, KLP_KEEPER_KILL, NULL, NULL, 0), "");
    assert_int_equal(status_number(vm.line, KLP_KTAG_STATE), KLP_KEEPER_EMPTY);
    for (size_t i = 0; i < 3; i++)
        klp_handle_close(vm.kit->env, zeros[i]);
    vm_exit(&vm);
}

static size_t fd_count(int pid)
{
    char path[64];
    size_t count = 0;
    snprintf(path, sizeof(path), "/proc/%d/fd", pid);
    DIR *fds = opendir(path);
    while (fds != NULL && readdir(fds) != NULL)
        count++;
    closedir(fds);
    return count;
}

static void test_vm_keeper__handles_of_refused_orders_do_not_pile_up(void **state)
{
    struct vm vm;
    vm_run(&vm, *state);
    struct klp_handle all[KLP_KEEPER_HANDLES_MAX];
    all[0] = zeros_make(vm.kit);
    for (size_t i = 1; i < KLP_COUNT(all); i++)
        all[i] = all[0];
    line_status(vm.line);
    size_t before = fd_count(vm.pid);
    for (size_t i = 0; i < 40; i++) {
        assert_string_equal(line_ask(vm.line, KLP_KEEPER_STATUS, NULL, all, KLP_COUNT(all)), "");
        assert_string_equal(line_ask(vm.line, KLP_KEEPER_LOAD, NULL, all, KLP_COUNT(all)),
                            "wrong_state");
        assert_string_equal(line_ask(vm.line, KLP_KEEPER_GUEST, NULL, NULL, 0), "");
    }
    line_status(vm.line);
    assert_int_equal(fd_count(vm.pid), before);
    klp_handle_close(vm.kit->env, all[0]);
    vm_exit(&vm);
}

static void test_vm_keeper__connections_have_a_limit_and_come_back(void **state)
{
    struct vm vm;
    struct line *lines[15], *late;
    vm_start(&vm, *state);
    for (size_t i = 0; i < KLP_COUNT(lines); i++) {
        lines[i] = line_open(vm.kit, vm.dir);
        line_status(lines[i]);
    }
    late = line_open(vm.kit, vm.dir);
    assert_false(line_receive(late, 5000)); /* closed */
    line_close(late);
    line_status(vm.line);
    for (size_t i = 0; i < KLP_COUNT(lines); i++)
        line_close(lines[i]);
    for (int i = 0; i < 100; i++) { /* slots are used again */
        bool served = false;
        for (int tries = 0; tries < 100 && !served; tries++) { /* an end is seen in its own time */
            struct line *line = line_open(vm.kit, vm.dir);
            struct kelpie_op op = klp_op_plain(vm.kit->env, 1000);
            __attribute__((cleanup(klp_auto_buf))) struct klp_buf frame = KLP_BUF_INIT(64);
            klp_keeper_frame_append(&frame, KLP_KEEPER_STATUS, 1, (struct klp_bytes){NULL, 0});
            served = kelpie_is_ok(
                         klp_chan_send(&op, line->chan, frame.data, frame.size, NULL, 0, NULL)) &&
                     line_receive(line, 1000);
            line_close(line);
        }
        assert_true(served);
    }
    vm_exit(&vm);
}

static void test_vm_keeper__two_in_one_folder_are_one_too_many(void **state)
{
    struct vm vm, second = {.kit = *state};
    vm_run(&vm, *state);
    memcpy(second.path, vm.path, sizeof(vm.path));
    int pid = keeper_spawn(&second, NULL, NULL), how;
    assert_int_equal(waitpid(pid, &how, 0), pid);
    assert_true(WIFEXITED(how) && WEXITSTATUS(how) == kelpie_code_exit(KELPIE_E_EXISTS));
    assert_string_equal(guest_say(&vm, "@echo mine"), "mine\n"); /* the first has lost nothing */
    struct line *again = line_open(vm.kit, vm.dir);
    line_close(again);
    vm_exit(&vm);
}

/* ---- the program */

static void refused(struct kit *kit, const char *const *words, const char *const *env, int status)
{
    struct vm vm;
    int how;
    folder_make(&vm, kit, "refused");
    int pid = keeper_spawn(&vm, words, env);
    assert_int_equal(waitpid(pid, &how, 0), pid);
    assert_true(WIFEXITED(how));
    assert_int_equal(WEXITSTATUS(how), status);
    klp_dir_close(vm.dir);
}

static void test_vm_keeper__wrong_words_are_refused(void **state)
{
    struct kit *kit = *state;
    int invalid = kelpie_code_exit(KELPIE_E_INVALID);
    refused(kit, (const char *[]){"--nonsense", NULL}, NULL, invalid);
    refused(kit, (const char *[]){"--orphan-ms", NULL}, NULL, invalid);
    refused(kit, (const char *[]){"--orphan-ms", "-1", NULL}, NULL, invalid);
    refused(kit, (const char *[]){"--vm", "../../x", NULL}, NULL, invalid);
    refused(kit, (const char *[]){"--backend", "none", NULL}, NULL,
            kelpie_code_exit(KELPIE_E_UNSUPPORTED));
    refused(kit, (const char *[]){"--dir", "/nonexistent/x", NULL}, NULL,
            kelpie_code_exit(KELPIE_E_NOT_FOUND));
    refused(kit, NULL, (const char *[]){"KELPIE_POINT=keeper.lease:kill", NULL}, invalid);
}

static void test_vm_keeper__faults_need_test_points(void **state)
{
    static const char *const boot[] = {"KELPIE_MOCK_FAULT=boot", NULL};
    struct vm vm;
    vm_start_as(&vm, *state, "vm", NULL, boot);
    assert_string_equal(line_spawn(vm.line, KLP_SPAWN_COLD, NULL), "");
    vm_exit(&vm);
    vm_start_as(&vm, *state, "vm", (const char *[]){"--test-points", NULL}, boot);
    assert_string_equal(line_spawn(vm.line, KLP_SPAWN_COLD, NULL), "io");
    assert_int_equal(status_number(vm.line, KLP_KTAG_STATE), KLP_KEEPER_EMPTY);
    vm_exit(&vm);
}

static void fault_start(struct vm *vm, struct kit *kit, const char *setting)
{
    const char *env[] = {setting, NULL};
    vm_start_as(vm, kit, "vm", (const char *[]){"--test-points", NULL}, env);
    assert_string_equal(line_lease(vm->line, 1, 60000), "");
}

static void test_vm_keeper__a_failed_capture_leaves_the_guest_as_it_was(void **state)
{
    struct vm vm;
    fault_start(&vm, *state, "KELPIE_MOCK_FAULT=capture");
    assert_string_equal(line_spawn(vm.line, KLP_SPAWN_COLD, NULL), "");
    assert_string_equal(line_hold(vm.line, KLP_HOLD_SNAPSHOT), "");
    assert_string_equal(line_ask(vm.line, KLP_KEEPER_CAPTURE, NULL, NULL, 0), "io");
    assert_int_equal(status_number(vm.line, KLP_KTAG_HOLDS), KLP_HOLD_SNAPSHOT);
    assert_string_equal(line_release(vm.line, KLP_HOLD_SNAPSHOT), "");
    assert_true(guest_answers(&vm, 5000));
    vm_exit(&vm);
}

static void test_vm_keeper__a_guest_that_dies_in_a_capture_has_crashed(void **state)
{
    struct vm vm;
    fault_start(&vm, *state, "KELPIE_MOCK_FAULT=crash-in-capture");
    assert_string_equal(line_spawn(vm.line, KLP_SPAWN_COLD, NULL), "");
    assert_string_equal(line_hold(vm.line, KLP_HOLD_SNAPSHOT), "");
    assert_string_equal(line_ask(vm.line, KLP_KEEPER_CAPTURE, NULL, NULL, 0), "crashed");
    for (int i = 0; i < 500 && status_number(vm.line, KLP_KTAG_STATE) != KLP_KEEPER_DEAD; i++)
        nap(vm.kit, 10);
    assert_int_equal(status_number(vm.line, KLP_KTAG_STATE), KLP_KEEPER_DEAD);
    vm_exit(&vm);
}

static void test_vm_keeper__dies_at_each_point_with_its_guest(void **state)
{
    static const char *const points[] = {"spawned",        "lease",         "held",
                                         "before-capture", "after-capture", "released",
                                         "before-load",    "after-load"};
    struct klp_handle base = zeros_make(*state);
    for (size_t i = 0; i < KLP_COUNT(points); i++) {
        char setting[64];
        struct vm vm;
        int how;
        bool loads = strstr(points[i], "load") != NULL;
        const char *env[] = {setting, NULL};
        snprintf(setting, sizeof(setting), "KELPIE_POINT=keeper.%s:kill", points[i]);
        vm_start_as(&vm, *state, "vm", (const char *[]){"--test-points", NULL}, env);
        line_send(vm.line, loads ? KLP_KEEPER_STATUS : KLP_KEEPER_LEASE, NULL, NULL, 0);
        struct kelpie_op op = klp_op_plain(vm.kit->env, 5000);
        const uint16_t orders[] = {loads ? KLP_KEEPER_LOAD : KLP_KEEPER_HOLD, KLP_KEEPER_CAPTURE,
                                   KLP_KEEPER_RELEASE};
        __attribute__((cleanup(klp_auto_buf))) struct klp_buf spawn = KLP_BUF_INIT(32 * 1024);
        __attribute__((cleanup(klp_auto_buf))) struct klp_buf frames = KLP_BUF_INIT(64 * 1024);
        __attribute__((cleanup(klp_auto_buf))) struct klp_buf lease = KLP_BUF_INIT(64);
        klp_field_append_u64(&lease, KLP_KTAG_HOLDS, KLP_HOLD_USER);
        klp_field_append_u64(&lease, KLP_KTAG_EPOCH, 2);
        klp_field_append_u64(&lease, KLP_KTAG_FENCE_AT_NS, UINT64_MAX);
        spawn_fields(&spawn, loads ? KLP_SPAWN_INCOMING : KLP_SPAWN_COLD);
        /* All at once, each answered or cut off; the mock's device state is its magic alone. */
        struct klp_handle device;
        assert_true(klp_memory_create(vm.kit->env, "device", 8, &device, NULL));
        assert_true(klp_memory_write(vm.kit->env, device, 0, "MOCKDEV1", 8, NULL));
        assert_true(klp_memory_seal(vm.kit->env, device, NULL));
        for (size_t order = 0; order < 5; order++) {
            uint16_t type = order == 0   ? KLP_KEEPER_LEASE
                            : order == 1 ? KLP_KEEPER_SPAWN
                                         : orders[order - 2];
            const struct klp_buf *fields = order == 1 ? &spawn : &lease;
            klp_buf_clear(&frames);
            klp_keeper_frame_append(&frames, type, order, klp_buf_view(fields));
            KLP_IGNORE(klp_chan_send(&op, vm.line->chan, frames.data, frames.size,
                                     order == 1 ? &base : &device,
                                     loads && (order == 1 || order == 2) ? 1 : 0, NULL));
        }
        klp_handle_close(vm.kit->env, device);
        assert_int_equal(waitpid(vm.pid, &how, 0), vm.pid);
        assert_true(WIFSIGNALED(how) && WTERMSIG(how) == SIGKILL);
        while (line_receive(vm.line, 1000))
            continue;
        line_close(vm.line);
        klp_dir_close(vm.dir);
        assert_int_equal(klp_dir_remove_tree(vm.kit->dir, "vm", NULL), true);
    }
    klp_handle_close(((struct kit *)*state)->env, base);
}

/* ---- launching */

static void test_vm_keeper__a_launched_one_is_nobodys_child(void **state)
{
    struct kelpie_error *err = NULL;
    struct vm vm;
    folder_make(&vm, *state, "vm");
    struct kelpie_op op = klp_op_plain(vm.kit->env, 20000);
    KIT_OK(klp_keeper_launch(&op, keeper_path, "mock", NULL, vm.dir, KEEPER_VM, &err));
    vm.line = line_open(vm.kit, vm.dir);
    int64_t pid = (int64_t)status_number(vm.line, KLP_KTAG_KEEPER_PID);
    assert_int_equal(waitpid((pid_t)pid, NULL, WNOHANG), -1);
    assert_int_equal(getsid((pid_t)pid), pid);        /* a session of its own */
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1); /* nothing to reap at all */
    assert_string_equal(line_lease(vm.line, 1, 60000), "");
    assert_string_equal(line_spawn(vm.line, KLP_SPAWN_COLD, NULL), "");
    assert_string_equal(guest_say(&vm, "@echo free"), "free\n");
    assert_string_equal(line_ask(vm.line, KLP_KEEPER_EXIT, NULL, NULL, 0), "");
    assert_true(process_wait(vm.kit, pid, GONE));
    line_close(vm.line);
    klp_dir_close(vm.dir);
}

static void launch_fails(struct kit *kit, const char *path, const char *backend,
                         const char *const *words, uint64_t timeout_ms, const char *text)
{
    struct kelpie_error *err = NULL;
    struct vm vm;
    folder_make(&vm, kit, "vm");
    struct kelpie_op op = klp_op_plain(kit->env, timeout_ms);
    assert_false(
        kelpie_is_ok(klp_keeper_launch(&op, path, backend, words, vm.dir, KEEPER_VM, &err)));
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf all = KLP_BUF_INIT(16384);
    for (const struct kelpie_error *at = err; at != NULL; at = kelpie_error_cause(at))
        klp_buf_append_text(&all, kelpie_error_message(at));
    if (strstr(klp_buf_text(&all), text) == NULL)
        fail_msg("'%s' does not say '%s'", klp_buf_text(&all), text);
    kelpie_error_free(err);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
    klp_dir_close(vm.dir);
    assert_true(klp_dir_remove_tree(kit->dir, "vm", NULL));
}

static void test_vm_keeper__a_launch_that_fails_says_why(void **state)
{
    static const char *const nonsense[] = {"--nonsense", NULL};
    launch_fails(*state, "/nonexistent/kelpie-keeper", "mock", NULL, 10000, "kelpie-keeper");
    launch_fails(*state, keeper_path, "none", NULL, 10000, "no backend 'none'");
    launch_fails(*state, keeper_path, "mock", nonsense, 10000, "--nonsense");
}

/* A program that never gets ready, in a folder that it is found by: nothing of it stays. */
static void test_vm_keeper__a_launch_that_hangs_is_given_up(void **state)
{
    static const char *const slow[] = {"--orphan-ms", "600000", NULL};
    struct kit *kit = *state;
    struct klp_env_posix_options options = {
        .program = "unit-test", .level = KLP_LOG_ERROR, .test_points = true};
    struct kelpie_error *err = NULL;
    struct klp_env *env;
    struct klp_dir *dir;
    assert_true(klp_env_posix_create(&options, &env, &err));
    assert_true(klp_dir_open(env, kit->path, false, &dir, &err));
    struct kelpie_op op = klp_op_plain(env, 0);
    assert_false(
        kelpie_is_ok(klp_keeper_launch(&op, keeper_path, "mock", slow, dir, KEEPER_VM, &err)));
    assert_int_equal(kelpie_error_code(err), KELPIE_E_TIMEOUT);
    kelpie_error_free(err);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
    nap(kit, 300); /* whoever still came up would listen by now */
    struct kelpie_op look = klp_op_plain(env, 1000);
    struct klp_chan *chan;
    assert_false(kelpie_is_ok(klp_chan_connect(&look, dir, KLP_KEEPER_SOCKET, &chan, NULL)));
    klp_dir_close(dir);
    klp_env_posix_destroy(env);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        KIT_TEST(test_vm_keeper__begins_empty_and_fenced),
        KIT_TEST(test_vm_keeper__keeps_a_note_and_the_machine),
        KIT_TEST(test_vm_keeper__nothing_runs_without_a_lease),
        KIT_TEST(test_vm_keeper__the_clock_fences_without_a_daemon),
        KIT_TEST(test_vm_keeper__time_under_a_fence_is_not_the_guests),
        KIT_TEST(test_vm_keeper__a_renewal_postpones_the_fence),
        KIT_TEST(test_vm_keeper__an_older_epoch_is_denied),
        KIT_TEST(test_vm_keeper__holds_are_a_set),
        KIT_TEST(test_vm_keeper__the_fence_is_the_clocks_alone),
        KIT_TEST(test_vm_keeper__under_a_fence_nothing_new_is_held_or_captured),
        KIT_TEST(test_vm_keeper__a_hold_outlasts_a_fence),
        KIT_TEST(test_vm_keeper__a_release_under_a_fence_waits_for_the_lease),
        KIT_TEST(test_vm_keeper__what_was_captured_goes_on_elsewhere),
        KIT_TEST(test_vm_keeper__a_damaged_device_state_is_refused),
        KIT_TEST(test_vm_keeper__a_base_must_be_sealed_and_fit),
        KIT_TEST(test_vm_keeper__a_kill_is_told_and_remembered),
        KIT_TEST(test_vm_keeper__a_fenced_guest_can_be_ended),
        KIT_TEST(test_vm_keeper__a_crash_leaves_its_last_words),
        KIT_TEST(test_vm_keeper__a_shutdown_is_clean),
        KIT_TEST(test_vm_keeper__a_killed_keeper_takes_its_guest_along),
        KIT_TEST(test_vm_keeper__a_killed_keeper_takes_a_fenced_guest_along),
        KIT_TEST(test_vm_keeper__sigterm_ends_keeper_and_guest),
        KIT_TEST(test_vm_keeper__an_empty_one_that_nobody_wants_ends),
        KIT_TEST(test_vm_keeper__a_live_guest_is_kept_without_a_daemon),
        KIT_TEST(test_vm_keeper__nonsense_ends_its_connection_only),
        KIT_TEST(test_vm_keeper__wrong_orders_are_answered),
        KIT_TEST(test_vm_keeper__handles_of_refused_orders_do_not_pile_up),
        KIT_TEST(test_vm_keeper__connections_have_a_limit_and_come_back),
        KIT_TEST(test_vm_keeper__two_in_one_folder_are_one_too_many),
        KIT_TEST(test_vm_keeper__wrong_words_are_refused),
        KIT_TEST(test_vm_keeper__faults_need_test_points),
        KIT_TEST(test_vm_keeper__a_failed_capture_leaves_the_guest_as_it_was),
        KIT_TEST(test_vm_keeper__a_guest_that_dies_in_a_capture_has_crashed),
        KIT_TEST(test_vm_keeper__dies_at_each_point_with_its_guest),
        KIT_TEST(test_vm_keeper__a_launched_one_is_nobodys_child),
        KIT_TEST(test_vm_keeper__a_launch_that_fails_says_why),
        KIT_TEST(test_vm_keeper__a_launch_that_hangs_is_given_up),
    };
    const char *named = getenv("KELPIE_KEEPER");
    if (realpath(named != NULL ? named : "build/kelpie-keeper", keeper_path) == NULL) {
        print_message("no kelpie-keeper: set KELPIE_KEEPER to the program\n");
        return 1;
    }
    return cmocka_run_group_tests_name("vm_keeper", tests, NULL, NULL);
}
