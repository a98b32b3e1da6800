/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of kelpie-guest share: one struct guest, one thread, one poll loop.
 * Every wait is an entry of the poll set, a child's end or a deadline; nothing here blocks on a
 * program of the guest. Memory is bounded by the channel table and the credit of each channel. */
#ifndef KLP_GUEST_GUEST_H
#define KLP_GUEST_GUEST_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <poll.h>
#include <signal.h>
#include <sys/types.h>

#include "base/buf.h"
#include "base/error.h"
#include "base/limits.h"
#include "format/guest_frame.h"
#include "format/vocabulary.h"

/* Beside the channels of the contract, so that 64 busy programs never lock out PING or FREEZE. */
#define GUEST_CONTROL_CHANNELS 8
#define GUEST_CHANNELS (KLP_EXEC_CHANNELS_MAX + GUEST_CONTROL_CHANNELS)
#define GUEST_FILE_CHANNELS_MAX                                                                    \
    8 /* PUT, GET and CHECKPOINT at once: each may hold 128 folders open */
#define GUEST_POLL_MAX (4 * GUEST_CHANNELS + 16)
#define GUEST_IN_SIZE (KLP_GUEST_HEADER_SIZE + KLP_FRAME_BODY_MAX + 16 * KLP_KIB) /* bytes */
#define GUEST_OUT_MAX KLP_MIB /* bytes; never reached: no frame is read while it is over HIGH */
#define GUEST_OUT_HIGH                                                                             \
    (256 * KLP_KIB)                   /* bytes; above it neither programs nor the host are read    \
                                       */
#define GUEST_DATA_MAX (32 * KLP_KIB) /* bytes of one DATA frame we send */
#define GUEST_GRACE_MS 2000 /* how long a grandchild may hold a pipe after its program's end */
#define GUEST_HOOK_MS 5000  /* reliability-security 5 */
#define GUEST_HOOKS_MAX 64
#define GUEST_FREEZE_MS 10000
#define GUEST_STALL_MS 300 /* a frame that does not go on may hide a new HELLO */
#define GUEST_NONCE_MIN 8
#define GUEST_NONCE_MAX 64
#define GUEST_GENERATION_SIZE 16
#define GUEST_NEVER UINT64_MAX /* a deadline that never comes */

struct guest;
struct guest_channel;

/* Every member may be NULL but `finish`. */
struct guest_channel_ops {
    /* DATA from the host; credit was checked. Answers for the bytes later by
     * guest_channel_consumed. */
    void (*data)(struct guest *g, struct guest_channel *channel, struct klp_bytes bytes, bool end);
    void (*poll)(struct guest *g, struct guest_channel *channel);
    void (*ready)(struct guest *g, struct guest_channel *channel, int which, short events);
    /* Called each round; true = more could be sent at once. */
    bool (*pump)(struct guest *g, struct guest_channel *channel);
    uint64_t (*deadline)(const struct guest *g, const struct guest_channel *channel);
    void (*tick)(struct guest *g, struct guest_channel *channel, uint64_t now_ms);
    /* A child ended; true = it was this channel's. */
    bool (*child)(struct guest *g, struct guest_channel *channel, pid_t pid, int status);
    void (*signal)(struct guest *g, struct guest_channel *channel, int number);
    void (*resize)(struct guest *g, struct guest_channel *channel, unsigned rows, unsigned columns);
    /* Releases `state`, killing what still runs for it. Called exactly once. */
    void (*finish)(struct guest *g, struct guest_channel *channel);
};

struct guest_channel {
    uint32_t id;     /* 0 = free */
    uint32_t serial; /* tells a reused slot from its predecessor within one poll round */
    const struct guest_channel_ops *ops;
    void *state;
    uint64_t send_credit;    /* bytes we may send; shared by both output streams */
    uint64_t receive_credit; /* bytes the host may still send */
    uint64_t consumed;       /* bytes used up and not granted again yet */
};

enum guest_poll_kind { GUEST_POLL_PORT, GUEST_POLL_CHANNEL, GUEST_POLL_MAIN };

struct guest_poll_entry {
    enum guest_poll_kind kind;
    struct guest_channel *channel;
    uint32_t serial;
    int which;
};

struct guest_options {
    const char *port;   /* name of a virtio port */
    int fd;             /* connected stream, or -1 */
    const char *socket; /* path to listen on */
    int vsock_port;     /* or -1 */
    const char *root; /* --test-root: stands before /etc, /run, /var; nothing outside is changed */
    const char *cgroup; /* the workload's cgroup folder, or NULL */
    bool system;        /* a guest of its own: clock, host name, random state are ours to set */
    bool is_init;       /* we are PID 1 */
};

enum guest_port_state { GUEST_PORT_ABSENT, GUEST_PORT_CLOSED, GUEST_PORT_OPEN, GUEST_PORT_GONE };

struct guest_port {
    enum guest_port_state state;
    int fd;
    int listen_fd;
    uint64_t retry_ms; /* when to look again */
    unsigned searches;
};

/* A list of strings that lie one after another in one block. */
struct guest_strings {
    char **items; /* NULL-terminated */
    size_t count;
};

/* The parsed body of EXEC, MAIN_START and SETUP. */
struct guest_request {
    char *storage; /* all strings */
    struct guest_strings argv;
    struct guest_strings env;
    const char *workdir;  /* NULL = absent */
    const char *hostname; /* NULL = absent */
    uint64_t timeout_ms;
    bool tty;
    unsigned rows, columns;
};

struct guest_spawn {
    char *const *argv;
    char *const *env;
    const char *workdir;
    const struct klp_word *word; /* runs in place of a program when not NULL */
    int word_fd;                 /* to the workload process, or -1 */
    int in_fd, out_fd, err_fd;   /* become 0, 1, 2; the caller closes them */
    bool tty;                    /* 0 becomes the controlling terminal */
    bool workload;               /* joins the workload's cgroup */
};

enum guest_spawn_stage {
    GUEST_STAGE_CGROUP = 1,
    GUEST_STAGE_TTY,
    GUEST_STAGE_WORKDIR,
    GUEST_STAGE_EXEC
};

struct guest_spawn_failure {
    int stage; /* 0 = the program runs */
    int error;
};

#define GUEST_RING_TURNS 1024 /* changes between stdout and stderr that are remembered */

struct guest_ring_turn {
    uint64_t start; /* offset of its first byte */
    bool is_stderr;
};

struct guest_ring {
    uint64_t first, end;           /* absolute offsets: of the first byte kept, of the next one */
    uint64_t turn_first, turn_end; /* numbers of turns, likewise */
    struct guest_ring_turn turns[GUEST_RING_TURNS];
    uint8_t bytes[KLP_GUEST_LOG_MAX];
};

struct guest_main {
    enum klp_main_state state;
    pid_t pid; /* 0 once reaped */
    pid_t started_pid;
    int status_fd, out_fd, err_fd;
    int code, signal;
    enum klp_main_state last_state; /* of its predecessor, should it never run */
    int last_code, last_signal;
    bool ended;                    /* reaped, output perhaps not drained */
    uint64_t grace_ms;             /* when EXITED is said although someone holds the pipe */
    struct guest_channel *starter; /* waits for STARTED */
    char *name, *workdir;
    struct guest_ring ring;
};

enum guest_freeze_state { GUEST_THAWED, GUEST_FREEZING, GUEST_FROZEN };

struct guest_freeze {
    enum guest_freeze_state state;
    int cgroup_fd;                   /* folder of the workload's cgroup, or -1: stop by signal */
    int switch_fd;                   /* its cgroup.freeze */
    int events_fd;                   /* its cgroup.events */
    int seeds_deleted, seeds_failed; /* by the last freeze */
    uint64_t since_ms;               /* frozen since; programs' deadlines stand still */
    uint64_t deadline_ms, next_ms;
    bool waiting; /* hooks are done, the freezer is at work */
};

typedef void guest_runner_done(struct guest *g, const char *failure); /* NULL = all went well */

#define GUEST_RUNNER_VARIABLES 3
#define GUEST_RUNNER_VARIABLE_SIZE (KLP_PATH_MAX + 32)

/* Programs outside the workload, one after another, each with a deadline: hooks, sync, ssh-keygen.
 */
struct guest_runner {
    char *paths[GUEST_HOOKS_MAX];
    size_t count, next;
    size_t hooks_run; /* of the last list of hooks */
    bool is_single;   /* argv or call, not paths */
    char *const *argv;
    int (*call)(struct guest *g); /* in a child; its status */
    char name[200];
    char variables[GUEST_RUNNER_VARIABLES][GUEST_RUNNER_VARIABLE_SIZE];
    size_t variable_count;
    pid_t pid;
    uint64_t deadline_ms, limit_ms;
    guest_runner_done *done; /* NULL = idle */
};

enum guest_job_kind { GUEST_JOB_NONE, GUEST_JOB_FREEZE, GUEST_JOB_UNIQUE, GUEST_JOB_CHECKPOINT };

struct guest_item {
    uint16_t result;      /* 0 = not judged yet */
    uint8_t evidence[64]; /* what a host keeps of it */
    size_t size;
};

struct guest_unique {
    enum klp_unique_case kind;
    uint8_t generation[GUEST_GENERATION_SIZE];
    uint8_t entropy[64];
    uint8_t machine_id[16], boot_id[16];
    bool has_machine_id, has_boot_id, has_wall;
    uint64_t wall_ns;
    char hostname[65];
    struct guest_item items[KLP_ITEM_COUNT];
};

struct guest {
    struct guest_options options;
    struct guest_port port;

    uint8_t in[GUEST_IN_SIZE];
    size_t in_size;
    uint64_t in_last_ms; /* when bytes last came */
    struct klp_buf out;
    size_t out_sent; /* of the front of `out` */
    bool session;    /* a HELLO was answered and no garbage came since */

    struct guest_channel channels[GUEST_CHANNELS];
    uint32_t serial;
    size_t first; /* where the next round starts, so that no channel starves the others */

    struct pollfd polls[GUEST_POLL_MAX];
    struct guest_poll_entry entries[GUEST_POLL_MAX];
    size_t poll_count;

    struct guest_request defaults; /* SETUP */
    struct guest_main main;
    struct guest_freeze freeze;
    struct guest_runner runner;
    enum guest_job_kind job;
    struct guest_channel *job_channel;
    struct guest_unique unique;
    size_t file_channels;

    bool has_generation;
    uint8_t generation[GUEST_GENERATION_SIZE];
    uint64_t counter; /* how often it was made unique */
    bool has_hwrng;   /* a source behind /dev/hwrng at the boot: no device comes later */

    pid_t workload_pid; /* holds @fill and @count */
    int workload_fd;
    bool stopping;
    bool leave; /* stopping without switching the machine off */
    uint64_t stop_ms;
    bool over;
};

/* loop.c */
int guest_loop(struct guest *g);
uint64_t guest_now_ms(void);
void guest_poll_add(struct guest *g, int fd, short events, enum guest_poll_kind kind,
                    struct guest_channel *channel, int which);
void guest_stop(struct guest *g, bool leave);
void guest_log(const char *format, ...) KLP_PRINTF(1, 2); /* one line on the console */
void guest_signals_init(void);
void guest_signals_reset(void); /* in a child */

/* port.c */
KELPIE_MUST_USE bool guest_port_open(struct guest *g, struct kelpie_error **err);
void guest_port_poll(struct guest *g);
void guest_port_ready(struct guest *g, int which, short events);
void guest_port_flush(struct guest *g);
void guest_port_wake(struct guest *g); /* SIGIO, or time to look again */
uint64_t guest_port_deadline(const struct guest *g);

/* session.c */
void guest_session_process(struct guest *g);
bool guest_session_can_read(const struct guest *g);
uint64_t guest_session_deadline(const struct guest *g);
/* The host went away: half frames are dropped, channels stay until the next HELLO. */
void guest_session_lost(struct guest *g);
size_t guest_out_pending(const struct guest *g);
void guest_out_trim(struct guest *g);
void guest_send(struct guest *g, uint16_t type, uint8_t flags, uint32_t id, struct klp_bytes body);
void guest_send_done(struct guest *g, uint32_t id, const char *text); /* text may be NULL */
/* Frees the error. */
void guest_send_error(struct guest *g, uint32_t id, struct kelpie_error *error);
void guest_send_refusal(struct guest *g, uint32_t id, enum kelpie_code code, const char *format,
                        ...) KLP_PRINTF(4, 5);
unsigned guest_caps(const struct guest *g);

/* dispatch.c */
void guest_dispatch(struct guest *g, const struct klp_guest_frame *frame);

/* channel.c */
struct guest_channel *guest_channel_find(struct guest *g, uint32_t id);
/* NULL = no slot was free, and the host has its ERROR. */
struct guest_channel *guest_channel_open(struct guest *g, uint32_t id,
                                         const struct guest_channel_ops *ops, void *state,
                                         bool control);
void guest_channel_end(struct guest *g, struct guest_channel *channel);
void guest_channel_fail(struct guest *g, struct guest_channel *channel, struct kelpie_error *error);
void guest_channels_drop(struct guest *g);
/* Bytes of DATA that may be sent now. */
size_t guest_channel_room(const struct guest *g, const struct guest_channel *channel);
void guest_channel_send(struct guest *g, struct guest_channel *channel, uint8_t flags,
                        struct klp_bytes bytes);
void guest_channel_consumed(struct guest *g, struct guest_channel *channel, size_t size);

/* request.c */
KELPIE_MUST_USE bool guest_request_parse(struct klp_bytes body, struct guest_request *out,
                                         struct kelpie_error **err);
void guest_request_finish(struct guest_request *request);
/* Built-in, SETUP's and the request's environment, later ones over earlier; free the list alone. */
KELPIE_MUST_USE bool guest_environment(const struct guest *g, const struct guest_request *request,
                                       struct guest_strings *out, struct kelpie_error **err);
const char *guest_workdir(const struct guest *g, const struct guest_request *request);
/* A path of a request, made absolute. */
KELPIE_MUST_USE bool guest_path_field(const struct guest *g, struct klp_bytes body, char *out,
                                      struct kelpie_error **err);
KELPIE_MUST_USE bool guest_text_copy(struct klp_bytes bytes, const char *what, char *out,
                                     size_t capacity, struct kelpie_error **err);

/* spawn.c */
/* Starts a child in a session of its own. What became of its exec comes out of *status_fd. */
KELPIE_MUST_USE bool guest_spawn(struct guest *g, const struct guest_spawn *spawn, pid_t *pid,
                                 int *status_fd, struct kelpie_error **err);
/* 1 = it runs, 0 = not known yet, -1 = it failed: *err. Closes *status_fd when known. */
KELPIE_MUST_USE int guest_spawn_result(int *status_fd, const char *name, const char *workdir,
                                       struct kelpie_error **err);
void guest_kill_group(pid_t pid, int number);
void guest_close(int *fd);
struct kelpie_error *guest_errno(enum kelpie_code code, int error_number, const char *format, ...)
    KLP_PRINTF(3, 4);
enum kelpie_code guest_errno_code(int error_number);

/* exec.c, main_process.c, log.c, ring.c */
void guest_exec_open(struct guest *g, uint32_t id, struct klp_bytes body);
void guest_exec_shift_deadlines(struct guest *g, uint64_t by_ms);
void guest_main_init(struct guest *g);
void guest_main_start(struct guest *g, uint32_t id, struct klp_bytes body);
void guest_main_signal(struct guest *g, int number);
void guest_main_poll(struct guest *g);
void guest_main_ready(struct guest *g, int which);
bool guest_main_child(struct guest *g, pid_t pid, int status);
uint64_t guest_main_deadline(const struct guest *g);
void guest_main_tick(struct guest *g, uint64_t now_ms);
void guest_main_append(const struct guest *g, struct klp_buf *body);
void guest_main_report(struct guest *g, uint32_t id); /* answers MAIN */
void guest_send_started(struct guest *g, uint32_t id, pid_t pid);
void guest_send_exit(struct guest *g, uint32_t id, int code, int number, bool timed_out);
void guest_log_open(struct guest *g, uint32_t id, struct klp_bytes body);
void guest_ring_append(struct guest_ring *ring, bool is_stderr, const uint8_t *data, size_t size);
/* One unbroken run of kept bytes of one stream from `offset` on; empty when there is none. */
struct klp_bytes guest_ring_view(struct guest_ring *ring, uint64_t offset, bool *is_stderr);

/* put.c, get.c, walk.c, beneath.c */
void guest_put_open(struct guest *g, uint32_t id, struct klp_bytes body);
void guest_get_open(struct guest *g, uint32_t id, struct klp_bytes body);
KELPIE_MUST_USE bool guest_make_folders(const char *path, struct kelpie_error **err);
/* The folder that holds the last part of `path`, opened below base_fd without following any link;
 * made when absent and `make`. *leaf points into path, "" for the base itself. -1 = *err. */
int guest_beneath_parent(int base_fd, const char *path, bool make, const char **leaf,
                         struct kelpie_error **err);
struct guest_walk;
struct guest_walk *guest_walk_create(void);
void guest_walk_destroy(struct guest_walk *walk);
/* Adds what stands at `path` under the name `name` ("" = its contents alone). At most two. */
void guest_walk_add(struct guest_walk *walk, const char *path, const char *name, bool optional);
/* Appends about `want` bytes. 1 = there is more, 0 = end, -1 = *err. */
KELPIE_MUST_USE int guest_walk_fill(struct guest_walk *walk, struct klp_buf *out, size_t want,
                                    struct kelpie_error **err);
/* A channel that streams the walk and takes it; NULL = the host has its ERROR, the walk is the
 * caller's. Without a walk (yet) it waits for guest_stream_attach. */
struct guest_channel *guest_stream_open(struct guest *g, uint32_t id, struct guest_walk *walk,
                                        bool control);
void guest_stream_attach(struct guest_channel *channel, struct guest_walk *walk);

/* runner.c, freeze.c, checkpoint.c, unique.c, identity.c, system.c */
/* False: something runs already, and the host has its ERROR. */
bool guest_job_begin(struct guest *g, enum guest_job_kind kind, uint32_t id);
void guest_job_end(struct guest *g);
void guest_run_hooks(struct guest *g, const char *folder, guest_runner_done *done);
void guest_run_program(struct guest *g, char *const *argv, guest_runner_done *done);
void guest_run_call(struct guest *g, int (*call)(struct guest *g), guest_runner_done *done);
/* "NAME=VALUE" for hooks; set variable_count = 0 first. */
void guest_runner_variable(struct guest *g, const char *text);
void guest_runner_cancel(struct guest *g);
bool guest_runner_child(struct guest *g, pid_t pid, int status);
void guest_runner_tick(struct guest *g, uint64_t now_ms);
uint64_t guest_runner_deadline(const struct guest *g);
void guest_freeze_init(struct guest *g);
void guest_freeze_open(struct guest *g, uint32_t id);
void guest_thaw_open(struct guest *g, uint32_t id);
void guest_freeze_tick(struct guest *g, uint64_t now_ms);
uint64_t guest_freeze_deadline(const struct guest *g);
void guest_checkpoint_open(struct guest *g, uint32_t id);
void guest_unique_open(struct guest *g, uint32_t id, struct klp_bytes body);
void guest_item_set(struct guest_unique *unique, enum klp_unique_item item, uint16_t result,
                    const void *evidence, size_t size);
void guest_item_text(struct guest_unique *unique, enum klp_unique_item item, uint16_t result,
                     const char *text);
void guest_unique_random(struct guest *g, struct guest_unique *unique);
void guest_unique_clock(struct guest *g, struct guest_unique *unique);
void guest_unique_identity(struct guest *g, struct guest_unique *unique);
void guest_unique_seeds(struct guest *g, struct guest_unique *unique);
/* Deletes host keys; true = ssh-keygen has to make new ones. */
bool guest_unique_keys(struct guest *g, struct guest_unique *unique);
void guest_unique_keys_made(struct guest *g, struct guest_unique *unique, const char *failure);
void guest_unique_init(struct guest *g);
/* What `generation` and `counter` say now, in files. */
bool guest_publish_generation(const struct guest *g);
int guest_seeds_delete(const struct guest *g, int *failed);

/* system.c: files of the guest's own. */
/* Where `path` (absolute) lies for us; false: it may not be touched (no root of ours). */
bool guest_system_path(const struct guest *g, const char *path, char out[KLP_PATH_MAX]);
bool guest_hostname_set(const struct guest *g, const char *name, struct kelpie_error **err);
/* In place when it is there, so that whoever has it open or mapped sees the change; made anew
 * otherwise. A reader may see half of it: for files that are written while the workload stands. */
bool guest_file_rewrite(const char *path, const void *data, size_t size, unsigned mode);
/* Bytes read, NUL-terminated; -1 = cannot. */
ssize_t guest_file_read(const char *path, char *out, size_t capacity);

/* processes.c */
enum guest_sweep { GUEST_SWEEP_STOP, GUEST_SWEEP_CONTINUE, GUEST_SWEEP_KILL };
/* Signals every descendant; the number of those the sweep has yet to reach (running, for STOP). */
int guest_sweep(struct guest *g, enum guest_sweep what);

/* init.c */
void guest_init_system(struct guest *g);
__attribute__((noreturn)) void guest_power_off(struct guest *g);
__attribute__((noreturn)) void guest_crash(const struct guest *g);

/* workload.c, words.c */
void guest_workload_start(struct guest *g);
/* A connection to the workload process for one word; -1 = *err. */
int guest_workload_connect(struct guest *g, struct kelpie_error **err);
bool guest_word_needs_workload(const struct klp_word *word);

enum guest_ask { GUEST_ASK_FILL = 1, GUEST_ASK_CHECK, GUEST_ASK_COUNT };
struct guest_question {
    uint64_t ask, mib, seed;
};
struct guest_answer {
    uint64_t failed, pages, bad, count;
    char text[128];
};
__attribute__((noreturn)) void guest_word_run(const struct klp_word *word, char *const *argv,
                                              char *const *env, int workload_fd);

#endif
