// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//
// Answers SYNs of the WAN as the engine would, bit for bit, and drops acknowledgements of SYNs that nobody answered, where the engine's memory says
// that it may. `tcpstate/src/proxy/kernel_syns.rs` describes that memory and writes it; whatever the program is not sure of goes up. A property test
// runs it beside the engine.
//
// Who includes it defines FRAME, the type of the program's context; IMAGE, the bytes of a copy of the frame, 0 if the frame itself is read and written;
// LACKS(at, bytes), whether so many bytes there are beyond the frame, where the verifier has to see that asked; FIRST_OF and END_OF, where the bytes of
// the frame begin and end; and the functions `resize`, which adds bytes at its end or cuts them off, and is 0 if it has; and `note_answered`, which is
// told of each SYN that is answered.

enum { BLOCK = 32, ENTRY = 16, HEAD = 5, SETS = 512 };
// Words of block 0.
enum { GENERATION = 0, FULL_UNTIL = 1, ACKS_FROM = 2, PERIOD = 3, BURST = 4, MASKS = 5, MASK6 = 6, BUCKET_KEYS = 8, FAILURES = 10,
       BY_HASH = 11, ANSWERED_FULL = 16, UNASKED = 17 };
// The first block of counters by target, and of what cookies are made with.
enum { BY_TARGET = 1, MINTING = 3 };
// Flags of an entry.
enum { FOR_V6 = 1, NEEDS_FULL_CACHE = 2, ODD_EPOCH = 4, HAS_PLAIN = 8 };
// The recent-SYN filter (`tcpstate/src/cache/recent_syns.rs`): a slice lasts 2^24 us.
enum { NOTED_PAIRS = 1 << 16, NOTED_SLICE_BITS = 24, NOTED_SLICES = 7, NOTED_BITS = 56, TURN = 7, CHECK_BITS = 12 };
// Repeated SYNs have so many times the tokens of fresh ones (`tcpstate/src/policy/limit.rs`).
enum { REPEATED_SHARE = 32 };
// What becomes of a frame: somebody else decides; the answer that was written over it goes back; nothing.
enum { NOT_OURS = -1, ANSWERED = 0, UNASKED_FOR = 1 };
// More than there are: nothing is in its place.
enum { NO_WORKER = 0xffff };

// Set by the loader: whether this port answers SYNs; the blocks and the token buckets of each worker.
volatile const u32 answers_syns = 0;
volatile const u32 blocks_each = HEAD + SETS;
volatile const u32 buckets_each = 1;

struct block {
    u64 words[BLOCK];
};

struct {
    ATTRIBUTE(type, MAP_TYPE_ARRAY);
    ATTRIBUTE(map_flags, MAP_MMAPABLE);
    ATTRIBUTE(max_entries, 1);
    u32 *key;
    struct block *value;
} answers SEC(".maps");

struct pair {
    u64 words[16];
};

struct {
    ATTRIBUTE(type, MAP_TYPE_ARRAY);
    ATTRIBUTE(map_flags, MAP_MMAPABLE);
    ATTRIBUTE(max_entries, 1);
    u32 *key;
    struct pair *value;
} noted SEC(".maps");

struct bucket {
    u64 tokens;
    u64 rest;
};

struct {
    ATTRIBUTE(type, MAP_TYPE_ARRAY);
    ATTRIBUTE(map_flags, MAP_MMAPABLE);
    ATTRIBUTE(max_entries, 1);
    u32 *key;
    struct bucket *value;
} buckets SEC(".maps");

// What is found out about a frame, and what answers it. It lies in memory of the core, and not on the stack, which has no room for all; and what comes
// from there the verifier takes for any number, so that it follows fewer ways.
struct work {
    // Offsets of the IP and the TCP header, VLAN tags and how many, whether it is IPv6, and the flags.
    u64 ip;
    u64 tcp;
    u64 vlan;
    u64 tags;
    u64 is_v6;
    u64 flags;
    // The hash of its flow, and that without VLAN tags.
    u64 hash;
    u64 name;
    u64 worker;
    u64 now;
    // The server's address as the engine holds it, and the client's; both addresses' part of the sum.
    u64 high;
    u64 low;
    u64 source_high;
    u64 source_low;
    u64 addresses;
    u64 ttl;
    u64 class;
    u64 ecn;
    u64 length;
    // What a SYN says: ports, number, AE, CWR and ECE, and what it offers. A scale of 15 is none.
    u64 ports;
    u64 client_isn;
    u64 ace;
    u64 mss;
    u64 scale;
    u64 sack;
    u64 timestamps;
    u64 ts_echo;
    u64 sum;
    // What the engine said, and when.
    u64 generation;
    u64 stamp;
    u64 named;
    u64 station;
    u64 numbers;
    u64 bytes;
    // What the answer says.
    u64 isn;
    u64 ts_value;
    u64 ecn_flags;
    u64 answers_mss;
    u64 answers_sack;
    u64 answers_timestamps;
    u64 answers_scale;
    u64 options;
    // The bytes of the frame, of its answer then; and the answer's number where somebody else sends it.
    u64 frame_length;
    u64 ticket;
    u8 image[IMAGE];
};

struct {
    ATTRIBUTE(type, MAP_TYPE_PERCPU_ARRAY);
    ATTRIBUTE(max_entries, 1);
    u32 *key;
    struct work *value;
} work SEC(".maps");

INLINE u64 word_at(const u64 *at)
{
    return *(volatile u64 *)at;
}

// 1 if both are the same, without a branch.
INLINE u64 are_same(u64 a, u64 b)
{
    return 1 - is_set(a ^ b);
}

INLINE u32 net32(const u8 *at)
{
    u32 word;
    __builtin_memcpy(&word, at, 4);
    return word;
}

INLINE void put32(u8 *at, u32 word)
{
    word = __builtin_bswap32(word);
    __builtin_memcpy(at, &word, 4);
}

INLINE void put16(u8 *at, u16 word)
{
    word = __builtin_bswap16(word);
    __builtin_memcpy(at, &word, 2);
}

// Folds a sum of 16-bit words, in the order of the machine.
INLINE u16 fold(u64 sum)
{
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return sum;
}

// Both halves of the product, one in the other, with a word that a secret has changed.
INLINE u64 mix(u64 word, u64 key, u64 factor)
{
    u64 a = word ^ key;
    u64 low = (a & 0xffffffff) * (factor & 0xffffffff), high = (a >> 32) * (factor >> 32);
    u64 one = (a >> 32) * (factor & 0xffffffff), other = (a & 0xffffffff) * (factor >> 32);
    u64 middle = (low >> 32) + (one & 0xffffffff) + (other & 0xffffffff);
    high += (one >> 32) + (other >> 32) + (middle >> 32);
    return (middle << 32 | (low & 0xffffffff)) ^ high;
}

// SipHash-2-4 of two words.
INLINE u64 signature(u64 key0, u64 key1, u64 first, u64 second)
{
    u64 v[4] = {
        key0 ^ 0x736f6d6570736575,
        key1 ^ 0x646f72616e646f6d,
        key0 ^ 0x6c7967656e657261,
        key1 ^ 0x7465646279746573,
    };
    u64 words[3] = { first, second, 16ull << 56 };
#pragma unroll
    for (int i = 0; i < 3; i++) {
        v[3] ^= words[i];
        sip_round(v);
        sip_round(v);
        v[0] ^= words[i];
    }
    v[2] ^= 0xff;
#pragma unroll
    for (int i = 0; i < 4; i++)
        sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

INLINE u8 *ip_of(u8 *data, volatile struct work *w)
{
    return data + (w->ip & 31);
}

INLINE u8 *tcp_of(u8 *data, volatile struct work *w)
{
    return data + (w->tcp & 63);
}

// Finds a segment that is the payload of an IP header without options, in a frame with up to two VLAN tags; 0 if there is none, or if it is a part of one.
//
// Offsets are computed without branches: the verifier follows every branch by itself, and what comes behind once for each.
INLINE int find_segment(u8 *data, u8 *end, volatile struct work *w)
{
    if (LACKS(data, 54))
        return 0;
    u64 types[3] = { be16(data + 12), be16(data + 16), be16(data + 20) };
    u64 vlan = 0, tags = 0, still = 1;
#pragma unroll
    for (int n = 0; n < 2; n++) {
        u64 other = are_same(types[n], 0x88a8), third = are_same(types[n], 0x9100);
        still &= are_same(types[n], 0x8100) | other | third;
        u64 identifier = be16(data + 14 + 4 * n) & 0xfff;
        // A priority tag names no network.
        u64 counts = still & is_set(identifier);
        u64 place = vlan >> 24 & 3;
        vlan |= counts * (identifier << (12 * place & 31) | (other + 2 * third) << (26 + 2 * place));
        vlan += counts << 24;
        tags += still;
    }
    u64 type = types[0];
    type ^= (type ^ types[1]) & -is_set(tags);
    type ^= (type ^ types[2]) & -are_same(tags, 2);
    w->vlan = vlan;
    w->tags = tags;
    w->ip = 14 + 4 * tags;
    w->is_v6 = are_same(type, 0x86dd);
    w->tcp = 34 + 4 * tags + 20 * are_same(type, 0x86dd);
    u8 *ip = ip_of(data, w);
    u8 *tcp = tcp_of(data, w);
    if (LACKS(tcp, 20) || LACKS(ip, 20))
        return 0;
    w->flags = tcp[13];
    if (type == 0x0800)
        return ip[0] == 0x45 && ip[9] == 6 && !(ip[6] & 0x3f) && !ip[7];
    if (type == 0x86dd)
        return ip[0] >> 4 == 6 && ip[6] == 6;
    return 0;
}

// The hash of its flow, as the recent-SYN filter and cookies name it, and as the map of flows does.
INLINE int name_segment(u8 *data, u8 *end, volatile struct work *w)
{
    u8 *ip = ip_of(data, w);
    u64 words[5];

    if (!w->is_v6) {
        if (LACKS(ip, 40))
            return 0;
        words[0] = (u64)be32(ip + 16) << 32 | be32(ip + 12);
        words[1] = ports_of(1, ip + 20);
        w->name = w->hash = siphash(flow_key0, flow_key1, words, 2);
        if (w->vlan) {
            words[1] |= w->vlan;
            w->hash = siphash(flow_key0, flow_key1, words, 2);
        }
        return 1;
    }
    if (LACKS(ip, 60))
        return 0;
#pragma unroll
    for (int i = 0; i < 4; i++)
        words[i] = (u64)be32(ip + 24 + 4 * i) << 32 | be32(ip + 8 + 4 * i);
    words[4] = ports_of(1, ip + 40);
    w->name = w->hash = siphash(flow_key0, flow_key1, words, 5);
    if (w->vlan) {
        words[4] |= w->vlan;
        w->hash = siphash(flow_key0, flow_key1, words, 5);
    }
    return 1;
}

INLINE struct block *block_of(u32 worker, u32 n)
{
    // Of no worker there is nothing.
    u32 at = worker * blocks_each + n;
    return map_lookup_elem(&answers, &at);
}

// The worker that has the flow of this name: that of the queue, or, if its first block says so, the one that a hash names.
INLINE u32 owner_of(volatile struct work *w, u32 queue)
{
    struct block *own = block_of(queue, 0);
    if (!own || !word_at(&own->words[BY_HASH]))
        // Network cards do not find the ends of all frames (`owner::plain`).
        return owned_queues > 1 && (w->tags != (w->vlan >> 24 & 3) || w->tags > 1 || w->vlan >> 26) ? NO_WORKER : queue;
    return (w->name * 0x9e3779b97f4a7c15 >> 32) * owned_queues >> 32;
}

// The bits of an entry of the recent-SYN filter.
INLINE u64 noted_bits(u64 hash)
{
    u64 mixed = hash * 0x9e3779b97f4a7c15, set = 0;
#pragma unroll
    for (int n = 0; n < 4; n++)
        set |= 1ull << ((mixed >> (32 + 8 * n) & 0xff) * NOTED_BITS >> 8);
    return set;
}

INLINE struct pair *noted_of(u32 worker, u64 hash)
{
    u32 at = worker * NOTED_PAIRS + (hash >> 28 & (NOTED_PAIRS - 1));
    return map_lookup_elem(&noted, &at);
}

// Whether a SYN of this flow may have been answered in the last 100 s.
INLINE u64 was_noted(struct pair *pair, u64 hash, u64 now)
{
    u64 slice = now >> NOTED_SLICE_BITS, set = noted_bits(hash), place = slice % NOTED_SLICES, may = 0;
#pragma unroll
    for (u64 n = 0; n < NOTED_SLICES; n++) {
        u64 held = word_at(&pair->words[n]);
        u64 age = (place + NOTED_SLICES - n) % NOTED_SLICES;
        u64 is_it = are_same(held >> NOTED_BITS, (slice - age) & 0xff);
        u64 is_next = are_same(age, NOTED_SLICES - 1) & are_same(held >> NOTED_BITS, (slice + 1) & 0xff);
        may |= (is_it | is_next) & are_same(held & set, set);
    }
    return may;
}

// Notes that the SYN of this flow with this number was answered; 0 if it could not be noted.
INLINE int note(struct pair *pair, u64 hash, u32 client_isn, u32 isn, u64 now)
{
    u64 slice = now >> NOTED_SLICE_BITS, set = noted_bits(hash), number = slice << NOTED_BITS;
    u64 place = slice % NOTED_SLICES;
    // The verifier does not know that it is less than eight.
    asm volatile("" : "+r"(place));
    u64 *word = &pair->words[place & 7];
    u64 held = word_at(word);

    // The engine, or another core, may begin the slice at the same moment.
    if (held >> NOTED_BITS != number >> NOTED_BITS) {
        u64 before = __sync_val_compare_and_swap(word, held, number | set);
        if (before != held && before >> NOTED_BITS != number >> NOTED_BITS)
            return 0;
    }
    __sync_fetch_and_or(word, set);
    u64 turn = word_at(&pair->words[TURN]);
    *(volatile u64 *)&pair->words[TURN] = turn + 1;
    u64 *answer = &pair->words[8 + (turn & 7)];
    u32 tag = ((u32)(hash >> 32) ^ client_isn * 0x9e3779b1u) & ~((1u << CHECK_BITS) - 1);
    *(volatile u64 *)answer = word_at(answer) << 32 | tag | (isn & ((1u << CHECK_BITS) - 1));
    return 1;
}

enum { OPTION_MSS = 0x0204, NOP_SCALE = 0x010303, NOPS_SACK = 0x01010402, SACK_TIMESTAMPS = 0x0402080a, NOPS_TIMESTAMPS = 0x0101080a,
       SACK_END = 0x04020000 };

// `other` where `is_it` is 1, else `value`, without a branch.
INLINE u64 choose(u64 is_it, u64 value, u64 other)
{
    return value ^ ((value ^ other) & -is_it);
}

// Reads a SYN's options in the layouts of common stacks, word by word, as the engine's `Options::read_words` does, and sums the header up; 0 if there are
// others. Without branches where it can be: the verifier follows each by itself, and ten words have a million ways.
INLINE int read_options(u8 *tcp, u8 *end, u32 words, u64 none, volatile struct work *w)
{
    u64 sum = none, mss = none, scale = none + 15, sack = none, timestamps = none, value = none;
    // Words of timestamps that are still to come; whether the list has ended; whether some word is in no such layout.
    u64 skipped = none, ended = none, unknown = none;

    if (LACKS(tcp, 20))
        return 0;
#pragma unroll
    for (int n = 0; n < 5; n++)
        sum += net32(tcp + 4 * n);
#pragma clang loop unroll(disable)
    for (u64 n = 5; n < 15; n++) {
        if (n >= words)
            break;
        if (LACKS(tcp + 4 * n, 4))
            return 0;
        u32 raw = net32(tcp + 4 * n), word = __builtin_bswap32(raw);
        sum += raw;
        u64 is_skipped = is_set(skipped), is_read = (1 - ended) & (1 - is_skipped), has_two = if_less(n + 2, words) & 1;
        u64 is_mss = are_same(word >> 16, OPTION_MSS), is_scale = are_same(word >> 8, NOP_SCALE);
        u64 is_end = are_same(word, SACK_END), both = are_same(word, SACK_TIMESTAMPS) & has_two;
        u64 is_sack = are_same(word, NOPS_SACK) | is_end | both, stamps = both | (are_same(word, NOPS_TIMESTAMPS) & has_two);
        // The value comes first.
        value = choose((1 - ended) & are_same(skipped, 2), value, word);
        mss = choose(is_read & is_mss, mss, word & 0xffff);
        scale = choose(is_read & is_scale, scale, choose(if_less(14, word & 0xff) & 1, word & 0xff, 14));
        sack |= is_read & is_sack;
        timestamps |= is_read & stamps;
        unknown |= is_read & (1 - (is_mss | is_scale | is_sack | stamps));
        skipped += 2 * (is_read & stamps) - ((1 - ended) & is_skipped);
        ended |= is_read & is_end;
    }
    w->sum = sum, w->mss = mss, w->scale = scale;
    w->sack = sack, w->timestamps = timestamps, w->ts_echo = value;
    return !unknown;
}

// Whether hosts can have these addresses and connect to each other (`are_possible` in tcpstate/src/proxy/context.rs).
INLINE u64 may_be_v4(u32 address)
{
    u32 first = address >> 24;
    return address != 0 && address != 0xffffffff && first != 127 && !(first >= 224 && first <= 239);
}

INLINE u64 may_be_v6(u64 high, u64 low)
{
    return high >> 56 != 0xff && !(high == 0 && (low == 0 || low == 1 || low >> 32 == 0xffff));
}

// The index of the largest of these 32 rising values that does not exceed `value`.
INLINE u64 floor_of(const u64 *values, u64 value, u64 length)
{
    const u16 *table = (const u16 *)values;
    u64 at = 0;
#pragma unroll
    for (u64 step = 16; step; step >>= 1)
        at += step & ~if_less(value, table[(at + step) & 31]);
    u64 last = length - 1;
    return last < at ? last : at;
}

// The word that names a server's entries, of its address, VLAN tags and port.
INLINE u64 set_of(u64 high, u64 low, u64 port)
{
    return ((high ^ low * 0x9e3779b97f4a7c15 ^ port >> 16) * 0xbf58476d1ce4e5b9 >> 55) % SETS;
}

// Adds the tokens of the periods that have passed.
INLINE void refill(struct bucket *bucket, const struct block *head, u32 period)
{
    u64 tokens = word_at(&bucket->tokens), rest = word_at(&bucket->rest);
    u64 burst = (u32)head->words[BURST], periods = (u32)(period - (u32)(rest >> 32));
    u64 added = (head->words[BURST] >> 32) * periods;
    added = added > 0xffffffff ? 0xffffffff : added;
    u64 most_repeated = burst * REPEATED_SHARE, added_repeated = added * REPEATED_SHARE;
    most_repeated = most_repeated > 0xffffffff ? 0xffffffff : most_repeated;
    added_repeated = added_repeated > 0xffffffff ? 0xffffffff : added_repeated;
    u64 forgiven = (u32)head->words[FAILURES] * periods, most_failures = head->words[FAILURES] >> 32;
    u64 fresh = (u32)tokens, repeated = tokens >> 32, failures = (u32)rest;
    fresh = fresh > burst ? burst : fresh;
    repeated = repeated > most_repeated ? most_repeated : repeated;
    failures = failures > most_failures ? most_failures : failures;
    fresh = fresh > added ? fresh - added : 0;
    repeated = repeated > added_repeated ? repeated - added_repeated : 0;
    failures = failures > forgiven ? failures - forgiven : 0;
    *(volatile u64 *)&bucket->tokens = repeated << 32 | fresh;
    *(volatile u64 *)&bucket->rest = (u64)period << 32 | failures;
}

// Reads the headers of a SYN; 0 if the engine has to look at it.
INLINE int read_headers(u8 *data, u8 *end, volatile struct work *w)
{
    u8 *ip = ip_of(data, w);

    if (LACKS(data, 54) || (data[6] & 1))
        return 0;
    if (!w->is_v6) {
        if (LACKS(ip, 20))
            return 0;
        u32 source = be32(ip + 12), destination = be32(ip + 16);
        if (!may_be_v4(source) || !may_be_v4(destination) || source == destination)
            return 0;
        u64 sum = 0;
#pragma unroll
        for (int n = 0; n < 5; n++)
            sum += net32(ip + 4 * n);
        if (fold(sum) != 0xffff)
            return 0;
        w->addresses = (u64)net32(ip + 12) + net32(ip + 16);
        w->high = 0, w->low = 0xffffull << 32 | destination;
        w->source_high = 0, w->source_low = source;
        w->ttl = ip[8], w->class = ip[1] & 0xfc, w->ecn = ip[1] & 3;
        w->length = be16(ip + 2) - 20;
    } else {
        if (LACKS(ip, 40))
            return 0;
        u64 source_high = (u64)be32(ip + 8) << 32 | be32(ip + 12), source_low = (u64)be32(ip + 16) << 32 | be32(ip + 20);
        u64 high = (u64)be32(ip + 24) << 32 | be32(ip + 28), low = (u64)be32(ip + 32) << 32 | be32(ip + 36);
        if (!may_be_v6(source_high, source_low) || !may_be_v6(high, low) || (high == source_high && low == source_low))
            return 0;
        u64 addresses = 0;
#pragma unroll
        for (int n = 0; n < 8; n++)
            addresses += net32(ip + 8 + 4 * n);
        w->addresses = addresses;
        w->high = high, w->low = low;
        w->source_high = source_high, w->source_low = source_low;
        w->ttl = ip[7], w->class = (ip[0] << 4 | ip[1] >> 4) & 0xfc, w->ecn = ip[1] >> 4 & 3;
        w->length = be16(ip + 4);
    }
    u8 *tcp = tcp_of(data, w);
    if (LACKS(tcp, 20))
        return 0;
    u32 words = tcp[12] >> 4;
    // The packet is this header, whole and without payload.
    if (words < 5 || w->length != 4 * words || (w->tcp & 63) + 4 * words > w->frame_length)
        return 0;
    w->client_isn = be32(tcp + 4), w->ports = be32(tcp), w->ace = (be16(tcp + 12) >> 6) & 7;
    return 1;
}

// Finds the entry of the SYN's server, if it has one that holds; 0 if not.
INLINE u64 *find_offer(u8 *data, u8 *end, struct block *head, volatile struct work *w)
{
    u64 high = w->high, low = w->low, port = w->vlan << 32 | (w->ports & 0xffff) << 16, is_v6 = w->is_v6;
    struct block *set = block_of(w->worker, HEAD + set_of(high, low, port));
    if (!set || LACKS(data, 54))
        return 0;
    u64 which = is_set(set->words[2] ^ high) | is_set(set->words[3] ^ low) | is_set((set->words[4] & ~0xffffull) ^ port) |
                is_set((set->words[5] & FOR_V6) ^ is_v6);
    u64 *entry = &set->words[(which & 1) * ENTRY];
    u64 stamp = word_at(&entry[0]), until = word_at(&entry[1]), named = word_at(&entry[4]), station = word_at(&entry[5]);
    u64 is_other = is_set(word_at(&entry[2]) ^ high) | is_set(word_at(&entry[3]) ^ low) | is_set((named & ~0xffffull) ^ port) |
                   is_set((station & FOR_V6) ^ is_v6);
    u64 destination = (u64)be32(data) << 16 | be16(data + 4);
    if (is_other || stamp >> 32 != w->generation || w->now >= until || station >> 16 != destination)
        return 0;
    if ((station & NEEDS_FULL_CACHE) && w->now >= word_at(&head->words[FULL_UNTIL]))
        return 0;
    w->stamp = stamp, w->named = named, w->station = station;
    return entry;
}

// What is agreed on ECN (`agree_on_ecn` in tcpstate/src/proxy/client_handshake.rs).
INLINE u64 agree_on_ecn(u64 ace, u64 server)
{
    u64 is_accurate = are_same(server, 2), knows = is_set(server), refuses = are_same(server, 1);
    u64 classic = are_same(ace, 3), accurate = are_same(ace, 7) & (1 - is_accurate);
    u64 other = is_set(ace) & (1 - classic) & is_accurate;
    return classic * (2 - knows) + accurate * (4 - 3 * refuses) + 3 * other;
}

// The cookie, and what the answer says (tcpstate/src/cookie/mod.rs); 0 if none can say it.
INLINE int mint(volatile struct work *w)
{
    u64 bytes = w->bytes, numbers = w->numbers, odd = w->station >> 2 & 1;
    u64 promised = bytes & 0xff, sack = w->sack & (bytes >> 8 & 1);
    u64 scales = is_set(w->scale ^ 15) & is_set(promised ^ 15);
    u64 timestamps = bytes >> 16 & 1;
    struct block *mint = block_of(w->worker, MINTING + odd);
    if (!mint || w->ttl <= (bytes >> 40 & 0xff))
        return 0;
    u64 mss = choose(is_set(w->mss), choose(w->is_v6 & 1, 536, 1220), w->mss), clamp = numbers >> 48;
    mss = choose(if_less(clamp, mss) & 1, mss, clamp);
    u64 scale = choose(scales, 15, w->scale), kept = choose(scales, 15, promised), lengths = mint->words[2];
    u64 agreed = timestamps * agree_on_ecn(w->ace, bytes >> 24 & 0xff);
    u64 told = 0x6432 >> (4 * (w->ecn & 3)) & 7;
    u64 code, width, word;
    if (timestamps) {
        if (mss < (mint->words[4] & 0xffff))
            return 0;
        code = (agreed >> 1) << 11 | floor_of(&mint->words[4], mss, lengths & 0xff) << 6 | (agreed & 1) << 5 | sack << 4 | scale;
        width = 27;
        word = (kept << 13 | code) << 1 | 1;
        u32 clock = w->now / 1000;
        w->ts_value = (u32)(clock - ((clock - (u32)code) & 0x1fff));
        code = kept;
    } else {
        if (mss < (mint->words[12] & 0xffff))
            return 0;
        const u8 *digits = (const u8 *)&mint->words[20];
        u64 digit = digits[scale & 15] & -scales;
        code = (floor_of(&mint->words[12], mss, lengths >> 8 & 0xff) * (lengths >> 16 & 0xff) + digit) * 2 + sack;
        width = (31 - (lengths >> 24 & 0xff)) & 31;
        word = code << 1;
    }
    u64 mac = signature(mint->words[0], mint->words[1], w->hash, w->client_isn << 32 | word);
    w->isn = (u32)(odd << 31 | code << width | mac >> (64 - width & 63));
    w->ecn_flags = (are_same(agreed, 1) | told * are_same(agreed, 3)) << 6;
    w->answers_sack = sack, w->answers_timestamps = timestamps, w->answers_scale = scales;
    return 1;
}

// The bucket of the SYN's source.
INLINE struct bucket *bucket_of(struct block *head, volatile struct work *w)
{
    u64 key = head->words[BUCKET_KEYS], factor = head->words[BUCKET_KEYS + 1], masks = head->words[MASKS], word;
    if (w->is_v6)
        word = mix(w->source_high & head->words[MASK6], key, factor) ^ (w->source_low & head->words[MASK6 + 1]);
    else
        word = w->source_low & (u32)masks;
    u32 at = w->worker * buckets_each + ((u32)mix(word, key, factor) & (u32)(masks >> 32));
    return map_lookup_elem(&buckets, &at);
}

// Writes the answer over the SYN; 0 if it does not fit, which it does.
INLINE int write_answer(u8 *data, u8 *end, volatile struct work *w)
{
    u8 *ip = ip_of(data, w);
    u8 *tcp = tcp_of(data, w);
    u32 bytes_ttl = w->bytes >> 32 & 0xff, tcp_length = 20 + w->options;
    u32 class = choose(is_set(w->bytes >> 56), w->bytes >> 48 & 0xff, w->class);
    u32 window = choose(w->answers_scale, w->numbers >> 32 & 0xffff, w->numbers >> 16 & 0xffff);
    u8 from[6];

    if (LACKS(data, 60) || LACKS(ip, 20) || LACKS(tcp, 20))
        return 0;
    __builtin_memcpy(from, data + 6, 6);
    __builtin_memcpy(data + 6, data, 6);
    __builtin_memcpy(data, from, 6);
    // Servers that share the address of a group send from that of one station.
    data[6] &= 0xfe;
    if (!w->is_v6) {
        u32 source = net32(ip + 12), target = net32(ip + 16);
        put32(ip, 0x45000000 | class << 16 | (20 + tcp_length));
        put32(ip + 4, 0x4000);
        put32(ip + 8, bytes_ttl << 24 | 6 << 16);
        __builtin_memcpy(ip + 12, &target, 4);
        __builtin_memcpy(ip + 16, &source, 4);
        u64 sum = 0;
#pragma unroll
        for (int n = 0; n < 5; n++)
            sum += net32(ip + 4 * n);
        u16 check = ~fold(sum);
        __builtin_memcpy(ip + 10, &check, 2);
    } else {
        if (LACKS(ip, 40))
            return 0;
        put32(ip, 6u << 28 | class << 20 | ((w->hash >> 20 & 0xfffff) | 1));
        put32(ip + 4, tcp_length << 16 | 6 << 8 | bytes_ttl);
#pragma unroll
        for (int n = 0; n < 4; n++) {
            u32 word = net32(ip + 8 + 4 * n), other = net32(ip + 24 + 4 * n);
            __builtin_memcpy(ip + 8 + 4 * n, &other, 4);
            __builtin_memcpy(ip + 24 + 4 * n, &word, 4);
        }
    }
    put32(tcp, (u32)w->ports << 16 | (u32)w->ports >> 16);
    put32(tcp + 4, w->isn);
    put32(tcp + 8, w->client_isn + 1);
    put32(tcp + 12, (tcp_length / 4) << 28 | (0x12 | (u32)w->ecn_flags) << 16 | window);
    put32(tcp + 16, 0);
    u64 sum = w->addresses + __builtin_bswap16(6) + __builtin_bswap16(tcp_length);
#pragma unroll
    for (int n = 0; n < 5; n++)
        sum += net32(tcp + 4 * n);
    u8 *at = tcp + 20;
#define OPTION(value)                                                                                                                      \
    do {                                                                                                                                   \
        if (LACKS(at, 4))                                                                                                                  \
            return 0;                                                                                                                      \
        put32(at, value);                                                                                                                  \
        sum += net32(at);                                                                                                                  \
        at += 4;                                                                                                                           \
    } while (0)
    if (w->answers_mss)
        OPTION(OPTION_MSS << 16 | (w->numbers & 0xffff));
    if (w->answers_timestamps) {
        OPTION(choose(w->answers_sack, NOPS_TIMESTAMPS, SACK_TIMESTAMPS));
        OPTION(w->ts_value);
        OPTION(w->ts_echo);
    } else if (w->answers_sack) {
        OPTION(NOPS_SACK);
    }
    if (w->answers_scale)
        OPTION(NOP_SCALE << 8 | (w->bytes & 0xff));
#undef OPTION
    u16 check = ~fold(sum);
    __builtin_memcpy(tcp + 16, &check, 2);
    // Padding to the least length of a frame: without tags and with at most one option.
    u64 length = (w->tcp & 63) + tcp_length;
    if (length < 56)
        put32(data + 54, 0);
    if (length < 60)
        put16(data + 58, 0);
    return 1;
}

// A plain SYN: answers it, or leaves it to the engine.
INLINE int answer_syn(FRAME *ctx, u8 *data, u8 *end, volatile struct work *w, u32 queue)
{
    u64 frame_length = w->frame_length;

    // A SYN alone is no longer; of a frame in several buffers only the first is in sight.
    if (frame_length > 128 || !name_segment(data, end, w) || !read_headers(data, end, w))
        return NOT_OURS;
    w->worker = owner_of(w, queue);
    struct block *head = block_of(w->worker, 0);
    if (!head)
        return NOT_OURS;
    u64 generation = word_at(&head->words[GENERATION]);
    if (!generation)
        return NOT_OURS;
    w->generation = generation;
    w->now = ktime_get_boot_ns() / 1000;
    u64 *entry = find_offer(data, end, head, w);
    if (!entry)
        return NOT_OURS;
    u8 *tcp = tcp_of(data, w);
    // Zero, which the verifier does not know: a generation has 32 bits.
    if (LACKS(tcp, 20) || !read_options(tcp, end, tcp[12] >> 4, generation >> 63, w))
        return NOT_OURS;
    if (fold(w->sum + w->addresses + __builtin_bswap16(6) + __builtin_bswap16(w->length)) != 0xffff)
        return NOT_OURS;
    u64 stamps = w->timestamps & 1;
    if (!stamps && !(w->station & HAS_PLAIN))
        return NOT_OURS;
    // What the engine offers such a client.
    w->numbers = choose(stamps, word_at(&entry[8]), word_at(&entry[6]));
    w->bytes = choose(stamps, word_at(&entry[9]), word_at(&entry[7]));
    if (!mint(w))
        return NOT_OURS;

    // An answer is no longer than the question: else it goes without MSS.
    u64 room = frame_length < 60 ? 60 : frame_length;
    u64 options = 4 + choose(w->answers_timestamps, 4 * w->answers_sack, 12) + 4 * w->answers_scale;
    u64 answer_length = (w->tcp & 63) + 20 + options;
    u64 is_longer = if_less(room, answer_length) & 1;
    w->answers_mss = 1 - is_longer;
    answer_length -= 4 * is_longer;
    w->options = options - 4 * is_longer;
    if (answer_length > room)
        return NOT_OURS;
    u64 total = answer_length < 60 ? 60 : answer_length;

    // No flow has its ends: the engine has an answer of its own for one that has.
    if (find_flow(w->name))
        return NOT_OURS;
    struct pair *pair = noted_of(w->worker, w->hash);
    struct bucket *bucket = bucket_of(head, w);
    struct block *counts = block_of(w->worker, BY_TARGET + (w->named >> 5 & 1));
    if (!pair || !bucket || !counts)
        return NOT_OURS;
    u64 length_of_period = head->words[PERIOD];
    u32 period = w->now / (length_of_period | !length_of_period);
    if ((u32)(word_at(&bucket->rest) >> 32) != period)
        refill(bucket, head, period);
    if ((u32)word_at(&bucket->tokens) >= (u32)head->words[BURST])
        return NOT_OURS;
    // What may fail comes before anything is charged; a longer frame only has more padding.
    if (total > frame_length && resize(ctx, total - frame_length))
        return NOT_OURS;
    __sync_fetch_and_add(&bucket->tokens, 1);
    // Whatever was read was written before it, and nothing has changed since.
    if (word_at(&head->words[GENERATION]) != generation || word_at(&entry[0]) != w->stamp ||
        !note(pair, w->hash, w->client_isn, w->isn, w->now)) {
        __sync_fetch_and_add(&bucket->tokens, -1);
        return NOT_OURS;
    }
    __sync_fetch_and_add(&counts->words[w->named & 31], 1);
    if (w->station & NEEDS_FULL_CACHE)
        __sync_fetch_and_add(&head->words[ANSWERED_FULL], 1);
    note_answered(ctx, queue);
    if (total < frame_length && resize(ctx, (int)(total - frame_length)))
        return UNASKED_FOR;
    w->frame_length = total;
    return write_answer(FIRST_OF(ctx, w), END_OF(ctx, w), w) ? ANSWERED : UNASKED_FOR;
}

// An acknowledgement: drops it if it belongs to no flow, and to no SYN that was answered.
INLINE int drop_unasked(u8 *data, u8 *end, volatile struct work *w, u32 queue)
{
    if (!name_segment(data, end, w))
        return NOT_OURS;
    u32 worker = owner_of(w, queue);
    struct block *head = block_of(worker, 0);
    if (!head)
        return NOT_OURS;
    u64 from = word_at(&head->words[ACKS_FROM]), now = ktime_get_boot_ns() / 1000;
    if (!from || now < from)
        return NOT_OURS;
    u8 *ip = ip_of(data, w);
    u8 *tcp = tcp_of(data, w);
    if (LACKS(ip, 20) || LACKS(tcp, 20))
        return NOT_OURS;
    u64 total = be16(ip + 2), payload = be16(ip + 4), header = (tcp[12] >> 4) * 4;
    u64 length = choose(w->is_v6 & 1, total - 20, payload);
    // Its packet lies in the frame, and is no shorter than its headers.
    if (header < 20 || (long long)length < (long long)header || (w->tcp & 63) + length > w->frame_length)
        return NOT_OURS;
    struct pair *pair = noted_of(worker, w->hash);
    if (!pair || was_noted(pair, w->hash, now) || find_flow(w->name))
        return NOT_OURS;
    __sync_fetch_and_add(&head->words[UNASKED], 1);
    return UNASKED_FOR;
}

// What becomes of a segment of no flow that came by this queue, of a frame of so many bytes.
INLINE int decide_stateless(FRAME *ctx, volatile struct work *w, u32 queue, u64 frame_length)
{
    u8 *data = FIRST_OF(ctx, w);
    u8 *end = END_OF(ctx, w);

    w->frame_length = frame_length;
    if (!find_segment(data, end, w) || (w->tcp & 63) + 20 > frame_length)
        return NOT_OURS;
    // SYN alone; or ACK with neither SYN nor RST, while the worker that has this queue says that many of those come.
    u64 flags = w->flags;
    if ((flags & 0x17) == 0x02)
        return answer_syn(ctx, data, end, w, queue);
    if ((flags & 0x16) != 0x10)
        return NOT_OURS;
    struct block *head = block_of(queue, 0);
    if (!head || !word_at(&head->words[ACKS_FROM]))
        return NOT_OURS;
    return drop_unasked(data, end, w, queue);
}
