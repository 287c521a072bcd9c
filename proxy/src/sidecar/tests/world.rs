//! A world for tests: authorities, identities, a View, apps, and whole sidecar workers on loopback, in one process.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hanse_federation::catalog::{Endpoint, Export, Service, Session};
use hanse_federation::{Locality, Revision, View};
use hanse_identity::grant::{Evidence, Registration, Selector, grant, grant_downstream, grant_member};
use hanse_identity::issue::certificate_request;
use hanse_identity::name::MemberRole;
use hanse_identity::{
    Authority, Bundle, ClusterName, NestedIssuer, Reason, Revocation, RevocationId, RevocationTarget,
    Revocations, Serial, SpiffeId, Svid, Ticket, TrustDomain, issue, issue_downstream,
};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{
    CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::config::TcpUpstream;
use crate::io::record::TCP;
use crate::request_id::{REQUEST_ID, RequestId};
use crate::runtime::access_log::{AccessLog, Entry};
use crate::runtime::drain::{Drain, drain};
use crate::runtime::worker::{LocalExecutor, Random};
use crate::runtime::{Plane, now};
use crate::sidecar::{Listeners, Settings, work};
use crate::staleness::Staleness;
use crate::trace::{SpanId, TraceId};

/// One cluster's authority.
pub struct Domain {
    pub trust_domain: TrustDomain,
    authority: Authority,
    random: Random,
}

impl Domain {
    pub fn new(trust_domain: &str) -> Self {
        let trust_domain: TrustDomain = trust_domain.parse().unwrap();
        let key = KeyPair::generate().unwrap();
        let (node, serial) = ("node-1".parse().unwrap(), Serial::from_random([7; 16]));
        let authority =
            Authority::create(&trust_domain, &node, key, serial, now(), Duration::from_secs(86_400)).unwrap();
        Self { trust_domain, authority, random: Random::from_entropy() }
    }

    pub fn cluster(&self) -> ClusterName {
        self.trust_domain.as_str().split('.').next().unwrap().parse().unwrap()
    }

    pub fn bundle(&self) -> Bundle {
        let authorities = vec![self.authority.certificate().clone()];
        Bundle::new(self.trust_domain.clone(), 1, authorities)
    }

    pub fn id(&self, account: &str) -> SpiffeId {
        SpiffeId::workload(&self.trust_domain, "shop", account).unwrap()
    }

    pub fn workload(&self, account: &str) -> Svid {
        let id = self.id(account);
        let agent: hanse_identity::NodeName = "host-1".parse().unwrap();
        let selectors = BTreeSet::from([Selector::Uid(1)]);
        let registration = Registration::new(id.clone(), agent.clone(), selectors.clone());
        let evidence = Evidence { agent, selectors };
        let none = Revocations::default();
        self.sign(grant(&self.trust_domain, [&registration], &none, &evidence, &id).unwrap())
    }

    pub fn gateway(&self, name: &str) -> Svid {
        self.member(MemberRole::Gateway, name)
    }

    pub fn member(&self, role: MemberRole, name: &str) -> Svid {
        let id = SpiffeId::member(&self.trust_domain, role, &name.parse().unwrap());
        let lifetime = Duration::from_secs(3600);
        self.sign(grant_member(&self.trust_domain, &Revocations::default(), &id, lifetime).unwrap())
    }

    /// An SVID of a workload that a nested issuer of this domain has signed, and who that is.
    pub fn nested(&self, account: &str) -> (Svid, NestedIssuer) {
        let id = self.id("issuer");
        let agent: hanse_identity::NodeName = "host-1".parse().unwrap();
        let registration = Registration {
            downstream: true,
            ..Registration::new(id.clone(), agent.clone(), [Selector::Uid(1)])
        };
        let none = Revocations::default();
        let ticket = grant_downstream(&self.trust_domain, [&registration], &none, &agent, &id).unwrap();
        let key = KeyPair::generate().unwrap();
        let request = certificate_request(&key).unwrap();
        let made = issue_downstream(ticket, &request, &self.authority, self.serial(), now()).unwrap();
        let above = Issuer::from_ca_cert_der(&made.chain[0].as_slice().into(), key).unwrap();
        let mut leaf = CertificateParams::default();
        leaf.distinguished_name = rcgen::DistinguishedName::new();
        leaf.subject_alt_names = vec![SanType::URI(self.id(account).to_string().try_into().unwrap())];
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        leaf.serial_number = Some(SerialNumber::from_slice(self.serial().as_bytes()));
        leaf.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().unwrap();
        let der = leaf.signed_by(&key, &above).unwrap().der().to_vec();
        let chain = std::iter::once(der).chain(made.chain).collect();
        (Svid::new(chain, key.serialize_der().into()).unwrap(), made.issuer)
    }

    fn serial(&self) -> Serial {
        let mut serial = [0; 16];
        serial[..8].copy_from_slice(&self.random.next().to_be_bytes());
        serial[8..].copy_from_slice(&self.random.next().to_be_bytes());
        Serial::from_random(serial)
    }

    fn sign(&self, ticket: Ticket) -> Svid {
        let key = KeyPair::generate().unwrap();
        let request = certificate_request(&key).unwrap();
        let issued = issue(ticket, &request, &self.authority, self.serial(), now()).unwrap();
        Svid::new(issued.chain, key.serialize_der().into()).unwrap()
    }
}

/// A revocation of that identity.
pub fn revoke(id: &SpiffeId, number: u64) -> Revocation {
    Revocation::new(
        RevocationId { number, origin: id.trust_domain().clone() },
        RevocationTarget::Identity(id.clone()),
        Reason::KeyCompromise,
        now(),
    )
}

/// A View of a cluster that believes in these domains; the first is its own, and names it: `east.example` is `east`.
pub fn view(domains: &[&Domain]) -> View {
    let mut view = View::new(domains[0].cluster(), domains[0].trust_domain.clone());
    view.revision = Revision(1);
    for domain in domains {
        view.bundles.insert(domain.trust_domain.clone(), domain.bundle());
    }
    view
}

pub fn add_service(view: &mut View, name: &str, identities: &[SpiffeId], export: Option<Export>) {
    let name: hanse_identity::ServiceName = name.parse().unwrap();
    let service = Service { name: name.clone(), identities: identities.iter().cloned().collect(), export };
    view.services.insert(name, service);
}

pub fn add_endpoint(view: &mut View, id: &str, service: &str, identity: &SpiffeId, address: SocketAddr) {
    let endpoint = Endpoint {
        id: id.parse().unwrap(),
        services: BTreeSet::from([service.parse().unwrap()]),
        identity: identity.clone(),
        address,
        locality: Locality::default(),
        weight: 100,
        ready: true,
        session: Session { incarnation: 1, sequence: 1, node: "node-1".parse().unwrap() },
    };
    view.endpoints.insert(endpoint.id.clone(), endpoint);
}

/// One sidecar worker, running on the current `LocalSet`.
pub struct Sidecar {
    pub plane: Arc<Plane>,
    pub inbound: SocketAddr,
    pub outbound: SocketAddr,
    /// Its listeners for plain TCP.
    pub tcp: Vec<SocketAddr>,
    pub log: mpsc::UnboundedReceiver<Entry>,
    pub drain: Drain,
    pub ended: tokio::task::JoinHandle<anyhow::Result<()>>,
}

/// A sink that hands the access log's lines back.
struct Lines {
    entries: mpsc::UnboundedSender<Entry>,
    /// A line that has been written in part.
    begun: Vec<u8>,
}

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.begun.extend_from_slice(bytes);
        let whole = self.begun.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let lines: Vec<u8> = self.begun.drain(..whole).collect();
        for line in lines.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
            let line: serde_json::Value = serde_json::from_slice(line).expect("one object per line");
            let text = |field: &str| line[field].as_str().unwrap_or_default().to_owned();
            let _ = self.entries.send(Entry {
                protocol: if text("protocol") == TCP { TCP } else { "" },
                method: text("method").parse().unwrap(),
                path: text("path"),
                authority: text("authority"),
                source_spiffe: text("source_spiffe").into(),
                destination_spiffe: text("destination_spiffe").into(),
                source_cluster: text("source_cluster").into(),
                destination_cluster: text("destination_cluster").into(),
                upstream_cluster: text("upstream_cluster").into(),
                policy: text("policy"),
                hanse_reason: text("hanse_reason"),
                // Of few; a test ends before long.
                response_flags: text("response_flags").leak(),
                response_code_details: text("response_code_details"),
                request_id: request_id(&text("request_id")),
                trace_id: TraceId::read(&text("trace_id")),
                span_id: SpanId::read(&text("span_id")),
                response_code: line["response_code"].as_u64().unwrap_or_default() as u16,
                attempts: line["attempts"].as_u64().unwrap_or_default() as u32,
                bytes_received: line["bytes_received"].as_u64().unwrap_or_default(),
                bytes_sent: line["bytes_sent"].as_u64().unwrap_or_default(),
                ..Entry::default()
            });
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn request_id(text: &str) -> RequestId {
    let value = text.parse::<http::HeaderValue>().ok().filter(|_| !text.is_empty());
    let headers = value.map(|value| http::HeaderMap::from_iter([(REQUEST_ID, value)]));
    headers.map(|headers| RequestId::begin(&headers, true, || panic!("it has one"))).unwrap_or_default()
}

/// An access log, and its lines.
pub fn access_log(plane: &Plane) -> (AccessLog, mpsc::UnboundedReceiver<Entry>) {
    let (lines, log) = mpsc::unbounded_channel();
    let sink = Box::new(Lines { entries: lines, begun: Vec::new() });
    let (access_log, _writer) = AccessLog::start_with(sink, Arc::clone(&plane.telemetry)).unwrap();
    (access_log, log)
}

/// The next line of an access log.
pub async fn next_line(log: &mut mpsc::UnboundedReceiver<Entry>) -> Entry {
    let line = tokio::time::timeout(Duration::from_secs(5), log.recv()).await;
    line.expect("a line is written").unwrap()
}

impl Sidecar {
    /// Starts one with `svid`, in front of `app`, serving `services`. It has no View yet.
    pub fn start(svid: Option<&Svid>, services: &[&str], app: Option<SocketAddr>) -> Self {
        Self::start_with(svid, services, app, Staleness::default())
    }

    pub fn start_with(
        svid: Option<&Svid>,
        services: &[&str],
        app: Option<SocketAddr>,
        staleness: Staleness,
    ) -> Self {
        Self::start_streaming(svid, services, app, staleness, &[], &[])
    }

    /// With ports that are plain TCP, and listeners for those of other services, each as the flag has it.
    pub fn start_streaming(
        svid: Option<&Svid>,
        services: &[&str],
        app: Option<SocketAddr>,
        staleness: Staleness,
        ports: &[(u16, SocketAddr)],
        upstreams: &[&str],
    ) -> Self {
        let plane = Plane::new("proxy-1".parse().unwrap(), Locality::default()).with_staleness(staleness);
        Self::start_on(plane, svid, services, app, ports, upstreams)
    }

    /// On a runtime that the test has made.
    pub fn start_on(
        plane: Plane,
        svid: Option<&Svid>,
        services: &[&str],
        app: Option<SocketAddr>,
        ports: &[(u16, SocketAddr)],
        upstreams: &[&str],
    ) -> Self {
        let outbound = crate::io::listen::bind("127.0.0.1:0".parse().unwrap(), 1).unwrap().remove(0);
        Self::start_at(outbound, plane, svid, services, app, ports, upstreams)
    }

    /// Where the app sends its requests, too.
    pub fn start_at(
        outbound: std::net::TcpListener,
        plane: Plane,
        svid: Option<&Svid>,
        services: &[&str],
        app: Option<SocketAddr>,
        ports: &[(u16, SocketAddr)],
        upstreams: &[&str],
    ) -> Self {
        let plane = Arc::new(plane);
        if let Some(svid) = svid {
            plane.credentials.install_svid(svid).unwrap();
        }
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let inbound = crate::io::listen::bind(any, 1).unwrap().remove(0);
        let (inbound_address, outbound_address) =
            (inbound.local_addr().unwrap(), outbound.local_addr().unwrap());
        let (access_log, log) = access_log(&plane);
        let services = services.iter().map(|s| s.parse().unwrap()).collect();
        let settings = Settings {
            plane: Arc::clone(&plane),
            services: Arc::new(services),
            app,
            tcp_ports: Arc::new(
                // 0 is the inbound port, which is not known before.
                ports
                    .iter()
                    .map(|(port, app)| (if *port == 0 { inbound_address.port() } else { *port }, *app))
                    .collect(),
            ),
            access_log: Some(access_log),
            limits: Arc::default(),
            workers: 1,
            capture: None,
        };
        let bound = |upstream: &&str| {
            let upstream: TcpUpstream = format!("{upstream}={any}").parse().unwrap();
            (Arc::new(upstream.target), crate::io::listen::bind(upstream.listen, 1).unwrap().remove(0))
        };
        let tcp: Vec<_> = upstreams.iter().map(bound).collect();
        let tcp_addresses = tcp.iter().map(|(_, listener)| listener.local_addr().unwrap()).collect();
        let listeners = Listeners {
            inbound: Some(inbound),
            outbound: vec![(None, outbound)],
            tcp,
            ..Listeners::default()
        };
        let (drain, stop) = drain();
        // Nobody inspects in tests.
        let (_inspect, inspections) = mpsc::channel(1);
        let ended = tokio::task::spawn_local(work(settings, listeners, inspections, stop));
        let (inbound, outbound) = (inbound_address, outbound_address);
        Self { plane, inbound, outbound, tcp: tcp_addresses, log, drain, ended }
    }

    pub fn publish(&self, view: &View) {
        self.plane.publish(Arc::new(view.clone()));
    }

    /// Sends through the outbound listener, as the app would.
    pub async fn request(&self, request: Request<Full<Bytes>>) -> Answer {
        let mut sender = http1(TcpStream::connect(self.outbound).await.unwrap()).await;
        Answer::of(sender.send_request(request).await.unwrap()).await
    }

    pub async fn get(&self, url: &str) -> Answer {
        self.request(get(url)).await
    }

    /// The next line of the access log.
    pub async fn logged(&mut self) -> Entry {
        next_line(&mut self.log).await
    }
}

pub fn get(url: &str) -> Request<Full<Bytes>> {
    let uri: http::Uri = url.parse().unwrap();
    let host = uri.authority().unwrap().to_string();
    let path = uri.path_and_query().unwrap().to_string();
    Request::get(path).header("host", host).body(Full::default()).unwrap()
}

/// A response, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: http::HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub async fn of(response: Response<Incoming>) -> Self {
        let (parts, body) = response.into_parts();
        let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        Self { status: parts.status, headers: parts.headers, body }
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// What the app saw, if it was the echo app that answered.
    pub fn seen(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not the app's answer: {self:?}"))
    }
}

pub type Http1<B> = hyper::client::conn::http1::SendRequest<B>;
pub type Http2<B> = hyper::client::conn::http2::SendRequest<B>;

pub async fn http1<S>(stream: S) -> Http1<Full<Bytes>>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + 'static,
{
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::task::spawn_local(async move { drop(connection.await) });
    sender
}

pub async fn http2<S>(stream: S) -> Http2<Full<Bytes>>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + 'static,
{
    let handshake = hyper::client::conn::http2::handshake(LocalExecutor, TokioIo::new(stream)).await;
    let (sender, connection) = handshake.unwrap();
    tokio::task::spawn_local(async move { drop(connection.await) });
    sender
}

/// An app: says its name, and what it was asked, as JSON. `/status/N` answers with N; `/forever` never ends,
/// `/silent` is never answered, `/late/404` after 150 ms.
pub struct App {
    pub address: SocketAddr,
    pub mood: Rc<Mood>,
    task: tokio::task::JoinHandle<()>,
    connections: Rc<std::cell::RefCell<Vec<tokio::task::AbortHandle>>>,
}

/// How an app is today.
#[derive(Default)]
pub struct Mood {
    /// How long it takes over each request.
    pub slow: std::cell::Cell<Duration>,
    /// Everything is answered with 500.
    pub fails: std::cell::Cell<bool>,
}

impl App {
    pub async fn start(name: &'static str) -> Self {
        Self::start_at(name, "127.0.0.1:0".parse().unwrap()).await
    }

    pub async fn start_at(name: &'static str, address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections: Rc<std::cell::RefCell<Vec<_>>> = Rc::default();
        let (held, mood) = (Rc::clone(&connections), Rc::<Mood>::default());
        let felt = Rc::clone(&mood);
        let task = tokio::task::spawn_local(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let mood = Rc::clone(&felt);
                let service = service_fn(move |request| echo(name, Rc::clone(&mood), request));
                let mut http = hyper::server::conn::http1::Builder::new();
                // More than hyper takes unasked, and proxies put some in.
                http.max_headers(256);
                let served = http.serve_connection(TokioIo::new(stream), service);
                let served = tokio::task::spawn_local(async move { drop(served.await) });
                held.borrow_mut().push(served.abort_handle());
            }
        });
        Self { address, mood, task, connections }
    }

    /// Connections to it that are open now.
    pub fn live(&self) -> usize {
        self.connections.borrow().iter().filter(|connection| !connection.is_finished()).count()
    }

    /// Closes listener and connections.
    pub fn kill(self) {
        self.task.abort();
        self.connections.borrow_mut().drain(..).for_each(|connection| connection.abort());
    }
}

type EchoBody = http_body_util::Either<Full<Bytes>, Endless>;

async fn echo(
    name: &'static str,
    mood: Rc<Mood>,
    request: Request<Incoming>,
) -> Result<Response<EchoBody>, hyper::Error> {
    let (parts, body) = request.into_parts();
    if !mood.slow.get().is_zero() {
        tokio::time::sleep(mood.slow.get()).await;
    }
    if parts.uri.path() == "/forever" {
        return Ok(Response::new(http_body_util::Either::Right(Endless { begun: false })));
    }
    if parts.uri.path() == "/silent" {
        // The body is not read either.
        std::future::pending::<()>().await;
    }
    if parts.uri.path() == "/late/404" {
        tokio::time::sleep(Duration::from_millis(150)).await;
        let nothing = http_body_util::Either::Left(Full::default());
        return Ok(Response::builder().status(404).body(nothing).unwrap());
    }
    let body = body.collect().await?;
    let trailers: Vec<_> =
        body.trailers().into_iter().flat_map(|t| t.keys()).map(ToString::to_string).collect();
    let body = body.to_bytes();
    let headers: serde_json::Map<_, _> = parts
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap_or("?").into()))
        .collect();
    let seen = serde_json::json!({
        "app": name, "method": parts.method.as_str(), "uri": parts.uri.to_string(), "headers": headers,
        "bytes": body.len(), "trailers": trailers,
    });
    let wanted = parts.uri.path().strip_prefix("/status/").and_then(|code| code.parse().ok());
    let status: u16 = if mood.fails.get() { 500 } else { wanted.unwrap_or(200) };
    let response = Response::builder()
        .status(status)
        .header("x-app", name)
        .header("x-hanse-answered-by", "mesh")
        .header("x-hanse-tier", "forged");
    Ok(response.body(http_body_util::Either::Left(Full::new(Bytes::from(seen.to_string())))).unwrap())
}

/// One byte, and then nothing, for ever.
pub struct Endless {
    begun: bool,
}

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        if std::mem::replace(&mut self.begun, true) {
            return std::task::Poll::Pending;
        }
        std::task::Poll::Ready(Some(Ok(http_body::Frame::data(Bytes::from_static(b".")))))
    }
}

/// Somebody with an SVID of their own, outside any sidecar: for dialling inbound listeners directly.
pub fn plane_of(svid: &Svid, view: &View) -> Arc<Plane> {
    let plane = Arc::new(Plane::new("outsider".parse().unwrap(), Locality::default()));
    plane.credentials.install_svid(svid).unwrap();
    plane.publish(Arc::new(view.clone()));
    plane
}

/// Waits for a condition, and fails after ten seconds.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let late = tokio::time::Instant::now() + Duration::from_secs(10);
    while !holds().await {
        assert!(tokio::time::Instant::now() < late, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Runs a test on a `LocalSet`.
pub fn on_local_set<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}
