//! Names that requests are told of by: ours, a service's, and those of the clusters that answer for it; made once, not per request.

use std::cell::{OnceCell, RefCell};
use std::sync::Arc;

use hanse_federation::View;
use hanse_identity::{ClusterName, ServiceName};
use http::HeaderValue;

use super::Outbound;
use crate::answer::Reason;
use crate::io::record::Record;
use crate::runtime::credentials::Current;
use crate::runtime::text::Text;

/// One service and the clusters that answer for it, as records and headers have them.
pub(super) struct Names {
    pub service: Text,
    clusters: RefCell<Vec<Named>>,
    outside: OnceCell<Named>,
}

/// A cluster, as records and headers have it.
#[derive(Clone)]
pub(super) struct Named {
    pub name: ClusterName,
    pub text: Text,
    pub header: HeaderValue,
}

/// Ourselves, as records have us.
#[derive(Default)]
pub(super) struct OwnNames {
    pub of: Option<Arc<Current>>,
    pub cluster: Text,
    pub spiffe: Text,
}

/// Names of clusters that one service's tables keep.
const MAX_CLUSTERS: usize = 64;

impl Outbound {
    /// Puts us into the record.
    pub(super) fn tell_source(&self, view: &View, own: &Arc<Current>, record: &mut Record) {
        let mut names = self.own.borrow_mut();
        if !names.of.as_ref().is_some_and(|of| Arc::ptr_eq(of, own)) || names.cluster != view.cluster.as_str()
        {
            let (cluster, spiffe) = (Text::of(&view.cluster), Text::of(&own.identity.facts.id));
            *names = OwnNames { of: Some(Arc::clone(own)), cluster, spiffe };
        }
        record.entry.source_cluster = names.cluster.clone();
        record.entry.source_spiffe = names.spiffe.clone();
    }
}

/// A name that nobody has is whatever the app has made up, and no label: there is no end of them. The log has it as the
/// authority.
pub(super) fn forget_made_up(reason: Reason, record: &mut Record) {
    if reason == Reason::NoSuchService && record.entry.policy.is_empty() {
        record.entry.upstream_cluster = Text::default();
    }
}

impl Names {
    pub fn new(service: &ServiceName) -> Self {
        Self { service: Text::of(service), clusters: RefCell::default(), outside: OnceCell::new() }
    }

    /// Outside, which is no cluster; `own`: whose limits count.
    pub fn outside(&self, own: &ClusterName) -> Named {
        let header = HeaderValue::from_static("outside");
        let named = || Named { name: own.clone(), text: Text::of(&"outside"), header };
        self.outside.get_or_init(named).clone()
    }

    pub fn cluster(&self, name: &ClusterName) -> Named {
        let mut clusters = self.clusters.borrow_mut();
        if let Some(named) = clusters.iter().find(|named| named.name == *name) {
            return named.clone();
        }
        // Clusters leave now and then; no request remembers which.
        if clusters.len() >= MAX_CLUSTERS {
            clusters.clear();
        }
        let header = HeaderValue::from_str(name.as_str()).expect("a DNS label is visible ASCII");
        let named = Named { name: name.clone(), text: Text::of(name), header };
        clusters.push(named.clone());
        named
    }
}
