//! The revocation lists of this node's own authorities: signed here, because the keys never leave, and published
//! through the log. An empty one at an authority's birth, a new one whenever what it must list has changed, and in good
//! time before it runs out.

use std::sync::Arc;
use std::time::Duration;

use hanse_federation::Change;
use hanse_identity::crl::{MAX_ENTRIES, revoked_serials};
use hanse_identity::{Crl, Timestamp};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;

use super::context::{Context, stopped};
use crate::command::Command;
use crate::state::State;

/// Two lists of one authority are at least this far apart; the first of a burst goes out at once.
const PACE: Duration = Duration::from_millis(50);
/// Pause before a list that could not be published is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// Longest time without a look at the clock: the system's may be set.
const LOOK: Duration = Duration::from_secs(3600);

/// Keeps the own authorities' lists as they must be, until the node stops.
pub async fn keep_publishing(context: Arc<Context>) {
    let (mut stop, mut feed) = (context.stop.clone(), context.handle.feed());
    let mut published: Option<Instant> = None;
    loop {
        let wait = match due(&context, &context.handle.state(), context.time()) {
            Ok(Due::Later(at)) => at.left(context.time()).min(LOOK),
            Ok(Due::Now(crl)) => {
                if let Some(before) = published {
                    tokio::time::sleep_until(before + PACE).await;
                }
                published = Some(Instant::now());
                match publish(&context, crl).await {
                    true => Duration::ZERO,
                    false => RETRY,
                }
            }
            Err(why) => {
                tracing::error!(why, "no revocation list of this node's authority can be made");
                LOOK
            }
        };
        let changed = async {
            loop {
                match feed.recv().await {
                    Ok(applied) if !applied.reset && !applied.changes.iter().any(concerns) => {}
                    Ok(_) | Err(RecvError::Lagged(_)) => return,
                    Err(RecvError::Closed) => std::future::pending().await,
                }
            }
        };
        tokio::select! {
            () = changed => {}
            () = tokio::time::sleep(wait) => {}
            () = stopped(&mut stop) => return,
        }
    }
}

/// Whether a Change may alter what a list must say, or whether there has to be one.
fn concerns(change: &Change) -> bool {
    matches!(change, Change::Revoked(_) | Change::Unrevoked(_) | Change::BundlePut(_) | Change::CrlPut(..))
}

/// What is to be done about the own authorities' lists.
enum Due {
    Now(Crl),
    Later(Timestamp),
}

fn due(context: &Context, state: &State, now: Timestamp) -> Result<Due, String> {
    let (view, own) = (&state.view, &context.trust_domain);
    // Not published yet, or gone: a Change will tell.
    let Some(bundle) = view.bundles.get(own) else { return Ok(Due::Later(now + LOOK)) };
    let revoked = revoked_serials(&view.revocations, own);
    let mut later = now + LOOK;
    for authority in context.authorities.published(bundle) {
        if authority.intermediate().is_some() {
            // A verifier that has one list wants one for every authority of a chain, and the root's is not ours to
            // sign: so there are none, and software that nobody here wrote learns of revocations by its SVIDs running
            // out.
            continue;
        }
        let key = authority.certificate().key_id;
        if let Some(known) = view.crls.get(own).and_then(|crls| crls.get(&key))
            && known.lists(&revoked)
            && now < known.renew_at()
        {
            later = later.min(known.renew_at());
            continue;
        }
        if revoked.len() > MAX_ENTRIES {
            let left_out = revoked.len() - MAX_ENTRIES;
            tracing::error!(
                left_out,
                "more certificates are revoked than a list holds: those revoked first are left out"
            );
        }
        return Crl::sign(&authority, view.revision.0, &revoked, now)
            .map(Due::Now)
            .map_err(|e| e.to_string());
    }
    Ok(Due::Later(later))
}

/// Whether it is committed.
async fn publish(context: &Context, crl: Crl) -> bool {
    let (number, bytes) = (crl.number, crl.der.len());
    match context.handle.propose(&context.own_id().to_string(), Command::CrlPublish { crl }).await {
        Ok(outcome) => match outcome.result {
            Ok(_) => {
                tracing::info!(number, bytes, revision = outcome.revision, "revocation list published");
                true
            }
            Err(refusal) => {
                tracing::warn!(number, why = %refusal, "the revocation list is refused");
                false
            }
        },
        Err(error) => {
            tracing::warn!(number, why = %error, "the revocation list is not published yet");
            false
        }
    }
}
