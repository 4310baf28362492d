// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//
// What becomes of frames that no worker takes: its process is dead, stopped or not ready, or the worker is stuck. `src/xdp/failure.rs` is the
// other side of the maps.
//
// A worker is stuck when frames were given to it, and for 50 ms it has not looked at its receive ring. One that finds its ring empty is
// idle, and one that takes frames and sends none works. The worker's word `served` changes with each look; a frame that finds it unchanged
// since the first frame that was given after the last change compares the clock. A worker that has failed at one port has failed at the other.

#include "flows.h"

enum { CLOSED = 0, UNTRANSLATED = 1, OPEN = 2 };

// Set by the loader: what passes then, out of the other port.
volatile const u32 on_failure = CLOSED;
// Set by the loader: how long a worker may leave frames, in ticks of the kernel; 0 if no worker is watched.
volatile const u32 patience = 0;
// The other port, at index 0.
struct {
    ATTRIBUTE(type, MAP_TYPE_DEVMAP);
    ATTRIBUTE(max_entries, 1);
    u32 *key;
    u32 *value;
} other_port SEC(".maps");

// What a frame is.
enum {
    // No TCP segment, nor a part of one.
    NO_SEGMENT,
    // A TCP segment; the hash of its flow is known.
    SEGMENT,
    // A TCP segment, a part of one, or what may be one, whose flow cannot be told.
    OBSCURE,
};

// What a frame is, and the hash of its flow.
INLINE int read_flow(struct xdp_md *ctx, u64 *hash)
{
    u8 *data = (u8 *)(long)ctx->data;
    u8 *end = (u8 *)(long)ctx->data_end;
    u8 *at = data + 12;
    u8 *tcp;
    int is_v6 = 0;

    if (at + 2 > end)
        return OBSCURE;
    u16 type = at[0] << 8 | at[1];
#pragma unroll
    for (int tag = 0; tag < 2; tag++) {
        if (type != 0x8100 && type != 0x88a8 && type != 0x9100)
            break;
        at += 4;
        if (at + 2 > end)
            return OBSCURE;
        type = at[0] << 8 | at[1];
    }
    u8 *ip = at + 2;
    if (type == 0x0800) {
        if (ip + 20 > end || ip[0] >> 4 != 4)
            return OBSCURE;
        if (ip[9] != 6)
            return NO_SEGMENT;
        // Behind options, which may name another end; a fragment.
        if (ip[0] != 0x45 || (ip[6] & 0x3f) || ip[7])
            return OBSCURE;
        tcp = ip + 20;
    } else if (type == 0x86dd) {
        if (ip + 40 > end || ip[0] >> 4 != 6)
            return OBSCURE;
        u8 next = ip[6];
        u32 length = 40;
        int is_bare = 1;
#pragma unroll
        for (int header = 0; header < 4; header++) {
            // Hop-by-hop options, routing, fragment, authentication, destination options, mobility.
            if (next != 0 && next != 43 && next != 44 && next != 51 && next != 60 && next != 135)
                break;
            u8 *extension = ip + (length & 0x1fff);
            if (extension + 8 > end)
                return OBSCURE;
            is_bare = 0;
            // Of a later fragment only its own header tells what it is a part of.
            int is_later = next == 44 && (extension[2] || (extension[3] & 0xf8));
            length += next == 44 ? 8 : next == 51 ? 8 + extension[1] * 4 : 8 + extension[1] * 8;
            next = extension[0];
            if (is_later)
                break;
        }
        if (next != 6 && next != 0 && next != 43 && next != 44 && next != 51 && next != 60 && next != 135)
            return NO_SEGMENT;
        if (!is_bare)
            return OBSCURE;
        is_v6 = 1;
        tcp = ip + 40;
    } else {
        return NO_SEGMENT;
    }
    if (tcp + 20 > end)
        return OBSCURE;
    *hash = is_v6 ? name_v6(flow_key0, flow_key1, is_wan, 0, ip + 8, tcp) : name_v4(flow_key0, flow_key1, is_wan, 0, ip + 12, tcp);
    return SEGMENT;
}

// Whether a frame passes although no worker takes it.
APART int is_bridged(struct xdp_md *ctx)
{
    u64 hash;

    if (on_failure == CLOSED)
        return 0;
    int kind = read_flow(ctx, &hash);
    if (kind != SEGMENT)
        return kind == NO_SEGMENT;
    u64 found = find_flow(hash);
    if (on_failure == OPEN)
        return !(found & (IS_TRANSLATED | IS_UNKNOWN));
    return (found & (IS_PASSED | IS_TRANSLATED)) == IS_PASSED;
}

// What becomes of a frame that no worker takes.
INLINE int fail(struct xdp_md *ctx, struct service *own)
{
    u64 episode = *(volatile u64 *)&own->served + 1;
    if (own->episode != episode) {
        own->episode = episode;
        own->failures++;
    }
    if (is_bridged(ctx) && redirect_map(&other_port, 0, XDP_DROP) == XDP_REDIRECT) {
        own->bridged++;
        return XDP_REDIRECT;
    }
    own->dropped++;
    return XDP_DROP;
}

// Whether the worker has failed at the other port, and has not looked there since.
INLINE int has_failed_elsewhere(u32 place)
{
    u32 at = place ^ 1;
    struct service *other = map_lookup_elem(&service, &at);
    return other && *(volatile u64 *)&other->episode == *(volatile u64 *)&other->served + 1;
}

// Whether the worker is stuck.
INLINE int is_stuck(struct service *own, u32 place)
{
    u64 served = *(volatile u64 *)&own->served;
    if (served != own->seen) {
        own->seen = served;
        own->since = 0;
    }
    return own->since ? jiffies64() - own->since > patience : has_failed_elsewhere(place);
}

// A frame is given to a worker that is watched.
INLINE void give(struct service *own)
{
    if (!own->since)
        own->since = jiffies64();
}
