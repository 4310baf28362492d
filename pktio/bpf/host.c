// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//
// Leads the frames of this machine's own stack through a box (src/netdev/host.rs): those that leave a NIC go to one end of a veth pair, of
// which the box has the other end, and those that the box sends there arrive as if the NIC had received them.

#include "kernel.h"

enum { TC_ACT_UNSPEC = -1 };
enum { PACKET_HOST = 0 };

// The program's context, as the kernel lays it out, up to the last member that is used.
struct __sk_buff {
    u32 len;
    u32 pkt_type;
    u32 others[17];
    u32 data;
    u32 data_end;
};

static void (*const tail_call)(void *ctx, void *map, u32 index) = (void *)12;
static long (*const redirect)(u32 ifindex, u64 flags) = (void *)23;
static long (*const skb_change_type)(struct __sk_buff *skb, u32 type) = (void *)32;

// Set by the loader: the stack's end of the veth pair.
volatile const u32 stack_end = 0;
// Set by the loader: the NIC's address, as it lies in a frame.
volatile const u32 address_first = 0;
volatile const u32 address_last = 0;

// Holds `leave_by_box` while a box runs. The kernel empties it when the process that made it has ended, however it ended.
struct {
    ATTRIBUTE(type, MAP_TYPE_PROG_ARRAY);
    ATTRIBUTE(max_entries, 1);
    u32 *key;
    u32 *value;
} running SEC(".maps");

// At the NIC's egress. Without a box, the frame leaves as it always did.
SEC("classifier")
int leave(struct __sk_buff *skb)
{
    tail_call(skb, &running, 0);
    return TC_ACT_UNSPEC;
}

SEC("classifier")
int leave_by_box(struct __sk_buff *skb)
{
    (void)skb;
    return redirect(stack_end, 0);
}

// At the ingress of the stack's end, in front of an action that redirects to the NIC's ingress. The kernel has compared the destination with
// the address of the veth, which is another one.
SEC("classifier")
int arrive(struct __sk_buff *skb)
{
    void *data = (void *)(long)skb->data;
    if (data + 14 <= (void *)(long)skb->data_end && *(u32 *)data == address_first && *(u16 *)(data + 4) == address_last)
        skb_change_type(skb, PACKET_HOST);
    return -1;
}

char _license[] SEC("license") = "Dual BSD/GPL";
