//! SDS to the letter: incremental, fetched, lists in bundles, withdrawal, and clients that do not play by the rules.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, SpiffeCertValidatorConfig, secret,
};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest,
};
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use hanse_identity::Crl;
use prost::{Message as _, Name as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use super::callers::{SdsStream, secrets};
use super::*;
use crate::fixture::REVIEWS;

/// A client of the incremental protocol.
struct DeltaStream {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl DeltaStream {
    async fn open(bench: &Bench, names: &[&str]) -> Self {
        let (requests, outgoing) = mpsc::channel(8);
        let names = names.iter().map(|n| (*n).to_owned()).collect();
        let first = DeltaDiscoveryRequest {
            type_url: Secret::type_url(),
            resource_names_subscribe: names,
            ..Default::default()
        };
        requests.send(first).await.unwrap();
        let mut client = SecretDiscoveryServiceClient::new(bench.connect().await);
        let responses = client.delta_secrets(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
        Self { requests, responses }
    }

    /// The next response, accepted: names with versions, and names that are gone.
    async fn next(&mut self) -> (BTreeMap<String, String>, Vec<String>) {
        let response = soon(self.responses.message()).await.unwrap().expect("the stream goes on");
        let accepted = DeltaDiscoveryRequest { response_nonce: response.nonce, ..Default::default() };
        self.requests.send(accepted).await.unwrap();
        let resources = response.resources.into_iter().map(|r| (r.name, r.version)).collect();
        (resources, response.removed_resources)
    }
}

fn context(secret: &Secret) -> &CertificateValidationContext {
    match &secret.r#type {
        Some(secret::Type::ValidationContext(context)) => context,
        other => panic!("{other:?}"),
    }
}

fn text(source: Option<&envoy_types::pb::envoy::config::core::v3::DataSource>) -> String {
    use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
    match source.and_then(|s| s.specifier.as_ref()) {
        Some(Specifier::InlineBytes(bytes)) => String::from_utf8(bytes.clone()).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// The bundle of each trust domain in an `ALL` secret.
fn domains(secret: &Secret) -> BTreeMap<String, String> {
    let validator = context(secret).custom_validator_config.clone().unwrap().typed_config.unwrap();
    let config = SpiffeCertValidatorConfig::decode(&validator.value[..]).unwrap();
    config.trust_domains.into_iter().map(|d| (d.name, text(d.trust_bundle.as_ref()))).collect()
}

fn list_of(bench: &Bench, number: u64) -> Crl {
    Crl::sign(&bench.east_1, number, &BTreeMap::new(), now()).unwrap()
}

#[tokio::test]
async fn lists_come_with_the_bundle_of_their_trust_domain_and_only_complete() {
    let bench = Bench::with(&[REVIEWS]);
    let names = ["ALL", "ROOTCA", "spiffe://east.example", "spiffe://west.example"];
    let mut stream = SdsStream::open(bench.connect().await, &names).await.unwrap();
    let before = stream.next().await.unwrap();
    stream.answer(&before, None).await;
    assert!(secrets(&before)[1..].iter().all(|s| context(s).crl.is_none()));

    let crl = list_of(&bench, 1);
    let (der, pem) = (crl.der.to_vec(), crl.to_pem());
    bench.change(|state| drop(state.crls.insert(east(), BTreeMap::from([(crl.authority, crl)]))));
    let with = stream.next().await.unwrap();
    let told = secrets(&with);
    let own = bench.view.borrow().state.as_ref().unwrap().bundles[0].to_pem();
    for secret in &told[1..3] {
        assert_eq!(text(context(secret).trusted_ca.as_ref()), own, "{}", secret.name);
        assert_eq!(text(context(secret).crl.as_ref()), *pem, "{}", secret.name);
    }
    assert!(context(&told[3]).crl.is_none(), "nothing is known of west's");
    let all = domains(&told[0]);
    assert_eq!(all["east.example"], format!("{own}{}", *pem));
    assert!(!all["west.example"].contains("CRL"));
    let mut client = crate::wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient::new(
        bench.connect().await,
    );
    let mut request = tonic::Request::new(crate::wire::workload::X509BundlesRequest {});
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
    let mut bundles = client.fetch_x509_bundles(request).await.unwrap().into_inner();
    assert_eq!(soon(bundles.message()).await.unwrap().unwrap().crl, [der]);

    // A second authority signs and has no list yet: none goes out, rather than all that it signed being refused.
    stream.answer(&with, None).await;
    bench.change(|state| state.bundles[0].authorities.push(authority(&east()).certificate().clone()));
    let without = stream.next().await.unwrap();
    assert!(secrets(&without)[1..].iter().all(|s| context(s).crl.is_none()));
    assert!(!domains(&secrets(&without)[0])["east.example"].contains("CRL"));
}

#[tokio::test]
async fn a_trust_domain_that_is_gone_is_replaced_by_nobody() {
    let bench = Bench::with(&[REVIEWS]);
    let mut all = SdsStream::open(bench.connect().await, &["ALL"]).await.unwrap();
    let mut west = SdsStream::open(bench.connect().await, &["spiffe://west.example"]).await.unwrap();
    let (with, known) = (all.next().await.unwrap(), west.next().await.unwrap());
    all.answer(&with, None).await;
    west.answer(&known, None).await;
    bench.change(|state| state.bundles.truncate(1));
    let without = all.next().await.unwrap();
    assert_eq!(domains(&secrets(&without)[0]).into_keys().collect::<Vec<_>>(), ["east.example"]);

    let nobody = west.next().await.unwrap();
    let replaced = secrets(&nobody);
    assert_eq!(replaced[0].name, "spiffe://west.example");
    assert_eq!(context(&replaced[0]).verify_certificate_hash, ["0".repeat(64)]);
    assert!(!text(context(&replaced[0]).trusted_ca.as_ref()).is_empty(), "an empty bundle would be refused");
    west.answer(&nobody, None).await;
    // One that comes back with what it had is told the same; one that has nothing is refused.
    let (requests, outgoing) = mpsc::channel(8);
    let back = DiscoveryRequest { version_info: "1".into(), ..first("spiffe://west.example") };
    requests.send(back).await.unwrap();
    let mut client = SecretDiscoveryServiceClient::new(bench.connect().await);
    let mut responses = client.stream_secrets(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
    assert_eq!(soon(responses.message()).await.unwrap().unwrap().resources, nobody.resources);
    let mut new = SdsStream::open(bench.connect().await, &["spiffe://west.example"]).await.unwrap();
    assert_eq!(new.next().await.unwrap_err().code(), Code::NotFound);
    // Joined again: the stream that was told "nobody" is told the new bundle.
    bench.change(|state| state.bundles.push(bundle(&[&authority(&west_domain())])));
    let again = secrets(&west.next().await.unwrap());
    assert!(context(&again[0]).verify_certificate_hash.is_empty());
}

#[tokio::test]
async fn a_strangers_bundle_that_is_deleted_is_replaced_by_nobody() {
    let bench = Bench::with(&[REVIEWS]);
    bench.change(|state| {
        state.strangers.insert(west_domain());
        state.registrations[0].federates_with = [west_domain()].into();
    });
    let mut all = SdsStream::open(bench.connect().await, &["ALL"]).await.unwrap();
    let mut west = SdsStream::open(bench.connect().await, &["spiffe://west.example"]).await.unwrap();
    let (with, known) = (all.next().await.unwrap(), west.next().await.unwrap());
    assert_eq!(domains(&secrets(&with)[0]).len(), 2);
    all.answer(&with, None).await;
    west.answer(&known, None).await;
    // The registration still names it.
    bench.change(|state| {
        state.bundles.truncate(1);
        state.strangers.clear();
    });
    let without = all.next().await.unwrap();
    assert_eq!(domains(&secrets(&without)[0]).into_keys().collect::<Vec<_>>(), ["east.example"]);
    let nobody = secrets(&west.next().await.unwrap());
    assert_eq!(context(&nobody[0]).verify_certificate_hash, ["0".repeat(64)]);
}

fn west_domain() -> hanse_identity::TrustDomain {
    crate::fixture::west()
}

fn first(name: &str) -> DiscoveryRequest {
    DiscoveryRequest {
        type_url: Secret::type_url(),
        resource_names: vec![name.to_owned()],
        ..Default::default()
    }
}

#[tokio::test]
async fn delta_streams_serve_rotate_and_tell_what_does_not_exist() {
    let bench = Bench::with(&[REVIEWS]);
    let mut stream = DeltaStream::open(&bench, &["default", "ALL", "spiffe://north.example"]).await;
    let (mut told, mut gone) = (BTreeMap::new(), Vec::new());
    while told.len() < 2 {
        let (resources, removed) = stream.next().await;
        told.extend(resources);
        gone.extend(removed);
    }
    assert_eq!(told.keys().collect::<Vec<_>>(), ["ALL", "default"]);
    assert_eq!(gone, ["spiffe://north.example"]);
    until(|| bench.shared.streams.sds(1).acknowledged == 1).await;

    let key = bench.shared.svids.list()[0].key.clone();
    assert!(bench.shared.svids.renew_now(&key));
    let (renewed, _) = stream.next().await;
    assert_eq!(renewed.keys().collect::<Vec<_>>(), ["default"], "only what is new");
    assert_ne!(renewed["default"], told["default"]);
    bench.change(|state| state.bundles.truncate(1));
    let (changed, _) = stream.next().await;
    assert_eq!(changed.keys().collect::<Vec<_>>(), ["ALL"]);
    until(|| bench.shared.streams.applied(2) == (2, 1)).await;
}

#[tokio::test]
async fn secrets_are_fetched_once_without_a_stream() {
    let bench = Bench::with(&[REVIEWS]);
    let mut client = SecretDiscoveryServiceClient::new(bench.connect().await);
    let mut request = first("default");
    request.resource_names.push("ALL".to_owned());
    let fetched = soon(client.fetch_secrets(request.clone())).await.unwrap().into_inner();
    let names: Vec<String> = secrets(&fetched).into_iter().map(|s| s.name).collect();
    assert_eq!(names, ["ALL", "default"]);
    let same = soon(client.fetch_secrets(first("ALL"))).await.unwrap().into_inner();
    let again = soon(client.fetch_secrets(first("ALL"))).await.unwrap().into_inner();
    assert_eq!(same.version_info, again.version_info);
    for (name, code) in [("tls", Code::InvalidArgument), ("spiffe://nowhere.example", Code::NotFound)] {
        assert_eq!(soon(client.fetch_secrets(first(name))).await.unwrap_err().code(), code, "{name}");
    }
    let nothing = soon(client.fetch_secrets(DiscoveryRequest::default())).await.unwrap_err();
    assert_eq!(nothing.code(), Code::InvalidArgument);
    until(|| bench.shared.streams.list().is_empty()).await;
}

#[tokio::test]
async fn a_client_that_floods_is_cut_off() {
    let bench = Bench::with(&[REVIEWS]);
    let mut stream = SdsStream::open(bench.connect().await, &["ALL"]).await.unwrap();
    let response = stream.next().await.unwrap();
    stream.answer(&response, None).await;
    let flood = async {
        // Until the agent has closed the stream.
        while stream.requests.send(first("ALL")).await.is_ok() {}
    };
    soon(flood).await;
    assert_eq!(stream.next().await.unwrap_err().code(), Code::ResourceExhausted);
    assert!(bench.shared.metrics.stale.get() > 0, "what it said was ignored before");
}

#[tokio::test]
async fn a_stream_without_content_for_a_revision_has_it_at_once_and_one_that_is_silent_holds_it_back() {
    let bench = Bench::with(&[REVIEWS]);
    let mut certificate = SdsStream::open(bench.connect().await, &["default"]).await.unwrap();
    let mut bundles = SdsStream::open(bench.connect().await, &["ALL"]).await.unwrap();
    for stream in [&mut certificate, &mut bundles] {
        let response = stream.next().await.unwrap();
        stream.answer(&response, None).await;
    }
    until(|| bench.shared.streams.applied(1) == (1, 2)).await;
    bench.change(|state| state.bundles.truncate(1));
    let new = bundles.next().await.unwrap();
    until(|| bench.shared.streams.sds(2).acknowledged == 1).await;
    assert_eq!(bench.shared.streams.applied(2), (1, 2), "sent is not in force");
    bundles.answer(&new, None).await;
    until(|| bench.shared.streams.applied(2) == (2, 2)).await;
}
