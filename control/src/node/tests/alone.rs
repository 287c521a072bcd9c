//! What a node does with what it should never be given, and a group of one.

use super::*;

#[test]
fn a_group_of_one_commits_at_once_and_remembers() {
    let mut disk = MemoryDisk::new();
    let recovered = recover(&mut disk, || founded(1)).unwrap();
    let config =
        Config { raft_id: 1, timing: Timing::default(), seed: 3, snapshot_every: 1000, snapshot_margin: 5 };
    let mut node = Node::open(config, recovered, Timestamp(0)).unwrap();
    let mut now = Timestamp(0);
    while !node.status().is_leader {
        now = node.deadline();
        for output in node.handle(now, Input::Tick) {
            if let Output::Store(batch) = output {
                disk.write(&batch).unwrap();
            }
        }
    }
    let documents = Vec::new();
    let proposal = Proposal {
        id: 9,
        now,
        actor: "a".into(),
        certificate: None,
        command: Command::PolicyApply { documents },
    };
    let outputs = node.handle(now, Input::Propose(Arc::new(proposal.clone())));
    let replies: Vec<&Outcome> = outputs
        .iter()
        .filter_map(|o| match o {
            Output::Reply { id: 9, outcome } => Some(outcome),
            _ => None,
        })
        .collect();
    assert_eq!(replies.len(), 1);
    assert_eq!(replies[0].result, Ok(Answer::Already));
    // The same again has the same outcome, whatever has happened since.
    let first = replies[0].clone();
    let outputs = node.handle(now, Input::Propose(Arc::new(proposal)));
    assert!(outputs.iter().any(|o| matches!(o, Output::Reply { id: 9, outcome } if *outcome == first)));
}

#[test]
fn messages_that_no_member_sends_change_nothing() {
    let mut world = World::new(5);
    world.faults = false;
    while world.leaders.is_empty() {
        world.step();
    }
    let node = world.machines.get_mut(&1).unwrap().node.as_mut().unwrap();
    let before = node.status();
    for (from, bytes) in [(2, b"not protobuf".to_vec()), (9, Vec::new()), (2, Vec::new())] {
        let outputs = node.handle(world.now, Input::Message { from, bytes });
        assert!(outputs.iter().any(|o| matches!(o, Output::Dropped { .. })));
    }
    assert_eq!(node.status(), before);
}

#[test]
fn an_entry_that_cannot_be_read_stops_the_node() {
    let mut recovered = recover(&mut MemoryDisk::new(), || founded(1)).unwrap();
    recovered.entries.push(Entry {
        index: 2,
        term: 1,
        data: b"{\"id\":1,\"command\":\"fly\"}".to_vec().into(),
    });
    recovered.hard_state.commit = 2;
    let config =
        Config { raft_id: 1, timing: Timing::default(), seed: 3, snapshot_every: 1000, snapshot_margin: 5 };
    let mut node = Node::open(config, recovered, Timestamp(0)).unwrap();
    let outputs = node.handle_all(Timestamp(0), []);
    assert!(matches!(outputs.last(), Some(Output::Stop { .. })));
    assert!(node.handle(Timestamp(50), Input::Tick).is_empty());
}

#[test]
fn what_does_not_hold_together_is_not_opened() {
    let good = recover(&mut MemoryDisk::new(), || founded(3)).unwrap();
    let config =
        Config { raft_id: 1, timing: Timing::default(), seed: 3, snapshot_every: 1000, snapshot_margin: 5 };
    assert!(Node::open(config, good.clone(), Timestamp(0)).is_ok());
    let mut hole = good.clone();
    hole.entries.push(Entry { index: 3, term: 1, data: Default::default() });
    let mut short = good.clone();
    short.hard_state.commit = 5;
    let mut damaged = good.clone();
    damaged.snapshot.data = damaged.snapshot.data[..damaged.snapshot.data.len() - 1].to_vec().into();
    for bad in [hole, short, damaged] {
        assert!(Node::open(config, bad, Timestamp(0)).is_err());
    }
    let stranger = Config { raft_id: 4, ..config };
    assert!(matches!(Node::open(stranger, good, Timestamp(0)), Err(OpenError::NotAVoter(4, _))));
}
