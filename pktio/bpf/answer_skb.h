// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//
// Answers SYNs at the tc hook (syns.h). The filter of the socket decides, and may not write: it writes the answer into a copy of the frame, and notes its
// number beside the frame. The program at tc finds the copy of this core under that number, and sends it in the frame's place.

// Frames that are longer are no SYN alone; of those the copy is the beginning.
enum { IMAGE = 128 };
// The copy has all bytes that are read; that those are the frame's is asked by lengths.
#define LACKS(at, bytes) ((void)(at), (void)end, 0)
#define FIRST_OF(ctx, w) ((u8 *)(w)->image)
#define END_OF(ctx, w) ((u8 *)(w)->image)

INLINE int resize(FRAME *skb, int by)
{
    (void)skb, (void)by;
    return 0;
}

INLINE void note_answered(FRAME *skb, u32 queue)
{
    (void)skb, (void)queue;
}

#include "syns.h"

enum { TAG = 4, TAG_AT = 12 };

// Copies the first bytes of a frame of `length` bytes, with the tag that lies beside it in its place; 0 if that cannot be.
INLINE int copy_frame(FRAME *skb, u8 *image, u32 length)
{
    u32 bytes = length < IMAGE - TAG ? length : IMAGE - TAG;

    if (length < ETHERNET + IPV4 + TCP || skb_load_bytes_relative(skb, 0, image, TAG_AT, HDR_START_MAC))
        return 0;
    bytes -= TAG_AT;
    asm volatile("" : "+r"(bytes));
    // The verifier does not know it any more: 1 at least, and no more than there is room for.
    bytes = bytes & 127;
    if (bytes < 1 || bytes > IMAGE - TAG - TAG_AT)
        return 0;
    if (!skb->vlan_present)
        return !skb_load_bytes_relative(skb, TAG_AT, image + TAG_AT, bytes, HDR_START_MAC);
    u32 protocol = skb->vlan_proto, control = skb->vlan_tci;
    put16(image + TAG_AT, __builtin_bswap16(protocol));
    put16(image + TAG_AT + 2, control);
    return !skb_load_bytes_relative(skb, TAG_AT, image + TAG_AT + TAG, bytes, HDR_START_MAC);
}

// Decides about a frame of the WAN of `length` bytes, and gives the answer a number that no other of this core has.
APART int answer(FRAME *skb, u32 length)
{
    u32 zero = 0;
    struct work *w = map_lookup_elem(&work, &zero);

    if (!w || !copy_frame(skb, w->image, length))
        return NOT_OURS;
    int decided = decide_stateless(skb, w, 0, length + (skb->vlan_present ? TAG : 0));
    if (decided == ANSWERED)
        w->ticket = (u32)ktime_get_boot_ns();
    return decided;
}

// Sends the answer with this number in the place of the frame, by the port it came by.
APART int send_answer(struct __sk_buff *skb, u32 ticket, u32 port)
{
    u32 zero = 0;
    struct work *w = map_lookup_elem(&work, &zero);

    if (!w || !w->ticket || (u32)w->ticket != ticket)
        return TC_ACT_SHOT;
    w->ticket = 0;
    u32 tag = skb->vlan_present ? TAG : 0, length = w->frame_length - tag;
    if (length > IMAGE || skb_change_tail(skb, length, 0))
        return TC_ACT_SHOT;
    u32 bytes = length - TAG_AT;
    asm volatile("" : "+r"(bytes));
    bytes = bytes & 127;
    if (bytes < 1 || bytes > IMAGE - TAG - TAG_AT || skb_store_bytes(skb, 0, w->image, TAG_AT, RECOMPUTE_CSUM))
        return TC_ACT_SHOT;
    if (tag ? skb_store_bytes(skb, TAG_AT, w->image + TAG_AT + TAG, bytes, RECOMPUTE_CSUM)
            : skb_store_bytes(skb, TAG_AT, w->image + TAG_AT, bytes, RECOMPUTE_CSUM))
        return TC_ACT_SHOT;
    return redirect_to(port, 0);
}
