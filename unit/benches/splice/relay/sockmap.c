// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//
// What comes for a socket of the map leaves by the socket that is entered as its peer; without one it stays where it is.

#include "kernel.h"

enum { MAP_TYPE_HASH = 1, MAP_TYPE_SOCKHASH = 18 };
enum { SK_PASS = 1 };
enum { CONNECTIONS = 1 << 16 };

struct __sk_buff;

static u64 (*const get_socket_cookie)(struct __sk_buff *skb) = (void *)46;
static long (*const sk_redirect_hash)(struct __sk_buff *skb, void *map, void *key, u64 flags) = (void *)72;

struct {
    ATTRIBUTE(type, MAP_TYPE_SOCKHASH);
    ATTRIBUTE(max_entries, CONNECTIONS);
    u64 *key;
    u32 *value;
} sockets SEC(".maps");

struct {
    ATTRIBUTE(type, MAP_TYPE_HASH);
    ATTRIBUTE(max_entries, CONNECTIONS);
    u64 *key;
    u64 *value;
} peers SEC(".maps");

SEC("sk_skb/stream_verdict") int verdict(struct __sk_buff *skb)
{
    u64 cookie = get_socket_cookie(skb);
    u64 *peer = map_lookup_elem(&peers, &cookie);

    return peer ? sk_redirect_hash(skb, &sockets, peer, 0) : SK_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
