/* SPDX-License-Identifier: Apache-2.0 */
/* The guest that Mock and SimVm share: it speaks the guest side of format/guest_frame.h over bytes
 * in and bytes out, and everything that is its state lies in its paged memory, so that a restore
 * restores something. No I/O, no clock: whoever drives it brings bytes and time. Sessions and
 * channels are not state: a restore ends them, as on a real guest. */
#ifndef KLP_VM_MOCK_ENGINE_H
#define KLP_VM_MOCK_ENGINE_H

#include "base/name.h"
#include "format/guest_frame.h"
#include "format/tar.h"
#include "format/vocabulary.h"

#define MOCK_LOG_SIZE (16 * KLP_KIB)
#define MOCK_ENV_SIZE (32 * KLP_KIB)
#define MOCK_ENV_MAX 256 /* variables of SETUP, and as many more of one exec */
#define MOCK_ARGV_SIZE (4 * KLP_KIB)
#define MOCK_FILES_MAX 64
#define MOCK_CHANNELS_MAX KLP_EXEC_CHANNELS_MAX

struct mock_file {
    char path[256]; /* "" = free */
    char target[128];
    uint32_t kind, mode;
    uint64_t offset, size, reserved; /* in the file area; size grows up to what is reserved */
};

/* What lies at address 0 of guest memory: offsets only, no pointers. */
struct mock_state {
    uint64_t magic;
    uint8_t rng[32]; /* clones share it until they are made unique */
    uint8_t generation[16], machine_id[16], boot_id[16];
    uint8_t has_generation, frozen, main_state, reserved[5];
    char hostname[64], workdir[256];
    int64_t clock_offset_ns;
    uint64_t counter; /* one a millisecond while the workload runs */
    uint64_t fill_pages, fill_seed, fill_round;
    uint64_t files_used; /* bytes of the file area, gaps of replaced files among them */
    int32_t main_code, main_signal;
    int64_t main_ends_in_ms; /* of a sleeping main process; -1 = it has no end of its own */
    uint64_t log_end;        /* absolute offset behind the last byte */
    uint32_t env_size, reserved2;
    char env[MOCK_ENV_SIZE];    /* K=V with NULs between */
    uint8_t log[MOCK_LOG_SIZE]; /* byte n lies at n % MOCK_LOG_SIZE */
    struct mock_file files[MOCK_FILES_MAX];
};

enum mock_channel_kind {
    MOCK_FREE,
    MOCK_EXEC,
    MOCK_PUT,
    MOCK_SEND /* of bytes made ready */,
    MOCK_FOLLOW
};
struct mock_channel {
    enum mock_channel_kind kind;
    uint32_t id;
    uint64_t credit; /* bytes the host lets us send */
    struct klp_word word;
    char *path;         /* owned: what word.path points to, or PUT's folder */
    struct klp_buf out; /* ready to be sent, sent up to out_at */
    size_t out_at;
    bool out_is_stderr, out_closed;
    uint64_t flood_left, flood_at;
    bool sends; /* bytes of files are still to come into `out` */
    bool packs; /* as an archive of all below `path`, named from path + name_cut on */
    size_t name_cut, next_slot;        /* of the archive: slots before are packed */
    const struct mock_file *from;      /* the file at hand, or NULL */
    uint64_t from_at, from_size;       /* what its header promised */
    int64_t ends_in_ms, timeout_in_ms; /* -1 = never */
    int32_t code, signal;
    bool ended, timed_out, reads_input, echoes;
    bool is_done; /* ends with DONE instead of EXIT */
    struct klp_tar_reader *tar;
    bool tar_ended;         /* its own end was seen */
    struct mock_file *file; /* PUT: the entry at hand */
    uint64_t follow_at;
    bool follow;
};

struct mock_engine {
    struct mock_state *state; /* guest memory */
    uint64_t memory_size, page_size;
    uint64_t mib;           /* bytes of what a word calls a MiB; a simulated guest's is smaller */
    struct klp_buf in, out; /* bytes from and to the host */
    uint64_t remainder_ns;  /* of a millisecond */
    bool in_session, crashed, powered_off;
    char console[128]; /* a line to be printed; "" = none */
    const char *arch;
    struct mock_channel channels[MOCK_CHANNELS_MAX];
};

/* `memory`: zeroed or restored. Fills in a fresh state when there is none; `seed`: 32 bytes of the
 * first random state. A state that no guest of ours can have left is `crashed` from the start. */
void mock_engine_init(struct mock_engine *engine, void *memory, uint64_t memory_size,
                      uint64_t page_size, const char *arch, const uint8_t seed[32]);
void mock_engine_finish(struct mock_engine *engine);
/* Bytes from the host. */
void mock_engine_input(struct mock_engine *engine, const void *bytes, size_t size);
/* Time passes: elapsed_ns since the last call, wall time now. Answers go to engine->out. */
void mock_engine_step(struct mock_engine *engine, uint64_t elapsed_ns, int64_t wall_ns);
/* Is there room for so much input? Whoever drives it leaves the rest in the stream until then. */
bool mock_engine_takes(const struct mock_engine *engine, size_t size);
/* How long nothing would happen without input, in ms; 1000 at most. */
uint64_t mock_engine_idle_ms(const struct mock_engine *engine);
/* The host's end of the stream closed: the session is over. */
void mock_engine_hangup(struct mock_engine *engine);

/* ---- between the engine's files */
bool mock_text_ends(const char *text, size_t capacity);
uint8_t *mock_file_area(struct mock_engine *engine, uint64_t *out_size);
uint8_t *mock_fill_area(struct mock_engine *engine, uint64_t *out_size);
struct mock_channel *mock_channel_open(struct mock_engine *engine, uint32_t id,
                                       enum mock_channel_kind kind);
void mock_channel_close(struct mock_channel *channel);
void mock_frame(struct mock_engine *engine, uint16_t type, uint8_t flags, uint32_t channel,
                const struct klp_buf *fields);
void mock_error(struct mock_engine *engine, uint32_t channel, enum kelpie_code code,
                const char *text);
void mock_done(struct mock_engine *engine, uint32_t channel);
void mock_exec(struct mock_engine *engine, const struct klp_guest_frame *frame);
/* Runs a word: output into `out`; *code or *signal when it is over at once, else ends_in_ms, flood
 * or sends. `body`: the frame's, for what it adds to the environment. */
void mock_word_run(struct mock_engine *engine, struct mock_channel *channel,
                   const char *const *argv, struct klp_bytes body);
/* Tops `out` up from what is to be sent, to a frame's worth. */
void mock_channel_make(struct mock_engine *engine, struct mock_channel *channel);
void mock_main_start(struct mock_engine *engine, const struct klp_guest_frame *frame);
void mock_main_frame(struct mock_engine *engine, uint32_t channel);
void mock_main_log(struct mock_engine *engine, const struct klp_guest_frame *frame);
void mock_main_tick(struct mock_engine *engine, uint64_t ms);
void mock_main_signal(struct mock_engine *engine, int signal);
void mock_log_append(struct mock_engine *engine, const void *bytes, size_t size);
void mock_follow_step(struct mock_engine *engine, struct mock_channel *channel);
void mock_put_begin(struct mock_engine *engine, const struct klp_guest_frame *frame);
void mock_put_data(struct mock_engine *engine, struct mock_channel *channel, struct klp_bytes data,
                   bool end);
void mock_get_begin(struct mock_engine *engine, const struct klp_guest_frame *frame,
                    bool checkpoint);
void mock_files_make(struct mock_engine *engine, struct mock_channel *channel);
bool mock_files_are_sound(struct mock_engine *engine);
struct mock_file *mock_file_find(struct mock_engine *engine, const char *path);
void mock_unique(struct mock_engine *engine, const struct klp_guest_frame *frame, int64_t wall_ns);
/* argv fields of a frame, NULL-terminated pointers into `bytes`; false when there are none or too
 * many. */
bool mock_argv(struct klp_bytes body, struct klp_buf *bytes, const char *argv[64]);

#endif
