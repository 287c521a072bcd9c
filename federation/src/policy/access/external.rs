//! Whom an AccessPolicy with action External has asked, compiled. Pure.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hanse_identity::ServiceName;

use crate::policy::document::access::AccessPolicy;
use crate::policy::value::PolicyDuration;

/// How long an authorizer may take, unless its policy says otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_millis(200);

/// One policy's authorizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    /// `namespace/name` of the policy.
    pub policy: Arc<str>,
    pub authorizer: Authorizer,
    pub timeout: Duration,
    /// Whether the request goes on when the authorizer does not answer.
    pub fail_open: bool,
    /// Headers that it is told, in lower case; all if there is none.
    pub headers: Vec<String>,
}

/// Where it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Authorizer {
    /// In the mesh.
    Service(ServiceName),
    /// On this host.
    Address(SocketAddr),
}

impl External {
    /// `None`: the policy says nobody, or two.
    pub(super) fn compile(policy: &AccessPolicy, name: &ServiceName) -> Option<Self> {
        let external = policy.external.as_ref()?;
        let authorizer = match (&external.backend_ref, external.address) {
            (Some(backend), None) => Authorizer::Service(backend.service(name.namespace())),
            (None, Some(address)) => Authorizer::Address(address),
            _ => return None,
        };
        Some(Self {
            policy: name.to_string().into(),
            authorizer,
            timeout: external.timeout.map_or(DEFAULT_TIMEOUT, PolicyDuration::get),
            fail_open: external.fail_open,
            headers: external.allowed_headers.iter().map(|name| name.to_ascii_lowercase()).collect(),
        })
    }

    /// Whether the authorizer is told of a header, by its name in lower case.
    pub fn tells(&self, header: &str) -> bool {
        self.headers.is_empty() || self.headers.iter().any(|name| name == header)
    }
}
