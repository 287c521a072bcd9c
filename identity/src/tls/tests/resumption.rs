//! No session outlives a revocation (threat T3): nothing is resumed, from whichever side it is tried.

use rustls::client::{ClientSessionMemoryCache, Resumption};
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::ServerSessionMemoryCache;

use super::*;

/// How a handshake ended for the client, and for the server.
type Ends = (Result<(), Error>, Result<(), Error>);

/// A client that keeps every ticket it can get and would send early data: not ours, an attacker's.
fn hoarder(mesh: &Mesh) -> Arc<rustls::ClientConfig> {
    let config = client_config(believing(mesh.trust()), showing(&mesh.client), Expect::Anyone, &[]);
    let mut config = Arc::unwrap_or_clone(config);
    config.resumption = Resumption::store(Arc::new(ClientSessionMemoryCache::new(8)));
    config.enable_early_data = true;
    config.time_provider = Arc::new(StoppedClock);
    Arc::new(config)
}

/// A server that gives tickets to everyone, as ours must not. Its certificates are ours.
fn generous(mesh: &Mesh) -> Arc<rustls::ServerConfig> {
    let config = server_config(believing(mesh.trust()), showing(&mesh.server), ClientAuth::Required, &[]);
    let mut config = Arc::unwrap_or_clone(config);
    config.session_storage = ServerSessionMemoryCache::new(8);
    config.ticketer = Ticketer::new().unwrap();
    config.send_tls13_tickets = 2;
    config.max_early_data_size = 1024;
    config.time_provider = Arc::new(StoppedClock);
    Arc::new(config)
}

/// Our own server, as it is configured, believing `trust`.
fn ours(mesh: &Mesh, trust: Trust) -> Arc<rustls::ServerConfig> {
    let config = server_config(believing(trust), showing(&mesh.server), ClientAuth::Required, &[]);
    let mut config = Arc::unwrap_or_clone(config);
    config.time_provider = Arc::new(StoppedClock);
    Arc::new(config)
}

fn connect(
    client: &Arc<rustls::ClientConfig>,
    server: &Arc<rustls::ServerConfig>,
) -> (ClientConnection, Ends) {
    let name = ServerName::try_from("hanse.internal").unwrap();
    let mut client = ClientConnection::new(client.clone(), name).unwrap();
    let mut server = ServerConnection::new(server.clone()).unwrap();
    let result = shake(&mut client, &mut server);
    (client, result)
}

fn revoked(mesh: &Mesh) -> Trust {
    let mut trust = mesh.trust();
    trust.revocations.insert(Revocation::new(
        RevocationId { number: 1, origin: east() },
        RevocationTarget::Identity(id(RATINGS)),
        Reason::Hold,
        NOW,
    ));
    trust
}

/// The two that misbehave do resume with each other, early data and all: else the tests below would prove nothing.
#[test]
fn the_attack_works_where_nobody_prevents_it() {
    let mesh = mesh();
    let (client, server) = (hoarder(&mesh), generous(&mesh));
    let (first, result) = connect(&client, &server);
    assert_eq!(result, (Ok(()), Ok(())));
    assert!(first.tls13_tickets_received() > 0);
    let (second, result) = connect(&client, &server);
    assert_eq!(result, (Ok(()), Ok(())));
    assert_eq!(second.handshake_kind(), Some(HandshakeKind::Resumed));
}

#[test]
fn our_server_gives_no_tickets_and_takes_no_early_data() {
    let mesh = mesh();
    let (client, server) = (hoarder(&mesh), ours(&mesh, mesh.trust()));
    assert_eq!((server.send_tls13_tickets, server.max_early_data_size), (0, 0));
    assert!(!server.ticketer.enabled() && !server.session_storage.can_cache());
    for _ in 0..3 {
        let (mut connection, result) = connect(&client, &server);
        assert_eq!(result, (Ok(()), Ok(())));
        assert_eq!(connection.tls13_tickets_received(), 0);
        assert_ne!(connection.handshake_kind(), Some(HandshakeKind::Resumed));
        assert!(connection.early_data().is_none());
    }
}

/// A ticket from before the revocation, offered after it: the handshake is a full one, and refused.
#[test]
fn a_session_from_before_the_revocation_does_not_come_back() {
    let mesh = mesh();
    let client = hoarder(&mesh);
    let (first, result) = connect(&client, &generous(&mesh));
    assert_eq!(result, (Ok(()), Ok(())));
    assert!(first.tls13_tickets_received() > 0, "the client has a ticket");
    let (second, result) = connect(&client, &ours(&mesh, mesh.trust()));
    assert_eq!(result, (Ok(()), Ok(())), "the ticket is passed over");
    assert_ne!(second.handshake_kind(), Some(HandshakeKind::Resumed));

    let (first, result) = connect(&client, &generous(&mesh));
    assert_eq!(result, (Ok(()), Ok(())));
    assert!(first.tls13_tickets_received() > 0);
    let (_, (_, server)) = connect(&client, &ours(&mesh, revoked(&mesh)));
    assert_eq!(server, refused_with(CertificateError::Revoked));
}

#[test]
fn our_client_keeps_no_ticket_and_sends_no_early_data() {
    let mesh = mesh();
    let config = client_config(believing(mesh.trust()), showing(&mesh.client), Expect::Anyone, &[]);
    let mut config = Arc::unwrap_or_clone(config);
    assert!(!config.enable_early_data);
    config.time_provider = Arc::new(StoppedClock);
    let (client, server) = (Arc::new(config), generous(&mesh));
    for _ in 0..3 {
        let (mut connection, result) = connect(&client, &server);
        assert_eq!(result, (Ok(()), Ok(())));
        assert!(connection.tls13_tickets_received() > 0, "it was given some");
        assert_ne!(connection.handshake_kind(), Some(HandshakeKind::Resumed));
        assert!(connection.early_data().is_none());
    }
}
