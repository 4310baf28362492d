// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//
// Hands every frame to the worker's AF_XDP socket of the queue it arrived on. Where no socket is, the fallback decides:
// out of the other port (fail open), or drop (fail closed). Never PASS: a frame to be bridged is not for the host.
//
// A worker that cannot keep up has its calls shed here (shed.h), before they take a descriptor.
//
// Only the few declarations this needs are written here, so that clang alone can compile it.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
// The loader reads a map's attributes out of the types of these members (BTF).
#define ATTRIBUTE(name, value) int(*name)[value]

enum { MAP_TYPE_ARRAY = 2, MAP_TYPE_PERCPU_ARRAY = 6, MAP_TYPE_DEVMAP = 14, MAP_TYPE_XSKMAP = 17 };
enum { MAP_MMAPABLE = 1 << 10 };
enum { XDP_ABORTED = 0, XDP_DROP = 1, XDP_REDIRECT = 4 };

// The program's context, as the kernel lays it out.
struct xdp_md {
    u32 data;
    u32 data_end;
    u32 data_meta;
    u32 ingress_ifindex;
    u32 rx_queue_index;
    u32 egress_ifindex;
};

static void *(*const map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*const redirect_map)(void *map, u64 key, u64 flags) = (void *)51;
static u64 (*const ktime_get_boot_ns)(void) = (void *)125;

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
