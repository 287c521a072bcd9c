//! Steps 3 and 4: every SVID verifies, and strangers are refused.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use hanse_control::io::dial::{FixedIdentity, FixedTrust};
use hanse_control::io::keys;
use hanse_identity::tls::{Expect, IdentitySource, client_config};
use hanse_identity::{
    Authority, AuthorityCertificate, Bundle, Evidence, NodeName, Registration, Revocations, Selector,
    SpiffeId, Svid, Trust, TrustDomain, Usage, grant,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Story, Verdict};
use crate::demo::spec::{Role, trust_domain};

/// How long a listener may take to refuse.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// HTTP/2's preface and an empty SETTINGS frame: what a real caller says first.
const HTTP2_HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";

/// What came of knocking at a listener.
#[derive(Debug)]
enum Knock {
    /// The first bytes that were answered.
    Answered(Vec<u8>),
    Refused(String),
}

impl Story<'_> {
    /// 3
    pub(super) async fn svids(&self) -> anyhow::Result<Verdict> {
        let openssl = openssl_version();
        let mut certificates = Vec::new();
        for plan in self.demo.supervisor.plans() {
            if !matches!(plan.key.role, Role::Proxy | Role::Gateway) {
                continue;
            }
            let admin = plan.address("admin").context("a proxy has an admin address")?;
            let answer = self.demo.client.get(admin, "admin", "/certs", Duration::from_secs(2)).await?;
            let certs = answer.json().with_context(|| format!("/certs of {} is no JSON", plan.key))?;
            let chain = certs["chainPem"].as_str().with_context(|| format!("{} holds no SVID", plan.key))?;
            let bundle_pem = &self.demo.connection(&plan.key.cluster)?.credential().bundle_pem;
            let verified = verify(chain, bundle_pem, &trust_domain(&plan.key.cluster))
                .with_context(|| format!("the SVID of {}", plan.key))?;
            let by_openssl = match &openssl {
                Some(_) => Some(openssl_verifies(chain, bundle_pem).with_context(|| plan.key.to_string())?),
                None => None,
            };
            certificates.push(json!({
                "process": plan.key.to_string(), "id": verified.0.to_string(), "uriNames": verified.1,
                "openssl": by_openssl,
            }));
        }
        let one_name = certificates.iter().filter(|c| c["uriNames"] == 1).count();
        let verified = certificates.iter().filter(|c| c["openssl"] == true).count();
        let ids: std::collections::BTreeSet<&str> =
            certificates.iter().filter_map(|c| c["id"].as_str()).collect();
        let ok = !certificates.is_empty()
            && one_name == certificates.len()
            && (openssl.is_none() || verified == certificates.len());
        let how = openssl.clone().unwrap_or_else(|| "openssl is not installed: own verifier only".to_owned());
        let summary = format!(
            "{} SVIDs of {} identities, one URI SAN each; {verified} verified by openssl ({how})",
            certificates.len(),
            ids.len()
        );
        let evidence = json!({
            "svids": certificates.len(), "identities": ids.len(), "oneUriName": one_name,
            "verifiedInProcess": certificates.len(), "verifiedByOpenssl": verified,
            "openssl": openssl, "certificates": certificates,
        });
        Ok(Verdict::new(ok, summary, evidence))
    }

    /// 4
    pub(super) async fn refusals(&self) -> anyhow::Result<Verdict> {
        let home = trust_domain(&self.home).parse::<TrustDomain>()?;
        let trust = Arc::new(trust_of(&self.demo.connection(&self.home)?.credential().bundle_pem, &home)?);
        let stranger = stranger(&home)?;
        let inbound = self.demo.address(&self.home, Role::Proxy, "reviews-v1-1", "inbound")?;
        let tunnel = self.demo.address(&self.home, Role::Gateway, "gateway-1", "tunnel")?;
        let mut evidence = serde_json::Map::new();
        let mut ok = true;
        let mut lines = Vec::new();
        // Who is known at each door shows that the knocks below fail for what they lack, not for how they are made.
        let doors = [("inbound", inbound, &self.home), ("gateway", tunnel, &self.away)];
        for (door, address, known_cluster) in doors {
            let known = self.demo.connection(known_cluster)?.credential().svid()?;
            let knocks = [
                ("plaintext", plaintext(address).await),
                ("noCertificate", tls(address, &trust, &home, None).await),
                ("stranger", tls(address, &trust, &home, Some(&stranger)).await),
                ("known", tls(address, &trust, &home, Some(&known)).await),
            ];
            let mut results = serde_json::Map::new();
            for (name, knock) in knocks {
                let wanted = name == "known";
                let (answered, text) = match knock {
                    Knock::Answered(bytes) => (true, format!("answered {} bytes", bytes.len())),
                    Knock::Refused(why) => (false, why),
                };
                ok &= answered == wanted;
                lines.push(format!("{door} {name}: {}", if answered { "let in" } else { "refused" }));
                results.insert(name.to_owned(), json!({ "letIn": answered, "result": text }));
            }
            evidence.insert(door.to_owned(), Value::Object(results));
        }
        evidence.insert("strangerClaims".to_owned(), json!(stranger.facts.id));
        Ok(Verdict::new(ok, lines.join(" · "), Value::Object(evidence)))
    }
}

/// The identity in a chain and how many URI names the leaf has, once `hanse_identity` believes it.
pub(super) fn verify(chain_pem: &str, bundle_pem: &str, domain: &str) -> anyhow::Result<(SpiffeId, usize)> {
    let chain = certificates(chain_pem)?;
    let domain: TrustDomain = domain.parse()?;
    let trust = trust_of(bundle_pem, &domain)?;
    let ders: Vec<&[u8]> = chain.iter().map(AsRef::as_ref).collect();
    let caller = hanse_identity::verify(&trust, &ders, crate::now(), Usage::Server)?;
    let leaf = ders.first().context("a chain has a leaf")?;
    Ok((caller.id().clone(), uri_names(leaf)?))
}

fn certificates(pem: &str) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    certificates.map_err(|e| anyhow::anyhow!("not PEM: {e}"))
}

/// Trust in the authorities of one bundle, no other.
fn trust_of(bundle_pem: &str, domain: &TrustDomain) -> anyhow::Result<Trust> {
    let authorities = certificates(bundle_pem)?;
    let authorities = authorities.iter().map(|der| AuthorityCertificate::parse(der, domain));
    let bundle = Bundle::new(domain.clone(), 1, authorities.collect::<Result<_, _>>()?);
    Ok(Trust::new([&bundle], Revocations::default()))
}

fn uri_names(der: &[u8]) -> anyhow::Result<usize> {
    use x509_parser::extensions::GeneralName;
    let (_, certificate) = x509_parser::parse_x509_certificate(der).context("the leaf cannot be parsed")?;
    let names = certificate.subject_alternative_name()?.context("the leaf has no SAN")?;
    Ok(names.value.general_names.iter().filter(|n| matches!(n, GeneralName::URI(_))).count())
}

/// The installed openssl, if there is one.
fn openssl_version() -> Option<String> {
    let output = std::process::Command::new("openssl").arg("version").output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// `openssl verify` of the leaf against the trust domain's own bundle.
fn openssl_verifies(chain_pem: &str, bundle_pem: &str) -> anyhow::Result<bool> {
    let file = |text: &str| -> anyhow::Result<tempfile::NamedTempFile> {
        let mut file = tempfile::NamedTempFile::new()?;
        file.write_all(text.as_bytes())?;
        Ok(file)
    };
    let (bundle, chain) = (file(bundle_pem)?, file(chain_pem)?);
    let output = std::process::Command::new("openssl")
        .args(["verify", "-x509_strict", "-no-CApath", "-no-CAstore", "-CAfile"])
        .arg(bundle.path())
        .arg("-untrusted")
        .arg(chain.path())
        .arg(chain.path())
        .output()?;
    let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    ensure!(output.status.success(), "openssl verify: {complaint}");
    Ok(true)
}

/// Somebody who calls himself productpage of our trust domain, under a root of his own.
fn stranger(domain: &TrustDomain) -> anyhow::Result<Svid> {
    let now = crate::now();
    let key = keys::new_key_pair()?;
    let lifetime = Duration::from_secs(3600);
    let authority =
        Authority::create(domain, &"stranger".parse()?, key, keys::random_serial(), now, lifetime)?;
    let id = SpiffeId::workload(domain, "shop", "productpage")?;
    let agent: NodeName = "stranger".parse()?;
    let selectors: std::collections::BTreeSet<_> = [Selector::Uid(0)].into();
    let registration = Registration {
        ttl_seconds: lifetime.as_secs(),
        ..Registration::new(id.clone(), agent.clone(), selectors.clone())
    };
    let evidence = Evidence { agent, selectors };
    let ticket = grant(domain, [&registration], &Revocations::default(), &evidence, &id)?;
    let key = keys::new_key_pair()?;
    let request = hanse_identity::issue::certificate_request(&key)?;
    let issued = hanse_identity::issue(ticket, &request, &authority, keys::random_serial(), now)?;
    Ok(Svid::new(issued.chain, key.serialize_der().into())?)
}

/// Speaks HTTP without TLS.
async fn plaintext(address: SocketAddr) -> Knock {
    let knock = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: reviews\r\n\r\n").await?;
        let mut answer = vec![0; 64];
        let read = stream.read(&mut answer).await?;
        answer.truncate(read);
        std::io::Result::Ok(answer)
    };
    match tokio::time::timeout(PROBE_TIMEOUT, knock).await {
        Ok(Ok(answer)) if answer.starts_with(b"HTTP/") => Knock::Answered(answer),
        Ok(Ok(answer)) if answer.is_empty() => Knock::Refused("closed".to_owned()),
        Ok(Ok(answer)) if answer[0] == 0x15 => Knock::Refused("TLS alert".to_owned()),
        Ok(Ok(answer)) => Knock::Refused(format!("closed after {} bytes that are no HTTP", answer.len())),
        Ok(Err(error)) => Knock::Refused(error.to_string()),
        Err(_) => Knock::Refused("no answer, connection left open".to_owned()),
    }
}

/// Speaks TLS and HTTP/2 with that identity, or none. In TLS 1.3 a server's refusal of the client's certificate
/// comes after the client's handshake: what counts is whether anything is answered.
async fn tls(address: SocketAddr, trust: &Arc<Trust>, domain: &TrustDomain, svid: Option<&Svid>) -> Knock {
    let knock = async {
        let identity: Arc<dyn IdentitySource> = match svid {
            Some(svid) => Arc::new(FixedIdentity::new(svid)?),
            None => Arc::new(FixedIdentity(None)),
        };
        let expect = Expect::TrustDomain(domain.clone());
        let config = client_config(Arc::new(FixedTrust(trust.clone())), identity, expect, &[b"h2"]);
        let connector = tokio_rustls::TlsConnector::from(config);
        let stream = TcpStream::connect(address).await?;
        let mut stream = connector.connect(ServerName::try_from("hanse.internal")?, stream).await?;
        stream.write_all(HTTP2_HELLO).await?;
        let mut answer = vec![0; 64];
        let read = stream.read(&mut answer).await?;
        ensure!(read > 0, "closed without an answer");
        answer.truncate(read);
        anyhow::Ok(answer)
    };
    match tokio::time::timeout(PROBE_TIMEOUT, knock).await {
        Ok(Ok(answer)) => Knock::Answered(answer),
        Ok(Err(error)) => Knock::Refused(format!("{error:#}")),
        Err(_) => Knock::Refused("no answer".to_owned()),
    }
}
