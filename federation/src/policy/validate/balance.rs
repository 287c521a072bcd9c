//! Balancing, health and limits, as far as a document alone tells whether they make sense.

use std::time::Duration;

use super::Findings;
use crate::policy::document::active::ActiveCheck;
use crate::policy::document::balance::{
    Algorithm, CookieLifetime, HashOn, LimitsPolicy, LoadBalancingPolicy, SessionKind,
    SessionPersistencePolicy,
};
use crate::policy::document::{BackendPolicy, HealthPolicy};
use crate::reserved::{FRAMING, is_reserved};

const WHOLE: u32 = 1000;

pub(super) fn check(policy: &BackendPolicy, findings: &mut Findings<'_>) {
    if let Some(balancing) = &policy.load_balancing {
        check_balancing(balancing, findings);
    }
    if let Some(health) = &policy.health {
        check_health(health, findings);
    }
    if let Some(limits) = &policy.limits {
        check_limits(limits, findings);
    }
    if let Some(session) = &policy.session_persistence {
        check_session(session, findings);
    }
}

/// Headers that a session must not take the place of.
fn means_something(name: &str) -> bool {
    let others = [
        "authorization",
        "cache-control",
        "content-encoding",
        "content-range",
        "content-type",
        "cookie",
        "date",
        "etag",
        "location",
        "set-cookie",
        "vary",
        "www-authenticate",
    ];
    FRAMING.iter().chain(&others).any(|other| name.eq_ignore_ascii_case(other))
}

fn check_session(session: &SessionPersistencePolicy, findings: &mut Findings<'_>) {
    let mut error = |field: &str, message: &str, fix: &str| {
        let path = format!("spec.sessionPersistence.{field}");
        findings.error("E4136", path, message.to_owned(), fix.to_owned());
    };
    if session.session_name.as_deref().is_some_and(is_reserved) {
        error("sessionName", "headers of that name are the mesh's own", "write another name");
    }
    let by_header = session.kind == SessionKind::Header;
    if session.session_name.as_deref().is_some_and(|name| by_header && means_something(name)) {
        error(
            "sessionName",
            "a header of that name means something else already",
            "write a name like x-session",
        );
    }
    match (session.kind, session.cookie_config.map(|cookie| cookie.lifetime_type)) {
        (SessionKind::Header, Some(_)) => {
            error("cookieConfig", "a session by header has no cookie", "remove it, or write type: Cookie");
        }
        (SessionKind::Cookie, Some(CookieLifetime::Permanent)) if session.absolute_timeout.is_none() => {
            error(
                "cookieConfig.lifetimeType",
                "a permanent cookie needs to say when it ends",
                "write absoluteTimeout: 1h, or lifetimeType: Session",
            );
        }
        _ => {}
    }
    for (field, timeout) in
        [("absoluteTimeout", session.absolute_timeout), ("idleTimeout", session.idle_timeout)]
    {
        if timeout.is_some_and(|timeout| timeout.is_zero()) {
            error(field, "a session of 0s is none", "write 1h, or remove it");
        }
    }
}

fn check_balancing(balancing: &LoadBalancingPolicy, findings: &mut Findings<'_>) {
    let hashes = matches!(balancing.algorithm, Algorithm::RingHash | Algorithm::Maglev);
    match &balancing.hash_on {
        None if hashes => {
            let message = "without hashOn each request has a hash of its own, as with Random".to_owned();
            let fix = "say what the same endpoint is chosen by: hashOn: { header: x-user }".to_owned();
            findings.warning("E4134", "spec.loadBalancing.algorithm".to_owned(), message, fix);
        }
        Some(_) if !hashes => {
            let message = format!("{:?} does not hash, so hashOn has no effect", balancing.algorithm);
            let fix = "write algorithm: RingHash or Maglev, or remove hashOn".to_owned();
            findings.warning("E4134", "spec.loadBalancing.hashOn".to_owned(), message, fix);
        }
        Some(on) if sources(on) != 1 => {
            let message = "hashOn has to name exactly one thing to hash".to_owned();
            let fix = "write one of: header, cookie, query, sourceIdentity: true".to_owned();
            findings.error("E4134", "spec.loadBalancing.hashOn".to_owned(), message, fix);
        }
        _ => {}
    }
}

fn sources(on: &HashOn) -> usize {
    let named = [&on.header, &on.cookie, &on.query].into_iter().flatten().count();
    named + usize::from(on.source_identity == Some(true))
}

fn check_health(health: &HealthPolicy, findings: &mut Findings<'_>) {
    if let Some(active) = &health.active {
        check_active(active, findings);
    }
    if let Some(outlier) = &health.outlier
        && outlier.consecutive_5xx == Some(1)
        && outlier.max_ejected.is_none_or(|most| most.permille() == WHOLE)
    {
        let message = "every single 5xx takes an endpoint out, and all of them may be out at once".to_owned();
        let fix = "write consecutive5xx: 5, or keep some in: maxEjected: 50%".to_owned();
        findings.warning("E4116", "spec.health.outlier".to_owned(), message, fix);
    }
    if health.panic_below.is_some_and(|share| share.permille() == WHOLE) {
        let message =
            "below 100% means always: an endpoint that is out would get requests all the same".to_owned();
        let fix = "write panicBelow: 30%, or less".to_owned();
        findings.warning("E4116", "spec.health.panicBelow".to_owned(), message, fix);
    }
}

/// Each proxy checks one app on its own host; more often than this is load and no news.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);
/// While a check waits, nothing else is looked at.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(30);

fn check_active(active: &ActiveCheck, findings: &mut Findings<'_>) {
    let mut error = |field: &str, message: &str, fix: &str| {
        findings.error("E4137", format!("spec.health.active{field}"), message.to_owned(), fix.to_owned());
    };
    let kinds = [active.http.is_some(), active.grpc.is_some(), active.tcp.is_some()];
    if kinds.into_iter().filter(|kind| *kind).count() != 1 {
        error(
            "",
            "active has to say one way to check",
            "write one of: http: { path: /health }, grpc: {}, tcp: {}",
        );
    }
    if active.interval.is_some_and(|interval| interval.get() < SHORTEST_INTERVAL) {
        error(".interval", "more often than every 100ms is not checked", "write interval: 5s");
    }
    if active.timeout.is_some_and(|timeout| timeout.get() > LONGEST_TIMEOUT) {
        error(".timeout", "a check that takes longer than 30s tells too late", "write timeout: 1s");
    }
    if active.timeout.is_some_and(|timeout| timeout.is_zero()) {
        error(".timeout", "with timeout: 0s every check fails", "write timeout: 1s");
    }
}

fn check_limits(limits: &LimitsPolicy, findings: &mut Findings<'_>) {
    for (field, limit) in [("connectTimeout", limits.connect_timeout), ("idleTimeout", limits.idle_timeout)] {
        if limit.is_some_and(|limit| limit.is_zero()) {
            let message = format!("with {field}: 0s no connection could be used");
            findings.error(
                "E4135",
                format!("spec.limits.{field}"),
                message,
                "write 1s, or remove it".to_owned(),
            );
        }
    }
    if let (Some(pending), Some(requests)) = (limits.max_pending, limits.max_requests)
        && pending > requests
    {
        let message = format!("what waits is among the {requests} requests, so {pending} never wait");
        let fix = format!("write maxPending: {requests} or less");
        findings.warning("E4135", "spec.limits.maxPending".to_owned(), message, fix);
    }
}
