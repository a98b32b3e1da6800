/* SPDX-License-Identifier: Apache-2.0 */
/* One-shot exec: all input at hand, all output kept up to a ceiling. */
#include <string.h>

#include "base/fmt.h"
#include "vm/vm.h"

struct collecting {
    struct klp_bytes input;
    size_t input_at;
    struct klp_exec_output *out;
};

static size_t input_give(void *arg, void *out, size_t capacity)
{
    struct collecting *collecting = arg;
    size_t left = collecting->input.size - collecting->input_at;
    size_t size = left < capacity ? left : capacity;
    if (size > 0)
        memcpy(out, collecting->input.data + collecting->input_at, size);
    collecting->input_at += size;
    return size;
}

/* What does not fit is thrown away, and the process goes on: its end is part of the answer. */
static bool output_keep(void *arg, bool is_stderr, const void *data, size_t size)
{
    struct klp_exec_output *out = ((struct collecting *)arg)->out;
    struct klp_buf *kept = is_stderr ? &out->err : &out->out;
    size_t room = kept->size_max - kept->size;
    if (size > room) {
        out->truncated = true;
        size = room;
    }
    klp_buf_append(kept, data, size);
    return !kept->no_memory;
}

void klp_exec_output_finish(struct klp_exec_output *result)
{
    klp_buf_finish(&result->out);
    klp_buf_finish(&result->err);
}

kelpie_outcome klp_exec_collect(const struct kelpie_op *op, struct kelpie_vm *vm,
                                const struct kelpie_exec *exec, struct klp_bytes input,
                                struct klp_exec_output *out, struct kelpie_error **err)
{
    struct collecting collecting = {.input = input, .out = out};
    struct kelpie_exec run = *exec;
    *out = (struct klp_exec_output){.out = KLP_BUF_INIT(KLP_EXEC_OUTPUT_MAX),
                                    .err = KLP_BUF_INIT(KLP_EXEC_OUTPUT_MAX)};
    run.input = input.size > 0 ? input_give : NULL;
    run.output = output_keep;
    run.ended = NULL;
    run.arg = &collecting;
    kelpie_outcome outcome = kelpie_vm_exec(op, vm, &run, &out->status, err);
    if (!kelpie_is_ok(outcome))
        klp_exec_output_finish(out);
    return outcome;
}
