// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//
// What becomes of frames that no worker takes: its process is dead, stopped or not ready, or the worker is stuck. `src/xdp/failure.rs` is the
// other side of the maps.
//
// A worker is stuck when frames were given to it, and for 50 ms it has not looked at its receive ring. One that finds its ring empty is
// idle, and one that takes frames and sends none works. The worker's word `served` changes with each look; a frame that finds it unchanged
// since the first frame that was given after the last change compares the clock. A worker that has failed at one port has failed at the other.

enum { CLOSED = 0, UNTRANSLATED = 1, OPEN = 2 };

// Set by the loader: what passes then, out of the other port.
volatile const u32 on_failure = CLOSED;
// Set by the loader: how long a worker may leave frames, in ticks of the kernel; 0 if no worker is watched.
volatile const u32 patience = 0;
// Set by the loader: whether this port is the WAN.
volatile const u32 is_wan = 0;
// Set by the loader: the key of the hash that names flows, and the lines of each worker's part of the map below.
volatile const u64 flow_key0 = 0;
volatile const u64 flow_key1 = 0;
volatile const u32 flow_lines = 0;

// Of each port of each worker, whose number is that of the receive queue: the LAN's first. Three cache lines: one that the program writes with every
// frame, one that the worker writes, and one that the program writes while it does the worker's part. The programs of both ports share the map.
struct service {
    // Frames that have gone up, and those that the program is at work on and that may go up yet. For the worker, which finds by it when nothing is on the
    // way up.
    u64 given;
    // When the first frame was given after the worker's last look, in ticks; 0 if none was.
    u64 since;
    // What the worker said last, as far as the program has noticed.
    u64 seen;
    u64 own_padding[5];
    // The worker has looked at its receive ring so often.
    u64 served;
    // 1 once every flow of the worker is in the map.
    u64 entered;
    u64 worker_padding[6];
    // How often the worker has failed, and one more than it had said when it did last.
    u64 failures;
    u64 episode;
    // Frames that passed out of the other port then, and frames that were dropped.
    u64 bridged;
    u64 dropped;
    u64 failure_padding[4];
};

struct {
    ATTRIBUTE(type, MAP_TYPE_ARRAY);
    ATTRIBUTE(map_flags, MAP_MMAPABLE);
    ATTRIBUTE(max_entries, 128);
    u32 *key;
    struct service *value;
} service SEC(".maps");

// The flows, as `tcpstate/src/flow/map.rs` lays them out: a part for each worker, in it buckets of a cache line. The first word of a bucket counts
// flows for which it had no room. Every other word is a flow, or zero: the upper 31 bits of its hash, one bit that says whether it is translated,
// and its place in the flow table plus one.
enum { FLOW_WORDS = 8 };

struct flow_line {
    u64 words[FLOW_WORDS];
};

struct {
    ATTRIBUTE(type, MAP_TYPE_ARRAY);
    ATTRIBUTE(map_flags, MAP_MMAPABLE);
    ATTRIBUTE(max_entries, 1);
    u32 *key;
    struct flow_line *value;
} flows SEC(".maps");

// The other port, at index 0.
struct {
    ATTRIBUTE(type, MAP_TYPE_DEVMAP);
    ATTRIBUTE(max_entries, 1);
    u32 *key;
    u32 *value;
} other_port SEC(".maps");

// Where the map has what this port says of a worker.
INLINE u32 service_of(u32 worker)
{
    return 2 * worker + is_wan;
}

// What a frame is.
enum {
    // No TCP segment, nor a part of one.
    NO_SEGMENT,
    // A TCP segment; the hash of its flow is known.
    SEGMENT,
    // A TCP segment, a part of one, or what may be one, whose flow cannot be told.
    OBSCURE,
};

// What the map says of a flow, one bit each: it is passed through; it is translated; it may be either.
enum { IS_PASSED = 1, IS_TRANSLATED = 2, IS_UNKNOWN = 4 };

// 1 if the word is not 0, without a branch: the verifier follows every branch by itself.
INLINE u64 is_set(u64 word)
{
    u64 either = word | -word;
    asm volatile("" : "+r"(either));
    return either >> 63;
}

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

// What the map says of the flow with this hash.
INLINE u64 find_flow(u64 hash)
{
    u64 found = 0;
    u32 line = (hash & 0xffffffff) * flow_lines >> 32;

    for (u32 worker = 0; worker < 64; worker++) {
        if (worker >= owned_queues)
            break;
        u32 at = service_of(worker);
        struct service *its = map_lookup_elem(&service, &at);
        if (!its || !*(volatile u64 *)&its->entered)
            return IS_UNKNOWN;
        at = worker * flow_lines + line;
        struct flow_line *bucket = map_lookup_elem(&flows, &at);
        if (!bucket)
            return IS_UNKNOWN;
        found |= is_set(*(volatile u64 *)&bucket->words[0]) * IS_UNKNOWN;
#pragma unroll
        for (int i = 1; i < FLOW_WORDS; i++) {
            u64 word = *(volatile u64 *)&bucket->words[i];
            u64 is_it = (1 - is_set(word >> 33 ^ hash >> 33)) & is_set(word & 0xffffffff);
            found |= is_it << (word >> 32 & 1);
        }
    }
    return found;
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
