// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//
// Established flows that the engine has handed down: where they lie, which of their segments the kernel forwards, and what it writes into
// them. `tcpstate/src/proxy/handed_down.rs` defines the words and the protocol; `Projection` in `tcpstate/src/flow/translate.rs` defines what
// becomes of a segment. Tests run this beside them.

enum { LAN = 0, WAN = 1 };

// How far beyond a window, and how far behind what was acknowledged, a segment is believed: `SLACK` and `FAR_BEHIND` in
// `tcpstate/src/proxy/established.rs`. How far a timestamp clock may advance beyond the microseconds that have passed: `SMALL_STEP` there.
enum { SLACK = 65535, FAR_BEHIND = 1 << 26, SMALL_STEP = 16 };

enum { SLOTS = 8 };

// The phases of an entry. In GOING_DOWN each direction is forwarded once what went up before has left; in the others everything goes up.
enum { GOING_DOWN = 1, RETURNED = 2 };

// What `is_down` says: in the XDP program also that the last segment looked as if its sender had left the checksum to a device.
enum { DOWN = 1, LOOKED_PARTIAL = 2 };

// Flags of an entry: the connection is translated; both ends use timestamps; both negotiated classic ECN; the server gets SACK blocks; the server has a key of
// its own, and so there is a splice; both keys are the same. Flags of a splice: it is one; an address of the box stands for the client.
enum { TRANSLATED = 1, TIMESTAMPS = 2, CLASSIC_ECN = 4, SACK = 8, SPLICED = 16, SAME_KEY = 32, SECOND = 64, FULL = 128 };

// The most that the box says to a client in its own name before the server does: `LONGEST` in `tcpstate/src/service/negotiation.rs`. The most that it
// acknowledges by itself: `MOST_KEPT` in `tcpstate/src/proxy/service.rs`.
enum { LONGEST = 160, MOST_KEPT = 1 << 17 };

// What is known of the end on one side, and of what it sends. A cache line that the program writes for the segments of this end alone.
struct end {
    // The number after the highest sent, the highest acknowledged, the last TSval: as the WAN counts.
    u32 next;
    u32 acked;
    u32 ts_value;
    // The last window field; and whether the kernel forwards what this end sends, from DOWN on.
    u16 window;
    u16 is_down;
    // The last segment that went up, and the last of these that has left the box, as the engine writes it.
    u64 went_up;
    u64 has_left;
    u64 frames;
    u64 bytes;
    // CLOCK_BOOTTIME, in nanoseconds.
    u64 last_seen;
    // The lowest bit is set, by the engine, once everything has left that went up before the entry was there.
    u64 clear;
};

struct entry {
    u32 phase;
    u32 flags;
    u32 seq_delta;
    u32 ts_delta;
    u32 ts_base;
    u32 ts_elapsed;
    // The scales of LAN and WAN: the low four bits of each are its own, the high four those the other end reads by; 15 is none.
    u8 scales[2];
    u8 unused[2];
    // Where the splice is, if there is one: eight times the number of its bucket, and its slot.
    u32 other;
    // The lower four bytes of the Ethernet addresses of LAN and WAN.
    u32 macs[2];
    u64 engine[3];
    struct end ends[2];
};

// What frames from one side have on the other.
struct way {
    // Source and destination, as they lie in the IP header; those of IPv4 in the first eight bytes.
    u32 addresses[8];
    u32 ports;
    // Destination and source.
    u8 macs[12];
    // By how much the sum grows of what the addresses, and the ports, replace.
    u32 address_sum;
    u32 port_sum;
    u64 unused;
};

// In the place of an entry, under the key by which the server knows a connection that its client knows by another: what is different on the other side, besides
// what the entry says.
struct splice {
    u32 phase;
    u32 flags;
    // Added to the client's numbers and timestamps.
    u32 seq_delta;
    u32 ts_delta;
    // The first number of the server itself, as the client counts.
    u32 first;
    // The client's number behind what the box itself has acknowledged.
    u32 kept_to;
    u8 unused[4];
    // Where the entry is.
    u32 other;
    u64 engine[4];
    struct way ways[2];
};

struct down_bucket {
    // The hash of the flow in each slot, or 0.
    u64 tags[SLOTS];
    struct entry entries[SLOTS];
};

// What a segment says, in its sender's numbers.
struct segment {
    u32 seq;
    u32 ack;
    // The same, in the numbers of the WAN.
    u32 outer_ack;
    u32 payload;
    u16 window;
    // Timestamps in the layout that every stack uses, in front of all other options.
    u8 has_timestamps;
    // SACK blocks, likewise, behind the timestamps if there are any; and no other option.
    u8 blocks;
    u32 ts_value;
    u32 ts_echo;
    // The TCP header is one that the kernel translates, behind an IP header that it takes.
    u32 is_common;
    u32 is_marked;
    // Names the options, if they are others than timestamps alone.
    u64 options;
};

// What is written into a segment.
struct change {
    // At offset 4 (from the LAN: the sequence number) or 8 (from the WAN: the acknowledgement number) of the TCP header.
    u32 number;
    u16 window;
    // At offset 24 (from the LAN: TSval) or 28 (from the WAN: TSecr), if there are timestamps to be changed.
    u16 moves_clock;
    u32 clock;
    // Of a connection that is spliced, the other number and the other clock.
    u32 other_number;
    u32 other_clock;
    u32 moves_other_clock;
};

INLINE int is_after(u32 number, u32 other)
{
    return (int)(number - other) > 0;
}

// Whether a number lies on the way from `first` to `last`, or not far behind.
INLINE int is_near(u32 number, u32 first, u32 last)
{
    u32 from = first - FAR_BEHIND;
    return number - from <= last - from;
}

INLINE u32 shift_of(u32 code)
{
    return code == 15 ? 0 : code > 14 ? 14 : code;
}

// A window field converted from the scale of its sender to that by which its receiver reads it.
INLINE u16 rescale(u8 scales, u16 field)
{
    u32 own = scales & 15, told = scales >> 4;
    if (own == told)
        return field;
    u32 window = (u32)field << shift_of(own);
    u32 rescaled = window >> shift_of(told);
    if (rescaled > 65535)
        return 65535;
    return rescaled || !window ? rescaled : 1;
}

// Adds a word to a name.
INLINE u64 mixed(u64 name, u64 word)
{
    return (name ^ name >> 32) * 0x9e3779b97f4a7c15 + word;
}

// Names a segment among those of its sender. Two that are named alike are the same to their receiver, and so is their order. Never 0.
INLINE u64 name_of(const struct segment *segment)
{
    u64 name = (u64)(segment->seq + segment->payload) << 32 | segment->ack;
    name = name * 0x9e3779b97f4a7c15 + ((u64)segment->ts_value << 32 | segment->ts_echo);
    name = mixed(mixed(name, (u64)segment->window << 1 | (segment->payload != 0)), segment->options);
    return name ? name : 1;
}

// Whether the kernel may forward a segment of the end on `side`: as `Proxy::forward_fast` decides it, and for SACK blocks `Projection`.
INLINE int is_usual(const struct entry *entry, u32 side, const struct segment *segment)
{
    const struct end *own = &entry->ends[side & 1], *other = &entry->ends[!side];
    u32 end = segment->seq + (side == LAN ? entry->seq_delta : 0) + segment->payload;
    u32 granted = (u32)other->window << shift_of(entry->scales[!side] & 15);
    return segment->is_common && (entry->flags & CLASSIC_ECN || !segment->is_marked) &&
           (side == LAN || !segment->blocks || entry->flags & SACK) &&
           is_near(end, other->acked, other->acked + granted + SLACK) && is_near(segment->outer_ack, own->acked, other->next);
}

// Whether the engine takes an acknowledgement of a connection that is spliced for what it is: one that comes late it raises (`Proxy::raise` and
// `Proxy::raise_client`).
INLINE int is_raised(const struct splice *splice, u32 side, const struct segment *segment)
{
    u32 behind = side == LAN ? splice->kept_to - segment->outer_ack : splice->first - segment->ack;
    return behind && behind <= (side == LAN ? MOST_KEPT : LONGEST);
}

// What becomes of a segment on its way to the other side: `Projection::apply_common`.
INLINE void project(const struct entry *entry, u32 side, const struct segment *segment, struct change *change)
{
    u32 flags = entry->flags;
    u32 translated = flags & TRANSLATED;
    u32 has_clock = translated && flags & TIMESTAMPS && segment->has_timestamps;

    if (side == LAN) {
        change->number = segment->seq + (translated ? entry->seq_delta : 0);
        change->clock = segment->ts_value + entry->ts_delta;
        change->moves_clock = has_clock;
    } else {
        change->number = segment->ack - (translated ? entry->seq_delta : 0);
        u32 echo = segment->ts_echo;
        // Until the client has a segment of the server it echoes our SYN-ACK, which the server never sent.
        if (entry->ts_elapsed < 1 << 30 && is_after(entry->ts_base, echo))
            echo = entry->ts_base;
        change->clock = echo - entry->ts_delta;
        // A TSecr of zero means "no echo", so there is nothing to translate.
        change->moves_clock = has_clock && segment->ts_echo;
    }
    change->window = translated ? rescale(entry->scales[side & 1], segment->window) : segment->window;
}

// The rest of it for a connection that is spliced: what is added to the client's numbers.
INLINE void project_other(const struct entry *entry, const struct splice *splice, u32 side, const struct segment *segment, struct change *change)
{
    u32 has_clock = entry->flags & TIMESTAMPS && segment->has_timestamps;

    if (side == LAN) {
        change->other_number = segment->outer_ack;
        change->other_clock = segment->ts_echo - splice->ts_delta;
        change->moves_other_clock = has_clock && segment->ts_echo;
    } else {
        change->other_number = segment->seq + splice->seq_delta;
        change->other_clock = segment->ts_value + splice->ts_delta;
        change->moves_other_clock = has_clock;
    }
}

// Writes what a segment says into its flow's entry, as `Proxy::forward_fast` does into its record.
INLINE void follow(struct entry *entry, u32 side, const struct segment *segment, u64 now)
{
    struct end *own = &entry->ends[side & 1];
    u32 end = segment->seq + (side == LAN ? entry->seq_delta : 0) + segment->payload;

    if (segment->payload && is_after(end, own->next))
        own->next = end;
    if (!is_after(own->acked, segment->outer_ack)) {
        own->acked = segment->outer_ack;
        own->window = segment->window;
    }
    if (entry->flags & TIMESTAMPS && segment->has_timestamps) {
        u32 value = segment->ts_value + (side == LAN ? entry->ts_delta : 0);
        u32 step = value - own->ts_value;
        // No sum over the payload shows that the segment is sound, but no clock in use is faster than one tick a microsecond.
        u64 passed = (now - own->last_seen) >> 10;
        if (step && step < 1u << 31 && step <= SMALL_STEP + passed)
            own->ts_value = value;
    }
    own->last_seen = now;
    own->frames++;
}
