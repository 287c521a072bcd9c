//! The joiner's shell: performs what `federation::join::Joiner` decides, on the node that took the call.
//!
//! Dials the inviter with the token's pins, proves the token bound to that one TLS session, and commits only when
//! both sides have agreed. Lines go to the administrator as they come.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hanse_federation::join::{
    Check, JoinReply, JoinRequest, Joiner, JoinerInput, JoinerOutput, Offer, Phase, signed_bytes,
};
use hanse_federation::view::PeerState;
use hanse_federation::wire::{decode, encode};
use hanse_identity::ClusterName;
use hanse_identity::tls::pinned_client_config;
use hanse_identity::token::{Admits, JoinToken};
use tokio::sync::mpsc;
use tonic::Status;

use super::census::{self, Part, Query};
use super::context::{Context, VERSION, now};
use super::dial::{self, ALPN_H2, Link};
use super::driver::ProposeError;
use super::peer_link::freshest;
use super::peer_serve::offer;
use super::reach;
use super::status::{document, no_outcome};
use crate::admin::{ClusterJoinRequest, JoinEvent};
use crate::command::{Actor, Command};
use crate::state::State;
use crate::wire::control::Document;
use crate::wire::control::peer_client::PeerClient;

/// How long the other side may take over one phase; preflight dials back.
const PHASE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause before a commit without an outcome is proposed again.
const COMMIT_RETRY: Duration = Duration::from_millis(200);
/// How long both sides may take to hear each other's first complete telling.
const SYNC_TIMEOUT: Duration = Duration::from_secs(10);
/// How often that is looked at.
const SYNC_POLL: Duration = Duration::from_millis(100);

/// Where the lines go.
pub type Lines = mpsc::Sender<Result<Document, Status>>;

/// One join, as this node drives it.
struct Join<'j> {
    context: &'j Context,
    token: &'j JoinToken,
    /// One connection; a phase that broke off is sent again over a new one, proved anew.
    link: Option<Link>,
    offer: Offer,
    /// The inviter's offer, once it has made one.
    theirs: Option<Offer>,
    lines: &'j Lines,
}

/// Joins, and reports how it ended as the last document.
pub async fn run(context: Arc<Context>, actor: Actor, request: ClusterJoinRequest, lines: Lines) {
    let began = Instant::now();
    let token = match request.token.trim().parse::<JoinToken>() {
        Ok(token) => token,
        Err(error) => {
            line(&lines, failed("token", error.to_string())).await;
            return done(&lines, None, false, false, began).await;
        }
    };
    let joined = match join(&context, &actor, &token, request.dry_run, &lines).await {
        Ok(joined) => joined,
        Err(check) => {
            line(&lines, check).await;
            false
        }
    };
    let synced = joined && sync(&context, &token.cluster, &lines).await;
    done(&lines, Some(&token), joined, synced, began).await;
}

async fn join(
    context: &Context,
    actor: &Actor,
    token: &JoinToken,
    dry_run: bool,
    lines: &Lines,
) -> Result<bool, Check> {
    line(lines, token_check(context, token)?).await;
    let link = reach_inviter(token, lines).await?;
    let state =
        context.handle.read().await.map_err(|e| failed("agree", no_outcome(&e).message().to_owned()))?;
    let mut join = Join { context, token, link: Some(link), offer: offer(&state), theirs: None, lines };
    let mut joiner = Joiner::new(&state.view, &token.invite, now(), VERSION);
    let mut inputs = std::collections::VecDeque::from([JoinerInput::Start]);
    while let Some(input) = inputs.pop_front() {
        for output in joiner.handle(now(), input) {
            if dry_run && matches!(output, JoinerOutput::Send(Phase::Commit) | JoinerOutput::Commit(_)) {
                line(
                    lines,
                    Check {
                        name: "agree".to_owned(),
                        ok: true,
                        detail: "dry run: nothing committed".to_owned(),
                    },
                )
                .await;
                return Ok(false);
            }
            match join.perform(actor, output).await {
                Performed::Nothing => {}
                Performed::Input(input) => inputs.push_back(*input),
                Performed::Done(joined) => return Ok(joined),
            }
        }
    }
    // The machine ends with `Done`; one that stops asking has not joined.
    Ok(false)
}

enum Performed {
    Nothing,
    Input(Box<JoinerInput>),
    Done(bool),
}

impl Join<'_> {
    async fn perform(&mut self, actor: &Actor, output: JoinerOutput) -> Performed {
        match output {
            JoinerOutput::Line(check) => {
                line(self.lines, check).await;
                Performed::Nothing
            }
            JoinerOutput::Send(phase) => {
                let reply = self.send(phase).await;
                if let Ok(JoinReply { offer: Some(offer), .. }) = &reply {
                    self.theirs = Some(offer.clone());
                }
                Performed::Input(Box::new(JoinerInput::Replied(reply.map(Box::new))))
            }
            JoinerOutput::Probe(gateways) => {
                Performed::Input(Box::new(JoinerInput::Probed(self.probe(&gateways).await)))
            }
            JoinerOutput::Commit(offer) => match commit(self.context, actor, self.token, offer).await {
                Some(committed) => Performed::Input(Box::new(JoinerInput::Committed(committed))),
                // Nothing is undone: the same token again finishes what the log may hold already.
                None => Performed::Done(false),
            },
            JoinerOutput::Done { joined } => Performed::Done(joined),
        }
    }

    async fn send(&mut self, phase: Phase) -> Result<JoinReply, String> {
        let link = match self.link.take() {
            Some(link) => link,
            None => redial(self.token).await?,
        };
        let proof =
            self.token.prove(&link.binding, &signed_bytes(phase, &self.offer)).map_err(|e| e.to_string())?;
        let request =
            JoinRequest { invite: self.token.invite.clone(), phase, offer: self.offer.clone(), proof };
        let mut client = PeerClient::new(link.channel.clone());
        let sent = client.join(Document { json: encode(&request) });
        let reply = tokio::time::timeout(PHASE_TIMEOUT, sent)
            .await
            .map_err(|_| format!("no answer within {PHASE_TIMEOUT:?}"))?
            .map_err(|status| status.message().to_owned())?;
        self.link = Some(link);
        decode("join reply", &reply.into_inner().json).map_err(|e| e.to_string())
    }

    async fn probe(
        &self,
        gateways: &[hanse_federation::catalog::GatewaySummary],
    ) -> Vec<(String, Result<Duration, String>)> {
        match &self.theirs {
            Some(offer) => {
                reach::gateways(self.context, &offer.cluster, reach::trust_of(&offer.bundle), gateways).await
            }
            None => gateways.iter().map(|g| (g.name.to_string(), Err("no offer yet".to_owned()))).collect(),
        }
    }
}

/// Commits the peer here. An error only if it is certain that our log will never hold it; without an outcome the same
/// is proposed again, for as long as the node runs. `None`: it is stopping.
async fn commit(
    context: &Context,
    actor: &Actor,
    token: &JoinToken,
    offer: Box<Offer>,
) -> Option<Result<u64, String>> {
    loop {
        let command = Command::PeerAdd { invite: token.invite.clone(), offer: offer.clone() };
        match context.handle.propose(actor, command).await {
            Ok(outcome) => {
                return Some(outcome.result.map(|_| outcome.revision).map_err(|refusal| refusal.to_string()));
            }
            Err(error @ ProposeError::TooLarge(_)) => return Some(Err(error.to_string())),
            Err(ProposeError::ShuttingDown) => return None,
            Err(error) => {
                tracing::warn!(why = %error, "the join is not committed yet");
                tokio::time::sleep(COMMIT_RETRY).await;
            }
        }
    }
}

/// Another connection to the inviter, with the same pins.
async fn redial(token: &JoinToken) -> Result<Link, String> {
    let config = pinned_client_config(&token.trust_domain, &token.pins, ALPN_H2);
    let mut last = "the token names no endpoint".to_owned();
    for endpoint in &token.endpoints {
        match dial::connect(endpoint, config.clone()).await {
            Ok(link) => return Ok(link),
            Err(error) => last = error.to_string(),
        }
    }
    Err(last)
}

fn token_check(context: &Context, token: &JoinToken) -> Result<Check, Check> {
    let now = now();
    match &token.admits {
        Admits::Cluster(cluster) if *cluster == context.cluster => {}
        Admits::Cluster(cluster) => {
            return Err(failed("token", format!("it is for cluster {cluster}, this is {}", context.cluster)));
        }
        Admits::Agent(agent) => {
            return Err(failed("token", format!("it admits agent {agent}, not a cluster")));
        }
    }
    if token.expires <= now {
        return Err(failed(
            "token",
            format!("it expired at {}; make a new one: hanse cluster token create", token.expires),
        ));
    }
    let left = token.expires.left(now).as_secs();
    let detail = format!(
        "for {}, made by {}, {}m{:02}s left, single use",
        context.cluster,
        token.cluster,
        left / 60,
        left % 60
    );
    Ok(Check { name: "token".to_owned(), ok: true, detail })
}

/// Dials the token's endpoints in turn until one answers with a pinned root.
async fn reach_inviter(token: &JoinToken, lines: &Lines) -> Result<Link, Check> {
    let config = pinned_client_config(&token.trust_domain, &token.pins, ALPN_H2);
    let mut failures = Vec::new();
    let mut not_pinned = Vec::new();
    for endpoint in &token.endpoints {
        let began = Instant::now();
        match dial::connect(endpoint, config.clone()).await {
            Ok(link) => {
                let millis = began.elapsed().as_secs_f64() * 1000.0;
                let detail = format!("{} at {endpoint}, {millis:.1} ms", token.cluster);
                line(lines, Check { name: "reach".to_owned(), ok: true, detail }).await;
                let pins: Vec<String> =
                    token.pins.iter().map(|pin| pin.to_string()[..8].to_owned()).collect();
                let detail = format!("root is one of sha256:{}…", pins.join("… sha256:"));
                line(lines, Check { name: "pin".to_owned(), ok: true, detail }).await;
                return Ok(link);
            }
            Err(error @ dial::DialError::Tls { .. }) => not_pinned.push(error.to_string()),
            Err(error) => failures.push(error.to_string()),
        }
    }
    if not_pinned.is_empty() {
        Err(failed("reach", format!("no control node of {} answers: {}", token.cluster, failures.join("; "))))
    } else {
        Err(failed("pin", not_pinned.join("; ")))
    }
}

/// Waits until each side has heard the other's first complete telling.
async fn sync(context: &Context, cluster: &ClusterName, lines: &Lines) -> bool {
    let began = Instant::now();
    let (mut heard, mut told) = (false, false);
    while began.elapsed() < SYNC_TIMEOUT {
        let state = context.handle.state();
        heard = state.view.peers.get(cluster).is_some_and(|peer| peer.state == PeerState::Joined);
        told = told || link_of(context, cluster).await.is_some_and(|link| link.acknowledged.is_some());
        if heard && told {
            let (imports, exports) = counts(&state, cluster);
            let detail = format!("{imports} exports in, {exports} out");
            line(lines, Check { name: "sync".to_owned(), ok: true, detail }).await;
            return true;
        }
        tokio::time::sleep(SYNC_POLL).await;
    }
    let say = |yes: bool| if yes { "yes" } else { "not yet" };
    let detail = format!(
        "joined, but after {SYNC_TIMEOUT:?}: {cluster} heard: {}, {cluster} heard us: {}; see hanse cluster check {cluster}",
        say(heard),
        say(told)
    );
    line(lines, failed("sync", detail)).await;
    false
}

/// (services it exports to us, services we export to it).
pub fn counts(state: &State, cluster: &ClusterName) -> (usize, usize) {
    let imports = state.view.peers.get(cluster).map_or(0, |peer| peer.services.len());
    let exported = |s: &&hanse_federation::Service| s.export.as_ref().is_some_and(|e| e.covers(cluster));
    (imports, state.view.services.values().filter(exported).count())
}

/// What all nodes together know of the link to a peer.
pub async fn link_of(context: &Context, cluster: &ClusterName) -> Option<super::peer_link::PeerLinkReport> {
    let gathered = census::gather(context, &Query::PeerLinks).await;
    let reports = gathered.parts.into_iter().filter_map(|(_, part)| match part {
        Part::PeerLinks(reports) => Some(reports),
        _ => None,
    });
    freshest(reports.flatten().filter(|report| report.cluster == *cluster))
}

fn failed(name: &str, detail: String) -> Check {
    Check { name: name.to_owned(), ok: false, detail }
}

async fn line(lines: &Lines, check: Check) {
    // An administrator who has gone does not stop a join half-way: it ends with both or neither.
    let _ = lines.send(Ok(document(&JoinEvent::Line(check)))).await;
}

async fn done(lines: &Lines, token: Option<&JoinToken>, joined: bool, synced: bool, began: Instant) {
    let event = JoinEvent::Done {
        joined,
        cluster: token.map(|t| t.cluster.clone()),
        trust_domain: token.map(|t| t.trust_domain.clone()),
        synced,
        took_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
    };
    // As above.
    let _ = lines.send(Ok(document(&event))).await;
}
