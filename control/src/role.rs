//! Roles: who may send which request.

use crate::Request;
use serde::{Deserialize, Serialize};

/// What a client of the control socket may do. Each role includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Look at everything but the numbers of cookies and connections.
    Read,
    /// Also change what ends with the process, and have the box's own configuration file read again.
    Operate,
    /// Everything: also files written with the rights of the box, another configuration, and those numbers.
    Admin,
}

impl Role {
    /// Every role, the one that may do least first.
    pub const ALL: [Role; 3] = [Role::Read, Role::Operate, Role::Admin];

    /// Its name, as in a reply.
    pub const fn name(self) -> &'static str {
        match self {
            Role::Read => "read",
            Role::Operate => "operate",
            Role::Admin => "admin",
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether a request changes anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It only looks.
    Looks,
    /// It changes something: the box logs it with the user, and counts it.
    Changes,
}

impl Request {
    /// The role it takes, and whether it changes anything. This is the whole table: a new request does not compile without its line.
    pub const fn access(&self) -> (Role, Access) {
        use Access::{Changes, Looks};
        match self {
            Request::Whoami
            | Request::Status
            | Request::Stats
            | Request::Servers
            | Request::Backends
            | Request::Flows { .. }
            | Request::Top
            | Request::Explain { .. }
            | Request::Captures
            | Request::Events { .. }
            | Request::Policy
            | Request::SuggestPolicy
            | Request::Services
            | Request::Lists
            | Request::List { .. }
            | Request::Config => (Role::Read, Looks),
            // A part changes nothing before the last one.
            Request::ReplaceList { last: false, .. } => (Role::Operate, Looks),
            Request::AddServer(_)
            | Request::ModifyServer(_)
            | Request::DeleteServer(_)
            | Request::FlushServers { .. }
            | Request::Drain { .. }
            | Request::DrainServer { .. }
            | Request::RotateSecrets
            | Request::Stop
            | Request::SetLogLevel { .. }
            | Request::AddToList { .. }
            | Request::RemoveFromList { .. }
            | Request::ReplaceList { .. }
            | Request::ResetBlocked
            | Request::Reload => (Role::Operate, Changes),
            Request::StartCapture { .. } | Request::StopCapture { .. } | Request::LoadConfig { .. } => {
                (Role::Admin, Changes)
            }
        }
    }

    /// The role it takes.
    pub const fn role(&self) -> Role {
        self.access().0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_includes_those_before_it() {
        assert!(Role::ALL.is_sorted() && Role::Admin > Role::Operate && Role::Operate > Role::Read);
        let names = Role::ALL.map(|role| serde_json::to_value(role).unwrap());
        assert_eq!(names, Role::ALL.map(|role| serde_json::Value::from(role.name())));
    }

    #[test]
    fn what_only_looks_takes_the_least_role_and_what_changes_does_not() {
        let request = |line: &str| serde_json::from_str::<Request>(line).unwrap().access();
        for line in [r#"{"command":"whoami"}"#, r#"{"command":"flows"}"#, r#"{"command":"config"}"#] {
            assert_eq!(request(line), (Role::Read, Access::Looks), "{line}");
        }
        for line in [r#"{"command":"drain","on":true}"#, r#"{"command":"reload"}"#] {
            assert_eq!(request(line), (Role::Operate, Access::Changes), "{line}");
        }
        for line in [r#"{"command":"stop-capture"}"#, r#"{"command":"load-config","name":"x","text":""}"#] {
            assert_eq!(request(line), (Role::Admin, Access::Changes), "{line}");
        }
    }
}
