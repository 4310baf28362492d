//! What becomes of the interfaces when a process ends by SIGTERM, or because another takes over, and leaves its connections to the next: XDP programs and
//! settings stay as they are, so that the next process changes nothing, and no link flaps. When none has come for 10 s they are put back.
//!
//! A process that has ended puts nothing back, so it starts another that waits (`--restore --after`). Under a service manager, which ends all of a
//! service, that is the task of the unit (`ExecStopPost=`).

use super::{privileges, service_manager};
use pktio::{interface_of, members_of};
use std::env;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use tracing::{debug, warn};

/// How long the next process may take to come, in seconds.
const PATIENCE: u64 = 10;

/// Whether somebody puts the interfaces back when no process follows.
pub fn can_be_left() -> bool {
    service_manager::is_there() || !privileges::are_given_up()
}

/// Has the interfaces between these ports put back when no process has them after ten seconds, and memory given back of the state in this directory.
pub fn leave(ports: [&str; 2], state: Option<&Path>) {
    if service_manager::is_there() {
        debug!("the interfaces stay as they are for the next process; `synproxy --restore` puts them back");
        return;
    }
    let devices = ports.into_iter().flat_map(members_of).filter_map(|name| interface_of(name).ok()?);
    // This file, also if another stands in its place meanwhile.
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("synproxy")
        .arg("--restore")
        .args(devices.map(|(device, _)| device))
        .arg(format!("--after={PATIENCE}"));
    if let Some(state) = state {
        command.arg("--left-state").arg(state);
    }
    // In a group of its own, so that what ends this process by its terminal does not end that one; and holding nothing open that others wait for.
    command.process_group(0).current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    for (name, _) in env::vars_os() {
        command.env_remove(name);
    }
    match command.spawn() {
        Ok(child) => debug!("process {} puts the interfaces back if no other has them in {PATIENCE} s", child.id()),
        Err(error) => warn!(
            "the interfaces stay as they are ({error}): the next start goes on with them, and `synproxy --restore` puts them back"
        ),
    }
}
