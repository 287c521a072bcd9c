//! Peers: Envoy, haproxy and nginx on the same two hops with mutual TLS, one worker each, and how each is told so.
//! What is not installed is named and left out. Nobody resumes a TLS session, since we do not.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::certificates::{CLIENT_ID, Certificates, NAME, SERVER_ID};
use crate::process::{Process, free_address};

/// A peer in one of its modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// HTTP/1.1 between the hops
    EnvoyHttp1,
    /// HTTP/2 between the hops
    EnvoyHttp2,
    /// HTTP/2 between the hops, with what a mesh adds: RBAC by SPIFFE ID, the caller in a header, a JSON log
    EnvoyMesh,
    Haproxy,
    Nginx,
    /// Bytes only
    EnvoyCopy,
    HaproxyCopy,
    NginxCopy,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// Plaintext in, TLS out
    Client,
    /// TLS in, plaintext out
    Server,
    /// TLS in, TLS out: a gateway that ends it and begins it again
    Between,
}

impl Peer {
    pub const ALL: [Self; 8] = [
        Self::EnvoyHttp1,
        Self::EnvoyHttp2,
        Self::EnvoyMesh,
        Self::Haproxy,
        Self::Nginx,
        Self::EnvoyCopy,
        Self::HaproxyCopy,
        Self::NginxCopy,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::EnvoyHttp1 => "Envoy, HTTP/1.1",
            Self::EnvoyHttp2 => "Envoy, HTTP/2",
            Self::EnvoyMesh => "Envoy, HTTP/2, mesh filters",
            Self::Haproxy => "haproxy, HTTP/1.1",
            Self::Nginx => "nginx, HTTP/1.1",
            Self::EnvoyCopy => "Envoy, L4",
            Self::HaproxyCopy => "haproxy, L4",
            Self::NginxCopy => "nginx, L4",
        }
    }

    pub fn copies(self) -> bool {
        matches!(self, Self::EnvoyCopy | Self::HaproxyCopy | Self::NginxCopy)
    }

    /// The program, if it is installed: from the variable that names it, else from the path.
    fn program(self) -> Option<PathBuf> {
        let (variable, name) = match self {
            Self::EnvoyHttp1 | Self::EnvoyHttp2 | Self::EnvoyMesh | Self::EnvoyCopy => {
                ("HANSE_BENCH_ENVOY", "envoy")
            }
            Self::Haproxy | Self::HaproxyCopy => ("HANSE_BENCH_HAPROXY", "haproxy"),
            Self::Nginx | Self::NginxCopy => ("HANSE_BENCH_NGINX", "nginx"),
        };
        find(variable, name)
    }

    /// Both ends in front of `app`; where they listen is the address. `None`: not installed.
    pub fn start(self, app: SocketAddr, files: &Certificates) -> Result<Option<Pair>> {
        let Some(program) = self.program() else { return Ok(None) };
        let (near, between) = (free_address()?, free_address()?);
        let server = self.end(&program, End::Server, between, app, files)?;
        let client = self.end(&program, End::Client, near, between, files)?;
        Ok(Some(Pair { address: near, inbound: between, client, server }))
    }

    /// A gateway that ends mutual TLS and begins it anew. `None`: not installed.
    pub fn between(
        self,
        listen: SocketAddr,
        to: SocketAddr,
        files: &Certificates,
    ) -> Result<Option<Process>> {
        let Some(program) = self.program() else { return Ok(None) };
        self.end(&program, End::Between, listen, to, files).map(Some)
    }

    fn end(
        self,
        program: &Path,
        end: End,
        listen: SocketAddr,
        to: SocketAddr,
        files: &Certificates,
    ) -> Result<Process> {
        let which = match end {
            End::Client => "client",
            End::Server => "server",
            End::Between => "between",
        };
        let file = |ending| files.file(&format!("{self:?}-{which}.{ending}"));
        let mut command = Command::new(program);
        let (file, text) = match self {
            Self::EnvoyHttp1 | Self::EnvoyHttp2 | Self::EnvoyMesh | Self::EnvoyCopy => {
                let file = file("json");
                command.arg("-c").arg(&file).args([
                    "--concurrency",
                    "1",
                    "--disable-hot-restart",
                    "-l",
                    "error",
                ]);
                (file, envoy(self, end, listen, to, files).to_string())
            }
            Self::Haproxy | Self::HaproxyCopy => {
                let file = file("cfg");
                command.args(["-db", "-f"]).arg(&file);
                (file, haproxy(self, end, listen, to, files))
            }
            Self::Nginx | Self::NginxCopy => {
                let file = file("conf");
                command.arg("-c").arg(&file);
                (file, nginx(self, end, listen, to, files))
            }
        };
        std::fs::write(&file, text)?;
        Process::listening(command, listen).with_context(|| format!("{}, {which}", self.name()))
    }
}

fn find(variable: &str, name: &str) -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Some(path.into());
    }
    let path = std::env::var_os("PATH")?;
    // Debian puts servers where only root's path leads.
    let directories = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    directories.map(|directory| directory.join(name)).find(|program| program.is_file())
}

/// A peer that passes TLS through by the server name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passthrough {
    Haproxy,
    Nginx,
}

impl Passthrough {
    pub const ALL: [Self; 2] = [Self::Haproxy, Self::Nginx];

    pub fn name(self) -> &'static str {
        match self {
            Self::Haproxy => "haproxy, passthrough",
            Self::Nginx => "nginx, passthrough",
        }
    }

    /// Leads `name` to `to`. `None`: not installed.
    pub fn start(
        self,
        listen: SocketAddr,
        to: SocketAddr,
        name: &str,
        files: &Certificates,
    ) -> Result<Option<Process>> {
        let program = match self {
            Self::Haproxy => find("HANSE_BENCH_HAPROXY", "haproxy"),
            Self::Nginx => find("HANSE_BENCH_NGINX", "nginx"),
        };
        let Some(program) = program else { return Ok(None) };
        let mut command = Command::new(program);
        let file = files.file(&format!("{self:?}-passthrough.conf"));
        let text = match self {
            Self::Haproxy => format!(
                "global\n    nbthread 1\n    maxconn 9000\n    maxpipes 200\n\
                 defaults\n    mode tcp\n    option splice-auto\n    timeout connect 5s\n    timeout client 120s\n    \
                 timeout server 120s\n\
                 frontend in\n    bind {listen} backlog 4096\n    tcp-request inspect-delay 5s\n    \
                 tcp-request content accept if {{ req.ssl_hello_type 1 }}\n    \
                 use_backend out if {{ req.ssl_sni -i {name} }}\nbackend out\n    server to {to}\n"
            ),
            Self::Nginx => format!(
                "{}stream {{ tcp_nodelay on; upstream to {{ server {to}; }} \
                 map $ssl_preread_server_name $way {{ {name} to; }} \
                 server {{ listen {listen} backlog=4096; ssl_preread on; proxy_pass $way; }} }}\n",
                nginx_main(listen, files)
            ),
        };
        match self {
            Self::Haproxy => command.args(["-db", "-f"]).arg(&file),
            Self::Nginx => command.arg("-c").arg(&file),
        };
        std::fs::write(&file, text)?;
        Process::listening(command, listen).with_context(|| self.name()).map(Some)
    }
}

/// Two hops.
pub struct Pair {
    pub address: SocketAddr,
    /// Where the second takes mutual TLS.
    pub inbound: SocketAddr,
    pub client: Process,
    pub server: Process,
}

fn path(files: &Certificates, name: &str) -> String {
    files.file(name).display().to_string()
}

fn envoy(peer: Peer, end: End, listen: SocketAddr, to: SocketAddr, files: &Certificates) -> Value {
    let typed = |name: &str, mut config: Value| -> Value {
        config["@type"] = json!(format!("type.googleapis.com/envoy.{name}"));
        config
    };
    let socket = |address: SocketAddr| json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } });
    let http2 = matches!(peer, Peer::EnvoyHttp2 | Peer::EnvoyMesh);
    let tls = |certificate, key, other| {
        let mut tls = json!({
            "tls_params": { "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3" },
            "tls_certificates": [{
                "certificate_chain": { "filename": path(files, certificate) },
                "private_key": { "filename": path(files, key) },
            }],
            "validation_context": {
                "trusted_ca": { "filename": path(files, Certificates::ROOT) },
                "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": { "exact": other } }],
            },
        });
        if !peer.copies() {
            tls["alpn_protocols"] = if http2 { json!(["h2"]) } else { json!(["http/1.1"]) };
        }
        tls
    };
    let transport = |context: Value| json!({ "name": "tls", "typed_config": context });
    let as_client = (end != End::Server).then(|| {
        let tls = tls(Certificates::CLIENT, Certificates::CLIENT_KEY, SERVER_ID);
        transport(typed(
            "extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            json!({ "common_tls_context": tls, "sni": NAME, "max_session_keys": 0 }),
        ))
    });
    let as_server = (end != End::Client).then(|| {
        let tls = tls(Certificates::SERVER, Certificates::SERVER_KEY, CLIENT_ID);
        transport(typed(
            "extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            json!({
                "common_tls_context": tls,
                "require_client_certificate": true,
                "disable_stateless_session_resumption": true,
            }),
        ))
    });
    let filter = if peer.copies() {
        let copy = json!({ "stat_prefix": "copy", "cluster": "to" });
        typed("extensions.filters.network.tcp_proxy.v3.TcpProxy", copy)
    } else {
        let mut manager = json!({
            "stat_prefix": "http",
            "codec_type": "AUTO",
            "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [
                { "match": { "prefix": "/" }, "route": { "cluster": "to" } }
            ] }] },
        });
        let mut filters = vec![json!({
            "name": "router",
            "typed_config": typed("extensions.filters.http.router.v3.Router", json!({})),
        })];
        if peer == Peer::EnvoyMesh {
            if end == End::Server {
                let allow = json!({ "rules": { "action": "ALLOW", "policies": { "client": {
                    "permissions": [{ "any": true }],
                    "principals": [{ "authenticated": { "principal_name": { "exact": CLIENT_ID } } }],
                } } } });
                let rbac = typed("extensions.filters.http.rbac.v3.RBAC", allow);
                filters.insert(0, json!({ "name": "rbac", "typed_config": rbac }));
                manager["forward_client_cert_details"] = json!("SANITIZE_SET");
                manager["set_current_client_cert_details"] = json!({ "uri": true });
            }
            let fields: serde_json::Map<String, Value> = [
                ("start", "START_TIME"),
                ("method", "REQ(:METHOD)"),
                ("path", "REQ(:PATH)"),
                ("code", "RESPONSE_CODE"),
                ("flags", "RESPONSE_FLAGS"),
                ("duration", "DURATION"),
                ("received", "BYTES_RECEIVED"),
                ("sent", "BYTES_SENT"),
                ("upstream", "UPSTREAM_HOST"),
                ("peer", "DOWNSTREAM_PEER_URI_SAN"),
            ]
            .into_iter()
            .map(|(name, field)| (name.to_owned(), json!(format!("%{field}%"))))
            .collect();
            let log = json!({ "path": "/dev/null", "log_format": { "json_format": fields } });
            let log = typed("extensions.access_loggers.file.v3.FileAccessLog", log);
            manager["access_log"] = json!([{ "name": "log", "typed_config": log }]);
        }
        manager["http_filters"] = json!(filters);
        typed("extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", manager)
    };
    let mut cluster = json!({
        "name": "to",
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": { "thresholds": [
            { "max_connections": 1_000_000, "max_pending_requests": 1_000_000, "max_requests": 1_000_000 }
        ] },
        "load_assignment": { "cluster_name": "to", "endpoints": [
            { "lb_endpoints": [{ "endpoint": { "address": socket(to) } }] }
        ] },
    });
    if http2 && end != End::Server {
        let options = json!({ "explicit_http_config": { "http2_protocol_options": {} } });
        cluster["typed_extension_protocol_options"] = json!({
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions":
                typed("extensions.upstreams.http.v3.HttpProtocolOptions", options),
        });
    }
    let mut chain = json!({ "filters": [{ "name": "first", "typed_config": filter }] });
    if let Some(tls) = as_client {
        cluster["transport_socket"] = tls;
    }
    if let Some(tls) = as_server {
        chain["transport_socket"] = tls;
    }
    json!({ "static_resources": {
        "listeners": [{
            "name": "listener", "address": socket(listen), "tcp_backlog_size": 4096, "filter_chains": [chain],
        }],
        "clusters": [cluster],
    } })
}

fn haproxy(peer: Peer, end: End, listen: SocketAddr, to: SocketAddr, files: &Certificates) -> String {
    let root = path(files, Certificates::ROOT);
    let (mode, more, alpn) = match peer.copies() {
        true => ("tcp", "", ""),
        false => ("http", "    option http-keep-alive\n    http-reuse always\n", "alpn http/1.1"),
    };
    let common = format!(
        "global\n    nbthread 1\n    maxconn 9000\n    ssl-default-bind-options ssl-min-ver TLSv1.3 no-tls-tickets\n    \
         ssl-default-server-options ssl-min-ver TLSv1.3\n\
         defaults\n    mode {mode}\n    timeout connect 5s\n    timeout client 120s\n    timeout server 120s\n{more}"
    );
    let (mut bind, mut upstream) = (String::new(), String::new());
    if end != End::Server {
        let all = path(files, Certificates::CLIENT_ALL);
        upstream = format!(
            "ssl crt {all} verify required ca-file {root} verifyhost {NAME} sni str({NAME}) no-ssl-reuse {alpn}"
        );
    }
    if end != End::Client {
        let all = path(files, Certificates::SERVER_ALL);
        bind = format!("ssl crt {all} ca-file {root} verify required {alpn}");
    }
    format!(
        "{common}frontend in\n    bind {listen} backlog 4096 {bind}\n    default_backend out\n\
         backend out\n    server to {to} {upstream}\n"
    )
}

fn nginx(peer: Peer, end: End, listen: SocketAddr, to: SocketAddr, files: &Certificates) -> String {
    let root = path(files, Certificates::ROOT);
    let mut tls = String::new();
    if end != End::Server {
        tls += &format!(
            "proxy_ssl_certificate {}; proxy_ssl_certificate_key {}; proxy_ssl_trusted_certificate {root}; \
             proxy_ssl_verify on; proxy_ssl_name {NAME}; proxy_ssl_server_name on; proxy_ssl_session_reuse off; proxy_ssl_protocols TLSv1.3; ",
            path(files, Certificates::CLIENT),
            path(files, Certificates::CLIENT_KEY),
        );
    }
    if end != End::Client {
        tls += &format!(
            "ssl_certificate {}; ssl_certificate_key {}; ssl_client_certificate {root}; ssl_verify_client on; \
             ssl_session_cache off; ssl_session_tickets off; ssl_protocols TLSv1.3;",
            path(files, Certificates::SERVER),
            path(files, Certificates::SERVER_KEY),
        );
    }
    let ssl = if end == End::Client { "" } else { "ssl" };
    let main = nginx_main(listen, files);
    if peer.copies() {
        let proxy = if end == End::Server { "" } else { "proxy_ssl on;" };
        return format!(
            "{main}stream {{ tcp_nodelay on; upstream to {{ server {to}; }} \
             server {{ listen {listen} {ssl} backlog=4096; {tls} proxy_pass to; {proxy} }} }}\n"
        );
    }
    let scheme = if end == End::Server { "http" } else { "https" };
    format!(
        "{main}http {{ access_log off; keepalive_requests 100000000; tcp_nodelay on; \
         upstream to {{ server {to}; keepalive 1024; keepalive_requests 100000000; }} \
         server {{ listen {listen} {ssl} backlog=4096; {tls} location / {{ proxy_pass {scheme}://to; proxy_http_version 1.1; \
         proxy_set_header Connection \"\"; proxy_set_header Host $host; proxy_buffers 8 32k; }} }} }}\n"
    )
}

fn nginx_main(listen: SocketAddr, files: &Certificates) -> String {
    format!(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\n\
         daemon off; master_process off; worker_processes 1; pid {}.{}.pid; error_log /dev/null crit;\n\
         events {{ worker_connections 9000; }}\n",
        path(files, "nginx"),
        listen.port(),
    )
}
