// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//
// Forwards the segments of flows that the engine has handed down (projection.h), a super-frame at a time, between ports that are packet
// sockets. A packet socket sees a frame before the tc hook does, so there are two programs, and one decision: `sort`, the filter of the
// socket, decides, and notes beside the frame what is to be written; `pass`, at the port's tc ingress, finds that note, writes it and sends the
// frame out of the other port. Without a note the frame goes the way it would go without this program.

#include "kernel.h"
#include "skb.h"
#include "sip.h"
#include "projection.h"

// Set by the loader: the interfaces of LAN and WAN, the number of buckets (a power of two), and a random number that marks the notes.
volatile const u32 lan_port = 0;
volatile const u32 wan_port = 0;
volatile const u32 buckets = 1;
volatile const u32 mark = 0;
// Bytes in front of the IP header that count in a frame's length: none when a test runs the programs.
volatile const u32 link_header = 14;

// The keys of the hash that names flows, and of each side the frames and bytes that were forwarded. The engine and the ports read and write
// them as memory.
struct control {
    u64 key0;
    u64 key1;
    u64 unused[2];
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

struct {
    ATTRIBUTE(type, MAP_TYPE_ARRAY);
    ATTRIBUTE(map_flags, MAP_MMAPABLE);
    ATTRIBUTE(max_entries, 1);
    u32 *key;
    struct bucket *value;
} handed_down SEC(".maps");

enum { ETHERNET = 14, IPV4 = 20, IPV6 = 40, TCP = 20, OPTIONS = 12 };
// The whole frame, to the socket.
enum { UP = -1, DOWN = 0 };
// Notes beside a frame: the mark, the number, the clock, the window with the offset of the TCP header, and which of these are to be written.
enum { NOTE_MARK, NOTE_NUMBER, NOTE_CLOCK, NOTE_WINDOW, NOTE_FLAGS };
enum { MOVES_CLOCK = 1, CHANGES = 2 };

INLINE int load(const struct __sk_buff *skb, u32 offset, void *to, u32 len)
{
    return skb_load_bytes_relative(skb, offset, to, len, HDR_START_MAC);
}

// A frame's segment and where it lies.
struct frame {
    u64 hash;
    u32 mac;
    u32 tcp;
    struct segment segment;
};

// Reads the segment of an untagged frame, and the hash of its flow; 0 if the frame holds none whose flow can be told.
INLINE int read_frame(const struct __sk_buff *skb, u32 side, const struct control *control, struct frame *frame)
{
    u8 head[ETHERNET + IPV6];
    u8 tcp[TCP];
    u8 options[OPTIONS];
    struct segment *segment = &frame->segment;
    u32 length, ecn, is_common = 1;

    if (skb->vlan_present || skb->pkt_type == PACKET_OUTGOING || load(skb, 0, head, ETHERNET + IPV4))
        return 0;
    __builtin_memcpy(&frame->mac, head + 8, 4);
    u16 type = be16(head + 12);
    u8 *ip = head + ETHERNET;
    if (type == 0x0800) {
        length = be16(ip + 2);
        u32 header = (ip[0] & 15) * 4;
        // No TCP, or a later fragment.
        if (ip[0] >> 4 != 4 || header < IPV4 || ip[9] != 6 || (ip[6] & 0x1f) || ip[7])
            return 0;
        // Options; more fragments follow.
        is_common = header == IPV4 && !(ip[6] & 0x20);
        ecn = ip[1] & 3;
        frame->tcp = ETHERNET + header;
    } else if (type == 0x86dd) {
        if (load(skb, ETHERNET + IPV4, head + ETHERNET + IPV4, IPV6 - IPV4) || ip[0] >> 4 != 6)
            return 0;
        length = IPV6 + be16(ip + 4);
        u32 next = ip[6], header = IPV6;
#pragma unroll
        for (int i = 0; i < 3; i++) {
            u8 extension[8];
            // Hop-by-hop options, routing, fragment, destination options.
            if (next != 0 && next != 43 && next != 44 && next != 60)
                break;
            if (load(skb, ETHERNET + header, extension, 8))
                return 0;
            if (next == 44 && (extension[2] || extension[3] & 0xf8))
                return 0;
            header += next == 44 ? 8 : 8 + extension[1] * 8;
            next = extension[0];
            is_common = 0;
        }
        if (next != 6)
            return 0;
        ecn = ip[1] >> 4 & 3;
        frame->tcp = ETHERNET + header;
    } else {
        return 0;
    }
    if (load(skb, frame->tcp, tcp, TCP))
        return 0;
    frame->hash = type == 0x0800 ? name_v4(control->key0, control->key1, side == WAN, ip + 12, tcp)
                                 : name_v6(control->key0, control->key1, side == WAN, ip + 8, tcp);

    segment->seq = be32(tcp + 4);
    segment->ack = be32(tcp + 8);
    segment->window = be16(tcp + 14);
    segment->has_timestamps = segment->ts_value = segment->ts_echo = 0;
    // CWR is a mark too.
    segment->is_marked = ecn || tcp[13] & 0x80;
    // ACK, and neither SYN, FIN nor RST.
    is_common &= (tcp[13] & 0x17) == 0x10;
    u32 header = (tcp[12] >> 4) * 4;
    if (header == TCP + OPTIONS && !load(skb, frame->tcp + TCP, options, OPTIONS) && be32(options) == 0x0101080a) {
        segment->has_timestamps = 1;
        segment->ts_value = be32(options + 4);
        segment->ts_echo = be32(options + 8);
    } else {
        is_common &= header == TCP;
    }
    u32 headers = frame->tcp - ETHERNET + header;
    // A length of zero stands for one that the field cannot hold; and the frame may have been cut off.
    is_common &= length >= headers && skb->len >= link_header + length;
    segment->payload = length - headers;
    segment->is_common = is_common;
    return 1;
}

// The entry of the flow with this hash.
INLINE struct entry *find(u64 hash)
{
    u32 at = hash & (buckets - 1);
    struct bucket *bucket = map_lookup_elem(&handed_down, &at);
    u32 slot = SLOTS;

    if (!bucket)
        return 0;
#pragma unroll
    for (int i = 0; i < SLOTS; i++)
        if (*(volatile u64 *)&bucket->tags[i] == hash)
            slot = i;
    if (slot == SLOTS)
        return 0;
    // The verifier does not follow it through the comparison above.
    asm volatile("%0 &= 7" : "+r"(slot));
    return &bucket->entries[slot];
}

// Decides about a frame from `side`: to the socket, or a note and nothing to the socket.
INLINE int sort(struct __sk_buff *skb, u32 side)
{
    struct frame frame;
    struct change change;
    u32 zero = 0;

    // Nothing that came with the frame is a note of this port.
    skb->cb[NOTE_MARK] = 0;
    struct control *control = map_lookup_elem(&shared, &zero);
    if (!control || !read_frame(skb, side, control, &frame))
        return UP;
    struct entry *entry = find(frame.hash);
    if (!entry || *(volatile u32 *)&entry->phase != GOING_DOWN)
        return UP;
    struct end *own = &entry->ends[side & 1], *other = &entry->ends[!side];
    struct segment *segment = &frame.segment;
    u32 usual = is_usual(entry, side, segment) && frame.mac == entry->macs[side & 1];
    if (!own->is_down) {
        u64 went_up = own->went_up;
        int has_left = went_up ? *(volatile u64 *)&own->has_left == went_up : follows_what_has_left(entry, side, segment);
        if (usual && has_left) {
            own->is_down = 1;
        } else {
            own->went_up = name_of(segment);
            // The flow is the engine's again; of what it has forwarded so far the engine finds the numbers here.
            if (!usual && *(volatile u16 *)&other->is_down)
                *(volatile u32 *)&entry->phase = RETURNED;
            return UP;
        }
    } else if (!usual) {
        *(volatile u32 *)&entry->phase = RETURNED;
        return UP;
    }

    project(entry, side, segment, &change);
    follow(entry, side, segment, ktime_get_boot_ns());
    u32 len = skb->len;
    own->bytes += len;
    __sync_fetch_and_add(&control->frames[side & 1], 1);
    __sync_fetch_and_add(&control->bytes[side & 1], len);
    skb->cb[NOTE_NUMBER] = change.number;
    skb->cb[NOTE_CLOCK] = change.clock;
    skb->cb[NOTE_WINDOW] = (u32)change.window << 16 | frame.tcp;
    skb->cb[NOTE_FLAGS] = (change.moves_clock ? MOVES_CLOCK : 0) | (entry->flags & TRANSLATED ? CHANGES : 0);
    skb->cb[NOTE_MARK] = mark + side;
    return DOWN;
}

// One's complement sum of what replaces a word by another (RFC 1624).
INLINE u64 replaced(u32 old, u32 new)
{
    return (u64)(u32)~old + new;
}

// Carries out what was decided about a frame from `side`.
INLINE int pass(struct __sk_buff *skb, u32 side)
{
    u8 header[TCP + OPTIONS];
    u32 other_port = side == LAN ? wan_port : lan_port;

    if (skb->cb[NOTE_MARK] != mark + side)
        return TC_ACT_UNSPEC;
    skb->cb[NOTE_MARK] = 0;
    // The transmit queue shall be that of what the engine sends, not that of the reception.
    skb->queue_mapping = 0;
    set_hash_invalid(skb);
    u32 flags = skb->cb[NOTE_FLAGS], tcp = skb->cb[NOTE_WINDOW] & 0xff;
    if (!(flags & CHANGES))
        return redirect_to(other_port, 0);
    if (flags & MOVES_CLOCK ? skb_load_bytes(skb, tcp, header, TCP + OPTIONS) : skb_load_bytes(skb, tcp, header, TCP))
        return TC_ACT_SHOT;

    // Words are in network order here and in the sum.
    u64 sum = 0;
    u32 old, new = __builtin_bswap32(skb->cb[NOTE_NUMBER]);
    u8 *number = header + (side == LAN ? 4 : 8);
    __builtin_memcpy(&old, number, 4);
    __builtin_memcpy(number, &new, 4);
    sum += replaced(old, new);
    u16 old_window, new_window = __builtin_bswap16(skb->cb[NOTE_WINDOW] >> 16);
    __builtin_memcpy(&old_window, header + 14, 2);
    __builtin_memcpy(header + 14, &new_window, 2);
    sum += (u16)~old_window + (u64)new_window;
    if (flags & MOVES_CLOCK) {
        u8 *clock = header + TCP + (side == LAN ? 4 : 8);
        new = __builtin_bswap32(skb->cb[NOTE_CLOCK]);
        __builtin_memcpy(&old, clock, 4);
        __builtin_memcpy(clock, &new, 4);
        sum += replaced(old, new);
    }
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffffffff) + (sum >> 32);
    // The sum of a segment that its sender left to a device covers the pseudo header alone; the kernel knows, and leaves that alone.
    if (flags & MOVES_CLOCK ? skb_store_bytes(skb, tcp, header, TCP + OPTIONS, 0) : skb_store_bytes(skb, tcp, header, TCP, 0))
        return TC_ACT_SHOT;
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
