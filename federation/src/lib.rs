//! hanse-federation: what clusters know of each other, and where a request goes.
//!
//! The pure model: a `View` is the fold of `Change`s at a `Revision`, the same code in control nodes, proxies
//! and gateways; `choose` is the failover ladder; `join` and `session` are the machines by which clusters meet
//! and keep meeting. Nothing here opens a socket, reads a clock or draws randomness: they come in as arguments.

pub mod addresses;
pub mod catalog;
pub mod change;
pub mod choose;
pub mod health;
pub mod host;
pub mod join;
pub mod lease;
pub mod load;
pub mod policy;
pub mod presence;
pub mod reserved;
pub mod session;
pub mod sni;
pub mod stranger;
pub mod tap;
pub mod traffic;
pub mod view;
pub mod wire;

pub use catalog::{Announcement, Endpoint, EndpointId, Export, Gateway, Locality, Service};
pub use change::{Change, PeerFact};
pub use view::{Peer, PeerState, Revision, View};
