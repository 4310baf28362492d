// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//
// Forwards the segments of flows that the engine has handed down (projection.h), a super-frame at a time, between ports that are packet
// sockets. A packet socket sees a frame before the tc hook does, so there are two programs, and one decision: `sort`, the filter of the
// socket, decides, and notes beside the frame what is to be written; `pass`, at the port's tc ingress, finds that note, writes it and sends the
// frame out of the other port. While there is no socket, since the process has ended, `pass` decides. What goes up goes the way it would go
// without this program.
//
// SYNs of the WAN are answered the same way, where the engine has said how (answer_skb.h).

#include "kernel.h"
#include "skb.h"
#include "sip.h"
#include "projection.h"

#define FRAME const struct __sk_buff

INLINE int load(FRAME *skb, u32 offset, void *to, u32 len)
{
    return skb_load_bytes_relative(skb, offset, to, len, HDR_START_MAC);
}

INLINE int load_some(FRAME *skb, u32 offset, void *to, u32 len)
{
    return load(skb, offset, to, len);
}

INLINE u32 tag_beside(FRAME *skb)
{
    return skb->vlan_present ? (u32)__builtin_bswap16(skb->vlan_proto) << 16 | skb->vlan_tci : 0;
}

#include "frame.h"

// Set by the loader: the workers.
volatile const u32 owned_queues = 1;

#include "flows.h"
#include "answer_skb.h"

// Set by the loader: the interfaces of LAN and WAN, and a random number that marks the notes.
volatile const u32 lan_port = 0;
volatile const u32 wan_port = 0;
volatile const u32 mark = 0;
// Bytes in front of the IP header that count in a frame's length: none when a test runs the programs.
volatile const u32 link_header = 14;

// The keys of the hash that names flows, and of each side the frames and bytes that were forwarded. The engine and the ports read and write
// them as memory.
struct control {
    u64 keys[2];
    // Not 0: nothing from this side is forwarded now.
    u64 stopped[2];
    u64 frames[2];
    u64 bytes[2];
};

struct {
    ATTRIBUTE(type, MAP_TYPE_ARRAY);
    ATTRIBUTE(map_flags, MAP_MMAPABLE);
    ATTRIBUTE(max_entries, 1);
    u32 *key;
    struct control *value;
} shared SEC(".maps");

// The whole frame, to the socket.
enum { UP = -1, NOTED = 0 };
// Notes beside a frame: the mark, the number, the clock, the window with the offset of the TCP header, and which of these are to be written; with the last,
// how many SACK blocks there are to be translated, and, from the 16th bit on, how far behind the TCP header's begin they are.
enum { NOTE_MARK, NOTE_NUMBER, NOTE_CLOCK, NOTE_WINDOW, NOTE_FLAGS };
// Added to the mark: the frame went up.
enum { WENT_UP = 2 };
enum { MOVES_CLOCK = 1, CHANGES = 2, BLOCKS = 8, BLOCKS_AT = 16 };
// Or, with that: the number is the place of the splice, from which all else is found out again; the frame is IPv6; the segment has timestamps.
enum { SPLICES = 16, IS_V6 = 32, HAS_TIMESTAMPS = 64 };
// Or, instead of that: the frame's answer, whose ticket is the number, is to be sent; or the frame is to be dropped.
enum { ANSWERS = 4, DROPS = 8 };

// Decides about a frame from `side`: it goes up, or there is a note beside it of what is to be written.
INLINE int decide(struct __sk_buff *skb, u32 side)
{
    struct frame frame;
    struct change change;
    struct segment *segment = &frame.segment;
    u32 zero = 0, len = skb->len;

    struct control *control = map_lookup_elem(&shared, &zero);
    if (!control || skb->pkt_type == PACKET_OUTGOING ||
        !read_frame(skb, len - link_header, side, control->keys, &frame))
        return UP;
    struct splice *splice;
    struct entry *entry = find_entry(frame.hash, side, &splice);
    if (!entry)
        return UP;
    u32 usual = judge(entry, splice, side, segment) && frame.mac == entry->macs[side & 1];
    u32 may_go = usual && !*(volatile u64 *)&control->stopped[side & 1];
    if (!goes_down(entry, side, segment, may_go, usual))
        return UP;
    project(entry, side, segment, &change);
    follow(entry, side, segment, ktime_get_boot_ns());
    entry->ends[side & 1].bytes += len;
    __sync_fetch_and_add(&control->frames[side & 1], 1);
    __sync_fetch_and_add(&control->bytes[side & 1], len);
    skb->cb[NOTE_NUMBER] = change.number;
    skb->cb[NOTE_CLOCK] = change.clock;
    skb->cb[NOTE_WINDOW] = (u32)change.window << 16 | frame.tcp;
    skb->cb[NOTE_FLAGS] = (change.moves_clock ? MOVES_CLOCK : 0) | (entry->flags & TRANSLATED ? CHANGES : 0);
    if (splice) {
        skb->cb[NOTE_NUMBER] = entry->other;
        skb->cb[NOTE_FLAGS] = SPLICES | (frame.is_v6 ? IS_V6 : 0) | (segment->has_timestamps ? HAS_TIMESTAMPS : 0);
    }
    if (side == WAN || splice)
        skb->cb[NOTE_FLAGS] |= segment->blocks << BLOCKS | (TCP + 4 + (segment->has_timestamps ? OPTIONS : 0)) << BLOCKS_AT;
    return NOTED;
}

// Decides about a frame of the WAN that goes on in no flow handed down: it goes up, or there is a note beside it of what becomes of it.
INLINE int decide_alone(struct __sk_buff *skb)
{
    u32 zero = 0;
    int decided = answer(skb, skb->len - link_header + ETHERNET);
    struct work *w = map_lookup_elem(&work, &zero);

    if (!w || decided == NOT_OURS)
        return UP;
    skb->cb[NOTE_NUMBER] = w->ticket;
    skb->cb[NOTE_FLAGS] = decided == ANSWERED ? ANSWERS : DROPS;
    return NOTED;
}

// Decides about a frame from `side`: to the socket, or a note and nothing to the socket.
INLINE int sort(struct __sk_buff *skb, u32 side)
{
    int way = decide(skb, side);
    if (way == UP && side == WAN && answers_syns && skb->pkt_type != PACKET_OUTGOING)
        way = decide_alone(skb);
    skb->cb[NOTE_MARK] = mark + side + (way == UP ? WENT_UP : 0);
    return way;
}

// Writes what replaces the addresses and ports of a frame from `side`, whose headers of IP and TCP are there; 0 if it cannot be.
INLINE int readdress(struct __sk_buff *skb, u32 side, const struct splice *splice, u32 ip, u32 tcp)
{
    const struct way *way = &splice->ways[side & 1];
    u32 flags = skb->cb[NOTE_FLAGS];
    u8 bytes[32];

    __builtin_memcpy(bytes, way->macs, 12);
    long failed = splice->flags & FULL ? skb_store_bytes(skb, 0, bytes, 12, 0)
                : side == WAN          ? skb_store_bytes(skb, 0, bytes, 6, 0)
                                       : skb_store_bytes(skb, 6, bytes + 6, 6, 0);
    __builtin_memcpy(bytes, way->addresses, 32);
    if (flags & IS_V6)
        failed |= skb_store_bytes(skb, ip + 8, bytes, 32, 0);
    else
        failed |= skb_store_bytes(skb, ip + 12, bytes, 8, 0) | l3_csum_replace(skb, ip + 10, 0, way->address_sum, 0);
    failed |= l4_csum_replace(skb, tcp + 16, 0, way->address_sum, PSEUDO_HEADER);
    // Of IPv6 the addresses and the sum cancel out in what a device has taken of the whole packet; the kernel has counted the sum alone.
    if (flags & IS_V6)
        csum_update(skb, way->address_sum);
    return !failed;
}

// Translates a frame from `side` of a connection that is spliced, and gives it the addresses and ports of the other side; 0 if it cannot be.
APART int write_spliced(struct __sk_buff *skb, u32 side)
{
    u8 header[TCP + OPTIONS];
    struct change change;
    struct segment segment;
    u32 flags = skb->cb[NOTE_FLAGS], tcp = skb->cb[NOTE_WINDOW] & 0xff, is_v6 = flags & IS_V6;
    struct splice *splice = (struct splice *)entry_at(skb->cb[NOTE_NUMBER]);

    side &= 1;
    if (!splice)
        return 0;
    struct entry *entry = entry_at(splice->other);
    if (!entry || (flags & HAS_TIMESTAMPS ? skb_load_bytes(skb, tcp, header, TCP + OPTIONS) : skb_load_bytes(skb, tcp, header, TCP)))
        return 0;
    segment.seq = be32(header + 4);
    segment.ack = be32(header + 8);
    segment.outer_ack = segment.ack - (side == LAN ? splice->seq_delta : 0);
    segment.window = be16(header + 14);
    segment.has_timestamps = 0;
    segment.ts_value = segment.ts_echo = 0;
    if (flags & HAS_TIMESTAMPS) {
        segment.has_timestamps = 1;
        segment.ts_value = be32(header + TCP + 4);
        segment.ts_echo = be32(header + TCP + 8);
    }
    project(entry, side, &segment, &change);
    project_other(entry, splice, side, &segment, &change);
    __builtin_memcpy(header, &splice->ways[side].ports, 4);
    u64 sum = splice->ways[side].port_sum;
    sum += write_change(header, side, change.number, change.window, change.moves_clock, change.clock);
    sum += write_other(header, side, change.other_number, change.moves_other_clock, change.other_clock);
    if (flags & HAS_TIMESTAMPS ? skb_store_bytes(skb, tcp, header, TCP + OPTIONS, 0) : skb_store_bytes(skb, tcp, header, TCP, 0))
        return 0;
    u32 at = tcp + (flags >> BLOCKS_AT & 63), delta = side == WAN ? entry->seq_delta : splice->seq_delta;
    for (u32 i = 0; i < 4 && i < (flags >> BLOCKS & 7); i++, at += 8) {
        u8 block[8];
        if (skb_load_bytes(skb, at, block, 8))
            return 0;
        sum += write_block(block, delta);
        if (skb_store_bytes(skb, at, block, 8, 0))
            return 0;
    }
    return !l4_csum_replace(skb, tcp + 16, 0, folded(sum), 0) && readdress(skb, side, splice, tcp - (is_v6 ? IPV6 : IPV4), tcp);
}

// Carries out what was decided about a frame from `side`.
INLINE int pass(struct __sk_buff *skb, u32 side)
{
    u8 header[TCP + OPTIONS];
    u32 other_port = side == LAN ? wan_port : lan_port;
    u32 note = skb->cb[NOTE_MARK];

    // Nothing that comes with the frame beyond this is a note.
    skb->cb[NOTE_MARK] = 0;
    if (note == mark + side + WENT_UP)
        return TC_ACT_UNSPEC;
    // No socket has seen it: there is no process.
    if (note != mark + side && decide(skb, side) == UP)
        return TC_ACT_UNSPEC;
    u32 flags = skb->cb[NOTE_FLAGS], tcp = skb->cb[NOTE_WINDOW] & 0xff;
    if (side == WAN && flags & DROPS)
        return TC_ACT_SHOT;
    // The transmit queue shall be that of what the engine sends, not that of the reception.
    skb->queue_mapping = 0;
    set_hash_invalid(skb);
    if (side == WAN && flags & ANSWERS)
        return send_answer(skb, skb->cb[NOTE_NUMBER], wan_port);
    if (flags & SPLICES)
        return write_spliced(skb, side) ? redirect_to(other_port, 0) : TC_ACT_SHOT;
    if (!(flags & CHANGES))
        return redirect_to(other_port, 0);
    if (flags & MOVES_CLOCK ? skb_load_bytes(skb, tcp, header, TCP + OPTIONS) : skb_load_bytes(skb, tcp, header, TCP))
        return TC_ACT_SHOT;
    u32 delta = be32(header + 8) - skb->cb[NOTE_NUMBER];
    u64 sum = write_change(header, side, skb->cb[NOTE_NUMBER], skb->cb[NOTE_WINDOW] >> 16, flags & MOVES_CLOCK, skb->cb[NOTE_CLOCK]);
    // The sum of a segment that its sender left to a device covers the pseudo header alone; the kernel knows, and leaves that alone.
    if (flags & MOVES_CLOCK ? skb_store_bytes(skb, tcp, header, TCP + OPTIONS, 0) : skb_store_bytes(skb, tcp, header, TCP, 0))
        return TC_ACT_SHOT;
    if (side == WAN && flags >> BLOCKS & 7) {
        u32 at = tcp + (flags >> BLOCKS_AT & 63);
        for (u32 i = 0; i < 4 && i < (flags >> BLOCKS & 7); i++, at += 8) {
            u8 block[8];
            if (skb_load_bytes(skb, at, block, 8))
                return TC_ACT_SHOT;
            sum += write_block(block, delta);
            if (skb_store_bytes(skb, at, block, 8, 0))
                return TC_ACT_SHOT;
        }
        sum = folded(sum);
    }
    if (l4_csum_replace(skb, tcp + 16, 0, sum, 0))
        return TC_ACT_SHOT;
    return redirect_to(other_port, 0);
}

SEC("socket")
int sort_lan(struct __sk_buff *skb)
{
    return sort(skb, LAN);
}

SEC("socket")
int sort_wan(struct __sk_buff *skb)
{
    return sort(skb, WAN);
}

SEC("classifier")
int pass_lan(struct __sk_buff *skb)
{
    return pass(skb, LAN);
}

SEC("classifier")
int pass_wan(struct __sk_buff *skb)
{
    return pass(skb, WAN);
}

char _license[] SEC("license") = "Dual BSD/GPL";
