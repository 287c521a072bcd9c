//! Roles: what an identity may ask of the Admin service. Which role an rpc needs is in `io/roles.rs`; who holds
//! which role is in the log (`state/roles.rs`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A set of duties. None contains another, but whoever has any may also read: who cuts off has to see the receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Lists, shows, checks.
    Viewer,
    /// Services, policies, workloads, agents.
    Operator,
    /// Trust: revocations, authorities, who holds which role.
    CaAdmin,
    /// Other clusters and foreign trust domains.
    FederationAdmin,
}

/// A text that is no role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("role {0:?} is none of viewer, operator, ca-admin, federation-admin")]
pub struct RoleError(String);

impl Role {
    pub const ALL: [Role; 4] = [Self::Viewer, Self::Operator, Self::CaAdmin, Self::FederationAdmin];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::CaAdmin => "ca-admin",
            Self::FederationAdmin => "federation-admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = RoleError;

    fn from_str(text: &str) -> Result<Self, RoleError> {
        let role = Self::ALL.into_iter().find(|role| role.as_str() == text);
        role.ok_or_else(|| RoleError(text.chars().take(60).collect()))
    }
}
