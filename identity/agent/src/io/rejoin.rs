//! Joining anew, without a restart: while no control node accepts the agent's own SVID, its token file is looked at, and
//! the host's own certificate is shown again, if it has one. Whether that lets it in is the cluster's decision.
//!
//! What the agent holds for local processes is kept meanwhile, for as long as it is valid.

use std::path::Path;
use std::time::Duration;

use hanse_identity::token::JoinToken;
use hanse_identity::{NodeName, Timestamp, TrustDomain};

use super::control_link::ControlLink;
use super::host::HostFiles;
use super::join::Proof;
use super::store::{Store, read_token};
use super::{jitter, now};

/// How often the token file is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// How long after it was refused the host's certificate is shown again; twice as long each time, this often: each time is
/// an entry in the cluster's log.
const SHOW_AGAIN: Duration = Duration::from_secs(5);
const DOUBLED: u32 = 6;

/// The host's own certificate, if it may be joined by.
pub struct ByHost<'w> {
    pub files: &'w HostFiles,
    pub store: &'w Store,
    /// Why it did not help the last time.
    pub refused: Option<String>,
    /// How often it did not.
    pub refusals: u32,
}

/// What a new token has to fit.
pub struct Wanted<'w> {
    pub agent: &'w NodeName,
    pub trust_domain: &'w TrustDomain,
    pub file: &'w Path,
    /// The token that the agent joined with, and one that was refused since: these are not tried again.
    pub spent: [&'w str; 2],
}

/// Waits until there is a token that may let the agent in again, or it is time to show the host's certificate. Returns at
/// no other time: who is connected needs neither.
pub async fn new_proof(link: &ControlLink, wanted: &Wanted<'_>, host: Option<ByHost<'_>>) -> Proof {
    let mut refused = host.as_ref().and_then(|host| host.refused.clone());
    let pause = match host.as_ref().map_or(0, |host| host.refusals) {
        0 => Duration::ZERO,
        times => (SHOW_AGAIN * 2u32.pow((times - 1).min(DOUBLED))).mul_f64(jitter()),
    };
    let show_at = tokio::time::Instant::now() + pause;
    loop {
        // Who was refused as a host is not let in as a member either, however its connections end.
        let out = || refused.is_some() && !link.connected();
        match cause(link, now()).or_else(|| out().then(|| "this agent is not let in".to_owned())) {
            // Connected, or the control nodes are merely out of reach.
            None => link.set_trouble(None),
            Some(cause) => match token(wanted, now()) {
                Ok(token) => return Proof::Token(token),
                Err(why) => {
                    if let Some(host) = &host
                        && tokio::time::Instant::now() >= show_at
                    {
                        match of_host(host) {
                            Ok(proof) => return proof,
                            Err(why) => refused = Some(why),
                        }
                    }
                    let why = match &refused {
                        Some(refused) => format!("{why}; the host's certificate: {refused}"),
                        None => why,
                    };
                    link.set_trouble(Some(instruction(&cause, wanted, &why)));
                }
            },
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn of_host(host: &ByHost<'_>) -> Result<Proof, String> {
    let joined = host.store.identity().map_err(|e| e.to_string())?;
    host.files.read(joined.as_ref()).map(Proof::Host).map_err(|e| e.to_string())
}

/// Waits for a token in the file that is none of the spent ones; its invite.
pub async fn another_token(wanted: &Wanted<'_>) -> String {
    loop {
        if let Ok(token) = token(wanted, now()) {
            return token.invite;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Why the agent's own SVID is of no use, as far as it can know.
fn cause(link: &ControlLink, now: Timestamp) -> Option<String> {
    if let Some(revocation) = link.evicted_by() {
        return Some(format!("this agent was evicted ({revocation})"));
    }
    let not_after = link.own_not_after();
    if not_after <= now {
        return Some(format!("the agent's own SVID expired at {not_after}"));
    }
    link.refused().then(|| "the control nodes do not accept the agent's own SVID".to_owned())
}

fn instruction(cause: &str, wanted: &Wanted<'_>, token: &str) -> String {
    let (agent, file) = (wanted.agent, wanted.file.display());
    format!(
        "{cause}: make a new join token (hanse agent token create {agent}) and put it into {file}; no restart is needed. Now: {token}"
    )
}

/// The token in the file, if it is a new one; else what is wrong with it.
fn token(wanted: &Wanted<'_>, now: Timestamp) -> Result<JoinToken, String> {
    let token = read_token(wanted.file, wanted.agent, now).map_err(|e| e.to_string())?;
    if token.trust_domain != *wanted.trust_domain {
        return Err(format!("the join token is of trust domain {}", token.trust_domain));
    }
    if wanted.spent.contains(&token.invite.as_str()) {
        return Err(format!("the join token {} has been used or refused", token.invite));
    }
    Ok(token)
}
