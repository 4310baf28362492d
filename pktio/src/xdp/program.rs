//! The XDP program: loaded, attached to an interface, and told which sockets to redirect to.

use std::error::Error;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use aya::maps::{DevMap, Map, PerCpuArray, ProgramArray, RingBuf, XskMap};
use aya::programs::{Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};

use super::layout::{BUSY_PATIENCE, BUSY_STEP, Layout};
use super::refusal::{Refusal, chain, os_error};
use super::samples::ShedSamples;
use super::shed::{ShedMaps, random_key};
use super::tags::TagProgram;
use crate::netdev::Interface;
use crate::options::Fallback;
use tracing::debug;

/// The XDP program, compiled by the build script. Aligned, since the loader reads ELF headers in place.
static PROGRAM: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/redirect.o"));

/// The least ring that the kernel makes, in bytes: it rounds up to pages.
const PAGE: u32 = 4096;

/// The XDP program on one interface; dropping this detaches it.
pub(crate) struct AttachedProgram {
    /// The program runs in driver mode.
    pub driver: bool,
    /// The attachment of the program in front of it that puts tags into frames, where there is one. Dropped first.
    tags: Option<OwnedFd>,
    ebpf: Ebpf,
    name: &'static str,
    /// The maps of its shed filter, if it has one.
    shed: Option<Arc<ShedMaps>>,
}

impl fmt::Debug for AttachedProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AttachedProgram").field("driver", &self.driver).field("program", &self.name).finish()
    }
}

impl AttachedProgram {
    /// Loads the program and attaches it to `interface`, in driver mode or in generic mode. The `other` port is
    /// where frames go with [`Fallback::Bypass`]. With `sheds` the program has a shed filter.
    ///
    /// # Errors
    ///
    /// The error of the kernel or of the library.
    pub(crate) fn new(
        interface: &Interface,
        other: &Interface,
        driver: bool,
        layout: &Layout,
        fallback: Fallback,
        sheds: bool,
    ) -> Result<AttachedProgram, Refusal> {
        fn failed(error: impl Error + 'static) -> Refusal {
            Refusal::failed(error)
        }
        let bypass = u32::from(fallback == Fallback::Bypass);
        let queues = u32::try_from(layout.workers.max(1)).expect("a queue is a 32-bit number");
        let key = if sheds { random_key().map_err(failed)? } else { [0; 2] };
        let shedding = u32::from(sheds);
        let mut loader = EbpfLoader::new();
        // Why it refuses a program, and not every state it went through: that takes megabytes, and the library tries again and again with
        // more room for it, for minutes.
        loader.verifier_log_level(VerifierLogLevel::STATS);
        if !sheds {
            // The program does not look at them then.
            loader.map_max_entries("proved", 1).map_max_entries("recent", 1).map_max_entries("samples", PAGE);
        }
        let mut ebpf = loader
            .override_global("fail_open", &bypass, true)
            .override_global("owned_queues", &queues, true)
            .override_global("sheds", &shedding, true)
            .override_global("key0", &key[0], true)
            .override_global("key1", &key[1], true)
            .map_max_entries("control", queues)
            .map_max_entries("sockets", queues)
            .load(PROGRAM)
            .map_err(failed)?;
        let name = if layout.multi_buffer { "redirect_frags" } else { "redirect" };
        if fallback == Fallback::Bypass {
            let map = ebpf.map_mut("other_port").ok_or_else(|| Refusal::Failed("the program lacks its map".into()))?;
            let mut map = DevMap::try_from(map).map_err(failed)?;
            map.set(0, other.index(), None, 0).map_err(failed)?;
        }
        let program = xdp_program(&mut ebpf, name)?;
        program.load().map_err(failed)?;
        let front = match driver && interface.hides_tags() {
            true => front_program(&mut ebpf, name, interface, layout)
                .map_err(|error| debug!("{}: tags beside the frames are lost: {error}", interface.name()))
                .ok(),
            false => None,
        };
        let tags = front.and_then(|front| patiently(|| front.attach().map_err(Box::from)).ok());
        if tags.is_none() {
            let mode = if driver { XdpMode::Driver } else { XdpMode::Skb };
            let program = xdp_program(&mut ebpf, name)?;
            patiently(|| program.attach_to_if_index(interface.index(), mode).map(drop).map_err(Box::from))
                .map_err(|error| attach_refusal(&*error, interface))?;
        }
        let shed = match sheds {
            true => Some(Arc::new(ShedMaps::of(&ebpf, layout.workers, key).map_err(failed)?)),
            false => None,
        };
        Ok(AttachedProgram { driver, tags, ebpf, name, shed })
    }

    /// Whether tags that the other end hands over beside its frames are lost.
    pub(crate) fn loses_tags(&self, interface: &Interface) -> bool {
        interface.hides_tags() && self.tags.is_none()
    }

    /// The maps of the shed filter, if the program was loaded with one.
    pub(super) fn shed_maps(&self) -> Option<&Arc<ShedMaps>> {
        self.shed.as_ref()
    }

    /// The samples of the SYNs that the shed filter drops, the first time.
    pub(crate) fn take_shed_samples(&mut self) -> Option<ShedSamples> {
        let maps = self.shed.as_ref()?;
        let ring = RingBuf::try_from(self.ebpf.take_map("samples")?);
        ring.map(|ring| ShedSamples::new(ring, Arc::clone(maps)))
            .inspect_err(|error| debug!("what is shed is not sampled: {error}"))
            .ok()
    }

    /// Redirects the frames of `queue` to the socket `fd`.
    pub(super) fn redirect(&mut self, queue: u32, fd: RawFd) -> Result<(), String> {
        let map = self.ebpf.map_mut("sockets").ok_or("the program lacks its map")?;
        let mut map = XskMap::try_from(map).map_err(|e| chain(&e))?;
        map.set(queue, fd, 0).map_err(|e| chain(&e))
    }

    /// Frames that had no socket since the program was attached: those of queues that no worker owns, and those that came to a
    /// worker's queue before its socket was there, or after.
    pub(crate) fn unclaimed(&self) -> [u64; 2] {
        let count = |index| {
            let map = PerCpuArray::<_, u64>::try_from(self.ebpf.map("unclaimed")?).ok()?;
            Some(map.get(&index, 0).ok()?.iter().sum())
        };
        [0, 1].map(|index| count(index).unwrap_or(0))
    }
}

/// The program of this name.
fn xdp_program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp, Refusal> {
    let program = ebpf.program_mut(name).ok_or_else(|| Refusal::Failed("the program is missing".into()))?;
    program.try_into().map_err(|error: aya::programs::ProgramError| Refusal::failed(error))
}

/// The program that puts tags into the frames in front of the loaded program `name`, for an interface whose peer leaves them to the device.
fn front_program(
    ebpf: &mut Ebpf,
    name: &str,
    interface: &Interface,
    layout: &Layout,
) -> Result<TagProgram, Box<dyn Error>> {
    let Some(Map::ProgramArray(next)) = ebpf.map("next") else { return Err("the program lacks its map".into()) };
    let front = TagProgram::load(interface.index(), next.fd().as_fd(), layout.multi_buffer)?;
    let behind = xdp_program(ebpf, name).map_err(|refusal| refusal.to_string())?.fd()?.try_clone()?;
    let next = ebpf.map_mut("next").ok_or("the program lacks its map")?;
    ProgramArray::try_from(next)?.set(0, &behind, 0)?;
    Ok(front)
}

/// Attaches a program. That of a process that has just ended may still be attached for a moment.
fn patiently<T>(mut attach: impl FnMut() -> Result<T, Box<dyn Error>>) -> Result<T, Box<dyn Error>> {
    let begin = Instant::now();
    loop {
        match attach() {
            Err(e) if os_error(&*e) == Some(libc::EBUSY) && begin.elapsed() < BUSY_PATIENCE => thread::sleep(BUSY_STEP),
            result => return result,
        }
    }
}

fn attach_refusal(error: &(dyn Error + 'static), interface: &Interface) -> Refusal {
    let name = interface.name();
    match os_error(error) {
        Some(libc::EBUSY | libc::EEXIST) => Refusal::Busy {
            what: format!("another XDP program is attached to {name}"),
            hint: format!("end the process that did it, or detach it with `ip link set dev {name} xdp off`"),
        },
        Some(libc::EOPNOTSUPP) => Refusal::Unsupported("the driver has no XDP".into()),
        Some(libc::ERANGE) => Refusal::Unsupported(format!("the driver has no XDP for an MTU of {}", interface.mtu())),
        Some(libc::ENOSPC) => Refusal::Unsupported("the driver has too few queues for XDP".into()),
        Some(code @ (libc::EMFILE | libc::ENFILE)) => Refusal::Descriptors(std::io::Error::from_raw_os_error(code)),
        _ => Refusal::Failed(chain(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::shed::ShedLevel;
    use aya::programs::{TestRun, TestRunOptions};

    /// The program as the WAN port loads it, not attached to an interface. Loading it takes root.
    fn program() -> (Ebpf, ShedMaps) {
        let key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
        let mut ebpf = EbpfLoader::new()
            .override_global("sheds", &1u32, true)
            .override_global("key0", &key[0], true)
            .override_global("key1", &key[1], true)
            .load(PROGRAM)
            .expect("the program is sound");
        let maps = ShedMaps::of(&ebpf, 1, key).expect("the maps can be mapped");
        let program: &mut Xdp = ebpf.program_mut("redirect").expect("it is there").try_into().expect("it is XDP");
        program.load().expect("the verifier accepts it");
        (ebpf, maps)
    }

    /// A frame's first bytes: addresses, tags, and an IPv4 segment with `options` bytes of IP options.
    fn v4(tags: &[u16], options: usize, source: [u8; 4], seq: u32, flags: u8) -> Vec<u8> {
        let mut frame = vec![2; 12];
        tags.iter().for_each(|tag| frame.extend([(tag >> 8) as u8, *tag as u8, 0, 7]));
        frame.extend([8, 0, 0x45 + (options / 4) as u8, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0]);
        frame.extend([&source[..], &[10, 0, 0, 1]].concat());
        frame.resize(frame.len() + options, 1);
        frame.extend(tcp(seq, flags));
        frame
    }

    /// An IPv6 segment behind these extension headers.
    fn v6(headers: &[u8], source: u8, seq: u32, flags: u8) -> Vec<u8> {
        let mut frame = vec![2; 12];
        let next = *headers.first().unwrap_or(&6);
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 60, next, 64]);
        frame.extend([[0x20; 16], [0x21; 16]].concat());
        frame[14 + 8 + 15] = source;
        for at in 0..headers.len() {
            frame.extend([*headers.get(at + 1).unwrap_or(&6), 1]);
            frame.extend([0; 14]);
        }
        frame.extend(tcp(seq, flags));
        frame
    }

    fn tcp(seq: u32, flags: u8) -> Vec<u8> {
        let mut tcp = vec![0x9c, 0x40, 0, 80];
        tcp.extend(seq.to_be_bytes());
        tcp.extend([0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        tcp
    }

    const SYN: u8 = 2;

    /// The SYNs among these frames that the program dropped: fresh ones and repeated ones.
    fn dropped(ebpf: &Ebpf, maps: &ShedMaps, frames: &[Vec<u8>]) -> (u64, u64) {
        let before = maps.dropped(0);
        let program: &Xdp = ebpf.program("redirect").expect("it is there").try_into().expect("it is XDP");
        for frame in frames {
            let options = TestRunOptions { data_in: Some(frame), repeat: 1, ..TestRunOptions::default() };
            program.test_run(options).expect("it can be run");
        }
        let after = maps.dropped(0);
        (after[0] - before[0], after[1] - before[1])
    }

    #[test]
    fn the_verifier_is_soon_done_with_the_program() {
        let (ebpf, _maps) = program();
        let program: &Xdp = ebpf.program("redirect").expect("it is there").try_into().expect("it is XDP");
        let information = program.info().expect("the kernel has it");
        // A start waits for it: a million instructions, which is also the kernel's limit, took seconds.
        let verified = information.verified_instruction_count().expect("known since Linux 5.16");
        assert!(verified < 50_000, "{verified} instructions");
    }

    #[test]
    fn the_program_drops_syns_and_nothing_else() {
        let (ebpf, maps) = program();
        let syns = [
            v4(&[], 0, [192, 0, 2, 1], 1, SYN),
            v4(&[], 40, [192, 0, 2, 1], 2, SYN),
            v4(&[0x8100], 0, [192, 0, 2, 1], 3, SYN),
            v4(&[0x88a8, 0x8100], 8, [192, 0, 2, 1], 4, SYN),
            // An ECN-setup SYN is a SYN as well.
            v4(&[], 0, [192, 0, 2, 1], 5, SYN | 0xc0),
            v6(&[], 1, 6, SYN),
            v6(&[0, 60, 43], 1, 7, SYN),
        ];
        assert_eq!(dropped(&ebpf, &maps, &syns), (0, 0), "shedding is off");
        maps.set_level(0, ShedLevel::Fresh(0));
        assert_eq!(dropped(&ebpf, &maps, &syns), (syns.len() as u64, 0));

        let mut others: Vec<Vec<u8>> =
            [0x10, 0x12, 0x04, 0x11, 0x18, 0x03, 0x06, 0].map(|flags| v4(&[], 0, [192, 0, 2, 1], 9, flags)).into();
        others.push(v4(&[0x8100, 0x8100, 0x8100], 0, [192, 0, 2, 1], 9, SYN));
        others.push(v6(&[0, 60, 43, 60], 1, 9, SYN));
        others.push(v6(&[51], 1, 9, SYN));
        let mut udp = v4(&[], 0, [192, 0, 2, 1], 9, SYN);
        udp[23] = 17;
        let mut later = v4(&[], 0, [192, 0, 2, 1], 9, SYN);
        later[21] = 1;
        let mut arp = v4(&[], 0, [192, 0, 2, 1], 9, SYN);
        arp[13] = 6;
        let mut short = v4(&[], 0, [192, 0, 2, 1], 9, SYN);
        short[14] = 0x44;
        others.extend([udp, later, arp, short]);
        assert_eq!(dropped(&ebpf, &maps, &others), (0, 0));
    }

    #[test]
    fn dropped_syns_are_sampled_with_their_addresses_and_how_many_they_stand_for() {
        let (mut ebpf, maps) = program();
        let maps = Arc::new(maps);
        maps.set_level(0, ShedLevel::Fresh(0));
        let ring = RingBuf::try_from(ebpf.take_map("samples").expect("it is there")).expect("it can be mapped");
        let mut samples = ShedSamples::new(ring, Arc::clone(&maps));
        let read = |samples: &mut ShedSamples| {
            let mut all = Vec::new();
            samples.read(|sample| all.push(sample));
            all
        };
        maps.set_every(1);
        let syns = [v4(&[7], 0, [192, 0, 2, 1], 1, SYN), v6(&[], 1, 6, SYN), v4(&[], 0, [192, 0, 2, 9], 9, 0x10)];
        assert_eq!(dropped(&ebpf, &maps, &syns), (1, 0), "an unknown type, a SYN, and an ACK");
        let syns = [v4(&[0x8100], 0, [192, 0, 2, 1], 1, SYN)];
        assert_eq!(dropped(&ebpf, &maps, &syns), (1, 0));
        let got = read(&mut samples);
        let mut six = [0x20; 16];
        six[15] = 1;
        let mapped = |address: [u8; 4]| std::net::Ipv4Addr::from(address).to_ipv6_mapped().octets();
        let sample = |source, destination| crate::shed::ShedSample {
            source,
            destination,
            source_port: 40_000,
            destination_port: 80,
            stands_for: 1,
        };
        assert_eq!(got, [sample(six, [0x21; 16]), sample(mapped([192, 0, 2, 1]), mapped([10, 0, 0, 1]))]);

        // One in eight, and a ring that is full takes no more and costs nobody anything.
        maps.set_every(8);
        let many: Vec<Vec<u8>> = (0..2000).map(|n| v4(&[], 0, [192, 0, 2, 1], 100 + n, SYN)).collect();
        assert_eq!(dropped(&ebpf, &maps, &many).0, 2000);
        let got = read(&mut samples);
        assert!((150..350).contains(&got.len()) && got.iter().all(|one| one.stands_for == 8), "{}", got.len());
        maps.set_every(1);
        let flood: Vec<Vec<u8>> = (0..7000).map(|n| v4(&[], 0, [192, 0, 2, 2], n, SYN)).collect();
        assert_eq!(dropped(&ebpf, &maps, &flood).0, 7000);
        let kept = read(&mut samples).len();
        assert!((5000..6000).contains(&kept), "{kept} samples fit the ring");

        drop(samples);
        assert_eq!(dropped(&ebpf, &maps, &[v4(&[], 0, [192, 0, 2, 3], 1, SYN)]), (1, 0), "nobody reads any more");
    }

    #[test]
    fn the_program_passes_every_syn_that_is_cut_off() {
        let (ebpf, maps) = program();
        maps.set_level(0, ShedLevel::Fresh(0));
        for whole in [v4(&[0x8100], 8, [192, 0, 2, 1], 1, SYN), v6(&[0, 60], 1, 1, SYN)] {
            let cut: Vec<Vec<u8>> = (14..whole.len()).map(|len| whole[..len].to_vec()).collect();
            assert_eq!(dropped(&ebpf, &maps, &cut), (0, 0));
            assert_eq!(dropped(&ebpf, &maps, &[whole]), (1, 0));
        }
    }

    #[test]
    fn the_program_passes_repeated_syns_and_proved_sources() {
        let (ebpf, maps) = program();
        maps.set_level(0, ShedLevel::Fresh(0));
        let syn = [v4(&[], 0, [192, 0, 2, 1], 1, SYN), v6(&[], 1, 1, SYN)];
        assert_eq!(dropped(&ebpf, &maps, &syn), (2, 0));
        thread::sleep(Duration::from_millis(1000));
        assert_eq!(dropped(&ebpf, &maps, &syn), (0, 0), "a second later it is a retransmission");
        assert_eq!(
            dropped(&ebpf, &maps, &[v4(&[], 0, [192, 0, 2, 1], 2, SYN)]),
            (1, 0),
            "another sequence number, another connection attempt"
        );
        let many: Vec<Vec<u8>> = (0..2560).map(|n| v4(&[], 0, [192, 0, 2, 1], 100 + n, SYN)).collect();
        maps.set_level(0, ShedLevel::Fresh(64));
        let dropped_of_many = dropped(&ebpf, &maps, &many).0;
        assert!((1800..2040).contains(&dropped_of_many), "{dropped_of_many} of 2560 were dropped, not three in four");
        maps.set_level(0, ShedLevel::Repeated);
        thread::sleep(Duration::from_millis(1000));
        assert_eq!(dropped(&ebpf, &maps, &syn), (0, 2));

        maps.add_proved_source([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1]);
        let mut six = [0x20; 16];
        six[15] = 1;
        maps.add_proved_source(six);
        assert_eq!(dropped(&ebpf, &maps, &syn), (0, 0));
        let unproved = [v4(&[], 0, [192, 0, 2, 2], 1, SYN), v6(&[], 2, 1, SYN)];
        assert_eq!(dropped(&ebpf, &maps, &unproved), (2, 0));
    }
}
