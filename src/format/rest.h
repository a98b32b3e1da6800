/* SPDX-License-Identifier: Apache-2.0 */
/* REST bodies: the same structs on both sides of the wire. encode = the JSON of CONTRACT; decode is
 * lenient to unknown response fields and strict to unknown request fields (INVALID names the
 * field). Objects are encoded into a klp_json, so that lists can be put together; fields as
 * CONTRACT's tables. Every field of every body: docs/formats/rest.md. A decoder that fails leaves
 * nothing to finish; requests fail with INVALID, answers with PROTOCOL. */
#ifndef KLP_FORMAT_REST_H
#define KLP_FORMAT_REST_H

#include "base/ext/json.h"
#include "format/manifest.h"
#include "format/record.h"

#define KLP_REST_VERSION 1

/* ---- answers */
struct klp_agent_info {
    char name[KLP_NAME_SIZE], id[KLP_ID_SIZE], image[KLP_NAME_SIZE], node[KLP_NAME_SIZE],
        parent[KLP_NAME_SIZE];
    enum klp_agent_state state;
    enum klp_arch arch;
    char backend[16];
    uint64_t epoch, memory_bytes;
    char generation[33]; /* hex, "" before the first start */
    uint32_t vcpus;
    int64_t created_wall_ns;
    int64_t pid;            /* the hypervisor's; 0 = none */
    char reason[256];       /* "" = null */
    char uniqueness[4][16]; /* kernel_rng clock identity userspace_rng; "" = null */
    char *console_tail;     /* owned; last console lines of a crashed agent; NULL = absent */
};
struct klp_json *klp_rest_agent_encode(const struct klp_agent_info *agent);
KELPIE_MUST_USE bool klp_rest_agent_decode(const struct klp_json *json, struct klp_agent_info *out,
                                           struct kelpie_error **err);
void klp_agent_info_finish(struct klp_agent_info *agent);

struct klp_snapshot_info {
    char id[KLP_ID_SIZE], name[KLP_NAME_SIZE], agent[KLP_NAME_SIZE], parent[KLP_DIGEST_SIZE],
        backend[16];
    char manifest[KLP_DIGEST_SIZE];
    enum klp_snapshot_kind kind;
    enum klp_arch arch;
    uint64_t memory_bytes, stored_bytes;
    int64_t created_wall_ns;
    uint64_t pause_ms_x1000; /* the pause it cost, microseconds; encoded as pause_us */
};
struct klp_json *klp_rest_snapshot_encode(const struct klp_snapshot_info *snapshot);
KELPIE_MUST_USE bool klp_rest_snapshot_decode(const struct klp_json *json,
                                              struct klp_snapshot_info *out,
                                              struct kelpie_error **err);

struct klp_json *klp_rest_node_encode(const struct klp_node_record *node, const char *state);

struct klp_image_info {
    char name[KLP_NAME_SIZE], version[24], digest[KLP_DIGEST_SIZE];
    enum klp_arch arch;
    uint64_t size_bytes;
};
struct klp_json *klp_rest_image_encode(const struct klp_image_info *image);

enum klp_operation_state {
    KLP_OPERATION_RUNNING,
    KLP_OPERATION_DONE,
    KLP_OPERATION_FAILED,
    KLP_OPERATION_UNKNOWN
};
struct klp_operation_phase {
    char step[24];
    uint64_t us; /* microseconds; encoded as ms with three decimals is not JSON-integer: "ms"
                    rounded up, "us" exact */
    uint64_t bytes;
};
struct klp_operation_info {
    char id[KLP_ID_SIZE], kind[16] /* teleport fork suspend restore snapshot */,
        agent[KLP_NAME_SIZE], move_id[KLP_ID_SIZE];
    char destination[KLP_NAME_SIZE];
    enum klp_operation_state state;
    uint64_t epoch, bytes_moved, blackout_us;
    int64_t created_wall_ns;
    uint32_t phase_count;
    struct klp_operation_phase phases[24];
    char **results; /* owned, NULL-terminated names it made (forks, snapshot id); NULL = none */
    struct kelpie_error *error; /* owned; set when FAILED / UNKNOWN, or some failed (PARTIAL) */
};
struct klp_json *klp_rest_operation_encode(const struct klp_operation_info *operation);
KELPIE_MUST_USE bool klp_rest_operation_decode(const struct klp_json *json,
                                               struct klp_operation_info *out,
                                               struct kelpie_error **err);
void klp_operation_info_finish(struct klp_operation_info *operation);

struct klp_event {
    uint64_t seq;
    int64_t wall_ns;
    char type[32]; /* "agent.running", "teleport.done", "gap", ... */
    char agent[KLP_NAME_SIZE];
    char text[256];
};
struct klp_json *klp_rest_event_encode(const struct klp_event *event);

struct klp_check {
    char name[32], status[8] /* ok warn fail */, detail[512], remedy[256];
};
struct klp_json *klp_rest_check_encode(const struct klp_check *check);

/* {"version":1, KEY: items}; takes `items` over. */
struct klp_json *klp_rest_document(const char *key, struct klp_json *items);

/* The list under KEY of such a document, borrowed; NULL when it is none (another version, no list).
 */
const struct klp_json *klp_rest_items(const struct klp_json *json, const char *key);

/* The one line people read: the message, and after a colon those of its causes, unless it ends in
 * them already. Problems and error lines carry the same. */
void klp_rest_error_text(const struct kelpie_error *err, struct klp_buf *out);
/* problem+json: type title status detail instance code reasons remedy retryable operation_id. */
struct klp_json *klp_rest_problem_encode(const struct kelpie_error *err, const char *operation_id);
/* Never NULL: an answer that is no problem document becomes PROTOCOL with the HTTP status named. */
struct kelpie_error *klp_rest_problem_decode(int http_status, struct klp_bytes body);
/* CONTRACT's last line on stderr:
 * {"type":"error","code":..,"exit":..,"message":..,"reasons":[..],"remedy":..}, without a line end.
 */
void klp_rest_error_line(const struct kelpie_error *err, int exit_status, struct klp_buf *out);

/* ---- requests */
struct klp_agent_request {     /* POST /v1/agents */
    char name[KLP_NAME_SIZE];  /* "" = drawn */
    char image[KLP_NAME_SIZE]; /* "" = base */
    char backend[16];          /* "" = the node's choice */
    enum klp_arch arch;        /* NONE = the node's */
    uint32_t vcpus;            /* 0 = default */
    uint64_t memory_bytes;     /* 0 = default */
    char *workdir;             /* owned, NULL */
    char **argv, **env;        /* owned, NULL-terminated, NULL = none */
    bool start;
    bool remove_at_end; /* --rm */
};
struct klp_json *klp_rest_agent_request_encode(const struct klp_agent_request *request);
KELPIE_MUST_USE bool klp_rest_agent_request_decode(const struct klp_json *json,
                                                   struct klp_agent_request *out,
                                                   struct kelpie_error **err);
void klp_agent_request_finish(struct klp_agent_request *request);

struct klp_exec_request { /* POST /v1/agents/NAME/exec, and the first message of the streaming form
                           */
    char **argv, **env;   /* owned */
    char *workdir;        /* owned */
    uint64_t timeout_ms;  /* 0 = none */
    bool tty;
    uint32_t rows, cols;
    struct klp_buf stdin_bytes; /* one-shot form: base64 "stdin_base64" */
};
struct klp_json *klp_rest_exec_request_encode(const struct klp_exec_request *request);
KELPIE_MUST_USE bool klp_rest_exec_request_decode(const struct klp_json *json,
                                                  struct klp_exec_request *out,
                                                  struct kelpie_error **err);
void klp_exec_request_finish(struct klp_exec_request *request);

struct klp_exec_result {
    int32_t exit_code; /* 128+signal when a signal ended it */
    int32_t signal;    /* 0 = none */
    bool timed_out, truncated;
    struct klp_buf out, err; /* owned */
};
struct klp_json *klp_rest_exec_result_encode(const struct klp_exec_result *result);
KELPIE_MUST_USE bool klp_rest_exec_result_decode(const struct klp_json *json,
                                                 struct klp_exec_result *out,
                                                 struct kelpie_error **err);
void klp_exec_result_finish(struct klp_exec_result *result);

/* POST .../snapshots {name,kind} · .../fork {count,name} · /v1/snapshots/ID/restore {name} ·
 * .../teleport {destination,check,checkpoint,max_pause_ms} · .../restore {claim}. All fields
 * optional but as said. */
struct klp_action_request {
    char name[KLP_NAME_SIZE];
    char destination[KLP_NAME_SIZE];
    enum klp_snapshot_kind kind;
    uint32_t count; /* 0 = 1 */
    bool check, checkpoint, claim, force;
    uint64_t max_pause_ms; /* 0 = no bound */
    uint64_t timeout_ms;   /* 0 = default */
    int32_t signal;        /* kill; 0 = 9 */
};
struct klp_json *klp_rest_action_encode(const struct klp_action_request *request);
KELPIE_MUST_USE bool klp_rest_action_decode(const struct klp_json *json,
                                            struct klp_action_request *out,
                                            struct kelpie_error **err);

/* ---- between nodes (teleport/): POST /v1/peer/{preflight,prepare,accept,cancel,status}. */
struct klp_peer_request {
    char agent[KLP_ID_SIZE];
    char name[KLP_NAME_SIZE];
    char source[KLP_NAME_SIZE];
    char move_id[KLP_ID_SIZE];
    uint64_t epoch; /* the source's */
    enum klp_snapshot_kind kind;
    struct klp_digest
        manifest; /* prepare: the template or pre-copied snapshot; accept: the final one */
    struct klp_digest image;
    char image_name[KLP_NAME_SIZE], image_version[24];
    struct klp_machine machine; /* preflight (encoded as base64 of its records) */
};
struct klp_json *klp_rest_peer_request_encode(const struct klp_peer_request *request);
KELPIE_MUST_USE bool klp_rest_peer_request_decode(const struct klp_json *json,
                                                  struct klp_peer_request *out,
                                                  struct kelpie_error **err);
struct klp_peer_answer {
    uint32_t reason_count;
    char reasons[16][160]; /* preflight: why not; empty = it can */
    uint64_t epoch;        /* accept: the epoch it runs at */
    char state[16];
    struct klp_digest state_digest;
};
struct klp_json *klp_rest_peer_answer_encode(const struct klp_peer_answer *answer);
KELPIE_MUST_USE bool klp_rest_peer_answer_decode(const struct klp_json *json,
                                                 struct klp_peer_answer *out,
                                                 struct kelpie_error **err);

/* ---- the streaming exec: after an HTTP Upgrade, both sides send frames of 8 bytes + payload:
 * u8 stream, 3 zero bytes, u32 big-endian length (<= KLP_EXEC_FRAME_MAX). */
#define KLP_EXEC_FRAME_MAX (64u * KLP_KIB)
#define KLP_EXEC_UPGRADE "kelpie-exec" /* value of the Upgrade header */
enum klp_exec_stream {
    KLP_EXEC_STDIN = 0, /* client; empty = end */
    KLP_EXEC_STDOUT = 1,
    KLP_EXEC_STDERR = 2,
    KLP_EXEC_EXIT =
        3, /* server, last: JSON of klp_exec_result without the outputs, or a problem document */
    KLP_EXEC_SIGNAL = 4, /* client: decimal text */
    KLP_EXEC_RESIZE = 5  /* client: "ROWS COLS" */
};
void klp_exec_frame_header(enum klp_exec_stream stream, uint32_t size, uint8_t out[8]);
KELPIE_MUST_USE bool klp_exec_frame_decode(const uint8_t in[8], enum klp_exec_stream *stream,
                                           uint32_t *size, struct kelpie_error **err);

#endif
