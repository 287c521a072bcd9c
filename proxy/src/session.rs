//! Session persistence: what the client carries from one request to the next, read and written. Pure.
//!
//! The token names a target by a hash, so that it says nothing of endpoints and addresses. It is not signed: whoever makes
//! one up has asked for a target that could have been chosen anyway, or for none, and then it is as if there were none.

use std::time::Duration;

use hanse_federation::policy::document::balance::{CookieLifetime, SessionKind, SessionPersistencePolicy};
use hanse_identity::Timestamp;
use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::outbound::cookie;

/// Name of the cookie or header where the policy gives none.
const DEFAULT_NAME: &str = "hanse-session";
/// Bytes of a token: version, target, begun, last seen (seconds).
const TOKEN_BYTES: usize = 17;
const VERSION: u8 = 1;
/// How far ahead another proxy's clock may be.
const CLOCK_SLACK: Duration = Duration::from_secs(60);

/// One request's session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// `key` of the target that it has been with.
    pub target: u64,
    /// Seconds since 1970.
    begun: u32,
    seen: u32,
}

impl Session {
    /// The session that a request carries, if it is still one.
    pub fn of(policy: &SessionPersistencePolicy, headers: &HeaderMap, now: Timestamp) -> Option<Self> {
        let text = match policy.kind {
            SessionKind::Cookie => cookie(headers, name(policy))?,
            SessionKind::Header => headers.get(name(policy))?.to_str().ok()?,
        };
        let session = Self::parse(text)?;
        let age = |since: u32| now.since(Timestamp::from_seconds(u64::from(since)));
        let over = |since: u32, longest: Option<Duration>| longest.is_some_and(|most| age(since) >= most);
        let ahead = Timestamp::from_seconds(u64::from(session.begun.max(session.seen))) > now + CLOCK_SLACK;
        let ended = over(session.begun, policy.absolute_timeout.map(|limit| limit.get()))
            || over(session.seen, policy.idle_timeout.map(|limit| limit.get()));
        (!ahead && !ended).then_some(session)
    }

    /// Tells the client where it was, unless it knows.
    pub fn tell(
        policy: &SessionPersistencePolicy,
        held: Option<Self>,
        target: u64,
        headers: &mut HeaderMap,
        now: Timestamp,
    ) {
        let seconds = u32::try_from(now.seconds()).unwrap_or(u32::MAX);
        let same = held.filter(|held| held.target == target);
        let begun = same.map_or(seconds, |held| held.begun);
        let token = Self { target, begun, seen: seconds }.to_text();
        match policy.kind {
            // Clients that keep the last response's header need it on each.
            SessionKind::Header => {
                if let (Ok(name), Ok(value)) =
                    (name(policy).parse::<HeaderName>(), HeaderValue::from_str(&token))
                {
                    headers.insert(name, value);
                }
            }
            SessionKind::Cookie if same.is_some() && policy.idle_timeout.is_none() => {}
            SessionKind::Cookie => {
                let mut cookie = format!("{}={token}; Path=/; HttpOnly", name(policy));
                let lifetime = policy.cookie_config.map(|cookie| cookie.lifetime_type).unwrap_or_default();
                if let (CookieLifetime::Permanent, Some(longest)) = (lifetime, policy.absolute_timeout) {
                    let gone = u64::from(seconds.saturating_sub(begun));
                    cookie.push_str(&format!("; Max-Age={}", longest.get().as_secs().saturating_sub(gone)));
                }
                if let Ok(value) = HeaderValue::from_str(&cookie) {
                    headers.append(header::SET_COOKIE, value);
                }
            }
        }
    }

    fn to_text(self) -> String {
        let mut bytes = [0; TOKEN_BYTES];
        bytes[0] = VERSION;
        bytes[1..9].copy_from_slice(&self.target.to_be_bytes());
        bytes[9..13].copy_from_slice(&self.begun.to_be_bytes());
        bytes[13..].copy_from_slice(&self.seen.to_be_bytes());
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn parse(text: &str) -> Option<Self> {
        if text.len() != 2 * TOKEN_BYTES || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let part = |from: usize, to: usize| u64::from_str_radix(&text[2 * from..2 * to], 16).ok();
        let seconds = |from: usize| part(from, from + 4).and_then(|n| u32::try_from(n).ok());
        (part(0, 1)? == u64::from(VERSION)).then_some(Self {
            target: part(1, 9)?,
            begun: seconds(9)?,
            seen: seconds(13)?,
        })
    }
}

fn name(policy: &SessionPersistencePolicy) -> &str {
    policy.session_name.as_deref().unwrap_or(DEFAULT_NAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

    fn policy(text: &str) -> SessionPersistencePolicy {
        serde_json::from_str(text).unwrap()
    }

    /// The cookie that a response sets, as a request brings it back.
    fn brought(headers: &HeaderMap) -> HeaderMap {
        let set = headers[header::SET_COOKIE].to_str().unwrap();
        HeaderMap::from_iter([(
            header::COOKIE,
            format!("a=b; {}", set.split(';').next().unwrap()).parse().unwrap(),
        )])
    }

    #[test]
    fn a_cookie_comes_back_and_ends_when_the_policy_says() {
        let policy = policy(
            r#"{ "absoluteTimeout": "1h", "idleTimeout": "10m", "cookieConfig": { "lifetimeType": "Permanent" } }"#,
        );
        let mut told = HeaderMap::new();
        Session::tell(&policy, None, 77, &mut told, NOW);
        let set = told[header::SET_COOKIE].to_str().unwrap();
        assert!(
            set.starts_with("hanse-session=01") && set.ends_with("; Path=/; HttpOnly; Max-Age=3600"),
            "{set}"
        );
        let after = |minutes: u64, from: &HeaderMap| {
            Session::of(&policy, &brought(from), NOW + Duration::from_secs(minutes * 60))
        };
        assert_eq!(after(9, &told).unwrap().target, 77);
        assert_eq!(after(10, &told), None, "idle");
        let mut last = told;
        for minutes in (9..60).step_by(9) {
            let held = after(minutes, &last);
            assert!(held.is_some(), "{minutes}");
            last = HeaderMap::new();
            Session::tell(&policy, held, 77, &mut last, NOW + Duration::from_secs(minutes * 60));
        }
        assert_eq!(after(60, &last), None, "an hour after it began, however busy it was");
    }

    #[test]
    fn whoever_knows_is_not_told_again_and_another_target_is_another_session() {
        let policy = policy(r#"{ "sessionName": "s" }"#);
        let mut told = HeaderMap::new();
        Session::tell(&policy, None, 77, &mut told, NOW);
        let held = Session::of(&policy, &brought(&told), NOW);
        let mut again = HeaderMap::new();
        Session::tell(&policy, held, 77, &mut again, NOW);
        assert!(again.is_empty());
        Session::tell(&policy, held, 78, &mut again, NOW);
        assert_eq!(Session::of(&policy, &brought(&again), NOW).unwrap().target, 78);
    }

    #[test]
    fn what_is_no_token_is_no_session() {
        let policy = policy(r#"{ "type": "Header", "sessionName": "x-s" }"#);
        let mut told = HeaderMap::new();
        Session::tell(&policy, None, u64::MAX, &mut told, NOW);
        let good = told["x-s"].to_str().unwrap().to_owned();
        let read = |text: &str| {
            let headers =
                HeaderMap::from_iter([("x-s".parse().unwrap(), HeaderValue::from_str(text).unwrap())]);
            Session::of(&policy, &headers, NOW)
        };
        assert_eq!(read(&good).unwrap().target, u64::MAX);
        let future = format!("{}{}", &good[..18], "ffffffff".repeat(2));
        let other_version = format!("02{}", &good[2..]);
        for bad in
            ["", "01", &good[1..], &format!("{good}0"), &good.replace('f', "g"), &future, &other_version]
        {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
