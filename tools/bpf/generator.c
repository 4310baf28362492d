// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//
// Both ends of a load. `generate` writes the next frame of a list, with random words where frames are to differ, and
// redirects it to a port; `sink` drops and counts such frames and the answers to them. The kernel's test loop runs `generate`
// on real frames (BPF_F_TEST_XDP_LIVE_FRAMES), several million times per second on one core.

#include "../../pktio/bpf/kernel.h"

enum { LONGEST = 128, STAMPS = 12 };

// A frame to send, as long as the one the loop is started with.
struct frame {
    u64 words[LONGEST / 8];
    // Index of the port it leaves by.
    u32 port;
    // Bytes.
    u32 length;
};

struct {
    ATTRIBUTE(type, MAP_TYPE_ARRAY);
    ATTRIBUTE(max_entries, 4096);
    u32 *key;
    struct frame *value;
} frames SEC(".maps");

struct {
    ATTRIBUTE(type, MAP_TYPE_DEVMAP);
    ATTRIBUTE(max_entries, 2);
    u32 *key;
    u32 *value;
} ports SEC(".maps");

// Frames generated. Only one program runs at a time.
struct {
    ATTRIBUTE(type, MAP_TYPE_PERCPU_ARRAY);
    ATTRIBUTE(max_entries, 1);
    u32 *key;
    u64 *value;
} generated SEC(".maps");

// Where a random 16-bit word goes. `mask` and `set` are in network byte order.
struct stamp {
    u16 at;
    u16 mask;
    u16 set;
    // Whether the IPv4 header's checksum covers it.
    u16 in_ip;
};

// Set by the loader. The sums cover every word that is not random, and are not complemented.
volatile const u32 frame_count = 1;
volatile const u32 stamp_count = 0;
volatile const struct stamp stamps[STAMPS] = {};
volatile const u32 ip_sum_at = 0;
volatile const u32 tcp_sum_at = 0;
volatile const u32 ip_sum = 0;
volatile const u32 tcp_sum = 0;
volatile const u64 seed = 1;
// Interval between frames, in 1024ths of a nanosecond; 0 for no limit.
volatile const u64 gap = 0;

// Only one program runs at a time, so these need no lock.
static u64 state;
static u32 next;
// When the next frame is due, in 1024ths of a nanosecond.
static u64 due;

INLINE u16 fold(u32 sum)
{
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return sum;
}

INLINE u64 random(void)
{
    u64 x = state ? state : seed;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    state = x;
    return x * 0x2545f4914f6cdd1dULL;
}

// Whether a frame is due. Frames late by more than one batch of the loop (64) are skipped.
INLINE int is_due(void)
{
    u64 now = ktime_get_boot_ns() << 10;
    if (now < due)
        return 0;
    u64 earliest = now - 64 * gap;
    due = (due < earliest ? earliest : due) + gap;
    return 1;
}

SEC("xdp")
int generate(struct xdp_md *ctx)
{
    if (gap && !is_due())
        return XDP_DROP;

    u8 *data = (u8 *)(u64)ctx->data;
    u8 *end = (u8 *)(u64)ctx->data_end;
    u32 index = next + 1 < frame_count ? next + 1 : 0;
    next = index;
    struct frame *frame = map_lookup_elem(&frames, &index);
    if (!frame)
        return XDP_ABORTED;

    // The kernel recycles the frame as its last receiver left it, so all of it is written again.
#pragma unroll
    for (int i = 0; i < LONGEST / 8; i++) {
        if (data + 8 * i + 8 <= end) {
            *(u64 *)(data + 8 * i) = frame->words[i];
        } else {
            if (data + 8 * i + 4 <= end)
                *(u32 *)(data + 8 * i) = (u32)frame->words[i];
            if (data + 8 * i + 2 <= end && !(data + 8 * i + 4 <= end))
                *(u16 *)(data + 8 * i) = (u16)frame->words[i];
            if (data + 8 * i + 6 <= end)
                *(u16 *)(data + 8 * i + 4) = (u16)(frame->words[i] >> 32);
            break;
        }
    }

    if (stamp_count) {
        u32 ip = ip_sum, tcp = tcp_sum;
        u64 bits = 0;
#pragma unroll
        for (u32 i = 0; i < STAMPS; i++) {
            if (i >= stamp_count)
                break;
            bits = i % 4 ? bits >> 16 : random();
            u16 word = ((u16)bits & stamps[i].mask) | stamps[i].set;
            u8 *at = data + (stamps[i].at & (LONGEST - 1));
            if (at + 2 > end)
                return XDP_ABORTED;
            *(u16 *)at = word;
            tcp += word;
            if (stamps[i].in_ip)
                ip += word;
        }
        u8 *at = data + (tcp_sum_at & (LONGEST - 1));
        if (at + 2 > end)
            return XDP_ABORTED;
        *(u16 *)at = ~fold(tcp);
        if (ip_sum_at) {
            at = data + (ip_sum_at & (LONGEST - 1));
            if (at + 2 > end)
                return XDP_ABORTED;
            *(u16 *)at = ~fold(ip);
        }
    }
    u32 zero = 0;
    u64 *count = map_lookup_elem(&generated, &zero);
    if (count)
        ++*count;
    return redirect_map(&ports, frame->port, XDP_DROP);
}

// Frames dropped by `sink`.
struct {
    ATTRIBUTE(type, MAP_TYPE_PERCPU_ARRAY);
    ATTRIBUTE(max_entries, 1);
    u32 *key;
    u64 *value;
} dropped SEC(".maps");

// Not zero to drop all TCP over IP, not only frames from or to the generator.
struct {
    ATTRIBUTE(type, MAP_TYPE_ARRAY);
    ATTRIBUTE(max_entries, 1);
    u32 *key;
    u32 *value;
} drop_all SEC(".maps");

SEC("xdp")
int sink(struct xdp_md *ctx)
{
    u8 *data = (u8 *)(u64)ctx->data;
    u8 *end = (u8 *)(u64)ctx->data_end;
    if (data + 34 > end)
        return XDP_PASS;
    // 02:00:00:00:00:66, the generator's address, as receiver or as sender.
    u64 receiver = *(u64 *)data & 0xffffffffffffULL;
    u64 sender = *(u64 *)(data + 4) >> 16;
    u32 zero = 0;
    if (receiver != 0x660000000002ULL && sender != 0x660000000002ULL) {
        u32 *all = map_lookup_elem(&drop_all, &zero);
        u16 type = *(u16 *)(data + 12);
        u8 protocol = type == 0x0008 ? data[23] : type == 0xdd86 ? data[20] : 0;
        if (!all || !*all || protocol != 6)
            return XDP_PASS;
    }
    u64 *count = map_lookup_elem(&dropped, &zero);
    if (count)
        ++*count;
    return XDP_DROP;
}

char _license[] SEC("license") = "Dual BSD/GPL";
