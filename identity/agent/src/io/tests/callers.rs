//! What callers see: SDS and the Workload API.

use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{Secret, secret};
use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use envoy_types::pb::google::rpc;
use hanse_identity::RevocationTarget;
use prost::{Message as _, Name as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming};

use super::*;
use crate::fixture::{RATINGS, REVIEWS, id, revocation};
use crate::io::socket::BindError;
use crate::io::streams::SdsCount;
use crate::wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use crate::wire::workload::{X509BundlesRequest, X509svidRequest};

/// An SDS client's stream.
pub(super) struct SdsStream {
    pub(super) requests: mpsc::Sender<DiscoveryRequest>,
    pub(super) responses: Streaming<DiscoveryResponse>,
    pub(super) names: Vec<String>,
}

impl SdsStream {
    pub(super) async fn open(channel: Channel, names: &[&str]) -> Result<Self, Status> {
        let (requests, outgoing) = mpsc::channel(8);
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let first = DiscoveryRequest {
            type_url: Secret::type_url(),
            resource_names: names.clone(),
            ..Default::default()
        };
        requests.send(first).await.unwrap();
        let mut client = SecretDiscoveryServiceClient::new(channel);
        let responses = client.stream_secrets(ReceiverStream::new(outgoing)).await?.into_inner();
        Ok(Self { requests, responses, names })
    }

    pub(super) async fn next(&mut self) -> Result<DiscoveryResponse, Status> {
        soon(self.responses.message()).await.map(|response| response.expect("the stream goes on"))
    }

    pub(super) async fn answer(&self, response: &DiscoveryResponse, error: Option<&str>) {
        let error_detail =
            error.map(|text| rpc::Status { code: 13, message: text.into(), ..Default::default() });
        let request = DiscoveryRequest {
            resource_names: self.names.clone(),
            version_info: response.version_info.clone(),
            response_nonce: response.nonce.clone(),
            error_detail,
            ..Default::default()
        };
        self.requests.send(request).await.unwrap();
    }
}

pub(super) fn secrets(response: &DiscoveryResponse) -> Vec<Secret> {
    response.resources.iter().map(|any| Secret::decode(&any.value[..]).unwrap()).collect()
}

/// The certificate chain of a response's only secret.
fn chain(response: &DiscoveryResponse) -> Vec<u8> {
    use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
    let secrets = secrets(response);
    let Some(secret::Type::TlsCertificate(certificate)) = &secrets[0].r#type else { panic!("{secrets:?}") };
    match certificate.certificate_chain.as_ref().unwrap().specifier.as_ref().unwrap() {
        Specifier::InlineBytes(bytes) => bytes.clone(),
        other => panic!("{other:?}"),
    }
}

pub(super) fn with_header<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
    request
}

#[tokio::test]
async fn sds_gives_the_certificate_and_pushes_each_rotation() {
    let bench = Bench::with(&[REVIEWS]);
    let mut stream = SdsStream::open(bench.connect().await, &["default"]).await.unwrap();
    let first = stream.next().await.unwrap();
    assert_eq!(first.type_url, Secret::type_url());
    assert_eq!(secrets(&first)[0].name, "default");
    let before = bench.only_svid();
    assert_eq!(chain(&first), before.chain_pem().into_bytes());
    stream.answer(&first, None).await;
    until(|| bench.shared.metrics.acks.get() == 1).await;

    let key = bench.shared.svids.list()[0].key.clone();
    assert!(bench.shared.svids.renew_now(&key));
    let second = stream.next().await.unwrap();
    let after = bench.only_svid();
    assert_eq!(chain(&second), after.chain_pem().into_bytes());
    assert_ne!(after.facts.serial, before.facts.serial);
    assert_ne!(after.facts.key_id, before.facts.key_id);
    assert_ne!((&second.version_info, &second.nonce), (&first.version_info, &first.nonce));
}

#[tokio::test]
async fn one_stream_carries_many_names_and_may_change_them() {
    let bench = Bench::with(&[REVIEWS]);
    let mut stream = SdsStream::open(bench.connect().await, &["ALL", "ROOTCA"]).await.unwrap();
    let first = stream.next().await.unwrap();
    let names: Vec<String> = secrets(&first).into_iter().map(|s| s.name).collect();
    assert_eq!(names, ["ALL", "ROOTCA"]);
    assert_eq!(bench.shared.svids.list().len(), 0, "nobody asked for a certificate");
    stream.names.push("default".to_owned());
    stream.answer(&first, None).await;
    let second = stream.next().await.unwrap();
    assert_eq!(secrets(&second).len(), 3);
}

#[tokio::test]
async fn a_bundle_change_is_pushed_and_a_rejected_one_is_counted_and_not_repeated() {
    let bench = Bench::with(&[REVIEWS]);
    let mut stream = SdsStream::open(bench.connect().await, &["ALL"]).await.unwrap();
    let first = stream.next().await.unwrap();
    stream.answer(&first, None).await;
    bench.change(|state| state.bundles.truncate(1));
    let second = stream.next().await.unwrap();
    assert_ne!(second.resources, first.resources);
    stream.answer(&second, Some("no such thing")).await;
    until(|| bench.shared.metrics.nacks.get() == 1).await;
    // A revision that changes nothing for this stream, then one that does: only that is sent.
    bench.change(|_| {});
    bench.change(|state| state.bundles.push(bundle(&[&authority(&west())])));
    let third = stream.next().await.unwrap();
    assert_eq!(third.version_info, "3");
    assert_ne!(third.resources, second.resources);
    let rejection = bench.shared.streams.list()[0].rejection.clone().expect("it is kept");
    assert_eq!((rejection.version, rejection.detail.as_str()), (2, "no such thing"));
    // In force at the client is only what it has accepted.
    assert_eq!(bench.shared.streams.applied(4), (1, 1));
    assert_eq!(bench.shared.streams.sds(4), SdsCount { subscribers: 1, acknowledged: 0, rejected: 1 });
    stream.answer(&third, None).await;
    until(|| bench.shared.streams.applied(4) == (4, 1)).await;
    assert_eq!(bench.shared.streams.sds(4), SdsCount { subscribers: 1, acknowledged: 1, rejected: 0 });
}

#[tokio::test]
async fn a_caller_without_registration_is_denied() {
    let bench = Bench::with(&[]);
    let mut stream = SdsStream::open(bench.connect().await, &["default"]).await.unwrap();
    let denied = stream.next().await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    assert!(denied.message().contains(&format!("unix:uid:{}", own_uid())), "{denied:?}");
    let mut client = SpiffeWorkloadApiClient::new(bench.connect().await);
    let denied = client.fetch_x509svid(with_header(X509svidRequest {})).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    let denied = client.fetch_x509_bundles(with_header(X509BundlesRequest {})).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    assert_eq!(bench.issuer.asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_revoked_identity_ends_the_stream_and_the_svid_is_dropped() {
    for by_serial in [false, true] {
        let bench = Bench::with(&[REVIEWS]);
        let mut stream = SdsStream::open(bench.connect().await, &["default", "ALL"]).await.unwrap();
        while !secrets(&stream.next().await.unwrap()).iter().any(|s| s.name == "default") {}
        let serial = bench.only_svid().facts.serial.clone();
        let target = match by_serial {
            true => RevocationTarget::Serial(serial.clone()),
            false => RevocationTarget::Identity(id(REVIEWS)),
        };
        bench.change(|state| state.revocations.insert(revocation(9, target)));
        let ended = stream.next().await.unwrap_err();
        assert_eq!(ended.code(), Code::PermissionDenied);
        assert!(ended.message().contains("r-9@east.example"), "{ended:?}");
        until(|| bench.shared.svids.list().is_empty()).await;
        until(|| bench.shared.streams.applied(2) == (2, 0)).await;

        let mut again = SdsStream::open(bench.connect().await, &["default"]).await.unwrap();
        match by_serial {
            // The process itself is still who it was: it gets another certificate.
            true => {
                again.next().await.unwrap();
                assert_ne!(bench.only_svid().facts.serial, serial);
            }
            false => assert_eq!(again.next().await.unwrap_err().code(), Code::PermissionDenied),
        }
    }
}

#[tokio::test]
async fn a_withdrawn_registration_ends_the_stream() {
    let bench = Bench::with(&[REVIEWS]);
    let mut stream = SdsStream::open(bench.connect().await, &["default"]).await.unwrap();
    stream.next().await.unwrap();
    bench.change(|state| state.registrations.clear());
    assert_eq!(stream.next().await.unwrap_err().code(), Code::PermissionDenied);
    until(|| bench.shared.svids.list().is_empty()).await;
}

#[tokio::test]
async fn names_that_are_no_secret_are_refused() {
    let bench = Bench::with(&[REVIEWS]);
    let channel = bench.connect().await;
    for (name, code) in [
        ("tls", Code::InvalidArgument),
        (RATINGS, Code::PermissionDenied),
        ("spiffe://nowhere.example", Code::NotFound),
    ] {
        let mut stream = SdsStream::open(channel.clone(), &[name]).await.unwrap();
        assert_eq!(stream.next().await.unwrap_err().code(), code, "{name}");
    }
}

#[tokio::test]
async fn a_failing_issuer_delays_the_certificate_and_nothing_else() {
    let bench = Bench::with(&[REVIEWS]);
    bench.issuer.failing.store(3, Ordering::SeqCst);
    let mut stream = SdsStream::open(bench.connect().await, &["default", "ROOTCA"]).await.unwrap();
    let first = stream.next().await.unwrap();
    assert_eq!(secrets(&first)[0].name, "ROOTCA");
    stream.answer(&first, None).await;
    assert_eq!(secrets(&stream.next().await.unwrap()).len(), 2);
    assert_eq!(bench.shared.metrics.renew_failures.get(), 3);
}

#[tokio::test]
async fn workload_api_streams_svids_and_bundles() {
    let bench = Bench::with(&[REVIEWS, RATINGS]);
    let mut client = SpiffeWorkloadApiClient::new(bench.connect().await);
    let mut stream = client.fetch_x509svid(with_header(X509svidRequest {})).await.unwrap().into_inner();
    let first = soon(stream.message()).await.unwrap().unwrap();
    let ids: Vec<&str> = first.svids.iter().map(|s| s.spiffe_id.as_str()).collect();
    assert_eq!(ids, [REVIEWS, RATINGS]);
    for svid in &first.svids {
        let key = zeroize::Zeroizing::new(svid.x509_svid_key.clone());
        let read = Svid::new(vec![svid.x509_svid.clone()], key).expect("the key belongs to the certificate");
        assert_eq!(read.facts.id.to_string(), svid.spiffe_id);
        assert_eq!(svid.bundle, bench.east_1.certificate().der);
    }
    assert!(first.federated_bundles.contains_key("spiffe://west.example"));

    let key = bench.shared.svids.list()[0].key.clone();
    bench.shared.svids.renew_now(&key);
    let second = soon(stream.message()).await.unwrap().unwrap();
    let changed = first.svids.iter().zip(&second.svids).filter(|(a, b)| a != b).count();
    assert_eq!(changed, 1);

    let mut bundles =
        client.fetch_x509_bundles(with_header(X509BundlesRequest {})).await.unwrap().into_inner();
    assert_eq!(soon(bundles.message()).await.unwrap().unwrap().bundles.len(), 2);
    bench.change(|state| state.bundles.truncate(1));
    assert_eq!(soon(bundles.message()).await.unwrap().unwrap().bundles.len(), 1);
    let third = soon(stream.message()).await.unwrap().unwrap();
    assert!(third.federated_bundles.is_empty());

    bench.change(|state| state.revocations.insert(revocation(9, RevocationTarget::Identity(id(REVIEWS)))));
    let fourth = soon(stream.message()).await.unwrap().expect("the other identity goes on");
    assert_eq!(fourth.svids.len(), 1);
    assert_eq!(fourth.svids[0].spiffe_id, RATINGS);
}

#[tokio::test]
async fn workload_api_refusals() {
    let bench = Bench::with(&[REVIEWS]);
    let mut client = SpiffeWorkloadApiClient::new(bench.connect().await);
    let bare = client.fetch_x509svid(X509svidRequest {}).await.unwrap_err();
    assert_eq!(bare.code(), Code::InvalidArgument);

    let bench = Bench::without_state();
    let mut client = SpiffeWorkloadApiClient::new(bench.connect().await);
    let early = client.fetch_x509svid(with_header(X509svidRequest {})).await.unwrap_err();
    assert_eq!(early.code(), Code::Unavailable);
    assert!(early.message().contains("joined"), "{early:?}");
}

#[tokio::test]
async fn stopping_ends_streams_and_says_so() {
    let bench = Bench::with(&[REVIEWS]);
    let mut stream = SdsStream::open(bench.connect().await, &["default"]).await.unwrap();
    stream.next().await.unwrap();
    bench.stop.send_replace(true);
    assert_eq!(stream.next().await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn the_socket_is_taken_over_only_from_the_dead() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sub/agent.sock");
    let (listener, file) = super::super::socket::bind(&path).unwrap();
    assert!(matches!(super::super::socket::bind(&path), Err(BindError::Taken(_))));
    drop(listener);
    let (_listener, second) = super::super::socket::bind(&path).unwrap();
    drop(file);
    assert!(path.exists(), "the file of the agent that took over stays");
    drop(second);
    assert!(!path.exists());
    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(super::super::socket::bind(&path), Err(BindError::NotASocket(_))));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}
