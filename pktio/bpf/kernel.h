// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//
// What every program here needs of the kernel's declarations, so that clang alone can compile it.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
// A function of its own. What the verifier knows at its end is the result alone, so that it follows what comes after it once, and not for each way
// through it; and its stack is free then.
#define APART static __attribute__((noinline))
// The loader reads a map's attributes out of the types of these members (BTF).
#define ATTRIBUTE(name, value) int(*name)[value]

enum { MAP_TYPE_ARRAY = 2, MAP_TYPE_PROG_ARRAY = 3, MAP_TYPE_PERCPU_ARRAY = 6, MAP_TYPE_DEVMAP = 14, MAP_TYPE_XSKMAP = 17,
       MAP_TYPE_RINGBUF = 27 };
enum { MAP_MMAPABLE = 1 << 10 };
enum { RINGBUF_NO_WAKEUP = 1 };
enum { XDP_ABORTED = 0, XDP_DROP = 1, XDP_PASS = 2, XDP_TX = 3, XDP_REDIRECT = 4 };

// The program's context, as the kernel lays it out.
struct xdp_md {
    u32 data;
    u32 data_end;
    u32 data_meta;
    u32 ingress_ifindex;
    u32 rx_queue_index;
    u32 egress_ifindex;
};

INLINE u16 be16(const u8 *at)
{
    return at[0] << 8 | at[1];
}

INLINE u32 be32(const u8 *at)
{
    u32 word;
    __builtin_memcpy(&word, at, 4);
    return __builtin_bswap32(word);
}

// 1 if the word is not 0, without a branch: the verifier follows every branch by itself.
INLINE u64 is_set(u64 word)
{
    u64 either = word | -word;
    asm volatile("" : "+r"(either));
    return either >> 63;
}

// All bits if `a` is less than `b`, otherwise none; both are below 2^63. The compiler shall not see what it is, or it makes a branch of it.
INLINE u64 if_less(u64 a, u64 b)
{
    u64 difference = a - b;
    asm volatile("" : "+r"(difference));
    return (long long)difference >> 63;
}

static void *(*const map_lookup_elem)(void *map, const void *key) = (void *)1;
static u32 (*const get_prandom_u32)(void) = (void *)7;
static long (*const redirect_map)(void *map, u64 key, u64 flags) = (void *)51;
static long (*const adjust_tail)(void *ctx, int delta) = (void *)65;
static u64 (*const jiffies64)(void) = (void *)118;
static u64 (*const ktime_get_boot_ns)(void) = (void *)125;
static u64 (*const xdp_buff_len)(struct xdp_md *ctx) = (void *)188;
static long (*const xdp_load_bytes)(struct xdp_md *ctx, u32 offset, void *to, u32 len) = (void *)189;
static long (*const ringbuf_output)(void *ring, void *data, u64 size, u64 flags) = (void *)130;
