//! Route: whether a tunnel may be opened, and to which endpoints. Pure: View and caller in, decision out.
//!
//! Decided before a byte goes to the target: who calls (already verified), is it still believed, is the service
//! exported to the caller's cluster. Neighbours: `limit` bounds how many, `io::tunnel` does it.

use hanse_federation::host::ServiceHost;
use hanse_federation::{Endpoint, View};
use hanse_identity::{ServiceName, SpiffeId};

/// Leave to open a tunnel to one service. Only `admit` makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admitted {
    service: ServiceName,
}

/// Why a tunnel is not opened; the status that the caller's proxy gets, and the reason in words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("the authority names no service")]
    NotAService,
    #[error("service {0} does not exist here")]
    UnknownService(ServiceName),
    #[error("the cluster of {0} is not joined to this one")]
    UnknownCluster(SpiffeId),
    #[error("service {service} is not exported to the cluster of {caller}")]
    NotExported { service: ServiceName, caller: SpiffeId },
    #[error("no endpoint of {0} is ready")]
    NobodyReady(ServiceName),
}

impl Denied {
    /// HTTP status of the CONNECT's answer: 403 not allowed, 404 unknown, 503 nobody there.
    pub fn status(&self) -> http::StatusCode {
        match self {
            Self::NotAService | Self::UnknownService(_) => http::StatusCode::NOT_FOUND,
            Self::UnknownCluster(_) | Self::NotExported { .. } => http::StatusCode::FORBIDDEN,
            Self::NobodyReady(_) => http::StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The word for `x-hanse-reason` and for the counter's label: few and stable.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotAService => "not-a-service",
            Self::UnknownService(_) => "unknown-service",
            Self::UnknownCluster(_) => "unknown-cluster",
            Self::NotExported { .. } => "not-exported",
            Self::NobodyReady(_) => "nobody-ready",
        }
    }
}

impl Admitted {
    pub fn service(&self) -> &ServiceName {
        &self.service
    }

    /// Ready endpoints in the order to try them: by weight and `random` first, the others as fallbacks.
    pub fn endpoints<'v>(&self, view: &'v View, random: u64) -> Vec<&'v Endpoint> {
        let mut ready: Vec<&Endpoint> =
            view.endpoints.values().filter(|e| e.ready && e.services.contains(&self.service)).collect();
        let total: u64 = ready.iter().map(|e| u64::from(e.weight.max(1))).sum();
        if total == 0 {
            return ready;
        }
        let mut left = random % total;
        let first = ready.iter().position(|e| {
            let weight = u64::from(e.weight.max(1));
            let hit = left < weight;
            left = left.saturating_sub(weight);
            hit
        });
        ready.rotate_left(first.unwrap_or(0));
        ready
    }
}

/// Decides whether `caller` may open a tunnel to what `authority` (the CONNECT's) names.
pub fn admit(view: &View, caller: &SpiffeId, authority: &str) -> Result<Admitted, Denied> {
    let host = ServiceHost::parse(authority).ok_or(Denied::NotAService)?;
    let at_home = *caller.trust_domain() == view.trust_domain;
    if !at_home && view.peer_of(caller.trust_domain()).is_none() {
        return Err(Denied::UnknownCluster(caller.clone()));
    }
    let service = host.service;
    if !view.services.contains_key(&service) {
        return Err(Denied::UnknownService(service));
    }
    if !view.may_call(caller, &service) {
        return Err(Denied::NotExported { service, caller: caller.clone() });
    }
    if !view.endpoints_of(&service).any(|e| e.ready) {
        return Err(Denied::NobodyReady(service));
    }
    Ok(Admitted { service })
}

#[cfg(test)]
mod tests;
