//! Who may call: the AccessPolicies of a workload, compiled once per View and asked for every request. Pure.
//!
//! Deny goes before Allow; one Allow for any service of the workload shuts out whoever none allows. What cannot be read
//! allows nothing and escapes no Deny. Paths are judged as they will be forwarded, so one that two readers could take for
//! different things is refused first (`plain_path`).

use std::collections::BTreeSet;
use std::sync::Arc;

use hanse_identity::jwt::user::UserToken;
use hanse_identity::{ClusterName, ServiceName, SpiffeId};

use super::authentication::texts;
use super::condition::{About, Condition};
use super::document::access::{AccessAction, AccessFrom, AccessPolicy, AccessRule, AccessTo, ClaimMatch};
use super::document::{HeaderMatch, HttpMethod, PolicySpec};
use super::matching::{PathTest, ValueTest};
use super::value::Label;
use crate::view::View;

mod external;

pub use external::{Authorizer, DEFAULT_TIMEOUT, External};

/// Who asks.
pub struct Caller<'c> {
    /// `None`: it came in plain text, to a port that takes that for now, and nobody knows who it is.
    pub id: Option<&'c SpiffeId>,
    /// Where its trust domain is at home; `None`: in no cluster that we know.
    pub cluster: Option<&'c ClusterName>,
    /// The end user, whose token was believed.
    pub user: Option<&'c UserToken>,
}

/// What it asks for.
pub struct Asked<'a> {
    pub method: &'a str,
    /// Path without query, as it will be forwarded.
    pub path: &'a str,
    pub header: &'a EachValue<'a>,
}

/// Tells every value of the (lower-case) header.
pub type EachValue<'a> = dyn Fn(&str, &mut dyn FnMut(&[u8])) + 'a;

/// The access rules of one workload.
#[derive(Debug, Default)]
pub struct AccessTable {
    deny: Vec<Rule>,
    allow: Vec<Rule>,
    audit: Vec<Rule>,
    /// With whom each of them has asked.
    external: Vec<(Rule, Arc<External>)>,
    /// There is an Allow, so who is not allowed is denied.
    restricted: bool,
    /// Some rule looks at paths.
    paths: bool,
}

/// Leave to go on, and what has to be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Granted {
    /// `namespace/name#rule` of what allowed it; empty where nothing had to.
    pub by: Arc<str>,
    /// Those of Audit rules that match.
    pub audited: Vec<Arc<str>>,
    /// Whose leave it needs beside, each policy once.
    pub external: Vec<Arc<External>>,
}

/// Why not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// A Deny rule, by name.
    #[error("denied by {0}")]
    By(Arc<str>),
    #[error("allowed by no policy")]
    NotAllowed,
    /// The path can be read in two ways.
    #[error("the path {0}")]
    Path(PathTrouble),
}

/// What makes a path mean different things to different readers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathTrouble {
    #[error("does not start with /")]
    NotAbsolute,
    #[error("has a dot segment")]
    Dots,
    #[error("has a separator or control character in it, plain or encoded")]
    Separator,
    #[error("is encoded twice")]
    Twice,
    #[error("is not UTF-8 when it is decoded, or is not encoded as it should be")]
    Encoding,
}

/// Who, asking for what; also those who go first (`concurrency`).
#[derive(Debug)]
pub(super) struct Rule {
    name: Arc<str>,
    from: FromTest,
    to: ToTest,
    user: UserTest,
    condition: Option<Condition>,
}

#[derive(Debug, Default)]
struct FromTest {
    identities: Vec<IdPattern>,
    clusters: Vec<ClusterName>,
    namespaces: Vec<Label>,
}

/// What the end user has to be; nothing: there need be none.
#[derive(Debug, Default)]
struct UserTest {
    principals: Vec<String>,
    claims: Vec<ClaimMatch>,
}

#[derive(Debug, Default)]
struct ToTest {
    methods: Vec<HttpMethod>,
    paths: Vec<PathTest>,
    headers: Vec<HeaderTest>,
    ports: Vec<u16>,
}

#[derive(Debug)]
struct HeaderTest {
    name: String,
    value: ValueTest,
}

/// SPIFFE IDs that a rule means, compared part by part, never as one pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdPattern {
    parts: Vec<Part>,
    /// `**` at the end: at least one more part.
    open: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Any,
    This(String),
}

/// How a rule treats what it cannot read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Doubt {
    Matches,
    DoesNot,
}

impl AccessTable {
    /// The policies for any of these services, which one workload serves.
    pub fn build(view: &View, services: &BTreeSet<ServiceName>) -> Self {
        let mut table = Self::default();
        for document in view.policies.values() {
            let PolicySpec::AccessPolicy(policy) = &document.spec else { continue };
            let namespace = document.name.namespace();
            if policy.target_refs.iter().any(|target| services.contains(&target.service(namespace))) {
                table.add(policy, &document.name);
            }
        }
        table
    }

    fn add(&mut self, policy: &AccessPolicy, name: &ServiceName) {
        self.restricted |= policy.action == AccessAction::Allow;
        let external = External::compile(policy, name).map(Arc::new);
        // An authorizer has to read the path as the app will.
        self.paths |= policy.action == AccessAction::External;
        for (index, rule) in policy.rules.iter().enumerate() {
            let compiled = Rule::compile(rule, index, name);
            self.paths |= rule.to.as_ref().is_some_and(|to| !to.paths.is_empty());
            let condition = compiled.as_ref().and_then(|rule| rule.condition.as_ref());
            self.paths |= condition.is_some_and(Condition::reads_path);
            match (policy.action, compiled) {
                (AccessAction::Allow, Some(rule)) => self.allow.push(rule),
                (AccessAction::Deny, Some(rule)) => self.deny.push(rule),
                (AccessAction::Audit, Some(rule)) => self.audit.push(rule),
                // Validation lets nothing pass that cannot be compiled. Should it: a Deny that is not understood
                // denies all.
                (AccessAction::Deny, None) => self.deny.push(Rule::everything(rule, index, name)),
                (AccessAction::External, compiled) => {
                    let rule = compiled.unwrap_or_else(|| Rule::everything(rule, index, name));
                    match &external {
                        Some(external) => self.external.push((rule, Arc::clone(external))),
                        None => self.deny.push(rule),
                    }
                }
                (AccessAction::Allow | AccessAction::Audit, None) => {}
            }
        }
    }

    /// Whether there is anything to ask.
    pub fn is_empty(&self) -> bool {
        !self.restricted && self.deny.is_empty() && self.audit.is_empty() && self.external.is_empty()
    }

    pub fn decide(
        &self,
        caller: &Caller<'_>,
        own: &ClusterName,
        asked: &Asked<'_>,
    ) -> Result<Granted, Denied> {
        if self.paths {
            plain_path(asked.path).map_err(Denied::Path)?;
        }
        self.decide_by(|rule, doubt| rule.holds(caller, own, asked, doubt))
    }

    /// For a connection that is not read: a rule that looks at requests allows none, and denies and audits all. Nor is there
    /// anything that an authorizer could be told.
    pub fn decide_stream(
        &self,
        caller: &Caller<'_>,
        own: &ClusterName,
        port: u16,
    ) -> Result<Granted, Denied> {
        let granted = self.decide_by(|rule, doubt| {
            rule.from.holds(caller, own)
                && rule.to.holds_unread(port, doubt)
                && (rule.user.is_everything() || doubt == Doubt::Matches)
                && rule.met(&About { caller, asked: None }, doubt)
        })?;
        match granted.external.first() {
            Some(external) => Err(Denied::By(Arc::clone(&external.policy))),
            None => Ok(granted),
        }
    }

    fn decide_by(&self, holds: impl Fn(&Rule, Doubt) -> bool) -> Result<Granted, Denied> {
        let matching = |rules: &[Rule], doubt| {
            rules.iter().find(|rule| holds(rule, doubt)).map(|rule| Arc::clone(&rule.name))
        };
        if let Some(by) = matching(&self.deny, Doubt::Matches) {
            return Err(Denied::By(by));
        }
        let by = match matching(&self.allow, Doubt::DoesNot) {
            Some(by) => by,
            None if self.restricted => return Err(Denied::NotAllowed),
            None => Arc::from(""),
        };
        let audited = self.audit.iter().filter(|rule| holds(rule, Doubt::Matches));
        let audited = audited.map(|rule| Arc::clone(&rule.name)).collect();
        let mut external: Vec<Arc<External>> = Vec::new();
        for (rule, asked) in &self.external {
            if !external.iter().any(|known| Arc::ptr_eq(known, asked)) && holds(rule, Doubt::Matches) {
                external.push(Arc::clone(asked));
            }
        }
        Ok(Granted { by, audited, external })
    }
}

impl Rule {
    pub(super) fn compile(rule: &AccessRule, index: usize, policy: &ServiceName) -> Option<Self> {
        let from = rule.from.as_ref().map_or(Some(FromTest::default()), FromTest::compile)?;
        let to = rule.to.as_ref().map_or(Some(ToTest::default()), ToTest::compile)?;
        let user = UserTest {
            principals: rule.from.as_ref().map(|from| from.request_principals.clone()).unwrap_or_default(),
            claims: rule.when.as_ref().map(|when| when.claims.clone()).unwrap_or_default(),
        };
        let condition = rule.when.as_ref().and_then(|when| when.expression.as_ref());
        let condition = condition.map(|text| Condition::compile(text)).transpose().ok()?;
        Some(Self { name: named(rule, index, policy), from, to, user, condition })
    }

    /// Whether the condition holds; what it asks for and is not there is taken as doubt is.
    fn met(&self, about: &About<'_>, doubt: Doubt) -> bool {
        let Some(condition) = &self.condition else { return true };
        condition.holds(about).unwrap_or(doubt == Doubt::Matches)
    }

    /// Whether it means this request, read strictly.
    pub(super) fn is_met(&self, caller: &Caller<'_>, own: &ClusterName, asked: &Asked<'_>) -> bool {
        self.holds(caller, own, asked, Doubt::DoesNot)
    }

    fn holds(&self, caller: &Caller<'_>, own: &ClusterName, asked: &Asked<'_>, doubt: Doubt) -> bool {
        self.from.holds(caller, own)
            && self.to.holds(asked, doubt)
            && self.user.holds(caller.user, doubt)
            && self.met(&About { caller, asked: Some(asked) }, doubt)
    }

    fn everything(rule: &AccessRule, index: usize, policy: &ServiceName) -> Self {
        Self {
            name: named(rule, index, policy),
            from: FromTest::default(),
            to: ToTest::default(),
            user: UserTest::default(),
            condition: None,
        }
    }
}

fn named(rule: &AccessRule, index: usize, policy: &ServiceName) -> Arc<str> {
    match &rule.name {
        Some(name) => format!("{policy}#{name}").into(),
        None => format!("{policy}#{index}").into(),
    }
}

impl FromTest {
    fn compile(from: &AccessFrom) -> Option<Self> {
        Some(Self {
            identities: from.identities.iter().map(|id| IdPattern::parse(id).ok()).collect::<Option<_>>()?,
            clusters: from.clusters.clone(),
            namespaces: from.namespaces.clone(),
        })
    }

    fn holds(&self, caller: &Caller<'_>, own: &ClusterName) -> bool {
        // Who has no identity matches no rule that asks for one.
        let named = |id| self.identities.iter().any(|pattern| pattern.matches(id));
        let identity = self.identities.is_empty() || caller.id.is_some_and(named);
        let cluster = match (self.clusters.is_empty(), self.identities.is_empty(), self.namespaces.is_empty())
        {
            (false, ..) => caller.cluster.is_some_and(|cluster| self.clusters.contains(cluster)),
            // A namespace says nothing of whose it is: ours is meant.
            (true, true, false) => caller.cluster == Some(own),
            (true, ..) => true,
        };
        let namespace = self.namespaces.is_empty()
            || caller
                .id
                .and_then(namespace_of)
                .is_some_and(|name| self.namespaces.iter().any(|n| n.as_str() == name));
        identity && cluster && namespace
    }
}

impl UserTest {
    fn is_everything(&self) -> bool {
        self.principals.is_empty() && self.claims.is_empty()
    }

    fn holds(&self, user: Option<&UserToken>, doubt: Doubt) -> bool {
        let Some(user) = user else { return self.is_everything() };
        let meant = |wanted: &String| match wanted.strip_suffix('*') {
            Some(beginning) => user.principal.starts_with(beginning),
            None => user.principal == *wanted,
        };
        (self.principals.is_empty() || self.principals.iter().any(meant))
            && self.claims.iter().all(|wanted| says(user, wanted, doubt))
    }
}

/// Whether one of the claim's values is wanted. `scope` is a list with spaces (RFC 8693 §4.2). What is no text, nor a list
/// of texts, escapes no Deny.
fn says(user: &UserToken, wanted: &ClaimMatch, doubt: Doubt) -> bool {
    let Some(claim) = user.claims.get(&wanted.name) else { return false };
    if doubt == Doubt::Matches && !is_text(claim) {
        return true;
    }
    let said = texts(claim);
    let words = said.iter().flat_map(|text| match wanted.name.as_str() {
        "scope" | "scp" => text.split(' ').collect(),
        _ => vec![text.as_str()],
    });
    words.into_iter().any(|word| wanted.values.iter().any(|value| value == "*" || value == word))
}

/// Whether all that the claim says comes to text.
fn is_text(claim: &serde_json::Value) -> bool {
    match claim {
        serde_json::Value::Array(many) => many.iter().all(|one| !one.is_array() && is_text(one)),
        other => !other.is_object() && !other.is_null(),
    }
}

/// The namespace of a workload's ID, `/ns/<namespace>/sa/<account>`.
pub(super) fn namespace_of(id: &SpiffeId) -> Option<&str> {
    let (namespace, rest) = id.path().strip_prefix("/ns/")?.split_once('/')?;
    rest.strip_prefix("sa/").filter(|account| !account.is_empty() && !account.contains('/'))?;
    Some(namespace)
}

impl ToTest {
    fn compile(to: &AccessTo) -> Option<Self> {
        Some(Self {
            methods: to.methods.clone(),
            paths: to.paths.iter().map(PathTest::compile).collect::<Option<_>>()?,
            headers: to.headers.iter().map(HeaderTest::compile).collect::<Option<_>>()?,
            ports: to.ports.clone(),
        })
    }

    /// For a connection to that port, which is not read.
    fn holds_unread(&self, port: u16, doubt: Doubt) -> bool {
        let unread = self.methods.is_empty() && self.paths.is_empty() && self.headers.is_empty();
        (self.ports.is_empty() || self.ports.contains(&port)) && (unread || doubt == Doubt::Matches)
    }

    fn holds(&self, asked: &Asked<'_>, doubt: Doubt) -> bool {
        let same = |method: &HttpMethod| match doubt {
            // Methods have a case (RFC 9110 §9.1), and some servers do not know it.
            Doubt::Matches => method.as_str().eq_ignore_ascii_case(asked.method),
            Doubt::DoesNot => method.as_str() == asked.method,
        };
        (self.ports.is_empty() || doubt == Doubt::Matches)
            && (self.methods.is_empty() || self.methods.iter().any(same))
            && (self.paths.is_empty() || self.paths.iter().any(|test| test.holds(asked.path)))
            && self.headers.iter().all(|test| test.holds(asked, doubt))
    }
}

impl HeaderTest {
    fn compile(wanted: &HeaderMatch) -> Option<Self> {
        let value = ValueTest::compile(wanted.kind, &wanted.value)?;
        Some(Self { name: wanted.name.to_ascii_lowercase(), value })
    }

    /// To allow, every value has to match; to deny, any, or one that cannot be read.
    fn holds(&self, asked: &Asked<'_>, doubt: Doubt) -> bool {
        let (mut values, mut matching, mut unread) = (0, 0, 0);
        (asked.header)(&self.name, &mut |value| {
            values += 1;
            match std::str::from_utf8(value) {
                Ok(text) if self.value.holds(text) => matching += 1,
                Ok(_) => {}
                Err(_) => unread += 1,
            }
        });
        match doubt {
            Doubt::Matches => matching + unread > 0,
            Doubt::DoesNot => values > 0 && matching == values,
        }
    }
}

impl IdPattern {
    /// `Err`: what is wrong, as a sentence with the fix in it.
    pub fn parse(text: &str) -> Result<Self, String> {
        const SCHEME: &str = "spiffe://";
        let rest =
            text.strip_prefix(SCHEME).ok_or_else(|| format!("{text:?} does not start with {SCHEME}"))?;
        let (rest, open) = match rest.strip_suffix("/**") {
            Some(rest) => (rest, true),
            None => (rest, false),
        };
        let parts: Vec<Part> = rest
            .split('/')
            .map(|part| if part == "*" { Part::Any } else { Part::This(part.to_owned()) })
            .collect();
        // What it would match has to be an ID: so that a slip of the pen is no pattern that never matches.
        let example: Vec<&str> = parts
            .iter()
            .map(|part| match part {
                Part::Any => "any",
                Part::This(part) => part,
            })
            .chain(open.then_some("any"))
            .collect();
        format!("{SCHEME}{}", example.join("/")).parse::<SpiffeId>().map_err(|e| {
            format!(
                "{text:?} matches no SPIFFE ID ({e}); * stands for a whole part, ** for the rest at the end"
            )
        })?;
        Ok(Self { parts, open })
    }

    pub fn matches(&self, id: &SpiffeId) -> bool {
        let mut parts = std::iter::once(id.trust_domain().as_str()).chain(id.path().split('/').skip(1));
        let all = self.parts.iter().all(|wanted| match (wanted, parts.next()) {
            (Part::Any, Some(_)) => true,
            (Part::This(wanted), Some(part)) => wanted == part,
            (_, None) => false,
        });
        all && parts.next().is_some() == self.open
    }
}

/// Whether every reader of the path reads the same: no dot segments, no second separator, nothing encoded twice or that
/// decodes to no text. Path parameters (`;`) are not stripped by us, so a segment that becomes dots without them is one.
pub fn plain_path(path: &str) -> Result<(), PathTrouble> {
    if !path.starts_with('/') {
        return Err(PathTrouble::NotAbsolute);
    }
    let bytes = path.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        if *byte != b'%' {
            if matches!(byte, b'\\' | b'#' | b'?' | 0..=0x1f | 0x7f) {
                return Err(PathTrouble::Separator);
            }
            decoded.push(*byte);
            at += 1;
            continue;
        }
        let byte = encoded(&bytes[at..]).ok_or(PathTrouble::Encoding)?;
        match byte {
            b'/' | b'\\' | 0..=0x1f | 0x7f => return Err(PathTrouble::Separator),
            _ => decoded.push(byte),
        }
        at += 3;
    }
    if (0..decoded.len()).any(|at| decoded[at] == b'%' && encoded(&decoded[at..]).is_some()) {
        return Err(PathTrouble::Twice);
    }
    let decoded = std::str::from_utf8(&decoded).map_err(|_| PathTrouble::Encoding)?;
    let dots = |segment: &str| matches!(segment.split(';').next(), Some("." | ".."));
    if decoded.split('/').any(dots) { Err(PathTrouble::Dots) } else { Ok(()) }
}

/// The byte of `%XX` at the beginning.
fn encoded(bytes: &[u8]) -> Option<u8> {
    let digits = bytes.get(1..3).filter(|two| two.iter().all(u8::is_ascii_hexdigit))?;
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests;
