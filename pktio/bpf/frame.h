// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//
// How programs find the segment of a frame, the name of its flow, and the flow's entry (projection.h). Who includes it defines FRAME, the
// type of the program's context; `load`, which copies bytes of a frame, counted from the Ethernet header, and is 0 if they are there; `load_some`, the
// same for a number that only the frame tells; and `tag_beside`, a VLAN tag that lies beside the frame, its protocol in the upper half, or 0.

enum { ETHERNET = 14, IPV4 = 20, IPV6 = 40, TCP = 20, OPTIONS = 12, MOST_OPTIONS = 40 };

// Set by the loader: the number of buckets, a power of two.
volatile const u32 down_buckets = 1;

struct {
    ATTRIBUTE(type, MAP_TYPE_ARRAY);
    ATTRIBUTE(map_flags, MAP_MMAPABLE);
    ATTRIBUTE(max_entries, 1);
    u32 *key;
    struct down_bucket *value;
} handed_down SEC(".maps");

// A frame's segment and where it lies.
struct frame {
    u64 hash;
    u32 mac;
    // Offsets of the headers of IP and TCP.
    u32 ip;
    u32 tcp;
    u32 is_v6;
    // Bytes of the TCP header.
    u32 header;
    // The sum of the pseudo header, folded: what stands in the place of the checksum if the sender has left that to a device.
    u16 pseudo;
    u16 check;
    struct segment segment;
};

INLINE u16 folded(u64 sum)
{
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return (sum & 0xffff) + (sum >> 16);
}

// The same value, of which the verifier knows only that it lies in the mask: it follows what comes behind once, not for each value. `any` is a number that
// it does not know.
INLINE u32 hidden(u32 value, u32 mask, u32 any)
{
    asm volatile("%0 ^= %1" : "+r"(value) : "r"(any));
    asm volatile("%0 ^= %1" : "+r"(value) : "r"(any));
    asm volatile("%0 &= %1" : "+r"(value) : "r"(mask));
    return value;
}

INLINE int is_tag(u16 type)
{
    return type == 0x8100 || type == 0x88a8 || type == 0x9100;
}

// The network that a frame belongs to by one more tag: `Vlan::push`.
INLINE u32 add_tag(u32 vlan, u32 tag)
{
    u32 n = vlan >> 24 & 1, identifier = tag & 0xfff, protocol = tag >> 16;
    u32 code = protocol == 0x88a8 ? 1 : protocol == 0x9100 ? 2 : 0;
    return identifier ? vlan + (1 << 24 | identifier << (n ? 12 : 0) | code << (n ? 28 : 26)) : vlan;
}

// Reads options that are not timestamps alone. Returns whether the kernel translates them: SACK blocks in the layout that every stack uses, behind
// timestamps or not.
INLINE int read_other_options(FRAME *ctx, u32 tcp, u32 header, u8 options[64], struct segment *segment)
{
    u32 len = header - TCP, word;

    if (header < TCP)
        return 0;
    // So the verifier sees that it is 1 to 64.
    asm volatile("" : "+r"(len));
    len = ((len - 1) & 63) + 1;
    __builtin_memset(options, 0, 64);
    if (load_some(ctx, tcp + TCP, options, len))
        return 0;
#pragma unroll
    for (int i = 0; i < MOST_OPTIONS; i += 8) {
        u64 bytes;
        __builtin_memcpy(&bytes, options + i, 8);
        segment->options = mixed(segment->options, bytes);
    }
    if (len >= OPTIONS && be32(options) == 0x0101080a) {
        segment->has_timestamps = 1;
        segment->ts_value = be32(options + 4);
        segment->ts_echo = be32(options + 8);
        word = be32(options + OPTIONS);
        len -= OPTIONS;
    } else {
        word = be32(options);
    }
    // Two no-operations, kind and length.
    segment->blocks = (len - 4) / 8;
    return len >= 12 && word == 0x01010502 + 8 * segment->blocks && len == 4 + 8 * segment->blocks;
}

// Reads the segment of a frame that came from `side`, and the hash of its flow; 0 if the frame holds none whose flow can be told.
// `bytes` are those of the frame behind the Ethernet header.
APART int read_frame(FRAME *ctx, u32 bytes, u32 side, const u64 *keys, struct frame *frame)
{
    // The Ethernet header and the IP header; behind them, when these are read, the options.
    u8 head[64] __attribute__((aligned(8)));
    u8 tcp[TCP];
    u8 options[OPTIONS];
    struct segment *segment = &frame->segment;
    u32 length, ecn, is_common = 1;
    // Where the IP header is, and the network.
    u32 at = ETHERNET, vlan = 0;
    u64 pseudo = 0;

    if (load(ctx, 0, head, ETHERNET + IPV4))
        return 0;
    __builtin_memcpy(&frame->mac, head + 8, 4);
    u16 type = be16(head + 12);
    u8 *ip = head + ETHERNET;
    u32 beside = tag_beside(ctx);
    if (beside || is_tag(type)) {
        u32 tags = 0;
        if (beside) {
            // A priority tag is not the kernel's to judge.
            is_common = (beside & 0xfff) != 0;
            vlan = add_tag(0, beside);
            tags = 1;
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            u8 tag[4];
            if (tags == 2 || !is_tag(type))
                break;
            if (load(ctx, at, tag, 4))
                return 0;
            u32 inner = be32(tag), word = (u32)type << 16 | inner >> 16;
            is_common &= (word & 0xfff) != 0;
            vlan = add_tag(vlan, word);
            type = inner;
            at += 4;
            tags++;
        }
        u32 any = be32(head);
        at = hidden(at, 31, any);
        vlan = hidden(vlan, ~0, any);
        is_common = hidden(is_common, 1, any);
        if (load(ctx, at, ip, IPV4))
            return 0;
    }
    if (type == 0x0800) {
        length = be16(ip + 2);
        u32 header = (ip[0] & 15) * 4;
        // No TCP, or a later fragment.
        if (ip[0] >> 4 != 4 || header < IPV4 || ip[9] != 6 || (ip[6] & 0x1f) || ip[7])
            return 0;
        // Options; more fragments follow.
        is_common &= header == IPV4 && !(ip[6] & 0x20);
        ecn = ip[1] & 3;
        frame->tcp = at + header;
        pseudo = (u64)be32(ip + 12) + be32(ip + 16);
    } else if (type == 0x86dd) {
        if (load(ctx, at + IPV4, ip + IPV4, IPV6 - IPV4) || ip[0] >> 4 != 6)
            return 0;
        length = IPV6 + be16(ip + 4);
        u32 next = ip[6], header = IPV6;
#pragma unroll
        for (int i = 0; i < 3; i++) {
            u8 extension[8];
            // Hop-by-hop options, routing, fragment, destination options.
            if (next != 0 && next != 43 && next != 44 && next != 60)
                break;
            if (load(ctx, at + header, extension, 8))
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
        frame->tcp = at + header;
#pragma unroll
        for (int i = 8; i < 40; i += 4)
            pseudo += be32(ip + i);
    } else {
        return 0;
    }
    if (load(ctx, frame->tcp, tcp, TCP))
        return 0;
    frame->hash = type == 0x0800 ? name_v4(keys[0], keys[1], side == WAN, vlan, ip + 12, tcp)
                                 : name_v6(keys[0], keys[1], side == WAN, vlan, ip + 8, tcp);

    frame->tcp = hidden(frame->tcp, 0x3fff, be32(tcp));
    frame->ip = at;
    frame->is_v6 = hidden(type == 0x86dd, 1, be32(tcp));
    segment->seq = be32(tcp + 4);
    segment->ack = segment->outer_ack = be32(tcp + 8);
    segment->window = be16(tcp + 14);
    segment->has_timestamps = segment->blocks = segment->ts_value = segment->ts_echo = segment->options = 0;
    // CWR is a mark too.
    segment->is_marked = ecn || tcp[13] & 0x80;
    // ACK, and neither SYN, FIN nor RST.
    is_common &= (tcp[13] & 0x17) == 0x10;
    u32 header = (tcp[12] >> 4) * 4;
    if (header == TCP + OPTIONS && !load(ctx, frame->tcp + TCP, options, OPTIONS) && be32(options) == 0x0101080a) {
        segment->has_timestamps = 1;
        segment->ts_value = be32(options + 4);
        segment->ts_echo = be32(options + 8);
    } else if (header != TCP) {
        is_common &= read_other_options(ctx, frame->tcp, header, head, segment);
    }
    frame->header = header;
    u32 headers = frame->tcp - at + header;
    // A length of zero stands for one that the field cannot hold; and the frame may have been cut off.
    is_common &= length >= headers && bytes - (at - ETHERNET) >= length;
    segment->payload = length - headers;
    segment->has_timestamps = hidden(segment->has_timestamps, 1, segment->seq);
    segment->blocks = hidden(segment->blocks, 7, segment->seq);
    segment->is_common = hidden(is_common, 1, segment->seq);
    frame->pseudo = folded(pseudo + 6 + (u16)(length - (frame->tcp - at)));
    frame->check = be16(tcp + 16);
    return 1;
}

// The entry at a place: eight times the number of its bucket, and its slot.
INLINE struct entry *entry_at(u32 place)
{
    u32 at = place / SLOTS;
    struct down_bucket *bucket = map_lookup_elem(&handed_down, &at);
    return bucket ? &bucket->entries[place & (SLOTS - 1)] : 0;
}

// The entry of the flow that knows a frame from `side` by this hash; and its splice, if it has one.
INLINE struct entry *find_entry(u64 hash, u32 side, struct splice **splice)
{
    u32 at = hash & (down_buckets - 1);
    struct down_bucket *bucket = map_lookup_elem(&handed_down, &at);
    u32 slot = SLOTS;

    *splice = 0;
    if (!bucket)
        return 0;
#pragma unroll
    for (int i = 0; i < SLOTS; i++)
        if (*(volatile u64 *)&bucket->tags[i] == hash)
            slot = i;
    if (slot == SLOTS)
        return 0;
    slot = hidden(slot, SLOTS - 1, hash);
    struct entry *own = &bucket->entries[slot];
    u32 flags = *(volatile u32 *)&own->flags;
    if (!(flags & (SPLICED | SECOND)))
        return own;
    // The client's frames are known by the entry, the server's by the splice, or by the entry if there is one key.
    if (side == WAN ? flags & SECOND : !(flags & (SECOND | SAME_KEY)))
        return 0;
    struct entry *other = entry_at(own->other);
    // Each has been given up, or used anew, if it says anything else.
    if (!other || other->other != at * SLOTS + slot)
        return 0;
    struct entry *entry = flags & SECOND ? other : own;
    *splice = (struct splice *)(flags & SECOND ? own : other);
    return (*splice)->flags & SECOND && entry->flags & SPLICED && *(volatile u32 *)&(*splice)->phase == GOING_DOWN ? entry : 0;
}

// What the engine makes of a segment before anything else: whether it is usual, in a flow that may be spliced.
INLINE int judge(const struct entry *entry, const struct splice *splice, u32 side, struct segment *segment)
{
    if (!splice)
        return is_usual(entry, side, segment);
    if (side == LAN)
        segment->outer_ack -= splice->seq_delta;
    return !is_raised(splice, side, segment) && is_usual(entry, side, segment);
}

// Whether the kernel forwards a segment of the end on `side`, which `may_go` says it may. Otherwise it goes up, and the entry says what that means: the
// connection is the engine's again, or what has left is not known yet.
INLINE int goes_down(struct entry *entry, u32 side, const struct segment *segment, u32 may_go, u32 is_usual)
{
    struct end *own = &entry->ends[side & 1], *other = &entry->ends[!side];

    if (*(volatile u32 *)&entry->phase != GOING_DOWN)
        return 0;
    if (own->is_down) {
        if (may_go)
            return 1;
        *(volatile u32 *)&entry->phase = RETURNED;
        return 0;
    }
    u64 went_up = own->went_up;
    if (may_go && (went_up ? *(volatile u64 *)&own->has_left == went_up : *(volatile u64 *)&own->clear & 1)) {
        own->is_down = DOWN;
        return 1;
    }
    own->went_up = name_of(segment);
    // Of what the kernel has forwarded so far the engine finds the numbers here.
    if (!is_usual && *(volatile u16 *)&other->is_down)
        *(volatile u32 *)&entry->phase = RETURNED;
    return 0;
}

// One's complement sum of what replaces a word by another (RFC 1624).
INLINE u64 replaced(u32 old, u32 new)
{
    return (u64)(u32)~old + new;
}

// Writes a change into a TCP header, with its timestamps if these are changed, and returns by how much the sum grows. Words are in network order
// here and in the sum.
INLINE u64 write_change(u8 *header, u32 side, u32 number, u16 window, int moves_clock, u32 clock)
{
    u64 sum = 0;
    u32 old, new = __builtin_bswap32(number);
    u8 *at = header + (side == LAN ? 4 : 8);
    __builtin_memcpy(&old, at, 4);
    __builtin_memcpy(at, &new, 4);
    sum += replaced(old, new);
    u16 old_window, new_window = __builtin_bswap16(window);
    __builtin_memcpy(&old_window, header + 14, 2);
    __builtin_memcpy(header + 14, &new_window, 2);
    sum += (u16)~old_window + (u64)new_window;
    if (moves_clock) {
        at = header + TCP + (side == LAN ? 4 : 8);
        new = __builtin_bswap32(clock);
        __builtin_memcpy(&old, at, 4);
        __builtin_memcpy(at, &new, 4);
        sum += replaced(old, new);
    }
    sum = (sum & 0xffffffff) + (sum >> 32);
    return (sum & 0xffffffff) + (sum >> 32);
}

// Writes the rest of a change into a TCP header, likewise.
INLINE u64 write_other(u8 *header, u32 side, u32 number, int moves_clock, u32 clock)
{
    u64 sum = 0;
    u32 old, new = __builtin_bswap32(number);
    u8 *at = header + (side == LAN ? 8 : 4);
    __builtin_memcpy(&old, at, 4);
    __builtin_memcpy(at, &new, 4);
    sum += replaced(old, new);
    if (moves_clock) {
        at = header + TCP + (side == LAN ? 8 : 4);
        new = __builtin_bswap32(clock);
        __builtin_memcpy(&old, at, 4);
        __builtin_memcpy(at, &new, 4);
        sum += replaced(old, new);
    }
    sum = (sum & 0xffffffff) + (sum >> 32);
    return (sum & 0xffffffff) + (sum >> 32);
}

// Translates a SACK block: its edges are numbers of the other end's, which shrink as the acknowledgement number does. Returns by how much the sum
// grows.
INLINE u64 write_block(u8 *block, u32 delta)
{
    u32 old[2], new[2];
    __builtin_memcpy(old, block, 8);
    new[0] = __builtin_bswap32(__builtin_bswap32(old[0]) - delta);
    new[1] = __builtin_bswap32(__builtin_bswap32(old[1]) - delta);
    __builtin_memcpy(block, new, 8);
    return replaced(old[0], new[0]) + replaced(old[1], new[1]);
}
