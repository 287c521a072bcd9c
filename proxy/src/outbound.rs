//! Outbound, the pure part: what a request of our own app means, and what may be done with it.

use std::sync::Arc;
use std::time::Duration;

use hanse_federation::choose::NoChoice;
use hanse_federation::host::ServiceHost;
use hanse_federation::policy::route::NoRoute;
use hanse_federation::policy::{RequestParts, RouteTable};

use crate::answer::Reason;
use crate::attempt::DEFAULT_REQUEST_TIMEOUT;

/// What is to be done with one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The service whose ladder is asked.
    pub backend: Arc<ServiceHost>,
    /// The route that said so; empty where none did.
    pub route: Arc<str>,
    pub request_timeout: Duration,
    /// As policy says; see `Attempts::timeout` for the default.
    pub attempt_timeout: Option<Duration>,
}

/// Which service a request is for: what the listener is bound to, else what the Host names.
pub fn destination(bound: Option<&ServiceHost>, authority: Option<&str>) -> Result<ServiceHost, Reason> {
    match (bound, authority) {
        (Some(bound), _) => Ok(bound.clone()),
        (None, Some(authority)) => ServiceHost::parse(authority).ok_or(Reason::UnknownHost),
        (None, None) => Err(Reason::BadRequest),
    }
}

/// Route: from the service that was named to the one that gets the request.
pub fn plan(
    host: &ServiceHost,
    routes: &RouteTable,
    request: &RequestParts<'_>,
    random: u64,
) -> Result<Plan, Reason> {
    let routed = routes.route(host, request, random).map_err(|no| match no {
        NoRoute::NoMatch => Reason::NoRoute,
        NoRoute::NoBackend => Reason::NoBackend,
    })?;
    Ok(Plan {
        backend: routed.backend,
        route: routed.route,
        request_timeout: routed.request_timeout.unwrap_or(DEFAULT_REQUEST_TIMEOUT),
        attempt_timeout: routed.attempt_timeout,
    })
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
        let request = RequestParts { method: "GET", path: "/", header: &none };
        let plan = plan(&host, &routes, &request, 7).unwrap();
        let expected = Plan {
            backend: Arc::new(host),
            route: "".into(),
            request_timeout: DEFAULT_REQUEST_TIMEOUT,
            attempt_timeout: None,
        };
        assert_eq!(plan, expected);
    }
}
