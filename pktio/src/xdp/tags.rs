//! Puts VLAN tags that a veth hands over beside the frame into the frame, before the XDP program sees it.
//!
//! The kernel tells an XDP program of such a tag by a function of its own (`bpf_xdp_metadata_rx_vlan_tag`, Linux 6.8), which only a program
//! that is bound to its device may call. The compiled program cannot name that function, so its instructions are put behind those that are
//! assembled here.

use std::fs;
use std::io;

/// Where the kernel describes its own types and functions.
const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// The function that tells of a tag.
const VLAN_TAG: &[u8] = b"bpf_xdp_metadata_rx_vlan_tag";

// linux/bpf.h
const CALL_KERNEL: u8 = 2;
const ADJUST_HEAD: i32 = 44;
const XDP_DROP: i32 = 1;
const XDP_PASS: i32 = 2;

// Codes of instructions: registers and immediates are moved, added, loaded (by 2 or 4 bytes) and stored.
const MOVE: u8 = 0xbf;
const MOVE_IMMEDIATE: u8 = 0xb7;
const ADD_IMMEDIATE: u8 = 0x07;
const LOAD_4: u8 = 0x61;
const LOAD_2: u8 = 0x69;
const STORE_4: u8 = 0x63;
const STORE_2: u8 = 0x6b;
const STORE_IMMEDIATE_8: u8 = 0x7a;
const TO_BIG_ENDIAN: u8 = 0xdc;
const JUMP: u8 = 0x05;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const JUMP_NOT_ZERO: u8 = 0x55;
const JUMP_GREATER: u8 = 0x2d;
/// The register of the stack's end.
const STACK: u8 = 10;
/// Where on the stack a tag's parts are.
const PROTOCOL: i16 = -8;
const TCI: i16 = -16;

/// Asks for the tag of the context in register 1, which is in register 6 then; register 0 is zero if there is one.
fn ask(function: i32) -> [u64; 8] {
    [
        instruction(MOVE, 6, 1, 0, 0),
        instruction(STORE_IMMEDIATE_8, STACK, 0, PROTOCOL, 0),
        instruction(STORE_IMMEDIATE_8, STACK, 0, TCI, 0),
        instruction(MOVE, 2, STACK, 0, 0),
        instruction(ADD_IMMEDIATE, 2, 0, 0, PROTOCOL as i32),
        instruction(MOVE, 3, STACK, 0, 0),
        instruction(ADD_IMMEDIATE, 3, 0, 0, TCI as i32),
        instruction(CALL, 0, CALL_KERNEL, 0, function),
    ]
}

/// The instructions that put a tag into the frame; those of the program that goes on with it are to follow.
///
/// # Errors
///
/// When the kernel does not tell of tags.
pub(super) fn prelude() -> io::Result<Vec<u64>> {
    Ok(assemble(vlan_tag()? as i32))
}

/// The instructions that pass a frame on with a tag beside it; those of the program for all others are to follow.
///
/// # Errors
///
/// When the kernel does not tell of tags.
pub(super) fn untagged_only() -> io::Result<Vec<u64>> {
    let ask = ask(vlan_tag()? as i32);
    let rest = [
        instruction(JUMP_NOT_ZERO, 0, 0, 2, 0),
        instruction(MOVE_IMMEDIATE, 0, 0, 0, XDP_PASS),
        instruction(EXIT, 0, 0, 0, 0),
        instruction(MOVE, 1, 6, 0, 0),
    ];
    Ok([&ask[..], &rest].concat())
}

/// The number of the kernel's function.
fn vlan_tag() -> io::Result<u32> {
    function_id(&fs::read(KERNEL_BTF)?, VLAN_TAG)
        .ok_or_else(|| io::Error::new(io::ErrorKind::Unsupported, "this kernel tells no XDP program of tags"))
}

/// One instruction.
pub(super) fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> u64 {
    let [c, d] = offset.to_ne_bytes();
    let registers = if cfg!(target_endian = "little") { from << 4 | to } else { to << 4 | from };
    let [e, f, g, h] = immediate.to_ne_bytes();
    u64::from_ne_bytes([code, registers, c, d, e, f, g, h])
}

/// The program:
///
/// ```text
/// if (vlan_tag(ctx, &protocol, &tci) == 0) {
///     if (adjust_head(ctx, -4) || ctx->data + 16 > ctx->data_end)
///         return XDP_DROP;
///     memmove(data, data + 4, 12);
///     data[12..14] = protocol;
///     data[14..16] = htons(tci);
/// }
/// ```
///
/// What follows finds its context where a program finds it at its begin.
fn assemble(function: i32) -> Vec<u64> {
    // How many instructions lie between a jump and where it goes.
    const TO_TAIL: i16 = 23;
    const TO_DROP: [i16; 2] = [17, 12];
    let rest = [
        instruction(JUMP_NOT_ZERO, 0, 0, TO_TAIL, 0),
        instruction(MOVE, 1, 6, 0, 0),
        instruction(MOVE_IMMEDIATE, 2, 0, 0, -4),
        instruction(CALL, 0, 0, 0, ADJUST_HEAD),
        instruction(JUMP_NOT_ZERO, 0, 0, TO_DROP[0], 0),
        instruction(LOAD_4, 7, 6, 0, 0),
        instruction(LOAD_4, 8, 6, 4, 0),
        instruction(MOVE, 1, 7, 0, 0),
        instruction(ADD_IMMEDIATE, 1, 0, 0, 16),
        instruction(JUMP_GREATER, 1, 8, TO_DROP[1], 0),
        instruction(LOAD_4, 1, 7, 4, 0),
        instruction(STORE_4, 7, 1, 0, 0),
        instruction(LOAD_4, 1, 7, 8, 0),
        instruction(STORE_4, 7, 1, 4, 0),
        instruction(LOAD_4, 1, 7, 12, 0),
        instruction(STORE_4, 7, 1, 8, 0),
        instruction(LOAD_2, 1, STACK, PROTOCOL, 0),
        instruction(STORE_2, 7, 1, 12, 0),
        instruction(LOAD_2, 1, STACK, TCI, 0),
        instruction(TO_BIG_ENDIAN, 1, 0, 0, 16),
        instruction(STORE_2, 7, 1, 14, 0),
        instruction(JUMP, 0, 0, 2, 0),
        // The drop.
        instruction(MOVE_IMMEDIATE, 0, 0, 0, XDP_DROP),
        instruction(EXIT, 0, 0, 0, 0),
        // The tail.
        instruction(MOVE, 1, 6, 0, 0),
    ];
    [&ask(function)[..], &rest].concat()
}

/// The number by which the kernel's type information names this function; `None` when it has none of this name.
fn function_id(btf: &[u8], name: &[u8]) -> Option<u32> {
    const FUNCTION: u32 = 12;
    let word = |at: usize| btf.get(at..)?.first_chunk().map(|word| u32::from_ne_bytes(*word));
    // Magic, version, flags; then the header's length, and offset and length of types and of strings, from the header's end.
    let header = word(4)? as usize;
    let [types, types_length, strings, strings_length] = [8, 12, 16, 20].map(word);
    let (types, strings) = (header + types? as usize, header + strings? as usize);
    let end = types + types_length? as usize;
    let strings = btf.get(strings..strings + strings_length? as usize)?;
    let (mut at, mut id) = (types, 1);
    while at < end {
        let (name_at, info) = (word(at)? as usize, word(at + 4)?);
        let (kind, count) = (info >> 24 & 0x1f, info as usize & 0xffff);
        if kind == FUNCTION && strings.get(name_at..)?.strip_prefix(name).is_some_and(|rest| rest.first() == Some(&0)) {
            return Some(id);
        }
        // What follows the three words of each type.
        at += 12
            + match kind {
                // An integer, a variable, a tag of a declaration.
                1 | 14 | 17 => 4,
                // An array.
                3 => 12,
                // Members of a structure, a union, a section, an enumeration of 64 bits.
                4 | 5 | 15 | 19 => 12 * count,
                // An enumeration, parameters.
                6 | 13 => 8 * count,
                _ => 0,
            };
        id += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Type information with these types behind the void one, and these names.
    fn btf(types: &[&[u32]], names: &[u8]) -> Vec<u8> {
        let types: Vec<u8> = types.concat().iter().flat_map(|word| word.to_ne_bytes()).collect();
        let lengths = [24, 0, types.len() as u32, types.len() as u32, names.len() as u32];
        let header = [&[0x9f, 0xeb, 1, 0][..], &lengths.map(u32::to_ne_bytes).concat()].concat();
        [header, types, names.to_vec()].concat()
    }

    #[test]
    fn a_function_is_found_behind_types_of_every_length() {
        let names = b"\0tag\0tags\0";
        let types: [&[u32]; 9] = [
            &[0, 1 << 24, 4, 0],
            &[0, 2 << 24, 1],
            &[0, 3 << 24, 0, 1, 1, 4],
            &[0, 4 << 24 | 2, 8, 0, 1, 0, 0, 1, 32],
            &[0, 13 << 24 | 1, 0, 0, 1],
            // A function of another name, a variable of the same, and the function.
            &[5, 12 << 24, 5],
            &[1, 14 << 24, 1, 0],
            &[1, 12 << 24, 5],
            &[0, 17 << 24, 1, 0],
        ];
        assert_eq!(function_id(&btf(&types, names), b"tag"), Some(8));
        assert_eq!(function_id(&btf(&types, names), b"tags"), Some(6));
        assert_eq!(function_id(&btf(&types, names), b"ta"), None);
        assert_eq!(function_id(&btf(&types[..6], names), b"tag"), None);
        assert_eq!(function_id(&[], b"tag"), None);
    }

    #[test]
    fn jumps_go_where_the_comments_say() {
        let program = assemble(77);
        let field = |at: usize, shift: u32, mask: u64| (u64::from_le(program[at]) >> shift & mask) as usize;
        let target = |at: usize| at + 1 + field(at, 16, 0xffff);
        let (drop, tail) = (program.len() - 3, program.len() - 1);
        assert_eq!([target(8), target(12), target(17), target(29)], [tail, drop, drop, tail]);
        assert_eq!(field(7, 32, 0xffff_ffff), 77);
    }

    proptest! {
        #[test]
        fn no_type_information_makes_it_panic(
            kinds in prop::collection::vec(any::<u32>(), 0..60), cut in 0usize..300, names in prop::collection::vec(any::<u8>(), 0..9),
        ) {
            let mut bytes = btf(&[&kinds], &names);
            bytes.truncate(cut);
            function_id(&bytes, b"tag");
        }
    }
}
