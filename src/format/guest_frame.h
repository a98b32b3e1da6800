/* SPDX-License-Identifier: Apache-2.0 */
/* What host and guest agent say to each other; the same bytes on virtio-serial, vsock and Mock's
 * socket. No JSON: a bare-metal guest speaks it too. docs/formats/guest-frames.md has a worked
 * example in hex.
 *
 * Frame = 16-byte header + body (<= KLP_FRAME_BODY_MAX):
 *   0 2 magic 'K' 'G'    2 1 version = 1    3 1 flags    4 2 type    6 2 zero
 *   8 4 channel          12 4 body length, bytes; all little-endian
 * Body of DATA: raw bytes. Body of everything else: fields, each u16 tag, u16 zero, u32 length,
 * bytes; numbers are 8 bytes; repeated tags form lists in order. Unknown tags are skipped; unknown
 * types close the channel with ERROR.
 *
 * Sessions. The host speaks first: HELLO with a fresh nonce. The guest drops whatever channels an
 * earlier session had (killing their exec'd processes, never the main process) and answers
 * HELLO_ACK with that nonce. Until it has seen its own nonce, the host throws away all it reads:
 * that is the resync after a restore or a new daemon. A guest that reads garbage scans for the next
 * HELLO.
 *
 * Channels. The host opens them with numbers it never reuses in a session (from 1). Credit: each
 * side may send KLP_GUEST_CREDIT bytes of DATA a channel and direction, more as CREDIT frames grant
 * them.
 */
#ifndef KLP_FORMAT_GUEST_FRAME_H
#define KLP_FORMAT_GUEST_FRAME_H

#include "base/buf.h"
#include "base/limits.h"

#define KLP_GUEST_HEADER_SIZE 16
#define KLP_GUEST_VERSION 1
#define KLP_GUEST_CREDIT (256u * KLP_KIB) /* bytes a channel and direction at its opening */
#define KLP_GUEST_LOG_MAX                                                                          \
    (256u * KLP_KIB) /* bytes of the main process's output the guest keeps                         \
                      */

enum klp_guest_type {
    /* host to guest */
    KLP_GUEST_HELLO = 1, /* NONCE, GENERATION (current, may be absent), EPOCH */
    KLP_GUEST_EXEC,   /* opens; ARG.., ENV.., WORKDIR, TIMEOUT_MS (0 = none), TTY (flag), ROWS, COLS
                       */
    KLP_GUEST_SIGNAL, /* SIGNAL: to the channel's process group; channel 0 = to the main process's
                       */
    KLP_GUEST_RESIZE, /* ROWS, COLS */
    KLP_GUEST_CLOSE, /* host lost interest: kill the process group, forget the channel, no answer */
    KLP_GUEST_PUT,   /* opens; PATH (a directory): a tar stream follows as DATA; answered by DONE or
                        ERROR */
    KLP_GUEST_GET,   /* opens; PATH: answered by a tar stream as DATA, then DONE, or ERROR */
    KLP_GUEST_SETUP, /* opens; HOSTNAME, ENV.., WORKDIR: defaults of every later exec; DONE or ERROR
                      */
    KLP_GUEST_MAIN_START,  /* opens; ARG.., ENV.., WORKDIR: the workload's main process; STARTED or
                              ERROR */
    KLP_GUEST_MAIN_STATUS, /* opens; answered by MAIN */
    KLP_GUEST_MAIN_LOG, /* opens; OFFSET, FOLLOW: DATA from the ring, each first preceded by MAIN;
                           then EXIT or DONE */
    KLP_GUEST_FREEZE, /* opens; runs /etc/kelpie/snapshot.d hooks, freezes the workload, syncs; DONE
                         or ERROR */
    KLP_GUEST_THAW,   /* opens; DONE or ERROR */
    KLP_GUEST_UNIQUE, /* opens; CASE, GENERATION, ENTROPY, WALL_NS, HOSTNAME, MACHINE_ID, BOOT_ID;
                         RECEIPT or ERROR */
    KLP_GUEST_CHECKPOINT, /* opens; as GET, of the agent's state: hook output and workspace */
    KLP_GUEST_SHUTDOWN,   /* opens; DONE, then the guest powers off */
    KLP_GUEST_PING,       /* opens; DONE */
    /* both */
    KLP_GUEST_DATA = 64,    /* raw bytes; flags below */
    KLP_GUEST_CREDIT_GRANT, /* BYTES, and STREAM when not 0 */
    /* guest to host */
    KLP_GUEST_HELLO_ACK = 128, /* NONCE, VERSION, CAPS, ARCH, GENERATION (last one it was given,
                                  absent at first), MAIN_STATE */
    KLP_GUEST_STARTED,         /* PID */
    KLP_GUEST_EXIT,            /* CODE, SIGNAL (0 = none), TIMED_OUT (flag); ends the channel */
    KLP_GUEST_DONE,            /* ends the channel */
    KLP_GUEST_ERROR,           /* ERROR (wire name of kelpie_code), TEXT; ends the channel */
    KLP_GUEST_RECEIPT,         /* ITEM.. ; ends the channel */
    KLP_GUEST_MAIN, /* MAIN_STATE, CODE, SIGNAL, PID, OFFSET (first byte kept), BYTES (end of the
                       log so far) */
};

enum klp_guest_flag {
    KLP_GUEST_FLAG_END = 1,    /* DATA: end of this direction of the channel */
    KLP_GUEST_FLAG_STDERR = 2, /* DATA from the guest: of the error stream */
};

enum klp_guest_tag {
    KLP_TAG_NONCE = 1,
    KLP_TAG_GENERATION,
    KLP_TAG_EPOCH,
    KLP_TAG_VERSION,
    KLP_TAG_CAPS,
    KLP_TAG_ARCH,
    KLP_TAG_ARG,
    KLP_TAG_ENV /* "K=V" */,
    KLP_TAG_WORKDIR,
    KLP_TAG_TIMEOUT_MS,
    KLP_TAG_TTY,
    KLP_TAG_ROWS,
    KLP_TAG_COLS,
    KLP_TAG_SIGNAL,
    KLP_TAG_PATH,
    KLP_TAG_HOSTNAME,
    KLP_TAG_OFFSET,
    KLP_TAG_FOLLOW,
    KLP_TAG_CASE /* enum klp_unique_case */,
    KLP_TAG_ENTROPY /* 64 bytes */,
    KLP_TAG_WALL_NS,
    KLP_TAG_MACHINE_ID /* 16 bytes */,
    KLP_TAG_BOOT_ID /* 16 bytes */,
    KLP_TAG_BYTES,
    KLP_TAG_STREAM,
    KLP_TAG_PID,
    KLP_TAG_CODE,
    KLP_TAG_TIMED_OUT,
    KLP_TAG_ERROR,
    KLP_TAG_TEXT,
    KLP_TAG_ITEM /* u16 item, u16 result, evidence bytes */,
    KLP_TAG_MAIN_STATE /* enum klp_main_state */
};

enum klp_guest_cap { /* bits of CAPS */
                     KLP_GUEST_CAP_EXEC = 1,
                     KLP_GUEST_CAP_SHELL = 2,
                     KLP_GUEST_CAP_FILES = 4,
                     KLP_GUEST_CAP_RESEED = 8,
                     KLP_GUEST_CAP_FREEZE = 16,
                     KLP_GUEST_CAP_HOOKS = 32,
                     KLP_GUEST_CAP_MAIN = 64,
                     KLP_GUEST_CAP_CLOCK = 128,
                     KLP_GUEST_CAP_IDENTITY = 256
};

enum klp_main_state { KLP_MAIN_NONE, KLP_MAIN_RUNNING, KLP_MAIN_EXITED };

/* The three cases of reliability-security 5 and the items of its receipt. */
enum klp_unique_case { KLP_UNIQUE_MOVE = 1, KLP_UNIQUE_REWIND, KLP_UNIQUE_FORK };
enum klp_unique_item {
    KLP_ITEM_GENERATION = 1, /* evidence: 16 bytes, the one given */
    KLP_ITEM_KERNEL_RNG,     /* evidence: 32 fresh bytes, never seen before */
    KLP_ITEM_HWRNG,          /* prefetched bytes read and thrown away */
    KLP_ITEM_CLOCK,          /* evidence: 8 bytes, wall ns read back */
    KLP_ITEM_MACHINE_ID,     /* evidence: 16 bytes now in force */
    KLP_ITEM_BOOT_ID,        /* evidence: 16 bytes now in force */
    KLP_ITEM_HOSTNAME,       /* evidence: text now in force */
    KLP_ITEM_SEED_FILES,
    KLP_ITEM_SSH_KEYS,
    KLP_ITEM_HOOKS, /* /etc/kelpie/restore.d ran, and reseeded programs if it says so */
    KLP_ITEM_COUNT
};
enum klp_unique_result { KLP_UNIQUE_DONE = 1, KLP_UNIQUE_NOT_APPLICABLE, KLP_UNIQUE_FAILED };

struct klp_guest_frame {
    uint8_t flags;
    uint16_t type;
    uint32_t channel;
    struct klp_bytes body; /* borrowed */
};

/* Appends a whole frame. */
void klp_guest_frame_append(struct klp_buf *out, uint16_t type, uint8_t flags, uint32_t channel,
                            struct klp_bytes body);
/* Looks at the front of received bytes. 0 = need more; > 0 = one frame of that many bytes is in
 * *out; < 0 = not a frame (magic, version, reserved, length): PROTOCOL in *err. */
KELPIE_MUST_USE int klp_guest_frame_next(const void *bytes, size_t size,
                                         struct klp_guest_frame *out, struct kelpie_error **err);

/* Fields of a body. */
void klp_field_append(struct klp_buf *body, uint16_t tag, const void *data, size_t size);
void klp_field_append_u64(struct klp_buf *body, uint16_t tag, uint64_t value);
void klp_field_append_text(struct klp_buf *body, uint16_t tag, const char *text);
struct klp_field {
    uint16_t tag;
    struct klp_bytes data; /* borrowed */
};
/* Iterates: at = 0 at first. 1 = a field, 0 = end, -1 = malformed (PROTOCOL). */
KELPIE_MUST_USE int klp_field_next(struct klp_bytes body, size_t *at, struct klp_field *out,
                                   struct kelpie_error **err);
/* First field of that tag; false when absent or malformed. */
bool klp_field_find(struct klp_bytes body, uint16_t tag, struct klp_bytes *out);
/* Absent = fallback; PROTOCOL when it is not 8 bytes. */
KELPIE_MUST_USE bool klp_field_u64(struct klp_bytes body, uint16_t tag, uint64_t fallback,
                                   uint64_t *out, struct kelpie_error **err);

#endif
