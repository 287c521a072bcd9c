//! The thief: a process that has got hold of a workload's identity and does not care that it was revoked.
//!
//! A proxy of ours refuses by itself once its own identity is revoked, so it cannot show that the *others* refuse
//! it. The thief runs from the workload's executable path, gets its SVID from the agent as the workload would,
//! and then talks TLS by itself: it holds connections open, and keeps knocking. What happens is told as JSON
//! lines on standard output.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use hanse_identity::TrustDomain;
use hanse_identity::tls::{Expect, client_config};
use hanse_identity::wire::to_pem;
use hanse_proxy::runtime::credentials::Credentials;
use hanse_proxy::runtime::{Plane, credentials, drain};
use http::{Method, Request, Uri};
use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// How long the agent may take to hand out the SVID.
const SVID_TIMEOUT: Duration = Duration::from_secs(20);
/// How long one knock may take.
const KNOCK_TIMEOUT: Duration = Duration::from_secs(3);
/// How long it tries to get in at a door, and the pause between tries.
const GET_IN_WITHIN: Duration = Duration::from_secs(8);
const KNOCK_AGAIN: Duration = Duration::from_millis(100);

#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// The agent's Unix socket
    #[arg(long)]
    pub socket: PathBuf,
    /// The doors: JSON array
    #[arg(long)]
    pub doors: String,
    /// Pace of knocking, per door, in milliseconds
    #[arg(long, default_value_t = 20)]
    pub every_ms: u64,
}

/// Where the thief wants in.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Door {
    pub name: String,
    pub address: SocketAddr,
    /// Who answers there.
    pub trust_domain: TrustDomain,
    /// The service that is asked for: by a GET at a proxy, by a CONNECT at a gateway.
    pub authority: String,
    pub gateway: bool,
    /// Connections held open there.
    pub held: usize,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "event")]
pub enum Event {
    /// The SVID is stolen, and connections are held at every door. `certificate` is its leaf, PEM.
    Ready { id: String, serial: String, certificate: String, held: usize },
    /// A held connection was closed by the other end.
    Cut { door: String, at: u64 },
    /// A new connection was tried: `at` is when it was answered.
    #[serde(rename_all = "camelCase")]
    Knock { door: String, at: u64, let_in: bool, why: String },
}

type Sender = hyper::client::conn::http2::SendRequest<Empty<Bytes>>;

/// Steals, holds and knocks until it is ended.
pub fn run(config: Config) -> anyhow::Result<()> {
    let doors: Vec<Door> = serde_json::from_str(&config.doors)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        tokio::select! {
            ended = prowl(config.socket, doors, Duration::from_millis(config.every_ms)) => ended,
            () = super::signals::terminated() => Ok(()),
        }
    })
}

async fn prowl(socket: PathBuf, doors: Vec<Door>, pace: Duration) -> anyhow::Result<()> {
    let credentials = steal(socket).await?;
    let identity = credentials.current().context("the SVID was waited for")?.identity.clone();
    let facts = &identity.facts;
    let mut held = Vec::new();
    for door in &doors {
        for _ in 0..door.held {
            let (stream, connection) = get_in(&credentials, door).await.with_context(|| door.name.clone())?;
            let name = door.name.clone();
            held.push(tokio::spawn(async move {
                let _ = connection.await;
                drop(stream);
                tell(&Event::Cut { door: name, at: crate::now().0 });
            }));
        }
    }
    tell(&Event::Ready {
        id: facts.id.to_string(),
        serial: facts.serial.to_string(),
        certificate: to_pem("CERTIFICATE", identity.leaf()).to_string(),
        held: held.len(),
    });
    let knocking = doors.iter().map(|door| keep_knocking(&credentials, door, pace));
    futures_util::future::join_all(knocking).await;
    Ok(())
}

/// The SVID, as the agent hands it to the workload; nothing newer is asked for afterwards.
async fn steal(socket: PathBuf) -> anyhow::Result<Arc<Credentials>> {
    let plane = Arc::new(Plane::new("thief".parse()?, hanse_federation::Locality::default()));
    let (_drain, stop) = drain::drain();
    let following = tokio::spawn(credentials::follow(socket, plane.clone(), stop));
    let waiting = async {
        let knows = |domain: &TrustDomain| plane.credentials.agent_trust().knows(domain);
        loop {
            if let Some(current) = plane.credentials.current()
                && knows(current.identity.facts.id.trust_domain())
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let result = tokio::time::timeout(SVID_TIMEOUT, waiting).await;
    following.abort();
    result.context("the agent gave no SVID")?;
    Ok(plane.credentials.clone())
}

/// Knocks until it is let in: on a busy machine the first knocks may come too early.
async fn get_in(
    credentials: &Arc<Credentials>,
    door: &Door,
) -> anyhow::Result<(Option<hyper::upgrade::Upgraded>, JoinHandle<()>)> {
    let deadline = tokio::time::Instant::now() + GET_IN_WITHIN;
    loop {
        match knock(credentials, door).await {
            Err(_) if tokio::time::Instant::now() < deadline => tokio::time::sleep(KNOCK_AGAIN).await,
            knocked => return knocked,
        }
    }
}

async fn keep_knocking(credentials: &Arc<Credentials>, door: &Door, pace: Duration) {
    loop {
        let (let_in, why) = match knock(credentials, door).await {
            Ok((_, connection)) => {
                connection.abort();
                (true, String::new())
            }
            Err(error) => (false, format!("{error:#}")),
        };
        tell(&Event::Knock { door: door.name.clone(), at: crate::now().0, let_in, why });
        tokio::time::sleep(pace).await;
    }
}

/// One connection, and one request on it that must be let through; whoever is let in keeps both.
async fn knock(
    credentials: &Arc<Credentials>,
    door: &Door,
) -> anyhow::Result<(Option<hyper::upgrade::Upgraded>, JoinHandle<()>)> {
    tokio::time::timeout(KNOCK_TIMEOUT, knock_once(credentials, door)).await.context("no answer")?
}

async fn knock_once(
    credentials: &Arc<Credentials>,
    door: &Door,
) -> anyhow::Result<(Option<hyper::upgrade::Upgraded>, JoinHandle<()>)> {
    let expect = Expect::TrustDomain(door.trust_domain.clone());
    let config = client_config(credentials.clone(), credentials.clone(), expect, &[b"h2"]);
    let stream = TcpStream::connect(door.address).await?;
    let connector = tokio_rustls::TlsConnector::from(config);
    let stream = connector.connect(ServerName::try_from("hanse.internal")?, stream).await?;
    let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (mut sender, connection): (Sender, _) = builder.handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(async move {
        let _ = connection.await;
    });
    let request = if door.gateway {
        Request::builder().method(Method::CONNECT).uri(door.authority.parse::<Uri>()?).body(Empty::new())?
    } else {
        Request::builder().uri(format!("https://{}/", door.authority)).body(Empty::new())?
    };
    let response = sender.send_request(request).await?;
    if !response.status().is_success() {
        connection.abort();
        bail!("{} {:?}", response.status(), response.headers().get("x-hanse-reason"));
    }
    let upgraded = if door.gateway { Some(hyper::upgrade::on(response).await?) } else { None };
    // hyper ends the connection when its last sender goes; what is held must end by the other end's doing only.
    let held = tokio::spawn(async move {
        let _ = connection.await;
        drop(sender);
    });
    Ok((upgraded, held))
}

fn tell(event: &Event) {
    crate::output::data(&format!(
        "{}\n",
        serde_json::to_string(event).expect("an Event has string keys only")
    ));
}
