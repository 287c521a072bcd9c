//! JWT-SVIDs for local callers: asked for per call, within a rate, and checked before they are handed out.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use futures_util::future::try_join_all;
use hanse_identity::jwt::{JwtError, ValidJwt};
use hanse_identity::rate::{Rate, Rates};
use hanse_identity::{Evidence, SpiffeId};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tonic::Status;
use zeroize::Zeroizing;

use super::now;
use super::session::{STATE_WAIT, Session};
use super::svids::{ISSUE_TIMEOUT, IssueSvid, IssuerError, MAX_ISSUING};

/// Identities that one call may get tokens for; a caller with more names the one that it wants.
pub const MAX_TOKENS: usize = 64;
/// What each user of the host may ask for.
const PER_USER: Rate = Rate { capacity: 4000, per_second: 2000.0, remembered: 4096 };
/// What a token and a validation cost of that: 50 tokens or 2000 validations per second.
const TOKEN_COST: u32 = 40;
const VALIDATION_COST: u32 = 1;

/// Where tokens come from.
pub struct JwtDesk {
    issuer: Arc<dyn IssueSvid>,
    issuing: Semaphore,
    rates: Mutex<Rates<u32>>,
}

impl JwtDesk {
    pub fn new(issuer: Arc<dyn IssueSvid>) -> Self {
        Self { issuer, issuing: Semaphore::new(MAX_ISSUING), rates: Mutex::new(Rates::new(PER_USER)) }
    }

    /// A token for each of these identities, in their order. Whoever asks has checked that the caller may have them.
    pub async fn tokens(
        &self,
        session: &mut Session,
        ids: &[SpiffeId],
        audience: &[String],
    ) -> Result<Vec<Zeroizing<String>>, Status> {
        if ids.len() > MAX_TOKENS {
            let many =
                format!("{} identities are too many for one call, at most {MAX_TOKENS}: name one", ids.len());
            return Err(Status::resource_exhausted(many));
        }
        self.charge(session, TOKEN_COST * u32::try_from(ids.len()).unwrap_or(u32::MAX))?;
        let evidence = session.evidence.clone();
        let asked = ids.iter().map(|id| self.token(id, &evidence, audience));
        let tokens = try_join_all(asked).await?;
        for (id, token) in ids.iter().zip(&tokens) {
            check(session, id, token, &audience[0]).await?;
        }
        Ok(tokens)
    }

    /// Validates a stranger's token for a local caller, with the bundle of the token's own trust domain.
    pub fn validate(&self, session: &Session, token: &str, audience: &str) -> Result<ValidJwt, Status> {
        self.charge(session, VALIDATION_COST)?;
        let ground = session.peek()?;
        let valid = session.standing(&ground)?.validate_jwt(token, audience, now());
        valid.map_err(|e| Status::invalid_argument(e.to_string()))
    }

    async fn token(
        &self,
        id: &SpiffeId,
        evidence: &Evidence,
        audience: &[String],
    ) -> Result<Zeroizing<String>, Status> {
        let asking = async {
            let _permit = self.issuing.acquire().await;
            self.issuer.issue_jwt(id.clone(), evidence.selectors.clone(), audience.to_vec()).await
        };
        match timeout(ISSUE_TIMEOUT, asking).await {
            Ok(Ok(token)) => Ok(token),
            Ok(Err(IssuerError::Refused(why))) => Err(Status::permission_denied(why)),
            Ok(Err(error)) => Err(Status::unavailable(error.to_string())),
            Err(_) => Err(Status::unavailable("the control node did not answer in time")),
        }
    }

    fn charge(&self, session: &Session, cost: u32) -> Result<(), Status> {
        let mut rates = self.rates.lock().expect("no holder of this lock panics");
        rates.take(session.caller.uid, cost, Instant::now()).map_err(|wait| {
            Status::unavailable(format!("too many requests of this user: wait {} ms", wait.as_millis()))
        })
    }
}

/// What others would refuse is not handed out. The control node may have published its key a moment ago, and this
/// agent's state be older: then the newer one is waited for.
async fn check(session: &mut Session, id: &SpiffeId, token: &str, audience: &str) -> Result<(), Status> {
    let checking = async {
        loop {
            let ground = session.ground().await?;
            let believed = session.standing(&ground)?.validate_jwt(token, audience, now());
            match believed {
                Ok(valid) if valid.id == *id => return Ok(()),
                Ok(valid) => {
                    return Err(Status::unavailable(format!("the control node answered with {}", valid.id)));
                }
                Err(JwtError::UnknownAuthority(_)) => session.newer().await?,
                Err(JwtError::Revoked { id, revocation }) => {
                    return Err(Status::permission_denied(format!("{id} is revoked by {revocation}")));
                }
                Err(error) => return Err(Status::unavailable(format!("the control node's token: {error}"))),
            }
        }
    };
    let unknown = || Status::unavailable("the key that signed the token has not been heard of here yet");
    timeout(STATE_WAIT, checking).await.unwrap_or_else(|_| Err(unknown()))
}
