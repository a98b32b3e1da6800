/* SPDX-License-Identifier: Apache-2.0 */
/* How a VM talks to its keeper. Any task may ask at any time: each order has a connection of its
 * own while it waits, so a LEASE never waits behind a CAPTURE. Connections are kept for the next
 * order; one whose answer did not come in time is thrown away, and with it whatever the answer
 * carries. */
#ifndef KLP_VM_KEEPER_CLIENT_H
#define KLP_VM_KEEPER_CLIENT_H

#include "env/chan.h"
#include "format/keeper_frame.h"

struct klp_keeper_client;

/* Nothing is connected yet. `dir` is borrowed. */
struct klp_keeper_client *klp_keeper_client_create(struct klp_env *env, struct klp_dir *dir,
                                                   const char *vm_id);
/* No order may be under way. */
void klp_keeper_client_destroy(struct klp_keeper_client *client);

struct klp_keeper_answer {
    struct klp_env *env;
    uint8_t *message; /* owned; fields points into it */
    struct klp_bytes fields;
    struct klp_handle handles[KLP_KEEPER_HANDLES_MAX]; /* owned */
    size_t handle_count;
};
/* Takes the handle out; none when there is no such. */
struct klp_handle klp_keeper_answer_take(struct klp_keeper_answer *answer, size_t index);
void klp_keeper_answer_finish(struct klp_keeper_answer *answer);

/* One order, one answer. `fields` and `out` may be NULL. The keeper's ERROR is FAIL with its code.
 * UNREACHABLE: there is no keeper, the order was not delivered. UNKNOWN: it may have been. */
KELPIE_MUST_USE kelpie_outcome klp_keeper_ask(const struct kelpie_op *op,
                                              struct klp_keeper_client *client, uint16_t type,
                                              const struct klp_buf *fields,
                                              const struct klp_handle *handles, size_t handle_count,
                                              struct klp_keeper_answer *out,
                                              struct kelpie_error **err);

#define KLP_KEEPER_REASON_SIZE 256
struct klp_keeper_status {
    enum klp_keeper_state state;
    uint32_t holds;
    uint64_t epoch, fence_at_ns;
    int64_t pid, keeper_pid;
    bool clean;
    char vm[KLP_ID_SIZE];
    char backend[16];
    char reason[KLP_KEEPER_REASON_SIZE];
    /* Borrowed from the message. */
    struct klp_bytes machine, meta, console;
};
KELPIE_MUST_USE bool klp_keeper_status_parse(struct klp_bytes fields, struct klp_keeper_status *out,
                                             struct kelpie_error **err);

/* A connection on which the keeper tells what changes. Read by one task; ended by
 * klp_chan_shutdown. */
KELPIE_MUST_USE kelpie_outcome klp_keeper_watch(const struct kelpie_op *op,
                                                struct klp_keeper_client *client,
                                                struct klp_chan **out, struct kelpie_error **err);
/* Waits for the next EVENT. *out points into `message` (KLP_KEEPER_FRAME_MAX bytes). */
KELPIE_MUST_USE kelpie_outcome klp_keeper_event(const struct kelpie_op *op, struct klp_chan *chan,
                                                uint8_t *message, struct klp_keeper_status *out,
                                                struct kelpie_error **err);

#endif
