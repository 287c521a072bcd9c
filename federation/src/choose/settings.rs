//! From the BackendPolicy in force for a service to the settings of its ladder.

use std::sync::Arc;

use hanse_identity::ClusterName;

use super::{LadderSettings, Limits, LocalityMode, RetrySettings, TierKind};
use crate::health::OutlierSettings;
use crate::host::ServiceHost;
use crate::policy::backend_policy;
use crate::policy::document::balance::Algorithm;
use crate::policy::document::{LocalityLabel, LocalityPolicy, LocalityPolicyMode, OutlierPolicy};
use crate::view::View;

/// What the policy says for callers in the View's own cluster; where it is silent, the defaults.
pub fn settings_of(view: &View, host: &ServiceHost) -> LadderSettings {
    let mut settings = LadderSettings::default();
    let Some(policy) = backend_policy(view, host) else { return settings };
    if let Some(locality) = &policy.locality {
        apply_locality(&mut settings, locality, &view.cluster);
    }
    if let Some(balancing) = &policy.load_balancing {
        settings.algorithm = balancing.algorithm;
        // For the others a hash would choose the tier, and move traffic between clusters.
        let hashes = matches!(balancing.algorithm, Algorithm::RingHash | Algorithm::Maglev);
        settings.hash_on = balancing.hash_on.clone().filter(|_| hashes).map(Arc::new);
        settings.warmup = balancing.warmup.map_or(settings.warmup, |warmup| warmup.get());
    }
    settings.session = policy.session_persistence.clone().map(Arc::new);
    if let Some(limits) = &policy.limits {
        settings.limits = Arc::new(Limits::of(limits));
    }
    if let Some(percent) = policy.health.as_ref().and_then(|health| health.panic_below) {
        settings.panic_below = percent.fraction();
    }
    if let Some(outlier) = policy.health.as_ref().and_then(|health| health.outlier.as_ref()) {
        apply_outlier(&mut settings.outlier, outlier);
        settings.max_ejected = outlier.max_ejected.map_or(settings.max_ejected, |percent| percent.fraction());
    }
    if let Some(retry) = &policy.retry {
        settings.retry = Arc::new(RetrySettings::of(retry));
    }
    settings
}

fn apply_locality(settings: &mut LadderSettings, locality: &LocalityPolicy, own: &ClusterName) {
    settings.mode = match locality.mode {
        LocalityPolicyMode::Failover => LocalityMode::Failover,
        LocalityPolicyMode::LocalOnly => LocalityMode::LocalOnly,
        LocalityPolicyMode::Ignore => LocalityMode::Ignore,
        // Callers in a cluster that the policy does not name are as if it said nothing.
        LocalityPolicyMode::Distribute => locality
            .distribute
            .iter()
            .find(|shares| shares.from == *own)
            .map(|shares| shares.to.iter().map(|(cluster, percent)| (cluster.clone(), *percent)).collect())
            .map_or(LocalityMode::Failover, LocalityMode::Distribute),
    };
    if let Some(labels) = &locality.prefer {
        settings.prefer = labels.iter().map(|label| tier_kind(*label)).collect();
    }
    settings.failover = locality.failover.iter().find(|f| f.from == *own).map(|f| f.to.clone());
    if let Some(percent) = locality.open_next_tier_below {
        settings.open_next_tier_below = percent.fraction();
    }
    if let Some(duration) = locality.return_after {
        settings.return_after = duration.get();
    }
}

fn tier_kind(label: LocalityLabel) -> TierKind {
    match label {
        LocalityLabel::Zone => TierKind::Zone,
        LocalityLabel::Region => TierKind::Region,
        LocalityLabel::Cluster => TierKind::Cluster,
    }
}

/// `interval` is not needed: rows of failures are counted as they come, not swept up at intervals.
fn apply_outlier(settings: &mut OutlierSettings, outlier: &OutlierPolicy) {
    if let Some(count) = outlier.consecutive_5xx {
        settings.consecutive_5xx = count;
    }
    if let Some(count) = outlier.consecutive_gateway_errors {
        settings.consecutive_gateway_errors = count;
    }
    if let Some(duration) = outlier.eject_for {
        settings.eject_for = duration.get();
        settings.eject_for_at_most = settings.eject_for_at_most.max(duration.get());
    }
}
