// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//
// Forwards the segments of flows that the engine has handed down (projection.h), frame by frame, out of the other port. Everything else is left to
// the rest of the program. It needs no worker, so it goes on while there is none.

#define FRAME struct xdp_md

// What is counted from the Ethernet header on lies in the first buffer, but for a frame that a device has cut elsewhere.
INLINE int load(FRAME *ctx, u32 offset, void *to, u32 len)
{
    u8 *at = (u8 *)(long)ctx->data + (offset & 0x3ff);

    if (offset < 0x400 && at + len <= (u8 *)(long)ctx->data_end) {
        __builtin_memcpy(to, at, len);
        return 0;
    }
    return xdp_load_bytes(ctx, offset, to, len);
}

#include "frame.h"

// Set by the loader: whether established connections are forwarded here.
volatile const u32 forwards = 0;

// Of each port of each worker, in the order of the map of their service: the frames and bytes that were forwarded past it, and the frames that went up
// because their sender had left the checksum to a device. A cache line each.
struct forwarded {
    u64 frames;
    u64 bytes;
    u64 partial;
    u64 padding[5];
};

struct {
    ATTRIBUTE(type, MAP_TYPE_ARRAY);
    ATTRIBUTE(map_flags, MAP_MMAPABLE);
    ATTRIBUTE(max_entries, 128);
    u32 *key;
    struct forwarded *value;
} forwarded SEC(".maps");

// Forwards a frame of a connection that is handed down; 0 if it goes up.
APART int forward(struct xdp_md *ctx)
{
    struct frame frame;
    struct change change;
    struct segment *segment = &frame.segment;
    u64 keys[2] = { flow_key0, flow_key1 };
    u32 side = is_wan, len = xdp_buff_len(ctx), place = service_of(ctx->rx_queue_index);

    if (!read_frame(ctx, len - ETHERNET, side, keys, &frame))
        return 0;
    struct entry *entry = find_entry(frame.hash);
    if (!entry)
        return 0;
    u32 usual = is_usual(entry, side, segment) && frame.mac == entry->macs[side & 1];
    // There is no mark of it here. Of sound sums one in 65536 looks like that, and its frame goes up too.
    u32 is_partial = frame.check == frame.pseudo;
    struct forwarded *count = map_lookup_elem(&forwarded, &place);
    u8 *tcp = (u8 *)(long)ctx->data + (frame.tcp & 0x3ff), *end = (u8 *)(long)ctx->data_end;
    u32 is_whole = segment->has_timestamps ? tcp + TCP + OPTIONS <= end : tcp + TCP <= end;
    if (!goes_down(entry, side, segment, usual && !is_partial && is_whole, usual)) {
        if (count && is_partial)
            count->partial++;
        return 0;
    }
    project(entry, side, segment, &change);
    follow(entry, side, segment, ktime_get_boot_ns());
    entry->ends[side & 1].bytes += len;
    if (count) {
        count->frames++;
        count->bytes += len;
    }
    if (entry->flags & TRANSLATED) {
        u64 sum;
        u16 check;
        if (change.moves_clock) {
            if (tcp + TCP + OPTIONS > end)
                return XDP_DROP;
            sum = write_change(tcp, side, change.number, change.window, 1, change.clock);
        } else {
            if (tcp + TCP > end)
                return XDP_DROP;
            sum = write_change(tcp, side, change.number, change.window, 0, 0);
        }
        __builtin_memcpy(&check, tcp + 16, 2);
        check = ~folded((u64)(u16)~check + sum);
        __builtin_memcpy(tcp + 16, &check, 2);
    }
    return redirect_map(&other_port, 0, XDP_DROP);
}
