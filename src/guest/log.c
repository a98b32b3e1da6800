/* SPDX-License-Identifier: Apache-2.0 */
/* MAIN_LOG: readers of the main process's ring, as many as there are channels. A reader that falls
 * behind loses the oldest bytes and learns it from the MAIN that stands before each DATA. */
#include "guest/guest.h"

struct log_reader {
    uint64_t offset;
    bool follow;
};

static void log_finish(struct guest *g, struct guest_channel *channel)
{
    (void)g;
    klp_mem_free(channel->state);
}

static void log_end(struct guest *g, struct guest_channel *channel, bool has_exited)
{
    uint32_t id = channel->id;
    guest_channel_end(g, channel);
    if (has_exited)
        guest_send_exit(g, id, g->main.code, g->main.signal, false);
    else
        guest_send_done(g, id, NULL);
}

static bool log_pump(struct guest *g, struct guest_channel *channel)
{
    struct log_reader *reader = channel->state;
    struct guest_ring *ring = &g->main.ring;
    bool is_stderr;
    if (reader->offset < ring->first)
        reader->offset = ring->first;
    struct klp_bytes bytes = guest_ring_view(ring, reader->offset, &is_stderr);
    size_t room = guest_channel_room(g, channel);
    if (bytes.size == 0) {
        bool is_over = !reader->follow || g->main.state != KLP_MAIN_RUNNING;
        if (is_over)
            log_end(g, channel, reader->follow && g->main.state == KLP_MAIN_EXITED);
        return false;
    }
    if (room == 0)
        return false;
    bytes.size = bytes.size < room ? bytes.size : room;
    guest_main_report(g, channel->id);
    guest_channel_send(g, channel, is_stderr ? KLP_GUEST_FLAG_STDERR : 0, bytes);
    reader->offset += bytes.size;
    return true;
}

static const struct guest_channel_ops log_ops = {.pump = log_pump, .finish = log_finish};

void guest_log_open(struct guest *g, uint32_t id, struct klp_bytes body)
{
    struct kelpie_error *err = NULL;
    uint64_t offset, follow;
    if (!klp_field_u64(body, KLP_TAG_OFFSET, 0, &offset, &err) ||
        !klp_field_u64(body, KLP_TAG_FOLLOW, 0, &follow, &err)) {
        guest_send_error(g, id, err);
        return;
    }
    struct log_reader *reader = KLP_NEW(struct log_reader);
    *reader = (struct log_reader){.offset = offset, .follow = follow != 0};
    if (guest_channel_open(g, id, &log_ops, reader, false) == NULL)
        klp_mem_free(reader);
    else
        guest_main_report(g, id);
}
