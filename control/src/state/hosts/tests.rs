//! When a host's certificate makes an agent, and when it does not.

use hanse_identity::host::{HostAuthority, Naming};
use hanse_identity::{Reason, RevocationTarget};

use super::*;
use crate::command::{Command, Proposal};
use crate::state::issuance::{IssuedRecord, IssuedSvid};
use crate::state::{FOUNDING_INDEX, agents::EVICTED_REMEMBERED};

const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
const DAY: Duration = Duration::from_secs(24 * 3600);

struct Log {
    state: State,
    index: u64,
    now: Timestamp,
}

fn host() -> NodeName {
    "host-1".parse().unwrap()
}

fn join(fingerprint: &str, request: &str) -> HostJoin {
    let (fingerprint, subject) = (fingerprint.to_owned(), "CN=host-1".to_owned());
    let certificate = HostCertificate { fingerprint, subject, not_after: NOW + 365 * DAY };
    HostJoin { certificate, request_hash: request.to_owned() }
}

impl Log {
    /// A cluster in which certificates attest hosts.
    fn new() -> Self {
        let mut state = State::founded("east".parse().unwrap(), "east.example".parse().unwrap(), Vec::new());
        let authority = HostAuthority {
            der: vec![],
            key_id: hanse_identity::KeyId([1; 32]),
            subject: "CN=root".into(),
            not_after: NOW + 365 * DAY,
        };
        let trust = HostTrust { authorities: vec![authority], naming: Naming::Fingerprint };
        state.private.hosts = Some(HostSettings { trust, since: 7 });
        Self { state, index: FOUNDING_INDEX, now: NOW }
    }

    fn run(&mut self, command: Command) -> Result<Answer, Refusal> {
        self.index += 1;
        let actor = "spiffe://east.example/hanse/admin/ann".into();
        let id = self.index;
        let proposal = Proposal { id, now: self.now, actor, certificate: None, command };
        let before = self.state.private.clone();
        let (outcome, _) = self.state.apply(self.index, &proposal);
        if outcome.result.is_err() {
            assert_eq!(before.agents, self.state.private.agents, "a refusal changes nothing");
        }
        outcome.result
    }

    fn attest(&mut self, fingerprint: &str, request: &str) -> Result<Answer, Refusal> {
        let join = Box::new(join(fingerprint, request));
        self.run(Command::AgentAttest { agent: host(), join, since: 7 })
    }

    /// The agent is given a certificate for a day.
    fn given(&mut self, number: u8) {
        let svid = IssuedSvid {
            serial: hanse_identity::Serial::from_random([number; 16]),
            id: self.state.agent_id(&host()),
            key: hanse_identity::KeyId([number; 32]),
            authority: hanse_identity::KeyId([9; 32]),
            agent: host(),
            node: "east-1".parse().unwrap(),
            issued: None,
            not_after: self.now + DAY,
            downstream: false,
        };
        let record = IssuedRecord { svid: svid.into(), granted: self.index, handed_out: false };
        self.run(Command::Issued { records: vec![record] }).unwrap();
    }

    fn evict(&mut self) {
        self.run(Command::AgentEvict { agent: host(), note: String::new() }).unwrap();
    }

    fn allow(&mut self, time: Duration) -> Result<Answer, Refusal> {
        self.run(Command::AgentAllow { agent: host(), until: self.now + time })
    }

    fn standing(&self) -> Option<String> {
        self.state.agent_refused(&host())
    }
}

fn refused_with(result: Result<Answer, Refusal>, text: &str) {
    let refusal = result.unwrap_err();
    assert!(refusal.to_string().contains(text), "{refusal}");
}

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn a_certificate_makes_an_agent_once_and_the_same_request_is_answered_again() {
    let mut log = Log::new();
    assert_eq!(log.attest("aa", "one"), Ok(Answer::Done));
    assert_eq!(log.attest("aa", "one"), Ok(Answer::Already));
    assert_eq!(log.standing(), None);
    // Another host with a copy of certificate and key: before the first has its certificate, and after.
    refused_with(log.attest("aa", "two"), "has joined already");
    log.given(1);
    log.now = log.now + 12 * HOUR;
    refused_with(log.attest("aa", "two"), "hanse agent evict host-1 and hanse agent allow host-1");
    // A newer certificate of the same name is no other host.
    refused_with(log.attest("bb", "three"), "has joined already");
    refused_with(log.allow(HOUR), "hanse agent evict host-1 first");
    // A host that was off for so long that its own has ended proves itself again.
    log.now = log.now + 13 * HOUR;
    assert_eq!(log.attest("bb", "four"), Ok(Answer::Done));
    assert_eq!(log.state.private.agents[&host()].host.as_ref().unwrap().certificate.fingerprint, "bb");
}

#[test]
fn an_agent_that_was_put_out_stays_out_until_it_is_allowed_once() {
    let mut log = Log::new();
    log.attest("aa", "one").unwrap();
    log.given(1);
    log.evict();
    for request in ["one", "two"] {
        refused_with(log.attest("aa", request), "hanse agent allow host-1 lets it in once");
    }
    // However long ago it was: here it is never forgotten.
    log.now = log.now + EVICTED_REMEMBERED + DAY;
    refused_with(log.attest("aa", "two"), "was put out");
    let other =
        Command::AgentAttest { agent: "host-2".parse().unwrap(), join: Box::new(join("cc", "x")), since: 7 };
    log.run(other).unwrap();
    refused_with(log.attest("aa", "two"), "was put out");

    assert_eq!(log.allow(HOUR), Ok(Answer::Done));
    assert!(log.standing().is_some(), "allowed is not yet there");
    log.now = log.now + 2 * HOUR;
    refused_with(log.attest("aa", "two"), "was put out");
    log.allow(HOUR).unwrap();
    assert_eq!(log.attest("aa", "two"), Ok(Answer::Done));
    assert_eq!(log.standing(), None);
    log.evict();
    refused_with(log.attest("aa", "two"), "was put out");
    refused_with(log.allow(Duration::ZERO), "from now on");
    refused_with(log.allow(2 * DAY), "from now on");
}

#[test]
fn a_banned_agent_stays_banned_and_an_end_of_the_ban_lets_nobody_in() {
    let mut log = Log::new();
    log.attest("aa", "one").unwrap();
    log.given(1);
    let ban = Command::Revoke {
        target: RevocationTarget::Agent(host()),
        reason: Reason::KeyCompromise,
        note: String::new(),
        expires: None,
        reissue: false,
        closing: Default::default(),
    };
    log.run(ban).unwrap();
    log.now = log.now + 2 * DAY;
    refused_with(log.attest("aa", "one"), "is banned by");
    refused_with(log.attest("aa", "two"), "is banned by");
    refused_with(log.allow(HOUR), "hanse agent unban host-1 ends it");
    log.run(Command::AgentUnban { agent: host() }).unwrap();
    refused_with(log.attest("aa", "two"), "was put out");
    log.allow(HOUR).unwrap();
    assert_eq!(log.attest("aa", "two"), Ok(Answer::Done));
}

#[test]
fn a_certificate_does_not_take_the_place_of_an_agent_of_a_token() {
    let mut log = Log::new();
    let record =
        AgentRecord { invite: "i-1".into(), ..AgentRecord::new(host(), log.state.agent_id(&host()), NOW) };
    log.state.private.agents.insert(host(), record);
    log.given(1);
    refused_with(log.attest("aa", "one"), "has joined already");
    log.now = log.now + 2 * DAY;
    refused_with(log.attest("aa", "one"), "joined with a join token");
    log.allow(HOUR).unwrap();
    assert_eq!(log.attest("aa", "one"), Ok(Answer::Done));
    assert_eq!(log.state.private.agents[&host()].invite, "", "the token's request brings it back no more");
}

#[test]
fn what_was_verified_against_other_settings_is_not_let_in() {
    let mut log = Log::new();
    let join = || Box::new(join("aa", "one"));
    let older = Command::AgentAttest { agent: host(), join: join(), since: 6 };
    refused_with(log.run(older), "has changed meanwhile");
    assert_eq!(log.run(Command::HostTrustDelete {}), Ok(Answer::Done));
    assert_eq!(log.run(Command::HostTrustDelete {}), Ok(Answer::Already));
    refused_with(log.attest("aa", "one"), "has changed meanwhile");
    let bad = HostTrust { authorities: Vec::new(), naming: Naming::Fingerprint };
    assert!(matches!(log.run(Command::HostTrustPut { trust: Box::new(bad) }), Err(Refusal::Invalid(_))));
}
