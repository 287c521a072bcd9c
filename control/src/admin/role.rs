//! `role list|bind|unbind`: who may ask what of the Admin service.

use std::collections::BTreeSet;

use hanse_identity::SpiffeId;
use serde::{Deserialize, Serialize};

use crate::role::Role;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleListRequest {}

/// An identity that was named. Administrators that are not listed have every role, everyone else has none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RoleItem {
    pub id: SpiffeId,
    pub roles: BTreeSet<Role>,
    /// A workload of which no registration says `admin`: it holds these as soon as one does.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dormant: bool,
}

/// Gives roles beside those that the identity was given before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RoleBindRequest {
    pub id: SpiffeId,
    pub roles: BTreeSet<Role>,
}

/// Takes roles away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RoleUnbindRequest {
    pub id: SpiffeId,
    pub roles: BTreeSet<Role>,
}
