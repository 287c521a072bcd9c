//! Loops on real threads, with disks in memory and links in process.

use std::collections::BTreeMap;

use hanse_federation::policy::document::{HttpRoute, PolicySpec};
use hanse_federation::policy::{PolicyDocument, PolicyKey, PolicyKind};
use hanse_identity::{AuthorityCertificate, AuthorityState, KeyId, ServiceName};

use super::*;
use crate::command::{Answer, Refusal};
use crate::consensus::{Batch, Recovered};
use crate::state::NodeRecord;

fn node_file(raft_id: u64) -> NodeFile {
    let name = format!("east-{raft_id}");
    let number = u8::try_from(raft_id).unwrap();
    NodeFile {
        cluster: "east".parse().unwrap(),
        trust_domain: "east.example".parse().unwrap(),
        region: String::new(),
        zone: String::new(),
        record: NodeRecord {
            raft_id,
            name: name.parse().unwrap(),
            address: format!("127.0.0.1:{}", 7000 + raft_id),
            peer_address: format!("127.0.0.1:{}", 7000 + raft_id),
            intermediate: None,
            authority: AuthorityCertificate {
                der: vec![number],
                key_id: KeyId([number; 32]),
                subject: format!("CN={name}"),
                not_after: Timestamp(u64::MAX),
                state: AuthorityState::Active,
            },
        },
    }
}

fn apply(number: u64) -> Command {
    let name: ServiceName = format!("shop/policy-{number}").parse().unwrap();
    let spec = PolicySpec::HttpRoute(HttpRoute::default());
    Command::PolicyApply { documents: vec![PolicyDocument { name, created: Timestamp(0), spec }] }
}

fn key(number: u64) -> PolicyKey {
    PolicyKey { kind: PolicyKind::HttpRoute, name: format!("shop/policy-{number}").parse().unwrap() }
}

/// Links in process. A node that is not in the table cannot be reached.
#[derive(Clone, Default)]
struct Mesh {
    nodes: Arc<Mutex<BTreeMap<u64, Handle>>>,
}

struct MeshLink {
    own: u64,
    mesh: Mesh,
}

impl Mesh {
    fn get(&self, id: u64) -> Option<Handle> {
        self.nodes.lock().unwrap().get(&id).cloned()
    }
}

impl Transport for MeshLink {
    fn send(&self, to: u64, messages: Vec<Outgoing>) {
        let own = self.mesh.get(self.own);
        let target = self.mesh.get(to).filter(|_| own.is_some());
        for message in messages {
            let sent = target.as_ref().is_some_and(|t| t.inbox().message(self.own, message.bytes));
            if let Some(own) = own.clone().filter(|_| message.snapshot) {
                tokio::spawn(async move { own.inbox().snapshot_sent(to, sent).await });
            }
        }
    }

    fn forward(&self, to: u64, proposal: Arc<Proposal>, within: Duration) -> Forwarding {
        let target = self.mesh.get(to);
        Box::pin(async move {
            let Some(target) = target else {
                return Err(ForwardError::Unreachable("it is not there".into()));
            };
            match target.propose_here(proposal, within).await {
                Attempt::Applied(outcome) => Ok(outcome),
                Attempt::NotLeader => Err(ForwardError::NotLeader),
                other => Err(ForwardError::Unreachable(format!("{other:?}"))),
            }
        })
    }
}

/// Three nodes and their disks.
struct Cluster {
    mesh: Mesh,
    disks: BTreeMap<u64, MemoryDisk>,
    running: BTreeMap<u64, Running>,
}

impl Cluster {
    fn new() -> Self {
        let disks = (1..=3).map(|id| (id, MemoryDisk::new())).collect();
        let mut cluster = Self { mesh: Mesh::default(), disks, running: BTreeMap::new() };
        (1..=3).for_each(|id| cluster.start(id));
        cluster
    }

    fn start(&mut self, id: u64) {
        let nodes: Vec<NodeFile> = (1..=3).map(node_file).collect();
        let mut options = Options::new(PathBuf::new(), node_file(id), nodes);
        options.timing.tick = Duration::from_millis(10);
        options.snapshot_every = 30;
        options.snapshot_margin = 5;
        let opened = open_on(Box::new(self.disks[&id].clone()), &options).unwrap();
        let link = MeshLink { own: id, mesh: self.mesh.clone() };
        let (handle, running) = opened.start(Arc::new(link)).unwrap();
        self.mesh.nodes.lock().unwrap().insert(id, handle);
        self.running.insert(id, running);
    }

    /// As a kill: nothing is handed over, nobody hears of it.
    async fn kill(&mut self, id: u64) {
        self.mesh.nodes.lock().unwrap().remove(&id);
        let mut running = self.running.remove(&id).unwrap();
        running.kill();
        running.ended().await;
    }

    fn handle(&self, id: u64) -> Handle {
        self.mesh.get(id).unwrap()
    }

    async fn leader(&self) -> u64 {
        let any = *self.running.keys().next().unwrap();
        let mut status = self.handle(any).statuses();
        let found = status.wait_for(|s| s.leader.is_some_and(|l| self.running.contains_key(&l)));
        let found = tokio::time::timeout(Duration::from_secs(10), found).await.unwrap().unwrap();
        found.leader.unwrap()
    }
}

async fn caught_up(handle: &Handle, revision: u64) {
    let mut states = handle.states();
    let reached = states.wait_for(|s| s.view.revision.0 >= revision);
    tokio::time::timeout(Duration::from_secs(10), reached).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_group_of_one_writes_reads_and_tells() {
    let (handle, running) = in_memory(node_file(1)).unwrap();
    let mut feed = handle.feed();
    let first = handle.propose("me", apply(1)).await.unwrap();
    assert_eq!(first.result, Ok(Answer::Done));
    assert!(handle.state().view.policies.contains_key(&key(1)));
    let refused = handle.propose("me", Command::PolicyDelete { keys: vec![key(9)] }).await.unwrap();
    assert!(matches!(refused.result, Err(Refusal::NotFound { .. })));
    let second = handle.propose("me", apply(2)).await.unwrap();
    let read = handle.read().await.unwrap();
    assert!(read.view.revision.0 >= second.revision);
    assert!(handle.status().is_leader);

    // The feed and the ring tell the same, in order and without a gap.
    let since = handle.changes_since(first.revision - 1).unwrap();
    assert_eq!(since.iter().map(|a| a.changes.len()).collect::<Vec<_>>(), [1, 0, 1]);
    assert_eq!(handle.changes_since(second.revision), Some(Vec::new()));
    assert_eq!(handle.changes_since(second.revision + 1), None);
    let mut told = Vec::new();
    while told.last().is_none_or(|a: &Arc<Applied>| a.revision < second.revision) {
        told.push(feed.recv().await.unwrap());
    }
    assert!(told.windows(2).all(|w| w[0].revision + 1 == w[1].revision));
    assert_eq!(told[told.len() - 3..], since[..]);

    assert_eq!(running.stop().await, Ended::Stopped);
    assert_eq!(handle.propose("me", apply(3)).await, Err(ProposeError::ShuttingDown));
    assert_eq!(handle.read().await, Err(ProposeError::ShuttingDown));
}

#[tokio::test]
async fn what_is_too_large_is_refused_at_the_door() {
    let (handle, _running) = in_memory(node_file(1)).unwrap();
    let note = "n".repeat(node::MAX_PROPOSAL_BYTES);
    let target = hanse_identity::RevocationTarget::Identity("spiffe://east.example/x".parse().unwrap());
    let command = Command::Revoke {
        target,
        reason: hanse_identity::Reason::Hold,
        note,
        expires: None,
        reissue: false,
        closing: Default::default(),
    };
    assert!(matches!(handle.propose("me", command).await, Err(ProposeError::TooLarge(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_node_takes_a_write_and_has_it_when_it_answers() {
    let cluster = Cluster::new();
    for number in 0..30 {
        let handle = cluster.handle(1 + number % 3);
        let outcome = handle.propose("me", apply(number)).await.unwrap();
        assert_eq!(outcome.result, Ok(Answer::Done));
        assert!(handle.state().view.policies.contains_key(&key(number)));
        let elsewhere = cluster.handle(1 + (number + 1) % 3).read().await.unwrap();
        assert!(elsewhere.view.policies.contains_key(&key(number)), "a read elsewhere sees it");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_leader_loses_no_write_and_comes_back_by_snapshot() {
    let mut cluster = Cluster::new();
    let mut written = 0;
    for _ in 0..3 {
        let leader = cluster.leader().await;
        let other = (1..=3).find(|id| *id != leader).unwrap();
        let handle = cluster.handle(other);
        handle.propose("me", apply(written)).await.unwrap();
        written += 1;
        cluster.kill(leader).await;
        let mut last = 0;
        for _ in 0..50 {
            let outcome = handle.propose("me", apply(written)).await.unwrap();
            assert_eq!(outcome.result, Ok(Answer::Done));
            last = outcome.revision;
            written += 1;
        }
        cluster.start(leader);
        caught_up(&cluster.handle(leader), last).await;
        let policies = cluster.handle(leader).state().view.policies.len();
        assert_eq!(u64::try_from(policies).unwrap(), written);
    }
    // Its log was truncated meanwhile: the entries are not all there any more.
    let leader = cluster.leader().await;
    let status = cluster.handle(leader).status();
    assert!(status.first_index > 1 && status.snapshot_index > 1, "{status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_stops_in_order_hands_over() {
    let mut cluster = Cluster::new();
    let leader = cluster.leader().await;
    cluster.handle(leader).propose("me", apply(1)).await.unwrap();
    let running = cluster.running.remove(&leader).unwrap();
    assert_eq!(running.stop().await, Ended::Stopped);
    cluster.mesh.nodes.lock().unwrap().remove(&leader);
    let next = cluster.leader().await;
    assert_ne!(next, leader);
    let outcome = cluster.handle(next).propose("me", apply(2)).await.unwrap();
    assert_eq!(outcome.result, Ok(Answer::Done));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_nothing_is_promised() {
    let mut cluster = Cluster::new();
    let leader = cluster.leader().await;
    let handle = cluster.handle(leader);
    handle.propose("me", apply(1)).await.unwrap();
    for other in (1..=3).filter(|id| *id != leader) {
        cluster.kill(other).await;
    }
    let proposal =
        Proposal { id: 77, now: keys::now(), actor: "me".into(), certificate: None, command: apply(2) };
    let answer = handle.propose_until(Arc::new(proposal), Duration::from_millis(700)).await;
    assert!(matches!(answer, Err(ProposeError::Timeout(_) | ProposeError::NoLeader)), "{answer:?}");
    // Check-quorum: it does not believe to lead for long.
    let mut status = handle.statuses();
    let resigned = status.wait_for(|s| !s.is_leader);
    tokio::time::timeout(Duration::from_secs(10), resigned).await.unwrap().unwrap();
}

/// A disk that fails at one write, and shows what was written before.
struct FailingDisk {
    disk: MemoryDisk,
    left: u32,
}

impl Disk for FailingDisk {
    fn load(&mut self) -> Result<Option<Recovered>, DiskError> {
        self.disk.load()
    }

    fn write(&mut self, batch: &Batch) -> Result<(), DiskError> {
        if self.left == 0 {
            return Err(DiskError::Write("no space left on device".into()));
        }
        self.left -= 1;
        self.disk.write(batch)
    }
}

#[tokio::test]
async fn a_failed_write_ends_the_node_and_is_never_acknowledged() {
    for left in 2..9 {
        let disk = MemoryDisk::new();
        let failing = FailingDisk { disk: disk.clone(), left };
        let mut options = Options::new(PathBuf::new(), node_file(1), vec![node_file(1)]);
        options.timing.tick = Duration::from_millis(2);
        let opened = open_on(Box::new(failing), &options).unwrap();
        let (handle, mut running) = opened.start(Arc::new(NoTransport)).unwrap();
        let mut acknowledged = 0;
        while handle.propose("me", apply(acknowledged)).await.is_ok() {
            acknowledged += 1;
        }
        assert_eq!(
            running.ended().await,
            Ended::Failed("the store cannot be written: no space left on device".into())
        );
        // What was acknowledged is there when the disk is read again.
        let (again, _running) =
            open_on(Box::new(disk), &options).unwrap().start(Arc::new(NoTransport)).unwrap();
        let state = again.read().await.unwrap();
        assert!(u64::try_from(state.view.policies.len()).unwrap() >= acknowledged);
    }
}

#[test]
fn founding_is_checked() {
    let founding =
        |own: &NodeFile, nodes: &[NodeFile]| founding_state(own, nodes).map(|s| s.private.nodes.len());
    let nodes: Vec<NodeFile> = (1..=3).map(node_file).collect();
    assert!(matches!(founding(&nodes[0], &nodes), Ok(3)));
    assert!(matches!(founding(&nodes[0], &[]), Err(StartError::NoInitialNodes)));
    let refused = |nodes: &[NodeFile]| matches!(founding(&nodes[0], nodes), Err(StartError::InitialNodes(_)));
    assert!(matches!(founding(&node_file(4), &nodes), Err(StartError::InitialNodes(_))));
    let mut foreign = nodes.clone();
    foreign[1].cluster = "west".parse().unwrap();
    assert!(refused(&foreign));
    let mut twins = nodes.clone();
    twins[2].record.raft_id = 2;
    assert!(refused(&twins));
    let mut twins = nodes.clone();
    twins[2].record.authority = twins[1].record.authority.clone();
    assert!(refused(&twins));
}

#[test]
fn a_directory_belongs_to_one_node() {
    let disk = MemoryDisk::new();
    let nodes: Vec<NodeFile> = (1..=3).map(node_file).collect();
    let options = |own: NodeFile| Options::new(PathBuf::new(), own, nodes.clone());
    open_on(Box::new(disk.clone()), &options(node_file(1))).unwrap();
    // The initial nodes matter only once.
    let mut later = options(node_file(1));
    later.initial_nodes.clear();
    assert!(open_on(Box::new(disk.clone()), &later).is_ok());
    let mut other = node_file(1);
    other.record.authority.key_id = KeyId([9; 32]);
    let refused = open_on(Box::new(disk), &options(other));
    assert!(matches!(refused, Err(StartError::AnotherNode { .. })));
}

#[test]
fn the_ring_knows_what_it_does_not_know() {
    let applied = |revision, reset| Arc::new(Applied { revision, changes: Vec::new(), reset });
    let mut ring = Ring::default();
    assert_eq!(ring.since(1, 1), Some(Vec::new()));
    assert_eq!(ring.since(0, 1), None);
    (2..=5).for_each(|revision| ring.push(applied(revision, false)));
    assert_eq!(ring.since(1, 5).unwrap().len(), 4);
    assert_eq!(ring.since(4, 5).unwrap().len(), 1);
    assert_eq!(ring.since(0, 5), None);
    assert_eq!(ring.since(6, 5), None);
    ring.push(applied(50, true));
    assert_eq!(ring.since(5, 50), None);
    assert_eq!(ring.since(50, 50), Some(Vec::new()));
    ring.push(applied(51, false));
    assert_eq!(ring.since(50, 51).unwrap().len(), 1);
    let many = 52..52 + u64::try_from(RING).unwrap();
    many.clone().for_each(|revision| ring.push(applied(revision, false)));
    assert_eq!(ring.applied.len(), RING);
    assert_eq!(ring.since(50, many.end - 1), None);
}
