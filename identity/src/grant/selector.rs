//! Selectors: facts about a workload, as an agent finds them out and as a registration demands them.

use serde::{Deserialize, Serialize};

/// Longest name of a user, group or unit, in bytes.
const MAX_NAME_BYTES: usize = 255;
/// Longest path, in bytes (Linux `PATH_MAX`).
const MAX_PATH_BYTES: usize = 4096;

/// One fact about a workload that an agent found out from the kernel, or that a registration demands.
///
/// Text form `unix:uid:1000`, `unix:path:/usr/bin/app`, `systemd:unit:app.service`; `KINDS` lists all of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Selector {
    /// Effective user.
    Uid(u32),
    /// Effective group.
    Gid(u32),
    /// Path of the executable, in the agent's own view of the file system.
    Path(String),
    /// Lower-case hex of the executable's SHA-256.
    Sha256(String),
    /// One of the further groups of the process.
    SupplementaryGid(u32),
    /// Name of the effective user in the host's own table of users.
    User(String),
    /// Name of the effective group in the host's own table of groups.
    Group(String),
    /// Name of one of the further groups.
    SupplementaryGroup(String),
    /// The unit of the system's service manager that the process runs in, `NAME.service` or `NAME.scope`.
    SystemdUnit(String),
    /// What a newer version wrote into a registration. It is kept as it is and nothing ever has it, so that the
    /// registration gives its identity to nobody until this version is replaced.
    Unknown(String),
}

/// Every kind that can be asked for, as the command line's help and errors show them.
pub const KINDS: &str = "unix:uid:N, unix:gid:N, unix:supplementary-gid:N, unix:user:NAME, unix:group:NAME, \
     unix:supplementary-group:NAME, unix:path:/ABSOLUTE, unix:sha256:HEX, systemd:unit:NAME.service";

/// Why a text is not a selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("selector {0:?} is none of {KINDS}")]
pub struct SelectorError(pub String);

impl Selector {
    /// Whether this version cannot tell what it asks for.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown(_))
    }
}

impl std::fmt::Display for Selector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Uid(uid) => write!(f, "unix:uid:{uid}"),
            Self::Gid(gid) => write!(f, "unix:gid:{gid}"),
            Self::Path(path) => write!(f, "unix:path:{path}"),
            Self::Sha256(hex) => write!(f, "unix:sha256:{hex}"),
            Self::SupplementaryGid(gid) => write!(f, "unix:supplementary-gid:{gid}"),
            Self::User(name) => write!(f, "unix:user:{name}"),
            Self::Group(name) => write!(f, "unix:group:{name}"),
            Self::SupplementaryGroup(name) => write!(f, "unix:supplementary-group:{name}"),
            Self::SystemdUnit(name) => write!(f, "systemd:unit:{name}"),
            Self::Unknown(text) => f.write_str(text),
        }
    }
}

impl std::str::FromStr for Selector {
    type Err = SelectorError;

    /// Only what this version knows; never `Unknown`. Underscores are read as hyphens in the kind, since other
    /// SPIFFE implementations write `supplementary_gid`.
    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let err = || SelectorError(text.chars().take(120).collect());
        let mut parts = text.splitn(3, ':');
        let (source, kind) = parts.next().zip(parts.next()).ok_or_else(err)?;
        let value = parts.next().ok_or_else(err)?;
        let number = || value.parse().map_err(|_| err());
        let name = || if is_name(value) { Ok(value.to_owned()) } else { Err(err()) };
        match (source, kind.replace('_', "-").as_str()) {
            ("unix", "uid") => number().map(Self::Uid),
            ("unix", "gid") => number().map(Self::Gid),
            ("unix", "supplementary-gid") => number().map(Self::SupplementaryGid),
            ("unix", "user") => name().map(Self::User),
            ("unix", "group") => name().map(Self::Group),
            ("unix", "supplementary-group") => name().map(Self::SupplementaryGroup),
            ("unix", "path") if is_path(value) => Ok(Self::Path(value.to_owned())),
            ("unix", "sha256") if crate::wire::from_hex(value).is_some_and(|b| b.len() == 32) => {
                Ok(Self::Sha256(value.to_ascii_lowercase()))
            }
            ("systemd", "unit") if is_unit(value) => name().map(Self::SystemdUnit),
            _ => Err(err()),
        }
    }
}

/// A name as a table of users or groups may hold it: neither its separator nor anything invisible.
fn is_name(text: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic() && b != b':')
}

fn is_path(text: &str) -> bool {
    text.starts_with('/') && text.len() <= MAX_PATH_BYTES && !text.contains('\0')
}

/// `NAME.service` or `NAME.scope`: what processes run in; slices and other units hold none of their own.
pub fn is_unit(text: &str) -> bool {
    let name = text.strip_suffix(".service").or_else(|| text.strip_suffix(".scope"));
    name.is_some_and(|name| !name.is_empty() && !name.contains('/'))
}

impl Serialize for Selector {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Selector {
    /// What is stored is always read: see `Unknown`.
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        Ok(text.parse().unwrap_or(Self::Unknown(text)))
    }
}
