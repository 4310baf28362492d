//! The configuration of a running box, and what a reload changes of it.

use serde::{Deserialize, Serialize};

/// The configuration that is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Configuration {
    /// The file it was read from, with its whole path; none if the box was started without.
    pub file: Option<String>,
    /// Every key, in the order of the documentation.
    pub settings: Vec<Setting>,
}

/// A key and its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Setting {
    /// Its name, behind that of its section: `ratehash.size`.
    pub key: String,
    /// Its value as it would stand in a file; none where it is off.
    pub value: Option<String>,
    /// The option of the command line that overrides it, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overridden: Option<Overridden>,
}

/// How the command line overrides a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Overridden {
    /// The option.
    pub by: String,
    /// The value of the file, which has no effect; none where it is off.
    pub file: Option<String>,
}

/// A value that another file changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Change {
    /// The key, behind the name of its section.
    pub key: String,
    /// Its value so far; none where it is off.
    pub old: Option<String>,
    /// Its value from now on.
    pub new: Option<String>,
    /// When it takes effect.
    pub effect: Effect,
    /// Why it has no effect in this process, if it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// When a change takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// At once.
    Now,
    /// For connections that begin from then on.
    NewConnections,
    /// When the next epoch begins, 5 to 72 s later.
    NextEpoch,
    /// When the box is started again.
    Restart,
    /// Never.
    Nothing,
}

/// What a reload has done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Reloaded {
    /// What was read: the path of the file, or the name the client gave.
    pub file: String,
    /// What differs from the configuration before, in the order of the documentation.
    pub changes: Vec<Change>,
    /// What is allowed but probably not meant, and what could not be confirmed.
    pub warnings: Vec<String>,
}
