/* SPDX-License-Identifier: Apache-2.0 */
/* Frames out of the byte stream and into it; HELLO, and finding the next one in whatever comes.
 * What a frame means: dispatch.c. */
#include "guest/guest.h"

#include <errno.h>
#include <string.h>
#include <sys/utsname.h>

#include "base/fmt.h"

#define HELLO_BODY_MAX 1024 /* bytes; ours has three fields */
#define STATUS_BODY_MAX (8 * KLP_KIB)

/* ---- sending */

size_t guest_out_pending(const struct guest *g)
{
    return g->out.size - g->out_sent;
}

/* Forgets the frames that are out, so that `out` begins with a whole one. */
void guest_out_trim(struct guest *g)
{
    struct klp_guest_frame frame;
    size_t at = 0;
    int size = 0;
    while (at < g->out_sent) {
        size = klp_guest_frame_next(g->out.data + at, g->out.size - at, &frame, NULL);
        KLP_ASSERT(size > 0); /* these are our own */
        if (at + (size_t)size > g->out_sent)
            break;
        at += (size_t)size;
    }
    klp_buf_drop_front(&g->out, at);
    g->out_sent -= at;
}

void guest_send(struct guest *g, uint16_t type, uint8_t flags, uint32_t id, struct klp_bytes body)
{
    if (!g->session)
        return; /* nobody listens, and the next HELLO drops the channel */
    KLP_AUTO(kelpie_error) struct kelpie_error *err = NULL;
    klp_guest_frame_append(&g->out, type, flags, id, body);
    if (klp_buf_check(&g->out, "answers to the host", &err))
        return;
    /* A session that lost a frame is broken: the host has to begin a new one. */
    guest_log("%s", kelpie_error_message(err));
    guest_session_lost(g);
}

void guest_send_done(struct guest *g, uint32_t id, const char *text)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(STATUS_BODY_MAX);
    if (text != NULL)
        klp_field_append_text(&body, KLP_TAG_TEXT, text);
    guest_send(g, KLP_GUEST_DONE, 0, id, klp_buf_view(&body));
}

void guest_send_error(struct guest *g, uint32_t id, struct kelpie_error *error)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(STATUS_BODY_MAX);
    klp_field_append_text(&body, KLP_TAG_ERROR, kelpie_code_name(kelpie_error_code(error)));
    klp_field_append_text(&body, KLP_TAG_TEXT, kelpie_error_message(error));
    guest_send(g, KLP_GUEST_ERROR, 0, id, klp_buf_view(&body));
    kelpie_error_free(error);
}

void guest_send_refusal(struct guest *g, uint32_t id, enum kelpie_code code, const char *format,
                        ...)
{
    char text[512];
    va_list args;
    va_start(args, format);
    klp_vformat(text, sizeof(text), format, args);
    va_end(args);
    guest_send_error(g, id, klp_error_create(code, text));
}

unsigned guest_caps(const struct guest *g)
{
    unsigned caps = KLP_GUEST_CAP_EXEC | KLP_GUEST_CAP_SHELL | KLP_GUEST_CAP_FILES |
                    KLP_GUEST_CAP_FREEZE | KLP_GUEST_CAP_MAIN;
    if (g->options.system || g->options.root != NULL)
        caps |= KLP_GUEST_CAP_HOOKS | KLP_GUEST_CAP_IDENTITY;
    if (g->options.system)
        caps |= KLP_GUEST_CAP_RESEED | KLP_GUEST_CAP_CLOCK;
    return caps;
}

/* ---- HELLO */

static bool hello_nonce(const struct klp_guest_frame *frame, struct klp_bytes *nonce)
{
    return frame->type == KLP_GUEST_HELLO && frame->channel == 0 &&
           frame->body.size <= HELLO_BODY_MAX &&
           klp_field_find(frame->body, KLP_TAG_NONCE, nonce) && nonce->size >= GUEST_NONCE_MIN &&
           nonce->size <= GUEST_NONCE_MAX;
}

/* What the last session left unsent goes, but for the rest of a frame that is half out: a host that
 * reads frame by frame finds the answer behind it. */
static void out_cut(struct guest *g)
{
    struct klp_guest_frame frame;
    guest_out_trim(g);
    int size = g->out_sent > 0 ? klp_guest_frame_next(g->out.data, g->out.size, &frame, NULL) : 0;
    if (size > 0)
        g->out.size = (size_t)size;
    else
        klp_buf_clear(&g->out);
}

/* The generation given with the first HELLO of a boot is the guest's own. A later one becomes it by
 * UNIQUE alone: until then the answer must name the old one. */
static void generation_learn(struct guest *g, struct klp_bytes body)
{
    struct klp_bytes generation;
    if (g->has_generation || !klp_field_find(body, KLP_TAG_GENERATION, &generation) ||
        generation.size != sizeof(g->generation))
        return;
    memcpy(g->generation, generation.data, generation.size);
    g->has_generation = true;
}

static void hello_answer(struct guest *g, struct klp_bytes nonce)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(STATUS_BODY_MAX);
    struct utsname name;
    klp_field_append(&body, KLP_TAG_NONCE, nonce.data, nonce.size);
    klp_field_append_u64(&body, KLP_TAG_VERSION, KLP_GUEST_VERSION);
    klp_field_append_u64(&body, KLP_TAG_CAPS, guest_caps(g));
    klp_field_append_text(&body, KLP_TAG_ARCH, uname(&name) == 0 ? name.machine : "");
    if (g->has_generation)
        klp_field_append(&body, KLP_TAG_GENERATION, g->generation, sizeof(g->generation));
    klp_field_append_u64(&body, KLP_TAG_MAIN_STATE, g->main.state);
    guest_send(g, KLP_GUEST_HELLO_ACK, 0, 0, klp_buf_view(&body));
}

static void hello_take(struct guest *g, struct klp_bytes body, struct klp_bytes nonce)
{
    out_cut(g);
    guest_channels_drop(g);
    g->session = true;
    hello_answer(g, nonce);
    generation_learn(g, body);
}

void guest_session_lost(struct guest *g)
{
    g->in_size = 0;
    klp_buf_clear(&g->out);
    g->out_sent = 0;
    g->session = false;
}

/* ---- reading */

static void in_drop(struct guest *g, size_t size)
{
    memmove(g->in, g->in + size, g->in_size - size);
    g->in_size -= size;
}

/* Offset of a HELLO that is whole; or else of what may become one (*whole = false); else in_size.
 */
static size_t hello_find(const struct guest *g, size_t from, bool *whole)
{
    struct klp_guest_frame frame;
    struct klp_bytes nonce;
    for (size_t at = from; at < g->in_size; at++) {
        if (g->in[at] != 'K')
            continue;
        int size = klp_guest_frame_next(g->in + at, g->in_size - at, &frame, NULL);
        *whole = size > 0 && hello_nonce(&frame, &nonce);
        bool may_become = size == 0 && g->in_size - at < KLP_GUEST_HEADER_SIZE + HELLO_BODY_MAX;
        if (*whole || may_become)
            return at;
    }
    *whole = false;
    return g->in_size;
}

/* Garbage: everything up to the next HELLO is thrown away. */
static void in_scan(struct guest *g)
{
    bool whole;
    in_drop(g, hello_find(g, 0, &whole));
}

/* A frame that stopped half-way may be the end of a host that died or was left behind by a
 * restore, with a new host's HELLO lying inside what counts as its body. A HELLO is the last thing
 * a host sends before it waits, so only one that ends where the bytes end is believed. */
static void in_unstick(struct guest *g)
{
    struct klp_guest_frame frame;
    struct klp_bytes nonce;
    for (size_t at = 1; at < g->in_size; at++) {
        if (g->in[at] != 'K')
            continue;
        int size = klp_guest_frame_next(g->in + at, g->in_size - at, &frame, NULL);
        if (size > 0 && at + (size_t)size == g->in_size && hello_nonce(&frame, &nonce)) {
            in_drop(g, at);
            return;
        }
    }
}

static void frame_take(struct guest *g, const struct klp_guest_frame *frame)
{
    struct klp_bytes nonce;
    if (frame->type == KLP_GUEST_HELLO) {
        if (hello_nonce(frame, &nonce))
            hello_take(g, frame->body, nonce);
    } else if (g->session) {
        guest_dispatch(g, frame);
    }
}

static bool in_is_stuck(const struct guest *g)
{
    return g->in_size > 0 && guest_now_ms() >= g->in_last_ms + GUEST_STALL_MS;
}

bool guest_session_can_read(const struct guest *g)
{
    struct klp_guest_frame frame;
    return g->in_size > 0 && !g->stopping && guest_out_pending(g) < GUEST_OUT_HIGH &&
           klp_guest_frame_next(g->in, g->in_size, &frame, NULL) != 0;
}

void guest_session_process(struct guest *g)
{
    struct klp_guest_frame frame;
    size_t at = 0;
    while (at < g->in_size && !g->stopping && guest_out_pending(g) < GUEST_OUT_HIGH) {
        int size = klp_guest_frame_next(g->in + at, g->in_size - at, &frame, NULL);
        if (size == 0)
            break;
        if (size > 0) {
            frame_take(g, &frame);
            at += (size_t)size;
            continue;
        }
        g->session = false;
        in_drop(g, at);
        in_scan(g);
        at = 0;
    }
    if (g->in_size == 0) /* the session was lost meanwhile */
        return;
    in_drop(g, at);
    if (in_is_stuck(g) && !guest_session_can_read(g))
        in_unstick(g);
}

uint64_t guest_session_deadline(const struct guest *g)
{
    uint64_t at = g->in_last_ms + GUEST_STALL_MS;
    return g->in_size > 0 && at > guest_now_ms() ? at : GUEST_NEVER;
}
