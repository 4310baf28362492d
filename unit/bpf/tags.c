// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//
// Makes an end host live behind VLAN tags, as on a kernel with an 802.1Q device: whatever leaves gets the tags OUT, whatever
// comes in must bear exactly the tags IN and loses them. Attached to clsact at the host's interface; both are given by the compiler,
// outermost first, as { protocol, id } in the host's byte order.
//
// Only the few declarations this needs are written here, so that clang alone can compile it.

typedef unsigned short u16;
typedef unsigned int u32;

#define SEC(name) __attribute__((section(name), used))

enum { TC_ACT_OK = 0, TC_ACT_SHOT = 2 };

// The beginning of the program's context, as the kernel lays it out.
struct __sk_buff {
    u32 len;
    u32 pkt_type;
    u32 mark;
    u32 queue_mapping;
    u32 protocol;
    u32 vlan_present;
    u32 vlan_tci;
    u32 vlan_proto;
};

static long (*const skb_vlan_push)(struct __sk_buff *skb, u16 protocol, u16 tci) = (void *)18;
static long (*const skb_vlan_pop)(struct __sk_buff *skb) = (void *)19;

struct tag {
    u16 protocol;
    u16 id;
};

static const struct tag put[] = {OUT};
static const struct tag taken[] = {IN};

enum { PUT = sizeof(put) / sizeof(put[0]), TAKEN = sizeof(taken) / sizeof(taken[0]) };

SEC("classifier/out")
int out(struct __sk_buff *skb)
{
#pragma unroll
    for (int i = PUT - 1; i >= 0; i--)
        if (skb_vlan_push(skb, __builtin_bswap16(put[i].protocol), put[i].id))
            return TC_ACT_SHOT;
    return TC_ACT_OK;
}

SEC("classifier/in")
int in(struct __sk_buff *skb)
{
#pragma unroll
    for (int i = 0; i < TAKEN; i++) {
        u32 right = skb->vlan_present && skb->vlan_proto == __builtin_bswap16(taken[i].protocol) &&
                    (skb->vlan_tci & 0xfff) == taken[i].id;
        if (!right || skb_vlan_pop(skb))
            return TC_ACT_SHOT;
    }
    // What is left bears no tag.
    return skb->vlan_present ? TC_ACT_SHOT : TC_ACT_OK;
}
