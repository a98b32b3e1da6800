/* SPDX-License-Identifier: Apache-2.0 */
/* A guest session: its beginning, its two tasks, its one queue to the guest, and its end. What
 * frames mean is guest_dispatch.c's, what calls do with them guest_call.c's and its siblings'. */
#include "vm/guest.h"

#include <string.h>

#include "base/fmt.h"
#include "vm/session.h"

#define IN_SIZE (KLP_GUEST_HEADER_SIZE + KLP_FRAME_BODY_MAX + 16u * KLP_KIB) /* bytes */
#define OUT_MAX (GUEST_OUT_HIGH + 2 * (KLP_FRAME_BODY_MAX + KLP_GUEST_HEADER_SIZE))
#define ACK_MAX (4u * KLP_KIB) /* bytes of a whole HELLO_ACK */
#define HELLO_AGAIN_MS 100     /* at first; doubles up to HELLO_AGAIN_MAX_MS */
#define HELLO_AGAIN_MAX_MS 1000

static struct kelpie_op forever(struct klp_env *env)
{
    return (struct kelpie_op){.env = env, .deadline_ns = KLP_NO_DEADLINE};
}

/* Of the session's own tasks: its end wakes them. The stream is never shut down, because the keeper
 * gives the same one to the next session. */
static struct kelpie_op until_end(struct klp_guest *guest)
{
    struct kelpie_op op = forever(guest->env);
    op.cancel = guest->cancel;
    return op;
}

/* ---- the end */

static void wake_locked(struct klp_guest *guest)
{
    klp_cond_wake(guest->changed);
    KLP_LIST_EACH (item, &guest->channels)
        klp_cond_wake(KLP_CONTAINER(item, struct guest_channel, link)->cond);
}

void guest_end_locked(struct klp_guest *guest, enum kelpie_code code, const char *text)
{
    if (guest->ended)
        return;
    guest->ended = true;
    guest->end_code = code;
    klp_format(guest->end_text, sizeof(guest->end_text), "%s", text);
    klp_cancel_raise(guest->cancel); /* wakes both tasks */
    wake_locked(guest);
}

void klp_guest_end(struct klp_guest *guest, enum kelpie_code code, const char *text)
{
    KLP_LOCKED (guest->mutex) {
        guest_end_locked(guest, code, text);
    }
}

kelpie_outcome guest_end_error(const struct klp_guest *guest, struct kelpie_error **err)
{
    return klp_fail(err, guest->end_code, "%s", guest->end_text);
}

void klp_guest_wake(struct klp_guest *guest)
{
    KLP_LOCKED (guest->mutex) {
        wake_locked(guest);
    }
}

void klp_guest_gate(struct klp_guest *guest, bool (*may_pass)(void *arg), void *arg)
{
    KLP_LOCKED (guest->mutex) {
        guest->may_pass = may_pass;
        guest->may_pass_arg = arg;
        wake_locked(guest);
    }
}

kelpie_outcome klp_guest_pass(const struct kelpie_op *op, struct klp_guest *guest,
                              struct kelpie_error **err)
{
    kelpie_outcome outcome = KLP_OK;
    klp_mutex_lock(guest->mutex);
    while (kelpie_is_ok(outcome) && guest->may_pass != NULL &&
           !guest->may_pass(guest->may_pass_arg)) {
        if (guest->ended)
            outcome = guest_end_error(guest, err);
        else
            outcome = klp_cond_wait(op, guest->changed, guest->mutex, err);
    }
    klp_mutex_unlock(guest->mutex);
    return klp_wrap(err, outcome, "an answer of the guest is held back by the gate");
}

/* ---- the queue to the guest */

void guest_send_now(struct klp_guest *guest, uint16_t type, uint32_t channel, struct klp_bytes body)
{
    if (guest->ended)
        return;
    klp_guest_frame_append(&guest->out, type, 0, channel, body);
    if (!klp_buf_check(&guest->out, "frames for the guest", NULL))
        guest_end_locked(guest, KELPIE_E_PROTOCOL, "the guest does not read what it is sent");
    klp_cond_wake(guest->changed);
}

kelpie_outcome guest_send(const struct kelpie_op *op, struct klp_guest *guest, uint16_t type,
                          uint8_t flags, uint32_t channel, struct klp_bytes body,
                          struct kelpie_error **err)
{
    kelpie_outcome outcome = KLP_OK;
    klp_mutex_lock(guest->mutex);
    while (kelpie_is_ok(outcome) && !guest->ended && guest->out.size > GUEST_OUT_HIGH)
        outcome = klp_cond_wait(op, guest->changed, guest->mutex, err);
    if (kelpie_is_ok(outcome) && guest->ended)
        outcome = guest_end_error(guest, err);
    if (kelpie_is_ok(outcome)) {
        klp_guest_frame_append(&guest->out, type, flags, channel, body);
        if (!klp_buf_check(&guest->out, "frames for the guest", err)) {
            outcome = (kelpie_outcome){KELPIE_FAIL};
            guest_end_locked(guest, KELPIE_E_NO_MEMORY, "no memory for frames to the guest");
        }
        klp_cond_wake(guest->changed);
    }
    klp_mutex_unlock(guest->mutex);
    return outcome;
}

static void writer_run(void *arg)
{
    struct klp_guest *guest = arg;
    struct kelpie_op op = until_end(guest);
    struct klp_buf sending = KLP_BUF_INIT(OUT_MAX);
    for (;;) {
        klp_mutex_lock(guest->mutex);
        while (!guest->ended && guest->out.size == 0)
            KLP_IGNORE(klp_cond_wait(&op, guest->changed, guest->mutex, NULL));
        bool ended = guest->ended;
        struct klp_buf next = guest->out;
        guest->out = sending;
        sending = next;
        klp_cond_wake(guest->changed);
        klp_mutex_unlock(guest->mutex);
        if (ended)
            break;
        KLP_AUTO(kelpie_error) struct kelpie_error *why = NULL;
        if (!kelpie_is_ok(klp_stream_write(&op, guest->stream, sending.data, sending.size, &why)))
            klp_guest_end(guest, KELPIE_E_UNREACHABLE, kelpie_error_message(why));
        klp_buf_clear(&sending);
    }
    klp_buf_finish(&sending);
}

/* ---- the bytes from the guest */

static void in_drop(struct klp_guest *guest, size_t size)
{
    memmove(guest->in, guest->in + size, guest->in_size - size);
    guest->in_size -= size;
}

/* The nonce was drawn for this session, so nothing older can be mistaken for the answer. */
static bool is_our_ack(const struct klp_guest *guest, const struct klp_guest_frame *frame)
{
    struct klp_bytes nonce;
    return frame->type == KLP_GUEST_HELLO_ACK && frame->channel == 0 &&
           klp_field_find(frame->body, KLP_TAG_NONCE, &nonce) &&
           nonce.size == sizeof(guest->nonce) && memcmp(nonce.data, guest->nonce, nonce.size) == 0;
}

/* Throws away all that is not the answer to our HELLO. What is left may be its beginning. */
static bool greeting_find(struct klp_guest *guest, struct kelpie_error **err)
{
    struct klp_guest_frame frame;
    for (size_t at = 0; at < guest->in_size; at++) {
        if (guest->in[at] != 'K')
            continue;
        int size = klp_guest_frame_next(guest->in + at, guest->in_size - at, &frame, NULL);
        if (size <= 0 || !is_our_ack(guest, &frame))
            continue;
        KLP_CHECK(guest_hello_parse(frame.body, &guest->hello, err));
        in_drop(guest, at + (size_t)size);
        guest->greeted = true;
        klp_cond_wake(guest->changed);
        return true;
    }
    if (guest->in_size > ACK_MAX)
        in_drop(guest, guest->in_size - ACK_MAX);
    return true;
}

static bool in_process(struct klp_guest *guest, struct kelpie_error **err)
{
    struct klp_guest_frame frame;
    size_t at = 0;
    int size = 0;
    if (!guest->greeted)
        KLP_CHECK(greeting_find(guest, err));
    while (guest->greeted && at < guest->in_size) {
        size = klp_guest_frame_next(guest->in + at, guest->in_size - at, &frame, err);
        if (size <= 0 || !guest_frame_take(guest, &frame, err))
            break;
        at += (size_t)size;
    }
    bool fine = size == 0 || at == guest->in_size;
    if (fine)
        in_drop(guest, at);
    return fine;
}

static void breach_end(struct klp_guest *guest, const struct kelpie_error *why)
{
    char text[GUEST_TEXT_MAX];
    klp_format(text, sizeof(text), "the guest broke the protocol: %s", kelpie_error_message(why));
    guest_end_locked(guest, KELPIE_E_PROTOCOL, text);
    klp_log(guest->env, KLP_LOG_WARN, "guest.breach", "error=%s", text);
}

static void reader_run(void *arg)
{
    struct klp_guest *guest = arg;
    struct kelpie_op op = until_end(guest);
    for (bool open = true; open;) {
        KLP_AUTO(kelpie_error) struct kelpie_error *why = NULL;
        size_t size = 0;
        kelpie_outcome outcome = klp_stream_read(&op, guest->stream, guest->in + guest->in_size,
                                                 IN_SIZE - guest->in_size, &size, &why);
        klp_mutex_lock(guest->mutex);
        guest->in_size += size;
        if (!kelpie_is_ok(outcome))
            guest_end_locked(guest, KELPIE_E_UNREACHABLE, kelpie_error_message(why));
        else if (size == 0)
            guest_end_locked(guest, KELPIE_E_UNREACHABLE, "the guest closed its stream");
        else if (!guest->ended && !in_process(guest, &why))
            breach_end(guest, why);
        open = !guest->ended;
        klp_mutex_unlock(guest->mutex);
    }
}

/* ---- life */

static bool tasks_spawn(struct klp_guest *guest, struct kelpie_error **err)
{
    KLP_CHECK(klp_task_spawn(guest->env, "guest-write", writer_run, guest, &guest->writer, err));
    return klp_task_spawn(guest->env, "guest-read", reader_run, guest, &guest->reader, err);
}

bool klp_guest_create(struct klp_env *env, struct klp_stream *stream, struct klp_guest **out,
                      struct kelpie_error **err)
{
    struct klp_guest *guest = KLP_NEW(struct klp_guest);
    *guest = (struct klp_guest){.env = env,
                                .stream = stream,
                                .mutex = klp_mutex_create(env),
                                .changed = klp_cond_create(env),
                                .cancel = klp_cancel_create(env),
                                .out = KLP_BUF_INIT(OUT_MAX),
                                .next_id = 1,
                                .owners = 1,
                                .in = klp_mem_alloc_raw(IN_SIZE)};
    klp_list_init(&guest->channels);
    klp_random(env, guest->nonce, sizeof(guest->nonce));
    if (!tasks_spawn(guest, err)) {
        klp_guest_close(guest);
        return false;
    }
    *out = guest;
    return true;
}

/* One HELLO at a time lies in the queue, however long nobody reads. */
static void hello_send(struct klp_guest *guest)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(64);
    klp_field_append(&body, KLP_TAG_NONCE, guest->nonce, sizeof(guest->nonce));
    if (guest->out.size == 0)
        guest_send_now(guest, KLP_GUEST_HELLO, 0, klp_buf_view(&body));
}

kelpie_outcome klp_guest_greet(const struct kelpie_op *op, struct klp_guest *guest,
                               struct kelpie_error **err)
{
    kelpie_outcome outcome = KLP_OK;
    uint64_t again_ms = HELLO_AGAIN_MS;
    klp_mutex_lock(guest->mutex);
    while (kelpie_is_ok(outcome) && !guest->greeted) {
        struct kelpie_op within = klp_op_within(op, again_ms);
        hello_send(guest);
        while (!guest->greeted && !guest->ended &&
               kelpie_is_ok(klp_cond_wait(&within, guest->changed, guest->mutex, NULL))) {
        }
        if (guest->ended)
            outcome = guest_end_error(guest, err);
        else if (!guest->greeted)
            outcome = klp_op_check(op, "waiting for the guest's greeting", err);
        again_ms = again_ms < HELLO_AGAIN_MAX_MS / 2 ? 2 * again_ms : HELLO_AGAIN_MAX_MS;
    }
    klp_mutex_unlock(guest->mutex);
    return outcome;
}

kelpie_outcome klp_guest_open(const struct kelpie_op *op, struct klp_env *env,
                              struct klp_stream *stream, struct klp_guest **out,
                              struct kelpie_error **err)
{
    struct klp_guest *guest;
    KLP_REQUIRE(klp_guest_create(env, stream, &guest, err));
    kelpie_outcome outcome = klp_guest_greet(op, guest, err);
    if (kelpie_is_ok(outcome))
        *out = guest;
    else
        klp_guest_close(guest);
    return outcome;
}

static bool users_wait(struct klp_guest *guest)
{
    struct kelpie_op op = forever(guest->env);
    klp_mutex_lock(guest->mutex);
    while (guest->users > 0)
        KLP_IGNORE(klp_cond_wait(&op, guest->changed, guest->mutex, NULL));
    bool was_stopped = guest->stopped;
    guest->stopped = true;
    klp_mutex_unlock(guest->mutex);
    return !was_stopped;
}

void klp_guest_stop(struct klp_guest *guest)
{
    klp_guest_end(guest, KELPIE_E_UNREACHABLE, "the guest session was closed");
    if (!users_wait(guest))
        return;
    if (guest->reader != NULL)
        klp_task_join(guest->reader);
    if (guest->writer != NULL)
        klp_task_join(guest->writer);
    klp_stream_close(guest->stream);
    klp_buf_finish(&guest->out);
    klp_mem_free(KLP_TAKE(&guest->in));
}

struct klp_guest *klp_guest_share(struct klp_guest *guest)
{
    __atomic_add_fetch(&guest->owners, 1, __ATOMIC_RELAXED);
    return guest;
}

void klp_guest_release(struct klp_guest *guest)
{
    if (__atomic_sub_fetch(&guest->owners, 1, __ATOMIC_ACQ_REL) > 0)
        return;
    KLP_ASSERT(guest->stopped);
    klp_cancel_destroy(guest->cancel);
    klp_cond_destroy(guest->changed);
    klp_mutex_destroy(guest->mutex);
    klp_mem_free(guest);
}

void klp_guest_close(struct klp_guest *guest)
{
    if (guest == NULL)
        return;
    klp_guest_stop(guest);
    klp_guest_release(guest);
}

bool klp_guest_is_alive(struct klp_guest *guest)
{
    bool alive = false;
    KLP_LOCKED (guest->mutex) {
        alive = guest->greeted && !guest->ended;
    }
    return alive;
}

const struct klp_guest_hello *klp_guest_hello(const struct klp_guest *guest)
{
    return &guest->hello;
}
