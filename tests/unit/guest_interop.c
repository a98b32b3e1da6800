/* SPDX-License-Identifier: Apache-2.0 */
/* The host's side of the protocol (vm/guest) against the built agent: what one says the other
 * takes. */
#include "guest_kit.h"

#include "env/posix/posix.h"
#include "vm/guest.h"

struct pair {
    struct client agent; /* for its process and its folder; the stream is the host's */
    struct klp_env *env;
    struct klp_guest *guest;
    struct kelpie_op op;
};

static struct pair the_pair;

static int setup(void **state)
{
    struct pair *p = &the_pair;
    struct klp_env_posix_options options = {.program = "guest_interop", .level = KLP_LOG_ERROR};
    struct klp_stream *stream = NULL;
    struct kelpie_error *err = NULL;
    assert_true(klp_env_posix_create(&options, &p->env, NULL));
    client_start(&p->agent, NULL);
    assert_true(klp_stream_open(p->env, klp_handle_from_fd(p->agent.fd), &stream, NULL));
    p->op = klp_op_plain(p->env, 30000);
    if (!kelpie_is_ok(klp_guest_open(&p->op, p->env, stream, &p->guest, &err)))
        fail_msg("%s", kelpie_error_message(err));
    *state = p;
    return 0;
}

static int teardown(void **state)
{
    struct pair *p = *state;
    klp_guest_close(p->guest);
    assert_int_equal(client_wait_exit(&p->agent), 0);
    client_remove_tree(p->agent.root);
    klp_env_posix_destroy(p->env);
    return 0;
}

static void well(kelpie_outcome outcome, struct kelpie_error **err)
{
    if (!kelpie_is_ok(outcome))
        fail_msg("%s", kelpie_error_message(*err));
}

static void refused(kelpie_outcome outcome, struct kelpie_error **err, enum kelpie_code code)
{
    assert_int_equal(outcome.kind, KELPIE_FAIL);
    if (kelpie_error_code(*err) != code)
        fail_msg("%s", kelpie_error_message(*err));
    klp_error_clear(err);
}

/* ---- programs */

struct talk {
    const char *input;
    size_t input_left;
    struct klp_buf out, err;
};

static size_t talk_input(void *arg, void *out, size_t capacity)
{
    struct talk *talk = arg;
    size_t size = talk->input_left < capacity ? talk->input_left : capacity;
    memcpy(out, talk->input, size);
    talk->input += size;
    talk->input_left -= size;
    return size;
}

static bool talk_output(void *arg, bool is_stderr, const void *data, size_t size)
{
    struct talk *talk = arg;
    klp_buf_append(is_stderr ? &talk->err : &talk->out, data, size);
    return true;
}

static void talk_run(struct pair *p, const char *const *argv, const char *input, size_t input_size,
                     struct talk *talk, struct kelpie_exec_status *status)
{
    struct kelpie_error *err = NULL;
    *talk = (struct talk){.input = input,
                          .input_left = input_size,
                          .out = KLP_BUF_INIT(CLIENT_OUTPUT_MAX),
                          .err = KLP_BUF_INIT(CLIENT_OUTPUT_MAX)};
    struct kelpie_exec exec = {.argv = argv,
                               .input = input != NULL ? talk_input : NULL,
                               .output = talk_output,
                               .arg = talk,
                               .timeout_ms = 20000};
    well(klp_guest_exec(&p->op, p->guest, &exec, status, &err), &err);
}

static void talk_finish(struct talk *talk)
{
    klp_buf_finish(&talk->out);
    klp_buf_finish(&talk->err);
}

static void test_guest_interop__programs(void **state)
{
    struct pair *p = *state;
    struct talk talk;
    struct kelpie_exec_status status;
    struct kelpie_error *err = NULL;
    enum { BIG = 1500000 };
    char *input = klp_mem_alloc(BIG);
    klp_keyed_page(4, 5, 6, input, BIG);
    talk_run(p, CLIENT_SHELL("cat; echo told >&2; exit 6"), input, BIG, &talk, &status);
    assert_int_equal(status.exit_code, 6);
    assert_int_equal(talk.out.size, BIG);
    assert_memory_equal(talk.out.data, input, BIG);
    assert_string_equal(klp_buf_text(&talk.err), "told\n");
    talk_finish(&talk);
    klp_mem_free(input);
    talk_run(p, CLIENT_ARGV("@flood", "2000000", "err"), NULL, 0, &talk, &status);
    assert_int_equal(talk.err.size, 2000000);
    talk_finish(&talk);
    talk_run(p, CLIENT_ARGV("@raise", "9"), NULL, 0, &talk, &status);
    assert_int_equal(status.signal, 9);
    assert_int_equal(status.exit_code, 137);
    talk_finish(&talk);
    struct kelpie_exec exec = {.argv = CLIENT_ARGV("no-such-program")};
    refused(klp_guest_exec(&p->op, p->guest, &exec, &status, &err), &err, KELPIE_E_NO_COMMAND);
    exec = (struct kelpie_exec){.argv = CLIENT_ARGV("@sleep", "100"), .timeout_ms = 50};
    well(klp_guest_exec(&p->op, p->guest, &exec, &status, &err), &err);
    assert_true(status.timed_out);
    exec = (struct kelpie_exec){
        .argv = CLIENT_SHELL("test -t 0"), .tty = true, .rows = 24, .cols = 80};
    well(klp_guest_exec(&p->op, p->guest, &exec, &status, &err), &err);
    assert_int_equal(status.exit_code, 0);
}

/* ---- files */

static size_t buffer_input(void *arg, void *out, size_t capacity)
{
    struct klp_bytes *left = arg;
    size_t size = left->size < capacity ? left->size : capacity;
    memcpy(out, left->data, size);
    left->data += size;
    left->size -= size;
    return size;
}

static bool buffer_output(void *arg, const void *data, size_t size)
{
    klp_buf_append(arg, data, size);
    return true;
}

static void test_guest_interop__files(void **state)
{
    struct pair *p = *state;
    struct kelpie_error *err = NULL;
    struct klp_buf tar = KLP_BUF_INIT(CLIENT_OUTPUT_MAX), back = KLP_BUF_INIT(CLIENT_OUTPUT_MAX);
    char *big = klp_mem_alloc(900001);
    memset(big, 'z', 900000);
    client_tar_entry(&tar, KLP_TAR_FILE, "dir/big", "", big, 0600);
    klp_tar_end_append(&tar);
    struct klp_bytes left = klp_buf_view(&tar);
    well(klp_guest_put(&p->op, p->guest, client_path(&p->agent, "/in"), buffer_input, &left, &err),
         &err);
    well(klp_guest_get(&p->op, p->guest, KLP_GUEST_GET, client_path(&p->agent, "/in/dir"),
                       buffer_output, &back, &err),
         &err);
    assert_in_range(back.size, 900000, 910000);
    refused(klp_guest_get(&p->op, p->guest, KLP_GUEST_GET, "/no/such", buffer_output, &back, &err),
            &err, KELPIE_E_NOT_FOUND);
    left = (struct klp_bytes){tar.data, 700};
    refused(
        klp_guest_put(&p->op, p->guest, client_path(&p->agent, "/in"), buffer_input, &left, &err),
        &err, KELPIE_E_CORRUPT);
    klp_buf_finish(&tar);
    klp_buf_finish(&back);
    klp_mem_free(big);
}

/* ---- the workload */

static bool log_output(void *arg, uint64_t offset, bool is_stderr, const void *data, size_t size)
{
    struct talk *talk = arg;
    assert_int_equal(offset, talk->out.size + talk->err.size);
    return talk_output(talk, is_stderr, data, size);
}

static void test_guest_interop__main_process_and_log(void **state)
{
    struct pair *p = *state;
    struct kelpie_error *err = NULL;
    struct klp_guest_main process;
    struct talk talk = {.out = KLP_BUF_INIT(CLIENT_OUTPUT_MAX),
                        .err = KLP_BUF_INIT(CLIENT_OUTPUT_MAX)};
    const char *const env[] = {"WORD=given", NULL};
    well(klp_guest_setup(&p->op, p->guest, "name", env, client_path(&p->agent, "/ws"), &err), &err);
    const char *script =
        "echo $WORD; echo err >&2; trap 'exit 4' TERM; while :; do sleep 0.01; done";
    well(klp_guest_main_start(&p->op, p->guest, CLIENT_SHELL(script), NULL, NULL, &err), &err);
    refused(klp_guest_main_start(&p->op, p->guest, CLIENT_SHELL("exit"), NULL, NULL, &err), &err,
            KELPIE_E_STATE);
    do {
        well(klp_guest_main_status(&p->op, p->guest, &process, &err), &err);
    } while (process.log_end < 10);
    assert_int_equal(process.state, KLP_MAIN_RUNNING);
    well(klp_guest_main_signal(&p->op, p->guest, SIGTERM, &err), &err);
    well(klp_guest_main_log(&p->op, p->guest, 0, true, log_output, &talk, &process, &err), &err);
    assert_int_equal(process.state, KLP_MAIN_EXITED);
    assert_int_equal(process.exit_code, 4);
    assert_string_equal(klp_buf_text(&talk.out), "given\n");
    /* The shell may add that its own child was told to end, too. */
    assert_int_equal(strncmp(klp_buf_text(&talk.err), "err\n", 4), 0);
    talk_finish(&talk);
    well(klp_guest_main_log(&p->op, p->guest, 0, false, log_output, &talk, &process, &err), &err);
    talk_finish(&talk);
}

static void test_guest_interop__freeze_unique_thaw(void **state)
{
    struct pair *p = *state;
    struct kelpie_error *err = NULL;
    struct kelpie_exec exec = {.argv = CLIENT_ARGV("@echo", "x")};
    struct kelpie_exec_status status;
    struct klp_unique_request request = {.which = KLP_UNIQUE_FORK, .wall_ns = 1700000000000000000};
    struct klp_unique_receipt receipt;
    struct klp_buf state_tar = KLP_BUF_INIT(CLIENT_OUTPUT_MAX);
    memset(request.generation, 7, sizeof(request.generation));
    memset(request.machine_id, 8, sizeof(request.machine_id));
    snprintf(request.hostname, sizeof(request.hostname), "twin");
    client_write_file(&p->agent, "/etc/machine-id", "x", 0444);
    well(klp_guest_order(&p->op, p->guest, KLP_GUEST_PING, &err), &err);
    well(klp_guest_order(&p->op, p->guest, KLP_GUEST_FREEZE, &err), &err);
    refused(klp_guest_exec(&p->op, p->guest, &exec, &status, &err), &err, KELPIE_E_STATE);
    well(klp_guest_unique(&p->op, p->guest, &request, &receipt, &err), &err);
    assert_false(receipt.duplicate);
    for (int item = 1; item < KLP_ITEM_COUNT; item++)
        assert_int_not_equal(receipt.items[item].result, 0);
    assert_int_equal(receipt.items[KLP_ITEM_GENERATION].result, KLP_UNIQUE_DONE);
    assert_memory_equal(receipt.items[KLP_ITEM_GENERATION].evidence, request.generation, 16);
    assert_int_equal(receipt.items[KLP_ITEM_MACHINE_ID].result, KLP_UNIQUE_DONE);
    well(klp_guest_get(&p->op, p->guest, KLP_GUEST_CHECKPOINT, NULL, buffer_output, &state_tar,
                       &err),
         &err);
    assert_true(state_tar.size >= 1024);
    well(klp_guest_order(&p->op, p->guest, KLP_GUEST_THAW, &err), &err);
    well(klp_guest_exec(&p->op, p->guest, &exec, &status, &err), &err);
    klp_buf_finish(&state_tar);
}

#define TEST(name) cmocka_unit_test_setup_teardown(test_guest_interop__##name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(programs),
        TEST(files),
        TEST(main_process_and_log),
        TEST(freeze_unique_thaw),
    };
    return cmocka_run_group_tests_name("guest_interop", tests, NULL, NULL);
}
