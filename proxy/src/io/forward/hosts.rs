//! What our app's authorities mean: read once, and remembered with the service's tables, so that the next request for the
//! same host looks nothing up. Forgotten every few seconds, which also lets go of what an older View said.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use hanse_federation::View;
use hanse_federation::host::ServiceHost;
use http::uri::Authority;

use super::{Outbound, Tables};
use crate::answer::Reason;
use crate::outbound;

/// One worker's.
#[derive(Default)]
pub(super) struct Hosts {
    /// The one asked for last: the next request is mostly for the same.
    last: RefCell<Option<Rc<Host>>>,
    known: RefCell<HashMap<Box<str>, Rc<Host>>>,
}

/// An authority, and what it means here.
pub(super) struct Host {
    pub service: ServiceHost,
    /// As the app wrote it, where that may be sent on.
    pub authority: Option<Authority>,
    tables: RefCell<Option<Rc<Tables>>>,
}

/// Authorities that one worker remembers.
const MAX_HOSTS: usize = 1024;

impl Hosts {
    /// The service that a request is for. `bound`: what the listener is for, whatever the authority says.
    pub fn of(&self, bound: Option<&ServiceHost>, authority: Option<&str>) -> Result<Rc<Host>, Reason> {
        let (None, Some(text)) = (bound, authority) else {
            let service = outbound::destination(bound, authority)?;
            return Ok(Rc::new(Host { service, authority: None, tables: RefCell::default() }));
        };
        if let Some(last) = &*self.last.borrow()
            && last.authority.as_ref().is_some_and(|known| known.as_str() == text)
        {
            return Ok(Rc::clone(last));
        }
        let known = self.known.borrow().get(text).cloned();
        let host = match known {
            Some(host) => host,
            None => self.read(text)?,
        };
        *self.last.borrow_mut() = Some(Rc::clone(&host));
        Ok(host)
    }

    fn read(&self, text: &str) -> Result<Rc<Host>, Reason> {
        let service = outbound::destination(None, Some(text))?;
        let authority = text.parse::<Authority>().ok();
        let is_text = authority.is_some();
        let host = Rc::new(Host { service, authority, tables: RefCell::default() });
        let mut known = self.known.borrow_mut();
        if is_text && known.len() < MAX_HOSTS {
            known.insert(text.into(), Rc::clone(&host));
        }
        Ok(host)
    }

    pub fn forget(&self) {
        self.last.take();
        self.known.borrow_mut().clear();
    }
}

impl Host {
    /// One that is read anew by every request, as what it means changes with the documents: a host outside, or a Gateway's.
    pub fn unread(service: ServiceHost, authority: &str) -> Rc<Self> {
        Rc::new(Self { service, authority: authority.parse().ok(), tables: RefCell::default() })
    }
}

impl Outbound {
    /// The tables of the host's own service at this View.
    pub(super) fn tables_of(&self, view: &View, host: &Host) -> Rc<Tables> {
        let mut held = host.tables.borrow_mut();
        match &*held {
            Some(tables) if tables.revision == view.revision => Rc::clone(tables),
            _ => Rc::clone(held.insert(self.tables(view, &host.service))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_read_once_and_the_listener_goes_before_it() {
        let hosts = Hosts::default();
        let named = "reviews.shop.svc.clusterset.local:8080";
        let first = hosts.of(None, Some(named)).unwrap();
        assert_eq!(first.service.service.to_string(), "shop/reviews");
        assert_eq!(first.authority.as_ref().unwrap().as_str(), named);
        let other = hosts.of(None, Some("ratings.shop")).unwrap();
        assert_eq!(other.service.service.to_string(), "shop/ratings");
        assert!(Rc::ptr_eq(&first, &hosts.of(None, Some(named)).unwrap()));
        let bound = hosts.of(Some(&other.service), Some(named)).unwrap();
        assert_eq!((&bound.service, &bound.authority), (&other.service, &None));
        assert_eq!(hosts.of(None, Some("www.example.com")).err(), Some(Reason::UnknownHost));
        assert_eq!(hosts.of(None, None).err(), Some(Reason::BadRequest));
        hosts.forget();
        assert!(!Rc::ptr_eq(&first, &hosts.of(None, Some(named)).unwrap()));
    }

    #[test]
    fn no_more_authorities_are_remembered_than_there_is_room_for() {
        let hosts = Hosts::default();
        for n in 0..2 * MAX_HOSTS {
            hosts.of(None, Some(&format!("s{n}.shop"))).unwrap();
        }
        assert_eq!(hosts.known.borrow().len(), MAX_HOSTS);
    }
}
