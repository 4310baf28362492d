// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//
// Redirects every frame to the worker's AF_XDP socket of the queue it arrived on. Without a socket, or while the worker is stuck, it is
// bridged or dropped here (fail.h). Never PASS: a frame to be bridged is not for the host.
//
// Segments of connections that are handed down leave by the other port at once (forward.h). SYNs are answered here where the engine has said how
// (answer.h). While a worker cannot keep up, SYNs are dropped here (shed.h), before they take a descriptor.

#include "kernel.h"

// Set by the loader: the workers, each of which owns the queue of its number.
volatile const u32 owned_queues = 1;

#include "sip.h"
#include "shed.h"
#include "fail.h"
#include "projection.h"
#include "forward.h"
#include "answer.h"

// Per receive queue, the socket of the worker. The loader sets the size. An entry disappears with its socket.
struct {
    ATTRIBUTE(type, MAP_TYPE_XSKMAP);
    ATTRIBUTE(max_entries, 64);
    u32 *key;
    u32 *value;
} sockets SEC(".maps");

// Frames whose queue had no socket: 0 counts those of queues that no worker owns, 1 those of a worker's queue before its socket was bound
// or after it was closed.
struct {
    ATTRIBUTE(type, MAP_TYPE_PERCPU_ARRAY);
    ATTRIBUTE(max_entries, 2);
    u32 *key;
    u64 *value;
} unclaimed SEC(".maps");

// The worker gets the frame.
enum { WENT_UP = -1 };

// Counts a frame as one that may go up, or no longer does. A function of its own, as the stack has no room for what it remembers.
APART int count_given(struct xdp_md *ctx, u32 may_go_up)
{
    u32 place = service_of(ctx->rx_queue_index);
    struct service *own = map_lookup_elem(&service, &place);

    if (own)
        *(volatile u64 *)&own->given += may_go_up ? 1 : -1ull;
    return 0;
}

INLINE int decide_all(struct xdp_md *ctx)
{
    u32 queue = ctx->rx_queue_index;
    u32 place = service_of(queue);
    struct service *own = map_lookup_elem(&service, &place);

    if (forwards) {
        int forwarded = forward(ctx);
        if (forwarded)
            return forwarded;
    }
    if (!own || !patience || !is_stuck(own, place)) {
        if (answers_syns) {
            int decided = decide(ctx, queue);
            if (decided == XDP_TX && answers_by_redirect)
                return redirect_map(&own_port, 0, XDP_DROP);
            if (decided != NOT_OURS)
                return decided;
        }
        if (sheds && is_shed(ctx))
            return XDP_DROP;
        // The last argument is the result for a queue without a socket.
        if (redirect_map(&sockets, queue, XDP_ABORTED) == XDP_REDIRECT) {
            if (own && patience)
                give(own);
            return WENT_UP;
        }
        u32 is_owned = own != 0;
        u64 *count = map_lookup_elem(&unclaimed, &is_owned);
        if (count)
            ++*count;
    }
    return own ? fail(ctx, own) : XDP_DROP;
}

INLINE int process(struct xdp_md *ctx)
{
    // Before anything is looked up: what the worker has written by the time it finds nothing on the way up, every later frame finds.
    if (forwards)
        count_given(ctx, 1);
    int decided = decide_all(ctx);
    if (decided == WENT_UP)
        return XDP_REDIRECT;
    if (forwards)
        count_given(ctx, 0);
    return decided;
}

SEC("xdp")
int redirect(struct xdp_md *ctx)
{
    return process(ctx);
}

// The same, for frames in several buffers.
SEC("xdp.frags")
int redirect_frags(struct xdp_md *ctx)
{
    return process(ctx);
}

// In front of the programs at tc (pass.c), whose memory it shares: answers SYNs, and drops acknowledgements of SYNs that nobody answered, before a frame
// becomes a packet. All else goes on to them.
SEC("xdp.frags")
int answer_alone(struct xdp_md *ctx)
{
    // Packet sockets have no queues: what they share lies in the first worker's place.
    int decided = answers_syns ? decide(ctx, 0) : NOT_OURS;
    if (decided == XDP_TX && answers_by_redirect)
        return redirect_map(&own_port, 0, XDP_DROP);
    return decided == NOT_OURS ? XDP_PASS : decided;
}

char _license[] SEC("license") = "Dual BSD/GPL";
