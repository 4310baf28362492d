// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//
// Answers SYNs in the XDP program (syns.h): in place, and the frame goes back by the port that it came by.

enum { IMAGE = 0 };
#define LACKS(at, bytes) ((at) + (bytes) > end)

#define FIRST_OF(ctx, w) ((u8 *)(long)(ctx)->data)
#define END_OF(ctx, w) ((u8 *)(long)(ctx)->data_end)

INLINE int resize(FRAME *ctx, int by)
{
    return adjust_tail(ctx, by);
}

INLINE void note_answered(FRAME *ctx, u32 queue)
{
    if (sheds) {
        struct control *sampling = map_lookup_elem(&control, &queue);
        if (sampling)
            sample_answered(ctx, sampling);
    }
}

#include "syns.h"

// Set by the loader: whether answers leave by a redirect to this port itself. A veth wakes its other end for a frame that is sent back only if that has an
// XDP program, and for one that is redirected also if it has GRO.
volatile const u32 answers_by_redirect = 0;

struct {
    ATTRIBUTE(type, MAP_TYPE_DEVMAP);
    ATTRIBUTE(max_entries, 1);
    u32 *key;
    u32 *value;
} own_port SEC(".maps");

// What becomes of a frame that the program decides on; NOT_OURS if it does not.
APART int decide(struct xdp_md *ctx, u32 queue)
{
    u8 *data = (u8 *)(long)ctx->data;
    u8 *end = (u8 *)(long)ctx->data_end;
    u32 zero = 0;
    volatile struct work *w = map_lookup_elem(&work, &zero);

    int decided = w ? decide_stateless(ctx, w, queue, end - data) : NOT_OURS;
    return decided == ANSWERED ? XDP_TX : decided == UNASKED_FOR ? XDP_DROP : NOT_OURS;
}
