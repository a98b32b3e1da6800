/* SPDX-License-Identifier: Apache-2.0 */
/* Orders to a keeper and its answers: one message a frame on a channel, handles beside it.
 * Body: u32 magic "KPR1", u16 type, u16 zero, u64 id (an answer repeats it), then fields as in
 * format/guest_frame.h. Every order has exactly one answer: OK or ERROR; EVENTs carry id 0.
 */
#ifndef KLP_FORMAT_KEEPER_FRAME_H
#define KLP_FORMAT_KEEPER_FRAME_H

#include "format/guest_frame.h"

#define KLP_KEEPER_HEADER_SIZE 16

enum klp_keeper_type {
    KLP_KEEPER_STATUS = 1, /* -> OK: all of KLP_KTAG_ below that apply */
    KLP_KEEPER_SPAWN,      /* MACHINE, MODE, SOCKET_DIR; handles: base layer (or none as mode COLD),
                              then kernel and initramfs when they are needed. -> OK: PID */
    KLP_KEEPER_LOAD, /* after SPAWN in mode INCOMING; handles: device state, then overlays, lowest
                        first. Leaves the guest standing still with hold RESTORE. -> OK */
    KLP_KEEPER_HOLD, /* HOLDS: reasons added; -> OK once the guest stands still: HOLDS */
    KLP_KEEPER_RELEASE, /* HOLDS: reasons removed; the guest runs if none is left; -> OK: HOLDS */
    KLP_KEEPER_LEASE,   /* EPOCH, FENCE_AT_NS (boot-time clock of this host): stand still from then
                           on;   ends a FENCE hold when it lies ahead. Lower epoch than known: DENIED.
                           -> OK */
    KLP_KEEPER_CAPTURE, /* only while held. -> OK; handles: device state, dirty layer (sparse,
                           sealed): all pages that differ from the base layer, as far as the
                           hypervisor knows */
    KLP_KEEPER_GUEST,   /* -> OK; handle: the agent stream */
    KLP_KEEPER_LAYERS,  /* -> OK; handle: the base layer. NOT_FOUND when it has none */
    KLP_KEEPER_META,    /* META: bytes kept for the daemon, returned by STATUS; <= 32 KiB. -> OK */
    KLP_KEEPER_CONSOLE, /* -> OK: CONSOLE, the last bytes (<= 16 KiB) */
    KLP_KEEPER_WATCH,   /* -> OK, then EVENTs on this channel until it closes */
    KLP_KEEPER_KILL,    /* kills the hypervisor; -> OK once it is reaped */
    KLP_KEEPER_EXIT,  /* kills the hypervisor if it is there, removes the VM's folder's contents, ->
                         OK, ends */
    KLP_KEEPER_AHEAD, /* a CAPTURE comes soon: prepares what needs no guest that stands still. Kept
                         for seconds. -> OK, also where there is nothing to prepare */
    KLP_KEEPER_OK = 64,
    KLP_KEEPER_ERROR, /* ERROR, TEXT, REASON.. */
    KLP_KEEPER_EVENT  /* as STATUS: the state changed (exit, fence, unfence) */
};

enum klp_keeper_tag {
    KLP_KTAG_VM = 1, /* id, 32 hex */
    KLP_KTAG_BACKEND,
    KLP_KTAG_STATE /* enum klp_keeper_state */,
    KLP_KTAG_HOLDS,
    KLP_KTAG_EPOCH,
    KLP_KTAG_FENCE_AT_NS,
    KLP_KTAG_PID,
    KLP_KTAG_KEEPER_PID,
    KLP_KTAG_REASON /* text: why it is dead */,
    KLP_KTAG_EXIT_CODE,
    KLP_KTAG_EXIT_SIGNAL,
    KLP_KTAG_CONSOLE,
    KLP_KTAG_META,
    KLP_KTAG_MACHINE,
    KLP_KTAG_MODE /* enum klp_spawn_mode */,
    KLP_KTAG_SOCKET_DIR,
    KLP_KTAG_CMDLINE,
    KLP_KTAG_ERROR,
    KLP_KTAG_TEXT,
    KLP_KTAG_REMEDY,
    KLP_KTAG_CLEAN /* flag: the guest powered itself off */
};

enum klp_keeper_state {
    KLP_KEEPER_EMPTY,
    KLP_KEEPER_SPAWNED /* incoming, nothing loaded */,
    KLP_KEEPER_LIVE,
    KLP_KEEPER_DEAD
};
enum klp_spawn_mode { KLP_SPAWN_COLD = 1, KLP_SPAWN_INCOMING };

/* Reasons to stand still; the guest runs only while none is set. */
enum klp_hold {
    KLP_HOLD_USER = 1,
    KLP_HOLD_SNAPSHOT = 2,
    KLP_HOLD_HANDOFF = 4,
    KLP_HOLD_RESTORE = 8,
    KLP_HOLD_FENCE = 16
};

struct klp_keeper_frame {
    uint16_t type;
    uint64_t id;
    struct klp_bytes fields; /* borrowed */
};

void klp_keeper_frame_append(struct klp_buf *out, uint16_t type, uint64_t id,
                             struct klp_bytes fields);
KELPIE_MUST_USE bool klp_keeper_frame_decode(const void *bytes, size_t size,
                                             struct klp_keeper_frame *out,
                                             struct kelpie_error **err);

#endif
