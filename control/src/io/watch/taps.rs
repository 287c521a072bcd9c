//! Taps on one stream: the subscriber is told who looks at its requests, and what it tells of them is passed on.

use hanse_federation::tap::Request;
use hanse_federation::wire::watch::watch_down::Message as Down;
use hanse_federation::wire::watch::{Tap, Tapped, Taps};
use hanse_federation::wire::{decode, encode};

use super::{End, Subscription};
use crate::admin::{SubscriberKind, TapPart};

impl Subscription {
    /// Tells the subscriber of the taps that are for it, if these are others than it was told of last. A gateway passes on
    /// what it cannot read, so there are none for it.
    pub(super) fn tap(&mut self) -> Result<(), End> {
        let nothing = self.tapped.is_empty() && self.context.taps.count() == 0;
        if nothing || self.key.kind != SubscriberKind::Proxy {
            return Ok(());
        }
        let open = self.context.taps.of(&self.key.name, &self.context.handle.state().view);
        let ids: Vec<u64> = open.iter().map(|open| open.id).collect();
        if ids == self.tapped {
            return Ok(());
        }
        self.tapped = ids;
        let tap = open.iter().map(|open| Tap {
            id: open.id,
            tap: encode(&open.tap),
            left_millis: u64::try_from(open.left().as_millis()).unwrap_or(u64::MAX),
        });
        self.send(Down::Taps(Taps { tap: tap.collect() }))
    }

    /// What it tells is passed on as far as it was asked for, and may say it. What cannot be read is of another version.
    pub(super) fn pass_on(&self, tapped: Tapped) {
        let open = self.context.taps.changes();
        let Some(open) = open.borrow().iter().find(|open| open.id == tapped.tap).cloned() else { return };
        if !self.tapped.contains(&tapped.tap) {
            return;
        }
        let told = tapped.request.iter().take(open.tap.rate as usize);
        let read = told.filter_map(|request| decode::<Request>("request", request).ok()?.of(&self.identity));
        open.put(TapPart {
            proxy: self.key.name.clone(),
            identity: self.identity.clone(),
            requests: read.collect(),
            left_out: tapped.left_out,
        });
    }
}
