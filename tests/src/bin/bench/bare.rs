//! Bounds: the least that two hops with mutual TLS 1.3 can cost in Rust. A copy of bytes, and what hyper alone costs with
//! HTTP/1.1 or HTTP/2 between the hops. No routing, no identity in a header, no policy, no counters, no log.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use clap::{Subcommand, ValueEnum};
use http::{Request, Response, Version, header};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::certificates::{Certificates, NAME};
use crate::process::Process;
use crate::relay::Means;
use crate::{app, relay};

/// The app and the bounds run as processes of this program.
#[derive(Clone, Debug, Subcommand)]
pub enum Role {
    /// Answers with as many bytes as it is asked for
    App { listen: SocketAddr },
    /// A gateway that looks at nothing
    BareRelay { means: Means, listen: SocketAddr, to: SocketAddr },
    /// Plaintext in, mutual TLS 1.3 out
    BareClient {
        mode: Mode,
        listen: SocketAddr,
        to: SocketAddr,
        directory: std::path::PathBuf,
        /// Server name to ask for
        #[arg(long, default_value = NAME)]
        name: String,
    },
    /// Mutual TLS 1.3 in, plaintext out
    BareServer { mode: Mode, listen: SocketAddr, to: SocketAddr, directory: std::path::PathBuf },
}

/// What is spoken between the hops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Bytes, copied; one connection for one connection
    Copy,
    /// hyper, HTTP/1.1, connections pooled
    Http1,
    /// hyper, HTTP/2, one connection for all
    Http2,
}

impl Mode {
    pub fn name(self) -> &'static str {
        match self {
            Self::Copy => "bound: copy",
            Self::Http1 => "bound: hyper, HTTP/1.1",
            Self::Http2 => "bound: hyper, HTTP/2",
        }
    }

    pub fn argument(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Http1 => "http1",
            Self::Http2 => "http2",
        }
    }

    fn alpn(self) -> Vec<Vec<u8>> {
        match self {
            Self::Copy => Vec::new(),
            Self::Http1 => vec![b"http/1.1".to_vec()],
            Self::Http2 => vec![b"h2".to_vec()],
        }
    }
}

/// The two ends, as `start` takes them.
pub const CLIENT: &str = "bare-client";
pub const SERVER: &str = "bare-server";

/// One end as a process.
pub fn start(end: &str, mode: Mode, listen: SocketAddr, to: SocketAddr, files: &Path) -> Result<Process> {
    Process::listening(command(end, mode, listen, to, files)?, listen)
}

/// A client that asks for another server name.
pub fn start_client(name: &str, listen: SocketAddr, to: SocketAddr, files: &Path) -> Result<Process> {
    let mut command = command(CLIENT, Mode::Copy, listen, to, files)?;
    command.args(["--name", name]);
    Process::listening(command, listen)
}

fn command(end: &str, mode: Mode, listen: SocketAddr, to: SocketAddr, files: &Path) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args([end, mode.argument(), &listen.to_string(), &to.to_string()]).arg(files);
    Ok(command)
}

/// What the process does; returns on an error only.
pub fn serve(role: Role) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    match role {
        Role::App { listen } => local.block_on(&runtime, app::serve(listen)),
        Role::BareRelay { means, listen, to } => local.block_on(&runtime, relay::serve(means, listen, to)),
        Role::BareClient { mode, listen, to, directory, name } => {
            let tls = Tls {
                connector: TlsConnector::from(Arc::new(client_config(mode, &directory)?)),
                name: ServerName::try_from(name).context("a server name")?,
            };
            local.block_on(&runtime, near(mode, listen, Rc::new(Upstream::new(to, Some(tls)))))
        }
        Role::BareServer { mode, listen, to, directory } => {
            let tls = TlsAcceptor::from(Arc::new(server_config(mode, &directory)?));
            local.block_on(&runtime, far(mode, listen, tls, Rc::new(Upstream::new(to, None))))
        }
    }
}

fn client_config(mode: Mode, files: &Path) -> Result<rustls::ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(files)?)
        .with_client_auth_cert(
            chain(&files.join(Certificates::CLIENT))?,
            key(&files.join(Certificates::CLIENT_KEY))?,
        )?;
    config.alpn_protocols = mode.alpn();
    // We resume no session, so nobody does.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

fn server_config(mode: Mode, files: &Path) -> Result<rustls::ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let roots = Arc::new(roots(files)?);
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider)).build()?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            chain(&files.join(Certificates::SERVER))?,
            key(&files.join(Certificates::SERVER_KEY))?,
        )?;
    config.alpn_protocols = mode.alpn();
    Ok(config)
}

fn roots(files: &Path) -> Result<rustls::RootCertStore> {
    let mut roots = rustls::RootCertStore::empty();
    for root in chain(&files.join(Certificates::ROOT))? {
        roots.add(root)?;
    }
    Ok(roots)
}

pub fn chain(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    Ok(CertificateDer::pem_file_iter(file)?.collect::<Result<_, _>>()?)
}

pub fn key(file: &Path) -> Result<PrivateKeyDer<'static>> {
    Ok(PrivateKeyDer::from_pem_file(file)?)
}

/// Plaintext in.
async fn near(mode: Mode, listen: SocketAddr, upstream: Rc<Upstream>) -> Result<()> {
    let listener = TcpListener::bind(listen).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let upstream = Rc::clone(&upstream);
        tokio::task::spawn_local(async move {
            stream.set_nodelay(true)?;
            match mode {
                Mode::Copy => upstream.copy(stream).await,
                Mode::Http1 | Mode::Http2 => {
                    let ask = service_fn(move |request| ask(Rc::clone(&upstream), mode, request));
                    Ok(hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), ask)
                        .await?)
                }
            }
        });
    }
}

/// Mutual TLS in.
async fn far(mode: Mode, listen: SocketAddr, tls: TlsAcceptor, upstream: Rc<Upstream>) -> Result<()> {
    let listener = TcpListener::bind(listen).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let (tls, upstream) = (tls.clone(), Rc::clone(&upstream));
        tokio::task::spawn_local(async move {
            stream.set_nodelay(true)?;
            let stream: server::TlsStream<TcpStream> = tls.accept(stream).await?;
            let io = match mode {
                Mode::Copy => return upstream.copy(stream).await,
                Mode::Http1 | Mode::Http2 => TokioIo::new(stream),
            };
            // To the app it is HTTP/1.1 in any case.
            let ask = service_fn(move |request| ask(Rc::clone(&upstream), Mode::Http1, request));
            if mode == Mode::Http2 {
                let mut http = hyper::server::conn::http2::Builder::new(Local);
                http.initial_stream_window_size(1 << 20).initial_connection_window_size(4 << 20);
                http.max_concurrent_streams(1024);
                Ok(http.serve_connection(io, ask).await?)
            } else {
                Ok(hyper::server::conn::http1::Builder::new().serve_connection(io, ask).await?)
            }
        });
    }
}

/// TLS of the one that dials.
struct Tls {
    connector: TlsConnector,
    name: ServerName<'static>,
}

/// Where requests go, and the connections there.
struct Upstream {
    to: SocketAddr,
    tls: Option<Tls>,
    idle: RefCell<VecDeque<http1::SendRequest<Incoming>>>,
    shared: tokio::sync::OnceCell<http2::SendRequest<Incoming>>,
}

impl Upstream {
    fn new(to: SocketAddr, tls: Option<Tls>) -> Self {
        Self { to, tls, idle: RefCell::default(), shared: tokio::sync::OnceCell::new() }
    }

    async fn dial(&self) -> Result<TcpStream> {
        let stream = TcpStream::connect(self.to).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    async fn dial_tls(tls: &Tls, stream: TcpStream) -> Result<client::TlsStream<TcpStream>> {
        Ok(tls.connector.connect(tls.name.clone(), stream).await?)
    }

    async fn copy<S>(&self, mut stream: S) -> Result<()>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    {
        let mut far = self.dial().await?;
        match &self.tls {
            None => tokio::io::copy_bidirectional(&mut stream, &mut far).await?,
            Some(tls) => {
                tokio::io::copy_bidirectional(&mut stream, &mut Self::dial_tls(tls, far).await?).await?
            }
        };
        Ok(())
    }

    async fn http1(&self) -> Result<http1::SendRequest<Incoming>> {
        loop {
            let idle = self.idle.borrow_mut().pop_front();
            match idle {
                Some(connection) if connection.is_closed() => {}
                Some(connection) => return Ok(connection),
                None => break,
            }
        }
        let stream = self.dial().await?;
        Ok(match &self.tls {
            None => handshake(stream).await?,
            Some(tls) => handshake(Self::dial_tls(tls, stream).await?).await?,
        })
    }

    async fn http2(&self) -> Result<http2::SendRequest<Incoming>> {
        let dial = async {
            let tls = self.tls.as_ref().context("HTTP/2 is spoken over TLS only")?;
            let io = TokioIo::new(Self::dial_tls(tls, self.dial().await?).await?);
            let mut http = http2::Builder::new(Local);
            http.initial_stream_window_size(1 << 20).initial_connection_window_size(4 << 20);
            let (sender, connection) = http.handshake(io).await?;
            tokio::task::spawn_local(connection);
            anyhow::Ok(sender)
        };
        Ok(self.shared.get_or_try_init(|| dial).await?.clone())
    }
}

async fn handshake<S>(stream: S) -> Result<http1::SendRequest<Incoming>>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::task::spawn_local(connection);
    Ok(sender)
}

async fn ask(
    upstream: Rc<Upstream>,
    mode: Mode,
    mut request: Request<Incoming>,
) -> Result<Response<Incoming>> {
    if mode == Mode::Http2 {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
        *request.uri_mut() =
            http::Uri::builder().scheme("http").authority(NAME).path_and_query(path).build()?;
        *request.version_mut() = Version::HTTP_2;
        request.headers_mut().remove(header::HOST);
        request.headers_mut().remove(header::CONNECTION);
        return Ok(upstream.http2().await?.send_request(request).await?);
    }
    if request.version() == Version::HTTP_2 {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
        *request.uri_mut() = path.parse()?;
        *request.version_mut() = Version::HTTP_11;
        request.headers_mut().insert(header::HOST, http::HeaderValue::from_static(NAME));
    }
    let mut connection = upstream.http1().await?;
    connection.ready().await?;
    let response = connection.send_request(request).await?;
    // Ready again once its body has been read; the one that waits longest is taken first.
    upstream.idle.borrow_mut().push_back(connection);
    Ok(response)
}

/// hyper's tasks stay on the one thread.
#[derive(Clone, Copy)]
struct Local;

impl<F> hyper::rt::Executor<F> for Local
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}
