/* SPDX-License-Identifier: Apache-2.0 */
/* The registry's record of one agent and of one node, as JSON text (<= KLP_RECORD_SIZE_MAX): the
 * same bytes in SQLite, etcd and between nodes. Unknown fields of an agent's record are kept and
 * written back (top level; `lease` and `uniqueness` never grow). docs/formats/record.md. */
#ifndef KLP_FORMAT_RECORD_H
#define KLP_FORMAT_RECORD_H

#include "base/ext/json.h"
#include "base/name.h"
#include "format/machine.h"

#define KLP_RECORD_SIZE_MAX 4096u
#define KLP_ENDPOINT_SIZE 256

/* The agent's states of CONTRACT as far as they are recorded. */
enum klp_agent_state {
    KLP_AGENT_NONE,
    KLP_AGENT_CREATED,
    KLP_AGENT_STARTING,
    KLP_AGENT_RUNNING,
    KLP_AGENT_PAUSED,
    KLP_AGENT_SUSPENDED,
    KLP_AGENT_MOVING,
    KLP_AGENT_PARKED,
    KLP_AGENT_STOPPED,
    KLP_AGENT_CRASHED
};
const char *klp_agent_state_name(enum klp_agent_state state);
enum klp_agent_state klp_agent_state_parse(const char *text);

struct klp_agent_record {
    char id[KLP_ID_SIZE];
    char name[KLP_NAME_SIZE];
    char owner[KLP_NAME_SIZE]; /* node */
    uint64_t epoch;            /* grows at every change of ownership */
    uint64_t revision;         /* grows at every change of this record; set by the registry */
    enum klp_agent_state state;
    char move_id[KLP_ID_SIZE];       /* "" unless a move is under way */
    char destination[KLP_NAME_SIZE]; /* node, while MOVING */
    struct klp_digest manifest; /* last durable snapshot it can be brought up from; zero = none */
    uint64_t lease_ttl_ms;
    uint64_t beat; /* grows at every renewal; observers time it on their own clock */
    char image[KLP_NAME_SIZE];
    char backend[16];
    enum klp_arch arch;
    uint32_t vcpus;
    uint64_t memory_bytes;
    char parent[KLP_NAME_SIZE];
    int64_t created_wall_ns;
    char reason[256]; /* why it stopped, crashed or was parked; "" */
    uint8_t generation[16];
    char uniqueness[4][16]; /* kernel_rng clock identity userspace_rng: "proven", "unproven", ... or
                               "" */
    struct klp_json *extra; /* owned; the document with fields of a newer release; NULL = none */
};

struct klp_node_record {
    char name[KLP_NAME_SIZE];
    char endpoint[KLP_ENDPOINT_SIZE];
    enum klp_arch archs[4];
    uint32_t arch_count;
    char backends[4][16];
    uint32_t backend_count;
    uint64_t beat;
    uint64_t lease_ttl_ms;
    char state[16]; /* "ready", "draining" */
    uint64_t tsc_khz;
    char cpu[64];
    uint64_t memory_free_bytes;
};

KELPIE_MUST_USE bool klp_agent_record_encode(const struct klp_agent_record *record,
                                             struct klp_buf *out, struct kelpie_error **err);
/* CORRUPT. finish only after success. */
KELPIE_MUST_USE bool klp_agent_record_decode(struct klp_bytes text, struct klp_agent_record *out,
                                             struct kelpie_error **err);
/* A copy with an `extra` of its own; only running out of memory fails. */
KELPIE_MUST_USE bool klp_agent_record_copy(const struct klp_agent_record *from,
                                           struct klp_agent_record *to, struct kelpie_error **err);
void klp_agent_record_finish(struct klp_agent_record *record);
KELPIE_MUST_USE bool klp_node_record_encode(const struct klp_node_record *record,
                                            struct klp_buf *out, struct kelpie_error **err);
KELPIE_MUST_USE bool klp_node_record_decode(struct klp_bytes text, struct klp_node_record *out,
                                            struct kelpie_error **err);

#endif
