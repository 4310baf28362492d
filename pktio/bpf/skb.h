// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//
// What programs that see frames as socket buffers need of the kernel's declarations, beside kernel.h.

enum { PACKET_OUTGOING = 4 };
enum { TC_ACT_UNSPEC = -1, TC_ACT_OK = 0, TC_ACT_SHOT = 2 };
enum { HDR_START_MAC = 0 };
// Flag of `skb_store_bytes`: the sum that a device has taken of the frame goes along.
enum { RECOMPUTE_CSUM = 1 };

// Flag of `l4_csum_replace`: what changes is part of the pseudo header.
enum { PSEUDO_HEADER = 16 };

// The program's context, as the kernel lays it out.
struct __sk_buff {
    u32 len;
    u32 pkt_type;
    u32 mark;
    u32 queue_mapping;
    u32 protocol;
    u32 vlan_present;
    u32 vlan_tci;
    u32 vlan_proto;
    u32 priority;
    u32 ingress_ifindex;
    u32 ifindex;
    u32 tc_index;
    u32 cb[5];
    u32 hash;
    u32 tc_classid;
    u32 data;
    u32 data_end;
};

static long (*const skb_store_bytes)(struct __sk_buff *skb, u32 offset, const void *from, u32 len, u64 flags) = (void *)9;
static long (*const l3_csum_replace)(struct __sk_buff *skb, u32 offset, u64 from, u64 to, u64 size) = (void *)10;
static long (*const l4_csum_replace)(struct __sk_buff *skb, u32 offset, u64 from, u64 to, u64 size) = (void *)11;
static long (*const skb_load_bytes)(const struct __sk_buff *skb, u32 offset, void *to, u32 len) = (void *)26;
static long (*const redirect_to)(u32 ifindex, u64 flags) = (void *)23;
static void (*const set_hash_invalid)(struct __sk_buff *skb) = (void *)48;
static long (*const csum_update)(struct __sk_buff *skb, u32 sum) = (void *)40;
static long (*const skb_load_bytes_relative)(const struct __sk_buff *skb, u32 offset, void *to, u32 len, u32 start) =
    (void *)68;
static long (*const skb_change_tail)(struct __sk_buff *skb, u32 len, u64 flags) = (void *)38;
