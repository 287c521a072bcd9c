//! Whether a route may send to what is in another namespace: only where a ReferenceGrant there says so (Gateway API v1). Pure.

use hanse_identity::ServiceName;

use super::document::{PolicyDocument, PolicyKey, PolicyKind, PolicySpec, RefKind};
use crate::view::View;

/// No label is before it.
const FIRST_NAME: &str = "0";

/// Who refers to something: documents of one kind in one namespace.
#[derive(Clone, Copy, Debug)]
pub struct Referrer<'d> {
    pub kind: PolicyKind,
    pub namespace: &'d str,
}

/// A reference of a route to what is in another namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The field, from the document's root, without its last part.
    pub path: String,
    pub kind: RefKind,
    pub service: ServiceName,
    /// Its weight and that of the whole rule; `None` of a mirror.
    pub weight: Option<(u32, u64)>,
}

/// What a route names in another namespace, as whoever it has led there holds it: whether it is granted can be asked at each
/// View, whatever has become of the route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrossReference {
    route: PolicyKind,
    namespace: String,
    kind: RefKind,
    service: ServiceName,
}

impl CrossReference {
    /// `None`: it stays in its own namespace, where nobody has to be asked.
    pub fn of(from: Referrer<'_>, kind: RefKind, service: &ServiceName) -> Option<Self> {
        let namespace = from.namespace.to_owned();
        let leaves = namespace != service.namespace();
        leaves.then(|| Self { route: from.kind, namespace, kind, service: service.clone() })
    }

    pub fn is_granted(&self, view: &View) -> bool {
        let from = Referrer { kind: self.route, namespace: &self.namespace };
        from.may_name(view, self.kind, &self.service)
    }
}

impl<'d> Referrer<'d> {
    pub fn of(document: &'d PolicyDocument) -> Self {
        Self { kind: document.kind(), namespace: document.name.namespace() }
    }

    /// Whether it may name the service. In its own namespace it may.
    pub fn may_name(self, view: &View, kind: RefKind, service: &ServiceName) -> bool {
        if self.namespace == service.namespace() {
            return true;
        }
        // Keys are in order of kind, namespace, name: no other documents are looked at.
        let name = ServiceName::new(service.namespace(), FIRST_NAME).expect("both are labels");
        let first = PolicyKey { kind: PolicyKind::ReferenceGrant, name };
        let theirs = view.policies.range(first..).take_while(|(key, _)| {
            key.kind == PolicyKind::ReferenceGrant && key.name.namespace() == service.namespace()
        });
        self.may_name_by(theirs.map(|(_, document)| document), kind, service)
    }

    /// The same, by the grants among `documents`.
    pub fn may_name_by<'a>(
        self,
        documents: impl IntoIterator<Item = &'a PolicyDocument>,
        kind: RefKind,
        service: &ServiceName,
    ) -> bool {
        self.namespace == service.namespace()
            || documents.into_iter().any(|document| self.is_granted(document, kind, service))
    }

    fn is_granted(self, document: &PolicyDocument, kind: RefKind, service: &ServiceName) -> bool {
        let PolicySpec::ReferenceGrant(grant) = &document.spec else { return false };
        document.name.namespace() == service.namespace()
            && grant.from.iter().any(|from| {
                from.namespace.as_str() == self.namespace
                    && from.kind == self.kind.as_str()
                    && from.group == self.kind.group()
            })
            && grant.to.iter().any(|to| {
                to.is_of(kind) && to.name.as_ref().is_none_or(|name| name.as_str() == service.name())
            })
    }
}

/// What a route names in other namespaces: its backends, and who gets copies of requests. Nothing of other documents.
pub fn references(document: &PolicyDocument) -> Vec<Reference> {
    let route = match &document.spec {
        PolicySpec::HttpRoute(route) => route,
        PolicySpec::GrpcRoute(route) => &route.to_http(),
        PolicySpec::TcpRoute(route) => &route.to_http(),
        PolicySpec::TlsRoute(route) => &route.to_http(),
        _ => return Vec::new(),
    };
    let namespace = document.name.namespace();
    let mut found = Vec::new();
    for (r, rule) in route.rules.iter().enumerate() {
        let total = rule.backend_refs.iter().map(|backend| u64::from(backend.weight)).sum();
        for (b, backend) in rule.backend_refs.iter().enumerate() {
            found.push(Reference {
                path: format!("spec.rules[{r}].backendRefs[{b}]"),
                kind: backend.kind,
                service: backend.service(namespace),
                weight: Some((backend.weight, total)),
            });
        }
        for (f, filter) in rule.filters.iter().enumerate() {
            let Some(mirror) = &filter.request_mirror else { continue };
            found.push(Reference {
                path: format!("spec.rules[{r}].filters[{f}].requestMirror.backendRef"),
                kind: mirror.backend_ref.kind,
                service: mirror.backend_ref.service(namespace),
                weight: None,
            });
        }
    }
    found.retain(|reference| reference.service.namespace() != namespace);
    found
}

/// References of these routes that are granted in the View, and would not be by `grants` alone.
pub(super) fn lost<'v>(
    view: &View,
    routes: impl Iterator<Item = &'v PolicyDocument>,
    grants: &[&PolicyDocument],
) -> Vec<(PolicyKey, Reference)> {
    let of_route = |route: &PolicyDocument| {
        let from = Referrer::of(route);
        let mut lost = references(route);
        lost.retain(|to| {
            from.may_name(view, to.kind, &to.service)
                && !from.may_name_by(grants.iter().copied(), to.kind, &to.service)
        });
        let key = route.key();
        lost.into_iter().map(move |to| (key.clone(), to))
    };
    routes.flat_map(of_route).collect()
}

/// Every reference of a route in force that no grant permits.
pub fn refused(view: &View) -> impl Iterator<Item = (PolicyKey, Reference)> {
    view.policies.values().flat_map(move |document| {
        let from = Referrer::of(document);
        let all = references(document).into_iter();
        all.filter(move |to| !from.may_name(view, to.kind, &to.service)).map(|to| (document.key(), to))
    })
}

#[cfg(test)]
mod tests;
