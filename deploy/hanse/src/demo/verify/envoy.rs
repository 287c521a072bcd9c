//! A stock Envoy as a workload: it has nothing of ours but what the agent's SDS gives it. It is called from both
//! clusters and calls, its SVID rotates, it refuses a certificate that is revoked, and is refused with one.
//!
//! It goes on running through what follows, and has to end with the demo.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use hanse_control::admin::{RevokeRequest, Revoked, ServiceExportRequest, WorkloadRegisterRequest};
use hanse_federation::catalog::Export;
use hanse_identity::{Reason, Registration, RevocationTarget, Selector, Serial};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::revocation::receipt_line;
use super::{Story, Verdict, ms};
use crate::commands::revoke;
use crate::demo::app::Part;
use crate::demo::envoy::{Config, SEEN, arguments};
use crate::demo::load::{self, Load, Sample, Target};
use crate::demo::ports::Ports;
use crate::demo::process::ProcessState;
use crate::demo::spec::{Key, NAMESPACE, ProcessPlan, Role, host, trust_domain};
use crate::demo::thief::Door;

const NAME: &str = "envoy";
/// Seconds that its SVIDs live: the least that a registration may ask for.
const LIFETIME_SECONDS: u64 = 10;
/// Certificates that it has to be seen with, one after the other, under load.
const CERTIFICATES: usize = 4;
/// Requests per second, each way.
const RATE: u32 = 50;
const POLL: Duration = Duration::from_millis(50);
const BEFORE: Duration = Duration::from_secs(1);
const AFTER: Duration = Duration::from_secs(1);
/// From the request to revoke until nobody is let in any more.
const MAX_ENFORCEMENT: Duration = Duration::from_secs(1);
const RECEIPT_TIMEOUT: Duration = Duration::from_secs(10);
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// The Envoy of the story.
struct Guest {
    mutual_tls: SocketAddr,
    egress: SocketAddr,
    admin: SocketAddr,
    id: String,
}

impl Story<'_> {
    pub(super) async fn envoy(&self) -> anyhow::Result<Verdict> {
        let Some(binary) = &self.envoy else {
            return Ok(Verdict::skipped(
                "no Envoy found (--envoy PATH, HANSE_INTEROP_ENVOY_VENV, or in the path)",
            ));
        };
        let started = Instant::now();
        let guest = self.start_envoy(binary).await?;
        self.envoy_is_called_and_calls(&guest).await?;
        let ready = started.elapsed();
        let (rotated, rotation_line, rotation) = self.envoy_rotates(&guest).await?;
        let (refuses, refusal_line, refusal) = self.envoy_refuses(&guest).await?;
        let (refused, cut_line, cut) = self.envoy_is_refused(&guest).await?;
        let summary = format!(
            "called from both clusters and calling after {} ms · {rotation_line} · {refusal_line} · {cut_line}",
            ms(ready)
        );
        let evidence = json!({
            "id": guest.id, "readyMs": ms(ready), "rotation": rotation, "refuses": refusal, "isRefused": cut,
        });
        Ok(Verdict::new(rotated && refuses && refused, summary, evidence))
    }

    /// Registers it with an address, exports its service, and starts it under the supervisor.
    async fn start_envoy(&self, binary: &Path) -> anyhow::Result<Guest> {
        let mut ports = Ports::new();
        let (mutual_tls, egress, admin) = (ports.reserve()?, ports.reserve()?, ports.reserve()?);
        let domain = trust_domain(&self.home);
        let id = format!("spiffe://{domain}/ns/{NAMESPACE}/sa/{NAME}");
        let service: hanse_identity::ServiceName = format!("{NAMESPACE}/{NAME}").parse()?;
        let selectors = [
            Selector::Uid(nix::unistd::Uid::current().as_raw()),
            Selector::Path(binary.display().to_string()),
        ];
        let registration = Registration {
            services: [service.clone()].into(),
            ttl_seconds: LIFETIME_SECONDS,
            address: Some(mutual_tls),
            ..Registration::new(id.parse()?, "agent-1".parse::<hanse_identity::NodeName>()?, selectors)
        };
        let connection = self.demo.connection(&self.home)?;
        connection.call(&WorkloadRegisterRequest { registration }).await?;
        connection.call(&ServiceExportRequest { service, to: Export::Everyone }).await?;

        let cluster = self.demo.clusters.iter().find(|c| c.name == self.home);
        let cluster = cluster.context("home is a cluster of the demo")?;
        let answer = Part {
            service: NAME.to_owned(),
            instance: "envoy-1".to_owned(),
            version: "v1".to_owned(),
            cluster: self.home.clone(),
            ..Part::default()
        };
        let config = Config {
            agent: &cluster.agent_socket.display().to_string(),
            mutual_tls,
            answer: &serde_json::to_string(&answer)?,
            egress,
            admin,
            target: self.demo.address(&self.home, Role::Proxy, "details-1", "inbound")?,
            target_id: &format!("spiffe://{domain}/ns/{NAMESPACE}/sa/details"),
            trust: "ALL",
            delta: false,
        };
        let bootstrap = cluster.directory.join("envoy.json");
        std::fs::write(&bootstrap, serde_json::to_vec_pretty(&config.bootstrap())?)?;
        let mut launch = vec!["demo".to_owned(), "envoy".to_owned()];
        launch.extend(["--binary".to_owned(), binary.display().to_string(), "--".to_owned()]);
        launch.extend(arguments(&bootstrap).into_iter().map(|a| a.to_string_lossy().into_owned()));
        let addresses = [("mutualTls", mutual_tls), ("egress", egress), ("admin", admin)];
        ports.release([mutual_tls, egress, admin]);
        self.demo.supervisor.start(&ProcessPlan {
            key: self.envoy_key(),
            executable: self.demo.directory.join("bin/hanse"),
            arguments: launch,
            addresses: addresses.map(|(purpose, address)| (purpose.to_owned(), address.to_string())).into(),
            log: self.demo.directory.join("logs").join(format!("{}-app-envoy-1.log", self.home)),
        })?;
        Ok(Guest { mutual_tls, egress, admin, id })
    }

    fn envoy_key(&self) -> Key {
        Key { cluster: self.home.clone(), role: Role::App, name: "envoy-1".to_owned() }
    }

    async fn envoy_is_called_and_calls(&self, guest: &Guest) -> anyhow::Result<()> {
        for cluster in [&self.home, &self.away] {
            let target = self.demo.target(cluster, NAME, "/")?;
            let caller = format!("spiffe://{}/ns/{NAMESPACE}/sa/load", trust_domain(cluster));
            self.demo
                .until(&format!("Envoy's answer in {cluster}"), || async {
                    self.envoy_runs()?;
                    let got = self.demo.client.get(target.outbound, &target.host, "/", CALL_TIMEOUT).await?;
                    let seen = got.header(SEEN);
                    ensure!(got.status.is_success() && seen == caller, "{} Envoy saw {seen:?}", got.status);
                    Ok(())
                })
                .await?;
        }
        let calls = async || {
            let got = self.demo.client.get(guest.egress, &host("details"), "/", CALL_TIMEOUT).await?;
            ensure!(got.status.is_success(), "{}", got.status);
            let part: Part = serde_json::from_slice(&got.body)?;
            ensure!(part.caller_seen == guest.id, "details saw {:?}", part.caller_seen);
            Ok(())
        };
        self.demo.until("an answer to Envoy's call", calls).await
    }

    fn envoy_runs(&self) -> anyhow::Result<()> {
        let state = self.demo.supervisor.state(&self.envoy_key()).context("Envoy was started")?;
        let ended = state.state == ProcessState::Exited;
        ensure!(!ended, "Envoy has ended: {}", crate::demo::up::log_tail(&state.log, 5));
        Ok(())
    }

    /// Calls of both clusters to it, and its own calls.
    fn envoy_load(&self, guest: &Guest) -> anyhow::Result<[Load; 2]> {
        let called = [&self.home, &self.away].map(|cluster| self.demo.target(cluster, NAME, "/"));
        let called = called.into_iter().collect::<Result<Vec<_>, _>>()?;
        let calling = Target { outbound: guest.egress, host: host("details"), path: "/".to_owned() };
        let start = |targets| Load::start(&self.demo.client, targets, RATE);
        Ok([start(called), start(vec![calling])])
    }

    /// The serial number of the certificate that Envoy itself says it shows.
    async fn envoy_serial(&self, guest: &Guest) -> anyhow::Result<Serial> {
        let page = self.demo.client.get(guest.admin, "admin", "/certs", CALL_TIMEOUT).await?;
        let page = page.json().context("Envoy's /certs is no JSON")?;
        let shown = page["certificates"].as_array().into_iter().flatten();
        let chain = shown.filter_map(|c| c["cert_chain"].as_array()).flatten();
        let of_ours = chain.filter(|c| c["subject_alt_names"][0]["uri"] == guest.id);
        let serial = of_ours.filter_map(|c| c["serial_number"].as_str()).next();
        let serial = serial.with_context(|| format!("no certificate of {} in {page}", guest.id))?;
        serial.parse().map_err(|rule| anyhow::anyhow!("Envoy's serial number {serial:?} {rule}"))
    }

    /// One certificate after the other, and no request fails.
    async fn envoy_rotates(&self, guest: &Guest) -> anyhow::Result<(bool, String, Value)> {
        let loads = self.envoy_load(guest)?;
        let started = Instant::now();
        let mut serials = BTreeSet::new();
        while serials.len() < CERTIFICATES {
            let limit = Duration::from_secs(LIFETIME_SECONDS) * CERTIFICATES as u32;
            ensure!(started.elapsed() < limit, "{} certificates within {limit:?}", serials.len());
            serials.insert(self.envoy_serial(guest).await?);
            tokio::time::sleep(POLL).await;
        }
        let took = started.elapsed();
        let (called, calling) = finish(loads).await;
        let failed = failed(&called) + failed(&calling);
        let line = format!(
            "{} certificates in {:.1} s, {} requests to it and {} of it, {failed} failed",
            serials.len(),
            took.as_secs_f64(),
            called.len(),
            calling.len()
        );
        let evidence = json!({
            "certificates": serials.len(), "lifetimeSeconds": LIFETIME_SECONDS, "tookMs": ms(took),
            "requestsToIt": called.len(), "requestsOfIt": calling.len(), "failed": failed,
            "failures": [load::failures(&called), load::failures(&calling)],
        });
        Ok((failed == 0 && !called.is_empty() && !calling.is_empty(), line, evidence))
    }

    /// Somebody with a stolen SVID knocks at Envoy's door until its serial number is revoked; nobody else suffers.
    async fn envoy_refuses(&self, guest: &Guest) -> anyhow::Result<(bool, String, Value)> {
        let door = Door {
            name: NAME.to_owned(),
            address: guest.mutual_tls,
            trust_domain: trust_domain(&self.home).parse()?,
            authority: host(NAME),
            gateway: false,
            // A stock Envoy does not cut what it has let in.
            held: 0,
        };
        let thief = self.thief_at(&[door]).await?;
        let loads = self.envoy_load(guest)?;
        tokio::time::sleep(BEFORE).await;
        let asked_at = crate::now();
        let (revoked, line, complete) = self.revoke_serial(thief.serial.parse().map_err(rule)?).await?;
        tokio::time::sleep(AFTER).await;
        let (refused, thief_line, mut figures) = thief.judge(asked_at, self.within(MAX_ENFORCEMENT))?;
        let (called, calling) = finish(loads).await;
        let failed = failed(&called) + failed(&calling);
        figures["others"] = json!({
            "requests": called.len() + calling.len(), "failed": failed,
            "failures": [load::failures(&called), load::failures(&calling)],
        });
        figures["revocation"] = json!({ "id": revoked.id, "complete": complete });
        let line = format!("{thief_line}, {line}, others {failed} failed");
        Ok((refused && complete && failed == 0, line, figures))
    }

    /// Its own serial number is revoked: our proxies cut and refuse it until it has another certificate, which it
    /// fetches by itself.
    async fn envoy_is_refused(&self, guest: &Guest) -> anyhow::Result<(bool, String, Value)> {
        let loads = self.envoy_load(guest)?;
        tokio::time::sleep(BEFORE).await;
        // A connection lives on under the certificate that it was made with: the one in use has to be Envoy's newest.
        let in_use = async || {
            let serial = self.envoy_serial(guest).await?;
            let page = self.details_connections().await?;
            let mut rows = page["connections"].as_array().into_iter().flatten();
            let live = rows.any(|row| row["serial"] == serial.to_string());
            ensure!(live, "details has no live connection under {serial}");
            Ok(serial)
        };
        let serial = self.demo.until("a live connection under Envoy's certificate", in_use).await?;
        let asked = Instant::now();
        let (revoked, line, complete) = self.revoke_serial(serial.clone()).await?;
        let changed = async || {
            ensure!(self.envoy_serial(guest).await? != serial, "Envoy shows the revoked certificate");
            Ok(())
        };
        self.demo.until("another certificate of Envoy's", changed).await?;
        self.envoy_is_called_and_calls(guest).await?;
        let back = asked.elapsed();
        let (called, calling) = finish(loads).await;
        let page = self.details_connections().await?;
        let closed = page["closedByRevocation"][revoked.id.to_string()].as_u64().unwrap_or_default();
        let refused = failed(&calling);
        let failures = [load::failures(&called), load::failures(&calling)];
        let line = format!(
            "its own revoked: {line}, details closed {closed}, {refused} of its calls refused, \
             back with another after {} ms",
            ms(back)
        );
        let evidence = json!({
            "serial": serial.to_string(), "revocation": revoked.id, "complete": complete,
            "closedByDetails": closed, "callsRefused": refused, "callsToItRefused": failed(&called),
            "slowestCallToItMs": ms(load::slowest(&called)), "failures": failures, "backMs": ms(back),
        });
        Ok((complete && closed > 0, line, evidence))
    }

    async fn details_connections(&self) -> anyhow::Result<Value> {
        let admin = self.demo.address(&self.home, Role::Proxy, "details-1", "admin")?;
        let page = self.demo.client.get(admin, "admin", "/connections", CALL_TIMEOUT).await?;
        page.json().context("/connections is no JSON")
    }

    async fn revoke_serial(&self, serial: Serial) -> anyhow::Result<(Revoked, String, bool)> {
        let connection = self.demo.connection(&self.home)?;
        let target = RevocationTarget::Serial(serial);
        let request =
            RevokeRequest { note: "verify".to_owned(), ..RevokeRequest::new(target, Reason::KeyCompromise) };
        let revoked = revoke::commit(connection, &request).await?;
        let (receipt, after) = revoke::wait(connection, &revoked.id, RECEIPT_TIMEOUT).await?;
        Ok((revoked, receipt_line(&receipt, after), receipt.complete))
    }
}

fn rule(rule: impl std::fmt::Display) -> anyhow::Error {
    anyhow::anyhow!("a serial number {rule}")
}

async fn finish([called, calling]: [Load; 2]) -> (Vec<Sample>, Vec<Sample>) {
    (called.finish().await, calling.finish().await)
}

fn failed(samples: &[Sample]) -> usize {
    samples.iter().filter(|s| !s.ok).count()
}
