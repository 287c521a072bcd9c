//! The sockets of the sidecar, read top to bottom: one connection, one task. Decisions are in the pure modules.
//!
//! `listen` accepts, `tls` proves who is there, `http` serves a connection, `forward` takes our app's requests out,
//! `metered` ends floods, `copy` lets a body be sent twice, `stream` carries what is no request, `dial` and `tunnel` make
//! mesh connections, `outside` those that leave the mesh, `ingress` lets clients outside in, `app` hands requests from the mesh
//! to our app, `concurrency` keeps more from it than it can do, `guard` ends bodies that are too large or too slow, `check` finds out whether it
//! is well.

pub mod app;
pub mod authentication;
pub mod authorize;
pub mod body;
pub mod check;
pub mod concurrency;
pub mod copy;
pub mod dial;
pub mod dns;
pub mod forward;
pub mod guard;
pub mod http;
pub mod ingress;
pub mod limits;
pub mod listen;
pub mod loops;
pub mod metered;
mod not_tls;
pub mod outside;
pub mod peek;
pub mod record;
pub mod sever;
pub mod stream;
pub mod tls;
pub mod tunnel;
