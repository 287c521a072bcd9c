//! The shell of the control node: what touches disk, sockets and clocks.

pub mod admin;
pub mod bundle_endpoint;
pub mod census;
pub mod context;
pub mod crl;
pub mod dial;
pub mod driver;
pub mod http;
pub mod issuance;
pub mod issue;
pub mod joiner;
pub mod jwt;
pub mod key_store;
pub mod keys;
pub mod node_link;
pub mod peer_link;
pub mod peer_serve;
pub mod quorum;
pub mod reach;
pub mod roles;
pub mod server;
pub mod status;
pub mod store;
pub mod strangers;
pub mod watch;
