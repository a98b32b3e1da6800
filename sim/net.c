/* SPDX-License-Identifier: Apache-2.0 */
#include "net.h"

#include <stdlib.h>

#include "sim.h"

#define WAY_NS KLP_MS /* half of it to one and a half */
#define WAY_TAG 0x776179ull
#define SLOW_TIMES 200
#define SPAN_SCALES 4
#define SPAN_MAX_NS (3 * SIM_NET_LEASE_MS * KLP_MS)

void sim_net_begin(struct sim_net *net)
{
    klp_list_init(&net->late);
}

void sim_net_end(struct sim_net *net)
{
    free(net->calls);
    net->calls = NULL;
}

/* ---- ways */

static struct sim_way *way_of(uint32_t from, uint32_t to)
{
    KLP_ASSERT(from < SIM_FAULT_NODES && to < SIM_FAULT_NODES);
    return &sim_world->net.ways[from][to];
}

static bool is_now(uint64_t until_ns)
{
    return sim_world->fault.on && sim_world->now_ns < until_ns;
}

uint64_t sim_net_way_ns(uint32_t from, uint32_t to)
{
    struct sim_way *way = way_of(from, to);
    uint64_t seed = sim_world->seed ^ sim_world->fault.choice.jitter;
    uint64_t key = WAY_TAG * 64 + from * SIM_FAULT_NODES + to;
    uint64_t time_ns = WAY_NS / 2 + sim_mix(seed, key, way->visits++) % WAY_NS;
    return is_now(way->slow_until_ns) ? SLOW_TIMES * time_ns : time_ns;
}

bool sim_net_is_cut(uint32_t from, uint32_t to)
{
    return is_now(way_of(from, to)->cut_until_ns);
}

bool sim_net_refuses(uint32_t from, uint32_t to)
{
    return sim_net_is_cut(from, to) && way_of(from, to)->refuses;
}

uint64_t sim_net_cut_left_ns(uint32_t from, uint32_t to)
{
    return sim_net_is_cut(from, to) ? way_of(from, to)->cut_until_ns - sim_world->now_ns : 0;
}

void sim_net_cut(uint32_t from, uint32_t to, uint64_t until_ns, bool refuses)
{
    struct sim_way *way = way_of(from, to);
    way->cut_until_ns = until_ns;
    way->refuses = refuses;
    sim_note("cut", "%u -> %u until %llu%s", from, to, (unsigned long long)until_ns,
             refuses ? ", refusing" : "");
}

void sim_net_slow(uint32_t from, uint32_t to, uint64_t until_ns)
{
    way_of(from, to)->slow_until_ns = until_ns;
    sim_note("slow", "%u -> %u until %llu", from, to, (unsigned long long)until_ns);
}

uint64_t sim_net_span_ns(void)
{
    static const uint64_t scales[SPAN_SCALES] = {10 * KLP_MS, KLP_SECOND, 10 * KLP_SECOND,
                                                 SPAN_MAX_NS};
    uint64_t scale = scales[sim_fault_draw(SPAN_SCALES)];
    return KLP_MS + sim_fault_draw(scale);
}

/* ---- late messages */

void sim_net_heal(void)
{
    struct sim_net *net = &sim_world->net;
    for (uint32_t from = 0; from < SIM_FAULT_NODES; from++)
        for (uint32_t to = 0; to < SIM_FAULT_NODES; to++)
            net->ways[from][to].cut_until_ns = net->ways[from][to].slow_until_ns = 0;
    KLP_LIST_EACH (item, &net->late) {
        sim_ready(KLP_CONTAINER(item, struct sim_late, link)->fiber);
    }
    sim_peer_heal();
}

void sim_net_late_wait(struct sim_late *late, uint64_t delay_ns)
{
    late->fiber = sim_world->current;
    klp_list_append(&sim_world->net.late, &late->link);
    sim_park(sim_world->now_ns + delay_ns, "the way of a late message");
    klp_list_remove(&late->link);
}

/* ---- what is noted of calls */

uint64_t sim_net_order(void)
{
    return ++sim_world->net.order;
}

size_t sim_net_call_begin(enum sim_call_kind kind, uint32_t node)
{
    struct sim_net *net = &sim_world->net;
    if (net->call_count == SIM_CALLS_MAX) {
        net->calls_left_out++;
        net->call_count--;
    } else if (net->call_count == net->call_capacity) {
        net->call_capacity = net->call_capacity != 0 ? 2 * net->call_capacity : 128;
        net->calls = realloc(net->calls, net->call_capacity * sizeof(net->calls[0]));
        KLP_ASSERT(net->calls != NULL);
    }
    net->calls[net->call_count] = (struct sim_call){.kind = kind,
                                                    .node = node,
                                                    .invoked = sim_net_order(),
                                                    .returned = SIM_NEVER,
                                                    .invoked_ns = sim_world->now_ns,
                                                    .returned_ns = SIM_NEVER};
    return net->call_count++;
}

struct sim_call *sim_net_call(size_t index)
{
    KLP_ASSERT(index < sim_world->net.call_count);
    return &sim_world->net.calls[index];
}

void sim_net_call_end(size_t index, kelpie_outcome outcome, enum kelpie_code code)
{
    struct sim_call *call = sim_net_call(index);
    call->returned = sim_net_order();
    call->returned_ns = sim_world->now_ns;
    call->outcome = outcome;
    call->code = code;
}
