// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//
// Load shedding: which frames are dropped while a worker cannot keep up. SYNs (SYN without ACK) of sources that have never proved
// themselves: at level 1 those seen for the first time, at level 2 repeated ones as well. Everything else passes, and so does every
// frame that cannot be parsed here. `src/shed.rs` is the same rule in Rust, `src/xdp/shed.rs` the other side of the maps.

enum { RECENT_LINES = 1 << 19, RECENT_SLICES = 7, PROVED_LINES = 1 << 18 };
// A slice lasts 2^29 ns, half a second; a SYN is repeated if it was seen in one of the four before the present one. A client retransmits
// its SYN after one second, and after two more.
enum { SLICE_BITS = 29, SLICES_BACK = 4 };
// A generation lasts 2^39 ns, nine minutes; a source counts as proved in its own and in the next.
enum { GENERATION_BITS = 39, GENERATION_SHIFT = 56 };

// Set by the loader: whether this port sheds at all, and the key of the hashes.
volatile const u32 sheds = 0;
volatile const u64 key0 = 0;
volatile const u64 key1 = 0;

// Per receive queue: the level its worker has set, with the share of fresh SYNs that pass nevertheless (256ths) eight bits
// further up, the fresh and repeated SYNs dropped, and one in how many of them is sampled, 0 for none. A cache line each.
struct control {
    u64 level;
    u64 fresh;
    u64 repeated;
    u64 every;
    // SYNs that were answered (syns.h), which are sampled too.
    u64 answered;
    u64 padding[3];
};

struct {
    ATTRIBUTE(type, MAP_TYPE_ARRAY);
    ATTRIBUTE(map_flags, MAP_MMAPABLE);
    ATTRIBUTE(max_entries, 64);
    u32 *key;
    struct control *value;
} control SEC(".maps");

// Sources that have proved themselves: a Bloom filter of two generations. A word carries the generation it was written in, so
// that stale words need not be cleared.
struct proved {
    u64 words[2];
};

struct {
    ATTRIBUTE(type, MAP_TYPE_ARRAY);
    ATTRIBUTE(map_flags, MAP_MMAPABLE);
    ATTRIBUTE(max_entries, PROVED_LINES);
    u32 *key;
    struct proved *value;
} proved SEC(".maps");

// SYNs of the last seconds: a Bloom filter in time slices; each line holds the slice that was written last.
struct recent {
    u64 slices[RECENT_SLICES];
    u64 last;
};

struct {
    ATTRIBUTE(type, MAP_TYPE_ARRAY);
    ATTRIBUTE(max_entries, RECENT_LINES);
    u32 *key;
    struct recent *value;
} recent SEC(".maps");

// A SYN that was dropped: its addresses (an IPv4 address mapped into IPv6) and its ports, in network order, and how many SYNs it stands for.
struct sample {
    u64 source[2];
    u64 destination[2];
    u32 ports;
    u32 every;
};

// Samples on their way to src/xdp/samples.rs. A full ring takes no more.
struct {
    ATTRIBUTE(type, MAP_TYPE_RINGBUF);
    ATTRIBUTE(max_entries, 1 << 18);
} samples SEC(".maps");

// A SYN: its source, and the fields that distinguish it from others.
struct syn {
    u64 source[2];
    // Hash of the source, destination, ports and sequence number.
    u64 whole[4];
};

// Reads the SYN of a frame; 0 if the frame holds none, or cannot be parsed.
INLINE int read_syn(struct xdp_md *ctx, struct syn *syn)
{
    u8 *data = (u8 *)(long)ctx->data;
    u8 *end = (u8 *)(long)ctx->data_end;
    u8 *at = data + 12;
    u8 *tcp;

    if (at + 2 > end)
        return 0;
    u16 type = at[0] << 8 | at[1];
#pragma unroll
    for (int tag = 0; tag < 2; tag++) {
        if (type != 0x8100 && type != 0x88a8)
            break;
        at += 4;
        if (at + 2 > end)
            return 0;
        type = at[0] << 8 | at[1];
    }
    u8 *ip = at + 2;
    if (type == 0x0800) {
        if (ip + 20 > end)
            return 0;
        u32 length = (ip[0] & 0xf) * 4;
        // No TCP, or a later fragment.
        if (ip[0] >> 4 != 4 || length < 20 || ip[9] != 6 || (ip[6] & 0x1f) || ip[7])
            return 0;
        u32 source, destination;
        __builtin_memcpy(&source, ip + 12, 4);
        __builtin_memcpy(&destination, ip + 16, 4);
        syn->source[0] = 0;
        syn->source[1] = (u64)source << 32 | 0xffff0000;
        syn->whole[1] = 0;
        syn->whole[2] = (u64)destination << 32 | 0xffff0000;
        tcp = ip + length;
    } else if (type == 0x86dd) {
        if (ip + 40 > end || ip[0] >> 4 != 6)
            return 0;
        __builtin_memcpy(syn->source, ip + 8, 16);
        __builtin_memcpy(&syn->whole[1], ip + 24, 16);
        u8 next = ip[6];
        u32 length = 40;
#pragma unroll
        for (int header = 0; header < 3; header++) {
            // Hop-by-hop options, routing, destination options.
            if (next != 0 && next != 43 && next != 60)
                break;
            u8 *extension = ip + (length & 0xfff);
            if (extension + 8 > end)
                return 0;
            next = extension[0];
            length += 8 + extension[1] * 8;
        }
        if (next != 6)
            return 0;
        tcp = ip + (length & 0x1fff);
    } else {
        return 0;
    }
    if (tcp + 20 > end)
        return 0;
    // SYN, and neither FIN, RST nor ACK.
    if ((tcp[13] & 0x17) != 0x02)
        return 0;
    __builtin_memcpy(&syn->whole[3], tcp, 8);
    return 1;
}

// Three bits of a word of `width` bits.
INLINE u64 bits(u64 hash, u64 width)
{
    return 1ull << ((hash >> 32 & 0xff) * width >> 8) | 1ull << ((hash >> 40 & 0xff) * width >> 8) |
           1ull << ((hash >> 48 & 0xff) * width >> 8);
}

INLINE int is_proved(u64 hash, u64 now)
{
    u32 line = hash & (PROVED_LINES - 1);
    u64 present = now >> GENERATION_BITS;
    struct proved *entry = map_lookup_elem(&proved, &line);
    if (!entry)
        return 0;
    u64 wanted = bits(hash, GENERATION_SHIFT);
#pragma unroll
    for (int back = 0; back < 2; back++) {
        u64 generation = present - back;
        u64 word = entry->words[generation & 1];
        if (word >> GENERATION_SHIFT == (generation & 0xff) && (word & wanted) == wanted)
            return 1;
    }
    return 0;
}

// The word of a slice's place. The verifier does not know that the place is less than the number of slices, and there are eight words.
INLINE u64 *slice_at(struct recent *entry, u64 place)
{
    asm volatile("" : "+r"(place));
    return &entry->slices[place & 7];
}

// Whether the SYN was seen before, in an earlier slice. Remembers it.
//
// The verifier follows every branch by itself. With one or two for each slice there were hundreds of thousands of ways, which took it seconds
// at every start.
INLINE int is_repeated(u64 hash, u64 now)
{
    u32 line = hash & (RECENT_LINES - 1);
    u64 slice = now >> SLICE_BITS;
    struct recent *entry = map_lookup_elem(&recent, &line);
    if (!entry)
        return 0;
    u64 wanted = bits(hash, 64);
    // Another core's clock may be a little ahead.
    u64 last = entry->last;
    if (slice < last)
        slice = last;
    u64 passed = slice - last;
    u64 place = slice % RECENT_SLICES;
    if (passed) {
#pragma unroll
        for (u64 i = 0; i < RECENT_SLICES; i++) {
            // How many slices ago this word was the current one; the current one is 0.
            u64 age = (place + RECENT_SLICES - i) % RECENT_SLICES;
            entry->slices[i] &= ~if_less(age, passed);
        }
        entry->last = slice;
    }
    int found = 0;
#pragma unroll
    for (u64 back = 1; back <= SLICES_BACK; back++) {
        if ((*slice_at(entry, (place + RECENT_SLICES - back) % RECENT_SLICES) & wanted) == wanted) {
            found = 1;
            break;
        }
    }
    *slice_at(entry, place) |= wanted;
    return found;
}

// One SYN in so many is sampled, and this is one; or 0.
INLINE u32 is_sampled(struct control *own)
{
    u32 every = *(volatile u64 *)&own->every;
    return every && !((u64)get_prandom_u32() * every >> 32) ? every : 0;
}

// Hands out a sample of a SYN. The reader comes by itself: a sample wakes nobody.
INLINE void hand_out(u32 every, const struct syn *syn)
{
    struct sample sample = {
        .source = { syn->source[0], syn->source[1] },
        .destination = { syn->whole[1], syn->whole[2] },
        .ports = syn->whole[3],
        .every = every,
    };
    ringbuf_output(&samples, &sample, sizeof(sample), RINGBUF_NO_WAKEUP);
}

// Samples a SYN that is dropped.
INLINE void sample(struct control *own, const struct syn *syn)
{
    u32 every = is_sampled(own);
    if (every)
        hand_out(every, syn);
}

// Samples a SYN that is answered.
INLINE void sample_answered(struct xdp_md *ctx, struct control *own)
{
    struct syn syn;
    u32 every = is_sampled(own);
    __sync_fetch_and_add(&own->answered, 1);
    if (every && read_syn(ctx, &syn))
        hand_out(every, &syn);
}

// Whether the frame is to be dropped.
APART int is_shed(struct xdp_md *ctx)
{
    u32 queue = ctx->rx_queue_index;
    struct control *own = map_lookup_elem(&control, &queue);
    if (!own)
        return 0;
    u64 word = *(volatile u64 *)&own->level;
    u64 level = word & 0xff;
    if (!level)
        return 0;
    struct syn syn;
    if (!read_syn(ctx, &syn))
        return 0;
    u64 now = ktime_get_boot_ns();
    u64 source = siphash(key0, key1, syn.source, 2);
    if (is_proved(source, now))
        return 0;
    syn.whole[0] = source;
    u64 hash = siphash(key0, key1, syn.whole, 4);
    if (!is_repeated(hash, now)) {
        // The top bits of the hash, which are used for nothing else.
        if (hash >> 56 < word >> 8)
            return 0;
        __sync_fetch_and_add(&own->fresh, 1);
        sample(own, &syn);
        return 1;
    }
    if (level < 2)
        return 0;
    __sync_fetch_and_add(&own->repeated, 1);
    sample(own, &syn);
    return 1;
}
