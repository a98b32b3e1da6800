/* SPDX-License-Identifier: Apache-2.0 */
/* exec: a process in the guest. The calling task delivers its output; its input is pumped by a task
 * of its own, so that neither direction can hold up the other. */
#include <string.h>

#include "base/fmt.h"
#include "vm/session.h"

struct exec_call {
    const struct kelpie_op *op;
    struct klp_guest *guest;
    const struct kelpie_exec *exec;
    struct guest_channel channel;
};

/* ---- input */

/* OK with *open false: nobody takes it any more. */
static kelpie_outcome input_send(struct exec_call *call, const uint8_t *data, size_t size,
                                 bool *open)
{
    size_t at = 0, sent = 0;
    bool end = size == 0;
    do {
        KLP_TRY(guest_channel_send(call->op, call->guest, &call->channel, data + at, size - at, end,
                                   &sent, NULL));
        at += sent;
    } while (sent > 0 && at < size);
    *open = at == size && !end;
    return KLP_OK;
}

static void input_run(void *arg)
{
    struct exec_call *call = arg;
    uint8_t *bytes = klp_mem_alloc_raw(GUEST_DATA_MAX);
    bool open = true;
    while (open) {
        size_t size = call->exec->input(call->exec->arg, bytes, GUEST_DATA_MAX);
        KLP_ASSERT(size <= GUEST_DATA_MAX);
        if (!kelpie_is_ok(input_send(call, bytes, size, &open)))
            break;
    }
    klp_mem_free(bytes);
}

static kelpie_outcome input_begin(struct exec_call *call, struct klp_task **out,
                                  struct kelpie_error **err)
{
    size_t sent;
    *out = NULL;
    if (call->exec->input == NULL)
        return guest_channel_send(call->op, call->guest, &call->channel, NULL, 0, true, &sent, err);
    KLP_REQUIRE(klp_task_spawn(call->op->env, "exec-input", input_run, call, out, err));
    return KLP_OK;
}

static void input_end(struct exec_call *call, struct klp_task *task)
{
    KLP_LOCKED (call->guest->mutex) {
        call->channel.over = true;
        klp_cond_wake(call->channel.cond);
    }
    if (call->exec->ended != NULL)
        call->exec->ended(call->exec->arg);
    if (task != NULL)
        klp_task_join(task);
}

/* ---- output */

static kelpie_outcome output_deliver(struct exec_call *call, const struct guest_taken *taken,
                                     struct kelpie_error **err)
{
    size_t size = taken->bytes[0].size + taken->bytes[1].size;
    KLP_TRY(klp_guest_pass(call->op, call->guest, err));
    for (int i = 0; i < 2 && call->exec->output != NULL; i++) {
        if (taken->bytes[i].size > 0 &&
            !call->exec->output(call->exec->arg, i == 1, taken->bytes[i].data,
                                taken->bytes[i].size))
            return klp_fail(err, KELPIE_E_CANCELLED, "nobody takes its output any more");
    }
    return guest_channel_consumed(call->op, call->guest, &call->channel, size, err);
}

static kelpie_outcome output_run(struct exec_call *call, struct kelpie_error **err)
{
    struct guest_taken taken;
    kelpie_outcome outcome = KLP_OK;
    guest_taken_init(&taken, CHANNEL_EXEC);
    while (kelpie_is_ok(outcome) && !taken.ended) {
        outcome = guest_channel_take(call->op, call->guest, &call->channel, &taken, err);
        if (kelpie_is_ok(outcome))
            outcome = taken.ended ? klp_guest_pass(call->op, call->guest, err)
                                  : output_deliver(call, &taken, err);
    }
    guest_taken_finish(&taken);
    return outcome;
}

/* ---- signals and sizes from other tasks */

static void control_set(struct kelpie_exec_control *control, struct klp_guest *guest,
                        uint32_t channel)
{
    if (control == NULL)
        return;
    struct kelpie_op op = {.env = control->env, .deadline_ns = KLP_NO_DEADLINE};
    klp_mutex_lock(control->mutex);
    control->guest = guest;
    control->channel = channel;
    while (guest == NULL && control->users > 0)
        KLP_IGNORE(klp_cond_wait(&op, control->changed, control->mutex, NULL));
    klp_mutex_unlock(control->mutex);
}

static void control_send(const struct kelpie_op *op, struct kelpie_exec_control *control,
                         uint16_t type, const struct klp_buf *body)
{
    struct klp_guest *guest = NULL;
    uint32_t channel = 0;
    KLP_LOCKED (control->mutex) {
        guest = control->guest;
        channel = control->channel;
        control->users += guest != NULL;
    }
    if (guest == NULL)
        return;
    KLP_IGNORE(guest_send(op, guest, type, 0, channel, klp_buf_view(body), NULL));
    KLP_LOCKED (control->mutex) {
        control->users--;
        klp_cond_wake(control->changed);
    }
}

void kelpie_exec_signal(const struct kelpie_op *op, struct kelpie_exec_control *control, int number)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(64);
    klp_field_append_u64(&body, KLP_TAG_SIGNAL, (uint64_t)number);
    control_send(op, control, KLP_GUEST_SIGNAL, &body);
}

void kelpie_exec_resize(const struct kelpie_op *op, struct kelpie_exec_control *control,
                        uint32_t rows, uint32_t cols)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(64);
    klp_field_append_u64(&body, KLP_TAG_ROWS, rows);
    klp_field_append_u64(&body, KLP_TAG_COLS, cols);
    control_send(op, control, KLP_GUEST_RESIZE, &body);
}

/* ---- the call */

static kelpie_outcome exec_run(struct exec_call *call, struct kelpie_error **err)
{
    struct klp_task *input;
    kelpie_outcome outcome = input_begin(call, &input, err);
    if (kelpie_is_ok(outcome)) {
        control_set(call->exec->control, call->guest, call->channel.id);
        outcome = output_run(call, err);
        control_set(call->exec->control, NULL, 0);
    }
    input_end(call, input);
    return outcome;
}

static kelpie_outcome request_make(const struct kelpie_exec *exec, struct klp_buf *body,
                                   struct kelpie_error **err)
{
    if (exec->argv == NULL || exec->argv[0] == NULL || exec->argv[0][0] == 0)
        return klp_fail(err, KELPIE_E_INVALID, "no command was given");
    KLP_REQUIRE(guest_request_fill(body, exec->argv, exec->env, exec->workdir, err));
    if (exec->timeout_ms != 0)
        klp_field_append_u64(body, KLP_TAG_TIMEOUT_MS, exec->timeout_ms);
    if (exec->tty) {
        klp_field_append_u64(body, KLP_TAG_TTY, 1);
        klp_field_append_u64(body, KLP_TAG_ROWS, exec->rows);
        klp_field_append_u64(body, KLP_TAG_COLS, exec->cols);
    }
    return KLP_OK;
}

kelpie_outcome klp_guest_exec(const struct kelpie_op *op, struct klp_guest *guest,
                              const struct kelpie_exec *exec, struct kelpie_exec_status *out,
                              struct kelpie_error **err)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(KLP_FRAME_BODY_MAX);
    struct exec_call call = {.op = op, .guest = guest, .exec = exec};
    uint64_t cap = KLP_GUEST_CAP_EXEC | (exec->tty ? KLP_GUEST_CAP_SHELL : 0);
    KLP_TRY(request_make(exec, &body, err));
    kelpie_outcome outcome =
        guest_channel_open(op, guest, &call.channel, CHANNEL_EXEC, KLP_GUEST_EXEC, cap, &body, err);
    if (kelpie_is_ok(outcome))
        outcome = exec_run(&call, err);
    if (kelpie_is_ok(outcome))
        *out = call.channel.status;
    guest_channel_close(guest, &call.channel);
    return klp_wrap(err, outcome, "cannot run '%.*s'", 200, exec->argv[0]);
}
