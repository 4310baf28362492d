// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//
// Forwards the segments of flows that the engine has handed down (projection.h), frame by frame, out of the other port. Everything else is left to
// the rest of the program. It needs no worker, so it goes on while there is none.

#define FRAME struct xdp_md

// Read anew each time, so that the verifier has nothing to remember of what was known of a pointer.
INLINE u8 *data_of(FRAME *ctx)
{
    return (u8 *)(long)*(volatile u32 *)&ctx->data;
}

INLINE u8 *end_of(FRAME *ctx)
{
    return (u8 *)(long)*(volatile u32 *)&ctx->data_end;
}

// What is counted from the Ethernet header on lies in the first buffer, but for a frame that a device has cut elsewhere.
INLINE int load(FRAME *ctx, u32 offset, void *to, u32 len)
{
    u8 *at = data_of(ctx) + (offset & 0x3ff);

    if (offset < 0x400 && at + len <= end_of(ctx)) {
        __builtin_memcpy(to, at, len);
        return 0;
    }
    return xdp_load_bytes(ctx, offset, to, len);
}

INLINE int load_some(FRAME *ctx, u32 offset, void *to, u32 len)
{
    return xdp_load_bytes(ctx, offset, to, len);
}

// One that a device or a veth keeps beside the frame is put into it before (src/xdp/tags.rs).
INLINE u32 tag_beside(FRAME *ctx)
{
    (void)ctx;
    return 0;
}

#include "frame.h"

// Set by the loader: whether established connections are forwarded here.
volatile const u32 forwards = 0;

// Of each port of each worker, in the order of the map of their service: the frames and bytes that were forwarded past it, and the frames that went up
// because their sender had left the checksum to a device. And, as the process says, the longest frames that the other port sends: in one buffer, and in
// several. A cache line each.
struct forwarded {
    u64 frames;
    u64 bytes;
    u64 partial;
    u64 longest;
    u64 longest_in_pieces;
    u64 padding[3];
};

struct {
    ATTRIBUTE(type, MAP_TYPE_ARRAY);
    ATTRIBUTE(map_flags, MAP_MMAPABLE);
    ATTRIBUTE(max_entries, 128);
    u32 *key;
    struct forwarded *value;
} forwarded SEC(".maps");

// Translates a frame of a connection that is spliced, and gives it the addresses and ports of the other side; 0 if it cannot be.
APART int write_spliced(FRAME *ctx, const struct frame *frame, struct entry *entry, struct splice *splice)
{
    const struct segment *segment = &frame->segment;
    u32 side = is_wan & 1;
    struct way *way = &splice->ways[side];
    struct change change;
    u8 *data = data_of(ctx), *end = end_of(ctx), *ip = data + (frame->ip & 0x3ff), *tcp = data + (frame->tcp & 0x3ff);
    u64 sum = (u64)way->address_sum + way->port_sum;
    u16 check;

    if (data + ETHERNET > end || ip + IPV4 > end || tcp + TCP > end)
        return 0;
    if (side == WAN) {
        __builtin_memcpy(data, way->macs, 6);
        if (splice->flags & FULL)
            __builtin_memcpy(data + 6, way->macs + 6, 6);
    } else {
        __builtin_memcpy(data + 6, way->macs + 6, 6);
        if (splice->flags & FULL)
            __builtin_memcpy(data, way->macs, 6);
    }
    if (frame->is_v6) {
        if (ip + IPV6 > end)
            return 0;
        __builtin_memcpy(ip + 8, way->addresses, 32);
    } else {
        __builtin_memcpy(ip + 12, way->addresses, 8);
        __builtin_memcpy(&check, ip + 10, 2);
        check = ~folded((u64)(u16)~check + way->address_sum);
        __builtin_memcpy(ip + 10, &check, 2);
    }
    __builtin_memcpy(tcp, &way->ports, 4);
    project(entry, side, segment, &change);
    project_other(entry, splice, side, segment, &change);
    if (change.moves_clock | change.moves_other_clock) {
        if (tcp + TCP + OPTIONS > end)
            return 0;
        sum += write_change(tcp, side, change.number, change.window, change.moves_clock, change.clock);
        sum += write_other(tcp, side, change.other_number, change.moves_other_clock, change.other_clock);
    } else {
        sum += write_change(tcp, side, change.number, change.window, 0, 0);
        sum += write_other(tcp, side, change.other_number, 0, 0);
    }
    u8 *block = tcp + TCP + 4 + (segment->has_timestamps ? OPTIONS : 0);
    u32 delta = side == WAN ? entry->seq_delta : splice->seq_delta;
    for (u32 i = 0; i < 4 && i < segment->blocks; i++, block += 8) {
        if (block + 8 > end)
            return 0;
        sum += write_block(block, delta);
    }
    __builtin_memcpy(&check, tcp + 16, 2);
    check = ~folded((u64)(u16)~check + sum);
    __builtin_memcpy(tcp + 16, &check, 2);
    return 1;
}

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
    struct splice *splice;
    struct entry *entry = find_entry(frame.hash, side, &splice);
    if (!entry)
        return 0;
    u32 usual = judge(entry, splice, side, segment) && frame.mac == entry->macs[side & 1];
    struct end *own = &entry->ends[side & 1];
    // There is no mark of it here, and of sound sums one in 65536 looks like that. A sender leaves the sums of all its segments to a device, or of none.
    u32 looks_partial = frame.check == frame.pseudo, is_partial = looks_partial && own->is_down != DOWN;
    struct forwarded *count = map_lookup_elem(&forwarded, &place);
    if (!count)
        return 0;
    u8 *data = data_of(ctx), *end = end_of(ctx), *tcp = data + (frame.tcp & 0x3ff);
    u32 fits = tcp + (frame.header & 63) <= end &&
               len <= (data + (len & 0xffff) <= end ? count->longest : count->longest_in_pieces);
    if (!goes_down(entry, side, segment, usual && !is_partial && fits, usual)) {
        if (is_partial)
            count->partial++;
        return 0;
    }
    follow(entry, side, segment, ktime_get_boot_ns());
    own->bytes += len;
    if (looks_partial != own->is_down >> 1)
        own->is_down = DOWN | (looks_partial ? LOOKED_PARTIAL : 0);
    count->frames++;
    count->bytes += len;
    if (splice) {
        if (!write_spliced(ctx, &frame, entry, splice))
            return XDP_DROP;
    } else if (entry->flags & TRANSLATED) {
        u64 sum;
        u16 check;
        project(entry, side, segment, &change);
        if (change.moves_clock) {
            if (tcp + TCP + OPTIONS > end)
                return XDP_DROP;
            sum = write_change(tcp, side, change.number, change.window, 1, change.clock);
        } else {
            if (tcp + TCP > end)
                return XDP_DROP;
            sum = write_change(tcp, side, change.number, change.window, 0, 0);
        }
        if (side == WAN && segment->blocks) {
            u8 *block = tcp + TCP + 4 + (segment->has_timestamps ? OPTIONS : 0);
            for (u32 i = 0; i < 4 && i < segment->blocks; i++, block += 8) {
                if (block + 8 > end)
                    return XDP_DROP;
                sum += write_block(block, segment->ack - change.number);
            }
        }
        __builtin_memcpy(&check, tcp + 16, 2);
        check = ~folded((u64)(u16)~check + sum);
        __builtin_memcpy(tcp + 16, &check, 2);
    }
    return redirect_map(&other_port, 0, XDP_DROP);
}
