/* SPDX-License-Identifier: Apache-2.0 */
/* For tests of keepers: orders as raw frames, answers with their handles, and the guest behind
 * them. */
#ifndef KEEPER_KIT_H
#define KEEPER_KIT_H

#include "env_kit.h"

#include "base/fmt.h"
#include "format/guest_frame.h"
#include "vm/keeper/keeper.h"

#define KEEPER_VM "0123456789abcdef0123456789abcdef"
#define GUEST_MIB 128u

struct answer {
    uint16_t type;
    uint64_t id;
    struct klp_bytes fields; /* into bytes */
    struct klp_handle handles[KLP_KEEPER_HANDLES_MAX];
    size_t handle_count;
    uint8_t bytes[KLP_KEEPER_FRAME_MAX];
};

/* One way to a keeper. */
struct line {
    struct klp_env *env;
    struct klp_chan *chan;
    uint64_t id;
    struct answer answer; /* the last; its handles are closed with the next */
};

static inline struct line *line_open(struct kit *kit, struct klp_dir *dir)
{
    struct line *line = KLP_NEW(struct line);
    struct kelpie_op op = klp_op_plain(kit->env, 10000);
    struct kelpie_error *err = NULL;
    line->env = kit->env;
    KIT_OK(klp_chan_connect(&op, dir, KLP_KEEPER_SOCKET, &line->chan, &err));
    return line;
}

static inline void answer_finish(struct line *line)
{
    for (size_t i = 0; i < line->answer.handle_count; i++)
        klp_handle_close(line->env, line->answer.handles[i]);
    line->answer.handle_count = 0;
}

static inline void line_close(struct line *line)
{
    answer_finish(line);
    klp_chan_close(line->chan);
    klp_mem_free(line);
}

/* False: nothing came in time, or the line is closed. */
static inline bool line_receive(struct line *line, uint64_t timeout_ms)
{
    struct kelpie_op op = klp_op_plain(line->env, timeout_ms);
    struct answer *answer = &line->answer;
    struct klp_keeper_frame frame;
    size_t size = 0;
    answer_finish(line);
    answer->handle_count = KLP_COUNT(answer->handles);
    if (!kelpie_is_ok(klp_chan_receive(&op, line->chan, answer->bytes, sizeof(answer->bytes), &size,
                                       answer->handles, &answer->handle_count, NULL))) {
        answer->handle_count = 0;
        return false;
    }
    assert_true(klp_keeper_frame_decode(answer->bytes, size, &frame, NULL));
    answer->type = frame.type;
    answer->id = frame.id;
    answer->fields = frame.fields;
    return true;
}

static inline void line_send(struct line *line, uint16_t type, const struct klp_buf *fields,
                             const struct klp_handle *handles, size_t handle_count)
{
    struct kelpie_op op = klp_op_plain(line->env, 10000);
    struct kelpie_error *err = NULL;
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf frame =
        KLP_BUF_INIT(KLP_KEEPER_FRAME_MAX);
    klp_keeper_frame_append(&frame, type, ++line->id,
                            fields != NULL ? klp_buf_view(fields) : (struct klp_bytes){NULL, 0});
    assert_true(klp_buf_check(&frame, "an order", &err));
    KIT_OK(klp_chan_send(&op, line->chan, frame.data, frame.size, handles, handle_count, &err));
}

static inline const char *answer_text(const struct line *line, uint16_t tag)
{
    static char text[4096];
    struct klp_bytes value;
    if (!klp_field_find(line->answer.fields, tag, &value))
        return "";
    klp_format(text, sizeof(text), "%.*s", (int)value.size, (const char *)value.data);
    return text;
}

static inline uint64_t answer_number(const struct line *line, uint16_t tag)
{
    uint64_t value;
    assert_true(klp_field_u64(line->answer.fields, tag, UINT64_MAX, &value, NULL));
    return value;
}

/* Its answer is for this order; "" = OK, else the code's name. */
static inline const char *line_ask(struct line *line, uint16_t type, const struct klp_buf *fields,
                                   const struct klp_handle *handles, size_t handle_count)
{
    line_send(line, type, fields, handles, handle_count);
    assert_true(line_receive(line, 20000));
    assert_int_equal(line->answer.id, line->id);
    if (line->answer.type == KLP_KEEPER_OK)
        return "";
    assert_int_equal(line->answer.type, KLP_KEEPER_ERROR);
    return answer_text(line, KLP_KTAG_ERROR);
}

static inline const char *line_number(struct line *line, uint16_t type, uint16_t tag,
                                      uint64_t value)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf fields = KLP_BUF_INIT(64);
    klp_field_append_u64(&fields, tag, value);
    return line_ask(line, type, &fields, NULL, 0);
}

static inline const char *line_hold(struct line *line, uint64_t reasons)
{
    return line_number(line, KLP_KEEPER_HOLD, KLP_KTAG_HOLDS, reasons);
}

static inline const char *line_release(struct line *line, uint64_t reasons)
{
    return line_number(line, KLP_KEEPER_RELEASE, KLP_KTAG_HOLDS, reasons);
}

/* fence_in_ms: from now; UINT64_MAX = never. */
static inline const char *line_lease(struct line *line, uint64_t epoch, uint64_t fence_in_ms)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf fields = KLP_BUF_INIT(64);
    uint64_t at =
        fence_in_ms == UINT64_MAX ? UINT64_MAX : klp_boot_ns(line->env) + fence_in_ms * KLP_MS;
    klp_field_append_u64(&fields, KLP_KTAG_EPOCH, epoch);
    klp_field_append_u64(&fields, KLP_KTAG_FENCE_AT_NS, at);
    return line_ask(line, KLP_KEEPER_LEASE, &fields, NULL, 0);
}

static inline void spawn_fields(struct klp_buf *out, enum klp_spawn_mode mode)
{
    struct klp_machine machine = {.version = KLP_MACHINE_VERSION,
                                  .backend = "mock",
                                  .backend_version = "1.0.0",
                                  .type = "mock",
                                  .cpu = "mock",
                                  .arch = KLP_ARCH_X86_64,
                                  .vcpus = 1,
                                  .memory_bytes = (uint64_t)GUEST_MIB * KLP_MIB,
                                  .page_log2 = 12};
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf bytes = KLP_BUF_INIT(16 * KLP_KIB);
    klp_machine_encode(&machine, &bytes);
    klp_field_append(out, KLP_KTAG_MACHINE, bytes.data, bytes.size);
    klp_field_append_u64(out, KLP_KTAG_MODE, mode);
}

static inline const char *line_spawn(struct line *line, enum klp_spawn_mode mode,
                                     const struct klp_handle *base)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf fields = KLP_BUF_INIT(32 * KLP_KIB);
    spawn_fields(&fields, mode);
    return line_ask(line, KLP_KEEPER_SPAWN, &fields, base, base != NULL ? 1 : 0);
}

static inline void line_status(struct line *line)
{
    assert_string_equal(line_ask(line, KLP_KEEPER_STATUS, NULL, NULL, 0), "");
}

static inline uint64_t status_number(struct line *line, uint16_t tag)
{
    line_status(line);
    return answer_number(line, tag);
}

static inline struct klp_handle answer_take(struct line *line, size_t index)
{
    assert_true(index < line->answer.handle_count);
    struct klp_handle handle = line->answer.handles[index];
    line->answer.handles[index] = KLP_NO_HANDLE;
    return handle;
}

/* Waits for an EVENT that shows this state and, of the holds, this fence. */
static inline bool event_wait(struct line *line, enum klp_keeper_state state, bool fenced)
{
    while (line_receive(line, 10000)) {
        if (line->answer.type != KLP_KEEPER_EVENT)
            continue;
        assert_int_equal(line->answer.id, 0);
        bool is_fenced = (answer_number(line, KLP_KTAG_HOLDS) & KLP_HOLD_FENCE) != 0;
        if (answer_number(line, KLP_KTAG_STATE) == state &&
            (state == KLP_KEEPER_DEAD || is_fenced == fenced))
            return true;
    }
    return false;
}

/* ---- processes */

static inline char process_state(int64_t pid) /* 0 = gone */
{
    char path[64], text[512];
    snprintf(path, sizeof(path), "/proc/%lld/stat", (long long)pid);
    FILE *file = fopen(path, "r");
    size_t size = file != NULL ? fread(text, 1, sizeof(text) - 1, file) : 0;
    if (file != NULL)
        fclose(file);
    text[size] = 0;
    const char *end = strrchr(text, ')');
    return end != NULL && end[1] == ' ' ? end[2] : 0;
}

static inline bool process_wait(struct kit *kit, int64_t pid, const char *states)
{
    struct kelpie_op op = klp_op_plain(kit->env, 6000);
    do {
        char state = process_state(pid);
        if (state == 0 ? strchr(states, 'X') != NULL : strchr(states, state) != NULL)
            return true;
    } while (kelpie_is_ok(klp_sleep_until(&op, klp_boot_ns(kit->env) + 2 * KLP_MS, NULL)));
    return false;
}
#define GONE "XZ" /* or a zombie that its parent has yet to reap */
#define RUNS "SRD"
#define STANDS "T"

static inline void nap(struct kit *kit, uint64_t ms)
{
    struct kelpie_op op = klp_op_plain(kit->env, ms + 10000);
    KLP_IGNORE(klp_sleep_until(&op, klp_boot_ns(kit->env) + ms * KLP_MS, NULL));
}

#endif
