//! End users' tokens on one worker: each is verified once, and remembered by its hash for as long as it lives.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use hanse_federation::policy::authentication::{AuthenticationTable, EndUser, Unauthenticated};
use hanse_federation::{Revision, View};
use hanse_identity::{ServiceName, Timestamp};
use http::HeaderMap;

/// Tokens that one worker remembers; above that the oldest are forgotten, and verified anew if they come again.
const REMEMBERED: usize = 2048;

type Hash = [u8; 32];

/// Who the end user of one request is, if it has one.
pub type Believed = Option<Rc<EndUser>>;

/// The RequestAuthentications at one View, and who has been believed by them.
#[derive(Default)]
pub struct Authentication {
    at: Revision,
    table: Arc<AuthenticationTable>,
    believed: HashMap<Hash, Rc<EndUser>>,
    order: VecDeque<Hash>,
}

impl Authentication {
    /// Who the end user is, if there is one; the headers say from now on what the token says and nobody else.
    pub fn authenticate(
        this: &RefCell<Self>,
        view: &View,
        services: &std::collections::BTreeSet<ServiceName>,
        headers: &mut HeaderMap,
        now: Timestamp,
    ) -> Result<Believed, Unauthenticated> {
        let mut this = this.borrow_mut();
        if this.at != view.revision {
            let table = AuthenticationTable::build(view, services, &this.table);
            // Other words, other keys: nobody is believed for what was written before.
            let same = Arc::ptr_eq(&table, &this.table);
            (this.at, this.table) = (view.revision, table);
            if !same {
                this.believed.clear();
                this.order.clear();
            }
        }
        if this.table.is_empty() {
            return Ok(None);
        }
        let table = Arc::clone(&this.table);
        let found = match table.token(headers)? {
            Some((place, token)) => {
                // By its place too: another header may be another rule's.
                let hash = hash(&format!("{place:?} {token}"));
                let user = match this.known(&hash, now) {
                    Some(user) => user,
                    None => this.remember(hash, Rc::new(table.verify(place, token, now)?)),
                };
                Some((place, user))
            }
            None => None,
        };
        table.rewrite(headers, found.as_ref().map(|(place, user)| (*place, user.as_ref())));
        Ok(found.map(|(_, user)| user))
    }

    /// Whether anything is said of end users here.
    pub fn has_rules(&self) -> bool {
        !self.table.is_empty()
    }

    fn known(&self, hash: &Hash, now: Timestamp) -> Option<Rc<EndUser>> {
        // From its end on it is judged again, with what clocks may differ by.
        self.believed.get(hash).filter(|user| now < user.token.expires).map(Rc::clone)
    }

    fn remember(&mut self, hash: Hash, user: Rc<EndUser>) -> Rc<EndUser> {
        if self.believed.insert(hash, Rc::clone(&user)).is_none() {
            self.order.push_back(hash);
        }
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.believed.remove(&oldest);
        }
        user
    }
}

fn hash(text: &str) -> Hash {
    digest(&SHA256, text.as_bytes()).as_ref().try_into().expect("SHA-256 has 32 bytes")
}
