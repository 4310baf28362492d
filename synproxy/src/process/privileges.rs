//! The user, group and capabilities of the process once the interfaces are open: `user` and `group` of the configuration.
//!
//! Restoring the interfaces at the end needs CAP_NET_ADMIN, so the main thread keeps that one capability and no other. The workers,
//! which parse what the network sends, keep none.

use super::exit::Failure;
use ::control::Role;
use caps::{CapSet, Capability, CapsHashSet};
use confparse::{Account, Config};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::unistd::{Gid, Group, Uid, User, geteuid, setgroups, setresgid, setresuid};
use std::{fmt, io};
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
        let failed = Failure::Configuration;
        let (user, primary) = match config.user.as_ref().map(find_user).transpose().map_err(failed)? {
            Some((uid, primary)) if !uid.is_root() => (Some(uid), primary),
            _ => (None, None),
        };
        let group = match &config.group {
            Some(account) => Some(find_group("group", account).map_err(failed)?),
            None => primary,
        };
        if let (Some(user), None) = (user, group) {
            return Err(failed(without_group(user)));
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
        // Root in a container may lack any of these.
        fn needs<E: fmt::Display>(capability: Capability) -> impl Fn(E) -> io::Error {
            move |error| io::Error::other(format!("{error}; it takes {capability}"))
        }
        if self.user.is_some() {
            caps::clear(None, CapSet::Bounding).map_err(needs(Capability::CAP_SETPCAP))?;
            prctl::set_keepcaps(true)?;
        }
        if let Some(group) = self.group {
            setgroups(&[group]).map_err(needs(Capability::CAP_SETGID))?;
            setresgid(group, group, group).map_err(needs(Capability::CAP_SETGID))?;
        }
        if let Some(user) = self.user {
            setresuid(user, user, user).map_err(needs(Capability::CAP_SETUID))?;
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

/// Whether this process has given up privileges that opening an interface takes.
pub fn are_given_up() -> bool {
    !caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_ADMIN).unwrap_or(true)
        && !caps::has_cap(None, CapSet::Effective, Capability::CAP_BPF).unwrap_or(true)
}

/// Has the kernel write no image of this process when it crashes, and let no other process of its user read its memory: the secrets are in both.
pub fn forbid_dumps() {
    if let Err(error) = prctl::set_dumpable(false) {
        debug!("the memory of this process can be dumped: {error}");
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

/// The groups whose members may use the control socket, by number, each with its role.
///
/// # Errors
/// When a configured group does not exist.
pub fn role_groups(config: &Config) -> Result<Vec<(u32, Role)>, Failure> {
    let find = |(key, account, role)| Ok((find_group(key, account)?.as_raw(), role));
    groups_of_roles(config).map(find).collect::<Result<_, String>>().map_err(Failure::Configuration)
}

/// The groups that the configuration names for the control socket: the key, the group, and the role of its members.
fn groups_of_roles(config: &Config) -> impl Iterator<Item = (&'static str, &Account, Role)> {
    let Config { control_read, control_operate, control_admin, control_group, .. } = config;
    let named = [
        ("control_read", control_read, Role::Read),
        ("control_operate", control_operate, Role::Operate),
        ("control_admin", control_admin, Role::Admin),
        ("control_group", control_group, Role::Operate),
    ];
    named.into_iter().filter_map(|(key, account, role)| Some((key, account.as_ref()?, role)))
}

/// Every user and group of the configuration that this machine does not have: the key, and what is wrong with it.
pub fn complaints(config: &Config) -> Vec<(&'static str, String)> {
    let user = config.user.as_ref().map(|account| match find_user(account)? {
        (user, None) if config.group.is_none() && !user.is_root() => Err(without_group(user)),
        _ => Ok(()),
    });
    let group = config.group.as_ref().map(|account| find_group("group", account).map(drop));
    let of_roles = groups_of_roles(config).map(|(key, account, _)| (key, Some(find_group(key, account).map(drop))));
    let results = [("user", user), ("group", group)].into_iter().chain(of_roles);
    results.filter_map(|(key, result)| Some((key, result?.err()?))).collect()
}

/// The number and primary group of the user of the configuration.
fn find_user(account: &Account) -> Result<(Uid, Option<Gid>), String> {
    match account {
        Account::Id(id) => {
            let uid = Uid::from_raw(id.get());
            let user = found(User::from_uid(uid)).map_err(|error| not_looked_up("user", account, error))?;
            Ok((uid, user.map(|user| user.gid)))
        }
        Account::Name(name) => match found(User::from_name(name)) {
            Ok(Some(user)) => Ok((user.uid, Some(user.gid))),
            Ok(None) => Err(format!("{}: there is no such user on this machine", setting("user", account))),
            Err(error) => Err(not_looked_up("user", account, error)),
        },
    }
}

/// The number of a group that the configuration names with this key.
fn find_group(key: &str, account: &Account) -> Result<Gid, String> {
    match account {
        Account::Id(id) => Ok(Gid::from_raw(id.get())),
        Account::Name(name) => match found(Group::from_name(name)) {
            Ok(Some(group)) => Ok(group.gid),
            Ok(None) => Err(format!("{}: there is no such group on this machine", setting(key, account))),
            Err(error) => Err(not_looked_up(key, account, error)),
        },
    }
}

/// What a look-up has found. Where there is no database, as in a small container, there is no entry either: of its errors these say so
/// (getpwnam_r(3)).
fn found<T>(result: nix::Result<Option<T>>) -> nix::Result<Option<T>> {
    match result {
        Err(Errno::ENOENT | Errno::ESRCH | Errno::EBADF | Errno::EPERM | Errno::UnknownErrno) => Ok(None),
        result => result,
    }
}

/// A key and its value, as they stand in a file.
fn setting(key: &str, account: &Account) -> String {
    match account {
        Account::Id(id) => format!("`{key} = {id}`"),
        Account::Name(name) => format!("`{key} = \"{name}\"`"),
    }
}

fn without_group(user: Uid) -> String {
    format!("`user = {user}`: this machine has no entry for that user, which would name its group; give `group` too")
}

fn not_looked_up(key: &str, account: &Account, error: Errno) -> String {
    format!("{}: it cannot be looked up: {}", setting(key, account), error.desc())
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
        let failure = Credentials::of(&Config { user: user.clone(), ..Config::default() }).unwrap_err().to_string();
        assert!(failure.starts_with("`user = 3999999999`: ") && failure.contains("give `group` too"), "{failure}");
        assert!(Credentials::of(&Config { user, ..named(None, Some("root")) }).is_ok());
    }

    #[test]
    fn a_machine_without_a_database_has_no_entry() {
        let missing = |errno| found::<()>(Err(errno));
        assert_eq!([Errno::ENOENT, Errno::ESRCH].map(missing), [Ok(None); 2]);
        assert_eq!(missing(Errno::EIO), Err(Errno::EIO));
        let id = Account::Id(NonZeroU32::new(65_534).unwrap());
        assert_eq!(not_looked_up("user", &id, Errno::EIO), "`user = 65534`: it cannot be looked up: I/O error");
    }

    #[test]
    fn every_account_is_complained_of_by_its_own_key() {
        let mut config = named(Some("nosuch"), Some("no group"));
        config.control_group = Some(Account::Name("nosuch".to_owned()));
        let complaints = complaints(&config);
        assert_eq!(complaints.iter().map(|(key, _)| *key).collect::<Vec<_>>(), ["user", "group", "control_group"]);
        assert!(complaints[2].1.starts_with("`control_group = \"nosuch\"`: there is no such group"), "{complaints:?}");
        assert!(super::complaints(&named(Some("nobody"), Some("root"))).is_empty());
    }
}
