//! The Workload Endpoint and API by the labels of their rules: W-1 to W-3 and W-5 to W-15.

use std::collections::BTreeSet;

use hanse_identity::jwt::JwtKey;
use hanse_identity::{PrivateKey, RevocationTarget};
use tokio_stream::StreamExt as _;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

use super::callers::with_header;
use super::*;
use crate::client::{FetchError, WorkloadApi};
use crate::fixture::{DAY, RATINGS, REVIEWS, id, revocation};
use crate::wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use crate::wire::workload::{
    JwtBundlesRequest, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest, ValidateJwtsvidResponse,
    X509BundlesRequest, X509svidRequest,
};

const AUDIENCE: &str = "ledger";

/// A call of any path with any message: what no generated client would make.
async fn raw(channel: Channel, path: &'static str, request: Request<()>) -> Result<(), Status> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static(path);
    grpc.unary(request, path, ProstCodec::<(), ()>::default()).await.map(drop)
}

async fn fetch_jwt(bench: &Bench, audience: &[&str], id: &str) -> Result<JwtsvidResponse, Status> {
    let mut client = SpiffeWorkloadApiClient::new(bench.connect().await);
    let audience = audience.iter().map(|a| (*a).to_owned()).collect();
    let request = JwtsvidRequest { audience, spiffe_id: id.to_owned() };
    client.fetch_jwtsvid(with_header(request)).await.map(tonic::Response::into_inner)
}

async fn check_jwt(bench: &Bench, audience: &str, svid: &str) -> Result<ValidateJwtsvidResponse, Status> {
    let mut client = SpiffeWorkloadApiClient::new(bench.connect().await);
    let request = ValidateJwtsvidRequest { audience: audience.to_owned(), svid: svid.to_owned() };
    client.validate_jwtsvid(with_header(request)).await.map(tonic::Response::into_inner)
}

async fn reflect(channel: Channel, question: MessageRequest) -> MessageResponse {
    let question = ServerReflectionRequest { host: String::new(), message_request: Some(question) };
    let mut client = ServerReflectionClient::new(channel);
    let answers = client.server_reflection_info(with_header(tokio_stream::once(question))).await;
    let answer: ServerReflectionResponse = soon(answers.unwrap().into_inner().next()).await.unwrap().unwrap();
    answer.message_response.unwrap()
}

fn code<T: std::fmt::Debug>(result: Result<T, Status>) -> Code {
    result.unwrap_err().code()
}

#[tokio::test]
async fn w_1_the_api_is_grpc_on_a_unix_socket() {
    use std::os::unix::fs::FileTypeExt as _;
    let bench = Bench::with(&[REVIEWS]);
    assert!(std::fs::metadata(&bench.socket).unwrap().file_type().is_socket());
    assert_eq!(fetch_jwt(&bench, &[AUDIENCE], "").await.unwrap().svids.len(), 1);
}

#[tokio::test]
async fn our_own_client_gets_the_default_identity_or_hears_why_not() {
    let wanted = Duration::from_secs(5);
    let api =
        |bench: &Bench| -> WorkloadApi { format!("unix://{}", bench.socket.display()).parse().unwrap() };
    let bench = Bench::with(&[REVIEWS]);
    let fetched = api(&bench).fetch(wanted).await.unwrap();
    assert_eq!((fetched.svid.facts.id, fetched.trust_domain), (id(REVIEWS), east()));
    assert_eq!(fetched.authorities, [bench.east_1.certificate().der.clone()]);
    let nobody = Bench::with(&[]);
    let refused = api(&nobody).fetch(wanted).await.err().unwrap();
    assert!(matches!(&refused, FetchError::Status(s) if s.code() == Code::PermissionDenied), "{refused}");
    let nowhere: WorkloadApi = "unix:///nowhere/agent.sock".parse().unwrap();
    assert!(matches!(nowhere.fetch(wanted).await, Err(FetchError::Connect { .. })));
}

#[tokio::test]
async fn w_2_every_call_needs_the_security_header() {
    let bench = Bench::with(&[REVIEWS]);
    let channel = bench.connect().await;
    let paths = [
        "/SpiffeWorkloadAPI/FetchX509SVID",
        "/SpiffeWorkloadAPI/FetchX509Bundles",
        "/SpiffeWorkloadAPI/FetchJWTSVID",
        "/SpiffeWorkloadAPI/FetchJWTBundles",
        "/SpiffeWorkloadAPI/ValidateJWTSVID",
        "/SpiffeWorkloadAPI/FetchWITSVID",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ];
    for path in paths {
        assert_eq!(code(raw(channel.clone(), path, Request::new(())).await), Code::InvalidArgument, "{path}");
        for value in ["True", "TRUE", "1", "false", ""] {
            let mut request = Request::new(());
            request.metadata_mut().insert("workload.spiffe.io", value.parse().unwrap());
            let refused = code(raw(channel.clone(), path, request).await);
            assert_eq!(refused, Code::InvalidArgument, "{path} {value:?}");
        }
    }
    assert_eq!(bench.issuer.asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn w_3_a_caller_proves_nothing_itself() {
    // No TLS, no token, no message: the kernel says who is there.
    let bench = Bench::with(&[REVIEWS]);
    let mut client = SpiffeWorkloadApiClient::new(bench.connect().await);
    let mut stream = client.fetch_x509svid(with_header(X509svidRequest {})).await.unwrap().into_inner();
    assert_eq!(soon(stream.message()).await.unwrap().unwrap().svids[0].spiffe_id, REVIEWS);
}

/// Of this very process.
fn own_digest() -> Selector {
    let path = std::env::current_exe().unwrap();
    let executable = crate::attest::Executables::default().at(&path).unwrap();
    Selector::Sha256(executable.hash(&path).unwrap().to_owned())
}

#[tokio::test]
async fn a_registration_by_digest_is_given_to_the_executable_and_no_other() {
    let bench = Bench::with(&[REVIEWS]);
    let by = |digest| vec![registration(RATINGS, [Selector::Uid(own_uid()), digest])];
    bench.change(|state| state.registrations = by(Selector::Sha256("00".repeat(32))));
    assert_eq!(code(fetch_jwt(&bench, &[AUDIENCE], "").await), Code::PermissionDenied);
    bench.change(|state| state.registrations = by(own_digest()));
    assert_eq!(fetch_jwt(&bench, &[AUDIENCE], "").await.unwrap().svids[0].spiffe_id, RATINGS);
}

#[tokio::test]
async fn a_registration_that_comes_to_ask_for_a_digest_interrupts_nobody() {
    let bench = Bench::with(&[REVIEWS]);
    let mut client = SpiffeWorkloadApiClient::new(bench.connect().await);
    let mut stream = client.fetch_x509svid(with_header(X509svidRequest {})).await.unwrap().into_inner();
    let first = soon(stream.message()).await.unwrap().unwrap();
    bench.change(|state| {
        state.registrations = vec![registration(REVIEWS, [Selector::Uid(own_uid()), own_digest()])];
    });
    bench.change(|state| state.bundles[1] = bundle(&[&authority(&west())]));
    let next = loop {
        let next = soon(stream.message()).await.unwrap().unwrap();
        if next != first {
            break next;
        }
    };
    assert_eq!(next.svids[0].x509_svid, first.svids[0].x509_svid, "it is still the same SVID");
    bench.change(|state| {
        let other = Selector::Sha256("00".repeat(32));
        state.registrations = vec![registration(REVIEWS, [Selector::Uid(own_uid()), other])];
    });
    assert_eq!(code(soon(stream.message()).await), Code::PermissionDenied);
}

#[tokio::test]
async fn w_5_status_codes_say_what_the_client_is_to_do() {
    let early = Bench::without_state();
    assert_eq!(code(fetch_jwt(&early, &[AUDIENCE], "").await), Code::Unavailable);
    assert_eq!(code(check_jwt(&early, AUDIENCE, "x").await), Code::Unavailable);

    let stranger = Bench::with(&[]);
    let mut client = SpiffeWorkloadApiClient::new(stranger.connect().await);
    assert_eq!(code(client.fetch_x509svid(with_header(X509svidRequest {})).await), Code::PermissionDenied);
    assert_eq!(
        code(client.fetch_x509_bundles(with_header(X509BundlesRequest {})).await),
        Code::PermissionDenied
    );
    assert_eq!(
        code(client.fetch_jwt_bundles(with_header(JwtBundlesRequest {})).await),
        Code::PermissionDenied
    );
    assert_eq!(code(fetch_jwt(&stranger, &[AUDIENCE], "").await), Code::PermissionDenied);
    assert_eq!(code(check_jwt(&stranger, AUDIENCE, "x").await), Code::PermissionDenied);

    let bench = Bench::with(&[REVIEWS]);
    let unknown = raw(bench.connect().await, "/SpiffeWorkloadAPI/FetchNothing", with_header(())).await;
    assert_eq!(code(unknown), Code::Unimplemented);
    let elsewhere = raw(bench.connect().await, "/example.Nothing/Nothing", with_header(())).await;
    assert_eq!(code(elsewhere), Code::Unimplemented);
}

#[tokio::test]
async fn w_5_a_caller_that_asks_too_often_is_to_come_back() {
    let bench = Bench::with(&[REVIEWS]);
    let client = SpiffeWorkloadApiClient::new(bench.connect().await);
    // Two seconds' worth is saved up and six more would be needed: slow as a machine may be, it is not that slow.
    let asked = (0..400).map(|_| {
        let mut client = client.clone();
        let request = JwtsvidRequest { audience: vec![AUDIENCE.to_owned()], spiffe_id: String::new() };
        async move { client.fetch_jwtsvid(with_header(request)).await }
    });
    let answers = soon(futures_util::future::join_all(asked)).await;
    let status = answers.into_iter().find_map(Result::err).expect("they are not all answered");
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("too many requests"), "{status:?}");
}

#[tokio::test]
async fn w_6_reflection_names_the_services_and_no_call_was_added_to_them() {
    use prost::Message as _;

    let bench = Bench::with(&[]);
    let channel = bench.connect().await;
    let listed = reflect(channel.clone(), MessageRequest::ListServices(String::new())).await;
    let MessageResponse::ListServicesResponse(listed) = listed else { panic!("{listed:?}") };
    let names: BTreeSet<String> = listed.service.into_iter().map(|s| s.name).collect();
    let wanted = ["SpiffeWorkloadAPI", "envoy.service.secret.v3.SecretDiscoveryService"];
    assert_eq!(names, wanted.map(str::to_owned).into());

    let described = MessageRequest::FileContainingSymbol("SpiffeWorkloadAPI".to_owned());
    let described = reflect(channel.clone(), described).await;
    let MessageResponse::FileDescriptorResponse(files) = described else { panic!("{described:?}") };
    let file = prost_types::FileDescriptorProto::decode(files.file_descriptor_proto[0].as_slice()).unwrap();
    let methods: Vec<&str> = file.service[0].method.iter().map(|m| m.name()).collect();
    let standard =
        ["FetchX509SVID", "FetchX509Bundles", "FetchJWTSVID", "FetchJWTBundles", "ValidateJWTSVID"];
    assert_eq!(methods, standard);
    let secrets =
        MessageRequest::FileContainingSymbol("envoy.service.discovery.v3.DiscoveryRequest".to_owned());
    assert!(matches!(reflect(channel, secrets).await, MessageResponse::FileDescriptorResponse(_)));
}

#[tokio::test]
async fn w_7_both_profiles_are_there_and_wit_is_not() {
    let bench = Bench::with(&[REVIEWS]);
    let mut client = SpiffeWorkloadApiClient::new(bench.connect().await);
    assert!(client.fetch_x509svid(with_header(X509svidRequest {})).await.is_ok());
    assert!(client.fetch_x509_bundles(with_header(X509BundlesRequest {})).await.is_ok());
    assert!(client.fetch_jwt_bundles(with_header(JwtBundlesRequest {})).await.is_ok());
    let token = fetch_jwt(&bench, &[AUDIENCE], "").await.unwrap().svids.remove(0).svid;
    assert!(check_jwt(&bench, AUDIENCE, &token).await.is_ok());
    for wit in ["/SpiffeWorkloadAPI/FetchWITSVID", "/SpiffeWorkloadAPI/FetchWITBundles"] {
        assert_eq!(code(raw(bench.connect().await, wit, with_header(())).await), Code::Unimplemented);
    }
}

#[tokio::test]
async fn w_8_each_message_is_complete_and_changes_are_pushed() {
    let bench = Bench::with(&[REVIEWS]);
    let mut client = SpiffeWorkloadApiClient::new(bench.connect().await);
    let mut stream = client.fetch_jwt_bundles(with_header(JwtBundlesRequest {})).await.unwrap().into_inner();
    let first = soon(stream.message()).await.unwrap().unwrap();
    assert_eq!(first.bundles.len(), 1, "west has no JWT keys");

    let of_west = JwtKey::new(&west(), PrivateKey::local(rcgen::KeyPair::generate().unwrap()).unwrap());
    bench.change(|state| state.bundles[1].jwt_authorities.push(of_west.authority(now() + DAY)));
    let second = soon(stream.message()).await.unwrap().unwrap();
    assert_eq!(second.bundles.len(), 2);
    assert_eq!(second.bundles["spiffe://east.example"], first.bundles["spiffe://east.example"]);

    // Nothing is sent for a change that is none of the stream's; the next message is about the next change.
    bench.change(|state| state.endpoints.push("127.0.0.1:2".to_owned()));
    bench.change(|state| state.bundles[1].jwt_authorities.clear());
    let third = soon(stream.message()).await.unwrap().unwrap();
    assert_eq!(third, first);
}

#[tokio::test]
async fn w_9_a_bundle_that_is_gone_is_missing_in_the_next_message() {
    let bench = Bench::with(&[REVIEWS]);
    let mut client = SpiffeWorkloadApiClient::new(bench.connect().await);
    let mut svids = client.fetch_x509svid(with_header(X509svidRequest {})).await.unwrap().into_inner();
    assert!(
        soon(svids.message()).await.unwrap().unwrap().federated_bundles.contains_key("spiffe://west.example")
    );
    bench.change(|state| state.bundles.truncate(1));
    assert!(soon(svids.message()).await.unwrap().unwrap().federated_bundles.is_empty());
}

#[tokio::test]
async fn w_10_a_token_is_validated_with_its_own_domains_bundle_only() {
    let bench = Bench::with(&[REVIEWS]);
    let of_west = TestIssuer::new(authority(&east()), bench.shared.view.clone());
    let foreign = fetch_with(&of_west).await;
    // The same key, published by west: still no key of east.
    bench.change(|state| {
        let stolen = of_west.committed.lock().unwrap().jwt_authorities.clone();
        state.bundles[1].jwt_authorities = stolen;
    });
    let refused = check_jwt(&bench, AUDIENCE, &foreign).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("not signed by a JWT authority of east.example"), "{refused:?}");
    bench.change(|state| drop(state.bundles.remove(0)));
    let refused = check_jwt(&bench, AUDIENCE, &foreign).await.unwrap_err();
    assert!(refused.message().contains("no bundle for trust domain east.example"), "{refused:?}");
}

/// A token of `REVIEWS` that this issuer signed.
async fn fetch_with(issuer: &TestIssuer) -> String {
    use super::super::svids::IssueSvid as _;
    let selectors = [Selector::Uid(own_uid())].into();
    issuer.issue_jwt(id(REVIEWS), selectors, vec![AUDIENCE.to_owned()]).await.unwrap().to_string()
}

#[tokio::test]
async fn w_11_svids_come_with_their_keys_chains_and_bundles() {
    let bench = Bench::with(&[REVIEWS, RATINGS]);
    let mut client = SpiffeWorkloadApiClient::new(bench.connect().await);
    let mut stream = client.fetch_x509svid(with_header(X509svidRequest {})).await.unwrap().into_inner();
    let first = soon(stream.message()).await.unwrap().unwrap();
    let ids: Vec<&str> = first.svids.iter().map(|s| s.spiffe_id.as_str()).collect();
    assert_eq!(ids, [REVIEWS, RATINGS], "the first is the default identity");
    for svid in &first.svids {
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(svid.x509_svid_key.as_slice());
        rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&key, &rcgen::PKCS_ECDSA_P256_SHA256)
            .expect("PKCS#8, in the clear");
        let read = Svid::new(vec![svid.x509_svid.clone()], svid.x509_svid_key.clone().into()).unwrap();
        assert_eq!(read.facts.id.to_string(), svid.spiffe_id);
        assert_eq!(svid.bundle, bench.east_1.certificate().der);
    }
    let api: WorkloadApi = format!("unix://{}", bench.socket.display()).parse().unwrap();
    let fetched = api.fetch_all(Duration::from_secs(10)).await.unwrap();
    let fetched: Vec<String> = fetched.iter().map(|fetched| fetched.svid.facts.id.to_string()).collect();
    assert_eq!(fetched, [REVIEWS, RATINGS]);
    let hints: Vec<&str> = first.svids.iter().map(|s| s.hint.as_str()).filter(|h| !h.is_empty()).collect();
    assert_eq!(hints.iter().collect::<BTreeSet<_>>().len(), hints.len(), "no hint is there twice");

    // One that is taken back is not in the next message, and the others are.
    bench.change(|state| state.revocations.insert(revocation(9, RevocationTarget::Identity(id(REVIEWS)))));
    let second = soon(stream.message()).await.unwrap().unwrap();
    let ids: Vec<&str> = second.svids.iter().map(|s| s.spiffe_id.as_str()).collect();
    assert_eq!(ids, [RATINGS]);
}

#[tokio::test]
async fn w_12_the_own_bundle_is_always_among_the_bundles() {
    let bench = Bench::with(&[REVIEWS]);
    bench.change(|state| state.bundles.truncate(1));
    let mut client = SpiffeWorkloadApiClient::new(bench.connect().await);
    let mut stream =
        client.fetch_x509_bundles(with_header(X509BundlesRequest {})).await.unwrap().into_inner();
    let first = soon(stream.message()).await.unwrap().unwrap();
    assert_eq!(first.bundles["spiffe://east.example"], bench.east_1.certificate().der);
}

#[tokio::test]
async fn w_13_tokens_need_an_audience_and_are_for_one_identity_or_all() {
    let bench = Bench::with(&[REVIEWS, RATINGS]);
    for wrong in [&[][..], &[""], &[AUDIENCE, ""]] {
        assert_eq!(code(fetch_jwt(&bench, wrong, "").await), Code::InvalidArgument, "{wrong:?}");
    }
    let ids = |response: JwtsvidResponse| -> Vec<String> {
        response.svids.into_iter().map(|s| s.spiffe_id).collect()
    };
    assert_eq!(ids(fetch_jwt(&bench, &[AUDIENCE], "").await.unwrap()), [REVIEWS, RATINGS]);
    assert_eq!(ids(fetch_jwt(&bench, &[AUDIENCE, "other"], RATINGS).await.unwrap()), [RATINGS]);
    assert_eq!(code(fetch_jwt(&bench, &[AUDIENCE], "ratings").await), Code::InvalidArgument);
    for other in ["spiffe://east.example/ns/shop/sa/details", "spiffe://west.example/ns/shop/sa/reviews"] {
        assert_eq!(code(fetch_jwt(&bench, &[AUDIENCE], other).await), Code::PermissionDenied);
    }
    bench.change(|state| state.revocations.insert(revocation(9, RevocationTarget::Identity(id(REVIEWS)))));
    assert_eq!(code(fetch_jwt(&bench, &[AUDIENCE], REVIEWS).await), Code::PermissionDenied);
    assert_eq!(ids(fetch_jwt(&bench, &[AUDIENCE], "").await.unwrap()), [RATINGS]);
}

#[tokio::test]
async fn f_1_a_token_is_handed_out_only_once_its_key_is_known_here() {
    let bench = Bench::with(&[REVIEWS]);
    let newer = bench.issuer.committed.lock().unwrap().clone();
    bench.change(|state| state.bundles[0].jwt_authorities.clear());
    let (token, ()) = tokio::join!(fetch_jwt(&bench, &[AUDIENCE], ""), async {
        until(|| bench.issuer.asked.load(Ordering::SeqCst) == 1).await;
        bench.change(|state| state.bundles[0] = newer);
    });
    assert_eq!(token.unwrap().svids.len(), 1, "the newer state was waited for");
}

#[tokio::test]
async fn w_14_jwt_bundles_hold_jwt_keys_and_nothing_else() {
    let bench = Bench::with(&[REVIEWS]);
    let mut client = SpiffeWorkloadApiClient::new(bench.connect().await);
    let mut stream = client.fetch_jwt_bundles(with_header(JwtBundlesRequest {})).await.unwrap().into_inner();
    let first = soon(stream.message()).await.unwrap().unwrap();
    let document: serde_json::Value =
        serde_json::from_slice(&first.bundles["spiffe://east.example"]).unwrap();
    let keys = document["keys"].as_array().unwrap();
    let (uses, kids): (Vec<_>, Vec<_>) = keys.iter().map(|k| (k["use"].clone(), k["kid"].clone())).unzip();
    assert_eq!((uses, kids), (vec!["jwt-svid".into()], vec![bench.issuer.jwt.key_id().into()]));
}

#[tokio::test]
async fn w_14_a_strangers_keys_are_for_whom_a_registration_names_it() {
    let bench = Bench::with(&[REVIEWS]);
    let of_west = JwtKey::new(&west(), PrivateKey::local(rcgen::KeyPair::generate().unwrap()).unwrap());
    bench.change(|state| {
        state.bundles[1].jwt_authorities.push(of_west.authority(now() + DAY));
        state.strangers.insert(west());
    });
    let foreign = foreign_token(&of_west, &bench.view.borrow().state.as_ref().unwrap().bundles[1]);
    let mut client = SpiffeWorkloadApiClient::new(bench.connect().await);
    let mut stream = client.fetch_jwt_bundles(with_header(JwtBundlesRequest {})).await.unwrap().into_inner();
    let first = soon(stream.message()).await.unwrap().unwrap();
    assert!(!first.bundles.contains_key("spiffe://west.example"));
    let refused = check_jwt(&bench, AUDIENCE, &foreign).await.unwrap_err();
    assert!(refused.message().contains("no bundle for trust domain west.example"), "{refused:?}");

    bench.change(|state| state.registrations[0].federates_with = [west()].into());
    let second = soon(stream.message()).await.unwrap().unwrap();
    assert!(second.bundles.contains_key("spiffe://west.example"));
    let valid = check_jwt(&bench, AUDIENCE, &foreign).await.unwrap();
    assert_eq!(valid.spiffe_id, "spiffe://west.example/ns/shop/sa/reviews");

    // Its bundle is deleted (trust bundle delete): the registration names it in vain.
    bench.change(|state| {
        state.bundles.truncate(1);
        state.strangers.clear();
    });
    let third = soon(stream.message()).await.unwrap().unwrap();
    assert!(!third.bundles.contains_key("spiffe://west.example"));
    assert!(check_jwt(&bench, AUDIENCE, &foreign).await.is_err());
}

/// A token of west, as west would make it.
fn foreign_token(key: &JwtKey, bundle: &hanse_identity::Bundle) -> String {
    let id = "spiffe://west.example/ns/shop/sa/reviews";
    let registration = registration(id, [Selector::Uid(1)]);
    let evidence = hanse_identity::Evidence { agent: agent(), selectors: [Selector::Uid(1)].into() };
    let none = hanse_identity::Revocations::default();
    let ticket = hanse_identity::grant(&west(), [&registration], &none, &evidence, &crate::fixture::id(id));
    key.issue(ticket.unwrap(), bundle, &[AUDIENCE.to_owned()], None, now()).unwrap().token.to_string()
}

#[tokio::test]
async fn w_13_a_token_comes_with_its_identitys_hint() {
    let bench = Bench::with(&[REVIEWS, RATINGS]);
    bench.change(|state| state.registrations[1].hint = "internal".to_owned());
    let svids = fetch_jwt(&bench, &[AUDIENCE], "").await.unwrap().svids;
    let hints: Vec<&str> = svids.iter().map(|s| s.hint.as_str()).collect();
    assert_eq!(hints, ["", "internal"]);
}

#[tokio::test]
async fn w_15_validation_is_to_the_letter_and_returns_the_claims() {
    let bench = Bench::with(&[REVIEWS]);
    let token = fetch_jwt(&bench, &[AUDIENCE], "").await.unwrap().svids.remove(0).svid;
    let valid = check_jwt(&bench, AUDIENCE, &token).await.unwrap();
    assert_eq!(valid.spiffe_id, REVIEWS);
    let claims = valid.claims.unwrap().fields;
    let names: BTreeSet<&str> = claims.keys().map(String::as_str).collect();
    assert_eq!(names, ["aud", "exp", "iat", "sub"].into());
    assert_eq!(claims["sub"], to_text(REVIEWS));

    let mut changed = token.clone();
    changed.replace_range(token.len() - 2.., if token.ends_with("AA") { "BB" } else { "AA" });
    for (audience, svid) in
        [("other", &token), ("", &token), (AUDIENCE, &changed), (AUDIENCE, &String::new())]
    {
        assert_eq!(code(check_jwt(&bench, audience, svid).await), Code::InvalidArgument, "{audience:?}");
    }
    bench.change(|state| {
        // Another identity keeps the caller known.
        state.registrations.push(mine(RATINGS));
        state.revocations.insert(revocation(9, RevocationTarget::Identity(id(REVIEWS))));
    });
    let revoked = check_jwt(&bench, AUDIENCE, &token).await.unwrap_err();
    assert_eq!(revoked.code(), Code::InvalidArgument);
    assert!(revoked.message().contains("r-9@east.example"), "{revoked:?}");
}

fn to_text(text: &str) -> prost_types::Value {
    prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(text.to_owned())) }
}
