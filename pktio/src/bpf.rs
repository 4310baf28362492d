//! The calls of `bpf(2)` that the library which makes the maps does not offer: programs that are bound to a device, and their numbers.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

// linux/bpf.h
const PROG_LOAD: libc::c_long = 5;
const PROG_TEST_RUN: libc::c_long = 10;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const LINK_CREATE: libc::c_long = 28;
const PROG_TYPE_XDP: u32 = 6;
const ATTACH_XDP: u32 = 37;
const HAS_FRAGS: u32 = 1 << 5;
const DEV_BOUND_ONLY: u32 = 1 << 6;
/// The verifier's statistics, and why it refuses a program. Every state it went through would take megabytes.
const LOG_STATS: u32 = 4;

/// Bytes for the verifier's log.
const LOG: usize = 64 << 10;

/// The attributes of `BPF_PROG_LOAD`, up to the last one that is used.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    ifindex: u32,
    attach_type: u32,
}

/// The attributes of `BPF_LINK_CREATE`.
#[repr(C)]
struct Link {
    program: u32,
    ifindex: u32,
    attach_type: u32,
    flags: u32,
}

/// The attributes of `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct Information {
    fd: u32,
    length: u32,
    information: u64,
}

/// The attributes of `BPF_PROG_TEST_RUN`, up to the last one that is used.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    result: u32,
    length_in: u32,
    length_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

/// How an XDP program is loaded.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct How {
    /// The interface to which it is bound, as a program must be that asks for what the device says of a frame.
    pub bound_to: Option<u32>,
    /// Whether it takes frames in several buffers.
    pub has_frags: bool,
}

/// Loads an XDP program. `name` is cut at 15 bytes.
///
/// # Errors
///
/// Those of `bpf(2)`; the verifier's last line is in the text if it refuses the program.
pub(crate) fn load_xdp(instructions: &[u64], name: &str, how: How) -> io::Result<OwnedFd> {
    let license = c"Dual BSD/GPL";
    let mut bytes = [0; 16];
    let length = name.len().min(15);
    bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
    let mut attributes = Load {
        kind: PROG_TYPE_XDP,
        count: instructions.len() as u32,
        instructions: instructions.as_ptr().expose_provenance() as u64,
        license: license.as_ptr().expose_provenance() as u64,
        flags: if how.bound_to.is_some() { DEV_BOUND_ONLY } else { 0 } | if how.has_frags { HAS_FRAGS } else { 0 },
        name: bytes,
        ifindex: how.bound_to.unwrap_or(0),
        // Kernels before 5.9 know no such type, and need none.
        attach_type: if how.bound_to.is_some() { ATTACH_XDP } else { 0 },
        ..Load::default()
    };
    // SAFETY: the instructions and the licence outlive the call, and the kernel only reads them.
    let error = match unsafe { descriptor(PROG_LOAD, &attributes) } {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EACCES | libc::E2BIG)) => error,
        result => return result,
    };
    let mut log = vec![0_u8; LOG];
    (attributes.log_level, attributes.log_size) = (LOG_STATS, LOG as u32);
    attributes.log = log.as_mut_ptr().expose_provenance() as u64;
    // SAFETY: as above, and the kernel writes at most as many bytes of the log as it has.
    let again = unsafe { descriptor(PROG_LOAD, &attributes) };
    let log = String::from_utf8_lossy(&log).into_owned();
    let said = log.trim_end_matches('\0').lines().find(|line| !line.is_empty() && !line.starts_with("processed"));
    again.map_err(|_| match said {
        Some(line) if error.raw_os_error() != Some(libc::EPERM) => io::Error::other(format!("{error}: {line}")),
        _ => error,
    })
}

/// Attaches an XDP program by a link, which detaches it when it is closed. `flags` name the mode (`XDP_FLAGS_*`).
///
/// # Errors
///
/// Those of `bpf(2)`; `EINVAL` before Linux 5.9, which has no such links.
pub(crate) fn link_xdp(program: BorrowedFd<'_>, ifindex: u32, flags: u32) -> io::Result<OwnedFd> {
    let attributes = Link { program: program.as_raw_fd() as u32, ifindex, attach_type: ATTACH_XDP, flags };
    // SAFETY: the attributes hold no pointer.
    unsafe { descriptor(LINK_CREATE, &attributes) }
}

/// The number of a program.
///
/// # Errors
///
/// Those of `bpf(2)`.
pub(crate) fn id_of(program: BorrowedFd<'_>) -> io::Result<u32> {
    // The first words of `struct bpf_prog_info`: type and number.
    let mut information = [0_u32; 2];
    let attributes = Information {
        fd: program.as_raw_fd() as u32,
        length: size_of_val(&information) as u32,
        information: information.as_mut_ptr().expose_provenance() as u64,
    };
    // SAFETY: the kernel writes at most as many bytes as we say, and every value of them is valid.
    unsafe { call(OBJ_GET_INFO_BY_FD, &attributes) }?;
    Ok(information[1])
}

/// Runs a program once with a frame: its result, and what it made of the frame.
///
/// # Errors
///
/// Those of `bpf(2)`.
pub(crate) fn test_run(program: BorrowedFd<'_>, frame: &[u8]) -> io::Result<(u32, Vec<u8>)> {
    let mut out = vec![0_u8; frame.len() + 256];
    let mut attributes = TestRun {
        program: program.as_raw_fd() as u32,
        length_in: frame.len() as u32,
        length_out: out.len() as u32,
        data_in: frame.as_ptr().expose_provenance() as u64,
        data_out: out.as_mut_ptr().expose_provenance() as u64,
        repeat: 1,
        ..TestRun::default()
    };
    // SAFETY: the kernel reads the frame and writes at most as many bytes of `out` as it has; and it writes its answers into the attributes, which nothing
    // else uses meanwhile.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, PROG_TEST_RUN, std::ptr::from_mut(&mut attributes), size_of::<TestRun>())
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    out.truncate(attributes.length_out as usize);
    Ok((attributes.result, out))
}

/// A call that makes a descriptor.
///
/// # Safety
///
/// As [`call`].
unsafe fn descriptor<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: guaranteed by the caller.
    let fd = unsafe { call(command, attributes) }?;
    // SAFETY: the descriptor was just made and belongs to nothing else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `bpf(2)`.
///
/// # Safety
///
/// The attributes are those of the command, and what they point to is valid for it.
unsafe fn call<T>(command: libc::c_long, attributes: &T) -> io::Result<libc::c_int> {
    // SAFETY: guaranteed by the caller; the kernel takes attributes that it knows and that are missing here as zero.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    libc::c_int::try_from(result).ok().filter(|result| *result >= 0).ok_or_else(io::Error::last_os_error)
}

#[cfg(test)]
mod tests {
    use aya_obj::Object;
    use aya_obj::generated::bpf_insn;

    const CALL: u8 = 0x85;
    const EXIT: u8 = 0x95;
    const WIDE: u8 = 0x18;
    const GOTO: u8 = 0x05;
    /// The classes `BPF_JMP` and `BPF_JMP32`.
    const JUMPS: [u8; 2] = [5, 6];

    /// Where the verifier of Linux 6.1 (`check_cfg`, `push_insn`) finds the end of a loop that it does not take: an instruction that is no jump, behind which lies
    /// one that it is still following.
    fn loops_entered_in_the_middle(text: &[bpf_insn]) -> Vec<usize> {
        #[derive(Clone, Copy, PartialEq)]
        enum Seen {
            No,
            Followed,
            Done,
        }
        let (mut seen, mut branch, mut found) = (vec![Seen::No; text.len()], vec![0; text.len()], Vec::new());
        let mut path = vec![0];
        seen[0] = Seen::Followed;
        while let Some(&at) = path.last() {
            let instruction = &text[at];
            let target = (at as i64 + 1 + i64::from(instruction.off)) as usize;
            let is_jump = JUMPS.contains(&(instruction.code & 7)) && ![CALL, EXIT].contains(&instruction.code);
            let next = match instruction.code {
                EXIT => [None, None],
                GOTO => [Some(target), None],
                WIDE => [Some(at + 2), None],
                _ if is_jump => [Some(at + 1), Some(target)],
                _ => [Some(at + 1), None],
            };
            let Some(next) = next.get(branch[at]).copied().flatten() else {
                seen[at] = Seen::Done;
                path.pop();
                continue;
            };
            branch[at] += 1;
            match seen[next] {
                Seen::No => {
                    seen[next] = Seen::Followed;
                    path.push(next);
                }
                Seen::Followed if !is_jump => found.push(at),
                _ => {}
            }
        }
        found
    }

    #[test]
    fn older_verifiers_take_every_loop() {
        let objects: [&[u8]; 3] = [
            aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/redirect.o")),
            aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/pass.o")),
            aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/host.o")),
        ];
        for bytes in objects {
            let object = Object::parse(bytes).expect("it is compiled");
            assert!(!object.functions.is_empty());
            for function in object.functions.values() {
                let found = loops_entered_in_the_middle(&function.instructions);
                assert!(found.is_empty(), "{}: behind instructions {found:?}", function.name);
            }
        }
        // 0: goto 2; 1: r0 = 0; 2: if r0 != 0 goto 1; 3: exit. And the same with a jump at the end of the loop.
        let instruction =
            |code, off| bpf_insn { code, off, imm: 0, _bitfield_align_1: [], _bitfield_1: Default::default() };
        let middle = [instruction(GOTO, 1), instruction(0xb7, 0), instruction(0x55, -2), instruction(EXIT, 0)];
        assert_eq!(loops_entered_in_the_middle(&middle), [1]);
        let end = [instruction(0xb7, 0), instruction(0xb7, 0), instruction(0x55, -2), instruction(EXIT, 0)];
        assert!(loops_entered_in_the_middle(&end).is_empty());
    }
}
