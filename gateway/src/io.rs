//! The shell of the gateway: sockets, TLS and copying. Decisions are made in `route`, `limit` and `server_name`.

mod opening;
pub mod passthrough;
#[cfg(target_os = "linux")]
pub mod pipe;
pub mod relay;
pub mod tunnel;

use std::sync::Arc;
use std::time::Duration;

use hanse_proxy::runtime::Plane;

use crate::limit::Limits;
use crate::telemetry::GatewayTelemetry;

/// What both doors share.
pub struct Gateway {
    pub plane: Arc<Plane>,
    /// Streams, by source cluster.
    pub limits: Limits,
    /// Tunnel connections, by source cluster.
    pub connections: Limits,
    pub telemetry: GatewayTelemetry,
    /// For what passes through.
    #[cfg(target_os = "linux")]
    pub pipes: pipe::Pipes,
}

/// Longest wait for a TCP connection to an endpoint or another gateway.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Endpoints that are tried before the caller is told that nobody is there.
const ENDPOINTS_TRIED: usize = 3;
/// Pause after `accept` failed (out of file descriptors, most likely), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests;
