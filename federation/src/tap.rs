//! Tap: live requests of some proxies, for somebody who looks at them now. Pure: what may be asked for, what is told of a
//! request, and how many.
//!
//! The bounds are part of the question: so many requests a second of each proxy, for so long. Bodies, cookies and
//! credentials are never told; of headers only those of `HEADERS`, and the query only where it was asked for.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hanse_identity::{NodeName, ServiceName, SpiffeId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::view::View;

/// Taps that may run in a cluster at the same time.
pub const MAX_TAPS: usize = 8;
/// Requests per second that each proxy tells of, unless asked otherwise, and at most.
pub const DEFAULT_RATE: u32 = 50;
pub const MAX_RATE: u32 = 1000;
/// How long a tap may run.
pub const MAX_TIME: Duration = Duration::from_secs(600);
/// Headers of requests that are told, where they are there. None of them authenticates anybody.
pub const HEADERS: [&str; 6] =
    ["accept", "content-length", "content-type", "grpc-timeout", "user-agent", "x-request-id"];
/// Longest texts that are told, in bytes: of a path, a query or a host, and of everything else.
pub const MAX_PATH: usize = 1024;
pub const MAX_TEXT: usize = 256;
/// Longest SPIFFE ID.
const MAX_ID: usize = 2048;
/// Longest request on the wire: all its texts, if each byte of them takes two.
pub const MAX_ENCODED: usize = 32 * 1024;
const NANOS: u64 = 1_000_000_000;

/// Whose requests are looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Target {
    /// All that one proxy takes and sends.
    Proxy(NodeName),
    /// Requests to that service, and all that its proxies send.
    Service(ServiceName),
    /// All proxies of the cluster.
    Everybody,
}

/// Which way a request goes, seen from the app.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Direction {
    #[default]
    Inbound,
    Outbound,
}

/// `503`, or `5xx`: a code, or all that begin with a digit. `0` is a request that got no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Status {
    Code(u16),
    Class(u16),
}

/// A text that is no status.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no status: a code such as 503, or 5xx")]
pub struct StatusError(String);

/// Which requests of those proxies; what is not said admits all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Filter {
    pub direction: Option<Direction>,
    pub method: Option<String>,
    /// What the path begins with.
    pub path_prefix: Option<String>,
    pub status: Option<Status>,
    /// The service that was meant.
    pub to: Option<ServiceName>,
    /// What the caller's SPIFFE ID ends with: the whole of it, or `/ns/<namespace>/sa/<account>`.
    pub from: Option<String>,
    /// Only what the mesh has answered in the app's place.
    pub refused: bool,
    /// Only what one cluster asks of another.
    pub cross_cluster: bool,
}

/// What somebody looks at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tap {
    pub target: Target,
    #[serde(default)]
    pub filter: Filter,
    /// Requests per second of each proxy.
    pub rate: u32,
    /// With the query of a request, which may hold secrets.
    #[serde(default)]
    pub query: bool,
}

/// Why there is no such tap.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TapError {
    #[error("a rate of {0} a second is not between 1 and {MAX_RATE}")]
    Rate(u32),
    #[error("the caller {0:?} is no SPIFFE ID and no NAMESPACE/ACCOUNT")]
    From(String),
    #[error("{0} is longer than {1} bytes")]
    Long(&'static str, usize),
}

/// What a filter looks at.
pub struct Sight<'r> {
    pub direction: Direction,
    pub method: &'r str,
    pub path: &'r str,
    pub code: u16,
    pub service: &'r str,
    pub source: &'r str,
    pub source_cluster: &'r str,
    pub destination_cluster: &'r str,
    /// The mesh answered in the app's place.
    pub refused: bool,
}

/// One request, when it was over. Names are empty where the proxy does not know them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Request {
    pub start_time: Timestamp,
    pub direction: Direction,
    pub method: String,
    /// As it came, before any route has written it anew.
    pub path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query: Option<String>,
    pub authority: String,
    pub protocol: String,
    /// 0: no answer.
    pub response_code: u16,
    /// Envoy's letters.
    pub response_flags: String,
    pub response_code_details: String,
    /// Why the mesh answered in the app's place.
    pub reason: String,
    pub duration_micros: u64,
    pub bytes_received: u64,
    pub bytes_sent: u64,
    /// The service that was meant, `namespace/name`.
    pub service: String,
    pub source: String,
    pub source_cluster: String,
    pub destination: String,
    pub destination_cluster: String,
    pub tier: String,
    pub failover: bool,
    pub attempts: u32,
    pub policy: String,
    pub trace_id: String,
    pub headers: BTreeMap<String, String>,
}

/// At most so many a second, and no more than a second's at once; shared by workers without a lock. A generic cell rate
/// algorithm: the moment up to which the credit is used up.
#[derive(Debug)]
pub struct Meter {
    cost: u64,
    used: AtomicU64,
}

impl Target {
    /// Whether that proxy is one of them, by what it serves now.
    pub fn includes(&self, proxy: &NodeName, view: &View) -> bool {
        match self {
            Self::Proxy(name) => name == proxy,
            Self::Service(service) => {
                view.endpoints.get(proxy).is_some_and(|endpoint| endpoint.services.contains(service))
            }
            Self::Everybody => true,
        }
    }

    /// Whether a request of one of these proxies is meant.
    fn admits(&self, sight: &Sight<'_>) -> bool {
        match self {
            Self::Service(service) if sight.direction == Direction::Inbound => is(service, sight.service),
            _ => true,
        }
    }
}

/// Whether that text is that service's, without writing it down.
fn is(service: &ServiceName, text: &str) -> bool {
    text.split_once('/') == Some((service.namespace(), service.name()))
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Proxy(name) => write!(f, "proxy/{name}"),
            Self::Service(service) => write!(f, "service/{service}"),
            Self::Everybody => f.write_str("every proxy"),
        }
    }
}

impl Direction {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

impl Status {
    pub fn admits(self, code: u16) -> bool {
        match self {
            Self::Code(wanted) => wanted == code,
            Self::Class(digit) => code / 100 == digit,
        }
    }
}

impl FromStr for Status {
    type Err = StatusError;

    fn from_str(text: &str) -> Result<Self, StatusError> {
        let wrong = || StatusError(cut(text, 20));
        if let Some(digit) = text.to_ascii_lowercase().strip_suffix("xx") {
            let digit = digit.parse().ok().filter(|digit| (1..=5).contains(digit));
            return digit.map(Self::Class).ok_or_else(wrong);
        }
        let code = text.parse().ok().filter(|code| *code == 0 || (100..=599).contains(code));
        code.map(Self::Code).ok_or_else(wrong)
    }
}

impl TryFrom<String> for Status {
    type Error = StatusError;

    fn try_from(text: String) -> Result<Self, StatusError> {
        text.parse()
    }
}

impl From<Status> for String {
    fn from(status: Status) -> Self {
        status.to_string()
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "{code}"),
            Self::Class(digit) => write!(f, "{digit}xx"),
        }
    }
}

impl Filter {
    fn admits(&self, sight: &Sight<'_>) -> bool {
        self.direction.is_none_or(|direction| direction == sight.direction)
            && self.method.as_ref().is_none_or(|method| method.eq_ignore_ascii_case(sight.method))
            && self.path_prefix.as_ref().is_none_or(|prefix| sight.path.starts_with(prefix.as_str()))
            && self.status.is_none_or(|status| status.admits(sight.code))
            && self.to.as_ref().is_none_or(|service| is(service, sight.service))
            && self.from.as_ref().is_none_or(|from| sight.source.ends_with(from.as_str()))
            && (!self.refused || sight.refused)
            && (!self.cross_cluster || sight.is_between_clusters())
    }
}

impl Sight<'_> {
    fn is_between_clusters(&self) -> bool {
        let (source, destination) = (self.source_cluster, self.destination_cluster);
        !source.is_empty() && !destination.is_empty() && source != destination
    }
}

/// How `Filter::from` is written: a SPIFFE ID, or `NAMESPACE/ACCOUNT` of any trust domain.
pub fn caller(text: &str) -> Result<String, TapError> {
    let wrong = || TapError::From(cut(text, MAX_TEXT));
    if text.parse::<SpiffeId>().is_ok() {
        return Ok(text.to_owned());
    }
    let (namespace, account) = text.split_once('/').ok_or_else(wrong)?;
    let is_name = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    if !is_name(namespace) || !is_name(account) {
        return Err(wrong());
    }
    Ok(format!("/ns/{namespace}/sa/{account}"))
}

impl Tap {
    pub fn new(target: Target) -> Self {
        Self { target, filter: Filter::default(), rate: DEFAULT_RATE, query: false }
    }

    /// Whether it keeps the bounds, wherever it comes from.
    pub fn check(&self) -> Result<(), TapError> {
        if !(1..=MAX_RATE).contains(&self.rate) {
            return Err(TapError::Rate(self.rate));
        }
        let filter = &self.filter;
        let short = |what, text: &Option<String>, most| match text {
            Some(text) if text.len() > most => Err(TapError::Long(what, most)),
            _ => Ok(()),
        };
        short("the method", &filter.method, MAX_TEXT)?;
        short("the path prefix", &filter.path_prefix, MAX_PATH)?;
        short("the caller", &filter.from, MAX_ID)
    }

    pub fn admits(&self, sight: &Sight<'_>) -> bool {
        self.target.admits(sight) && self.filter.admits(sight)
    }
}

/// For the audit trail: all that was asked for.
impl fmt::Display for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let filter = &self.filter;
        write!(f, "{}", self.target)?;
        if let Some(direction) = filter.direction {
            write!(f, ", {} only", direction.as_str())?;
        }
        if let Some(to) = &filter.to {
            write!(f, ", to {to}")?;
        }
        if let Some(from) = &filter.from {
            write!(f, ", from {from}")?;
        }
        if let Some(method) = &filter.method {
            write!(f, ", {method}")?;
        }
        if let Some(prefix) = &filter.path_prefix {
            write!(f, ", path {prefix}*")?;
        }
        if let Some(status) = filter.status {
            write!(f, ", status {status}")?;
        }
        for (asked, what) in [
            (filter.refused, "refused"),
            (filter.cross_cluster, "between clusters"),
            (self.query, "with queries"),
        ] {
            if asked {
                write!(f, ", {what}")?;
            }
        }
        write!(f, ", {} a second", self.rate)
    }
}

impl Request {
    /// As far as its sender may say it: a request that it made or served itself, in texts that are short and can be shown
    /// on a terminal.
    pub fn of(mut self, sender: &SpiffeId) -> Option<Self> {
        let own = match self.direction {
            Direction::Inbound => &self.destination,
            Direction::Outbound => &self.source,
        };
        if !own.is_empty() && *own != sender.to_string() {
            return None;
        }
        for text in [&mut self.path, &mut self.authority, &mut self.response_code_details] {
            *text = cut(text, MAX_PATH);
        }
        for text in [&mut self.source, &mut self.destination] {
            *text = cut(text, MAX_ID);
        }
        for text in [
            &mut self.method,
            &mut self.protocol,
            &mut self.response_flags,
            &mut self.reason,
            &mut self.service,
            &mut self.source_cluster,
            &mut self.destination_cluster,
            &mut self.tier,
            &mut self.policy,
            &mut self.trace_id,
        ] {
            *text = cut(text, MAX_TEXT);
        }
        self.query = self.query.map(|query| cut(&query, MAX_PATH));
        self.headers.retain(|name, _| HEADERS.contains(&name.as_str()));
        self.headers.values_mut().for_each(|value| *value = cut(value, MAX_TEXT));
        Some(self)
    }
}

/// At most so many bytes, cut between characters; control characters become spaces.
pub fn cut(text: &str, most: usize) -> String {
    let end = (0..=text.len().min(most)).rev().find(|at| text.is_char_boundary(*at));
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    text[..end.unwrap_or_default()].chars().map(clean).collect()
}

impl Meter {
    pub fn new(per_second: u32) -> Self {
        Self { cost: NANOS / u64::from(per_second.max(1)), used: AtomicU64::new(0) }
    }

    /// Takes one, if there is credit; `now` is the time since some moment in the past.
    pub fn take(&self, now: Duration) -> bool {
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let next = |used: u64| {
            let used = used.max(now).saturating_add(self.cost);
            (used - now <= NANOS).then_some(used)
        };
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sight() -> Sight<'static> {
        Sight {
            direction: Direction::Inbound,
            method: "GET",
            path: "/r/7",
            code: 503,
            service: "shop/reviews",
            source: "spiffe://west.example/ns/shop/sa/productpage",
            source_cluster: "west",
            destination_cluster: "east",
            refused: true,
        }
    }

    fn filtered(change: impl FnOnce(&mut Filter)) -> bool {
        let mut tap = Tap::new(Target::Everybody);
        change(&mut tap.filter);
        tap.admits(&sight())
    }

    #[test]
    fn every_condition_has_to_hold() {
        assert!(filtered(|_| {}));
        assert!(filtered(|f| f.direction = Some(Direction::Inbound)));
        assert!(!filtered(|f| f.direction = Some(Direction::Outbound)));
        assert!(filtered(|f| f.method = Some("get".to_owned())));
        assert!(!filtered(|f| f.method = Some("POST".to_owned())));
        assert!(filtered(|f| f.path_prefix = Some("/r/".to_owned())));
        assert!(!filtered(|f| f.path_prefix = Some("/x".to_owned())));
        assert!(filtered(|f| f.status = Some(Status::Class(5))));
        assert!(!filtered(|f| f.status = Some(Status::Code(500))));
        assert!(filtered(|f| f.to = Some("shop/reviews".parse().unwrap())));
        assert!(!filtered(|f| f.to = Some("hop/reviews".parse().unwrap())));
        assert!(filtered(|f| f.from = Some(caller("shop/productpage").unwrap())));
        assert!(filtered(|f| f.from = Some(caller("spiffe://west.example/ns/shop/sa/productpage").unwrap())));
        assert!(
            !filtered(|f| f.from = Some(caller("spiffe://east.example/ns/shop/sa/productpage").unwrap()))
        );
        assert!(
            !filtered(|f| f.from = Some(caller("shop/page").unwrap())),
            "a part of a name is another name"
        );
        assert!(filtered(|f| (f.refused, f.cross_cluster) = (true, true)));
        let mut same = sight();
        (same.refused, same.destination_cluster) = (false, "west");
        let mut tap = Tap::new(Target::Everybody);
        tap.filter.refused = true;
        assert!(!tap.admits(&same));
        tap.filter = Filter { cross_cluster: true, ..Filter::default() };
        assert!(!tap.admits(&same));
        same.destination_cluster = "";
        assert!(!tap.admits(&same), "nobody has answered");
    }

    #[test]
    fn a_service_is_what_is_asked_of_it_and_what_its_proxies_ask() {
        let tap = Tap::new(Target::Service("shop/ratings".parse().unwrap()));
        assert!(!tap.admits(&sight()), "another service behind the same proxy");
        assert!(tap.admits(&Sight { direction: Direction::Outbound, ..sight() }));
        assert!(tap.admits(&Sight { service: "shop/ratings", ..sight() }));
    }

    #[test]
    fn statuses_and_callers_are_read_strictly() {
        assert_eq!("5xx".parse(), Ok(Status::Class(5)));
        assert_eq!("5XX".parse::<Status>().unwrap().to_string(), "5xx");
        assert_eq!("0".parse(), Ok(Status::Code(0)));
        for wrong in ["", "xx", "6xx", "0xx", "99", "600", "50x", "-1", "5xxx"] {
            assert!(wrong.parse::<Status>().is_err(), "{wrong}");
        }
        for wrong in ["", "web", "shop/", "/web", "shop/web/more", "spiffe://", "a b/c"] {
            assert!(caller(wrong).is_err(), "{wrong}");
        }
        let mut tap = Tap::new(Target::Everybody);
        assert_eq!(tap.check(), Ok(()));
        tap.rate = MAX_RATE + 1;
        assert_eq!(tap.check(), Err(TapError::Rate(MAX_RATE + 1)));
        tap.rate = 1;
        tap.filter.path_prefix = Some("/".repeat(MAX_PATH + 1));
        assert_eq!(tap.check(), Err(TapError::Long("the path prefix", MAX_PATH)));
    }

    #[test]
    fn a_proxy_tells_of_its_own_requests_in_texts_that_can_be_shown() {
        let own: SpiffeId = "spiffe://east.example/ns/shop/sa/reviews".parse().unwrap();
        let headers =
            [("user-agent", "curl\u{1b}[31m"), ("cookie", "session=1"), ("authorization", "Bearer x")];
        let told = Request {
            destination: own.to_string(),
            source: "spiffe://west.example/ns/shop/sa/productpage".to_owned(),
            path: format!("/{}\u{7}", "ä".repeat(MAX_PATH)),
            headers: headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            ..Request::default()
        };
        let shown = told.clone().of(&own).unwrap();
        assert!(shown.path.len() <= MAX_PATH && !shown.path.contains(char::is_control));
        assert_eq!(shown.headers, BTreeMap::from([("user-agent".to_owned(), "curl [31m".to_owned())]));
        let outbound = Request { direction: Direction::Outbound, ..told.clone() };
        assert_eq!(outbound.of(&own), None, "somebody else's call");
        let unknown = Request { destination: String::new(), ..told };
        assert!(unknown.of(&own).is_some(), "it had no SVID then");
    }

    #[test]
    fn a_meter_gives_a_second_at_once_and_then_the_rate() {
        let meter = Meter::new(10);
        let taken = |millis| (0..100).filter(|_| meter.take(Duration::from_millis(millis))).count();
        assert_eq!(taken(5000), 10);
        assert_eq!(taken(5050), 0);
        assert_eq!(taken(5310), 3);
        assert_eq!(taken(60_000), 10);
    }
}
