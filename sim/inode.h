/* SPDX-License-Identifier: Apache-2.0 */
/* Files and folders of the simulated hosts: what is there now, and what a power loss leaves. */
#ifndef SIM_INODE_H
#define SIM_INODE_H

#include "sim.h"

struct entry {
    char *name;
    struct sim_inode *inode;
    bool given_up; /* a sync of the folder has failed since: later ones do not carry it */
};

struct entries {
    struct entry *list; /* sorted by name */
    size_t count, capacity;
};

struct bytes {
    uint8_t *data;
    size_t size, capacity;
};

struct sim_inode {
    unsigned refs;
    bool is_dir;
    struct bytes now, synced;
    bool given_up; /* a sync has failed: the kernel calls it clean (the fsync study) */
    struct entries names, synced_names;
};

void sim_entry_insert(struct entries *entries, const char *name, struct sim_inode *inode);
void sim_entries_clear(struct entries *entries);
struct sim_inode *sim_entry_find(const struct entries *entries, const char *name);
bool sim_bytes_size_set(struct bytes *bytes, uint64_t size, struct kelpie_error **err);

/* ---- disk.c: what is asked at each access of a node. False = refused. */
bool sim_disk_reads(struct klp_env *env, struct kelpie_error **err);
bool sim_disk_writes(struct klp_env *env, struct kelpie_error **err);
bool sim_disk_syncs(struct klp_env *env, bool *out_broken, struct kelpie_error **err);

#endif
