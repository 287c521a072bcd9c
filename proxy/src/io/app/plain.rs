//! Callers in plain text, at ports that a PeerAuthentication has opened for a while: told from TLS by their first bytes, served
//! as nobody, and cut when the port closes.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hanse_identity::tls::IdentitySource as _;
use http::{Request, StatusCode};
use hyper::service::service_fn;
use tokio::net::TcpStream;

use super::standing::{Asked, Standing};
use super::{Caller, CallerNames, Inbound, PermissivePorts, connect_app};
use crate::answer::Reason;
use crate::inbound::admit_stream;
use crate::io::body::OnEnd as _;
use crate::io::forward::captured::original_destination;
use crate::io::http::{FIRST_BYTES_TIMEOUT, detect, serve};
use crate::io::record::{Direction, Record, TCP};
use crate::io::stream::{self, Ending};
use crate::plain::{Begins, Door, LOOKED_AT, begins, door};
use crate::runtime::drain::Stop;
use crate::runtime::now;
use crate::runtime::text::Text;

/// How long a client of a port that is plain TCP may say nothing until its server is taken for one that speaks first: who
/// begins TLS does so at once, and a lost packet of his comes again within this time.
const SPEAKS_WITHIN: Duration = Duration::from_secs(1);
/// How often first bytes are looked at again while they decide nothing.
const PEEK_AGAIN: Duration = Duration::from_millis(2);

/// A connection to a port that takes plain text.
pub struct Opening {
    /// As the caller dialled it.
    port: u16,
    door: Door,
}

/// What comes on it.
pub enum Told {
    Tls,
    Plain,
    /// Nothing, in all the time that there is, or the caller has left.
    Nothing,
}

impl Inbound {
    /// Whether the connection may be in plain text. Nothing is asked of the kernel where no port is open.
    pub fn opening(&self, stream: &TcpStream) -> Option<Opening> {
        let ports = self.permissive();
        if ports.is_empty() {
            return None;
        }
        let inbound = stream.local_addr().ok()?.port();
        // Where nothing was turned to us, the port is our own.
        let port = original_destination(stream).map_or(inbound, |original| original.port());
        ports.open(port, now())?;
        let app = self.app.as_ref().map(|app| app.address);
        Some(Opening { port, door: door(port, inbound, app, &self.tcp_ports) })
    }

    /// The ports at this View; compiled on first use after it changed.
    fn permissive(&self) -> Rc<PermissivePorts> {
        let Some(view) = self.plane.knowledge.view() else { return Rc::default() };
        let mut permissive = self.permissive.borrow_mut();
        if permissive.0 != view.revision {
            *permissive = (view.revision, Rc::new(PermissivePorts::build(&view, &self.services)));
        }
        Rc::clone(&permissive.1)
    }

    /// Resolves when the port takes no plain text any more: by the View, or by the clock.
    async fn closed(&self, port: u16) {
        let mut revisions = self.plane.knowledge.revisions();
        loop {
            let at = now();
            let Some(left) = self.permissive().open(port, at).map(|open| open.until.left(at)) else { return };
            tokio::select! {
                changed = revisions.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(left) => {}
            }
        }
    }

    /// Serves one such connection to its end, or its port's.
    pub async fn serve_plain(self: Rc<Self>, stream: TcpStream, opening: Opening, stop: Stop) {
        let plane = Arc::clone(&self.plane);
        let own = match (plane.admits_new(now()), plane.credentials.identity()) {
            (Ok(()), Some(own)) => own,
            (Err(_), _) => return plane.telemetry.refused("stale_revocations"),
            (_, None) => return plane.telemetry.refused("no_identity"),
        };
        let names = CallerNames {
            source: Text::default(),
            destination: Text::of(&own.facts.id),
            clusters: Default::default(),
        };
        let caller = Rc::new(Caller { verified: None, client_cert: None, names });
        let _open = plane.telemetry.plaintext(opening.port);
        match opening.door {
            Door::Requests => {
                let served = Rc::clone(&self).serve_requests(stream, caller, stop);
                tokio::select! {
                    biased;
                    () = self.closed(opening.port) => {
                        tracing::info!(port = opening.port, "the port is closed to plain text: connection closed");
                    }
                    () = served => {}
                }
            }
            Door::Stream(port, app) => self.serve_stream(stream, caller, opening.port, (port, app)).await,
            Door::Nothing => {
                plane.telemetry.refused("nothing_served");
                stream::reset(&stream);
            }
        }
    }

    async fn serve_requests(self: Rc<Self>, stream: TcpStream, caller: Rc<Caller>, stop: Stop) {
        let telemetry = Arc::clone(&self.plane.telemetry);
        let Some(protocol) = detect(&stream).await else { return };
        let service =
            service_fn(move |request| Box::pin(Rc::clone(&self).handle(Rc::clone(&caller), request)));
        serve(stream, protocol, service, None, stop, &telemetry).await;
    }

    /// Carries a connection to a port that is plain TCP. One that cannot be opened is reset.
    async fn serve_stream(
        self: Rc<Self>,
        mut client: TcpStream,
        caller: Rc<Caller>,
        dialled: u16,
        (port, address): (u16, std::net::SocketAddr),
    ) {
        let Some(service) = self.services.iter().next() else { return stream::reset(&client) };
        let request = Request::connect(format!("{}.{}:{port}", service.name(), service.namespace()));
        let request = request.body(()).expect("a service and a port are an authority");
        let mut record = Record::begin(&self.reporter, Direction::Inbound, &request);
        record.entry.protocol = TCP;
        let text = self.service_texts.get(service).cloned().unwrap_or_default();
        let admitted = self.admit_by(&caller, text, &mut record, |view, revoked, access| {
            admit_stream(view, revoked, service, port, access, None)
        });
        let opened = match (admitted, self.streams.place()) {
            (Err(reason), _) => Err(reason),
            (Ok(_), None) => Err(Reason::Overload),
            (Ok(_), Some(place)) => connect_app(address).await.map(|app| (place, app)),
        };
        let (_place, mut app) = match opened {
            Ok(opened) => opened,
            Err(reason) => {
                record.refused(reason);
                record.on_end(0, true);
                return stream::reset(&client);
            }
        };
        record.answered(StatusCode::OK);
        let idle = self.streams.idle();
        let standing = Standing::new(&self, &caller, Asked::Port(service.clone(), port));
        let withdrawn = async {
            tokio::select! {
                () = standing.lost() => {}
                () = self.closed(dialled) => {}
            }
        };
        let ending = stream::carry_while(&mut client, &mut app, record, idle, withdrawn).await;
        if !matches!(ending, Ending::Complete) {
            tracing::debug!(?ending, "a TCP connection in plain text ended");
            stream::reset(&client);
            stream::reset(&app);
        }
    }
}

impl Opening {
    /// Tells by the first bytes, which are left where they are. Where a server may be the one that speaks first, silence is
    /// plain text after a second; where requests come in, it ends the connection after ten.
    pub async fn told(&self, stream: &TcpStream) -> Told {
        let (patience, silence) = match self.door {
            Door::Stream(..) => (SPEAKS_WITHIN, Told::Plain),
            Door::Requests | Door::Nothing => (FIRST_BYTES_TIMEOUT, Told::Nothing),
        };
        let mut first = [0; LOOKED_AT];
        let mut seen = 0;
        let looked = async {
            loop {
                let there = stream.peek(&mut first).await.ok().filter(|there| *there > 0);
                let Some(there) = there else { return Told::Nothing };
                seen = there;
                match begins(&first[..there]) {
                    Begins::Tls => return Told::Tls,
                    Begins::Plain => return Told::Plain,
                    Begins::More => tokio::time::sleep(PEEK_AGAIN).await,
                }
            }
        };
        match tokio::time::timeout(patience, looked).await {
            Ok(told) => told,
            // What has begun like TLS is left to fail as such.
            Err(_) if seen > 0 => Told::Tls,
            Err(_) => silence,
        }
    }
}
