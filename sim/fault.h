/* SPDX-License-Identifier: Apache-2.0 */
/* What can go wrong, in one table, and who decides whether it does. A kind is wired by
 * SIM_FAULT_SITE in the file where it happens: one that is only declared does not link, one that is
 * wired and never asked about does not compile.
 *
 * A decision is keyed by (seed, kind, node, visit): a site more, or a fault less, moves no other
 * one. That is what makes shrinking and trying all singles and pairs work. */
#ifndef SIM_FAULT_H
#define SIM_FAULT_H

#include <stdbool.h>
#include <stdint.h>

/* X(NAME, "name", visits a fault at strength 1, tried at each visit by --exhaustive) */

/* processes: hub.c, env.c */
#define SIM_FAULTS_PROCESS(X)                                                                      \
    X(CRASH_DAEMON_AT_POINT, "CrashDaemonAtPoint", 40, true)                                       \
    X(CRASH_HOST, "CrashHost", 300, true)                                                          \
    X(POWER_LOSS, "PowerLoss", 600, true)                                                          \
    X(CRASH_DAEMON, "CrashDaemon", 4000, false)                                                    \
    X(CRASH_KEEPER, "CrashKeeper", 4000, false)                                                    \
    X(CRASH_VM, "CrashVm", 4000, false)                                                            \
    X(STOP_DAEMON, "StopDaemon", 4000, false)                                                      \
    X(STOP_KEEPER, "StopKeeper", 4000, false)

/* time: env.c */
#define SIM_FAULTS_TIME(X)                                                                         \
    X(WALL_STEP, "WallStep", 200, false)                                                           \
    X(HOST_SLEEP, "HostSleep", 4000, false)                                                        \
    X(TIMER_LATE, "TimerLate", 2000, false)                                                        \
    X(TIMER_EARLY, "TimerEarly", 2000, false)

/* the registry's service and the way to it: registry.c */
#define SIM_FAULTS_REGISTRY(X)                                                                     \
    X(REGISTRY_CUT, "RegistryCut", 300, false)                                                     \
    X(REGISTRY_DOWN, "RegistryDown", 400, false)                                                   \
    X(REGISTRY_SLOW, "RegistrySlow", 300, false)                                                   \
    X(REGISTRY_REQUEST_LOST, "RegistryRequestLost", 100, true)                                     \
    X(REGISTRY_REPLY_LOST, "RegistryReplyLost", 100, true)                                         \
    X(REGISTRY_LATE, "RegistryLate", 60, true)                                                     \
    X(REGISTRY_RIVAL, "RegistryRival", 40, true)                                                   \
    X(WATCH_MISSED, "WatchMissed", 10, false)                                                      \
    X(WATCH_FOR_NOTHING, "WatchForNothing", 10, false)

/* nodes that ask one another: peer.c */
#define SIM_FAULTS_NETWORK(X)                                                                      \
    X(PEER_CUT, "PeerCut", 60, false)                                                              \
    X(PEER_SLOW, "PeerSlow", 60, false)                                                            \
    X(PEER_REQUEST_LOST, "PeerRequestLost", 40, true)                                              \
    X(TELEPORT_TIMEOUT, "TeleportTimeout", 40, true)                                               \
    X(PEER_REQUEST_TWICE, "PeerRequestTwice", 20, true)                                            \
    X(PEER_REQUEST_GARBLED, "PeerRequestGarbled", 80, true)                                        \
    X(PEER_ANSWER_LOST, "PeerAnswerLost", 40, true)                                                \
    X(PEER_ANSWER_RESET, "PeerAnswerReset", 40, true)                                              \
    X(PEER_ANSWER_GARBLED, "PeerAnswerGarbled", 80, true)

/* files of one host: disk.c */
#define SIM_FAULTS_DISK(X)                                                                         \
    X(DISK_READ_ERROR, "DiskReadError", 2000, false)                                               \
    X(DISK_WRITE_ERROR, "DiskWriteError", 1000, false)                                             \
    X(DISK_SYNC_ERROR, "DiskSyncError", 600, false)                                                \
    X(DISK_FULL, "DiskFull", 2000, false)

/* objects: store.c */
#define SIM_FAULTS_STORE(X)                                                                        \
    X(TELEPORT_UPLOAD_FAIL, "TeleportUploadFail", 60, true)                                        \
    X(TELEPORT_DOWNLOAD_FAIL, "TeleportDownloadFail", 120, true)                                   \
    X(STORE_ANSWER_LOST, "StoreAnswerLost", 60, true)                                              \
    X(STORE_SLOW, "StoreSlow", 200, false)

/* hypervisor and guest: hypervisor.c, spoil.c; what is read of a snapshot: file.c */
#define SIM_FAULTS_VM(X)                                                                           \
    X(TELEPORT_ARCH_MISMATCH, "TeleportArchMismatch", 30, true)                                    \
    X(TELEPORT_IMAGE_MISMATCH, "TeleportImageMismatch", 30, true)                                  \
    X(VM_CREATE_FAIL, "VmCreateFail", 30, true)                                                    \
    X(VM_STOP_FAIL, "VmStopFail", 40, true)                                                        \
    X(VM_CONT_FAIL, "VmContFail", 40, true)                                                        \
    X(VM_SLOW, "VmSlow", 100, true)                                                                \
    X(VM_DIES_MIDWAY, "VmDiesMidway", 60, true)                                                    \
    X(SNAPSHOT_CREATE_FAIL, "SnapshotCreateFail", 30, true)                                        \
    X(SNAPSHOT_TOO_LARGE, "SnapshotTooLarge", 40, true)                                            \
    X(SNAPSHOT_CORRUPTION, "SnapshotCorruption", 100, true)                                        \
    X(SNAPSHOT_RESTORE_FAIL, "SnapshotRestoreFail", 30, true)                                      \
    X(GUEST_DEAF, "GuestDeaf", 200, false)                                                         \
    X(GUEST_GARBAGE, "GuestGarbage", 100, true)                                                    \
    X(UNIQUE_FAILS, "UniqueFails", 20, true)

/* memory: mem.c */
#define SIM_FAULTS_MEMORY(X) X(OUT_OF_MEMORY, "OutOfMemory", 100, false)

#define SIM_FAULT_MAP(X)                                                                           \
    SIM_FAULTS_PROCESS(X)                                                                          \
    SIM_FAULTS_TIME(X)                                                                             \
    SIM_FAULTS_REGISTRY(X)                                                                         \
    SIM_FAULTS_NETWORK(X)                                                                          \
    SIM_FAULTS_DISK(X)                                                                             \
    SIM_FAULTS_STORE(X)                                                                            \
    SIM_FAULTS_VM(X)                                                                               \
    SIM_FAULTS_MEMORY(X)

enum sim_fault_kind {
#define SIM_FAULT_ENUM(name, text, visits, exhaustive) SIM_FAULT_##name,
    SIM_FAULT_MAP(SIM_FAULT_ENUM)
#undef SIM_FAULT_ENUM
        SIM_FAULT_COUNT
};

/* At file scope, once: declares fault_NAME(node). */
#define SIM_FAULT_SITE(name)                                                                       \
    extern const char sim_wired_##name;                                                            \
    const char sim_wired_##name = 1;                                                               \
    static bool fault_##name(uint32_t node)                                                        \
    {                                                                                              \
        return sim_fault_fires(SIM_FAULT_##name, node);                                            \
    }

#define SIM_FAULTS_MAX 64   /* fired in one run */
#define SIM_FAULT_NODES 5   /* the nodes, and one for what belongs to none */
#define SIM_FAULT_NOWHERE 4 /* node number of what belongs to none */

struct sim_fault { /* one that fired, or is to */
    enum sim_fault_kind kind;
    uint32_t node;
    uint64_t visit; /* of its site, from 0 */
    uint64_t point; /* of all decisions of the run, from 0 */
    uint64_t at_ns;
};

enum sim_fault_mode {
    SIM_FAULTS_SWARM, /* as the plan's strengths say */
    SIM_FAULTS_LIST,  /* those of a list, and no other */
    SIM_FAULTS_POINTS /* at the decisions points[0] and points[1] of the kinds that take part */
};

struct sim_fault_choice { /* who decides; copied at a run's begin */
    enum sim_fault_mode mode;
    const struct sim_fault *list; /* LIST: borrowed */
    unsigned count;
    uint64_t points[2]; /* POINTS; UINT64_MAX = none */
    uint64_t jitter;    /* another schedule for the same faults; 0 = the seed's own */
};

struct sim_faults {
    struct sim_fault_choice choice;
    bool on;                             /* the run is in the phase in which things go wrong */
    unsigned most;                       /* by SWARM */
    uint32_t threshold[SIM_FAULT_COUNT]; /* of 2^24, by SWARM */
    uint64_t key[SIM_FAULT_COUNT];       /* of its name */
    uint64_t visits[SIM_FAULT_COUNT][SIM_FAULT_NODES];
    uint64_t points;
    struct sim_fault fired[SIM_FAULTS_MAX];
    unsigned fired_count;
    uint64_t draws; /* of the last that fired */
};

/* Counts the visit; true = it shall happen now. */
bool sim_fault_fires(enum sim_fault_kind kind, uint32_t node);
/* A number below `below`, of the fault that fired last: how long, how much, where. */
uint64_t sim_fault_draw(uint64_t below);
const char *sim_fault_name(enum sim_fault_kind kind);
/* Kinds on and off and how strong, as the seed says. */
void sim_faults_plan(uint64_t seed, struct sim_faults *out);

#endif
