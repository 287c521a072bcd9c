//! The pool of sessions with one token: a few threads that each have one, a short queue before them, and a bound on how
//! long anybody waits. A token that hangs costs its threads, never the node's.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cryptoki::context::Pkcs11;
use cryptoki::error::{Error, RvError};
use cryptoki::session::UserType;
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;

use super::{Connection, TokenError};

/// Sessions with the token; each signs one thing at a time.
const SESSIONS: usize = 4;
/// Jobs that wait for a session; one more is refused.
const QUEUE: usize = 64;
/// How long a job may take, waiting included.
const TIMEOUT: Duration = Duration::from_secs(5);

type Work = Box<dyn FnOnce(Result<&mut Connection, String>) -> Option<TokenError> + Send>;

struct Job {
    /// After this nobody waits for its answer any more.
    until: Instant,
    work: Work,
}

/// The threads and the way to them. They end when this is dropped.
pub(super) struct Pool {
    jobs: SyncSender<Job>,
}

/// What every worker needs to open a session.
struct Login {
    module: Pkcs11,
    slot: Slot,
    pin: AuthPin,
    /// The token has refused the PIN: it is not tried again, or the token would lock itself.
    refused: AtomicBool,
}

impl Pool {
    /// Logs in once, here, so that what is wrong is said at once; then starts the workers.
    pub(super) fn start(module: Pkcs11, slot: Slot, pin: AuthPin) -> Result<Self, TokenError> {
        let login = Arc::new(Login { module, slot, pin, refused: AtomicBool::new(false) });
        let first = login.connect()?;
        let (jobs, queue) = sync_channel::<Job>(QUEUE);
        let queue = Arc::new(Mutex::new(queue));
        let mut first = Some(first);
        for number in 0..SESSIONS {
            let (login, queue, connection) = (login.clone(), queue.clone(), first.take());
            std::thread::Builder::new()
                .name(format!("token-{number}"))
                .spawn(move || work(&login, &queue, connection))
                .map_err(|e| TokenError::Refused(format!("a thread cannot be started: {e}")))?;
        }
        Ok(Self { jobs })
    }

    /// Has a worker do it. Blocks, at most `TIMEOUT`.
    pub(super) fn ask<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Connection) -> Result<T, TokenError> + Send + 'static,
    ) -> Result<T, String> {
        let (answer, answered) = sync_channel(1);
        let work: Work = Box::new(move |connection| {
            let done = connection.map_err(TokenError::Refused).and_then(job);
            let (said, error) = match done {
                Ok(value) => (Ok(value), None),
                Err(error) => (Err(error.to_string()), Some(error)),
            };
            // Whoever asked may have given up.
            let _ = answer.send(said);
            error
        });
        let job = Job { until: Instant::now() + TIMEOUT, work };
        self.jobs.try_send(job).map_err(|_| format!("it is busy: {QUEUE} jobs wait for it already"))?;
        let slow = |_| format!("it did not answer within {TIMEOUT:?}");
        unhurried(|| answered.recv_timeout(TIMEOUT)).map_err(slow)?
    }
}

/// Waits without holding up the other tasks of a runtime's thread.
fn unhurried<R>(wait: impl FnOnce() -> R) -> R {
    use tokio::runtime::{Handle, RuntimeFlavor};
    match Handle::try_current().map(|h| h.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(wait),
        _ => wait(),
    }
}

fn work(login: &Login, queue: &Mutex<Receiver<Job>>, mut connection: Option<Connection>) {
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        if job.until <= Instant::now() {
            continue;
        }
        if connection.is_none() {
            match login.connect() {
                Ok(new) => connection = Some(new),
                Err(error) => tracing::error!(why = %error, "no session with the token"),
            }
        }
        let error = match &mut connection {
            Some(connection) => (job.work)(Ok(connection)),
            None => (job.work)(Err("there is no session with it".to_owned())),
        };
        if error.is_some_and(|e| e.ends_session()) {
            connection = None;
        }
    }
}

impl Login {
    fn connect(&self) -> Result<Connection, TokenError> {
        if self.refused.load(Ordering::Acquire) {
            return Err(TokenError::Refused("it has refused the PIN; it is not tried again".to_owned()));
        }
        let session = self.module.open_rw_session(self.slot)?;
        match session.login(UserType::User, Some(&self.pin)) {
            // A login is of the process, not of the session.
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {}
            Err(error) => {
                let error = TokenError::from(error);
                if error.is_wrong_pin() {
                    self.refused.store(true, Ordering::Release);
                }
                return Err(error);
            }
        }
        Ok(Connection { session, handles: BTreeMap::new() })
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("sessions", &SESSIONS).finish_non_exhaustive()
    }
}
