/* SPDX-License-Identifier: Apache-2.0 */
/* What disks do: refuse, fill up, forget what a failed sync should have written, and lose or tear
 * at a power loss what no sync has carried. */
#include <stdlib.h>
#include <string.h>

#include "inode.h"

#define SECTOR 512u /* bytes: written whole or not at all */
#define DEPTH_MAX 8
#define FULL_MAX_NS (40 * KLP_SECOND)
#define UPTIME_MAX_NS (20 * KLP_SECOND) /* of a host that has just booted */

SIM_FAULT_SITE(DISK_READ_ERROR)
SIM_FAULT_SITE(DISK_WRITE_ERROR)
SIM_FAULT_SITE(DISK_SYNC_ERROR)
SIM_FAULT_SITE(DISK_FULL)

/* ---- while it runs */

bool sim_disk_reads(struct klp_env *env, struct kelpie_error **err)
{
    return !fault_DISK_READ_ERROR(sim_env_from(env)->node) ||
           klp_refuse(err, KELPIE_E_IO, "cannot read: Input/output error");
}

bool sim_disk_writes(struct klp_env *env, struct kelpie_error **err)
{
    struct sim_env *host = sim_env_from(env);
    if (fault_DISK_FULL(host->node))
        host->disk_full_until_ns = sim_world->now_ns + sim_fault_draw(FULL_MAX_NS);
    if (sim_world->fault.on && host->disk_full_until_ns > sim_world->now_ns)
        return klp_refuse(err, KELPIE_E_NO_SPACE, "cannot write: No space left on device");
    return !fault_DISK_WRITE_ERROR(host->node) ||
           klp_refuse(err, KELPIE_E_IO, "cannot write: Input/output error");
}

/* What was to be written is called clean afterwards in half of the cases: a later sync says that
 * all is well and has written nothing of it. */
bool sim_disk_syncs(struct klp_env *env, bool *out_broken, struct kelpie_error **err)
{
    *out_broken = false;
    if (!fault_DISK_SYNC_ERROR(sim_env_from(env)->node))
        return true;
    *out_broken = sim_fault_draw(2) == 0;
    return klp_refuse(err, KELPIE_E_IO, "cannot sync: Input/output error");
}

/* ---- power loss */

/* Sector by sector, what is on the disk is the old or the new. */
static void content_lose(struct sim_inode *inode)
{
    struct bytes *now = &inode->now, *synced = &inode->synced;
    bool same = now->size == synced->size &&
                (now->size == 0 || memcmp(now->data, synced->data, now->size) == 0);
    if (same)
        return;
    size_t size = sim_fault_draw(2) == 0 ? now->size : synced->size;
    KLP_ASSERT(sim_bytes_size_set(now, now->size > size ? now->size : size, NULL));
    for (size_t at = 0; at < size; at += SECTOR) {
        size_t part = size - at < SECTOR ? size - at : SECTOR;
        if (sim_fault_draw(2) == 0)
            continue;
        size_t old = at < synced->size ? synced->size - at : 0;
        old = old < part ? old : part;
        if (old > 0)
            memcpy(now->data + at, synced->data + at, old);
        memset(now->data + at + old, 0, part - old);
    }
    KLP_ASSERT(sim_bytes_size_set(now, size, NULL) && sim_bytes_size_set(synced, size, NULL));
    if (size > 0)
        memcpy(synced->data, now->data, size);
}

/* Of a name that differs, the durable state or the last one. */
static void name_settle(struct entries *out, const char *name, struct sim_inode *now,
                        struct sim_inode *synced)
{
    struct sim_inode *kept = now == synced || sim_fault_draw(2) == 0 ? now : synced;
    if (kept != NULL)
        sim_entry_insert(out, name, sim_inode_share(kept));
}

static void folder_lose(struct sim_inode *folder, unsigned depth)
{
    struct entries kept = {NULL, 0, 0}, durable = {NULL, 0, 0};
    KLP_ASSERT(depth > 0);
    for (size_t i = 0; i < folder->names.count; i++) {
        const struct entry *entry = &folder->names.list[i];
        name_settle(&kept, entry->name, entry->inode,
                    sim_entry_find(&folder->synced_names, entry->name));
    }
    for (size_t i = 0; i < folder->synced_names.count; i++) {
        const struct entry *entry = &folder->synced_names.list[i];
        if (sim_entry_find(&folder->names, entry->name) == NULL)
            name_settle(&kept, entry->name, NULL, entry->inode);
    }
    for (size_t i = 0; i < kept.count; i++) {
        struct sim_inode *inode = kept.list[i].inode;
        sim_entry_insert(&durable, kept.list[i].name, sim_inode_share(inode));
        if (inode->is_dir)
            folder_lose(inode, depth - 1);
        else
            content_lose(inode);
    }
    sim_entries_clear(&folder->names);
    sim_entries_clear(&folder->synced_names);
    folder->names = kept;
    folder->synced_names = durable;
}

/* All below a folder that was there before Kelpie was. */
static void power_lose(const char *above, const char *name)
{
    struct sim_inode *folder = sim_entry_find(&sim_world->root->names, above);
    if (folder != NULL)
        folder = sim_entry_find(&folder->names, name);
    if (folder != NULL)
        folder_lose(folder, DEPTH_MAX);
}

static void host_die(struct sim_env *host)
{
    KLP_LIST_EACH (item, &sim_world->domains) {
        struct sim_domain *domain = KLP_CONTAINER(item, struct sim_domain, link);
        if (domain->kind != SIM_WORLD && domain->node == host->node && !domain->crashed)
            sim_domain_crash(domain);
    }
    power_lose(host->name, "state");
    host->disk_full_until_ns = 0;
    sim_env_boot(host, sim_fault_draw(UPTIME_MAX_NS));
}

void sim_hosts_die(uint32_t hosts)
{
    for (uint32_t i = 0; i < SIM_NODES_MAX; i++)
        if ((hosts >> i & 1) != 0)
            host_die(sim_world->envs[i]);
    if (hosts == SIM_ALL_HOSTS)
        power_lose("shared", "store");
}
