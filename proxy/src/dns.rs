//! DNS, the pure part: what names of the mesh are answered with, and which questions are somebody else's to answer.
//!
//! `*.clusterset.local` is ours, and what is not there does not exist. Of `*.svc.cluster.local` the services that the mesh knows
//! are ours; the rest is the business of whoever answered it before. So are the names of virtual addresses.

use hanse_federation::addresses::{Addresses, is_virtual};
use hanse_federation::host::{Reach, ServiceHost};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::{DnsError, NetError, NoRecords};
use hickory_resolver::proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA, PTR, SOA};
use hickory_resolver::proto::rr::{DNSClass, Name, RData, Record, RecordType};

/// What becomes of a message.
#[derive(Debug)]
pub enum Decision {
    /// This is the answer; how it is counted.
    Answer(Box<Message>, &'static str),
    /// Others are to be asked.
    Forward(Query),
    /// It is no question, and an answer to it could be answered again.
    Ignore,
}

/// Seconds for which an answer of ours may be kept. The addresses stay; which names there are does not.
pub const TTL: u32 = 5;
/// What fits into a datagram where nobody can say what the path takes (DNS flag day 2020).
pub const MAX_DATAGRAM: u16 = 1232;
const CLUSTERSET: &str = "clusterset.local";
const CLUSTER: &str = "svc.cluster.local";
/// Below which the names of virtual addresses are (RFC 1035 §3.5, RFC 3596 §2.5).
const V4_NAMES: &str = "240.in-addr.arpa";
const V6_NAMES: &str = "5.6.3.7.e.6.1.6.8.6.d.f.ip6.arpa";

/// Decides about one message. `None`: there is no View yet, so that nobody knows which names exist.
pub fn decide(request: &Message, addresses: Option<&Addresses>) -> Decision {
    let metadata = &request.metadata;
    if metadata.message_type != MessageType::Query {
        return Decision::Ignore;
    }
    let refused = |code, label| Decision::Answer(Box::new(refusal(request, code)), label);
    if metadata.op_code != OpCode::Query {
        return refused(ResponseCode::NotImp, "refused");
    }
    let [query] = request.queries.as_slice() else { return refused(ResponseCode::FormErr, "refused") };
    if request.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return refused(ResponseCode::BADVERS, "refused");
    }
    let is_transfer = matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR);
    if query.query_class() != DNSClass::IN || is_transfer {
        return refused(ResponseCode::Refused, "refused");
    }
    let name = query.name().to_ascii().trim_end_matches('.').to_ascii_lowercase();
    let Some(zone) = zone(&name, query.name(), addresses) else { return Decision::Forward(query.clone()) };
    let Some(addresses) = addresses else { return refused(ResponseCode::ServFail, "failed") };
    let mut answer = reply(request, ResponseCode::NoError);
    answer.metadata.authoritative = true;
    let label = match found(&name, query, addresses) {
        Found::Records(records) if !records.is_empty() => {
            answer.add_answers(records);
            "mesh"
        }
        Found::Records(_) => "no_data",
        Found::Nothing => {
            answer.metadata.response_code = ResponseCode::NXDomain;
            "no_such_name"
        }
    };
    if answer.answers.is_empty() {
        answer.add_authority(soa(zone));
    }
    Decision::Answer(Box::new(answer), label)
}

/// What others answered, as an answer to the request; how it is counted.
pub fn forwarded(request: &Message, outcome: Result<Lookup, NetError>) -> (Message, &'static str) {
    match outcome {
        Ok(lookup) => {
            let mut answer = reply(request, ResponseCode::NoError);
            answer.add_answers(lookup.answers().iter().cloned());
            (answer, "forwarded")
        }
        Err(NetError::Dns(DnsError::NoRecordsFound(none))) => {
            let NoRecords { response_code, soa, .. } = none;
            let mut answer = reply(request, response_code);
            if let Some(soa) = soa {
                answer.add_authority(soa.into_record_of_rdata());
            }
            (answer, "forwarded")
        }
        Err(NetError::Dns(DnsError::ResponseCode(code))) => (reply(request, code), "forwarded"),
        Err(_) => (refusal(request, ResponseCode::ServFail), "failed"),
    }
}

/// An answer without records.
pub fn refusal(request: &Message, code: ResponseCode) -> Message {
    reply(request, code)
}

/// As bytes, for a datagram of the size that the asker takes: what does not fit is to be asked for by TCP.
pub fn to_datagram(request: &Message, answer: &Message) -> Option<Vec<u8>> {
    let most = usize::from(request.max_payload().min(MAX_DATAGRAM));
    let bytes = answer.to_vec().ok()?;
    if bytes.len() <= most { Some(bytes) } else { answer.truncate().to_vec().ok() }
}

enum Found {
    /// The name exists; these are its records of the type that was asked for.
    Records(Vec<Record>),
    Nothing,
}

/// The zone of ours that a name is in; `None`: it is in none.
fn zone(name: &str, wire: &Name, addresses: Option<&Addresses>) -> Option<&'static str> {
    let is_below =
        |zone: &str| name == zone || name.strip_suffix(zone).is_some_and(|rest| rest.ends_with('.'));
    if is_below(CLUSTERSET) {
        return Some(CLUSTERSET);
    }
    if is_below(CLUSTER) {
        let host = ServiceHost::parse(name).filter(|host| host.reach == Reach::Cluster)?;
        // Whether the mesh has it is not known yet: who asks has to come again, not to get past the mesh.
        return addresses.is_none_or(|addresses| addresses.of(&host).is_some()).then_some(CLUSTER);
    }
    let network = wire.parse_arpa_name().ok().filter(|network| is_virtual(network.addr()))?;
    Some(if network.addr().is_ipv4() { V4_NAMES } else { V6_NAMES })
}

fn found(name: &str, query: &Query, addresses: &Addresses) -> Found {
    let record = |data| Record::from_rdata(query.name().clone(), TTL, data);
    if let Ok(network) = query.name().parse_arpa_name() {
        let is_whole = network.prefix_len() == network.max_prefix_len();
        let host = addresses.at(network.addr()).filter(|_| is_whole);
        let named = host.and_then(|host| Name::from_ascii(host.to_host() + ".").ok());
        return match named {
            Some(named) if matches!(query.query_type(), RecordType::PTR | RecordType::ANY) => {
                Found::Records(vec![record(RData::PTR(PTR(named)))])
            }
            Some(_) => Found::Records(Vec::new()),
            None if is_whole => Found::Nothing,
            None => Found::Records(Vec::new()),
        };
    }
    // Without its reach two labels would do for a name, which is for Host headers only.
    let host = ServiceHost::parse(name).filter(|_| name.ends_with(".local"));
    match host.and_then(|host| addresses.of(&host)) {
        Some(pair) => Found::Records(match query.query_type() {
            RecordType::A | RecordType::ANY => vec![record(RData::A(A(pair.v4)))],
            RecordType::AAAA => vec![record(RData::AAAA(AAAA(pair.v6)))],
            _ => Vec::new(),
        }),
        None if is_above(name, addresses) => Found::Records(Vec::new()),
        None => Found::Nothing,
    }
}

/// A name that has no records, and names below it that have (RFC 8020): to deny it would deny these.
fn is_above(name: &str, addresses: &Addresses) -> bool {
    match name.strip_suffix(CLUSTERSET).map(|rest| rest.trim_end_matches('.')) {
        Some("" | "svc") => true,
        Some(rest) => rest.strip_suffix(".svc").is_some_and(|namespace| addresses.has_namespace(namespace)),
        None => false,
    }
}

fn reply(request: &Message, code: ResponseCode) -> Message {
    let mut answer = Message::response(request.metadata.id, request.metadata.op_code);
    answer.metadata = Metadata::response_from_request(&request.metadata);
    answer.metadata.recursion_available = true;
    answer.metadata.response_code = code;
    answer.add_queries(request.queries.iter().cloned());
    if request.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_DATAGRAM);
        answer.set_edns(edns);
    }
    answer
}

/// For how long it may be remembered that there is nothing (RFC 2308).
fn soa(zone: &str) -> Record {
    let name = |text: String| Name::from_ascii(text).expect("the names of our zones are names");
    let (server, person) = (name(format!("dns.{zone}.")), name(format!("hostmaster.{zone}.")));
    let (refresh, retry, expire) = (3600, 600, 86_400);
    let soa = SOA::new(server, person, 1, refresh, retry, expire, TTL);
    Record::from_rdata(name(format!("{zone}.")), TTL, RData::SOA(soa))
}

#[cfg(test)]
mod tests;
