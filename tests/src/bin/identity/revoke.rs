//! Revocations with live connections: this process holds many identities of east, each with one connection to a
//! proxy of east and one to a gateway of west. Identities are revoked one after the other. Measured from the moment
//! the order is given: when both connections are cut, and when a new handshake is refused at both doors.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use hanse_control::admin::RevokeRequest;
use hanse_control::io::dial::{FixedIdentity, FixedTrust};
use hanse_identity::svid::Svid;
use hanse_identity::tls::{Expect, client_config};
use hanse_identity::{
    AuthorityCertificate, Bundle, Reason, RevocationTarget, Revocations, SpiffeId, Trust, TrustDomain,
};
use hanse_tests::house::Demo;
use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::scene;

/// A new connection is tried this often until it is refused.
const KNOCK_EVERY: Duration = Duration::from_millis(2);

#[derive(clap::Args)]
pub struct Arguments {
    /// Identities that are revoked, one after the other
    #[arg(long, default_value_t = 200)]
    revocations: usize,
    /// Live connections, over all identities: two each
    #[arg(long, default_value_t = 500)]
    connections: usize,
}

/// Where a caller goes, and who answers there.
#[derive(Clone)]
struct Door {
    address: SocketAddr,
    trust_domain: TrustDomain,
    /// The service that is asked for: by a GET at a proxy, by a CONNECT at a gateway.
    authority: &'static str,
    gateway: bool,
}

/// One identity with its connections.
struct Holder {
    id: SpiffeId,
    tls: Vec<(Door, Arc<rustls::ClientConfig>)>,
    /// When each connection was cut.
    cut: Vec<watch::Receiver<Option<Instant>>>,
}

pub async fn run(arguments: Arguments) -> Result<()> {
    let count = arguments.connections.div_ceil(2);
    ensure!(count >= arguments.revocations, "more revocations than identities: give more --connections");
    let demo = Demo::up(["--rps", "0"])?;
    let client = Arc::new(scene::administrator(&demo, "east").await?);
    let ids: Result<Vec<_>> = (0..count).map(|n| scene::identity("east", n)).collect();
    let registrations: Result<Vec<_>> = ids?.iter().map(|id| scene::registration(id, "agent-1", 0)).collect();
    scene::register(&client, registrations?).await?;
    let doors = [
        Door {
            address: demo.address("east", "proxy", "details-1", "inbound")?.parse()?,
            trust_domain: "east.example".parse()?,
            authority: "details.shop.svc.cluster.local",
            gateway: false,
        },
        Door {
            address: demo.address("west", "gateway", "gateway-1", "tunnel")?.parse()?,
            trust_domain: "west.example".parse()?,
            authority: "ratings.shop.svc.clusterset.local:443",
            gateway: true,
        },
    ];
    let dropped = Arc::new(AtomicU64::new(0));
    let mut holders = hold(&scene::endpoint(&demo, "east")?, count, &doors).await?;
    println!(
        "{} identities hold {} live connections in two clusters",
        holders.len(),
        holders.len() * doors.len()
    );

    let (mut cuts, mut refusals, mut committed) = (Vec::new(), Vec::new(), Vec::new());
    for holder in holders.drain(..arguments.revocations).collect::<Vec<_>>() {
        let started = Instant::now();
        let request: RevokeRequest = serde_json::from_value(json!({
            "target": RevocationTarget::Identity(holder.id.clone()), "reason": Reason::KeyCompromise,
        }))?;
        let ordered = async {
            client.call(&request).await?;
            anyhow::Ok(started.elapsed())
        };
        let (ordered, (cut, refused)) =
            tokio::try_join!(ordered, async { tokio::try_join!(all_cut(&holder), all_refused(&holder)) })?;
        committed.push(ordered.as_secs_f64() * 1e3);
        cuts.push(cut.saturating_duration_since(started).as_secs_f64() * 1e3);
        refusals.push(refused.saturating_duration_since(started).as_secs_f64() * 1e3);
    }
    for holder in &holders {
        let gone = holder.cut.iter().filter(|cut| cut.borrow().is_some()).count();
        dropped.fetch_add(gone as u64, Ordering::Relaxed);
    }
    println!("committed (the order is answered):          {}", scene::spread(&mut committed));
    println!("live connections cut, both clusters:        {}", scene::spread(&mut cuts));
    println!("new handshakes refused, both clusters:      {}", scene::spread(&mut refusals));
    let dropped = dropped.load(Ordering::Relaxed);
    println!("unrelated connections dropped: {dropped} of {}", holders.len() * doors.len());
    ensure!(dropped == 0, "{dropped} unrelated connections were dropped");
    Ok(())
}

/// SVIDs of all identities from the Workload API, and their connections.
async fn hold(endpoint: &str, count: usize, doors: &[Door]) -> Result<Vec<Holder>> {
    let context = tokio::time::timeout(scene::SOON, async {
        loop {
            let api = spiffe::WorkloadApiClient::connect_to(endpoint).await?;
            match api.fetch_x509_context().await {
                Ok(context) if context.svids().len() == count => return anyhow::Ok(context),
                _ => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    })
    .await
    .context("not every identity has its SVID")??;
    let mut bundles = Vec::new();
    for door in doors {
        let name = spiffe::TrustDomain::new(door.trust_domain.as_str())?;
        let bundle = context.bundle_set().get(&name).with_context(|| format!("no bundle of {name}"))?;
        let authorities: Result<Vec<_>, _> = bundle
            .authorities()
            .iter()
            .map(|a| AuthorityCertificate::parse(a.as_bytes(), &door.trust_domain))
            .collect();
        let bundle: Bundle = serde_json::from_value(json!({
            "trust_domain": door.trust_domain, "sequence": 1, "authorities": authorities?,
        }))?;
        bundles.push(bundle);
    }
    let trust = Arc::new(FixedTrust(Arc::new(Trust::new(&bundles, Revocations::default()))));
    let mut holders = Vec::new();
    for svid in context.svids() {
        let chain = svid.cert_chain().iter().map(|c| c.as_bytes().to_vec()).collect();
        let svid = Svid::new(chain, Zeroizing::new(svid.private_key().as_bytes().to_vec()))?;
        let identity = Arc::new(FixedIdentity::new(&svid)?);
        let mut holder = Holder { id: svid.facts.id.clone(), tls: Vec::new(), cut: Vec::new() };
        for door in doors {
            let expect = Expect::TrustDomain(door.trust_domain.clone());
            let config = client_config(trust.clone(), identity.clone(), expect, &[b"h2"]);
            let (told, cut) = watch::channel(None);
            let live = connect(door, config.clone()).await.context(door.authority)?;
            tokio::spawn(async move {
                live.ended.await;
                let _ = told.send(Some(Instant::now()));
                drop(live.stream);
            });
            holder.tls.push((door.clone(), config));
            holder.cut.push(cut);
        }
        holders.push(holder);
    }
    Ok(holders)
}

async fn all_cut(holder: &Holder) -> Result<Instant> {
    let mut last = None;
    for cut in &holder.cut {
        let mut cut = cut.clone();
        let at =
            *tokio::time::timeout(scene::SOON, cut.wait_for(Option::is_some)).await.context("not cut")??;
        last = last.max(at);
    }
    last.context("the holder has no connection")
}

async fn all_refused(holder: &Holder) -> Result<Instant> {
    let doors = holder.tls.iter().map(|(door, config)| refused(door, config));
    let refused = futures_util::future::try_join_all(doors).await?;
    refused.into_iter().max().context("the holder has no door")
}

async fn refused(door: &Door, config: &Arc<rustls::ClientConfig>) -> Result<Instant> {
    let started = Instant::now();
    loop {
        ensure!(started.elapsed() < scene::SOON, "a new connection is not refused");
        match connect(door, config.clone()).await {
            Ok(live) => drop(live),
            Err(_) => return Ok(Instant::now()),
        }
        tokio::time::sleep(KNOCK_EVERY).await;
    }
}

/// A connection that was let in: whoever is let in keeps its stream.
struct Live {
    stream: Option<hyper::upgrade::Upgraded>,
    ended: futures_util::future::BoxFuture<'static, ()>,
}

async fn connect(door: &Door, config: Arc<rustls::ClientConfig>) -> Result<Live> {
    let tcp = TcpStream::connect(door.address).await?;
    tcp.set_nodelay(true)?;
    let tls = tokio_rustls::TlsConnector::from(config)
        .connect(ServerName::try_from("hanse.internal")?, tcp)
        .await?;
    let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (mut sender, connection) = builder.handshake::<_, Empty<Bytes>>(TokioIo::new(tls)).await?;
    let connection = tokio::spawn(async move {
        let _ = connection.await;
    });
    let request = if door.gateway {
        http::Request::builder().method(http::Method::CONNECT).uri(door.authority).body(Empty::new())?
    } else {
        http::Request::builder().uri(format!("https://{}/", door.authority)).body(Empty::new())?
    };
    let response = sender.send_request(request).await?;
    if !response.status().is_success() {
        connection.abort();
        bail!("{} {:?}", response.status(), response.headers().get("x-hanse-reason"));
    }
    let stream = if door.gateway { Some(hyper::upgrade::on(response).await?) } else { None };
    // hyper ends a connection whose last sender has gone: what is held ends by the other end's doing only.
    let ended = Box::pin(async move {
        let _ = connection.await;
        drop(sender);
    });
    Ok(Live { stream, ended })
}
