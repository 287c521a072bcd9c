//! SPIFFE Federation between strangers, over real sockets: the endpoint, both profiles of the client, and what a hostile
//! or broken endpoint may try. Tests are named after the labels of the rules.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use ::http::{Request as HttpRequest, Response as HttpResponse, StatusCode, header};
use hanse_federation::stranger::{EndpointUrl, Federation, Profile};
use hanse_identity::TrustDomain;
use hanse_identity::bundle::MAX_DOCUMENT_BYTES;
use hanse_identity::tls::outside::web_server_config;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;

use super::*;
use crate::io::bundle_endpoint::{self, Shown};
use crate::io::keys::endpoint_id;
use crate::io::strangers::fetch::{BUNDLE, endpoint_tls, fetch};
use crate::state::State;

/// A certificate of the web for 127.0.0.1, made for one test: (certificate PEM, key PEM). It is its own root.
fn web_certificate() -> (String, String) {
    let made =
        rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

fn domain(text: &str) -> TrustDomain {
    text.parse().unwrap()
}

fn url(address: std::net::SocketAddr) -> EndpointUrl {
    format!("https://{address}/").parse().unwrap()
}

/// Serves a cluster's bundle as its flags would; the address.
async fn endpoint(cluster: &Cluster, shown: Shown) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let context = cluster.any().context.clone();
    tokio::spawn(async move { bundle_endpoint::serve(context, listener, shown).await.unwrap() });
    address
}

fn federation(of: &str, url: EndpointUrl, profile: Profile) -> Federation {
    Federation { trust_domain: domain(of), url, profile }
}

fn spiffe(of: &str) -> Profile {
    Profile::HttpsSpiffe { endpoint_id: endpoint_id(&domain(of)) }
}

fn web(pem: &str) -> Profile {
    Profile::HttpsWeb { roots: Some(pem.to_owned()) }
}

async fn put(
    client: &Client,
    federation: Federation,
    bundle: Option<String>,
) -> Result<Written, crate::client::ClientError> {
    client.call(&FederationPutRequest { federation, bundle }).await
}

async fn refresh(client: &Client, of: &str) -> Result<FederationItem, crate::client::ClientError> {
    client.call(&FederationRefreshRequest { trust_domain: domain(of) }).await
}

async fn show(client: &Client, of: &str) -> FederationItem {
    let request = FederationListRequest { trust_domain: Some(domain(of)) };
    client.call(&request).await.unwrap().items.remove(0)
}

/// What is kept of a foreign domain.
fn kept(cluster: &Cluster, of: &str) -> Option<Bundle> {
    let state = cluster.any().context.handle.state();
    state.private.strangers.get(&domain(of)).and_then(|s| s.bundle.clone())
}

/// How an endpoint that was made up answers.
type Answer = Box<dyn Fn(&str) -> HttpResponse<Full<bytes::Bytes>> + Send + Sync>;

/// An https_web endpoint that answers as a test wants; counts what it was asked.
pub(super) struct MadeUp {
    pub(super) address: std::net::SocketAddr,
    pub(super) root: String,
    asked: Arc<AtomicUsize>,
    answer: Arc<Mutex<Answer>>,
    serving: tokio::task::JoinHandle<()>,
}

impl MadeUp {
    pub(super) async fn new(
        answer: impl Fn(&str) -> HttpResponse<Full<bytes::Bytes>> + Send + Sync + 'static,
    ) -> Self {
        use rustls_pki_types::pem::PemObject as _;
        let (root, key) = web_certificate();
        let chain = vec![rustls_pki_types::CertificateDer::from_pem_slice(root.as_bytes()).unwrap()];
        let key = rustls_pki_types::PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let config = web_server_config(chain, key, &[b"http/1.1"]).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let answer: Arc<Mutex<Answer>> = Arc::new(Mutex::new(Box::new(answer)));
        let (counted, answering) = (asked.clone(), answer.clone());
        let serving = tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let acceptor = tokio_rustls::TlsAcceptor::from(config.clone());
                let (counted, answering) = (counted.clone(), answering.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(tcp).await else { return };
                    let service =
                        hyper::service::service_fn(move |request: HttpRequest<hyper::body::Incoming>| {
                            counted.fetch_add(1, Ordering::SeqCst);
                            let answer = answering.lock().unwrap()(request.uri().path());
                            async move { Ok::<_, std::convert::Infallible>(answer) }
                        });
                    let http = hyper::server::conn::http1::Builder::new();
                    let _ = http.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { address, root, asked, answer, serving }
    }

    pub(super) fn answers(
        &self,
        answer: impl Fn(&str) -> HttpResponse<Full<bytes::Bytes>> + Send + Sync + 'static,
    ) {
        *self.answer.lock().unwrap() = Box::new(answer);
    }

    fn federation(&self, of: &str) -> Federation {
        federation(of, url(self.address), web(&self.root))
    }
}

impl Drop for MadeUp {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

pub(super) fn ok(body: impl Into<bytes::Bytes>) -> HttpResponse<Full<bytes::Bytes>> {
    HttpResponse::new(Full::new(body.into()))
}

pub(super) fn redirect(to: &str) -> HttpResponse<Full<bytes::Bytes>> {
    let answer = HttpResponse::builder().status(StatusCode::FOUND).header(header::LOCATION, to);
    answer.body(Full::default()).unwrap()
}

/// The bundle of another domain as a document, with any sequence.
fn document(of: &Cluster, sequence: u64) -> String {
    Bundle { sequence, ..of.bundle() }.to_jwks(60)
}

/// Asks a bundle endpoint by hand, without a client certificate.
async fn ask(
    address: std::net::SocketAddr,
    tls: Arc<rustls::ClientConfig>,
    method: &str,
    path: &str,
) -> (HttpResponse<()>, String) {
    let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
    let name = rustls_pki_types::ServerName::try_from("127.0.0.1").unwrap();
    let stream = tokio_rustls::TlsConnector::from(tls).connect(name, tcp).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let driving = tokio::spawn(connection);
    let request = HttpRequest::builder().method(method).uri(path).header(header::HOST, "127.0.0.1");
    let answer = sender.send_request(request.body(Full::<bytes::Bytes>::default()).unwrap()).await.unwrap();
    let (head, body) = answer.into_parts();
    let body = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
    driving.abort();
    (HttpResponse::from_parts(head, ()), body)
}

/// F-1: a key that was published is in the document at once, with a higher sequence, before anything is signed with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f_1_a_published_authority_is_in_the_document_before_it_is_used() {
    let east = found("east", 1).await;
    let address = endpoint(&east, Shown::Svid).await;
    // The node publishes its JWT key when it has started: after that nothing changes by itself.
    east.until("the JWT key", |_| !east.bundle().jwt_authorities.is_empty()).await;
    let state = east.any().context.handle.state();
    // East as a stranger would know it: its bundle of now.
    let trust = Arc::new(FixedTrust(Arc::new(Trust::new([&east.bundle()], Revocations::default()))));
    let expect = Expect::Identities(Arc::new([endpoint_id(&domain("east.example"))].into()));
    let tls = client_config(trust, Arc::new(dial::FixedIdentity(None)), expect, &[b"http/1.1"]);
    let before = fetch(&url(address), tls.clone(), BUNDLE).await.unwrap();
    let before = Bundle::from_jwks(&domain("east.example"), &before).unwrap();
    assert_eq!(before.sequence, Some(state.view.bundles[&domain("east.example")].sequence));

    let new = hanse_identity::Authority::create(
        &domain("east.example"),
        &"east-1".parse().unwrap(),
        new_key_pair().unwrap(),
        keys::random_serial(),
        now(),
        Duration::from_secs(3600),
    )
    .unwrap();
    let node = "east-1".parse().unwrap();
    let command = Command::AuthorityPublish { node, certificate: new.certificate().clone(), rotation: None };
    east.any().context.handle.propose("", command).await.unwrap().result.unwrap();
    let after = Bundle::from_jwks(&domain("east.example"), &fetch(&url(address), tls, BUNDLE).await.unwrap())
        .unwrap();
    assert!(after.sequence > before.sequence, "{:?} after {:?}", after.sequence, before.sequence);
    let keys: Vec<_> = after.bundle.pins();
    assert!(keys.contains(&new.certificate().key_id));
    assert!(before.bundle.pins().iter().all(|key| keys.contains(key)), "what is in use stays");
    east.stop().await;
}

/// F-2, F-3: the leader fetches by itself, at the hint; what it cannot fetch or may not take leaves what is kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f_2_f_3_the_leader_polls_and_keeps_the_last_good_bundle() {
    let (east, north) = (found("east", 1).await, found("north", 1).await);
    let client = east.client().await;
    let (first, second) = (document(&north, 7), document(&north, 9));
    let north_endpoint = MadeUp::new(move |_| ok(first.clone())).await;
    put(&client, north_endpoint.federation("north.example"), None).await.unwrap();
    // Nobody has to ask for it.
    east.until("the first bundle", |_| kept(&east, "north.example").is_some()).await;
    let item = eventually_asked("a fetch that is told", || async {
        Some(show(&client, "north.example").await).filter(|item| item.state == FederationState::Fresh)
    })
    .await;
    assert_eq!((item.sequence, item.refresh_seconds), (Some(7), Some(60)));
    assert_eq!(item.authorities, north.bundle().pins());

    for (what, wrong) in [
        ("an older one", document(&north, 6)),
        ("the same sequence with other keys", Bundle { sequence: 7, ..east_as_north(&north) }.to_jwks(60)),
        ("no sequence", document(&north, 7).replace("spiffe_sequence", "x_sequence")),
        ("no document", "<html>welcome</html>".to_owned()),
        ("nothing", String::new()),
    ] {
        north_endpoint.answers(move |_| ok(wrong.clone()));
        let refused = refresh(&client, "north.example").await.unwrap_err();
        assert_eq!(refused.kind, ClientErrorKind::Precondition, "{what}: {refused}");
        let item = show(&client, "north.example").await;
        assert_eq!((item.state, item.sequence), (FederationState::Stale, Some(7)), "{what}");
        assert!(item.error.is_some() && item.fetched < item.attempted, "{what}: {item:?}");
        assert_eq!(kept(&east, "north.example").unwrap().pins(), north.bundle().pins(), "{what}");
    }
    north_endpoint.answers(move |_| ok(second.clone()));
    let item = refresh(&client, "north.example").await.unwrap();
    assert_eq!((item.state, item.sequence, item.error), (FederationState::Fresh, Some(9), None));
    east.stop().await;
    north.stop().await;
}

/// North's bundle with one authority less: other content under the same name.
fn east_as_north(north: &Cluster) -> Bundle {
    Bundle { authorities: Vec::new(), ..north.bundle() }
}

/// F-3, F-9, and that a stranger is no peer: its bundle goes to agents, and to nobody who decides who may call whom.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f_3_a_strangers_bundle_is_merged_with_no_other_and_believed_by_nothing_of_the_mesh() {
    let (east, north) = (found("east", 1).await, found("north", 1).await);
    let client = east.client().await;
    let address = endpoint(&north, Shown::Svid).await;
    let wanted = federation("north.example", url(address), spiffe("north.example"));
    put(&client, wanted, Some(document(&north, 0))).await.unwrap();
    refresh(&client, "north.example").await.unwrap();

    let context = &east.any().context;
    let state = context.handle.state();
    assert_eq!(state.view.bundles.keys().collect::<Vec<_>>(), [&domain("east.example")]);
    assert!(!context.trust.current().knows(&domain("north.example")));
    let caller: SpiffeId = "spiffe://north.example/ns/shop/sa/x".parse().unwrap();
    assert!(!state.view.may_call(&caller, &"shop/reviews".parse().unwrap()));
    // Neither an administrator nor a control node of the foreign domain gets through the handshake.
    let stranger = Client::connect(&Credential {
        endpoints: east.credential.endpoints.clone(),
        bundle_pem: east.credential.bundle_pem.clone(),
        ..north.credential.clone()
    })
    .await;
    assert!(stranger.is_err());

    let told = crate::io::issue::agent_state(&state, &"host-1".parse().unwrap());
    assert_eq!(told.strangers, BTreeSet::from([domain("north.example")]));
    let theirs = told.bundles.iter().find(|b| b.trust_domain == domain("north.example")).unwrap();
    assert_eq!(theirs.pins(), north.bundle().pins());
    assert_eq!(told.bundles.iter().find(|b| b.trust_domain == domain("east.example")), Some(&east.bundle()));
    east.stop().await;
    north.stop().await;
}

/// F-4, F-6, F-7: what the endpoint serves, to anyone, under either profile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f_4_f_6_f_7_the_endpoint_serves_the_newest_bundle_to_anyone_under_either_profile() {
    let east = found("east", 1).await;
    let directory = tempfile::tempdir().unwrap();
    let (certificate, key) = (directory.path().join("web.pem"), directory.path().join("web.key"));
    let (pem, key_pem) = web_certificate();
    std::fs::write(&certificate, &pem).unwrap();
    keys::replace(&key, key_pem.as_bytes(), 0o600).unwrap();
    let by_svid = endpoint(&east, Shown::Svid).await;
    let by_web = endpoint(&east, Shown::Files { certificate, key: key.clone() }).await;
    let mut state = State::clone(&east.any().context.handle.state());
    state.view.trust_domain = domain("elsewhere.example");
    for (address, profile) in [(by_svid, spiffe("east.example")), (by_web, web(&pem))] {
        let tls = endpoint_tls(&state, &profile).await.unwrap();
        let (answer, body) = ask(address, tls.clone(), "GET", "/").await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()[header::CONTENT_TYPE], "application/json");
        let document = Bundle::from_jwks(&domain("east.example"), &body).unwrap();
        assert_eq!(document.bundle.pins(), east.bundle().pins());
        assert_eq!(document.refresh_hint, Some(Duration::from_secs(60)));
        assert_eq!(document.sequence, Some(east.bundle().sequence));
        let (answer, body) = ask(address, tls.clone(), "HEAD", "/").await;
        assert_eq!((answer.status(), body.as_str()), (StatusCode::OK, ""));
        assert_eq!(ask(address, tls.clone(), "GET", "/status").await.0.status(), StatusCode::NOT_FOUND);
        assert_eq!(ask(address, tls, "POST", "/").await.0.status(), StatusCode::METHOD_NOT_ALLOWED);
    }
    // A key that others may read is not used.
    keys::replace(&key, key_pem.as_bytes(), 0o644).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let context = east.any().context.clone();
    let shown = Shown::Files { certificate: directory.path().join("web.pem"), key };
    let refused = bundle_endpoint::serve(context, listener, shown).await.unwrap_err();
    assert!(refused.to_string().contains("0600"), "{refused}");
    east.stop().await;
}

/// F-7: redirects are followed a few times to URLs that could have been configured, and are forgotten afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f_7_redirects_are_followed_within_bounds_and_not_remembered() {
    let (east, north) = (found("east", 1).await, found("north", 1).await);
    let client = east.client().await;
    let good = document(&north, 3);
    let made_up = MadeUp::new(move |path| match path {
        "/" => redirect("/bundle"),
        "/bundle" => ok(good.clone()),
        _ => redirect("/loop"),
    })
    .await;
    put(&client, made_up.federation("north.example"), None).await.unwrap();
    assert_eq!(refresh(&client, "north.example").await.unwrap().sequence, Some(3));
    assert_eq!(
        show(&client, "north.example").await.url,
        Some(url(made_up.address)),
        "the configured URL stays"
    );

    let plain = format!("http://{}/bundle", made_up.address);
    for (to, why) in [
        ("/loop".to_owned(), "more than 3 times"),
        (plain, "scheme is not https"),
        ("https://user@127.0.0.1/".to_owned(), "user information"),
    ] {
        let to_here = to.clone();
        made_up.answers(move |path| if path == "/" { redirect(&to_here) } else { redirect("/loop") });
        let refused = refresh(&client, "north.example").await.unwrap_err();
        assert!(refused.why.contains(why), "redirected to {to}: {refused}");
    }
    east.stop().await;
    north.stop().await;
}

/// F-5, F-8: the endpoint has to be exactly who was configured, under the bundle that was given first and the newest
/// one afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f_5_f_8_the_endpoint_is_authenticated_by_the_configured_id_and_the_stored_bundle() {
    let (east, north, west) = (found("east", 1).await, found("north", 1).await, found("west", 1).await);
    let client = east.client().await;
    let address = endpoint(&north, Shown::Svid).await;
    let wanted = || federation("north.example", url(address), spiffe("north.example"));
    let refused = put(&client, wanted(), None).await.unwrap_err();
    assert!(refused.why.contains("--bundle"), "nothing to begin with: {refused}");

    // West's keys under north's name: not what signed the endpoint's certificate.
    let foreign = west.bundle().to_jwks(60);
    let refused = put(&client, wanted(), Some(foreign)).await.unwrap_err();
    assert_eq!(refused.kind, ClientErrorKind::Invalid, "no authority in it is of north.example: {refused}");

    put(&client, wanted(), Some(document(&north, 0))).await.unwrap();
    let item = refresh(&client, "north.example").await.unwrap();
    assert_eq!(item.sequence, Some(north.bundle().sequence), "the first fetch replaced what was given");
    // Self-serving from here on: by what was fetched.
    refresh(&client, "north.example").await.unwrap();

    let node: SpiffeId = "spiffe://north.example/hanse/node/north-1".parse().unwrap();
    let other = federation("north.example", url(address), Profile::HttpsSpiffe { endpoint_id: node });
    put(&client, other, None).await.unwrap();
    let refused = refresh(&client, "north.example").await.unwrap_err();
    assert!(refused.why.contains("not believed"), "another ID than configured: {refused}");
    let item = show(&client, "north.example").await;
    assert_eq!((item.state, item.sequence), (FederationState::Stale, Some(north.bundle().sequence)));

    // A web client does not believe an SVID, nor the other way round.
    let (pem, _) = web_certificate();
    put(&client, federation("north.example", url(address), web(&pem)), None).await.unwrap();
    assert!(refresh(&client, "north.example").await.unwrap_err().why.contains("not believed"));
    assert!(kept(&east, "north.example").is_some(), "the last good bundle goes on being served");
    for cluster in [east, north, west] {
        cluster.stop().await;
    }
}

/// F-9: ending a relationship deletes the bundle and stops the fetching; our own and joined domains never begin one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f_9_ending_a_relationship_deletes_its_bundle_and_stops_fetching() {
    let (east, north) = (found("east", 1).await, found("north", 1).await);
    let client = east.client().await;
    let good = document(&north, 3);
    let made_up = MadeUp::new(move |_| {
        ok(good.clone().replace("\"spiffe_refresh_hint\":60", "\"spiffe_refresh_hint\":5"))
    })
    .await;
    let own = put(&client, made_up.federation("east.example"), None).await.unwrap_err();
    assert_eq!(own.kind, ClientErrorKind::Invalid, "{own}");

    put(&client, made_up.federation("north.example"), None).await.unwrap();
    east.until("a bundle", |_| kept(&east, "north.example").is_some()).await;
    client.call(&FederationDeleteRequest { trust_domain: domain("north.example") }).await.unwrap();
    assert_eq!(kept(&east, "north.example"), None);
    let told = crate::io::issue::agent_state(&east.any().context.handle.state(), &"host-1".parse().unwrap());
    assert!(told.strangers.is_empty() && told.bundles.len() == 1, "agents are told without it");
    let gone = refresh(&client, "north.example").await.unwrap_err();
    assert_eq!(gone.kind, ClientErrorKind::NotFound);
    let again = client.call(&FederationDeleteRequest { trust_domain: domain("north.example") }).await;
    assert_eq!(again.unwrap_err().kind, ClientErrorKind::NotFound);

    // A fetch of the relationship that has ended, committed late, brings nothing back; nor does one of another life of it.
    let late = Command::ForeignBundlePut { bundle: Box::new(north.bundle()), since: Timestamp(1) };
    let handle = &east.any().context.handle;
    assert!(handle.propose("", late.clone()).await.unwrap().result.is_err());
    let asked = made_up.asked.load(Ordering::SeqCst);
    put(&client, made_up.federation("north.example"), None).await.unwrap();
    assert!(handle.propose("", late).await.unwrap().result.is_err());
    eventually("a fetch of the new relationship", || {
        (made_up.asked.load(Ordering::SeqCst) > asked).then_some(())
    })
    .await;
    east.stop().await;
    north.stop().await;
}

/// A hostile endpoint costs a bounded wait and a bounded read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_huge_a_slow_and_a_failing_endpoint_are_given_up() {
    let (east, north) = (found("east", 1).await, found("north", 1).await);
    let client = east.client().await;
    let huge = vec![b' '; MAX_DOCUMENT_BYTES + 1];
    let made_up = MadeUp::new(move |_| ok(huge.clone())).await;
    put(&client, made_up.federation("north.example"), Some(document(&north, 3))).await.unwrap();
    assert!(refresh(&client, "north.example").await.unwrap_err().why.contains("more than"));
    made_up.answers(|_| {
        let answer = HttpResponse::builder().status(StatusCode::INTERNAL_SERVER_ERROR);
        answer.body(Full::default()).unwrap()
    });
    assert!(refresh(&client, "north.example").await.unwrap_err().why.contains("500"));

    // One that accepts and says nothing: the handshake has an end.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let there = url(silent.local_addr().unwrap());
    let listening = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((tcp, _)) = silent.accept().await {
            held.push(tcp);
        }
    });
    put(&client, federation("north.example", there, web(&made_up.root)), None).await.unwrap();
    let began = Instant::now();
    let refused = refresh(&client, "north.example").await.unwrap_err();
    assert!(refused.why.contains("no answer within"), "{refused}");
    assert!(began.elapsed() < Duration::from_secs(9));
    listening.abort();
    // Nobody is there at all.
    let nobody: EndpointUrl = "https://127.0.0.1:1/".parse().unwrap();
    put(&client, federation("north.example", nobody, web(&made_up.root)), None).await.unwrap();
    assert!(refresh(&client, "north.example").await.unwrap_err().why.contains("cannot be reached"));
    assert_eq!(kept(&east, "north.example").unwrap().sequence, 3, "what is kept is served through all of it");
    east.stop().await;
    north.stop().await;
}
