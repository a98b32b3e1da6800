/* SPDX-License-Identifier: Apache-2.0 */
/* The last bytes the main process wrote, with offsets that count from its first byte ever, and a
 * note of where its two streams take turns. */
#include "guest/guest.h"

#include <string.h>

static struct guest_ring_turn *turn_at(struct guest_ring *ring, uint64_t number)
{
    return &ring->turns[number % GUEST_RING_TURNS];
}

/* The oldest turns go when there is no room for another, and the bytes in them. */
static void turn_note(struct guest_ring *ring, bool is_stderr)
{
    if (ring->turn_end > ring->turn_first &&
        turn_at(ring, ring->turn_end - 1)->is_stderr == is_stderr)
        return;
    if (ring->turn_end - ring->turn_first == GUEST_RING_TURNS) {
        ring->turn_first++;
        if (ring->first < turn_at(ring, ring->turn_first)->start)
            ring->first = turn_at(ring, ring->turn_first)->start;
    }
    *turn_at(ring, ring->turn_end++) = (struct guest_ring_turn){ring->end, is_stderr};
}

static void front_drop(struct guest_ring *ring)
{
    if (ring->end - ring->first > KLP_GUEST_LOG_MAX)
        ring->first = ring->end - KLP_GUEST_LOG_MAX;
    while (ring->turn_first + 1 < ring->turn_end &&
           turn_at(ring, ring->turn_first + 1)->start <= ring->first)
        ring->turn_first++;
}

void guest_ring_append(struct guest_ring *ring, bool is_stderr, const uint8_t *data, size_t size)
{
    KLP_ASSERT(size <= KLP_GUEST_LOG_MAX);
    if (size == 0)
        return;
    turn_note(ring, is_stderr);
    size_t at = (size_t)(ring->end % KLP_GUEST_LOG_MAX);
    size_t head = size < KLP_GUEST_LOG_MAX - at ? size : KLP_GUEST_LOG_MAX - at;
    memcpy(ring->bytes + at, data, head);
    memcpy(ring->bytes, data + head, size - head);
    ring->end += size;
    front_drop(ring);
}

struct klp_bytes guest_ring_view(struct guest_ring *ring, uint64_t offset, bool *is_stderr)
{
    *is_stderr = false;
    if (offset < ring->first || offset >= ring->end)
        return (struct klp_bytes){0};
    uint64_t stop = ring->end, number = ring->turn_end - 1;
    while (turn_at(ring, number)->start > offset)
        stop = turn_at(ring, number--)->start;
    *is_stderr = turn_at(ring, number)->is_stderr;
    size_t at = (size_t)(offset % KLP_GUEST_LOG_MAX), size = (size_t)(stop - offset);
    if (size > KLP_GUEST_LOG_MAX - at)
        size = KLP_GUEST_LOG_MAX - at;
    return (struct klp_bytes){ring->bytes + at, size};
}
