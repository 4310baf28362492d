//! The XDP program in front of the programs at tc: it answers the SYNs that they would answer, by the same memory, before a frame becomes a packet of the
//! kernel, and passes everything else on to them. It is attached while SYNs come in masses: on a veth or a tap its presence alone has the kernel cut
//! super-frames, which is what tc is taken for.

use std::error::Error;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use aya::Ebpf;
use aya::maps::DevMap;
use tracing::debug;

use super::program::{OwnMaps, attach_patiently, instructions, loader};
use super::tags::untagged_only;
use crate::bpf::{self, How};
use crate::failure::FailurePlan;
use crate::netdev::{Attachment, Interface};
use crate::options::SynPlan;

/// The maps that are those of the programs at tc.
const SHARED: [&str; 5] = ["flows", "service", "answers", "noted", "buckets"];

/// The program, loaded; dropping it detaches it, and so does the end of the process, however that comes: what is at tc goes on then.
pub(crate) struct FrontProgram {
    program: OwnedFd,
    /// The index of the WAN port's interface.
    interface: u32,
    attachment: Option<Attachment>,
}

impl fmt::Debug for FrontProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrontProgram").field("is_attached", &self.attachment.is_some()).finish_non_exhaustive()
    }
}

impl FrontProgram {
    /// Loads the program for the WAN port over the maps of the programs at tc (`at_tc`), which `workers` share and `failure` and `syns` describe.
    ///
    /// # Errors
    ///
    /// Those of the kernel or of the library; also where a veth's other end would lose its answers.
    pub(crate) fn load(
        wan: &Interface,
        at_tc: &Ebpf,
        workers: usize,
        failure: &FailurePlan,
        syns: SynPlan,
    ) -> Result<FrontProgram, Box<dyn Error>> {
        let is_veth = wan.hides_tags();
        if is_veth && !wan.takes_redirected() {
            return Err(
                "the other end of this veth takes no frame from an XDP program; `ethtool -K PEER gro on` there mends it".into()
            );
        }
        let plan = FailurePlan { forward_words: 0, ..failure.clone() };
        let mut ebpf = loader(workers, Some(&plan), true, [0; 2], false, OwnMaps::None, Some((syns, is_veth)))?;
        let mut own = DevMap::try_from(ebpf.map_mut("own_port").ok_or("the program lacks its map")?)?;
        own.set(0, wan.index(), None, 0)?;
        let text = instructions(&ebpf, "answer_alone", Some((at_tc, &SHARED)))?;
        // What lies beside a frame names its network, and stays there for tc.
        let (text, bound_to) = match is_veth {
            true => ([&untagged_only()?[..], &text].concat(), Some(wan.index())),
            false => (text, None),
        };
        let program = bpf::load_xdp(&text, "answer_alone", How { has_frags: true, bound_to })?;
        Ok(FrontProgram { program, interface: wan.index(), attachment: None })
    }

    /// Attaches the program, in driver mode, or detaches it.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(crate) fn set_attached(&mut self, is_attached: bool) -> io::Result<()> {
        if !is_attached {
            self.attachment = None;
        } else if self.attachment.is_none() {
            let attach = || Attachment::by_link(self.program.as_fd(), self.interface, true);
            self.attachment = Some(attach_patiently(self.interface, attach)?);
            debug!("interface {}: the program in front of tc is attached", self.interface);
        }
        Ok(())
    }
}
