//! Tests of the SDS client, against an agent that hands out what a test has it hand out.

use std::pin::Pin;

use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::spiffe_cert_validator_config;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_server::{
    SecretDiscoveryService, SecretDiscoveryServiceServer,
};
use envoy_types::pb::google::protobuf::Any;
use hanse_federation::Locality;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, Streaming};

use super::*;
use crate::runtime::drain::drain;
use crate::runtime::now;
use crate::sidecar::tests::world::Domain;

/// One stream, as the agent has it.
struct Asked {
    requests: Streaming<DiscoveryRequest>,
    responses: mpsc::Sender<Result<DiscoveryResponse, Status>>,
}

struct Agent(mpsc::Sender<Asked>);

type Responses<T> = Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl SecretDiscoveryService for Agent {
    type StreamSecretsStream = Responses<DiscoveryResponse>;
    type DeltaSecretsStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let (responses, outgoing) = mpsc::channel(4);
        let asked = Asked { requests: request.into_inner(), responses };
        self.0.send(asked).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    async fn delta_secrets(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn fetch_secrets(
        &self,
        _: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }
}

fn inline(text: String) -> Option<DataSource> {
    Some(DataSource {
        specifier: Some(data_source::Specifier::InlineBytes(text.into_bytes())),
        ..Default::default()
    })
}

fn response(version: &str, secrets: Vec<Secret>) -> Result<DiscoveryResponse, Status> {
    let resources = secrets
        .iter()
        .map(|secret| Any { type_url: Secret::type_url(), value: secret.encode_to_vec() })
        .collect();
    Ok(DiscoveryResponse {
        version_info: version.to_owned(),
        nonce: format!("nonce-{version}"),
        type_url: Secret::type_url(),
        resources,
        ..Default::default()
    })
}

fn svid_secret(svid: &Svid) -> Secret {
    let certificate = TlsCertificate {
        certificate_chain: inline(svid.chain_pem()),
        private_key: inline(svid.key_pem().to_string()),
        ..Default::default()
    };
    Secret { name: SDS_IDENTITY.to_owned(), r#type: Some(secret::Type::TlsCertificate(certificate)) }
}

fn bundles_secret(domains: &[&Domain]) -> Secret {
    let trust_domains = domains
        .iter()
        .map(|domain| spiffe_cert_validator_config::TrustDomain {
            name: domain.trust_domain.to_string(),
            trust_bundle: inline(domain.bundle().to_pem()),
            ..Default::default()
        })
        .collect();
    let config = SpiffeCertValidatorConfig { trust_domains, ..Default::default() };
    let typed = Any { type_url: SpiffeCertValidatorConfig::type_url(), value: config.encode_to_vec() };
    let context = CertificateValidationContext {
        custom_validator_config: Some(TypedExtensionConfig {
            name: "envoy.tls.cert_validator.spiffe".to_owned(),
            typed_config: Some(typed),
        }),
        ..Default::default()
    };
    Secret { name: SDS_BUNDLES.to_owned(), r#type: Some(secret::Type::ValidationContext(context)) }
}

async fn next(asked: &mut Asked) -> DiscoveryRequest {
    let next = tokio::time::timeout(Duration::from_secs(5), asked.requests.next()).await;
    next.expect("a request in time").unwrap().unwrap()
}

#[tokio::test]
async fn the_agent_gives_renews_and_may_go_away() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("agent.sock");
    let serve = |socket: &Path| {
        let (streams, asked) = mpsc::channel(4);
        let listener = tokio::net::UnixListener::bind(socket).unwrap();
        let server = tonic::transport::Server::builder()
            .add_service(SecretDiscoveryServiceServer::new(Agent(streams)))
            .serve_with_incoming(UnixListenerStream::new(listener));
        (tokio::spawn(server), asked)
    };
    let plane = Arc::new(Plane::new("p".parse().unwrap(), Locality::default()));
    let (_drain, stop) = drain();
    // The agent may start later than the proxy.
    tokio::spawn(follow(socket.clone(), Arc::clone(&plane), stop));
    let (server, mut streams) = serve(&socket);
    let mut asked = streams.recv().await.unwrap();
    let first = next(&mut asked).await;
    assert_eq!(first.resource_names, [SDS_IDENTITY, SDS_BUNDLES]);
    assert_eq!(first.type_url, Secret::type_url());

    let (east, west) = (Domain::new("east.example"), Domain::new("west.example"));
    let svid = east.workload("reviews");
    let mut changes = plane.credentials.changes();
    asked
        .responses
        .send(response("1", vec![svid_secret(&svid), bundles_secret(&[&east, &west])]))
        .await
        .unwrap();
    let ack = next(&mut asked).await;
    assert_eq!((ack.version_info.as_str(), ack.response_nonce.as_str()), ("1", "nonce-1"));
    assert!(ack.error_detail.is_none());
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    assert!(plane.credentials.is_valid(now()));
    let trust = plane.knowledge.trust();
    assert!(trust.knows(&east.trust_domain) && trust.knows(&west.trust_domain));

    // A key that is not the certificate's is refused, and what we had stays.
    let mut broken = svid_secret(&svid);
    if let Some(secret::Type::TlsCertificate(certificate)) = &mut broken.r#type {
        certificate.private_key = inline(east.workload("reviews").key_pem().to_string());
    }
    asked.responses.send(response("2", vec![broken])).await.unwrap();
    let nack = next(&mut asked).await;
    assert_eq!(nack.response_nonce, "nonce-2");
    assert!(nack.error_detail.is_some_and(|status| status.message.contains("private key")));
    let serial = || plane.credentials.current().unwrap().identity.facts.serial.clone();
    assert_eq!(serial(), svid.facts.serial);

    // A renewal alone.
    let renewed = east.workload("reviews");
    asked.responses.send(response("3", vec![svid_secret(&renewed)])).await.unwrap();
    assert_eq!(next(&mut asked).await.version_info, "3");
    assert_eq!(serial(), renewed.facts.serial);

    // The agent goes, and comes back; meanwhile we have what we have.
    server.abort();
    let _ = server.await;
    drop(asked);
    std::fs::remove_file(&socket).unwrap();
    assert_eq!(serial(), renewed.facts.serial);
    let (_server, mut streams) = serve(&socket);
    let mut asked = tokio::time::timeout(Duration::from_secs(10), streams.recv()).await.unwrap().unwrap();
    next(&mut asked).await;
    let again = east.workload("reviews");
    asked.responses.send(response("1", vec![svid_secret(&again)])).await.unwrap();
    next(&mut asked).await;
    assert_eq!(serial(), again.facts.serial);
}
