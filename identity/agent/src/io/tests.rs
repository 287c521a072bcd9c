//! Both protocols over a real Unix socket, attested by the real kernel, with an issuer in this process.

mod callers;
mod held;
mod interop;
mod link;
mod lists;
mod sds;
mod workload;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hanse_identity::svid::Svid;
use hanse_identity::{Authority, PrivateKey, Registration, Selector};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use super::socket::SocketFile;
use super::*;
use crate::fixture::{TestIssuer, agent, authority, bundle, east, own_uid, registration, state, west};

/// No condition of these tests takes longer, on any machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// An agent without its control link.
struct Bench {
    shared: Arc<Shared>,
    view: watch::Sender<View>,
    issuer: Arc<TestIssuer>,
    socket: PathBuf,
    east_1: Authority,
    stop: watch::Sender<bool>,
    _socket_file: SocketFile,
    _directory: tempfile::TempDir,
}

impl Bench {
    /// An agent that has state: these identities for whoever runs the tests.
    fn with(identities: &[&str]) -> Self {
        let bench = Self::without_state();
        let registrations = identities.iter().map(|name| mine(name)).collect();
        let bundles = vec![bench.issuer.committed.lock().unwrap().clone(), bundle(&[&authority(&west())])];
        bench.view.send_modify(|view| {
            view.trust_domain = Some(east());
            view.state = Some(Arc::new(state(registrations, bundles)));
        });
        bench
    }

    fn without_state() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("agent.sock");
        let (listener, socket_file) = super::socket::bind(&socket).unwrap();
        let (stop, shutdown) = watch::channel(false);
        let (view_sender, view) = watch::channel(View::default());
        let east_1 = authority(&east());
        let key = PrivateKey::from_pkcs8(&east_1.key().to_pkcs8().unwrap()).unwrap();
        let signer = Authority::restore(&east(), key, &east_1.certificate().der).unwrap();
        let issuer = TestIssuer::new(signer, view.clone());
        let metrics = Arc::new(Metrics::default());
        let svids = Svids::new(
            agent(),
            Arc::clone(&issuer) as _,
            view.clone(),
            shutdown.clone(),
            Arc::clone(&metrics),
        );
        let shared = Arc::new(Shared {
            name: agent(),
            view,
            svids,
            jwt: JwtDesk::new(Arc::clone(&issuer) as _),
            streams: Streams::default(),
            metrics,
            shutdown,
        });
        tokio::spawn(crate::serve_callers(Arc::clone(&shared), listener));
        Self {
            shared,
            view: view_sender,
            issuer,
            socket,
            east_1,
            stop,
            _socket_file: socket_file,
            _directory: directory,
        }
    }

    /// The next revision of the state.
    fn change(&self, change: impl FnOnce(&mut AgentState)) {
        self.view.send_modify(|view| {
            let mut state = AgentState::clone(view.state.as_ref().unwrap());
            state.revision += 1;
            change(&mut state);
            view.state = Some(Arc::new(state));
        });
    }

    async fn connect(&self) -> Channel {
        connect(&self.socket).await
    }

    /// The one SVID that is held and ready.
    fn only_svid(&self) -> Arc<Svid> {
        let rows = self.shared.svids.list();
        assert_eq!(rows.len(), 1, "{rows:?}");
        match &rows[0].holding {
            svids::Holding::Ready(svid) => Arc::clone(svid),
            other => panic!("{other:?}"),
        }
    }
}

/// A local caller's connection.
async fn connect(path: &Path) -> Channel {
    let path = path.to_owned();
    let connector = tower::service_fn(move |_: http::Uri| {
        let path = path.clone();
        async move {
            let stream = UnixStream::connect(path).await?;
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
        }
    });
    Endpoint::from_static("http://agent").connect_with_connector(connector).await.unwrap()
}

fn mine(name: &str) -> Registration {
    registration(name, [Selector::Uid(own_uid())])
}

/// Waits until it holds.
async fn until(mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("the condition never held");
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("nothing happened")
}
