//! The user, group and capabilities of the process once the interfaces are open: `user` and `group` of the configuration.
//!
//! Restoring the interfaces at the end needs CAP_NET_ADMIN, so the main thread keeps that one capability and no other. The workers,
//! which parse what the network sends, keep none.

use super::exit::Failure;
use caps::{CapSet, Capability, CapsHashSet};
use confparse::{Account, Config};
use nix::sys::prctl;
use nix::unistd::{Gid, Group, Uid, User, geteuid, setgroups, setresgid, setresuid};
use std::io;
use tracing::{debug, info, warn};

/// The user and the group to change to; `None` means no change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    user: Option<Uid>,
    group: Option<Gid>,
}

impl Credentials {
    /// Looks up the names of the configuration. A user without a `group` gets its primary one.
    ///
    /// # Errors
    /// When a user or a group does not exist.
    pub fn of(config: &Config) -> Result<Self, Failure> {
        let (user, primary) = match config.user.as_ref().map(find_user).transpose()? {
            Some((uid, primary)) if !uid.is_root() => (Some(uid), primary),
            _ => (None, None),
        };
        let group = match &config.group {
            Some(account) => Some(find_group(account)?),
            None => primary,
        };
        if user.is_some() && group.is_none() {
            return Err(Failure::Configuration(
                "`user` is a number without an entry in the user database, so `group` must be given too".into(),
            ));
        }
        Ok(Self { user, group })
    }

    /// The numbers of the user and the group this process will have, where they differ from its present ones.
    pub fn ids(self) -> (Option<u32>, Option<u32>) {
        if geteuid().is_root() { (self.user.map(Uid::as_raw), self.group.map(Gid::as_raw)) } else { (None, None) }
    }

    /// Changes to them and gives up all capabilities but CAP_NET_ADMIN, if the process is root; another has nothing to give up.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn assume(self) -> Result<(), Failure> {
        if self == Self::default() {
            return Ok(());
        }
        if !geteuid().is_root() {
            warn!("not started by root, so `user` and `group` of the configuration have no effect");
            return Ok(());
        }
        self.change().map_err(Failure::Privileges)
    }

    fn change(self) -> io::Result<()> {
        let keep: CapsHashSet = [Capability::CAP_NET_ADMIN].into();
        if self.user.is_some() {
            caps::clear(None, CapSet::Bounding).map_err(io::Error::other)?;
            prctl::set_keepcaps(true)?;
        }
        if let Some(group) = self.group {
            setgroups(&[group])?;
            setresgid(group, group, group)?;
        }
        if let Some(user) = self.user {
            setresuid(user, user, user)?;
            prctl::set_keepcaps(false)?;
            caps::set(None, CapSet::Permitted, &keep).map_err(io::Error::other)?;
            caps::set(None, CapSet::Effective, &keep).map_err(io::Error::other)?;
        }
        prctl::set_no_new_privs()?;
        let number = |id: Option<u32>| id.map_or("unchanged".to_owned(), |id| id.to_string());
        info!(
            "now user {}, group {}, with no capability but CAP_NET_ADMIN, which restores the interfaces at the end",
            number(self.user.map(Uid::as_raw)),
            number(self.group.map(Gid::as_raw)),
        );
        Ok(())
    }
}

/// Gives up every capability of the calling thread: open descriptors are all that a worker needs.
pub fn drop_capabilities() {
    for set in [CapSet::Ambient, CapSet::Effective, CapSet::Inheritable, CapSet::Permitted] {
        if let Err(error) = caps::clear(None, set) {
            debug!("cannot give up the {set:?} capabilities: {error}");
        }
    }
}

/// Prepares the calling thread to serve the operator: without capabilities, and at ordinary priority, behind the workers.
pub fn enter_control_thread() {
    drop_capabilities();
    if let Err(error) = rustix::process::setpriority_process(None, 0) {
        debug!("a control thread keeps the priority of the workers: {error}");
    }
}

/// The number of the group whose members may use the control socket, if there is one.
///
/// # Errors
/// When the configured group does not exist.
pub fn control_group(config: &Config) -> Result<Option<u32>, Failure> {
    config.control_group.as_ref().map(|account| find_group(account).map(Gid::as_raw)).transpose()
}

/// The number and primary group of a user.
fn find_user(account: &Account) -> Result<(Uid, Option<Gid>), Failure> {
    match account {
        Account::Id(id) => {
            let uid = Uid::from_raw(id.get());
            let user = User::from_uid(uid).map_err(|error| lookup("user", account, error))?;
            Ok((uid, user.map(|user| user.gid)))
        }
        Account::Name(name) => match User::from_name(name) {
            Ok(Some(user)) => Ok((user.uid, Some(user.gid))),
            Ok(None) => Err(unknown("user", name)),
            Err(error) => Err(lookup("user", account, error)),
        },
    }
}

/// The number of a group.
fn find_group(account: &Account) -> Result<Gid, Failure> {
    match account {
        Account::Id(id) => Ok(Gid::from_raw(id.get())),
        Account::Name(name) => match Group::from_name(name) {
            Ok(Some(group)) => Ok(group.gid),
            Ok(None) => Err(unknown("group", name)),
            Err(error) => Err(lookup("group", account, error)),
        },
    }
}

fn unknown(kind: &str, name: &str) -> Failure {
    Failure::Configuration(format!("`{kind} = \"{name}\"`: there is no such {kind} on this machine"))
}

fn lookup(kind: &str, account: &Account, error: nix::Error) -> Failure {
    Failure::Configuration(format!("the {kind} of the configuration ({account:?}) cannot be looked up: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU32;

    fn named(user: Option<&str>, group: Option<&str>) -> Config {
        let account = |name: &str| Account::Name(name.to_owned());
        Config { user: user.map(account), group: group.map(account), ..Config::default() }
    }

    #[test]
    fn without_user_and_group_nothing_changes() {
        assert_eq!(Credentials::of(&Config::default()).unwrap(), Credentials::default());
    }

    #[test]
    fn root_by_name_is_no_change() {
        assert_eq!(Credentials::of(&named(Some("root"), None)).unwrap(), Credentials::default());
    }

    #[test]
    fn a_user_brings_its_primary_group() {
        let expected = User::from_name("nobody").unwrap().expect("every machine has a nobody");
        let credentials = Credentials::of(&named(Some("nobody"), None)).unwrap();
        assert_eq!(credentials, Credentials { user: Some(expected.uid), group: Some(expected.gid) });
    }

    #[test]
    fn an_unknown_name_is_a_configuration_error() {
        for config in [named(Some("no-such-user"), None), named(None, Some("no-such-group"))] {
            let failure = Credentials::of(&config).unwrap_err();
            assert!(matches!(&failure, Failure::Configuration(text) if text.contains("no such")), "{failure}");
        }
    }

    #[test]
    fn a_bare_number_needs_a_group() {
        let user = Some(Account::Id(NonZeroU32::new(3_999_999_999).unwrap()));
        assert!(Credentials::of(&Config { user, ..Config::default() }).is_err());
    }
}
