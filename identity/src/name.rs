//! Names: the only door from text to a name is `FromStr`, and a name that exists is a valid one.
//!
//! Owns `TrustDomain` and `SpiffeId` (SPIFFE-ID.md), and the names that Hanse gives to clusters, nodes and
//! services. Neighbours: everything. Serde reads names through `FromStr`, so no unchecked name gets in.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest SPIFFE ID that is accepted or made, in bytes (SPIFFE-ID §2.3).
pub const MAX_SPIFFE_ID_BYTES: usize = 2048;
/// Longest trust domain, in bytes (SPIFFE-ID §2.3).
pub const MAX_TRUST_DOMAIN_BYTES: usize = 255;
/// Longest name of a cluster, node, namespace or service: one DNS label (RFC 1035 §2.3.4).
pub const MAX_LABEL_BYTES: usize = 63;

/// Why a text is not a name: what was read, which rule it breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} {text:?} {rule}")]
pub struct NameError {
    what: &'static str,
    text: String,
    rule: &'static str,
}

impl NameError {
    fn new(what: &'static str, text: &str, rule: &'static str) -> Self {
        // The text came from a stranger: keep the error short whatever was sent.
        let text = text.chars().take(80).collect();
        Self { what, text, rule }
    }

    /// The rule that was broken, as a half sentence.
    pub fn rule(&self) -> &'static str {
        self.rule
    }
}

macro_rules! text_serde {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

/// A trust domain, such as `east.example`: lower case, `[a-z0-9.-_]`, 1 to 255 bytes (SPIFFE-ID §2.1).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(String);

impl TrustDomain {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `spiffe://<trust domain>`: the ID of the domain's own authorities (SPIFFE-ID §3.1).
    pub fn id(&self) -> SpiffeId {
        SpiffeId { trust_domain: self.clone(), path: String::new() }
    }
}

impl FromStr for TrustDomain {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let err = |rule| Err(NameError::new("trust domain", text, rule));
        if text.is_empty() {
            return err("is empty");
        }
        if text.len() > MAX_TRUST_DOMAIN_BYTES {
            return err("is longer than 255 bytes");
        }
        if !text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_')) {
            return err("has a character outside a-z 0-9 . - _");
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

text_serde!(TrustDomain);

/// A SPIFFE ID: `spiffe://<trust domain><path>`; the path is empty (an authority) or starts with `/`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    trust_domain: TrustDomain,
    path: String,
}

impl SpiffeId {
    /// `spiffe://<td>/ns/<namespace>/sa/<account>`.
    pub fn workload(trust_domain: &TrustDomain, namespace: &str, account: &str) -> Result<Self, NameError> {
        format!("spiffe://{trust_domain}/ns/{namespace}/sa/{account}").parse()
    }

    /// `spiffe://<td>/hanse/<role>/<name>`: nodes, agents, gateways and administrators of the mesh itself.
    pub fn member(trust_domain: &TrustDomain, role: MemberRole, name: &NodeName) -> Self {
        Self { trust_domain: trust_domain.clone(), path: format!("/hanse/{}/{name}", role.as_str()) }
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Empty, or `/` and non-empty segments.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether it is below `/hanse`, which is the mesh's own.
    pub fn is_of_the_mesh(&self) -> bool {
        self.path.split('/').nth(1) == Some("hanse")
    }

    /// The member role and name, if this is an ID under `/hanse/`.
    pub fn as_member(&self) -> Option<(MemberRole, &str)> {
        let (role, name) = self.path.strip_prefix("/hanse/")?.split_once('/')?;
        MemberRole::ALL.into_iter().find(|r| r.as_str() == role).map(|r| (r, name))
    }

    /// Whether this is one of the trust domain's members in that role.
    pub fn is_member(&self, trust_domain: &TrustDomain, role: MemberRole) -> bool {
        self.trust_domain == *trust_domain && self.as_member().is_some_and(|(r, _)| r == role)
    }
}

/// What a member of the mesh itself may be; the second path segment of its SPIFFE ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MemberRole {
    Node,
    Agent,
    Gateway,
    Admin,
    /// A bundle endpoint, which strangers ask; may do nothing else.
    Endpoint,
}

impl MemberRole {
    pub const ALL: [MemberRole; 5] = [Self::Node, Self::Agent, Self::Gateway, Self::Admin, Self::Endpoint];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Agent => "agent",
            Self::Gateway => "gateway",
            Self::Admin => "admin",
            Self::Endpoint => "endpoint",
        }
    }
}

impl FromStr for SpiffeId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let err = |rule| Err(NameError::new("SPIFFE ID", text, rule));
        if text.len() > MAX_SPIFFE_ID_BYTES {
            return err("is longer than 2048 bytes");
        }
        let Some(rest) = text.strip_prefix("spiffe://") else {
            return err("does not start with spiffe://");
        };
        let (host, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, ""),
        };
        let trust_domain = host.parse().map_err(|e: NameError| NameError::new("SPIFFE ID", text, e.rule))?;
        if !path.is_empty() {
            for segment in path[1..].split('/') {
                if segment.is_empty() {
                    return err("has an empty path segment or a trailing slash");
                }
                if segment == "." || segment == ".." {
                    return err("has a relative path segment");
                }
                if !segment.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_')) {
                    return err("has a path character outside A-Z a-z 0-9 . - _");
                }
            }
        }
        Ok(Self { trust_domain, path: path.to_owned() })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}{}", self.trust_domain, self.path)
    }
}

text_serde!(SpiffeId);

/// One DNS label: lower case letters, digits and inner hyphens, 1 to 63 bytes.
fn label(what: &'static str, text: &str) -> Result<String, NameError> {
    let bytes = text.as_bytes();
    let rule = if bytes.is_empty() {
        "is empty"
    } else if bytes.len() > MAX_LABEL_BYTES {
        "is longer than 63 bytes"
    } else if !bytes.iter().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-')) {
        "has a character outside a-z 0-9 -"
    } else if bytes[0] == b'-' || bytes[bytes.len() - 1] == b'-' {
        "starts or ends with a hyphen"
    } else {
        return Ok(text.to_owned());
    };
    Err(NameError::new(what, text, rule))
}

macro_rules! label_name {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(String);

        impl $type {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                label($what, text).map(Self)
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        text_serde!($type);
    };
}

label_name!(
    /// The name of a cluster, such as `east`: one DNS label.
    ClusterName,
    "cluster name"
);
label_name!(
    /// The name of a control node, agent, gateway, proxy or administrator within its cluster: one DNS label.
    NodeName,
    "node name"
);

/// A service: `<namespace>/<name>`, each one DNS label, such as `shop/reviews`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName {
    namespace: String,
    name: String,
}

impl ServiceName {
    pub fn new(namespace: &str, name: &str) -> Result<Self, NameError> {
        Ok(Self { namespace: label("namespace", namespace)?, name: label("service name", name)? })
    }

    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    pub fn name(&self) -> &str {
        &self.name
    }
}

impl FromStr for ServiceName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.split_once('/') {
            Some((namespace, name)) => Self::new(namespace, name),
            None => Err(NameError::new("service", text, "is not of the form <namespace>/<name>")),
        }
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}", self.namespace, self.name))
    }
}

text_serde!(ServiceName);

#[cfg(test)]
mod tests;
