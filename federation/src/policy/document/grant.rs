//! ReferenceGrant (Gateway API v1) as documents write it: who may name what is in its namespace. Plain data.

use serde::{Deserialize, Serialize};

use super::{Label, RefKind};

/// ReferenceGrant.spec: whoever is in `from` may name whatever is in `to`. Each is known by group, kind and name, whether or
/// not this version has such references: what is meant for others grants nothing here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReferenceGrant {
    pub from: Vec<GrantFrom>,
    pub to: Vec<GrantTo>,
}

/// Documents of one kind in one namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrantFrom {
    pub group: String,
    pub kind: String,
    pub namespace: Label,
}

/// One thing, or all of one kind, in the namespace of the document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrantTo {
    pub group: String,
    pub kind: String,
    /// Absent: all of that kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl GrantTo {
    /// Whether it means the kind that a reference names.
    pub fn is_of(&self, kind: RefKind) -> bool {
        let group = if self.group == "core" { "" } else { &self.group };
        group == kind.group() && self.kind == kind.as_str()
    }
}
