//! Requests that leave the mesh through an egress gateway, by real sidecars: the caller's goes nowhere else, and the gateway sends
//! what a document names it for.

use hanse_federation::policy::{PolicyKind, PolicySpec};

use super::balancing::example;
use super::outside::{Dns, PAYMENTS, Web, resolve_by};
use super::*;

/// A shop whose payments go by `shop/egress`.
struct Harbour {
    shop: Shop,
    egress: Sidecar,
    dns: Dns,
    /// Connections that payments has taken.
    taken: std::rc::Rc<std::cell::Cell<u32>>,
}

impl Harbour {
    async fn open() -> Self {
        let mut shop = Shop::open().await;
        let (web, app) = (Web::new(), App::start("payments").await);
        let (port, taken) =
            web.serve("api.payments.example", "127.0.0.1:0", tls::ALPN_HTTP1, app.address).await;
        let dns = Dns::start(&[[127, 0, 0, 1]]).await;
        let egress = Sidecar::start(Some(&shop.east.workload("egress")), &["shop/egress"], None);
        resolve_by(&egress, &dns);
        let id = shop.east.id("egress");
        shop.change(|view| {
            add_service(view, "shop/egress", std::slice::from_ref(&id), None);
            add_endpoint(view, "egress-1", "shop/egress", &id, egress.inbound);
        });
        let text = example("egress-gateway");
        shop.apply(&text);
        shop.apply_unchecked(&text, |spec| match spec {
            PolicySpec::ExternalService(external) => {
                external.ports[0].target_port = Some(port);
                external.allow_local_addresses = true;
            }
            PolicySpec::BackendTlsPolicy(policy) => {
                policy.validation.well_known_ca_certificates = None;
                policy.validation.ca_certificates = Some(web.root.clone());
            }
            _ => {}
        });
        let harbour = Self { shop, egress, dns, taken };
        harbour.publish();
        harbour
    }

    fn publish(&self) {
        self.egress.publish(&self.shop.view);
    }

    fn change(&mut self, change: impl FnOnce(&mut View)) {
        self.shop.change(change);
        self.publish();
    }

    /// As the caller's proxy would ask the gateway, with that said of where it is to go.
    async fn ask(&self, host: &str, leaves: &[&str]) -> Answer {
        let plane = plane_of(&self.shop.east.workload("productpage"), &self.shop.view);
        let about = About { side: Side::Outbound, service: None, cluster: None };
        let tcp = TcpStream::connect(self.egress.inbound).await.unwrap();
        let dialled = tls::dial(tcp, &plane, Expect::Anyone, None, about).await.unwrap();
        let mut sender = http2(dialled.stream).await;
        let mut request = Request::get(format!("http://{host}/pay"));
        for said in leaves {
            request = request.header("x-hanse-leaves", *said);
        }
        Answer::of(sender.send_request(request.body(Full::default()).unwrap()).await.unwrap()).await
    }
}

#[test]
fn requests_leave_through_the_gateway_that_the_document_names_and_by_nobody_else() {
    on_local_set(async {
        let mut harbour = Harbour::open().await;
        let me = harbour.shop.east.id("productpage").to_string();
        let gateway = harbour.shop.east.id("egress").to_string();
        for _ in 0..3 {
            let mut request = get(PAYMENTS);
            request.headers_mut().insert("x-hanse-leaves", "shop/elsewhere".parse().unwrap());
            let answer = harbour.shop.product.request(request).await;
            assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
            let seen = answer.seen();
            assert_eq!(
                (&seen["uri"], &seen["headers"]["host"]),
                (&"/pay?n=1".into(), &"api.payments.example".into())
            );
            for ours in ["x-forwarded-client-cert", "x-hanse-leaves", "x-hanse-tier"] {
                assert!(seen["headers"][ours].is_null(), "{ours}: {seen}");
            }
            let called = harbour.shop.product.logged().await;
            assert_eq!(
                (called.upstream_cluster.as_str(), called.destination_spiffe.as_str()),
                ("shop/payments", &*gateway)
            );
            // Both ends of the gateway: who came, and where it went.
            let both = [harbour.egress.logged().await, harbour.egress.logged().await];
            let of = |service: &str| both.iter().find(|line| line.upstream_cluster == service).unwrap();
            assert_eq!(
                (of("shop/egress").source_spiffe.as_str(), of("shop/egress").response_code),
                (&*me, 200)
            );
            assert_eq!(
                (of("shop/payments").destination_cluster.as_str(), of("shop/payments").response_code),
                ("outside", 200)
            );
        }
        assert_eq!(harbour.taken.get(), 1, "the gateway keeps its connection");
        // What fails beyond is no fault of the gateway's: it stays in use.
        harbour.shop.apply(
            "apiVersion: hanse.dev/v1alpha1\nkind: BackendPolicy\nmetadata: { name: payments, namespace: shop }\nspec:\n  \
             targetRefs: [{ group: hanse.dev, kind: ExternalService, name: payments }]\n  \
             health: { outlier: { consecutive5xx: 100, consecutiveGatewayErrors: 100 } }\n",
        );
        harbour.publish();
        for _ in 0..8 {
            let answer = harbour.shop.product.get("http://api.payments.example/status/503").await;
            assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        }
        assert_eq!(harbour.shop.product.get(PAYMENTS).await.status, StatusCode::OK);
        // What is to leave is nothing for an app, whatever services it shares with the gateway.
        let plane = plane_of(&harbour.shop.east.workload("productpage"), &harbour.shop.view);
        let about = About { side: Side::Outbound, service: None, cluster: None };
        let tcp = TcpStream::connect(harbour.shop.reviews.inbound).await.unwrap();
        let dialled = tls::dial(tcp, &plane, Expect::Anyone, None, about).await.unwrap();
        let request =
            Request::get("http://api.payments.example/pay").header("x-hanse-leaves", "shop/payments");
        let mut sender = http2(dialled.stream).await;
        let answer = sender.send_request(request.body(Full::default()).unwrap()).await.unwrap();
        let answer = Answer::of(answer).await;
        assert_eq!((answer.status.as_u16(), answer.header("x-hanse-reason")), (404, "nothing-served"));
        // Without the gateway nothing leaves.
        let taken = harbour.taken.get();
        harbour.change(|view| view.endpoints.retain(|_, endpoint| endpoint.id.to_string() != "egress-1"));
        let answer = harbour.shop.product.get(PAYMENTS).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{answer:?}");
        assert_eq!(harbour.taken.get(), taken);
    });
}

#[test]
fn a_gateway_sends_nothing_that_no_document_names_it_for() {
    on_local_set(async {
        let mut harbour = Harbour::open().await;
        let (host, payments) = ("api.payments.example", "shop/payments");
        let asked = async |harbour: &Harbour, host: &str, leaves: &[&str]| {
            let answer = harbour.ask(host, leaves).await;
            (answer.status.as_u16(), answer.header("x-hanse-reason").to_owned())
        };
        let no = |status: u16, reason: &str| (status, reason.to_owned());
        // Policies of the gateway's service decide by caller and host: the example lets one in, to one host.
        assert_eq!(asked(&harbour, host, &[payments]).await, (200, String::new()));
        assert_eq!(asked(&harbour, "www.evil.example", &[payments]).await, no(403, "not-allowed"));
        let id = harbour.shop.east.id("productpage");
        let deny = access::policy("who", "Deny", &format!("[{{ from: {{ identities: [\"{id}\"] }} }}]"));
        harbour.shop.apply(&deny.replace("reviews", "egress"));
        harbour.publish();
        assert_eq!(asked(&harbour, host, &[payments]).await, no(403, "not-allowed"));
        assert_eq!(harbour.shop.product.get(PAYMENTS).await.status, StatusCode::FORBIDDEN);
        // However the host is written.
        harbour.change(|view| view.policies.retain(|key, _| key.kind != PolicyKind::AccessPolicy));
        let deny = access::policy(
            "where",
            "Deny",
            &format!("[{{ to: {{ headers: [{{ name: host, value: {host} }}] }} }}]"),
        );
        harbour.shop.apply(&deny.replace("reviews", "egress"));
        harbour.publish();
        for written in [host, "API.payments.Example", "api.payments.example.", "api.payments.example:80"] {
            assert_eq!(asked(&harbour, written, &[payments]).await, no(403, "not-allowed"), "{written}");
        }
        harbour.change(|view| view.policies.retain(|key, _| key.kind != PolicyKind::AccessPolicy));
        // Without any of them it is the documents that say where to.
        assert_eq!(asked(&harbour, host, &[payments]).await, (200, String::new()));
        assert_eq!(asked(&harbour, host, &[]).await, no(404, "nothing-served"));
        assert_eq!(asked(&harbour, host, &[payments, payments]).await, no(404, "nothing-served"));
        assert_eq!(asked(&harbour, host, &["shop/nobody"]).await, no(403, "not-allowed"));
        assert_eq!(asked(&harbour, "www.evil.example", &[payments]).await, no(400, "bad-request"));
        assert_eq!(asked(&harbour, host, &["shop/payments:22"]).await, no(404, "unknown-host"));
        // One that another gateway is named for, or none.
        let (asks, taken) = (harbour.dns.asked.get(), harbour.taken.get());
        for via in [Some("reviews"), None] {
            let mut documents: Vec<_> = harbour.shop.view.policies.values().cloned().collect();
            documents.retain(|document| document.kind() == PolicyKind::ExternalService);
            for mut document in documents {
                let PolicySpec::ExternalService(external) = &mut document.spec else { continue };
                external.via = external.via.take().and_then(|old| {
                    Some(hanse_federation::policy::document::edge::EgressRef {
                        name: via?.parse().unwrap(),
                        ..old
                    })
                });
                harbour.change(|view| view.apply(&hanse_federation::Change::PolicyPut(Box::new(document))));
            }
            assert_eq!(asked(&harbour, host, &[payments]).await, no(403, "not-allowed"), "{via:?}");
        }
        assert_eq!((harbour.dns.asked.get(), harbour.taken.get()), (asks, taken));
    });
}
