//! The crate `spiffe-rustls` as a client of our proxy and as a server behind an address: its TLS, its verifier, its
//! authorizer, our agent's Workload API.

use std::convert::Infallible;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use hanse_tests::house::Demo;
use hanse_tests::http::{self, Answer};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::ServerName;
use serde_json::Value;
use spiffe_rustls::{authorizer, mtls_client, mtls_server};
use tokio::net::{TcpListener, TcpStream};

use super::{DETAILS_ID, EAST, SOON, register, until};

const ID: &str = "spiffe://east.example/ns/shop/sa/rustls";
/// Header of its answers: the names in the caller's certificate.
const SEEN: &str = "library-saw";

pub async fn calls_and_is_called(demo: &Demo) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let me = std::env::current_exe()?.canonicalize()?;
    let address = listener.local_addr()?.to_string();
    register(demo, ID, &me, &["--service", "shop/rustls", "--address", &address])?;
    demo.run(["service", "export", "shop/rustls"].iter().chain(&EAST))?;
    let agent = format!("unix://{}", demo.address("east", "agent", "agent-1", "socket")?);
    let source = tokio::time::timeout(SOON, spiffe::X509SourceBuilder::new().endpoint(&agent).build());
    let source = source.await.context("no SVID in time")??;

    let details = demo.address("east", "proxy", "details-1", "inbound")?;
    let client = |expected: &str| -> Result<_> {
        let builder = mtls_client(source.clone()).authorize(authorizer::exact([expected])?);
        Ok(Arc::new(builder.with_alpn_protocols(["h2"]).build()?))
    };
    let answer = get(&details, client(DETAILS_ID)?).await?;
    let part: Value = serde_json::from_slice(&answer)?;
    ensure!(part["service"] == "details" && part["callerSeen"] == ID, "{part}");
    let other = get(&details, client("spiffe://east.example/ns/shop/sa/ratings")?).await;
    ensure!(other.is_err(), "details passes for ratings: {other:?}");

    let server = mtls_server(source.clone())
        .authorize(authorizer::trust_domains(["east.example", "west.example"])?)
        .with_alpn_protocols(["h2"])
        .build()?;
    let serving = tokio::spawn(serve(listener, Arc::new(server)));
    for (cluster, host) in [("east", "cluster.local"), ("west", "clusterset.local")] {
        let load = demo.address(cluster, "proxy", "load-1", "outbound")?;
        let host = format!("rustls.shop.svc.{host}");
        let called = async || {
            let answer = http::get(&load, &host, "/").await?;
            saw(&answer, &format!("spiffe://{cluster}.example/ns/shop/sa/load"))
        };
        until(&format!("a proxy of {cluster} calls spiffe-rustls"), SOON, called).await?;
    }
    serving.abort();
    demo.run(["service", "unexport", "shop/rustls"].iter().chain(&EAST))?;
    demo.run(["workload", "delete", ID, "--agent", "agent-1", "--yes"].iter().chain(&EAST))?;
    source.shutdown_with_timeout(SOON).await?;
    Ok(())
}

fn saw(answer: &Answer, caller: &str) -> Result<()> {
    let seen = answer.headers.get(SEEN).and_then(|v| v.to_str().ok());
    ensure!(answer.status == 200 && seen == Some(caller), "{answer:?}");
    Ok(())
}

/// One request over one connection of its own.
async fn get(address: &str, config: Arc<rustls::ClientConfig>) -> Result<Bytes> {
    let tcp = TcpStream::connect(address).await?;
    let tls =
        tokio_rustls::TlsConnector::from(config).connect(ServerName::try_from("any.internal")?, tcp).await?;
    let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (mut sender, connection) = builder.handshake(TokioIo::new(tls)).await?;
    tokio::spawn(connection);
    let request =
        hyper::Request::get("https://details.shop.svc.cluster.local/").body(Empty::<Bytes>::new())?;
    let answer = sender.send_request(request).await?;
    if answer.status() != 200 {
        bail!("{}", answer.status());
    }
    Ok(answer.into_body().collect().await?.to_bytes())
}

/// Answers everybody with the names in his certificate.
async fn serve(listener: TcpListener, config: Arc<rustls::ServerConfig>) -> Result<()> {
    let acceptor = tokio_rustls::TlsAcceptor::from(config);
    loop {
        let (tcp, _) = listener.accept().await?;
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let tls = acceptor.accept(tcp).await?;
            let leaf = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first());
            let leaf = hanse_identity::SvidFacts::parse(leaf.context("no certificate")?)?;
            let name = leaf.id.to_string();
            let answer = move |_| {
                let answer = hyper::Response::builder().header(SEEN, &name);
                std::future::ready(Ok::<_, Infallible>(
                    answer.body(Full::<Bytes>::default()).expect("it is one"),
                ))
            };
            let service = hyper::service::service_fn(answer);
            let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            http2.serve_connection(TokioIo::new(tls), service).await?;
            anyhow::Ok(())
        });
    }
}
