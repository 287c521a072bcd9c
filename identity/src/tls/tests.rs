//! Tests of TLS: handshakes in memory, without sockets and with a clock that stands still.

use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{ServerName, UnixTime};
use rustls::{AlertDescription, CertificateError, ClientConnection, Error, HandshakeKind, ServerConnection};

use super::*;
use crate::authority::Authority;
use crate::fixture::{
    HOUR, NOW, REVIEWS, authority, bundle, east, id, key, serial, spoiled, svid, trust, west,
};
use crate::name::NodeName;
use crate::revocation::{Reason, Revocation, RevocationId, RevocationTarget, Revocations};
use crate::token::{Admits, JoinToken, TokenError};

const RATINGS: &str = "spiffe://east.example/ns/shop/sa/ratings";
const NODE: &str = "spiffe://east.example/hanse/node/east-1";

struct Fixed<T>(T);

impl TrustSource for Fixed<Arc<Trust>> {
    fn trust(&self) -> Arc<Trust> {
        self.0.clone()
    }
}

impl IdentitySource for Fixed<Option<Arc<TlsIdentity>>> {
    fn identity(&self) -> Option<Arc<TlsIdentity>> {
        self.0.clone()
    }
}

#[derive(Debug)]
struct StoppedClock;

impl rustls::time_provider::TimeProvider for StoppedClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_secs(NOW.seconds())))
    }
}

fn believing(trust: Trust) -> Arc<dyn TrustSource> {
    Arc::new(Fixed(Arc::new(trust)))
}

fn showing(svid: &Svid) -> Arc<dyn IdentitySource> {
    Arc::new(Fixed(Some(Arc::new(TlsIdentity::new(svid).unwrap()))))
}

fn nobody() -> Arc<dyn IdentitySource> {
    Arc::new(Fixed(None::<Arc<TlsIdentity>>))
}

fn client_of(config: Arc<rustls::ClientConfig>) -> ClientConnection {
    let mut config = Arc::unwrap_or_clone(config);
    config.time_provider = Arc::new(StoppedClock);
    ClientConnection::new(Arc::new(config), ServerName::try_from("hanse.internal").unwrap()).unwrap()
}

fn server_of(config: Arc<rustls::ServerConfig>) -> ServerConnection {
    let mut config = Arc::unwrap_or_clone(config);
    config.time_provider = Arc::new(StoppedClock);
    ServerConnection::new(Arc::new(config)).unwrap()
}

/// Carries bytes to and fro until neither side has any; the first error of each side.
fn shake(
    client: &mut ClientConnection,
    server: &mut ServerConnection,
) -> (Result<(), Error>, Result<(), Error>) {
    let (mut client_result, mut server_result) = (Ok(()), Ok(()));
    loop {
        let (mut up, mut down) = (Vec::new(), Vec::new());
        while client.wants_write() {
            client.write_tls(&mut up).unwrap();
        }
        while server.wants_write() {
            server.write_tls(&mut down).unwrap();
        }
        if up.is_empty() && down.is_empty() {
            return (client_result, server_result);
        }
        let mut bytes = up.as_slice();
        while !bytes.is_empty() && server_result.is_ok() {
            server.read_tls(&mut bytes).unwrap();
            server_result = server.process_new_packets().map(drop);
        }
        let mut bytes = down.as_slice();
        while !bytes.is_empty() && client_result.is_ok() {
            client.read_tls(&mut bytes).unwrap();
            client_result = client.process_new_packets().map(drop);
        }
    }
}

/// One mesh: the authority of east, a client `ratings`, a server `reviews`.
struct Mesh {
    authority: Authority,
    client: Svid,
    server: Svid,
}

fn mesh() -> Mesh {
    let authority = authority(&east());
    let (client, server) = (svid(&authority, RATINGS, 2), svid(&authority, REVIEWS, 3));
    Mesh { authority, client, server }
}

impl Mesh {
    fn trust(&self) -> Trust {
        trust(&[&self.authority])
    }

    fn client(&self) -> ClientConnection {
        client_of(client_config(believing(self.trust()), showing(&self.client), Expect::Anyone, &[b"h2"]))
    }

    fn server(&self) -> ServerConnection {
        let auth = ClientAuth::Required;
        server_of(server_config(believing(self.trust()), showing(&self.server), auth, &[b"h2"]))
    }
}

fn refused_with(error: CertificateError) -> Result<(), Error> {
    Err(Error::InvalidCertificate(error))
}

fn told(alert: AlertDescription) -> Result<(), Error> {
    Err(Error::AlertReceived(alert))
}

#[test]
fn both_ends_know_each_other() {
    let mesh = mesh();
    let (mut client, mut server) = (mesh.client(), mesh.server());
    let early = verified_peer(&client, &mesh.trust(), NOW, Usage::Server);
    assert_eq!(early, Err(VerifyError::NoCertificate), "nothing is proved before the handshake is finished");
    assert_eq!(shake(&mut client, &mut server), (Ok(()), Ok(())));
    assert_eq!(client.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    assert_eq!(client.alpn_protocol(), Some(b"h2".as_slice()));
    let seen = verified_peer(&server, &mesh.trust(), NOW, Usage::Client).unwrap().unwrap();
    assert_eq!(seen.id(), &id(RATINGS));
    let seen = verified_peer(&client, &mesh.trust(), NOW, Usage::Server).unwrap().unwrap();
    assert_eq!(seen.facts(), &mesh.server.facts);
    let late = verified_peer(&client, &Trust::default(), NOW, Usage::Server);
    assert_eq!(late, Err(VerifyError::UnknownTrustDomain(east())));
}

#[test]
fn sessions_are_never_resumed() {
    let mesh = mesh();
    let client = client_config(believing(mesh.trust()), showing(&mesh.client), Expect::Anyone, &[]);
    let server = server_config(believing(mesh.trust()), showing(&mesh.server), ClientAuth::Required, &[]);
    let (mut client, mut server) = (Arc::unwrap_or_clone(client), Arc::unwrap_or_clone(server));
    client.time_provider = Arc::new(StoppedClock);
    server.time_provider = Arc::new(StoppedClock);
    let (client, server) = (Arc::new(client), Arc::new(server));
    for _ in 0..2 {
        let name = ServerName::try_from("hanse.internal").unwrap();
        let mut client = ClientConnection::new(client.clone(), name).unwrap();
        let mut server = ServerConnection::new(server.clone()).unwrap();
        assert_eq!(shake(&mut client, &mut server), (Ok(()), Ok(())));
        assert_ne!(client.handshake_kind(), Some(HandshakeKind::Resumed));
        assert_eq!(client.tls13_tickets_received(), 0);
    }
}

#[test]
fn a_client_without_certificate_is_refused_where_one_is_required() {
    let mesh = mesh();
    let mut client = client_of(client_config(believing(mesh.trust()), nobody(), Expect::Anyone, &[]));
    let (_, server) = shake(&mut client, &mut mesh.server());
    assert_eq!(server, Err(Error::NoCertificatesPresented));
}

#[test]
fn a_client_without_certificate_is_let_in_where_it_is_optional() {
    let mesh = mesh();
    let optional = || {
        let auth = ClientAuth::Optional;
        server_of(server_config(believing(mesh.trust()), showing(&mesh.server), auth, &[]))
    };
    let mut client = client_of(client_config(believing(mesh.trust()), nobody(), Expect::Anyone, &[]));
    let mut server = optional();
    assert_eq!(shake(&mut client, &mut server), (Ok(()), Ok(())));
    assert_eq!(verified_peer(&server, &mesh.trust(), NOW, Usage::Client), Ok(None));
    // Optional is not "anything": a certificate that is shown is checked.
    let stranger = svid(&authority(&east()), RATINGS, 2);
    let mut client =
        client_of(client_config(believing(mesh.trust()), showing(&stranger), Expect::Anyone, &[]));
    let (_, server) = shake(&mut client, &mut optional());
    assert_eq!(server, refused_with(CertificateError::UnknownIssuer));
}

#[test]
fn a_server_without_identity_answers_nobody() {
    let mesh = mesh();
    let mut server = server_of(server_config(believing(mesh.trust()), nobody(), ClientAuth::Required, &[]));
    let (client, server) = shake(&mut mesh.client(), &mut server);
    assert!(client.is_err() && server.is_err(), "{client:?} {server:?}");
}

#[test]
fn strangers_are_refused_on_either_side() {
    let mesh = mesh();
    let stranger = authority(&east());
    let own_trust = || believing(trust(&[&stranger]));
    let stranger_svid = svid(&stranger, RATINGS, 2);

    let trusting = believing(mesh.trust());
    let mut client = client_of(client_config(trusting, showing(&stranger_svid), Expect::Anyone, &[b"h2"]));
    let (client, server) = shake(&mut client, &mut mesh.server());
    assert_eq!(server, refused_with(CertificateError::UnknownIssuer));
    assert_eq!(client, told(AlertDescription::UnknownCA));

    let auth = ClientAuth::Required;
    let mut server = server_of(server_config(own_trust(), showing(&stranger_svid), auth, &[b"h2"]));
    let (client, server) = shake(&mut mesh.client(), &mut server);
    assert_eq!(client, refused_with(CertificateError::UnknownIssuer));
    assert_eq!(server, told(AlertDescription::UnknownCA));

    let foreign = svid(&authority(&west()), "spiffe://west.example/a", 2);
    let mut client =
        client_of(client_config(believing(mesh.trust()), showing(&foreign), Expect::Anyone, &[b"h2"]));
    let (_, server) = shake(&mut client, &mut mesh.server());
    assert_eq!(server, refused_with(CertificateError::UnknownIssuer));
}

#[test]
fn the_revoked_are_refused_on_either_side() {
    let mesh = mesh();
    let revoked = |target| {
        let mut trust = mesh.trust();
        trust.revocations.insert(Revocation::new(
            RevocationId { number: 1, origin: east() },
            target,
            Reason::KeyCompromise,
            NOW,
        ));
        believing(trust)
    };
    let trust = revoked(RevocationTarget::Identity(id(RATINGS)));
    let mut server = server_of(server_config(trust, showing(&mesh.server), ClientAuth::Required, &[b"h2"]));
    let (client, server) = shake(&mut mesh.client(), &mut server);
    assert_eq!(server, refused_with(CertificateError::Revoked));
    assert_eq!(client, told(AlertDescription::CertificateRevoked));

    let trust = revoked(RevocationTarget::Serial(serial(3)));
    let mut client = client_of(client_config(trust, showing(&mesh.client), Expect::Anyone, &[b"h2"]));
    let (client, _) = shake(&mut client, &mut mesh.server());
    assert_eq!(client, refused_with(CertificateError::Revoked));
}

#[test]
fn the_clock_is_the_one_that_rustls_was_given() {
    let mesh = mesh();
    let verifier = SvidVerifier::for_server(believing(mesh.trust()), Expect::Anyone, provider().clone());
    let leaf = CertificateDer::from(mesh.server.chain[0].as_slice());
    let name = ServerName::try_from("hanse.internal").unwrap();
    let at = |now: Timestamp| {
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now.seconds()));
        verifier.verify_server_cert(&leaf, &[], &name, &[], now).map(drop)
    };
    assert_eq!(at(NOW), Ok(()));
    assert_eq!(at(NOW + 2 * HOUR), refused_with(CertificateError::Expired));
    assert_eq!(at(NOW - 2 * HOUR), refused_with(CertificateError::Expired));
}

#[test]
fn only_who_is_expected_is_believed() {
    let mesh = mesh();
    let shaken = |expect| {
        let mut client =
            client_of(client_config(believing(mesh.trust()), showing(&mesh.client), expect, &[b"h2"]));
        shake(&mut client, &mut mesh.server()).0
    };
    let one_of = |names: &[&str]| Expect::Identities(Arc::new(names.iter().map(|name| id(name)).collect()));
    assert_eq!(shaken(Expect::Anyone), Ok(()));
    assert_eq!(shaken(Expect::TrustDomain(east())), Ok(()));
    assert_eq!(shaken(one_of(&[RATINGS, REVIEWS])), Ok(()));
    let refused = refused_with(CertificateError::ApplicationVerificationFailure);
    assert_eq!(shaken(one_of(&[RATINGS])), refused);
    assert_eq!(shaken(one_of(&[])), refused);
    assert_eq!(shaken(Expect::TrustDomain(west())), refused);
    assert_eq!(shaken(Expect::Member(east(), MemberRole::Gateway)), refused);
}

#[test]
fn a_leaf_outside_the_profile_is_refused_in_the_handshake() {
    let mesh = mesh();
    let key = key();
    let mut params = crate::fixture::leaf_params(&[RATINGS, REVIEWS]);
    params.serial_number = Some(vec![5u8].into());
    let der = params.signed_by(&key, &mesh.authority.issuer).unwrap();
    let pkcs8 = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let two_names = CertifiedKey::from_der(vec![der.der().clone()], pkcs8, provider()).unwrap();
    let identity = TlsIdentity { facts: mesh.client.facts.clone(), key: Arc::new(two_names) };
    let identity = Arc::new(Fixed(Some(Arc::new(identity))));
    let mut client = client_of(client_config(believing(mesh.trust()), identity, Expect::Anyone, &[b"h2"]));
    let (_, server) = shake(&mut client, &mut mesh.server());
    assert_eq!(server, refused_with(CertificateError::ApplicationVerificationFailure));
}

#[test]
fn an_identity_needs_its_own_key() {
    let mesh = mesh();
    let mut mixed = mesh.client.clone();
    mixed.key = mesh.server.key.clone();
    assert_eq!(TlsIdentity::new(&mixed).unwrap_err(), SvidError::KeyMismatch.into());
    mixed.key = zeroize::Zeroizing::new(b"garbage".to_vec());
    assert_eq!(TlsIdentity::new(&mixed).unwrap_err(), SvidError::Key.into());
    let shown = format!("{:?}", TlsIdentity::new(&mesh.client).unwrap());
    assert!(!shown.contains(&format!("{:?}", &mesh.client.key[40..48]).replace(['[', ']'], "")));
}

/// A control node's server: its chain ends in its own root.
fn joinable(authority: &Authority, name: &str) -> ServerConnection {
    let mut svid = svid(authority, name, 4);
    svid.chain.push(authority.certificate().der.clone());
    server_of(server_config(believing(trust(&[authority])), showing(&svid), ClientAuth::Optional, &[b"h2"]))
}

fn pinned(authority: &Authority) -> ClientConnection {
    client_of(pinned_client_config(&east(), &[authority.certificate().key_id], &[b"h2"]))
}

#[test]
fn a_pinned_root_is_believed() {
    let authority = authority(&east());
    let (mut client, mut server) = (pinned(&authority), joinable(&authority, NODE));
    assert_eq!(shake(&mut client, &mut server), (Ok(()), Ok(())));
    // With a bundle, the same chain is believed as well.
    let mut client = client_of(client_config(
        believing(trust(&[&authority])),
        nobody(),
        Expect::Member(east(), MemberRole::Node),
        &[b"h2"],
    ));
    assert_eq!(shake(&mut client, &mut joinable(&authority, NODE)), (Ok(()), Ok(())));
}

#[test]
fn another_root_than_the_pinned_is_refused() {
    let (pin, other) = (authority(&east()), authority(&east()));
    let (client, _) = shake(&mut pinned(&pin), &mut joinable(&other, NODE));
    assert_eq!(client, refused_with(CertificateError::UnknownIssuer));
    let mut no_pins = client_of(pinned_client_config(&east(), &[], &[b"h2"]));
    let (client, _) = shake(&mut no_pins, &mut joinable(&pin, NODE));
    assert_eq!(client, refused_with(CertificateError::UnknownIssuer));
}

#[test]
fn a_pinned_root_vouches_for_control_nodes_of_its_trust_domain_only() {
    let authority = authority(&east());
    let (client, _) = shake(&mut pinned(&authority), &mut joinable(&authority, REVIEWS));
    assert_eq!(client, refused_with(CertificateError::ApplicationVerificationFailure));
    let agent = "spiffe://east.example/hanse/agent/host-1";
    let (client, _) = shake(&mut pinned(&authority), &mut joinable(&authority, agent));
    assert_eq!(client, refused_with(CertificateError::ApplicationVerificationFailure));
    let foreign = crate::fixture::authority(&west());
    let mut server = joinable(&foreign, "spiffe://west.example/hanse/node/west-1");
    let (client, _) = shake(&mut pinned(&foreign), &mut server);
    assert_eq!(client, refused_with(CertificateError::UnknownIssuer), "the pin is of another trust domain");
}

#[test]
fn the_pinned_root_must_be_sent_and_must_have_signed() {
    let (pin, other) = (authority(&east()), authority(&east()));
    let mut bare = svid(&pin, NODE, 4);
    let refuse = |svid: &Svid| {
        let server = server_config(believing(trust(&[&pin])), showing(svid), ClientAuth::Optional, &[b"h2"]);
        shake(&mut pinned(&pin), &mut server_of(server)).0
    };
    assert_eq!(refuse(&bare), refused_with(CertificateError::UnknownIssuer), "no root sent");
    bare = svid(&other, NODE, 4);
    bare.chain.push(pin.certificate().der.clone());
    assert_eq!(
        refuse(&bare),
        refused_with(CertificateError::UnknownIssuer),
        "another's leaf under the pinned root"
    );
}

#[test]
fn an_expired_root_is_not_believed_for_its_pin() {
    let node: NodeName = "n".parse().unwrap();
    let old = Authority::create(&east(), &node, key(), serial(1), NOW - 4 * HOUR, HOUR).unwrap();
    let leaf = CertificateDer::from(spoiled(&old, |p| p.subject_alt_names = vec![crate::fixture::uri(NODE)]));
    let root = CertificateDer::from(old.certificate().der.clone());
    let verifier = PinnedVerifier::new(&east(), &[old.certificate().key_id], provider().clone());
    let name = ServerName::try_from("hanse.internal").unwrap();
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(NOW.seconds()));
    let refused = verifier.verify_server_cert(&leaf, &[root], &name, &[], now).map(drop);
    assert_eq!(refused, refused_with(CertificateError::Expired));
}

#[test]
fn a_join_proof_belongs_to_one_session() {
    let authority = authority(&east());
    let admits = Admits::Agent("host-1".parse().unwrap());
    let pins = bundle(&[&authority]).pins();
    let endpoints = vec!["127.0.0.1:7001".to_owned()];
    let cluster = "east".parse().unwrap();
    let (token, invite) = JoinToken::create(
        "i-1".to_owned(),
        admits,
        cluster,
        east(),
        endpoints,
        pins,
        &key(),
        NOW,
        NOW + HOUR,
    );
    let join = || {
        let (mut client, mut server) = (pinned(&authority), joinable(&authority, NODE));
        assert_eq!(session_binding(&client), None, "no binding before the handshake is finished");
        assert_eq!(shake(&mut client, &mut server), (Ok(()), Ok(())));
        (session_binding(&client).unwrap(), session_binding(&server).unwrap())
    };
    let (client, server) = join();
    assert_eq!(client, server);
    let proof = token.prove(&client, b"request").unwrap();
    assert_eq!(invite.check(&server, b"request", &proof, NOW), Ok(()));
    let (_, another) = join();
    assert_ne!(another, server);
    assert_eq!(invite.check(&another, b"request", &proof, NOW), Err(TokenError::Proof));
}

#[test]
fn trust_is_asked_for_at_every_handshake() {
    struct Changing(std::sync::Mutex<Arc<Trust>>);
    impl TrustSource for Changing {
        fn trust(&self) -> Arc<Trust> {
            self.0.lock().unwrap().clone()
        }
    }
    let mesh = mesh();
    let source = Arc::new(Changing(std::sync::Mutex::new(Arc::new(mesh.trust()))));
    let config = server_config(source.clone(), showing(&mesh.server), ClientAuth::Required, &[b"h2"]);
    assert_eq!(shake(&mut mesh.client(), &mut server_of(config.clone())).1, Ok(()));
    *source.0.lock().unwrap() = Arc::new(Trust::new([], Revocations::default()));
    let (_, server) = shake(&mut mesh.client(), &mut server_of(config));
    assert_eq!(server, refused_with(CertificateError::UnknownIssuer));
}

mod resumption;
