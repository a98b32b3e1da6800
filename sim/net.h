/* SPDX-License-Identifier: Apache-2.0 */
/* The ways between nodes and to the registry's service: how long they take, which are cut or slow
 * now, and what was sent over them (for checkers). Ways are directed. */
#ifndef SIM_NET_H
#define SIM_NET_H

#include "base/list.h"
#include "base/name.h"
#include "fault.h"
#include "format/record.h"

#define SIM_NET_REGISTRY SIM_FAULT_NOWHERE /* the place of the registry's service */
#define SIM_NET_LEASE_MS 30000             /* a cut may outlast three of them */
#define SIM_CALLS_MAX 8192
#define SIM_TWICE_MAX 64

struct sim_way {
    uint64_t cut_until_ns, slow_until_ns;
    bool refuses;    /* who tries to connect over the cut is told so, instead of nothing */
    uint64_t visits; /* so many latencies were drawn */
};

/* ---- what nodes asked of the registry, as they saw it: one agent's record at a time. */
enum sim_call_kind { SIM_CALL_CREATE, SIM_CALL_GET, SIM_CALL_CAS, SIM_CALL_RENEW, SIM_CALL_DELETE };
struct sim_call {
    enum sim_call_kind kind;
    uint32_t node;              /* SIM_NET_REGISTRY = somebody who is no node */
    char id[KLP_ID_SIZE];       /* "" = asked for by a name that is not there */
    uint64_t invoked, returned; /* numbers that grow with time, ties too; SIM_NEVER = not returned,
                                   its process died */
    uint64_t invoked_ns, returned_ns;
    kelpie_outcome outcome; /* once it returned */
    enum kelpie_code code;
    uint64_t revision, epoch;         /* expected, of CAS and DELETE; RENEW has an epoch only */
    uint64_t new_revision, new_epoch; /* written by CREATE and CAS, read by GET */
    char owner[8];                    /* written or read, of RENEW expected; cut off */
    enum klp_agent_state state;       /* written by CREATE and CAS */
    uint64_t applied; /* when the service did it, numbered as above; 0 = it did not. For those who
                         know all: no client can tell. */
};

/* A request between nodes that was delivered once more. */
struct sim_twice {
    uint32_t node; /* that served it */
    char verb[16], agent[KLP_ID_SIZE], move_id[KLP_ID_SIZE];
    uint64_t at_ns;
};

struct sim_fiber;
struct sim_late { /* embedded in a message that arrives later than anybody waits for it */
    struct klp_list link;
    struct sim_fiber *fiber;
};

struct sim_net {
    struct sim_way ways[SIM_FAULT_NODES][SIM_FAULT_NODES]; /* from, to */
    struct klp_list late; /* messages that nobody waits for any more */
    struct sim_call *calls;
    size_t call_count, call_capacity;
    uint64_t calls_left_out; /* beyond SIM_CALLS_MAX */
    uint64_t order;
    struct sim_twice twice[SIM_TWICE_MAX];
    size_t twice_count;
};

void sim_net_begin(struct sim_net *net);
void sim_net_end(struct sim_net *net);
/* Whatever is cut or slow is so no more, and what is late arrives now. With fault.on false nothing
 * is cut either; this is for what waits. */
void sim_net_heal(void);
/* The time that the next message takes. */
uint64_t sim_net_way_ns(uint32_t from, uint32_t to);
bool sim_net_is_cut(uint32_t from, uint32_t to);
bool sim_net_refuses(uint32_t from, uint32_t to);
uint64_t sim_net_cut_left_ns(uint32_t from, uint32_t to); /* 0 = it is not cut */
/* The fault that fired last cuts or slows, from now on, for a time that it draws. */
void sim_net_cut(uint32_t from, uint32_t to, uint64_t until_ns, bool refuses);
void sim_net_slow(uint32_t from, uint32_t to, uint64_t until_ns);
/* Drawn by the fault that fired last: 1 ms to three leases, short ones as likely as long ones. */
uint64_t sim_net_span_ns(void);

/* What is noted of a call may move with the next one: an index, not a pointer. */
size_t sim_net_call_begin(enum sim_call_kind kind, uint32_t node);
struct sim_call *sim_net_call(size_t index); /* never NULL: what is left out has a place, too */
void sim_net_call_end(size_t index, kelpie_outcome outcome, enum kelpie_code code);
uint64_t sim_net_order(void);

/* Of the fiber that carries a late message: until its time has come, or the ways are healed. */
void sim_net_late_wait(struct sim_late *late, uint64_t delay_ns);

#endif
