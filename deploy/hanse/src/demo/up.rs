//! Starting a demo: processes in the order in which they need each other, identities, joins, load.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_util::future::try_join_all;
use hanse_control::admin::{
    AgentTokenCreateRequest, ClusterTokenCreateRequest, NodeList, NodeListRequest, NodeState,
    ServiceExportRequest, WorkloadRegisterRequest,
};
use hanse_federation::catalog::Export;
use hanse_identity::{Registration, Selector};
use tokio::time::Instant;

use super::client::Client;
use super::load::{self, Counters, Target};
use super::process::Supervisor;
use super::spec::{ClusterPlan, Key, LOAD_PROXY, Plan, ProcessPlan, Role, Spec, host, only_in};
use crate::context::Connection;
use crate::errors::{Exit, Failure};

/// Longest that any one stage of starting may take.
const STAGE_TIMEOUT: Duration = Duration::from_secs(60);
/// Pace of asking whether something is ready.
const POLL: Duration = Duration::from_millis(50);
/// How long the demo's own questions to control nodes may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a process is started whose port was taken meanwhile.
const START_ATTEMPTS: u32 = 5;

/// A demo that runs. `end` it; dropping it leaves processes to their closing pipes.
pub struct Demo {
    pub directory: PathBuf,
    pub spec: Spec,
    pub supervisor: Supervisor,
    pub clusters: Vec<ClusterPlan>,
    pub wire_socket: PathBuf,
    pub client: Client,
    /// Administrator's connections, by cluster.
    pub connections: BTreeMap<String, Connection>,
    pub load: Arc<Counters>,
    load_task: Option<tokio::task::JoinHandle<()>>,
    /// What each stage of starting took.
    pub stages: Vec<(String, Duration)>,
}

/// Where the lines about progress go.
pub type Talk<'t> = &'t (dyn Fn(&str) + Send + Sync);

impl Demo {
    /// Starts everything below `directory`; on failure or SIGINT what was started is ended. The directory is the
    /// caller's to remove.
    pub async fn start(
        directory: &Path,
        spec: Spec,
        executable: &Path,
        talk: Talk<'_>,
    ) -> anyhow::Result<Self> {
        let supervisor = Supervisor::new(directory, spec.clone());
        let result = tokio::select! {
            result = Self::start_with(&supervisor, directory, spec, executable, talk) => result,
            () = super::signals::terminated() => {
                Err(Failure::new(Exit::Interrupted, "E1008", "interrupted while starting").into())
            }
        };
        if let Err(error) = result {
            let tails = tails_of_exited(&supervisor);
            supervisor.end_all().await;
            return Err(if tails.is_empty() {
                error
            } else {
                error.context(format!("the demo did not start{tails}"))
            });
        }
        result
    }

    async fn start_with(
        supervisor: &Supervisor,
        directory: &Path,
        spec: Spec,
        executable: &Path,
        talk: Talk<'_>,
    ) -> anyhow::Result<Self> {
        spec.check().map_err(Failure::usage)?;
        let started = Instant::now();
        let mut plan = Plan::make(directory, spec.clone())?;
        super::prepare::prepare(&plan, executable)?;
        let mut demo = Self {
            directory: directory.to_owned(),
            spec,
            supervisor: supervisor.clone(),
            clusters: plan.clusters.clone(),
            wire_socket: plan.wire.addresses["socket"].clone().into(),
            client: Client::default(),
            connections: BTreeMap::new(),
            load: Arc::default(),
            load_task: None,
            stages: Vec::new(),
        };
        demo.stage("prepare", started);
        demo.start_processes(&mut plan, &[Role::Wire, Role::Control]).await?;
        let clock = Instant::now();
        demo.quorums(talk).await?;
        demo.stage("quorum", clock);
        let clock = Instant::now();
        let enrolling = demo.clusters.iter().map(|cluster| demo.enrol(cluster));
        try_join_all(enrolling).await?;
        demo.start_processes(&mut plan, &[Role::Agent, Role::App, Role::Gateway, Role::Proxy]).await?;
        let ready = demo.ready(&[Role::Agent, Role::Gateway, Role::Proxy]).await?;
        demo.stage("apps", clock);
        talk(&format!(
            "  apps   productpage reviews(v1,v2) ratings details          {} proxies, {} gateways ready   {}",
            ready.get(&Role::Proxy).copied().unwrap_or_default(),
            ready.get(&Role::Gateway).copied().unwrap_or_default(),
            seconds(clock.elapsed()),
        ));
        let clock = Instant::now();
        demo.joins(talk).await?;
        demo.stage("join", clock);
        demo.first_crossing().await?;
        demo.stage("firstCrossCluster", started);
        demo.start_load();
        talk(&format!(
            "  load   {} req/s in each cluster   first cross-cluster 200 after {}",
            demo.spec.rps,
            seconds(started.elapsed())
        ));
        Ok(demo)
    }

    fn stage(&mut self, name: &str, since: Instant) {
        self.stages.push((name.to_owned(), since.elapsed()));
    }

    /// Starts what has these roles, in this order, giving up its reserved ports just before.
    async fn start_processes(&self, plan: &mut Plan, roles: &[Role]) -> anyhow::Result<()> {
        for role in roles {
            let mut processes: Vec<ProcessPlan> =
                plan.clusters.iter().flat_map(|c| c.processes.clone()).collect();
            processes.push(plan.wire.clone());
            for process in processes.iter().filter(|p| p.key.role == *role) {
                let own = process.addresses.iter().filter(|(purpose, _)| {
                    // An app's port is its own; the relays' addresses belong to the wire.
                    (purpose.as_str() != "app" || *role == Role::App) && purpose.as_str() != "peer"
                });
                plan.ports.release(own.filter_map(|(_, address)| address.parse::<SocketAddr>().ok()));
                if *role == Role::Wire {
                    plan.ports.release(plan.relays.iter().map(|r| r.listen));
                }
                self.supervisor.start(process)?;
            }
        }
        Ok(())
    }

    /// Waits for a leader in every cluster.
    async fn quorums(&mut self, talk: Talk<'_>) -> anyhow::Result<()> {
        let started = Instant::now();
        for cluster in &self.clusters {
            let connection =
                Connection::with_credential_file(&cluster.name, &cluster.credential, CALL_TIMEOUT)?;
            self.connections.insert(cluster.name.clone(), connection);
        }
        let waiting = self.clusters.iter().map(|cluster| async {
            let nodes =
                self.until(&format!("quorum in {}", cluster.name), || self.quorum(&cluster.name)).await?;
            let leader = leader_of(&nodes).unwrap_or_default();
            talk(&format!(
                "  {:<6} {} control nodes   leader {leader}   quorum {}/{}   {}",
                cluster.name,
                nodes.items.len(),
                nodes.quorum.answering,
                nodes.quorum.voters,
                seconds(started.elapsed()),
            ));
            anyhow::Ok(())
        });
        try_join_all(waiting).await?;
        Ok(())
    }

    /// The node list of a cluster that has a leader and all its nodes.
    pub async fn quorum(&self, cluster: &str) -> anyhow::Result<NodeList> {
        let nodes = self.connection(cluster)?.call(&NodeListRequest {}).await?;
        anyhow::ensure!(leader_of(&nodes).is_some(), "{cluster} has no leader");
        anyhow::ensure!(
            nodes.quorum.answering == nodes.quorum.voters,
            "{} of {} nodes of {cluster} answer",
            nodes.quorum.answering,
            nodes.quorum.voters
        );
        Ok(nodes)
    }

    /// Name of the control node that leads, if one does.
    pub async fn leader(&self, cluster: &str) -> anyhow::Result<Option<String>> {
        Ok(leader_of(&self.connection(cluster)?.call(&NodeListRequest {}).await?))
    }

    pub fn connection(&self, cluster: &str) -> anyhow::Result<&Connection> {
        self.connections.get(cluster).with_context(|| format!("the demo has no cluster {cluster}"))
    }

    /// Registrations, exports, and a token for the agent.
    async fn enrol(&self, cluster: &ClusterPlan) -> anyhow::Result<()> {
        let connection = self.connection(&cluster.name)?;
        let agent: hanse_identity::NodeName = "agent-1".parse()?;
        let request = AgentTokenCreateRequest { agent: agent.clone(), ttl_seconds: 600 };
        let token = connection.call(&request).await?;
        write_private(&cluster.agent_token, token.token.as_bytes())?;
        let digest = digest(&self.directory.join("bin/hanse"))?;
        let mut exported = std::collections::BTreeSet::new();
        for registration in &cluster.registrations {
            let selectors = [
                Selector::Uid(nix::unistd::Uid::current().as_raw()),
                Selector::Path(registration.executable.display().to_string()),
                Selector::Sha256(digest.clone()),
            ];
            let services = registration.services.iter().map(|s| s.parse()).collect::<Result<_, _>>()?;
            exported.extend(registration.services.iter().cloned());
            let registration = Registration {
                services,
                ttl_seconds: self.spec.svid_lifetime_seconds,
                ..Registration::new(registration.id.parse()?, agent.clone(), selectors)
            };
            connection.call(&WorkloadRegisterRequest { registration }).await?;
        }
        for service in exported {
            let request = ServiceExportRequest { service: service.parse()?, to: Export::Everyone };
            connection.call(&request).await?;
        }
        Ok(())
    }

    /// Waits until everything of these roles says it is ready, and counts it.
    pub async fn ready(&self, roles: &[Role]) -> anyhow::Result<BTreeMap<Role, usize>> {
        let plans: Vec<ProcessPlan> =
            self.supervisor.plans().into_iter().filter(|p| roles.contains(&p.key.role)).collect();
        let mut count = BTreeMap::new();
        plans.iter().for_each(|p| *count.entry(p.key.role).or_default() += 1);
        try_join_all(plans.iter().map(|plan| self.ready_one(plan))).await?;
        Ok(count)
    }

    /// Waits until one process says it is ready; starts it again if its port was taken meanwhile.
    async fn ready_one(&self, plan: &ProcessPlan) -> anyhow::Result<()> {
        let admin = plan.address("admin").with_context(|| format!("{} has no admin address", plan.key))?;
        self.until(&format!("{} ready", plan.key), || async {
            self.keep_starting(&plan.key)?;
            let answer = self.client.get(admin, "admin", "/readyz", Duration::from_secs(1)).await?;
            anyhow::ensure!(
                answer.status.is_success(),
                "/readyz says {} {}",
                answer.status,
                String::from_utf8_lossy(&answer.body).trim()
            );
            Ok(())
        })
        .await
    }

    fn keep_starting(&self, key: &Key) -> anyhow::Result<()> {
        let Some(state) = self.supervisor.state(key) else { return Ok(()) };
        let taken = || log_tail(&state.log, 5).contains("ddress already in use");
        if state.state == super::process::ProcessState::Exited && state.starts < START_ATTEMPTS && taken() {
            self.supervisor.restart(key)?;
        }
        Ok(())
    }

    /// Joins every pair of clusters, by the code of `cluster token create` and `cluster join`.
    async fn joins(&self, talk: Talk<'_>) -> anyhow::Result<()> {
        for (index, inviter) in self.spec.clusters.iter().enumerate() {
            for joiner in &self.spec.clusters[index + 1..] {
                let started = Instant::now();
                let request = ClusterTokenCreateRequest { cluster: joiner.parse()?, ttl_seconds: 600 };
                let invite = async || Ok(self.connection(inviter)?.call(&request).await?);
                let token = self.until(&format!("a token of {inviter} for {joiner}"), invite).await?;
                let outcome =
                    crate::commands::cluster::join(self.connection(joiner)?, &token.token, false, |_| {})
                        .await?;
                anyhow::ensure!(
                    outcome.joined,
                    "{joiner} did not join {inviter}: {}",
                    outcome.failed.as_deref().unwrap_or("no reason given")
                );
                talk(&format!(
                    "  join   {joiner} → {inviter}   roots pinned, bundles swapped   {}",
                    seconds(started.elapsed())
                ));
            }
        }
        Ok(())
    }

    /// Waits until a request of every cluster has been answered by every other.
    async fn first_crossing(&self) -> anyhow::Result<()> {
        let mut pairs = Vec::new();
        for from in &self.spec.clusters {
            for to in self.spec.clusters.iter().filter(|to| *to != from) {
                pairs.push((from, to));
            }
        }
        let crossing = pairs.into_iter().map(|(from, to)| async move {
            let target = self.target(from, &only_in(to), "/")?;
            self.until(&format!("an answer from {to} in {from}"), || async {
                let sample = load::request(&self.client, &target).await;
                anyhow::ensure!(sample.ok && sample.cluster == *to, "{} {}", sample.status, sample.why);
                Ok(())
            })
            .await
        });
        try_join_all(crossing).await?;
        Ok(())
    }

    /// A request from the load's proxy of a cluster.
    pub fn target(&self, cluster: &str, service: &str, path: &str) -> anyhow::Result<Target> {
        self.target_from(cluster, LOAD_PROXY, service, path)
    }

    /// A request from that proxy's outbound listener.
    pub fn target_from(
        &self,
        cluster: &str,
        proxy: &str,
        service: &str,
        path: &str,
    ) -> anyhow::Result<Target> {
        let outbound = self.address(cluster, Role::Proxy, proxy, "outbound")?;
        Ok(Target { outbound, host: host(service), path: path.to_owned() })
    }

    /// One address of one process.
    pub fn address(
        &self,
        cluster: &str,
        role: Role,
        name: &str,
        purpose: &str,
    ) -> anyhow::Result<SocketAddr> {
        let plan = self.supervisor.plan(cluster, role, name);
        plan.and_then(|p| p.address(purpose))
            .with_context(|| format!("no {purpose} of {role}/{name}@{cluster}"))
    }

    fn start_load(&mut self) {
        let targets: Vec<Target> =
            self.spec.clusters.iter().filter_map(|c| self.target(c, "productpage", "/").ok()).collect();
        let rate = self.spec.rps * targets.len() as u32;
        let (counters, task) = load::steady(&self.client, targets, rate);
        self.load = counters;
        self.load_task = Some(task);
    }

    /// Asks again and again until it is so; the last reason is part of the error.
    pub async fn until<T, Ask, Answer>(&self, what: &str, mut ask: Ask) -> anyhow::Result<T>
    where
        Ask: FnMut() -> Answer,
        Answer: Future<Output = anyhow::Result<T>>,
    {
        let deadline = Instant::now() + STAGE_TIMEOUT;
        loop {
            match ask().await {
                Ok(answer) => return Ok(answer),
                Err(error) if Instant::now() >= deadline => {
                    return Err(error.context(format!("waited {STAGE_TIMEOUT:?} for {what}")));
                }
                Err(_) => tokio::time::sleep(POLL).await,
            }
        }
    }

    /// Ends everything and removes the directory.
    pub async fn end(mut self) -> anyhow::Result<Ended> {
        if let Some(task) = self.load_task.take() {
            task.abort();
        }
        let killed = self.supervisor.end_all().await;
        let left = self
            .supervisor
            .status()
            .processes
            .into_iter()
            .filter(|p| p.state != super::process::ProcessState::Exited)
            .map(|p| p.name)
            .collect();
        super::find::remove(&self.directory)?;
        Ok(Ended { killed, left, directory: self.directory.clone() })
    }
}

/// How the end went.
#[derive(Debug)]
pub struct Ended {
    /// Did not end by themselves in time.
    pub killed: Vec<Key>,
    /// Still there: should be nobody.
    pub left: Vec<String>,
    pub directory: PathBuf,
}

fn leader_of(nodes: &NodeList) -> Option<String> {
    nodes.items.iter().find(|n| n.state == NodeState::Leader).map(|n| n.node.to_string())
}

/// Lower-case hex of the SHA-256 of a file.
fn digest(path: &Path) -> anyhow::Result<String> {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    let mut file = std::fs::File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = std::io::Read::read(&mut file, &mut buffer)?;
        if read == 0 {
            break;
        }
        context.update(&buffer[..read]);
    }
    Ok(context.finish().as_ref().iter().map(|b| format!("{b:02x}")).collect())
}

/// Writes a file of mode 0600.
pub fn write_private(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file =
        std::fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    Ok(())
}

/// The last lines of what processes logged that are gone although nobody ended them.
fn tails_of_exited(supervisor: &Supervisor) -> String {
    let gone = supervisor.status().processes.into_iter();
    let gone = gone.filter(|p| p.state == super::process::ProcessState::Exited).take(3);
    gone.map(|p| {
        let exit = p.exit.unwrap_or_default();
        format!("\n{}/{}@{} ended ({exit}):\n{}", p.role, p.name, p.cluster, log_tail(&p.log, 8))
    })
    .collect()
}

/// The last lines of a file; empty if it cannot be read.
pub fn log_tail(path: &Path, lines: usize) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// `0.9 s`.
pub fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
