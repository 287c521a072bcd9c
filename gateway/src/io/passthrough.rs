//! The passthrough door: TLS that is not ours to decrypt, routed by the server name in its first bytes and copied.
//!
//! Proxies of this cluster reach the gateways of joined clusters through it; what is asked for must be a gateway
//! that a peer has told us of, or an exported service of ours. Anything else is closed and counted.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hanse_federation::View;
use hanse_federation::sni::Sni;
use hanse_proxy::runtime::drain::Stop;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::{ACCEPT_PAUSE, CONNECT_TIMEOUT, ENDPOINTS_TRIED, Gateway};
use crate::server_name::{self, Verdict};
use crate::telemetry::Open;

/// Connections that are carried at a time.
const MAX_CONNECTIONS: usize = 4096;
/// Longest wait for a whole ClientHello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a connection goes nowhere: the label of the refusal counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum NoWay {
    #[error("no View yet")]
    NotReady,
    #[error("the server name is not one that leads anywhere from here")]
    UnknownName,
    #[error("the target does not answer")]
    Unreachable,
}

/// Accepts until draining; returns when every connection has ended.
pub async fn serve(listener: TcpListener, gateway: Arc<Gateway>, mut stop: Stop) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.draining() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            gateway.plane.telemetry.refused("passthrough-connections");
            continue;
        };
        let gateway = Arc::clone(&gateway);
        connections.spawn(async move {
            if let Err(error) = carry(stream, &gateway).await {
                tracing::debug!(%error, "passthrough connection ended");
            }
            drop(place);
        });
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn carry(mut dialler: TcpStream, gateway: &Gateway) -> io::Result<()> {
    let _ = dialler.set_nodelay(true);
    let telemetry = &gateway.plane.telemetry;
    let read = tokio::time::timeout(HELLO_TIMEOUT, read_hello(&mut dialler)).await;
    let (sni, first_bytes) = match read {
        Ok(Ok(Ok(named))) => named,
        Ok(Ok(Err(refused))) => {
            telemetry.refused("server-name");
            tracing::debug!(%refused, "passthrough refused");
            return Ok(());
        }
        Ok(Err(error)) => return Err(error),
        Err(_) => {
            telemetry.refused("server-name-timeout");
            return Ok(());
        }
    };
    match target(&sni, gateway).await {
        Ok((mut target, peer)) => {
            let open = gateway.telemetry.open(&peer, "passthrough");
            open.inward.inc_by(first_bytes.len() as u64);
            target.write_all(&first_bytes).await?;
            carry_on(dialler, target, open, gateway).await
        }
        Err(why) => {
            telemetry.refused(match why {
                NoWay::NotReady => "not-ready",
                NoWay::UnknownName => "server-name-unknown",
                NoWay::Unreachable => "passthrough-unreachable",
            });
            tracing::debug!(?sni, %why, "passthrough refused");
            Ok(())
        }
    }
}

#[cfg(target_os = "linux")]
async fn carry_on(dialler: TcpStream, target: TcpStream, open: Open, gateway: &Gateway) -> io::Result<()> {
    super::pipe::relay_tcp(dialler, target, open, &gateway.pipes).await
}

#[cfg(not(target_os = "linux"))]
async fn carry_on(dialler: TcpStream, target: TcpStream, open: Open, _: &Gateway) -> io::Result<()> {
    super::relay::relay(dialler, target, open).await
}

/// Reads until the server name is known; the bytes read are to be passed on.
async fn read_hello(stream: &mut TcpStream) -> io::Result<Result<(Sni, Vec<u8>), server_name::Refused>> {
    let mut bytes = Vec::with_capacity(4096);
    loop {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match server_name::read(&bytes) {
            Verdict::More => {}
            Verdict::Name(sni) => return Ok(Ok((sni, bytes))),
            Verdict::Refused(refused) => return Ok(Err(refused)),
        }
    }
}

/// Where the name leads, connected; and the peer's name for the counters.
async fn target(sni: &Sni, gateway: &Gateway) -> Result<(TcpStream, String), NoWay> {
    let view = gateway.plane.knowledge.view().ok_or(NoWay::NotReady)?;
    let (addresses, peer) = addresses(&view, sni).ok_or(NoWay::UnknownName)?;
    for address in addresses.into_iter().take(ENDPOINTS_TRIED) {
        if let Ok(Ok(stream)) = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(&address)).await {
            let _ = stream.set_nodelay(true);
            return Ok((stream, peer));
        }
    }
    Err(NoWay::Unreachable)
}

/// Addresses that the name may lead to, in the order to try them.
fn addresses(view: &View, sni: &Sni) -> Option<(Vec<String>, String)> {
    match sni {
        Sni::Gateway { gateway, cluster } => {
            let peer = view.peers.get(cluster)?;
            let summary = peer.gateways.iter().find(|g| g.name == *gateway)?;
            Some((vec![summary.tunnel.clone()], cluster.to_string()))
        }
        Sni::Service { service, cluster } if *cluster == view.cluster => {
            view.services.get(service)?.export.as_ref()?;
            let ready = view.endpoints_of(service).filter(|e| e.ready);
            Some((ready.map(|e| e.address.to_string()).collect(), "own".to_owned()))
        }
        Sni::Service { .. } => None,
    }
}
