//! Taps on one stream: the subscriber is told who looks at its requests, and what it tells of them is passed on.

use std::sync::Arc;

use hanse_federation::tap::Request;
use hanse_federation::wire::watch::watch_down::Message as Down;
use hanse_federation::wire::watch::{Tap, Tapped, Taps};
use hanse_federation::wire::{decode, encode};

use super::{End, Subscription};
use crate::admin::{SubscriberKind, TapPart};
use crate::io::taps::{Open, Telling};

impl Subscription {
    /// Tells the subscriber of the taps that are for it, if these are others than it was told of last. A gateway passes on
    /// what it cannot read, so there are none for it.
    pub(super) fn tap(&mut self) -> Result<(), End> {
        let nothing = self.tapped.is_empty() && self.context.taps.count() == 0;
        if nothing || self.key.kind != SubscriberKind::Proxy {
            return Ok(());
        }
        let open = self.context.taps.of(&self.key.name, &self.context.handle.state().view);
        if open.iter().map(|open| open.id).eq(self.tapped.iter().map(Telling::id)) {
            return Ok(());
        }
        let mut known = std::mem::take(&mut self.tapped);
        let of = |open: &Arc<Open>| match known.iter().position(|telling| telling.id() == open.id) {
            Some(at) => known.swap_remove(at),
            None => Telling::new(Arc::clone(open), &self.identity),
        };
        self.tapped = open.iter().map(of).collect();
        let tap = open.iter().map(|open| Tap {
            id: open.id,
            tap: encode(&open.tap),
            left_millis: u64::try_from(open.left().as_millis()).unwrap_or(u64::MAX),
        });
        self.send(Down::Taps(Taps { tap: tap.collect() }))
    }

    /// What it tells is passed on as far as it was asked for, and may say it. What cannot be read is of another version.
    pub(super) fn pass_on(&mut self, tapped: Tapped) {
        let Some(telling) = self.tapped.iter_mut().find(|telling| telling.id() == tapped.tap) else { return };
        let (mut requests, mut bytes, mut left_out) = (Vec::new(), 0, tapped.left_out);
        // To say only how much was left out is to tell, too.
        if tapped.request.is_empty() && !telling.takes(0) {
            return telling.omit(left_out);
        }
        for request in &tapped.request {
            if !telling.takes(request.len()) {
                left_out = left_out.saturating_add(1);
                continue;
            }
            let read = decode::<Request>("request", request).ok();
            if let Some(read) = read.and_then(|read| read.of(&self.identity)) {
                bytes += request.len();
                requests.push(read);
            }
        }
        let (proxy, identity) = (self.key.name.clone(), self.identity.clone());
        telling.put(TapPart { proxy, identity, requests, left_out }, bytes);
    }
}
