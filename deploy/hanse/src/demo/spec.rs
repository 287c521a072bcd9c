//! What a demo consists of: clusters, processes, their names, addresses and arguments. Decides, starts nothing.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::ports::Ports;
use super::wire::Relay;

/// The namespace of all demo services.
pub const NAMESPACE: &str = "shop";
/// Gateways per cluster.
pub const GATEWAYS: usize = 2;
/// The cluster field of processes that belong to none.
pub const NO_CLUSTER: &str = "-";

/// What `demo up` was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    pub clusters: Vec<String>,
    /// Control nodes per cluster.
    pub nodes: usize,
    /// Round trip that the wire adds.
    pub wan_latency_ms: u64,
    /// Lifetime of the SVIDs of proxies and gateways; 0 = the clusters' own.
    #[serde(default)]
    pub svid_lifetime_seconds: u64,
    /// Requests per second of the steady load, per cluster.
    pub rps: u32,
}

/// A deployment of the demo's shop: one SPIFFE ID, one executable, some instances.
#[derive(Debug)]
pub struct Deployment {
    /// Also the account in the SPIFFE ID.
    pub name: &'static str,
    pub app: &'static str,
    pub version: &'static str,
    pub services: &'static [&'static str],
    pub calls: &'static [&'static str],
    pub instances: usize,
}

/// productpage → reviews (v1, v2; two instances each) → ratings, details.
pub const DEPLOYMENTS: [Deployment; 5] = [
    Deployment {
        name: "productpage",
        app: "productpage",
        version: "v1",
        services: &["productpage"],
        calls: &["reviews", "details"],
        instances: 1,
    },
    Deployment {
        name: "reviews-v1",
        app: "reviews",
        version: "v1",
        services: &["reviews", "reviews-v1"],
        calls: &["ratings"],
        instances: 2,
    },
    Deployment {
        name: "reviews-v2",
        app: "reviews",
        version: "v2",
        services: &["reviews", "reviews-v2"],
        calls: &["ratings"],
        instances: 2,
    },
    Deployment {
        name: "ratings",
        app: "ratings",
        version: "v1",
        services: &["ratings"],
        calls: &[],
        instances: 1,
    },
    Deployment {
        name: "details",
        app: "details",
        version: "v1",
        services: &["details"],
        calls: &[],
        instances: 1,
    },
];

/// Account of the proxy through which the load comes.
pub const LOAD: &str = "load";
/// Process name of that proxy.
pub const LOAD_PROXY: &str = "load-1";

/// What a process is. Written as the role in status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Control,
    Agent,
    Gateway,
    Proxy,
    App,
    Wire,
}

/// Which process: unique in a demo.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    pub cluster: String,
    pub role: Role,
    pub name: String,
}

/// How a process is started, the first time and after it was killed.
#[derive(Clone, Debug)]
pub struct ProcessPlan {
    pub key: Key,
    pub executable: PathBuf,
    pub arguments: Vec<String>,
    /// By purpose: `outbound`, `inbound`, `admin`, `app`, `tunnel`, `passthrough`, `api`, `socket`.
    pub addresses: BTreeMap<String, String>,
    pub log: PathBuf,
}

/// One cluster of the demo.
#[derive(Clone, Debug)]
pub struct ClusterPlan {
    pub name: String,
    pub trust_domain: String,
    pub directory: PathBuf,
    pub nodes: Vec<NodePlan>,
    pub agent_socket: PathBuf,
    pub agent_token: PathBuf,
    pub initial_nodes: PathBuf,
    pub credential: PathBuf,
    /// What the nodes' private keys are encrypted under.
    pub encryption_key: PathBuf,
    pub registrations: Vec<RegistrationPlan>,
    pub processes: Vec<ProcessPlan>,
}

/// A control node before it exists.
#[derive(Clone, Debug)]
pub struct NodePlan {
    pub raft_id: u64,
    pub name: String,
    pub data: PathBuf,
    pub address: SocketAddr,
    pub peer_address: SocketAddr,
}

/// Who gets which identity: by the path of the executable.
#[derive(Clone, Debug)]
pub struct RegistrationPlan {
    pub id: String,
    pub executable: PathBuf,
    pub services: Vec<String>,
}

/// Everything that will be started.
#[derive(Debug)]
pub struct Plan {
    pub directory: PathBuf,
    pub spec: Spec,
    pub clusters: Vec<ClusterPlan>,
    pub wire: ProcessPlan,
    pub relays: Vec<Relay>,
    pub ports: Ports,
}

/// The host name under which every cluster's proxies find a service.
pub fn host(service: &str) -> String {
    format!("{service}.{NAMESPACE}.svc.clusterset.local")
}

/// The service that only that cluster has: its own productpage under a name of its own.
pub fn only_in(cluster: &str) -> String {
    format!("productpage-{cluster}")
}

/// The trust domain of a demo cluster.
pub fn trust_domain(cluster: &str) -> String {
    format!("{cluster}.example")
}

impl Spec {
    /// What cannot be built is said before anything is started.
    pub fn check(&self) -> Result<(), String> {
        let mut names = self.clusters.clone();
        names.sort();
        names.dedup();
        if names.len() != self.clusters.len() {
            return Err("a cluster is named twice".to_owned());
        }
        if !(2..=5).contains(&self.clusters.len()) {
            return Err("a demo has 2 to 5 clusters".to_owned());
        }
        for cluster in &self.clusters {
            cluster.parse::<hanse_identity::ClusterName>().map_err(|e| e.to_string())?;
        }
        if ![1, 3, 5].contains(&self.nodes) {
            return Err("a cluster of the demo has 1, 3 or 5 control nodes".to_owned());
        }
        Ok(())
    }
}

impl Plan {
    /// Reserves ports and says what to start; touches nothing on disk.
    pub fn make(directory: &Path, spec: Spec) -> anyhow::Result<Self> {
        let mut planner = Planner { directory, ports: Ports::new(), relays: Vec::new() };
        let mut clusters = Vec::new();
        for (index, cluster) in spec.clusters.iter().enumerate() {
            clusters.push(planner.cluster(cluster, index, spec.nodes)?);
        }
        let wire = planner.wire(&spec);
        let Planner { ports, relays, .. } = planner;
        Ok(Self { directory: directory.to_owned(), spec, clusters, wire, relays, ports })
    }
}

/// The file that a role's own executable path is made of; `account` names the deployment.
fn executable(directory: &Path, cluster: &str, account: &str) -> PathBuf {
    directory.join("bin").join(cluster).join(account).join("hanse")
}

struct Planner<'d> {
    directory: &'d Path,
    ports: Ports,
    relays: Vec<Relay>,
}

impl Planner<'_> {
    fn wire(&self, spec: &Spec) -> ProcessPlan {
        let control = self.directory.join("wire.sock");
        let key = Key { cluster: NO_CLUSTER.into(), role: Role::Wire, name: "wire-1".into() };
        let arguments = vec![
            "demo".into(),
            "wire".into(),
            format!("--relays={}", self.directory.join("relays.json").display()),
            format!("--control={}", control.display()),
            format!("--latency-ms={}", spec.wan_latency_ms),
        ];
        let addresses = BTreeMap::from([("socket".to_owned(), control.display().to_string())]);
        self.process(key, self.directory.join("bin/hanse"), arguments, addresses)
    }

    fn process(
        &self,
        key: Key,
        executable: PathBuf,
        arguments: Vec<String>,
        addresses: BTreeMap<String, String>,
    ) -> ProcessPlan {
        let file = format!("{}-{}-{}.log", key.cluster, key.role, key.name);
        let log = self.directory.join("logs").join(file.trim_start_matches("--"));
        ProcessPlan { key, executable, arguments, addresses, log }
    }

    fn relay(&mut self, cluster: &str, name: String, target: SocketAddr) -> anyhow::Result<SocketAddr> {
        let listen = self.ports.reserve()?;
        self.relays.push(Relay { cluster: cluster.to_owned(), name, listen, target });
        Ok(listen)
    }

    fn cluster(&mut self, cluster: &str, index: usize, nodes: usize) -> anyhow::Result<ClusterPlan> {
        let directory = self.directory.join(cluster);
        let mut plan = ClusterPlan {
            name: cluster.to_owned(),
            trust_domain: trust_domain(cluster),
            agent_socket: directory.join("agent.sock"),
            agent_token: directory.join("agent-1.token"),
            initial_nodes: directory.join("initial-nodes.json"),
            credential: self.directory.join("credentials").join(format!("{cluster}.json")),
            encryption_key: self.directory.join("credentials").join(format!("{cluster}-keys.key")),
            directory,
            nodes: Vec::new(),
            registrations: Vec::new(),
            processes: Vec::new(),
        };
        for raft_id in 1..=nodes as u64 {
            self.control(&mut plan, raft_id)?;
        }
        self.agent(&mut plan)?;
        let locality = Locality { region: format!("eu-{}", index + 1), zone: "a".into() };
        for number in 1..=GATEWAYS {
            self.gateway(&mut plan, number, &locality)?;
        }
        for deployment in &DEPLOYMENTS {
            self.deployment(&mut plan, deployment, &locality)?;
        }
        self.load(&mut plan, &locality)?;
        Ok(plan)
    }

    fn control(&mut self, plan: &mut ClusterPlan, raft_id: u64) -> anyhow::Result<()> {
        let name = format!("control-{raft_id}");
        let (address, admin) = (self.ports.reserve()?, self.ports.reserve()?);
        let peer_address = self.relay(&plan.name, format!("{}/{name}", plan.name), address)?;
        let data = plan.directory.join(&name);
        let arguments = vec![
            "control".into(),
            format!("--data-dir={}", data.display()),
            format!("--initial-nodes={}", plan.initial_nodes.display()),
            format!("--key-encryption-file={}", plan.encryption_key.display()),
            format!("--listen={address}"),
            format!("--admin={admin}"),
        ];
        let addresses = addresses([("api", address), ("admin", admin), ("peer", peer_address)]);
        let key = Key { cluster: plan.name.clone(), role: Role::Control, name: name.clone() };
        let executable = self.directory.join("bin/hanse");
        plan.processes.push(self.process(key, executable, arguments, addresses));
        plan.nodes.push(NodePlan { raft_id, name, data, address, peer_address });
        Ok(())
    }

    fn agent(&mut self, plan: &mut ClusterPlan) -> anyhow::Result<()> {
        let admin = self.ports.reserve()?;
        let mut arguments = vec![
            "agent".into(),
            format!("--data-dir={}", plan.directory.join("agent-1").display()),
            "--name=agent-1".into(),
            format!("--socket={}", plan.agent_socket.display()),
            format!("--join-token-file={}", plan.agent_token.display()),
            format!("--admin={admin}"),
        ];
        arguments.extend(control_flags(plan));
        let mut addresses = addresses([("admin", admin)]);
        addresses.insert("socket".into(), plan.agent_socket.display().to_string());
        let key = Key { cluster: plan.name.clone(), role: Role::Agent, name: "agent-1".into() };
        let executable = self.directory.join("bin/hanse");
        plan.processes.push(self.process(key, executable, arguments, addresses));
        Ok(())
    }

    fn gateway(&mut self, plan: &mut ClusterPlan, number: usize, at: &Locality) -> anyhow::Result<()> {
        let name = format!("gateway-{number}");
        let (tunnel, passthrough, admin) =
            (self.ports.reserve()?, self.ports.reserve()?, self.ports.reserve()?);
        let advertise = self.relay(&plan.name, format!("{}/{name}", plan.name), tunnel)?;
        let mut arguments = vec![
            "gateway".into(),
            format!("--name={name}"),
            format!("--socket={}", plan.agent_socket.display()),
            format!("--tunnel={tunnel}"),
            format!("--passthrough={passthrough}"),
            format!("--advertise={advertise}"),
            format!("--admin={admin}"),
            format!("--region={}", at.region),
            format!("--zone={}", at.zone),
        ];
        arguments.extend(control_flags(plan));
        let addresses = addresses([
            ("tunnel", tunnel),
            ("passthrough", passthrough),
            ("admin", admin),
            ("peer", advertise),
        ]);
        let executable = executable(self.directory, &plan.name, &name);
        plan.registrations.push(RegistrationPlan {
            id: format!("spiffe://{}/hanse/gateway/{name}", plan.trust_domain),
            executable: executable.clone(),
            services: Vec::new(),
        });
        let key = Key { cluster: plan.name.clone(), role: Role::Gateway, name };
        plan.processes.push(self.process(key, executable, arguments, addresses));
        Ok(())
    }

    fn deployment(
        &mut self,
        plan: &mut ClusterPlan,
        deployment: &Deployment,
        at: &Locality,
    ) -> anyhow::Result<()> {
        let mut services: Vec<String> =
            deployment.services.iter().map(|s| format!("{NAMESPACE}/{s}")).collect();
        if deployment.name == "productpage" {
            services.push(format!("{NAMESPACE}/{}", only_in(&plan.name)));
        }
        let executable = executable(self.directory, &plan.name, deployment.name);
        plan.registrations.push(RegistrationPlan {
            id: workload(plan, deployment.name),
            executable: executable.clone(),
            services: services.clone(),
        });
        for number in 1..=deployment.instances {
            let name = format!("{}-{number}", deployment.name);
            let (app, inbound, outbound, admin) =
                (self.ports.reserve()?, self.ports.reserve()?, self.ports.reserve()?, self.ports.reserve()?);
            plan.processes.push(self.app(plan, deployment, &name, app, outbound));
            let mut arguments = proxy_flags(plan, &name, outbound, admin, at);
            arguments.push(format!("--app={app}"));
            arguments.push(format!("--inbound={inbound}"));
            arguments.extend(services.iter().map(|s| format!("--service={s}")));
            let addresses =
                addresses([("app", app), ("inbound", inbound), ("outbound", outbound), ("admin", admin)]);
            let key = Key { cluster: plan.name.clone(), role: Role::Proxy, name };
            plan.processes.push(self.process(key, executable.clone(), arguments, addresses));
        }
        Ok(())
    }

    fn app(
        &self,
        plan: &ClusterPlan,
        deployment: &Deployment,
        name: &str,
        listen: SocketAddr,
        outbound: SocketAddr,
    ) -> ProcessPlan {
        let mut arguments = vec![
            "demo".into(),
            "app".into(),
            format!("--service={}", deployment.app),
            format!("--instance={name}"),
            format!("--version={}", deployment.version),
            format!("--cluster={}", plan.name),
            format!("--listen={listen}"),
            format!("--outbound={outbound}"),
        ];
        arguments.extend(deployment.calls.iter().map(|s| format!("--call={s}")));
        let key = Key { cluster: plan.name.clone(), role: Role::App, name: name.to_owned() };
        self.process(key, self.directory.join("bin/hanse"), arguments, addresses([("app", listen)]))
    }

    fn load(&mut self, plan: &mut ClusterPlan, at: &Locality) -> anyhow::Result<()> {
        let executable = executable(self.directory, &plan.name, LOAD);
        plan.registrations.push(RegistrationPlan {
            id: workload(plan, LOAD),
            executable: executable.clone(),
            services: Vec::new(),
        });
        let (outbound, admin) = (self.ports.reserve()?, self.ports.reserve()?);
        let arguments = proxy_flags(plan, LOAD_PROXY, outbound, admin, at);
        let addresses = addresses([("outbound", outbound), ("admin", admin)]);
        let key = Key { cluster: plan.name.clone(), role: Role::Proxy, name: LOAD_PROXY.into() };
        plan.processes.push(self.process(key, executable, arguments, addresses));
        Ok(())
    }
}

struct Locality {
    region: String,
    zone: String,
}

fn workload(plan: &ClusterPlan, account: &str) -> String {
    format!("spiffe://{}/ns/{NAMESPACE}/sa/{account}", plan.trust_domain)
}

fn control_flags(plan: &ClusterPlan) -> impl Iterator<Item = String> + '_ {
    plan.nodes.iter().map(|node| format!("--control={}", node.address))
}

fn proxy_flags(
    plan: &ClusterPlan,
    name: &str,
    outbound: SocketAddr,
    admin: SocketAddr,
    at: &Locality,
) -> Vec<String> {
    let mut arguments = vec![
        "proxy".into(),
        format!("--name={name}"),
        format!("--socket={}", plan.agent_socket.display()),
        format!("--outbound={outbound}"),
        format!("--admin={admin}"),
        format!("--region={}", at.region),
        format!("--zone={}", at.zone),
    ];
    arguments.extend(control_flags(plan));
    arguments
}

fn addresses<const N: usize>(pairs: [(&str, SocketAddr); N]) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(purpose, address)| (purpose.to_owned(), address.to_string())).collect()
}

impl ProcessPlan {
    /// The address for that purpose, if it is one of IP and port.
    pub fn address(&self, purpose: &str) -> Option<SocketAddr> {
        self.addresses.get(purpose).and_then(|a| a.parse().ok())
    }
}

impl Role {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Agent => "agent",
            Self::Gateway => "gateway",
            Self::Proxy => "proxy",
            Self::App => "app",
            Self::Wire => "wire",
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&format!("{}/{}@{}", self.role, self.name, self.cluster))
    }
}

impl Key {
    /// Whether `name`, `name@cluster`, `role/name` or `role/name@cluster` means this process.
    pub fn is_meant_by(&self, text: &str) -> bool {
        let (rest, cluster) = match text.split_once('@') {
            Some((rest, cluster)) => (rest, Some(cluster)),
            None => (text, None),
        };
        let (role, name) = match rest.split_once('/') {
            Some((role, name)) => (Some(role), name),
            None => (None, rest),
        };
        name == self.name
            && role.is_none_or(|r| r == self.role.as_str())
            && cluster.is_none_or(|c| c == self.cluster)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Spec {
        Spec {
            clusters: vec!["east".into(), "west".into()],
            nodes: 3,
            wan_latency_ms: 0,
            svid_lifetime_seconds: 0,
            rps: 20,
        }
    }

    #[test]
    fn a_plan_names_every_process_once_and_no_port_twice() {
        let plan = Plan::make(Path::new("/demo"), spec()).unwrap();
        let processes: Vec<_> = plan.clusters.iter().flat_map(|c| &c.processes).collect();
        let mut keys: Vec<_> = processes.iter().map(|p| &p.key).collect();
        keys.sort();
        let count = keys.len();
        keys.dedup();
        assert_eq!(keys.len(), count);
        // Per cluster: 3 control nodes, an agent, 2 gateways, 7 apps with a proxy each, and the load's proxy.
        assert_eq!(count, 2 * (3 + 1 + 2 + 7 * 2 + 1));
        let own =
            |p: &&ProcessPlan, purpose: &str| p.key.role != Role::App && p.addresses.contains_key(purpose);
        let mut listening: Vec<_> = ["api", "admin", "peer", "app", "inbound", "outbound", "tunnel"]
            .iter()
            .flat_map(|purpose| {
                processes.iter().filter(move |p| own(p, purpose)).map(move |p| &p.addresses[*purpose])
            })
            .collect();
        let count = listening.len();
        listening.sort();
        listening.dedup();
        assert_eq!(listening.len(), count);
        assert_eq!(plan.relays.len(), 2 * (3 + 2));
    }

    #[test]
    fn instances_of_a_deployment_share_identity_and_executable() {
        let plan = Plan::make(Path::new("/demo"), spec()).unwrap();
        let east = &plan.clusters[0];
        let proxies: Vec<_> = east
            .processes
            .iter()
            .filter(|p| p.key.role == Role::Proxy && p.key.name.starts_with("reviews-v1"))
            .collect();
        assert_eq!(proxies.len(), 2);
        assert_eq!(proxies[0].executable, proxies[1].executable);
        let ids: Vec<_> = east.registrations.iter().map(|r| r.id.as_str()).collect();
        assert!(ids.contains(&"spiffe://east.example/ns/shop/sa/reviews-v1"));
        assert!(ids.contains(&"spiffe://east.example/hanse/gateway/gateway-2"));
    }

    #[test]
    fn names_are_read_with_and_without_role_and_cluster() {
        let key = Key { cluster: "east".into(), role: Role::Proxy, name: "ratings-1".into() };
        for text in ["ratings-1", "ratings-1@east", "proxy/ratings-1", "proxy/ratings-1@east"] {
            assert!(key.is_meant_by(text), "{text}");
        }
        for text in ["ratings", "ratings-1@west", "app/ratings-1", "proxy/ratings-1@west"] {
            assert!(!key.is_meant_by(text), "{text}");
        }
    }

    #[test]
    fn a_demo_that_cannot_be_built_is_refused() {
        assert!(spec().check().is_ok());
        assert!(Spec { clusters: vec!["east".into()], ..spec() }.check().is_err());
        assert!(Spec { clusters: vec!["east".into(), "east".into()], ..spec() }.check().is_err());
        assert!(Spec { clusters: vec!["East".into(), "west".into()], ..spec() }.check().is_err());
        assert!(Spec { nodes: 2, ..spec() }.check().is_err());
    }
}
