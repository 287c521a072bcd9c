//! Services outside the mesh, through a real sidecar: names by a DNS server of the test's, TLS, and what is refused.

use std::cell::Cell;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::sync::Arc;

use hanse_federation::policy::{PolicyKind, PolicySpec, parse};
use hanse_identity::tls::outside::web_server_config;
use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::{RData, Record, RecordType};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls_pki_types::PrivateKeyDer;
use tokio::net::{TcpListener, UdpSocket};

use super::balancing::example;
use super::*;
use crate::runtime::resolve;

/// A DNS server that says the same of every name.
pub(super) struct Dns {
    address: SocketAddr,
    says: Rc<Cell<&'static [[u8; 4]]>>,
    pub asked: Rc<Cell<u32>>,
}

/// Has a proxy ask that server.
pub(super) fn resolve_by(sidecar: &Sidecar, dns: &Dns) {
    let (drain, stop) = crate::runtime::drain::drain();
    let followed = resolve::follow(Arc::clone(&sidecar.plane.resolved), vec![dns.address], stop);
    tokio::task::spawn_local(async move {
        followed.await;
        drop(drain);
    });
}

impl Dns {
    pub async fn start(says: &'static [[u8; 4]]) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let (says, asked) = (Rc::new(Cell::new(says)), Rc::new(Cell::new(0)));
        let (told, count) = (Rc::clone(&says), Rc::clone(&asked));
        tokio::task::spawn_local(async move {
            let mut buffer = [0; 1500];
            loop {
                let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
                let mut message = Message::from_vec(&buffer[..length]).unwrap().into_response();
                let query = message.queries[0].clone();
                count.set(count.get() + 1);
                match told.get() {
                    [] => message.metadata.response_code = ResponseCode::ServFail,
                    all if query.query_type() == RecordType::A => {
                        for address in all {
                            let data = RData::A(Ipv4Addr::from(*address).into());
                            message.add_answer(Record::from_rdata(query.name().clone(), 1, data));
                        }
                    }
                    _ => {}
                }
                socket.send_to(&message.to_vec().unwrap(), from).await.unwrap();
            }
        });
        Self { address, says, asked }
    }
}

/// Roots of somebody else's.
pub(super) struct Web {
    pub root: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Web {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap().pem();
        Self { root, issuer: Issuer::new(params, key) }
    }

    /// A certificate for `name` and its key, PEM.
    pub fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        (leaf.pem(), key.serialize_pem())
    }

    /// A TLS server for `name` at `address`, with the echo app behind it; how many connections it has taken.
    pub async fn serve(
        &self,
        name: &str,
        address: &str,
        alpn: &'static [u8],
        app: SocketAddr,
    ) -> (u16, Rc<Cell<u32>>) {
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = web_server_config(vec![leaf.der().clone()], key, &[alpn]).unwrap();
        let listener = TcpListener::bind(address).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let taken = Rc::new(Cell::new(0));
        let count = Rc::clone(&taken);
        tokio::task::spawn_local(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let acceptor = tokio_rustls::TlsAcceptor::from(Arc::clone(&config));
                count.set(count.get() + 1);
                tokio::task::spawn_local(async move {
                    let Ok(mut tls) = acceptor.accept(tcp).await else { return };
                    if alpn == tls::ALPN_H2 {
                        let service = hyper::service::service_fn(
                            |request: Request<hyper::body::Incoming>| async move {
                                let version = format!("{:?} {}", request.version(), request.uri());
                                Ok::<_, std::convert::Infallible>(http::Response::new(Full::new(
                                    Bytes::from(version),
                                )))
                            },
                        );
                        let http =
                            hyper::server::conn::http2::Builder::new(crate::runtime::worker::LocalExecutor);
                        let io = hyper_util::rt::TokioIo::new(tls);
                        let _ = http.serve_connection(io, service).await;
                    } else {
                        let mut app = TcpStream::connect(app).await.unwrap();
                        let _ = tokio::io::copy_bidirectional(&mut tls, &mut app).await;
                    }
                });
            }
        });
        (port, taken)
    }
}

impl Shop {
    /// Has its caller ask that server.
    fn resolve_by(&self, dns: &Dns) {
        resolve_by(&self.product, dns);
    }

    pub(super) fn apply_unchecked(&mut self, text: &str, change: impl Fn(&mut PolicySpec)) {
        for (mut document, _) in parse("test", text).unwrap() {
            change(&mut document.spec);
            self.change(|view| view.apply(&hanse_federation::Change::PolicyPut(Box::new(document))));
        }
    }

    /// The example, towards a server of the test's.
    fn payments(&mut self, root: &str, port: u16, allow_local: bool) {
        let text = example("external-service");
        self.apply(&text);
        self.apply_unchecked(&text, |spec| match spec {
            PolicySpec::ExternalService(external) => {
                external.ports[0].target_port = Some(port);
                external.allow_local_addresses = allow_local;
            }
            PolicySpec::BackendTlsPolicy(policy) => {
                policy.validation.well_known_ca_certificates = None;
                policy.validation.ca_certificates = Some(root.to_owned());
            }
            _ => {}
        });
    }
}

pub(super) const PAYMENTS: &str = "http://api.payments.example/pay?n=1";

#[test]
fn a_service_outside_is_called_by_its_name_over_tls() {
    on_local_set(async {
        let (web, app) = (Web::new(), App::start("payments").await);
        let (port, taken) =
            web.serve("api.payments.example", "127.0.0.1:0", tls::ALPN_HTTP1, app.address).await;
        // Nobody is at the second address: whatever goes there first is tried at the other.
        let dns = Dns::start(&[[127, 0, 0, 1], [127, 0, 0, 77]]).await;
        let mut shop = Shop::open().await;
        shop.resolve_by(&dns);
        shop.payments(&web.root, port, true);
        for _ in 0..6 {
            let mut request = get(PAYMENTS);
            request.headers_mut().insert("x-forwarded-client-cert", "URI=spiffe://forged".parse().unwrap());
            let answer = shop.product.request(request).await;
            assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
            let seen = answer.seen();
            assert_eq!(seen["uri"], "/pay?n=1");
            assert_eq!(seen["headers"]["host"], "api.payments.example");
            assert_eq!(seen["headers"]["x-tenant"], "shop");
            for ours in ["x-forwarded-client-cert", "x-hanse-tier"] {
                assert!(seen["headers"][ours].is_null(), "{ours}: {seen}");
            }
            assert_eq!(
                (answer.header("x-hanse-tier"), answer.header("x-hanse-answered-by")),
                ("outside", "")
            );
            let entry = shop.product.logged().await;
            assert_eq!(entry.upstream_cluster, "shop/payments");
            assert_eq!(entry.destination_cluster, "outside");
            assert_eq!(entry.destination_spiffe, "");
        }
        assert_eq!(taken.get(), 1, "the connection is kept");
        assert!(dns.asked.get() <= 4, "no request asks DNS: {}", dns.asked.get());
        // Another port of it was not declared, and another name nobody has.
        let answer = shop.product.get("http://api.payments.example:9999/").await;
        assert_eq!((answer.status.as_u16(), answer.header("x-hanse-reason")), (404, "unknown-host"));
        let answer = shop.product.get("http://www.payments.example/").await;
        assert_eq!((answer.status.as_u16(), answer.header("x-hanse-reason")), (404, "unknown-host"));
    });
}

#[test]
fn a_route_says_on_which_port_a_service_outside_is_asked() {
    on_local_set(async {
        let (first, second) = (App::start("first").await, App::start("second").await);
        let mut shop = Shop::open().await;
        let text = format!(
            "apiVersion: hanse.dev/v1alpha1\nkind: ExternalService\nmetadata: {{ name: payments, namespace: shop }}\nspec:\n  \
             hosts: [api.payments.example]\n  addresses: [127.0.0.1]\n  allowLocalAddresses: true\n  ports:\n  \
             - {{ port: 80, targetPort: {}, protocol: HTTP }}\n  - {{ port: 8443, targetPort: {}, protocol: HTTP }}\n---\n\
             apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{ name: reviews, namespace: shop }}\nspec:\n  \
             parentRefs: [{{ kind: Service, name: reviews }}]\n  rules:\n  - backendRefs: \
             [{{ group: hanse.dev, kind: ExternalService, name: payments, port: 8443 }}]\n",
            first.address.port(),
            second.address.port()
        );
        shop.apply(&text);
        let answer = shop.product.get(REVIEWS).await;
        assert_eq!((answer.status.as_u16(), answer.header("x-app")), (200, "second"), "{answer:?}");
        assert_eq!(shop.product.get(PAYMENTS).await.header("x-app"), "first", "no route is for that name");
    });
}

#[test]
fn the_example_with_addresses_needs_no_dns() {
    on_local_set(async {
        let app = App::start("ledger").await;
        let mut shop = Shop::open().await;
        let text = example("external-service-addresses");
        shop.apply(&text);
        // Whoever asked DNS would be told that there is nobody.
        let dns = Dns::start(&[]).await;
        shop.resolve_by(&dns);
        shop.apply_unchecked(&text, |spec| {
            let PolicySpec::ExternalService(external) = spec else { unreachable!() };
            // Nobody is at the second one.
            external.addresses = vec!["127.0.0.1".parse().unwrap(), "127.0.0.77".parse().unwrap()];
            (external.ports[0].target_port, external.allow_local_addresses) =
                (Some(app.address.port()), true);
        });
        for host in ["ledger.corp.example", "books.corp.example"] {
            for _ in 0..4 {
                let answer = shop.product.get(&format!("http://{host}/x")).await;
                assert_eq!((answer.status.as_u16(), answer.header("x-app")), (200, "ledger"), "{answer:?}");
                assert_eq!(answer.seen()["headers"]["host"], host);
            }
        }
        assert_eq!(dns.asked.get(), 0);
    });
}

#[test]
fn who_shows_no_certificate_of_that_name_is_not_asked() {
    on_local_set(async {
        let (web, app) = (Web::new(), App::start("payments").await);
        let (port, _) = web.serve("evil.example", "127.0.0.1:0", tls::ALPN_HTTP1, app.address).await;
        let dns = Dns::start(&[[127, 0, 0, 1]]).await;
        let mut shop = Shop::open().await;
        shop.resolve_by(&dns);
        shop.payments(&web.root, port, true);
        let answer = shop.product.get(PAYMENTS).await;
        assert_eq!((answer.status.as_u16(), answer.header("x-hanse-reason")), (503, "unreachable"));
        assert!(String::from_utf8_lossy(&answer.body).contains("TLS with 127.0.0.1"), "{answer:?}");
        // Nor is anybody of other roots, whatever the name.
        shop.payments(&Web::new().root, port, true);
        assert_eq!(shop.product.get(PAYMENTS).await.status, StatusCode::SERVICE_UNAVAILABLE);
        // A name that the policy allows beside the one that is asked for.
        shop.payments(&web.root, port, true);
        let policies: Vec<_> = shop.view.policies.values().cloned().collect();
        for mut document in policies.into_iter().filter(|d| d.kind() == PolicyKind::BackendTlsPolicy) {
            let PolicySpec::BackendTlsPolicy(policy) = &mut document.spec else { continue };
            policy.validation.subject_alt_names =
                serde_json::from_str(r#"[{"type":"Hostname","hostname":"evil.example"}]"#).unwrap();
            shop.change(|view| view.apply(&hanse_federation::Change::PolicyPut(Box::new(document))));
        }
        until("the named one is believed", async || {
            shop.product.get(PAYMENTS).await.status == StatusCode::OK
        })
        .await;
    });
}

#[test]
fn a_name_that_points_at_this_host_leads_nowhere() {
    on_local_set(async {
        let (web, app) = (Web::new(), App::start("payments").await);
        let (port, taken) =
            web.serve("api.payments.example", "127.0.0.1:0", tls::ALPN_HTTP1, app.address).await;
        let dns = Dns::start(&[[127, 0, 0, 1], [169, 254, 169, 254]]).await;
        let mut shop = Shop::open().await;
        shop.resolve_by(&dns);
        shop.payments(&web.root, port, false);
        let answer = shop.product.get(PAYMENTS).await;
        assert_eq!((answer.status.as_u16(), answer.header("x-hanse-reason")), (503, "no-healthy-endpoint"));
        assert!(String::from_utf8_lossy(&answer.body).contains("allowLocalAddresses"), "{answer:?}");
        assert_eq!(taken.get(), 0);
    });
}

#[test]
fn addresses_follow_dns_and_stay_when_it_fails() {
    on_local_set(async {
        let (web, app) = (Web::new(), App::start("payments").await);
        let (port, first) = web.serve("api.payments.example", "127.0.0.1:0", tls::ALPN_H2, app.address).await;
        let (_, second) =
            web.serve("api.payments.example", &format!("127.0.0.2:{port}"), tls::ALPN_H2, app.address).await;
        let dns = Dns::start(&[[127, 0, 0, 1]]).await;
        let mut shop = Shop::open().await;
        shop.resolve_by(&dns);
        shop.payments(&web.root, port, true);
        let answer = shop.product.get(PAYMENTS).await;
        assert_eq!(answer.body, "HTTP/2.0 https://api.payments.example/pay?n=1");
        assert_eq!((first.get(), second.get()), (1, 0));
        dns.says.set(&[[127, 0, 0, 2]]);
        until("the new address is used", async || {
            assert_eq!(shop.product.get(PAYMENTS).await.status, StatusCode::OK);
            second.get() == 1
        })
        .await;
        dns.says.set(&[]);
        let asked = dns.asked.get();
        until("DNS has failed", async || dns.asked.get() > asked).await;
        for _ in 0..3 {
            assert_eq!(shop.product.get(PAYMENTS).await.status, StatusCode::OK);
        }
        assert_eq!((first.get(), second.get()), (1, 1));
    });
}

#[test]
fn hosts_that_nobody_described_are_refused_unless_the_configuration_allows_them() {
    on_local_set(async {
        let app = App::start("elsewhere").await;
        let mut shop = Shop::open().await;
        let elsewhere = format!("http://{}/x", app.address);
        let refused = shop.product.get(&elsewhere).await;
        assert_eq!((refused.status.as_u16(), refused.header("x-hanse-reason")), (404, "unknown-host"));
        shop.apply(&example("mesh-config"));
        let answer = shop.product.get(&elsewhere).await;
        assert_eq!((answer.status.as_u16(), answer.header("x-hanse-reason")), (503, "no-healthy-endpoint"));
        shop.apply_unchecked(&example("mesh-config"), |spec| {
            let PolicySpec::MeshConfig(config) = spec else { unreachable!() };
            config.allow_local_addresses = true;
        });
        let answer = shop.product.get(&elsewhere).await;
        assert_eq!((answer.status.as_u16(), answer.header("x-app")), (200, "elsewhere"), "{answer:?}");
        let entry = loop {
            let entry = shop.product.logged().await;
            if entry.response_code == 200 {
                break entry;
            }
        };
        assert_eq!(entry.upstream_cluster, "outside/passthrough");
        // Services of the mesh are what they were.
        assert_eq!(shop.product.get(REVIEWS).await.header("x-app"), "reviews-v1");
        assert_eq!(shop.product.get("http://reviews.shop/").await.header("x-app"), "reviews-v1");
    });
}
