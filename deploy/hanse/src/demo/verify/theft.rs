//! The part of step 12 that shows the others' refusal: a thief holds productpage's identity.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use hanse_identity::Timestamp;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

use super::Story;
use crate::demo::process::DIE_WITH_STDIN;
use crate::demo::spec::{Role, trust_domain};
use crate::demo::thief::{Door, Event};

/// Pace of knocking at each door.
const PACE: Duration = Duration::from_millis(20);
/// How long the thief may take to be in.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections that it holds at each door where they are to be cut.
const HELD: usize = 2;

/// A thief that runs; dropping it ends it.
pub struct Thief {
    _child: tokio::process::Child,
    events: Arc<Mutex<Vec<Event>>>,
    doors: Vec<(String, usize)>,
    pub id: String,
    pub serial: String,
    /// The stolen certificate, PEM.
    pub certificate: String,
}

impl Story<'_> {
    /// Where a workload of `from` wants in: at a proxy there, and at the gateway of `to`, over the wire.
    pub(super) fn doors(&self, from: &str, to: &str) -> anyhow::Result<[Door; 2]> {
        Ok([
            Door {
                name: from.to_owned(),
                address: self.demo.address(from, Role::Proxy, "details-1", "inbound")?,
                trust_domain: trust_domain(from).parse()?,
                authority: "details.shop.svc.cluster.local".to_owned(),
                gateway: false,
                held: HELD,
            },
            Door {
                name: to.to_owned(),
                address: self.demo.address(to, Role::Gateway, "gateway-1", "peer")?,
                trust_domain: trust_domain(to).parse()?,
                authority: "details.shop.svc.cluster.local:80".to_owned(),
                gateway: true,
                held: HELD,
            },
        ])
    }

    /// Starts a thief of productpage's identity and waits until it is in everywhere.
    pub(super) async fn thief(&self) -> anyhow::Result<Thief> {
        self.thief_at(&self.doors(&self.home, &self.away)?).await
    }

    /// The same at these doors.
    pub(super) async fn thief_at(&self, doors: &[Door]) -> anyhow::Result<Thief> {
        let proxy = self.demo.supervisor.plan(&self.home, Role::Proxy, "productpage-1");
        let executable = proxy.context("productpage has a proxy")?.executable;
        let cluster = self.demo.clusters.iter().find(|c| c.name == self.home);
        let socket = &cluster.context("home is a cluster of the demo")?.agent_socket;
        let log = self.demo.directory.join("logs/thief.log");
        Thief::start(&executable, socket, doors, PACE, &log).await
    }
}

impl Thief {
    /// A thief that runs from that path, and knocks at each door at that pace.
    pub(super) async fn start(
        executable: &Path,
        socket: &Path,
        doors: &[Door],
        pace: Duration,
        log: &Path,
    ) -> anyhow::Result<Self> {
        let mut child = tokio::process::Command::new(executable)
            .args(["demo", "thief", "--socket"])
            .arg(socket)
            .args(["--doors", &serde_json::to_string(doors)?])
            .args(["--every-ms", &pace.as_millis().to_string()])
            .env(DIE_WITH_STDIN, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(log)?)
            .kill_on_drop(true)
            .spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("standard output was piped")?).lines();
        let events = Arc::<Mutex<Vec<Event>>>::default();
        let kept = events.clone();
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let mut ready = Some(ready);
            while let Ok(Some(line)) = lines.next_line().await {
                let Ok(event) = serde_json::from_str::<Event>(&line) else { continue };
                if let (Event::Ready { .. }, Some(ready)) = (&event, ready.take_if(|_| true)) {
                    let _ = ready.send(event.clone());
                }
                kept.lock().unwrap_or_else(PoisonError::into_inner).push(event);
            }
        });
        let ready = tokio::time::timeout(READY_TIMEOUT, is_ready).await;
        let Ok(Ok(Event::Ready { id, serial, certificate, .. })) = ready else {
            anyhow::bail!("the thief did not get in: {}", crate::demo::up::log_tail(log, 5));
        };
        let doors = doors.iter().map(|d| (d.name.clone(), d.held)).collect();
        Ok(Self { _child: child, events, doors, id, serial, certificate })
    }

    /// How many times it was let in at that door since `asked`.
    pub fn let_in_since(&self, name: &str, asked: Timestamp) -> usize {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let let_in = |event: &&Event| matches!(event, Event::Knock { door, at, let_in: true, .. } if door == name && *at >= asked.0);
        events.iter().filter(let_in).count()
    }

    /// How many times it was refused at that door since `asked`.
    pub fn refused_since(&self, name: &str, asked: Timestamp) -> usize {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = |event: &&Event| matches!(event, Event::Knock { door, at, let_in: false, .. } if door == name && *at >= asked.0);
        events.iter().filter(refused).count()
    }

    /// As `judge`, at one door only.
    pub fn judge_at(&self, name: &str, asked: Timestamp, limit: Duration) -> (bool, String, Value) {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let held = self.doors.iter().find(|(door, _)| door == name).map_or(0, |(_, held)| *held);
        at_door(&events, name, asked, limit, held)
    }

    /// What became of the thief since `asked`: per door whether it was cut and refused within `limit`, as evidence.
    pub fn judge(&self, asked: Timestamp, limit: Duration) -> anyhow::Result<(bool, String, Value)> {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner).clone();
        ensure!(!self.doors.is_empty(), "the thief has no door");
        let mut evidence = serde_json::Map::new();
        let mut lines = Vec::new();
        let mut ok = true;
        for (door, held) in &self.doors {
            let (holds, line, figures) = at_door(&events, door, asked, limit, *held);
            ok &= holds;
            lines.push(line);
            evidence.insert(door.clone(), figures);
        }
        evidence.insert("id".to_owned(), json!(self.id));
        Ok((ok, format!("thief {}", lines.join(", ")), Value::Object(evidence)))
    }
}

fn at_door(
    events: &[Event],
    name: &str,
    asked: Timestamp,
    limit: Duration,
    held: usize,
) -> (bool, String, Value) {
    let since = |at: u64| Timestamp(at).since(asked).as_millis() as u64;
    let cuts: Vec<u64> = events
        .iter()
        .filter_map(|e| match e {
            Event::Cut { door, at } if door == name => Some(*at),
            _ => None,
        })
        .collect();
    let (mut let_in_before, mut refused, mut last_let_in) = (0, 0, 0);
    let mut reasons = BTreeMap::<&str, usize>::new();
    for event in events {
        let Event::Knock { door, at, let_in, why } = event else { continue };
        match (door == name, *let_in, *at >= asked.0) {
            (true, true, false) => let_in_before += 1,
            (true, true, true) => last_let_in = last_let_in.max(since(*at)),
            (true, false, true) => {
                refused += 1;
                *reasons.entry(why).or_default() += 1;
            }
            _ => {}
        }
    }
    let longest = cuts.iter().map(|at| since(*at)).max().unwrap_or_default();
    let cut_early = cuts.iter().any(|at| *at < asked.0);
    let limit = limit.as_millis() as u64;
    let ok = cuts.len() == held
        && !cut_early
        && longest <= limit
        && last_let_in <= limit
        && let_in_before > 0
        && refused > 0;
    let cut = match held {
        0 => String::new(),
        held => format!("{} of {held} cut within {longest} ms, ", cuts.len()),
    };
    let line = format!("{name}: {cut}last let in after {last_let_in} ms, {refused} refused");
    let figures = json!({
        "held": held, "cut": cuts.len(), "longestCutMs": longest, "letInBefore": let_in_before,
        "lastLetInMs": last_let_in, "refused": refused, "refusals": reasons,
    });
    (ok, line, figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn knock(at: u64, let_in: bool) -> Event {
        Event::Knock { door: "west".into(), at, let_in, why: "alert".into() }
    }

    #[test]
    fn a_thief_that_is_let_in_too_late_or_not_cut_fails_the_step() {
        let limit = Duration::from_millis(1000);
        let judge = |events: &[Event]| at_door(events, "west", Timestamp(1000), limit, 1).0;
        let cut = Event::Cut { door: "west".into(), at: 1200 };
        let good = [knock(900, true), cut.clone(), knock(1100, true), knock(1300, false)];
        assert!(judge(&good));
        assert!(!judge(&[knock(900, true), knock(1300, false)]), "not cut");
        assert!(!judge(&[knock(900, true), cut.clone(), knock(2500, true), knock(2600, false)]), "too late");
        assert!(!judge(&[cut.clone(), knock(1300, false)]), "never in before");
        assert!(!judge(&[knock(900, true), cut]), "never refused");
        let early = Event::Cut { door: "west".into(), at: 900 };
        assert!(!judge(&[knock(900, true), early, knock(1300, false)]), "cut for another reason");
    }
}
