// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//
// Hands every frame to the worker's AF_XDP socket of the queue it arrived on. Where no socket is, the fallback decides:
// out of the other port (fail open), or drop (fail closed). Never PASS: a frame to be bridged is not for the host.
//
// A worker that cannot keep up has its calls shed here (shed.h), before they take a descriptor.

#include "kernel.h"
#include "shed.h"

// Per receive queue, the socket of the worker. The loader sets the size. An entry goes with its socket.
struct {
    ATTRIBUTE(type, MAP_TYPE_XSKMAP);
    ATTRIBUTE(max_entries, 64);
    u32 *key;
    u32 *value;
} sockets SEC(".maps");

// The other port, at index 0; only looked at when failing open.
struct {
    ATTRIBUTE(type, MAP_TYPE_DEVMAP);
    ATTRIBUTE(max_entries, 1);
    u32 *key;
    u32 *value;
} other SEC(".maps");

// Frames that found no socket.
struct {
    ATTRIBUTE(type, MAP_TYPE_PERCPU_ARRAY);
    ATTRIBUTE(max_entries, 1);
    u32 *key;
    u64 *value;
} strays SEC(".maps");

// Set by the loader: 1 to bypass to the other port, 0 to drop.
volatile const u32 fail_open = 0;

INLINE int steer(struct xdp_md *ctx)
{
    if (sheds && is_shed(ctx))
        return XDP_DROP;

    // The last argument is the answer for a queue without a socket.
    if (redirect_map(&sockets, ctx->rx_queue_index, XDP_ABORTED) == XDP_REDIRECT)
        return XDP_REDIRECT;

    u32 zero = 0;
    u64 *count = map_lookup_elem(&strays, &zero);
    if (count)
        ++*count;
    if (fail_open)
        return redirect_map(&other, 0, XDP_DROP);
    return XDP_DROP;
}

SEC("xdp")
int redirect(struct xdp_md *ctx)
{
    return steer(ctx);
}

// The same, for frames in several buffers.
SEC("xdp.frags")
int redirect_frags(struct xdp_md *ctx)
{
    return steer(ctx);
}

char _license[] SEC("license") = "Dual BSD/GPL";
