//! Callers in plain text, at ports that a PeerAuthentication has opened for a while: told from TLS by their first bytes, served
//! as nobody, and cut when the port closes.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hanse_identity::tls::{IdentitySource as _, TrustSource as _};
use http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use tokio::net::TcpStream;

use super::standing::{Asked, Standing};
use super::{Caller, CallerNames, Inbound, MAX_IN_FLIGHT, PermissivePorts, connect_app};
use crate::answer::Reason;
use crate::connections::{Cause, judge_own};
use crate::headers;
use crate::inbound::admit_stream;
use crate::io::body::OnEnd as _;
use crate::io::forward::captured::original_destination;
use crate::io::http::{FIRST_BYTES_TIMEOUT, detect, serve};
use crate::io::listen::{Flying, InFlight, MAX_CONNECTIONS};
use crate::io::not_tls::NotTls;
use crate::io::peek::Pauses;
use crate::io::record::{Direction, Record, TCP};
use crate::io::stream::{self, Ending};
use crate::plain::{Begins, Door, LOOKED_AT, Over, begins, door, stays};
use crate::request_id::REQUEST_ID;
use crate::runtime::drain::Stop;
use crate::runtime::knowledge::HANDSHAKE_WAITS;
use crate::runtime::now;
use crate::runtime::text::Text;

/// How long a client of a port that is plain TCP may say nothing until its server is taken for one that speaks first: who
/// begins TLS does so at once, and a lost packet of his comes again within this time.
const SPEAKS_WITHIN: Duration = Duration::from_secs(1);
/// Callers without an identity have a quarter of what there is, so that nobody keeps the mesh out: of the connections that one
/// worker serves, those not yet told from TLS among them, and of the requests that it has at the app. (Few in its own tests.)
const MAX_PLAIN: usize = if cfg!(test) { 4 } else { MAX_CONNECTIONS / 4 };
const MAX_PLAIN_REQUESTS: usize = if cfg!(test) { 6 } else { MAX_IN_FLIGHT / 4 };

/// What callers without an identity have of one worker.
#[derive(Default)]
pub(super) struct Plain {
    connections: InFlight,
    requests: InFlight,
}

/// A connection to a port that takes plain text.
pub struct Opening {
    /// As the caller dialled it.
    port: u16,
    door: Door,
    /// `None`: they are taken, and it has to be TLS.
    place: Option<Flying>,
}

/// What comes on it.
pub enum Told {
    Tls,
    Plain,
    /// Nothing, in all the time that there is.
    Nothing,
    /// The caller has left.
    Gone,
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
        let open = &self.plain.connections;
        let place = (open.count() < MAX_PLAIN).then(|| open.begin());
        Some(Opening { port, door: door(port, inbound, app, &self.tcp_ports), place })
    }

    /// Whether there is room for another request of this caller at the app.
    pub(super) fn is_full(&self, caller: &Caller) -> bool {
        let plain = self.plain.requests.count();
        self.in_flight.count() + plain >= MAX_IN_FLIGHT
            || (caller.verified.is_none() && plain >= MAX_PLAIN_REQUESTS)
    }

    /// Counts one.
    pub(super) fn begin(&self, caller: &Caller) -> Flying {
        if caller.verified.is_some() { self.in_flight.begin() } else { self.plain.requests.begin() }
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

    /// Resolves when the port takes no plain text any more, by the View or by the clock, or we ourselves may not serve.
    async fn over(&self, port: u16) -> Over {
        let mut revisions = self.plane.knowledge.revisions();
        let mut belief = self.plane.knowledge.belief();
        loop {
            let again = match self.stays(port) {
                Ok(again) => again,
                Err(over) => return over,
            };
            // Neither ends: what is known is held by us too.
            tokio::select! {
                _ = revisions.changed() => {}
                _ = belief.changed() => {}
                () = tokio::time::sleep(again) => {}
            }
        }
    }

    fn stays(&self, port: u16) -> Result<Duration, Over> {
        let at = now();
        let until = self.permissive().open(port, at).map(|open| open.until);
        let Some(own) = self.plane.credentials.identity() else { return Err(Over::Ours(Cause::Expired)) };
        let standing = judge_own(&self.plane.knowledge.trust(), &own.facts, at);
        stays(until, standing, own.facts.not_after, at)
    }

    /// Serves one such connection to its end, or its port's.
    pub async fn serve_plain(self: Rc<Self>, stream: TcpStream, opening: Opening, stop: Stop) {
        let plane = Arc::clone(&self.plane);
        if opening.place.is_none() {
            plane.telemetry.refused("plaintext_connections");
            return stream::reset(&stream);
        }
        // As a handshake waits that has to show an SVID.
        let known = plane.knowledge.settled(HANDSHAKE_WAITS).await;
        let own = match (plane.admits_new(now()), plane.credentials.identity()) {
            (Ok(()), Some(_)) if known.own_revoked.is_some() => {
                return plane.telemetry.refused("own_revoked");
            }
            (Ok(()), Some(own)) => own,
            (Err(_), _) => return plane.telemetry.refused("stale_revocations"),
            (_, None) => return plane.telemetry.refused("no_identity"),
        };
        if let Err(over) = self.stays(opening.port) {
            return plane.telemetry.refused(over.label());
        }
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
                    over = self.over(opening.port) => self.ended(opening.port, &over),
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

    fn ended(&self, port: u16, over: &Over) {
        self.plane.telemetry.connection_closed(over.label());
        tracing::info!(port, cause = over.label(), "connection in plain text closed");
    }

    async fn serve_requests(self: Rc<Self>, stream: TcpStream, caller: Rc<Caller>, stop: Stop) {
        let telemetry = Arc::clone(&self.plane.telemetry);
        let Some(protocol) = detect(&stream).await else { return };
        let service = service_fn(move |mut request: Request<Incoming>| {
            // As at a Gateway: no proxy of the mesh has said it, and who may choose it could hide among another's lines.
            headers::remove_as_read(request.headers_mut(), REQUEST_ID.as_str());
            Box::pin(Rc::clone(&self).handle(Rc::clone(&caller), request))
        });
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
                over = self.over(dialled) => self.ended(dialled, &over),
            }
        };
        let ending =
            stream::carry_while(&mut NotTls::new(&mut client), &mut app, record, idle, withdrawn).await;
        if !matches!(ending, Ending::Complete) {
            tracing::debug!(?ending, "a TCP connection in plain text ended");
            stream::reset(&client);
            stream::reset(&app);
        }
    }
}

impl Opening {
    /// Tells by the first bytes, which are left where they are. Where a server may be the one that speaks first, silence is
    /// plain text after a second; where requests come in, it ends the connection after ten, or after one where only TLS may come.
    pub async fn told(&self, stream: &TcpStream) -> Told {
        let (patience, silence) = match self.door {
            Door::Stream(..) => (SPEAKS_WITHIN, Told::Plain),
            _ if self.place.is_none() => (SPEAKS_WITHIN, Told::Nothing),
            Door::Requests | Door::Nothing => (FIRST_BYTES_TIMEOUT, Told::Nothing),
        };
        let mut first = [0; LOOKED_AT];
        let mut seen = 0;
        let looked = async {
            let mut pauses = Pauses::default();
            loop {
                let there = stream.peek(&mut first).await.ok().filter(|there| *there > 0);
                let Some(there) = there else { return Told::Gone };
                seen = there;
                match begins(&first[..there]) {
                    Begins::Tls => return Told::Tls,
                    Begins::Plain => return Told::Plain,
                    Begins::More => pauses.next().await,
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

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;
    use tokio::time::Instant;

    use super::*;

    const HELLO: [u8; LOOKED_AT] = [0x16, 3, 1, 0, 200, 1];

    /// What is told of a connection on which that has come, and after how long.
    async fn told(door: Door, has_place: bool, said: &[u8]) -> (&'static str, Duration) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        client.write_all(said).await.unwrap();
        let opening = Opening { port: 1, door, place: has_place.then(|| InFlight::default().begin()) };
        let began = Instant::now();
        let told = match opening.told(&stream).await {
            Told::Tls => "tls",
            Told::Plain => "plain",
            Told::Nothing => "nothing",
            Told::Gone => "gone",
        };
        (told, began.elapsed().min(Duration::from_secs(60)))
    }

    #[tokio::test(start_paused = true)]
    async fn who_speaks_is_told_at_once_and_who_does_not_when_it_is_time() {
        let stream = Door::Stream(6379, "127.0.0.1:1".parse().unwrap());
        for (door, has_place) in [(stream, true), (stream, false), (Door::Requests, true)] {
            assert_eq!(told(door, has_place, b"PING").await, ("plain", Duration::ZERO));
            assert_eq!(told(door, has_place, &HELLO).await, ("tls", Duration::ZERO));
        }
        let silent = async |door, has_place| {
            let (told, after) = told(door, has_place, b"").await;
            (told, after.as_secs())
        };
        assert_eq!(silent(stream, true).await, ("plain", 1));
        assert_eq!(silent(Door::Requests, true).await, ("nothing", 10));
        // Where no place is left, only TLS may come, and that comes soon.
        assert_eq!(silent(Door::Requests, false).await, ("nothing", 1));
        assert_eq!(told(stream, true, &HELLO[..5]).await.0, "tls", "left to fail as such");
    }
}
