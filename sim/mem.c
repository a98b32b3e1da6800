/* SPDX-License-Identifier: Apache-2.0 */
/* klp_mem_* of the simulator: every block belongs to the crash domain of the fiber that asked for
 * it, so that a crash can drop them all and the end can tell what leaked. And what a bug does. */
#include <stdlib.h>
#include <string.h>

#include "sim.h"

SIM_FAULT_SITE(OUT_OF_MEMORY)

#define REFUSED_MIN 4096 /* bytes */
#define MAGIC 0x6b6c706du

struct block {
    struct klp_list link;
    struct sim_domain *domain;
    uint32_t size, magic;
};
_Static_assert(sizeof(struct block) % 16 == 0, "blocks are aligned for anything");

struct guard {
    struct klp_list link;
    void *object;
    void (*destroy)(void *object);
};

static struct sim_domain *domain_now(void)
{
    KLP_ASSERT(sim_world != NULL);
    return sim_world->current != NULL ? sim_world->current->domain : sim_world->world_domain;
}

static void *block_make(size_t size_bytes)
{
    if (size_bytes > UINT32_MAX)
        return NULL;
    struct block *block = sim_pool_take(sizeof(*block) + size_bytes);
    if (block == NULL)
        return NULL;
    *block = (struct block){.domain = domain_now(), .size = (uint32_t)size_bytes, .magic = MAGIC};
    klp_list_append(&block->domain->blocks, &block->link);
    block->domain->block_count++;
    block->domain->block_bytes += size_bytes;
    return block + 1;
}

void *klp_mem_try_raw(size_t size_bytes)
{
    /* Small ones are promised by every allocator that overcommits; what is asked for in numbers
     * from outside is not. */
    bool refused = size_bytes >= REFUSED_MIN && fault_OUT_OF_MEMORY(domain_now()->node);
    return refused ? NULL : block_make(size_bytes);
}

void *klp_mem_try(size_t size_bytes)
{
    void *memory = klp_mem_try_raw(size_bytes);
    return memory != NULL ? memset(memory, 0, size_bytes) : NULL;
}

void *klp_mem_alloc_raw(size_t size_bytes)
{
    void *memory = block_make(size_bytes);
    if (memory == NULL)
        klp_bug(__FILE__, __LINE__, "out of memory");
    return memory;
}

void *klp_mem_alloc(size_t size_bytes)
{
    return memset(klp_mem_alloc_raw(size_bytes), 0, size_bytes);
}

static struct block *block_of(void *memory)
{
    struct block *block = (struct block *)memory - 1;
    KLP_ASSERT(block->magic == MAGIC);
    return block;
}

static void block_free(struct block *block)
{
    klp_list_remove(&block->link);
    block->domain->block_count--;
    block->domain->block_bytes -= block->size;
    block->magic = 0;
    sim_pool_give(block, sizeof(*block) + block->size);
}

/* Always elsewhere, so that whoever keeps the old address shows. */
void *klp_mem_resize(void *memory, size_t size_bytes)
{
    void *bigger = block_make(size_bytes);
    if (memory == NULL || bigger == NULL)
        return bigger;
    struct block *block = block_of(memory);
    memcpy(bigger, memory, block->size < size_bytes ? block->size : size_bytes);
    block_free(block);
    return bigger;
}

void klp_mem_free(void *memory)
{
    if (memory != NULL)
        block_free(block_of(memory));
}

void klp_mem_guard(void *object, void (*destroy)(void *object))
{
    struct guard *guard = sim_pool_take(sizeof(*guard));
    KLP_ASSERT(guard != NULL);
    *guard = (struct guard){.object = object, .destroy = destroy};
    klp_list_append(&block_of(object)->domain->guards, &guard->link);
}

void klp_mem_unguard(void *object)
{
    KLP_LIST_EACH (item, &block_of(object)->domain->guards) {
        struct guard *guard = KLP_CONTAINER(item, struct guard, link);
        if (guard->object != object)
            continue;
        klp_list_remove(&guard->link);
        sim_pool_give(guard, sizeof(*guard));
        return;
    }
    klp_bug(__FILE__, __LINE__, "an object that was never guarded");
}

struct klp_spares *klp_mem_spares(void)
{
    static struct klp_spares spares;
    return &spares;
}

/* ---- domains */

struct sim_domain *sim_domain_create(enum sim_domain_kind kind, uint32_t node, const char *name)
{
    struct sim_domain *domain = calloc(1, sizeof(*domain));
    domain->id = sim_world->domain_count++;
    domain->kind = kind;
    domain->node = node;
    snprintf(domain->name, sizeof(domain->name), "%s", name);
    klp_list_init(&domain->blocks);
    klp_list_init(&domain->guards);
    klp_list_init(&domain->resources);
    klp_list_append(&sim_world->domains, &domain->link);
    return domain;
}

void sim_resource_add(struct sim_resource *resource, void (*release)(struct sim_resource *))
{
    resource->release = release;
    klp_list_append(&domain_now()->resources, &resource->link);
}

void sim_resource_remove(struct sim_resource *resource)
{
    klp_list_remove(&resource->link);
}

void sim_domain_crash(struct sim_domain *domain)
{
    KLP_LIST_EACH (item, &sim_world->fibers) {
        struct sim_fiber *fiber = KLP_CONTAINER(item, struct sim_fiber, link);
        if (fiber->domain != domain || fiber->ended)
            continue;
        sim_fiber_kill(fiber);
        sim_fiber_bury(fiber);
    }
    domain->crashed = true;
    for (size_t i = 0; i < SIM_NODES_MAX; i++)
        if (sim_world->peers[i].domain == domain)
            sim_peer_break(&sim_world->peers[i]);
    sim_domain_drop(domain);
}

void sim_domain_crash_soon(struct sim_domain *domain)
{
    if (sim_world->crashing == NULL)
        sim_world->crashing = domain;
}

void sim_domain_drop(struct sim_domain *domain)
{
    KLP_LIST_EACH_SAFE (item, following, &domain->resources) {
        struct sim_resource *resource = KLP_CONTAINER(item, struct sim_resource, link);
        klp_list_remove(&resource->link);
        resource->release(resource);
    }
    sim_handles_drop(domain);
    KLP_LIST_EACH_SAFE (item, following, &domain->guards) {
        struct guard *guard = KLP_CONTAINER(item, struct guard, link);
        klp_list_remove(&guard->link);
        guard->destroy(guard->object);
        sim_pool_give(guard, sizeof(*guard));
    }
    KLP_LIST_EACH_SAFE (item, following, &domain->blocks) {
        block_free(KLP_CONTAINER(item, struct block, link));
    }
}

struct sim_domain *sim_domain_enter(struct sim_domain *domain)
{
    struct sim_domain *before = sim_world->current->domain;
    sim_world->current->domain = domain;
    return before;
}

unsigned sim_domain_leaks(void)
{
    unsigned leaks = 0;
    KLP_LIST_EACH (item, &sim_world->domains) {
        const struct sim_domain *domain = KLP_CONTAINER(item, struct sim_domain, link);
        if (domain->block_count == 0)
            continue;
        leaks++;
        sim_tell("  domain %u %s leaks %zu blocks of %zu bytes; the first has %u\n", domain->id,
                 domain->name, domain->block_count, domain->block_bytes,
                 KLP_CONTAINER(domain->blocks.next, struct block, link)->size);
    }
    return leaks;
}

/* In a run, the run is over: what its fibers hold is dropped as after a crash. */
void klp_bug(const char *file, int line, const char *what)
{
    if (sim_world == NULL || sim_world->current == NULL) {
        fprintf(stderr, "kelpie-dst: bug: %s:%d: %s\n", file, line, what);
        exit(sim_verdict_status(SIM_ASSERTION));
    }
    sim_fail(SIM_ASSERTION, "%s:%d: %s, in fiber %s at %llu ns", file, line, what,
             sim_world->current->name, (unsigned long long)sim_world->now_ns);
    sim_world->over = true;
    sim_fiber_switch_out();
    abort();
}
