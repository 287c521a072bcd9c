//! Tests of join tokens: the proof belongs to one token, one request and one TLS session.

use super::*;
use crate::fixture::{HOUR, NOW, authority, east, key};

const BINDING: [u8; 32] = [7; 32];

fn token(admits: Admits) -> (JoinToken, Invite) {
    let pins = vec![authority(&east()).certificate().key_id];
    let endpoints = vec!["127.0.0.1:7001".to_owned()];
    let cluster = "east".parse().unwrap();
    let invite = "i-1".to_owned();
    JoinToken::create(invite, admits, cluster, east(), endpoints, pins, &key(), NOW, NOW + HOUR)
}

fn agent() -> Admits {
    Admits::Agent("host-1".parse().unwrap())
}

fn cluster() -> Admits {
    Admits::Cluster("west".parse().unwrap())
}

#[test]
fn a_proof_is_believed_for_its_request_and_session() {
    let (token, invite) = token(agent());
    let proof = token.prove(&BINDING, b"request").unwrap();
    assert_eq!(invite.check(&BINDING, b"request", &proof, NOW), Ok(()));
}

#[test]
fn a_proof_is_worth_nothing_elsewhere() {
    let (one, invite) = token(agent());
    let proof = one.prove(&BINDING, b"request").unwrap();
    let refused = Err(TokenError::Proof);
    assert_eq!(invite.check(&[8; 32], b"request", &proof, NOW), refused, "another session");
    assert_eq!(invite.check(&BINDING, b"another", &proof, NOW), refused, "another request");
    assert_eq!(invite.check(&BINDING, b"", &proof, NOW), refused, "no request");
    let renamed = Invite { id: "i-2".to_owned(), ..invite.clone() };
    assert_eq!(renamed.check(&BINDING, b"request", &proof, NOW), refused, "another invite");
    let (_, other) = token(agent());
    assert_eq!(other.check(&BINDING, b"request", &proof, NOW), refused, "another key");
    let mut bent = proof;
    bent[20] ^= 1;
    assert_eq!(invite.check(&BINDING, b"request", &bent, NOW), refused);
    assert_eq!(invite.check(&BINDING, b"request", b"", NOW), refused);
}

#[test]
fn expiry_is_asked_first() {
    let (token, invite) = token(agent());
    let proof = token.prove(&BINDING, b"request").unwrap();
    let end = NOW + HOUR;
    assert_eq!(invite.check(&BINDING, b"request", &proof, end), Err(TokenError::Expired(end)));
    assert_eq!(invite.check(&BINDING, b"request", b"garbage", end), Err(TokenError::Expired(end)));
    let just_before = Timestamp(end.0 - 1);
    assert_eq!(invite.check(&BINDING, b"request", &proof, just_before), Ok(()));
}

#[test]
fn an_invite_with_an_unreadable_key_believes_nothing() {
    let (token, invite) = token(agent());
    let proof = token.prove(&BINDING, b"request").unwrap();
    for public_key in ["", "%", "AAAA"] {
        let broken = Invite { public_key: public_key.to_owned(), ..invite.clone() };
        assert_eq!(broken.check(&BINDING, b"request", &proof, NOW), Err(TokenError::Proof));
    }
}

#[test]
fn the_parts_of_a_proof_cannot_flow_into_each_other() {
    let one = proof_message("i-1", &BINDING, b"request");
    assert_ne!(one, proof_message("i-", &BINDING, b"request"));
    assert_ne!(proof_message("a", &[b'b'; 32], b""), proof_message("ab", &[b'b'; 32], b"b"));
}

#[test]
fn the_text_of_a_token_is_read_as_it_was_written() {
    for (admits, prefix) in [(agent(), "hanse-agent-v1."), (cluster(), "hanse-cluster-v1.")] {
        let (token, invite) = token(admits.clone());
        let text = token.to_string();
        assert!(text.starts_with(prefix));
        assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')));
        let again: JoinToken = format!(" {text}\n").parse().unwrap();
        assert_eq!((&again.invite, &again.admits, &again.pins), (&token.invite, &admits, &token.pins));
        assert_eq!((&again.endpoints, again.expires), (&token.endpoints, token.expires));
        let proof = again.prove(&BINDING, b"request").unwrap();
        assert_eq!(invite.check(&BINDING, b"request", &proof, NOW), Ok(()));
    }
}

#[test]
fn texts_that_are_no_tokens_are_refused() {
    let (token, _) = token(agent());
    let text = token.to_string();
    let body = text.split_once('.').unwrap().1;
    let without = |field: &str, value: serde_json::Value| {
        let mut json: serde_json::Value =
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(body).unwrap()).unwrap();
        json[field] = value;
        format!("hanse-agent-v1.{}", URL_SAFE_NO_PAD.encode(json.to_string()))
    };
    assert!(without("invite", "i-9".into()).parse::<JoinToken>().is_ok());
    let hostile = [
        String::new(),
        "hanse-agent-v1".to_owned(),
        "hanse-agent-v1.".to_owned(),
        format!("hanse-agent-v2.{body}"),
        format!("hanse-cluster-v1.{body}"),
        format!("hanse-agent-v1.%{body}"),
        format!("hanse-agent-v1.{}", "A".repeat(MAX_TOKEN_BYTES)),
        without("pins", serde_json::json!([])),
        without("endpoints", serde_json::json!([])),
        without("secret", "AAAA".into()),
        without("trustDomain", "EAST".into()),
    ];
    for text in hostile {
        let refused = text.parse::<JoinToken>();
        assert!(matches!(refused, Err(TokenError::Malformed(_))), "{refused:?}");
    }
}

#[test]
fn the_kind_of_a_token_is_asked_for() {
    let (agent_token, _) = token(agent());
    assert_eq!(agent_token.admitted_agent().unwrap().as_str(), "host-1");
    assert_eq!(agent_token.admitted_cluster(), Err(TokenError::WrongKind(agent())));
    let (cluster_token, _) = token(cluster());
    assert_eq!(cluster_token.admitted_cluster().unwrap().as_str(), "west");
    assert_eq!(cluster_token.admitted_agent(), Err(TokenError::WrongKind(cluster())));
}

#[test]
fn no_secret_in_invites_errors_and_debug() {
    let (token, invite) = token(agent());
    let secret = STANDARD.encode(&*token.secret.0);
    assert!(!format!("{token:?}").contains(&secret[..16]));
    assert!(!serde_json::to_string(&invite).unwrap().contains(&secret[..16]));
    // serde would quote a string where it wants a number.
    let json = serde_json::json!({ "expires": secret.clone() }).to_string();
    let error = format!("hanse-agent-v1.{}", URL_SAFE_NO_PAD.encode(json)).parse::<JoinToken>().unwrap_err();
    assert!(!error.to_string().contains(&secret[..16]));
}
