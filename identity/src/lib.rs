//! hanse-identity: who you are, how you prove it, what you may do.
//!
//! The pure core of identity: names, SVIDs, bundles, authorities, the way from a registration to a signed
//! SVID (`grant` → `Ticket` → `issue`), the one place where a certificate is believed (`verify`), and
//! revocations. Nothing here opens a socket, reads a clock or draws randomness of its own: time, keys and
//! serials come in as arguments. (An ECDSA signature needs a nonce: the library draws it, inside `issue`,
//! `issue_downstream`, `JwtKey::issue`, `Authority::create`, `certificate_request`, `JoinToken::prove`, `HostKey::prove` and the TLS handshakes.) Every other crate depends on this one; it depends on none of them.

pub mod authority;
pub mod bundle;
pub mod crl;
pub mod downstream;
pub mod frames;
pub mod grant;
pub mod host;
pub mod issue;
pub mod jwt;
pub mod name;
pub mod private_key;
pub mod proof;
pub mod rate;
pub mod renewal;
pub mod revocation;
pub mod svid;
pub mod time;
pub mod tls;
pub mod token;
pub mod upstream;
pub mod verify;
pub mod wire;
mod x509;

#[cfg(test)]
mod fixture;

pub use authority::{Authority, AuthorityState};
pub use bundle::{AuthorityCertificate, Bundle, BundleDocument, KeyId};
pub use crl::{Crl, CrlError};
pub use downstream::{NestedIssuer, issue_downstream};
pub use grant::{AgentScope, Evidence, Refusal, Registration, Selector, Ticket, grant};
pub use host::{HostCertificate, HostKey, HostTrust};
pub use issue::{IssueError, issue};
pub use jwt::{JwtAuthority, JwtKey};
pub use name::{ClusterName, NameError, NodeName, ServiceName, SpiffeId, TrustDomain};
pub use private_key::PrivateKey;
pub use revocation::{Closing, Reason, Revocation, RevocationId, RevocationTarget, Revocations};
pub use svid::{Serial, Svid, SvidFacts};
pub use time::Timestamp;
pub use upstream::{Intermediate, Upstream};
pub use verify::{Trust, Usage, VerifiedCaller, VerifiedHost, VerifyError, verify, verify_host};
