//! What one worker knows of each service at one revision: routes, ladder, limits; built on first use, kept while the View stays,
//! let go when it is over.

use std::cell::RefCell;
use std::rc::Rc;

use hanse_federation::choose::{Ladder, Limits};
use hanse_federation::health::Target;
use hanse_federation::host::{Reach, ServiceHost};
use hanse_federation::policy::{RouteTable, StreamRoutes};
use hanse_federation::{Revision, View};
use hanse_identity::{ServiceName, Timestamp};

use super::Outbound;
use super::backend::Backend;
use super::connect::Recent;
use super::names::Names;
use super::outside::Outside;

/// What is known of one service at one revision.
pub(super) struct Tables {
    pub revision: Revision,
    pub routes: RouteTable,
    pub streams: StreamRoutes,
    pub ladder: RefCell<Ladder>,
    pub backend: Rc<Backend>,
    /// This worker's share.
    pub limits: Limits,
    pub names: Rc<Names>,
    /// Connections that requests went by last, by `Candidate::key`.
    pub recent: Recent,
    /// Where it is, if that is out of the mesh.
    pub outside: Option<Outside>,
}

/// Services whose tables one worker keeps.
const MAX_TABLES: usize = 20_000;

impl Outbound {
    /// The service's tables at this View; built on first use after it changed.
    pub(super) fn tables(&self, view: &View, host: &ServiceHost) -> Rc<Tables> {
        if host.reach == Reach::External {
            return self.tables_outside(view, host);
        }
        let mut tables = self.tables.borrow_mut();
        let held = tables.get(host);
        if let Some(held) = held.filter(|held| held.revision == view.revision) {
            return Rc::clone(held);
        }
        let names = held.map_or_else(|| Rc::new(Names::new(&host.service)), |held| Rc::clone(&held.names));
        let previous = held.map(|held| held.ladder.borrow());
        let ladder = Ladder::build(view, host, &self.plane.locality, previous.as_deref());
        drop(previous);
        let known = !ladder.tiers.is_empty() || held.is_some();
        let routes = RouteTable::build(view, host);
        let streams = StreamRoutes::build(view, host);
        let known = known || !routes.is_empty() || !streams.is_empty();
        let limits = ladder.settings.limits.share(self.workers);
        let backend = self.backends.of(host, known);
        let ladder = RefCell::new(ladder);
        let built = Rc::new(Tables {
            revision: view.revision,
            routes,
            streams,
            ladder,
            backend,
            limits,
            names,
            recent: Recent::default(),
            outside: None,
        });
        // Names that nothing is known of are not remembered: anybody can make up more of them.
        if known && tables.len() < MAX_TABLES {
            tables.insert(host.clone(), Rc::clone(&built));
        }
        built
    }

    /// Called every few seconds: forgets what is over.
    pub fn tidy(&self, now: Timestamp) {
        self.hosts.forget();
        self.pool.tidy(now);
        self.stream_pool.tidy(now);
        let Some(view) = self.plane.knowledge.view() else { return };
        self.tunnels.tidy(&view);
        let still_there = |target: &Target| match target {
            Target::Endpoint(id) => view.endpoints.contains_key(id),
            Target::Cluster(cluster) => view.peers.contains_key(cluster),
            Target::Address(_) => self.is_outside(target),
        };
        let mut health = self.health.borrow_mut();
        health.retain(|_, target| still_there(target));
        health.retain_paths(|cluster| view.peers.contains_key(cluster));
        let externals = self.externals(&view);
        self.outsiders.tidy(now, |service| externals.get(service).is_some());
        let inside = |service: &ServiceName| {
            view.services.contains_key(service)
                || view.peers.values().any(|p| p.services.contains_key(service))
        };
        let outside = |service: &ServiceName| externals.get(service).is_some();
        self.backends.tidy(
            |whose| if whose.outside { outside(&whose.service) } else { inside(&whose.service) },
            still_there,
        );
        let known = |service: &ServiceName| inside(service) || outside(service);
        self.tables.borrow_mut().retain(|host, tables| known(&host.service) || !tables.routes.is_empty());
    }
}
