//! The CORS filter, compiled (Gateway API v1, HTTPCORSFilter; Fetch, "CORS protocol"): what a preflight is answered, and
//! what is added to answers. Pure; header values are made once.

use std::net::Ipv6Addr;

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::super::document::cors::{ANY, Cors as Written};

/// One rule's filter.
#[derive(Debug, PartialEq, Eq)]
pub struct Cors {
    /// Empty: none; `None`: all.
    origins: Option<Vec<Origin>>,
    credentials: bool,
    methods: Allowed,
    headers: Allowed,
    expose: Option<HeaderValue>,
    max_age: HeaderValue,
}

/// What a page may ask with.
#[derive(Debug, PartialEq, Eq)]
enum Allowed {
    /// Nothing that has to be named.
    Nothing,
    These(HeaderValue),
    All,
}

/// An origin, or a pattern of origins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    scheme: Scheme,
    host: Host,
    port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    Http,
    Https,
}

/// Lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    Any,
    This(String),
    /// What comes after the `*`, with its dot: one label or more are before it.
    Below(String),
}

/// Seconds, where nobody says (Gateway API).
const DEFAULT_MAX_AGE: u32 = 5;
/// Most lines of headers asked about that are repeated; browsers send one.
const MAX_ASKED: usize = 16;
/// What decides about reading an answer: ours, and nobody else's beside it.
const DECIDING: [HeaderName; 3] = [
    header::ACCESS_CONTROL_ALLOW_ORIGIN,
    header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
    header::ACCESS_CONTROL_EXPOSE_HEADERS,
];

impl Cors {
    pub(super) fn compile(cors: &Written) -> Self {
        let credentials = cors.allow_credentials == Some(true);
        let all = cors.allow_origins.iter().any(|origin| origin == ANY);
        // What is no origin is refused when it is applied.
        let origins = cors.allow_origins.iter().filter_map(|origin| Origin::parse(origin).ok());
        // With credentials a browser takes the star for a name: what is named beside it is exposed.
        let exposed = cors.expose_headers.iter().filter(|name| !credentials || *name != ANY);
        let expose = match Allowed::of(&exposed.cloned().collect::<Vec<_>>()) {
            Allowed::These(headers) => Some(headers),
            Allowed::All => Some(HeaderValue::from_static(ANY)),
            Allowed::Nothing => None,
        };
        Self {
            origins: (!all).then(|| origins.collect()),
            credentials,
            methods: Allowed::of(&cors.allow_methods),
            headers: Allowed::of(&cors.allow_headers),
            expose,
            max_age: HeaderValue::from(cors.max_age.unwrap_or(DEFAULT_MAX_AGE)),
        }
    }

    /// What the answer to a preflight with these headers says; to an origin that is not allowed, nothing.
    pub fn preflight(&self, asked: &HeaderMap) -> HeaderMap {
        let mut answer = HeaderMap::new();
        vary(&mut answer);
        let Some(origin) = origin_of(asked).filter(|origin| self.is_allowed(origin)) else { return answer };
        self.grant(origin, &mut answer);
        let methods = match &self.methods {
            Allowed::Nothing => None,
            Allowed::These(these) => Some(these.clone()),
            Allowed::All if self.credentials => asked.get(header::ACCESS_CONTROL_REQUEST_METHOD).cloned(),
            Allowed::All => Some(HeaderValue::from_static(ANY)),
        };
        answer.extend(methods.map(|methods| (header::ACCESS_CONTROL_ALLOW_METHODS, methods)));
        self.allow_headers(asked, &mut answer);
        answer.insert(header::ACCESS_CONTROL_MAX_AGE, self.max_age.clone());
        answer
    }

    /// Says in the answer to a request with that `Origin` who may read it.
    pub fn edit_response(&self, origin: Option<&HeaderValue>, answer: &mut HeaderMap) {
        DECIDING.iter().for_each(|name| drop(answer.remove(name)));
        vary(answer);
        let Some(origin) = origin.filter(|origin| self.is_allowed(origin)) else { return };
        self.grant(origin, answer);
    }

    fn allow_headers(&self, asked: &HeaderMap, answer: &mut HeaderMap) {
        let name = header::ACCESS_CONTROL_ALLOW_HEADERS;
        let mut lines =
            asked.get_all(header::ACCESS_CONTROL_REQUEST_HEADERS).iter().take(MAX_ASKED).peekable();
        match &self.headers {
            Allowed::Nothing => {}
            Allowed::These(these) => drop(answer.insert(name, these.clone())),
            // As they were asked for: a star stands for none with credentials, and never for Authorization.
            Allowed::All if lines.peek().is_some() => {
                answer.extend(lines.map(|line| (name.clone(), line.clone())));
            }
            Allowed::All if self.credentials => {}
            Allowed::All => drop(answer.insert(name, HeaderValue::from_static(ANY))),
        }
    }

    fn is_allowed(&self, origin: &HeaderValue) -> bool {
        let Some(origins) = &self.origins else { return true };
        let asked = origin.to_str().ok().and_then(Origin::of_request);
        asked.is_some_and(|(scheme, host, port)| {
            origins.iter().any(|origin| origin.matches(scheme, &host, port))
        })
    }

    fn grant(&self, origin: &HeaderValue, answer: &mut HeaderMap) {
        let any = self.origins.is_none() && !self.credentials;
        let origin = if any { HeaderValue::from_static(ANY) } else { origin.clone() };
        answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if self.credentials {
            answer.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        if let Some(expose) = &self.expose {
            answer.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone());
        }
    }
}

/// Even where all origins hear the same, who names none hears nothing: caches have to know.
fn vary(answer: &mut HeaderMap) {
    answer.append(header::VARY, HeaderValue::from_static("Origin"));
}

/// Where a request comes from, as its browser says; two are nobody's.
pub fn origin_of(headers: &HeaderMap) -> Option<&HeaderValue> {
    let mut origins = headers.get_all(header::ORIGIN).iter();
    origins.next().filter(|_| origins.next().is_none())
}

/// Whether a request with this method and these headers only asks whether another may be sent; what for.
pub fn preflight_method<'h>(method: &http::Method, headers: &'h HeaderMap) -> Option<&'h HeaderValue> {
    let asks = *method == http::Method::OPTIONS && headers.contains_key(header::ORIGIN);
    asks.then(|| headers.get(header::ACCESS_CONTROL_REQUEST_METHOD)).flatten()
}

impl Allowed {
    fn of(names: &[String]) -> Self {
        if names.is_empty() {
            return Self::Nothing;
        }
        if names.iter().any(|name| name == ANY) {
            return Self::All;
        }
        // Names are tokens, and so visible ASCII.
        HeaderValue::from_str(&names.join(", ")).map_or(Self::Nothing, Self::These)
    }
}

impl Origin {
    /// `Err`: what is wrong, as a sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let shown = || text.chars().take(80).collect::<String>();
        let wrong = |why: &str| format!("{:?} {why}; an origin is like https://shop.example:8443", shown());
        let (scheme, host, port) = split(text).ok_or_else(|| wrong("is no origin"))?;
        let host = host.to_ascii_lowercase();
        let letters = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
        let bracketed = || host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let host = match host.strip_prefix('*') {
            Some("") => Host::Any,
            Some(after) if after.len() > 1 && after.starts_with('.') && letters(after) => {
                Host::Below(after.to_owned())
            }
            Some(_) => return Err(wrong("has a * that is neither the host nor its first label")),
            None if letters(&host) && !host.is_empty() => Host::This(host),
            None if bracketed().is_some_and(|ip| ip.parse::<Ipv6Addr>().is_ok()) => Host::This(host),
            None => return Err(wrong("names no host")),
        };
        Ok(Self { scheme, host, port })
    }

    /// Whether it is a pattern of every host's.
    pub fn is_any_host(&self) -> bool {
        self.host == Host::Any
    }

    fn of_request(text: &str) -> Option<(Scheme, String, u16)> {
        let (scheme, host, port) = split(text)?;
        Some((scheme, host.to_ascii_lowercase(), port))
    }

    fn matches(&self, scheme: Scheme, host: &str, port: u16) -> bool {
        let same = match &self.host {
            Host::Any => true,
            Host::This(wanted) => wanted == host,
            Host::Below(after) => host.strip_suffix(after.as_str()).is_some_and(|any| !any.is_empty()),
        };
        same && self.scheme == scheme && self.port == port
    }
}

/// Scheme, host and port; nothing else may be in it.
fn split(text: &str) -> Option<(Scheme, &str, u16)> {
    let (scheme, rest) = text.split_once("://")?;
    let (scheme, usual) = match scheme.to_ascii_lowercase().as_str() {
        "http" => (Scheme::Http, 80),
        "https" => (Scheme::Https, 443),
        _ => return None,
    };
    if rest.is_empty() || rest.contains(['/', '?', '#', '@', ' ']) {
        return None;
    }
    match rest.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => {
            let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
            Some((scheme, host, port.parse().ok().filter(|port| digits && *port > 0)?))
        }
        _ => Some((scheme, rest, usual)),
    }
}

#[cfg(test)]
mod tests;
