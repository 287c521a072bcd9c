//! Handshakes: mutual TLS 1.3 straight to the target's sidecar, opened and closed; nothing is resumed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use spiffe::X509Source;

use crate::bare;
use crate::certificates::{Certificates, NAME};
use crate::measure::{Figures, Part, ratio, rotated};
use crate::peers::Pair;
use crate::{Arguments, FRESH_AT_A_TIME, House, LOCAL, load};

/// Longest wait for an SVID of the bench's own.
const SVID_WITHIN: Duration = Duration::from_secs(20);

/// Whose B: name, where it listens, process, what to show it.
type Door = (&'static str, SocketAddr, u32, Arc<ClientConfig>);

pub fn run(arguments: &Arguments, house: &House, pairs: &[(&'static str, bool, Pair)]) -> Result<()> {
    let files = house.certificates.directory();
    let shown =
        (bare::chain(&files.join(Certificates::CLIENT))?, bare::key(&files.join(Certificates::CLIENT_KEY))?);
    let svid = load::run(svid(house))?;
    let mesh = &house.mesh;
    let mut doors: Vec<Door> = vec![(LOCAL, mesh.inbound, mesh.target.pid(), client(svid, &[b"h2"])?)];
    // Whoever copies dials the app for each connection too; that is in the table of connections.
    for (name, _, pair) in pairs.iter().filter(|(_, copies, _)| !copies) {
        let alpn: &[u8] = if name.contains("HTTP/2") { b"h2" } else { b"http/1.1" };
        let shown = (shown.0.clone(), shown.1.clone_key());
        doors.push((*name, pair.inbound, pair.server.pid(), client(shown, &[alpn])?));
    }
    let mut figures: BTreeMap<&str, Figures> = BTreeMap::new();
    for round in 0..arguments.rounds {
        for (name, address, pid, config) in rotated(&doors, round) {
            let time = Duration::from_secs(arguments.seconds);
            let handshakes = || load::run(load::handshakes(*address, NAME, config, FRESH_AT_A_TIME, time));
            let into = figures.entry(name).or_default();
            into.add(&[(Part::B, *pid)], handshakes).with_context(|| format!("handshakes with {name}"))?;
        }
    }
    let rows: BTreeMap<_, _> = figures.into_iter().map(|(name, figures)| (name, figures.medians())).collect();
    println!(
        "\nhandshakes, mutual TLS 1.3, none resumed, {FRESH_AT_A_TIME} at a time, medians of {} rounds of {} s",
        arguments.rounds, arguments.seconds
    );
    println!("{:<28} {:>12} {:>8} {:>8}", "", "handshakes/s", "µs of B", "ours/it");
    let ours = rows.get(LOCAL).map(|row| row.of(&[Part::B]));
    for (name, ..) in &doors {
        let Some(row) = rows.get(name) else { continue };
        let cpu = row.of(&[Part::B]);
        let against = ratio(ours.filter(|_| *name != LOCAL), cpu);
        println!("{name:<28} {:>12.0} {:>8.0} {against:>8}", row.per_second, cpu * 1e6);
    }
    Ok(())
}

type Shown = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// What the agent gives to this process.
async fn svid(house: &House) -> Result<Shown> {
    let agent = format!("unix://{}", house.demo.address("east", "agent", "agent-1", "socket")?);
    let source = X509Source::builder().endpoint(&agent).build();
    let source = tokio::time::timeout(SVID_WITHIN, source).await.context("no SVID in time")??;
    let svid = source.svid()?;
    let chain = svid.cert_chain().iter().map(|one| CertificateDer::from(one.as_bytes().to_vec())).collect();
    let key = PrivateKeyDer::try_from(svid.private_key().as_bytes().to_vec());
    source.shutdown_with_timeout(SVID_WITHIN).await?;
    Ok((chain, key.map_err(|error| anyhow::anyhow!("the SVID's key: {error}"))?))
}

fn client((chain, key): Shown, alpn: &[&[u8]]) -> Result<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let schemes = provider.signature_verification_algorithms.supported_schemes();
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(schemes)))
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// The load looks at no certificate: what is measured is the other side, and the load must not be what is slow.
#[derive(Debug)]
struct Anybody(Vec<SignatureScheme>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}
