// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//
// What workers say of themselves and of their flows, so that a program decides nothing about a flow that a worker has. `src/xdp/failure.rs` is the other
// side of the maps. Who includes it says how many workers there are (`owned_queues`).

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

// Where the map has what this port says of a worker.
INLINE u32 service_of(u32 worker)
{
    return 2 * worker + is_wan;
}

// What the map says of a flow, one bit each: it is passed through; it is translated; it may be either.
enum { IS_PASSED = 1, IS_TRANSLATED = 2, IS_UNKNOWN = 4 };

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
