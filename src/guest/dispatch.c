/* SPDX-License-Identifier: Apache-2.0 */
/* What each frame of the host asks for. Frames of channels that are gone are ignored: their end may
 * have crossed on the way. Whatever breaks the protocol ends its channel with an ERROR, never the
 * agent. */
#include "guest/guest.h"

#include <string.h>

#define CREDIT_MAX (1ull << 40) /* bytes; a sum nobody owes, and far from wrapping */
#define SIGNAL_NUMBER_MAX 64

static void protocol_error(struct guest *g, uint32_t id, const char *why)
{
    struct guest_channel *channel = guest_channel_find(g, id);
    if (channel != NULL)
        guest_channel_end(g, channel);
    guest_send_refusal(g, id, KELPIE_E_PROTOCOL, "channel %u: %s", id, why);
}

static void data_take(struct guest *g, const struct klp_guest_frame *frame)
{
    struct guest_channel *channel = guest_channel_find(g, frame->channel);
    bool end = frame->flags & KLP_GUEST_FLAG_END;
    if (channel == NULL)
        return;
    if (frame->body.size > channel->receive_credit) {
        protocol_error(g, frame->channel, "more bytes than its credit");
        return;
    }
    channel->receive_credit -= frame->body.size;
    if (channel->ops->data != NULL)
        channel->ops->data(g, channel, frame->body, end);
    else
        guest_channel_consumed(g, channel, frame->body.size);
}

static void credit_take(struct guest *g, const struct klp_guest_frame *frame)
{
    KLP_AUTO(kelpie_error) struct kelpie_error *err = NULL;
    struct guest_channel *channel = guest_channel_find(g, frame->channel);
    uint64_t bytes;
    if (channel == NULL)
        return;
    if (!klp_field_u64(frame->body, KLP_TAG_BYTES, 0, &bytes, &err) || bytes > CREDIT_MAX ||
        channel->send_credit > CREDIT_MAX) {
        protocol_error(g, frame->channel, "a credit that cannot be");
        return;
    }
    channel->send_credit += bytes;
}

static void signal_take(struct guest *g, const struct klp_guest_frame *frame)
{
    KLP_AUTO(kelpie_error) struct kelpie_error *err = NULL;
    struct guest_channel *channel = guest_channel_find(g, frame->channel);
    uint64_t number;
    if (!klp_field_u64(frame->body, KLP_TAG_SIGNAL, 0, &number, &err) || number < 1 ||
        number > SIGNAL_NUMBER_MAX) {
        if (channel != NULL)
            protocol_error(g, frame->channel, "no such signal");
        return;
    }
    if (frame->channel == 0)
        guest_main_signal(g, (int)number);
    else if (channel != NULL && channel->ops->signal != NULL)
        channel->ops->signal(g, channel, (int)number);
}

static void resize_take(struct guest *g, const struct klp_guest_frame *frame)
{
    KLP_AUTO(kelpie_error) struct kelpie_error *err = NULL;
    struct guest_channel *channel = guest_channel_find(g, frame->channel);
    uint64_t rows, columns;
    if (channel == NULL)
        return;
    if (!klp_field_u64(frame->body, KLP_TAG_ROWS, 24, &rows, &err) ||
        !klp_field_u64(frame->body, KLP_TAG_COLS, 80, &columns, &err) || rows > UINT16_MAX ||
        columns > UINT16_MAX) {
        protocol_error(g, frame->channel, "no such size of a terminal");
        return;
    }
    if (channel->ops->resize != NULL)
        channel->ops->resize(g, channel, (unsigned)rows, (unsigned)columns);
}

/* SETUP replaces what an earlier one said. */
static void setup_take(struct guest *g, uint32_t id, struct klp_bytes body)
{
    struct kelpie_error *err = NULL;
    struct guest_request request = {0};
    bool fine = guest_request_parse(body, &request, &err);
    if (fine && request.workdir != NULL && request.workdir[0] != '/')
        fine = klp_refuse(&err, KELPIE_E_INVALID, "cannot set up: '%s' is no absolute path",
                          request.workdir);
    if (fine && request.workdir != NULL)
        fine = guest_make_folders(request.workdir, &err);
    if (fine && request.hostname != NULL && g->options.system)
        fine = guest_hostname_set(g, request.hostname, &err);
    if (!fine) {
        guest_request_finish(&request);
        guest_send_error(g, id, err);
        return;
    }
    guest_request_finish(&g->defaults);
    g->defaults = request;
    guest_send_done(g, id, NULL);
}

/* False: not a type that opens a channel. */
static bool open_take(struct guest *g, uint16_t type, uint32_t id, struct klp_bytes body)
{
    switch (type) {
    case KLP_GUEST_EXEC:
        guest_exec_open(g, id, body);
        return true;
    case KLP_GUEST_PUT:
        guest_put_open(g, id, body);
        return true;
    case KLP_GUEST_GET:
        guest_get_open(g, id, body);
        return true;
    case KLP_GUEST_SETUP:
        setup_take(g, id, body);
        return true;
    case KLP_GUEST_MAIN_START:
        guest_main_start(g, id, body);
        return true;
    case KLP_GUEST_MAIN_STATUS:
        guest_main_report(g, id);
        return true;
    case KLP_GUEST_MAIN_LOG:
        guest_log_open(g, id, body);
        return true;
    case KLP_GUEST_FREEZE:
        guest_freeze_open(g, id);
        return true;
    case KLP_GUEST_THAW:
        guest_thaw_open(g, id);
        return true;
    case KLP_GUEST_UNIQUE:
        guest_unique_open(g, id, body);
        return true;
    case KLP_GUEST_CHECKPOINT:
        guest_checkpoint_open(g, id);
        return true;
    case KLP_GUEST_SHUTDOWN:
        guest_send_done(g, id, NULL);
        guest_stop(g, false);
        return true;
    case KLP_GUEST_PING:
        guest_send_done(g, id, NULL);
        return true;
    default:
        return false;
    }
}

void guest_dispatch(struct guest *g, const struct klp_guest_frame *frame)
{
    struct guest_channel *channel = guest_channel_find(g, frame->channel);
    switch (frame->type) {
    case KLP_GUEST_DATA:
        data_take(g, frame);
        return;
    case KLP_GUEST_CREDIT_GRANT:
        credit_take(g, frame);
        return;
    case KLP_GUEST_SIGNAL:
        signal_take(g, frame);
        return;
    case KLP_GUEST_RESIZE:
        resize_take(g, frame);
        return;
    case KLP_GUEST_CLOSE:
        if (channel != NULL)
            guest_channel_end(g, channel);
        return;
    default:
        break;
    }
    if (channel != NULL)
        protocol_error(g, frame->channel, "is open already, and got a frame that opens one");
    else if (frame->channel == 0)
        protocol_error(g, 0, "only SIGNAL may be sent on it");
    else if (!open_take(g, frame->type, frame->channel, frame->body))
        protocol_error(g, frame->channel, "an unknown type of frame");
}
