//! HTTP/2 floods at every listener that speaks it (reliability: T12, T13, T14): each attack is spoken byte by byte over
//! a connection that is let in, until it is closed; meanwhile others are served, and the victim's memory is looked at.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hanse_control::io::dial::{FixedIdentity, FixedTrust};
use hanse_identity::svid::Svid;
use hanse_identity::tls::{Expect, client_config};
use hanse_identity::{AuthorityCertificate, Bundle, Revocations, Trust};
use hanse_tests::house::Demo;
use hanse_tests::http;
use rustls::pki_types::ServerName;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use zeroize::Zeroizing;

const EAST: [&str; 2] = ["--context", "demo-east"];
const ID: &str = "spiffe://east.example/ns/shop/sa/flood";
const SOON: Duration = Duration::from_secs(60);
/// What one attack sends at most, if nobody stops it.
const MOST: usize = 8 << 20;
/// What `reliability` asks for: memory per byte of the attack.
const AMPLIFICATION: f64 = 4.0;
/// Requests that one connection may have open, and the fields of each, both as in `proxy/src/io/http.rs`.
const HELD: u32 = 1024;
const HELD_FIELDS: usize = 120;
/// What they may take (T12).
const HELD_MIB: f64 = 64.0;
/// What a process may take however little was sent: the requests that were open before the attack was noticed.
const NOISE_MIB: f64 = 16.0;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const GREASE: u8 = 0xfa;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// GET, https, and this path at this host, in HPACK that remembers nothing.
fn head(path: &str, authority: &str) -> Vec<u8> {
    let mut block = vec![0x82, 0x87, 0x04, u8::try_from(path.len()).unwrap()];
    block.extend(path.bytes());
    block.extend([0x01, u8::try_from(authority.len()).unwrap()]);
    block.extend(authority.bytes());
    block
}

/// One way to misuse a connection.
struct Attack {
    name: &'static str,
    /// What is sent once, on stream 1.
    first: Vec<u8>,
    /// What is sent again and again; it is told the stream.
    again: Box<dyn Fn(u32) -> Vec<u8> + Send + Sync>,
}

/// Those that end with the connection closed.
fn floods(path: &'static str, authority: &'static str) -> Vec<Attack> {
    let head = head(path, authority);
    let open = frame(HEADERS, END_HEADERS, 1, &head);
    let whole = {
        let head = head.clone();
        move |stream| frame(HEADERS, END_HEADERS | END_STREAM, stream, &head)
    };
    let constant = |name, first: &[u8], again: Vec<u8>| Attack {
        name,
        first: first.to_vec(),
        again: Box::new(move |_| again.clone()),
    };
    let mut attacks = vec![
        constant("SETTINGS", &[], frame(SETTINGS, 0, 0, &[])),
        constant("PING", &[], frame(PING, 0, 0, &[7; 8])),
        constant("WINDOW_UPDATE", &[], frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        constant("PRIORITY", &[], frame(PRIORITY, 0, 3, &[0, 0, 0, 0, 1])),
        constant("unknown frames", &[], frame(GREASE, 0, 0, b"grease")),
        constant("empty DATA", &open, frame(DATA, 0, 1, &[])),
        constant("CONTINUATION", &frame(HEADERS, 0, 1, &head), frame(CONTINUATION, 0, 1, &[])),
        constant(
            "CONTINUATION with fields",
            &frame(HEADERS, 0, 1, &head),
            frame(CONTINUATION, 0, 1, &b"\x00\x01a\x01b".repeat(3000)),
        ),
    ];
    // Rapid Reset, and the primitives of MadeYouReset: a request, and what makes the server take it back itself.
    let provoked: [(&'static str, u8, Vec<u8>); 6] = [
        ("Rapid Reset", RST_STREAM, vec![0, 0, 0, 8]),
        ("MadeYouReset: no increment", WINDOW_UPDATE, vec![0; 4]),
        ("MadeYouReset: window too large", WINDOW_UPDATE, vec![0x7f, 0xff, 0xff, 0xff]),
        ("MadeYouReset: PRIORITY of four bytes", PRIORITY, vec![0; 4]),
        ("MadeYouReset: DATA after the end", DATA, b"more".to_vec()),
        ("MadeYouReset: PRIORITY on itself", PRIORITY, Vec::new()),
    ];
    for (name, kind, payload) in provoked {
        let whole = whole.clone();
        let again = move |stream: u32| {
            let itself = [&stream.to_be_bytes()[..], &[1]].concat();
            let payload = if payload.is_empty() { &itself } else { &payload };
            [whole(stream), frame(kind, 0, stream, payload)].concat()
        };
        attacks.push(Attack { name, first: Vec::new(), again: Box::new(again) });
    }
    let again = move |stream| [whole(stream), whole(stream)].concat();
    attacks.push(Attack {
        name: "MadeYouReset: HEADERS after the end",
        first: Vec::new(),
        again: Box::new(again),
    });
    attacks
}

/// Four kilobytes that the table remembers, and a head that names them sixteen thousand times.
fn hpack_bomb(authority: &'static str) -> Attack {
    let mut first = head("/", authority);
    first.extend(b"\x40\x06x-bomb\x7f\xa1\x1e");
    first.extend([b'a'; 4000]);
    let bomb = [head("/", authority), vec![0xbe; 16_000]].concat();
    Attack {
        name: "HPACK bomb",
        first: frame(HEADERS, END_HEADERS | END_STREAM, 1, &first),
        again: Box::new(move |stream| frame(HEADERS, END_HEADERS | END_STREAM, stream, &bomb)),
    }
}

/// As many requests as may be open at a time, each with as many fields as it may have, a byte each on the wire, and
/// never ended.
fn held_heads(authority: &'static str) -> Attack {
    let first = [head("/", authority), b"\x40\x01x\x01y".to_vec()].concat();
    let fields = [head("/", authority), vec![0xbe; HELD_FIELDS]].concat();
    let again = move |stream: u32| match stream / 2 <= HELD {
        true => frame(HEADERS, END_HEADERS, stream, &fields),
        // Bodies that go on, as slowly as the bytes of this attack allow.
        false => frame(DATA, 0, (stream % (2 * HELD)) | 1, b"more"),
    };
    Attack {
        name: "heads that are held",
        first: frame(HEADERS, END_HEADERS, 1, &first),
        again: Box::new(again),
    }
}

/// What became of one.
struct Outcome {
    sent: usize,
    closed: bool,
}

async fn attack<S>(stream: S, attack: &Attack) -> Result<Outcome>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (mut reader, mut writer) = tokio::io::split(stream);
    let reading = tokio::spawn(async move { tokio::io::copy(&mut reader, &mut tokio::io::sink()).await });
    let mut sent = 0;
    let flood = async {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(frame(SETTINGS, 0, 0, &[]));
        bytes.extend(&attack.first);
        let mut stream = 3;
        while sent < MOST {
            while bytes.len() < 16_384 {
                bytes.extend((attack.again)(stream));
                stream += 2;
            }
            if writer.write_all(&bytes).await.is_err() || writer.flush().await.is_err() {
                return true;
            }
            sent += bytes.len();
            bytes.clear();
            if reading.is_finished() {
                return true;
            }
        }
        false
    };
    let closed = tokio::time::timeout(SOON, flood).await.context("neither closed nor read any more")?;
    reading.abort();
    Ok(Outcome { sent, closed })
}

/// A listener, and how to come in.
enum Door {
    Tls(String, Arc<rustls::ClientConfig>),
    Tcp(String),
    Unix(String),
}

impl Door {
    async fn suffer(&self, what: &Attack) -> Result<Outcome> {
        match self {
            Self::Tls(address, config) => {
                let tcp = TcpStream::connect(address).await?;
                let name = ServerName::try_from("hanse.internal")?;
                let connector = tokio_rustls::TlsConnector::from(config.clone());
                attack(connector.connect(name, tcp).await?, what).await
            }
            Self::Tcp(address) => attack(TcpStream::connect(address).await?, what).await,
            Self::Unix(path) => attack(UnixStream::connect(path).await?, what).await,
        }
    }
}

/// TLS with the SVID that the agent gives to this process.
async fn configuration(demo: &Demo) -> Result<Arc<rustls::ClientConfig>> {
    use std::os::unix::fs::MetadataExt as _;
    let uid = format!("unix:uid:{}", std::fs::metadata(demo.dir())?.uid());
    let path = format!("unix:path:{}", std::env::current_exe()?.canonicalize()?.display());
    let register =
        ["workload", "register", ID, "--agent", "agent-1", "--selector", &uid, "--selector", &path];
    demo.run(register.iter().chain(&EAST))?;
    let agent = format!("unix://{}", demo.address("east", "agent", "agent-1", "socket")?);
    let fetched = tokio::time::timeout(SOON, async {
        loop {
            let api = spiffe::WorkloadApiClient::connect_to(&agent).await?;
            match api.fetch_x509_context().await {
                Ok(context) if !context.svids().is_empty() => return anyhow::Ok(context),
                _ => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    });
    let context = fetched.await.context("no SVID for this test")??;
    let trust_domain = "east.example".parse()?;
    let bundle = context.bundle_set().get(&spiffe::TrustDomain::new("east.example")?).context("no bundle")?;
    let authorities: Result<Vec<_>, _> = bundle
        .authorities()
        .iter()
        .map(|a| AuthorityCertificate::parse(a.as_bytes(), &trust_domain))
        .collect();
    let bundle = json!({ "trust_domain": trust_domain, "sequence": 1, "authorities": authorities? });
    let bundle: Bundle = serde_json::from_value(bundle)?;
    let trust = Arc::new(FixedTrust(Arc::new(Trust::new([&bundle], Revocations::default()))));
    let svid = context.svids().first().context("no SVID")?;
    let chain = svid.cert_chain().iter().map(|c| c.as_bytes().to_vec()).collect();
    let svid = Svid::new(chain, Zeroizing::new(svid.private_key().as_bytes().to_vec()))?;
    let identity = Arc::new(FixedIdentity::new(&svid)?);
    Ok(client_config(trust, identity, Expect::TrustDomain(trust_domain), &[b"h2"]))
}

/// Lets the peak of a process's memory be measured anew; what it has now.
fn begin_peak(pid: u32) -> Result<f64> {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5")?;
    memory_mib(pid, "VmRSS:")
}

fn memory_mib(pid: u32, which: &str) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix(which)).with_context(|| format!("no {which}"))?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<f64>()? / 1024.0)
}

/// Every flood at every listener.
pub async fn are_cut_off_and_nobody_else_notices(demo: &Demo) -> Result<()> {
    let tls = configuration(demo).await?;
    let details = "details.shop.svc.cluster.local";
    let load = demo.address("east", "proxy", "load-1", "outbound")?;
    let at = |role, name, purpose| demo.address("east", role, name, purpose);
    let doors = [
        ("proxy", "details-1", details, Door::Tls(at("proxy", "details-1", "inbound")?, tls.clone())),
        ("proxy", "load-1", details, Door::Tcp(load.clone())),
        ("gateway", "gateway-1", details, Door::Tls(at("gateway", "gateway-1", "tunnel")?, tls.clone())),
        ("control", "control-1", "hanse.internal", Door::Tls(at("control", "control-1", "api")?, tls)),
        ("agent", "agent-1", "localhost", Door::Unix(at("agent", "agent-1", "socket")?)),
    ];
    let mut slowest = Duration::ZERO;
    for (role, name, authority, door) in &doors {
        let pid = demo.pid("east", role, name)?;
        let bomb = hpack_bomb(authority);
        for what in floods("/", authority).iter().chain([&bomb]) {
            let before = begin_peak(pid)?;
            let suffering = door.suffer(what);
            let others = async {
                let asked = Instant::now();
                let answer = http::get(&load, details, "/").await?;
                ensure!(answer.status == 200, "{} at {name}: others get {answer:?}", what.name);
                anyhow::Ok(asked.elapsed())
            };
            let (outcome, took) = tokio::join!(suffering, others);
            let outcome = outcome.with_context(|| format!("{} at {name}", what.name))?;
            slowest = slowest.max(took?);
            let grown = memory_mib(pid, "VmHWM:")? - before;
            let sent = outcome.sent as f64 / f64::from(1 << 20);
            println!(
                "{name}: {}: {} after {} KiB, memory {grown:+.1} MiB",
                what.name,
                if outcome.closed { "closed" } else { "read on" },
                outcome.sent >> 10
            );
            ensure!(outcome.closed, "{} at {name} was not ended", what.name);
            let bound = (AMPLIFICATION * sent).max(NOISE_MIB);
            ensure!(grown <= bound, "{} at {name}: {sent:.1} MiB took {grown:.1} MiB of memory", what.name);
        }
    }
    println!("others waited {slowest:?} at most");
    let metrics =
        http::get(&demo.address("east", "proxy", "details-1", "admin")?, "admin", "/metrics").await?;
    let metrics = String::from_utf8_lossy(&metrics.body);
    let counted =
        metrics.lines().find_map(|l| l.strip_prefix("hanse_refused_total{reason=\"http2_flood\"} "));
    ensure!(counted.is_some_and(|n| n != "0"), "floods are not counted: {metrics}");
    let held = held_heads(details);
    for (role, name, _, door) in &doors[..2] {
        let pid = demo.pid("east", role, name)?;
        let before = begin_peak(pid)?;
        // Nothing of it is forbidden: what counts is that there is an end to it.
        door.suffer(&held).await?;
        let grown = memory_mib(pid, "VmHWM:")? - before;
        println!("{name}: {} heads of {HELD_FIELDS} fields held: {grown:+.1} MiB", HELD);
        ensure!(grown <= HELD_MIB, "{name}: {grown:.1} MiB for heads that are held");
    }
    Ok(())
}
