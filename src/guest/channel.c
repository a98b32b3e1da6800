/* SPDX-License-Identifier: Apache-2.0 */
/* The table of channels and their credit. What goes on inside one is its kind's
 * (guest_channel_ops). */
#include "guest/guest.h"

#include <string.h>

#define GRANT_MIN (KLP_GUEST_CREDIT / 4) /* bytes; smaller grants wait for more */

struct guest_channel *guest_channel_find(struct guest *g, uint32_t id)
{
    for (size_t i = 0; i < GUEST_CHANNELS && id != 0; i++) {
        if (g->channels[i].id == id)
            return &g->channels[i];
    }
    return NULL;
}

struct guest_channel *guest_channel_open(struct guest *g, uint32_t id,
                                         const struct guest_channel_ops *ops, void *state,
                                         bool control)
{
    struct guest_channel *free_slot = NULL;
    size_t used = 0;
    for (size_t i = 0; i < GUEST_CHANNELS; i++) {
        if (g->channels[i].id != 0)
            used++;
        else if (free_slot == NULL)
            free_slot = &g->channels[i];
    }
    if (free_slot == NULL || (!control && used >= KLP_EXEC_CHANNELS_MAX)) {
        guest_send_refusal(g, id, KELPIE_E_LIMIT, "cannot open channel %u: %zu are open already",
                           id, used);
        return NULL;
    }
    *free_slot = (struct guest_channel){.id = id,
                                        .serial = ++g->serial,
                                        .ops = ops,
                                        .state = state,
                                        .send_credit = KLP_GUEST_CREDIT,
                                        .receive_credit = KLP_GUEST_CREDIT};
    return free_slot;
}

void guest_channel_end(struct guest *g, struct guest_channel *channel)
{
    KLP_ASSERT(channel->id != 0);
    channel->id = 0;
    channel->ops->finish(g, channel);
}

void guest_channel_fail(struct guest *g, struct guest_channel *channel, struct kelpie_error *error)
{
    uint32_t id = channel->id;
    guest_channel_end(g, channel);
    guest_send_error(g, id, error);
}

void guest_channels_drop(struct guest *g)
{
    for (size_t i = 0; i < GUEST_CHANNELS; i++) {
        if (g->channels[i].id != 0)
            guest_channel_end(g, &g->channels[i]);
    }
}

size_t guest_channel_room(const struct guest *g, const struct guest_channel *channel)
{
    size_t pending = guest_out_pending(g);
    if (!g->session || pending >= GUEST_OUT_HIGH)
        return 0;
    return channel->send_credit < GUEST_DATA_MAX ? (size_t)channel->send_credit : GUEST_DATA_MAX;
}

void guest_channel_send(struct guest *g, struct guest_channel *channel, uint8_t flags,
                        struct klp_bytes bytes)
{
    KLP_ASSERT(bytes.size <= channel->send_credit);
    channel->send_credit -= bytes.size;
    guest_send(g, KLP_GUEST_DATA, flags, channel->id, bytes);
}

void guest_channel_consumed(struct guest *g, struct guest_channel *channel, size_t size)
{
    channel->consumed += size;
    if (channel->consumed < GRANT_MIN)
        return;
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(64);
    klp_field_append_u64(&body, KLP_TAG_BYTES, channel->consumed);
    channel->receive_credit += channel->consumed;
    channel->consumed = 0;
    guest_send(g, KLP_GUEST_CREDIT_GRANT, 0, channel->id, klp_buf_view(&body));
}
