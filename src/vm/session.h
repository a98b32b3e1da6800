/* SPDX-License-Identifier: Apache-2.0 */
/* The inside of a guest session, shared by guest.c and its siblings guest_*.c; vm/ uses the last
 * part.
 *
 * Two tasks serve a session: the reader takes frames to their channels and never waits for anybody,
 * because a channel's queue is bounded by its credit; the writer empties the queue of frames, so no
 * call's deadline can ever cut a frame in two. Calls wait on their channel's condition.
 *
 * Lock order: guest->mutex, then the VM's (by may_pass). */
#ifndef KLP_VM_SESSION_H
#define KLP_VM_SESSION_H

#include "base/list.h"
#include "vm/guest.h"

#define GUEST_NONCE_SIZE 16
#define GUEST_OUT_HIGH (256u * KLP_KIB) /* bytes queued for the guest; more waits */
#define GUEST_DATA_MAX (32u * KLP_KIB)  /* bytes of one DATA frame we send */
#define GUEST_GRANT_MIN (KLP_GUEST_CREDIT / 4)
#define GUEST_TEXT_MAX 512        /* bytes of an error's text that we keep */
#define GUEST_CLOSED_WINDOW 4096u /* channels we closed and remember */
#define GUEST_LOG_RUNS_MAX 1024u

/* What was opened decides which frames may answer. */
enum channel_kind {
    CHANNEL_EXEC,
    CHANNEL_PUT,
    CHANNEL_GET,
    CHANNEL_ORDER,  /* DONE */
    CHANNEL_START,  /* STARTED */
    CHANNEL_STATUS, /* MAIN */
    CHANNEL_LOG,
    CHANNEL_UNIQUE, /* RECEIPT */
};

/* Consecutive bytes of a log in in[0]. */
struct log_run {
    uint64_t offset; /* in the main process's output */
    size_t size;
    bool is_stderr;
};

/* A channel lives in its call; the list holds it while the call is under way. */
struct guest_channel {
    struct klp_list link;
    uint32_t id;
    enum channel_kind kind;
    struct klp_cond *cond;
    uint64_t send_credit, receive_credit; /* bytes */
    uint64_t consumed;                    /* delivered, not granted yet */
    struct klp_buf in[2];                 /* stdout (and all that is not stderr), stderr */
    bool stream_ended[2];
    bool over;                    /* the call is about to return: its input task ends */
    bool started;                 /* STARTED came */
    bool ended;                   /* nothing more comes */
    struct kelpie_error *refusal; /* ... because of it; owned */
    struct kelpie_exec_status status;
    struct klp_guest_main main; /* as told last */
    bool has_main;
    uint64_t log_next;    /* where the next byte of DATA belongs */
    struct log_run *runs; /* CHANNEL_LOG: GUEST_LOG_RUNS_MAX */
    size_t run_count;
    struct klp_unique_receipt *receipt; /* borrowed from the call */
};

struct klp_guest {
    struct klp_env *env;
    struct klp_stream *stream;
    struct klp_mutex *mutex;   /* all below */
    struct klp_cond *changed;  /* the queue, the greeting, the users, the end */
    struct klp_cancel *cancel; /* raised by the end */
    struct klp_task *reader, *writer;
    struct klp_buf out; /* whole frames for the writer */
    struct klp_list channels;
    size_t channel_count;
    uint32_t next_id;
    uint8_t
        closed[GUEST_CLOSED_WINDOW / 8]; /* by channel number: closed by us, late frames are fine */
    unsigned users;                      /* calls under way */
    unsigned owners;                     /* atomic */
    bool greeted;                        /* the right HELLO_ACK came */
    bool ended;
    bool stopped; /* the tasks are gone, the stream is closed */
    enum kelpie_code end_code;
    char end_text[GUEST_TEXT_MAX];
    uint8_t nonce[GUEST_NONCE_SIZE];
    struct klp_guest_hello hello;
    bool (*may_pass)(void *arg);
    void *may_pass_arg;
    uint8_t *in; /* the reader's own */
    size_t in_size;
};

/* What a call was opened by; vm/'s kelpie_exec_control_*. */
struct kelpie_exec_control {
    struct klp_env *env;
    struct klp_mutex *mutex;
    struct klp_cond *changed;
    struct klp_guest *guest; /* NULL = no exec is under way */
    uint32_t channel;
    unsigned users;
};

/* ---- guest.c */
/* Takes the stream over, also on failure. Not greeted yet. */
KELPIE_MUST_USE bool klp_guest_create(struct klp_env *env, struct klp_stream *stream,
                                      struct klp_guest **out, struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome klp_guest_greet(const struct kelpie_op *op, struct klp_guest *guest,
                                               struct kelpie_error **err);
/* From any task, never blocks: every call ends with this. The first end counts. */
void klp_guest_end(struct klp_guest *guest, enum kelpie_code code, const char *text);
/* Ends the session and frees all of it but the object, which answers every call with its end. */
void klp_guest_stop(struct klp_guest *guest);
/* One owner more; each ends with klp_guest_release, the last of which frees a stopped session. */
struct klp_guest *klp_guest_share(struct klp_guest *guest);
void klp_guest_release(struct klp_guest *guest);
/* The gate may have opened. */
void klp_guest_wake(struct klp_guest *guest);
/* Waits until what came may go to the outside. */
KELPIE_MUST_USE kelpie_outcome klp_guest_pass(const struct kelpie_op *op, struct klp_guest *guest,
                                              struct kelpie_error **err);

/* ---- guest.c, for its siblings. Those that say so want guest->mutex held. */
void guest_end_locked(struct klp_guest *guest, enum kelpie_code code, const char *text);
kelpie_outcome guest_end_error(const struct klp_guest *guest, struct kelpie_error **err); /* held */
/* Waits for room in the queue. */
KELPIE_MUST_USE kelpie_outcome guest_send(const struct kelpie_op *op, struct klp_guest *guest,
                                          uint16_t type, uint8_t flags, uint32_t channel,
                                          struct klp_bytes body, struct kelpie_error **err);
/* Does not wait: for small frames whose number is bounded. Held. */
void guest_send_now(struct klp_guest *guest, uint16_t type, uint32_t channel,
                    struct klp_bytes body);

/* ---- guest_dispatch.c. Held. PROTOCOL: the session is to end. */
KELPIE_MUST_USE bool guest_frame_take(struct klp_guest *guest, const struct klp_guest_frame *frame,
                                      struct kelpie_error **err);
KELPIE_MUST_USE bool guest_hello_parse(struct klp_bytes body, struct klp_guest_hello *out,
                                       struct kelpie_error **err);
/* CODE, SIGNAL, TIMED_OUT. */
KELPIE_MUST_USE bool guest_status_parse(struct klp_bytes body, struct kelpie_exec_status *out,
                                        struct kelpie_error **err);

/* ---- guest_call.c: a channel from its opening to its end. */
/* UNSUPPORTED without `cap` (0 = none needed), LIMIT when too many are open. */
KELPIE_MUST_USE kelpie_outcome guest_channel_open(const struct kelpie_op *op,
                                                  struct klp_guest *guest,
                                                  struct guest_channel *channel,
                                                  enum channel_kind kind, uint16_t type,
                                                  uint64_t cap, const struct klp_buf *body,
                                                  struct kelpie_error **err);
/* Tells the guest when it is not over there yet. After a failed open, too. */
void guest_channel_close(struct klp_guest *guest, struct guest_channel *channel);
/* Until the channel has ended; its refusal is the error. */
KELPIE_MUST_USE kelpie_outcome guest_channel_wait(const struct kelpie_op *op,
                                                  struct klp_guest *guest,
                                                  struct guest_channel *channel,
                                                  struct kelpie_error **err);
/* Waits until channel->send_credit is not 0 and sends at most that much. OK with *sent 0: it has
 * ended. */
KELPIE_MUST_USE kelpie_outcome guest_channel_send(const struct kelpie_op *op,
                                                  struct klp_guest *guest,
                                                  struct guest_channel *channel, const void *data,
                                                  size_t size, bool end, size_t *sent,
                                                  struct kelpie_error **err);
/* `size` bytes were delivered: lets the guest send more. */
KELPIE_MUST_USE kelpie_outcome guest_channel_consumed(const struct kelpie_op *op,
                                                      struct klp_guest *guest,
                                                      struct guest_channel *channel, size_t size,
                                                      struct kelpie_error **err);
/* Argument lists of EXEC, MAIN_START and SETUP; any may be NULL. */
KELPIE_MUST_USE bool guest_request_fill(struct klp_buf *body, const char *const *argv,
                                        const char *const *env, const char *workdir,
                                        struct kelpie_error **err);

/* What has come since the last time. Both swap places, so that nothing is copied. */
struct guest_taken {
    struct klp_buf bytes[2];
    struct log_run *runs; /* CHANNEL_LOG */
    size_t run_count;
    bool ended; /* and nothing more will come */
};
void guest_taken_init(struct guest_taken *taken, enum channel_kind kind);
void guest_taken_finish(struct guest_taken *taken);
/* Waits until something came or the channel ended. */
KELPIE_MUST_USE kelpie_outcome guest_channel_take(const struct kelpie_op *op,
                                                  struct klp_guest *guest,
                                                  struct guest_channel *channel,
                                                  struct guest_taken *taken,
                                                  struct kelpie_error **err);

#endif
