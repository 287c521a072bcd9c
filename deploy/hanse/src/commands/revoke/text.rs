//! What people read of a revocation: what it would hit, and how far it is enforced.

use hanse_control::admin::{
    Gates, IntermediateItem, Proof, ProofState, ReachState, Receipt, ReceiptPart, RevokePreview, Tally,
};
use hanse_control::state::rotation::Gate;
use hanse_identity::proof::HandshakeOutcome;

/// Callers that are named, per cluster; the others are counted.
const NAMED: usize = 8;

/// What it would hit, before anything is done.
pub fn blast_radius(preview: &RevokePreview) -> String {
    let mut lines = vec![format!("  revoke         {}", preview.target)];
    if let Some(already) = &preview.already {
        lines.push(format!("  already        {already} hits it"));
    }
    let callers: std::collections::BTreeSet<_> = preview.reach.iter().flat_map(|r| &r.callers).collect();
    lines.push(format!(
        "  this affects   {} certificates, {} proxies, gateways and agents that run under it, {} registrations, {} callers",
        preview.certificates,
        preview.holders.len(),
        preview.registrations,
        callers.len()
    ));
    if !preview.holders.is_empty() {
        lines.push(format!("  holders        {}", preview.holders.join(" ")));
    }
    for one in preview.intermediates.iter().take(NAMED) {
        lines.push(format!("  intermediate   {}, and whatever it has signed", intermediate(one)));
    }
    if let Some(more) = preview.intermediates.len().checked_sub(NAMED).filter(|more| *more > 0) {
        lines.push(format!("  intermediate   {more} more"));
    }
    for reach in &preview.reach {
        let error = reach.error.as_ref().map(|e| format!("   ({e})")).unwrap_or_default();
        lines.push(format!(
            "  connections    {:<8} {} live   ({} of {} proxies and gateways answered){error}",
            reach.cluster.as_str(),
            reach.live_connections,
            reach.answered,
            reach.asked
        ));
        let named: Vec<String> = reach.callers.iter().take(NAMED).map(ToString::to_string).collect();
        let more = match reach.callers.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        if !named.is_empty() {
            lines.push(format!("  callers        {:<8} {}{more}", reach.cluster.as_str(), named.join(" ")));
        }
    }
    for service in &preview.sole_server_of {
        lines.push(format!("  outage         nobody else here may answer for {service}"));
    }
    lines.join("\n")
}

/// All that a receipt says, but for the last word.
pub fn receipt_lines(receipt: &Receipt) -> String {
    let gates = receipt.gates.as_ref().map(gates_lines).unwrap_or_default();
    let nested = receipt.intermediates.iter().take(NAMED);
    let nested = nested.map(|one| {
        format!("  nested    intermediate {}: what it has signed is refused with it\n", intermediate(one))
    });
    let parts = receipt.parts.iter().map(part_line).chain(nested).collect::<String>();
    parts + &proof_lines(&receipt.proof) + &gates
}

/// `<serial> of <holder> through agent <agent> until <time>`.
fn intermediate(one: &IntermediateItem) -> String {
    format!("{} of {} through agent {} until {}", one.serial, one.spiffe_id, one.agent, one.not_after)
}

/// How far the replacement of a revoked authority is.
fn gates_lines(gates: &Gates) -> String {
    let states = Gate::ALL.into_iter().map(|gate| {
        let (at, next) = (gates.reached.get(&gate), gates.reached.get(&gate.next()));
        match (at, next) {
            _ if gate == gates.gate => format!("{gate} now"),
            (Some(at), Some(next)) => format!("{gate} {:.1} s", next.since(*at).as_secs_f64()),
            _ => format!("{gate} waits"),
        }
    });
    let mut lines = format!("  gates     {}\n", states.collect::<Vec<_>>().join(" · "));
    for waits in gates.waits_for.iter().take(NAMED) {
        lines.push_str(&format!(
            "    waits for  {:<8} {} {}\n",
            waits.cluster.as_str(),
            waits.who,
            waits.why
        ));
    }
    if let Some(more) = gates.waits_for.len().checked_sub(NAMED).filter(|more| *more > 0) {
        lines.push_str(&format!("    waits for  {more} more\n"));
    }
    lines
}

/// What became of showing what is revoked to listeners of the mesh.
fn proof_lines(proof: &Proof) -> String {
    match proof.state {
        ProofState::NotHeld => {
            return "  proof     not held: no agent that is believed has a certificate of it with its key\n"
                .to_owned();
        }
        _ if proof.tried.is_empty() => {
            return format!("  proof     {} held, and no listener to show them to\n", proof.held);
        }
        _ => {}
    }
    let mut lines = String::new();
    for tried in proof.tried.iter().take(NAMED) {
        let (attempt, agent) = (&tried.attempt, &tried.agent);
        let (state, why) = match &attempt.outcome {
            HandshakeOutcome::Accepted => ("ACCEPTED", String::new()),
            HandshakeOutcome::UnderWay => ("under way", String::new()),
            HandshakeOutcome::Refused { alert } => ("refused", format!(": {alert}")),
            HandshakeOutcome::NoAnswer { why } => ("no answer", format!(": {why}")),
        };
        lines.push_str(&format!(
            "  proof     {:<8} {state:<9} by {} {}, handshake of agent {agent} with {}{why}\n",
            attempt.cluster.as_str(),
            attempt.kind.as_str(),
            attempt.door,
            attempt.serial
        ));
    }
    if let Some(more) = proof.tried.len().checked_sub(NAMED).filter(|more| *more > 0) {
        lines.push_str(&format!("  proof     and {more} more\n"));
    }
    lines
}

/// How far one cluster has come with it, and who there is behind.
fn part_line(part: &ReceiptPart) -> String {
    let of = |tally: Tally| format!("{}/{}", tally.enforced, tally.total);
    let state = match part.state {
        ReachState::Committed => "enforced",
        ReachState::NotCommitted => "not yet committed",
        ReachState::Unreachable => "unreachable",
    };
    let mut line = format!(
        "  {state}  {:<8} {} proxies, {} gateways, {} agents, {} SDS clients   closed {} live connections\n",
        part.cluster.as_str(),
        of(part.proxies),
        of(part.gateways),
        of(part.agents),
        of(part.sds),
        part.closed_connections
    );
    for behind in &part.behind {
        let how = if behind.connected { "connected" } else { "gone" };
        line.push_str(&format!(
            "    behind   {} {} ({how}, at #{})\n",
            behind.kind.as_str(),
            behind.name,
            behind.applied
        ));
    }
    for node in &part.nodes_silent {
        line.push_str(&format!("    silent   control node {node}\n"));
    }
    if let Some(error) = &part.error {
        line.push_str(&format!("    error    {error}\n"));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use hanse_control::admin::{Meta, PreviewReach, part_of};
    use hanse_identity::{RevocationTarget, SpiffeId, Timestamp};

    fn ids(count: usize) -> Vec<SpiffeId> {
        (0..count).map(|n| format!("spiffe://west.example/ns/shop/sa/caller-{n}").parse().unwrap()).collect()
    }

    fn reach(cluster: &str, callers: Vec<SpiffeId>) -> PreviewReach {
        let cluster = cluster.parse().unwrap();
        PreviewReach { cluster, live_connections: 4, callers, answered: 7, asked: 7, error: None }
    }

    #[test]
    fn the_blast_radius_names_certificates_and_callers() {
        let target = RevocationTarget::Identity("spiffe://east.example/ns/shop/sa/ratings".parse().unwrap());
        let preview = RevokePreview {
            meta: Meta {
                cluster: "east".parse().unwrap(),
                raft_index: 1,
                observed_at: Timestamp(1),
                partial: false,
            },
            target,
            already: None,
            certificates: 2,
            holders: vec!["ratings-1".to_owned()],
            registrations: 1,
            sole_server_of: Vec::new(),
            intermediates: vec![IntermediateItem {
                serial: hanse_identity::Serial::from_random([7; 16]),
                spiffe_id: ids(1).remove(0),
                agent: "host-1".parse().unwrap(),
                not_after: Timestamp(1),
            }],
            // The first of the callers is seen in both clusters.
            reach: vec![reach("east", ids(1)), reach("west", ids(NAMED + 2))],
            warnings: Vec::new(),
        };
        let text = blast_radius(&preview);
        assert!(text.contains("2 certificates, 1 proxies, gateways and agents"), "{text}");
        assert!(text.contains(&format!("{} callers", NAMED + 2)), "{text}");
        assert!(
            text.contains("callers        east     spiffe://west.example/ns/shop/sa/caller-0\n"),
            "{text}"
        );
        let intermediate =
            format!("  intermediate   4707{} of spiffe://west.example/ns/shop/sa/caller-0", "07".repeat(14));
        assert!(text.contains(&intermediate) && text.contains("through agent host-1 until"), "{text}");
        assert!(text.contains("caller-7 and 2 more") && !text.contains("caller-9"), "{text}");
    }

    #[test]
    fn the_gates_of_a_revoked_authority_say_how_far_it_is_and_for_whom_it_waits() {
        use hanse_control::admin::WaitsFor;
        let waits = |n: usize| WaitsFor {
            cluster: "west".parse().unwrap(),
            who: format!("proxy reviews-{n}"),
            why: "has acknowledged #4".to_owned(),
        };
        let reached = [(Gate::Prepare, Timestamp(1_000)), (Gate::Spread, Timestamp(1_400))].into();
        let waits_for = (0..NAMED + 1).map(waits).collect();
        let gates = Gates { rotation: 7, gate: Gate::Spread, reached, waits_for };
        let text = gates_lines(&gates);
        let line = "  gates     prepare 0.4 s · spread now · activate waits · drain waits · retire waits\n";
        assert!(text.starts_with(line), "{text}");
        assert!(text.contains("    waits for  west     proxy reviews-0 has acknowledged #4\n"), "{text}");
        assert!(text.ends_with("    waits for  1 more\n"), "{text}");
    }

    #[test]
    fn the_proof_says_who_showed_what_to_whom_and_what_became_of_it() {
        use hanse_control::admin::Tried;
        use hanse_identity::proof::{Attempt, DoorKind};
        let tried = |cluster: &str, outcome| Tried {
            agent: "host-1".parse().unwrap(),
            attempt: Attempt {
                serial: hanse_identity::Serial::from_random([7; 16]),
                id: ids(1).remove(0),
                cluster: cluster.parse().unwrap(),
                kind: DoorKind::Gateway,
                door: "gateway-1".parse().unwrap(),
                at: Timestamp(1),
                outcome,
            },
        };
        let refused = tried("east", HandshakeOutcome::Refused { alert: "CertificateRevoked".to_owned() });
        let accepted = tried("west", HandshakeOutcome::Accepted);
        let proof = Proof { state: ProofState::Accepted, held: 1, tried: vec![accepted, refused] };
        let text = proof_lines(&proof);
        assert!(
            text.starts_with(
                "  proof     west     ACCEPTED  by gateway gateway-1, handshake of agent host-1"
            )
        );
        assert!(text.contains("  proof     east     refused   by gateway gateway-1"), "{text}");
        assert!(text.trim_end().ends_with(": CertificateRevoked"), "{text}");
        assert!(proof_lines(&Proof::default()).contains("not held"));
        let nowhere = Proof { state: ProofState::NoAnswer, held: 2, tried: Vec::new() };
        assert!(proof_lines(&nowhere).contains("2 held, and no listener"));
    }

    #[test]
    fn a_line_counts_clients_of_sds_beside_proxies_gateways_and_agents() {
        let id = "r-1@east.example".parse().unwrap();
        let mut part = part_of("east".parse().unwrap(), &id, Some(1), [], Default::default());
        part.sds = Tally { enforced: 2, total: 3 };
        let line = part_line(&part);
        assert!(line.contains("0/0 proxies, 0/0 gateways, 0/0 agents, 2/3 SDS clients"), "{line}");
    }
}
