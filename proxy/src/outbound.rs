//! Outbound, the pure part: what a request of our own app means, and what may be done with it.

use std::sync::Arc;
use std::time::Duration;

use hanse_federation::choose::{NoChoice, stable_hash};
use hanse_federation::host::ServiceHost;
use hanse_federation::policy::document::balance::HashOn;
use hanse_federation::policy::route::{Cors, NO_TIMEOUT, NoRoute, preflight_method};
use hanse_federation::policy::{Filters, RequestParts, RouteTable, Routed};

use hanse_identity::SpiffeId;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};

use crate::answer::Reason;
use crate::attempt::DEFAULT_REQUEST_TIMEOUT;

/// Where a gRPC call says how long it may take.
const GRPC_TIMEOUT: &str = "grpc-timeout";
/// What a call came to, in the head of a response that has no body.
pub(crate) const GRPC_STATUS: &str = "grpc-status";

/// What is to be done with one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The service whose ladder is asked.
    pub backend: Arc<ServiceHost>,
    /// The port of it that the route names, where it is outside.
    pub port: Option<u16>,
    /// The route that said so; empty where none did.
    pub route: Arc<str>,
    pub request_timeout: Duration,
    /// As policy says; see `Attempts::timeout` for the default.
    pub attempt_timeout: Option<Duration>,
    /// What else the route does to it.
    pub filters: Option<Arc<Filters>>,
}

/// Which service a request is for: what the listener is bound to, else what the Host names.
pub fn destination(bound: Option<&ServiceHost>, authority: Option<&str>) -> Result<ServiceHost, Reason> {
    match (bound, authority) {
        (Some(bound), _) => Ok(bound.clone()),
        (None, Some(authority)) => ServiceHost::parse(authority).ok_or(Reason::UnknownHost),
        (None, None) => Err(Reason::BadRequest),
    }
}

/// Has `ask` look at what routes may look at of a request.
pub fn plan_for<B>(
    request: &Request<B>,
    ask: impl FnOnce(&RequestParts<'_>) -> Result<Plan, Reason>,
) -> Result<Plan, Reason> {
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    // What is no text is no method of any rule, and the preflight is one all the same.
    let preflight = preflight_method(request.method(), request.headers());
    ask(&RequestParts {
        method: request.method().as_str(),
        path: request.uri().path(),
        query: request.uri().query(),
        header: &header,
        preflight: preflight.map(|method| method.to_str().unwrap_or_default()),
    })
}

/// Whether the time until a response tells how loaded its target is. An error does not, and a refusal for want of room is
/// quick for the very reason that there is none: taken for speed it would draw more requests there.
pub fn says_how_loaded<B>(response: &Response<B>) -> bool {
    const EXHAUSTED: &[u8] = b"8";
    const UNAVAILABLE: &[u8] = b"14";
    let status = response.headers().get(GRPC_STATUS).map(HeaderValue::as_bytes);
    !response.status().is_server_error()
        && response.status() != StatusCode::TOO_MANY_REQUESTS
        && !matches!(status, Some(EXHAUSTED | UNAVAILABLE))
}

/// Route: from the service that was named to the one that gets the request.
pub fn plan(
    host: &ServiceHost,
    routes: &RouteTable,
    request: &RequestParts<'_>,
    is_grpc: bool,
    random: u64,
) -> Result<Plan, Reason> {
    Ok(planned(routes.route(host, request, random)?, request.header, is_grpc))
}

/// What a route that has been chosen means for a request.
pub fn planned<'r>(routed: Routed, header: impl Fn(&str) -> Option<&'r str>, is_grpc: bool) -> Plan {
    let configured = routed.request_timeout;
    let request_timeout = match is_grpc {
        // A call may stream for hours: its client says how long it has.
        true => {
            let asked = header(GRPC_TIMEOUT).and_then(grpc_timeout).unwrap_or(NO_TIMEOUT);
            asked.min(configured.unwrap_or(NO_TIMEOUT))
        }
        false => configured.unwrap_or(DEFAULT_REQUEST_TIMEOUT),
    };
    Plan {
        backend: routed.backend,
        port: routed.port,
        route: routed.route,
        request_timeout,
        attempt_timeout: routed.attempt_timeout,
        filters: routed.filters,
    }
}

impl Plan {
    /// Whose pages may ask, and read the answer, where the route says so.
    pub fn cors(&self) -> Option<&Cors> {
        self.filters.as_ref()?.cors()
    }
}

/// How long the client of a gRPC call waits (gRPC over HTTP/2, "Timeout"): at most eight digits and a unit.
fn grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

/// The hash by which the policy has a request's target chosen; `None` where the request has nothing of that.
pub fn hash_of(on: &HashOn, headers: &HeaderMap, query: Option<&str>, caller: &SpiffeId) -> Option<u64> {
    if let Some(name) = &on.header {
        return headers.get(name.as_str()).map(|value| stable_hash(value.as_bytes()));
    }
    if let Some(name) = &on.cookie {
        return cookie(headers, name).map(|value| stable_hash(value.as_bytes()));
    }
    if let Some(name) = &on.query {
        let mut pairs = query?.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        return pairs.find(|(n, _)| n == name).map(|(_, value)| stable_hash(value.as_bytes()));
    }
    (on.source_identity == Some(true)).then(|| stable_hash(caller.to_string().as_bytes()))
}

/// The value of the first cookie of that name (RFC 6265 §4.2.1).
pub fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let all = headers.get_all(header::COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    let pairs = all.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.filter(|(n, _)| *n == name).map(|(_, value)| value).next()
}

impl From<NoRoute> for Reason {
    fn from(no: NoRoute) -> Self {
        match no {
            NoRoute::NoMatch => Self::NoRoute,
            NoRoute::NoBackend => Self::NoBackend,
            NoRoute::RefNotPermitted => Self::RefNotPermitted,
        }
    }
}

impl From<NoChoice> for Reason {
    fn from(no: NoChoice) -> Self {
        match no {
            NoChoice::NoSuchService => Self::NoSuchService,
            NoChoice::NobodyHealthy => Self::NoHealthyEndpoint,
        }
    }
}

#[cfg(test)]
mod tests {
    use hanse_federation::View;
    use hanse_federation::host::Reach;

    use super::*;

    fn host(service: &str) -> ServiceHost {
        ServiceHost { service: service.parse().unwrap(), reach: Reach::ClusterSet }
    }

    #[test]
    fn the_listener_wins_over_the_host_header() {
        let bound = host("shop/ratings");
        assert_eq!(destination(Some(&bound), Some("www.elsewhere.example")), Ok(bound.clone()));
        assert_eq!(destination(Some(&bound), None), Ok(bound));
        assert_eq!(
            destination(None, Some("reviews.shop.svc.clusterset.local:8080")),
            Ok(host("shop/reviews"))
        );
        assert_eq!(destination(None, Some("www.example.com")), Err(Reason::UnknownHost));
        assert_eq!(destination(None, None), Err(Reason::BadRequest));
    }

    #[test]
    fn without_routes_the_service_itself_is_the_backend_and_defaults_hold() {
        let view = View::new("east".parse().unwrap(), "east.example".parse().unwrap());
        let host = host("shop/reviews");
        let routes = RouteTable::build(&view, &host);
        let none = |_: &str| None;
        let request = RequestParts { method: "GET", path: "/", query: None, header: &none, preflight: None };
        let plan = plan(&host, &routes, &request, false, 7).unwrap();
        let expected = Plan {
            backend: Arc::new(host),
            port: None,
            route: "".into(),
            request_timeout: DEFAULT_REQUEST_TIMEOUT,
            attempt_timeout: None,
            filters: None,
        };
        assert_eq!(plan, expected);
    }

    #[test]
    fn a_request_is_hashed_by_what_the_policy_names() {
        let mut headers = HeaderMap::new();
        headers.append("x-user", "ann".parse().unwrap());
        headers.append("cookie", "a=1; user=ann".parse().unwrap());
        headers.append("cookie", "user=bob".parse().unwrap());
        let caller: SpiffeId = "spiffe://east.example/ns/shop/sa/ann".parse().unwrap();
        let hash = |on: HashOn| hash_of(&on, &headers, Some("x=1&user=ann&user=bob"), &caller);
        let named = |name: &str| Some(name.to_owned());
        let ann = Some(stable_hash(b"ann"));
        assert_eq!(hash(HashOn { header: named("X-User"), ..HashOn::default() }), ann);
        assert_eq!(hash(HashOn { cookie: named("user"), ..HashOn::default() }), ann);
        assert_eq!(hash(HashOn { query: named("user"), ..HashOn::default() }), ann);
        let caller = Some(stable_hash(b"spiffe://east.example/ns/shop/sa/ann"));
        assert_eq!(hash(HashOn { source_identity: Some(true), ..HashOn::default() }), caller);
        for absent in [
            HashOn { header: named("x-other"), ..HashOn::default() },
            HashOn { cookie: named("x"), ..HashOn::default() },
            HashOn { query: named("y"), ..HashOn::default() },
            HashOn::default(),
        ] {
            assert_eq!(hash(absent), None);
        }
    }

    #[test]
    fn a_grpc_call_has_the_time_that_its_client_gives_it() {
        let view = View::new("east".parse().unwrap(), "east.example".parse().unwrap());
        let host = host("shop/reviews");
        let routes = RouteTable::build(&view, &host);
        let asked = |timeout: Option<&'static str>| {
            let header = move |name: &str| timeout.filter(|_| name == "grpc-timeout");
            let (method, path) = ("POST", "/s/m");
            let request = RequestParts { method, path, query: None, header: &header, preflight: None };
            plan(&host, &routes, &request, true, 7).unwrap().request_timeout
        };
        assert_eq!(asked(Some("250m")), Duration::from_millis(250));
        assert_eq!(asked(Some("2H")), Duration::from_secs(7200));
        assert_eq!(asked(Some("99999999u")), Duration::from_micros(99_999_999));
        for none in [None, Some(""), Some("S"), Some("5"), Some("-1S"), Some("1s"), Some("123456789S")] {
            assert_eq!(asked(none), NO_TIMEOUT, "{none:?}");
        }
    }

    #[test]
    fn a_quick_refusal_is_no_sign_of_speed() {
        let tells = |status: u16, grpc: Option<&str>| {
            let mut response = Response::builder().status(status);
            if let Some(code) = grpc {
                response = response.header("grpc-status", code);
            }
            says_how_loaded(&response.body(()).unwrap())
        };
        for (status, grpc) in [(200, None), (404, None), (200, Some("0")), (200, Some("5"))] {
            assert!(tells(status, grpc), "{status} {grpc:?}");
        }
        for (status, grpc) in [(429, None), (503, None), (500, None), (200, Some("8")), (200, Some("14"))] {
            assert!(!tells(status, grpc), "{status} {grpc:?}");
        }
    }
}
