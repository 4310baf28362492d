// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//
// Redirects every frame to the worker's AF_XDP socket of the queue it arrived on. Without a socket, the fallback decides:
// out of the other port (fail open), or drop (fail closed). Never PASS: a frame to be bridged is not for the host.
//
// While a worker cannot keep up, SYNs are dropped here (shed.h), before they take a descriptor.

#include "kernel.h"
#include "shed.h"

// Per receive queue, the socket of the worker. The loader sets the size. An entry disappears with its socket.
struct {
    ATTRIBUTE(type, MAP_TYPE_XSKMAP);
    ATTRIBUTE(max_entries, 64);
    u32 *key;
    u32 *value;
} sockets SEC(".maps");

// The other port, at index 0; only used when failing open.
struct {
    ATTRIBUTE(type, MAP_TYPE_DEVMAP);
    ATTRIBUTE(max_entries, 1);
    u32 *key;
    u32 *value;
} other_port SEC(".maps");

// Frames whose queue had no socket: 0 counts those of queues that no worker owns, 1 those of a worker's queue before its socket was bound
// or after it was closed.
struct {
    ATTRIBUTE(type, MAP_TYPE_PERCPU_ARRAY);
    ATTRIBUTE(max_entries, 2);
    u32 *key;
    u64 *value;
} unclaimed SEC(".maps");

// Where the program continues that puts tags into frames: here (src/xdp/tags.rs).
struct {
    ATTRIBUTE(type, MAP_TYPE_PROG_ARRAY);
    ATTRIBUTE(max_entries, 1);
    u32 *key;
    u32 *value;
} next SEC(".maps");

// Set by the loader: 1 to bypass to the other port, 0 to drop.
volatile const u32 fail_open = 0;
// Set by the loader: the workers, each of which owns the queue of its number.
volatile const u32 owned_queues = 1;

INLINE int process(struct xdp_md *ctx)
{
    if (sheds && is_shed(ctx))
        return XDP_DROP;

    // The last argument is the result for a queue without a socket.
    if (redirect_map(&sockets, ctx->rx_queue_index, XDP_ABORTED) == XDP_REDIRECT)
        return XDP_REDIRECT;

    u32 owned = ctx->rx_queue_index < owned_queues;
    u64 *count = map_lookup_elem(&unclaimed, &owned);
    if (count)
        ++*count;
    if (fail_open)
        return redirect_map(&other_port, 0, XDP_DROP);
    return XDP_DROP;
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

char _license[] SEC("license") = "Dual BSD/GPL";
