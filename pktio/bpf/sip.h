// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//
// SipHash-1-3 over whole words, as `tcpstate/src/keyed.rs` defines it, and the hash that names a flow by it: `FlowKey::hash`.

INLINE u64 rotate(u64 x, int by)
{
    return x << by | x >> (64 - by);
}

INLINE void sip_round(u64 v[4])
{
    v[0] += v[1], v[1] = rotate(v[1], 13), v[1] ^= v[0], v[0] = rotate(v[0], 32);
    v[2] += v[3], v[3] = rotate(v[3], 16), v[3] ^= v[2];
    v[0] += v[3], v[3] = rotate(v[3], 21), v[3] ^= v[0];
    v[2] += v[1], v[1] = rotate(v[1], 17), v[1] ^= v[2], v[2] = rotate(v[2], 32);
}

INLINE void sip_word(u64 v[4], u64 word)
{
    v[3] ^= word;
    sip_round(v);
    v[0] ^= word;
}

// SipHash-1-3 of `count` words, up to five; the number is known when this is compiled. It is no loop, because clang half unrolls one and enters it in the
// middle, and the verifier of Linux 6.1 takes that for a loop without an end.
INLINE u64 siphash(u64 key0, u64 key1, const u64 *words, int count)
{
    u64 v[4] = {
        key0 ^ 0x736f6d6570736575,
        key1 ^ 0x646f72616e646f6d,
        key0 ^ 0x6c7967656e657261,
        key1 ^ 0x7465646279746573,
    };
    if (count > 5)
        __builtin_trap();
    if (count > 0)
        sip_word(v, words[0]);
    if (count > 1)
        sip_word(v, words[1]);
    if (count > 2)
        sip_word(v, words[2]);
    if (count > 3)
        sip_word(v, words[3]);
    if (count > 4)
        sip_word(v, words[4]);
    sip_word(v, (u64)count << 59);
    v[2] ^= 0xff;
#pragma unroll
    for (int i = 0; i < 3; i++)
        sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

// Both ports as a word of the hash, the LAN's first.
INLINE u64 ports_of(int is_wan, const u8 *tcp)
{
    u64 source = be16(tcp), destination = be16(tcp + 2);
    return is_wan ? destination << 48 | source << 32 : source << 48 | destination << 32;
}

// Names the flow of a segment that came from the WAN, or from the LAN: of IPv4, whose addresses lie here, the source's first; `vlan` is the network
// that its tags name, 0 without tags.
INLINE u64 name_v4(u64 key0, u64 key1, int is_wan, u32 vlan, const u8 *addresses, const u8 *tcp)
{
    u64 source = be32(addresses), destination = be32(addresses + 4);
    u64 words[2] = { is_wan ? destination << 32 | source : source << 32 | destination, ports_of(is_wan, tcp) | vlan };
    return siphash(key0, key1, words, 2);
}

// The same for IPv6.
INLINE u64 name_v6(u64 key0, u64 key1, int is_wan, u32 vlan, const u8 *addresses, const u8 *tcp)
{
    u64 words[5];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        u64 source = be32(addresses + 4 * i), destination = be32(addresses + 16 + 4 * i);
        words[i] = is_wan ? destination << 32 | source : source << 32 | destination;
    }
    words[4] = ports_of(is_wan, tcp) | vlan;
    return siphash(key0, key1, words, 5);
}
