/* SPDX-License-Identifier: Apache-2.0 */
/* Guests as witnesses. Beside the engine every simulated guest runs a small program, as long as
 * its workload runs: it counts, rewrites keyed pages, extends a hash chain and now and then has a
 * numbered effect on the outside. The world keeps a ledger of them, in which two copies, lost work
 * and wrong memory show, whatever the nodes believe (guest.c the program, ledger.c the book). */
#ifndef SIM_WITNESS_H
#define SIM_WITNESS_H

#include "base/list.h"
#include "vm/mock/engine.h"

#define SIM_WITNESS_PAGES 4
#define SIM_NO_LINEAGE UINT32_MAX
#define SIM_SAMPLE_SIZE 32
#define SIM_SAMPLE_NODES 4

/* In guest memory, in the quarter that the engine has no use for. */
struct sim_witness {
    uint64_t magic;
    uint64_t ticks;   /* of work done */
    uint64_t chain;   /* over identity, generation and ticks, a link each time somebody looked */
    uint64_t effects; /* emitted so far: the number of the last */
    uint64_t remainder_ns;             /* of a tick */
    uint64_t generation_key, spare[2]; /* under which the last link was made */
    uint8_t machine_id[16], boot_id[16];
    uint64_t spare2[4];
    uint64_t keyed[SIM_WITNESS_PAGES][8];
};

/* One VM's, for as long as it lives. */
struct sim_guest {
    struct klp_list link; /* world->guests */
    uint32_t number, node;
    int64_t pid; /* 0 = not started */
    uint64_t mapped_bytes;
    const struct mock_state *state; /* NULL = it has no memory yet */
    struct sim_witness *witness;
    uint64_t loaded_from; /* the capture; 0 = booted */
    bool ended;
    bool works; /* its workload runs, since: */
    uint64_t since_ns;
    uint32_t lineage; /* it works, or worked, for */
    size_t stretch;
};

/* An agent as the world knows it: a machine id, and all copies that ever had it. */
struct sim_lineage {
    uint8_t machine_id[16];
    char name[64];   /* hostname when it first ran: the agent's, or the template's */
    uint32_t parent; /* it was forked from; SIM_NO_LINEAGE */
    uint64_t born_ns, ticks, chain, effects; /* where its work stands */
    uint32_t holder;                         /* guest that brought it there */
    bool holder_died;                        /* and not because it was told to */
    bool holder_gone;                        /* either way */
    struct sim_guest *working;               /* NULL = none runs now */
    unsigned rewinds;
    uint64_t lost_ticks; /* by them */
};

/* From when to when a workload ran, in true time. */
struct sim_stretch {
    uint32_t lineage, guest, node;
    uint64_t from_ns, to_ns; /* SIM_NEVER = it runs */
    uint64_t from_ticks, to_ticks;
};

struct sim_capture {               /* number n is captures[n - 1] */
    uint32_t lineage, guest, node; /* SIM_NO_LINEAGE: its workload never ran */
    uint64_t at_ns, ticks, chain, effects;
    uint64_t digest, size_bytes; /* of all of its memory */
};

/* A guest came up from a capture that is older than its lineage's work. */
struct sim_rewind {
    uint32_t lineage, guest;
    uint64_t at_ns, capture, from_ticks, to_ticks;
    bool crashed; /* the one that had the work had died unasked */
};

struct sim_ledger {
    bool off; /* guests may be copied as one likes: a test of the hypervisor alone */
    struct sim_lineage *lineages;
    size_t lineage_count;
    struct sim_stretch *stretches;
    size_t stretch_count;
    struct sim_capture *captures;
    size_t capture_count;
    struct sim_rewind *rewinds;
    size_t rewind_count;
    uint32_t guest_count;
    struct klp_list guests; /* that live */
    uint8_t samples[SIM_SAMPLE_NODES]
                   [SIM_SAMPLE_SIZE]; /* of randomness, the last a node was told */
    bool has_sample[SIM_SAMPLE_NODES];
};

/* ---- for the hypervisor: guest.c */
/* Where the witness lies in a guest of that size. */
uint64_t sim_guest_offset(uint64_t memory_size);
void sim_guest_begin(struct sim_guest *guest, uint32_t node);
void sim_guest_map(struct sim_guest *guest, uint8_t *memory, uint64_t size);
/* What was worked since the last look is done, up to now. */
void sim_guest_look(struct sim_guest *guest);
void sim_guests_sleep(uint32_t node, uint64_t until_ns);
/* From now on its workload runs, or stands still; asked again whenever its identity may change. */
void sim_guest_turn(struct sim_guest *guest, bool works);
/* It is over; `asked`: it powered off, or was told to. */
void sim_guest_end(struct sim_guest *guest, bool asked);
bool sim_guest_lives(int64_t pid);
/* Returns the capture's number, never 0. */
uint64_t sim_guest_captured(struct sim_guest *guest, uint64_t digest);
/* Restored: is it what was captured (DESIGN 2.3)? */
void sim_guest_loaded(struct sim_guest *guest, uint64_t capture, uint64_t digest);

/* ---- the book: ledger.c */
void sim_ledger_begin(struct sim_ledger *ledger);
void sim_ledger_end(struct sim_ledger *ledger);
struct sim_lineage *sim_lineage_find(const uint8_t machine_id[16]); /* NULL = none */
struct sim_lineage *sim_lineage_add(const struct sim_guest *guest, uint32_t parent);
uint32_t sim_lineage_number(const struct sim_lineage *lineage);
struct sim_lineage *sim_lineage_named(const char *name); /* the youngest; NULL = none */
void sim_stretch_open(struct sim_guest *guest);
void sim_stretch_close(struct sim_guest *guest);
struct sim_capture *sim_capture_get(uint64_t number); /* NULL = there was none */
struct sim_capture *sim_capture_add(void);
struct sim_rewind *sim_rewind_add(void);

#endif
